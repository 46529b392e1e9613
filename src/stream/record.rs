//! The send stream: its records, their lengths, the running Fletcher-4 checksum, and the points
//! from which a send can be resumed.
//!
//! [`StreamParser`] reads a stream as it passes, during backups and restores, and proves it
//! complete: every record's checksum, END's sum over everything, the right snapshot and base,
//! nothing missing and nothing after. The parser copies no payload and changes only its arguments.
//! [`RecordWriter`] makes streams, for tests and for the fake ZFS.
//!
//! # Accepted streams
//! Exactly one plain stream, in either byte order, of record types 0 to 10 with the payload rules
//! of OpenZFS 2.0 to 2.4. Refused: packages (`zfs send -R`), a second BEGIN, records of another
//! snapshot, payloads above 16 MiB, a checksum that is zero ("not set" to `zfs receive`; but `zfs
//! send` sets every one), bytes after END.
//!
//! Damage in a payload shows at the next record's checksum, in the last one at END; damage in
//! BEGIN, which has no checksum of its own, at the record after it. The bytes fed are therefore
//! proved only once [`StreamParser::finish`] succeeds.
//!
//! **A record type that this version does not know** is accepted if its own checksum is right: ZFS
//! then really sent it, and a newer ZFS must not stop a backup. Its payload rule is unknown, so no
//! later record is parsed, there are no resume points, and [`StreamSummary::checked`] is false. The
//! stream must still end with an END record whose sum covers every byte, so damage and truncation
//! are found even then.

mod begin;
mod error;
mod header;
pub(super) mod ivset;
mod record_type;
mod resume;
pub(super) mod walk;
#[cfg(any(test, feature = "testing"))]
mod write;

pub use begin::{BeginRecord, StreamDatasetType, feature};
pub use error::{StreamError, StreamFault};
pub use header::{HEADER_BYTES, PAYLOAD_BYTES_MAX, RecordHeader};
pub use record_type::RecordType;
pub use resume::ResumePoint;
#[cfg(any(test, feature = "testing"))]
pub use write::RecordWriter;

use crate::model::Guid;
use crate::stream::fletcher::Fletcher4;
use ivset::IvSetCheck;
use record_type::KNOWN_TYPES;
use resume::ResumeTracker;
use walk::{Payload, RecordSink, Walker};

/// The snapshots that a stream must be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamExpectation {
    /// The snapshot that the stream creates.
    pub snapshot_guid: Guid,
    /// The base of the stream; `None` for a full stream.
    pub base_guid: Option<Guid>,
}

/// Parses a stream in slices of any length. The [module](self) lists the checks.
#[derive(Debug, Clone)]
pub struct StreamParser {
    walker: Walker,
    watch: Watch,
    failed: Option<StreamError>,
}

/// The facts of a complete and intact stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSummary {
    /// The length of the stream in bytes.
    pub bytes: u64,
    /// The snapshot's name when it was sent.
    pub to_name: String,
    /// The guid of the snapshot.
    pub snapshot_guid: Guid,
    /// The guid of the base.
    pub base_guid: Option<Guid>,
    /// The time at which the snapshot was taken, in seconds since 1970.
    pub creation_time: u64,
    /// Filesystem or volume.
    pub dataset_type: StreamDatasetType,
    /// `DMU_BACKUP_FEATURE_*`; see [`feature`].
    pub feature_flags: u64,
    /// `DRR_FLAG_*`.
    pub flags: u32,
    /// The records, by type. A parser that was resumed counts only the records after the resume
    /// point.
    pub records: RecordCounts,
    /// Whether every record was parsed. False after a record of an unknown type; END still proves
    /// the bytes.
    pub checked: bool,
    /// The sum in END over all bytes before it.
    pub end_fletcher4: [u64; 4],
}

/// The number of records of each type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordCounts {
    known: [u64; KNOWN_TYPES],
    unknown: u64,
}

impl StreamParser {
    /// Makes a parser at the start of a stream.
    pub fn new(expect: StreamExpectation) -> Self {
        Self {
            walker: Walker::new(),
            watch: Watch::new(expect, ResumeTracker::default()),
            failed: None,
        }
    }

    /// Makes a parser that continues just after a resume point of a stream that began with `begin`.
    ///
    /// # Errors
    /// [`StreamFault::WrongSnapshot`] or [`StreamFault::WrongBase`] when `begin` is not what was
    /// expected.
    pub fn resume(
        expect: StreamExpectation,
        begin: BeginRecord,
        point: ResumePoint,
    ) -> Result<Self, StreamFault> {
        let mut watch = Watch::new(expect, ResumeTracker::resume(point));
        watch.begin(&begin)?;
        watch.counts = RecordCounts::default();
        let walker = Walker::resume(begin, point.position, point.fletcher4.into());
        Ok(Self {
            walker,
            watch,
            failed: None,
        })
    }

    /// Also refuses a raw incremental from a base without an IV-set guid, which ZFS does not
    /// receive. Streams that are stored already are not refused for this: a setting of the
    /// receiving kernel can allow them.
    #[must_use]
    pub fn requiring_ivset(mut self) -> Self {
        self.watch.ivset = Some(IvSetCheck::default());
        self
    }

    /// Parses the next bytes of the stream.
    ///
    /// # Errors
    /// [`StreamError`] at the first fault, and the same error on every later call.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.walker
            .feed(bytes, &mut self.watch)
            .inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// Returns the stream position: all bytes fed, plus the bytes before the resume point.
    pub fn position(&self) -> u64 {
        self.walker.position()
    }

