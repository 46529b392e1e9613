//! `restore --mount`: in its place and nowhere else, never over anything, and refused before a byte is fetched.

use crate::chains::chain;
use crate::world::{World, committed, name, never, noise, now};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::model::DatasetName;
use zfs_backup::plan::mount::NotMounted;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::back_up;
use zfs_backup::run::restore::{
    Incoming, MountOutlook, PropertyChoice, ReceiveOptions, RestorePoint, RestoreSet, find_restore_tree,
    foresee_mounts, left_readonly, mount_restored, restore_to_dataset,
};
use zfs_backup::run::select::Selected;
use zfs_backup::run::snapshot::take_snapshots;
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::zfs::{DatasetType, Mount, PropertyValue, Zfs};

/// A folder of this test without links in its path, as the kernel's table has them.
fn folder() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().canonicalize().unwrap();
    (folder, path)
}

fn placed_at(place: &Path) -> PropertyChoice {
    PropertyChoice::new(false, &[format!("mountpoint={}", place.display())], &[]).unwrap()
}

fn foresee(
    world: &World,
    set: &RestoreSet,
    target: &str,
    properties: &PropertyChoice,
) -> Result<MountOutlook, RunError> {
    let incoming = [Incoming { target: name(target), set, properties }];
    foresee_mounts(&world.zfs, &incoming).map(|mut outlooks| outlooks.remove(0))
}

async fn receive(world: &World, set: &RestoreSet, target: &str, properties: &PropertyChoice) {
    let options = ReceiveOptions { properties: properties.clone(), ..ReceiveOptions::default() };
    let zfs = Arc::new(world.zfs.clone());
    restore_to_dataset(set, &world.keys, zfs, &name(target), &options, never()).await.unwrap();
}

fn mounted(world: &World) -> Vec<(String, PathBuf)> {
    world.zfs.mounts().unwrap().into_iter().map(|mount| (mount.source, mount.place)).collect()
}

