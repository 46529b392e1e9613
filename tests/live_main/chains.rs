//! Incrementals on a real pool: files change, snapshots go, datasets are renamed and rolled back,
//! and every point of the chain is what `zfs send` makes of it.

use crate::bench::{Bench, assert_same_tree, change, describe, moment};
use crate::pool::{noise, property, run, zfs};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use zfs_backup::config::{RawMode, SnapshotSource};
use zfs_backup::keyring::KeyFile;
use zfs_backup::model::DatasetName;
use zfs_backup::plan::send::{LifecycleRules, RequestedKind};
use zfs_backup::run::backup::{BackupEnv, BackupSettings, StoreRole, back_up};
use zfs_backup::run::keys::WriterKeys;
use zfs_backup::run::pool::select::Selected;
use zfs_backup::run::transfer::TransferPool;
use zfs_backup::store::MemoryStore;
use zfs_backup::stream::seal::ChunkCompression;
use zfs_backup::zfs::{RealZfs, Zfs};

/// The ids of the dataset's backups in the remote, oldest first.
fn ids(bench: &Bench, stored: &str) -> Vec<String> {
    let keys = bench.keys_in_bucket();
    let id = |key: &String| {
        let (place, rest) = key.split_once("/@")?;
        place.ends_with(stored).then_some(())?;
        Some(rest.strip_suffix("/manifest.json")?.to_owned())
    };
    let mut ids: Vec<String> = keys.iter().filter_map(id).collect();
    ids.sort();
    ids
}

fn snapshots(dataset: &str) -> Vec<String> {
    let listed = zfs(&[
        "list",
        "-Hpo",
        "name",
        "-s",
        "createtxg",
        "-t",
        "snapshot",
        dataset,
    ]);
    listed.lines().map(str::to_owned).collect()
}

fn bookmark_of(snapshot: &str, dataset: &str) -> String {
    format!(
        "{dataset}#zfs-backup_{:016x}",
        property(&snapshot, "guid").parse::<u64>().unwrap()
    )
}

/// A snapshot of changed files, streamed; the newest snapshot.
fn next(bench: &Bench, dataset: &str, seed: u64) -> String {
    // Ids order backups by the second of their snapshots.
    moment();
    change(bench, seed);
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--incremental"]);
    snapshots(dataset).pop().unwrap()
}

fn stream_of(bench: &Bench, dataset: &str, id: &str) -> Vec<u8> {
    let identity = bench.path("identity.txt").display().to_string();
    bench.good(&bench.restore_arguments(dataset, &identity, &["--stdout", "--backup", id]))
}

