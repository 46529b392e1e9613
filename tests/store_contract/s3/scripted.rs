//! Responses that no good server gives, by script: each upload ends as a complete object or as
//! none, with an error of the right kind.

use super::{PART, assert_empty, assert_says, below, completes, connect, connect_by, story};
use crate::contract::{key, pattern, upload};
use crate::proxy::{Action, Proxy, chain, first};
use crate::weed::Weed;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zfs_backup::store::{S3Settings, StoreDelete, StoreErrorKind, StoreRead, StoreWrite};

pub(super) async fn success_status_with_an_error_body_is_a_failure(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let error = "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>";
    for (times, works) in [(1, true), (usize::MAX, false)] {
        let settings = below(&settings, if works { "once" } else { "always" });
        let proxy = Proxy::start(
            &weed.endpoint(),
            first(times, Action::Answer(error.to_owned()), completes),
        );
        let (store, bytes) = (
            connect_by(&proxy, settings.clone()).await,
            pattern(PART + 5, 1),
        );
        match upload(&store, &key("large"), &bytes).await {
            Ok(_) => {
                assert!(works, "the store said that it failed");
                assert!(
                    connect(settings)
                        .await
                        .get(&key("large"), None, u64::MAX)
                        .await
                        .unwrap()
                        == bytes
                );
                assert_eq!(store.unfinished("").await.unwrap(), []);
            }
            Err(error) => {
                assert!(!works, "{}", story(&error));
                assert_eq!(error.kind, StoreErrorKind::Unavailable);
                assert_says(&error, &["complete upload of large", "InternalError"]);
                assert_empty(&connect(settings).await).await;
            }
        }
    }
}

pub(super) async fn different_part_checksum_in_the_response_fails_the_upload(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let lines = "ETag: \"x\"\r\nx-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\nContent-Length: 0\r\n";
    let second = |head: &str| head.contains("partnumber=2");
    let proxy = Proxy::start(
        &weed.endpoint(),
        first(usize::MAX, Action::AnswerHead(lines.to_owned()), second),
    );
    let error = upload(
        &connect_by(&proxy, settings.clone()).await,
        &key("large"),
        &pattern(PART + 5, 1),
    )
    .await;
    let error = error.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
    assert_says(
        &error,
        &[
            "upload part 2 of large",
            "was sent, the store got AAAAAAAAAAA=",
        ],
    );
    assert_empty(&connect(settings).await).await;
}

pub(super) async fn wrong_region_and_expired_session_errors_name_the_remedy(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let redirect =
        "<Error><Code>PermanentRedirect</Code><Message>use the other endpoint</Message></Error>";
    let moved = Action::AnswerStatus(301, "x-amz-bucket-region: eu-west-3\r\n", redirect);
    let expired = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>";
    let over = Action::AnswerStatus(400, "", expired);
    for (name, action, kind, parts) in [
        (
            "moved",
            moved,
            StoreErrorKind::Invalid,
            ["PermanentRedirect", "\"eu-west-3\": set `region`"],
        ),
        (
            "over",
            over,
            StoreErrorKind::Denied,
            ["ExpiredToken", "the session has expired"],
        ),
    ] {
        let settings = below(&settings, name);
        let writes = |head: &str| head.starts_with("put");
        let proxy = Proxy::start(&weed.endpoint(), first(usize::MAX, action, writes));
        let store = connect_by(&proxy, settings.clone()).await;
        let put = store
            .put_new(&key("small"), pattern(9, 1))
            .await
            .map(drop)
            .unwrap_err();
        let sent = upload(&store, &key("large"), &pattern(PART + 5, 1))
            .await
            .unwrap_err();
        for error in [put, sent] {
            assert_eq!(error.kind, kind, "{name}");
            assert_says(&error, &parts);
        }
        assert_empty(&connect(settings).await).await;
    }
}

