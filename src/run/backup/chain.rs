//! Checks that the chain of an incremental's base still exists: another host may prune it during
//! the upload.

use super::attempt::Attempt;
use super::planning::Base;
use crate::catalog::CatalogError;
use crate::catalog::read_back::{TRIES_MAX, TRY_PAUSE};
use crate::catalog::stores::{RemoteView, StoresView};
use crate::catalog::usable::UsableCatalog;
use crate::catalog::{Catalog, StoredBackup, read_manifest, read_prune_records_through};
use crate::manifest::PruneRecord;
use crate::model::{BackupId, Digest};
use crate::run::commit::doomed::{RecordsOf, find_doomed};
use crate::run::{RunError, error_chain};
use crate::state::manifests::{CacheMode, ObjectCache};
use crate::store::key::{
    BackupObject, SIGNATURE_SUFFIX, backup_prefix, dataset_prefix, object_name,
};
use crate::store::{ObjectKey, ObjectStore};
use std::collections::{BTreeMap, BTreeSet};

impl Attempt<'_> {
    /// Lists the readable stores again and checks that the base's chain is whole: every chunk is
    /// listed at its size in one of the stores, and no prune is deleting a member.
    pub(super) async fn check_chain(&self, stores: &StoresView) -> Result<(), RunError> {
        let Some(base) = &self.base else {
            return Ok(());
        };
        let (target, mut doomed) = self
            .read_target_again(&*self.env.store, &stores.target.catalog)
            .await?;
        let again;
        let remote = match &stores.remote {
            RemoteView::None => None,
            RemoteView::Remembered(usable) => Some(usable),
            RemoteView::Current(store, usable) => {
                let (usable, doomed_there) =
                    self.read_target_again(&**store, &usable.catalog).await?;
                doomed.extend(doomed_there);
                again = usable;
                Some(&again)
            }
        };
        match (target.flaw(remote, &base.manifest.id), doomed.first()) {
            (None, _) => Ok(()),
            (Some(_), Some(id)) => Err(self.gone(base, &format!("a prune is deleting {id}"))),
            (Some(flaw), None) => Err(self.gone(base, &flaw)),
        }
    }

    /// Returns the members of the chain that a prune may be deleting from this store.
    async fn doomed(&self, store: &dyn ObjectStore) -> Result<BTreeSet<BackupId>, RunError> {
        let of = RecordsOf {
            dataset: &self.stored,
            trusted: &self.env.keys.trusted,
            state_dir: &self.env.settings.state_dir,
            now: (self.env.now)(),
            is_locked: false,
        };
        find_doomed(store, &of, &self.before.iter().collect()).await
    }

    /// Lists the members of the chain again. Manifests never change, so a manifest that is still
    /// listed is the one that was read. Members that a prune is deleting are left out and returned
    /// in the second value.
    async fn read_target_again(
        &self,
        store: &dyn ObjectStore,
        before: &Catalog,
    ) -> Result<(UsableCatalog, BTreeSet<BackupId>), RunError> {
        let doomed = self.doomed(store).await?;
        let listed = store.list(&dataset_prefix(&self.stored)).await?;
        let sizes: BTreeMap<&str, u64> = listed
            .iter()
            .map(|object| (object.key.as_str(), object.bytes))
            .collect();
        let manifest = object_name(&BackupObject::Manifest);
        let relisted = |backup: &StoredBackup| {
            let prefix = backup_prefix(&self.stored, &backup.manifest.id);
            let below = sizes
                .range(prefix.as_str()..)
                .take_while(|(key, _)| key.starts_with(&prefix));
            let objects: BTreeMap<String, u64> = below
                .map(|(key, bytes)| (key[prefix.len()..].to_owned(), *bytes))
                .collect();
            let signature = format!("{manifest}{SIGNATURE_SUFFIX}");
            let committed = objects.contains_key(&manifest) && objects.contains_key(&signature);
            committed.then(|| StoredBackup {
                objects,
                ..backup.clone()
            })
        };
        let is_left = |id: &BackupId| self.before.contains(id) && !doomed.contains(id);
        let members = before
            .backups
            .iter()
            .filter(|backup| is_left(&backup.manifest.id));
        let backups = members.filter_map(relisted).collect();
        let catalog = Catalog {
            dataset: self.stored.clone(),
            backups,
            attempts: Vec::new(),
            unknown: Vec::new(),
            newest_object_at: None,
        };
        Ok((UsableCatalog::check(store, catalog).await?, doomed))
    }

    /// Checks just before the commit that the base's manifest still exists unchanged. A prune
    /// deletes descendants before ancestors, so it deletes the base before any other member of the
    /// chain.
    pub(super) async fn check_base(&self, stores: &StoresView) -> Result<(), RunError> {
        let Some(base) = &self.base else {
            return Ok(());
        };
        let id = &base.manifest.id;
        let found = self.read_base(&*self.env.store, id).await?;
        let found = match (found, &stores.remote) {
            (Ok(blake3), _) if blake3 == base.manifest_blake3 => return Ok(()),
            (missing, RemoteView::None) => missing,
            // The remote is out of reach, and it held the base when it was last read.
            (_, RemoteView::Remembered(usable)) if usable.catalog.backup(id).is_some() => {
                return Ok(());
            }
            (missing, RemoteView::Remembered(_)) => missing,
            (_, RemoteView::Current(store, _)) => match self.read_base(&**store, id).await {
                Ok(found) => found,
                Err(RunError::Store(error)) if crate::catalog::stores::is_out_of_reach(&error) => {
                    tracing::warn!(error = error_chain(&error), base = %id, "the remote went out of reach; going on");
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
        };
        match found {
            Ok(blake3) if blake3 == base.manifest_blake3 => Ok(()),
            Ok(_) => Err(self.gone(base, "its manifest is another one now")),
            Err(reason) => Err(self.gone(base, &reason)),
        }
    }

    /// Reads the prune records a last time before the manifest may be put. A person may have
    /// deleted this attempt from another host (`forget`), or a prune there may have used a copy of
    /// this host's journal. The id is new, so any record that names it is about this attempt.
    pub(super) async fn check_not_doomed(&self) -> Result<(), RunError> {
        let (state_dir, store) = (&self.env.settings.state_dir, &*self.env.store);
        let cache = ObjectCache::open(
            state_dir,
            &store.known(),
            &self.stored,
            CacheMode::ReadWrite,
        );
        let records =
            read_prune_records_through(store, &self.stored, &self.env.keys.trusted, None, &cache)
                .await?;
        let names_it =
            |(_, record): &(_, PruneRecord)| record.pruned.iter().any(|entry| entry.id == self.id);
        if records.iter().any(names_it) {
            let what = format!(
                "{} was pruned from {} while it was being uploaded; nothing is committed",
                self.id,
                store.url()
            );
            return Err(self.pointless(RunError::refused(
                what,
                "run the command again: it begins a new upload",
            )));
        }
        Ok(())
    }

    /// Returns the digest of a verified manifest, or the reason why the manifest is missing or
    /// invalid. Retries transient failures of the store, so that one of them does not lose an
    /// upload.
    async fn read_base(
        &self,
        store: &dyn ObjectStore,
        id: &BackupId,
    ) -> Result<Result<Digest, String>, RunError> {
        let mut tries = 1..=TRIES_MAX;
        loop {
            match (
                read_manifest(store, &self.stored, id, &self.env.keys.trusted).await,
                tries.next(),
            ) {
                (Ok((_, blake3)), _) => return Ok(Ok(blake3)),
                (Err(CatalogError::Store(error)), Some(number)) if error.is_transient() => {
                    tracing::warn!(
                        error = error_chain(&error),
                        number,
                        "read failed; trying again"
                    );
                    tokio::time::sleep(TRY_PAUSE * number).await;
                }
                (Err(error @ CatalogError::Store(_)), _) => return Err(error.into()),
                (Err(error), _) => return Ok(Err(error_chain(&error))),
            }
        }
    }

    fn gone(&self, base: &Base, reason: &str) -> RunError {
        let key = ObjectKey::backup(&self.stored, &base.manifest.id, &BackupObject::Manifest);
        let what = format!(
            "{key}: the chain that {} follows from is no longer whole: {reason}. Nothing is committed",
            self.id
        );
        let hint = "was it pruned by another host meanwhile? Run it again: another base or a full will be taken";
        self.pointless(RunError::refused(what, hint))
    }
}
