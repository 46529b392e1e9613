//! The keys of a run: from the keyring in the store and its cache, or from the configuration in recipients mode.
//!
//! The cache holds what the nightly run needs - recipient, signing key, the sealed keyring - and never an identity:
//! a host that backs up cannot open its own backups without the passphrase.

mod learn;

pub use learn::learn_keys;

use super::RunError;
use super::lock::{KernelLock, lock_named};
use super::replace::replace_file;
use crate::keyring::{KEYRING_BYTES_MAX, KeyFile, KeyringError, keyring_tag};
use crate::sign::{SigningKey, TrustedKeys};
use crate::store::key::{BackupObject, KEYRING_PREFIX, ParsedKey};
use crate::store::{ObjectKey, ObjectStore};
use age::secrecy::SecretString;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use jiff::Timestamp;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Most keyrings of one store that are opened: each costs seconds of scrypt, and anybody with the bucket can put more. A
/// store of ours has one a rotation or new passphrase.
pub(super) const KEYRINGS_MAX: usize = 16;
/// Most keyrings that are fetched to be compared, each of at most 64 KiB.
const KEYRINGS_COMPARED_MAX: usize = 1000;

/// Copies beside backups that are tried when the keyrings are gone.
const KEYRING_COPIES_MAX: usize = 8;

/// A keyring as it lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKeyring {
    /// The folder name: from the recipient.
    pub tag: String,
    /// The sealed bytes.
    pub bytes: Bytes,
}

/// What making backups needs. No identity in it.
#[derive(Clone)]
pub struct WriterKeys {
    /// Whom chunks are sealed to.
    pub recipients: Vec<age::x25519::Recipient>,
    /// Signs manifests.
    pub signing: SigningKey,
    /// Whose manifests are believed.
    pub trusted: TrustedKeys,
    /// The keyring that goes with every backup; `None` in recipients mode.
    pub keyring: Option<StoredKeyring>,
}

impl WriterKeys {
    /// The keys of an opened keyring.
    ///
    /// # Errors
    /// [`KeyringError`] when it lacks one.
    pub fn from_keyring(file: &KeyFile, bytes: Bytes) -> Result<Self, KeyringError> {
        let recipient = file.recipient()?;
        let keyring = StoredKeyring { tag: keyring_tag(&recipient), bytes };
        Ok(Self {
            recipients: vec![recipient],
            signing: file.signing_key()?.clone(),
            trusted: file.trusted.clone(),
            keyring: Some(keyring),
        })
    }
}

/// The keys cached in the state folder.
pub struct KeyCache {
    state_dir: PathBuf,
    folder: PathBuf,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct CachedKeys {
    recipient: String,
    signing_key: String,
    verifying_keys: Vec<String>,
    /// The sealed keyring in base64: in the same file, so that keys and keyring change together. Older caches have it
    /// in `keyring.age`.
    #[serde(default)]
    keyring: Option<String>,
}

impl KeyCache {
    /// The cache below the state folder; nothing is touched yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), folder: state_dir.join("keys") }
    }

    /// One run at a time looks for, makes and caches keys.
    pub(super) fn lock(&self) -> Result<KernelLock, RunError> {
        lock_named(&self.state_dir, "keys", &format!("the keys in {}", self.folder.display()))
    }

    /// What is cached, or `None` on first use.
    ///
    /// # Errors
    /// [`RunError`] when there is something that cannot be read or used: never taken for "nothing".
    pub fn load(&self) -> Result<Option<WriterKeys>, RunError> {
        let (path, keyring_path) = (self.folder.join("writer.json"), self.folder.join("keyring.age"));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file_error("read", &path, source)),
        };
        let unusable = |reason: String| file_error("use", &path, std::io::Error::other(reason));
        let cached: CachedKeys = serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
        let recipient: age::x25519::Recipient =
            cached.recipient.parse().map_err(|reason: &str| unusable(reason.to_owned()))?;
        let signing = SigningKey::parse(&cached.signing_key)?;
        let trusted = cached.verifying_keys.iter().map(|key| key.parse()).collect::<Result<Vec<_>, _>>()?;
        let keyring = match &cached.keyring {
            Some(text) => BASE64.decode(text).map_err(|error| unusable(error.to_string()))?,
            None => fs::read(&keyring_path).map_err(|source| file_error("read", &keyring_path, source))?,
        };
        let keyring = StoredKeyring { tag: keyring_tag(&recipient), bytes: keyring.into() };
        let (recipients, trusted) = (vec![recipient], TrustedKeys(trusted));
        Ok(Some(WriterKeys { recipients, signing, trusted, keyring: Some(keyring) }))
    }

    /// Replaces what is cached, whole or not at all.
    pub(super) fn save(&self, keys: &WriterKeys) -> Result<(), RunError> {
        let (Some(keyring), Some(recipient)) = (&keys.keyring, keys.recipients.first()) else { return Ok(()) };
        let cached = CachedKeys {
            recipient: recipient.to_string(),
            signing_key: keys.signing.to_secret_text()?,
            verifying_keys: keys.trusted.0.iter().map(ToString::to_string).collect(),
            keyring: Some(BASE64.encode(&keyring.bytes)),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|source| file_error("create", &self.folder, source))?;
        let path = self.folder.join("writer.json");
        let text = serde_json::to_vec_pretty(&cached).map_err(|error| file_error("write", &path, error.into()))?;
        replace_file(&path, &text).map_err(|source| file_error("write", &path, source))
    }
}

