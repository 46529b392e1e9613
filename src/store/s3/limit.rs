//! [`AnswerLimit`]: limits every response except the body of an object, because the SDK reads such
//! responses completely into memory.

use crate::store::answer::{ANSWER_BYTES_MAX, REFUSAL_BYTES_MAX};
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

type BoxError = Box<dyn Error + Send + Sync>;

/// Limits the responses of one client.
#[derive(Debug, Clone, Copy)]
pub(super) enum AnswerLimit {
    /// Limits all responses: listings, other responses without an object, and errors.
    Everything,
    /// Limits error responses only: the caller limits the body of an object.
    Refusals,
}

impl Intercept for AnswerLimit {
    fn name(&self) -> &'static str {
        "AnswerLimit"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let answer = context.response_mut();
        let limit_bytes = match (answer.status().is_success(), self) {
            (true, Self::Refusals) => return Ok(()),
            (true, Self::Everything) => ANSWER_BYTES_MAX,
            (false, _) => REFUSAL_BYTES_MAX,
        };
        let inner = answer.take_body();
        *answer.body_mut() = SdkBody::from_body_1_x(LimitedBody {
            inner,
            limit_bytes,
            left_bytes: limit_bytes,
        });
        Ok(())
    }
}

/// A body that fails when it is longer than the limit.
struct LimitedBody {
    inner: SdkBody,
    limit_bytes: u64,
    left_bytes: u64,
}

impl Body for LimitedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        match self.left_bytes.checked_sub(bytes) {
            Some(left) => self.left_bytes = left,
            None => {
                let text = format!(
                    "the answer has more than the {} bytes that such an answer may have",
                    self.limit_bytes
                );
                return Poll::Ready(Some(Err(text.into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    async fn read(mut body: LimitedBody) -> Result<usize, String> {
        let mut bytes = 0;
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            bytes += frame
                .map_err(|error| error.to_string())?
                .into_data()
                .map_or(0, |data| data.len());
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn response_at_the_limit_is_read_and_one_byte_more_is_an_error() {
        let limited = |bytes: usize| {
            let inner = SdkBody::from(vec![b'x'; bytes]);
            read(LimitedBody {
                inner,
                limit_bytes: 1000,
                left_bytes: 1000,
            })
        };
        assert_eq!(limited(1000).await, Ok(1000));
        assert!(
            limited(1001)
                .await
                .unwrap_err()
                .contains("more than the 1000 bytes")
        );
    }
}
