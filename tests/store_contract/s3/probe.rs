//! The results of a probe: on a real server, and on one in which a proxy breaks one ability.

use super::{BUCKET, assert_empty, connect, connect_by, story};
use crate::contract::{self, key, pattern, upload};
use crate::proxy::{Action, Proxy, Rule, chain, first};
use crate::weed::Weed;
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use futures_util::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use zfs_backup::store::probe::{Ability, Deleting, Fact};
use zfs_backup::store::{
    EvidenceTier, ProbeDoubt, PutOutcome, S3Checksum, S3Settings, StoreErrorKind, StoreInfo,
    StoreProbe, StoreRead, StoreWrite,
};

pub(super) const UNDER: &str = "@zfs-backup/probe/0123456789abcdef/";

pub(super) fn always(
    action: Action,
    matches: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Box<Rule> {
    Box::new(first(usize::MAX, action, matches))
}

/// The probe of a good server on a bucket without versions.
pub(super) fn good_probe() -> StoreProbe {
    StoreProbe {
        tier: EvidenceTier::Crc64nvmeFull,
        checksum: Some(S3Checksum::Crc64nvme),
        kept: vec![S3Checksum::Crc64nvme],
        conditional_put: Ability::Works,
        conditional_complete: Ability::Works,
        list_uploads: Ability::Works,
        abort_uploads: Ability::Works,
        deleting: Deleting::Removes,
        parts_max: Some(10_000),
        ..StoreProbe::default()
    }
}

pub(super) async fn probe_of_a_capable_server_reports_its_abilities(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let (client, versioned) = (weed.client(), "probed-versions");
    client
        .create_bucket()
        .bucket(versioned)
        .send()
        .await
        .unwrap();
    let enabled = VersioningConfiguration::builder()
        .status(BucketVersioningStatus::Enabled)
        .build();
    client
        .put_bucket_versioning()
        .bucket(versioned)
        .versioning_configuration(enabled)
        .send()
        .await
        .unwrap();
    for (bucket, deleting) in [
        (BUCKET, Deleting::Removes),
        (versioned, Deleting::RemovesVersions),
    ] {
        let store = connect(S3Settings {
            bucket: bucket.to_owned(),
            ..settings.clone()
        })
        .await;
        let probe = store
            .probe(UNDER)
            .await
            .unwrap_or_else(|error| panic!("{}", story(&error)))
            .unwrap();
        assert!(probe.clock_ahead_seconds.unwrap().abs() <= 5, "{probe:?}");
        let expected = StoreProbe {
            deleting,
            clock_ahead_seconds: probe.clock_ahead_seconds,
            ..good_probe()
        };
        assert_eq!(probe, expected);
        assert_empty(&store).await;
        let prefix = format!("{}/@zfs-backup", settings.prefix);
        let left = client
            .list_object_versions()
            .bucket(bucket)
            .prefix(prefix)
            .send()
            .await
            .unwrap();
        assert!(
            left.versions().is_empty() && left.delete_markers().is_empty(),
            "{left:?}"
        );
    }
}

/// Returns the result of a probe through a proxy with these rules.
async fn probe_by(
    weed: &Weed,
    settings: &S3Settings,
    name: &str,
    rules: Vec<Box<Rule>>,
) -> StoreProbe {
    let proxy = Proxy::start(&weed.endpoint(), chain(rules));
    let settings = S3Settings {
        prefix: format!("{}/{name}", settings.prefix),
        ..settings.clone()
    };
    let store = connect_by(&proxy, settings.clone()).await;
    let probe = store
        .probe(UNDER)
        .await
        .unwrap_or_else(|error| panic!("{name}: {}", story(&error)))
        .unwrap();
    let left = connect(settings).await.list("").await.unwrap();
    assert_eq!(
        left.is_empty(),
        probe.left_behind.is_empty(),
        "{name}: {left:?} {probe:?}"
    );
    probe
}

pub(super) async fn probe_reports_each_missing_ability_of_a_server(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let by = async |name: &str, rules| probe_by(&weed, &settings, name, rules).await;
    let unknown = |code| Action::Refuse(501, code);

    let probe = by(
        "conditions",
        vec![always(unknown("NotImplemented"), |head| {
            head.contains("if-none-match")
        })],
    )
    .await;
    assert_eq!(
        (probe.conditional_put, probe.conditional_complete),
        (Ability::Refused, Ability::Refused)
    );
    assert!(
        probe
            .notes
            .iter()
            .any(|note| note.contains("NotImplemented")),
        "{:?}",
        probe.notes
    );

    let puts = AtomicUsize::new(0);
    let second = move |head: &str| {
        let small =
            head.starts_with("put") && head.contains("/small") && head.contains("if-none-match");
        small && puts.fetch_add(1, Ordering::SeqCst) == 1
    };
    let taken = Action::AnswerHead("Content-Length: 0\r\nETag: \"x\"\r\n".to_owned());
    assert_eq!(
        by("ignored", vec![always(taken, second)])
            .await
            .conditional_put,
        Ability::Ignored
    );

    let hidden = vec![always(Action::HideHeaders("checksum"), |head| {
        head.starts_with("head")
    })];
    let probe = by("hidden", hidden).await;
    assert_eq!(
        (probe.checksum, probe.tier),
        (Some(S3Checksum::Md5), EvidenceTier::Md5Etag)
    );
    assert_eq!(probe.kept, [S3Checksum::Md5]);

    let older = |head: &str| {
        head.contains("x-amz-checksum-algorithm") || head.contains("x-amz-checksum-mode")
    };
    let probe = by(
        "older",
        vec![always(Action::Refuse(400, "InvalidRequest"), older)],
    )
    .await;
    assert_eq!(
        (probe.checksum, probe.kept),
        (Some(S3Checksum::Md5), vec![S3Checksum::Md5])
    );
    assert!(
        probe
            .notes
            .iter()
            .any(|note| note.starts_with("crc64nvme: ")),
        "{:?}",
        probe.notes
    );

    let no_etag = Proxy::start(
        &weed.endpoint(),
        first(usize::MAX, Action::HideHeaders("etag"), |head| {
            head.starts_with("head")
        }),
    );
    let nor_sum = first(usize::MAX, Action::HideHeaders("checksum"), |head| {
        head.starts_with("head")
    });
    let bare = Proxy::start(&no_etag.endpoint(), nor_sum);
    let bare = connect_by(
        &bare,
        S3Settings {
            prefix: format!("{}/bare", settings.prefix),
            ..settings.clone()
        },
    )
    .await;
    let probe = bare.probe(UNDER).await.unwrap().unwrap();
    assert_eq!(
        (probe.checksum, probe.tier, probe.kept),
        (Some(S3Checksum::Md5), EvidenceTier::SizeOnly, vec![])
    );

    let deletes = |head: &str| head.starts_with("delete") && !head.contains("uploadid");
    let probe = by(
        "append-only",
        vec![always(Action::Refuse(403, "AccessDenied"), deletes)],
    )
    .await;
    assert_eq!(probe.deleting, Deleting::Refused);
    assert!(
        !probe.left_behind.is_empty() && probe.left_behind.iter().all(|key| key.starts_with(UNDER)),
        "{probe:?}"
    );

    let lists = |head: &str| head.starts_with("get") && head.contains("uploads");
    assert_eq!(
        by(
            "unlisted",
            vec![always(Action::Refuse(403, "AccessDenied"), lists)]
        )
        .await
        .list_uploads,
        Ability::Refused
    );

    let many = |head: &str| head.contains("partnumber=10000");
    assert_eq!(
        by(
            "few-parts",
            vec![always(Action::Refuse(400, "InvalidArgument"), many)]
        )
        .await
        .parts_max,
        Some(1000)
    );
}

pub(super) async fn failed_s3_probe_leaves_no_object(weed: Arc<Weed>, settings: S3Settings) {
    for (n, failing) in ["partnumber=2", "partnumber=10000", "?uploads", "/small"]
        .into_iter()
        .enumerate()
    {
        // The rule skips the first put, so that an object exists when the failure comes.
        let seen = AtomicUsize::new(0);
        let rule = move |head: &str| {
            // Nor does the store answer the request that tells an outage from an odd answer.
            let matches =
                head.starts_with("p") && head.contains(failing) || head.contains("max-keys=1");
            match matches && (failing != "/small" || seen.fetch_add(1, Ordering::SeqCst) > 0) {
                true => Action::Refuse(500, "InternalError"),
                false => Action::Pass,
            }
        };
        let proxy = Proxy::start(&weed.endpoint(), rule);
        let settings = S3Settings {
            prefix: format!("{}/{n}", settings.prefix),
            ..settings.clone()
        };
        let error = connect_by(&proxy, settings.clone())
            .await
            .probe(UNDER)
            .await
            .unwrap_err();
        assert_eq!(
            error.kind,
            StoreErrorKind::Unavailable,
            "{failing}: {}",
            story(&error)
        );
        assert_empty(&connect(settings).await).await;
    }
}

pub(super) async fn store_follows_its_probe_and_reports_a_contradiction(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let conditions = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&conditions);
    let proxy = Proxy::start(&weed.endpoint(), move |head| {
        seen.fetch_add(
            usize::from(head.contains("if-none-match")),
            Ordering::SeqCst,
        );
        if head.starts_with("head") {
            Action::HideHeaders("checksum")
        } else {
            Action::Pass
        }
    });
    let heard = Arc::new(AtomicUsize::new(0));
    let doubt = || {
        let heard = Arc::clone(&heard);
        ProbeDoubt::new(move |_| {
            heard.fetch_add(1, Ordering::SeqCst);
        })
    };
    let refused = StoreProbe {
        conditional_put: Ability::Refused,
        conditional_complete: Ability::Refused,
        ..StoreProbe::default()
    };
    let store = connect_by(&proxy, settings.clone()).await;
    let follows = store.following(refused, doubt());
    assert!(!follows.traits().conditional_put);
    follows.put_new(&key("a"), pattern(9, 1)).await.unwrap();
    upload(&follows, &key("b"), &pattern(9, 1)).await.unwrap();
    assert_eq!(
        (
            conditions.load(Ordering::SeqCst),
            heard.load(Ordering::SeqCst)
        ),
        (0, 0)
    );

    let promised = StoreProbe {
        kept: vec![S3Checksum::Crc64nvme],
        conditional_put: Ability::Works,
        ..StoreProbe::default()
    };
    let promised = store.following(promised, doubt());
    assert!(promised.traits().conditional_put);
    assert_eq!(
        promised
            .put_new(&key("c"), pattern(9, 1))
            .await
            .unwrap()
            .1
            .tier,
        EvidenceTier::SizeOnly
    );
    assert_eq!(conditions.load(Ordering::SeqCst), 1);
    assert_eq!(
        heard.load(Ordering::SeqCst),
        1,
        "it shows no checksum, and the probe said that it does"
    );
    let md5 = store.with_checksum(S3Checksum::Md5);
    assert_eq!(
        md5.put_new(&key("d"), pattern(9, 1)).await.unwrap().1.tier,
        EvidenceTier::Md5Etag
    );
}

