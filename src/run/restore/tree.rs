//! [`find_restore_tree`]: a dataset with its descendants, as they were at one moment.
//!
//! Which there were, and under which names, the backup of the root knows ([`Private::descendants`]). One that was there and
//! has no backup of that moment is restored as it was before; one that was not there is left out. One that was moved into
//! the tree keeps its old name in the store, and is found there by its guid.

use super::find::Shelves;
use super::{RestorePoint, RestoreSet};
use crate::keyring::KeyFile;
use crate::manifest::{Descendant, Manifest, Private};
use crate::model::{DatasetName, Guid, SnapshotName};
use crate::run::catalog::list_datasets;
use crate::run::{RunError, error_chain};
use crate::store::ObjectStore;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One dataset of a tree.
pub struct TreeMember {
    /// Its name in the store.
    pub dataset: DatasetName,
    /// Its name below the root at that moment, beginning with a slash; empty for the root. A dataset that was renamed
    /// keeps its name in the store and has another here.
    pub below: String,
    /// The chain that leads to it.
    pub set: RestoreSet,
    /// Its snapshot was taken in the same transaction group as the root's. Else it is the newest that is older.
    pub same_moment: bool,
}

/// A tree, checked as far as it can be without fetching chunks.
pub struct RestoreTree {
    /// The root first, parents before children; never empty.
    pub members: Vec<TreeMember>,
    /// Descendants that have no backup as old as the root's.
    pub younger: Vec<DatasetName>,
    /// Those that have older backups, and were not there at that moment: destroyed, or moved away. With the time of the
    /// newest that is older.
    pub gone: Vec<(DatasetName, Timestamp)>,
    /// Descendants of which nothing can be restored, and why.
    pub failed: Vec<(DatasetName, RunError)>,
    /// What was there at that moment, by its name in the pool, and was never backed up.
    pub unstored: Vec<String>,
}

/// Finds the root's backup as [`super::find_restore_set`] does, and for each descendant that a store knows the backup of
/// the same transaction group of the same pool, which one atomic snapshot makes; where it has none, the newest before.
///
/// # Errors
/// [`RunError`] naming what is missing, damaged or not to be believed of the root, or that a store cannot be listed.
pub async fn find_restore_tree(
    stores: &[Arc<dyn ObjectStore>],
    root: &DatasetName,
    keys: &KeyFile,
    point: &RestorePoint,
) -> Result<RestoreTree, RunError> {
    let shelves = Shelves::read(stores, root, keys).await?;
    let target = shelves.target(keys, point).await?;
    let set = shelves.chain(&target, keys).await?;
    let moment = set.newest().manifest.clone();
    let then = Then::of(set.newest().private.as_ref());
    let first = TreeMember { dataset: root.clone(), below: String::new(), set, same_moment: true };
    let (younger, gone, failed, unstored) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut tree = RestoreTree { members: vec![first], younger, gone, failed, unstored };
    let mut found = Vec::new();
    let (below, elsewhere) = stored_datasets(stores, root).await?;
    for dataset in below {
        match find_member(stores, root, &dataset, keys, &moment).await {
            Ok(Some(member)) => found.push(member),
            Ok(None) => tree.younger.push(dataset),
            Err(error) => tree.failed.push((dataset, error)),
        }
    }
    match then {
        Some(then) => {
            let known = found.iter().map(guid_of).collect();
            found.extend(then.find_moved(stores, root, elsewhere, keys, &moment, known).await);
            then.place(found, &mut tree);
        }
        None => tree.members.extend(found),
    }
    tree.members.sort_by(|one, other| one.below.cmp(&other.below));
    Ok(tree)
}

/// What a descendant was at that moment; `None` when it has no backup that is as old.
async fn find_member(
    stores: &[Arc<dyn ObjectStore>],
    root: &DatasetName,
    dataset: &DatasetName,
    keys: &KeyFile,
    moment: &Manifest,
) -> Result<Option<TreeMember>, RunError> {
    let shelves = Shelves::read(stores, dataset, keys).await?;
    let before = shelves.backups().map(|backup| &backup.manifest).filter(|manifest| is_not_after(manifest, moment));
    let Some(newest) = before.max_by_key(|manifest| (manifest.snapshot.createtxg, &manifest.id)) else {
        return Ok(None);
    };
    let same_moment = newest.snapshot.createtxg == moment.snapshot.createtxg;
    let set = shelves.chain(&newest.id, keys).await?;
    let below = dataset.as_str().strip_prefix(root.as_str()).unwrap_or_default().to_owned();
    Ok(Some(TreeMember { dataset: dataset.clone(), below, set, same_moment }))
}

