//! Requests of a store that is away, by a simulated clock.

use super::*;
use crate::store::StoreErrorKind::{Denied, Interrupted, NotFound, Throttled, Unavailable};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const LIMIT: Duration = Duration::from_secs(30 * 60);

/// A store that is away until some time of a simulated clock.
struct Away {
    clock: PatienceClock,
    begun: Instant,
    time: Duration,
    requests: AtomicUsize,
}

impl Away {
    fn for_seconds(seconds: u64) -> Self {
        Self::during(Duration::from_secs(seconds))
    }

    fn during(time: Duration) -> Self {
        let begun = "2026-11-30T03:12:45[UTC]".parse().unwrap();
        let clock = PatienceClock::simulated(begun);
        Self {
            begun: clock.now(),
            clock,
            time,
            requests: AtomicUsize::new(0),
        }
    }

    fn patience(&self, limit: Duration) -> (Arc<Patience>, watch::Sender<bool>) {
        let (sender, stop) = watch::channel(false);
        let patience = Patience::by_clock(limit, stop, self.clock.clone());
        (Arc::new(patience), sender)
    }

    fn passed(&self) -> u64 {
        (self.clock.now() - self.begun).as_secs()
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    async fn request(&self) -> Result<(), StoreError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        match self.clock.now() - self.begun < self.time {
            true => Err(failure(Unavailable)),
            false => Ok(()),
        }
    }
}

fn failure(kind: StoreErrorKind) -> StoreError {
    StoreError::new(kind, "get", "tank/@a/chunk", "s3:b/p", "connection refused")
}

/// The lines of the log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Logs into the returned lines while the guard lives.
fn log() -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

impl Lines {
    fn read(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }
}

#[tokio::test]
async fn outage_shorter_than_the_limit_is_waited_out_with_growing_pauses() {
    let away = Away::for_seconds(180);
    let (patience, _sender) = away.patience(LIMIT);
    patience.wait_out(|| away.request()).await.unwrap();
    let passed = away.passed();
    assert!((180..=210).contains(&passed), "{passed} s");
    let requests = away.requests();
    assert!((8..=20).contains(&requests), "{requests} requests");
}

/// Outages of each length, with the limit and the largest number of requests.
#[tokio::test]
async fn outages_from_half_a_second_to_ten_minutes_by_table() {
    let table = [
        (500, LIMIT, true, 2),
        (5_000, LIMIT, true, 4),
        (30_000, LIMIT, true, 8),
        (90_000, LIMIT, true, 11),
        (180_000, LIMIT, true, 16),
        (600_000, LIMIT, true, 48),
        (500, Duration::from_secs(60), true, 2),
        (59_000, Duration::from_secs(60), true, 12),
        (90_000, Duration::from_secs(60), false, 12),
        (600_000, Duration::from_secs(60), false, 12),
        (500, Duration::ZERO, false, 1),
    ];
    for (millis, limit, ends_well, requests_max) in table {
        let away = Away::during(Duration::from_millis(millis));
        let (patience, _sender) = away.patience(limit);
        let ended = patience.wait_out(|| away.request()).await;
        let (passed, requests) = (away.clock.now() - away.begun, away.requests());
        let row = format!("{millis} ms, limit {limit:?}: {requests} requests in {passed:?}");
        assert_eq!(ended.is_ok(), ends_well, "{row}");
        assert!(requests <= requests_max, "{row}");
        match ended {
            // The store answers again at most one pause before a request notices it.
            Ok(()) => assert!(passed < away.time + PAUSE_MAX.mul_f64(1.5), "{row}"),
            Err(error) => {
                assert_eq!(passed, limit, "{row}");
                assert_eq!(error.kind, Unavailable, "{row}");
            }
        }
    }
}

#[tokio::test]
async fn one_outage_of_many_requests_is_logged_once_at_its_start_and_once_at_its_end() {
    let (lines, _guard) = log();
    let away = Away::for_seconds(180);
    let (patience, _sender) = away.patience(LIMIT);
    let requests = (0..6).map(|_| patience.wait_out(|| away.request()));
    for done in futures_util::future::join_all(requests).await {
        done.unwrap();
    }
    let lines = lines.read();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        lines[0],
        "WARN s3:b/p has not answered since 03:12:45; retrying until 03:42:45 (retry_for = 30m) \
         error=get tank/@a/chunk in s3:b/p: connection refused"
    );
    assert!(
        lines[1].starts_with("WARN s3:b/p answers again after 3m"),
        "{lines:?}"
    );
}

#[tokio::test]
async fn outage_longer_than_the_limit_fails_with_the_time_that_was_waited() {
    let away = Away::for_seconds(u64::MAX);
    let (patience, _sender) = away.patience(LIMIT);
    let error = patience.wait_out(|| away.request()).await.unwrap_err();
    assert_eq!(away.passed(), LIMIT.as_secs());
    assert_eq!(
        (error.kind, error.wait, error.is_transient()),
        (Unavailable, Wait::IsOver, false)
    );
    assert_eq!(
        error_chain(&error),
        "get tank/@a/chunk in s3:b/p: no answer since 03:12:45, gave up after 30m (retry_for = 30m): \
         connection refused"
    );
}

