//! [`plan_prune`]: from what the rules keep to what may go, and in which order.
//!
//! Whatever the rules say: kept sets have all their ancestors, the newest usable chain stays, what
//! an unfinished upload builds on stays, and nothing of a dataset goes while anything about it is
//! doubtful. Leftovers of attempts go only on positive proof that they are no backup and will never
//! be one.

mod doubt;
mod other;

pub use doubt::{Doubt, adopt_command};
pub use other::OtherPrune;

use super::BackupFacts;
use super::clock::ClockDoubt;
use super::retention::{Reason, chains_newest_first, decide_retention, in_order};
use super::timeline::PoolSight;
use super::twin::{are_twins, attempt_bases, facts_stand_in_as_base};
use crate::config::RetentionRules;
use crate::manifest::Origin;
use crate::model::{BackupId, Digest};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Objects under an id without a manifest that is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The id.
    pub id: BackupId,
    /// How many objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The newest of them by the store's clock; `None` when the store does not say.
    pub newest: Option<Timestamp>,
    /// Its manifest or the manifest's signature is there, be it behind a delete marker.
    pub was_committed: bool,
    /// Why it is not known that no version of its manifest lies behind a delete marker.
    pub versions_unseen: Option<String>,
    /// Why its manifest is not believed, when there is one.
    pub disbelieved: Option<Unreadable>,
    /// What its first object says.
    pub started: StartedFact,
}

/// Something that is there and tells nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Why.
    pub reason: String,
    /// Damage or forgery, and not only made by a later version.
    pub damage: bool,
}

/// The first object of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartedFact {
    /// It is not there.
    Absent,
    /// It is there and signed.
    Signed {
        /// The backup that it builds on; `None` for a full.
        base: Option<BackupId>,
        /// Where it comes from.
        origin: Origin,
    },
    /// It is there and cannot be believed.
    Unreadable(Unreadable),
}

/// What else holds these backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside<'a> {
    /// Nothing: this is the remote, or an intermediate directory without one.
    Nothing,
    /// The remote has these. Only for an intermediate directory.
    Remote {
        /// Its whole backups.
        facts: &'a [BackupFacts],
        /// What its signed prune records name.
        pruned: &'a BTreeMap<BackupId, Pruned>,
    },
    /// There is a remote, and it cannot be asked.
    Unreachable,
}

/// What the newest signed prune record that names a backup says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// When the record was put, by the store's clock: the same clock that dates the objects of a
    /// backup.
    pub recorded_at: Timestamp,
    /// The hash of the backup's manifest; `None` for an attempt that never had one.
    pub manifest_blake3: Option<Digest>,
}

/// Until when the store refuses to delete a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// Until then, in RFC 3339.
    Until(String),
    /// The receipt that would tell cannot be read.
    Unknown(String),
}

/// The backups that the newest receipt saw in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The backup whose receipt it is.
    pub of: BackupId,
    /// What it saw, or why that cannot be read.
    pub ids: Result<BTreeSet<BackupId>, Unreadable>,
}

/// Everything that is decided from.
#[derive(Debug, Clone, Copy)]
pub struct PruneInput<'a> {
    /// The whole backups. Their flaws are those of the backup with its ancestors, beside a remote
    /// only its own.
    pub facts: &'a [BackupFacts],
    /// Everything else that has an id.
    pub leftovers: &'a [Leftover],
    /// What else holds these backups.
    pub beside: Beside<'a>,
    /// What to keep.
    pub rules: &'a RetentionRules,
    /// The time.
    pub now: Timestamp,
    /// The store's clock: the newest object of the dataset.
    pub store_clock: Option<Timestamp>,
    /// Why this host's clock may not decide what is deleted; `None` when it may.
    pub clock: Option<&'a ClockDoubt>,
    /// The prune of another host that may be running; `None` when none is seen.
    pub other_prune: Option<&'a OtherPrune>,
    /// The origins whose backups may go: the dataset's own and those that it adopted.
    pub origins: &'a [Origin],
    /// The backups that the pool knows, when there is a pool to ask.
    pub pool: Option<&'a PoolSight>,
    /// What signed prune records name.
    pub pruned: &'a BTreeMap<BackupId, Pruned>,
    /// What the intermediate directory holds, when this is the remote beside it: what waits there
    /// to be copied needs its chain here.
    pub waiting: &'a [BackupFacts],
    /// The attempts there: what is being written into the intermediate directory may build on what
    /// is here.
    pub waiting_attempts: &'a [Leftover],
    /// Attempts that this host began and that never came near their commit.
    pub never_committing: &'a BTreeSet<BackupId>,
    /// After so many days without a new object an attempt is given up.
    pub resume_days: u32,
    /// What is known of locks. A backup that is not named here is not locked.
    pub locks: &'a BTreeMap<BackupId, Lock>,
    /// The newest receipt; `None` where there is no backup.
    pub live: Option<&'a Live>,
}

