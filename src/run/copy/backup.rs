//! Copies one backup from store to store, in the order of writes of a commit.

use super::chunks::copy_chunk;
use super::keyring::copy_keyring;
use super::{CopiedBackup, UploadEnv};
use crate::catalog::CatalogError;
use crate::catalog::read_back::read_back;
use crate::catalog::remembered::remember_commit;
use crate::catalog::{
    StoredBackup, find_gaps, get_pinned, get_signed, read_chunks, read_manifest, read_prune_records,
};
use crate::keyring::{KEYRING_BYTES_MAX, tag_of};
use crate::manifest::{
    CHUNK_LIST_BYTES_MAX, ChunkEntry, FORMAT, LARGE_TEXT_BYTES_MAX, LiveEntry, MANIFEST_BYTES_MAX,
    Manifest, PRIVATE_BYTES_MAX, Receipt, ReceiptEntry, parse_receipt, to_stored_bytes,
};
use crate::model::{BackupId, Digest};
use crate::run::commit::doomed::{RecordsOf, find_doomed};
use crate::run::commit::object_lock::extend_chain;
use crate::run::commit::put::put_again;
use crate::run::transfer::Progress;
use crate::run::verify::compare;
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::state::journal::AttemptJournal;
use crate::store::key::{BackupObject, backup_prefix, dataset_prefix, object_name};
use crate::store::{Evidence, ObjectKey, StoreErrorKind};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// The copy of one backup.
pub(in crate::run::copy) struct Copy<'a> {
    pub(in crate::run::copy) env: &'a UploadEnv,
    pub(in crate::run::copy) backup: &'a StoredBackup,
    /// The parent of the backup in the remote.
    pub(in crate::run::copy) parent: Option<&'a BackupId>,
    /// Whether this run put the parent. No prune with an earlier record deletes it.
    pub(in crate::run::copy) is_parent_new: bool,
    /// The dataset's backups that are in the remote now.
    pub(in crate::run::copy) live: &'a [LiveEntry],
    /// The prune records from before this run put anything.
    pub(in crate::run::copy) records: &'a BTreeSet<ObjectKey>,
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

