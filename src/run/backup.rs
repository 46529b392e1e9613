//! One backup of one dataset into one store, in the order of writes that makes a crash harmless.
//!
//! lock -> hold -> empty prefix -> `started` -> chunks, each confirmed -> listing equals what was confirmed -> END
//! verified and `lzc_send` returned 0 -> bookmark -> RESTORE.txt, private, lists -> receipt -> signatures -> manifest
//! -> read back and verified -> hold released. Whatever fails before the manifest leaves no backup.

use super::catalog::{Catalog, StoredBackup, find_gaps, read_catalog, read_chunks, read_manifest};
use super::journal::AttemptJournal;
use super::keys::WriterKeys;
use super::lock::lock_dataset;
use super::snapshot::{find_dataset, is_own};
use super::transfer::{ProgressSink, Stop, StreamSource, TransferPlan, Transferred, transfer};
use super::{RunError, error_chain};
use crate::config::RawMode;
use crate::keyring::KEYRING_BYTES_MAX;
use crate::manifest::{
    CHUNK_LIST_BYTES_MAX, CHUNKS_PER_LIST, ChainPlace, ChunkEntry, ChunkList, ChunkListRef, FORMAT, Files,
    LARGE_TEXT_BYTES_MAX, LiveEntry, MANIFEST_BYTES_MAX, Manifest, Origin, PRIVATE_BYTES_MAX, Private, Receipt,
    ReceiptEntry, RestoreText, SendInfo, SnapshotRef, Started, ZfsKey, parse_chunk_list, parse_manifest, restore_text,
    to_stored_bytes,
};
use crate::model::{BackupId, BackupKind, DatasetName, Digest, Guid};
use crate::plan::send::{RequestedKind, SendConflict, SendPlan, StoredPoint, plan_send};
use crate::sign::SignedType;
use crate::store::key::{BackupObject, backup_prefix, object_name};
use crate::store::{Evidence, ObjectKey, ObjectStore, PutOutcome};
use crate::stream::record::StreamExpectation;
use crate::stream::seal::Compression;
use crate::zfs::{
    Dataset, PropertyValue, SendBase, SendFlags, SendRequest, SendStream, Snapshot, Zfs, ZfsErrno, ZfsError,
};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// How often a small object is put or read again.
const TRIES_MAX: u32 = 3;
/// Pause before that, times the number of the try.
const TRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// How backups are made.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// Bytes of stream in a chunk.
    pub split_bytes: u64,
    /// Compression before sealing.
    pub compression: Compression,
    /// Raw or not.
    pub raw: RawMode,
    /// Blocks leave compressed as they lie on disk.
    pub compressed: bool,
    /// Embedded blocks.
    pub embedded: bool,
    /// Locks lie here.
    pub state_dir: PathBuf,
    /// This host's name, for `private.age` only.
    pub host: String,
}

/// Everything a backup needs besides its dataset.
pub struct BackupEnv {
    /// ZFS.
    pub zfs: Arc<dyn Zfs>,
    /// The target.
    pub store: Arc<dyn ObjectStore>,
    /// The keys.
    pub keys: WriterKeys,
    /// How.
    pub settings: BackupSettings,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Hears about progress.
    pub progress: ProgressSink,
    /// Asks to stop.
    pub stop: Stop,
}

/// What became of one dataset.
#[derive(Debug)]
pub enum BackupOutcome {
    /// A new backup is committed.
    Committed(Box<CommittedBackup>),
    /// The newest snapshot is stored already.
    UpToDate(BackupId),
}

/// A backup that was just committed.
#[derive(Debug)]
pub struct CommittedBackup {
    /// Its manifest, as read back.
    pub manifest: Manifest,
    /// Sealed bytes of all chunks.
    pub stored_bytes: u64,
    /// Chunks.
    pub chunks: usize,
    /// The weakest evidence among them.
    pub evidence: Option<Evidence>,
}

