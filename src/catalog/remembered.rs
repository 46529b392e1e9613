//! The remote as it was last seen: its manifests with their signatures, kept in `state_dir`, for
//! nights when it cannot be reached. They are verified again whenever they are read.

use super::catalog::{Catalog, StoredBackup, get_pinned, get_signature};
use super::{RunError, error_chain};
use crate::manifest::{MANIFEST_BYTES_MAX, SIGNATURE_BYTES_MAX, parse_manifest};
use crate::model::{BackupId, DatasetName, Digest, KnownStore};
use crate::sign::TrustedKeys;
use crate::state::dir::replace_until_crash;
use crate::state::dir::state_name;
use crate::state::manifests::{Keeping, ObjectCache};
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, ObjectStore};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const MANIFEST: &str = "json";
const SIGNATURE: &str = "json.minisig";

/// Keeps the manifests of these backups, and no others. Those that are kept already, or were read
/// just now, are not fetched again.
///
/// # Errors
/// [`RunError`]; then the memory is older than it could be, and never wrong.
pub async fn remember(
    state_dir: &Path,
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    whole: &[&StoredBackup],
) -> Result<(), RunError> {
    let folder = folder_of(state_dir, &store.known(), dataset);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|source| failed("create", &folder, source))?;
    let wanted: BTreeSet<&BackupId> = whole.iter().map(|backup| &backup.manifest.id).collect();
    for id in kept_ids(&folder)?.iter().filter(|id| !wanted.contains(id)) {
        for kind in [MANIFEST, SIGNATURE] {
            let file = file_of(&folder, id, kind);
            match std::fs::remove_file(&file) {
                Err(source) if source.kind() != ErrorKind::NotFound => {
                    return Err(failed("remove", &file, source));
                }
                _ => {}
            }
        }
    }
    let cache = ObjectCache::open(state_dir, &store.known(), dataset, Keeping::Nothing);
    for backup in whole {
        let id = &backup.manifest.id;
        let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest);
        let kept = read(&file_of(&folder, id, MANIFEST), MANIFEST_BYTES_MAX)?;
        let signed = file_of(&folder, id, SIGNATURE).exists();
        if signed && kept.is_some_and(|bytes| Digest::of(&bytes) == backup.manifest_blake3) {
            continue;
        }
        let manifest = cache.get_pinned(key.as_str(), backup.manifest_blake3);
        let (manifest, signature) = match manifest.zip(cache.get_any(key.signature().as_str())) {
            Some(pair) => pair,
            None => (
                get_pinned(store, &key, backup.manifest_blake3, MANIFEST_BYTES_MAX).await?,
                get_signature(store, &key).await?,
            ),
        };
        write(&file_of(&folder, id, SIGNATURE), &signature)?;
        write(&file_of(&folder, id, MANIFEST), &manifest)?;
    }
    Ok(())
}

/// The backups that were whole when this store was last read; `None` when it never was. Those that
/// do not verify are left out, and their number is told.
///
/// # Errors
/// [`RunError::File`] when the memory cannot be read: never taken for "nothing".
pub fn recall(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
) -> Result<Option<(Catalog, usize)>, RunError> {
    let folder = folder_of(state_dir, store, dataset);
    if let Err(source) = std::fs::metadata(&folder) {
        return if source.kind() == ErrorKind::NotFound {
            Ok(None)
        } else {
            Err(failed("read", &folder, source))
        };
    }
    let (mut backups, mut disbelieved) = (Vec::new(), 0);
    for id in kept_ids(&folder)? {
        let bytes = read(&file_of(&folder, &id, MANIFEST), MANIFEST_BYTES_MAX)?.unwrap_or_default();
        let signature =
            read(&file_of(&folder, &id, SIGNATURE), SIGNATURE_BYTES_MAX)?.unwrap_or_default();
        match parse_manifest(trusted, dataset, &id, &bytes, &signature) {
            Ok(manifest) => {
                let (manifest_blake3, objects) = (Digest::of(&bytes), Default::default());
                backups.push(StoredBackup {
                    manifest,
                    manifest_blake3,
                    objects,
                });
            }
            Err(error) => {
                tracing::warn!(%id, error = error_chain(&error), "the remembered manifest is not believed");
                disbelieved += 1;
            }
        }
    }
    let catalog = Catalog {
        dataset: dataset.clone(),
        backups,
        attempts: Vec::new(),
        unknown: Vec::new(),
        newest_object_at: None,
    };
    Ok(Some((catalog, disbelieved)))
}

fn kept_ids(folder: &Path) -> Result<Vec<BackupId>, RunError> {
    let entries = std::fs::read_dir(folder).map_err(|source| failed("read", folder, source))?;
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry
            .map_err(|source| failed("read", folder, source))?
            .file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_suffix(MANIFEST)?.strip_suffix('.')?.parse().ok());
        ids.extend(id);
    }
    ids.sort();
    Ok(ids)
}

fn read(file: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, RunError> {
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", file, source)),
    };
    let mut bytes = Vec::new();
    opened
        .take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(|source| failed("read", file, source))?;
    Ok(Some(bytes))
}

/// What a crash loses of it is fetched again.
fn write(file: &Path, bytes: &[u8]) -> Result<(), RunError> {
    replace_until_crash(file, bytes).map_err(|source| failed("write", file, source))
}

fn folder_of(state_dir: &Path, store: &KnownStore, dataset: &DatasetName) -> PathBuf {
    state_dir.join("remote").join(state_name(store, dataset))
}

fn file_of(folder: &Path, id: &BackupId, kind: &str) -> PathBuf {
    folder.join(format!("{id}.{kind}"))
}

fn failed(operation: &'static str, path: &Path, source: std::io::Error) -> RunError {
    RunError::File {
        operation,
        path: path.display().to_string(),
        source,
    }
}
