//! Handles the remains of a restore that ended early: keeps them for the next run to resume, or
//! destroys the datasets that this restore made.
//!
//! The restore made the datasets that carry its [`RestoreMark`] with its token. All of them are checked
//! before any is destroyed.

use super::mark::{Begun, RestoreMark, RestoreToken, Scratch, is_made_parent};
use super::rollback::written_bytes;
use crate::model::{DatasetName, Guid, SnapshotName};
use crate::run::{RunError, error_chain};
use crate::zfs::{Dataset, ResumeToken, Snapshot, Zfs, ZfsError, ZfsRead, ZfsReceive};
use std::collections::BTreeSet;

/// Whether the same restore can be resumed later: the cause of the error was not the data.
pub(super) fn may_resume(error: &RunError) -> bool {
    // The last two mean that somebody else works on the target.
    const PASSING: [i32; 6] = [
        libc::EINTR,
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EAGAIN,
        libc::EBUSY,
        libc::ETXTBSY,
    ];
    match error {
        RunError::Interrupted | RunError::Store(_) | RunError::TargetChanged { .. } => true,
        RunError::Zfs(error) => error
            .errno()
            .is_some_and(|errno| PASSING.contains(&errno.0)),
        _ => false,
    }
}

/// Whether the kernel or the stored stream makes it impossible to resume a receive, so that it must
/// start over.
pub(super) fn must_start_over(error: &RunError) -> bool {
    match error {
        RunError::CannotResumeReceive { .. } => true,
        RunError::Zfs(error) => error
            .errno()
            .is_some_and(|errno| [libc::EINVAL, libc::ENOTSUP].contains(&errno.0)),
        _ => false,
    }
}

/// Reports what stays of a restore that can be resumed. If nothing was received yet, destroys the
/// parents that the restore made.
pub(super) fn leave_half(
    zfs: &dyn ZfsReceive,
    target: &DatasetName,
    mark: &RestoreMark,
    made: &[DatasetName],
) {
    match zfs.dataset(target) {
        Ok(Some(dataset)) if stays_ours(&dataset, mark) => {
            tracing::warn!(
                "{target} keeps what was received: the same command resumes the restore, with --restart it starts over"
            );
        }
        Ok(Some(_)) => say_not_ours(target),
        Ok(None) => {
            if let Err(error) = destroy_parents(zfs, mark.token(), made) {
                tracing::warn!(
                    error = error_chain(&error),
                    "the parent datasets that were created for {target} stay"
                );
            }
        }
        Err(error) => tracing::warn!(
            error = error_chain(&error),
            "check {target}: it may be half received"
        ),
    }
}

/// Whether the dataset stays and can be resumed. A mark of an older build has no token and counts
/// too.
fn stays_ours(dataset: &Dataset, mark: &RestoreMark) -> bool {
    let is_old = mark.token().is_none() && Begun::of(dataset).is_some();
    mark.is_on(dataset) || is_old || !mark.is_of_new()
}

fn say_not_ours(target: &DatasetName) {
    tracing::warn!(
        "{target} does not carry the mark of this restore, so it is not ours and stays unchanged"
    );
}

/// Destroys the datasets that this restore, or an earlier run of it, made. A dataset without this
/// restore's mark stays, and so does a dataset with anything that the restore did not receive.
///
/// # Errors
/// [`RunError`] when part of them stays.
pub(super) fn remove_received(
    zfs: &dyn Zfs,
    target: &DatasetName,
    mark: &RestoreMark,
    guids: &BTreeSet<Guid>,
    made: &[DatasetName],
) -> Result<(), RunError> {
    match zfs.dataset(target)? {
        Some(dataset) if mark.is_on(&dataset) && mark.is_of_new() => {
            destroy_whole(zfs, &dataset, guids)?
        }
        Some(_) => {
            say_not_ours(target);
            return Ok(());
        }
        None => {}
    }
    Ok(destroy_parents(zfs, mark.token(), made)?)
}