/// Backs one dataset up.
///
/// # Errors
/// [`RunError`]; then there is no new backup, and nothing that was there has changed.
pub async fn back_up(
    env: &BackupEnv,
    dataset: &DatasetName,
    requested: RequestedKind,
) -> Result<BackupOutcome, RunError> {
    let started_at = (env.now)();
    let _lock = lock_dataset(&env.settings.state_dir, env.store.url(), dataset)?;
    let local = find_dataset(&*env.zfs, dataset)?;
    let catalog = read_catalog(&*env.store, dataset, &env.keys.trusted).await?;
    for (id, error) in catalog.disbelieved() {
        tracing::warn!(%id, %error, "the store has a manifest that is not believed; it is left alone");
    }
    let (own, others) = own_snapshots(&*env.zfs, &local)?;
    let stored = stored_points(&*env.store, &catalog, own.last().map(|newest| newest.guid)).await?;
    let snapshot = match plan_send(&own, others, &stored, requested).map_err(|conflict| explain(dataset, &conflict))? {
        SendPlan::UpToDate { id } => return Ok(BackupOutcome::UpToDate(id)),
        SendPlan::Full { snapshot } => snapshot,
    };
    let attempt = Attempt::new(env, local, snapshot, started_at)?;
    attempt.run(&catalog).await.map(|committed| BackupOutcome::Committed(Box::new(committed)))
}

/// The kernel's estimate of a full stream of the newest own snapshot. Never exact; for progress and plans only.
///
/// # Errors
/// [`RunError`] when there is no such dataset or snapshot.
pub fn estimate_bytes(zfs: &dyn Zfs, dataset: &DatasetName, settings: &BackupSettings) -> Result<u64, RunError> {
    let local = find_dataset(zfs, dataset)?;
    let (own, others) = own_snapshots(zfs, &local)?;
    let snapshot = own.last().ok_or_else(|| explain(dataset, &SendConflict::NoSnapshot { others }))?;
    let flags = send_flags(&local, settings);
    Ok(zfs.send_space(&SendRequest { snapshot: snapshot.name.clone(), base: None, flags, resume: None })?)
}

fn send_flags(local: &Dataset, settings: &BackupSettings) -> SendFlags {
    let raw = settings.raw.is_raw(local.encrypted);
    SendFlags { raw, compressed: settings.compressed, embedded: settings.embedded, large_blocks: true }
}

fn explain(dataset: &DatasetName, conflict: &SendConflict) -> RunError {
    let hint = match conflict {
        SendConflict::NoSnapshot { .. } => "run `zfs-backup snapshot` first",
        SendConflict::IncrementalNotYet => "run it with --full",
    };
    RunError::refused(format!("{dataset}: {conflict}"), hint)
}

/// Backups are usable when a listing shows every chunk at its size. A chunk list that cannot be believed makes a
/// backup unusable; one that cannot be read is an error. Only backups of `candidate` are looked at.
async fn stored_points(
    store: &dyn ObjectStore,
    catalog: &Catalog,
    candidate: Option<Guid>,
) -> Result<Vec<StoredPoint>, RunError> {
    let mut points = Vec::new();
    for backup in catalog.backups.iter().filter(|backup| Some(backup.manifest.snapshot.guid) == candidate) {
        let usable = match read_chunks(store, &backup.manifest).await {
            Ok(chunks) => find_gaps(backup, &chunks).next().is_none(),
            Err(error) if error.is_damage() => false,
            Err(error) => return Err(error),
        };
        let Manifest { id, snapshot, .. } = &backup.manifest;
        points.push(StoredPoint { id: id.clone(), snapshot_guid: snapshot.guid, usable });
    }
    Ok(points)
}

fn own_snapshots(zfs: &dyn Zfs, local: &Dataset) -> Result<(Vec<Snapshot>, usize), RunError> {
    let (own, others): (Vec<_>, Vec<_>) =
        zfs.snapshots(&local.name)?.into_iter().partition(|snapshot| is_own(snapshot, local.guid));
    Ok((own, others.len()))
}

