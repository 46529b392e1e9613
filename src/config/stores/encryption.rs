//! The server-side encryption of an S3 store.

use super::word;
use crate::config::document::Document;
use crate::config::form;
use crate::config::paths::Environment;
use crate::config::problem::Problem;
use crate::config::secret::{SecretError, SecretFile};
use crate::config::visitor::KeyVisitor;
use crate::store::{CustomerKey, S3Encryption, S3EncryptionKind};

const ENCRYPTION_KEY: &str = "server_side_encryption";
const KMS_KEY_ID: &str = "kms_key_id";
const CUSTOMER_KEY_FILE: &str = "sse_customer_key_file";

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

/// Declares the keys of the server-side encryption. [`check_encryption`] refuses contradictions.
pub(super) fn declare_encryption(
    encryption: &mut Option<EncryptionSettings>,
    visitor: &mut impl KeyVisitor,
) {
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

/// Checks that the keys of the server-side encryption do not contradict each other.
pub(in crate::config) fn check_encryption(
    file: &Document<'_>,
    encryption: Option<&EncryptionSettings>,
) {
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
