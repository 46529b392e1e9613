//! `upload-intermediate-to-remote` and `verify-checksums` as people run them, without ZFS, over
//! frozen archives.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "support/output.rs"]
mod output;

use output::check;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const PASSPHRASE: &str = "frozen for ever in version one";

/// A host with the frozen archive as its intermediate directory and an empty folder as its remote.
struct Host {
    folder: TempDir,
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(drop).unwrap()
        }
    }
}

impl Host {
    fn new() -> Self {
        let host = Self {
            folder: TempDir::new().unwrap(),
        };
        let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/none");
        copy_tree(&frozen, &host.path("intermediate"));
        fs::create_dir(host.path("remote")).unwrap();
        host.configure("");
        host
    }

    fn configure(&self, more: &str) {
        let path = |name: &str| self.path(name).display().to_string();
        let text = format!(
            "[main]\nzfs_fs = \"frozen/data\"\nencryption_passphrase = \"{PASSPHRASE}\"\nintermediate_basedir = \"{}\"\n\
             remote = \"file:{}\"\nstate_dir = \"{}\"\n{more}",
            path("intermediate"),
            path("remote"),
            path("state"),
        );
        fs::write(self.path("zb.toml"), text).unwrap();
        fs::set_permissions(self.path("zb.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let config = self.path("zb.toml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
        command
            .arg("-c")
            .arg(config)
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The folder of the one backup in a store.
    fn backup(&self, store: &str) -> PathBuf {
        let backups = fs::read_dir(self.path(store).join("frozen/data")).unwrap();
        backups.map(|entry| entry.unwrap().path()).next().unwrap()
    }
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn chunk(folder: &Path, number: usize) -> PathBuf {
    folder.join(
        files(folder)
            .into_iter()
            .filter(|name| name.ends_with(".zfs.age"))
            .nth(number)
            .unwrap(),
    )
}

fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_frozen_archive_is_uploaded_verified_and_restored_from_the_remote() {
    let host = Host::new();
    check(
        &host.run(&["--dry-run", "upload-intermediate-to-remote"]),
        0,
        &["would copy 1", "copy 2026"],
    );
    assert_eq!(
        files(&host.path("remote")),
        [""; 0],
        "a dry run put something"
    );
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        0,
        &["copied 2026", "full", "chunks", "1 copied"],
    );
    let (from, to) = (host.backup("intermediate"), host.backup("remote"));
    assert_eq!(files(&from), files(&to));
    for name in files(&from)
        .iter()
        .filter(|name| !name.starts_with("receipt"))
    {
        assert_eq!(
            fs::read(from.join(name)).unwrap(),
            fs::read(to.join(name)).unwrap(),
            "{name}"
        );
    }
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        0,
        &["nothing copied", "1 already stored"],
    );
    check(
        &host.run(&["verify-checksums"]),
        0,
        &["1 backups", "0 damaged"],
    );
    check(
        &host.run(&["verify-checksums", "--read-data"]),
        0,
        &["read", "1 backups opened whole"],
    );
    let out = host.path("stream").display().to_string();
    check(
        &host.run(&["restore", "frozen/data", "--output", &out]),
        0,
        &[],
    );
    let expected =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/stream.b3"))
            .unwrap();
    assert_eq!(
        blake3::hash(&fs::read(&out).unwrap()).to_hex().as_str(),
        expected.trim()
    );
    let json = host.run(&["--json", "upload-intermediate-to-remote"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["uploads"][0]["left"][0]["reason"], "is in the remote");
}

#[test]
fn damage_in_the_directory_ends_with_4_names_the_file_and_commits_nothing() {
    let host = Host::new();
    let chunk = chunk(&host.backup("intermediate"), 1);
    flip(&chunk);
    let name = chunk.file_name().unwrap().to_str().unwrap().to_owned();
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        4,
        &[&name, "BLAKE3", "intermediate"],
    );
    assert!(!host.backup("remote").join("manifest.json").exists());
    check(
        &host.run(&["verify-checksums", "--intermediate", "--read-data"]),
        4,
        &["DAMAGED", &name],
    );
    flip(&chunk);
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        0,
        &["already stored", "1 copied"],
    );
    check(
        &host.run(&["verify-checksums", "--read-data=100%"]),
        0,
        &["0 damaged"],
    );
}

#[test]
fn damage_in_the_remote_is_reported_with_its_consequences() {
    let host = Host::new();
    check(&host.run(&["upload-intermediate-to-remote"]), 0, &[]);
    let chunk = chunk(&host.backup("remote"), 2);
    let name = chunk.file_name().unwrap().to_str().unwrap().to_owned();
    flip(&chunk);
    check(&host.run(&["verify-checksums"]), 0, &["0 damaged"]);
    check(
        &host.run(&["verify-checksums", "--read-data"]),
        4,
        &["DAMAGED", &name, "1 DAMAGED"],
    );
    fs::remove_file(&chunk).unwrap();
    check(
        &host.run(&["verify-checksums"]),
        4,
        &[
            "1 MISSING",
            &name,
            "no other backup depends on it",
            "nothing of this dataset can be restored",
        ],
    );
    fs::remove_file(host.backup("remote").join("manifest.json")).unwrap();
    check(
        &host.run(&["verify-checksums"]),
        4,
        &[
            "manifest.json: missing",
            "the intermediate directory has it whole",
        ],
    );
}

#[test]
fn upload_of_an_empty_directory_copies_nothing_and_a_missing_one_is_an_error() {
    let host = Host::new();
    fs::remove_dir_all(host.path("intermediate")).unwrap();
    let lost = host.run(&["upload-intermediate-to-remote"]);
    check(&lost, 1, &["intermediate", "hint:"]);
    fs::create_dir(host.path("intermediate")).unwrap();
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        0,
        &["nothing to copy"],
    );
    assert_eq!(
        files(&host.path("remote")),
        [""; 0],
        "keys were made for nothing"
    );
    assert_eq!(
        files(&host.path("intermediate")),
        [""; 0],
        "keys were made for nothing"
    );
}

