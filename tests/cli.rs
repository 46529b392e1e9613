//! The program as people run it, without ZFS: frozen archives come back, mistakes are named, damage
//! is found.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "support/output.rs"]
mod output;
#[path = "cli/people.rs"]
mod people;

use output::check;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const PASSPHRASE: &str = "frozen for ever in version one";

fn frozen(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/v1")
        .join(kind)
}

/// Runs the program with that on its stdin, as far from the user's own settings as can be.
fn zb(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
        .env_remove("AWS_PROFILE")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    let mut child = command.spawn().unwrap();
    // A program that reads no passphrase closes the pipe: that is no failure of the test.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
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

/// A store of its own for a test that damages it, and the folder of its one backup.
fn thawed(kind: &str) -> (TempDir, String, PathBuf) {
    let folder = TempDir::new().unwrap();
    copy_tree(&frozen(kind), folder.path());
    let url = format!("file:{}", folder.path().display());
    let backups = fs::read_dir(folder.path().join("frozen/data")).unwrap();
    let backup = backups.map(|entry| entry.unwrap().path()).next().unwrap();
    (folder, url, backup)
}

fn config(text: &str, mode: u32) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("zb.toml");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    (folder, file.display().to_string())
}

#[test]
fn frozen_archives_of_every_version_restore_to_the_same_bytes() {
    let expected = fs::read_to_string(frozen("stream.b3")).unwrap();
    for kind in ["none", "zstd"] {
        let url = format!("file:{}", frozen(kind).display());
        let output = zb(
            &["restore", "frozen/data", "--remote", &url, "--stdout"],
            PASSPHRASE,
        );
        check(&output, 0, &["frozen/data is from"]);
        assert_eq!(
            blake3::hash(&output.stdout).to_hex().as_str(),
            expected.trim(),
            "{kind}"
        );
        check(
            &zb(&["verify-checksums", "--remote", &url], PASSPHRASE),
            0,
            &["1 backups", "0 damaged"],
        );
        check(
            &zb(&["show", "--remote", &url], PASSPHRASE),
            0,
            &["frozen/data", "full"],
        );
        check(
            &zb(
                &[
                    "restore",
                    "frozen/data",
                    "--remote",
                    &url,
                    "--stdout",
                    "--dry-run",
                ],
                PASSPHRASE,
            ),
            0,
            &["chunks"],
        );
    }
}

/// A dry run in JSON says whether the restore fits, as its log does.
#[test]
fn dry_run_of_a_restore_prints_the_space_as_json() {
    let url = format!("file:{}", frozen("none").display());
    let folder = TempDir::new().unwrap();
    for (name, fit) in [("stream", "fits"), ("gone/stream", "unknown")] {
        let file = folder.path().join(name).display().to_string();
        let arguments = ["restore", "frozen/data", "--remote", &url];
        let arguments = [&arguments[..], &["--output", &file, "--dry-run", "--json"]].concat();
        let output = zb(&arguments, PASSPHRASE);
        check(&output, 0, &["frozen/data is from"]);
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["space"]["fit"], fit, "{document}");
    }
}

#[test]
fn output_file_is_named_only_when_complete() {
    let (_store, url, backup) = thawed("none");
    let folder = TempDir::new().unwrap();
    let (file, partial) = (
        folder.path().join("stream"),
        folder.path().join("stream.partial"),
    );
    let name = file.display().to_string();
    let arguments = [
        "restore",
        "frozen/data",
        "--remote",
        &url,
        "--output",
        &name,
    ];
    let chunk = chunks(&backup).pop().unwrap();
    let whole = fs::read(&chunk).unwrap();
    flip(&chunk);
    check(
        &zb(&arguments, PASSPHRASE),
        4,
        &[chunk.file_name().unwrap().to_str().unwrap()],
    );
    assert!(!file.exists());
    fs::write(&chunk, whole).unwrap();
    check(&zb(&arguments, PASSPHRASE), 0, &[]);
    assert!(file.exists() && !partial.exists());
    check(&zb(&arguments, PASSPHRASE), 2, &["exists already"]);
}

