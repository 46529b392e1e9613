//! The settings of the runners, from the configuration.

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::open::keys::keys_for_pruning;
use crate::config;
use crate::config::{Config, FullEvery};
use crate::plan::levels::{FullRule, LevelRules};
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
    // The conversion cannot fail: an age is at most a hundred years.
    let full_age_max = rules
        .full_every
        .and_then(FullEvery::age)
        .and_then(|age| age.duration().try_into().ok());
    let fulls = match (rules.full_every, full_age_max) {
        (None, _) => FullRule::Period,
        (Some(_), Some(age)) => FullRule::Age(age),
        (Some(_), None) => FullRule::Never,
    };
    LifecycleRules {
        incrementals_percent_max: rules.full_when_incrementals_exceed.0,
        full_age_max,
        incrementals_max: rules.max_incrementals,
        auto_full_bytes_max: rules.auto_full_max.bytes(),
        levels: rules.keep.map(|keep| LevelRules {
            keep,
            base: rules.level_base.unwrap_or_default(),
            fulls,
        }),
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
