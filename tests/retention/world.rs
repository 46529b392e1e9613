//! [`World`]: a dataset that the real planner backs up night after night, and whose store the real
//! rules prune. Snapshots are destroyed as soon as they are stored: bookmarks alone are the bases.

use crate::facts::{Shelf, origin};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use zfs_backup::config::KeepLevels;
use zfs_backup::model::{BackupId, BackupKind, Digest, Guid};
use zfs_backup::plan::BackupFacts;
use zfs_backup::plan::bookmarks::{BOOKMARK_PREFIX, BookmarkNeeds, spent_bookmarks};
use zfs_backup::plan::prune::PrunePlan;
use zfs_backup::plan::send::{
    LifecycleRules, RequestedKind, SendConflict, SendFacts, SendPlan, plan_send,
};
use zfs_backup::plan::timeline::{PoolView, previous_of};
use zfs_backup::zfs::{Bookmark, Snapshot};

/// The rules of a configuration without `[backup-lifecycle]`, and with no limit for fulls.
pub(crate) const LIFECYCLE: LifecycleRules = LifecycleRules {
    incrementals_percent_max: 10_000,
    full_age_max: None,
    incrementals_max: None,
    auto_full_bytes_max: u64::MAX,
    levels: None,
};

/// A pool with one dataset, and its store.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) shelf: Shelf,
    pub(crate) lifecycle: LifecycleRules,
    pub(crate) bookmarks: Vec<Bookmark>,
    /// Whether backups name earlier ones and a prune asks the pool. Both take time.
    pub(crate) has_time_lines: bool,
    /// The backups with a missing or damaged object of their own.
    pub(crate) damaged: BTreeSet<BackupId>,
    /// The snapshots of pruned backups, which the prune records name.
    pruned: BTreeSet<Guid>,
    /// The number of the newest snapshot: its transaction group and its guid.
    pub(crate) number: u64,
}

impl World {
    pub(crate) fn new(lifecycle: LifecycleRules) -> Self {
        let mut shelf = Shelf::new("2024-01-01");
        shelf.rules.levels = lifecycle.levels.map(|levels| levels.keep);
        Self {
            shelf,
            lifecycle,
            bookmarks: Vec::new(),
            has_time_lines: true,
            damaged: BTreeSet::new(),
            pruned: BTreeSet::new(),
            number: 0,
        }
    }

    pub(crate) fn keep(&self) -> Option<KeepLevels> {
        self.lifecycle.levels.map(|levels| levels.keep)
    }

    fn snapshot(&self, number: u64, at: Timestamp) -> Snapshot {
        Snapshot {
            name: format!("t/a@s{number}").parse().unwrap(),
            guid: Guid(number),
            createtxg: number,
            created_at: at,
            referenced_bytes: 0,
            used_bytes: 0,
            holds: 0,
            clones: 0,
            redacted: false,
            user_properties: BTreeMap::new(),
        }
    }

    fn pool(&self) -> PoolView {
        PoolView {
            origin: origin(1),
            known: self
                .bookmarks
                .iter()
                .map(|bookmark| bookmark.guid)
                .collect(),
            adopted: BTreeSet::new(),
        }
    }

    /// The plan for a snapshot that is taken at that time.
    pub(crate) fn plan_backup(&self, at: Timestamp) -> Result<SendPlan, SendConflict> {
        let snapshots = [self.snapshot(self.number + 1, at)];
        let facts = SendFacts {
            snapshot: snapshots.first(),
            redacted_dataset: None,
            snapshots: &snapshots,
            bookmarks: &self.bookmarks,
            target: &self.shelf.facts,
            remote: &[],
            unseen: None,
            unfit_bases: &BTreeSet::new(),
            flags: &["compressed".to_owned()],
            recipients: &[],
            full_estimate_bytes: Some(1),
            now: at,
        };
        plan_send(&facts, &self.lifecycle, RequestedKind::Lifecycle)
    }

