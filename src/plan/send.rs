//! [`plan_send`]: decides which stream a dataset's next backup is, or why there is none.
//!
//! # The order of the decisions
//! 1. Redacted data, or no snapshot to send: [`SendConflict::Redacted`],
//!    [`SendConflict::NoSnapshot`].
//! 2. `--full`: up to date if the target itself has a usable full of the snapshot with these flags
//!    and recipients; else a full.
//! 3. A usable backup of the snapshot, of any kind, in the target or in the second store: up to
//!    date.
//! 4. Nothing stored at all, and everything could be seen: the first full, of any size.
//! 5. No usable backup whose snapshot is still in the pool, by guid, and older: the base is lost. A
//!    full up to `auto_full_max`, above it [`SendConflict::TooLarge`].
//! 6. Other flags, then other recipients than the base's chain has: a full, of any size.
//! 7. `[backup-lifecycle]`: the number of incrementals, then the age of the full, then the share of
//!    the incrementals: a full, of any size. Not if such a full exists already: a full that took
//!    many nights is older than the incrementals that were made in the meantime on the previous
//!    chain, and the next incremental is based on it.
//! 8. An incremental.
//!
//! A snapshot that differs from the newest usable backup in nothing is [`SendPlan::Unchanged`] in
//! place of 7 and 8, as the caller finds out with [`newest_comparable`].
//!
//! With levels, the module `levels` takes the place of 6 to 8.
//!
//! `--incremental` is a conflict where 4 to 6 would make a full, and at the number of incrementals
//! in 7. Age and share only decide when no kind is requested.

mod levels;
mod text;

pub use levels::is_longer_level_due;

use super::BackupFacts;
use super::chunk_count::TooManyChunks;
use super::levels::LevelRules;
use crate::manifest::SnapshotRef;
use crate::model::{BackupId, BackupKind, BackupLevel, DatasetName, Guid};
use crate::zfs::{Bookmark, SendBase, Snapshot};
use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The kind that the command line requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestedKind {
    /// Always make a full.
    Full,
    /// Make an incremental or fail.
    Incremental,
    /// The kind that the lifecycle decides.
    Lifecycle,
}

/// `[backup-lifecycle]`: the rules that choose the kind when none is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LifecycleRules {
    /// The limit in percent for the stored bytes of a chain's incrementals, relative to its full.
    /// Above it a new full is made.
    pub incrementals_percent_max: u32,
    /// The age of a chain's full from which a new full is made.
    pub full_age_max: Option<SignedDuration>,
    /// The number of incrementals in a row after which a new full is made.
    pub incrementals_max: Option<u32>,
    /// The estimated bytes up to which a full is made without asking after a base was lost.
    pub auto_full_bytes_max: u64,
    /// The levels. With levels, the three limits above do not count.
    pub levels: Option<LevelRules>,
}

/// The facts for the decision.
#[derive(Debug, Clone)]
pub struct SendFacts<'a> {
    /// The newest snapshot that may be sent.
    pub snapshot: Option<&'a Snapshot>,
    /// The dataset, if it is redacted.
    pub redacted_dataset: Option<&'a DatasetName>,
    /// All snapshots of the dataset.
    pub snapshots: &'a [Snapshot],
    /// All bookmarks of the dataset.
    pub bookmarks: &'a [Bookmark],
    /// The bases that `snapshots` and `bookmarks` leave out: ZFS would not receive a raw incremental
    /// from them.
    pub unfit_bases: &'a BTreeSet<Guid>,
    /// The dataset's backups in the target.
    pub target: &'a [BackupFacts],
    /// The dataset's backups in the remote, if the target is the intermediate directory: they may
    /// be bases too.
    pub remote: &'a [BackupFacts],
    /// The reason why some backups may not be visible. With a reason, an empty list does not count
    /// as "empty".
    pub unseen: Option<&'a str>,
    /// The send flags that would be used.
    pub flags: &'a [String],
    /// The recipients that chunks would be sealed to.
    pub recipients: &'a [String],
    /// The kernel's estimate of a full; `None` without an estimate.
    pub full_estimate_bytes: Option<u64>,
    /// The present time.
    pub now: Timestamp,
}

