//! [`RestoreReader`]: one backup's stream for a receiver, parsed and checked on its way out: the
//! whole stream, or the stream that resumes an interrupted receive.

use super::plain::{PlainStream, ReadPoint, WHOLE};
use super::resume::FoundStart;
use crate::run::RunError;
use crate::run::restore::RestoreBackup;
use crate::run::transfer::Stop;
use crate::stream::open::PlainPages;
use crate::stream::record::{StreamExpectation, StreamParser};
use crate::stream::resuming::{Resumer, ResumingError};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// The stream of one backup, for a blocking reader. Every byte was authenticated before it is
/// returned. At its end, the stream was parsed and is the one that the manifest describes.
pub struct RestoreReader {
    stream: PlainStream,
    passage: Option<Passage>,
    /// Opened bytes to skip: those before the boundary at which the receive resumes.
    skip_bytes: u64,
    expected_bytes: u64,
    id: String,
    opened: Vec<u8>,
    plain: Vec<u8>,
    given: usize,
    failure: FailureSlot,
}

/// The form in which the stored stream is returned.
enum Passage {
    /// The stored stream as it is.
    Whole(Box<StreamParser>),
    /// The stream that resumes an interrupted receive.
    Resumed(Box<Resumer>),
}

/// The place where a reader leaves the real cause before it reports a plain I/O error to its
/// caller.
pub type FailureSlot = Arc<Mutex<Option<RunError>>>;

/// Starts fetching and returns the reader. Must be called within a runtime.
pub fn open_stream(
    backup: &RestoreBackup,
    identities: &[age::x25519::Identity],
) -> (RestoreReader, FailureSlot) {
    open_stream_until(backup, identities, tokio::sync::watch::channel(false).1)
}

/// Does the same as [`open_stream`]; after a stop is requested, the reader fails with
/// [`RunError::Interrupted`].
pub fn open_stream_until(
    backup: &RestoreBackup,
    identities: &[age::x25519::Identity],
    stop: Stop,
) -> (RestoreReader, FailureSlot) {
    let parser = StreamParser::new(expected_stream(backup));
    open_rest(backup, identities, ReadPoint(0), parser, stop)
}

/// Does the same as [`open_stream_until`], from an entry on. `parser` has parsed all bytes before
/// it.
pub(in crate::run::restore) fn open_rest(
    backup: &RestoreBackup,
    identities: &[age::x25519::Identity],
    from: ReadPoint,
    parser: StreamParser,
    stop: Stop,
) -> (RestoreReader, FailureSlot) {
    let passage = Passage::Whole(Box::new(parser));
    let stream = PlainStream::open(backup, identities, from, WHOLE, stop);
    RestoreReader::new(backup, stream, passage, 0, Vec::new())
}

/// Returns the snapshots that the stream of a backup must be of.
pub(in crate::run::restore) fn expected_stream(backup: &RestoreBackup) -> StreamExpectation {
    StreamExpectation {
        snapshot_guid: backup.manifest.snapshot.guid,
        base_guid: backup.manifest.base.as_ref().map(|base| base.guid),
    }
}

/// Does the same as [`open_stream_until`], for the stream that resumes a receive at the point that
/// was found.
pub(in crate::run::restore) fn open_resumed(
    backup: &RestoreBackup,
    identities: &[age::x25519::Identity],
    found: &FoundStart,
    stop: Stop,
) -> (RestoreReader, FailureSlot) {
    let mut opening = Vec::new();
    let resumer = Resumer::new(&found.start, &mut |bytes| opening.extend_from_slice(bytes));
    let stream = PlainStream::open(backup, identities, found.entry, WHOLE, stop);
    RestoreReader::new(
        backup,
        stream,
        Passage::Resumed(Box::new(resumer)),
        found.skip_bytes,
        opening,
    )
}

impl RestoreReader {
    fn new(
        backup: &RestoreBackup,
        stream: PlainStream,
        passage: Passage,
        skip_bytes: u64,
        plain: Vec<u8>,
    ) -> (Self, FailureSlot) {
        let failure = FailureSlot::default();
        let reader = Self {
            stream,
            passage: Some(passage),
            skip_bytes,
            expected_bytes: backup.manifest.stream_bytes,
            id: backup.manifest.id.to_string(),
            opened: Vec::new(),
            plain,
            given: 0,
            failure: Arc::clone(&failure),
        };
        (reader, failure)
    }

