//! [`RcloneSettings`]: the settings of a remote of rclone, and the arguments that rclone may be
//! given.

use crate::store::{Limiter, Patience};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Flags that this program sets, or that would change what rclone does or shows: a filter makes
/// existing objects missing in a listing, and what is missing may be deleted.
const OURS: &[&str] = &[
    "--ask-password",
    "--backup-dir",
    "--bwlimit",
    "--compare-dest",
    "--config",
    "--copy-dest",
    "--copy-links",
    "--disable",
    "--dry-run",
    "--dump",
    "--error-on-no-transfer",
    "--ignore-checksum",
    "--ignore-existing",
    "--ignore-size",
    "--immutable",
    "--inplace",
    "--interactive",
    "--links",
    "--log-file",
    "--log-format",
    "--log-level",
    "--max-depth",
    "--max-duration",
    "--max-transfer",
    "--metadata-mapper",
    "--no-check-dest",
    "--partial-suffix",
    "--password-command",
    "--progress",
    "--quiet",
    "--rc",
    "--skip-links",
    "--stats",
    "--suffix",
    "--syslog",
    "--use-json-log",
    "--verbose",
];
/// The prefixes of the names of all filters.
const FILTERS: &[&str] = &[
    "--exclude",
    "--files-from",
    "--filter",
    "--hash-filter",
    "--include",
    "--max-age",
    "--max-size",
    "--min-age",
];
const MORE_FILTERS: &[&str] = &[
    "--min-size",
    "--delete-excluded",
    "--ignore-case",
    "--metadata-",
];
/// Words in names of flags whose values may be secrets: every user of the host can read the
/// arguments of every process.
const SECRETS: &[&str] = &[
    "pass",
    "secret",
    "token",
    "access-key",
    "-key=",
    "-account",
    "-sas",
    "header",
    "credential",
];

/// The time limit of a call that moves little. rclone's own time-outs end a call without a
/// response; this limit ends a call that hangs.
const CALL_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The slowest rate without a configured limit: 256 kbit/s.
const RATE_BYTES_MIN: u64 = 32 * 1024;
/// The time limit with a bandwidth limit: a chunk of 1 GiB at 1 KiB/s needs twelve days.
const PACED_CALL_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The settings of a remote of rclone.
#[derive(Debug, Clone)]
pub struct RcloneSettings {
    /// The program: a path, or a name that is searched for in `PATH`.
    pub program: PathBuf,
    /// The path of the rclone.conf. The file may be missing if the environment describes the
    /// remote.
    pub conf: PathBuf,
    /// The section of rclone.conf.
    pub remote: String,
    /// The path below the remote; may be empty.
    pub path: String,
    /// `--bwlimit`, in rclone's own form. Uploads are then serialised, so that the limit applies to
    /// all of them together.
    pub bwlimit: Option<String>,
    /// The limiter of all downloads together.
    pub limiter_down: Option<Arc<Limiter>>,
    /// Additional flags: `--name`, `--name=value`, or the value as the next item.
    pub args: Vec<String>,
    /// The wait of large objects while the remote does not answer; [`crate::store::PatientStore`]
    /// waits for the rest.
    pub patience: Arc<Patience>,
    /// The size in bytes of the pieces in which large objects are written to the spool.
    pub part_bytes: usize,
}

impl Default for RcloneSettings {
    /// Returns settings without a remote; `rclone` of `PATH`, no rclone.conf, pieces of 16 MiB.
    fn default() -> Self {
        Self {
            program: "rclone".into(),
            conf: "/dev/null".into(),
            remote: String::new(),
            path: String::new(),
            bwlimit: None,
            limiter_down: None,
            args: Vec::new(),
            patience: Arc::new(Patience::never()),
            part_bytes: 16 << 20,
        }
    }
}

impl RcloneSettings {
    /// Returns the time limit of a call that moves `bytes`. With a bandwidth limit the time limit
    /// is generous: rclone's own time-outs end a stalled transfer.
    pub(super) fn call_limit(&self, bytes: u64) -> Duration {
        match self.bwlimit {
            Some(_) => PACED_CALL_LIMIT,
            None => CALL_LIMIT + Duration::from_secs(bytes / RATE_BYTES_MIN),
        }
    }

    /// Checks the settings. The error is a sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_alphanumeric() || "_-.+@ ".contains(c);
        if self.remote.is_empty() || self.remote.starts_with('-') || !self.remote.chars().all(plain)
        {
            // A connection string (`name,key=value`) would show its values to every user of the
            // host.
            return Err(format!(
                "{:?} is not the name of a section of rclone.conf",
                self.remote
            ));
        }
        if self.path.chars().any(char::is_control) || self.path.split('/').any(|part| part == "..")
        {
            return Err(format!(
                "the path {:?} has `..` or a control character in it",
                self.path
            ));
        }
        if self.part_bytes == 0 {
            return Err("the part size must be more than nothing".to_owned());
        }
        match check_arguments(&self.args).into_iter().next() {
            Some((_, why)) => Err(why),
            None => Ok(()),
        }
    }

    /// Returns rclone's name for the root of all keys.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.remote, self.path)
    }

    /// Returns rclone's name for this key, or for the folder of that name; the root for an empty
    /// key.
    pub(super) fn place_of(&self, key: &str) -> String {
        let slash = if key.is_empty() || self.path.is_empty() || self.path.ends_with('/') {
            ""
        } else {
            "/"
        };
        format!("{}{slash}{key}", self.place())
    }

    /// Returns the store's name for messages.
    pub(super) fn url(&self) -> String {
        format!("rclone:{}", self.place())
    }
}

