//! The configuration as people meet it: the full example, the screens of its errors, what is shown
//! and advised.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod folders;
mod levels;
mod screens;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use zfs_backup::config::{
    Compression, Config, ConfigError, Environment, KeySource, Passphrase, RawMode, Remote, Size,
    SnapshotSource,
};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(
        text,
        Path::new("/etc/zfs-backup/zfs-backup.toml"),
        &Environment::default(),
    )
}

/// The screen of a configuration that is refused, under a short file name.
fn screen(text: &str) -> String {
    match parse(text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error
            .to_string()
            .replace("/etc/zfs-backup/zfs-backup.toml", "zb.toml"),
    }
}

fn notices(text: &str) -> String {
    let config = parse(text).unwrap_or_else(|error| panic!("{error}"));
    config
        .notices()
        .iter()
        .map(|notice| format!("{notice}\n"))
        .collect()
}

const RECIPIENT: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";
const VERIFY_KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

/// The smallest configuration that works, with more lines in `[main]` and after it.
fn with(main: &str, rest: &str) -> String {
    format!(
        "[main]\nzfs_fs = \"tank/photos\"\nremote = \"s3:bucket/zb\"\nencryption_passphrase_file = \"/k\"\n{main}\n{rest}\n"
    )
}

const EXAMPLE: &str = r#"
[main]
zfs_fs                = "data/photos"
recursive             = false
exclude               = []
encryption_passphrase = "abcdefg"
intermediate_basedir  = "/data/backupintermediate"
intermediate_checksum = true
split_size            = "1G"
remote                = "s3:bucket/whatever"
bwlimit               = "20M"
bwlimit_down          = "50M"
window                = "23:00-07:00"
retry_for             = "2h"
oldest_snapshot_days  = 120
snapshot_prefix       = "zfs-backup_"
use_snapshots         = "own"
store_as              = ""
pre_snapshot = ""
post_snapshot = ""
on_failure = "/opt/bin/on-backup-failure"
on_success = ""
hook_timeout          = "10m"
lock_file             = "/var/lib/zfs-backup/photos.lock"
state_dir             = "/var/lib/zfs-backup"
resume_days           = 14

[s3]
endpoint = "https://s3.example.org"
region = "eu-central-1"
storage_class = "STANDARD_IA"
path_style = true
checksum = "sha256"
server_side_encryption = "aws:kms"
kms_key_id = "alias/backups"
part_size = "32M"
concurrency = 8
object_lock_days = 30
access_key_id_file = "/etc/zfs-backup/key-id"
secret_access_key_file = "${CREDENTIALS_DIRECTORY}/s3-secret"

[prune]
profile = "deleting"

[send]
raw = "auto"
compressed = true
embedded = false
compression = "none"

[backup-lifecycle]
full_when_incrementals_exceed = "50%"
full_every = "90d"
max_incrementals = 365
auto_full_max = "100G"

[backup-sequence]
step01 = "lock"
step02 = "snapshot"
step03 = "export-intermediate"
step04 = "prune-intermediate -y"
step05 = "prune-snapshots -y"
step06 = "upload-intermediate-to-remote"
step07 = "prune-remote -y"
step08 = "unlock"
step09 = "verify-checksums"

[lifecycle-intermediate]
keep-last-chains              = 0
keep-last-full-only           = 1
keep-last-incremental-only    = 1
keep-full-with-age-closest-to = ["1w", "6m", "1y"]

[lifecycle-remote]
keep-last-chains    = 1
keep-last-full-only = 3
"#;

#[test]
fn full_example_parses_to_its_documented_values() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.datasets.names, ["data/photos".parse().unwrap()]);
    assert_eq!(
        config.remote,
        Some(Remote::S3 {
            bucket: "bucket".into(),
            prefix: "whatever".into()
        })
    );
    assert!(
        matches!(&config.keys, KeySource::Passphrase(Passphrase::Inline(secret)) if secret.expose() == "abcdefg")
    );
    assert_eq!(
        (config.s3.parts.part_size, config.s3.parts.concurrency),
        (Size::mebibytes(32), 8)
    );
    assert_eq!(
        (config.send.raw, config.send.compression),
        (RawMode::Auto, Compression::None)
    );
    assert_eq!(config.snapshots.source, SnapshotSource::Own);
    assert_eq!(config.snapshots.oldest_days, Some(120));
    assert_eq!(config.lifecycle_remote.last_fulls, Some(3));
    assert_eq!(config.lifecycle_intermediate.full_ages.len(), 3);
    let steps: Vec<&str> = config
        .sequence
        .iter()
        .map(|step| step.line.as_str())
        .collect();
    assert_eq!(
        (steps[0], steps[3], steps.len()),
        ("lock", "prune-intermediate -y", 9)
    );
}

