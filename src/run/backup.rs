//! One backup of one dataset into one store, in the order of writes that makes a crash harmless.
//!
//! lock -> interrupted commits ended -> interrupted uploads gone on with -> plan -> empty prefix ->
//! journal -> holds -> `started` -> base chain still usable -> chunks, each noted in the journal
//! before it is created and when it is confirmed -> listing equals what was confirmed -> END
//! verified and `lzc_send` returned 0 -> bookmark -> RESTORE.txt, private, lists -> base still
//! there -> journal `committing` with the bytes of all that follows -> receipt -> signatures ->
//! manifest -> read back and verified -> what only the upload needed removed -> journal removed ->
//! holds released -> bookmarks that nothing needs any more. Whatever fails before the manifest
//! leaves no backup, and the next run goes on from there.

mod attempt;
mod chain;
mod commit;
mod given_up;
mod planning;
mod put;
mod recommit;
mod recorder;
mod release;
mod unfinished;

use super::keys::WriterKeys;
use super::transfer::{ProgressSink, Stop};
use super::{RunError, error_chain};
use crate::config::{RawMode, SnapshotSource, Window};
use crate::manifest::Manifest;
use crate::model::{BackupId, KnownStore};
use crate::plan::resume::ResumeVerdict;
use crate::plan::send::{LifecycleRules, RequestedKind, SendPlan};
use crate::run::pool::select::Selected;
use crate::state::dataset_lock::lock_dataset;
use crate::state::manifests::Keeping;
use crate::state::stored_name::record_place;
use crate::store::{Evidence, ObjectStore};
use crate::stream::seal::Compression;
use crate::zfs::Zfs;
use attempt::Attempt;
use given_up::{give_up, give_up_id, settle};
use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use planning::{Base, Local, Sight, decide, look, remember_remote};
use recommit::end_commits;
use release::release_bookmarks;
use std::path::PathBuf;
use std::sync::Arc;
use unfinished::{GoesOn, find_unfinished, judge_all, stored_of};

/// How backups are made.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// Bytes of stream in a chunk.
    pub split_bytes: u64,
    /// Compression before sealing.
    pub compression: Compression,
    /// Raw or not.
    pub raw: RawMode,
    /// Blocks leave compressed as they lie on disk.
    pub compressed: bool,
    /// Embedded blocks.
    pub embedded: bool,
    /// Which snapshots are sent.
    pub source: SnapshotSource,
    /// The prefix of the names of own snapshots.
    pub snapshot_prefix: String,
    /// Which kind is made when nobody asks for one.
    pub lifecycle: LifecycleRules,
    /// Locks, journals and what is remembered lie here.
    pub state_dir: PathBuf,
    /// This host's name, for `private.age` only.
    pub host: String,
    /// Give up what was interrupted, and begin anew.
    pub restart: bool,
    /// Outside these hours an upload pauses between two chunks.
    pub window: Option<Window>,
    /// From then on an upload pauses between two chunks.
    pub until: Option<Timestamp>,
}

impl BackupSettings {
    /// Why an upload must pause now, if it must. `local` is the time of day where this host is.
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

/// Which of the two stores of a configuration.
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
    /// Which one.
    pub role: StoreRole,
    /// Which store it is, also when it could not be opened.
    pub known: KnownStore,
    /// The store, or why it cannot be reached.
    pub store: Result<Arc<dyn ObjectStore>, String>,
}

/// Everything a backup needs besides its dataset.
pub struct BackupEnv {
    /// ZFS.
    pub zfs: Arc<dyn Zfs>,
    /// The target.
    pub store: Arc<dyn ObjectStore>,
    /// Which store the target is.
    pub role: StoreRole,
    /// The other configured store, where there is one: for the intermediate directory bases may lie
    /// there.
    pub other: Option<OtherStore>,
    /// The keys.
    pub keys: WriterKeys,
    /// How.
    pub settings: BackupSettings,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Hears what will be sent, before it is.
    pub planned: Arc<dyn Fn(&PlannedBackup) + Send + Sync>,
    /// Hears about progress.
    pub progress: ProgressSink,
    /// Asks to stop.
    pub stop: Stop,
}

