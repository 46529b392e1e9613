//! [`RestoreReader`]: one backup's stream out of a store: chunks fetched ahead by ranges, in order, opened as they come,
//! and the stream parsed once more on its way out.

use super::RestoreBackup;
use crate::manifest::{ChunkEntry, CompressionName, Manifest};
use crate::run::RunError;
use crate::run::catalog::chunk_key;
use crate::run::transfer::{Stop, stopped};
use crate::store::ObjectStore;
use crate::stream::open::{ChunkPieces, ChunkPlain, OpenError, PlainPages, SealedPages, piece_ranges};
use crate::stream::record::{StreamExpectation, StreamParser};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Pages of one ranged read: 2 MiB. Whole pages, so that pieces are opened side by side. With 4 MiB a restore from a
/// folder took 157 MiB in all, much more than its pieces; the allocator that keeps what threads freed is the likely reason.
const PIECE_PAGES: u32 = 32;
/// The most bytes of one ranged read: its pages with their tags, and a head.
const PIECE_BYTES_MAX: u64 = 3 << 20;
/// Ranged reads under way. A line of 1 Gbit/s is full at 100 ms.
const PIECES_FETCHED_MAX: usize = 6;
/// Pieces being opened. With those that are fetched, the two that wait for the reader and the one that it gives away,
/// 11 pieces or 23 MiB at most.
const PIECES_OPENED_MAX: usize = 2;

/// The stream of one backup, for a blocking reader. Every byte that it gives was authenticated; at its end the whole
/// stream was parsed and is the one that the manifest describes.
pub struct RestoreReader {
    pieces: mpsc::Receiver<Result<Piece, RunError>>,
    runtime: Handle,
    parser: StreamParser,
    expectation: StreamExpectation,
    expected_bytes: u64,
    chunks: Arc<RestoreBackupKeys>,
    /// The chunk whose pieces come now, and its number.
    sealed: Option<(ChunkPieces, usize)>,
    /// Pieces being opened, in order, each with its chunk.
    opening: VecDeque<(Receiver<Result<PlainPages, OpenError>>, usize)>,
    /// The chunk whose stream bytes come now, and its number.
    plain: Option<(ChunkPlain, usize)>,
    /// The opened piece that is given away now.
    piece: Option<OpenPiece>,
    ready: Ready,
    next_chunk: usize,
    failure: FailureSlot,
}

/// A piece that is open, and how far it was given away.
struct OpenPiece {
    pages: PlainPages,
    page: usize,
    within: usize,
}

/// Bytes that were checked and wait for the caller of [`Read`].
#[derive(Default)]
struct Ready {
    bytes: Vec<u8>,
    given: usize,
}

/// Where a reader leaves the real reason before it reports a plain I/O error to its caller.
pub type FailureSlot = Arc<Mutex<Option<RunError>>>;

struct RestoreBackupKeys {
    manifest: Manifest,
    chunks: Vec<ChunkEntry>,
    identities: Arc<[age::x25519::Identity]>,
}

struct Piece {
    bytes: Bytes,
    chunk: usize,
}

/// Starts fetching and returns the reader. Must be called within a runtime.
pub fn open_stream(backup: &RestoreBackup, identities: &[age::x25519::Identity]) -> (RestoreReader, FailureSlot) {
    open_stream_until(backup, identities, tokio::sync::watch::channel(false).1)
}

