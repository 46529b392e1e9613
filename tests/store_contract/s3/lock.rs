//! Object lock on a real server: set by the put, extended later, and never assumed when it is not
//! set.

use super::{assert_says, connect, connect_by, story};
use crate::contract::{key, pattern, upload};
use crate::proxy::{Action, Proxy, first};
use crate::weed::Weed;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use zfs_backup::store::probe::{Ability, Fact};
use zfs_backup::store::{
    LockMode, ObjectLock, S3Settings, StoreDelete, StoreErrorKind, StoreInfo, StoreRead, StoreWrite,
};

fn until(evidence: &zfs_backup::store::Evidence) -> Timestamp {
    evidence.locked_until.as_deref().unwrap().parse().unwrap()
}

async fn create_locking_bucket(weed: &Weed, bucket: &str) {
    let create = weed.client().create_bucket().bucket(bucket);
    let create = create.object_lock_enabled_for_bucket(true);
    create.send().await.unwrap();
}

pub(super) async fn s3_objects_are_locked_at_upload_and_their_locks_extended(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let bucket = "locked";
    create_locking_bucket(&weed, bucket).await;
    let lock = Some(ObjectLock {
        days: 2,
        mode: LockMode::Governance,
        covers_chains: false,
    });
    let store = connect(S3Settings {
        bucket: bucket.to_owned(),
        lock,
        ..settings
    })
    .await;
    assert_eq!(store.object_lock(), lock);
    assert_eq!(
        store.bucket_facts().await.unwrap().unwrap().object_lock,
        Fact::Known(true)
    );
    let (large, small) = (key("tank/@a/large"), key("tank/@a/small"));
    let end = Timestamp::now() + SignedDuration::from_hours(48);
    let near =
        |found: Timestamp, wanted: Timestamp| (found.as_second() - wanted.as_second()).abs() < 300;
    let put = upload(&store, &large, &pattern(10, 1))
        .await
        .unwrap_or_else(|error| panic!("{}", story(&error)));
    assert!(near(until(&put), end), "{put:?}");
    let (_, put) = store.put_new(&small, pattern(10, 1)).await.unwrap();
    assert!(near(until(&put), end), "{put:?}");
    assert_eq!(
        store.delete(&small).await.unwrap_err().kind,
        StoreErrorKind::Denied
    );
    let longer = Timestamp::from_second(end.as_second() + 86_400).unwrap();
    for name in [&large, &small] {
        store
            .extend_lock(name, longer)
            .await
            .unwrap_or_else(|error| panic!("{}", story(&error)));
        // A shorter lock is already covered by the existing one.
        store
            .extend_lock(name, end)
            .await
            .unwrap_or_else(|error| panic!("{}", story(&error)));
        assert!(until(&store.head(name).await.unwrap().unwrap()) >= end);
    }
    assert_eq!(
        store
            .extend_lock(&key("none"), longer)
            .await
            .unwrap_err()
            .kind,
        StoreErrorKind::NotFound
    );
    // The lock of the probe's object ends within seconds, so the probe leaves nothing behind.
    let probe = store.probe("@zfs-backup/probe/00/").await.unwrap().unwrap();
    assert_eq!(probe.object_lock, Ability::Works, "{probe:?}");
    assert_eq!(probe.left_behind, Vec::<String>::new(), "{probe:?}");
    assert_eq!(store.list("").await.unwrap().len(), 2);
}

pub(super) async fn lock_that_the_server_does_not_report_is_unsupported(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let hide = first(usize::MAX, Action::HideHeaders("object-lock"), |head| {
        head.starts_with("head")
    });
    let (proxy, bucket) = (Proxy::start(&weed.endpoint(), hide), "locked-too");
    weed.client()
        .create_bucket()
        .bucket(bucket)
        .object_lock_enabled_for_bucket(true)
        .send()
        .await
        .unwrap();
    let lock = Some(ObjectLock {
        days: 2,
        mode: LockMode::Governance,
        covers_chains: false,
    });
    let store = connect_by(
        &proxy,
        S3Settings {
            bucket: bucket.to_owned(),
            lock,
            ..settings
        },
    )
    .await;
    let put = store
        .put_new(&key("small"), pattern(9, 1))
        .await
        .map(|(_, evidence)| evidence);
    for result in [put, upload(&store, &key("large"), &pattern(9, 1)).await] {
        let error = result.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unsupported);
        assert_says(&error, &["lock ", "the store shows none", "object lock on"]);
    }
    let refuse = first(usize::MAX, Action::Refuse(501, "NotImplemented"), |head| {
        head.contains("?retention")
    });
    let store = connect_by(
        &Proxy::start(&weed.endpoint(), refuse),
        S3Settings {
            lock,
            ..weed.settings(bucket)
        },
    )
    .await;
    let later = Timestamp::now() + SignedDuration::from_hours(100);
    assert_eq!(
        store
            .extend_lock(&key("small"), later)
            .await
            .unwrap_err()
            .kind,
        StoreErrorKind::Unsupported
    );
}

pub(super) async fn probe_locks_an_object_that_is_sent_in_parts(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let bucket = "locks-parts";
    create_locking_bucket(&weed, bucket).await;
    let begins = |head: &str| head.starts_with("post") && head.contains("object-lock-mode");
    let looks = |head: &str| head.starts_with("head");
    for (asks, action, result) in [
        (
            begins as fn(&str) -> bool,
            Action::Refuse(400, "InvalidRequest"),
            Ability::Refused,
        ),
        (
            begins,
            Action::Refuse(501, "NotImplemented"),
            Ability::Refused,
        ),
        (
            begins,
            Action::Refuse(500, "InternalError"),
            Ability::Unknown,
        ),
        (looks, Action::HideHeaders("object-lock"), Ability::Ignored),
    ] {
        let proxy = Proxy::start(&weed.endpoint(), first(usize::MAX, action, asks));
        let store = connect_by(
            &proxy,
            S3Settings {
                bucket: bucket.to_owned(),
                pause_first: Duration::from_millis(1),
                lock: Some(ObjectLock {
                    days: 2,
                    mode: LockMode::Compliance,
                    covers_chains: false,
                }),
                ..settings.clone()
            },
        )
        .await;
        let probe = store.probe("@zfs-backup/probe/00/").await;
        let probe = probe.unwrap_or_else(|error| panic!("{}", story(&error)));
        let probe = probe.unwrap();
        assert_eq!(probe.object_lock, result, "{probe:?}");
        let is_ignored = result == Ability::Ignored;
        assert_eq!(probe.notes.is_empty(), is_ignored, "{probe:?}");
        // A server that does not show the lock of an object has locked it all the same.
        assert_eq!(probe.left_behind, Vec::<String>::new(), "{probe:?}");
    }
}
