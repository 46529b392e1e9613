//! `B3SUMS` in the intermediate directory: `b3sum -c` reads it, and nothing of ours minds it.

use crate::upload::{Pair, reasons};
use crate::world::{PART_BYTES, World, key_of, never};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::catalog::read_catalog;
use zfs_backup::manifest::Manifest;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnv, back_up};
use zfs_backup::run::copy::sums::write_sums;
use zfs_backup::run::copy::{CopyPool, UploadEnv};
use zfs_backup::run::verify::verify_dataset;
use zfs_backup::store::{DirSettings, DirStore, ObjectKey, ObjectStore};

fn open(folder: &Path) -> Arc<dyn ObjectStore> {
    Arc::new(
        DirStore::open(&DirSettings {
            root: folder.to_owned(),
            part_bytes: PART_BYTES,
        })
        .unwrap(),
    )
}

async fn exported(world: &World, folder: &Path) -> Manifest {
    let keyring = world.writer.keyring.as_ref().unwrap();
    open(folder)
        .put_new(&ObjectKey::keyring(&keyring.tag), keyring.bytes.clone())
        .await
        .unwrap();
    let env = BackupEnv {
        store: open(folder),
        ..world.env()
    };
    let manifest = crate::world::committed(
        back_up(&env, &world.selected(), RequestedKind::Full)
            .await
            .unwrap(),
    )
    .manifest;
    let written = write_sums(&*open(folder), &world.dataset, &world.keys.trusted)
        .await
        .unwrap();
    assert_eq!(written, std::slice::from_ref(&manifest.id));
    manifest
}

fn b3sum(folder: &Path) -> Output {
    Command::new("b3sum")
        .args(["-c", "B3SUMS"])
        .current_dir(folder)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3sum_verifies_every_object_of_a_backup_and_detects_corruption() {
    let (world, folder) = (World::new(), TempDir::new().unwrap());
    let manifest = exported(&world, folder.path()).await;
    let backup = folder.path().join(key_of(&manifest, ""));
    let checked = b3sum(&backup);
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
    let sums = fs::read_to_string(backup.join("B3SUMS")).unwrap();
    let mut named: Vec<&str> = sums
        .lines()
        .map(|line| line.split_once("  ").unwrap().1)
        .collect();
    named.push("B3SUMS");
    named.sort_unstable();
    let mut there: Vec<String> = fs::read_dir(&backup)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(named, there, "the file names all objects and nothing else");

    for name in there.iter().filter(|name| *name != "B3SUMS") {
        let whole = fs::read(backup.join(name)).unwrap();
        let mut rotten = whole.clone();
        let middle = rotten.len() / 2;
        rotten[middle] ^= 1;
        fs::write(backup.join(name), rotten).unwrap();
        let checked = b3sum(&backup);
        assert!(
            !checked.status.success()
                && String::from_utf8_lossy(&checked.stdout).contains(&format!("{name}: FAILED"))
        );
        fs::write(backup.join(name), whole).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3sums_file_is_a_known_object_written_once_and_not_copied() {
    let (world, folder) = (World::new(), TempDir::new().unwrap());
    let manifest = exported(&world, folder.path()).await;
    let store = open(folder.path());
    assert_eq!(
        write_sums(&*store, &world.dataset, &world.keys.trusted)
            .await
            .unwrap(),
        []
    );
    let report = verify_dataset(&*store, &world.dataset, &world.keys.trusted)
        .await
        .unwrap();
    assert_eq!(
        (report.damage, report.extra, report.backups),
        (vec![], vec![], 1)
    );
    let catalog = read_catalog(&*store, &world.dataset, &world.keys.trusted)
        .await
        .unwrap();
    assert!(catalog.unknown.is_empty() && catalog.backups[0].objects.contains_key("B3SUMS"));

    // It goes with the backup: whoever deletes all that is listed leaves no folder behind.
    let pair = Pair::new(world);
    let env = UploadEnv {
        pool: CopyPool::default(),
        from: store.clone(),
        ..pair.env(never())
    };
    let report = pair.upload_with(&env, false, &[]).await.unwrap();
    assert!(report.failed.is_empty(), "{:?}", reasons(&report));
    assert!(!pair.remote.keys().iter().any(|key| key.contains("B3SUMS")));
    let listed = store.list(&key_of(&manifest, "")).await.unwrap();
    assert!(listed.iter().any(|object| object.key.ends_with("/B3SUMS")));
    for object in listed {
        store
            .delete(&ObjectKey::listed(&object.key).unwrap())
            .await
            .unwrap();
    }
    assert!(!folder.path().join(key_of(&manifest, "")).exists());
}
