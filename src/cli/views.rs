//! The facts of `show`, as data. The JSON of `show` has these types; `docs/json.md` describes each
//! field.

use crate::model::{BackupId, BackupKind, DatasetName, Guid};
use crate::plan::health::Health;
use crate::state::history::Record;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// All facts that `show` found.
#[derive(Debug, Serialize)]
pub(super) struct Overview {
    pub(super) format: u32,
    pub(super) now: Timestamp,
    pub(super) remote: StoreAnswer,
    pub(super) intermediate: StoreAnswer,
    pub(super) datasets: Vec<DatasetView>,
    pub(super) lockfile: Option<LockfileView>,
    /// Descriptions of what no rule will ever delete, one sentence each.
    pub(super) never_deleted: Vec<String>,
}

/// Whether a store was read.
#[derive(Debug, Default, Serialize)]
pub(super) struct StoreAnswer {
    /// The store's URL; `None` when none is configured.
    pub(super) url: Option<String>,
    pub(super) asked: bool,
    /// The reason why the store could not be read.
    pub(super) error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct LockfileView {
    pub(super) path: String,
    pub(super) made_at: Option<Timestamp>,
}

/// The facts about a dataset.
#[derive(Debug, Serialize)]
pub(super) struct DatasetView {
    /// The dataset's name in the store.
    pub(super) dataset: DatasetName,
    pub(super) local: Option<LocalView>,
    pub(super) intermediate: Option<StoreView>,
    pub(super) remote: Option<StoreView>,
    /// This host's record of the store that counts: the remote, else the intermediate directory.
    pub(super) record: Option<Record>,
    /// Stores in which a run seems to work on the dataset.
    pub(super) running_in: Vec<String>,
    /// Errors of the sources that could not be read.
    pub(super) errors: Vec<String>,
    /// The verdict on age, verification and failures; `None` without a configuration.
    #[serde(skip)]
    pub(super) health: Option<Health>,
    /// Whether the intermediate directory is the only store.
    #[serde(skip)]
    pub(super) only_intermediate: bool,
}

/// The facts of a dataset in the pool.
#[derive(Debug, Serialize)]
pub(super) struct LocalView {
    pub(super) name: DatasetName,
    pub(super) guid: Guid,
    pub(super) encrypted: bool,
    /// Whether the dataset is sent raw, so that its ZFS key must be kept too.
    pub(super) sent_raw: bool,
    pub(super) snapshots: Vec<SnapshotView>,
    pub(super) bookmarks: Vec<BookmarkView>,
    pub(super) holds: Vec<HoldView>,
}

#[derive(Debug, Serialize)]
pub(super) struct SnapshotView {
    pub(super) name: String,
    pub(super) guid: Guid,
    pub(super) created_at: Timestamp,
    pub(super) used_bytes: u64,
    pub(super) referenced_bytes: u64,
    pub(super) own: bool,
    pub(super) holds: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct BookmarkView {
    pub(super) name: String,
    pub(super) guid: Guid,
    pub(super) created_at: Timestamp,
}

/// A hold of this program.
#[derive(Debug, Clone, Serialize)]
pub(super) struct HoldView {
    pub(super) snapshot: String,
    pub(super) tag: String,
    pub(super) since: Timestamp,
    pub(super) used_bytes: u64,
}

/// The contents of a store for a dataset.
#[derive(Debug, Default, Serialize)]
pub(super) struct StoreView {
    /// The backups, oldest first.
    pub(super) backups: Vec<BackupView>,
    pub(super) unfinished: Vec<AttemptView>,
    pub(super) uploads: Vec<UploadView>,
    pub(super) unknown_objects: u64,
    pub(super) unknown_bytes: u64,
    /// Number of datasets, by guid, that have backups in the store under this name.
    pub(super) origins: u64,
    /// Number of time lines of the newest of these datasets, as far as the store alone shows.
    pub(super) time_lines: u64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct BackupView {
    pub(super) id: BackupId,
    pub(super) kind: BackupKind,
    pub(super) full_id: BackupId,
    pub(super) position: u32,
    pub(super) base: Option<BackupId>,
    pub(super) snapshot_guid: Guid,
    pub(super) snapshot_at: Timestamp,
    pub(super) stream_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) raw: bool,
    /// The guid of the snapshot that the dataset was a clone of.
    pub(super) clone_origin_guid: Option<Guid>,
    /// Whether the objects of the backup and of its ancestors were checked.
    pub(super) checked: bool,
    /// The reason why the backup is not usable.
    pub(super) flaw: Option<String>,
}

/// Objects under an id without a verified manifest.
#[derive(Debug, Serialize)]
pub(super) struct AttemptView {
    pub(super) id: BackupId,
    pub(super) started_at: Option<Timestamp>,
    pub(super) base: Option<BackupId>,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) newest_object_at: Option<Timestamp>,
    /// When a prune abandons the attempt, unless it is resumed.
    pub(super) given_up_at: Option<Timestamp>,
    /// Whether a manifest or its signature exists.
    pub(super) was_committed: bool,
    /// The reason why the manifest or the first object is not trusted.
    pub(super) disbelieved: Option<String>,
}

/// A multipart upload that was started and not completed.
#[derive(Debug, Serialize)]
pub(super) struct UploadView {
    pub(super) key: String,
    pub(super) started_at: Option<Timestamp>,
}

impl StoreView {
    /// Sets for each unfinished upload when a prune abandons it: `resume_days` after its newest
    /// object.
    pub(super) fn note_ends(&mut self, resume_days: u32) {
        let days = SignedDuration::from_hours(24 * i64::from(resume_days));
        for attempt in self
            .unfinished
            .iter_mut()
            .filter(|attempt| !attempt.was_committed)
        {
            attempt.given_up_at = attempt
                .newest_object_at
                .and_then(|newest| newest.checked_add(days).ok());
        }
    }

