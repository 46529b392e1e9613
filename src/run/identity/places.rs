//! [`StorePlace`]: the location that a configured name leads to, and the store identities found there.

use super::take_over::take_over;
use super::{make_store_id, read_store_id};
use crate::model::{DatasetName, KnownStore, StoreId};
use crate::run::{RunError, error_chain};
use crate::state::StateError;
use crate::state::dataset_lock::{KernelLock, lock_named};
use crate::state::places::PlaceFile;
use crate::store::{IdentifiedStore, ObjectStore, StoreRead};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Limit of the wait for the lock. Its holder may be moving the state of an earlier version, which
/// lists the store once for each unfinished upload.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(60);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// The settings that decide where a configured name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePlace {
    /// The store's URL.
    pub url: String,
    /// The endpoint and other settings that are not in the URL; empty for a folder.
    pub endpoint: String,
    /// The option by which the command line names the place: "" for the remote, " --intermediate"
    /// for the directory.
    pub option: &'static str,
}

impl StorePlace {
    fn file(&self, state_dir: &Path) -> PlaceFile {
        PlaceFile::new(state_dir, &self.url, &self.endpoint)
    }
}

/// The purpose for which a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Objects are written or deleted, or local data is destroyed because of stored objects: the
    /// store must be the same as before.
    Write,
    /// The command changes nothing. A store without an identity is known by its URL.
    Read,
    /// Data is restored: no problem with the identity may prevent that.
    Restore,
}

/// Returns the store at a place as this host last found it, without a request to the store.
///
/// # Errors
/// [`RunError::State`] when the saved identity cannot be read: an error never means "never seen".
pub fn known_at(state_dir: &Path, place: &StorePlace) -> Result<KnownStore, RunError> {
    let url = place.url.clone();
    Ok(match place.file(state_dir).load()?.pop() {
        Some(id) => KnownStore { id, url },
        None => KnownStore::of_url(&url),
    })
}

/// Returns the store with its identity. Before the first write, a store without an identity gets
/// one. `datasets` are the names whose state an earlier version may have saved under the URL.
///
/// # Errors
/// [`RunError::WrongStore`] for [`Purpose::Write`] when another store than before answers at this
/// place; [`RunError`] when the identity cannot be read, except for [`Purpose::Restore`].
pub async fn identify(
    state_dir: &Path,
    place: &StorePlace,
    store: Arc<dyn ObjectStore>,
    access: Purpose,
    datasets: &[DatasetName],
) -> Result<Arc<dyn ObjectStore>, RunError> {
    let id = match find_id(state_dir, place, &store, access, datasets).await {
        Ok(id) => id,
        Err(error) if access == Purpose::Restore => {
            tracing::warn!(
                "cannot find out which store {} is: {}",
                place.url,
                error_chain(&error)
            );
            None
        }
        Err(error) => return Err(error),
    };
    Ok(match id {
        Some(id) => Arc::new(IdentifiedStore::new(store, id)),
        None => store,
    })
}

async fn find_id(
    state_dir: &Path,
    place: &StorePlace,
    store: &Arc<dyn ObjectStore>,
    access: Purpose,
    datasets: &[DatasetName],
) -> Result<Option<StoreId>, RunError> {
    let file = place.file(state_dir);
    let known = file.load()?;
    let found = read_store_id(&**store).await?;
    match (found, known.last(), access) {
        (Some(id), Some(_), _) if known.contains(&id) => {
            if known.last() != Some(&id)
                && let Err(error) = file.save(known, &id)
            {
                tracing::debug!("{}", error_chain(&error));
            }
            Ok(Some(id))
        }
        (Some(id), None, Purpose::Write) => register(state_dir, &file, store, Some(id), datasets)
            .await
            .map(Some),
        (Some(id), None, Purpose::Restore) => Ok(Some(id)),
        (Some(id), None, Purpose::Read) => {
            if let Err(error) = register(state_dir, &file, store, Some(id.clone()), datasets).await
            {
                tracing::debug!(
                    "cannot save the identity of {}: {}",
                    place.url,
                    error_chain(&error)
                );
            }
            Ok(Some(id))
        }
        (Some(id), Some(last), Purpose::Write) => {
            Err(other_store(place, last, &format!("is {id} now")))
        }
        (Some(id), Some(last), _) => {
            tracing::warn!(
                "{} leads to another store than before: its identity was {last} and is {id} now",
                place.url
            );
            Ok(Some(id))
        }
        (None, None, Purpose::Write) => register(state_dir, &file, store, None, datasets)
            .await
            .map(Some),
        (None, None, _) => Ok(None),
        (None, Some(last), Purpose::Write) => Err(other_store(place, last, "has no identity now")),
        (None, Some(last), _) => {
            tracing::warn!(
                "{} was {last} and has no identity now: emptied, or another store",
                place.url
            );
            Ok(Some(last.clone()))
        }
    }
}

