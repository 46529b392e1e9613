//! Results of store probes, cached in `state_dir`, so that not every run has to probe the store.
//!
//! Each store has a small file, named by its URL and endpoint. A file that cannot be read is an
//! error, never "not probed"; but a command that may write to the store can probe it again.

use super::dir::{create_folder, hashed_name, replace_file};
use super::error::{StateError, failed};

use crate::store::StoreProbe;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The format of the files. A file of a later format is an error.
const FORMAT: u32 = 1;
/// The time for which a probe is valid. Providers change what their stores do, but not every night.
const FRESH: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The time for which a probe is valid if an answer may be a failure that passes.
const FRESH_IF_UNCERTAIN: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A probe and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeNote {
    format: u32,
    /// The store's URL.
    pub store: String,
    /// The endpoint that was probed.
    pub endpoint: String,
    /// When the store was probed, by this host's clock.
    pub at: Timestamp,
    /// The result of the probe.
    pub probe: StoreProbe,
}

impl ProbeNote {
    /// Returns whether the probe is still valid: not too old, and not more than a day in the
    /// future.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        let age = now.duration_since(self.at);
        let valid = match self.probe.uncertain {
            true => FRESH_IF_UNCERTAIN,
            false => FRESH,
        };
        age < valid && age > -SignedDuration::from_hours(24)
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
    /// Names the file. Reads and writes nothing.
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

    /// Returns the last probe of the store; `None` when this host never probed it.
    ///
    /// # Errors
    /// [`StateError::File`] naming a file that exists and cannot be read or parsed.
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

    /// Removes the probe: the next command that writes probes the store again. A missing file is no
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
    /// [`StateError::File`]; then the next command that writes probes the store again.
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

/// Returns all cached probes of a store, at every endpoint, the newest first. Sends no request to
/// the store.
///
/// # Errors
/// [`StateError::File`] naming a file or folder that exists and cannot be read or parsed.
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
    fn probe_is_cached_by_store_and_endpoint_and_unreadable_is_an_error() {
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

    #[test]
    fn an_uncertain_probe_is_fresh_for_seven_days() {
        let mut note = note("2026-11-01T00:00:00Z");
        note.probe.uncertain = true;
        for (now, fresh) in [
            ("2026-11-07T23:59:59Z", true),
            ("2026-11-08T00:00:00Z", false),
        ] {
            assert_eq!(note.is_fresh(now.parse().unwrap()), fresh, "{now}");
        }
    }
}
