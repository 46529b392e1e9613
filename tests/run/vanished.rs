//! A folder that vanishes in the middle of a run: moved away, as on an unmounted disk, or replaced
//! by an empty one, as its mount point. It is never read as an empty store.

use crate::rclone;
use crate::world::{World, committed, main_keyring_key, now};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;
use zfs_backup::catalog::{list_datasets, read_catalog};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnv, BackupRun, back_up};
use zfs_backup::run::identity::{Purpose, StorePlace, accept, check_place, identify};
use zfs_backup::run::prune::{PruneEnv, forget};
use zfs_backup::run::restore::{RestorePoint, find_restore_set, restore_to_writer};
use zfs_backup::run::verify::verify_dataset;
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::store::{DirSettings, DirStore, ObjectKey, ObjectStore, StoreRead};

#[derive(Debug, Clone, Copy)]
enum Vanishing {
    Moved,
    Emptied,
}
use Vanishing::{Emptied, Moved};

/// The folder of a store, which can be taken away.
#[derive(Clone)]
struct Disk(PathBuf);

impl Disk {
    fn aside(&self) -> PathBuf {
        self.0.with_extension("aside")
    }

    fn take_away(&self, how: Vanishing) {
        fs::rename(&self.0, self.aside()).unwrap();
        if matches!(how, Emptied) {
            fs::create_dir(&self.0).unwrap();
        }
    }

    /// Brings the folder back, and checks that nothing was written to its place.
    fn bring_back(&self) {
        if self.0.exists() {
            fs::remove_dir(&self.0).expect("something was written to the empty folder");
        }
        fs::rename(self.aside(), &self.0).unwrap();
    }
}

fn place_of(store: &dyn ObjectStore) -> StorePlace {
    StorePlace {
        url: store.url().to_owned(),
        endpoint: String::new(),
        option: "",
    }
}

fn open_dir(root: &Path) -> Arc<dyn ObjectStore> {
    let settings = DirSettings {
        root: root.to_owned(),
        part_bytes: 16 * 1024,
    };
    Arc::new(DirStore::open(&settings).unwrap())
}

async fn open(folder: &Path, with_rclone: bool) -> Arc<dyn ObjectStore> {
    fs::create_dir_all(folder.join("objects")).unwrap();
    match with_rclone {
        true => rclone::open(folder).await,
        false => open_dir(&folder.join("objects")),
    }
}

/// Gives the store its identity and keyring.
async fn begin(world: &World, store: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
    let place = place_of(&*store);
    let state_dir = &world.settings.state_dir;
    let store = identify(state_dir, &place, store, Purpose::Write, &[])
        .await
        .unwrap();
    let keyring = world.writer.keyring.as_ref().unwrap().bytes.clone();
    let key = ObjectKey::listed(&main_keyring_key(&world.writer)).unwrap();
    store.put_new(&key, keyring).await.unwrap();
    store
}

fn env_of(world: &World, store: &Arc<dyn ObjectStore>) -> BackupEnv {
    BackupEnv {
        store: Arc::clone(store),
        ..world.env()
    }
}

async fn full(world: &World, store: &Arc<dyn ObjectStore>) -> Result<BackupRun, RunError> {
    let env = env_of(world, store);
    back_up(&env, &world.selected(), RequestedKind::Full).await
}

