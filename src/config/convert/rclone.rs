//! Converts a remote of rclone.conf: to a native one if this tool supports it, else to `rclone:`.

use super::ini;
use crate::config::{Remote, schema};
use toml::Value;

/// The result of the conversion.
#[derive(Debug, Default)]
pub(super) struct NativeRemote {
    /// The value of `remote`; empty if it cannot be converted.
    pub(super) remote: String,
    /// The section of the remote with its lines: `[s3]`, `[b2]`; `None` for `rclone:`.
    pub(super) section: Option<(&'static str, Vec<(&'static str, Value)>)>,
    /// The steps that the user must take.
    pub(super) advice: Vec<String>,
    /// Keys of rclone.conf that could not be converted.
    pub(super) lost: Vec<String>,
}

/// A native store, and how the keys of rclone.conf become its keys.
struct NativeStore {
    /// The section, which is also the scheme of `remote`.
    section: &'static str,
    /// The keys of rclone, each with the native key.
    keys: &'static [(&'static str, &'static str)],
    /// The two keys of rclone that hold credentials, each with the native key that names a file.
    credentials: [(&'static str, &'static str); 2],
}

const B2: NativeStore = NativeStore {
    section: "b2",
    keys: &[
        ("chunk_size", "part_size"),
        ("upload_concurrency", "concurrency"),
    ],
    credentials: [
        ("account", "application_key_id_file"),
        ("key", "application_key_file"),
    ],
};

const S3: NativeStore = NativeStore {
    section: "s3",
    keys: &[
        ("endpoint", "endpoint"),
        ("region", "region"),
        ("profile", "profile"),
        ("storage_class", "storage_class"),
        ("server_side_encryption", "server_side_encryption"),
        ("sse_kms_key_id", "kms_key_id"),
        ("force_path_style", "path_style"),
        ("chunk_size", "part_size"),
        ("upload_concurrency", "concurrency"),
    ],
    credentials: [
        ("access_key_id", "access_key_id_file"),
        ("secret_access_key", "secret_access_key_file"),
    ],
};

/// The keys of rclone that have no meaning for this tool.
const OF_NO_USE: [&str; 7] = [
    "type",
    "provider",
    "acl",
    "location_constraint",
    "env_auth",
    "no_check_bucket",
    "bucket_acl",
];
const KEY_FOLDER: &str = "/etc/zfs-backup";

/// Converts `NAME:PATH`, given the text of rclone.conf if it could be read.
pub(super) fn native_remote(value: &str, rclone_conf: Option<&str>) -> NativeRemote {
    if value.starts_with('/') {
        return NativeRemote {
            remote: format!("file:{value}"),
            ..NativeRemote::default()
        };
    }
    let Some((name, path)) = value.split_once(':').filter(|(name, _)| !name.is_empty()) else {
        let lost = vec![format!("remote = {value}: it is not of the form NAME:PATH")];
        return NativeRemote {
            lost,
            ..NativeRemote::default()
        };
    };
    let rclone = |advice: String| NativeRemote {
        remote: format!("rclone:{value}"),
        advice: vec![advice],
        ..NativeRemote::default()
    };
    let Some(conf) = rclone_conf else {
        return rclone(format!(
            "rclone.conf could not be read: `remote` still uses rclone's {name}"
        ));
    };
    let Some(pairs) = ini::section(conf, name) else {
        return rclone(format!(
            "rclone.conf has no [{name}] that can be read: `remote` still uses rclone"
        ));
    };
    let path = path.trim_matches('/');
    let store = match get(&pairs, "type") {
        Some("b2") => B2,
        Some("s3") => S3,
        kind => {
            return rclone(format!(
                "`remote` still uses rclone: no native store has the type {}",
                kind.unwrap_or("unknown")
            ));
        }
    };
    let native = convert(&store, name, path, &pairs);
    match native.remote.parse::<Remote>() {
        Ok(_) => native,
        Err(error) => rclone(format!("{error}: `remote` still uses rclone")),
    }
}

fn get<'t>(pairs: &[(&str, &'t str)], key: &str) -> Option<&'t str> {
    pairs
        .iter()
        .find(|(name, _)| *name == key)
        .map(|(_, value)| ini::unquoted(value))
        .filter(|value| !value.is_empty())
}

fn convert(store: &NativeStore, name: &str, path: &str, pairs: &[(&str, &str)]) -> NativeRemote {
    let mut native = NativeRemote {
        remote: format!("{}:{path}", store.section),
        ..NativeRemote::default()
    };
    let mut lines = Vec::new();
    for (theirs, ours) in store.keys {
        let value = match (*theirs, get(pairs, theirs)) {
            ("endpoint", Some(host)) if !host.contains("://") => format!("https://{host}"),
            // rclone's own default, except for AWS.
            ("force_path_style", None) if get(pairs, "endpoint").is_some() => "true".to_owned(),
            (_, Some(value)) => value.to_owned(),
            (_, None) => continue,
        };
        let kind = schema::section_spec(store.section).and_then(|section| section.kind(ours));
        match kind.and_then(|kind| super::toml_value(kind, &value)) {
            Some(value) => lines.push((*ours, value)),
            None => native
                .lost
                .push(format!("{theirs} = {value} of rclone.conf")),
        }
    }
    if get(pairs, "profile").is_none() {
        lines.extend(credentials(name, pairs, store.credentials, &mut native));
    }
    let mut known = OF_NO_USE.to_vec();
    known.extend(store.keys.iter().map(|(theirs, _)| *theirs));
    known.extend(store.credentials.map(|(theirs, _)| theirs));
    // The value of an unknown key may be a secret, so only the key is named.
    let unknown = pairs.iter().filter(|(key, _)| !known.contains(key));
    native
        .lost
        .extend(unknown.map(|(key, _)| format!("{key} in [{name}] of rclone.conf")));
    native.section = Some((store.section, lines));
    native
}

/// Returns the keys that name the pair of secret files. The advice names the files, never the
/// secrets.
fn credentials(
    name: &str,
    pairs: &[(&str, &str)],
    keys: [(&str, &'static str); 2],
    native: &mut NativeRemote,
) -> Vec<(&'static str, Value)> {
    if keys.iter().any(|(key, _)| get(pairs, key).is_none()) {
        native.advice.push(format!(
            "[{name}] of rclone.conf names no keys: they come from the environment"
        ));
        return Vec::new();
    }
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let mut lines = Vec::new();
    for (key, file_key) in keys {
        let file = format!("{KEY_FOLDER}/{plain}.{}", key.replace('_', "-"));
        native.advice.push(format!(
            "write the value of `{key}` in [{name}] of rclone.conf into {file}: `install -m 600 /dev/stdin {file}`, then paste it"
        ));
        lines.push((file_key, Value::from(file)));
    }
    lines
}
