//! The commit: everything that makes a whole, confirmed stream a backup, the manifest last.

use super::CommittedBackup;
use super::attempt::{Attempt, flag_names};
use super::planning::Sight;
use super::put::{Written, json};
use crate::manifest::{
    CHUNKS_PER_LIST, ChainPlace, ChunkEntry, ChunkList, ChunkListRef, FORMAT, Files, LiveEntry, Manifest, Private,
    Receipt, ReceiptEntry, RestoreText, SendInfo, ZfsKey, parse_chunk_list, parse_manifest, restore_text,
};
use crate::model::{BackupId, Digest};
use crate::run::RunError;
use crate::run::catalog::{Catalog, StoredBackup};
use crate::run::journal::AttemptJournal;
use crate::run::locks::extend_chain;
use crate::run::sealed::seal_small;
use crate::run::small::read_back;
use crate::run::transfer::Transferred;
use crate::sign::SignedType;
use crate::store::ObjectKey;
use crate::store::key::{BackupObject, object_name};
use crate::zfs::PropertyValue;
use bytes::Bytes;
use jiff::Timestamp;

impl Attempt<'_> {
    pub(super) async fn commit(
        &self,
        sight: &Sight,
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
        self.check_base(sight).await?;
        self.extend_locks(sight, &written).await?;
        journal.committing()?;
        let receipt = self.receipt(&sight.target.catalog, manifest_blake3, written.receipt.clone(), finished_at);
        self.put_signed(BackupObject::Receipt, SignedType::Receipt, json(&receipt)?, &mut written).await?;
        let put = self.put_signed(BackupObject::Manifest, SignedType::Manifest, manifest_bytes, &mut written).await;
        let there = read_back(&*self.env.store, &self.stored, &self.id, &self.env.keys.trusted, manifest_blake3).await;
        let read_back = match (put, there) {
            // Also when the put failed: then only its reply was lost.
            (_, Ok(manifest)) => manifest,
            (Err(error), Err(_)) | (Ok(()), Err(error)) => return Err(error),
        };
        let stored_bytes = entries.iter().map(|entry| entry.sealed_bytes).sum();
        let evidence = transferred.chunks.into_iter().map(|chunk| chunk.evidence).max_by_key(|evidence| evidence.tier);
        Ok(CommittedBackup { manifest: read_back, stored_bytes, chunks: entries.len(), evidence })
    }

    /// What this backup follows from is locked as long as itself, before it counts.
    async fn extend_locks(&self, sight: &Sight, written: &Written) -> Result<(), RunError> {
        let here = |id: &&BackupId| sight.target.catalog.backup(id).is_some();
        let ancestors: Vec<BackupId> = self.before.iter().filter(here).cloned().collect();
        extend_chain(&*self.env.store, &self.stored, &ancestors, &self.keyring_tags(), &written.receipt).await
    }

    /// What a reader would refuse must not be committed: the reader's own rules, over the very bytes.
    fn check_as_a_reader(&self, manifest_bytes: &[u8], entries: &[ChunkEntry]) -> Result<(), RunError> {
        let key = ObjectKey::backup(&self.stored, &self.id, &BackupObject::Manifest);
        let refused = |source| RunError::Manifest { key: key.to_string(), source };
        let signature = self.env.keys.signing.sign(SignedType::Manifest, key.as_str(), manifest_bytes)?;
        let keys = &self.env.keys.trusted;
        let manifest = parse_manifest(keys, &self.stored, &self.id, manifest_bytes, &signature).map_err(refused)?;
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
            dataset: self.stored.clone(),
            id: self.id.clone(),
            kind: self.id.kind(),
            snapshot: self.snapshot_ref(),
            base: self.base_ref(),
            origin: self.origin()?,
            group: None,
            clone_origin_guid: None,
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
                keyring: self.env.keys.keyring.as_ref().map(|keyring| Digest::of(&keyring.bytes)),
                index: None,
            },
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            finished_at,
        })
    }

    fn chain_place(&self, entries: &[ChunkEntry]) -> ChainPlace {
        let own_bytes: u64 = entries.iter().map(|entry| entry.sealed_bytes).sum();
        match &self.base {
            None => ChainPlace { full_id: self.id.clone(), position: 0, stored_bytes: own_bytes },
            Some(base) => {
                let ChainPlace { full_id, position, stored_bytes } = base.manifest.chain.clone();
                ChainPlace { full_id, position: position + 1, stored_bytes: stored_bytes.saturating_add(own_bytes) }
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
            dataset: &self.stored,
            before: &self.before,
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
    ChunkList { format: FORMAT, object_type: "chunks".to_owned(), chunks: chunks.to_vec() }
}
