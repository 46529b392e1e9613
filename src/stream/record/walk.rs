//! [`Walker`]: steps through the records of a stream in slices of any length, checks each record,
//! and reports it to a [`RecordSink`]. Shared by the parser, which records resume points, and the
//! splicer, which rewrites checksums.
//!
//! Every byte of the stream is summed, headers and payloads alike, so the sum at a position depends
//! only on the bytes before it. END therefore proves the whole stream even if a record of an
//! unknown type hides the boundaries: see [`Phase::Opaque`].

use super::{BeginRecord, HEADER_BYTES, RecordHeader, RecordType, StreamError, StreamFault};
use crate::model::Guid;
use crate::stream::fletcher::{ByteOrder, Fletcher4, Fletcher4Feed};

/// The receiver of the records: header, payload in slices, end.
pub(in crate::stream) trait RecordSink {
    /// The receiver's own errors, in addition to those of the stream.
    type Error: From<StreamError>;

    /// Receives BEGIN, before anything else. A fault returned here is a fault of the stream.
    fn begin(&mut self, begin: &BeginRecord) -> Result<(), StreamFault>;
    /// Receives bytes of BEGIN's payload, which nothing has proved yet.
    fn begin_payload(&mut self, _: &[u8]) {}
    /// Marks the end of BEGIN's payload, if it has one. A fault returned here is a fault of the
    /// stream.
    fn begin_end(&mut self) -> Result<(), StreamFault> {
        Ok(())
    }
    /// Receives a checked header (not BEGIN's), and the stream position and length of the payload
    /// that follows.
    fn header(&mut self, header: &RecordHeader, payload: Payload) -> Result<(), Self::Error>;
    /// Receives bytes of the payload. Not called for BEGIN, nor after a record of an unknown type.
    fn payload(&mut self, bytes: &[u8]);
    /// Marks the end of the record, with the stream's sum up to here.
    fn record_end(&mut self, sum: Fletcher4) -> Result<(), Self::Error>;
}

/// The position and length of a payload.
#[derive(Debug, Clone, Copy)]
pub(in crate::stream) struct Payload {
    /// The stream position of its first byte.
    pub(in crate::stream) position: u64,
    /// The length in bytes.
    pub(in crate::stream) bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Reading a header.
    Header,
    /// Reading a payload; `of_begin` if it is BEGIN's.
    Payload { left: u64, of_begin: bool },
    /// After a record of unknown type, whose payload rule is unknown: everything is summed but the
    /// last 312 bytes, which must be END.
    Opaque,
    /// After END.
    Ended,
}

/// The position in a stream and the state of the parse.
#[derive(Debug, Clone)]
pub(in crate::stream) struct Walker {
    phase: Phase,
    /// The incomplete header; in [`Phase::Opaque`] the last bytes so far.
    held: [u8; HEADER_BYTES],
    held_bytes: usize,
    sum: Fletcher4Feed,
    position: u64,
    /// The end of the last header whose checksum was right: the bytes before it are proven.
    proven_bytes: u64,
    /// The current record: number, start, type if known.
    record: u64,
    record_start: u64,
    record_type: Option<RecordType>,
    begin: Option<BeginRecord>,
    end_sum: Option<Fletcher4>,
}

impl Walker {
    /// Makes a walker at the start of a stream.
    pub(in crate::stream) fn new() -> Self {
        Self {
            phase: Phase::Header,
            held: [0; HEADER_BYTES],
            held_bytes: 0,
            sum: Fletcher4Feed::new(Fletcher4::default(), ByteOrder::Little),
            position: 0,
            proven_bytes: 0,
            record: 0,
            record_start: 0,
            record_type: None,
            begin: None,
            end_sum: None,
        }
    }

    /// Makes a walker between two records of a stream that began with `begin`.
    pub(in crate::stream) fn resume(begin: BeginRecord, position: u64, sum: Fletcher4) -> Self {
        let sum = Fletcher4Feed::new(sum, begin.order);
        Self {
            sum,
            position,
            proven_bytes: position,
            record_start: position,
            begin: Some(begin),
            ..Self::new()
        }
    }

