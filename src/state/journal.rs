//! The journal of this host's attempts: whether an attempt can have reached its commit.
//!
//! Each attempt has one file, in a folder for each store and dataset. The file is `<id>.begun`, is
//! renamed to `<id>.committing` before the first byte of a receipt or manifest is put, and is
//! removed when the manifest was read back. Each step is on disk before the next one starts. Only
//! an attempt that is `begun` and has no manifest is known never to have been a backup.
//!
//! The file has the append-only log of the attempt ([`log`] has its format): everything that is
//! needed to resume it and, from `committing` on, the exact bytes of its commit. An abandoned
//! attempt keeps its file, so that a prune knows that the stored objects of this attempt were never
//! a backup.
//!
//! A copy from another store keeps its id, so an interrupted copy is resumed under the same name.
//! Its receipt is written to `<id>.receipt` and put again unchanged, because objects never change
//! and a receipt contains a time.

pub mod log;
mod search;

use super::dir::{create_folder, create_new, replace_file};
use super::dir::{remove_if_there, state_name};
use super::error::{StateError, failed};
use crate::model::{BackupId, DatasetName, KnownStore, ReadFault};
use log::{AttemptLog, JournalRecord, ReadLog, read_log};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use search::{KnownAttempt, attempts_anywhere};

const BEGUN: &str = "begun";
const COMMITTING: &str = "committing";
const RECEIPT: &str = "receipt";

/// The bytes of an object and of its signature.
pub type SignedBytes = (Vec<u8>, Vec<u8>);

/// The record of one unfinished attempt. Its file stays on disk when it is dropped without
/// [`AttemptJournal::committed`].
#[derive(Debug)]
pub struct AttemptJournal {
    folder: PathBuf,
    id: BackupId,
}

impl AttemptJournal {
    /// Records that this attempt begins, before its first object is put.
    ///
    /// # Errors
    /// [`StateError::File`]; then nothing may be put.
    pub fn begin(
        state_dir: &Path,
        store: &KnownStore,
        dataset: &DatasetName,
        id: &BackupId,
    ) -> Result<Self, StateError> {
        let folder = folder_of(state_dir, store, dataset);
        create_folder(&folder).map_err(|source| failed("create", &folder, source))?;
        let journal = Self {
            folder,
            id: id.clone(),
        };
        let file = journal.file(BEGUN);
        let created = create_new(&file).and_then(|file| file.sync_all());
        created.map_err(|source| failed("create", &file, source))?;
        journal.sync_folder()?;
        Ok(journal)
    }

    /// Does the same as [`AttemptJournal::begin`], with a log whose first record is the plan.
    ///
    /// # Errors
    /// As for [`AttemptJournal::begin`].
    pub fn begin_logged(
        state_dir: &Path,
        store: &KnownStore,
        dataset: &DatasetName,
        id: &BackupId,
        plan: &JournalRecord,
    ) -> Result<(Self, AttemptLog), StateError> {
        let journal = Self::begin(state_dir, store, dataset, id)?;
        let path = journal.file(BEGUN);
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|source| failed("open", &path, source))?;
        let mut log = AttemptLog::new(file, path.clone());
        if let Err(error) = log.append(plan) {
            // The attempt has no object and no hold yet. On a full disk, removing the file is all
            // that can be done, and it frees space.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok((journal, log))
    }

    /// Does the same as [`AttemptJournal::begin`], or resumes the attempt where an earlier run left
    /// it: an attempt in the state `committing` stays in it.
    ///
    /// # Errors
    /// [`StateError::File`]; then nothing may be put.
    pub fn begin_or_reopen(
        state_dir: &Path,
        store: &KnownStore,
        dataset: &DatasetName,
        id: &BackupId,
    ) -> Result<Self, StateError> {
        let journal = Self {
            folder: folder_of(state_dir, store, dataset),
            id: id.clone(),
        };
        for state in [BEGUN, COMMITTING] {
            let file = journal.file(state);
            if file
                .try_exists()
                .map_err(|source| failed("inspect", &file, source))?
            {
                return Ok(journal);
            }
        }
        Self::begin(state_dir, store, dataset, id)
    }

