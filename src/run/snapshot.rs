//! Taking snapshots: one atomic call a pool, each snapshot marked as ours.

use super::RunError;
use crate::model::{DatasetName, Guid, SnapshotName};
use crate::zfs::{Dataset, Snapshot, Zfs, ZfsErrno, ZfsError};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;

/// The user property that marks a snapshot as ours: the guids of the datasets that were snapshotted together.
/// A snapshot is ours only if its own dataset's guid is in it, so that a copy replicated elsewhere is not.
pub const ORIGIN_PROPERTY: &str = "zfs-backup:origin";

/// ZFS keeps user property values up to 8 KiB; a guid takes 17 bytes of it.
const GUIDS_PER_PROPERTY: usize = 400;

/// Whether this tool took the snapshot, of this dataset.
pub fn is_own(snapshot: &Snapshot, dataset_guid: Guid) -> bool {
    let own = dataset_guid.to_string();
    let is_ours = |name: &str| {
        let rest = name.strip_prefix(ORIGIN_PROPERTY);
        rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok()))
    };
    let marks = snapshot.user_properties.iter().filter(|(name, _)| is_ours(name));
    marks.flat_map(|(_, value)| value.split(' ')).any(|guid| guid == own)
}

/// Takes one snapshot of each dataset, atomically within each pool. Returns the names, in the order given.
///
/// # Errors
/// [`RunError::NoDataset`] before anything is taken; [`RunError::Zfs`] naming each dataset that refused, and then no
/// snapshot of that pool was taken.
pub fn take_snapshots(
    zfs: &dyn Zfs,
    datasets: &[DatasetName],
    prefix: &str,
    now: Timestamp,
) -> Result<Vec<SnapshotName>, RunError> {
    let datasets = datasets.iter().map(|name| find_dataset(zfs, name)).collect::<Result<Vec<_>, _>>()?;
    let time = now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut taken = Vec::new();
    for pool in pools(&datasets) {
        let members: Vec<&Dataset> = datasets.iter().filter(|dataset| dataset.name.pool() == pool).collect();
        taken.extend(take_in_pool(zfs, &members, prefix, &time)?);
    }
    Ok(taken)
}

fn pools(datasets: &[Dataset]) -> Vec<&str> {
    let mut pools: Vec<&str> = datasets.iter().map(|dataset| dataset.name.pool()).collect();
    pools.sort_unstable();
    pools.dedup();
    pools
}

fn take_in_pool(zfs: &dyn Zfs, members: &[&Dataset], prefix: &str, time: &str) -> Result<Vec<SnapshotName>, RunError> {
    let properties = origin_properties(members);
    // Two runs within a second want the same name: the later one gets a suffix.
    for suffix in 0..100 {
        let short = if suffix == 0 { format!("{prefix}{time}") } else { format!("{prefix}{time}-{suffix}") };
        let names = members.iter().map(|dataset| dataset.name.snapshot(&short)).collect::<Result<Vec<_>, _>>();
        let names = names.map_err(|error| RunError::refused(error.to_string(), "make main.snapshot_prefix shorter"))?;
        match zfs.take_snapshots(&names, &properties) {
            Ok(()) => return Ok(names),
            Err(error) if is_taken(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(RunError::refused(format!("a hundred snapshots named {prefix}{time} exist already"), "wait a second"))
}

fn is_taken(error: &ZfsError) -> bool {
    match error {
        ZfsError::Several { failures, .. } => failures.iter().all(|(_, errno)| *errno == ZfsErrno::EXISTS),
        other => other.errno() == Some(ZfsErrno::EXISTS),
    }
}

fn origin_properties(members: &[&Dataset]) -> BTreeMap<String, String> {
    let guids: Vec<String> = members.iter().map(|dataset| dataset.guid.to_string()).collect();
    let name =
        |number: usize| if number == 0 { ORIGIN_PROPERTY.to_owned() } else { format!("{ORIGIN_PROPERTY}-{number}") };
    guids.chunks(GUIDS_PER_PROPERTY).enumerate().map(|(number, guids)| (name(number), guids.join(" "))).collect()
}

/// The dataset, or an error that names one with a similar name.
///
/// # Errors
/// [`RunError::NoDataset`]; [`RunError::Zfs`] when it could not be found out.
pub fn find_dataset(zfs: &dyn Zfs, name: &DatasetName) -> Result<Dataset, RunError> {
    if let Some(dataset) = zfs.dataset(name)? {
        return Ok(dataset);
    }
    // Siblings are only looked at for the hint; a failure there must not hide the answer.
    let siblings = name.parent().and_then(|parent| zfs.children(&parent).ok()).unwrap_or_default();
    let distance = |other: &Dataset| strsim::damerau_levenshtein(other.name.as_str(), name.as_str());
    let similar = siblings.iter().min_by_key(|other| distance(other)).filter(|other| distance(other) <= 3);
    Err(RunError::NoDataset { dataset: name.clone(), similar: similar.map(|dataset| dataset.name.to_string()) })
}
