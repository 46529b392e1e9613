//! `upload-intermediate-to-remote`: copies to the remote the backups of the intermediate directory
//! that were never committed there, the same bytes, parents first.
//!
//! Each backup is copied in the order of writes of a commit: lock -> journal -> `started` ->
//! keyring -> chunks, each confirmed -> listing equals what was confirmed -> RESTORE.txt, private,
//! lists -> journal `committing` -> a receipt of the new store -> manifest, its signature first ->
//! read back. Every object is checked against the signed manifest while it is sent: damage in the
//! intermediate copy fails the backup before it is committed. Objects that an interrupted run has
//! stored are not sent again.

mod backup;
mod chunks;
mod keyring;
pub mod sums;

pub use chunks::CopyPool;

use super::RunError;
use super::identity::refuse_one_place;
use super::keys::WriterKeys;
use super::transfer::{Progress, ProgressSink, Stop};
use crate::catalog::usable::UsableCatalog;
use crate::catalog::{Catalog, StoredBackup, read_catalog, read_prune_records};
use crate::manifest::{LiveEntry, PruneRecord};
use crate::model::{BackupId, DatasetName};
use crate::plan::BackupFacts;
use crate::plan::copy::{CopyGap, CopyInput, CopyPlan, CopyStep, LeftReason, plan_copy};
use crate::run::copy::backup::Copy;
use crate::sign::TrustedKeys;
use crate::state::dataset_lock::lock_dataset;
use crate::store::{ObjectKey, ObjectStore, StoreRead};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// The environment of a copy: stores, keys, state folder and sinks, without the dataset.
pub struct UploadEnv {
    /// The intermediate directory.
    pub from: Arc<dyn StoreRead>,
    /// The remote.
    pub to: Arc<dyn ObjectStore>,
    /// The memory that all datasets of the run share.
    pub pool: CopyPool,
    /// The keys that sign the receipts, and the trusted keys. The present keyring is already in the
    /// remote.
    pub keys: WriterKeys,
    /// The folder of locks and journals.
    pub state_dir: PathBuf,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Receives the total bytes of chunks to copy, and returns the sink that receives the progress.
    /// `sent_bytes` also counts the bytes of stored chunks that are compared instead of sent.
    pub progress: Arc<dyn Fn(u64) -> ProgressSink + Send + Sync>,
    /// Becomes true to request a stop.
    pub stop: Stop,
}

/// Returns which backups of the directory (second argument) the rules of the remote would delete at
/// once, given the backups in the remote (first argument).
pub type WouldBePruned<'a> =
    &'a (dyn Fn(&[BackupFacts], &[BackupFacts]) -> BTreeSet<BackupId> + Sync);

/// The rules that exclude backups from a copy.
pub struct UploadRules<'a> {
    /// Whether to copy even backups that were pruned or would be pruned.
    pub all: bool,
    /// The rules of the remote.
    pub would_be_pruned: WouldBePruned<'a>,
}

/// The plan to copy one dataset.
#[derive(Debug)]
pub struct UploadPlan {
    /// The decisions.
    pub plan: CopyPlan,
    /// Backups of the directory whose manifest does not verify.
    pub untrusted: Vec<(BackupId, RunError)>,
    from: Catalog,
    live: Vec<LiveEntry>,
    records: BTreeMap<ObjectKey, PruneRecord>,
}

/// The result for one dataset.
#[derive(Debug, Default)]
pub struct UploadReport {
    /// The backups that were copied and read back.
    pub copied: Vec<CopiedBackup>,
    /// The backups that the remote does not need.
    pub left: Vec<(BackupId, LeftReason)>,
    /// The backups that were not copied, with the reason of each.
    pub failed: Vec<(BackupId, RunError)>,
}

/// A backup that is now in the remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopiedBackup {
    /// The backup's id.
    pub id: BackupId,
    /// The number of chunks.
    pub chunks: usize,
    /// The bytes of the chunks.
    pub stored_bytes: u64,
    /// The bytes of the chunks that this run sent.
    pub sent_bytes: u64,
    /// The number of chunks that an earlier run had stored, and of which the store confirms only
    /// the size.
    #[serde(rename = "chunks_confirmed_by_size_only")]
    pub by_size_only: usize,
}

impl UploadPlan {
    /// Returns the bytes of the objects of these backups, as the directory lists them.
    pub fn bytes_of<'a>(&self, ids: impl IntoIterator<Item = &'a BackupId>) -> u64 {
        ids.into_iter()
            .filter_map(|id| self.from.backup(id))
            .map(StoredBackup::stored_bytes)
            .sum()
    }
}

