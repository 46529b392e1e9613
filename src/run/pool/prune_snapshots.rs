//! Destroys this tool's own old snapshots of one dataset when nothing needs them any more.

use super::pins::pinned;
use super::select::Selected;
use super::snapshot::{has_own_name, is_marked};
use crate::catalog::usable::UsableCatalog;
use crate::catalog::{Catalog, read_catalog};
use crate::config::KeepLevels;
use crate::model::DatasetName;
use crate::plan::clock::{ClockDoubt, ClockTrust};
use crate::plan::snapshots::{SnapshotVerdict, SnapshotsInput, StoreNeeds, plan_snapshots};
use crate::run::clock::{ClockCheck, store_clocks};
use crate::run::identity::refuse_one_place;
use crate::run::prune::read_leftovers;
use crate::run::{RunError, error_chain};
use crate::sign::TrustedKeys;
use crate::state::StateError;
use crate::state::dataset_lock::{KernelLock, lock_dataset};
use crate::state::journal::{never_committing, unended};
use crate::store::{StoreInfo, StoreRead};
use crate::zfs::{Snapshot, ZfsSnapshots};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// A configured store.
pub struct SnapshotStore {
    /// The store.
    pub store: Arc<dyn StoreRead>,
    /// Whether the store is an intermediate directory with a remote, which may have the bases of
    /// its backups.
    pub beside_remote: bool,
}

/// The environment for decisions about snapshots.
pub struct SnapshotsEnv {
    /// ZFS.
    pub zfs: Arc<dyn ZfsSnapshots>,
    /// Every configured store.
    pub stores: Vec<SnapshotStore>,
    /// The keys whose manifests are trusted.
    pub trusted: TrustedKeys,
    /// The folder of locks and journals.
    pub state_dir: PathBuf,
    /// The days of `main.oldest_snapshot_days`.
    pub oldest_days: u32,
    /// The configured levels.
    pub levels: Option<KeepLevels>,
    /// The prefix of our own snapshots' names.
    pub prefix: String,
    /// The present time.
    pub now: Timestamp,
    /// Whether the present time can be trusted.
    pub clock: ClockCheck,
}

/// The result for one snapshot.
#[derive(Debug, Serialize)]
pub struct SnapshotOutcome {
    /// The decision.
    #[serde(flatten)]
    pub verdict: SnapshotVerdict,
    /// The reason why ZFS refused to destroy the snapshot: it is held, being read or cloned.
    pub refused: Option<String>,
}

/// Decides about our own snapshots of one dataset. Changes nothing.
///
/// # Errors
/// [`RunError::Store`] and [`RunError::Zfs`] when anything could not be read: then no snapshot may
/// be destroyed.
pub async fn judge_snapshots(
    env: &SnapshotsEnv,
    selected: &Selected,
) -> Result<Vec<SnapshotVerdict>, RunError> {
    Ok(judge_with_clock(env, selected).await?.0)
}

