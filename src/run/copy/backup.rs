//! Copies one backup from store to store, in the order of writes of a commit.

use super::chunks::copy_chunk;
use super::keyring::copy_keyring;
use super::{CopiedBackup, UploadEnv};
use crate::catalog::stores::RemoteView;
use crate::catalog::{StoredBackup, find_gaps, get_pinned, get_signed, read_chunks, read_manifest};
use crate::keyring::{KEYRING_BYTES_MAX, tag_of};
use crate::manifest::{
    CHUNK_LIST_BYTES_MAX, ChunkEntry, LARGE_TEXT_BYTES_MAX, LiveEntry, MANIFEST_BYTES_MAX,
    Manifest, PRIVATE_BYTES_MAX, PruneRecord, ReceiptEntry, parse_receipt,
};
use crate::model::{BackupId, Digest};
use crate::run::commit::doomed::{PRUNE_MAX, RecordsOf, find_doomed};
use crate::run::commit::target::{CommitError, CommitTarget};
use crate::run::transfer::Progress;
use crate::run::verify::compare;
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::state::journal::log::CommitBytes;
use crate::state::journal::{AttemptJournal, SignedBytes};
use crate::store::key::{BackupObject, backup_prefix, dataset_prefix};
use crate::store::{Evidence, ObjectKey};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// The copy of one backup.
pub(in crate::run::copy) struct Copy<'a> {
    pub(in crate::run::copy) env: &'a UploadEnv,
    pub(in crate::run::copy) backup: &'a StoredBackup,
    /// The parent of the backup in the remote.
    pub(in crate::run::copy) parent: Option<&'a LiveEntry>,
    /// Whether this run put the parent. No prune with an earlier record deletes it.
    pub(in crate::run::copy) is_parent_new: bool,
    /// The dataset's backups that are in the remote now.
    pub(in crate::run::copy) live: &'a [LiveEntry],
    /// The prune records from before this run put anything.
    pub(in crate::run::copy) records: &'a BTreeMap<ObjectKey, PruneRecord>,
    /// Receives the progress of this backup and those before it.
    pub(in crate::run::copy) progress: &'a (dyn Fn(Progress) + Send + Sync),
}

/// The objects that the remote has confirmed so far.
#[derive(Default)]
struct Confirmed {
    receipt: Vec<ReceiptEntry>,
    sent_bytes: u64,
    by_size_only: usize,
}

