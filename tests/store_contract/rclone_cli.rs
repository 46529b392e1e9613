//! The program with a remote of rclone: a backup is uploaded, verified, restored and pruned.

use crate::output::check;
use crate::rclone::{Host, folder_of_rclone};
use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PASSPHRASE: &str = "frozen for ever in version one";

fn zb(host: &Host, arguments: &[&str]) -> Output {
    zb_with(host, &folder_of_rclone(), arguments)
}

/// Runs the program with the rclone of this folder.
fn zb_with(host: &Host, rclone: &Path, arguments: &[&str]) -> Output {
    let path = env::var("PATH").unwrap_or_default();
    let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
    command
        .args(arguments)
        .env("PATH", format!("{}:{path}", rclone.display()));
    // Variables that a user's environment may have, and that must not change anything.
    command
        .env("RCLONE_CONFIG", host.path("rclone.conf"))
        .env("RCLONE_DRY_RUN", "true");
    command.env("RCLONE_INCLUDE", "*.nothing");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(PASSPHRASE.as_bytes());
    child.wait_with_output().unwrap()
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn configure(host: &Host, more: &str) -> String {
    let path = |name: &str| host.path(name).display().to_string();
    let text = format!(
        "[main]\nzfs_fs = \"frozen/data\"\nencryption_passphrase = \"{PASSPHRASE}\"\nintermediate_basedir = \"{}\"\n\
         remote = \"rclone:disk:{}\"\nrclone_conf = \"{}\"\nrclone_bwlimit = \"50M\"\nrclone_args = [\"--transfers=2\"]\n\
         state_dir = \"{}\"\n{more}",
        path("intermediate"),
        path("objects"),
        path("rclone.conf"),
        path("state"),
    );
    fs::write(host.path("zb.toml"), text).unwrap();
    fs::set_permissions(host.path("zb.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    path("zb.toml")
}

/// `doctor` puts, lists and removes names that some file systems do not keep apart.
#[test]
fn doctor_reports_a_remote_that_mixes_names() {
    for (change, states) in [("tr A-Z a-z", vec!["bad"]), ("cat", vec![])] {
        let host = Host::new("http://127.0.0.1:9");
        let config = configure(&host, "");
        // A script in front of rclone changes the names of the check as a file system might.
        let script = format!(
            "#!/bin/sh\nn=$#\nwhile [ $n -gt 0 ]; do a=$1; shift; n=$((n-1))\ncase \"$a\" in */probe/*) \
             a=\"${{a%/probe/*}}/probe/$(printf '%s' \"${{a##*/probe/}}\" | {change})\";; esac\n\
             set -- \"$@\" \"$a\"; done\nexec '{}' \"$@\"\n",
            folder_of_rclone().join("rclone").display()
        );
        let bin = host.path("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("new"), script).unwrap();
        fs::set_permissions(bin.join("new"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(bin.join("new"), bin.join("rclone")).unwrap();
        let output = zb_with(&host, &bin, &["-c", &config, "doctor", "--json"]);
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = document["checks"].as_array().unwrap();
        let named: Vec<_> = checks
            .iter()
            .filter(|check| check["subject"] == "names")
            .collect();
        let found: Vec<_> = named.iter().map(|check| check["state"].clone()).collect();
        assert_eq!(found, states, "{change}: {document:#}");
        let text = format!("{named:?}");
        assert!(
            states.is_empty() || text.contains("does not keep names apart"),
            "{text}"
        );
        assert!(glob(&host.path("objects"), "").is_empty());
    }
}

#[test]
fn backup_is_copied_verified_and_restored_through_rclone() {
    let host = Host::new("http://127.0.0.1:9");
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1");
    copy_tree(&archive.join("none"), &host.path("intermediate"));
    let config = configure(&host, "");
    check(
        &zb(&host, &["-c", &config, "config", "check"]),
        0,
        &["SHA-1 or MD5 that rclone shows"],
    );
    check(
        &zb(&host, &["-c", &config, "upload-intermediate-to-remote"]),
        0,
        &["frozen/data"],
    );
    check(
        &zb(&host, &["-c", &config, "upload-intermediate-to-remote"]),
        0,
        &[],
    );
    check(
        &zb(&host, &["-c", &config, "verify-checksums"]),
        0,
        &["0 damaged", "SHA-1"],
    );
    check(
        &zb(&host, &["-c", &config, "verify-checksums", "--read-data"]),
        0,
        &["0 damaged"],
    );
    let place = format!("rclone:disk:{}", host.path("objects").display());
    for arguments in [vec!["-c", &config], vec![]] {
        let more: &[&str] = if arguments.is_empty() {
            &["--remote", &place]
        } else {
            &[]
        };
        let restore = [
            &arguments[..],
            &["restore", "frozen/data"],
            more,
            &["--stdout"],
        ]
        .concat();
        let restored = zb(&host, &restore);
        check(&restored, 0, &[]);
        let expected = fs::read_to_string(archive.join("stream.b3")).unwrap();
        assert_eq!(
            blake3::hash(&restored.stdout).to_hex().as_str(),
            expected.trim()
        );
    }
    // A byte changes at the provider: the hash of the remote shows it without a download.
    let chunk = glob(&host.path("objects"), ".zfs.age").swap_remove(0);
    let whole = fs::read(&chunk).unwrap();
    let mut changed = whole.clone();
    changed[100] ^= 1;
    fs::write(&chunk, &changed).unwrap();
    check(
        &zb(&host, &["-c", &config, "verify-checksums"]),
        4,
        &["DAMAGED", "1 DAMAGED"],
    );
    fs::write(&chunk, whole).unwrap();
    check(
        &zb(&host, &["-c", &config, "verify-checksums"]),
        0,
        &["0 damaged"],
    );
}

fn glob(folder: &Path, suffix: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        match entry.is_dir() {
            true => found.extend(glob(&entry, suffix)),
            false if entry.to_string_lossy().ends_with(suffix) => found.push(entry),
            false => {}
        }
    }
    found
}
