//! Makes the adapters from the configuration: ZFS, stores and keys.

use crate::cli::args::{Global, Source};
use crate::cli::failure::Failure;
use crate::cli::open::b2;
use crate::cli::open::identity::identified;
use crate::cli::open::pace::limiter;
use crate::cli::open::rclone;
use crate::cli::open::s3::{Purpose, follow};
use crate::cli::screen::output::Output;
use crate::config::{
    self, Config, CredentialFiles, Environment, KeySource, Passphrase, Remote, SecretFile,
};
use crate::keyring::KeyFile;
use crate::plan::send::LifecycleRules;
use crate::run::RunError;
use crate::run::backup::{BackupSettings, StoreRole};
use crate::run::keys::{
    KeyCache, NewerKeys, WriterKeys, check_current, open_keyrings, read_lists, warn_of_newer,
    writer_keys_with,
};
use crate::sign::{SigningKey, TrustedKeys, VerifyingKey};
use crate::store::{DirSettings, DirStore, ObjectStore, Renew, S3Credentials, S3Settings, S3Store};
use crate::stream::seal::Compression;
use crate::zfs::{ALLOW_VARIABLE, RealZfs, Zfs};
use age::secrecy::SecretString;
use jiff::Timestamp;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Loads the configuration and prints its notices.
pub(crate) fn load_config(
    global: &Global,
    output: &Output,
) -> Result<(Config, Environment), Failure> {
    let env = Environment::current();
    let file = global
        .config
        .clone()
        .unwrap_or_else(|| config::default_config_file(&env));
    let config = Config::load(&file, &env)?;
    for notice in config.notices() {
        output.note(&notice.to_string());
    }
    Ok((config, env))
}

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

