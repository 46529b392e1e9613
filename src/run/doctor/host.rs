//! The checks of this host: ZFS, permissions, datasets and folders.

use super::Check;
use crate::config::{DatasetSelection, SendSection};
use crate::plan::permissions::{RestoreNeeds, missing_for_restore, missing_permissions};
use crate::run::pool::inside::refuse_inside;
use crate::run::pool::select::{Selected, select_datasets};
use crate::run::restore::drill::EMBEDDED_PADDING_FIXED;
use crate::run::restore::left_half;
use crate::run::runner::Runner;
use crate::run::{RunError, error_chain};
use crate::zfs::{
    ALLOW_VARIABLE, ZfsHost, ZfsRead, is_known_version, is_older_version, known_series,
};
use rustix::fs::{Access, access};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const LIBRARY: &str = "libzfs_core.so";
/// The release from which on bookmarks keep the IV-set guid (openzfs/zfs#14967).
const IVSET_FIXED: [u32; 3] = [2, 1, 6];

/// Checks the versions of the library and of the kernel module.
pub fn check_zfs(zfs: &dyn ZfsHost) -> Check {
    let subject = "zfs";
    let version = match zfs.module_version() {
        Ok(version) => version,
        Err(error) => return Check::failed(subject, &error.into()),
    };
    let library = loaded_library(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default());
    let library = library.unwrap_or_else(|| "libzfs_core".to_owned());
    let text = format!("{library}, kernel module {version}");
    if is_known_version(&version) {
        return Check::good(subject, text);
    }
    Check::warning(
        subject,
        format!(
            "{text}: none of the versions that this tool knows ({})",
            known_series()
        ),
        format!(
            "use one of them, or a zfs-backup that knows this one; it runs only because of {ALLOW_VARIABLE}"
        ),
    )
}

/// Warns of faults of the loaded OpenZFS that concern these datasets with these settings.
pub fn check_zfs_faults(
    zfs: &dyn ZfsHost,
    send: &SendSection,
    selected: &[Selected],
) -> Vec<Check> {
    let subject = "zfs";
    // A version that cannot be read is a failed check already.
    let Ok(version) = zfs.module_version() else {
        return Vec::new();
    };
    let is_older = |release| is_older_version(&version, release) == Some(true);
    let raw = selected
        .iter()
        .filter(|it| send.raw.is_raw(it.dataset.encrypted));
    let (encrypted, plain): (Vec<_>, Vec<_>) = raw.partition(|it| it.dataset.encrypted);
    let mut checks = Vec::new();
    if !encrypted.is_empty() && is_older(IVSET_FIXED) {
        checks.push(Check::warning(
            subject,
            format!(
                "kernel module {version} can make bookmarks of encrypted datasets without an IV-set guid: \
                 ZFS refuses raw incrementals from such bookmarks, so this program does not use the bookmarks, and a full may be necessary"
            ),
            "use OpenZFS 2.1.6 or later; until then keep each snapshot until the next backup (main.oldest_snapshot_days)",
        ));
    }
    let embeds = send.embedded || !plain.is_empty();
    if !selected.is_empty() && embeds && is_older(EMBEDDED_PADDING_FIXED) {
        checks.push(Check::warning(
            subject,
            format!(
                "kernel module {version} pads embedded blocks with different bytes in each send: an interrupted upload \
                 cannot be resumed, and a drill cannot compare the streams"
            ),
            "use OpenZFS 2.1.8 or later, or set send.embedded = false and send.raw = \"auto\"",
        ));
    }
    checks
}

/// Returns the library's file name after symbolic links are resolved, which contains its version.
fn loaded_library(maps: &str) -> Option<String> {
    let path = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.contains(LIBRARY))?;
    let file = std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    file.file_name()
        .map(|name| name.to_string_lossy().into_owned())
}

