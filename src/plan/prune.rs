//! [`plan_prune`]: decides what is deleted, and in which order, from what the rules keep.
//!
//! Independent of the rules: a kept backup keeps all its ancestors, the newest usable chain is
//! kept, the base of an unfinished upload is kept, and nothing of a dataset is deleted while any
//! fact about it is doubtful. Leftovers of attempts are deleted only with positive proof that they
//! are no backup and will never become one.

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

/// The objects under an id without a valid, trusted manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The id.
    pub id: BackupId,
    /// The number of objects.
    pub objects: usize,
    /// The bytes of the objects.
    pub bytes: u64,
    /// The time of the newest object by the store's clock; `None` if the store does not report it.
    pub newest: Option<Timestamp>,
    /// Whether the manifest or its signature exists, possibly behind a delete marker.
    pub was_committed: bool,
    /// The reason why a manifest version behind a delete marker cannot be excluded; else `None`.
    pub versions_unseen: Option<String>,
    /// The reason why the manifest is invalid or untrusted, if there is one.
    pub disbelieved: Option<Unreadable>,
    /// The content of the first object.
    pub started: StartedFact,
}

/// An object that exists and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The reason.
    pub reason: String,
    /// Whether the reason is damage or forgery, and not only a later version.
    pub damage: bool,
}

/// The first object of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartedFact {
    /// The object does not exist.
    Absent,
    /// The object is signed by a trusted key.
    Signed {
        /// The base of the attempt; `None` for a full.
        base: Option<BackupId>,
        /// The dataset and pool of the attempt.
        origin: Origin,
    },
    /// The object exists and is invalid or untrusted.
    Unreadable(Unreadable),
}

/// The second store that holds these backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside<'a> {
    /// No second store: this is the remote, or an intermediate directory without a remote.
    Nothing,
    /// The remote and its backups. Only for an intermediate directory.
    Remote {
        /// The remote's complete backups.
        facts: &'a [BackupFacts],
        /// The backups that the remote's signed prune records name.
        pruned: &'a BTreeMap<BackupId, Pruned>,
    },
    /// A remote is configured and unreachable.
    Unreachable,
}

/// The statement about a backup in the newest signed prune record that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// The time of the put, by the store's clock, which also dates the objects of a backup.
    pub recorded_at: Timestamp,
    /// The hash of the backup's manifest; `None` for an attempt that never had one.
    pub manifest_blake3: Option<Digest>,
}

/// The time until which the store refuses to delete a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// The time, in RFC 3339.
    Until(String),
    /// The receipt that would show the lock cannot be read; the text is the reason.
    Unknown(String),
}

/// The backups that existed in the store when the newest receipt was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The backup of the receipt.
    pub of: BackupId,
    /// The ids of those backups, or the reason why the receipt cannot be read.
    pub ids: Result<BTreeSet<BackupId>, Unreadable>,
}

/// The facts for the decision.
#[derive(Debug, Clone, Copy)]
pub struct PruneInput<'a> {
    /// The complete backups. A flaw covers the backup with its ancestors; for an intermediate
    /// directory with a remote only the backup itself.
    pub facts: &'a [BackupFacts],
    /// The other ids that have objects.
    pub leftovers: &'a [Leftover],
    /// The second store that holds these backups.
    pub beside: Beside<'a>,
    /// The retention rules.
    pub rules: &'a RetentionRules,
    /// The present time.
    pub now: Timestamp,
    /// The store's clock: the time of the dataset's newest object.
    pub store_clock: Option<Timestamp>,
    /// The reason why this host's clock may not be used to delete; `None` if it may.
    pub clock: Option<&'a ClockDoubt>,
    /// A prune of another host that may be running; `None` if no record shows one.
    pub other_prune: Option<&'a OtherPrune>,
    /// The origins whose backups may be deleted: the dataset's own and the adopted ones.
    pub origins: &'a [Origin],
    /// The backups that the pool knows, if the pool can be read.
    pub pool: Option<&'a PoolSight>,
    /// The backups that signed prune records name.
    pub pruned: &'a BTreeMap<BackupId, Pruned>,
    /// The backups of the intermediate directory, if this store is the remote: a backup that waits
    /// to be copied needs its chain here.
    pub waiting: &'a [BackupFacts],
    /// The attempts there: an unfinished export may be based on a backup here.
    pub waiting_attempts: &'a [Leftover],
    /// Attempts that this host began and that never reached their commit.
    pub never_committing: &'a BTreeSet<BackupId>,
    /// The number of days without a new object after which an attempt is abandoned.
    pub resume_days: u32,
    /// The known locks. A backup that is not listed is not locked.
    pub locks: &'a BTreeMap<BackupId, Lock>,
    /// The newest receipt; `None` without backups.
    pub live: Option<&'a Live>,
}

/// A backup that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The id of the backup.
    pub id: BackupId,
    /// The reasons; never empty.
    pub reasons: Vec<Reason>,
}

/// A backup that is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// The id of the backup.
    pub id: BackupId,
    /// Bytes of its objects.
    pub bytes: u64,
    /// The reason.
    pub reason: Reason,
}

/// The proof that a leftover is no backup and will never become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A signed prune record names the leftover.
    PruneRecord,
    /// This host's journal shows that the attempt never reached its commit and was abandoned.
    Journal,
}

/// A leftover that is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoomedLeftover {
    /// The id of the leftover.
    pub id: BackupId,
    /// The number of objects.
    pub objects: usize,
    /// The bytes of the objects.
    pub bytes: u64,
    /// The proof.
    pub proof: Proof,
}

