//! The program and a store with a chain, without a kernel: the bare streams of incrementals, and
//! what is said of a chain.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::config::{RawMode, SnapshotSource};
use zfs_backup::keyring::KeyFile;
use zfs_backup::manifest::Manifest;
use zfs_backup::model::{DatasetName, SnapshotName};
use zfs_backup::plan::send::{LifecycleRules, RequestedKind};
use zfs_backup::run::backup::{BackupEnv, BackupSettings, StoreRole, back_up};
use zfs_backup::run::keys::WriterKeys;
use zfs_backup::run::pool::select::Selected;
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::run::transfer::TransferPool;
use zfs_backup::store::{DirSettings, DirStore};
use zfs_backup::stream::seal::ChunkCompression;
use zfs_backup::zfs::fake::FakeZfs;
use zfs_backup::zfs::{DatasetType, SendBase, SendFlags, SendRequest, ZfsRead, ZfsSend};

const FLAGS: SendFlags = SendFlags {
    raw: false,
    compressed: true,
    embedded: false,
    large_blocks: true,
};

/// A folder as a store with a full and two incrementals of `tank/data`, and what ZFS sent for each.
fn chain(folder: &Path) -> Vec<(Manifest, Vec<u8>)> {
    let (zfs, file) = begin(folder);
    let env = env(folder, &zfs, &file, "state");
    let mut base = None;
    (0..3u8)
        .map(|number| {
            let (manifest, snapshot) = night(&env, &zfs, number, RequestedKind::Lifecycle);
            let request = SendRequest {
                snapshot: snapshot.clone(),
                base: base.take(),
                flags: FLAGS,
                resume: None,
            };
            let (mut sending, mut stream) = (zfs.send(&request).unwrap(), Vec::new());
            std::io::Read::read_to_end(sending.reader(), &mut stream).unwrap();
            base = Some(SendBase::Snapshot(snapshot));
            (manifest, stream)
        })
        .collect()
}

fn dataset() -> DatasetName {
    "tank/data".parse().unwrap()
}

/// A pool, the keys, and a folder for a store.
fn begin(folder: &Path) -> (FakeZfs, KeyFile) {
    let zfs = FakeZfs::new();
    zfs.create(&dataset(), DatasetType::Filesystem);
    let file = KeyFile::generate().unwrap();
    std::fs::write(folder.join("identity.txt"), &*file.to_text().unwrap()).unwrap();
    std::fs::create_dir(folder.join("store")).unwrap();
    (zfs, file)
}

/// A host with that state folder.
fn env(folder: &Path, zfs: &FakeZfs, file: &KeyFile, state: &str) -> BackupEnv {
    let root = folder.join("store");
    let keys = WriterKeys {
        recipients: vec![file.recipient().unwrap()],
        signing: file.signing_key().unwrap().clone(),
        trusted: file.trusted.clone(),
        keyring: None,
    };
    let lifecycle = LifecycleRules {
        incrementals_percent_max: 10_000,
        full_age_max: None,
        incrementals_max: None,
        auto_full_bytes_max: 0,
        levels: None,
    };
    BackupEnv {
        zfs: Arc::new(zfs.clone()),
        store: Arc::new(
            DirStore::open(&DirSettings {
                root,
                part_bytes: 1 << 16,
            })
            .unwrap(),
        ),
        role: StoreRole::Remote,
        other: None,
        listed: None,
        pool: TransferPool::default(),
        keys,
        settings: BackupSettings {
            split_bytes: 1 << 16,
            compression: ChunkCompression::None,
            raw: RawMode::Auto,
            compressed: true,
            embedded: false,
            source: SnapshotSource::Own,
            snapshot_prefix: "own_".into(),
            lifecycle,
            state_dir: folder.join(state),
            host: "test".into(),
            restart: false,
            window: None,
            until: None,
            skip_unchanged: false,
        },
        now: jiff::Timestamp::now,
        planned: Arc::new(|_| {}),
        progress: Arc::new(|_| {}),
        stop: tokio::sync::watch::channel(false).1,
    }
}

