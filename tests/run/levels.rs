//! Nights with levels through the real runner: what manifests, bookmarks, prune and restore make of
//! them.

use crate::chains::nightly;
use crate::world::{World, committed, name, never, noise, now};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zfs_backup::config::{KeepLevels, LevelBase, RetentionRules};
use zfs_backup::manifest::{Manifest, Origin};
use zfs_backup::model::{BackupLevel, Guid};
use zfs_backup::plan::levels::{FullRule, LevelRules};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::plan::timeline::PoolView;
use zfs_backup::run::prune::{PruneTask, SecondaryStore, prune_dataset};
use zfs_backup::run::restore::{ReceiveOptions, RestorePoint, restore_to_dataset};
use zfs_backup::store::StoreErrorKind;
use zfs_backup::store::memory::{Fault, Operation};
use zfs_backup::zfs::{ZfsRead, ZfsSnapshots};

fn keep() -> KeepLevels {
    "1y 2m 2w 2d".parse().unwrap()
}

fn leveled_world(first: &str) -> World {
    let mut world = World::new();
    world.settings.lifecycle.levels = Some(LevelRules {
        keep: keep(),
        base: LevelBase::Same,
        fulls: FullRule::Period,
    });
    // The snapshot of a new world is of another day.
    let early = world.newest_snapshot();
    world.zfs.destroy_snapshots(&[early]).unwrap();
    set_day(&world, first);
    world.snapshot();
    world
}

fn set_day(world: &World, day: &str) {
    let at = format!("{day}T03:00:00Z");
    world.zfs.set_now(at.parse().unwrap());
}

/// A night: files change, a snapshot is taken.
fn night(world: &World, day: &str, number: u64) {
    set_day(world, day);
    let file = noise(number, 20_000);
    world.zfs.write_file(&world.dataset, 100 + number, &file);
    world.snapshot();
}

/// The day and level of a backup, and the day of its base.
fn words(manifest: &Manifest, all: &[Manifest]) -> String {
    let day = |manifest: &Manifest| manifest.snapshot.created_at.strftime("%m-%d").to_string();
    let level = manifest.level.unwrap();
    let base = manifest.base.as_ref().map(|base| {
        let found = all.iter().find(|other| other.id == base.backup_id);
        format!(" on {}", day(found.unwrap()))
    });
    format!("{} {level}{}", day(manifest), base.unwrap_or_default())
}

fn pool_view(world: &World) -> PoolView {
    let dataset = world.selected().dataset;
    let snapshots = world.zfs.snapshots(&world.dataset).unwrap();
    let bookmarks = world.zfs.bookmarks(&world.dataset).unwrap();
    let guids = snapshots.iter().map(|snapshot| snapshot.guid);
    PoolView {
        origin: Origin {
            dataset_guid: dataset.guid,
            pool_guid: world.zfs.pool_guid("tank").unwrap(),
        },
        known: guids
            .chain(bookmarks.iter().map(|bookmark| bookmark.guid))
            .collect(),
        adopted: BTreeSet::new(),
    }
}

/// Prunes by the levels, and returns the number of deleted backups.
async fn prune(world: &World) -> usize {
    let pool = pool_view(world);
    let task = PruneTask {
        stored: world.dataset.clone(),
        origins: vec![pool.origin.clone()],
        rules: RetentionRules {
            levels: Some(keep()),
            ..RetentionRules::default()
        },
        secondary: SecondaryStore::Nothing,
    };
    let mut env = world.prune_env(now());
    env.pools = BTreeMap::from([(world.dataset.clone(), pool)]);
    let outcome = prune_dataset(&env, &task).await.unwrap();
    assert_eq!(outcome.view.plan.doubts, []);
    outcome.deleted.len()
}