/// A leftover that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    /// The id of the leftover.
    pub id: BackupId,
    /// The number of objects.
    pub objects: usize,
    /// The bytes of the objects.
    pub bytes: u64,
    /// The reason.
    pub why: String,
}

/// The plan of a prune for one dataset in one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrunePlan {
    /// The kept backups, oldest first.
    pub keep: Vec<Kept>,
    /// The deleted backups, in the order of deletion: descendants before ancestors.
    pub delete: Vec<Doomed>,
    /// The deleted leftovers.
    pub delete_leftovers: Vec<DoomedLeftover>,
    /// The kept leftovers, with reasons.
    pub left_alone: Vec<LeftAlone>,
    /// The reasons why nothing is deleted. With any doubt the two lists of deletions are empty.
    pub doubts: Vec<Doubt>,
}

impl PrunePlan {
    /// Whether the plan deletes nothing.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.delete_leftovers.is_empty()
    }

    /// Returns the bytes of everything that is deleted.
    pub fn freed_bytes(&self) -> u64 {
        let backups = self.delete.iter().map(|doomed| doomed.bytes);
        backups
            .chain(self.delete_leftovers.iter().map(|doomed| doomed.bytes))
            .fold(0, u64::saturating_add)
    }

    /// Returns the ids of the deleted backups and leftovers.
    pub fn doomed_ids(&self) -> BTreeSet<&BackupId> {
        let backups = self.delete.iter().map(|doomed| &doomed.id);
        backups
            .chain(self.delete_leftovers.iter().map(|doomed| &doomed.id))
            .collect()
    }
}

/// Decides what is deleted.
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
    // The clock matters only if something is deleted.
    let clock = input
        .clock
        .filter(|_| !delete.is_empty() || !delete_leftovers.is_empty());
    doubts.extend(clock.map(|doubt| Doubt::Clock(doubt.clone())));
    // A concurrent prune matters only if something is deleted.
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

/// Returns the proof that a leftover is no backup and will never become one, or the reason why
/// there is no proof.
fn prove(input: &PruneInput<'_>, leftover: &Leftover) -> Result<Proof, String> {
    if let Some(unreadable) = &leftover.disbelieved {
        return Err(format!(
            "its manifest is invalid or untrusted: {}",
            unreadable.reason
        ));
    }
    if let Some(other) = follower(input.facts, input.leftovers, &leftover.id) {
        return Err(format!("{other} follows from it"));
    }
    let Some(newest) = leftover.newest else {
        return Err("the store does not report its age".to_owned());
    };
    let days = input.now.as_second().saturating_sub(newest.as_second()) / 86_400;
    let given_up = days >= i64::from(input.resume_days);
    if let Some(pruned) = input.pruned.get(&leftover.id) {
        // Newer objects are from a run that puts the same backup again.
        return match newest <= pruned.recorded_at || given_up {
            true => Ok(Proof::PruneRecord),
            false => Err("it was pruned, and newer objects exist".to_owned()),
        };
    }
    if leftover.was_committed {
        return Err("the signature or a hidden version of its manifest exists: it was a backup, or almost became one".to_owned());
    }
    match (input.never_committing.contains(&leftover.id), given_up) {
        (true, true) => match &leftover.versions_unseen {
            None => Ok(Proof::Journal),
            Some(why) => Err(format!(
                "abandoned, but hidden versions of its manifest cannot be excluded: {why}"
            )),
        },
        (true, false) => Err(format!(
            "an unfinished upload that can be resumed for {} days",
            input.resume_days
        )),
        (false, _) => Err("an unfinished upload; no proof that it was abandoned".to_owned()),
    }
}

/// Returns a backup or an attempt that is based on this one, other than itself. `facts` have their
/// bases resolved: if a twin replaces the base in a manifest, the twin is the base.
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

/// Returns a backup or an attempt that waits in the intermediate directory and can be received only
/// after `id` in the remote: no other backup in either store can be its base.
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

/// The kept backups, while they are collected.
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

    /// Keeps the backups that the rules keep, and the newest chain that can be restored, if this
    /// store must be restorable on its own.
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
        // A full that took many nights is older than the incrementals that were made in the
        // meantime on the previous chain: the next incremental makes its chain the newest.
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

    /// Keeps the chain of each unfinished upload that is not proved dead.
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

    /// Keeps the chain that each waiting backup of the intermediate directory is based on.
    fn by_waiting(&mut self) {
        let input = self.input;
        let waiting = input
            .waiting
            .iter()
            .filter(|backup| !was_committed(input.facts, input.pruned, backup));
        for backup in waiting {
            let Some(base) = &backup.base else { continue };
            // If the base itself is not here, every twin that could be received in its place is
            // kept.
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

    /// Adds the ancestors of all kept backups; for an intermediate directory with a remote only
    /// those that are not usable in the remote under the same id.
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

    /// Returns why a kept backup cannot be restored from here, or together with the remote.
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

    /// Returns the kept backups, oldest first, and the deleted ones, chain by chain, the deepest
    /// first.
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
        // Newer backups come first at the same depth; the sort is stable.
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

/// Whether `other` is the same backup, usable in the other store.
fn is_same(other: &BackupFacts, backup: &BackupFacts) -> bool {
    other.is_usable() && other.id == backup.id && other.manifest_blake3 == backup.manifest_blake3
}

/// Whether the remote has this backup, or an identical one under another id, usable; or had it and
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
