//! The search for an attempt in all journals of this host.

use super::log::{JournalRecord, read_log};
use super::{BEGUN, COMMITTING, StateError, failed};
use crate::model::BackupId;
use std::io::ErrorKind;
use std::path::Path;

/// An attempt as one journal of this host has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAttempt {
    /// The name of this host's state folder for that dataset and store.
    pub folder: String,
    /// Whether the attempt was abandoned.
    pub is_abandoned: bool,
}

/// Finds an attempt in all journals of this host, for every store and dataset, because several
/// configurations may share the state folder.
///
/// # Errors
/// [`StateError::File`] when a journal exists and cannot be read: the answer is unknown then.
pub fn attempts_anywhere(state_dir: &Path, id: &BackupId) -> Result<Vec<KnownAttempt>, StateError> {
    let journals = state_dir.join("journal");
    let entries = match std::fs::read_dir(&journals) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed("read", &journals, source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let folder = entry
            .map_err(|source| failed("read", &journals, source))?
            .file_name();
        for state in [BEGUN, COMMITTING] {
            let path = journals.join(&folder).join(format!("{id}.{state}"));
            if path
                .try_exists()
                .map_err(|source| failed("inspect", &path, source))?
            {
                let log = read_log(&path)?;
                let is_abandoned = log
                    .records
                    .iter()
                    .any(|record| matches!(record, JournalRecord::Abandoned { .. }));
                found.push(KnownAttempt {
                    folder: folder.to_string_lossy().into_owned(),
                    is_abandoned,
                });
            }
        }
    }
    found.sort_by(|a, b| a.folder.cmp(&b.folder));
    Ok(found)
}
