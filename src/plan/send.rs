//! [`plan_send`]: which stream a dataset's next backup is, or why there is none.
//!
//! # The order of the questions
//! 1. Is there a snapshot to send? If not: [`SendConflict::NoSnapshot`].
//! 2. `--full`: a usable full of it with these flags and recipients in the target itself is up to
//!    date; else a full.
//! 3. A usable backup of it, of any kind, where bases are looked for: up to date.
//! 4. Nothing at all stored, and everything could be seen: the first full, of any size.
//! 5. No usable backup whose snapshot is still here, by guid, and older: the base is lost. A full
//!    up to `auto_full_max`, above it [`SendConflict::TooLarge`].
//! 6. Other flags, then other recipients than the base's chain has: a full, of any size.
//! 7. `[backup-lifecycle]`: as many incrementals as are allowed, then the age of the full, then the
//!    share of the incrementals: a full, of any size. Unless there is one already: a full that took
//!    many nights is older than the incrementals that were made meanwhile on the chain before it,
//!    and the next one follows from it.
//! 8. An incremental.
//!
//! `--incremental` gets a conflict wherever 4 to 6 would make a full, and at the number of
//! incrementals in 7. Age and share only say what is made when nobody asks.

mod text;

use super::BackupFacts;
use crate::manifest::SnapshotRef;
use crate::model::{BackupId, BackupKind, Guid};
use crate::zfs::{Bookmark, SendBase, Snapshot};
use jiff::{SignedDuration, Timestamp};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What the command line asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestedKind {
    /// A full in any case.
    Full,
    /// An incremental or nothing.
    Incremental,
    /// Whatever the lifecycle says.
    Lifecycle,
}

/// `[backup-lifecycle]`: which kind is made when nobody asks for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LifecycleRules {
    /// A new full once the stored bytes of a chain's incrementals exceed this share of its full's,
    /// in per cent.
    pub incrementals_percent_max: u32,
    /// A new full once the chain's full is this old.
    pub full_age_max: Option<SignedDuration>,
    /// A new full after that many incrementals in a row.
    pub incrementals_max: Option<u32>,
    /// When a base was lost: a full up to this estimate is made without asking.
    pub auto_full_bytes_max: u64,
}

/// All that the decision depends on.
#[derive(Debug, Clone)]
pub struct SendFacts<'a> {
    /// The newest snapshot that may be sent.
    pub snapshot: Option<&'a Snapshot>,
    /// All snapshots of the dataset.
    pub snapshots: &'a [Snapshot],
    /// All bookmarks of the dataset.
    pub bookmarks: &'a [Bookmark],
    /// The dataset's backups in the target.
    pub target: &'a [BackupFacts],
    /// Its backups in the remote, when the target is the intermediate directory: bases too.
    pub beside: &'a [BackupFacts],
    /// Why there may be backups that could not be seen; then nothing here passes for "empty".
    pub unseen: Option<&'a str>,
    /// The flags that would be asked of the kernel.
    pub flags: &'a [String],
    /// Whom chunks would be sealed to.
    pub recipients: &'a [String],
    /// The kernel's estimate of a full; `None` when it has none.
    pub full_estimate_bytes: Option<u64>,
    /// The clock.
    pub now: Timestamp,
}

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendPlan {
    /// A full of this snapshot.
    Full {
        /// The snapshot.
        snapshot: Snapshot,
        /// Why no incremental.
        why: FullReason,
    },
    /// What changed since a base.
    Incremental {
        /// The snapshot.
        snapshot: Snapshot,
        /// The base as it is in the pool.
        base: SendBase,
        /// The base as it is stored.
        backup: Box<BackupFacts>,
    },
    /// The snapshot is stored already, whole.
    UpToDate {
        /// The backup that holds it.
        id: BackupId,
    },
}

/// Why a full is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FullReason {
    /// `--full`.
    Requested,
    /// Nothing is stored yet.
    First,
    /// What is stored can no longer be built on.
    BaseLost(Box<BaseLoss>),
    /// The chain was made with other flags.
    Flags {
        /// The chain's.
        chain: Vec<String>,
        /// Those of now.
        now: Vec<String>,
    },
    /// The chain is sealed to others.
    Recipients,
    /// As many incrementals follow each other as are allowed.
    Length {
        /// How many there are.
        incrementals: u32,
    },
    /// The chain's full is too old.
    Age {
        /// When its snapshot was taken.
        full_at: Timestamp,
    },
    /// The chain's incrementals hold too much.
    Share {
        /// Their stored bytes, in per cent of the full's.
        percent: u64,
        /// The limit.
        limit: u32,
    },
}

