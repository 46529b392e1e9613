//! Decides which files can be trusted: a pure decision over the result of `fstat`, and the only
//! function that opens such files.
//!
//! A configuration names hooks that run as root and keys that open backups, so anyone who can
//! change it controls the host. The rule is that of OpenSSH's `StrictModes`: the file and every
//! folder above it belong to root or to the running user, and nobody else can write there. A sticky
//! folder such as `/tmp` may be writable by all, because only the owner can replace a file in it,
//! and the owner is checked. A file with a secret must not be readable by others. Access control
//! lists need no separate check: their mask shows in the group bits.

use rustix::fs::{Mode, OFlags};
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use zeroize::Zeroizing;

/// The demand on a file, in addition to being unchangeable by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// No additional demand.
    Unchangeable,
    /// Only the owner can read the file.
    Secret,
    /// A systemd credential. systemd grants the service's user access by an access control list,
    /// whose mask shows as group read permission (`exec-credential.c`); the folder around it is
    /// closed to others.
    Credential,
}

/// The facts about a file or folder from the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The user id of the owner.
    pub uid: u32,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
}

impl From<&Metadata> for Facts {
    fn from(metadata: &Metadata) -> Self {
        Self {
            uid: metadata.uid(),
            mode: metadata.mode(),
        }
    }
}

const TYPE_BITS: u32 = 0o170_000;
const TYPE_FILE: u32 = 0o100_000;
const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o022;

impl Facts {
    fn is_file(self) -> bool {
        self.mode & TYPE_BITS == TYPE_FILE
    }
}

/// The reason why a file or folder is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A folder, a pipe or a device.
    #[error("is not a regular file")]
    NotAFile,
    /// The owner is another user.
    #[error("belongs to user {0}, not to root or the running user")]
    Owner(u32),
    /// Other users could change the file.
    #[error("is writable by others (mode {:04o})", .0 & 0o7777)]
    Writable(u32),
    /// Other users could read the secret in the file.
    #[error("contains a secret and is readable by others (mode {:04o})", .0 & 0o7777)]
    Readable(u32),
}

/// Judges a file. Pure.
///
/// # Errors
/// The first [`Flaw`].
pub fn judge_file(facts: Facts, demand: Demand, running_uid: u32) -> Result<(), Flaw> {
    let readable_bits = match demand {
        Demand::Unchangeable => 0,
        Demand::Credential => 0o004,
        Demand::Secret => 0o044,
    };
    if !facts.is_file() {
        return Err(Flaw::NotAFile);
    }
    judge_owner(facts, running_uid)?;
    if facts.mode & OTHERS_WRITE != 0 {
        return Err(Flaw::Writable(facts.mode));
    }
    if facts.mode & readable_bits != 0 {
        return Err(Flaw::Readable(facts.mode));
    }
    Ok(())
}

/// Judges a folder in the path of a file. Pure.
///
/// # Errors
/// The first [`Flaw`].
pub fn judge_folder(facts: Facts, running_uid: u32) -> Result<(), Flaw> {
    judge_owner(facts, running_uid)?;
    if facts.mode & OTHERS_WRITE != 0 && facts.mode & STICKY == 0 {
        return Err(Flaw::Writable(facts.mode));
    }
    Ok(())
}

/// The rule for other users (besides root and the running user) who may write in a folder that the
/// program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderRule {
    /// No other user may write there, because others could create files under the names that the
    /// program reads.
    Closed,
    /// All users may write there if the folder is sticky, as in `/run/lock` and `/var/tmp`: the
    /// program creates its files there with `O_EXCL`, and checks existing ones.
    MayBeSticky,
}