#[tokio::test]
async fn after_a_wait_in_vain_each_request_gets_one_attempt_until_one_succeeds() {
    let away = Away::for_seconds(3600);
    let (patience, _sender) = away.patience(LIMIT);
    patience.wait_out(|| away.request()).await.unwrap_err();
    let requests = away.requests();
    for _ in 0..5 {
        let error = patience.wait_out(|| away.request()).await.unwrap_err();
        assert!(
            error_chain(&error).contains("no answer since 03:12:45"),
            "{error}"
        );
    }
    assert_eq!(
        (away.requests(), away.passed()),
        (requests + 5, LIMIT.as_secs())
    );

    away.clock.sleep(LIMIT).await;
    patience.wait_out(|| away.request()).await.unwrap();
    // The next outage is waited for again.
    let next = Away {
        time: Duration::from_secs(60),
        ..Away::for_seconds(0)
    };
    let begun = away.passed();
    patience
        .wait_out(|| async {
            match away.passed() - begun < 60 {
                true => next.request().await.and(Err(failure(Throttled))),
                false => Ok(()),
            }
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn limit_of_zero_returns_the_first_failure_unchanged() {
    let away = Away::for_seconds(60);
    let (patience, _sender) = away.patience(Duration::ZERO);
    let error = patience.wait_out(|| away.request()).await.unwrap_err();
    assert_eq!((away.requests(), away.passed()), (1, 0));
    assert_eq!((error.wait, error.is_transient()), (Wait::Helps, true));
}

#[tokio::test]
async fn a_stop_ends_the_wait_at_once() {
    let (sender, stop) = watch::channel(false);
    let patience = Arc::new(Patience::new(LIMIT, stop));
    let waiting = Arc::clone(&patience);
    let request = tokio::spawn(async move {
        waiting
            .wait_out(|| async { Err::<(), _>(failure(Unavailable)) })
            .await
    });
    while !patience.is_store_silent() {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    sender.send_replace(true);
    let error = request.await.unwrap().unwrap_err();
    assert_eq!(error.kind, Interrupted);
    assert!(begun.elapsed() < Duration::from_secs(1));
    // A clean-up after the stop does not wait either.
    let error = patience
        .wait_out(|| async { Err::<(), _>(failure(Unavailable)) })
        .await
        .unwrap_err();
    assert_eq!(error.kind, Interrupted);
}

#[tokio::test]
async fn permanent_failures_are_never_waited_for() {
    let away = Away::for_seconds(60);
    let (patience, _sender) = away.patience(LIMIT);
    for kind in [
        NotFound,
        Denied,
        StoreErrorKind::AlreadyExists,
        StoreErrorKind::Corrupt,
        StoreErrorKind::Full,
        StoreErrorKind::Invalid,
        StoreErrorKind::Unsupported,
    ] {
        let error = patience
            .wait_out(|| async { Err::<(), _>(failure(kind)) })
            .await
            .unwrap_err();
        assert_eq!((error.kind, away.passed()), (kind, 0));
    }
    let archived = patience
        .wait_out(|| async { Err::<(), _>(failure(Unavailable).with_outage(false)) })
        .await
        .unwrap_err();
    assert_eq!((archived.kind, away.passed()), (Unavailable, 0));
}

#[tokio::test]
async fn request_that_fails_while_others_succeed_does_not_wait_for_ever() {
    let (lines, _guard) = log();
    let away = Away::for_seconds(0);
    let (patience, _sender) = away.patience(LIMIT);
    let error = patience
        .wait_out(|| async {
            // Another request succeeds during each attempt.
            away.clock.sleep(Duration::from_secs(1)).await;
            patience.wait_out(|| away.request()).await?;
            Err::<(), _>(failure(Unavailable))
        })
        .await
        .unwrap_err();
    assert_eq!(error.wait, Wait::IsOver);
    let passed = away.passed();
    assert!((1800..1840).contains(&passed), "{passed} s");
    let lines = lines.read();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("s3:b/p answers, but not this request; retrying until 03:4"),
        "{lines:?}"
    );
}

/// The last attempt of a request begins during the outage, and fails after another request got an
/// answer.
#[tokio::test]
async fn request_that_fails_at_the_end_of_an_outage_is_repeated_soon() {
    let (lines, _guard) = log();
    let away = Away::for_seconds(0);
    let (patience, _sender) = away.patience(LIMIT);
    let mut late = patience.begin();
    for _ in 0..8 {
        late.wait_after(failure(Unavailable)).await.unwrap();
    }
    patience.wait_out(|| away.request()).await.unwrap();
    let before = away.passed();
    late.wait_after(failure(Unavailable)).await.unwrap();
    assert!(away.passed() - before <= PAUSE_FIRST.as_secs());
    let lines = lines.read();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].contains("answers again after"), "{lines:?}");
}

#[test]
fn lengths_are_printed_short() {
    for (seconds, text) in [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (185, "3m 5s"),
        (1800, "30m"),
        (3600, "1h"),
        (5400, "90m"),
        (7200, "2h"),
        (3785, "63m 5s"),
    ] {
        assert_eq!(length_text(Duration::from_secs(seconds)), text);
    }
}
