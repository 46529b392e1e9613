//! The history of one dataset in one store on this host: the last commit, listing, verification and
//! drill, and the failures since. `health` and `show` use it without network and without ZFS.
//!
//! Each event has a small file, in a folder for each store and dataset below `state_dir/records`.
//! Each file is written whole, so that two runs never overwrite each other's events. A file that
//! exists and cannot be read is an error, never "nothing".

use super::dir::{create_folder, remove_if_there, replace_file, state_name};
use super::error::{StateError, failed};
use crate::manifest::Manifest;
use crate::model::{BackupId, DatasetName, Digest, KnownStore, StoreId};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The format of the files. A file of a later format is an error.
const FORMAT: u32 = 1;

/// The whole history. `None` means "never, as far as this host knows": a wiped `state_dir` knows
/// nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DatasetHistory {
    /// The newest backup that this host committed.
    pub commit: Option<CommitNote>,
    /// The content of the store at its last listing.
    pub seen: Option<SeenNote>,
    /// The last snapshot that needed no backup.
    pub unchanged: Option<UnchangedNote>,
    /// The last verification without damage.
    pub verify: Option<VerifyNote>,
    /// The last successful drill.
    pub drill: Option<DrillNote>,
    /// The steps that failed and have not succeeded since, one entry for each step.
    pub failures: Vec<FailureNote>,
}

/// A committed backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitNote {
    /// The backup's id.
    pub id: BackupId,
    /// When the backup's snapshot was taken.
    pub snapshot_at: Timestamp,
    /// When the backup was committed.
    pub committed_at: Timestamp,
    /// Sealed bytes of the backup.
    pub stored_bytes: u64,
    /// Incrementals in the backup's chain, this backup included; 0 for a full.
    pub chain_position: u32,
    /// Sealed bytes of the backup's chain, this backup included.
    pub chain_bytes: u64,
    /// Bytes of all backups in the store, as far as this host knows.
    pub total_bytes: u64,
    /// Whether the backup was sent raw.
    pub raw: bool,
}

/// A backup that this host committed to a store, by making or by copying it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCommit {
    /// The backup's id.
    pub id: BackupId,
    /// When the backup was committed.
    pub at: Timestamp,
}

/// A hash of what the newest backup records of the dataset beside the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordedNote {
    /// The backup's id.
    pub(crate) id: BackupId,
    /// The hash of the properties and of what else is recorded.
    pub(crate) blake3: Digest,
}

/// A snapshot that needed no backup, because nothing was written since the newest one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnchangedNote {
    /// The backup with the content of the snapshot.
    pub id: BackupId,
    /// When the snapshot was taken.
    pub snapshot_at: Timestamp,
    /// When the snapshot was found to be unchanged.
    pub at: Timestamp,
}

/// The result of a listing of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenNote {
    /// When the store was listed.
    pub at: Timestamp,
    /// The newest backup.
    pub newest: Option<BackupId>,
    /// When the snapshot of the newest was taken.
    pub newest_at: Option<Timestamp>,
    /// Incrementals in the newest backup's chain.
    pub chain_position: u32,
    /// Number of backups.
    pub backups: u64,
    /// Bytes of all objects of these backups.
    pub total_bytes: u64,
    /// Number of time lines of these backups; 0 in files of older builds.
    #[serde(default)]
    pub time_lines: u64,
}

/// A verification that found no damage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyNote {
    /// When the verification ended.
    pub at: Timestamp,
    /// Number of backups that were verified.
    pub backups: u64,
    /// The share of the data that was read: `none` when only checksums were compared, else the
    /// share as requested, such as `5%`.
    pub read_data: String,
}

/// A successful drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillNote {
    /// When the drill ended.
    pub at: Timestamp,
    /// The backup that was restored.
    pub id: BackupId,
}

/// A step that failed and has not succeeded since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureNote {
    /// When the step failed.
    pub at: Timestamp,
    /// The step: `backup`, `verify`.
    pub step: String,
    /// The cause, on one line.
    pub reason: String,
    /// Whether stored data is damaged, which is more serious than a failure.
    pub damage: bool,
}

/// The content of a file.
#[derive(Serialize, Deserialize)]
struct StoredEvent<T> {
    format: u32,
    dataset: DatasetName,
    store: String,
    event: T,
}

/// The records of one dataset in one store.
#[derive(Debug, Clone)]
pub struct HistoryRecords {
    folder: PathBuf,
    dataset: DatasetName,
    store: KnownStore,
}

