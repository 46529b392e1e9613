//! Small means that the stores share: file work off the async threads, and names that nobody else has.

use std::io;
use std::panic::resume_unwind;
use tokio::task::spawn_blocking;

/// Runs file work where it may block. A panic there goes on here. The work goes on to its end even if the caller
/// stops waiting.
pub(crate) async fn run_blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    match spawn_blocking(work).await {
        Ok(result) => result,
        // Work that has begun is never cancelled, and none is begun once the runtime ends, when nobody waits any more.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

/// A number from the kernel, for names that nobody else uses.
pub(crate) fn random_u64() -> io::Result<u64> {
    getrandom::u64().map_err(|error| io::Error::other(error.to_string()))
}
