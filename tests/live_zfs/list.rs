//! Datasets, snapshots, their properties.

use crate::pool::{Pool, errno, property, run, zfs};
use std::collections::BTreeMap;
use zfs_backup::model::{DatasetName, Guid};
use zfs_backup::zfs::{DatasetType, PropertyValue, ZfsHost, ZfsRead, ZfsReceive, ZfsSnapshots};

#[test]
fn module_version_is_the_kernels() {
    let pool = Pool::new("version");
    let reported = String::from_utf8(run("zfs", &["version"])).unwrap();
    let version = pool.zfs.module_version().unwrap();
    assert!(
        reported
            .lines()
            .any(|line| line == format!("zfs-kmod-{version}")),
        "{version} of {reported}"
    );
}

#[test]
fn dataset_properties_equal_zfs_get() {
    let pool = Pool::new("getds");
    let name = pool.create("a");
    zfs(&["set", "my:own=value of mine", "quota=1G", name.as_str()]);
    zfs(&["set", "my:inherited=from the pool", "getds"]);
    // Space is accounted when a transaction group is written.
    run("zpool", &["sync"]);
    let dataset = pool.zfs.dataset(&name).unwrap().unwrap();
    assert_eq!(dataset.name, name);
    assert_eq!(dataset.guid, Guid(property(&name, "guid").parse().unwrap()));
    assert_eq!(dataset.dataset_type, DatasetType::Filesystem);
    assert!(!dataset.encrypted && !dataset.key_unavailable && !dataset.inconsistent);
    assert_eq!(dataset.origin, None);
    let get = |name: &str| {
        dataset
            .properties
            .get(name)
            .map(|property| (&property.value, property.source.as_deref()))
    };
    let text = |text: &str| PropertyValue::Text(text.to_owned());
    assert_eq!(
        get("my:own"),
        Some((&text("value of mine"), Some(name.as_str())))
    );
    assert_eq!(
        get("my:inherited"),
        Some((&text("from the pool"), Some("getds")))
    );
    assert_eq!(
        get("quota"),
        Some((&PropertyValue::Number(1 << 30), Some(name.as_str())))
    );
    for number in ["used", "referenced", "createtxg", "creation", "objsetid"] {
        let expected = PropertyValue::Number(property(&name, number).parse().unwrap());
        assert_eq!(
            get(number).map(|(value, _)| value),
            Some(&expected),
            "{number}"
        );
    }
}

#[test]
fn pool_root_is_a_dataset_and_a_missing_dataset_is_none() {
    let pool = Pool::new("absent");
    assert!(
        pool.zfs
            .dataset(&"absent".parse().unwrap())
            .unwrap()
            .is_some()
    );
    assert_eq!(pool.zfs.dataset(&pool.dataset("nothing")).unwrap(), None);
    assert_eq!(
        pool.zfs
            .dataset(&"no_such_pool/x".parse().unwrap())
            .unwrap(),
        None
    );
}

#[test]
fn children_are_direct_and_sorted() {
    let pool = Pool::new("children");
    for path in ["b", "a", "a/inner", "c"] {
        pool.create(path);
    }
    zfs(&["create", "-s", "-V", "8M", "children/vol"]);
    let children = pool.zfs.children(&"children".parse().unwrap()).unwrap();
    let names: Vec<_> = children.iter().map(|child| child.name.as_str()).collect();
    assert_eq!(
        names,
        ["children/a", "children/b", "children/c", "children/vol"]
    );
    assert_eq!(children[3].dataset_type, DatasetType::Volume);
    assert_eq!(
        children[0],
        pool.zfs.dataset(&pool.dataset("a")).unwrap().unwrap()
    );
    assert_eq!(pool.zfs.children(&pool.dataset("b")).unwrap(), []);
    assert_eq!(pool.zfs.children(&pool.dataset("vol")).unwrap(), []);
}

#[test]
fn listing_a_missing_dataset_is_an_error_and_not_empty() {
    let pool = Pool::new("notthere");
    let name = pool.dataset("nothing");
    assert_eq!(errno(pool.zfs.children(&name)), libc::ENOENT);
    assert_eq!(errno(pool.zfs.snapshots(&name)), libc::ENOENT);
    assert_eq!(errno(pool.zfs.bookmarks(&name)), libc::ENOENT);
}

