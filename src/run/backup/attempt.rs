//! One attempt at one backup: from the holds to the last confirmed chunk, then the commit.

use super::planning::{Base, Sight};
use super::put::{Written, json};
use super::{BackupEnv, BackupSettings, CommittedBackup};
use crate::manifest::{BaseRef, FORMAT, Origin, SnapshotRef, Started};
use crate::model::{BackupId, BackupKind, DatasetName};
use crate::plan::bookmarks::BOOKMARK_PREFIX;
use crate::run::journal::AttemptJournal;
use crate::run::locks::extend_keyring;
use crate::run::transfer::{StreamSource, TransferPlan, Transferred, transfer};
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::store::key::{BackupObject, backup_prefix};
use crate::stream::record::StreamExpectation;
use crate::zfs::{Dataset, HoldGuard, SendBase, SendFlags, SendRequest, SendStream, Snapshot, Zfs, ZfsErrno, ZfsError};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One attempt at one backup.
pub(super) struct Attempt<'a> {
    pub(super) env: &'a BackupEnv,
    /// The dataset as it is in the pool.
    pub(super) local: Dataset,
    /// Its name in the store.
    pub(super) stored: DatasetName,
    pub(super) snapshot: Snapshot,
    /// What an incremental follows from.
    pub(super) base: Option<Base>,
    /// The backups that must be restored before this one, the full first.
    pub(super) before: Vec<BackupId>,
    pub(super) id: BackupId,
    pub(super) flags: SendFlags,
    pub(super) started_at: Timestamp,
}

