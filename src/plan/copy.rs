//! [`plan_copy`]: which backups of the intermediate directory go to the remote, in which order, and
//! why others do not.

use super::BackupFacts;
use super::retention::{chains_newest_first, decide_retention, in_order};
use super::twin::{are_twins, facts_stand_in_as_base};
use crate::config::RetentionRules;
use crate::model::BackupId;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of both stores.
pub struct CopyInput<'a> {
    /// The backups of the intermediate directory, oldest first.
    pub local: &'a [BackupFacts],
    /// The backups of the remote, with their flaws.
    pub remote: &'a [BackupFacts],
    /// Ids that have a manifest in the remote which is not believed.
    pub disbelieved: &'a BTreeSet<BackupId>,
    /// Ids whose deletion from the remote a signed prune record explains.
    pub pruned: &'a BTreeSet<BackupId>,
    /// What the rules of the remote would delete at once.
    pub would_be_pruned: &'a BTreeSet<BackupId>,
    /// Copy both all the same.
    pub all: bool,
}

/// Why a backup needs not be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeftReason {
    /// It is there.
    #[error("is in the remote")]
    Committed,
    /// An identical one is there.
    #[error("{of} in the remote is identical")]
    Twin {
        /// Its id.
        of: BackupId,
    },
    /// It was there and was pruned.
    #[error("was pruned in the remote")]
    Pruned,
    /// The rules would delete it at once.
    #[error("[lifecycle-remote] would delete it at once")]
    WouldBePruned,
}

/// Why a backup cannot be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyGap {
    /// Its base is nowhere.
    #[error(
        "{of} follows from {parent}, which is neither in the intermediate directory nor in the remote"
    )]
    MissingParent {
        /// The backup.
        of: BackupId,
        /// Its base.
        parent: BackupId,
    },
    /// Its base was pruned in the remote, and is not copied again unasked.
    #[error("{of} follows from {parent}, which was pruned in the remote")]
    PrunedParent {
        /// The backup.
        of: BackupId,
        /// Its base.
        parent: BackupId,
    },
    /// Its base is in the remote and cannot be restored there: nothing may be built on it.
    #[error("{of} follows from {parent}, which is damaged in the remote: {flaw}")]
    DamagedParent {
        /// The backup.
        of: BackupId,
        /// Its base.
        parent: BackupId,
        /// What is wrong with it.
        flaw: String,
    },
    /// Its base cannot be copied.
    #[error("{of} follows from {parent}, which cannot be copied")]
    ParentNotCopied {
        /// The backup.
        of: BackupId,
        /// Its base.
        parent: BackupId,
    },
    /// The remote has something else under its id.
    #[error("the remote has another manifest under the id {id}")]
    Differs {
        /// The id.
        id: BackupId,
    },
}

impl CopyGap {
    /// Whether stored data is damaged: exit status 4.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::DamagedParent { .. } | Self::Differs { .. })
    }
}

/// One backup to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    /// Its id.
    pub id: BackupId,
    /// What it will follow from in the remote: its base, or a twin of that. It must still be there
    /// at the commit.
    pub parent: Option<BackupId>,
}

/// What to do with each backup of the intermediate directory; each stands in exactly one list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CopyPlan {
    /// To be copied, parents first, else oldest first.
    pub copy: Vec<CopyStep>,
    /// Not needed there.
    pub left: Vec<(BackupId, LeftReason)>,
    /// Cannot be copied, or not without being asked.
    pub refused: Vec<(BackupId, CopyGap)>,
}

/// Decides for each backup of the intermediate directory. What a copied one follows from is copied
/// too, also when the rules alone would leave it.
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
            Some(Verdict::Left(reason)) => plan.left.push((facts.id.clone(), reason)),
            Some(Verdict::Refused(gap)) => plan.refused.push((facts.id.clone(), gap)),
            Some(Verdict::Copy) | None => {}
        }
    }
    plan
}