#[test]
fn invalid_read_share_is_a_usage_error() {
    let host = Host::new();
    check(
        &host.run(&["verify-checksums", "--read-data=2/7"]),
        2,
        &["2/7", "1/7"],
    );
    check(
        &host.run(&["verify-checksums", "--read-data=lots"]),
        2,
        &["lots", "5%"],
    );
    check(&host.run(&["upload-intermediate-to-remote"]), 0, &[]);
    for share in ["5%", "1/7", "10M"] {
        check(
            &host.run(&["verify-checksums", &format!("--read-data={share}")]),
            0,
            &["read "],
        );
    }
}

/// Every file below a folder, with its bytes.
fn tree(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for path in fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if path.is_dir() {
            found.extend(tree(&path))
        } else {
            drop(found.insert(path.clone(), fs::read(&path).unwrap()))
        }
    }
    found
}

const RELIES_ON_TWO: [&[&str]; 7] = [
    &["prune-intermediate", "-y"],
    &["prune-intermediate"],
    &["prune-remote", "-y"],
    &["upload-intermediate-to-remote"],
    &["--dry-run", "upload-intermediate-to-remote"],
    &["stream-to-remote"],
    &["export-intermediate"],
];

const RULES: &str = "[lifecycle-intermediate]\nkeep-last-incremental-only = 1\n[lifecycle-remote]\nkeep-last-chains = 1\n";

#[test]
fn link_to_the_intermediate_directory_is_refused_as_remote() {
    let host = Host::new();
    host.configure(RULES);
    let (real, link) = (host.path("intermediate"), host.path("remote"));
    fs::remove_dir(&link).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let before = tree(&real);
    for command in RELIES_ON_TWO {
        let names = [
            real.to_str().unwrap(),
            link.to_str().unwrap(),
            "one and the same store",
            "hint: a link",
        ];
        check(&host.run(command), 1, &names);
        assert!(tree(&real) == before, "{command:?} changed something");
    }
    // A restore needs only one of the two stores.
    let out = host.path("stream").display().to_string();
    check(
        &host.run(&["restore", "frozen/data", "--output", &out]),
        0,
        &[],
    );
}

