//! [`Config::check_advice`]: the costs and properties of a configuration, for `config check`. Pure
//! arithmetic.

use super::keys::KeySource;
use super::secret::Passphrase;
use super::stores::sealed_bytes_max;
use super::{Config, RawMode, Remote, Size};
use crate::store::{LockMode, ObjectLock, S3Checksum};
use serde::Serialize;

/// Memory that does not depend on the configuration: the program itself, the runtime, TLS, the
/// stream's pipe and the record parser. An allowance: about 27 MiB were measured, and 20 MiB more
/// with zstd. The pieces of a restore fit into this allowance and the parts of a backup together.
pub const PEAK_FIXED: Size = Size::mebibytes(48);
/// Part buffers in addition to those in flight: one being filled and one being sealed.
const PART_BUFFERS_EXTRA: u64 = 2;
/// Requests of a multipart upload in addition to its parts: one begins it and one completes it.
const REQUESTS_EXTRA: u64 = 2;
const TEBIBYTE: u64 = 1 << 40;
/// The length below which a passphrase can be brute-forced by anyone who copies the keyring from
/// the bucket.
const PASSPHRASE_CHARS_MIN: usize = 16;
/// Storage classes whose objects must be retrieved from the archive before they can be read.
const ARCHIVE_CLASSES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// A line of advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// The subject of the advice: "memory", "requests", "evidence".
    pub subject: &'static str,
    /// The advice, in one or two sentences.
    pub text: String,
}

impl Config {
    /// Returns the costs and properties of this configuration. [`Config::notices`] returns the
    /// notices.
    pub fn check_advice(&self) -> Vec<Advice> {
        let lines = [
            ("memory", Some(self.memory_advice())),
            ("requests", self.request_advice()),
            ("evidence", self.evidence_advice()),
            ("full", self.duration_advice()),
            ("zfs key", self.raw_advice()),
            ("passphrase", self.passphrase_advice()),
            ("endpoint", self.endpoint_advice()),
            ("restore", self.archive_advice()),
            ("backups", Some(self.backups_advice())),
            ("remote retention", self.remote_retention_advice()),
            (
                "intermediate retention",
                self.intermediate_retention_advice(),
            ),
            ("lock", self.lock_advice()),
            ("copies", self.copies_advice()),
        ];
        lines
            .into_iter()
            .filter_map(|(subject, text)| text.map(|text| Advice { subject, text }))
            .collect()
    }

    /// Returns the maximum memory in bytes of a backup or a restore, which does not depend on the
    /// size of the data.
    pub fn peak_bytes(&self) -> u64 {
        let parts = self.parts();
        parts.part_size.bytes() * (u64::from(parts.concurrency) + PART_BUFFERS_EXTRA)
            + PEAK_FIXED.bytes()
            + self.compression_bytes()
    }

    fn compression_bytes(&self) -> u64 {
        self.send.compression.peak_bytes(self.streams_max())
    }

    /// Returns the largest number of streams that are uploaded at once.
    fn streams_max(&self) -> u64 {
        let datasets = match self.datasets.recursive {
            true => u64::MAX,
            false => self.datasets.names.len() as u64,
        };
        let buffers = u64::from(self.parts().concurrency) + PART_BUFFERS_EXTRA;
        let need = match &self.remote {
            Some(Remote::B2 { .. } | Remote::Rclone { .. }) => 2,
            _ => 1,
        };
        let parallel = u64::from(self.pace.parallel_datasets);
        parallel.min(datasets).min(buffers / need).max(1)
    }

    fn memory_advice(&self) -> String {
        let parts = self.parts();
        let peak = Size(self.peak_bytes());
        let compression = match Size(self.compression_bytes()) {
            Size(0) => String::new(),
            more => format!(" + {more} for {}", self.send.compression),
        };
        format!(
            "at most {peak}: parts of {} x ({} in flight + {PART_BUFFERS_EXTRA}) + {PEAK_FIXED}{compression}",
            parts.part_size, parts.concurrency
        )
    }

    fn request_advice(&self) -> Option<String> {
        if !matches!(self.remote, Some(Remote::S3 { .. } | Remote::B2 { .. })) {
            return None;
        }
        let parts = sealed_bytes_max(self.split_size).div_ceil(self.parts().part_size.bytes());
        let chunks = TEBIBYTE.div_ceil(self.split_size.bytes());
        let requests = chunks.saturating_mul(parts + REQUESTS_EXTRA);
        Some(format!(
            "1T of stream is {chunks} chunks and about {requests} upload requests, {parts} parts a chunk"
        ))
    }

    fn evidence_advice(&self) -> Option<String> {
        let text = match self.remote.as_ref()? {
            Remote::S3 { .. } => match self.s3.checksum {
                None => {
                    "verify-checksums compares the strongest checksum that the store keeps (crc64nvme, sha256, crc32c \
                     or md5); doctor, or the first command that writes, tests which it is"
                }
                Some(S3Checksum::Crc64nvme) => {
                    "verify-checksums compares a CRC64NVME that the store computed over each whole chunk"
                }
                Some(S3Checksum::Sha256) => {
                    "verify-checksums compares the SHA-256 of each chunk's part SHA-256s, computed by the store"
                }
                Some(S3Checksum::Crc32c) => {
                    "verify-checksums compares a CRC32C that the store computed over each whole chunk: 32 bits, where \
                     crc64nvme has 64"
                }
                Some(S3Checksum::Md5) => {
                    "verify-checksums compares the MD5 ETag, the weakest sum: crc64nvme is better where the store has it"
                }
            },
            Remote::B2 { .. } => return Some(self.b2_evidence()),
            Remote::File { .. } => {
                "a folder computes no checksums: only verify-checksums --read-data is evidence"
            }
            Remote::Rclone { .. } => {
                "verify-checksums compares the SHA-1 or MD5 that rclone shows of each chunk (against accidents); where \
                 the remote has neither, the size alone"
            }
        };
        Some(text.to_owned())
    }