/// One attempt at one backup.
struct Attempt<'a> {
    env: &'a BackupEnv,
    local: Dataset,
    snapshot: Snapshot,
    id: BackupId,
    flags: SendFlags,
    started_at: Timestamp,
}

impl<'a> Attempt<'a> {
    fn new(env: &'a BackupEnv, local: Dataset, snapshot: Snapshot, started_at: Timestamp) -> Result<Self, RunError> {
        let nonce = getrandom::u64()
            .map_err(|_| RunError::refused("the system gives no random bytes", "check /dev/urandom"))?;
        let id = BackupId::new(snapshot.created_at, BackupKind::Full, snapshot.guid, nonce);
        let flags = send_flags(&local, &env.settings);
        if local.encrypted && !flags.raw && local.key_unavailable {
            return Err(RunError::refused(
                format!("{} is encrypted, its key is not loaded, and send.raw is \"never\"", local.name),
                "load the key, or set send.raw = \"auto\"",
            ));
        }
        Ok(Self { env, local, snapshot, id, flags, started_at })
    }

    async fn run(&self, catalog: &Catalog) -> Result<CommittedBackup, RunError> {
        let _hold = self.env.zfs.hold_until_dropped(&self.snapshot.name, &format!("zfs-backup:{}", self.id))?;
        let prefix = backup_prefix(&self.local.name, &self.id);
        if !self.env.store.list(&prefix).await?.is_empty() {
            return Err(RunError::refused(format!("{prefix} is not empty although its name is new"), "run it again"));
        }
        let settings = &self.env.settings;
        let journal = AttemptJournal::begin(&settings.state_dir, self.env.store.url(), &self.local.name, &self.id)?;
        let mut written = Written::default();
        self.put_start(&mut written).await?;
        let transferred = self.transfer().await?;
        self.check_listing(&transferred).await?;
        self.bookmark();
        let committed = self.commit(catalog, transferred, written, &journal).await?;
        if let Err(error) = journal.committed() {
            tracing::warn!(error = %error_chain(&error), "the backup is committed; its journal stays");
        }
        Ok(committed)
    }

    async fn transfer(&self) -> Result<Transferred, RunError> {
        let env = self.env;
        let request = SendRequest { snapshot: self.snapshot.name.clone(), base: None, flags: self.flags, resume: None };
        let source = Arc::new(SendSource { zfs: Arc::clone(&env.zfs), request });
        let plan = Arc::new(TransferPlan {
            dataset: self.local.name.clone(),
            id: self.id.clone(),
            snapshot: self.snapshot.name.to_string(),
            expectation: StreamExpectation { snapshot_guid: self.snapshot.guid, base_guid: None },
            split_bytes: env.settings.split_bytes,
            compression: env.settings.compression,
            recipients: env.keys.recipients.clone(),
        });
        transfer(source, &*env.store, plan, Arc::clone(&env.progress), env.stop.clone()).await
    }

    /// Every chunk that the store confirmed must be listed, at its size: a store that forgets is found before the
    /// commit. What it lists besides, such as a chunk whose confirmation was lost, is reported by verify as extra.
    async fn check_listing(&self, transferred: &Transferred) -> Result<(), RunError> {
        let prefix = backup_prefix(&self.local.name, &self.id);
        let listed = self.env.store.list(&prefix).await?;
        let sizes: BTreeMap<&str, u64> = listed.iter().map(|object| (object.key.as_str(), object.bytes)).collect();
        for chunk in &transferred.chunks {
            let key = format!("{prefix}{}", chunk.entry.name);
            match sizes.get(key.as_str()) {
                Some(bytes) if *bytes == chunk.entry.sealed_bytes => {}
                Some(bytes) => {
                    let reason =
                        format!("the store lists {bytes} bytes after it confirmed {}", chunk.entry.sealed_bytes);
                    return Err(RunError::Damaged { key, reason });
                }
                None => {
                    return Err(RunError::Damaged {
                        key,
                        reason: "the store confirmed it and does not list it".into(),
                    });
                }
            }
        }
        Ok(())
    }

