//! The keys that a command writes, deletes or reads with.

use crate::cli::context::Setup;
use crate::cli::failure::{Failure, usage};
use crate::config::{Config, Environment, KeySource, Passphrase, SecretFile};
use crate::keyring::KeyFile;
use crate::run::RunError;
use crate::run::keys::{
    KeyCache, NewerKeys, WriterKeys, check_current, open_keyrings, writer_keys_with,
};
use crate::sign::{SigningKey, TrustedKeys, VerifyingKey};
use crate::store::{StoreRead, StoreWrite};
use age::secrecy::SecretString;

/// Returns the keys for writing to this store.
pub(crate) async fn keys_for_writing(
    setup: &Setup,
    store: &dyn StoreWrite,
) -> Result<WriterKeys, Failure> {
    keys_for_writing_with(setup, store, NewerKeys::Refuse).await
}

/// Returns the same as [`keys_for_writing`]. `newer` is a person's decision about keys that are
/// newer than those that were found.
pub(crate) async fn keys_for_writing_with(
    setup: &Setup,
    store: &dyn StoreWrite,
    newer: NewerKeys,
) -> Result<WriterKeys, Failure> {
    match &setup.config.keys {
        KeySource::Passphrase(source) => {
            let cache = KeyCache::new(&setup.config.state_dir);
            Ok(
                writer_keys_with(store, &cache, newer, || ask_passphrase(source, &setup.env))
                    .await?,
            )
        }
        KeySource::Recipients {
            recipients,
            signing_key_file,
        } => {
            let (signing, trusted) = signing_side(signing_key_file, setup)?;
            Ok(WriterKeys {
                recipients: recipients.clone(),
                signing,
                trusted,
                keyring: None,
            })
        }
    }
}

/// Returns the passphrase that the configuration names, with a [`RunError`] for the functions of
/// `run`.
pub(crate) fn ask_passphrase(
    source: &Passphrase,
    env: &Environment,
) -> Result<SecretString, RunError> {
    let secret = source.resolve(env).map_err(|error| {
        let hint = error
            .hint()
            .unwrap_or_else(|| "check main.encryption_passphrase".into());
        RunError::refused(crate::run::error_chain(&error), hint)
    })?;
    Ok(SecretString::from(secret.expose().to_owned()))
}

/// Returns the key that signs prune records, and the keys that pruning trusts. Never makes a
/// keyring: a store without one has nothing to prune.
pub(crate) async fn keys_for_pruning(
    setup: &Setup,
    store: &dyn StoreRead,
) -> Result<(SigningKey, TrustedKeys), Failure> {
    let source = match &setup.config.keys {
        KeySource::Recipients {
            signing_key_file, ..
        } => return signing_side(signing_key_file, setup),
        KeySource::Passphrase(source) => source,
    };
    let cache = KeyCache::new(&setup.config.state_dir);
    let (signing, mut trusted) = match cache.load()? {
        Some(cached) => {
            check_current(store, &cache, &cached).await?;
            (cached.signing, cached.trusted)
        }
        None => {
            let passphrase = SecretString::from(source.resolve(&setup.env)?.expose().to_owned());
            let file = open_keyrings(store, &passphrase).await?;
            let unusable = |source| RunError::Keyring {
                store: store.url().to_owned(),
                source,
            };
            (
                file.signing_key().map_err(unusable)?.clone(),
                file.trusted.clone(),
            )
        }
    };
    trusted.add_all(verify_keys(&setup.config));
    Ok((signing, trusted))
}

/// Returns the keys for a plan of what would be written. Writes nothing: keys that do not exist yet
/// are temporary, and then no backup exists that they could verify.
pub(crate) async fn keys_for_planning(
    setup: &Setup,
    store: &dyn StoreWrite,
) -> Result<WriterKeys, Failure> {
    let source = match &setup.config.keys {
        KeySource::Recipients { .. } => return keys_for_writing(setup, store).await,
        KeySource::Passphrase(source) => source,
    };
    if let Some(keys) = KeyCache::new(&setup.config.state_dir).load()? {
        return Ok(keys);
    }
    let failed = |source| RunError::Keyring {
        store: store.url().to_owned(),
        source,
    };
    let file = if store.is_unused().await? {
        KeyFile::generate().map_err(failed)?
    } else {
        let passphrase = SecretString::from(source.resolve(&setup.env)?.expose().to_owned());
        open_keyrings(store, &passphrase).await?
    };
    Ok(WriterKeys::from_keyring(&file, bytes::Bytes::new()).map_err(failed)?)
}

pub(crate) fn verify_keys(config: &Config) -> Vec<VerifyingKey> {
    config
        .verify_keys
        .iter()
        .cloned()
        .map(VerifyingKey::from)
        .collect()
}

/// Returns the signing key of a host in recipients mode, and the keys that it trusts: its own key
/// and the configured ones.
pub(crate) fn signing_side(
    signing_key_file: &SecretFile,
    setup: &Setup,
) -> Result<(SigningKey, TrustedKeys), Failure> {
    let text = signing_key_file.read_text(&setup.env)?;
    let signing = SigningKey::parse(text.expose()).map_err(RunError::from)?;
    let mut trusted = TrustedKeys::new(verify_keys(&setup.config));
    trusted.add_all([signing.verifying_key().clone()]);
    Ok((signing, trusted))
}

/// Returns the passphrase that the configuration names.
pub(crate) fn configured_passphrase(setup: &Setup) -> Result<SecretString, Failure> {
    match &setup.config.keys {
        KeySource::Passphrase(source) => Ok(SecretString::from(
            source.resolve(&setup.env)?.expose().to_owned(),
        )),
        KeySource::Recipients { .. } => Err(usage(
            "this host has no key that opens backups",
            "name the key file with --identity FILE",
        )),
    }
}
