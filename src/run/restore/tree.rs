//! [`find_restore_tree`]: a dataset with its descendants, as they were at one moment.
//!
//! The backup of the root records which descendants existed, and under which names
//! ([`Private::descendants`]). A descendant without a backup of that moment is restored from its
//! newest older backup. A dataset that did not exist then is left out. A dataset that was moved
//! into the tree keeps its old name in the store, and is found there by its guid.

use super::find::Shelves;
use super::{RestorePoint, RestoreSet};
use crate::catalog::list_datasets;
use crate::keyring::KeyFile;
use crate::manifest::{Descendant, Manifest, Private};
use crate::model::{DatasetName, Guid, SnapshotName};
use crate::run::{RunError, error_chain};
use crate::store::StoreRead;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A dataset of a tree.
pub struct TreeMember {
    /// The dataset's name in the store.
    pub dataset: DatasetName,
    /// The name below the root at that moment, beginning with a slash; empty for the root. A
    /// renamed dataset keeps its name in the store and has another name here.
    pub below: String,
    /// The chain that leads to it.
    pub set: RestoreSet,
    /// Whether its snapshot was taken in the same transaction group as the root's. Otherwise the
    /// snapshot is the newest older one.
    pub same_moment: bool,
}

/// A tree, checked as far as possible without a fetch of chunks.
#[derive(Default)]
pub struct RestoreTree {
    /// The root first, parents before children; never empty.
    pub members: Vec<TreeMember>,
    /// Descendants that have no backup as old as the root's.
    pub younger: Vec<DatasetName>,
    /// Datasets with older backups that were not in the tree at that moment, because they were
    /// destroyed or moved away, each with the time of its newest older snapshot.
    pub gone: Vec<(DatasetName, Timestamp)>,
    /// Descendants that cannot be restored, each with the reason.
    pub failed: Vec<(DatasetName, RunError)>,
    /// Descendants that existed at that moment and of which no backup was found, by their names in
    /// the pool.
    pub unstored: Vec<String>,
}

/// Finds the root's backup as [`super::find_restore_set`] does. For each descendant in the stores,
/// finds the backup of the same transaction group of the same pool, which one atomic snapshot
/// makes, or else the newest backup before it.
///
/// # Errors
/// [`RunError`] naming the object of the root that is missing, damaged or untrusted, or the store
/// that cannot be listed.
pub async fn find_restore_tree(
    stores: &[Arc<dyn StoreRead>],
    root: &DatasetName,
    keys: &KeyFile,
    point: &RestorePoint,
) -> Result<RestoreTree, RunError> {
    let shelves = Shelves::read(stores, root, keys).await?;
    let target = shelves.target(keys, point).await?;
    let set = shelves.chain(&target, keys).await?;
    let moment = set.newest().manifest.clone();
    let then = Then::of(set.newest().private.as_ref());
    let first = TreeMember {
        dataset: root.clone(),
        below: String::new(),
        set,
        same_moment: true,
    };
    let mut tree = RestoreTree {
        members: vec![first],
        ..RestoreTree::default()
    };
    let search = TreeSearch {
        stores,
        root,
        keys,
        moment: &moment,
    };
    let (below, elsewhere) = stored_datasets(stores, root).await?;
    let mut found = Vec::new();
    let mut accounted = BTreeSet::new();
    for dataset in below {
        let shelves = match search.read(&dataset).await {
            Ok(shelves) => shelves,
            Err(error) => {
                tree.failed.push((dataset, error));
                continue;
            }
        };
        let newest = match search.newest(&shelves) {
            Ok(newest) => newest,
            Err(error) => {
                accounted.extend(
                    shelves
                        .backups()
                        .map(|backup| backup.manifest.origin.dataset_guid),
                );
                tree.failed.push((dataset, error));
                continue;
            }
        };
        let Some(newest) = newest else {
            accounted.extend(
                shelves
                    .backups()
                    .map(|backup| backup.manifest.origin.dataset_guid),
            );
            tree.younger.push(dataset);
            continue;
        };
        accounted.insert(newest.origin.dataset_guid);
        found.push(
            search
                .member(TreeCandidate {
                    dataset,
                    shelves,
                    newest,
                })
                .await,
        );
    }
    if let Some(then) = &then {
        let guids = then.descendants.iter().map(|there| there.guid);
        let sought: BTreeSet<Guid> = guids.filter(|guid| !accounted.contains(guid)).collect();
        if !sought.is_empty() {
            for moved in search.moved(elsewhere, &sought).await {
                accounted.insert(moved.newest.origin.dataset_guid);
                found.push(search.member(moved).await);
            }
        }
    }
    let mut members = Vec::new();
    for member in found {
        match member {
            Ok(member) => members.push(member),
            Err(failed) => tree.failed.push(failed),
        }
    }
    match then {
        Some(then) => then.place(members, &accounted, &mut tree),
        None => tree.members.extend(members),
    }
    tree.members
        .sort_by(|one, other| one.below.cmp(&other.below));
    Ok(tree)
}

