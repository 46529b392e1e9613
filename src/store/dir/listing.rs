//! Lists a directory store: objects, and the temporary files of dead writers. Everything here
//! blocks.

use super::folder::{Folder, PathError, Root};
use super::temp::TempName;
use crate::store::folders::Folders;
use crate::store::pages::check_count;
use crate::store::{ListedObject, ObjectKey, StoreErrorKind, UnfinishedUpload};
use jiff::Timestamp;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat, flock, openat};
use rustix::io::Errno;

/// A folder that mkfs creates in the root of ext file systems and only root can read; no dataset
/// can have this name.
const LOST_AND_FOUND: &str = "lost+found";

/// Lists all objects whose key begins with `prefix`, sorted. An unreadable folder fails the whole
/// listing.
pub(super) fn list_objects(root: &Root, prefix: &str) -> Result<Vec<ListedObject>, PathError> {
    let mut objects = Vec::new();
    walk(root, prefix, &mut |folder, key, name| {
        if TempName::parse(name).is_none()
            && let Some(stat) = folder.stat(name)?
        {
            let bytes = u64::try_from(stat.st_size).unwrap_or(0);
            objects.push(ListedObject {
                key: key.to_owned(),
                bytes,
                modified_at: modified_at(&stat),
            });
            let too_many = |text| PathError::of_kind(StoreErrorKind::Corrupt, root.path(), text);
            check_count(objects.len()).map_err(too_many)?;
        }
        Ok(())
    })?;
    objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(objects)
}

/// Lists the folders of keys below `prefix`, without those that contain no object.
pub(super) fn list_folders(
    root: &Root,
    prefix: &str,
    delimiter: char,
) -> Result<Vec<String>, PathError> {
    let mut found = Folders::new(prefix, delimiter);
    let (above, name_prefix) = split_prefix(prefix);
    if let Some(folder) = find_folder(root, prefix)? {
        cut_folder(root, &folder, above, name_prefix, &mut found)?;
    }
    Ok(found.into_vec())
}

/// Adds the folders of all keys below `folder`, and enters only folders whose own name does not
/// have the delimiter.
fn cut_folder(
    root: &Root,
    folder: &Folder,
    above: &str,
    name_prefix: &str,
    found: &mut Folders<'_>,
) -> Result<(), PathError> {
    for (name, kind) in folder.names()? {
        if !name.starts_with(name_prefix) || (above.is_empty() && name == LOST_AND_FOUND) {
            continue;
        }
        let key = format!("{above}{name}");
        match settle_kind(folder, &name, kind)? {
            None => {}
            Some(FileType::RegularFile) if TempName::parse(&name).is_some() => {}
            Some(FileType::RegularFile) => add_folder(root, found, &key)?,
            Some(FileType::Directory) => {
                let inside = format!("{key}/");
                let is_known = found
                    .folder_of(&inside)
                    .map(|folder| found.contains(folder));
                if is_known == Some(true) {
                    continue;
                }
                let Some(below) = folder.enter(&name)? else {
                    continue;
                };
                if is_known.is_none() {
                    cut_folder(root, &below, &inside, "", found)?;
                } else if has_object(&below)? {
                    add_folder(root, found, &inside)?;
                }
            }
            Some(_) => return Err(neither_file_nor_folder(folder, &name)),
        }
    }
    Ok(())
}

fn add_folder(root: &Root, found: &mut Folders<'_>, key: &str) -> Result<(), PathError> {
    let too_many = |text| PathError::of_kind(StoreErrorKind::Corrupt, root.path(), text);
    found.add_key(key).map_err(too_many)
}