/// Judges a folder that the program writes in, every folder above it, and every symbolic link in
/// its path, as OpenSSH judges the path to a file. If the folder does not exist yet, the nearest
/// existing folder above it is judged. Blocks.
///
/// # Errors
/// [`FileError::Distrusted`] naming the folder or the link; [`FileError::Io`] when one could not be
/// examined.
pub fn judge_place(path: &Path, rule: FolderRule, running_uid: u32) -> Result<(), FileError> {
    let absolute = std::path::absolute(path).map_err(FileError::io("find", path))?;
    let mut left = components_reversed(&absolute);
    let mut here = PathBuf::from("/");
    let mut links = 0;
    judge_folder(Facts::from(&stat(&here)?), running_uid).map_err(FileError::distrusted(&here))?;
    while let Some(component) = left.pop() {
        if component == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&component);
        let metadata = match stat(&next) {
            Err(error) if error.is_not_found() => return Ok(()),
            metadata => metadata?,
        };
        if metadata.is_symlink() {
            judge_owner(Facts::from(&metadata), running_uid)
                .map_err(FileError::distrusted(&next))?;
            links += 1;
            if links > LINKS_MAX {
                let too_many = io::ErrorKind::TooManyLinks.into();
                return Err(FileError::io("follow the links of", path)(too_many));
            }
            let failed = FileError::io("read the link", path);
            let target = next.read_link().map_err(failed)?;
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            left.extend(components_reversed(&target));
            continue;
        }
        let facts = Facts::from(&metadata);
        judge_folder(facts, running_uid).map_err(FileError::distrusted(&next))?;
        if left.is_empty() && rule == FolderRule::Closed && facts.mode & OTHERS_WRITE != 0 {
            return Err(FileError::distrusted(&next)(Flaw::Writable(facts.mode)));
        }
        here = next;
    }
    Ok(())
}

fn stat(path: &Path) -> Result<Metadata, FileError> {
    path.symlink_metadata().map_err(FileError::io("stat", path))
}

/// The maximum number of links in one path, as in the kernel.
const LINKS_MAX: u32 = 40;

/// Returns the components of a path, the last one first.
fn components_reversed(path: &Path) -> Vec<OsString> {
    let names = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names
        .rev()
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

fn judge_owner(facts: Facts, running_uid: u32) -> Result<(), Flaw> {
    if facts.uid == 0 || facts.uid == running_uid {
        Ok(())
    } else {
        Err(Flaw::Owner(facts.uid))
    }
}

/// A file that could not be opened or is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// The attempted operation.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is not trusted.
    #[error("{} {flaw}", path.display())]
    Distrusted {
        /// The file, or a folder above it.
        path: PathBuf,
        /// The reason why it is not trusted.
        flaw: Flaw,
    },
    /// The file is larger than such a file ever is.
    #[error("{} is larger than {bytes_max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        bytes_max: u64,
    },
}

