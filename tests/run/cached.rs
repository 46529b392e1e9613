//! What planning asks a store for: what it never saw, and then listings only. And that nothing is
//! believed, or deleted, because it was kept.

use crate::builder::{Yard, later};
use crate::prune::last_chains;
use crate::stock::{READ_OF_EACH, stocked};
use crate::world::{World, key_of, noise};
use std::fs;
use std::path::{Path, PathBuf};
use zfs_backup::catalog::usable::UsableCatalog;
use zfs_backup::catalog::{Catalog, read_catalog_through};
use zfs_backup::config::RetentionRules;
use zfs_backup::manifest::{Manifest, Origin};
use zfs_backup::model::BackupId;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::plan_backup;
use zfs_backup::run::prune::{PruneTask, SecondaryStore, prune_dataset, read_view};
use zfs_backup::state::manifests::{CacheMode, ObjectCache};
use zfs_backup::store::StoreInfo;
use zfs_backup::store::memory::Operation;
use zfs_backup::zfs::ZfsRead;

const SNAPSHOTS: usize = 120;
const BACKUPS: usize = 60;

/// How many objects were fetched, how many listings were made, and how many other calls, since the
/// last time.
pub(crate) fn asked(world: &World) -> (usize, usize, usize) {
    let events = world.store.events();
    world.store.clear_events();
    let count = |operation| {
        events
            .iter()
            .filter(|event| event.operation == operation)
            .count()
    };
    let (gets, lists) = (count(Operation::Get), count(Operation::List));
    (gets, lists, events.len() - gets - lists)
}

fn cache(world: &World) -> ObjectCache {
    ObjectCache::open(
        &world.settings.state_dir,
        &world.store.known(),
        &world.dataset,
        CacheMode::ReadWrite,
    )
}

fn cache_file(state: &Path) -> PathBuf {
    let mut entries = fs::read_dir(state.join("cache")).unwrap();
    entries.next().unwrap().unwrap().path()
}

/// As `show` reads a store.
pub(crate) async fn catalog(world: &World) -> (Catalog, Vec<Option<String>>) {
    let cache = cache(world);
    let catalog = read_catalog_through(&world.store, &world.dataset, &world.keys.trusted, &cache)
        .await
        .unwrap();
    let seen = UsableCatalog::check_wanted(&world.store, catalog, &cache, |_| true)
        .await
        .unwrap();
    let flaws = seen.flaws().into_values().collect();
    (seen.catalog, flaws)
}

pub(crate) fn prune_task(world: &World) -> PruneTask {
    let pool_guid = world.zfs.pool_guid("tank").unwrap();
    let origins = vec![Origin {
        dataset_guid: world.selected().dataset.guid,
        pool_guid,
    }];
    PruneTask {
        stored: world.dataset.clone(),
        origins,
        rules: RetentionRules::default(),
        secondary: SecondaryStore::Nothing,
    }
}

