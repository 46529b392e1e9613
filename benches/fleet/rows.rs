//! The rows about a fleet of 300 datasets, and the row about one small incremental.

use crate::scene::Scene;

const DATASETS: usize = 300;
/// A smaller fleet, for a quick look: `--datasets=40`.
const DATASETS_OPTION: &str = "--datasets=";
const DELAY_MS: u64 = 50;
const MIB: usize = 1 << 20;

fn datasets() -> usize {
    let asked = std::env::args().find_map(|arg| arg.strip_prefix(DATASETS_OPTION)?.parse().ok());
    asked.unwrap_or(DATASETS)
}

/// Nothing changed in any dataset since the last night.
pub(crate) fn unchanged() {
    let scene = Scene::new(datasets(), 100_000);
    scene.run(0, &["perform"]).print("(first night, no delay)");
    let night = scene.run(DELAY_MS, &["perform"]);
    let count = datasets();
    night.print(&format!("{count} datasets, nothing changed: perform"));
    scene.configure(
        "[backup-sequence]\nstep01 = \"snapshot\"\nstep02 = \"stream-to-remote\"\nstep03 = \"prune-remote -y\"\n",
    );
    let night = scene.run(DELAY_MS, &["perform"]);
    night.print(&format!(
        "{count} datasets, nothing changed: without verify-checksums"
    ));
}

/// Each dataset has one MiB that changed.
pub(crate) fn changed() {
    let scene = Scene::new(datasets(), 100_000);
    scene.run(0, &["perform"]).print("(first night, no delay)");
    let mut seconds = Vec::new();
    for parallel in [1, 4] {
        scene.configure(&format!("parallel_datasets = {parallel}\n"));
        scene.change(&scene.datasets, MIB);
        let night = scene.run(DELAY_MS, &["perform"]);
        night.print(&format!(
            "{} datasets, 1 MiB changed, parallel_datasets = {parallel}",
            datasets()
        ));
        seconds.push(night.wall_seconds);
    }
    println!("  {:.1} times faster", seconds[0] / seconds[1]);
}

/// The row of one small incremental of one dataset.
pub(crate) fn incremental() {
    const DELAY_MS: u64 = 100;
    let scene = Scene::new(1, 8 * MIB);
    // The first run also probes the store and makes its keys, and the first incremental looks for
    // what the first run cannot have cached.
    for _ in 0..2 {
        scene.run(0, &["snapshot"]);
        scene.run(0, &["stream-to-remote"]);
        scene.change(&scene.datasets, MIB);
    }
    scene.run(0, &["snapshot"]);
    let run = scene.run(DELAY_MS, &["stream-to-remote"]);
    run.print("one incremental of 1 MiB: stream-to-remote");
    let depth = run.requests.depths().into_iter().max().unwrap_or(0);
    println!(
        "  {depth} round trips one after the other; wall / delay = {:.1}",
        run.wall_seconds * 1000.0 / DELAY_MS as f64
    );
}

/// Prints what a night of a few datasets prints on a terminal. No row of the table.
pub(crate) fn screen() {
    let scene = Scene::new(9, 100_000);
    scene.configure("bwlimit = \"4M\"\n");
    for (number, dataset) in scene.datasets.iter().enumerate() {
        let mib = [60, 1, 24, 2, 12, 3, 6, 1, 9][number];
        scene.change(std::slice::from_ref(dataset), mib * MIB);
    }
    scene.run_aloud(100, &["perform"]);
}
