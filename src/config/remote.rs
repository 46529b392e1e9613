//! [`Remote`]: the store that a configuration or `--remote` names.

use super::units::InvalidValue;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// The destination of backups. Only a name: credentials and limits are kept elsewhere, so the value
/// can be shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Remote {
    /// `s3:bucket/prefix`: any S3-compatible store.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix of all keys, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// `b2:bucket/prefix`: native Backblaze B2.
    B2 {
        /// The bucket.
        bucket: String,
        /// The prefix of all file names, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// `file:/dir`: a folder, which must exist.
    File {
        /// The folder, absolute.
        dir: PathBuf,
    },
    /// `rclone:REMOTE:PATH`: a remote of rclone.conf.
    Rclone {
        /// The section of rclone.conf.
        remote: String,
        /// The path below it.
        path: String,
    },
}

const FORMS: &str = "s3:bucket/prefix, b2:bucket/prefix, file:/dir or rclone:REMOTE:PATH";
/// The longest prefix. Keys have at most 1024 bytes in S3 and B2; a dataset name takes up to 255,
/// and the rest of a key fewer than 200.
const PREFIX_BYTES_MAX: usize = 512;

impl FromStr for Remote {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| InvalidValue::new(text, FORMS))?;
        match scheme {
            "s3" => {
                bucket_and_prefix(text, rest).map(|(bucket, prefix)| Self::S3 { bucket, prefix })
            }
            "b2" => {
                bucket_and_prefix(text, rest).map(|(bucket, prefix)| Self::B2 { bucket, prefix })
            }
            "file" => absolute_dir(text, rest).map(|dir| Self::File { dir }),
            "rclone" => rclone_remote(text, rest),
            _ => Err(unknown_scheme(text, scheme)),
        }
    }
}

fn unknown_scheme(text: &str, scheme: &str) -> InvalidValue {
    let invalid = InvalidValue::new(text, FORMS);
    match scheme {
        "http" | "https" => invalid.hint("name the bucket here and the URL in [s3] as `endpoint`"),
        scheme
            if scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) =>
        {
            invalid.hint(format!(
                "for a remote of rclone.conf write \"rclone:{text}\""
            ))
        }
        _ => invalid,
    }
}

fn bucket_and_prefix(text: &str, rest: &str) -> Result<(String, String), InvalidValue> {
    let scheme = &text[..2];
    if let Some(rest) = rest.strip_prefix("//") {
        return Err(InvalidValue::new(text, FORMS).hint(format!("write \"{scheme}:{rest}\"")));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(plain) {
        return Err(InvalidValue::new(
            text,
            format!("{scheme}:bucket/prefix with a bucket name of 3 to 63 letters, digits and -._"),
        ));
    }
    let prefix = prefix.trim_end_matches('/');
    if !prefix.is_empty() && !is_prefix(prefix) {
        let expected = format!(
            "{scheme}:bucket/prefix, the prefix at most {PREFIX_BYTES_MAX} bytes, without empty parts, `.`, `..`, \\ and control characters"
        );
        return Err(InvalidValue::new(text, expected));
    }
    Ok((bucket.to_owned(), prefix.to_owned()))
}

fn is_prefix(prefix: &str) -> bool {
    prefix.len() <= PREFIX_BYTES_MAX
        && !prefix.chars().any(|c| c.is_control() || c == '\\')
        && prefix
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."))
}

fn absolute_dir(text: &str, rest: &str) -> Result<PathBuf, InvalidValue> {
    let invalid = || InvalidValue::new(text, "file:/dir, an absolute path without `..`");
    if rest.starts_with("//") {
        return Err(invalid().hint(format!("write \"file:/{}\"", rest.trim_start_matches('/'))));
    }
    let dir = Path::new(rest);
    if !dir.is_absolute() || dir.components().any(|part| part == Component::ParentDir) {
        return Err(invalid());
    }
    Ok(dir.to_path_buf())
}

fn rclone_remote(text: &str, rest: &str) -> Result<Remote, InvalidValue> {
    match rest.split_once(':') {
        Some((remote, path)) if !remote.is_empty() && !remote.starts_with('-') => {
            Ok(Remote::Rclone {
                remote: remote.to_owned(),
                path: path.to_owned(),
            })
        }
        _ => Err(InvalidValue::new(
            text,
            "rclone:REMOTE:PATH, REMOTE being a section of rclone.conf",
        )),
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bucket = |f: &mut fmt::Formatter<'_>, scheme: &str, bucket: &str, prefix: &str| {
            let slash = if prefix.is_empty() { "" } else { "/" };
            write!(f, "{scheme}:{bucket}{slash}{prefix}")
        };
        match self {
            Self::S3 {
                bucket: name,
                prefix,
            } => bucket(f, "s3", name, prefix),
            Self::B2 {
                bucket: name,
                prefix,
            } => bucket(f, "b2", name, prefix),
            Self::File { dir } => write!(f, "file:{}", dir.display()),
            Self::Rclone { remote, path } => write!(f, "rclone:{remote}:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_remote_prints_what_it_parses() {
        for text in [
            "s3:bucket",
            "s3:bucket/a/b c",
            "b2:my-bucket/whatever",
            "file:/srv/backup",
            "rclone:gdrive:dir/sub",
            "rclone:gdrive:",
        ] {
            assert_eq!(
                text.parse::<Remote>()
                    .map(|remote| remote.to_string())
                    .as_deref(),
                Ok(text)
            );
        }
        assert_eq!(
            "s3:bucket/a/"
                .parse::<Remote>()
                .map(|remote| remote.to_string())
                .as_deref(),
            Ok("s3:bucket/a")
        );
    }

    #[test]
    fn invalid_remotes_are_refused_with_a_hint() {
        for (text, hint) in [
            ("", None),
            ("bucket", None),
            ("s3:", None),
            ("s3:ab", None),
            ("s3:bu cket", None),
            ("s3:bucket//x", None),
            ("s3:bucket/../x", None),
            ("s3:bucket/a\nb", None),
            ("s3://bucket/x", Some("write \"s3:bucket/x\"")),
            ("file:dir", None),
            ("file:/a/../b", None),
            ("file:///dir", Some("write \"file:/dir\"")),
            ("rclone:x", None),
            ("rclone::x", None),
            ("rclone:--config=/x:y", None),
            (
                "gdrive:dir",
                Some("for a remote of rclone.conf write \"rclone:gdrive:dir\""),
            ),
            (
                "https://s3.example.org/b",
                Some("name the bucket here and the URL in [s3] as `endpoint`"),
            ),
        ] {
            let refused = text.parse::<Remote>().unwrap_err();
            assert_eq!(refused.hint.as_deref(), hint, "{text:?}");
        }
    }
}
