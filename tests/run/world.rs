//! [`World`]: a dataset with a few files, an empty store, keys and a state folder, and what tests
//! do with them.

use bytes::Bytes;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::TempDir;
use zfs_backup::catalog::{Catalog, read_catalog, read_chunks};
use zfs_backup::config::{RawMode, SnapshotSource};
use zfs_backup::keyring::KeyFile;
use zfs_backup::manifest::{ChunkEntry, Manifest};
use zfs_backup::model::{BackupId, DatasetName, SnapshotName};
use zfs_backup::plan::send::{LifecycleRules, RequestedKind};
use zfs_backup::run::RunError;
use zfs_backup::run::backup::{
    BackupEnd, BackupEnv, BackupRun, BackupSettings, CommittedBackup, StoreRole, back_up,
};
use zfs_backup::run::clock::ClockCheck;
use zfs_backup::run::keys::WriterKeys;
use zfs_backup::run::pool::select::Selected;
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::run::prune::PruneEnv;
use zfs_backup::run::restore::{
    ReceiveOptions, RestorePoint, RestoreSet, find_restore_set, restore_to_dataset,
    restore_to_writer,
};
use zfs_backup::run::transfer::{Stop, TransferPool};
use zfs_backup::run::verify::{VerifyReport, verify_dataset};
use zfs_backup::store::key::backup_prefix;
use zfs_backup::store::memory::{MemoryStore, Operation};
use zfs_backup::store::{ObjectStore, StoreInfo, StoreTraits};
use zfs_backup::stream::seal::ChunkCompression;
use zfs_backup::zfs::fake::FakeZfs;
use zfs_backup::zfs::{DatasetType, SendFlags, SendRequest, Zfs, ZfsRead, ZfsSend};

pub(crate) const SPLIT_BYTES: u64 = 64 * 1024;
pub(crate) const PART_BYTES: usize = 16 * 1024;
/// The prefix of the names of own snapshots.
pub(crate) const SNAPSHOT_PREFIX: &str = "zfs-backup_";
/// What [`BackupSettings`] of a world ask of the kernel.
const FLAGS: SendFlags = SendFlags {
    raw: false,
    compressed: true,
    embedded: false,
    large_blocks: true,
};

/// What `[backup-lifecycle]` says when it says nothing.
pub(crate) const LIFECYCLE: LifecycleRules = LifecycleRules {
    incrementals_percent_max: 50,
    full_age_max: None,
    incrementals_max: None,
    auto_full_bytes_max: 100 << 30,
    levels: None,
};

/// One host, one store.
pub(crate) struct World {
    pub(crate) zfs: FakeZfs,
    pub(crate) store: MemoryStore,
    pub(crate) keys: KeyFile,
    pub(crate) writer: WriterKeys,
    pub(crate) settings: BackupSettings,
    pub(crate) dataset: DatasetName,
    _state: TempDir,
}

pub(crate) fn name(text: &str) -> DatasetName {
    text.parse().unwrap()
}

pub(crate) fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

/// Bytes that do not compress, always the same for the same seed.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut data);
    data
}

pub(crate) fn memory_store(part_bytes: usize) -> MemoryStore {
    MemoryStore::with_traits(StoreTraits {
        part_bytes,
        concurrency: 3,
        conditional_put: true,
        holds_parts: false,
    })
}

/// Keys whose keyring is a stand-in: whoever makes backups never opens it, and scrypt takes a
/// second.
pub(crate) fn quick_keys() -> (KeyFile, WriterKeys) {
    let file = KeyFile::generate().unwrap();
    let writer =
        WriterKeys::from_keyring(&file, Bytes::from_static(b"a keyring that nobody opens\n"))
            .unwrap();
    (file, writer)
}

impl World {
    /// With a dataset of some 270 KB whose newest snapshot is ours.
    pub(crate) fn new() -> Self {
        let (keys, writer) = quick_keys();
        Self::with_keys(keys, writer)
    }

    pub(crate) fn with_keys(keys: KeyFile, writer: WriterKeys) -> Self {
        let world = Self::empty(keys, writer);
        let text = b"the same line again and again\n".repeat(600);
        for (object, bytes) in [
            (7, noise(1, 150_000)),
            (8, noise(2, 100_001)),
            (9, text),
            (11, b"five".to_vec()),
        ] {
            world.zfs.write_file(&world.dataset, object, &bytes);
        }
        world.snapshot();
        world
    }

