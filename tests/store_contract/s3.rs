//! The contract and the failures of every day, against a real S3 server. One test, so that one server serves all
//! cases; each case that fails is reported by its name.

use crate::contract::{self, key, pattern, upload};
use crate::proxy::{Action, Proxy, Rule, chain, first, silent_server};
use crate::weed::{ACCESS_KEY, SECRET_KEY, Weed};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use bytes::Bytes;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use zfs_backup::store::{
    EvidenceTier, ObjectStore, PutOutcome, S3Checksum, S3Credentials, S3Settings, S3Store, StoreError, StoreErrorKind,
};

const BUCKET: &str = "contract";
const PART: usize = 5 * 1024 * 1024;

type CaseFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
type ContractCase = (&'static str, fn(S3Store) -> CaseFuture);

macro_rules! contract_list {
    ($($case:ident)*) => {
        vec![$((stringify!($case), |store| Box::pin(async move { contract::$case(&store).await }))),*]
    };
}

/// Cases that are about S3 only; each gets settings with a prefix of its own.
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
    let mut failures = Vec::new();
    let contract_cases: Vec<ContractCase> = contract::all_contract_cases!(contract_list);
    for (name, case) in contract_cases {
        let settings = S3Settings { prefix: format!("all/{name}"), ..weed.settings(BUCKET) };
        run(name, case(connect(settings).await), &mut failures).await;
    }
    let own_cases = own_cases! { &weed,
        evidence_is_as_strong_as_the_checksum
        folders_and_neighbours_of_the_prefix_are_not_ours
        delete_removes_all_versions
        storage_class_is_for_large_objects_only
        lost_replies_are_found_out
        passing_failures_are_ridden_out
        lasting_failure_of_the_last_part_leaves_nothing
        stores_without_conditions_are_spoken_to_without
        stores_that_hide_checksums_give_weaker_evidence
        false_words_of_the_store_are_found_out
        bodies_that_break_off_are_fetched_again
        pages_that_never_end_are_an_error
        parts_in_flight_are_bounded
        wrong_keys_are_denied
        missing_bucket_is_said
        unreachable_endpoint_is_named
        silent_server_is_given_up
    };
    for (name, case) in own_cases {
        run(name, case, &mut failures).await;
    }
    assert!(failures.is_empty(), "failed: {failures:?}");
}

#[tokio::test]
async fn missing_credentials_are_said_at_once_with_where_they_were_looked_for() {
    let profile = Some("zfs-backup-no-such-profile".to_owned());
    let region = Some("eu-west-1".to_owned());
    let begun = Instant::now();
    let settings = S3Settings { bucket: BUCKET.to_owned(), profile, region, ..S3Settings::default() };
    let error = S3Store::connect(settings).await.err().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "nobody waits for a metadata service: {:?}", begun.elapsed());
    assert_eq!(error.kind, StoreErrorKind::Denied);
    assert_says(&error, &["find credentials", "zfs-backup-no-such-profile", "~/.aws/credentials"]);
}

/// Runs a case and notes if it failed.
async fn run(name: &'static str, case: CaseFuture, failures: &mut Vec<&'static str>) {
    let begun = Instant::now();
    let ended = tokio::spawn(case).await;
    println!("{name}: {} in {:.1?}", if ended.is_ok() { "ok" } else { "FAILED" }, begun.elapsed());
    if ended.is_err() {
        failures.push(name);
    }
}

async fn connect(settings: S3Settings) -> S3Store {
    S3Store::connect(settings).await.unwrap()
}

async fn connect_by(proxy: &Proxy, settings: S3Settings) -> S3Store {
    connect(S3Settings { endpoint: Some(proxy.endpoint()), ..settings }).await
}

/// The whole story as a person would see it.
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
    use EvidenceTier::{Crc64nvmeFull, Md5Etag, Sha256Composite};
    let tiers =
        [(S3Checksum::Crc64nvme, Crc64nvmeFull), (S3Checksum::Sha256, Sha256Composite), (S3Checksum::Md5, Md5Etag)];
    for (checksum, tier) in tiers {
        let prefix = format!("{}/{tier:?}", settings.prefix);
        let store = connect(S3Settings { checksum, prefix, ..settings.clone() }).await;
        if checksum != S3Checksum::default() {
            contract::large_objects_of_every_shape_come_back(&store).await;
        }
        let large = upload(&store, &key("tank/@a/large"), &pattern(2 * PART + 9, 1)).await.unwrap();
        assert_eq!((large.tier, large.part_bytes), (tier, Some(PART as u64)));
        let (_, small) = store.put_new(&key("tank/@a/small"), pattern(10, 1)).await.unwrap();
        assert_eq!((small.tier, small.part_bytes), (tier, None));
        assert!(small.checksum.is_some() && small.etag.is_some_and(|etag| !etag.contains('"')));
    }
}

