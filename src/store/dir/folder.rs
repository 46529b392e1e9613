//! [`Root`]: the folder of a directory store. Folders below it are opened one component at a time
//! and never through a symbolic link. Everything here blocks.

use crate::store::{ObjectKey, StoreErrorKind};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, fstat, fsync, mkdirat, openat, statat, unlinkat,
};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The mode of new folders: access for the owner only.
const FOLDER_MODE: Mode = Mode::RWXU;
/// The maximum number of retries after a folder vanished, because another process deleted its last
/// object.
const VANISHED_TRIES_MAX: u32 = 3;

/// A failure at one path.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub(super) struct PathError {
    pub(super) kind: StoreErrorKind,
    pub(super) path: PathBuf,
    #[source]
    pub(super) source: io::Error,
}

impl PathError {
    pub(super) fn new(path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self {
            kind: kind_of(&source),
            path: path.into(),
            source,
        }
    }

    pub(super) fn of_kind(
        kind: StoreErrorKind,
        path: impl Into<PathBuf>,
        text: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            path: path.into(),
            source: io::Error::other(text.into()),
        }
    }
}

/// Returns the kind of a file system error.
fn kind_of(error: &io::Error) -> StoreErrorKind {
    use io::ErrorKind as Io;
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
        return StoreErrorKind::Invalid;
    }
    match error.kind() {
        Io::NotFound => StoreErrorKind::NotFound,
        Io::AlreadyExists => StoreErrorKind::AlreadyExists,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => StoreErrorKind::Denied,
        Io::StorageFull | Io::QuotaExceeded => StoreErrorKind::Full,
        Io::UnexpectedEof => StoreErrorKind::Corrupt,
        Io::NotADirectory | Io::IsADirectory | Io::InvalidFilename | Io::FileTooLarge => {
            StoreErrorKind::Invalid
        }
        Io::Unsupported => StoreErrorKind::Unsupported,
        _ => StoreErrorKind::Unavailable,
    }
}

/// The root folder, identified by device and inode, so that an unmounted disk is detected and does
/// not look empty.
pub(super) struct Root {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// An open folder below the root, and its path for messages.
pub(super) struct Folder {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

/// The folder part and the last component of a key.
pub(super) fn split_key(key: &ObjectKey) -> (Vec<&str>, &str) {
    match key.as_str().rsplit_once('/') {
        Some((folders, name)) => (folders.split('/').collect(), name),
        None => (Vec::new(), key.as_str()),
    }
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, PathError> {
        let fd = open_path(path)?;
        let stat = fstat(&fd).map_err(|error| PathError::new(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the root again, and fails if the path now leads to another folder or to none. A folder
    /// that is gone is [`StoreErrorKind::Unavailable`]: its objects are not known to be missing.
    pub(super) fn folder(&self) -> Result<Folder, PathError> {
        let fd = open_path(&self.path).map_err(|error| match error.kind {
            StoreErrorKind::NotFound => {
                let text =
                    "the folder is gone: was its file system unmounted, or the folder moved?";
                PathError::of_kind(StoreErrorKind::Unavailable, &self.path, text)
            }
            _ => error,
        })?;
        let stat = fstat(&fd).map_err(|error| PathError::new(&self.path, error))?;
        if (stat.st_dev, stat.st_ino) != (self.device, self.inode) {
            let text =
                "it is no longer the folder that it was: was a file system mounted or unmounted?";
            return Err(PathError::of_kind(
                StoreErrorKind::Unavailable,
                &self.path,
                text,
            ));
        }
        Ok(Folder {
            fd,
            path: self.path.clone(),
        })
    }

    /// Opens the folder of these components. Returns `None` if it or a folder above it does not
    /// exist.
    pub(super) fn find(&self, components: &[&str]) -> Result<Option<Folder>, PathError> {
        let mut folder = self.folder()?;
        for component in components {
            match folder.enter(component)? {
                Some(below) => folder = below,
                None => return Ok(None),
            }
        }
        Ok(Some(folder))
    }

    /// Opens the folder of these components; missing folders are created and made durable.
    pub(super) fn make(&self, components: &[&str]) -> Result<Folder, PathError> {
        let mut tries_left = VANISHED_TRIES_MAX;
        loop {
            match self.try_make(components) {
                Err(error) if error.kind == StoreErrorKind::NotFound && tries_left > 1 => {
                    tries_left -= 1
                }
                made => return made,
            }
        }
    }

    fn try_make(&self, components: &[&str]) -> Result<Folder, PathError> {
        let mut folder = self.folder()?;
        for component in components {
            folder = match folder.enter(component)? {
                Some(below) => below,
                None => folder.make(component)?,
            };
        }
        Ok(folder)
    }

    /// Removes the folders of these components, starting with the last, while they are empty and
    /// hold backups: their names begin with `@`. Other folders may have been created by hand for
    /// datasets, and are kept.
    pub(super) fn remove_empty(&self, components: &[&str]) {
        for depth in (1..=components.len()).rev() {
            let name = components[depth - 1];
            let Ok(Some(above)) = self.find(&components[..depth - 1]) else {
                return;
            };
            if !name.starts_with('@') || unlinkat(&above.fd, name, AtFlags::REMOVEDIR).is_err() {
                return;
            }
        }
    }
}

impl Folder {
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens the folder `name` in this one. Returns `None` if it does not exist.
    pub(super) fn enter(&self, name: &str) -> Result<Option<Folder>, PathError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Folder {
                fd,
                path: self.path_of(name),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let text =
                    "it is not a folder (symbolic links are not followed below the store's folder)";
                Err(PathError::of_kind(
                    StoreErrorKind::Invalid,
                    self.path_of(name),
                    text,
                ))
            }
            Err(error) => Err(PathError::new(self.path_of(name), error)),
        }
    }

    fn make(&self, name: &str) -> Result<Folder, PathError> {
        match mkdirat(&self.fd, name, FOLDER_MODE) {
            Ok(()) => self.sync()?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(PathError::new(self.path_of(name), error)),
        }
        self.enter(name)?
            .ok_or_else(|| PathError::new(self.path_of(name), Errno::NOENT))
    }

    /// Makes names in this folder durable. Some network file systems cannot and need not: their
    /// error is ignored.
    pub(super) fn sync(&self) -> Result<(), PathError> {
        match fsync(&self.fd) {
            Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(PathError::new(&self.path, error)),
        }
    }

    /// Returns size, kind and times of `name`, or `None` if it does not exist.
    pub(super) fn stat(&self, name: &str) -> Result<Option<rustix::fs::Stat>, PathError> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(PathError::new(self.path_of(name), error)),
        }
    }

    /// Removes the file `name`. Returns whether it existed.
    pub(super) fn remove(&self, name: &str) -> Result<bool, PathError> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(PathError::new(self.path_of(name), error)),
        }
    }

    /// Returns the names in this folder with their types as the file system reports them, in no
    /// order.
    pub(super) fn names(&self) -> Result<Vec<(String, FileType)>, PathError> {
        let failed = |error| PathError::new(&self.path, error);
        let mut names = Vec::new();
        for entry in Dir::read_from(self.fd.as_fd()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push((name, entry.file_type()));
            }
        }
        Ok(names)
    }
}

fn open_path(path: &Path) -> Result<OwnedFd, PathError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| PathError::new(path, error))
}