/// A backup that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its id.
    pub id: BackupId,
    /// Why; never empty.
    pub reasons: Vec<Reason>,
}

/// A backup that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// Its id.
    pub id: BackupId,
    /// Bytes of its objects.
    pub bytes: u64,
    /// Why.
    pub reason: Reason,
}

/// How it is known that a leftover is no backup and will never be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A signed prune record names it.
    PruneRecord,
    /// This host's journal says that it never reached its commit, and it was given up.
    Journal,
}

/// A leftover that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoomedLeftover {
    /// Its id.
    pub id: BackupId,
    /// How many objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How that is known.
    pub proof: Proof,
}

/// A leftover that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    /// Its id.
    pub id: BackupId,
    /// How many objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why.
    pub why: String,
}

/// What a prune does with one dataset in one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrunePlan {
    /// What stays, oldest first.
    pub keep: Vec<Kept>,
    /// What goes, in the order in which it goes: descendants before ancestors.
    pub delete: Vec<Doomed>,
    /// Leftovers that go.
    pub delete_leftovers: Vec<DoomedLeftover>,
    /// Leftovers that stay, and why.
    pub left_alone: Vec<LeftAlone>,
    /// Why nothing of the dataset goes. With any of these nothing is in `delete` and
    /// `delete_leftovers`.
    pub doubts: Vec<Doubt>,
}

impl PrunePlan {
    /// Whether it deletes nothing.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.delete_leftovers.is_empty()
    }

    /// Bytes of all that goes.
    pub fn freed_bytes(&self) -> u64 {
        let backups = self.delete.iter().map(|doomed| doomed.bytes);
        backups
            .chain(self.delete_leftovers.iter().map(|doomed| doomed.bytes))
            .fold(0, u64::saturating_add)
    }

    /// Ids of the backups and leftovers that go.
    pub fn doomed_ids(&self) -> BTreeSet<&BackupId> {
        let backups = self.delete.iter().map(|doomed| &doomed.id);
        backups
            .chain(self.delete_leftovers.iter().map(|doomed| &doomed.id))
            .collect()
    }
}

/// Decides what goes.
pub fn plan_prune(input: &PruneInput<'_>) -> PrunePlan {
    let (delete_leftovers, left_alone) = sort_leftovers(input);
    let mut keeping = Keeping::new(input);
    keeping.by_rules();
    keeping.by_remote();
    keeping.by_uploads(&left_alone);
    keeping.by_waiting();
    keeping.by_locks();
    keeping.close();
    let mut doubts = doubt::find_doubts(input, &delete_leftovers, &keeping);
    let (mut keep, mut delete) = keeping.into_lists();
    // The clock matters only when something is deleted.
    let clock = input
        .clock
        .filter(|_| !delete.is_empty() || !delete_leftovers.is_empty());
    doubts.extend(clock.map(|doubt| Doubt::Clock(doubt.clone())));
    // Another prune matters only when something is deleted.
    let other = input
        .other_prune
        .filter(|_| !delete.is_empty() || !delete_leftovers.is_empty());
    doubts.extend(other.map(|other| Doubt::OtherPrune(other.clone())));
    if doubts.is_empty() {
        return PrunePlan {
            keep,
            delete,
            delete_leftovers,
            left_alone,
            doubts,
        };
    }
    let kept_for_now = |id: BackupId| Kept {
        id,
        reasons: vec![Reason::NothingIsDeleted],
    };
    keep.extend(delete.drain(..).map(|doomed| kept_for_now(doomed.id)));
    let order: Vec<&BackupId> = in_order(input.facts)
        .into_iter()
        .map(|backup| &backup.id)
        .collect();
    keep.sort_by_key(|kept| order.iter().position(|id| **id == kept.id));
    let left_alone = leave_all(delete_leftovers, left_alone);
    PrunePlan {
        keep,
        delete,
        delete_leftovers: Vec::new(),
        left_alone,
        doubts,
    }
}

