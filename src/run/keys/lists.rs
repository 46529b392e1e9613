//! The lists of objects for which retired keys stay trusted. They are stored with the keyring in
//! every store, and with the cached keys.
//!
//! A keyring pins its list by BLAKE3, so a list needs no signature: other bytes are not the list. A
//! missing list only removes trust.

use super::KeyCache;
use crate::catalog::list_wanted;
use crate::model::{DatasetName, Digest};
use crate::run::{RunError, error_chain};
use crate::sign::{Believed, TrustedKeys, TrustedList};
use crate::state::dir::replace_file;
use crate::store::key::KEYRING_PREFIX;
use crate::store::{ObjectKey, StoreErrorKind, StoreRead, StoreWrite};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// The most bytes of a list: enough for 150,000 backups, at some 420 bytes each.
pub(in crate::run) const BELIEVED_BYTES_MAX: u64 = 64 << 20;

/// The number of copies of a list in one store.
const COPIES_MAX: usize = 3;

/// Fetches the lists that these keys pin and that were not read yet. Warns of a missing or damaged
/// list: objects that the retired keys signed then do not verify, but all others do.
///
/// # Errors
/// [`RunError::Store`] when the store cannot be read.
pub async fn read_lists(store: &dyn StoreRead, trusted: &mut TrustedKeys) -> Result<(), RunError> {
    for list in trusted
        .lists
        .iter_mut()
        .filter(|list| list.content.is_none())
    {
        let Some(key) = key_of(list) else { continue };
        let mut read = fetch(store, &key, list).await?;
        if read.is_err() {
            let name = copy_name(list);
            let copies = list_wanted(store, |key| key.ends_with(&name)).await?;
            for copy in copies
                .iter()
                .filter_map(|object| ObjectKey::listed(&object.key))
                .take(COPIES_MAX)
            {
                read = read.or(fetch(store, &copy, list).await?);
            }
        }
        match read {
            Ok(content) => list.content = Some(Arc::new(content)),
            Err(reason) => tracing::warn!(
                store = store.url(),
                %key,
                reason,
                "cannot read the list of objects for which retired keys are trusted; without it, \
                 backups from before the rotation do not verify"
            ),
        }
    }
    Ok(())
}

