//! A restore drill: restores a chain into a scratch dataset, checks the result and destroys the
//! dataset again.
//!
//! The kernel checks every record while it receives, and the received snapshots must have the guids
//! of the manifests. If the source still has a snapshot and its base, the drill also hashes the
//! stream that the pool sends now and compares it with the restored stream: both must have the same
//! bytes.

mod compare;

use crate::keyring::KeyFile;
use crate::model::{DatasetName, Guid};
use crate::plan::space::Fit;
use crate::run::restore::{
    ArrivingDataset, PropertyChoice, ReceiveOptions, ReceivePlan, RestoreSet, ResumeChoice,
    SCRATCH_PROPERTY, Scratch, check_allowed, destroy_left_scratch, destroy_scratch, judge_fit,
    lock_target, restore_to_dataset,
};
use crate::run::runner::Runner;
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::zfs::{Dataset, Zfs, ZfsHost, ZfsRead};
use compare::compare_all;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// The prefix of the names of scratch datasets.
pub const SCRATCH_PREFIX: &str = "zfs-backup-drill-";
/// The release from which on ZFS sends the same bytes behind an embedded block each time
/// (openzfs/zfs#13778).
pub const EMBEDDED_PADDING_FIXED: [u32; 3] = [2, 1, 8];

/// The result of comparing one restored stream of a chain with the stream that the pool sends now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// Both streams have the same bytes.
    Same,
    /// The streams could not be compared, with the reason.
    Not(String),
}

/// The result of a successful drill.
#[derive(Debug)]
pub struct DrillReport {
    /// A comparison for each backup of the chain.
    pub compared: Vec<Comparison>,
    /// Why the scratch dataset could not be destroyed; `None` when it was destroyed.
    pub left: Option<RunError>,
}

/// A scratch dataset that an earlier drill left, with the result of the clean-up.
#[derive(Debug)]
pub enum AbandonedScratch {
    /// The drill that made it had ended, and the dataset was destroyed.
    Destroyed(DatasetName),
    /// The dataset stays; the error has the reason and the remedy.
    Stays(DatasetName, RunError),
}

/// Destroys the scratch datasets below `parent` whose drills have ended. Such a dataset has the
/// name and the mark of a scratch dataset, is not locked in `locks`, and contains only what the
/// drill received. All others are only reported.
///
/// # Errors
/// [`RunError::Zfs`] when the datasets cannot be listed.
pub fn clean_up(
    zfs: &dyn Zfs,
    parent: &DatasetName,
    locks: Option<&Path>,
) -> Result<Vec<AbandonedScratch>, RunError> {
    find_leftovers(zfs, parent)?
        .into_iter()
        .map(|dataset| Ok(clean_up_one(zfs, dataset, locks)))
        .collect()
}

/// Returns the scratch datasets of drills below `parent`: all that have the mark or the name of
/// one.
///
/// # Errors
/// [`RunError::Zfs`] when the datasets cannot be listed.
pub fn find_leftovers(zfs: &dyn ZfsRead, parent: &DatasetName) -> Result<Vec<Dataset>, RunError> {
    let is_scratch =
        |dataset: &Dataset| Scratch::of(dataset).is_some() || has_scratch_name(dataset);
    Ok(zfs
        .children(parent)?
        .into_iter()
        .filter(is_scratch)
        .collect())
}

fn has_scratch_name(dataset: &Dataset) -> bool {
    dataset
        .name
        .as_str()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .starts_with(SCRATCH_PREFIX)
}

fn clean_up_one(zfs: &dyn Zfs, dataset: Dataset, locks: Option<&Path>) -> AbandonedScratch {
    let name = dataset.name.clone();
    let quoted = shell_words::quote(name.as_str());
    let by_hand = format!("once no drill is running: zfs destroy -r {quoted}");
    let stays = |what: &str| {
        RunError::refused(
            format!("{name} was left by an earlier drill, and stays: {what}"),
            &by_hand,
        )
    };
    let Some(locks) = locks else {
        return AbandonedScratch::Stays(name.clone(), stays("that drill may still be running"));
    };
    let Some(scratch) = Scratch::of(&dataset) else {
        return AbandonedScratch::Stays(
            name.clone(),
            stays("it does not carry the mark of a drill"),
        );
    };
    // The mark alone proves nothing: a user with the permission `userprop` can set it on any
    // dataset, with the guids of its snapshots. An administrator who renames a scratch dataset
    // wants to keep it.
    if !has_scratch_name(&dataset) {
        return AbandonedScratch::Stays(
            name.clone(),
            RunError::refused(
                format!(
                    "{name} carries the mark of a drill, but not the name of a scratch dataset, and stays"
                ),
                format!(
                    "to keep it: zfs inherit {SCRATCH_PROPERTY} {quoted}; if it may go: zfs destroy -r {quoted}"
                ),
            ),
        );
    }
    // The lock is held while the dataset is destroyed, so that no other run can use the dataset.
    let destroyed = lock_target(locks, &name)
        .map_err(RunError::from)
        .and_then(|_lock| destroy_left_scratch(zfs, &name, &scratch.guids));
    match destroyed {
        Ok(()) => AbandonedScratch::Destroyed(name),
        Err(error) => AbandonedScratch::Stays(name, error),
    }
}

