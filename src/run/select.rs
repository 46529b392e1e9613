//! Which datasets a configuration means, and what each is called in the store.

use super::RunError;
use super::snapshot::find_dataset;
use crate::config::DatasetSelection;
use crate::model::DatasetName;
use crate::zfs::{Dataset, Zfs};
use globset::{Glob, GlobSet, GlobSetBuilder};

/// One dataset to be backed up.
#[derive(Debug, Clone)]
pub struct Selected {
    /// What it is now.
    pub dataset: Dataset,
    /// Its name in the store.
    pub stored: DatasetName,
}

/// The configured datasets, with `recursive` their descendants too, without those that `exclude` matches; in order of
/// the configuration, parents before children, none twice.
///
/// # Errors
/// [`RunError::NoDataset`] for a configured one that is not there; [`RunError::Zfs`].
pub fn select_datasets(zfs: &dyn Zfs, selection: &DatasetSelection) -> Result<Vec<Selected>, RunError> {
    let excluded = patterns(&selection.exclude)?;
    let mut selected: Vec<Selected> = Vec::new();
    for name in &selection.names {
        let mut waiting = vec![find_dataset(zfs, name)?];
        while let Some(dataset) = waiting.pop() {
            if selection.recursive {
                let mut children = zfs.children(&dataset.name)?;
                children.reverse();
                waiting.extend(children);
            }
            let known = selected.iter().any(|other| other.dataset.name == dataset.name);
            if !known && !excluded.is_match(dataset.name.as_str()) {
                let stored = stored_name(selection, name, &dataset.name)?;
                selected.push(Selected { dataset, stored });
            }
        }
    }
    Ok(selected)
}

fn patterns(exclude: &[String]) -> Result<GlobSet, RunError> {
    let wrong = |error: globset::Error| RunError::refused(error.to_string(), "check main.exclude");
    let mut set = GlobSetBuilder::new();
    for pattern in exclude {
        set.add(Glob::new(pattern).map_err(wrong)?);
    }
    set.build().map_err(wrong)
}

/// `store_as` stands for the configured dataset; what is below it keeps its place below.
fn stored_name(
    selection: &DatasetSelection,
    root: &DatasetName,
    dataset: &DatasetName,
) -> Result<DatasetName, RunError> {
    let Some(store_as) = &selection.store_as else { return Ok(dataset.clone()) };
    let below = dataset.as_str().strip_prefix(root.as_str()).unwrap_or_default();
    let name = format!("{store_as}{below}");
    name.parse().map_err(|error| RunError::refused(format!("{dataset}: {error}"), "make main.store_as shorter"))
}