#[tokio::test]
async fn planning_fetches_no_cached_manifest_again() {
    let world = stocked(SNAPSHOTS, BACKUPS).await;
    asked(&world);
    // A plan that shall change nothing keeps nothing.
    for _ in 0..2 {
        plan_backup(&world.env(), &world.selected(), RequestedKind::Lifecycle)
            .await
            .unwrap();
        assert_eq!(asked(&world), (BACKUPS * READ_OF_EACH, 1, 0));
    }
    // A run does. What it remembers for a night without the store is not fetched for that again.
    let up_to_date = async || {
        let run = world.try_back_up_as(RequestedKind::Lifecycle).await;
        crate::world::up_to_date(&run.unwrap()).unwrap().clone()
    };
    let newest = up_to_date().await;
    let (gets, lists, others) = asked(&world);
    assert_eq!((gets, others), (BACKUPS * READ_OF_EACH, 0));
    assert!(lists <= 2, "{lists} listings");
    assert_eq!(up_to_date().await, newest);
    assert_eq!(asked(&world), (0, lists, 0));
    plan_backup(&world.env(), &world.selected(), RequestedKind::Lifecycle)
        .await
        .unwrap();
    assert_eq!(asked(&world), (0, 1, 0));
    // `show`, and the plan of a prune: the receipt of the newest, with its signature, is all it
    // reads.
    let (read, flaws) = catalog(&world).await;
    assert_eq!((read.backups.len(), flaws), (BACKUPS, vec![None; BACKUPS]));
    assert_eq!(asked(&world), (0, 1, 0));
    read_view(&world.prune_env(crate::world::now()), &prune_task(&world))
        .await
        .unwrap();
    assert_eq!(asked(&world), (2, 2, 0));
    // One more backup is one more to read.
    world.zfs.write_file(&world.dataset, 8, &noise(8, 100));
    world
        .zfs
        .set_now(later("2024-01-06T00:00:00Z".parse().unwrap(), 0));
    world.snapshot();
    let made = crate::world::committed(
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .unwrap(),
    )
    .manifest;
    asked(&world);
    assert_eq!(catalog(&world).await.0.newest().unwrap().manifest, made);
    assert_eq!(asked(&world).0, READ_OF_EACH);
    // And one that is gone is gone.
    world
        .store
        .keys()
        .iter()
        .filter(|key| key.starts_with(&key_of(&made, "")))
        .for_each(|key| {
            world.store.lose(key);
        });
    assert_eq!(
        catalog(&world).await.0.newest().unwrap().manifest.id,
        newest
    );
}

#[tokio::test]
async fn catalog_is_equal_with_and_without_the_cache() {
    let world = stocked(12, 6).await;
    catalog(&world).await;
    let (kept, flaws) = catalog(&world).await;
    let fresh = world.catalog().await;
    let ids = |catalog: &Catalog| -> Vec<(Manifest, _, _)> {
        let all = catalog.backups.iter();
        all.map(|backup| {
            (
                backup.manifest.clone(),
                backup.manifest_blake3,
                backup.objects.clone(),
            )
        })
        .collect()
    };
    assert_eq!(ids(&kept), ids(&fresh));
    let seen = UsableCatalog::check(&world.store, fresh).await.unwrap();
    assert_eq!(seen.flaws().into_values().collect::<Vec<_>>(), flaws);
    // What a listing shows of damage is seen with it too: a chunk, a list, a manifest, a signature
    // that are not there.
    let manifest = &kept.backups[3].manifest;
    let chunk = world.chunks(manifest).await[0].name.clone();
    for object in [
        chunk.as_str(),
        "chunks-0000.json",
        "manifest.json",
        "manifest.json.minisig",
    ] {
        let key = key_of(manifest, object);
        let whole = world.store.object(&key).unwrap();
        world.store.lose(&key);
        let (kept, flaws) = catalog(&world).await;
        let seen = UsableCatalog::check(&world.store, world.catalog().await)
            .await
            .unwrap();
        assert_eq!(ids(&kept), ids(&seen.catalog), "{object}");
        assert_eq!(
            flaws,
            seen.flaws().into_values().collect::<Vec<_>>(),
            "{object}"
        );
        assert!(
            flaws.len() < 6 || flaws.iter().any(Option::is_some),
            "{object}: nothing was missed"
        );
        world.store.plant(&key, whole);
    }
    assert_eq!(catalog(&world).await.1, vec![None; 6]);
}

