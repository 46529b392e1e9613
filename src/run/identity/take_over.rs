//! Moves state that earlier versions named by the store's URL to the store's identity, once.
//!
//! Two configurations with one URL and two endpoints shared that state. Each file therefore moves
//! only to the store that is proved to be the right one: a journal to the store that has objects of
//! its attempt, records and remembered manifests to the store that has a backup which they name.
//! Ids are random, so no other store has these. State that no store proves stays where it is:
//! `holds list` shows the holds of such attempts.
//!
//! Files are renamed one at a time, and the place is saved only after all of them, so an
//! interrupted run is repeated.

use crate::model::{BackupId, DatasetName, KnownStore};
use crate::run::RunError;
use crate::state::dataset_lock::lock_dataset;
use crate::state::dir::{create_folder, remove_if_there, state_name};
use crate::state::error::{StateError, failed};
use crate::state::manifests;
use crate::store::key::{BackupObject, backup_prefix};
use crate::store::{ObjectKey, StoreRead};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Limit of backups in old state, newest first, for which the store is searched.
const BACKUPS_ASKED_MAX: usize = 5;

/// Moves the state under the URL to the identity.
///
/// # Errors
/// [`StateError::Locked`] while a run of an earlier version works on one of the datasets;
/// [`RunError::Store`]; [`StateError::File`].
pub(super) async fn take_over(
    state_dir: &Path,
    store: &KnownStore,
    asked: &dyn StoreRead,
    datasets: &[DatasetName],
) -> Result<(), RunError> {
    let old = KnownStore::of_url(&store.url);
    for dataset in known_datasets(state_dir, datasets)? {
        let folder =
            |kind: &str, store: &KnownStore| state_dir.join(kind).join(state_name(store, &dataset));
        let is_there = |kind: &&str| folder(kind, &old).exists();
        if !["journal", "records", "remote", "cache"]
            .iter()
            .any(is_there)
        {
            continue;
        }
        let _lock = lock_dataset(state_dir, &old, &dataset)?;
        let mut proofs = Proofs {
            asked,
            dataset: &dataset,
            known: BTreeMap::new(),
        };
        for (name, id) in files_of(&folder("journal", &old))? {
            if let Some(id) = id
                && proofs.has_objects(&id).await?
            {
                move_file(&name, &folder("journal", &old), &folder("journal", store))?;
            }
        }
        for kind in ["records", "remote"] {
            let from = folder(kind, &old);
            let to = folder(kind, store);
            if proofs.has_any(&named_backups(&from)?).await? {
                // A time would say that all of the memory is of this store.
                let is_time = |name: &str| kind == "remote" && !name.contains(".json");
                for (name, _) in files_of(&from)? {
                    if is_time(&name) {
                        remove_if_there(&from.join(&name))?;
                    } else {
                        move_file(&name, &from, &to)?;
                    }
                }
            }
        }
        // The cache need not move: its objects can be fetched again.
        remove_if_there(&manifests::path_of(state_dir, &old, &dataset))?;
        for kind in ["journal", "records", "remote"] {
            let _ = fs::remove_dir(folder(kind, &old));
        }
    }
    Ok(())
}

/// Checks whether the store has the backups that old state names.
struct Proofs<'a> {
    asked: &'a dyn StoreRead,
    dataset: &'a DatasetName,
    known: BTreeMap<BackupId, bool>,
}

impl Proofs<'_> {
    /// Whether the store has objects of that attempt.
    async fn has_objects(&mut self, id: &BackupId) -> Result<bool, RunError> {
        if let Some(known) = self.known.get(id) {
            return Ok(*known);
        }
        let found = !self
            .asked
            .list(&backup_prefix(self.dataset, id))
            .await?
            .is_empty();
        self.known.insert(id.clone(), found);
        Ok(found)
    }

    /// Whether the store has one of the newest of these backups. Also `true` for an empty set:
    /// state that names no backup belongs to no other store.
    async fn has_any(&self, ids: &BTreeSet<BackupId>) -> Result<bool, RunError> {
        for id in ids.iter().rev().take(BACKUPS_ASKED_MAX) {
            let key = ObjectKey::backup(self.dataset, id, &BackupObject::Manifest);
            if self.asked.head(&key).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(ids.is_empty())
    }
}

#[derive(Deserialize)]
struct OldRecord {
    dataset: DatasetName,
    event: OldEvent,
}

/// The fields that name a backup, in records of all kinds.
#[derive(Deserialize)]
struct OldEvent {
    id: Option<BackupId>,
    newest: Option<BackupId>,
}

/// Returns the backups that the files of a folder name, in their file names or in their contents.
fn named_backups(folder: &Path) -> Result<BTreeSet<BackupId>, StateError> {
    let mut ids = BTreeSet::new();
    for (name, id) in files_of(folder)? {
        ids.extend(id);
        if let Some(record) = read_record(&folder.join(name))? {
            ids.extend(record.event.id.into_iter().chain(record.event.newest));
        }
    }
    Ok(ids)
}

/// Returns `None` for a file that is no record; the code that uses the records reports the fault.
fn read_record(path: &Path) -> Result<Option<OldRecord>, StateError> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

/// Returns the names in the store under which this host may have saved state: the configured names,
/// the names recorded when a dataset was first stored, and the names in old records.
fn known_datasets(
    state_dir: &Path,
    configured: &[DatasetName],
) -> Result<BTreeSet<DatasetName>, StateError> {
    let mut names: BTreeSet<DatasetName> = configured.iter().cloned().collect();
    let places = state_dir.join("stored-as");
    for (name, _) in files_of(&places)? {
        let path = places.join(name);
        let text = fs::read_to_string(&path).map_err(|source| failed("read", &path, source))?;
        names.extend(text.trim_end_matches('\n').parse::<DatasetName>());
    }
    let records = state_dir.join("records");
    for (folder, _) in files_of(&records)? {
        for (name, _) in files_of(&records.join(&folder))? {
            names.extend(
                read_record(&records.join(&folder).join(name))?.map(|record| record.dataset),
            );
        }
    }
    Ok(names)
}

/// Returns the entries of a folder, each with the backup that its name begins with. A missing
/// folder has none.
fn files_of(folder: &Path) -> Result<Vec<(String, Option<BackupId>)>, StateError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(failed("read", folder, source)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry
            .map_err(|source| failed("read", folder, source))?
            .file_name();
        if let Ok(name) = name.into_string() {
            let id = name.split_once('.').and_then(|(id, _)| id.parse().ok());
            files.push((name, id));
        }
    }
    files.sort();
    Ok(files)
}

/// Renames one file. An existing file under the new name is newer and stays.
fn move_file(name: &str, from: &Path, to: &Path) -> Result<(), StateError> {
    let made = create_folder(to);
    made.map_err(|source| failed("create", to, source))?;
    let (old, new): (PathBuf, PathBuf) = (from.join(name), to.join(name));
    if new
        .try_exists()
        .map_err(|source| failed("inspect", &new, source))?
    {
        return Ok(());
    }
    fs::rename(&old, &new).map_err(|source| failed("rename", &old, source))?;
    File::open(to)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| failed("sync", to, source))
}
