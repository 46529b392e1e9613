//! Adoption: a record of the backups that a dataset took over. The state folder has a file for each
//! store and each name in that store. A file of an earlier version applies to every store and is
//! valid until the next adoption.
//!
//! Another origin is taken over as a whole, with all of its backups. Other time lines of the own
//! origin (a cloned machine, a copied or rewound pool) are taken over backup by backup: only those
//! that a person saw. A later backup of such a time line raises the question again, because its
//! host is still alive.
//!
//! An adoption is valid only for the dataset that adopted. When that dataset is replaced, a person
//! must decide again. A file that cannot be read is an error and never "nothing adopted".

use super::dir::state_name;
use super::dir::{create_folder, hashed_name, replace_file};
use super::error::{StateError, failed};
use crate::manifest::{Origin, parse_strict};
use crate::model::{BackupId, DatasetName, KnownStore};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

#[derive(Serialize, Deserialize)]
struct Adoption {
    format: u32,
    dataset: DatasetName,
    by: Origin,
    adopted: Vec<Origin>,
    /// Backups of other time lines of the own origin. Absent in files of older builds.
    #[serde(default)]
    backups: BTreeSet<BackupId>,
}

const FORMAT: u32 = 1;

/// Returns the origins whose backups this dataset may delete: its own, and those that it adopted.
///
/// # Errors
/// [`StateError::File`] when a file cannot be read.
pub fn origins_of(
    state_dir: &Path,
    store: &KnownStore,
    stored: &DatasetName,
    own: &Origin,
) -> Result<Vec<Origin>, StateError> {
    let mut origins = vec![own.clone()];
    if let Some(adoption) = read(state_dir, store, stored)?.filter(|adoption| adoption.by == *own) {
        origins.extend(adoption.adopted);
    }
    Ok(origins)
}

/// Returns the backups of other time lines that this dataset took over.
///
/// # Errors
/// [`StateError::File`] when a file cannot be read.
pub fn adopted_backups(
    state_dir: &Path,
    store: &KnownStore,
    stored: &DatasetName,
    own: &Origin,
) -> Result<BTreeSet<BackupId>, StateError> {
    let adoption = read(state_dir, store, stored)?.filter(|adoption| adoption.by == *own);
    Ok(adoption
        .map(|adoption| adoption.backups)
        .unwrap_or_default())
}

/// Adds these origins and backups to those taken over. The file is on disk when this returns.
///
/// # Errors
/// [`StateError::File`].
pub fn adopt(
    state_dir: &Path,
    store: &KnownStore,
    stored: &DatasetName,
    own: &Origin,
    others: &[Origin],
    backups: &[BackupId],
) -> Result<(), StateError> {
    let mut adopted = origins_of(state_dir, store, stored, own)?.split_off(1);
    let mut others: Vec<Origin> = others
        .iter()
        .filter(|other| *other != own)
        .cloned()
        .collect();
    others.retain(|other| !adopted.contains(other));
    adopted.extend(others);
    let mut taken = adopted_backups(state_dir, store, stored, own)?;
    taken.extend(backups.iter().cloned());
    let adoption = Adoption {
        format: FORMAT,
        dataset: stored.clone(),
        by: own.clone(),
        adopted,
        backups: taken,
    };
    let path = file_of(state_dir, &state_name(store, stored));
    let folder = state_dir.join("adopted");
    let made = create_folder(&folder);
    made.map_err(|source| failed("create", &folder, source))?;
    let text = serde_json::to_vec_pretty(&adoption)
        .map_err(|error| failed("write", &path, error.into()))?;
    replace_file(&path, &text).map_err(|source| failed("write", &path, source))
}

fn read(
    state_dir: &Path,
    store: &KnownStore,
    stored: &DatasetName,
) -> Result<Option<Adoption>, StateError> {
    match read_file(&file_of(state_dir, &state_name(store, stored)), stored)? {
        None => read_file(&file_of(state_dir, &hashed_name(stored.as_str())), stored),
        found => Ok(found),
    }
}

fn read_file(path: &Path, stored: &DatasetName) -> Result<Option<Adoption>, StateError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", path, source)),
    };
    let unusable = |reason: String| failed("read", path, std::io::Error::other(reason));
    let adoption: Adoption = parse_strict(&bytes).map_err(|error| unusable(error.to_string()))?;
    match adoption.format == FORMAT && adoption.dataset == *stored {
        true => Ok(Some(adoption)),
        false => Err(unusable("it is of another dataset or format".to_owned())),
    }
}

