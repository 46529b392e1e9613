//! [`S3Store`]: Amazon S3 and compatible stores.
//!
//! Every checksum is computed here and sent with the request as one explicit header; the SDK adds
//! none, because its default checksums break many stores. After each upload the store's evidence is
//! read and compared with what was sent: this detects servers that ignore a checksum that they do
//! not support, and the evidence shows how much was proved.

mod bucket;
mod cause;
mod client;
mod delete;
mod encryption;
mod encryption_hint;
mod fallback;
mod keys;
mod limit;
mod list;
mod lock;
mod probe;
mod put;
mod read;
mod settings;
mod upload;

pub use encryption::{CustomerKey, S3Encryption, S3EncryptionKind};
pub use settings::{S3Checksum, S3Credentials, S3Settings};

use super::adapter::{Adapter, folder_of};
use super::pace::PacedBody;
use super::probe::Ability;
use super::{
    BucketFacts, Evidence, ListedObject, ObjectKey, ObjectLock, PageVisitor, PartWriter,
    ProbeDoubt, PutOutcome, StoreDelete, StoreError, StoreInfo, StoreProbe, StoreRead, StoreTraits,
    StoreWrite, UnfinishedUpload,
};
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Builder, Config};
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::{Bytes, BytesMut};
use cause::S3Cause;
use client::Connected;
use encryption_hint::encryption_hint;
use jiff::Timestamp;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// The directive that every filter of the log must end with: the SDK's signer logs all headers of a
/// request, and so the customer key.
pub const LOG_LIMIT: &str = "aws_sigv4=off";

/// The header value that makes a put create-only.
const NOTHING_THERE: &str = "*";

/// A bucket, or the part of it below a prefix. Clones share one client.
#[derive(Clone)]
pub struct S3Store {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    /// The client for requests whose response is an object.
    objects: Client,
    settings: S3Settings,
    url: String,
    endpoint: String,
    /// The prefix, which ends with a slash or is empty.
    prefix: String,
    traits: StoreTraits,
    /// The places of the parts in flight, of all objects together.
    places: Arc<Semaphore>,
    tls: bool,
    /// Whether the endpoint is on this host.
    local: bool,
    /// Whether the store refused `If-None-Match` on a put as unsupported.
    refuses_put_condition: AtomicBool,
    /// Whether the store refused `If-None-Match` at the end of an upload as unsupported.
    refuses_complete_condition: AtomicBool,
    /// Whether HEAD was refused with the header that requests checksums, and succeeded without it.
    refuses_checksum_mode: AtomicBool,
    /// Whether uploads send MD5, because the store refuses the checksum of the settings; see
    /// [`fallback`].
    refuses_checksum: AtomicBool,
    /// Whether an upload may fall back to MD5.
    falls_back: bool,
    /// The end of the locks of new objects, instead of that of the settings.
    lock_until: Option<Timestamp>,
    /// The probe of the store, and the callback for contradictions to it.
    expected: Option<(StoreProbe, ProbeDoubt)>,
}

impl S3Store {
    /// Finds the credentials and builds the client. Only the first call contacts the store.
    ///
    /// # Errors
    /// [`Invalid`](super::StoreErrorKind::Invalid) for settings that can never work,
    /// [`Denied`](super::StoreErrorKind::Denied) when there are no credentials, with all the places
    /// that were searched.
    pub async fn connect(mut settings: S3Settings) -> Result<Self, StoreError> {
        settings.follow_limiter();
        let connected = Box::pin(client::connect(&settings)).await?;
        Ok(Self {
            shared: Arc::new(Shared::new(connected, settings)),
        })
    }

