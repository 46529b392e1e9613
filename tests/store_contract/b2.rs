//! Tests for B2 only: its evidence, keys with few rights, versions and hide markers, upload URLs,
//! pages.

use crate::b2_sim::{B2Sim, BUCKET, Fault, KEY, KEY_ID, SimOptions, credentials};
use crate::contract::{key, pattern, upload};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use zfs_backup::store::{
    B2Settings, B2Store, EvidenceTier, PutOutcome, Spool, StoreDelete, StoreError, StoreErrorKind,
    StoreRead, StoreWrite,
};

const PART: usize = 64 * 1024;

pub(crate) fn connect(settings: B2Settings) -> B2Store {
    B2Store::new(settings).unwrap()
}

/// Checks the complete error text as a user would see it.
pub(crate) fn assert_says(error: &StoreError, parts: &[&str]) {
    let mut story = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        story += &format!(": {source}");
        next = source.source();
    }
    story += &format!("\nhint: {}", error.hint.as_deref().unwrap_or("none"));
    println!("    {story}");
    for part in parts {
        assert!(story.contains(part), "{part:?} is missing in: {story}");
    }
    for text in [story, format!("{error:?}")] {
        assert!(
            !text.contains(KEY) && !text.contains("_secret"),
            "a secret: {text}"
        );
        assert!(!text.contains("/b2api/"), "an URL: {text}");
    }
}

fn upload_of(name: &str, bytes: usize) -> (String, String, usize) {
    (name.to_owned(), "upload".to_owned(), bytes)
}

