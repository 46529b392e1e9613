//! Restore: fetch, check, open, and hand the stream to the kernel or to a pipe.
//!
//! Before a byte is received the chain is planned from verified manifests, every chunk list is checked against its
//! hash, and a listing shows every chunk at its size. Then chunks are fetched ahead by ranges, in order, opened as they
//! come, and the stream is parsed once more on its way out.

use super::catalog::{Catalog, StoredBackup, chunk_key, find_gaps, get_pinned, read_catalog, read_chunks};
use super::transfer::{Stop, stopped};
use super::{RunError, error_chain};
use crate::keyring::KeyFile;
use crate::manifest::{ChunkEntry, CompressionName, Manifest, PRIVATE_BYTES_MAX, Private, parse_as};
use crate::model::{BackupId, DatasetName, Digest};
use crate::plan::restore::plan_restore;
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, ObjectStore};
use crate::stream::age_file::{PAGE_BYTES, TAG_BYTES};
use crate::stream::open::ChunkOpener;
use crate::stream::record::{StreamExpectation, StreamParser};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

mod receive;

pub use receive::restore_to_dataset;

/// Bytes of one ranged read.
const RANGE_BYTES: u64 = 8 << 20;
const RANGE_STEP: usize = 8 << 20;
/// Ranged reads under way: with the two that wait for the opener, 48 MiB at most.
const RANGES_MAX: usize = 4;
/// Which backup to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestorePoint {
    /// The newest.
    Newest,
    /// The one that holds the snapshot with this short name.
    Snapshot(String),
    /// This one.
    Id(BackupId),
}

/// A chain that was checked as far as it can be without fetching chunks.
pub struct RestoreSet {
    /// Its backups, the full first.
    pub backups: Vec<RestoreBackup>,
}

/// One backup of the chain.
pub struct RestoreBackup {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its chunks.
    pub chunks: Vec<ChunkEntry>,
    /// What is known of its source; `None` when `private.age` is damaged.
    pub private: Option<Private>,
}

/// Reads the catalog, finds the backup and checks its whole chain.
///
/// # Errors
/// [`RunError`] naming what is missing, damaged or not to be believed; nothing was received then.
pub async fn find_restore_set(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    keys: &KeyFile,
    point: &RestorePoint,
) -> Result<RestoreSet, RunError> {
    let catalog = read_catalog(store, dataset, &keys.trusted).await?;
    let target = find_target(store, &catalog, keys, point).await?;
    let known: Vec<(&Manifest, Digest)> =
        catalog.backups.iter().map(|backup| (&backup.manifest, backup.manifest_blake3)).collect();
    let chain = plan_restore(&known, &target)
        .map_err(|gap| RunError::refused(format!("{dataset}: {gap}"), "choose an older backup"))?;
    let mut backups = Vec::new();
    for manifest in chain {
        backups.push(load_backup(store, &catalog, manifest, keys).await?);
    }
    Ok(RestoreSet { backups })
}

/// Reads the catalog and checks this one backup, without the chain before it: for its bare stream.
///
/// # Errors
/// As for [`find_restore_set`].
pub async fn find_restore_backup(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    keys: &KeyFile,
    id: &BackupId,
) -> Result<RestoreBackup, RunError> {
    let catalog = read_catalog(store, dataset, &keys.trusted).await?;
    let backup = catalog.backup(id).ok_or_else(|| why_none(&catalog, Some(id)))?;
    load_backup(store, &catalog, &backup.manifest, keys).await
}

async fn load_backup(
    store: &dyn ObjectStore,
    catalog: &Catalog,
    manifest: &Manifest,
    keys: &KeyFile,
) -> Result<RestoreBackup, RunError> {
    let chunks = read_chunks(store, manifest).await?;
    if let Some(gap) = catalog.backup(&manifest.id).and_then(|backup| find_gaps(backup, &chunks).next()) {
        return Err(gap);
    }
    let private = match read_private(store, manifest, keys).await {
        Ok(private) => Some(private),
        Err(error) if error.is_damage() => {
            tracing::warn!(error = error_chain(&error), "going on without it: the snapshot's name is lost, no data");
            None
        }
        Err(error) => return Err(error),
    };
    Ok(RestoreBackup { manifest: manifest.clone(), chunks, private })
}

