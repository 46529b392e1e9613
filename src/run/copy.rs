//! `upload-intermediate-to-remote`: copies to the remote the backups of the intermediate directory
//! that were never committed there, the same bytes, parents first.
//!
//! Each backup goes in the order of writes of a commit: lock -> journal -> `started` -> keyring ->
//! chunks, each confirmed -> listing equals what was confirmed -> RESTORE.txt, private, lists ->
//! journal `committing` -> a receipt of the new store -> manifest, its signature first -> read
//! back. Everything that is read is held against the signed manifest while it is sent: damage of
//! the intermediate copy ends its backup before it is committed. What an interrupted run has stored
//! is not sent again.

mod backup;
mod chunks;
mod keyring;
pub mod sums;

use super::RunError;
use super::identity::refuse_one_place;
use super::keys::WriterKeys;
use super::transfer::{Progress, ProgressSink, Stop};
use crate::catalog::usable::Seen;
use crate::catalog::{Catalog, StoredBackup, read_catalog, read_prune_records};
use crate::manifest::LiveEntry;
use crate::model::{BackupId, DatasetName};
use crate::plan::BackupFacts;
use crate::plan::copy::{CopyGap, CopyInput, CopyPlan, CopyStep, LeftReason, plan_copy};
use crate::run::copy::backup::Copy;
use crate::sign::TrustedKeys;
use crate::state::dataset_lock::lock_dataset;
use crate::store::{ObjectKey, ObjectStore};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Everything that copying needs besides the dataset.
pub struct UploadEnv {
    /// The intermediate directory.
    pub from: Arc<dyn ObjectStore>,
    /// The remote.
    pub to: Arc<dyn ObjectStore>,
    /// The keys: what signs the receipts, and who is believed. The keyring of today is in the
    /// remote already.
    pub keys: WriterKeys,
    /// Locks and journals lie here.
    pub state_dir: PathBuf,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Is told how many bytes of chunks there are to copy, and gives who hears about progress.
    /// `sent_bytes` counts what is held against what is there, too.
    pub progress: Arc<dyn Fn(u64) -> ProgressSink + Send + Sync>,
    /// Asks to stop.
    pub stop: Stop,
}

/// Says which backups of the directory (second) the rules of the remote would delete at once,
/// beside what is in the remote (first).
pub type WouldBePruned<'a> =
    &'a (dyn Fn(&[BackupFacts], &[BackupFacts]) -> BTreeSet<BackupId> + Sync);

/// What is not copied although it could be.
pub struct UploadRules<'a> {
    /// Also what was or would be pruned.
    pub all: bool,
    /// The rules of the remote.
    pub would_be_pruned: WouldBePruned<'a>,
}

/// What is to be copied of one dataset.
#[derive(Debug)]
pub struct UploadPlan {
    /// The decisions.
    pub plan: CopyPlan,
    /// Backups of the directory whose manifest is not believed.
    pub disbelieved: Vec<(BackupId, RunError)>,
    from: Catalog,
    live: Vec<LiveEntry>,
    records: BTreeSet<ObjectKey>,
}

/// What became of one dataset.
#[derive(Debug, Default)]
pub struct UploadReport {
    /// Copied and read back.
    pub copied: Vec<CopiedBackup>,
    /// Not needed in the remote.
    pub left: Vec<(BackupId, LeftReason)>,
    /// Not copied, with the reason of each.
    pub failed: Vec<(BackupId, RunError)>,
}

/// One backup that is in the remote now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedBackup {
    /// Its id.
    pub id: BackupId,
    /// Its chunks.
    pub chunks: usize,
    /// Bytes of its chunks.
    pub stored_bytes: u64,
    /// Bytes of the chunks that were sent by this run.
    pub sent_bytes: u64,
    /// Chunks that an earlier run had stored, and of which the store confirms the size only.
    pub by_size_only: usize,
}

impl UploadPlan {
    /// Bytes of the objects of these backups, as the directory lists them.
    pub fn bytes_of<'a>(&self, ids: impl IntoIterator<Item = &'a BackupId>) -> u64 {
        ids.into_iter()
            .filter_map(|id| self.from.backup(id))
            .map(StoredBackup::stored_bytes)
            .sum()
    }
}

