//! Calls: the HTTP client, the account's session, and the retry policy.
//!
//! The first call opens a session, and so does the first call after its token expired; one task
//! opens it while the others wait. An expired token is not a failure. A missing capability is a
//! failure at once. Transient failures are retried with pauses that double, or as long as the store
//! asks.

use super::cause::{AUTHORIZE, B2Cause, B2Stage};
use super::messages::{Authorized, Bucket, Buckets, KeyRights, UploadUrl};
use super::settings::B2Settings;
use super::{Shared, settings};
use crate::store::answer::{ANSWER_BYTES_MAX, REFUSAL_BYTES_MAX};
use crate::store::pace::PacedBody;
use crate::store::work::{http_date, no_bucket_hint, random_u64};
use crate::store::{B2Credentials, StoreErrorKind};
use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, DATE, HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Body, Client, ClientBuilder, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::sleep;

/// The maximum number of attempts of one call.
pub(super) const TRIES_MAX: u32 = 6;
/// The maximum number of renewals of the session for one call: one for an expired token, and one
/// more in case another task's renewed session expires too.
const RENEWALS_MAX: u32 = 3;
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const ENCRYPTED: &str = "https://";
const PLAIN: &str = "http://";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The supported versions of the API, newest first; servers that do not support v4 support v3.
const API_VERSIONS: [&str; 2] = ["v4", "v3"];

/// An authorized account. The token lasts at most a day.
pub(super) struct Session {
    pub(super) token: String,
    pub(super) api_url: String,
    pub(super) download_url: String,
    pub(super) bucket_id: String,
    /// The application key with which the session was opened.
    key_id: String,
    pub(super) account_id: String,
    pub(super) part_bytes_min: u64,
    pub(super) rights: KeyRights,
    version: &'static str,
}

impl Session {
    pub(super) fn may(&self, capability: &str) -> bool {
        self.rights.capabilities.iter().any(|has| has == capability)
    }
}

/// Free upload URLs. Each takes one upload at a time; a URL that failed is not put back.
#[derive(Default)]
pub(super) struct UrlPool(Mutex<Vec<UploadUrl>>);

impl UrlPool {
    fn take(&self) -> Option<UploadUrl> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, url: UploadUrl) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(url);
    }
}

/// The attempts that are left of one call. The pauses before them double, with jitter so that many
/// clients do not retry at the same time.
pub(super) struct Retries {
    left: u32,
    pause_next: Duration,
}

impl Retries {
    /// Allows `tries_max` attempts, with the first.
    pub(super) fn new(settings: &B2Settings, tries_max: u32) -> Self {
        Self {
            left: tries_max.saturating_sub(1),
            pause_next: settings.pause_first,
        }
    }

    /// Waits for the next attempt, at least as long as the store asked. Returns false at once if no
    /// attempt is left.
    pub(super) async fn wait(&mut self, cause: &B2Cause) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let chance = random_u64().unwrap_or(0) % 256;
        let jitter = self
            .pause_next
            .mul_f64(f64::from(u8::try_from(chance).unwrap_or(0)) / 512.0);
        let pause = (self.pause_next + jitter).max(cause.retry_after.unwrap_or_default());
        self.pause_next *= 2;
        sleep(pause.min(PAUSE_MAX)).await;
        true
    }
}