    /// Parses the next bytes of the stream. After an error the walker must not be fed again.
    pub(in crate::stream) fn feed<S: RecordSink>(
        &mut self,
        mut bytes: &[u8],
        sink: &mut S,
    ) -> Result<(), S::Error> {
        while !bytes.is_empty() {
            let taken = match self.phase {
                Phase::Header => self.feed_header(bytes, sink)?,
                Phase::Payload { left, of_begin } => {
                    self.feed_payload(bytes, left, of_begin, sink)?
                }
                Phase::Opaque => self.feed_opaque(bytes),
                Phase::Ended => {
                    (self.record_start, self.record_type) = (self.position, None);
                    return Err(self.error(StreamFault::DataAfterEnd).into());
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn feed_header<S: RecordSink>(
        &mut self,
        bytes: &[u8],
        sink: &mut S,
    ) -> Result<usize, S::Error> {
        let taken = bytes.len().min(HEADER_BYTES - self.held_bytes);
        self.held[self.held_bytes..][..taken].copy_from_slice(&bytes[..taken]);
        self.held_bytes += taken;
        self.position += taken as u64;
        if self.held_bytes < HEADER_BYTES {
            return Ok(taken);
        }
        self.held_bytes = 0;
        if self.begin.is_none() {
            self.take_begin(sink).map_err(|fault| self.error(fault))?;
            return Ok(taken);
        }
        let header = RecordHeader::new(self.held, self.sum.order());
        self.record_type = Some(header.record_type());
        let payload_bytes = self
            .check_header(&header)
            .map_err(|fault| self.error(fault))?;
        sink.header(
            &header,
            Payload {
                position: self.position,
                bytes: payload_bytes,
            },
        )?;
        match header.record_type() {
            RecordType::Unknown(_) => self.phase = Phase::Opaque,
            _ if payload_bytes == 0 => self.end_record(sink, false)?,
            _ => {
                self.phase = Phase::Payload {
                    left: payload_bytes,
                    of_begin: false,
                }
            }
        }
        if header.record_type() == RecordType::End {
            self.phase = Phase::Ended;
        }
        Ok(taken)
    }

    fn take_begin<S: RecordSink>(&mut self, sink: &mut S) -> Result<(), StreamFault> {
        let begin = BeginRecord::parse(&self.held)?;
        self.record_type = Some(RecordType::Begin);
        sink.begin(&begin)?;
        self.sum = Fletcher4Feed::new(Fletcher4::default(), begin.order);
        self.sum.feed(&self.held);
        match u64::from(begin.payload_bytes) {
            0 => self.next_record(),
            left => {
                self.phase = Phase::Payload {
                    left,
                    of_begin: true,
                }
            }
        }
        self.begin = Some(begin);
        Ok(())
    }

    /// Checks a header other than BEGIN, adds it to the sum, and returns the length of its payload.
    fn check_header(&mut self, header: &RecordHeader) -> Result<u64, StreamFault> {
        if header.record_type() == RecordType::Begin {
            return Err(StreamFault::SecondBegin);
        }
        let mut sum = self.sum_at_word();
        let before = sum;
        header.verify(&mut sum)?;
        self.proven_bytes = self.position;
        self.sum = Fletcher4Feed::new(sum, self.sum.order());
        if let (Some(found), Some(begin)) = (header.snapshot_guid().map(Guid), &self.begin)
            && found != begin.snapshot_guid
        {
            return Err(StreamFault::WrongSnapshot {
                expected: begin.snapshot_guid,
                found,
            });
        }
        if header.record_type() == RecordType::End {
            self.end_sum = Some(before);
        }
        header.payload_bytes()
    }

    fn feed_payload<S: RecordSink>(
        &mut self,
        bytes: &[u8],
        left: u64,
        of_begin: bool,
        sink: &mut S,
    ) -> Result<usize, S::Error> {
        let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let slice = &bytes[..taken];
        self.sum.feed(slice);
        self.position += taken as u64;
        match of_begin {
            true => sink.begin_payload(slice),
            false => sink.payload(slice),
        }
        match left - taken as u64 {
            0 => self.end_record(sink, of_begin)?,
            left => self.phase = Phase::Payload { left, of_begin },
        }
        Ok(taken)
    }

    fn end_record<S: RecordSink>(&mut self, sink: &mut S, of_begin: bool) -> Result<(), S::Error> {
        if of_begin {
            let judged = sink.begin_end().map_err(|fault| self.error(fault));
            self.next_record();
            Ok(judged?)
        } else {
            self.next_record();
            sink.record_end(self.sum_at_word())
        }
    }

    fn next_record(&mut self) {
        self.phase = Phase::Header;
        self.record += 1;
        self.record_start = self.position;
        self.record_type = None;
    }

    /// Sums bytes, except the last 312, which are held back.
    fn feed_opaque(&mut self, bytes: &[u8]) -> usize {
        self.position += bytes.len() as u64;
        let leaving = (self.held_bytes + bytes.len()).saturating_sub(HEADER_BYTES);
        let of_held = leaving.min(self.held_bytes);
        let of_bytes = leaving.saturating_sub(self.held_bytes);
        self.sum.feed(&self.held[..of_held]);
        self.sum.feed(&bytes[..of_bytes]);
        self.held.copy_within(of_held..self.held_bytes, 0);
        self.held_bytes -= of_held;
        let staying = &bytes[of_bytes..];
        self.held[self.held_bytes..][..staying.len()].copy_from_slice(staying);
        self.held_bytes += staying.len();
        bytes.len()
    }

    /// Ends the stream. Returns BEGIN, and the sum that END proved.
    pub(in crate::stream) fn finish(mut self) -> Result<(BeginRecord, Fletcher4), StreamError> {
        if self.phase == Phase::Opaque {
            self.end_opaque()?;
        }
        match (self.phase, &self.begin, self.end_sum) {
            (Phase::Ended, Some(begin), Some(sum)) => Ok((begin.clone(), sum)),
            _ => Err(self.error(StreamFault::Truncated)),
        }
    }

    fn end_opaque(&mut self) -> Result<(), StreamError> {
        let header = RecordHeader::new(self.held, self.sum.order());
        let aligned = self.sum.sum().is_some();
        if !aligned || self.held_bytes < HEADER_BYTES || header.record_type() != RecordType::End {
            return Err(self.error(StreamFault::Truncated));
        }
        self.record += 1;
        self.record_start = self.position - HEADER_BYTES as u64;
        self.record_type = Some(RecordType::End);
        self.check_header(&header)
            .map_err(|fault| self.error(fault))?;
        self.phase = Phase::Ended;
        Ok(())
    }

    /// Returns the sum at a record boundary. Boundaries are whole words from the start, because
    /// payloads are checked to be.
    fn sum_at_word(&self) -> Fletcher4 {
        self.sum
            .sum()
            .expect("headers are 78 words and payloads are checked to be whole words")
    }

    /// Returns the sum of all bytes so far; `None` in the middle of a word, and before BEGIN is
    /// complete.
    pub(in crate::stream) fn sum(&self) -> Option<Fletcher4> {
        self.begin.as_ref()?;
        let mut sum = self.sum.clone();
        sum.feed(&self.held[..self.held_bytes]);
        sum.sum()
    }

    /// Returns the position: bytes so far, including those before a resume point.
    pub(in crate::stream) fn position(&self) -> u64 {
        self.position
    }

    /// Returns the length of the beginning that checksums have proven: a header's checksum covers
    /// every byte of the stream before it.
    pub(in crate::stream) fn proven_bytes(&self) -> u64 {
        self.proven_bytes
    }

    /// Returns BEGIN, once it is complete.
    pub(in crate::stream) fn begin(&self) -> Option<&BeginRecord> {
        self.begin.as_ref()
    }

    /// Whether a record of an unknown type hides the following boundaries.
    pub(in crate::stream) fn is_opaque(&self) -> bool {
        self.phase == Phase::Opaque
    }

    /// Makes the error for a fault of the current record.
    fn error(&self, fault: StreamFault) -> StreamError {
        StreamError {
            record: self.record,
            record_type: self.record_type,
            position: self.record_start,
            fault,
        }
    }
}
