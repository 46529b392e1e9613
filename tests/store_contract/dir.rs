//! Tests for folders only: paths, permissions, full disks, and file systems that are mounted and
//! unmounted.

use crate::contract::{key, pattern, upload};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime;
use zfs_backup::store::dir::CreateOnly;
use zfs_backup::store::{
    DirSettings, DirStore, MemoryStore, PutOutcome, Spool, StoreDelete, StoreError, StoreErrorKind,
    StoreInfo, StoreRead, StoreWrite, UnfinishedUpload,
};

const PART_BYTES: usize = 64 * 1024;
const SMALL_DISK: &str = "ZFS_BACKUP_SMALL_DISK";

fn open(root: &Path) -> DirStore {
    DirStore::open(&DirSettings {
        root: root.to_owned(),
        part_bytes: PART_BYTES,
    })
    .unwrap()
}

fn open_temp() -> (TempDir, DirStore) {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    (dir, store)
}

/// Returns all paths below a folder.
fn paths(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(
                paths(&path)
                    .into_iter()
                    .map(|below| format!("{name}/{below}")),
            );
        }
        found.insert(name);
    }
    found
}

fn story(error: &StoreError) -> String {
    let cause = error.source().unwrap();
    format!(
        "{error}: {cause}: {:?}\nhint: {:?}",
        cause.source().map(ToString::to_string),
        error.hint
    )
}

#[test]
fn missing_root_is_an_error_and_never_made() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("not-mounted");
    let error = DirStore::open(&DirSettings {
        root: root.clone(),
        part_bytes: PART_BYTES,
    })
    .err()
    .unwrap();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert!(error.to_string().contains("not-mounted") && error.hint.unwrap().contains("mount"));
    assert!(!root.exists());
}

