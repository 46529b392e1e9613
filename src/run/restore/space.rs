//! Compares the bytes of a restore with the space that is left for it, before a chunk is fetched.

use super::allowed::nearest;
use super::partial_file::partial_path;
use super::{ReceiveOptions, ReceivePlan, RestoreBackup, RestoreSet, Rollback};
use crate::model::DatasetName;
use crate::plan::space::{ArrivingBytes, Fit, judge_space};
use crate::run::{RunError, error_chain};
use crate::state::dir::folder_of;
use crate::stream::record::feature;
use crate::zfs::{PropertyValue, ZfsRead};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `compression=off` as the kernel keeps it.
const COMPRESSION_OFF: u64 = 2;

/// A dataset that a restore receives.
#[derive(Clone, Copy)]
pub struct ArrivingDataset<'a> {
    /// The chain.
    pub set: &'a RestoreSet,
    /// The plan of the receive.
    pub plan: &'a ReceivePlan,
    /// The settings of the receive.
    pub options: &'a ReceiveOptions,
}

/// Judges whether these datasets fit at `target` and below it. The space that ZFS reports counts
/// all quotas. Space that cannot be read is unknown, not an error.
pub fn judge_fit(zfs: &dyn ZfsRead, target: &DatasetName, datasets: &[ArrivingDataset<'_>]) -> Fit {
    let read = || -> Result<_, RunError> {
        let name = nearest(zfs, target)?;
        let place = zfs.dataset(&name)?;
        Ok((name, place))
    };
    let (name, place) = match read() {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(
                error = error_chain(&error),
                "cannot read the space left for {target}"
            );
            return judge_space(target.as_str(), &[], None);
        }
    };
    let number = |property| place.as_ref().and_then(|place| place.number(property));
    let compression = number("compression");
    let arriving: Vec<ArrivingBytes> = datasets
        .iter()
        .map(|dataset| dataset.bytes(compression))
        .collect();
    let fit = judge_space(name.as_str(), &arriving, number("available"));
    // A rollback or a restart frees an unknown space first. A `refquota` limits what is available in
    // the dataset that has it, but not in those below it.
    let frees = |dataset: &ArrivingDataset<'_>| {
        let ReceivePlan {
            rollback, gives_up, ..
        } = dataset.plan;
        let destroys = |it: &Rollback| !it.snapshots.is_empty() || it.written_bytes != Some(0);
        rollback.as_ref().is_some_and(destroys) || *gives_up
    };
    let has_own_quota = name != *target && number("refquota").is_some_and(|bytes| bytes > 0);
    match fit {
        Fit::TooLarge(shortage) if has_own_quota || datasets.iter().any(frees) => {
            Fit::Doubtful(shortage)
        }
        fit => fit,
    }
}

impl ArrivingDataset<'_> {
    /// Returns the bytes that the receive adds: backups that the target has already add nothing,
    /// and an interrupted one only its rest.
    fn bytes(&self, inherited_compression: Option<u64>) -> ArrivingBytes {
        let chosen = self
            .options
            .properties
            .resolve(self.set.recorded_properties());
        let number = |property: &str| match chosen.get(property) {
            Some(PropertyValue::Number(number)) => Some(*number),
            _ => None,
        };
        let compression = number("compression").or(inherited_compression);
        let mut arriving = ArrivingBytes::default();
        let received_bytes = self.plan.unfinished.as_ref().map_or(0, |token| token.bytes);
        for (number, backup) in self.set.backups.iter().enumerate().skip(self.plan.skipped) {
            let mut stream_bytes = backup.manifest.stream_bytes;
            if number == self.plan.skipped {
                stream_bytes = stream_bytes.saturating_sub(received_bytes);
            }
            let sum = match is_as_on_disk(backup) || compression == Some(COMPRESSION_OFF) {
                true => &mut arriving.stream_bytes,
                false => &mut arriving.compressible_bytes,
            };
            *sum = sum.saturating_add(stream_bytes);
        }
        // `reservation` counts the data of the dataset and its snapshots, `refreservation` comes on
        // top of what a snapshot keeps.
        let beyond_data = number("reservation")
            .unwrap_or(0)
            .saturating_sub(arriving.stream_bytes)
            .saturating_sub(arriving.compressible_bytes);
        arriving.reserved_bytes = number("refreservation").unwrap_or(0).max(beyond_data);
        arriving
    }
}

/// Whether the blocks of the stream are as they lay on disk, so that no pool makes them smaller.
fn is_as_on_disk(backup: &RestoreBackup) -> bool {
    backup.manifest.send.feature_flags & (feature::COMPRESSED | feature::RAW) != 0
}

/// Judges whether the bare stream of a backup fits into the folder of a new file. The space that the
/// partial file of an interrupted restore uses counts as free.
pub fn judge_file_fit(file: &Path, backup: &RestoreBackup) -> Fit {
    let folder = folder_of(file);
    let arriving = ArrivingBytes {
        stream_bytes: backup.manifest.stream_bytes,
        ..ArrivingBytes::default()
    };
    let partial = partial_path(file, &backup.manifest.id).symlink_metadata();
    let used_bytes = partial.map_or(0, |partial| partial.blocks().saturating_mul(512));
    let free_bytes = free_bytes(folder).map(|bytes| bytes.saturating_add(used_bytes));
    let place = folder.display().to_string();
    judge_space(&place, &[arriving], free_bytes)
}

/// Returns the bytes that this user can write into a folder; `None` if its file system does not
/// tell, as some network file systems do.
fn free_bytes(folder: &Path) -> Option<u64> {
    let free = rustix::fs::statvfs(folder)
        .inspect_err(
            |error| tracing::warn!(%error, "cannot read the space left in {}", folder.display()),
        )
        .ok()?;
    (free.f_blocks > 0).then(|| free.f_bavail.saturating_mul(free.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_of_a_missing_folder_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(folder.path()).is_some_and(|bytes| bytes > 0));
        assert_eq!(free_bytes(&folder.path().join("missing")), None);
    }
}