    pub(crate) fn empty(keys: KeyFile, writer: WriterKeys) -> Self {
        let (zfs, store, dataset) = (FakeZfs::new(), memory_store(PART_BYTES), name("tank/a b"));
        zfs.create(&dataset, DatasetType::Filesystem);
        plant_keyring(&store, &writer);
        let state = TempDir::new().unwrap();
        let settings = BackupSettings {
            split_bytes: SPLIT_BYTES,
            compression: ChunkCompression::None,
            raw: RawMode::Auto,
            compressed: true,
            embedded: false,
            source: SnapshotSource::Own,
            snapshot_prefix: SNAPSHOT_PREFIX.into(),
            lifecycle: LIFECYCLE,
            state_dir: state.path().to_owned(),
            host: "test-host".into(),
            restart: false,
            window: None,
            until: None,
            skip_unchanged: false,
        };
        Self {
            zfs,
            store,
            keys,
            writer,
            settings,
            dataset,
            _state: state,
        }
    }

    pub(crate) fn snapshot(&self) -> SnapshotName {
        take_snapshots(
            &self.zfs,
            std::slice::from_ref(&self.dataset),
            SNAPSHOT_PREFIX,
            now(),
        )
        .unwrap()
        .remove(0)
    }

    pub(crate) fn newest_snapshot(&self) -> SnapshotName {
        self.zfs
            .snapshots(&self.dataset)
            .unwrap()
            .pop()
            .unwrap()
            .name
    }

    pub(crate) fn env(&self) -> BackupEnv {
        self.env_with(Arc::new(self.zfs.clone()), never())
    }

    pub(crate) fn env_with(&self, zfs: Arc<dyn Zfs>, stop: Stop) -> BackupEnv {
        BackupEnv {
            zfs,
            store: Arc::new(self.store.clone()),
            role: StoreRole::Remote,
            other: None,
            listed: None,
            pool: TransferPool::default(),
            keys: self.writer.clone(),
            settings: self.settings.clone(),
            now,
            planned: Arc::new(|_| {}),
            progress: Arc::new(|_| {}),
            stop,
        }
    }

    pub(crate) fn prune_env(&self, now: Timestamp) -> PruneEnv {
        PruneEnv {
            store: self.shared_store(),
            signing: self.writer.signing.clone(),
            trusted: self.keys.trusted.clone(),
            state_dir: self.settings.state_dir.clone(),
            resume_days: 14,
            pools: BTreeMap::new(),
            now,
            clock: ClockCheck::vouched_at(now),
            stop: never(),
        }
    }

    pub(crate) async fn try_back_up(&self) -> Result<BackupRun, RunError> {
        self.try_back_up_as(RequestedKind::Full).await
    }

    pub(crate) async fn try_back_up_as(
        &self,
        requested: RequestedKind,
    ) -> Result<BackupRun, RunError> {
        back_up(&self.env(), &self.selected(), requested).await
    }

    /// The dataset as the configuration means it, under its own name in the store.
    pub(crate) fn selected(&self) -> Selected {
        let dataset = self.zfs.dataset(&self.dataset).unwrap().unwrap();
        Selected {
            dataset,
            stored: self.dataset.clone(),
        }
    }

    pub(crate) async fn back_up(&self) -> CommittedBackup {
        committed(self.try_back_up().await.unwrap())
    }

    /// The bytes that ZFS sends for the newest snapshot.
    pub(crate) fn stream(&self) -> Vec<u8> {
        let request = SendRequest {
            snapshot: self.newest_snapshot(),
            base: None,
            flags: FLAGS,
            resume: None,
        };
        let mut sending = self.zfs.send(&request).unwrap();
        let mut bytes = Vec::new();
        sending.reader().read_to_end(&mut bytes).unwrap();
        sending.finish().unwrap();
        bytes
    }