fn leave_all(doomed: Vec<DoomedLeftover>, mut left: Vec<LeftAlone>) -> Vec<LeftAlone> {
    let why = Reason::NothingIsDeleted.to_string();
    left.extend(doomed.into_iter().map(|leftover| {
        let DoomedLeftover {
            id, objects, bytes, ..
        } = leftover;
        LeftAlone {
            id,
            objects,
            bytes,
            why: why.clone(),
        }
    }));
    left.sort_by(|a, b| a.id.cmp(&b.id));
    left
}

fn sort_leftovers(input: &PruneInput<'_>) -> (Vec<DoomedLeftover>, Vec<LeftAlone>) {
    let (mut doomed, mut left) = (Vec::new(), Vec::new());
    for leftover in input.leftovers {
        let Leftover {
            id, objects, bytes, ..
        } = leftover.clone();
        match prove(input, leftover) {
            Ok(proof) => doomed.push(DoomedLeftover {
                id,
                objects,
                bytes,
                proof,
            }),
            Err(why) => left.push(LeftAlone {
                id,
                objects,
                bytes,
                why,
            }),
        }
    }
    (doomed, left)
}

/// Positive proof that a leftover is no backup and will never be one, or why there is none.
fn prove(input: &PruneInput<'_>, leftover: &Leftover) -> Result<Proof, String> {
    if let Some(unreadable) = &leftover.disbelieved {
        return Err(format!(
            "its manifest is not believed: {}",
            unreadable.reason
        ));
    }
    if let Some(other) = follower(input.facts, input.leftovers, &leftover.id) {
        return Err(format!("{other} follows from it"));
    }
    let Some(newest) = leftover.newest else {
        return Err("the store does not say how old it is".to_owned());
    };
    let days = input.now.as_second().saturating_sub(newest.as_second()) / 86_400;
    let given_up = days >= i64::from(input.resume_days);
    if let Some(pruned) = input.pruned.get(&leftover.id) {
        // Newer objects are those of somebody who puts the same backup again.
        return match newest <= pruned.recorded_at || given_up {
            true => Ok(Proof::PruneRecord),
            false => Err("it was pruned, and objects were put since".to_owned()),
        };
    }
    if leftover.was_committed {
        return Err("its manifest's signature is there, or a hidden version: it was a backup, or nearly one".to_owned());
    }
    match (input.never_committing.contains(&leftover.id), given_up) {
        (true, true) => match &leftover.versions_unseen {
            None => Ok(Proof::Journal),
            Some(why) => Err(format!(
                "given up, but hidden versions of its manifest cannot be excluded: {why}"
            )),
        },
        (true, false) => Err(format!(
            "an unfinished upload that may go on for {} days",
            input.resume_days
        )),
        (false, _) => Err("an unfinished upload; no proof that it is over".to_owned()),
    }
}

