//! Snapshots, holds, bookmarks.

use crate::pool::{Pool, errno, property, several, zfs};
use std::collections::BTreeMap;
use zfs_backup::model::Guid;
use zfs_backup::zfs::{SendBase, ZfsErrno, ZfsError, ZfsRead, ZfsSnapshots};

#[test]
fn snapshots_are_of_one_txg_and_carry_their_own_properties() {
    let pool = Pool::new("atomic");
    let (a, b) = (pool.create("a"), pool.create("a/b"));
    zfs(&["set", "my:inherited=x", a.as_str()]);
    let names = [pool.snapshot("a@s"), pool.snapshot("a/b@s")];
    let properties = BTreeMap::from([("my:guid".to_owned(), "a b c".to_owned())]);
    pool.zfs.take_snapshots(&names, &properties).unwrap();
    let (of_a, of_b) = (
        pool.zfs.snapshots(&a).unwrap(),
        pool.zfs.snapshots(&b).unwrap(),
    );
    assert_eq!((of_a.len(), of_b.len()), (1, 1));
    assert_eq!(of_a[0].createtxg, of_b[0].createtxg);
    for (snapshot, name) in of_a.iter().chain(&of_b).zip(&names) {
        assert_eq!(&snapshot.name, name);
        assert_eq!(snapshot.user_properties, properties);
    }
}

#[test]
fn refused_snapshots_are_named_each_and_none_is_taken() {
    let pool = Pool::new("refused");
    for path in ["a", "b", "c"] {
        pool.create(path);
    }
    pool.take("a@s");
    pool.take("b@s");
    let names = ["a@s", "b@s", "c@s"].map(|path| pool.snapshot(path));
    let failures = several(pool.zfs.take_snapshots(&names, &BTreeMap::new()));
    let expected =
        ["refused/a@s", "refused/b@s"].map(|name| (name.to_owned(), ZfsErrno(libc::EEXIST)));
    assert_eq!(failures, expected);
    assert_eq!(pool.zfs.snapshots(&pool.dataset("c")).unwrap(), []);
    let failures = several(
        pool.zfs
            .take_snapshots(&[pool.snapshot("none@s")], &BTreeMap::new()),
    );
    assert_eq!(
        failures,
        [("refused/none@s".to_owned(), ZfsErrno(libc::ENOENT))]
    );
}

#[test]
fn snapshots_of_two_pools_or_twice_of_one_dataset_are_refused() {
    let (pool, other) = (Pool::new("two1"), Pool::new("two2"));
    pool.create("a");
    other.create("a");
    let none = BTreeMap::new();
    assert_eq!(
        errno(
            pool.zfs
                .take_snapshots(&[pool.snapshot("a@s"), other.snapshot("a@s")], &none)
        ),
        libc::EXDEV
    );
    assert_eq!(
        errno(
            pool.zfs
                .take_snapshots(&[pool.snapshot("a@s"), pool.snapshot("a@t")], &none)
        ),
        libc::EXDEV
    );
    assert_eq!(pool.zfs.snapshots(&pool.dataset("a")).unwrap(), []);
    pool.zfs.take_snapshots(&[], &none).unwrap();
}

#[test]
fn destroy_names_held_or_cloned_snapshots_and_ignores_missing_ones() {
    let pool = Pool::new("destroy");
    let a = pool.create("a");
    for short in ["held", "cloned", "free"] {
        pool.take(&format!("a@{short}"));
    }
    pool.zfs.hold(&pool.snapshot("a@held"), "tag").unwrap();
    zfs(&["clone", "destroy/a@cloned", "destroy/b"]);
    let names = ["a@held", "a@cloned", "a@gone"].map(|path| pool.snapshot(path));
    let failures: BTreeMap<_, _> = several(pool.zfs.destroy_snapshots(&names))
        .into_iter()
        .collect();
    assert_eq!(
        failures.get("destroy/a@held"),
        Some(&ZfsErrno(libc::EBUSY)),
        "{failures:?}"
    );
    assert_eq!(
        failures.get("destroy/a@cloned"),
        Some(&ZfsErrno(libc::EEXIST)),
        "{failures:?}"
    );
    assert_eq!(failures.len(), 2);
    pool.zfs
        .destroy_snapshots(&[pool.snapshot("a@free"), pool.snapshot("a@gone")])
        .unwrap();
    pool.zfs.destroy_snapshots(&[]).unwrap();
    assert_eq!(pool.zfs.snapshots(&a).unwrap().len(), 2);
}