pub(super) async fn store_with_working_conditional_puts_is_not_checked_before_a_put(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let refuses = Arc::new(AtomicBool::new(false));
    let refusing = Arc::clone(&refuses);
    let proxy = Proxy::start(&weed.endpoint(), move |head| {
        match refusing.load(Ordering::SeqCst) && head.contains("if-none-match") {
            true => Action::Refuse(501, "NotImplemented"),
            false => Action::Pass,
        }
    });
    let unproven = connect_by(&proxy, settings.clone()).await;
    let works = StoreProbe {
        conditional_put: Ability::Works,
        ..StoreProbe::default()
    };
    let proven = unproven.following(works.clone(), ProbeDoubt::new(|_| {}));
    contract::put_new_is_create_only(&proven).await;
    for (store, name, looks) in [(&proven, "one", 1), (&unproven, "two", 2)] {
        let before = proxy.requests("HEAD /");
        store.put_new(&key(name), pattern(9, 1)).await.unwrap();
        assert_eq!(proxy.requests("HEAD /") - before, looks, "{name}");
    }

    let lost = first(1, Action::LoseReply, |head| head.starts_with("put"));
    let lossy = connect_by(&Proxy::start(&weed.endpoint(), lost), settings)
        .await
        .following(works, ProbeDoubt::new(|_| {}));
    assert_eq!(
        lossy.put_new(&key("three"), pattern(9, 1)).await.unwrap().0,
        PutOutcome::Identical
    );

    // The store no longer does what the probe found, and several concurrent requests find out.
    refuses.store(true, Ordering::SeqCst);
    let puts = ["one", "four", "two", "five", "three"].map(|name| {
        let proven = proven.clone();
        async move {
            (
                name,
                proven
                    .put_new(&key(name), pattern(9, 2))
                    .await
                    .map_err(|error| error.kind),
            )
        }
    });
    for (name, ended) in join_all(puts).await {
        let created = matches!(name, "four" | "five");
        match created {
            true => assert_eq!(ended.unwrap().0, PutOutcome::Created, "{name}"),
            false => assert_eq!(ended.unwrap_err(), StoreErrorKind::AlreadyExists, "{name}"),
        }
        let expected = pattern(9, if created { 2 } else { 1 });
        assert_eq!(
            proven.get(&key(name), None, 9).await.unwrap(),
            expected,
            "{name}"
        );
    }
}

