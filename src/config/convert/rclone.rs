//! Converts a remote of rclone.conf: to a native one if this tool supports it, else to `rclone:`.

use super::ini;
use crate::config::{Remote, Size};
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
            "rclone.conf could not be read: `remote` stays rclone's {name}"
        ));
    };
    let Some(pairs) = ini::section(conf, name) else {
        return rclone(format!(
            "rclone.conf has no [{name}] that can be read: `remote` stays rclone's"
        ));
    };
    let path = path.trim_matches('/');
    let native = match get(&pairs, "type") {
        Some("b2") => b2(name, path, &pairs),
        Some("s3") => s3(name, path, &pairs),
        kind => {
            return rclone(format!(
                "a remote of type {} stays rclone's",
                kind.unwrap_or("unknown")
            ));
        }
    };
    match native.remote.parse::<Remote>() {
        Ok(_) => native,
        Err(error) => rclone(format!("{error}: `remote` stays rclone's")),
    }
}

fn get<'t>(pairs: &[(&str, &'t str)], key: &str) -> Option<&'t str> {
    pairs
        .iter()
        .find(|(name, _)| *name == key)
        .map(|(_, value)| ini::unquoted(value))
        .filter(|value| !value.is_empty())
}

fn b2(name: &str, path: &str, pairs: &[(&str, &str)]) -> NativeRemote {
    let mut native = NativeRemote {
        remote: format!("b2:{path}"),
        ..NativeRemote::default()
    };
    let mut lines = credentials(
        name,
        pairs,
        [
            ("account", "application_key_id_file"),
            ("key", "application_key_file"),
        ],
        &mut native,
    );
    lines.extend(parts(pairs, &mut native));
    native.lost.extend(unknown(
        name,
        pairs,
        &["account", "key", "chunk_size", "upload_concurrency"],
    ));
    native.section = Some(("b2", lines));
    native
}

fn s3(name: &str, path: &str, pairs: &[(&str, &str)]) -> NativeRemote {
    let mut native = NativeRemote {
        remote: format!("s3:{path}"),
        ..NativeRemote::default()
    };
    let mut lines = Vec::new();
    if let Some(endpoint) = get(pairs, "endpoint") {
        let scheme = if endpoint.contains("://") {
            ""
        } else {
            "https://"
        };
        lines.push(("endpoint", Value::from(format!("{scheme}{endpoint}"))));
    }
    for key in ["region", "storage_class"] {
        lines.extend(get(pairs, key).map(|value| (key, Value::from(value))));
    }
    match get(pairs, "force_path_style") {
        Some(value) => {
            lines.extend(super::truth(value).map(|value| ("path_style", Value::from(value))))
        }
        // rclone's own default, except for AWS.
        None if get(pairs, "endpoint").is_some() => lines.push(("path_style", Value::from(true))),
        None => {}
    }
    match get(pairs, "profile") {
        Some(profile) => lines.push(("profile", Value::from(profile))),
        None => {
            let keys = [
                ("access_key_id", "access_key_id_file"),
                ("secret_access_key", "secret_access_key_file"),
            ];
            lines.extend(credentials(name, pairs, keys, &mut native));
        }
    }
    lines.extend(parts(pairs, &mut native));
    let known = [
        "endpoint",
        "region",
        "storage_class",
        "force_path_style",
        "profile",
        "access_key_id",
    ];
    let known: Vec<&str> = known
        .into_iter()
        .chain(["secret_access_key", "chunk_size", "upload_concurrency"])
        .collect();
    native.lost.extend(unknown(name, pairs, &known));
    native.section = Some(("s3", lines));
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

fn parts(pairs: &[(&str, &str)], native: &mut NativeRemote) -> Vec<(&'static str, Value)> {
    let mut lines = Vec::new();
    if let Some(text) = get(pairs, "chunk_size") {
        match super::size(text).and_then(|size| size.parse::<Size>().ok()) {
            Some(size) => lines.push(("part_size", Value::from(size.to_string()))),
            None => native
                .lost
                .push(format!("chunk_size = {text} of rclone.conf")),
        }
    }
    if let Some(text) = get(pairs, "upload_concurrency") {
        match text.parse::<u32>() {
            Ok(count) => lines.push(("concurrency", Value::from(i64::from(count)))),
            Err(_) => native
                .lost
                .push(format!("upload_concurrency = {text} of rclone.conf")),
        }
    }
    lines
}

fn unknown(name: &str, pairs: &[(&str, &str)], known: &[&str]) -> Vec<String> {
    let unknown = pairs
        .iter()
        .map(|(key, _)| *key)
        .filter(|key| !known.contains(key) && !OF_NO_USE.contains(key));
    // The value may be a secret, so only the key is named.
    unknown
        .map(|key| format!("{key} in [{name}] of rclone.conf"))
        .collect()
}