/// Backups of the directory that the rules would delete from the remote as soon as they were there:
/// what no rule keeps of all of them together, and is not of the newest usable chain, which always
/// stays.
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
    let of_newest = |id: &BackupId| {
        together
            .iter()
            .any(|facts| facts.id == *id && Some(&facts.full_id) == newest_chain.as_ref())
    };
    let verdicts = decide_retention(&together, rules, now).into_iter();
    let deleted = verdicts
        .filter(|verdict| !verdict.keep && !of_newest(&verdict.id))
        .map(|verdict| verdict.id);
    deleted
        .filter(|id| new.iter().any(|facts| facts.id == *id))
        .collect()
}

#[derive(Clone)]
enum Verdict {
    Copy,
    Left(LeftReason),
    Refused(CopyGap),
}

struct Planner<'a> {
    input: &'a CopyInput<'a>,
    local: BTreeMap<&'a BackupId, &'a BackupFacts>,
    verdicts: BTreeMap<&'a BackupId, Verdict>,
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

    /// What is clear without a look at the base.
    fn standing(&self, facts: &BackupFacts) -> Option<Verdict> {
        let CopyInput {
            remote,
            disbelieved,
            pruned,
            would_be_pruned,
            all,
            ..
        } = *self.input;
        let id = &facts.id;
        if let Some(there) = remote.iter().find(|there| there.id == *id) {
            return Some(match there.manifest_blake3 == facts.manifest_blake3 {
                true => Verdict::Left(LeftReason::Committed),
                false => Verdict::Refused(CopyGap::Differs { id: id.clone() }),
            });
        }
        if disbelieved.contains(id) {
            return Some(Verdict::Refused(CopyGap::Differs { id: id.clone() }));
        }
        if let Some(twin) = remote
            .iter()
            .find(|there| there.is_usable() && are_twins(there, facts))
        {
            return Some(Verdict::Left(LeftReason::Twin {
                of: twin.id.clone(),
            }));
        }
        match () {
            () if all => None,
            () if pruned.contains(id) => Some(Verdict::Left(LeftReason::Pruned)),
            () if would_be_pruned.contains(id) => Some(Verdict::Left(LeftReason::WouldBePruned)),
            () => None,
        }
    }

    /// It is to be copied: so is what it follows from, unless the remote has it.
    fn demand(&mut self, facts: &'a BackupFacts) {
        // A chain that leads back to itself finds this verdict and ends.
        let circle = CopyGap::ParentNotCopied {
            of: facts.id.clone(),
            parent: facts.id.clone(),
        };
        self.verdicts.insert(&facts.id, Verdict::Refused(circle));
        let verdict = match self.parent(facts) {
            Ok(parent) => {
                self.order.push(CopyStep {
                    id: facts.id.clone(),
                    parent,
                });
                Verdict::Copy
            }
            Err(gap) => Verdict::Refused(gap),
        };
        self.verdicts.insert(&facts.id, verdict);
    }

    /// What it will follow from in the remote; none for a full.
    fn parent(&mut self, facts: &'a BackupFacts) -> Result<Option<BackupId>, CopyGap> {
        let Some(parent) = &facts.base else {
            return Ok(None);
        };
        let (of, remote) = (facts.id.clone(), self.input.remote);
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
        if let Some(Verdict::Left(LeftReason::WouldBePruned)) = self.verdicts.get(parent) {
            self.demand(base);
        }
        let parent = parent.clone();
        match self.verdicts.get(&parent) {
            Some(Verdict::Copy | Verdict::Left(LeftReason::Committed)) => Ok(Some(parent)),
            Some(Verdict::Left(LeftReason::Twin { of })) => Ok(Some(of.clone())),
            Some(Verdict::Left(LeftReason::Pruned)) => Err(CopyGap::PrunedParent { of, parent }),
            _ => Err(CopyGap::ParentNotCopied { of, parent }),
        }
    }
}

#[cfg(test)]
mod tests;
