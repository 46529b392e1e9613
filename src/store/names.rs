//! Checks whether a folder keeps the names of our objects apart and returns them unchanged.
//!
//! Keys contain the names of datasets, which are ASCII: letters in both cases, digits, space and
//! `-_.:`. Unicode normalization therefore changes no key. Two datasets can differ in case only, or
//! in a dot or space at the end; folders of FAT, exFAT, Windows shares and macOS do not keep such
//! names apart, and some change a colon. All other parts of keys (`@`, ids, names of objects) have
//! one fixed form, so two keys with the same dataset never differ in case only.

use super::{ObjectKey, ObjectStore, StoreError, StoreErrorKind};
use crate::store::work::random_u64;
use std::collections::BTreeSet;

/// The ends of the names to put: two that differ in case, and one with all special characters and a
/// dot at the end.
const NAMES: [&str; 3] = ["name", "NAME", "@a: b-_."];

/// Puts a few small objects whose keys begin with `prefix`, lists them, and removes them again.
///
/// # Errors
/// [`StoreErrorKind::Unsupported`] when the store does not keep the names; any other error when
/// that could not be determined.
pub(super) async fn check_names(store: &dyn ObjectStore, prefix: &str) -> Result<(), StoreError> {
    let failed =
        |kind, text: String| StoreError::new(kind, "check names in", "", store.url(), text);
    let nonce =
        random_u64().map_err(|error| failed(StoreErrorKind::Unavailable, error.to_string()))?;
    let begin = format!("{prefix}{nonce:016x}-");
    let keys: BTreeSet<String> = NAMES.iter().map(|name| format!("{begin}{name}")).collect();
    let found = put_and_list(store, &begin, &keys).await;
    let listed = found.as_ref().map(Clone::clone).unwrap_or_default();
    for key in keys.union(&listed) {
        if let Some(key) = ObjectKey::listed(key)
            && let Err(error) = store.delete(&key).await
        {
            tracing::debug!(%key, %error, "cannot remove an object of the check of names");
        }
    }
    let listed = found?;
    if listed == keys {
        return Ok(());
    }
    let names = |keys: &BTreeSet<String>| {
        let names: Vec<String> = keys
            .iter()
            .map(|key| format!("{:?}", key.strip_prefix(&begin).unwrap_or(key)))
            .collect();
        names.join(", ")
    };
    let text = format!(
        "the store does not keep names apart or changes them: the check put {}, and {} are listed; \
         backups of datasets whose names differ only in case or in a special character would be mixed",
        names(&keys),
        names(&listed)
    );
    Err(failed(StoreErrorKind::Unsupported, text).with_hint(
        "use a folder that keeps upper and lower case apart (ext4, XFS, ZFS, NFS; of Samba with `case sensitive = yes`), or s3: or b2:",
    ))
}

/// Puts an object under each key, with the key as its content, and returns the keys listed. A put
/// that the store refuses because of the name shows as a missing key.
async fn put_and_list(
    store: &dyn ObjectStore,
    begin: &str,
    keys: &BTreeSet<String>,
) -> Result<BTreeSet<String>, StoreError> {
    for key in keys {
        let Some(object) = ObjectKey::listed(key) else {
            continue;
        };
        match store.put_new(&object, key.clone().into()).await {
            Err(error) if !is_about_name(error.kind) => return Err(error),
            _ => {}
        }
    }
    let listed = store.list(begin).await?;
    Ok(listed.into_iter().map(|object| object.key).collect())
}

/// Whether a put can fail in this way because the store changes the name: another object has it, or
/// the file system does not accept it, or the object is not found under it.
fn is_about_name(kind: StoreErrorKind) -> bool {
    matches!(
        kind,
        StoreErrorKind::AlreadyExists
            | StoreErrorKind::Corrupt
            | StoreErrorKind::Invalid
            | StoreErrorKind::NotFound
    )
}