pub(super) async fn bucket_lifecycle_rules_are_read_or_reported_as_unknown(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let facts = connect(settings.clone())
        .await
        .bucket_facts()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(facts.lifecycle, Fact::Known(vec![]));
    let rules = "<LifecycleConfiguration>\
        <Rule><ID>tidy</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status>\
        <AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload>\
        <NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays></NoncurrentVersionExpiration></Rule>\
        <Rule><ID>danger</ID><Filter><Prefix>bucket_lifecycle</Prefix></Filter><Status>Enabled</Status>\
        <Expiration><Days>30</Days></Expiration></Rule>\
        <Rule><ID>off</ID><Filter><Prefix></Prefix></Filter><Status>Disabled</Status>\
        <Expiration><Days>1</Days></Expiration></Rule>\
        <Rule><ID>others</ID><Filter><Prefix>elsewhere/</Prefix></Filter><Status>Enabled</Status>\
        <Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>";
    let asks = |head: &str| head.starts_with("get") && head.contains("?lifecycle");
    let proxy = Proxy::start(
        &weed.endpoint(),
        chain(vec![always(Action::Answer(rules.to_owned()), asks)]),
    );
    let facts = connect_by(&proxy, settings.clone())
        .await
        .bucket_facts()
        .await
        .unwrap()
        .unwrap();
    let Fact::Known(found) = facts.lifecycle else {
        panic!("{:?}", facts.lifecycle)
    };
    let names: Vec<_> = found
        .iter()
        .map(|rule| (rule.name.as_str(), rule.expires.is_some()))
        .collect();
    assert_eq!(names, [("tidy", false), ("danger", true)]);
    assert_eq!(
        (found[0].unfinished_days, found[0].hidden_days),
        (Some(7), Some(3))
    );
    let refuses = always(Action::Refuse(403, "AccessDenied"), |head| {
        head.contains("?lifecycle") || head.contains("?object-lock")
    });
    let proxy = Proxy::start(&weed.endpoint(), chain(vec![refuses]));
    let facts = connect_by(&proxy, settings)
        .await
        .bucket_facts()
        .await
        .unwrap()
        .unwrap();
    assert!(
        matches!(&facts.lifecycle, Fact::Unknown(why) if why.contains("AccessDenied")),
        "{facts:?}"
    );
    assert!(
        matches!(&facts.object_lock, Fact::Unknown(why) if why.contains("AccessDenied")),
        "{facts:?}"
    );
}

