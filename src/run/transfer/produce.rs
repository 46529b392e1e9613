//! The producer of a transfer: reads the stream, joins it to what was sent before, cuts it into
//! chunks, and fills the parts of the missing chunks. Runs on a blocking thread.

use super::pool::Turn;
use super::produce_error::ProduceError;
use super::sealers::{EndOfChunk, SealLine, with_sealers};
use super::{Ending, Event, StreamSource, TransferPlan};
use crate::manifest::CHUNKS_MAX;
use crate::model::{ChunkIndex, ReadFault, RecordPlace};
use crate::store::key::BackupObject;
use crate::stream::record::{
    BeginRecord, ResumePoint, StreamError, StreamFault, StreamParser, StreamSummary,
};
use crate::stream::seal::{ChunkCompression, ChunkFiller};
use crate::stream::splice::Splicer;
use crate::zfs::{SendResume, ZfsError};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use tokio::sync::mpsc;

/// The bytes of one read from the pipe, which is also this long if the system allows.
const READ_BYTES: usize = 1 << 20;

pub(super) struct Producer {
    pub(super) source: Arc<dyn StreamSource>,
    pub(super) plan: Arc<TransferPlan>,
    pub(super) turn: Arc<Turn>,
    /// The confirmed chunks, with the running checksum at the end of each.
    pub(super) skip: BTreeMap<u32, Option<[u64; 4]>>,
    /// The resume point, with the first record of the stream; `None` to read from the beginning.
    pub(super) resume: Option<(BeginRecord, ResumePoint)>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Producer {
    pub(super) fn run(self) -> Result<StreamSummary, ProduceError> {
        let jobs = self.turn.sealers().map_err(ProduceError::Thread)?;
        with_sealers(jobs, &self.events, |line| match &self.resume {
            None => self.run_from_start(line),
            Some((begin, point)) => self.run_from(line, begin, *point),
        })
    }

    /// Reads the stream from its beginning. End of file is not success: first the producer reports
    /// success, then the END record is checked, and only then is the last chunk completed.
    fn run_from_start(&self, line: &SealLine) -> Result<StreamSummary, ProduceError> {
        let mut stream = self.source.open(None).map_err(ProduceError::Zfs)?;
        let mut cutter = Cutter::new(
            self,
            line,
            StreamParser::new(self.plan.expectation).requiring_ivset(),
        );
        let mut buffer = vec![0; READ_BYTES];
        while cutter.read(stream.reader(), &mut buffer)? {}
        stream.finish().map_err(|error| cutter.send_error(error))?;
        cutter.finish()
    }

    fn run_from(
        &self,
        line: &SealLine,
        begin: &BeginRecord,
        point: ResumePoint,
    ) -> Result<StreamSummary, ProduceError> {
        let resume = SendResume {
            object: point.object,
            offset: point.offset,
        };
        let mut stream = self.source.open(Some(resume)).map_err(ProduceError::Zfs)?;
        let parser = StreamParser::resume(self.plan.expectation, begin.clone(), point);
        let parser = parser.map_err(|fault| ProduceError::Stream(begin_error(fault)))?;
        let mut cutter = Cutter::new(self, line, parser);
        let mut splicer = Splicer::new(begin.clone(), point);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let bytes = read(stream.reader(), |reader| reader.read(&mut buffer))?;
            if bytes == 0 {
                break;
            }
            let mut written = Ok(());
            let fed = splicer.feed(&buffer[..bytes], &mut |bytes| {
                if written.is_ok() {
                    written = cutter.write(bytes);
                }
            });
            // An error of the written bytes comes first: they were before those that could not be
            // joined.
            written.and(fed.map_err(ProduceError::Splice))?;
        }
        stream.finish().map_err(|error| cutter.send_error(error))?;
        splicer.finish().map_err(ProduceError::Splice)?;
        cutter.finish()
    }
}

/// Reads once, and retries when a signal interrupts the read.
fn read(
    stream: &mut (dyn Read + Send),
    mut read: impl FnMut(&mut (dyn Read + Send)) -> std::io::Result<usize>,
) -> Result<usize, ProduceError> {
    loop {
        match read(stream) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result.map_err(ProduceError::Read),
        }
    }
}

/// Returns the error for a saved first record that does not belong to the expected stream.
fn begin_error(fault: StreamFault) -> StreamError {
    StreamError {
        record: 0,
        record_type: None,
        position: 0,
        fault,
    }
}

/// Cuts the stream into chunks of exactly `split_bytes` and fills the parts of the chunks that are
/// not confirmed yet.
struct Cutter<'a> {
    producer: &'a Producer,
    line: &'a SealLine,
    parser: StreamParser,
    index: u32,
    chunk_bytes: u64,
    filling: Option<(ChunkFiller, ChunkIndex, BackupObject)>,
}

impl<'a> Cutter<'a> {
    /// Begins at the parser's position, which may be inside a chunk that is already confirmed.
    fn new(producer: &'a Producer, line: &'a SealLine, parser: StreamParser) -> Self {
        let split_bytes = producer.plan.split_bytes;
        let position = parser.position();
        let index = u32::try_from(position / split_bytes).unwrap_or(u32::MAX);
        let mut cutter = Self {
            producer,
            line,
            parser,
            index,
            chunk_bytes: position % split_bytes,
            filling: None,
        };
        cutter.note_boundary();
        cutter
    }

    /// Tells the parser where the chunk will end, so that it keeps the best resume point for that
    /// position.
    fn note_boundary(&mut self) {
        let split_bytes = self.producer.plan.split_bytes;
        self.parser
            .note_boundary_at((u64::from(self.index) + 1).saturating_mul(split_bytes));
    }

