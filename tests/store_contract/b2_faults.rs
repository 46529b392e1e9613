//! Everyday faults of B2, each tested to its end: either the object is complete, or the failure has
//! its kind and its hint; in both cases nothing is left over.

use crate::b2::{assert_says, connect};
use crate::b2_sim::{B2Sim, Fault};
use crate::contract::{key, pattern, upload};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::time::{Duration, Instant};
use zfs_backup::store::{
    B2Settings, B2Store, Evidence, StoreDelete, StoreError, StoreErrorKind, StoreRead, StoreWrite,
};

const PART: usize = 64 * 1024;

const UPLOAD: &str = "b2_upload_file";
const PART_CALL: &str = "b2_upload_part";
const START: &str = "b2_start_large_file";
const FINISH: &str = "b2_finish_large_file";
const LIST: &str = "b2_list_file_versions";

/// Puts a small object or one of three parts.
async fn store_object(store: &B2Store, large: bool) -> (Bytes, Result<Evidence, StoreError>) {
    let bytes = pattern(if large { 2 * PART + 9 } else { 1000 }, 1);
    let stored = match large {
        true => upload(store, &key("x"), &bytes).await,
        false => store
            .put_new(&key("x"), bytes.clone())
            .await
            .map(|(_, evidence)| evidence),
    };
    (bytes, stored)
}

/// Stores an object while faults occur. The object must then exist completely and once, with
/// nothing else in the bucket.
async fn ridden_out(sim: &B2Sim, store: &B2Store, large: bool, what: &str) {
    let (bytes, stored) = store_object(store, large).await;
    let evidence = stored.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!(
        store.head(&key("x")).await.unwrap(),
        Some(evidence),
        "{what}"
    );
    assert_eq!(
        store.get(&key("x"), None, 1 << 20).await.unwrap(),
        bytes,
        "{what}"
    );
    assert_eq!(
        sim.versions(),
        [("x".to_owned(), "upload".to_owned(), bytes.len())],
        "{what}"
    );
}

#[tokio::test]
async fn temporary_b2_failures_are_retried() {
    let busy = || Fault::Status(503, "service_unavailable");
    let expired = || Fault::Status(401, "expired_auth_token");
    let bad = || Fault::Status(401, "bad_auth_token");
    for (large, call, times, fault) in [
        (false, UPLOAD, 2, busy()),
        (false, UPLOAD, 1, Fault::Status(500, "internal_error")),
        (false, UPLOAD, 1, Fault::Status(408, "request_timeout")),
        (false, UPLOAD, 1, Fault::Status(400, "auth_token_limit")),
        (false, UPLOAD, 2, expired()),
        (false, UPLOAD, 1, bad()),
        (false, UPLOAD, 1, Fault::Busy(0)),
        (false, UPLOAD, 2, Fault::Reset),
        (false, UPLOAD, 1, Fault::LoseReply),
        (false, UPLOAD, 2, Fault::Garble),
        (false, "b2_get_upload_url", 2, busy()),
        (false, "b2_get_upload_url", 1, expired()),
        (false, "b2_authorize_account", 2, busy()),
        (false, "b2_authorize_account", 1, Fault::LoseReply),
        (false, "b2_list_buckets", 1, busy()),
        (false, "b2_list_buckets", 1, expired()),
        (false, LIST, 2, Fault::LoseReply),
        (false, LIST, 1, expired()),
        (false, LIST, 1, Fault::CutBody(10)),
        (true, START, 2, busy()),
        (true, START, 1, Fault::Status(500, "internal_error")),
        (true, START, 1, Fault::LoseReply),
        (true, START, 1, expired()),
        (true, "b2_get_upload_part_url", 2, busy()),
        (true, "b2_get_upload_part_url", 1, expired()),
        (true, PART_CALL, 3, busy()),
        (true, PART_CALL, 3, Fault::Reset),
        (true, PART_CALL, 2, Fault::LoseReply),
        (true, PART_CALL, 2, Fault::Garble),
        (true, PART_CALL, 1, expired()),
        (true, PART_CALL, 1, Fault::Busy(0)),
        (true, FINISH, 2, busy()),
        (true, FINISH, 1, Fault::LoseReply),
        (true, FINISH, 1, Fault::Reset),
        (true, FINISH, 1, Fault::Status(500, "internal_error")),
        (true, FINISH, 1, bad()),
    ] {
        let sim = B2Sim::start();
        let what = format!("{call} {times} x {fault:?}");
        sim.fail(call, 0, times, fault);
        ridden_out(&sim, &connect(sim.settings()), large, &what).await;
        assert_eq!(sim.failures_left(), 0, "{what}: nothing failed");
    }
}