    /// Returns the length of the beginning that checksums have proven, which ends at a header. Also
    /// valid after a fault.
    pub fn proven_bytes(&self) -> u64 {
        self.walker.proven_bytes()
    }

    /// Whether a record of an unknown type was fed. After it, nothing is proven before END.
    pub fn is_opaque(&self) -> bool {
        self.walker.is_opaque()
    }

    /// BEGIN, once fed.
    pub fn begin(&self) -> Option<&BeginRecord> {
        self.walker.begin()
    }

    /// Returns the Fletcher-4 sum of the stream up to here; `None` in the middle of a 32-bit word
    /// or of BEGIN. Two sends with the same sum at a position have the same bytes before it, unless
    /// somebody forged them.
    pub fn fletcher4(&self) -> Option<[u64; 4]> {
        self.walker.sum().map(Into::into)
    }

    /// Sets the position at which the next chunk ends, so that [`StreamParser::resume_point`] is
    /// best there. Must be called before the bytes of that chunk are fed; only the latest call
    /// counts.
    pub fn note_boundary_at(&mut self, position: u64) {
        self.watch.resume.note_boundary_at(position);
    }

    /// Returns the last hashed block record that lies completely before the current position: at a
    /// noted boundary nearly always the very last one, else one at most 32 MiB and two records
    /// earlier. `None` before the first, and after a record of unknown type.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        if self.walker.is_opaque() {
            None
        } else {
            self.watch.resume.point()
        }
    }

    /// Returns the object of the last record that belongs to one. A resumed parser knows only the
    /// records after the resume point, and the object of that point.
    pub fn last_object(&self) -> Option<u64> {
        let of_point = || self.watch.resume.point().map(|point| point.object);
        self.watch.last_object.or_else(of_point)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`StreamError`] unless END was the last record fed and everything was intact.
    pub fn finish(self) -> Result<StreamSummary, StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let bytes = self.walker.position();
        let checked = !self.walker.is_opaque();
        let (begin, end_sum) = self.walker.finish()?;
        let mut records = self.watch.counts;
        if !checked {
            records.add(RecordType::End);
        }
        Ok(StreamSummary {
            bytes,
            to_name: begin.to_name,
            snapshot_guid: begin.snapshot_guid,
            base_guid: begin.base_guid,
            creation_time: begin.creation_time,
            dataset_type: begin.dataset_type,
            feature_flags: begin.feature_flags,
            flags: begin.flags,
            records,
            checked,
            end_fletcher4: end_sum.into(),
        })
    }
}

impl RecordCounts {
    /// Returns the number of records of this type. Unknown types are counted together.
    pub fn of(&self, record_type: RecordType) -> u64 {
        match record_type {
            RecordType::Unknown(_) => self.unknown,
            known => self.known[known.number() as usize],
        }
    }

    /// Returns the number of all records, including BEGIN and END.
    pub fn total(&self) -> u64 {
        self.known.iter().sum::<u64>() + self.unknown
    }

    fn add(&mut self, record_type: RecordType) {
        match record_type {
            RecordType::Unknown(_) => self.unknown += 1,
            known => self.known[known.number() as usize] += 1,
        }
    }
}

/// The parser's own work for each record: checks BEGIN, counts, keeps resume points.
#[derive(Debug, Clone)]
struct Watch {
    expect: StreamExpectation,
    counts: RecordCounts,
    resume: ResumeTracker,
    last_object: Option<u64>,
    ivset: Option<IvSetCheck>,
}

impl Watch {
    fn new(expect: StreamExpectation, resume: ResumeTracker) -> Self {
        Self {
            expect,
            counts: RecordCounts::default(),
            resume,
            last_object: None,
            ivset: None,
        }
    }
}

impl RecordSink for Watch {
    type Error = StreamError;

    fn begin(&mut self, begin: &BeginRecord) -> Result<(), StreamFault> {
        self.counts.add(RecordType::Begin);
        let StreamExpectation {
            snapshot_guid,
            base_guid,
        } = self.expect;
        if begin.snapshot_guid != snapshot_guid {
            return Err(StreamFault::WrongSnapshot {
                expected: snapshot_guid,
                found: begin.snapshot_guid,
            });
        }
        if begin.base_guid != base_guid {
            return Err(StreamFault::WrongBase {
                expected: base_guid,
                found: begin.base_guid,
            });
        }
        if begin.has(feature::RESUMING) {
            return Err(StreamFault::Resuming);
        }
        match &mut self.ivset {
            Some(ivset) => ivset.begin(begin),
            None => Ok(()),
        }
    }

    fn begin_payload(&mut self, bytes: &[u8]) {
        if let Some(ivset) = &mut self.ivset {
            ivset.payload(bytes);
        }
    }

    fn begin_end(&mut self) -> Result<(), StreamFault> {
        match &mut self.ivset {
            Some(ivset) => ivset.payload_end(),
            None => Ok(()),
        }
    }

    fn header(&mut self, header: &RecordHeader, payload: Payload) -> Result<(), StreamError> {
        self.counts.add(header.record_type());
        self.resume.header(header, payload);
        self.last_object = header.object().or(self.last_object);
        Ok(())
    }

    fn payload(&mut self, bytes: &[u8]) {
        self.resume.payload(bytes);
    }

    fn record_end(&mut self, sum: Fletcher4) -> Result<(), StreamError> {
        self.resume.record_end(sum);
        Ok(())
    }
}
