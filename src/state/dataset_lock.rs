//! The kernel lock: one run per store and dataset on this host, whatever the lockfile contains. The
//! lock ends with the process.

use super::dir::state_name;
use super::dir::{create_folder, open_or_create};
use super::error::{StateError, failed};
use crate::model::{DatasetName, KnownStore};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// A kernel lock that is held until it is dropped.
#[derive(Debug)]
pub struct KernelLock {
    _file: File,
}

/// Takes the lock of one dataset in one store, without waiting.
///
/// # Errors
/// [`StateError::Locked`] when another process has it; [`StateError::File`] when the lock file
/// cannot be made.
pub fn lock_dataset(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
) -> Result<KernelLock, StateError> {
    lock_named(
        state_dir,
        &state_name(store, dataset),
        &format!("{dataset} in {}", store.url),
    )
}

/// Returns whether another process seems to have the lock of one dataset in one store. Reads
/// `/proc/locks` and takes no lock, so that it never blocks a run that starts. The result is for
/// people; it must not decide what may be changed.
///
/// # Errors
/// [`StateError::File`] when the lock file or `/proc/locks` cannot be read.
pub fn is_held(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
) -> Result<bool, StateError> {
    is_held_named(state_dir, &state_name(store, dataset))
}

/// Does the same as [`is_held`], by the lock's name.
///
/// # Errors
/// As for [`is_held`].
pub(crate) fn is_held_named(state_dir: &Path, name: &str) -> Result<bool, StateError> {
    use std::os::unix::fs::MetadataExt;
    let path = state_dir.join("locks").join(format!("{name}.lock"));
    let failed = |path: &Path, source| failed("read", path, source);
    let inode = match path.metadata() {
        Ok(facts) => format!(":{}", facts.ino()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(failed(&path, source)),
    };
    let table = Path::new("/proc/locks");
    let locks = std::fs::read_to_string(table).map_err(|source| failed(table, source))?;
    // Compare the inode alone: with overlays and some other file systems the device in this table
    // differs from the device that stat returns.
    let is_ours = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"FLOCK") && words.get(5).is_some_and(|place| place.ends_with(&inode))
    };
    Ok(locks.lines().any(is_ours))
}

/// Takes the lock of that name, without waiting. The error names `subject`.
///
/// # Errors
/// As for [`lock_dataset`].
pub fn lock_named(state_dir: &Path, name: &str, subject: &str) -> Result<KernelLock, StateError> {
    let folder = state_dir.join("locks");
    create_folder(&folder).map_err(|source| failed("create", &folder, source))?;
    let path = folder.join(format!("{name}.lock"));
    let mut file = open_or_create(&path).map_err(|source| failed("open", &path, source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // The process id is only for the text of [`StateError::Locked`]: a failed write is no
            // reason to fail.
            if let Err(error) = write_holder(&mut file) {
                tracing::debug!(%error, path = %path.display(), "the lock does not name its owner");
            }
            Ok(KernelLock { _file: file })
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked {
            subject: subject.to_owned(),
            holder: read_holder(&mut file),
        }),
        Err(errno) => Err(failed("lock", &path, errno.into())),
    }
}

fn write_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

fn read_holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_of_the_same_dataset_and_store_is_refused_and_others_are_not() {
        let state = tempfile::tempdir().unwrap();
        let dataset: DatasetName = "tank/a".parse().unwrap();
        let held = lock_dataset(state.path(), &KnownStore::of_url("s3:b"), &dataset).unwrap();
        let refused = lock_dataset(state.path(), &KnownStore::of_url("s3:b"), &dataset)
            .unwrap_err()
            .to_string();
        let expected = format!(
            "tank/a in s3:b is being worked on by another run, process {}",
            std::process::id()
        );
        assert_eq!(refused, expected);
        assert!(lock_dataset(state.path(), &KnownStore::of_url("s3:c"), &dataset).is_ok());
        assert!(
            lock_dataset(
                state.path(),
                &KnownStore::of_url("s3:b"),
                &"tank/b".parse().unwrap()
            )
            .is_ok()
        );
        let seems_held =
            |store| is_held(state.path(), &KnownStore::of_url(store), &dataset).unwrap();
        assert!(seems_held("s3:b") && !seems_held("s3:c") && !seems_held("s3:d"));
        drop(held);
        assert!(!seems_held("s3:b"));
        assert!(lock_dataset(state.path(), &KnownStore::of_url("s3:b"), &dataset).is_ok());
    }
}
