//! The verdict on a call from its [`CallOutcome`]: an error number, and for calls with several subjects
//! a list of those that failed.

use super::call::ZfsCall;
use super::core::CallOutcome;
use super::nvlist::{NvList, NvMap, NvValue};
use super::{ZfsErrno, ZfsError};

/// The key under which the kernel counts the errors for which its list had no room.
const MORE_ERRORS: &str = "N_MORE_ERRORS";

/// Returns the subjects that the kernel named, each with its error number.
pub(super) fn failures(list: Option<NvList>) -> Result<Vec<(String, ZfsErrno)>, i32> {
    let map = list.map_or(Ok(NvMap::new()), |list| list.to_map())?;
    let failure = |(name, value)| match value {
        NvValue::Signed(count) if name == MORE_ERRORS => {
            Some((format!("and {count} more"), ZfsErrno(0)))
        }
        NvValue::Signed(errno) => {
            Some((name, ZfsErrno(i32::try_from(errno).unwrap_or(libc::EINVAL))))
        }
        _ => None,
    };
    let mut failures: Vec<_> = map.into_iter().filter_map(failure).collect();
    if let Some(at) = failures.iter().position(|(_, errno)| errno.0 == 0) {
        let (name, _) = failures.remove(at);
        let errno = failures
            .last()
            .map_or(ZfsErrno(libc::EINVAL), |(_, errno)| *errno);
        failures.push((name, errno));
    }
    Ok(failures)
}

/// Returns the verdict on a call with several subjects: an error for the subjects that the kernel
/// named, or for all of them.
pub(super) fn verdict_on_several(call: &ZfsCall, outcome: CallOutcome) -> Result<(), ZfsError> {
    let failures = failures(outcome.list).map_err(|errno| call.refused(errno))?;
    if failures.is_empty() {
        call.verdict(outcome.errno)
    } else {
        Err(call.refused_several(failures))
    }
}

/// Returns the error number of a call with one subject. The kernel sometimes returns 0 and names
/// the subject as failed.
pub(super) fn errno_of_one(outcome: CallOutcome) -> i32 {
    match failures(outcome.list) {
        Ok(failures) => failures.first().map_or(outcome.errno, |(_, errno)| errno.0),
        Err(errno) => errno,
    }
}

/// Returns the list of a call that reads.
pub(super) fn answer(call: &ZfsCall, outcome: CallOutcome) -> Result<NvMap, ZfsError> {
    call.verdict(outcome.errno)?;
    outcome.list.map_or(Ok(NvMap::new()), |list| {
        list.to_map().map_err(|errno| call.refused(errno))
    })
}
