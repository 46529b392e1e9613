//! Opens a native B2 remote, with its application key, and with the spool where one is configured.

use crate::cli::failure::Failure;
use crate::cli::open::pace::limiter;
use crate::config::{Config, CredentialFiles, Environment};
use crate::store::{B2Credentials, B2Settings, B2Store, ObjectStore, Renew, Spool};
use std::env;
use std::sync::Arc;

/// The variables that Backblaze's own tools read.
const KEY_ID: &str = "B2_APPLICATION_KEY_ID";
const KEY: &str = "B2_APPLICATION_KEY";
/// Names another environment than Backblaze's production, if its value is a URL.
const PLACE: &str = "B2_ENVIRONMENT";

/// Opens the configured remote, with the key of these files, or of the environment where there are
/// none.
pub(crate) async fn open_configured(
    (bucket, prefix): (&str, &str),
    config: &Config,
    env: &Environment,
    files: Option<&CredentialFiles>,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let (credentials, renew) = match files {
        None => (credentials_of_environment(), None),
        Some(files) => {
            let (files, env) = (files.clone(), env.clone());
            let read = move || {
                files
                    .read(&env)
                    .map(|(id, key)| credentials(id.expose(), key.expose()))
            };
            (Some(read()?), Some(Renew::new(move || Ok(read()?))))
        }
    };
    let settings = B2Settings {
        credentials,
        renew,
        limiter: limiter(config),
        part_bytes: config.b2.parts.part_size.in_memory(),
        concurrency: config.b2.parts.concurrency as usize,
        lock: config.object_lock(),
        ..settings(bucket, prefix)
    };
    let store = Arc::new(open(settings).await?);
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
pub(crate) async fn open_bare(bucket: &str, prefix: &str) -> Result<Arc<dyn ObjectStore>, Failure> {
    let settings = B2Settings {
        credentials: credentials_of_environment(),
        ..settings(bucket, prefix)
    };
    Ok(Arc::new(open(settings).await?))
}

async fn open(settings: B2Settings) -> Result<B2Store, Failure> {
    let store = B2Store::new(settings)?;
    store.check_bucket().await?;
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
