//! [`B2Settings`]: what a configuration says of a native B2 store.

use crate::store::ObjectLock;
use crate::store::{Limiter, Renew};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Where every account is authorized; the answer says where its own servers are.
const ENDPOINT_DEFAULT: &str = "https://api.backblazeb2.com";
const MIB: usize = 1024 * 1024;
/// As for S3; B2 itself recommends 100 MB, at six times the memory.
const PART_BYTES_DEFAULT: usize = 16 * MIB;
/// B2's own limit, for parts and for files that go whole.
const PART_BYTES_MAX: usize = 5_000_000_000;
const CONCURRENCY_DEFAULT: usize = 4;
/// 256 kbit/s for each part in flight.
const RATE_BYTES_MIN_DEFAULT: u64 = 32 * 1024;
/// Connecting, a busy store's thinking, and an answer.
const ATTEMPT_SLACK_DEFAULT: Duration = Duration::from_secs(60);
/// Doubled at each of five further tries: some 6 s in all.
const PAUSE_FIRST_DEFAULT: Duration = Duration::from_millis(200);
/// B2's own limit.
const NAME_BYTES_MAX: usize = 1024;

/// Where a B2 store is and how it is spoken to.
#[derive(Debug, Clone)]
pub struct B2Settings {
    /// The bucket's name.
    pub bucket: String,
    /// The prefix below which all names lie, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The URL where the account is authorized; `None`: Backblaze's own.
    pub endpoint: Option<String>,
    /// The application key.
    pub credentials: Option<B2Credentials>,
    /// How to read it again when it is refused.
    pub renew: Option<Renew<B2Credentials>>,
    /// How fast all uploads together may be.
    pub limiter: Option<Arc<Limiter>>,
    /// How long every file is locked from when it is put; the bucket must have file lock on.
    pub lock: Option<ObjectLock>,
    /// Part size in bytes: at least what B2 says is its smallest (5,000,000). A chunk up to this
    /// size goes as one request, and B2 computes and keeps its SHA-1.
    pub part_bytes: usize,
    /// Parts in flight.
    pub concurrency: usize,
    /// The slowest acceptable rate in bytes per second: it derives the time limit of one attempt at
    /// one part.
    pub rate_bytes_min: u64,
    /// How long an attempt may take besides the transfer itself.
    pub attempt_slack: Duration,
    /// How long to wait before the first repetition; doubled for each further one.
    pub pause_first: Duration,
}

impl Default for B2Settings {
    /// No bucket and no key yet; parts of 16 MiB, four in flight.
    fn default() -> Self {
        Self {
            bucket: String::new(),
            prefix: String::new(),
            endpoint: None,
            credentials: None,
            renew: None,
            limiter: None,
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
    /// Time limits follow the limit of speed.
    pub(super) fn follow_limiter(&mut self) {
        if let Some(limiter) = &self.limiter {
            self.rate_bytes_min = limiter.rate_bytes_min(self.rate_bytes_min, self.concurrency);
        }
    }

    /// Says in words what can never work.
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

    /// How long one attempt may take that moves `bytes`.
    pub(super) fn attempt_limit(&self, bytes: u64) -> Duration {
        self.attempt_slack + Duration::from_secs(bytes.div_ceil(self.rate_bytes_min))
    }

    /// The store for people.
    pub(super) fn url(&self) -> String {
        match self.prefix.as_str() {
            "" => format!("b2:{}", self.bucket),
            prefix => format!("b2:{}/{prefix}", self.bucket),
        }
    }
}

/// Says in words which of B2's rules for names this breaks.
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
    /// The key's id.
    pub application_key_id: String,
    /// The key.
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
