//! [`Yard`]: signed backups of tiny chunks, put straight into a store in the order of a real
//! upload, and prunes of them by one of two hosts. What is sealed in a chunk does not matter here:
//! whether it is still there does.

use crate::two_hosts::state_folder;
use crate::world::{memory_store, never, noise, quick_keys};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::catalog::{StoredBackup, read_catalog, read_chunks, read_pruned};
use zfs_backup::config::RetentionRules;
use zfs_backup::keyring::KeyFile;
use zfs_backup::manifest::{
    BaseRef, ChainPlace, ChunkEntry, ChunkList, ChunkListRef, CompressionName, Files, HeadEntry,
    LiveEntry, Manifest, Origin, Receipt, ReceiptEntry, SendInfo, SnapshotRef, Started,
    to_stored_bytes,
};
use zfs_backup::model::{BackupId, BackupKind, DatasetName, Digest, Guid};
use zfs_backup::plan::restore::plan_restore;
use zfs_backup::run::RunError;
use zfs_backup::run::clock::ClockCheck;
use zfs_backup::run::keys::WriterKeys;
use zfs_backup::run::prune::{
    PruneEnv, PruneOutcome, PruneTask, PruneView, SecondaryStore, prune_dataset, read_view,
};
use zfs_backup::run::transfer::Stop;
use zfs_backup::sign::SignedType;
use zfs_backup::state::journal::AttemptJournal;
use zfs_backup::store::key::{BackupObject, object_name};
use zfs_backup::store::memory::MemoryStore;
use zfs_backup::store::{Evidence, ObjectKey, ObjectStore, StoreError};

const STREAM_BYTES: u64 = 400;
const SPLIT_BYTES: u64 = 200;
pub(crate) const RESUME_DAYS: u32 = 3;

pub(crate) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(crate) fn hours(count: i64) -> i64 {
    count * 3600
}

pub(crate) fn later(time: Timestamp, seconds: i64) -> Timestamp {
    Timestamp::from_second(time.as_second() + seconds).unwrap()
}

/// A store that two hosts of one keyring share.
pub(crate) struct Yard {
    pub(crate) store: MemoryStore,
    pub(crate) keys: KeyFile,
    pub(crate) writer: WriterKeys,
    pub(crate) dataset: DatasetName,
    pub(crate) clock: Timestamp,
    /// State folders, and how far the clocks of their hosts are off.
    pub(crate) hosts: Vec<(TempDir, i64)>,
    next: u64,
}

impl Yard {
    pub(crate) fn new() -> Self {
        let (keys, writer) = quick_keys();
        Self::with_keys(keys, writer)
    }

    pub(crate) fn with_keys(keys: KeyFile, writer: WriterKeys) -> Self {
        let yard = Self {
            store: memory_store(64 * 1024),
            keys,
            writer,
            dataset: "tank/a".parse().unwrap(),
            clock: at("2026-01-01T00:00:00Z"),
            hosts: vec![(state_folder(), 0), (state_folder(), 0)],
            next: 0,
        };
        yard.store.set_clock(Some(yard.clock));
        yard
    }

    pub(crate) fn wait(&mut self, seconds: i64) {
        self.clock = later(self.clock, seconds);
        self.store.set_clock(Some(self.clock));
    }

    pub(crate) fn days(&mut self, days: i64) {
        self.wait(days * 86_400);
    }

    pub(crate) fn now(&self, host: usize) -> Timestamp {
        later(self.clock, self.hosts[host].1)
    }

    pub(crate) fn state(&self, host: usize) -> &Path {
        self.hosts[host].0.path()
    }

    pub(crate) fn origin(host: usize) -> Origin {
        Origin {
            dataset_guid: Guid(100 + host as u64),
            pool_guid: Guid(7),
        }
    }

    /// Uploads a full, or an incremental that follows from `base`, as a run of that host would.
    pub(crate) async fn upload(
        &mut self,
        host: usize,
        base: Option<&BackupId>,
    ) -> Result<BackupId, RunError> {
        let store: Arc<dyn ObjectStore> = Arc::new(self.store.clone());
        self.upload_to(&*store, host, base).await
    }