    /// Returns the advice for B2. A chunk of at most one part is uploaded in one request, and only
    /// then B2 keeps a SHA-1 of its own.
    fn b2_evidence(&self) -> String {
        let split = self.split_size;
        let part = self.b2.parts.part_size;
        if sealed_bytes_max(split) <= part.bytes() {
            return "verify-checksums compares the SHA-1 that B2 itself computed of each chunk, which is uploaded in \
                    one request (against accidents; a restore checks BLAKE3 too)"
                .to_owned();
        }
        let fits = (1..=part.bytes() >> 20)
            .rev()
            .map(Size::mebibytes)
            .find(|split| sealed_bytes_max(*split) <= part.bytes());
        let fits = fits.map_or_else(String::new, |fits| format!("split_size = \"{fits}\", or "));
        let enough = Size::mebibytes((sealed_bytes_max(split) >> 20) + 1);
        let declared = match &self.b2.spool_dir {
            Some(_) => {
                "; the SHA-1 of the whole is computed in spool_dir and stored with the file, and B2 does not check it"
            }
            None => "",
        };
        format!(
            "B2 checks the SHA-1 of each part of a chunk and keeps none of the whole: verify-checksums compares the \
             file's id, whose content never changes, and its size{declared}. For a SHA-1 of B2's own write {fits}\
             part_size = \"{enough}\" (memory grows with it)"
        )
    }

    fn duration_advice(&self) -> Option<String> {
        let rate = self.pace.bwlimit.as_ref()?.slowest()?;
        let hours = self.hours_to_send(TEBIBYTE)?;
        Some(format!(
            "at {rate} a second, the slowest limit of the day, 1T takes {hours} hours"
        ))
    }

    /// Returns the whole hours, rounded up, for sending this many bytes at the slowest configured
    /// limit, or `None` without a limit.
    pub fn hours_to_send(&self, bytes: u64) -> Option<u64> {
        let rate = self.pace.bwlimit.as_ref()?.slowest()?;
        Some(bytes.div_ceil(rate.bytes().max(1)).div_ceil(3600))
    }

    fn raw_advice(&self) -> Option<String> {
        let text = match self.send.raw {
            RawMode::Auto => {
                "an encrypted dataset is sent raw: to read it after a restore the ZFS key must survive too, \
                 apart from this host"
            }
            RawMode::Always => {
                "every dataset is sent raw: what is encrypted can be read after a restore only with the ZFS key, \
                 which must survive apart from this host"
            }
            RawMode::Never => {
                "the ZFS key must be loaded during a backup, and a restored dataset is not encrypted by itself"
            }
        };
        Some(text.to_owned())
    }

    fn passphrase_advice(&self) -> Option<String> {
        let KeySource::Passphrase(Passphrase::Inline(secret)) = &self.keys else {
            return None;
        };
        let short = secret.expose().chars().count() < PASSPHRASE_CHARS_MIN;
        short.then(|| {
            format!(
                "it has fewer than {PASSPHRASE_CHARS_MIN} characters; anyone who copies the keyring from the store \
                 can try passphrases offline"
            )
        })
    }

    fn endpoint_advice(&self) -> Option<String> {
        let endpoint = self
            .s3
            .endpoint
            .as_ref()
            .filter(|endpoint| endpoint.starts_with("http://"))?;
        Some(format!(
            "the connection to {endpoint} is not encrypted: chunks are sealed, but names and sizes can be seen"
        ))
    }

    fn archive_advice(&self) -> Option<String> {
        let class = self
            .s3
            .storage_class
            .as_deref()
            .filter(|class| ARCHIVE_CLASSES.contains(class))?;
        Some(format!(
            "chunks in {class} must be restored from the archive by the store, hours before they can be read"
        ))
    }

    fn lock_advice(&self) -> Option<String> {
        let lock = self.object_lock()?;
        let ObjectLock {
            days,
            mode,
            covers_chains,
        } = lock;
        let who = match mode {
            LockMode::Governance => "nobody without a special permission",
            LockMode::Compliance => "nobody, you included,",
        };
        let covers = if covers_chains {
            "the days cover the longest chain that keep or full_every allows, so a store that cannot extend locks is sufficient"
        } else {
            "each commit extends the locks of its chain; a store that cannot do that will be refused"
        };
        Some(format!(
            "{who} can delete what is stored for {days} days, and prune-remote waits for it; {covers}"
        ))
    }

    /// Returns how long the remote refuses to delete objects. The days cover every chain if the
    /// full of each chain is still locked when the last possible incremental of that chain is made.
    pub fn object_lock(&self) -> Option<ObjectLock> {
        let lock = match self.remote.as_ref()? {
            Remote::S3 { .. } => self.s3.lock,
            Remote::B2 { .. } => self.b2.lock,
            _ => None,
        }?;
        let longest = self.backup_lifecycle.chain_seconds_max();
        let covers_chains = longest.is_some_and(|longest| u64::from(lock.days) * 86_400 >= longest);
        Some(ObjectLock {
            covers_chains,
            ..lock
        })
    }

    fn copies_advice(&self) -> Option<String> {
        let text = "no remote is configured: all backups are on this host and are lost with it";
        self.remote.is_none().then(|| text.to_owned())
    }
}