/// Builds the client for one store. Plain http is for tests.
pub(super) fn build_http(settings: &B2Settings) -> Result<Client, B2Cause> {
    let builder = ClientBuilder::new()
        .user_agent(concat!("zfs-backup/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_LIMIT)
        .redirect(Policy::none())
        .retry(reqwest::retry::never());
    // Plain http verifies no server, so a host without root certificates is sufficient.
    let builder = match settings.endpoint().starts_with("http://") {
        true => builder.tls_certs_only([]),
        false if rustls_native_certs::load_native_certs().certs.is_empty() => {
            let text = "this host has no root certificates, so no server can be verified";
            let hint = "install the package ca-certificates, or name a bundle in SSL_CERT_FILE";
            return Err(B2Cause::ours(StoreErrorKind::Invalid, text).with_hint(hint));
        }
        false => builder,
    };
    Ok(builder.build()?)
}

impl Shared {
    /// Returns the session; opens one if there is none.
    pub(super) async fn session(&self) -> Result<Arc<Session>, B2Cause> {
        let mut held = self.session.lock().await;
        if let Some(session) = &*held {
            return Ok(Arc::clone(session));
        }
        let mut retries = Retries::new(&self.settings, TRIES_MAX);
        loop {
            match self.open_session().await {
                Ok(session) => return Ok(Arc::clone(held.insert(Arc::new(session)))),
                Err(cause)
                    if (cause.is_transient() || cause.is_token()) && retries.wait(&cause).await => {
                }
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Discards an expired session, unless another task has already renewed it.
    async fn forget(&self, stale: &Arc<Session>) {
        let mut held = self.session.lock().await;
        if held
            .as_ref()
            .is_some_and(|session| Arc::ptr_eq(session, stale))
        {
            *held = None;
        }
    }

    /// Whether a retry with another key than this session's is possible. If so, the session is
    /// discarded.
    async fn renewed(&self, refused: &Arc<Session>) -> bool {
        let other = self
            .credentials()
            .is_some_and(|now| now.application_key_id != refused.key_id);
        let renewed = other || self.read_again().await;
        if renewed {
            self.forget(refused).await;
        }
        renewed
    }

    fn credentials(&self) -> Option<B2Credentials> {
        self.credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads the application key again. Returns whether it has changed.
    async fn read_again(&self) -> bool {
        let Some(renew) = &self.settings.renew else {
            return false;
        };
        let Some(new) = renew.read().await else {
            return false;
        };
        let mut held = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let changed = held.as_ref() != Some(&new);
        if changed {
            tracing::info!(
                store = self.url,
                "B2 refused the application key, and there is a new one"
            );
            *held = Some(new);
        }
        changed
    }

    async fn open_session(&self) -> Result<Session, B2Cause> {
        let (version, authorized) = match self.authorize().await {
            Err(cause) if cause.status == Some(401) && self.read_again().await => {
                self.authorize().await?
            }
            authorized => authorized?,
        };
        let key_id = self
            .credentials()
            .map(|held| held.application_key_id)
            .unwrap_or_default();
        let (account_id, token, storage, rights) = authorized.into_storage()?;
        if (self.settings.part_bytes as u64) < storage.absolute_minimum_part_size {
            let have = self.settings.part_bytes;
            let min = storage.absolute_minimum_part_size;
            let text = format!(
                "parts of {have} bytes are below the smallest that this account takes, {min}"
            );
            return Err(B2Cause::ours(StoreErrorKind::Invalid, text)
                .with_hint("raise `part_size` under [b2]"));
        }
        self.check_prefix(&rights)?;
        self.check_address("apiUrl", &storage.api_url)?;
        self.check_address("downloadUrl", &storage.download_url)?;
        let mut session = Session {
            token,
            api_url: storage.api_url,
            download_url: storage.download_url,
            bucket_id: String::new(),
            key_id,
            account_id,
            part_bytes_min: storage.absolute_minimum_part_size,
            rights,
            version,
        };
        session.bucket_id = match self.bucket_id.get() {
            Some(id) => id.clone(),
            None => self.find_bucket(&session).await?,
        };
        // Another task cannot have set a different id, because the bucket's name never changes.
        let _ = self.bucket_id.set(session.bucket_id.clone());
        Ok(session)
    }

    async fn authorize(&self) -> Result<(&'static str, Authorized), B2Cause> {
        let Some(credentials) = self.credentials() else {
            return Err(B2Cause::ours(StoreErrorKind::Denied, "there is no application key")
                .with_hint("set B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY, or name files of them under [b2]"));
        };
        let mut unknown = None;
        for version in API_VERSIONS {
            let url = format!("{}/b2api/{version}/{AUTHORIZE}", self.settings.endpoint());
            let call = self.http.get(url).basic_auth(
                &credentials.application_key_id,
                Some(&credentials.application_key),
            );
            match self.send(call, 0).await {
                Ok(authorized) => return Ok((version, authorized)),
                Err(cause) if cause.status == Some(404) => unknown = Some(cause),
                Err(cause) if cause.status == Some(401) => {
                    let hint = cause.hint(AUTHORIZE, self.settings.endpoint());
                    return Err(B2Cause {
                        stage: B2Stage::Ours(StoreErrorKind::Denied),
                        hint,
                        ..cause
                    });
                }
                Err(cause) => return Err(cause),
            }
        }
        Err(unknown.unwrap_or_else(|| {
            B2Cause::ours(
                StoreErrorKind::Unsupported,
                "no version of the API is known",
            )
        }))
    }

    /// Checks an address in a response. It must be as safe as the configured one, because the token
    /// is sent there.
    fn check_address(&self, field: &str, address: &str) -> Result<(), B2Cause> {
        let endpoint = self.settings.endpoint();
        if is_as_safe(endpoint, address) {
            return Ok(());
        }
        // The path is not shown, because an upload URL is a secret.
        let scheme = address.split("://").next().unwrap_or_default();
        let scheme: String = scheme
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(10)
            .collect();
        let text = format!(
            "the {field} that B2 gives begins with {scheme:?} and not with {ENCRYPTED}, as {endpoint} does"
        );
        let hint = "somebody may have changed the answer: check `endpoint` under [b2], and any proxy between this host and B2";
        Err(B2Cause::ours(StoreErrorKind::Corrupt, text).with_hint(hint))
    }

    /// Returns the time by B2's clock: the date of any response, even an error. Sends no
    /// credentials.
    pub(super) async fn clock(&self) -> Result<Option<Timestamp>, B2Cause> {
        let url = format!(
            "{}/b2api/{}/{AUTHORIZE}",
            self.settings.endpoint(),
            API_VERSIONS[0]
        );
        let mut retries = Retries::new(&self.settings, TRIES_MAX);
        loop {
            match self
                .http
                .get(&url)
                .timeout(self.settings.attempt_limit(0))
                .send()
                .await
                .map_err(B2Cause::from)
            {
                Ok(answer) => {
                    return Ok(answer
                        .headers()
                        .get(DATE)
                        .and_then(|date| http_date(date.to_str().ok()?)));
                }
                Err(cause) if cause.is_transient() && retries.wait(&cause).await => {}
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Checks the prefix that the key is restricted to: ours must begin with it.
    fn check_prefix(&self, rights: &KeyRights) -> Result<(), B2Cause> {
        match rights
            .name_prefix
            .as_deref()
            .filter(|allowed| !self.prefix.starts_with(allowed))
        {
            None => Ok(()),
            Some(allowed) => {
                let text =
                    format!("this application key is only for names that begin with {allowed:?}");
                let hint = "correct the prefix in `remote`, or make an application key for it";
                Err(B2Cause::ours(StoreErrorKind::Denied, text).with_hint(hint))
            }
        }
    }

    /// Returns the bucket's id. Keys that are restricted to buckets contain the ids; other keys may
    /// list buckets.
    async fn find_bucket(&self, session: &Session) -> Result<String, B2Cause> {
        let name = &self.settings.bucket;
        if let Some(buckets) = &session.rights.buckets {
            let found = buckets
                .iter()
                .find(|bucket| bucket.name.as_ref() == Some(name));
            return found.map(|bucket| bucket.id.clone()).ok_or_else(|| {
                let text = format!("this application key is not for the bucket {name:?}, or there is no such bucket");
                let hint = "correct `remote`, or make an application key for this bucket";
                B2Cause::ours(StoreErrorKind::Denied, text).with_hint(hint)
            });
        }
        self.look_up_bucket(session)
            .await
            .map(|bucket| bucket.bucket_id)
    }

    /// Returns the bucket as B2 describes it.
    pub(super) async fn look_up_bucket(&self, session: &Session) -> Result<Bucket, B2Cause> {
        let name = &self.settings.bucket;
        let body = json!({"accountId": session.account_id, "bucketName": name});
        let listed: Buckets = self
            .post_json(session, "b2_list_buckets", &body)
            .await
            .map_err(|cause| {
                let hint = cause.hint("b2_list_buckets", self.settings.endpoint());
                B2Cause { hint, ..cause }
            })?;
        let found = listed
            .buckets
            .into_iter()
            .find(|bucket| bucket.bucket_name == *name);
        found.ok_or_else(|| {
            B2Cause::ours(StoreErrorKind::NoBucket, "there is no such bucket")
                .with_hint(no_bucket_hint(name))
        })
    }

    /// Makes an idempotent call; retries transient failures.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        api: &str,
        body: impl Fn(&Session) -> Value + Sync,
    ) -> Result<T, B2Cause> {
        let mut retries = Retries::new(&self.settings, TRIES_MAX);
        loop {
            match self.call_once(api, &body).await {
                Err(cause) if cause.is_transient() && retries.wait(&cause).await => {}
                ended => return ended,
            }
        }
    }

    /// Makes a call once, with a valid token: a call that was refused for an expired token had no
    /// effect and is repeated.
    pub(super) async fn call_once<T: DeserializeOwned>(
        &self,
        api: &str,
        body: impl Fn(&Session) -> Value + Sync,
    ) -> Result<T, B2Cause> {
        let body = &body;
        self.with_session(
            |session| async move { self.post_json(&session, api, &body(&session)).await },
        )
        .await
    }

    /// Does `work` with a session, and repeats it with a new one if the token has expired.
    pub(super) async fn with_session<T, F>(
        &self,
        work: impl Fn(Arc<Session>) -> F,
    ) -> Result<T, B2Cause>
    where
        F: Future<Output = Result<T, B2Cause>>,
    {
        let mut renewals_left = RENEWALS_MAX;
        loop {
            let session = self.session().await?;
            match work(Arc::clone(&session)).await {
                Err(cause) if cause.is_token() && renewals_left > 0 => {
                    renewals_left -= 1;
                    self.forget(&session).await;
                }
                // 401 for a missing capability: the key file may contain a newer key by now.
                Err(cause)
                    if cause.status == Some(401)
                        && renewals_left > 0
                        && self.renewed(&session).await =>
                {
                    renewals_left -= 1;
                }
                ended => return ended,
            }
        }
    }

    async fn post_json<T: DeserializeOwned>(
        &self,
        session: &Session,
        api: &str,
        body: &Value,
    ) -> Result<T, B2Cause> {
        let url = format!("{}/b2api/{}/{api}", session.api_url, session.version);
        let call = self
            .http
            .post(url)
            .header(AUTHORIZATION, &session.token)
            .body(body.to_string());
        self.send(call, 0).await
    }

    /// Uploads through a URL of the pool, or a new one: `get` is the call that returns a URL, with
    /// the file's id for parts. The URL is put back only if the upload succeeded.
    pub(super) async fn post_bytes<T: DeserializeOwned>(
        &self,
        pool: &UrlPool,
        get: (&str, Option<&str>),
        headers: HeaderMap,
        bytes: Bytes,
    ) -> Result<T, B2Cause> {
        let url = match pool.take() {
            Some(url) => url,
            None => self.new_url(get).await?,
        };
        let len = bytes.len() as u64;
        let call = self
            .http
            .post(&url.upload_url)
            .header(AUTHORIZATION, &url.authorization_token);
        // The header is set for an empty body too, which the client would omit: B2 always requires
        // it.
        let call = call
            .header(CONTENT_LENGTH, len)
            .headers(headers)
            .body(self.body(bytes));
        let stored = self.send(call, len).await?;
        pool.give_back(url);
        Ok(stored)
    }

    /// Makes a body with the allowed bandwidth; called again for every attempt.
    fn body(&self, bytes: Bytes) -> Body {
        match self.settings.limiter.clone() {
            Some(limiter) => Body::wrap(PacedBody::new(limiter, bytes)),
            None => Body::from(bytes),
        }
    }

    async fn new_url(&self, (api, file_id): (&str, Option<&str>)) -> Result<UploadUrl, B2Cause> {
        let body = |session: &Session| match file_id {
            Some(id) => json!({"fileId": id}),
            None => json!({"bucketId": session.bucket_id}),
        };
        let url: UploadUrl = self.call(api, body).await?;
        self.check_address("uploadUrl", &url.upload_url)?;
        Ok(url)
    }

    /// Sends a request that moves `bytes` and reads the response, both within the limit of one
    /// attempt.
    async fn send<T: DeserializeOwned>(
        &self,
        call: RequestBuilder,
        bytes: u64,
    ) -> Result<T, B2Cause> {
        let answer = call
            .timeout(self.settings.attempt_limit(bytes))
            .send()
            .await?;
        if !answer.status().is_success() {
            return Err(read_refusal(answer).await);
        }
        let body = read_at_most(answer, ANSWER_BYTES_MAX).await?.map_err(|_| {
            let text = format!(
                "the answer has more than the {ANSWER_BYTES_MAX} bytes that such an answer may have"
            );
            B2Cause::ours(StoreErrorKind::Corrupt, text)
        })?;
        serde_json::from_slice(&body).map_err(|error| B2Cause::unreadable(&error))
    }

    /// Returns the name in the bucket.
    pub(super) fn full_name(&self, key: &str) -> Result<String, B2Cause> {
        let name = format!("{}{key}", self.prefix);
        settings::check_name(&name).map_err(|text| B2Cause::ours(StoreErrorKind::Invalid, text))?;
        Ok(name)
    }
}

/// Whether requests to `address` are as safe as requests to `endpoint`: encrypted, unless the
/// endpoint is not.
fn is_as_safe(endpoint: &str, address: &str) -> bool {
    let has = |text: &str, scheme: &str| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    has(address, ENCRYPTED) || (has(endpoint, PLAIN) && has(address, PLAIN))
}

/// Reads an error response. If the body is too long to be B2's, only the status counts.
pub(super) async fn read_refusal(answer: Response) -> B2Cause {
    let status = answer.status().as_u16();
    let retry_after = retry_after(answer.headers());
    match read_at_most(answer, REFUSAL_BYTES_MAX).await {
        Ok(Ok(body) | Err(TooLong(body))) => B2Cause::refused(status, &body, retry_after),
        Err(error) => error.into(),
    }
}

/// The beginning of a body that is longer than allowed.
struct TooLong(Vec<u8>);

/// Reads a body of at most `bytes_max`, independent of the announced length.
async fn read_at_most(
    mut answer: Response,
    bytes_max: u64,
) -> Result<Result<Vec<u8>, TooLong>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        if (body.len() + piece.len()) as u64 > bytes_max {
            return Ok(Err(TooLong(body)));
        }
        body.extend_from_slice(&piece);
    }
    Ok(Ok(body))
}

/// Returns the pause that the store asks for, if the header has it in seconds.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_sent_unencrypted_only_if_the_endpoint_is_unencrypted() {
        for (endpoint, address, safe) in [
            (
                "https://api.backblazeb2.com",
                "https://api005.backblazeb2.com",
                true,
            ),
            (
                "https://api.backblazeb2.com",
                "HTTPS://api005.backblazeb2.com",
                true,
            ),
            (
                "https://api.backblazeb2.com",
                "http://api005.backblazeb2.com",
                false,
            ),
            (
                "HTTPS://api.backblazeb2.com",
                "http://api005.backblazeb2.com",
                false,
            ),
            (
                "https://api.backblazeb2.com",
                "ftp://api005.backblazeb2.com",
                false,
            ),
            ("https://api.backblazeb2.com", "", false),
            ("http://127.0.0.1:4000", "http://127.0.0.1:4000", true),
            ("http://127.0.0.1:4000", "https://127.0.0.1:4000", true),
            ("http://127.0.0.1:4000", "file:///etc/passwd", false),
        ] {
            assert_eq!(is_as_safe(endpoint, address), safe, "{endpoint} {address}");
        }
    }
}
