//! Notes of the bookmarks of a dataset that each store needs, for the other configurations of this
//! host.
//!
//! A bookmark is named by its snapshot alone, and configurations that back up one snapshot share
//! it. `state_dir/bookmarks` has one small file for each dataset (by its guid) and store. A run
//! that destroys bookmarks keeps those that another store's note names.

use super::dir::{create_folder, hashed_name, replace_file};
use super::error::{StateError, failed};
use super::history::recent_committers;
use crate::model::{DatasetName, Guid, KnownStore};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;
/// The age of the last commit to a store above which its missing note is ignored. A store that a
/// configuration still uses writes its note within this time.
const WITHOUT_NOTE_MAX: SignedDuration = SignedDuration::from_hours(45 * 24);

#[derive(Serialize, Deserialize)]
struct StoredNote {
    format: u32,
    store: String,
    url: String,
    dataset: Guid,
    needed: BTreeSet<Guid>,
}

/// The notes about one dataset of the pool.
pub(crate) struct BookmarkNotes {
    state_dir: PathBuf,
    dataset: Guid,
}

impl BookmarkNotes {
    pub(crate) fn new(state_dir: &Path, dataset: Guid) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            dataset,
        }
    }

    /// Replaces the note with all bookmarks that this store needs.
    ///
    /// # Errors
    /// [`StateError::File`]; then no bookmark may be destroyed.
    pub(crate) fn replace(
        &self,
        store: &KnownStore,
        needed: BTreeSet<Guid>,
    ) -> Result<(), StateError> {
        let path = self.path(store);
        let note = StoredNote {
            format: FORMAT,
            store: store.id.to_string(),
            url: store.url.clone(),
            dataset: self.dataset,
            needed,
        };
        let write = || -> std::io::Result<()> {
            create_folder(&self.folder())?;
            replace_file(&path, &serde_json::to_vec_pretty(&note)?)
        };
        write().map_err(|source| failed("write", &path, source))
    }

    /// Adds the bookmark of one more snapshot to those that this store needs.
    ///
    /// # Errors
    /// As for [`BookmarkNotes::replace`].
    pub(crate) fn add(&self, store: &KnownStore, snapshot: Guid) -> Result<(), StateError> {
        let mut needed = match self.load(&self.path(store))? {
            Some(note) => note.needed,
            None => BTreeSet::new(),
        };
        if needed.insert(snapshot) {
            self.replace(store, needed)
        } else {
            Ok(())
        }
    }

    /// Returns the bookmarks that stores other than these need. `stored` is the dataset's name in
    /// the stores.
    ///
    /// # Errors
    /// A sentence, when the needs of another store are unknown.
    pub(crate) fn needed_elsewhere(
        &self,
        own: &[KnownStore],
        stored: &DatasetName,
        now: Timestamp,
    ) -> Result<BTreeSet<Guid>, String> {
        let text = |error: StateError| crate::model::error_chain(&error);
        let is_own = |store: &str| {
            own.iter()
                .any(|known| store == known.id.as_str() || store == known.url)
        };
        let notes: Vec<StoredNote> = self.notes().map_err(text)?;
        let since = now
            .checked_sub(WITHOUT_NOTE_MAX)
            .map_err(|error| error.to_string())?;
        for store in recent_committers(&self.state_dir, stored, since).map_err(text)? {
            let is_noted = notes
                .iter()
                .any(|note| note.store == store || note.url == store);
            if !is_own(&store) && !is_noted {
                return Err(format!(
                    "this host also backs the dataset up to {store}, whose needs are not noted yet"
                ));
            }
        }
        Ok(notes
            .into_iter()
            .filter(|note| !is_own(&note.store))
            .flat_map(|note| note.needed)
            .collect())
    }

    fn notes(&self) -> Result<Vec<StoredNote>, StateError> {
        let folder = self.folder();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed("read", &folder, source)),
        };
        let mut notes = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(|source| failed("read", &folder, source))?
                .path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                notes.extend(self.load(&path)?);
            }
        }
        Ok(notes)
    }

    fn load(&self, path: &Path) -> Result<Option<StoredNote>, StateError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", path, source)),
        };
        let wrong = |why: String| failed("understand", path, std::io::Error::other(why));
        let note: StoredNote =
            serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        match note.format == FORMAT && note.dataset == self.dataset {
            true => Ok(Some(note)),
            false => Err(wrong(format!(
                "it is of format {} and of the dataset {}",
                note.format, note.dataset
            ))),
        }
    }

    fn folder(&self) -> PathBuf {
        self.state_dir
            .join("bookmarks")
            .join(self.dataset.to_string())
    }

    fn path(&self, store: &KnownStore) -> PathBuf {
        let name = hashed_name(store.id.as_str());
        self.folder().join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StoreId;

    fn store(bits: u128, url: &str) -> KnownStore {
        KnownStore {
            id: StoreId::from_random(bits),
            url: url.to_owned(),
        }
    }

    #[test]
    fn bookmark_notes_return_needs_of_other_stores_or_an_error() {
        let state = tempfile::tempdir().unwrap();
        let notes = BookmarkNotes::new(state.path(), Guid(7));
        let (ours, theirs) = (store(1, "s3:b"), store(2, "s3:b"));
        let stored = "tank/a".parse().unwrap();
        let elsewhere =
            || notes.needed_elsewhere(std::slice::from_ref(&ours), &stored, Timestamp::UNIX_EPOCH);
        assert_eq!(elsewhere().unwrap(), BTreeSet::new());
        notes.add(&ours, Guid(1)).unwrap();
        notes.add(&theirs, Guid(2)).unwrap();
        notes.add(&theirs, Guid(3)).unwrap();
        assert_eq!(elsewhere().unwrap(), BTreeSet::from([Guid(2), Guid(3)]));
        notes.replace(&theirs, BTreeSet::from([Guid(3)])).unwrap();
        assert_eq!(elsewhere().unwrap(), BTreeSet::from([Guid(3)]));
        fs::write(notes.path(&theirs), "{").unwrap();
        assert!(elsewhere().unwrap_err().contains("bookmarks"));
        assert!(notes.add(&theirs, Guid(4)).is_err());
    }
}
