//! [`Splicer`]: makes the rest of an interrupted stream from the stream that `lzc_send_resume`
//! starts.
//!
//! The resumed stream has a BEGIN of its own, a prologue (the object again), the record of the
//! [`ResumePoint`] again, and then all following records, with checksums that count from its own
//! start. The splicer checks that the send is the same, drops everything up to and including the
//! repeated record, and recomputes the checksums of the rest from the saved state. The result is
//! the bytes of an uninterrupted send from `ResumePoint::position` on: one stream is stored, never
//! segments, and any `zfs receive` accepts it.
//!
//! ZFS guarantees the same bytes only for the same snapshot, base and flags, with large blocks on
//! (without, a block may be split and the resume point may lie within it). The caller compares the
//! bytes already stored past the point:
//! [`StreamParser::fletcher4`](super::record::StreamParser::fletcher4) at the same position. On any
//! error here the caller starts the upload over; the splicer never guesses.

use super::fletcher::{Fletcher4, Fletcher4Feed};
use super::record::ivset::IvSetCheck;
use super::record::walk::{Payload, RecordSink, Walker};
use super::record::{
    BeginRecord, RecordHeader, RecordType, ResumePoint, StreamError, StreamFault, feature,
};
use crate::model::Digest;

/// Reads a resumed stream, in slices of any length, and writes the continuation.
#[derive(Debug)]
pub struct Splicer {
    walker: Walker,
    splice: Splice,
    failed: Option<SpliceError>,
}

/// The reason why a resumed stream does not continue the interrupted one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpliceError {
    /// The resumed stream is damaged or cut.
    #[error("resumed {0}")]
    Stream(#[from] StreamError),
    /// The resumed stream is of another send.
    #[error("resumed stream: {what} is {found}, expected {expected}")]
    OtherSend {
        /// The differing fact.
        what: &'static str,
        /// The value in the interrupted stream.
        expected: String,
        /// The value in the resumed stream.
        found: String,
    },
    /// The resumed stream starts at another block.
    #[error("resumed stream: first block at object {}, offset {}, expected object {}, offset {}", .found.0, .found.1, .expected.0, .expected.1)]
    OtherBlock {
        /// Object and offset of the resume point.
        expected: (u64, u64),
        /// Object and offset of the first block.
        found: (u64, u64),
    },
    /// The resumed stream repeats the record with other bytes, so this send makes another stream.
    #[error(
        "resumed stream: block at object {object}, offset {offset} differs from the one sent before"
    )]
    BlockDiffers {
        /// The object.
        object: u64,
        /// The offset.
        offset: u64,
    },
    /// The resumed stream ends without the record of the resume point.
    #[error("resumed stream: ends before the block at object {object}, offset {offset}")]
    NoBlock {
        /// The object.
        object: u64,
        /// The offset.
        offset: u64,
    },
    /// A record whose payload rule is unknown cannot be rewritten.
    #[error(
        "resumed stream: record type {number} is not known, and cannot be joined to what was sent"
    )]
    UnknownRecord {
        /// The type.
        number: u32,
    },
}

impl Splicer {
    /// Makes a splicer for the interrupted stream that began with `begin` and is known up to
    /// `point`.
    pub fn new(begin: BeginRecord, point: ResumePoint) -> Self {
        let sum = Fletcher4Feed::new(point.fletcher4.into(), begin.order);
        let splice = Splice {
            begin,
            point,
            stage: Stage::Begin,
            sum,
            other: None,
            ivset: IvSetCheck::default(),
        };
        Self {
            walker: Walker::new(),
            splice,
            failed: None,
        }
    }

    /// Reads the next bytes of the resumed stream and writes the resulting bytes, in order and in
    /// pieces.
    ///
    /// # Errors
    /// [`SpliceError`] at the first fault, and the same error on every later call. Bytes written
    /// before a [`SpliceError::Stream`] may already be damaged, as with any stream before its end
    /// is proved.
    pub fn feed(&mut self, bytes: &[u8], put: &mut dyn FnMut(&[u8])) -> Result<(), SpliceError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let fed = self.walker.feed(
            bytes,
            &mut Joint {
                splice: &mut self.splice,
                put,
            },
        );
        fed.inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// Ends the resumed stream.
    ///
    /// # Errors
    /// [`SpliceError`] unless the stream was complete and intact.
    pub fn finish(self) -> Result<(), SpliceError> {
        match self.failed {
            Some(error) => Err(error),
            None => Ok(self.walker.finish().map(|_| ())?),
        }
    }
}

