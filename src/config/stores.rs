//! Settings of the remotes in addition to their name: `[s3]`, `[b2]` and `[prune]`.

mod credentials;
mod encryption;
mod parts;

pub use credentials::CredentialFiles;
pub(super) use credentials::check_credentials;
pub use encryption::EncryptionSettings;
pub(super) use encryption::check_encryption;
pub use parts::PartSettings;
pub(super) use parts::{check_part_count, sealed_bytes_max};

use super::Config;
use super::document::Document;
use super::form::{self, Form};
use super::problem::Problem;
use super::remote::Remote;
use super::trust::FolderRule;
use super::units::InvalidValue;
use super::visitor::KeyVisitor;
use crate::store::{LockMode, ObjectLock, S3Checksum};
use credentials::{B2_KEYS, S3_KEYS, declare_credential_files};
use encryption::declare_encryption;
use std::path::PathBuf;

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