impl HistoryRecords {
    /// Names the records by the store's identity and the dataset's name there. Reads and writes no
    /// file.
    pub fn new(state_dir: &Path, store: &KnownStore, dataset: &DatasetName) -> Self {
        let folder = state_dir.join("records").join(state_name(store, dataset));
        Self {
            folder,
            dataset: dataset.clone(),
            store: store.clone(),
        }
    }

    /// Reads the whole history.
    ///
    /// # Errors
    /// [`StateError::File`] naming a file that exists and cannot be read or parsed.
    pub fn read(&self) -> Result<DatasetHistory, StateError> {
        Ok(DatasetHistory {
            commit: self.load("commit")?,
            seen: self.load("seen")?,
            unchanged: self.load("unchanged")?,
            verify: self.load("verify")?,
            drill: self.load("drill")?,
            failures: self.failures()?,
        })
    }

    /// Records that a backup was committed at `now`, and clears the failure of the step `backup`.
    ///
    /// # Errors
    /// [`StateError::File`]; the backup exists nevertheless.
    pub fn note_commit(
        &self,
        manifest: &Manifest,
        stored_bytes: u64,
        now: Timestamp,
    ) -> Result<(), StateError> {
        let known = self
            .load::<CommitNote>("commit")?
            .map(|commit| (commit.committed_at, commit.total_bytes));
        let listed = self
            .load::<SeenNote>("seen")?
            .map(|seen| (seen.at, seen.total_bytes));
        let before = known.max(listed).map_or(0, |(_, bytes)| bytes);
        let note = CommitNote {
            id: manifest.id.clone(),
            snapshot_at: manifest.snapshot.created_at,
            committed_at: now,
            stored_bytes,
            chain_position: manifest.chain.position,
            chain_bytes: manifest.chain.stored_bytes,
            total_bytes: before
                .saturating_add(stored_bytes)
                .max(manifest.chain.stored_bytes),
            raw: manifest.send.requested.iter().any(|flag| flag == "raw"),
        };
        self.store("commit", &note)?;
        self.note_success("backup")
    }

