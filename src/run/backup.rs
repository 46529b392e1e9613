//! One backup of one dataset into one store, in the order of writes that makes a crash harmless.
//!
//! lock -> plan -> holds -> empty prefix -> `started` -> base chain still usable -> chunks, each confirmed -> listing
//! equals what was confirmed -> END verified and `lzc_send` returned 0 -> bookmark -> RESTORE.txt, private, lists ->
//! base still there -> receipt -> signatures -> manifest -> read back and verified -> holds released -> bookmarks that
//! nothing needs any more. Whatever fails before the manifest leaves no backup.

mod attempt;
mod chain;
mod commit;
mod planning;
mod put;
mod release;

use super::keys::WriterKeys;
use super::lock::lock_dataset;
use super::place::record_place;
use super::select::Selected;
use super::transfer::{ProgressSink, Stop};
use super::{RunError, error_chain};
use crate::config::{RawMode, SnapshotSource};
use crate::manifest::Manifest;
use crate::model::{BackupId, BackupKind};
use crate::plan::send::{LifecycleRules, RequestedKind, SendPlan};
use crate::store::{Evidence, ObjectStore};
use crate::stream::seal::Compression;
use crate::zfs::Zfs;
use attempt::{Attempt, new_id, send_flags};
use jiff::Timestamp;
use planning::{Base, Local, Sight, decide, look, remember_remote};
use release::release_bookmarks;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Which kind is made when nobody asks for one.
    pub lifecycle: LifecycleRules,
    /// Locks, journals and what is remembered lie here.
    pub state_dir: PathBuf,
    /// This host's name, for `private.age` only.
    pub host: String,
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
    /// Its URL, also when it could not be opened.
    pub url: String,
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
    /// The other configured store, where there is one: for the intermediate directory bases may lie there.
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

/// What became of one dataset.
#[derive(Debug)]
pub enum BackupOutcome {
    /// A new backup is committed.
    Committed(Box<CommittedBackup>),
    /// The newest snapshot is stored already.
    UpToDate(BackupId),
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
    let sight = look(env, &selected.stored).await?;
    decide(env, &Local::read(&*env.zfs, selected)?, &sight, requested)
}

/// Backs one dataset up.
///
/// # Errors
/// [`RunError`]; then there is no new backup, and nothing that was there has changed.
pub async fn back_up(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
) -> Result<BackupOutcome, RunError> {
    let started_at = (env.now)();
    let state_dir = &env.settings.state_dir;
    let _lock = lock_dataset(state_dir, env.store.url(), &selected.stored)?;
    let sight = look(env, &selected.stored).await?;
    remember_remote(env, &selected.stored, &sight).await;
    let mut is_first_try = true;
    let committed = loop {
        let local = Local::read(&*env.zfs, selected)?;
        let planned = decide(env, &local, &sight, requested)?;
        if let SendPlan::UpToDate { id } = planned.plan {
            return Ok(BackupOutcome::UpToDate(id));
        }
        record_place(state_dir, local.dataset.guid, &selected.stored)?;
        (env.planned)(&planned);
        let attempt = prepare(env, selected, local, planned.plan, &sight, started_at)?;
        match attempt.run(&sight).await {
            Ok(committed) => break committed,
            Err(error) if is_first_try && !*env.stop.borrow() && has_lost(&attempt) => {
                let error = error_chain(&error);
                tracing::warn!(error, "what was to be sent or built on was destroyed meanwhile; planning again");
                is_first_try = false;
            }
            Err(error) => return Err(error),
        }
    };
    release_bookmarks(env, &selected.dataset.name, &selected.stored, &sight, &committed.manifest).await;
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
        SendPlan::Incremental { snapshot, base, backup } => {
            let unknown = || RunError::refused(format!("{} is not known any more", backup.id), "run it again");
            let stored = sight.backup(&backup).ok_or_else(unknown)?;
            let (manifest, manifest_blake3) = (stored.manifest.clone(), stored.manifest_blake3);
            let before = sight.target.chain(sight.beside.seen(), &backup.id);
            (snapshot, Some(Base { local: base, manifest, manifest_blake3 }), before)
        }
        SendPlan::Full { snapshot, .. } => (snapshot, None, Vec::new()),
        SendPlan::UpToDate { id } => {
            return Err(RunError::refused(format!("{id} is up to date"), "this is a defect: please report it"));
        }
    };
    let kind = if base.is_some() { BackupKind::Incr } else { BackupKind::Full };
    let (id, flags) = (new_id(&snapshot, kind)?, send_flags(&local.dataset, &env.settings));
    let (local, stored) = (local.dataset, selected.stored.clone());
    Ok(Attempt { env, local, stored, snapshot, base, before, id, flags, started_at })
}
