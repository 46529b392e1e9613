//! The objects that describe an attempt: `started.json`, `manifest.json`, `RESTORE.txt` and
//! `private.age`.

use super::attempt::{Attempt, Course};
use super::source::flag_names;
use crate::catalog::sealed::seal_small;
use crate::catalog::stores::StoresView;
use crate::manifest::{
    BaseRef, ChainPlace, ChunkEntry, ChunkListRef, Descendant, FORMAT, Files, Manifest, Origin,
    Private, RestoreText, SendInfo, SnapshotRef, Started, ZfsKey, restore_text,
};
use crate::model::{BackupId, Digest, Guid};
use crate::plan::timeline::previous_of;
use crate::run::commit::put::to_json;
use crate::run::pool::view::pool_view;
use crate::run::transfer::Transferred;
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::state::host_mark::host_mark;
use crate::zfs::{Dataset, PropertyValue, Snapshot};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

/// The part of a dataset that `private.age` records, because the stream does not have it.
#[derive(Serialize)]
pub(super) struct Recorded {
    properties: BTreeMap<String, String>,
    clone_origin: Option<String>,
    zfs_key: Option<ZfsKey>,
}

impl Recorded {
    /// Gathers what a backup of the dataset would record now.
    pub(super) fn of(local: &Dataset, raw: bool) -> Self {
        let text = |name: &str| match &local.properties.get(name)?.value {
            PropertyValue::Text(text) => Some(text.clone()),
            PropertyValue::Number(number) => Some(number.to_string()),
        };
        let own = |property: &&String| {
            let source = local.properties[*property].source.as_deref();
            source.is_some_and(|source| source == local.name.as_str() || source == "$recvd")
        };
        let names = local.properties.keys().filter(own);
        Self {
            properties: names
                .filter_map(|name| Some((name.clone(), text(name)?)))
                .collect(),
            clone_origin: local.origin.as_ref().map(ToString::to_string),
            zfs_key: local.encrypted.then(|| ZfsKey {
                encryption_root: text("encryptionroot"),
                key_format: text("keyformat"),
                raw,
            }),
        }
    }

    /// Returns the hash by which two of them are compared.
    ///
    /// # Errors
    /// As for [`to_json`].
    pub(super) fn blake3(&self) -> Result<Digest, RunError> {
        Ok(Digest::of(&to_json(self)?))
    }
}

impl Attempt<'_> {
    pub(super) fn started(&self) -> Result<Started, RunError> {
        Ok(Started {
            format: FORMAT,
            object_type: SignedType::Started.as_str().to_owned(),
            dataset: self.stored.clone(),
            id: self.id.clone(),
            snapshot: self.snapshot_ref(),
            base: self.base_ref(),
            origin: self.origin()?,
            host_mark: Some(host_mark(&self.env.settings.state_dir)?),
            level: self.level,
            requested: flag_names(self.flags),
            split_bytes: self.env.settings.split_bytes,
            compression: self.env.settings.compression.into(),
            recipients: self.recipients(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
        })
    }

    pub(super) fn manifest(
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
            level: self.level,
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

    pub(super) fn restore_text(&self, entries: &[ChunkEntry], course: &Course) -> Vec<u8> {
        restore_text(&RestoreText {
            dataset: &self.stored,
            before: self.before(),
            id: &self.id,
            verifying_key: self.env.keys.signing.verifying_key(),
            chunks: entries,
            compression: self.env.settings.compression.into(),
            keyring: course.keyring.is_some(),
            raw: self.flags.raw && self.local.encrypted,
        })
        .into_bytes()
    }

    pub(super) fn private(&self, descendants: Option<Vec<Descendant>>) -> Result<Bytes, RunError> {
        let Recorded {
            properties,
            clone_origin,
            zfs_key,
        } = Recorded::of(&self.local, self.flags.raw);
        let private = Private {
            format: FORMAT,
            object_type: "private".to_owned(),
            id: self.id.clone(),
            snapshot_name: self.snapshot.name.to_string(),
            host: self.env.settings.host.clone(),
            properties,
            clone_origin,
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

    /// Returns the present descendants of the dataset, sorted by name; `None` when ZFS cannot list
    /// them. A restore works without them and then reports less.
    pub(super) fn descendants(&self) -> Option<Vec<Descendant>> {
        let (mut waiting, mut found) = (vec![self.local.name.clone()], Vec::new());
        while let Some(name) = waiting.pop() {
            match self.env.zfs.children(&name) {
                Ok(children) => {
                    found.extend(children.iter().map(|child| Descendant {
                        name: child.name.to_string(),
                        guid: child.guid,
                    }));
                    waiting.extend(children.into_iter().map(|child| child.name));
                }
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "the list of the datasets below this one is left out of the backup"
                    );
                    return None;
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Some(found)
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

    fn base_ref(&self) -> Option<BaseRef> {
        let base = self.base.as_ref()?;
        let (guid, backup_id) = (base.manifest.snapshot.guid, base.manifest.id.clone());
        Some(BaseRef {
            guid,
            backup_id,
            manifest_blake3: base.manifest_blake3,
        })
    }

    fn snapshot_ref(&self) -> SnapshotRef {
        let Snapshot {
            guid,
            createtxg,
            created_at,
            ..
        } = self.snapshot;
        SnapshotRef {
            guid,
            createtxg,
            created_at,
        }
    }

    fn origin(&self) -> Result<Origin, RunError> {
        Ok(Origin {
            dataset_guid: self.local.guid,
            pool_guid: self.env.zfs.pool_guid(self.local.name.pool())?,
        })
    }

    fn recipients(&self) -> Vec<String> {
        self.env
            .keys
            .recipients
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}
