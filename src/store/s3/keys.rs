//! [`S3Keys`]: the credentials that sign requests. They are read again before they expire, and when
//! the store refuses them.
//!
//! The SDK asks for credentials at every attempt. After a refusal it is therefore enough to read
//! the keys again and to retry: an upload continues through a rotation of its keys.

use super::S3Credentials;
use crate::model::error_chain;
use crate::store::renew::Renew;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future;
use aws_sdk_s3::config::interceptors::InterceptorContext;
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction};
use aws_sdk_s3::config::{Credentials, ProvideCredentials, SharedCredentialsProvider};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Credentials are replaced this long before they expire.
const ENDS_SOON: Duration = Duration::from_secs(5 * 60);
/// The time for which keys are kept that were refused and had not changed when they were read
/// again: a refusal in this time is final.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// The time after the first refusal in which concurrent requests are refused too and are also
/// retried.
const TOGETHER: Duration = Duration::from_secs(3);
/// The time after a change of keys in which requests signed with the old keys may still be refused.
/// Each is retried only as often as every request.
const OLD_ONES: Duration = Duration::from_secs(10 * 60);
/// Codes of an error response with status 400 that concern the credentials.
const TOKEN_CODES: [&[u8]; 3] = [
    b"<Code>ExpiredToken<",
    b"<Code>InvalidToken<",
    b"<Code>TokenRefreshRequired<",
];

/// The source of credentials.
pub(super) enum CredentialSource {
    /// The configuration, with an optional way to read them again.
    Given(Option<Renew<S3Credentials>>),
    /// The first of the SDK's own sources that had any.
    Chain(SharedCredentialsProvider),
}

/// Credentials, held and renewed. Clones share them.
#[derive(Clone)]
pub(super) struct S3Keys(Arc<Shared>);

struct Shared {
    origin: CredentialSource,
    state: Mutex<State>,
    /// Held while the keys are read, so that one task reads them for all.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    held: Option<Credentials>,
    refused: bool,
    asked_at: Option<Instant>,
    changed_at: Option<Instant>,
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(hidden)")
    }
}

impl From<&S3Credentials> for Credentials {
    fn from(given: &S3Credentials) -> Self {
        Self::new(
            &given.access_key_id,
            &given.secret_access_key,
            None,
            None,
            "zfs-backup",
        )
    }
}

