//! [`NewFile`]: a file that gets its name only when it is complete, and never replaces another
//! file.

use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with};
use rustix::io::Errno;
use std::fs::{File, OpenOptions, remove_file};
use std::io::{Error, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A temporary file with a random name in the folder of the file that it becomes. Dropping it
/// earlier removes the file.
#[derive(Debug)]
pub(crate) struct NewFile {
    partial: Option<PathBuf>,
}

impl NewFile {
    /// Makes a file that only this user can access. The random name cannot be prepared in advance,
    /// and links are not followed.
    pub(crate) fn create_beside(path: &Path) -> Result<(File, Self)> {
        let random = getrandom::u64().map_err(|error| Error::other(error.to_string()))?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{random:016x}.partial"));
        let partial = PathBuf::from(partial);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&partial)?;
        Ok((
            file,
            Self {
                partial: Some(partial),
            },
        ))
    }

    /// Checks that the file system of `path` can name a file without replacing another one, before
    /// hours are spent on the content. The probe uses a free name, because the kernel checks for an
    /// existing name before it asks the file system.
    pub(crate) fn check_naming(path: &Path) -> Result<()> {
        Self::check_naming_by(path, name_new)
    }

    fn check_naming_by(
        path: &Path,
        name: impl Fn(&Path, &Path) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let (_, mut probe) = Self::create_beside(path)?;
        let Some(from) = probe.partial.take() else {
            return Ok(());
        };
        let to = from.with_extension("named");
        let named = name(&from, &to);
        probe.partial = Some(if named.is_ok() { to } else { from });
        Ok(named?)
    }

    /// Gives the file its name, which must not exist: else the error is
    /// [`std::io::ErrorKind::AlreadyExists`].
    pub(crate) fn become_named(mut self, path: &Path) -> Result<()> {
        let Some(partial) = self.partial.take() else {
            return Ok(());
        };
        let named = name_new(&partial, path);
        if named.is_err() {
            self.partial = Some(partial);
        }
        Ok(named?)
    }
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

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            drop(remove_file(partial));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn new_file_is_named_when_complete_and_has_mode_0600() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stream");
        let (mut file, partial) = NewFile::create_beside(&path).unwrap();
        file.write_all(b"whole").unwrap();
        assert!(!path.exists());
        partial.become_named(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(names(folder.path()), ["stream"]);
    }

    #[test]
    fn naming_check_fails_early_on_unsupported_file_systems_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stream");
        NewFile::check_naming(&path).unwrap();
        let refused = NewFile::check_naming_by(&path, |_, to| {
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
    fn naming_a_new_file_fails_if_the_name_exists_and_leaves_no_partial_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stream");
        let (_, partial) = NewFile::create_beside(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert_eq!(
            partial.become_named(&path).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        assert!(path.symlink_metadata().unwrap().is_symlink());
        assert_eq!(names(folder.path()), ["stream"]);
        drop(NewFile::create_beside(&folder.path().join("other")).unwrap());
        assert_eq!(names(folder.path()), ["stream"]);
    }
}
