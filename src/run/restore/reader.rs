//! [`RestoreReader`]: one backup's stream out of a store: chunks fetched ahead by ranges, in order, opened as they come,
//! and the stream parsed once more on its way out.

use super::RestoreBackup;
use crate::manifest::{ChunkEntry, CompressionName, Manifest};
use crate::run::RunError;
use crate::run::catalog::chunk_key;
use crate::run::transfer::{Stop, stopped};
use crate::store::ObjectStore;
use crate::stream::age_file::{PAGE_BYTES, TAG_BYTES};
use crate::stream::open::ChunkOpener;
use crate::stream::record::{StreamExpectation, StreamParser};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Bytes of one ranged read.
const RANGE_BYTES: u64 = 8 << 20;
const RANGE_STEP: usize = 8 << 20;
/// Ranged reads under way: with the two that wait for the opener, 48 MiB at most.
const RANGES_MAX: usize = 4;

/// The stream of one backup, for a blocking reader. Every byte that it gives was authenticated; at its end the whole
/// stream was parsed and is the one that the manifest describes.
pub struct RestoreReader {
    pieces: mpsc::Receiver<Result<Piece, RunError>>,
    parser: StreamParser,
    expectation: StreamExpectation,
    expected_bytes: u64,
    chunks: Arc<RestoreBackupKeys>,
    opener: Option<(ChunkOpener, usize)>,
    /// Fetched and not opened yet. It is opened page by page, so that what a page expands to is all that is in memory.
    sealed: Bytes,
    plain: Vec<u8>,
    given: usize,
    next_chunk: usize,
    failure: FailureSlot,
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
        parser: StreamParser::new(expectation),
        expectation,
        expected_bytes: backup.manifest.stream_bytes,
        chunks: keys,
        opener: None,
        sealed: Bytes::new(),
        plain: Vec::new(),
        given: 0,
        next_chunk: 0,
        failure: Arc::clone(&failure),
    };
    (reader, failure)
}

/// How many ranged reads it takes to fetch these chunks.
pub fn fetch_requests(chunks: &[ChunkEntry]) -> u64 {
    chunks.iter().map(|chunk| chunk.sealed_bytes.div_ceil(RANGE_BYTES)).sum()
}

fn ranges(keys: Arc<RestoreBackupKeys>) -> impl Iterator<Item = (usize, Range<u64>)> {
    (0..keys.chunks.len()).flat_map(move |number| {
        let bytes = keys.chunks[number].sealed_bytes;
        let starts = (0..bytes).step_by(RANGE_STEP);
        starts.map(move |start| (number, start..(start + RANGE_BYTES).min(bytes)))
    })
}

async fn fetch(
    store: Arc<dyn ObjectStore>,
    keys: Arc<RestoreBackupKeys>,
    sender: mpsc::Sender<Result<Piece, RunError>>,
    mut stop: Stop,
) {
    let get = |(chunk, range): (usize, Range<u64>)| {
        let (store, keys) = (Arc::clone(&store), Arc::clone(&keys));
        async move {
            let entry = &keys.chunks[chunk];
            let key = chunk_key(&keys.manifest, entry)
                .ok_or_else(|| RunError::Damaged { key: entry.name.clone(), reason: "not a chunk's name".into() })?;
            let bytes = store.get(&key, Some(range), RANGE_BYTES).await?;
            Ok(Piece { bytes, chunk })
        }
    };
    let mut pieces = stream::iter(ranges(Arc::clone(&keys))).map(get).buffered(RANGES_MAX);
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
    fn fill(&mut self) -> Result<bool, RunError> {
        self.plain.clear();
        self.given = 0;
        while self.plain.is_empty() {
            if self.sealed.is_empty() {
                let Some(piece) = self.pieces.blocking_recv() else {
                    return self.end().map(|()| false);
                };
                self.take(piece?)?;
            }
            self.open_page()?;
        }
        Ok(true)
    }

    fn take(&mut self, piece: Piece) -> Result<(), RunError> {
        let keys = Arc::clone(&self.chunks);
        if self.opener.as_ref().is_none_or(|(_, chunk)| *chunk != piece.chunk) {
            self.end_chunk()?;
            let compressed = keys.manifest.compression == CompressionName::Zstd;
            let opener = ChunkOpener::new(keys.chunks[piece.chunk].sealed(), compressed, Arc::clone(&keys.identities))
                .map_err(|source| RunError::Chunk { key: key_of(&keys, piece.chunk), source })?;
            self.opener = Some((opener, piece.chunk));
        }
        self.sealed = piece.bytes;
        Ok(())
    }

    fn open_page(&mut self) -> Result<(), RunError> {
        let page = self.sealed.split_to(self.sealed.len().min(PAGE_BYTES + TAG_BYTES));
        let keys = Arc::clone(&self.chunks);
        if let Some((opener, chunk)) = &mut self.opener {
            let failed = |source| RunError::Chunk { key: key_of(&keys, *chunk), source };
            opener.write(&page, &mut self.plain).map_err(failed)?;
        }
        let snapshot = keys.manifest.id.to_string();
        self.parser.feed(&self.plain).map_err(|source| RunError::Stream { snapshot, source })
    }

    fn end_chunk(&mut self) -> Result<(), RunError> {
        let Some((opener, chunk)) = self.opener.take() else { return Ok(()) };
        self.next_chunk = chunk + 1;
        let key = key_of(&self.chunks, chunk);
        opener.finish().map_err(|source| RunError::Chunk { key, source })
    }

    fn end(&mut self) -> Result<(), RunError> {
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
}

impl Read for RestoreReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.given == self.plain.len() {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    // Nothing more comes out of a reader that failed.
                    self.plain.clear();
                    self.given = 0;
                    self.sealed.clear();
                    self.pieces.close();
                    let text = error.to_string();
                    *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return Err(std::io::Error::new(ErrorKind::InvalidData, text));
                }
            }
        }
        let bytes = buffer.len().min(self.plain.len() - self.given);
        buffer[..bytes].copy_from_slice(&self.plain[self.given..self.given + bytes]);
        self.given += bytes;
        Ok(bytes)
    }
}

pub(super) fn take_failure(failure: &FailureSlot) -> Option<RunError> {
    failure.lock().unwrap_or_else(PoisonError::into_inner).take()
}
