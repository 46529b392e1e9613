//! The row about planning after many years: 10,000 snapshots and 5,000 backups of one dataset.

use crate::scene::cpu_seconds;
use crate::stock::stocked;
use std::time::Instant;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::plan_backup;

const SNAPSHOTS: usize = 10_000;
const BACKUPS: usize = 5_000;

pub(crate) fn planning() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let world = stocked(SNAPSHOTS, BACKUPS).await;
        let (env, selected) = (world.env(), world.selected());
        let lifecycle = RequestedKind::Lifecycle;
        // A run fills the cache, as each night does for the next.
        Box::pin(world.try_back_up_as(lifecycle)).await.unwrap();
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        plan_backup(&env, &selected, lifecycle).await.unwrap();
        println!(
            "{:<52} {:>8.2} s wall {:>7.2} s CPU",
            "planning for 10,000 snapshots and 5,000 backups",
            begun.elapsed().as_secs_f64(),
            cpu_seconds() - cpu
        );
    });
}
