//! The marks that a restore puts on the datasets that it makes, and the proof that a dataset is its
//! own.
//!
//! A mark is a user property, set with the first receive, that contains a random [`RestoreToken`].
//! A dataset that is destroyed after a failure or for a restart must carry the token of the restore
//! that made it. The guids of snapshots prove nothing, because every copy of a dataset has the
//! same. A mark counts only if it was set on the dataset itself.
//!
//! Builds before the token wrote marks without one. A restore with such a mark can be resumed, and
//! is never destroyed.

use super::RestoreSet;
use crate::model::Guid;
use crate::run::RunError;
use crate::zfs::{Dataset, Property, PropertyValue};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter, Result as FmtResult};

/// Marks a dataset as being restored. The value has the id of the backup that is restored, `new` if
/// the restore made the dataset, `readonly` if the restore set that property, `writable` if the
/// dataset had its own `readonly=off` before, and the token.
pub const RESTORING_PROPERTY: &str = "zfs-backup:restoring";
/// Marks the scratch dataset of a drill. The value has the token, and the guids of the snapshots
/// that the dataset receives.
pub const SCRATCH_PROPERTY: &str = "zfs-backup:scratch";
/// Marks a parent that a restore made, until the restore has ended. The value is the token.
pub(super) const PARENT_PROPERTY: &str = "zfs-backup:made-for-restore";

/// Limit of guids in a mark. ZFS keeps values of up to 8 KiB, and a guid takes 17 bytes. The mark
/// for a longer chain has no guids.
const GUIDS_PER_MARK: usize = 400;
const TOKEN_FLAG: &str = "token=";

/// A random number that identifies one restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreToken(u64);

impl RestoreToken {
    /// Makes a random token.
    ///
    /// # Errors
    /// [`RunError::NoRandomBytes`].
    pub(super) fn random() -> Result<Self, RunError> {
        Ok(Self(getrandom::u64()?))
    }

    fn parse(text: &str) -> Option<Self> {
        u64::from_str_radix(text, 16)
            .ok()
            .filter(|_| text.len() == 16)
            .map(Self)
    }
}

impl Display for RestoreToken {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{:016x}", self.0)
    }
}

/// The value of [`RESTORING_PROPERTY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The backup at the end of the chain.
    pub id: String,
    /// Whether the restore made the dataset, so that everything in it belongs to the restore.
    pub is_new: bool,
    /// Whether the restore set `readonly=on`.
    pub readonly: bool,
    /// Whether the dataset had its own `readonly=off` before.
    pub was_writable: bool,
    /// The token of the restore that made the mark; `None` if an older build made it.
    pub token: Option<RestoreToken>,
}

impl Begun {
    /// Reads the mark that was set on the dataset itself, not an inherited one.
    pub(in crate::run) fn of(dataset: &Dataset) -> Option<Self> {
        let text = own_text(dataset, RESTORING_PROPERTY)?;
        let (id, flags) = text.split_once(' ').unwrap_or((text, ""));
        let has = |flag: &str| flags.split(' ').any(|other| other == flag);
        let token = flags
            .split(' ')
            .find_map(|flag| RestoreToken::parse(flag.strip_prefix(TOKEN_FLAG)?));
        Some(Self {
            id: id.to_owned(),
            is_new: has("new"),
            readonly: has("readonly"),
            was_writable: has("writable"),
            token,
        })
    }

    fn to_text(&self) -> String {
        let flags = [
            (self.is_new, " new"),
            (self.readonly, " readonly"),
            (self.was_writable, " writable"),
        ];
        let flags: String = flags
            .iter()
            .filter(|(is_set, _)| *is_set)
            .map(|(_, flag)| *flag)
            .collect();
        let token = self
            .token
            .map(|token| format!(" {TOKEN_FLAG}{token}"))
            .unwrap_or_default();
        format!("{}{flags}{token}", self.id)
    }
}

/// The value of [`SCRATCH_PROPERTY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    token: RestoreToken,
    /// The guids of the snapshots that the drill receives; empty when they are too many for the
    /// mark.
    pub(in crate::run) guids: BTreeSet<Guid>,
}

