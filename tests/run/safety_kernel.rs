//! The errors on a host whose kernel module this tool does not know.

use zfs_backup::run::RunError;
use zfs_backup::zfs::{MODULE_VERSION, ZfsError};

#[test]
fn unknown_module_is_refused_with_the_variable_that_allows_it() {
    let error = ZfsError::Version {
        version: "2.5.0-1".to_owned(),
        series: "2.5".to_owned(),
    };
    let error = RunError::from(error);
    assert_eq!(
        error.to_string(),
        "open /dev/zfs: the ZFS kernel module is version 2.5.0-1, and this tool knows 2.1, 2.2, 2.3, 2.4"
    );
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("`env ZFS_BACKUP_ALLOW_ZFS=2.5 zfs-backup ...`"),
        "{hint}"
    );
}

#[test]
fn odd_module_version_is_quoted_in_the_command() {
    let error = RunError::from(ZfsError::Version {
        version: "a b".to_owned(),
        series: "a b".to_owned(),
    });
    let hint = error.hint().unwrap();
    assert!(hint.contains("ZFS_BACKUP_ALLOW_ZFS='a b' "), "{hint}");
}

#[test]
fn missing_sysfs_is_reported_with_the_mount_command() {
    let source = std::io::Error::from_raw_os_error(2);
    let error = ZfsError::System {
        operation: "read",
        subject: MODULE_VERSION.to_owned(),
        source,
    };
    let hint = RunError::from(error).hint().unwrap();
    assert!(hint.contains("mount -t sysfs"), "{hint}");
}
