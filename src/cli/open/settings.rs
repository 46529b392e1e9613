//! The settings of the runners, from the configuration.

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::open::keys::keys_for_pruning;
use crate::config;
use crate::config::Config;
use crate::plan::send::LifecycleRules;
use crate::run::backup::BackupSettings;
use crate::run::clock::ClockCheck;
use crate::run::prune::PruneEnv;
use crate::store::ObjectStore;
use crate::stream::seal::ChunkCompression;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Returns the settings of backups from the configuration.
pub(crate) fn backup_settings(config: &Config) -> BackupSettings {
    BackupSettings {
        split_bytes: config.split_size.bytes(),
        compression: match config.send.compression {
            config::Compression::None => ChunkCompression::None,
            config::Compression::Zstd { level, long } => ChunkCompression::Zstd { level, long },
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
        skip_unchanged: config.snapshots.skip_unchanged,
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

/// Returns the environment for deleting in this store.
pub(crate) async fn prune_env(
    context: &Context,
    store: &Arc<dyn ObjectStore>,
    clock: ClockCheck,
) -> Result<PruneEnv, Failure> {
    let setup = context.setup()?;
    let (signing, trusted) = keys_for_pruning(setup, &**store).await?;
    Ok(PruneEnv {
        store: Arc::clone(store),
        signing,
        trusted,
        state_dir: setup.config.state_dir.clone(),
        resume_days: setup.config.resume_days,
        pools: BTreeMap::new(),
        now: clock.reading.wall,
        clock,
        stop: context.stop.clone(),
    })
}