impl Scratch {
    /// Reads the mark that was set on the dataset itself, not an inherited one.
    pub(in crate::run) fn of(dataset: &Dataset) -> Option<Self> {
        let mut words = own_text(dataset, SCRATCH_PROPERTY)?.split(' ');
        let token = RestoreToken::parse(words.next()?)?;
        Some(Self {
            token,
            guids: words.filter_map(|word| word.parse().ok()).collect(),
        })
    }

    fn to_text(&self) -> String {
        let guids: String = self.guids.iter().map(|guid| format!(" {guid}")).collect();
        format!("{}{guids}", self.token)
    }
}

/// The mark that a restore puts on its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RestoreMark {
    /// The mark of a restore that can be resumed.
    Restoring(Begun),
    /// The mark of a drill, which leaves nothing behind.
    Scratch(Scratch),
}

impl RestoreMark {
    /// Makes the mark of a scratch dataset that is going to receive this chain.
    pub(super) fn scratch(set: &RestoreSet) -> Result<Self, RunError> {
        let guids: BTreeSet<Guid> = set
            .backups
            .iter()
            .map(|backup| backup.manifest.snapshot.guid)
            .collect();
        let guids = if guids.len() <= GUIDS_PER_MARK {
            guids
        } else {
            BTreeSet::new()
        };
        Ok(Self::Scratch(Scratch {
            token: RestoreToken::random()?,
            guids,
        }))
    }

    /// Returns the mark as a property to set.
    pub(super) fn to_property(&self) -> (String, PropertyValue) {
        let (property, text) = match self {
            Self::Restoring(begun) => (RESTORING_PROPERTY, begun.to_text()),
            Self::Scratch(scratch) => (SCRATCH_PROPERTY, scratch.to_text()),
        };
        (property.to_owned(), PropertyValue::Text(text))
    }

    pub(super) fn token(&self) -> Option<RestoreToken> {
        match self {
            Self::Restoring(begun) => begun.token,
            Self::Scratch(scratch) => Some(scratch.token),
        }
    }

    /// Whether the dataset carries this mark's token.
    pub(super) fn is_on(&self, dataset: &Dataset) -> bool {
        let found = match self {
            Self::Restoring(_) => Begun::of(dataset).and_then(|begun| begun.token),
            Self::Scratch(_) => Scratch::of(dataset).map(|scratch| scratch.token),
        };
        found.is_some() && found == self.token()
    }

    /// Whether the restore makes the dataset, so that everything in it belongs to the restore.
    pub(super) fn is_of_new(&self) -> bool {
        match self {
            Self::Restoring(begun) => begun.is_new,
            Self::Scratch(_) => true,
        }
    }
}

/// Returns the properties with which a parent is made.
pub(super) fn parent_properties(token: Option<RestoreToken>) -> BTreeMap<String, PropertyValue> {
    let mut properties: BTreeMap<_, _> = [("canmount".to_owned(), PropertyValue::Number(0))].into();
    properties.extend(token.map(|token| {
        (
            PARENT_PROPERTY.to_owned(),
            PropertyValue::Text(token.to_string()),
        )
    }));
    properties
}

/// Whether the restore with this token made the parent, and the parent has had no other use since.
pub(super) fn is_made_parent(dataset: &Dataset, token: Option<RestoreToken>) -> bool {
    let marked = own_text(dataset, PARENT_PROPERTY).and_then(RestoreToken::parse);
    let is_kept_away =
        own(dataset, "canmount").is_some_and(|property| property.value == PropertyValue::Number(0));
    marked.is_some() && marked == token && is_kept_away
}

/// Returns a property that was set on the dataset itself.
pub(super) fn own<'a>(dataset: &'a Dataset, property: &str) -> Option<&'a Property> {
    dataset
        .properties
        .get(property)
        .filter(|property| property.source.as_deref() == Some(dataset.name.as_str()))
}

