//! [`read_view`]: reads everything that a prune decides from: the store, the journal, and the second
//! store.

use super::at_work::OwnRecords;
use super::locks::read_locks;
use super::unreadable::{describe, unreadable};
use super::{PruneEnv, PruneTask};
use crate::catalog::usable::UsableCatalog;
use crate::catalog::{
    Catalog, StoredAttempt, read_catalog_through, read_prune_records_through, read_receipt,
    read_started,
};
use crate::manifest::PruneRecord;
use crate::model::{BackupId, DatasetName};
use crate::plan::BackupFacts;
use crate::plan::clock::{ClockDoubt, ClockTrust};
use crate::plan::prune::{
    self as plan, Leftover, Live, PruneInput, PrunePlan, Pruned, StartedFact, plan_prune,
};
use crate::plan::retention::in_order;
use crate::plan::timeline::PoolView;
use crate::run::identity::refuse_one_place;
use crate::run::{RunError, error_chain};
use crate::sign::TrustedKeys;
use crate::state::journal::never_committing;
use crate::state::manifests::{CacheMode, ObjectCache};
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, StoreErrorKind, StoreInfo, StoreRead};
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Limit of concurrent fetches of `started.json`.
const STARTED_MAX: usize = 16;

/// The second store that holds backups of the same dataset, as seen from the store that is pruned.
#[derive(Clone)]
pub enum SecondaryStore {
    /// No second store counts: the backups of the pruned store must suffice on their own.
    Nothing,
    /// The pruned store is the intermediate directory, and this is the remote.
    Remote(Arc<dyn StoreRead>),
    /// The pruned store is the intermediate directory, and the remote cannot be reached.
    Unreachable,
    /// The pruned store is the remote, and this is the intermediate directory, where backups wait
    /// to be copied.
    Intermediate(Arc<dyn StoreRead>),
}

/// The facts that were read, and the plan that results from them.
#[derive(Debug)]
pub struct PruneView {
    /// The catalog of the dataset in the pruned store.
    pub catalog: Catalog,
    /// The facts about each of its backups.
    pub facts: Vec<BackupFacts>,
    /// The decisions about its backups and leftovers.
    pub plan: PrunePlan,
    /// Whether this host's clock can be trusted. The clocks of the stores are read only when the
    /// plan deletes something.
    pub clock: Result<ClockTrust, ClockDoubt>,
    pub(super) records: Vec<(ObjectKey, PruneRecord)>,
    pub(super) pruned: BTreeMap<BackupId, Pruned>,
    pub(super) never_committing: BTreeSet<BackupId>,
}

impl PruneView {
    /// Whether it is certain that no host resumes that attempt: the id is a backup, or a signed
    /// record says that it was deleted.
    pub fn is_over(&self, id: &BackupId) -> bool {
        self.catalog.backup(id).is_some() || self.pruned.contains_key(id)
    }
}

/// Lists everything and plans. Manifests and other objects come from the cache if the listing still
/// shows them unchanged. Changes nothing in a store. A deletion must not rely on this result alone:
/// see `read_view_uncached`.
///
/// # Errors
/// [`RunError::Store`] when any object could not be read; nothing may be deleted then.
pub async fn read_view(env: &PruneEnv, task: &PruneTask) -> Result<PruneView, RunError> {
    let kept = |store: &dyn StoreInfo| {
        ObjectCache::open(
            &env.state_dir,
            &store.known(),
            &task.stored,
            CacheMode::ReadWrite,
        )
    };
    read_view_with(env, task, &kept, None).await
}

/// Does the same as [`read_view`], but reads every object from the stores. A prune deletes only what two
/// of these readings agree on. `own_record` is the record of the prune that reads: its own statement
/// proves nothing, so the second reading needs the same proofs as the first.
///
/// # Errors
/// As for [`read_view`].
pub(super) async fn read_view_uncached(
    env: &PruneEnv,
    task: &PruneTask,
    own_record: Option<&ObjectKey>,
) -> Result<PruneView, RunError> {
    read_view_with(env, task, &|_| ObjectCache::none(), own_record).await
}

/// Function that opens the cache of a store's objects.
type CacheOf<'a> = &'a (dyn Fn(&dyn StoreInfo) -> ObjectCache + Sync);

