//! The commit: the steps that turn a whole, confirmed stream into a backup, the manifest last.

use super::CommittedBackup;
use super::attempt::{Attempt, Course};
use super::planning::remember_commit;
use super::put::{Put, Written, json};
use super::source::flag_names;
use crate::catalog::read_back::read_back;
use crate::catalog::sealed::seal_small;
use crate::catalog::stores::StoresView;
use crate::catalog::{Catalog, StoredBackup};
use crate::manifest::{
    CHUNKS_PER_LIST, ChainPlace, ChunkEntry, ChunkList, ChunkListRef, Descendant, FORMAT, Files,
    LiveEntry, Manifest, Origin, Private, Receipt, ReceiptEntry, RestoreText, SendInfo, ZfsKey,
    parse_chunk_list, parse_manifest, restore_text,
};
use crate::model::{BackupId, Digest, Guid};
use crate::plan::timeline::previous_of;
use crate::run::commit::object_lock::extend_chain;
use crate::run::pool::view::pool_view;
use crate::run::transfer::Transferred;
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::state::host_mark::host_mark;
use crate::state::journal::log::{CommitBytes, JournalRecord};
use crate::store::ObjectKey;
use crate::store::key::{BackupObject, object_name};
use crate::zfs::PropertyValue;
use bytes::Bytes;
use futures_util::future::join3;
use jiff::Timestamp;

