//! [`plan_prune`]: decides what is deleted, and in which order, from what the rules keep.
//!
//! Independent of the rules: a kept backup keeps all its ancestors, the newest usable chain is
//! kept, the base of an unfinished upload is kept, and nothing of a dataset is deleted while any
//! fact about it is doubtful. Leftovers of attempts are deleted only with positive proof that they
//! are no backup and will never become one.

mod doubt;
mod keeping;
mod other;

pub use doubt::{Doubt, adopt_command};
use keeping::{Keeping, was_committed};
pub use other::OtherPrune;

use super::BackupFacts;
use super::clock::ClockDoubt;
use super::retention::{Reason, in_order};
use super::timeline::PoolView;
use super::twin::{attempt_bases, facts_stand_in_as_base};
use crate::config::RetentionRules;
use crate::manifest::Origin;
use crate::model::{BackupId, Digest};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The objects under an id without a valid, trusted manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The id that the backup would have.
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
    pub untrusted: Option<Unreadable>,
    /// The content of the first object.
    pub started: StartedFact,
}

/// An object that exists and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The text of the error and its causes, on one line.
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
pub enum SecondaryFacts<'a> {
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

impl From<&Lock> for Reason {
    fn from(lock: &Lock) -> Self {
        match lock {
            Lock::Until(until) => Self::Locked {
                until: until.clone(),
            },
            Lock::Unknown(reason) => Self::LockUnknown {
                reason: reason.clone(),
            },
        }
    }
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
    pub secondary: SecondaryFacts<'a>,
    /// The rules of `[lifecycle-remote]` or `[lifecycle-intermediate]`.
    pub rules: &'a RetentionRules,
    /// The present time, by which ages are judged.
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
    pub pool: Option<&'a PoolView>,
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
    /// The known locks. A backup or leftover that is not listed is not locked.
    pub locks: &'a BTreeMap<BackupId, Lock>,
    /// The newest receipt; `None` without backups.
    pub live: Option<&'a Live>,
}

/// A backup that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The id of the backup.
    pub id: BackupId,
    /// The reasons; never empty.
    pub reasons: Vec<Reason>,
}

/// A backup that is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Doomed {
    /// The id of the backup.
    pub id: BackupId,
    /// Bytes of its objects.
    pub bytes: u64,
    /// The rule or dependency that keeps the backup.
    pub reason: Reason,
}

/// The proof that a leftover is no backup and will never become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// A signed prune record names the leftover.
    PruneRecord,
    /// This host's journal shows that the attempt never reached its commit and was abandoned.
    Journal,
}

/// A leftover that is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoomedLeftover {
    /// The id of the leftover.
    pub id: BackupId,
    /// The number of objects.
    pub objects: usize,
    /// The bytes of the objects.
    pub bytes: u64,
    /// The proof that no host will resume the upload.
    pub proof: Proof,
}

/// A leftover that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftAlone {
    /// The id of the leftover.
    pub id: BackupId,
    /// The number of objects.
    pub objects: usize,
    /// The bytes of the objects.
    pub bytes: u64,
    /// The reason why the leftover is kept, in words for the screen.
    pub why: String,
}

/// The plan of a prune for one dataset in one store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrunePlan {
    /// The kept backups, oldest first.
    pub keep: Vec<Kept>,
    /// The deleted backups, in the order of deletion: descendants before ancestors.
    pub delete: Vec<Doomed>,
    /// The leftovers that are deleted; only those with a proof.
    pub delete_leftovers: Vec<DoomedLeftover>,
    /// The kept leftovers, with reasons.
    pub left_alone: Vec<LeftAlone>,
    /// The reasons why nothing is deleted. With any doubt the two lists of deletions are empty.
    #[serde(skip)]
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
    let mut doomed = Vec::new();
    let mut left = Vec::new();
    for leftover in input.leftovers {
        let Leftover {
            id, objects, bytes, ..
        } = leftover.clone();
        let proof = prove(input, leftover).and_then(|proof| match input.locks.get(&id) {
            Some(lock) => Err(Reason::from(lock).to_string()),
            None => Ok(proof),
        });
        match proof {
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
    if let Some(unreadable) = &leftover.untrusted {
        return Err(format!(
            "its manifest is invalid or untrusted: {}",
            unreadable.reason
        ));
    }
    if let Some(other) = follower(input.facts, input.leftovers, &leftover.id) {
        return Err(format!("{other} builds on it"));
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
pub struct SecondaryBackups<'a> {
    /// The whole backups in that store.
    pub facts: &'a [BackupFacts],
    /// The attempts in that store.
    pub leftovers: &'a [Leftover],
}

/// Whether, of the possible bases in both stores, `id` in the remote is the only usable one.
fn is_only_base<'a>(
    id: &BackupId,
    mut waiting: impl Iterator<Item = &'a BackupFacts>,
    remote: impl Iterator<Item = &'a BackupFacts>,
) -> bool {
    let mut remote = remote.filter(|backup| backup.is_usable()).peekable();
    let has_one = remote.peek().is_some();
    has_one && remote.all(|backup| backup.id == *id) && !waiting.any(|backup| backup.is_usable())
}

/// Returns a backup or an attempt that waits in the intermediate directory and can be received only
/// after `id` in the remote: no other backup in either store can be its base.
pub fn waiting_follower<'a>(
    waiting: SecondaryBackups<'a>,
    remote: &[BackupFacts],
    pruned: &BTreeMap<BackupId, Pruned>,
    id: &BackupId,
) -> Option<&'a BackupId> {
    let follows = |backup: &&BackupFacts| {
        let Some(base) = &backup.base else {
            return false;
        };
        let serves =
            |other: &&BackupFacts| other.id == *base || facts_stand_in_as_base(backup, base, other);
        is_only_base(
            id,
            waiting.facts.iter().filter(serves),
            remote.iter().filter(serves),
        )
    };
    let mut backups = waiting
        .facts
        .iter()
        .filter(|backup| !was_committed(remote, pruned, backup));
    let attempt_follows = |attempt: &&Leftover| match &attempt.started {
        StartedFact::Signed {
            base: Some(base), ..
        } => is_only_base(
            id,
            attempt_bases(waiting.facts, base),
            attempt_bases(remote, base),
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