/// As [`open_stream`]; once a stop is asked for, the reader fails with [`RunError::Interrupted`].
pub fn open_stream_until(
    backup: &RestoreBackup,
    identities: &[age::x25519::Identity],
    stop: Stop,
) -> (RestoreReader, FailureSlot) {
    let (sender, pieces) = mpsc::channel(1);
    let keys = Arc::new(RestoreBackupKeys {
        manifest: backup.manifest.clone(),
        chunks: backup.chunks.clone(),
        identities: identities.into(),
    });
    tokio::spawn(fetch(Arc::clone(&backup.store), Arc::clone(&keys), sender, stop));
    let base_guid = backup.manifest.base.as_ref().map(|base| base.guid);
    let expectation = StreamExpectation { snapshot_guid: backup.manifest.snapshot.guid, base_guid };
    let failure = FailureSlot::default();
    let reader = RestoreReader {
        pieces,
        runtime: Handle::current(),
        parser: StreamParser::new(expectation),
        expectation,
        expected_bytes: backup.manifest.stream_bytes,
        chunks: keys,
        sealed: None,
        opening: VecDeque::new(),
        plain: None,
        piece: None,
        ready: Ready::default(),
        next_chunk: 0,
        failure: Arc::clone(&failure),
    };
    (reader, failure)
}

/// How many ranged reads it takes to fetch these chunks.
pub fn fetch_requests(chunks: &[ChunkEntry]) -> u64 {
    chunks
        .iter()
        .map(|chunk| piece_ranges(&chunk.sealed(), PIECE_PAGES).map_or(0, |ranges| ranges.count() as u64))
        .sum()
}

/// What is to be read of each chunk, in order. A chunk whose sizes are impossible is one error.
fn ranges(keys: Arc<RestoreBackupKeys>) -> impl Iterator<Item = Result<(usize, Range<u64>), RunError>> {
    (0..keys.chunks.len()).flat_map(move |number| {
        let ranges = piece_ranges(&keys.chunks[number].sealed(), PIECE_PAGES);
        let error = ranges.is_err();
        let ranges = ranges.into_iter().flatten().map(move |range| Ok((number, range)));
        let key = key_of(&keys, number);
        let sizes = keys.chunks[number].sealed();
        let refused = error.then(|| {
            let (head_bytes, sealed_bytes) = (sizes.head.bytes, sizes.sealed_bytes);
            Err(RunError::Chunk { key, source: OpenError::Sizes { head_bytes, sealed_bytes } })
        });
        refused.into_iter().chain(ranges)
    })
}

async fn fetch(
    store: Arc<dyn ObjectStore>,
    keys: Arc<RestoreBackupKeys>,
    sender: mpsc::Sender<Result<Piece, RunError>>,
    mut stop: Stop,
) {
    let get = |wanted: Result<(usize, Range<u64>), RunError>| {
        let (store, keys) = (Arc::clone(&store), Arc::clone(&keys));
        async move {
            let (chunk, range) = wanted?;
            let entry = &keys.chunks[chunk];
            let key = chunk_key(&keys.manifest, entry)
                .ok_or_else(|| RunError::Damaged { key: entry.name.clone(), reason: "not a chunk's name".into() })?;
            let bytes = store.get(&key, Some(range), PIECE_BYTES_MAX).await?;
            Ok(Piece { bytes, chunk })
        }
    };
    let mut pieces = stream::iter(ranges(Arc::clone(&keys))).map(get).buffered(PIECES_FETCHED_MAX);
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            () = stopped(&mut stop) => Some(Err(RunError::Interrupted)),
        };
        let Some(piece) = piece else { return };
        let failed = piece.is_err();
        if sender.send(piece).await.is_err() || failed {
            return;
        }
    }
}

fn key_of(keys: &RestoreBackupKeys, chunk: usize) -> String {
    chunk_key(&keys.manifest, &keys.chunks[chunk]).map_or_else(String::new, |key| key.to_string())
}