impl Attempt<'_> {
    pub(super) async fn commit(
        &self,
        stores: &StoresView,
        transferred: Transferred,
        mut written: Written,
        course: &mut Course,
    ) -> Result<CommittedBackup, RunError> {
        let finished_at = (self.env.now)();
        let entries: Vec<ChunkEntry> = transferred
            .chunks
            .iter()
            .map(|chunk| chunk.entry.clone())
            .collect();
        for chunk in &transferred.chunks {
            written.receipt.push(ReceiptEntry {
                name: chunk.entry.name.clone(),
                evidence: chunk.evidence.clone(),
            });
        }
        let private = self.private_once(course)?;
        let text = self.restore_text(&entries, course);
        // The three puts are independent: run them concurrently to save round trips.
        let (text, private, lists) = join3(
            self.put_signed(BackupObject::RestoreText, SignedType::RestoreText, text),
            self.put(BackupObject::Private, private),
            self.put_chunk_lists(&entries),
        )
        .await;
        let (chunk_lists, lists): (Vec<_>, Vec<_>) = lists?.into_iter().unzip();
        [text?, private?]
            .into_iter()
            .chain(lists)
            .for_each(|put| written.note(put));
        let keyring = course.keyring.as_ref().map(|bytes| Digest::of(bytes));
        let manifest = self.manifest(
            stores,
            &transferred,
            &entries,
            (chunk_lists, keyring),
            &written,
            finished_at,
        )?;
        let manifest_bytes = json(&manifest)?;
        let manifest_blake3 = Digest::of(&manifest_bytes);
        self.check_as_a_reader(&manifest_bytes, &entries)?;
        self.check_base(stores).await?;
        self.extend_locks(stores, &written).await?;
        let receipt = self.receipt(
            &stores.target.catalog,
            manifest_blake3,
            written.receipt.clone(),
            finished_at,
        );
        let bytes = self.sign_commit(json(&receipt)?, manifest_bytes)?;
        self.check_not_doomed().await?;
        // Append the bytes first: the name of a committing journal says that it may hold them.
        course
            .log
            .append(&JournalRecord::Commit(Box::new(bytes.clone())))?;
        course.journal.committing()?;
        let manifest = self.put_commit(&bytes).await?;
        remember_commit(self.env, &self.stored, &self.id, &bytes);
        let stored_bytes = entries.iter().map(|entry| entry.sealed_bytes).sum();
        let evidence = transferred
            .chunks
            .into_iter()
            .map(|chunk| chunk.evidence)
            .max_by_key(|evidence| evidence.tier);
        Ok(CommittedBackup {
            manifest,
            stored_bytes,
            chunks: entries.len(),
            evidence,
            before: Vec::new(),
        })
    }

    /// Returns the bytes of `private.age`. Each sealing gives other bytes, so the journal records
    /// them before they are put.
    fn private_once(&self, course: &mut Course) -> Result<Bytes, RunError> {
        if let Some(private) = &course.private {
            return Ok(Bytes::copy_from_slice(private));
        }
        let private = self.private(course.descendants.clone())?;
        course.log.append(&JournalRecord::Closing {
            private: private.to_vec(),
        })?;
        Ok(private)
    }

    fn sign_commit(&self, receipt: Vec<u8>, manifest: Vec<u8>) -> Result<CommitBytes, RunError> {
        let sign = |object, signed_type, bytes: &[u8]| {
            self.env
                .keys
                .signing
                .sign(signed_type, self.key(&object).as_str(), bytes)
        };
        let receipt_signature = sign(BackupObject::Receipt, SignedType::Receipt, &receipt)?;
        let manifest_signature = sign(BackupObject::Manifest, SignedType::Manifest, &manifest)?;
        Ok(CommitBytes {
            receipt,
            receipt_signature,
            manifest,
            manifest_signature,
        })
    }

    /// Puts receipt and manifest, and reads the manifest back.
    async fn put_commit(&self, bytes: &CommitBytes) -> Result<Manifest, RunError> {
        let CommitBytes {
            receipt,
            receipt_signature,
            manifest,
            manifest_signature,
        } = bytes;
        // Put one after the other: for other readers, the manifest's signature means that a
        // manifest existed.
        self.put_both(BackupObject::Receipt, receipt, receipt_signature)
            .await?;
        let put = self
            .put_both(BackupObject::Manifest, manifest, manifest_signature)
            .await;
        let trusted = &self.env.keys.trusted;
        let there = read_back(
            &*self.env.store,
            &self.stored,
            &self.id,
            trusted,
            Digest::of(manifest),
        )
        .await;
        match (put, there) {
            // If the put failed and the read-back works, only the reply to the put was lost.
            (_, Ok(manifest)) => Ok(manifest),
            (Err(error), Err(_)) => Err(error),
            (Ok(_), Err(error)) => Err(error.into()),
        }
    }

    /// Extends the locks of the ancestors to those of this backup before the commit.
    async fn extend_locks(&self, stores: &StoresView, written: &Written) -> Result<(), RunError> {
        let here = |id: &&BackupId| stores.target.catalog.backup(id).is_some();
        let ancestors: Vec<BackupId> = self.before.iter().filter(here).cloned().collect();
        let tags = self.keyring_tags();
        extend_chain(
            &*self.env.store,
            &self.stored,
            &self.id,
            &ancestors,
            &tags,
            &written.receipt,
        )
        .await
    }

    /// Checks the exact bytes with the reader's own rules, so that no backup is committed that a
    /// reader would refuse.
    fn check_as_a_reader(
        &self,
        manifest_bytes: &[u8],
        entries: &[ChunkEntry],
    ) -> Result<(), RunError> {
        let key = ObjectKey::backup(&self.stored, &self.id, &BackupObject::Manifest);
        let refused = |source| RunError::Manifest {
            key: key.to_string(),
            source,
        };
        let signature =
            self.env
                .keys
                .signing
                .sign(SignedType::Manifest, key.as_str(), manifest_bytes)?;
        let keys = &self.env.keys.trusted;
        let manifest = parse_manifest(keys, &self.stored, &self.id, manifest_bytes, &signature)
            .map_err(refused)?;
        for (number, chunks) in entries.chunks(CHUNKS_PER_LIST).enumerate() {
            parse_chunk_list(&manifest, number, &json(&chunk_list(chunks))?).map_err(refused)?;
        }
        Ok(())
    }

    fn manifest(
        &self,
        stores: &StoresView,
        transferred: &Transferred,
        entries: &[ChunkEntry],
        (chunk_lists, keyring): (Vec<ChunkListRef>, Option<Digest>),
        written: &Written,
        finished_at: Timestamp,
    ) -> Result<Manifest, RunError> {
        let summary = &transferred.summary;
        let origin = self.origin()?;
        let group = format!("{}-{:016x}", origin.pool_guid, self.snapshot.createtxg);
        let previous = self.previous(stores, &origin)?;
        Ok(Manifest {
            format: FORMAT,
            requires: Vec::new(),
            object_type: SignedType::Manifest.as_str().to_owned(),
            dataset: self.stored.clone(),
            id: self.id.clone(),
            kind: self.id.kind(),
            snapshot: self.snapshot_ref(),
            base: self.base_ref(),
            origin,
            host_mark: Some(host_mark(&self.env.settings.state_dir)?),
            previous: Some(previous),
            group: Some(group),
            clone_origin_guid: self.clone_origin_guid(),
            chain: self.chain_place(entries),
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
                keyring,
                index: None,
            },
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            finished_at,
        })
    }

    /// Returns the newest backups that the pool knows now. The manifest of a full names them as its
    /// predecessors.
    fn previous(&self, stores: &StoresView, origin: &Origin) -> Result<Vec<BackupId>, RunError> {
        let place = (
            &*self.env.settings.state_dir,
            &self.env.store.known(),
            &self.stored,
        );
        let pool = pool_view(&*self.env.zfs, &self.local.name, place, origin)?;
        let facts = [stores.target_facts(), stores.remote_facts()].concat();
        Ok(previous_of(&facts, &pool, self.snapshot.guid))
    }

    /// Returns the guid of the snapshot that the dataset is a clone of; `None` when a concurrent
    /// `zfs promote` changed that, or when the snapshots cannot be listed. A restore works without
    /// it.
    fn clone_origin_guid(&self) -> Option<Guid> {
        let origin = self.local.origin.as_ref()?;
        match self.env.zfs.snapshots(origin.dataset()) {
            Ok(snapshots) => snapshots
                .into_iter()
                .find(|snapshot| snapshot.name == *origin)
                .map(|found| found.guid),
            Err(error) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "what it is a clone of is not noted in the backup"
                );
                None
            }
        }
    }

    fn chain_place(&self, entries: &[ChunkEntry]) -> ChainPlace {
        let own_bytes: u64 = entries.iter().map(|entry| entry.sealed_bytes).sum();
        match &self.base {
            None => ChainPlace {
                full_id: self.id.clone(),
                position: 0,
                stored_bytes: own_bytes,
            },
            Some(base) => {
                let ChainPlace {
                    full_id,
                    position,
                    stored_bytes,
                } = base.manifest.chain.clone();
                ChainPlace {
                    full_id,
                    position: position + 1,
                    stored_bytes: stored_bytes.saturating_add(own_bytes),
                }
            }
        }
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
            dataset: self.stored.clone(),
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
    ) -> Result<Vec<(ChunkListRef, Put)>, RunError> {
        let mut lists = Vec::new();
        for (number, chunks) in entries.chunks(CHUNKS_PER_LIST).enumerate() {
            let number = u16::try_from(number).map_err(|_| {
                RunError::refused(
                    "the backup has too many chunks",
                    "make main.split_size larger",
                )
            })?;
            let object = BackupObject::ChunkList(number);
            let bytes = json(&chunk_list(chunks))?;
            let count = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
            let list = ChunkListRef {
                name: object_name(&object),
                blake3: Digest::of(&bytes),
                chunks: count,
            };
            lists.push((list, self.put(object, bytes.into()).await?));
        }
        Ok(lists)
    }

    fn restore_text(&self, entries: &[ChunkEntry], course: &Course) -> Vec<u8> {
        restore_text(&RestoreText {
            dataset: &self.stored,
            before: &self.before,
            id: &self.id,
            verifying_key: self.env.keys.signing.verifying_key(),
            chunks: entries,
            compression: self.env.settings.compression.into(),
            keyring: course.keyring.is_some(),
            raw: self.flags.raw && self.local.encrypted,
        })
        .into_bytes()
    }

    fn private(&self, descendants: Option<Vec<Descendant>>) -> Result<Bytes, RunError> {
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
            properties: names
                .filter_map(|name| Some((name.clone(), text(name)?)))
                .collect(),
            clone_origin: self.local.origin.as_ref().map(ToString::to_string),
            descendants,
            zfs_key,
        };
        let sealed = seal_small(&self.env.keys.recipients, &json(&private)?);
        let failed = |source| RunError::File {
            operation: "seal",
            path: "private.age".into(),
            source: std::io::Error::other(source),
        };
        Ok(sealed.map_err(failed)?.into())
    }
}

fn chunk_list(chunks: &[ChunkEntry]) -> ChunkList {
    ChunkList {
        format: FORMAT,
        object_type: "chunks".to_owned(),
        chunks: chunks.to_vec(),
    }
}
