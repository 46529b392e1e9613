//! The configuration beside the keyring, for the day when nothing is left but bucket, credentials and passphrase.
//!
//! Without its secrets, sealed to the recipients, and signed: what a bucket gives back will run hooks as root. A new
//! object for every change, below [`CONFIG_PREFIX`]; this host remembers what it stored last, so that a night without a
//! change costs no request.

use super::keys::WriterKeys;
use super::sealed::{open_small, seal_small};
use super::small::put_again;
use super::{RunError, error_chain};
use crate::keyring::KeyFile;
use crate::manifest::{PRIVATE_BYTES_MAX, SIGNATURE_BYTES_MAX, parse_as, to_stored_bytes};
use crate::model::Digest;
use crate::sign::{SignedType, VerifyingKey};
use crate::store::key::CONFIG_PREFIX;
use crate::store::{ObjectKey, ObjectStore};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;

/// One configuration as a host had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptConfig {
    /// 1.
    pub format: u32,
    /// Always "config".
    #[serde(rename = "type")]
    pub object_type: String,
    /// The host that had it.
    pub host: String,
    /// Where it lay there.
    pub file: String,
    /// When it was stored.
    pub written_at: Timestamp,
    /// The text, its secrets left out.
    pub text: String,
}

impl KeptConfig {
    /// The configuration of this host.
    pub fn new(host: &str, file: &str, text: &str, now: Timestamp) -> Self {
        let (host, file, text) = (host.to_owned(), file.to_owned(), text.to_owned());
        Self { format: FORMAT, object_type: SignedType::Config.as_str().to_owned(), host, file, written_at: now, text }
    }

    fn digest(&self, signed_by: &VerifyingKey) -> Digest {
        Digest::of(format!("{}\n{}\n{signed_by}\n{}", self.host, self.file, self.text).as_bytes())
    }
}

/// Puts the configuration into the store if it is not what this host put there last. Returns whether it did.
///
/// # Errors
/// [`RunError`]; no backup depends on it.
pub async fn keep_config(
    store: &dyn ObjectStore,
    keys: &WriterKeys,
    state_dir: &Path,
    kept: &KeptConfig,
) -> Result<bool, RunError> {
    let note = note_of(state_dir, store, &kept.file);
    // Only a current key vouches for a configuration, so new keys sign it again.
    let digest = kept.digest(keys.signing.verifying_key()).to_string();
    if std::fs::read_to_string(&note).is_ok_and(|known| known.trim() == digest) {
        return Ok(false);
    }
    let failed =
        |operation, path: &str, source: std::io::Error| RunError::File { operation, path: path.to_owned(), source };
    let plain = to_stored_bytes(kept).map_err(|error| failed("write", CONFIG_PREFIX, std::io::Error::other(error)))?;
    let sealed = seal_small(&keys.recipients, &plain)
        .map_err(|error| failed("seal", CONFIG_PREFIX, std::io::Error::other(error)))?;
    let key = ObjectKey::config(kept.written_at, Digest::of(&sealed));
    let signature = keys.signing.sign(SignedType::Config, key.as_str(), &sealed)?;
    put_again(store, &key.signature(), signature.into()).await?;
    put_again(store, &key, sealed.into()).await?;
    let written = std::fs::write(&note, format!("{digest}\n"));
    written.map_err(|source| failed("write", &note.display().to_string(), source))?;
    Ok(true)
}

fn note_of(state_dir: &Path, store: &dyn ObjectStore, file: &str) -> PathBuf {
    let name = Digest::of(format!("{}\n{file}", store.url()).as_bytes()).to_string();
    state_dir.join(format!("kept-config-{}", &name[..16]))
}

/// The newest configuration of each host and file, newest first. What cannot be believed is named in a warning.
///
/// # Errors
/// [`RunError::Store`] when the store cannot be listed or read.
pub async fn kept_configs(store: &dyn ObjectStore, keys: &KeyFile) -> Result<Vec<KeptConfig>, RunError> {
    let mut found: Vec<KeptConfig> = Vec::new();
    for object in store.list(CONFIG_PREFIX).await? {
        let Some(key) = ObjectKey::listed(&object.key).filter(|key| key.as_str().ends_with(".age")) else { continue };
        match read_config(store, &key, keys).await {
            Ok(kept) => found.push(kept),
            Err(error @ (RunError::Manifest { .. } | RunError::Damaged { .. } | RunError::Refused { .. })) => {
                tracing::warn!(%key, error = error_chain(&error), "not believed");
            }
            Err(error) => return Err(error),
        }
    }
    found.sort_by_key(|kept| std::cmp::Reverse(kept.written_at));
    let mut seen = BTreeSet::new();
    found.retain(|kept| seen.insert((kept.host.clone(), kept.file.clone())));
    Ok(found)
}

async fn read_config(store: &dyn ObjectStore, key: &ObjectKey, keys: &KeyFile) -> Result<KeptConfig, RunError> {
    let damaged = |reason: String| RunError::Damaged { key: key.to_string(), reason };
    let signature = store.get(&key.signature(), None, SIGNATURE_BYTES_MAX).await;
    let signature = match signature {
        Err(error) if error.kind == crate::store::StoreErrorKind::NotFound => {
            return Err(damaged("its signature is missing".to_owned()));
        }
        signature => signature?,
    };
    let sealed = store.get(key, None, PRIVATE_BYTES_MAX).await?;
    let verified = keys.trusted.verify(SignedType::Config, key.as_str(), &sealed, &signature);
    verified.map_err(|error| RunError::Manifest { key: key.to_string(), source: error.into() })?;
    let plain = open_small(keys, &sealed, PRIVATE_BYTES_MAX)
        .map_err(|error| RunError::refused(format!("open {key}: {error}"), "it was sealed to other keys"))?;
    parse_as(&plain, SignedType::Config.as_str()).map_err(|error| damaged(error_chain(&error)))
}
