//! [`decide_retention`]: the backups that a set of rules keeps, with reasons.
//! [`plan_prune`](super::prune::plan_prune) adds the backups that no rule may ever delete.
//!
//! A chain is the tree of backups under one full. Backups are ordered by createtxg within an origin
//! and by snapshot time across origins; a chain is ordered by its newest member.

use super::BackupFacts;
use super::period::period_of;
use crate::config::{Age, RetentionRules};
use crate::model::{BackupId, BackupKind, BackupLevel, Guid, serialize_as_text};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The rules' decision about one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The backup.
    pub id: BackupId,
    /// Whether a rule keeps it.
    pub keep: bool,
    /// Each rule that keeps the backup; only [`Reason::NoRuleKeepsIt`] if no rule does.
    pub reasons: Vec<Reason>,
}

/// The reason why a backup is kept or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No rule is configured, so everything is kept.
    NoRules,
    /// `keep-last-chains`: the chain of the backup is the `place`-th newest, from 1.
    LastChain {
        /// The place, 1 for the newest.
        place: usize,
        /// The number that the rule keeps.
        of: u32,
    },
    /// `keep-last-full-only`.
    LastFull {
        /// The place, 1 for the newest.
        place: usize,
        /// The number that the rule keeps.
        of: u32,
    },
    /// `keep-last-incremental-only`.
    LastIncremental {
        /// The place, 1 for the newest.
        place: usize,
        /// The number that the rule keeps.
        of: u32,
    },
    /// `keep-full-with-age-closest-to`.
    FullAge {
        /// The age that the rule names.
        wanted: Age,
        /// The real age in seconds.
        real_seconds: i64,
    },
    /// `keep-within`.
    Within {
        /// The age that the rule names.
        age: Age,
    },
    /// `keep-daily` and similar rules: the newest backup of one of the newest periods that have a
    /// backup.
    Period {
        /// The level that has the kind of period.
        level: BackupLevel,
        /// The place of the period, 1 for the newest.
        place: usize,
        /// The number that the rule keeps.
        of: u32,
    },
    /// `keep`: the newest backup of this level or a longer one in one of the newest periods.
    Level {
        /// The level.
        level: BackupLevel,
        /// The place of the period, 1 for the newest.
        place: usize,
        /// The number that the rule keeps.
        of: u32,
    },
    /// `keep_at_least`: no other rule keeps the backup, and it was stored too recently.
    Billed {
        /// The time until which it stays.
        until: Timestamp,
    },
    /// A kept backup follows from the backup.
    AncestorOf {
        /// The backup that needs it.
        id: BackupId,
    },
    /// The backup is in the newest chain that can be restored.
    NewestUsableChain,
    /// An unfinished upload is based on the backup's chain.
    UnfinishedUpload {
        /// The attempt.
        id: BackupId,
    },
    /// A backup of the intermediate directory that waits to be copied is based on the backup's
    /// chain.
    Waiting {
        /// The backup that waits.
        id: BackupId,
    },
    /// The store refuses to delete the backup until a time.
    Locked {
        /// The time, in RFC 3339.
        until: String,
    },
    /// The lock of the backup cannot be read.
    LockUnknown {
        /// The reason.
        reason: String,
    },
    /// The configured remote has not committed the backup.
    NotInRemote,
    /// The configured remote is unreachable.
    RemoteUnreachable,
    /// The plan deletes nothing of the dataset, and has the reasons.
    NothingIsDeleted,
    /// No rule keeps the backup: the reason to delete it.
    NoRuleKeepsIt,
}