/// Returns a backup or an attempt that builds on this one, other than itself. `facts` have their
/// bases resolved: where a twin stands in for the base that a manifest names, the twin is the base.
pub fn follower<'a>(
    facts: &'a [BackupFacts],
    leftovers: &'a [Leftover],
    id: &BackupId,
) -> Option<&'a BackupId> {
    let backup = facts
        .iter()
        .find(|backup| backup.base.as_ref() == Some(id))
        .map(|backup| &backup.id);
    let builds_on = |leftover: &&Leftover| match &leftover.started {
        StartedFact::Signed {
            base: Some(base), ..
        } => base == id || attempt_bases(facts, base).any(|stands_in| stands_in.id == *id),
        StartedFact::Signed { base: None, .. }
        | StartedFact::Absent
        | StartedFact::Unreadable(_) => false,
    };
    let mut attempts = leftovers.iter().filter(|leftover| leftover.id != *id);
    backup.or_else(|| attempts.find(builds_on).map(|leftover| &leftover.id))
}

/// The dataset's backups and attempts in the second configured store.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// The whole backups in that store.
    pub facts: &'a [BackupFacts],
    /// The attempts in that store.
    pub leftovers: &'a [Leftover],
}

/// Returns a backup or an attempt that waits in the intermediate directory, and can be received
/// after `id` in the remote only: nothing else there or here serves as its base.
pub fn waiting_follower<'a>(
    waiting: Waiting<'a>,
    remote: &[BackupFacts],
    pruned: &BTreeMap<BackupId, Pruned>,
    id: &BackupId,
) -> Option<&'a BackupId> {
    let is_only = |here: Vec<&BackupFacts>, there: Vec<&BackupFacts>| {
        let mut there = there
            .into_iter()
            .filter(|backup| backup.is_usable())
            .peekable();
        let has_one = there.peek().is_some();
        has_one
            && there.all(|backup| backup.id == *id)
            && !here.iter().any(|backup| backup.is_usable())
    };
    let follows = |backup: &&BackupFacts| {
        let Some(base) = &backup.base else {
            return false;
        };
        let serves =
            |other: &&BackupFacts| other.id == *base || facts_stand_in_as_base(backup, base, other);
        is_only(
            waiting.facts.iter().filter(serves).collect(),
            remote.iter().filter(serves).collect(),
        )
    };
    let mut backups = waiting
        .facts
        .iter()
        .filter(|backup| !was_committed(remote, pruned, backup));
    let attempt_follows = |attempt: &&Leftover| match &attempt.started {
        StartedFact::Signed {
            base: Some(base), ..
        } => is_only(
            attempt_bases(waiting.facts, base).collect(),
            attempt_bases(remote, base).collect(),
        ),
        _ => false,
    };
    let backup = backups.find(follows).map(|backup| &backup.id);
    backup.or_else(|| {
        waiting
            .leftovers
            .iter()
            .find(attempt_follows)
            .map(|attempt| &attempt.id)
    })
}

/// The kept set while it grows.
struct Keeping<'a> {
    input: PruneInput<'a>,
    ordered: Vec<&'a BackupFacts>,
    by_id: BTreeMap<&'a BackupId, &'a BackupFacts>,
    reasons: BTreeMap<BackupId, Vec<Reason>>,
}

impl<'a> Keeping<'a> {
    fn new(input: &PruneInput<'a>) -> Self {
        let by_id = input
            .facts
            .iter()
            .map(|backup| (&backup.id, backup))
            .collect();
        Self {
            input: *input,
            ordered: in_order(input.facts),
            by_id,
            reasons: BTreeMap::new(),
        }
    }

    fn keeps(&self, id: &BackupId) -> bool {
        self.reasons.contains_key(id)
    }

    fn add(&mut self, id: &BackupId, reason: Reason) {
        let reasons = self.reasons.entry(id.clone()).or_default();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }

    fn add_chain(&mut self, full_id: &BackupId, reason: &Reason) {
        for backup in self
            .ordered
            .clone()
            .iter()
            .filter(|backup| backup.full_id == *full_id)
        {
            self.add(&backup.id, reason.clone());
        }
    }

