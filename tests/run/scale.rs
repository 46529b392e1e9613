//! What planning costs after many years: processor time and requests, of 10,000 snapshots and 5,000
//! backups.
//!
//! ```text
//! cargo nextest run --test run --run-ignored only --no-capture scale
//! ```
//! With `--release` the figures are those of the program as it is used. What the store itself takes
//! to answer, here one in memory, stands in the first line.

use crate::cached::{asked, catalog, prune_task};
use crate::stock::stocked;
use crate::world::World;
use std::fs;
use std::io::Write;
use std::time::Instant;
use zfs_backup::config::RetentionRules;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::plan_backup;
use zfs_backup::run::prune::{PruneTask, read_view};
use zfs_backup::store::StoreRead;
use zfs_backup::store::key::dataset_prefix;

const SNAPSHOTS: usize = 10_000;
const BACKUPS: usize = 5_000;

/// Of all threads, in hundredths.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11..13]
        .iter()
        .map(|field| field.parse::<f64>().unwrap())
        .sum();
    ticks / 100.0
}

async fn measure<T>(world: &World, what: &str, work: impl Future<Output = T>) -> T {
    asked(world);
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let done = work.await;
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let (gets, lists, others) = asked(world);
    // Also when the test succeeds.
    let mut terminal = std::io::stderr();
    writeln!(
        terminal,
        "{what:<44} cpu {cpu:>6.2} s  wall {seconds:>6.2} s  get {gets:>5}  list {lists}  other {others}"
    )
    .unwrap();
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures: the module says how"]
async fn ten_thousand_snapshots_and_five_thousand_backups() {
    let world = stocked(SNAPSHOTS, BACKUPS).await;
    let (env, selected, prune) = (
        world.env(),
        world.selected(),
        world.prune_env("2025-02-22T00:00:00Z".parse().unwrap()),
    );
    let within = Some("90d".parse().unwrap());
    let rules = RetentionRules {
        last_chains: Some(1),
        within,
        monthly: Some(12),
        ..RetentionRules::default()
    };
    let task = PruneTask {
        rules,
        ..prune_task(&world)
    };
    let lifecycle = RequestedKind::Lifecycle;
    let objects = measure(
        &world,
        "the listing itself",
        world.store.list(&dataset_prefix(&world.dataset)),
    )
    .await;
    writeln!(std::io::stderr(), "of {} objects", objects.unwrap().len()).unwrap();
    measure(
        &world,
        "plan, nothing kept",
        plan_backup(&env, &selected, lifecycle),
    )
    .await
    .unwrap();
    measure(
        &world,
        "a run that is up to date, cold",
        Box::pin(world.try_back_up_as(lifecycle)),
    )
    .await
    .unwrap();
    measure(
        &world,
        "a run that is up to date, warm",
        Box::pin(world.try_back_up_as(lifecycle)),
    )
    .await
    .unwrap();
    measure(
        &world,
        "plan, warm",
        plan_backup(&env, &selected, lifecycle),
    )
    .await
    .unwrap();
    fs::remove_dir_all(world.settings.state_dir.join("cache")).unwrap();
    measure(&world, "show of all backups, cold", catalog(&world)).await;
    let (read, flaws) = measure(&world, "show of all backups, warm", catalog(&world)).await;
    assert_eq!(
        (read.backups.len(), flaws.iter().flatten().count()),
        (BACKUPS, 0)
    );
    fs::remove_dir_all(world.settings.state_dir.join("cache")).unwrap();
    measure(&world, "plan of a prune, cold", read_view(&prune, &task))
        .await
        .unwrap();
    measure(&world, "plan of a prune, warm", read_view(&prune, &task))
        .await
        .unwrap();
}
