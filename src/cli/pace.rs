//! The limit of speed that the configuration sets, one for the whole process.

use crate::config::Config;
use crate::store::Limiter;
use jiff::Zoned;
use std::sync::{Arc, OnceLock};

/// `bwlimit` by this host's clock. All stores that are opened share it: a process has one
/// configuration, and the limit is that of all its uploads together.
pub(super) fn limiter(config: &Config) -> Option<Arc<Limiter>> {
    static SHARED: OnceLock<Arc<Limiter>> = OnceLock::new();
    let schedule = config.pace.bwlimit.clone()?;
    let slowest = schedule.slowest()?.bytes();
    let rate = move || schedule.at(Zoned::now().time()).map(|limit| limit.bytes());
    Some(Arc::clone(
        SHARED.get_or_init(|| Arc::new(Limiter::new(slowest, rate))),
    ))
}
