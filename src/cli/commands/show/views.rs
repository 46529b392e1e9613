//! The facts of `show`, as data. The JSON of `show` has these types; `docs/json.md` describes each
//! field.

use crate::model::{BackupId, BackupKind, BackupLevel, DatasetName, Guid};
use crate::plan::health::DatasetHealth;
use crate::state::history::DatasetHistory;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// All facts that `show` found.
#[derive(Debug, Serialize)]
pub(crate) struct Overview {
    pub(crate) format: u32,
    pub(crate) now: Timestamp,
    pub(crate) remote: StoreAnswer,
    pub(crate) intermediate: StoreAnswer,
    pub(crate) datasets: Vec<DatasetView>,
    pub(crate) lockfile: Option<LockfileView>,
    /// Descriptions of what no rule will ever delete, one sentence each.
    pub(crate) never_deleted: Vec<String>,
}

/// Whether a store was read.
#[derive(Debug, Default, Serialize)]
pub(crate) struct StoreAnswer {
    /// The store's URL; `None` when none is configured.
    pub(crate) url: Option<String>,
    pub(crate) asked: bool,
    /// The reason why the store could not be read.
    pub(crate) error: Option<String>,
    /// With `--unknown`: the number of objects that belong to none of the datasets, and their bytes.
    pub(crate) foreign_objects: Option<u64>,
    pub(crate) foreign_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct LockfileView {
    pub(crate) path: String,
    pub(crate) made_at: Option<Timestamp>,
}

/// The facts about a dataset.
#[derive(Debug, Serialize)]
pub(crate) struct DatasetView {
    /// The dataset's name in the store.
    pub(crate) dataset: DatasetName,
    pub(crate) local: Option<LocalView>,
    pub(crate) intermediate: Option<StoreView>,
    pub(crate) remote: Option<StoreView>,
    /// This host's record of the store that counts: the remote, else the intermediate directory.
    pub(crate) record: Option<DatasetHistory>,
    /// Stores in which a run seems to work on the dataset.
    pub(crate) running_in: Vec<String>,
    /// Errors of the sources that could not be read.
    pub(crate) errors: Vec<String>,
    /// The verdict on age, verification and failures; `None` without a configuration.
    #[serde(skip)]
    pub(crate) health: Option<DatasetHealth>,
    /// Whether the intermediate directory is the only store.
    #[serde(skip)]
    pub(crate) only_intermediate: bool,
}

/// The facts of a dataset in the pool.
#[derive(Debug, Serialize)]
pub(crate) struct LocalView {
    pub(crate) name: DatasetName,
    pub(crate) guid: Guid,
    pub(crate) encrypted: bool,
    /// Whether the dataset is sent raw, so that its ZFS key must be kept too.
    pub(crate) sent_raw: bool,
    pub(crate) snapshots: Vec<SnapshotView>,
    pub(crate) bookmarks: Vec<BookmarkView>,
    pub(crate) holds: Vec<HoldView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct SnapshotView {
    pub(crate) name: String,
    pub(crate) guid: Guid,
    pub(crate) created_at: Timestamp,
    pub(crate) used_bytes: u64,
    pub(crate) referenced_bytes: u64,
    pub(crate) own: bool,
    pub(crate) holds: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct BookmarkView {
    pub(crate) name: String,
    pub(crate) guid: Guid,
    pub(crate) created_at: Timestamp,
}

/// A hold of this program.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HoldView {
    pub(crate) snapshot: String,
    pub(crate) tag: String,
    pub(crate) since: Timestamp,
    pub(crate) used_bytes: u64,
}

/// The contents of a store for a dataset.
#[derive(Debug, Default, Serialize)]
pub(crate) struct StoreView {
    /// The backups, oldest first.
    pub(crate) backups: Vec<BackupView>,
    pub(crate) unfinished: Vec<AttemptView>,
    pub(crate) uploads: Vec<UploadView>,
    pub(crate) unknown_objects: u64,
    pub(crate) unknown_bytes: u64,
    /// Number of datasets, by guid, that have backups in the store under this name.
    pub(crate) origins: u64,
    /// Number of time lines of the newest of these datasets, as far as the store alone shows.
    pub(crate) time_lines: u64,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct BackupView {
    pub(crate) id: BackupId,
    pub(crate) kind: BackupKind,
    /// The level; `None` where no levels were configured.
    pub(crate) level: Option<BackupLevel>,
    pub(crate) full_id: BackupId,
    pub(crate) position: u32,
    pub(crate) base: Option<BackupId>,
    pub(crate) snapshot_guid: Guid,
    pub(crate) snapshot_at: Timestamp,
    pub(crate) stream_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) raw: bool,
    /// The guid of the snapshot that the dataset was a clone of.
    pub(crate) clone_origin_guid: Option<Guid>,
    /// Whether the objects of the backup and of its ancestors were checked.
    pub(crate) checked: bool,
    /// The reason why the backup is not usable.
    pub(crate) flaw: Option<String>,
}

/// Objects under an id without a verified manifest.
#[derive(Debug, Serialize)]
pub(crate) struct AttemptView {
    pub(crate) id: BackupId,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) base: Option<BackupId>,
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) newest_object_at: Option<Timestamp>,
    /// When a prune abandons the attempt, unless it is resumed.
    pub(crate) given_up_at: Option<Timestamp>,
    /// Whether a manifest or its signature exists.
    pub(crate) was_committed: bool,
    /// The reason why the manifest or the first object is not trusted.
    pub(crate) disbelieved: Option<String>,
}

/// A multipart upload that was started and not completed.
#[derive(Debug, Serialize)]
pub(crate) struct UploadView {
    pub(crate) key: String,
    pub(crate) started_at: Option<Timestamp>,
}

impl StoreView {
    /// Sets for each unfinished upload when a prune abandons it: `resume_days` after its newest
    /// object.
    pub(crate) fn note_ends(&mut self, resume_days: u32) {
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
    pub(crate) fn total_bytes(&self) -> u64 {
        let attempts = self.unfinished.iter().map(|attempt| attempt.bytes);
        self.backups
            .iter()
            .map(|backup| backup.stored_bytes)
            .chain(attempts)
            .fold(0, u64::saturating_add)
    }
}

/// The newest known backup in the store that counts.
pub(crate) struct Newest<'a> {
    pub(crate) id: &'a BackupId,
    pub(crate) snapshot_at: Timestamp,
    /// Incrementals in the backup's chain.
    pub(crate) position: u32,
}

impl DatasetView {
    /// Returns the listing of the store that counts, where it was read: the remote, else an
    /// intermediate directory that is the only store.
    pub(crate) fn counting(&self) -> Option<&StoreView> {
        self.remote.as_ref().or(self
            .intermediate
            .as_ref()
            .filter(|_| self.only_intermediate))
    }

    /// Returns the newest backup, by the listing where there is one, else by this host's record.
    pub(crate) fn newest(&self) -> Option<Newest<'_>> {
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
    pub(crate) fn is_raw(&self) -> bool {
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
