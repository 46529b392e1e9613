//! What each store was found to do, remembered in `state_dir` for a while, so that not every run
//! has to try it.
//!
//! One small file a store, named by its url and endpoint. A file that cannot be read is an error,
//! never "not tried"; but since it can be made again, whoever may write to the store can go on with
//! a new probe.

use super::dir::{create_folder, hashed_name, replace_file};
use super::error::{StateError, failed};

use crate::store::StoreProbe;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The form of the files. A file of a later one is refused.
const FORMAT: u32 = 1;
/// Providers change what their stores do, but not every night.
const FRESH: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A probe and when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeNote {
    format: u32,
    /// The store.
    pub store: String,
    /// Where it answers.
    pub endpoint: String,
    /// When it was tried, by this host's clock.
    pub at: Timestamp,
    /// What was found.
    pub probe: StoreProbe,
}

impl ProbeNote {
    /// Whether it is still to be believed: not too old, and not of the future.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        let age = now.duration_since(self.at);
        age < FRESH && age > -SignedDuration::from_hours(24)
    }
}

/// The file of one store. Clones name the same file.
#[derive(Debug, Clone)]
pub struct ProbeCache {
    folder: PathBuf,
    file: PathBuf,
    store: String,
    endpoint: String,
}

impl ProbeCache {
    /// Names it; nothing is touched yet.
    pub fn new(state_dir: &Path, store: &str, endpoint: &str) -> Self {
        let folder = state_dir.join("probes");
        let name = hashed_name(&format!("{store}\n{endpoint}"));
        let file = folder.join(format!("{name}.json"));
        Self {
            folder,
            file,
            store: store.to_owned(),
            endpoint: endpoint.to_owned(),
        }
    }

    /// What was found when the store was last tried; `None` when it never was from this host.
    ///
    /// # Errors
    /// [`StateError::File`] naming a file that is there and cannot be read or understood.
    pub fn load(&self) -> Result<Option<ProbeNote>, StateError> {
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed("read", source)),
        };
        let unusable =
            |text: String| self.failed("use", std::io::Error::new(ErrorKind::InvalidData, text));
        let note: ProbeNote =
            serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
        match note.format == FORMAT && note.store == self.store && note.endpoint == self.endpoint {
            true => Ok(Some(note)),
            false => Err(unusable(format!(
                "it is of format {} and of {}",
                note.format, note.store
            ))),
        }
    }

    /// Forgets it: the next command that writes tries the store again. One that is gone is no
    /// error.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn forget(&self) -> Result<(), StateError> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed("remove", error)),
            _ => Ok(()),
        }
    }

    /// Makes the note of a probe of this store. [`ProbeCache::save`] writes it.
    pub(crate) fn note(&self, probe: StoreProbe, at: Timestamp) -> ProbeNote {
        ProbeNote {
            format: FORMAT,
            store: self.store.clone(),
            endpoint: self.endpoint.clone(),
            at,
            probe,
        }
    }

    /// Writes the note, whole or not at all.
    ///
    /// # Errors
    /// [`StateError::File`]; then the next command that writes tries the store again.
    pub(crate) fn save(&self, note: &ProbeNote) -> Result<(), StateError> {
        let text =
            serde_json::to_vec_pretty(note).map_err(|error| self.failed("write", error.into()))?;
        let made = create_folder(&self.folder);
        made.and_then(|()| replace_file(&self.file, &text))
            .map_err(|source| self.failed("write", source))
    }

    fn failed(&self, operation: &'static str, source: std::io::Error) -> StateError {
        failed(operation, &self.file, source)
    }
}

/// All that is remembered of a store, at whatever endpoint; the newest first. Nothing is asked of
/// it.
///
/// # Errors
/// [`StateError::File`] naming a file or folder that is there and cannot be read or understood.
pub fn known_probes(state_dir: &Path, store: &str) -> Result<Vec<ProbeNote>, StateError> {
    let folder = state_dir.join("probes");
    let failed = |path: &Path, source| failed("read", path, source);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(&folder, source)),
    };
    let mut notes = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| failed(&folder, source))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = fs::read(&path).map_err(|source| failed(&path, source))?;
        let note: ProbeNote =
            serde_json::from_slice(&bytes).map_err(|error| failed(&path, error.into()))?;
        notes.extend((note.format == FORMAT && note.store == store).then_some(note));
    }
    notes.sort_by_key(|note| std::cmp::Reverse(note.at));
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(at: &str) -> ProbeNote {
        let (store, endpoint) = ("s3:b".to_owned(), "http://e".to_owned());
        ProbeNote {
            format: FORMAT,
            store,
            endpoint,
            at: at.parse().unwrap(),
            probe: StoreProbe::default(),
        }
    }

    #[test]
    fn a_probe_is_kept_by_store_and_endpoint_and_one_that_cannot_be_read_is_no_absence() {
        let state = tempfile::tempdir().unwrap();
        let cache = ProbeCache::new(state.path(), "s3:b", "http://e");
        assert_eq!(cache.load().unwrap(), None);
        cache.forget().unwrap();
        cache.save(&note("2026-11-01T00:00:00Z")).unwrap();
        assert_eq!(cache.load().unwrap(), Some(note("2026-11-01T00:00:00Z")));
        assert_eq!(
            ProbeCache::new(state.path(), "s3:b", "http://f")
                .load()
                .unwrap(),
            None
        );
        assert_eq!(known_probes(state.path(), "s3:b").unwrap().len(), 1);
        assert_eq!(known_probes(state.path(), "s3:c").unwrap(), []);
        let good = fs::read_to_string(&cache.file).unwrap();
        for damage in [
            "",
            "{",
            &good[..good.len() / 2],
            &good.replace("\"format\": 1", "\"format\": 2"),
        ] {
            fs::write(&cache.file, damage).unwrap();
            assert!(
                cache.load().unwrap_err().to_string().contains("probes"),
                "{damage:?}"
            );
            assert!(
                damage.contains("\"format\": 2") || known_probes(state.path(), "s3:b").is_err(),
                "{damage:?}"
            );
        }
        cache.forget().unwrap();
        assert_eq!(cache.load().unwrap(), None);
    }

    #[test]
    fn a_probe_is_fresh_for_thirty_days() {
        let note = note("2026-11-01T00:00:00Z");
        for (now, fresh) in [
            ("2026-11-01T00:00:00Z", true),
            ("2026-11-30T23:59:59Z", true),
            ("2026-12-01T00:00:00Z", false),
            ("2026-10-30T00:00:00Z", false),
        ] {
            assert_eq!(note.is_fresh(now.parse().unwrap()), fresh, "{now}");
        }
    }
}
