//! `[send]`: the form of the stream.

use super::Size;
use super::section::Section;
use super::units::InvalidValue;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Whether encrypted blocks leave as they lie on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RawMode {
    /// Exactly when the dataset is encrypted.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never: the key must be loaded, and the stream has plain blocks.
    Never,
}

/// What is applied to the stream before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Nothing.
    #[default]
    None,
    /// zstd.
    Zstd {
        /// 1 to 19.
        level: i32,
        /// The bits of a window in which repetitions are found far apart; `None` for that of the
        /// level.
        long: Option<u32>,
    },
}

/// So many threads compress and seal at most: with more of them the reader, the hasher and the line
/// come first.
pub const SEALING_THREADS_MAX: usize = 4;
/// zstd's own default.
const ZSTD_LEVEL_DEFAULT: i32 = 3;
/// Levels 17 to 19 look back 23 bits without being told; above 27 `zstd -d` wants an option, and a
/// restore more memory.
const LONG_BITS: RangeInclusive<u32> = 24..=27;

/// `[send]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendSection {
    /// Raw or not.
    pub raw: RawMode,
    /// Compressed blocks leave as they lie on disk.
    pub compressed: bool,
    /// Small blocks travel inside their pointers.
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
    pub(super) fn read(send: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            raw: send.parsed("raw").unwrap_or(default.raw),
            compressed: send.switch("compressed").unwrap_or(default.compressed),
            embedded: send.switch("embedded").unwrap_or(default.embedded),
            compression: send.parsed("compression").unwrap_or(default.compression),
        }
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

impl FromStr for RawMode {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(InvalidValue::new(text, "one of auto, always, never")),
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

impl Compression {
    /// Memory that it takes beyond what it takes at the lower levels, at most: tables of each
    /// thread, and the window.
    pub(super) fn peak_bytes(self) -> u64 {
        let Self::Zstd { level, long } = self else {
            return 0;
        };
        // 4 bytes an entry of the level's hash and chain tables, and some for the optimal parser.
        let thread = match level {
            ..=8 => 0,
            9 => 16,
            10..=11 => 28,
            12..=14 => 52,
            15..=18 => 68,
            _ => 108,
        };
        // The window, and what is read ahead of it: more where the level makes jobs of 16 MiB of
        // it.
        let ahead = if level > 18 {
            Size::mebibytes(128).bytes()
        } else {
            0
        };
        let window = long.map_or(0, |bits| (2 << bits) + ahead);
        Size::mebibytes(thread).bytes() * SEALING_THREADS_MAX as u64 + window
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