    /// The bookmark is what a later incremental starts from when the snapshot is gone. Its absence costs a full
    /// later, never this backup.
    fn bookmark(&self) {
        let made = self
            .local
            .name
            .bookmark(&format!("zfs-backup_{}", self.snapshot.guid))
            .map(|name| self.env.zfs.bookmark(&name, &SendBase::Snapshot(self.snapshot.name.clone())));
        match made {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.errno() == Some(ZfsErrno::EXISTS) => {}
            Ok(Err(error)) => tracing::warn!(%error, snapshot = %self.snapshot.name, "no bookmark was made"),
            Err(error) => tracing::warn!(%error, "no bookmark was made"),
        }
    }

    async fn put_start(&self, written: &mut Written) -> Result<(), RunError> {
        let started = Started {
            format: FORMAT,
            object_type: SignedType::Started.as_str().to_owned(),
            dataset: self.local.name.clone(),
            id: self.id.clone(),
            snapshot: self.snapshot_ref(),
            base: None,
            origin: self.origin()?,
            requested: flag_names(self.flags),
            split_bytes: self.env.settings.split_bytes,
            compression: self.env.settings.compression.into(),
            recipients: self.recipients(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
        };
        self.put_signed(BackupObject::Started, SignedType::Started, json(&started)?, written).await?;
        if let Some(keyring) = &self.env.keys.keyring {
            self.put(BackupObject::Keyring, keyring.bytes.clone(), written).await?;
        }
        Ok(())
    }

    async fn commit(
        &self,
        catalog: &Catalog,
        transferred: Transferred,
        mut written: Written,
        journal: &AttemptJournal,
    ) -> Result<CommittedBackup, RunError> {
        let finished_at = (self.env.now)();
        let entries: Vec<ChunkEntry> = transferred.chunks.iter().map(|chunk| chunk.entry.clone()).collect();
        for chunk in &transferred.chunks {
            written.receipt.push(ReceiptEntry { name: chunk.entry.name.clone(), evidence: chunk.evidence.clone() });
        }
        self.put_signed(BackupObject::RestoreText, SignedType::RestoreText, self.restore_text(&entries), &mut written)
            .await?;
        self.put(BackupObject::Private, self.private()?, &mut written).await?;
        let chunk_lists = self.put_chunk_lists(&entries, &mut written).await?;
        let manifest = self.manifest(&transferred, &entries, chunk_lists, &written, finished_at)?;
        let manifest_bytes = json(&manifest)?;
        let manifest_blake3 = Digest::of(&manifest_bytes);
        self.check_as_a_reader(&manifest_bytes, &entries)?;
        journal.committing()?;
        let receipt = self.receipt(catalog, manifest_blake3, written.receipt.clone(), finished_at);
        self.put_signed(BackupObject::Receipt, SignedType::Receipt, json(&receipt)?, &mut written).await?;
        let put = self.put_signed(BackupObject::Manifest, SignedType::Manifest, manifest_bytes, &mut written).await;
        let read_back = match (put, self.read_back(manifest_blake3).await) {
            // Also when the put failed: then only its reply was lost.
            (_, Ok(manifest)) => manifest,
            (Err(error), Err(_)) | (Ok(()), Err(error)) => return Err(error),
        };
        let stored_bytes = entries.iter().map(|entry| entry.sealed_bytes).sum();
        let evidence = transferred.chunks.into_iter().map(|chunk| chunk.evidence).max_by_key(|evidence| evidence.tier);
        Ok(CommittedBackup { manifest: read_back, stored_bytes, chunks: entries.len(), evidence })
    }

    /// Reads the manifest as everybody will. One failure of the store must not hide that the backup is there.
    async fn read_back(&self, expected: Digest) -> Result<Manifest, RunError> {
        let mut tries = 1..=TRIES_MAX;
        loop {
            let found = read_manifest(&*self.env.store, &self.local.name, &self.id, &self.env.keys.trusted).await;
            match (found, tries.next()) {
                (Ok((manifest, blake3)), _) if blake3 == expected => return Ok(manifest),
                (Ok(_), _) => {
                    let key = ObjectKey::backup(&self.local.name, &self.id, &BackupObject::Manifest).to_string();
                    let reason = "read back after the commit, it is not what was written".into();
                    return Err(RunError::Damaged { key, reason });
                }
                (Err(error), None) => return Err(error),
                (Err(_), Some(number)) => tokio::time::sleep(TRY_PAUSE * number).await,
            }
        }
    }

    /// What a reader would refuse must not be committed: the reader's own rules, over the very bytes.
    fn check_as_a_reader(&self, manifest_bytes: &[u8], entries: &[ChunkEntry]) -> Result<(), RunError> {
        let key = ObjectKey::backup(&self.local.name, &self.id, &BackupObject::Manifest);
        let refused = |source| RunError::Manifest { key: key.to_string(), source };
        let signature = self.env.keys.signing.sign(SignedType::Manifest, key.as_str(), manifest_bytes)?;
        let keys = &self.env.keys.trusted;
        let manifest = parse_manifest(keys, &self.local.name, &self.id, manifest_bytes, &signature).map_err(refused)?;
        for (number, chunks) in entries.chunks(CHUNKS_PER_LIST).enumerate() {
            parse_chunk_list(&manifest, number, &json(&chunk_list(chunks))?).map_err(refused)?;
        }
        Ok(())
    }

    fn manifest(
        &self,
        transferred: &Transferred,
        entries: &[ChunkEntry],
        chunk_lists: Vec<ChunkListRef>,
        written: &Written,
        finished_at: Timestamp,
    ) -> Result<Manifest, RunError> {
        let summary = &transferred.summary;
        Ok(Manifest {
            format: FORMAT,
            requires: Vec::new(),
            object_type: SignedType::Manifest.as_str().to_owned(),
            dataset: self.local.name.clone(),
            id: self.id.clone(),
            kind: self.id.kind(),
            snapshot: self.snapshot_ref(),
            base: None,
            origin: self.origin()?,
            group: None,
            clone_origin_guid: None,
            chain: ChainPlace {
                full_id: self.id.clone(),
                position: 0,
                stored_bytes: entries.iter().map(|entry| entry.sealed_bytes).sum(),
            },
            send: SendInfo {
                requested: flag_names(self.flags),
                feature_flags: summary.feature_flags,
                zfs_version: self.env.zfs.module_version()?,
                checked: summary.checked,
            },
            stream_bytes: summary.bytes,
            split_bytes: self.env.settings.split_bytes,
            compression: self.env.settings.compression.into(),
            recipients: self.recipients(),
            chunk_lists,
            files: Files {
                restore_text: written.digest(&BackupObject::RestoreText)?,
                private: written.digest(&BackupObject::Private)?,
                keyring: self.env.keys.keyring.as_ref().map(|keyring| Digest::of(&keyring.bytes)),
                index: None,
            },
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            finished_at,
        })
    }

    fn receipt(
        &self,
        catalog: &Catalog,
        manifest_blake3: Digest,
        objects: Vec<ReceiptEntry>,
        written_at: Timestamp,
    ) -> Receipt {
        let live = |backup: &StoredBackup| LiveEntry {
            id: backup.manifest.id.clone(),
            manifest_blake3: backup.manifest_blake3,
        };
        Receipt {
            format: FORMAT,
            object_type: SignedType::Receipt.as_str().to_owned(),
            dataset: self.local.name.clone(),
            id: self.id.clone(),
            manifest_blake3,
            objects,
            live: catalog.backups.iter().map(live).collect(),
            written_at,
        }
    }

    async fn put_chunk_lists(
        &self,
        entries: &[ChunkEntry],
        written: &mut Written,
    ) -> Result<Vec<ChunkListRef>, RunError> {
        let mut lists = Vec::new();
        for (number, chunks) in entries.chunks(CHUNKS_PER_LIST).enumerate() {
            let number = u16::try_from(number)
                .map_err(|_| RunError::refused("the backup has too many chunks", "make main.split_size larger"))?;
            let object = BackupObject::ChunkList(number);
            let bytes = json(&chunk_list(chunks))?;
            let count = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
            lists.push(ChunkListRef { name: object_name(&object), blake3: Digest::of(&bytes), chunks: count });
            self.put(object, bytes.into(), written).await?;
        }
        Ok(lists)
    }

    fn restore_text(&self, entries: &[ChunkEntry]) -> Vec<u8> {
        restore_text(&RestoreText {
            dataset: &self.local.name,
            id: &self.id,
            verifying_key: self.env.keys.signing.verifying_key(),
            chunks: entries,
            compression: self.env.settings.compression.into(),
            keyring: self.env.keys.keyring.is_some(),
            raw: self.flags.raw && self.local.encrypted,
        })
        .into_bytes()
    }

    fn private(&self) -> Result<Bytes, RunError> {
        let text = |name: &str| match &self.local.properties.get(name)?.value {
            PropertyValue::Text(text) => Some(text.clone()),
            PropertyValue::Number(number) => Some(number.to_string()),
        };
        let zfs_key = self.local.encrypted.then(|| ZfsKey {
            encryption_root: text("encryptionroot"),
            key_format: text("keyformat"),
            raw: self.flags.raw,
        });
        let own = |property: &&String| {
            let source = self.local.properties[*property].source.as_deref();
            source.is_some_and(|source| source == self.local.name.as_str() || source == "$recvd")
        };
        let names = self.local.properties.keys().filter(own);
        let private = Private {
            format: FORMAT,
            object_type: "private".to_owned(),
            id: self.id.clone(),
            snapshot_name: self.snapshot.name.to_string(),
            host: self.env.settings.host.clone(),
            properties: names.filter_map(|name| Some((name.clone(), text(name)?))).collect(),
            zfs_key,
        };
        let recipients = self.env.keys.recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| RunError::File {
            operation: "seal",
            path: "private.age".into(),
            source: std::io::Error::other(source),
        };
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|error| failed(error.into()))?;
        let mut sealed = Vec::new();
        let mut writer = encryptor.wrap_output(&mut sealed).map_err(|error| failed(error.into()))?;
        std::io::Write::write_all(&mut writer, &json(&private)?).map_err(|error| failed(error.into()))?;
        writer.finish().map_err(|error| failed(error.into()))?;
        Ok(sealed.into())
    }

