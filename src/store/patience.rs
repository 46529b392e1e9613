//! [`Patience`]: waits while a store does not answer, instead of failing.
//!
//! All requests of a run to one store share one [`Patience`]. The first request that fails
//! begins an outage and sets its end; the others wait in the same outage. The first request that
//! succeeds ends the outage. After the end of an outage each request gets one normal attempt, until
//! one succeeds. The retries of the stores themselves, which last seconds, come before.

mod clock;

pub use clock::PatienceClock;

use super::work::random_u64;
use super::{StoreError, StoreErrorKind, Wait};
use crate::model::error_chain;
use std::error::Error;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// The first pause of a request. The store's own retries have lasted seconds by then.
const PAUSE_FIRST: Duration = Duration::from_secs(2);
/// The longest pause: the longest time for which a request may miss that the store answers again.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The wait for a store that does not answer.
#[derive(Debug)]
pub struct Patience {
    /// The longest wait in one outage; zero for none.
    limit: Duration,
    /// Becomes true when a person or the system requests a stop. Without it nobody can.
    stop: Option<watch::Receiver<bool>>,
    clock: PatienceClock,
    state: Mutex<State>,
    /// Wakes the requests that wait when the store answers again.
    answered: Notify,
}

#[derive(Debug, Default)]
struct State {
    count: Count,
    outage: Option<Outage>,
}

/// The numbers of answers and outages so far. The difference from the numbers at the start of an
/// attempt tells what happened since; a clock is too coarse for that order.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    answers: u64,
    outages: u64,
}

/// A time in which the store does not answer.
#[derive(Debug, Clone)]
struct Outage {
    /// The store, for messages.
    store: String,
    since: Instant,
    /// The time of day of `since`.
    since_text: String,
    /// Whether the wait for its end was given up.
    is_given_up: bool,
}

/// How a failed request continues.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The request waits, at most until this time.
    WaitUntil(Instant),
    /// The request fails at once with the error of the store.
    Fail,
}

impl Patience {
    /// Makes a patience that waits for at most `limit` in one outage. A request that waits fails at once with
    /// [`StoreErrorKind::Interrupted`] when `stop` becomes true.
    pub fn new(limit: Duration, stop: watch::Receiver<bool>) -> Self {
        Self {
            limit,
            stop: Some(stop),
            ..Self::never()
        }
    }

    /// Makes a patience that never waits.
    pub fn never() -> Self {
        Self {
            limit: Duration::ZERO,
            stop: None,
            clock: PatienceClock::Host,
            state: Mutex::default(),
            answered: Notify::new(),
        }
    }

    /// Makes a patience that waits by a simulated clock.
    #[cfg(any(test, feature = "testing"))]
    pub fn by_clock(limit: Duration, stop: watch::Receiver<bool>, clock: PatienceClock) -> Self {
        Self {
            clock,
            ..Self::new(limit, stop)
        }
    }