fn chunks(backup: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(backup)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut chunks: Vec<_> = files
        .filter(|file| file.to_string_lossy().ends_with(".zfs.age"))
        .collect();
    chunks.sort();
    chunks
}

fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn damaged_chunk_is_named_with_exit_status_4() {
    let (_store, url, backup) = thawed("none");
    let chunk = chunks(&backup).swap_remove(1);
    let name = chunk.file_name().unwrap().to_str().unwrap().to_owned();
    fs::write(&chunk, b"short").unwrap();
    check(
        &zb(&["verify-checksums", "--remote", &url], PASSPHRASE),
        4,
        &["DAMAGED", &name, "has 5 bytes"],
    );
    check(
        &zb(
            &["restore", "frozen/data", "--remote", &url, "--stdout"],
            PASSPHRASE,
        ),
        4,
        &[&name],
    );
    fs::remove_file(&chunk).unwrap();
    check(
        &zb(&["verify-checksums", "--remote", &url], PASSPHRASE),
        4,
        &["DAMAGED", &name, "missing"],
    );
    let restored = zb(
        &["restore", "frozen/data", "--remote", &url, "--stdout"],
        PASSPHRASE,
    );
    check(&restored, 4, &[&name, "missing"]);
    assert!(
        restored.stdout.is_empty(),
        "bytes came out before the gap was found"
    );
}

#[test]
fn a_wrong_passphrase_and_an_empty_store_are_different_answers() {
    let url = format!("file:{}", frozen("none").display());
    check(
        &zb(
            &["restore", "frozen/data", "--remote", &url, "--stdout"],
            "wrong\n",
        ),
        1,
        &["passphrase is wrong", "hint:"],
    );
    let empty = TempDir::new().unwrap();
    let nothing = format!("file:{}", empty.path().display());
    check(
        &zb(
            &["restore", "frozen/data", "--remote", &nothing, "--stdout"],
            "x\n",
        ),
        1,
        &["no keyring", "hint:"],
    );
    check(
        &zb(
            &[
                "restore",
                "frozen/data",
                "--remote",
                "file:/no/such/folder",
                "--stdout",
            ],
            "x\n",
        ),
        1,
        &["/no/such/folder"],
    );
    check(
        &zb(
            &["restore", "frozen/date", "--remote", &url, "--stdout"],
            PASSPHRASE,
        ),
        1,
        &["no backup of frozen/date"],
    );
    check(
        &zb(
            &["restore", "frozen/data@other", "--remote", &url, "--stdout"],
            PASSPHRASE,
        ),
        1,
        &["frozen/data@other"],
    );
}

#[test]
fn mistakes_in_the_configuration_name_key_line_and_remedy() {
    let good =
        "[main]\nzfs_fs = \"tank/a\"\nencryption_passphrase = \"x\"\nremote = \"file:/tmp\"\n";
    let (_keep, file) = config(&format!("{good}split_sise = \"1G\"\n"), 0o600);
    check(
        &zb(&["-c", &file, "config", "check"], ""),
        2,
        &["split_sise", "split_size", ":5"],
    );
    let (_keep, file) = config(good, 0o644);
    check(
        &zb(&["-c", &file, "config", "check"], ""),
        2,
        &["chmod 600"],
    );
    let (_keep, file) = config(good, 0o600);
    check(&zb(&["-c", &file, "config", "check"], ""), 0, &["good"]);
    let shown = zb(&["-c", &file, "config", "show"], "");
    check(&shown, 0, &["tank/a"]);
    assert!(
        !String::from_utf8_lossy(&shown.stdout).contains("= \"x\""),
        "the passphrase is shown"
    );
    check(
        &zb(&["-c", "/no/such/file.toml", "snapshot"], ""),
        2,
        &["/no/such/file.toml", "hint:"],
    );
}

