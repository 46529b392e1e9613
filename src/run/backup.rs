//! Makes one backup of one dataset in one store, in an order of writes that makes a crash harmless.
//!
//! lock -> finish interrupted commits -> resume interrupted uploads -> plan -> empty prefix ->
//! journal -> holds -> `started` -> base chain still usable -> chunks, each recorded in the journal
//! before it is created and when it is confirmed -> listing equals what was confirmed -> END
//! verified and `lzc_send` returned 0 -> bookmark -> RESTORE.txt, private, lists -> base still
//! stored -> journal `committing` with the bytes of everything that follows -> receipt ->
//! signatures -> manifest -> read back and verified -> remove what only the upload needed -> remove
//! the journal -> release the holds -> destroy bookmarks that nothing needs any more. A failure
//! before the manifest leaves no backup, and the next run resumes from that point.

mod abandon;
mod attempt;
mod chain;
mod commit;
mod documents;
mod estimate;
mod planning;
mod readable;
mod recommit;
mod recorder;
mod release;
mod source;
mod steps;
mod unchanged;
mod unfinished;

pub use estimate::estimate_full;
pub use source::send_flags;

use super::RunError;
use super::keys::WriterKeys;
use super::transfer::{ProgressSink, Stop, TransferPool};
use crate::config::{RawMode, SnapshotSource, Window};
use crate::manifest::Manifest;
use crate::model::{BackupId, DatasetName, KnownStore, ReadFault};
use crate::plan::resume::ResumeVerdict;
use crate::plan::send::{LifecycleRules, RequestedKind, SendPlan};
use crate::run::pool::select::Selected;
use crate::state::dataset_lock::lock_dataset;
use crate::state::manifests::CacheMode;
use crate::store::{Evidence, ObjectStore, StoreWrite};
use crate::stream::seal::ChunkCompression;
use crate::zfs::{Snapshot, Zfs};
use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use planning::{View, unreadable_snapshots};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use steps::Steps;
use unchanged::{plan, settle_from_memory};
use unfinished::{judge_all, stored_of};

/// Settings of a backup.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// Bytes of stream in each chunk but the last.
    pub split_bytes: u64,
    /// The compression before sealing.
    pub compression: ChunkCompression,
    /// Whether to send raw.
    pub raw: RawMode,
    /// Whether to send blocks compressed, as they are on disk.
    pub compressed: bool,
    /// Whether to send embedded blocks.
    pub embedded: bool,
    /// The choice of the snapshots to send.
    pub source: SnapshotSource,
    /// The prefix of our own snapshots' names.
    pub snapshot_prefix: String,
    /// The rules that choose the kind of backup when the command names no kind.
    pub lifecycle: LifecycleRules,
    /// The folder of locks, journals and saved state.
    pub state_dir: PathBuf,
    /// This host's name, for `private.age` only.
    pub host: String,
    /// Whether to abandon interrupted uploads and begin new ones.
    pub restart: bool,
    /// The hours of uploads: outside them an upload pauses between two chunks.
    pub window: Option<Window>,
    /// The time after which an upload pauses between two chunks.
    pub until: Option<Timestamp>,
    /// Whether a snapshot is not backed up if nothing was written since the newest backup.
    pub skip_unchanged: bool,
}

impl BackupSettings {
    /// Returns the reason why an upload must pause now, or `None`. `local` is this host's local
    /// time of day.
    pub fn pause_reason(&self, now: Timestamp, local: Time) -> Option<String> {
        if self.until.is_some_and(|until| now >= until) {
            return Some("main.max_runtime is over".to_owned());
        }
        let outside = self.window.filter(|window| !window.contains(local));
        outside.map(|window| format!("main.window is {window}"))
    }

    fn pause_reason_now(&self, now: Timestamp) -> Option<String> {
        self.pause_reason(now, now.to_zoned(TimeZone::system()).time())
    }
}

/// The role of a store in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreRole {
    /// The remote.
    Remote,
    /// The intermediate directory.
    Intermediate,
}

/// The configured store that is not the target.
#[derive(Clone)]
pub struct OtherStore {
    /// The role of the store.
    pub role: StoreRole,
    /// The identity of the store, known even if the store could not be opened.
    pub known: KnownStore,
    /// The store, or the reason why it cannot be reached.
    pub store: Result<Arc<dyn StoreWrite>, String>,
}