    /// Returns the same store, used as its probe demands. The checksum is that of the settings;
    /// `doubt` is called when the store contradicts the probe.
    #[must_use]
    pub fn following(&self, probe: StoreProbe, doubt: ProbeDoubt) -> Self {
        let shared = self.shared.with_settings(self.shared.settings.clone());
        let refuses = |ability| AtomicBool::new(ability == Ability::Refused);
        let shared = Shared {
            traits: StoreTraits {
                conditional_put: probe.conditional_put == Ability::Works,
                ..shared.traits.clone()
            },
            refuses_put_condition: refuses(probe.conditional_put),
            refuses_complete_condition: refuses(probe.conditional_complete),
            expected: Some((probe, doubt)),
            ..shared
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Returns the same store with another checksum.
    #[must_use]
    pub fn with_checksum(&self, checksum: S3Checksum) -> Self {
        let settings = S3Settings {
            checksum,
            ..self.shared.settings.clone()
        };
        Self {
            shared: Arc::new(self.shared.with_settings(settings)),
        }
    }

    /// Returns the endpoint for messages: a URL, or Amazon's name and region.
    pub fn endpoint(&self) -> &str {
        &self.shared.endpoint
    }

    /// Makes one cheap call that fails unless endpoint, credentials and bucket work.
    pub async fn check_bucket(&self) -> Result<(), StoreError> {
        self.shared.check_bucket().await
    }
}

impl Shared {
    fn new(connected: Connected, settings: S3Settings) -> Self {
        let traits = StoreTraits {
            part_bytes: settings.part_bytes,
            concurrency: settings.concurrency,
            conditional_put: true,
            holds_parts: false,
        };
        Self {
            client: connected.client,
            objects: connected.objects,
            url: settings.url(),
            local: is_local(&connected.endpoint),
            endpoint: connected.endpoint,
            prefix: folder_of(&settings.prefix),
            places: Arc::new(Semaphore::new(traits.concurrency)),
            traits,
            tls: connected.tls,
            refuses_put_condition: AtomicBool::new(false),
            refuses_complete_condition: AtomicBool::new(false),
            refuses_checksum_mode: AtomicBool::new(false),
            refuses_checksum: AtomicBool::new(false),
            falls_back: true,
            lock_until: None,
            expected: None,
            settings,
        }
    }

    /// Returns the same connection with other settings, and without learned facts.
    fn with_settings(&self, settings: S3Settings) -> Self {
        let client = self.client.clone();
        let objects = self.objects.clone();
        let connected = Connected {
            client,
            objects,
            endpoint: self.endpoint.clone(),
            tls: self.tls,
        };
        Self::new(connected, settings)
    }

    fn full_key(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Makes the error for a failure of the call `api`, with a hint.
    fn failed(
        &self,
        operation: &str,
        api: &str,
        subject: &str,
        cause: impl Into<S3Cause>,
    ) -> StoreError {
        let cause = cause.into();
        if cause.may_be_the_checksum(api) {
            self.contradicts(&format!("{api} was refused: {cause}"));
        }
        let bucket = &self.settings.bucket;
        let encryption = self.settings.encryption.as_ref();
        let hint = encryption_hint(&cause, api, bucket, encryption)
            .or_else(|| cause.hint(api, bucket, &self.endpoint));
        let kind = cause.kind();
        let is_outage = cause.is_outage();
        StoreError::new(kind, operation, subject, &self.url, cause)
            .with_hint_of(hint)
            .with_outage(is_outage)
    }

    /// Returns the value of `If-None-Match` for a put, unless the store has refused it.
    fn put_condition(&self) -> Option<String> {
        (!self.refuses_put_condition.load(Ordering::Relaxed)).then(|| NOTHING_THERE.to_owned())
    }

    /// Returns the same value for the end of an upload.
    fn complete_condition(&self) -> Option<String> {
        (!self.refuses_complete_condition.load(Ordering::Relaxed)).then(|| NOTHING_THERE.to_owned())
    }

    /// Whether the probe saw that a conditional put replaces nothing. Without a probe this is
    /// unknown: some stores accept the condition and ignore it.
    fn was_found_to_refuse_replacing(&self) -> bool {
        self.expected
            .as_ref()
            .is_some_and(|(probe, _)| probe.conditional_put == Ability::Works)
    }

    /// Whether a conditional request failed because the store supports no conditions, so that a
    /// retry without the condition makes sense. The first occurrence is recorded.
    fn note_refused_condition(&self, cause: &S3Cause, noted: &AtomicBool) -> bool {
        let refused = cause.is_not_implemented();
        if refused && !noted.swap(true, Ordering::Relaxed) {
            self.contradicts(&format!("a condition was refused: {cause}"));
        }
        refused
    }

    /// Reports that the store contradicts its probe.
    fn contradicts(&self, what: &str) {
        if let Some((_, doubt)) = &self.expected {
            doubt.tell(what);
        }
    }

    /// Records that the store reports no checksum for a stored object, although the probe found
    /// that it does.
    fn note_weak_evidence(&self, checksum: S3Checksum) {
        if self.is_expected_to_keep(checksum) {
            self.contradicts(&format!("it keeps no {checksum} of what was sent with one"));
        }
    }

    /// Whether the probe found that the store keeps this checksum.
    fn is_expected_to_keep(&self, checksum: S3Checksum) -> bool {
        self.expected
            .as_ref()
            .is_some_and(|(probe, _)| probe.kept.contains(&checksum))
    }

    /// Makes a body that can be sent again, with the allowed bandwidth.
    fn body(&self, bytes: Bytes) -> ByteStream {
        let Some(limiter) = self.settings.limiter.clone() else {
            return ByteStream::from(bytes);
        };
        ByteStream::new(SdkBody::retryable(move || {
            SdkBody::from_body_1_x(PacedBody::new(Arc::clone(&limiter), bytes.clone()))
        }))
    }

    /// Whether bodies are sent unsigned: over TLS or to this host, where nobody is in between and
    /// our checksum is sent too; and if bodies are made while they are sent. A signature costs more
    /// than the encryption.
    fn unsigned(&self) -> bool {
        self.tls || self.local || self.settings.limiter.is_some()
    }

    /// Returns the time limits for a call that moves `bytes`.
    fn limits_for(&self, bytes: u64) -> Builder {
        let limit = self.settings.attempt_limit(bytes);
        Config::builder().timeout_config(
            TimeoutConfig::builder()
                .operation_attempt_timeout(limit)
                .build(),
        )
    }
}

/// Whether a URL leads to this host and nowhere else. A name other than `localhost` may lead
/// anywhere.
fn is_local(endpoint: &str) -> bool {
    let (host, _) = host_and_port(endpoint);
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Returns the host and the port of a URL.
fn host_and_port(endpoint: &str) -> (&str, u16) {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let place = rest.split('/').next().unwrap_or_default();
    let place = place.rsplit('@').next().unwrap_or_default();
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or((rest, "")),
        None => place.split_once(':').unwrap_or((place, "")),
    };
    let port = port.trim_start_matches(':').parse();
    let usual = if scheme == "http" { 80 } else { 443 };
    (host, port.unwrap_or(usual))
}

/// Whether a URL leads to an address of this host, such as its own name in the local network. Asks
/// the resolver, and blocks.
fn leads_here(endpoint: &str) -> bool {
    // Amazon's endpoint is a description and not a URL.
    endpoint.contains("://")
        && host_and_port(endpoint)
            .to_socket_addrs()
            .is_ok_and(|mut addresses| addresses.any(is_own_address))
}

/// Whether an address belongs to this host: only then does the kernel send from the same address.
/// Connecting a datagram socket sends nothing.
fn is_own_address(address: SocketAddr) -> bool {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address.ip())
}

#[async_trait]
impl StoreInfo for S3Store {
    fn url(&self) -> &str {
        &self.shared.url
    }

    fn traits(&self) -> &StoreTraits {
        &self.shared.traits
    }

    async fn bucket_facts(&self) -> Result<Option<BucketFacts>, StoreError> {
        Ok(Some(self.shared.bucket_facts().await))
    }

    async fn clock(&self) -> Result<Option<jiff::Timestamp>, StoreError> {
        self.shared.clock().await
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.shared.settings.lock
    }
}

#[async_trait]
impl StoreRead for S3Store {
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
        self.shared.head(key).await
    }

    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        self.shared.any_version(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.shared.list(prefix).await
    }

    async fn visit(&self, prefix: &str, take: PageVisitor<'_>) -> Result<(), StoreError> {
        self.shared
            .turn_pages(prefix, None, &mut |page| Ok(take(page.objects)))
            .await
    }

    async fn list_folders(&self, prefix: &str, delimiter: char) -> Result<Vec<String>, StoreError> {
        self.shared.list_folders(prefix, delimiter).await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.shared.unfinished(prefix).await
    }
}

#[async_trait]
impl StoreWrite for S3Store {
    /// Checks the key first, because some servers ignore `If-None-Match`, and then begins a
    /// multipart upload, independent of the object's size.
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        Ok(Box::new(upload::create(&self.shared, key).await?))
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        self.shared.put_new(key, bytes).await
    }