impl Confirmed {
    fn add(&mut self, name: String, evidence: Evidence) {
        self.receipt.push(ReceiptEntry { name, evidence });
    }
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
        match self.copy(done).await {
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

    async fn copy(&self, done: &mut Progress) -> Result<CopiedBackup, RunError> {
        let UploadEnv {
            from,
            to,
            state_dir,
            ..
        } = self.env;
        let Manifest {
            dataset, id, files, ..
        } = self.manifest();
        let chunks = self.source(read_chunks(&**from, self.manifest()).await)?;
        if let Some(gap) = find_gaps(self.backup, &chunks).next() {
            return self.source(Err(gap));
        }
        let journal = AttemptJournal::begin_or_reopen(state_dir, &to.known(), dataset, id)?;
        let mut confirmed = Confirmed::default();
        self.copy_signed(BackupObject::Started, SignedType::Started, &mut confirmed)
            .await?;
        self.check_parent_is_not_doomed().await?;
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
        self.copy_chunks(&chunks, &mut confirmed, done).await?;
        self.check_listing(&chunks).await?;
        let text = self
            .copy_signed(
                BackupObject::RestoreText,
                SignedType::RestoreText,
                &mut confirmed,
            )
            .await?;
        if Digest::of(&text) != files.restore_text {
            let key = self.key(&BackupObject::RestoreText).to_string();
            let reason = "its BLAKE3 is not the one that the manifest says".to_owned();
            return self.source(Err(RunError::Damaged { key, reason }));
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
        confirmed: &mut Confirmed,
        done: &mut Progress,
    ) -> Result<(), RunError> {
        let listed = self.listing().await?;
        for chunk in chunks {
            self.check_stop()?;
            let copied = copy_chunk(
                self.env,
                self.manifest(),
                chunk,
                listed.contains_key(&chunk.name),
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
            confirmed.add(chunk.name.clone(), copied.evidence);
            done.stream_bytes += chunk.stream_bytes;
            done.sent_bytes += chunk.sealed_bytes;
            done.chunks_confirmed += 1;
            (self.progress)(*done);
        }
        Ok(())
    }

    /// Lists the names and sizes of the objects in the remote under the id.
    async fn listing(&self) -> Result<BTreeMap<String, u64>, RunError> {
        let prefix = backup_prefix(&self.manifest().dataset, &self.manifest().id);
        let listed = self.env.to.list(&prefix).await?;
        Ok(listed
            .into_iter()
            .map(|object| (object.key[prefix.len()..].to_owned(), object.bytes))
            .collect())
    }

    /// Checks that every confirmed chunk is listed at its size, so that a store which loses objects
    /// is found before the commit.
    async fn check_listing(&self, chunks: &[ChunkEntry]) -> Result<(), RunError> {
        let listed = StoredBackup {
            objects: self.listing().await?,
            ..self.backup.clone()
        };
        match find_gaps(&listed, chunks).next() {
            Some(CatalogError::Damaged { key, reason }) => {
                let reason = format!(
                    "{reason} in the listing of {}, which confirmed it",
                    self.env.to.url()
                );
                Err(RunError::Damaged { key, reason })
            }
            Some(gap) => Err(gap.into()),
            None => Ok(()),
        }
    }

    /// Copies an object and its signature, the signature first.
    async fn copy_signed(
        &self,
        object: BackupObject,
        signed_type: SignedType,
        confirmed: &mut Confirmed,
    ) -> Result<Bytes, RunError> {
        self.check_stop()?;
        let (bytes, signature) = self
            .read_signed(&object, signed_type, LARGE_TEXT_BYTES_MAX)
            .await?;
        self.put(&self.key(&object).signature(), signature).await?;
        let evidence = self.put(&self.key(&object), bytes.clone()).await?;
        confirmed.add(object_name(&object), evidence);
        Ok(bytes)
    }

    async fn copy_pinned(
        &self,
        object: BackupObject,
        blake3: Digest,
        limit_bytes: u64,
        confirmed: &mut Confirmed,
    ) -> Result<Bytes, RunError> {
        self.check_stop()?;
        let key = self.key(&object);
        let bytes = self.source(get_pinned(&*self.env.from, &key, blake3, limit_bytes).await)?;
        let evidence = self.put(&key, bytes.clone()).await?;
        confirmed.add(object_name(&object), evidence);
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
        self.source(get_signed(&*self.env.from, &key, signed_type, trusted, limit_bytes).await)
    }

    async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<Evidence, RunError> {
        let (_, evidence) = put_again(&*self.env.to, key, bytes)
            .await
            .map_err(|error| self.taken(key, error))?;
        Ok(evidence)
    }

    /// Returns the error for other bytes under a key that only this backup can have.
    fn taken(&self, key: &ObjectKey, error: RunError) -> RunError {
        match error {
            RunError::Store(error) if error.kind == StoreErrorKind::AlreadyExists => {
                RunError::refused(
                    format!(
                        "{key}: {} holds another object there, of an attempt that this host does not know",
                        self.env.to.url()
                    ),
                    format!(
                        "`zfs-backup forget {}` removes the attempt; then run this again",
                        self.manifest().id
                    ),
                )
            }
            error => error,
        }
    }

    /// Checks that no prune is deleting the parent. A prune puts its record before it looks for
    /// uploads a second time, and the copy puts `started.json` before it reads the records: at
    /// least one of the two sees the other. Descendants are deleted before ancestors, so the parent
    /// stands for its whole chain.
    async fn check_parent_is_not_doomed(&self) -> Result<(), RunError> {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        let is_doomed = self.named_by_new_records().await?.contains(parent)
            || (!self.is_parent_new && self.is_parent_doomed(parent).await?);
        if is_doomed {
            return Err(self.parent_gone(parent));
        }
        self.check_parent().await
    }

    /// Whether a prune of another host, whose record may be older than this run, may be deleting the
    /// parent. The lock excludes the prunes of this host.
    async fn is_parent_doomed(&self, parent: &BackupId) -> Result<bool, RunError> {
        let of = RecordsOf {
            dataset: &self.manifest().dataset,
            trusted: &self.env.keys.trusted,
            state_dir: &self.env.state_dir,
            now: (self.env.now)(),
            is_locked: true,
        };
        let doomed = find_doomed(&*self.env.to, &of, &BTreeSet::from([parent])).await?;
        Ok(!doomed.is_empty())
    }

    /// Returns the backups that prunes have recorded since this run began: they are being deleted,
    /// or are deleted.
    async fn named_by_new_records(&self) -> Result<BTreeSet<BackupId>, RunError> {
        let now = read_prune_records(
            &*self.env.to,
            &self.manifest().dataset,
            &self.env.keys.trusted,
            None,
        )
        .await?;
        let new = now
            .into_iter()
            .filter(|(key, _)| !self.records.contains(key));
        Ok(new
            .flat_map(|(_, record)| record.pruned)
            .map(|entry| entry.id)
            .collect())
    }

    /// Checks the prune records a last time before the manifest may be put. A prune of another host
    /// takes the objects of an interrupted run of this copy for abandoned. Its record is there
    /// before it deletes the first object, so that no copy is committed with missing objects.
    async fn check_not_doomed(&self) -> Result<(), RunError> {
        let (id, to) = (&self.manifest().id, self.env.to.url());
        let named = self.named_by_new_records().await?;
        if named.contains(id) {
            let what = format!(
                "{id} was pruned from {to} while it was being copied; nothing is committed"
            );
            return Err(RunError::refused(
                what,
                "run the command again: it plans the copy again",
            ));
        }
        match self.parent.filter(|parent| named.contains(*parent)) {
            Some(parent) => Err(self.parent_gone(parent)),
            None => Ok(()),
        }
    }

    async fn check_parent(&self) -> Result<(), RunError> {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        let key = ObjectKey::backup(&self.manifest().dataset, parent, &BackupObject::Manifest);
        match self.env.to.head(&key).await? {
            Some(_) => Ok(()),
            None => Err(self.parent_gone(parent)),
        }
    }

    fn parent_gone(&self, parent: &BackupId) -> RunError {
        let (id, to) = (&self.manifest().id, self.env.to.url());
        let what = format!(
            "{parent}, which {id} follows from, was pruned from {to} meanwhile; nothing is committed"
        );
        RunError::refused(what, "run the command again: it plans the copy again")
    }

    async fn commit(
        &self,
        journal: &AttemptJournal,
        confirmed: &Confirmed,
    ) -> Result<(), RunError> {
        let (manifest, signature) = self
            .read_signed(
                &BackupObject::Manifest,
                SignedType::Manifest,
                MANIFEST_BYTES_MAX,
            )
            .await?;
        let expected = self.backup.manifest_blake3;
        if Digest::of(&manifest) != expected {
            let key = self.key(&BackupObject::Manifest).to_string();
            return self.source(Err(RunError::Damaged {
                key,
                reason: "it changed while it was being copied".into(),
            }));
        }
        self.check_parent().await?;
        self.extend_locks(&confirmed.receipt).await?;
        let (receipt, receipt_signature) = self.receipt(journal, &confirmed.receipt).await?;
        self.check_stop()?;
        self.check_not_doomed().await?;
        journal.committing()?;
        let key = self.key(&BackupObject::Receipt);
        self.put(&key.signature(), receipt_signature.into()).await?;
        self.put(&key, receipt.into()).await?;
        let key = self.key(&BackupObject::Manifest);
        let put = async {
            self.put(&key.signature(), signature.clone()).await?;
            self.put(&key, manifest.clone()).await
        };
        let put = put.await;
        let Manifest { dataset, id, .. } = self.manifest();
        let there = read_back(&*self.env.to, dataset, id, &self.env.keys.trusted, expected).await;
        match (put, there) {
            // If the put failed and the read-back works, only the reply to the put was lost.
            (_, Ok(_)) => {
                self.remember((&manifest, &signature));
                Ok(())
            }
            (Err(error), Err(_)) => Err(error),
            (Ok(_), Err(error)) => Err(error.into()),
        }
    }

    /// Saves the copied manifest for exports while the remote is out of reach: by then a prune may
    /// have removed the backup from the intermediate directory.
    fn remember(&self, signed: (&[u8], &[u8])) {
        let UploadEnv { to, state_dir, .. } = self.env;
        let Manifest { dataset, id, .. } = self.manifest();
        if let Err(error) = remember_commit(state_dir, &to.known(), dataset, id, signed) {
            tracing::warn!(
                error = error_chain(&error),
                "cannot save the copy's manifest for planning while the remote is offline"
            );
        }
    }

    /// Extends the locks of the ancestors in the remote to those of the copy before the commit.
    async fn extend_locks(&self, own: &[ReceiptEntry]) -> Result<(), RunError> {
        let to = &*self.env.to;
        if to.object_lock().is_none() {
            return Ok(());
        }
        let Manifest {
            dataset,
            id: own_id,
            recipients,
            ..
        } = self.manifest();
        let (mut ancestors, mut next) = (Vec::new(), self.parent.cloned());
        while let Some(id) = next {
            let manifest = match read_manifest(to, dataset, &id, &self.env.keys.trusted).await {
                Ok((manifest, _)) => manifest,
                // A twin may have taken this ancestor's place, and the descendants do not name the
                // twin: extend the locks of all backups in the remote.
                Err(error) if error.is_damage() => {
                    ancestors = self.all_in_target().await?;
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            next = manifest
                .base
                .map(|base| base.backup_id)
                .filter(|base| !ancestors.contains(base));
            ancestors.push(id);
        }
        let tags: Vec<String> = recipients
            .iter()
            .map(|recipient| tag_of(recipient))
            .collect();
        extend_chain(to, dataset, own_id, &ancestors, &tags, own).await
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
    ) -> Result<(Vec<u8>, Vec<u8>), RunError> {
        if let Some((receipt, signature)) = journal.kept_receipt()?
            && self.still_holds(&receipt, &signature, entries)
        {
            return Ok((receipt, signature));
        }
        let key = self.key(&BackupObject::Receipt);
        let (trusted, limit_bytes) = (&self.env.keys.trusted, self.manifest().receipt_bytes_max());
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
        let receipt = Receipt {
            format: FORMAT,
            object_type: SignedType::Receipt.as_str().to_owned(),
            dataset: self.manifest().dataset.clone(),
            id: self.manifest().id.clone(),
            manifest_blake3: self.backup.manifest_blake3,
            objects: entries.to_vec(),
            live: self.live.to_vec(),
            written_at: (self.env.now)(),
        };
        let unwritable = |error| RunError::File {
            operation: "write",
            path: "JSON".into(),
            source: std::io::Error::other(error),
        };
        let bytes = to_stored_bytes(&receipt).map_err(unwritable)?;
        let signature = self
            .env
            .keys
            .signing
            .sign(SignedType::Receipt, key.as_str(), &bytes)?;
        journal.keep_receipt(&bytes, &signature)?;
        Ok((bytes, signature))
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
    fn source<T>(&self, result: Result<T, impl Into<RunError>>) -> Result<T, RunError> {
        let from = self.env.from.url();
        result.map_err(|error| match error.into() {
            RunError::Damaged { key, reason } => RunError::Damaged {
                key,
                reason: format!("{reason} (in {from})"),
            },
            RunError::Manifest { key, source } => RunError::Manifest {
                key: format!("{key} in {from}"),
                source,
            },
            error => error,
        })
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
        ObjectKey::backup(&self.manifest().dataset, &self.manifest().id, object)
    }
}