fn file_error(operation: &'static str, path: &Path, source: std::io::Error) -> RunError {
    RunError::File { operation, path: path.display().to_string(), source }
}

/// The keys for writing to a store in passphrase mode. Makes the keyring on first use: it is put, fetched and opened
/// before anything is cached. Each later run checks that it is in the store and puts it back if not.
///
/// `passphrase` is asked only when there is no cache yet, or when the cached keyring is new to the store.
///
/// # Errors
/// [`RunError`]; a passphrase that opens no existing keyring is an error, never a new keyring.
pub async fn writer_keys(
    store: &dyn ObjectStore,
    cache: &KeyCache,
    passphrase: impl FnOnce() -> Result<SecretString, RunError>,
) -> Result<WriterKeys, RunError> {
    let _lock = cache.lock()?;
    if let Some(keys) = cache.load()? {
        ensure_stored(store, &keys, passphrase).await?;
        return Ok(keys);
    }
    let passphrase = passphrase()?;
    let stored = stored_keyrings(store).await?;
    let found = match stored.is_empty() {
        false => Some(open_all(store, &stored, &passphrase)?),
        true => restore_from_copies(store, &passphrase).await?,
    };
    let keys = match found {
        Some((file, keyring)) => writer_from(store, &file, keyring)?,
        None => make_keyring(store, &passphrase).await?,
    };
    cache.save(&keys)?;
    Ok(keys)
}

async fn ensure_stored(
    store: &dyn ObjectStore,
    keys: &WriterKeys,
    passphrase: impl FnOnce() -> Result<SecretString, RunError>,
) -> Result<(), RunError> {
    let Some(keyring) = &keys.keyring else { return Ok(()) };
    let places = list_keyrings(store).await?;
    let ours: Vec<&KeyringPlace> = places.iter().filter(|place| place.tag == keyring.tag).collect();
    for place in &ours {
        if fetch_keyring(store, place).await?.bytes == keyring.bytes {
            return Ok(());
        }
    }
    if let Some(other) = ours.first() {
        let reason = "the keyring in the store is not the one that this host knows: changed, or replaced".to_owned();
        return Err(RunError::Damaged { key: other.key.to_string(), reason });
    }
    if !places.is_empty() {
        return Err(foreign_keyring(store, &places));
    }
    // This store does not know our keyring yet, or lost it. Nobody must find later that another passphrase opens it
    // than the one in the configuration.
    KeyFile::open(&keyring.bytes, &passphrase()?).map_err(|source| keyring_error(store, source))?;
    match store.is_unused().await? {
        true => tracing::debug!(store = store.url(), "the first keyring of an empty store"),
        false => tracing::warn!(store = store.url(), "the keyring was not in the store; putting it there"),
    }
    store.put_new(&ObjectKey::keyring(&keyring.tag), keyring.bytes.clone()).await?;
    Ok(())
}

fn foreign_keyring(store: &dyn ObjectStore, places: &[KeyringPlace]) -> RunError {
    let tags: Vec<&str> = places.iter().map(|place| place.tag.as_str()).collect();
    RunError::refused(
        format!("{} holds the keyring {} of somebody else, and not ours", store.url(), tags.join(", ")),
        "use another prefix in `remote`, or, if that keyring is the right one, remove `keys` from the state folder and run again with its passphrase",
    )
}

pub(super) fn keyring_error(store: &dyn ObjectStore, source: KeyringError) -> RunError {
    RunError::Keyring { store: store.url().to_owned(), source }
}