#[tokio::test]
async fn root_that_was_replaced_is_an_error_and_not_an_empty_store() {
    let dir = TempDir::new().unwrap();
    let (root, aside) = (dir.path().join("root"), dir.path().join("aside"));
    fs::create_dir(&root).unwrap();
    let store = open(&root);
    store
        .put_new(&key("tank/@a/x"), pattern(1, 1))
        .await
        .unwrap();
    fs::rename(&root, &aside).unwrap();
    let gone = store.list("").await.unwrap_err();
    assert_eq!(gone.kind, StoreErrorKind::Unavailable, "{}", story(&gone));
    assert!(story(&gone).contains("the folder is gone") && gone.hint.unwrap().contains("mounting"));
    fs::create_dir(&root).unwrap();
    for error in [
        store.list("").await.unwrap_err(),
        store.head(&key("tank/@a/x")).await.unwrap_err(),
        store.get(&key("tank/@a/x"), None, 10).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{}", story(&error));
    }
    fs::remove_dir(&root).unwrap();
    fs::rename(&aside, &root).unwrap();
    assert_eq!(store.list("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn no_part_of_an_object_is_ever_seen() {
    let (dir, store) = open_temp();
    let name = key("tank/@a/chunk");
    let mut writer = store.create(&name).await.unwrap();
    for seed in 0..3 {
        writer.put_part(pattern(PART_BYTES, seed)).await.unwrap();
        assert_eq!(store.list("").await.unwrap(), []);
        assert_eq!(store.head(&name).await.unwrap(), None);
        assert_eq!(
            store.get(&name, None, u64::MAX).await.unwrap_err().kind,
            StoreErrorKind::NotFound
        );
        assert!(!dir.path().join("tank/@a/chunk").exists());
    }
    assert_eq!(store.unfinished("").await.unwrap(), [], "its writer lives");
    writer.finish().await.unwrap();
    assert_eq!(
        paths(&dir.path().join("tank/@a")),
        BTreeSet::from(["chunk".to_owned()]),
        "nothing stays beside it"
    );
}

#[tokio::test]
async fn files_and_folders_are_private() {
    let (dir, store) = open_temp();
    fs::create_dir(dir.path().join("tank")).unwrap();
    fs::set_permissions(dir.path().join("tank"), PermissionsExt::from_mode(0o750)).unwrap();
    store
        .put_new(&key("tank/a/@a/x"), pattern(1, 1))
        .await
        .unwrap();
    upload(&store, &key("tank/a/@a/y"), &pattern(1, 1))
        .await
        .unwrap();
    for (path, mode) in [
        ("tank", 0o750),
        ("tank/a", 0o700),
        ("tank/a/@a", 0o700),
        ("tank/a/@a/x", 0o600),
        ("tank/a/@a/y", 0o600),
    ] {
        let found = fs::metadata(dir.path().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777;
        assert_eq!(found, mode, "{path}: {found:o}");
    }
}

#[tokio::test]
async fn deleting_removes_the_folders_of_backups_and_no_others() {
    let (dir, store) = open_temp();
    for name in ["tank/a/@1/x", "tank/a/@1/y", "tank/a/@2/x"] {
        store.put_new(&key(name), pattern(1, 1)).await.unwrap();
    }
    store.delete(&key("tank/a/@1/x")).await.unwrap();
    assert!(dir.path().join("tank/a/@1").exists());
    store.delete(&key("tank/a/@1/y")).await.unwrap();
    store.delete(&key("tank/a/@2/x")).await.unwrap();
    assert_eq!(
        paths(dir.path()),
        BTreeSet::from(["tank".to_owned(), "tank/a".to_owned()])
    );
    store
        .create(&key("tank/a/@3/x"))
        .await
        .unwrap()
        .abort()
        .await
        .unwrap();
    assert_eq!(
        paths(dir.path()).len(),
        2,
        "an aborted upload leaves no folder either"
    );
}

#[tokio::test]
async fn symbolic_links_are_not_followed() {
    let (dir, store) = open_temp();
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("x"), "outside").unwrap();
    symlink(outside.path(), dir.path().join("tank")).unwrap();
    symlink(outside.path().join("x"), dir.path().join("link")).unwrap();
    for name in ["tank/x", "tank/@a/x", "link"] {
        let name = key(name);
        let errors = [
            store.get(&name, None, u64::MAX).await.unwrap_err(),
            store.head(&name).await.unwrap_err(),
            store.put_new(&name, pattern(1, 1)).await.unwrap_err(),
            store.create(&name).await.err().unwrap(),
        ];
        for error in errors {
            assert_eq!(
                error.kind,
                StoreErrorKind::Invalid,
                "{name}: {}",
                story(&error)
            );
        }
    }
    let error = store.list("").await.unwrap_err();
    assert_eq!(
        error.kind,
        StoreErrorKind::Invalid,
        "a listing without them would not be whole"
    );
    assert_eq!(paths(outside.path()), BTreeSet::from(["x".to_owned()]));
    assert_eq!(fs::read(outside.path().join("x")).unwrap(), b"outside");
}

#[test]
fn unreadable_folders_fail_the_listing_that_needs_them() {
    let (dir, store) = open_temp();
    // Root can read everything, unless its threads drop the capability.
    let unprivileged = runtime::Builder::new_multi_thread()
        .on_thread_start(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
            set_capabilities(None, sets).unwrap();
        })
        .build()
        .unwrap();
    unprivileged.block_on(async {
        for name in ["tank/a/@1/x", "tank/b/@1/x"] {
            store.put_new(&key(name), pattern(1, 1)).await.unwrap();
        }
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        for name in ["tank/a", "lost+found"] {
            fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(0o000)).unwrap();
        }
        for prefix in ["", "tank/", "tank/a/@"] {
            let error = store.list(prefix).await.unwrap_err();
            assert_eq!(
                error.kind,
                StoreErrorKind::Denied,
                "{prefix:?}: {}",
                story(&error)
            );
            assert!(story(&error).contains("tank/a"), "{}", story(&error));
        }
        assert_eq!(
            store.head(&key("tank/a/@1/x")).await.unwrap_err().kind,
            StoreErrorKind::Denied
        );
        assert_eq!(
            store.delete(&key("tank/a/@1/x")).await.unwrap_err().kind,
            StoreErrorKind::Denied
        );
        assert_eq!(
            store.list("tank/b/@").await.unwrap().len(),
            1,
            "others are not concerned"
        );
        fs::set_permissions(dir.path().join("tank/a"), PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(
            store.list("").await.unwrap().len(),
            2,
            "lost+found is the file system's own"
        );
    });
}

#[tokio::test]
async fn only_unfinished_uploads_can_be_aborted() {
    let (dir, store) = open_temp();
    store
        .put_new(&key("tank/@a/x"), pattern(1, 1))
        .await
        .unwrap();
    for (name, upload_id) in [
        ("tank/@a/x", "x"),
        ("tank/@a/x", "../@a/x"),
        ("tank/@a/x", ".y.0123456789abcdef.partial"),
        ("../x", ".x.0123456789abcdef.partial"),
        ("tank/@a/x", "z/.x.0123456789abcdef.partial"),
    ] {
        let upload = UnfinishedUpload {
            key: name.to_owned(),
            upload_id: upload_id.to_owned(),
            started_at: None,
        };
        let error = store.abort_unfinished(&upload).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Invalid, "{name} {upload_id}");
    }
    assert!(dir.path().join("tank/@a/x").exists());
    let error = store
        .put_new(&key("tank/@a/.x.0123456789abcdef.partial"), pattern(1, 1))
        .await
        .unwrap_err();
    assert_eq!(
        error.kind,
        StoreErrorKind::Invalid,
        "objects cannot look like unfinished uploads"
    );
}

