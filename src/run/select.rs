//! Which datasets a configuration means, and what each is called in the store.

use super::RunError;
use super::place::recorded_place;
use super::snapshot::find_dataset;
use crate::config::DatasetSelection;
use crate::model::DatasetName;
use crate::zfs::{Dataset, Zfs};
use globset::{Glob, GlobSet, GlobSetBuilder};
use std::path::Path;

/// One dataset to be backed up.
#[derive(Debug, Clone)]
pub struct Selected {
    /// What it is now.
    pub dataset: Dataset,
    /// Its name in the store.
    pub stored: DatasetName,
}

/// What a configuration means, dataset by dataset: one that is missing does not hide the others.
#[derive(Debug, Default)]
pub struct Selection {
    /// Those to work on, in order.
    pub selected: Vec<Selected>,
    /// Those that cannot be worked on, and why.
    pub failed: Vec<(DatasetName, RunError)>,
}

/// The configured datasets, with `recursive` their descendants too, without those that `exclude` matches; in order of
/// the configuration, parents before children, none twice.
///
/// A dataset is stored under `store_as`, else under the name recorded in `state_dir` at its first use, else below its
/// configured ancestor's place, else under its own name.
///
/// # Errors
/// [`RunError::Refused`] when `exclude` is no pattern; what fails for one dataset is in [`Selection::failed`].
pub fn select_datasets(zfs: &dyn Zfs, configured: &DatasetSelection, state_dir: &Path) -> Result<Selection, RunError> {
    let excluded = patterns(&configured.exclude)?;
    let mut selection = Selection::default();
    for name in &configured.names {
        if let Err(error) = select_below(zfs, configured, state_dir, name, &excluded, &mut selection) {
            selection.failed.push((name.clone(), error));
        }
    }
    refuse_shared_places(&mut selection);
    Ok(selection)
}

fn select_below(
    zfs: &dyn Zfs,
    configured: &DatasetSelection,
    state_dir: &Path,
    name: &DatasetName,
    excluded: &GlobSet,
    selection: &mut Selection,
) -> Result<(), RunError> {
    let root = find_dataset(zfs, name)?;
    let root_stored = match &configured.store_as {
        Some(store_as) => store_as.clone(),
        None => recorded_place(state_dir, root.guid)?.unwrap_or_else(|| name.clone()),
    };
    let mut waiting = vec![root];
    while let Some(dataset) = waiting.pop() {
        if configured.recursive {
            let mut children = zfs.children(&dataset.name)?;
            children.reverse();
            waiting.extend(children);
        }
        let known = selection.selected.iter().any(|other| other.dataset.name == dataset.name);
        if known || excluded.is_match(dataset.name.as_str()) {
            continue;
        }
        let recorded = match &configured.store_as {
            Some(_) => Ok(None),
            None => recorded_place(state_dir, dataset.guid),
        };
        let stored = recorded.and_then(|recorded| match recorded {
            Some(recorded) => Ok(recorded),
            None => below(&root_stored, name, &dataset.name),
        });
        match stored {
            Ok(stored) => selection.selected.push(Selected { dataset, stored }),
            Err(error) => selection.failed.push((dataset.name, error)),
        }
    }
    Ok(())
}

fn patterns(exclude: &[String]) -> Result<GlobSet, RunError> {
    let wrong = |error: globset::Error| RunError::refused(error.to_string(), "check main.exclude");
    let mut set = GlobSetBuilder::new();
    for pattern in exclude {
        set.add(Glob::new(pattern).map_err(wrong)?);
    }
    set.build().map_err(wrong)
}

/// What is below a configured dataset keeps its place below.
fn below(root_stored: &DatasetName, root: &DatasetName, dataset: &DatasetName) -> Result<DatasetName, RunError> {
    let rest = dataset.as_str().strip_prefix(root.as_str()).unwrap_or_default();
    let name = format!("{root_stored}{rest}");
    name.parse().map_err(|error| RunError::refused(format!("{dataset}: {error}"), "make main.store_as shorter"))
}

/// A new dataset under the old name of a renamed one would mix its backups with that one's. Whose name in the pool is
/// another than its place has been there before.
fn refuse_shared_places(selection: &mut Selection) {
    let all = std::mem::take(&mut selection.selected);
    let owner = |stored: &DatasetName| {
        let mut sharing = all.iter().filter(|selected| selected.stored == *stored);
        let first = sharing.clone().next().map(|selected| &selected.dataset);
        sharing.find(|selected| selected.dataset.name != *stored).map(|selected| &selected.dataset).or(first)
    };
    for selected in &all {
        match owner(&selected.stored).filter(|owner| owner.guid != selected.dataset.guid) {
            None => selection.selected.push(selected.clone()),
            Some(owner) => {
                let (name, stored) = (&selected.dataset.name, &selected.stored);
                let what = format!("{name} would be stored under {stored}, where {} has its backups", owner.name);
                let hint = "back it up with a configuration of its own that sets main.store_as to another name";
                selection.failed.push((name.clone(), RunError::refused(what, hint)));
            }
        }
    }
}
