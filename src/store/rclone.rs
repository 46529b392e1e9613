//! [`RcloneStore`]: any remote of rclone, by running rclone.
//!
//! Each call is a process of its own with its arguments in a list; no shell is involved and no
//! secret is an argument. rclone's exit status is not trusted: it reports success for objects that
//! do not exist. After each write the object's size and hash are read and compared with what was
//! sent.
//!
//! **Putting.** The bytes are in memory or in a spool file without a name; rclone reads them as its
//! standard input, and can read them again for every attempt. Large objects therefore need a
//! [`super::Spool`].
//!
//! **Create-only.** No remote of rclone supports it. The name is checked first, rclone does not
//! replace an object that exists when it begins, and puts of one name in this process are
//! serialised. Two hosts that put the same name at the same moment may both take themselves for the
//! winner if their bytes have the same size and the remote has no hashes. Names with random
//! numbers, which all names except those of keyrings have, never collide.
//!
//! **Absent.** For a remote of folders "not found" is trusted only while the root folder itself
//! exists and still contains the folder of its identity, if it did before: an unmounted disk must
//! not look like an empty store.
//!
//! **Evidence.** The SHA-1 or MD5 that the remote reports, computed by the provider or stored with
//! the object, depending on the provider; without either, the size.

mod cause;
mod place;
mod process;
mod put;
mod read;
mod settings;

pub use settings::{RcloneSettings, check_arguments};

/// Parses bytes as rclone's output: a listing, an entry of it, and lines of its log.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_any_answer(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Vec<read::LsEntry>>(bytes)
        .map_err(|error| unreadable(&error).to_string());
    let _ = serde_json::from_slice::<Option<read::LsEntry>>(bytes);
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<String> = text.lines().map(process::words_of_line).collect();
    let _ = text.lines().map(read::partial_of).count();
    let status = std::os::unix::process::ExitStatusExt::from_raw(256);
    let cause = RcloneCause::ended(status, &words);
    let _ = (
        cause.kind(),
        cause.hint("r", "/etc/rclone.conf"),
        cause.to_string(),
    );
}

use super::adapter::Adapter;
use super::hash::HashKind;
use super::names::check_names;
use super::{
    Evidence, ListedObject, ObjectKey, PartWriter, PutOutcome, SpoolFile, SpooledStore,
    StoreDelete, StoreError, StoreErrorKind, StoreInfo, StoreRead, StoreTraits, StoreWrite,
    UnfinishedUpload,
};
use async_trait::async_trait;
use bytes::Bytes;
use cause::RcloneCause;
use process::{Call, Ended};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use tokio::sync::{Mutex, Semaphore};

/// The first version whose behaviour was tested. Versions before 1.75.1 could report success for an
/// upload that was cut short.
const VERSION_MIN: [u32; 3] = [1, 75, 2];
/// The maximum output of a call that lists nothing: versions and features.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// The number of locks for names. Concurrent puts of different names seldom share one.
const PUT_LOCKS: usize = 64;

/// A remote of rclone, or the part of it below a path.
pub struct RcloneStore {
    settings: RcloneSettings,
    url: String,
    traits: StoreTraits,
    /// The hash to compare, if the remote has a supported one.
    hash: Option<HashKind>,
    /// Whether the remote is bucket-based: folders are then only parts of names, and need not
    /// exist.
    buckets: bool,
    /// Whether the root folder was seen with the folder of the store's identity. Buckets have no
    /// empty folders, so there the folder proves nothing.
    has_identity: AtomicBool,
    /// Serialises the puts of one name.
    put_locks: [Mutex<()>; PUT_LOCKS],
    /// Limits concurrent uploads: to one if there is a bandwidth limit, because rclone limits each
    /// process separately.
    uploads: Semaphore,
}

/// The output of `backend features`, as far as it is needed.
#[derive(Deserialize)]
struct About {
    #[serde(rename = "Hashes", default)]
    hashes: Vec<String>,
    #[serde(rename = "Features")]
    features: Features,
}

#[derive(Deserialize)]
struct Features {
    #[serde(rename = "BucketBased")]
    bucket_based: bool,
}

impl RcloneStore {
    /// Runs rclone to read its version and the remote's abilities, and checks that the root folder
    /// exists.
    ///
    /// # Errors
    /// [`StoreErrorKind::Invalid`] for settings that can never work and for a missing rclone,
    /// [`StoreErrorKind::Unsupported`] for an rclone that is too old, [`StoreErrorKind::NotFound`]
    /// when the bucket or folder does not exist: it is never created, because an unmounted disk
    /// would look like an empty store.
    pub async fn connect(settings: RcloneSettings) -> Result<Self, StoreError> {
        let url = settings.url();
        let traits = StoreTraits {
            part_bytes: settings.part_bytes,
            concurrency: 1,
            conditional_put: false,
            holds_parts: true,
        };
        let uploads = if settings.bwlimit.is_some() {
            1
        } else {
            Semaphore::MAX_PERMITS
        };
        let put_locks = std::array::from_fn(|_| Mutex::default());
        let uploads = Semaphore::new(uploads);
        let mut store = Self {
            url,
            traits,
            hash: None,
            buckets: false,
            has_identity: AtomicBool::new(false),
            put_locks,
            uploads,
            settings,
        };
        if let Err(text) = store.settings.check() {
            return Err(store.failed(
                "connect to",
                "",
                RcloneCause::ours(StoreErrorKind::Invalid, text),
            ));
        }
        store.demand_version().await?;
        let about = store
            .about()
            .await
            .map_err(|cause| store.failed("access", "", cause))?;
        store.hash = read::best_hash(&about.hashes);
        store.buckets = about.features.bucket_based;
        store.demand_place("access").await?;
        Ok(store)
    }