    /// Records that the manifest may exist from now on. A second call does nothing.
    ///
    /// # Errors
    /// [`StateError::File`]; then the manifest may not be put.
    pub fn committing(&self) -> Result<(), StateError> {
        let file = self.file(BEGUN);
        let committing = self.file(COMMITTING);
        if !committing
            .try_exists()
            .map_err(|source| failed("inspect", &committing, source))?
        {
            std::fs::rename(&file, &committing)
                .map_err(|source| failed("rename", &file, source))?;
        }
        self.sync_folder()
    }

    /// Keeps the exact bytes of a receipt and its signature, before either is put.
    ///
    /// # Errors
    /// [`StateError::File`]; then the receipt may not be put.
    pub fn keep_receipt(&self, receipt: &[u8], signature: &[u8]) -> Result<(), StateError> {
        let file = self.file(RECEIPT);
        // The signature is text; its length precedes it, and the receipt follows it.
        let mut bytes = format!("{}\n", signature.len()).into_bytes();
        bytes.extend_from_slice(signature);
        bytes.extend_from_slice(receipt);
        replace_file(&file, &bytes).map_err(|source| failed("write", &file, source))
    }

    /// Returns the receipt and signature that were kept, if there are any.
    ///
    /// # Errors
    /// [`StateError::File`] when the file exists and cannot be read.
    pub fn kept_receipt(&self) -> Result<Option<SignedBytes>, StateError> {
        let file = self.file(RECEIPT);
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", &file, source)),
        };
        let split = || {
            let line = bytes.iter().position(|byte| *byte == b'\n')?;
            let length: usize = std::str::from_utf8(&bytes[..line]).ok()?.parse().ok()?;
            let (signature, receipt) = bytes[line + 1..].split_at_checked(length)?;
            Some((receipt.to_vec(), signature.to_vec()))
        };
        // A damaged file counts as no receipt: a new receipt is made.
        Ok(split())
    }

    /// Removes the attempt's files: its manifest was read back, so nothing is uncertain any more.
    ///
    /// # Errors
    /// [`StateError::File`]; the backup exists nevertheless.
    pub fn committed(self) -> Result<(), StateError> {
        remove_if_there(&self.file(RECEIPT))?;
        let file = self.file(COMMITTING);
        std::fs::remove_file(&file).map_err(|source| failed("remove", &file, source))
    }

    fn file(&self, state: &str) -> PathBuf {
        self.folder.join(format!("{}.{state}", self.id))
    }

    fn sync_folder(&self) -> Result<(), StateError> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| failed("sync", &self.folder, source))
    }
}

/// Returns the attempts of this dataset in this store that this host began and that never came near
/// their commit.
///
/// # Errors
/// [`StateError::File`] when the journal cannot be read: nothing is known then.
pub fn never_committing(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
) -> Result<BTreeSet<BackupId>, StateError> {
    attempts_in(state_dir, store, dataset, &[BEGUN])
}

/// Returns the attempts of this dataset in this store that this host began and did not see
/// committed, in whatever state they are.
///
/// # Errors
/// [`StateError::File`] when the journal cannot be read: nothing is known then.
pub fn unended(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
) -> Result<BTreeSet<BackupId>, StateError> {
    attempts_in(state_dir, store, dataset, &[BEGUN, COMMITTING])
}

fn attempts_in(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
    states: &[&str],
) -> Result<BTreeSet<BackupId>, StateError> {
    let folder = folder_of(state_dir, store, dataset);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(failed("read", &folder, source)),
    };
    let mut ids = BTreeSet::new();
    for entry in entries {
        let name = entry
            .map_err(|source| failed("read", &folder, source))?
            .file_name();
        let attempt = name.to_str().and_then(|name| name.split_once('.'));
        ids.extend(
            attempt
                .filter(|(_, state)| states.contains(state))
                .and_then(|(id, _)| id.parse::<BackupId>().ok()),
        );
    }
    Ok(ids)
}

