//! What `show` knows, as data. The JSON of `show` is these types; `docs/json.md` says what each
//! field means.

use crate::model::{BackupId, BackupKind, DatasetName, Guid};
use crate::plan::health::Health;
use crate::state::history::Record;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// All that `show` found out.
#[derive(Debug, Serialize)]
pub(super) struct Overview {
    pub(super) format: u32,
    pub(super) now: Timestamp,
    pub(super) remote: StoreAnswer,
    pub(super) intermediate: StoreAnswer,
    pub(super) datasets: Vec<DatasetView>,
    pub(super) lockfile: Option<LockfileView>,
    /// What no rule will ever delete, a sentence each.
    pub(super) never_deleted: Vec<String>,
}

/// Whether a store was looked into.
#[derive(Debug, Default, Serialize)]
pub(super) struct StoreAnswer {
    /// Its name; `None` when none is configured.
    pub(super) url: Option<String>,
    pub(super) asked: bool,
    /// Why it could not be looked into.
    pub(super) error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct LockfileView {
    pub(super) path: String,
    pub(super) made_at: Option<Timestamp>,
}

/// One dataset.
#[derive(Debug, Serialize)]
pub(super) struct DatasetView {
    /// Its name in the store.
    pub(super) dataset: DatasetName,
    pub(super) local: Option<LocalView>,
    pub(super) intermediate: Option<StoreView>,
    pub(super) remote: Option<StoreView>,
    /// What this host remembers of the store that counts: the remote, else the intermediate
    /// directory.
    pub(super) record: Option<Record>,
    /// Stores in which a run seems to be at work on it.
    pub(super) running_in: Vec<String>,
    /// What could not be found out.
    pub(super) errors: Vec<String>,
    /// What is to be said of its age, verification and failures; `None` without a configuration.
    #[serde(skip)]
    pub(super) health: Option<Health>,
    /// The intermediate directory is the only store.
    #[serde(skip)]
    pub(super) only_intermediate: bool,
}

/// What is in the pool.
#[derive(Debug, Serialize)]
pub(super) struct LocalView {
    pub(super) name: DatasetName,
    pub(super) guid: Guid,
    pub(super) encrypted: bool,
    /// It is sent raw, so its ZFS key must survive too.
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

/// A hold of ours.
#[derive(Debug, Clone, Serialize)]
pub(super) struct HoldView {
    pub(super) snapshot: String,
    pub(super) tag: String,
    pub(super) since: Timestamp,
    pub(super) used_bytes: u64,
}

/// What a store holds of a dataset.
#[derive(Debug, Default, Serialize)]
pub(super) struct StoreView {
    /// Oldest first.
    pub(super) backups: Vec<BackupView>,
    pub(super) unfinished: Vec<AttemptView>,
    pub(super) uploads: Vec<UploadView>,
    pub(super) unknown_objects: u64,
    pub(super) unknown_bytes: u64,
    /// Datasets, by guid, that have backups here under this name.
    pub(super) origins: u64,
    /// Time lines of the newest of them, as far as the store alone tells.
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
    /// The snapshot that the dataset was a clone of.
    pub(super) clone_origin_guid: Option<Guid>,
    /// Whether its objects and its ancestors' were looked at.
    pub(super) checked: bool,
    /// Why it is not usable.
    pub(super) flaw: Option<String>,
}

/// Objects under an id without a believable manifest.
#[derive(Debug, Serialize)]
pub(super) struct AttemptView {
    pub(super) id: BackupId,
    pub(super) started_at: Option<Timestamp>,
    pub(super) base: Option<BackupId>,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) newest_object_at: Option<Timestamp>,
    /// When a prune gives it up, unless it goes on.
    pub(super) given_up_at: Option<Timestamp>,
    /// A manifest or its signature is there.
    pub(super) was_committed: bool,
    /// Why its manifest or its first object is not believed.
    pub(super) disbelieved: Option<String>,
}

/// A multipart upload that was begun and not ended.
#[derive(Debug, Serialize)]
pub(super) struct UploadView {
    pub(super) key: String,
    pub(super) started_at: Option<Timestamp>,
}

impl StoreView {
    /// Notes of each unfinished upload when a prune gives it up: `resume_days` after its newest
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

    /// Bytes of all backups and attempts.
    pub(super) fn total_bytes(&self) -> u64 {
        let attempts = self.unfinished.iter().map(|attempt| attempt.bytes);
        self.backups
            .iter()
            .map(|backup| backup.stored_bytes)
            .chain(attempts)
            .fold(0, u64::saturating_add)
    }
}

/// The newest backup that is known in the store that counts.
pub(super) struct Newest<'a> {
    pub(super) id: &'a BackupId,
    pub(super) snapshot_at: Timestamp,
    /// Incrementals in its chain.
    pub(super) position: u32,
}

impl DatasetView {
    /// The listing of the store that counts, where it was asked: the remote, else an intermediate
    /// directory that is the only store.
    pub(super) fn counting(&self) -> Option<&StoreView> {
        self.remote.as_ref().or(self
            .intermediate
            .as_ref()
            .filter(|_| self.only_intermediate))
    }

    /// The newest backup, by the listing where there is one, else by what this host remembers.
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

    /// Its backups are raw streams of an encrypted dataset.
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
