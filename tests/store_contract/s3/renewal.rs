//! The bandwidth limit and rotated keys, on S3.

use super::encryption::KEY;
use super::{PART, connect, connect_by};
use crate::contract::{key, pattern, upload};
use crate::pace::Captured;
use crate::proxy::{Action, Proxy};
use crate::weed::{ACCESS_KEY, SECRET_KEY, Weed};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use zfs_backup::store::{
    CustomerKey, Limiter, Renew, S3Credentials, S3Encryption, S3Settings, StoreErrorKind,
    StoreRead, StoreWrite,
};

pub(super) async fn s3_uploads_keep_the_rate_limit(weed: Arc<Weed>, settings: S3Settings) {
    let refused = AtomicUsize::new(0);
    let proxy = Proxy::start(&weed.endpoint(), move |head| {
        match head.contains("partnumber=2") {
            true if refused.fetch_add(1, Ordering::SeqCst) < 2 => Action::Refuse(503, "SlowDown"),
            _ => Action::Pass,
        }
    });
    let limiter = Some(Arc::new(Limiter::new(10_000_000, || Some(10_000_000))));
    let store = connect_by(
        &proxy,
        S3Settings {
            limiter,
            ..settings
        },
    )
    .await;
    let (large, begun) = (pattern(2 * PART + 5, 1), Instant::now());
    upload(&store, &key("large"), &large).await.unwrap();
    let took = begun.elapsed();
    // Part 2 is sent three times: 20 MB in all.
    println!(
        "    {} bytes and two parts again at 10 MB/s: {took:?}",
        large.len()
    );
    assert!(
        (Duration::from_millis(1900)..Duration::from_secs(300)).contains(&took),
        "{took:?}"
    );
    assert!(
        store.get(&key("large"), None, 1 << 30).await.unwrap() == large,
        "other bytes came"
    );
    store.put_new(&key("small"), pattern(100, 1)).await.unwrap();
    store.put_new(&key("nothing"), pattern(0, 1)).await.unwrap();
}

pub(super) async fn s3_downloads_keep_the_rate_limit(_: Arc<Weed>, settings: S3Settings) {
    let bytes = pattern(1_000_000, 1);
    let plain = connect(settings.clone()).await;
    plain.put_new(&key("x"), bytes.clone()).await.unwrap();
    let limiter_down = Some(Arc::new(Limiter::new(2_000_000, || Some(2_000_000))));
    let store = connect(S3Settings {
        limiter_down,
        ..settings
    })
    .await;
    let (name, begun) = (key("x"), Instant::now());
    let whole = store.get(&name, None, 1 << 30);
    let range = store.get(&name, Some(0..1_000_000), 1 << 30);
    let (whole, range) = tokio::join!(whole, range);
    let took = begun.elapsed();
    assert!(whole.unwrap() == bytes && range.unwrap() == bytes);
    println!("    2 x 1 MB at 2 MB/s: {took:?}");
    assert!(
        (Duration::from_millis(800)..Duration::from_secs(300)).contains(&took),
        "{took:?}"
    );
}

fn credentials(id: &str, secret: &str) -> S3Credentials {
    S3Credentials {
        access_key_id: id.to_owned(),
        secret_access_key: secret.to_owned(),
    }
}

pub(super) async fn refused_s3_keys_are_read_again(_: Arc<Weed>, settings: S3Settings) {
    for (id, secret) in [("nobody", SECRET_KEY), (ACCESS_KEY, "wrong")] {
        let readings = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&readings);
        let renew = Renew::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(credentials(ACCESS_KEY, SECRET_KEY))
        });
        let prefix = format!("{}/{id}", settings.prefix);
        let old = Some(credentials(id, secret));
        let store = connect(S3Settings {
            credentials: old.clone(),
            renew: Some(renew),
            prefix,
            ..settings.clone()
        })
        .await;
        let bytes = pattern(PART + 5, 1);
        upload(&store, &key("x"), &bytes).await.unwrap();
        assert!(
            store.get(&key("x"), None, 1 << 30).await.unwrap() == bytes,
            "other bytes came"
        );
        assert_eq!(
            readings.load(Ordering::SeqCst),
            1,
            "read once, when they were refused"
        );
        // A file that cannot be read now: the store's refusal is reported.
        let renew = Renew::new(|| Err("the file is gone".into()));
        let store = connect(S3Settings {
            credentials: old,
            renew: Some(renew),
            ..settings.clone()
        })
        .await;
        assert_eq!(
            store.list("").await.unwrap_err().kind,
            StoreErrorKind::Denied
        );
    }
}

pub(super) async fn expired_s3_session_is_renewed_or_reported(
    weed: Arc<Weed>,
    settings: S3Settings,
) {
    for over in [3, usize::MAX] {
        let asked = AtomicUsize::new(0);
        let proxy = Proxy::start(&weed.endpoint(), move |head| {
            match head.contains("partnumber=") {
                true if asked.fetch_add(1, Ordering::SeqCst) < over => {
                    Action::Refuse(400, "ExpiredToken")
                }
                _ => Action::Pass,
            }
        });
        let renew = Some(Renew::new(|| Ok(credentials(ACCESS_KEY, SECRET_KEY))));
        let store = connect_by(
            &proxy,
            S3Settings {
                renew,
                ..settings.clone()
            },
        )
        .await;
        let uploaded = upload(&store, &key(&format!("x{over}")), &pattern(PART + 5, 1)).await;
        match over {
            3 => drop(uploaded.unwrap()),
            _ => {
                let error = uploaded.unwrap_err();
                assert_eq!(error.kind, StoreErrorKind::Denied);
                super::assert_says(
                    &error,
                    &[
                        "ExpiredToken",
                        "the session has expired: get new credentials",
                    ],
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_contain_no_s3_secret() {
    let weed = Weed::start("secrets").await;
    let log = Captured::begin();
    for limiter in [
        None,
        Some(Arc::new(Limiter::new(100_000_000, || Some(100_000_000)))),
    ] {
        let renew = Some(Renew::new(|| Ok(credentials(ACCESS_KEY, SECRET_KEY))));
        let wrong = Some(credentials(ACCESS_KEY, "wrong-and-secret"));
        let encryption = CustomerKey::from_base64(KEY).map(S3Encryption::Customer);
        let store = connect(S3Settings {
            credentials: wrong,
            renew,
            limiter,
            encryption,
            ..weed.settings("secrets")
        })
        .await;
        let bytes = pattern(PART + 5, 1);
        let name = key(&format!("{}", log.text().len()));
        upload(&store, &name, &bytes).await.unwrap();
        store.get(&name, None, 1 << 30).await.unwrap();
    }
    let text = log.text();
    println!("    {} lines of log", text.lines().count());
    assert!(
        text.contains("and there are new ones"),
        "the log is not the log"
    );
    for secret in [SECRET_KEY, "wrong-and-secret", KEY] {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