/// Checks the additional arguments of rclone. Returns the number of each refused argument, from 1,
/// and the reason as a sentence. Values are not repeated, because they may be secrets.
///
/// Refused is everything but `--name`, `--name=value` and a value that follows its `--name`; the
/// flags that this program sets itself; filters and other flags that would make listings
/// incomplete; and flags whose value may be a secret.
pub fn check_arguments(arguments: &[String]) -> Vec<(usize, String)> {
    let is_word = |n: usize| {
        arguments
            .get(n)
            .is_some_and(|word| !word.starts_with('-') && !word.is_empty())
    };
    let check = |(n, argument): (usize, &String)| {
        let follows_name =
            n > 0 && arguments[n - 1].starts_with("--") && !arguments[n - 1].contains('=');
        if is_word(n) && follows_name {
            return None;
        }
        check_flag(argument, is_word(n + 1))
            .err()
            .map(|why| (n + 1, why))
    };
    arguments.iter().enumerate().filter_map(check).collect()
}

fn check_flag(argument: &str, word_follows: bool) -> Result<(), String> {
    let name = argument.split('=').next().unwrap_or_default();
    let plain = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !name.strip_prefix("--").is_some_and(plain) {
        return Err(
            "it is neither `--name` nor `--name=value`, which each argument must be".to_owned(),
        );
    }
    if OURS.contains(&name) || name.starts_with("--rc-") || name.starts_with("--stats-") {
        return Err(format!(
            "{name} is set, or kept from being set, by zfs-backup"
        ));
    }
    if FILTERS
        .iter()
        .chain(MORE_FILTERS)
        .any(|filter| name.starts_with(filter))
    {
        return Err(format!(
            "{name} could hide objects, and what seems to be missing may be made again or deleted"
        ));
    }
    let named = format!("{name}=");
    let has_value = argument.contains('=') || word_follows;
    if has_value && SECRETS.iter().any(|secret| named.contains(secret)) {
        return Err(format!(
            "{name} may be a secret, and every user of this host can read it: put it into rclone.conf"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_hide_objects_or_show_secrets_are_refused() {
        for (argument, good) in [
            ("--fast-list", true),
            ("--transfers=2", true),
            ("--b2-chunk-size=96M", true),
            ("--s3-no-check-bucket", true),
            ("--sftp-key-use-agent", true),
            ("", false),
            ("-v", false),
            ("--", false),
            ("4", false),
            ("gdrive:x", false),
            ("--transfers 2", false),
            ("--config=/x", false),
            ("--dry-run", false),
            ("--dump=auth", false),
            ("--rc-addr=:1", false),
            ("--include=*.age", false),
            ("--max-age=1d", false),
            ("--filter-from=/x", false),
            ("--files-from-raw=/x", false),
            ("--b2-key=K005", false),
            ("--b2-account=0", false),
            ("--s3-secret-access-key=x", false),
            ("--sftp-pass=x", false),
            ("--drive-token=x", false),
            ("--header-upload=Authorization: x", false),
        ] {
            let told = check_flag(argument, false);
            assert_eq!(told.is_ok(), good, "{argument}: {told:?}");
            let value = argument.split_once('=').map_or("none", |(_, value)| value);
            assert!(
                value.len() < 3 || !told.err().unwrap_or_default().contains(value),
                "{argument}"
            );
        }
    }

    #[test]
    fn rclone_argument_may_have_its_value_as_the_next_word() {
        for (line, refused) in [
            ("--fast-list --transfers 2 --checkers=4", &[][..]),
            ("--transfers=2 3", &[2]),
            ("2 --transfers", &[1]),
            ("--transfers 2 3", &[3]),
            ("--b2-key K005", &[1]),
            ("--b2-key --fast-list", &[]),
            ("--include x --min-age 1d -v", &[1, 3, 5]),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let found: Vec<usize> = check_arguments(&words)
                .into_iter()
                .map(|(n, _)| n)
                .collect();
            assert_eq!(found, refused, "{line}");
        }
    }

    #[test]
    fn time_limits_leave_room_for_a_limit_of_speed() {
        let settings = RcloneSettings::default();
        assert_eq!(settings.call_limit(0), CALL_LIMIT);
        assert_eq!(
            settings.call_limit(1 << 30),
            CALL_LIMIT + Duration::from_secs(32 * 1024)
        );
        let slow = RcloneSettings {
            bwlimit: Some("1K".to_owned()),
            ..settings
        };
        assert!(slow.call_limit(1 << 30) > Duration::from_secs(1 << 20));
    }

    #[test]
    fn keys_map_to_rclone_paths_and_invalid_remotes_are_refused() {
        for (path, key, place) in [
            ("", "", "r:"),
            ("", "a/b", "r:a/b"),
            ("bucket/x", "", "r:bucket/x"),
            ("bucket/x", "a/b", "r:bucket/x/a/b"),
            ("/srv/", "a", "r:/srv/a"),
            ("/", "a", "r:/a"),
        ] {
            let settings = RcloneSettings {
                remote: "r".into(),
                path: path.into(),
                ..Default::default()
            };
            assert_eq!(settings.place_of(key), place);
            settings.check().unwrap();
        }
        for (remote, path) in [
            ("", "x"),
            ("-x", "x"),
            ("s3,secret_access_key=x", "x"),
            (":b2", "x"),
            ("r", "a/../b"),
        ] {
            let settings = RcloneSettings {
                remote: remote.into(),
                path: path.into(),
                ..Default::default()
            };
            assert!(settings.check().is_err(), "{remote}:{path}");
        }
    }
}
