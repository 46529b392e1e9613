//! [`PropertyChoice`]: the properties that a restored dataset gets, in the kernel's own types.
//!
//! The kernel refuses a string for a property that it keeps as a number. This file therefore has
//! the words of the properties that people set on a restore (from OpenZFS 2.1 and 2.3). Other
//! properties must be given as a number or be set with `zfs set` afterwards.

use crate::config::Size;
use crate::zfs::PropertyValue;
use std::collections::BTreeMap;

/// The words that people write, with the numbers that the kernel keeps.
type Words = &'static [(&'static str, u64)];

const SWITCH: Words = &[("off", 0), ("on", 1)];
const INDEXED: &[(&str, Words)] = &[
    (
        "acltype",
        &[("off", 0), ("posix", 1), ("posixacl", 1), ("nfsv4", 2)],
    ),
    ("canmount", &[("off", 0), ("on", 1), ("noauto", 2)]),
    (
        "compression",
        &[
            ("on", 1),
            ("off", 2),
            ("lzjb", 3),
            ("gzip", 10),
            ("gzip-1", 5),
            ("gzip-9", 13),
            ("zle", 14),
            ("lz4", 15),
            ("zstd", 16),
        ],
    ),
    ("dnodesize", &[("legacy", 0), ("auto", 1)]),
    ("logbias", &[("latency", 0), ("throughput", 1)]),
    ("primarycache", CACHE),
    ("redundant_metadata", &[("all", 0), ("most", 1)]),
    ("secondarycache", CACHE),
    ("snapdir", &[("hidden", 0), ("visible", 1)]),
    ("sync", &[("standard", 0), ("always", 1), ("disabled", 2)]),
    (
        "volmode",
        &[("default", 0), ("full", 1), ("dev", 2), ("none", 3)],
    ),
    ("xattr", &[("off", 0), ("on", 1), ("sa", 2)]),
];
const CACHE: Words = &[("none", 0), ("metadata", 1), ("all", 2)];
const SWITCHES: &[&str] = &[
    "atime", "devices", "exec", "nbmand", "overlay", "readonly", "relatime", "setuid", "vscan",
    "zoned",
];
/// Properties with a size in bytes; `none` is 0.
const SIZES: &[&str] = &[
    "quota",
    "recordsize",
    "refquota",
    "refreservation",
    "reservation",
    "special_small_blocks",
];
const TEXTS: &[&str] = &[
    "context",
    "defcontext",
    "fscontext",
    "mlslabel",
    "mountpoint",
    "rootcontext",
    "sharenfs",
    "sharesmb",
];
/// Properties that are fixed when a dataset is made, that the stream itself sets, or that belong to
/// an encryption key.
const OF_THE_STREAM: &[&str] = &[
    "casesensitivity",
    "encryption",
    "keyformat",
    "keylocation",
    "normalization",
    "pbkdf2iters",
    "utf8only",
    "version",
    "volblocksize",
    "volsize",
];

/// The properties that a restored dataset gets in place of those that it would inherit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PropertyChoice {
    /// Whether to set the properties that the backup recorded: set locally or received on the
    /// source.
    pub recorded: bool,
    /// Properties to set, which override recorded ones.
    set: BTreeMap<String, PropertyValue>,
    /// Names of properties that are never set.
    without: Vec<String>,
}

/// A property that cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given}: expected {expected}")]
pub struct PropertyError {
    /// The text that was given.
    pub given: String,
    /// The expected form or values.
    pub expected: String,
}

impl PropertyChoice {
    /// Makes a choice from `set`, a list of `NAME=VALUE`, and `without`, a list of names.
    ///
    /// # Errors
    /// [`PropertyError`] for a malformed entry, or for a property or value that cannot be set.
    pub fn new(recorded: bool, set: &[String], without: &[String]) -> Result<Self, PropertyError> {
        let wrong = |given: &str, expected: &str| PropertyError {
            given: given.to_owned(),
            expected: expected.to_owned(),
        };
        let mut chosen = BTreeMap::new();
        for given in set {
            let (name, value) = given
                .split_once('=')
                .ok_or_else(|| wrong(given, "NAME=VALUE"))?;
            if OF_THE_STREAM.contains(&name) {
                return Err(wrong(given, "a property that the stream does not fix"));
            }
            let native = native_value(name, value).map_err(|expected| wrong(given, &expected))?;
            chosen.insert(name.to_owned(), native);
        }
        if let Some(name) = without
            .iter()
            .find(|name| name.contains('=') || name.is_empty())
        {
            return Err(wrong(name, "the name of a property"));
        }
        Ok(Self {
            recorded,
            set: chosen,
            without: without.to_vec(),
        })
    }

    /// Returns the choice for the descendants of a dataset that has this choice. A mount point in
    /// `set` applies only to the topmost dataset; the descendants are mounted below it.
    pub fn below(&self) -> Self {
        let mut below = self.clone();
        if below.set.remove("mountpoint").is_some() {
            below.without.push("mountpoint".to_owned());
        }
        below
    }