impl RestoreReader {
    /// Writes the rest of the stream, and says how much that was.
    ///
    /// # Errors
    /// Those of `output`; any other reason is in the failure slot, as for [`Read`].
    pub fn copy_to(&mut self, output: &mut dyn Write) -> std::io::Result<u64> {
        let mut bytes = 0;
        let compressed = self.chunks.manifest.compression == CompressionName::Zstd;
        loop {
            if compressed {
                match self.next_run() {
                    Ok(true) => output.write_all(&self.ready.bytes)?,
                    Ok(false) => break,
                    Err(error) => return Err(self.fail(error)),
                }
                bytes += std::mem::take(&mut self.ready).bytes.len() as u64;
                continue;
            }
            match self.next_piece().and_then(|more| self.check_piece().map(|pages| pages.filter(|_| more))) {
                // A page lies beside its tag: all pages of a piece go out in one call.
                Ok(Some(pages)) => {
                    let mut slices: Vec<IoSlice<'_>> = pages.pages().map(IoSlice::new).collect();
                    bytes += slices.iter().map(|slice| slice.len() as u64).sum::<u64>();
                    write_all(output, &mut slices)?;
                }
                Ok(None) => break,
                Err(error) => return Err(self.fail(error)),
            }
        }
        output.flush().map(|()| bytes)
    }

    /// Waits for the next piece to be open; false at the end of the stream.
    fn next_piece(&mut self) -> Result<bool, RunError> {
        self.piece = None;
        self.look_ahead()?;
        let Some((opened, number)) = self.opening.pop_front() else {
            return self.end().map(|()| false);
        };
        let pages = opened.recv().map_err(|_| panicked())?.map_err(|source| self.damaged(number, source))?;
        if self.plain.as_ref().is_none_or(|(_, chunk)| *chunk != number) {
            self.end_chunk()?;
            let compressed = self.chunks.manifest.compression == CompressionName::Zstd;
            let plain = ChunkPlain::new(&self.chunks.chunks[number].sealed(), compressed);
            self.plain = Some((plain.map_err(|source| self.damaged(number, source))?, number));
        }
        self.piece = Some(OpenPiece { pages, page: 0, within: 0 });
        // The next ones are opened while this one is given away.
        self.look_ahead().map(|()| true)
    }

    /// Takes all pages of the piece, none of them compressed, for stream bytes.
    fn check_piece(&mut self) -> Result<Option<PlainPages>, RunError> {
        let (Some(OpenPiece { pages, .. }), Some((plain, number))) = (self.piece.take(), &mut self.plain) else {
            return Ok(None);
        };
        let number = *number;
        for (index, page) in pages.pages().enumerate() {
            let passed = plain.pass(page, pages.is_last(index));
            passed.map_err(|source| RunError::Chunk { key: key_of(&self.chunks, number), source })?;
            let fed = self.parser.feed(page);
            fed.map_err(|source| RunError::Stream { snapshot: self.chunks.manifest.id.to_string(), source })?;
        }
        Ok(Some(pages))
    }

    /// Makes the next run of stream bytes ready; false at the end of the stream.
    fn next_run(&mut self) -> Result<bool, RunError> {
        self.ready = Ready { bytes: std::mem::take(&mut self.ready.bytes), given: 0 };
        self.ready.bytes.clear();
        while self.ready.bytes.is_empty() {
            let page = self.piece.as_ref().and_then(|piece| Some((piece, piece.pages.page(piece.page)?)));
            let (Some((piece, page)), Some((plain, number))) = (page, &mut self.plain) else {
                if !self.next_piece()? {
                    return Ok(false);
                }
                continue;
            };
            let (rest, last) = (&page[piece.within..], piece.pages.is_last(piece.page));
            let (number, rest_bytes) = (*number, rest.len());
            let taken = plain.take(rest, last, &mut self.ready.bytes);
            let taken = taken.map_err(|source| self.damaged(number, source))?;
            if let Some(piece) = &mut self.piece {
                match taken == rest_bytes {
                    true => (piece.page, piece.within) = (piece.page + 1, 0),
                    false => piece.within += taken,
                }
            }
            let fed = self.parser.feed(&self.ready.bytes);
            fed.map_err(|source| RunError::Stream { snapshot: self.chunks.manifest.id.to_string(), source })?;
        }
        Ok(true)
    }