/// Reads both stores and decides what to copy. Changes nothing.
///
/// # Errors
/// [`RunError`] when something could not be read; then there is no plan.
pub async fn plan_upload(
    from: &dyn StoreRead,
    to: &dyn StoreRead,
    trusted: &TrustedKeys,
    dataset: &DatasetName,
    rules: &UploadRules<'_>,
) -> Result<UploadPlan, RunError> {
    refuse_one_place(&from.known(), &to.known())?;
    let mut source = read_catalog(from, dataset, trusted).await?;
    let untrusted = source.attempts.iter_mut();
    let untrusted = untrusted
        .filter_map(|attempt| Some((attempt.id.clone(), attempt.untrusted.take()?.into())));
    let untrusted = untrusted.collect();
    let local: Vec<BackupFacts> = source.backups.iter().map(facts_of).collect();
    if local.is_empty() {
        let (plan, live, records) = Default::default();
        return Ok(UploadPlan {
            plan,
            untrusted,
            from: source,
            live,
            records,
        });
    }
    // Read the records before the backups, so that every record put from now on counts as new.
    let records = read_prune_records(to, dataset, trusted, None).await?;
    let target = read_catalog(to, dataset, trusted).await?;
    let live = target.live();
    let doubted = target.untrusted().map(|(id, _)| id.clone()).collect();
    let never_there = local.iter().any(|facts| target.backup(&facts.id).is_none());
    let remote = match never_there {
        true => UsableCatalog::check(to, target).await?.facts(None),
        // The remote has every backup: skip the check of its chunks, which is the task of
        // `verify-checksums`.
        false => target.backups.iter().map(facts_of).collect(),
    };
    let pruned = records
        .iter()
        .flat_map(|(_, record)| &record.pruned)
        .map(|entry| entry.id.clone())
        .collect();
    let would_be_pruned = if never_there {
        (rules.would_be_pruned)(&remote, &local)
    } else {
        BTreeSet::new()
    };
    let plan = plan_copy(&CopyInput {
        local: &local,
        remote: &remote,
        untrusted: &doubted,
        pruned: &pruned,
        would_be_pruned: &would_be_pruned,
        all: rules.all,
    });
    Ok(UploadPlan {
        plan,
        untrusted,
        from: source,
        live,
        records: records.into_iter().collect(),
    })
}

fn facts_of(backup: &StoredBackup) -> BackupFacts {
    BackupFacts::new(
        &backup.manifest,
        backup.manifest_blake3,
        backup.stored_bytes(),
        None,
    )
}

/// Copies what the remote lacks of one dataset. If a backup fails, its descendants are not copied;
/// the others are, unless a stop was requested.
///
/// # Errors
/// [`RunError::State`], or [`RunError`] when the copy could not be planned; later failures are in
/// the report.
pub async fn upload_dataset(
    env: &UploadEnv,
    dataset: &DatasetName,
    rules: &UploadRules<'_>,
) -> Result<UploadReport, RunError> {
    let _lock = lock_dataset(&env.state_dir, &env.to.known(), dataset)?;
    let planned = plan_upload(&*env.from, &*env.to, &env.keys.trusted, dataset, rules).await?;
    let UploadPlan {
        plan,
        untrusted,
        from,
        mut live,
        records,
    } = planned;
    let mut report = UploadReport {
        left: plan.left,
        failed: untrusted,
        ..UploadReport::default()
    };
    report.failed.extend(
        plan.refused
            .into_iter()
            .map(|(id, gap)| (id, refusal(dataset, &gap))),
    );
    let total_bytes = plan
        .copy
        .iter()
        .filter_map(|step| from.backup(&step.id))
        .map(StoredBackup::stored_bytes)
        .sum();
    let progress = (env.progress)(total_bytes);
    let mut done = Progress::default();
    for CopyStep { id, parent } in plan.copy {
        let Some(backup) = from.backup(&id) else {
            continue;
        };
        if *env.stop.borrow() {
            report.failed.push((id, RunError::Interrupted));
            break;
        }
        let in_remote = |id: &BackupId| live.iter().find(|entry| entry.id == *id).cloned();
        let parent = match parent
            .map(|parent| in_remote(&parent).ok_or(parent))
            .transpose()
        {
            Ok(parent) => parent,
            Err(parent) => {
                let of = id.clone();
                let gap = CopyGap::ParentNotCopied { of, parent };
                report.failed.push((id, refusal(dataset, &gap)));
                continue;
            }
        };
        let copy = Copy {
            env,
            backup,
            parent: parent.as_ref(),
            is_parent_new: report
                .copied
                .iter()
                .any(|copied| parent.as_ref().is_some_and(|parent| parent.id == copied.id)),
            live: &live,
            records: &records,
            progress: &*progress,
        };
        match copy.run(&mut done).await {
            Ok(copied) => {
                live.push(backup.live_entry());
                report.copied.push(copied);
            }
            Err(error) => report.failed.push((id, error)),
        }
    }
    Ok(report)
}

/// Returns an error for a backup that cannot be copied, with what a person can do.
pub fn refusal(dataset: &DatasetName, gap: &CopyGap) -> RunError {
    let what = format!("{dataset}: {gap}");
    let hint = match gap {
        CopyGap::DamagedParent { parent, .. } => {
            return RunError::Damaged { key: crate::store::key::backup_prefix(dataset, parent), reason: what };
        }
        CopyGap::Differs { id } => {
            return RunError::Damaged { key: crate::store::key::backup_prefix(dataset, id), reason: what };
        }
        CopyGap::MissingParent { .. } => {
            "it can never be restored; `export-intermediate --full` begins a new chain".to_owned()
        }
        CopyGap::PrunedParent { .. } => {
            "`upload-intermediate-to-remote --all` copies both; `export-intermediate --full` begins a new chain"
                .to_owned()
        }
        CopyGap::ParentNotCopied { parent, .. } => format!("see what is said of {parent}"),
    };
    RunError::refused(what, hint)
}
