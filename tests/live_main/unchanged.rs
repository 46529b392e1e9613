//! Datasets to which nothing was written, on a real ZFS: the stream without a record, the smallest
//! changes, and the property `written` just after a write.

use crate::bench::Bench;
use crate::pool::zfs;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Takes a snapshot and backs it up, and returns the result: `unchanged`, `committed`.
fn night(bench: &Bench) -> String {
    bench.good(&["snapshot"]);
    result(bench)
}

fn result(bench: &Bench) -> String {
    let printed = bench.good(&["--json", "stream-to-remote"]);
    let document: serde_json::Value = serde_json::from_slice(&printed).unwrap();
    document["backups"][0]["result"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn only_a_dataset_that_really_did_not_change_is_skipped() {
    let bench = Bench::tiny("same");
    let file = bench.pool.file("data/file");
    fs::write(&file, b"one").unwrap();
    assert_eq!(night(&bench), "committed");
    let objects = bench.keys_in_bucket();
    assert_eq!(night(&bench), "unchanged");
    assert_eq!(night(&bench), "unchanged");
    assert_eq!(bench.keys_in_bucket(), objects);

    fs::write(&file, b"two").unwrap();
    assert_eq!(night(&bench), "committed");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(night(&bench), "committed");
    fs::remove_file(&file).unwrap();
    assert_eq!(night(&bench), "committed");
    zfs(&["set", "recordsize=16K", &bench.dataset()]);
    assert_eq!(night(&bench), "committed");
    assert_eq!(night(&bench), "unchanged");

    // A base of which only the bookmark is left.
    for snapshot in zfs(&[
        "list",
        "-H",
        "-o",
        "name",
        "-t",
        "snapshot",
        &bench.dataset(),
    ])
    .lines()
    {
        zfs(&["destroy", snapshot]);
    }
    assert_eq!(night(&bench), "unchanged");
    fs::write(&file, b"three").unwrap();
    assert_eq!(night(&bench), "committed");
}

#[test]
fn write_just_before_the_snapshot_counts_as_a_change() {
    let bench = Bench::tiny("dirty");
    let file = bench.pool.file("data/file");
    bench.write_config_with(
        "zb.toml",
        &bench.weed.endpoint(),
        "snapshot_unchanged = false\n",
        "",
    );
    fs::write(&file, b"one").unwrap();
    assert_eq!(night(&bench), "committed");
    let snapshots = || {
        zfs(&[
            "list",
            "-H",
            "-o",
            "name",
            "-t",
            "snapshot",
            &bench.dataset(),
        ])
    };
    let before = snapshots();
    assert_eq!(night(&bench), "up-to-date");
    assert_eq!(snapshots(), before);
    // The kernel writes a transaction group out some seconds after the first write to it.
    for text in ["two", "three", "four"] {
        fs::write(&file, text).unwrap();
        assert_eq!(night(&bench), "committed", "{text}");
    }
}