#[test]
fn copied_store_is_refused_as_a_second_store_until_it_has_its_own_id() {
    let host = Host::new();
    host.configure(RULES);
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        0,
        &["1 copied"],
    );
    let (remote, intermediate) = (host.path("remote"), host.path("intermediate"));
    fs::remove_dir_all(&remote).unwrap();
    copy_tree(&intermediate, &remote);
    // The remote that this host knew is gone: what only reads says so, and nothing is written.
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        1,
        &["is not the store that it was", "zfs-backup accept-store"],
    );
    check(&host.run(&["accept-store"]), 0, &["from now on"]);
    let before = tree(&remote);
    for command in RELIES_ON_TWO {
        check(
            &host.run(command),
            1,
            &["one and the same store", "accept-store"],
        );
    }
    check(
        &host.run(&["health"]),
        3,
        &["UNKNOWN", "one and the same store"],
    );
    assert!(tree(&remote) == before);
    fs::remove_file(remote.join("@zfs-backup/store-id")).unwrap();
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        1,
        &["has no identity now"],
    );
    check(
        &host.run(&["--dry-run", "accept-store"]),
        0,
        &["nothing was changed"],
    );
    check(
        &host.run(&["accept-store"]),
        0,
        &["until now", "from now on"],
    );
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        0,
        &["1 already stored"],
    );
    assert_ne!(
        tree(&remote)[&remote.join("@zfs-backup/store-id")],
        tree(&intermediate)[&intermediate.join("@zfs-backup/store-id")]
    );
}

#[test]
fn a_backup_that_this_host_uploaded_and_that_vanished_is_damage() {
    let host = Host::new();
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        0,
        &["1 copied"],
    );
    check(&host.run(&["verify-checksums"]), 0, &["0 damaged"]);
    let backup = host.backup("remote");
    let id = backup.file_name().unwrap().to_str().unwrap().to_owned();
    fs::remove_dir_all(&backup).unwrap();
    let gone = host.run(&["verify-checksums"]);
    check(
        &gone,
        4,
        &[
            id.trim_start_matches('@'),
            "this host stored it here",
            "no signed prune record",
        ],
    );
    // On a host that never stored anything there nothing is missing.
    fs::remove_dir_all(host.path("state")).unwrap();
    check(&host.run(&["verify-checksums"]), 1, &["no backup"]);
}

#[test]
fn replaced_store_id_does_not_hide_missing_backups() {
    let host = Host::new();
    check(
        &host.run(&["upload-intermediate-to-remote"]),
        0,
        &["1 copied"],
    );
    let backup = host.backup("remote");
    let id = backup.file_name().unwrap().to_str().unwrap().to_owned();
    fs::remove_dir_all(&backup).unwrap();
    let identity = host.path("remote/@zfs-backup/store-id");
    let text = fs::read_to_string(&identity).unwrap();
    let known = text
        .split('"')
        .find(|word| word.len() == 32)
        .unwrap()
        .to_owned();
    let other = "0123456789abcdef0123456789abcdef";
    let swapped = [
        Some(text.replace(&known, other)),
        // Nobody has to put another one.
        None,
    ];
    for swapped in swapped {
        fs::remove_file(&identity).unwrap();
        if let Some(swapped) = swapped {
            fs::write(&identity, swapped).unwrap();
        }
        let damage = [
            "DAMAGED @zfs-backup/store-id",
            "is not the store that it was",
            "zfs-backup accept-store",
            id.trim_start_matches('@'),
            "this host stored it here",
        ];
        check(&host.run(&["verify-checksums"]), 4, &damage);
        let json = host.run(&["--json", "verify-checksums"]);
        check(&json, 4, &["\"other_store\""]);
        fs::write(&identity, &text).unwrap();
    }
}