/// Checks which of the configured datasets exist, and returns the datasets found.
pub fn check_datasets(
    zfs: &dyn ZfsRead,
    configured: &DatasetSelection,
    state_dir: &Path,
) -> (Vec<Check>, Vec<Selected>) {
    let subject = "datasets";
    let selection = match select_datasets(zfs, configured, state_dir) {
        Ok(selection) => selection,
        Err(error) => return (vec![Check::failed(subject, &error)], Vec::new()),
    };
    let mut checks: Vec<Check> = selection
        .failed
        .iter()
        .map(|(_, error)| Check::failed(subject, error))
        .collect();
    let names: Vec<&str> = selection
        .selected
        .iter()
        .map(|selected| selected.dataset.name.as_str())
        .collect();
    match names.as_slice() {
        [] if checks.is_empty() => {
            let advice = Some("check main.zfs_fs, recursive and exclude".to_owned());
            checks.push(Check::bad(
                subject,
                "the configuration selects no dataset",
                advice,
            ));
        }
        [] => {}
        [one] => checks.push(Check::good(subject, (*one).to_owned())),
        [first, .., last] => checks.push(Check::good(
            subject,
            format!("{} of them: {first} .. {last}", names.len()),
        )),
    }
    for dataset in selection.left_out.iter().map(|left_out| &left_out.dataset) {
        match left_half(dataset) {
            Ok(found) => {
                checks.extend(found.map(|(what, advice)| Check::warning(subject, what, advice)))
            }
            Err(error) => checks.push(Check::failed(subject, &error)),
        }
    }
    for selected in &selection.selected {
        match left_half(&selected.dataset) {
            Ok(Some((what, advice))) => checks.push(Check::warning(subject, what, advice)),
            Ok(None) if selected.dataset.inconsistent => {
                let text = format!(
                    "{} is in the middle of a receive and cannot be snapshotted",
                    selected.dataset.name
                );
                checks.push(Check::warning(
                    subject,
                    text,
                    "wait for the receive, or exclude it",
                ));
            }
            Ok(None) => {}
            Err(error) => checks.push(Check::failed(subject, &error)),
        }
    }
    let encrypted = selection
        .selected
        .iter()
        .filter(|selected| selected.dataset.encrypted)
        .count();
    if encrypted > 0 {
        let text = format!(
            "{encrypted} of them encrypted by ZFS: reading a restored raw backup needs the ZFS key"
        );
        checks.push(Check::note("zfs key", text));
    }
    (checks, selection.selected)
}

/// Checks the running user's permissions on these datasets.
pub fn check_permissions(zfs: &dyn ZfsHost, selected: &[Selected], runner: &Runner) -> Vec<Check> {
    let subject = "permissions";
    if runner.privileged {
        return vec![Check::good(subject, "this user may do everything with ZFS")];
    }
    let mut checks = Vec::new();
    for dataset in selected.iter().map(|selected| &selected.dataset.name) {
        let given = match zfs.delegations(dataset) {
            Ok(given) => given,
            Err(error) => {
                checks.push(Check::failed(subject, &error.into()));
                continue;
            }
        };
        let missing = missing_permissions(dataset, &given, &runner.identity);
        let advice = || {
            let uid = runner.identity.uid;
            let permissions = missing.all().join(",");
            let quoted = shell_words::quote(dataset.as_str());
            format!("zfs allow -u {uid} {permissions} {quoted}")
        };
        if !missing.needed.is_empty() {
            let text = format!(
                "user {} lacks {} on {dataset}",
                runner.identity.uid,
                missing.needed.join(", ")
            );
            checks.push(Check::bad(subject, text, Some(advice())));
        } else if !missing.tidy.is_empty() {
            let text = format!(
                "user {} lacks {} on {dataset}: old snapshots and bookmarks stay",
                runner.identity.uid,
                missing.tidy.join(", ")
            );
            checks.push(Check::warning(subject, text, advice()));
        }
    }
    if checks.is_empty() {
        checks.push(Check::good(
            subject,
            format!("user {} has what a backup needs", runner.identity.uid),
        ));
    }
    let pools: BTreeSet<&str> = selected
        .iter()
        .map(|selected| selected.dataset.name.pool())
        .collect();
    checks.extend(
        pools
            .into_iter()
            .filter_map(|pool| check_drills(zfs, pool, runner)),
    );
    checks
}