    /// Reads the next bytes, directly into a part if one is being filled. Returns whether there
    /// were any.
    fn read(
        &mut self,
        stream: &mut (dyn Read + Send),
        buffer: &mut [u8],
    ) -> Result<bool, ProduceError> {
        let room = usize::try_from(self.producer.plan.split_bytes - self.chunk_bytes)
            .unwrap_or(usize::MAX);
        let in_place =
            |(filler, _, _): &(ChunkFiller, ChunkIndex, BackupObject)| filler.reads_in_place();
        // Read into the buffer: whether there is another chunk is known only when its first byte
        // arrives.
        if room == 0 || !self.filling.as_ref().is_some_and(in_place) {
            let bytes = read(stream, |stream| stream.read(buffer))?;
            self.write(&buffer[..bytes])?;
            return Ok(bytes > 0);
        }
        let Some((filler, _, _)) = &mut self.filling else {
            return Ok(false);
        };
        let sink = &mut |part| self.line.part(part);
        let mut places = filler
            .places(room.min(READ_BYTES), sink)
            .map_err(ProduceError::Seal)?;
        let bytes = read(stream, |stream| stream.read_vectored(&mut places))?;
        for bytes in filler.read_there(bytes) {
            self.parser.feed(bytes).map_err(ProduceError::Stream)?;
        }
        filler.advance(bytes, sink).map_err(ProduceError::Seal)?;
        self.chunk_bytes += bytes as u64;
        Ok(bytes > 0)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), ProduceError> {
        let split_bytes = self.producer.plan.split_bytes;
        while !bytes.is_empty() {
            if self.chunk_bytes == split_bytes {
                self.end_chunk()?;
            }
            if self.chunk_bytes == 0 {
                self.begin_chunk()?;
            }
            let room = usize::try_from(split_bytes - self.chunk_bytes).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.parser.feed(now).map_err(ProduceError::Stream)?;
            if let Some((filler, _, _)) = &mut self.filling {
                filler
                    .write(now, &mut |part| self.line.part(part))
                    .map_err(ProduceError::Seal)?;
            }
            self.chunk_bytes += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<StreamSummary, ProduceError> {
        let ending = self.ending();
        let parser = std::mem::replace(
            &mut self.parser,
            StreamParser::new(self.producer.plan.expectation),
        );
        let summary = parser.finish().map_err(ProduceError::Stream)?;
        self.end_chunk_at(ending)?;
        match self.producer.skip.range(self.index..).next() {
            Some((beyond, _)) => Err(ProduceError::Changed(*beyond)),
            None => Ok(summary),
        }
    }

    /// Returns the error for a send that failed after the bytes that were read.
    fn send_error(&self, error: ZfsError) -> ProduceError {
        let fault = ReadFault {
            position: self.parser.position(),
            object: self.parser.last_object(),
            before: self.parser.resume_point().map(|point| RecordPlace {
                object: point.object,
                offset: point.offset,
            }),
        };
        match error.errno() {
            Some(errno) if errno.is_read_error() => ProduceError::Unreadable(fault, errno),
            _ => ProduceError::Zfs(error),
        }
    }

    fn ending(&self) -> Ending {
        let parser = &self.parser;
        Ending {
            begin: parser.begin().cloned(),
            fletcher4: parser.fletcher4(),
            point: parser.resume_point(),
            position: parser.position(),
        }
    }

    fn begin_chunk(&mut self) -> Result<(), ProduceError> {
        if self.producer.skip.contains_key(&self.index) {
            return Ok(());
        }
        let allowed = |index: &ChunkIndex| index.get() < CHUNKS_MAX;
        let index = ChunkIndex::new(self.index)
            .filter(allowed)
            .ok_or(ProduceError::TooManyChunks)?;
        let plan = &self.producer.plan;
        let compressed = plan.compression != ChunkCompression::None;
        let nonce = getrandom::u32()
            .map_err(|_| ProduceError::Seal(crate::stream::age_file::AgeError::Random.into()))?;
        let object = BackupObject::Chunk {
            index,
            nonce,
            compressed,
        };
        let turn = &self.producer.turn;
        let filler = ChunkFiller::new(
            &plan.recipients,
            plan.compression,
            turn.compressing_threads(),
            turn.parts(),
        );
        let filler = filler.map_err(ProduceError::Seal)?;
        self.line
            .begin(object.clone())
            .map_err(ProduceError::Seal)?;
        self.filling = Some((filler, index, object));
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), ProduceError> {
        self.end_chunk_at(self.ending())
    }

    fn end_chunk_at(&mut self, ending: Ending) -> Result<(), ProduceError> {
        match self.filling.take() {
            Some((filler, index, object)) => {
                let filled = filler
                    .finish(&mut |part| self.line.part(part))
                    .map_err(ProduceError::Seal)?;
                let end = EndOfChunk {
                    filled,
                    object,
                    index,
                    ending,
                };
                self.line.end(end).map_err(ProduceError::Seal)?;
            }
            // An earlier run uploaded this chunk. Its running checksum must equal the recorded one,
            // which must exist: otherwise unconfirmed data would be skipped without being sealed.
            None => match self.producer.skip.get(&self.index) {
                Some(before) if before.is_some() && *before == ending.fletcher4 => {}
                _ => return Err(ProduceError::Changed(self.index)),
            },
        }
        self.index += 1;
        self.chunk_bytes = 0;
        self.note_boundary();
        Ok(())
    }
}