    fn snapshot_ref(&self) -> SnapshotRef {
        let Snapshot { guid, createtxg, created_at, .. } = self.snapshot;
        SnapshotRef { guid, createtxg, created_at }
    }

    fn origin(&self) -> Result<Origin, RunError> {
        Ok(Origin { dataset_guid: self.local.guid, pool_guid: self.env.zfs.pool_guid(self.local.name.pool())? })
    }

    fn recipients(&self) -> Vec<String> {
        self.env.keys.recipients.iter().map(ToString::to_string).collect()
    }

    /// The signature goes first, so that what it signs is never there without it.
    async fn put_signed(
        &self,
        object: BackupObject,
        signed_type: SignedType,
        bytes: Vec<u8>,
        written: &mut Written,
    ) -> Result<(), RunError> {
        let key = ObjectKey::backup(&self.local.name, &self.id, &object);
        let signature = self.env.keys.signing.sign(signed_type, key.as_str(), &bytes)?;
        self.put_again(&key.signature(), signature.into()).await?;
        self.put(object, bytes.into(), written).await
    }

    async fn put(&self, object: BackupObject, bytes: Bytes, written: &mut Written) -> Result<(), RunError> {
        let key = ObjectKey::backup(&self.local.name, &self.id, &object);
        if bytes.len() as u64 > limit_bytes(&object) {
            let what = format!("{key} would have {} bytes, more than any reader takes", bytes.len());
            return Err(RunError::refused(what, "make main.split_size larger, so that there are fewer chunks"));
        }
        let digest = Digest::of(&bytes);
        let (outcome, evidence) = self.put_again(&key, bytes).await?;
        if outcome == PutOutcome::Identical {
            tracing::debug!(%key, "was there already with the same bytes");
        }
        written.receipt.push(ReceiptEntry { name: object_name(&object), evidence });
        written.digests.insert(object, digest);
        Ok(())
    }
}

