//! What the stores of a dataset hold, looked at closely enough to plan on it: which backups are whole.
//!
//! A backup in the intermediate directory may follow from one that lies only in the remote, so chains may be walked
//! through two stores at once.

use super::catalog::{Catalog, StoredBackup, find_gaps, read_chunks};
use super::{RunError, error_chain};
use crate::manifest::Manifest;
use crate::model::{BackupId, Digest};
use crate::plan::BackupFacts;
use crate::plan::restore::{RestoreGap, check_base, plan_restore};
use crate::plan::twin::stands_in_as_base;
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
        Self::look_at(store, catalog, |_| true).await
    }

    /// As [`Seen::look`], but only at those backups; of the others nothing is known, so they pass for flawed.
    ///
    /// # Errors
    /// As for [`Seen::look`].
    pub async fn look_at(
        store: &dyn ObjectStore,
        catalog: Catalog,
        wanted: impl Fn(&StoredBackup) -> bool,
    ) -> Result<Self, RunError> {
        let look = |backup: &StoredBackup| {
            let backup = backup.clone();
            async move { Ok::<_, RunError>((backup.manifest.id.clone(), chunk_flaw(store, &backup).await?)) }
        };
        let looks: Vec<_> = catalog.backups.iter().filter(|backup| wanted(backup)).map(look).collect();
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
        let standings = self.standings(beside, &known);
        self.facts_of(&known, &standings, |backup| standings.get(&backup.manifest.id)?.flaw.clone())
    }

    /// As [`Seen::facts`], but each backup is judged by its own chunks alone: its ancestors may be elsewhere.
    pub fn own_facts(&self) -> Vec<BackupFacts> {
        let known = manifests(self, None);
        let standings = self.standings(None, &known);
        self.facts_of(&known, &standings, |backup| self.own_flaw(None, &backup.manifest.id))
    }

    fn facts_of(
        &self,
        known: &Known<'_>,
        standings: &BTreeMap<&BackupId, Standing<'_>>,
        flaw: impl Fn(&StoredBackup) -> Option<String>,
    ) -> Vec<BackupFacts> {
        let facts = |backup: &StoredBackup| {
            let StoredBackup { manifest, manifest_blake3, .. } = backup;
            let mut facts = BackupFacts::new(manifest, *manifest_blake3, stored_bytes(backup, known), flaw(backup));
            if let Some(standing) = standings.get(&manifest.id) {
                facts.base = standing.base.cloned();
                facts.full_id = standing.full_id.clone();
            }
            facts
        };
        self.catalog.backups.iter().map(facts).collect()
    }

    /// Why this backup cannot be restored from the two stores together; `None` when it can.
    pub fn flaw(&self, beside: Option<&Self>, id: &BackupId) -> Option<String> {
        let known = manifests(self, beside);
        let standing = self.standings(beside, &known).remove(id);
        standing.map_or_else(|| Some(format!("{id} is not there")), |standing| standing.flaw)
    }

    /// Where each backup stands, in one pass: bases come before what follows from them.
    fn standings<'a>(&'a self, beside: Option<&'a Self>, known: &Known<'a>) -> BTreeMap<&'a BackupId, Standing<'a>> {
        let mut in_order: Vec<&'a Manifest> = known.values().map(|(manifest, _)| *manifest).collect();
        in_order.sort_by_key(|manifest| manifest.chain.position);
        let mut standings: BTreeMap<&'a BackupId, Standing<'a>> = BTreeMap::new();
        for manifest in in_order {
            let mut standing = Standing {
                base: manifest.base.as_ref().map(|base| &base.backup_id),
                full_id: &manifest.chain.full_id,
                gap: None,
                flaw: None,
            };
            if let Some(base) = &manifest.base {
                let found = match check_base(manifest, base, known.get(&base.backup_id).copied()) {
                    Err(gap @ RestoreGap::MissingBase { .. }) => {
                        find_twin(manifest, known, &standings).ok_or_else(|| gap.to_string())
                    }
                    other => other.map_err(|gap| gap.to_string()),
                };
                match found {
                    Ok(base) => {
                        let before = standings.get(&base.id);
                        standing.base = Some(&base.id);
                        standing.full_id = before.map_or(standing.full_id, |before| before.full_id);
                        standing.gap = before.and_then(|before| before.gap.clone());
                        standing.flaw = before.and_then(|before| before.flaw.clone());
                    }
                    Err(gap) => (standing.gap, standing.flaw) = (Some(gap.clone()), Some(gap)),
                }
            }
            standing.flaw = standing.flaw.or_else(|| self.own_flaw(beside, &manifest.id));
            standings.insert(&manifest.id, standing);
        }
        standings
    }

    /// Whole in one store is enough.
    fn own_flaw(&self, beside: Option<&Self>, id: &BackupId) -> Option<String> {
        let stores = [Some(self), beside].into_iter().flatten();
        let mut flaws: Vec<&Option<String>> = stores.filter_map(|seen| seen.flaws.get(id)).collect();
        flaws.sort_unstable();
        match flaws.first() {
            Some(best) => Option::clone(best),
            None => Some(format!("{id} was not looked at")),
        }
    }

    /// The chain that leads to this backup, its full first; empty when it cannot be walked.
    pub fn chain(&self, beside: Option<&Self>, id: &BackupId) -> Vec<BackupId> {
        let known: Vec<_> = manifests(self, beside).into_values().collect();
        let chain = plan_restore(&known, id).unwrap_or_default();
        chain.into_iter().map(|manifest| manifest.id.clone()).collect()
    }

    /// Those backups of this store that are whole without any other store.
    pub fn whole(&self) -> Vec<&StoredBackup> {
        let known = manifests(self, None);
        let standings = self.standings(None, &known);
        let is_whole = |backup: &&StoredBackup| standings.get(&backup.manifest.id).is_some_and(|it| it.flaw.is_none());
        self.catalog.backups.iter().filter(is_whole).collect()
    }
}

