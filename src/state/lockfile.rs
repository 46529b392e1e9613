//! The lockfile of `lock`, `unlock` and `perform`: shows people and other hosts who works with this
//! configuration.
//!
//! The lockfile appears whole and at once: a file in the same folder is written, synced, and then
//! linked to the lockfile's name, which fails when the name is taken. A process that replaces or
//! removes the lockfile holds a kernel lock on that file and has checked again that the name still
//! leads to it, so that only one of two processes that find the same stale lock gets it. Another
//! kernel lock keeps two backups of one dataset apart: [`crate::state::dataset_lock`].

use super::dir::create_folder;
use super::error::{StateError, failed};
use super::process::{HostBoot, is_gone, process_started, user_name};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most bytes that are read of a lockfile. A larger file is something else.
const LOCK_BYTES_MAX: u64 = 64 << 10;
/// How long to wait for a kernel lock on the lockfile. This program holds the lock only while it
/// reads a page and renames a file. Another program that locks the file must not block every
/// command forever.
const KERNEL_LOCK_WAIT: Duration = Duration::from_secs(10);
const KERNEL_LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How often to try again when the lockfile changes during the attempt: each time another process
/// took or released the lock.
const ROUNDS_MAX: u32 = 100;

/// The reason for the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockKind {
    /// A person made the lock with `zfs-backup lock`: it is never stale, not even after a reboot.
    Manual,
    /// A run of `perform` made the lock, which ends with the run.
    Run,
}

/// The owner of the lock: the content of the lockfile, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// Whether a person or a run made the lock.
    pub kind: LockKind,
    /// The process that made the lock.
    pub pid: u32,
    /// When that process was started: [`process_started`].
    pub pid_started: Option<u64>,
    /// Host, boot and namespace of that process.
    #[serde(flatten)]
    pub here: HostBoot,
    /// The user who made the lock.
    pub user: String,
    /// The command line of that process.
    pub command: String,
    /// When the lock was made.
    pub locked_at: Timestamp,
    /// A random token: no two locks are equal.
    pub token: String,
}

impl LockHolder {
    /// Describes this process as the holder.
    ///
    /// # Errors
    /// [`StateError::NoRandomBytes`].
    pub fn current(kind: LockKind, locked_at: Timestamp) -> Result<Self, StateError> {
        let token = getrandom::u64().map_err(|_| StateError::NoRandomBytes)?;
        let pid = std::process::id();
        Ok(Self {
            kind,
            pid,
            pid_started: process_started(pid),
            here: HostBoot::current(),
            user: user_name(),
            command: shell_words::join(std::env::args()),
            locked_at,
            token: format!("{token:016x}"),
        })
    }

    /// Returns whether the run that made this lock is surely over: its host was rebooted, or its
    /// process is gone. A lock that cannot be judged from `here` is not stale: a lock of another
    /// host, of another container, or made by hand.
    fn is_stale(&self, here: &HostBoot, is_gone: impl Fn(u32, u64) -> bool) -> bool {
        if self.kind == LockKind::Manual || !self.here.is_same_host(here) {
            return false;
        }
        if self.here.boot_id.is_empty() || here.boot_id.is_empty() {
            return false;
        }
        let is_another_boot = self.here.boot_id != here.boot_id;
        let is_visible = self.here.pid_namespace == here.pid_namespace;
        is_another_boot
            || is_visible
                && self
                    .pid_started
                    .is_some_and(|started| is_gone(self.pid, started))
    }
}

/// The state of the lockfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockState {
    /// The lockfile does not exist.
    Free,
    /// A process or a person has the lock.
    Held(LockHolder),
    /// The run that has the lock is over: only `perform` may take the lock over.
    Stale(LockHolder),
    /// The file exists but does not name its owner; the text has the cause. It is a lock
    /// nevertheless.
    Damaged(String),
}

/// The result of an attempt to take the lock.
#[derive(Debug)]
pub enum TakeOutcome {
    /// This process has the lock; with the holder of the stale lock that it replaced.
    Taken(HeldLock, Option<Box<LockHolder>>),
    /// The lock is not available.
    Busy(LockState),
}

/// The lock of this process. Dropping it removes the lockfile; a lock that a person makes by hand
/// needs [`HeldLock::stay`].
#[derive(Debug)]
pub struct HeldLock {
    path: PathBuf,
    holder: LockHolder,
    stays: bool,
}

impl HeldLock {
    /// Returns whether `holder` has this lock.
    pub fn is_of(&self, holder: &LockHolder) -> bool {
        self.holder == *holder
    }

    /// Keeps the lockfile after this process has ended.
    pub fn stay(mut self) {
        self.stays = true;
    }

    /// Removes the lock. Returns whether this process still had it: a person may have run `unlock`.
    ///
    /// # Errors
    /// [`StateError::File`]; then the lock stays, and is stale as soon as this process has ended.
    pub fn release(mut self) -> Result<bool, StateError> {
        self.stays = true;
        self.remove()
    }

    fn remove(&self) -> Result<bool, StateError> {
        let is_own =
            |state: &LockState| matches!(state, LockState::Held(holder) if *holder == self.holder);
        Ok(remove_lock(&self.path, &self.holder.here, is_own)?.1)
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = self.remove()
        {
            tracing::warn!(
                error = crate::model::error_chain(&error),
                "cannot remove the lockfile"
            );
        }
    }
}

