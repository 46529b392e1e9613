//! Finds datasets that need no new backup, because nothing was written since the newest one.
//!
//! The proof is the stream itself: an incremental from the backup's snapshot that has no record
//! between BEGIN and END. It is read only if ZFS estimates next to nothing (the property
//! `written@SNAPSHOT`), so that a changed dataset costs no second read. What `private.age` records
//! beside the stream must be the same as well.
//!
//! In a store with object locks a backup is made when half of the days are over, to extend them. Raw
//! streams of encrypted datasets are always backed up: `zfs change-key` writes nothing to the
//! dataset, and the new wrapped key must reach the store.

use super::documents::Recorded;
use super::planning::{Gathered, Local, View, decide};
use super::source::{SendSource, send_flags};
use super::{BackupEnd, BackupEnv, PlannedBackup, StoreRole};
use crate::catalog::remembered::{is_recent, read_at, recall};
use crate::catalog::stores::{RemoteView, StoresView};
use crate::catalog::usable::UsableCatalog;
use crate::model::{BackupId, Guid, ReadFault};
use crate::plan::send::{RequestedKind, SendPlan, is_longer_level_due, newest_comparable};
use crate::run::blocking::blocking;
use crate::run::pool::select::Selected;
use crate::run::transfer::StreamSource;
use crate::run::{RunError, error_chain};
use crate::state::history::HistoryRecords;
use crate::state::journal::read_attempts;
use crate::store::ObjectLock;
use crate::stream::record::{RecordType, StreamExpectation, StreamParser};
use crate::zfs::{SendRequest, Snapshot};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::io::Read;

/// The estimate above which a dataset counts as changed; its stream is not read. ZFS estimates 0
/// for an unchanged snapshot, or the 624 bytes of BEGIN and END.
const ESTIMATE_BYTES_MAX: u64 = 4096;
/// The bytes that are read of such a stream. BEGIN, with its payload, and END are far shorter.
const STREAM_BYTES_MAX: u64 = 64 << 10;

/// Decides what to send, if anything was written since the newest backup.
///
/// # Errors
/// As for [`decide`].
pub(super) async fn plan(
    env: &BackupEnv,
    view: &View,
    requested: RequestedKind,
    unreadable: &BTreeMap<Guid, ReadFault>,
) -> Result<PlannedBackup, RunError> {
    match find_unchanged(env, view, requested, unreadable).await? {
        None => decide(env, view, requested, unreadable),
        // A full that is due waits until something is written.
        Some(unchanged) if unchanged.is_level_due => {
            decide(env, view, RequestedKind::Incremental, unreadable)
        }
        Some(unchanged) => Ok(PlannedBackup {
            plan: unchanged.plan,
            estimate_bytes: None,
            stepped_over: Vec::new(),
        }),
    }
}

/// A dataset to which nothing was written.
struct UnchangedDataset {
    /// The plan: no backup.
    plan: SendPlan,
    /// Whether a backup of a longer level is due nevertheless.
    is_level_due: bool,
}

/// Returns the plan for a dataset whose newest snapshot differs in nothing from the newest usable
/// backup; `None` for every other dataset.
///
/// # Errors
/// [`RunError`] when the pool or this host's records cannot be read.
async fn find_unchanged(
    env: &BackupEnv,
    view: &View,
    requested: RequestedKind,
    unreadable: &BTreeMap<Guid, ReadFault>,
) -> Result<Option<UnchangedDataset>, RunError> {
    let settings = &env.settings;
    let flags = send_flags(&view.local.dataset, settings);
    let is_raw = flags.raw && view.local.dataset.encrypted;
    if !settings.skip_unchanged || requested != RequestedKind::Lifecycle || is_raw {
        return Ok(None);
    }
    let candidates = view.local.candidates(settings)?;
    let newest = candidates
        .first()
        .filter(|newest| !unreadable.contains_key(&newest.guid));
    let gathered = Gathered::new(env, view);
    let facts = gathered.facts(env, view, newest.copied(), None);
    let (Some(snapshot), Some((base, backup))) = (newest, newest_comparable(&facts)) else {
        return Ok(None);
    };
    if must_extend_locks(env, backup.made.finished_at) || !has_same_records(env, view, &backup.id)?
    {
        return Ok(None);
    }
    let source = SendSource {
        zfs: env.zfs.clone(),
        request: SendRequest {
            snapshot: snapshot.name.clone(),
            base: Some(base),
            flags,
            resume: None,
        },
    };
    let expect = StreamExpectation {
        snapshot_guid: snapshot.guid,
        base_guid: Some(backup.snapshot.guid),
    };
    let is_unchanged = blocking(move || is_empty(&source, expect)).await?;
    Ok(is_unchanged.then(|| UnchangedDataset {
        plan: SendPlan::Unchanged {
            snapshot: Snapshot::clone(snapshot),
            id: backup.id.clone(),
        },
        is_level_due: is_longer_level_due(&facts, &settings.lifecycle, backup),
    }))
}

