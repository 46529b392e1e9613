//! Servers and connections that break: a proxy in front of the real server injects the faults by
//! rule.

use super::{PART, assert_empty, assert_says, below, completes, connect, connect_by, story};
use crate::contract::{self, key, pattern, upload};
use crate::proxy::{Action, Proxy, Rule, chain, first};
use crate::weed::Weed;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use zfs_backup::store::{
    EvidenceTier, PutOutcome, S3Settings, StoreDelete, StoreErrorKind, StoreRead, StoreWrite,
};

pub(super) async fn puts_with_lost_replies_are_read_back(weed: Arc<Weed>, settings: S3Settings) {
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
        let store = connect_by(&proxy, below(&settings, &n.to_string())).await;
        let (large, small, bytes) = (
            key("tank/@a/large"),
            key("tank/@a/small"),
            pattern(PART + 5, 1),
        );
        let evidence = upload(&store, &large, &bytes)
            .await
            .unwrap_or_else(|error| panic!("{n}: {}", story(&error)));
        assert_eq!(evidence.tier, EvidenceTier::Crc64nvmeFull);
        assert!(store.get(&large, None, u64::MAX).await.unwrap() == bytes);
        let (outcome, _) = store.put_new(&small, pattern(10, 1)).await.unwrap();
        assert_eq!(
            outcome,
            PutOutcome::Identical,
            "its own first request was the one that stored it"
        );
        store.delete(&large).await.unwrap();
        store.delete(&small).await.unwrap();
        assert_empty(&store).await;
        assert_eq!(
            proxy.requests("POST /"),
            3,
            "begin, complete, complete again"
        );
    }
}

pub(super) async fn temporary_s3_failures_are_retried(weed: Arc<Weed>, settings: S3Settings) {
    for (name, action) in [
        ("slow", Action::Refuse(503, "SlowDown")),
        ("error", Action::Refuse(500, "InternalError")),
        ("cut", Action::LoseReply),
    ] {
        let proxy = Proxy::start(
            &weed.endpoint(),
            first(3, action, |head| head.contains("partnumber=2")),
        );
        let store = connect_by(&proxy, settings.clone()).await;
        let bytes = pattern(2 * PART + 1, 1);
        upload(&store, &key(name), &bytes)
            .await
            .unwrap_or_else(|error| panic!("{name}: {}", story(&error)));
        assert!(
            store.get(&key(name), None, u64::MAX).await.unwrap() == bytes,
            "{name}"
        );
        assert_eq!(proxy.requests("partNumber=2"), 4, "{name}");
    }
}

pub(super) async fn permanent_failure_of_the_last_part_leaves_no_object(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    for (status, code, kind) in [
        (500, "InternalError", StoreErrorKind::Unavailable),
        (503, "SlowDown", StoreErrorKind::Throttled),
        (400, "BadDigest", StoreErrorKind::Corrupt),
        (403, "AccessDenied", StoreErrorKind::Denied),
        (403, "QuotaExceeded", StoreErrorKind::Full),
    ] {
        let refuse = first(usize::MAX, Action::Refuse(status, code), |head| {
            head.contains("partnumber=3")
        });
        let proxy = Proxy::start(&weed.endpoint(), refuse);
        let store = connect_by(&proxy, settings.clone()).await;
        let error = upload(&store, &key("chunk"), &pattern(2 * PART + 1, 1))
            .await
            .unwrap_err();
        assert_eq!(error.kind, kind, "{code}");
        assert_says(&error, &["upload part 3 of chunk in s3:contract", code]);
        assert_empty(&store).await;
    }
}

pub(super) async fn unsupported_conditional_puts_are_replaced_by_plain_ones(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let refuse = first(usize::MAX, Action::Refuse(501, "NotImplemented"), |head| {
        head.contains("if-none-match")
    });
    let proxy = Proxy::start(&weed.endpoint(), refuse);
    let store = connect_by(&proxy, settings).await;
    let bytes = pattern(10, 1);
    upload(&store, &key("large"), &bytes).await.unwrap();
    assert_eq!(
        store.put_new(&key("small"), bytes.clone()).await.unwrap().0,
        PutOutcome::Created
    );
    assert_eq!(
        store.put_new(&key("small"), bytes.clone()).await.unwrap().0,
        PutOutcome::Identical
    );
    for name in ["large", "small"] {
        let error = store.put_new(&key(name), pattern(10, 2)).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::AlreadyExists);
        assert_eq!(
            upload(&store, &key(name), &pattern(10, 2))
                .await
                .unwrap_err()
                .kind,
            StoreErrorKind::AlreadyExists
        );
        assert_eq!(store.get(&key(name), None, 10).await.unwrap(), bytes);
    }
}

