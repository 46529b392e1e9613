//! [`TempFile`]: an object that is being written under a temporary name, and how it gets its final
//! name. Everything here blocks.
//!
//! The final name appears with all bytes behind it, or not at all, and never replaces another
//! object.

use super::folder::{Folder, PathError, Root};
use crate::store::StoreErrorKind;
use crate::store::work::random_u64;
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, linkat, openat, renameat,
    renameat_with,
};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::sleep;
use std::time::Duration;

const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const SUFFIX: &str = ".partial";
/// The tag of a claim file, in place of the nonce of other temporary names.
const CLAIM_TAG: &str = "claim";
/// The maximum number of attempts to take a claim. A claim is held for one check and one rename; an
/// older claim belongs to a dead process.
const CLAIM_TRIES_MAX: u32 = 40;
const CLAIM_PAUSE: Duration = Duration::from_millis(50);

/// The method by which a finished file gets its name without replacing another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CreateOnly {
    /// `renameat2` with `RENAME_NOREPLACE`: local file systems.
    Rename,
    /// `linkat`, then removal of the temporary name: NFS.
    Link,
    /// A claim file created with `O_EXCL`, a check, and a plain rename: mounts without the other
    /// two. The claim excludes other writers that use claims; it cannot exclude other programs.
    Claim,
}

/// The best method that the file system supports, determined when the first file gets its name.
pub(super) struct Naming(AtomicU8);

impl Naming {
    pub(super) fn from(first: CreateOnly) -> Self {
        Self(AtomicU8::new(first as u8))
    }

    fn current(&self) -> CreateOnly {
        match self.0.load(Ordering::Relaxed) {
            0 => CreateOnly::Rename,
            1 => CreateOnly::Link,
            _ => CreateOnly::Claim,
        }
    }

    fn step_down(&self, from: CreateOnly) {
        self.0.fetch_max(from as u8 + 1, Ordering::Relaxed);
    }
}

/// A parsed name of a temporary file: `.OBJECT.TAG.partial`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TempName<'a> {
    /// The name of the final object within its folder.
    pub(super) object: &'a str,
}

impl<'a> TempName<'a> {
    fn build(object: &str, tag: &str) -> String {
        format!(".{object}.{tag}{SUFFIX}")
    }

    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let (object, tag) = name
            .strip_prefix('.')?
            .strip_suffix(SUFFIX)?
            .rsplit_once('.')?;
        let nonce = tag.len() == 16 && tag.bytes().all(|b| b.is_ascii_hexdigit());
        (!object.is_empty() && (nonce || tag == CLAIM_TAG)).then_some(Self { object })
    }
}

/// A file without its final name. Dropping it leaves the file in place, as an unfinished upload.
pub(super) struct TempFile {
    folder: Folder,
    name: String,
    object: String,
    file: File,
}

impl TempFile {
    /// Creates an empty file in the final folder of the object, and the folder itself.
    pub(super) fn create(root: &Root, folders: &[&str], object: &str) -> Result<Self, PathError> {
        let folder = root.make(folders)?;
        let nonce = random_u64().map_err(|error| PathError::new(&folder.path, error))?;
        let name = TempName::build(object, &format!("{nonce:016x}"));
        let file = File::from(open_new(&folder, &name)?);
        // The lock distinguishes living writers from dead ones. If locks do not work, the age of
        // the file has to.
        let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(Self {
            folder,
            name,
            object: object.to_owned(),
            file,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), PathError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| self.failed(error))
    }

    /// Makes the bytes durable, gives the file its final name, makes that durable, and checks the
    /// final file.
    pub(super) fn publish(&self, naming: &Naming, bytes: u64) -> Result<(), PathError> {
        self.file.sync_all().map_err(|error| self.failed(error))?;
        self.take_name(naming)?;
        self.folder.sync()?;
        let found = self
            .folder
            .stat(&self.object)?
            .and_then(|stat| u64::try_from(stat.st_size).ok());
        if found == Some(bytes) {
            return Ok(());
        }
        let text = format!("{bytes} bytes were written, {found:?} are there");
        Err(PathError::of_kind(
            StoreErrorKind::Corrupt,
            self.folder.path_of(&self.object),
            text,
        ))
    }