/// An attempt that this host began and did not see committed, with the content of its log.
#[derive(Debug)]
pub struct JournaledAttempt {
    /// The attempt's id.
    pub id: BackupId,
    /// Whether the attempt came near its commit, so that its manifest may exist.
    pub committing: bool,
    folder: PathBuf,
    log: ReadLog,
}

impl JournaledAttempt {
    /// Returns the records of the log. A copy from another store has none, and neither has an
    /// attempt that was interrupted at its very start.
    pub fn records(&self) -> &[JournalRecord] {
        &self.log.records
    }

    /// Returns whether the attempt was abandoned.
    pub fn is_abandoned(&self) -> bool {
        self.records()
            .iter()
            .any(|record| matches!(record, JournalRecord::Abandoned { .. }))
    }

    /// Returns the places at which ZFS could not read the snapshot, in the order of the runs.
    pub fn read_faults(&self) -> Vec<ReadFault> {
        let faults = self.records().iter().filter_map(|record| match record {
            JournalRecord::ReadFault(fault) => Some(*fault),
            _ => None,
        });
        faults.collect()
    }

    /// Opens the log behind the last valid record.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn reopen(&self) -> Result<(AttemptJournal, AttemptLog), StateError> {
        let journal = AttemptJournal {
            folder: self.folder.clone(),
            id: self.id.clone(),
        };
        let path = journal.file(if self.committing { COMMITTING } else { BEGUN });
        let log = AttemptLog::reopen(path, &self.log)?;
        Ok((journal, log))
    }

    /// Records that the attempt is abandoned: no run resumes it. Its file stays as the proof of
    /// which stored objects belong to it.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn abandon(&self, why: &str) -> Result<(), StateError> {
        let (_, mut log) = self.reopen()?;
        log.append(&JournalRecord::Abandoned {
            why: why.to_owned(),
        })
    }
}

/// Returns the attempts of this dataset in this store that this host began and did not see
/// committed, in the order of their snapshots' times.
///
/// # Errors
/// [`StateError::File`] when a journal exists and cannot be read: nothing is known then.
pub fn read_attempts(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
) -> Result<Vec<JournaledAttempt>, StateError> {
    let folder = folder_of(state_dir, store, dataset);
    let mut states = BTreeMap::new();
    for state in [BEGUN, COMMITTING] {
        let ids = attempts_in(state_dir, store, dataset, &[state])?;
        states.extend(ids.into_iter().map(|id| (id, state)));
    }
    let read = |(id, state): (BackupId, &str)| {
        let log = read_log(&folder.join(format!("{id}.{state}")))?;
        Ok(JournaledAttempt {
            id,
            committing: state == COMMITTING,
            folder: folder.clone(),
            log,
        })
    };
    states.into_iter().map(read).collect()
}

/// Removes the files of an attempt whose objects are gone. An unknown attempt is no error.
///
/// # Errors
/// [`StateError::File`].
pub fn forget_attempt(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
    id: &BackupId,
) -> Result<(), StateError> {
    for state in [RECEIPT, BEGUN, COMMITTING] {
        remove_if_there(&folder_of(state_dir, store, dataset).join(format!("{id}.{state}")))?;
    }
    Ok(())
}

