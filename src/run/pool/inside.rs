//! Refuses an intermediate directory inside a dataset that is backed up: every backup would contain
//! the previous one.

use crate::model::DatasetName;
use crate::run::RunError;
use crate::zfs::{Mount, mounts};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The folder in which the kernel names the devices of volumes.
const VOLUMES: &str = "/dev/zvol";

/// Refuses a folder that is in one of these datasets, or in a file system on one of these volumes.
///
/// # Errors
/// [`RunError::Refused`] naming both; [`RunError::File`] when the device of the folder could not be
/// read.
pub fn refuse_inside<'a>(
    folder: &Path,
    datasets: impl IntoIterator<Item = &'a DatasetName>,
) -> Result<(), RunError> {
    let failed = |source| RunError::File {
        operation: "read",
        path: folder.display().to_string(),
        source,
    };
    let device = std::fs::metadata(folder).map_err(failed)?.dev();
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    let Some(mount) = mounts()?.into_iter().find(|mount| mount.device == device) else {
        // The device of some file systems is shown by no mount; ZFS is not one of these.
        return Ok(());
    };
    let inside = datasets
        .into_iter()
        .find(|dataset| lies_in(&mount, dataset));
    inside.map_or(Ok(()), |dataset| {
        Err(RunError::refused(
            format!(
                "{} lies inside {dataset}, which is backed up: each backup would contain the \
                 earlier ones",
                folder.display()
            ),
            "put main.intermediate_basedir into a dataset of its own that is not backed up, or exclude that dataset",
        ))
    })
}

fn lies_in(mount: &Mount, dataset: &DatasetName) -> bool {
    if mount.file_system == "zfs" {
        return mount.source == dataset.as_str();
    }
    // For a file system on a volume, compare the device or its partition. A source that is not a
    // device has no path.
    let volume = std::fs::canonicalize(Path::new(VOLUMES).join(dataset.as_str()));
    match (volume, std::fs::canonicalize(&mount.source)) {
        (Ok(volume), Ok(source)) => is_device_or_partition(&source, &volume),
        _ => false,
    }
}

/// Matches `/dev/zd16` and `/dev/zd16p1`, but not `/dev/zd160`.
fn is_device_or_partition(source: &Path, device: &Path) -> bool {
    let source = source.to_string_lossy();
    let device = device.to_string_lossy();
    let rest = source.strip_prefix(&*device);
    rest.is_some_and(|rest| {
        rest.is_empty()
            || rest
                .strip_prefix('p')
                .is_some_and(|number| number.parse::<u32>().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(file_system: &str, source: &str) -> Mount {
        let (device, place) = ((0, 0), "/".into());
        Mount {
            device,
            file_system: file_system.into(),
            source: source.into(),
            place,
            readonly: false,
        }
    }

    #[test]
    fn a_folder_is_in_the_dataset_that_is_mounted_there() {
        let (dataset, parent): (DatasetName, DatasetName) =
            ("tank/a b".parse().unwrap(), "tank".parse().unwrap());
        assert!(lies_in(&mount("zfs", "tank/a b"), &dataset));
        assert!(
            !lies_in(&mount("zfs", "tank/a b/child"), &dataset),
            "a child has its own snapshots"
        );
        assert!(!lies_in(&mount("zfs", "tank/a b"), &parent));
        assert!(!lies_in(&mount("ext4", "tank/a b"), &dataset));
    }

    #[test]
    fn partition_device_belongs_to_its_volume() {
        let device = Path::new("/dev/zd16");
        for (source, expected) in [
            ("/dev/zd16", true),
            ("/dev/zd16p1", true),
            ("/dev/zd160", false),
            ("/dev/zd16p", false),
            ("/dev/sda", false),
        ] {
            assert_eq!(
                is_device_or_partition(Path::new(source), device),
                expected,
                "{source}"
            );
        }
    }

    #[test]
    fn mount_table_of_this_host_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refuse_inside(folder.path(), &["no/such".parse().unwrap()]).is_ok());
        assert!(
            refuse_inside(Path::new("/no/such/folder"), &["no/such".parse().unwrap()]).is_err()
        );
    }
}
