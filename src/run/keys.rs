//! Gets the keys of a run: from the keyring in the store and its cache, or from the configuration
//! in recipients mode.
//!
//! The cache holds what the nightly run needs - recipient, signing key, the sealed keyring - and
//! never an identity: a host that backs up cannot open its own backups without the passphrase.

mod cache;
mod find;
pub mod kept_config;
mod learn;
mod lists;
pub mod rotate;
mod successor;

pub use cache::KeyCache;
pub(super) use find::{find_keys, free_number, newer_of};
pub use find::{open_keyrings, warn_of_newer};
pub use learn::learn_keys;
pub use lists::read_lists;
pub(super) use lists::{list_flaws, put_list_copies, put_lists};
pub(super) use successor::{Successor, foreign_recipient};

use super::{RunError, error_chain};
use crate::catalog::{get_signature, list_wanted};
use crate::keyring::{KEYRING_BYTES_MAX, KeyFile, KeyringError, keyring_tag};
use crate::sign::{SignatureError, SignedType, SigningKey, Trust, TrustedKeys};
use crate::store::key::KEYRING_PREFIX;
use crate::store::{ObjectKey, StoreInfo, StoreRead, StoreWrite};
use age::secrecy::SecretString;
use bytes::Bytes;
use find::put_back;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::path::Path;
use successor::{find_newer, refuse_replaced};

/// The most keyrings of one store that are opened: each costs seconds of scrypt, and anybody who
/// can write to the bucket can put more. Our own stores have one for each rotation or new
/// passphrase.
pub(super) const KEYRINGS_MAX: usize = 16;
/// The most keyrings that are fetched to be compared, each of at most 64 KiB.
const KEYRINGS_COMPARED_MAX: usize = 1000;

/// A keyring in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKeyring {
    /// The folder name, derived from the recipient.
    pub tag: String,
    /// The sealed bytes.
    pub bytes: Bytes,
}

/// The keys for making backups. They include no identity.
#[derive(Clone)]
pub struct WriterKeys {
    /// The recipients that chunks are sealed to.
    pub recipients: Vec<age::x25519::Recipient>,
    /// The key that signs manifests.
    pub signing: SigningKey,
    /// The keys whose manifests are trusted.
    pub trusted: TrustedKeys,
    /// The keyring that is stored with every backup; `None` in recipients mode.
    pub keyring: Option<StoredKeyring>,
}

impl WriterKeys {
    /// Takes the keys of an opened keyring.
    ///
    /// # Errors
    /// [`KeyringError`] when the keyring lacks a key.
    pub fn from_keyring(file: &KeyFile, bytes: Bytes) -> Result<Self, KeyringError> {
        let recipient = file.recipient()?;
        let keyring = StoredKeyring {
            tag: keyring_tag(&recipient),
            bytes,
        };
        Ok(Self {
            recipients: vec![recipient],
            signing: file.signing_key()?.clone(),
            trusted: file.trusted.clone(),
            keyring: Some(keyring),
        })
    }
}

fn file_error(operation: &'static str, path: &Path, source: std::io::Error) -> RunError {
    RunError::File {
        operation,
        path: path.display().to_string(),
        source,
    }
}

/// Returns the keys for writing to a store in passphrase mode. On first use, makes the keyring,
/// puts it, fetches it and opens it before anything is cached. Each later run checks that the store
/// has the keyring, and puts it back if not.
///
/// `passphrase` is called only when there is no cache yet, or when the store does not have the
/// cached keyring.
///
/// # Errors
/// [`RunError`]. If the passphrase opens no existing keyring, that is an error: a new keyring is
/// never made then.
pub async fn writer_keys(
    store: &dyn StoreWrite,
    cache: &KeyCache,
    passphrase: impl FnOnce() -> Result<SecretString, RunError>,
) -> Result<WriterKeys, RunError> {
    writer_keys_with(store, cache, NewerKeys::Refuse, passphrase).await
}

/// How a host without keys treats a store with evidence of newer keys than the passphrase opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewerKeys {
    /// Refuse, so that nothing is sealed to replaced keys.
    Refuse,
    /// A person has checked that the found keys are the right ones.
    Ignore,
}

