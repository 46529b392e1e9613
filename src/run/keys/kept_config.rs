//! Keeps the configuration in the store with the keyring, for a restore with nothing but the
//! bucket, its credentials and the passphrase.
//!
//! The secrets are left out. The object is sealed to the recipients, and signed, because a restored
//! configuration runs hooks as root. Every change makes a new object below [`CONFIG_PREFIX`]. This
//! host remembers what it stored last, so that a night without a change costs no request.

use crate::catalog::get_signed;
use crate::catalog::sealed::{open_small, seal_small};
use crate::keyring::KeyFile;
use crate::manifest::{parse_as, to_stored_bytes};
use crate::model::Digest;
use crate::run::commit::put::put_again;
use crate::run::keys::WriterKeys;
use crate::run::{RunError, error_chain};
use crate::sign::{SignedType, VerifyingKey};
use crate::state::dir::replace_until_crash;
use crate::store::key::{CONFIG_PREFIX, SIGNATURE_SUFFIX};
use crate::store::{ObjectKey, StoreInfo, StoreRead, StoreWrite};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;
/// A configuration file has at most 1 MiB, and at most six times that when JSON escapes every byte.
const SEALED_CONFIG_BYTES_MAX: u64 = 8 << 20;
/// The most objects with untrusted signatures that are fetched and skipped. A host stores one for
/// each change.
const UNTRUSTED_MAX: usize = 10_000;

/// The configuration of a host at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptConfig {
    /// The format, 1.
    pub format: u32,
    /// The type, always "config".
    #[serde(rename = "type")]
    pub object_type: String,
    /// The name of the host.
    pub host: String,
    /// The path of the file on that host.
    pub file: String,
    /// The time when the configuration was stored.
    pub written_at: Timestamp,
    /// The text without its secrets.
    pub text: String,
}

impl KeptConfig {
    /// Makes the object for this host's configuration.
    pub fn new(host: &str, file: &str, text: &str, now: Timestamp) -> Self {
        let host = host.to_owned();
        let file = file.to_owned();
        let text = text.to_owned();
        Self {
            format: FORMAT,
            object_type: SignedType::Config.as_str().to_owned(),
            host,
            file,
            written_at: now,
            text,
        }
    }

    fn digest(&self, signed_by: &VerifyingKey) -> Digest {
        Digest::of(format!("{}\n{}\n{signed_by}\n{}", self.host, self.file, self.text).as_bytes())
    }
}

/// Puts the configuration into the store unless this host put the same one there last. Returns
/// whether it was put.
///
/// # Errors
/// [`RunError`]; no backup depends on the configuration.
pub async fn keep_config(
    store: &dyn StoreWrite,
    keys: &WriterKeys,
    state_dir: &Path,
    kept: &KeptConfig,
) -> Result<bool, RunError> {
    let note = note_of(state_dir, store, &kept.file);
    // A configuration needs the signature of a current key, so new keys sign it again.
    let digest = kept.digest(keys.signing.verifying_key()).to_string();
    if std::fs::read_to_string(&note).is_ok_and(|known| known.trim() == digest) {
        return Ok(false);
    }
    let failed = |operation, path: &str, source: std::io::Error| RunError::File {
        operation,
        path: path.to_owned(),
        source,
    };
    let plain = to_stored_bytes(kept)
        .map_err(|error| failed("write", CONFIG_PREFIX, std::io::Error::other(error)))?;
    let sealed = seal_small(&keys.recipients, &plain)
        .map_err(|error| failed("seal", CONFIG_PREFIX, std::io::Error::other(error)))?;
    let key = ObjectKey::config(kept.written_at, Digest::of(&sealed));
    let signature = keys
        .signing
        .sign(SignedType::Config, key.as_str(), &sealed)?;
    put_again(store, &key.signature(), signature.into()).await?;
    put_again(store, &key, sealed.into()).await?;
    let written = replace_until_crash(&note, format!("{digest}\n").as_bytes());
    written.map_err(|source| failed("write", &note.display().to_string(), source))?;
    Ok(true)
}

fn note_of(state_dir: &Path, store: &dyn StoreInfo, file: &str) -> PathBuf {
    let name = Digest::of(format!("{}\n{file}", store.known().id).as_bytes()).to_string();
    state_dir.join(format!("kept-config-{}", &name[..16]))
}

/// The configurations that a store keeps.
#[derive(Debug, Default)]
pub struct KeptConfigs {
    /// The newest configuration of each host and file, newest first.
    pub trusted: Vec<KeptConfig>,
    /// The number of other objects, which these keys neither verify nor open. A warning names each.
    pub untrusted: usize,
}

/// Reads the configurations of all hosts.
///
/// # Errors
/// [`RunError::Store`] when the store cannot be listed or read.
pub async fn kept_configs(store: &dyn StoreRead, keys: &KeyFile) -> Result<KeptConfigs, RunError> {
    let mut found: Vec<KeptConfig> = Vec::new();
    let listed = store.list(CONFIG_PREFIX).await?;
    let signed: BTreeSet<&str> = listed
        .iter()
        .filter_map(|object| object.key.strip_suffix(SIGNATURE_SUFFIX))
        .collect();
    let mut untrusted = 0;
    for object in &listed {
        let Some(key) = ObjectKey::listed(&object.key).filter(|key| key.as_str().ends_with(".age"))
        else {
            continue;
        };
        // The signature is put first: an object without one is not ours, and is not fetched.
        if !signed.contains(key.as_str()) {
            tracing::warn!(%key, "ignoring a configuration without a signature");
            continue;
        }
        if untrusted == UNTRUSTED_MAX {
            let what = format!(
                "{} has more than {UNTRUSTED_MAX} untrusted configurations",
                store.url()
            );
            return Err(RunError::refused(
                what,
                format!("find out who writes below {CONFIG_PREFIX}, and remove them"),
            ));
        }
        match read_config(store, &key, keys).await {
            Ok(kept) => found.push(kept),
            Err(
                error @ (RunError::Manifest { .. }
                | RunError::Damaged { .. }
                | RunError::SealedToOthers { .. }),
            ) => {
                untrusted += 1;
                tracing::warn!(%key, error = error_chain(&error), "ignoring an invalid or untrusted configuration");
            }
            Err(error) => return Err(error),
        }
    }
    found.sort_by_key(|kept| std::cmp::Reverse(kept.written_at));
    let mut seen = BTreeSet::new();
    found.retain(|kept| seen.insert((kept.host.clone(), kept.file.clone())));
    Ok(KeptConfigs {
        trusted: found,
        untrusted,
    })
}

async fn read_config(
    store: &dyn StoreRead,
    key: &ObjectKey,
    keys: &KeyFile,
) -> Result<KeptConfig, RunError> {
    let damaged = |reason: String| RunError::Damaged {
        key: key.to_string(),
        reason,
    };
    let (sealed, _) = get_signed(
        store,
        key,
        SignedType::Config,
        &keys.trusted,
        SEALED_CONFIG_BYTES_MAX,
    )
    .await?;
    let plain = open_small(keys, &sealed, SEALED_CONFIG_BYTES_MAX).map_err(|error| {
        RunError::SealedToOthers {
            key: key.to_string(),
            reason: error.to_string(),
        }
    })?;
    parse_as(&plain, SignedType::Config.as_str()).map_err(|error| damaged(error_chain(&error)))
}