/// Returns a note on the permissions that a drill lacks, or `None` when it has all of them. A drill
/// restores a chain below the pool's own dataset.
fn check_drills(zfs: &dyn ZfsHost, pool: &str, runner: &Runner) -> Option<Check> {
    let subject = "permissions";
    let pool = pool.parse().ok()?;
    let needs = RestoreNeeds {
        above: &pool,
        is_new: true,
        makes_parents: false,
        is_chain: true,
        rolls_back: false,
        properties: BTreeSet::from(["canmount"]),
    };
    let missing = match zfs.delegations(&pool) {
        Ok(given) => missing_for_restore(&needs, &given, &runner.identity),
        Err(error) => return Some(Check::failed(subject, &error.into())),
    };
    if missing.is_empty() {
        return None;
    }
    let uid = runner.identity.uid;
    let note = Check::note(
        subject,
        format!(
            "user {uid} lacks {} on {pool} for drills and restores",
            missing.join(", ")
        ),
    );
    let permissions = missing.join(",");
    let quoted = shell_words::quote(pool.as_str());
    let advice = format!("as root: zfs allow -u {uid} {permissions} {quoted}");
    Some(Check {
        advice: Some(advice),
        ..note
    })
}

/// Checks whether files can be made in a folder. The first run makes a missing folder.
pub fn check_folder(subject: &'static str, folder: &Path) -> Check {
    let place = folder.display();
    if folder.exists() {
        return match access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) if folder.is_dir() => Check::good(subject, place.to_string()),
            Ok(()) => Check::bad(
                subject,
                format!("{place} is not a folder"),
                Some("name another in the configuration".into()),
            ),
            Err(error) => {
                let advice = "run this as the user that makes the backups, or give it that folder"
                    .to_owned();
                Check::bad(
                    subject,
                    format!("{place} cannot be written: {error}"),
                    Some(advice),
                )
            }
        };
    }
    let above = folder
        .ancestors()
        .skip(1)
        .find(|above| above.exists())
        .unwrap_or(Path::new("/"));
    if !above.is_dir() {
        let advice = Some("name another in the configuration".to_owned());
        return Check::bad(
            subject,
            format!(
                "{place} cannot be created: {} is not a folder",
                above.display()
            ),
            advice,
        );
    }
    match access(above, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Check::good(subject, format!("{place}, made by the first run")),
        Err(error) => {
            let advice = format!("make it: install -d -m 0700 {place}");
            Check::bad(
                subject,
                format!(
                    "{place} does not exist, and {} cannot be written: {error}",
                    above.display()
                ),
                Some(advice),
            )
        }
    }
}

