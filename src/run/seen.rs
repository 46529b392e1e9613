//! What the stores of a dataset hold, looked at closely enough to plan on it: which backups are whole.
//!
//! A backup in the intermediate directory may follow from one that lies only in the remote, so chains may be walked
//! through two stores at once.

use super::catalog::{Catalog, StoredBackup, find_gaps, read_chunks};
use super::{RunError, error_chain};
use crate::manifest::Manifest;
use crate::model::{BackupId, Digest};
use crate::plan::BackupFacts;
use crate::plan::restore::plan_restore;
use crate::store::ObjectStore;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;

/// Chunk lists fetched at once.
const LISTS_MAX: usize = 16;

/// One store's backups of a dataset, and what is wrong with the chunks of each.
#[derive(Debug)]
pub struct Seen {
    /// What it holds.
    pub catalog: Catalog,
    flaws: BTreeMap<BackupId, Option<String>>,
}

impl Seen {
    /// Holds every backup's chunks against the catalog's listing.
    ///
    /// # Errors
    /// [`RunError::Store`] when a chunk list could not be read: nothing is known then.
    pub async fn look(store: &dyn ObjectStore, catalog: Catalog) -> Result<Self, RunError> {
        let look = |backup: &StoredBackup| {
            let backup = backup.clone();
            async move { Ok::<_, RunError>((backup.manifest.id.clone(), chunk_flaw(store, &backup).await?)) }
        };
        let looks: Vec<_> = catalog.backups.iter().map(look).collect();
        let flaws = stream::iter(looks).buffered(LISTS_MAX).try_collect().await?;
        Ok(Self { catalog, flaws })
    }

    /// Backups that were whole when the store was last seen.
    pub fn remembered(catalog: Catalog) -> Self {
        let flaws = catalog.backups.iter().map(|backup| (backup.manifest.id.clone(), None)).collect();
        Self { catalog, flaws }
    }

    /// What planning needs of each backup, chains walked through `beside` too.
    pub fn facts(&self, beside: Option<&Self>) -> Vec<BackupFacts> {
        let known = manifests(self, beside);
        let facts = |backup: &StoredBackup| {
            let flaw = self.chain_flaw(beside, &known, &backup.manifest.id);
            BackupFacts::new(&backup.manifest, backup.manifest_blake3, stored_bytes(backup, &known), flaw)
        };
        self.catalog.backups.iter().map(facts).collect()
    }

    /// As [`Seen::facts`], but each backup is judged by its own chunks alone: its ancestors may be elsewhere.
    pub fn own_facts(&self) -> Vec<BackupFacts> {
        let facts = |backup: &StoredBackup| {
            let flaw = self.flaws.get(&backup.manifest.id).cloned().flatten();
            BackupFacts::new(&backup.manifest, backup.manifest_blake3, backup.stored_bytes(), flaw)
        };
        self.catalog.backups.iter().map(facts).collect()
    }

    /// Why this backup cannot be restored from the two stores together; `None` when it can.
    pub fn flaw(&self, beside: Option<&Self>, id: &BackupId) -> Option<String> {
        self.chain_flaw(beside, &manifests(self, beside), id)
    }

    fn chain_flaw(&self, beside: Option<&Self>, known: &[(&Manifest, Digest)], id: &BackupId) -> Option<String> {
        let chain = match plan_restore(known, id) {
            Ok(chain) => chain,
            Err(gap) => return Some(gap.to_string()),
        };
        chain.into_iter().find_map(|manifest| {
            let places = [Some(self), beside].into_iter().flatten();
            let mut flaws: Vec<_> = places.filter_map(|seen| seen.flaws.get(&manifest.id)).collect();
            // Whole in one store is enough.
            flaws.sort_unstable();
            match flaws.first() {
                Some(best) => Option::clone(best),
                None => Some(format!("{} was not looked at", manifest.id)),
            }
        })
    }

    /// The chain that leads to this backup, its full first; empty when it cannot be walked.
    pub fn chain(&self, beside: Option<&Self>, id: &BackupId) -> Vec<BackupId> {
        let known = manifests(self, beside);
        let chain = plan_restore(&known, id).unwrap_or_default();
        chain.into_iter().map(|manifest| manifest.id.clone()).collect()
    }

    /// Those backups of this store that are whole.
    pub fn whole<'a>(&'a self) -> impl Iterator<Item = &'a StoredBackup> {
        self.catalog.backups.iter().filter(|backup| self.flaw(None, &backup.manifest.id).is_none())
    }
}

fn manifests<'a>(seen: &'a Seen, beside: Option<&'a Seen>) -> Vec<(&'a Manifest, Digest)> {
    let stores = [Some(seen), beside].into_iter().flatten();
    let backups = stores.flat_map(|seen| &seen.catalog.backups);
    backups.map(|backup| (&backup.manifest, backup.manifest_blake3)).collect()
}

/// As listed; without a listing, as the manifests tell it.
fn stored_bytes(backup: &StoredBackup, known: &[(&Manifest, Digest)]) -> u64 {
    if !backup.objects.is_empty() {
        return backup.stored_bytes();
    }
    let manifest = &backup.manifest;
    let base = manifest.base.as_ref().and_then(|base| known.iter().find(|(other, _)| other.id == base.backup_id));
    manifest.chain.stored_bytes.saturating_sub(base.map_or(0, |(base, _)| base.chain.stored_bytes))
}

/// What is wrong with a backup's own chunks. A list that cannot be believed is a flaw; one that cannot be read is an
/// error.
async fn chunk_flaw(store: &dyn ObjectStore, backup: &StoredBackup) -> Result<Option<String>, RunError> {
    match read_chunks(store, &backup.manifest).await {
        Ok(chunks) => Ok(find_gaps(backup, &chunks).next().map(|gap| error_chain(&gap))),
        Err(error) if error.is_damage() => Ok(Some(error_chain(&error))),
        Err(error) => Err(error),
    }
}
