//! [`plan_mount`]: where a filesystem is mounted by its properties, and how; or why it is not. The rules are those of
//! `zfs mount`. Pure.

use crate::model::DatasetName;
use crate::zfs::{AccessTimes, MountOptions, Property, PropertyValue};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The properties that a dataset has from those above it, as far as mounting depends on them.
const INHERITED: [&str; 13] = [
    "atime",
    "context",
    "defcontext",
    "devices",
    "exec",
    "fscontext",
    "mountpoint",
    "overlay",
    "readonly",
    "relatime",
    "rootcontext",
    "setuid",
    "zoned",
];
/// Labels that only `zfs mount` gives.
const CONTEXTS: [&str; 4] = ["context", "defcontext", "fscontext", "rootcontext"];
/// The source of a property that came with a stream, on the dataset itself.
const RECEIVED: &str = "$recvd";

/// Properties by name.
pub type Properties = BTreeMap<String, Property>;

/// What a mount depends on.
#[derive(Debug, Clone, Copy)]
pub struct MountFacts<'a> {
    /// The dataset.
    pub name: &'a DatasetName,
    /// It is a volume.
    pub is_volume: bool,
    /// It is encrypted and its key is not loaded.
    pub key_is_missing: bool,
    /// Its properties, those that it inherits included.
    pub properties: &'a Properties,
    /// The folder that its pool was imported below.
    pub root: Option<&'a str>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPlan {
    /// The folder.
    pub place: PathBuf,
    /// With what.
    pub options: MountOptions,
}

/// Why a dataset is not mounted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotMounted {
    /// It is no filesystem.
    #[error("it is a volume, which has a device and is not mounted")]
    Volume,
    /// `canmount=off`
    #[error("it has canmount=off")]
    CanmountOff,
    /// `mountpoint=none`, or nothing that is a place.
    #[error("it has mountpoint={mountpoint}, which is no place")]
    NoPlace {
        /// The value.
        mountpoint: String,
    },
    /// `mountpoint=legacy`
    #[error("it has mountpoint=legacy, so /etc/fstab or a person mounts it")]
    Legacy,
    /// Encrypted, and the key is not loaded.
    #[error("it is encrypted and its key is not loaded")]
    NoKey,
    /// `zoned=on`
    #[error("it has zoned=on: it belongs to a container")]
    Zoned,
    /// It has an SELinux label that only `zfs mount` gives.
    #[error("it has {property} set, a label that only `zfs mount` gives")]
    Labelled {
        /// The property.
        property: &'static str,
    },
}

impl NotMounted {
    /// What a person can do about it, who restores into `name`.
    pub fn hint(&self, name: &DatasetName) -> String {
        match self {
            Self::Volume => format!("leave --mount out; its device will be /dev/zvol/{name}"),
            Self::CanmountOff => "-o canmount=on lets it be mounted, or leave --mount out".to_owned(),
            Self::NoPlace { .. } | Self::Legacy => {
                "-o mountpoint=/FOLDER gives it a place, or leave --mount out".to_owned()
            }
            Self::NoKey => {
                format!("leave --mount out; then: zfs load-key {0}, zfs mount {0}", quoted(name))
            }
            Self::Zoned => "leave --mount out, and give it to its container".to_owned(),
            Self::Labelled { .. } => format!("leave --mount out; then: zfs mount {}", quoted(name)),
        }
    }
}

/// For a shell.
fn quoted(name: &DatasetName) -> String {
    shell_words::quote(name.as_str()).into_owned()
}

