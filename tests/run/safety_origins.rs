//! Two time lines of one origin: a cloned machine, a copied pool, a pool that was rewound. Nothing
//! is deleted and nothing is chosen silently. A pool that moved and a new installation work as
//! before.

use crate::chain::{plant, replant};
use crate::chains::{night, nightly};
use crate::world::{World, committed, key_of, name, noise, now};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::config::RetentionRules;
use zfs_backup::manifest::{Manifest, Origin, Started, parse_strict};
use zfs_backup::model::{BackupId, BackupKind, Guid, HostMark};
use zfs_backup::plan::prune::Doubt;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::RunError;
use zfs_backup::run::backup::{BackupEnv, back_up};
use zfs_backup::run::pool::select::Selected;
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::run::pool::view::pool_view;
use zfs_backup::run::prune::{PruneEnv, PruneOutcome, PruneTask, SecondaryStore, prune_dataset};
use zfs_backup::run::restore::{RestorePoint, find_restore_set, find_restore_tree};
use zfs_backup::state::adoption::adopt;
use zfs_backup::state::host_mark::{host_mark, known_host_mark};
use zfs_backup::store::memory::{Fault, Operation};
use zfs_backup::store::{StoreErrorKind, StoreInfo};
use zfs_backup::zfs::{DatasetType, ZfsRead};

const PRUNED_AT: &str = "2026-02-20T00:00:00Z";

fn origin(world: &World) -> Origin {
    let pool_guid = world.zfs.pool_guid("tank").unwrap();
    Origin {
        dataset_guid: world.selected().dataset.guid,
        pool_guid,
    }
}

/// As the command line makes it: with what the pool knows.
fn env(world: &World) -> PruneEnv {
    let mut env = world.prune_env(PRUNED_AT.parse().unwrap());
    world.store.set_clock(Some(env.now));
    let (dataset, state) = (&world.dataset, &*world.settings.state_dir);
    let place = (state, &world.store.known(), dataset);
    let sight = pool_view(&world.zfs, dataset, place, &origin(world)).unwrap();
    env.pools.insert(dataset.clone(), sight);
    env
}

fn take_over(world: &World, ids: &[BackupId]) {
    let state = &world.settings.state_dir;
    adopt(
        state,
        &world.store.known(),
        &world.dataset,
        &origin(world),
        &[],
        ids,
    )
    .unwrap();
}

async fn prune(world: &World) -> PruneOutcome {
    let task = PruneTask {
        stored: world.dataset.clone(),
        origins: vec![origin(world)],
        rules: RetentionRules {
            last_chains: Some(1),
            ..Default::default()
        },
        secondary: SecondaryStore::Nothing,
    };
    prune_dataset(&env(world), &task).await.unwrap()
}