/// The decision what to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "plan", rename_all = "kebab-case")]
pub enum SendPlan {
    /// A full of this snapshot.
    Full {
        /// The snapshot.
        #[serde(serialize_with = "name_of")]
        snapshot: Snapshot,
        /// The reason why no incremental is made.
        why: FullReason,
        /// The level; `None` without levels.
        level: Option<BackupLevel>,
    },
    /// An incremental.
    Incremental {
        /// The snapshot.
        #[serde(serialize_with = "name_of")]
        snapshot: Snapshot,
        /// The base in the pool.
        base: SendBase,
        /// The base in the store.
        #[serde(rename = "base_backup", serialize_with = "id_of")]
        backup: Box<BackupFacts>,
        /// The level; `None` without levels.
        level: Option<BackupLevel>,
    },
    /// A complete backup of the snapshot is already stored.
    UpToDate {
        /// The backup of the snapshot.
        id: BackupId,
    },
    /// Nothing was written between the snapshot of a stored backup and this snapshot.
    Unchanged {
        /// The snapshot.
        #[serde(serialize_with = "name_of")]
        snapshot: Snapshot,
        /// The backup that has the same content.
        id: BackupId,
    },
}

fn name_of<S: Serializer>(snapshot: &Snapshot, serializer: S) -> Result<S::Ok, S::Error> {
    snapshot.name.serialize(serializer)
}

fn id_of<S: Serializer>(backup: &BackupFacts, serializer: S) -> Result<S::Ok, S::Error> {
    backup.id.serialize(serializer)
}

/// The reason why a full is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FullReason {
    /// `--full`.
    Requested,
    /// The store has no backup yet.
    First,
    /// No stored backup can be a base any more.
    BaseLost(Box<BaseLoss>),
    /// The chain was made with other flags.
    Flags {
        /// The flags of the chain.
        chain: Vec<String>,
        /// The present flags.
        now: Vec<String>,
    },
    /// The chain is sealed to other recipients.
    Recipients,
    /// The chain has as many incrementals in a row as are allowed.
    Length {
        /// The number of incrementals.
        incrementals: u32,
    },
    /// No backup of this level or a longer one exists in the period of the snapshot, and a backup
    /// of this level is a full.
    FirstOf {
        /// The level: the longest.
        level: BackupLevel,
        /// The time at which the snapshot was taken.
        at: Timestamp,
    },
    /// A backup of this level is due, and no backup that it may build on has its snapshot or
    /// bookmark in the pool.
    NoBaseOf {
        /// The level.
        level: BackupLevel,
    },
    /// The chain's full is too old.
    Age {
        /// The time at which the full's snapshot was taken.
        full_at: Timestamp,
    },
    /// The chain's incrementals are too large.
    Share {
        /// The stored bytes of the incrementals, in percent of the full's.
        percent: u64,
        /// The limit.
        limit: u32,
    },
}

/// The reason why no stored backup can be a base: what the store and the pool have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseLoss {
    /// The newest stored backup: its snapshot and its flaw.
    pub newest: Option<(SnapshotRef, Option<String>)>,
    /// The form in which the pool has that snapshot.
    pub here: LocalBase,
    /// The reason why some backups may not be visible.
    pub unseen: Option<String>,
}

/// The form in which a dataset has a stored snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalBase {
    /// The snapshot itself.
    Snapshot,
    /// A bookmark of it.
    Bookmark,
    /// A bookmark of it with a redaction list, which cannot be the base of an ordinary stream.
    Redacted,
    /// A snapshot or bookmark of it without an IV-set guid, which cannot be the base of a raw
    /// stream.
    Unfit,
    /// The dataset has neither the snapshot nor a bookmark of it.
    Neither,
}

