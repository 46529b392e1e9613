//! [`PlainStream`]: reads one backup's stream from a store. Chunks are fetched ahead in ranges, in
//! order, and opened as they arrive. Reading starts at the beginning or at an entry in the middle;
//! nothing before the entry is fetched but the head of its chunk.

use crate::catalog::chunk_key;
use crate::manifest::{ChunkEntry, CompressionName, Manifest};
use crate::run::RunError;
use crate::run::restore::RestoreBackup;
use crate::run::transfer::{Stop, stopped};
use crate::store::StoreRead;
use crate::stream::age_file::{PAGE_BYTES, TAG_BYTES};
use crate::stream::open::{
    ChunkPieces, ChunkPlain, OpenError, PlainPages, SealedPages, piece_ranges, piece_ranges_from,
};
use bytes::BytesMut;
use futures_util::{StreamExt, stream};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::AbortHandle;

/// The sizes and limits of a fetch.
#[derive(Debug, Clone, Copy)]
pub(in crate::run::restore) struct FetchPace {
    /// Pages of one ranged read. Each read has whole pages, so that pieces can be opened in
    /// parallel.
    pages: u32,
    /// Limit of concurrent ranged reads. With 1, each read waits for a request.
    ahead: usize,
    /// Pieces that are being opened, in addition to the one that the reader waits for.
    opened: usize,
}

/// FetchPace for a whole stream. Six reads fill a line of 1 Gbit/s at 100 ms. With the pieces that are
/// being opened, the two that wait for that and the one that is returned, at most 11 pieces of 2
/// MiB are in memory. With pieces of 4 MiB a restore from a folder took 157 MiB in all, much more
/// than its pieces: the allocator keeps what threads freed.
pub(in crate::run::restore) const WHOLE: FetchPace = FetchPace {
    pages: 32,
    ahead: 6,
    opened: 2,
};
/// FetchPace for finding a record after some place: a piece of 1 MiB is fetched only when the one before
/// it was not enough.
pub(in crate::run::restore) const LOOK: FetchPace = FetchPace {
    pages: 16,
    ahead: 1,
    opened: 1,
};

/// Distance of the entries in an uncompressed chunk: a whole number of pages.
const STEP_BYTES: u64 = 8 << 20;
const _: () = assert!(STEP_BYTES.is_multiple_of(PAGE_BYTES as u64));

/// A place at which the stream of a backup can be entered, counted from 0: the start of each chunk,
/// and in uncompressed chunks every step of `STEP_BYTES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::run::restore) struct ReadPoint(pub(in crate::run::restore) u64);

/// The positions of all entries of a backup.
#[derive(Debug, Clone, Copy)]
pub(in crate::run::restore) struct Entries {
    split_bytes: u64,
    per_chunk: u64,
    /// The number of entries.
    pub(in crate::run::restore) count: u64,
}

impl Entries {
    pub(in crate::run::restore) fn of(backup: &RestoreBackup) -> Self {
        let split_bytes = backup.manifest.split_bytes.max(1);
        let step = |bytes: u64| match backup.manifest.compression {
            CompressionName::None => bytes.div_ceil(STEP_BYTES).max(1),
            CompressionName::Zstd => 1,
        };
        let last = backup
            .chunks
            .last()
            .map_or(0, |chunk| step(chunk.stream_bytes));
        let per_chunk = step(split_bytes);
        Self {
            split_bytes,
            per_chunk,
            count: (backup.chunks.len() as u64).saturating_sub(1) * per_chunk + last,
        }
    }

    /// Returns the stream position of an entry.
    pub(in crate::run::restore) fn position(self, ReadPoint(entry): ReadPoint) -> u64 {
        entry / self.per_chunk * self.split_bytes + entry % self.per_chunk * STEP_BYTES
    }

    /// Returns the last entry that is not after a stream position.
    pub(in crate::run::restore) fn before(self, position: u64) -> ReadPoint {
        let within = (position % self.split_bytes / STEP_BYTES).min(self.per_chunk - 1);
        let entry = (position / self.split_bytes).saturating_mul(self.per_chunk) + within;
        ReadPoint(entry.min(self.count.saturating_sub(1)))
    }

