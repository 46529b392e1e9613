//! Names of files and folders below `state_dir`, and the atomic replacement of such a file: whole
//! or not at all, and readable only for its owner.
//!
//! All files of `state_dir` are replaced by this module. The temporary file in the same folder has
//! a random name and is made with `O_EXCL`, so that no other user can prepare a file or a link
//! under its name.

use super::error::{StateError, failed};
use crate::model::{DatasetName, Digest, KnownStore};
use rustix::fs::{Mode, OFlags};
use std::fs::{DirBuilder, File, remove_file, rename};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The end of the name of a temporary file: `NAME.0123456789abcdef.new`, and `NAME.PID.new` of
/// earlier versions.
const SUFFIX: &str = ".new";
/// The age above which a temporary file was left by a run that crashed. A temporary file lives for
/// one write and one rename.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// Returns the name of the file or folder in which this host keeps its state of one dataset in one
/// store.
pub(crate) fn state_name(store: &KnownStore, dataset: &DatasetName) -> String {
    hashed_name(&format!("{}\n{dataset}", store.id))
}

/// Returns the name of the file that belongs to a text with any characters: the first 32
/// hexadecimal digits of its hash.
pub(crate) fn hashed_name(text: &str) -> String {
    Digest::of(text.as_bytes()).to_string()[..32].to_owned()
}

/// Replaces the file. The old content stays under the name until all of the new content is on disk,
/// and the new content is durable when this returns. The folder must exist; the file's mode is
/// 0600.
///
/// # Errors
/// The file system's error. The old content is unchanged then, unless only the last step failed:
/// the fsync of the folder that makes the new name durable.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_until_crash(path, bytes)?;
    File::open(folder_of(path))?.sync_all()
}

/// Replaces the file like [`replace_file`], but a crash may bring back the old content: for files
/// that can be made again.
///
/// # Errors
/// As for [`replace_file`].
pub(crate) fn replace_until_crash(path: &Path, bytes: &[u8]) -> Result<()> {
    let (mut new, temporary) = create_beside(path)?;
    let written = new
        .write_all(bytes)
        .and_then(|()| new.sync_all())
        .and_then(|()| rename(&temporary, path));
    // Without this, a full disk would keep an empty file under a name that no later process uses.
    written.inspect_err(|_| drop(remove_file(&temporary)))
}

/// Makes an empty file in the folder of `path`, which only the owner can read and write, under an
/// unpredictable name.
///
/// # Errors
/// The file system's error, and an error when the system gives no random bytes.
pub(crate) fn create_beside(path: &Path) -> Result<(File, PathBuf)> {
    let nonce = getrandom::u64().map_err(Error::other)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{nonce:016x}{SUFFIX}"));
    let temporary = PathBuf::from(temporary);
    Ok((create_new(&temporary)?, temporary))
}

/// Makes a file that must not exist and that only the owner can read and write. Follows no link.
///
/// # Errors
/// The file system's error.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Opens a file of this program for reading and writing, or makes it, readable and writable only
/// for the owner. Follows no link, and does not wait for a process at the other end of a pipe.
///
/// # Errors
/// The file system's error, and an error when the path is no regular file.
pub(crate) fn open_or_create(path: &Path) -> Result<File> {
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(Error::other("it is not a regular file"))
    }
}

/// Removes a file. A missing file is no error.
///
/// # Errors
/// [`StateError::File`].
pub(crate) fn remove_if_there(path: &Path) -> std::result::Result<(), StateError> {
    match remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(failed("remove", path, source)),
        _ => Ok(()),
    }
}

/// Makes a folder and the missing folders above it, accessible only for the owner.
///
/// # Errors
/// The file system's error.
pub(crate) fn create_folder(folder: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Removes temporary files that crashed runs left in a folder of `state_dir` and up to `levels`
/// folders below it. Returns their number. Young files are kept, because another run may be writing
/// them.
///
/// # Errors
/// The file system's error; a missing folder counts as empty.
pub fn sweep_leftovers(folder: &Path, levels: u32) -> Result<usize> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let file_type = entry.file_type()?;
        if file_type.is_dir() && levels > 0 {
            removed += sweep_leftovers(&entry.path(), levels - 1)?;
        }
        let is_ours = file_type.is_file() && entry.file_name().to_str().is_some_and(is_temporary);
        let is_old = || {
            entry
                .metadata()?
                .modified()
                .map(|at| at.elapsed().is_ok_and(|age| age > LEFTOVER_AGE))
        };
        if is_ours && is_old()? {
            remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Returns whether this is the name of a temporary file of [`create_beside`] or of an earlier
/// version.
fn is_temporary(name: &str) -> bool {
    let tag = name
        .strip_suffix(SUFFIX)
        .and_then(|name| name.rsplit_once('.'))
        .map(|(_, tag)| tag);
    let is_nonce = |tag: &str| tag.len() == 16 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_pid = |tag: &str| !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_digit());
    tag.is_some_and(|tag| is_nonce(tag) || is_pid(tag))
}

/// Returns the folder of a path; for a bare file name the current folder.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn state_file_is_replaced_atomically_with_mode_0600() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a file.json");
        for (replace, text) in [
            (replace_file as fn(&Path, &[u8]) -> Result<()>, "first"),
            (replace_until_crash, "2nd"),
        ] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
                0o600
            );
            assert_eq!(names(folder.path()), ["a file.json"]);
        }
        // A file that others may read becomes private.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        replace_file(&path, b"third").unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
    }

    #[test]
    fn failed_replacement_keeps_the_old_content_and_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        // A file cannot replace a folder that is not empty.
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "old").unwrap();
        for replace in [replace_file, replace_until_crash] {
            replace(&path, b"new").unwrap_err();
            assert_eq!(names(folder.path()), ["taken"], "the temporary file stays");
            assert_eq!(fs::read_to_string(path.join("inside")).unwrap(), "old");
        }
        replace_file(&folder.path().join("absent/file"), b"new").unwrap_err();
        assert!(!folder.path().join("absent").exists());
    }

    #[test]
    fn replace_file_does_not_follow_planted_links() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("file"), folder.path().join("target"));
        fs::write(&target, "precious").unwrap();
        // Links under the name that earlier versions used and under the file's own name.
        let old_name = folder
            .path()
            .join(format!("file.{}.new", std::process::id()));
        symlink(&target, &old_name).unwrap();
        symlink(&target, &path).unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let link = folder.path().join("link");
        symlink(&target, &link).unwrap();
        assert_eq!(
            create_new(&link).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        open_or_create(&link).unwrap_err();
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn only_old_temporary_files_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - LEFTOVER_AGE - Duration::from_secs(60);
        create_folder(&folder.path().join("below")).unwrap();
        for (name, is_old) in [
            ("a.json.0123456789abcdef.new", true),
            ("a.json.4711.new", true),
            ("below/c.json.4711.new", true),
            ("b.json.0123456789abcdef.new", false),
            ("receipt-new", true),
            ("something.new", true),
            ("a.json", true),
        ] {
            let file = File::create(folder.path().join(name)).unwrap();
            if is_old {
                file.set_modified(old).unwrap();
            }
        }
        assert_eq!(sweep_leftovers(folder.path(), 1).unwrap(), 3);
        let mut left = names(folder.path());
        left.retain(|name| name != "below");
        left.sort();
        assert_eq!(
            left,
            [
                "a.json",
                "b.json.0123456789abcdef.new",
                "receipt-new",
                "something.new"
            ]
        );
        assert_eq!(
            sweep_leftovers(&folder.path().join("absent"), 1).unwrap(),
            0
        );
    }
}
