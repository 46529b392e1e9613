//! The commit: the steps that turn a whole, confirmed stream into a backup, the manifest last.

use super::attempt::{Attempt, Course};
use super::source::flag_names;
use super::{CommittedBackup, StoreRole};
use crate::catalog::sealed::seal_small;
use crate::catalog::stores::StoresView;
use crate::manifest::{
    CHUNKS_PER_LIST, ChainPlace, ChunkEntry, ChunkList, ChunkListRef, Descendant, FORMAT, Files,
    Manifest, Origin, Private, ReceiptEntry, RestoreText, SendInfo, ZfsKey, parse_chunk_list,
    parse_manifest, restore_text,
};
use crate::model::{BackupId, Digest, Guid};
use crate::plan::timeline::previous_of;
use crate::run::commit::put::to_json;
use crate::run::commit::target::{CommitError, CommitTarget};
use crate::run::pool::view::pool_view;
use crate::run::transfer::Transferred;
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::state::host_mark::host_mark;
use crate::state::journal::log::{CommitBytes, JournalRecord};
use crate::store::key::{BackupObject, object_name};
use crate::zfs::PropertyValue;
use bytes::Bytes;
use futures_util::future::join3;
use jiff::Timestamp;
use std::collections::BTreeSet;

impl Attempt<'_> {
    pub(super) async fn commit(
        &self,
        stores: &StoresView,
        transferred: Transferred,
        mut objects: Vec<ReceiptEntry>,
        course: &mut Course,
    ) -> Result<CommittedBackup, CommitError> {
        let finished_at = (self.env.now)();
        let entries: Vec<ChunkEntry> = transferred
            .chunks
            .iter()
            .map(|chunk| chunk.entry.clone())
            .collect();
        for chunk in &transferred.chunks {
            objects.push(ReceiptEntry {
                name: chunk.entry.name.clone(),
                evidence: chunk.evidence.clone(),
            });
        }
        let target = self.target();
        let private = self.private_once(course)?;
        let text = self.restore_text(&entries, course);
        let files = Files {
            restore_text: Digest::of(&text),
            private: Digest::of(&private),
            keyring: course.keyring.as_ref().map(|bytes| Digest::of(bytes)),
            index: None,
        };
        // The three puts are independent: run them concurrently to save round trips.
        let (text, private, lists) = join3(
            target.put_signed(&BackupObject::RestoreText, SignedType::RestoreText, text),
            target.put(&BackupObject::Private, private),
            put_chunk_lists(&target, &entries),
        )
        .await;
        let (chunk_lists, lists): (Vec<_>, Vec<_>) = lists?.into_iter().unzip();
        objects.extend([text?, private?]);
        objects.extend(lists);
        let manifest = self.manifest(
            stores,
            &transferred,
            &entries,
            chunk_lists,
            files,
            finished_at,
        )?;
        let manifest = to_json(&manifest)?;
        let manifest_signature = self.sign_as_a_reader_accepts(&manifest, &entries)?;
        if let Some(base) = &self.base {
            let id = &base.manifest.id;
            target
                .check_base(id, base.manifest_blake3, &stores.remote)
                .await?;
        }
        target
            .extend_locks(&self.ancestors(stores), &self.keyring_tags(), &objects)
            .await?;
        let live = stores.target.catalog.live();
        let (receipt, receipt_signature) =
            target.receipt(Digest::of(&manifest), objects, live, finished_at)?;
        let bytes = CommitBytes {
            receipt,
            receipt_signature,
            manifest,
            manifest_signature,
        };
        let manifest = target
            .commit(&bytes, &BTreeSet::new(), &[&self.id], || {
                // Append the bytes first: the name of a committing journal says that it may hold
                // them.
                course
                    .log
                    .append(&JournalRecord::Commit(Box::new(bytes.clone())))?;
                Ok(course.journal.committing()?)
            })
            .await?;
        if self.env.role == StoreRole::Remote {
            target.remember(&bytes);
        }
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

    /// Returns the ancestors of the backup that are in the target.
    fn ancestors(&self, stores: &StoresView) -> Vec<BackupId> {
        let is_here = |id: &&BackupId| stores.target.catalog.backup(id).is_some();
        self.before.iter().filter(is_here).cloned().collect()
    }

    /// Signs the manifest, and checks the exact bytes with the reader's own rules, so that no backup
    /// is committed that a reader would refuse.
    fn sign_as_a_reader_accepts(
        &self,
        manifest: &[u8],
        entries: &[ChunkEntry],
    ) -> Result<Vec<u8>, RunError> {
        let key = self.target().key(&BackupObject::Manifest);
        let refused = |source| RunError::Manifest {
            key: key.to_string(),
            source,
        };
        let keys = &self.env.keys;
        let signature = keys
            .signing
            .sign(SignedType::Manifest, key.as_str(), manifest)?;
        let parsed = parse_manifest(&keys.trusted, &self.stored, &self.id, manifest, &signature)
            .map_err(refused)?;
        for (number, chunks) in entries.chunks(CHUNKS_PER_LIST).enumerate() {
            parse_chunk_list(&parsed, number, &to_json(&chunk_list(chunks))?).map_err(refused)?;
        }
        Ok(signature)
    }

    fn manifest(
        &self,
        stores: &StoresView,
        transferred: &Transferred,
        entries: &[ChunkEntry],
        chunk_lists: Vec<ChunkListRef>,
        files: Files,
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
            files,
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
        let sealed = seal_small(&self.env.keys.recipients, &to_json(&private)?);
        let failed = |source| RunError::File {
            operation: "seal",
            path: "private.age".into(),
            source: std::io::Error::other(source),
        };
        Ok(sealed.map_err(failed)?.into())
    }
}

async fn put_chunk_lists(
    target: &CommitTarget<'_>,
    entries: &[ChunkEntry],
) -> Result<Vec<(ChunkListRef, ReceiptEntry)>, CommitError> {
    let mut lists = Vec::new();
    for (number, chunks) in entries.chunks(CHUNKS_PER_LIST).enumerate() {
        let number = u16::try_from(number).map_err(|_| {
            RunError::refused(
                "the backup has too many chunks",
                "make main.split_size larger",
            )
        })?;
        let object = BackupObject::ChunkList(number);
        let bytes = to_json(&chunk_list(chunks))?;
        let list = ChunkListRef {
            name: object_name(&object),
            blake3: Digest::of(&bytes),
            chunks: u32::try_from(chunks.len()).unwrap_or(u32::MAX),
        };
        lists.push((list, target.put(&object, bytes.into()).await?));
    }
    Ok(lists)
}

fn chunk_list(chunks: &[ChunkEntry]) -> ChunkList {
    ChunkList {
        format: FORMAT,
        object_type: "chunks".to_owned(),
        chunks: chunks.to_vec(),
    }
}