    /// Removes the file if it still has its temporary name.
    pub(super) fn discard(&self) -> Result<(), PathError> {
        self.folder.remove(&self.name).map(|_| ())
    }

    fn take_name(&self, naming: &Naming) -> Result<(), PathError> {
        loop {
            let how = naming.current();
            let taken = match how {
                CreateOnly::Rename => {
                    let fd = &self.folder.fd;
                    let flags = RenameFlags::NOREPLACE;
                    renameat_with(fd, &self.name, fd, &self.object, flags)
                }
                CreateOnly::Link => self.link(),
                CreateOnly::Claim => return self.claim_and_rename(),
            };
            match taken {
                Ok(()) => return Ok(()),
                Err(
                    Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::MLINK,
                ) => {
                    naming.step_down(how);
                }
                Err(error) => return Err(PathError::new(self.folder.path_of(&self.object), error)),
            }
        }
    }

    fn link(&self) -> Result<(), Errno> {
        let fd = &self.folder.fd;
        match linkat(fd, &self.name, fd, &self.object, AtFlags::empty()) {
            // NFS: the first reply was lost and the request was repeated. Two links prove that it
            // succeeded.
            Err(Errno::EXIST) if fstat(&self.file)?.st_nlink == 2 => {}
            linked => linked?,
        }
        // The object is complete under its name. A remaining temporary name is an unfinished upload
        // and harmless.
        let _ = self.folder.remove(&self.name);
        Ok(())
    }

    fn claim_and_rename(&self) -> Result<(), PathError> {
        let claim = TempName::build(&self.object, CLAIM_TAG);
        self.take_claim(&claim)?;
        let renamed = match self.folder.stat(&self.object) {
            Ok(None) => renameat(&self.folder.fd, &self.name, &self.folder.fd, &self.object),
            Ok(Some(_)) => Err(Errno::EXIST),
            Err(error) => {
                let _ = self.folder.remove(&claim);
                return Err(error);
            }
        };
        let released = self.folder.remove(&claim);
        renamed.map_err(|error| PathError::new(self.folder.path_of(&self.object), error))?;
        released.map(|_| ())
    }

    fn take_claim(&self, claim: &str) -> Result<(), PathError> {
        for _ in 0..CLAIM_TRIES_MAX {
            match open_new(&self.folder, claim) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind == StoreErrorKind::AlreadyExists => sleep(CLAIM_PAUSE),
                Err(error) => return Err(error),
            }
        }
        let text = "another writer completes this object; if none runs, remove this file";
        Err(PathError::of_kind(
            StoreErrorKind::Unavailable,
            self.folder.path_of(claim),
            text,
        ))
    }

    fn failed(&self, error: io::Error) -> PathError {
        PathError::new(self.folder.path_of(&self.name), error)
    }
}

fn open_new(folder: &Folder, name: &str) -> Result<std::os::fd::OwnedFd, PathError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&folder.fd, name, flags, FILE_MODE)
        .map_err(|error| PathError::new(folder.path_of(name), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_file_names_parse_back_to_their_object() {
        for object in ["manifest.json", "00000000-0000abcd.zfs.age", ".x", "a b"] {
            for tag in ["0123456789abcdef", CLAIM_TAG] {
                let name = TempName::build(object, tag);
                assert_eq!(TempName::parse(&name), Some(TempName { object }), "{name}");
            }
        }
        for name in [
            "manifest.json",
            ".partial",
            ".a.partial",
            "..claim.partial",
            ".a.0123.partial",
        ] {
            assert_eq!(TempName::parse(name), None, "{name}");
        }
    }
}