async fn folders_and_neighbours_of_the_prefix_are_not_ours(weed: Arc<Weed>, settings: S3Settings) {
    let client = weed.client();
    for name in ["/", "-other/x", "x"] {
        let name = format!("{}{name}", settings.prefix);
        client.put_object().bucket(BUCKET).key(name).send().await.unwrap();
    }
    assert_empty(&connect(settings).await).await;
}

async fn delete_removes_all_versions(weed: Arc<Weed>, settings: S3Settings) {
    let (client, bucket) = (weed.client(), "versioned");
    client.create_bucket().bucket(bucket).send().await.unwrap();
    let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    client.put_bucket_versioning().bucket(bucket).versioning_configuration(enabled).send().await.unwrap();
    let store = connect(S3Settings { bucket: bucket.to_owned(), ..settings }).await;
    let (name, neighbour) = (key("tank/@a/x"), key("tank/@a/x.minisig"));
    store.put_new(&neighbour, pattern(3, 3)).await.unwrap();
    for seed in 0..3 {
        let (_, evidence) = store.put_new(&name, pattern(3, seed)).await.unwrap();
        assert!(evidence.version_id.is_some());
        // Somebody else's plain delete leaves a marker, and the version behind it.
        client.delete_object().bucket(bucket).key(format!("delete_removes_all_versions/{name}")).send().await.unwrap();
    }
    store.delete(&name).await.unwrap();
    store.delete(&name).await.unwrap();
    let left = client.list_object_versions().bucket(bucket).send().await.unwrap();
    let left: Vec<_> = left.versions().iter().filter_map(|version| version.key()).collect();
    assert_eq!(left, [format!("delete_removes_all_versions/{neighbour}")]);
}

async fn storage_class_is_for_large_objects_only(weed: Arc<Weed>, settings: S3Settings) {
    let prefix = settings.prefix.clone();
    let store = connect(S3Settings { storage_class: Some("STANDARD_IA".to_owned()), ..settings }).await;
    upload(&store, &key("large"), &pattern(10, 1)).await.unwrap();
    store.put_new(&key("small"), pattern(10, 1)).await.unwrap();
    for (name, expected) in [("large", Some("STANDARD_IA")), ("small", None)] {
        let found = weed.client().head_object().bucket(BUCKET).key(format!("{prefix}/{name}")).send().await.unwrap();
        let class = found.storage_class().map(|class| class.as_str()).filter(|class| *class != "STANDARD");
        assert_eq!(class, expected, "{name}");
    }
}

/// Whether a request completes a multipart upload.
fn completes(head: &str) -> bool {
    head.starts_with("post") && head.contains("?uploadid=")
}

async fn lost_replies_are_found_out(weed: Arc<Weed>, settings: S3Settings) {
    let puts = |head: &str| head.starts_with("put") && !head.contains("uploadid=");
    let lose = || Action::LoseReply;
    for (n, second_answer) in [
        Action::Pass,
        Action::Refuse(404, "NoSuchUpload"),
        Action::Refuse(412, "PreconditionFailed"),
        Action::Refuse(409, "ConditionalRequestConflict"),
    ]
    .into_iter()
    .enumerate()
    {
        let rules: Vec<Box<Rule>> = vec![
            Box::new(first(1, lose(), completes)),
            Box::new(first(usize::MAX, second_answer, completes)),
            Box::new(first(1, lose(), puts)),
            Box::new(first(1, lose(), |head| head.starts_with("delete"))),
        ];
        let proxy = Proxy::start(&weed.endpoint(), chain(rules));
        let store =
            connect_by(&proxy, S3Settings { prefix: format!("{}/{n}", settings.prefix), ..settings.clone() }).await;
        let (large, small, bytes) = (key("tank/@a/large"), key("tank/@a/small"), pattern(PART + 5, 1));
        let evidence = upload(&store, &large, &bytes).await.unwrap_or_else(|error| panic!("{n}: {}", story(&error)));
        assert_eq!(evidence.tier, EvidenceTier::Crc64nvmeFull);
        assert!(store.get(&large, None, u64::MAX).await.unwrap() == bytes);
        let (outcome, _) = store.put_new(&small, pattern(10, 1)).await.unwrap();
        assert_eq!(outcome, PutOutcome::Identical, "its own first request was the one that stored it");
        store.delete(&large).await.unwrap();
        store.delete(&small).await.unwrap();
        assert_empty(&store).await;
        assert_eq!(proxy.requests("POST /"), 3, "begin, complete, complete again");
    }
}