impl FileError {
    fn io(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    fn distrusted(path: &Path) -> impl Fn(Flaw) -> Self {
        move |flaw| Self::Distrusted {
            path: path.to_owned(),
            flaw,
        }
    }

    /// Whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Returns the command that repairs the file's owner or mode, if there is one.
    pub fn hint(&self) -> Option<String> {
        let Self::Distrusted { path, flaw } = self else {
            return None;
        };
        let path = path.display().to_string();
        let quoted = shell_words::quote(&path);
        match flaw {
            Flaw::NotAFile => None,
            Flaw::Owner(_) => Some(format!(
                "run `chown root {quoted}` once you know that its content is yours"
            )),
            Flaw::Writable(_) => Some(format!("run `chmod go-w {quoted}`")),
            Flaw::Readable(_) => Some(format!("run `chmod 600 {quoted}`")),
        }
    }

    /// Returns [`FileError::hint`] for a folder of backups. Root may be unable to own or change
    /// such a folder, as on NFS with `root_squash`.
    pub fn hint_for_backups(&self) -> Option<String> {
        let hint = self.hint()?;
        let Self::Distrusted { flaw, .. } = self else {
            return Some(hint);
        };
        Some(match flaw {
            Flaw::Owner(uid) => format!(
                "{hint}; where that is not permitted, as on NFS with root_squash: run zfs-backup as user {uid}, with the \
                 rights of `zfs allow` that `zfs-backup doctor` lists, or export the folder with no_root_squash"
            ),
            Flaw::Writable(_) => format!(
                "{hint}; where that is not permitted, as on NFS with root_squash: run it on the server"
            ),
            Flaw::NotAFile | Flaw::Readable(_) => hint,
        })
    }
}

/// Opens a file that meets the demand. The opened descriptor is judged, so that the file cannot be
/// exchanged in between. The folders are judged on the resolved path, and again on the given path
/// if that is a link.
///
/// # Errors
/// [`FileError`] when the file cannot be opened or is not trusted.
pub fn open_trusted(
    path: &Path,
    demand: Demand,
    running_uid: u32,
) -> Result<(File, Facts), FileError> {
    judge_link(path, running_uid)?;
    let failed = FileError::io("open", path);
    let resolved = path.canonicalize().map_err(&failed)?;
    judge_folders_above(&resolved, running_uid)?;
    // NOFOLLOW: the path is resolved, so a link that appears now is an attack. NONBLOCK: opening a
    // pipe must not hang.
    let flags =
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(&resolved, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| failed(errno.into()))?;
    let metadata = file.metadata().map_err(FileError::io("fstat", path))?;
    let facts = Facts::from(&metadata);
    judge_file(facts, demand, running_uid).map_err(FileError::distrusted(path))?;
    Ok((file, facts))
}

/// Reads a trusted file completely. Blocks.
///
/// # Errors
/// [`FileError`] as for [`open_trusted`], and for a file larger than `bytes_max`.
pub fn read_trusted(
    path: &Path,
    demand: Demand,
    running_uid: u32,
    bytes_max: u64,
) -> Result<(Zeroizing<Vec<u8>>, Facts), FileError> {
    let (file, facts) = open_trusted(path, demand, running_uid)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(FileError::io("read", path))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > bytes_max) {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            bytes_max,
        });
    }
    Ok((bytes, facts))
}

/// Judges a link. In a folder where others can write the link must belong to root or to the running
/// user; otherwise it could be redirected to another file.
fn judge_link(path: &Path, running_uid: u32) -> Result<(), FileError> {
    let failed = FileError::io("open", path);
    let metadata = path.symlink_metadata().map_err(&failed)?;
    if !metadata.is_symlink() {
        return Ok(());
    }
    let absolute = std::path::absolute(path).map_err(&failed)?;
    let parent = absolute.parent().unwrap_or(&absolute);
    let parent = parent.canonicalize().map_err(&failed)?;
    judge_folders_above(&parent.join("link"), running_uid)?;
    judge_owner(Facts::from(&metadata), running_uid).map_err(FileError::distrusted(path))
}

