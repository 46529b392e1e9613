//! What planning costs on a dataset with ten thousand snapshots: time beside that of `zfs list` on the same machine, and
//! requests to the store.

use crate::bench::{Bench, tell};
use crate::halves::{At, Gate, Passage, text};
use crate::pool::zfs;
use std::time::Instant;

const SNAPSHOTS: usize = 10_000;
/// What a plan may ask of the store: whether it is there, the keys, the datasets, and one listing with its manifest.
const REQUESTS_MAX: usize = 12;

#[test]
fn planning_with_ten_thousand_snapshots_asks_little() {
    let bench = Bench::tiny("thousands");
    let dataset = bench.dataset();
    // Each is a transaction group of its own, so that this takes minutes.
    let begun = Instant::now();
    for number in 0..SNAPSHOTS {
        bench.pool.take(&format!("data@foreign-{number}"));
    }
    tell(&format!("{SNAPSHOTS} snapshots made in {:.0} s", begun.elapsed().as_secs_f64()));
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    bench.good(&["snapshot"]);

    let begun = Instant::now();
    let listed = zfs(&["list", "-Hpt", "snapshot", "-o", "name,guid,createtxg,creation", "-d", "1", &dataset]);
    tell(&format!("{} snapshots; zfs list: {:.2} s", listed.lines().count(), begun.elapsed().as_secs_f64()));
    assert_eq!(listed.lines().count(), SNAPSHOTS + 2);

    let gate = Gate::new(&bench, At::Request(usize::MAX), Passage::Open);
    let measured = |arguments: &[&str]| {
        let (before, begun) = (gate.requests(), Instant::now());
        let output = bench.command("proxied.toml", arguments).output().unwrap();
        let seconds = begun.elapsed().as_secs_f64();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        let requests = gate.requests() - before;
        tell(&format!("{}: {seconds:.2} s, {requests} requests", arguments.join(" ")));
        (text(&output), requests)
    };
    measured(&["--help"]);
    let (planned, requests) = measured(&["--dry-run", "stream-to-remote"]);
    assert!(planned.contains("incremental"), "{planned}");
    assert!(requests <= REQUESTS_MAX, "{requests} requests");
    let (shown, requests) = measured(&["show", "--include-remote"]);
    assert!(shown.contains(&dataset) && requests <= REQUESTS_MAX, "{requests} requests: {shown}");
    measured(&["snapshot"]);
    measured(&["stream-to-remote"]);
    measured(&["prune-snapshots"]);
    let left = zfs(&["list", "-Ht", "snapshot", "-o", "name", "-d", "1", &dataset]);
    assert_eq!(left.lines().filter(|name| name.contains("@foreign-")).count(), SNAPSHOTS, "foreign ones stay");
}
