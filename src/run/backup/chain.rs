//! Checks that the chain of an incremental's base still exists: another host may prune it during
//! the upload.

use super::attempt::Attempt;
use crate::catalog::stores::{RemoteView, StoresView};
use crate::catalog::usable::UsableCatalog;
use crate::catalog::{Catalog, StoredBackup};
use crate::model::BackupId;
use crate::run::RunError;
use crate::run::commit::doomed::{RecordsOf, find_doomed};
use crate::store::key::{
    BackupObject, SIGNATURE_SUFFIX, backup_prefix, dataset_prefix, object_name,
};
use crate::store::{ObjectKey, StoreRead};
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
            (Some(_), Some(id)) => {
                Err(self.base_gone(&base.manifest.id, &format!("a prune is deleting {id}")))
            }
            (Some(flaw), None) => Err(self.base_gone(&base.manifest.id, &flaw)),
        }
    }

    /// Returns the members of the chain that a prune may be deleting from this store.
    async fn doomed(&self, store: &dyn StoreRead) -> Result<BTreeSet<BackupId>, RunError> {
        let of = RecordsOf {
            dataset: &self.stored,
            trusted: &self.env.keys.trusted,
            state_dir: &self.env.settings.state_dir,
            now: (self.env.now)(),
            is_locked: false,
        };
        find_doomed(store, &of, &self.before().iter().collect()).await
    }

    /// Lists the members of the chain again. Manifests never change, so a manifest that is still
    /// listed is the one that was read. Members that a prune is deleting are left out and returned
    /// in the second value.
    async fn read_target_again(
        &self,
        store: &dyn StoreRead,
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
        let is_left = |id: &BackupId| self.before().contains(id) && !doomed.contains(id);
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

    /// Returns the error for a chain that is no longer whole: nothing can be added to this attempt.
    pub(super) fn base_gone(&self, base: &BackupId, reason: &str) -> RunError {
        let key = ObjectKey::backup(&self.stored, base, &BackupObject::Manifest);
        let what = format!(
            "{key}: the base chain of {} is no longer whole: {reason}. Nothing is committed",
            self.id
        );
        let hint = "another host may have pruned the base; run the command again: the new attempt uses another base or is a full";
        self.pointless(RunError::refused(what, hint))
    }
}