fn a_mount(source: &str, place: &Path, readonly: bool) -> Mount {
    let (device, file_system) = ((0, 7), "zfs".to_owned());
    Mount { device, file_system, source: source.to_owned(), place: place.to_owned(), readonly }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_is_mounted_where_it_was_foreseen_and_only_once() {
    let (world, (_keep, folder)) = (World::new(), folder());
    chain(&world, 2).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let place = folder.join("not/there yet");
    let properties = placed_at(&place);
    assert_eq!(foresee(&world, &set, "tank/back", &properties).unwrap(), MountOutlook::At(place.clone()));
    assert!(!folder.join("not").exists(), "looking makes nothing");
    receive(&world, &set, "tank/back", &properties).await;
    assert_eq!(mounted(&world), [], "a receive mounts nothing");
    let target = name("tank/back");
    assert_eq!(mount_restored(&world.zfs, &target).unwrap(), place);
    assert_eq!(mounted(&world), [("tank/back".to_owned(), place.clone())]);
    assert!(place.is_dir());
    assert!(!world.zfs.mounts().unwrap()[0].readonly, "the chain was readonly, and the end of it is not");
    // Again: it is there.
    assert_eq!(mount_restored(&world.zfs, &target).unwrap(), place);
    assert_eq!(mounted(&world).len(), 1);
    assert_eq!(foresee(&world, &set, "tank/back", &properties).unwrap(), MountOutlook::There(place));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_way_is_named_before_anything_is_received() {
    let (world, (_keep, folder)) = (World::new(), folder());
    chain(&world, 0).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let make = |path: &str| fs::create_dir_all(folder.join(path)).unwrap();
    ["full", "empty", "taken", "elsewhere"].iter().for_each(|path| make(path));
    fs::write(folder.join("full/file"), "somebody's").unwrap();
    fs::write(folder.join("file"), "somebody's").unwrap();
    symlink(folder.join("empty"), folder.join("link")).unwrap();
    symlink(folder.join("nowhere"), folder.join("dangling")).unwrap();
    symlink(&folder, folder.join("elsewhere/up")).unwrap();
    world.zfs.add_mount(a_mount("tank/other", &folder.join("taken"), false));
    for (path, says) in [
        ("full", "that folder is not empty"),
        ("file", "that is no folder"),
        ("link", "that is no folder"),
        ("dangling", "that is no folder"),
        ("taken", "tank/other is mounted there"),
        ("elsewhere/up/taken", "tank/other is mounted there"),
        ("file/below", ""),
        ("dangling/below", ""),
    ] {
        let place = folder.join(path);
        let error = foresee(&world, &set, "tank/back", &placed_at(&place)).unwrap_err();
        let text = error_chain(&error);
        assert!(text.contains(says) && text.contains(folder.to_str().unwrap()), "{path}: {text}");
    }
    let free = foresee(&world, &set, "tank/back", &placed_at(&folder.join("empty"))).unwrap();
    assert_eq!(free, MountOutlook::At(folder.join("empty")));
    // What came between the look and the mount is seen too, and nothing is mounted.
    receive(&world, &set, "tank/back", &placed_at(&folder.join("empty"))).await;
    fs::write(folder.join("empty/file"), "somebody's").unwrap();
    let error = mount_restored(&world.zfs, &name("tank/back")).unwrap_err();
    assert!(error.to_string().contains("that folder is not empty"), "{error}");
    assert_eq!(mounted(&world).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_never_mounted_says_why() {
    let (world, (_keep, folder)) = (World::new(), folder());
    chain(&world, 0).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let outlook = |target: &str, set_properties: &[&str]| {
        let given: Vec<String> = set_properties.iter().map(|given| (*given).to_owned()).collect();
        foresee(&world, &set, target, &PropertyChoice::new(false, &given, &[]).unwrap()).unwrap()
    };
    assert_eq!(outlook("tank/back", &["canmount=off"]), MountOutlook::Not(NotMounted::CanmountOff));
    assert_eq!(outlook("tank/back", &["mountpoint=legacy"]), MountOutlook::Not(NotMounted::Legacy));
    let none = NotMounted::NoPlace { mountpoint: "none".into() };
    assert_eq!(outlook("tank/back", &["mountpoint=none"]), MountOutlook::Not(none.clone()));
    // Inherited, from a pool that was imported elsewhere, and below a dataset whose key is not loaded.
    world.zfs.set_property(&name("tank"), "mountpoint", PropertyValue::Text("none".into()));
    assert_eq!(outlook("tank/new/back", &[]), MountOutlook::Not(none));
    world.zfs.set_property(&name("tank"), "mountpoint", PropertyValue::Text("/srv".into()));
    world.zfs.set_alternate_root(folder.to_str().unwrap());
    assert_eq!(outlook("tank/new/back", &[]), MountOutlook::At(folder.join("srv/new/back")));
    let locked = name("tank/locked");
    world.zfs.create(&locked, DatasetType::Filesystem);
    world.zfs.set_encrypted(&locked, true);
    assert_eq!(outlook("tank/locked/back", &[]), MountOutlook::Not(NotMounted::NoKey));
    let refusal = NotMounted::NoKey.refusal(&locked);
    assert!(refusal.to_string().contains("tank/locked would not be mounted"), "{refusal}");
    assert!(refusal.hint().unwrap().contains("zfs load-key tank/locked"));
    let nowhere = foresee(&world, &set, "nopool/back", &PropertyChoice::default()).unwrap_err();
    assert!(nowhere.to_string().contains("there is no pool nopool"), "{nowhere}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_backup_into_a_new_dataset_has_no_key_to_be_mounted_with() {
    let world = World::new();
    world.zfs.set_encrypted(&world.dataset, false);
    chain(&world, 0).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let outlook = foresee(&world, &set, "tank/back", &PropertyChoice::default()).unwrap();
    assert_eq!(outlook, MountOutlook::Not(NotMounted::NoKey));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_fails_leaves_no_folder_and_all_that_was_received() {
    const EACCES: i32 = 13;
    let (world, (_keep, folder)) = (World::new(), folder());
    chain(&world, 0).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    receive(&world, &set, "tank/back", &placed_at(&folder.join("a/b"))).await;
    let target = name("tank/back");
    // The table of mounts, the dataset, the root of the pool, the mount, the table again.
    for n in 1..=4 {
        world.zfs.fail_call(n, EACCES);
        mount_restored(&world.zfs, &target).unwrap_err();
        assert!(!folder.join("a").exists(), "call {n} left a folder");
        assert_eq!(mounted(&world), [], "call {n}");
    }
    world.zfs.fail_call(5, EACCES);
    mount_restored(&world.zfs, &target).unwrap_err();
    assert_eq!(mounted(&world).len(), 1, "it is mounted, and that could not be seen");
    assert_eq!(mount_restored(&world.zfs, &target).unwrap(), folder.join("a/b"));
    assert_eq!(world.zfs.snapshots(&target).unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_is_mounted_below_the_place_of_its_root() {
    let (world, (_keep, folder)) = (World::new(), folder());
    let (root, child) = (world.dataset.clone(), name("tank/a b/child"));
    world.zfs.create(&child, DatasetType::Filesystem);
    world.zfs.write_file(&child, 7, &noise(3, 5_000));
    take_snapshots(&world.zfs, &[root.clone(), child.clone()], "zfs-backup_", now()).unwrap();
    for dataset in [&root, &child] {
        let selected = Selected { dataset: world.zfs.dataset(dataset).unwrap().unwrap(), stored: dataset.clone() };
        committed(back_up(&world.env(), &selected, RequestedKind::Lifecycle).await.unwrap());
    }
    let tree = find_restore_tree(&[world.shared_store()], &root, &world.keys, &RestorePoint::Newest).await.unwrap();
    let targets: Vec<DatasetName> = vec![name("tank/back"), name("tank/back/child")];
    let (top, same) = (placed_at(&folder.join("top")), placed_at(&folder.join("top")));
    let below = top.below();
    let incoming = |second| -> Vec<Incoming<'_>> {
        let choices: [&PropertyChoice; 2] = [&top, second];
        let members = targets.iter().zip(&tree.members).zip(choices);
        members
            .map(|((target, member), properties)| Incoming { target: target.clone(), set: &member.set, properties })
            .collect()
    };
    let outlooks = foresee_mounts(&world.zfs, &incoming(&below)).unwrap();
    let places = [folder.join("top"), folder.join("top/child")];
    assert_eq!(outlooks, places.clone().map(MountOutlook::At));
    let error = foresee_mounts(&world.zfs, &incoming(&same)).unwrap_err();
    assert!(error.to_string().contains("tank/back and tank/back/child would both be mounted at"), "{error}");
    for (target, (member, properties)) in targets.iter().zip(tree.members.iter().zip([&top, &below])) {
        receive(&world, &member.set, target.as_str(), properties).await;
    }
    for (target, place) in targets.iter().zip(places) {
        assert_eq!(mount_restored(&world.zfs, target).unwrap(), place);
    }
}

#[test]
fn only_what_stays_readonly_against_its_owners_will_is_told() {
    let world = World::new();
    let (dataset, place) = (&world.dataset, PathBuf::from("/mnt/a b"));
    assert_eq!(left_readonly(&world.zfs, dataset).unwrap(), None, "it is not mounted");
    world.zfs.add_mount(a_mount("tank/other", Path::new("/mnt/other"), true));
    world.zfs.add_mount(a_mount(dataset.as_str(), &place, true));
    assert_eq!(left_readonly(&world.zfs, dataset).unwrap(), Some(place));
    // Readonly by its own property, or by one above it.
    world.zfs.set_property(&name("tank"), "readonly", PropertyValue::Number(1));
    assert_eq!(left_readonly(&world.zfs, dataset).unwrap(), None);
    world.zfs.set_property(dataset, "readonly", PropertyValue::Number(0));
    assert!(left_readonly(&world.zfs, dataset).unwrap().is_some());
    world.zfs.fail_call(1, 5);
    assert!(left_readonly(&world.zfs, dataset).is_err(), "unknown is not well");
}
