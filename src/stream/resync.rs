//! Finds record boundaries in the middle of a stored stream: [`Scout`] finds the first record after
//! any byte, and [`Gather`] extracts the few records with which a resumed stream begins.
//!
//! Chunks may end anywhere, mostly within a record, and no stored object records where the next
//! record begins. The stream itself shows it: each header has the guid of the snapshot, which
//! nobody knew when the blocks in the stream were written, and the Fletcher-4 sum of the whole
//! stream up to itself. A position that looks like a header of this snapshot therefore yields the
//! sum there. The sum after that record either agrees with the next header, to 256 bits, or the
//! position was no header. From there on everything is verified as if the stream had been read from
//! its start, including END's sum of the whole.

use super::fletcher::{ByteOrder, Fletcher4Feed};
use super::record::walk::{Payload, RecordSink, Walker};
use super::record::{
    BeginRecord, HEADER_BYTES, RecordHeader, RecordType, StreamError, StreamFault,
};

/// Headers and payloads are whole words.
const ALIGNMENT: usize = 4;
/// The largest beginning of a resumed stream that is gathered: a dnode, a spill block, some holes.
/// Real ones are far smaller.
pub const GATHERED_BYTES_MAX: usize = 32 << 20;

/// A position between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boundary {
    /// The stream position.
    pub position: u64,
    /// The stream's sum up to the position.
    pub fletcher4: [u64; 4],
}

/// The position of a record in the order of every stream: by object, and within an object the
/// blocks by offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The object, or the first of a range.
    pub object: u64,
    /// The record's rank within the object.
    pub within: Within,
}

/// The order of records within an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Within {
    /// OBJECT_RANGE, before the first object of its range.
    Range,
    /// OBJECT.
    Object,
    /// A block at that offset.
    Block(u64),
}

impl Place {
    /// Returns the place of an OBJECT_RANGE, OBJECT or block. The other records have no place in
    /// this order.
    pub fn of(header: &RecordHeader) -> Option<Self> {
        match (header.record_type(), header.block()) {
            (_, Some((object, offset))) => Some(Self {
                object,
                within: Within::Block(offset),
            }),
            (RecordType::Object, _) => Some(Self {
                object: header.u64(8),
                within: Within::Object,
            }),
            (RecordType::ObjectRange, _) => Some(Self {
                object: header.u64(8),
                within: Within::Range,
            }),
            _ => None,
        }
    }
}

/// Searches for the first record boundary at or after a position in the stream, and the place of
/// the next record. Takes the bytes from that position on, in slices of any length.
#[derive(Debug)]
pub struct Scout {
    begin: BeginRecord,
    position: u64,
    held: Vec<u8>,
    found: Option<(Walker, Boundary)>,
    /// Whether the boundary was known beforehand.
    is_given: bool,
    seen: Seen,
}

/// The records that a scout has seen.
#[derive(Debug, Default)]
struct Seen {
    headers: u32,
    place: Option<Place>,
    ended: bool,
}

impl Scout {
    /// Makes a scout at any word of the stream that began with `begin`, after that record and its
    /// payload.
    pub fn new(begin: BeginRecord, position: u64) -> Self {
        Self {
            begin,
            position,
            held: Vec::new(),
            found: None,
            is_given: false,
            seen: Seen::default(),
        }
    }

    /// Makes a scout at a known boundary.
    pub fn at(begin: BeginRecord, boundary: Boundary) -> Self {
        let walker = Walker::resume(begin.clone(), boundary.position, boundary.fletcher4.into());
        let found = Some((walker, boundary));
        Self {
            begin,
            position: boundary.position,
            held: Vec::new(),
            found,
            is_given: true,
            seen: Seen::default(),
        }
    }

