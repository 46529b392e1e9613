//! [`lock_target`]: allows one restore or drill at a time, on this host, into a dataset, the
//! datasets above it and those below it.
//!
//! Two restores may have two configurations, or none, so `state_dir` cannot hold the locks. They
//! are in a folder that all processes of one user share and that a reboot empties:
//! `/run/zfs-backup` for root, `/run/user/UID/zfs-backup` for others. The lock serves people: its
//! error names the other process at once. The restore token in the marks keeps one restore from
//! destroying data that another received, also between users, hosts and tools. So when the folder
//! cannot be made, a restore continues without a lock.

use super::dir::hashed_name;
use super::error::{StateError, failed};
use crate::model::DatasetName;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A lock until dropped: exclusive on the target, and shared on the datasets above it with restores
/// into their other children.
#[derive(Debug)]
pub struct RestoreLock {
    _files: Vec<File>,
}

/// Returns the folder of this user's locks and makes it if necessary; `None` where there is no such
/// place.
pub fn lock_folder() -> Option<PathBuf> {
    let uid = rustix::process::geteuid();
    let run = if uid.is_root() {
        PathBuf::from("/run")
    } else {
        Path::new("/run/user").join(uid.as_raw().to_string())
    };
    let folder = run.join("zfs-backup");
    match DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => Some(folder),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let facts = folder.symlink_metadata().ok()?;
            (facts.is_dir() && facts.uid() == uid.as_raw()).then_some(folder)
        }
        Err(error) => {
            tracing::debug!(%error, folder = %folder.display(), "no lock on the target of a restore");
            None
        }
    }
}

/// Locks a target in that folder, without waiting.
///
/// # Errors
/// [`StateError::Locked`] naming the process that restores into it, above it or below it;
/// [`StateError::File`].
pub fn lock_target(folder: &Path, target: &DatasetName) -> Result<RestoreLock, StateError> {
    let mut files = vec![lock_file(
        folder,
        target,
        FlockOperation::NonBlockingLockExclusive,
        target,
    )?];
    let mut above = target.parent();
    while let Some(parent) = above {
        files.push(lock_file(
            folder,
            &parent,
            FlockOperation::NonBlockingLockShared,
            target,
        )?);
        above = parent.parent();
    }
    Ok(RestoreLock { _files: files })
}

fn lock_file(
    folder: &Path,
    dataset: &DatasetName,
    operation: FlockOperation,
    target: &DatasetName,
) -> Result<File, StateError> {
    let path = folder.join(format!("restore-{}.lock", hashed_name(dataset.as_str())));
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path);
    let file = opened.map_err(|source| failed("open", &path, source))?;
    match flock(&file, operation) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            let subject = match dataset == target {
                true => format!("the restore target {target}, or a dataset below it,"),
                false => format!("the restore target {dataset}, above {target},"),
            };
            Err(StateError::Locked {
                subject,
                holder: holder_of(&file),
            })
        }
        Err(errno) => Err(failed("lock", &path, errno.into())),
    }
}

/// Returns the process that has the lock, as far as the kernel's table shows it.
pub(crate) fn holder_of(file: &File) -> Option<u32> {
    let inode = format!(":{}", file.metadata().ok()?.ino());
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_it = words.get(1) == Some(&"FLOCK")
            && words.get(5).is_some_and(|place| place.ends_with(&inode));
        words
            .get(4)
            .filter(|_| is_it)?
            .parse()
            .ok()
            .filter(|pid| *pid != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    #[test]
    fn a_target_and_all_above_and_below_it_have_one_restore_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = |target: &str| lock_target(folder.path(), &name(target));
        let held = lock("tank/back/photos").unwrap();
        let refused = lock("tank/back/photos").unwrap_err().to_string();
        assert!(refused.contains("tank/back/photos"), "{refused}");
        assert!(
            refused.ends_with(&format!("process {}", std::process::id())),
            "{refused}"
        );
        let above = lock("tank/back").unwrap_err().to_string();
        assert!(
            above.contains("tank/back, or a dataset below it"),
            "{above}"
        );
        let below = lock("tank/back/photos/2026").unwrap_err().to_string();
        assert!(
            below.contains("tank/back/photos, above tank/back/photos/2026"),
            "{below}"
        );
        let beside = lock("tank/back/music").unwrap();
        drop(held);
        assert!(lock("tank/back").is_err(), "one beside is still at work");
        drop(beside);
        assert!(lock("tank/back").is_ok());
    }

    #[test]
    fn a_link_in_the_place_of_a_lock_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        drop(lock_target(folder.path(), &name("tank/a")).unwrap());
        let entries = || {
            std::fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().path())
        };
        let victim = folder.path().join("victim");
        for path in entries().collect::<Vec<_>>() {
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&victim, &path).unwrap();
        }
        assert!(matches!(
            lock_target(folder.path(), &name("tank/a")),
            Err(StateError::File { .. })
        ));
        assert!(!victim.exists());
    }
}