/// Within a pool transaction groups are the order; times are of clocks.
fn is_not_after(manifest: &Manifest, moment: &Manifest) -> bool {
    manifest.origin.pool_guid == moment.origin.pool_guid && manifest.snapshot.createtxg <= moment.snapshot.createtxg
}

/// What there was below the root at the moment.
struct Then {
    /// The root's name in the pool.
    root: DatasetName,
    descendants: Vec<Descendant>,
}

impl Then {
    /// `None` when it is not known, as in backups that were gone on with another day.
    fn of(private: Option<&Private>) -> Option<Self> {
        let private = private?;
        let snapshot: SnapshotName = private.snapshot_name.parse().ok()?;
        Some(Self { root: snapshot.dataset().clone(), descendants: private.descendants.clone()? })
    }

    /// What was moved into the tree and is stored under a name that is not below the root's. Most trees have none, and
    /// then nothing is read for it.
    async fn find_moved(
        &self,
        stores: &[Arc<dyn ObjectStore>],
        root: &DatasetName,
        elsewhere: BTreeSet<DatasetName>,
        keys: &KeyFile,
        moment: &Manifest,
        known: BTreeSet<Guid>,
    ) -> Vec<TreeMember> {
        let mut moved: BTreeMap<Guid, TreeMember> = BTreeMap::new();
        let is_sought = |guid| self.descendants.iter().any(|there| there.guid == guid && !known.contains(&guid));
        if !self.descendants.iter().any(|there| is_sought(there.guid)) {
            return Vec::new();
        }
        let createtxg = |member: &TreeMember| member.set.newest().manifest.snapshot.createtxg;
        for dataset in elsewhere {
            match find_member(stores, root, &dataset, keys, moment).await {
                Ok(Some(member)) if is_sought(guid_of(&member)) => {
                    let newest = moved.remove(&guid_of(&member)).into_iter().chain([member]).max_by_key(createtxg);
                    moved.extend(newest.map(|member| (guid_of(&member), member)));
                }
                Ok(_) => {}
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::warn!(%dataset, error, "whether it belonged to the tree at that moment is not known");
                }
            }
        }
        moved.into_values().collect()
    }

    /// Sorts out what was not there, and gives each of the others its name of then.
    fn place(&self, found: Vec<TreeMember>, tree: &mut RestoreTree) {
        let guids: BTreeSet<Guid> = found.iter().map(guid_of).collect();
        let mut taken = BTreeSet::new();
        for mut member in found {
            // By name only where the dataset of that name has no backup of its own: better an older one than none.
            let by_guid = self.descendants.iter().find(|there| there.guid == guid_of(&member));
            let in_pool = format!("{}{}", self.root, member.below);
            let by_name =
                || self.descendants.iter().find(|there| there.name == in_pool && !guids.contains(&there.guid));
            let there = by_guid.or_else(by_name);
            if let Some(below) = there.and_then(|there| there.name.strip_prefix(self.root.as_str())) {
                below.clone_into(&mut member.below);
            } else if !member.same_moment {
                let at = member.set.newest().manifest.snapshot.created_at;
                tree.gone.push((member.dataset, at));
                continue;
            }
            if taken.insert(member.below.clone()) {
                tree.members.push(member);
            } else {
                let what = format!("{} and another dataset would both be restored to {in_pool}", member.dataset);
                let error = RunError::refused(what, "restore it by its own name");
                tree.failed.push((member.dataset, error));
            }
        }
        let root = &tree.members[0].dataset;
        let told = tree.younger.iter().chain(tree.failed.iter().map(|(dataset, _)| dataset));
        taken.extend(told.filter_map(|dataset| Some(dataset.as_str().strip_prefix(root.as_str())?.to_owned())));
        let unstored = self.descendants.iter().map(|there| &there.name);
        let unstored =
            unstored.filter(|name| !name.strip_prefix(self.root.as_str()).is_some_and(|below| taken.contains(below)));
        tree.unstored = unstored.cloned().collect();
    }
}

fn guid_of(member: &TreeMember) -> Guid {
    member.set.newest().manifest.origin.dataset_guid
}

/// The datasets in the stores that are below the root, and the others without it.
async fn stored_datasets(
    stores: &[Arc<dyn ObjectStore>],
    root: &DatasetName,
) -> Result<(BTreeSet<DatasetName>, BTreeSet<DatasetName>), RunError> {
    let mut found = BTreeSet::new();
    for store in stores {
        found.extend(list_datasets(&**store).await?);
    }
    found.remove(root);
    let below = format!("{root}/");
    Ok(found.into_iter().partition(|name| name.as_str().starts_with(&below)))
}