async fn judge_with_clock(
    env: &SnapshotsEnv,
    selected: &Selected,
) -> Result<(Vec<SnapshotVerdict>, Result<ClockTrust, ClockDoubt>), RunError> {
    let Selected { dataset, stored } = selected;
    refuse_one_store_twice(env)?;
    let mut journal = BTreeSet::new();
    let mut known = BTreeSet::new();
    for SnapshotStore { store, .. } in &env.stores {
        journal.extend(never_committing(&env.state_dir, &store.known(), stored)?);
        known.extend(unended(&env.state_dir, &store.known(), stored)?);
    }
    let mut catalogs = Vec::new();
    for SnapshotStore { store, .. } in &env.stores {
        catalogs.push(read_catalog(&**store, stored, &env.trusted).await?);
    }
    // Read the pins after the stores: an upload holds its snapshots before its first object can be
    // listed.
    let pinned = pinned(&*env.zfs, &dataset.name)?;
    known.extend(pinned.iter().cloned());
    let mut views = Vec::new();
    for (store, mut catalog) in env.stores.iter().zip(catalogs) {
        catalog
            .attempts
            .retain(|attempt| known.contains(&attempt.id));
        views.push(view_store(store, catalog, &env.trusted).await?);
    }
    // Read ZFS last, so that snapshots and bookmarks made in the meantime count.
    let snapshots = env.zfs.snapshots(&dataset.name)?;
    let bookmarks = env.zfs.bookmarks(&dataset.name)?;
    let marked = snapshots
        .iter()
        .filter(|snapshot| is_marked(snapshot, dataset.guid))
        .cloned();
    let (own, marked): (Vec<Snapshot>, Vec<Snapshot>) =
        marked.partition(|snapshot| has_own_name(snapshot, &env.prefix));
    let input = SnapshotsInput {
        own: &own,
        marked: &marked,
        prefix: &env.prefix,
        guids: &snapshots.iter().map(|snapshot| snapshot.guid).collect(),
        bookmarks: &bookmarks,
        stores: &views,
        journal: &journal,
        pinned: &pinned,
        oldest_days: env.oldest_days,
        levels: env.levels,
        now: env.now,
        clock: None,
    };
    let verdicts = plan_snapshots(&input);
    let is_needed = verdicts.iter().any(|verdict| verdict.destroy);
    let stores = env
        .stores
        .iter()
        .filter(|_| is_needed)
        .map(|store| -> &dyn StoreInfo { &*store.store });
    let times = snapshots.iter().map(|snapshot| snapshot.created_at);
    let clock = env.clock.judge(&store_clocks(stores).await?, times);
    let verdicts = match &clock {
        Ok(_) => verdicts,
        Err(doubt) => plan_snapshots(&SnapshotsInput {
            clock: Some(doubt),
            ..input
        }),
    };
    Ok((verdicts, clock))
}

/// Reads what the backups and attempts of one store need.
async fn view_store(
    SnapshotStore {
        store,
        beside_remote,
    }: &SnapshotStore,
    catalog: Catalog,
    trusted: &TrustedKeys,
) -> Result<StoreNeeds, RunError> {
    let leftovers = read_leftovers(&**store, &catalog, trusted).await?;
    let seen = UsableCatalog::check(&**store, catalog).await?;
    Ok(StoreNeeds {
        store: store.url().to_owned(),
        facts: if *beside_remote {
            seen.own_facts()
        } else {
            seen.facts(None)
        },
        attempts: leftovers
            .into_iter()
            .map(|leftover| (leftover.id, leftover.started))
            .collect(),
    })
}

/// Refuses a store that is configured twice, before anything is locked: its two locks would block
/// each other.
fn refuse_one_store_twice(env: &SnapshotsEnv) -> Result<(), RunError> {
    for (number, one) in env.stores.iter().enumerate() {
        let mut others = env.stores.iter().skip(number + 1);
        others.try_for_each(|other| refuse_one_place(&one.store.known(), &other.store.known()))?;
    }
    Ok(())
}

fn lock_in_all_stores(
    env: &SnapshotsEnv,
    stored: &DatasetName,
) -> Result<Vec<KernelLock>, StateError> {
    let mut locks = Vec::new();
    for SnapshotStore { store, .. } in &env.stores {
        locks.push(lock_dataset(&env.state_dir, &store.known(), stored)?);
    }
    Ok(locks)
}

/// Destroys the snapshots that may be destroyed, one at a time. A snapshot that ZFS refuses to
/// destroy, because it is held or has clones, stays and is reported.
///
/// # Errors
/// [`RunError::State`] when a run works on the dataset in one of the stores; [`RunError::Zfs`]
/// without the permission to destroy; as for [`judge_snapshots`].
pub async fn prune_snapshots(
    env: &SnapshotsEnv,
    selected: &Selected,
) -> Result<Vec<SnapshotOutcome>, RunError> {
    refuse_one_store_twice(env)?;
    let _locks = lock_in_all_stores(env, &selected.stored)?;
    let mut outcomes = Vec::new();
    let (verdicts, clock) = judge_with_clock(env, selected).await?;
    env.clock.keep_note(&env.state_dir, &clock)?;
    for verdict in verdicts {
        let names = std::slice::from_ref(&verdict.name);
        let destroyed = if verdict.destroy {
            env.zfs.destroy_snapshots(names)
        } else {
            Ok(())
        };
        let refused = match destroyed {
            Err(error) if error.permissions_lacking().is_some() => return Err(error.into()),
            destroyed => destroyed.err().map(|error| error_chain(&error)),
        };
        outcomes.push(SnapshotOutcome { verdict, refused });
    }
    Ok(outcomes)
}
