//! Finds the effects of damage: which later backups depend on a broken one, and up to which backup
//! the dataset can be restored.

use super::{Damage, MISSING};
use crate::catalog::Catalog;
use crate::model::{BackupId, Guid};
use crate::plan::restore::{Bases, RestoreGap};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A backup that cannot be restored, and the effect on other backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BrokenBackup {
    /// The backup's id.
    pub id: BackupId,
    /// The snapshot that it holds. While the source still has it, a new full of it repairs every
    /// chain through this backup.
    #[serde(skip)]
    pub snapshot: Guid,
    /// Backups that build on it, oldest first: they cannot be restored either.
    pub dependents: Vec<BackupId>,
    /// The newest restorable backup before it.
    pub restorable_up_to: Option<BackupId>,
    /// The oldest restorable backup after it.
    pub restorable_again_from: Option<BackupId>,
}

/// Returns damage for each missing base, once, and for each backup whose base has changed since.
/// Bases in `reported` are damage already.
pub(super) fn gaps(catalog: &Catalog, reported: &[Damage]) -> Vec<Damage> {
    let bases = bases(catalog);
    let mut missing = BTreeSet::new();
    let mut damage = Vec::new();
    let reported: BTreeSet<&BackupId> = reported
        .iter()
        .filter_map(|damage| damage.backup.as_ref())
        .collect();
    for backup in &catalog.backups {
        let id = &backup.manifest.id;
        match bases.base(id) {
            Err(RestoreGap::MissingBase { missing: base, .. }) if reported.contains(&base) => {}
            Err(RestoreGap::MissingBase { of, missing: base }) if missing.insert(base.clone()) => {
                let reason = format!("{MISSING}, and {of} builds on it");
                damage.push(Damage::of_whole(&catalog.dataset, &base, reason));
            }
            Err(RestoreGap::MissingBase { .. }) | Ok(_) => {}
            Err(RestoreGap::ChangedBase { of, .. }) if of != *id => {}
            Err(gap) => damage.push(Damage::of_whole(&catalog.dataset, id, gap.to_string())),
        }
    }
    damage
}

/// Returns the backups that the damage breaks, each with its effect on restores.
pub(super) fn broken(catalog: &Catalog, damage: &[Damage]) -> Vec<BrokenBackup> {
    let breaking = damage.iter().filter(|damage| damage.breaks);
    let ids: BTreeSet<&BackupId> = breaking
        .filter_map(|damage| damage.backup.as_ref())
        .collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let lineages = lineages(catalog);
    let is_whole = |lineage: &Vec<&BackupId>| !lineage.iter().any(|id| ids.contains(id));
    let whole: Vec<&BackupId> = lineages
        .iter()
        .filter(|(_, lineage)| is_whole(lineage))
        .map(|(id, _)| *id)
        .collect();
    ids.iter()
        .map(|id| broken_backup(id, &lineages, &whole))
        .collect()
}

/// Describes a damaged backup by the backups that need it and the nearest `whole` ones.
fn broken_backup(
    id: &BackupId,
    lineages: &BTreeMap<&BackupId, Vec<&BackupId>>,
    whole: &[&BackupId],
) -> BrokenBackup {
    let depends = |(other, lineage): (&&BackupId, &Vec<&BackupId>)| {
        (*other != id && lineage.contains(&id)).then(|| (*other).clone())
    };
    let before = whole.iter().filter(|other| **other < id).max();
    let after = whole.iter().filter(|other| **other > id).min();
    BrokenBackup {
        id: id.clone(),
        snapshot: id.snapshot_guid(),
        dependents: lineages.iter().filter_map(depends).collect(),
        restorable_up_to: before.map(|other| (*other).clone()),
        restorable_again_from: after.map(|other| (*other).clone()),
    }
}

fn bases(catalog: &Catalog) -> Bases<'_> {
    Bases::find(
        catalog
            .backups
            .iter()
            .map(|backup| (&backup.manifest, backup.manifest_blake3)),
    )
}

/// Returns each backup with all backups that a restore of it needs, itself included. If the chain
/// is broken, follows the bases by name down to the missing one.
fn lineages(catalog: &Catalog) -> BTreeMap<&BackupId, Vec<&BackupId>> {
    let bases = bases(catalog);
    let of = |id| match bases.chain(id) {
        Ok(chain) => chain.into_iter().map(|manifest| &manifest.id).collect(),
        Err(_) => lineage_by_name(catalog, id),
    };
    catalog
        .backups
        .iter()
        .map(|backup| (&backup.manifest.id, of(&backup.manifest.id)))
        .collect()
}

/// Returns the backup and its bases as their manifests name them, down to the first missing one.
fn lineage_by_name<'a>(catalog: &'a Catalog, from: &BackupId) -> Vec<&'a BackupId> {
    let mut lineage: Vec<&BackupId> = Vec::new();
    let mut next = catalog.backup(from).map(|backup| &backup.manifest.id);
    while let Some(id) = next.filter(|id| !lineage.contains(id)) {
        lineage.push(id);
        next = catalog
            .backup(id)
            .and_then(|backup| Some(&backup.manifest.base.as_ref()?.backup_id));
    }
    lineage
}
