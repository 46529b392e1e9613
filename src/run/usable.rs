//! Which backups of a store are usable: the manifests of it and of all its ancestors are there and fit together, and a
//! listing shows every chunk at its exact size.

use super::catalog::{Catalog, find_gaps, read_chunks};
use super::{RunError, error_chain};
use crate::manifest::Manifest;
use crate::model::{BackupId, Digest};
use crate::plan::BackupFacts;
use crate::plan::restore::plan_restore;
use crate::store::ObjectStore;
use std::collections::BTreeMap;

/// Looks at backups of one catalog, each at most once.
pub struct Usability<'a> {
    store: &'a dyn ObjectStore,
    catalog: &'a Catalog,
    manifests: Vec<(&'a Manifest, Digest)>,
    /// What is wrong with a backup's own chunks.
    chunks: BTreeMap<BackupId, Option<String>>,
}

impl<'a> Usability<'a> {
    /// For the backups of this catalog of this store.
    pub fn new(store: &'a dyn ObjectStore, catalog: &'a Catalog) -> Self {
        let manifests = catalog.backups.iter().map(|backup| (&backup.manifest, backup.manifest_blake3)).collect();
        Self { store, catalog, manifests, chunks: BTreeMap::new() }
    }

    /// Why this backup cannot be restored from this store; `None` when it is usable.
    ///
    /// # Errors
    /// [`RunError::Store`] when a chunk list could not be read: nothing is known then.
    pub async fn flaw(&mut self, id: &BackupId) -> Result<Option<String>, RunError> {
        let chain = match plan_restore(&self.manifests, id) {
            Ok(chain) => chain,
            Err(gap) => return Ok(Some(gap.to_string())),
        };
        for manifest in chain {
            if let Some(flaw) = self.own_flaw(&manifest.id).await? {
                return Ok(Some(flaw));
            }
        }
        Ok(None)
    }

    /// What is wrong with its own chunks, whatever its ancestors are.
    ///
    /// # Errors
    /// As for [`Usability::flaw`].
    pub async fn own_flaw(&mut self, id: &BackupId) -> Result<Option<String>, RunError> {
        if let Some(known) = self.chunks.get(id) {
            return Ok(known.clone());
        }
        let Some(backup) = self.catalog.backup(id) else { return Ok(Some(format!("{id} is not there"))) };
        let flaw = match read_chunks(self.store, &backup.manifest).await {
            Ok(chunks) => find_gaps(backup, &chunks).next().map(|gap| error_chain(&gap)),
            Err(error) if error.is_damage() => Some(error_chain(&error)),
            Err(error) => return Err(error),
        };
        self.chunks.insert(id.clone(), flaw.clone());
        Ok(flaw)
    }

    /// All backups of the catalog with what is wrong with the chunks of each itself, in the catalog's order.
    ///
    /// # Errors
    /// As for [`Usability::flaw`].
    pub async fn own_facts(&mut self) -> Result<Vec<BackupFacts>, RunError> {
        let mut facts = Vec::new();
        for backup in &self.catalog.backups {
            let flaw = self.own_flaw(&backup.manifest.id).await?;
            facts.push(BackupFacts::new(&backup.manifest, backup.manifest_blake3, backup.stored_bytes(), flaw));
        }
        Ok(facts)
    }

    /// All backups of the catalog with what is wrong with each, in the catalog's order.
    ///
    /// # Errors
    /// As for [`Usability::flaw`].
    pub async fn facts(&mut self) -> Result<Vec<BackupFacts>, RunError> {
        let mut facts = Vec::new();
        for backup in &self.catalog.backups {
            let flaw = self.flaw(&backup.manifest.id).await?;
            facts.push(BackupFacts::new(&backup.manifest, backup.manifest_blake3, backup.stored_bytes(), flaw));
        }
        Ok(facts)
    }
}
