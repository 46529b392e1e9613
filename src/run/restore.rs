//! Restore: fetch, check, open, and hand the stream to the kernel or to a pipe.
//!
//! Before a byte is received the chain is planned from verified manifests, every chunk list is checked against its
//! hash, and a listing shows every chunk at its size. Then chunks are fetched ahead by ranges, in order, opened as they
//! come, and the stream is parsed once more on its way out.

use super::catalog::{
    Catalog, StoredBackup, chunk_key, explain_fetch, find_gaps, get_needed, read_catalog, read_chunks,
};
use super::{RunError, error_chain};
use crate::keyring::KeyFile;
use crate::manifest::{ChunkEntry, CompressionName, Manifest, Private, parse_strict};
use crate::model::{BackupId, DatasetName, Digest, SnapshotName};
use crate::plan::restore::plan_restore;
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, ObjectStore};
use crate::stream::open::ChunkOpener;
use crate::stream::record::{StreamExpectation, StreamParser};
use crate::zfs::{ReceiveRequest, Zfs, ZfsError};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Bytes of one ranged read.
const RANGE_BYTES: u64 = 8 << 20;
/// Ranged reads under way: with the two that wait for the opener, 48 MiB at most.
const RANGES_MAX: usize = 4;
/// `private.age` holds properties: far less.
const PRIVATE_BYTES_MAX: u64 = 16 << 20;

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
    /// What is known of its source.
    pub private: Private,
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
        let chunks = read_chunks(store, manifest).await?;
        if let Some(gap) = catalog.backup(&manifest.id).and_then(|backup| find_gaps(backup, &chunks).next()) {
            return Err(gap);
        }
        let private = read_private(store, manifest, keys).await?;
        backups.push(RestoreBackup { manifest: manifest.clone(), chunks, private });
    }
    Ok(RestoreSet { backups })
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
        RestorePoint::Newest => match catalog.newest() {
            Some(backup) => Ok(backup.manifest.id.clone()),
            None => Err(why_none(catalog, None)),
        },
        RestorePoint::Snapshot(short) => {
            for StoredBackup { manifest, .. } in catalog.backups.iter().rev() {
                let private = read_private(store, manifest, keys).await?;
                if private.snapshot_name.rsplit_once('@').is_some_and(|(_, name)| name == short) {
                    return Ok(manifest.id.clone());
                }
            }
            let what = format!("{} has no backup of {dataset}@{short}", store.url());
            Err(RunError::refused(what, "`zfs-backup show --include-remote` lists what there is"))
        }
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
    let sealed = get_needed(store, &key, PRIVATE_BYTES_MAX).await?;
    let actual = Digest::of(&sealed);
    if actual != manifest.files.private {
        return Err(damaged(format!("its BLAKE3 is {actual}, and the manifest says {}", manifest.files.private)));
    }
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
    parse_strict(&plain).map_err(|error| damaged(error.to_string()))
}

/// The stream of one backup, for a blocking reader. Every byte that it gives was authenticated; at its end the whole
/// stream was parsed and is the one that the manifest describes.
pub struct RestoreReader {
    pieces: mpsc::Receiver<Result<Piece, RunError>>,
    parser: Option<StreamParser>,
    expected_bytes: u64,
    chunks: Arc<RestoreBackupKeys>,
    opener: Option<(ChunkOpener, usize)>,
    plain: Vec<u8>,
    given: usize,
    next_chunk: usize,
    failed: bool,
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
    let (sender, pieces) = mpsc::channel(1);
    let keys = Arc::new(RestoreBackupKeys {
        manifest: backup.manifest.clone(),
        chunks: backup.chunks.clone(),
        identities: identities.into(),
    });
    tokio::spawn(fetch(store, Arc::clone(&keys), sender));
    let base_guid = backup.manifest.base.as_ref().map(|base| base.guid);
    let expectation = StreamExpectation { snapshot_guid: backup.manifest.snapshot.guid, base_guid };
    let failure = FailureSlot::default();
    let reader = RestoreReader {
        pieces,
        parser: backup.manifest.send.checked.then(|| StreamParser::new(expectation)),
        expected_bytes: backup.manifest.stream_bytes,
        chunks: keys,
        opener: None,
        plain: Vec::new(),
        given: 0,
        next_chunk: 0,
        failed: false,
        failure: Arc::clone(&failure),
    };
    (reader, failure)
}

