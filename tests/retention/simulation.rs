//! Three years of nights with the real planner and the real rules: what levels cost, against fulls
//! with nightly incrementals. The table is that of `docs/levels.md`.

use crate::facts::at;
use crate::world::{LIFECYCLE, World, after};
use jiff::SignedDuration;
use std::collections::BTreeMap;
use zfs_backup::config::{LevelBase, RetentionRules};
use zfs_backup::model::BackupId;
use zfs_backup::plan::BackupFacts;
use zfs_backup::plan::levels::{FullRule, LevelRules};
use zfs_backup::plan::send::LifecycleRules;

const NIGHTS: u64 = 3 * 365;
/// The nights from one prune to the next. A prune each night would keep the same.
const PRUNED_EVERY: u64 = 7;
/// The nights from which the averages are taken: the third year.
const FROM: u64 = 2 * 365;
const GIB: f64 = (1_u64 << 30) as f64;
/// The dataset: 1000 GiB, of which 4 GiB of a working set of 40 GiB and 1 GiB anywhere are written
/// each day.
const DATASET_GIB: f64 = 1000.0;
const WORKING_SET_GIB: f64 = 40.0;
const WRITTEN_THERE_GIB: f64 = 4.0;
const WRITTEN_ANYWHERE_GIB: f64 = 1.0;

/// The bytes that differ after some days: what was written twice counts once.
fn changed_bytes(days: u64) -> u64 {
    let days = i32::try_from(days).unwrap();
    let of = |size: f64, written: f64| size * (1.0 - (1.0 - written / size).powi(days));
    let changed = of(WORKING_SET_GIB, WRITTEN_THERE_GIB) + of(DATASET_GIB, WRITTEN_ANYWHERE_GIB);
    to_bytes(changed)
}

#[expect(clippy::cast_possible_truncation, reason = "far below 64 bits")]
fn to_bytes(gib: f64) -> u64 {
    (gib * GIB) as u64
}

struct Strategy {
    name: &'static str,
    lifecycle: LifecycleRules,
    rules: RetentionRules,
}

fn strategies() -> [Strategy; 4] {
    // Each strategy keeps the same restore points and what they build on.
    let periods = RetentionRules {
        daily: Some(14),
        weekly: Some(8),
        monthly: Some(12),
        yearly: Some(2),
        ..RetentionRules::default()
    };
    let fulls = |name, days: i64| Strategy {
        name,
        lifecycle: LifecycleRules {
            full_age_max: Some(SignedDuration::from_hours(24 * days)),
            ..LIFECYCLE
        },
        rules: periods.clone(),
    };
    let levels = |name, base| {
        let keep = "2y 12m 8w 14d".parse().unwrap();
        Strategy {
            name,
            lifecycle: LifecycleRules {
                levels: Some(LevelRules {
                    keep,
                    base,
                    fulls: FullRule::Period,
                }),
                ..LIFECYCLE
            },
            rules: RetentionRules {
                levels: Some(keep),
                ..RetentionRules::default()
            },
        }
    };
    [
        fulls("full every 91 days, nightly incrementals", 91),
        fulls("full every 7 days, nightly incrementals", 7),
        levels("levels, `level_base = \"same\"`", LevelBase::Same),
        levels("levels, `level_base = \"longer\"`", LevelBase::Longer),
    ]
}

/// Sums over the prunes of the measured nights.
#[derive(Default)]
struct Sums {
    prunes: f64,
    stored_bytes: f64,
    restore_points: f64,
    links: f64,
    links_max: u32,
    lost: f64,
}

impl Sums {
    fn add(&mut self, facts: &[BackupFacts]) {
        let count = facts.len() as f64;
        let links = || facts.iter().map(|backup| backup.position + 1);
        let stored_bytes: u64 = facts.iter().map(|backup| backup.stored_bytes).sum();
        self.prunes += 1.0;
        self.stored_bytes += stored_bytes as f64;
        self.restore_points += count;
        self.links += f64::from(links().sum::<u32>()) / count;
        self.links_max = self.links_max.max(links().max().unwrap());
        self.lost += lost_with_an_incremental(facts);
    }
}

/// The average number of restore points that are lost with one incremental: itself and all that
/// build on it.
fn lost_with_an_incremental(facts: &[BackupFacts]) -> f64 {
    let bases: BTreeMap<&BackupId, Option<&BackupId>> = facts
        .iter()
        .map(|backup| (&backup.id, backup.base.as_ref()))
        .collect();
    // Each backup is lost with itself and with each of its ancestors but the full.
    let mut lost = 0_u32;
    let mut incrementals = 0_u32;
    for backup in facts.iter().filter(|backup| backup.base.is_some()) {
        incrementals += 1;
        let mut link = Some(&backup.id);
        while let Some(id) = link {
            link = bases[id];
            lost += u32::from(link.is_some());
        }
    }
    f64::from(lost) / f64::from(incrementals.max(1))
}

fn simulate(strategy: Strategy) -> String {
    let mut world = World::new(strategy.lifecycle);
    world.shelf.rules = strategy.rules;
    world.has_time_lines = false;
    let (mut sums, mut sent, mut largest) = (Sums::default(), 0, 0);
    for night in 0..NIGHTS {
        let now = after(at("2024-01-01"), 24 * i64::try_from(night).unwrap());
        let number = world.number + 1;
        world.back_up(now, |base| match base {
            None => to_bytes(DATASET_GIB),
            Some(base) => changed_bytes(number - base.snapshot.createtxg),
        });
        let made = world.shelf.facts.last().unwrap();
        sent += made.stored_bytes;
        if made.base.is_some() {
            largest = largest.max(made.stored_bytes);
        }
        if night % PRUNED_EVERY != 0 {
            continue;
        }
        let plan = world.prune(now, now);
        assert!(plan.doubts.is_empty(), "{:?}", plan.doubts);
        if night >= FROM {
            sums.add(&world.shelf.facts);
        }
    }
    format!(
        "| {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {} | {:.1} |",
        strategy.name,
        sent as f64 / GIB,
        largest as f64 / GIB,
        sums.stored_bytes / sums.prunes / GIB,
        sums.restore_points / sums.prunes,
        sums.links / sums.prunes,
        sums.links_max,
        sums.lost / sums.prunes,
    )
}

#[test]
fn the_table_of_the_docs_is_what_three_years_cost() {
    let page = include_str!("../../docs/levels.md");
    let rows = std::thread::scope(|scope| {
        let running = strategies().map(|strategy| scope.spawn(|| simulate(strategy)));
        running.map(|thread| thread.join().unwrap())
    });
    let head = "| | sent | largest incremental | stored | restore points | links | most links | lost with one |";
    println!("{head}\n|---|---|---|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
    for row in &rows {
        assert!(page.contains(row), "docs/levels.md has not {row}");
    }
}
