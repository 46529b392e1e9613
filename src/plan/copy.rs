//! [`plan_copy`]: decides which backups of the intermediate directory are copied to the remote, in
//! which order, and why others are not.

use super::BackupFacts;
use super::retention::{chains_newest_first, decide_retention, in_order};
use super::twin::{are_twins, facts_stand_in_as_base};
use crate::config::RetentionRules;
use crate::model::{BackupId, serialize_as_text};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// The facts about both stores.
pub struct CopyInput<'a> {
    /// The backups of the intermediate directory, oldest first.
    pub local: &'a [BackupFacts],
    /// The backups of the remote, with their flaws.
    pub remote: &'a [BackupFacts],
    /// Ids whose manifest in the remote is invalid or untrusted.
    pub untrusted: &'a BTreeSet<BackupId>,
    /// Ids whose deletion from the remote a signed prune record explains.
    pub pruned: &'a BTreeSet<BackupId>,
    /// The backups that the rules of the remote would delete at once.
    pub would_be_pruned: &'a BTreeSet<BackupId>,
    /// Whether to copy pruned backups, and those that would be pruned at once, too.
    pub all: bool,
}

/// The reason why a backup need not be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeftReason {
    /// The remote has the backup.
    #[error("is in the remote")]
    Committed,
    /// The remote has an identical backup under another id.
    #[error("{of} in the remote is identical")]
    Twin {
        /// The id of the identical backup.
        of: BackupId,
    },
    /// The remote had the backup, and it was pruned.
    #[error("was pruned in the remote")]
    Pruned,
    /// The rules of the remote would delete the backup at once.
    #[error("[lifecycle-remote] would delete it at once")]
    WouldBePruned,
}

serialize_as_text!(LeftReason);

/// The reason why a backup cannot be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyGap {
    /// The base is in neither store.
    #[error(
        "{of} builds on {parent}, which is neither in the intermediate directory nor in the remote"
    )]
    MissingParent {
        /// The backup that cannot be copied.
        of: BackupId,
        /// The missing base, as the manifest names it.
        parent: BackupId,
    },
    /// The base was pruned in the remote, and is copied again only on request.
    #[error("{of} builds on {parent}, which was pruned in the remote")]
    PrunedParent {
        /// The backup that cannot be copied.
        of: BackupId,
        /// The base that the remote had.
        parent: BackupId,
    },
    /// The base is in the remote and cannot be restored there, so no backup may be based on it.
    #[error("{of} builds on {parent}, which is damaged in the remote: {flaw}")]
    DamagedParent {
        /// The backup that cannot be copied.
        of: BackupId,
        /// The base that the remote cannot restore.
        parent: BackupId,
        /// The flaw of the base.
        flaw: String,
    },
    /// The base cannot be copied.
    #[error("{of} builds on {parent}, which cannot be copied")]
    ParentNotCopied {
        /// The backup that cannot be copied.
        of: BackupId,
        /// The base that cannot be copied either.
        parent: BackupId,
    },
    /// The remote has another manifest under this id.
    #[error("the remote has another manifest under the id {id}")]
    Differs {
        /// The id that both stores use.
        id: BackupId,
    },
}

/// A backup to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    /// The id of the backup.
    pub id: BackupId,
    /// The base in the remote: the backup's own base, or a twin of it. The base must still exist at
    /// the commit.
    pub parent: Option<BackupId>,
}

/// The decision for each backup of the intermediate directory; each backup is in exactly one list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CopyPlan {
    /// The backups to copy, bases first, otherwise oldest first.
    pub copy: Vec<CopyStep>,
    /// The backups that need not be copied.
    pub left: Vec<(BackupId, LeftReason)>,
    /// The backups that cannot be copied, or only on request.
    pub refused: Vec<(BackupId, CopyGap)>,
}

/// Decides for each backup of the intermediate directory. The base of a copied backup is copied
/// too, even if the rules alone would leave it.
pub fn plan_copy(input: &CopyInput<'_>) -> CopyPlan {
    let local = input.local.iter().map(|facts| (&facts.id, facts)).collect();
    let mut planner = Planner {
        input,
        local,
        verdicts: BTreeMap::new(),
        order: Vec::new(),
    };
    for facts in input.local {
        planner.decide(facts);
    }
    let mut plan = CopyPlan {
        copy: planner.order,
        ..CopyPlan::default()
    };
    for facts in input.local {
        match planner.verdicts.remove(&facts.id) {
            Some(CopyVerdict::Left(reason)) => plan.left.push((facts.id.clone(), reason)),
            Some(CopyVerdict::Refused(gap)) => plan.refused.push((facts.id.clone(), gap)),
            Some(CopyVerdict::Copy) | None => {}
        }
    }
    plan
}

