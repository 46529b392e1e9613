//! [`plan_snapshots`]: which of this tool's own snapshots may be destroyed.
//!
//! A snapshot is needed while it is young, while it is held, while it is the newest and not stored
//! everywhere, while an unfinished upload reads it or builds on it, and while the next incremental
//! starts from it and no bookmark could.

use super::BackupFacts;
use super::clock::ClockDoubt;
use super::prune::StartedFact;
use super::retention::in_order;
use crate::model::{BackupId, BackupKind, Guid, SnapshotName};
use crate::zfs::{Bookmark, Snapshot};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::fmt;

/// The short name of the bookmark that stands in for a snapshot, by its guid.
pub fn bookmark_name(snapshot: Guid) -> String {
    format!("zfs-backup_{snapshot}")
}

/// What one configured store holds of the dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreView {
    /// The store, for people.
    pub store: String,
    /// Its whole backups.
    pub facts: Vec<BackupFacts>,
    /// The attempts without a valid manifest that this pool or a journal of this host knows, with
    /// the facts of their first objects. Other attempts in the store say nothing about this pool,
    /// because a run holds its snapshots and writes its journal before it puts the first object.
    pub attempts: Vec<(BackupId, StartedFact)>,
}

/// Why a snapshot stays or goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotReason {
    /// Not older than the configuration says.
    Young,
    /// Held, by a backup or by somebody else.
    Held,
    /// The newest own snapshot, and that store does not hold it whole.
    NotStored {
        /// The store.
        store: String,
    },
    /// The newest own snapshot, and no store was asked.
    NoStore,
    /// The next incremental starts from it, and there is no bookmark of it.
    NextBase {
        /// The store whose next incremental that is.
        store: String,
    },
    /// Only bookmarks are to be kept, and there is none of it.
    NoBookmark,
    /// An unfinished upload needs it.
    UnfinishedUpload {
        /// The attempt.
        id: BackupId,
    },
    /// The base of an unfinished upload of this host is unknown, so the upload may need this
    /// snapshot.
    UploadUnknown {
        /// The attempt.
        id: BackupId,
    },
    /// The snapshot looks old, but by a doubtful clock.
    ClockDoubtful(ClockDoubt),
    /// The snapshot has this tool's mark but another name: a person's, or one with an earlier
    /// `snapshot_prefix`.
    NotOurName {
        /// The prefix of the names of own snapshots.
        prefix: String,
    },
    /// Nothing needs it any more.
    Old,
}

impl fmt::Display for SnapshotReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Young => f.write_str("young"),
            Self::Held => f.write_str("held"),
            Self::NotStored { store } => write!(f, "newest, and {store} does not hold it yet"),
            Self::NoStore => f.write_str("newest, and no store is configured"),
            Self::NextBase { store } => {
                write!(
                    f,
                    "the next incremental in {store} starts from it, and it has no bookmark"
                )
            }
            Self::NoBookmark => f.write_str("no bookmark stands in for it"),
            Self::UnfinishedUpload { id } => write!(f, "the unfinished upload {id} needs it"),
            Self::UploadUnknown { id } => {
                write!(
                    f,
                    "the unfinished upload {id} may need it: its started.json is missing or untrusted"
                )
            }
            Self::ClockDoubtful(doubt) => write!(f, "{doubt}"),
            Self::NotOurName { prefix } => {
                write!(
                    f,
                    "marked as own, but its name is not {prefix}TIME: destroy it by hand if it is not needed"
                )
            }
            Self::Old => f.write_str("old, and nothing needs it"),
        }
    }
}

/// What becomes of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotVerdict {
    /// The snapshot.
    pub name: SnapshotName,
    /// Whether it goes.
    pub destroy: bool,
    /// What it would free, as ZFS says.
    pub used_bytes: u64,
    /// Why.
    pub reason: SnapshotReason,
}

/// Why no old snapshot of a dataset is destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotsDoubt {
    /// The finding.
    pub what: String,
    /// The remedy for a person.
    pub hint: String,
}

/// Returns why nothing of a dataset is destroyed, where something about it is doubtful. `command`
/// is the command that met the doubt.
pub fn find_snapshots_doubt(verdicts: &[SnapshotVerdict], command: &str) -> Option<SnapshotsDoubt> {
    verdicts.iter().find_map(|verdict| match &verdict.reason {
        SnapshotReason::UploadUnknown { id } => Some(SnapshotsDoubt {
            what: format!("the base of the unfinished upload {id} is unknown: started.json is missing or untrusted"),
            hint: format!("if that upload is over: zfs-backup forget {id}"),
        }),
        SnapshotReason::ClockDoubtful(doubt) => {
            Some(SnapshotsDoubt { what: doubt.to_string(), hint: doubt.hint(command) })
        }
        _ => None,
    })
}

/// Everything that is decided from.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotsInput<'a> {
    /// The own snapshots of one dataset, oldest first.
    pub own: &'a [Snapshot],
    /// Snapshots that have the mark of own ones and another name. They are never destroyed.
    pub marked: &'a [Snapshot],
    /// The prefix of the names of own snapshots.
    pub prefix: &'a str,
    /// All its snapshots: a base may be another tool's.
    pub guids: &'a BTreeSet<Guid>,
    /// Its bookmarks.
    pub bookmarks: &'a [Bookmark],
    /// All configured stores. One that could not be read means that this must not be asked at all.
    pub stores: &'a [StoreView],
    /// Attempts that this host began and that never came near their commit.
    pub journal: &'a BTreeSet<BackupId>,
    /// Attempts for which this pool holds snapshots. The holds protect the snapshots that they
    /// need.
    pub pinned: &'a BTreeSet<BackupId>,
    /// Own snapshots that are older go; with 0 each goes as soon as a bookmark stands in for it.
    pub oldest_days: u32,
    /// The time.
    pub now: Timestamp,
    /// Why that time may not decide what is old; `None` when it may.
    pub clock: Option<&'a ClockDoubt>,
}

