//! [`RecordType`]: the types of records, by OpenZFS' numbers and names.

use std::fmt;

/// The type of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordType {
    /// The description of the stream; once, first.
    Begin,
    /// A dnode.
    Object,
    /// Object numbers that are free.
    FreeObjects,
    /// A block.
    Write,
    /// A hole.
    Free,
    /// The sum of all bytes; once, last.
    End,
    /// A block by reference (deduplicated streams, gone from ZFS).
    WriteByRef,
    /// A spill block.
    Spill,
    /// A block so small that it is embedded in its block pointer.
    WriteEmbedded,
    /// The dnode block that follows (raw streams).
    ObjectRange,
    /// A redacted range.
    Redact,
    /// A type that this version does not know.
    Unknown(u32),
}

/// The number of known types: the length of a table of them.
pub(super) const KNOWN_TYPES: usize = 11;

impl From<u32> for RecordType {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Begin,
            1 => Self::Object,
            2 => Self::FreeObjects,
            3 => Self::Write,
            4 => Self::Free,
            5 => Self::End,
            6 => Self::WriteByRef,
            7 => Self::Spill,
            8 => Self::WriteEmbedded,
            9 => Self::ObjectRange,
            10 => Self::Redact,
            unknown => Self::Unknown(unknown),
        }
    }
}

impl RecordType {
    /// The number in the stream.
    pub fn number(self) -> u32 {
        match self {
            Self::Begin => 0,
            Self::Object => 1,
            Self::FreeObjects => 2,
            Self::Write => 3,
            Self::Free => 4,
            Self::End => 5,
            Self::WriteByRef => 6,
            Self::Spill => 7,
            Self::WriteEmbedded => 8,
            Self::ObjectRange => 9,
            Self::Redact => 10,
            Self::Unknown(number) => number,
        }
    }

    /// Returns the offset of the guid of the record's snapshot.
    pub(super) fn guid_at(self) -> Option<usize> {
        match self {
            Self::Begin | Self::Object | Self::Write | Self::End => Some(40),
            Self::FreeObjects | Self::Spill | Self::ObjectRange => Some(24),
            Self::Free | Self::WriteByRef | Self::WriteEmbedded | Self::Redact => Some(32),
            Self::Unknown(_) => None,
        }
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begin => "BEGIN",
            Self::Object => "OBJECT",
            Self::FreeObjects => "FREEOBJECTS",
            Self::Write => "WRITE",
            Self::Free => "FREE",
            Self::End => "END",
            Self::WriteByRef => "WRITE_BYREF",
            Self::Spill => "SPILL",
            Self::WriteEmbedded => "WRITE_EMBEDDED",
            Self::ObjectRange => "OBJECT_RANGE",
            Self::Redact => "REDACT",
            Self::Unknown(number) => return write!(f, "type {number}"),
        })
    }
}
