//! The bandwidth limit and rotated keys, on B2; and secrets that must never be logged.

use crate::b2::{assert_says, connect};
use crate::b2_sim::{B2Sim, BUCKET, Fault, KEY, credentials};
use crate::contract::{key, pattern, upload};
use futures_util::future::join_all;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zfs_backup::store::s3::LOG_LIMIT;
use zfs_backup::store::{
    B2Credentials, B2Settings, Limiter, ObjectStore, Renew, StoreErrorKind, StoreRead, StoreWrite,
};

const PART: usize = 64 * 1024;
const RIGHTS: &str = "listBuckets listFiles readFiles writeFiles deleteFiles";

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_uploads_share_the_rate_limit_and_can_be_resent() {
    let sim = B2Sim::start();
    let limiter = Some(Arc::new(Limiter::new(400_000, || Some(400_000))));
    let stores = ["one", "two"].map(|prefix| {
        connect(B2Settings {
            prefix: prefix.to_owned(),
            limiter: limiter.clone(),
            ..sim.settings()
        })
    });
    sim.fail("b2_upload_part", 1, 2, Fault::Reset);
    sim.fail("b2_upload_file", 0, 1, Fault::Status(503, "busy"));
    let (large, small) = (pattern(5 * PART + 1, 1), pattern(PART, 2));
    let begun = Instant::now();
    let put = |store, name: &str, bytes| {
        let name = key(name);
        async move { upload(store, &name, bytes).await.unwrap() }
    };
    join_all([put(&stores[0], "x", &large), put(&stores[1], "x", &large)]).await;
    put(&stores[0], "y", &small).await;
    // At least 721 kB are sent, including a part that is sent twice: 1.8 s; the last piece may be
    // sent at once, and late timers are partly made up for.
    let took = begun.elapsed();
    println!(
        "    2 x {} and {} bytes at 400 kB/s: {took:?}",
        large.len(),
        small.len()
    );
    assert!(
        (Duration::from_millis(1600)..Duration::from_secs(300)).contains(&took),
        "{took:?}"
    );
    for store in &stores {
        assert!(
            store.get(&key("x"), None, 1 << 30).await.unwrap() == large,
            "other bytes came"
        );
    }
    assert_eq!(sim.failures_left(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_downloads_share_the_rate_limit() {
    let sim = B2Sim::start();
    let limiter_down = Some(Arc::new(Limiter::new(400_000, || Some(400_000))));
    let bytes = pattern(5 * PART + 1, 1);
    upload(&connect(sim.settings()), &key("x"), &bytes)
        .await
        .unwrap();
    let stores = [(); 2].map(|()| {
        connect(B2Settings {
            limiter_down: limiter_down.clone(),
            ..sim.settings()
        })
    });
    let name = key("x");
    let begun = Instant::now();
    let whole = stores[0].get(&name, None, 1 << 30);
    let range = stores[1].get(&name, Some(0..300_000), 1 << 30);
    let (whole, range) = tokio::join!(whole, range);
    let took = begun.elapsed();
    assert!(whole.unwrap() == bytes && range.unwrap() == bytes[..300_000]);
    // 628 kB are read: 1.57 s.
    println!("    628 kB at 400 kB/s: {took:?}");
    assert!(
        (Duration::from_millis(1400)..Duration::from_secs(300)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_follow_the_limit_of_speed() {
    let sim = B2Sim::start();
    // A part then takes 6.5 s, and without the bandwidth limit an attempt would be limited to 3 s.
    let limiter = Some(Arc::new(Limiter::new(10_000, || Some(10_000))));
    let (rate_bytes_min, attempt_slack) = (64 * 1024, Duration::from_secs(2));
    let store = connect(B2Settings {
        limiter,
        rate_bytes_min,
        attempt_slack,
        concurrency: 1,
        ..sim.settings()
    });
    let bytes = pattern(PART, 1);
    upload(&store, &key("x"), &bytes).await.unwrap();
    assert_eq!(sim.requests("b2_upload_file"), 1, "one attempt was enough");
}

/// Makes a store whose key source returns `old` until it is read the n-th time.
fn store_of(
    sim: &B2Sim,
    old: &B2Credentials,
    new: &B2Credentials,
    changes_at: usize,
) -> (impl ObjectStore, Arc<AtomicUsize>) {
    let readings = Arc::new(AtomicUsize::new(0));
    let (counted, keys) = (Arc::clone(&readings), [old.clone(), new.clone()]);
    let renew = Renew::new(move || {
        let n = counted.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(keys[usize::from(n >= changes_at)].clone())
    });
    let settings = B2Settings {
        credentials: Some(old.clone()),
        renew: Some(renew),
        ..sim.settings()
    };
    (connect(settings), readings)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_outlives_its_application_key() {
    let sim = B2Sim::start();
    let old = sim.add_key("old", RIGHTS, &[BUCKET], None);
    let new = sim.add_key("new", RIGHTS, &[BUCKET], None);
    let (store, readings) = store_of(&sim, &old, &new, 1);
    let bytes = pattern(6 * PART, 1);
    let mut writer = store.create(&key("x")).await.unwrap();
    for n in 0..6 {
        if n == 3 {
            sim.remove_key("old");
        }
        writer
            .put_part(bytes.slice(n * PART..(n + 1) * PART))
            .await
            .unwrap();
    }
    writer.finish().await.unwrap();
    assert!(
        store.get(&key("x"), None, 1 << 30).await.unwrap() == bytes,
        "other bytes came"
    );
    assert_eq!(
        readings.load(Ordering::SeqCst),
        1,
        "it was read when it was refused, and once"
    );
    assert_eq!(store.unfinished("").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_more_rights_is_found_when_a_call_is_refused() {
    let sim = B2Sim::start();
    let poor = sim.add_key("poor", "listBuckets listFiles readFiles", &[BUCKET], None);
    let rich = sim.add_key("rich", RIGHTS, &[BUCKET], None);
    let (store, _) = store_of(&sim, &poor, &rich, 1);
    assert_eq!(store.list("").await.unwrap(), []);
    store.put_new(&key("x"), pattern(10, 1)).await.unwrap();
    let (store, readings) = store_of(&sim, &poor, &rich, 100);
    let error = store.put_new(&key("y"), pattern(10, 1)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied);
    assert_says(&error, &["writeFiles"]);
    assert!(
        readings.load(Ordering::SeqCst) <= 2,
        "it is not read for ever"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn permanently_expired_b2_key_is_reported() {
    let sim = B2Sim::start();
    let old = sim.add_key("old", RIGHTS, &[BUCKET], None);
    for changes in [false, true] {
        let new = if changes {
            credentials("another", "K005-wrong-and-secret")
        } else {
            old.clone()
        };
        sim.add_key("old", RIGHTS, &[BUCKET], None);
        let (store, _) = store_of(&sim, &old, &new, 1);
        store.list("").await.unwrap();
        sim.remove_key("old");
        let error = store.list("").await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Denied, "{error:?}");
        assert_says(&error, &["does not accept this application key"]);
    }
}

#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    /// Captures everything that the program can log in this process from now on, itself and by every
    /// library.
    pub(crate) fn begin() -> Self {
        let captured = Self::default();
        let to = captured.clone();
        let log = tracing_subscriber::fmt()
            .with_env_filter(format!("trace,{LOG_LIMIT}"))
            .with_ansi(false);
        log.with_writer(move || to.clone()).init();
        captured
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_contain_no_b2_secret() {
    let log = Captured::begin();
    let sim = B2Sim::start();
    let old = sim.add_key("old", RIGHTS, &[BUCKET], None);
    let wrong = credentials("another", "K005-wrong-and-secret");
    let (store, _) = store_of(&sim, &old, &wrong, 1);
    sim.fail("b2_upload_part", 1, 1, Fault::Reset);
    sim.fail("b2_upload_file", 0, 1, Fault::Status(503, "busy"));
    upload(&store, &key("x"), &pattern(3 * PART, 1))
        .await
        .unwrap();
    upload(&store, &key("y"), &pattern(10, 1)).await.unwrap();
    sim.expire_tokens();
    store.get(&key("x"), None, 1 << 30).await.unwrap();
    sim.remove_key("old");
    store.list("").await.unwrap_err();
    let text = log.text();
    println!("    {} lines of log", text.lines().count());
    assert!(
        text.contains("trying another URL") && text.contains("there is a new one"),
        "the log is not the log"
    );
    for secret in [KEY, "K005-wrong-and-secret", "_secret"] {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
