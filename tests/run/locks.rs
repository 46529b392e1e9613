//! Object lock: what a backup follows from stays locked as long as the backup, and so does the
//! keyring.

use crate::world::{World, committed, main_keyring_key, now};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zfs_backup::manifest::Receipt;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnv, back_up};
use zfs_backup::store::memory::{Fault, Operation};
use zfs_backup::store::{LockMode, ObjectKey, ObjectLock, StoreDelete, StoreErrorKind, StoreRead};

const DAYS: u32 = 30;

fn after(days: i64) -> Timestamp {
    now() + SignedDuration::from_hours(24 * days)
}

fn world(extends: bool, covers_chains: bool) -> World {
    let world = World::new();
    world.store.set_clock(Some(now()));
    world.store.set_lock(
        Some(ObjectLock {
            days: DAYS,
            mode: LockMode::Compliance,
            covers_chains,
        }),
        extends,
    );
    world
}

async fn locks(world: &World) -> BTreeMap<String, Timestamp> {
    let mut locks = BTreeMap::new();
    for key in world.store.keys() {
        let found = world
            .store
            .head(&ObjectKey::listed(&key).unwrap())
            .await
            .unwrap()
            .unwrap();
        locks.insert(key, found.locked_until.unwrap().parse().unwrap());
    }
    locks
}

async fn incremental(
    world: &World,
    day: i64,
) -> Result<zfs_backup::model::BackupId, zfs_backup::run::RunError> {
    world.store.set_clock(Some(after(day)));
    world.zfs.set_now(after(day));
    world
        .zfs
        .write_file(&world.dataset, 20 + u64::try_from(day).unwrap(), b"more");
    world.snapshot();
    let outcome = world.try_back_up_as(RequestedKind::Incremental).await?;
    Ok(committed(outcome).manifest.id)
}

#[tokio::test]
async fn each_commit_extends_the_locks_of_its_chain_and_keyring_to_its_own() {
    let world = world(true, false);
    let full = world.back_up().await.manifest.id;
    assert!(
        locks(&world)
            .await
            .values()
            .all(|end| *end == after(i64::from(DAYS))),
        "the keyring too"
    );
    for day in [5, 9] {
        let id = incremental(&world, day).await.unwrap();
        let end = after(day + i64::from(DAYS));
        let all = locks(&world).await;
        assert!(all.keys().any(|key| key.contains(&full.to_string())));
        let short: Vec<_> = all.iter().filter(|(_, locked)| **locked < end).collect();
        assert!(short.is_empty(), "not locked until {end}: {short:?}");
        assert_eq!(all[&main_keyring_key(&world.writer)], end);
        let receipt = all
            .keys()
            .find(|key| key.contains(&id.to_string()) && key.ends_with("/receipt.json"))
            .unwrap();
        let receipt: Receipt =
            serde_json::from_slice(&world.store.object(receipt).unwrap()).unwrap();
        let told: Vec<_> = receipt
            .objects
            .iter()
            .map(|entry| entry.evidence.locked_until.clone())
            .collect();
        assert!(
            told.iter().all(|until| *until == Some(end.to_string())),
            "{told:?}"
        );
    }
    let key = ObjectKey::listed(&world.manifest_keys()[0]).unwrap();
    assert_eq!(
        world.store.delete(&key).await.unwrap_err().kind,
        StoreErrorKind::Denied
    );
    world.store.set_clock(Some(after(9 + i64::from(DAYS))));
    world.store.delete(&key).await.unwrap();
}

#[tokio::test]
async fn failed_lock_extension_of_an_ancestor_stops_the_commit() {
    let world = world(true, false);
    let full = world.back_up().await.manifest.id;
    world.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::ExtendLock)
            .on(&full.to_string()),
    );
    let error = incremental(&world, 5).await.unwrap_err();
    assert!(
        zfs_backup::run::error_chain(&error).contains(&full.to_string()),
        "{error:?}"
    );
    assert_eq!(world.catalog().await.backups.len(), 1);
}

#[tokio::test]
async fn store_without_lock_extension_is_refused_unless_days_cover_chains() {
    let refused = world(false, false);
    let error = refused.try_back_up().await.unwrap_err();
    assert!(error.to_string().contains("cannot extend locks"), "{error}");
    assert!(error.hint().unwrap().contains("full_every"), "{error:?}");
    assert_eq!(
        refused.store.keys(),
        [main_keyring_key(&refused.writer)],
        "nothing was sent"
    );

    let covered = world(false, true);
    covered.back_up().await;
    incremental(&covered, 5).await.unwrap();
    let target = crate::world::name("tank/new");
    assert_eq!(covered.restore_into(&target).await.unwrap().len(), 2);
}

#[tokio::test]
async fn long_upload_has_every_object_locked_from_its_end() {
    let world = world(true, false);
    let count = std::sync::atomic::AtomicI64::new(0);
    let store = world.store.clone();
    let env = BackupEnv {
        // Every chunk takes two days.
        progress: Arc::new(move |_| {
            store.set_clock(Some(after(count.fetch_add(1, Ordering::SeqCst) / 4)))
        }),
        ..world.env()
    };
    let backup = committed(
        back_up(&env, &world.selected(), RequestedKind::Full)
            .await
            .unwrap(),
    );
    let (all, receipt) = (
        locks(&world).await,
        crate::world::key_of(&backup.manifest, "manifest.json"),
    );
    let end = all[&receipt];
    assert!(end > after(i64::from(DAYS) + 2), "the clock went on: {end}");
    let short: Vec<_> = all
        .iter()
        .filter(|(_, locked)| end.duration_since(**locked).as_hours() > 24)
        .collect();
    assert!(short.is_empty(), "not locked until {end}: {short:?}");
}
