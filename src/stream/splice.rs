//! [`Splicer`]: makes the rest of an interrupted stream out of the one that `lzc_send_resume`
//! starts.
//!
//! The resumed stream has a BEGIN of its own, a prologue (the object again), the record of the
//! [`ResumePoint`] again, and then all that would have followed, with checksums that count from its
//! own start. The splicer checks that it is the same send, drops everything up to and including the
//! repeated record, and recomputes the checksums of the rest from the state that was kept. What
//! comes out are the bytes of an uninterrupted send from `ResumePoint::position` on: one stream is
//! stored, never segments, and any `zfs receive` takes it.
//!
//! ZFS promises the same bytes only for the same snapshot, base and flags, with large blocks on
//! (without, a block may come in pieces and the resume point lie between two). The caller compares
//! what it already stored past the point:
//! [`StreamParser::fletcher4`](super::record::StreamParser::fletcher4) at the same position. On any
//! error here it starts the upload over; it never guesses.

use super::fletcher::{Fletcher4, Fletcher4Feed};
use super::record::walk::{Payload, RecordSink, Walker};
use super::record::{
    BeginRecord, RecordHeader, RecordType, ResumePoint, StreamError, StreamFault, feature,
};
use crate::model::Digest;

/// Takes in a resumed stream, in slices cut anywhere, and puts out the continuation.
#[derive(Debug)]
pub struct Splicer {
    walker: Walker,
    splice: Splice,
    failed: Option<SpliceError>,
}

/// Why a resumed stream does not continue the interrupted one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpliceError {
    /// The resumed stream is damaged or cut.
    #[error("resumed {0}")]
    Stream(#[from] StreamError),
    /// The resumed stream is of another send.
    #[error("resumed stream: {what} is {found}, expected {expected}")]
    OtherSend {
        /// What differs.
        what: &'static str,
        /// As the interrupted stream had it.
        expected: String,
        /// As the resumed stream has it.
        found: String,
    },
    /// It takes up at another place.
    #[error("resumed stream: first block at object {}, offset {}, expected object {}, offset {}", .found.0, .found.1, .expected.0, .expected.1)]
    OtherBlock {
        /// Object and offset of the resume point.
        expected: (u64, u64),
        /// Object and offset of the first block.
        found: (u64, u64),
    },
    /// It repeats the record with other bytes, so this send makes another stream.
    #[error(
        "resumed stream: block at object {object}, offset {offset} differs from the one sent before"
    )]
    BlockDiffers {
        /// The object.
        object: u64,
        /// The offset.
        offset: u64,
    },
    /// It ends without the record that it takes up at.
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
    /// For the interrupted stream that began with `begin` and is known up to `point`.
    pub fn new(begin: BeginRecord, point: ResumePoint) -> Self {
        let sum = Fletcher4Feed::new(point.fletcher4.into(), begin.order);
        let splice = Splice {
            begin,
            point,
            stage: Stage::Begin,
            sum,
            other: None,
        };
        Self {
            walker: Walker::new(),
            splice,
            failed: None,
        }
    }

    /// Takes in the next bytes of the resumed stream and puts out what they become, in order and in
    /// pieces.
    ///
    /// # Errors
    /// [`SpliceError`] at the first fault, and the same again ever after. What was put out before a
    /// [`SpliceError::Stream`] may already be damaged, as with any stream before its end is proved.
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
    /// [`SpliceError`] unless it was whole and intact, and all was put out.
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
    /// The sum of the stream that is put out.
    sum: Fletcher4Feed,
    /// A difference found in BEGIN, told at the next record: BEGIN itself is proved only then.
    other: Option<SpliceError>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing but BEGIN so far.
    Begin,
    /// The object's records, sent again.
    Prologue,
    /// The record of the resume point, sent again.
    Repeated(Box<blake3::Hasher>),
    /// Past it: all goes out.
    Continuing,
}

impl Splice {
    /// How the BEGIN of the resumed stream differs. The name may: a dataset can be renamed between
    /// the two.
    fn difference(&self, found: &BeginRecord) -> Option<SpliceError> {
        let facts = |begin: &BeginRecord| {
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
        };
        let expected = BeginRecord {
            feature_flags: self.begin.feature_flags | feature::RESUMING,
            ..self.begin.clone()
        };
        let pairs = facts(&expected).into_iter().zip(facts(found));
        pairs
            .map(|((what, expected), (_, found))| (what, expected, found))
            .find(|(_, expected, found)| expected != found)
            .map(|(what, expected, found)| SpliceError::OtherSend {
                what,
                expected,
                found,
            })
    }

    /// A header before the repeated record: passes it by, or starts to hash it.
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

/// The splice with the way out, for the length of one call.
struct Joint<'a> {
    splice: &'a mut Splice,
    put: &'a mut dyn FnMut(&[u8]),
}

impl RecordSink for Joint<'_> {
    type Error = SpliceError;

    fn begin(&mut self, begin: &BeginRecord) -> Result<(), StreamFault> {
        self.splice.other = self.splice.difference(begin);
        Ok(())
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