/// Asserts that prune refuses because of exactly these backups, the newest of each host, and names
/// the remedy.
async fn assert_doubts(world: &World, newest: &[&Manifest]) {
    let done = prune(world).await;
    assert_eq!(done.deleted, []);
    let doubts = &done.view.plan.doubts;
    let ids: Vec<&BackupId> = doubts
        .iter()
        .map(|doubt| match doubt {
            Doubt::OtherLine { id, .. } => id,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(
        ids,
        newest
            .iter()
            .map(|manifest| &manifest.id)
            .collect::<Vec<_>>()
    );
    for (doubt, manifest) in doubts.iter().zip(newest) {
        let command = format!("zfs-backup adopt 'tank/a b' --line {} -y", manifest.id);
        assert!(
            doubt
                .hint("prune-remote", &world.dataset)
                .contains(&command),
            "{}",
            doubt.hint("prune-remote", &world.dataset)
        );
        assert!(!doubt.is_damage());
        let host = manifest.host_mark.as_ref().unwrap();
        assert!(doubt.to_string().contains(&host.to_string()), "{doubt}");
    }
}

/// Asserts that a restore asks for a choice, shows all of these, and accepts each by its id.
async fn assert_asked(world: &World, point: &RestorePoint, candidates: &[&Manifest]) {
    let refused = world
        .find(point)
        .await
        .map(|set| set.newest().manifest.id.clone())
        .unwrap_err();
    assert!(matches!(refused, RunError::Refused { .. }), "{refused}");
    for manifest in candidates {
        let text = refused.to_string();
        let host = manifest
            .host_mark
            .as_ref()
            .map_or("without mark".to_owned(), HostMark::to_string);
        for part in [
            manifest.id.as_str(),
            &host,
            &manifest.snapshot.created_at.to_string(),
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        let chosen = world
            .find(&RestorePoint::Id(manifest.id.clone()))
            .await
            .unwrap();
        assert_eq!(chosen.newest().manifest.id, manifest.id);
    }
    assert!(refused.hint().unwrap().contains("--backup ID"));
}

async fn assert_newest(world: &World, manifest: &Manifest) {
    let found = world.find(&RestorePoint::Newest).await.unwrap();
    assert_eq!(found.newest().manifest.id, manifest.id);
}

async fn assert_silent(world: &World) {
    assert_eq!(prune(world).await.view.plan.doubts, []);
}

async fn full(world: &World, number: u64) -> Manifest {
    night(world, number);
    world.back_up().await.manifest
}

async fn incremental(world: &World, number: u64) -> Manifest {
    night(world, number);
    nightly(world).await.manifest
}

/// The same store and a copy of the pool on a host of its own.
fn copied_pool(world: &World) -> World {
    let mut copy = World::empty(world.keys.clone(), world.writer.clone());
    (copy.zfs, copy.store, copy.dataset) = (
        world.zfs.copy_pools(),
        world.store.clone(),
        world.dataset.clone(),
    );
    copy
}

/// As above, and the state folder is copied too.
fn cloned_machine(world: &World) -> World {
    let clone = copied_pool(world);
    copy_folder(&world.settings.state_dir, &clone.settings.state_dir);
    clone
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let place = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &place),
            false => drop(fs::copy(entry.path(), place).unwrap()),
        }
    }
}

