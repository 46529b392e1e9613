//! A whole backup in B2: made while requests fail, verified by its listing, restored.

use crate::b2_sim::{B2Sim, SimOptions};
use crate::world::{SPLIT_BYTES, SharedBytes, World, committed, main_keyring_key};
use std::sync::Arc;
use std::time::Duration;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnv, back_up};
use zfs_backup::run::restore::{RestorePoint, find_restore_set, restore_to_writer};
use zfs_backup::run::verify::verify_dataset;
use zfs_backup::store::{
    B2Settings, B2Store, EvidenceTier, ObjectKey, ObjectStore, StoreRead, StoreWrite,
};

/// Parts of a size that a chunk needs five of, and of one that it fits into.
const PART_BYTES: [usize; 2] = [16 * 1024, 128 * 1024];

/// A backup of this world there, with its keyring.
async fn back_up_there(world: &World, store: &Arc<B2Store>) {
    let keyring = world.writer.keyring.as_ref().unwrap().bytes.clone();
    store
        .put_new(
            &ObjectKey::listed(&main_keyring_key(&world.writer)).unwrap(),
            keyring,
        )
        .await
        .unwrap();
    let env = BackupEnv {
        store: Arc::clone(store) as Arc<dyn ObjectStore>,
        ..world.env()
    };
    committed(
        back_up(&env, &world.selected(), RequestedKind::Full)
            .await
            .unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_survives_a_bad_night_of_b2() {
    for (part_bytes, seed) in PART_BYTES.into_iter().zip(7..) {
        let sim = B2Sim::start_with(SimOptions {
            part_bytes_min: part_bytes,
            ..SimOptions::default()
        });
        let (prefix, pause_first) = ("nas".to_owned(), Duration::from_millis(1));
        let store = Arc::new(
            B2Store::new(B2Settings {
                prefix,
                pause_first,
                ..sim.settings()
            })
            .unwrap(),
        );
        let world = World::new();
        sim.fail_at_random(seed, 20);
        back_up_there(&world, &store).await;
        assert_eq!(store.unfinished("").await.unwrap(), [], "seed {seed}");
        sim.fail_at_random(0, 0);

        sim.forget_requests();
        let report = verify_dataset(&*store, &world.dataset, &world.keys.trusted)
            .await
            .unwrap();
        assert_eq!(
            (report.backups, report.damage, report.extra),
            (1, vec![], vec![]),
            "seed {seed}"
        );
        let whole = part_bytes as u64 > SPLIT_BYTES;
        assert_eq!(
            report.objects.contains_key(&EvidenceTier::IdPin),
            !whole,
            "{:?}",
            report.objects
        );
        assert!(
            sim.requests("b2_list_file_versions") <= 4,
            "no object is asked for by itself: {:?}",
            sim.tally()
        );

        let stores: [Arc<dyn StoreRead>; 1] = [store.clone()];
        let set = find_restore_set(&stores, &world.dataset, &world.keys, &RestorePoint::Newest)
            .await
            .unwrap();
        let output = SharedBytes::default();
        restore_to_writer(&set.backups[0], &world.keys, Box::new(output.clone()))
            .await
            .unwrap();
        assert!(
            output.take() == world.stream(),
            "seed {seed}: other bytes came back"
        );
        let versions = sim.versions();
        assert_eq!(
            versions.len(),
            store.list("").await.unwrap().len(),
            "seed {seed}: one version of each"
        );
        assert!(
            versions
                .iter()
                .all(|(key, action, _)| key.starts_with("nas/") && action == "upload"),
            "{versions:?}"
        );
    }
}

#[tokio::test]
async fn overwritten_chunk_of_equal_size_is_damage() {
    for part_bytes in PART_BYTES {
        let sim = B2Sim::start_with(SimOptions {
            part_bytes_min: part_bytes,
            ..SimOptions::default()
        });
        let store = Arc::new(B2Store::new(sim.settings()).unwrap());
        let world = World::new();
        back_up_there(&world, &store).await;
        let listed = store.list("").await.unwrap();
        let chunk = listed
            .iter()
            .find(|object| object.key.ends_with(".zfs.age"))
            .unwrap();
        sim.plant(&chunk.key, &vec![0; usize::try_from(chunk.bytes).unwrap()]);
        let report = verify_dataset(&*store, &world.dataset, &world.keys.trusted)
            .await
            .unwrap();
        let damaged: Vec<&str> = report
            .damage
            .iter()
            .map(|damage| damage.key.as_str())
            .collect();
        assert_eq!(damaged, [chunk.key.as_str()]);
    }
}