/// Looks at both stores and decides. Changes nothing.
///
/// # Errors
/// [`RunError`] when something could not be asked: nothing is known then.
pub async fn plan_upload(
    from: &dyn ObjectStore,
    to: &dyn ObjectStore,
    trusted: &TrustedKeys,
    dataset: &DatasetName,
    rules: &UploadRules<'_>,
) -> Result<UploadPlan, RunError> {
    refuse_one_place(&from.known(), &to.known())?;
    let mut source = read_catalog(from, dataset, trusted).await?;
    let disbelieved = source.attempts.iter_mut();
    let disbelieved = disbelieved
        .filter_map(|attempt| Some((attempt.id.clone(), attempt.disbelieved.take()?.into())));
    let disbelieved = disbelieved.collect();
    let local: Vec<BackupFacts> = source.backups.iter().map(facts_of).collect();
    if local.is_empty() {
        let (plan, live, records) = Default::default();
        return Ok(UploadPlan {
            plan,
            disbelieved,
            from: source,
            live,
            records,
        });
    }
    // Before the backups: a record that is put from now on is a new one.
    let records = read_prune_records(to, dataset, trusted, None).await?;
    let target = read_catalog(to, dataset, trusted).await?;
    let live = target.backups.iter().map(live_entry).collect();
    let doubted = target.disbelieved().map(|(id, _)| id.clone()).collect();
    let never_there = local.iter().any(|facts| target.backup(&facts.id).is_none());
    let remote = match never_there {
        true => Seen::look(to, target).await?.facts(None),
        // Everything is there: what it is worth is for verify-checksums to say.
        false => target.backups.iter().map(facts_of).collect(),
    };
    let pruned = records
        .iter()
        .flat_map(|(_, record)| &record.pruned)
        .map(|entry| entry.id.clone())
        .collect();
    let records = records.into_iter().map(|(key, _)| key).collect();
    let would_be_pruned = if never_there {
        (rules.would_be_pruned)(&remote, &local)
    } else {
        BTreeSet::new()
    };
    let plan = plan_copy(&CopyInput {
        local: &local,
        remote: &remote,
        disbelieved: &doubted,
        pruned: &pruned,
        would_be_pruned: &would_be_pruned,
        all: rules.all,
    });
    Ok(UploadPlan {
        plan,
        disbelieved,
        from: source,
        live,
        records,
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

fn live_entry(backup: &StoredBackup) -> LiveEntry {
    LiveEntry {
        id: backup.manifest.id.clone(),
        manifest_blake3: backup.manifest_blake3,
    }
}

/// Copies what the remote lacks of one dataset. A backup that fails takes with it those that follow
/// from it; the others go on, unless a stop was asked for.
///
/// # Errors
/// [`RunError::State`], or [`RunError`] when it could not be planned; what fails later is in the
/// report.
pub async fn upload_dataset(
    env: &UploadEnv,
    dataset: &DatasetName,
    rules: &UploadRules<'_>,
) -> Result<UploadReport, RunError> {
    let _lock = lock_dataset(&env.state_dir, &env.to.known(), dataset)?;
    let planned = plan_upload(&*env.from, &*env.to, &env.keys.trusted, dataset, rules).await?;
    let UploadPlan {
        plan,
        disbelieved,
        from,
        mut live,
        records,
    } = planned;
    let mut report = UploadReport {
        left: plan.left,
        failed: disbelieved,
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
    let (progress, mut done) = ((env.progress)(total_bytes), Progress::default());
    for CopyStep { id, parent } in plan.copy {
        let Some(backup) = from.backup(&id) else {
            continue;
        };
        if *env.stop.borrow() {
            report.failed.push((id, RunError::Interrupted));
            break;
        }
        let has_failed = |base: &&BackupId| report.failed.iter().any(|(failed, _)| failed == *base);
        if let Some(parent) = parent.as_ref().filter(has_failed) {
            let gap = CopyGap::ParentNotCopied {
                of: id.clone(),
                parent: parent.clone(),
            };
            report.failed.push((id, refusal(dataset, &gap)));
            continue;
        }
        let copy = Copy {
            env,
            backup,
            parent: parent.as_ref(),
            live: &live,
            records: &records,
            progress: &*progress,
        };
        match copy.run(&mut done).await {
            Ok(copied) => {
                live.push(live_entry(backup));
                report.copied.push(copied);
            }
            Err(error) => report.failed.push((id, error)),
        }
    }
    Ok(report)
}

/// What cannot be copied, with what a person can do.
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