    /// Writes the rest of the stream and returns its length in bytes.
    ///
    /// # Errors
    /// The errors of `output`; the cause of any other error is in the failure slot, as for
    /// [`Read`].
    pub fn copy_to(&mut self, output: &mut dyn Write) -> std::io::Result<u64> {
        let mut bytes = 0;
        loop {
            match self.next_pages() {
                // Tags lie between the pages in memory; one vectored call writes all pages of a
                // piece.
                Ok(Some(pages)) => {
                    let mut slices: Vec<IoSlice<'_>> = pages.pages().map(IoSlice::new).collect();
                    bytes += slices.iter().map(|slice| slice.len() as u64).sum::<u64>();
                    write_all(output, &mut slices)?;
                    self.stream.take_back(pages);
                }
                Ok(None) => break,
                Err(error) => return Err(self.fail(error)),
            }
        }
        loop {
            let rest = &self.plain[self.given..];
            output.write_all(rest)?;
            bytes += rest.len() as u64;
            match self.fill() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(self.fail(error)),
            }
        }
        output.flush().map(|()| bytes)
    }

    /// Returns the next whole piece, checked; `None` at the end, and when the stream cannot be
    /// returned in whole pieces.
    fn next_pages(&mut self) -> Result<Option<PlainPages>, RunError> {
        let Some(Passage::Whole(parser)) = &mut self.passage else {
            return Ok(None);
        };
        if self.skip_bytes > 0 || self.given < self.plain.len() || !self.stream.gives_pages() {
            return Ok(None);
        }
        let Some(pages) = self.stream.pages()? else {
            return Ok(None);
        };
        for page in pages.pages() {
            parser.feed(page).map_err(|source| RunError::Stream {
                snapshot: self.id.clone(),
                source,
            })?;
        }
        Ok(Some(pages))
    }

    /// Records the failure. A reader that failed returns no more bytes.
    fn fail(&mut self, error: RunError) -> std::io::Error {
        self.plain.clear();
        self.given = 0;
        self.stream.close();
        let text = error.to_string();
        // The first failure is the cause; later ones only follow from it.
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        std::io::Error::new(ErrorKind::InvalidData, text)
    }

    fn fill(&mut self) -> Result<bool, RunError> {
        self.plain.clear();
        self.given = 0;
        while self.plain.is_empty() {
            self.opened.clear();
            if !self.stream.read(&mut self.opened)? {
                return self.end().map(|()| false);
            }
            let skipped = usize::try_from(self.skip_bytes)
                .unwrap_or(usize::MAX)
                .min(self.opened.len());
            self.skip_bytes -= skipped as u64;
            let snapshot = &self.id;
            let bytes = &self.opened[skipped..];
            let plain = &mut self.plain;
            match &mut self.passage {
                Some(Passage::Whole(parser)) => {
                    let snapshot = snapshot.clone();
                    parser
                        .feed(bytes)
                        .map_err(|source| RunError::Stream { snapshot, source })?;
                    std::mem::swap(&mut self.plain, &mut self.opened);
                }
                Some(Passage::Resumed(resumer)) => {
                    let fed = resumer.feed(bytes, &mut |bytes| plain.extend_from_slice(bytes));
                    fed.map_err(|source| failed(snapshot, source))?;
                }
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn end(&mut self) -> Result<(), RunError> {
        let bytes = match self.passage.take() {
            Some(Passage::Whole(parser)) => {
                let summary = parser.finish();
                summary
                    .map_err(|source| RunError::Stream {
                        snapshot: self.id.clone(),
                        source,
                    })?
                    .bytes
            }
            Some(Passage::Resumed(resumer)) => resumer
                .finish()
                .map_err(|source| failed(&self.id, source))?,
            None => return Ok(()),
        };
        if bytes != self.expected_bytes {
            let reason = "the stream has another length than the manifest says".to_owned();
            return Err(RunError::Damaged {
                key: self.id.clone(),
                reason,
            });
        }
        Ok(())
    }
}

fn failed(id: &str, error: ResumingError) -> RunError {
    match error {
        ResumingError::Stream(source) => RunError::Stream {
            snapshot: id.to_owned(),
            source,
        },
        source => RunError::CannotResumeReceive {
            id: id.to_owned(),
            source,
        },
    }
}

/// Does the same as [`Write::write_all`], for many slices.
fn write_all(output: &mut dyn Write, mut slices: &mut [IoSlice<'_>]) -> std::io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match output.write_vectored(slices) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(bytes) => IoSlice::advance_slices(&mut slices, bytes),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Read for RestoreReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.given == self.plain.len() {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => return Err(self.fail(error)),
            }
        }
        let bytes = buffer.len().min(self.plain.len() - self.given);
        buffer[..bytes].copy_from_slice(&self.plain[self.given..self.given + bytes]);
        self.given += bytes;
        Ok(bytes)
    }
}

pub(in crate::run::restore) fn take_failure(failure: &FailureSlot) -> Option<RunError> {
    failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}