/// What will be sent.
#[derive(Debug, Clone)]
pub struct PlannedBackup {
    /// The decision.
    pub plan: SendPlan,
    /// The kernel's estimate of the stream; `None` when there is none. Never exact.
    pub estimate_bytes: Option<u64>,
}

/// An upload that was begun and not ended, and what a run would make of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedResume {
    /// What it may become.
    pub id: BackupId,
    /// Its chunks that are confirmed.
    pub chunks: usize,
    /// Bytes of stream in them.
    pub stream_bytes: u64,
    /// The position in the stream from which ZFS would be read again; `None` when it does not go
    /// on.
    pub resumes_at: Option<u64>,
    /// Why it does not go on, as a sentence about it.
    pub why_not: Option<String>,
}

/// What became of one dataset.
#[derive(Debug)]
pub enum BackupOutcome {
    /// A new backup is committed.
    Committed(Box<CommittedBackup>),
    /// The newest snapshot is stored already.
    UpToDate(BackupId),
    /// An upload waits for the next run: its time was over. What it stored is kept.
    Paused(PausedUpload),
    /// Interrupted uploads were ended, and then the run failed.
    EndedThenFailed {
        /// What was committed; never empty.
        ended: Vec<CommittedBackup>,
        /// Why there is no backup of the newest snapshot.
        error: RunError,
    },
}

/// An upload that waits for the next run.
#[derive(Debug)]
pub struct PausedUpload {
    /// What it may become.
    pub id: BackupId,
    /// Why it waits.
    pub why: String,
    /// Its chunks that are confirmed.
    pub chunks: usize,
    /// Bytes of stream in them.
    pub stream_bytes: u64,
    /// What the same run committed before.
    pub before: Vec<CommittedBackup>,
}

/// A backup that was just committed.
#[derive(Debug)]
pub struct CommittedBackup {
    /// Its manifest, as read back.
    pub manifest: Manifest,
    /// Sealed bytes of all chunks.
    pub stored_bytes: u64,
    /// Chunks.
    pub chunks: usize,
    /// The weakest evidence among them.
    pub evidence: Option<Evidence>,
    /// What the same run committed before: interrupted uploads that it ended.
    pub before: Vec<CommittedBackup>,
}

/// Says what [`back_up`] would do. Changes nothing, here or there.
///
/// # Errors
/// [`RunError`] as [`back_up`] would give it.
pub async fn plan_backup(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
) -> Result<PlannedBackup, RunError> {
    let sight = look(env, &selected.stored, Keeping::Nothing).await?;
    decide(env, &Local::read(&*env.zfs, selected)?, &sight, requested)
}