/// Decides where and how a dataset is mounted.
///
/// # Errors
/// [`NotMounted`] when it is not.
pub fn plan_mount(facts: &MountFacts<'_>) -> Result<MountPlan, NotMounted> {
    if facts.is_volume {
        return Err(NotMounted::Volume);
    }
    let number = |name: &str| match facts.properties.get(name).map(|property| &property.value) {
        Some(PropertyValue::Number(number)) => Some(*number),
        _ => None,
    };
    if number("canmount") == Some(0) {
        return Err(NotMounted::CanmountOff);
    }
    let place = place_of(facts)?;
    if number("zoned") == Some(1) {
        return Err(NotMounted::Zoned);
    }
    if let Some(property) = CONTEXTS.into_iter().find(|name| is_label(facts.properties.get(*name))) {
        return Err(NotMounted::Labelled { property });
    }
    if facts.key_is_missing {
        return Err(NotMounted::NoKey);
    }
    let is_on = |name: &str| number(name) != Some(0);
    let access_times = match (is_on("atime"), number("relatime")) {
        (false, _) => AccessTimes::Off,
        (true, Some(0)) => AccessTimes::Strict,
        (true, Some(_)) => AccessTimes::Relative,
        // What that is differs between versions of ZFS.
        (true, None) => AccessTimes::Default,
    };
    let options = MountOptions {
        readonly: number("readonly") == Some(1),
        exec: is_on("exec"),
        setuid: is_on("setuid"),
        devices: is_on("devices"),
        access_times,
    };
    Ok(MountPlan { place, options })
}

fn is_label(property: Option<&Property>) -> bool {
    matches!(property.map(|property| &property.value), Some(PropertyValue::Text(label)) if label != "none")
}

/// The property's own value on the dataset that it was set on, and below that the names of those between.
fn place_of(facts: &MountFacts<'_>) -> Result<PathBuf, NotMounted> {
    let name = facts.name.as_str();
    let (base, below) = match facts.properties.get("mountpoint") {
        None => ("/", name),
        Some(Property { value: PropertyValue::Number(number), .. }) => {
            return Err(NotMounted::NoPlace { mountpoint: number.to_string() });
        }
        Some(Property { value: PropertyValue::Text(text), source }) => match source.as_deref() {
            Some(RECEIVED) => (text.as_str(), ""),
            None | Some("") => (text.as_str(), name),
            Some(on) => (text.as_str(), name.strip_prefix(on).unwrap_or(name).trim_start_matches('/')),
        },
    };
    if base == "legacy" {
        return Err(NotMounted::Legacy);
    }
    if !base.starts_with('/') {
        return Err(NotMounted::NoPlace { mountpoint: base.to_owned() });
    }
    let parts = [facts.root.unwrap_or_default(), base, below].map(|part| part.trim_matches('/'));
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    Ok(PathBuf::from(format!("/{}", parts.join("/"))))
}

/// What a dataset is going to have that is made below `above` with some properties set.
pub fn properties_below(
    above: (&DatasetName, &Properties),
    name: &DatasetName,
    set: &BTreeMap<String, PropertyValue>,
) -> Properties {
    let (parent, inherited) = above;
    let inherited = inherited.iter().filter(|(property, _)| INHERITED.contains(&property.as_str()));
    let mut properties: Properties = inherited.map(|(name, property)| (name.clone(), property.clone())).collect();
    for property in properties.values_mut().filter(|property| property.source.as_deref() == Some(RECEIVED)) {
        property.source = Some(parent.to_string());
    }
    set_on(&mut properties, name, set);
    properties
}

/// Some properties set on the dataset itself.
pub fn set_on(properties: &mut Properties, name: &DatasetName, set: &BTreeMap<String, PropertyValue>) {
    let own = |value: &PropertyValue| Property { value: value.clone(), source: Some(name.to_string()) };
    properties.extend(set.iter().map(|(property, value)| (property.clone(), own(value))));
}

#[cfg(test)]
mod tests {
    use super::*;
    use PropertyValue::{Number, Text};

