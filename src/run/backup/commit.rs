//! The commit: the steps that turn a whole, confirmed stream into a backup, the manifest last.

use super::attempt::{Attempt, Course};
use super::documents::Recorded;
use super::{CommittedBackup, StoreRole};
use crate::catalog::stores::StoresView;
use crate::manifest::{
    CHUNKS_PER_LIST, ChunkEntry, ChunkList, ChunkListRef, FORMAT, Files, ReceiptEntry,
    parse_chunk_list, parse_manifest,
};
use crate::model::{BackupId, Digest};
use crate::run::commit::put::to_json;
use crate::run::commit::target::{CommitError, CommitTarget};
use crate::run::transfer::Transferred;
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::state::history::{HistoryRecords, RecordedNote};
use crate::state::journal::log::{CommitBytes, JournalRecord};
use crate::store::key::{BackupObject, object_name};
use bytes::Bytes;
use futures_util::future::join3;
use std::collections::BTreeMap;

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
            .commit(&bytes, &BTreeMap::new(), &[&self.id], || {
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
        if course.private.is_none() {
            self.note_recorded();
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
        })
    }

    /// Records what the backup has beside its stream, so that a later run can see whether it changed.
    /// Must not be called if an earlier run sealed `private.age`: it may have read other values.
    /// Without the record the next run makes a backup.
    fn note_recorded(&self) {
        let state_dir = &self.env.settings.state_dir;
        let records = HistoryRecords::new(state_dir, &self.env.store.known(), &self.stored);
        let noted = Recorded::of(&self.local, false)
            .blake3()
            .and_then(|blake3| {
                let id = self.id.clone();
                Ok(records.note_recorded(&RecordedNote { id, blake3 })?)
            });
        if let Err(error) = noted {
            tracing::debug!(
                error = error_chain(&error),
                "cannot record the metadata of the backup"
            );
        }
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
        self.before().iter().filter(is_here).cloned().collect()
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
