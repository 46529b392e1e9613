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
mod planning;
mod recommit;
mod recorder;
mod release;
mod source;
mod unfinished;

use super::keys::WriterKeys;
use super::transfer::{ProgressSink, Stop};
use super::{RunError, error_chain};
use crate::catalog::stores::StoresView;
use crate::config::{RawMode, SnapshotSource, Window};
use crate::manifest::Manifest;
use crate::model::{BackupId, KnownStore};
use crate::plan::resume::ResumeVerdict;
use crate::plan::send::{LifecycleRules, RequestedKind, SendPlan};
use crate::run::pool::select::Selected;
use crate::state::dataset_lock::lock_dataset;
use crate::state::manifests::CacheMode;
use crate::state::stored_name::record_place;
use crate::store::{Evidence, ObjectStore};
use crate::stream::seal::Compression;
use crate::zfs::Zfs;
use abandon::{abandon, abandon_id, keep_resumable, settle};
use attempt::Attempt;
use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use planning::{Base, Local, decide, read_stores, remember_remote};
use recommit::end_commits;
use release::release_bookmarks;
use std::path::PathBuf;
use std::sync::Arc;
use unfinished::{ResumableUpload, judge_all, stored_of};

/// Settings of a backup.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// Bytes of stream in each chunk but the last.
    pub split_bytes: u64,
    /// The compression before sealing.
    pub compression: Compression,
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
    pub store: Result<Arc<dyn ObjectStore>, String>,
}

/// The environment of a backup: ZFS, stores, keys, settings and sinks, without the dataset.
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
}

/// An unfinished upload, and whether a run would resume it.
#[derive(Debug, Clone, PartialEq, Eq)]
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
pub enum BackupOutcome {
    /// The run committed a new backup.
    Committed(Box<CommittedBackup>),
    /// The newest snapshot is already stored.
    UpToDate(BackupId),
    /// The upload is outside its hours and waits for the next run. Its stored chunks are kept.
    Paused(PausedUpload),
    /// The run finished interrupted uploads and then failed.
    EndedThenFailed {
        /// The committed backups; never empty.
        ended: Vec<CommittedBackup>,
        /// The reason why the newest snapshot has no backup.
        error: RunError,
    },
}