    /// Has the next pieces opened beside, in order: waits for one only when none is under way.
    fn look_ahead(&mut self) -> Result<(), RunError> {
        while self.opening.len() < PIECES_OPENED_MAX {
            let piece = match self.pieces.try_recv() {
                Ok(piece) => piece,
                Err(mpsc::error::TryRecvError::Empty) if self.opening.is_empty() && self.piece.is_none() => {
                    match self.pieces.blocking_recv() {
                        Some(piece) => piece,
                        None => return Ok(()),
                    }
                }
                Err(_) => return Ok(()),
            };
            let Piece { bytes, chunk } = piece?;
            let pages = self.take_sealed(bytes, chunk)?;
            let (sender, opened) = sync_channel(1);
            self.runtime.spawn_blocking(move || sender.send(pages.open()));
            self.opening.push_back((opened, chunk));
        }
        Ok(())
    }

    fn take_sealed(&mut self, bytes: Bytes, number: usize) -> Result<SealedPages, RunError> {
        if self.sealed.as_ref().is_none_or(|(_, chunk)| *chunk != number) {
            self.end_sealed()?;
            let keys = &self.chunks;
            let pieces = ChunkPieces::new(keys.chunks[number].sealed(), Arc::clone(&keys.identities));
            self.sealed = Some((pieces.map_err(|source| self.damaged(number, source))?, number));
        }
        let Some((pieces, _)) = &mut self.sealed else { return Err(panicked()) };
        let taken = pieces.take(BytesMut::from(bytes));
        taken.map_err(|source| self.damaged(number, source))
    }

    fn damaged(&self, number: usize, source: OpenError) -> RunError {
        RunError::Chunk { key: key_of(&self.chunks, number), source }
    }

    /// All pieces of the chunk came.
    fn end_sealed(&mut self) -> Result<(), RunError> {
        let Some((pieces, number)) = self.sealed.take() else { return Ok(()) };
        pieces.finish().map_err(|source| self.damaged(number, source))
    }

    /// All stream bytes of the chunk were given.
    fn end_chunk(&mut self) -> Result<(), RunError> {
        let Some((plain, number)) = self.plain.take() else { return Ok(()) };
        self.next_chunk = number + 1;
        plain.finish().map_err(|source| self.damaged(number, source))
    }

    fn end(&mut self) -> Result<(), RunError> {
        self.end_sealed()?;
        self.end_chunk()?;
        let id = self.chunks.manifest.id.to_string();
        let cut = |reason: &str| RunError::Damaged { key: id.clone(), reason: reason.to_owned() };
        if self.next_chunk != self.chunks.chunks.len() {
            return Err(cut("the fetch ended before the last chunk"));
        }
        let parser = std::mem::replace(&mut self.parser, StreamParser::new(self.expectation));
        let summary = parser.finish().map_err(|source| RunError::Stream { snapshot: id.clone(), source })?;
        if summary.bytes != self.expected_bytes {
            return Err(cut("the stream has another length than the manifest says"));
        }
        Ok(())
    }

    /// Nothing more comes out of a reader that failed.
    fn fail(&mut self, error: RunError) -> std::io::Error {
        (self.ready, self.piece, self.next_chunk) = (Ready::default(), None, usize::MAX);
        self.opening.clear();
        self.pieces.close();
        while self.pieces.try_recv().is_ok() {}
        let text = error.to_string();
        // The first failure is the reason; later ones only follow from it.
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        std::io::Error::new(ErrorKind::InvalidData, text)
    }
}

fn panicked() -> RunError {
    RunError::refused("a thread that opens pages panicked", "this is a defect: please report it")
}

/// As [`Write::write_all`], of many slices.
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
        if self.ready.given == self.ready.bytes.len() {
            match self.next_run() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => return Err(self.fail(error)),
            }
        }
        let bytes = buffer.len().min(self.ready.bytes.len() - self.ready.given);
        buffer[..bytes].copy_from_slice(&self.ready.bytes[self.ready.given..][..bytes]);
        self.ready.given += bytes;
        Ok(bytes)
    }
}

pub(super) fn take_failure(failure: &FailureSlot) -> Option<RunError> {
    failure.lock().unwrap_or_else(PoisonError::into_inner).take()
}