/// Destroys a dataset that is known to be ours, with its snapshots, if all belong to the chain and
/// the dataset has nothing else. Checks everything before it destroys anything.
fn destroy_whole(zfs: &dyn Zfs, dataset: &Dataset, guids: &BTreeSet<Guid>) -> Result<(), RunError> {
    let target = &dataset.name;
    let stays = |what: &str| {
        let quoted = shell_words::quote(target.as_str());
        RunError::refused(
            format!("{target} stays: it has {what}"),
            format!("if it may go: zfs destroy -r {quoted}"),
        )
    };
    if dataset.inconsistent {
        // The dataset has only the interrupted receive, and the mark came with that receive.
        return Ok(zfs.abort_receive(target)?);
    }
    let token = dataset.resume_token()?;
    if token
        .as_ref()
        .is_some_and(|token| !guids.contains(&token.to_guid))
    {
        return Err(stays("an interrupted receive of something else"));
    }
    let snapshots = zfs.snapshots(target)?;
    let strange = |snapshot: &&Snapshot| !guids.contains(&snapshot.guid) || snapshot.holds > 0;
    if let Some(other) = snapshots.iter().find(strange) {
        return Err(stays(&format!(
            "{}, which the restore did not make or which is held",
            other.name
        )));
    }
    if let Some(child) = zfs.children(target)?.first() {
        return Err(stays(&format!("the dataset {} below it", child.name)));
    }
    if let Some(bookmark) = zfs.bookmarks(target)?.first() {
        return Err(stays(&format!("the bookmark {}", bookmark.name)));
    }
    if token.is_some() {
        zfs.abort_receive(target)?;
    }
    // The kernel destroys all snapshots or none: a snapshot that now has a clone or is being sent
    // prevents the destruction of all.
    let names: Vec<SnapshotName> = snapshots
        .into_iter()
        .map(|snapshot| snapshot.name)
        .collect();
    if !names.is_empty() {
        zfs.destroy_snapshots(&names)?;
    }
    Ok(zfs.destroy_dataset(target)?)
}

/// Destroys the parents that this restore made and that are empty; ZFS refuses to destroy the
/// others.
fn destroy_parents(
    zfs: &dyn ZfsReceive,
    token: Option<RestoreToken>,
    made: &[DatasetName],
) -> Result<(), ZfsError> {
    for parent in made.iter().rev() {
        match zfs.dataset(parent)? {
            Some(dataset) if is_made_parent(&dataset, token) => zfs.destroy_dataset(parent)?,
            // A parent with another mark is not ours, and the parents above contain it.
            Some(_) => return Ok(()),
            None => {}
        }
    }
    Ok(())
}

/// Abandons an interrupted receive onto a dataset that stays, if the dataset carries the token and
/// `is_such` accepts the receive.
///
/// # Errors
/// [`ZfsError`].
pub(super) fn abort_cut(
    zfs: &dyn ZfsReceive,
    target: &DatasetName,
    token: Option<RestoreToken>,
    is_such: impl Fn(&ResumeToken) -> bool,
) -> Result<(), ZfsError> {
    let Some(dataset) = zfs.dataset(target)? else {
        return Ok(());
    };
    let is_ours = token.is_some() && Begun::of(&dataset).is_some_and(|begun| begun.token == token);
    match dataset.resume_token()? {
        Some(cut) if is_ours && !dataset.inconsistent && is_such(&cut) => zfs.abort_receive(target),
        _ => Ok(()),
    }
}

