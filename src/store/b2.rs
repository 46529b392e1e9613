//! [`B2Store`]: Backblaze B2 by its native API.
//!
//! **Evidence.** An object of up to one part is sent in one request with its SHA-1; B2 computes the
//! SHA-1 too, refuses a mismatch, and keeps it: tier `sha1`. A longer object is sent as a large
//! file: B2 checks the SHA-1 of each part on arrival and of all parts when the file is finished,
//! but keeps no SHA-1 of the whole. Later checks can only compare the file's id, whose content
//! never changes, and its size: tier `id-pin`. With a spool the SHA-1 of the whole is known before
//! the upload begins and is kept with the file, as B2's own tools do; B2 does not check that SHA-1.
//!
//! **Create-only.** B2 cannot make an upload conditional: a second upload of a name becomes its
//! newest version. The name is therefore checked before the bytes become a file, and again
//! afterwards. Of two concurrent small files the older one is kept, and the other is deleted by its
//! id; a large file is deleted whenever another version is found. Versions with the same bytes,
//! made by a retry whose first response was lost, are reduced to one.
//!
//! **Hidden is absent.** `head`, `get` and `list` see the newest version of a name, and nothing if
//! that is a hide marker; `delete` removes all versions and markers. A key without `deleteFiles`
//! can only hide: the store then hides, with one warning, and the bytes remain until a lifecycle
//! rule or another key removes them. "Absent" therefore means "not live", here and for S3 with
//! versions: no single response of a store proves that an object never existed.

mod bucket;
mod cause;
mod client;
mod delete;
mod list;
mod lock;
mod messages;
mod probe;
mod put;
mod read;
mod settings;
mod spooled;
mod upload;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use messages::read_any_answer;
pub use settings::{B2Credentials, B2Settings};

use super::adapter::{Adapter, folder_of};
use super::multipart::MultipartWriter;
use super::{
    BucketFacts, Evidence, ListedObject, ObjectKey, ObjectLock, PageVisitor, PartWriter,
    PutOutcome, SpoolFile, SpooledStore, StoreDelete, StoreError, StoreErrorKind, StoreInfo,
    StoreProbe, StoreRead, StoreTraits, StoreWrite, UnfinishedUpload,
};
use crate::store::work::no_bucket_hint;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use cause::{AUTHORIZE, B2Cause};
use client::{Session, UrlPool};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, Semaphore};

/// A bucket, or the part of it below a prefix. Clones share one client and one session.
#[derive(Clone)]
pub struct B2Store {
    shared: Arc<Shared>,
}

struct Shared {
    http: reqwest::Client,
    settings: B2Settings,
    url: String,
    /// Ends with a slash, or is empty.
    prefix: String,
    traits: StoreTraits,
    /// The places of the parts in flight, of all objects together.
    places: Arc<Semaphore>,
    /// The session. The lock is held while a session is opened, so that one task opens it for all.
    session: Mutex<Option<Arc<Session>>>,
    /// The credentials that were read last.
    credentials: std::sync::Mutex<Option<B2Credentials>>,
    bucket_id: OnceLock<String>,
    /// Upload URLs for files that are sent in one request.
    upload_urls: UrlPool,
    warned_of_hiding: AtomicBool,
}

impl B2Store {
    /// Builds the client. Only the first call contacts B2.
    ///
    /// # Errors
    /// [`StoreErrorKind::Invalid`] for settings that can never work.
    pub fn new(settings: B2Settings) -> Result<Self, StoreError> {
        Shared::new(settings).map(|shared| Self {
            shared: Arc::new(shared),
        })
    }

    /// Authorizes and finds the bucket. Fails unless key, bucket, prefix and part size fit
    /// together.
    pub async fn check_bucket(&self) -> Result<(), StoreError> {
        let opened = self.shared.session().await;
        opened
            .map(|_| ())
            .map_err(|cause| self.shared.failed("access", "b2_list_buckets", "", cause))
    }
}

