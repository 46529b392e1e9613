//! Settings of the remotes in addition to their name: `[s3]`, `[b2]`, `[prune]`, and how a chunk is
//! cut into parts.

use super::Config;
use super::document::Document;
use super::form::{self, Form};
use super::paths::Environment;
use super::problem::Problem;
use super::remote::Remote;
use super::secret::{Secret, SecretError, SecretFile};
use super::trust::FolderRule;
use super::units::{InvalidValue, Size};
use super::visitor::KeyVisitor;
use crate::store::{CustomerKey, LockMode, ObjectLock, S3Checksum, S3Encryption, S3EncryptionKind};
use std::path::PathBuf;

/// The smallest part. S3 refuses smaller parts (except the last); B2's minimum of 5,000,000 bytes
/// is lower.
const PART_SIZE_MIN: Size = Size::mebibytes(5);
/// The largest part that S3 accepts.
const PART_SIZE_MAX: Size = Size(5 << 30);
/// The largest object that every S3 store accepts.
const OBJECT_BYTES_MAX: u64 = 5 << 40;
/// The maximum number of parts of one object in S3 and in B2.
const PARTS_MAX: u64 = 10_000;
/// The maximum number of parts that every S3-compatible store accepts (Scaleway's limit).
const PARTS_EVERYWHERE_MAX: u64 = 1000;
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
    /// The encryption that the store is asked for; `None` means that of the bucket.
    pub encryption: Option<EncryptionSettings>,
    /// Settings for parts.
    pub parts: PartSettings,
    /// The time for which the store refuses to delete objects.
    pub lock: Option<ObjectLock>,
}

/// The server-side encryption of an S3 store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncryptionSettings {
    /// Keys that the store keeps.
    Managed {
        /// The kind of key.
        kind: S3EncryptionKind,
        /// The id of a key of the key service.
        kms_key_id: Option<String>,
    },
    /// The file of a customer key (SSE-C).
    Customer(SecretFile),
}

impl EncryptionSettings {
    /// Returns the encryption, with the customer key from its file. Blocks.
    ///
    /// # Errors
    /// [`SecretError`], which names the file.
    pub fn read(&self, env: &Environment) -> Result<S3Encryption, SecretError> {
        match self {
            Self::Managed { kind, kms_key_id } => Ok(S3Encryption::Managed {
                kind: *kind,
                kms_key_id: kms_key_id.clone(),
            }),
            Self::Customer(file) => {
                let key = CustomerKey::from_base64(file.read_line(env)?.expose());
                let key = key.ok_or_else(|| SecretError::Content {
                    origin: file.to_string(),
                    reason: "expected 32 bytes in base64, as `openssl rand -base64 32` prints them",
                })?;
                Ok(S3Encryption::Customer(key))
            }
        }
    }
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
const ENCRYPTION_KEY: &str = "server_side_encryption";
const KMS_KEY_ID: &str = "kms_key_id";
const CUSTOMER_KEY_FILE: &str = "sse_customer_key_file";
const B2_KEYS: [&str; 2] = ["application_key_id_file", "application_key_file"];

impl S3Section {
    pub(super) fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        let url = form::text(endpoint, String::clone);
        visitor.key("endpoint", &mut self.endpoint, url);
        let region = word("a region such as eu-central-1");
        visitor.key("region", &mut self.region, region);
        visitor.key("profile", &mut self.profile, word("the name of a profile"));
        declare_credential_files(S3_KEYS, &mut self.credential_files, visitor);
        let class = form::text(storage_class, String::clone);
        visitor.key("storage_class", &mut self.storage_class, class);
        let style = form::switch_or(self.endpoint.is_some());
        visitor.with_default("path_style", &mut self.path_style, style);
        let expected = "one of auto, crc64nvme, sha256, crc32c, md5";
        // `auto` stands for the strongest checksum that the store keeps.
        let checksum = form::word_of(S3Checksum::ALL, expected).or_none("auto");
        visitor.with_default("checksum", &mut self.checksum, checksum);
        declare_encryption(&mut self.encryption, visitor);
        self.parts.declare(visitor);
        declare_lock(&mut self.lock, visitor);
    }
}

impl B2Section {
    pub(super) fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        declare_credential_files(B2_KEYS, &mut self.credential_files, visitor);
        self.parts.declare(visitor);
        let folder = form::folder(FolderRule::MayBeSticky);
        visitor.key("spool_dir", &mut self.spool_dir, folder);
        declare_lock(&mut self.lock, visitor);
    }
}