#[derive(Debug)]
struct Splice {
    begin: BeginRecord,
    point: ResumePoint,
    stage: Stage,
    /// The sum of the written stream.
    sum: Fletcher4Feed,
    /// A difference found in BEGIN, reported at the next record, because only that record proves
    /// BEGIN.
    other: Option<SpliceError>,
    ivset: IvSetCheck,
}

#[derive(Debug)]
enum Stage {
    /// Only BEGIN was read so far.
    Begin,
    /// The object's records, sent again.
    Prologue,
    /// The record of the resume point, sent again.
    Repeated(Box<blake3::Hasher>),
    /// After the resume point: all records are written.
    Continuing,
}

/// Returns the facts of a BEGIN that a resumed stream repeats, each with its name.
fn begin_facts(begin: &BeginRecord) -> [(&'static str, String); 6] {
    [
        ("byte order", format!("{:?}", begin.order)),
        ("snapshot guid", begin.snapshot_guid.to_string()),
        (
            "base guid",
            begin
                .base_guid
                .map_or_else(|| "none".to_owned(), |guid| guid.to_string()),
        ),
        ("dataset type", format!("{:?}", begin.dataset_type)),
        ("flags", format!("{:#x}", begin.flags)),
        ("feature flags", format!("{:#x}", begin.feature_flags)),
    ]
}

impl Splice {
    /// Returns the difference of the resumed stream's BEGIN. The name may differ: a dataset can be
    /// renamed in between.
    fn difference(&self, found: &BeginRecord) -> Option<SpliceError> {
        let expected = BeginRecord {
            feature_flags: self.begin.feature_flags | feature::RESUMING,
            ..self.begin.clone()
        };
        let pairs = begin_facts(&expected).into_iter().zip(begin_facts(found));
        pairs
            .map(|((what, expected), (_, found))| (what, expected, found))
            .find(|(_, expected, found)| expected != found)
            .map(|(what, expected, found)| SpliceError::OtherSend {
                what,
                expected,
                found,
            })
    }

    /// Handles a header before the repeated record: skips it, or starts to hash it.
    fn approach(&mut self, header: &RecordHeader) -> Result<(), SpliceError> {
        if let Some(other) = self.other.take() {
            return Err(other);
        }
        let ResumePoint { object, offset, .. } = self.point;
        match (header.block(), header.record_type()) {
            (Some(found), _) if found == (object, offset) => {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&header.bytes_without_checksum());
                self.stage = Stage::Repeated(Box::new(hasher));
            }
            (Some(found), _) => {
                return Err(SpliceError::OtherBlock {
                    expected: (object, offset),
                    found,
                });
            }
            (None, RecordType::End) => return Err(SpliceError::NoBlock { object, offset }),
            (None, _) => self.stage = Stage::Prologue,
        }
        Ok(())
    }
}

/// The splice together with its output, for the duration of one call.
struct Joint<'a> {
    splice: &'a mut Splice,
    put: &'a mut dyn FnMut(&[u8]),
}

impl RecordSink for Joint<'_> {
    type Error = SpliceError;

    fn begin(&mut self, begin: &BeginRecord) -> Result<(), StreamFault> {
        self.splice.other = self.splice.difference(begin);
        self.splice.ivset.begin(begin)
    }

    fn begin_payload(&mut self, bytes: &[u8]) {
        self.splice.ivset.payload(bytes);
    }

    fn begin_end(&mut self) -> Result<(), StreamFault> {
        self.splice.ivset.payload_end()
    }

    fn header(&mut self, header: &RecordHeader, _: Payload) -> Result<(), SpliceError> {
        if let RecordType::Unknown(number) = header.record_type() {
            return Err(SpliceError::UnknownRecord { number });
        }
        if matches!(self.splice.stage, Stage::Continuing) {
            (self.put)(header.sealed_into(&mut self.splice.sum).bytes());
            return Ok(());
        }
        self.splice.approach(header)
    }

    fn payload(&mut self, bytes: &[u8]) {
        match &mut self.splice.stage {
            Stage::Begin | Stage::Prologue => {}
            Stage::Repeated(hasher) => {
                hasher.update(bytes);
            }
            Stage::Continuing => {
                self.splice.sum.feed(bytes);
                (self.put)(bytes);
            }
        }
    }

    fn record_end(&mut self, _: Fletcher4) -> Result<(), SpliceError> {
        let Stage::Repeated(hasher) = &self.splice.stage else {
            return Ok(());
        };
        let ResumePoint {
            object,
            offset,
            record_blake3,
            ..
        } = self.splice.point;
        if Digest::from(hasher.finalize()) != record_blake3 {
            return Err(SpliceError::BlockDiffers { object, offset });
        }
        self.splice.stage = Stage::Continuing;
        Ok(())
    }
}