#[tokio::test]
async fn b2_call_with_a_lost_reply_is_not_repeated() {
    let sim = B2Sim::start();
    let store = connect(sim.settings());
    sim.fail(UPLOAD, 0, 1, Fault::LoseReply);
    ridden_out(&sim, &store, false, "small").await;
    assert_eq!(
        sim.requests(UPLOAD),
        1,
        "it was there: nobody sends it again"
    );
    store.delete(&key("x")).await.unwrap();
    for call in [START, FINISH] {
        sim.forget_requests();
        sim.fail(call, 0, 1, Fault::LoseReply);
        ridden_out(&sim, &store, true, call).await;
        assert_eq!(sim.requests(call), 1, "{call}");
        store.delete(&key("x")).await.unwrap();
    }
}

#[tokio::test]
async fn deletes_and_cancels_survive_lost_replies() {
    let sim = B2Sim::start();
    let store = connect(sim.settings());
    let (_, stored) = store_object(&store, false).await;
    stored.unwrap();
    sim.fail("b2_delete_file_version", 0, 1, Fault::LoseReply);
    store.delete(&key("x")).await.unwrap();
    sim.fail("b2_cancel_large_file", 0, 1, Fault::LoseReply);
    let mut writer = store.create(&key("x")).await.unwrap();
    for _ in 0..2 {
        writer.put_part(pattern(PART, 1)).await.unwrap();
    }
    writer.abort().await.unwrap();
    assert_eq!(sim.versions(), []);
}

