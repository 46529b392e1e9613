//! [`KeyCache`]: the keys of this host for its stores, in the state folder.

use super::{StoredKeyring, WriterKeys, file_error};
use crate::keyring::keyring_tag;
use crate::model::Digest;
use crate::run::RunError;
use crate::sign::{SigningKey, Trust, TrustedKeys, TrustedList, VerifyingKey};
use crate::state::StateError;
use crate::state::dataset_lock::{KernelLock, lock_named};
use crate::state::dir::{create_folder, replace_file};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The cache of keys in the state folder.
pub struct KeyCache {
    state_dir: PathBuf,
    pub(super) folder: PathBuf,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct CachedKeys {
    recipient: String,
    signing_key: String,
    /// The keys that are trusted without a list, except retired keys.
    verifying_keys: Vec<String>,
    /// The verifying keys that a rotation with `--keep-trust` kept.
    #[serde(default)]
    kept_keys: Vec<String>,
    /// The keys that are trusted only for the objects on the lists.
    #[serde(default)]
    retired_keys: Vec<String>,
    #[serde(default)]
    trusted_lists: Vec<CachedList>,
    /// The sealed keyring in base64, in the same file as the keys, so that both change together.
    /// Older caches have it in `keyring.age`.
    #[serde(default)]
    keyring: Option<String>,
}

/// A list that is stored in the folder of the cached keys, as `believed-<blake3>.json`.
#[derive(serde::Serialize, serde::Deserialize)]
struct CachedList {
    tag: String,
    blake3: Digest,
}

impl CachedKeys {
    fn trusted(&self, own: &VerifyingKey) -> Result<TrustedKeys, RunError> {
        let parse = |keys: &[String]| {
            keys.iter()
                .map(|key| key.parse())
                .collect::<Result<Vec<VerifyingKey>, _>>()
        };
        let kept = parse(&self.kept_keys)?;
        let retired = parse(&self.retired_keys)?;
        let mut trusted = TrustedKeys::default();
        for key in parse(&self.verifying_keys)?
            .into_iter()
            .filter(|key| !retired.contains(key))
        {
            let trust = match kept.contains(&key) {
                _ if key == *own => Trust::Current,
                true => Trust::Kept,
                false => Trust::Unlimited,
            };
            trusted.add(key, trust);
        }
        retired
            .into_iter()
            .for_each(|key| trusted.add(key, Trust::Retired));
        let list = |list: &CachedList| TrustedList {
            tag: list.tag.clone(),
            blake3: list.blake3,
            content: None,
        };
        trusted.lists = self.trusted_lists.iter().map(list).collect();
        Ok(trusted)
    }
}

impl KeyCache {
    /// Names the cache below the state folder. Reads and writes nothing yet.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            folder: state_dir.join("keys"),
        }
    }

    /// Locks the keys of this host: only one run at a time may find, make and cache keys.
    pub(super) fn lock(&self) -> Result<KernelLock, StateError> {
        lock_named(
            &self.state_dir,
            "keys",
            &format!("the keys in {}", self.folder.display()),
        )
    }

    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    fn note_path(&self) -> PathBuf {
        self.folder.join("rotating")
    }

    /// Records that this host is about to put new keys, by the folder of their keyring.
    pub(super) fn note_rotation(&self, tag: &str) -> Result<(), RunError> {
        self.make_folder()?;
        let path = self.note_path();
        replace_file(&path, tag.as_bytes()).map_err(|source| file_error("write", &path, source))
    }

    /// Returns the rotation that this host began and did not finish, as the folder of the new
    /// keyring.
    ///
    /// # Errors
    /// [`RunError::File`] when the note exists and cannot be read.
    pub fn noted_rotation(&self) -> Result<Option<String>, RunError> {
        let path = self.note_path();
        match fs::read_to_string(&path) {
            Ok(tag) => Ok(Some(tag)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(file_error("read", &path, source)),
        }
    }

    /// Removes the note of a rotation that is finished.
    pub(super) fn forget_rotation(&self) -> Result<(), RunError> {
        let path = self.note_path();
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(file_error("remove", &path, source))
            }
            _ => Ok(()),
        }
    }

    fn make_folder(&self) -> Result<(), RunError> {
        create_folder(&self.folder).map_err(|source| file_error("create", &self.folder, source))
    }

    /// Loads the cached keys, or `None` on first use.
    ///
    /// # Errors
    /// [`RunError`] when the cache exists and cannot be read or used: never reported as `None`.
    pub fn load(&self) -> Result<Option<WriterKeys>, RunError> {
        let path = self.folder.join("writer.json");
        let keyring_path = self.folder.join("keyring.age");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file_error("read", &path, source)),
        };
        let unusable = |reason: String| file_error("use", &path, std::io::Error::other(reason));
        let cached: CachedKeys =
            serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
        let recipient: age::x25519::Recipient = cached
            .recipient
            .parse()
            .map_err(|reason: &str| unusable(reason.to_owned()))?;
        let signing = SigningKey::parse(&cached.signing_key)?;
        let mut trusted = cached.trusted(signing.verifying_key())?;
        self.load_lists(&mut trusted)?;
        let keyring = match &cached.keyring {
            Some(text) => BASE64
                .decode(text)
                .map_err(|error| unusable(error.to_string()))?,
            None => fs::read(&keyring_path)
                .map_err(|source| file_error("read", &keyring_path, source))?,
        };
        let keyring = StoredKeyring {
            tag: keyring_tag(&recipient),
            bytes: keyring.into(),
        };
        Ok(Some(WriterKeys {
            recipients: vec![recipient],
            signing,
            trusted,
            keyring: Some(keyring),
        }))
    }

    /// Replaces the cached keys atomically.
    pub(super) fn save(&self, keys: &WriterKeys) -> Result<(), RunError> {
        let (Some(keyring), Some(recipient)) = (&keys.keyring, keys.recipients.first()) else {
            return Ok(());
        };
        let with = |trust| {
            keys.trusted
                .with(trust)
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        let lists = keys.trusted.lists.iter();
        let cached = CachedKeys {
            recipient: recipient.to_string(),
            signing_key: keys.signing.to_secret_text()?,
            verifying_keys: [
                with(Trust::Current),
                with(Trust::Kept),
                with(Trust::Unlimited),
            ]
            .concat(),
            kept_keys: with(Trust::Kept),
            retired_keys: with(Trust::Retired),
            trusted_lists: lists
                .map(|list| CachedList {
                    tag: list.tag.clone(),
                    blake3: list.blake3,
                })
                .collect(),
            keyring: Some(BASE64.encode(&keyring.bytes)),
        };
        self.make_folder()?;
        self.save_lists(&keys.trusted)?;
        let path = self.folder.join("writer.json");
        let text = serde_json::to_vec_pretty(&cached)
            .map_err(|error| file_error("write", &path, error.into()))?;
        replace_file(&path, &text).map_err(|source| file_error("write", &path, source))
    }
}
