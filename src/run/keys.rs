//! The keys of a run: from the keyring in the store and its cache, or from the configuration in recipients mode.
//!
//! The cache holds what the nightly run needs - recipient, signing key, the sealed keyring - and never an identity:
//! a host that backs up cannot open its own backups without the passphrase.

use super::RunError;
use crate::keyring::{KEYRING_BYTES_MAX, KeyFile, KeyringError, keyring_tag};
use crate::sign::{SigningKey, TrustedKeys};
use crate::store::key::KEYRING_PREFIX;
use crate::store::{ObjectKey, ObjectStore, StoreErrorKind};
use age::secrecy::SecretString;
use bytes::Bytes;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Each planted keyring costs a second of scrypt; more than this under one prefix is refused.
const KEYRINGS_MAX: usize = 16;

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
    folder: PathBuf,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct CachedKeys {
    recipient: String,
    signing_key: String,
    verifying_keys: Vec<String>,
}

impl KeyCache {
    /// The cache below the state folder; nothing is touched yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { folder: state_dir.join("keys") }
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
        let keyring = fs::read(&keyring_path).map_err(|source| file_error("read", &keyring_path, source))?;
        let keyring = StoredKeyring { tag: keyring_tag(&recipient), bytes: keyring.into() };
        let (recipients, trusted) = (vec![recipient], TrustedKeys(trusted));
        Ok(Some(WriterKeys { recipients, signing, trusted, keyring: Some(keyring) }))
    }

    fn save(&self, keys: &WriterKeys) -> Result<(), RunError> {
        let (Some(keyring), Some(recipient)) = (&keys.keyring, keys.recipients.first()) else { return Ok(()) };
        let cached = CachedKeys {
            recipient: recipient.to_string(),
            signing_key: keys.signing.to_secret_text()?,
            verifying_keys: keys.trusted.0.iter().map(ToString::to_string).collect(),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|source| file_error("create", &self.folder, source))?;
        let text = serde_json::to_vec_pretty(&cached).unwrap_or_default();
        write_private(&self.folder.join("keyring.age"), &keyring.bytes)?;
        write_private(&self.folder.join("writer.json"), &text)
    }
}

fn file_error(operation: &'static str, path: &Path, source: std::io::Error) -> RunError {
    RunError::File { operation, path: path.display().to_string(), source }
}

/// Writes a file that only we can read, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    let temporary = path.with_extension("new");
    let written = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().unwrap_or(path))?.sync_all()
    };
    written().map_err(|source| file_error("write", path, source))
}

/// The keys for writing to a store in passphrase mode. Makes the keyring on first use: it is put, fetched and opened
/// before anything is cached. Each later run checks that it is in the store and puts it back if not.
///
/// `passphrase` is asked only when there is no cache yet.
///
/// # Errors
/// [`RunError`]; a passphrase that opens no existing keyring is an error, never a new keyring.
pub async fn writer_keys(
    store: &dyn ObjectStore,
    cache: &KeyCache,
    passphrase: impl FnOnce() -> Result<SecretString, RunError>,
) -> Result<WriterKeys, RunError> {
    let stored = stored_keyrings(store).await?;
    if let Some(keys) = cache.load()? {
        return ensure_stored(store, keys, &stored).await;
    }
    let passphrase = passphrase()?;
    let keys = match open_any(store, &stored, &passphrase)? {
        Some((file, keyring)) => writer_from(store, &file, keyring)?,
        None => make_keyring(store, &passphrase).await?,
    };
    cache.save(&keys)?;
    Ok(keys)
}

async fn ensure_stored(
    store: &dyn ObjectStore,
    keys: WriterKeys,
    stored: &[StoredKeyring],
) -> Result<WriterKeys, RunError> {
    let Some(keyring) = &keys.keyring else { return Ok(keys) };
    match stored.iter().find(|other| other.tag == keyring.tag) {
        Some(same) if same.bytes == keyring.bytes => {}
        Some(_) => {
            let key = ObjectKey::keyring(&keyring.tag).to_string();
            let reason =
                "the keyring in the store is not the one that this host knows: changed, or replaced".to_owned();
            return Err(RunError::Damaged { key, reason });
        }
        None if stored.is_empty() => {
            tracing::warn!(store = store.url(), "the keyring was not in the store; putting it there");
            store.put_new(&ObjectKey::keyring(&keyring.tag), keyring.bytes.clone()).await?;
        }
        None => return Err(foreign_keyring(store, stored)),
    }
    Ok(keys)
}

fn foreign_keyring(store: &dyn ObjectStore, stored: &[StoredKeyring]) -> RunError {
    let tags: Vec<&str> = stored.iter().map(|keyring| keyring.tag.as_str()).collect();
    RunError::refused(
        format!("{} holds the keyring {} of somebody else, and not ours", store.url(), tags.join(", ")),
        "use another prefix in `remote`, or, if that keyring is the right one, remove `keys` from the state folder and run again with its passphrase",
    )
}

