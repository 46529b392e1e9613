//! The configured limits of the speed of uploads and downloads, one of each for the whole process.

use crate::config::{BandwidthSchedule, Config};
use crate::store::Limiter;
use jiff::Zoned;
use std::sync::{Arc, OnceLock};

/// Returns the limiter for `bwlimit`. All opened stores share it, because a process has one
/// configuration and the limit applies to all of its uploads together.
pub(crate) fn upload_limiter(config: &Config) -> Option<Arc<Limiter>> {
    static SHARED: OnceLock<Arc<Limiter>> = OnceLock::new();
    shared(&SHARED, config.pace.bwlimit.as_ref()?)
}

/// Returns the limiter for `bwlimit_down`, which all opened stores share likewise.
pub(crate) fn download_limiter(config: &Config) -> Option<Arc<Limiter>> {
    static SHARED: OnceLock<Arc<Limiter>> = OnceLock::new();
    shared(&SHARED, config.pace.bwlimit_down.as_ref()?)
}

/// Returns the limiter of a schedule, by this host's clock; it is made once.
fn shared(limiter: &OnceLock<Arc<Limiter>>, schedule: &BandwidthSchedule) -> Option<Arc<Limiter>> {
    let schedule = schedule.clone();
    let slowest = schedule.slowest()?.bytes();
    let rate = move || schedule.at(Zoned::now().time()).map(|limit| limit.bytes());
    Some(Arc::clone(
        limiter.get_or_init(|| Arc::new(Limiter::new(slowest, rate))),
    ))
}