    /// Returns the properties to set. A recorded mount point comes with `canmount=noauto`, unless
    /// `canmount` is chosen too, so that nothing is ever mounted over existing files.
    pub fn resolve(&self, recorded: &BTreeMap<String, String>) -> BTreeMap<String, PropertyValue> {
        let mut properties = BTreeMap::new();
        if self.recorded {
            let kept = recorded
                .iter()
                .filter(|(name, _)| !OF_THE_STREAM.contains(&name.as_str()));
            properties.extend(kept.map(|(name, text)| (name.clone(), recorded_value(name, text))));
            if properties.contains_key("mountpoint") {
                properties.insert("canmount".to_owned(), PropertyValue::Number(2));
            }
        }
        properties.extend(self.set.clone());
        properties.retain(|name, _| !self.without.contains(name));
        properties
    }
}

/// Converts a recorded value. Backups record numbers as decimal text.
fn recorded_value(name: &str, text: &str) -> PropertyValue {
    let is_text = name.contains(':') || TEXTS.contains(&name);
    match text.parse() {
        Ok(number) if !is_text => PropertyValue::Number(number),
        _ => PropertyValue::Text(text.to_owned()),
    }
}

/// Converts a value that people write to the kernel's form. The error names the valid values.
fn native_value(name: &str, value: &str) -> Result<PropertyValue, String> {
    if name.contains(':') || TEXTS.contains(&name) {
        return Ok(PropertyValue::Text(value.to_owned()));
    }
    let words = match INDEXED.iter().find(|(indexed, _)| *indexed == name) {
        Some((_, words)) => words,
        None if SWITCHES.contains(&name) => SWITCH,
        None => &[],
    };
    if let Some((_, number)) = words.iter().find(|(word, _)| *word == value) {
        return Ok(PropertyValue::Number(*number));
    }
    if !words.is_empty() {
        return Err(words
            .iter()
            .map(|(word, _)| *word)
            .collect::<Vec<_>>()
            .join(", "));
    }
    if SIZES.contains(&name) && value == "none" {
        return Ok(PropertyValue::Number(0));
    }
    match value.parse::<Size>() {
        Ok(size) => Ok(PropertyValue::Number(size.bytes())),
        Err(_) if SIZES.contains(&name) => Err("a size such as 128K or 10G, or none".to_owned()),
        Err(_) => Err(format!(
            "a property that can be set here; set {name} afterwards with `zfs set`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PropertyValue::{Number, Text};

    fn choice(
        recorded: bool,
        set: &[&str],
        without: &[&str],
    ) -> Result<PropertyChoice, PropertyError> {
        let owned = |list: &[&str]| {
            list.iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        PropertyChoice::new(recorded, &owned(set), &owned(without))
    }

    #[test]
    fn property_words_and_sizes_become_kernel_values() {
        for (given, expected) in [
            ("canmount=noauto", Number(2)),
            ("atime=off", Number(0)),
            ("compression=zstd", Number(16)),
            ("recordsize=1M", Number(1 << 20)),
            ("quota=none", Number(0)),
            ("copies=2", Number(2)),
            ("mountpoint=/srv/a=b", Text("/srv/a=b".into())),
            ("org.example:note=7", Text("7".into())),
        ] {
            let name = given.split_once('=').unwrap().0;
            assert_eq!(
                choice(false, &[given], &[])
                    .unwrap()
                    .resolve(&BTreeMap::new())[name],
                expected,
                "{given}"
            );
        }
        for (given, part) in [
            ("canmount", "NAME=VALUE"),
            ("canmount=never", "off, on, noauto"),
            ("quota=much", "a size such as"),
            ("volsize=1G", "does not fix"),
            ("checksum=sha256", "afterwards with `zfs set`"),
        ] {
            let error = choice(false, &[given], &[]).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(choice(true, &[], &["a=b"]).is_err());
    }

    #[test]
    fn recorded_properties_are_restored_without_automatic_mounts() {
        let recorded: BTreeMap<String, String> = [
            ("compression", "15"),
            ("mountpoint", "/home"),
            ("canmount", "1"),
            ("volsize", "7"),
            ("org.example:note", "15"),
            ("keylocation", "prompt"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        assert_eq!(
            choice(false, &[], &[]).unwrap().resolve(&recorded),
            BTreeMap::new()
        );
        let resolved = choice(true, &["readonly=on"], &["org.example:note"])
            .unwrap()
            .resolve(&recorded);
        let expected = [
            ("canmount", Number(2)),
            ("compression", Number(15)),
            ("mountpoint", Text("/home".into())),
            ("readonly", Number(1)),
        ];
        assert_eq!(
            resolved,
            expected
                .map(|(name, value)| (name.to_owned(), value))
                .into()
        );
        let mounted = choice(true, &["canmount=on"], &[])
            .unwrap()
            .resolve(&recorded);
        assert_eq!(mounted["canmount"], Number(1));
        let below = choice(true, &["mountpoint=/x", "atime=off"], &[])
            .unwrap()
            .below()
            .resolve(&recorded);
        assert!(
            !below.contains_key("mountpoint") && below["atime"] == Number(0),
            "{below:?}"
        );
        let elsewhere = choice(true, &[], &["mountpoint", "canmount"])
            .unwrap()
            .resolve(&recorded);
        assert!(!elsewhere.contains_key("mountpoint") && !elsewhere.contains_key("canmount"));
    }
}
