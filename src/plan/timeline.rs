//! Time lines: whether all backups of an origin come from one continuing pool, or from two.
//!
//! A cloned machine, a pool copied block by block and a pool rewound to a checkpoint have the guids
//! of the original. Their backups have one origin and are of two time lines. These facts
//! distinguish them:
//!
//! - **The tree.** A manifest names its base, and the newest backups whose snapshots its pool knew
//!   ([`Making::previous`](super::Making)). A backup that was stored by then and is no ancestor was
//!   *skipped*: the pool did not know its snapshot.
//! - **The pool**, where it can be asked: which snapshots and bookmarks it has. The newest backup
//!   of a pool is always one of them, and so is the base of its next one. Each backup that the pool
//!   forgets was named by a later one before.
//! - **The host marks**, where only the store can be asked.
//! - **Times against transaction groups**: in one time line both grow.
//!
//! A missing link is no evidence: a deleted backup may have been one, an old manifest names its
//! base only, and snapshots and bookmarks of older chains are destroyed in time. Where no link of
//! the pool's later backups is missing, a backup that the pool does not know is of another time
//! line.

use super::BackupFacts;
use crate::manifest::Origin;
use crate::model::{BackupId, Guid, HostMark};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The maximum number of ids in [`Making::previous`](super::Making).
const PREVIOUS_MAX: usize = 16;

/// The backups of one dataset that a pool knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    /// The dataset and the pool.
    pub origin: Origin,
    /// The guids of its snapshots and bookmarks.
    pub known: BTreeSet<Guid>,
    /// Backups of other time lines that a person adopted.
    pub adopted: BTreeSet<BackupId>,
}

/// A backup of a pool's origin that is not of its time line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray<'a> {
    /// The facts of the backup.
    pub backup: &'a BackupFacts,
    /// The evidence that the pool's time line does not contain the backup.
    pub why: StrayReason<'a>,
}

/// The evidence that a backup is not on a pool's time line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrayReason<'a> {
    /// The pool has neither its snapshot nor a bookmark of it, and has those of an older backup.
    Later {
        /// The newest backup that the pool knows.
        known: &'a BackupFacts,
    },
    /// A later backup of the pool does not follow from the backup.
    Skipped {
        /// The later backup of the pool, whose chain lacks the backup.
        by: &'a BackupFacts,
    },
    /// The pool has neither its snapshot nor a bookmark of it, and no later backup of the pool can
    /// follow from it.
    Unlinked,
}

impl fmt::Display for StrayReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later { known } => {
                write!(
                    f,
                    "the pool has neither its snapshot nor a bookmark of it, and the newest that \
                     the pool has is of {}",
                    known.id
                )
            }
            Self::Skipped { by } => {
                write!(f, "{} was made later and does not follow from it", by.id)
            }
            Self::Unlinked => f.write_str(
                "the pool has neither its snapshot nor a bookmark, and none of the pool's backups follows from it",
            ),
        }
    }
}

/// The backups of one snapshot.
struct Moment<'a> {
    /// The backup that represents them: the one with the greatest id.
    backup: &'a BackupFacts,
    all: Vec<&'a BackupFacts>,
    /// The snapshots that this one follows from, with the id of a backup of each.
    parents: BTreeMap<Guid, &'a BackupId>,
    bases: BTreeSet<Guid>,
    /// Whether the manifest of one of the backups says which backups its pool knew, perhaps none.
    names_previous: bool,
    /// Whether one of the backups has a level. A backup with a level builds on an older one although
    /// its pool knows newer ones.
    has_level: bool,
    begun_at: Timestamp,
    /// When the first of the backups was stored.
    stored_at: Timestamp,
    /// When the last of the backups was stored.
    last_stored_at: Timestamp,
}

impl<'a> Moment<'a> {
    fn new(backup: &'a BackupFacts) -> Self {
        Self {
            backup,
            all: Vec::new(),
            parents: BTreeMap::new(),
            bases: BTreeSet::new(),
            names_previous: false,
            has_level: false,
            begun_at: backup.made.started_at,
            stored_at: backup.made.finished_at,
            last_stored_at: backup.made.finished_at,
        }
    }