/// Returns the state of the lockfile, as seen from `here`.
///
/// # Errors
/// [`StateError::File`] when the lockfile cannot be read: no caller may continue as if it were
/// free.
pub fn read_lock(path: &Path, here: &HostBoot) -> Result<LockState, StateError> {
    match open(path, OFlags::RDONLY)? {
        None => Ok(LockState::Free),
        Some(file) => read_state(&file, path, here),
    }
}

/// Takes the lock if it is free or stale. Makes the folder if it is missing.
///
/// # Errors
/// [`StateError::File`], [`StateError::LockfileBusy`], [`StateError::LockfileChanges`].
pub fn take_lock(path: &Path, holder: &LockHolder) -> Result<TakeOutcome, StateError> {
    let temporary = Temporary::write(path, holder)?;
    let held = || HeldLock {
        path: path.to_owned(),
        holder: holder.clone(),
        stays: false,
    };
    for _ in 0..ROUNDS_MAX {
        match std::fs::hard_link(&temporary.path, path) {
            Ok(()) => {
                sync_folder(path)?;
                return Ok(TakeOutcome::Taken(held(), None));
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed("create", path, source)),
        }
        let Some(file) = open_alone(path)? else {
            continue;
        };
        match read_state(&file, path, &holder.here)? {
            LockState::Stale(old) => {
                std::fs::rename(&temporary.path, path)
                    .map_err(|source| failed("replace", path, source))?;
                sync_folder(path)?;
                return Ok(TakeOutcome::Taken(held(), Some(Box::new(old))));
            }
            state => return Ok(TakeOutcome::Busy(state)),
        }
    }
    Err(StateError::LockfileChanges {
        path: path.display().to_string(),
    })
}

/// Removes the lockfile if `may_remove` allows it for the state at that moment. Returns that state,
/// and whether the lockfile was removed.
///
/// # Errors
/// [`StateError::File`].
pub fn remove_lock(
    path: &Path,
    here: &HostBoot,
    may_remove: impl Fn(&LockState) -> bool,
) -> Result<(LockState, bool), StateError> {
    for _ in 0..ROUNDS_MAX {
        if open(path, OFlags::RDONLY)?.is_none() {
            return Ok((LockState::Free, false));
        }
        let Some(file) = open_alone(path)? else {
            continue;
        };
        let state = read_state(&file, path, here)?;
        if !may_remove(&state) {
            return Ok((state, false));
        }
        std::fs::remove_file(path).map_err(|source| failed("remove", path, source))?;
        sync_folder(path)?;
        return Ok((state, true));
    }
    Err(StateError::LockfileChanges {
        path: path.display().to_string(),
    })
}

/// A whole lockfile under another name, removed on drop.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn write(lock: &Path, holder: &LockHolder) -> Result<Self, StateError> {
        let folder = lock.parent().unwrap_or(Path::new("/"));
        let made = create_folder(folder);
        made.map_err(|source| failed("create", folder, source))?;
        let name = lock.file_name().unwrap_or_default().to_string_lossy();
        let path = folder.join(format!(".{name}.{}", holder.token));
        let mut text = serde_json::to_string_pretty(holder)
            .map_err(|error| failed("write", &path, std::io::Error::from(error)))?;
        text.push('\n');
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path);
        let mut file = file.map_err(|source| failed("create", &path, source))?;
        let temporary = Self { path };
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all());
        written.map_err(|source| failed("write", &temporary.path, source))?;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename the file no longer exists.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens the file that the name leads to now. Does not wait for the other end of a pipe, and
/// follows no link.
fn open(path: &Path, access: OFlags) -> Result<Option<File>, StateError> {
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed("open", path, errno.into())),
    }
}

/// Opens the file that the name leads to, with a kernel lock on it. `None` when the file was
/// replaced or removed in the meantime.
fn open_alone(path: &Path) -> Result<Option<File>, StateError> {
    open_alone_within(path, KERNEL_LOCK_WAIT)
}

fn open_alone_within(path: &Path, wait: Duration) -> Result<Option<File>, StateError> {
    let Some(file) = open(path, OFlags::RDWR)? else {
        return Ok(None);
    };
    let begun = Instant::now();
    while let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        match errno {
            Errno::INTR => {}
            Errno::WOULDBLOCK if begun.elapsed() < wait => std::thread::sleep(KERNEL_LOCK_PAUSE),
            Errno::WOULDBLOCK => {
                return Err(StateError::LockfileBusy {
                    path: path.display().to_string(),
                    seconds: wait.as_secs(),
                });
            }
            errno => return Err(failed("lock", path, errno.into())),
        }
    }
    let ours = file
        .metadata()
        .map_err(|source| failed("read", path, source))?;
    match std::fs::symlink_metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

fn read_state(file: &File, path: &Path, here: &HostBoot) -> Result<LockState, StateError> {
    let about = file
        .metadata()
        .map_err(|source| failed("read", path, source))?;
    if !about.is_file() {
        return Ok(LockState::Damaged("it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(LOCK_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|source| failed("read", path, source))?;
    Ok(match serde_json::from_slice::<LockHolder>(&bytes) {
        Ok(holder) if holder.is_stale(here, is_gone) => LockState::Stale(holder),
        Ok(holder) => LockState::Held(holder),
        Err(error) => LockState::Damaged(error.to_string()),
    })
}

fn sync_folder(path: &Path) -> Result<(), StateError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| failed("sync", folder, source))
}

#[cfg(test)]
mod tests;