    async fn demand_version(&self) -> Result<(), StoreError> {
        let failed = |cause| self.failed("read the version of rclone for", "", cause);
        let ended = self.run(&["version"], &[], true).await.map_err(failed)?;
        let text = String::from_utf8_lossy(&ended.output).into_owned();
        let found = text
            .lines()
            .find_map(|line| parse_version(line.strip_prefix("rclone v")?));
        match (ended.failure, found) {
            (Some(cause), None) => return Err(failed(cause)),
            (_, Some(version)) if version >= VERSION_MIN => return Ok(()),
            _ => {}
        }
        let [major, minor, patch] = VERSION_MIN;
        let first = text.lines().next().unwrap_or_default();
        let text = format!(
            "{} says {first:?}: it must be rclone {major}.{minor}.{patch} or later, because earlier ones report success \
             of objects that are cut short",
            self.settings.program.display()
        );
        let error = failed(RcloneCause::ours(StoreErrorKind::Unsupported, text));
        Err(error.with_hint("install a newer rclone, or use s3: or b2:, which need none"))
    }

    async fn about(&self) -> Result<About, RcloneCause> {
        let ended = self
            .run(&["backend", "features"], &[self.settings.place()], true)
            .await?;
        if let Some(cause) = ended.failure {
            return Err(cause);
        }
        serde_json::from_slice(&ended.output).map_err(|error| unreadable(&error))
    }

    /// Runs rclone for a small output.
    async fn run(
        &self,
        arguments: &[&str],
        places: &[String],
        quiet: bool,
    ) -> Result<Ended, RcloneCause> {
        let call = Call {
            arguments: arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect(),
            places: places.to_vec(),
            stdin: None,
            output_bytes_max: ANSWER_BYTES_MAX,
            limit: self.settings.call_limit(0),
            quiet,
        };
        process::run(&self.settings, call).await
    }

    /// Makes the error for a failure of rclone, with a hint.
    fn failed(&self, operation: &str, subject: &str, cause: RcloneCause) -> StoreError {
        let hint = cause.hint(
            &self.settings.remote,
            &self.settings.conf.display().to_string(),
        );
        let kind = cause.kind();
        let is_outage = cause.is_outage();
        StoreError::new(kind, operation, subject, &self.url, cause)
            .with_hint_of(hint)
            .with_outage(is_outage)
    }
}

fn unreadable(error: &serde_json::Error) -> RcloneCause {
    RcloneCause::ours(
        StoreErrorKind::Unavailable,
        format!("the output of rclone cannot be read: {error}"),
    )
}

/// Parses `1.75.2`, or `1.76.0-beta.1234`.
fn parse_version(text: &str) -> Option<[u32; 3]> {
    let numbers: String = text
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    let version = [
        numbers.next()??,
        numbers.next()??,
        numbers.next().flatten().unwrap_or(0),
    ];
    Some(version)
}

#[async_trait]
impl StoreInfo for RcloneStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn traits(&self) -> &StoreTraits {
        &self.traits
    }
}

#[async_trait]
impl StoreRead for RcloneStore {
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        Adapter::get(self, key, range, limit_bytes).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        self.find_object("check", key).await
    }

    async fn evidence_under(
        &self,
        prefix: &str,
    ) -> Result<Option<BTreeMap<String, Evidence>>, StoreError> {
        let entries = self.entries(prefix, true).await?;
        let objects = entries
            .into_iter()
            .filter(|(key, _)| read::partial_of(key).is_none());
        let known =
            objects.map(|(key, entry)| self.evidence(&key, &entry).map(|evidence| (key, evidence)));
        known.collect::<Result<_, _>>().map(Some)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.list_objects(prefix).await
    }

    async fn list_folders(&self, prefix: &str, delimiter: char) -> Result<Vec<String>, StoreError> {
        self.list_folders_of(prefix, delimiter).await
    }

    /// Lists the partial files of a killed rclone. rclone does not show parts that a provider
    /// keeps: `rclone cleanup` removes those.
    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.list_partial(prefix).await
    }
}

#[async_trait]
impl StoreWrite for RcloneStore {
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        let text = "rclone takes large objects only from a spool";
        Err(self.wrong(
            StoreErrorKind::Unsupported,
            "begin upload of",
            key.as_str(),
            text,
        ))
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        self.put_bytes(key, bytes).await
    }

    async fn check_names(&self, prefix: &str) -> Result<(), StoreError> {
        check_names(self, prefix).await
    }
}

#[async_trait]
impl StoreDelete for RcloneStore {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.remove(key).await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.remove_partial(upload).await
    }
}

#[async_trait]
impl SpooledStore for RcloneStore {
    async fn put_spooled(&self, key: &ObjectKey, file: &SpoolFile) -> Result<Evidence, StoreError> {
        let patience = &self.settings.patience;
        patience.wait_out(|| self.put_file(key, file)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_rclone_prints() {
        for (text, version) in [
            ("1.75.2", Some([1, 75, 2])),
            ("1.76.0-beta.9000.abc", Some([1, 76, 0])),
            ("1.60.1-DEV", Some([1, 60, 1])),
            ("2.0", Some([2, 0, 0])),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }
}