/// Does the same as [`writer_keys`], with a person's decision about newer keys.
///
/// # Errors
/// As for [`writer_keys`].
pub async fn writer_keys_with(
    store: &dyn StoreWrite,
    cache: &KeyCache,
    newer: NewerKeys,
    passphrase: impl FnOnce() -> Result<SecretString, RunError>,
) -> Result<WriterKeys, RunError> {
    let _lock = cache.lock()?;
    if let Some(keys) = cache.load()? {
        ensure_stored(store, &keys, cache.noted_rotation()?.as_deref(), passphrase).await?;
        return Ok(keys);
    }
    let passphrase = passphrase()?;
    let keys = match find_keys(store, &passphrase).await? {
        Some(found) => {
            if let Some(refusal) =
                find_newer(store, &found.listed, &found.file, &found.keyring.tag).await?
            {
                match newer {
                    NewerKeys::Refuse => return Err(refusal),
                    NewerKeys::Ignore => tracing::warn!(
                        error = error_chain(&refusal),
                        "continuing with the found keys (--trust-found-keys)"
                    ),
                }
            }
            put_back(store, &found).await?;
            writer_from(store, &found.file, found.keyring)?
        }
        None => make_keyring(store, &passphrase).await?,
    };
    cache.save(&keys)?;
    Ok(keys)
}

/// Refuses to delete in a store with cached keys that a rotation on another host replaced: these
/// keys do not verify the newer backups, still trust a key that may have leaked, and sign prune
/// records that the other hosts do not trust.
///
/// # Errors
/// [`RunError::Refused`] when the keys were replaced; [`RunError::Store`].
pub async fn check_current(
    store: &dyn StoreRead,
    cache: &KeyCache,
    keys: &WriterKeys,
) -> Result<(), RunError> {
    match &keys.keyring {
        Some(keyring) => {
            refuse_replaced(
                store,
                &keyring.tag,
                &keys.trusted,
                cache.noted_rotation()?.as_deref(),
            )
            .await
        }
        None => Ok(()),
    }
}

async fn ensure_stored(
    store: &dyn StoreWrite,
    keys: &WriterKeys,
    own_rotation: Option<&str>,
    passphrase: impl FnOnce() -> Result<SecretString, RunError>,
) -> Result<(), RunError> {
    let Some(keyring) = &keys.keyring else {
        return Ok(());
    };
    let places = list_keyrings(store).await?;
    let ours: Vec<&KeyringPlace> = places
        .iter()
        .filter(|place| place.tag == keyring.tag)
        .collect();
    let mut is_stored = false;
    for place in &ours {
        is_stored = is_stored || fetch_keyring(store, place).await?.bytes == keyring.bytes;
    }
    if let (false, Some(other)) = (is_stored, ours.first()) {
        let reason =
            "the keyring in the store is not the one that this host knows: changed, or replaced"
                .to_owned();
        return Err(RunError::Damaged {
            key: other.key.to_string(),
            reason,
        });
    }
    let is_first_pair = keys.trusted.len() == 1;
    if !is_stored && !places.is_empty() && is_first_pair {
        return Err(foreign_keyring(store, &places));
    }
    if !places.is_empty() {
        refuse_replaced(store, &keyring.tag, &keys.trusted, own_rotation).await?;
    }
    if is_stored {
        warn_of_unknown(store, keys, &places);
        return put_lists(store, &keys.trusted).await;
    }
    // The store does not have our keyring yet, or lost it. Ask for the passphrase, so that the
    // configured passphrase cannot differ unnoticed from the one that opens the keyring.
    if !places.is_empty() {
        tracing::warn!(
            store = store.url(),
            keyring = keyring.tag,
            "the newest keyring is gone, but older ones exist"
        );
    }
    let file = KeyFile::open(&keyring.bytes, &passphrase()?)
        .map_err(|source| keyring_error(store, source))?;
    let own: BTreeSet<String> = file
        .identities
        .iter()
        .map(|identity| keyring_tag(&identity.to_public()))
        .collect();
    if !places.is_empty() {
        if !places.iter().any(|place| own.contains(&place.tag)) {
            return Err(foreign_keyring(store, &places));
        }
        refuse_unlisted(store, &keys.trusted).await?;
    }
    match places.is_empty() && store.is_unused().await? {
        true => tracing::debug!(store = store.url(), "the first keyring of an empty store"),
        false => tracing::warn!(
            store = store.url(),
            "the keyring was not in the store; putting it there"
        ),
    }
    put_lists(store, &keys.trusted).await?;
    store
        .put_new(&ObjectKey::keyring(&keyring.tag), keyring.bytes.clone())
        .await?;
    Ok(())
}

