//! What is left of a restore that ended early: kept so that the next run goes on, or taken away, and only what is ours.

use super::target::Begun;
use crate::model::{DatasetName, Guid, SnapshotName};
use crate::run::{RunError, error_chain};
use crate::zfs::{Dataset, ResumeToken, Zfs, ZfsError};
use std::collections::BTreeSet;

/// Whether the same restore could go on where this one ended: what stopped it was not the data.
pub(super) fn may_go_on(error: &RunError) -> bool {
    // The last two are of a target that somebody else works on.
    const PASSING: [i32; 6] = [libc::EINTR, libc::ENOSPC, libc::EDQUOT, libc::EAGAIN, libc::EBUSY, libc::ETXTBSY];
    match error {
        RunError::Interrupted | RunError::Store(_) => true,
        RunError::Zfs(error) => error.errno().is_some_and(|errno| PASSING.contains(&errno.0)),
        _ => false,
    }
}

/// Whether the kernel, or the stored stream, does not take up a receive: only from its start it can be had.
pub(super) fn must_start_over(error: &RunError) -> bool {
    match error {
        RunError::CannotTakeUp { .. } => true,
        RunError::Zfs(error) => error.errno().is_some_and(|errno| [libc::EINVAL, libc::ENOTSUP].contains(&errno.0)),
        _ => false,
    }
}

/// Says what stays of a restore that can go on; where nothing was received yet, the parents that it made go again.
pub(super) fn leave_half(zfs: &dyn Zfs, target: &DatasetName, made: &[DatasetName]) {
    match zfs.dataset(target) {
        Ok(Some(_)) => {
            tracing::warn!(
                "{target} keeps what was received: the same command goes on there, with --restart it starts over"
            );
        }
        Ok(None) => {
            if let Err(error) = destroy_parents(zfs, made) {
                tracing::warn!(error = error_chain(&error), "parents that were made for {target} stay");
            }
        }
        Err(error) => tracing::warn!(error = error_chain(&error), "look at {target}: it may be half received"),
    }
}

/// Takes away what this restore, or an earlier run of it, made. The dataset is known to be ours by a snapshot that we
/// received or by the receive that was cut: one that somebody else made under this name meanwhile has neither, and is
/// not touched.
///
/// # Errors
/// [`ZfsError`]: something of it stays.
pub(super) fn remove_received(
    zfs: &dyn Zfs,
    target: &DatasetName,
    guids: &BTreeSet<Guid>,
    made: &[DatasetName],
) -> Result<(), ZfsError> {
    if let Some(dataset) = zfs.dataset(target)? {
        let is_cut = dataset.resume_token()?.is_some_and(|token| guids.contains(&token.to_guid));
        let (ours, others): (Vec<_>, Vec<_>) =
            zfs.snapshots(target)?.into_iter().partition(|snapshot| guids.contains(&snapshot.guid));
        if ours.is_empty() && !(is_cut && dataset.inconsistent) {
            return Ok(());
        }
        if is_cut {
            zfs.abort_receive(target)?;
        }
        if !dataset.inconsistent {
            zfs.destroy_snapshots(&ours.into_iter().map(|snapshot| snapshot.name).collect::<Vec<_>>())?;
            if !others.is_empty() {
                return Ok(());
            }
            zfs.destroy_dataset(target)?;
        }
    }
    destroy_parents(zfs, made)
}

/// Those that have anything in them by now are not destroyed.
fn destroy_parents(zfs: &dyn Zfs, made: &[DatasetName]) -> Result<(), ZfsError> {
    made.iter().rev().try_for_each(|parent| zfs.destroy_dataset(parent))
}

/// Gives up the receive that was cut, if there is one and it is such; the dataset stays if it was there before. The
/// dataset as it was until then; `None` where there is none.
///
/// # Errors
/// [`ZfsError`].
pub(super) fn abort_cut(
    zfs: &dyn Zfs,
    target: &DatasetName,
    is_such: impl Fn(&ResumeToken) -> bool,
) -> Result<Option<Dataset>, ZfsError> {
    let Some(dataset) = zfs.dataset(target)? else { return Ok(None) };
    if dataset.resume_token()?.is_some_and(|token| is_such(&token)) {
        zfs.abort_receive(target)?;
    }
    Ok(Some(dataset))
}

/// Destroys what an earlier run received, as was asked for, once [`super::check_target`] has found all of it to be ours.
///
/// # Errors
/// [`ZfsError`]: something of it stays.
pub(super) fn destroy_begun(zfs: &dyn Zfs, target: &DatasetName, guids: &BTreeSet<Guid>) -> Result<(), ZfsError> {
    let Some(dataset) = abort_cut(zfs, target, |_| true)? else { return Ok(()) };
    if dataset.inconsistent {
        return Ok(());
    }
    let ours = zfs.snapshots(target)?.into_iter().filter(|snapshot| guids.contains(&snapshot.guid));
    zfs.destroy_snapshots(&ours.map(|snapshot| snapshot.name).collect::<Vec<_>>())?;
    // One that has others by now is not destroyed.
    zfs.destroy_dataset(target)
}

/// Before a receive that was cut is given up to start over: that it is ours.
///
/// # Errors
/// [`RunError::Refused`] naming it when it is not.
pub(super) fn check_own(target: &DatasetName, begun: Option<&Begun>, why: &RunError) -> Result<(), RunError> {
    match begun {
        Some(_) => Ok(()),
        None => Err(RunError::refused(
            format!("{target} has an interrupted receive that cannot go on: {}", error_chain(why)),
            format!("nothing says that it is of this tool; to give it up: zfs receive -A {target}"),
        )),
    }
}

/// Destroys a dataset that was received whole for a rehearsal: its snapshots and itself, if it has nothing else.
///
/// # Errors
/// [`ZfsError`] naming what stays.
pub(in crate::run) fn destroy_received(
    zfs: &dyn Zfs,
    target: &DatasetName,
    received: &[SnapshotName],
) -> Result<(), ZfsError> {
    zfs.destroy_snapshots(received)?;
    zfs.destroy_dataset(target)
}