    /// Backs up a new snapshot. `bytes` returns the length of its stream from the base.
    pub(crate) fn back_up(
        &mut self,
        at: Timestamp,
        bytes: impl Fn(Option<&BackupFacts>) -> u64,
    ) -> SendPlan {
        let plan = self.plan_backup(at).unwrap();
        self.number += 1;
        let (base, level) = match &plan {
            SendPlan::Full { level, .. } => (None, *level),
            SendPlan::Incremental { backup, level, .. } => (Some(&**backup), *level),
            SendPlan::UpToDate { id } | SendPlan::Unchanged { id, .. } => {
                panic!("{id} needs no backup")
            }
        };
        let stored_bytes = bytes(base);
        let kind = match base {
            Some(_) => BackupKind::Incr,
            None => BackupKind::Full,
        };
        let snapshot = self.snapshot(self.number, at);
        let id = BackupId::new(at, kind, snapshot.guid, self.number);
        let template = match base {
            Some(base) => base.clone(),
            None => self.first_facts(&id),
        };
        let mut facts = BackupFacts {
            manifest_blake3: Digest::of(id.as_str().as_bytes()),
            base: base.map(|base| base.id.clone()),
            position: base.map_or(0, |base| base.position + 1),
            stream_bytes: stored_bytes,
            stored_bytes,
            ..template
        };
        facts.snapshot.guid = snapshot.guid;
        facts.snapshot.createtxg = snapshot.createtxg;
        facts.snapshot.created_at = at;
        facts.made.previous = self
            .has_time_lines
            .then(|| previous_of(&self.shelf.facts, &self.pool(), snapshot.guid));
        facts.made.level = level;
        (facts.made.started_at, facts.made.finished_at) = (at, at);
        facts.id = id;
        self.shelf.facts.push(facts);
        self.bookmarks.push(Bookmark {
            name: format!("t/a#{BOOKMARK_PREFIX}{}", snapshot.guid)
                .parse()
                .unwrap(),
            guid: snapshot.guid,
            createtxg: snapshot.createtxg,
            created_at: at,
            redacted: false,
            ivset_guid: None,
        });
        self.release_bookmarks();
        plan
    }

    fn first_facts(&self, id: &BackupId) -> BackupFacts {
        let mut shelf = Shelf::new("2024-01-01");
        shelf.full(1, "2024-01-01");
        let first = shelf.facts.remove(0);
        BackupFacts {
            full_id: id.clone(),
            ..first
        }
    }

    fn release_bookmarks(&mut self) {
        let needs = BookmarkNeeds {
            stores: vec![self.shelf.facts.clone()],
            levels: self.keep(),
            pruned: self.pruned.clone(),
            ..BookmarkNeeds::default()
        };
        let spent = spent_bookmarks(&self.bookmarks, &needs);
        self.bookmarks
            .retain(|bookmark| !spent.contains(&bookmark.name));
    }

    /// Plans a prune at that time by this host's clock and by the store's.
    pub(crate) fn plan_prune(&mut self, at: Timestamp, store_clock: Timestamp) -> PrunePlan {
        self.shelf.now = at;
        self.shelf.store_clock = Some(store_clock);
        self.shelf.pool = self.has_time_lines.then(|| self.pool());
        self.shelf.plan()
    }

    /// Prunes, and returns the plan that was carried out.
    pub(crate) fn prune(&mut self, at: Timestamp, store_clock: Timestamp) -> PrunePlan {
        let plan = self.plan_prune(at, store_clock);
        let doomed: BTreeSet<BackupId> = plan.doomed_ids().into_iter().cloned().collect();
        self.pruned
            .extend(doomed.iter().map(BackupId::snapshot_guid));
        self.shelf
            .facts
            .retain(|backup| !doomed.contains(&backup.id));
        plan
    }

    /// Takes a backup out of the store without a record.
    pub(crate) fn lose(&mut self, id: &BackupId) {
        self.shelf.facts.retain(|backup| backup.id != *id);
        self.note_flaws();
    }

    /// Notes for each backup whether it and all its ancestors are there and whole.
    pub(crate) fn note_flaws(&mut self) {
        let usable: BTreeSet<BackupId> = self.usable();
        for backup in &mut self.shelf.facts {
            backup.flaw = (!usable.contains(&backup.id)).then(|| "lost".to_owned());
        }
    }

    /// The backups that restore: each ancestor is there and whole.
    pub(crate) fn usable(&self) -> BTreeSet<BackupId> {
        let mut usable: BTreeSet<BackupId> = BTreeSet::new();
        // A base has a smaller transaction group.
        let mut ordered: Vec<&BackupFacts> = self.shelf.facts.iter().collect();
        ordered.sort_by_key(|backup| backup.snapshot.createtxg);
        for backup in ordered {
            let has_base = backup
                .base
                .as_ref()
                .is_none_or(|base| usable.contains(base));
            if has_base && !self.damaged.contains(&backup.id) {
                usable.insert(backup.id.clone());
            }
        }
        usable
    }
}

pub(crate) fn after(at: Timestamp, hours: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_hours(hours)).unwrap()
}
