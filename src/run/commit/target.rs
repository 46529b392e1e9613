//! The order of writes that turns an upload into a backup. Backup, recommit and copy call the
//! methods of [`CommitTarget`], which stand here in the order of their calls:
//!
//! 1. `started.json`, after its signature: every prune that begins from now on sees the upload.
//! 2. The keyring and the chunks, each confirmed by the store.
//! 3. [`CommitTarget::check_listing`]: the store lists every confirmed chunk at its size.
//! 4. `RESTORE.txt`, `private.age` and the chunk lists.
//! 5. `CommitTarget::check_base`, in [`super::base`]: the base of an incremental is still stored.
//! 6. [`CommitTarget::extend_locks`], in [`super::object_lock`]: the ancestors are locked as long as the new objects.
//! 7. [`CommitTarget::commit`]:
//!    1. no prune record names the backup,
//!    2. the journal records `committing`,
//!    3. the receipt, after its signature,
//!    4. the manifest, after its signature: from now on the backup exists,
//!    5. the manifest is read back and verified.
//!
//! A failure before the last put leaves no backup. A failure after it leaves a whole backup, which
//! the next run finds.

use super::put::{limit_bytes, put_again, to_json};
use crate::catalog::read_back::read_back;
use crate::catalog::remembered::remember_commit;
use crate::catalog::{CatalogError, find_gaps_in, read_prune_records_through};
use crate::manifest::{
    ChunkEntry, FORMAT, LiveEntry, Manifest, PruneRecord, Receipt, ReceiptEntry,
    SIGNATURE_BYTES_MAX,
};
use crate::model::{BackupId, DatasetName, Digest};
use crate::run::{RunError, error_chain};
use crate::sign::{SignedType, SigningKey, TrustedKeys};
use crate::state::journal::SignedBytes;
use crate::state::journal::log::CommitBytes;
use crate::state::manifests::{CacheMode, ObjectCache};
use crate::store::key::{BackupObject, backup_prefix, object_name};
use crate::store::{ObjectKey, ObjectStore, PutOutcome, StoreError, StoreErrorKind};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The place of one backup in the store that it is committed to.
#[derive(Clone, Copy)]
pub(in crate::run) struct CommitTarget<'a> {
    pub(in crate::run) store: &'a dyn ObjectStore,
    /// The dataset's name in the store.
    pub(in crate::run) dataset: &'a DatasetName,
    pub(in crate::run) id: &'a BackupId,
    pub(in crate::run) signing: &'a SigningKey,
    pub(in crate::run) trusted: &'a TrustedKeys,
    pub(in crate::run) state_dir: &'a Path,
}

/// Why a commit failed. Each operation turns the first four into its own words.
#[derive(Debug)]
pub(in crate::run) enum CommitError {
    /// The store has other bytes under a key that only this backup can have.
    Taken(StoreError),
    /// An object of the backup that the store confirmed is missing or damaged.
    Incomplete(CatalogError),
    /// The base is no longer stored as it was.
    BaseGone { base: BackupId, reason: String },
    /// A prune record names this backup, or one that it needs.
    Pruned(BackupId),
    /// Any other failure.
    Failed(RunError),
}

