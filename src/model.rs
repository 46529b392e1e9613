//! The names of things. Each is parsed once and is valid from then on. This room depends on no
//! other room of the crate.

mod backup_id;
mod backup_level;
mod digest;
mod error_chain;
mod host_mark;
mod name;
mod quantity;
mod read_fault;
mod store_id;

pub use backup_id::{BackupId, BackupKind};
pub use backup_level::BackupLevel;
pub use digest::Digest;
pub use error_chain::error_chain;
pub use host_mark::HostMark;
pub use name::{BookmarkName, DatasetName, SnapshotName};
pub use quantity::bytes_text;
pub use read_fault::{ReadFault, RecordPlace};
pub use store_id::{KnownStore, StoreId};

use std::fmt;
use std::str::FromStr;

/// A name, id or digest that is malformed. The text names the value and says what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?}: {expected}")]
pub struct InvalidName {
    /// The kind of name that was parsed: "dataset name", "backup id".
    pub what: &'static str,
    /// The value as it was given.
    pub value: String,
    /// The form of a valid value.
    pub expected: &'static str,
}

impl InvalidName {
    pub(crate) fn new(what: &'static str, value: &str, expected: &'static str) -> Self {
        Self {
            what,
            value: value.to_owned(),
            expected,
        }
    }
}

/// Writes a type in JSON as its `Display` text.
macro_rules! serialize_as_text {
    ($($name:ty),+) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}
pub(crate) use serialize_as_text;

/// Writes and reads a type in JSON as the text that `Display` and `FromStr` agree on.
macro_rules! serde_as_text {
    ($($name:ty),+) => {$(
        serialize_as_text!($name);
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

serde_as_text!(
    Guid,
    Digest,
    BackupId,
    DatasetName,
    HostMark,
    SnapshotName,
    StoreId
);
serialize_as_text!(BookmarkName);

/// A 64-bit ZFS guid: of a snapshot, a dataset or a pool. Written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub u64);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Guid {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid =
            || InvalidName::new("guid", text, "expected 16 lower-case hexadecimal digits");
        if text.len() != 16 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid());
        }
        u64::from_str_radix(text, 16)
            .map(Guid)
            .map_err(|_| invalid())
    }
}

/// The position of a chunk in its backup, from 0. Eight digits in object names, so at most
/// 99,999,999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(u32);

impl ChunkIndex {
    /// The largest index that fits the object name.
    pub const MAX: u32 = 99_999_999;

    /// Returns the index, or `None` above [`ChunkIndex::MAX`].
    pub fn new(index: u32) -> Option<Self> {
        (index <= Self::MAX).then_some(Self(index))
    }

    /// Returns the number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}", self.0)
    }
}
