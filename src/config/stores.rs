//! Settings of the remotes in addition to their name: `[s3]`, `[b2]`, `[prune]`, and how a chunk is
//! cut into parts.

use super::paths::Environment;
use super::secret::{Secret, SecretError, SecretFile};
use super::section::Section;
use super::units::{InvalidValue, Size};
use crate::store::{LockMode, ObjectLock, S3Checksum};
use std::path::PathBuf;

/// The smallest part. S3 refuses smaller parts (except the last); B2's minimum of 5,000,000 bytes
/// is lower.
pub(super) const PART_SIZE_MIN: Size = Size::mebibytes(5);
/// The largest part that S3 accepts.
const PART_SIZE_MAX: Size = Size(5 << 30);
/// The maximum number of parts of one object in S3 and in B2.
pub(super) const PARTS_MAX: u64 = 10_000;
/// The maximum number of parts that every S3-compatible store accepts (Scaleway's limit).
pub(super) const PARTS_EVERYWHERE_MAX: u64 = 1000;
/// The default part size: 131 requests per gibibyte, and memory below 96 MiB with four parts in
/// flight.
const PART_SIZE_DEFAULT: Size = Size::mebibytes(8);
const CONCURRENCY_DEFAULT: u32 = 4;
const CONCURRENCY_MAX: u32 = 64;

/// How a chunk is uploaded: the size of its parts, and how many are uploaded at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartSettings {
    /// The exact size of all parts of a chunk except the last.
    pub part_size: Size,
    /// The number of parts in flight.
    pub concurrency: u32,
}

impl Default for PartSettings {
    fn default() -> Self {
        Self {
            part_size: PART_SIZE_DEFAULT,
            concurrency: CONCURRENCY_DEFAULT,
        }
    }
}

/// The two files of a pair of credentials: the id and the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The file with the key's id.
    pub id_file: SecretFile,
    /// The file with the key itself.
    pub secret_file: SecretFile,
}

impl CredentialFiles {
    /// Reads the id and the secret. Blocks.
    ///
    /// # Errors
    /// [`SecretError`], which names the file.
    pub fn read(&self, env: &Environment) -> Result<(Secret, Secret), SecretError> {
        Ok((
            self.id_file.read_line(env)?,
            self.secret_file.read_line(env)?,
        ))
    }
}

/// `[s3]`. For a `None` the SDK's own chain applies (environment, shared files, instance).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Section {
    /// The URL of a store that is not AWS.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The profile of the shared configuration files.
    pub profile: Option<String>,
    /// Credentials in separate files.
    pub credential_files: Option<CredentialFiles>,
    /// The storage class of chunks.
    pub storage_class: Option<String>,
    /// Whether the bucket is in the path; `None` means exactly if an endpoint is given.
    pub path_style: Option<bool>,
    /// The checksum that the store verifies and keeps; `None` means the strongest that a probe of
    /// the store finds.
    pub checksum: Option<S3Checksum>,
    /// Settings for parts.
    pub parts: PartSettings,
    /// The time for which the store refuses to delete objects.
    pub lock: Option<ObjectLock>,
}

/// `[b2]`. Without files the keys come from `B2_APPLICATION_KEY_ID` and `B2_APPLICATION_KEY`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct B2Section {
    /// The application key in separate files.
    pub credential_files: Option<CredentialFiles>,
    /// Settings for parts.
    pub parts: PartSettings,
    /// The folder in which chunks are spooled if the store needs them complete.
    pub spool_dir: Option<PathBuf>,
    /// The time for which B2 refuses to delete files.
    pub lock: Option<ObjectLock>,
}

/// `[prune]`: separate credentials for deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneSection {
    /// The profile of the shared configuration files.
    pub profile: Option<String>,
    /// Credentials for an S3 remote.
    pub s3_credential_files: Option<CredentialFiles>,
    /// Credentials for a B2 remote.
    pub b2_credential_files: Option<CredentialFiles>,
}