/// A paused upload, which waits for the next run.
#[derive(Debug)]
pub struct PausedUpload {
    /// The id of the backup that it may become.
    pub id: BackupId,
    /// The reason for the pause.
    pub why: String,
    /// The number of confirmed chunks.
    pub chunks: usize,
    /// The bytes of stream in the confirmed chunks.
    pub stream_bytes: u64,
    /// The backups that the same run committed before.
    pub before: Vec<CommittedBackup>,
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
    /// The backups that the same run committed before: interrupted uploads that it finished.
    pub before: Vec<CommittedBackup>,
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
    let stores = read_stores(env, &selected.stored, CacheMode::ReadOnly).await?;
    decide(env, &Local::read(&*env.zfs, selected)?, &stores, requested)
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
    let stores = read_stores(env, &selected.stored, CacheMode::ReadOnly).await?;
    let mut judged = judge_all(env, selected, &stores, requested).await?;
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
/// then backs up the newest snapshot.
///
/// # Errors
/// [`RunError`]; then the newest snapshot has no new backup, and no existing backup has changed.
pub async fn back_up(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
) -> Result<BackupOutcome, RunError> {
    let _lock = lock_dataset(
        &env.settings.state_dir,
        &env.store.known(),
        &selected.stored,
    )?;
    let mut stores = read_stores(env, &selected.stored, CacheMode::ReadWrite).await?;
    remember_remote(env, &selected.stored, &stores).await;
    // Check that the dataset still exists with the same guid before touching its holds.
    Local::read(&*env.zfs, selected)?;
    settle(env, selected, &stores).await?;
    let mut ended = end_commits(env, selected, &stores).await?;
    if !ended.is_empty() {
        stores = read_stores(env, &selected.stored, CacheMode::ReadWrite).await?;
    }
    let result = match end_uploads(env, selected, requested, &mut stores, &mut ended).await {
        Ok(()) => {
            let has_full = ended.iter().any(|backup| backup.manifest.base.is_none());
            let follows = match requested {
                // A full that this run has just finished satisfies `--full`.
                RequestedKind::Full if has_full => RequestedKind::Lifecycle,
                requested => requested,
            };
            back_up_newest(env, selected, follows, &stores).await
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(outcome) => Ok(join(ended, outcome)),
        Err(RunError::Paused { id, why }) => {
            let (chunks, stream_bytes) = stored_of(env, selected, &id)?;
            Ok(BackupOutcome::Paused(PausedUpload {
                id,
                why,
                chunks,
                stream_bytes,
                before: ended,
            }))
        }
        Err(error) if ended.is_empty() => Err(error),
        Err(error) => Ok(BackupOutcome::EndedThenFailed { ended, error }),
    }
}

/// Adds the backups committed earlier in the run to the outcome.
fn join(mut ended: Vec<CommittedBackup>, outcome: BackupOutcome) -> BackupOutcome {
    match outcome {
        BackupOutcome::Committed(mut last) => {
            last.before = ended;
            BackupOutcome::Committed(last)
        }
        BackupOutcome::UpToDate(id) => match ended.pop() {
            Some(mut last) => {
                last.before = ended;
                BackupOutcome::Committed(Box::new(last))
            }
            None => BackupOutcome::UpToDate(id),
        },
        other @ (BackupOutcome::Paused(_) | BackupOutcome::EndedThenFailed { .. }) => other,
    }
}

/// Resumes the interrupted uploads one after the other. If the stream is no longer the same, the
/// upload is abandoned and the next plan begins a new one.
async fn end_uploads(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
    stores: &mut StoresView,
    ended: &mut Vec<CommittedBackup>,
) -> Result<(), RunError> {
    let mut may_overtake = requested == RequestedKind::Lifecycle;
    loop {
        let judged = judge_all(env, selected, stores, requested).await?;
        let unfinished = keep_resumable(env, selected, judged).await?;
        if env.settings.restart {
            for ResumableUpload { upload, .. } in &unfinished {
                abandon(env, selected, upload, "a restart was asked for").await?;
            }
            return Ok(());
        }
        let Some(goes_on) = unfinished.into_iter().next() else {
            return Ok(());
        };
        // A full may take many nights, but tonight's incremental on the chain before it takes
        // minutes: make the incremental first.
        if goes_on.upload.started.base.is_none() && std::mem::take(&mut may_overtake) {
            if let Some(committed) = overtake(env, selected, stores).await? {
                ended.push(committed);
                *stores = read_stores(env, &selected.stored, CacheMode::ReadWrite).await?;
            }
            continue;
        }
        if let Some(why) = env.settings.pause_reason_now((env.now)()) {
            return Err(RunError::Paused {
                id: goes_on.upload.id().clone(),
                why,
            });
        }
        let local = Local::read(&*env.zfs, selected)?;
        let attempt = Attempt::go_on(
            env,
            (local.dataset, selected.stored.clone()),
            goes_on,
            stores,
        )?;
        match attempt.run(stores).await {
            Ok(committed) => {
                release_bookmarks(env, selected, stores, &committed.manifest).await;
                ended.push(committed);
                *stores = read_stores(env, &selected.stored, CacheMode::ReadWrite).await?;
            }
            Err(error) if attempt.is_pointless() || has_lost(&attempt) => {
                let why = error_chain(&error);
                tracing::warn!(id = %attempt.id, "an unfinished upload is given up, and a new one begins: {why}");
                abandon_id(env, selected, &attempt.id, &why)?;
                if *env.stop.borrow() {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Makes an incremental of the newest snapshot on a chain that is already whole. Returns `None`
/// when that is not possible now.
async fn overtake(
    env: &BackupEnv,
    selected: &Selected,
    stores: &StoresView,
) -> Result<Option<CommittedBackup>, RunError> {
    let local = Local::read(&*env.zfs, selected)?;
    match decide(env, &local, stores, RequestedKind::Incremental) {
        Ok(PlannedBackup {
            plan: SendPlan::Incremental { .. },
            ..
        }) => {}
        Ok(_) | Err(RunError::Conflict { .. }) => return Ok(None),
        Err(error) => return Err(error),
    }
    match back_up_newest(env, selected, RequestedKind::Incremental, stores).await? {
        BackupOutcome::Committed(committed) => Ok(Some(*committed)),
        BackupOutcome::UpToDate(_)
        | BackupOutcome::Paused(_)
        | BackupOutcome::EndedThenFailed { .. } => Ok(None),
    }
}

async fn back_up_newest(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
    stores: &StoresView,
) -> Result<BackupOutcome, RunError> {
    let started_at = (env.now)();
    let mut is_first_try = true;
    let committed = loop {
        let local = Local::read(&*env.zfs, selected)?;
        let planned = decide(env, &local, stores, requested)?;
        if let SendPlan::UpToDate { id } = planned.plan {
            return Ok(BackupOutcome::UpToDate(id));
        }
        record_place(
            &env.settings.state_dir,
            local.dataset.guid,
            &selected.stored,
        )?;
        (env.planned)(&planned);
        let attempt = prepare(env, selected, local, planned.plan, stores, started_at)?;
        match attempt.run(stores).await {
            Ok(committed) => break committed,
            Err(error) => {
                let is_lost = has_lost(&attempt);
                if attempt.is_pointless() || is_lost {
                    abandon_id(env, selected, &attempt.id, &error_chain(&error))?;
                }
                if !is_first_try || *env.stop.borrow() || !is_lost {
                    return Err(error);
                }
                let error = error_chain(&error);
                tracing::warn!(
                    error,
                    "what was to be sent or built on was destroyed meanwhile; planning again"
                );
                is_first_try = false;
            }
        }
    };
    release_bookmarks(env, selected, stores, &committed.manifest).await;
    Ok(BackupOutcome::Committed(Box::new(committed)))
}

/// Returns whether the snapshot or the base is known to be gone. Only that is a reason to plan
/// again.
fn has_lost(attempt: &Attempt<'_>) -> bool {
    matches!(attempt.lost(), Ok(Some(_)))
}

fn prepare<'a>(
    env: &'a BackupEnv,
    selected: &Selected,
    local: Local,
    plan: SendPlan,
    stores: &StoresView,
    started_at: Timestamp,
) -> Result<Attempt<'a>, RunError> {
    let (snapshot, base, before) = match plan {
        SendPlan::Incremental {
            snapshot,
            base,
            backup,
        } => {
            let unknown = || {
                RunError::refused(
                    format!("{} is not known any more", backup.id),
                    "run it again",
                )
            };
            let stored = stores.backup(&backup).ok_or_else(unknown)?;
            let (manifest, manifest_blake3) = (stored.manifest.clone(), stored.manifest_blake3);
            let before = stores.target.chain(stores.remote.usable(), &backup.id);
            (
                snapshot,
                Some(Base {
                    local: base,
                    manifest,
                    manifest_blake3,
                }),
                before,
            )
        }
        SendPlan::Full { snapshot, .. } => (snapshot, None, Vec::new()),
        SendPlan::UpToDate { id } => {
            return Err(RunError::refused(
                format!("{id} is up to date"),
                "this is a defect: please report it",
            ));
        }
    };
    Attempt::new(
        env,
        (local.dataset, selected.stored.clone()),
        snapshot,
        base,
        before,
        started_at,
    )
}
