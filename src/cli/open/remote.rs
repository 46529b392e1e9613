//! Makes the adapters from the configuration: ZFS, stores and keys.

use crate::cli::failure::{Failure, usage};
use crate::cli::open::identity::identified;
use crate::cli::open::pace::limiter;
use crate::cli::open::s3::{Purpose, follow};
use crate::cli::open::{b2, rclone};
use crate::config::{Config, CredentialFiles, Environment, Remote};
use crate::run::RunError;
use crate::run::backup::StoreRole;
use crate::store::{
    DirSettings, DirStore, ObjectStore, Renew, S3Credentials, S3Settings, S3Store, StoreErrorKind,
};
use crate::zfs::{ALLOW_VARIABLE, RealZfs, Zfs};
use std::path::Path;
use std::sync::Arc;

/// Opens the kernel's ZFS.
pub(crate) fn open_zfs() -> Result<Arc<dyn Zfs>, Failure> {
    let allowed = std::env::var(ALLOW_VARIABLE).ok();
    Ok(Arc::new(RealZfs::open(allowed.as_deref())?))
}

/// Opens the configured remote for reading.
pub(crate) async fn open_remote(
    config: &Config,
    env: &Environment,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    open_remote_for(config, env, Purpose::Read).await
}

/// Opens the configured remote for `purpose`. Before the first write the store is probed.
pub(crate) async fn open_remote_for(
    config: &Config,
    env: &Environment,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let store = open_bare_remote(config, env, purpose).await?;
    identified(config, StoreRole::Remote, store, purpose).await
}

/// Opens a configured store without a check of its identity.
pub(crate) async fn open_raw_store(
    config: &Config,
    env: &Environment,
    role: StoreRole,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    match role {
        StoreRole::Remote => open_bare_remote(config, env, Purpose::Read).await,
        StoreRole::Intermediate => open_bare_intermediate(config),
    }
}

async fn open_bare_remote(
    config: &Config,
    env: &Environment,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    if let Some(Remote::Rclone { remote, path }) = &config.remote {
        return rclone::open_configured((remote, path), config).await;
    }
    if let Some(Remote::B2 { bucket, prefix }) = &config.remote {
        let files = config.b2.credential_files.as_ref();
        return b2::open_configured((bucket, prefix), config, env, files).await;
    }
    let (files, profile) = (
        config.s3.credential_files.as_ref(),
        config.s3.profile.clone(),
    );
    open_remote_as(config, env, (files, profile), purpose).await
}

/// The state of the remote that the configuration names.
pub(crate) enum RemoteState {
    /// The configuration names no remote.
    None,
    /// The remote can be reached.
    Open(Arc<dyn ObjectStore>),
    /// The network, the server or the mount is missing. The text has the reason.
    Unreachable(String),
}

/// Opens the remote. An unreachable remote is a result: the caller keeps everything, and the next
/// steps continue. Wrong credentials or a wrong name are errors.
pub(crate) async fn open_remote_if_any(
    config: &Config,
    env: &Environment,
    purpose: Purpose,
) -> Result<RemoteState, Failure> {
    let Some(remote) = &config.remote else {
        return Ok(RemoteState::None);
    };
    match open_remote_for(config, env, purpose).await {
        Ok(store) => Ok(RemoteState::Open(store)),
        Err(failure) if is_away(&failure, remote) => Ok(RemoteState::Unreachable(failure.reason())),
        Err(failure) => Err(failure),
    }
}

fn is_away(failure: &Failure, remote: &Remote) -> bool {
    let Failure::Run(RunError::Store(error)) = failure else {
        return false;
    };
    match error.kind {
        StoreErrorKind::Unavailable | StoreErrorKind::Throttled => true,
        // The folder is not mounted.
        StoreErrorKind::NotFound => matches!(remote, Remote::File { .. }),
        _ => false,
    }
}

/// The remote as `doctor` sees it.
pub(crate) struct OpenRemote {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The endpoint of the remote, for people; `None` for a folder.
    pub(crate) endpoint: Option<String>,
}

/// Opens the configured remote without a probe.
pub(crate) async fn open_raw_remote(
    config: &Config,
    env: &Environment,
) -> Result<OpenRemote, Failure> {
    match &config.remote {
        Some(Remote::S3 { .. }) => {
            let (files, profile) = (
                config.s3.credential_files.as_ref(),
                config.s3.profile.clone(),
            );
            let store = connect_s3(config, env, files, profile).await?;
            let endpoint = Some(store.endpoint().to_owned());
            Ok(OpenRemote {
                store: Arc::new(store),
                endpoint,
            })
        }
        Some(Remote::B2 { bucket, prefix }) => {
            let files = config.b2.credential_files.as_ref();
            let endpoint = Some(b2::endpoint(bucket, prefix));
            let store = b2::open_configured((bucket, prefix), config, env, files).await?;
            Ok(OpenRemote { store, endpoint })
        }
        _ => Ok(OpenRemote {
            store: open_bare_remote(config, env, Purpose::Read).await?,
            endpoint: None,
        }),
    }
}

/// Opens the configured remote with the credentials of `[prune]`, where they are set, so that the
/// nightly credentials need no right to delete.
pub(crate) async fn open_remote_to_delete(
    config: &Config,
    env: &Environment,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let store = open_bare_remote_to_delete(config, env).await?;
    identified(config, StoreRole::Remote, store, purpose).await
}