    fn add(&mut self, backup: &'a BackupFacts) {
        let previous = backup.made.previous.iter().flatten();
        let own = backup.snapshot.guid;
        let parents = backup
            .base
            .iter()
            .chain(previous)
            .map(|id| (id.snapshot_guid(), id));
        self.parents
            .extend(parents.filter(|(guid, _)| *guid != own));
        self.bases
            .extend(backup.base.as_ref().map(BackupId::snapshot_guid));
        self.names_previous |= backup.made.previous.is_some();
        self.has_level |= backup.made.level.is_some();
        self.begun_at = self.begun_at.min(backup.made.started_at);
        self.stored_at = self.stored_at.min(backup.made.finished_at);
        self.last_stored_at = self.last_stored_at.max(backup.made.finished_at);
        self.all.push(backup);
        if backup.id > self.backup.id {
            self.backup = backup;
        }
    }

    fn at(&self) -> Timestamp {
        self.backup.snapshot.created_at
    }

    fn is_of(&self, origin: &Origin) -> bool {
        self.all.iter().any(|backup| backup.origin == *origin)
    }

    fn hosts(&self) -> BTreeSet<&'a HostMark> {
        self.all
            .iter()
            .filter_map(|backup| backup.made.host.as_ref())
            .collect()
    }
}

/// The tree of all backups of a dataset's name, by the guids of their snapshots. Backups of one
/// snapshot are one node. The list has the same snapshots in the order of their times.
pub struct Timeline<'a>(BTreeMap<Guid, Moment<'a>>, Vec<(Timestamp, Guid)>);

impl<'a> Timeline<'a> {
    /// Builds the tree of all known backups, of any origin.
    pub fn new(facts: impl IntoIterator<Item = &'a BackupFacts>) -> Self {
        let mut moments: BTreeMap<Guid, Moment<'a>> = BTreeMap::new();
        for backup in facts {
            moments
                .entry(backup.snapshot.guid)
                .or_insert_with(|| Moment::new(backup))
                .add(backup);
        }
        let mut in_order: Vec<(Timestamp, Guid)> = moments
            .iter()
            .map(|(guid, moment)| (moment.at(), *guid))
            .collect();
        in_order.sort_unstable();
        Self(moments, in_order)
    }

    /// Returns the snapshots from which these follow, including these.
    fn line_of(&self, heads: impl IntoIterator<Item = Guid>) -> BTreeSet<Guid> {
        let mut line = BTreeSet::new();
        let mut waiting = heads.into_iter().collect::<Vec<_>>();
        while let Some(guid) = waiting.pop() {
            if line.insert(guid) {
                waiting.extend(
                    self.0
                        .get(&guid)
                        .into_iter()
                        .flat_map(|moment| moment.parents.keys().copied()),
                );
            }
        }
        line
    }

    /// Whether `one` follows from `other`, or holds the same snapshot.
    pub fn follows(&self, one: &BackupFacts, other: &BackupFacts) -> bool {
        self.line_of([one.snapshot.guid])
            .contains(&other.snapshot.guid)
    }