async fn make_keyring(store: &dyn ObjectStore, passphrase: &SecretString) -> Result<WriterKeys, RunError> {
    let failed = |source| keyring_error(store, source);
    let file = KeyFile::generate().map_err(failed)?;
    let sealed = Bytes::from(file.seal(passphrase).map_err(failed)?);
    let keys = WriterKeys::from_keyring(&file, sealed.clone()).map_err(failed)?;
    let key = ObjectKey::keyring(&keyring_tag(&file.recipient().map_err(failed)?));
    store.put_new(&key, sealed.clone()).await?;
    let places = list_keyrings(store).await?;
    let [only] = places.as_slice() else { return Err(foreign_keyring(store, &places)) };
    let stored = fetch_keyring(store, only).await?;
    let opened = KeyFile::open(&stored.bytes, passphrase).map_err(failed)?;
    if stored.bytes != sealed || opened.to_text().map_err(failed)? != file.to_text().map_err(failed)? {
        return Err(RunError::Damaged { key: key.to_string(), reason: "it came back as other keys".into() });
    }
    Ok(keys)
}

/// Where a keyring lies: its tag, and its number under it.
pub(super) struct KeyringPlace {
    pub(super) tag: String,
    pub(super) key: ObjectKey,
    /// When it was put, by the store's clock.
    modified_at: Option<Timestamp>,
}

/// Lists keyrings of every tag and number, in order. One that is too large to be one is passed over with a warning.
pub(super) async fn list_keyrings(store: &dyn ObjectStore) -> Result<Vec<KeyringPlace>, RunError> {
    let mut places = Vec::new();
    for object in store.list(KEYRING_PREFIX).await? {
        let name = object.key.strip_prefix(KEYRING_PREFIX).and_then(|name| name.strip_suffix(".age")?.split_once('/'));
        let Some((tag, number)) = name else { continue };
        let is_tag = tag.len() == 16 && tag.bytes().all(|b| b.is_ascii_hexdigit());
        let is_number = number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit());
        if object.bytes > KEYRING_BYTES_MAX {
            tracing::warn!(key = object.key, bytes = object.bytes, "too large for a keyring; passed over");
        } else if let (true, true, Some(key)) = (is_tag, is_number, ObjectKey::listed(&object.key)) {
            places.push(KeyringPlace { tag: tag.to_owned(), key, modified_at: object.modified_at });
        }
    }
    Ok(places)
}

/// One that was listed must be there: its absence is never "none".
pub(super) async fn fetch_keyring(store: &dyn ObjectStore, place: &KeyringPlace) -> Result<StoredKeyring, RunError> {
    let bytes = store.get(&place.key, None, KEYRING_BYTES_MAX).await?;
    Ok(StoredKeyring { tag: place.tag.clone(), bytes })
}

