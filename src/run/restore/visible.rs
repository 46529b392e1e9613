//! [`visible_steps`]: the commands that make a restored dataset visible. A restore mounts nothing,
//! because only the owner knows which folder is free and who may change the folders above it.

use crate::model::DatasetName;
use crate::run::RunError;
use crate::zfs::{Dataset, DatasetType, Mount, Property, PropertyValue, ZfsHost};
use std::path::{Path, PathBuf};

/// The folder below which `zfs mount` puts a dataset without any `mountpoint`, under the dataset's
/// own name.
const DEFAULT_ROOT: &str = "/";
/// Stands for a folder that the owner chooses.
const CHOSEN_FOLDER: &str = "/FOLDER";

/// The steps that make a restored dataset visible.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VisibleSteps {
    /// The commands, in order, quoted for a shell; empty when nothing is left to do.
    pub commands: Vec<String>,
    /// The folder or device in which the data then is; `None` when the owner must choose a folder.
    pub place: Option<PathBuf>,
    /// A note for the owner, in one sentence.
    pub note: Option<String>,
}

/// Returns the commands that make a dataset visible: load its key, set a free mount point, mount
/// the dataset.
///
/// # Errors
/// [`RunError::Zfs`] when its state cannot be read.
pub fn visible_steps(zfs: &dyn ZfsHost, name: &DatasetName) -> Result<VisibleSteps, RunError> {
    let dataset = zfs.dataset(name)?;
    let dataset = dataset.ok_or_else(|| RunError::NoDataset {
        dataset: name.clone(),
        similar: None,
    })?;
    let mounts = zfs.mounts()?;
    Ok(steps_for(&dataset, &mounts, is_free))
}

/// Decides from facts alone; `is_free` says whether a folder is free.
fn steps_for(dataset: &Dataset, mounts: &[Mount], is_free: impl Fn(&Path) -> bool) -> VisibleSteps {
    let quoted = quote(dataset.name.as_str());
    let mut steps = VisibleSteps::default();
    if dataset.encrypted && dataset.key_unavailable {
        let root = text(dataset, "encryptionroot").unwrap_or(dataset.name.as_str());
        let quoted_root = quote(root);
        steps.commands.push(format!("zfs load-key {quoted_root}"));
    }
    if dataset.dataset_type == DatasetType::Volume {
        if number(dataset, "volmode") == Some(3) {
            steps.commands.push(format!("zfs inherit volmode {quoted}"));
        }
        steps.place = Some(Path::new("/dev/zvol").join(dataset.name.as_str()));
        return steps;
    }
    let of_it =
        |mount: &&Mount| mount.file_system == "zfs" && mount.source == dataset.name.as_str();
    if let Some(mount) = mounts.iter().find(of_it) {
        return VisibleSteps {
            place: Some(mount.place.clone()),
            ..VisibleSteps::default()
        };
    }
    let canmount = number(dataset, "canmount").unwrap_or(1);
    let Some(place) = mountpoint(dataset) else {
        // With canmount=on, ZFS mounts a dataset as soon as it gets its first mount point, and then
        // the children that inherit the mount point: in order, parents first. A parent with
        // canmount=noauto would be mounted over its children afterwards.
        if canmount != 1 {
            steps.commands.push(format!("zfs set canmount=on {quoted}"));
        }
        steps
            .commands
            .push(format!("zfs set mountpoint={CHOSEN_FOLDER} {quoted}"));
        steps.note = Some(format!(
            "the dataset has no mount point: choose an empty folder for {CHOSEN_FOLDER}"
        ));
        return steps;
    };
    let mut sets = Vec::new();
    if canmount == 0 {
        sets.push("canmount=noauto".to_owned());
    }
    if is_free(&place) && !mounts.iter().any(|mount| mount.place == place) {
        steps.place = Some(place);
    } else {
        steps.note = Some(format!(
            "{} is in use: choose an empty folder for {CHOSEN_FOLDER}",
            place.display()
        ));
        sets.push(format!("mountpoint={CHOSEN_FOLDER}"));
    }
    if !sets.is_empty() {
        let settings = sets.join(" ");
        steps.commands.push(format!("zfs set {settings} {quoted}"));
    }
    steps.commands.push(format!("zfs mount {quoted}"));
    steps
}

/// Returns the folder that `mountpoint` means; `None` for `none` and `legacy`.
fn mountpoint(dataset: &Dataset) -> Option<PathBuf> {
    let name = dataset.name.as_str();
    let Some(Property {
        value: PropertyValue::Text(value),
        source,
    }) = dataset.properties.get("mountpoint")
    else {
        return Some(Path::new(DEFAULT_ROOT).join(name));
    };
    if !value.starts_with('/') {
        return None;
    }
    // An inherited mount point is that of the dataset above, with the rest of the name below it.
    let above = source
        .as_deref()
        .and_then(|source| name.strip_prefix(source)?.strip_prefix('/'));
    Some(above.map_or_else(
        || PathBuf::from(value),
        |below| Path::new(value).join(below),
    ))
}

fn text<'a>(dataset: &'a Dataset, property: &str) -> Option<&'a str> {
    match &dataset.properties.get(property)?.value {
        PropertyValue::Text(text) => Some(text),
        PropertyValue::Number(_) => None,
    }
}

