//! Reads a file by its name, completely or in part.

use super::Shared;
use super::cause::B2Cause;
use super::client::{Retries, TRIES_MAX, read_refusal, retry_after};
use super::put::encode_name;
use crate::store::adapter::Adapter;
use crate::store::answer::Expected;
use crate::store::{Limiter, ObjectKey, StoreError, StoreErrorKind};
use bytes::BytesMut;
use reqwest::Response;
use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, RANGE};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use tokio::time::timeout;

const DOWNLOAD: &str = "b2_download_file_by_name";

impl Adapter for Shared {
    fn url(&self) -> &str {
        &self.url
    }

    async fn get_into(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
        buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        match range {
            // A Range header cannot express a range of no bytes.
            Some(range) if range.start >= range.end => {
                let bytes = self.live("get", key).await?.map(|file| file.content_length);
                self.check_range(key, &range, bytes)?;
                Ok(BytesMut::new())
            }
            range => self.get_something(key, range, limit_bytes, buffer).await,
        }
    }
}

impl Shared {
    async fn get_something(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
        buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        // The first attempt that reaches the body takes the buffer.
        let buffer = Mutex::new(buffer);
        let failed = |cause| self.failed("get", DOWNLOAD, key.as_str(), cause);
        let name = encode_name(&self.full_name(key.as_str()).map_err(failed)?);
        let mut retries = Retries::new(&self.settings, TRIES_MAX);
        loop {
            match self
                .fetch(&name, range.as_ref(), limit_bytes, &buffer)
                .await
            {
                Err(cause) if cause.is_transient() && retries.wait(&cause).await => {}
                Err(cause) if cause.kind() == StoreErrorKind::NotFound => {
                    // The answer is the same for a missing bucket.
                    return match self.live("get", key).await {
                        Err(error) if error.kind == StoreErrorKind::NoBucket => Err(error),
                        _ => Err(failed(cause)),
                    };
                }
                fetched => return fetched.map_err(failed),
            }
        }
    }

    async fn fetch(
        &self,
        name: &str,
        range: Option<&Range<u64>>,
        limit_bytes: u64,
        buffer: &Mutex<BytesMut>,
    ) -> Result<BytesMut, B2Cause> {
        self.with_session(|session| async move {
            let url = format!(
                "{}/file/{}/{name}",
                session.download_url, self.settings.bucket
            );
            let mut call = self.http.get(url).header(AUTHORIZATION, &session.token);
            if let Some(range) = range {
                call = call.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
            }
            let limit = self.settings.attempt_limit(0);
            let answer = timeout(limit, call.send())
                .await
                .map_err(|_| cut_off(format!("no answer within {limit:?}")))??;
            let status = answer.status();
            if !status.is_success() {
                let without_body =
                    B2Cause::refused(status.as_u16(), &[], retry_after(answer.headers()));
                return Err(timeout(limit, read_refusal(answer))
                    .await
                    .unwrap_or(without_body));
            }
            let came = answer
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|came| came.to_str().ok());
            let buffer =
                std::mem::take(&mut *buffer.lock().unwrap_or_else(PoisonError::into_inner));
            let expected = Expected::new(answer.content_length(), came, range, limit_bytes, buffer)
                .map_err(wrong)?;
            let announced = expected.bytes();
            let limit = self.settings.receive_limit(expected.bytes());
            let limiter = self.settings.limiter_down.as_deref();
            let late = |_| {
                cut_off(format!(
                    "{announced} bytes did not come within {} s",
                    limit.as_secs()
                ))
            };
            timeout(limit, collect(answer, expected, limiter))
                .await
                .map_err(late)?
        })
        .await
    }
}

/// Makes the cause for a broken connection: a retry may succeed.
fn cut_off(text: String) -> B2Cause {
    B2Cause {
        stage: super::cause::B2Stage::Transport,
        ..B2Cause::ours(StoreErrorKind::Unavailable, text)
    }
}

/// Makes the cause for a response that does not match the request.
fn wrong(text: String) -> B2Cause {
    B2Cause::ours(StoreErrorKind::Corrupt, text)
}

async fn collect(
    mut answer: Response,
    mut expected: Expected,
    limiter: Option<&Limiter>,
) -> Result<BytesMut, B2Cause> {
    while let Some(piece) = answer.chunk().await? {
        if let Some(limiter) = limiter {
            limiter.admit(piece.len()).await;
        }
        expected.take(&piece).map_err(wrong)?;
    }
    expected.finish().map_err(cut_off)
}
