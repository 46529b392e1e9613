//! Several datasets: one atomic snapshot of a tree without what is excluded, one chain each, and
//! those that cannot be worked on named without stopping the others.

use crate::bench::Bench;
use crate::pool::{noise, property, run, zfs};
use std::collections::BTreeSet;
use std::fs;

/// The bench's configuration, changed.
fn reconfigure(bench: &Bench, from: &str, to: &str) {
    let config = fs::read_to_string(bench.path("zb.toml")).unwrap();
    assert!(config.contains(from), "{config}");
    fs::write(bench.path("zb.toml"), config.replace(from, to)).unwrap();
}

/// The datasets that have a committed backup in the bucket.
fn backed_up(bench: &Bench) -> BTreeSet<String> {
    let manifests = bench
        .keys_in_bucket()
        .into_iter()
        .filter(|key| key.ends_with("/manifest.json"));
    manifests
        .map(|key| key.split_once("/@").unwrap().0.to_owned())
        .collect()
}

fn newest(dataset: &str) -> Option<String> {
    let listed = zfs(&[
        "list",
        "-Hpo",
        "name",
        "-s",
        "createtxg",
        "-d",
        "1",
        "-t",
        "snapshot",
        dataset,
    ]);
    listed.lines().last().map(str::to_owned)
}

#[test]
fn tree_snapshot_is_atomic_and_names_datasets_that_cannot_be_snapshotted() {
    let bench = Bench::tiny("trees");
    let data = bench.dataset();
    for child in ["a", "a/deep", "b", "skip"] {
        bench.pool.create(&format!("data/{child}"));
        fs::write(
            bench.pool.file(&format!("data/{child}/file")),
            noise(20_000, 7),
        )
        .unwrap();
    }
    // A receive that was cut and may go on: it refuses a snapshot.
    zfs(&["snapshot", &format!("{data}/b@seed")]);
    let half = format!("{data}/half");
    let cut = format!("zfs send {data}/b@seed | head -c 15000 | zfs receive -s {half} 2>/dev/null");
    run("sh", &["-c", &format!("{cut}; true")]);
    assert_ne!(property(&half, "receive_resume_token"), "-");
    reconfigure(
        &bench,
        "state_dir",
        &format!("recursive = true\nexclude = [\"{data}/skip\"]\nstate_dir"),
    );

    let output = bench.zb(&["snapshot"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(&half), "{said}");
    let tree = [
        data.clone(),
        format!("{data}/a"),
        format!("{data}/a/deep"),
        format!("{data}/b"),
    ];
    let groups: BTreeSet<String> = tree
        .iter()
        .map(|name| property(&newest(name).unwrap(), "createtxg"))
        .collect();
    assert_eq!(groups.len(), 1, "not one transaction group: {groups:?}");
    assert_eq!(newest(&format!("{data}/skip")), None);

    zfs(&["receive", "-A", &half]);
    bench.good(&["stream-to-remote"]);
    assert_eq!(backed_up(&bench), tree.iter().cloned().collect());

    // A dataset that is not there is named; the others go on.
    reconfigure(
        &bench,
        &format!("zfs_fs = \"{data}\""),
        &format!("zfs_fs = [\"{data}\", \"trees/gone\"]"),
    );
    let output = bench.zb(&["stream-to-remote"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("trees/gone"), "{said}");
    let up_to_date = String::from_utf8_lossy(&output.stdout)
        .matches("up to date")
        .count();
    assert_eq!(up_to_date, tree.len());
}