/// Decides about the own snapshots of one dataset.
pub fn plan_snapshots(input: &SnapshotsInput<'_>) -> Vec<SnapshotVerdict> {
    let verdict = |snapshot: &Snapshot| {
        // The clock matters only when something is destroyed.
        let doubtful = || {
            input
                .clock
                .map(|doubt| SnapshotReason::ClockDoubtful(doubt.clone()))
        };
        let need = input.need(snapshot).or_else(doubtful);
        SnapshotVerdict {
            name: snapshot.name.clone(),
            destroy: need.is_none(),
            used_bytes: snapshot.used_bytes,
            reason: need.unwrap_or(SnapshotReason::Old),
        }
    };
    let misnamed = |snapshot: &Snapshot| SnapshotVerdict {
        name: snapshot.name.clone(),
        destroy: false,
        used_bytes: snapshot.used_bytes,
        reason: SnapshotReason::NotOurName {
            prefix: input.prefix.to_owned(),
        },
    };
    input
        .own
        .iter()
        .map(verdict)
        .chain(input.marked.iter().map(misnamed))
        .collect()
}

impl SnapshotsInput<'_> {
    /// What needs the snapshot.
    fn need(&self, snapshot: &Snapshot) -> Option<SnapshotReason> {
        if snapshot.holds > 0 {
            return Some(SnapshotReason::Held);
        }
        let age = self
            .now
            .as_second()
            .saturating_sub(snapshot.created_at.as_second());
        if age < i64::from(self.oldest_days) * 86_400 {
            return Some(SnapshotReason::Young);
        }
        if let Some(reason) = self.needed_by_upload(snapshot.guid) {
            return Some(reason);
        }
        let bookmarked = self.is_bookmarked(snapshot.guid);
        if self.oldest_days == 0 && !bookmarked {
            return Some(SnapshotReason::NoBookmark);
        }
        self.not_stored(snapshot).or_else(|| {
            if bookmarked {
                None
            } else {
                self.next_base(snapshot.guid)
            }
        })
    }

    fn is_bookmarked(&self, guid: Guid) -> bool {
        let name = bookmark_name(guid);
        self.bookmarks.iter().any(|bookmark| {
            bookmark.guid == guid && bookmark.name.short() == name && !bookmark.redacted
        })
    }

    fn needed_by_upload(&self, guid: Guid) -> Option<SnapshotReason> {
        let journal = self.journal.iter().find(|id| id.snapshot_guid() == guid);
        let upload = |id: &BackupId| SnapshotReason::UnfinishedUpload { id: id.clone() };
        if let Some(id) = journal {
            return Some(upload(id));
        }
        for (id, started) in self.stores.iter().flat_map(|store| &store.attempts) {
            let needs = match started {
                StartedFact::Signed { base, .. } => base
                    .as_ref()
                    .is_some_and(|base| base.snapshot_guid() == guid),
                _ if self.pinned.contains(id) => false,
                StartedFact::Unreadable(_) => {
                    return Some(SnapshotReason::UploadUnknown { id: id.clone() });
                }
                // An incremental builds on something.
                StartedFact::Absent if id.kind() == BackupKind::Incr => {
                    return Some(SnapshotReason::UploadUnknown { id: id.clone() });
                }
                StartedFact::Absent => false,
            };
            if needs || id.snapshot_guid() == guid {
                return Some(upload(id));
            }
        }
        None
    }

    /// The newest own snapshot must be whole in every store.
    fn not_stored(&self, snapshot: &Snapshot) -> Option<SnapshotReason> {
        let newest = self.own.iter().max_by_key(|other| other.createtxg)?;
        if newest.guid != snapshot.guid {
            return None;
        }
        if self.stores.is_empty() {
            return Some(SnapshotReason::NoStore);
        }
        let lacks_it = |store: &&StoreView| {
            !store
                .facts
                .iter()
                .any(|backup| backup.snapshot.guid == snapshot.guid && backup.is_usable())
        };
        let without = self.stores.iter().find(lacks_it)?;
        Some(SnapshotReason::NotStored {
            store: without.store.clone(),
        })
    }

    /// In each store the newest backup, and the newest that is usable, of which there is still
    /// something here.
    fn next_base(&self, guid: Guid) -> Option<SnapshotReason> {
        let is_here = |backup: &&&BackupFacts| {
            let base = backup.snapshot.guid;
            self.guids.contains(&base)
                || self
                    .bookmarks
                    .iter()
                    .any(|bookmark| bookmark.guid == base && !bookmark.redacted)
        };
        for store in self.stores {
            let ordered = in_order(&store.facts);
            let newest = ordered.iter().rev().find(is_here);
            let newest_usable = ordered
                .iter()
                .rev()
                .filter(|backup| backup.is_usable())
                .find(is_here);
            if [newest, newest_usable]
                .into_iter()
                .flatten()
                .any(|backup| backup.snapshot.guid == guid)
            {
                return Some(SnapshotReason::NextBase {
                    store: store.store.clone(),
                });
            }
        }
        None
    }
}
