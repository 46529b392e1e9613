//! Decides which backups of a dataset are complete, from the catalogs and chunk lists of its
//! stores.
//!
//! A backup in the intermediate directory may build on one that exists only in the remote, so a
//! chain may lead through two stores.

use crate::catalog::CatalogError;
use crate::catalog::{Catalog, StoredBackup, find_gaps, read_chunks_through};
use crate::manifest::Manifest;
use crate::model::{BackupId, Digest, error_chain};
use crate::plan::BackupFacts;
use crate::plan::restore::Bases;
use crate::state::manifests::ObjectCache;
use crate::store::StoreRead;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;

/// Limit of concurrent fetches of chunk lists.
const LISTS_MAX: usize = 16;

/// The backups of a dataset in one store, with the flaws in the chunks of each.
#[derive(Debug)]
pub struct UsableCatalog {
    /// The catalog of that store.
    pub catalog: Catalog,
    flaws: BTreeMap<BackupId, Option<String>>,
}

impl UsableCatalog {
    /// Checks every backup's chunks against the catalog's listing.
    ///
    /// # Errors
    /// [`CatalogError::Store`] when a chunk list could not be read: no backup can be judged then.
    pub async fn check(store: &dyn StoreRead, catalog: Catalog) -> Result<Self, CatalogError> {
        Self::check_wanted(store, catalog, &ObjectCache::none(), |_| true).await
    }

    /// Does the same as [`UsableCatalog::check`], but takes chunk lists from the cache, and checks only the
    /// wanted backups. The others are unknown and therefore count as flawed.
    ///
    /// # Errors
    /// As for [`UsableCatalog::check`].
    pub async fn check_wanted(
        store: &dyn StoreRead,
        catalog: Catalog,
        cache: &ObjectCache,
        wanted: impl Fn(&StoredBackup) -> bool,
    ) -> Result<Self, CatalogError> {
        let check = |backup| async move { chunk_flaw(store, backup, cache).await };
        // Collected first: a stream that made the futures lazily would tie them to its own
        // lifetime.
        let wanted: Vec<&StoredBackup> = catalog
            .backups
            .iter()
            .filter(|backup| wanted(backup))
            .collect();
        let checks: Vec<_> = wanted.iter().map(|backup| check(*backup)).collect();
        let found: Vec<Option<String>> = stream::iter(checks)
            .buffered(LISTS_MAX)
            .try_collect()
            .await?;
        let ids = wanted.iter().map(|backup| backup.manifest.id.clone());
        let flaws = ids.zip(found).collect();
        Ok(Self { catalog, flaws })
    }

    /// Makes the view from saved backups, which were complete when the store was last read.
    pub fn remembered(catalog: Catalog) -> Self {
        let flaws = catalog
            .backups
            .iter()
            .map(|backup| (backup.manifest.id.clone(), None))
            .collect();
        Self { catalog, flaws }
    }

    /// Returns the facts that planning needs of each backup, with chains that may lead through
    /// `other` too. Base and full are the ones that a restore would receive: if a twin replaces
    /// the base in the manifest, a prune must keep the twin.
    pub fn facts(&self, other: Option<&Self>) -> Vec<BackupFacts> {
        let known = manifests(self, other);
        let bases = bases(self, other);
        let flaws = self.chain_flaws(other, &bases);
        let fulls = fulls(&bases);
        let facts = |backup: &StoredBackup| {
            let id = &backup.manifest.id;
            let flaw = flaws.get(id).cloned().flatten();
            let own = facts_of(backup, stored_bytes(backup, &known), flaw);
            match (bases.base(id), fulls.get(id)) {
                (Ok(Some(base)), Some(full)) => BackupFacts {
                    base: Some(base.id.clone()),
                    full_id: (*full).clone(),
                    ..own
                },
                _ => own,
            }
        };
        self.catalog.backups.iter().map(facts).collect()
    }

    /// Does the same as [`UsableCatalog::facts`], but judges each backup by its own chunks alone: its
    /// ancestors may be in another store.
    pub fn own_facts(&self) -> Vec<BackupFacts> {
        let facts = |backup: &StoredBackup| {
            let flaw = self.own_flaw(None, &backup.manifest.id);
            facts_of(backup, backup.stored_bytes(), flaw)
        };
        self.catalog.backups.iter().map(facts).collect()
    }

    /// Returns the result of [`UsableCatalog::flaw`], without a second store, for every backup in this one.
    pub fn flaws(&self) -> BTreeMap<&BackupId, Option<String>> {
        self.chain_flaws(None, &bases(self, None))
    }

    /// Returns why this backup cannot be restored from the two stores together, or `None` when it
    /// can.
    pub fn flaw(&self, other: Option<&Self>, id: &BackupId) -> Option<String> {
        let mut flaws = self.chain_flaws(other, &bases(self, other));
        flaws
            .remove(id)
            .unwrap_or_else(|| Some(format!("{id} is missing")))
    }

