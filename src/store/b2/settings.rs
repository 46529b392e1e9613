//! [`B2Settings`]: the settings of a native B2 store.

use crate::store::adapter::bucket_url;
use crate::store::{Limiter, ObjectLock, Patience, Renew};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The URL at which accounts are authorized; the response names the account's own servers.
const ENDPOINT_DEFAULT: &str = "https://api.backblazeb2.com";
const MIB: usize = 1024 * 1024;
/// The same as for S3; B2 itself recommends 100 MB, which needs six times the memory.
const PART_BYTES_DEFAULT: usize = 16 * MIB;
/// B2's own limit, for parts and for files in one request.
const PART_BYTES_MAX: usize = 5_000_000_000;
const CONCURRENCY_DEFAULT: usize = 4;
/// The slowest rate: 256 kbit/s for each part in flight.
const RATE_BYTES_MIN_DEFAULT: u64 = 32 * 1024;
/// Time for connecting, for a busy store, and for the response.
const ATTEMPT_SLACK_DEFAULT: Duration = Duration::from_secs(60);
/// The first pause. It doubles with each of five retries: about 6 s in all.
const PAUSE_FIRST_DEFAULT: Duration = Duration::from_millis(200);
/// The longest name of a file in bytes, which B2 sets.
const NAME_BYTES_MAX: usize = 1024;

/// The settings of a B2 store.
#[derive(Debug, Clone)]
pub struct B2Settings {
    /// The name of the bucket, which is unique in all of B2.
    pub bucket: String,
    /// The prefix below which all names lie, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The URL at which the account is authorized; `None` means Backblaze's own.
    pub endpoint: Option<String>,
    /// The application key, if one is configured.
    pub credentials: Option<B2Credentials>,
    /// Reads the key again when the store refuses it.
    pub renew: Option<Renew<B2Credentials>>,
    /// The limiter of all uploads together.
    pub limiter: Option<Arc<Limiter>>,
    /// The limiter of all downloads together.
    pub limiter_down: Option<Arc<Limiter>>,
    /// The wait of large objects while B2 does not answer; [`crate::store::PatientStore`] waits for
    /// the rest.
    pub patience: Arc<Patience>,
    /// The lock of every file from the time it is put; file lock must be enabled in the bucket.
    pub lock: Option<ObjectLock>,
    /// Part size in bytes: at least the account's minimum (5,000,000). A chunk up to this size is
    /// sent in one request, and B2 computes and keeps its SHA-1.
    pub part_bytes: usize,
    /// The number of parts of one chunk that are sent at once.
    pub concurrency: usize,
    /// The slowest acceptable rate in bytes per second. The time limit of one attempt at one part
    /// is derived from it.
    pub rate_bytes_min: u64,
    /// The time limit of an attempt in addition to the transfer.
    pub attempt_slack: Duration,
    /// The pause before the first retry; doubled for each further one.
    pub pause_first: Duration,
}

impl Default for B2Settings {
    /// Returns settings without bucket and key; parts of 16 MiB, four in flight.
    fn default() -> Self {
        Self {
            bucket: String::new(),
            prefix: String::new(),
            endpoint: None,
            credentials: None,
            renew: None,
            limiter: None,
            limiter_down: None,
            patience: Arc::new(Patience::never()),
            lock: None,
            part_bytes: PART_BYTES_DEFAULT,
            concurrency: CONCURRENCY_DEFAULT,
            rate_bytes_min: RATE_BYTES_MIN_DEFAULT,
            attempt_slack: ATTEMPT_SLACK_DEFAULT,
            pause_first: PAUSE_FIRST_DEFAULT,
        }
    }
}

impl B2Settings {
    /// Adapts the time limits to the limiter.
    pub(super) fn follow_limiter(&mut self) {
        if let Some(limiter) = &self.limiter {
            self.rate_bytes_min = limiter.rate_bytes_min(self.rate_bytes_min, self.concurrency);
        }
    }

    /// Checks the settings. The error is a sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.bucket.is_empty() {
            return Err("no bucket is named".to_owned());
        }
        if !self.prefix.is_empty() {
            check_name(&self.prefix)?;
        }
        if self.part_bytes == 0
            || self.concurrency == 0
            || self.rate_bytes_min == 0
            || self.attempt_slack.is_zero()
        {
            return Err(
                "part size, concurrency, slowest rate and attempt slack must be more than nothing"
                    .to_owned(),
            );
        }
        if self.part_bytes > PART_BYTES_MAX {
            return Err(format!(
                "parts of {} bytes are above the largest, {PART_BYTES_MAX}",
                self.part_bytes
            ));
        }
        Ok(())
    }

    pub(super) fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or(ENDPOINT_DEFAULT)
    }

    /// Returns the time limit of one attempt that moves `bytes`.
    pub(super) fn attempt_limit(&self, bytes: u64) -> Duration {
        self.attempt_slack + Duration::from_secs(bytes.div_ceil(self.rate_bytes_min))
    }

    /// Returns the time limit for receiving an object of `bytes`.
    pub(super) fn receive_limit(&self, bytes: u64) -> Duration {
        let limiter = self.limiter_down.as_deref();
        let rate = Limiter::read_rate_bytes_min(limiter, self.rate_bytes_min);
        self.attempt_slack + Duration::from_secs(bytes.div_ceil(rate))
    }

    /// Returns the store's name for messages.
    pub(super) fn url(&self) -> String {
        bucket_url("b2", &self.bucket, &self.prefix)
    }
}

/// Checks a name against B2's rules. The error is a sentence that names the broken rule.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let broken = match name {
        "" => "is empty",
        name if name.len() > NAME_BYTES_MAX => "is longer than 1024 bytes",
        name if name.starts_with('/') || name.ends_with('/') || name.contains("//") => {
            "begins or ends with a slash, or has two in a row"
        }
        name if name.bytes().any(|byte| byte < 32 || byte == 127) => {
            "has a control character in it"
        }
        _ => return Ok(()),
    };
    Err(format!("the name {name:?} {broken}, which B2 refuses"))
}

/// An application key. Debug output hides the key itself.
#[derive(Clone, PartialEq, Eq)]
pub struct B2Credentials {
    /// The id of the key, which is not secret.
    pub application_key_id: String,
    /// The secret part of the key.
    pub application_key: String,
}

impl fmt::Debug for B2Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "B2Credentials({}, hidden)", self.application_key_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_b2_refuses_are_named() {
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for (name, good) in [
            ("tank/@a/x", true),
            ("a\\b ü+%", true),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a//b", false),
            ("a\nb", false),
            ("a\u{7f}", false),
            (&long, false),
            (&long[1..], true),
        ] {
            assert_eq!(check_name(name).is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let application_key = "do-not-print".to_owned();
        let credentials = Some(B2Credentials {
            application_key_id: "KEYID".to_owned(),
            application_key,
        });
        let text = format!(
            "{:?}",
            B2Settings {
                credentials,
                ..Default::default()
            }
        );
        assert!(
            text.contains("KEYID") && !text.contains("do-not-print"),
            "{text}"
        );
    }
}