/// Whether there is an object in the folder or below it.
fn has_object(folder: &Folder) -> Result<bool, PathError> {
    for (name, kind) in folder.names()? {
        let has_object = match settle_kind(folder, &name, kind)? {
            None => false,
            Some(FileType::RegularFile) => TempName::parse(&name).is_none(),
            Some(FileType::Directory) => match folder.enter(&name)? {
                Some(below) => has_object(&below)?,
                None => false,
            },
            Some(_) => return Err(neither_file_nor_folder(folder, &name)),
        };
        if has_object {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lists the temporary files of dead writers, for keys that begin with `prefix`.
pub(super) fn list_unfinished(
    root: &Root,
    prefix: &str,
) -> Result<Vec<UnfinishedUpload>, PathError> {
    let mut uploads = Vec::new();
    let (folders, _) = split_prefix(prefix);
    // Temporary names do not begin with the object's name, so the whole folder is read.
    walk(root, folders, &mut |folder, key, name| {
        let Some(temp) = TempName::parse(name) else {
            return Ok(());
        };
        let key = format!("{}{}", &key[..key.len() - name.len()], temp.object);
        if key.starts_with(prefix)
            && !has_living_writer(folder, name)?
            && let Some(stat) = folder.stat(name)?
        {
            let started_at = modified_at(&stat);
            uploads.push(UnfinishedUpload {
                key,
                upload_id: name.to_owned(),
                started_at,
            });
        }
        Ok(())
    })?;
    uploads.sort_unstable_by(|a, b| (&a.key, &a.upload_id).cmp(&(&b.key, &b.upload_id)));
    Ok(uploads)
}

/// Splits a prefix after its last slash.
fn split_prefix(prefix: &str) -> (&str, &str) {
    prefix.split_at(prefix.rfind('/').map_or(0, |slash| slash + 1))
}

type Visit<'a> = &'a mut dyn FnMut(&Folder, &str, &str) -> Result<(), PathError>;

/// Visits every file whose key begins with `prefix`, as (folder, key, name).
fn walk(root: &Root, prefix: &str, visit: Visit<'_>) -> Result<(), PathError> {
    let (folders, name_prefix) = split_prefix(prefix);
    match find_folder(root, prefix)? {
        Some(folder) => walk_folder(&folder, folders, name_prefix, visit),
        None => Ok(()),
    }
}

/// Opens the folder that a prefix names; `None` if it does not exist.
fn find_folder(root: &Root, prefix: &str) -> Result<Option<Folder>, PathError> {
    let (folders, _) = split_prefix(prefix);
    let components: Vec<&str> = folders.split_terminator('/').collect();
    if !folders.is_empty() && ObjectKey::listed(folders.trim_end_matches('/')).is_none() {
        let text = format!("{prefix:?} is not a prefix of any key");
        return Err(PathError::of_kind(
            StoreErrorKind::Invalid,
            root.path(),
            text,
        ));
    }
    root.find(&components)
}

fn walk_folder(
    folder: &Folder,
    above: &str,
    name_prefix: &str,
    visit: Visit<'_>,
) -> Result<(), PathError> {
    for (name, kind) in folder.names()? {
        if !name.starts_with(name_prefix) || (above.is_empty() && name == LOST_AND_FOUND) {
            continue;
        }
        let key = format!("{above}{name}");
        match settle_kind(folder, &name, kind)? {
            None => {}
            Some(FileType::RegularFile) => visit(folder, &key, &name)?,
            Some(FileType::Directory) => {
                // A folder that vanished during the listing was empty.
                if let Some(below) = folder.enter(&name)? {
                    walk_folder(&below, &format!("{key}/"), "", visit)?;
                }
            }
            Some(_) => return Err(neither_file_nor_folder(folder, &name)),
        }
    }
    Ok(())
}

fn neither_file_nor_folder(folder: &Folder, name: &str) -> PathError {
    let text = "it is neither a file nor a folder, so the listing would lack its content";
    PathError::of_kind(StoreErrorKind::Invalid, folder.path_of(name), text)
}

/// Returns the type of `name`, from `stat` if the folder did not report it; `None` if it no longer
/// exists.
fn settle_kind(folder: &Folder, name: &str, kind: FileType) -> Result<Option<FileType>, PathError> {
    match kind {
        FileType::Unknown => Ok(folder
            .stat(name)?
            .map(|stat| FileType::from_raw_mode(stat.st_mode))),
        known => Ok(Some(known)),
    }
}

/// Whether a process holds the lock that every writer takes on its temporary file. If locks do not
/// work, every writer looks dead, and the caller decides by the age of the file.
fn has_living_writer(folder: &Folder, name: &str) -> Result<bool, PathError> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(&folder.fd, name, flags, Mode::empty()) {
        Ok(fd) => {
            Ok(flock(&fd, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK))
        }
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::ROFS) => Ok(false),
        Err(error) => Err(PathError::new(folder.path_of(name), error)),
    }
}

fn modified_at(stat: &Stat) -> Option<Timestamp> {
    let nanoseconds = i32::try_from(stat.st_mtime_nsec).ok()?;
    Timestamp::new(stat.st_mtime, nanoseconds).ok()
}