/// Why nothing stored can be a base: what each side has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseLoss {
    /// The newest stored backup: its snapshot, and what is wrong with it.
    pub newest: Option<(SnapshotRef, Option<String>)>,
    /// What is here of its snapshot.
    pub here: Here,
    /// Why there may be backups that could not be seen.
    pub unseen: Option<String>,
}

/// What a dataset still has of a stored snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// The snapshot itself.
    Snapshot,
    /// A bookmark of it.
    Bookmark,
    /// A bookmark of it with a redaction list, which no ordinary stream can start from.
    Redacted,
    /// Neither.
    Neither,
}

/// Why there is nothing to send. Each says what is missing on which side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendConflict {
    /// The dataset has no snapshot that may be sent.
    NoSnapshot {
        /// Its other snapshots.
        others: usize,
    },
    /// `--incremental`, and nothing stored can be its base.
    NoCommonBase(Box<BaseLoss>),
    /// A base was lost, and a full is larger than what is made without asking.
    TooLarge {
        /// What each side has.
        loss: Box<BaseLoss>,
        /// The estimate of a full; `None` when there is none.
        estimate_bytes: Option<u64>,
        /// `auto_full_max`
        limit_bytes: u64,
    },
    /// `--incremental`, and only a full may come next.
    OnlyFull(FullReason),
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
    let over = chain_is_over(facts, rules, backup);
    if over.is_some()
        && let Some((base, backup)) = base_on_newer_full(facts, rules, snapshot, backup)
    {
        return Ok(SendPlan::Incremental {
            snapshot: snapshot.clone(),
            base,
            backup: Box::new(backup.clone()),
        });
    }
    match over {
        Some(why) if !incremental_only => full(why),
        Some(why) if !matches!(why, FullReason::Age { .. } | FullReason::Share { .. }) => {
            Err(SendConflict::OnlyFull(why))
        }
        _ => Ok(SendPlan::Incremental {
            snapshot: snapshot.clone(),
            base,
            backup: Box::new(backup.clone()),
        }),
    }
}

fn all<'a>(facts: &SendFacts<'a>) -> impl Iterator<Item = &'a BackupFacts> {
    facts.target.iter().chain(facts.beside)
}

/// A person who says `--full` wants one, in this store, made as things are set now.
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

/// Whatever their order.
fn has_same(some: &[String], others: &[String]) -> bool {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names
    };
    sorted(some) == sorted(others)
}

/// The newest usable backup whose snapshot is still here, and older than what is sent. Of two of
/// one snapshot the one that a new backup can follow, then the one with fewer before it.
fn newest_base<'a>(
    facts: &SendFacts<'a>,
    snapshot: &Snapshot,
) -> Option<(SendBase, &'a BackupFacts)> {
    newest_base_of(facts, snapshot, |_| true)
}

/// The newest base on a chain that began later than that of `over` and that may be followed.
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

/// What is here of a snapshot, with its transaction group: the snapshot before a bookmark, ours
/// before another's. A stream from a bookmark with a redaction list fits only a copy that was
/// redacted, so such a bookmark does not count.
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
                Here::Redacted
            }
            None => Here::Neither,
            Some((SendBase::Snapshot(_), _)) => Here::Snapshot,
            Some((SendBase::Bookmark(_), _)) => Here::Bookmark,
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

/// Why nothing may follow this base, if so.
fn chain_is_over(
    facts: &SendFacts<'_>,
    rules: &LifecycleRules,
    base: &BackupFacts,
) -> Option<FullReason> {
    if !has_same(&base.requested, facts.flags) {
        return Some(FullReason::Flags {
            chain: base.requested.clone(),
            now: facts.flags.to_vec(),
        });
    }
    if !has_same(&base.recipients, facts.recipients) {
        return Some(FullReason::Recipients);
    }
    if rules
        .incrementals_max
        .is_some_and(|limit| base.position >= limit)
    {
        return Some(FullReason::Length {
            incrementals: base.position,
        });
    }
    // The same backup may be in both stores.
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
