//! Servers that refuse checksums: uploads fall back to a checksum that the server accepts.

use super::{PART, assert_empty, assert_says, below, connect, connect_by, story};
use crate::contract::{key, pattern, upload};
use crate::pace::Captured;
use crate::proxy::{Action, Proxy, Rule, chain, first};
use crate::weed::Weed;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use zfs_backup::store::{
    Doubt, EvidenceTier, ObjectStore, PutOutcome, S3Checksum, S3Settings, StoreErrorKind,
    StoreProbe, Wait,
};

const PART_REFUSALS: [Action; 3] = [
    Action::Refuse(500, "InternalError"),
    Action::Refuse(501, "NotImplemented"),
    Action::Refuse(400, "BadDigest"),
];

fn always(action: Action, matches: impl Fn(&str) -> bool + Send + Sync + 'static) -> Box<Rule> {
    Box::new(first(usize::MAX, action, matches))
}

/// Settings with which refused requests are repeated at once.
fn quick(settings: &S3Settings, name: &str) -> S3Settings {
    S3Settings {
        pause_first: Duration::from_millis(1),
        ..below(settings, name)
    }
}

/// Whether a request sends a part with one of the newer checksums.
fn is_part_with_checksum(head: &str) -> bool {
    head.contains("partnumber=") && head.contains("x-amz-checksum-")
}

/// Captures what this thread logs while the guard lives.
fn capture() -> (Captured, tracing::subscriber::DefaultGuard) {
    let log = Captured::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

/// A test of its own, so that one thread does and logs everything.
#[tokio::test]
async fn uploads_whose_checksum_the_server_refuses_fall_back_to_md5() {
    let weed = Weed::start(super::BUCKET).await;
    let settings = S3Settings {
        prefix: "odd".to_owned(),
        ..weed.settings(super::BUCKET)
    };
    for (n, action) in PART_REFUSALS.into_iter().enumerate() {
        let (log, _guard) = capture();
        let proxy = Proxy::start(
            &weed.endpoint(),
            chain(vec![always(action, is_part_with_checksum)]),
        );
        let doubts = Arc::new(AtomicUsize::new(0));
        let heard = Arc::clone(&doubts);
        let doubt = Doubt::new(move |_| {
            heard.fetch_add(1, Ordering::SeqCst);
        });
        let store = connect_by(&proxy, quick(&settings, &n.to_string())).await;
        let store = store.following(
            StoreProbe {
                kept: vec![S3Checksum::Crc64nvme],
                ..StoreProbe::default()
            },
            doubt,
        );
        for name in ["one", "two"] {
            let refused = proxy.requests("partNumber=");
            let bytes = pattern(3 * PART + 5, 1);
            let evidence = upload(&store, &key(name), &bytes)
                .await
                .unwrap_or_else(|error| panic!("{n}: {}", story(&error)));
            assert_eq!(evidence.tier, EvidenceTier::Md5Etag, "{n} {name}");
            assert!(store.get(&key(name), None, u64::MAX).await.unwrap() == bytes);
            let sent = proxy.requests("partNumber=") - refused;
            assert!(name == "one" || sent == 4, "{n}: {sent} parts");
        }
        assert_eq!(store.unfinished("").await.unwrap(), []);
        let text = log.text();
        println!("{text}");
        assert_eq!(
            text.matches("with the checksum crc64nvme").count(),
            1,
            "{text}"
        );
        assert_eq!(doubts.load(Ordering::SeqCst), 1, "{n}");
    }
}

pub(super) async fn uploads_and_puts_fall_back_when_the_algorithm_is_refused(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    for (n, status) in [(0, 400), (1, 500)] {
        let rule = always(Action::Refuse(status, "InvalidArgument"), |head| {
            head.contains("x-amz-checksum-algorithm") || head.contains("x-amz-checksum-crc64nvme")
        });
        let proxy = Proxy::start(&weed.endpoint(), chain(vec![rule]));
        let store = connect_by(&proxy, quick(&settings, &n.to_string())).await;
        let (outcome, small) = store.put_new(&key("small"), pattern(9, 1)).await.unwrap();
        assert_eq!(outcome, PutOutcome::Created);
        let large = upload(&store, &key("large"), &pattern(PART + 5, 1)).await;
        for evidence in [small, large.unwrap()] {
            assert_eq!(evidence.tier, EvidenceTier::Md5Etag, "{status}");
        }
        let error = store.put_new(&key("small"), pattern(9, 2)).await;
        assert_eq!(error.unwrap_err().kind, StoreErrorKind::AlreadyExists);
    }
}

pub(super) async fn passing_and_other_failures_do_not_change_the_checksum(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    // The failure passes when a part without the checksum is stored.
    let has_passed = AtomicBool::new(false);
    let proxy = Proxy::start(&weed.endpoint(), move |head: &str| {
        let is_plain = head.contains("partnumber=") && head.contains("content-md5");
        has_passed.fetch_or(is_plain, Ordering::SeqCst);
        match is_part_with_checksum(head) && !has_passed.load(Ordering::SeqCst) {
            true => Action::Refuse(500, "InternalError"),
            false => Action::Pass,
        }
    });
    let store = connect_by(&proxy, quick(&settings, "passing")).await;
    let evidence = upload(&store, &key("x"), &pattern(PART, 1)).await.unwrap();
    assert_eq!(evidence.tier, EvidenceTier::Crc64nvmeFull);
    assert!(proxy.requests("partNumber=1") > 2, "MD5 was not tried");
    assert_eq!(store.unfinished("").await.unwrap(), []);

    // A part that is refused with every checksum, and one that is refused after others.
    for (n, asks) in [
        (|head: &str| head.contains("partnumber=1")) as fn(&str) -> bool,
        |head: &str| head.contains("partnumber=2") && is_part_with_checksum(head),
    ]
    .into_iter()
    .enumerate()
    {
        let refuse = always(Action::Refuse(500, "InternalError"), asks);
        let proxy = Proxy::start(&weed.endpoint(), chain(vec![refuse]));
        let settings = S3Settings {
            concurrency: 1,
            ..quick(&settings, &n.to_string())
        };
        let store = connect_by(&proxy, settings.clone()).await;
        let error = upload(&store, &key("x"), &pattern(2 * PART, 1)).await;
        let error = error.unwrap_err();
        assert_eq!(
            (error.kind, error.wait),
            (StoreErrorKind::Unavailable, Wait::Helps)
        );
        assert_says(&error, &["upload part ", "InternalError"]);
        assert_empty(&connect(settings).await).await;
    }
}
