//! Selects the datasets that a configuration means, with the name of each in the store.

use super::snapshot::find_dataset;
use crate::config::DatasetSelection;
use crate::model::DatasetName;
use crate::run::RunError;
use crate::run::restore::{RESTORING_PROPERTY, SCRATCH_PROPERTY, is_makeshift};
use crate::state::stored_name::recorded_place;
use crate::zfs::{Dataset, Property, PropertyValue, ZfsRead};
use globset::{Glob, GlobSet, GlobSetBuilder};
use std::path::Path;

/// The properties that mark datasets which must not be backed up.
const MARKS: [&str; 2] = [RESTORING_PROPERTY, SCRATCH_PROPERTY];

/// The user property that decides whether a dataset is backed up: `on` or `off`. Datasets below
/// inherit it.
pub const BACKUP_PROPERTY: &str = "zfs-backup:backup";

/// A dataset to back up.
#[derive(Debug, Clone)]
pub struct Selected {
    /// The dataset as it is now.
    pub dataset: Dataset,
    /// The dataset's name in the store.
    pub stored: DatasetName,
}

/// The datasets of a configuration, each with its own result: a missing dataset does not hide the
/// others.
#[derive(Debug, Default)]
pub struct Selection {
    /// The datasets to work on, in order.
    pub selected: Vec<Selected>,
    /// The datasets that cannot be worked on, and why.
    pub failed: Vec<(DatasetName, RunError)>,
    /// Scratch datasets of drills and half restored datasets below a configured one. They are left
    /// out, with everything below them.
    pub left_out: Vec<LeftOut>,
    /// Datasets with [`BACKUP_PROPERTY`] `off`.
    pub turned_off: Vec<LeftOut>,
}

/// A dataset below a configured one that is not backed up.
#[derive(Debug, Clone)]
pub struct LeftOut {
    /// The dataset as it is now.
    pub dataset: Dataset,
    /// The reason for leaving it out, in one sentence.
    pub why: String,
    /// The dataset's name in the store, if this host backed it up before.
    pub recorded: Option<DatasetName>,
}

/// Selects the configured datasets, with `recursive` their descendants too, in order of the
/// configuration, parents before children, without repeats. A dataset with [`BACKUP_PROPERTY`]
/// `off` is left out, and without the property one that `exclude` matches.
///
/// The name in the store is `store_as`, else the name recorded in `state_dir` at the first use,
/// else the place below the configured ancestor's, else the dataset's own name. A scratch dataset
/// of a drill or a half restored dataset is never selected, nor is anything below it. If such a
/// dataset is configured by its name, it has failed.
///
/// # Errors
/// [`RunError::Refused`] when `exclude` is not a valid pattern; failures of single datasets are in
/// [`Selection::failed`].
pub fn select_datasets(
    zfs: &dyn ZfsRead,
    configured: &DatasetSelection,
    state_dir: &Path,
) -> Result<Selection, RunError> {
    let excluded = patterns(&configured.exclude)?;
    let mut selection = Selection::default();
    for name in &configured.names {
        if let Err(error) =
            select_below(zfs, configured, state_dir, name, &excluded, &mut selection)
        {
            selection.failed.push((name.clone(), error));
        }
    }
    refuse_shared_places(&mut selection);
    Ok(selection)
}