/// Whoever can write the state folder, but has no key, makes nothing believed.
#[tokio::test]
async fn changed_cached_manifest_is_fetched_again_and_never_trusted() {
    let world = stocked(6, 3).await;
    catalog(&world).await;
    let path = cache_file(&world.settings.state_dir);
    let manifest = world.catalog().await.backups[1].manifest.clone();
    let whole = fs::read(&path).unwrap();
    // A manifest of another size of stream, as somebody else would sign it, under the true key,
    // size and time.
    let key = key_of(&manifest, "manifest.json");
    let stored = world.store.object(&key).unwrap();
    let text = String::from_utf8(stored.to_vec()).unwrap();
    let changed = text.replacen(
        &manifest.tool_version,
        &"9".repeat(manifest.tool_version.len()),
        1,
    );
    assert!(changed != text && changed.len() == text.len());
    let other = World::new();
    let signed = other
        .writer
        .signing
        .sign(
            zfs_backup::sign::SignedType::Manifest,
            &key,
            changed.as_bytes(),
        )
        .unwrap();
    let true_signature = world.store.object(&format!("{key}.minisig")).unwrap();
    assert_eq!(signed.len(), true_signature.len());
    for signature in [signed, true_signature.to_vec()] {
        let forged = replace_body(&whole, &key, changed.as_bytes());
        fs::write(
            &path,
            replace_body(&forged, &format!("{key}.minisig"), &signature),
        )
        .unwrap();
        world.store.clear_events();
        let (read, _) = catalog(&world).await;
        assert_eq!(read.backup(&manifest.id).unwrap().manifest, manifest);
        assert_eq!(read.untrusted().count(), 0);
        assert_eq!(asked(&world).0, 2, "that one and its signature");
    }
    // Keys that are trusted no more make what is kept worth nothing.
    let read = read_catalog_through(
        &world.store,
        &world.dataset,
        &other.keys.trusted,
        &cache(&world),
    )
    .await
    .unwrap();
    assert_eq!((read.backups.len(), read.untrusted().count()), (0, 3));
}

/// Puts other bytes of the same length under a key in the file, with their hash.
fn replace_body(file: &[u8], key: &str, body: &[u8]) -> Vec<u8> {
    let mark = format!("{{\"key\":\"{key}\"");
    let at = file
        .windows(mark.len())
        .position(|window| window == mark.as_bytes())
        .unwrap();
    let line_bytes = file[at..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut line: serde_json::Value = serde_json::from_slice(&file[at..at + line_bytes]).unwrap();
    assert_eq!(line["bytes"], body.len());
    line["blake3"] = zfs_backup::model::Digest::of(body).to_string().into();
    let before = String::from_utf8(file[at..at + line_bytes].to_vec()).unwrap();
    let old: serde_json::Value = serde_json::from_str(&before).unwrap();
    let line = before.replace(
        old["blake3"].as_str().unwrap(),
        line["blake3"].as_str().unwrap(),
    );
    [
        &file[..at],
        line.as_bytes(),
        body,
        &file[at + line_bytes + body.len()..],
    ]
    .concat()
}

/// A store whose bytes rot behind the same size and time: the plan cannot know, but nothing is
/// deleted by it.
#[tokio::test]
async fn a_prune_reads_the_store_itself_before_it_deletes() {
    let mut yard = Yard::new();
    let old: Vec<BackupId> = yard.chain(2).await;
    let new: Vec<BackupId> = yard.chain(2).await;
    let rules = last_chains(1);
    assert_eq!(
        yard.read_view(&rules).await.plan.doomed_ids().len(),
        old.len()
    );
    let manifest = yard.key(&new[0], "manifest.json");
    assert!(yard.store.flip(&manifest, 100));
    let planned = yard.read_view(&rules).await;
    assert_eq!(
        (planned.plan.doomed_ids().len(), planned.plan.doubts.len()),
        (old.len(), 0),
        "it is kept as it was"
    );
    let before = yard.store.keys();
    let outcome = yard.prune(&rules).await;
    assert!(outcome.deleted.is_empty() && !outcome.view.plan.doubts.is_empty());
    assert_eq!(yard.store.keys(), before);
    assert!(yard.store.flip(&manifest, 100));
    assert_eq!(yard.prune(&rules).await.deleted.len(), old.len());
    yard.assert_restores(new).await;
}

#[tokio::test]
async fn a_prune_with_nothing_to_delete_lists_and_reads_one_receipt() {
    let world = stocked(12, 6).await;
    catalog(&world).await;
    asked(&world);
    let outcome = prune_dataset(&world.prune_env(crate::world::now()), &prune_task(&world))
        .await
        .unwrap();
    assert!(outcome.deleted.is_empty());
    assert_eq!(asked(&world).0, 2);
}
