//! The time of the last successful `perform` of each configuration, for the message about a failed
//! one.

use super::dir::{create_folder, replace_until_crash};
use super::error::{StateError, failed};
use crate::model::Digest;
use jiff::Timestamp;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Returns when a run of this configuration last succeeded; `None` when none ever did.
///
/// # Errors
/// [`StateError::File`] when the time cannot be read.
pub fn last_success(state_dir: &Path, config_file: &Path) -> Result<Option<Timestamp>, StateError> {
    let path = path_of(state_dir, config_file);
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(time) => Ok(Some(time)),
            Err(error) => Err(failed(
                "read",
                &path,
                std::io::Error::new(ErrorKind::InvalidData, error),
            )),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", &path, source)),
    }
}

/// Records that a run of this configuration succeeded.
///
/// # Errors
/// [`StateError::File`].
pub fn note_success(state_dir: &Path, config_file: &Path, at: Timestamp) -> Result<(), StateError> {
    let path = path_of(state_dir, config_file);
    let folder = path.parent().unwrap_or(state_dir);
    create_folder(folder).map_err(|source| failed("create", folder, source))?;
    replace_until_crash(&path, format!("{at}\n").as_bytes())
        .map_err(|source| failed("write", &path, source))
}

/// Returns the file of one configuration, because several configurations may share a state folder.
fn path_of(state_dir: &Path, config_file: &Path) -> PathBuf {
    let name = Digest::of(config_file.as_os_str().as_encoded_bytes()).to_string();
    state_dir
        .join("perform")
        .join(format!("{}.last-success", &name[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_configuration_has_its_own_last_success() {
        let state = tempfile::tempdir().unwrap();
        let (a, b) = (Path::new("/etc/a.toml"), Path::new("/etc/b.toml"));
        assert_eq!(last_success(state.path(), a).unwrap(), None);
        note_success(state.path(), a, Timestamp::UNIX_EPOCH).unwrap();
        note_success(state.path(), a, Timestamp::MAX).unwrap();
        assert_eq!(last_success(state.path(), a).unwrap(), Some(Timestamp::MAX));
        assert_eq!(last_success(state.path(), b).unwrap(), None);
        std::fs::write(path_of(state.path(), b), "soon").unwrap();
        assert!(
            last_success(state.path(), b)
                .unwrap_err()
                .to_string()
                .contains(".last-success")
        );
    }
}
