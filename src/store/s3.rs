//! [`S3Store`]: Amazon S3 and what speaks its protocol.
//!
//! Every checksum is taken here and given with the request as one explicit header; the SDK adds none, because what it
//! adds by default breaks many stores. After each upload the store is asked what it has, and that is compared with what
//! was sent: servers that ignore a checksum they cannot do are found out, and the evidence says how much they proved.

mod cause;
mod client;
mod delete;
mod keys;
mod list;
mod put;
mod read;
mod settings;
mod sum;
mod upload;

pub use settings::{S3Checksum, S3Credentials, S3Settings};

use super::pace::PacedBody;
use super::{
    Evidence, ListedObject, ObjectKey, ObjectStore, PartWriter, PutOutcome, StoreError, StoreErrorKind, StoreTraits,
    UnfinishedUpload, UploadNeeds,
};
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Builder, Config};
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use cause::Cause;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use upload::S3Writer;

/// The header value that makes a put create-only.
const NOTHING_THERE: &str = "*";

/// A bucket, or what is below a prefix in it. Clones share one client.
#[derive(Clone)]
pub struct S3Store {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    settings: S3Settings,
    url: String,
    endpoint: String,
    /// Ends with a slash, or is empty.
    prefix: String,
    traits: StoreTraits,
    tls: bool,
    /// The store said that it knows no `If-None-Match`.
    refuses_conditions: AtomicBool,
    /// An answer showed that the bucket exists. Without that, "no such object" may mean "no such bucket".
    bucket_seen: AtomicBool,
}

impl S3Store {
    /// Finds the credentials and builds the client. The store itself is first spoken to by the first call.
    ///
    /// # Errors
    /// [`StoreErrorKind::Invalid`] for settings that can never work, [`StoreErrorKind::Denied`] when there are no
    /// credentials, with all places where they were looked for.
    pub async fn connect(mut settings: S3Settings) -> Result<Self, StoreError> {
        settings.follow_limiter();
        let connected = Box::pin(client::connect(&settings)).await?;
        let prefix = if settings.prefix.is_empty() { String::new() } else { format!("{}/", settings.prefix) };
        let traits = StoreTraits {
            needs: UploadNeeds::Parts,
            part_bytes: settings.part_bytes,
            concurrency: settings.concurrency,
            conditional_put: true,
        };
        let shared = Shared {
            client: connected.client,
            url: settings.url(),
            endpoint: connected.endpoint,
            prefix,
            traits,
            tls: connected.tls,
            refuses_conditions: AtomicBool::new(false),
            bucket_seen: AtomicBool::new(false),
            settings,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// One cheap call that fails unless endpoint, credentials and bucket work.
    pub async fn check_bucket(&self) -> Result<(), StoreError> {
        self.shared.check_bucket().await
    }
}

impl Shared {
    fn full_key(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.prefix)
    }

    /// A failure of the call `api`, with what a person can do.
    fn failed(&self, operation: &str, api: &str, subject: &str, cause: impl Into<Cause>) -> StoreError {
        let cause = cause.into();
        let hint = cause.hint(api, &self.settings.bucket, &self.endpoint);
        let mut error = StoreError::new(cause.kind(), operation, subject, &self.url, cause);
        error.hint = hint;
        error
    }

    /// A failure that we found, not the store.
    fn wrong(&self, kind: StoreErrorKind, operation: &str, subject: &str, text: impl Into<String>) -> StoreError {
        StoreError::new(kind, operation, subject, &self.url, text.into())
    }

    /// The value of `If-None-Match`, as long as the store has not refused it.
    fn condition(&self) -> Option<String> {
        (!self.refuses_conditions.load(Ordering::Relaxed)).then(|| NOTHING_THERE.to_owned())
    }

    /// Notes that the store knows no conditions, if that is why this request failed: then it is worth another try.
    fn note_refused_condition(&self, cause: &Cause) -> bool {
        let refused = cause.status == Some(501) || cause.has_code("NotImplemented");
        refused && !self.refuses_conditions.swap(true, Ordering::Relaxed)
    }

    /// A body that can be sent again, at the pace that is allowed.
    fn body(&self, bytes: Bytes) -> ByteStream {
        let Some(limiter) = self.settings.limiter.clone() else { return ByteStream::from(bytes) };
        ByteStream::new(SdkBody::retryable(move || {
            SdkBody::from_body_1_x(PacedBody::new(Arc::clone(&limiter), bytes.clone()))
        }))
    }

    /// Whether bodies go unsigned: over TLS, with our checksum beside them; and where they are made while they are sent.
    fn unsigned(&self) -> bool {
        self.tls || self.settings.limiter.is_some()
    }

    /// Limits for a call that moves `bytes`.
    fn limits_for(&self, bytes: u64) -> Builder {
        let limit = self.settings.attempt_limit(bytes);
        Config::builder().timeout_config(TimeoutConfig::builder().operation_attempt_timeout(limit).build())
    }

    fn saw_bucket(&self) {
        self.bucket_seen.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn url(&self) -> &str {
        &self.shared.url
    }

    fn traits(&self) -> &StoreTraits {
        &self.shared.traits
    }

    /// Looks for the key first, because some servers ignore `If-None-Match`, then begins a multipart upload, whatever
    /// the object's size will be.
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        Ok(Box::new(S3Writer::begin(&self.shared, key).await?))
    }

    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<(PutOutcome, Evidence), StoreError> {
        self.shared.put_new(key, bytes).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>, limit_bytes: u64) -> Result<Bytes, StoreError> {
        self.shared.get(key, range, limit_bytes).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        self.shared.head(key).await
    }

    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        self.shared.any_version(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.shared.list(prefix).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.shared.delete(key).await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.shared.unfinished(prefix).await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.shared.abort_upload(&upload.key, &upload.upload_id).await
    }
}
