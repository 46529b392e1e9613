//! The mark of this host: a hash of its machine id, and a random id that is kept in `state_dir`.

use super::dir::{create_folder, create_new};
use super::error::{StateError, failed};
use super::process::HostBoot;
use crate::model::HostMark;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file in `state_dir`: 16 hexadecimal digits and a newline.
const FILE_NAME: &str = "host-id";
const FILE_BYTES: u64 = 17;

/// Returns the mark of this host. Makes the id if `state_dir` has none.
///
/// # Errors
/// [`StateError::File`] when the id can be neither read nor made; [`StateError::HostId`] when the
/// file has other content.
pub fn host_mark(state_dir: &Path) -> Result<HostMark, StateError> {
    if let Some(mark) = known_host_mark(state_dir)? {
        return Ok(mark);
    }
    let path = state_dir.join(FILE_NAME);
    let failed = |source| failed("create", &path, source);
    create_folder(state_dir).map_err(failed)?;
    create(&path, &WITHOUT_REPLACING).map_err(failed)?;
    let made = known_host_mark(state_dir)?;
    made.ok_or_else(|| {
        failed(Error::new(
            ErrorKind::NotFound,
            "it was removed while it was made",
        ))
    })
}

/// Returns the same as [`host_mark`], but makes no id: `None` where `state_dir` has none.
///
/// # Errors
/// As for [`host_mark`].
pub fn known_host_mark(state_dir: &Path) -> Result<Option<HostMark>, StateError> {
    let path = state_dir.join(FILE_NAME);
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(failed("read", &path, source));
        }
    };
    let machine = HostBoot::current().machine;
    let mark = text
        .strip_suffix('\n')
        .and_then(|id| format!("{machine:0>16}-{id}").parse().ok());
    let wrong = || StateError::HostId {
        path: path.display().to_string(),
    };
    mark.map(Some).ok_or_else(wrong)
}

fn read(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    File::open(path)?
        .take(FILE_BYTES + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// A way to give a complete file its name, which must not exist.
type Publish = fn(&Path, &Path) -> Result<(), Error>;

/// The two ways to name a file without replacing another one. Neither works everywhere: FAT, exFAT
/// and many FUSE file systems have no hard links, and NFS cannot rename without replacing.
const WITHOUT_REPLACING: [Publish; 2] = [
    |from, to| fs::hard_link(from, to).and_then(|()| fs::remove_file(from)),
    |from, to| Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?),
];

/// How long a run waits for the file that another run is writing. The file has 17 bytes.
const WRITTEN_WAIT_MAX: Duration = Duration::from_secs(2);

/// Creates the file whole or not at all, and never replaces one: of two concurrent runs the second
/// uses the first one's file. Where the file system supports neither way, the file is created under
/// its own name.
fn create(path: &Path, ways: &[Publish]) -> Result<(), Error> {
    let random = || getrandom::u64().map_err(|_| Error::other("the system gives no random bytes"));
    let text = format!("{:016x}\n", random()?);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}.new", random()?));
    let temporary = PathBuf::from(temporary);
    let named = write_new(&temporary, &text).and_then(|()| {
        for publish in ways {
            match publish(&temporary, path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(true),
                Ok(()) => return Ok(true),
                Err(error) if is_unsupported(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    });
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if !named? {
        match write_new(path, &text) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => wait_until_written(path)?,
            written => written.inspect_err(|_| drop(fs::remove_file(path)))?,
        }
    }
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Writes a file that must not exist, and waits until it is on disk.
fn write_new(path: &Path, text: &str) -> Result<(), Error> {
    let mut file = create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Returns whether the error means that the file system cannot do this at all.
fn is_unsupported(error: &Error) -> bool {
    let unsupported = [
        libc::EPERM,
        libc::EOPNOTSUPP,
        libc::ENOSYS,
        libc::EINVAL,
        libc::EMLINK,
    ];
    error
        .raw_os_error()
        .is_some_and(|number| unsupported.contains(&number))
}

/// Waits for a concurrent run that has created the file and not yet written it.
fn wait_until_written(path: &Path) -> Result<(), Error> {
    let begun = Instant::now();
    while fs::metadata(path)?.len() < FILE_BYTES && begun.elapsed() < WRITTEN_WAIT_MAX {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn each_state_folder_has_its_own_permanent_host_mark() {
        let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = state.path().join("new");
        assert_eq!(known_host_mark(&folder).unwrap(), None);
        let mark = host_mark(&folder).unwrap();
        assert_eq!(host_mark(&folder).unwrap(), mark);
        assert_eq!(known_host_mark(&folder).unwrap(), Some(mark.clone()));
        let theirs = host_mark(other.path()).unwrap();
        assert_ne!(theirs, mark);
        assert_eq!(
            theirs.to_string()[..16],
            mark.to_string()[..16],
            "one machine"
        );
        let mode = fs::metadata(folder.join(FILE_NAME))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(
            fs::read_dir(&folder).unwrap().count(),
            1,
            "the temporary file stays"
        );
    }

    #[test]
    fn host_mark_is_created_without_hard_links() {
        let refused: Publish = |_, _| Err(Error::from_raw_os_error(libc::EPERM));
        let rename = WITHOUT_REPLACING[1];
        for ways in [[refused, rename], [refused, refused]] {
            let state = tempfile::tempdir().unwrap();
            let path = state.path().join(FILE_NAME);
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            create(&path, &ways).unwrap();
                            fs::read_to_string(&path).unwrap()
                        })
                    })
                    .collect();
                let texts: Vec<String> = threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .collect();
                assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
            });
            assert!(known_host_mark(state.path()).unwrap().is_some());
            assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1);
        }
        // A full disk is not a missing feature.
        let full: Publish = |_, _| Err(Error::from_raw_os_error(libc::ENOSPC));
        let state = tempfile::tempdir().unwrap();
        assert!(create(&state.path().join(FILE_NAME), &[full]).is_err());
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn concurrent_runs_agree_on_one_host_mark() {
        let state = tempfile::tempdir().unwrap();
        let marks: Vec<HostMark> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| host_mark(state.path()).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(marks.iter().all(|mark| *mark == marks[0]), "{marks:?}");
    }

    #[test]
    fn invalid_host_id_file_is_reported_with_its_remedy() {
        let state = tempfile::tempdir().unwrap();
        for text in [
            "",
            "0123456789abcdef",
            "0123456789abcdef\n\n",
            "0123456789ABCDEF\n",
        ] {
            fs::write(state.path().join(FILE_NAME), text).unwrap();
            let error = host_mark(state.path()).unwrap_err();
            assert!(error.to_string().contains("host-id"), "{error}");
            assert!(error.hint().unwrap().contains("rm "), "{error:?}");
        }
    }
}