    /// Returns the backups of the pool's origin that are not of its time line, newest first. The
    /// list is empty when the pool knows no backup at all, because nothing then distinguishes the
    /// time lines.
    pub fn strays(&self, pool: &PoolView) -> Vec<Stray<'a>> {
        let known = self.line_of(
            self.0
                .keys()
                .copied()
                .filter(|guid| pool.known.contains(guid)),
        );
        if known.is_empty() {
            return Vec::new();
        }
        let is_adopted = |moment: &&Moment<'a>| {
            moment
                .all
                .iter()
                .any(|backup| pool.adopted.contains(&backup.id))
        };
        let adopted = self.line_of(
            self.0
                .values()
                .filter(is_adopted)
                .map(|moment| moment.backup.snapshot.guid),
        );
        let own = || self.0.values().filter(|moment| moment.is_of(&pool.origin));
        let here = || own().filter(|moment| pool.known.contains(&moment.backup.snapshot.guid));
        let newest =
            |key: fn(&Moment<'_>) -> (Timestamp, u64)| here().max_by_key(|moment| key(moment));
        let latest = newest(|moment| (moment.at(), moment.backup.snapshot.createtxg));
        let txg_max = here().map(|moment| moment.backup.snapshot.createtxg).max();
        let is_later = |moment: &Moment<'_>, latest: &Moment<'_>| {
            moment.at() > latest.at() || Some(moment.backup.snapshot.createtxg) > txg_max
        };
        let mut strays = Vec::new();
        for moment in own() {
            let guid = moment.backup.snapshot.guid;
            if known.contains(&guid) || adopted.contains(&guid) {
                continue;
            }
            let why = match latest.filter(|latest| is_later(moment, latest)) {
                Some(latest) => Some(StrayReason::Later {
                    known: latest.backup,
                }),
                None => self
                    .skipped_by(&known, &known, moment)
                    .map(|by| StrayReason::Skipped { by: by.backup })
                    .or_else(|| {
                        let is_unlinked = !self.may_lead_to(&known, moment);
                        is_unlinked.then_some(StrayReason::Unlinked)
                    }),
            };
            let of_own = moment
                .all
                .iter()
                .filter(|backup| backup.origin == pool.origin);
            strays.extend(
                why.into_iter()
                    .flat_map(|why| of_own.clone().map(move |backup| Stray { backup, why })),
            );
        }
        strays.sort_by_key(|stray| {
            std::cmp::Reverse((stray.backup.snapshot.created_at, stray.backup.id.clone()))
        });
        strays
    }

    /// Returns the newest of these backups, which are of one origin. The newest by transaction
    /// group and the newest by time must be one backup, or one must follow from the other; and
    /// there must be no other time line.
    ///
    /// # Errors
    /// Holds one candidate of each time line, when only a person can choose.
    pub fn newest(
        &self,
        candidates: &[&'a BackupFacts],
    ) -> Result<Option<&'a BackupFacts>, Vec<&'a BackupFacts>> {
        let by_txg = candidates
            .iter()
            .max_by_key(|backup| (backup.snapshot.createtxg, &backup.id));
        let by_time = candidates.iter().max_by_key(|backup| {
            (
                backup.snapshot.created_at,
                backup.snapshot.createtxg,
                &backup.id,
            )
        });
        let (Some(by_txg), Some(by_time)) = (by_txg.copied(), by_time.copied()) else {
            return Ok(None);
        };
        let head = match (self.follows(by_txg, by_time), self.follows(by_time, by_txg)) {
            (true, _) => by_txg,
            (false, true) => by_time,
            (false, false) => return Err(vec![by_time, by_txg]),
        };
        let forks = self.forks(head, candidates);
        if forks.is_empty() {
            Ok(Some(head))
        } else {
            Err([vec![head], forks].concat())
        }
    }

    /// Returns the candidates that are of another time line than `head`: the newest of each host.
    pub fn forks(
        &self,
        head: &BackupFacts,
        candidates: &[&'a BackupFacts],
    ) -> Vec<&'a BackupFacts> {
        let line = self.line_of([head.snapshot.guid]);
        let mut newest: BTreeMap<Option<&HostMark>, &'a BackupFacts> = BTreeMap::new();
        for backup in candidates
            .iter()
            .filter(|backup| !line.contains(&backup.snapshot.guid))
        {
            let Some(missed) = self.0.get(&backup.snapshot.guid) else {
                continue;
            };
            let Some(by) = self.skipped_by(&line, &line, missed) else {
                continue;
            };
            let one = by.hosts();
            let other = missed.hosts();
            let are_two_hosts = !one.is_empty() && !other.is_empty() && one.is_disjoint(&other);
            if are_two_hosts || self.skips_any_of(missed, &line) {
                let known = newest.entry(backup.made.host.as_ref()).or_insert(backup);
                if (known.snapshot.created_at, &known.id) < (backup.snapshot.created_at, &backup.id)
                {
                    *known = backup;
                }
            }
        }
        let mut newest: Vec<&BackupFacts> = newest.into_values().collect();
        newest.sort_by_key(|backup| std::cmp::Reverse((backup.snapshot.created_at, &backup.id)));
        newest
    }

    /// Whether a moment that leads to `moment` and is not on the line skipped a moment of the line:
    /// then both lines continued. A single skipped moment is no second time line: its bookmark may
    /// have been destroyed, or its backup may have waited in another store.
    fn skips_any_of(&self, moment: &Moment<'a>, line: &BTreeSet<Guid>) -> bool {
        let theirs = self.line_of([moment.backup.snapshot.guid]);
        let theirs_alone: BTreeSet<Guid> = theirs.difference(line).copied().collect();
        let ours_alone = line.difference(&theirs).filter_map(|guid| self.0.get(guid));
        ours_alone
            .into_iter()
            .any(|missed| self.skipped_by(&theirs, &theirs_alone, missed).is_some())
    }

    /// Returns the first of `later` that was begun after `missed` was stored and shows that its
    /// pool did not know `missed`. `missed` is not of the line, `later` is.
    ///
    /// A backup shows it when nothing that it names leads past `missed`: each named backup is older
    /// than `missed`, or shows the same. The two hosts of a cloned machine often work at the same
    /// hour. Then the first backup that is newer than `missed` was begun before `missed` was stored
    /// and proves nothing by itself, and its successors do.
    fn skipped_by(
        &self,
        line: &BTreeSet<Guid>,
        later: &BTreeSet<Guid>,
        missed: &Moment<'a>,
    ) -> Option<&Moment<'a>> {
        let fork = self.bases_of(missed).find(|guid| line.contains(guid));
        let first = self.1.partition_point(|(at, _)| *at <= missed.at());
        let mut ignorant = BTreeSet::new();
        for (_, guid) in self.1[first..]
            .iter()
            .filter(|(_, guid)| later.contains(guid))
        {
            let Some(moment) = self.0.get(guid) else {
                continue;
            };
            let jumps = self.jumps_over(moment, missed, &ignorant);
            if jumps {
                ignorant.insert(*guid);
            }
            let branches_off = || fork.is_some_and(|fork| self.branches_off(moment, fork));
            if moment.begun_at >= missed.stored_at && (jumps || branches_off()) {
                return Some(moment);
            }
        }
        None
    }

    /// Returns whether a moment of the line may follow from `earlier`, which is not of the line,
    /// over a link that is missing. Such a moment was stored later. Its manifests are old, or name
    /// a backup that is gone and newer than `earlier`.
    ///
    /// All links of the other moments are known. A pool that knew `earlier` when it was stored
    /// knows it still, because it forgets a backup only after a later one named it.
    fn may_lead_to(&self, line: &BTreeSet<Guid>, earlier: &Moment<'a>) -> bool {
        let names_gone = |moment: &Moment<'_>| {
            moment
                .parents
                .iter()
                .any(|(guid, id)| !self.0.contains_key(guid) && id.is_after(earlier.at()))
        };
        line.iter()
            .filter_map(|guid| self.0.get(guid))
            .filter(|moment| moment.last_stored_at > earlier.stored_at)
            .any(|moment| !moment.names_previous || names_gone(moment))
    }

    /// Returns whether each backup that `later` names is older than `missed` or in `ignorant`.
    fn jumps_over(
        &self,
        later: &Moment<'a>,
        missed: &Moment<'a>,
        ignorant: &BTreeSet<Guid>,
    ) -> bool {
        let leads_past = |(guid, id): (&Guid, &&BackupId)| match self.0.get(guid) {
            Some(parent) => parent.at() > missed.at() && !ignorant.contains(guid),
            None => id.is_after(missed.at()),
        };
        later.names_previous && !later.parents.iter().any(leads_past)
    }

    /// Whether a moment follows from `fork` by its bases, and the one that builds on `fork` has no
    /// level: its pool then knew no newer backup.
    fn branches_off(&self, moment: &Moment<'a>, fork: Guid) -> bool {
        let bases = self.bases_of(moment).collect::<Vec<_>>();
        let Some(place) = bases.iter().position(|base| *base == fork) else {
            return false;
        };
        let child = place
            .checked_sub(1)
            .and_then(|before| self.0.get(&bases[before]));
        !child.unwrap_or(moment).has_level
    }

    /// Returns the snapshots from which the moment follows by its base, the nearest first.
    fn bases_of(&self, moment: &Moment<'a>) -> impl Iterator<Item = Guid> {
        let mut seen = BTreeSet::new();
        std::iter::successors(moment.bases.first().copied(), |guid| {
            self.0.get(guid)?.bases.first().copied()
        })
        .take_while(move |guid| seen.insert(*guid))
    }
}