pub(super) async fn silent_part_upload_is_retried_until_the_attempts_are_used(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let silence = Action::Silence(Duration::from_secs(600));
    for (times, works) in [(1, true), (usize::MAX, false)] {
        let settings = below(&settings, if works { "once" } else { "always" });
        let proxy = Proxy::start(
            &weed.endpoint(),
            first(times, silence.clone(), |head| head.contains("partnumber=2")),
        );
        let short = S3Settings {
            // Long enough for every other request on a busy machine.
            attempt_slack: Duration::from_secs(5),
            rate_bytes_min: 1 << 30,
            ..settings.clone()
        };
        let (store, bytes, begun) = (
            connect_by(&proxy, short).await,
            pattern(PART + 5, 1),
            Instant::now(),
        );
        match upload(&store, &key("large"), &bytes).await {
            Ok(_) => {
                assert!(works);
                assert!(store.get(&key("large"), None, u64::MAX).await.unwrap() == bytes);
            }
            Err(error) => {
                assert!(!works, "{}", story(&error));
                assert_eq!(error.kind, StoreErrorKind::Unavailable);
                assert_says(&error, &["upload part 2 of large", "does not answer"]);
                assert_empty(&connect(settings).await).await;
            }
        }
        assert!(
            begun.elapsed() < Duration::from_secs(300),
            "{:?}",
            begun.elapsed()
        );
    }
}

/// Decisions depend on missing objects, so a missing bucket must be another error.
pub(super) async fn bucket_that_vanishes_is_no_missing_object(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let is_gone = Arc::new(AtomicBool::new(false));
    let rule_is_gone = Arc::clone(&is_gone);
    let proxy = Proxy::start(&weed.endpoint(), move |_: &str| {
        match rule_is_gone.load(Ordering::SeqCst) {
            true => Action::Refuse(404, "NoSuchBucket"),
            false => Action::Pass,
        }
    });
    let store = connect_by(&proxy, settings).await;
    let (name, bytes) = (key("x"), pattern(9, 1));
    store.put_new(&name, bytes.clone()).await.unwrap();
    assert!(store.head(&name).await.unwrap().is_some());
    assert_eq!(store.head(&key("y")).await.unwrap(), None);
    let mut writer = store.create(&key("large")).await.unwrap();
    writer.put_part(pattern(PART, 1)).await.unwrap();
    is_gone.store(true, Ordering::SeqCst);
    let errors = [
        store.head(&name).await.map(drop),
        store.get(&name, None, 9).await.map(drop),
        store.list("").await.map(drop),
        store.any_version(&name).await.map(drop),
        store.delete(&name).await,
        store.unfinished("").await.map(drop),
        store.put_new(&name, bytes).await.map(drop),
        store.create(&name).await.map(drop),
        writer.finish().await.map(drop),
    ];
    for (n, error) in errors.into_iter().enumerate() {
        let error = error.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::NoBucket, "{n}: {error}");
        assert_says(&error, &["NoSuchBucket", "create the bucket", "lost it"]);
    }
}

/// A server that does not list versions may confirm a delete and keep the object.
pub(super) async fn delete_without_listed_versions_is_checked(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let keeps = |head: &str| head.starts_with("delete");
    let confirmed = Action::AnswerStatus(204, "", "");
    for (n, (answer, works)) in [(confirmed, false), (Action::Pass, true)]
        .into_iter()
        .enumerate()
    {
        let no_versions = |head: &str| head.contains("?versions");
        let proxy = Proxy::start(
            &weed.endpoint(),
            chain(vec![
                Box::new(first(
                    usize::MAX,
                    Action::Refuse(403, "AccessDenied"),
                    no_versions,
                )),
                Box::new(first(usize::MAX, answer, keeps)),
            ]),
        );
        let store = connect_by(&proxy, below(&settings, &n.to_string())).await;
        store.put_new(&key("x"), pattern(9, 1)).await.unwrap();
        let deleted = store.delete(&key("x")).await;
        assert_eq!(deleted.is_ok(), works);
        if let Err(error) = deleted {
            assert_says(&error, &["delete x", "and still has it"]);
        }
        store.delete(&key("never-there")).await.unwrap();
    }
}
