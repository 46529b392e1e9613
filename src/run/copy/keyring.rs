//! Copies the keyring that a backup is sealed to into the keyrings of the target store, because a
//! restore on a bare host begins there.

use crate::keyring::tag_of;
use crate::run::RunError;
use crate::run::commit::put::put_again;
use crate::run::keys::{fetch_keyring, list_keyrings};
use crate::store::{ObjectKey, StoreErrorKind, StoreRead, StoreWrite};
use bytes::Bytes;

/// Puts a backup's keyring among the keyrings of the target store, under the name that it has in
/// the source store. `recipients` are the backup's; `keyring` was checked against its manifest.
///
/// # Errors
/// [`RunError::Damaged`] when the target has another keyring under that name; [`RunError::Store`].
pub(super) async fn copy_keyring(
    from: &dyn StoreRead,
    to: &dyn StoreWrite,
    recipients: &[String],
    keyring: &Bytes,
) -> Result<(), RunError> {
    for place in list_keyrings(to).await? {
        if fetch_keyring(to, &place).await?.bytes == *keyring {
            return Ok(());
        }
    }
    let tags: Vec<String> = recipients
        .iter()
        .map(|recipient| tag_of(recipient))
        .collect();
    let mut key = None;
    for place in list_keyrings(from)
        .await?
        .into_iter()
        .filter(|place| tags.contains(&place.tag))
    {
        if fetch_keyring(from, &place).await?.bytes == *keyring {
            key = Some(place.key);
            break;
        }
    }
    let Some(key) = key.or_else(|| tags.first().map(|tag| ObjectKey::keyring(tag))) else {
        return Ok(());
    };
    match put_again(to, &key, keyring.clone()).await {
        Ok(_) => Ok(()),
        Err(RunError::Store(error)) if error.kind == StoreErrorKind::AlreadyExists => {
            let reason = format!(
                "{} has another keyring there than the backup was sealed with",
                to.url()
            );
            Err(RunError::Damaged {
                key: key.to_string(),
                reason,
            })
        }
        Err(error) => Err(error),
    }
}
