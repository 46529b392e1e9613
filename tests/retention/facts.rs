//! [`Shelf`]: backups of one dataset, told apart by labels such as `F1` and `i3`, where the number
//! is the createtxg.

use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use zfs_backup::config::RetentionRules;
use zfs_backup::manifest::{Origin, SnapshotRef};
use zfs_backup::model::{BackupId, BackupKind, Digest, Guid};
use zfs_backup::plan::BackupFacts;
use zfs_backup::plan::clock::ClockDoubt;
use zfs_backup::plan::prune::{
    Leftover, Live, Lock, OtherPrune, PruneInput, PrunePlan, Pruned, SecondaryFacts, StartedFact,
    plan_prune,
};
use zfs_backup::plan::timeline::PoolView;

pub(crate) fn at(text: &str) -> Timestamp {
    match text.len() {
        10 => format!("{text}T12:00:00Z").parse().unwrap(),
        _ => text.parse().unwrap(),
    }
}

pub(crate) fn origin(dataset: u64) -> Origin {
    Origin {
        dataset_guid: Guid(dataset),
        pool_guid: Guid(77),
    }
}

/// Backups, and everything that a prune looks at besides.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    pub(crate) facts: Vec<BackupFacts>,
    pub(crate) leftovers: Vec<Leftover>,
    pub(crate) rules: RetentionRules,
    pub(crate) now: Timestamp,
    pub(crate) store_clock: Option<Timestamp>,
    pub(crate) clock: Option<ClockDoubt>,
    pub(crate) other_prune: Option<OtherPrune>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) pool: Option<PoolView>,
    pub(crate) pruned: BTreeMap<BackupId, Pruned>,
    pub(crate) waiting: Vec<BackupFacts>,
    pub(crate) waiting_attempts: Vec<Leftover>,
    pub(crate) never_committing: BTreeSet<BackupId>,
    pub(crate) locks: BTreeMap<BackupId, Lock>,
    pub(crate) live: Option<Live>,
}

impl Shelf {
    pub(crate) fn new(now: &str) -> Self {
        Self {
            facts: Vec::new(),
            leftovers: Vec::new(),
            rules: RetentionRules::default(),
            now: at(now),
            store_clock: Some(at(now)),
            clock: None,
            other_prune: None,
            origins: vec![origin(1)],
            pool: None,
            pruned: BTreeMap::new(),
            waiting: Vec::new(),
            waiting_attempts: Vec::new(),
            never_committing: BTreeSet::new(),
            locks: BTreeMap::new(),
            live: None,
        }
    }

    pub(crate) fn add(&mut self, txg: u64, time: &str, base: Option<&BackupId>) -> BackupId {
        let kind = if base.is_some() {
            BackupKind::Incr
        } else {
            BackupKind::Full
        };
        let id = BackupId::new(at(time), kind, Guid(txg), txg);
        let before = base.map(|base| self.get(base).clone());
        self.facts.push(BackupFacts {
            manifest_blake3: Digest::of(id.as_str().as_bytes()),
            snapshot: SnapshotRef {
                guid: Guid(txg),
                createtxg: txg,
                created_at: at(time),
            },
            base: base.cloned(),
            full_id: before
                .as_ref()
                .map_or_else(|| id.clone(), |before| before.full_id.clone()),
            position: before.as_ref().map_or(0, |before| before.position + 1),
            origin: origin(1),
            made: Default::default(),
            requested: vec!["compressed".to_owned()],
            recipients: Vec::new(),
            stream_bytes: 100,
            stored_bytes: 110,
            flaw: None,
            id: id.clone(),
        });
        id
    }

    pub(crate) fn full(&mut self, txg: u64, time: &str) -> BackupId {
        self.add(txg, time, None)
    }

    pub(crate) fn incr(&mut self, txg: u64, time: &str, base: &BackupId) -> BackupId {
        self.add(txg, time, Some(base))
    }