fn sha1_of(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[tokio::test]
async fn evidence_is_b2s_sha1_up_to_one_part_and_the_id_above() {
    let sim = B2Sim::start();
    let store = connect(sim.settings());
    for (len, tier) in [
        (0, EvidenceTier::Sha1),
        (PART, EvidenceTier::Sha1),
        (PART + 1, EvidenceTier::IdPin),
    ] {
        let (name, bytes) = (key(&format!("n{len}")), pattern(len, 1));
        let evidence = upload(&store, &name, &bytes).await.unwrap();
        let large = tier == EvidenceTier::IdPin;
        assert_eq!((evidence.tier, evidence.bytes), (tier, len as u64));
        assert_eq!(evidence.checksum, (!large).then(|| sha1_of(&bytes)));
        assert_eq!(evidence.part_bytes, large.then_some(PART as u64));
        assert!(evidence.version_id.is_some());
    }
    assert_eq!(
        sim.requests("b2_upload_file"),
        2,
        "one request for each that fits into one part"
    );
    assert_eq!(sim.requests("b2_upload_part"), 2);
}

#[tokio::test]
async fn a_spool_lets_large_files_keep_their_sha1() {
    let (sim, dir) = (B2Sim::start(), TempDir::new().unwrap());
    let spool = Spool::new(Arc::new(connect(sim.settings())), dir.path().to_owned());
    for (len, tier) in [
        (PART, EvidenceTier::Sha1),
        (3 * PART + 5, EvidenceTier::IdPin),
    ] {
        let (name, bytes) = (key(&format!("n{len}")), pattern(len, 1));
        let evidence = upload(&spool, &name, &bytes).await.unwrap();
        assert_eq!(
            (evidence.tier, evidence.checksum),
            (tier, Some(sha1_of(&bytes)))
        );
    }
}

#[tokio::test]
async fn evidence_of_a_thousand_objects_takes_one_b2_listing() {
    let sim = B2Sim::start();
    for n in 0..1000 {
        sim.plant(&format!("tank/@a/{n:08}"), b"x");
    }
    sim.hide("tank/@a/00000007");
    let store = connect(sim.settings());
    let known = store.evidence_under("tank/@a/").await.unwrap().unwrap();
    assert_eq!(known.len(), 999);
    assert_eq!(
        sim.tally(),
        [
            ("b2_authorize_account".to_owned(), 1),
            ("b2_list_buckets".to_owned(), 1),
            ("b2_list_file_versions".to_owned(), 1),
        ]
    );
    for (name, evidence) in known.into_iter().step_by(100) {
        assert_eq!(store.head(&key(&name)).await.unwrap(), Some(evidence));
    }
}

#[tokio::test]
async fn b2_folders_take_one_entry_each() {
    let sim = B2Sim::start_with(SimOptions {
        page_max: 2,
        ..SimOptions::default()
    });
    for dataset in ["tank", "tank/a", "tank/b"] {
        for n in 0..50 {
            sim.plant(&format!("{dataset}/@a/{n:08}"), b"x");
        }
    }
    sim.plant("tank/gone/@a/x", b"x");
    sim.hide("tank/gone/@a/x");
    let store = connect(sim.settings());
    let found = store.list_folders("", '@').await.unwrap();
    assert_eq!(found, ["tank/@", "tank/a/@", "tank/b/@"]);
    assert_eq!(
        sim.tally(),
        [
            ("b2_authorize_account".to_owned(), 1),
            ("b2_list_buckets".to_owned(), 1),
            ("b2_list_file_names".to_owned(), 2),
        ]
    );
}

#[tokio::test]
async fn b2_listings_read_every_page() {
    let sim = B2Sim::start_with(SimOptions {
        page_max: 2,
        ..SimOptions::default()
    });
    let store = connect(sim.settings());
    let names = ["a", "b", "b.1", "c", "d"];
    for name in names {
        for _ in 0..3 {
            sim.plant(name, name.as_bytes());
        }
    }
    sim.hide("c");
    let listed: Vec<String> = store
        .list("")
        .await
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .collect();
    assert_eq!(listed, ["a", "b", "b.1", "d"]);
    store.delete(&key("b")).await.unwrap();
    assert!(sim.versions().iter().all(|(name, ..)| name != "b"));
    assert_eq!(sim.versions().len(), 3 * 4 + 1, "its neighbours stay");
    let mut writers = Vec::new();
    for n in 0..5 {
        let mut writer = store.create(&key(&format!("large{n}"))).await.unwrap();
        writer.put_part(pattern(PART, 1)).await.unwrap();
        writer.put_part(pattern(PART, 1)).await.unwrap();
        writers.push(writer);
    }
    assert_eq!(store.unfinished("large").await.unwrap().len(), 5);
    assert_eq!(
        store.list("").await.unwrap().len(),
        3,
        "what was begun is no object"
    );
}

#[tokio::test]
async fn hidden_b2_object_is_absent_and_its_key_is_free() {
    let sim = B2Sim::start();
    let (store, name) = (connect(sim.settings()), key("x"));
    sim.plant("x", b"old");
    sim.hide("x");
    assert_eq!(store.head(&name).await.unwrap(), None);
    assert!(store.any_version(&name).await.unwrap());
    assert_eq!(store.list("").await.unwrap(), []);
    assert_eq!(
        store.get(&name, None, 10).await.unwrap_err().kind,
        StoreErrorKind::NotFound
    );
    assert_eq!(
        store.put_new(&name, pattern(5, 1)).await.unwrap().0,
        PutOutcome::Created
    );
    assert_eq!(sim.versions().len(), 3);
    store.delete(&name).await.unwrap();
    assert_eq!(sim.versions(), [], "all versions and markers are gone");
    assert!(!store.any_version(&name).await.unwrap());
}

#[tokio::test]
async fn b2_bucket_that_vanishes_is_no_missing_object() {
    let sim = B2Sim::start();
    let (store, name, bytes) = (connect(sim.settings()), key("x"), pattern(9, 1));
    store.put_new(&name, bytes.clone()).await.unwrap();
    assert_eq!(store.head(&key("y")).await.unwrap(), None);
    sim.remove_bucket();
    let errors = [
        store.head(&name).await.map(drop),
        store.get(&name, None, 9).await.map(drop),
        store.list("").await.map(drop),
        store.any_version(&name).await.map(drop),
        store.delete(&name).await,
        store.put_new(&name, bytes).await.map(drop),
        upload(&store, &key("large"), &pattern(PART + 1, 1))
            .await
            .map(drop),
    ];
    for (n, error) in errors.into_iter().enumerate() {
        let error = error.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::NoBucket, "{n}: {error}");
        let hint = error.hint.as_deref().unwrap_or_default();
        assert!(hint.contains("create the bucket"), "{n}: {hint}");
    }
}