/// Backs up what is new that day.
fn night(
    env: &BackupEnv,
    zfs: &FakeZfs,
    number: u8,
    requested: RequestedKind,
) -> (Manifest, SnapshotName) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dataset = dataset();
    zfs.set_now(jiff::Timestamp::from_second(1_770_000_000 + i64::from(number) * 86_400).unwrap());
    zfs.write_file(&dataset, 5 + u64::from(number), &vec![number; 100_000]);
    let now = jiff::Timestamp::from_second(1_770_000_000 + i64::from(number)).unwrap();
    let snapshot = take_snapshots(zfs, std::slice::from_ref(&dataset), "own_", now)
        .unwrap()
        .remove(0);
    let selected = Selected {
        dataset: zfs.dataset(&dataset).unwrap().unwrap(),
        stored: dataset,
    };
    let mut run = runtime
        .block_on(back_up(env, &selected, requested))
        .unwrap();
    let backup = run.committed.pop().expect("nothing was sent");
    (backup.manifest, snapshot)
}

fn restore(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
    command.args([
        "restore",
        "tank/data",
        "--remote",
        &format!("file:{}", folder.join("store").display()),
    ]);
    command
        .arg("--identity")
        .arg(folder.join("identity.txt"))
        .args(arguments);
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn bare_stream_output_of_a_chain_is_refused_with_a_command_per_backup() {
    let folder = TempDir::new().unwrap();
    let points = chain(folder.path());
    for (manifest, stream) in &points {
        let output = restore(
            folder.path(),
            &["--backup", manifest.id.as_str(), "--stdout"],
        );
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(output.stdout == *stream, "{}", manifest.id);
    }
    let file = folder.path().join("stream");
    for destination in [vec!["--stdout"], vec!["--output", file.to_str().unwrap()]] {
        let output = restore(folder.path(), &destination);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(output.stdout.is_empty() && !file.exists());
        let places: Vec<usize> = points
            .iter()
            .map(|(manifest, _)| {
                said.find(&format!("--backup {}", manifest.id))
                    .unwrap_or_else(|| panic!("{said}"))
            })
            .collect();
        assert!(places.is_sorted(), "{said}");
    }
    let plan = restore(folder.path(), &["--stdout", "--dry-run"]);
    let listed = String::from_utf8_lossy(&plan.stdout);
    assert!(
        points
            .iter()
            .all(|(manifest, _)| listed.contains(manifest.id.as_str())),
        "{listed}"
    );

    // What an incremental needs is not what its bare stream needs.
    std::fs::remove_dir_all(
        folder
            .path()
            .join("store/tank/data")
            .join(format!("@{}", points[0].0.id)),
    )
    .unwrap();
    let output = restore(
        folder.path(),
        &["--backup", points[1].0.id.as_str(), "--stdout"],
    );
    assert!(output.stdout == points[1].1, "{}", stderr(&output));
    let output = restore(
        folder.path(),
        &["--backup", points[1].0.id.as_str(), "--to", "tank/x"],
    );
    let said = stderr(&output);
    assert!(
        !output.status.success() && said.contains(points[0].0.id.as_str()),
        "{said}"
    );
}

#[test]
fn restore_of_two_time_lines_needs_a_choice_and_each_is_restorable() {
    let folder = TempDir::new().unwrap();
    let (zfs, file) = begin(folder.path());
    let ours = env(folder.path(), &zfs, &file, "state");
    night(&ours, &zfs, 0, RequestedKind::Full);
    let copy = zfs.copy_pools();
    let theirs = env(folder.path(), &copy, &file, "state of a clone");
    let (theirs, _) = night(&theirs, &copy, 1, RequestedKind::Full);
    let (ours, _) = night(&ours, &zfs, 2, RequestedKind::Full);
    let refused = restore(folder.path(), &["--stdout"]);
    assert_eq!(
        (refused.status.code(), &refused.stdout[..]),
        (Some(1), &b""[..]),
        "{}",
        stderr(&refused)
    );
    for manifest in [&ours, &theirs] {
        let id = manifest.id.as_str();
        let host = manifest.host_mark.as_ref().unwrap().to_string();
        for part in [
            id,
            &host,
            &manifest.snapshot.created_at.to_string(),
            "choose one with --backup ID",
        ] {
            assert!(
                stderr(&refused).contains(part),
                "no {part} in {}",
                stderr(&refused)
            );
        }
        let chosen = restore(folder.path(), &["--stdout", "--backup", id]);
        assert!(
            chosen.status.success() && chosen.stdout.len() as u64 == manifest.stream_bytes,
            "{}",
            stderr(&chosen)
        );
    }
    // As it was before they parted.
    let before = restore(folder.path(), &["--stdout", "--at", "2026-02-03"]);
    assert!(before.status.success(), "{}", stderr(&before));
}