/// The reason why there is nothing to send. Each variant says what is missing, and on which side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendConflict {
    /// The dataset has no snapshot that may be sent.
    NoSnapshot {
        /// The number of its other snapshots.
        others: usize,
    },
    /// `--incremental`, and no stored backup can be the base.
    NoCommonBase(Box<BaseLoss>),
    /// A base was lost, and a full is larger than the limit for a full without asking.
    TooLarge {
        /// The contents of the store and the pool.
        loss: Box<BaseLoss>,
        /// The estimate of a full; `None` without an estimate.
        estimate_bytes: Option<u64>,
        /// `auto_full_max`
        limit_bytes: u64,
    },
    /// `--incremental`, and only a full is possible.
    OnlyFull(FullReason),
    /// The planned stream needs more chunks than a backup may have.
    TooManyChunks(TooManyChunks),
    /// The dataset or the snapshot is redacted.
    Redacted {
        /// The dataset or the snapshot.
        name: String,
    },
}

/// Decides what to send; see the [module](self) for the order.
///
/// # Errors
/// [`SendConflict`] when there is nothing to send.
pub fn plan_send(
    facts: &SendFacts<'_>,
    rules: &LifecycleRules,
    requested: RequestedKind,
) -> Result<SendPlan, SendConflict> {
    check_not_redacted(facts)?;
    let snapshot = facts.snapshot.ok_or(SendConflict::NoSnapshot {
        others: facts.snapshots.len(),
    })?;
    if let Some(id) = up_to_date(facts, snapshot, requested) {
        return Ok(SendPlan::UpToDate { id });
    }
    let full = |why| {
        Ok(SendPlan::Full {
            snapshot: snapshot.clone(),
            why,
            level: rules.levels.map(|levels| levels.keep.longest()),
        })
    };
    if requested == RequestedKind::Full {
        return full(FullReason::Requested);
    }
    let incremental_only = requested == RequestedKind::Incremental;
    let Some((base, backup)) = newest_base(facts, snapshot) else {
        let loss = Box::new(base_loss(facts));
        let is_first = loss.newest.is_none() && loss.unseen.is_none();
        return match facts.full_estimate_bytes {
            _ if incremental_only => Err(SendConflict::NoCommonBase(loss)),
            _ if is_first => full(FullReason::First),
            Some(bytes) if bytes <= rules.auto_full_bytes_max => full(FullReason::BaseLost(loss)),
            estimate_bytes => Err(SendConflict::TooLarge {
                loss,
                estimate_bytes,
                limit_bytes: rules.auto_full_bytes_max,
            }),
        };
    };
    if let Some(levels) = &rules.levels {
        return levels::plan_level(facts, rules, levels, (snapshot, requested), backup);
    }
    let incremental = |base, backup: &BackupFacts| {
        Ok(SendPlan::Incremental {
            snapshot: snapshot.clone(),
            base,
            backup: Box::new(backup.clone()),
            level: None,
        })
    };
    let over = chain_is_over(facts, rules, backup);
    if over.is_some()
        && let Some((base, backup)) = base_on_newer_full(facts, rules, snapshot, backup)
    {
        return incremental(base, backup);
    }
    match over {
        Some(why) if !incremental_only => full(why),
        Some(why) if !matches!(why, FullReason::Age { .. } | FullReason::Share { .. }) => {
            Err(SendConflict::OnlyFull(why))
        }
        _ => incremental(base, backup),
    }
}

/// Returns the backup that makes a new one needless if nothing was written since its snapshot: the
/// newest usable one, made with the present flags and recipients. Returns `None` if there is no
/// such backup, or if the snapshot itself is stored.
pub fn newest_comparable<'a>(facts: &SendFacts<'a>) -> Option<(SendBase, &'a BackupFacts)> {
    check_not_redacted(facts).ok()?;
    let snapshot = facts.snapshot?;
    if up_to_date(facts, snapshot, RequestedKind::Lifecycle).is_some() {
        return None;
    }
    newest_base(facts, snapshot).filter(|(_, backup)| is_made_alike(facts, backup))
}