async fn passing_failures_are_ridden_out(weed: Arc<Weed>, settings: S3Settings) {
    for (name, action) in [
        ("slow", Action::Refuse(503, "SlowDown")),
        ("error", Action::Refuse(500, "InternalError")),
        ("cut", Action::LoseReply),
    ] {
        let proxy = Proxy::start(&weed.endpoint(), first(3, action, |head| head.contains("partnumber=2")));
        let store = connect_by(&proxy, settings.clone()).await;
        let bytes = pattern(2 * PART + 1, 1);
        upload(&store, &key(name), &bytes).await.unwrap_or_else(|error| panic!("{name}: {}", story(&error)));
        assert!(store.get(&key(name), None, u64::MAX).await.unwrap() == bytes, "{name}");
        assert_eq!(proxy.requests("partNumber=2"), 4, "{name}");
    }
}

async fn lasting_failure_of_the_last_part_leaves_nothing(weed: Arc<Weed>, settings: S3Settings) {
    for (status, code, kind) in [
        (500, "InternalError", StoreErrorKind::Unavailable),
        (503, "SlowDown", StoreErrorKind::Throttled),
        (400, "BadDigest", StoreErrorKind::Corrupt),
        (403, "AccessDenied", StoreErrorKind::Denied),
        (403, "QuotaExceeded", StoreErrorKind::Full),
    ] {
        let refuse = first(usize::MAX, Action::Refuse(status, code), |head| head.contains("partnumber=3"));
        let proxy = Proxy::start(&weed.endpoint(), refuse);
        let store = connect_by(&proxy, settings.clone()).await;
        let error = upload(&store, &key("chunk"), &pattern(2 * PART + 1, 1)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{code}");
        assert_says(&error, &["upload part 3 of chunk in s3:contract", code]);
        assert_empty(&store).await;
    }
}

async fn stores_without_conditions_are_spoken_to_without(weed: Arc<Weed>, settings: S3Settings) {
    let refuse = first(usize::MAX, Action::Refuse(501, "NotImplemented"), |head| head.contains("if-none-match"));
    let proxy = Proxy::start(&weed.endpoint(), refuse);
    let store = connect_by(&proxy, settings).await;
    let bytes = pattern(10, 1);
    upload(&store, &key("large"), &bytes).await.unwrap();
    assert_eq!(store.put_new(&key("small"), bytes.clone()).await.unwrap().0, PutOutcome::Created);
    assert_eq!(store.put_new(&key("small"), bytes.clone()).await.unwrap().0, PutOutcome::Identical);
    for name in ["large", "small"] {
        let error = store.put_new(&key(name), pattern(10, 2)).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::AlreadyExists);
        assert_eq!(upload(&store, &key(name), &pattern(10, 2)).await.unwrap_err().kind, StoreErrorKind::AlreadyExists);
        assert_eq!(store.get(&key(name), None, 10).await.unwrap(), bytes);
    }
}

async fn stores_that_hide_checksums_give_weaker_evidence(weed: Arc<Weed>, settings: S3Settings) {
    let hide = first(usize::MAX, Action::HideHeaders("checksum"), |head| head.starts_with("head"));
    let proxy = Proxy::start(&weed.endpoint(), hide);
    let store = connect_by(&proxy, settings).await;
    let evidence = upload(&store, &key("large"), &pattern(10, 1)).await.unwrap();
    assert_eq!((evidence.tier, evidence.checksum, evidence.bytes), (EvidenceTier::SizeOnly, None, 10));
}

async fn false_words_of_the_store_are_found_out(weed: Arc<Weed>, settings: S3Settings) {
    let right = "x-amz-checksum-crc64nvme: rosUhgp5mIg=\r\nx-amz-checksum-type: FULL_OBJECT\r\n";
    let wrong = "x-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\nx-amz-checksum-type: FULL_OBJECT\r\n";
    for (n, (length, checksum, works)) in
        [(9, right, true), (9, wrong, false), (8, right, false), (10, "", false)].into_iter().enumerate()
    {
        // The first look, before anything is sent, goes through.
        let looks = AtomicUsize::new(0);
        let lines = format!("Content-Length: {length}\r\n{checksum}");
        let proxy = Proxy::start(&weed.endpoint(), move |head| {
            let later = head.starts_with("head") && looks.fetch_add(1, Ordering::SeqCst) % 2 == 1;
            if later { Action::AnswerHead(lines.clone()) } else { Action::Pass }
        });
        let store =
            connect_by(&proxy, S3Settings { prefix: format!("{}/{n}", settings.prefix), ..settings.clone() }).await;
        let bytes = Bytes::from_static(b"123456789");
        let put = store.put_new(&key("small"), bytes.clone()).await.map(|(_, evidence)| evidence);
        for result in [put, upload(&store, &key("large"), &bytes).await] {
            assert_eq!(result.is_ok(), works, "{length} {checksum:?}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.kind, StoreErrorKind::Corrupt);
                assert_says(
                    &error,
                    &["confirm ", "9 bytes with checksum rosUhgp5mIg= were sent and accepted, but the store has "],
                );
            }
        }
    }
}