#[test]
fn every_form_of_remote_and_key_parses() {
    for main in [
        "remote = \"b2:my-bucket/x\"\nencryption_passphrase_file = \"/k\"",
        "remote = \"file:/srv/x\"\nencryption_passphrase_command = \"pass show zb\"",
        "remote = \"rclone:gdrive:zb\"\nrclone_conf = \"/r.conf\"\nrclone_bwlimit = \"8M\"\nrclone_args = [\"--fast-list\"]\nencryption_passphrase = \"x\"",
        &format!(
            "intermediate_basedir = \"/x\"\nencryption_recipients = [\"{RECIPIENT}\"]\nsigning_key_file = \"/s\"\nverify_keys = [\"{VERIFY_KEY}\"]"
        ),
    ] {
        let text = format!("[main]\nzfs_fs = [\"tank/a\", \"tank/b\"]\n{main}\n");
        parse(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    }
}

#[test]
fn a_hook_is_a_line_or_a_list_of_words() {
    let main = "pre_snapshot = \"/bin/sh -c 'a b'\"\npost_snapshot = [\"/bin/sh\", \"-c\", \"a b\"]\n\
        on_failure = [\"/opt/my hook\"]\non_success = \"\"";
    let hooks = parse(&with(main, "")).unwrap().hooks;
    assert_eq!(
        hooks.pre_snapshot.as_ref().unwrap().argv(),
        ["/bin/sh", "-c", "a b"]
    );
    assert_eq!(hooks.post_snapshot, hooks.pre_snapshot);
    assert_eq!(hooks.on_failure.unwrap().argv(), ["/opt/my hook"]);
    assert_eq!(hooks.on_success, None);
    let screen = screen(&with(
        "on_failure = [\"sh\", \"-c\", \"x\"]\non_success = []",
        "",
    ));
    assert!(
        screen.contains("zb.toml:5: main.on_failure is \"sh -c x\"\n  expected: the absolute path"),
        "{screen}"
    );
    assert!(
        screen.contains("zb.toml:6: main.on_success is \"\"\n  expected: a program"),
        "{screen}"
    );
}

#[test]
fn keys_that_are_not_in_the_file_have_defaults() {
    let config = parse(&with("", "")).unwrap();
    assert_eq!(config.split_size, Size(1 << 30));
    assert_eq!(config.snapshots.prefix, "zfs-backup_");
    assert_eq!(config.state_dir, Path::new("/var/lib/zfs-backup"));
    assert_eq!(
        config.lock_file,
        Path::new("/var/lib/zfs-backup/zfs-backup.lock")
    );
    assert_eq!(config.parts().part_size, Size::mebibytes(8));
    assert!(config.lifecycle_remote.keeps_everything());
    let steps: Vec<&str> = config
        .sequence
        .iter()
        .map(|step| step.line.as_str())
        .collect();
    assert_eq!(
        steps,
        [
            "lock",
            "snapshot",
            "stream-to-remote",
            "verify-checksums",
            "unlock"
        ]
    );
    assert!(config.notices().is_empty(), "{:?}", config.notices());
}

#[test]
fn the_merged_configuration_parses_to_itself() {
    let strip = |shown: String| shown.replace("  # default", "");
    for text in [
        EXAMPLE.to_owned(),
        with("", ""),
        with("bwlimit = \"08:00,512K 19:00,off\"\nencryption_passphrase_file = \"/j\"", "").replace("\nencryption_passphrase_file = \"/k\"", ""),
        "[main]\nzfs_fs = \"t\"\nencryption_passphrase_command = [\"sh\", \"-c\", \"echo 'a b'\"]\nremote = \"rclone:a:b\"\nrclone_args = [\"--fast-list\"]\nrclone_spool_dir = \"/x\"\n".to_owned(),
    ] {
        let once = strip(parse(&text).unwrap().to_display_toml());
        let twice = strip(parse(&once).unwrap_or_else(|error| panic!("{once}\n{error}")).to_display_toml());
        assert_eq!(once, twice);
    }
}

proptest::proptest! {
    #[test]
    fn a_lost_or_mistyped_line_is_an_error_and_no_panic(
        lost in proptest::collection::vec(0usize..80, 0..6),
        mistyped in proptest::collection::vec((0usize..80, "\"\"|0|-1|true|\\[\\]|\\[1\\]|\\{\\}|\"\\PC{0,3}\"|1e9|2026-11-22"), 0..6),
    ) {
        let mut lines: Vec<String> = EXAMPLE.lines().map(str::to_owned).collect();
        for (line, value) in mistyped {
            if let Some((key, _)) = lines.get(line).and_then(|line| line.split_once('=')) {
                lines[line] = format!("{key}= {value}");
            }
        }
        let kept = lines.iter().enumerate().filter(|(index, _)| !lost.contains(index)).map(|(_, line)| line.as_str());
        if let Err(ConfigError::Invalid { problems, .. }) = parse(&kept.collect::<Vec<_>>().join("\n")) {
            proptest::prop_assert!(!problems.is_empty());
        }
    }
}

/// A folder with a configuration and what it names, and the environment of this user.
struct Scene {
    folder: tempfile::TempDir,
    env: Environment,
}

impl Scene {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            env: Environment {
                home: None,
                ..Environment::current()
            },
        }
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.folder.path().canonicalize().unwrap().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn load(&self, config: &Path) -> Result<Config, String> {
        Config::load(config, &self.env).map_err(|error| {
            let chain = [
                Some(error.to_string()),
                std::error::Error::source(&error).map(ToString::to_string),
                error.hint(),
            ];
            let folder = self.folder.path().canonicalize().unwrap();
            let chain: Vec<String> = chain.into_iter().flatten().collect();
            chain
                .join("\n")
                .replace(&folder.display().to_string(), "DIR")
        })
    }
}

