//! A file of ours that is written anew: whole or not at all, and for us alone to read.

use std::fs::{File, OpenOptions, remove_file, rename};
use std::io::{Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes the file anew. What was under its name stays until all of it is on disk, and the new is there for good when
/// this returns. Its folder must exist; its mode is 0600.
///
/// # Errors
/// What the file system says; what was there before is as it was, unless only the last word, that the new name is on
/// disk, could not be had.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_until_crash(path, bytes)?;
    File::open(folder_of(path))?.sync_all()
}

/// As [`replace_file`], but a crash may bring back what was there before: for what can be had again.
///
/// # Errors
/// As for [`replace_file`].
pub(super) fn replace_until_crash(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = Path::new(&temporary);
    let written = || {
        let mut new = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(temporary)?;
        new.write_all(bytes)?;
        new.sync_all()?;
        rename(temporary, path)
    };
    // Else an empty file would be left on a full disk, under a name that no later process has.
    written().inspect_err(|_| drop(remove_file(temporary)))
}

/// The folder of a name without one is the current one.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_whole_and_is_for_us_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a file.json");
        for (replace, text) in [(replace_file as fn(&Path, &[u8]) -> Result<()>, "first"), (replace_until_crash, "2nd")]
        {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
            assert_eq!(names(folder.path()), ["a file.json"]);
        }
        // One that others may read does not stay so.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        replace_file(&path, b"third").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn what_fails_leaves_what_was_there_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        // A folder that is not empty is replaced by no file.
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "old").unwrap();
        for replace in [replace_file, replace_until_crash] {
            replace(&path, b"new").unwrap_err();
            assert_eq!(names(folder.path()), ["taken"], "the temporary file stays");
            assert_eq!(fs::read_to_string(path.join("inside")).unwrap(), "old");
        }
        // Where the temporary file cannot even be made, the file is as it was.
        let path = folder.path().join("kept");
        fs::write(&path, "old").unwrap();
        let temporary = folder.path().join(format!("kept.{}.new", std::process::id()));
        fs::create_dir(&temporary).unwrap();
        replace_file(&path, b"new").unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        replace_file(&folder.path().join("absent/file"), b"new").unwrap_err();
        assert!(!folder.path().join("absent").exists());
    }
}