/// The context of the search for the datasets of a tree.
struct TreeSearch<'a> {
    stores: &'a [Arc<dyn StoreRead>],
    root: &'a DatasetName,
    keys: &'a KeyFile,
    /// The manifest of the root's backup, which defines the moment.
    moment: &'a Manifest,
}

/// A dataset in the stores, with its newest backup that is not after the moment.
struct TreeCandidate {
    dataset: DatasetName,
    shelves: Shelves,
    newest: Manifest,
}

impl TreeSearch<'_> {
    async fn read(&self, dataset: &DatasetName) -> Result<Shelves, RunError> {
        Shelves::read(self.stores, dataset, self.keys).await
    }

    /// Returns the backup of the moment itself, or else the newest that is not after it.
    fn newest(&self, shelves: &Shelves) -> Result<Option<Manifest>, RunError> {
        let manifests = shelves.backups().map(|backup| &backup.manifest);
        let of_moment = manifests.filter(|manifest| is_of_moment(manifest, self.moment));
        if let Some(manifest) = of_moment.max_by_key(|manifest| &manifest.id) {
            return Ok(Some(manifest.clone()));
        }
        shelves
            .newest_of(|manifest| is_not_after(manifest, self.moment))
            .map(Option::<&Manifest>::cloned)
    }

    /// Loads the chain of a candidate. An error has the name of the dataset and the cause.
    async fn member(
        &self,
        TreeCandidate {
            dataset,
            shelves,
            newest,
        }: TreeCandidate,
    ) -> Result<TreeMember, (DatasetName, RunError)> {
        let same_moment = is_of_moment(&newest, self.moment);
        match shelves.chain(&newest.id, self.keys).await {
            Ok(set) => {
                let below = dataset
                    .as_str()
                    .strip_prefix(self.root.as_str())
                    .unwrap_or_default()
                    .to_owned();
                Ok(TreeMember {
                    dataset,
                    below,
                    set,
                    same_moment,
                })
            }
            Err(error) => Err((dataset, error)),
        }
    }

    /// Finds the datasets that were moved into the tree: they are stored under their first names.
    /// Reads all other datasets in the stores, because only a manifest identifies its dataset.
    async fn moved(
        &self,
        elsewhere: BTreeSet<DatasetName>,
        sought: &BTreeSet<Guid>,
    ) -> Vec<TreeCandidate> {
        let mut moved: BTreeMap<Guid, TreeCandidate> = BTreeMap::new();
        for dataset in elsewhere {
            let shelves = match self.read(&dataset).await {
                Ok(shelves) => shelves,
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::warn!(%dataset, error, "cannot find out whether it belonged to the tree at that moment");
                    continue;
                }
            };
            let newest = match self.newest(&shelves) {
                Ok(newest) => newest,
                Err(error) => {
                    tracing::warn!(%dataset, error = error_chain(&error), "cannot look for this dataset in the tree");
                    continue;
                }
            };
            let Some(newest) = newest else { continue };
            let guid = newest.origin.dataset_guid;
            // A dataset may have been stored under two names.
            let is_newer =
                |other: &TreeCandidate| other.newest.snapshot.createtxg < newest.snapshot.createtxg;
            if sought.contains(&guid) && moved.get(&guid).is_none_or(is_newer) {
                moved.insert(
                    guid,
                    TreeCandidate {
                        dataset,
                        shelves,
                        newest,
                    },
                );
            }
        }
        moved.into_values().collect()
    }
}

/// Whether both manifests are of one atomic snapshot. Two time lines of a pool may reach the same
/// transaction group, but not at the same time.
fn is_of_moment(manifest: &Manifest, moment: &Manifest) -> bool {
    let one = &manifest.snapshot;
    let other = &moment.snapshot;
    manifest.origin.pool_guid == moment.origin.pool_guid
        && (one.createtxg, one.created_at) == (other.createtxg, other.created_at)
}