fn says(error: &RunError, disk: &Disk, case: &str) {
    let text = error_chain(error);
    let folder = disk.0.display().to_string();
    assert!(
        text.contains(&folder),
        "{case} does not name {folder}: {text}"
    );
    assert!(!error.is_damage(), "{case}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_fails_while_the_folder_is_away() {
    for with_rclone in [false, true] {
        let (world, folder) = (World::new(), TempDir::new().unwrap());
        let disk = Disk(folder.path().join("objects"));
        let store = begin(&world, open(folder.path(), with_rclone).await).await;
        let id = committed(full(&world, &store).await.unwrap()).manifest.id;
        let reader: Arc<dyn StoreRead> = Arc::<dyn ObjectStore>::clone(&store);
        let stores = std::slice::from_ref(&reader);
        let (dataset, trusted) = (&world.dataset, &world.keys.trusted);
        let state_dir = &world.settings.state_dir;
        let find = || find_restore_set(stores, dataset, &world.keys, &RestorePoint::Newest);
        let backup = find().await.unwrap().backups[0].clone();
        for how in [Moved, Emptied] {
            disk.take_away(how);
            let case = |what: &str| format!("{what}, {how:?}, rclone {with_rclone}");
            let check = |what: &str, error: RunError| says(&error, &disk, &case(what));
            check("plan", full(&world, &store).await.unwrap_err());
            check(
                "catalog",
                read_catalog(&*store, dataset, trusted)
                    .await
                    .unwrap_err()
                    .into(),
            );
            check("datasets", list_datasets(&*store).await.unwrap_err().into());
            check(
                "verify",
                verify_dataset(&*store, dataset, trusted).await.unwrap_err(),
            );
            check("find", find().await.err().unwrap());
            let read = restore_to_writer(&backup, &world.keys, Box::new(std::io::sink()));
            check("read", read.await.unwrap_err());
            let prune = PruneEnv {
                store: Arc::clone(&store),
                ..world.prune_env(now())
            };
            check(
                "forget",
                forget(&prune, dataset, &id, None).await.unwrap_err(),
            );
            let place = place_of(&*store);
            for purpose in [Purpose::Read, Purpose::Write] {
                let found = identify(state_dir, &place, Arc::clone(&store), purpose, &[]).await;
                check("identify", found.err().unwrap());
            }
            check(
                "check",
                check_place(state_dir, &place, &*store).await.unwrap_err(),
            );
            check(
                "accept",
                accept(state_dir, &place, &store, &[]).await.unwrap_err(),
            );
            disk.bring_back();
        }
        let report = verify_dataset(&*store, dataset, trusted).await.unwrap();
        assert_eq!(
            (report.backups, report.damage, report.extra),
            (1, vec![], vec![])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upload_into_a_folder_that_vanishes_ends_resumable() {
    for how in [Moved, Emptied] {
        let (world, folder) = (World::new(), TempDir::new().unwrap());
        let disk = Disk(folder.path().join("objects"));
        let store = begin(&world, open(folder.path(), false).await).await;
        let mut env = env_of(&world, &store);
        let (taken, is_away) = (disk.clone(), AtomicBool::new(false));
        env.progress = Arc::new(move |progress| {
            if progress.sent_bytes > 100_000 && !is_away.swap(true, Ordering::SeqCst) {
                taken.take_away(how);
            }
        });
        let error = back_up(&env, &world.selected(), RequestedKind::Full).await;
        let error = error.and_then(|run| run.end.map(drop)).unwrap_err();
        says(&error, &disk, &format!("upload, {how:?}"));
        disk.bring_back();
        let chunks = chunk_inodes(&disk.0);
        assert!(!chunks.is_empty(), "no chunk was confirmed before");

        let run = full(&world, &store).await;
        committed(run.unwrap());
        let after = chunk_inodes(&disk.0);
        assert!(
            chunks.iter().all(|chunk| after.contains(chunk)),
            "{chunks:?}: {after:?}"
        );
        let report = verify_dataset(&*store, &world.dataset, &world.keys.trusted)
            .await
            .unwrap();
        assert_eq!(
            (report.backups, report.damage, report.extra),
            (1, vec![], vec![])
        );
    }
}

/// Returns the names of all chunks with their inodes.
fn chunk_inodes(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(chunk_inodes(&path));
        } else if path.to_string_lossy().ends_with(".zfs.age") {
            found.push((path, entry.metadata().unwrap().ino()));
        }
    }
    found
}