serialize_as_text!(Reason);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRules => f.write_str("there are no rules"),
            Self::LastChain { place: 1, of: 1 } => f.write_str("newest chain"),
            Self::LastChain { place, of } => write!(f, "last-chain {place}/{of}"),
            Self::LastFull { place, of } => write!(f, "last-full {place}/{of}"),
            Self::LastIncremental { place, of } => write!(f, "last-incremental {place}/{of}"),
            Self::FullAge {
                wanted,
                real_seconds,
            } => {
                write!(f, "age {wanted} wanted, is {}", age_words(*real_seconds))
            }
            Self::Within { age } => write!(f, "within {age}"),
            Self::Period { level, place, of } => write!(f, "{level} {place}/{of}"),
            Self::Level { level, place, of } => write!(f, "{level} level {place}/{of}"),
            Self::Billed { until } => write!(
                f,
                "kept at least until {} (keep_at_least)",
                until.strftime("%Y-%m-%d")
            ),
            Self::AncestorOf { id } => write!(f, "{id} builds on it"),
            Self::NewestUsableChain => f.write_str("newest usable chain"),
            Self::UnfinishedUpload { id } => {
                write!(f, "the unfinished upload {id} builds on its chain")
            }
            Self::Waiting { id } => {
                write!(f, "{id} in the intermediate directory builds on its chain")
            }
            Self::Locked { until } => write!(f, "locked until {until}"),
            Self::LockUnknown { reason } => write!(f, "its locks are unknown: {reason}"),
            Self::NotInRemote => f.write_str("not committed in the remote"),
            Self::RemoteUnreachable => f.write_str("the remote is unreachable"),
            Self::NothingIsDeleted => f.write_str("nothing of the dataset is deleted, see above"),
            Self::NoRuleKeepsIt => f.write_str("no rule keeps it"),
        }
    }
}

/// Writes an age as rules write it, in its two largest units: `6m 6d`, where m is 30 days and y
/// 365.
pub fn age_words(seconds: i64) -> String {
    if seconds < 0 {
        return "in the future".to_owned();
    }
    let units = [
        ("y", 365 * 86_400),
        ("m", 30 * 86_400),
        ("d", 86_400),
        ("h", 3600),
    ];
    let mut rest = seconds;
    let mut words = Vec::new();
    for (unit, length) in units {
        if rest >= length {
            words.push(format!("{}{unit}", rest / length));
        }
        rest %= length;
    }
    words.truncate(2);
    if words.is_empty() {
        "less than 1h".to_owned()
    } else {
        words.join(" ")
    }
}

/// Decides which of these backups the rules keep at that time. The result is in the order of
/// [`in_order`], oldest first.
pub fn decide_retention(
    facts: &[BackupFacts],
    rules: &RetentionRules,
    now: Timestamp,
) -> Vec<Verdict> {
    let ordered = in_order(facts);
    let mut reasons = Reasons::default();
    if rules.keeps_everything() {
        ordered
            .iter()
            .for_each(|backup| reasons.add(&backup.id, Reason::NoRules));
    }
    keep_chains(&ordered, rules, &mut reasons);
    keep_full_ages(&ordered, rules, now, &mut reasons);
    let by_id: ById<'_> = ordered.iter().map(|backup| (&backup.id, *backup)).collect();
    keep_within(&ordered, &by_id, rules, now, &mut reasons);
    let counts = [
        (BackupLevel::Daily, rules.daily),
        (BackupLevel::Weekly, rules.weekly),
        (BackupLevel::Monthly, rules.monthly),
        (BackupLevel::Yearly, rules.yearly),
    ];
    for (level, count) in counts {
        let of = count.unwrap_or(0);
        let kept = newest_of_periods(&ordered, level, |_| true).take(of as usize);
        for (backup, place) in kept.zip(1..) {
            reasons.add_whole(&by_id, backup, Reason::Period { level, place, of });
        }
    }
    keep_levels(&ordered, &by_id, rules, &mut reasons);
    keep_billed(&ordered, &by_id, rules, now, &mut reasons);
    let verdict = |backup: &&BackupFacts| {
        let found = reasons.0.get(&backup.id).cloned().unwrap_or_default();
        let keep = !found.is_empty();
        let reasons = if keep {
            found
        } else {
            vec![Reason::NoRuleKeepsIt]
        };
        Verdict {
            id: backup.id.clone(),
            keep,
            reasons,
        }
    };
    ordered.iter().map(verdict).collect()
}