fn file_of(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join("adopted").join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BackupKind, Digest, Guid};

    fn origin(dataset: u64) -> Origin {
        Origin {
            dataset_guid: Guid(dataset),
            pool_guid: Guid(9),
        }
    }

    #[test]
    fn adopted_origins_apply_only_to_the_adopting_origin_and_store() {
        let state = tempfile::tempdir().unwrap();
        let (a, b): (DatasetName, DatasetName) =
            ("tank/a".parse().unwrap(), "tank/b".parse().unwrap());
        let store = KnownStore::of_url("s3:b");
        let known = |stored, own| origins_of(state.path(), &store, stored, &own).unwrap();
        assert_eq!(known(&a, origin(1)), [origin(1)]);
        adopt(
            state.path(),
            &store,
            &a,
            &origin(1),
            &[origin(2), origin(1)],
            &[],
        )
        .unwrap();
        assert_eq!(known(&a, origin(1)), [origin(1), origin(2)]);
        adopt(state.path(), &store, &a, &origin(1), &[origin(3)], &[]).unwrap();
        assert_eq!(known(&a, origin(1)), [origin(1), origin(2), origin(3)]);
        assert_eq!(known(&b, origin(1)), [origin(1)]);
        assert_eq!(known(&a, origin(4)), [origin(4)], "another adopter");
        let other = KnownStore::of_url("s3:c");
        assert_eq!(
            origins_of(state.path(), &other, &a, &origin(1)).unwrap(),
            [origin(1)],
            "another store"
        );
        // An earlier version named the file by the dataset alone.
        let old = Digest::of(a.as_str().as_bytes()).to_string();
        fs::rename(
            file_of(state.path(), &state_name(&store, &a)),
            file_of(state.path(), &old[..32]),
        )
        .unwrap();
        assert_eq!(known(&a, origin(1)), [origin(1), origin(2), origin(3)]);
    }

    #[test]
    fn adopted_backups_are_recorded_in_addition_to_adopted_origins() {
        let state = tempfile::tempdir().unwrap();
        let stored: DatasetName = "tank/a".parse().unwrap();
        let id = |nonce| {
            BackupId::new(
                jiff::Timestamp::UNIX_EPOCH,
                BackupKind::Full,
                Guid(1),
                nonce,
            )
        };
        // A file as an older build wrote it.
        let old = r#"{"format":1,"dataset":"tank/a","by":{"dataset_guid":"0000000000000001","pool_guid":"0000000000000009"},"adopted":[{"dataset_guid":"0000000000000002","pool_guid":"0000000000000009"}]}"#;
        fs::create_dir(state.path().join("adopted")).unwrap();
        let store = KnownStore::of_url("s3:b");
        let name = Digest::of(b"tank/a").to_string();
        fs::write(file_of(state.path(), &name[..32]), old).unwrap();
        adopt(state.path(), &store, &stored, &origin(1), &[], &[id(5)]).unwrap();
        adopt(
            state.path(),
            &store,
            &stored,
            &origin(1),
            &[origin(2)],
            &[id(6)],
        )
        .unwrap();
        assert_eq!(
            origins_of(state.path(), &store, &stored, &origin(1)).unwrap(),
            [origin(1), origin(2)]
        );
        let taken = |own| adopted_backups(state.path(), &store, &stored, &own).unwrap();
        assert_eq!(taken(origin(1)), BTreeSet::from([id(5), id(6)]));
        assert_eq!(taken(origin(4)), BTreeSet::new(), "another adopter");
    }

    #[test]
    fn unreadable_adoption_file_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let stored: DatasetName = "tank/a".parse().unwrap();
        let store = KnownStore::of_url("s3:b");
        adopt(state.path(), &store, &stored, &origin(1), &[origin(2)], &[]).unwrap();
        for bytes in [&b""[..], b"{}", b"{\"format\":1"] {
            fs::write(file_of(state.path(), &state_name(&store, &stored)), bytes).unwrap();
            let error = origins_of(state.path(), &store, &stored, &origin(1)).unwrap_err();
            assert!(error.to_string().contains("adopted"), "{error}");
        }
    }
}