/// Checks that neither the dataset nor the snapshot to send is redacted: the backup could not be
/// distinguished from a whole one.
fn check_not_redacted(facts: &SendFacts<'_>) -> Result<(), SendConflict> {
    let name = match (facts.snapshot, facts.redacted_dataset) {
        (Some(snapshot), _) if snapshot.redacted => snapshot.name.to_string(),
        (_, Some(dataset)) => dataset.to_string(),
        _ => return Ok(()),
    };
    Err(SendConflict::Redacted { name })
}

fn all<'a>(facts: &SendFacts<'a>) -> impl Iterator<Item = &'a BackupFacts> {
    facts.target.iter().chain(facts.remote)
}

/// Returns the backup that makes the dataset up to date. `--full` demands a full in this store,
/// made with the present settings.
fn up_to_date(
    facts: &SendFacts<'_>,
    snapshot: &Snapshot,
    requested: RequestedKind,
) -> Option<BackupId> {
    let holds_it =
        |backup: &&BackupFacts| backup.is_usable() && backup.snapshot.guid == snapshot.guid;
    let found = match requested {
        RequestedKind::Full => facts
            .target
            .iter()
            .filter(holds_it)
            .find(|backup| backup.kind() == BackupKind::Full && is_made_alike(facts, backup)),
        RequestedKind::Incremental | RequestedKind::Lifecycle => all(facts).find(holds_it),
    };
    found.map(|backup| backup.id.clone())
}

fn is_made_alike(facts: &SendFacts<'_>, backup: &BackupFacts) -> bool {
    has_same(&backup.requested, facts.flags) && has_same(&backup.recipients, facts.recipients)
}

/// Whether two lists have the same items in any order.
fn has_same(some: &[String], others: &[String]) -> bool {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names
    };
    sorted(some) == sorted(others)
}

/// Returns the newest usable backup whose snapshot is still in the pool and older than the snapshot
/// to send. Of two backups of one snapshot, the one that may be followed is preferred, then the one
/// with the shorter chain.
fn newest_base<'a>(
    facts: &SendFacts<'a>,
    snapshot: &Snapshot,
) -> Option<(SendBase, &'a BackupFacts)> {
    newest_base_of(facts, snapshot, |_| true)
}

/// Returns the newest base on a chain that began later than the chain of `over` and that may be
/// followed.
fn base_on_newer_full<'a>(
    facts: &SendFacts<'a>,
    rules: &LifecycleRules,
    snapshot: &Snapshot,
    over: &BackupFacts,
) -> Option<(SendBase, &'a BackupFacts)> {
    let full_txg = |backup: &BackupFacts| {
        let full =
            all(facts).find(|full| full.id == backup.full_id && full.origin == backup.origin)?;
        Some(full.snapshot.createtxg)
    };
    let began = full_txg(over)?;
    newest_base_of(facts, snapshot, |backup| {
        backup.origin == over.origin
            && full_txg(backup).is_some_and(|later| later > began)
            && chain_is_over(facts, rules, backup).is_none()
    })
}

fn newest_base_of<'a>(
    facts: &SendFacts<'a>,
    snapshot: &Snapshot,
    may_be: impl Fn(&BackupFacts) -> bool,
) -> Option<(SendBase, &'a BackupFacts)> {
    let here = |backup: &'a BackupFacts| {
        let (base, createtxg) = local_base(facts, backup.snapshot.guid)?;
        (createtxg < snapshot.createtxg).then_some((base, createtxg, backup))
    };
    let rank = |(_, createtxg, backup): &(SendBase, u64, &'a BackupFacts)| {
        (
            *createtxg,
            is_made_alike(facts, backup),
            Reverse(backup.position),
            backup.id.clone(),
        )
    };
    let bases = all(facts)
        .filter(|backup| backup.is_usable() && may_be(backup))
        .filter_map(here);
    bases
        .max_by_key(rank)
        .map(|(base, _, backup)| (base, backup))
}