    /// Repeats `attempt` while the store does not answer. The attempt must be safe to repeat after
    /// a lost reply, and its success must mean that the store answered.
    pub(crate) async fn wait_out<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let (done, begun) = self.attempt_until_done(attempt).await?;
        self.note_answer(begun);
        Ok(done)
    }

    /// Does the same as [`Patience::wait_out`] for an attempt that may succeed without a request.
    pub(super) async fn repeat<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let (done, _) = self.attempt_until_done(attempt).await?;
        Ok(done)
    }

    /// Returns the result of the successful attempt, and the numbers at its start.
    async fn attempt_until_done<T, F>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<(T, Count), StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut attempts = self.begin();
        loop {
            match attempt().await {
                Err(error) => attempts.wait_after(error).await?,
                Ok(done) => return Ok((done, attempts.begun)),
            }
        }
    }

    /// Begins the attempts of one request.
    pub(super) fn begin(&self) -> Attempts<'_> {
        Attempts {
            patience: self,
            begun: self.state().count,
            ends_at: None,
            pause_next: PAUSE_FIRST,
            was_silent: false,
            is_announced: false,
        }
    }

    /// Whether the store did not answer the last request. Cleaning up would only take time.
    pub(super) fn is_store_silent(&self) -> bool {
        self.state().outage.is_some()
    }

    /// Whether requests wait for the store and are repeated when it may answer again.
    pub(super) fn is_waiting(&self) -> bool {
        let state = self.state();
        state
            .outage
            .as_ref()
            .is_some_and(|outage| !outage.is_given_up)
    }

    /// Ends the outage, because the store answered an attempt that began after it.
    fn note_answer(&self, begun: Count) {
        let mut state = self.state();
        state.count.answers += 1;
        if begun.outages < state.count.outages {
            return;
        }
        let Some(outage) = state.outage.take() else {
            return;
        };
        drop(state);
        self.answered.notify_waiters();
        let now = self.clock.now();
        tracing::warn!(
            "{} answers again after {}",
            outage.store,
            length_text(now.saturating_duration_since(outage.since))
        );
    }

    /// Decides for a request whose attempt failed now, and which may wait until `ends_at` on its own
    /// account.
    fn note_failure(&self, begun: Count, ends_at: Instant, error: &StoreError) -> Next {
        let now = self.clock.now();
        let mut state = self.state();
        let State { count, outage } = &mut *state;
        let outage = match outage {
            Some(outage) => outage,
            // The store has answered another request since: the failure is older than that, or it
            // concerns only this object.
            None if count.answers > begun.answers => {
                return if now < ends_at {
                    Next::WaitUntil(ends_at)
                } else {
                    Next::Fail
                };
            }
            None => {
                count.outages += 1;
                let since_text = self.clock.time_text(Duration::ZERO);
                tracing::warn!(
                    error = %error_chain(error),
                    "{} has not answered since {since_text}; retrying until {} (retry_for = {})",
                    error.store,
                    self.clock.time_text(self.limit),
                    length_text(self.limit),
                );
                outage.insert(Outage {
                    store: error.store.clone(),
                    since: now,
                    since_text,
                    is_given_up: false,
                })
            }
        };
        let outage_ends_at = outage.since + self.limit;
        outage.is_given_up |= now >= outage_ends_at;
        if outage.is_given_up || now >= ends_at {
            return Next::Fail;
        }
        Next::WaitUntil(ends_at.min(outage_ends_at))
    }

    /// Returns the error of a request that does not wait any longer.
    fn give_up(&self, error: StoreError) -> StoreError {
        let since = self
            .state()
            .outage
            .as_ref()
            .map(|outage| outage.since_text.clone());
        let waited = length_text(self.limit);
        let source = Box::new(GaveUp {
            since,
            waited,
            source: error.source,
        });
        StoreError {
            wait: Wait::IsOver,
            source,
            ..error
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| *stop.borrow())
    }

    /// Waits for the pause, for an answer to another request, or for a stop. Returns whether a stop
    /// was requested.
    async fn pause(&self, pause: Duration) -> bool {
        let mut stop = self.stop.clone();
        let stopped = async {
            if let Some(stop) = &mut stop
                && stop.wait_for(|stop| *stop).await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            () = stopped => true,
            () = self.answered.notified() => false,
            () = self.clock.sleep(pause) => false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The attempts of one request.
pub(super) struct Attempts<'a> {
    patience: &'a Patience,
    /// The numbers at the start of the present attempt.
    begun: Count,
    /// The end of the wait of this request, from its first failure. Without it a request that
    /// always fails would wait for ever beside others that succeed.
    ends_at: Option<Instant>,
    pause_next: Duration,
    /// Whether the store did not answer at the last failure.
    was_silent: bool,
    /// Whether the log has named this request, because others succeed meanwhile.
    is_announced: bool,
}

impl Attempts<'_> {
    /// Waits after a failed attempt; then the caller makes the next one.
    ///
    /// # Errors
    /// `error`, if no wait helps or the wait is over; [`StoreErrorKind::Interrupted`] when a stop
    /// is requested.
    pub(super) async fn wait_after(&mut self, error: StoreError) -> Result<(), StoreError> {
        let patience = self.patience;
        if patience.limit.is_zero() || !error.is_transient() || error.wait != Wait::Helps {
            return Err(error);
        }
        let interrupted = |error| StoreError {
            kind: StoreErrorKind::Interrupted,
            ..error
        };
        if patience.is_stopped() {
            return Err(interrupted(error));
        }
        let now = patience.clock.now();
        let ends_at = *self.ends_at.get_or_insert(now + patience.limit);
        let until = match patience.note_failure(self.begun, ends_at, &error) {
            Next::WaitUntil(until) => until,
            Next::Fail => return Err(patience.give_up(error)),
        };
        let is_silent = patience.is_store_silent();
        if self.was_silent && !is_silent {
            // The attempt began before the end of the outage, so the next one may succeed at once.
            self.pause_next = PAUSE_FIRST;
        }
        self.was_silent = is_silent;
        let pause = jittered(self.pause_next).min(until.saturating_duration_since(now));
        self.pause_next = (self.pause_next * 2).min(PAUSE_MAX);
        if self.pause_next == PAUSE_MAX && !self.is_announced && !is_silent {
            self.is_announced = true;
            let store = &error.store;
            let until = patience.clock.time_text(until - now);
            tracing::warn!(
                error = %error_chain(&error),
                "{store} answers, but not this request; retrying until {until} (retry_for = {})",
                length_text(patience.limit),
            );
        }
        if patience.pause(pause).await {
            return Err(interrupted(error));
        }
        self.begun = patience.state().count;
        Ok(())
    }
}

/// The cause of a request that waited in vain, or that was made after such a wait.
#[derive(Debug)]
struct GaveUp {
    since: Option<String>,
    waited: String,
    source: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.since {
            Some(since) => write!(f, "no answer since {since}, gave up after {}", self.waited)?,
            None => write!(f, "gave up after {}", self.waited)?,
        }
        write!(f, " (retry_for = {})", self.waited)
    }
}

impl Error for GaveUp {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// Returns between half of the pause and all of it, so that requests do not come all at once.
fn jittered(pause: Duration) -> Duration {
    let chance = u16::try_from(random_u64().unwrap_or(0) % 1024).unwrap_or(0);
    pause / 2 + (pause / 2).mul_f64(f64::from(chance) / 1024.0)
}

/// Returns a length of time as `2h`, `30m` or `3m 5s`.
fn length_text(length: Duration) -> String {
    let seconds = length.as_secs();
    match (seconds / 60, seconds % 60) {
        (minutes @ 60.., 0) if minutes.is_multiple_of(60) => format!("{}h", minutes / 60),
        (0, seconds) => format!("{seconds}s"),
        (minutes, 0) => format!("{minutes}m"),
        (minutes, seconds) => format!("{minutes}m {seconds}s"),
    }
}

#[cfg(test)]
mod tests;
