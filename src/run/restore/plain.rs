//! [`PlainStream`]: one backup's stream out of a store: chunks fetched ahead by ranges, in order, opened as they come.
//! From its start, or from a place in its middle, of which nothing before is fetched but a chunk's head.

use super::RestoreBackup;
use crate::manifest::{ChunkEntry, CompressionName, Manifest};
use crate::run::RunError;
use crate::run::catalog::chunk_key;
use crate::run::transfer::{Stop, stopped};
use crate::store::ObjectStore;
use crate::stream::age_file::{PAGE_BYTES, TAG_BYTES};
use crate::stream::open::ChunkOpener;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::mpsc;

/// How a stream is fetched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Bytes of one ranged read.
    range_bytes: u64,
    /// Ranged reads under way.
    ahead: usize,
}

/// All of it: with the two ranges that wait for the opener 48 MiB at most.
pub(super) const WHOLE: Pace = Pace { range_bytes: 8 << 20, ahead: 4 };
/// The first record after some place, for which one range is mostly enough: 3 MiB at most.
pub(super) const LOOK: Pace = Pace { range_bytes: 1 << 20, ahead: 1 };
/// A record that lies within a step, or within a compressed chunk: 6 MiB at most.
pub(super) const SEARCH: Pace = Pace { range_bytes: 1 << 20, ahead: 4 };

/// Chunks that are not compressed can be entered at each such step; it is a whole number of pages.
const STEP_BYTES: u64 = 8 << 20;
const _: () = assert!(STEP_BYTES.is_multiple_of(PAGE_BYTES as u64));

/// A place at which the stream of a backup can be entered, counted from 0: the start of each chunk, and where chunks are
/// not compressed steps in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry(pub(super) u64);

/// Where the entries of a backup lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entries {
    split_bytes: u64,
    per_chunk: u64,
    /// How many there are.
    pub(super) count: u64,
}

impl Entries {
    pub(super) fn of(backup: &RestoreBackup) -> Self {
        let split_bytes = backup.manifest.split_bytes.max(1);
        let step = |bytes: u64| match backup.manifest.compression {
            CompressionName::None => bytes.div_ceil(STEP_BYTES).max(1),
            CompressionName::Zstd => 1,
        };
        let last = backup.chunks.last().map_or(0, |chunk| step(chunk.stream_bytes));
        let per_chunk = step(split_bytes);
        Self { split_bytes, per_chunk, count: (backup.chunks.len() as u64).saturating_sub(1) * per_chunk + last }
    }

    /// The stream position of an entry.
    pub(super) fn position(self, Entry(entry): Entry) -> u64 {
        entry / self.per_chunk * self.split_bytes + entry % self.per_chunk * STEP_BYTES
    }

    /// The last entry that is not after a stream position.
    pub(super) fn before(self, position: u64) -> Entry {
        let within = (position % self.split_bytes / STEP_BYTES).min(self.per_chunk - 1);
        let entry = (position / self.split_bytes).saturating_mul(self.per_chunk) + within;
        Entry(entry.min(self.count.saturating_sub(1)))
    }

    /// Its chunk, and the page in it.
    fn chunk_and_page(self, Entry(entry): Entry) -> (usize, u64) {
        let chunk = usize::try_from(entry / self.per_chunk).unwrap_or(usize::MAX);
        (chunk, entry % self.per_chunk * (STEP_BYTES / PAGE_BYTES as u64))
    }

    /// The sealed bytes from an entry on, to the end of the backup.
    pub(super) fn sealed_bytes_from(self, backup: &RestoreBackup, entry: Entry) -> u64 {
        let (chunk, page) = self.chunk_and_page(entry);
        let from = backup.chunks.get(chunk..).unwrap_or_default();
        let all: u64 = from.iter().map(|chunk| chunk.sealed_bytes).sum();
        all.saturating_sub(page * SEALED_PAGE_BYTES)
    }
}

const SEALED_PAGE_BYTES: u64 = (PAGE_BYTES + TAG_BYTES) as u64;

/// How many ranged reads it takes to fetch these chunks.
pub fn fetch_requests(chunks: &[ChunkEntry]) -> u64 {
    chunks.iter().map(|chunk| chunk.sealed_bytes.div_ceil(WHOLE.range_bytes)).sum()
}

/// What the fetch and the opener share.
struct Sealed {
    manifest: Manifest,
    chunks: Vec<ChunkEntry>,
    identities: Arc<[age::x25519::Identity]>,
}

impl Sealed {
    fn key_of(&self, chunk: usize) -> String {
        let key = self.chunks.get(chunk).and_then(|entry| chunk_key(&self.manifest, entry));
        key.map_or_else(String::new, |key| key.to_string())
    }
}

/// Some bytes of a chunk.
struct Piece {
    bytes: Bytes,
    chunk: usize,
    /// It is the head, and what follows begins with this page.
    before_page: Option<u64>,
}

/// The opened bytes of a stream, for a blocking reader. Each byte that it gives was authenticated.
pub(super) struct PlainStream {
    pieces: mpsc::Receiver<Result<Piece, RunError>>,
    shared: Arc<Sealed>,
    opener: Option<(ChunkOpener, usize)>,
    /// Fetched and not opened yet. It is opened page by page, so that what a page expands to is all that is in memory.
    sealed: Bytes,
    next_chunk: usize,
}

