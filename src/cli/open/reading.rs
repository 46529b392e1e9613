//! The stores of commands that read, and the keys that open or verify what is in them. `restore` and
//! `drill` read several stores, the nearest first.

use crate::cli::args::{From, Source};
use crate::cli::context::{Context, Setup};
use crate::cli::failure::{Failure, usage};
use crate::cli::open::access::Access;
use crate::cli::open::keys::{configured_passphrase, signing_side, verify_keys};
use crate::cli::open::remote::{StoreState, open_dir};
use crate::cli::open::{b2, rclone, s3};
use crate::cli::screen::output::Output;
use crate::config::{InvalidValue, KeySource, Remote};
use crate::keyring::KeyFile;
use crate::run::RunError;
use crate::run::backup::StoreRole;
use crate::run::keys::{KeyCache, open_keyrings, read_lists, warn_of_newer};
use crate::sign::TrustedKeys;
use crate::store::{ObjectStore, Patience, PatientStore, StoreRead};
use age::secrecy::SecretString;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The number of bytes that are read from a folder at once.
const PART_BYTES: usize = 8 << 20;

/// The store of a reading command.
pub(crate) struct ReadSide<'a> {
    pub(crate) store: Arc<dyn StoreRead>,
    /// The configuration of this host; `None` with `--remote`.
    pub(crate) setup: Option<&'a Setup>,
}

/// Opens the store of a reading command: `--remote`, the intermediate directory, or the configured
/// remote.
pub(crate) async fn open_for_reading<'a>(
    context: &'a Context,
    source: &Source,
    intermediate: bool,
) -> Result<ReadSide<'a>, Failure> {
    if let Some(url) = &source.remote {
        return Ok(ReadSide {
            store: open_named("--remote", url, context.patience_with_named_store()).await?,
            setup: None,
        });
    }
    let setup = context.setup()?;
    open_configured(setup, setup.role(intermediate)).await
}

/// Opens a configured store for a reading command.
pub(crate) async fn open_configured(
    setup: &Setup,
    role: StoreRole,
) -> Result<ReadSide<'_>, Failure> {
    Ok(ReadSide {
        store: setup.open(role, Access::Read).await?,
        setup: Some(setup),
    })
}

/// Opens a store that an option names by its URL, with the credentials of the environment.
pub(crate) async fn open_named(
    option: &str,
    url: &str,
    patience: Arc<Patience>,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let remote: Remote = url.parse().map_err(|error: InvalidValue| {
        usage(
            &format!("{option}: {error}"),
            "s3:bucket/prefix, b2:bucket/prefix, file:/dir or rclone:REMOTE:PATH",
        )
    })?;
    let store = match &remote {
        Remote::S3 { bucket, prefix } => s3::open_bare(bucket, prefix, &patience).await?,
        Remote::B2 { bucket, prefix } => b2::open_bare(bucket, prefix, &patience).await?,
        Remote::File { dir } => return open_dir(dir, PART_BYTES),
        Remote::Rclone { remote, path } => rclone::open_bare(remote, path, &patience).await?,
    };
    Ok(Arc::new(PatientStore::new(store, patience)))
}

/// Returns the keys that a reading command trusts: from the key file, the keys cached on this host,
/// the configuration, or the keyring that the passphrase opens. Asks for a passphrase only when no
/// other source exists.
pub(crate) async fn trusted_keys(
    side: &ReadSide<'_>,
    source: &Source,
) -> Result<TrustedKeys, Failure> {
    if source.identity.is_none()
        && let Some(setup) = side.setup
    {
        let config = &setup.config;
        if let KeySource::Recipients {
            signing_key_file, ..
        } = &config.keys
        {
            return Ok(signing_side(signing_key_file, setup)?.1);
        }
        if let Some(mut cached) = KeyCache::new(&config.state_dir).load()? {
            cached.trusted.add_all(verify_keys(config));
            return Ok(cached.trusted);
        }
    }
    Ok(key_file(side, source).await?.trusted)
}