/// The folder is gone after a fire, and its mount point is empty while its disk is away. The remote
/// then answers readers. Commands that write there, or that delete because of it, refuse.
#[test]
fn missing_intermediate_directory_stops_writers_and_no_reader() {
    let host = Host::new();
    host.configure(RULES);
    check(&host.run(&["upload-intermediate-to-remote"]), 0, &[]);
    let id = host.backup("remote");
    let id = id.file_name().unwrap().to_str().unwrap();
    let id = id.strip_prefix('@').unwrap();
    let expected =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/stream.b3"))
            .unwrap();
    fs::remove_dir_all(host.path("intermediate")).unwrap();
    let missing = "the intermediate directory cannot be read, and may have something newer";
    for (out, warning) in [
        ("while missing", missing),
        ("while unmounted", "has no identity now"),
    ] {
        let stored = files(&host.path("remote/frozen/data"));
        let path = host.path(out).display().to_string();
        check(
            &host.run(&["restore", "frozen/data", "--output", &path]),
            0,
            &[warning],
        );
        let bytes = fs::read(&path).unwrap();
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), expected.trim());
        check(&host.run(&["verify-checksums"]), 0, &["0 damaged"]);
        let shown = host.run(&["--json", "show", "--include-remote"]);
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!(
            shown["datasets"][0]["remote"]["backups"][0]["id"], id,
            "{shown}"
        );
        for refused in [
            &["prune-remote", "-y"][..],
            &["prune-intermediate", "-y"],
            &["forget", id, "--dataset", "frozen/data", "-y"],
            &["upload-intermediate-to-remote"],
        ] {
            let output = host.run(refused);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{refused:?}: {errors}");
            assert!(errors.contains("intermediate"), "{refused:?}: {errors}");
        }
        assert_eq!(files(&host.path("remote/frozen/data")), stored);
        fs::create_dir_all(host.path("intermediate")).unwrap();
    }
}

/// A host that restores from its intermediate directory into a file.
struct OutputHost {
    host: Host,
    out: PathBuf,
}

impl OutputHost {
    fn new() -> Self {
        let host = Host::new();
        let out = host.path("out").join("stream");
        fs::create_dir(host.path("out")).unwrap();
        Self { host, out }
    }

    fn partial(&self) -> PathBuf {
        let backup = self.host.backup("intermediate");
        let id = backup.file_name().unwrap().to_str().unwrap();
        let id = id.trim_start_matches('@');
        self.out.with_file_name(format!("stream.{id}.partial"))
    }

    fn arguments(&self) -> Vec<&str> {
        let out = self.out.to_str().unwrap();
        vec![
            "restore",
            "frozen/data",
            "--from",
            "intermediate",
            "--output",
            out,
        ]
    }

    fn restore(&self) -> Output {
        self.host.run(&self.arguments())
    }

    /// Runs the restore under a shell that first limits the size of files to 150 KiB.
    fn restore_limited(&self, trap: &str) -> Output {
        let script = format!("{trap} ulimit -f 150; exec \"$@\"");
        Command::new("bash")
            .args([
                "-c",
                &script,
                "bash",
                env!("CARGO_BIN_EXE_zfs-backup"),
                "-c",
            ])
            .arg(self.host.path("zb.toml"))
            .args(self.arguments())
            .output()
            .unwrap()
    }

    fn assert_restored(&self) {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1/stream.b3");
        let expected = fs::read_to_string(data).unwrap();
        let restored = blake3::hash(&fs::read(&self.out).unwrap());
        assert_eq!(restored.to_hex().as_str(), expected.trim());
        assert_eq!(files(self.out.parent().unwrap()), ["stream"]);
    }
}

