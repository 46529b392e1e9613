//! [`Limiter`]: the bandwidth limit of all uploads of this process together, or of all downloads.
//!
//! The body of an upload yields its bytes in small pieces, each at its scheduled time. Pieces of all
//! bodies are scheduled in one queue, so that their sum never exceeds the limit. A body is made of
//! bytes in memory and can be made again for every attempt.
//!
//! The reader of a download waits after each piece until its bytes fit the limit, before it takes
//! the next one from the connection. The sender then waits too, once the kernel's buffer is full.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep_until};

/// The time that one piece occupies the queue: long enough that timers need not be exact for each
/// piece, short enough to be smooth.
const PIECE_TIME_MS: u64 = 20;
/// The smallest piece. Smaller ones would be mostly headers; at the slowest limit (1 KiB/s) four
/// bodies in turn still each send within 4 s.
const PIECE_BYTES_MIN: u64 = 1024;
const PIECE_BYTES_MAX: u64 = 256 * 1024;
/// The longest delay of timers that later pieces make up for; unused bandwidth from before that is
/// lost.
const CATCH_UP: Duration = Duration::from_millis(100);
/// The present rate in bytes per second, or `None` for no limit.
type Rate = dyn Fn() -> Option<u64> + Send + Sync;
/// The number of objects that are read at once at most: a catalog reads 16 small ones, and a restore
/// fewer pieces of chunks.
const READERS_MAX: usize = 16;

/// A queue for all uploads, or for all downloads. Clones of the [`Arc`] around it share it.
pub struct Limiter {
    rate: Box<Rate>,
    slowest: u64,
    line: Mutex<Line>,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Limiter(at least {} bytes per second)", self.slowest)
    }
}

impl Limiter {
    /// Makes a limiter. `rate` returns the present bytes per second (`None`: no limit), and is
    /// called for every piece, so it must be quick. `slowest` is the lowest rate that it ever
    /// returns: time limits are derived from it.
    pub fn new(slowest: u64, rate: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Self {
        Self {
            rate: Box::new(rate),
            slowest: slowest.max(1),
            line: Mutex::default(),
        }
    }

    /// Returns the slowest rate that may be expected of one of `senders` senders, where `own` is
    /// the slowest without a limit. The result is half of its share, because other uploads may be
    /// queued too.
    pub(super) fn rate_bytes_min(&self, own: u64, senders: usize) -> u64 {
        own.min(self.slowest / (2 * senders.max(1) as u64)).max(1)
    }

    /// Returns the slowest rate that a reader may be expected to have. `own` is the slowest without a
    /// limit.
    pub(super) fn read_rate_bytes_min(limiter: Option<&Self>, own: u64) -> u64 {
        limiter.map_or(own, |limiter| limiter.rate_bytes_min(own, READERS_MAX))
    }

    /// Waits until this many received bytes fit the limit.
    pub(super) async fn admit(&self, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let (piece, until) = self.reserve(Instant::now(), left);
            if let Some(until) = until {
                sleep_until(until.into()).await;
            }
            left -= piece;
        }
    }

    /// Reserves a place in the queue for the next piece of `left` bytes. Returns the length of the
    /// piece and the time at which it may be sent.
    fn reserve(&self, now: Instant, left: usize) -> (usize, Option<Instant>) {
        let rate = (self.rate)();
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        match rate {
            Some(rate) => {
                let bytes = piece_bytes(rate).min(left);
                (bytes, Some(line.take(now, bytes, rate)))
            }
            None => {
                *line = Line::default();
                (left, None)
            }
        }
    }
}

fn piece_bytes(rate: u64) -> usize {
    let bytes = (rate / (1000 / PIECE_TIME_MS)).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
    usize::try_from(bytes).unwrap_or(1024)
}

/// The time until which the queue is occupied. Pure: times are arguments.
#[derive(Default)]
struct Line {
    taken_until: Option<Instant>,
}

impl Line {
    /// Returns the time at which these bytes may be sent at `rate` bytes per second.
    fn take(&mut self, now: Instant, bytes: usize, rate: u64) -> Instant {
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        let start = self.taken_until.map_or(now, |until| until.max(earliest));
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate.max(1)));
        self.taken_until =
            Some(start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        start
    }
}

/// Bytes in memory that are sent as the limiter allows.
pub(super) struct PacedBody {
    limiter: Arc<Limiter>,
    left: Bytes,
    /// The piece that waits for its time.
    waiting: Option<(usize, Pin<Box<Sleep>>)>,
}