    /// Reads the next bytes. Returns true once the boundary is proved and the first place known, or
    /// the stream has ended.
    ///
    /// # Errors
    /// [`StreamError`] when the stream is damaged at a known or proved boundary.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, StreamError> {
        if self.is_proved() {
            self.walk(bytes)?;
            return Ok(self.is_enough());
        }
        self.held.extend_from_slice(bytes);
        let mut fed = bytes.len();
        loop {
            if self.found.is_none() {
                let Some(at) = self.find_header() else {
                    return Ok(false);
                };
                self.held.drain(..at);
                self.position += at as u64;
                fed = self.held.len();
            }
            let fresh = self.held.split_off(self.held.len() - fed);
            let walked = self.walk(&fresh);
            self.held.extend_from_slice(&fresh);
            match walked {
                // Fields of a record may look like a header. The search then continues after them.
                Err(_) if !self.is_proved() && !self.is_given => {
                    (self.found, self.seen) = (None, Seen::default());
                    self.held.drain(..ALIGNMENT);
                    self.position += ALIGNMENT as u64;
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    if self.is_proved() {
                        self.held = Vec::new();
                    }
                    return Ok(self.is_enough());
                }
            }
        }
    }

    /// Ends the stream. A boundary that is not proved by then was none, and the search continues
    /// after it.
    pub fn end(&mut self) {
        while self.found.is_some() && !self.is_given && !self.is_proved() {
            (self.found, self.seen) = (None, Seen::default());
            self.held.drain(..ALIGNMENT);
            self.position += ALIGNMENT as u64;
            if self.feed(&[]).is_err() {
                return;
            }
        }
    }

    /// Whether the boundary is proved. A single header proves nothing, because its sum was taken
    /// from itself. The next header proves it, and so does END, which has two sums.
    fn is_proved(&self) -> bool {
        self.seen.ended || self.seen.headers > 1
    }

    fn is_enough(&self) -> bool {
        self.seen.ended || (self.is_proved() && self.seen.place.is_some())
    }

    /// Returns the boundary once it is proved, and the first place after it; no place if the stream
    /// ended before any.
    pub fn found(&self) -> Option<(Boundary, Option<Place>)> {
        let (_, boundary) = self
            .found
            .as_ref()
            .filter(|_| self.is_given || self.is_proved())?;
        Some((*boundary, self.seen.place))
    }

    fn walk(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        match &mut self.found {
            Some((walker, _)) => walker.feed(bytes, &mut self.seen),
            None => Ok(()),
        }
    }

    /// Returns the offset of the header in `held`; bytes that cannot be a header are dropped.
    fn find_header(&mut self) -> Option<usize> {
        let (guid, order) = (self.begin.snapshot_guid.0, self.begin.order);
        let is_header = |bytes: &[u8; HEADER_BYTES]| {
            let header = RecordHeader::new(*bytes, order);
            header.snapshot_guid() == Some(guid) && header.payload_bytes().is_ok()
        };
        let mut at = 0;
        while let Some(bytes) = self.held[at..].first_chunk::<HEADER_BYTES>() {
            // The type, in either byte order, rules out nearly every position.
            if (1..=10).contains(&(bytes[0] | bytes[3]))
                && bytes[1] | bytes[2] == 0
                && is_header(bytes)
            {
                let fletcher4 = RecordHeader::new(*bytes, order).sum_before().into();
                let boundary = Boundary {
                    position: self.position + at as u64,
                    fletcher4,
                };
                let walker = Walker::resume(
                    self.begin.clone(),
                    boundary.position,
                    boundary.fletcher4.into(),
                );
                self.found = Some((walker, boundary));
                return Some(at);
            }
            at += ALIGNMENT;
        }
        self.held.drain(..at);
        self.position += at as u64;
        None
    }
}

impl RecordSink for Seen {
    type Error = StreamError;

    fn begin(&mut self, _: &BeginRecord) -> Result<(), StreamFault> {
        Ok(())
    }

    fn header(&mut self, header: &RecordHeader, _: Payload) -> Result<(), StreamError> {
        self.headers += 1;
        self.place = self.place.or_else(|| Place::of(header));
        self.ended = header.record_type() == RecordType::End;
        Ok(())
    }

    fn payload(&mut self, _: &[u8]) {}

    fn record_end(&mut self, _: super::fletcher::Fletcher4) -> Result<(), StreamError> {
        Ok(())
    }
}

/// Returns the boundary after BEGIN and its payload, which are passed completely.
pub fn boundary_after_begin(order: ByteOrder, begin: &[u8]) -> Boundary {
    let mut sum = Fletcher4Feed::new(Default::default(), order);
    sum.feed(begin);
    let fletcher4 = sum.sum().unwrap_or_default().into();
    Boundary {
        position: begin.len() as u64,
        fletcher4,
    }
}

/// A record with its payload.
pub type Record = (RecordHeader, Vec<u8>);

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
    records: Vec<Record>,
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
    pub fn records(mut self) -> Vec<Record> {
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
        let (object, count) = (header.u64(8), header.u64(16));
        if self.wanted == Wanted::Range {
            let covers = |first: u64| first <= self.object && self.object - first < count;
            let takes = kind == RecordType::ObjectRange && covers(object);
            let is_past = Place::of(header).is_some_and(|place| place.object > self.object);
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
                let place = Place {
                    object: self.object,
                    within: Within::Object,
                };
                self.done = !self.records.is_empty()
                    || Place::of(header).is_some_and(|other| other > place);
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

    fn record_end(&mut self, _: super::fletcher::Fletcher4) -> Result<(), StreamError> {
        // The range is complete only with its payload; before that the last record would be cut.
        self.done |= self.taking && self.wanted == Wanted::Range;
        self.taking = false;
        Ok(())
    }
}