/// Checks that the intermediate directory exists, is writable and is not inside a dataset that is
/// backed up.
pub fn check_intermediate(folder: &Path, selected: &[Selected]) -> Check {
    let subject = "intermediate";
    if !folder.exists() {
        let advice = Some(
            "mount or create it; the program never creates it, because it may be a mount point"
                .to_owned(),
        );
        return Check::bad(
            subject,
            format!("{} does not exist", folder.display()),
            advice,
        );
    }
    match refuse_inside(
        folder,
        selected.iter().map(|selected| &selected.dataset.name),
    ) {
        Ok(()) => check_folder(subject, folder),
        Err(error @ RunError::File { .. }) => Check::warning(
            subject,
            error_chain(&error),
            "whether it lies inside a dataset that is backed up is unknown",
        ),
        Err(error) => Check::failed(subject, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckState::{Bad, Good, Note, Warning};
    use super::*;
    use crate::config::RawMode;
    use crate::model::DatasetName;
    use crate::plan::permissions::Identity;
    use crate::zfs::fake::FakeZfs;
    use crate::zfs::{DatasetType, Delegation, Who};
    use std::os::unix::fs::PermissionsExt;

    fn selection(names: &[&str]) -> DatasetSelection {
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        DatasetSelection {
            names,
            recursive: false,
            exclude: Vec::new(),
            store_as: None,
        }
    }

    fn user(privileged: bool) -> Runner {
        Runner {
            identity: Identity {
                uid: 1000,
                gids: vec![1000],
            },
            privileged,
        }
    }

    #[test]
    fn doctor_shows_the_zfs_version_and_warns_of_unknown_ones() {
        let zfs = FakeZfs::new();
        for (version, state) in [
            ("2.3.2-1", Good),
            ("2.1.11", Good),
            ("2.0.7-1", Warning),
            ("2.5.0-1", Warning),
            ("git", Warning),
        ] {
            zfs.set_module_version(version);
            let check = check_zfs(&zfs);
            assert_eq!(check.state, state, "{version}");
            assert!(check.text.contains(version), "{}", check.text);
        }
        zfs.fail_call(1, 5);
        assert_eq!(check_zfs(&zfs).state, Bad);
    }

    #[test]
    fn doctor_warns_of_faults_of_old_versions_only_where_they_matter() {
        let (zfs, state) = (FakeZfs::new(), tempfile::tempdir().unwrap());
        let [plain, secret] = ["tank/plain", "tank/secret"].map(|name| name.parse().unwrap());
        zfs.create(&plain, DatasetType::Filesystem);
        zfs.create(&secret, DatasetType::Filesystem);
        zfs.set_encrypted(&secret, false);
        let warnings = |version: &str, dataset: &str, send: SendSection| {
            zfs.set_module_version(version);
            let (_, selected) = check_datasets(&zfs, &selection(&[dataset]), state.path());
            let checks = check_zfs_faults(&zfs, &send, &selected);
            assert!(checks.iter().all(|check| check.state == Warning));
            let about = ["IV-set", "embedded"];
            about.map(|word| checks.iter().any(|check| check.text.contains(word)))
        };
        let auto = SendSection::default();
        let embedded = SendSection {
            embedded: true,
            ..auto
        };
        let always = SendSection {
            raw: RawMode::Always,
            ..auto
        };
        for (version, dataset, send, expected) in [
            ("2.1.5-1ubuntu6", "tank/secret", &auto, [true, false]),
            ("2.1.5-1ubuntu6", "tank/plain", &auto, [false, false]),
            ("2.1.5-1ubuntu6", "tank/plain", &always, [false, true]),
            ("2.1.7-1", "tank/secret", &auto, [false, false]),
            ("2.1.7-1", "tank/plain", &embedded, [false, true]),
            ("2.1.8-1", "tank/secret", &embedded, [false, false]),
            ("git", "tank/secret", &embedded, [false, false]),
        ] {
            let found = warnings(version, dataset, *send);
            assert_eq!(found, expected, "{version} {dataset}");
        }
    }

    #[test]
    fn libzfs_core_file_name_is_read_from_the_process_maps() {
        let maps = "7f00 r-xp 0 08:01 12 /nowhere/libzfs_core.so.3.0.0\n7f01 r--p 0 08:01 13 /usr/lib/libc.so.6\n";
        assert_eq!(
            loaded_library(maps).as_deref(),
            Some("libzfs_core.so.3.0.0")
        );
        assert_eq!(
            loaded_library("7f01 r--p 0 08:01 13 /usr/lib/libc.so.6\n"),
            None
        );
    }

    #[test]
    fn doctor_names_the_missing_dataset_and_selects_the_existing_one() {
        let (zfs, state) = (FakeZfs::new(), tempfile::tempdir().unwrap());
        zfs.create(&"tank/a".parse().unwrap(), DatasetType::Filesystem);
        let states = |names: &[&str]| {
            let (checks, selected) = check_datasets(&zfs, &selection(names), state.path());
            (
                checks
                    .into_iter()
                    .map(|check| (check.state, check.text))
                    .collect::<Vec<_>>(),
                selected.len(),
            )
        };
        assert_eq!(states(&["tank/a"]), (vec![(Good, "tank/a".to_owned())], 1));
        let (checks, selected) = states(&["tank/a", "tank/b"]);
        assert_eq!((checks.len(), selected), (2, 1));
        assert!(
            checks[0].0 == Bad && checks[0].1.contains("tank/b"),
            "{checks:?}"
        );
    }

    #[test]
    fn missing_permission_is_reported_with_its_zfs_allow_command() {
        let (zfs, state) = (FakeZfs::new(), tempfile::tempdir().unwrap());
        let name: DatasetName = "tank/a".parse().unwrap();
        zfs.create(&name, DatasetType::Filesystem);
        let (_, selected) = check_datasets(&zfs, &selection(&["tank/a"]), state.path());
        assert_eq!(
            check_permissions(&zfs, &selected, &user(true))[0].state,
            Good
        );
        let nothing = check_permissions(&zfs, &selected, &user(false));
        assert_eq!(nothing[0].state, Bad);
        assert!(
            nothing[0].text.contains("snapshot, userprop, hold"),
            "{}",
            nothing[0].text
        );
        let allow = |names: &str| {
            let permissions = names.split(' ').map(str::to_owned).collect();
            let (on, who) = ("tank".parse().unwrap(), Who::User(1000));
            zfs.allow(Delegation {
                on,
                who,
                local: false,
                descendent: true,
                permissions,
            });
        };
        allow("snapshot userprop hold bookmark send");
        let check = check_permissions(&zfs, &selected, &user(false)).remove(0);
        assert_eq!(
            (check.state, check.text.as_str()),
            (Bad, "user 1000 lacks release on tank/a")
        );
        assert_eq!(
            check.advice.as_deref(),
            Some("zfs allow -u 1000 release,destroy,mount tank/a")
        );
        allow("release");
        assert_eq!(
            check_permissions(&zfs, &selected, &user(false))[0].state,
            Warning
        );
        allow("destroy mount");
        assert_eq!(
            check_permissions(&zfs, &selected, &user(false))[0].state,
            Good
        );
        let drills = check_permissions(&zfs, &selected, &user(false)).remove(1);
        assert_eq!(drills.state, Note);
        assert_eq!(
            drills.advice.as_deref(),
            Some("as root: zfs allow -u 1000 receive,create,mount,readonly,canmount tank")
        );
        zfs.fail_call(1, 5);
        assert_eq!(
            check_permissions(&zfs, &selected, &user(false))[0].state,
            Bad,
            "unknown is not allowed"
        );
    }

    #[test]
    fn doctor_checks_folders_and_never_creates_them() {
        let root = tempfile::tempdir().unwrap();
        let (here, file, later) = (
            root.path().join("here"),
            root.path().join("file"),
            root.path().join("a/b"),
        );
        std::fs::create_dir(&here).unwrap();
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(check_folder("state", &here).state, Good);
        assert_eq!(check_folder("state", &file).state, Bad);
        let made_later = check_folder("state", &later);
        assert!(
            made_later.state == Good && made_later.text.contains("first run"),
            "{made_later:?}"
        );
        assert!(!later.exists());
        assert_eq!(check_folder("state", &file.join("below")).state, Bad);
        assert_eq!(
            check_intermediate(&later, &[]).state,
            Bad,
            "a mount that is not there is not made"
        );
        assert_eq!(check_intermediate(&here, &[]).state, Good);
    }
}