async fn fetch(
    store: &dyn StoreRead,
    key: &ObjectKey,
    list: &TrustedList,
) -> Result<Result<Believed, String>, RunError> {
    match store.get(key, None, BELIEVED_BYTES_MAX).await {
        Ok(bytes) => Ok(open(list, &bytes)),
        Err(error)
            if matches!(
                error.kind,
                StoreErrorKind::NotFound | StoreErrorKind::Corrupt
            ) =>
        {
            Ok(Err(error_chain(&error)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Puts copies of the lists into the prune-record folders of a few datasets. When the folder of
/// keyrings is lost, the keyring comes back from the copies of backups, and its list from here.
///
/// # Errors
/// [`RunError::Store`].
pub(in crate::run) async fn put_list_copies(
    store: &dyn StoreWrite,
    trusted: &TrustedKeys,
    datasets: impl IntoIterator<Item = DatasetName>,
) -> Result<(), RunError> {
    let datasets: Vec<DatasetName> = datasets.into_iter().take(COPIES_MAX).collect();
    for list in &trusted.lists {
        let Some(content) = &list.content else {
            continue;
        };
        let bytes = content
            .to_bytes()
            .map_err(|error| RunError::defect(error.to_string()))?;
        for dataset in &datasets {
            let Some(key) = ObjectKey::listed(&format!("{dataset}{}", copy_name(list))) else {
                continue;
            };
            if store.head(&key).await?.is_none() {
                store.put_new(&key, bytes.clone().into()).await?;
            }
        }
    }
    Ok(())
}

/// Names a copy. The suffix is not `.json`, so that no reader takes the copy for a prune record.
fn copy_name(list: &TrustedList) -> String {
    format!("/@prune/believed-{}.list", list.blake3)
}

/// Puts the lists that these keys pin into a store that lacks them, and reads a new list back.
///
/// # Errors
/// [`RunError::WrongTrustedList`] when other bytes are at its key or are read back; [`RunError::Store`].
pub(in crate::run) async fn put_lists(
    store: &dyn StoreWrite,
    trusted: &TrustedKeys,
) -> Result<(), RunError> {
    for list in &trusted.lists {
        let (Some(key), Some(content)) = (key_of(list), &list.content) else {
            continue;
        };
        let bytes = content
            .to_bytes()
            .map_err(|error| RunError::defect(error.to_string()))?;
        if store
            .head(&key)
            .await?
            .is_some_and(|there| there.bytes == bytes.len() as u64)
        {
            continue;
        }
        let damaged = |reason| RunError::WrongTrustedList {
            key: key.to_string(),
            reason,
        };
        if bytes.len() as u64 > BELIEVED_BYTES_MAX {
            return Err(RunError::refused(
                format!(
                    "{key} would have {} bytes, and readers accept {BELIEVED_BYTES_MAX}",
                    bytes.len()
                ),
                "delete backups with prune-remote and prune-intermediate first, or use --keep-trust",
            ));
        }
        match store.put_new(&key, bytes.into()).await {
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                return Err(damaged(
                    "another object lies in its place: changed, or replaced",
                ));
            }
            result => drop(result?),
        }
        let there = store.get(&key, None, BELIEVED_BYTES_MAX).await?;
        if Digest::of(&there) != list.blake3 {
            return Err(damaged("the store returned another list"));
        }
    }
    Ok(())
}

/// Returns the faults of the lists in this store that these keys pin, by object.
///
/// # Errors
/// [`RunError::Store`] when the store cannot be read.
pub(in crate::run) async fn list_flaws(
    store: &dyn StoreRead,
    trusted: &TrustedKeys,
) -> Result<Vec<(ObjectKey, String)>, RunError> {
    let mut flaws = Vec::new();
    for list in &trusted.lists {
        let Some(key) = key_of(list) else { continue };
        match store.get(&key, None, BELIEVED_BYTES_MAX).await {
            Ok(bytes) => flaws.extend(open(list, &bytes).err().map(|reason| (key, reason))),
            Err(error)
                if matches!(
                    error.kind,
                    StoreErrorKind::NotFound | StoreErrorKind::Corrupt
                ) =>
            {
                flaws.push((key, error_chain(&error)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(flaws)
}

impl KeyCache {
    fn list_path(&self, list: &TrustedList) -> PathBuf {
        self.folder.join(format!("believed-{}.json", list.blake3))
    }

    /// Writes the lists into the folder of the cached keys. Must be called before the keys are
    /// written: keys without their list are useless.
    pub(super) fn save_lists(&self, trusted: &TrustedKeys) -> Result<(), RunError> {
        for list in &trusted.lists {
            let (path, Some(content)) = (self.list_path(list), &list.content) else {
                continue;
            };
            let bytes = content
                .to_bytes()
                .map_err(|error| super::file_error("write", &path, error.into()))?;
            replace_file(&path, &bytes)
                .map_err(|source| super::file_error("write", &path, source))?;
        }
        Ok(())
    }

    /// Reads the lists that the cached keys pin.
    pub(super) fn load_lists(&self, trusted: &mut TrustedKeys) -> Result<(), RunError> {
        for list in &mut trusted.lists {
            let path = self.list_path(list);
            let read = fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|bytes| open(list, &bytes));
            let content = read.map_err(|reason| {
                RunError::refused(
                    format!("read {}, the list of objects for which retired keys are trusted: {reason}", path.display()),
                    format!(
                        "remove {} and run the command again: the keys come back from the store with the passphrase",
                        self.folder.display()
                    ),
                )
            })?;
            list.content = Some(Arc::new(content));
        }
        Ok(())
    }
}

fn open(list: &TrustedList, bytes: &[u8]) -> Result<Believed, String> {
    let actual = Digest::of(bytes);
    if actual != list.blake3 {
        return Err(format!(
            "its BLAKE3 is {actual}, and the keyring says {}",
            list.blake3
        ));
    }
    Believed::parse(bytes)
}

/// Returns the key of a list; `None` when the tag in the keyring is invalid: then there is no such
/// object.
fn key_of(list: &TrustedList) -> Option<ObjectKey> {
    ObjectKey::listed(&format!("{KEYRING_PREFIX}{}", list.name()))
}