#[tokio::test]
async fn claim_of_a_dead_writer_is_named_and_can_be_removed() {
    let dir = TempDir::new().unwrap();
    let settings = DirSettings {
        root: dir.path().to_owned(),
        part_bytes: PART_BYTES,
    };
    let store = DirStore::open_with(&settings, CreateOnly::Claim).unwrap();
    let name = key("tank/@a/x");
    fs::create_dir_all(dir.path().join("tank/@a")).unwrap();
    fs::write(dir.path().join("tank/@a/.x.claim.partial"), "").unwrap();
    let error = store.put_new(&name, pattern(1, 1)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(
        story(&error).contains(".x.claim.partial"),
        "{}",
        story(&error)
    );
    let left = store.unfinished("tank/@a/").await.unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    store.abort_unfinished(&left[0]).await.unwrap();
    assert_eq!(
        store.put_new(&name, pattern(1, 1)).await.unwrap().0,
        PutOutcome::Created
    );
}

/// Runs the next test in a namespace of its own, on a disk of 256 KiB.
#[test]
fn full_disk_is_reported_and_leaves_no_object() {
    let disk = TempDir::new().unwrap();
    let mount = "mount -t tmpfs -o size=256k none \"$1\" && exec \"$2\" --exact dir::on_a_small_disk --ignored";
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        mount,
        "sh",
    ]);
    command
        .arg(disk.path())
        .arg(env::current_exe().unwrap())
        .env(SMALL_DISK, disk.path());
    let output = command
        .output()
        .expect("this test needs unshare(1) and user namespaces");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[tokio::test]
#[ignore = "runs on a small disk, which the test above makes"]
async fn on_a_small_disk() {
    let Some(disk) = env::var_os(SMALL_DISK) else {
        return;
    };
    let (disk, name, whole) = (Path::new(&disk), key("tank/@a/x"), pattern(300 * 1024, 1));
    let store = open(disk);
    let errors = [
        store.put_new(&name, whole.clone()).await.unwrap_err(),
        upload(&store, &name, &whole).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, StoreErrorKind::Full, "{}", story(&error));
        assert!(
            story(&error).contains("tank/@a/.x."),
            "the file is named: {}",
            story(&error)
        );
        assert!(error.hint.is_some());
    }
    assert_eq!(
        paths(disk),
        BTreeSet::from(["tank".to_owned()]),
        "no object, no temporary file"
    );

    let whole_only = MemoryStore::with_traits(store.traits().clone());
    whole_only.take_no_parts();
    let spool = Spool::new(Arc::new(whole_only), disk.to_owned());
    let error = upload(&spool, &name, &whole).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Full, "{}", story(&error));
    assert!(
        error.hint.unwrap().contains(disk.to_str().unwrap()),
        "the folder is named"
    );
    upload(&spool, &name, &pattern(200 * 1024, 1))
        .await
        .expect("the room is free again");
}