    pub(crate) async fn upload_to(
        &mut self,
        store: &dyn ObjectStore,
        host: usize,
        base: Option<&BackupId>,
    ) -> Result<BackupId, RunError> {
        self.next += 1;
        let snapshot = SnapshotRef {
            guid: Guid(self.next),
            createtxg: self.next,
            created_at: self.now(host),
        };
        let catalog = read_catalog(store, &self.dataset, &self.keys.trusted).await?;
        let found = base.map(|base| {
            catalog
                .backup(base)
                .cloned()
                .ok_or_else(|| refused("no such base"))
        });
        let upload = Upload::new(self, host, snapshot, found.transpose()?, self.next);
        upload
            .run(store, self, host, &catalog.backups, true)
            .await?;
        Ok(upload.manifest.id)
    }

    /// Writes a backup into a store whose base may be in another one.
    pub(crate) async fn export(
        &mut self,
        store: &dyn ObjectStore,
        base: Option<StoredBackup>,
    ) -> BackupId {
        self.next += 1;
        let snapshot = SnapshotRef {
            guid: Guid(self.next),
            createtxg: self.next,
            created_at: self.now(0),
        };
        let catalog = read_catalog(store, &self.dataset, &self.keys.trusted)
            .await
            .unwrap();
        let upload = Upload::new(self, 0, snapshot, base, self.next);
        upload
            .run(store, self, 0, &catalog.backups, false)
            .await
            .unwrap();
        upload.manifest.id
    }

    /// A whole backup on the first host.
    pub(crate) async fn put(&mut self, base: Option<&BackupId>) -> BackupId {
        self.upload(0, base).await.unwrap()
    }

    /// A chain of so many backups, a day apart.
    pub(crate) async fn chain(&mut self, backups: usize) -> Vec<BackupId> {
        let mut chain: Vec<BackupId> = Vec::new();
        for _ in 0..backups {
            let id = self.put(chain.last()).await;
            chain.push(id);
            self.days(1);
        }
        chain
    }

    pub(crate) fn env(&self, host: usize, store: Arc<dyn ObjectStore>, stop: Stop) -> PruneEnv {
        PruneEnv {
            store,
            signing: self.writer.signing.clone(),
            trusted: self.keys.trusted.clone(),
            state_dir: self.state(host).to_owned(),
            resume_days: RESUME_DAYS,
            pools: BTreeMap::new(),
            now: self.now(host),
            clock: ClockCheck::vouched_at(self.now(host)),
            stop,
        }
    }

    pub(crate) fn task(&self, rules: &RetentionRules, secondary: SecondaryStore) -> PruneTask {
        let origins = vec![Self::origin(0), Self::origin(1)];
        PruneTask {
            stored: self.dataset.clone(),
            origins,
            rules: rules.clone(),
            secondary,
        }
    }

    pub(crate) async fn read_view(&self, rules: &RetentionRules) -> PruneView {
        let env = self.env(0, Arc::new(self.store.clone()), never());
        read_view(&env, &self.task(rules, SecondaryStore::Nothing))
            .await
            .unwrap()
    }

    pub(crate) async fn try_prune(
        &self,
        host: usize,
        rules: &RetentionRules,
    ) -> Result<PruneOutcome, RunError> {
        let env = self.env(host, Arc::new(self.store.clone()), never());
        prune_dataset(&env, &self.task(rules, SecondaryStore::Nothing)).await
    }

    pub(crate) async fn prune(&self, rules: &RetentionRules) -> PruneOutcome {
        self.try_prune(0, rules).await.unwrap()
    }

    /// Ids that have any object here.
    pub(crate) fn ids(&self) -> BTreeSet<BackupId> {
        ids_in(&self.store)
    }