impl Copy<'_> {
    /// Copies the backup and reads its manifest back.
    ///
    /// # Errors
    /// [`RunError`]; then the remote has no new backup.
    pub(in crate::run::copy) async fn run(
        &self,
        done: &mut Progress,
    ) -> Result<CopiedBackup, RunError> {
        match self
            .copy(done)
            .await
            .map_err(|error| self.failed_commit(error))
        {
            Err(error) if error.is_damage() && self.is_gone().await => Err(RunError::refused(
                format!(
                    "{} was deleted from {} while it was being copied",
                    self.manifest().id,
                    self.env.from.url()
                ),
                "run it again",
            )),
            result => result,
        }
    }

    /// Returns whether the backup was pruned from the directory during the copy: then its missing
    /// objects are no damage. If the directory cannot be read, they stay damage.
    async fn is_gone(&self) -> bool {
        matches!(
            self.env.from.head(&self.key(&BackupObject::Manifest)).await,
            Ok(None)
        )
    }

    async fn copy(&self, done: &mut Progress) -> Result<CopiedBackup, CommitError> {
        let UploadEnv {
            from,
            to,
            state_dir,
            ..
        } = self.env;
        let Manifest {
            dataset, id, files, ..
        } = self.manifest();
        let chunks = read_chunks(&**from, self.manifest())
            .await
            .map_err(|error| self.in_source(error))?;
        if let Some(gap) = find_gaps(self.backup, &chunks).next() {
            return Err(self.in_source(gap).into());
        }
        let journal = AttemptJournal::begin_or_reopen(state_dir, &to.known(), dataset, id)?;
        let mut confirmed = Confirmed::default();
        self.copy_signed(BackupObject::Started, SignedType::Started, &mut confirmed)
            .await?;
        // A prune puts its record before it looks for uploads a second time, and the copy puts
        // `started.json` before it reads the records: at least one of the two sees the other.
        // Descendants are deleted before ancestors, so the parent stands for its whole chain.
        self.check_no_prune().await?;
        self.check_parent().await?;
        let listed = self.list_newer_than_prunes().await?;
        if let Some(blake3) = files.keyring {
            let keyring = self
                .copy_pinned(
                    BackupObject::Keyring,
                    blake3,
                    KEYRING_BYTES_MAX,
                    &mut confirmed,
                )
                .await?;
            copy_keyring(&**from, &**to, &self.manifest().recipients, &keyring).await?;
        }
        self.copy_chunks(&chunks, &listed, &mut confirmed, done)
            .await?;
        self.target().check_listing(&chunks).await?;
        let text = self
            .copy_signed(
                BackupObject::RestoreText,
                SignedType::RestoreText,
                &mut confirmed,
            )
            .await?;
        if Digest::of(&text) != files.restore_text {
            let error = RunError::Damaged {
                key: self.key(&BackupObject::RestoreText).to_string(),
                reason: "its BLAKE3 is not the one that the manifest says".to_owned(),
            };
            return Err(self.in_source(error).into());
        }
        self.copy_pinned(
            BackupObject::Private,
            files.private,
            PRIVATE_BYTES_MAX,
            &mut confirmed,
        )
        .await?;
        for (number, list) in self.manifest().chunk_lists.iter().enumerate() {
            let object = BackupObject::ChunkList(u16::try_from(number).unwrap_or(u16::MAX));
            self.copy_pinned(object, list.blake3, CHUNK_LIST_BYTES_MAX, &mut confirmed)
                .await?;
        }
        self.commit(&journal, &confirmed).await?;
        if let Err(error) = journal.committed() {
            tracing::warn!(error = %error_chain(&error), "the backup is committed; its journal stays");
        }
        Ok(CopiedBackup {
            id: id.clone(),
            chunks: chunks.len(),
            stored_bytes: chunks.iter().map(|chunk| chunk.sealed_bytes).sum(),
            sent_bytes: confirmed.sent_bytes,
            by_size_only: confirmed.by_size_only,
        })
    }

    async fn copy_chunks(
        &self,
        chunks: &[ChunkEntry],
        listed: &BTreeSet<String>,
        confirmed: &mut Confirmed,
        done: &mut Progress,
    ) -> Result<(), RunError> {
        for chunk in chunks {
            self.check_stop()?;
            let copied = copy_chunk(
                self.env,
                self.manifest(),
                chunk,
                listed.contains(&chunk.name),
            )
            .await?;
            if copied.sent {
                confirmed.sent_bytes += chunk.sealed_bytes;
            }
            if !copied.proven {
                confirmed.by_size_only += 1;
                tracing::warn!(
                    chunk = chunk.name,
                    "was stored before; the store confirms its size only"
                );
            }
            confirmed.receipt.push(ReceiptEntry {
                name: chunk.name.clone(),
                evidence: copied.evidence,
            });
            done.stream_bytes += chunk.stream_bytes;
            done.sent_bytes += chunk.sealed_bytes;
            done.chunks_confirmed += 1;
            (self.progress)(*done);
        }
        Ok(())
    }

    /// Copies an object and its signature, the signature first.
    async fn copy_signed(
        &self,
        object: BackupObject,
        signed_type: SignedType,
        confirmed: &mut Confirmed,
    ) -> Result<Bytes, CommitError> {
        self.check_stop()?;
        let (bytes, signature) = self
            .read_signed(&object, signed_type, LARGE_TEXT_BYTES_MAX)
            .await?;
        let put = self
            .target()
            .put_with_signature(&object, signed_type, bytes.clone(), signature)
            .await;
        confirmed.receipt.push(put?);
        Ok(bytes)
    }

    async fn copy_pinned(
        &self,
        object: BackupObject,
        blake3: Digest,
        limit_bytes: u64,
        confirmed: &mut Confirmed,
    ) -> Result<Bytes, CommitError> {
        self.check_stop()?;
        let key = self.key(&object);
        let bytes = get_pinned(&*self.env.from, &key, blake3, limit_bytes)
            .await
            .map_err(|error| self.in_source(error))?;
        let put = self.target().put(&object, bytes.clone()).await;
        confirmed.receipt.push(put?);
        Ok(bytes)
    }

    async fn read_signed(
        &self,
        object: &BackupObject,
        signed_type: SignedType,
        limit_bytes: u64,
    ) -> Result<(Bytes, Bytes), RunError> {
        let key = self.key(object);
        let trusted = &self.env.keys.trusted;
        get_signed(&*self.env.from, &key, signed_type, trusted, limit_bytes)
            .await
            .map_err(|error| self.in_source(error))
    }

    /// Returns the error of this copy for a failed commit.
    fn failed_commit(&self, error: CommitError) -> RunError {
        let id = &self.manifest().id;
        let to = self.env.to.url();
        let plan_again = "run the command again: it plans the copy again";
        match error {
            CommitError::Taken(error) => RunError::refused(
                format!(
                    "{}: {to} holds another object there, of an attempt that this host does not know",
                    error.subject
                ),
                format!("`zfs-backup forget {id}` removes the attempt; then run this again"),
            ),
            CommitError::Incomplete(error) => error.into(),
            CommitError::Pruned(pruned) if pruned == *id => RunError::refused(
                format!(
                    "{id} was pruned from {to} while it was being copied; nothing is committed"
                ),
                plan_again,
            ),
            CommitError::Pruned(parent) | CommitError::BaseGone { base: parent, .. } => {
                RunError::refused(
                    format!(
                        "{parent}, the base of {id}, was pruned from {to} during the copy; nothing is committed"
                    ),
                    plan_again,
                )
            }
            CommitError::Failed(error) => error,
        }
    }

    /// The backups that must not be pruned: this one and its parent.
    fn needed(&self) -> Vec<&BackupId> {
        let parent = self.parent.map(|parent| &parent.id);
        std::iter::once(&self.manifest().id).chain(parent).collect()
    }

    /// Checks that no prune is deleting the parent, or this backup from before it was pruned. Even if
    /// nothing of it is left, a deletion whose reply was lost may be repeated.
    async fn check_no_prune(&self) -> Result<(), CommitError> {
        let target = self.target();
        let mut needed = self.needed();
        target.check_not_pruned(self.records, &needed).await?;
        // The record of a prune of another host may be older than this run. The lock excludes the
        // prunes of this host.
        if self.is_parent_new {
            needed.truncate(1);
        }
        let of = RecordsOf {
            dataset: target.dataset,
            trusted: target.trusted,
            state_dir: target.state_dir,
            now: (self.env.now)(),
            is_locked: true,
        };
        let doomed = find_doomed(target.store, &of, &needed.into_iter().collect()).await?;
        let Some(pruned) = doomed.into_iter().next() else {
            return Ok(());
        };
        let hours = PRUNE_MAX.as_hours();
        let what = format!(
            "another host pruned {pruned} from {} less than {hours} hours ago, and may still be deleting it",
            target.store.url()
        );
        let hint = format!("run it again {hours} hours after that prune");
        Err(RunError::refused(what, hint).into())
    }

    /// Returns the names of the objects that the remote has of this backup. A prune takes objects
    /// that are older than a prune record of this backup for the rest of what was pruned, so the
    /// newest object must be newer than all these records. It is not if a prune was interrupted, or
    /// if the store has no clock of its own and the clock of the host that pruned was ahead.
    async fn list_newer_than_prunes(&self) -> Result<BTreeSet<String>, CommitError> {
        let target = self.target();
        let prefix = backup_prefix(target.dataset, target.id);
        let listed = target.store.list(&prefix).await?;
        let is_named =
            |record: &&PruneRecord| record.pruned.iter().any(|entry| entry.id == *target.id);
        let pruned_at = self
            .records
            .values()
            .filter(is_named)
            .map(PruneRecord::put_at)
            .max();
        let newest = listed.iter().filter_map(|object| object.modified_at).max();
        match (pruned_at, newest) {
            (Some(pruned_at), Some(newest)) if newest <= pruned_at => {
                let what = format!(
                    "{} was pruned from {} at {pruned_at}, and the newest of its objects there is of \
                     {newest}: a prune deletes them as the rest of that backup",
                    target.id,
                    target.store.url()
                );
                let hint = "`zfs-backup prune-remote` deletes them, after that time if it is in the future; then run this again";
                return Err(RunError::refused(what, hint).into());
            }
            _ => {}
        }
        let name = |key: String| key[prefix.len()..].to_owned();
        Ok(listed.into_iter().map(|object| name(object.key)).collect())
    }

    async fn check_parent(&self) -> Result<(), CommitError> {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        self.target()
            .check_base(&parent.id, parent.manifest_blake3, &RemoteView::None)
            .await
    }

    async fn commit(
        &self,
        journal: &AttemptJournal,
        confirmed: &Confirmed,
    ) -> Result<(), CommitError> {
        let (manifest, signature) = self
            .read_signed(
                &BackupObject::Manifest,
                SignedType::Manifest,
                MANIFEST_BYTES_MAX,
            )
            .await?;
        let expected = self.backup.manifest_blake3;
        if Digest::of(&manifest) != expected {
            let error = RunError::Damaged {
                key: self.key(&BackupObject::Manifest).to_string(),
                reason: "it changed while it was being copied".into(),
            };
            return Err(self.in_source(error).into());
        }
        self.check_parent().await?;
        let target = self.target();
        if self.env.to.object_lock().is_some() {
            let tags: Vec<String> = self
                .manifest()
                .recipients
                .iter()
                .map(|recipient| tag_of(recipient))
                .collect();
            target
                .extend_locks(&self.ancestors().await?, &tags, &confirmed.receipt)
                .await?;
        }
        let (receipt, receipt_signature) = self.receipt(journal, &confirmed.receipt).await?;
        self.check_stop()?;
        let bytes = CommitBytes {
            receipt,
            receipt_signature,
            manifest: manifest.to_vec(),
            manifest_signature: signature.to_vec(),
        };
        target
            .commit(&bytes, self.records, &self.needed(), || {
                Ok(journal.committing()?)
            })
            .await?;
        target.remember(&bytes);
        Ok(())
    }

    /// Returns the ancestors of the copy in the remote.
    async fn ancestors(&self) -> Result<Vec<BackupId>, RunError> {
        let to = &*self.env.to;
        let dataset = &self.manifest().dataset;
        let mut ancestors = Vec::new();
        let mut next = self.parent.map(|parent| parent.id.clone());
        while let Some(id) = next {
            let manifest = match read_manifest(to, dataset, &id, &self.env.keys.trusted).await {
                Ok((manifest, _)) => manifest,
                // A twin may have taken this ancestor's place, and the descendants do not name the
                // twin: extend the locks of all backups in the remote.
                Err(error) if error.is_damage() => return self.all_in_target().await,
                Err(error) => return Err(error.into()),
            };
            next = manifest
                .base
                .map(|base| base.backup_id)
                .filter(|base| !ancestors.contains(base));
            ancestors.push(id);
        }
        Ok(ancestors)
    }

    async fn all_in_target(&self) -> Result<Vec<BackupId>, RunError> {
        let listed = self
            .env
            .to
            .list(&dataset_prefix(&self.manifest().dataset))
            .await?;
        let ids: BTreeSet<BackupId> = listed
            .iter()
            .filter_map(|object| ObjectKey::parse(&object.key))
            .map(|key| key.id)
            .collect();
        Ok(ids.into_iter().collect())
    }

    /// Returns the receipt of the new store and its signature. Uses the receipt of an interrupted
    /// run if its contents still hold.
    async fn receipt(
        &self,
        journal: &AttemptJournal,
        entries: &[ReceiptEntry],
    ) -> Result<SignedBytes, RunError> {
        if let Some((receipt, signature)) = journal.kept_receipt()?
            && self.still_holds(&receipt, &signature, entries)
        {
            return Ok((receipt, signature));
        }
        let key = self.key(&BackupObject::Receipt);
        let trusted = &self.env.keys.trusted;
        let limit_bytes = self.manifest().receipt_bytes_max();
        match get_signed(
            &*self.env.to,
            &key,
            SignedType::Receipt,
            trusted,
            limit_bytes,
        )
        .await
        {
            Ok((receipt, signature)) if self.still_holds(&receipt, &signature, entries) => {
                return Ok((receipt.to_vec(), signature.to_vec()));
            }
            Ok(_) => {}
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error.into()),
        }
        let (receipt, signature) = self.target().receipt(
            self.backup.manifest_blake3,
            entries.to_vec(),
            self.live.to_vec(),
            (self.env.now)(),
        )?;
        journal.keep_receipt(&receipt, &signature)?;
        Ok((receipt, signature))
    }

    fn still_holds(&self, receipt: &[u8], signature: &[u8], entries: &[ReceiptEntry]) -> bool {
        let Manifest { dataset, id, .. } = self.manifest();
        let Ok(receipt) = parse_receipt(&self.env.keys.trusted, dataset, id, receipt, signature)
        else {
            return false;
        };
        let now: BTreeMap<&str, &Evidence> = entries
            .iter()
            .map(|entry| (entry.name.as_str(), &entry.evidence))
            .collect();
        let agrees = |entry: &ReceiptEntry| {
            compare(&entry.evidence, now.get(entry.name.as_str()).copied()).is_ok()
        };
        receipt.manifest_blake3 == self.backup.manifest_blake3
            && receipt.objects.len() == now.len()
            && receipt.objects.iter().all(agrees)
    }

    /// Adds the name of the directory to a fault found while reading it.
    fn in_source(&self, error: impl Into<RunError>) -> RunError {
        let from = self.env.from.url();
        match error.into() {
            RunError::Damaged { key, reason } => RunError::Damaged {
                key,
                reason: format!("{reason} (in {from})"),
            },
            RunError::Manifest { key, source } => RunError::Manifest {
                key: format!("{key} in {from}"),
                source,
            },
            error => error,
        }
    }

    fn check_stop(&self) -> Result<(), RunError> {
        if *self.env.stop.borrow() {
            Err(RunError::Interrupted)
        } else {
            Ok(())
        }
    }

    fn manifest(&self) -> &Manifest {
        &self.backup.manifest
    }

    fn key(&self, object: &BackupObject) -> ObjectKey {
        self.target().key(object)
    }

    fn target(&self) -> CommitTarget<'_> {
        CommitTarget {
            store: &*self.env.to,
            dataset: &self.manifest().dataset,
            id: &self.manifest().id,
            signing: &self.env.keys.signing,
            trusted: &self.env.keys.trusted,
            state_dir: &self.env.state_dir,
        }
    }
}
