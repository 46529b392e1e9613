//! [`S3Encryption`]: the encryption that the store is asked to apply to every object, in addition to
//! ours. Bucket policies often deny a put that does not ask for it.
//!
//! An interceptor adds the headers to each request that needs them, so that no caller can forget
//! them. The store keeps an object that was put with its own keys readable without a header; an
//! object that was put with a customer key can be read only with that key.

use crate::store::hash::HashKind;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextMut, BeforeSerializationInterceptorContextMut,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadInput;
use aws_sdk_s3::operation::create_multipart_upload::CreateMultipartUploadInput;
use aws_sdk_s3::operation::get_object::GetObjectInput;
use aws_sdk_s3::operation::head_object::HeadObjectInput;
use aws_sdk_s3::operation::put_object::PutObjectInput;
use aws_sdk_s3::operation::upload_part::UploadPartInput;
use aws_sdk_s3::types::ServerSideEncryption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::error::Error;
use std::fmt;
use zeroize::Zeroizing;

/// The only cipher of customer keys.
const CUSTOMER_ALGORITHM: &str = "AES256";
const CUSTOMER_KEY_BYTES: usize = 32;

/// The server-side encryption of an S3 store.
#[derive(Debug, Clone)]
pub enum S3Encryption {
    /// Keys that the store keeps.
    Managed {
        /// The kind of key.
        kind: S3EncryptionKind,
        /// The id of a key of the key service; `None` means the store's default key.
        kms_key_id: Option<String>,
    },
    /// A key that every request brings and that the store does not keep (SSE-C).
    Customer(CustomerKey),
}

/// The kinds of keys that the store keeps, in the words of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3EncryptionKind {
    /// Keys of the store itself (SSE-S3).
    Aes256,
    /// A key of the key service (SSE-KMS).
    Kms,
    /// Two layers with a key of the key service (DSSE-KMS).
    KmsDsse,
}

impl S3EncryptionKind {
    /// All kinds, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Aes256, Self::Kms, Self::KmsDsse];

    /// Whether the key is one of the key service.
    pub fn is_kms(self) -> bool {
        self != Self::Aes256
    }
}

impl fmt::Display for S3EncryptionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ServerSideEncryption::from(*self).as_str())
    }
}

impl From<S3EncryptionKind> for ServerSideEncryption {
    fn from(kind: S3EncryptionKind) -> Self {
        match kind {
            S3EncryptionKind::Aes256 => Self::Aes256,
            S3EncryptionKind::Kms => Self::AwsKms,
            S3EncryptionKind::KmsDsse => Self::AwsKmsDsse,
        }
    }
}

/// A key of 32 bytes. Debug output hides it.
#[derive(Clone)]
pub struct CustomerKey {
    base64: Zeroizing<String>,
    /// The MD5 of the key, with which the store detects a key that was damaged on the way.
    md5: String,
}

impl CustomerKey {
    /// Reads a key in base64. Returns `None` for a text that is not exactly 32 bytes.
    pub fn from_base64(text: &str) -> Option<Self> {
        let key = Zeroizing::new(STANDARD.decode(text).ok()?);
        (key.len() == CUSTOMER_KEY_BYTES).then(|| Self {
            base64: Zeroizing::new(text.to_owned()),
            md5: HashKind::Md5.hash(&key).base64(),
        })
    }
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey(hidden)")
    }
}

/// Sets the three fields of a customer key, if the input is of one of the listed operations.
macro_rules! set_customer_key {
    ($context:ident, $key:ident, $($operation:ty)*) => {
        $(if let Some(input) = $context.input_mut().downcast_mut::<$operation>() {
            input.sse_customer_algorithm = Some(CUSTOMER_ALGORITHM.to_owned());
            input.sse_customer_key = Some($key.base64.to_string());
            input.sse_customer_key_md5 = Some($key.md5.clone());
        })*
    };
}

/// Sets the kind of key, if the input is of one of the listed operations.
macro_rules! set_kind {
    ($context:ident, $kind:ident, $kms_key_id:ident, $($operation:ty)*) => {
        $(if let Some(input) = $context.input_mut().downcast_mut::<$operation>() {
            input.server_side_encryption = Some((*$kind).into());
            input.ssekms_key_id = $kms_key_id.clone();
        })*
    };
}

impl Intercept for S3Encryption {
    fn name(&self) -> &'static str {
        "S3Encryption"
    }

    fn modify_before_serialization(
        &self,
        context: &mut BeforeSerializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        match self {
            Self::Managed { kind, kms_key_id } => {
                set_kind!(context, kind, kms_key_id, PutObjectInput CreateMultipartUploadInput);
            }
            Self::Customer(key) => {
                set_customer_key!(context, key, PutObjectInput CreateMultipartUploadInput);
                set_customer_key!(context, key, UploadPartInput CompleteMultipartUploadInput);
                set_customer_key!(context, key, GetObjectInput HeadObjectInput);
            }
        }
        Ok(())
    }

    /// Removes the echo of the key's MD5 from responses: SeaweedFS 4.48 sends it twice, and the SDK
    /// then refuses the whole response.
    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let headers = context.response_mut().headers_mut();
        headers.remove("x-amz-server-side-encryption-customer-key-md5");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customer_key_is_32_bytes_in_base64_and_never_printed() {
        let text = STANDARD.encode([7; 32]);
        let key = CustomerKey::from_base64(&text).unwrap();
        // As `head -c 32 /dev/zero | tr '\0' '\7' | openssl md5 -binary | base64` prints it.
        assert_eq!(key.md5, "y4HAEFCYWuvAXWFTtA1Qpg==");
        assert!(!format!("{:?}", S3Encryption::Customer(key)).contains(&text));
        for text in [
            "",
            "short",
            &STANDARD.encode([7; 31]),
            &STANDARD.encode([7; 33]),
        ] {
            assert!(CustomerKey::from_base64(text).is_none(), "{text}");
        }
    }
}
