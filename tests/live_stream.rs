//! What a ZFS kernel really sends: every kind of stream is accepted, damage is found, and what a
//! kernel sends after an interruption splices to the very bytes of the uninterrupted send.
//!
//! Runs as root where `zfs` and a ZFS kernel are (`tests/vm/run`); makes a pool of its own on a
//! file and destroys it. Fails, and does not skip, without ZFS.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

mod stream_common;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use stream_common::{
    finds_damage, first_block, layout, parse_any, pattern, points_at_blocks, splice_onto,
};
use zfs_backup::stream::record::{RecordType, feature};

/// Guards against a device that never appears.
const DEVICE_MAX: Duration = Duration::from_secs(300);

/// A pool on a file, destroyed with this.
struct Pool {
    name: String,
    folder: tempfile::TempDir,
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = Command::new("zpool")
            .args(["destroy", "-f", &self.name])
            .status();
    }
}

fn run(program: &str, words: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(words)
        .stderr(Stdio::inherit())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program} {words:?}: {error}"));
    assert!(
        output.status.success(),
        "{program} {words:?}: {}",
        output.status
    );
    output.stdout
}

impl Pool {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("livestream{}", std::process::id());
        let disk = folder.path().join("disk");
        File::create(&disk).unwrap().set_len(1 << 30).unwrap();
        let mount = format!("mountpoint={}", folder.path().join("mnt").display());
        let words = [
            "create",
            "-o",
            "ashift=12",
            "-O",
            "compression=lz4",
            "-O",
            "atime=off",
            "-O",
            "xattr=sa",
            "-O",
        ];
        run(
            "zpool",
            &[&words[..], &[&mount, &name, disk.to_str().unwrap()]].concat(),
        );
        Self { name, folder }
    }

    fn path(&self, dataset: &str) -> PathBuf {
        self.folder.path().join("mnt").join(dataset)
    }

    fn dataset(&self, dataset: &str) -> String {
        format!("{}/{dataset}", self.name)
    }

    fn create(&self, dataset: &str, options: &[&str]) {
        run(
            "zfs",
            &[&["create"], options, &[&self.dataset(dataset)]].concat(),
        );
    }

    fn snapshot(&self, dataset: &str, snapshot: &str) {
        run(
            "zfs",
            &["snapshot", &format!("{}@{snapshot}", self.dataset(dataset))],
        );
    }

    /// A stream of the snapshot `@a`, or of what changed up to `@b`.
    fn send(&self, dataset: &str, flags: &[&str]) -> Vec<u8> {
        let snapshot = if flags.contains(&"-i") { "b" } else { "a" };
        run(
            "zfs",
            &[
                &["send"],
                flags,
                &[&format!("{}@{snapshot}", self.dataset(dataset))],
            ]
            .concat(),
        )
    }

    /// Receives the start of a stream, as far as that byte, then sends again from where the kernel
    /// would go on.
    fn interrupt(&self, stream: &[u8], bytes: usize, target: &str) -> Option<Vec<u8>> {
        let target = self.dataset(target);
        let mut receive = Command::new("zfs")
            .args(["receive", "-s", "-u", &target])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        receive
            .stdin
            .take()
            .unwrap()
            .write_all(&stream[..bytes])
            .unwrap();
        assert!(!receive.wait().unwrap().success());
        let token = run(
            "zfs",
            &["get", "-H", "-o", "value", "receive_resume_token", &target],
        );
        let token = String::from_utf8(token).unwrap();
        let resumed = (token.trim() != "-").then(|| run("zfs", &["send", "-t", token.trim()]));
        run("zfs", &["receive", "-A", &target]);
        resumed
    }
}

/// Files of every shape that makes records of its own.
fn fill(folder: &Path, seed: u32) {
    let random = pattern(seed, 1_300_000);
    fs::write(folder.join("random"), &random).unwrap();
    fs::write(
        folder.join("text"),
        "a line that compresses\n".repeat(40_000),
    )
    .unwrap();
    fs::write(folder.join("odd"), &random[..700]).unwrap();
    for index in 0..200 {
        fs::write(
            folder.join(format!("small{index}")),
            format!("small file {index}"),
        )
        .unwrap();
    }
    let mut sparse = File::create(folder.join("sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &random[..300_000], 20 << 20).unwrap();
    sparse.flush().unwrap();
    let long = folder.join("attributes");
    fs::write(&long, "has a spill block").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&long, "user.long", &pattern(seed, 3000), flags).unwrap();
}

fn change(folder: &Path) {
    for index in 50..100 {
        fs::remove_file(folder.join(format!("small{index}"))).unwrap();
    }
    fs::write(folder.join("new"), pattern(77, 900_000)).unwrap();
    File::options()
        .write(true)
        .open(folder.join("random"))
        .unwrap()
        .set_len(500_000)
        .unwrap();
    fs::remove_file(folder.join("text")).unwrap();
}

/// Datasets `fs`, `big` (1 MiB records), `vol` and `enc` (encrypted), each with snapshots `@a` and
/// `@b`.
fn filled_pool() -> Pool {
    let pool = Pool::new();
    pool.create("fs", &[]);
    pool.create("big", &["-o", "recordsize=1M"]);
    let key = pool.folder.path().join("key");
    fs::write(&key, "a passphrase\n").unwrap();
    let location = format!("keylocation=file://{}", key.display());
    pool.create(
        "enc",
        &[
            "-o",
            "encryption=on",
            "-o",
            "keyformat=passphrase",
            "-o",
            &location,
        ],
    );
    pool.create("vol", &["-V", "16M", "-o", "volblocksize=16k"]);
    for (seed, dataset) in (1..).zip(["fs", "big", "enc"]) {
        fill(&pool.path(dataset), seed);
    }
    let write_volume = |seed, at| {
        let device = volume_device(&pool.dataset("vol"));
        let volume = File::options().write(true).open(device).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&volume, &pattern(seed, 1 << 20), at).unwrap();
        volume.sync_all().unwrap();
    };
    write_volume(5, 0);
    for dataset in ["fs", "big", "enc", "vol"] {
        pool.snapshot(dataset, "a");
    }
    for dataset in ["fs", "big", "enc"] {
        change(&pool.path(dataset));
    }
    write_volume(6, 3 << 20);
    for dataset in ["fs", "big", "enc", "vol"] {
        pool.snapshot(dataset, "b");
    }
    pool
}