    /// Returns the flaw of each backup or of its ancestors, in one pass: bases come before the
    /// backups that build on them.
    fn chain_flaws<'a>(
        &'a self,
        other: Option<&'a Self>,
        bases: &Bases<'a>,
    ) -> BTreeMap<&'a BackupId, Option<String>> {
        let mut flaws: BTreeMap<&BackupId, Option<String>> = BTreeMap::new();
        for manifest in bases.in_order() {
            let before = match bases.base(&manifest.id) {
                Ok(base) => base.and_then(|base| flaws.get(&base.id).cloned().flatten()),
                Err(gap) => Some(gap.to_string()),
            };
            flaws.insert(
                &manifest.id,
                before.or_else(|| self.own_flaw(other, &manifest.id)),
            );
        }
        flaws
    }

    /// Returns the flaw of the backup's own chunks. A complete copy in one store is enough.
    fn own_flaw(&self, other: Option<&Self>, id: &BackupId) -> Option<String> {
        let stores = [Some(self), other].into_iter().flatten();
        let mut flaws: Vec<&Option<String>> =
            stores.filter_map(|usable| usable.flaws.get(id)).collect();
        flaws.sort_unstable();
        match flaws.first() {
            Some(best) => Option::clone(best),
            None => Some(format!("{id} was not read")),
        }
    }

    /// Returns the chain that leads to this backup, its full first; empty when the chain is broken.
    pub fn chain(&self, other: Option<&Self>, id: &BackupId) -> Vec<BackupId> {
        let chain = bases(self, other).chain(id).unwrap_or_default();
        chain
            .into_iter()
            .map(|manifest| manifest.id.clone())
            .collect()
    }

    /// Returns the backups of this store that can be restored without any other store.
    pub fn whole(&self) -> Vec<&StoredBackup> {
        let flaws = self.chain_flaws(None, &bases(self, None));
        let is_whole =
            |backup: &&StoredBackup| matches!(flaws.get(&backup.manifest.id), Some(None));
        self.catalog.backups.iter().filter(is_whole).collect()
    }
}

fn facts_of(backup: &StoredBackup, stored_bytes: u64, flaw: Option<String>) -> BackupFacts {
    let mut facts = BackupFacts::new(&backup.manifest, backup.manifest_blake3, stored_bytes, flaw);
    facts.made.stored_at = backup.stored_at;
    facts
}

fn bases<'a>(usable: &'a UsableCatalog, other: Option<&'a UsableCatalog>) -> Bases<'a> {
    Bases::find(manifests(usable, other).into_values())
}

/// Returns the full that a restore of each backup would receive first. A full maps to itself.
fn fulls<'a>(bases: &Bases<'a>) -> BTreeMap<&'a BackupId, &'a BackupId> {
    let mut fulls = BTreeMap::new();
    for manifest in bases.in_order() {
        let full = match bases.base(&manifest.id) {
            Ok(Some(base)) => fulls.get(&base.id).copied(),
            Ok(None) => Some(&manifest.id),
            Err(_) => None,
        };
        fulls.extend(full.map(|full| (&manifest.id, full)));
    }
    fulls
}

/// The backups of both stores by id. Manifests are the same bytes in every store.
type Known<'a> = BTreeMap<&'a BackupId, (&'a Manifest, Digest)>;

fn manifests<'a>(usable: &'a UsableCatalog, other: Option<&'a UsableCatalog>) -> Known<'a> {
    let stores = [Some(usable), other].into_iter().flatten();
    let mut known = Known::new();
    for backup in stores.flat_map(|usable| &usable.catalog.backups) {
        known
            .entry(&backup.manifest.id)
            .or_insert((&backup.manifest, backup.manifest_blake3));
    }
    known
}

/// Returns the listed bytes, or without a listing the bytes computed from the manifests.
fn stored_bytes(backup: &StoredBackup, known: &Known<'_>) -> u64 {
    if !backup.objects.is_empty() {
        return backup.stored_bytes();
    }
    let manifest = &backup.manifest;
    let base = manifest
        .base
        .as_ref()
        .and_then(|base| known.get(&base.backup_id));
    manifest
        .chain
        .stored_bytes
        .saturating_sub(base.map_or(0, |(base, _)| base.chain.stored_bytes))
}

/// Returns the flaw of a backup's own chunks. A chunk list that does not verify is a flaw; a list
/// that cannot be read is an error.
async fn chunk_flaw(
    store: &dyn StoreRead,
    backup: &StoredBackup,
    cache: &ObjectCache,
) -> Result<Option<String>, CatalogError> {
    match read_chunks_through(store, backup, cache).await {
        Ok(chunks) => Ok(find_gaps(backup, &chunks)
            .next()
            .map(|gap| error_chain(&gap))),
        Err(error) if error.is_damage() => Ok(Some(error_chain(&error))),
        Err(error) => Err(error),
    }
}