pub(super) async fn stores_that_hide_checksums_give_weaker_evidence(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let hide = first(usize::MAX, Action::HideHeaders("checksum"), |head| {
        head.starts_with("head")
    });
    let proxy = Proxy::start(&weed.endpoint(), hide);
    let store = connect_by(&proxy, settings).await;
    let evidence = upload(&store, &key("large"), &pattern(10, 1))
        .await
        .unwrap();
    assert_eq!(
        (evidence.tier, evidence.checksum, evidence.bytes),
        (EvidenceTier::SizeOnly, None, 10)
    );
}

pub(super) async fn false_s3_evidence_is_an_error(weed: Arc<Weed>, settings: S3Settings) {
    let right = "x-amz-checksum-crc64nvme: rosUhgp5mIg=\r\nx-amz-checksum-type: FULL_OBJECT\r\n";
    let wrong = "x-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\nx-amz-checksum-type: FULL_OBJECT\r\n";
    for (n, (length, checksum, works)) in [
        (9, right, true),
        (9, wrong, false),
        (8, right, false),
        (10, "", false),
    ]
    .into_iter()
    .enumerate()
    {
        // The first check, before anything is sent, is forwarded.
        let looks = AtomicUsize::new(0);
        let lines = format!("Content-Length: {length}\r\n{checksum}");
        let proxy = Proxy::start(&weed.endpoint(), move |head| {
            let later = head.starts_with("head") && looks.fetch_add(1, Ordering::SeqCst) % 2 == 1;
            if later {
                Action::AnswerHead(lines.clone())
            } else {
                Action::Pass
            }
        });
        let store = connect_by(&proxy, below(&settings, &n.to_string())).await;
        let bytes = Bytes::from_static(b"123456789");
        let put = store
            .put_new(&key("small"), bytes.clone())
            .await
            .map(|(_, evidence)| evidence);
        for result in [put, upload(&store, &key("large"), &bytes).await] {
            assert_eq!(result.is_ok(), works, "{length} {checksum:?}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.kind, StoreErrorKind::Corrupt);
                assert_says(
                    &error,
                    &[
                        "confirm ",
                        "9 bytes with checksum rosUhgp5mIg= were sent and accepted, but the store has ",
                    ],
                );
            }
        }
    }
}

