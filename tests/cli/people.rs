//! What people look at and type, on a host without ZFS: it reads well, says what it does not know,
//! and never calls good what it could not look at.

use crate::{PASSPHRASE, check, config, frozen, stderr, thawed, zb};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A configuration whose remote is a copy of a frozen archive.
fn host(more: &str) -> (TempDir, TempDir, String) {
    let (store, url, _) = thawed("none");
    let text = format!(
        "[main]\nzfs_fs = \"frozen/data\"\nencryption_passphrase = \"{PASSPHRASE}\"\nremote = \"{url}\"\n{more}"
    );
    let (folder, file) = config(&text, 0o600);
    (store, folder, file)
}

/// Everything below the folder of records.
fn records(folder: &TempDir) -> Vec<PathBuf> {
    let folders = fs::read_dir(folder.path().join("zb.state/records"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    folders
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect()
}

const PATIENT: [&str; 3] = ["health", "--max-age", "100y"];

#[test]
fn health_is_not_ok_before_a_verified_backup_is_known() {
    let (_store, folder, file) = host("");
    let health = || zb(&["-c", &file, PATIENT[0], PATIENT[1], PATIENT[2]], "");
    check(
        &health(),
        2,
        &["CRITICAL frozen/data no backup is known on this host"],
    );
    // The pool cannot be looked at here, which is said; the store can.
    check(
        &zb(&["-c", &file, "show", "--include-remote"], ""),
        3,
        &["error:", "frozen/data", "full"],
    );
    check(&health(), 1, &["WARNING frozen/data never verified"]);
    check(
        &zb(&["-c", &file, "verify-checksums"], ""),
        0,
        &["0 damaged"],
    );
    let good = health();
    check(
        &good,
        0,
        &["OK frozen/data", "; verified ", "| 'frozen/data'="],
    );
    assert!(
        !stdout(&good).contains("verified never"),
        "it was verified just now"
    );
    assert!(
        zb(&["-q", "-c", &file, PATIENT[0], PATIENT[1], PATIENT[2]], "")
            .stdout
            .is_empty(),
        "quiet is not silent"
    );
    check(
        &zb(&["-c", &file, "health", "--max-age", "1h"], ""),
        2,
        &["CRITICAL frozen/data", "(max 1h)"],
    );
    check(
        &zb(&["-q", "-c", &file, "health", "--max-age", "1h"], ""),
        2,
        &["CRITICAL frozen/data"],
    );
    for record in records(&folder) {
        let good = fs::read(&record).unwrap();
        fs::write(&record, &good[..good.len() / 2]).unwrap();
        check(
            &health(),
            3,
            &["UNKNOWN frozen/data", record.to_str().unwrap()],
        );
        fs::write(&record, good).unwrap();
    }
    fs::remove_dir_all(folder.path().join("zb.state")).unwrap();
    check(&health(), 2, &["CRITICAL"]);
    fs::write(&file, "[main]\nnonsense = 1\n").unwrap();
    check(&health(), 3, &["UNKNOWN"]);
    assert!(stdout(&zb(&["-c", "/no/such/file", "health"], "")).starts_with("UNKNOWN "));
}

#[test]
fn one_dataset_that_cannot_be_verified_ends_with_3_and_damage_with_4() {
    let (store, _folder, file) = host("");
    let verify = |datasets: &[&str]| {
        let arguments = ["-c", &file, "verify-checksums"];
        zb(&[arguments.as_slice(), datasets].concat(), "")
    };
    check(&verify(&["frozen/data"]), 0, &[]);
    check(&verify(&["frozen/none"]), 1, &["frozen/none"]);
    check(
        &verify(&["frozen/none", "frozen/data"]),
        3,
        &["frozen/none", "frozen/data"],
    );
    fs::write(glob(store.path(), ".zfs.age").swap_remove(0), b"short").unwrap();
    check(&verify(&["frozen/none", "frozen/data"]), 4, &["DAMAGED"]);
}

#[test]
fn damage_that_verify_found_is_critical_until_it_is_gone() {
    let (store, _folder, file) = host("");
    let chunk = glob(store.path(), ".zfs.age").swap_remove(0);
    let whole = fs::read(&chunk).unwrap();
    check(&zb(&["-c", &file, "verify-checksums"], ""), 0, &[]);
    check(&zb(&["-c", &file, "show", "--include-remote"], ""), 3, &[]);
    fs::write(&chunk, b"short").unwrap();
    check(&zb(&["-c", &file, "verify-checksums"], ""), 4, &["DAMAGED"]);
    check(
        &zb(&["-c", &file, PATIENT[0], PATIENT[1], PATIENT[2]], ""),
        2,
        &["CRITICAL", "1 objects damaged"],
    );
    let shown = zb(&["-c", &file, "show", "--include-remote"], "");
    check(
        &shown,
        3,
        &["DAMAGED", chunk.file_name().unwrap().to_str().unwrap()],
    );
    fs::write(&chunk, whole).unwrap();
    check(&zb(&["-c", &file, "verify-checksums"], ""), 0, &[]);
    check(
        &zb(&["-c", &file, PATIENT[0], PATIENT[1], PATIENT[2]], ""),
        0,
        &["OK"],
    );
}

fn glob(folder: &Path, suffix: &str) -> Vec<PathBuf> {
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
    found.sort();
    found
}

#[test]
fn show_names_stores_not_queried_and_fits_a_terminal() {
    let (_store, _folder, file) = host("");
    let unasked = zb(&["-c", &file, "show"], "");
    check(
        &unasked,
        3,
        &[
            "NONE KNOWN",
            "remote not asked",
            "[lifecycle-remote] has no rule",
        ],
    );
    let asked = zb(
        &["-c", &file, "show", "--include-remote", "frozen/data"],
        "",
    );
    check(
        &asked,
        3,
        &[
            "KIND",
            "remote",
            "20261123T030133Z-full-95583f3d2afbe232-f94467278daccf6a",
        ],
    );
    let bare = zb(
        &[
            "show",
            "--remote",
            &format!("file:{}", frozen("zstd").display()),
        ],
        PASSPHRASE,
    );
    check(&bare, 0, &["frozen/data", "ok"]);
    for output in [&unasked, &asked, &bare] {
        let text = stdout(output);
        assert!(!text.contains('\x1b'), "colours into a pipe");
        let wide: Vec<&str> = text
            .lines()
            .filter(|line| line.chars().count() > 80)
            .collect();
        // Names and paths cannot be cut.
        assert!(
            wide.iter().all(|line| line.split_whitespace().count() <= 2),
            "{wide:?}"
        );
    }
    let json: serde_json::Value =
        serde_json::from_slice(&zb(&["-c", &file, "--json", "show"], "").stdout).unwrap();
    assert_eq!(
        (&json["format"], &json["remote"]["asked"]),
        (&1.into(), &false.into())
    );
    assert!(
        json["datasets"][0]["remote"].is_null(),
        "not asked is not empty"
    );
}

#[test]
fn include_remote_without_a_remote_is_reported_and_lists_no_backup_twice() {
    let (store, _, _) = thawed("none");
    let text = format!(
        "[main]\nzfs_fs = \"frozen/data\"\nencryption_passphrase = \"{PASSPHRASE}\"\nintermediate_basedir = \"{}\"\n",
        store.path().display()
    );
    let (_folder, file) = config(&text, 0o600);
    let output = zb(
        &["-c", &file, "show", "--include-remote", "frozen/data"],
        "",
    );
    check(
        &output,
        3,
        &["the configuration names no remote", "intermediate"],
    );
    assert_eq!(
        stdout(&output).matches("f94467278daccf6a").count(),
        1,
        "{}",
        stdout(&output)
    );
}

#[test]
fn ini_configuration_is_refused_with_the_convert_command_that_works() {
    let folder = TempDir::new().unwrap();
    let ini = folder.path().join("old.ini");
    let conf = folder.path().join("rclone.conf");
    fs::write(&conf, "[store]\ntype = s3\nendpoint = s3.example.org\naccess_key_id = AKIA\nsecret_access_key = hush\n")
        .unwrap();
    let text = format!(
        "; old\n[main]\nzfs_fs = tank/a\nencryption_passphrase = hunter2\nremote = store:bucket/x\nrclone_conf = {}\n\
         colour = blue\n[lifecycle-remote]\nkeep-last-chain = 1\n",
        conf.display()
    );
    fs::write(&ini, text).unwrap();
    fs::set_permissions(&ini, fs::Permissions::from_mode(0o600)).unwrap();
    let name = ini.display().to_string();
    check(&zb(&["-c", &name, "snapshot"], ""), 2, &["config convert"]);
    let converted = zb(&["config", "convert", &name], "");
    check(
        &converted,
        0,
        &["not carried over: colour", "access_key_id"],
    );
    assert!(!stderr(&converted).contains("hush") && !stdout(&converted).contains("hush"));
    let toml = stdout(&converted);
    assert!(
        toml.contains("remote = \"s3:bucket/x\"") && toml.contains("keep-last-chains = 1"),
        "{toml}"
    );
    let (_keep, file) = config(&toml, 0o600);
    check(
        &zb(&["-c", &file, "config", "check"], ""),
        0,
        &["good", "which does not exist"],
    );
    check(
        &zb(&["config", "convert", "/no/such.ini"], ""),
        1,
        &["/no/such.ini"],
    );
}

#[test]
fn config_init_writes_a_new_file_once_with_mode_0600() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("new/zb.toml");
    let name = file.display().to_string();
    let arguments = [
        "-c",
        &name,
        "config",
        "init",
        "--dataset",
        "tank/a",
        "--remote",
        "s3:bucket/x",
    ];
    check(
        &zb(&["-c", &name, "config", "init"], ""),
        2,
        &["no terminal", "--dataset"],
    );
    check(
        &zb(&[&arguments[..], &["--dry-run"]].concat(), ""),
        0,
        &["would write", "tank/a"],
    );
    assert!(!file.exists());
    let written = zb(&arguments, "");
    check(&written, 0, &["mode 0600", "good"]);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let text = fs::read_to_string(&file).unwrap();
    let passphrase = text
        .split("encryption_passphrase = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap();
    assert_eq!(passphrase.len(), 29, "{text}");
    assert!(
        !stdout(&written).contains(passphrase) && !stderr(&written).contains(passphrase),
        "it would be in a log"
    );
    check(&zb(&arguments, ""), 2, &["never overwritten"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    // A bare name is in the current folder.
    let mut here = std::process::Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
    here.args(["-c", "here.toml"])
        .args(&arguments[2..])
        .current_dir(folder.path())
        .stdin(std::process::Stdio::null());
    check(&here.output().unwrap(), 0, &["here.toml", "mode 0600"]);
    assert!(folder.path().join("here.toml").exists());
    check(
        &zb(
            &[
                "config",
                "init",
                "--dataset",
                "tank/a",
                "--remote",
                "gdrive:x",
            ],
            "",
        ),
        2,
        &["gdrive:x", "rclone:REMOTE:PATH"],
    );
}

#[test]
fn paper_copy_has_mode_0600_and_restores_without_a_passphrase() {
    let (_store, folder, file) = host("");
    let paper = folder.path().join("paper").display().to_string();
    check(
        &zb(&["-c", &file, "key", "export"], ""),
        2,
        &["terminal", "--output"],
    );
    check(
        &zb(&["-c", &file, "key", "export", "--output", &paper], ""),
        0,
        &[],
    );
    assert_eq!(
        fs::metadata(&paper).unwrap().permissions().mode() & 0o777,
        0o600
    );
    check(
        &zb(&["-c", &file, "key", "export", "--output", &paper], ""),
        1,
        &[&paper],
    );
    let url = format!("file:{}", frozen("none").display());
    let restored = zb(
        &[
            "restore",
            "frozen/data",
            "--remote",
            &url,
            "--identity",
            &paper,
            "--stdout",
        ],
        "",
    );
    check(&restored, 0, &[]);
    let expected = fs::read_to_string(frozen("stream.b3")).unwrap();
    assert_eq!(
        blake3::hash(&restored.stdout).to_hex().as_str(),
        expected.trim()
    );
}

#[test]
fn outdated_paper_copy_cannot_recover_the_configuration_and_names_the_remedy() {
    let (store, folder, file) = host("");
    let paper = folder.path().join("paper").display().to_string();
    let export = ["-c", &file, "key", "export", "--output"];
    check(&zb(&[&export[..], &[&paper]].concat(), ""), 0, &[]);
    check(&zb(&["-c", &file, "key", "rotate"], ""), 0, &[]);
    let url = format!("file:{}", store.path().display());
    let recover = ["config", "recover", "--remote", &url, "--identity"];
    check(
        &zb(&[&recover[..], &[&paper]].concat(), ""),
        2,
        &[
            "that these keys trust (not trusted: 1)",
            "may be from before a `key rotate`",
            "leave --identity out",
        ],
    );
    let new = folder.path().join("new").display().to_string();
    check(&zb(&[&export[..], &[&new]].concat(), ""), 0, &[]);
    check(&zb(&[&recover[..], &[&new]].concat(), ""), 0, &["zfs_fs"]);
}

#[test]
fn a_new_passphrase_and_new_keys_leave_every_backup_restorable() {
    let (store, folder, file) = host("");
    let new = folder.path().join("new");
    fs::write(&new, "the new passphrase of this test\n").unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    check(
        &zb(&["-c", &file, "key", "passphrase"], ""),
        2,
        &["--new-passphrase-file"],
    );
    let change = [
        "-c",
        &file,
        "key",
        "passphrase",
        "--new-passphrase-file",
        new.to_str().unwrap(),
    ];
    check(
        &zb(&change, ""),
        0,
        &["0002.age", "the old passphrase still opens"],
    );
    check(
        &zb(&["-c", &file, "key", "rotate"], ""),
        0,
        &["0001.age", "a full of a new chain"],
    );
    let keyrings = glob(&store.path().join("@zfs-backup/keys"), ".age");
    assert_eq!(keyrings.len(), 3, "{keyrings:?}");
    let url = format!("file:{}", store.path().display());
    let restored = zb(
        &["restore", "frozen/data", "--remote", &url, "--stdout"],
        "the new passphrase of this test\n",
    );
    check(&restored, 0, &[]);
    check(
        &zb(&["-c", &file, "verify-checksums"], ""),
        0,
        &["0 damaged"],
    );
    check(
        &zb(&["-c", &file, "key", "rotate", "--dry-run"], ""),
        0,
        &["would make new keys"],
    );
}

#[test]
fn completions_and_manual_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        check(&zb(&["completions", shell], ""), 0, &["stream-to-remote"]);
    }
    check(&zb(&["man"], ""), 0, &[".TH zfs-backup", "prune\\-remote"]);
    let folder = TempDir::new().unwrap();
    check(
        &zb(&["man", "--output", folder.path().to_str().unwrap()], ""),
        0,
        &[],
    );
    assert!(folder.path().join("zfs-backup-restore.1").exists());
    check(
        &zb(&["--progress", "sometimes", "show"], ""),
        2,
        &["auto", "never"],
    );
}