fn ranges(keys: &RestoreBackupKeys) -> Vec<(usize, Range<u64>)> {
    let of_chunk = |(number, chunk): (usize, &ChunkEntry)| {
        let (bytes, starts) = (chunk.sealed_bytes, (0..chunk.sealed_bytes).step_by(RANGE_BYTES as usize));
        starts.map(move |start| (number, start..(start + RANGE_BYTES).min(bytes))).collect::<Vec<_>>()
    };
    keys.chunks.iter().enumerate().flat_map(of_chunk).collect()
}

async fn fetch(
    store: Arc<dyn ObjectStore>,
    keys: Arc<RestoreBackupKeys>,
    sender: mpsc::Sender<Result<Piece, RunError>>,
) {
    let get = |(chunk, range): (usize, Range<u64>)| {
        let (store, keys) = (Arc::clone(&store), Arc::clone(&keys));
        async move {
            let entry = &keys.chunks[chunk];
            let key = chunk_key(&keys.manifest, entry)
                .ok_or_else(|| RunError::Damaged { key: entry.name.clone(), reason: "not a chunk's name".into() })?;
            let bytes = store.get(&key, Some(range), RANGE_BYTES).await.map_err(|error| explain_fetch(&key, error))?;
            Ok(Piece { bytes, chunk })
        }
    };
    let mut pieces = stream::iter(ranges(&keys)).map(get).buffered(RANGES_MAX);
    while let Some(piece) = pieces.next().await {
        let failed = piece.is_err();
        if sender.send(piece).await.is_err() || failed {
            return;
        }
    }
}

impl RestoreReader {
    fn fill(&mut self) -> Result<bool, RunError> {
        self.plain.clear();
        self.given = 0;
        while self.plain.is_empty() {
            let Some(piece) = self.pieces.blocking_recv() else {
                return self.end().map(|()| false);
            };
            self.take(piece?)?;
        }
        Ok(true)
    }

    fn take(&mut self, piece: Piece) -> Result<(), RunError> {
        let keys = Arc::clone(&self.chunks);
        let key_of = |chunk: usize| {
            chunk_key(&keys.manifest, &keys.chunks[chunk]).map_or_else(String::new, |key| key.to_string())
        };
        if self.opener.as_ref().is_none_or(|(_, chunk)| *chunk != piece.chunk) {
            self.end_chunk()?;
            let compressed = keys.manifest.compression == CompressionName::Zstd;
            let opener = ChunkOpener::new(keys.chunks[piece.chunk].sealed(), compressed, Arc::clone(&keys.identities))
                .map_err(|source| RunError::Chunk { key: key_of(piece.chunk), source })?;
            self.opener = Some((opener, piece.chunk));
        }
        if let Some((opener, chunk)) = &mut self.opener {
            opener
                .write(&piece.bytes, &mut self.plain)
                .map_err(|source| RunError::Chunk { key: key_of(*chunk), source })?;
        }
        if let Some(parser) = &mut self.parser {
            let snapshot = keys.manifest.id.to_string();
            parser.feed(&self.plain).map_err(|source| RunError::Stream { snapshot, source })?;
        }
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), RunError> {
        let Some((opener, chunk)) = self.opener.take() else { return Ok(()) };
        self.next_chunk = chunk + 1;
        let key = chunk_key(&self.chunks.manifest, &self.chunks.chunks[chunk])
            .map_or_else(String::new, |key| key.to_string());
        opener.finish().map_err(|source| RunError::Chunk { key, source })
    }