impl S3Keys {
    pub(super) fn new(origin: CredentialSource, held: Option<Credentials>) -> Self {
        let state = Mutex::new(State {
            held,
            ..State::default()
        });
        Self(Arc::new(Shared {
            origin,
            state,
            reading: tokio::sync::Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the held credentials, unless they were refused or expire soon.
    fn good(&self) -> Option<Credentials> {
        let state = self.state();
        let lasts = |held: &&Credentials| {
            held.expiry()
                .is_none_or(|end| end > SystemTime::now() + ENDS_SOON)
        };
        state
            .held
            .as_ref()
            .filter(lasts)
            .filter(|_| !state.refused)
            .cloned()
    }

    async fn current(&self) -> Result<Credentials, CredentialsError> {
        if let Some(good) = self.good() {
            return Ok(good);
        }
        let _one = self.0.reading.lock().await;
        if let Some(good) = self.good() {
            return Ok(good);
        }
        let read = match &self.0.origin {
            CredentialSource::Given(None) => None,
            CredentialSource::Given(Some(renew)) => renew
                .read()
                .await
                .as_ref()
                .map(|given| Ok(Credentials::from(given))),
            CredentialSource::Chain(chain) => Some(chain.provide_credentials().await),
        };
        let mut state = self.state();
        state.refused = false;
        match read {
            Some(Ok(new)) => {
                let changed = state.held.as_ref().is_some_and(|held| !same(held, &new));
                if changed {
                    tracing::info!(
                        "the store refused the credentials or they were expiring, and there are new ones"
                    );
                    state.changed_at = Some(Instant::now());
                }
                Ok(state.held.insert(new).clone())
            }
            Some(Err(error)) if state.held.is_none() => Err(error),
            other => {
                if let Some(Err(error)) = other {
                    tracing::warn!("credentials cannot be renewed: {}", error_chain(&error));
                }
                state
                    .held
                    .clone()
                    .ok_or_else(|| CredentialsError::not_loaded("there are none"))
            }
        }
    }

    /// Whether a refused request is worth a retry with keys that are read again.
    fn try_again(&self, now: Instant) -> bool {
        if matches!(self.0.origin, CredentialSource::Given(None)) {
            return false;
        }
        let mut state = self.state();
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        if since(state.changed_at).is_some_and(|age| age < OLD_ONES) {
            return true;
        }
        match since(state.asked_at) {
            Some(age) if age < TOGETHER => true,
            Some(age) if age < ASK_AGAIN => false,
            _ => {
                (state.refused, state.asked_at) = (true, Some(now));
                true
            }
        }
    }
}

fn same(one: &Credentials, other: &Credentials) -> bool {
    one.access_key_id() == other.access_key_id()
        && one.secret_access_key() == other.secret_access_key()
        && one.session_token() == other.session_token()
}

/// Whether the store refused the credentials, and not only the request. Responses to HEAD have only
/// the status.
fn is_refusal(status: u16, body: &[u8]) -> bool {
    let says = |code: &&[u8]| body.windows(code.len()).any(|window| window == *code);
    match status {
        401 | 403 => true,
        400 => body.is_empty() || TOKEN_CODES.iter().any(says),
        _ => false,
    }
}

impl ProvideCredentials for S3Keys {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.current())
    }
}

impl ClassifyRetry for S3Keys {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let Some(answer) = context.response() else {
            return RetryAction::NoActionIndicated;
        };
        let refused = is_refusal(
            answer.status().as_u16(),
            answer.body().bytes().unwrap_or_default(),
        );
        match refused && self.try_again(Instant::now()) {
            true => RetryAction::server_error(),
            false => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "keys that may have changed"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn given(id: &str) -> S3Credentials {
        S3Credentials {
            access_key_id: id.to_owned(),
            secret_access_key: "do-not-print".to_owned(),
        }
    }

    /// Makes keys whose source returns `old` at first and `new` from the n-th reading on.
    fn keys(changes_at: usize) -> (S3Keys, Arc<AtomicUsize>) {
        let readings = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&readings);
        let renew = Renew::new(move || {
            let n = counted.fetch_add(1, Ordering::Relaxed) + 1;
            Ok(given(if n >= changes_at { "new" } else { "old" }))
        });
        (
            S3Keys::new(
                CredentialSource::Given(Some(renew)),
                Some(Credentials::from(&given("old"))),
            ),
            readings,
        )
    }

    async fn id(keys: &S3Keys) -> String {
        keys.current().await.unwrap().access_key_id().to_owned()
    }

    #[tokio::test]
    async fn s3_keys_are_reread_only_after_a_refusal() {
        let (keys, readings) = keys(1);
        assert_eq!(
            (id(&keys).await.as_str(), id(&keys).await.as_str()),
            ("old", "old")
        );
        assert_eq!(readings.load(Ordering::Relaxed), 0);
        let now = Instant::now();
        assert!(keys.try_again(now));
        assert_eq!(id(&keys).await, "new");
        assert!(
            keys.try_again(now + Duration::from_secs(30)),
            "it was signed with the old key"
        );
        assert_eq!(
            (id(&keys).await.as_str(), readings.load(Ordering::Relaxed)),
            ("new", 1)
        );
    }

    #[tokio::test]
    async fn unchanged_s3_keys_are_retried_once_per_minute() {
        let (keys, readings) = keys(usize::MAX);
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(keys.try_again(now));
        assert_eq!(id(&keys).await, "old");
        for (seconds, again) in [(1, true), (5, false), (59, false), (61, true), (65, false)] {
            assert_eq!(keys.try_again(after(seconds)), again, "after {seconds} s");
        }
        assert_eq!(
            (id(&keys).await.as_str(), readings.load(Ordering::Relaxed)),
            ("old", 2)
        );
        let fixed = S3Keys::new(
            CredentialSource::Given(None),
            Some(Credentials::from(&given("old"))),
        );
        assert!(!fixed.try_again(now), "there is nothing to read");
        assert_eq!(id(&fixed).await, "old");
        assert!(!format!("{keys:?} {fixed:?}").contains("do-not-print"));
    }

    #[tokio::test]
    async fn s3_keys_are_replaced_before_they_expire() {
        let soon = SystemTime::now() + Duration::from_secs(60);
        let ending = Credentials::new("old", "x", None, Some(soon), "test");
        let chain = SharedCredentialsProvider::new(Credentials::from(&given("new")));
        assert_eq!(
            id(&S3Keys::new(CredentialSource::Chain(chain), Some(ending))).await,
            "new"
        );
    }

    #[test]
    fn only_key_errors_count_as_a_refusal_of_the_keys() {
        let expired: &[u8] = b"<Error><Code>ExpiredToken</Code></Error>";
        for (status, body, refused) in [
            (403, &b""[..], true),
            (401, b"", true),
            (400, expired, true),
            (400, b"", true),
            (400, b"<Error><Code>BadDigest</Code></Error>", false),
            (404, b"", false),
            (503, expired, false),
        ] {
            assert_eq!(is_refusal(status, body), refused, "{status}");
        }
    }
}
