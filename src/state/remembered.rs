//! The files that keep the manifests of a remote, with their signatures, for runs that cannot reach
//! the remote.
//!
//! `state_dir/remote` has a folder for each store and dataset. Nothing in it is trusted: manifests
//! are verified whenever they are read.

use super::dir::{create_folder, remove_if_there, replace_until_crash, state_name};
use super::error::{StateError, failed};
use crate::manifest::{MANIFEST_BYTES_MAX, SIGNATURE_BYTES_MAX};
use crate::model::{BackupId, DatasetName, KnownStore};
use jiff::Timestamp;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// A time that is kept with the manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryTime {
    /// The time at which this host last read the store's backups of the dataset.
    Read,
    /// The time of the last prune of the dataset on this host.
    Pruned,
}

impl MemoryTime {
    fn file(self) -> &'static str {
        match self {
            Self::Read => "read-at",
            Self::Pruned => "pruned-at",
        }
    }
}

/// A file of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ManifestPart {
    /// The manifest.
    Manifest,
    /// The manifest's signature.
    Signature,
}

impl ManifestPart {
    fn extension(self) -> &'static str {
        match self {
            Self::Manifest => "json",
            Self::Signature => "json.minisig",
        }
    }

    fn bytes_max(self) -> u64 {
        match self {
            Self::Manifest => MANIFEST_BYTES_MAX,
            Self::Signature => SIGNATURE_BYTES_MAX,
        }
    }
}

/// The kept manifests of one dataset in one store.
#[derive(Debug)]
pub(crate) struct RememberedManifests {
    folder: PathBuf,
}

impl RememberedManifests {
    /// Names the folder. Nothing is read yet.
    pub(crate) fn new(state_dir: &Path, store: &KnownStore, dataset: &DatasetName) -> Self {
        Self {
            folder: state_dir.join("remote").join(state_name(store, dataset)),
        }
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn create(&self) -> Result<(), StateError> {
        create_folder(&self.folder).map_err(|source| failed("create", &self.folder, source))
    }

    /// Returns whether the manifests of this store were ever kept.
    ///
    /// # Errors
    /// [`StateError::File`] when the folder cannot be read.
    pub(crate) fn exist(&self) -> Result<bool, StateError> {
        match std::fs::metadata(&self.folder) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(source) => Err(failed("read", &self.folder, source)),
        }
    }

    /// Records a time.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn note_time(&self, of: MemoryTime, at: Timestamp) -> Result<(), StateError> {
        let path = self.folder.join(of.file());
        replace_until_crash(&path, at.to_string().as_bytes())
            .map_err(|source| failed("write", &path, source))
    }

    /// Removes the record of a time.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn clear_time(&self, of: MemoryTime) -> Result<(), StateError> {
        remove_if_there(&self.folder.join(of.file()))
    }

    /// Returns the recorded time; `None` if it is not known.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn time(&self, of: MemoryTime) -> Result<Option<Timestamp>, StateError> {
        let path = self.folder.join(of.file());
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", &path, source)),
        }
    }

    /// Returns the backups whose manifests are kept, in order.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn ids(&self) -> Result<Vec<BackupId>, StateError> {
        let unreadable = |source| failed("read", &self.folder, source);
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let suffix = ManifestPart::Manifest.extension();
            let id = name
                .to_str()
                .and_then(|name| name.strip_suffix(suffix)?.strip_suffix('.')?.parse().ok());
            ids.extend(id);
        }
        ids.sort();
        Ok(ids)
    }

    /// Returns whether this file exists.
    pub(crate) fn is_there(&self, id: &BackupId, part: ManifestPart) -> bool {
        self.path(id, part).exists()
    }

    /// Reads a file, up to the limit of its type; `None` when it does not exist.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn read(
        &self,
        id: &BackupId,
        part: ManifestPart,
    ) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(id, part);
        let opened = match File::open(&path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", &path, source)),
        };
        let mut bytes = Vec::new();
        opened
            .take(part.bytes_max())
            .read_to_end(&mut bytes)
            .map_err(|source| failed("read", &path, source))?;
        Ok(Some(bytes))
    }

    /// Writes a file. A crash may lose it, which is harmless: the store has the object.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn write(
        &self,
        id: &BackupId,
        part: ManifestPart,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        let path = self.path(id, part);
        replace_until_crash(&path, bytes).map_err(|source| failed("write", &path, source))
    }

    /// Removes both files of a backup. A missing file is no error.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn remove(&self, id: &BackupId) -> Result<(), StateError> {
        [ManifestPart::Manifest, ManifestPart::Signature]
            .into_iter()
            .try_for_each(|part| remove_if_there(&self.path(id, part)))
    }

    fn path(&self, id: &BackupId, part: ManifestPart) -> PathBuf {
        self.folder.join(format!("{id}.{}", part.extension()))
    }
}