impl PruneSection {
    pub(super) fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        visitor.key("profile", &mut self.profile, word("the name of a profile"));
        declare_credential_files(S3_KEYS, &mut self.s3_credential_files, visitor);
        declare_credential_files(B2_KEYS, &mut self.b2_credential_files, visitor);
    }
}

impl PartSettings {
    fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        let size = form::size(PART_SIZE_MIN..=PART_SIZE_MAX);
        visitor.with_default("part_size", &mut self.part_size, size);
        let count = form::number(1..=CONCURRENCY_MAX);
        visitor.with_default("concurrency", &mut self.concurrency, count);
    }
}

fn declare_credential_files(
    [id_key, secret_key]: [&'static str; 2],
    files: &mut Option<CredentialFiles>,
    visitor: &mut impl KeyVisitor,
) {
    let mut id_file = files.as_ref().map(|files| files.id_file.clone());
    let mut secret_file = files.as_ref().map(|files| files.secret_file.clone());
    visitor.key(id_key, &mut id_file, form::secret_file());
    visitor.key(secret_key, &mut secret_file, form::secret_file());
    *files = id_file
        .zip(secret_file)
        .map(|(id_file, secret_file)| CredentialFiles {
            id_file,
            secret_file,
        });
}

/// Declares the keys of the server-side encryption. [`check_encryption`] refuses contradictions.
fn declare_encryption(encryption: &mut Option<EncryptionSettings>, visitor: &mut impl KeyVisitor) {
    let (mut kind, mut kms_key_id, mut customer_key_file) = match encryption.take() {
        Some(EncryptionSettings::Managed { kind, kms_key_id }) => (Some(kind), kms_key_id, None),
        Some(EncryptionSettings::Customer(file)) => (None, None, Some(file)),
        None => (None, None, None),
    };
    let kinds = form::word_of(S3EncryptionKind::ALL, "AES256, aws:kms or aws:kms:dsse");
    visitor.key(ENCRYPTION_KEY, &mut kind, kinds);
    let id = word("the id or the ARN of a key of the key service");
    visitor.key(KMS_KEY_ID, &mut kms_key_id, id);
    visitor.key(
        CUSTOMER_KEY_FILE,
        &mut customer_key_file,
        form::secret_file(),
    );
    *encryption = customer_key_file
        .map(EncryptionSettings::Customer)
        .or(kind.map(|kind| EncryptionSettings::Managed { kind, kms_key_id }));
}

/// Declares the days and the mode; 0 days means no lock.
fn declare_lock(lock: &mut Option<ObjectLock>, visitor: &mut impl KeyVisitor) {
    let mut days = lock.map(|lock| lock.days);
    let mut mode = lock.map(|lock| lock.mode);
    visitor.key("object_lock_days", &mut days, form::number(0..=36_500));
    let modes = [LockMode::Governance, LockMode::Compliance];
    let form = form::word_of(modes, "governance or compliance");
    visitor.key("object_lock_mode", &mut mode, form);
    *lock = days.filter(|days| *days > 0).map(|days| ObjectLock {
        days,
        mode: mode.unwrap_or_default(),
        covers_chains: false,
    });
}

/// Checks that `[s3]`, `[b2]` and `[prune]` name either a profile or complete pairs of files: half
/// a pair would silently be completed with the other half of another pair.
pub(super) fn check_credentials(file: &Document<'_>) {
    for (section, [id, secret]) in [
        ("s3", S3_KEYS),
        ("b2", B2_KEYS),
        ("prune", S3_KEYS),
        ("prune", B2_KEYS),
    ] {
        for (given, other) in [(id, secret), (secret, id)] {
            let missing = format!("{section}.{other}");
            if file.has(&format!("{section}.{given}")) && !file.has(&missing) {
                let problem = format!("is missing; expected the other half of {given}");
                file.refuse(&missing, problem);
            }
        }
    }
    for section in ["s3", "prune"] {
        let profile = format!("{section}.profile");
        let has = |key: &&str| file.has(&format!("{section}.{key}"));
        if file.has(&profile) && S3_KEYS.iter().any(has) {
            let files = S3_KEYS.join(" and ");
            let message = format!("conflicts with {files}; expected only one of them");
            file.refuse(&profile, message);
        }
    }
}

/// Checks that the keys of the server-side encryption do not contradict each other.
pub(super) fn check_encryption(file: &Document<'_>, encryption: Option<&EncryptionSettings>) {
    let key = |name: &str| format!("s3.{name}");
    if file.has(&key(CUSTOMER_KEY_FILE)) && file.has(&key(ENCRYPTION_KEY)) {
        let message = format!("conflicts with {ENCRYPTION_KEY}; expected only one of them");
        file.refuse(&key(CUSTOMER_KEY_FILE), message);
    }
    let has_kms = match encryption {
        Some(EncryptionSettings::Managed { kind, .. }) => kind.is_kms(),
        Some(EncryptionSettings::Customer(_)) | None => false,
    };
    if file.has(&key(KMS_KEY_ID)) && !has_kms && !file.has_refused(&key(ENCRYPTION_KEY)) {
        let problem = Problem::new(format!(
            "has no effect without a {ENCRYPTION_KEY} that uses it"
        ));
        let hint = format!("write {ENCRYPTION_KEY} = \"aws:kms\"");
        file.refuse(&key(KMS_KEY_ID), problem.hint(hint));
    }
}

/// Checks that the endpoint does not end with the bucket, which the program appends itself.
pub(super) fn check_endpoint(file: &Document<'_>, config: &Config) {
    let (Some(Remote::S3 { bucket, .. }), Some(endpoint)) = (&config.remote, &config.s3.endpoint)
    else {
        return;
    };
    if let Some(place) = endpoint.strip_suffix(&format!("/{bucket}")) {
        let problem = Problem::new(format!(
            "ends with the bucket {bucket:?}, which `remote` names"
        ));
        file.refuse("s3.endpoint", problem.hint(format!("write \"{place}\"")));
    }
}

/// Checks that a mode has days. Refused keys were reported already.
pub(super) fn check_lock(file: &Document<'_>, section: &str, lock: Option<ObjectLock>) {
    let mode = format!("{section}.object_lock_mode");
    if lock.is_none() && file.has(&mode) && !file.has_refused(&format!("{section}.object_lock_")) {
        file.refuse(&mode, "has no effect without object_lock_days");
    }
}

/// Returns the maximum bytes of a sealed chunk: age adds 16 bytes to every 64 KiB and a header, and
/// zstd adds less than 1/256 to incompressible data (`ZSTD_COMPRESSBOUND`).
pub(super) fn sealed_bytes_max(split_size: Size) -> u64 {
    let stream = split_size.bytes();
    stream + stream / 4096 + stream / 256 + (64 << 10)
}

/// Checks the number of parts of one chunk against the limits of stores. `part_size_key` is the key
/// of the configured remote.
pub(super) fn check_part_count(file: &Document<'_>, part_size_key: &str, config: &Config) {
    let count = config.parts_per_chunk();
    let key = if file.has(part_size_key) || !file.has("main.split_size") {
        part_size_key
    } else {
        "main.split_size"
    };
    let hint = part_count_hint(config.split_size);
    if sealed_bytes_max(config.split_size) > OBJECT_BYTES_MAX {
        let message = "makes objects of more than 5T with their encryption; expected at most 5T";
        let hint = "write split_size = \"4T\"";
        file.refuse("main.split_size", Problem::new(message).hint(hint));
    }
    if count > PARTS_MAX {
        let size = config.parts().part_size;
        let message =
            format!("makes {count} parts of {size} for one chunk; expected at most {PARTS_MAX}");
        file.refuse(key, Problem::new(message).hint(hint));
    } else if count > PARTS_EVERYWHERE_MAX {
        let stores = format!("some stores take only {PARTS_EVERYWHERE_MAX}");
        let text = format!("{key} makes {count} parts for one chunk, and {stores}: {hint}");
        file.notice(key, text);
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
            "a URL, https://HOST, https://HOST:PORT or https://HOST/PATH, without a bucket in it",
        )
    };
    let Some((scheme, place)) = text.split_once("://") else {
        return Err(invalid().hint(format!("write \"https://{text}\"")));
    };
    let place = place.trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    // The host and the folders of the path. A path that would have to be escaped is refused.
    let mut names = place.split('/');
    let is_plain = names.all(|name| !name.is_empty() && name.chars().all(plain));
    if !matches!(scheme, "http" | "https") || !is_plain {
        return Err(invalid());
    }
    Ok(format!("{scheme}://{place}"))
}

/// A word without spaces.
fn word(expected: &'static str) -> Form<String> {
    let parse = move |text: &str| {
        if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(InvalidValue::new(text, expected));
        }
        Ok(text.to_owned())
    };
    form::text(parse, String::clone)
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
