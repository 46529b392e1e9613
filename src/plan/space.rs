//! [`judge_space`]: whether the data of a restore fits into the free space.
//!
//! The space is estimated by the length of the streams. A stream of blocks as they lie on disk (raw,
//! or with `send.compressed`) needs about its length in any pool. A stream of uncompressed blocks
//! needs at most its length, and less in a dataset that compresses.

use crate::model::bytes_text;
use serde::Serialize;
use std::fmt;

/// The bytes that one dataset of a restore brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ArrivingBytes {
    /// Bytes of stream that need at least as much space.
    pub stream_bytes: u64,
    /// Bytes of stream that need less space if the target compresses.
    pub compressible_bytes: u64,
    /// Bytes that the dataset reserves in addition, as a volume with a `refreservation` does: its
    /// snapshot keeps the data, and the reservation is for all of it to be written again.
    pub reserved_bytes: u64,
}

/// The free space at a place, compared with the bytes that a restore writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "fit", rename_all = "kebab-case")]
pub enum Fit {
    /// The free space is at least the bytes to write.
    Fits,
    /// Everything fits only if the target compresses it well, or frees space first.
    Doubtful(Shortage),
    /// At least a part does not fit.
    TooLarge(Shortage),
    /// The space at the place is unknown.
    Unknown {
        /// The dataset or folder, as messages name it.
        place: String,
    },
}

/// The sizes of a [`Fit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shortage {
    /// The place: a dataset or a folder.
    pub place: String,
    /// The free space there.
    pub available_bytes: u64,
    /// The bytes that the restore writes and reserves.
    #[serde(flatten)]
    pub arriving: ArrivingBytes,
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fits => f.write_str("everything fits"),
            Self::Doubtful(shortage) => write!(
                f,
                "{shortage}; whether the restore fits depends on how well ZFS compresses the data, or on \
                 the space that the restore frees first"
            ),
            Self::TooLarge(shortage) => shortage.fmt(f),
            Self::Unknown { place } => write!(
                f,
                "the space that is left in {place} is unknown; the restore may not fit"
            ),
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ArrivingBytes {
            stream_bytes,
            compressible_bytes,
            reserved_bytes,
        } = self.arriving;
        let stream = bytes_text(stream_bytes.saturating_add(compressible_bytes));
        write!(f, "the restore writes {stream}")?;
        if reserved_bytes > 0 {
            write!(f, " and reserves {} more", bytes_text(reserved_bytes))?;
        }
        let available = bytes_text(self.available_bytes);
        write!(f, ", and {} has {available} left", self.place)
    }
}

/// Compares the bytes of all datasets with the free space; `None` if that is unknown.
pub fn judge_space(place: &str, arriving: &[ArrivingBytes], available_bytes: Option<u64>) -> Fit {
    let Some(available_bytes) = available_bytes else {
        return Fit::Unknown {
            place: place.to_owned(),
        };
    };
    let sum = |of: fn(&ArrivingBytes) -> u64| {
        let all = arriving.iter().map(of);
        all.fold(0, u64::saturating_add)
    };
    let arriving = ArrivingBytes {
        stream_bytes: sum(|one| one.stream_bytes),
        compressible_bytes: sum(|one| one.compressible_bytes),
        reserved_bytes: sum(|one| one.reserved_bytes),
    };
    let least = arriving
        .stream_bytes
        .saturating_add(arriving.reserved_bytes);
    let most = least.saturating_add(arriving.compressible_bytes);
    let shortage = Shortage {
        place: place.to_owned(),
        available_bytes,
        arriving,
    };
    match available_bytes {
        enough if most <= enough => Fit::Fits,
        enough if least <= enough => Fit::Doubtful(shortage),
        _ => Fit::TooLarge(shortage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn arriving(
        stream_bytes: u64,
        compressible_bytes: u64,
        reserved_bytes: u64,
    ) -> ArrivingBytes {
        ArrivingBytes {
            stream_bytes,
            compressible_bytes,
            reserved_bytes,
        }
    }

    #[test]
    fn space_is_judged_by_what_each_kind_of_stream_needs() {
        let table = [
            ("nothing", arriving(0, 0, 0), "fits"),
            ("as much as is left", arriving(100, 0, 0), "fits"),
            ("blocks as on disk", arriving(101, 0, 0), "too large"),
            ("blocks to compress", arriving(0, 101, 0), "doubtful"),
            ("both kinds", arriving(60, 60, 0), "doubtful"),
            ("both kinds, too many", arriving(101, 1, 0), "too large"),
            ("a thick volume", arriving(10, 0, 91), "too large"),
            ("a sparse volume", arriving(10, 0, 90), "fits"),
            (
                "absurd",
                arriving(u64::MAX, u64::MAX, u64::MAX),
                "too large",
            ),
        ];
        for (name, arriving, expected) in table {
            let found = match judge_space("tank", &[arriving], Some(100)) {
                Fit::Fits => "fits",
                Fit::Doubtful(_) => "doubtful",
                Fit::TooLarge(_) => "too large",
                Fit::Unknown { .. } => "unknown",
            };
            assert_eq!(found, expected, "{name}");
        }
        let tree = [arriving(60, 0, 0), arriving(60, 0, 0)];
        let fit = judge_space("tank/a b", &tree, Some(100));
        assert_eq!(
            fit.to_string(),
            "the restore writes 120, and tank/a b has 100 left"
        );
        let volume = judge_space("tank", &[arriving(10, 0, 2048)], Some(100));
        assert_eq!(
            volume.to_string(),
            "the restore writes 10 and reserves 2.00K more, and tank has 100 left"
        );
        let unknown = judge_space("tank", &tree, None);
        assert!(matches!(unknown, Fit::Unknown { .. }));
    }
}