#[tokio::test]
async fn delete_with_a_key_without_delete_rights_hides_the_b2_file() {
    let sim = B2Sim::start();
    let credentials = Some(sim.add_key(
        "append",
        "listBuckets listFiles readFiles writeFiles",
        &[],
        None,
    ));
    let (store, name) = (
        connect(B2Settings {
            credentials,
            ..sim.settings()
        }),
        key("x"),
    );
    store.put_new(&name, pattern(5, 1)).await.unwrap();
    for _ in 0..2 {
        store.delete(&name).await.unwrap();
        assert_eq!(store.head(&name).await.unwrap(), None);
        assert_eq!(store.list("").await.unwrap(), []);
    }
    assert_eq!(
        sim.requests("b2_hide_file"),
        1,
        "what is hidden is not hidden again"
    );
    assert_eq!(
        sim.versions(),
        [("x".to_owned(), "hide".to_owned(), 0), upload_of("x", 5)]
    );
}

#[tokio::test]
async fn later_of_two_concurrent_b2_uploads_is_removed() {
    for large in [false, true] {
        let sim = B2Sim::start();
        let store = connect(sim.settings());
        let call = if large {
            "b2_finish_large_file"
        } else {
            "b2_upload_file"
        };
        let is_held = Arc::new(AtomicBool::new(true));
        sim.fail(call, 0, 1, Fault::Held(Arc::clone(&is_held)));
        let late = tokio::spawn(async move {
            let bytes = pattern(if large { PART + 1 } else { 10 }, 1);
            upload(&store, &key("x"), &bytes).await
        });
        while sim.requests(call) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sim.plant("x", b"somebody else's");
        is_held.store(false, Ordering::SeqCst);
        assert_eq!(
            late.await.unwrap().unwrap_err().kind,
            StoreErrorKind::AlreadyExists,
            "large: {large}"
        );
        assert_eq!(sim.versions(), [upload_of("x", 15)], "large: {large}");
    }
}

#[tokio::test]
async fn the_same_bytes_twice_become_one_version() {
    let sim = B2Sim::start();
    let (store, bytes) = (connect(sim.settings()), pattern(10, 1));
    let is_held = Arc::new(AtomicBool::new(true));
    sim.fail("b2_upload_file", 0, 1, Fault::Held(Arc::clone(&is_held)));
    let (sent, late) = (bytes.clone(), store.clone());
    let late = tokio::spawn(async move { late.put_new(&key("x"), sent).await });
    while sim.requests("b2_upload_file") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sim.plant("x", &bytes);
    is_held.store(false, Ordering::SeqCst);
    let (_, evidence) = late.await.unwrap().unwrap();
    assert_eq!(sim.versions(), [upload_of("x", 10)]);
    assert_eq!(store.head(&key("x")).await.unwrap(), Some(evidence));
}

#[tokio::test]
async fn b2_upload_urls_are_reused_and_never_shared() {
    let sim = B2Sim::start();
    let store = connect(sim.settings());
    let put = |n: u64| {
        let store = store.clone();
        async move { store.put_new(&key(&format!("{n}")), pattern(100, n)).await }
    };
    stream::iter(0..60)
        .map(put)
        .buffer_unordered(6)
        .try_collect::<Vec<_>>()
        .await
        .unwrap();
    assert_eq!(sim.requests("b2_upload_file"), 60, "none was refused");
    assert!(sim.requests("b2_get_upload_url") <= 6, "{:?}", sim.tally());
}

