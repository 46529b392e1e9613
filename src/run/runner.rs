//! Who runs this program, and whether the kernel lets that user do everything with ZFS.

use crate::plan::permissions::Identity;

/// The bit of CAP_SYS_ADMIN, which is what the kernel asks of whoever may do everything with ZFS.
const CAP_SYS_ADMIN: u32 = 21;

/// Who runs this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// The user and its groups.
    pub identity: Identity,
    /// The kernel lets it do everything.
    pub privileged: bool,
}

impl Runner {
    /// This process. What cannot be read of it counts as "not privileged": then permissions are
    /// looked at.
    pub fn current() -> Self {
        use rustix::process::{getegid, geteuid, getgroups};
        let mut gids = vec![getegid().as_raw()];
        gids.extend(getgroups().into_iter().flatten().map(|gid| gid.as_raw()));
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            identity: Identity {
                uid: geteuid().as_raw(),
                gids,
            },
            privileged: has_sys_admin(&status),
        }
    }
}

fn has_sys_admin(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    bits >> CAP_SYS_ADMIN & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_read_from_the_kernel() {
        assert!(has_sys_admin("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(has_sys_admin("CapEff:\t0000000000200000\n"));
        assert!(!has_sys_admin("CapEff:\t00000000a80425fb\n"));
        assert!(!has_sys_admin(""));
    }
}
