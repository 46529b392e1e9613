//! [`PatienceClock`]: the time by which a store is waited for.

use jiff::{SignedDuration, Zoned};
#[cfg(any(test, feature = "testing"))]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::{Duration, Instant};

/// A clock that cannot jump, with the time of day for messages.
#[derive(Debug, Clone)]
pub enum PatienceClock {
    /// The clocks of this host.
    Host,
    /// A clock that only sleepers move: a sleep takes no time.
    #[cfg(any(test, feature = "testing"))]
    Simulated {
        /// The time at which the clock began.
        begun_at: Instant,
        /// The time of day then.
        begun: Zoned,
        /// The milliseconds that have passed since the clock was made.
        passed_ms: Arc<AtomicU64>,
    },
}

impl PatienceClock {
    /// Makes a clock for a test.
    #[cfg(any(test, feature = "testing"))]
    pub fn simulated(begun: Zoned) -> Self {
        Self::Simulated {
            begun_at: Instant::now(),
            begun,
            passed_ms: Arc::default(),
        }
    }

    /// Returns the present time.
    pub fn now(&self) -> Instant {
        match self {
            Self::Host => Instant::now(),
            #[cfg(any(test, feature = "testing"))]
            Self::Simulated {
                begun_at,
                passed_ms,
                ..
            } => *begun_at + Duration::from_millis(passed_ms.load(Ordering::SeqCst)),
        }
    }

    /// Returns the time of day after `later`, with the date unless that is today.
    pub(super) fn time_text(&self, later: Duration) -> String {
        let now = match self {
            Self::Host => Zoned::now(),
            #[cfg(any(test, feature = "testing"))]
            Self::Simulated {
                begun, passed_ms, ..
            } => begun.saturating_add(Duration::from_millis(passed_ms.load(Ordering::SeqCst))),
        };
        let later = SignedDuration::try_from(later).unwrap_or(SignedDuration::MAX);
        let then = now.saturating_add(later);
        let form = match then.date() == now.date() {
            true => "%H:%M:%S",
            false => "%F %H:%M:%S",
        };
        then.strftime(form).to_string()
    }

    pub(super) async fn sleep(&self, time: Duration) {
        match self {
            Self::Host => tokio::time::sleep(time).await,
            #[cfg(any(test, feature = "testing"))]
            Self::Simulated { passed_ms, .. } => {
                let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
                passed_ms.fetch_add(time_ms, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        }
    }
}
