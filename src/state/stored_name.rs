//! The name under which each dataset is stored. It is recorded at first use, so that a renamed
//! dataset keeps its place.
//!
//! Each dataset has a small file in `state_dir`, named by the dataset's guid, which no rename
//! changes.

use super::dir::{create_folder, replace_file};
use super::error::{StateError, failed};
use crate::model::{DatasetName, Guid};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The limit for reading a record. A name has at most 255 bytes.
const PLACE_BYTES_MAX: u64 = 1024;

/// Returns the name that a dataset was first stored under; `None` when this host never stored it.
///
/// # Errors
/// [`StateError::File`] when a record exists and cannot be read: that is never "none".
pub fn recorded_place(state_dir: &Path, dataset: Guid) -> Result<Option<DatasetName>, StateError> {
    let file = file_of(state_dir, dataset);
    let opened = match File::open(&file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", &file, source)),
    };
    let mut text = String::new();
    opened
        .take(PLACE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|source| failed("read", &file, source))?;
    let unusable = |error| {
        failed(
            "use",
            &file,
            std::io::Error::new(ErrorKind::InvalidData, error),
        )
    };
    text.trim_end_matches('\n')
        .parse()
        .map(Some)
        .map_err(unusable)
}

/// Records the name that a dataset is stored under, whole or not at all.
///
/// # Errors
/// [`StateError::File`]; then nothing may be stored, because the dataset would lose its place at a
/// rename.
pub fn record_place(
    state_dir: &Path,
    dataset: Guid,
    stored: &DatasetName,
) -> Result<(), StateError> {
    if recorded_place(state_dir, dataset)?.as_ref() == Some(stored) {
        return Ok(());
    }
    let file = file_of(state_dir, dataset);
    let folder = folder_of(state_dir);
    create_folder(&folder).map_err(|source| failed("create", &folder, source))?;
    replace_file(&file, format!("{stored}\n").as_bytes())
        .map_err(|source| failed("write", &file, source))
}

fn folder_of(state_dir: &Path) -> PathBuf {
    state_dir.join("stored-as")
}

fn file_of(state_dir: &Path, dataset: Guid) -> PathBuf {
    folder_of(state_dir).join(dataset.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_name_is_recorded_and_an_unreadable_record_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let (guid, name): (_, DatasetName) = (Guid(7), "tank/a b".parse().unwrap());
        assert_eq!(recorded_place(state.path(), guid).unwrap(), None);
        record_place(state.path(), guid, &name).unwrap();
        assert_eq!(recorded_place(state.path(), guid).unwrap(), Some(name));
        assert_eq!(recorded_place(state.path(), Guid(8)).unwrap(), None);
        let other: DatasetName = "tank/b".parse().unwrap();
        record_place(state.path(), guid, &other).unwrap();
        assert_eq!(recorded_place(state.path(), guid).unwrap(), Some(other));
        let file = state.path().join("stored-as").join(guid.to_string());
        for damage in [&b""[..], b"a@b\n", b"\xff\xfe"] {
            std::fs::write(&file, damage).unwrap();
            let error = recorded_place(state.path(), guid).unwrap_err();
            assert!(error.to_string().contains(&guid.to_string()), "{error}");
        }
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(recorded_place(state.path(), guid).is_err());
    }
}