/// Restores a chain into a scratch dataset below `parent`, checks it and destroys the scratch
/// dataset again. `source` is the dataset that was backed up, if it is in this pool. The scratch
/// dataset is locked in `locks` during the drill, so that the next drill can see that this one is
/// running.
///
/// # Errors
/// [`RunError`] when the chain does not restore; [`RunError::Damaged`] when a stream differs from
/// the one that the pool sends. The scratch dataset is destroyed then too; a warning names it if
/// that fails.
pub async fn drill(
    set: &RestoreSet,
    keys: &KeyFile,
    zfs: &Arc<dyn Zfs>,
    source: Option<&Dataset>,
    parent: &DatasetName,
    locks: Option<&Path>,
    stop: Stop,
) -> Result<DrillReport, RunError> {
    let scratch = scratch_name(parent)?;
    let options = scratch_options(set)?;
    let _lock = locks
        .map(|locks| lock_target(locks, &scratch))
        .transpose()?;
    let received =
        restore_to_dataset(set, keys, Arc::clone(zfs), &scratch, &options, stop.clone()).await?;
    let compared = match source {
        Some(source) => compare_all(set, &received, zfs, source, &stop).await,
        None => Ok(set
            .backups
            .iter()
            .map(|_| Comparison::Not("the dataset is not in this pool".to_owned()))
            .collect()),
    };
    let guids: BTreeSet<Guid> = set
        .backups
        .iter()
        .map(|backup| backup.manifest.snapshot.guid)
        .collect();
    let left = destroy_scratch(&**zfs, &scratch, &guids)
        .err()
        .map(|error| {
            let what = format!(
                "the scratch dataset {scratch} of this drill stays: {}",
                error_chain(&error)
            );
            let quoted = shell_words::quote(scratch.as_str());
            RunError::refused(what, format!("zfs destroy -r {quoted}"))
        });
    match compared {
        Ok(compared) => Ok(DrillReport { compared, left }),
        Err(error) => {
            if let Some(left) = left {
                tracing::warn!(hint = left.hint(), "{left}");
            }
            Err(error)
        }
    }
}

/// Checks whether this user may do what a drill below `parent` does.
///
/// # Errors
/// [`RunError::Refused`] naming the missing permissions.
pub fn check_drill_allowed(
    zfs: &dyn ZfsHost,
    set: &RestoreSet,
    parent: &DatasetName,
    runner: &Runner,
) -> Result<(), RunError> {
    let scratch = scratch_name(parent)?;
    let options = scratch_options(set)?;
    check_allowed(
        zfs,
        &scratch,
        set,
        &ReceivePlan::default(),
        &options,
        runner,
    )
}

fn scratch_options(set: &RestoreSet) -> Result<ReceiveOptions, RunError> {
    // A receive mounts nothing. These properties also prevent a mount after a reboot. A volume has
    // no mount point; `volmode=none` keeps its device away.
    let is_volume = set
        .newest()
        .private
        .as_ref()
        .is_some_and(|private| private.properties.contains_key("volsize"));
    let kept_away = if is_volume {
        "volmode=none"
    } else {
        "canmount=off"
    };
    let properties = PropertyChoice::new(false, &[kept_away.to_owned()], &[])
        .map_err(|error| RunError::defect(error.to_string()))?;
    // A drill is never resumed, and leaves nothing behind.
    Ok(ReceiveOptions {
        properties,
        rollback: false,
        resume: ResumeChoice::Never,
    })
}

fn scratch_name(parent: &DatasetName) -> Result<DatasetName, RunError> {
    let nonce = getrandom::u32()?;
    let name = format!("{parent}/{SCRATCH_PREFIX}{nonce:08x}");
    name.parse().map_err(|_| {
        RunError::refused(
            format!("{name} is too long for a dataset"),
            "choose another --into",
        )
    })
}

/// Judges whether the chain fits below `parent`.
///
/// # Errors
/// [`RunError::Refused`] when `parent` does not exist; [`RunError::Zfs`].
pub fn judge_drill_fit(
    zfs: &dyn ZfsRead,
    set: &RestoreSet,
    parent: &DatasetName,
) -> Result<Fit, RunError> {
    if zfs.dataset(parent)?.is_none() {
        return Err(RunError::refused(
            format!("{parent} does not exist"),
            "choose an existing dataset with --into",
        ));
    }
    let arriving = ArrivingDataset {
        set,
        plan: &ReceivePlan::default(),
        options: &scratch_options(set)?,
    };
    Ok(judge_fit(zfs, parent, &[arriving]))
}
