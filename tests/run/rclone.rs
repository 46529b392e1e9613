//! A full backup and an incremental one through rclone into a folder: verified, damaged, restored,
//! deleted.

use crate::weed::programs::find_program;
use crate::world::{World, committed, main_keyring_key, never, noise, now};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::model::DatasetName;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnv, back_up};
use zfs_backup::run::error_chain;
use zfs_backup::run::identity::{Purpose, StorePlace, identify};
use zfs_backup::run::prune::{PruneEnv, forget};
use zfs_backup::run::restore::{
    ReceiveOptions, RestorePoint, find_restore_set, restore_to_dataset,
};
use zfs_backup::run::verify::verify_dataset;
use zfs_backup::store::{
    EvidenceTier, ObjectKey, ObjectStore, RcloneSettings, RcloneStore, Spool, StoreRead,
};
use zfs_backup::zfs::{Zfs, ZfsRead};

const PART_BYTES: usize = 16 * 1024;

pub(crate) async fn open(folder: &Path) -> Arc<dyn ObjectStore> {
    for name in ["objects", "spool"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    fs::write(folder.join("rclone.conf"), "[disk]\ntype = local\n").unwrap();
    let settings = RcloneSettings {
        program: find_program("rclone", "ZFS_BACKUP_RCLONE"),
        conf: folder.join("rclone.conf"),
        remote: "disk".to_owned(),
        path: folder.join("objects").display().to_string(),
        part_bytes: PART_BYTES,
        ..RcloneSettings::default()
    };
    let store = RcloneStore::connect(settings).await.unwrap();
    Arc::new(Spool::new(Arc::new(store), folder.join("spool")))
}

#[tokio::test(flavor = "multi_thread")]
async fn chain_is_stored_verified_and_restored_through_rclone() {
    let (world, folder) = (World::new(), TempDir::new().unwrap());
    let store = open(folder.path()).await;
    let keyring = world.writer.keyring.as_ref().unwrap().bytes.clone();
    store
        .put_new(
            &ObjectKey::listed(&main_keyring_key(&world.writer)).unwrap(),
            keyring,
        )
        .await
        .unwrap();
    let env = BackupEnv {
        store: Arc::clone(&store),
        ..world.env()
    };
    let full = committed(
        back_up(&env, &world.selected(), RequestedKind::Full)
            .await
            .unwrap(),
    );
    world.zfs.write_file(&world.dataset, 12, &noise(9, 30_000));
    world.snapshot();
    let incremental = committed(
        back_up(&env, &world.selected(), RequestedKind::Incremental)
            .await
            .unwrap(),
    );

    let verify = || verify_dataset(&*store, &world.dataset, &world.keys.trusted);
    let report = verify().await.unwrap();
    assert_eq!(
        (report.backups, report.damage, report.extra),
        (2, vec![], vec![])
    );
    assert_eq!(
        report.objects.keys().collect::<Vec<_>>(),
        [&EvidenceTier::Sha1],
        "{:?}",
        report.objects
    );

    let set = find_restore_set(
        &[Arc::<dyn ObjectStore>::clone(&store) as Arc<dyn StoreRead>],
        &world.dataset,
        &world.keys,
        &RestorePoint::Newest,
    )
    .await
    .unwrap();
    let target: DatasetName = "tank/restored".parse().unwrap();
    let zfs: Arc<dyn Zfs> = Arc::new(world.zfs.clone());
    let received = restore_to_dataset(
        &set,
        &world.keys,
        zfs,
        &target,
        &ReceiveOptions::default(),
        never(),
    )
    .await
    .unwrap()
    .snapshots;
    assert_eq!(received.len(), 2);
    let guids = |dataset| -> Vec<_> {
        world
            .zfs
            .snapshots(dataset)
            .unwrap()
            .into_iter()
            .map(|snapshot| snapshot.guid)
            .collect()
    };
    assert_eq!(guids(&target), guids(&world.dataset));

    // One byte of one chunk, of the same length: the remote's hash says so without any download.
    let listed = store.list("").await.unwrap();
    let chunk = listed
        .iter()
        .find(|object| object.key.ends_with(".zfs.age"))
        .unwrap();
    let path = folder.path().join("objects").join(&chunk.key);
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let damaged: Vec<String> = verify()
        .await
        .unwrap()
        .damage
        .into_iter()
        .map(|damage| damage.key)
        .collect();
    assert_eq!(damaged, [chunk.key.as_str()]);
    assert!(store.unfinished("").await.unwrap().is_empty());

    let prune = PruneEnv {
        store: Arc::clone(&store),
        ..world.prune_env(now())
    };
    for id in [incremental.manifest.id, full.manifest.id] {
        forget(&prune, &world.dataset, &id, None).await.unwrap();
    }
    let left = store.list("tank/").await.unwrap();
    assert!(
        left.iter().all(|object| object.key.contains("/@prune/")),
        "{left:?}"
    );
}

/// Opens the folder through a script in front of rclone, which changes the names of the probe as a
/// file system might.
async fn open_folding(folder: &Path, change: &str) -> Arc<dyn ObjectStore> {
    let script = format!(
        "#!/bin/sh\nn=$#\nwhile [ $n -gt 0 ]; do a=$1; shift; n=$((n-1))\ncase \"$a\" in */probe/*) \
         a=\"${{a%/probe/*}}/probe/$(printf '%s' \"${{a##*/probe/}}\" | {change})\";; esac\n\
         set -- \"$@\" \"$a\"; done\nexec '{}' \"$@\"\n",
        find_program("rclone", "ZFS_BACKUP_RCLONE").display()
    );
    fs::create_dir(folder.join("objects")).unwrap();
    fs::write(folder.join("rclone.new"), script).unwrap();
    fs::set_permissions(folder.join("rclone.new"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(folder.join("rclone.new"), folder.join("rclone.sh")).unwrap();
    fs::write(folder.join("rclone.conf"), "[disk]\ntype = local\n").unwrap();
    let settings = RcloneSettings {
        program: folder.join("rclone.sh"),
        conf: folder.join("rclone.conf"),
        remote: "disk".to_owned(),
        path: folder.join("objects").display().to_string(),
        part_bytes: PART_BYTES,
        ..RcloneSettings::default()
    };
    Arc::new(RcloneStore::connect(settings).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn first_run_refuses_a_folder_that_mixes_names() {
    for (change, listed) in [
        ("tr A-Z a-z", "\"@a: b-_.\", \"name\" are listed"),
        ("sed 's/:/_/'", "\"@a_ b-_.\""),
        ("sed 's/[.]$//'", "\"@a: b-_\", "),
        ("cat", ""),
    ] {
        let (folder, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let store = open_folding(folder.path(), change).await;
        let place = StorePlace {
            url: store.url().to_owned(),
            endpoint: String::new(),
            option: "",
        };
        let found = identify(
            state.path(),
            &place,
            Arc::clone(&store),
            Purpose::Write,
            &[],
        )
        .await;
        let left = store.list("").await.unwrap();
        if listed.is_empty() {
            found.unwrap();
            assert_eq!(left.len(), 1, "only the identity is there: {left:?}");
            continue;
        }
        let error = found.err().unwrap();
        let text = format!("{} {:?}", error_chain(&error), error.hint());
        for needle in ["objects", "does not keep names apart", listed, "ext4"] {
            assert!(text.contains(needle), "{change}: no {needle} in {text}");
        }
        assert_eq!(left, [], "{change}");
    }
}
