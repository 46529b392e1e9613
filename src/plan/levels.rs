//! Levels: which level the next backup has, and which backups the next ones of each level build on.
//!
//! With `keep = "2y 12m 8w 14d"` the first backup of a year is of the yearly level, the first of a
//! month of the monthly level, the first of a week of the weekly level, and every other backup of
//! the daily level. A period is that of the snapshot's own time, in UTC. No backup builds on one of
//! a shorter level, so that the shorter levels can be deleted first.

use super::BackupFacts;
use super::period::period_of;
use super::retention::in_order;
use crate::config::{KeepLevels, LevelBase};
use crate::model::{BackupId, BackupKind, BackupLevel, Guid};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::iter::once;

/// How backups of several levels are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelRules {
    /// The levels, and how many backups of each stay.
    pub keep: KeepLevels,
    /// The levels that a base may have.
    pub base: LevelBase,
    /// When a new full is made.
    pub fulls: FullRule,
}

/// When a new full is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullRule {
    /// The first backup in each period of the longest level is a full.
    Period,
    /// A backup is a full when the full of the chain has this age.
    Age(SignedDuration),
    /// No new full is made while an incremental is possible.
    Never,
}

/// Returns the level of a backup among the configured levels. A full is of the longest level. An
/// incremental without a level, or of a shorter level than those configured, is of the shortest.
pub fn level_of(backup: &BackupFacts, keep: &KeepLevels) -> BackupLevel {
    match backup.kind() {
        BackupKind::Full => BackupLevel::Yearly,
        BackupKind::Incr => backup
            .made
            .level
            .map_or(keep.shortest(), |level| level.max(keep.shortest())),
    }
}

/// Returns the level of the next backup: the longest of `levels` in whose period no backup of that
/// level or a longer one exists, or else the shortest. `line` has the usable backups, oldest first.
///
/// A snapshot that is dated before the newest backup shows that the clock was set back. That backup
/// is of the shortest level, and the calendar decides again from the next one on. A wrong clock
/// then costs at most one backup of a longer level.
pub fn due_level(
    line: &[&BackupFacts],
    snapshot_at: Timestamp,
    keep: &KeepLevels,
    levels: impl DoubleEndedIterator<Item = BackupLevel>,
) -> BackupLevel {
    let is_set_back = line
        .last()
        .is_some_and(|newest| newest.snapshot.created_at > snapshot_at);
    let mut due = levels
        .rev()
        .filter(|level| !is_set_back && !has_backup_of(line, snapshot_at, keep, *level));
    due.next().unwrap_or(keep.shortest())
}

/// Whether the period of `at` has a backup of this level or a longer one.
fn has_backup_of(
    line: &[&BackupFacts],
    at: Timestamp,
    keep: &KeepLevels,
    level: BackupLevel,
) -> bool {
    let wanted = period_of(level, at);
    line.iter().enumerate().any(|(index, backup)| {
        level_of(backup, keep) >= level
            && period_of(level, backup.snapshot.created_at) == wanted
            && is_plausible(backup, &line[index + 1..], at)
    })
}

/// Whether the time of a backup agrees with at least half of the times that came after it. A backup
/// that was made while the clock was years ahead does not count when its year has come.
fn is_plausible(backup: &BackupFacts, later: &[&BackupFacts], at: Timestamp) -> bool {
    let own = backup.snapshot.created_at;
    let times = later.iter().map(|backup| backup.snapshot.created_at);
    let earlier = times.chain(once(at)).filter(|time| *time < own).count();
    2 * earlier <= later.len() + 1
}

/// Returns the snapshots on which the next backup of each level can build: in each of `chains` the
/// newest of each level or a longer one. The newest backup of all is always among them. The backups
/// are usable, in any order.
pub fn base_guids(
    usable: &[&BackupFacts],
    chains: &BTreeSet<&BackupId>,
    keep: &KeepLevels,
) -> BTreeSet<Guid> {
    let ordered = in_order(usable.iter().copied());
    let mut guids: BTreeSet<Guid> = ordered
        .last()
        .map(|newest| newest.snapshot.guid)
        .into_iter()
        .collect();
    for chain in chains {
        let members = || ordered.iter().filter(|backup| backup.full_id == **chain);
        guids.extend(keep.levels().filter_map(|(level, _)| {
            let newest = members().rfind(|backup| level_of(backup, keep) >= level)?;
            Some(newest.snapshot.guid)
        }));
    }
    guids
}
