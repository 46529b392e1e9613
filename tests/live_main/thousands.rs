//! What planning costs on a dataset with ten thousand snapshots: time beside that of `zfs list` on the same machine, and
//! requests to the store.

use crate::bench::{Bench, tell};
use crate::halves::{At, Gate, Passage, text};
use crate::pool::{run, zfs};
use std::fs;
use std::time::Instant;

/// So many transaction groups with so many snapshots each.
const TURNS: usize = 100;
const SNAPSHOTS_PER_TURN: usize = 100;
/// What a plan may ask of the store: whether it is there, the keys, the datasets, and one listing with its manifest.
const REQUESTS_MAX: usize = 12;

/// A channel program: ten thousand commands would take an hour.
const MAKE_SNAPSHOTS: &str = "\
args = ...
for number = 1, tonumber(args['argv'][3]) do
  local failed = zfs.sync.snapshot(args['argv'][1] .. '@' .. args['argv'][2] .. '-' .. number)
  if failed ~= 0 then error('snapshot: ' .. failed) end
end
";

#[test]
fn planning_with_ten_thousand_snapshots_asks_little() {
    let bench = Bench::tiny("thousands");
    let dataset = bench.dataset();
    let program = bench.path("snapshots.lua");
    fs::write(&program, MAKE_SNAPSHOTS).unwrap();
    let count = SNAPSHOTS_PER_TURN.to_string();
    for turn in 0..TURNS {
        let arguments = ["program", "thousands", program.to_str().unwrap(), &dataset, &format!("turn{turn}"), &count];
        run("zfs", &arguments);
    }
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    bench.good(&["snapshot"]);

    let begun = Instant::now();
    let listed = zfs(&["list", "-Hpt", "snapshot", "-o", "name,guid,createtxg,creation", "-d", "1", &dataset]);
    tell(&format!("{} snapshots; zfs list: {:.2} s", listed.lines().count(), begun.elapsed().as_secs_f64()));
    assert_eq!(listed.lines().count(), TURNS * SNAPSHOTS_PER_TURN + 2);

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
    assert_eq!(
        left.lines().filter(|name| name.contains("@turn")).count(),
        TURNS * SNAPSHOTS_PER_TURN,
        "foreign ones stay"
    );
}
