//! [`Observer`]: sees every object come and go in the stores of [`crate::two_hosts`], keeps the
//! true time, and reports forbidden operations.

use crate::builder::{RESUME_DAYS, hours};
use crate::scheduler::{GatedStore, Watch};
use jiff::Timestamp;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zfs_backup::manifest::{PruneRecord, parse_strict};
use zfs_backup::model::{BackupId, Guid, KnownStore};
use zfs_backup::store::ObjectKey;
use zfs_backup::store::key::BackupObject;

pub(crate) const FIRST_SECOND: i64 = 1_767_225_600;
pub(crate) const DAY_SECONDS: i64 = 86_400;
/// How far a clock may be ahead before nothing is deleted; a little more than the program's bound.
const AHEAD_HOURS_MAX: i64 = 25;

thread_local! {
    /// The true time, and how far the clock of each host is ahead of it, in seconds.
    pub(crate) static CLOCKS: Cell<(i64, [i64; 2])> = const { Cell::new((FIRST_SECOND, [0, 0])) };
}

/// The time as that host knows it.
pub(crate) fn host_time(host: usize) -> Timestamp {
    let (now, ahead) = CLOCKS.get();
    Timestamp::from_second(now + ahead[host]).unwrap()
}

pub(crate) fn true_seconds() -> i64 {
    CLOCKS.get().0
}

pub(crate) fn seconds_ahead(host: usize) -> i64 {
    CLOCKS.get().1[host]
}

fn first_host_time() -> Timestamp {
    host_time(0)
}

fn second_host_time() -> Timestamp {
    host_time(1)
}

pub(crate) fn clock_of(host: usize) -> fn() -> Timestamp {
    [first_host_time, second_host_time][host]
}

/// How the two hosts relate to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Two datasets under one name in the store; each host adopted the other's origin.
    Adopted,
    /// The second is a clone of the first, pool, state and intermediate directory included.
    Cloned,
}

/// A store of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Remote,
    Intermediate(usize),
}

impl Place {
    pub(crate) fn url(self) -> String {
        match self {
            Self::Remote => "memory:remote".to_owned(),
            Self::Intermediate(_) => "memory:intermediate".to_owned(),
        }
    }

    pub(crate) fn known(self) -> KnownStore {
        KnownStore::of_url(&self.url())
    }
}

/// The kind of an operation, which decides what the operation may delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Job {
    /// A backup or a copy: deletes nothing but what is spare of its own.
    Upload,
    /// Deletes by a plan.
    Prune,
    /// Deletes what a person named.
    Forget(BackupId),
}

/// An operation of a race, for [`Observer`].
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub(crate) host: usize,
    pub(crate) job: Job,
}

pub(crate) type Stored = (Place, BackupId);

/// All that is known of the stores from outside.
#[derive(Default)]
pub(crate) struct Facts {
    /// The operations of this race.
    pub(crate) actors: Vec<Actor>,
    pub(crate) relation: Option<Relation>,
    /// The snapshots that both hosts have because the second one is a clone. They lie on both
    /// time lines, so a backup of one is of neither alone, whichever host made it.
    pub(crate) shared: BTreeSet<Guid>,
    pub(crate) are_clocks_right: bool,
    /// Whether the clocks of the hosts ever differed by about two days or more.
    pub(crate) are_clocks_days_apart: bool,
    /// Committed, and nothing that was named in a prune record of its store was deleted of it.
    pub(crate) alive: BTreeSet<Stored>,
    pub(crate) committed: BTreeSet<Stored>,
    /// Backups that a host deleted from a store although another one may still build on them: it
    /// cannot see that.
    pub(crate) deleted_by_host: BTreeMap<Stored, usize>,
    /// Which host made it; `None` for those that both made before they were two.
    pub(crate) made_by: BTreeMap<BackupId, Option<usize>>,
    /// Unfinished attempts: whose, and when their newest object was put.
    living: BTreeMap<Stored, (usize, i64)>,
    /// Attempts under an id that a prune record names, which have put `started.json` and nothing
    /// after it.
    begun_again: BTreeSet<Stored>,
    records: BTreeMap<(Place, String), BTreeSet<BackupId>>,
    /// The backups in the records that each actor's command put.
    named: BTreeMap<usize, BTreeSet<BackupId>>,
    /// Of what the command of each actor deleted objects.
    deleted: BTreeMap<usize, BTreeSet<BackupId>>,
    pub(crate) violations: BTreeSet<String>,
}

/// Sees every object come and go.
#[derive(Clone, Default)]
pub(crate) struct Observer(Arc<Mutex<Facts>>);

impl Observer {
    /// An actor begins a command.
    pub(crate) fn begin(&self, number: usize, actor: Actor) {
        let mut facts = self.facts();
        facts.actors[number] = actor;
        facts.named.remove(&number);
        facts.deleted.remove(&number);
    }