async fn find_target(
    store: &dyn ObjectStore,
    catalog: &Catalog,
    keys: &KeyFile,
    point: &RestorePoint,
) -> Result<BackupId, RunError> {
    let dataset = &catalog.dataset;
    match point {
        RestorePoint::Id(id) => match catalog.backup(id) {
            Some(backup) => Ok(backup.manifest.id.clone()),
            None => Err(why_none(catalog, Some(id))),
        },
        RestorePoint::Newest => newest(catalog),
        RestorePoint::Snapshot(short) => {
            for StoredBackup { manifest, .. } in catalog.backups.iter().rev() {
                let private = match read_private(store, manifest, keys).await {
                    Ok(private) => private,
                    Err(error) if error.is_damage() => {
                        tracing::warn!(id = %manifest.id, error = error_chain(&error), "its snapshot's name cannot be read");
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                if private.snapshot_name.rsplit_once('@').is_some_and(|(_, name)| name == short) {
                    return Ok(manifest.id.clone());
                }
            }
            let what = format!("{} has no backup of {dataset}@{short}", store.url());
            Err(RunError::refused(what, "`zfs-backup show --include-remote` lists what there is"))
        }
    }
}

/// The newest, unless something newer was there or it is not clear whose is meant: nothing is rolled back silently.
fn newest(catalog: &Catalog) -> Result<BackupId, RunError> {
    let dataset = &catalog.dataset;
    let newest = catalog.newest().ok_or_else(|| why_none(catalog, None))?;
    let id = &newest.manifest.id;
    if catalog.origins() > 1 {
        return Err(RunError::refused(
            format!("backups of {} datasets lie under the name {dataset}", catalog.origins()),
            "choose one with --backup ID; `zfs-backup show --include-remote` lists them",
        ));
    }
    // Another attempt at the same snapshot is not newer, such as one that failed between the last signature and the
    // manifest.
    let is_newer = |other: &BackupId| other > id && other.snapshot_guid() != id.snapshot_guid();
    match catalog.lost().filter(|attempt| is_newer(&attempt.id)).max_by(|a, b| a.id.cmp(&b.id)) {
        None => Ok(id.clone()),
        Some(lost) => Err(RunError::refused(
            format!(
                "{dataset}: {} is newer than the newest whole backup, and its manifest is missing or not believed",
                lost.id
            ),
            format!("look into it with verify-checksums; to take the older one: --backup {id}"),
        )),
    }
}

/// "There is none" and "there is one that is not believed" are different answers.
fn why_none(catalog: &Catalog, id: Option<&BackupId>) -> RunError {
    let dataset = &catalog.dataset;
    let disbelieved = catalog.disbelieved().find(|(other, _)| id.is_none_or(|id| id == *other));
    if let Some((other, error)) = disbelieved {
        return not_believed(dataset, other, error);
    }
    let attempts = catalog.attempts.len();
    let what = match id {
        Some(id) => format!("there is no whole backup {id} of {dataset}"),
        None if attempts > 0 => format!("there is no whole backup of {dataset}, only {attempts} unfinished"),
        None => format!("there is no backup of {dataset}"),
    };
    RunError::refused(what, "check the name, bucket and prefix; `zfs-backup show --include-remote` lists what there is")
}

fn not_believed(dataset: &DatasetName, id: &BackupId, error: &RunError) -> RunError {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest).to_string();
    let cause = match error {
        RunError::Manifest { source, .. } => error_chain(source),
        other => error_chain(other),
    };
    if error.is_damage() {
        let advice = "it was changed, made with other keys, or by somebody else";
        return RunError::Damaged { key, reason: format!("not believed: {cause} ({advice})") };
    }
    RunError::refused(format!("{key}: {cause}"), "restore it with the version of zfs-backup that made it")
}

async fn read_private(store: &dyn ObjectStore, manifest: &Manifest, keys: &KeyFile) -> Result<Private, RunError> {
    let key = ObjectKey::backup(&manifest.dataset, &manifest.id, &BackupObject::Private);
    let damaged = |reason: String| RunError::Damaged { key: key.to_string(), reason };
    let sealed = get_pinned(store, &key, manifest.files.private, PRIVATE_BYTES_MAX).await?;
    let identities = keys.identities.iter().map(|identity| identity as &dyn age::Identity);
    let open = || -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let mut plain = Vec::new();
        let reader = age::Decryptor::new(&sealed[..])?.decrypt(identities)?;
        reader.take(PRIVATE_BYTES_MAX).read_to_end(&mut plain)?;
        Ok(plain)
    };
    let plain = open().map_err(|error| {
        RunError::refused(format!("open {key}: {error}"), "the identity must be one that this backup was sealed to")
    })?;
    let private: Private = parse_as(&plain, "private").map_err(|error| damaged(error_chain(&error)))?;
    if private.id == manifest.id { Ok(private) } else { Err(damaged(format!("it is of backup {}", private.id))) }
}

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
pub fn open_stream(
    store: Arc<dyn ObjectStore>,
    backup: &RestoreBackup,
    identities: &[age::x25519::Identity],
) -> (RestoreReader, FailureSlot) {
    open_stream_until(store, backup, identities, tokio::sync::watch::channel(false).1)
}

/// As [`open_stream`]; once a stop is asked for, the reader fails with [`RunError::Interrupted`].
pub fn open_stream_until(
    store: Arc<dyn ObjectStore>,
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
    tokio::spawn(fetch(store, Arc::clone(&keys), sender, stop));
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

/// Writes the bare stream of one backup to `output`. Blocking work runs beside the runtime.
///
/// # Errors
/// [`RunError`]; what was written before is authentic, and is not a whole stream.
pub async fn restore_to_writer(
    store: Arc<dyn ObjectStore>,
    backup: &RestoreBackup,
    keys: &KeyFile,
    mut output: Box<dyn std::io::Write + Send>,
) -> Result<u64, RunError> {
    let (mut reader, failure) = open_stream(store, backup, &keys.identities);
    let subject = backup.manifest.id.to_string();
    let copied =
        blocking(move || std::io::copy(&mut reader, &mut output).and_then(|bytes| output.flush().map(|()| bytes)))
            .await?;
    match (take_failure(&failure), copied) {
        (Some(error), _) => Err(error),
        (None, Err(source)) => Err(RunError::File { operation: "write the stream of", path: subject, source }),
        (None, Ok(bytes)) => Ok(bytes),
    }
}

fn take_failure(failure: &FailureSlot) -> Option<RunError> {
    failure.lock().unwrap_or_else(PoisonError::into_inner).take()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| RunError::refused("a thread of the restore panicked", "this is a defect: please report it"))
}