    /// Every object of the dataset but prune records.
    pub(crate) fn keys_but_records(&self) -> Vec<String> {
        self.store
            .keys()
            .into_iter()
            .filter(|key| !key.contains("/@prune/"))
            .collect()
    }

    pub(crate) fn record_keys(&self) -> Vec<String> {
        self.store
            .keys()
            .into_iter()
            .filter(|key| key.contains("/@prune/") && key.ends_with(".json"))
            .collect()
    }

    /// Those of the ids that do not come back whole: chain, chunk lists, and every byte of every
    /// chunk.
    pub(crate) async fn not_restorable(
        &self,
        ids: impl IntoIterator<Item = BackupId>,
    ) -> Vec<String> {
        let catalog = read_catalog(&self.store, &self.dataset, &self.keys.trusted)
            .await
            .unwrap();
        let manifests: Vec<_> = catalog
            .backups
            .iter()
            .map(|backup| (&backup.manifest, backup.manifest_blake3))
            .collect();
        let mut checked: BTreeMap<BackupId, Option<String>> = BTreeMap::new();
        let mut failures = Vec::new();
        for id in ids {
            match plan_restore(&manifests, &id) {
                Err(gap) => failures.push(gap.to_string()),
                Ok(chain) => {
                    for manifest in chain {
                        if !checked.contains_key(&manifest.id) {
                            checked.insert(manifest.id.clone(), self.chunk_failure(manifest).await);
                        }
                        failures.extend(checked[&manifest.id].clone());
                    }
                }
            }
        }
        failures
    }

    async fn chunk_failure(&self, manifest: &Manifest) -> Option<String> {
        let chunks = match read_chunks(&self.store, manifest).await {
            Ok(chunks) => chunks,
            Err(error) => return Some(zfs_backup::run::error_chain(&error)),
        };
        chunks.iter().find_map(|chunk| {
            let key = crate::world::key_of(manifest, &chunk.name);
            let whole = self
                .store
                .object(&key)
                .is_some_and(|bytes| Digest::of(&bytes) == chunk.blake3);
            (!whole).then(|| format!("{key} is not what it was"))
        })
    }

    pub(crate) async fn assert_restores(&self, ids: impl IntoIterator<Item = BackupId>) {
        assert_eq!(self.not_restorable(ids).await, [""; 0]);
    }

    pub(crate) fn key(&self, id: &BackupId, object: &str) -> String {
        format!("{}/@{id}/{object}", self.dataset)
    }
}

pub(crate) fn ids_in(store: &MemoryStore) -> BTreeSet<BackupId> {
    store
        .keys()
        .iter()
        .filter_map(|key| Some(ObjectKey::parse(key)?.id))
        .collect()
}

fn refused(what: &str) -> RunError {
    RunError::refused(what, "this is a test")
}

/// One upload in the order of the real one.
struct Upload {
    manifest: Manifest,
    base: Option<StoredBackup>,
    chunks: Vec<(ChunkEntry, Bytes)>,
    list: Vec<u8>,
    text: Vec<u8>,
    private: Vec<u8>,
}

