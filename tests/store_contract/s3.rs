//! The contract and everyday failures, with a real S3 server. A single test, so that one server
//! serves all cases; each failing case is reported by its name.

mod broken;
mod encryption;
mod endpoint;
mod lock;
mod odd;
mod probe;
mod renewal;
mod scripted;

use crate::contract::{self, key, pattern, upload};
use crate::proxy::{Action, Proxy, silent_server};
use crate::weed::{ACCESS_KEY, SECRET_KEY, Weed};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use zfs_backup::store::{
    S3Checksum, S3Credentials, S3Settings, S3Store, StoreDelete, StoreError, StoreErrorKind,
    StoreRead, StoreWrite,
};

use broken::{
    false_s3_evidence_is_an_error, folders_are_found_without_a_delimiter_that_works,
    objects_without_listed_versions_are_deleted, pages_that_never_end_are_an_error,
    permanent_failure_of_the_last_part_leaves_no_object, puts_with_lost_replies_are_read_back,
    rclone_serve_is_recognised, stores_that_hide_checksums_give_weaker_evidence,
    temporary_s3_failures_are_retried, truncated_s3_bodies_are_fetched_again,
    unsupported_conditional_puts_are_replaced_by_plain_ones,
};
use encryption::{
    bucket_policy_that_demands_an_encryption_is_named_and_met,
    customer_key_never_crosses_the_network_in_clear,
    encryption_headers_are_on_the_requests_that_need_them,
    objects_with_a_customer_key_need_exactly_that_key,
};
use endpoint::endpoint_with_a_path_serves_all_requests;
use lock::{
    lock_that_the_server_does_not_report_is_unsupported,
    probe_locks_an_object_that_is_sent_in_parts,
    s3_objects_are_locked_at_upload_and_their_locks_extended,
};
use odd::{
    each_odd_answer_to_a_probe_stands_for_itself,
    mismatch_of_a_checksum_is_no_reason_for_another_one,
    part_is_sent_once_by_each_attempt_in_an_outage,
    passing_and_other_failures_do_not_change_the_checksum,
    passing_failure_of_a_create_only_put_says_nothing,
    probe_of_a_good_server_makes_no_more_requests,
    probe_of_a_store_that_stops_answering_is_an_outage,
    probe_tries_the_next_checksum_after_any_refusal_that_repeats,
    uploads_and_puts_fall_back_when_the_algorithm_is_refused,
};
use probe::{
    bucket_lifecycle_rules_are_read_or_reported_as_unknown,
    bucket_public_access_is_read_or_reported_as_unknown, failed_s3_probe_leaves_no_object,
    probe_of_a_capable_server_reports_its_abilities,
    probe_reports_each_missing_ability_of_a_server,
    store_follows_its_probe_and_reports_a_contradiction,
    store_with_working_conditional_puts_is_not_checked_before_a_put,
};
use scripted::{
    bucket_that_vanishes_is_no_missing_object, delete_without_listed_versions_is_checked,
    different_part_checksum_in_the_response_fails_the_upload,
    silent_part_upload_is_retried_until_the_attempts_are_used,
    success_status_with_an_error_body_is_a_failure,
    wrong_region_and_expired_session_errors_name_the_remedy,
};

use renewal::{
    expired_s3_session_is_renewed_or_reported, refused_s3_keys_are_read_again,
    s3_downloads_keep_the_rate_limit, s3_uploads_keep_the_rate_limit,
};

const CASES_AT_ONCE: usize = 6;
const BUCKET: &str = "contract";
const PART: usize = 5 * 1024 * 1024;

type CaseFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
type ContractCase = (&'static str, fn(S3Store) -> CaseFuture);

macro_rules! contract_list {
    ($($case:ident)*) => {
        vec![$((stringify!($case), |store| Box::pin(async move { contract::$case(&store).await }))),*]
    };
}

/// Runs cases for S3 only; each gets settings with a prefix of its own.
macro_rules! own_cases {
    ($weed:expr, $($case:ident)*) => {
        vec![$({
            let settings = S3Settings { prefix: stringify!($case).to_owned(), ..$weed.settings(BUCKET) };
            (stringify!($case), Box::pin($case(Arc::clone($weed), settings)) as CaseFuture)
        }),*]
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keeps_the_contract_on_seaweedfs() {
    let weed = Arc::new(Weed::start(BUCKET).await);
    let mut cases: Vec<(&str, CaseFuture)> = Vec::new();
    let contract_cases: Vec<ContractCase> = contract::all_contract_cases!(contract_list);
    for (name, case) in contract_cases {
        let settings = S3Settings {
            prefix: format!("all/{name}"),
            ..weed.settings(BUCKET)
        };
        cases.push((name, case(connect(settings).await)));
    }
    cases.extend(own_cases! { &weed,
        evidence_is_as_strong_as_the_checksum
        folders_and_neighbours_of_the_prefix_are_not_ours
        delete_removes_all_versions
        storage_class_is_for_large_objects_only
        puts_with_lost_replies_are_read_back
        temporary_s3_failures_are_retried
        objects_without_listed_versions_are_deleted
        permanent_failure_of_the_last_part_leaves_no_object
        unsupported_conditional_puts_are_replaced_by_plain_ones
        stores_that_hide_checksums_give_weaker_evidence
        false_s3_evidence_is_an_error
        truncated_s3_bodies_are_fetched_again
        pages_that_never_end_are_an_error
        folders_are_found_without_a_delimiter_that_works
        rclone_serve_is_recognised
        probe_of_a_capable_server_reports_its_abilities
        probe_reports_each_missing_ability_of_a_server
        store_follows_its_probe_and_reports_a_contradiction
        store_with_working_conditional_puts_is_not_checked_before_a_put
        bucket_lifecycle_rules_are_read_or_reported_as_unknown
        bucket_public_access_is_read_or_reported_as_unknown
        success_status_with_an_error_body_is_a_failure
        different_part_checksum_in_the_response_fails_the_upload
        wrong_region_and_expired_session_errors_name_the_remedy
        silent_part_upload_is_retried_until_the_attempts_are_used
        s3_objects_are_locked_at_upload_and_their_locks_extended
        lock_that_the_server_does_not_report_is_unsupported
        bucket_policy_that_demands_an_encryption_is_named_and_met
        encryption_headers_are_on_the_requests_that_need_them
        objects_with_a_customer_key_need_exactly_that_key
        customer_key_never_crosses_the_network_in_clear
        endpoint_with_a_path_serves_all_requests
        s3_parts_in_flight_are_bounded
        wrong_keys_are_denied
        refused_s3_keys_are_read_again
        expired_s3_session_is_renewed_or_reported
        s3_uploads_keep_the_rate_limit
        s3_downloads_keep_the_rate_limit
        missing_bucket_is_an_error_for_every_call
        bucket_that_vanishes_is_no_missing_object
        delete_without_listed_versions_is_checked
        unreachable_endpoint_is_named
        silent_server_ends_in_a_timeout
    });
    run_all(cases).await;
}

/// Servers that fail often, in a process of their own: the SDK shares one number of retries among
/// all clients of a process.
#[tokio::test(flavor = "multi_thread")]
async fn odd_s3_servers_are_probed_and_used() {
    let weed = Arc::new(Weed::start(BUCKET).await);
    run_all(own_cases! { &weed,
        failed_s3_probe_leaves_no_object
        probe_of_a_good_server_makes_no_more_requests
        each_odd_answer_to_a_probe_stands_for_itself
        mismatch_of_a_checksum_is_no_reason_for_another_one
        passing_failure_of_a_create_only_put_says_nothing
        probe_of_a_store_that_stops_answering_is_an_outage
        part_is_sent_once_by_each_attempt_in_an_outage
        probe_tries_the_next_checksum_after_any_refusal_that_repeats
        uploads_and_puts_fall_back_when_the_algorithm_is_refused
        passing_and_other_failures_do_not_change_the_checksum
        probe_locks_an_object_that_is_sent_in_parts
    })
    .await;
}

/// Runs the cases, and fails with the names of those that fail.
async fn run_all(cases: Vec<(&'static str, CaseFuture)>) {
    // Many cases wait for time limits and pauses, so running them concurrently costs nothing.
    let ended = stream::iter(cases)
        .map(|(name, case)| run(name, case))
        .buffer_unordered(CASES_AT_ONCE);
    let failures: Vec<&str> = ended
        .filter_map(|failed| async move { failed })
        .collect()
        .await;
    assert!(failures.is_empty(), "failed: {failures:?}");
}

#[tokio::test]
async fn missing_s3_credentials_are_reported_at_once_with_the_places_searched() {
    let profile = Some("zfs-backup-no-such-profile".to_owned());
    let region = Some("eu-west-1".to_owned());
    let settings = S3Settings {
        bucket: BUCKET.to_owned(),
        profile,
        region,
        ..S3Settings::default()
    };
    let mut tries = Vec::new();
    let error = loop {
        let begun = Instant::now();
        let error = S3Store::connect(settings.clone()).await.err().unwrap();
        tries.push(begun.elapsed());
        // A store that waits does so each time; a machine that pauses does not.
        if tries
            .last()
            .is_some_and(|took| *took < Duration::from_secs(3))
        {
            break error;
        }
        assert!(
            tries.len() < 5,
            "nobody waits for a metadata service: {tries:?}"
        );
    };
    assert_eq!(error.kind, StoreErrorKind::Denied);
    assert_says(
        &error,
        &[
            "find credentials",
            "zfs-backup-no-such-profile",
            "~/.aws/credentials",
        ],
    );
}

/// Runs a case; returns its name if it failed.
async fn run(name: &'static str, case: CaseFuture) -> Option<&'static str> {
    let begun = Instant::now();
    let ended = tokio::spawn(case).await;
    println!(
        "{name}: {} in {:.1?}",
        if ended.is_ok() { "ok" } else { "FAILED" },
        begun.elapsed()
    );
    ended.is_err().then_some(name)
}

async fn connect(settings: S3Settings) -> S3Store {
    S3Store::connect(settings).await.unwrap()
}

/// The same settings, below a folder of this name.
fn below(settings: &S3Settings, name: &str) -> S3Settings {
    S3Settings {
        prefix: format!("{}/{name}", settings.prefix),
        ..settings.clone()
    }
}

/// Whether a request completes a multipart upload.
fn completes(head: &str) -> bool {
    head.starts_with("post") && head.contains("?uploadid=")
}

async fn connect_by(proxy: &Proxy, settings: S3Settings) -> S3Store {
    connect(S3Settings {
        endpoint: Some(proxy.endpoint()),
        ..settings
    })
    .await
}

/// Returns the complete error text as a user would see it.
fn story(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    format!("{text}\nhint: {}", error.hint.as_deref().unwrap_or("none"))
}

fn assert_says(error: &StoreError, parts: &[&str]) {
    let story = story(error);
    println!("    {story}");
    for part in parts {
        assert!(story.contains(part), "{part:?} is missing in: {story}");
    }
    assert!(!story.contains(SECRET_KEY), "a secret: {story}");
}

async fn assert_empty(store: &S3Store) {
    assert_eq!(store.list("").await.unwrap(), []);
    assert_eq!(store.unfinished("").await.unwrap(), []);
}

async fn evidence_is_as_strong_as_the_checksum(_: Arc<Weed>, settings: S3Settings) {
    for checksum in S3Checksum::ALL {
        let tier = checksum.tier();
        let prefix = format!("{}/{tier:?}", settings.prefix);
        let store = connect(S3Settings {
            checksum,
            prefix,
            ..settings.clone()
        })
        .await;
        if checksum != S3Checksum::default() {
            contract::large_objects_of_every_part_count_round_trip(&store).await;
        }
        let large = upload(&store, &key("tank/@a/large"), &pattern(2 * PART + 9, 1))
            .await
            .unwrap();
        assert_eq!((large.tier, large.part_bytes), (tier, Some(PART as u64)));
        let (_, small) = store
            .put_new(&key("tank/@a/small"), pattern(10, 1))
            .await
            .unwrap();
        assert_eq!((small.tier, small.part_bytes), (tier, None));
        assert!(small.checksum.is_some() && small.etag.is_some_and(|etag| !etag.contains('"')));
    }
}

async fn folders_and_neighbours_of_the_prefix_are_not_ours(weed: Arc<Weed>, settings: S3Settings) {
    let client = weed.client();
    for name in ["/", "-other/x", "x"] {
        let name = format!("{}{name}", settings.prefix);
        client
            .put_object()
            .bucket(BUCKET)
            .key(name)
            .send()
            .await
            .unwrap();
    }
    assert_empty(&connect(settings).await).await;
}

async fn delete_removes_all_versions(weed: Arc<Weed>, settings: S3Settings) {
    let (client, bucket) = (weed.client(), "versioned");
    client.create_bucket().bucket(bucket).send().await.unwrap();
    let enabled = VersioningConfiguration::builder()
        .status(BucketVersioningStatus::Enabled)
        .build();
    client
        .put_bucket_versioning()
        .bucket(bucket)
        .versioning_configuration(enabled)
        .send()
        .await
        .unwrap();
    let store = connect(S3Settings {
        bucket: bucket.to_owned(),
        ..settings
    })
    .await;
    let (name, neighbour) = (key("tank/@a/x"), key("tank/@a/x.minisig"));
    store.put_new(&neighbour, pattern(3, 3)).await.unwrap();
    assert!(
        !store.any_version(&name).await.unwrap(),
        "a longer key is another"
    );
    for seed in 0..3 {
        let (_, evidence) = store.put_new(&name, pattern(3, seed)).await.unwrap();
        assert!(evidence.version_id.is_some());
        // A plain delete by somebody else leaves a marker, with the version behind it.
        client
            .delete_object()
            .bucket(bucket)
            .key(format!("delete_removes_all_versions/{name}"))
            .send()
            .await
            .unwrap();
    }
    assert_eq!(store.head(&name).await.unwrap(), None);
    assert!(store.any_version(&name).await.unwrap(), "behind the marker");
    store.delete(&name).await.unwrap();
    assert!(!store.any_version(&name).await.unwrap());
    store.delete(&name).await.unwrap();
    let left = client
        .list_object_versions()
        .bucket(bucket)
        .send()
        .await
        .unwrap();
    let left: Vec<_> = left
        .versions()
        .iter()
        .filter_map(|version| version.key())
        .collect();
    assert_eq!(left, [format!("delete_removes_all_versions/{neighbour}")]);
}

async fn storage_class_is_for_large_objects_only(weed: Arc<Weed>, settings: S3Settings) {
    let prefix = settings.prefix.clone();
    let store = connect(S3Settings {
        storage_class: Some("STANDARD_IA".to_owned()),
        ..settings
    })
    .await;
    upload(&store, &key("large"), &pattern(10, 1))
        .await
        .unwrap();
    store.put_new(&key("small"), pattern(10, 1)).await.unwrap();
    for (name, expected) in [("large", Some("STANDARD_IA")), ("small", None)] {
        let found = weed
            .client()
            .head_object()
            .bucket(BUCKET)
            .key(format!("{prefix}/{name}"))
            .send()
            .await
            .unwrap();
        let class = found
            .storage_class()
            .map(|class| class.as_str())
            .filter(|class| *class != "STANDARD");
        assert_eq!(class, expected, "{name}");
    }
}

async fn s3_parts_in_flight_are_bounded(weed: Arc<Weed>, settings: S3Settings) {
    let parts = AtomicUsize::new(0);
    let proxy = Proxy::start(&weed.endpoint(), move |head| {
        if head.contains("partnumber=") {
            parts.fetch_add(1, Ordering::SeqCst);
            while parts.load(Ordering::SeqCst) < 3 {
                std::thread::sleep(Duration::from_millis(5));
            }
            // A part too many would come now.
            std::thread::sleep(Duration::from_millis(300));
        }
        Action::Pass
    });
    let store = connect_by(
        &proxy,
        S3Settings {
            concurrency: 3,
            ..settings
        },
    )
    .await;
    upload(&store, &key("x"), &pattern(8 * PART, 1))
        .await
        .unwrap();
    assert_eq!(proxy.parts_at_once_max(), 3);
}

async fn wrong_keys_are_denied(_: Arc<Weed>, settings: S3Settings) {
    for (access_key_id, secret_access_key, part) in [
        (ACCESS_KEY, "wrong", "SignatureDoesNotMatch"),
        ("nobody", SECRET_KEY, "InvalidAccessKeyId"),
    ] {
        let (access_key_id, secret_access_key) =
            (access_key_id.to_owned(), secret_access_key.to_owned());
        let credentials = Some(S3Credentials {
            access_key_id,
            secret_access_key,
        });
        let store = connect(S3Settings {
            credentials,
            ..settings.clone()
        })
        .await;
        let errors = [
            store.check_bucket().await.unwrap_err(),
            store.head(&key("x")).await.unwrap_err(),
            store.get(&key("x"), None, 1).await.unwrap_err(),
            store.put_new(&key("x"), Bytes::new()).await.unwrap_err(),
            store.create(&key("x")).await.err().unwrap(),
            store.list("").await.unwrap_err(),
            store.delete(&key("x")).await.unwrap_err(),
            store.unfinished("").await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind, StoreErrorKind::Denied);
            assert_says(&error, &[part, "hint: "]);
        }
    }
}

async fn missing_bucket_is_an_error_for_every_call(_: Arc<Weed>, settings: S3Settings) {
    let store = connect(S3Settings {
        bucket: "no-such-bucket".to_owned(),
        ..settings
    })
    .await;
    let errors = [
        store.check_bucket().await.unwrap_err(),
        store
            .head(&key("x"))
            .await
            .expect_err("a missing bucket is not a missing object"),
        store.get(&key("x"), None, 1).await.unwrap_err(),
        store.put_new(&key("x"), Bytes::new()).await.unwrap_err(),
        store.create(&key("x")).await.err().unwrap(),
        store.list("").await.unwrap_err(),
        store.delete(&key("x")).await.unwrap_err(),
        store.unfinished("").await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, StoreErrorKind::NoBucket);
        assert_says(
            &error,
            &["NoSuchBucket", "create the bucket \"no-such-bucket\""],
        );
    }
}

async fn unreachable_endpoint_is_named(_: Arc<Weed>, settings: S3Settings) {
    for (endpoint, part) in [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://nowhere.invalid", "cannot be resolved"),
    ] {
        let store = connect(S3Settings {
            endpoint: Some(endpoint.to_owned()),
            ..settings.clone()
        })
        .await;
        let error = store.check_bucket().await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unavailable);
        assert_says(&error, &[endpoint, part]);
    }
}

async fn silent_server_ends_in_a_timeout(_: Arc<Weed>, settings: S3Settings) {
    let attempt_slack = Duration::from_millis(500);
    let store = connect(S3Settings {
        endpoint: Some(silent_server()),
        attempt_slack,
        ..settings
    })
    .await;
    let begun = Instant::now();
    let error = store.check_bucket().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(
        begun.elapsed() < Duration::from_secs(300),
        "{:?}",
        begun.elapsed()
    );
    assert_says(&error, &["timeout", "does not answer"]);
}