    /// Ends an actor's command. A successful command deleted exactly the objects that its plan
    /// printed and that it reports as deleted; a failed one deleted no others.
    pub(crate) fn end(
        &self,
        number: usize,
        planned: Option<(BTreeSet<&BackupId>, BTreeSet<&BackupId>)>,
    ) {
        let mut facts = self.facts();
        let deleted = facts.deleted.remove(&number).unwrap_or_default();
        let named = facts.named.remove(&number).unwrap_or_default();
        if facts.actors[number].job != Job::Prune {
            return;
        }
        let violation = match planned {
            Some((planned, told)) => {
                let is_exact = planned == told && deleted.iter().all(|id| planned.contains(id));
                (!is_exact).then(|| {
                    format!("it planned {planned:?}, said {told:?} and deleted of {deleted:?}")
                })
            }
            None => {
                let mut beside = deleted.difference(&named);
                beside
                    .next()
                    .map(|id| format!("it deleted of {id}, which its record does not name"))
            }
        };
        facts
            .violations
            .extend(violation.map(|what| format!("prune of actor {number}: {what}")));
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place_of(store: &GatedStore, host: usize) -> Place {
    if store.url == Place::Remote.url() {
        Place::Remote
    } else {
        Place::Intermediate(host)
    }
}

impl Watch for Observer {
    fn put(&self, store: &GatedStore, key: &str, is_new: bool) {
        let mut facts = self.facts();
        let host = facts.actors[store.actor].host;
        let place = place_of(store, host);
        if key.contains("/@prune/") && key.ends_with(".json") {
            let record: PruneRecord = parse_strict(&store.inner.object(key).unwrap()).unwrap();
            let named: BTreeSet<BackupId> =
                record.pruned.into_iter().map(|entry| entry.id).collect();
            facts
                .named
                .entry(store.actor)
                .or_default()
                .extend(named.iter().cloned());
            facts.records.insert((place, key.to_owned()), named);
            return;
        }
        let Some(parsed) = ObjectKey::parse(key) else {
            return;
        };
        let stored = (place, parsed.id.clone());
        let maker = Some(host);
        facts.made_by.entry(parsed.id).or_insert(maker);
        match (parsed.object, parsed.signature) {
            (BackupObject::Manifest, false) => {
                facts.living.remove(&stored);
                facts.committed.insert(stored.clone());
                facts.alive.insert(stored);
            }
            _ if facts.alive.contains(&stored) => {}
            // An upload announces itself with this object. What it put before, a prune may take
            // for the rest of a backup that was pruned; the upload then finds the prune's record.
            // If a record names the backup already, the upload decides after this object whether
            // it may continue.
            (BackupObject::Started, false) if facts.is_named(&stored) => {
                facts.begun_again.insert(stored);
            }
            (BackupObject::Started, false) => {
                let begun = (host, true_seconds());
                let newest = facts.living.entry(stored).or_insert(begun);
                if is_new {
                    *newest = begun;
                }
            }
            // The age of an upload is that of its newest object, which an identical put leaves.
            _ if !is_new => {}
            _ => {
                if facts.living.contains_key(&stored) || facts.begun_again.remove(&stored) {
                    facts.living.insert(stored, (host, true_seconds()));
                }
            }
        }
    }

    fn deleting(&self, store: &GatedStore, key: &str) {
        let mut facts = self.facts();
        let Actor { host, job } = facts.actors[store.actor].clone();
        let place = place_of(store, host);
        if key.contains("/@prune/") {
            facts.records.remove(&(place, key.to_owned()));
            return;
        }
        let Some(parsed) = ObjectKey::parse(key) else {
            facts
                .violations
                .insert(format!("{key} is of nobody, and was deleted"));
            return;
        };
        let (id, stored) = (parsed.id.clone(), (place, parsed.id));
        facts
            .deleted
            .entry(store.actor)
            .or_default()
            .insert(id.clone());
        let is_forgotten = job == Job::Forget(id.clone());
        let violation = facts
            .violation(&stored, host, &job)
            .map(|what| format!("{place:?}: {key}: {what}"));
        facts.violations.extend(violation);
        if facts.is_named(&stored) && job != Job::Upload {
            facts.alive.remove(&stored);
            facts.deleted_by_host.insert(stored.clone(), host);
            if is_forgotten {
                facts.living.remove(&stored);
            }
        }
    }
}

impl Facts {
    /// Whether a prune record of the store names that backup.
    fn is_named(&self, (place, id): &Stored) -> bool {
        self.records
            .iter()
            .any(|((of, _), named)| of == place && named.contains(id))
    }

    /// Why this host must not delete anything of that.
    fn violation(&self, stored: &Stored, host: usize, job: &Job) -> Option<String> {
        let maker = self.made_by.get(&stored.1).copied().flatten();
        match job {
            Job::Forget(id) => (*id != stored.1).then(|| format!("forget {id} deleted it")),
            Job::Upload if maker.is_some_and(|maker| maker != host) => Some(format!(
                "host {host} deleted it beside an upload, and it is of another host"
            )),
            Job::Upload => None,
            Job::Prune => {
                let (owner, newest) = self.living.get(stored).copied().unwrap_or((host, 0));
                if true_seconds() - newest < i64::from(RESUME_DAYS) * DAY_SECONDS {
                    return Some(format!(
                        "host {host} pruned it, and host {owner} is uploading it"
                    ));
                }
                let is_fork = self.relation == Some(Relation::Cloned)
                    && maker.is_some_and(|maker| maker != host)
                    && !self.shared.contains(&stored.1.snapshot_guid());
                if is_fork && self.alive.contains(stored) {
                    return Some(format!(
                        "host {host} pruned it, and it is of the other time line of its origin"
                    ));
                }
                let of_place = self.alive.iter().filter(|(place, _)| *place == stored.0);
                // An id begins with the time of its snapshot.
                if stored.0 == Place::Remote
                    && self.are_clocks_right
                    && of_place.max_by_key(|(_, id)| id) == Some(stored)
                {
                    return Some(format!(
                        "host {host} pruned it, and it is the newest backup in the remote"
                    ));
                }
                let ahead = seconds_ahead(host);
                (ahead > hours(AHEAD_HOURS_MAX))
                    .then(|| format!("host {host} pruned it, its clock {ahead} s ahead"))
            }
        }
    }
}