#[test]
fn killed_restore_to_a_file_resumes_and_fetches_only_the_rest() {
    let scene = OutputHost::new();
    // The kernel kills the process in the middle of a write.
    let killed = scene.restore_limited("");
    assert_eq!(killed.status.code(), None, "{killed:?}");
    let partial = scene.partial();
    let found = fs::metadata(&partial).unwrap();
    assert_eq!(
        (found.len(), found.permissions().mode() & 0o7777),
        (150 << 10, 0o600)
    );
    assert_eq!(files(&scene.host.path("out")).len(), 1);
    // The first two chunks are damaged now, and are not fetched again.
    for number in [0, 1] {
        flip(&chunk(&scene.host.backup("intermediate"), number));
    }
    let mut dry_run = scene.arguments();
    dry_run.insert(0, "--dry-run");
    check(
        &scene.host.run(&dry_run),
        0,
        &["resumes at 128K of 217K", "in 2 objects"],
    );
    dry_run.insert(0, "--json");
    let json: serde_json::Value = serde_json::from_slice(&scene.host.run(&dry_run).stdout).unwrap();
    assert_eq!(json["goes_on"]["position"], 128 << 10, "{json}");
    assert_eq!(fs::metadata(&partial).unwrap().len(), 150 << 10);
    check(&scene.restore(), 0, &["resumes at 128K of 217K"]);
    scene.assert_restored();
    check(&scene.restore(), 2, &["exists already"]);
}

#[test]
fn full_disk_keeps_the_partial_file_and_names_it() {
    let scene = OutputHost::new();
    let failed = scene.restore_limited("trap '' XFSZ;");
    let partial = scene.partial().display().to_string();
    let says = [
        &partial,
        "File too large",
        "the same command resumes",
        "150K of 217K",
    ];
    check(&failed, 1, &says);
    check(&scene.restore(), 0, &["resumes at 128K"]);
    scene.assert_restored();
}

#[test]
fn partial_file_is_written_by_one_run_only_and_other_backups_are_kept() {
    let scene = OutputHost::new();
    let other = "stream.20250101T000000Z-full-00000000000000ff-00000000000000ff.partial";
    fs::write(scene.out.with_file_name(other), "other").unwrap();
    let file = fs::File::create(scene.partial()).unwrap();
    fs::set_permissions(scene.partial(), fs::Permissions::from_mode(0o600)).unwrap();
    file.lock().unwrap();
    check(
        &scene.restore(),
        11,
        &["being worked on by another run", ".partial"],
    );
    drop(file);
    check(&scene.restore(), 0, &[other, "is of another backup"]);
    assert_eq!(fs::read(scene.out.with_file_name(other)).unwrap(), b"other");
    fs::remove_file(scene.out.with_file_name(other)).unwrap();
    scene.assert_restored();
}

/// The disk of the remote is not mounted: its mount point is missing, or empty.
#[test]
fn remote_that_is_not_mounted_is_never_an_empty_store() {
    let host = Host::new();
    host.configure(RULES);
    check(&host.run(&["upload-intermediate-to-remote"]), 0, &[]);
    let (remote, aside) = (host.path("remote"), host.path("aside"));
    fs::rename(&remote, &aside).unwrap();
    let kept = tree(&host.path("intermediate"));
    for mounted in [false, true] {
        for refused in [
            &["prune-remote", "-y"][..],
            &["prune-intermediate", "-y"],
            &["upload-intermediate-to-remote"],
            &["verify-checksums", "--read-data"],
            &["show", "--include-remote"],
        ] {
            let output = host.run(refused);
            let text = format!("{output:?}");
            let reads = matches!(refused[0], "show" | "verify-checksums");
            assert!(
                reads || output.status.code() == Some(1),
                "{refused:?}: {text}"
            );
            assert!(
                !output.status.success() || refused[0] == "show",
                "{refused:?}: {text}"
            );
            let folder = remote.display().to_string();
            assert!(
                text.contains(&folder),
                "{refused:?} does not name {folder}: {text}"
            );
            assert!(tree(&host.path("intermediate")) == kept, "{refused:?}");
        }
        if !mounted {
            fs::create_dir(&remote).unwrap();
        }
    }
    assert_eq!(
        files(&remote),
        [""; 0],
        "something was put into the mount point"
    );
    fs::remove_dir(&remote).unwrap();
    fs::rename(&aside, &remote).unwrap();
    check(&host.run(&["verify-checksums"]), 0, &["0 damaged"]);
}