impl Attempt<'_> {
    /// Puts a small object, more than once if the store is not well: a put that was done already is no error, and the
    /// whole upload hangs on it.
    async fn put_again(&self, key: &ObjectKey, bytes: Bytes) -> Result<(PutOutcome, Evidence), RunError> {
        let mut tries = 1..=TRIES_MAX;
        loop {
            match (self.env.store.put_new(key, bytes.clone()).await, tries.next()) {
                (Ok(done), _) => return Ok(done),
                (Err(error), Some(number)) if error.is_transient() => {
                    tracing::warn!(error = %error_chain(&error), number, "put failed; trying again");
                    tokio::time::sleep(TRY_PAUSE * number).await;
                }
                (Err(error), _) => return Err(error.into()),
            }
        }
    }
}

/// What was put so far, for the receipt and the manifest.
#[derive(Default)]
struct Written {
    receipt: Vec<ReceiptEntry>,
    digests: BTreeMap<BackupObject, Digest>,
}

impl Written {
    fn digest(&self, object: &BackupObject) -> Result<Digest, RunError> {
        let missing =
            || RunError::Damaged { key: object_name(object), reason: "it was not put: this is a defect".into() };
        self.digests.get(object).copied().ok_or_else(missing)
    }
}

fn chunk_list(chunks: &[ChunkEntry]) -> ChunkList {
    ChunkList { format: FORMAT, object_type: "chunks".to_owned(), chunks: chunks.to_vec() }
}

