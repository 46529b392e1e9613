//! `[send]`: the form of the stream.

use super::section::Section;
use super::units::InvalidValue;
use std::fmt;
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
    /// zstd of that level, 1 to 19.
    Zstd(i32),
}

/// zstd's own default.
const ZSTD_LEVEL_DEFAULT: i32 = 3;

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
        Self { raw: RawMode::Auto, compressed: true, embedded: false, compression: Compression::None }
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

impl FromStr for Compression {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, "none, zstd, or zstd:LEVEL with a level from 1 to 19");
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "zstd" => Ok(Self::Zstd(ZSTD_LEVEL_DEFAULT)),
            Some(("zstd", level)) => {
                let level = level.parse().ok().filter(|level| (1..=19).contains(level));
                level.map(Self::Zstd).ok_or_else(invalid)
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_has_levels_from_1_to_19() {
        for (text, expected) in [
            ("none", Some(Compression::None)),
            ("zstd", Some(Compression::Zstd(3))),
            ("zstd:1", Some(Compression::Zstd(1))),
            ("zstd:19", Some(Compression::Zstd(19))),
            ("zstd:20", None),
            ("zstd:0", None),
            ("zstd:", None),
            ("gzip", None),
            ("none:1", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