    /// Returns the bytes of all backups and attempts.
    pub(super) fn total_bytes(&self) -> u64 {
        let attempts = self.unfinished.iter().map(|attempt| attempt.bytes);
        self.backups
            .iter()
            .map(|backup| backup.stored_bytes)
            .chain(attempts)
            .fold(0, u64::saturating_add)
    }
}

/// The newest known backup in the store that counts.
pub(super) struct Newest<'a> {
    pub(super) id: &'a BackupId,
    pub(super) snapshot_at: Timestamp,
    /// Incrementals in the backup's chain.
    pub(super) position: u32,
}

impl DatasetView {
    /// Returns the listing of the store that counts, where it was read: the remote, else an
    /// intermediate directory that is the only store.
    pub(super) fn counting(&self) -> Option<&StoreView> {
        self.remote.as_ref().or(self
            .intermediate
            .as_ref()
            .filter(|_| self.only_intermediate))
    }

    /// Returns the newest backup, by the listing where there is one, else by this host's record.
    pub(super) fn newest(&self) -> Option<Newest<'_>> {
        if let Some(view) = self.counting() {
            let newest = view.backups.last()?;
            return Some(Newest {
                id: &newest.id,
                snapshot_at: newest.snapshot_at,
                position: newest.position,
            });
        }
        let record = self.record.as_ref()?;
        let position = record.last_known().map_or(0, |(_, _, position)| position);
        Some(Newest {
            id: record.newest()?,
            snapshot_at: record.newest_at()?,
            position,
        })
    }

    /// Returns whether the backups are raw streams of an encrypted dataset.
    pub(super) fn is_raw(&self) -> bool {
        let local = self.local.as_ref().map(|local| local.sent_raw);
        let listed = self
            .counting()
            .and_then(|view| view.backups.last())
            .map(|newest| newest.raw);
        let noted = self
            .record
            .as_ref()
            .and_then(|record| record.commit.as_ref())
            .map(|commit| commit.raw);
        local.or(listed).or(noted).unwrap_or(false)
    }
}