fn number(dataset: &Dataset, property: &str) -> Option<u64> {
    match dataset.properties.get(property)?.value {
        PropertyValue::Number(number) => Some(number),
        PropertyValue::Text(_) => None,
    }
}

fn quote(text: &str) -> String {
    shell_words::quote(text).into_owned()
}

/// Whether a folder is missing or empty. A folder that cannot be read counts as in use.
fn is_free(place: &Path) -> bool {
    match std::fs::read_dir(place) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Returns the mount that is still readonly although its filesystem no longer is: a mount becomes
/// readonly with the property, but stays readonly when the property is reset.
///
/// # Errors
/// [`RunError::Zfs`] when the property or the mount cannot be read.
pub fn left_readonly(zfs: &dyn ZfsHost, name: &DatasetName) -> Result<Option<PathBuf>, RunError> {
    let wanted = zfs
        .dataset(name)?
        .and_then(|mut dataset| dataset.properties.remove("readonly"));
    if wanted.is_some_and(|readonly| readonly.value == PropertyValue::Number(1)) {
        return Ok(None);
    }
    let mounts = zfs.mounts()?.into_iter();
    let mut stuck =
        mounts.filter(|mount| mount.file_system == "zfs" && mount.source == name.as_str());
    Ok(stuck.find(|mount| mount.readonly).map(|mount| mount.place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Guid;
    use PropertyValue::{Number, Text};

    fn dataset(properties: &[(&str, PropertyValue, &str)]) -> Dataset {
        let property = |(name, value, source): &(&str, PropertyValue, &str)| {
            (
                (*name).to_owned(),
                Property {
                    value: value.clone(),
                    source: Some((*source).to_owned()),
                },
            )
        };
        Dataset {
            name: "tank/old files".parse().unwrap(),
            guid: Guid(1),
            dataset_type: DatasetType::Filesystem,
            encrypted: false,
            key_unavailable: false,
            origin: None,
            inconsistent: false,
            redacted: false,
            properties: properties.iter().map(property).collect(),
        }
    }

    fn mount(source: &str, place: &str) -> Mount {
        let (device, file_system) = ((0, 7), "zfs".to_owned());
        Mount {
            device,
            file_system,
            source: source.to_owned(),
            place: place.into(),
            readonly: false,
        }
    }

    fn commands(dataset: &Dataset) -> Vec<String> {
        steps_for(dataset, &[], |_| true).commands
    }

    #[test]
    fn mount_commands_are_quoted_and_match_the_dataset_properties() {
        let name = "'tank/old files'";
        let plain = steps_for(&dataset(&[]), &[], |_| true);
        assert_eq!(plain.commands, [format!("zfs mount {name}")]);
        assert_eq!(plain.place, Some("/tank/old files".into()));
        let inherited = dataset(&[("mountpoint", Text("/srv".into()), "tank")]);
        assert_eq!(
            steps_for(&inherited, &[], |_| true).place,
            Some("/srv/old files".into())
        );
        let off = dataset(&[("canmount", Number(0), "tank/old files")]);
        assert_eq!(
            commands(&off),
            [
                format!("zfs set canmount=noauto {name}"),
                format!("zfs mount {name}")
            ]
        );
        let nowhere = dataset(&[("mountpoint", Text("none".into()), "tank")]);
        let set = format!("zfs set mountpoint=/FOLDER {name}");
        assert_eq!(
            commands(&nowhere),
            std::slice::from_ref(&set),
            "ZFS mounts it at once"
        );
        let mut never = nowhere.clone();
        never
            .properties
            .extend(dataset(&[("canmount", Number(2), "tank/old files")]).properties);
        assert_eq!(
            commands(&never),
            [format!("zfs set canmount=on {name}"), set]
        );
        let locked = Dataset {
            encrypted: true,
            key_unavailable: true,
            ..dataset(&[])
        };
        assert_eq!(
            commands(&locked),
            [format!("zfs load-key {name}"), format!("zfs mount {name}")]
        );
        let below = dataset(&[("encryptionroot", Text("tank".into()), "tank")]);
        let below = Dataset {
            encrypted: true,
            key_unavailable: true,
            ..below
        };
        assert_eq!(commands(&below)[0], "zfs load-key tank");
        let volume = Dataset {
            dataset_type: DatasetType::Volume,
            ..dataset(&[])
        };
        assert_eq!(commands(&volume), [""; 0]);
        assert_eq!(
            steps_for(&volume, &[], |_| true).place,
            Some("/dev/zvol/tank/old files".into())
        );
    }

    #[test]
    fn mount_advice_never_names_a_mountpoint_in_use() {
        let home = dataset(&[
            ("mountpoint", Text("/home".into()), "$recvd"),
            ("canmount", Number(2), "tank/old files"),
        ]);
        for steps in [
            steps_for(&home, &[], |_| false),
            steps_for(&home, &[mount("tank/other", "/home")], |_| true),
        ] {
            let set = "zfs set mountpoint=/FOLDER 'tank/old files'".to_owned();
            assert_eq!(
                steps.commands,
                [set, "zfs mount 'tank/old files'".to_owned()]
            );
            assert!(steps.note.unwrap().contains("/home is in use"));
        }
        let there = steps_for(&home, &[mount("tank/old files", "/home")], |_| false);
        assert_eq!(
            (there.commands.len(), there.place),
            (0, Some("/home".into()))
        );
    }
}