    /// Returns the chunk of an entry, and the page in the chunk.
    fn chunk_and_page(self, ReadPoint(entry): ReadPoint) -> (usize, u64) {
        let chunk = usize::try_from(entry / self.per_chunk).unwrap_or(usize::MAX);
        (
            chunk,
            entry % self.per_chunk * (STEP_BYTES / PAGE_BYTES as u64),
        )
    }

    /// Returns the sealed bytes from an entry on, to the end of the backup.
    pub(in crate::run::restore) fn sealed_bytes_from(
        self,
        backup: &RestoreBackup,
        entry: ReadPoint,
    ) -> u64 {
        let (chunk, page) = self.chunk_and_page(entry);
        let from = backup.chunks.get(chunk..).unwrap_or_default();
        let all: u64 = from.iter().map(|chunk| chunk.sealed_bytes).sum();
        all.saturating_sub(page * SEALED_PAGE_BYTES)
    }
}

const SEALED_PAGE_BYTES: u64 = (PAGE_BYTES + TAG_BYTES) as u64;

/// Returns the number of ranged reads that fetch these chunks.
pub fn fetch_requests(chunks: &[ChunkEntry]) -> u64 {
    let reads = |chunk: &ChunkEntry| {
        piece_ranges(&chunk.sealed(), WHOLE.pages).map_or(0, |ranges| ranges.count() as u64)
    };
    chunks.iter().map(reads).sum()
}

/// The data that fetch, checker and stream share.
struct SealedSource {
    manifest: Manifest,
    chunks: Vec<ChunkEntry>,
    identities: Arc<[age::x25519::Identity]>,
    /// The chunk that is entered first, and the page in it.
    from: (usize, u64),
}

impl SealedSource {
    fn key_of(&self, chunk: usize) -> String {
        let key = self
            .chunks
            .get(chunk)
            .and_then(|entry| chunk_key(&self.manifest, entry));
        key.map_or_else(String::new, |key| key.to_string())
    }

    fn damaged(&self, chunk: usize, source: OpenError) -> RunError {
        RunError::Chunk {
            key: self.key_of(chunk),
            source,
        }
    }

    /// Returns the first page that is read of a chunk.
    fn page_of(&self, chunk: usize) -> u64 {
        if chunk == self.from.0 { self.from.1 } else { 0 }
    }
}

/// The memory of used pieces, which the next pieces reuse. The number of buffers is limited by the
/// number of pieces in use at the same time.
#[derive(Clone, Default)]
struct Spare(Arc<Mutex<Vec<BytesMut>>>);

impl Spare {
    fn take(&self) -> BytesMut {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    fn give(&self, pages: PlainPages) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(pages.into_buffer());
    }
}

/// A range of the sealed bytes of a chunk.
struct Piece {
    bytes: BytesMut,
    chunk: usize,
    /// Whether the piece begins at the object's start.
    first: bool,
}

/// An opened piece, with the position up to which it was returned.
struct OpenPiece {
    pages: PlainPages,
    page: usize,
    within: usize,
}

/// A piece that is being opened, with its chunk.
struct OpeningPiece {
    opened: Receiver<Result<PlainPages, OpenError>>,
    chunk: usize,
}

/// The result of checking a piece; `None` at the end of the last chunk.
type Checked = Result<Option<OpeningPiece>, RunError>;

/// Checks the pieces in order, on its own thread, and has them opened in parallel.
///
/// ```text
/// fetch (parallel) -> checker (in order: head, length, hash) -> openers (parallel) -> PlainStream
/// ```
struct Checker {
    pieces: mpsc::Receiver<Result<Piece, RunError>>,
    opening: SyncSender<Checked>,
    demand: Arc<Semaphore>,
    runtime: Handle,
    shared: Arc<SealedSource>,
    /// The chunk that is being checked, and its number.
    sealed: Option<(ChunkPieces, usize)>,
}

