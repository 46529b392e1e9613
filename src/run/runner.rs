//! The user who runs this program, and whether the kernel lets that user do everything with ZFS.

use crate::plan::permissions::Identity;

/// The bit of CAP_SYS_ADMIN, which the kernel requires for unrestricted use of ZFS.
const CAP_SYS_ADMIN: u32 = 21;

/// The user who runs this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// The user and the user's groups.
    pub identity: Identity,
    /// Whether the kernel lets the user do everything with ZFS.
    pub privileged: bool,
}

impl Runner {
    /// Reads the user of this process. If the capabilities cannot be read, the user counts as not
    /// privileged, and permissions are checked.
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
