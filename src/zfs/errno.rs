//! Sentences for error numbers: the meaning of the operating system's numbers when ZFS returns
//! them, and ZFS's own numbers from 1024 on. (`sys/fs/zfs.h` names these; they have not changed
//! since OpenZFS 2.0.)

/// The stream ended before its END record.
pub const STREAM_TRUNCATED: i32 = 1040;

/// The stream has a feature that the module does not know.
pub const UNKNOWN_FEATURE: i32 = 1037;

/// Number, name, meaning.
type Row = (i32, &'static str, &'static str);

const OF_THE_SYSTEM: &[Row] = &[
    (
        libc::EPERM,
        "EPERM",
        "not permitted: it needs root, or a permission given with `zfs allow`",
    ),
    (libc::ENOENT, "ENOENT", "it does not exist"),
    (
        libc::ESRCH,
        "ESRCH",
        "the bookmark that it starts from does not exist",
    ),
    (
        libc::EINTR,
        "EINTR",
        "it was interrupted: the stream's reader went away, or a block could not be read",
    ),
    (libc::EIO, "EIO", "the pool or the stream could not be read"),
    (
        libc::E2BIG,
        "E2BIG",
        "it is too long: a hold's tag, or something in the stream",
    ),
    (
        libc::EAGAIN,
        "EAGAIN",
        "the pool is suspended, or busy for the moment",
    ),
    (
        libc::ENOMEM,
        "ENOMEM",
        "the kernel has not enough memory for it",
    ),
    (
        libc::EACCES,
        "EACCES",
        "the encryption key is not loaded or is another, or access is denied",
    ),
    (
        libc::EBUSY,
        "EBUSY",
        "it is busy: held, mounted, being sent, or in the middle of a receive",
    ),
    (libc::EEXIST, "EEXIST", "it is there already, or has clones"),
    (
        libc::EXDEV,
        "EXDEV",
        "they are not of one pool and different datasets, or the base is no earlier state of it",
    ),
    (
        libc::ENODEV,
        "ENODEV",
        "the target does not have the snapshot that the stream starts from",
    ),
    (
        libc::EINVAL,
        "EINVAL",
        "ZFS takes it for invalid: a name, a property, or a stream that does not fit here",
    ),
    (
        libc::ETXTBSY,
        "ETXTBSY",
        "the target was changed since the snapshot that the stream starts from",
    ),
    (libc::ENOSPC, "ENOSPC", "the pool has no space left"),
    (libc::EROFS, "EROFS", "the pool was imported read-only"),
    (libc::EPIPE, "EPIPE", "the stream's reader went away"),
    (
        libc::ERANGE,
        "ERANGE",
        "a record of the stream is larger than allowed",
    ),
    (libc::ENAMETOOLONG, "ENAMETOOLONG", "the name is too long"),
    (
        libc::ECHRNG,
        "ECHRNG",
        "a program inside the kernel failed; a full pool can cause this",
    ),
    (
        libc::EBADE,
        "ECKSUM",
        "a checksum does not match: the stream or the pool is damaged",
    ),
    (
        libc::ETIME,
        "ETIME",
        "it took longer than the kernel allows",
    ),
    (
        libc::EOPNOTSUPP,
        "ENOTSUP",
        "the pool or its ZFS lacks a feature that this needs",
    ),
    (
        libc::EDQUOT,
        "EDQUOT",
        "a quota, or a limit on the number of snapshots or filesystems, is reached",
    ),
    (libc::ECANCELED, "ECANCELED", "it was cancelled"),
];

