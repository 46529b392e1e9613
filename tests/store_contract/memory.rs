//! The test double itself: it records, fails and damages as a test demands. And the spool in front
//! of it.

use crate::contract::{key, pattern, upload};
use bytes::Bytes;
use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};
use zfs_backup::store::{
    Evidence, EvidenceTier, ListedObject, PutOutcome, Spool, StoreDelete, StoreErrorKind,
    StoreInfo, StoreRead, StoreWrite,
};

fn lines(store: &MemoryStore) -> Vec<String> {
    store.events().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn calls_are_recorded_in_order() {
    let store = MemoryStore::new();
    store
        .put_new(&key("tank/@a/started.json"), pattern(1, 1))
        .await
        .unwrap();
    upload(
        &store,
        &key("tank/@a/chunk"),
        &pattern(store.traits().part_bytes + 1, 1),
    )
    .await
    .unwrap();
    store.list("tank/@a/").await.unwrap();
    store.get(&key("none"), None, 1).await.unwrap_err();
    let expected = [
        "PutNew tank/@a/started.json",
        "Create tank/@a/chunk",
        "PutPart tank/@a/chunk",
        "PutPart tank/@a/chunk",
        "Finish tank/@a/chunk",
        "List tank/@a/",
        "Get none failed NotFound",
    ];
    assert_eq!(lines(&store), expected);
}

#[tokio::test]
async fn each_page_of_a_listing_is_a_call() {
    let store = MemoryStore::new();
    store.set_page_entries(2);
    for name in [
        "tank/@a/x",
        "tank/@b/x",
        "tank/@c/x",
        "tank/@c/y",
        "tank/@d",
    ] {
        store.plant(name, pattern(1, 1));
    }
    assert_eq!(store.list("tank/@").await.unwrap().len(), 5);
    let folders = store.list_folders("tank/@", '/').await.unwrap();
    assert_eq!(folders, ["tank/@a/", "tank/@b/", "tank/@c/"]);
    let mut visited = Vec::new();
    let mut take = |page: Vec<ListedObject>| {
        visited.push(page.len());
        ControlFlow::Continue(())
    };
    store.visit("tank/@", &mut take).await.unwrap();
    assert_eq!(visited, [2, 2, 1]);
    let calls = [
        ["List tank/@"; 3].as_slice(),
        &["ListFolders tank/@"; 2],
        &["List tank/@"; 3],
    ];
    assert_eq!(lines(&store), calls.concat());
}

#[tokio::test]
async fn memory_store_fails_before_or_after_the_operation_as_requested() {
    let store = MemoryStore::new();
    let (name, bytes) = (key("tank/@a/manifest.json"), pattern(5, 1));
    store.fail(
        Fault::before(StoreErrorKind::Unavailable)
            .of(Operation::PutNew)
            .on("manifest"),
    );
    store.fail(
        Fault::after(StoreErrorKind::Unavailable)
            .of(Operation::PutNew)
            .on("manifest")
            .nth(2),
    );
    store.put_new(&key("other"), bytes.clone()).await.unwrap();
    assert_eq!(
        store.put_new(&name, bytes.clone()).await.unwrap_err().kind,
        StoreErrorKind::Unavailable
    );
    assert_eq!(store.object(name.as_str()), None);
    let lost = store.put_new(&name, bytes.clone()).await.unwrap_err();
    assert_eq!(lost.to_string(), "put tank/@a/manifest.json in memory:");
    assert_eq!(store.object(name.as_str()), Some(bytes.clone()));
    assert_eq!(
        store.put_new(&name, bytes).await.unwrap().0,
        PutOutcome::Identical
    );
    assert_eq!(
        lines(&store)[1..3],
        [
            "PutNew tank/@a/manifest.json failed Unavailable",
            "PutNew tank/@a/manifest.json reply lost Unavailable",
        ]
    );
}

#[tokio::test]
async fn every_call_can_be_made_to_fail() {
    let store = MemoryStore::new();
    store.put_new(&key("x"), Bytes::new()).await.unwrap();
    let mut writer = store.create(&key("y")).await.unwrap();
    store.fail(Fault::before(StoreErrorKind::Throttled).forever());
    let kinds = [
        writer
            .put_part(Bytes::from_static(b"1"))
            .await
            .unwrap_err()
            .kind,
        writer.finish().await.unwrap_err().kind,
        store.create(&key("z")).await.err().unwrap().kind,
        store
            .put_new(&key("z"), Bytes::new())
            .await
            .unwrap_err()
            .kind,
        store.get(&key("x"), None, 1).await.unwrap_err().kind,
        store.head(&key("x")).await.unwrap_err().kind,
        store.list("").await.unwrap_err().kind,
        store.delete(&key("x")).await.unwrap_err().kind,
        store.unfinished("").await.unwrap_err().kind,
    ];
    assert_eq!(kinds, [StoreErrorKind::Throttled; 9]);
    store.heal();
    assert_eq!(store.keys(), ["x"]);
    assert_eq!(
        store.unfinished("").await.unwrap().len(),
        1,
        "as after a lost connection"
    );
}

#[tokio::test]
async fn memory_store_damages_objects_as_requested() {
    let store = MemoryStore::new();
    let (one, two) = (key("one"), key("two"));
    let (_, first) = store.put_new(&one, pattern(9, 1)).await.unwrap();
    let (_, second) = store.put_new(&two, pattern(8, 2)).await.unwrap();

    assert!(store.swap("one", "two") && !store.swap("one", "none") && !store.swap("none", "one"));
    assert_eq!(store.head(&one).await.unwrap(), Some(second));
    assert_eq!(store.get(&two, None, 9).await.unwrap(), pattern(9, 1));

    assert!(store.flip("two", 8) && !store.flip("two", 9));
    assert_ne!(store.get(&two, None, 9).await.unwrap(), pattern(9, 1));
    assert_eq!(
        store.head(&two).await.unwrap(),
        Some(first.clone()),
        "rot is not seen from outside"
    );

    assert!(store.cut("two", 3) && !store.cut("two", 3));
    let cut = store.head(&two).await.unwrap().unwrap();
    assert_eq!(cut.bytes, 3);
    assert_ne!(cut.checksum, first.checksum);

    store.lie("one", None);
    assert_eq!(store.head(&one).await.unwrap(), None);
    assert!(store.lose("one") && !store.lose("one"));
}

#[tokio::test]
async fn false_evidence_is_detected_by_the_writer() {
    let store = MemoryStore::new();
    let (_, honest) = store.put_new(&key("honest"), pattern(10, 1)).await.unwrap();
    store.lie(
        "x",
        Some(Evidence {
            bytes: 11,
            ..honest
        }),
    );
    assert_eq!(
        upload(&store, &key("x"), &pattern(10, 1))
            .await
            .unwrap_err()
            .kind,
        StoreErrorKind::Corrupt
    );
    store.lie("y", None);
    assert_eq!(
        store
            .put_new(&key("y"), pattern(10, 1))
            .await
            .unwrap_err()
            .kind,
        StoreErrorKind::Corrupt
    );
}

#[tokio::test]
async fn tiers_are_as_configured() {
    for (tier, checksum, version) in [
        (EvidenceTier::Crc64nvmeFull, true, false),
        (EvidenceTier::IdPin, false, true),
        (EvidenceTier::SizeOnly, false, false),
    ] {
        let store = MemoryStore::with_tier(MemoryStore::new().traits().clone(), tier);
        let (_, evidence) = store.put_new(&key("x"), pattern(10, 1)).await.unwrap();
        let found = (
            evidence.tier,
            evidence.checksum.is_some(),
            evidence.version_id.is_some(),
        );
        assert_eq!(found, (tier, checksum, version));
    }
}

#[tokio::test]
async fn stores_without_parts_take_spooled_objects_only() {
    let store = MemoryStore::new();
    store.take_no_parts();
    assert_eq!(
        store.create(&key("x")).await.err().unwrap().kind,
        StoreErrorKind::Unsupported
    );

    let dir = TempDir::new().unwrap();
    let spool = Spool::new(Arc::new(store.clone()), dir.path().to_owned());
    let mut writer = spool.create(&key("x")).await.unwrap();
    writer.put_part(pattern(10, 1)).await.unwrap();
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a crash leaves no file"
    );
    assert_eq!(store.keys(), [""; 0]);
    writer.finish().await.unwrap();
    assert_eq!(store.object("x"), Some(pattern(10, 1)));

    let spool = Spool::new(Arc::new(store), dir.path().join("none"));
    let error = spool.create(&key("y")).await.err().unwrap();
    assert_eq!(error.kind, StoreErrorKind::Invalid);
    assert!(
        format!("{error:?}").contains("none"),
        "the folder is named: {error:?}"
    );
}
