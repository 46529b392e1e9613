//! Two runs at once, a request to stop, and a reader that is asked on after its failure.

use crate::world::{World, committed, key_of};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::RunError;
use zfs_backup::run::backup::back_up;
use zfs_backup::run::restore::{RestorePoint, open_stream};
use zfs_backup::state::StateError;
use zfs_backup::store::StoreRead;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_concurrent_backup_is_refused_because_the_dataset_is_locked() {
    let world = World::new();
    let (env, selected) = (world.env(), world.selected());
    let (one, other) = tokio::join!(
        back_up(&env, &selected, RequestedKind::Full),
        back_up(&env, &selected, RequestedKind::Full)
    );
    let (done, refused) = if one.is_ok() {
        (one, other)
    } else {
        (other, one)
    };
    committed(done.unwrap());
    assert!(
        matches!(refused, Err(RunError::State(StateError::Locked { subject, .. })) if subject.contains("tank/a b"))
    );
    assert_eq!(world.catalog().await.backups.len(), 1);
    world.assert_restores().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_asked_to_stop_leaves_no_backup_and_no_upload_behind() {
    let mut interrupted = 0;
    for after in [1, 2, 3, 5, 8, 13, 18, 21] {
        let world = World::new();
        let (asker, stop) = tokio::sync::watch::channel(false);
        let mut env = world.env_with(Arc::new(world.zfs.clone()), stop);
        let told = AtomicUsize::new(0);
        env.progress = Arc::new(move |_| {
            if told.fetch_add(1, Ordering::Relaxed) + 1 == after {
                asker.send_replace(true);
            }
        });
        match back_up(&env, &world.selected(), RequestedKind::Full).await {
            Err(RunError::Interrupted) => interrupted += 1,
            // It was over before it heard.
            Ok(outcome) => {
                committed(outcome);
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        world.assert_pins_are_known();
        assert_eq!(world.manifest_keys(), [""; 0]);
        assert_eq!(world.store.unfinished("").await.unwrap(), []);
        world.back_up().await;
        world.assert_no_holds();
        world.assert_restores().await;
        assert_eq!(world.verify().await.damage, []);
    }
    assert!(
        interrupted >= 4,
        "only {interrupted} runs heard that they shall stop"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_failed_gives_no_more_bytes() {
    let mut world = World::new();
    // Two pages a chunk, so that the first one opens before the second one fails.
    world.settings.split_bytes = 2 * 64 * 1024;
    let backup = world.back_up().await;
    let chunk = &world.chunks(&backup.manifest).await[0];
    assert!(
        world
            .store
            .flip(&key_of(&backup.manifest, &chunk.name), 100_000)
    );
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let (mut reader, failure) = open_stream(&set.backups[0], &world.keys.identities);
    let after = tokio::task::spawn_blocking(move || {
        let mut before = Vec::new();
        assert!(reader.read_to_end(&mut before).is_err());
        let mut after = Vec::new();
        while after.len() < 1 << 20 {
            let mut buffer = [0; 4096];
            match reader.read(&mut buffer) {
                Ok(bytes) if bytes > 0 => after.extend_from_slice(&buffer[..bytes]),
                Ok(_) => panic!("a failed reader said that the stream ended"),
                Err(_) if after.is_empty() => return after,
                Err(_) => break,
            }
        }
        after
    });
    assert_eq!(after.await.unwrap().len(), 0);
    let error = failure.lock().unwrap().take().unwrap();
    assert!(
        matches!(&error, RunError::Chunk { key, .. } if key.ends_with(&chunk.name)),
        "{error}"
    );
}