/// The opened bytes of a stream, for a blocking reader. Every byte was authenticated before it is
/// returned.
pub(in crate::run::restore) struct PlainStream {
    /// The pieces in order; `None` when no more follow.
    opening: Option<Receiver<Checked>>,
    /// Has a permit for each piece that was requested.
    demand: Arc<Semaphore>,
    fetch: AbortHandle,
    shared: Arc<SealedSource>,
    /// The chunk whose stream bytes are being returned, and its number.
    plain: Option<(ChunkPlain, usize)>,
    /// The opened piece that is being returned.
    piece: Option<OpenPiece>,
    spare: Spare,
    next_chunk: usize,
}

impl PlainStream {
    /// Starts fetching at an entry. Must be called within a runtime. After a stop is requested, the
    /// stream fails with [`RunError::Interrupted`].
    pub(in crate::run::restore) fn open(
        backup: &RestoreBackup,
        identities: &[age::x25519::Identity],
        from: ReadPoint,
        pace: FetchPace,
        stop: Stop,
    ) -> Self {
        let shared = Arc::new(SealedSource {
            manifest: backup.manifest.clone(),
            chunks: backup.chunks.clone(),
            identities: identities.into(),
            from: Entries::of(backup).chunk_and_page(from),
        });
        let (sender, pieces) = mpsc::channel(1);
        let demand = Arc::new(Semaphore::new(0));
        let asked = (pace.ahead == 1).then(|| Arc::clone(&demand));
        let spare = Spare::default();
        let fetch = Fetch {
            store: Arc::clone(&backup.store),
            shared: Arc::clone(&shared),
            spare: spare.clone(),
            pace,
        };
        let fetch = tokio::spawn(fetch.run(asked, sender, stop)).abort_handle();
        let (opening, opened) = sync_channel(pace.opened - 1);
        let runtime = Handle::current();
        let demanded = Arc::clone(&demand);
        let checker = Checker {
            pieces,
            opening,
            demand: demanded,
            runtime,
            shared: Arc::clone(&shared),
            sealed: None,
        };
        tokio::task::spawn_blocking(|| checker.run());
        Self {
            opening: Some(opened),
            demand,
            fetch,
            shared,
            plain: None,
            piece: None,
            spare,
            next_chunk: 0,
        }
    }

    /// Whether whole pieces can be taken: the stream is uncompressed, and no piece was partly
    /// returned.
    pub(in crate::run::restore) fn gives_pages(&self) -> bool {
        self.shared.manifest.compression == CompressionName::None && self.piece.is_none()
    }

    /// Returns the next piece, whose pages are plain stream bytes; `None` at the end of the last
    /// chunk. Blocking. Valid only while [`PlainStream::gives_pages`].
    pub(in crate::run::restore) fn pages(&mut self) -> Result<Option<PlainPages>, RunError> {
        if !self.next_piece()? {
            return Ok(None);
        }
        let (Some(OpenPiece { pages, .. }), Some((plain, number))) =
            (self.piece.take(), &mut self.plain)
        else {
            return Ok(None);
        };
        for (index, page) in pages.pages().enumerate() {
            plain
                .pass(page, pages.is_last(index))
                .map_err(|source| self.shared.damaged(*number, source))?;
        }
        Ok(Some(pages))
    }

    /// Takes back the memory of used pages.
    pub(in crate::run::restore) fn take_back(&self, pages: PlainPages) {
        self.spare.give(pages);
    }

    /// Appends the next bytes: of one page at most, and of one run of its decompressed bytes at
    /// most. Returns `false` at the end of the last chunk. Blocking.
    pub(in crate::run::restore) fn read(&mut self, stream: &mut Vec<u8>) -> Result<bool, RunError> {
        let before = stream.len();
        while stream.len() == before {
            let page = self
                .piece
                .as_ref()
                .and_then(|piece| Some((piece, piece.pages.page(piece.page)?)));
            let (Some((piece, page)), Some((plain, number))) = (page, &mut self.plain) else {
                if !self.next_piece()? {
                    return Ok(false);
                }
                continue;
            };
            let rest = &page[piece.within..];
            let last = piece.pages.is_last(piece.page);
            let rest_bytes = rest.len();
            let taken = plain
                .take(rest, last, stream)
                .map_err(|source| self.shared.damaged(*number, source))?;
            if let Some(piece) = &mut self.piece {
                match taken == rest_bytes {
                    true => (piece.page, piece.within) = (piece.page + 1, 0),
                    false => piece.within += taken,
                }
            }
        }
        Ok(true)
    }

