//! Fetches objects that are not yet verified, at a cost that does not depend on the contents of the
//! store.
//!
//! - The signature comes first: it has a few hundred bytes, and without a signature by a trusted
//!   key for this place the object is not fetched.
//! - Each type of object has a limit that fits it ([`crate::manifest`] derives them).
//! - Only one task of the process at a time fetches an unverified object of more than
//!   [`SMALL_BYTES_MAX`], and verifies or drops it before the next one starts.

use crate::catalog::CatalogError;
use crate::manifest::SIGNATURE_BYTES_MAX;
use crate::model::{Digest, error_chain};
use crate::sign::{SignedType, TrustedKeys};
use crate::store::{ObjectKey, StoreError, StoreErrorKind, StoreRead};
use bytes::Bytes;
use tokio::sync::Mutex;

/// Size limit for concurrent fetches. Manifests are smaller, and so are all other objects except
/// those of large backups.
const SMALL_BYTES_MAX: u64 = 1 << 20;

/// Held while an object above [`SMALL_BYTES_MAX`] is fetched and checked.
static LARGE: Mutex<()> = Mutex::const_new(());

/// Converts a missing object, or one longer than the format allows, to damage of its backup:
/// neither is a failure of the store.
fn named(key: &ObjectKey, fetched: Result<Bytes, StoreError>) -> Result<Bytes, CatalogError> {
    fetched.map_err(|error| match error.kind {
        StoreErrorKind::NotFound => missing(key),
        StoreErrorKind::Corrupt => CatalogError::Damaged {
            key: key.to_string(),
            reason: error_chain(&error),
        },
        _ => error.into(),
    })
}

fn missing(key: &ObjectKey) -> CatalogError {
    CatalogError::Damaged {
        key: key.to_string(),
        reason: "missing".into(),
    }
}

/// Fetches an object that a manifest or a listing names, and checks it before another large one is
/// fetched.
///
/// # Errors
/// [`CatalogError::Damaged`] when it is missing or too long; the error of `check`;
/// [`CatalogError::Store`].
pub(super) async fn get_checked<T>(
    store: &dyn StoreRead,
    key: &ObjectKey,
    limit_bytes: u64,
    check: impl Fn(&Bytes) -> Result<T, CatalogError>,
) -> Result<(Bytes, T), CatalogError> {
    match store.get(key, None, limit_bytes.min(SMALL_BYTES_MAX)).await {
        // The object may just be larger than the small limit: fetch it again with its own limit.
        Err(error) if error.kind == StoreErrorKind::Corrupt && limit_bytes > SMALL_BYTES_MAX => {}
        fetched => {
            let bytes = named(key, fetched)?;
            let checked = check(&bytes)?;
            return Ok((bytes, checked));
        }
    }
    let _alone = LARGE.lock().await;
    let bytes = named(key, store.get(key, None, limit_bytes).await)?;
    let checked = check(&bytes)?;
    Ok((bytes, checked))
}

/// Fetches a signed object and its signature, and verifies it.
///
/// # Errors
/// [`CatalogError::Damaged`] when the object or its signature is missing or too long;
/// [`CatalogError::Manifest`] when the signature is not by a trusted key for this object;
/// [`CatalogError::Store`].
pub(crate) async fn get_signed(
    store: &dyn StoreRead,
    key: &ObjectKey,
    signed_type: SignedType,
    trusted: &TrustedKeys,
    limit_bytes: u64,
) -> Result<(Bytes, Bytes), CatalogError> {
    let signature = get_signature(store, key).await?;
    let bytes =
        get_with_signature(store, key, signed_type, trusted, limit_bytes, &signature).await?;
    Ok((bytes, signature))
}

/// Fetches the signature of an object.
///
/// # Errors
/// [`CatalogError::Damaged`] when it is missing or too long. The error names the object if both it
/// and its signature are missing.
pub(crate) async fn get_signature(
    store: &dyn StoreRead,
    key: &ObjectKey,
) -> Result<Bytes, CatalogError> {
    let signature_key = key.signature();
    match store.get(&signature_key, None, SIGNATURE_BYTES_MAX).await {
        Err(error)
            if error.kind == StoreErrorKind::NotFound && store.head(key).await?.is_none() =>
        {
            Err(missing(key))
        }
        fetched => named(&signature_key, fetched),
    }
}

/// Fetches the object of this signature and verifies it. Makes no request if the signature is not
/// by a trusted key for this place.
///
/// # Errors
/// As for [`get_signed`].
pub(super) async fn get_with_signature(
    store: &dyn StoreRead,
    key: &ObjectKey,
    signed_type: SignedType,
    trusted: &TrustedKeys,
    limit_bytes: u64,
    signature: &[u8],
) -> Result<Bytes, CatalogError> {
    let untrusted = |source: crate::sign::SignatureError| CatalogError::Manifest {
        key: key.to_string(),
        source: source.into(),
    };
    trusted
        .verify_claim(signed_type, key.as_str(), signature)
        .map_err(untrusted)?;
    let verify = |bytes: &Bytes| {
        trusted
            .verify(signed_type, key.as_str(), bytes, signature)
            .map_err(untrusted)
    };
    Ok(get_checked(store, key, limit_bytes, verify).await?.0)
}

/// Fetches a small object of a backup and compares it with the hash in the manifest.
///
/// # Errors
/// [`CatalogError::Damaged`] when it is missing or has another hash; [`CatalogError::Store`].
pub async fn get_pinned(
    store: &dyn StoreRead,
    key: &ObjectKey,
    blake3: Digest,
    limit_bytes: u64,
) -> Result<Bytes, CatalogError> {
    let check = |bytes: &Bytes| match Digest::of(bytes) {
        actual if actual == blake3 => Ok(()),
        actual => Err(CatalogError::Damaged {
            key: key.to_string(),
            reason: format!("its BLAKE3 is {actual}, and the manifest says {blake3}"),
        }),
    };
    Ok(get_checked(store, key, limit_bytes, check).await?.0)
}
