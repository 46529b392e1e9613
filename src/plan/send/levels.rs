//! [`plan_level`]: plans a backup where levels are configured.

use super::{
    FullReason, LifecycleRules, RequestedKind, SendConflict, SendFacts, SendPlan, all, base_loss,
    find_unlike, is_made_alike, local_base,
};
use crate::config::LevelBase;
use crate::model::{BackupId, BackupLevel};
use crate::plan::BackupFacts;
use crate::plan::levels::{FullRule, LevelRules, due_level, level_of};
use crate::plan::retention::in_order;
use crate::zfs::{SendBase, Snapshot};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A backup that an incremental of the snapshot can build on.
struct Candidate<'a> {
    local: SendBase,
    createtxg: u64,
    /// The place of its full among all backups. A newer full is preferred: a full that took many
    /// nights is older than the incrementals that were made in the meantime.
    full_place: Option<usize>,
    backup: &'a BackupFacts,
}

struct LevelPlanner<'a> {
    rules: LevelRules,
    /// The usable backups of the time line, oldest first.
    line: Vec<&'a BackupFacts>,
    candidates: Vec<Candidate<'a>>,
}

/// Plans the backup of a snapshot. `newest` is the newest backup that an incremental can build on,
/// whatever its level and its flags.
///
/// # Errors
/// [`SendConflict`] when a full is needed and not allowed.
pub(super) fn plan_level(
    facts: &SendFacts<'_>,
    rules: &LifecycleRules,
    levels: &LevelRules,
    (snapshot, requested): (&Snapshot, RequestedKind),
    newest: &BackupFacts,
) -> Result<SendPlan, SendConflict> {
    let planner = LevelPlanner::new(facts, levels, snapshot, newest);
    let incremental_only = requested == RequestedKind::Incremental;
    let full = |why| match incremental_only {
        true => Err(SendConflict::OnlyFull(why)),
        false => Ok(SendPlan::Full {
            snapshot: snapshot.clone(),
            why,
            level: Some(levels.keep.longest()),
        }),
    };
    if planner.candidates.is_empty()
        && let Some(why) = find_unlike(facts, newest)
    {
        return full(why);
    }
    let level = planner.due_level(snapshot, incremental_only);
    if levels.fulls == FullRule::Period && level == levels.keep.longest() && !incremental_only {
        let at = snapshot.created_at;
        return full(FullReason::FirstOf { level, at });
    }
    let wanted = planner.base_for(level);
    if let Some(over) = wanted.and_then(|base| planner.full_is_old(facts, base))
        && !incremental_only
    {
        return full(over);
    }
    let is_small = || {
        facts
            .full_estimate_bytes
            .is_some_and(|bytes| bytes <= rules.auto_full_bytes_max)
    };
    if wanted.is_none() && !incremental_only && is_small() {
        return full(FullReason::NoBaseOf { level });
    }
    let found = wanted.map(|base| (level, base));
    match found.or_else(|| planner.base_for_shorter(level)) {
        Some((level, base)) => Ok(SendPlan::Incremental {
            snapshot: snapshot.clone(),
            base: base.local.clone(),
            backup: Box::new(base.backup.clone()),
            level: Some(level),
        }),
        None => Err(SendConflict::NoCommonBase(Box::new(base_loss(facts)))),
    }
}

/// Whether an incremental of a longer level than that of the newest backup is due. It is made even
/// if nothing was written, because its level keeps the state of the dataset for longer.
pub fn is_longer_level_due(
    facts: &SendFacts<'_>,
    rules: &LifecycleRules,
    newest: &BackupFacts,
) -> bool {
    let (Some(levels), Some(snapshot)) = (&rules.levels, facts.snapshot) else {
        return false;
    };
    let due = LevelPlanner::new(facts, levels, snapshot, newest).due_level(snapshot, true);
    due > level_of(newest, &levels.keep)
}

impl<'a> LevelPlanner<'a> {
    fn new(
        facts: &SendFacts<'a>,
        levels: &LevelRules,
        snapshot: &Snapshot,
        newest: &BackupFacts,
    ) -> Self {
        let is_of_line = |backup: &&BackupFacts| {
            backup.is_usable()
                && (backup.origin == newest.origin || backup.full_id == newest.full_id)
        };
        let mut line = in_order(all(facts).filter(is_of_line));
        // The same backup may be in both stores.
        line.dedup_by(|one, other| one.id == other.id);
        let places: BTreeMap<&BackupId, usize> = line.iter().map(|it| &it.id).zip(0..).collect();
        let candidate = |backup: &&'a BackupFacts| {
            let (local, createtxg) = local_base(facts, backup.snapshot.guid)?;
            (createtxg < snapshot.createtxg).then(|| Candidate {
                local,
                createtxg,
                full_place: places.get(&backup.full_id).copied(),
                backup,
            })
        };
        let alike = line.iter().filter(|backup| is_made_alike(facts, backup));
        Self {
            rules: *levels,
            candidates: alike.filter_map(candidate).collect(),
            line,
        }
    }

    /// Returns the level of the backup. If only an incremental is allowed, a full that is due waits
    /// for the next run.
    fn due_level(&self, snapshot: &Snapshot, incremental_only: bool) -> BackupLevel {
        let LevelRules { keep, fulls, .. } = &self.rules;
        let full_waits = incremental_only && *fulls == FullRule::Period;
        let levels = keep.levels().map(|(level, _)| level);
        let levels = levels.filter(|level| !full_waits || *level != keep.longest());
        due_level(&self.line, snapshot.created_at, keep, levels)
    }

    /// Returns the base of a backup of this level.
    fn base_for(&self, level: BackupLevel) -> Option<&Candidate<'a>> {
        let keep = &self.rules.keep;
        let longer_only = self.rules.base == LevelBase::Longer && level < keep.longest();
        self.newest_candidate(|base| base > level || base == level && !longer_only)
    }

    /// Returns the longest shorter level that has a base. The shortest level can build on any
    /// backup.
    fn base_for_shorter(&self, level: BackupLevel) -> Option<(BackupLevel, &Candidate<'a>)> {
        let keep = &self.rules.keep;
        let shorter = keep.levels().rev().map(|(shorter, _)| shorter);
        let mut shorter = shorter.filter(|shorter| *shorter < level);
        shorter
            .find_map(|shorter| Some((shorter, self.base_for(shorter)?)))
            .or_else(|| Some((keep.shortest(), self.newest_candidate(|_| true)?)))
    }

    fn newest_candidate(&self, may_be: impl Fn(BackupLevel) -> bool) -> Option<&Candidate<'a>> {
        self.candidates
            .iter()
            .filter(|base| may_be(level_of(base.backup, &self.rules.keep)))
            .max_by_key(|base| {
                let Candidate { backup, .. } = base;
                let shortest_chain = Reverse(backup.position);
                (
                    base.full_place,
                    base.createtxg,
                    shortest_chain,
                    backup.id.clone(),
                )
            })
    }

    /// Returns the reason for a new full if the full of the base's chain is too old.
    fn full_is_old(&self, facts: &SendFacts<'_>, base: &Candidate<'_>) -> Option<FullReason> {
        let FullRule::Age(limit) = self.rules.fulls else {
            return None;
        };
        let full = self.line[base.full_place?];
        let full_at = full.snapshot.created_at;
        (facts.now.duration_since(full_at) >= limit).then_some(FullReason::Age { full_at })
    }
}