#[test]
fn an_endpoint_that_does_not_answer_is_named() {
    let main = "[main]\nzfs_fs = \"tank/a\"\nencryption_passphrase = \"x\"\nremote = \"s3:bucket/prefix\"\n";
    let (_keep, file) = config(
        &format!("{main}[s3]\nendpoint = \"http://127.0.0.1:9\"\n"),
        0o600,
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
    command
        .args(["-c", &file, "key", "generate"])
        .env("AWS_ACCESS_KEY_ID", "a")
        .env("AWS_SECRET_ACCESS_KEY", "b");
    let output = command.output().unwrap();
    check(&output, 1, &["s3:bucket/prefix", "127.0.0.1:9"]);
    assert!(!stderr(&output).contains("\"b\""));
}

/// The address is reserved for documentation, so that no server gets the key if the check fails.
#[test]
fn customer_key_is_not_sent_in_clear_to_the_endpoint_of_a_profile() {
    let folder = TempDir::new().unwrap();
    let (aws, key) = (folder.path().join("aws"), folder.path().join("key"));
    let profile = "[profile nas]\nendpoint_url = http://192.0.2.1:9\n\
                   aws_access_key_id = a\naws_secret_access_key = b\n";
    fs::write(&aws, profile).unwrap();
    fs::write(&key, "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let (_keep, file) = config(
        &format!(
            "[main]\nzfs_fs = \"tank/a\"\nencryption_passphrase = \"x\"\nremote = \"s3:bucket\"\n\
             [s3]\nprofile = \"nas\"\nregion = \"r\"\nsse_customer_key_file = \"{}\"\n",
            key.display()
        ),
        0o600,
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
    command
        .args(["-c", &file, "--retry-for", "0", "key", "generate"])
        .env("AWS_CONFIG_FILE", &aws)
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    check(&command.output().unwrap(), 1, &["unencrypted", "https://"]);
}

#[test]
fn profile_of_an_sso_session_is_refused_with_the_way_that_works() {
    let folder = TempDir::new().unwrap();
    let aws = folder.path().join("aws");
    let keys = r#"{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b"}"#;
    let profiles = format!(
        "[profile new]\nsso_session = corp\nsso_account_id = 1\nsso_role_name = r\n\
         [sso-session corp]\nsso_region = eu-west-1\nsso_start_url = https://corp.example.org\n\
         [profile old]\nsso_start_url = https://corp.example.org\nsso_region = eu-west-1\nsso_account_id = 1\n\
         sso_role_name = r\n\
         [profile login]\nlogin_session = arn:aws:iam::1:user/x\n\
         [profile exported]\ncredential_process = echo '{keys}'\n"
    );
    fs::write(&aws, profiles).unwrap();
    let run = |profile: &str| {
        let (_keep, file) = config(
            &format!(
                "[main]\nzfs_fs = \"tank/a\"\nencryption_passphrase = \"x\"\nremote = \"s3:bucket\"\n\
                 [s3]\nendpoint = \"http://127.0.0.1:9\"\nprofile = \"{profile}\"\n"
            ),
            0o600,
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
        command
            .args(["-c", &file, "--retry-for", "0", "key", "generate"])
            .env("AWS_CONFIG_FILE", &aws)
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        command.output().unwrap()
    };
    for profile in ["new", "old", "login"] {
        let way = format!(
            "`credential_process = aws configure export-credentials --profile {profile} --format process`"
        );
        check(
            &run(profile),
            1,
            &["find credentials", &way, "~/.aws/config"],
        );
    }
    // A profile with that command works: the program asks the server.
    check(&run("exported"), 1, &["s3:bucket", "127.0.0.1:9"]);
}

#[test]
fn mount_option_is_refused_with_the_commands_to_use_instead() {
    for to in [&["--to", "tank/b"][..], &["--output", "/tmp/never-made"]] {
        let arguments = [
            &["restore", "tank/a", "--remote", "file:/nowhere", "--mount"],
            to,
        ]
        .concat();
        check(
            &zb(&arguments, ""),
            2,
            &["there is no --mount", "zfs load-key, zfs set, zfs mount"],
        );
    }
}