/// Returns the [`Making::previous`](super::Making) of a new backup of `snapshot`: the newest
/// backups that the pool knows or that were adopted, without those from which another one of them
/// follows.
pub fn previous_of(facts: &[BackupFacts], pool: &PoolView, snapshot: Guid) -> Vec<BackupId> {
    let timeline = Timeline::new(facts);
    let is_known = |moment: &&Moment<'_>| {
        let is_adopted = moment
            .all
            .iter()
            .any(|backup| pool.adopted.contains(&backup.id));
        moment.backup.snapshot.guid != snapshot
            && (is_adopted || pool.known.contains(&moment.backup.snapshot.guid))
    };
    let known: Vec<&Moment<'_>> = timeline.0.values().filter(is_known).collect();
    let followed = timeline.line_of(
        known
            .iter()
            .flat_map(|moment| moment.parents.keys().copied()),
    );
    let mut newest: Vec<&BackupFacts> = known.into_iter().map(|moment| moment.backup).collect();
    newest.retain(|backup| !followed.contains(&backup.snapshot.guid));
    newest.sort_by_key(|backup| std::cmp::Reverse((backup.snapshot.created_at, &backup.id)));
    newest.truncate(PREVIOUS_MAX);
    newest.into_iter().map(|backup| backup.id.clone()).collect()
}

#[cfg(test)]
mod tests;
