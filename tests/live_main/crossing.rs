//! A backup made on one version of ZFS is restored on the other: boots of two versions with one
//! disk, which `scripts/cross-version` runs. Only the store, the keys and what the files were lie
//! on that disk; each boot makes its own pools. What one of them cannot take is refused with a
//! sentence that says so.

use crate::halves::text;
use crate::pool::{device_of, noise, property, run, run_with_input, wait_until, zfs};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use zfs_backup::keyring::KeyFile;
use zfs_backup::model::Digest;

const FOLDER: &str = "/work/crossing";
const POOL: &str = "crossing";
const PASSPHRASE: &str = "correct horse\n";
/// Below `crossing/all`, with what `zfs create` gets.
const KINDS: &[(&str, &[&str])] = &[
    ("plain", &["-o", "recordsize=1M"]),
    (
        "zstd",
        &[
            "-o",
            "compression=zstd",
            "-o",
            "dnodesize=auto",
            "-o",
            "xattr=sa",
        ],
    ),
    (
        "encrypted",
        &[
            "-o",
            "encryption=aes-256-gcm",
            "-o",
            "keyformat=passphrase",
            "-o",
            "pbkdf2iters=100000",
        ],
    ),
    ("records-16M", &["-o", "recordsize=16M"]),
    ("file-names", &["-o", "longname=on"]),
    ("volume", &["-V", "4M", "-b", "16K"]),
];
/// What OpenZFS 2.1 cannot make.
const NEWER: [&str; 2] = ["records-16M", "file-names"];
/// What it cannot take back either: a stream with names of files that it has no place for.
const NOT_ON_OLD: [&str; 1] = ["file-names"];

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// 2.1 or 2.3.
fn series() -> String {
    let version = fs::read_to_string("/sys/module/zfs/version").unwrap();
    version
        .trim()
        .splitn(3, '.')
        .take(2)
        .collect::<Vec<_>>()
        .join(".")
}

fn command(made_on: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("zfs-backup");
    command
        .arg("-c")
        .arg(path(made_on).join("zb.toml"))
        .args(arguments)
        .stdin(Stdio::null());
    command
}

