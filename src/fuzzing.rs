//! Fuzz targets: functions that take any bytes as the input of a store, a kernel or a person, and
//! must return. A target panics when a parser panics, and when a result contradicts the bytes: a
//! text that does not print as it was read, a stream whose verdict depends on where it was cut, a
//! signature that verifies other bytes.
//!
//! The targets are compiled for tests and with the feature `fuzzing` only. The same functions run
//! in two ways: as an ordinary test on their seeds and on random mutations of them (`tests.rs`
//! below), and guided by coverage in `fuzz/` (`scripts/fuzz`).

#[cfg(any(test, feature = "fuzzing"))]
mod configured;
#[cfg(any(test, feature = "fuzzing"))]
mod hostile;
#[cfg(any(test, feature = "fuzzing"))]
mod local;
#[cfg(any(test, feature = "fuzzing"))]
mod records;
#[cfg(any(test, feature = "fuzzing"))]
mod stored;
#[cfg(test)]
mod tests;

/// A fuzzed function with its first inputs.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The target's name.
    pub name: &'static str,
    /// Takes any bytes, and panics on a defect.
    pub run: fn(&[u8]),
    /// Makes inputs that get past the first checks, by our own code.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the format, for mutations.
    pub words: &'static [&'static str],
}

/// All targets.
pub const TARGETS: &[Target] = &[
    records::STREAM_BYTES,
    records::STREAM_RECORDS,
    records::PACKED_LIST,
    records::RESUME_TOKEN,
    stored::SIGNATURE,
    stored::SIGNED_OBJECT,
    stored::NAMES,
    stored::AGE_HEAD,
    stored::CHUNK,
    hostile::B2_ANSWER,
    hostile::RCLONE_ANSWER,
    hostile::KERNEL_LIST,
    local::JOURNAL,
    local::CACHE_FILE,
    local::LOCKFILE,
    configured::CONFIGURATION,
    configured::INI,
    configured::VALUES,
    configured::KEY_FILE,
];

/// An input that is consumed from its front. An exhausted input yields zeros.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    fn number(&mut self) -> u64 {
        // Short numbers, numbers at a power of two, and any others.
        match self.byte() {
            small @ 0..=127 => u64::from(small),
            power @ 128..=247 => {
                let bit = 1_u64 << ((power - 128) / 2);
                if power % 2 == 0 {
                    bit
                } else {
                    bit.wrapping_sub(1)
                }
            }
            _ => {
                let mut bytes = [0; 8];
                let taken = self.take(8);
                bytes[..taken.len()].copy_from_slice(taken);
                u64::from_le_bytes(bytes)
            }
        }
    }

    fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Cuts bytes into slices whose lengths follow from `seed`: short ones, and lengths at and around a
/// record's header.
fn cut(mut bytes: &[u8], seed: u8) -> Vec<&[u8]> {
    const LENGTHS: [usize; 8] = [1, 3, 4, 7, 280, 311, 313, 4096];
    let (mut slices, mut state) = (Vec::new(), usize::from(seed));
    while !bytes.is_empty() {
        state = state.wrapping_mul(31).wrapping_add(7);
        // Single-byte cuts are slow; one in a hundred is enough.
        let length = LENGTHS[state % LENGTHS.len()] * (1 + state / 8 % 3);
        let (slice, rest) = bytes.split_at(length.min(bytes.len()));
        slices.push(slice);
        bytes = rest;
    }
    slices
}