/// Returns whether the next backup must be made to extend the object locks of the chain: only a
/// commit does that. Half of their days are over then.
fn must_extend_locks(env: &BackupEnv, committed_at: Timestamp) -> bool {
    let half = |lock: ObjectLock| SignedDuration::from_hours(i64::from(lock.days) * 12);
    let lock = env.store.object_lock();
    lock.is_some_and(|lock| (env.now)().duration_since(committed_at) >= half(lock))
}

/// Returns whether `private.age` of this backup has what a new one would have.
fn has_same_records(env: &BackupEnv, view: &View, id: &BackupId) -> Result<bool, RunError> {
    let dataset = &view.stores.target.catalog.dataset;
    let records = HistoryRecords::new(&env.settings.state_dir, &env.store.known(), dataset);
    let note = records.recorded()?;
    let now = Recorded::of(&view.local.dataset, false).blake3()?;
    Ok(note.is_some_and(|note| note.id == *id && note.blake3 == now))
}

/// Returns whether the stream is complete and has no record between BEGIN and END. Any error means
/// "no": a backup will report it.
fn is_empty(source: &SendSource, expect: StreamExpectation) -> bool {
    let estimate = source.zfs.send_space(&source.request);
    if !estimate.is_ok_and(|bytes| bytes <= ESTIMATE_BYTES_MAX) {
        return false;
    }
    let Ok(mut stream) = source.open(None) else {
        return false;
    };
    let mut bytes = Vec::new();
    let read = stream
        .reader()
        .take(STREAM_BYTES_MAX)
        .read_to_end(&mut bytes);
    let mut parser = StreamParser::new(expect);
    let is_whole = read.is_ok() && stream.finish().is_ok() && parser.feed(&bytes).is_ok();
    let Some(Ok(summary)) = is_whole.then(|| parser.finish()) else {
        return false;
    };
    let ends = [RecordType::Begin, RecordType::End].map(|end| summary.records.of(end));
    summary.checked && summary.records.total() == ends.iter().sum::<u64>()
}

/// Decides without the store whether the dataset needs a new backup: by the backups that were whole
/// when this host last read the store or committed to it. Returns `None` if only the store can
/// tell: it was not read for days, it lists nothing of the dataset, or this host has an unfinished
/// upload of it.
///
/// # Errors
/// [`RunError`] when the pool cannot be read.
pub(super) async fn settle_from_memory(
    env: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
) -> Result<Option<BackupEnd>, RunError> {
    let is_listed = env
        .listed
        .as_ref()
        .is_some_and(|listed| listed.contains(&selected.stored));
    let may_skip = env.role == StoreRole::Remote
        && env.settings.skip_unchanged
        && requested == RequestedKind::Lifecycle
        && is_listed;
    if !may_skip {
        return Ok(None);
    }
    let local = Local::read_apart(env, selected).await?;
    let stores = match remembered_stores(env, selected) {
        Ok(Some(stores)) => stores,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::debug!(dataset = %local.dataset.name, error = error_chain(&error), "reading the store, because this host's records of it cannot be read");
            return Ok(None);
        }
    };
    let view = View { stores, local };
    let candidates = view.local.candidates(&env.settings)?;
    let facts = view.stores.target_facts();
    let stored = candidates.first().and_then(|newest| {
        facts
            .iter()
            .find(|backup| backup.is_usable() && backup.snapshot.guid == newest.guid)
    });
    if let Some(backup) = stored {
        return Ok(Some(BackupEnd::UpToDate(backup.id.clone())));
    }
    let found = find_unchanged(env, &view, requested, &BTreeMap::new()).await?;
    let found = found.filter(|unchanged| !unchanged.is_level_due);
    Ok(found.and_then(|unchanged| BackupEnd::without_upload(unchanged.plan)))
}

/// Returns what this host knows of the store, if that is recent and whole and no upload of the
/// dataset is unfinished.
fn remembered_stores(env: &BackupEnv, selected: &Selected) -> Result<Option<StoresView>, RunError> {
    let (state_dir, known) = (&env.settings.state_dir, env.store.known());
    if !read_attempts(state_dir, &known, &selected.stored)?.is_empty()
        || !read_at(state_dir, &known, &selected.stored)?
            .is_some_and(|at| is_recent(at, (env.now)(), selected.dataset.guid))
    {
        return Ok(None);
    }
    let recalled = recall(state_dir, &known, &selected.stored, &env.keys.trusted)?;
    let Some((catalog, 0)) = recalled else {
        return Ok(None);
    };
    Ok(Some(StoresView {
        target: UsableCatalog::remembered(catalog),
        remote: RemoteView::None,
        unseen: None,
    }))
}