const S3_KEYS: [&str; 2] = ["access_key_id_file", "secret_access_key_file"];
const B2_KEYS: [&str; 2] = ["application_key_id_file", "application_key_file"];

impl S3Section {
    pub(super) fn read(s3: &Section<'_>) -> Self {
        let section = Self {
            endpoint: s3.checked("endpoint", endpoint),
            region: s3.checked("region", |text| word(text, "a region such as eu-central-1")),
            profile: s3.checked("profile", |text| word(text, "the name of a profile")),
            credential_files: read_credential_files(s3, S3_KEYS),
            storage_class: s3.checked("storage_class", storage_class),
            path_style: s3.switch("path_style"),
            checksum: s3.checked("checksum", checksum).flatten(),
            parts: read_parts(s3),
            lock: read_lock(s3),
        };
        check_profile(s3, S3_KEYS);
        section
    }
}

impl B2Section {
    pub(super) fn read(b2: &Section<'_>) -> Self {
        Self {
            credential_files: read_credential_files(b2, B2_KEYS),
            parts: read_parts(b2),
            spool_dir: b2.checked("spool_dir", absolute_path),
            lock: read_lock(b2),
        }
    }
}

impl PruneSection {
    pub(super) fn read(prune: &Section<'_>) -> Self {
        let section = Self {
            profile: prune.checked("profile", |text| word(text, "the name of a profile")),
            s3_credential_files: read_credential_files(prune, S3_KEYS),
            b2_credential_files: read_credential_files(prune, B2_KEYS),
        };
        check_profile(prune, S3_KEYS);
        section
    }
}

/// Reads both files or neither: half a pair would silently be completed with the other half of
/// another pair.
fn read_credential_files(section: &Section<'_>, keys: [&str; 2]) -> Option<CredentialFiles> {
    let [id_key, secret_key] = keys;
    let id_file = section.parsed::<SecretFile>(id_key);
    let secret_file = section.parsed::<SecretFile>(secret_key);
    for (given, other) in [(id_key, secret_key), (secret_key, id_key)] {
        if section.has(given) && !section.has(other) {
            section.missing(other, &format!("the other half of {given}"), None);
        }
    }
    Some(CredentialFiles {
        id_file: id_file?,
        secret_file: secret_file?,
    })
}

fn check_profile(section: &Section<'_>, keys: [&str; 2]) {
    if section.has("profile") && keys.iter().any(|key| section.has(key)) {
        section.refuse(
            "profile",
            format!(
                "conflicts with {}; expected only one of them",
                keys.join(" and ")
            ),
            None,
        );
    }
}

fn read_parts(section: &Section<'_>) -> PartSettings {
    let default = PartSettings::default();
    PartSettings {
        part_size: section
            .size("part_size", PART_SIZE_MIN..=PART_SIZE_MAX)
            .unwrap_or(default.part_size),
        concurrency: section
            .number("concurrency", 1..=CONCURRENCY_MAX)
            .unwrap_or(default.concurrency),
    }
}

/// Returns the maximum bytes of a sealed chunk: age adds 16 bytes to every 64 KiB and a header, and
/// zstd adds less than 1/256 to incompressible data (`ZSTD_COMPRESSBOUND`).
pub(super) fn sealed_bytes_max(split_size: Size) -> u64 {
    let stream = split_size.bytes();
    stream + stream / 4096 + stream / 256 + (64 << 10)
}

/// Checks the number of parts of one chunk against the limits of stores.
pub(super) fn check_part_count(
    main: &Section<'_>,
    store: &Section<'_>,
    split_size: Size,
    parts: PartSettings,
) {
    let count = sealed_bytes_max(split_size).div_ceil(parts.part_size.bytes());
    let (section, key) = if store.has("part_size") || !main.has("split_size") {
        (store, "part_size")
    } else {
        (main, "split_size")
    };
    if count > PARTS_MAX {
        let message = format!(
            "makes {count} parts of {} for one chunk; expected at most {PARTS_MAX}",
            parts.part_size
        );
        section.refuse(key, message, Some(part_count_hint(split_size)));
    } else if count > PARTS_EVERYWHERE_MAX {
        let stores = format!("some stores take only {PARTS_EVERYWHERE_MAX}");
        let text = format!(
            "{} makes {count} parts for one chunk, and {stores}: {}",
            section.dotted(key),
            part_count_hint(split_size)
        );
        section.notice(key, text);
    }
}

