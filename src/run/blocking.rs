//! [`blocking`]: runs work that blocks on a thread of its own.

use super::RunError;

/// Runs work that blocks, such as calls of ZFS or the milliseconds that hashing a part takes, on a
/// blocking thread.
///
/// # Errors
/// [`RunError::Defect`] when the work panics.
pub(in crate::run) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| RunError::defect("a thread panicked"))
}