    /// What rules keep, and the newest chain that can be restored, where this store must be able to
    /// stand alone.
    fn by_rules(&mut self) {
        for verdict in decide_retention(self.input.facts, self.input.rules, self.input.now) {
            if verdict.keep {
                verdict
                    .reasons
                    .into_iter()
                    .for_each(|reason| self.add(&verdict.id, reason));
            }
        }
        if self.input.beside != Beside::Nothing {
            return;
        }
        let usable: Vec<&BackupFacts> = self
            .ordered
            .iter()
            .copied()
            .filter(|backup| backup.is_usable())
            .collect();
        if let Some(chain) = chains_newest_first(&usable).first() {
            self.add_chain(chain, &Reason::NewestUsableChain);
        }
        // A full that took many nights is older than the incrementals that were made meanwhile on
        // the chain before it: the next incremental makes its chain the newest.
        if let Some(full) = usable.iter().rev().find(|backup| backup.base.is_none()) {
            self.add_chain(&full.id, &Reason::NewestUsableChain);
        }
    }

    fn by_remote(&mut self) {
        for backup in self.ordered.clone() {
            match self.input.beside {
                Beside::Nothing => return,
                Beside::Unreachable => self.add(&backup.id, Reason::RemoteUnreachable),
                Beside::Remote { facts, pruned } if !was_committed(facts, pruned, backup) => {
                    self.add(&backup.id, Reason::NotInRemote)
                }
                Beside::Remote { .. } => {}
            }
        }
    }

    /// An unfinished upload that is not proved dead pins the chain that it builds on.
    fn by_uploads(&mut self, left_alone: &[LeftAlone]) {
        for leftover in self.input.leftovers {
            let StartedFact::Signed {
                base: Some(base), ..
            } = &leftover.started
            else {
                continue;
            };
            if !left_alone.iter().any(|left| left.id == leftover.id) {
                continue;
            }
            for backup in attempt_bases(self.input.facts, base) {
                self.add_chain(
                    &backup.full_id,
                    &Reason::UnfinishedUpload {
                        id: leftover.id.clone(),
                    },
                );
            }
        }
    }

    /// What waits in the intermediate directory needs the chain that it builds on.
    fn by_waiting(&mut self) {
        let input = self.input;
        let waiting = input
            .waiting
            .iter()
            .filter(|backup| !was_committed(input.facts, input.pruned, backup));
        for backup in waiting {
            let Some(base) = &backup.base else { continue };
            // Where the base itself is not here, every twin that could be received in its place.
            let stands_in = |other: &&BackupFacts| facts_stand_in_as_base(backup, base, other);
            let bases: Vec<&BackupFacts> = match self.by_id.get(base) {
                Some(base) => vec![*base],
                None => input.facts.iter().filter(stands_in).collect(),
            };
            for base in bases {
                self.add_chain(
                    &base.full_id,
                    &Reason::Waiting {
                        id: backup.id.clone(),
                    },
                );
            }
        }
        for attempt in input.waiting_attempts {
            let StartedFact::Signed {
                base: Some(base), ..
            } = &attempt.started
            else {
                continue;
            };
            for base in attempt_bases(input.facts, base) {
                self.add_chain(
                    &base.full_id,
                    &Reason::UnfinishedUpload {
                        id: attempt.id.clone(),
                    },
                );
            }
        }
    }

    fn by_locks(&mut self) {
        let locks = self.input.locks;
        for (id, lock) in locks {
            if !self.by_id.contains_key(id) {
                continue;
            }
            let reason = match lock {
                Lock::Until(until) => Reason::Locked {
                    until: until.clone(),
                },
                Lock::Unknown(reason) => Reason::LockUnknown {
                    reason: reason.clone(),
                },
            };
            self.add(id, reason);
        }
    }

    /// Adds the ancestors of all that is kept; beside a remote only those that it does not have,
    /// usable, itself.
    fn close(&mut self) {
        for backup in self.ordered.clone() {
            if !self.keeps(&backup.id) {
                continue;
            }
            for ancestor in self.ancestors(backup) {
                let elsewhere = match self.input.beside {
                    Beside::Remote { facts, .. } => {
                        facts.iter().any(|other| is_same(other, ancestor))
                    }
                    Beside::Nothing | Beside::Unreachable => false,
                };
                if !elsewhere && !self.keeps(&ancestor.id) {
                    self.add(
                        &ancestor.id,
                        Reason::AncestorOf {
                            id: backup.id.clone(),
                        },
                    );
                }
            }
        }
    }

