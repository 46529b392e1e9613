//! Prunes one dataset in one store: reads everything, plans, and deletes only what two readings
//! agree on.
//!
//! lock -> read -> plan -> void the records that name backups which stay -> signed prune record ->
//! read and plan again -> for each backup, descendants before ancestors: manifest in all versions,
//! its signature, receipt, chunks, the rest. Both readings are of the store itself. A first plan
//! uses cached manifests ([`crate::state::manifests`]), so that a night with nothing to delete
//! costs one listing.
//!
//! The record is put before the second reading, and every upload puts `started.json` before it
//! reads the records: at least one of the two sees the other. The next prune finishes an
//! interrupted one, because the record proves that the remaining objects are no backup. A record
//! that names a backup which stays would be a false proof later, so it is made void before anything
//! is deleted, unless another host may be pruning by it (`at_work`).

mod at_work;
mod delete;
mod forget;
mod locks;
mod record;
mod settled;
mod unreadable;
mod view;

pub use forget::{Forgotten, forget, plan_forget};
pub use settled::deletes_nothing;
pub(super) use view::read_leftovers;
use view::read_view_uncached;
pub use view::{PruneView, SecondaryStore, read_view};

use super::RunError;
use super::clock::{ClockCheck, store_clocks};
use super::transfer::Stop;
use crate::catalog::remembered::{clear_pruned_at, note_pruned_at};
use crate::config::RetentionRules;
use crate::manifest::{Origin, PrunedEntry};
use crate::model::{BackupId, DatasetName};
use crate::plan::clock::{AHEAD_SECONDS_MAX, StoreClock};
use crate::plan::prune::{Proof, PrunePlan};
use crate::plan::timeline::PoolView;
use crate::sign::{SigningKey, TrustedKeys};
use crate::state::dataset_lock::lock_dataset;
use crate::state::journal::forget_attempt;
use crate::store::{ObjectStore, StoreInfo};
use at_work::OwnRecords;
use delete::{delete_backup, remove_dead_uploads};
use jiff::Timestamp;
use record::{put_record, void_records};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// The store, and everything that a prune in it needs.
#[derive(Clone)]
pub struct PruneEnv {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// The key that signs prune records.
    pub signing: SigningKey,
    /// The keys whose objects are trusted.
    pub trusted: TrustedKeys,
    /// The folder of locks and journals.
    pub state_dir: PathBuf,
    /// The days without a new object after which an attempt is abandoned.
    pub resume_days: u32,
    /// The backups that the pool knows, by the dataset's name in the store. For a dataset without
    /// an entry the prune does not compare with a pool, and does not notice other time lines.
    pub pools: BTreeMap<DatasetName, PoolView>,
    /// The present time.
    pub now: Timestamp,
    /// Whether the present time can be trusted.
    pub clock: ClockCheck,
    /// Becomes true to request a stop.
    pub stop: Stop,
}

impl PruneEnv {
    /// Returns the days without a new object after which the objects of an attempt are deleted:
    /// `resume_days`, or the days of the store's object lock if those are more.
    fn abandon_days(&self) -> u32 {
        self.resume_days
            .max(self.store.object_lock().map_or(0, |lock| lock.days))
    }
}

/// A dataset to prune, with its rules.
pub struct PruneTask {
    /// The dataset's name in the store.
    pub stored: DatasetName,
    /// The dataset's own origin and those that it adopted.
    pub origins: Vec<Origin>,
    /// The rules for what to keep.
    pub rules: RetentionRules,
    /// The second store that may hold the dataset's backups.
    pub secondary: SecondaryStore,
}

/// The result of a prune.
#[derive(Debug)]
pub struct PruneOutcome {
    /// The plan that was carried out.
    pub view: PruneView,
    /// The backups and leftovers that were deleted.
    pub deleted: Vec<BackupId>,
}

/// Carries out the plan of one dataset.
///
/// # Errors
/// [`RunError::State`] when another run works on the dataset; [`RunError::Refused`] when the store
/// changed between the two readings; [`RunError::Interrupted`]; [`RunError::Store`]. Until then,
/// the prune has deleted whole backups from the ends of their chains, and at most one partly, which
/// the next prune finishes.
pub async fn prune_dataset(env: &PruneEnv, task: &PruneTask) -> Result<PruneOutcome, RunError> {
    let known = env.store.known();
    let _lock = lock_dataset(&env.state_dir, &known, &task.stored)?;
    clear_pruned_at(&env.state_dir, &known, &task.stored)?;
    let outcome = prune_locked(env, task).await?;
    if outcome.view.plan.doubts.is_empty() {
        note_pruned_at(&env.state_dir, &known, &task.stored, env.now)?;
    }
    Ok(outcome)
}