    /// Records what the backup records of the dataset beside the stream.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn note_recorded(&self, note: &RecordedNote) -> Result<(), StateError> {
        self.store("recorded", note)
    }

    /// Returns the last [`RecordedNote`].
    ///
    /// # Errors
    /// As for [`Records::read`].
    pub(crate) fn recorded(&self) -> Result<Option<RecordedNote>, StateError> {
        self.load("recorded")
    }

    /// Records that a snapshot needed no backup.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn note_unchanged(&self, note: &UnchangedNote) -> Result<(), StateError> {
        self.store("unchanged", note)
    }

    /// Records that a backup was copied into this store.
    ///
    /// # Errors
    /// [`StateError::File`]; the backup exists nevertheless.
    pub fn note_copy(&self, copied: &OwnCommit) -> Result<(), StateError> {
        self.store("copied", copied)
    }

    /// Returns the last backups that this host committed to this store. A record of an earlier
    /// version does not count: it was made for the store's URL, which may have led to another store
    /// at that time.
    ///
    /// # Errors
    /// As for [`HistoryRecords::read`].
    pub fn own_commits(&self) -> Result<Vec<OwnCommit>, StateError> {
        let is_ours =
            |store: &String| self.store.id.is_random() && *store == self.store.id.as_str();
        let made = self
            .load_stored::<CommitNote>("commit")?
            .filter(|stored| is_ours(&stored.store));
        let copied = self
            .load_stored::<OwnCommit>("copied")?
            .filter(|stored| is_ours(&stored.store));
        let made = made.map(|stored| OwnCommit {
            id: stored.event.id,
            at: stored.event.committed_at,
        });
        Ok(made
            .into_iter()
            .chain(copied.map(|stored| stored.event))
            .collect())
    }

    /// Records the result of a listing of the store.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn note_seen(&self, note: &SeenNote) -> Result<(), StateError> {
        self.store("seen", note)
    }

    /// Records a verification that found no damage, and clears the failure of the step `verify`.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn note_verify(&self, note: &VerifyNote) -> Result<(), StateError> {
        self.store("verify", note)?;
        self.note_success("verify")
    }

    /// Records a successful drill, and clears the failure of the step `drill`.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn note_drill(&self, note: &DrillNote) -> Result<(), StateError> {
        self.store("drill", note)?;
        self.note_success("drill")
    }

    /// Records that a step failed. The step is a word of letters.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn note_failure(&self, note: &FailureNote) -> Result<(), StateError> {
        self.store(&format!("failed-{}", note.step), note)
    }

    /// Records that a step succeeded or had nothing to do, and clears its failure.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn note_success(&self, step: &str) -> Result<(), StateError> {
        remove_if_there(&self.path(&format!("failed-{step}")))
    }

    fn path(&self, event: &str) -> PathBuf {
        self.folder.join(format!("{event}.json"))
    }

    fn failures(&self) -> Result<Vec<FailureNote>, StateError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed("read", &self.folder, source)),
        };
        let mut failures: Vec<FailureNote> = Vec::new();
        for entry in entries {
            let name = entry
                .map_err(|source| failed("read", &self.folder, source))?
                .file_name();
            let event = name.to_str().and_then(|name| name.strip_suffix(".json"));
            if let Some(event) = event.filter(|event| event.starts_with("failed-")) {
                failures.extend(self.load(event)?);
            }
        }
        failures.sort_by_key(|failure| failure.at);
        Ok(failures)
    }

    fn load<T: DeserializeOwned>(&self, event: &str) -> Result<Option<T>, StateError> {
        Ok(self.load_stored(event)?.map(|stored| stored.event))
    }

    fn load_stored<T: DeserializeOwned>(
        &self,
        event: &str,
    ) -> Result<Option<StoredEvent<T>>, StateError> {
        let path = self.path(event);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", &path, source)),
        };
        let wrong = |reason: String| failed("understand", &path, std::io::Error::other(reason));
        let stored: StoredEvent<T> =
            serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if stored.format != FORMAT {
            return Err(wrong(format!(
                "it has format {}, and this version knows {FORMAT}",
                stored.format
            )));
        }
        if stored.dataset != self.dataset || !self.is_of(&stored.store) {
            return Err(wrong(format!(
                "it is of {} in {}",
                stored.dataset, stored.store
            )));
        }
        Ok(Some(stored))
    }

    /// Returns whether a record in this folder is of this store. A record of an earlier version
    /// names the store's URL at that time. The folder belongs to a store whose identity was
    /// verified, and the store's URL may have changed since.
    fn is_of(&self, store: &str) -> bool {
        let names_url = store.parse::<StoreId>().is_err();
        store == self.store.id.as_str()
            || store == self.store.url
            || (names_url && self.store.id.is_random())
    }

    /// Writes an event whole or not at all. The file is on disk when this returns.
    fn store<T: Serialize>(&self, event: &str, note: &T) -> Result<(), StateError> {
        let made = create_folder(&self.folder);
        made.map_err(|source| failed("create", &self.folder, source))?;
        let path = self.path(event);
        let dataset = self.dataset.clone();
        let store = self.store.id.to_string();
        let written = || -> std::io::Result<()> {
            let bytes = serde_json::to_vec_pretty(&StoredEvent {
                format: FORMAT,
                dataset,
                store,
                event: note,
            })?;
            replace_file(&path, &bytes)
        };
        written().map_err(|source| failed("write", &path, source))
    }
}

/// Returns the stores into which this host committed a backup of a dataset since `since`, as the
/// records name them: by identity, or by URL in records of an earlier version.
///
/// # Errors
/// [`StateError::File`] when the records cannot be read.
pub(crate) fn recent_committers(
    state_dir: &Path,
    dataset: &DatasetName,
    since: Timestamp,
) -> Result<Vec<String>, StateError> {
    let folder = state_dir.join("records");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed("read", &folder, source)),
    };
    let mut stores = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|source| failed("read", &folder, source))?
            .path()
            .join("commit.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(source) => return Err(failed("read", &path, source)),
        };
        let stored: StoredEvent<CommitNote> = serde_json::from_slice(&bytes)
            .map_err(|error| failed("understand", &path, error.into()))?;
        if stored.dataset == *dataset && stored.event.committed_at >= since {
            stores.push(stored.store);
        }
    }
    Ok(stores)
}

impl DatasetHistory {
    /// Returns when the snapshot of the newest known backup was taken: a backup that this host
    /// committed, or one that it saw in the store.
    pub fn newest_at(&self) -> Option<Timestamp> {
        let newest = self.newest();
        let unchanged = self.unchanged.as_ref();
        self.commit
            .as_ref()
            .map(|commit| commit.snapshot_at)
            .max(self.seen.as_ref().and_then(|seen| seen.newest_at))
            .max(
                unchanged
                    .filter(|note| newest == Some(&note.id))
                    .map(|note| note.snapshot_at),
            )
    }

    /// Returns the newest known backup.
    pub fn newest(&self) -> Option<&BackupId> {
        let commit = self
            .commit
            .as_ref()
            .map(|commit| (commit.snapshot_at, &commit.id));
        let seen = self
            .seen
            .as_ref()
            .and_then(|seen| Some((seen.newest_at?, seen.newest.as_ref()?)));
        commit.max(seen).map(|(_, id)| id)
    }

