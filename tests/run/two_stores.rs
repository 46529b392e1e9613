//! The intermediate directory with a remote beside it: bases in either, a remote out of reach, and
//! which bookmarks the two stores keep.

use crate::chains::{assert_comes_back, bookmark_of, bookmarks, chain, night, nightly};
use crate::world::{World, committed, memory_store, plant_keyring, up_to_date};
use std::sync::Arc;
use zfs_backup::manifest::Manifest;
use zfs_backup::model::{BackupKind, KnownStore};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnv, OtherStore, StoreRole, back_up};
use zfs_backup::run::restore::RestorePoint;
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};
use zfs_backup::store::{StoreErrorKind, StoreInfo, StoreWrite};
use zfs_backup::zfs::{SendBase, ZfsSnapshots};

/// The world's store as the intermediate directory, with a remote beside it.
fn intermediate(
    world: &World,
    known: &KnownStore,
    remote: &Result<MemoryStore, String>,
) -> BackupEnv {
    let mut env = world.env();
    env.role = StoreRole::Intermediate;
    let store = remote
        .clone()
        .map(|remote| Arc::new(remote) as Arc<dyn StoreWrite>);
    env.other = Some(OtherStore {
        role: StoreRole::Remote,
        known: known.clone(),
        store,
    });
    env
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn export_uses_a_base_in_the_remote_even_if_it_is_unreachable() {
    let mut world = World::new();
    let points = chain(&world, 1).await;
    let remote = world.store.clone();
    let known = remote.known();
    world.store = memory_store(crate::world::PART_BYTES);
    plant_keyring(&world.store, &world.writer);
    let selected = world.selected();
    let reached = Ok(remote.clone());
    // The newest is in the remote already.
    let outcome = back_up(
        &intermediate(&world, &known, &reached),
        &selected,
        RequestedKind::Lifecycle,
    )
    .await
    .unwrap();
    assert_eq!(up_to_date(&outcome), Some(&points[1].0.id));
    night(&world, 2);
    let export = back_up(
        &intermediate(&world, &known, &reached),
        &selected,
        RequestedKind::Lifecycle,
    )
    .await
    .unwrap();
    let first = committed(export).manifest;
    assert_eq!(first.base.as_ref().unwrap().backup_id, points[1].0.id);
    assert_eq!(first.chain.position, 2);

    // Away in two ways: not even opened, and failing when it is asked.
    for (number, kind) in [
        (3, None),
        (4, Some(StoreErrorKind::Unavailable)),
        (5, Some(StoreErrorKind::Denied)),
    ] {
        night(&world, number);
        let away = kind.map_or(Err("no route to host".to_owned()), |_| reached.clone());
        if let Some(kind) = kind {
            remote.fail(Fault::before(kind).forever());
        }
        let export = back_up(
            &intermediate(&world, &known, &away),
            &selected,
            RequestedKind::Incremental,
        )
        .await
        .unwrap();
        remote.heal();
        let manifest = committed(export).manifest;
        assert_eq!(
            (manifest.chain.position, &manifest.chain.full_id),
            (u32::try_from(number).unwrap(), &points[0].0.id)
        );
    }
    // Both together hold the chain.
    for key in remote
        .keys()
        .iter()
        .filter(|key| key.ends_with("manifest.json"))
        .cloned()
        .collect::<Vec<_>>()
    {
        let prefix = key.trim_end_matches("manifest.json").to_owned();
        for object in remote
            .keys()
            .iter()
            .filter(|other| other.starts_with(&prefix))
        {
            world.store.plant(object, remote.object(object).unwrap());
        }
    }
    let newest = world.catalog().await.newest().unwrap().manifest.clone();
    assert_comes_back(&world, &newest, &world.zfs.files(&world.dataset)).await;
}

/// One host streams to the remote and exports. A night without the remote, just after a commit
/// there, must not make two backups that skip each other: a restore would ask for a choice between
/// time lines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_without_the_remote_makes_no_second_time_line() {
    let mut world = World::new();
    let remote = world.store.clone();
    let known = remote.known();
    let folder = memory_store(crate::world::PART_BYTES);
    plant_keyring(&folder, &world.writer);
    let away = Err("no route to host".to_owned());
    world.back_up().await;
    night(&world, 1);
    let streamed = nightly(&world).await.manifest;
    night(&world, 2);
    world.store = folder.clone();
    let export = back_up(
        &intermediate(&world, &known, &away),
        &world.selected(),
        RequestedKind::Lifecycle,
    )
    .await;
    let exported = committed(export.unwrap()).manifest;
    assert_eq!(
        exported.base.as_ref().map(|base| &base.backup_id),
        Some(&streamed.id)
    );
    world.store = remote.clone();
    night(&world, 3);
    let newest = nightly(&world).await.manifest;
    // The export is copied to the remote later.
    let keys = folder.keys().into_iter();
    for key in keys.filter(|key| key.contains(exported.id.as_str())) {
        remote.plant(&key, folder.object(&key).unwrap());
    }
    let found = world.find(&RestorePoint::Newest).await.unwrap();
    assert_eq!(found.newest().manifest.id, newest.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_remote_is_not_treated_as_empty() {
    let mut world = World::new();
    world.settings.lifecycle.auto_full_bytes_max = 1000;
    let known = KnownStore::of_url("memory:away");
    let away = Err("no route to host".to_owned());
    let refused = back_up(
        &intermediate(&world, &known, &away),
        &world.selected(),
        RequestedKind::Lifecycle,
    )
    .await
    .unwrap_err();
    assert!(
        refused.to_string().contains("was never read from here"),
        "{refused}"
    );
    assert!(
        refused
            .hint()
            .unwrap()
            .contains("export-intermediate --full")
    );
    let full = back_up(
        &intermediate(&world, &known, &away),
        &world.selected(),
        RequestedKind::Full,
    )
    .await
    .unwrap();
    assert_eq!(committed(full).manifest.kind, BackupKind::Full);
    // What is remembered and cannot be read is no absence either.
    let remembered = world.settings.state_dir.join("remote");
    std::fs::write(&remembered, b"not a folder").unwrap();
    night(&world, 1);
    assert!(
        back_up(
            &intermediate(&world, &known, &away),
            &world.selected(),
            RequestedKind::Lifecycle
        )
        .await
        .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remembered_manifest_is_verified_again() {
    let mut world = World::new();
    let points = chain(&world, 1).await;
    let (known, remote): (_, Result<MemoryStore, String>) =
        (world.store.known(), Ok(world.store.clone()));
    world.store = memory_store(crate::world::PART_BYTES);
    back_up(
        &intermediate(&world, &known, &remote),
        &world.selected(),
        RequestedKind::Lifecycle,
    )
    .await
    .unwrap();
    let folder = std::fs::read_dir(world.settings.state_dir.join("remote"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let file = folder.join(format!("{}.json", points[1].0.id));
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"position\": 1", "\"position\": 2")).unwrap();
    night(&world, 2);
    let away = Err("no route to host".to_owned());
    let export = back_up(
        &intermediate(&world, &known, &away),
        &world.selected(),
        RequestedKind::Lifecycle,
    )
    .await
    .unwrap();
    assert_eq!(
        committed(export).manifest.base.unwrap().backup_id,
        points[0].0.id
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookmarks_are_kept_for_the_newest_two_chains_and_for_unreadable_stores() {
    let world = World::new();
    let mut manifests = Vec::new();
    for number in 1..=3 {
        night(&world, 2 * number);
        manifests.push(world.back_up().await.manifest);
        night(&world, 2 * number + 1);
        manifests.push(nightly(&world).await.manifest);
        let foreign = world.dataset.bookmark(&format!("mine-{number}")).unwrap();
        world
            .zfs
            .bookmark(&foreign, &SendBase::Snapshot(world.newest_snapshot()))
            .unwrap();
    }
    let kept = |manifests: &[Manifest]| manifests.iter().map(bookmark_of).collect::<Vec<_>>();
    let ours = |world: &World| {
        let mut ours = bookmarks(world);
        ours.retain(|name| !name.starts_with("mine"));
        ours
    };
    assert_eq!(ours(&world), kept(&manifests[2..]));
    assert_eq!(bookmarks(&world).len(), ours(&world).len() + 3);
    // With the other store out of reach all stay.
    night(&world, 9);
    let mut env = world.env();
    let away = Err("not mounted".to_owned());
    env.other = Some(OtherStore {
        role: StoreRole::Intermediate,
        known: KnownStore::of_url("file:/away"),
        store: away,
    });
    manifests.push(
        committed(
            back_up(&env, &world.selected(), RequestedKind::Full)
                .await
                .unwrap(),
        )
        .manifest,
    );
    assert_eq!(ours(&world), kept(&manifests[2..]));
    // With it there, what it needs stays.
    let other = memory_store(crate::world::PART_BYTES);
    for key in world.store.keys().iter().filter(|key| {
        key.contains(manifests[3].id.as_str()) || key.contains(manifests[2].id.as_str())
    }) {
        other.plant(key, world.store.object(key).unwrap());
    }
    night(&world, 10);
    let store: Arc<dyn StoreWrite> = Arc::new(other);
    env.other = Some(OtherStore {
        role: StoreRole::Intermediate,
        known: store.known(),
        store: Ok(store),
    });
    manifests.push(
        committed(
            back_up(&env, &world.selected(), RequestedKind::Full)
                .await
                .unwrap(),
        )
        .manifest,
    );
    assert_eq!(
        ours(&world),
        kept(&[&manifests[2..4], &manifests[6..]].concat())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_upload_keeps_the_bookmark_of_its_base() {
    let world = World::new();
    let points = chain(&world, 0).await;
    night(&world, 1);
    world
        .store
        .fail(Fault::before(StoreErrorKind::Denied).of(Operation::PutPart));
    world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap_err();
    world.store.heal();
    for number in 2..=4 {
        night(&world, number);
        world.back_up().await;
    }
    assert!(
        bookmarks(&world).contains(&bookmark_of(&points[0].0)),
        "{:?}",
        bookmarks(&world)
    );
    let attempt = world.catalog().await.attempts.remove(0);
    for key in world
        .store
        .keys()
        .iter()
        .filter(|key| key.contains(attempt.id.as_str()))
    {
        world.store.lose(key);
    }
    night(&world, 5);
    world.back_up().await;
    assert!(!bookmarks(&world).contains(&bookmark_of(&points[0].0)));
}