#[test]
fn restored_chain_is_complete_and_each_stream_equals_zfs_send() {
    let bench = Bench::small("chains");
    let dataset = bench.dataset();
    bench.good(&["snapshot"]);
    let dry = String::from_utf8(bench.good(&["--dry-run", "stream-to-remote"])).unwrap();
    assert!(
        dry.contains("FULL (first)") && dry.contains("chunks"),
        "{dry}"
    );
    bench.good(&["stream-to-remote"]);
    let full = snapshots(&dataset).pop().unwrap();
    fs::remove_file(bench.pool.file("data/small-3")).unwrap();
    fs::rename(
        bench.pool.file("data/small-4"),
        bench.pool.file("data/folder/renamed"),
    )
    .unwrap();
    let first = next(&bench, &dataset, 1);
    let expected = run("zfs", &["send", "-L", "-c", "-i", &full, &first]);
    assert!(stream_of(&bench, &dataset, &ids(&bench, &dataset)[1]) == expected);

    // Its snapshot goes: the bookmark is the base.
    zfs(&["destroy", &first]);
    fs::OpenOptions::new()
        .write(true)
        .open(bench.pool.file("data/large-1"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let second = next(&bench, &dataset, 2);
    let expected = run(
        "zfs",
        &[
            "send",
            "-L",
            "-c",
            "-i",
            &bookmark_of_gone(&bench, &dataset),
            &second,
        ],
    );
    let all = ids(&bench, &dataset);
    assert_eq!(
        all.iter()
            .map(|id| id.split('-').nth(1).unwrap())
            .collect::<Vec<_>>(),
        ["full", "incr", "incr"]
    );
    assert!(stream_of(&bench, &dataset, &all[2]) == expected);

    let identity = bench.path("identity.txt").display().to_string();
    let target = format!("{}/restored", bench.pool.name);
    bench.good(&bench.restore_arguments(&dataset, &identity, &["--to", &target]));
    assert_eq!(property(&target, "readonly"), "off");
    assert_eq!(snapshots(&target).len(), 3);
    zfs(&["mount", &target]);
    run("zpool", &["sync"]);
    assert_same_tree(
        &describe(&bench.pool.file("data")),
        &describe(&bench.pool.file("restored")),
    );
    bench.good(&["verify-checksums"]);
    let refused = bench.zb(&bench.restore_arguments(&dataset, &identity, &["--stdout"]));
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains(&all[1]));
    by_hand(&bench, &dataset, &all);
}

/// The bookmark of the incremental whose snapshot is gone: the one without a snapshot.
fn bookmark_of_gone(bench: &Bench, dataset: &str) -> String {
    let listed = zfs(&["list", "-Hpo", "name,guid", "-t", "bookmark", dataset]);
    let guids: Vec<String> = snapshots(dataset)
        .iter()
        .map(|snapshot| property(snapshot, "guid"))
        .collect();
    let gone = listed
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .find(|(_, guid)| !guids.iter().any(|g| g == guid));
    gone.unwrap_or_else(|| panic!("{}: {listed}", bench.pool.name))
        .0
        .to_owned()
}

/// As RESTORE.txt of the newest says, with age, b3sum and zfs alone.
fn by_hand(bench: &Bench, dataset: &str, ids: &[String]) {
    let folder = bench.download("by-hand").join(dataset);
    let target = format!("{}/by-hand", bench.pool.name);
    for id in ids {
        let backup = folder.join(format!("@{id}"));
        fs::copy(bench.path("identity.txt"), backup.join("identity.txt")).unwrap();
        fs::rename(backup, folder.join(id)).unwrap();
    }
    let text = fs::read_to_string(folder.join(ids.last().unwrap()).join("RESTORE.txt")).unwrap();
    let steps: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("#      (cd "))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .replace("POOL/NEW", &target)
        })
        .collect();
    assert_eq!(steps.len(), ids.len(), "{text}");
    for step in steps {
        run(
            "sh",
            &[
                "-c",
                "cd \"$1\" && sh -c \"$2\"",
                "sh",
                folder.to_str().unwrap(),
                &step,
            ],
        );
    }
    zfs(&["mount", &target]);
    run("zpool", &["sync"]);
    assert_same_tree(
        &describe(&bench.pool.file("data")),
        &describe(&bench.pool.file("by-hand")),
    );
}

