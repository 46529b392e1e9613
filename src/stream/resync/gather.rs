//! [`Gather`] extracts the few records with which a resumed stream begins.

use super::{Boundary, StreamPlace, Within};
use crate::stream::fletcher::Fletcher4;
use crate::stream::record::walk::{Payload, RecordSink, Walker};
use crate::stream::record::{
    BeginRecord, HEADER_BYTES, RecordHeader, RecordType, StreamError, StreamFault,
};

/// The largest beginning of a resumed stream that is gathered: a dnode, a spill block, some holes.
/// Real ones are far smaller.
pub const GATHERED_BYTES_MAX: usize = 32 << 20;

/// A record with its payload.
pub type GatheredRecord = (RecordHeader, Vec<u8>);

/// The records to gather of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The OBJECT_RANGE that covers the object.
    Range,
    /// OBJECT and the records between it and the object's first block.
    Object,
}

/// Extracts records of one object from a stream that is fed from a boundary before them.
#[derive(Debug)]
pub struct Gather {
    walker: Walker,
    pick: Pick,
}

#[derive(Debug)]
struct Pick {
    object: u64,
    wanted: Wanted,
    records: Vec<GatheredRecord>,
    bytes: usize,
    /// Whether the payload that follows belongs to the last record.
    taking: bool,
    done: bool,
}

impl Gather {
    /// Makes a gatherer at a boundary.
    pub fn new(begin: BeginRecord, from: Boundary, object: u64, wanted: Wanted) -> Self {
        let walker = Walker::resume(begin, from.position, from.fletcher4.into());
        let pick = Pick {
            object,
            wanted,
            records: Vec::new(),
            bytes: 0,
            taking: false,
            done: false,
        };
        Self { walker, pick }
    }

    /// Reads the next bytes. Returns true once no more records can come.
    ///
    /// # Errors
    /// [`StreamError`] when the stream is damaged.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, StreamError> {
        self.walker.feed(bytes, &mut self.pick)?;
        Ok(self.pick.done || self.pick.bytes > GATHERED_BYTES_MAX)
    }

    /// Returns the records found; empty if the stream has none, or too many to be plausible. A
    /// record that the end of the stream cuts off does not count.
    pub fn records(mut self) -> Vec<GatheredRecord> {
        if self.pick.taking {
            self.pick.records.pop();
        }
        if self.pick.bytes > GATHERED_BYTES_MAX {
            Vec::new()
        } else {
            self.pick.records
        }
    }
}

impl Pick {
    fn takes(&mut self, header: &RecordHeader) -> bool {
        let kind = header.record_type();
        let object = header.u64(8);
        let count = header.u64(16);
        if self.wanted == Wanted::Range {
            let covers = |first: u64| first <= self.object && self.object - first < count;
            let takes = kind == RecordType::ObjectRange && covers(object);
            let is_past = StreamPlace::of(header).is_some_and(|place| place.object > self.object);
            self.done = takes || is_past || kind == RecordType::End;
            return takes;
        }
        let is_own = object == self.object;
        match kind {
            RecordType::Object => {
                self.done = object > self.object || (is_own && !self.records.is_empty());
                is_own && !self.done
            }
            RecordType::Free | RecordType::Spill if is_own => !self.records.is_empty(),
            // After the first gathered record, a block or another object's record ends the
            // gathering. Before it, only a record past the object does.
            RecordType::End => {
                self.done = true;
                false
            }
            _ => {
                let place = StreamPlace {
                    object: self.object,
                    within: Within::Object,
                };
                self.done = !self.records.is_empty()
                    || StreamPlace::of(header).is_some_and(|other| other > place);
                false
            }
        }
    }
}

impl RecordSink for Pick {
    type Error = StreamError;

    fn begin(&mut self, _: &BeginRecord) -> Result<(), StreamFault> {
        Ok(())
    }

    fn header(&mut self, header: &RecordHeader, _: Payload) -> Result<(), StreamError> {
        self.taking = !self.done && self.takes(header);
        if self.taking {
            self.bytes += HEADER_BYTES;
            self.records.push((*header, Vec::new()));
        }
        Ok(())
    }

    fn payload(&mut self, bytes: &[u8]) {
        if let Some((_, payload)) = self.records.last_mut().filter(|_| self.taking) {
            self.bytes += bytes.len();
            payload.extend_from_slice(bytes);
        }
    }

    fn record_end(&mut self, _: Fletcher4) -> Result<(), StreamError> {
        // The range is complete only with its payload; before that the last record would be cut.
        self.done |= self.taking && self.wanted == Wanted::Range;
        self.taking = false;
        Ok(())
    }
}
