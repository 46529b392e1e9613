//! All sections and keys, each listed once: for unknown keys, for notices and for `config show`.

/// A section.
#[derive(Debug)]
pub(super) struct SectionSpec {
    /// The name of the section.
    pub(super) name: &'static str,
    /// The keys of the section. A section without listed keys has keys of another form (`step01`).
    pub(super) keys: &'static [&'static str],
}

const fn section(name: &'static str, keys: &'static [&'static str]) -> SectionSpec {
    SectionSpec { name, keys }
}

/// The only key whose value is a secret: the value is never printed, neither in an error nor by
/// `config show`.
pub(super) const SECRET_KEY: &str = "encryption_passphrase";

const MAIN: &[&str] = &[
    "zfs_fs",
    "recursive",
    "exclude",
    "encryption_passphrase",
    "encryption_passphrase_file",
    "encryption_passphrase_command",
    "encryption_recipients",
    "signing_key_file",
    "verify_keys",
    "intermediate_basedir",
    "intermediate_checksum",
    "split_size",
    "remote",
    "rclone_conf",
    "rclone_bwlimit",
    "rclone_args",
    "rclone_spool_dir",
    "bwlimit",
    "window",
    "max_runtime",
    "oldest_snapshot_days",
    "snapshot_prefix",
    "use_snapshots",
    "store_as",
    "pre_snapshot",
    "post_snapshot",
    "on_failure",
    "on_success",
    "hook_timeout",
    "lock_file",
    "state_dir",
    "resume_days",
];

const S3: &[&str] = &[
    "endpoint",
    "region",
    "profile",
    "access_key_id_file",
    "secret_access_key_file",
    "storage_class",
    "path_style",
    "checksum",
    "part_size",
    "concurrency",
    "object_lock_days",
    "object_lock_mode",
];

const B2: &[&str] = &[
    "application_key_id_file",
    "application_key_file",
    "part_size",
    "concurrency",
    "spool_dir",
    "object_lock_days",
    "object_lock_mode",
];

const PRUNE: &[&str] = &[
    "profile",
    "access_key_id_file",
    "secret_access_key_file",
    "application_key_id_file",
    "application_key_file",
];

const SEND: &[&str] = &["raw", "compressed", "embedded", "compression"];

const BACKUP_LIFECYCLE: &[&str] = &[
    "full_when_incrementals_exceed",
    "full_every",
    "max_incrementals",
    "auto_full_max",
];

const RETENTION: &[&str] = &[
    "keep-last-chains",
    "keep-last-full-only",
    "keep-last-incremental-only",
    "keep-full-with-age-closest-to",
    "keep-within",
    "keep-daily",
    "keep-weekly",
    "keep-monthly",
    "keep-yearly",
];

/// The sections in the order in which `config show` prints them.
pub(super) const SECTIONS: &[SectionSpec] = &[
    section("main", MAIN),
    section("s3", S3),
    section("b2", B2),
    section("prune", PRUNE),
    section("send", SEND),
    section("backup-lifecycle", BACKUP_LIFECYCLE),
    section("backup-sequence", &[]),
    section("lifecycle-intermediate", RETENTION),
    section("lifecycle-remote", RETENTION),
];

/// Returns the section with this name. Only this crate passes names, so an unknown name is a defect
/// of the crate.
pub(super) fn section_spec(name: &str) -> &'static SectionSpec {
    SECTIONS
        .iter()
        .find(|section| section.name == name)
        .expect("sections are asked for by names from the table")
}

/// Returns the sections that have a key with this name.
pub(super) fn sections_with(key: &str) -> Vec<&'static str> {
    let has_key = |section: &&SectionSpec| section.keys.contains(&key);
    SECTIONS
        .iter()
        .filter(has_key)
        .map(|section| section.name)
        .collect()
}

/// Returns the nearest of the names, if it is near enough to be a typing error: at most a third of
/// the letters differ.
pub(super) fn nearest<'n>(given: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let plain = |name: &str| name.to_lowercase().replace('-', "_");
    let given = plain(given);
    let distance = |name: &&str| strsim::damerau_levenshtein(&given, &plain(name));
    names
        .min_by_key(distance)
        .filter(|name| distance(name) * 3 <= given.chars().count().max(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found_only_when_it_is_near() {
        let names = || section_spec("main").keys.iter().copied();
        for (given, expected) in [
            ("split_sise", Some("split_size")),
            ("splitsize", Some("split_size")),
            ("split-size", Some("split_size")),
            ("Remote", Some("remote")),
            ("encryption_password", Some("encryption_passphrase")),
            ("zfs", None),
            ("frobnicate", None),
        ] {
            assert_eq!(nearest(given, names()), expected, "{given}");
        }
    }

    #[test]
    fn no_name_stands_twice() {
        for section in SECTIONS {
            let mut names = section.keys.to_vec();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), section.keys.len(), "{}", section.name);
        }
    }
}
