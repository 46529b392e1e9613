//! Stores have identities, not names: one store under two names is never taken for two, two stores
//! under one name never touch each other's uploads, and what one configuration needs another one
//! leaves alone.

use crate::chains::{bookmark_of, bookmarks, night, nightly};
use crate::scheduler::{GatedStore, Racer, Schedule, Scheduler, Watch};
use crate::upload::Pair;
use crate::world::{PART_BYTES, World, committed, memory_store, never, now, plant_keyring};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::config::RetentionRules;
use zfs_backup::model::{BackupId, BackupKind, DatasetName, Guid, KnownStore, StoreId};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnv, OtherStore, StoreRole, back_up, plan_backup};
use zfs_backup::run::clock::ClockCheck;
use zfs_backup::run::identity::{Purpose, StorePlace, accept, identify, known_at};
use zfs_backup::run::pool::holds::{KnownAttempts, over_in, release_holds};
use zfs_backup::run::pool::pins::HOLD_PREFIX;
use zfs_backup::run::pool::prune_snapshots::{
    SnapshotStore, SnapshotsEnv, judge_snapshots, prune_snapshots,
};
use zfs_backup::run::prune::{PruneTask, SecondaryStore, prune_dataset, read_view};
use zfs_backup::run::restore::RestorePoint;
use zfs_backup::run::verify::{Damage, VerifyOptions, verify_with};
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::state::history::{HistoryRecords, OwnCommit, VerifyNote};
use zfs_backup::state::journal::{AttemptJournal, read_attempts, unended};
use zfs_backup::store::dir::DirStore;
use zfs_backup::store::key::STORE_ID;
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};
use zfs_backup::store::{
    DirSettings, ObjectStore, StoreErrorKind, StoreInfo, StoreTraits, StoreWrite,
};
use zfs_backup::zfs::{ZfsRead, ZfsSnapshots};

fn assert_one_place<T: std::fmt::Debug>(result: Result<T, RunError>) {
    let error = result.unwrap_err();
    assert!(
        matches!(error, RunError::OnePlace { .. }),
        "{}",
        error_chain(&error)
    );
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("intermediate_basedir") && hint.contains("accept-store"),
        "{hint}"
    );
}

fn last_incremental(
    world: &World,
    secondary: SecondaryStore,
    origin: zfs_backup::manifest::Origin,
) -> PruneTask {
    let rules = RetentionRules {
        last_incrementals: Some(1),
        ..Default::default()
    };
    PruneTask {
        stored: world.dataset.clone(),
        origins: vec![origin],
        rules,
        secondary,
    }
}