async fn make_keyring(store: &dyn ObjectStore, passphrase: &SecretString) -> Result<WriterKeys, RunError> {
    let failed = |source| RunError::Keyring { store: store.url().to_owned(), source };
    let file = KeyFile::generate().map_err(failed)?;
    let sealed = Bytes::from(file.seal(passphrase).map_err(failed)?);
    let keys = WriterKeys::from_keyring(&file, sealed.clone()).map_err(failed)?;
    let tag = keyring_tag(&file.recipient().map_err(failed)?);
    store.put_new(&ObjectKey::keyring(&tag), sealed.clone()).await?;
    let stored = stored_keyrings(store).await?;
    match stored.as_slice() {
        [only] if only.bytes == sealed => {}
        _ => return Err(foreign_keyring(store, &stored)),
    }
    let opened = KeyFile::open(&stored[0].bytes, passphrase).map_err(failed)?;
    if opened.to_text().map_err(failed)? != file.to_text().map_err(failed)? {
        return Err(RunError::Damaged {
            key: ObjectKey::keyring(&tag).to_string(),
            reason: "it opened to other keys".into(),
        });
    }
    Ok(keys)
}

/// All keyrings of a store. An empty answer means that a listing worked and showed none.
///
/// # Errors
/// [`RunError::Store`]; [`RunError::Refused`] when there are too many to be ours.
pub async fn stored_keyrings(store: &dyn ObjectStore) -> Result<Vec<StoredKeyring>, RunError> {
    let listed = store.list(KEYRING_PREFIX).await?;
    let tags: Vec<&str> = listed
        .iter()
        .filter_map(|object| object.key.strip_prefix(KEYRING_PREFIX)?.strip_suffix("/0001.age"))
        .filter(|tag| tag.len() == 16 && tag.bytes().all(|b| b.is_ascii_hexdigit()))
        .collect();
    if tags.len() > KEYRINGS_MAX {
        let what =
            format!("{} has {} keyrings, more than the {KEYRINGS_MAX} that could be ours", store.url(), tags.len());
        return Err(RunError::refused(what, "remove those that are not yours, or name the key file with --identity"));
    }
    let mut keyrings = Vec::new();
    for tag in tags {
        match store.get(&ObjectKey::keyring(tag), None, KEYRING_BYTES_MAX).await {
            Ok(bytes) => keyrings.push(StoredKeyring { tag: tag.to_owned(), bytes }),
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(keyrings)
}

/// Opens all keyrings of the store that the passphrase opens: what a restore needs.
///
/// # Errors
/// [`RunError`] when there is none, or when the passphrase opens none.
pub async fn open_keyrings(store: &dyn ObjectStore, passphrase: &SecretString) -> Result<KeyFile, RunError> {
    let stored = stored_keyrings(store).await?;
    if let Some((file, _)) = open_any(store, &stored, passphrase)? {
        return Ok(file);
    }
    Err(RunError::refused(
        format!("there is no keyring in {}", store.url()),
        "check bucket and prefix; or name the key file with --identity",
    ))
}

/// `None` when there are no keyrings at all; an error when there are some and the passphrase opens none.
fn open_any(
    store: &dyn ObjectStore,
    stored: &[StoredKeyring],
    passphrase: &SecretString,
) -> Result<Option<(KeyFile, StoredKeyring)>, RunError> {
    let mut refusal = None;
    for keyring in stored {
        match KeyFile::open(&keyring.bytes, passphrase) {
            Ok(file) => match file.recipient() {
                Ok(recipient) if keyring_tag(&recipient) == keyring.tag => return Ok(Some((file, keyring.clone()))),
                _ => tracing::warn!(tag = keyring.tag, "this keyring lies under another one's name; ignored"),
            },
            // A keyring that cannot be opened at all says more than one for another passphrase.
            Err(error @ KeyringError::WrongPassphrase) => refusal = refusal.or(Some(error)),
            Err(error) => refusal = Some(error),
        }
    }
    match (stored.is_empty(), refusal) {
        (true, _) => Ok(None),
        (false, refusal) => Err(RunError::Keyring {
            store: store.url().to_owned(),
            source: refusal.unwrap_or(KeyringError::WrongPassphrase),
        }),
    }
}

fn writer_from(store: &dyn ObjectStore, file: &KeyFile, keyring: StoredKeyring) -> Result<WriterKeys, RunError> {
    WriterKeys::from_keyring(file, keyring.bytes)
        .map_err(|source| RunError::Keyring { store: store.url().to_owned(), source })
}