async fn manifests(world: &World) -> Vec<Manifest> {
    let catalog = world.catalog().await;
    let backups = catalog.backups.into_iter();
    backups.map(|backup| backup.manifest).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nights_with_levels_are_pruned_and_each_that_stays_restores() {
    let nights = [
        "2025-01-01",
        "2025-01-02",
        "2025-01-03",
        "2025-01-06",
        "2025-01-07",
        "2025-01-13",
        "2025-02-01",
        "2025-02-02",
        "2025-02-03",
        "2025-02-04",
        "2025-03-01",
        "2025-03-02",
    ];
    let world = leveled_world(nights[0]);
    let mut files = BTreeMap::new();
    for (number, day) in (0..).zip(nights) {
        if number > 0 {
            night(&world, day, number);
        }
        let made = nightly(&world).await.manifest;
        files.insert(made.snapshot.guid, world.zfs.files(&world.dataset));
        // Only bookmarks are left as bases.
        let old: Vec<_> = world.zfs.snapshots(&world.dataset).unwrap();
        let names: Vec<_> = old.into_iter().map(|snapshot| snapshot.name).collect();
        world.zfs.destroy_snapshots(&names).unwrap();
    }
    let made = manifests(&world).await;
    let made_words: Vec<String> = made.iter().map(|it| words(it, &made)).collect();
    assert_eq!(
        made_words,
        [
            "01-01 yearly",
            "01-02 daily on 01-01",
            "01-03 daily on 01-02",
            "01-06 weekly on 01-01",
            "01-07 daily on 01-06",
            "01-13 weekly on 01-06",
            "02-01 monthly on 01-01",
            "02-02 daily on 02-01",
            "02-03 weekly on 02-01",
            "02-04 daily on 02-03",
            "03-01 monthly on 02-01",
            "03-02 daily on 03-01",
        ]
    );
    let bookmarks = world.zfs.bookmarks(&world.dataset).unwrap();
    assert_eq!(bookmarks.len(), 3, "{bookmarks:?}");
    assert_eq!(prune(&world).await, 7);
    let left = manifests(&world).await;
    let left_words: Vec<String> = left.iter().map(|it| words(it, &left)).collect();
    assert_eq!(
        left_words,
        [
            "01-01 yearly",
            "02-01 monthly on 01-01",
            "02-03 weekly on 02-01",
            "03-01 monthly on 02-01",
            "03-02 daily on 03-01",
        ]
    );
    assert_eq!(world.verify().await.damage, []);
    for manifest in &left {
        assert_restores(&world, manifest, &files).await;
    }
    // The bases of the next levels are still in the pool and in the store.
    night(&world, "2025-04-01", 99);
    let next = nightly(&world).await.manifest;
    let all = manifests(&world).await;
    assert_eq!(words(&next, &all), "04-01 monthly on 03-01");
}

async fn assert_restores(
    world: &World,
    manifest: &Manifest,
    files: &BTreeMap<Guid, crate::chains::Files>,
) {
    let target = name(&format!("tank/r{}", manifest.snapshot.guid));
    let set = world
        .find(&RestorePoint::Id(manifest.id.clone()))
        .await
        .unwrap();
    let options = ReceiveOptions::default();
    let zfs = Arc::new(world.zfs.clone());
    restore_to_dataset(&set, &world.keys, zfs, &target, &options, never())
        .await
        .unwrap();
    assert_eq!(world.zfs.files(&target), files[&manifest.snapshot.guid]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_upload_keeps_the_level_that_it_began_with() {
    for forgets_journal in [false, true] {
        let mut world = leveled_world("2025-01-01");
        nightly(&world).await;
        night(&world, "2025-02-01", 1);
        world.store.fail(
            Fault::before(StoreErrorKind::Denied)
                .of(Operation::Finish)
                .forever(),
        );
        let failed = world.try_back_up_as(RequestedKind::Lifecycle).await;
        failed.unwrap_err();
        world.store.heal();
        if forgets_journal {
            std::fs::remove_dir_all(world.settings.state_dir.join("journal")).unwrap();
        }
        world.settings.lifecycle.levels = None;
        let run = world.try_back_up_as(RequestedKind::Lifecycle).await;
        let manifest = committed(run.unwrap()).manifest;
        assert_eq!(manifest.level, Some(BackupLevel::Monthly));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_dataset_gets_a_backup_of_each_longer_level_and_no_full() {
    let mut world = leveled_world("2025-01-01");
    world.settings.skip_unchanged = true;
    nightly(&world).await;
    night(&world, "2025-01-02", 1);
    nightly(&world).await;
    let mut made = Vec::new();
    for day in [
        "2025-01-03",
        "2025-01-06",
        "2025-01-07",
        "2025-01-13",
        "2025-02-01",
        "2025-02-03",
        "2025-03-01",
        "2026-01-01",
    ] {
        set_day(&world, day);
        world.snapshot();
        let run = world.try_back_up_as(RequestedKind::Lifecycle).await;
        let level = run.unwrap().committed.first().map(|it| it.manifest.level);
        made.push((day, level.flatten().map(BackupLevel::as_str)));
    }
    assert_eq!(
        made,
        [
            ("2025-01-03", None),
            ("2025-01-06", Some("weekly")),
            ("2025-01-07", None),
            ("2025-01-13", None),
            ("2025-02-01", Some("monthly")),
            ("2025-02-03", None),
            ("2025-03-01", None),
            ("2026-01-01", None),
        ]
    );
    // The full that was due is made as soon as something is written.
    night(&world, "2026-01-02", 2);
    assert_eq!(nightly(&world).await.manifest.base, None);
}