/// Destroys, on request, the datasets that an earlier run received, if they still carry that run's
/// token.
///
/// # Errors
/// [`RunError`] when anything stays.
pub(super) fn destroy_begun(
    zfs: &dyn Zfs,
    target: &DatasetName,
    token: RestoreToken,
    guids: &BTreeSet<Guid>,
) -> Result<(), RunError> {
    let Some(dataset) = zfs.dataset(target)? else {
        return Ok(());
    };
    match Begun::of(&dataset) {
        Some(begun) if begun.token == Some(token) && begun.is_new => {
            refuse_written(zfs, &dataset)?;
            destroy_whole(zfs, &dataset, guids)
        }
        _ => Err(RunError::refused(
            format!("{target} no longer carries the mark of the restore that was to be abandoned"),
            "something else changed the dataset: check it, and run the command again",
        )),
    }
}

/// Refuses a dataset that somebody wrote to after its newest snapshot was received. The snapshots
/// alone do not show that: a restore that was killed before it removed its mark leaves a complete
/// dataset, which people may use for months.
fn refuse_written(zfs: &dyn ZfsRead, dataset: &Dataset) -> Result<(), RunError> {
    // An inconsistent dataset cannot be mounted: its bytes are those of the stream.
    let Some(bytes) = written_bytes(dataset).filter(|bytes| *bytes > 0 && !dataset.inconsistent)
    else {
        return Ok(());
    };
    // Without a snapshot ZFS counts all bytes as written. An earlier run destroyed the snapshots
    // after this same check, and was killed before it destroyed the dataset.
    if zfs.snapshots(&dataset.name)?.is_empty() {
        return Ok(());
    }
    let quoted = shell_words::quote(dataset.name.as_str());
    Err(RunError::refused(
        format!(
            "{} stays: {bytes} bytes were written to it since its newest snapshot",
            dataset.name
        ),
        format!("check its contents; if it may go: zfs destroy -r {quoted}"),
    ))
}

/// Checks that an interrupted receive belongs to the restore with that token, before the receive is
/// abandoned to start over.
///
/// # Errors
/// [`RunError::Refused`] naming the target when it does not.
pub(super) fn check_own(
    zfs: &dyn ZfsRead,
    target: &DatasetName,
    token: Option<RestoreToken>,
    why: &RunError,
) -> Result<(), RunError> {
    let found = zfs
        .dataset(target)?
        .and_then(|dataset| Begun::of(&dataset)?.token);
    if found.is_some() && found == token {
        return Ok(());
    }
    let quoted = shell_words::quote(target.as_str());
    Err(RunError::refused(
        format!(
            "{target} has an interrupted receive that cannot be resumed: {}",
            error_chain(why)
        ),
        format!(
            "nothing proves that it belongs to this restore; to abandon it: zfs receive -A {quoted}"
        ),
    ))
}

/// Destroys the scratch dataset that an earlier drill left, if it has the same snapshots and
/// nothing was written to it.
///
/// # Errors
/// [`RunError`] naming what stays.
pub(in crate::run) fn destroy_left_scratch(
    zfs: &dyn Zfs,
    target: &DatasetName,
    guids: &BTreeSet<Guid>,
) -> Result<(), RunError> {
    if let Some(dataset) = zfs.dataset(target)? {
        refuse_written(zfs, &dataset)?;
    }
    destroy_scratch(zfs, target, guids)
}

/// Destroys the scratch dataset of a drill that has ended, if it has no more than the snapshots
/// with these guids.
///
/// # Errors
/// [`RunError`] naming what stays.
pub(in crate::run) fn destroy_scratch(
    zfs: &dyn Zfs,
    target: &DatasetName,
    guids: &BTreeSet<Guid>,
) -> Result<(), RunError> {
    let Some(dataset) = zfs.dataset(target)? else {
        return Ok(());
    };
    match Scratch::of(&dataset) {
        Some(_) => destroy_whole(zfs, &dataset, guids),
        None => {
            let quoted = shell_words::quote(target.as_str());
            Err(RunError::refused(
                format!("{target} does not carry the mark of a drill"),
                format!("if it may go: zfs destroy -r {quoted}"),
            ))
        }
    }
}

#[cfg(test)]
mod tests;