async fn read_view_with(
    env: &PruneEnv,
    task: &PruneTask,
    cache_of: CacheOf<'_>,
    own_record: Option<&ObjectKey>,
) -> Result<PruneView, RunError> {
    let store = &*env.store;
    if let SecondaryStore::Remote(other) | SecondaryStore::Intermediate(other) = &task.secondary {
        refuse_one_place(&store.known(), &other.known())?;
    }
    let cache = cache_of(store);
    let catalog = read_catalog_through(store, &task.stored, &env.trusted, &cache).await?;
    let mut records =
        read_prune_records_through(store, &task.stored, &env.trusted, None, &cache).await?;
    records.retain(|(key, _)| Some(key) != own_record);
    let pruned = newest_records(&records);
    let mut leftovers = read_leftovers(store, &catalog, &env.trusted).await?;
    let never_committing = never_committing(&env.state_dir, &store.known(), &task.stored)?;
    for leftover in leftovers
        .iter_mut()
        .filter(|leftover| never_committing.contains(&leftover.id))
    {
        check_hidden_manifests(store, &task.stored, leftover).await?;
    }
    let seen = UsableCatalog::check_wanted(store, catalog, &cache, |_| true).await?;
    let mut facts = match task.secondary {
        SecondaryStore::Nothing | SecondaryStore::Intermediate(_) => seen.facts(None),
        SecondaryStore::Remote(_) | SecondaryStore::Unreachable => seen.own_facts(),
    };
    let pool = env.pools.get(&task.stored);
    mark_adopted(&mut facts, pool);
    let catalog = seen.catalog;
    let live = read_live(store, &catalog, &facts, &env.trusted).await?;
    let other = read_other(task, &env.trusted, cache_of).await?;
    let secondary = match (&task.secondary, &other) {
        (SecondaryStore::Remote(_), Some(other)) => plan::SecondaryFacts::Remote {
            facts: &other.facts,
            pruned: &other.pruned,
        },
        (SecondaryStore::Unreachable | SecondaryStore::Remote(_), _) => {
            plan::SecondaryFacts::Unreachable
        }
        (SecondaryStore::Nothing | SecondaryStore::Intermediate(_), _) => {
            plan::SecondaryFacts::Nothing
        }
    };
    let (waiting, waiting_attempts) = match (&task.secondary, &other) {
        (SecondaryStore::Intermediate(_), Some(other)) => (&other.facts[..], &other.leftovers[..]),
        _ => (&[][..], &[][..]),
    };
    let no_locks = BTreeMap::new();
    let other_prune = OwnRecords::read(env, &task.stored)?.other_prune(env, &records, &catalog);
    let input = PruneInput {
        facts: &facts,
        leftovers: &leftovers,
        secondary,
        rules: &task.rules,
        now: env.now,
        store_clock: catalog.newest_object_at,
        clock: None,
        other_prune: other_prune.as_ref(),
        origins: &task.origins,
        pool,
        pruned: &pruned,
        waiting,
        waiting_attempts,
        never_committing: &never_committing,
        resume_days: env.abandon_days(),
        locks: &no_locks,
        live: live.as_ref(),
    };
    let mut plan = plan_prune(&input);
    let clock = judge_clock(env, task, &facts, &leftovers, plan.is_empty()).await?;
    // Receipts are large, so locks are read only for what the plan deletes. Locks can only reduce
    // that set.
    let locks = read_locks(env, &catalog, &plan).await?;
    if !locks.is_empty() || clock.is_err() {
        plan = plan_prune(&PruneInput {
            locks: &locks,
            clock: clock.as_ref().err(),
            ..input
        });
    }
    Ok(PruneView {
        plan,
        records,
        pruned,
        never_committing,
        facts,
        catalog,
        clock,
    })
}

/// Judges this host's clock. If the plan deletes something, reads the time from both stores: the
/// pruned one and the second one.
async fn judge_clock(
    env: &PruneEnv,
    task: &PruneTask,
    facts: &[BackupFacts],
    leftovers: &[Leftover],
    is_empty: bool,
) -> Result<Result<ClockTrust, ClockDoubt>, RunError> {
    let clocks = if is_empty {
        Vec::new()
    } else {
        env.store_clocks(&task.secondary).await?
    };
    let backups = facts.iter().map(|backup| backup.snapshot.created_at);
    let objects = leftovers.iter().filter_map(|leftover| leftover.newest);
    Ok(env.clock.judge(&clocks, backups.chain(objects)))
}

/// Marks adopted backups: only a person decides the order of two time lines.
fn mark_adopted(facts: &mut [BackupFacts], pool: Option<&PoolView>) {
    let Some(pool) = pool else { return };
    facts
        .iter_mut()
        .for_each(|backup| backup.made.adopted = pool.adopted.contains(&backup.id));
}