#[track_caller]
fn good(made_on: &str, arguments: &[&str]) -> Output {
    let output = command(made_on, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    output
}

/// A pool in memory, for this boot.
fn make_pool(name: &str, options: &[&str]) {
    let image = format!("/tmp/{name}.img");
    fs::File::create(&image)
        .unwrap()
        .set_len(512 << 20)
        .unwrap();
    let mountpoint = format!("mountpoint=/tmp/{name}");
    run(
        "zpool",
        &[
            &["create", "-f", "-O", &mountpoint],
            options,
            &[name, &image],
        ]
        .concat(),
    );
}

fn write_config(series: &str) {
    let keys = KeyFile::generate().unwrap();
    let signing = keys.signing_key().unwrap();
    let secret = format!(
        "untrusted comment: test\n{}\n",
        signing.to_secret_text().unwrap()
    );
    let folder = path(series);
    fs::create_dir_all(folder.join("store")).unwrap();
    let config = format!(
        "[main]\nzfs_fs = \"{POOL}/all\"\nrecursive = true\nencryption_recipients = [\"{}\"]\n\
         signing_key_file = \"{1}/signing.key\"\nverify_keys = [\"{2}\"]\nremote = \"file:{1}/store\"\n\
         split_size = \"1M\"\nstate_dir = \"{1}/state\"\n",
        keys.recipient().unwrap(),
        folder.display(),
        signing.verifying_key(),
    );
    for (name, content) in [
        ("identity.txt", keys.to_text().unwrap().to_string()),
        ("signing.key", secret),
        ("zb.toml", config),
    ] {
        fs::write(folder.join(name), content).unwrap();
        run("chmod", &["600", folder.join(name).to_str().unwrap()]);
    }
}

fn device(volume: &str) -> fs::File {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(device_of(volume))
        .unwrap()
}

fn change(name: &str, seed: u64) {
    if name == "volume" {
        let device = device(&format!("{POOL}/all/{name}"));
        device
            .write_all_at(&noise(300_000, seed), seed * 500_000)
            .unwrap();
        return device.sync_all().unwrap();
    }
    let folder = PathBuf::from(format!("/tmp/{POOL}/all/{name}"));
    fs::write(folder.join(format!("noise-{seed}")), noise(1_500_000, seed)).unwrap();
    fs::write(
        folder.join(format!("text-{seed}")),
        "the same words again. ".repeat(9_000),
    )
    .unwrap();
    if name == "file-names" {
        fs::write(
            folder.join(format!("{}-{seed}", "n".repeat(300))),
            noise(3_000, seed),
        )
        .unwrap();
    }
}

/// Hash by file; of a volume the whole.
fn content(name: &str, dataset: &str) -> BTreeMap<String, String> {
    if name == "volume" {
        let mut bytes = vec![0; 4 << 20];
        device(dataset).read_exact_at(&mut bytes, 0).unwrap();
        return [("device".to_owned(), Digest::of(&bytes).to_string())].into();
    }
    let files = fs::read_dir(format!("/tmp/{dataset}"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .map(|file| {
            let digest = Digest::of(&fs::read(&file).unwrap()).to_string();
            (
                file.file_name().unwrap().to_str().unwrap().to_owned(),
                digest,
            )
        })
        .collect()
}

/// The kinds that are backed up on a version.
fn kinds(series: &str) -> impl Iterator<Item = &'static (&'static str, &'static [&'static str])> {
    let old = series == "2.1";
    KINDS
        .iter()
        .filter(move |(name, _)| !old || !NEWER.contains(name))
}

#[test]
#[ignore = "scripts/cross-version runs it"]
fn made_here() {
    let series = series();
    make_pool(POOL, &[]);
    zfs(&["create", &format!("{POOL}/all")]);
    for (name, options) in kinds(&series) {
        let dataset = format!("{POOL}/all/{name}");
        run_with_input(
            "zfs",
            &[&["create"], *options, &[dataset.as_str()]].concat(),
            PASSPHRASE,
        );
    }
    write_config(&series);
    for (seed, kind) in [(1, "--full"), (2, "--incremental")] {
        kinds(&series).for_each(|(name, _)| change(name, seed));
        run("zpool", &["sync"]);
        good(&series, &["snapshot"]);
        good(&series, &["stream-to-remote", kind]);
    }
    let found = |name: &str| content(name, &format!("{POOL}/all/{name}"));
    let contents: BTreeMap<&str, _> = kinds(&series)
        .map(|(name, _)| (*name, found(name)))
        .collect();
    fs::write(
        path(&series).join("contents.json"),
        serde_json::to_vec(&contents).unwrap(),
    )
    .unwrap();
    run("sync", &[]);
    println!(
        "made on {series}: {:?}",
        contents.keys().collect::<Vec<_>>()
    );
}

#[test]
#[ignore = "scripts/cross-version runs it, after `made_here` on the other version"]
fn restored_here() {
    let here = series();
    let made_on = if here == "2.1" { "2.3" } else { "2.1" };
    make_pool("crossed", &[]);
    // With no feature at all, as a pool of a very old version.
    make_pool("bare", &["-d"]);
    let contents: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&fs::read(path(made_on).join("contents.json")).unwrap()).unwrap();
    let identity = path(made_on).join("identity.txt").display().to_string();
    for (name, expected) in &contents {
        let (dataset, target) = (format!("{POOL}/all/{name}"), format!("crossed/{name}"));
        let restore = [
            "restore",
            &dataset,
            "--identity",
            &identity,
            "--to",
            &target,
        ];
        if here == "2.1" && NOT_ON_OLD.contains(&name.as_str()) {
            assert_refused(
                made_on,
                &restore,
                &[
                    "a feature that this ZFS does not know",
                    "sent by ZFS 2.3",
                    "this is ZFS 2.1",
                ],
            );
            println!("made on {made_on}, refused on {here}: {name}");
            continue;
        }
        good(made_on, &restore);
        match name.as_str() {
            "volume" => {}
            "encrypted" => {
                run_with_input("zfs", &["load-key", &target], PASSPHRASE);
                zfs(&["mount", &target]);
            }
            _ => drop(zfs(&["mount", &target])),
        }
        assert!(
            content(name, &target) == *expected,
            "{name} came back with other content"
        );
        assert_eq!(
            zfs(&["list", "-Hro", "name", "-t", "snapshot", &target])
                .lines()
                .count(),
            2,
            "{name}"
        );
        println!("made on {made_on}, restored on {here}: {name}");
    }
    let bare = [
        "restore",
        &format!("{POOL}/all/plain"),
        "--identity",
        &identity,
        "--to",
        "bare/plain",
    ];
    assert_refused(
        made_on,
        &bare,
        &[
            "lacks a feature",
            &format!("sent by ZFS {made_on}"),
            "zpool upgrade",
        ],
    );
    assert_eq!(
        zfs(&["list", "-Hro", "name", "bare"]),
        "bare",
        "something is left"
    );
    assert_eq!(property(&"bare", "type"), "filesystem");
    // `made_here` follows in the same boot and makes a volume of the same size.
    ["crossed", "bare"]
        .iter()
        .for_each(|pool| drop(run("zpool", &["destroy", "-f", pool])));
    wait_until("the volume's device is gone", || {
        !Path::new("/dev/zd0").exists()
    });
}

#[track_caller]
fn assert_refused(made_on: &str, restore: &[&str], says: &[&str]) {
    let output = command(made_on, restore).output().unwrap();
    let said = text(&output)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(output.status.code(), Some(1), "{said}");
    says.iter()
        .for_each(|words| assert!(said.contains(words), "{words:?} is not in: {said}"));
}
