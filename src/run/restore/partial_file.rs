//! [`PartialFile`]: the file that a bare stream is written to until it is complete. An interrupted
//! restore leaves it, and the next run finds it by its name, which has the id of the backup.

use crate::model::BackupId;
use crate::run::RunError;
use crate::state::StateError;
use crate::state::dir::{create_beside, create_new, folder_of, open_or_create};
use crate::state::restore_lock::holder_of;
use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags, flock, fsync, linkat, renameat_with};
use rustix::io::Errno;
use std::fs::{File, remove_file};
use std::io::{Error, ErrorKind, Result as IoResult};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Permission bits of users other than the owner to write.
const OTHERS_WRITE: u32 = 0o022;
/// Limit of attempts to lock a file that another run names or removes at the same moment.
const LOCK_TRIES_MAX: u32 = 10;

/// The partial file of one backup for one target, which only this run writes. Dropping it removes
/// the file if it is empty; else the file stays.
#[derive(Debug)]
pub struct PartialFile {
    /// The locked file. The lock lasts until all handles to the file are closed.
    pub(super) file: File,
    pub(super) path: PathBuf,
    is_named: bool,
}

/// Returns the path of the partial file: `TARGET.ID.partial`.
pub(super) fn partial_path(target: &Path, id: &BackupId) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(format!(".{id}.partial"));
    path.into()
}

/// Returns the partial files of other backups for the same target.
pub fn other_partials(target: &Path, id: &BackupId) -> Vec<PathBuf> {
    let Some(name) = target.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    let is_other = |found: &str| {
        let middle = found
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('.'));
        let other = middle.and_then(|middle| middle.strip_suffix(".partial")?.parse().ok());
        other.is_some_and(|other: BackupId| other != *id)
    };
    let entries = std::fs::read_dir(folder_of(target))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_other))
        .map(|entry| entry.path())
        .collect()
}

/// Refuses an existing file that others may have written or still write: the content could change
/// after it was checked.
pub(super) fn check_owned(file: &File, path: &Path) -> Result<(), RunError> {
    let found = file.metadata().map_err(failed("read", path))?;
    let user = rustix::process::geteuid().as_raw();
    let wrong = if found.uid() != user {
        format!("it belongs to user {}, expected {user}", found.uid())
    } else if found.mode() & OTHERS_WRITE != 0 {
        format!("its mode {:o} lets others write", found.mode() & 0o7777)
    } else if found.nlink() != 1 {
        format!("it has {} hard links, expected 1", found.nlink())
    } else {
        return Ok(());
    };
    let path = path.display().to_string();
    let quoted = shell_words::quote(&path);
    Err(RunError::refused(
        format!("resume the partial file {path}: {wrong}"),
        format!("to start over: rm {quoted}; then run the same command again"),
    ))
}

impl PartialFile {
    /// Opens or makes the partial file, accessible only for this user, and locks it.
    ///
    /// # Errors
    /// [`RunError::State`] when another run has the lock; [`RunError::Refused`] for a file that
    /// others can write, or a folder in which no file can get a name without replacing another;
    /// [`RunError::File`].
    pub fn open(target: &Path, id: &BackupId) -> Result<Self, RunError> {
        check_naming(target)?;
        let path = partial_path(target, id);
        for _ in 0..LOCK_TRIES_MAX {
            let file = match create_new(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let file = open_or_create(&path).map_err(failed("open", &path))?;
                    check_owned(&file, &path)?;
                    file
                }
                made => made.map_err(failed("create", &path))?,
            };
            lock(&file, &path)?;
            // The run that had the lock before may have named or removed the file meanwhile.
            if is_at(&file, &path) {
                return Ok(Self {
                    file,
                    path,
                    is_named: false,
                });
            }
        }
        let path = path.display();
        Err(RunError::refused(
            format!("lock {path}: other runs keep creating and removing the file"),
            "end them, and run the command again",
        ))
    }

    /// Returns the path of the file while it is partial.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the length in bytes; 0 when it cannot be read.
    pub fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |found| found.len())
    }

    /// Makes the content durable, and gives the file its name, which must not exist.
    ///
    /// # Errors
    /// The error of the file system; [`ErrorKind::AlreadyExists`] when the name exists.
    pub fn become_named(&mut self, target: &Path) -> IoResult<()> {
        self.file.sync_all()?;
        name_new(&self.path, target)?;
        self.is_named = true;
        match fsync(&File::open(folder_of(target))?) {
            // A network file system may be unable to sync a folder, and then need not.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            synced => Ok(synced?),
        }
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.is_named && self.bytes() == 0 && is_at(&self.file, &self.path) {
            drop(remove_file(&self.path));
        }
    }
}