#[test]
fn snapshots_are_listed_oldest_first_with_zfs_get_properties() {
    let pool = Pool::new("snaps");
    let name = pool.create("a");
    assert_eq!(pool.zfs.snapshots(&name).unwrap(), []);
    for index in 0..25 {
        pool.write("a/file", 100_000, index);
        // Names whose order is not that of time.
        pool.take(&format!("a@{}", (index * 7) % 25));
    }
    zfs(&["hold", "tag", "snaps/a@7"]);
    run("zpool", &["sync"]);
    let snapshots = pool.zfs.snapshots(&name).unwrap();
    let shorts: Vec<_> = snapshots
        .iter()
        .map(|snapshot| snapshot.name.short().to_owned())
        .collect();
    assert_eq!(
        shorts,
        (0..25)
            .map(|index| ((index * 7) % 25).to_string())
            .collect::<Vec<_>>()
    );
    for snapshot in &snapshots {
        let get = |name: &str| property(&snapshot.name, name).parse::<u64>().unwrap();
        assert_eq!(snapshot.guid, Guid(get("guid")));
        assert_eq!(snapshot.createtxg, get("createtxg"));
        assert_eq!(snapshot.created_at.as_second(), get("creation") as i64);
        assert_eq!(snapshot.referenced_bytes, get("referenced"));
        assert_eq!(snapshot.used_bytes, get("used"));
        assert_eq!(snapshot.holds, u64::from(snapshot.name.short() == "7"));
        assert_eq!(snapshot.user_properties, BTreeMap::new());
    }
}

#[test]
fn properties_larger_than_the_first_buffer_are_read_whole() {
    let pool = Pool::new("large");
    let name = pool.create("a");
    let value = "x".repeat(8000);
    let inner = pool.create("a/b");
    for index in 0..20 {
        zfs(&["set", &format!("my:p{index}={value}"), name.as_str()]);
    }
    pool.take("a@s");
    let is_whole = |property: Option<&zfs_backup::zfs::Property>| {
        property.is_some_and(|property| property.value == PropertyValue::Text(value.clone()))
    };
    for dataset in [
        pool.zfs.dataset(&name).unwrap().unwrap(),
        pool.zfs.dataset(&inner).unwrap().unwrap(),
        pool.zfs
            .children(&"large".parse::<DatasetName>().unwrap())
            .unwrap()
            .remove(0),
        pool.zfs.children(&name).unwrap().remove(0),
    ] {
        assert!((0..20).all(|index| is_whole(dataset.properties.get(&format!("my:p{index}")))));
    }
    assert_eq!(pool.zfs.snapshots(&name).unwrap().len(), 1);
}

#[test]
fn clone_names_its_origin() {
    let pool = Pool::new("clone");
    pool.create("a");
    let origin = pool.take("a@s");
    zfs(&["clone", "clone/a@s", "clone/b"]);
    assert_eq!(
        pool.zfs
            .dataset(&pool.dataset("b"))
            .unwrap()
            .unwrap()
            .origin,
        Some(origin)
    );
}

#[test]
fn filesystem_is_created_with_native_properties_and_destroyed() {
    let pool = Pool::new("create");
    let name = pool.dataset("new");
    let properties = BTreeMap::from([
        ("canmount".to_owned(), PropertyValue::Number(2)),
        ("recordsize".to_owned(), PropertyValue::Number(1 << 16)),
        (
            "mountpoint".to_owned(),
            PropertyValue::Text("/tmp/elsewhere".to_owned()),
        ),
        ("my:own".to_owned(), PropertyValue::Text("mine".to_owned())),
    ]);
    pool.zfs.create_filesystem(&name, &properties).unwrap();
    for (key, value) in [
        ("canmount", "noauto"),
        ("recordsize", "65536"),
        ("mountpoint", "/tmp/elsewhere"),
        ("my:own", "mine"),
    ] {
        assert_eq!(property(&name, key), value);
    }
    assert_eq!(property(&name, "mounted"), "no");
    assert_eq!(
        errno(pool.zfs.create_filesystem(&name, &BTreeMap::new())),
        libc::EEXIST
    );
    assert_eq!(
        errno(
            pool.zfs
                .create_filesystem(&pool.dataset("no/parent"), &BTreeMap::new())
        ),
        libc::ENOENT
    );
    pool.take("new@s");
    assert_eq!(errno(pool.zfs.destroy_dataset(&name)), libc::EBUSY);
    pool.zfs
        .destroy_snapshots(&[pool.snapshot("new@s")])
        .unwrap();
    pool.zfs.destroy_dataset(&name).unwrap();
    assert_eq!(pool.zfs.dataset(&name).unwrap(), None);
    assert_eq!(errno(pool.zfs.destroy_dataset(&name)), libc::ENOENT);
}

#[test]
fn threads_share_one_handle() {
    let pool = Pool::new("threads");
    for path in ["a", "b", "c", "d"] {
        pool.create(path);
    }
    std::thread::scope(|scope| {
        for path in ["a", "b", "c", "d"] {
            let pool = &pool;
            scope.spawn(move || {
                for index in 0..8 {
                    pool.take(&format!("{path}@{index}"));
                    assert_eq!(
                        pool.zfs.snapshots(&pool.dataset(path)).unwrap().len(),
                        index + 1
                    );
                    assert_eq!(
                        pool.zfs
                            .children(&"threads".parse().unwrap())
                            .unwrap()
                            .len(),
                        4
                    );
                }
            });
        }
    });
}
