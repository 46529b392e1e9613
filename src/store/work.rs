//! Small helpers that the stores share: file work outside the async threads, parts in flight,
//! random names, errors in one line.

use jiff::Timestamp;
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tracing::{Instrument, Span};

/// Runs `work` on a thread that may block. A panic there is resumed here. The work continues to
/// its end even if the caller stops waiting.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let span = Span::current();
    match spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        // Running work is never cancelled. No work is begun once the runtime shuts down, when
        // nobody waits any more.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

/// Parts of one object in flight, and the results of those that arrived. All objects of a store
/// share the limit on the number of parts in flight. Dropping it stops the parts.
pub(crate) struct InFlight<T, E> {
    places: Arc<Semaphore>,
    tasks: JoinSet<Result<T, E>>,
    done: Vec<T>,
}

impl<T: Send + 'static, E: Send + 'static> InFlight<T, E> {
    /// Each part in flight takes one of these places.
    pub(crate) fn new(places: &Arc<Semaphore>) -> Self {
        Self {
            places: Arc::clone(places),
            tasks: JoinSet::new(),
            done: Vec::new(),
        }
    }

    /// Waits for a free permit. Returns the failure of an earlier part, if there is one.
    pub(crate) async fn place(&mut self) -> Result<OwnedSemaphorePermit, E> {
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            // The semaphore is never closed.
            return std::future::pending().await;
        };
        while let Some(ended) = self.tasks.try_join_next() {
            self.done.push(joined(ended)?);
        }
        Ok(place)
    }

    /// Starts sending a part.
    pub(crate) fn begin(
        &mut self,
        place: OwnedSemaphorePermit,
        part: impl Future<Output = Result<T, E>> + Send + 'static,
    ) {
        let sending = async move {
            let ended = part.await;
            drop(place);
            ended
        };
        self.tasks.spawn(sending.in_current_span());
    }

    /// Waits for all parts, and returns their results in no order.
    pub(crate) async fn all(&mut self) -> Result<Vec<T>, E> {
        while let Some(ended) = self.tasks.join_next().await {
            self.done.push(joined(ended)?);
        }
        Ok(std::mem::take(&mut self.done))
    }

    /// Stops the parts in flight.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }
}

/// Tasks are cancelled only by [`InFlight::stop`], which reads no results. A failure here is
/// therefore a panic, which is resumed.
fn joined<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// Returns a random number from the kernel, for unique names.
pub(crate) fn random_u64() -> io::Result<u64> {
    getrandom::u64().map_err(|error| io::Error::other(error.to_string()))
}

/// Parses the time in a `Date` header, as every HTTP server writes it.
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text.trim())
        .ok()
}

/// Whether a server answers with this status because it, or one behind it, does not work or is
/// overloaded. 501, 505 and 507 refuse the request itself.
pub(crate) fn is_outage_status(status: u16) -> bool {
    // 520 to 530 are those of a well-known proxy for a server that it cannot reach.
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504 | 509 | 520..=530)
}

/// Whether a connection failed because the other side is not trusted, or speaks no TLS.
pub(crate) fn is_untrusted(failure: &str) -> bool {
    let failure = failure.to_ascii_lowercase();
    failure.contains("certificate") || failure.contains("corruptmessage")
}

/// Returns the remedy for a bucket that the store does not have, or does not show.
pub(crate) fn no_bucket_hint(bucket: &str) -> String {
    format!(
        "create the bucket {bucket:?}, or correct `remote`; if it was there before, it was deleted or these credentials lost it"
    )
}

/// Returns the remedy for a store that was not reached or did not respond, derived from the text of
/// the failure.
pub(crate) fn transport_hint(failure: &str, endpoint: &str) -> String {
    let failure = failure.to_ascii_lowercase();
    let has = |word| failure.contains(word);
    if has("dns") || has("lookup") {
        return format!(
            "the name in {endpoint} cannot be resolved: correct it, or check this host's DNS"
        );
    }
    if has("certificate") || has("tls") || has("handshake") || has("corruptmessage") {
        return format!(
            "no trusted connection to {endpoint}: check its certificate, http/https, and the port; an authority \
             of your own is trusted when SSL_CERT_FILE names its certificate"
        );
    }
    format!("cannot reach {endpoint}, or it does not answer: check the address, firewall and proxy")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::time::sleep;

    #[test]
    fn invalid_http_date_is_ignored() {
        let time = |text| http_date(text).map(|time| time.to_string());
        assert_eq!(
            time("Sun, 22 Nov 2026 21:26:04 GMT").as_deref(),
            Some("2026-11-22T21:26:04Z")
        );
        for wrong in [
            "",
            "now",
            "2026-11-22T21:26:04Z",
            "Sun, 32 Nov 2026 21:26:04 GMT",
        ] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn in_flight_work_is_bounded_and_a_failure_is_returned() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let part = |n: usize| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(Duration::from_millis(2)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                if n == 100 {
                    Err("the hundredth")
                } else {
                    Ok(n)
                }
            }
        };
        let places = Arc::new(Semaphore::new(3));
        let (mut flight, mut other) = (InFlight::new(&places), InFlight::new(&places));
        for n in 0..20 {
            let place = flight.place().await.unwrap();
            flight.begin(place, part(n));
            let place = other.place().await.unwrap();
            other.begin(place, part(n));
        }
        assert_eq!(other.all().await.unwrap().len(), 20);
        let mut all = flight.all().await.unwrap();
        all.sort_unstable();
        assert_eq!((all, most.load(Ordering::SeqCst)), ((0..20).collect(), 3));
        assert_eq!(flight.all().await, Ok(vec![]), "nothing twice");
        let place = flight.place().await.unwrap();
        flight.begin(place, part(100));
        assert_eq!(flight.all().await, Err("the hundredth"));
        let place = flight.place().await.unwrap();
        flight.begin(place, async {
            sleep(Duration::from_secs(1000)).await;
            Ok(0)
        });
        flight.stop().await;
        assert_eq!(flight.all().await, Ok(vec![]));
    }
}