impl Upload {
    fn new(
        yard: &Yard,
        host: usize,
        snapshot: SnapshotRef,
        base: Option<StoredBackup>,
        nonce: u64,
    ) -> Self {
        let kind = if base.is_some() {
            BackupKind::Incr
        } else {
            BackupKind::Full
        };
        let id = BackupId::new(snapshot.created_at, kind, snapshot.guid, nonce);
        let chunks: Vec<(ChunkEntry, Bytes)> = (0..2).map(|index| chunk(index, nonce)).collect();
        let entries = chunks.iter().map(|(entry, _)| entry.clone()).collect();
        let list = ChunkList {
            format: 1,
            object_type: "chunks".to_owned(),
            chunks: entries,
        };
        let list = to_stored_bytes(&list).unwrap();
        let (text, private) = (
            b"how to restore it\n".to_vec(),
            b"sealed properties".to_vec(),
        );
        let (full_id, position) = base.as_ref().map_or_else(
            || (id.clone(), 0),
            |base| {
                (
                    base.manifest.chain.full_id.clone(),
                    base.manifest.chain.position + 1,
                )
            },
        );
        let list_ref = ChunkListRef {
            name: object_name(&BackupObject::ChunkList(0)),
            blake3: Digest::of(&list),
            chunks: 2,
        };
        let manifest = Manifest {
            format: 1,
            requires: Vec::new(),
            object_type: "manifest".to_owned(),
            dataset: yard.dataset.clone(),
            id,
            kind,
            base: base.as_ref().map(|base| BaseRef {
                guid: base.manifest.snapshot.guid,
                backup_id: base.manifest.id.clone(),
                manifest_blake3: base.manifest_blake3,
            }),
            origin: Yard::origin(host),
            host_mark: None,
            level: None,
            previous: None,
            group: None,
            clone_origin_guid: None,
            chain: ChainPlace {
                full_id,
                position,
                stored_bytes: 0,
            },
            send: SendInfo {
                requested: vec!["large-blocks".to_owned()],
                feature_flags: 0,
                zfs_version: "2.3.2-1".to_owned(),
                checked: true,
            },
            stream_bytes: STREAM_BYTES,
            split_bytes: SPLIT_BYTES,
            compression: CompressionName::None,
            recipients: Vec::new(),
            chunk_lists: vec![list_ref],
            files: Files {
                restore_text: Digest::of(&text),
                private: Digest::of(&private),
                keyring: None,
                index: None,
            },
            tool_version: "test".to_owned(),
            started_at: snapshot.created_at,
            finished_at: snapshot.created_at,
            snapshot,
        };
        Self {
            manifest,
            base,
            chunks,
            list,
            text,
            private,
        }
    }

    async fn run(
        &self,
        store: &dyn ObjectStore,
        yard: &Yard,
        host: usize,
        live: &[StoredBackup],
        base_is_here: bool,
    ) -> Result<(), RunError> {
        let Manifest { dataset, id, .. } = &self.manifest;
        let journal = AttemptJournal::begin(yard.state(host), &store.known(), dataset, id)?;
        let mut receipt = Vec::new();
        let put = Putting {
            store,
            yard,
            upload: self,
        };
        put.signed(
            BackupObject::Started,
            SignedType::Started,
            self.started(),
            &mut receipt,
        )
        .await?;
        if base_is_here {
            self.check_base(store, yard).await?;
        }
        for (entry, bytes) in &self.chunks {
            let object = zfs_backup::store::key::parse_object_name(&entry.name).unwrap();
            put.object(&object, bytes.clone(), &mut receipt).await?;
        }
        put.signed(
            BackupObject::RestoreText,
            SignedType::RestoreText,
            self.text.clone(),
            &mut receipt,
        )
        .await?;
        put.object(
            &BackupObject::Private,
            self.private.clone().into(),
            &mut receipt,
        )
        .await?;
        put.object(
            &BackupObject::ChunkList(0),
            self.list.clone().into(),
            &mut receipt,
        )
        .await?;
        journal.committing()?;
        let manifest = to_stored_bytes(&self.manifest).unwrap();
        let objects = receipt.clone();
        let receipt_bytes = self.receipt(Digest::of(&manifest), objects, live, yard.now(host));
        put.signed(
            BackupObject::Receipt,
            SignedType::Receipt,
            receipt_bytes,
            &mut receipt,
        )
        .await?;
        put.signed(
            BackupObject::Manifest,
            SignedType::Manifest,
            manifest,
            &mut receipt,
        )
        .await?;
        journal.committed()?;
        Ok(())
    }