#[test]
fn file_with_a_passphrase_must_not_be_readable_by_others() {
    let scene = Scene::new();
    let text = "[main]\nzfs_fs = \"t\"\nencryption_passphrase = \"x\"\nremote = \"file:/x\"\n";
    let closed = scene.write("closed.toml", text, 0o600);
    let open = scene.write("open.toml", text, 0o644);
    let writable = scene.write("writable.toml", text, 0o660);
    let config = scene.load(&closed).unwrap();
    assert_eq!(config.state_dir, closed.with_extension("state"));
    insta::assert_snapshot!(scene.load(&open).unwrap_err(), @r"
    read the configuration
    DIR/open.toml contains a secret and is readable by others (mode 0644)
    run `chmod 600 DIR/open.toml`
    ");
    insta::assert_snapshot!(scene.load(&writable).unwrap_err(), @r"
    read the configuration
    DIR/writable.toml is writable by others (mode 0660)
    run `chmod go-w DIR/writable.toml`
    ");
    insta::assert_snapshot!(scene.load(&closed.with_file_name("none.toml")).unwrap_err(), @r"
    read the configuration DIR/none.toml: there is no such file
    name the file with `-c FILE`
    ");
}

#[test]
fn existing_key_files_and_hooks_are_checked_for_permissions() {
    let scene = Scene::new();
    let key = scene.write("key", "passphrase\n", 0o640);
    let hook = scene.write("hook", "#!/bin/sh\n", 0o777);
    let text = format!(
        "[main]\nzfs_fs = \"t\"\nremote = \"file:/x\"\nencryption_passphrase_file = \"{}\"\non_failure = \"{} -v\"\non_success = \"/no/such/hook\"\n",
        key.display(),
        hook.display()
    );
    let config = scene.write("zb.toml", &text, 0o644);
    insta::assert_snapshot!(scene.load(&config).unwrap_err(), @r"
    DIR/zb.toml:4: main.encryption_passphrase_file names a file that cannot be trusted: DIR/key contains a secret and is readable by others (mode 0640)
      hint: run `chmod 600 DIR/key`
    DIR/zb.toml:5: main.on_failure names a file that cannot be trusted: DIR/hook is writable by others (mode 0777)
      hint: run `chmod go-w DIR/hook`
    ");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&hook, Permissions::from_mode(0o755)).unwrap();
    let config = scene.load(&config).unwrap();
    assert!(
        matches!(&config.keys, KeySource::Passphrase(passphrase) if passphrase.resolve(&scene.env).unwrap().expose() == "passphrase")
    );
    let missing: Vec<String> = config
        .missing_files(&scene.env)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        missing,
        ["main.on_success names /no/such/hook, which does not exist"]
    );
}
