//! [`S3Settings`]: the settings of an S3 store.

use super::S3Encryption;
use crate::store::adapter::bucket_url;
use crate::store::hash::HashKind;
use crate::store::{EvidenceTier, Limiter, ObjectLock, Patience, Renew};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1024 * 1024;
/// The smallest part. AWS refuses smaller parts (except the last), and so do compatible stores.
pub(super) const PART_BYTES_MIN: usize = 5 * MIB;
/// The default part size: 129 parts at 1 GiB a chunk, far from every limit, and little is lost when
/// a part is sent again.
const PART_BYTES_DEFAULT: usize = 8 * MIB;
/// The default concurrency: it fills a line of 1 Gbit/s at 200 ms, and holds 6 x 8 MiB with the two
/// parts that are being filled and sealed.
const CONCURRENCY_DEFAULT: usize = 4;
/// The slowest rate: 256 kbit/s for each part in flight. Slower lines exist, but not for backups of
/// this size.
const RATE_BYTES_MIN_DEFAULT: u64 = 32 * 1024;
/// The first pause. It doubles with each of five retries: about 6 s in all.
const PAUSE_FIRST_DEFAULT: Duration = Duration::from_millis(200);
/// Time for connecting, for a busy store, and for the response.
const ATTEMPT_SLACK_DEFAULT: Duration = Duration::from_secs(60);

/// The settings of an S3 store; for a `None` the SDK's own sources apply.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// The name of the bucket.
    pub bucket: String,
    /// The prefix below which all keys lie, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The URL of the endpoint; `None` means that of the SDK for the region.
    pub endpoint: Option<String>,
    /// The region, which signatures name; `None` means that of the SDK.
    pub region: Option<String>,
    /// The profile of the shared configuration files.
    pub profile: Option<String>,
    /// Whether the bucket is in the path instead of in the host name; `None` means path style
    /// exactly if an endpoint is given.
    pub path_style: Option<bool>,
    /// Storage class of chunks. Small objects stay in the bucket's default class, because every run
    /// reads them.
    pub storage_class: Option<String>,
    /// The checksum that is sent with each part.
    pub checksum: S3Checksum,
    /// The lock of every object from the time it is put; object lock must be enabled in the bucket.
    pub lock: Option<ObjectLock>,
    /// The encryption that the store is asked for; `None` means that of the bucket.
    pub encryption: Option<S3Encryption>,
    /// Part size in bytes, at least 5 MiB.
    pub part_bytes: usize,
    /// The number of parts of one chunk that are sent at once.
    pub concurrency: usize,
    /// Access key and secret, if they come from files; else the default credential chain.
    pub credentials: Option<S3Credentials>,
    /// Reads the credentials again when the store refuses them.
    pub renew: Option<Renew<S3Credentials>>,
    /// The limiter of all uploads together.
    pub limiter: Option<Arc<Limiter>>,
    /// The limiter of all downloads together.
    pub limiter_down: Option<Arc<Limiter>>,
    /// The wait of large objects while the store does not answer; [`crate::store::PatientStore`]
    /// waits for the rest.
    pub patience: Arc<Patience>,
    /// The slowest acceptable rate in bytes per second. The time limit of one attempt at one part
    /// is derived from it.
    pub rate_bytes_min: u64,
    /// The time limit of an attempt in addition to the transfer.
    pub attempt_slack: Duration,
    /// The pause before the first retry; doubled for each further one.
    pub pause_first: Duration,
}