pub(super) async fn bucket_public_access_is_read_or_reported_as_unknown(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let asks =
        |what: &'static str| move |head: &str| head.starts_with("get") && head.contains(what);
    let status = |public: &str| {
        Action::Answer(format!(
            "<PolicyStatus><IsPublic>{public}</IsPublic></PolicyStatus>"
        ))
    };
    let no_policy = || {
        always(
            Action::Refuse(404, "NoSuchBucketPolicy"),
            asks("?policystatus"),
        )
    };
    let access_list = |group: &str| {
        Action::Answer(format!(
            "<AccessControlPolicy><Owner><ID>o</ID></Owner><AccessControlList><Grant><Grantee \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"Group\"><URI>{group}</URI></Grantee>\
             <Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>"
        ))
    };
    let everybody = || {
        always(
            access_list("http://acs.amazonaws.com/groups/global/AllUsers"),
            asks("?acl"),
        )
    };
    let logs = || {
        always(
            access_list("http://acs.amazonaws.com/groups/s3/LogDelivery"),
            asks("?acl"),
        )
    };
    for (rules, visibility) in [
        (
            vec![always(status("true"), asks("?policystatus")), logs()],
            Ok("public"),
        ),
        (
            vec![always(status("false"), asks("?policystatus")), logs()],
            Ok("private"),
        ),
        (vec![no_policy(), everybody()], Ok("public")),
        (vec![no_policy(), logs()], Ok("private")),
        (
            vec![
                always(Action::Refuse(403, "AccessDenied"), asks("?policystatus")),
                everybody(),
            ],
            Err("AccessDenied"),
        ),
        (
            vec![
                no_policy(),
                always(Action::Refuse(501, "NotImplemented"), asks("?acl")),
            ],
            Err("NotImplemented"),
        ),
    ] {
        let proxy = Proxy::start(&weed.endpoint(), chain(rules));
        let facts = connect_by(&proxy, settings.clone())
            .await
            .bucket_facts()
            .await
            .unwrap()
            .unwrap();
        match (&facts.visibility, visibility) {
            (Fact::Known(found), Ok(visibility)) => assert_eq!(found, visibility),
            (Fact::Unknown(why), Err(reason)) => assert!(why.contains(reason), "{why}"),
            (found, wanted) => panic!("{found:?} where {wanted:?}"),
        }
    }
}