    /// Stops the fetch. No more bytes are returned.
    pub(in crate::run::restore) fn close(&mut self) {
        (self.piece, self.plain, self.opening) = (None, None, None);
        // A later read must fail, and must not report the end of the stream.
        self.next_chunk = usize::MAX;
        self.fetch.abort();
    }

    /// Waits until the next piece is open. Returns `false` at the end of the last chunk.
    fn next_piece(&mut self) -> Result<bool, RunError> {
        if let Some(used) = self.piece.take() {
            self.spare.give(used.pages);
        }
        self.demand.add_permits(1);
        let opening = match &self.opening {
            Some(opening) => opening.recv().map_err(|_| panicked())??,
            None => None,
        };
        let Some(OpeningPiece {
            opened,
            chunk: number,
        }) = opening
        else {
            self.opening = None;
            return self.end().map(|()| false);
        };
        let pages = opened
            .recv()
            .map_err(|_| panicked())?
            .map_err(|source| self.shared.damaged(number, source))?;
        if self
            .plain
            .as_ref()
            .is_none_or(|(_, chunk)| *chunk != number)
        {
            self.end_chunk()?;
            let compressed = self.shared.manifest.compression == CompressionName::Zstd;
            let expected = self.shared.chunks[number].sealed();
            let plain = match self.shared.page_of(number) {
                0 => ChunkPlain::new(&expected, compressed)
                    .map_err(|source| self.shared.damaged(number, source))?,
                page => ChunkPlain::from_page(&expected, page),
            };
            self.plain = Some((plain, number));
        }
        self.piece = Some(OpenPiece {
            pages,
            page: 0,
            within: 0,
        });
        Ok(true)
    }

    /// Checks that all stream bytes of the chunk were returned.
    fn end_chunk(&mut self) -> Result<(), RunError> {
        let Some((plain, number)) = self.plain.take() else {
            return Ok(());
        };
        self.next_chunk = number + 1;
        plain
            .finish()
            .map_err(|source| self.shared.damaged(number, source))
    }

    fn end(&mut self) -> Result<(), RunError> {
        self.end_chunk()?;
        if self.next_chunk != self.shared.chunks.len() {
            let reason = "the fetch ended before the last chunk".to_owned();
            return Err(RunError::Damaged {
                key: self.shared.manifest.id.to_string(),
                reason,
            });
        }
        Ok(())
    }
}

impl Drop for PlainStream {
    fn drop(&mut self) {
        self.close();
    }
}

impl Checker {
    /// Checks pieces until the last one, a flaw, or the end of the reader.
    fn run(mut self) {
        loop {
            let checked = self.next();
            let more = matches!(checked, Ok(Some(_)));
            if self.opening.send(checked).is_err() || !more {
                return;
            }
        }
    }

    /// Returns the next piece, which is being opened; `None` at the end of the last chunk.
    fn next(&mut self) -> Checked {
        while let Some(piece) = self.pieces.blocking_recv() {
            let piece = piece?;
            let chunk = piece.chunk;
            let Some(pages) = self.take(piece)? else {
                // A head alone does not satisfy the request, so another piece may be fetched.
                self.demand.add_permits(1);
                continue;
            };
            let (sender, opened) = sync_channel(1);
            self.runtime
                .spawn_blocking(move || sender.send(pages.open()));
            return Ok(Some(OpeningPiece { opened, chunk }));
        }
        self.end().map(|()| None)
    }

    /// Returns the sealed pages of a piece, or `None` when the piece is a head alone.
    fn take(&mut self, piece: Piece) -> Result<Option<SealedPages>, RunError> {
        let number = piece.chunk;
        let shared = Arc::clone(&self.shared);
        let failed = |source| shared.damaged(number, source);
        if piece.first {
            self.end()?;
            let expected = shared.chunks[number].sealed();
            let identities = Arc::clone(&shared.identities);
            let page = shared.page_of(number);
            if page > 0 {
                let pieces = ChunkPieces::from_page(expected, &piece.bytes, page, identities)
                    .map_err(failed)?;
                self.sealed = Some((pieces, number));
                return Ok(None);
            }
            self.sealed = Some((
                ChunkPieces::new(expected, identities).map_err(failed)?,
                number,
            ));
        }
        let Some((pieces, _)) = &mut self.sealed else {
            return Err(panicked());
        };
        pieces.take(piece.bytes).map(Some).map_err(failed)
    }