    async fn probe(&self, prefix: &str) -> Result<Option<StoreProbe>, StoreError> {
        Box::pin(probe::probe(&self.shared, prefix)).await.map(Some)
    }

    async fn extend_lock(&self, key: &ObjectKey, until: Timestamp) -> Result<(), StoreError> {
        self.shared.extend_lock(key, until).await
    }
}

#[async_trait]
impl StoreDelete for S3Store {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.shared.delete(key).await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.shared
            .abort_upload(&upload.key, &upload.upload_id)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::{is_local, leads_here};
    use std::net::UdpSocket;

    #[test]
    fn endpoint_on_this_host_is_recognised_under_another_name() {
        // The address from which this host speaks to others, where it has one.
        let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("192.0.2.1:9")?;
            socket.local_addr()
        });
        let own = own.map(|own| format!("http://{}:9000", own.ip())).ok();
        // 127.1 is an address to the resolver alone.
        for here in ["http://127.1:9000", "https://localhost"]
            .into_iter()
            .chain(own.as_deref())
        {
            assert!(leads_here(here), "{here}");
        }
        for elsewhere in ["http://192.0.2.1:9000", "http://[2001:db8::1]", "http://"] {
            assert!(!leads_here(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn only_the_loopback_is_local() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:9000", true),
            ("http://127.1.2.3", true),
            ("http://localhost:8333/", true),
            ("http://[::1]:9000", true),
            ("http://10.0.0.1:9000", false),
            ("http://[fe80::1]:9000", false),
            ("http://localhost.example.org", false),
            ("http://127.0.0.1.example.org", false),
            ("http://127.0.0.1@example.org", false),
            ("http://localhost:x@example.org", false),
            ("Amazon S3 in us-east-1", false),
        ] {
            assert_eq!(is_local(endpoint), expected, "{endpoint}");
        }
    }
}