/// The keyrings of a store that are worth opening, in order. An empty answer means that a listing worked and showed none.
/// Of more than [`KEYRINGS_MAX`] the oldest and the newest are returned: whoever fills the folder comes after the first
/// keyring and cannot date his own back, and a copy of each keyring lies beside its backups besides.
///
/// # Errors
/// [`RunError::Store`].
pub async fn stored_keyrings(store: &dyn ObjectStore) -> Result<Vec<StoredKeyring>, RunError> {
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

/// All keyrings of a store, to be compared and not to be opened.
///
/// # Errors
/// [`RunError::Store`]; [`RunError::Refused`] when there are too many to be ours.
pub(super) async fn every_keyring(store: &dyn ObjectStore) -> Result<Vec<StoredKeyring>, RunError> {
    let places = list_keyrings(store).await?;
    if places.len() > KEYRINGS_COMPARED_MAX {
        let what = format!(
            "{} has {} keyrings below {KEYRING_PREFIX}, more than {KEYRINGS_COMPARED_MAX}: this program makes a few",
            store.url(),
            places.len()
        );
        return Err(RunError::refused(what, "find out who put them there, and remove those that are not yours"));
    }
    fetch_keyrings(store, &places).await
}

/// Of more places than `max` the oldest half and the newest half, in the order in which they were. A store that says no
/// times gives them by their names.
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

async fn fetch_keyrings(store: &dyn ObjectStore, places: &[KeyringPlace]) -> Result<Vec<StoredKeyring>, RunError> {
    let mut keyrings = Vec::new();
    for place in places {
        keyrings.push(fetch_keyring(store, place).await?);
    }
    Ok(keyrings)
}

/// Opens all keyrings of the store that the passphrase opens: what a restore needs. Where the folder of keyrings is
/// gone, the copies beside the backups serve.
///
/// # Errors
/// [`RunError`] when there is none, or when the passphrase opens none.
pub async fn open_keyrings(store: &dyn ObjectStore, passphrase: &SecretString) -> Result<KeyFile, RunError> {
    let mut stored = stored_keyrings(store).await?;
    if stored.is_empty() {
        stored = keyring_copies(store).await?;
    }
    if stored.is_empty() {
        return Err(RunError::refused(
            format!("there is no keyring in {}", store.url()),
            "check bucket and prefix; or name the key file with --identity",
        ));
    }
    open_all(store, &stored, passphrase).map(|(file, _)| file)
}

/// The copies beside the newest few backups, each content once.
async fn keyring_copies(store: &dyn ObjectStore) -> Result<Vec<StoredKeyring>, RunError> {
    let listed = store.list("").await?;
    let is_copy = |key: &ParsedKey| key.object == BackupObject::Keyring && !key.signature;
    let mut copies: Vec<_> = listed
        .iter()
        .filter(|object| object.bytes <= KEYRING_BYTES_MAX)
        .filter_map(|object| Some((ObjectKey::parse(&object.key).filter(is_copy)?.id, ObjectKey::listed(&object.key)?)))
        .collect();
    copies.sort_by(|a, b| b.cmp(a));
    let mut keyrings: Vec<StoredKeyring> = Vec::new();
    for (_, key) in copies.iter().take(KEYRING_COPIES_MAX) {
        let bytes = store.get(key, None, KEYRING_BYTES_MAX).await?;
        if keyrings.iter().all(|other| other.bytes != bytes) {
            keyrings.push(StoredKeyring { tag: String::new(), bytes });
        }
    }
    Ok(keyrings)
}

/// Backups without a keyring are no empty store: the keyring comes back from a copy beside them, or nothing is made.
async fn restore_from_copies(
    store: &dyn ObjectStore,
    passphrase: &SecretString,
) -> Result<Option<(KeyFile, StoredKeyring)>, RunError> {
    let copies = keyring_copies(store).await?;
    if copies.is_empty() {
        return Ok(None);
    }
    let (file, keyring) = open_all(store, &copies, passphrase)?;
    tracing::warn!(store = store.url(), "the keyring was gone; putting the copy of a backup in its place");
    store.put_new(&ObjectKey::keyring(&keyring.tag), keyring.bytes.clone()).await?;
    Ok(Some((file, keyring)))
}

/// Opens every keyring that the passphrase opens. Identities and verifying keys of all are in the file; what signs and
/// seals is of the newest one, which is returned too: of rotated keys that which follows the others, of one keyring
/// sealed several times the highest number. An empty tag is filled in.
pub(super) fn open_all(
    store: &dyn ObjectStore,
    stored: &[StoredKeyring],
    passphrase: &SecretString,
) -> Result<(KeyFile, StoredKeyring), RunError> {
    let mut opened: Option<(KeyFile, StoredKeyring)> = None;
    let mut refusal = KeyringError::WrongPassphrase;
    for keyring in stored {
        let file = match KeyFile::open(&keyring.bytes, passphrase) {
            Ok(file) => file,
            Err(KeyringError::WrongPassphrase) => continue,
            // A keyring that cannot be opened at all says more than one for another passphrase.
            Err(error) => {
                refusal = error;
                continue;
            }
        };
        let tag = keyring_tag(&file.recipient().map_err(|source| keyring_error(store, source))?);
        if !keyring.tag.is_empty() && keyring.tag != tag {
            tracing::warn!(tag = keyring.tag, "this keyring lies under another one's name; ignored");
            continue;
        }
        let keyring = StoredKeyring { tag, bytes: keyring.bytes.clone() };
        opened = Some(match opened.take() {
            Some(before) => newer_of(before, (file, keyring)),
            None => (file, keyring),
        });
    }
    opened.ok_or_else(|| keyring_error(store, refusal))
}

/// The newer of two opened keyrings, which opens and believes what the other does, too. Of two that do not follow from
/// each other the second.
pub(super) fn newer_of(
    (mut before, old): (KeyFile, StoredKeyring),
    (mut file, new): (KeyFile, StoredKeyring),
) -> (KeyFile, StoredKeyring) {
    if before.follows(&file) {
        before.take_over(&file);
        return (before, old);
    }
    file.take_over(&before);
    (file, new)
}

fn writer_from(store: &dyn ObjectStore, file: &KeyFile, keyring: StoredKeyring) -> Result<WriterKeys, RunError> {
    WriterKeys::from_keyring(file, keyring.bytes).map_err(|source| keyring_error(store, source))
}
