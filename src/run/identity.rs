//! Finds out which store a configured place leads to.
//!
//! A store identifies itself by one small object, [`STORE_ID`], which the first command that writes
//! puts there. Names are no evidence: a symbolic link, a bind mount, an NFS export or an rclone
//! alias gives one store two names, and one bucket name at two endpoints means two stores.
//!
//! [`refuse_one_place`] stops every operation that relies on two stores. `places` saves the
//! identity of each place, for commands that work without the store, and to notice when another
//! store answers at a place. `take_over` renames the state of versions that named it by URL.

mod places;
mod take_over;

pub use places::{Purpose, StorePlace, accept, check_place, identify, known_at};

use super::RunError;
use crate::manifest::{FORMAT, parse_as, to_stored_bytes};
use crate::model::{KnownStore, StoreId};
use crate::store::key::{PROBE_PREFIX, STORE_ID, STORE_ID_CLAIM_PREFIX};
use crate::store::{
    ListedObject, ObjectKey, ObjectStore, StoreErrorKind, StoreInfo, StoreRead, StoreWrite,
};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

/// The contents of the object.
#[derive(Serialize, Deserialize)]
struct StoredId {
    format: u32,
    #[serde(rename = "type")]
    object_type: String,
    id: StoreId,
}

const OBJECT_TYPE: &str = "store-id";
/// The time for which a claim is valid. Hosts settle an identity within seconds.
const CLAIM_MAX: SignedDuration = SignedDuration::from_hours(1);
/// The most bytes that are read of the object, which is far smaller.
const STORE_ID_BYTES_MAX: u64 = 4096;

/// Refuses to use one store as two. With one store under two names, each backup would seem to be
/// stored twice, and one of the two copies would seem safe to delete.
///
/// # Errors
/// [`RunError::OnePlace`] with both names.
pub fn refuse_one_place(one: &KnownStore, other: &KnownStore) -> Result<(), RunError> {
    if one.id != other.id {
        return Ok(());
    }
    Err(RunError::OnePlace {
        one: one.url.clone(),
        other: other.url.clone(),
    })
}

/// Reads the identity of a store; `None` when the store answers and has none yet.
///
/// # Errors
/// [`RunError::Store`] when the identity could not be read; [`RunError::WrongStore`] when the stored
/// object is not an identity. Neither is ever reported as `None`.
pub(super) async fn read_store_id(store: &dyn StoreRead) -> Result<Option<StoreId>, RunError> {
    let bytes = match store
        .get(&ObjectKey::store_id(), None, STORE_ID_BYTES_MAX)
        .await
    {
        Ok(bytes) => bytes,
        Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind == StoreErrorKind::Corrupt => {
            return Err(unusable(store, &super::error_chain(&error)));
        }
        Err(error) if error.kind == StoreErrorKind::Denied && error.hint.is_none() => {
            let hint =
                format!("allow these credentials to read {STORE_ID}, as all other objects there");
            return Err(error.with_hint(hint).into());
        }
        Err(error) => return Err(error.into()),
    };
    match parse_as::<StoredId>(&bytes, OBJECT_TYPE) {
        Ok(stored) => Ok(Some(stored.id)),
        Err(error) => Err(unusable(store, &super::error_chain(&error))),
    }
}

fn unusable(store: &dyn StoreInfo, why: &str) -> RunError {
    RunError::WrongStore {
        what: format!(
            "{STORE_ID} in {} does not say which store this is: {why}",
            store.url()
        ),
        hint: format!(
            "bring its earlier version back, or delete {STORE_ID} there and run `zfs-backup accept-store` to give the store a new identity"
        ),
    }
}

/// Gives a store an identity, and returns the identity that it has afterwards: another host may
/// have put one first. A store that mixes names is refused before anything depends on it.
///
/// # Errors
/// [`RunError`] when the store does not keep names apart, or the identity could not be put or read
/// back.
async fn make_store_id(store: &dyn ObjectStore) -> Result<StoreId, RunError> {
    store.check_names(PROBE_PREFIX).await?;
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    let own = StoreId::from_random(u128::from_le_bytes(random));
    let id = match store.traits().conditional_put {
        true => put_store_id(store, &own).await?,
        false => settle_store_id(store, &own).await?,
    };
    tracing::info!(%id, store = store.url(), "the store has an identity now");
    Ok(id)
}

/// Puts the identity unless the store has one, and returns the identity that is then stored.
async fn put_store_id(store: &dyn StoreWrite, id: &StoreId) -> Result<StoreId, RunError> {
    let stored = StoredId {
        format: FORMAT,
        object_type: OBJECT_TYPE.to_owned(),
        id: id.clone(),
    };
    let key = ObjectKey::store_id();
    let bytes = to_stored_bytes(&stored).map_err(|error| RunError::Damaged {
        key: key.to_string(),
        reason: error.to_string(),
    })?;
    match store.put_new(&key, bytes.into()).await {
        // Another host put its identity first, or at the same time.
        Err(error)
            if matches!(
                error.kind,
                StoreErrorKind::AlreadyExists | StoreErrorKind::Corrupt
            ) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => {}
    }
    let gone = || RunError::Damaged {
        key: key.to_string(),
        reason: "the store confirmed the put, but the object is missing".to_owned(),
    };
    read_store_id(store).await?.ok_or_else(gone)
}

/// Does the same as [`put_store_id`] for a store that cannot create objects conditionally. Two
/// hosts that begin at the same time would both put an identity there, and the later one would
/// replace the earlier one, which the other host has already saved. So each host first puts a
/// claim. The oldest claim wins, and all hosts put the identity that it names.
async fn settle_store_id(store: &dyn ObjectStore, own: &StoreId) -> Result<StoreId, RunError> {
    let own_claim = ObjectKey::store_id_claim(own);
    store
        .put_new(&own_claim, format!("{own}\n").into_bytes().into())
        .await?;
    let listed = store.list(STORE_ID_CLAIM_PREFIX).await?;
    // A faster host removes its claim once the store has its identity.
    let id = match read_store_id(store).await? {
        Some(id) => id,
        None => put_store_id(store, &winner_of(&listed, own)).await?,
    };
    // The claims of other hosts stay: a host may be about to read its own back.
    if let Err(error) = store.delete(&own_claim).await {
        tracing::debug!(%own_claim, "cannot remove a claim: {}", super::error_chain(&error));
    }
    Ok(id)
}

/// Returns the identity that the oldest claim names. Claims much older than our own come from runs
/// that crashed, or even from a copy of another store.
fn winner_of(listed: &[ListedObject], own: &StoreId) -> StoreId {
    let claims = || {
        listed.iter().filter_map(|object| {
            let id: StoreId = object
                .key
                .strip_prefix(STORE_ID_CLAIM_PREFIX)?
                .parse()
                .ok()?;
            Some((object.modified_at, id))
        })
    };
    let own_at = claims().find(|(_, id)| id == own).and_then(|(at, _)| at);
    let oldest = own_at.and_then(|at| at.checked_sub(CLAIM_MAX).ok());
    claims()
        .filter(|(at, _)| *at >= oldest)
        .min()
        .map_or_else(|| own.clone(), |(_, id)| id)
}