fn judge_folders_above(resolved: &Path, running_uid: u32) -> Result<(), FileError> {
    for folder in resolved.ancestors().skip(1) {
        judge_folder(Facts::from(&stat(folder)?), running_uid)
            .map_err(FileError::distrusted(folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    const ME: u32 = 1000;

    #[test]
    fn the_hint_for_a_folder_of_backups_covers_root_squash() {
        let error = |flaw| FileError::Distrusted {
            path: "/mnt/nas b".into(),
            flaw,
        };
        let foreign = error(Flaw::Owner(65534)).hint_for_backups().unwrap();
        for part in [
            "chown root '/mnt/nas b'",
            "root_squash: run zfs-backup as user 65534",
            "no_root_squash",
        ] {
            assert!(foreign.contains(part), "{foreign}");
        }
        let open = error(Flaw::Writable(0o40777)).hint_for_backups().unwrap();
        assert!(
            open.contains("chmod go-w '/mnt/nas b'") && open.contains("on the server"),
            "{open}"
        );
        let missing = FileError::Io {
            operation: "stat",
            path: "/mnt".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        assert_eq!(missing.hint_for_backups(), None);
    }

    #[test]
    fn a_file_is_trusted_when_only_root_and_the_user_can_change_it() {
        use Demand::{Credential, Secret, Unchangeable};
        for (uid, mode, demand, verdict) in [
            (ME, 0o100_644, Unchangeable, Ok(())),
            (0, 0o100_644, Unchangeable, Ok(())),
            (ME, 0o100_600, Secret, Ok(())),
            (0, 0o100_400, Secret, Ok(())),
            (0, 0o100_440, Credential, Ok(())),
            (1001, 0o100_600, Unchangeable, Err(Flaw::Owner(1001))),
            (ME, 0o100_664, Unchangeable, Err(Flaw::Writable(0o100_664))),
            (ME, 0o100_602, Unchangeable, Err(Flaw::Writable(0o100_602))),
            (ME, 0o100_640, Secret, Err(Flaw::Readable(0o100_640))),
            (ME, 0o100_604, Secret, Err(Flaw::Readable(0o100_604))),
            (0, 0o100_444, Credential, Err(Flaw::Readable(0o100_444))),
            (ME, 0o040_700, Unchangeable, Err(Flaw::NotAFile)),
            (ME, 0o010_600, Unchangeable, Err(Flaw::NotAFile)),
        ] {
            assert_eq!(
                judge_file(Facts { uid, mode }, demand, ME),
                verdict,
                "{uid} {mode:o} {demand:?}"
            );
        }
    }

    #[test]
    fn folder_writable_by_all_is_trusted_only_if_sticky() {
        for (uid, mode, verdict) in [
            (0, 0o040_755, Ok(())),
            (ME, 0o040_700, Ok(())),
            (0, 0o041_777, Ok(())),
            (0, 0o040_777, Err(Flaw::Writable(0o040_777))),
            (ME, 0o040_775, Err(Flaw::Writable(0o040_775))),
            (1001, 0o040_755, Err(Flaw::Owner(1001))),
            (1001, 0o041_777, Err(Flaw::Owner(1001))),
        ] {
            assert_eq!(
                judge_folder(Facts { uid, mode }, ME),
                verdict,
                "{uid} {mode:o}"
            );
        }
    }

    fn uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn write(path: &Path, mode: u32) {
        fs::write(path, "content").unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn flaw(path: &Path, demand: Demand) -> Option<Flaw> {
        match read_trusted(path, demand, uid(), 64) {
            Err(FileError::Distrusted { flaw, .. }) => Some(flaw),
            Ok(_) => None,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn real_files_are_judged_by_their_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for (mode, demand, expected) in [
            (0o644, Demand::Unchangeable, None),
            (0o600, Demand::Secret, None),
            (0o644, Demand::Secret, Some(Flaw::Readable(0o100_644))),
            (0o666, Demand::Unchangeable, Some(Flaw::Writable(0o100_666))),
        ] {
            write(&file, mode);
            assert_eq!(flaw(&file, demand), expected, "{mode:o}");
        }
        assert_eq!(
            flaw(folder.path(), Demand::Unchangeable),
            Some(Flaw::NotAFile)
        );
    }

    #[test]
    fn an_open_folder_anywhere_above_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (open, inner) = (folder.path().join("open"), folder.path().join("open/inner"));
        fs::create_dir_all(&inner).unwrap();
        write(&inner.join("file"), 0o600);
        for (mode, refused) in [
            (0o755, false),
            (0o777, true),
            (0o775, true),
            (0o1777, false),
        ] {
            fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
            let outcome = open_trusted(&inner.join("file"), Demand::Secret, uid());
            match outcome {
                Err(error @ FileError::Distrusted { .. }) => {
                    assert!(refused, "{mode:o}: {error}");
                    let open = open.canonicalize().unwrap();
                    assert_eq!(
                        error.hint(),
                        Some(format!("run `chmod go-w {}`", open.display()))
                    );
                }
                Ok(_) => assert!(!refused, "{mode:o}"),
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_link_is_trusted_like_its_folder_and_its_target() {
        let folder = tempfile::tempdir().unwrap();
        let (open, closed) = (folder.path().join("open"), folder.path().join("closed"));
        fs::create_dir(&open).unwrap();
        fs::create_dir(&closed).unwrap();
        write(&closed.join("file"), 0o644);
        symlink(closed.join("file"), open.join("link")).unwrap();
        assert_eq!(flaw(&open.join("link"), Demand::Unchangeable), None);
        assert!(matches!(
            flaw(&open.join("link"), Demand::Secret),
            Some(Flaw::Readable(_))
        ));
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            flaw(&open.join("link"), Demand::Unchangeable),
            Some(Flaw::Writable(_))
        ));
    }

    fn folder_flaw(path: &Path, rule: FolderRule) -> Option<(PathBuf, Flaw)> {
        match judge_place(path, rule, uid()) {
            Err(FileError::Distrusted { path, flaw }) => Some((path, flaw)),
            Ok(()) => None,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_folder_must_be_closed_or_may_be_sticky_according_to_its_rule() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().canonicalize().unwrap().join("state");
        fs::create_dir(&place).unwrap();
        for (mode, closed, sticky) in [
            (0o700, true, true),
            (0o750, true, true),
            (0o770, false, false),
            (0o1777, false, true),
        ] {
            fs::set_permissions(&place, Permissions::from_mode(mode)).unwrap();
            let expected = Some((place.clone(), Flaw::Writable(0o040_000 | mode)));
            for (rule, good) in [
                (FolderRule::Closed, closed),
                (FolderRule::MayBeSticky, sticky),
            ] {
                let found = folder_flaw(&place, rule);
                assert_eq!(
                    found,
                    if good { None } else { expected.clone() },
                    "{mode:o} {rule:?}"
                );
            }
        }
    }

    #[test]
    fn missing_folder_is_judged_by_its_nearest_existing_ancestor() {
        let folder = tempfile::tempdir().unwrap();
        let above = folder.path().canonicalize().unwrap().join("above");
        fs::create_dir(&above).unwrap();
        let place = above.join("not yet/state");
        for (mode, good) in [
            (0o755, true),
            (0o777, false),
            (0o775, false),
            (0o1777, true),
        ] {
            fs::set_permissions(&above, Permissions::from_mode(mode)).unwrap();
            let expected = Some((above.clone(), Flaw::Writable(0o040_000 | mode)));
            assert_eq!(
                folder_flaw(&place, FolderRule::Closed),
                if good { None } else { expected },
                "{mode:o}"
            );
        }
    }

    #[test]
    fn every_link_in_the_path_of_a_folder_must_be_in_a_trusted_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (open, closed) = (root.join("open"), root.join("closed"));
        fs::create_dir(&open).unwrap();
        fs::create_dir(&closed).unwrap();
        // first -> open/second -> ../closed: the given path and its target are safe, but the path
        // in between is not.
        symlink(open.join("second"), root.join("first")).unwrap();
        symlink("../closed", open.join("second")).unwrap();
        let place = root.join("first/state");
        assert_eq!(folder_flaw(&place, FolderRule::Closed), None);
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(
            folder_flaw(&place, FolderRule::Closed),
            Some((open.clone(), Flaw::Writable(0o040_777)))
        );
        fs::set_permissions(&open, Permissions::from_mode(0o700)).unwrap();
        symlink(root.join("circle"), root.join("circle")).unwrap();
        assert!(matches!(
            judge_place(&root.join("circle"), FolderRule::Closed, uid()),
            Err(FileError::Io { .. })
        ));
    }

    #[test]
    fn missing_and_oversized_files_are_different_errors() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let missing = read_trusted(&file, Demand::Unchangeable, uid(), 64).unwrap_err();
        assert!(missing.is_not_found());
        write(&file, 0o600);
        assert!(read_trusted(&file, Demand::Unchangeable, uid(), 7).is_ok());
        let large = read_trusted(&file, Demand::Unchangeable, uid(), 6).unwrap_err();
        assert!(matches!(large, FileError::TooLarge { bytes_max: 6, .. }));
    }

    #[test]
    fn a_pipe_is_refused_and_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(flaw(&pipe, Demand::Secret), Some(Flaw::NotAFile));
    }
}
