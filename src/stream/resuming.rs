//! [`Resumer`]: makes the stream that resumes an interrupted receive from the stored one: the
//! stream that `zfs send -t` would send.
//!
//! BEGIN has the flag RESUMING and the resume point, which must equal the receiver's. The records
//! that the kernel itself would repeat there follow ([`ResumeStart::prologue`]: for raw streams the
//! OBJECT_RANGE, then OBJECT and the records up to its first block), and then the stored records
//! from the point on, with checksums that count from this stream's own start. The stored stream is
//! verified with its own sums at the same time, up to END's sum of the whole.
//!
//! Repeating records that are already in the pool is harmless: each sets an object or a range to
//! its content in the snapshot. Omitting a record that is not in the pool would lose data, so the
//! point must be found exactly, or the receive is not resumed.

use super::fletcher::{Fletcher4, Fletcher4Feed};
use super::record::walk::{Payload, RecordSink, Walker};
use super::record::{BeginRecord, RecordHeader, RecordType, StreamError, StreamFault, feature};
use super::resync::{Boundary, GatheredRecord, StreamPlace};

/// The beginning of a resumed stream.
#[derive(Debug, Clone)]
pub struct ResumeStart {
    /// BEGIN of the stored stream.
    pub begin: BeginRecord,
    /// The payload of the resumed BEGIN: the stored payload with the resume point added.
    pub payload: Vec<u8>,
    /// Records from before the point that are sent again.
    pub prologue: Vec<GatheredRecord>,
    /// The boundary before the point from which the stored stream is read.
    pub from: Boundary,
    /// The first stored record that is sent; `None` means all records after the boundary.
    pub first: Option<StreamPlace>,
}

/// The reason why a stored stream cannot resume a receive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResumingError {
    /// The stored stream is damaged or cut.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The stored stream has no record at the receiver's resume point.
    #[error("the stream has no record at object {}, {:?}, where the receive stopped", .place.object, .place.within)]
    NoPlace {
        /// The resume point.
        place: StreamPlace,
    },
    /// The stream is of a kind that cannot resume a receive.
    #[error("{why}")]
    Unfit {
        /// The reason.
        why: &'static str,
    },
    /// A record whose payload rule is unknown cannot be rewritten.
    #[error("record type {number} is not known, and cannot be sent again")]
    UnknownRecord {
        /// The type.
        number: u32,
    },
}

/// Reads the stored stream from [`ResumeStart::from`] on, in slices of any length, and writes the
/// resumed stream.
#[derive(Debug)]
pub struct Resumer {
    walker: Walker,
    relay: Relay,
}

#[derive(Debug)]
struct Relay {
    sum: Fletcher4Feed,
    /// The first record to send, until it is found.
    first: Option<StreamPlace>,
}

impl Resumer {
    /// Writes BEGIN and the records that are sent again.
    pub fn new(start: &ResumeStart, put: &mut dyn FnMut(&[u8])) -> Self {
        let ResumeStart { begin, payload, .. } = start;
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let feature_flags = begin.feature_flags | feature::RESUMING;
        let header = BeginRecord {
            feature_flags,
            payload_bytes,
            ..begin.clone()
        }
        .header();
        let mut relay = Relay {
            sum: Fletcher4Feed::new(Fletcher4::default(), begin.order),
            first: start.first,
        };
        for bytes in [&header.bytes()[..], payload] {
            relay.sum.feed(bytes);
            put(bytes);
        }
        for (header, payload) in &start.prologue {
            put(header.sealed_into(&mut relay.sum).bytes());
            relay.sum.feed(payload);
            put(payload);
        }
        let walker = Walker::resume(
            begin.clone(),
            start.from.position,
            start.from.fletcher4.into(),
        );
        Self { walker, relay }
    }

    /// Reads the next bytes. After an error the resumer must not be fed again.
    ///
    /// # Errors
    /// [`ResumingError`] at the first fault.
    pub fn feed(&mut self, bytes: &[u8], put: &mut dyn FnMut(&[u8])) -> Result<(), ResumingError> {
        self.walker.feed(
            bytes,
            &mut Passing {
                relay: &mut self.relay,
                put,
            },
        )
    }

    /// Ends the stream. Returns the length of the stored stream.
    ///
    /// # Errors
    /// [`ResumingError`] unless END was the last record fed and proved the whole.
    pub fn finish(self) -> Result<u64, ResumingError> {
        let bytes = self.walker.position();
        self.walker.finish()?;
        Ok(bytes)
    }
}

/// The relay together with its output, for the duration of one call.
struct Passing<'a> {
    relay: &'a mut Relay,
    put: &'a mut dyn FnMut(&[u8]),
}

impl RecordSink for Passing<'_> {
    type Error = ResumingError;

    fn begin(&mut self, _: &BeginRecord) -> Result<(), StreamFault> {
        Ok(())
    }

    fn header(&mut self, header: &RecordHeader, _: Payload) -> Result<(), ResumingError> {
        if let RecordType::Unknown(number) = header.record_type() {
            return Err(ResumingError::UnknownRecord { number });
        }
        if let Some(first) = self.relay.first {
            match StreamPlace::of(header) {
                Some(place) if place == first => self.relay.first = None,
                Some(place) if place > first => {
                    return Err(ResumingError::NoPlace { place: first });
                }
                None if header.record_type() == RecordType::End => {
                    return Err(ResumingError::NoPlace { place: first });
                }
                _ => return Ok(()),
            }
        }
        (self.put)(header.sealed_into(&mut self.relay.sum).bytes());
        Ok(())
    }

    fn payload(&mut self, bytes: &[u8]) {
        if self.relay.first.is_none() {
            self.relay.sum.feed(bytes);
            (self.put)(bytes);
        }
    }

    fn record_end(&mut self, _: Fletcher4) -> Result<(), ResumingError> {
        Ok(())
    }
}