const OF_ZFS: &[Row] = &[
    (1024, "CHECKPOINT_EXISTS", "the pool has a checkpoint"),
    (
        1025,
        "DISCARDING_CHECKPOINT",
        "the pool is discarding a checkpoint",
    ),
    (1026, "NO_CHECKPOINT", "the pool has no checkpoint"),
    (
        1027,
        "DEVRM_IN_PROGRESS",
        "a device is being removed from the pool",
    ),
    (1028, "VDEV_TOO_BIG", "a device is too large"),
    (
        1029,
        "IOC_CMD_UNAVAIL",
        "the ZFS kernel module does not know this call: it is older than the library",
    ),
    (
        1030,
        "IOC_ARG_UNAVAIL",
        "the ZFS kernel module does not know an argument: it is older than the library",
    ),
    (
        1031,
        "IOC_ARG_REQUIRED",
        "the ZFS kernel module misses an argument",
    ),
    (
        1032,
        "IOC_ARG_BADTYPE",
        "the ZFS kernel module wants an argument of another type",
    ),
    (1033, "WRONG_PARENT", "its parent is not a filesystem"),
    (
        1034,
        "FROM_IVSET_GUID_MISSING",
        "the base lacks the IV set that a raw stream needs: it was not received raw",
    ),
    (
        1035,
        "FROM_IVSET_GUID_MISMATCH",
        "the base has another IV set than the raw stream: raw and non-raw were mixed",
    ),
    (
        1036,
        "SPILL_BLOCK_FLAG_MISSING",
        "the stream comes from a ZFS with a defect in spill blocks",
    ),
    (
        1037,
        "UNKNOWN_SEND_STREAM_FEATURE",
        "the stream uses a feature that this ZFS does not know",
    ),
    (1038, "EXPORT_IN_PROGRESS", "the pool is being exported"),
    (
        1039,
        "BOOKMARK_SOURCE_NOT_ANCESTOR",
        "a bookmark can only be made of a state of its own dataset",
    ),
    (
        STREAM_TRUNCATED,
        "STREAM_TRUNCATED",
        "the stream ends before its END record",
    ),
    (
        1041,
        "STREAM_LARGE_BLOCK_MISMATCH",
        "the stream and the target differ in large blocks",
    ),
    (1042, "RESILVER_IN_PROGRESS", "the pool is resilvering"),
    (1043, "REBUILD_IN_PROGRESS", "the pool is rebuilding"),
    (1044, "BADPROP", "a property is not valid"),
    (1045, "VDEV_NOTSUP", "a device does not support this"),
    (1046, "NOT_USER_NAMESPACE", "this is no user namespace"),
    (
        1047,
        "RESUME_EXISTS",
        "a receive that can be resumed is pending there",
    ),
    (1048, "CRYPTO_NOTSUP", "the encryption is not supported"),
    (
        1049,
        "RAIDZ_EXPAND_IN_PROGRESS",
        "the pool is being expanded",
    ),
    (1050, "ASHIFT_MISMATCH", "the devices differ in sector size"),
    (
        1051,
        "STREAM_LARGE_MICROZAP",
        "the dataset has large directories, which need a stream with large blocks",
    ),
    (1052, "TOO_MANY_SITOUTS", "too many devices sit out"),
    (
        1053,
        "NO_USER_NS_SUPPORT",
        "the kernel has no user namespaces",
    ),
];

/// Returns one sentence, followed by the number's name.
pub(super) fn sentence(errno: i32) -> String {
    let row = OF_THE_SYSTEM
        .iter()
        .chain(OF_ZFS)
        .find(|(number, ..)| *number == errno);
    match row {
        Some((number, name, meaning)) if *number >= 1024 => {
            format!("{meaning} (ZFS_ERR_{name}, {number})")
        }
        Some((_, name, meaning)) => format!("{meaning} ({name})"),
        None if errno >= 1024 => {
            format!("ZFS gives the error number {errno}, which this version does not know")
        }
        None => std::io::Error::from_raw_os_error(errno).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_table_has_no_duplicate_and_no_gap_in_zfs_numbers() {
        let mut numbers: Vec<i32> = OF_THE_SYSTEM.iter().map(|row| row.0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), OF_THE_SYSTEM.len());
        assert!(OF_ZFS.iter().map(|row| row.0).eq(1024..=1053));
    }

    #[test]
    fn errno_sentences_explain_the_zfs_meaning() {
        assert_eq!(
            sentence(1040),
            "the stream ends before its END record (ZFS_ERR_STREAM_TRUNCATED, 1040)"
        );
        assert!(
            sentence(16).starts_with("it is busy: held"),
            "{}",
            sentence(16)
        );
        assert!(sentence(2000).contains("2000"));
        assert!(
            sentence(libc::ENOTTY).contains("ioctl"),
            "{}",
            sentence(libc::ENOTTY)
        );
    }
}
