//! Opens a native B2 remote, with its application key, and with the spool where one is configured.

use crate::cli::context::Setup;
use crate::cli::failure::Failure;
use crate::cli::open::access::{Access, read_credentials};
use crate::cli::open::pace::{download_limiter, upload_limiter};
use crate::store::{B2Credentials, B2Settings, B2Store, ObjectStore, Patience, Spool};
use std::env;
use std::sync::Arc;

/// The variables that Backblaze's own tools read.
const KEY_ID: &str = "B2_APPLICATION_KEY_ID";
const KEY: &str = "B2_APPLICATION_KEY";
/// Names another environment than Backblaze's production, if its value is a URL.
const PLACE: &str = "B2_ENVIRONMENT";

/// Opens the configured remote. Without files the key is in the environment.
pub(crate) async fn open_configured(
    setup: &Setup,
    bucket: &str,
    prefix: &str,
    access: Access,
    opening: &Patience,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let config = &setup.config;
    let mut settings = B2Settings {
        limiter: upload_limiter(config),
        limiter_down: download_limiter(config),
        patience: Arc::clone(&setup.patience),
        part_bytes: config.b2.parts.part_size.in_memory(),
        concurrency: config.b2.parts.concurrency as usize,
        lock: config.object_lock(),
        ..settings(bucket, prefix)
    };
    let prune = config.prune.as_ref();
    let own = prune
        .filter(|_| access.has_own_credentials())
        .and_then(|prune| prune.b2_credential_files.as_ref());
    match own.or(config.b2.credential_files.as_ref()) {
        None => settings.credentials = credentials_of_environment(),
        Some(files) => {
            let credentials = read_credentials(files, &setup.env, credentials)?;
            settings.credentials = Some(credentials.now);
            settings.renew = Some(credentials.renew);
        }
    }
    let store = Arc::new(open(settings, opening).await?);
    Ok(match &config.b2.spool_dir {
        Some(dir) => Arc::new(Spool::new(store, dir.clone())),
        None => store,
    })
}

/// Returns the endpoint that authorizes the account of such a remote.
pub(crate) fn endpoint(bucket: &str, prefix: &str) -> String {
    settings(bucket, prefix)
        .endpoint
        .unwrap_or_else(|| "Backblaze B2".to_owned())
}

/// Opens a remote that is named on the command line: all other settings come from the environment.
pub(crate) async fn open_bare(
    bucket: &str,
    prefix: &str,
    patience: &Arc<Patience>,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let settings = B2Settings {
        credentials: credentials_of_environment(),
        patience: Arc::clone(patience),
        ..settings(bucket, prefix)
    };
    Ok(Arc::new(open(settings, patience).await?))
}

async fn open(settings: B2Settings, opening: &Patience) -> Result<B2Store, Failure> {
    let store = B2Store::new(settings)?;
    opening.wait_out(|| store.check_bucket()).await?;
    Ok(store)
}

fn settings(bucket: &str, prefix: &str) -> B2Settings {
    let endpoint = env::var(PLACE).ok().filter(|place| place.contains("://"));
    B2Settings {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint,
        ..B2Settings::default()
    }
}

fn credentials_of_environment() -> Option<B2Credentials> {
    Some(credentials(&env::var(KEY_ID).ok()?, &env::var(KEY).ok()?))
}

fn credentials(id: &str, key: &str) -> B2Credentials {
    B2Credentials {
        application_key_id: id.to_owned(),
        application_key: key.to_owned(),
    }
}
