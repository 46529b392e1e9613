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

/// The datasets that a configuration means by their names alone, each with its name in the pool: those configured, and
/// with `recursive` those of `found` (names in a store) that lie below. For commands that need no ZFS, and for datasets
/// that are no longer in the pool.
///
/// # Errors
/// [`RunError::Refused`] when a pattern or a name is none.
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
            let Some(below) = stored.as_str().strip_prefix(root.as_str()).filter(|below| below.starts_with('/')) else {
                continue;
            };
            let in_pool = format!("{name}{below}");
            let in_pool = in_pool
                .parse()
                .map_err(|error| RunError::refused(format!("{stored}: {error}"), "check main.store_as"))?;
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
            matched.iter().map(|(in_pool, stored)| format!("{in_pool}={stored}")).collect()
        };
        assert_eq!(stored(&selection(false, None)), ["tank/a=tank/a", "tank/a/b=tank/a/b"]);
        assert_eq!(stored(&selection(true, None)), ["tank/a=tank/a", "tank/a/b=tank/a/b"]);
        let renamed = DatasetSelection { names: names(&["pool/x"]), ..selection(true, Some("tank/a")) };
        assert_eq!(stored(&renamed), ["pool/x=tank/a", "pool/x/b=tank/a/b"]);
    }
}