impl Shared {
    fn new(mut settings: B2Settings) -> Result<Self, StoreError> {
        settings.follow_limiter();
        let url = settings.url();
        let failed = |cause: B2Cause| {
            StoreError::new(cause.kind(), "connect to", "", &url, cause.clone())
                .with_hint_of(cause.hint)
        };
        settings
            .check()
            .map_err(|text| failed(B2Cause::ours(StoreErrorKind::Invalid, text)))?;
        let http = client::build_http(&settings).map_err(failed)?;
        let traits = StoreTraits {
            part_bytes: settings.part_bytes,
            concurrency: settings.concurrency,
            conditional_put: false,
            holds_parts: true,
        };
        let (session, bucket_id, upload_urls) =
            (Mutex::new(None), OnceLock::new(), UrlPool::default());
        Ok(Self {
            http,
            url,
            prefix: folder_of(&settings.prefix),
            places: Arc::new(Semaphore::new(traits.concurrency)),
            traits,
            session,
            credentials: std::sync::Mutex::new(settings.credentials.clone()),
            bucket_id,
            upload_urls,
            warned_of_hiding: AtomicBool::new(false),
            settings,
        })
    }

    /// Makes the error for a failure of the call `api`, with a hint.
    fn failed(&self, operation: &str, api: &str, subject: &str, cause: B2Cause) -> StoreError {
        let mut hint = cause.hint(api, self.settings.endpoint());
        if cause.kind() == StoreErrorKind::NoBucket {
            hint = hint.or_else(|| Some(no_bucket_hint(&self.settings.bucket)));
        }
        let (kind, is_outage) = (cause.kind(), cause.is_outage());
        StoreError::new(kind, operation, subject, &self.url, cause)
            .with_hint_of(hint)
            .with_outage(is_outage)
    }
}

#[async_trait]
impl StoreInfo for B2Store {
    fn url(&self) -> &str {
        &self.shared.url
    }

    fn traits(&self) -> &StoreTraits {
        &self.shared.traits
    }

    async fn bucket_facts(&self) -> Result<Option<BucketFacts>, StoreError> {
        self.shared.bucket_facts().await.map(Some)
    }

    async fn clock(&self) -> Result<Option<jiff::Timestamp>, StoreError> {
        self.shared.clock().await.map_err(|cause| {
            self.shared
                .failed("read the clock of", AUTHORIZE, "", cause)
        })
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.shared.settings.lock
    }
}

#[async_trait]
impl StoreRead for B2Store {
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        self.shared.get(key, range, limit_bytes).await
    }

    async fn get_into(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        let limit_bytes = range.end.saturating_sub(range.start);
        self.shared
            .get_into(key, Some(range), limit_bytes, buffer)
            .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        Ok(self
            .shared
            .live("check", key)
            .await?
            .map(|file| file.evidence()))
    }

    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        let versions = self.shared.versions("list versions of", key).await?;
        Ok(versions
            .iter()
            .any(|file| file.is_upload() || file.is_hidden_marker()))
    }

    async fn evidence_under(
        &self,
        prefix: &str,
    ) -> Result<Option<BTreeMap<String, Evidence>>, StoreError> {
        let live = self.shared.live_under(prefix).await?;
        Ok(Some(
            live.into_iter()
                .map(|(key, file)| (key, file.evidence()))
                .collect(),
        ))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let live = self.shared.live_under(prefix).await?.into_iter();
        Ok(live.map(|(key, file)| file.listed(key)).collect())
    }

    async fn visit(&self, prefix: &str, take: PageVisitor<'_>) -> Result<(), StoreError> {
        self.shared.visit_live(prefix, take).await
    }

    async fn list_folders(&self, prefix: &str, delimiter: char) -> Result<Vec<String>, StoreError> {
        self.shared.list_folders(prefix, delimiter).await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.shared.unfinished(prefix).await
    }
}

#[async_trait]
impl StoreWrite for B2Store {
    /// Sends no request yet: whether the key is taken is checked before the object is created.
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        Ok(Box::new(MultipartWriter::new(&self.shared, key, None)))
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        self.shared.put_new(key, bytes).await
    }

    async fn probe(&self, prefix: &str) -> Result<Option<StoreProbe>, StoreError> {
        self.shared.probe(prefix).await.map(Some)
    }

    async fn extend_lock(&self, key: &ObjectKey, until: jiff::Timestamp) -> Result<(), StoreError> {
        self.shared.extend_lock(key, until).await
    }
}

#[async_trait]
impl StoreDelete for B2Store {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.shared.delete(key).await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.shared.cancel(&upload.key, &upload.upload_id).await
    }
}

#[async_trait]
impl SpooledStore for B2Store {
    async fn put_spooled(&self, key: &ObjectKey, file: &SpoolFile) -> Result<Evidence, StoreError> {
        spooled::put_spooled(&self.shared, key, file).await
    }
}