async fn open_store(remote: &Remote, s3: S3Settings) -> Result<Arc<dyn ObjectStore>, Failure> {
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

/// Returns the keys for writing to this store.
pub(crate) async fn keys_for_writing(
    config: &Config,
    env: &Environment,
    store: &dyn ObjectStore,
) -> Result<WriterKeys, Failure> {
    keys_for_writing_with(config, env, store, NewerKeys::Refuse).await
}

/// Returns the same as [`keys_for_writing`]. `newer` is a person's decision about keys that are
/// newer than those that were found.
pub(crate) async fn keys_for_writing_with(
    config: &Config,
    env: &Environment,
    store: &dyn ObjectStore,
    newer: NewerKeys,
) -> Result<WriterKeys, Failure> {
    match &config.keys {
        KeySource::Passphrase(source) => {
            let cache = KeyCache::new(&config.state_dir);
            Ok(writer_keys_with(store, &cache, newer, || ask_passphrase(source, env)).await?)
        }
        KeySource::Recipients {
            recipients,
            signing_key_file,
        } => {
            let (signing, trusted) = signing_side(signing_key_file, config, env)?;
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
    config: &Config,
    env: &Environment,
    store: &Arc<dyn ObjectStore>,
) -> Result<(SigningKey, TrustedKeys), Failure> {
    let source = match &config.keys {
        KeySource::Recipients {
            signing_key_file, ..
        } => return signing_side(signing_key_file, config, env),
        KeySource::Passphrase(source) => source,
    };
    let cache = KeyCache::new(&config.state_dir);
    let (signing, mut trusted) = match cache.load()? {
        Some(cached) => {
            check_current(&**store, &cache, &cached).await?;
            (cached.signing, cached.trusted)
        }
        None => {
            let passphrase = SecretString::from(source.resolve(env)?.expose().to_owned());
            let file = open_keyrings(&**store, &passphrase).await?;
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
    trusted.add_all(verify_keys(config));
    Ok((signing, trusted))
}

/// Returns the keys for a plan of what would be written. Writes nothing: keys that do not exist yet
/// are temporary, and then no backup exists that they could verify.
pub(crate) async fn keys_for_planning(
    config: &Config,
    env: &Environment,
    store: &dyn ObjectStore,
) -> Result<WriterKeys, Failure> {
    let source = match &config.keys {
        KeySource::Recipients { .. } => return keys_for_writing(config, env, store).await,
        KeySource::Passphrase(source) => source,
    };
    if let Some(keys) = KeyCache::new(&config.state_dir).load()? {
        return Ok(keys);
    }
    let failed = |source| RunError::Keyring {
        store: store.url().to_owned(),
        source,
    };
    let file = if store.is_unused().await? {
        KeyFile::generate().map_err(failed)?
    } else {
        let passphrase = SecretString::from(source.resolve(env)?.expose().to_owned());
        open_keyrings(store, &passphrase).await?
    };
    Ok(WriterKeys::from_keyring(&file, bytes::Bytes::new()).map_err(failed)?)
}

fn verify_keys(config: &Config) -> Vec<VerifyingKey> {
    config
        .verify_keys
        .iter()
        .cloned()
        .map(VerifyingKey::from)
        .collect()
}

/// The store of a reading command, and its configuration, if any.
pub(crate) struct ReadSide {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) config: Option<(Config, Environment)>,
}

/// Opens the store of a reading command: `--remote`, the intermediate directory, or the configured
/// remote.
pub(crate) async fn open_for_reading(
    global: &Global,
    source: &Source,
    intermediate: bool,
    output: &Output,
) -> Result<ReadSide, Failure> {
    if let Some(url) = &source.remote {
        return Ok(ReadSide {
            store: open_named("--remote", url).await?,
            config: None,
        });
    }
    let (config, env) = load_config(global, output)?;
    open_configured(config, env, intermediate).await
}

/// Opens a store that an option names by its URL, with the credentials of the environment.
pub(crate) async fn open_named(option: &str, url: &str) -> Result<Arc<dyn ObjectStore>, Failure> {
    let remote: Remote = url.parse().map_err(|error: config::InvalidValue| {
        usage(
            &format!("{option}: {error}"),
            "s3:bucket/prefix, b2:bucket/prefix, file:/dir or rclone:REMOTE:PATH",
        )
    })?;
    open_store(&remote, S3Settings::default()).await
}

/// Opens the intermediate directory or the remote; where no remote is configured, the intermediate
/// directory too.
pub(crate) async fn open_configured(
    config: Config,
    env: Environment,
    intermediate: bool,
) -> Result<ReadSide, Failure> {
    let store = match (intermediate, &config.remote) {
        (true, _) | (false, None) => open_intermediate(&config, Purpose::Read).await?,
        (false, Some(_)) => open_remote(&config, &env).await?,
    };
    Ok(ReadSide {
        store,
        config: Some((config, env)),
    })
}

/// Returns the keys that a reading command trusts: from the key file, the keys cached on this host,
/// the configuration, or the keyring that the passphrase opens. Asks for a passphrase only when no
/// other source exists.
pub(crate) async fn trusted_keys(side: &ReadSide, source: &Source) -> Result<TrustedKeys, Failure> {
    if source.identity.is_none()
        && let Some((config, env)) = &side.config
    {
        let configured = verify_keys(config);
        if let KeySource::Recipients {
            signing_key_file, ..
        } = &config.keys
        {
            return Ok(signing_side(signing_key_file, config, env)?.1);
        }
        if let Some(mut cached) = KeyCache::new(&config.state_dir).load()? {
            cached.trusted.add_all(configured);
            return Ok(cached.trusted);
        }
    }
    Ok(key_file(side, source).await?.trusted)
}

/// Returns the signing key of a host in recipients mode, and the keys that it trusts: its own key
/// and the configured ones.
fn signing_side(
    signing_key_file: &SecretFile,
    config: &Config,
    env: &Environment,
) -> Result<(SigningKey, TrustedKeys), Failure> {
    let text = signing_key_file.read_text(env)?;
    let signing = SigningKey::parse(text.expose()).map_err(RunError::from)?;
    let mut trusted = TrustedKeys::new(verify_keys(config));
    trusted.add_all([signing.verifying_key().clone()]);
    Ok((signing, trusted))
}

/// Returns the keys that open backups: from the key file, or from the keyring with the passphrase.
pub(crate) async fn key_file(side: &ReadSide, source: &Source) -> Result<KeyFile, Failure> {
    let configured = side
        .config
        .as_ref()
        .map(|(config, _)| verify_keys(config))
        .unwrap_or_default();
    let mut file = match &source.identity {
        Some(path) => {
            let file = read_key_file(path)?;
            warn_of_newer(&*side.store, &file).await?;
            file
        }
        None => open_keyrings(&*side.store, &passphrase(side)?).await?,
    };
    read_lists(&*side.store, &mut file.trusted).await?;
    file.trusted.add_all(configured);
    if file.trusted.is_empty() {
        return Err(usage(
            "there is no key that manifests could be verified with",
            "use a key file that has a `# verifying key:` line, or set main.verify_keys",
        ));
    }
    Ok(file)
}

fn read_key_file(path: &PathBuf) -> Result<KeyFile, Failure> {
    let failed = |source| RunError::File {
        operation: "read",
        path: path.display().to_string(),
        source,
    };
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
    let store = path.display().to_string();
    KeyFile::parse(&text).map_err(|source| RunError::Keyring { store, source }.into())
}

/// Returns the passphrase that the configuration names.
pub(crate) fn configured_passphrase(
    config: &Config,
    env: &Environment,
) -> Result<SecretString, Failure> {
    match &config.keys {
        KeySource::Passphrase(source) => {
            Ok(SecretString::from(source.resolve(env)?.expose().to_owned()))
        }
        KeySource::Recipients { .. } => Err(usage(
            "this host has no key that opens backups",
            "name the key file with --identity FILE",
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

fn passphrase(side: &ReadSide) -> Result<SecretString, Failure> {
    if let Some((config, env)) = &side.config {
        return configured_passphrase(config, env);
    }
    let stdin = std::io::stdin();
    let line = if stdin.is_terminal() {
        rpassword::prompt_password("passphrase: ")
    } else {
        let mut line = zeroize::Zeroizing::new(String::new());
        stdin
            .lock()
            .read_line(&mut line)
            .map(|_| line.trim_end_matches(['\n', '\r']).to_owned())
    };
    match line {
        Ok(line) if !line.is_empty() => Ok(SecretString::from(line)),
        Ok(_) => Err(usage(
            "no passphrase was given",
            "type it, or give it as the first line of stdin, or use --identity FILE",
        )),
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
            Err(RunError::Interrupted.into())
        }
        Err(source) => Err(RunError::File {
            operation: "read the passphrase from",
            path: "the terminal".into(),
            source,
        }
        .into()),
    }
}

/// Returns the settings of backups from the configuration.
pub(crate) fn backup_settings(config: &Config) -> BackupSettings {
    BackupSettings {
        split_bytes: config.split_size.bytes(),
        compression: match config.send.compression {
            config::Compression::None => Compression::None,
            config::Compression::Zstd { level, long } => Compression::Zstd { level, long },
        },
        raw: config.send.raw,
        compressed: config.send.compressed,
        embedded: config.send.embedded,
        source: config.snapshots.source.clone(),
        snapshot_prefix: config.snapshots.prefix.clone(),
        lifecycle: lifecycle_rules(config),
        state_dir: config.state_dir.clone(),
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        restart: false,
        window: config.pace.window,
        until: config
            .pace
            .max_runtime
            .and_then(|limit| Timestamp::now().checked_add(limit.duration()).ok()),
    }
}

fn lifecycle_rules(config: &Config) -> LifecycleRules {
    let rules = &config.backup_lifecycle;
    LifecycleRules {
        incrementals_percent_max: rules.full_when_incrementals_exceed.0,
        // The conversion cannot fail: an age is at most a hundred years.
        full_age_max: rules
            .full_every
            .and_then(|age| age.duration().try_into().ok()),
        incrementals_max: rules.max_incrementals,
        auto_full_bytes_max: rules.auto_full_max.bytes(),
    }
}

pub(crate) fn usage(what: &str, hint: &str) -> Failure {
    Failure::Usage {
        what: what.to_owned(),
        hint: hint.to_owned(),
    }
}