/// What a backup follows from here and now. A twin stands in where the base that its manifest names is not there, as
/// [`plan_restore`] has it: then the twin is what it must not lose.
#[derive(Debug)]
struct Standing<'a> {
    base: Option<&'a BackupId>,
    full_id: &'a BackupId,
    /// Why its chain does not lead to a full.
    gap: Option<String>,
    /// Why it cannot be restored: the gap, or what is wrong with a chunk.
    flaw: Option<String>,
}

/// The first backup, by id, that stands in for an absent base and leads to a full.
fn find_twin<'a>(
    of: &Manifest,
    known: &Known<'a>,
    standings: &BTreeMap<&'a BackupId, Standing<'a>>,
) -> Option<&'a Manifest> {
    let leads_on = |candidate: &Manifest| standings.get(&candidate.id).is_some_and(|standing| standing.gap.is_none());
    let manifests = known.values().map(|(manifest, _)| *manifest);
    manifests.into_iter().find(|candidate| stands_in_as_base(of, candidate) && leads_on(candidate))
}

/// The backups of both stores by id. Manifests are the same bytes in every store.
type Known<'a> = BTreeMap<&'a BackupId, (&'a Manifest, Digest)>;

fn manifests<'a>(seen: &'a Seen, beside: Option<&'a Seen>) -> Known<'a> {
    let stores = [Some(seen), beside].into_iter().flatten();
    let mut known = Known::new();
    for backup in stores.flat_map(|seen| &seen.catalog.backups) {
        known.entry(&backup.manifest.id).or_insert((&backup.manifest, backup.manifest_blake3));
    }
    known
}

/// As listed; without a listing, as the manifests tell it.
fn stored_bytes(backup: &StoredBackup, known: &Known<'_>) -> u64 {
    if !backup.objects.is_empty() {
        return backup.stored_bytes();
    }
    let manifest = &backup.manifest;
    let base = manifest.base.as_ref().and_then(|base| known.get(&base.backup_id));
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
