//! Every kind of dataset: a full and an incremental of each, and a drill that compares every stream
//! with what the pool itself sends, byte for byte.

use crate::bench::Bench;
use crate::pool::{device_of, noise, property, run, run_with_input, zfs};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Names below `kinds/all`, with what `zfs create` gets.
const KINDS: &[(&str, &[&str])] = &[
    ("plain", &[]),
    ("large-dnodes", &["-o", "dnodesize=auto", "-o", "xattr=sa"]),
    ("records-1M", &["-o", "recordsize=1M"]),
    ("records-16M", &["-o", "recordsize=16M"]),
    ("file-names", &["-o", "longname=on"]),
    (
        "embedded",
        &["-o", "compression=zstd", "-o", "recordsize=4K"],
    ),
    ("zstd", &["-o", "compression=zstd-9"]),
    (
        "uncompressed",
        &["-o", "compression=off", "-o", "checksum=sha512"],
    ),
    (
        "case-insensitive",
        &[
            "-o",
            "casesensitivity=insensitive",
            "-o",
            "normalization=formD",
        ],
    ),
    (
        "quotas",
        &[
            "-o",
            "quota=100M",
            "-o",
            "refreservation=5M",
            "-o",
            "copies=2",
        ],
    ),
    (
        "long-name-0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789",
        &[],
    ),
    ("volume", &["-V", "4M", "-b", "16K"]),
    ("sparse-volume", &["-s", "-V", "64M", "-b", "64K"]),
];
/// What OpenZFS 2.1 cannot make.
const NEWER: [&str; 2] = ["records-16M", "file-names"];

struct Kinds {
    bench: Bench,
    /// Full names.
    datasets: Vec<String>,
}

impl Kinds {
    fn new() -> Self {
        let bench = Bench::tiny("kinds");
        zfs(&["create", "kinds/all"]);
        let mut datasets = vec!["kinds/all".to_owned()];
        let is_old = fs::read_to_string("/sys/module/zfs/version")
            .unwrap()
            .starts_with("2.1.");
        for (name, options) in KINDS {
            let name = format!("kinds/all/{name}");
            let arguments = [&["create"], *options, &[name.as_str()]].concat();
            let made = std::process::Command::new("zfs")
                .args(&arguments)
                .output()
                .unwrap();
            let why = String::from_utf8_lossy(&made.stderr).into_owned();
            let lacks = is_old && NEWER.iter().any(|newer| name.ends_with(newer));
            assert!(made.status.success() != lacks, "{arguments:?}: {why}");
            if made.status.success() {
                datasets.push(name);
            }
        }
        // Encrypted, and its key unloaded later; a clone of a snapshot that no backup has.
        let secret = "kinds/all/encrypted".to_owned();
        let options = [
            "create",
            "-o",
            "encryption=aes-256-gcm",
            "-o",
            "keyformat=passphrase",
            "-o",
            "pbkdf2iters=100000",
        ];
        run_with_input(
            "zfs",
            &[&options[..], &[secret.as_str()]].concat(),
            "correct horse\n",
        );
        zfs(&["snapshot", "kinds/data@origin"]);
        let clone = "kinds/all/clone".to_owned();
        zfs(&["clone", "kinds/data@origin", &clone]);
        datasets.extend([secret, clone]);
        bench.use_dataset("kinds/all");
        bench.write_config_with("zb.toml", &bench.weed.endpoint(), "recursive = true\n", "");
        Self { bench, datasets }
    }

    /// Changes every dataset.
    fn write(&self, seed: u64) {
        run("zpool", &["sync"]);
        for dataset in &self.datasets {
            if property(dataset, "type") == "volume" {
                let device = OpenOptions::new()
                    .write(true)
                    .open(device_of(dataset))
                    .unwrap();
                device
                    .write_all_at(&noise(200_000, seed), seed * 300_000)
                    .unwrap();
                device.sync_all().unwrap();
                continue;
            }
            let folder = PathBuf::from(property(dataset, "mountpoint"));
            fs::write(folder.join(format!("file-{seed}")), noise(150_000, seed)).unwrap();
            if dataset.ends_with("records-16M") {
                fs::write(folder.join(format!("large-{seed}")), noise(17 << 20, seed)).unwrap();
            }
            fs::write(
                folder.join(format!("text-{seed}")),
                "the same words again. ".repeat(9000),
            )
            .unwrap();
            if dataset.ends_with("file-names") {
                fs::write(
                    folder.join(format!("{}-{seed}", "n".repeat(300))),
                    noise(3_000, seed),
                )
                .unwrap();
            }
            for small in 0..20 {
                fs::write(
                    folder.join(format!("small-{seed}-{small}")),
                    noise(30 + small, seed),
                )
                .unwrap();
            }
            run(
                "setfattr",
                &[
                    "-n",
                    "user.big",
                    "-v",
                    &"v".repeat(300),
                    folder.join(format!("small-{seed}-1")).to_str().unwrap(),
                ],
            );
            if seed > 1 {
                fs::remove_file(folder.join(format!("small-{}-2", seed - 1))).unwrap();
            }
        }
    }
}

#[test]
fn every_kind_of_dataset_is_restored_from_full_and_incremental() {
    let kinds = Kinds::new();
    let bench = &kinds.bench;
    kinds.write(1);
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    kinds.write(2);
    bench.good(&["snapshot"]);
    // Encrypted data goes without its key.
    zfs(&["unmount", "kinds/all/encrypted"]);
    zfs(&["unload-key", "kinds/all/encrypted"]);
    bench.good(&["stream-to-remote", "--incremental"]);
    assert!(
        String::from_utf8(bench.good(&["verify-checksums"]))
            .unwrap()
            .contains("0 damaged")
    );

    let identity = bench.path("identity.txt").display().to_string();
    for dataset in &kinds.datasets {
        let said =
            String::from_utf8(bench.good(&["drill", dataset, "--identity", &identity])).unwrap();
        assert!(
            said.contains("2 of 2 streams byte for byte"),
            "{dataset}: {said}"
        );
        println!("{dataset}: full, incremental, restore and drill");
    }
    // The clone came as a full of its own: it needs nothing of where it was cloned from.
    zfs(&["destroy", "-r", "kinds/all/clone"]);
    let target = "kinds/clone-is-back".to_owned();
    bench.good(&bench.restore_arguments("kinds/all/clone", &identity, &["--to", &target]));
    assert_eq!(property(&target, "origin"), "-");
    zfs(&["mount", &target]);
    assert!(fs::read("/tmp/kinds/clone-is-back/file-2").unwrap() == noise(150_000, 2));
    assert!(
        fs::read("/tmp/kinds/clone-is-back/small-7").unwrap() == noise(100 + 7 * 37, 7),
        "of the origin"
    );
}