    /// Returns the last known bytes of the store and number of incrementals in the newest chain,
    /// after the time when they were recorded.
    pub fn last_known(&self) -> Option<(Timestamp, u64, u32)> {
        let commit = self
            .commit
            .as_ref()
            .map(|note| (note.committed_at, note.total_bytes, note.chain_position));
        commit.max(
            self.seen
                .as_ref()
                .map(|note| (note.at, note.total_bytes, note.chain_position)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error_chain;

    fn records(state: &Path) -> HistoryRecords {
        HistoryRecords::new(
            state,
            &KnownStore::of_url("s3:b/p"),
            &"tank/a b".parse().unwrap(),
        )
    }

    fn failure(step: &str, second: i64) -> FailureNote {
        let at = Timestamp::from_second(second).unwrap();
        FailureNote {
            at,
            step: step.into(),
            reason: "no route".into(),
            damage: false,
        }
    }

    #[test]
    fn history_keeps_notes_and_a_success_clears_the_failure() {
        let state = tempfile::tempdir().unwrap();
        let records = records(state.path());
        assert_eq!(records.read().unwrap(), DatasetHistory::default());
        let verify = VerifyNote {
            at: Timestamp::UNIX_EPOCH,
            backups: 3,
            read_data: "5%".into(),
        };
        records.note_failure(&failure("verify", 9)).unwrap();
        records.note_failure(&failure("backup", 5)).unwrap();
        assert_eq!(
            records.read().unwrap().failures,
            [failure("backup", 5), failure("verify", 9)]
        );
        records.note_verify(&verify).unwrap();
        let record = records.read().unwrap();
        assert_eq!(
            (record.verify, record.failures),
            (Some(verify), vec![failure("backup", 5)])
        );
        records.note_success("backup").unwrap();
        assert_eq!(records.read().unwrap().failures, []);
        let other = HistoryRecords::new(
            state.path(),
            &KnownStore::of_url("s3:b/q"),
            &"tank/a b".parse().unwrap(),
        );
        assert_eq!(
            other.read().unwrap(),
            DatasetHistory::default(),
            "another store's record"
        );
    }

    #[test]
    fn record_of_a_store_id_is_read_under_every_url() {
        let state = tempfile::tempdir().unwrap();
        let dataset = "tank/a b".parse().unwrap();
        let old = records(state.path());
        old.note_failure(&failure("drill", 5)).unwrap();
        let of = |id: u128| KnownStore {
            id: StoreId::from_random(id),
            url: "file:/elsewhere".into(),
        };
        let now = HistoryRecords::new(state.path(), &of(1), &dataset);
        fs::rename(&old.folder, &now.folder).unwrap();
        assert_eq!(now.read().unwrap().failures, [failure("drill", 5)]);
        // A record of another identity, or of another URL where the store has no identity, stays an
        // error.
        now.note_failure(&failure("drill", 6)).unwrap();
        let other = HistoryRecords::new(state.path(), &of(2), &dataset);
        fs::rename(&now.folder, &other.folder).unwrap();
        assert!(other.read().is_err());
        let unnamed = HistoryRecords::new(state.path(), &KnownStore::of_url("s3:b/q"), &dataset);
        fs::rename(&other.folder, &unnamed.folder).unwrap();
        assert!(unnamed.read().is_err());
    }

    #[test]
    fn unreadable_history_file_is_an_error_that_names_it() {
        let state = tempfile::tempdir().unwrap();
        let records = records(state.path());
        records.note_failure(&failure("backup", 5)).unwrap();
        for event in ["commit", "seen", "verify", "drill", "failed-backup"] {
            let path = records.path(event);
            let before = fs::read(&path).ok();
            for wrong in [
                "",
                "{",
                "{\"format\":2,\"dataset\":\"tank/a b\",\"store\":\"s3:b/p\",\"event\":null}",
            ] {
                fs::write(&path, wrong).unwrap();
                let error = error_chain(&records.read().unwrap_err());
                assert!(error.contains(&path.display().to_string()), "{error}");
            }
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            assert!(records.read().is_err(), "{event}: a folder in its place");
            fs::remove_dir(&path).unwrap();
            before
                .into_iter()
                .for_each(|bytes| fs::write(&path, bytes).unwrap());
        }
        let moved = HistoryRecords {
            dataset: "tank/b".parse().unwrap(),
            ..records
        };
        let error = error_chain(&moved.read().unwrap_err());
        assert!(error.contains("it is of tank/a b in s3:b/p"), "{error}");
    }
}
