//! The power goes in the middle of an upload: two boots of the machine with one disk, perhaps with
//! two versions of ZFS. `scripts/power-cuts` runs the halves. Pool, state folder and store lie on
//! that disk; the store's folder has made durable what it confirmed, as a store elsewhere would.

use crate::halves::{confirmed, journals, newest, text};
use crate::pool::{noise, run, run_with_input, zfs};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use zfs_backup::keyring::KeyFile;

const FOLDER: &str = "/work/power";
const POOL: &str = "power";

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// "full" or "incr", then "plain", "raw" or "volume".
fn case() -> (String, String) {
    let case = std::env::var("ZFS_BACKUP_TEST_CASE").unwrap();
    let (kind, what) = case.split_once('-').unwrap();
    (kind.to_owned(), what.to_owned())
}

fn dataset() -> String {
    format!("{POOL}/{}", case().1)
}

fn write_config() {
    let keys = KeyFile::generate().unwrap();
    let signing = keys.signing_key().unwrap();
    let secret = format!(
        "untrusted comment: test\n{}\n",
        signing.to_secret_text().unwrap()
    );
    let config = format!(
        "[main]\nzfs_fs = \"{}\"\nencryption_recipients = [\"{}\"]\nsigning_key_file = \"{FOLDER}/signing.key\"\n\
         verify_keys = [\"{}\"]\nremote = \"file:{FOLDER}/store\"\nsplit_size = \"256K\"\nstate_dir = \"{FOLDER}/state\"\n",
        dataset(),
        keys.recipient().unwrap(),
        signing.verifying_key(),
    );
    fs::create_dir_all(path("store")).unwrap();
    for (name, content) in [
        ("identity.txt", keys.to_text().unwrap().to_string()),
        ("signing.key", secret),
        ("zb.toml", config),
    ] {
        fs::write(path(name), content).unwrap();
        run("chmod", &["600", path(name).to_str().unwrap()]);
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("zfs-backup");
    command
        .arg("-c")
        .arg(path("zb.toml"))
        .args(arguments)
        .stdin(Stdio::null());
    command
}

#[track_caller]
fn good(arguments: &[&str]) -> Output {
    let output = command(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    output
}

/// Several MB that were not there before.
fn change(seed: u64) {
    let bytes = noise(8 << 20, seed);
    match case().1.as_str() {
        "volume" => {
            let begun = Instant::now();
            while fs::metadata("/dev/zd0").is_err() {
                assert!(
                    begun.elapsed() < Duration::from_secs(30),
                    "the volume has no device"
                );
                std::thread::sleep(Duration::from_millis(100));
            }
            fs::write("/dev/zd0", bytes).unwrap();
        }
        what => fs::write(path("mnt").join(what).join("file"), bytes).unwrap(),
    }
    run("zpool", &["sync"]);
}

fn flag(kind: &str) -> &'static str {
    if kind == "full" {
        "--full"
    } else {
        "--incremental"
    }
}

fn ids() -> Vec<String> {
    let found = run(
        "find",
        &[path("store").to_str().unwrap(), "-name", "started.json"],
    );
    String::from_utf8(found)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
#[ignore = "scripts/power-cuts runs it: it cuts the power"]
fn first_half() {
    let (kind, what) = case();
    let image = path("pool.img");
    fs::create_dir_all(FOLDER).unwrap();
    fs::File::create(&image)
        .unwrap()
        .set_len(256 << 20)
        .unwrap();
    let mountpoint = format!("mountpoint={FOLDER}/mnt");
    run(
        "zpool",
        &[
            "create",
            "-f",
            "-O",
            "recordsize=1M",
            "-O",
            &mountpoint,
            POOL,
            image.to_str().unwrap(),
        ],
    );
    let flags: &[&str] = match what.as_str() {
        "raw" => {
            let options = [
                "create",
                "-o",
                "encryption=aes-256-gcm",
                "-o",
                "keyformat=passphrase",
            ];
            run_with_input(
                "zfs",
                &[&options[..], &["-o", "pbkdf2iters=100000", &dataset()]].concat(),
                "correct horse\n",
            );
            &["-w", "-L", "-c"]
        }
        "volume" => {
            zfs(&["create", "-V", "16M", &dataset()]);
            &["-L", "-c"]
        }
        _ => {
            zfs(&["create", &dataset()]);
            &["-L", "-c"]
        }
    };
    write_config();
    change(1);
    good(&["snapshot"]);
    let mut from = Vec::new();
    if kind == "incr" {
        good(&["stream-to-remote", "--full"]);
        from = vec!["-i".to_owned(), newest(&dataset())];
        change(2);
        good(&["snapshot"]);
    }
    let words: Vec<&str> = ["send"]
        .iter()
        .chain(flags)
        .copied()
        .chain(from.iter().map(String::as_str))
        .collect();
    fs::write(
        path("reference"),
        run("zfs", &[&words[..], &[&newest(&dataset())]].concat()),
    )
    .unwrap();
    if let [_, base] = &from[..] {
        // The upload follows from a bookmark.
        zfs(&["destroy", base]);
    }
    run("sync", &[]);
    let mut child = command(&["stream-to-remote", flag(&kind)]).spawn().unwrap();
    let begun = Instant::now();
    while confirmed(&path("state")) < 6 {
        if begun.elapsed() > Duration::from_secs(120) || child.try_wait().unwrap().is_some() {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the upload was over before the power went, or never came so far");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    run("power-cut", &["0"]);
    std::thread::sleep(Duration::from_secs(60));
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("the power stayed");
}

#[test]
#[ignore = "scripts/power-cuts runs it, after the first half"]
fn second_half() {
    let (kind, _) = case();
    run("zpool", &["import", "-d", FOLDER, POOL]);
    let kept = confirmed(&path("state"));
    assert!(kept >= 5, "{kept} confirmed chunks are known");
    let held = String::from_utf8(good(&["holds", "list"]).stdout).unwrap();
    assert!(held.contains("unfinished"), "{held}");
    let chunks = || {
        String::from_utf8(run(
            "find",
            &[path("store").to_str().unwrap(), "-name", "*.zfs.age"],
        ))
        .unwrap()
    };
    let (before, ids_before) = (chunks(), ids());
    let said = text(&good(&["-v", "stream-to-remote", flag(&kind)]));
    assert!(
        said.contains("committed") && said.contains("goes on with an interrupted upload"),
        "{said}"
    );
    assert_eq!(ids(), ids_before, "it began anew: {said}");
    let after = chunks();
    let stayed = before.lines().filter(|chunk| after.contains(chunk)).count();
    assert!(
        stayed >= kept,
        "confirmed chunks were made again: {before} {after}"
    );
    let id = said
        .split_whitespace()
        .skip_while(|word| *word != "committed")
        .nth(1)
        .unwrap();
    let identity = path("identity.txt").display().to_string();
    let stream = good(&[
        "restore",
        &dataset(),
        "--identity",
        &identity,
        "--stdout",
        "--backup",
        id,
    ])
    .stdout;
    assert!(
        stream == fs::read(path("reference")).unwrap(),
        "the stream differs from that of zfs send before the cut"
    );
    crate::halves::assert_nothing_held(&dataset());
    assert!(text(&good(&["verify-checksums"])).contains("0 damaged"));
    assert_eq!(journals(&path("state")).len(), 0);
    let files = String::from_utf8(run(
        "find",
        &[FOLDER, "-name", "*.partial", "-o", "-name", "*.new"],
    ))
    .unwrap();
    assert_eq!(files, "", "files are left");
}