impl Attempt<'_> {
    /// Backs up. Whatever fails before the manifest leaves no backup.
    pub(super) async fn run(&self, sight: &Sight) -> Result<CommittedBackup, RunError> {
        let _holds = self.hold()?;
        let prefix = backup_prefix(&self.stored, &self.id);
        if !self.env.store.list(&prefix).await?.is_empty() {
            return Err(RunError::refused(format!("{prefix} is not empty although its name is new"), "run it again"));
        }
        let settings = &self.env.settings;
        let journal = AttemptJournal::begin(&settings.state_dir, self.env.store.url(), &self.stored, &self.id)?;
        let mut written = Written::default();
        self.put_start(&mut written).await?;
        // Announced first, then looked: whoever prunes from now on sees that this chain is needed.
        self.check_chain(sight).await?;
        let transferred = self.transfer().await?;
        self.check_listing(&transferred).await?;
        self.bookmark();
        let committed = self.commit(sight, transferred, written, &journal).await?;
        if let Err(error) = journal.committed() {
            tracing::warn!(error = %error_chain(&error), "the backup is committed; its journal stays");
        }
        Ok(committed)
    }

    /// Holds what is sent and a base that is a snapshot, then looks that the names still mean what was planned with.
    fn hold(&self) -> Result<Vec<HoldGuard>, RunError> {
        let tag = format!("zfs-backup:{}", self.id);
        let mut holds = vec![self.env.zfs.hold_until_dropped(&self.snapshot.name, &tag)?];
        if let Some(Base { local: SendBase::Snapshot(name), .. }) = &self.base {
            holds.push(self.env.zfs.hold_until_dropped(name, &tag)?);
        }
        match self.lost()? {
            None => Ok(holds),
            Some(name) => Err(RunError::refused(format!("{name} was destroyed while it was needed"), "run it again")),
        }
    }

    /// What is no longer in the pool of all that is to be sent, by guid.
    pub(super) fn lost(&self) -> Result<Option<String>, RunError> {
        let name = &self.local.name;
        let snapshots = self.env.zfs.snapshots(name)?;
        if !snapshots.iter().any(|other| other.name == self.snapshot.name && other.guid == self.snapshot.guid) {
            return Ok(Some(self.snapshot.name.to_string()));
        }
        let Some(base) = &self.base else { return Ok(None) };
        let guid = base.manifest.snapshot.guid;
        let (there, name) = match &base.local {
            SendBase::Snapshot(base) => {
                (snapshots.iter().any(|other| other.name == *base && other.guid == guid), base.to_string())
            }
            SendBase::Bookmark(base) => {
                let bookmarks = self.env.zfs.bookmarks(name)?;
                (bookmarks.iter().any(|other| other.name == *base && other.guid == guid), base.to_string())
            }
        };
        Ok((!there).then_some(name))
    }

    async fn transfer(&self) -> Result<Transferred, RunError> {
        let env = self.env;
        let base = self.base.as_ref().map(|base| base.local.clone());
        let request = SendRequest { snapshot: self.snapshot.name.clone(), base, flags: self.flags, resume: None };
        let source = Arc::new(SendSource { zfs: Arc::clone(&env.zfs), request });
        let base_guid = self.base.as_ref().map(|base| base.manifest.snapshot.guid);
        let plan = Arc::new(TransferPlan {
            dataset: self.stored.clone(),
            id: self.id.clone(),
            snapshot: self.snapshot.name.to_string(),
            expectation: StreamExpectation { snapshot_guid: self.snapshot.guid, base_guid },
            split_bytes: env.settings.split_bytes,
            compression: env.settings.compression,
            recipients: env.keys.recipients.clone(),
        });
        transfer(source, &*env.store, plan, Arc::clone(&env.progress), env.stop.clone()).await
    }

    /// Every chunk that the store confirmed must be listed, at its size: a store that forgets is found before the
    /// commit. What it lists besides, such as a chunk whose confirmation was lost, is reported by verify as extra.
    async fn check_listing(&self, transferred: &Transferred) -> Result<(), RunError> {
        let prefix = backup_prefix(&self.stored, &self.id);
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
            .bookmark(&format!("{BOOKMARK_PREFIX}{}", self.snapshot.guid))
            .map(|name| self.env.zfs.bookmark(&name, &SendBase::Snapshot(self.snapshot.name.clone())));
        match made {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.errno() == Some(ZfsErrno::EXISTS) => {}
            Ok(Err(error)) => tracing::warn!(%error, snapshot = %self.snapshot.name, "no bookmark was made"),
            Err(error) => tracing::warn!(%error, "no bookmark was made"),
        }
    }

    /// Under which tags the keyring lies in the store.
    pub(super) fn keyring_tags(&self) -> Vec<String> {
        self.env.keys.keyring.iter().map(|keyring| keyring.tag.clone()).collect()
    }

    async fn put_start(&self, written: &mut Written) -> Result<(), RunError> {
        extend_keyring(&*self.env.store, &self.keyring_tags(), (self.env.now)()).await?;
        let started = Started {
            format: FORMAT,
            object_type: SignedType::Started.as_str().to_owned(),
            dataset: self.stored.clone(),
            id: self.id.clone(),
            snapshot: self.snapshot_ref(),
            base: self.base_ref(),
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

    pub(super) fn base_ref(&self) -> Option<BaseRef> {
        let base = self.base.as_ref()?;
        let (guid, backup_id) = (base.manifest.snapshot.guid, base.manifest.id.clone());
        Some(BaseRef { guid, backup_id, manifest_blake3: base.manifest_blake3 })
    }

    pub(super) fn snapshot_ref(&self) -> SnapshotRef {
        let Snapshot { guid, createtxg, created_at, .. } = self.snapshot;
        SnapshotRef { guid, createtxg, created_at }
    }

    pub(super) fn origin(&self) -> Result<Origin, RunError> {
        Ok(Origin { dataset_guid: self.local.guid, pool_guid: self.env.zfs.pool_guid(self.local.name.pool())? })
    }

    pub(super) fn recipients(&self) -> Vec<String> {
        self.env.keys.recipients.iter().map(ToString::to_string).collect()
    }
}

/// The name of a new attempt.
pub(super) fn new_id(snapshot: &Snapshot, kind: BackupKind) -> Result<BackupId, RunError> {
    let nonce =
        getrandom::u64().map_err(|_| RunError::refused("the system gives no random bytes", "check /dev/urandom"))?;
    Ok(BackupId::new(snapshot.created_at, kind, snapshot.guid, nonce))
}

/// What is asked of the kernel for this dataset.
pub(super) fn send_flags(local: &Dataset, settings: &BackupSettings) -> SendFlags {
    let raw = settings.raw.is_raw(local.encrypted);
    SendFlags { raw, compressed: settings.compressed, embedded: settings.embedded, large_blocks: true }
}

pub(super) fn flag_names(flags: SendFlags) -> Vec<String> {
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