    pub(crate) fn shared_store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(self.store.clone())
    }

    pub(crate) async fn catalog(&self) -> Catalog {
        read_catalog(&self.store, &self.dataset, &self.keys.trusted)
            .await
            .unwrap()
    }

    pub(crate) async fn verify(&self) -> VerifyReport {
        verify_dataset(&self.store, &self.dataset, &self.keys.trusted)
            .await
            .unwrap()
    }

    pub(crate) async fn find(&self, point: &RestorePoint) -> Result<RestoreSet, RunError> {
        find_restore_set(&[self.shared_store()], &self.dataset, &self.keys, point).await
    }

    /// The newest backup's stream, or why there is none; with what was written in any case.
    pub(crate) async fn restore(&self) -> (Vec<u8>, Result<u64, RunError>) {
        let set = match self.find(&RestorePoint::Newest).await {
            Ok(set) => set,
            Err(error) => return (Vec::new(), Err(error)),
        };
        let output = SharedBytes::default();
        let to = Box::new(output.clone());
        let result = restore_to_writer(&set.backups[0], &self.keys, to).await;
        (output.take(), result)
    }

    pub(crate) async fn restore_into(
        &self,
        target: &DatasetName,
    ) -> Result<Vec<SnapshotName>, RunError> {
        let set = self.find(&RestorePoint::Newest).await?;
        let zfs = Arc::new(self.zfs.clone());
        Ok(restore_to_dataset(
            &set,
            &self.keys,
            zfs,
            target,
            &ReceiveOptions::default(),
            never(),
        )
        .await?
        .snapshots)
    }

    /// Restores to bytes and holds them against what ZFS sends.
    pub(crate) async fn assert_restores(&self) {
        let (bytes, result) = self.restore().await;
        assert_eq!(result.unwrap(), bytes.len() as u64);
        assert!(
            bytes == self.stream(),
            "the restored stream is another one than was sent"
        );
    }

    /// That a failed or refused restore left nothing behind.
    pub(crate) fn assert_not_received(&self, target: &DatasetName) {
        assert!(
            self.zfs.dataset(target).unwrap().is_none(),
            "{target} is there"
        );
        assert!(
            self.zfs.receive_point(target).is_none(),
            "{target} is half there"
        );
    }

    pub(crate) fn assert_no_holds(&self) {
        for snapshot in self.zfs.snapshots(&self.dataset).unwrap() {
            assert_eq!(
                self.zfs.holds(&snapshot.name).unwrap(),
                BTreeMap::new(),
                "holds on {}",
                snapshot.name
            );
        }
    }

    /// That nothing is kept in the pool but for what the next run finds: an upload that this host's
    /// journal will go on with, or a backup that was committed.
    pub(crate) fn assert_pins_are_known(&self) {
        let unended = zfs_backup::state::journal::unended(
            &self.settings.state_dir,
            &self.store.known(),
            &self.dataset,
        );
        let (unended, manifests) = (unended.unwrap(), self.manifest_keys());
        for id in zfs_backup::run::pool::pins::pinned(&self.zfs, &self.dataset).unwrap() {
            let is_committed = manifests.iter().any(|key| key.contains(id.as_str()));
            assert!(
                is_committed || unended.contains(&id),
                "{id} is kept for nobody"
            );
        }
    }

    pub(crate) async fn chunks(&self, manifest: &Manifest) -> Vec<ChunkEntry> {
        read_chunks(&self.store, manifest).await.unwrap()
    }

    /// Keys of objects that are a manifest.
    pub(crate) fn manifest_keys(&self) -> Vec<String> {
        self.store
            .keys()
            .into_iter()
            .filter(|key| key.ends_with("/manifest.json"))
            .collect()
    }
}

/// The key of an object of a backup.
pub(crate) fn key_of(manifest: &Manifest, object: &str) -> String {
    format!("{}{object}", backup_prefix(&manifest.dataset, &manifest.id))
}

/// Returns the last backup that a run committed.
pub(crate) fn committed(run: BackupRun) -> CommittedBackup {
    all_committed(run).pop().unwrap()
}

/// Returns all backups that a run committed, at least one.
pub(crate) fn all_committed(run: BackupRun) -> Vec<CommittedBackup> {
    match run.end {
        Ok(BackupEnd::UpToDate(id)) => {
            assert!(!run.committed.is_empty(), "up to date with {id}");
            run.committed
        }
        Ok(BackupEnd::Unchanged { id, .. }) => panic!("unchanged since {id}"),
        Ok(BackupEnd::Paused(paused)) => panic!("{} pauses: {}", paused.id, paused.why),
        Err(error) => panic!("{error}"),
    }
}

/// Returns the stored backup of the newest snapshot if the run had nothing to do.
pub(crate) fn up_to_date(run: &BackupRun) -> Option<&BackupId> {
    match &run.end {
        Ok(BackupEnd::UpToDate(id)) if run.committed.is_empty() => Some(id),
        _ => None,
    }
}

/// Nobody ever asks to stop.
pub(crate) fn never() -> Stop {
    tokio::sync::watch::channel(false).1
}

pub(crate) fn plant_keyring(store: &MemoryStore, writer: &WriterKeys) {
    if let Some(keyring) = &writer.keyring {
        store.plant(&main_keyring_key(writer), keyring.bytes.clone());
    }
}

pub(crate) fn main_keyring_key(writer: &WriterKeys) -> String {
    format!(
        "@zfs-backup/keys/{}/0001.age",
        writer.keyring.as_ref().unwrap().tag
    )
}

/// Whether a call can change what the store holds.
pub(crate) fn is_put(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::PutNew | Operation::PutPart | Operation::Finish | Operation::Create
    )
}

/// A writer that a test can look into while somebody else has it.
#[derive(Clone, Default)]
pub(crate) struct SharedBytes(Arc<Mutex<Vec<u8>>>);

impl SharedBytes {
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::io::Write for SharedBytes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