impl Default for S3Settings {
    /// Returns settings without a bucket; parts of 8 MiB, four in flight, CRC64NVME.
    fn default() -> Self {
        Self {
            bucket: String::new(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            profile: None,
            path_style: None,
            storage_class: None,
            checksum: S3Checksum::default(),
            lock: None,
            encryption: None,
            part_bytes: PART_BYTES_DEFAULT,
            concurrency: CONCURRENCY_DEFAULT,
            credentials: None,
            renew: None,
            limiter: None,
            limiter_down: None,
            patience: Arc::new(Patience::never()),
            rate_bytes_min: RATE_BYTES_MIN_DEFAULT,
            attempt_slack: ATTEMPT_SLACK_DEFAULT,
            pause_first: PAUSE_FIRST_DEFAULT,
        }
    }
}

impl S3Settings {
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
        if self.prefix.starts_with('/') || self.prefix.ends_with('/') {
            return Err(format!(
                "the prefix {:?} begins or ends with a slash",
                self.prefix
            ));
        }
        if self.part_bytes < PART_BYTES_MIN {
            return Err(format!(
                "parts of {} bytes are below the smallest, {PART_BYTES_MIN}",
                self.part_bytes
            ));
        }
        if self.concurrency == 0 || self.rate_bytes_min == 0 || self.attempt_slack.is_zero() {
            return Err(
                "concurrency, slowest rate and attempt slack must be more than nothing".to_owned(),
            );
        }
        Ok(())
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
        bucket_url("s3", &self.bucket, &self.prefix)
    }
}

/// Static credentials. Debug output hides the secret.
#[derive(Clone)]
pub struct S3Credentials {
    /// The access key id.
    pub access_key_id: String,
    /// The secret key, which signs requests.
    pub secret_access_key: String,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Credentials({}, hidden)", self.access_key_id)
    }
}

/// The checksum that is sent with parts and compared afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum S3Checksum {
    /// CRC64NVME over the whole object.
    #[default]
    Crc64nvme,
    /// SHA-256 of each part, and the hash of these hashes.
    Sha256,
    /// CRC32C over the whole object.
    Crc32c,
    /// Content-MD5 by parts and the ETag, for stores that support nothing newer.
    Md5,
}

impl S3Checksum {
    /// All checksums, the strongest first.
    pub const ALL: [Self; 4] = [Self::Crc64nvme, Self::Sha256, Self::Crc32c, Self::Md5];

    /// Returns the evidence tier of a store that keeps this checksum.
    pub fn tier(self) -> EvidenceTier {
        self.kind().tier()
    }

    pub(super) fn kind(self) -> HashKind {
        match self {
            Self::Crc64nvme => HashKind::Crc64nvme,
            Self::Sha256 => HashKind::Sha256,
            Self::Crc32c => HashKind::Crc32c,
            Self::Md5 => HashKind::Md5,
        }
    }
}

impl fmt::Display for S3Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_limit_grows_with_the_part() {
        let settings = S3Settings {
            rate_bytes_min: 1000,
            attempt_slack: Duration::from_secs(5),
            ..Default::default()
        };
        for (bytes, seconds) in [(0, 5), (1, 6), (1000, 6), (1001, 7), (1_000_000, 1005)] {
            assert_eq!(
                settings.attempt_limit(bytes).as_secs(),
                seconds,
                "{bytes} bytes"
            );
        }
    }

    #[test]
    fn receive_limit_follows_the_bandwidth_limit() {
        let limit = |limiter_down| {
            let settings = S3Settings {
                limiter_down,
                rate_bytes_min: 1000,
                attempt_slack: Duration::from_secs(5),
                ..Default::default()
            };
            settings.receive_limit(1_000_000).as_secs()
        };
        assert_eq!(limit(None), 1005);
        // Half of a sixteenth of 3200 bytes per second.
        let limiter = Limiter::new(3200, || Some(3200));
        assert_eq!(limit(Some(Arc::new(limiter))), 10_005);
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret_access_key = "do-not-print".to_owned();
        let credentials = Some(S3Credentials {
            access_key_id: "AKID".to_owned(),
            secret_access_key,
        });
        let text = format!(
            "{:?}",
            S3Settings {
                credentials,
                ..Default::default()
            }
        );
        assert!(
            text.contains("AKID") && !text.contains("do-not-print"),
            "{text}"
        );
    }
}