fn own_text<'a>(dataset: &'a Dataset, property: &str) -> Option<&'a str> {
    match &own(dataset, property)?.value {
        PropertyValue::Text(text) => Some(text),
        PropertyValue::Number(_) => None,
    }
}

/// Returns why a dataset is no source of backups: it is the scratch dataset of a drill, or half
/// restored. `None` for any other dataset.
pub fn is_makeshift(dataset: &Dataset) -> Option<String> {
    let name = &dataset.name;
    if Scratch::of(dataset).is_some() {
        return Some(format!("{name} is the scratch dataset of a drill"));
    }
    Begun::of(dataset)
        .map(|begun| format!("{name} is half restored, on the way to backup {}", begun.id))
}

/// Returns what an interrupted restore, a drill or another receive has left on a dataset, and the
/// remedy for a person.
///
/// # Errors
/// [`RunError::Zfs`] when the dataset's state cannot be read.
pub fn left_half(dataset: &Dataset) -> Result<Option<(String, String)>, RunError> {
    let quoted = shell_words::quote(dataset.name.as_str());
    let token = dataset.resume_token()?;
    Ok(match (is_makeshift(dataset), token) {
        (Some(what), _) if Scratch::of(dataset).is_some() => Some((
            what,
            format!(
                "the next drill destroys it, once the drill that made it has ended: zfs destroy -r {quoted}"
            ),
        )),
        (Some(what), _) => Some((
            what,
            format!("the same restore into {quoted} resumes it; with --restart it starts over"),
        )),
        (None, Some(token)) => Some((
            format!(
                "{} has an interrupted receive of {}",
                dataset.name, token.to_name
            ),
            format!("resume the receive, or abandon it: zfs receive -A {quoted}"),
        )),
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zfs::DatasetType;

    fn dataset(property: &str, text: &str, source: &str) -> Dataset {
        let property_value = Property {
            value: PropertyValue::Text(text.to_owned()),
            source: Some(source.to_owned()),
        };
        Dataset {
            name: "tank/x".parse().unwrap(),
            guid: Guid(1),
            dataset_type: DatasetType::Filesystem,
            encrypted: false,
            key_unavailable: false,
            origin: None,
            inconsistent: false,
            redacted: false,
            properties: [(property.to_owned(), property_value)].into(),
        }
    }

    #[test]
    fn restore_marks_round_trip_and_count_only_on_the_dataset_itself() {
        for (is_new, readonly, was_writable) in [
            (true, true, false),
            (false, true, true),
            (false, false, false),
        ] {
            let token = Some(RestoreToken::random().unwrap());
            let begun = Begun {
                id: "an-id".into(),
                is_new,
                readonly,
                was_writable,
                token,
            };
            let mark = RestoreMark::Restoring(begun.clone());
            let (property, PropertyValue::Text(text)) = mark.to_property() else {
                panic!("a text")
            };
            assert_eq!(Begun::of(&dataset(&property, &text, "tank/x")), Some(begun));
            assert!(mark.is_on(&dataset(&property, &text, "tank/x")));
            for elsewhere in ["tank", "$recvd"] {
                assert!(
                    !mark.is_on(&dataset(&property, &text, elsewhere)),
                    "{elsewhere}"
                );
            }
        }
        let guids: BTreeSet<Guid> = [Guid(7), Guid(u64::MAX)].into();
        let scratch = Scratch {
            token: RestoreToken(9),
            guids,
        };
        assert_eq!(
            Scratch::of(&dataset(SCRATCH_PROPERTY, &scratch.to_text(), "tank/x")),
            Some(scratch)
        );
    }

    #[test]
    fn restore_mark_without_a_token_matches_no_restore() {
        let old = dataset(RESTORING_PROPERTY, "an-id new readonly", "tank/x");
        let begun = Begun::of(&old).unwrap();
        assert_eq!(
            (begun.is_new, begun.readonly, begun.token),
            (true, true, None)
        );
        assert!(
            !RestoreMark::Restoring(begun).is_on(&old),
            "no token equals no token"
        );
    }
}