    fn ancestors(&self, backup: &BackupFacts) -> Vec<&'a BackupFacts> {
        let mut found: Vec<&'a BackupFacts> = Vec::new();
        let mut base = backup.base.as_ref();
        while let Some(next) = base.and_then(|id| self.by_id.get(id).copied()) {
            if found.len() > self.ordered.len() {
                break;
            }
            base = next.base.as_ref();
            found.push(next);
        }
        found
    }

    /// Why a kept backup cannot be restored from here, or from here and the remote together.
    fn flaw(&self, backup: &BackupFacts) -> Option<String> {
        let Beside::Remote { facts: remote, .. } = self.input.beside else {
            return backup.flaw.clone();
        };
        let mut current = backup;
        for _ in 0..=self.ordered.len() {
            if current.flaw.is_some() {
                return current.flaw.clone();
            }
            let base = current.base.as_ref()?;
            let serves = |other: &BackupFacts| {
                other.id == *base || facts_stand_in_as_base(current, base, other)
            };
            if remote
                .iter()
                .any(|other| other.is_usable() && serves(other))
            {
                return None;
            }
            let Some(next) = self.by_id.get(base).copied() else {
                return Some(format!(
                    "{} follows from {base}, which is neither here nor in the remote",
                    current.id
                ));
            };
            if next.full_id != current.full_id
                || next.position.checked_add(1) != Some(current.position)
            {
                return Some(format!(
                    "{} follows from {base}, which has another place in the chain",
                    current.id
                ));
            }
            current = next;
        }
        Some(format!(
            "the chain of {} has no full at its start",
            backup.id
        ))
    }

    /// What stays, oldest first; what goes, chain by chain, the deepest first.
    fn into_lists(self) -> (Vec<Kept>, Vec<Doomed>) {
        let mut reasons = self.reasons.clone();
        let keep = self.ordered.iter().filter_map(|backup| {
            let reasons = reasons.remove(&backup.id)?;
            Some(Kept {
                id: backup.id.clone(),
                reasons,
            })
        });
        let keep = keep.collect();
        let mut chains = chains_newest_first(&self.ordered);
        chains.reverse();
        let mut doomed: Vec<(usize, usize, &BackupFacts)> = Vec::new();
        for backup in self
            .ordered
            .iter()
            .copied()
            .filter(|backup| !self.keeps(&backup.id))
        {
            let chain = chains
                .iter()
                .position(|chain| **chain == backup.full_id)
                .unwrap_or(usize::MAX);
            doomed.push((chain, self.ancestors(backup).len(), backup));
        }
        // Newer ones first where the depth is the same; the sort is stable.
        doomed.reverse();
        doomed.sort_by_key(|(chain, depth, _)| (*chain, std::cmp::Reverse(*depth)));
        let delete = doomed.into_iter().map(|(_, _, backup)| Doomed {
            id: backup.id.clone(),
            bytes: backup.stored_bytes,
            reason: Reason::NoRuleKeepsIt,
        });
        (keep, delete.collect())
    }
}

/// The very same backup, usable in the other store.
fn is_same(other: &BackupFacts, backup: &BackupFacts) -> bool {
    other.is_usable() && other.id == backup.id && other.manifest_blake3 == backup.manifest_blake3
}

/// Whether the remote has this backup, or an identical one under another id, usable; or had it, and
/// pruned it.
fn was_committed(
    remote: &[BackupFacts],
    pruned: &BTreeMap<BackupId, Pruned>,
    backup: &BackupFacts,
) -> bool {
    let is_identical = |other: &BackupFacts| other.is_usable() && are_twins(other, backup);
    let there = remote
        .iter()
        .any(|other| is_same(other, backup) || is_identical(other));
    let record = || {
        pruned
            .get(&backup.id)
            .and_then(|pruned| pruned.manifest_blake3)
    };
    there || record() == Some(backup.manifest_blake3)
}
