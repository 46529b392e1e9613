//! The configured limit of the upload speed, one for the whole process.

use crate::config::Config;
use crate::store::Limiter;
use jiff::Zoned;
use std::sync::{Arc, OnceLock};

/// Returns the limiter for `bwlimit`, by this host's clock. All opened stores share it, because a
/// process has one configuration and the limit applies to all of its uploads together.
pub(crate) fn limiter(config: &Config) -> Option<Arc<Limiter>> {
    static SHARED: OnceLock<Arc<Limiter>> = OnceLock::new();
    let schedule = config.pace.bwlimit.clone()?;
    let slowest = schedule.slowest()?.bytes();
    let rate = move || schedule.at(Zoned::now().time()).map(|limit| limit.bytes());
    Some(Arc::clone(
        SHARED.get_or_init(|| Arc::new(Limiter::new(slowest, rate))),
    ))
}