/// Refuses to put the newest keyring into a store that has a backup which a retired key signed and
/// no list names. The rotation did not read this store; with the newest keyring in it, a restore
/// would no longer trust that backup.
async fn refuse_unlisted(store: &dyn StoreRead, trusted: &TrustedKeys) -> Result<(), RunError> {
    let current = TrustedKeys::new(trusted.with(Trust::Current).cloned().collect());
    let mut unlisted = None;
    for object in list_wanted(store, |key| key.ends_with("/manifest.json")).await? {
        let Some(key) = ObjectKey::listed(&object.key) else {
            continue;
        };
        let signature = match get_signature(store, &key).await {
            Ok(signature) => signature,
            Err(error) if error.is_damage() => continue,
            Err(error) => return Err(error.into()),
        };
        // The store has backups signed with the newest keys: the rotation did read this store, and
        // the keyring was deleted later.
        if current
            .verify_claim(SignedType::Manifest, key.as_str(), &signature)
            .is_ok()
        {
            return Ok(());
        }
        let claim = trusted.verify_claim(SignedType::Manifest, key.as_str(), &signature);
        if let Err(error @ SignatureError::Retired { .. }) = claim {
            unlisted = unlisted.or(Some((key, error)));
        }
    }
    let Some((key, error)) = unlisted else {
        return Ok(());
    };
    let quoted = shell_words::quote(store.url());
    Err(RunError::refused(
        format!(
            "{} was not read when `key rotate` ran: {key}: {error}",
            store.url()
        ),
        format!(
            "nothing was changed there, and the passphrase still restores its backups. To keep them, use another prefix \
             in `remote` from now on; if somebody else made that backup, `zfs-backup forget` it. The next rotation lists \
             them too with `zfs-backup key rotate --also-list {quoted}`"
        ),
    ))
}

/// Warns of unknown keyring folders. Each rotation adds a folder and a verifying key, so another
/// folder is foreign, or of a rotation on another host.
fn warn_of_unknown(store: &dyn StoreInfo, keys: &WriterKeys, places: &[KeyringPlace]) {
    let tags: BTreeSet<&str> = places.iter().map(|place| place.tag.as_str()).collect();
    if tags.len() > keys.trusted.len() {
        tracing::warn!(
            store = store.url(),
            keyrings = tags.into_iter().collect::<Vec<_>>().join(", "),
            "there are keyrings that this host does not know; if keys were rotated on another host, run `zfs-backup key \
             rotate` here too"
        );
    }
}

fn foreign_keyring(store: &dyn StoreInfo, places: &[KeyringPlace]) -> RunError {
    let tags: Vec<&str> = places.iter().map(|place| place.tag.as_str()).collect();
    RunError::refused(
        format!(
            "{} holds the keyring {} of somebody else, and not ours",
            store.url(),
            tags.join(", ")
        ),
        "use another prefix in `remote`; if the keys were rotated on another host and that keyring is the new one, run `zfs-backup key rotate`",
    )
}

pub(super) fn keyring_error(store: &dyn StoreInfo, source: KeyringError) -> RunError {
    RunError::Keyring {
        store: store.url().to_owned(),
        source,
    }
}

async fn make_keyring(
    store: &dyn StoreWrite,
    passphrase: &SecretString,
) -> Result<WriterKeys, RunError> {
    let failed = |source| keyring_error(store, source);
    let file = KeyFile::generate().map_err(failed)?;
    let sealed = Bytes::from(file.seal(passphrase).map_err(failed)?);
    let keys = WriterKeys::from_keyring(&file, sealed.clone()).map_err(failed)?;
    let key = ObjectKey::keyring(&keyring_tag(&file.recipient().map_err(failed)?));
    store.put_new(&key, sealed.clone()).await?;
    let places = list_keyrings(store).await?;
    let [only] = places.as_slice() else {
        return Err(foreign_keyring(store, &places));
    };
    let stored = fetch_keyring(store, only).await?;
    let opened = KeyFile::open(&stored.bytes, passphrase).map_err(failed)?;
    if stored.bytes != sealed
        || opened.to_text().map_err(failed)? != file.to_text().map_err(failed)?
    {
        return Err(RunError::Damaged {
            key: key.to_string(),
            reason: "the keyring that was read back has other keys".into(),
        });
    }
    Ok(keys)
}

/// The place of a keyring in a store: its tag, and its number under the tag.
pub(super) struct KeyringPlace {
    pub(super) tag: String,
    pub(super) key: ObjectKey,
    /// The time of the put, by the store's clock.
    modified_at: Option<Timestamp>,
}