/// The environment of a backup: ZFS, stores, keys, settings and sinks, without the dataset.
#[derive(Clone)]
pub struct BackupEnv {
    /// ZFS.
    pub zfs: Arc<dyn Zfs>,
    /// The target.
    pub store: Arc<dyn ObjectStore>,
    /// The role of the target.
    pub role: StoreRole,
    /// The other configured store, if there is one. If the target is the intermediate directory,
    /// bases may be in it.
    pub other: Option<OtherStore>,
    /// The datasets that the target lists, as just read. With them a dataset that did not change
    /// costs no request; `None` reads the target for each dataset.
    pub listed: Option<Arc<BTreeSet<DatasetName>>>,
    /// The buffers and threads that all datasets of the run share.
    pub pool: TransferPool,
    /// The keys.
    pub keys: WriterKeys,
    /// The settings.
    pub settings: BackupSettings,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Receives the plan before the send begins.
    pub planned: Arc<dyn Fn(&PlannedBackup) + Send + Sync>,
    /// Receives the progress.
    pub progress: ProgressSink,
    /// Becomes true to request a stop.
    pub stop: Stop,
}

/// The plan of a backup.
#[derive(Debug, Clone)]
pub struct PlannedBackup {
    /// The decision.
    pub plan: SendPlan,
    /// The kernel's estimate of the stream in bytes, never exact; `None` when there is no estimate.
    pub estimate_bytes: Option<u64>,
    /// The unreadable snapshots that are newer than the planned one, the newest first.
    pub stepped_over: Vec<SteppedOver>,
}

/// An unreadable snapshot that is not backed up.
#[derive(Debug, Clone)]
pub struct SteppedOver {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The place at which ZFS could not read it.
    pub fault: ReadFault,
}

impl SteppedOver {
    /// Returns the error with which a run ends. `newest` is the backup of a newer snapshot, if it is
    /// stored.
    fn into_error(self, newest: Option<BackupId>) -> RunError {
        RunError::SteppedOver {
            snapshot: self.snapshot.name,
            fault: self.fault,
            newest,
        }
    }
}

/// An unfinished upload, and whether a run would resume it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedResume {
    /// The id of the backup that it may become.
    pub id: BackupId,
    /// The number of confirmed chunks.
    pub chunks: usize,
    /// The bytes of stream in the confirmed chunks.
    pub stream_bytes: u64,
    /// The position in the stream from which ZFS would send; `None` when the upload would not be
    /// resumed.
    pub resumes_at: Option<u64>,
    /// The reason why the upload would not be resumed.
    pub why_not: Option<String>,
}

/// The result for one dataset.
#[derive(Debug)]
pub struct BackupRun {
    /// The backups that the run committed, in order: interrupted uploads that it finished, then the
    /// newest snapshot.
    pub committed: Vec<CommittedBackup>,
    /// How the run ended: an error only after a commit, or if a snapshot was stepped over.
    pub end: Result<BackupEnd, RunError>,
}

/// How a run without an error ended.
#[derive(Debug)]
pub enum BackupEnd {
    /// The newest snapshot is stored as this backup, of this run or an earlier one.
    UpToDate(BackupId),
    /// Nothing was written between the snapshot of a stored backup and the newest snapshot.
    Unchanged {
        /// The backup.
        id: BackupId,
        /// The newest snapshot.
        snapshot: Snapshot,
    },
    /// The upload is outside its hours and waits for the next run. Its stored chunks are kept.
    Paused(PausedUpload),
}

impl BackupEnd {
    /// Returns the end of a run whose plan uploads nothing; `None` for other plans.
    fn without_upload(plan: SendPlan) -> Option<Self> {
        match plan {
            SendPlan::UpToDate { id } => Some(Self::UpToDate(id)),
            SendPlan::Unchanged { snapshot, id } => Some(Self::Unchanged { id, snapshot }),
            SendPlan::Full { .. } | SendPlan::Incremental { .. } => None,
        }
    }
}

/// A paused upload, which waits for the next run.
#[derive(Debug, Serialize)]
pub struct PausedUpload {
    /// The id of the backup that it may become.
    pub id: BackupId,
    /// The reason for the pause.
    pub why: String,
    /// The number of confirmed chunks.
    pub chunks: usize,
    /// The bytes of stream in the confirmed chunks.
    pub stream_bytes: u64,
}

