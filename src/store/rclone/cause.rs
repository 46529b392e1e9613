//! [`RcloneCause`]: the reason why a run of rclone failed. Its exit status says little and is sometimes
//! wrong; its messages say more.

use crate::store::StoreErrorKind;
use crate::store::work::is_untrusted;
use std::error::Error;
use std::fmt;
use std::process::ExitStatus;

/// The exit statuses of rclone, from its documentation.
const NO_FOLDER: i32 = 3;
const NO_FILE: i32 = 4;
const TEMPORARY: i32 = 5;
/// The status that rclone returns only with `--error-on-no-transfer`.
const NOTHING_MOVED: i32 = 9;
/// The number of messages that are kept for the error.
const WORDS_MAX: usize = 3;

/// The end of a failed run. Displays as `rclone ended with status 1: its own words`.
#[derive(Debug, Clone)]
pub(super) struct RcloneCause {
    kind: Option<StoreErrorKind>,
    status: Option<i32>,
    text: String,
}

impl RcloneCause {
    /// Makes the cause for a fault that this program found, not rclone.
    pub(super) fn ours(kind: StoreErrorKind, text: impl Into<String>) -> Self {
        Self {
            kind: Some(kind),
            status: None,
            text: text.into(),
        }
    }

    /// Makes the cause for a run that ended with this status after these messages.
    pub(super) fn ended(status: ExitStatus, words: &[String]) -> Self {
        let how = match status.code() {
            Some(code) => format!("rclone ended with status {code}"),
            // Killed: by a user, for lack of memory, or at the end of a service.
            None => format!("rclone died of {status}"),
        };
        let words: Vec<&str> = words
            .iter()
            .rev()
            .take(WORDS_MAX)
            .rev()
            .map(String::as_str)
            .collect();
        let text = if words.is_empty() {
            how
        } else {
            format!("{how}: {}", words.join("; "))
        };
        Self {
            kind: None,
            status: status.code(),
            text,
        }
    }

    /// Whether rclone reports a missing folder.
    pub(super) fn is_no_folder(&self) -> bool {
        self.status == Some(NO_FOLDER)
    }

    /// Whether rclone reports a missing file.
    pub(super) fn is_no_file(&self) -> bool {
        self.status == Some(NO_FILE)
    }

    /// Whether the name was already taken when rclone checked.
    pub(super) fn is_taken(&self) -> bool {
        self.status == Some(NOTHING_MOVED)
    }

    /// Returns the kind, on which callers branch.
    pub(super) fn kind(&self) -> StoreErrorKind {
        if let Some(kind) = self.kind {
            return kind;
        }
        if let Some(status @ (NO_FOLDER | NO_FILE | TEMPORARY)) = self.status {
            return if status == TEMPORARY {
                StoreErrorKind::Unavailable
            } else {
                StoreErrorKind::NotFound
            };
        }
        let words = self.text.to_ascii_lowercase();
        let said = |some: &[&str]| some.iter().any(|word| words.contains(word));
        match () {
            () if said(WRONG_SETUP) => StoreErrorKind::Invalid,
            () if said(DENIED) => StoreErrorKind::Denied,
            () if said(FULL) => StoreErrorKind::Full,
            () if said(SLOW_DOWN) => StoreErrorKind::Throttled,
            () if said(CHANGED) => StoreErrorKind::Corrupt,
            () => StoreErrorKind::Unavailable,
        }
    }

    /// Whether the remote was not reached or did not answer, so that a wait may help. An unknown
    /// failure is none.
    pub(super) fn is_outage(&self) -> bool {
        let words = self.text.to_ascii_lowercase();
        match self.kind() {
            StoreErrorKind::Throttled => true,
            StoreErrorKind::Unavailable if is_untrusted(&words) => false,
            StoreErrorKind::Unavailable => {
                self.status == Some(TEMPORARY) || OUTAGE.iter().any(|word| words.contains(word))
            }
            _ => false,
        }
    }

