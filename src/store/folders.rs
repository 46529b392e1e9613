//! [`Folders`]: the common beginnings of keys, for a listing that is cut at a delimiter. [`walk`]:
//! finds them where only the folders of one level can be listed.

use super::pages::check_count;
use std::collections::BTreeSet;

/// The delimiter of the levels of keys.
pub(super) const SLASH: char = '/';

/// The folders found so far below a prefix. Keys without the delimiter have no folder.
pub(super) struct Folders<'a> {
    prefix: &'a str,
    delimiter: char,
    found: BTreeSet<String>,
}

impl<'a> Folders<'a> {
    pub(super) fn new(prefix: &'a str, delimiter: char) -> Self {
        Self {
            prefix,
            delimiter,
            found: BTreeSet::new(),
        }
    }

    /// Returns the folder of a key: its beginning up to and with the first delimiter behind the
    /// prefix. `None` for a key without one.
    pub(super) fn folder_of<'k>(&self, key: &'k str) -> Option<&'k str> {
        let rest = key.strip_prefix(self.prefix)?;
        let at = rest.find(self.delimiter)?;
        Some(&key[..self.prefix.len() + at + self.delimiter.len_utf8()])
    }

    /// Whether the folder was found before.
    pub(super) fn contains(&self, folder: &str) -> bool {
        self.found.contains(folder)
    }

    /// Adds the folder of a key. Stores that ignore the delimiter list whole keys.
    ///
    /// # Errors
    /// A sentence, when there are more folders than this program can have caused.
    pub(super) fn add_key(&mut self, key: &str) -> Result<(), String> {
        if let Some(folder) = self.folder_of(key)
            && !self.found.contains(folder)
        {
            self.found.insert(folder.to_owned());
        }
        check_count(self.found.len())
    }

    /// Adds a folder that the store named. Returns false for a text that is no such folder: the
    /// store then does not know this delimiter.
    pub(super) fn add_named(&mut self, folder: &str) -> bool {
        let is_folder = self.folder_of(folder) == Some(folder);
        if is_folder {
            self.found.insert(folder.to_owned());
        }
        is_folder
    }

    /// Returns the folders in order.
    pub(super) fn into_vec(self) -> Vec<String> {
        self.found.into_iter().collect()
    }
}

/// The keys and folders directly below one folder.
#[derive(Debug, Default)]
pub(super) struct Level {
    /// The folders, with the slash at the end.
    pub(super) folders: Vec<String>,
    /// The keys of objects.
    pub(super) keys: Vec<String>,
}

/// Finds the folders below `prefix` by listing level after level, without entering a folder that is
/// found. `list` returns the level of a folder, which is empty or ends with a slash.
pub(super) async fn walk<E, F>(
    mut folders: Folders<'_>,
    list: impl Fn(String) -> F,
    too_many: impl Fn(String) -> E,
) -> Result<Vec<String>, E>
where
    F: Future<Output = Result<Level, E>>,
{
    let start = folders.prefix.rfind(SLASH).map_or(0, |slash| slash + 1);
    let prefix = folders.prefix;
    let mut waiting = vec![prefix[..start].to_owned()];
    while let Some(folder) = waiting.pop() {
        let level = list(folder).await?;
        for below in level.folders {
            if folders.folder_of(&below).is_some() {
                folders.add_key(&below).map_err(&too_many)?;
            } else if below.starts_with(prefix) {
                waiting.push(below);
            }
        }
        for key in level.keys {
            folders.add_key(&key).map_err(&too_many)?;
        }
    }
    Ok(folders.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_cut_behind_the_first_delimiter_after_the_prefix() {
        for (prefix, delimiter, key, folder) in [
            ("", '@', "tank/@a/x", Some("tank/@")),
            ("", '@', "tank/a/@a/@b", Some("tank/a/@")),
            ("", '@', "@zfs-backup/store-id", Some("@")),
            ("", '@', "readme", None),
            ("tank/@", '/', "tank/@a/x", Some("tank/@a/")),
            ("tank/@", '/', "tank/@a", None),
            ("tank/@", '/', "tank/a/@a/x", None),
        ] {
            let mut folders = Folders::new(prefix, delimiter);
            assert_eq!(folders.folder_of(key), folder, "{key}");
            folders.add_key(key).unwrap();
            assert_eq!(folders.into_vec(), Vec::from_iter(folder), "{key}");
        }
    }

    #[test]
    fn folder_of_another_delimiter_or_prefix_is_not_accepted() {
        let mut folders = Folders::new("tank/", '@');
        for (folder, accepted) in [
            ("tank/a/@", true),
            ("tank/a/", false),
            ("tank/a/@b/", false),
            ("pool/@", false),
            ("tank/", false),
        ] {
            assert_eq!(folders.add_named(folder), accepted, "{folder}");
        }
    }

    #[tokio::test]
    async fn walk_enters_no_folder_that_is_found() {
        let list = |folder: String| async move {
            let (folders, keys): (&[&str], &[&str]) = match folder.as_str() {
                "" => (&["@zfs-backup/", "tank/"], &["readme", "odd@name"]),
                "tank/" => (&["tank/@a/", "tank/@b/", "tank/a/"], &[]),
                "tank/a/" => (&["tank/a/@c/"], &["tank/a/x"]),
                other => return Err(format!("{other:?} was listed")),
            };
            let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            Ok(Level {
                folders: owned(folders),
                keys: owned(keys),
            })
        };
        let found = walk(Folders::new("", '@'), list, |text| text).await;
        assert_eq!(found.unwrap(), ["@", "odd@", "tank/@", "tank/a/@"]);
        let found = walk(Folders::new("tank/a/@", '/'), list, |text| text).await;
        assert_eq!(found.unwrap(), ["tank/a/@c/"]);
    }
}