/// Lists the keyrings of every tag and number, in order. An object that is too large for a keyring
/// is skipped with a warning.
pub(super) async fn list_keyrings(store: &dyn StoreRead) -> Result<Vec<KeyringPlace>, RunError> {
    let mut places = Vec::new();
    for object in store.list(KEYRING_PREFIX).await? {
        let name = object
            .key
            .strip_prefix(KEYRING_PREFIX)
            .and_then(|name| name.strip_suffix(".age")?.split_once('/'));
        let Some((tag, number)) = name else { continue };
        let is_tag = tag.len() == 16 && tag.bytes().all(|b| b.is_ascii_hexdigit());
        let is_number = number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit());
        if object.bytes > KEYRING_BYTES_MAX {
            tracing::warn!(
                key = object.key,
                bytes = object.bytes,
                "ignoring an object that is too large for a keyring"
            );
        } else if let (true, true, Some(key)) = (is_tag, is_number, ObjectKey::listed(&object.key))
        {
            places.push(KeyringPlace {
                tag: tag.to_owned(),
                key,
                modified_at: object.modified_at,
            });
        }
    }
    Ok(places)
}

/// Fetches a keyring that was listed. If it is missing, that is an error, never "no keyring".
pub(super) async fn fetch_keyring(
    store: &dyn StoreRead,
    place: &KeyringPlace,
) -> Result<StoredKeyring, RunError> {
    let bytes = store.get(&place.key, None, KEYRING_BYTES_MAX).await?;
    Ok(StoredKeyring {
        tag: place.tag.clone(),
        bytes,
    })
}

/// Returns the keyrings of a store to open, in order. An empty list means that a listing worked and
/// showed none. Of more than `KEYRINGS_MAX` the oldest and the newest are returned: an attacker who
/// fills the folder comes after the first keyring and cannot backdate an object, and each backup
/// also has a copy of its keyring.
///
/// # Errors
/// [`RunError::Store`].
pub async fn stored_keyrings(store: &dyn StoreRead) -> Result<Vec<StoredKeyring>, RunError> {
    let places = list_keyrings(store).await?;
    let count = places.len();
    let places = oldest_and_newest(places, KEYRINGS_MAX);
    if places.len() < count {
        tracing::warn!(
            store = store.url(),
            keyrings = count,
            "more keyrings than this program makes; only the {KEYRINGS_MAX} oldest and newest are tried. Find out who put \
             them there, and remove those that are not yours; if none opens, name the key file with --identity"
        );
    }
    fetch_keyrings(store, &places).await
}

/// Returns all keyrings of a store, to compare and not to open them.
///
/// # Errors
/// [`RunError::Store`]; [`RunError::Refused`] when the store has too many to be all ours.
pub(super) async fn every_keyring(store: &dyn StoreRead) -> Result<Vec<StoredKeyring>, RunError> {
    let places = list_keyrings(store).await?;
    if places.len() > KEYRINGS_COMPARED_MAX {
        let what = format!(
            "{} has {} keyrings below {KEYRING_PREFIX}, more than {KEYRINGS_COMPARED_MAX}: this program makes a few",
            store.url(),
            places.len()
        );
        return Err(RunError::refused(
            what,
            "find out who put them there, and remove those that are not yours",
        ));
    }
    fetch_keyrings(store, &places).await
}

/// Returns at most `max` places, in the order of their keys: of more than `max`, the oldest half
/// and the newest half. Without times from the store, the order of the keys replaces the age.
fn oldest_and_newest(mut places: Vec<KeyringPlace>, max: usize) -> Vec<KeyringPlace> {
    if places.len() <= max {
        return places;
    }
    places.sort_by_key(|place| place.modified_at);
    let newest = places.split_off(places.len() - max / 2);
    places.truncate(max - max / 2);
    places.extend(newest);
    places.sort_by(|a, b| a.key.cmp(&b.key));
    places
}

async fn fetch_keyrings(
    store: &dyn StoreRead,
    places: &[KeyringPlace],
) -> Result<Vec<StoredKeyring>, RunError> {
    let mut keyrings = Vec::new();
    for place in places {
        keyrings.push(fetch_keyring(store, place).await?);
    }
    Ok(keyrings)
}

fn writer_from(
    store: &dyn StoreInfo,
    file: &KeyFile,
    keyring: StoredKeyring,
) -> Result<WriterKeys, RunError> {
    WriterKeys::from_keyring(file, keyring.bytes).map_err(|source| keyring_error(store, source))
}