/// Returns the backups, oldest first. Times are compared only across origins: within an origin the
/// order never contradicts the transaction groups, even if clocks did.
pub fn in_order<'a>(facts: impl IntoIterator<Item = &'a BackupFacts>) -> Vec<&'a BackupFacts> {
    let mut ordered: Vec<&BackupFacts> = facts.into_iter().collect();
    ordered.sort_by_key(|backup| (origin_key(backup), backup.snapshot.createtxg, &backup.id));
    let mut latest: BTreeMap<(Guid, Guid, bool), Timestamp> = BTreeMap::new();
    let mut timed: Vec<(Timestamp, &BackupFacts)> = Vec::new();
    for backup in ordered {
        let at = latest
            .entry(origin_key(backup))
            .or_insert(backup.snapshot.created_at);
        *at = backup.snapshot.created_at.max(*at);
        timed.push((*at, backup));
    }
    timed.sort_by_key(|(at, backup)| {
        (
            *at,
            origin_key(backup),
            backup.snapshot.createtxg,
            &backup.id,
        )
    });
    timed.into_iter().map(|(_, backup)| backup).collect()
}

/// Returns the key that distinguishes time lines: a dataset in a pool, and whether the backup was
/// adopted from another time line, whose transaction groups are not comparable.
fn origin_key(backup: &BackupFacts) -> (Guid, Guid, bool) {
    (
        backup.origin.dataset_guid,
        backup.origin.pool_guid,
        backup.made.adopted,
    )
}

/// Returns the chains by the ids of their fulls, the newest first.
pub fn chains_newest_first<'a>(ordered: &[&'a BackupFacts]) -> Vec<&'a BackupId> {
    let mut chains: Vec<&BackupId> = Vec::new();
    for backup in ordered.iter().rev() {
        if !chains.contains(&&backup.full_id) {
            chains.push(&backup.full_id);
        }
    }
    chains
}

/// Backups by their ids, because chains are walked for thousands of them.
type ById<'a> = BTreeMap<&'a BackupId, &'a BackupFacts>;

#[derive(Default)]
struct Reasons(BTreeMap<BackupId, Vec<Reason>>);

impl Reasons {
    fn add(&mut self, id: &BackupId, reason: Reason) {
        let reasons = self.0.entry(id.clone()).or_default();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }

    /// Adds a backup with all backups that it depends on.
    fn add_whole(&mut self, by_id: &ById<'_>, backup: &BackupFacts, reason: Reason) {
        self.add(&backup.id, reason);
        let mut base = backup.base.as_ref();
        let mut seen = BTreeSet::from([&backup.id]);
        while let Some(next) = base.and_then(|id| by_id.get(id).copied()) {
            if !seen.insert(&next.id) {
                return;
            }
            self.add(
                &next.id,
                Reason::AncestorOf {
                    id: backup.id.clone(),
                },
            );
            base = next.base.as_ref();
        }
    }
}

fn keep_chains(ordered: &[&BackupFacts], rules: &RetentionRules, reasons: &mut Reasons) {
    let chains = chains_newest_first(ordered);
    let newest = |count: Option<u32>| {
        let of = count.unwrap_or(0);
        chains
            .iter()
            .take(of as usize)
            .zip(1..)
            .map(move |(chain, place)| (*chain, place, of))
    };
    for (chain, place, of) in newest(rules.last_chains) {
        for backup in ordered.iter().filter(|backup| backup.full_id == *chain) {
            reasons.add(&backup.id, Reason::LastChain { place, of });
        }
    }
    for (chain, place, of) in newest(rules.last_fulls) {
        if let Some(full) = ordered.iter().find(|backup| backup.id == *chain) {
            reasons.add(&full.id, Reason::LastFull { place, of });
        }
    }
    let (of, newest_chain) = (rules.last_incrementals.unwrap_or(0), chains.first());
    let incrementals = ordered.iter().rev().filter(|backup| {
        backup.kind() == BackupKind::Incr && Some(&&backup.full_id) == newest_chain
    });
    for (backup, place) in incrementals.take(of as usize).zip(1..) {
        reasons.add(&backup.id, Reason::LastIncremental { place, of });
    }
}

fn age_seconds(backup: &BackupFacts, now: Timestamp) -> i64 {
    now.as_second()
        .saturating_sub(backup.snapshot.created_at.as_second())
}

fn seconds_of(age: Age) -> i64 {
    i64::try_from(age.duration().as_secs()).unwrap_or(i64::MAX)
}

