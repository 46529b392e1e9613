//! [`Resumer`]: makes the stream that takes up a cut receive out of the stored one: what `zfs send
//! -t` would send.
//!
//! BEGIN says RESUMING and where, in words that must be those of the receiver; then come the
//! records that the kernel itself would repeat there ([`ResumeStart::prologue`]: for raw streams
//! the OBJECT_RANGE, then OBJECT and what follows it up to its first block), then the stored
//! records from the point on, with checksums that count from this stream's own start. The stored
//! stream is checked meanwhile with its own sums, up to END's of the whole.
//!
//! Repeating records that are in the pool already is harmless: each sets an object or a range to
//! what it is in the snapshot. Leaving one out that is not would not be, so the point must be found
//! exactly, or nothing goes on.

use super::fletcher::{Fletcher4, Fletcher4Feed};
use super::record::walk::{Payload, RecordSink, Walker};
use super::record::{BeginRecord, RecordHeader, RecordType, StreamError, StreamFault, feature};
use super::resync::{Boundary, Place, Record};

/// All that a resumed stream is begun with.
#[derive(Debug, Clone)]
pub struct ResumeStart {
    /// BEGIN of the stored stream.
    pub begin: BeginRecord,
    /// The payload of the resumed BEGIN: that of the stored one, and the point.
    pub payload: Vec<u8>,
    /// Records from before the point that are sent again.
    pub prologue: Vec<Record>,
    /// From where the stored stream is read: a boundary before the point.
    pub from: Boundary,
    /// The first stored record that is sent; `None`: all from the boundary on.
    pub first: Option<Place>,
}

/// Why a stored stream cannot be taken up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResumingError {
    /// It is damaged or cut.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// It has no record where the receiver stopped.
    #[error("the stream has no record at object {}, {:?}, where the receive stopped", .place.object, .place.within)]
    NoPlace {
        /// Where it stopped.
        place: Place,
    },
    /// It is not what a receive can be taken up with.
    #[error("{why}")]
    Unfit {
        /// Why.
        why: &'static str,
    },
    /// A record whose payload rule is unknown cannot be rewritten.
    #[error("record type {number} is not known, and cannot be sent again")]
    UnknownRecord {
        /// The type.
        number: u32,
    },
}

/// Takes in the stored stream from [`ResumeStart::from`] on, cut anywhere, and puts out the resumed
/// one.
#[derive(Debug)]
pub struct Resumer {
    walker: Walker,
    relay: Relay,
}

#[derive(Debug)]
struct Relay {
    sum: Fletcher4Feed,
    /// Awaited still.
    first: Option<Place>,
}

impl Resumer {
    /// Puts out BEGIN and the records that are sent again.
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

    /// Takes in the next bytes. After an error it must not be fed again.
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

    /// Ends it: the length of the stored stream.
    ///
    /// # Errors
    /// [`ResumingError`] unless END was the last thing fed and proved the whole.
    pub fn finish(self) -> Result<u64, ResumingError> {
        let bytes = self.walker.position();
        self.walker.finish()?;
        Ok(bytes)
    }
}

/// The relay with the way out, for the length of one call.
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
            match Place::of(header) {
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