async fn prune_locked(env: &PruneEnv, task: &PruneTask) -> Result<PruneOutcome, RunError> {
    let mut first = read_view(env, task).await?;
    if !first.plan.is_empty() {
        first = read_view_uncached(env, task, None).await?;
    }
    OwnRecords::read(env, &task.stored)?.note_future(env, &first.records)?;
    let stay: BTreeSet<&BackupId> = first.plan.keep.iter().map(|kept| &kept.id).collect();
    // With a clock that is years ahead, the record of a prune that runs on another host would seem
    // old.
    if first.clock.is_ok() {
        void_records(env, &task.stored, &first.records, &stay).await?;
    }
    env.clock.keep_note(&env.state_dir, &first.clock)?;
    if first.plan.is_empty() {
        if first.plan.doubts.is_empty() {
            remove_dead_uploads(env, task, &first).await?;
        }
        return Ok(PruneOutcome {
            view: first,
            deleted: Vec::new(),
        });
    }
    let record = put_record(env, &task.stored, entries(&first)).await?;
    let second = read_view_uncached(env, task, Some(record.key())).await?;
    if let Err(why) = check_again(env, &first.plan, &second) {
        record.withdraw(env, &task.stored).await?;
        return Err(RunError::refused(
            format!("{}: {why}; nothing was deleted", task.stored),
            "run it again",
        ));
    }
    let mut deleted = Vec::new();
    for leftover in &first.plan.delete_leftovers {
        env.check_stop()?;
        delete_backup(env, &task.stored, &leftover.id, true).await?;
        if leftover.proof == Proof::Journal {
            forget_attempt(
                &env.state_dir,
                &env.store.known(),
                &task.stored,
                &leftover.id,
            )?;
        }
        deleted.push(leftover.id.clone());
    }
    for doomed in &first.plan.delete {
        env.check_stop()?;
        delete_backup(env, &task.stored, &doomed.id, false).await?;
        deleted.push(doomed.id.clone());
    }
    remove_dead_uploads(env, task, &second).await?;
    Ok(PruneOutcome {
        view: first,
        deleted,
    })
}

impl PruneEnv {
    /// Returns the times by the clocks of the pruned store and of the second store, if they have
    /// clocks.
    async fn store_clocks(&self, secondary: &SecondaryStore) -> Result<Vec<StoreClock>, RunError> {
        let own: &dyn StoreInfo = &*self.store;
        let secondary: Option<&dyn StoreInfo> = match secondary {
            SecondaryStore::Remote(store) | SecondaryStore::Intermediate(store) => Some(&**store),
            SecondaryStore::Nothing | SecondaryStore::Unreachable => None,
        };
        store_clocks([Some(own), secondary].into_iter().flatten()).await
    }

    fn check_stop(&self) -> Result<(), RunError> {
        if *self.stop.borrow() {
            Err(RunError::Interrupted)
        } else {
            Ok(())
        }
    }
}

fn entries(view: &PruneView) -> Vec<PrunedEntry> {
    let hash = |id: &BackupId| view.catalog.backup(id).map(|backup| backup.manifest_blake3);
    let entry = |id: &BackupId| PrunedEntry {
        id: id.clone(),
        manifest_blake3: hash(id),
    };
    view.plan.doomed_ids().into_iter().map(entry).collect()
}

/// Checks that a second reading, made after the record was put, plans the deletions of the first one
/// and no others. A backup that appeared in between may follow from one that is deleted, even if the
/// rules delete it too: it would stay without its base. Returns the difference as an error.
fn check_again(env: &PruneEnv, first: &PrunePlan, second: &PruneView) -> Result<(), String> {
    if let Some(doubt) = second.plan.doubts.first() {
        return Err(format!("it changed while the prune was planned: {doubt}"));
    }
    let before = first.doomed_ids();
    let now = second.plan.doomed_ids();
    if let Some(id) = before.difference(&now).next() {
        return Err(format!(
            "it changed while the prune was planned, and {id} must now be kept"
        ));
    }
    if let Some(id) = now.difference(&before).next() {
        return Err(format!(
            "it changed while the prune was planned, and {id} would now be deleted too"
        ));
    }
    // The record was put just now, so its date is the store's present time. Deletions by age must
    // not use a wrong clock.
    let store_clock = second.catalog.newest_object_at;
    let skew = store_clock.map_or(0, |store| {
        env.now.as_second().saturating_sub(store.as_second())
    });
    if skew > AHEAD_SECONDS_MAX {
        return Err(format!(
            "this host's clock is {} ahead of the store's",
            crate::plan::retention::age_words(skew)
        ));
    }
    Ok(())
}