async fn open_bare_remote_to_delete(
    config: &Config,
    env: &Environment,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let prune = config.prune.as_ref();
    if let Some(Remote::Rclone { .. }) = &config.remote {
        return open_bare_remote(config, env, Purpose::Read).await;
    }
    if let Some(Remote::B2 { bucket, prefix }) = &config.remote {
        let files = prune.and_then(|prune| prune.b2_credential_files.as_ref());
        let files = files.or(config.b2.credential_files.as_ref());
        return b2::open_configured((bucket, prefix), config, env, files).await;
    }
    let files = prune.and_then(|prune| prune.s3_credential_files.as_ref());
    let profile = prune.and_then(|prune| prune.profile.clone());
    if files.is_none() && profile.is_none() {
        return open_bare_remote(config, env, Purpose::Read).await;
    }
    open_remote_as(config, env, (files, profile), Purpose::Read).await
}

async fn open_remote_as(
    config: &Config,
    env: &Environment,
    (files, profile): (Option<&CredentialFiles>, Option<String>),
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    match &config.remote {
        None => Err(usage(
            "the configuration names no remote",
            "set main.remote, such as \"s3:bucket/prefix\"",
        )),
        Some(Remote::S3 { .. }) => {
            follow(
                config,
                connect_s3(config, env, files, profile).await?,
                purpose,
            )
            .await
        }
        Some(other) => {
            open_store(
                other,
                S3Settings {
                    part_bytes: part_bytes(config),
                    ..S3Settings::default()
                },
            )
            .await
        }
    }
}

/// Connects to the configured S3 store and checks that it answers.
async fn connect_s3(
    config: &Config,
    env: &Environment,
    files: Option<&CredentialFiles>,
    profile: Option<String>,
) -> Result<S3Store, Failure> {
    let Some(Remote::S3 { bucket, prefix }) = &config.remote else {
        return Err(usage(
            "the remote is not S3",
            "this is a defect: please report it",
        ));
    };
    let s3 = &config.s3;
    let (credentials, renew) = match files {
        None => (None, None),
        Some(files) => {
            let (files, env) = (files.clone(), env.clone());
            let read = move || {
                files
                    .read(&env)
                    .map(|(id, secret)| s3_credentials(id.expose(), secret.expose()))
            };
            (Some(read()?), Some(Renew::new(move || Ok(read()?))))
        }
    };
    let settings = S3Settings {
        bucket: bucket.clone(),
        prefix: prefix.clone(),
        endpoint: s3.endpoint.clone(),
        region: s3.region.clone(),
        profile,
        path_style: s3.path_style,
        storage_class: s3.storage_class.clone(),
        checksum: s3.checksum.unwrap_or_default(),
        lock: config.object_lock(),
        part_bytes: part_bytes(config),
        concurrency: config.parts().concurrency as usize,
        credentials,
        renew,
        limiter: limiter(config),
        ..S3Settings::default()
    };
    let store = S3Store::connect(settings).await?;
    store.check_bucket().await?;
    Ok(store)
}

fn s3_credentials(id: &str, secret: &str) -> S3Credentials {
    S3Credentials {
        access_key_id: id.to_owned(),
        secret_access_key: secret.to_owned(),
    }
}

fn part_bytes(config: &Config) -> usize {
    config.parts().part_size.in_memory()
}

pub(crate) async fn open_store(
    remote: &Remote,
    s3: S3Settings,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    match remote {
        Remote::S3 { bucket, prefix } => {
            let settings = S3Settings {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                ..s3
            };
            let store = S3Store::connect(settings).await?;
            store.check_bucket().await?;
            Ok(Arc::new(store))
        }
        Remote::B2 { bucket, prefix } => b2::open_bare(bucket, prefix).await,
        Remote::File { dir } => open_dir(dir, s3.part_bytes),
        Remote::Rclone { remote, path } => rclone::open_bare(remote, path).await,
    }
}

/// Opens a folder as a store. The folder must exist: a missing mount must not look like an empty
/// store.
pub(crate) fn open_dir(root: &Path, part_bytes: usize) -> Result<Arc<dyn ObjectStore>, Failure> {
    Ok(Arc::new(DirStore::open(&DirSettings {
        root: root.to_owned(),
        part_bytes,
    })?))
}

/// Opens the configured intermediate directory for `purpose`.
pub(crate) async fn open_intermediate(
    config: &Config,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    identified(
        config,
        StoreRole::Intermediate,
        open_bare_intermediate(config)?,
        purpose,
    )
    .await
}

fn open_bare_intermediate(config: &Config) -> Result<Arc<dyn ObjectStore>, Failure> {
    match &config.intermediate {
        Some(intermediate) => open_dir(&intermediate.basedir, part_bytes(config)),
        None => Err(usage(
            "the configuration names no intermediate directory",
            "set main.intermediate_basedir",
        )),
    }
}

/// Opens every store that the configuration names: the remote, then the intermediate directory.
pub(crate) async fn open_all_stores(
    config: &Config,
    env: &Environment,
    purpose: Purpose,
) -> Result<Vec<Arc<dyn ObjectStore>>, Failure> {
    let mut stores = Vec::new();
    if config.remote.is_some() {
        stores.push(open_remote_for(config, env, purpose).await?);
    }
    if config.intermediate.is_some() {
        stores.push(open_intermediate(config, purpose).await?);
    }
    Ok(stores)
}