    fn end(&mut self) -> Result<(), RunError> {
        self.end_chunk()?;
        let id = self.chunks.manifest.id.to_string();
        let cut = |reason: &str| RunError::Damaged { key: id.clone(), reason: reason.to_owned() };
        if self.next_chunk != self.chunks.chunks.len() {
            return Err(cut("the fetch ended before the last chunk"));
        }
        if let Some(parser) = self.parser.take() {
            let summary = parser.finish().map_err(|source| RunError::Stream { snapshot: id.clone(), source })?;
            if summary.bytes != self.expected_bytes {
                return Err(cut("the stream has another length than the manifest says"));
            }
        }
        Ok(())
    }
}

impl Read for RestoreReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // What would come next does not follow from what came before.
        if self.failed {
            return Err(std::io::Error::new(ErrorKind::InvalidData, "the stream failed before"));
        }
        if self.given == self.plain.len() {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    self.failed = true;
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

/// Receives a chain into a new dataset, unmounted, and checks that the kernel made the very snapshots.
///
/// # Errors
/// [`RunError`]; when the full fails nothing half-received is left behind.
pub async fn restore_to_dataset(
    store: Arc<dyn ObjectStore>,
    set: &RestoreSet,
    keys: &KeyFile,
    zfs: Arc<dyn Zfs>,
    target: &DatasetName,
) -> Result<Vec<SnapshotName>, RunError> {
    check_target(&*zfs, target)?;
    let mut received = Vec::new();
    for backup in &set.backups {
        let snapshot = target_snapshot(target, &backup.private)?;
        let (mut reader, failure) = open_stream(Arc::clone(&store), backup, &keys.identities);
        let request = ReceiveRequest {
            target: snapshot.clone(),
            force: false,
            resumable: false,
            origin: None,
            properties: Default::default(),
        };
        let receiver = Arc::clone(&zfs);
        let result = blocking(move || receiver.receive(&request, &mut reader)).await?;
        match (take_failure(&failure), result) {
            (Some(error), _) => return Err(error),
            (None, Err(error)) => return Err(explain_receive(target, error)),
            (None, Ok(())) => check_received(&*zfs, &snapshot, backup)?,
        }
        received.push(snapshot);
    }
    Ok(received)
}

fn target_snapshot(target: &DatasetName, private: &Private) -> Result<SnapshotName, RunError> {
    let short = private.snapshot_name.rsplit_once('@').map_or("restored", |(_, short)| short);
    target.snapshot(short).map_err(|error| RunError::refused(error.to_string(), "choose a shorter target"))
}

fn check_target(zfs: &dyn Zfs, target: &DatasetName) -> Result<(), RunError> {
    if zfs.dataset(target)?.is_some() {
        let what = format!("{target} exists already, and restoring over a dataset would lose what it holds");
        return Err(RunError::refused(what, "restore into a name that does not exist yet"));
    }
    let parent = target.parent().ok_or_else(|| {
        RunError::refused(format!("{target} is a pool's name"), "name a dataset inside an imported pool: POOL/NAME")
    })?;
    match zfs.dataset(&parent)? {
        Some(_) => Ok(()),
        None => Err(RunError::refused(
            format!("{parent}, the parent of {target}, does not exist"),
            "create it, or choose another target",
        )),
    }
}

fn explain_receive(target: &DatasetName, error: ZfsError) -> RunError {
    tracing::debug!(%target, "receive failed");
    RunError::Zfs(error)
}

fn check_received(zfs: &dyn Zfs, snapshot: &SnapshotName, backup: &RestoreBackup) -> Result<(), RunError> {
    let guid = backup.manifest.snapshot.guid;
    let there = zfs.snapshots(snapshot.dataset())?.iter().any(|other| other.name == *snapshot && other.guid == guid);
    if there {
        return Ok(());
    }
    let reason = format!("the received snapshot does not have the guid {guid}");
    Err(RunError::Damaged { key: snapshot.to_string(), reason })
}

fn take_failure(failure: &FailureSlot) -> Option<RunError> {
    failure.lock().unwrap_or_else(PoisonError::into_inner).take()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| RunError::refused("a thread of the restore panicked", "this is a defect: please report it"))
}