impl<E: Into<RunError>> From<E> for CommitError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl CommitTarget<'_> {
    /// Signs an object, and puts the signature and then the object.
    ///
    /// # Errors
    /// As for [`CommitTarget::put_with_signature`].
    pub(in crate::run) async fn put_signed(
        &self,
        object: &BackupObject,
        signed_type: SignedType,
        bytes: Vec<u8>,
    ) -> Result<ReceiptEntry, CommitError> {
        let signature = self
            .signing
            .sign(signed_type, self.key(object).as_str(), &bytes)?;
        self.put_with_signature(object, signed_type, bytes.into(), signature.into())
            .await
    }

    /// Puts the signature and then the object, so that the object is never stored without one. Two
    /// signatures of the same bytes differ: a stored signature from an interrupted run stays if it
    /// is trusted and of exactly these bytes.
    ///
    /// # Errors
    /// [`CommitError::Taken`] or [`CommitError::Failed`].
    pub(in crate::run) async fn put_with_signature(
        &self,
        object: &BackupObject,
        signed_type: SignedType,
        bytes: Bytes,
        signature: Bytes,
    ) -> Result<ReceiptEntry, CommitError> {
        let key = self.key(object);
        match put_again(self.store, &key.signature(), signature).await {
            Err(RunError::Store(error)) if error.kind == StoreErrorKind::AlreadyExists => {
                let stored = self
                    .store
                    .get(&key.signature(), None, SIGNATURE_BYTES_MAX)
                    .await?;
                let verified = self
                    .trusted
                    .verify(signed_type, key.as_str(), &bytes, &stored);
                if verified.is_err() {
                    return Err(CommitError::Taken(error));
                }
            }
            result => drop(result?),
        }
        self.put(object, bytes).await
    }

    /// Puts an object whose hash the manifest has, and returns its entry for the receipt.
    ///
    /// # Errors
    /// [`CommitError::Taken`] or [`CommitError::Failed`].
    pub(in crate::run) async fn put(
        &self,
        object: &BackupObject,
        bytes: Bytes,
    ) -> Result<ReceiptEntry, CommitError> {
        let key = self.key(object);
        if bytes.len() as u64 > limit_bytes(object) {
            let what = format!(
                "{key} would have {} bytes, more than any reader takes",
                bytes.len()
            );
            let hint = "make main.split_size larger, so that there are fewer chunks";
            return Err(RunError::refused(what, hint).into());
        }
        let (outcome, evidence) = match put_again(self.store, &key, bytes).await {
            Err(RunError::Store(error)) if error.kind == StoreErrorKind::AlreadyExists => {
                return Err(CommitError::Taken(error));
            }
            result => result?,
        };
        if outcome == PutOutcome::Identical {
            tracing::debug!(%key, "was there already with the same bytes");
        }
        Ok(ReceiptEntry {
            name: object_name(object),
            evidence,
        })
    }

    /// Checks that the store lists every confirmed chunk at its size, so that a store which loses
    /// objects is found before the commit. Returns all listed objects of the backup: their names
    /// below its prefix, and their sizes.
    ///
    /// # Errors
    /// [`CommitError::Incomplete`] or [`CommitError::Failed`].
    pub(in crate::run) async fn check_listing<'c>(
        &self,
        chunks: impl IntoIterator<Item = &'c ChunkEntry>,
    ) -> Result<BTreeMap<String, u64>, CommitError> {
        let listed = self.list().await?;
        let prefix = backup_prefix(self.dataset, self.id);
        let gap = find_gaps_in(prefix, &listed, chunks).next();
        match gap {
            Some(CatalogError::Damaged { key, reason }) => {
                let url = self.store.url();
                let reason = format!("{reason} in the listing of {url}, which confirmed it");
                Err(CommitError::Incomplete(CatalogError::Damaged {
                    key,
                    reason,
                }))
            }
            Some(gap) => Err(CommitError::Incomplete(gap)),
            None => Ok(listed),
        }
    }

    /// Lists the names and sizes of the objects that the store has of this backup.
    async fn list(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let prefix = backup_prefix(self.dataset, self.id);
        let listed = self.store.list(&prefix).await?;
        Ok(listed
            .into_iter()
            .map(|object| (object.key[prefix.len()..].to_owned(), object.bytes))
            .collect())
    }

    /// Makes the receipt and signs it. `objects` are all objects of the backup that the store
    /// confirmed; `live` are the dataset's other backups in the store.
    ///
    /// # Errors
    /// [`RunError`] when the receipt cannot be written or signed.
    pub(in crate::run) fn receipt(
        &self,
        manifest_blake3: Digest,
        objects: Vec<ReceiptEntry>,
        live: Vec<LiveEntry>,
        written_at: Timestamp,
    ) -> Result<SignedBytes, RunError> {
        let receipt = to_json(&Receipt {
            format: FORMAT,
            object_type: SignedType::Receipt.as_str().to_owned(),
            dataset: self.dataset.clone(),
            id: self.id.clone(),
            manifest_blake3,
            objects,
            live,
            written_at,
        })?;
        let key = self.key(&BackupObject::Receipt);
        let signature = self
            .signing
            .sign(SignedType::Receipt, key.as_str(), &receipt)?;
        Ok((receipt, signature))
    }

    /// Checks the prune records a last time, records `committing` in the journal, and puts receipt
    /// and manifest. A prune of another host may take the objects of an interrupted upload for
    /// abandoned; its record is stored before it deletes the first object, so that no backup is
    /// committed with missing objects. For `earlier_records` and `needed` see
    /// [`CommitTarget::check_not_pruned`].
    ///
    /// # Errors
    /// [`CommitError::Pruned`], [`CommitError::Taken`] or [`CommitError::Failed`].
    pub(in crate::run) async fn commit(
        &self,
        bytes: &CommitBytes,
        earlier_records: &BTreeMap<ObjectKey, PruneRecord>,
        needed: &[&BackupId],
        record_committing: impl FnOnce() -> Result<(), RunError>,
    ) -> Result<Manifest, CommitError> {
        self.check_not_pruned(earlier_records, needed).await?;
        record_committing()?;
        self.publish(bytes).await
    }

    /// Checks that no prune record names one of the `needed` backups: they are being deleted, or
    /// are deleted. `earlier_records` do not count: a backup that was pruned once may be copied to
    /// the store again.
    ///
    /// # Errors
    /// [`CommitError::Pruned`] or [`CommitError::Failed`].
    pub(in crate::run) async fn check_not_pruned(
        &self,
        earlier_records: &BTreeMap<ObjectKey, PruneRecord>,
        needed: &[&BackupId],
    ) -> Result<(), CommitError> {
        let store = self.store;
        let dataset = self.dataset;
        let cache = ObjectCache::open(
            self.state_dir,
            &store.known(),
            dataset,
            CacheMode::ReadWrite,
        );
        let records =
            read_prune_records_through(store, dataset, self.trusted, None, &cache).await?;
        let pruned: BTreeSet<BackupId> = records
            .into_iter()
            .filter(|(key, _)| !earlier_records.contains_key(key))
            .flat_map(|(_, record)| record.pruned)
            .map(|entry| entry.id)
            .collect();
        match needed.iter().find(|id| pruned.contains(**id)) {
            Some(id) => Err(CommitError::Pruned((*id).clone())),
            None => Ok(()),
        }
    }

    /// Puts receipt and manifest, and reads the manifest back. The puts are made one after the
    /// other: for other readers, the manifest's signature means that a manifest existed.
    async fn publish(&self, bytes: &CommitBytes) -> Result<Manifest, CommitError> {
        let CommitBytes {
            receipt,
            receipt_signature,
            manifest,
            manifest_signature,
        } = bytes.clone();
        let manifest_blake3 = Digest::of(&manifest);
        self.put_with_signature(
            &BackupObject::Receipt,
            SignedType::Receipt,
            receipt.into(),
            receipt_signature.into(),
        )
        .await?;
        let put = self
            .put_with_signature(
                &BackupObject::Manifest,
                SignedType::Manifest,
                manifest.into(),
                manifest_signature.into(),
            )
            .await;
        let read = read_back(
            self.store,
            self.dataset,
            self.id,
            self.trusted,
            manifest_blake3,
        )
        .await;
        match (put, read) {
            // If the put failed and the read-back works, only the reply to the put was lost.
            (_, Ok(manifest)) => Ok(manifest),
            (Err(error), Err(_)) => Err(error),
            (Ok(_), Err(error)) => Err(error.into()),
        }
    }

    /// Adds the committed backup to the saved state of the remote. Without it, an export made while
    /// the remote is out of reach would not name that backup, and the two backups would look like
    /// two time lines; by then a prune may have removed a copied backup from the intermediate
    /// directory. Call it only if the target is the remote.
    pub(in crate::run) fn remember(&self, bytes: &CommitBytes) {
        let signed = (&*bytes.manifest, &*bytes.manifest_signature);
        let known = self.store.known();
        if let Err(error) = remember_commit(self.state_dir, &known, self.dataset, self.id, signed) {
            tracing::warn!(
                error = error_chain(&error),
                "cannot save the new backup's manifest for planning while the remote is offline"
            );
        }
    }

    /// Returns the key of an object of this backup.
    pub(in crate::run) fn key(&self, object: &BackupObject) -> ObjectKey {
        ObjectKey::backup(self.dataset, self.id, object)
    }
}
