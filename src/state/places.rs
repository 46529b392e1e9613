//! Store identities that this host found at each configured place.
//!
//! `state_dir/stores` has one small file for each place, named by the URL and the other settings
//! that decide where the URL leads. A place may have several known identities, such as rotating
//! disks; the last one is the newest.

use super::dir::{create_folder, hashed_name, replace_file};
use super::error::{StateError, failed};
use crate::model::StoreId;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct StoredPlace {
    format: u32,
    url: String,
    endpoint: String,
    ids: Vec<StoreId>,
}

/// The file of one place.
#[derive(Debug)]
pub(crate) struct PlaceFile {
    path: PathBuf,
    url: String,
    endpoint: String,
}

impl PlaceFile {
    /// Names the file of the place with this URL and endpoint. Nothing is read yet.
    pub(crate) fn new(state_dir: &Path, url: &str, endpoint: &str) -> Self {
        let name = hashed_name(&format!("{url}\n{endpoint}"));
        Self {
            path: state_dir.join("stores").join(format!("{name}.json")),
            url: url.to_owned(),
            endpoint: endpoint.to_owned(),
        }
    }

    /// Returns the URL of the place.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the identities that were found there, the newest last; none for a place that was
    /// never used.
    pub(crate) fn load(&self) -> Result<Vec<StoreId>, StateError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.failed("read", source)),
        };
        let unusable =
            |why: String| self.failed("use", std::io::Error::new(ErrorKind::InvalidData, why));
        let stored: StoredPlace =
            serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
        match stored.format == FORMAT && stored.url == self.url && stored.endpoint == self.endpoint
        {
            true => Ok(stored.ids),
            false => Err(unusable(format!(
                "it is of format {} and of {}",
                stored.format, stored.url
            ))),
        }
    }

    /// Records the identity as the newest one, whole or not at all.
    pub(crate) fn save(&self, mut ids: Vec<StoreId>, newest: &StoreId) -> Result<(), StateError> {
        ids.retain(|id| id != newest);
        ids.push(newest.clone());
        let stored = StoredPlace {
            format: FORMAT,
            url: self.url.clone(),
            endpoint: self.endpoint.clone(),
            ids,
        };
        let text = serde_json::to_vec_pretty(&stored)
            .map_err(|error| self.failed("write", error.into()))?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let made = create_folder(folder);
        made.and_then(|()| replace_file(&self.path, &text))
            .map_err(|source| self.failed("write", source))
    }

    fn failed(&self, operation: &'static str, source: std::io::Error) -> StateError {
        failed(operation, &self.path, source)
    }
}