/// Returns the backups of the directory that the rules would delete from the remote at once: those
/// that no rule keeps when applied to all backups of both together, and that are not in the newest
/// usable chain, which is always kept.
pub fn doomed(
    remote: &[BackupFacts],
    local: &[BackupFacts],
    rules: &RetentionRules,
    now: Timestamp,
) -> BTreeSet<BackupId> {
    let is_new = |facts: &&BackupFacts| !remote.iter().any(|there| there.id == facts.id);
    let new: Vec<&BackupFacts> = local.iter().filter(is_new).collect();
    let together: Vec<BackupFacts> = remote.iter().chain(new.iter().copied()).cloned().collect();
    let usable: Vec<&BackupFacts> = in_order(&together)
        .into_iter()
        .filter(|facts| facts.is_usable())
        .collect();
    let newest_chain = chains_newest_first(&usable).first().map(|id| (*id).clone());
    let newest = usable.last().map(|newest| newest.id.clone());
    // With levels a prune keeps the newest backup and its ancestors, which are copied with it.
    let of_newest = |id: &BackupId| match rules.levels {
        None => together
            .iter()
            .any(|facts| facts.id == *id && Some(&facts.full_id) == newest_chain.as_ref()),
        Some(_) => newest.as_ref() == Some(id),
    };
    // Nothing is billed before it is stored.
    let rules = RetentionRules {
        at_least: None,
        ..rules.clone()
    };
    let verdicts = decide_retention(&together, &rules, now).into_iter();
    let deleted = verdicts
        .filter(|verdict| !verdict.keep && !of_newest(&verdict.id))
        .map(|verdict| verdict.id);
    deleted
        .filter(|id| new.iter().any(|facts| facts.id == *id))
        .collect()
}

#[derive(Clone)]
enum CopyVerdict {
    Copy,
    Left(LeftReason),
    Refused(CopyGap),
}

struct Planner<'a> {
    input: &'a CopyInput<'a>,
    local: BTreeMap<&'a BackupId, &'a BackupFacts>,
    verdicts: BTreeMap<&'a BackupId, CopyVerdict>,
    order: Vec<CopyStep>,
}

impl<'a> Planner<'a> {
    fn decide(&mut self, facts: &'a BackupFacts) {
        if self.verdicts.contains_key(&facts.id) {
            return;
        }
        match self.standing(facts) {
            Some(verdict) => drop(self.verdicts.insert(&facts.id, verdict)),
            None => self.demand(facts),
        }
    }

    /// Returns the verdict that does not depend on the base.
    fn standing(&self, facts: &BackupFacts) -> Option<CopyVerdict> {
        let CopyInput {
            remote,
            untrusted,
            pruned,
            would_be_pruned,
            all,
            ..
        } = *self.input;
        let id = &facts.id;
        if let Some(there) = remote.iter().find(|there| there.id == *id) {
            return Some(match there.manifest_blake3 == facts.manifest_blake3 {
                true => CopyVerdict::Left(LeftReason::Committed),
                false => CopyVerdict::Refused(CopyGap::Differs { id: id.clone() }),
            });
        }
        if untrusted.contains(id) {
            return Some(CopyVerdict::Refused(CopyGap::Differs { id: id.clone() }));
        }
        if let Some(twin) = remote
            .iter()
            .find(|there| there.is_usable() && are_twins(there, facts))
        {
            return Some(CopyVerdict::Left(LeftReason::Twin {
                of: twin.id.clone(),
            }));
        }
        match () {
            () if all => None,
            () if pruned.contains(id) => Some(CopyVerdict::Left(LeftReason::Pruned)),
            () if would_be_pruned.contains(id) => {
                Some(CopyVerdict::Left(LeftReason::WouldBePruned))
            }
            () => None,
        }
    }

    /// Adds a backup to the copies, together with its base unless the remote has it.
    fn demand(&mut self, facts: &'a BackupFacts) {
        // A circular chain finds this verdict and ends.
        let circle = CopyGap::ParentNotCopied {
            of: facts.id.clone(),
            parent: facts.id.clone(),
        };
        self.verdicts
            .insert(&facts.id, CopyVerdict::Refused(circle));
        let verdict = match self.parent(facts) {
            Ok(parent) => {
                self.order.push(CopyStep {
                    id: facts.id.clone(),
                    parent,
                });
                CopyVerdict::Copy
            }
            Err(gap) => CopyVerdict::Refused(gap),
        };
        self.verdicts.insert(&facts.id, verdict);
    }

    /// Returns the base in the remote; `None` for a full.
    fn parent(&mut self, facts: &'a BackupFacts) -> Result<Option<BackupId>, CopyGap> {
        let Some(parent) = &facts.base else {
            return Ok(None);
        };
        let of = facts.id.clone();
        let remote = self.input.remote;
        if let Some(there) = remote.iter().find(|there| there.id == *parent) {
            return match there.flaw.clone() {
                None => Ok(Some(parent.clone())),
                Some(flaw) => Err(CopyGap::DamagedParent {
                    of,
                    parent: parent.clone(),
                    flaw,
                }),
            };
        }
        let mut twins = remote
            .iter()
            .filter(|there| facts_stand_in_as_base(facts, parent, there));
        if let Some(twin) = twins.find(|twin| twin.is_usable()) {
            return Ok(Some(twin.id.clone()));
        }
        let Some(base) = self.local.get(parent).copied() else {
            return Err(match self.input.pruned.contains(parent) {
                true => CopyGap::PrunedParent {
                    of,
                    parent: parent.clone(),
                },
                false => CopyGap::MissingParent {
                    of,
                    parent: parent.clone(),
                },
            });
        };
        self.decide(base);
        if let Some(CopyVerdict::Left(LeftReason::WouldBePruned)) = self.verdicts.get(parent) {
            self.demand(base);
        }
        let parent = parent.clone();
        match self.verdicts.get(&parent) {
            Some(CopyVerdict::Copy | CopyVerdict::Left(LeftReason::Committed)) => Ok(Some(parent)),
            Some(CopyVerdict::Left(LeftReason::Twin { of })) => Ok(Some(of.clone())),
            Some(CopyVerdict::Left(LeftReason::Pruned)) => {
                Err(CopyGap::PrunedParent { of, parent })
            }
            _ => Err(CopyGap::ParentNotCopied { of, parent }),
        }
    }
}

#[cfg(test)]
mod tests;
