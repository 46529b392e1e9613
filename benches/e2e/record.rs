//! The record of the requests that the sink answered, and the requests of `fleet` to the sink that are not S3:
//! a delay, the record, and copies of many objects at once.

use crate::http::Request;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A request that is not of S3. The paths begin with `/-/`, which no bucket is called.
pub(crate) enum Control {
    /// Delays every answer from now on.
    Delay(Duration),
    /// Returns the requests since the last call, and forgets them.
    Log,
    /// Copies all objects under a prefix, with the bucket in front, to another prefix.
    Copy { from: String, to: String },
    /// Removes all objects under a prefix.
    Remove { from: String },
    /// Returns the number of objects.
    Count,
}

impl Control {
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let asked = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        Some(match request.path.strip_prefix("/-/")? {
            "delay" => Self::Delay(Duration::from_millis(asked("ms").parse().unwrap_or(0))),
            "copy" => Self::Copy {
                from: asked("from"),
                to: asked("to"),
            },
            "remove" => Self::Remove {
                from: asked("from"),
            },
            "count" => Self::Count,
            _ => Self::Log,
        })
    }
}

/// A request, from its arrival to its answer, in microseconds since the sink began.
struct Recorded {
    kind: &'static str,
    subject: String,
    arrived: u128,
    answered: u128,
}

pub(crate) struct Recorder {
    begun: Instant,
    delay_ms: AtomicU64,
    requests: Mutex<Vec<Recorded>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            delay_ms: AtomicU64::new(0),
            requests: Mutex::default(),
        }
    }
}

impl Recorder {
    pub(crate) fn set_delay(&self, delay: Duration) {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.delay_ms.store(ms, Ordering::Relaxed);
    }

    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))
    }

    /// Records the arrival of a request, and returns its number.
    pub(crate) fn arrive(&self, request: &Request) -> usize {
        let arrived = self.begun.elapsed().as_micros();
        let prefix = request.query.get("prefix").map_or("", String::as_str);
        let recorded = Recorded {
            kind: kind_of(request),
            subject: format!("{}{prefix}", request.path),
            arrived,
            answered: 0,
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.push(recorded);
        requests.len() - 1
    }

    /// Records the answer to a request.
    pub(crate) fn reply(&self, number: usize) {
        let answered = self.begun.elapsed().as_micros();
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(request) = requests.get_mut(number) {
            request.answered = answered;
        }
    }

    /// Returns a line for each request, and forgets them. No request may be under way.
    pub(crate) fn take(&self) -> String {
        let requests =
            std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner));
        let line = |it: Recorded| {
            let (arrived, answered) = (it.arrived, it.answered);
            format!("{arrived} {answered} {} {}\n", it.kind, it.subject)
        };
        requests.into_iter().map(line).collect()
    }
}

/// Names what a request of S3 does.
fn kind_of(request: &Request) -> &'static str {
    let asks = |name: &str| request.query.contains_key(name);
    let is_bucket = !request.path.trim_matches('/').contains('/');
    match request.method.as_str() {
        "HEAD" if is_bucket => "head-bucket",
        "HEAD" => "head",
        "GET" if is_bucket && asks("versions") => "list-versions",
        "GET" if is_bucket && asks("uploads") => "list-uploads",
        "GET" if is_bucket && asks("location") => "location",
        "GET" if is_bucket => "list",
        "GET" => "get",
        "POST" if asks("uploads") => "begin",
        "POST" if asks("uploadId") => "complete",
        "POST" => "delete-many",
        "PUT" if asks("uploadId") => "part",
        "PUT" => "put",
        "DELETE" if asks("uploadId") => "abort",
        "DELETE" => "delete",
        _ => "other",
    }
}
