//! Small means that the stores share: file work off the async threads, names that nobody else has, errors in a line.

use std::error::Error;
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

/// The texts of an error and all its sources in one line, without repetitions.
pub(crate) fn chain_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let link = error.to_string();
        if !text.contains(&link) {
            text.push_str(": ");
            text.push_str(&link);
        }
        next = error.source();
    }
    text
}
