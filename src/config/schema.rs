//! Every section and key there is, once: for unknown keys, for notices and for `config show`.

/// A key of a section.
#[derive(Debug)]
pub(super) struct KeySpec {
    /// Its name.
    pub(super) name: &'static str,
    /// What this version does instead, when the feature comes in a later one.
    pub(super) later: Option<&'static str>,
}

/// A section.
#[derive(Debug)]
pub(super) struct SectionSpec {
    /// Its name.
    pub(super) name: &'static str,
    /// Its keys. A section without any has keys of another form (`step01`).
    pub(super) keys: &'static [KeySpec],
    /// What this version does instead, when the whole section is for a later one.
    pub(super) later: Option<&'static str>,
}

const fn now(name: &'static str) -> KeySpec {
    KeySpec { name, later: None }
}

const fn later(name: &'static str, instead: &'static str) -> KeySpec {
    KeySpec { name, later: Some(instead) }
}

const fn section(name: &'static str, keys: &'static [KeySpec], later: Option<&'static str>) -> SectionSpec {
    SectionSpec { name, keys, later }
}

/// The one key whose value is a secret: it is never printed, neither in an error nor by `config show`.
pub(super) const SECRET_KEY: &str = "encryption_passphrase";

const FULL_SPEED: &str = "uploads run at full speed, at any hour";

const MAIN: &[KeySpec] = &[
    now("zfs_fs"),
    now("recursive"),
    now("exclude"),
    now("encryption_passphrase"),
    now("encryption_passphrase_file"),
    now("encryption_passphrase_command"),
    now("encryption_recipients"),
    now("signing_key_file"),
    now("verify_keys"),
    now("intermediate_basedir"),
    now("intermediate_checksum"),
    now("split_size"),
    now("remote"),
    later("rclone_conf", "rclone is not run"),
    later("rclone_bwlimit", "rclone is not run"),
    later("rclone_args", "rclone is not run"),
    later("bwlimit", FULL_SPEED),
    now("window"),
    now("max_runtime"),
    now("oldest_snapshot_days"),
    now("snapshot_prefix"),
    now("use_snapshots"),
    now("store_as"),
    now("pre_snapshot"),
    now("post_snapshot"),
    now("on_failure"),
    now("on_success"),
    now("hook_timeout"),
    now("lock_file"),
    now("state_dir"),
    now("resume_days"),
];

const S3: &[KeySpec] = &[
    now("endpoint"),
    now("region"),
    now("profile"),
    now("access_key_id_file"),
    now("secret_access_key_file"),
    now("storage_class"),
    now("path_style"),
    now("checksum"),
    now("part_size"),
    now("concurrency"),
    later("object_lock_days", "objects are not locked"),
];

const B2: &[KeySpec] = &[
    now("application_key_id_file"),
    now("application_key_file"),
    now("part_size"),
    now("concurrency"),
    now("spool_dir"),
];

const PRUNE: &[KeySpec] = &[
    now("profile"),
    now("access_key_id_file"),
    now("secret_access_key_file"),
    now("application_key_id_file"),
    now("application_key_file"),
];

const SEND: &[KeySpec] = &[now("raw"), now("compressed"), now("embedded"), now("compression")];

const BACKUP_LIFECYCLE: &[KeySpec] =
    &[now("full_when_incrementals_exceed"), now("full_every"), now("max_incrementals"), now("auto_full_max")];

const RETENTION: &[KeySpec] = &[
    now("keep-last-chains"),
    now("keep-last-full-only"),
    now("keep-last-incremental-only"),
    now("keep-full-with-age-closest-to"),
    now("keep-within"),
    now("keep-daily"),
    now("keep-weekly"),
    now("keep-monthly"),
    now("keep-yearly"),
];

/// The sections in the order in which `config show` prints them.
pub(super) const SECTIONS: &[SectionSpec] = &[
    section("main", MAIN, None),
    section("s3", S3, None),
    section("b2", B2, None),
    section("prune", PRUNE, None),
    section("send", SEND, None),
    section("backup-lifecycle", BACKUP_LIFECYCLE, None),
    section("backup-sequence", &[], None),
    section("lifecycle-intermediate", RETENTION, None),
    section("lifecycle-remote", RETENTION, None),
];

/// The section of that name. The names are ours, so one that is not there is a slip in this crate.
pub(super) fn section_spec(name: &str) -> &'static SectionSpec {
    SECTIONS.iter().find(|section| section.name == name).expect("sections are asked for by names from the table")
}

/// The sections that have a key of that name.
pub(super) fn sections_with(key: &str) -> Vec<&'static str> {
    let has_key = |section: &&SectionSpec| section.keys.iter().any(|spec| spec.name == key);
    SECTIONS.iter().filter(has_key).map(|section| section.name).collect()
}

/// The nearest of the names, when it is near enough to be a slip: at most a third of the letters differ.
pub(super) fn nearest<'n>(given: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let plain = |name: &str| name.to_lowercase().replace('-', "_");
    let given = plain(given);
    let distance = |name: &&str| strsim::damerau_levenshtein(&given, &plain(name));
    names.min_by_key(distance).filter(|name| distance(name) * 3 <= given.chars().count().max(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found_only_when_it_is_near() {
        let names = || section_spec("main").keys.iter().map(|key| key.name);
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
            let mut names: Vec<_> = section.keys.iter().map(|key| key.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), section.keys.len(), "{}", section.name);
        }
    }
}