fn lock(file: &File, path: &Path) -> Result<(), RunError> {
    note_lock(
        flock(file, FlockOperation::NonBlockingLockExclusive),
        file,
        path,
    )
}

/// Interprets the result of `flock`.
fn note_lock(locked: Result<(), Errno>, file: &File, path: &Path) -> Result<(), RunError> {
    match locked {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(RunError::State(StateError::Locked {
            subject: path.display().to_string(),
            holder: holder_of(file),
        })),
        // A network file system may have no locks.
        Err(errno @ (Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS)) => {
            tracing::warn!(
                "cannot lock {} ({errno}): run only one restore into it",
                path.display()
            );
            Ok(())
        }
        Err(errno) => Err(failed("lock", path)(errno.into())),
    }
}

/// Whether the path leads to this file.
fn is_at(file: &File, path: &Path) -> bool {
    let place = |found: std::fs::Metadata| (found.dev(), found.ino());
    let at_path = path.symlink_metadata().map(place);
    matches!((at_path, file.metadata().map(place)), (Ok(one), Ok(other)) if one == other)
}

/// Checks that the file system of `target` can name a file without replacing another one, before
/// hours are spent on the content. The probe uses a free name, because the kernel checks for an
/// existing name before it asks the file system.
fn check_naming(target: &Path) -> Result<(), RunError> {
    check_naming_by(target, name_new).map_err(|error| {
        RunError::refused(
            format!("cannot write {}: {error}", target.display()),
            "the folder must be writable, and its file system must have hard links or RENAME_NOREPLACE (ext4, XFS, ZFS and \
             NFS have one of them); name a file in another folder, or use --stdout with a shell redirection",
        )
    })
}

fn check_naming_by(
    target: &Path,
    name: impl Fn(&Path, &Path) -> rustix::io::Result<()>,
) -> IoResult<()> {
    let (_, from) = create_beside(target)?;
    let to = from.with_extension("named");
    let named = name(&from, &to);
    let left = if named.is_ok() { to } else { from };
    drop(remove_file(left));
    Ok(named?)
}

/// Renames a file without replacing another one.
fn name_new(from: &Path, to: &Path) -> rustix::io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system cannot rename without replacing. A hard link refuses to replace too,
        // where it is supported.
        Err(Errno::INVAL | Errno::NOSYS) => {
            linkat(CWD, from, CWD, to, AtFlags::empty()).map(|()| drop(remove_file(from)))
        }
        renamed => renamed,
    }
}

pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(Error) -> RunError {
    let path = path.display().to_string();
    move |source| RunError::File {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn naming_check_fails_early_on_unsupported_file_systems_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stream");
        check_naming(&path).unwrap();
        let refused = check_naming_by(&path, |_, to| {
            assert!(!to.exists(), "the kernel refuses this by itself");
            Err(Errno::PERM)
        });
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert!(
            names(folder.path()).is_empty(),
            "{:?}",
            names(folder.path())
        );
    }

    #[test]
    fn file_system_without_locks_only_warns_and_other_failures_of_a_lock_are_errors() {
        let file = tempfile::tempfile().unwrap();
        let lock_result = |locked| note_lock(locked, &file, Path::new("/x/stream.partial"));
        for errno in [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS] {
            lock_result(Err(errno)).unwrap();
        }
        let locked = lock_result(Err(Errno::WOULDBLOCK)).unwrap_err();
        assert!(
            matches!(&locked, RunError::State(StateError::Locked { subject, .. }) if subject.contains("stream.partial")),
            "{locked:?}"
        );
        let failed = lock_result(Err(Errno::IO)).unwrap_err();
        assert!(matches!(failed, RunError::File { .. }), "{failed:?}");
    }

    #[test]
    fn naming_fails_if_the_name_exists_and_keeps_the_partial_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stream");
        let id = "20261122T212604Z-full-0123456789abcdef-fedcba9876543210"
            .parse()
            .unwrap();
        let mut partial = PartialFile::open(&path, &id).unwrap();
        std::io::Write::write_all(&mut &partial.file, b"whole").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert_eq!(
            partial.become_named(&path).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        assert!(path.symlink_metadata().unwrap().is_symlink());
        assert_eq!(partial.bytes(), 5);
        fs::remove_file(&path).unwrap();
        partial.become_named(&path).unwrap();
        drop(partial);
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(names(folder.path()), ["stream"]);
    }
}
