//! [`Scout`] finds the first record boundary after any byte of a stored stream.
//!
//! Chunks may end anywhere, mostly within a record, and no stored object records where the next
//! record begins. The stream itself shows it: each header has the guid of the snapshot, which
//! nobody knew when the blocks in the stream were written, and the Fletcher-4 sum of the whole
//! stream up to itself. A position that looks like a header of this snapshot therefore yields the
//! sum there. The sum after that record either agrees with the next header, to 256 bits, or the
//! position was no header. From there on everything is verified as if the stream had been read from
//! its start, including END's sum of the whole.

use super::{Boundary, StreamPlace};
use crate::stream::fletcher::Fletcher4;
use crate::stream::record::walk::{Payload, RecordSink, Walker};
use crate::stream::record::{
    BeginRecord, HEADER_BYTES, RecordHeader, RecordType, StreamError, StreamFault,
};

/// Headers and payloads are whole words.
const ALIGNMENT: usize = 4;
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
    place: Option<StreamPlace>,
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
    pub fn found(&self) -> Option<(Boundary, Option<StreamPlace>)> {
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
        let guid = self.begin.snapshot_guid.0;
        let order = self.begin.order;
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
        self.place = self.place.or_else(|| StreamPlace::of(header));
        self.ended = header.record_type() == RecordType::End;
        Ok(())
    }

    fn payload(&mut self, _: &[u8]) {}

    fn record_end(&mut self, _: Fletcher4) -> Result<(), StreamError> {
        Ok(())
    }
}