fn select_below(
    zfs: &dyn ZfsRead,
    configured: &DatasetSelection,
    state_dir: &Path,
    name: &DatasetName,
    excluded: &GlobSet,
    selection: &mut Selection,
) -> Result<(), RunError> {
    let root = find_dataset(zfs, name)?;
    refuse_makeshift(zfs, &root)?;
    let root_stored = match &configured.store_as {
        Some(store_as) => store_as.clone(),
        None => recorded_place(state_dir, root.guid)?.unwrap_or_else(|| name.clone()),
    };
    let mut waiting = vec![root];
    while let Some(dataset) = waiting.pop() {
        if let Some(why) = is_makeshift(&dataset) {
            if !selection
                .left_out
                .iter()
                .any(|other| other.dataset.name == dataset.name)
            {
                let recorded = recorded_place(state_dir, dataset.guid)?;
                selection.left_out.push(LeftOut {
                    dataset,
                    why,
                    recorded,
                });
            }
            continue;
        }
        if configured.recursive {
            let mut children = zfs.children(&dataset.name)?;
            children.reverse();
            waiting.extend(children);
        }
        let known = selection
            .selected
            .iter()
            .any(|other| other.dataset.name == dataset.name);
        if known {
            continue;
        }
        match wanted_by_property(&dataset) {
            Err(error) => {
                selection.failed.push((dataset.name, error));
                continue;
            }
            Ok(Some(false)) => {
                selection.turned_off.push(LeftOut {
                    why: format!("{} has {BACKUP_PROPERTY}=off", dataset.name),
                    recorded: recorded_place(state_dir, dataset.guid)?,
                    dataset,
                });
                continue;
            }
            Ok(None) if excluded.is_match(dataset.name.as_str()) => continue,
            Ok(None | Some(true)) => {}
        }
        let recorded = match &configured.store_as {
            Some(_) => Ok(None),
            None => recorded_place(state_dir, dataset.guid).map_err(RunError::from),
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

/// Returns what [`BACKUP_PROPERTY`] says, set on the dataset or inherited; `None` without it.
fn wanted_by_property(dataset: &Dataset) -> Result<Option<bool>, RunError> {
    let text = match dataset.properties.get(BACKUP_PROPERTY) {
        None => return Ok(None),
        Some(property) => match &property.value {
            PropertyValue::Text(text) => text.clone(),
            PropertyValue::Number(number) => number.to_string(),
        },
    };
    match text.as_str() {
        "on" => Ok(Some(true)),
        "off" => Ok(Some(false)),
        _ => {
            let quoted = shell_words::quote(dataset.name.as_str());
            Err(RunError::refused(
                format!(
                    "{} has {BACKUP_PROPERTY}={text}; expected on or off",
                    dataset.name
                ),
                format!("zfs set {BACKUP_PROPERTY}=on {quoted}"),
            ))
        }
    }
}

/// Refuses a configured dataset that is a drill's scratch dataset or half restored, or is below
/// one.
fn refuse_makeshift(zfs: &dyn ZfsRead, dataset: &Dataset) -> Result<(), RunError> {
    let mut why = is_makeshift(dataset);
    for property in MARKS {
        // An inherited mark names the ancestor on which it was set. The mark counts only if it was
        // set locally there.
        let source = dataset
            .properties
            .get(property)
            .and_then(|Property { source, .. }| source.as_deref());
        let above = source
            .and_then(|source| source.parse::<DatasetName>().ok())
            .filter(|above| *above != dataset.name);
        if let (None, Some(above)) = (&why, above) {
            why = zfs.dataset(&above)?.as_ref().and_then(is_makeshift);
        }
    }
    let Some(why) = why else { return Ok(()) };
    Err(RunError::refused(
        format!("{} is not backed up: {why}", dataset.name),
        "end the restore or the drill, or name another dataset in main.zfs_fs; `zfs-backup holds list` shows what is left",
    ))
}

fn patterns(exclude: &[String]) -> Result<GlobSet, RunError> {
    let wrong = |error: globset::Error| RunError::refused(error.to_string(), "check main.exclude");
    let mut set = GlobSetBuilder::new();
    for pattern in exclude {
        set.add(Glob::new(pattern).map_err(wrong)?);
    }
    set.build().map_err(wrong)
}

/// Returns the name in the store of a dataset below a configured one: at the same place below the
/// configured one's name.
fn below(
    root_stored: &DatasetName,
    root: &DatasetName,
    dataset: &DatasetName,
) -> Result<DatasetName, RunError> {
    let rest = dataset
        .as_str()
        .strip_prefix(root.as_str())
        .unwrap_or_default();
    let name = format!("{root_stored}{rest}");
    name.parse().map_err(|error| {
        RunError::refused(format!("{dataset}: {error}"), "make main.store_as shorter")
    })
}

/// Refuses a new dataset under the old name of a renamed one, because their backups would mix. Of
/// the datasets that share a place, the owner is the one whose name in the pool differs from the
/// place: it was backed up there before its rename.
fn refuse_shared_places(selection: &mut Selection) {
    let all = std::mem::take(&mut selection.selected);
    let owner = |stored: &DatasetName| {
        let mut sharing = all.iter().filter(|selected| selected.stored == *stored);
        let first = sharing.clone().next().map(|selected| &selected.dataset);
        sharing
            .find(|selected| selected.dataset.name != *stored)
            .map(|selected| &selected.dataset)
            .or(first)
    };
    for selected in &all {
        match owner(&selected.stored).filter(|owner| owner.guid != selected.dataset.guid) {
            None => selection.selected.push(selected.clone()),
            Some(owner) => {
                let name = &selected.dataset.name;
                let stored = &selected.stored;
                let what = format!(
                    "{name} would be stored under {stored}, where {} has its backups",
                    owner.name
                );
                let hint = "back it up with a configuration of its own that sets main.store_as to another name";
                selection
                    .failed
                    .push((name.clone(), RunError::refused(what, hint)));
            }
        }
    }
}

/// Matches datasets by their names alone, without ZFS. Returns the name in the pool and in the
/// store of each configured dataset and, with `recursive`, of those in `found` (names in a store)
/// that are below one. For commands that need no ZFS, and for datasets that are no longer in the
/// pool.
///
/// # Errors
/// [`RunError::Refused`] when a pattern or a name is invalid.
pub fn match_stored(
    selection: &DatasetSelection,
    found: &[DatasetName],
) -> Result<Vec<(DatasetName, DatasetName)>, RunError> {
    let excluded = patterns(&selection.exclude)?;
    let mut matched: Vec<(DatasetName, DatasetName)> = Vec::new();
    for name in &selection.names {
        let root = selection.store_as.as_ref().unwrap_or(name);
        let mut names = vec![(name.clone(), root.clone())];
        for stored in found.iter().filter(|_| selection.recursive) {
            let Some(below) = stored
                .as_str()
                .strip_prefix(root.as_str())
                .filter(|below| below.starts_with('/'))
            else {
                continue;
            };
            let in_pool = format!("{name}{below}");
            let in_pool = in_pool.parse().map_err(|error| {
                RunError::refused(format!("{stored}: {error}"), "check main.store_as")
            })?;
            names.push((in_pool, stored.clone()));
        }
        names.retain(|(in_pool, _)| !excluded.is_match(in_pool.as_str()));
        names.retain(|(_, stored)| !matched.iter().any(|(_, other)| other == stored));
        matched.extend(names);
    }
    Ok(matched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_names_are_matched_without_zfs() {
        let name = |text: &str| -> DatasetName { text.parse().unwrap() };
        let names = |texts: &[&str]| texts.iter().map(|text| name(text)).collect::<Vec<_>>();
        let found = names(&["tank/a", "tank/a/b", "tank/a/scratch", "tank/ab", "other"]);
        let selection = |recursive, store_as: Option<&str>| DatasetSelection {
            names: names(&["tank/a", "tank/a/b"]),
            recursive,
            exclude: vec!["*/scratch".to_owned()],
            store_as: store_as.map(name),
        };
        let stored = |selection: &DatasetSelection| -> Vec<String> {
            let matched = match_stored(selection, &found).unwrap();
            matched
                .iter()
                .map(|(in_pool, stored)| format!("{in_pool}={stored}"))
                .collect()
        };
        assert_eq!(
            stored(&selection(false, None)),
            ["tank/a=tank/a", "tank/a/b=tank/a/b"]
        );
        assert_eq!(
            stored(&selection(true, None)),
            ["tank/a=tank/a", "tank/a/b=tank/a/b"]
        );
        let renamed = DatasetSelection {
            names: names(&["pool/x"]),
            ..selection(true, Some("tank/a"))
        };
        assert_eq!(stored(&renamed), ["pool/x=tank/a", "pool/x/b=tank/a/b"]);
    }
}
