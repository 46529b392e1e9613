//! [`StreamError`]: the fault of a send stream, and its position.

use super::RecordType;
use crate::model::Guid;

/// A stream that cannot be what `zfs send` made: the record, and its [`StreamFault`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("send stream: record {record}{} at byte {position}: {fault}", type_text(*.record_type))]
pub struct StreamError {
    /// The number of the record, BEGIN being 0. A resumed parser counts from its resume point.
    pub record: u64,
    /// The type of the record, if its header was read. Unreliable when the fault is a checksum.
    pub record_type: Option<RecordType>,
    /// The stream position of its first byte.
    pub position: u64,
    /// The fault.
    pub fault: StreamFault,
}

fn type_text(record_type: Option<RecordType>) -> String {
    record_type
        .map(|known| format!(" ({known})"))
        .unwrap_or_default()
}

/// The fault of a record, and the expected value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// The first record is not BEGIN.
    #[error(
        "expected a BEGIN record with the magic number of a ZFS send stream, found {found:#018x}"
    )]
    NotAStream {
        /// The bytes in the magic number's place, as a little-endian number.
        found: u64,
    },
    /// A package of streams (`zfs send -R`, `-p`), which the library call never makes.
    #[error("expected one plain stream (header type 1), found header type {found}")]
    Compound {
        /// The header type: 2 for a package.
        found: u64,
    },
    /// The snapshot's name in BEGIN is malformed.
    #[error("expected a snapshot name in UTF-8 that ends within 256 bytes")]
    Name,
    /// The stream resumes another, but a whole stream is expected.
    #[error("expected a stream from its start, found one that resumes")]
    Resuming,
    /// The stream is of another snapshot.
    #[error("expected a stream of snapshot guid {expected}, found {found}")]
    WrongSnapshot {
        /// The expected snapshot.
        expected: Guid,
        /// The snapshot in the record.
        found: Guid,
    },
    /// The stream has another base.
    #[error("expected a stream from {}, found {}", base_text(*.expected), base_text(*.found))]
    WrongBase {
        /// The expected base.
        expected: Option<Guid>,
        /// The base in BEGIN.
        found: Option<Guid>,
    },
    /// A raw incremental whose base has no IV-set guid. Only a sender requires one.
    #[error(
        "expected the IV-set guid of the base, found none: ZFS would not receive this raw \
         incremental"
    )]
    NoIvSet,
    /// A second BEGIN record.
    #[error("expected one BEGIN record, found another")]
    SecondBegin,
    /// The running checksum does not match: this header or any byte since the previous one is
    /// damaged.
    #[error("checksum {}, expected {}: damaged here or in the payload before", sum_text(*.found), sum_text(*.expected))]
    Checksum {
        /// The sum of the bytes.
        expected: [u64; 4],
        /// The sum in the record.
        found: [u64; 4],
    },
    /// END's sum of the whole stream does not match.
    #[error("sum of the whole stream {}, expected {}", sum_text(*.found), sum_text(*.expected))]
    EndChecksum {
        /// The sum of the bytes.
        expected: [u64; 4],
        /// The sum in END.
        found: [u64; 4],
    },
    /// The payload has a length that no block can have.
    #[error("payload of {bytes} bytes, expected whole 32-bit words and at most 16 MiB")]
    Payload {
        /// The length of the payload according to the header.
        bytes: u64,
    },
    /// Bytes follow END.
    #[error("expected nothing after END, found more bytes")]
    DataAfterEnd,
    /// The stream stops before END is complete.
    #[error("expected more bytes, found the end of the stream")]
    Truncated,
}

fn base_text(base: Option<Guid>) -> String {
    base.map_or_else(
        || "the beginning (full)".to_owned(),
        |guid| format!("base guid {guid}"),
    )
}

fn sum_text([a, b, c, d]: [u64; 4]) -> String {
    format!("{a:x}/{b:x}/{c:x}/{d:x}")
}