#[test]
fn hold_stays_until_released() {
    let pool = Pool::new("hold");
    pool.create("a");
    let name = pool.take("a@s");
    pool.zfs.hold(&name, "tag one").unwrap();
    pool.zfs.hold(&name, "two").unwrap();
    let error = pool.zfs.hold(&name, "two").unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.errno()),
        ("hold hold/a@s", Some(ZfsErrno(libc::EEXIST)))
    );
    let holds = pool.zfs.holds(&name).unwrap();
    assert_eq!(holds.keys().collect::<Vec<_>>(), ["tag one", "two"]);
    assert!(
        holds
            .values()
            .all(|time| (jiff::Timestamp::now().as_second() - time.as_second()).abs() < 600)
    );
    assert_eq!(pool.zfs.snapshots(&pool.dataset("a")).unwrap()[0].holds, 2);
    pool.zfs.release(&name, "tag one").unwrap();
    pool.zfs.release(&name, "tag one").unwrap();
    pool.zfs.release(&pool.snapshot("a@gone"), "tag").unwrap();
    pool.zfs
        .release(&pool.snapshot("gone@gone"), "tag")
        .unwrap();
    pool.zfs.release(&name, "two").unwrap();
    assert_eq!(pool.zfs.holds(&name).unwrap(), BTreeMap::new());
    assert_eq!(
        errno(pool.zfs.hold(&pool.snapshot("a@gone"), "tag")),
        libc::ENOENT
    );
    assert_eq!(
        errno(pool.zfs.holds(&pool.snapshot("a@gone"))),
        libc::ENOENT
    );
    assert_eq!(errno(pool.zfs.hold(&name, &"x".repeat(300))), libc::E2BIG);
    assert_eq!(errno(pool.zfs.hold(&name, "zero\0byte")), libc::EINVAL);
}

#[test]
fn bookmarks_are_made_of_snapshots_and_of_bookmarks() {
    let pool = Pool::new("bookmark");
    let a = pool.create("a");
    let (first, second) = (pool.take("a@1"), pool.take("a@2"));
    let guid =
        |name: &zfs_backup::model::SnapshotName| Guid(property(name, "guid").parse().unwrap());
    let (guid_1, guid_2) = (guid(&first), guid(&second));
    let [z, y, copy] = ["a#z", "a#y", "a#copy"].map(|path| pool.bookmark(path));
    assert_eq!(pool.zfs.bookmarks(&a).unwrap(), []);
    pool.zfs
        .bookmark(&z, &SendBase::Snapshot(first.clone()))
        .unwrap();
    pool.zfs.bookmark(&y, &SendBase::Snapshot(second)).unwrap();
    pool.zfs
        .destroy_snapshots(std::slice::from_ref(&first))
        .unwrap();
    pool.zfs
        .bookmark(&copy, &SendBase::Bookmark(z.clone()))
        .unwrap();
    let bookmarks = pool.zfs.bookmarks(&a).unwrap();
    let found: Vec<_> = bookmarks
        .iter()
        .map(|bookmark| (bookmark.name.clone(), bookmark.guid))
        .collect();
    assert_eq!(
        found,
        [(copy, guid_1), (z.clone(), guid_1), (y.clone(), guid_2)]
    );
    assert_eq!(
        bookmarks[2].createtxg,
        property(&y, "createtxg").parse::<u64>().unwrap()
    );
    assert_eq!(
        bookmarks[2].created_at.as_second(),
        property(&y, "creation").parse::<i64>().unwrap()
    );

    assert_eq!(
        errno(
            pool.zfs
                .bookmark(&z, &SendBase::Snapshot(pool.snapshot("a@2")))
        ),
        libc::EEXIST
    );
    let other = pool.bookmark("a#other");
    assert_eq!(
        errno(pool.zfs.bookmark(&other, &SendBase::Snapshot(first))),
        libc::ENOENT
    );
    assert_eq!(
        errno(
            pool.zfs
                .bookmark(&other, &SendBase::Bookmark(pool.bookmark("a#gone")))
        ),
        libc::ESRCH
    );
    pool.zfs
        .destroy_bookmarks(&[z, pool.bookmark("a#gone")])
        .unwrap();
    pool.zfs.destroy_bookmarks(&[]).unwrap();
    assert_eq!(pool.zfs.bookmarks(&a).unwrap().len(), 2);
}

#[test]
fn errors_read_as_sentences() {
    let pool = Pool::new("sentence");
    let error = pool.zfs.hold(&pool.snapshot("a@s"), "tag").unwrap_err();
    assert_eq!(error.to_string(), "hold sentence/a@s");
    let ZfsError::Call { source, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(source.to_string(), "it does not exist (ENOENT)");
}
