//! The prune records that this host put, by which it tells its own prunes from those of other
//! hosts.
//!
//! `state_dir/prune-records` has a file for each store and dataset, with a key a line.

use super::dir::{create_folder, replace_file, state_name};
use super::error::{StateError, failed};
use crate::model::{DatasetName, KnownStore};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// How many of this host's own records are remembered. Older ones do not matter: no prune of that
/// age is running.
const OWN_RECORDS_MAX: usize = 64;

/// The records that this host put into one store for one dataset, the newest last.
pub(crate) struct OwnPruneRecords {
    path: PathBuf,
    keys: Vec<String>,
}

impl OwnPruneRecords {
    /// Reads which records this host put.
    ///
    /// # Errors
    /// [`StateError::File`] when that is not known.
    pub(crate) fn read(
        state_dir: &Path,
        store: &KnownStore,
        dataset: &DatasetName,
    ) -> Result<Self, StateError> {
        let path = state_dir
            .join("prune-records")
            .join(state_name(store, dataset));
        let keys = match std::fs::read_to_string(&path) {
            Ok(text) => text.lines().map(ToOwned::to_owned).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(failed("read", &path, source)),
        };
        Ok(Self { path, keys })
    }

    /// Notes a record before it is put. On disk when it returns.
    ///
    /// # Errors
    /// [`StateError::File`]; then the record may not be put.
    pub(crate) fn note(mut self, key: &str) -> Result<(), StateError> {
        self.keys.push(key.to_owned());
        let first = self.keys.len().saturating_sub(OWN_RECORDS_MAX);
        let mut text = self.keys[first..].join("\n");
        text.push('\n');
        let folder = self.path.parent().unwrap_or(Path::new("."));
        create_folder(folder)
            .and_then(|()| replace_file(&self.path, text.as_bytes()))
            .map_err(|source| failed("write", &self.path, source))
    }

    /// Returns whether this host put the record with this key.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.keys.iter().any(|own| own == key)
    }
}