/// Returns the store at this place if it may be written to. Changes nothing.
///
/// # Errors
/// As for [`identify`] with [`Purpose::Write`].
pub async fn check_place(
    state_dir: &Path,
    place: &StorePlace,
    store: &dyn StoreRead,
) -> Result<KnownStore, RunError> {
    let known = place.file(state_dir).load()?;
    let url = place.url.clone();
    match (read_store_id(store).await?, known.last()) {
        (Some(id), Some(last)) if !known.contains(&id) => {
            Err(other_store(place, last, &format!("is {id} now")))
        }
        (None, Some(last)) => Err(other_store(place, last, "has no identity now")),
        (Some(id), _) => Ok(KnownStore { id, url }),
        (None, None) => Ok(KnownStore::of_url(&url)),
    }
}

fn other_store(place: &StorePlace, last: &StoreId, now: &str) -> RunError {
    RunError::WrongStore {
        what: format!(
            "{} is not the store that it was: it was {last} and {now}; nothing was changed",
            place.url
        ),
        hint: format!(
            "check that the right disk is mounted there and that the name leads to the right bucket; if this store is meant: \
             zfs-backup accept-store{}",
            place.option
        ),
    }
}

/// Accepts the store that is now at this place, and gives it an identity if it has none. Returns
/// the identity that was known before, and the one that holds from now on.
///
/// # Errors
/// As for [`identify`], except that another store than before is accepted.
pub async fn accept(
    state_dir: &Path,
    place: &StorePlace,
    store: &Arc<dyn ObjectStore>,
    datasets: &[DatasetName],
) -> Result<(Option<StoreId>, StoreId), RunError> {
    let file = place.file(state_dir);
    let before = file.load()?.pop();
    let found = read_store_id(&**store).await?;
    let id = register(state_dir, &file, store, found, datasets).await?;
    Ok((before, id))
}

/// Saves the identity of this place, after the state that an earlier version kept under the URL has
/// moved to the identity.
async fn register(
    state_dir: &Path,
    file: &PlaceFile,
    store: &Arc<dyn ObjectStore>,
    found: Option<StoreId>,
    datasets: &[DatasetName],
) -> Result<StoreId, RunError> {
    let _lock = lock_stores(state_dir).await?;
    let id = match found {
        Some(id) => id,
        None => match read_store_id(&**store).await? {
            Some(id) => id,
            None => make_store_id(&**store).await?,
        },
    };
    let known = KnownStore {
        id: id.clone(),
        url: file.url().to_owned(),
    };
    take_over(state_dir, &known, &**store, datasets).await?;
    file.save(file.load()?, &id)?;
    Ok(id)
}

/// Takes the lock for identities of stores. Several configurations may start in the same minute, so
/// their runs wait for each other.
async fn lock_stores(state_dir: &Path) -> Result<KernelLock, StateError> {
    let begun = Instant::now();
    loop {
        match lock_named(state_dir, "stores", "the identities of stores") {
            Err(StateError::Locked { .. }) if begun.elapsed() < LOCK_WAIT_MAX => {
                tokio::time::sleep(LOCK_RETRY).await
            }
            result => return result,
        }
    }
}
