//! [`Renew`]: credentials that are read again when the store refuses them, so that a key that was
//! rotated in the meantime does not end an upload.

use super::work::run_blocking;
use crate::model::error_chain;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The reason why credentials could not be read again. The text names the source, never the secret.
type RenewError = Box<dyn Error + Send + Sync>;

/// Reads credentials again from their source. Debug output hides them.
pub struct Renew<T>(Arc<dyn Fn() -> Result<T, RenewError> + Send + Sync>);

impl<T> Clone for Renew<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Renew<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Renew")
    }
}

impl<T: Send + 'static> Renew<T> {
    /// Makes a reader; `read` may block for a moment.
    pub fn new(read: impl Fn() -> Result<T, RenewError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Returns the present credentials, or `None` if they cannot be read: the refused ones are then
    /// kept, and their refusal is reported. A file that is being replaced may be missing for a
    /// moment.
    pub(super) async fn read(&self) -> Option<T> {
        let read = Arc::clone(&self.0);
        match run_blocking(move || read()).await {
            Ok(credentials) => Some(credentials),
            Err(error) => {
                tracing::warn!(
                    "credentials were refused and cannot be read again: {}",
                    error_chain(&*error)
                );
                None
            }
        }
    }
}
