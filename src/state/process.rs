//! Identity of this process and its host, and whether another process is still alive: the facts
//! that decide whether a lock is stale.

use crate::model::Digest;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

/// A boot of a host, as seen from one process namespace. A value that cannot be read is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostBoot {
    /// The host's name.
    pub host: String,
    /// A hash of `/etc/machine-id`: hosts that were installed from one image often have one name.
    #[serde(default)]
    pub machine: String,
    /// `/proc/sys/kernel/random/boot_id`: changes with each boot of the host.
    pub boot_id: String,
    /// The process namespace, because process ids are unique only within one: a container has its
    /// own.
    #[serde(default)]
    pub pid_namespace: String,
}

impl HostBoot {
    /// Returns the values of this process.
    pub fn current() -> Self {
        let text = |path: &str| {
            std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        // machine-id(5) asks programs to keep the id itself private to this host; a hash of it is
        // enough to distinguish two hosts.
        let machine = match text("/etc/machine-id").as_str() {
            "" => String::new(),
            id => {
                Digest::of(format!("zfs-backup lock\n{id}").as_bytes()).to_string()[..16].to_owned()
            }
        };
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Self {
            host: host_name(),
            machine,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            pid_namespace: namespace.to_string_lossy().into_owned(),
        }
    }

    /// Returns whether both are the same host.
    pub fn is_same_host(&self, other: &Self) -> bool {
        (&self.host, &self.machine) == (&other.host, &other.machine)
    }
}

/// Returns this host's name.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Returns the user's name, from `/etc/passwd`; `uid 1000` when the user has no entry.
pub fn user_name() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    user_of(&users, uid).unwrap_or_else(|| format!("uid {uid}"))
}

fn user_of(users: &str, uid: u32) -> Option<String> {
    let name = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    };
    users.lines().find_map(name)
}

/// Returns when a process was started, in ticks since the host's boot (field 22 of
/// `/proc/PID/stat`). Together with the process id it identifies one process. `None` when this
/// process cannot see it.
pub fn process_started(pid: u32) -> Option<u64> {
    stat_fields(pid)?.nth(19)?.parse().ok()
}

/// Returns whether the process is surely gone: no process has the id, the id belongs to another
/// process now, or the process has ended and its parent has not reaped it yet. A process that
/// cannot be seen counts as alive.
pub fn is_gone(pid: u32, started: u64) -> bool {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return true;
    };
    if test_kill_process(id) == Err(rustix::io::Errno::SRCH) {
        return true;
    }
    let has_ended = stat_fields(pid)
        .and_then(|mut fields| fields.next())
        .is_some_and(|state| state == "Z");
    has_ended || process_started(pid).is_some_and(|now| now != started)
}

/// Returns the fields of `/proc/PID/stat` from the third on. The second is the program's name and
/// may have any content.
fn stat_fields(pid: u32) -> Option<std::vec::IntoIter<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(
        fields
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .into_iter(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn own_process_is_identified_by_id_start_time_and_boot() {
        let own = std::process::id();
        let started = process_started(own).unwrap();
        assert!(started > 0);
        assert!(!is_gone(own, started));
        assert!(
            is_gone(own, started + 1),
            "the id of a process that started at another time"
        );
        let here = HostBoot::current();
        assert!(
            !here.host.is_empty() && here.boot_id.len() == 36,
            "{here:?}"
        );
        assert!(here.pid_namespace.starts_with("pid:["), "{here:?}");
    }

    #[test]
    fn a_process_that_ended_is_gone_before_and_after_its_parent_notices() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (pid, started) = (child.id(), process_started(child.id()).unwrap());
        assert!(!is_gone(pid, started));
        child.kill().unwrap();
        while !is_gone(pid, started) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(is_gone(pid, started));
    }

    #[test]
    fn users_are_found_by_their_number() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\neva:x:1000:1000::/home/eva:/bin/sh\n";
        assert_eq!(user_of(users, 1000).as_deref(), Some("eva"));
        assert_eq!(user_of(users, 0).as_deref(), Some("root"));
        assert_eq!(user_of(users, 1), None);
    }
}