/// Finds the local base for a guid, with its transaction group: a snapshot is preferred to a
/// bookmark, our bookmark to a foreign one. A stream from a bookmark with a redaction list fits
/// only a redacted copy, so such a bookmark does not count.
fn local_base(facts: &SendFacts<'_>, guid: Guid) -> Option<(SendBase, u64)> {
    if let Some(snapshot) = facts
        .snapshots
        .iter()
        .find(|snapshot| snapshot.guid == guid)
    {
        return Some((
            SendBase::Snapshot(snapshot.name.clone()),
            snapshot.createtxg,
        ));
    }
    let bookmarks = facts
        .bookmarks
        .iter()
        .filter(|bookmark| bookmark.guid == guid && !bookmark.redacted);
    let best = bookmarks.min_by_key(|bookmark| !super::bookmarks::is_own(bookmark))?;
    Some((SendBase::Bookmark(best.name.clone()), best.createtxg))
}

fn base_loss(facts: &SendFacts<'_>) -> BaseLoss {
    let newest = all(facts).max_by_key(|backup| (backup.snapshot.created_at, backup.is_usable()));
    let here = newest.and_then(|newest| local_base(facts, newest.snapshot.guid));
    BaseLoss {
        newest: newest.map(|backup| (backup.snapshot.clone(), backup.flaw.clone())),
        here: match here {
            None if newest.is_some_and(|newest| has_redacted(facts, newest.snapshot.guid)) => {
                LocalBase::Redacted
            }
            None if newest.is_some_and(|it| facts.unfit_bases.contains(&it.snapshot.guid)) => {
                LocalBase::Unfit
            }
            None => LocalBase::Neither,
            Some((SendBase::Snapshot(_), _)) => LocalBase::Snapshot,
            Some((SendBase::Bookmark(_), _)) => LocalBase::Bookmark,
        },
        unseen: facts.unseen.map(str::to_owned),
    }
}

fn has_redacted(facts: &SendFacts<'_>, guid: Guid) -> bool {
    facts
        .bookmarks
        .iter()
        .any(|bookmark| bookmark.guid == guid && bookmark.redacted)
}

/// Returns the reason why no incremental with the present settings may be based on this backup, if
/// there is one.
fn find_unlike(facts: &SendFacts<'_>, base: &BackupFacts) -> Option<FullReason> {
    if !has_same(&base.requested, facts.flags) {
        return Some(FullReason::Flags {
            chain: base.requested.clone(),
            now: facts.flags.to_vec(),
        });
    }
    (!has_same(&base.recipients, facts.recipients)).then_some(FullReason::Recipients)
}

/// Returns the reason why no incremental may be based on this backup, if there is one.
fn chain_is_over(
    facts: &SendFacts<'_>,
    rules: &LifecycleRules,
    base: &BackupFacts,
) -> Option<FullReason> {
    if let Some(unlike) = find_unlike(facts, base) {
        return Some(unlike);
    }
    if rules
        .incrementals_max
        .is_some_and(|limit| base.position >= limit)
    {
        return Some(FullReason::Length {
            incrementals: base.position,
        });
    }
    // The same backup may be in both stores, so backups are counted by id.
    let chain: BTreeMap<&BackupId, &BackupFacts> = all(facts)
        .filter(|backup| backup.full_id == base.full_id)
        .map(|backup| (&backup.id, backup))
        .collect();
    let full = chain.get(&base.full_id)?;
    let full_at = full.snapshot.created_at;
    if rules
        .full_age_max
        .is_some_and(|limit| facts.now.duration_since(full_at) >= limit)
    {
        return Some(FullReason::Age { full_at });
    }
    let incrementals = chain.values().filter(|backup| backup.id != base.full_id);
    let bytes: u128 = incrementals
        .map(|backup| u128::from(backup.stored_bytes))
        .sum();
    let (hundredfold, full_bytes) = (bytes * 100, u128::from(full.stored_bytes));
    let is_over = hundredfold > full_bytes * u128::from(rules.incrementals_percent_max);
    is_over.then(|| FullReason::Share {
        percent: u64::try_from(hundredfold / full_bytes.max(1)).unwrap_or(u64::MAX),
        limit: rules.incrementals_percent_max,
    })
}

#[cfg(test)]
mod tests;
