//! The prune records that this host put, by which it tells its own prunes from those of other
//! hosts.
//!
//! `state_dir/prune-records` has a file for each store and dataset, with a key on each line. A
//! second file, with the suffix `.seen`, records when this host first saw a record that is dated in
//! the future: by its own date such a record would stay young until that date.

use super::dir::{create_folder, replace_file, state_name};
use super::error::{StateError, failed};
use crate::model::{DatasetName, KnownStore};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// How many of this host's own records are kept. Older ones do not matter: no prune of that age is
/// running.
const OWN_RECORDS_MAX: usize = 64;
/// The suffix of the file with the times at which records dated in the future were first seen.
const SEEN: &str = "seen";

/// The records that this host put into one store for one dataset, the newest last.
pub(crate) struct OwnPruneRecords {
    path: PathBuf,
    keys: Vec<String>,
    first_seen: BTreeMap<String, Timestamp>,
}

impl OwnPruneRecords {
    /// Reads which records this host put.
    ///
    /// # Errors
    /// [`StateError::File`] when a file cannot be read.
    pub(crate) fn read(
        state_dir: &Path,
        store: &KnownStore,
        dataset: &DatasetName,
    ) -> Result<Self, StateError> {
        let path = state_dir
            .join("prune-records")
            .join(state_name(store, dataset));
        let keys = read_lines(&path)?;
        let seen = read_lines(&path.with_extension(SEEN))?;
        let first_seen = seen.iter().filter_map(|line| {
            let (at, key) = line.split_once(' ')?;
            Some((key.to_owned(), at.parse().ok()?))
        });
        let first_seen = first_seen.collect();
        Ok(Self {
            path,
            keys,
            first_seen,
        })
    }

    /// Returns when this host first saw each record that was dated in the future, by key.
    pub(crate) fn first_seen(&self) -> &BTreeMap<String, Timestamp> {
        &self.first_seen
    }

    /// Replaces what [`OwnPruneRecords::first_seen`] returns.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn note_first_seen(
        &self,
        first_seen: &BTreeMap<String, Timestamp>,
    ) -> Result<(), StateError> {
        if *first_seen == self.first_seen {
            return Ok(());
        }
        let lines = first_seen.iter().map(|(key, at)| format!("{at} {key}\n"));
        write_text(&self.path.with_extension(SEEN), &lines.collect::<String>())
    }

    /// Adds a record before it is put. The file is on disk when this returns.
    ///
    /// # Errors
    /// [`StateError::File`]; then the record may not be put.
    pub(crate) fn note(mut self, key: &str) -> Result<(), StateError> {
        self.keys.push(key.to_owned());
        let first = self.keys.len().saturating_sub(OWN_RECORDS_MAX);
        let mut text = self.keys[first..].join("\n");
        text.push('\n');
        write_text(&self.path, &text)
    }

    /// Returns whether this host put the record with this key.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.keys.iter().any(|own| own == key)
    }
}

/// Reads the lines of a file; none where there is no file.
fn read_lines(path: &Path) -> Result<Vec<String>, StateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(ToOwned::to_owned).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(failed("read", path, source)),
    }
}

fn write_text(path: &Path, text: &str) -> Result<(), StateError> {
    create_folder(path.parent().unwrap_or(Path::new(".")))
        .and_then(|()| replace_file(path, text.as_bytes()))
        .map_err(|source| failed("write", path, source))
}
