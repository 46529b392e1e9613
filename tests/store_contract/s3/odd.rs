//! Servers that answer one question oddly and everything else well: the probe reports each answer
//! by itself, and uploads fall back to a checksum that the server accepts.

use super::probe::{UNDER, always, good_probe};
use super::{PART, assert_empty, assert_says, below, connect, connect_by, story};
use crate::contract::{key, pattern, upload};
use crate::pace::Captured;
use crate::proxy::{Action, Proxy, chain};
use crate::weed::Weed;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use zfs_backup::store::probe::{Ability, Deleting};
use zfs_backup::store::{
    EvidenceTier, Patience, PatienceClock, ProbeDoubt, PutOutcome, S3Checksum, S3Settings,
    StoreErrorKind, StoreProbe, StoreRead, StoreWrite, Wait,
};

/// The requests of the probe of a good server on a bucket without versions.
const PROBE_REQUESTS: usize = 25;
const PART_REFUSALS: [Action; 3] = [
    Action::Refuse(500, "InternalError"),
    Action::Refuse(501, "NotImplemented"),
    Action::Refuse(400, "InvalidRequest"),
];

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

pub(super) async fn probe_of_a_good_server_makes_no_more_requests(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let proxy = Proxy::start(&weed.endpoint(), |_: &str| Action::Pass);
    let store = connect_by(&proxy, settings).await;
    let probe = store.probe(UNDER).await.unwrap().unwrap();
    assert_eq!(probe.notes, Vec::<String>::new());
    assert_eq!(proxy.requests(""), PROBE_REQUESTS);
}

/// A question of the probe, with its name and its requests, and the result of the probe when these
/// are refused, when they fail, and when they are answered with a page (`None` where a client takes
/// a page for success).
struct Question {
    name: &'static str,
    asks: fn(&str) -> bool,
    refused: StoreProbe,
    failed: StoreProbe,
    page: Option<StoreProbe>,
}

fn questions() -> [Question; 6] {
    let lists_uploads = |list_uploads| StoreProbe {
        list_uploads,
        ..good_probe()
    };
    let aborts = |abort_uploads| StoreProbe {
        abort_uploads,
        ..good_probe()
    };
    let unknown_parts = StoreProbe {
        parts_max: None,
        ..good_probe()
    };
    let condition = |conditional_complete| StoreProbe {
        conditional_complete,
        ..good_probe()
    };
    [
        Question {
            name: "versions",
            asks: |head| head.starts_with("get") && head.contains("?versions"),
            refused: good_probe(),
            failed: StoreProbe {
                deleting: Deleting::Unknown,
                ..good_probe()
            },
            page: Some(good_probe()),
        },
        Question {
            name: "listing-uploads",
            asks: |head| head.starts_with("get") && head.contains("?uploads"),
            refused: lists_uploads(Ability::Refused),
            failed: lists_uploads(Ability::Unknown),
            page: Some(lists_uploads(Ability::Unknown)),
        },
        Question {
            name: "aborting-uploads",
            asks: |head| head.starts_with("delete") && head.contains("uploadid="),
            refused: aborts(Ability::Refused),
            failed: aborts(Ability::Unknown),
            page: Some(aborts_nothing()),
        },
        Question {
            name: "many-parts",
            asks: |head| head.contains("partnumber=1000"),
            refused: unknown_parts.clone(),
            failed: unknown_parts,
            page: None,
        },
        Question {
            name: "conditions-of-uploads",
            asks: |head| head.starts_with("post") && head.contains("if-none-match"),
            refused: condition(Ability::Refused),
            failed: condition(Ability::Unknown),
            page: Some(condition(Ability::Unknown)),
        },
        Question {
            name: "listing-objects",
            asks: |head| head.contains("list-type=2") && !head.contains("max-keys"),
            refused: good_probe(),
            failed: good_probe(),
            page: Some(good_probe()),
        },
    ]
}

pub(super) async fn each_odd_answer_to_a_probe_stands_for_itself(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    for question in questions() {
        let page = Action::Answer("<html>welcome</html>".to_owned());
        let answers = [
            (
                Action::Refuse(501, "NotImplemented"),
                Some(question.refused),
            ),
            (Action::Refuse(500, "InternalError"), Some(question.failed)),
            (page, question.page),
        ];
        for (n, (action, expected)) in answers.into_iter().enumerate() {
            let Some(expected) = expected else {
                continue;
            };
            let name = format!("{}-{n}", question.name);
            let proxy = Proxy::start(&weed.endpoint(), chain(vec![always(action, question.asks)]));
            let store = connect_by(&proxy, quick(&settings, &name)).await;
            let probe = store.probe(UNDER).await;
            let probe = probe.unwrap_or_else(|error| panic!("{name}: {}", story(&error)));
            let probe = probe.unwrap();
            println!("    {name}: {:?}", probe.notes);
            let needs_reason = expected != good_probe() && expected != aborts_nothing();
            assert!(!needs_reason || !probe.notes.is_empty(), "{name}");
            assert_eq!(without_texts(probe), expected, "{name}");
        }
    }
}

/// The probe of a server that confirms an abort and does nothing.
fn aborts_nothing() -> StoreProbe {
    StoreProbe {
        abort_uploads: Ability::Ignored,
        ..good_probe()
    }
}

/// Returns the probe without what differs from server to server.
fn without_texts(probe: StoreProbe) -> StoreProbe {
    StoreProbe {
        clock_ahead_seconds: None,
        left_behind: vec![],
        notes: vec![],
        uncertain: false,
        ..probe
    }
}