/// Returns the keys that open backups: from the key file, or from the keyring with the passphrase.
pub(crate) async fn key_file(side: &ReadSide<'_>, source: &Source) -> Result<KeyFile, Failure> {
    let configured = side
        .setup
        .map(|setup| verify_keys(&setup.config))
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

fn passphrase(side: &ReadSide<'_>) -> Result<SecretString, Failure> {
    if let Some(setup) = side.setup {
        return configured_passphrase(setup);
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

/// The stores to read, and the keys and configuration for them.
pub(crate) struct ReadPlaces<'a> {
    /// The stores, the nearest first; never empty.
    pub(crate) stores: Vec<Arc<dyn StoreRead>>,
    /// The keys that open the backups.
    pub(crate) keys: KeyFile,
    /// The configuration of this host; `None` with `--remote`.
    pub(crate) setup: Option<&'a Setup>,
}

/// Opens the requested stores: one, or all that the configuration names. If one of two is
/// unreachable, this is reported, and the other one is used. `typed` asks for the passphrase, even if the
/// configuration has it.
pub(crate) async fn open_places<'a>(
    context: &'a Context,
    source: &Source,
    from: Option<&From>,
    typed: bool,
) -> Result<ReadPlaces<'a>, Failure> {
    if source.remote.is_some() {
        let side = open_for_reading(context, source, false).await?;
        let keys = key_file(&side, source).await?;
        return Ok(ReadPlaces {
            stores: vec![side.store],
            keys,
            setup: None,
        });
    }
    let setup = context.setup()?;
    let stores: Vec<Arc<dyn StoreRead>> = match from {
        Some(From::Intermediate) => {
            vec![setup.open(StoreRole::Intermediate, Access::Restore).await?]
        }
        Some(From::Remote) => vec![setup.open(StoreRole::Remote, Access::Restore).await?],
        Some(From::Folder(folder)) => vec![open_folder(folder)?],
        None => open_nearest_first(setup, &context.output).await?,
    };
    let mut first = None;
    for store in &stores {
        let side = ReadSide {
            store: Arc::clone(store),
            setup: (!typed).then_some(setup),
        };
        match key_file(&side, source).await {
            Ok(keys) => {
                return Ok(ReadPlaces {
                    stores,
                    keys,
                    setup: Some(setup),
                });
            }
            Err(failure) => first = first.or(Some(failure)),
        }
    }
    Err(first.unwrap_or_else(|| {
        usage(
            "no store is configured",
            "set `remote` or `intermediate_basedir`",
        )
    }))
}

async fn open_nearest_first(
    setup: &Setup,
    output: &Output,
) -> Result<Vec<Arc<dyn StoreRead>>, Failure> {
    let mut stores: Vec<Arc<dyn StoreRead>> = Vec::new();
    let role = StoreRole::Intermediate;
    match setup.open_if_reachable(role, Access::Restore).await? {
        StoreState::None => {}
        StoreState::Open(store) => stores.push(store),
        StoreState::Unreachable(failure) if setup.config.remote.is_none() => return Err(failure),
        StoreState::Unreachable(failure) => {
            output.always(&format!(
                "the intermediate directory cannot be read, and may have something newer than the remote: {}",
                failure.reason()
            ));
        }
    }
    let role = StoreRole::Remote;
    match setup.open_if_reachable(role, Access::Restore).await? {
        StoreState::None => {}
        StoreState::Open(remote) => stores.push(remote),
        // Nothing else has the backups, so open the remote again and wait for it.
        StoreState::Unreachable(_) if stores.is_empty() => {
            stores.push(setup.open(role, Access::Restore).await?);
        }
        StoreState::Unreachable(failure) => {
            output.always(&format!(
                "the remote cannot be reached, and may have something newer: {}",
                failure.reason()
            ));
        }
    }
    Ok(stores)
}

fn open_folder(folder: &Path) -> Result<Arc<dyn ObjectStore>, Failure> {
    let root = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    open_dir(&root, PART_BYTES)
}
