//! [`check_chunk_count`]: whether a stream of an estimated length has few enough chunks for one
//! backup, and the `split_size` that would do.

use crate::config::Size;
use crate::manifest::CHUNKS_MAX;
use crate::model::bytes_text;
use std::fmt;

/// The share of the estimate that is added for streams that turn out longer. The kernel counts
/// blocks, and not each record around them.
const MARGIN_DIVISOR: u64 = 8;
/// The smallest proposal. `main.split_size` allows smaller values.
const SPLIT_BYTES_PROPOSED_MIN: u64 = 1 << 20;

/// A stream that needs more chunks than a backup may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyChunks {
    /// The estimated bytes of the stream.
    pub estimate_bytes: u64,
    /// Bytes of stream in a chunk.
    pub split_bytes: u64,
}

impl fmt::Display for TooManyChunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunks = self.estimate_bytes.div_ceil(self.split_bytes.max(1));
        write!(
            f,
            "the stream would have about {} in {chunks} chunks, and a backup has at most \
             {CHUNKS_MAX}, including a reserve for a longer stream; main.split_size is \"{}\"",
            bytes_text(self.estimate_bytes),
            Size(self.split_bytes)
        )
    }
}

impl TooManyChunks {
    /// Returns the remedy, with the line for the configuration.
    pub fn hint(&self) -> String {
        split_size_hint(self.estimate_bytes)
    }
}

/// Returns the remedy for a stream of this length, with the line for the configuration.
pub fn split_size_hint(stream_bytes: u64) -> String {
    let enough = Size(split_bytes_enough(stream_bytes));
    format!("write split_size = \"{enough}\" into [main] of the configuration")
}

/// Checks the number of chunks of a new upload, with room for a stream that is longer than its
/// estimate.
///
/// # Errors
/// [`TooManyChunks`].
pub fn check_chunk_count(estimate_bytes: u64, split_bytes: u64) -> Result<(), TooManyChunks> {
    check(with_margin(estimate_bytes), estimate_bytes, split_bytes)
}

/// Checks the number of chunks of an upload that is to be resumed. The upload was begun with this
/// `split_size`, so only the estimate itself counts: the room may be used up already.
///
/// # Errors
/// [`TooManyChunks`].
pub fn check_resumed_chunk_count(
    estimate_bytes: u64,
    split_bytes: u64,
) -> Result<(), TooManyChunks> {
    check(estimate_bytes, estimate_bytes, split_bytes)
}

fn check(counted_bytes: u64, estimate_bytes: u64, split_bytes: u64) -> Result<(), TooManyChunks> {
    if counted_bytes.div_ceil(split_bytes.max(1)) <= u64::from(CHUNKS_MAX) {
        return Ok(());
    }
    Err(TooManyChunks {
        estimate_bytes,
        split_bytes,
    })
}

/// Returns the smallest power of two with which [`check_chunk_count`] succeeds, at least 1 MiB.
pub fn split_bytes_enough(estimate_bytes: u64) -> u64 {
    with_margin(estimate_bytes)
        .div_ceil(CHUNKS_MAX.into())
        .max(SPLIT_BYTES_PROPOSED_MIN)
        .next_power_of_two()
}

fn with_margin(estimate_bytes: u64) -> u64 {
    estimate_bytes.saturating_add(estimate_bytes / MARGIN_DIVISOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;

    #[test]
    fn a_stream_with_too_many_chunks_names_the_split_size_that_would_do() {
        let refused = check_chunk_count(8 * TIB, 15 * MIB).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the stream would have about 8.00T in 559241 chunks, and a backup has at most 500000, \
             including a reserve for a longer stream; main.split_size is \"15M\""
        );
        assert_eq!(
            refused.hint(),
            "write split_size = \"32M\" into [main] of the configuration"
        );
        let at_limit = u64::from(CHUNKS_MAX) * MIB;
        let table = [
            ("nothing", 0, true, true),
            ("with its margin at the limit", at_limit / 9 * 8, true, true),
            ("inside the margin", at_limit / 9 * 8 + MIB, false, true),
            ("at the limit", at_limit, false, true),
            ("above the limit", at_limit + 1, false, false),
            ("absurd", u64::MAX, false, false),
        ];
        for (name, estimate_bytes, new, resumed) in table {
            let found = check_chunk_count(estimate_bytes, MIB).is_ok();
            assert_eq!(found, new, "{name}, a new upload");
            let found = check_resumed_chunk_count(estimate_bytes, MIB).is_ok();
            assert_eq!(found, resumed, "{name}, a resumed upload");
        }
    }

    proptest! {
        #[test]
        fn the_proposed_split_size_is_enough(estimate_bytes: u64) {
            let split_bytes = split_bytes_enough(estimate_bytes);
            prop_assert_eq!(check_chunk_count(estimate_bytes, split_bytes), Ok(()));
            let less = check_chunk_count(estimate_bytes, split_bytes / 2);
            prop_assert!(less.is_err() || split_bytes == SPLIT_BYTES_PROPOSED_MIN);
        }
    }
}