pub(super) async fn probe_of_a_store_that_stops_answering_is_an_outage(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    for (n, action) in [
        Action::Refuse(503, "ServiceUnavailable"),
        Action::Refuse(500, "InternalError"),
        Action::Silence(Duration::ZERO),
    ]
    .into_iter()
    .enumerate()
    {
        let requests = AtomicUsize::new(0);
        let proxy = Proxy::start(&weed.endpoint(), move |_: &str| {
            match requests.fetch_add(1, Ordering::SeqCst) < 9 {
                true => Action::Pass,
                false => action.clone(),
            }
        });
        let store = connect_by(&proxy, quick(&settings, &n.to_string())).await;
        let error = store.probe(UNDER).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{n}");
        assert_eq!(error.wait, Wait::Helps, "{n}: {}", story(&error));
    }
}

pub(super) async fn probe_tries_the_next_checksum_after_any_refusal_that_repeats(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let crc64 = |head: &str| head.contains("partnumber=") && head.contains("checksum-crc64nvme");
    let refusals = PART_REFUSALS.into_iter().chain([
        Action::Refuse(502, "BadGateway"),
        Action::Silence(Duration::ZERO),
    ]);
    for (n, action) in refusals.enumerate() {
        let asks: fn(&str) -> bool = match n {
            0 => is_part_with_checksum,
            _ => crc64,
        };
        let best = match n {
            0 => S3Checksum::Md5,
            _ => S3Checksum::Sha256,
        };
        let proxy = Proxy::start(&weed.endpoint(), chain(vec![always(action, asks)]));
        let store = connect_by(&proxy, quick(&settings, &n.to_string())).await;
        let probe = store.probe(UNDER).await;
        let probe = probe.unwrap_or_else(|error| panic!("{n}: {}", story(&error)));
        let expected = StoreProbe {
            tier: best.tier(),
            checksum: Some(best),
            kept: vec![best],
            ..good_probe()
        };
        let probe = probe.unwrap();
        println!("    {:?}", probe.notes);
        assert!(probe.notes[0].starts_with("crc64nvme: "), "{probe:?}");
        assert_eq!(without_texts(probe), expected, "{n}");
    }
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
        let doubt = ProbeDoubt::new(move |_| {
            heard.fetch_add(1, Ordering::SeqCst);
        });
        let store = connect_by(&proxy, quick(&settings, &n.to_string())).await;
        let store = store.following(good_probe(), doubt);
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

/// The bytes were damaged on the way or in memory: no other checksum of them may be accepted.
pub(super) async fn mismatch_of_a_checksum_is_no_reason_for_another_one(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    for (n, code) in ["BadDigest", "XAmzContentChecksumMismatch"]
        .into_iter()
        .enumerate()
    {
        let rule = always(Action::Refuse(400, code), |head| {
            head.starts_with("put") && head.contains("x-amz-checksum-")
        });
        let proxy = Proxy::start(&weed.endpoint(), chain(vec![rule]));
        let store = connect_by(&proxy, quick(&settings, &n.to_string())).await;
        let small = store.put_new(&key("small"), pattern(9, 1)).await;
        let large = upload(&store, &key("large"), &pattern(PART + 5, 1)).await;
        for error in [small.map(drop).unwrap_err(), large.map(drop).unwrap_err()] {
            assert_eq!(error.kind, StoreErrorKind::Corrupt, "{}", story(&error));
        }
        assert_eq!(proxy.requests("content-md5"), 0, "{code}");
    }
}

/// The failure of one request may pass. A server that fails each create-only put has no such puts.
pub(super) async fn passing_failure_of_a_create_only_put_says_nothing(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    for (passes, expected) in [(true, Ability::Works), (false, Ability::Refused)] {
        let has_passed = AtomicBool::new(false);
        let failing = move |head: &str| match head.contains("if-none-match") {
            _ if !head.starts_with("put") => Action::Pass,
            true if !has_passed.load(Ordering::SeqCst) => Action::Refuse(500, "InternalError"),
            true => Action::Pass,
            false => {
                has_passed.store(passes, Ordering::SeqCst);
                Action::Pass
            }
        };
        let proxy = Proxy::start(&weed.endpoint(), failing);
        let store = connect_by(&proxy, quick(&settings, &passes.to_string())).await;
        let probe = store.probe(UNDER).await.unwrap().unwrap();
        assert!(probe.uncertain, "{probe:?}");
        assert_eq!(probe.conditional_put, expected, "{probe:?}");
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

/// Only one layer repeats a request while the store is away: each attempt sends a part once.
pub(super) async fn part_is_sent_once_by_each_attempt_in_an_outage(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let is_away = Arc::new(AtomicBool::new(false));
    let rule_is_away = Arc::clone(&is_away);
    let proxy = Proxy::start(&weed.endpoint(), move |_: &str| {
        match rule_is_away.load(Ordering::SeqCst) {
            true => Action::Refuse(502, "BadGateway"),
            false => Action::Pass,
        }
    });
    let clock = PatienceClock::simulated("2026-11-30T03:12:45[UTC]".parse().unwrap());
    let (_sender, stop) = tokio::sync::watch::channel(false);
    let settings = S3Settings {
        patience: Arc::new(Patience::by_clock(Duration::from_secs(300), stop, clock)),
        ..quick(&settings, "x")
    };
    let store = connect_by(&proxy, settings).await;
    let mut writer = store.create(&key("large")).await.unwrap();
    is_away.store(true, Ordering::SeqCst);
    writer.put_part(pattern(PART, 1)).await.unwrap();
    let error = writer.finish().await.unwrap_err();
    assert_eq!(error.wait, Wait::IsOver, "{}", story(&error));
    let sent = proxy.requests("partNumber=1");
    println!("    a part was sent {sent} times in an outage of 5 minutes");
    // The SDK's own attempts at the beginning, then one for each pause of 1 to 30 seconds.
    assert!((12..=32).contains(&sent), "{sent}");
}