/// The device of a volume: its link if udev made one, else the only node.
fn volume_device(dataset: &str) -> PathBuf {
    let link = Path::new("/dev/zvol").join(dataset);
    let begun = Instant::now();
    while begun.elapsed() < DEVICE_MAX {
        if let Some(found) = [link.clone(), PathBuf::from("/dev/zd0")]
            .into_iter()
            .find(|path| path.exists())
        {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no device for {dataset}");
}

/// The kinds of streams this tool asks for, and plain ones.
fn streams(pool: &Pool) -> Vec<(String, Vec<u8>)> {
    let mut streams = vec![];
    for dataset in ["fs", "big", "vol", "enc"] {
        for flags in [
            &[][..],
            &["-L"],
            &["-L", "-c"],
            &["-L", "-c", "-e"],
            &["-L", "-c", "-i", "@a"],
            &["-L", "-w"],
        ] {
            streams.push((format!("{dataset} {flags:?}"), pool.send(dataset, flags)));
        }
    }
    streams.push((
        "enc raw incremental".to_owned(),
        pool.send("enc", &["-w", "-L", "-i", "@a"]),
    ));
    streams
}

#[test]
fn every_kind_of_stream_is_accepted_and_damage_is_found() {
    let pool = filled_pool();
    let mut seen = std::collections::BTreeMap::new();
    let mut features = 0;
    for (name, mut bytes) in streams(&pool) {
        let summary = parse_any(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(summary.checked, "{name}");
        assert_eq!(summary.bytes, bytes.len() as u64);
        assert_eq!(
            summary.base_guid.is_some(),
            name.contains("-i") || name.contains("incremental"),
            "{name}"
        );
        features |= summary.feature_flags;
        for number in 0..=10 {
            *seen.entry(number).or_insert(0) += summary.records.of(RecordType::from(number));
        }
        let (begin, points) = points_at_blocks(&bytes);
        // Emulated, each place costs a pass over what follows it; tests/stream_parser.rs flips
        // every byte.
        let step = bytes.len() / 40 + 1;
        let end = (bytes.len() - 50..bytes.len()).step_by(3);
        for at in (7..bytes.len())
            .step_by(step)
            .chain((0..312).step_by(11))
            .chain(end)
        {
            assert!(
                finds_damage(&mut bytes, &begin, &points, at),
                "{name}: byte {at}"
            );
        }
        assert!(parse_any(&bytes[..bytes.len() - 1]).is_err(), "{name}: cut");
    }
    // The content must not shrink to nothing unnoticed: all types that such pools send, and all
    // features.
    for known in [
        "BEGIN",
        "OBJECT",
        "FREEOBJECTS",
        "WRITE",
        "FREE",
        "END",
        "SPILL",
        "WRITE_EMBEDDED",
        "OBJECT_RANGE",
    ] {
        let number = (0..=10)
            .find(|number| RecordType::from(*number).to_string() == known)
            .unwrap();
        assert!(seen[&number] > 0, "no {known} record");
    }
    for wanted in [
        feature::EMBED_DATA,
        feature::LARGE_BLOCKS,
        feature::COMPRESSED,
        feature::RAW,
    ] {
        assert_ne!(features & wanted, 0, "no stream with feature {wanted:#x}");
    }
}

#[test]
fn a_send_interrupted_anywhere_splices_to_the_same_bytes() {
    let pool = filled_pool();
    let mut spliced = 0;
    for (dataset, flags) in [
        ("fs", &["-L", "-c", "-e"][..]),
        ("big", &["-L", "-c"]),
        ("vol", &["-L", "-c"]),
        ("enc", &["-L", "-w"]),
    ] {
        let original = pool.send(dataset, flags);
        let (begin, points) = points_at_blocks(&original);
        for parts in [1, 3, 5, 7] {
            let Some(resumed) = pool.interrupt(&original, original.len() * parts / 8, "target")
            else {
                continue;
            };
            assert!(!layout(&resumed).is_empty());
            let block = first_block(&resumed);
            let point = *points
                .iter()
                .find(|point| (point.object, point.offset) == block)
                .unwrap();
            let whole = splice_onto(&original, begin.clone(), point, &resumed);
            assert!(whole == original, "{dataset} {flags:?} cut at {parts}/8");
            spliced += 1;
        }
    }
    assert!(spliced >= 12, "{spliced}");
}