/// A backup that was just committed.
#[derive(Debug)]
pub struct CommittedBackup {
    /// The manifest, as read back.
    pub manifest: Manifest,
    /// The sealed bytes of all chunks.
    pub stored_bytes: u64,
    /// The number of chunks.
    pub chunks: usize,
    /// The weakest evidence among the chunks.
    pub evidence: Option<Evidence>,
}

/// Plans what [`back_up`] would do. Changes nothing, on this host or in the store.
///
/// # Errors
/// The [`RunError`] that [`back_up`] would return.
pub async fn plan_backup(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
) -> Result<PlannedBackup, RunError> {
    let view = View::read(env, selected, CacheMode::ReadOnly).await?;
    let unreadable = unreadable_snapshots(env, &view.stores)?;
    plan(env, &view, requested, &unreadable).await
}

/// Lists the interrupted uploads that [`back_up`] would resume or leave, in its order. Changes
/// nothing.
///
/// # Errors
/// [`RunError`] when something could not be read.
pub async fn plan_resumes(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
) -> Result<Vec<PlannedResume>, RunError> {
    let view = View::read(env, selected, CacheMode::ReadOnly).await?;
    let mut judged = judge_all(env, selected, &view, requested).await?;
    judged.sort_by_key(|(upload, _)| upload.order());
    let plan = judged.into_iter().filter_map(|(upload, verdict)| {
        let carried = upload.carried();
        let why_not = match verdict {
            // The upload is a backup already, or was one.
            ResumeVerdict::Over { .. } => return None,
            ResumeVerdict::Resume { .. } if env.settings.restart => {
                Some("a restart was asked for".to_owned())
            }
            ResumeVerdict::Resume { .. } => None,
            ResumeVerdict::Wait { why } | ResumeVerdict::Abandon { why } => Some(why),
        };
        Some(PlannedResume {
            id: upload.id().clone(),
            chunks: carried.chunks.len(),
            stream_bytes: carried
                .chunks
                .values()
                .map(|chunk| chunk.entry.stream_bytes)
                .sum(),
            resumes_at: why_not.is_none().then(|| carried.resumes_at()),
            why_not,
        })
    });
    Ok(plan.collect())
}

/// Backs up one dataset. Finishes interrupted commits first, then resumes interrupted uploads, and
/// then backs up the newest snapshot ([`crate::plan::next_step`]).
///
/// # Errors
/// [`RunError`] when the run committed nothing; no existing backup has changed.
pub async fn back_up(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
) -> Result<BackupRun, RunError> {
    let _lock = lock_dataset(
        &env.settings.state_dir,
        &env.store.known(),
        &selected.stored,
    )?;
    if let Some(end) = settle_from_memory(env, selected, requested).await? {
        return Ok(BackupRun {
            committed: Vec::new(),
            end: Ok(end),
        });
    }
    let mut steps = Steps {
        env,
        selected,
        requested,
        committed: Vec::new(),
        has_tried_commits: false,
        has_restarted: false,
        has_overtaken: false,
        has_replanned: false,
        read_error: None,
        unreadable: BTreeMap::new(),
        stepped_over: BTreeMap::new(),
        unfit_bases: BTreeSet::new(),
        unchanged: None,
    };
    let ended = steps.run().await;
    let stepped_over = steps.stepped_over.pop_last().map(|(_, newest)| newest);
    let end = match (ended, stepped_over) {
        (Ok(id), None) => Ok(match steps.unchanged.take() {
            Some(snapshot) => BackupEnd::Unchanged { id, snapshot },
            None => BackupEnd::UpToDate(id),
        }),
        (Ok(id), Some(stepped_over)) => Err(stepped_over.into_error(Some(id))),
        // The next run resumes the upload of a newer snapshot.
        (Err(RunError::Paused { id, why }), Some(stepped_over)) => {
            tracing::warn!(%id, "the upload pauses: {why}");
            Err(stepped_over.into_error(None))
        }
        (Err(RunError::Paused { id, why }), None) => {
            let (chunks, stream_bytes) = stored_of(env, selected, &id)?;
            Ok(BackupEnd::Paused(PausedUpload {
                id,
                why,
                chunks,
                stream_bytes,
            }))
        }
        (Err(error), _) if steps.committed.is_empty() => return Err(error),
        (Err(error), _) => Err(error),
    };
    Ok(BackupRun {
        committed: steps.committed,
        end,
    })
}