    fn name(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    fn properties(all: &[(&str, PropertyValue, &str)]) -> Properties {
        let property = |(name, value, source): &(&str, PropertyValue, &str)| {
            ((*name).to_owned(), Property { value: value.clone(), source: Some((*source).to_owned()) })
        };
        all.iter().map(property).collect()
    }

    fn plan(all: &[(&str, PropertyValue, &str)], root: Option<&str>) -> Result<MountPlan, NotMounted> {
        let (name, properties) = (name("tank/a/b c"), properties(all));
        plan_mount(&MountFacts { name: &name, is_volume: false, key_is_missing: false, properties: &properties, root })
    }

    #[test]
    fn places_by_table() {
        let text = |value: &str| Text(value.to_owned());
        for (value, source, root, expected) in [
            (None, "", None, "/tank/a/b c"),
            (Some("/"), "", None, "/tank/a/b c"),
            (Some("/srv"), "tank/a/b c", None, "/srv"),
            (Some("/srv"), "$recvd", None, "/srv"),
            (Some("/srv"), "tank", None, "/srv/a/b c"),
            (Some("/srv"), "tank/a", None, "/srv/b c"),
            (Some("/"), "tank/a", None, "/b c"),
            (Some("/"), "tank/a/b c", None, "/"),
            (None, "", Some("/mnt"), "/mnt/tank/a/b c"),
            (Some("/srv"), "tank/a", Some("/mnt/"), "/mnt/srv/b c"),
            (Some("/"), "tank/a/b c", Some("/mnt"), "/mnt"),
            (Some("/srv"), "tank/a", Some("/"), "/srv/b c"),
        ] {
            let set = value.map(|value| ("mountpoint", text(value), source));
            let found = plan(set.as_slice(), root).unwrap().place;
            assert_eq!(found, PathBuf::from(expected), "{value:?} from {source:?} below {root:?}");
        }
    }

    #[test]
    fn reasons_by_table() {
        let own = "tank/a/b c";
        let text = |value: &str| Text(value.to_owned());
        for (property, value, expected) in [
            ("canmount", Number(0), NotMounted::CanmountOff),
            ("mountpoint", text("none"), NotMounted::NoPlace { mountpoint: "none".into() }),
            ("mountpoint", text("legacy"), NotMounted::Legacy),
            ("zoned", Number(1), NotMounted::Zoned),
            ("fscontext", text("system_u:object_r:x:s0"), NotMounted::Labelled { property: "fscontext" }),
        ] {
            assert_eq!(plan(&[(property, value, own)], None), Err(expected), "{property}");
        }
        for (property, value) in [("canmount", Number(2)), ("zoned", Number(0)), ("context", text("none"))] {
            assert!(plan(&[(property, value, own)], None).is_ok(), "{property}");
        }
        let (name, none) = (name(own), Properties::new());
        let facts = MountFacts { name: &name, is_volume: false, key_is_missing: false, properties: &none, root: None };
        assert_eq!(plan_mount(&MountFacts { is_volume: true, ..facts }), Err(NotMounted::Volume));
        assert_eq!(plan_mount(&MountFacts { key_is_missing: true, ..facts }), Err(NotMounted::NoKey));
        assert!(NotMounted::NoKey.hint(&name).contains("zfs load-key 'tank/a/b c'"));
    }

    #[test]
    fn options_are_those_of_the_properties() {
        let all = MountOptions {
            readonly: false,
            exec: true,
            setuid: true,
            devices: true,
            access_times: AccessTimes::Default,
        };
        let of = |set: &[(&str, u64)]| {
            let set: Vec<_> = set.iter().map(|(name, value)| (*name, Number(*value), "tank")).collect();
            plan(&set, None).unwrap().options
        };
        assert_eq!(of(&[]), all);
        let none = [("readonly", 1), ("exec", 0), ("setuid", 0), ("devices", 0), ("atime", 0), ("relatime", 0)];
        let access_times = AccessTimes::Off;
        assert_eq!(
            of(&none),
            MountOptions { readonly: true, exec: false, setuid: false, devices: false, access_times }
        );
        assert_eq!(of(&[("relatime", 0)]).access_times, AccessTimes::Strict);
        assert_eq!(of(&[("relatime", 1), ("atime", 1)]).access_times, AccessTimes::Relative);
    }

    #[test]
    fn what_is_made_inherits_what_zfs_lets_it_inherit() {
        let above = properties(&[
            ("mountpoint", Text("/srv".into()), "$recvd"),
            ("canmount", Number(0), "tank"),
            ("readonly", Number(1), "tank"),
            ("atime", Number(0), "tank"),
        ]);
        let set = [("readonly".to_owned(), Number(0))].into();
        let (parent, child) = (name("tank"), name("tank/x"));
        let found = properties_below((&parent, &above), &child, &set);
        let facts =
            MountFacts { name: &child, is_volume: false, key_is_missing: false, properties: &found, root: None };
        let plan = plan_mount(&facts).unwrap();
        assert_eq!((plan.place, plan.options.readonly), (PathBuf::from("/srv/x"), false));
        assert_eq!(plan.options.access_times, AccessTimes::Off);
    }
}
