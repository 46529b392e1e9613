//! Opens S3 remotes, and adapts each to its probe. The probe is read from the cache, or made before
//! a command writes. Explicit settings in the configuration take precedence.

use crate::cli::context::Setup;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::access::{Access, read_credentials};
use crate::cli::open::pace::{download_limiter, upload_limiter};
use crate::config::{Config, CredentialFiles, EncryptionSettings, Environment, InvalidValue};
use crate::run::error_chain;
use crate::run::probe::probe_store;
use crate::state::probes::{ProbeCache, ProbeNote};
use crate::store::{
    ObjectStore, Patience, ProbeDoubt, S3Credentials, S3Encryption, S3Settings, S3Store, StoreInfo,
};
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Names the file of the customer key of a remote that is named on the command line.
const CUSTOMER_KEY_FILE: &str = "ZFS_BACKUP_SSE_CUSTOMER_KEY_FILE";

/// Opens the configured remote.
pub(crate) async fn open_configured(
    setup: &Setup,
    bucket: &str,
    prefix: &str,
    access: Access,
    opening: &Patience,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let store = connect(setup, bucket, prefix, access, opening).await?;
    follow(&setup.config, store, access).await
}

/// Connects to the configured remote without a probe, and checks that the store answers, with the
/// patience `opening`.
pub(crate) async fn connect(
    setup: &Setup,
    bucket: &str,
    prefix: &str,
    access: Access,
    opening: &Patience,
) -> Result<S3Store, Failure> {
    let config = &setup.config;
    let s3 = &config.s3;
    let login = login_for(config, access);
    let mut settings = S3Settings {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: s3.endpoint.clone(),
        region: s3.region.clone(),
        profile: login.profile,
        path_style: s3.path_style,
        storage_class: s3.storage_class.clone(),
        checksum: s3.checksum.unwrap_or_default(),
        lock: config.object_lock(),
        part_bytes: config.parts().part_size.in_memory(),
        concurrency: config.parts().concurrency as usize,
        limiter: upload_limiter(config),
        limiter_down: download_limiter(config),
        patience: Arc::clone(&setup.patience),
        ..S3Settings::default()
    };
    if let Some(encryption) = &s3.encryption {
        settings.encryption = Some(encryption.read(&setup.env)?);
    }
    if let Some(files) = login.files {
        let credentials = read_credentials(files, &setup.env, credentials_of)?;
        settings.credentials = Some(credentials.now);
        settings.renew = Some(credentials.renew);
    }
    connect_checked(settings, opening).await
}

/// Opens a remote that is named on the command line: all other settings come from the environment.
pub(crate) async fn open_bare(
    bucket: &str,
    prefix: &str,
    patience: &Arc<Patience>,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let settings = S3Settings {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        encryption: customer_key_of_environment()?,
        patience: Arc::clone(patience),
        ..S3Settings::default()
    };
    Ok(Arc::new(connect_checked(settings, patience).await?))
}

fn customer_key_of_environment() -> Result<Option<S3Encryption>, Failure> {
    let Ok(file) = std::env::var(CUSTOMER_KEY_FILE) else {
        return Ok(None);
    };
    let file = file.parse().map_err(|error: InvalidValue| {
        usage(
            &format!("{CUSTOMER_KEY_FILE}: {error}"),
            "set the variable to the path of the file with the customer key",
        )
    })?;
    let encryption = EncryptionSettings::Customer(file).read(&Environment::current())?;
    Ok(Some(encryption))
}

async fn connect_checked(settings: S3Settings, opening: &Patience) -> Result<S3Store, Failure> {
    let store = S3Store::connect(settings).await?;
    opening.wait_out(|| store.check_bucket()).await?;
    Ok(store)
}

/// The source of the credentials: key files, a profile, or without both the environment.
struct Login<'a> {
    files: Option<&'a CredentialFiles>,
    profile: Option<String>,
}

/// Returns the login of `[prune]` when `access` deletes and `[prune]` has one, else that of `[s3]`.
fn login_for(config: &Config, access: Access) -> Login<'_> {
    let prune = config.prune.as_ref();
    let own = prune
        .filter(|_| access.has_own_credentials())
        .map(|prune| Login {
            files: prune.s3_credential_files.as_ref(),
            profile: prune.profile.clone(),
        });
    own.filter(|login| login.files.is_some() || login.profile.is_some())
        .unwrap_or_else(|| Login {
            files: config.s3.credential_files.as_ref(),
            profile: config.s3.profile.clone(),
        })
}

fn credentials_of(id: &str, secret: &str) -> S3Credentials {
    S3Credentials {
        access_key_id: id.to_owned(),
        secret_access_key: secret.to_owned(),
    }
}

/// Returns the store, set up by its probe. Before a command writes, a store without a fresh probe
/// is probed.
async fn follow(
    config: &Config,
    store: S3Store,
    access: Access,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let cache = ProbeCache::new(&config.state_dir, store.url(), store.endpoint());
    let known = cache.load().unwrap_or_else(|error| {
        tracing::warn!(
            "what the store can do is not known: {}",
            error_chain(&error)
        );
        None
    });
    let now = Timestamp::now();
    let note = match known {
        Some(note) if access != Access::Write || note.is_fresh(now) => Some(note),
        None if access != Access::Write => None,
        old => try_store(&store, &cache, now).await.or(old),
    };
    let Some(note) = note else {
        return Ok(Arc::new(store));
    };
    if access == Access::Write {
        check_parts(config, &note)?;
    }
    let store = match config.s3.checksum {
        None => store.with_checksum(note.probe.checksum.unwrap_or_default()),
        Some(given) => {
            if access == Access::Write
                && !note.probe.kept.is_empty()
                && !note.probe.kept.contains(&given)
            {
                tracing::warn!(
                    "checksum = \"{given}\" is configured, and {} does not keep it; it keeps {}",
                    store.url(),
                    note.probe
                        .kept
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(", ")
                );
            }
            store
        }
    };
    Ok(Arc::new(
        store.following(note.probe, forget_when_wrong(cache)),
    ))
}

/// Probes the store. A failed probe does not stop a backup: the backup itself reports what is
/// wrong.
async fn try_store(store: &S3Store, cache: &ProbeCache, now: Timestamp) -> Option<ProbeNote> {
    let nonce = match getrandom::u64() {
        Ok(nonce) => nonce,
        Err(error) => {
            tracing::warn!("the store was not probed: {error}");
            return None;
        }
    };
    tracing::info!("probing what {} can do (once in 30 days)", store.url());
    match probe_store(store, cache, nonce, now).await {
        Ok(note) => note,
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(
                error,
                "the probe of the store failed; assuming that it behaves like Amazon's"
            );
            None
        }
    }
}

/// Returns a callback that removes the probe of a store that contradicts it, so that the next
/// command that writes probes the store again.
fn forget_when_wrong(cache: ProbeCache) -> ProbeDoubt {
    let said = AtomicBool::new(false);
    ProbeDoubt::new(move |what| {
        if said.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            "the store behaves differently than in its probe: {what}; the next run probes it again"
        );
        if let Err(error) = cache.forget() {
            tracing::warn!("{}", error_chain(&error));
        }
    })
}

fn check_parts(config: &Config, note: &ProbeNote) -> Result<(), Failure> {
    let parts = config.parts_per_chunk();
    match note.probe.parts_max {
        Some(max) if parts > u64::from(max) => Err(usage(
            &format!(
                "a chunk has up to {parts} parts, and {} accepts {max}",
                note.store
            ),
            "raise part_size or lower split_size",
        )),
        _ => Ok(()),
    }
}
