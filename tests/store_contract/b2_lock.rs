//! Probe and file lock on the simulator.

use crate::b2::{assert_says, connect};
use crate::b2_sim::{B2Sim, BUCKET, Fault};
use crate::contract::{key, pattern, upload};
use jiff::{SignedDuration, Timestamp};
use zfs_backup::store::probe::{Ability, Deleting, Fact};
use zfs_backup::store::{
    B2Settings, LockMode, ObjectLock, StoreDelete, StoreErrorKind, StoreInfo, StoreRead, StoreWrite,
};

const PART: usize = 64 * 1024;
const UNDER: &str = "@zfs-backup/probe/0123456789abcdef/";
const LOCK: ObjectLock = ObjectLock {
    days: 2,
    mode: LockMode::Compliance,
    covers_chains: false,
};

#[tokio::test]
async fn b2_probe_leaves_no_file_even_after_an_error() {
    let sim = B2Sim::start();
    let store = connect(sim.settings());
    let probe = store.probe(UNDER).await.unwrap().unwrap();
    assert_eq!(
        (probe.list_uploads, probe.abort_uploads),
        (Ability::Works, Ability::Works)
    );
    assert_eq!(
        (probe.deleting, probe.part_bytes_min),
        (Deleting::RemovesVersions, Some(PART as u64))
    );
    assert!(
        probe.clock_ahead_seconds.unwrap().abs() <= 2 && probe.left_behind.is_empty(),
        "{probe:?}"
    );
    assert_eq!(sim.versions(), []);
    for call in [
        "b2_start_large_file",
        "b2_list_unfinished_large_files",
        "b2_cancel_large_file",
    ] {
        // The number of attempts of one call: the probe then fails, and its clean-up does not.
        sim.fail(call, 0, 6, Fault::Status(500, "internal_error"));
        let error = store.probe(UNDER).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{call}");
        assert_eq!((sim.failures_left(), sim.versions()), (0, vec![]), "{call}");
    }
    let rules = serde_json::json!([
        {"fileNamePrefix": "", "daysFromHidingToDeleting": 3, "daysFromStartingToCancelingUnfinishedLargeFiles": 7},
        {"fileNamePrefix": "nas/", "daysFromUploadingToHiding": 30},
    ]);
    sim.describe_bucket(rules, false);
    let facts = store.bucket_facts().await.unwrap().unwrap();
    let Fact::Known(rules) = facts.lifecycle else {
        panic!("{:?}", facts.lifecycle)
    };
    assert_eq!(
        (rules[0].hidden_days, rules[0].unfinished_days),
        (Some(3), Some(7))
    );
    assert_eq!(
        (rules.len(), rules[1].expires.as_deref()),
        (2, Some("30 days"))
    );
    let few = sim.add_key("few", "listFiles readFiles writeFiles", &[BUCKET], None);
    let store = connect(B2Settings {
        credentials: Some(few),
        ..sim.settings()
    });
    let probe = store.probe(UNDER).await.unwrap().unwrap();
    assert_eq!(probe.deleting, Deleting::Hides);
    assert_eq!(probe.left_behind, [format!("{UNDER}small")]);
    let facts = store.bucket_facts().await.unwrap().unwrap();
    assert!(matches!(facts.lifecycle, Fact::Unknown(why) if why.contains("listBuckets")));
    let Fact::Known(rights) = facts.rights else {
        panic!("a key always says what it may do")
    };
    assert_eq!(
        (rights.may.len(), rights.buckets),
        (3, Some(vec![BUCKET.to_owned()]))
    );
}

#[tokio::test]
async fn b2_files_are_locked_at_upload_and_their_locks_extended() {
    let sim = B2Sim::start();
    let settings = B2Settings {
        lock: Some(LOCK),
        ..sim.settings()
    };
    let unlocked = connect(settings.clone())
        .put_new(&key("x"), pattern(9, 1))
        .await
        .map(drop)
        .unwrap_err();
    assert_says(&unlocked, &["put x", "Object Lock"]);
    sim.allow_locks();
    let store = connect(settings.clone());
    let end = Timestamp::now() + SignedDuration::from_hours(48);
    let near = |text: Option<String>, wanted: Timestamp| {
        let found: Timestamp = text.unwrap().parse().unwrap();
        assert!(
            (found.as_second() - wanted.as_second()).abs() < 60,
            "{found} {wanted}"
        );
    };
    near(
        store
            .put_new(&key("small"), pattern(9, 1))
            .await
            .unwrap()
            .1
            .locked_until,
        end,
    );
    near(
        upload(&store, &key("large"), &pattern(PART + 9, 1))
            .await
            .unwrap()
            .locked_until,
        end,
    );
    for name in ["small", "large"] {
        assert_eq!(
            store.delete(&key(name)).await.unwrap_err().kind,
            StoreErrorKind::Denied
        );
        let longer = end + SignedDuration::from_hours(24);
        store.extend_lock(&key(name), longer).await.unwrap();
        store.extend_lock(&key(name), end).await.unwrap();
        near(
            store.head(&key(name)).await.unwrap().unwrap().locked_until,
            longer,
        );
        let millis = u64::try_from(longer.as_millisecond()).unwrap();
        assert!(
            sim.locked_until(name).unwrap().abs_diff(millis) < 60_000,
            "a shorter lock takes nothing back"
        );
    }
    assert_eq!(
        store.extend_lock(&key("none"), end).await.unwrap_err().kind,
        StoreErrorKind::NotFound
    );

    let blind = sim.add_key(
        "blind",
        "listFiles readFiles writeFiles deleteFiles writeFileRetentions",
        &[BUCKET],
        None,
    );
    let store = connect(B2Settings {
        credentials: Some(blind),
        ..settings
    });
    let error = store
        .put_new(&key("unseen"), pattern(9, 1))
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(
        error.kind,
        StoreErrorKind::Unsupported,
        "what cannot be seen is not taken for locked"
    );
    assert_says(
        &error,
        &["lock unseen", "the store shows none", "readFileRetentions"],
    );
    // A probe locks no object.
    let probe = store.probe(UNDER).await.unwrap().unwrap();
    assert_eq!(probe.left_behind, Vec::<String>::new());
}
