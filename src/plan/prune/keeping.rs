//! [`Keeping`]: collects which backups a prune keeps, and why.

use super::{Doomed, Kept, LeftAlone, PruneInput, Pruned, SecondaryFacts, StartedFact};
use crate::model::BackupId;
use crate::plan::BackupFacts;
use crate::plan::retention::{Reason, chains_newest_first, decide_retention, in_order};
use crate::plan::twin::{are_twins, attempt_bases, facts_stand_in_as_base};
use std::collections::BTreeMap;

/// The kept backups, while they are collected.
pub(super) struct Keeping<'a> {
    input: PruneInput<'a>,
    pub(super) ordered: Vec<&'a BackupFacts>,
    by_id: BTreeMap<&'a BackupId, &'a BackupFacts>,
    reasons: BTreeMap<BackupId, Vec<Reason>>,
}

impl<'a> Keeping<'a> {
    pub(super) fn new(input: &PruneInput<'a>) -> Self {
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

    pub(super) fn keeps(&self, id: &BackupId) -> bool {
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
    pub(super) fn by_rules(&mut self) {
        for verdict in decide_retention(self.input.facts, self.input.rules, self.input.now) {
            if verdict.keep {
                verdict
                    .reasons
                    .into_iter()
                    .for_each(|reason| self.add(&verdict.id, reason));
            }
        }
        if self.input.secondary != SecondaryFacts::Nothing {
            return;
        }
        let usable: Vec<&BackupFacts> = self
            .ordered
            .iter()
            .copied()
            .filter(|backup| backup.is_usable())
            .collect();
        if let Some(chain) = chains_newest_first(&usable).first() {
            self.add_newest(chain, &usable);
        }
        // A full that took many nights is older than the incrementals that were made in the
        // meantime on the previous chain: the next incremental makes its chain the newest.
        if let Some(full) = usable.iter().rev().find(|backup| backup.base.is_none()) {
            self.add_newest(&full.id, &usable);
        }
    }

    /// Keeps a chain that must stay restorable: all of it, or with levels its newest backup, whose
    /// ancestors [`Keeping::close`] adds. A whole tree of levels would grow until the next full.
    fn add_newest(&mut self, chain: &BackupId, usable: &[&BackupFacts]) {
        if self.input.rules.levels.is_none() {
            return self.add_chain(chain, &Reason::NewestUsableChain);
        }
        if let Some(newest) = usable.iter().rfind(|backup| backup.full_id == *chain) {
            self.add(&newest.id, Reason::NewestUsableChain);
        }
    }

    pub(super) fn by_remote(&mut self) {
        for backup in self.ordered.clone() {
            match self.input.secondary {
                SecondaryFacts::Nothing => return,
                SecondaryFacts::Unreachable => self.add(&backup.id, Reason::RemoteUnreachable),
                SecondaryFacts::Remote { facts, pruned }
                    if !was_committed(facts, pruned, backup) =>
                {
                    self.add(&backup.id, Reason::NotInRemote)
                }
                SecondaryFacts::Remote { .. } => {}
            }
        }
    }

    /// Keeps the chain of each unfinished upload that is not proved dead.
    pub(super) fn by_uploads(&mut self, left_alone: &[LeftAlone]) {
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
    pub(super) fn by_waiting(&mut self) {
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

    pub(super) fn by_locks(&mut self) {
        let locks = self.input.locks;
        for (id, lock) in locks {
            if self.by_id.contains_key(id) {
                self.add(id, Reason::from(lock));
            }
        }
    }

    /// Adds the ancestors of all kept backups; for an intermediate directory with a remote only
    /// those that are not usable in the remote under the same id.
    pub(super) fn close(&mut self) {
        for backup in self.ordered.clone() {
            if !self.keeps(&backup.id) {
                continue;
            }
            for ancestor in self.ancestors(backup) {
                let elsewhere = match self.input.secondary {
                    SecondaryFacts::Remote { facts, .. } => {
                        facts.iter().any(|other| is_same(other, ancestor))
                    }
                    SecondaryFacts::Nothing | SecondaryFacts::Unreachable => false,
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
    pub(super) fn flaw(&self, backup: &BackupFacts) -> Option<String> {
        let SecondaryFacts::Remote { facts: remote, .. } = self.input.secondary else {
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
                    "{} builds on {base}, which is neither here nor in the remote",
                    current.id
                ));
            };
            if next.full_id != current.full_id
                || next.position.checked_add(1) != Some(current.position)
            {
                return Some(format!(
                    "{} builds on {base}, which has another place in the chain",
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
    pub(super) fn into_lists(self) -> (Vec<Kept>, Vec<Doomed>) {
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
pub(super) fn was_committed(
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