#[tokio::test]
async fn b2_retry_waits_for_the_announced_retry_after() {
    let sim = B2Sim::start();
    sim.fail(UPLOAD, 0, 1, Fault::Busy(1));
    let begun = Instant::now();
    ridden_out(&sim, &connect(sim.settings()), false, "429").await;
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn silent_or_slow_b2_attempt_ends_at_its_time_limit() {
    for (large, call, fault) in [
        (false, UPLOAD, Fault::Silence(Duration::from_secs(60))),
        (true, PART_CALL, Fault::SlowReader(Duration::from_secs(10))),
        (false, LIST, Fault::Silence(Duration::from_secs(60))),
    ] {
        let sim = B2Sim::start();
        sim.fail(call, 0, 1, fault);
        // Long enough for every other request on a busy machine.
        let attempt_slack = Duration::from_secs(2);
        let store = connect(B2Settings {
            attempt_slack,
            rate_bytes_min: 1 << 40,
            ..sim.settings()
        });
        let (_, stored) = store_object(&store, large).await;
        assert!(
            stored.is_err() || sim.requests(call) > 1,
            "{call}: nobody waited in vain"
        );
        stored.unwrap_or_else(|error| panic!("{call}: {error:?}"));
    }
}

#[tokio::test]
async fn permanent_b2_failures_have_their_kind_and_leave_no_file() {
    use StoreErrorKind::{Corrupt, Denied, Full, Invalid, Throttled, Unavailable};
    for (large, call, fault, kind, part) in [
        (
            false,
            UPLOAD,
            Fault::Status(403, "storage_cap_exceeded"),
            Full,
            "Caps & Alerts",
        ),
        (
            true,
            PART_CALL,
            Fault::Status(403, "cap_exceeded"),
            Full,
            "Caps & Alerts",
        ),
        (
            false,
            LIST,
            Fault::Status(403, "transaction_cap_exceeded"),
            Full,
            "Caps & Alerts",
        ),
        (
            false,
            UPLOAD,
            Fault::Status(503, "service_unavailable"),
            Unavailable,
            "503",
        ),
        (true, PART_CALL, Fault::Reset, Unavailable, "upload part"),
        (
            true,
            FINISH,
            Fault::Status(500, "internal_error"),
            Unavailable,
            "complete upload",
        ),
        (
            true,
            START,
            Fault::Status(429, "too_many_requests"),
            Throttled,
            "429",
        ),
        (false, UPLOAD, Fault::Garble, Corrupt, "Sha1 did not match"),
        (
            true,
            PART_CALL,
            Fault::Garble,
            Corrupt,
            "Sha1 did not match",
        ),
        (
            true,
            FINISH,
            Fault::Status(400, "part_sha1_mismatch"),
            Corrupt,
            "part_sha1_mismatch",
        ),
        (
            false,
            "b2_get_upload_url",
            Fault::Status(401, "unauthorized"),
            Denied,
            "writeFiles",
        ),
        (
            true,
            START,
            Fault::Status(401, "unauthorized"),
            Denied,
            "writeFiles",
        ),
        (
            true,
            START,
            Fault::Status(400, "bad_request"),
            Invalid,
            "bad_request",
        ),
    ] {
        let sim = B2Sim::start();
        let what = format!("{call} {fault:?}");
        sim.fail(call, 0, 1000, fault);
        let store = connect(B2Settings {
            pause_first: Duration::from_millis(1),
            ..sim.settings()
        });
        let error = store_object(&store, large).await.1.unwrap_err();
        assert_eq!(error.kind, kind, "{what}: {error:?}");
        assert_says(&error, &[part, "x in b2:contract"]);
        assert_eq!(sim.versions(), [], "{what}");
    }
}

#[tokio::test]
async fn different_sha1_reported_by_b2_is_an_error() {
    let sim = B2Sim::start();
    sim.fail(UPLOAD, 0, 1, Fault::LieSha1);
    let error = store_object(&connect(sim.settings()), false)
        .await
        .1
        .unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
    assert_says(
        &error,
        &["were sent and accepted, but the store has 1000 bytes with SHA-1 0000"],
    );
}

#[tokio::test]
async fn truncated_b2_bodies_are_fetched_again() {
    let sim = B2Sim::start();
    let store = connect(sim.settings());
    let bytes = pattern(1000, 1);
    store.put_new(&key("x"), bytes.clone()).await.unwrap();
    let call = "b2_download_file_by_name";
    for fault in [
        Fault::CutBody(0),
        Fault::CutBody(999),
        Fault::Reset,
        Fault::Status(503, "busy"),
        Fault::Status(401, "expired_auth_token"),
    ] {
        sim.fail(call, 0, 2, fault.clone());
        assert_eq!(
            store.get(&key("x"), None, 1000).await.unwrap(),
            bytes,
            "{fault:?}"
        );
        sim.fail(call, 0, 1, fault.clone());
        assert_eq!(
            store.get(&key("x"), Some(5..900), 1000).await.unwrap(),
            bytes.slice(5..900),
            "{fault:?}"
        );
    }
    sim.fail(call, 0, 1000, Fault::CutBody(500));
    assert_eq!(
        store.get(&key("x"), None, 1000).await.unwrap_err().kind,
        StoreErrorKind::Unavailable
    );
}

#[tokio::test]
async fn one_task_renews_the_token_for_all() {
    let sim = B2Sim::start();
    let store = connect(sim.settings());
    store.put_new(&key("x"), pattern(10, 1)).await.unwrap();
    assert_eq!(sim.requests("b2_authorize_account"), 1);
    for round in 2..5 {
        sim.expire_tokens();
        let name = key("x");
        let heads = stream::iter(0..20)
            .map(|_| store.head(&name))
            .buffer_unordered(20);
        assert!(
            heads
                .all(|head| async move { head.unwrap().is_some() })
                .await
        );
        assert_eq!(sim.requests("b2_authorize_account"), round);
        assert_eq!(
            sim.requests("b2_list_buckets"),
            1,
            "the bucket does not change its id"
        );
        // The upload URL has expired too.
        store
            .put_new(&key(&format!("y{round}")), pattern(10, 1))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn b2_uploads_complete_with_one_failed_request_in_twenty() {
    for seed in [1, 22, 333] {
        let sim = B2Sim::start();
        sim.fail_at_random(seed * 0x9e37_79b9, 20);
        let store = connect(B2Settings {
            pause_first: Duration::from_millis(1),
            ..sim.settings()
        });
        let sizes = (0..60).map(|n| if n % 6 == 0 { 3 * PART + n } else { 100 + n });
        let objects: Vec<(String, Bytes)> = sizes
            .enumerate()
            .map(|(n, len)| (format!("o{n:02}"), pattern(len, n as u64)))
            .collect();
        let put = |(name, bytes): (String, Bytes)| {
            let store = store.clone();
            async move {
                let done = match bytes.len() > PART {
                    true => upload(&store, &key(&name), &bytes).await.map(|_| ()),
                    false => store.put_new(&key(&name), bytes).await.map(|_| ()),
                };
                done.unwrap_or_else(|error| panic!("seed {seed}, {name}: {error:?}"));
            }
        };
        stream::iter(objects.clone())
            .map(put)
            .buffer_unordered(8)
            .collect::<Vec<()>>()
            .await;
        for (name, bytes) in &objects {
            assert_eq!(
                store.get(&key(name), None, 1 << 20).await.unwrap(),
                *bytes,
                "seed {seed}, {name}"
            );
        }
        assert_eq!(store.list("").await.unwrap().len(), objects.len());
        let wanted: Vec<_> = objects
            .iter()
            .map(|(name, bytes)| (name.clone(), "upload".to_owned(), bytes.len()))
            .collect();
        assert_eq!(
            sim.versions(),
            wanted,
            "seed {seed}: each once, and nothing left over"
        );
        sim.fail_at_random(0, 0);
    }
}