async fn world_of_nights(count: u64) -> World {
    let world = World::new();
    for number in 0..count {
        night(&world, number);
        nightly(&world).await;
    }
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_store_under_two_names_is_refused_by_commands_that_need_two() {
    let world = world_of_nights(3).await;
    let at: jiff::Timestamp = "2026-02-10T00:00:00Z".parse().unwrap();
    world.store.set_clock(Some(at));
    let origin = world.catalog().await.backups[0].manifest.origin.clone();
    let before = world.store.keys();
    for secondary in [
        SecondaryStore::Remote(world.shared_store()),
        SecondaryStore::Intermediate(world.shared_store()),
    ] {
        let task = last_incremental(&world, secondary, origin.clone());
        assert_one_place(prune_dataset(&world.prune_env(at), &task).await);
        assert_one_place(read_view(&world.prune_env(at), &task).await);
    }
    let snapshots = SnapshotsEnv {
        zfs: Arc::new(world.zfs.clone()),
        stores: [true, false]
            .map(|beside_remote| SnapshotStore {
                store: world.shared_store(),
                beside_remote,
            })
            .into_iter()
            .collect(),
        trusted: world.keys.trusted.clone(),
        state_dir: world.settings.state_dir.clone(),
        oldest_days: 1,
        levels: None,
        prefix: "zfs-backup_".into(),
        now: at,
        clock: ClockCheck::vouched_at(at),
    };
    assert_one_place(judge_snapshots(&snapshots, &world.selected()).await);
    assert_one_place(prune_snapshots(&snapshots, &world.selected()).await);
    // Also where the other one is known by what is remembered of it alone.
    for store in [
        Ok(world.shared_store() as Arc<dyn StoreWrite>),
        Err("no route to host".to_owned()),
    ] {
        let other = OtherStore {
            role: StoreRole::Remote,
            known: world.store.known(),
            store,
        };
        let env = BackupEnv {
            role: StoreRole::Intermediate,
            other: Some(other),
            ..world.env()
        };
        assert_one_place(back_up(&env, &world.selected(), RequestedKind::Lifecycle).await);
        assert_one_place(plan_backup(&env, &world.selected(), RequestedKind::Lifecycle).await);
    }
    assert_eq!(world.store.keys(), before);
    let pair = Pair::new(world);
    let upload = zfs_backup::run::copy::UploadEnv {
        pool: zfs_backup::run::copy::CopyPool::default(),
        to: pair.world.shared_store(),
        ..pair.env(never())
    };
    assert_one_place(pair.upload_with(&upload, false, &[]).await);
    assert!(pair.world.find(&RestorePoint::Newest).await.is_ok());
    assert_eq!(pair.world.store.keys(), before);
}

fn dir_store(root: &Path) -> Arc<dyn ObjectStore> {
    Arc::new(
        DirStore::open(&DirSettings {
            root: root.to_owned(),
            part_bytes: PART_BYTES,
        })
        .unwrap(),
    )
}

fn place(url: &str, endpoint: &str) -> StorePlace {
    StorePlace {
        url: url.to_owned(),
        endpoint: endpoint.to_owned(),
        option: "",
    }
}

fn place_of(root: &Path) -> StorePlace {
    place(&format!("file:{}", root.display()), "")
}

async fn open(
    state: &Path,
    root: &Path,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, RunError> {
    identify(state, &place_of(root), dir_store(root), purpose, &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folder_has_one_store_id_under_every_path() {
    let (folder, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    // A command that only reads makes nothing, on this host or in the store.
    let read = open(state.path(), &real, Purpose::Read).await.unwrap();
    assert_eq!(read.known(), KnownStore::of_url(read.url()));
    assert!(
        read.list("").await.unwrap().is_empty()
            && fs::read_dir(state.path()).unwrap().next().is_none()
    );
    let one = open(state.path(), &real, Purpose::Write).await.unwrap();
    let other = open(state.path(), &link, Purpose::Read).await.unwrap();
    assert!(
        one.known().id.is_random()
            && one.known().id == other.known().id
            && one.url() != other.url()
    );
    assert_eq!(
        known_at(state.path(), &place_of(&real)).unwrap(),
        one.known()
    );
    assert_eq!(
        known_at(state.path(), &place_of(&link)).unwrap(),
        other.known()
    );
    let listed = one.list("").await.unwrap();
    assert!(listed.len() == 1 && listed[0].key == STORE_ID && one.is_unused().await.unwrap());
    // The identity stays the same, on this host and on every other.
    let elsewhere = TempDir::new().unwrap();
    for state in [state.path(), elsewhere.path()] {
        assert_eq!(
            open(state, &real, Purpose::Write).await.unwrap().known(),
            one.known()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_store_at_a_known_url_is_not_written_until_accepted() {
    let (folder, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let root = folder.path().join("mount");
    let (disk, spare) = (folder.path().join("disk"), folder.path().join("spare"));
    fs::create_dir(&root).unwrap();
    let first = open(state.path(), &root, Purpose::Write)
        .await
        .unwrap()
        .known();
    // The disk is not mounted: an empty folder lies there.
    fs::rename(&root, &disk).unwrap();
    fs::create_dir(&root).unwrap();
    let refused = open(state.path(), &root, Purpose::Write)
        .await
        .err()
        .unwrap();
    let text = refused.to_string();
    assert!(
        text.contains(first.id.as_str()) && text.contains("has no identity now"),
        "{text}"
    );
    assert!(refused.hint().unwrap().contains("zfs-backup accept-store"));
    assert!(dir_store(&root).list("").await.unwrap().is_empty());
    // Read-only commands still work, and the host still knows the earlier store.
    assert_eq!(
        open(state.path(), &root, Purpose::Read)
            .await
            .unwrap()
            .known(),
        first
    );
    // Another disk.
    fs::rename(&root, &spare).unwrap();
    fs::create_dir(&root).unwrap();
    let other_host = TempDir::new().unwrap();
    let second = open(other_host.path(), &root, Purpose::Write)
        .await
        .unwrap()
        .known();
    let text = open(state.path(), &root, Purpose::Write)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        text.contains(first.id.as_str()) && text.contains(second.id.as_str()),
        "{text}"
    );
    assert_eq!(
        open(state.path(), &root, Purpose::Read)
            .await
            .unwrap()
            .known(),
        second
    );
    let accepted = accept(state.path(), &place_of(&root), &dir_store(&root), &[])
        .await
        .unwrap();
    assert_eq!(accepted, (Some(first.id.clone()), second.id.clone()));
    assert_eq!(
        open(state.path(), &root, Purpose::Write)
            .await
            .unwrap()
            .known(),
        second
    );
    // Disks that take turns were both accepted once.
    fs::rename(&root, folder.path().join("second")).unwrap();
    fs::rename(&disk, &root).unwrap();
    assert_eq!(
        open(state.path(), &root, Purpose::Write)
            .await
            .unwrap()
            .known(),
        first
    );
    assert_eq!(known_at(state.path(), &place_of(&root)).unwrap(), first);
}

fn shared(store: &MemoryStore) -> Arc<dyn ObjectStore> {
    Arc::new(store.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_store_id_is_an_error_and_never_replaced() {
    let here = place("memory:", "");
    let good = StoreId::from_random(7);
    let text = |id: &str| format!("{{\"format\": 1, \"type\": \"store-id\", \"id\": \"{id}\"}}");
    let twice = format!(
        "{{\"format\": 1, \"type\": \"store-id\", \"id\": \"{good}\", \"id\": \"{good}\"}}"
    );
    let wrong: [Bytes; 7] = [
        Bytes::new(),
        "{".into(),
        text("s3:b").into(),
        text(good.as_str()).replace("store-id", "manifest").into(),
        text(good.as_str()).replace(": 1", ": 2").into(),
        twice.into(),
        vec![b' '; 1 << 20].into(),
    ];
    for bytes in wrong {
        let (store, state) = (memory_store(PART_BYTES), TempDir::new().unwrap());
        store.plant(STORE_ID, bytes.clone());
        for purpose in [Purpose::Write, Purpose::Read] {
            let error = identify(state.path(), &here, shared(&store), purpose, &[])
                .await
                .err()
                .unwrap();
            assert!(error.to_string().contains(STORE_ID), "{error}");
            assert!(error.hint().unwrap().contains("accept-store"));
        }
        assert_eq!(store.object(STORE_ID), Some(bytes), "somebody replaced it");
        // A disaster is no time for that.
        assert!(
            identify(state.path(), &here, shared(&store), Purpose::Restore, &[])
                .await
                .is_ok()
        );
    }
    let (store, state) = (memory_store(PART_BYTES), TempDir::new().unwrap());
    store.plant(STORE_ID, text(good.as_str()));
    for kind in [StoreErrorKind::Denied, StoreErrorKind::Unavailable] {
        store.fail(Fault::before(kind).of(Operation::Get).forever());
        for purpose in [Purpose::Write, Purpose::Read] {
            let error = identify(state.path(), &here, shared(&store), purpose, &[])
                .await
                .err()
                .unwrap();
            assert!(
                matches!(&error, RunError::Store(error) if error.kind == kind),
                "{error}"
            );
        }
        assert!(
            identify(state.path(), &here, shared(&store), Purpose::Restore, &[])
                .await
                .is_ok()
        );
        store.heal();
    }
    let found = identify(state.path(), &here, shared(&store), Purpose::Write, &[])
        .await
        .unwrap();
    assert_eq!(found.known().id, good);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_first_runs_agree_on_one_store_id() {
    for conditional_put in [true, false] {
        let traits = StoreTraits {
            part_bytes: PART_BYTES,
            concurrency: 1,
            conditional_put,
            holds_parts: false,
        };
        let store = MemoryStore::with_traits(traits);
        let states: Vec<TempDir> = (0..4).map(|_| TempDir::new().unwrap()).collect();
        let here = place("memory:", "");
        let begin = states
            .iter()
            .map(|state| identify(state.path(), &here, shared(&store), Purpose::Write, &[]));
        let begun = futures_util::future::join_all(begin).await;
        let ids: BTreeSet<StoreId> = begun
            .into_iter()
            .map(|store| store.unwrap().known().id)
            .collect();
        assert_eq!(ids.len(), 1);
        // Two configurations of one host wait for each other.
        let places = ["a", "b", "c"].map(|endpoint| place("memory:", endpoint));
        let begin = places
            .iter()
            .map(|place| identify(states[0].path(), place, shared(&store), Purpose::Write, &[]));
        assert!(
            futures_util::future::join_all(begin)
                .await
                .iter()
                .all(Result::is_ok)
        );
    }
}

struct Unwatched;

impl Watch for Unwatched {
    fn put(&self, _: &GatedStore, _: &str, _: bool) {}
    fn deleting(&self, _: &GatedStore, _: &str) {}
}

/// B2 has no conditional put. Two hosts begin with it, in every order of their calls.
#[tokio::test]
async fn hosts_of_a_store_without_conditional_puts_agree_on_one_store_id() {
    let traits = StoreTraits {
        part_bytes: PART_BYTES,
        concurrency: 1,
        conditional_put: false,
        holds_parts: false,
    };
    for (first, second) in (0..14).flat_map(|first| (0..14).map(move |second| (first, second))) {
        let inner = MemoryStore::with_traits(traits.clone());
        let scheduler = Scheduler::new();
        let gated = |actor| -> Arc<dyn ObjectStore> {
            Arc::new(GatedStore {
                inner: inner.clone(),
                actor,
                scheduler: Arc::clone(&scheduler),
                watch: Arc::new(Unwatched),
                url: "memory:".to_owned(),
                traits: traits.clone(),
            })
        };
        let states = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let here = place("memory:", "");
        let begin = |actor: usize| -> Racer<'_, StoreId> {
            let (state, store, here) = (states[actor].path(), gated(actor), &here);
            Box::pin(async move {
                let begun = identify(state, here, store, Purpose::Write, &[]).await;
                begun.unwrap().known().id
            })
        };
        let mut ticks = 0;
        let schedule = Schedule {
            segments: vec![(0, first), (1, second)],
            ..Schedule::default()
        };
        let found = scheduler
            .race(vec![begin(0), begin(1)], &schedule, |_| {
                ticks += 1;
                inner.set_clock(Some(now() + jiff::SignedDuration::from_millis(ticks)));
            })
            .await;
        let trace = scheduler.trace();
        assert_eq!(found[0], found[1], "{first} {second}: {trace:#?}");
        let again = identify(states[0].path(), &here, shared(&inner), Purpose::Write, &[]);
        assert_eq!(Some(again.await.unwrap().known().id), found[0]);
        assert_eq!(inner.keys(), ["@zfs-backup/store-id"], "claims are left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn same_bucket_name_at_another_endpoint_does_not_touch_the_upload() {
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
    let attempts = || {
        read_attempts(
            &world.settings.state_dir,
            &world.store.known(),
            &world.dataset,
        )
        .unwrap()
    };
    let id = attempts()[0].id.clone();
    let other = memory_store(PART_BYTES);
    assert_eq!(other.url(), world.store.url());
    plant_keyring(&other, &world.writer);
    let env = BackupEnv {
        store: Arc::new(other),
        ..world.env()
    };
    back_up(&env, &world.selected(), RequestedKind::Lifecycle)
        .await
        .unwrap();
    assert!(attempts().len() == 1 && !attempts()[0].is_abandoned());
    let holds = world.zfs.holds(&world.newest_snapshot()).unwrap();
    assert!(
        holds.contains_key(&format!("{HOLD_PREFIX}{id}")),
        "{holds:?}"
    );
    // The upload's own configuration resumes it.
    assert_eq!(nightly(&world).await.manifest.id, id);
    world.assert_no_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_of_another_remote_are_kept_until_released_by_id() {
    let world = World::new();
    let (state, selected) = (&world.settings.state_dir, world.selected());
    let id = |nonce| BackupId::new(now(), BackupKind::Full, Guid(1), nonce);
    let mine = [KnownStore::of_url("s3:mine/x")];
    let _other = AttemptJournal::begin(
        state,
        &KnownStore::of_url("b2:other/x"),
        &world.dataset,
        &id(1),
    )
    .unwrap();
    let backed_up = world.back_up().await.manifest.id;
    // A hold of another configuration, one that no journal knows, one of a backup, and one that a
    // person made.
    let tags = [id(1), id(2), backed_up.clone()].map(|id| format!("{HOLD_PREFIX}{id}"));
    let snapshot = world.newest_snapshot();
    tags.iter()
        .for_each(|tag| world.zfs.hold(&snapshot, tag).unwrap());
    world.zfs.hold(&snapshot, "zfs-backup:mine").unwrap();
    let held = || {
        world
            .zfs
            .holds(&snapshot)
            .unwrap()
            .into_keys()
            .collect::<BTreeSet<String>>()
    };
    let ids = BTreeSet::from([id(1), id(2), backed_up.clone()]);
    let over = over_in(&world.store, &world.dataset, &world.keys.trusted, &ids)
        .await
        .unwrap();
    assert_eq!(over, BTreeSet::from([backed_up]));
    let known = KnownAttempts {
        over: Some(over),
        named: BTreeSet::new(),
    };
    release_holds(&world.zfs, state, &mine, &selected, &known).unwrap();
    let stays = [&tags[0], &tags[1], "zfs-backup:mine"].map(String::from);
    assert_eq!(held(), stays.into_iter().collect());
    let known = KnownAttempts {
        named: BTreeSet::from([id(1), id(2)]),
        ..known
    };
    release_holds(&world.zfs, state, &mine, &selected, &known).unwrap();
    assert_eq!(held(), BTreeSet::from(["zfs-backup:mine".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookmarks_that_another_configuration_needs_survive() {
    let world = World::new();
    let other = memory_store(PART_BYTES);
    plant_keyring(&other, &world.writer);
    let elsewhere = || BackupEnv {
        store: shared(&other),
        ..world.env()
    };
    let full = async |env: BackupEnv| {
        committed(
            back_up(&env, &world.selected(), RequestedKind::Full)
                .await
                .unwrap(),
        )
        .manifest
    };
    // The two configurations back up one snapshot, and share its bookmark.
    let first = full(elsewhere()).await;
    assert_eq!(full(world.env()).await.snapshot.guid, first.snapshot.guid);
    for number in 0..3 {
        night(&world, number);
        full(world.env()).await;
    }
    assert!(
        bookmarks(&world).contains(&bookmark_of(&first)),
        "{:?}",
        bookmarks(&world)
    );
    // Once the snapshot is gone it is what the other one's incremental starts from.
    let snapshots = world.zfs.snapshots(&world.dataset).unwrap();
    let oldest = snapshots
        .iter()
        .find(|snapshot| snapshot.guid == first.snapshot.guid)
        .unwrap()
        .name
        .clone();
    world.zfs.destroy_snapshots(&[oldest]).unwrap();
    let next = back_up(&elsewhere(), &world.selected(), RequestedKind::Incremental)
        .await
        .unwrap();
    assert_eq!(
        committed(next).manifest.base.unwrap().guid,
        first.snapshot.guid
    );
    // When neither needs it any more it goes.
    for number in 3..6 {
        night(&world, number);
        full(elsewhere()).await;
        full(world.env()).await;
    }
    assert!(
        !bookmarks(&world).contains(&bookmark_of(&first)),
        "{:?}",
        bookmarks(&world)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookmarks_are_kept_while_needs_of_another_store_are_unknown() {
    let world = World::new();
    let first = world.back_up().await.manifest;
    // As a version without notes left it.
    let old = KnownStore::of_url("s3:other/x");
    HistoryRecords::new(&world.settings.state_dir, &old, &world.dataset)
        .note_commit(&first, 1, now())
        .unwrap();
    for number in 0..3 {
        night(&world, number);
        world.back_up().await;
    }
    assert!(bookmarks(&world).contains(&bookmark_of(&first)));
    // A configuration that is not used any more keeps nothing for ever.
    let long_ago = now() - jiff::SignedDuration::from_hours(24 * 60);
    HistoryRecords::new(&world.settings.state_dir, &old, &world.dataset)
        .note_commit(&first, 1, long_ago)
        .unwrap();
    night(&world, 3);
    world.back_up().await;
    assert!(!bookmarks(&world).contains(&bookmark_of(&first)));
}

async fn damage_of(world: &World, own_commits: Vec<OwnCommit>) -> Vec<Damage> {
    let options = VerifyOptions {
        own_commits,
        ..Default::default()
    };
    let report = verify_with(
        world.shared_store(),
        &world.dataset,
        &world.keys.trusted,
        &options,
    )
    .await;
    report.unwrap().damage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unrecorded_loss_of_the_newest_backup_is_found_by_its_host() {
    let world = world_of_nights(2).await;
    let newest = world.catalog().await.newest().unwrap().manifest.clone();
    let records = HistoryRecords::new(
        &world.settings.state_dir,
        &world.store.known(),
        &world.dataset,
    );
    records.note_commit(&newest, 1, now()).unwrap();
    let known = records.own_commits().unwrap();
    assert_eq!(
        known,
        [OwnCommit {
            id: newest.id.clone(),
            at: now()
        }]
    );
    assert_eq!(damage_of(&world, known.clone()).await, []);
    // A record that was made for a URL may be of another store under that URL.
    let old = HistoryRecords::new(
        &world.settings.state_dir,
        &KnownStore::of_url("memory:"),
        &world.dataset,
    );
    old.note_commit(&newest, 1, now()).unwrap();
    assert_eq!(old.own_commits().unwrap(), []);
    // Pruned by the rules, with a signed record: no damage.
    let kept: Vec<_> = world
        .store
        .keys()
        .into_iter()
        .map(|key| (key.clone(), world.store.object(&key).unwrap()))
        .collect();
    zfs_backup::run::prune::forget(&world.prune_env(now()), &world.dataset, &newest.id, None)
        .await
        .unwrap();
    assert_eq!(damage_of(&world, known.clone()).await, []);
    world
        .store
        .keys()
        .iter()
        .for_each(|key| assert!(world.store.lose(key)));
    kept.iter()
        .for_each(|(key, bytes)| world.store.plant(key, bytes.clone()));
    assert_eq!(damage_of(&world, known.clone()).await, []);
    // Cut off by somebody who leaves no record. Nothing in the store tells.
    let cut = world.store.keys();
    cut.iter()
        .filter(|key| key.contains(newest.id.as_str()))
        .for_each(|key| assert!(world.store.lose(key)));
    assert_eq!(damage_of(&world, Vec::new()).await, []);
    let damage = damage_of(&world, known).await;
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0].backup, Some(newest.id.clone()));
    assert!(
        damage[0]
            .reason
            .contains("this host stored it here on 2026-01-02"),
        "{}",
        damage[0].reason
    );
    assert!(damage[0].breaks);
}

/// A host as an earlier version left it: state by URL, here of two stores with one URL at two
/// endpoints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_state_moves_only_to_the_store_proved_by_its_backups() {
    let world = World::new();
    let state = world.settings.state_dir.clone();
    let (ours, theirs) = (memory_store(PART_BYTES), memory_store(PART_BYTES));
    let old = KnownStore::of_url("memory:");
    let id = |nonce| BackupId::new(now(), BackupKind::Full, Guid(1), nonce);
    for nonce in 1..=3 {
        AttemptJournal::begin(&state, &old, &world.dataset, &id(nonce)).unwrap();
    }
    AttemptJournal::begin_or_reopen(&state, &old, &world.dataset, &id(2))
        .unwrap()
        .committing()
        .unwrap();
    for (store, nonce) in [(&ours, 1), (&theirs, 2)] {
        store.plant(
            &format!("{}/@{}/started.json", world.dataset, id(nonce)),
            Bytes::from_static(b"{}"),
        );
    }
    let made = world.back_up().await.manifest;
    for (key, bytes) in world
        .store
        .keys()
        .iter()
        .map(|key| (key, world.store.object(key).unwrap()))
    {
        if key.contains(made.id.as_str()) {
            theirs.plant(key, bytes);
        }
    }
    let old_records = HistoryRecords::new(&state, &old, &world.dataset);
    old_records.note_commit(&made, 5, now()).unwrap();
    let names: [DatasetName; 0] = [];
    let open = async |store: &MemoryStore, endpoint: &str| {
        let here = place("memory:", endpoint);
        identify(&state, &here, shared(store), Purpose::Write, &names)
            .await
            .unwrap()
            .known()
    };
    let (first, second) = (
        open(&ours, "http://a").await,
        open(&theirs, "http://b").await,
    );
    let begun = |store: &KnownStore| unended(&state, store, &world.dataset).unwrap();
    assert_eq!(
        (begun(&first), begun(&second)),
        ([id(1)].into(), [id(2)].into())
    );
    // State that no store proves stays where it is.
    assert_eq!(begun(&old), [id(3)].into());
    assert!(read_attempts(&state, &second, &world.dataset).unwrap()[0].committing);
    let commit_of = |store| {
        HistoryRecords::new(&state, store, &world.dataset)
            .read()
            .unwrap()
            .commit
            .map(|note| note.id)
    };
    assert_eq!(
        (commit_of(&first), commit_of(&second), commit_of(&old)),
        (None, Some(made.id.clone()), None)
    );
    // Once more changes nothing.
    open(&ours, "http://a").await;
    assert_eq!(
        (begun(&first), begun(&old)),
        ([id(1)].into(), [id(3)].into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_of_old_state_that_was_interrupted_is_finished() {
    let world = World::new();
    let state = world.settings.state_dir.clone();
    let store = memory_store(PART_BYTES);
    let old = KnownStore::of_url("memory:");
    let id = |nonce| BackupId::new(now(), BackupKind::Full, Guid(1), nonce);
    for nonce in 1..=2 {
        AttemptJournal::begin(&state, &old, &world.dataset, &id(nonce)).unwrap();
        store.plant(
            &format!("{}/@{}/started.json", world.dataset, id(nonce)),
            Bytes::from_static(b"{}"),
        );
    }
    let note = VerifyNote {
        at: now(),
        backups: 1,
        read_data: "none".into(),
    };
    HistoryRecords::new(&state, &old, &world.dataset)
        .note_verify(&note)
        .unwrap();
    let names = [world.dataset.clone()];
    let open = async || {
        identify(
            &state,
            &place("memory:", ""),
            shared(&store),
            Purpose::Write,
            &names,
        )
        .await
    };
    // The second attempt cannot be asked about.
    store.fail(
        Fault::before(StoreErrorKind::Unavailable)
            .of(Operation::List)
            .nth(2),
    );
    assert!(open().await.is_err());
    assert_eq!(
        known_at(&state, &place("memory:", "")).unwrap(),
        old,
        "nothing is remembered before all has moved"
    );
    let known = open().await.unwrap().known();
    assert_eq!(
        unended(&state, &known, &world.dataset).unwrap(),
        [id(1), id(2)].into()
    );
    assert_eq!(
        unended(&state, &old, &world.dataset).unwrap(),
        BTreeSet::new()
    );
    assert_eq!(
        HistoryRecords::new(&state, &known, &world.dataset)
            .read()
            .unwrap()
            .verify,
        Some(note)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_id_is_neither_pruned_nor_reported_as_extra() {
    let world = world_of_nights(2).await;
    let text = format!(
        "{{\"format\": 1, \"type\": \"store-id\", \"id\": \"{}\"}}\n",
        StoreId::from_random(7)
    );
    world.store.plant(STORE_ID, text.clone());
    let at: jiff::Timestamp = "2026-02-10T00:00:00Z".parse().unwrap();
    world.store.set_clock(Some(at));
    let origin = world.catalog().await.backups[0].manifest.origin.clone();
    let task = last_incremental(&world, SecondaryStore::Nothing, origin);
    prune_dataset(&world.prune_env(at), &task).await.unwrap();
    let report = world.verify().await;
    assert!(
        report.damage.is_empty() && report.extra.iter().all(|key| !key.contains(STORE_ID)),
        "{:?}",
        report.extra
    );
    for manifest in world
        .catalog()
        .await
        .backups
        .iter()
        .rev()
        .map(|backup| &backup.manifest)
    {
        zfs_backup::run::prune::forget(&world.prune_env(at), &world.dataset, &manifest.id, None)
            .await
            .unwrap();
    }
    assert_eq!(world.store.object(STORE_ID), Some(text.into()));
}