    /// An attempt with a signed `started.json`, whose newest object is of that time.
    pub(crate) fn attempt(&mut self, txg: u64, newest: &str, base: Option<&BackupId>) -> BackupId {
        let kind = if base.is_some() {
            BackupKind::Incr
        } else {
            BackupKind::Full
        };
        let id = BackupId::new(at(newest), kind, Guid(txg), 0xa000 + txg);
        self.leftovers.push(Leftover {
            id: id.clone(),
            objects: 3,
            bytes: 1000,
            newest: Some(at(newest)),
            was_committed: false,
            versions_unseen: None,
            untrusted: None,
            started: StartedFact::Signed {
                base: base.cloned(),
                origin: origin(1),
            },
        });
        id
    }

    pub(crate) fn leftover(&mut self, id: &BackupId) -> &mut Leftover {
        self.leftovers
            .iter_mut()
            .find(|leftover| leftover.id == *id)
            .unwrap()
    }

    pub(crate) fn get(&self, id: &BackupId) -> &BackupFacts {
        self.facts.iter().find(|backup| backup.id == *id).unwrap()
    }

    pub(crate) fn get_mut(&mut self, id: &BackupId) -> &mut BackupFacts {
        self.facts
            .iter_mut()
            .find(|backup| backup.id == *id)
            .unwrap()
    }

    /// As a listing would: it and what follows from it are not usable.
    pub(crate) fn damage(&mut self, id: &BackupId) {
        let mut broken = vec![id.clone()];
        while let Some(id) = broken.pop() {
            self.get_mut(&id).flaw = Some("chunk 3 is missing".to_owned());
            broken.extend(
                self.facts
                    .iter()
                    .filter(|other| other.base.as_ref() == Some(&id))
                    .map(|other| other.id.clone()),
            );
        }
    }

    pub(crate) fn record(&mut self, id: &BackupId, recorded_at: &str) {
        let manifest_blake3 = Some(Digest::of(id.as_str().as_bytes()));
        self.pruned.insert(
            id.clone(),
            Pruned {
                recorded_at: at(recorded_at),
                manifest_blake3,
            },
        );
    }

    pub(crate) fn plan(&self) -> PrunePlan {
        self.plan_beside(SecondaryFacts::Nothing)
    }

    pub(crate) fn plan_beside(&self, secondary: SecondaryFacts<'_>) -> PrunePlan {
        plan_prune(&PruneInput {
            facts: &self.facts,
            leftovers: &self.leftovers,
            secondary,
            rules: &self.rules,
            now: self.now,
            store_clock: self.store_clock,
            clock: self.clock.as_ref(),
            other_prune: self.other_prune.as_ref(),
            origins: &self.origins,
            pool: self.pool.as_ref(),
            pruned: &self.pruned,
            waiting: &self.waiting,
            waiting_attempts: &self.waiting_attempts,
            never_committing: &self.never_committing,
            resume_days: 14,
            locks: &self.locks,
            live: self.live.as_ref(),
        })
    }

    /// Whoever decides must decide the same from the same backups in another order.
    pub(crate) fn reversed(&self) -> Self {
        let mut other = self.clone();
        other.facts.reverse();
        other
    }
}

/// `F10` or `i11`.
pub(crate) fn label(id: &BackupId) -> String {
    let letter = if id.kind() == BackupKind::Full {
        'F'
    } else {
        'i'
    };
    format!("{letter}{}", id.snapshot_guid().0)
}

pub(crate) fn labels<'a>(ids: impl IntoIterator<Item = &'a BackupId>) -> String {
    ids.into_iter().map(label).collect::<Vec<_>>().join(" ")
}

pub(crate) fn deleted(plan: &PrunePlan) -> String {
    labels(plan.delete.iter().map(|doomed| &doomed.id))
}

pub(crate) fn kept(plan: &PrunePlan) -> String {
    labels(plan.keep.iter().map(|kept| &kept.id))
}

pub(crate) fn reasons(plan: &PrunePlan, id: &BackupId) -> String {
    let kept = plan.keep.iter().find(|kept| kept.id == *id).unwrap();
    kept.reasons
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

pub(crate) fn doubts(plan: &PrunePlan) -> Vec<String> {
    plan.doubts.iter().map(ToString::to_string).collect()
}
