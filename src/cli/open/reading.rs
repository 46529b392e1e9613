//! The stores that `restore` and `drill` read, the nearest first, and the keys that open their
//! backups.

use crate::cli::args::{From, Global, Source};
use crate::cli::commands::prune;
use crate::cli::failure::Failure;
use crate::cli::open::remote::{
    ReadSide, key_file, load_config, open_dir, open_for_reading, open_intermediate,
    open_remote_for, usage,
};
use crate::cli::open::s3::Purpose;
use crate::cli::screen::output::Output;
use crate::config::{Config, Environment};
use crate::keyring::KeyFile;
use crate::store::ObjectStore;
use std::path::Path;
use std::sync::Arc;

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
    match prune::open_remote_if_any(config, env, Purpose::Restore).await? {
        prune::RemoteState::None => {}
        prune::RemoteState::Open(remote) => stores.push(remote),
        // Open the remote again, so that its own error is returned.
        prune::RemoteState::Unreachable(_) if stores.is_empty() => {
            stores.push(open_remote_for(config, env, Purpose::Restore).await?);
        }
        prune::RemoteState::Unreachable(why) => {
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