impl PlainStream {
    /// Starts fetching at an entry. Must be called within a runtime; once a stop is asked for, it fails with
    /// [`RunError::Interrupted`].
    pub(super) fn open(
        backup: &RestoreBackup,
        identities: &[age::x25519::Identity],
        from: Entry,
        pace: Pace,
        stop: Stop,
    ) -> Self {
        let (sender, pieces) = mpsc::channel(1);
        let shared = Arc::new(Sealed {
            manifest: backup.manifest.clone(),
            chunks: backup.chunks.clone(),
            identities: identities.into(),
        });
        let from = Entries::of(backup).chunk_and_page(from);
        tokio::spawn(fetch(Arc::clone(&backup.store), Arc::clone(&shared), from, pace, sender, stop));
        Self { pieces, shared, opener: None, sealed: Bytes::new(), next_chunk: 0 }
    }

    /// Appends the next bytes, of one page; false at the end of the last chunk. Blocks.
    pub(super) fn read(&mut self, plain: &mut Vec<u8>) -> Result<bool, RunError> {
        let before = plain.len();
        while plain.len() == before {
            if self.sealed.is_empty() {
                let Some(piece) = self.pieces.blocking_recv() else {
                    return self.end().map(|()| false);
                };
                self.take(piece?)?;
                continue;
            }
            let page = self.sealed.split_to(self.sealed.len().min(PAGE_BYTES + TAG_BYTES));
            if let Some((opener, chunk)) = &mut self.opener {
                let failed = |source| RunError::Chunk { key: self.shared.key_of(*chunk), source };
                opener.write(&page, plain).map_err(failed)?;
            }
        }
        Ok(true)
    }

    /// Fetches nothing more.
    pub(super) fn close(&mut self) {
        self.sealed.clear();
        self.pieces.close();
    }

    fn take(&mut self, piece: Piece) -> Result<(), RunError> {
        let shared = Arc::clone(&self.shared);
        let Sealed { manifest, chunks, identities } = &*shared;
        let failed = |source| RunError::Chunk { key: shared.key_of(piece.chunk), source };
        let expected = chunks[piece.chunk].sealed();
        if let Some(page) = piece.before_page {
            let opener = ChunkOpener::from_page(expected, &piece.bytes, page, Arc::clone(identities));
            self.opener = Some((opener.map_err(failed)?, piece.chunk));
            return Ok(());
        }
        if self.opener.as_ref().is_none_or(|(_, chunk)| *chunk != piece.chunk) {
            self.end_chunk()?;
            let compressed = manifest.compression == CompressionName::Zstd;
            let opener = ChunkOpener::new(expected, compressed, Arc::clone(identities)).map_err(failed)?;
            self.opener = Some((opener, piece.chunk));
        }
        self.sealed = piece.bytes;
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), RunError> {
        let Some((opener, chunk)) = self.opener.take() else { return Ok(()) };
        self.next_chunk = chunk + 1;
        let key = self.shared.key_of(chunk);
        opener.finish().map_err(|source| RunError::Chunk { key, source })
    }

    fn end(&mut self) -> Result<(), RunError> {
        self.end_chunk()?;
        if self.next_chunk != self.shared.chunks.len() {
            let reason = "the fetch ended before the last chunk".to_owned();
            return Err(RunError::Damaged { key: self.shared.manifest.id.to_string(), reason });
        }
        Ok(())
    }
}

/// One ranged read: the chunk, its bytes, and the page behind them if they are the head.
type Want = (usize, Range<u64>, Option<u64>);

fn wanted(shared: Arc<Sealed>, (first, page): (usize, u64), pace: Pace) -> impl Iterator<Item = Want> {
    let head = shared.chunks.get(first).filter(|_| page > 0).map(|chunk| u64::from(chunk.head.bytes));
    let begin = head.map_or(0, |head| head + page * SEALED_PAGE_BYTES);
    let heads = head.map(|head| (first, 0..head, Some(page)));
    let step = usize::try_from(pace.range_bytes).unwrap_or(usize::MAX);
    let pieces = (first..shared.chunks.len()).flat_map(move |number| {
        let bytes = shared.chunks[number].sealed_bytes;
        let starts = (if number == first { begin } else { 0 }..bytes).step_by(step);
        starts.map(move |start| (number, start..(start + pace.range_bytes).min(bytes), None))
    });
    heads.into_iter().chain(pieces)
}

async fn fetch(
    store: Arc<dyn ObjectStore>,
    shared: Arc<Sealed>,
    from: (usize, u64),
    pace: Pace,
    sender: mpsc::Sender<Result<Piece, RunError>>,
    mut stop: Stop,
) {
    let get = |(chunk, range, before_page): Want| {
        let (store, shared) = (Arc::clone(&store), Arc::clone(&shared));
        async move {
            let entry = &shared.chunks[chunk];
            let key = chunk_key(&shared.manifest, entry)
                .ok_or_else(|| RunError::Damaged { key: entry.name.clone(), reason: "not a chunk's name".into() })?;
            let bytes = store.get(&key, Some(range), pace.range_bytes).await?;
            Ok(Piece { bytes, chunk, before_page })
        }
    };
    let mut pieces = stream::iter(wanted(Arc::clone(&shared), from, pace)).map(get).buffered(pace.ahead);
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            () = stopped(&mut stop) => Some(Err(RunError::Interrupted)),
            // Nobody wants more.
            () = sender.closed() => return,
        };
        let Some(piece) = piece else { return };
        let failed = piece.is_err();
        if sender.send(piece).await.is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_positions_belong_together() {
        for (split_bytes, per_chunk, count) in [(1 << 30, 128, 300), (6 << 20, 1, 4), (9 << 20, 2, 7), (64 << 10, 1, 5)]
        {
            let entries = Entries { split_bytes, per_chunk, count };
            for entry in (0..count).map(Entry) {
                let position = entries.position(entry);
                assert_eq!(entries.before(position), entry);
                if entry.0 > 0 {
                    assert_eq!(entries.before(position - 1), Entry(entry.0 - 1));
                }
            }
            assert_eq!(entries.before(u64::MAX / 2), Entry(count - 1));
        }
    }
}