/// The longest that a reader takes of each kind of small object.
fn limit_bytes(object: &BackupObject) -> u64 {
    match object {
        BackupObject::Manifest | BackupObject::Started | BackupObject::Progress(_) => MANIFEST_BYTES_MAX,
        BackupObject::Keyring => KEYRING_BYTES_MAX,
        BackupObject::ChunkList(_) => CHUNK_LIST_BYTES_MAX,
        BackupObject::Private => PRIVATE_BYTES_MAX,
        BackupObject::RestoreText | BackupObject::Receipt | BackupObject::Chunk { .. } | BackupObject::Sums => {
            LARGE_TEXT_BYTES_MAX
        }
    }
}

fn json<T: serde::Serialize>(object: &T) -> Result<Vec<u8>, RunError> {
    to_stored_bytes(object).map_err(|error| RunError::File {
        operation: "write",
        path: "JSON".into(),
        source: std::io::Error::other(error),
    })
}

fn flag_names(flags: SendFlags) -> Vec<String> {
    let SendFlags { raw, compressed, embedded, large_blocks } = flags;
    let named = [(raw, "raw"), (compressed, "compressed"), (embedded, "embedded"), (large_blocks, "large-blocks")];
    named.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()).collect()
}

struct SendSource {
    zfs: Arc<dyn Zfs>,
    request: SendRequest,
}

impl StreamSource for SendSource {
    fn open(&self) -> Result<SendStream, ZfsError> {
        self.zfs.send(&self.request)
    }
}
