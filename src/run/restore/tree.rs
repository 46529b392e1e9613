//! [`find_restore_tree`]: a dataset with its descendants, as they were at one moment.

use super::find::Shelves;
use super::{RestorePoint, RestoreSet};
use crate::keyring::KeyFile;
use crate::manifest::Manifest;
use crate::model::DatasetName;
use crate::run::RunError;
use crate::run::catalog::list_datasets;
use crate::store::ObjectStore;
use std::collections::BTreeSet;
use std::sync::Arc;

/// One dataset of a tree.
pub struct TreeMember {
    /// Its name in the store.
    pub dataset: DatasetName,
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
    /// Descendants of which nothing can be restored, and why.
    pub failed: Vec<(DatasetName, RunError)>,
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
    let first = TreeMember { dataset: root.clone(), set, same_moment: true };
    let mut tree = RestoreTree { members: vec![first], younger: Vec::new(), failed: Vec::new() };
    for dataset in descendants(stores, root).await? {
        match find_member(stores, &dataset, keys, &moment).await {
            Ok(Some(member)) => tree.members.push(member),
            Ok(None) => tree.younger.push(dataset),
            Err(error) => tree.failed.push((dataset, error)),
        }
    }
    Ok(tree)
}

/// What a descendant was at that moment; `None` when it has no backup that is as old.
async fn find_member(
    stores: &[Arc<dyn ObjectStore>],
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
    Ok(Some(TreeMember { dataset: dataset.clone(), set, same_moment }))
}

/// Within a pool transaction groups are the order; times are of clocks.
fn is_not_after(manifest: &Manifest, moment: &Manifest) -> bool {
    manifest.origin.pool_guid == moment.origin.pool_guid && manifest.snapshot.createtxg <= moment.snapshot.createtxg
}

/// Parents before children, because a parent's name is the beginning of theirs.
async fn descendants(stores: &[Arc<dyn ObjectStore>], root: &DatasetName) -> Result<BTreeSet<DatasetName>, RunError> {
    let mut found = BTreeSet::new();
    let below = format!("{root}/");
    for store in stores {
        found.extend(list_datasets(&**store).await?.into_iter().filter(|name| name.as_str().starts_with(&below)));
    }
    Ok(found)
}
