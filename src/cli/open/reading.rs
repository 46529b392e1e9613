//! The stores that `restore` and `drill` read, the nearest first, and the keys that open their
//! backups.

use crate::cli::args::{From, Global, Source};
use crate::cli::context::load_config;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::keys::{configured_passphrase, signing_side, verify_keys};
use crate::cli::open::remote::{
    RemoteState, open_dir, open_intermediate, open_remote, open_remote_for, open_remote_if_any,
    open_store,
};
use crate::cli::open::s3::Purpose;
use crate::cli::screen::output::Output;
use crate::config::{self, Config, Environment, KeySource, Remote};
use crate::keyring::KeyFile;
use crate::run::RunError;
use crate::run::keys::{KeyCache, open_keyrings, read_lists, warn_of_newer};
use crate::sign::TrustedKeys;
use crate::store::{ObjectStore, S3Settings};
use age::secrecy::SecretString;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// The number of bytes that are read from a folder at once.
const PART_BYTES: usize = 8 << 20;

/// The stores to read, and the keys and configuration for them.
pub(crate) struct Places {
    /// The stores, the nearest first; never empty.
    pub(crate) stores: Vec<Arc<dyn ObjectStore>>,
    /// The keys that open the backups.
    pub(crate) keys: KeyFile,
    /// The configuration of this host; `None` with `--remote`.
    pub(crate) config: Option<Arc<(Config, Environment)>>,
}

/// Opens the requested stores: one, or all that the configuration names. An unreachable remote is
/// reported, and the intermediate directory is used. `typed` asks for the passphrase, even if the
/// configuration has it.
pub(crate) async fn open_places(
    global: &Global,
    source: &Source,
    from: Option<&From>,
    typed: bool,
    output: &Output,
) -> Result<Places, Failure> {
    if source.remote.is_some() {
        let side = open_for_reading(global, source, false, output).await?;
        let keys = key_file(&side, source).await?;
        return Ok(Places {
            stores: vec![side.store],
            keys,
            config: None,
        });
    }
    let config = Arc::new(load_config(global, output)?);
    let (settings, env) = &*config;
    let stores = match from {
        Some(From::Intermediate) => vec![open_intermediate(settings, Purpose::Restore).await?],
        Some(From::Remote) => vec![open_remote_for(settings, env, Purpose::Restore).await?],
        Some(From::Folder(folder)) => vec![open_folder(folder)?],
        None => open_all(settings, env, output).await?,
    };
    let mut first = None;
    for store in &stores {
        let known = (!typed).then(|| (settings.clone(), env.clone()));
        match key_file(
            &ReadSide {
                store: Arc::clone(store),
                config: known,
            },
            source,
        )
        .await
        {
            Ok(keys) => {
                return Ok(Places {
                    stores,
                    keys,
                    config: Some(config),
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

async fn open_all(
    config: &Config,
    env: &Environment,
    output: &Output,
) -> Result<Vec<Arc<dyn ObjectStore>>, Failure> {
    let mut stores = Vec::new();
    if config.intermediate.is_some() {
        stores.push(open_intermediate(config, Purpose::Restore).await?);
    }
    match open_remote_if_any(config, env, Purpose::Restore).await? {
        RemoteState::None => {}
        RemoteState::Open(remote) => stores.push(remote),
        // Open the remote again, so that its own error is returned.
        RemoteState::Unreachable(_) if stores.is_empty() => {
            stores.push(open_remote_for(config, env, Purpose::Restore).await?);
        }
        RemoteState::Unreachable(why) => {
            output.always(&format!(
                "the remote cannot be reached, and may have something newer: {why}"
            ));
        }
    }
    Ok(stores)
}

fn open_folder(folder: &Path) -> Result<Arc<dyn ObjectStore>, Failure> {
    let root = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    open_dir(&root, PART_BYTES)
}