fn folder_of(state_dir: &Path, store: &KnownStore, dataset: &DatasetName) -> PathBuf {
    state_dir.join("journal").join(state_name(store, dataset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BackupKind, Guid};
    use jiff::Timestamp;

    fn store(url: &str) -> KnownStore {
        KnownStore::of_url(url)
    }

    #[test]
    fn never_committing_lists_only_attempts_that_began_no_commit() {
        let state = tempfile::tempdir().unwrap();
        let dataset: DatasetName = "tank/a".parse().unwrap();
        let id = |nonce| BackupId::new(Timestamp::UNIX_EPOCH, BackupKind::Full, Guid(1), nonce);
        let known = || never_committing(state.path(), &store("s3:b"), &dataset).unwrap();
        assert!(known().is_empty());
        let begin =
            |nonce| AttemptJournal::begin(state.path(), &store("s3:b"), &dataset, &id(nonce));
        let (first, second) = (begin(1).unwrap(), begin(2).unwrap());
        assert!(begin(1).is_err(), "an id is begun once");
        assert_eq!(known(), BTreeSet::from([id(1), id(2)]));
        second.committing().unwrap();
        assert_eq!(known(), BTreeSet::from([id(1)]));
        assert_eq!(
            unended(state.path(), &store("s3:b"), &dataset).unwrap(),
            BTreeSet::from([id(1), id(2)])
        );
        second.committed().unwrap();
        drop(first);
        assert_eq!(known(), BTreeSet::from([id(1)]));
        assert!(
            never_committing(state.path(), &store("s3:other"), &dataset)
                .unwrap()
                .is_empty()
        );
        forget_attempt(state.path(), &store("s3:b"), &dataset, &id(1)).unwrap();
        assert!(known().is_empty());
    }

    #[test]
    fn logged_attempt_is_read_back_until_it_is_committed() {
        let state = tempfile::tempdir().unwrap();
        let dataset: DatasetName = "tank/a".parse().unwrap();
        let id = BackupId::new(Timestamp::UNIX_EPOCH, BackupKind::Full, Guid(1), 1);
        let read = || read_attempts(state.path(), &store("s3:b"), &dataset).unwrap();
        let plan = JournalRecord::Plan {
            started: vec![1],
            keyring: None,
            zfs_version: "2".into(),
        };
        let (journal, mut log) =
            AttemptJournal::begin_logged(state.path(), &store("s3:b"), &dataset, &id, &plan)
                .unwrap();
        journal.committing().unwrap();
        let chunk = JournalRecord::Chunk { name: "c".into() };
        log.append(&chunk).unwrap();
        let found = read().remove(0);
        assert_eq!(
            (found.committing, found.is_abandoned(), found.records()),
            (true, false, &[plan, chunk][..])
        );
        found.abandon("tired").unwrap();
        assert!(read()[0].is_abandoned());
        journal.committed().unwrap();
        assert!(read().is_empty());
    }

    #[test]
    fn reopened_attempt_keeps_its_state_and_receipt() {
        let state = tempfile::tempdir().unwrap();
        let dataset: DatasetName = "tank/a".parse().unwrap();
        let id = BackupId::new(Timestamp::UNIX_EPOCH, BackupKind::Full, Guid(1), 1);
        let reopen = || {
            AttemptJournal::begin_or_reopen(state.path(), &store("s3:b"), &dataset, &id).unwrap()
        };
        let never = || never_committing(state.path(), &store("s3:b"), &dataset).unwrap();
        drop(reopen());
        assert_eq!(reopen().kept_receipt().unwrap(), None);
        assert_eq!(never(), BTreeSet::from([id.clone()]));
        let journal = reopen();
        journal.keep_receipt(b"{\n}\n", b"signed\n").unwrap();
        journal.committing().unwrap();
        drop(journal);
        let journal = reopen();
        assert!(
            never().is_empty(),
            "it came near its commit, whatever began since"
        );
        assert_eq!(
            journal.kept_receipt().unwrap(),
            Some((b"{\n}\n".to_vec(), b"signed\n".to_vec()))
        );
        journal.committing().unwrap();
        journal.committed().unwrap();
        assert_eq!(reopen().kept_receipt().unwrap(), None);
        assert_eq!(never(), BTreeSet::from([id.clone()]));
    }
}