/// For each age the nearest full on both sides: the older one has the place now, and the younger
/// one takes it later.
fn keep_full_ages(
    ordered: &[&BackupFacts],
    rules: &RetentionRules,
    now: Timestamp,
    reasons: &mut Reasons,
) {
    let fulls: Vec<(i64, &BackupFacts)> = ordered
        .iter()
        .filter(|backup| backup.kind() == BackupKind::Full)
        .map(|backup| (age_seconds(backup, now), *backup))
        .collect();
    for wanted in rules.full_ages.iter().copied() {
        let limit = seconds_of(wanted);
        let not_older = fulls
            .iter()
            .filter(|(age, _)| *age <= limit)
            .max_by_key(|(age, _)| *age);
        let not_younger = fulls
            .iter()
            .filter(|(age, _)| *age >= limit)
            .min_by_key(|(age, _)| *age);
        for (real_seconds, full) in [not_older, not_younger].into_iter().flatten() {
            reasons.add(
                &full.id,
                Reason::FullAge {
                    wanted,
                    real_seconds: *real_seconds,
                },
            );
        }
    }
}

fn keep_within(
    ordered: &[&BackupFacts],
    by_id: &ById<'_>,
    rules: &RetentionRules,
    now: Timestamp,
    reasons: &mut Reasons,
) {
    let Some(age) = rules.within else { return };
    for backup in ordered
        .iter()
        .filter(|backup| age_seconds(backup, now) <= seconds_of(age))
    {
        reasons.add_whole(by_id, backup, Reason::Within { age });
    }
}

/// Returns the newest of the wanted backups in each period that has one, the newest period first.
fn newest_of_periods<'a>(
    ordered: &[&'a BackupFacts],
    level: BackupLevel,
    is_wanted: impl Fn(&BackupFacts) -> bool,
) -> impl Iterator<Item = &'a BackupFacts> {
    let mut seen = BTreeSet::new();
    ordered.iter().rev().copied().filter(move |backup| {
        is_wanted(backup) && seen.insert(period_of(level, backup.snapshot.created_at))
    })
}

/// Keeps for each level the newest backup of that level or a longer one in each of its newest
/// periods. A period from before levels were configured has no such backup: its newest incremental
/// without a level counts, so that configuring levels deletes no restore point of the past.
fn keep_levels(
    ordered: &[&BackupFacts],
    by_id: &ById<'_>,
    rules: &RetentionRules,
    reasons: &mut Reasons,
) {
    let Some(keep) = rules.levels else { return };
    for (level, of) in keep.levels() {
        let has_level = |backup: &BackupFacts| {
            backup.kind() == BackupKind::Full || backup.made.level.is_some_and(|own| own >= level)
        };
        let proper: Vec<&BackupFacts> = newest_of_periods(ordered, level, has_level).collect();
        let periods: BTreeSet<_> = proper
            .iter()
            .map(|it| period_of_backup(level, it))
            .collect();
        let is_wanted = |backup: &BackupFacts| {
            has_level(backup)
                || backup.made.level.is_none()
                    && !periods.contains(&period_of_backup(level, backup))
        };
        let kept = newest_of_periods(ordered, level, is_wanted).take(of as usize);
        for (backup, place) in kept.zip(1..) {
            reasons.add_whole(by_id, backup, Reason::Level { level, place, of });
        }
    }
}

fn period_of_backup(level: BackupLevel, backup: &BackupFacts) -> (i16, i16) {
    period_of(level, backup.snapshot.created_at)
}

/// Keeps what no rule keeps and what was stored more recently than `keep_at_least` demands.
fn keep_billed(
    ordered: &[&BackupFacts],
    by_id: &ById<'_>,
    rules: &RetentionRules,
    now: Timestamp,
    reasons: &mut Reasons,
) {
    let Some(age) = rules.at_least else { return };
    let unwanted: Vec<&BackupFacts> = ordered
        .iter()
        .copied()
        .filter(|backup| !reasons.0.contains_key(&backup.id))
        .collect();
    for backup in unwanted {
        let stored_at = backup.made.stored_at.unwrap_or(backup.made.finished_at);
        let Ok(until) = stored_at.checked_add(age.duration()) else {
            continue;
        };
        if until > now {
            reasons.add_whole(by_id, backup, Reason::Billed { until });
        }
    }
}