async fn bodies_that_break_off_are_fetched_again(weed: Arc<Weed>, settings: S3Settings) {
    let bytes = pattern(300_000, 1);
    connect(settings.clone()).await.put_new(&key("x"), bytes.clone()).await.unwrap();
    for (times, works) in [(2, true), (usize::MAX, false)] {
        let cut = first(times, Action::CutBody(100_000), |head| head.starts_with("get") && head.contains("/x"));
        let proxy = Proxy::start(&weed.endpoint(), cut);
        let store = connect_by(&proxy, settings.clone()).await;
        match store.get(&key("x"), None, u64::MAX).await {
            Ok(got) => assert!(works && got == bytes),
            Err(error) => {
                assert!(!works, "{}", story(&error));
                assert_eq!(error.kind, StoreErrorKind::Unavailable);
            }
        }
    }
}

async fn pages_that_never_end_are_an_error(weed: Arc<Weed>, settings: S3Settings) {
    let page = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>\
                </ListBucketResult>";
    let answer = Action::Answer(page.to_owned());
    let proxy = Proxy::start(&weed.endpoint(), first(10, answer, |head| head.contains("list-type=2")));
    let store = connect_by(&proxy, settings).await;
    let error = store.list("").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
    assert_eq!(proxy.requests("list-type=2"), 2, "the second page was the first again");
}

async fn parts_in_flight_are_bounded(weed: Arc<Weed>, settings: S3Settings) {
    let proxy = Proxy::start(&weed.endpoint(), |head| {
        if head.contains("partnumber=") {
            std::thread::sleep(Duration::from_millis(300));
        }
        Action::Pass
    });
    let store = connect_by(&proxy, S3Settings { concurrency: 3, ..settings }).await;
    upload(&store, &key("x"), &pattern(8 * PART, 1)).await.unwrap();
    assert_eq!(proxy.parts_at_once_max(), 3);
}

async fn wrong_keys_are_denied(_: Arc<Weed>, settings: S3Settings) {
    for (access_key_id, secret_access_key, part) in
        [(ACCESS_KEY, "wrong", "SignatureDoesNotMatch"), ("nobody", SECRET_KEY, "InvalidAccessKeyId")]
    {
        let (access_key_id, secret_access_key) = (access_key_id.to_owned(), secret_access_key.to_owned());
        let credentials = Some(S3Credentials { access_key_id, secret_access_key });
        let store = connect(S3Settings { credentials, ..settings.clone() }).await;
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

async fn missing_bucket_is_said(_: Arc<Weed>, settings: S3Settings) {
    let store = connect(S3Settings { bucket: "no-such-bucket".to_owned(), ..settings }).await;
    let errors = [
        store.check_bucket().await.unwrap_err(),
        store.head(&key("x")).await.expect_err("a missing bucket is not a missing object"),
        store.get(&key("x"), None, 1).await.unwrap_err(),
        store.put_new(&key("x"), Bytes::new()).await.unwrap_err(),
        store.create(&key("x")).await.err().unwrap(),
        store.list("").await.unwrap_err(),
        store.delete(&key("x")).await.unwrap_err(),
        store.unfinished("").await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, StoreErrorKind::NotFound);
        assert_says(&error, &["NoSuchBucket", "create the bucket \"no-such-bucket\""]);
    }
}

async fn unreachable_endpoint_is_named(_: Arc<Weed>, settings: S3Settings) {
    for (endpoint, part) in
        [("http://127.0.0.1:9", "Connection refused"), ("http://nowhere.invalid", "cannot be resolved")]
    {
        let store = connect(S3Settings { endpoint: Some(endpoint.to_owned()), ..settings.clone() }).await;
        let error = store.check_bucket().await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unavailable);
        assert_says(&error, &[endpoint, part]);
    }
}

async fn silent_server_is_given_up(_: Arc<Weed>, settings: S3Settings) {
    let attempt_slack = Duration::from_millis(500);
    let store = connect(S3Settings { endpoint: Some(silent_server()), attempt_slack, ..settings }).await;
    let begun = Instant::now();
    let error = store.check_bucket().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_says(&error, &["timeout", "does not answer"]);
}