impl PacedBody {
    pub(super) fn new(limiter: Arc<Limiter>, bytes: Bytes) -> Self {
        Self {
            limiter,
            left: bytes,
            waiting: None,
        }
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let bytes = match self.waiting.take() {
            Some((bytes, sleep)) => self.wait(context, bytes, sleep),
            None => {
                let now = Instant::now();
                match self.limiter.reserve(now, self.left.len()) {
                    (bytes, Some(until)) if until > now => {
                        self.wait(context, bytes, Box::pin(sleep_until(until.into())))
                    }
                    (bytes, _) => Poll::Ready(bytes),
                }
            }
        };
        let bytes = ready!(bytes);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

impl PacedBody {
    fn wait(
        &mut self,
        context: &mut Context<'_>,
        bytes: usize,
        mut sleep: Pin<Box<Sleep>>,
    ) -> Poll<usize> {
        match sleep.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(bytes),
            Poll::Pending => {
                self.waiting = Some((bytes, sleep));
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Sends pieces in turn by a simulated clock whose timers are late, and returns the elapsed
    /// time.
    fn simulate(rate: u64, total: u64, late: Duration) -> Duration {
        let begun = Instant::now();
        let (mut line, mut now, mut sent) = (Line::default(), begun, 0);
        while sent < total {
            let bytes = piece_bytes(rate);
            let goes = line.take(now, bytes, rate);
            if goes > now {
                now = goes + late;
            }
            sent += bytes as u64;
        }
        now - begun
    }

    #[test]
    fn limiter_keeps_each_rate_despite_late_timers() {
        for (rate, total, seconds) in [
            (1024, 60 * 1024, 60),
            (512 * 1024, 30 << 20, 60),
            (20 << 20, 1 << 30, 51),
            (1 << 30, 10 << 30, 10),
        ] {
            for late_ms in [0, 1, 15] {
                let took = simulate(rate, total, Duration::from_millis(late_ms)).as_secs_f64();
                let expected = f64::from(seconds);
                assert!(
                    (took - expected).abs() < expected * 0.05,
                    "{rate}/s, {late_ms} ms late: {took} s"
                );
            }
        }
    }

    #[test]
    fn no_second_gets_more_than_the_limit_after_a_pause() {
        let (mut line, mut now, rate) = (Line::default(), Instant::now(), 1_000_000);
        for _ in 0..100 {
            now = now.max(line.take(now, 20_000, rate));
        }
        now += Duration::from_secs(3600);
        let (mut sent, end) = (0, now + Duration::from_secs(1));
        while line.take(now, 20_000, rate) < end {
            sent += 20_000;
        }
        assert!(
            (1_000_000..=1_120_000).contains(&sent),
            "{sent} bytes in the second after a pause"
        );
    }

    #[test]
    fn changed_rate_applies_from_the_next_piece() {
        let rate = Arc::new(AtomicU64::new(1000));
        let asked = Arc::clone(&rate);
        let limiter = Limiter::new(1000, move || {
            Some(asked.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
        });
        let now = Instant::now();
        assert_eq!(limiter.reserve(now, 5000), (1024, Some(now)));
        assert_eq!(
            limiter.reserve(now, 5000).1,
            Some(now + Duration::from_millis(1024))
        );
        rate.store(1_024_000, Ordering::Relaxed);
        let (bytes, _) = limiter.reserve(now, 50_000);
        assert_eq!(bytes, 20_480);
        assert_eq!(
            limiter.reserve(now, 1).1,
            Some(now + Duration::from_millis(2068))
        );
        rate.store(0, Ordering::Relaxed);
        assert_eq!(
            limiter.reserve(now, 50_000_000),
            (50_000_000, None),
            "no limit, no pieces"
        );
        rate.store(1000, Ordering::Relaxed);
        assert_eq!(
            limiter.reserve(now, 10),
            (10, Some(now)),
            "nothing is owed from before"
        );
    }

    #[test]
    fn time_limits_follow_the_limit() {
        let limiter = Limiter::new(8192, || None);
        for (own, senders, expected) in [
            (32 * 1024, 4, 1024),
            (100, 4, 100),
            (32 * 1024, 0, 4096),
            (1, 1 << 20, 1),
        ] {
            assert_eq!(limiter.rate_bytes_min(own, senders), expected);
        }
    }

    #[tokio::test]
    async fn concurrent_readers_share_the_rate() {
        let limiter = Limiter::new(1, || Some(2_000_000));
        let begun = Instant::now();
        tokio::join!(
            limiter.admit(300_000),
            limiter.admit(300_000),
            limiter.admit(0)
        );
        // 600 kB at 2 MB/s, minus the last piece of 20 ms; a busy machine is slower.
        let took = begun.elapsed();
        assert!(
            (Duration::from_millis(150)..Duration::from_secs(120)).contains(&took),
            "{took:?}"
        );
        let unlimited = Limiter::new(1, || None);
        unlimited.admit(usize::MAX).await;
    }

    #[tokio::test]
    async fn concurrent_paced_bodies_share_the_rate_and_arrive_complete() {
        let limiter = Arc::new(Limiter::new(1, || Some(2_000_000)));
        let begun = Instant::now();
        let whole: Bytes = (0..300_000_u32)
            .map(|n| u8::try_from(n % 251).unwrap_or(0))
            .collect();
        let send = |bytes: Bytes| {
            let mut body = PacedBody::new(Arc::clone(&limiter), bytes.clone());
            async move {
                assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
                let mut came = Vec::new();
                while let Some(frame) =
                    poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
                {
                    let Ok(frame) = frame;
                    came.extend_from_slice(&frame.into_data().unwrap());
                }
                assert!(body.is_end_stream() && came == bytes, "other bytes came");
            }
        };
        tokio::join!(send(whole.clone()), send(whole.clone()), send(Bytes::new()));
        // 600 kB at 2 MB/s, minus the last piece of 20 ms; a busy machine is slower.
        let took = begun.elapsed();
        assert!(
            (Duration::from_millis(150)..Duration::from_secs(120)).contains(&took),
            "{took:?}"
        );
    }
}