    /// Checks that all pieces of the chunk arrived.
    fn end(&mut self) -> Result<(), RunError> {
        let Some((pieces, number)) = self.sealed.take() else {
            return Ok(());
        };
        pieces
            .finish()
            .map_err(|source| self.shared.damaged(number, source))
    }
}

fn panicked() -> RunError {
    RunError::defect("a thread that opens pages panicked")
}

/// Returns the ranges to read of each chunk, in order. A chunk with impossible sizes gives one
/// error.
fn wanted(
    shared: Arc<SealedSource>,
    pace: FetchPace,
) -> impl Iterator<Item = Result<(usize, Range<u64>), RunError>> {
    (shared.from.0..shared.chunks.len()).flat_map(move |number| {
        let ranges = piece_ranges_from(
            &shared.chunks[number].sealed(),
            shared.page_of(number),
            pace.pages,
        );
        let (ranges, error) = match ranges {
            Ok(ranges) => (Some(ranges), None),
            Err(source) => (None, Some(Err(shared.damaged(number, source)))),
        };
        error.into_iter().chain(
            ranges
                .into_iter()
                .flatten()
                .map(move |range| Ok((number, range))),
        )
    })
}

/// The context of a fetch.
struct Fetch {
    store: Arc<dyn StoreRead>,
    shared: Arc<SealedSource>,
    spare: Spare,
    pace: FetchPace,
}

impl Fetch {
    async fn get(&self, wanted: Result<(usize, Range<u64>), RunError>) -> Result<Piece, RunError> {
        let (chunk, range) = wanted?;
        let entry = &self.shared.chunks[chunk];
        let key = chunk_key(&self.shared.manifest, entry).ok_or_else(|| RunError::Damaged {
            key: entry.name.clone(),
            reason: "not the name of a chunk".into(),
        })?;
        let first = range.start == 0;
        let bytes = self.store.get_into(&key, range, self.spare.take()).await?;
        Ok(Piece {
            bytes,
            chunk,
            first,
        })
    }

    /// Fetches in order. With `asked`, fetches only as many pieces as were requested.
    async fn run(
        self,
        asked: Option<Arc<Semaphore>>,
        sender: mpsc::Sender<Result<Piece, RunError>>,
        mut stop: Stop,
    ) {
        let wanted = wanted(Arc::clone(&self.shared), self.pace);
        let mut pieces = stream::iter(wanted)
            .map(|wanted| self.get(wanted))
            .buffered(self.pace.ahead);
        loop {
            if let Some(asked) = &asked {
                tokio::select! {
                    permit = asked.acquire() => permit.into_iter().for_each(SemaphorePermit::forget),
                    () = stopped(&mut stop) => {}
                    () = sender.closed() => return,
                }
            }
            let piece = tokio::select! {
                piece = pieces.next() => piece,
                () = stopped(&mut stop) => Some(Err(RunError::Interrupted)),
                // The receiver was dropped, so no more pieces are wanted.
                () = sender.closed() => return,
            };
            let Some(piece) = piece else { return };
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_list_entries_and_stream_positions_convert_both_ways() {
        for (split_bytes, per_chunk, count) in [
            (1 << 30, 128, 300),
            (6 << 20, 1, 4),
            (9 << 20, 2, 7),
            (64 << 10, 1, 5),
        ] {
            let entries = Entries {
                split_bytes,
                per_chunk,
                count,
            };
            for entry in (0..count).map(ReadPoint) {
                let position = entries.position(entry);
                assert_eq!(entries.before(position), entry);
                if entry.0 > 0 {
                    assert_eq!(entries.before(position - 1), ReadPoint(entry.0 - 1));
                }
            }
            assert_eq!(entries.before(u64::MAX / 2), ReadPoint(count - 1));
        }
    }
}
