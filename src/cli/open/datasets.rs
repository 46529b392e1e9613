//! The configured datasets in a store, for commands that also work without ZFS.

use crate::catalog::list_datasets;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::open::remote::open_zfs;
use crate::config::{Config, DatasetSelection};
use crate::manifest::Origin;
use crate::model::DatasetName;
use crate::run::pool::select::{Selected, match_stored, select_datasets};
use crate::run::{RunError, error_chain};
use crate::store::StoreRead;
use crate::zfs::ZfsRead;

/// A dataset with both of its names.
#[derive(Debug, Clone)]
pub(crate) struct NamedDataset {
    /// The name in the pool, where the dataset may be gone.
    pub(crate) in_pool: DatasetName,
    /// The name in the store.
    pub(crate) stored: DatasetName,
}

/// Returns the datasets to work on, without those that failed earlier in this run.
pub(crate) async fn datasets_to_change(
    context: &Context,
    store: &dyn StoreRead,
) -> Result<Vec<NamedDataset>, Failure> {
    let selected = open_zfs().and_then(|zfs| context.datasets(&*zfs));
    let config = &context.setup()?.config;
    let mut named = by_both_names(config, store, selected).await?;
    named.retain(|named| !context.skips(&named.in_pool));
    Ok(named)
}

/// Returns the datasets of a command that only reads: a dataset that is missing in the pool is no
/// failure of the command.
pub(crate) async fn datasets_to_read(
    config: &Config,
    store: &dyn StoreRead,
) -> Result<Vec<NamedDataset>, Failure> {
    let selected = open_zfs().and_then(|zfs| {
        let selection = select_datasets(&*zfs, &config.datasets, &config.state_dir)?;
        for (dataset, error) in &selection.failed {
            if !matches!(error, RunError::NoDataset { .. }) {
                tracing::warn!(%dataset, "going by its name alone: {}", error_chain(error));
            }
        }
        Ok(selection.selected)
    });
    by_both_names(config, store, selected).await
}

/// Adds to the datasets that ZFS has those that only the configuration or the store names. ZFS is
/// read where it is available, because a renamed dataset keeps its place in the store. The
/// configured names are added, because a dataset that is gone from the pool may still have backups
/// in the store.
async fn by_both_names(
    config: &Config,
    store: &dyn StoreRead,
    selected: Result<Vec<Selected>, Failure>,
) -> Result<Vec<NamedDataset>, Failure> {
    let selected = selected.unwrap_or_else(|failure| {
        tracing::debug!(
            "going by names alone, ZFS cannot be asked: {}",
            failure.reason()
        );
        Vec::new()
    });
    let in_zfs = selected.into_iter().map(|selected| NamedDataset {
        in_pool: selected.dataset.name,
        stored: selected.stored,
    });
    let mut named: Vec<NamedDataset> = in_zfs.collect();
    for other in by_name(config, store).await? {
        let known =
            |known: &NamedDataset| known.stored == other.stored || known.in_pool == other.in_pool;
        if !named.iter().any(known) {
            named.push(other);
        }
    }
    Ok(named)
}

/// Returns the datasets by their names alone.
async fn by_name(config: &Config, store: &dyn StoreRead) -> Result<Vec<NamedDataset>, Failure> {
    let found = if config.datasets.recursive {
        list_datasets(store).await?
    } else {
        Vec::new()
    };
    let matched = match_stored(&config.datasets, &found)?;
    Ok(matched
        .into_iter()
        .map(|(in_pool, stored)| NamedDataset { in_pool, stored })
        .collect())
}

/// Returns the name in the store of a dataset of which only its name in the pool is known.
/// `store_as` is the name of the configured dataset itself, not of one below it.
pub(crate) fn configured_place(configured: &DatasetSelection, name: &DatasetName) -> DatasetName {
    let renamed = configured.store_as.as_ref();
    renamed
        .filter(|_| configured.names.contains(name))
        .unwrap_or(name)
        .clone()
}

/// Returns the current origin of a dataset.
pub(crate) fn origin_of(zfs: &dyn ZfsRead, selected: &Selected) -> Result<Origin, RunError> {
    let pool_guid = zfs.pool_guid(selected.dataset.name.pool())?;
    Ok(Origin {
        dataset_guid: selected.dataset.guid,
        pool_guid,
    })
}