pub(super) fn newest_records(records: &[(ObjectKey, PruneRecord)]) -> BTreeMap<BackupId, Pruned> {
    let mut pruned: BTreeMap<BackupId, Pruned> = BTreeMap::new();
    for (_, record) in records {
        for entry in &record.pruned {
            let recorded_at = record.put_at();
            let manifest_blake3 = entry.manifest_blake3;
            let known = pruned.entry(entry.id.clone()).or_insert(Pruned {
                recorded_at,
                manifest_blake3,
            });
            // The record of a continued deletion does not know the hash: an interrupted prune has
            // already deleted the manifest.
            known.manifest_blake3 = known.manifest_blake3.or(manifest_blake3);
            known.recorded_at = known.recorded_at.max(recorded_at);
        }
    }
    pruned
}

/// Returns the attempts of a catalog with the content of their `started.json`.
pub(in crate::run) async fn read_leftovers(
    store: &dyn StoreRead,
    catalog: &Catalog,
    trusted: &TrustedKeys,
) -> Result<Vec<Leftover>, RunError> {
    // Collected first: a stream that made the futures lazily would tie them to its own lifetime.
    let reads: Vec<_> = catalog
        .attempts
        .iter()
        .map(|attempt| async move {
            (
                attempt,
                read_started(store, &catalog.dataset, &attempt.id, trusted).await,
            )
        })
        .collect();
    let mut reads = stream::iter(reads).buffered(STARTED_MAX);
    let mut leftovers = Vec::new();
    while let Some((attempt, started)) = reads.next().await {
        let StoredAttempt {
            id,
            objects,
            bytes,
            newest,
            was_committed,
            untrusted,
        } = attempt;
        let started = match started {
            Ok(None) => StartedFact::Absent,
            Ok(Some(started)) => {
                let base = started.base.map(|base| base.backup_id);
                StartedFact::Signed {
                    base,
                    origin: started.origin,
                }
            }
            Err(error) => StartedFact::Unreadable(unreadable(error)?),
        };
        leftovers.push(Leftover {
            id: id.clone(),
            objects: *objects,
            bytes: *bytes,
            newest: *newest,
            was_committed: *was_committed,
            versions_unseen: None,
            untrusted: untrusted.as_ref().map(describe),
            started,
        });
    }
    Ok(leftovers)
}

/// Checks for hidden versions of the manifest. The journal may be an old copy that was restored, so
/// its statement that an attempt never reached its commit counts only if the store has no version
/// of the manifest.
async fn check_hidden_manifests(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    leftover: &mut Leftover,
) -> Result<(), RunError> {
    let manifest = ObjectKey::backup(dataset, &leftover.id, &BackupObject::Manifest);
    match store.any_version(&manifest).await {
        Ok(any) => leftover.was_committed |= any,
        Err(error) if error.kind == StoreErrorKind::Denied => {
            leftover.versions_unseen = Some(error_chain(&error))
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn read_live(
    store: &dyn StoreRead,
    catalog: &Catalog,
    facts: &[BackupFacts],
    trusted: &TrustedKeys,
) -> Result<Option<Live>, RunError> {
    let newest = in_order(facts)
        .pop()
        .and_then(|newest| catalog.backup(&newest.id));
    let Some(backup) = newest else {
        return Ok(None);
    };
    let ids = match read_receipt(store, backup, trusted).await {
        Ok(receipt) => Ok(receipt.live.into_iter().map(|entry| entry.id).collect()),
        Err(error) => Err(unreadable(error)?),
    };
    Ok(Some(Live {
        of: backup.manifest.id.clone(),
        ids,
    }))
}

/// The second store's facts about the dataset.
struct OtherStoreFacts {
    facts: Vec<BackupFacts>,
    pruned: BTreeMap<BackupId, Pruned>,
    leftovers: Vec<Leftover>,
}

/// Reads the second store, if there is one and it can be reached.
async fn read_other(
    PruneTask {
        secondary, stored, ..
    }: &PruneTask,
    trusted: &TrustedKeys,
    cache_of: CacheOf<'_>,
) -> Result<Option<OtherStoreFacts>, RunError> {
    let (SecondaryStore::Remote(store) | SecondaryStore::Intermediate(store)) = secondary else {
        return Ok(None);
    };
    let cache = cache_of(&**store);
    let catalog = read_catalog_through(&**store, stored, trusted, &cache).await?;
    let pruned =
        newest_records(&read_prune_records_through(&**store, stored, trusted, None, &cache).await?);
    let leftovers = read_leftovers(&**store, &catalog, trusted).await?;
    let seen = UsableCatalog::check_wanted(&**store, catalog, &cache, |_| true).await?;
    let facts = match secondary {
        SecondaryStore::Remote(_) => seen.facts(None),
        _ => seen.own_facts(),
    };
    Ok(Some(OtherStoreFacts {
        facts,
        pruned,
        leftovers,
    }))
}