/// Says what [`back_up`] would make of uploads that were interrupted, in the order in which it
/// would. Changes nothing.
///
/// # Errors
/// [`RunError`] when something could not be read.
pub async fn plan_resumes(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
) -> Result<Vec<PlannedResume>, RunError> {
    let sight = look(env, &selected.stored, Keeping::Nothing).await?;
    let mut judged = judge_all(env, selected, &sight, requested).await?;
    judged.sort_by_key(|(upload, _)| upload.order());
    let plan = judged.into_iter().filter_map(|(upload, verdict)| {
        let carried = upload.carried();
        let why_not = match verdict {
            // It is a backup, or was one.
            ResumeVerdict::Over { .. } => return None,
            ResumeVerdict::GoOn { .. } if env.settings.restart => {
                Some("a restart was asked for".to_owned())
            }
            ResumeVerdict::GoOn { .. } => None,
            ResumeVerdict::Wait { why } | ResumeVerdict::GiveUp { why } => Some(why),
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

/// Backs one dataset up. What was interrupted comes first: commits are ended, uploads gone on with;
/// then the newest snapshot follows.
///
/// # Errors
/// [`RunError`]; then there is no new backup of the newest snapshot, and nothing that was there has
/// changed.
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
    let mut sight = look(env, &selected.stored, Keeping::New).await?;
    remember_remote(env, &selected.stored, &sight).await;
    // That the dataset is there, and the same, comes before anything about its holds.
    Local::read(&*env.zfs, selected)?;
    settle(env, selected, &sight).await?;
    let mut ended = end_commits(env, selected, &sight).await?;
    if !ended.is_empty() {
        sight = look(env, &selected.stored, Keeping::New).await?;
    }
    let result = match end_uploads(env, selected, requested, &mut sight, &mut ended).await {
        Ok(()) => {
            let follows = match requested {
                // The full that was asked for is there.
                RequestedKind::Full if !ended.is_empty() => RequestedKind::Lifecycle,
                requested => requested,
            };
            back_up_newest(env, selected, follows, &sight).await
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

/// The last one with those before it.
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

/// Goes on with the uploads that were interrupted, one after the other. One that turns out not to
/// be the same stream is given up, and the next plan begins anew.
async fn end_uploads(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
    sight: &mut Sight,
    ended: &mut Vec<CommittedBackup>,
) -> Result<(), RunError> {
    let mut may_overtake = requested == RequestedKind::Lifecycle;
    loop {
        let unfinished = find_unfinished(env, selected, sight, requested).await?;
        if env.settings.restart {
            for GoesOn { upload, .. } in &unfinished {
                give_up(env, selected, upload, "a restart was asked for").await?;
            }
            return Ok(());
        }
        let Some(goes_on) = unfinished.into_iter().next() else {
            return Ok(());
        };
        // A full may take many nights; the incremental of tonight on the chain before it takes
        // minutes.
        if goes_on.upload.started.base.is_none() && std::mem::take(&mut may_overtake) {
            if let Some(committed) = overtake(env, selected, sight).await? {
                ended.push(committed);
                *sight = look(env, &selected.stored, Keeping::New).await?;
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
            sight,
        )?;
        match attempt.run(sight).await {
            Ok(committed) => {
                release_bookmarks(env, selected, sight, &committed.manifest).await;
                ended.push(committed);
                *sight = look(env, &selected.stored, Keeping::New).await?;
            }
            Err(error) if attempt.is_pointless() || has_lost(&attempt) => {
                let why = error_chain(&error);
                tracing::warn!(id = %attempt.id, "an unfinished upload is given up, and a new one begins: {why}");
                give_up_id(env, selected, &attempt.id, &why)?;
                if *env.stop.borrow() {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// The incremental of the newest snapshot on a chain that is whole already, where one can be made.
async fn overtake(
    env: &BackupEnv,
    selected: &Selected,
    sight: &Sight,
) -> Result<Option<CommittedBackup>, RunError> {
    let local = Local::read(&*env.zfs, selected)?;
    match decide(env, &local, sight, RequestedKind::Incremental) {
        Ok(PlannedBackup {
            plan: SendPlan::Incremental { .. },
            ..
        }) => {}
        Ok(_) | Err(RunError::Refused { .. }) => return Ok(None),
        Err(error) => return Err(error),
    }
    match back_up_newest(env, selected, RequestedKind::Incremental, sight).await? {
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
    sight: &Sight,
) -> Result<BackupOutcome, RunError> {
    let started_at = (env.now)();
    let mut is_first_try = true;
    let committed = loop {
        let local = Local::read(&*env.zfs, selected)?;
        let planned = decide(env, &local, sight, requested)?;
        if let SendPlan::UpToDate { id } = planned.plan {
            return Ok(BackupOutcome::UpToDate(id));
        }
        record_place(
            &env.settings.state_dir,
            local.dataset.guid,
            &selected.stored,
        )?;
        (env.planned)(&planned);
        let attempt = prepare(env, selected, local, planned.plan, sight, started_at)?;
        match attempt.run(sight).await {
            Ok(committed) => break committed,
            Err(error) => {
                let is_lost = has_lost(&attempt);
                if attempt.is_pointless() || is_lost {
                    give_up_id(env, selected, &attempt.id, &error_chain(&error))?;
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
    release_bookmarks(env, selected, sight, &committed.manifest).await;
    Ok(BackupOutcome::Committed(Box::new(committed)))
}

/// Only what is known to be gone is a reason to plan again.
fn has_lost(attempt: &Attempt<'_>) -> bool {
    matches!(attempt.lost(), Ok(Some(_)))
}

fn prepare<'a>(
    env: &'a BackupEnv,
    selected: &Selected,
    local: Local,
    plan: SendPlan,
    sight: &Sight,
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
            let stored = sight.backup(&backup).ok_or_else(unknown)?;
            let (manifest, manifest_blake3) = (stored.manifest.clone(), stored.manifest_blake3);
            let before = sight.target.chain(sight.beside.seen(), &backup.id);
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