/// Another state folder, as after a new installation or on another machine. The machine id is that
/// of the tests' host.
fn forget_state(world: &mut World) -> TempDir {
    let state = TempDir::new().unwrap();
    state.path().clone_into(&mut world.settings.state_dir);
    state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_record_their_host_mark_and_previous_backup() {
    let world = World::new();
    let first = world.back_up().await.manifest;
    let mark = host_mark(&world.settings.state_dir).unwrap();
    assert_eq!(
        (first.host_mark.as_ref(), first.previous.as_deref()),
        (Some(&mark), Some(&[][..]))
    );
    let started: Started =
        parse_strict(&world.store.object(&key_of(&first, "started.json")).unwrap()).unwrap();
    assert_eq!(started.host_mark, Some(mark));
    let second = incremental(&world, 1).await;
    assert_eq!(second.previous, Some(vec![first.id.clone()]));
    // A full too says what it comes after.
    assert_eq!(full(&world, 2).await.previous, Some(vec![second.id]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copied_pool_causes_doubts_on_both_hosts_and_an_ambiguous_newest() {
    let world = World::new();
    world.back_up().await;
    let copy = copied_pool(&world);
    assert_silent(&world).await;
    assert_silent(&copy).await;
    let theirs = full(&copy, 1).await;
    // Before our own next backup: what is newest, the pool does not know.
    assert_doubts(&world, &[&theirs]).await;
    let ours = full(&world, 2).await;
    assert_doubts(&world, &[&theirs]).await;
    assert_doubts(&copy, &[&ours]).await;
    assert_asked(&world, &RestorePoint::Newest, &[&ours, &theirs]).await;
    assert_asked(
        &world,
        &RestorePoint::At(ours.snapshot.created_at),
        &[&ours, &theirs],
    )
    .await;
    // Before they parted there is one time line.
    let before = RestorePoint::At("2026-02-01T00:00:00Z".parse().unwrap());
    assert_eq!(world.find(&before).await.unwrap().backups.len(), 1);
}

/// The clone's backup was stored after all of ours, so none of ours can have skipped it. The rules
/// would delete it for our newer full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_that_stores_an_older_snapshot_after_our_newest_is_a_doubt() {
    fn an_hour_later() -> jiff::Timestamp {
        now() + jiff::SignedDuration::from_hours(1)
    }
    let world = World::new();
    world.back_up().await;
    let clone = cloned_machine(&world);
    night(&clone, 1);
    full(&world, 2).await;
    let env = BackupEnv {
        now: an_hour_later,
        ..clone.env()
    };
    let stored = back_up(&env, &clone.selected(), RequestedKind::Full).await;
    let theirs = committed(stored.unwrap()).manifest;
    assert_doubts(&world, &[&theirs]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clone_with_a_copied_state_folder_is_detected_from_the_pool_snapshots() {
    let world = World::new();
    world.back_up().await;
    let clone = cloned_machine(&world);
    let marks = [&world, &clone].map(|world| known_host_mark(&world.settings.state_dir).unwrap());
    assert_eq!(
        marks[0], marks[1],
        "nothing but their pools tells them apart"
    );
    let theirs = incremental(&clone, 1).await;
    let ours = incremental(&world, 2).await;
    assert_doubts(&world, &[&theirs]).await;
    assert_doubts(&clone, &[&ours]).await;
    let theirs = incremental(&clone, 3).await;
    assert_asked(&world, &RestorePoint::Newest, &[&ours, &theirs]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopted_backups_are_pruned_and_later_ones_of_that_host_cause_a_doubt() {
    let world = World::new();
    let shared = world.back_up().await.manifest;
    let copy = copied_pool(&world);
    let theirs = [full(&copy, 1).await, full(&copy, 2).await];
    let ours = full(&world, 3).await;
    assert_doubts(&world, &[&theirs[1]]).await;
    let ids = theirs.clone().map(|manifest| manifest.id);
    take_over(&world, &ids);
    let done = prune(&world).await;
    assert_eq!(done.view.plan.doubts, []);
    let gone: BTreeSet<BackupId> = [shared.id].into_iter().chain(ids).collect();
    assert_eq!(done.deleted.iter().cloned().collect::<BTreeSet<_>>(), gone);
    assert_newest(&world, &ours).await;
    let later = full(&copy, 4).await;
    full(&world, 5).await;
    assert_doubts(&world, &[&later]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_after_an_adoption_makes_the_newest_unambiguous_again() {
    let world = World::new();
    world.back_up().await;
    let copy = copied_pool(&world);
    let (theirs, ours) = (full(&copy, 1).await, full(&world, 2).await);
    assert_asked(&world, &RestorePoint::Newest, &[&ours, &theirs]).await;
    take_over(&world, std::slice::from_ref(&theirs.id));
    let next = full(&world, 3).await;
    assert_eq!(next.previous, Some(vec![ours.id, theirs.id]));
    assert_newest(&world, &next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rewound_pool_causes_a_doubt_until_the_abandoned_line_is_adopted() {
    let world = World::new();
    let shared = world.back_up().await.manifest;
    let checkpoint = world.zfs.copy_pools();
    let abandoned = [full(&world, 1).await, full(&world, 2).await];
    world.zfs.rewind_to(&checkpoint);
    assert_doubts(&world, &[&abandoned[1]]).await;
    let real = full(&world, 3).await;
    assert!(
        real.snapshot.createtxg < abandoned[1].snapshot.createtxg,
        "or it is no test"
    );
    assert_doubts(&world, &[&abandoned[1]]).await;
    for point in [
        RestorePoint::Newest,
        RestorePoint::At(real.snapshot.created_at),
    ] {
        assert_asked(&world, &point, &[&real, &abandoned[1]]).await;
    }
    // As it was before the pool was rewound.
    let then = world
        .find(&RestorePoint::At(abandoned[1].snapshot.created_at))
        .await
        .unwrap();
    assert_eq!(then.newest().manifest.id, abandoned[1].id);
    // The abandoned ones have the greater transaction groups, and are the older ones all the same.
    let ids = abandoned.map(|manifest| manifest.id);
    take_over(&world, &ids);
    let done = prune(&world).await;
    assert_eq!(done.view.plan.doubts, []);
    let gone: BTreeSet<BackupId> = [shared.id].into_iter().chain(ids).collect();
    assert_eq!(done.deleted.iter().cloned().collect::<BTreeSet<_>>(), gone);
    assert_newest(&world, &real).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_pool_and_reinstalled_host_continue_without_a_doubt() {
    let mut world = World::new();
    world.back_up().await;
    incremental(&world, 1).await;
    let mark = host_mark(&world.settings.state_dir).unwrap();
    let _there = forget_state(&mut world);
    assert_silent(&world).await;
    let second = incremental(&world, 2).await;
    assert_ne!(second.host_mark, Some(mark), "another host");
    assert_newest(&world, &second).await;
    assert_silent(&world).await;
    // And once more, with a full at the border.
    let _and_back = forget_state(&mut world);
    let third = full(&world, 3).await;
    assert_newest(&world, &third).await;
    assert_silent(&world).await;
    let fourth = incremental(&world, 4).await;
    assert_newest(&world, &fourth).await;
    assert_silent(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_upload_resumed_on_another_host_causes_no_doubt() {
    let mut world = World::new();
    world.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::Create)
            .nth(3)
            .forever(),
    );
    assert!(
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .is_err()
    );
    world.store.heal();
    let begun: Vec<String> = world
        .store
        .keys()
        .into_iter()
        .filter(|key| key.ends_with("/started.json"))
        .collect();
    let _there = forget_state(&mut world);
    let moved = nightly(&world).await.manifest;
    assert_eq!(begun, [key_of(&moved, "started.json")], "the same upload");
    assert_newest(&world, &moved).await;
    assert_silent(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_of_older_versions_cause_no_doubt() {
    let world = World::new();
    let old = [world.back_up().await.manifest, full(&world, 1).await];
    for manifest in &old {
        replant(
            &world,
            &Manifest {
                host_mark: None,
                previous: None,
                ..manifest.clone()
            },
        );
    }
    assert_silent(&world).await;
    let next = full(&world, 2).await;
    assert_newest(&world, &next).await;
    assert_silent(&world).await;
}

/// A restored dataset has another guid and continues its chain; the pool knows its snapshots.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_dataset_continues_the_same_time_line() {
    let mut world = World::new();
    world.back_up().await;
    incremental(&world, 1).await;
    let target = name("tank/back");
    world.restore_into(&target).await.unwrap();
    let stored = world.dataset.clone();
    world.dataset = target;
    night(&world, 2);
    let selected = zfs_backup::run::pool::select::Selected {
        stored: stored.clone(),
        ..world.selected()
    };
    let next = committed(
        back_up(&world.env(), &selected, RequestedKind::Full)
            .await
            .unwrap(),
    )
    .manifest;
    let found = find_restore_set(
        &[world.shared_store()],
        &stored,
        &world.keys,
        &RestorePoint::Newest,
    )
    .await
    .unwrap();
    assert_eq!(
        found.newest().manifest.id,
        next.id,
        "a full that says what it comes after"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_never_commit_one_upload() {
    let world = World::new();
    world.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::Create)
            .nth(3)
            .forever(),
    );
    assert!(
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .is_err()
    );
    world.store.heal();
    let begun = world
        .store
        .keys()
        .into_iter()
        .find(|key| key.ends_with("/started.json"))
        .unwrap();
    let folder = begun.strip_suffix("started.json").unwrap().to_owned();
    // The clone puts a chunk of this upload, under another name, while we resume it.
    let (store, theirs) = (
        world.store.clone(),
        format!("{folder}00000003-0badcafe.zfs.age"),
    );
    let planted = theirs.clone();
    let progress = Arc::new(move |_| store.plant(&planted, noise(9, 100)));
    let env = BackupEnv {
        progress,
        ..world.env()
    };
    let fresh = committed(
        back_up(&env, &world.selected(), RequestedKind::Lifecycle)
            .await
            .unwrap(),
    )
    .manifest;
    // A new upload was begun, and nothing that the other one put was touched.
    assert!(!folder.contains(fresh.id.as_str()));
    assert!(
        world
            .store
            .object(&format!("{folder}manifest.json"))
            .is_none(),
        "committed beside another host"
    );
    assert!(
        world.store.object(&theirs).is_some(),
        "the other one's chunk was removed"
    );
}

/// K of the review: the clone's chains took the place of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_of_a_cloned_machine_do_not_displace_own_chains() {
    let world = World::new();
    let ours = world.back_up().await.manifest;
    // Same guids, same mark, and snapshots that this pool has never had.
    let theirs = [plant(&world, &ours, 1, None), plant(&world, &ours, 2, None)];
    let done = prune(&world).await;
    assert_eq!(done.deleted, []);
    assert!(
        matches!(&done.view.plan.doubts[..], [Doubt::OtherLine { id, .. }] if *id == theirs[1].id)
    );
    // By another host, which says what it comes after.
    let mark: HostMark = "00000000deadbeef-0000000000000001".parse().unwrap();
    let (first, second) = (ours.previous.clone(), Some(vec![theirs[0].id.clone()]));
    for (manifest, previous) in theirs.iter().zip([first, second]) {
        replant(
            &world,
            &Manifest {
                host_mark: Some(mark.clone()),
                previous,
                ..manifest.clone()
            },
        );
    }
    let next = full(&world, 40).await;
    let theirs = Manifest {
        host_mark: Some(mark),
        ..theirs[1].clone()
    };
    assert_asked(&world, &RestorePoint::Newest, &[&next, &theirs]).await;
}

/// E of the review: after the pool was rewound the abandoned time line was the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newest_backup_is_ambiguous_if_an_abandoned_time_line_exists() {
    let world = World::new();
    let full = world.back_up().await.manifest;
    let abandoned = plant(&world, &full, 10, None);
    let mut real = plant(&world, &full, 20, None);
    real.snapshot.createtxg = full.snapshot.createtxg + 50;
    replant(&world, &real);
    for point in [
        RestorePoint::Newest,
        RestorePoint::At(real.snapshot.created_at),
    ] {
        assert_asked(&world, &point, &[&real, &abandoned]).await;
    }
    let catalog = world.catalog().await;
    assert_eq!(
        (catalog.time_lines(), &catalog.newest().unwrap().manifest.id),
        (2, &real.id)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_name_in_two_time_lines_is_ambiguous() {
    let world = World::new();
    world.back_up().await;
    let copy = copied_pool(&world);
    let (theirs, ours) = (full(&copy, 1).await, full(&world, 2).await);
    let short = world.newest_snapshot().short().to_owned();
    assert_eq!(copy.newest_snapshot().short(), short, "or it is no test");
    assert_asked(&world, &RestorePoint::Snapshot(short), &[&ours, &theirs]).await;
}

/// A dataset and the one that was restored from it both have a snapshot of that name. Their
/// transaction groups may be of two pools, so the greater one is not the newer one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_name_in_two_datasets_is_ambiguous() {
    let world = World::new();
    world.back_up().await;
    let target = name("tank/again");
    world.restore_into(&target).await.unwrap();
    let at = now() + jiff::SignedDuration::from_hours(1);
    let mut ids = Vec::new();
    for dataset in [&target, &world.dataset] {
        world.zfs.write_file(dataset, 41, &noise(41, 10_000));
        take_snapshots(&world.zfs, std::slice::from_ref(dataset), "zfs-backup_", at).unwrap();
        let selected = Selected {
            dataset: world.zfs.dataset(dataset).unwrap().unwrap(),
            stored: world.dataset.clone(),
        };
        ids.push(
            committed(
                back_up(&world.env(), &selected, RequestedKind::Full)
                    .await
                    .unwrap(),
            )
            .manifest
            .id,
        );
    }
    let short = world.newest_snapshot().short().to_owned();
    let refused = world
        .find(&RestorePoint::Snapshot(short))
        .await
        .map(|set| set.newest().manifest.id.clone());
    let refused = refused.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("backups of 2 datasets lie under the name"),
        "{refused}"
    );
    for id in ids {
        assert_eq!(
            world
                .find(&RestorePoint::Id(id.clone()))
                .await
                .unwrap()
                .newest()
                .manifest
                .id,
            id
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_takes_the_descendants_of_the_root_that_was_chosen() {
    let mut world = World::new();
    let (root, child) = (world.dataset.clone(), name("tank/a b/child"));
    world.zfs.create(&child, DatasetType::Filesystem);
    let both = |world: &mut World, at: i64| {
        world
            .zfs
            .set_now(jiff::Timestamp::from_second(1_770_000_000 + at * 86_400).unwrap());
        let names = [root.clone(), child.clone()];
        zfs_backup::run::pool::snapshot::take_snapshots(&world.zfs, &names, "zfs-backup_", now())
            .unwrap();
    };
    let back_up_both = async |world: &mut World| {
        let first = world.back_up().await.manifest;
        world.dataset = child.clone();
        let second = world.back_up().await.manifest;
        world.dataset = root.clone();
        [first, second]
    };
    both(&mut world, 1);
    back_up_both(&mut world).await;
    let mut copy = copied_pool(&world);
    both(&mut copy, 2);
    let theirs = back_up_both(&mut copy).await;
    both(&mut world, 3);
    let ours = back_up_both(&mut world).await;
    let find = async |point: RestorePoint| {
        find_restore_tree(&[world.shared_store()], &root, &world.keys, &point).await
    };
    let refused = find(RestorePoint::Newest).await.map(drop).unwrap_err();
    assert!(
        refused.to_string().contains(theirs[0].id.as_str()),
        "{refused}"
    );
    for [first, second] in [&ours, &theirs] {
        let tree = find(RestorePoint::Id(first.id.clone())).await.unwrap();
        let ids: Vec<_> = tree
            .members
            .iter()
            .map(|member| member.set.newest().manifest.id.clone())
            .collect();
        assert_eq!(ids, [first.id.clone(), second.id.clone()]);
        assert!(tree.failed.is_empty());
    }
    // If the child has no backup of that moment, the restore must ask about its two time lines
    // again.
    let key = key_of(&ours[1], "manifest.json");
    assert!(world.store.lose(&key) && world.store.lose(&format!("{key}.minisig")));
    let again = plant_child(&world, &theirs[1]);
    let tree = find(RestorePoint::Id(ours[0].id.clone())).await.unwrap();
    assert!(
        tree.members.len() == 1 && tree.failed.len() == 1,
        "{again:?}"
    );
    assert!(
        tree.failed[0].1.to_string().contains("two time lines"),
        "{}",
        tree.failed[0].1
    );
}

/// A later backup of the child, by the other host, that does not follow from theirs.
fn plant_child(world: &World, theirs: &Manifest) -> BackupId {
    let mut manifest = theirs.clone();
    let at = theirs.snapshot.created_at + jiff::SignedDuration::from_hours(1);
    manifest.id = BackupId::new(at, BackupKind::Full, Guid(0xc0de), 7);
    (manifest.snapshot.guid, manifest.snapshot.created_at) = (Guid(0xc0de), at);
    // The transaction group is before theirs: both orders differ.
    manifest.snapshot.createtxg = theirs.snapshot.createtxg - 1;
    manifest.chain.full_id = manifest.id.clone();
    manifest.previous = Some(Vec::new());
    crate::chain::plant_as(world, theirs, &manifest);
    manifest.id
}