/// Whether the snapshot is not after the moment. Within a pool, transaction groups give the order;
/// times depend on clocks.
fn is_not_after(manifest: &Manifest, moment: &Manifest) -> bool {
    manifest.origin.pool_guid == moment.origin.pool_guid
        && manifest.snapshot.createtxg <= moment.snapshot.createtxg
}

/// The datasets below the root at the moment.
struct Then {
    /// The root's name in the pool.
    root: DatasetName,
    descendants: Vec<Descendant>,
}

impl Then {
    /// Returns `None` when the descendants are unknown, as in backups that were resumed on another
    /// day.
    fn of(private: Option<&Private>) -> Option<Self> {
        let private = private?;
        let snapshot: SnapshotName = private.snapshot_name.parse().ok()?;
        Some(Self {
            root: snapshot.dataset().clone(),
            descendants: private.descendants.clone()?,
        })
    }

    /// Leaves out the members that did not exist at the moment, and gives the others their names at
    /// that moment. Datasets with guids in `accounted` are reported elsewhere.
    fn place(&self, found: Vec<TreeMember>, accounted: &BTreeSet<Guid>, tree: &mut RestoreTree) {
        let guids: BTreeSet<Guid> = found.iter().map(guid_of).collect();
        let by_guid = |member: &TreeMember| {
            self.descendants
                .iter()
                .find(|there| there.guid == guid_of(member))
        };
        // Members that are known by their guid come first: a dataset that was moved away must not
        // take the place of another.
        let (known, others): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|member| by_guid(member).is_some());
        let mut taken = BTreeSet::new();
        for mut member in known.into_iter().chain(others) {
            // A match by name counts only if the dataset of that name has no backup of its own: an
            // older dataset of the same name is better than none.
            let stored_name = format!("{}{}", self.root, member.below);
            let by_name = || {
                self.descendants
                    .iter()
                    .find(|there| there.name == stored_name && !guids.contains(&there.guid))
            };
            let there = by_guid(&member)
                .or_else(by_name)
                .map(|there| there.name.clone());
            let there = there.or_else(|| name_of_then(&member).filter(|_| member.same_moment));
            let below =
                there.and_then(|there| Some(there.strip_prefix(self.root.as_str())?.to_owned()));
            match below.filter(|below| below.starts_with('/')) {
                Some(below) => member.below = below,
                None => {
                    let at = member.set.newest().manifest.snapshot.created_at;
                    tree.gone.push((member.dataset, at));
                    continue;
                }
            }
            if taken.insert(member.below.clone()) {
                tree.members.push(member);
            } else {
                let dataset = &member.dataset;
                let below = &member.below;
                let what = format!(
                    "{dataset} and another dataset would both be restored to {}{below}",
                    self.root
                );
                let error = RunError::refused(what, "restore it by its own name");
                tree.failed.push((member.dataset, error));
            }
        }
        let root = &tree.members[0].dataset;
        let unread = tree
            .failed
            .iter()
            .filter_map(|(dataset, _)| dataset.as_str().strip_prefix(root.as_str()));
        taken.extend(unread.map(str::to_owned));
        let is_unstored = |there: &&Descendant| {
            let below = there.name.strip_prefix(self.root.as_str());
            !accounted.contains(&there.guid) && !below.is_some_and(|below| taken.contains(below))
        };
        tree.unstored = self
            .descendants
            .iter()
            .filter(is_unstored)
            .map(|there| there.name.clone())
            .collect();
    }
}

/// Returns the dataset's name in the pool when its snapshot was taken, or its name in the store
/// when the former is unknown.
fn name_of_then(member: &TreeMember) -> Option<String> {
    match &member.set.newest().private {
        Some(private) => Some(private.snapshot_name.split_once('@')?.0.to_owned()),
        None => Some(member.dataset.to_string()),
    }
}

fn guid_of(member: &TreeMember) -> Guid {
    member.set.newest().manifest.origin.dataset_guid
}

/// Returns the datasets in the stores that are below the root, and all others except the root.
async fn stored_datasets(
    stores: &[Arc<dyn StoreRead>],
    root: &DatasetName,
) -> Result<(BTreeSet<DatasetName>, BTreeSet<DatasetName>), RunError> {
    let mut found = BTreeSet::new();
    for store in stores {
        found.extend(list_datasets(&**store).await?);
    }
    found.remove(root);
    let below = format!("{root}/");
    Ok(found
        .into_iter()
        .partition(|name| name.as_str().starts_with(&below)))
}