    /// Returns the action that a person can take, if rclone's message tells one.
    pub(super) fn hint(&self, remote: &str, conf: &str) -> Option<String> {
        let words = self.text.to_ascii_lowercase();
        match self.kind() {
            StoreErrorKind::Invalid if words.contains("find section") => Some(format!(
                "`rclone --config {conf} listremotes` lists the remotes: correct `remote`, or rclone_conf"
            )),
            StoreErrorKind::Invalid if words.contains("config") => Some(
                "an rclone.conf with a password needs RCLONE_CONFIG_PASS in the environment, such as from a systemd \
                 credential"
                    .to_owned(),
            ),
            StoreErrorKind::Denied if EXPIRED.iter().any(|word| words.contains(word)) => {
                Some(format!("renew rclone's permission: `rclone --config {conf} config reconnect {remote}:`"))
            }
            StoreErrorKind::Denied => {
                Some(format!("check the keys of [{remote}] in {conf}, and their permissions"))
            }
            StoreErrorKind::Full => Some("make room in the store, or raise its quota".to_owned()),
            _ => None,
        }
    }
}

const WRONG_SETUP: &[&str] = &[
    "find section in config",
    "unknown flag",
    "invalid argument",
    "unable to decrypt",
];
const DENIED: &[&str] = &[
    "accessdenied",
    "access denied",
    "permission denied",
    "unauthorized",
    "forbidden",
    "invalid_grant",
    "token expired",
    "couldn't fetch token",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "bad_auth_token",
    "expired_auth_token",
    "authentication failed",
    "unable to authenticate",
];
const EXPIRED: &[&str] = &[
    "invalid_grant",
    "token expired",
    "couldn't fetch token",
    "config reconnect",
];
const FULL: &[&str] = &[
    "no space left",
    "quota",
    "cap_exceeded",
    "insufficient storage",
    "disk full",
];
const SLOW_DOWN: &[&str] = &["slowdown", "too many requests", "rate limit", "ratelimit"];
/// The words of Go's network library and of HTTP servers.
const OUTAGE: &[&str] = &[
    "connection refused",
    "connection reset",
    "connection timed out",
    "broken pipe",
    "no such host",
    "temporary failure in name resolution",
    "server misbehaving",
    "network is unreachable",
    "no route to host",
    "i/o timeout",
    "handshake timeout",
    "deadline exceeded",
    "timeout awaiting",
    "unexpected eof",
    "internal server error",
    "internalerror",
    "bad gateway",
    "service unavailable",
    "serviceunavailable",
    "gateway timeout",
    "took longer than",
];
const CHANGED: &[&str] = &["corrupted on transfer", "hashes differ", "hash differ"];

impl fmt::Display for RcloneCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for RcloneCause {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn ended(code: i32, words: &str) -> RcloneCause {
        RcloneCause::ended(ExitStatus::from_raw(code << 8), &[words.to_owned()])
    }

    #[test]
    fn kinds_and_hints_come_from_status_and_words() {
        use StoreErrorKind::*;
        for (code, words, kind, hint) in [
            (3, "directory not found", NotFound, None),
            (4, "object not found", NotFound, None),
            (5, "AccessDenied, but may be tried again", Unavailable, None),
            (
                1,
                "didn't find section in config file (\"x\")",
                Invalid,
                Some("listremotes"),
            ),
            (
                1,
                "unable to decrypt configuration",
                Invalid,
                Some("RCLONE_CONFIG_PASS"),
            ),
            (7, "AccessDenied: Access Denied", Denied, Some("[gd]")),
            (
                1,
                "couldn't fetch token: invalid_grant",
                Denied,
                Some("config reconnect gd:"),
            ),
            (
                1,
                "write x: no space left on device",
                Full,
                Some("make room"),
            ),
            (1, "SlowDown: reduce your rate", Throttled, None),
            (
                1,
                "corrupted on transfer: sha1 hashes differ",
                Corrupt,
                None,
            ),
            (1, "connection refused", Unavailable, None),
            (2, "unknown flag: --x", Invalid, None),
        ] {
            let cause = ended(code, words);
            assert_eq!(cause.kind(), kind, "{words}");
            let told = cause.hint("gd", "/c");
            assert_eq!(told.is_some(), hint.is_some(), "{words}: {told:?}");
            assert!(
                told.unwrap_or_default().contains(hint.unwrap_or_default()),
                "{words}"
            );
        }
        assert_eq!(ended(1, "no").to_string(), "rclone ended with status 1: no");
        let killed = RcloneCause::ended(ExitStatus::from_raw(9), &[]);
        assert_eq!(
            (killed.to_string().as_str(), killed.kind()),
            ("rclone died of signal: 9 (SIGKILL)", Unavailable)
        );
    }
}