#[tokio::test]
async fn b2_parts_in_flight_are_bounded() {
    for concurrency in [1, 3] {
        let sim = B2Sim::start();
        let is_held = Arc::new(AtomicBool::new(true));
        sim.fail("b2_upload_part", 0, 100, Fault::Held(Arc::clone(&is_held)));
        let store = connect(B2Settings {
            concurrency,
            ..sim.settings()
        });
        let (name, bytes) = (key("x"), pattern(8 * PART, 1));
        let (uploaded, ()) = tokio::join!(upload(&store, &name, &bytes), async {
            while sim.parts_at_once_max() < concurrency {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // A part too many would come now.
            tokio::time::sleep(Duration::from_millis(100)).await;
            is_held.store(false, Ordering::SeqCst);
        });
        uploaded.unwrap();
        assert_eq!(sim.parts_at_once_max(), concurrency);
    }
}

#[tokio::test]
async fn a_key_for_one_bucket_and_prefix_is_enough() {
    for api_version_max in [3, 4] {
        let sim = B2Sim::start_with(SimOptions {
            api_version_max,
            ..SimOptions::default()
        });
        let rights = "listFiles readFiles writeFiles deleteFiles";
        let credentials = Some(sim.add_key("narrow", rights, &[BUCKET], Some("nas/")));
        let store = connect(B2Settings {
            credentials,
            prefix: "nas/1".to_owned(),
            ..sim.settings()
        });
        store.check_bucket().await.unwrap();
        assert_eq!(
            sim.requests("b2_list_buckets"),
            0,
            "the authorization says its id"
        );
        for (name, len) in [("small", 10), ("large", PART + 1)] {
            upload(&store, &key(name), &pattern(len, 1)).await.unwrap();
            assert_eq!(
                store.get(&key(name), Some(1..9), 10).await.unwrap(),
                pattern(len, 1).slice(1..9)
            );
        }
        assert_eq!(store.list("").await.unwrap().len(), 2);
        assert_eq!(store.unfinished("").await.unwrap(), []);
        store.delete(&key("small")).await.unwrap();
        assert_eq!(sim.versions(), [upload_of("nas/1/large", PART + 1)]);
    }
}

#[tokio::test]
async fn impossible_b2_settings_are_refused_with_advice() {
    use StoreErrorKind::{Denied, Invalid, NoBucket, Unavailable};
    let sim = B2Sim::start();
    sim.add_bucket("another");
    let narrow = sim.add_key("narrow", "listFiles", &["another"], None);
    let prefixed = sim.add_key("prefixed", "listFiles", &[BUCKET], Some("nas/"));
    let blind = sim.add_key("blind", "readFiles", &[], None);
    let settings = |credentials| B2Settings {
        credentials: Some(credentials),
        ..sim.settings()
    };
    let bucket = |name: &str| B2Settings {
        bucket: name.to_owned(),
        ..sim.settings()
    };
    for (settings, kind, part) in [
        (
            settings(credentials(KEY_ID, "wrong")),
            Denied,
            "does not accept this application key",
        ),
        (
            settings(credentials("nobody", KEY)),
            Denied,
            "does not accept this application key",
        ),
        (
            B2Settings {
                credentials: None,
                ..sim.settings()
            },
            Denied,
            "B2_APPLICATION_KEY_ID",
        ),
        (settings(narrow), Denied, "not for the bucket \"contract\""),
        (
            settings(prefixed),
            Denied,
            "only for names that begin with \"nas/\"",
        ),
        (settings(blind), Denied, "listBuckets"),
        (
            bucket("no-such-bucket"),
            NoBucket,
            "create the bucket \"no-such-bucket\"",
        ),
        (
            B2Settings {
                part_bytes: PART - 1,
                ..sim.settings()
            },
            Invalid,
            "raise `part_size` under [b2]",
        ),
        (
            B2Settings {
                endpoint: Some("http://127.0.0.1:9".to_owned()),
                ..sim.settings()
            },
            Unavailable,
            "cannot reach",
        ),
    ] {
        let store = connect(B2Settings {
            pause_first: Duration::from_millis(1),
            ..settings
        });
        let name = key("x");
        let errors = [
            store.check_bucket().await.unwrap_err(),
            store.head(&name).await.unwrap_err(),
            store.get(&name, None, 1).await.unwrap_err(),
            store.put_new(&name, pattern(1, 1)).await.unwrap_err(),
            upload(&store, &name, &pattern(PART, 1)).await.unwrap_err(),
            store.list("").await.unwrap_err(),
            store.delete(&name).await.unwrap_err(),
            store.unfinished("").await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind, kind, "{error:?}");
            assert_says(&error, &[part]);
        }
    }
    assert_eq!(sim.versions(), []);
}

#[tokio::test]
async fn names_that_b2_refuses_are_refused_here() {
    let sim = B2Sim::start();
    let store = connect(sim.settings());
    let long = "a".repeat(1025);
    let error = store.put_new(&key(&long), pattern(1, 1)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid);
    assert_says(&error, &["longer than 1024 bytes"]);
}
