//! What planning costs with ten thousand snapshots in a hundred datasets: time beside that of `zfs
//! list` on the same machine, and requests to the store.

use crate::bench::{Bench, tell};
use crate::halves::{At, Gate, Passage, text};
use crate::pool::{run, zfs};
use std::fs;
use std::time::Instant;

/// With the root.
const DATASETS: usize = 100;
/// Of each dataset.
const SNAPSHOTS: usize = 100;
/// What a plan may ask of the store: two listings a dataset, and some for the whole.
const REQUESTS_MAX: usize = 2 * DATASETS + 12;
const MORE_BYTES: u64 = 1500 << 20;

#[test]
fn planning_with_ten_thousand_snapshots_makes_few_requests() {
    let bench = Bench::tiny("thousands");
    let dataset = bench.dataset();
    // Snapshots of a hundred datasets take some space.
    let more = bench.path("more.img");
    fs::File::create(&more)
        .unwrap()
        .set_len(MORE_BYTES)
        .unwrap();
    run("zpool", &["add", "-f", "thousands", more.to_str().unwrap()]);
    let begun = Instant::now();
    (1..DATASETS).for_each(|number| drop(bench.pool.create(&format!("data/d{number}"))));
    (0..SNAPSHOTS).for_each(|number| {
        drop(zfs(&[
            "snapshot",
            "-r",
            &format!("{dataset}@foreign-{number}"),
        ]))
    });
    tell(&format!(
        "{DATASETS} datasets with {SNAPSHOTS} snapshots each: {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    bench.write_config_with("zb.toml", &bench.weed.endpoint(), "recursive = true\n", "");

    let begun = Instant::now();
    let listed = zfs(&[
        "list",
        "-Hprt",
        "snapshot",
        "-o",
        "name,guid,createtxg,creation",
        &dataset,
    ]);
    tell(&format!("zfs list: {:.2} s", begun.elapsed().as_secs_f64()));
    assert_eq!(listed.lines().count(), DATASETS * SNAPSHOTS);

    bench.good(&["snapshot"]);
    let gate = Gate::new(&bench, At::Request(usize::MAX), Passage::Open);
    bench.write_config_with("proxied.toml", &gate.endpoint(), "recursive = true\n", "");
    let measured = |arguments: &[&str]| {
        let (before, begun) = (gate.requests(), Instant::now());
        let output = bench.command("proxied.toml", arguments).output().unwrap();
        let seconds = begun.elapsed().as_secs_f64();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        let requests = gate.requests() - before;
        tell(&format!(
            "{}: {seconds:.2} s, {requests} requests",
            arguments.join(" ")
        ));
        (text(&output), requests)
    };
    measured(&["--help"]);
    let (planned, requests) = measured(&["--dry-run", "stream-to-remote"]);
    assert!(
        planned.contains(&format!("{dataset}/d{}", DATASETS - 1)),
        "{planned}"
    );
    assert!(requests <= REQUESTS_MAX, "{requests} requests");
    measured(&["show"]);
    measured(&["prune-snapshots"]);
    let left = zfs(&["list", "-Hrt", "snapshot", "-o", "name", &dataset]);
    assert_eq!(
        left.lines()
            .filter(|name| name.contains("@foreign-"))
            .count(),
        DATASETS * SNAPSHOTS,
        "foreign ones stay"
    );
}