    /// After `started.json` is there: the base must still be whole, and no record may name it or
    /// what it builds on.
    async fn check_base(&self, store: &dyn ObjectStore, yard: &Yard) -> Result<(), RunError> {
        let Some(base) = &self.base else {
            return Ok(());
        };
        let pruned = read_pruned(store, &yard.dataset, &yard.keys.trusted).await?;
        let catalog = read_catalog(store, &yard.dataset, &yard.keys.trusted).await?;
        let mut next = Some(base.manifest.id.clone());
        while let Some(id) = next {
            if pruned.contains(&id) {
                return Err(refused("a prune is about to delete the base"));
            }
            let backup = catalog
                .backup(&id)
                .ok_or_else(|| refused("the base is gone"))?;
            next = backup
                .manifest
                .base
                .as_ref()
                .map(|base| base.backup_id.clone());
        }
        Ok(())
    }

    fn started(&self) -> Vec<u8> {
        let manifest = &self.manifest;
        to_stored_bytes(&Started {
            format: 1,
            object_type: "started".to_owned(),
            dataset: manifest.dataset.clone(),
            id: manifest.id.clone(),
            snapshot: manifest.snapshot.clone(),
            base: manifest.base.clone(),
            origin: manifest.origin.clone(),
            host_mark: None,
            level: None,
            requested: manifest.send.requested.clone(),
            split_bytes: SPLIT_BYTES,
            compression: CompressionName::None,
            recipients: Vec::new(),
            tool_version: "test".to_owned(),
            started_at: manifest.started_at,
        })
        .unwrap()
    }

    fn receipt(
        &self,
        manifest_blake3: Digest,
        objects: Vec<ReceiptEntry>,
        live: &[StoredBackup],
        written_at: Timestamp,
    ) -> Vec<u8> {
        let entry = |backup: &StoredBackup| LiveEntry {
            id: backup.manifest.id.clone(),
            manifest_blake3: backup.manifest_blake3,
        };
        to_stored_bytes(&Receipt {
            format: 1,
            object_type: "receipt".to_owned(),
            dataset: self.manifest.dataset.clone(),
            id: self.manifest.id.clone(),
            manifest_blake3,
            objects,
            live: live.iter().map(entry).collect(),
            written_at,
        })
        .unwrap()
    }
}

struct Putting<'a> {
    store: &'a dyn ObjectStore,
    yard: &'a Yard,
    upload: &'a Upload,
}

impl Putting<'_> {
    async fn object(
        &self,
        object: &BackupObject,
        bytes: Bytes,
        receipt: &mut Vec<ReceiptEntry>,
    ) -> Result<(), StoreError> {
        let key = ObjectKey::backup(
            &self.upload.manifest.dataset,
            &self.upload.manifest.id,
            object,
        );
        let (_, evidence): (_, Evidence) = self.store.put_new(&key, bytes).await?;
        receipt.push(ReceiptEntry {
            name: object_name(object),
            evidence,
        });
        Ok(())
    }

    async fn signed(
        &self,
        object: BackupObject,
        signed_type: SignedType,
        bytes: Vec<u8>,
        receipt: &mut Vec<ReceiptEntry>,
    ) -> Result<(), RunError> {
        let key = ObjectKey::backup(
            &self.upload.manifest.dataset,
            &self.upload.manifest.id,
            &object,
        );
        let signature = self
            .yard
            .writer
            .signing
            .sign(signed_type, key.as_str(), &bytes)?;
        self.store
            .put_new(&key.signature(), signature.into())
            .await?;
        Ok(self.object(&object, bytes.into(), receipt).await?)
    }
}

fn chunk(index: u32, seed: u64) -> (ChunkEntry, Bytes) {
    let bytes = noise(seed * 10 + u64::from(index), 300);
    let object = BackupObject::Chunk {
        index: zfs_backup::model::ChunkIndex::new(index).unwrap(),
        nonce: u32::try_from(seed).unwrap(),
        compressed: false,
    };
    let entry = ChunkEntry {
        name: object_name(&object),
        index,
        stream_bytes: SPLIT_BYTES,
        sealed_bytes: bytes.len() as u64,
        blake3: Digest::of(&bytes),
        head: HeadEntry {
            bytes: 100,
            blake3: Digest::of(&bytes[..100]),
        },
        resume: None,
    };
    (entry, bytes.into())
}