#[test]
fn chain_continues_after_rename_rollback_and_reused_snapshot_name() {
    let bench = Bench::small("renamed");
    let stored = bench.dataset();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    let full = snapshots(&stored).pop().unwrap();
    next(&bench, &stored, 1);

    // Rolled back: what is newer is gone with its bookmark, and the chain goes on from what is
    // left.
    zfs(&["rollback", "-r", &full]);
    let branch = next(&bench, &stored, 2);
    let all = ids(&bench, &stored);
    assert_eq!(all.len(), 3);
    let newest = stream_of(&bench, &stored, &all[2]);
    assert!(newest == run("zfs", &["send", "-L", "-c", "-i", &full, &branch]));

    // Renamed, and the configuration with it: it keeps its place in the store.
    let renamed = format!("{}/pictures", bench.pool.name);
    zfs(&["rename", &stored, &renamed]);
    let config = fs::read_to_string(bench.path("zb.toml")).unwrap();
    fs::write(
        bench.path("zb.toml"),
        config.replace(
            &format!("zfs_fs = \"{stored}\""),
            &format!("zfs_fs = \"{renamed}\""),
        ),
    )
    .unwrap();
    moment();
    fs::write(bench.pool.file("pictures/changed"), noise(1 << 20, 3)).unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--incremental"]);
    assert_eq!(ids(&bench, &stored).len(), 4);
    assert!(
        bench
            .keys_in_bucket()
            .iter()
            .all(|key| !key.contains("pictures"))
    );

    // Snapshots of another tool, of one name: told apart by their guids.
    let config = fs::read_to_string(bench.path("zb.toml")).unwrap();
    fs::write(
        bench.path("zb.toml"),
        config.replace("[s3]", "use_snapshots = \"daily\"\n[s3]"),
    )
    .unwrap();
    let daily = format!("{renamed}@daily");
    for seed in [4, 5] {
        moment();
        fs::write(bench.pool.file("pictures/changed"), noise(1 << 20, seed)).unwrap();
        zfs(&["snapshot", &daily]);
        bench.good(&["stream-to-remote", "--incremental"]);
        if seed == 4 {
            zfs(&["destroy", &daily]);
        }
    }
    let identity = bench.path("identity.txt").display().to_string();
    let target = format!("{}/restored", bench.pool.name);
    bench.good(&bench.restore_arguments(&stored, &identity, &["--to", &target]));
    let received = snapshots(&target);
    assert_eq!(received.len(), 5, "{received:?}");
    assert_eq!(
        property(received.last().unwrap(), "guid"),
        property(&daily, "guid")
    );
    zfs(&["mount", &target]);
    run("zpool", &["sync"]);
    assert_same_tree(
        &describe(&bench.pool.file("pictures")),
        &describe(&bench.pool.file("restored")),
    );

    // Nothing in common any more: refused, and nothing is sent.
    zfs(&["destroy", &daily]);
    let marks = zfs(&["list", "-Hpo", "name", "-t", "bookmark", &renamed]);
    marks.lines().for_each(|mark| drop(zfs(&["destroy", mark])));
    for snapshot in snapshots(&renamed) {
        zfs(&["destroy", &snapshot]);
    }
    moment();
    zfs(&["snapshot", &daily]);
    let refused = bench.zb(&["stream-to-remote", "--incremental"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("neither snapshot nor bookmark") && said.contains("stream-to-remote --full"),
        "{said}"
    );
    assert_eq!(ids(&bench, &stored).len(), 6);
    bench.good(&["stream-to-remote"]);
    assert!(ids(&bench, &stored).last().unwrap().contains("-full-"));
}

#[test]
fn base_destroyed_between_plan_and_send_causes_a_new_plan() {
    let pool = crate::pool::Pool::new("replan");
    pool.create("data");
    pool.write("data/file", 1 << 20, 1);
    let dataset: DatasetName = format!("{}/data", pool.name).parse().unwrap();
    let state = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Arc::new(MemoryStore::new());
    let zfs_calls: Arc<dyn Zfs> = Arc::new(RealZfs::open(None).unwrap());
    let keys = WriterKeys::from_keyring(
        &KeyFile::generate().unwrap(),
        bytes::Bytes::from_static(b"k"),
    )
    .unwrap();
    let destroyed = Arc::new(AtomicUsize::new(0));
    // At the first plan of each run goes: nothing, the base, the base and its bookmark, all that
    // could be one.
    let expected = [("full", 0), ("incr", 1), ("incr", 2), ("full", usize::MAX)];
    for (round, (kind, victims)) in expected.into_iter().enumerate() {
        let base = snapshots(dataset.as_str()).pop();
        let mark = base
            .as_ref()
            .map(|base| bookmark_of(base, dataset.as_str()));
        let marks = zfs(&["list", "-Hpo", "name", "-t", "bookmark", dataset.as_str()]);
        let others = marks
            .lines()
            .map(str::to_owned)
            .filter(|other| Some(other) != mark.as_ref());
        let doomed: Vec<String> = base
            .into_iter()
            .chain(mark.clone())
            .chain(others)
            .take(victims)
            .collect();
        pool.write("data/file", 1 << 20, round as u64 + 10);
        zfs(&["snapshot", &format!("{dataset}@s{round}")]);
        let (planned, count) = (AtomicUsize::new(0), Arc::clone(&destroyed));
        let env = BackupEnv {
            zfs: Arc::clone(&zfs_calls),
            store: store.clone(),
            role: StoreRole::Remote,
            other: None,
            listed: None,
            pool: TransferPool::default(),
            keys: keys.clone(),
            settings: BackupSettings {
                split_bytes: 256 << 10,
                compression: ChunkCompression::None,
                raw: RawMode::Auto,
                compressed: true,
                embedded: false,
                source: SnapshotSource::Matching("s*".into()),
                snapshot_prefix: "zfs-backup_".into(),
                lifecycle: LifecycleRules {
                    incrementals_percent_max: 10_000,
                    full_age_max: None,
                    incrementals_max: None,
                    auto_full_bytes_max: 1 << 30,
                    levels: None,
                },
                state_dir: state.path().to_owned(),
                host: "test".into(),
                restart: false,
                window: None,
                until: None,
                skip_unchanged: false,
            },
            now: jiff::Timestamp::now,
            planned: Arc::new(move |_| {
                if planned.fetch_add(1, Ordering::SeqCst) == 0 {
                    for name in &doomed {
                        zfs(&["destroy", name]);
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }),
            progress: Arc::new(|_| {}),
            stop: tokio::sync::watch::channel(false).1,
        };
        let selected = Selected {
            dataset: zfs_calls.dataset(&dataset).unwrap().unwrap(),
            stored: dataset.clone(),
        };
        let mut run = runtime
            .block_on(back_up(&env, &selected, RequestedKind::Lifecycle))
            .unwrap();
        let backup = run
            .committed
            .pop()
            .unwrap_or_else(|| panic!("nothing was sent in round {round}"));
        assert_eq!(backup.manifest.kind.as_str(), kind, "round {round}");
    }
    assert!(
        destroyed.load(Ordering::SeqCst) >= 6,
        "what was to be destroyed was not there"
    );
}
