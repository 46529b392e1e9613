//! [`learn_keys`]: a host that has no keys, such as one that was set up again, takes the keys of
//! its other store.

use super::{KeyCache, writer_keys};
use crate::run::{RunError, error_chain};
use crate::store::StoreWrite;
use age::secrecy::SecretString;

/// If this host has no keys and `store`, the target, is empty: takes the keys of `other`, if it has
/// any. With new keys every dataset would need a new full, and `other` would refuse what is sealed
/// to them. `other` is the store, or the reason why it cannot be reached.
///
/// # Errors
/// [`RunError::Refused`] when `other` cannot be read, because then it may have keys. Otherwise as
/// for [`writer_keys`].
pub async fn learn_keys(
    store: &dyn StoreWrite,
    other: Result<&dyn StoreWrite, &str>,
    cache: &KeyCache,
    passphrase: impl FnOnce() -> Result<SecretString, RunError>,
) -> Result<(), RunError> {
    if cache.load()?.is_some() || !store.is_unused().await? {
        return Ok(());
    }
    let unknown = |why: &str| {
        let what = format!(
            "this host knows no keys yet, and the remote cannot be asked whether it has some: {why}"
        );
        RunError::refused(
            what,
            "run it again when the remote can be reached; new keys would start a new chain for \
             every dataset",
        )
    };
    let other = other.map_err(unknown)?;
    match other.is_unused().await {
        Ok(true) => Ok(()),
        Ok(false) => writer_keys(other, cache, passphrase).await.map(drop),
        Err(error) => Err(unknown(&error_chain(&error))),
    }
}