/// Returns the remedy: the smallest part size whose number of parts every store accepts, unless
/// that size is too large for S3.
fn part_count_hint(split_size: Size) -> String {
    let enough =
        Size::mebibytes((sealed_bytes_max(split_size).div_ceil(PARTS_EVERYWHERE_MAX) >> 20) + 1);
    if enough > PART_SIZE_MAX {
        return "lower split_size".to_owned();
    }
    format!("lower split_size, or write part_size = \"{enough}\" (memory grows with it)")
}

fn endpoint(text: &str) -> Result<String, InvalidValue> {
    let invalid = || {
        InvalidValue::new(
            text,
            "a URL, https://HOST or https://HOST:PORT, without a bucket in it",
        )
    };
    let Some((scheme, host)) = text.split_once("://") else {
        return Err(invalid().hint(format!("write \"https://{text}\"")));
    };
    let host = host.trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    if !matches!(scheme, "http" | "https") || host.is_empty() || !host.chars().all(plain) {
        return Err(invalid());
    }
    Ok(format!("{scheme}://{host}"))
}

fn word(text: &str, expected: &str) -> Result<String, InvalidValue> {
    let plain = !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control());
    plain
        .then(|| text.to_owned())
        .ok_or_else(|| InvalidValue::new(text, expected))
}

fn storage_class(text: &str) -> Result<String, InvalidValue> {
    let plain = !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    if plain {
        return Ok(text.to_owned());
    }
    let invalid = InvalidValue::new(text, "a storage class such as STANDARD_IA, in capitals");
    Err(if text.is_empty() {
        invalid
    } else {
        invalid.hint(format!("write \"{}\"", text.to_ascii_uppercase()))
    })
}

/// The word for the strongest checksum that the store keeps.
pub(super) const CHECKSUM_AUTO: &str = "auto";

fn checksum(text: &str) -> Result<Option<S3Checksum>, InvalidValue> {
    if text == CHECKSUM_AUTO {
        return Ok(None);
    }
    let found = S3Checksum::ALL
        .into_iter()
        .find(|checksum| checksum.to_string() == text);
    found
        .map(Some)
        .ok_or_else(|| InvalidValue::new(text, "one of auto, crc64nvme, sha256, crc32c, md5"))
}

/// Reads the days and the mode; 0 days means no lock.
fn read_lock(store: &Section<'_>) -> Option<ObjectLock> {
    let given = store.number("object_lock_days", 0..=36_500);
    let days = given.filter(|days| *days > 0);
    let mode = store.checked("object_lock_mode", |text| {
        let known = [LockMode::Governance, LockMode::Compliance];
        let found = known.into_iter().find(|mode| mode.to_string() == text);
        found.ok_or_else(|| InvalidValue::new(text, "governance or compliance"))
    });
    // Invalid days were already reported.
    let without = days.is_none() && (given == Some(0) || !store.has("object_lock_days"));
    if mode.is_some() && without {
        store.refuse(
            "object_lock_mode",
            "has no effect without object_lock_days".to_owned(),
            None,
        );
    }
    Some(ObjectLock {
        days: days?,
        mode: mode.unwrap_or_default(),
        covers_chains: false,
    })
}

/// Checks for an absolute path without `..`, whose meaning does not depend on the working
/// directory.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(text);
    let climbs = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if path.is_absolute() && !climbs {
        Ok(path)
    } else {
        Err(InvalidValue::new(text, "an absolute path without `..`"))
    }
}
