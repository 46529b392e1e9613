//! Names of datasets, snapshots and bookmarks, by the rules of OpenZFS (zfs(8), `zfs_namecheck.c`).

use super::InvalidName;
use std::fmt;
use std::str::FromStr;

/// ZFS_MAX_DATASET_NAME_LEN counts the terminating zero, so the whole name has at most 255 bytes.
const NAME_BYTES_MAX: usize = 255;

/// A filesystem or volume: `pool/path`. The name never contains `@` or `#`, so that `DATASET/@` in
/// a store is unambiguous.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatasetName(String);

impl DatasetName {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the pool: the part before the first slash.
    pub fn pool(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// The dataset above this one, or `None` for a pool's root.
    pub fn parent(&self) -> Option<DatasetName> {
        self.0
            .rsplit_once('/')
            .map(|(parent, _)| DatasetName(parent.to_owned()))
    }

    /// Returns the name of the snapshot `short` of this dataset.
    ///
    /// # Errors
    /// [`InvalidName`] if the short name has a character that ZFS refuses, or if the whole name is
    /// too long.
    pub fn snapshot(&self, short: &str) -> Result<SnapshotName, InvalidName> {
        format!("{self}@{short}").parse()
    }

    /// Returns the name of the bookmark `short` of this dataset.
    ///
    /// # Errors
    /// [`InvalidName`] as for [`DatasetName::snapshot`].
    pub fn bookmark(&self, short: &str) -> Result<BookmarkName, InvalidName> {
        format!("{self}#{short}").parse()
    }
}

/// A snapshot: `pool/path@short`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName {
    dataset: DatasetName,
    short: String,
}

/// A bookmark: `pool/path#short`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BookmarkName {
    dataset: DatasetName,
    short: String,
}

impl SnapshotName {
    /// Returns the dataset of the snapshot.
    pub fn dataset(&self) -> &DatasetName {
        &self.dataset
    }

    /// The part after the `@`.
    pub fn short(&self) -> &str {
        &self.short
    }
}

impl BookmarkName {
    /// Returns the dataset of the bookmark.
    pub fn dataset(&self) -> &DatasetName {
        &self.dataset
    }

    /// The part after the `#`.
    pub fn short(&self) -> &str {
        &self.short
    }
}

fn is_component(text: &str) -> bool {
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b' ');
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(allowed)
}

fn parse_pair(
    text: &str,
    mark: char,
    what: &'static str,
) -> Result<(DatasetName, String), InvalidName> {
    let expected =
        "expected pool/path, the mark (@ or #), and a name of letters, digits, space and -_.: only";
    let invalid = || InvalidName::new(what, text, expected);
    let (dataset, short) = text.split_once(mark).ok_or_else(invalid)?;
    if text.len() > NAME_BYTES_MAX || !is_component(short) {
        return Err(invalid());
    }
    Ok((dataset.parse()?, short.to_owned()))
}

impl FromStr for DatasetName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic());
        if !starts_well || text.len() > NAME_BYTES_MAX || !text.split('/').all(is_component) {
            let expected =
                "expected pool/path of letters, digits, space and -_.: only, at most 255 bytes";
            return Err(InvalidName::new("dataset name", text, expected));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for SnapshotName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        parse_pair(text, '@', "snapshot name").map(|(dataset, short)| Self { dataset, short })
    }
}

impl FromStr for BookmarkName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        parse_pair(text, '#', "bookmark name").map(|(dataset, short)| Self { dataset, short })
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.dataset, self.short)
    }
}

impl fmt::Display for BookmarkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.dataset, self.short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_zfs_accepts_are_accepted() {
        for name in [
            "tank",
            "tank/a b/c",
            "p1/x-y_z.w:v",
            &format!("t/{}", "x".repeat(253)),
        ] {
            assert_eq!(
                name.parse::<DatasetName>()
                    .map(|n| n.to_string())
                    .as_deref(),
                Ok(name)
            );
        }
    }

    #[test]
    fn names_that_could_escape_or_confuse_are_refused() {
        for name in [
            "", "/", "tank/", "/tank", "tank//a", "tank/..", "tank/.", "tank@a", "tank#b", "tänk",
            "1tank", "t/%recv", "t\n",
        ] {
            assert!(name.parse::<DatasetName>().is_err(), "{name:?}");
        }
        for name in ["tank@", "tank@a@b", "tank", "tank@a/b", "@a", "tank#a"] {
            assert!(name.parse::<SnapshotName>().is_err(), "{name:?}");
        }
        assert!(
            format!("t/{}", "x".repeat(254))
                .parse::<DatasetName>()
                .is_err()
        );
    }

    #[test]
    fn a_pool_has_no_parent() {
        let name = |s: &str| s.parse::<DatasetName>().unwrap();
        assert_eq!(name("tank/a").parent(), Some(name("tank")));
        assert_eq!(name("tank").parent(), None);
    }
}
