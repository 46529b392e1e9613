//! [`plan_snapshots`]: decides which of this tool's own snapshots may be destroyed.
//!
//! A snapshot is needed while it is young, while it is held, while it is the newest and not stored
//! everywhere, while an unfinished upload sends it or is based on it, and while the next
//! incremental (with levels: of any level) is based on it and no bookmark can replace it.

use super::BackupFacts;
use super::bookmarks::needed_guids;
use super::clock::ClockDoubt;
use super::prune::StartedFact;
use super::retention::in_order;
use crate::config::KeepLevels;
use crate::model::{BackupId, BackupKind, Guid, SnapshotName, serialize_as_text};
use crate::zfs::{Bookmark, Snapshot};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// Returns the short name of the bookmark that replaces a snapshot, by the snapshot's guid.
pub fn bookmark_name(snapshot: Guid) -> String {
    format!("zfs-backup_{snapshot}")
}

/// The dataset's objects in one configured store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreNeeds {
    /// The store, as messages name it.
    pub store: String,
    /// The facts of the complete backups.
    pub facts: Vec<BackupFacts>,
    /// The attempts without a valid manifest that this pool or a journal of this host knows, with
    /// the facts of their first objects. Other attempts in the store say nothing about this pool,
    /// because a run holds its snapshots and writes its journal before it puts the first object.
    pub attempts: Vec<(BackupId, StartedFact)>,
}

/// The reason why a snapshot is kept or destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotReason {
    /// The snapshot is not older than the configured age.
    Young,
    /// The snapshot is held, by a backup or by another program.
    Held,
    /// The snapshot is the newest own one, and a store has no complete backup of it.
    NotStored {
        /// The store without that backup, as messages name it.
        store: String,
    },
    /// The snapshot is the newest own one, and no store is configured.
    NoStore,
    /// The next incremental is based on the snapshot, and the snapshot has no bookmark.
    NextBase {
        /// The store of that incremental.
        store: String,
    },
    /// Only bookmarks are to be kept, and the snapshot has none.
    NoBookmark,
    /// An unfinished upload needs the snapshot.
    UnfinishedUpload {
        /// The id of the upload.
        id: BackupId,
    },
    /// The base of an unfinished upload of this host is unknown, so the upload may need this
    /// snapshot.
    UploadUnknown {
        /// The id of the upload with the unknown base.
        id: BackupId,
    },
    /// The snapshot looks old, but by a doubtful clock.
    ClockDoubtful(ClockDoubt),
    /// The snapshot has this tool's mark but another name: it was renamed, or has an earlier
    /// `snapshot_prefix`.
    NotOurName {
        /// The prefix of the names of own snapshots.
        prefix: String,
    },
    /// The snapshot is no longer needed.
    Old,
}

serialize_as_text!(SnapshotReason);

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
            Self::NoBookmark => f.write_str("no bookmark can replace it"),
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

/// The decision about one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotVerdict {
    /// The full name, `dataset@snapshot`.
    #[serde(rename = "snapshot")]
    pub name: SnapshotName,
    /// Whether the snapshot is destroyed.
    pub destroy: bool,
    /// The bytes that destroying it would free, as ZFS reports.
    pub used_bytes: u64,
    /// The reason for keeping or destroying it.
    pub reason: SnapshotReason,
}

/// The reason why no old snapshot of a dataset is destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotsDoubt {
    /// The doubtful fact, in words for the screen.
    pub what: String,
    /// The action that a person can take.
    pub hint: String,
}

/// Returns the reason why nothing of a dataset is destroyed, if a fact about it is doubtful.
/// `command` is the command that met the doubt.
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

/// The facts for the decision.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotsInput<'a> {
    /// The own snapshots of one dataset, oldest first.
    pub own: &'a [Snapshot],
    /// Snapshots that have the mark of own ones and another name. They are never destroyed.
    pub marked: &'a [Snapshot],
    /// The prefix of the names of own snapshots.
    pub prefix: &'a str,
    /// All snapshots of the dataset: another tool's snapshot may be a base.
    pub guids: &'a BTreeSet<Guid>,
    /// The bookmarks of the dataset.
    pub bookmarks: &'a [Bookmark],
    /// All configured stores. If one of them cannot be read, this decision must not be made.
    pub stores: &'a [StoreNeeds],
    /// Attempts that this host began and that never reached their commit.
    pub journal: &'a BTreeSet<BackupId>,
    /// Attempts for which this pool holds snapshots. The holds protect the snapshots that they
    /// need.
    pub pinned: &'a BTreeSet<BackupId>,
    /// The age in days from which own snapshots are destroyed; with 0 each is destroyed as soon as
    /// a bookmark replaces it.
    pub oldest_days: u32,
    /// The configured levels.
    pub levels: Option<KeepLevels>,
    /// The present time, by which ages are judged.
    pub now: Timestamp,
    /// The reason why that time may not be used to find old snapshots; `None` if it may.
    pub clock: Option<&'a ClockDoubt>,
}

/// Decides about the own snapshots of one dataset.
pub fn plan_snapshots(input: &SnapshotsInput<'_>) -> Vec<SnapshotVerdict> {
    let own = input.own.iter().map(|snapshot| input.judge_own(snapshot));
    let marked = input
        .marked
        .iter()
        .map(|snapshot| input.keep_marked(snapshot));
    own.chain(marked).collect()
}

impl SnapshotsInput<'_> {
    fn judge_own(&self, snapshot: &Snapshot) -> SnapshotVerdict {
        let mut need = self.need(snapshot);
        // The clock matters only if something is destroyed.
        if let (None, Some(doubt)) = (&need, self.clock) {
            need = Some(SnapshotReason::ClockDoubtful(doubt.clone()));
        }
        SnapshotVerdict {
            name: snapshot.name.clone(),
            destroy: need.is_none(),
            used_bytes: snapshot.used_bytes,
            reason: need.unwrap_or(SnapshotReason::Old),
        }
    }

    fn keep_marked(&self, snapshot: &Snapshot) -> SnapshotVerdict {
        SnapshotVerdict {
            name: snapshot.name.clone(),
            destroy: false,
            used_bytes: snapshot.used_bytes,
            reason: SnapshotReason::NotOurName {
                prefix: self.prefix.to_owned(),
            },
        }
    }

    /// Returns the reason why the snapshot is needed, if there is one.
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
                // An incremental has a base, which is unknown here.
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

    /// Checks that every store has a complete backup of the newest own snapshot.
    fn not_stored(&self, snapshot: &Snapshot) -> Option<SnapshotReason> {
        let newest = self.own.iter().max_by_key(|other| other.createtxg)?;
        if newest.guid != snapshot.guid {
            return None;
        }
        if self.stores.is_empty() {
            return Some(SnapshotReason::NoStore);
        }
        let lacks_it = |store: &&StoreNeeds| {
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

    /// Whether the guid is a next base: in each store that of the newest backup, and of the newest
    /// usable one, whose snapshot or bookmark is still in the pool; with levels also that of the
    /// newest usable one of each level.
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
            let is_newest = [newest, newest_usable]
                .into_iter()
                .flatten()
                .any(|backup| backup.snapshot.guid == guid);
            let is_level_base = || {
                let here = ordered.iter().filter(is_here).copied();
                self.levels
                    .is_some_and(|keep| needed_guids(here, Some(&keep)).contains(&guid))
            };
            if is_newest || is_level_base() {
                return Some(SnapshotReason::NextBase {
                    store: store.store.clone(),
                });
            }
        }
        None
    }
}
