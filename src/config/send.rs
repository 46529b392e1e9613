//! `[send]`: the parameters of the stream.

use super::Size;
use super::form;
use super::units::InvalidValue;
use super::visitor::KeyVisitor;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Whether encrypted blocks are sent as they lie on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RawMode {
    /// Raw exactly if the dataset is encrypted.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never: the key must be loaded, and the stream has plain blocks.
    Never,
}

/// The compression of the stream before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// No compression.
    #[default]
    None,
    /// zstd.
    Zstd {
        /// The level, 1 to 19.
        level: i32,
        /// The size in bits of the window in which repetitions are found; `None` means the level's
        /// own window.
        long: Option<u32>,
    },
}

/// The maximum number of threads that compress and seal. With more threads the reader, the hasher
/// and the network become the bottleneck.
pub const SEALING_THREADS_MAX: usize = 4;
/// zstd's own default.
const ZSTD_LEVEL_DEFAULT: i32 = 3;
/// The range of window sizes. Levels 17 to 19 have 23 bits by default; above 27 `zstd -d` needs an
/// option, and a restore needs more memory.
const LONG_BITS: RangeInclusive<u32> = 24..=27;

/// `[send]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendSection {
    /// The mode for raw sends.
    pub raw: RawMode,
    /// Whether compressed blocks are sent as they lie on disk.
    pub compressed: bool,
    /// Whether small blocks are sent embedded in their block pointers.
    pub embedded: bool,
    /// Compression of the stream.
    pub compression: Compression,
}

impl Default for SendSection {
    fn default() -> Self {
        Self {
            raw: RawMode::Auto,
            compressed: true,
            embedded: false,
            compression: Compression::None,
        }
    }
}

impl SendSection {
    pub(super) fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        let modes = [RawMode::Auto, RawMode::Always, RawMode::Never];
        let mode = form::word_of(modes, "one of auto, always, never");
        visitor.with_default("raw", &mut self.raw, mode);
        visitor.with_default("compressed", &mut self.compressed, form::switch());
        visitor.with_default("embedded", &mut self.embedded, form::switch());
        visitor.with_default("compression", &mut self.compression, form::parsed());
    }
}

impl RawMode {
    /// Whether a dataset is sent raw.
    pub fn is_raw(self, dataset_is_encrypted: bool) -> bool {
        match self {
            Self::Auto => dataset_is_encrypted,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

impl fmt::Display for RawMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

/// The memory of each further stream at the lower levels: its own window, and a job of its thread.
const STREAM_BYTES: Size = Size::mebibytes(12);

impl Compression {
    /// Returns the maximum memory in bytes of so many streams, in addition to that of one stream at
    /// the lower levels: tables of each thread, and the window of each stream. The streams share
    /// the threads, but each has at least one.
    pub(super) fn peak_bytes(self, streams: u64) -> u64 {
        let Self::Zstd { level, long } = self else {
            return 0;
        };
        // Mebibytes for each thread: 4 bytes per entry of the level's hash and chain tables, and an
        // allowance for the optimal parser.
        let thread = match level {
            ..=8 => 0,
            9 => 16,
            10..=11 => 28,
            12..=14 => 52,
            15..=18 => 68,
            _ => 108,
        };
        // The window, and the data that is read ahead of it, which is more at levels that make jobs
        // of 16 MiB from it.
        let ahead = if level > 18 {
            Size::mebibytes(128).bytes()
        } else {
            0
        };
        let window = long.map_or(0, |bits| (2 << bits) + ahead);
        let more_streams = streams.saturating_sub(1);
        let threads = SEALING_THREADS_MAX as u64 + more_streams;
        Size::mebibytes(thread).bytes() * threads
            + window * streams
            + STREAM_BYTES.bytes() * more_streams
    }
}

impl FromStr for Compression {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || {
            InvalidValue::new(
                text,
                "none, zstd, or zstd:LEVEL with a level from 1 to 19, and perhaps ,long=BITS with 24 to 27 bits",
            )
        };
        let (method, long) = match text.split_once(",long=") {
            None => (text, None),
            Some((method, bits)) => {
                let bits = bits.parse().ok().filter(|bits| LONG_BITS.contains(bits));
                (method, Some(bits.ok_or_else(invalid)?))
            }
        };
        let level = match (method.split_once(':'), long) {
            (None, None) if method == "none" => return Ok(Self::None),
            (None, _) if method == "zstd" => Some(ZSTD_LEVEL_DEFAULT),
            (Some(("zstd", level)), _) => {
                level.parse().ok().filter(|level| (1..=19).contains(level))
            }
            _ => None,
        };
        Ok(Self::Zstd {
            level: level.ok_or_else(invalid)?,
            long,
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Zstd { level, long: None } => write!(f, "zstd:{level}"),
            Self::Zstd {
                level,
                long: Some(bits),
            } => write!(f, "zstd:{level},long={bits}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_has_levels_from_1_to_19_and_windows() {
        let zstd = |level, long| Some(Compression::Zstd { level, long });
        for (text, expected) in [
            ("none", Some(Compression::None)),
            ("zstd", zstd(3, None)),
            ("zstd:1", zstd(1, None)),
            ("zstd:19", zstd(19, None)),
            ("zstd,long=24", zstd(3, Some(24))),
            ("zstd:1,long=27", zstd(1, Some(27))),
            ("zstd:1,long=28", None),
            ("zstd:1,long=23", None),
            ("zstd:1,long=", None),
            ("zstd:1,long", None),
            ("none,long=24", None),
            ("zstd:20", None),
            ("zstd:0", None),
            ("zstd:", None),
            ("gzip", None),
            ("none:1", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
            if let Some(expected) = expected {
                assert_eq!(expected.to_string().parse().ok(), Some(expected), "{text}");
            }
        }
    }
}
