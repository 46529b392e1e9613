//! Server-side encryption: headers that bucket policies demand, customer keys, and the errors of
//! both.

use super::{PART, assert_says, below, completes, connect, connect_by, story};
use crate::contract::{self, key, pattern, upload};
use crate::proxy::{Action, Proxy, first};
use crate::weed::Weed;
use std::sync::{Arc, Mutex};
use zfs_backup::store::{
    CustomerKey, EvidenceTier, S3Checksum, S3Encryption, S3EncryptionKind, S3Settings, S3Store,
    StoreErrorKind, StoreRead, StoreWrite,
};

/// Two keys of 32 bytes.
pub(super) const KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
const OTHER_KEY: &str = "CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=";

fn customer(key: &str) -> Option<S3Encryption> {
    CustomerKey::from_base64(key).map(S3Encryption::Customer)
}

fn managed(kind: S3EncryptionKind, kms_key_id: Option<&str>) -> Option<S3Encryption> {
    Some(S3Encryption::Managed {
        kind,
        kms_key_id: kms_key_id.map(str::to_owned),
    })
}

/// Whether a request begins an object: a put of a whole object, or the begin of an upload.
fn begins_an_object(head: &str) -> bool {
    let is_put = head.starts_with("put") && !head.contains("partnumber=");
    is_put || head.starts_with("post") && head.contains("?uploads")
}

/// Puts a small and a large object, and returns both results.
async fn put_both(store: &S3Store) -> [Result<EvidenceTier, zfs_backup::store::StoreError>; 2] {
    let small = store.put_new(&key("small"), pattern(9, 1)).await;
    let large = upload(store, &key("large"), &pattern(PART + 5, 1)).await;
    [
        small.map(|(_, evidence)| evidence.tier),
        large.map(|evidence| evidence.tier),
    ]
}

pub(super) async fn bucket_policy_that_demands_an_encryption_is_named_and_met(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let demands = |head: &str| {
        begins_an_object(head) && !head.contains("x-amz-server-side-encryption: aes256")
    };
    let refuse = Action::Refuse(403, "AccessDenied");
    let proxy = Proxy::start(&weed.endpoint(), first(usize::MAX, refuse, demands));
    let store = connect_by(&proxy, below(&settings, "without")).await;
    for result in put_both(&store).await {
        let error = result.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Denied);
        assert_says(
            &error,
            &["AccessDenied", "set `server_side_encryption` under [s3]"],
        );
    }
    let encryption = managed(S3EncryptionKind::Aes256, None);
    let settings = S3Settings {
        encryption,
        ..below(&settings, "with")
    };
    for result in put_both(&connect_by(&proxy, settings).await).await {
        result.unwrap_or_else(|error| panic!("{}", story(&error)));
    }
}

pub(super) async fn encryption_headers_are_on_the_requests_that_need_them(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    let kms = managed(S3EncryptionKind::Kms, Some("arn:aws:kms:eu-west-1:1:key/2"));
    let kms_lines = [
        "x-amz-server-side-encryption: aws:kms\r\n",
        "x-amz-server-side-encryption-aws-kms-key-id: arn:aws:kms:eu-west-1:1:key/2\r\n",
    ];
    let customer_lines = [
        "x-amz-server-side-encryption-customer-algorithm: aes256\r\n",
        "x-amz-server-side-encryption-customer-key: bwchbwchbwchbwchbwchbwchbwchbwchbwchbwchbwc=\r\n",
        "x-amz-server-side-encryption-customer-key-md5: y4haefcywuvaxwftta1qpg==\r\n",
    ];
    let is_part = |head: &str| head.contains("partnumber=");
    let reads = |head: &str| {
        head.starts_with("head") || head.starts_with("get") && !head.contains("list-type")
    };
    for (encryption, lines, also_parts) in [
        (kms, &kms_lines[..], false),
        (customer(KEY), &customer_lines[..], true),
    ] {
        let heads = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heads);
        // SeaweedFS has no key service here: the answers to puts are made up.
        let answer =
            "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>";
        let proxy = Proxy::start(&weed.endpoint(), move |head| {
            noted.lock().unwrap().push(head.to_owned());
            match head {
                head if head.starts_with("post") => Action::Answer(answer.to_owned()),
                head if head.starts_with("put") => {
                    Action::AnswerHead("ETag: \"x\"\r\nContent-Length: 0\r\n".to_owned())
                }
                _ => Action::Pass,
            }
        });
        let store = connect_by(
            &proxy,
            S3Settings {
                encryption,
                ..settings.clone()
            },
        )
        .await;
        // The confirmation fails, because nothing was stored.
        for result in put_both(&store).await {
            result.unwrap_err();
        }
        assert!(store.get(&key("small"), None, 9).await.is_err());
        let heads = heads.lock().unwrap();
        for kind in [is_part, completes, reads, begins_an_object] {
            assert!(heads.iter().any(|head| kind(head)), "no such request");
        }
        for head in heads.iter() {
            let needs = begins_an_object(head)
                || also_parts && (is_part(head) || completes(head) || reads(head));
            for line in lines {
                assert_eq!(head.contains(line), needs, "{line} in {head}");
            }
        }
    }
}

pub(super) async fn objects_with_a_customer_key_need_exactly_that_key(
    _: Arc<Weed>,
    settings: S3Settings,
) {
    let with = |encryption| S3Settings {
        encryption,
        ..settings.clone()
    };
    let store = connect(with(customer(KEY))).await;
    contract::large_objects_of_every_part_count_round_trip(&store).await;
    for result in put_both(&store).await {
        assert_eq!(result.unwrap(), S3Checksum::default().tier());
    }
    assert!(store.get(&key("large"), None, 1 << 30).await.unwrap() == pattern(PART + 5, 1));
    let by_md5 = connect(S3Settings {
        checksum: S3Checksum::Md5,
        ..below(&with(customer(KEY)), "md5")
    })
    .await;
    for result in put_both(&by_md5).await {
        assert_eq!(
            result.unwrap(),
            EvidenceTier::SizeOnly,
            "the ETag is no MD5"
        );
    }
    for (encryption, parts) in [
        (None, ["customer key (SSE-C)", "`sse_customer_key_file`"]),
        (
            customer(OTHER_KEY),
            ["another customer key", "`sse_customer_key_file`"],
        ),
    ] {
        let store = connect(with(encryption)).await;
        let get = store.get(&key("small"), None, 9).await.map(drop);
        let head = store.head(&key("small")).await.map(drop);
        for error in [get.unwrap_err(), head.unwrap_err()] {
            assert_says(&error, &parts);
        }
    }
}

pub(super) async fn customer_key_never_crosses_the_network_in_clear(
    _: Arc<Weed>,
    settings: S3Settings,
) {
    let settings = S3Settings {
        endpoint: Some("http://s3.example.org".to_owned()),
        encryption: customer(KEY),
        ..settings
    };
    let error = S3Store::connect(settings).await.err().unwrap();
    assert_eq!(error.kind, StoreErrorKind::Invalid);
    assert_says(&error, &["unencrypted", "https://"]);
}