pub(super) async fn truncated_s3_bodies_are_fetched_again(weed: Arc<Weed>, settings: S3Settings) {
    let bytes = pattern(300_000, 1);
    connect(settings.clone())
        .await
        .put_new(&key("x"), bytes.clone())
        .await
        .unwrap();
    for (times, works) in [(2, true), (usize::MAX, false)] {
        let cut = first(times, Action::CutBody(100_000), |head| {
            head.starts_with("get") && head.contains("/x")
        });
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

/// Servers without versions that answer the question for versions in their own ways.
pub(super) async fn objects_without_listed_versions_are_deleted(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let nothing = "<ListVersionsResult></ListVersionsResult>";
    let answers = [
        Action::Answer(nothing.to_owned()),
        Action::Answer("<ListBucketResult></ListBucketResult>".to_owned()),
        Action::Answer("<html>welcome</html>".to_owned()),
        Action::Refuse(501, "NotImplemented"),
    ];
    for (n, answer) in answers.into_iter().enumerate() {
        let asks = |head: &str| head.starts_with("get") && head.contains("?versions");
        let proxy = Proxy::start(&weed.endpoint(), first(usize::MAX, answer, asks));
        let store = connect_by(&proxy, below(&settings, &n.to_string())).await;
        let name = key("tank/@a/x");
        store.put_new(&name, pattern(3, 1)).await.unwrap();
        assert!(store.any_version(&name).await.unwrap(), "answer {n}");
        store
            .delete(&name)
            .await
            .unwrap_or_else(|error| panic!("answer {n}: {}", story(&error)));
        assert_empty(&store).await;
        let any = store.any_version(&name).await;
        match n {
            // A page that no S3 server sends says nothing about hidden versions.
            2 => assert_eq!(any.unwrap_err().kind, StoreErrorKind::Denied),
            _ => assert!(!any.unwrap(), "answer {n}"),
        }
        store.delete(&name).await.unwrap();
        assert!(proxy.requests("?versions") > 0, "the store was not asked");
    }
    // A server that answers that it deleted the object, and keeps it.
    let rules: Vec<Box<Rule>> = vec![
        Box::new(first(
            usize::MAX,
            Action::Answer(nothing.to_owned()),
            |head| head.starts_with("get") && head.contains("?versions"),
        )),
        Box::new(first(usize::MAX, Action::Answer(String::new()), |head| {
            head.starts_with("delete")
        })),
    ];
    let proxy = Proxy::start(&weed.endpoint(), chain(rules));
    let store = connect_by(&proxy, settings).await;
    let name = key("tank/@a/kept");
    store.put_new(&name, pattern(3, 1)).await.unwrap();
    let error = store.delete(&name).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unsupported);
    assert_says(&error, &["tank/@a/kept", "still has it"]);
}

pub(super) async fn pages_that_never_end_are_an_error(weed: Arc<Weed>, settings: S3Settings) {
    let page = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>\
                </ListBucketResult>";
    let answer = Action::Answer(page.to_owned());
    let proxy = Proxy::start(
        &weed.endpoint(),
        first(10, answer, |head| head.contains("list-type=2")),
    );
    let store = connect_by(&proxy, settings).await;
    let error = store.list("").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
    assert_eq!(
        proxy.requests("list-type=2"),
        2,
        "the second page was the first again"
    );
}

pub(super) async fn folders_are_found_without_a_delimiter_that_works(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let plain = connect(settings.clone()).await;
    contract::put_folders(&plain).await;
    let at = |head: &str| head.contains("delimiter=%40");
    let any = |head: &str| head.contains("delimiter=");
    let prefix = &settings.prefix;
    let page = |entries: &str| {
        Action::Answer(format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        ))
    };
    let odd = format!("<CommonPrefixes><Prefix>{prefix}/tank/</Prefix></CommonPrefixes>");
    let refused = || Action::Refuse(501, "NotImplemented");
    let always = usize::MAX;
    let rules: [(&str, Box<Rule>); 4] = [
        ("no @", Box::new(first(always, refused(), at))),
        ("odd @", Box::new(first(always, page(&odd), at))),
        ("none", Box::new(first(always, refused(), any))),
        (
            "invalid",
            Box::new(first(always, Action::Refuse(400, "InvalidArgument"), any)),
        ),
    ];
    for (name, rule) in rules {
        let proxy = Proxy::start(&weed.endpoint(), rule);
        let store = connect_by(&proxy, settings.clone()).await;
        for (prefix, delimiter, expected) in contract::FOLDERS {
            let found = store.list_folders(prefix, delimiter).await;
            let found = found.unwrap_or_else(|error| panic!("{name}: {}", story(&error)));
            assert_eq!(found, expected, "{name}: {prefix:?} {delimiter}");
        }
    }

    let keys = ["tank/@a/x", "tank/@a/y", "tank/a/@c/x", "readme"];
    let entry =
        |key: &&str| format!("<Contents><Key>{prefix}/{key}</Key><Size>3</Size></Contents>");
    let whole = page(&keys.iter().map(entry).collect::<String>());
    let proxy = Proxy::start(&weed.endpoint(), first(always, whole, any));
    let found = connect_by(&proxy, settings.clone()).await;
    let found = found.list_folders("", '@').await.unwrap();
    assert_eq!(found, ["tank/@", "tank/a/@"], "the delimiter is ignored");
    assert_eq!(proxy.requests("list-type=2"), 1);

    let proxy = Proxy::start(
        &weed.endpoint(),
        first(always, Action::Refuse(403, "AccessDenied"), any),
    );
    let store = connect_by(&proxy, settings).await;
    let error = store.list_folders("", '@').await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied, "no reason to try more");
}

pub(super) async fn rclone_serve_is_recognised(weed: Arc<Weed>, settings: S3Settings) {
    // The response of rclone 1.75.2, with its wrong root.
    let answer =
        "<InitiateMultipartUpload><UploadId>1</UploadId></InitiateMultipartUpload>".to_owned();
    let begins = |head: &str| head.starts_with("post") && head.contains("?uploads");
    let proxy = Proxy::start(&weed.endpoint(), first(1, Action::Answer(answer), begins));
    let error = connect_by(&proxy, settings)
        .await
        .create(&key("x"))
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind, StoreErrorKind::Unsupported);
    assert_says(
        &error,
        &[
            "begin upload of x",
            "expected InitiateMultipartUploadResult",
            "rclone:REMOTE:PATH",
        ],
    );
}
