//! `libzfs_core`, opened at run time, and the read ioctls, each behind a safe function. This is the
//! second of the two files with `unsafe`; [`super::real`] and [`super::list`] interpret the
//! results.
//!
//! The library is opened at run time and not linked, so that one binary serves every OpenZFS in
//! `version.rs`, and a host without ZFS gets an error message instead of a loader failure. Only
//! `libzfs_core.so.3` is supported: `.so.1` (0.7 and 0.8) has other arguments under the same names.

use super::ZfsError;
use super::nvlist::{NvList, NvSlot};
use super::sys::{self, LibNvPair, LibZfsCore, dmu_replay_record, zfs_cmd};
use std::error::Error;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::OnceLock;

/// The library's file name: `vendor/check.sh` compares it for each version that it compiles.
pub(super) const LIBZFS_CORE: &str = "libzfs_core.so.3";
/// The file name of the name-value list library. The library is opened second, because early
/// versions need symbols of the first.
pub(super) const LIBNVPAIR: &str = "libnvpair.so.3";

const INSTALL_HINT: &str = "install OpenZFS 2.1 or later: Debian and Ubuntu `zfsutils-linux` (which brings libzfs4linux or \
     libzfs6linux), Fedora and RHEL `zfs` from zfsonlinux.org, Arch `zfs-utils`, NixOS `boot.supportedFilesystems = \
     [ \"zfs\" ]` and the library's folder in LD_LIBRARY_PATH, elsewhere the package that has libzfs_core.so.3";

/// Both libraries, open until the process ends. Their functions may be called from any thread.
pub(super) struct Libraries {
    core: LibZfsCore,
    nvpair: LibNvPair,
}

/// The result of a call: an error number or 0, and the list that the call returned, if any.
pub(super) struct CallOutcome {
    pub(super) errno: i32,
    pub(super) list: Option<NvList>,
}

/// The arguments of one receive.
pub(super) struct ReceiveCall<'a> {
    pub(super) snapshot: &'a CStr,
    pub(super) local_properties: Option<&'a NvList>,
    pub(super) resumable: bool,
    pub(super) raw: bool,
    pub(super) input: BorrowedFd<'a>,
    /// The first record, already read from the input.
    pub(super) begin: [u8; size_of::<dmu_replay_record>()],
}

/// The read-only ioctls: allowed to everybody, not logged in the pool's history.
#[derive(Clone, Copy)]
pub(super) enum ReadRequest {
    /// Reads the configuration of a pool.
    Pool = sys::ZFS_BACKUP_IOC_POOL_STATS as isize,
    /// Reads one dataset or snapshot.
    Stats = sys::ZFS_BACKUP_IOC_OBJSET_STATS as isize,
    /// Reads the next child.
    NextDataset = sys::ZFS_BACKUP_IOC_DATASET_LIST_NEXT as isize,
    /// Reads the next snapshot.
    NextSnapshot = sys::ZFS_BACKUP_IOC_SNAPSHOT_LIST_NEXT as isize,
    /// Reads the permissions that `zfs allow` granted.
    Delegations = sys::ZFS_BACKUP_IOC_GET_FSACL as isize,
}

/// `ZFS_IOC_SET_PROP`.
const SET: libc::Ioctl = sys::ZFS_BACKUP_IOC_SET_PROP as libc::Ioctl;
/// `ZFS_IOC_INHERIT_PROP`.
const INHERIT: libc::Ioctl = sys::ZFS_BACKUP_IOC_INHERIT_PROP as libc::Ioctl;

impl Libraries {
    /// Returns the libraries of this host, opened at the first call.
    pub(super) fn of_this_host() -> Result<&'static Self, ZfsError> {
        static LOADED: OnceLock<Libraries> = OnceLock::new();
        match LOADED.get() {
            Some(loaded) => Ok(loaded),
            None => {
                let loaded = Self::open(LIBZFS_CORE, LIBNVPAIR)?;
                Ok(LOADED.get_or_init(|| loaded))
            }
        }
    }

    /// Opens both by name, checks that every function that this tool calls exists, and initialises
    /// them.
    pub(super) fn open(core_name: &str, nvpair_name: &str) -> Result<Self, ZfsError> {
        let missing = |name: &str, error: libloading::Error| ZfsError::Library {
            // The loader's own message, which names the file or the function, is the cause.
            reason: match error.source() {
                Some(cause) => format!("{name} cannot be used: {cause}"),
                None => format!("{name} cannot be used: {error}"),
            },
            hint: INSTALL_HINT.to_owned(),
        };
        // SAFETY: runs the library's initialisers; OpenZFS has none that affect this process.
        let core =
            unsafe { LibZfsCore::new(core_name) }.map_err(|error| missing(core_name, error))?;
        // SAFETY: as above.
        let nvpair =
            unsafe { LibNvPair::new(nvpair_name) }.map_err(|error| missing(nvpair_name, error))?;
        // SAFETY: may be called at any time, from any thread, more than once.
        match unsafe { core.libzfs_core_init() } {
            0 => Ok(Self { core, nvpair }),
            errno => Err(ZfsError::Device {
                source: std::io::Error::from_raw_os_error(errno),
            }),
        }
    }

    /// Returns the library that makes lists.
    pub(super) fn nvpair(&'static self) -> &'static LibNvPair {
        &self.nvpair
    }

    /// Writes out the pool's open transaction group and waits for it.
    #[doc(alias = "lzc_sync")]
    pub(super) fn sync_pool(&'static self, pool: &CStr, arguments: &NvList) -> CallOutcome {
        self.with_list(|slot| {
            // SAFETY: name and list live through the call and are only read; the slot takes a list
            // that becomes ours.
            unsafe {
                self.core
                    .lzc_sync(pool.as_ptr(), arguments.as_ptr(), slot.as_mut_ptr())
            }
        })
    }

    /// Takes snapshots: the keys of the list are their names.
    #[doc(alias = "lzc_snapshot")]
    pub(super) fn snapshot(&'static self, snapshots: &NvList, properties: &NvList) -> CallOutcome {
        self.with_list(|slot| {
            // SAFETY: both lists are live through the call and only read; the slot takes a list
            // that becomes ours.
            unsafe {
                self.core
                    .lzc_snapshot(snapshots.as_ptr(), properties.as_ptr(), slot.as_mut_ptr())
            }
        })
    }

    /// Destroys snapshots immediately; the destroy is not deferred until holds are released.
    #[doc(alias = "lzc_destroy_snaps")]
    pub(super) fn destroy_snapshots(&'static self, snapshots: &NvList) -> CallOutcome {
        self.with_list(|slot| {
            // SAFETY: the list is live through the call and only read; the slot takes a list that
            // becomes ours.
            unsafe {
                self.core
                    .lzc_destroy_snaps(snapshots.as_ptr(), sys::B_FALSE, slot.as_mut_ptr())
            }
        })
    }

    /// Puts holds: the list maps snapshot to tag.
    #[doc(alias = "lzc_hold")]
    pub(super) fn hold(&'static self, holds: &NvList) -> CallOutcome {
        self.with_list(|slot| {
            // SAFETY: the list is live through the call and only read; the slot takes a list that
            // becomes ours. Without a descriptor (-1) the holds stay until they are released.
            unsafe { self.core.lzc_hold(holds.as_ptr(), -1, slot.as_mut_ptr()) }
        })
    }

    /// Releases holds: the list maps snapshot to a list of tags.
    #[doc(alias = "lzc_release")]
    pub(super) fn release(&'static self, holds: &NvList) -> CallOutcome {
        self.with_list(|slot| {
            // SAFETY: the list is live through the call and only read; the slot takes a list that
            // becomes ours.
            unsafe { self.core.lzc_release(holds.as_ptr(), slot.as_mut_ptr()) }
        })
    }

    /// Returns the holds of a snapshot: the list maps tag to time.
    #[doc(alias = "lzc_get_holds")]
    pub(super) fn holds(&'static self, snapshot: &CStr) -> CallOutcome {
        self.with_list(|slot| {
            // SAFETY: the name lives through the call; the slot takes a list that becomes ours.
            unsafe {
                self.core
                    .lzc_get_holds(snapshot.as_ptr(), slot.as_mut_ptr())
            }
        })
    }

    /// Makes bookmarks: the list maps bookmark to source.
    #[doc(alias = "lzc_bookmark")]
    pub(super) fn bookmark(&'static self, bookmarks: &NvList) -> CallOutcome {
        self.with_list(|slot| {
            // SAFETY: the list is live through the call and only read; the slot takes a list that
            // becomes ours.
            unsafe {
                self.core
                    .lzc_bookmark(bookmarks.as_ptr(), slot.as_mut_ptr())
            }
        })
    }

    /// Returns the bookmarks of a dataset with the requested properties.
    #[doc(alias = "lzc_get_bookmarks")]
    pub(super) fn bookmarks(&'static self, dataset: &CStr, properties: &NvList) -> CallOutcome {
        self.with_list(|slot| {
            // SAFETY: name and list live through the call and are only read; the slot takes a list
            // that becomes ours.
            unsafe {
                self.core.lzc_get_bookmarks(
                    dataset.as_ptr(),
                    properties.as_ptr(),
                    slot.as_mut_ptr(),
                )
            }
        })
    }

    /// Destroys bookmarks.
    #[doc(alias = "lzc_destroy_bookmarks")]
    pub(super) fn destroy_bookmarks(&'static self, bookmarks: &NvList) -> CallOutcome {
        self.with_list(|slot| {
            // SAFETY: the list is live through the call and only read; the slot takes a list that
            // becomes ours.
            unsafe {
                self.core
                    .lzc_destroy_bookmarks(bookmarks.as_ptr(), slot.as_mut_ptr())
            }
        })
    }

    /// Writes a stream into a pipe, on this thread, until the stream is complete or fails. Returns
    /// an error number or 0. `resume` is the object and the offset to resume from.
    #[doc(alias = "lzc_send")]
    #[doc(alias = "lzc_send_resume")]
    pub(super) fn send(
        &self,
        snapshot: &CStr,
        from: Option<&CStr>,
        pipe: BorrowedFd<'_>,
        flags: u32,
        resume: Option<(u64, u64)>,
    ) -> i32 {
        let from = from.map_or(ptr::null(), CStr::as_ptr);
        let fd = pipe.as_raw_fd();
        match resume {
            // SAFETY: the names live and the descriptor stays open through the call; nothing is
            // kept of them.
            None => unsafe { self.core.lzc_send(snapshot.as_ptr(), from, fd, flags) },
            Some((object, offset)) => {
                // SAFETY: as above.
                unsafe {
                    self.core
                        .lzc_send_resume(snapshot.as_ptr(), from, fd, flags, object, offset)
                }
            }
        }
    }

    /// Estimates the size of a stream in bytes.
    #[doc(alias = "lzc_send_space")]
    pub(super) fn send_space(
        &self,
        snapshot: &CStr,
        from: Option<&CStr>,
        flags: u32,
    ) -> Result<u64, i32> {
        let from = from.map_or(ptr::null(), CStr::as_ptr);
        let mut bytes = 0;
        // SAFETY: the names and the number live through the call; nothing is kept of them.
        match unsafe {
            self.core
                .lzc_send_space(snapshot.as_ptr(), from, flags, &raw mut bytes)
        } {
            0 => Ok(bytes),
            errno => Err(errno),
        }
    }

    /// Receives a stream on this thread. Also returns the flags for errors outside the data, such
    /// as lost properties.
    #[doc(alias = "lzc_receive_with_cmdprops")]
    pub(super) fn receive(&'static self, call: &ReceiveCall<'_>) -> (CallOutcome, u64) {
        // SAFETY: both types have 312 bytes, and any bytes make a record, which has only numbers
        // and bytes in it.
        let begin: dmu_replay_record = unsafe { std::mem::transmute(call.begin) };
        let mut read_bytes = 0_u64;
        let mut error_flags = 0_u64;
        let outcome = self.with_list(|slot| {
            // SAFETY: names, list, record and numbers live and the descriptor stays open through
            // the call; nothing is kept of them; an absent argument is null; the slot takes a list
            // that becomes ours.
            unsafe {
                self.core.lzc_receive_with_cmdprops(
                    call.snapshot.as_ptr(),
                    ptr::null_mut(),
                    call.local_properties
                        .map_or(ptr::null_mut(), NvList::as_ptr),
                    ptr::null_mut(),
                    0,
                    ptr::null(),
                    sys::B_FALSE,
                    call.resumable.into(),
                    call.raw.into(),
                    call.input.as_raw_fd(),
                    &raw const begin,
                    -1,
                    &raw mut read_bytes,
                    &raw mut error_flags,
                    ptr::null_mut(),
                    slot.as_mut_ptr(),
                )
            }
        });
        (outcome, error_flags)
    }

    /// Makes a filesystem.
    #[doc(alias = "lzc_create")]
    pub(super) fn create_filesystem(&self, name: &CStr, properties: &NvList) -> i32 {
        let kind = sys::LZC_DATSET_TYPE_ZFS;
        let key = ptr::null_mut();
        // SAFETY: name and list live through the call and are only read; no key is given.
        unsafe {
            self.core
                .lzc_create(name.as_ptr(), kind, properties.as_ptr(), key, 0)
        }
    }

    /// Destroys a dataset.
    #[doc(alias = "lzc_destroy")]
    pub(super) fn destroy(&self, name: &CStr) -> i32 {
        // SAFETY: the name lives through the call.
        unsafe { self.core.lzc_destroy(name.as_ptr()) }
    }

    /// Rolls a dataset back to its newest snapshot, which must be the one named.
    #[doc(alias = "lzc_rollback_to")]
    pub(super) fn roll_back(&self, name: &CStr, snapshot: &CStr) -> i32 {
        // SAFETY: both names live through the call; nothing is kept of them.
        unsafe { self.core.lzc_rollback_to(name.as_ptr(), snapshot.as_ptr()) }
    }

    fn with_list(&'static self, call: impl FnOnce(&mut NvSlot) -> i32) -> CallOutcome {
        let mut slot = NvSlot::new(&self.nvpair);
        let errno = call(&mut slot);
        CallOutcome {
            errno,
            list: slot.take(),
        }
    }
}

/// The size of the buffer that an ioctl may copy in and out. The kernel takes the
/// `sizeof(zfs_cmd_t)` of **its** version, not ours: 13,744 in most versions, 13,760 in 2.3.1. If a
/// later version grows the structure, the kernel must still write into our memory.
const COMMAND_BYTES: usize = 64 << 10;

/// An ioctl argument: the fields that this tool uses, and room for all that a kernel may copy.
#[repr(C, align(8))]
pub(super) struct IoctlArgument {
    fields: zfs_cmd,
    _room: [u8; COMMAND_BYTES - size_of::<zfs_cmd>()],
}

const _: () = assert!(
    size_of::<IoctlArgument>() == COMMAND_BYTES,
    "the kernel gets this size and not a smaller one"
);

impl Deref for IoctlArgument {
    type Target = zfs_cmd;

    fn deref(&self) -> &zfs_cmd {
        &self.fields
    }
}

impl DerefMut for IoctlArgument {
    fn deref_mut(&mut self) -> &mut zfs_cmd {
        &mut self.fields
    }
}

/// Makes an ioctl argument of zeroes.
pub(super) fn empty_command() -> Box<IoctlArgument> {
    let command = Box::<IoctlArgument>::new_zeroed();
    // SAFETY: the structure has only numbers and bytes in it, for which zeroes are valid.
    unsafe { command.assume_init() }
}

/// Calls a read ioctl; `properties` receives the packed list that the kernel returns. Afterwards
/// the sizes in the command say how many bytes the list has or, after ENOMEM, would have.
pub(super) fn read_ioctl(
    device: BorrowedFd<'_>,
    request: ReadRequest,
    command: &mut IoctlArgument,
    properties: &mut [u8],
) -> Result<(), i32> {
    command.zc_nvlist_src = 0;
    command.zc_nvlist_src_size = 0;
    command.zc_nvlist_dst = properties.as_mut_ptr().expose_provenance() as u64;
    command.zc_nvlist_dst_size = properties.len() as u64;
    command.zc_nvlist_dst_filled = 0;
    // SAFETY: the descriptor is /dev/zfs and open; the kernel reads and writes one zfs_cmd of its
    // own size at the start of COMMAND_BYTES, which is larger (the pointer is to all of them, not
    // to the fields), and at most the given number of bytes of the buffer; both are borrowed for us
    // alone through the call.
    let result = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            request as libc::Ioctl,
            &raw mut *command,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)),
    }
}

/// Sets a dataset's own properties: `packed` is a packed list of them with native types. An ioctl,
/// because `libzfs_core` has no such call.
#[doc(alias = "zfs_prop_set_list")]
pub(super) fn set_properties(
    device: BorrowedFd<'_>,
    dataset: &str,
    packed: &[u8],
) -> Result<(), i32> {
    let mut command = empty_command();
    // The name needs a terminating zero byte.
    let room = command.zc_name.len() - 1;
    let place = command.zc_name[..room].get_mut(..dataset.len());
    place
        .ok_or(libc::ENAMETOOLONG)?
        .copy_from_slice(dataset.as_bytes());
    command.zc_nvlist_src = packed.as_ptr().expose_provenance() as u64;
    command.zc_nvlist_src_size = packed.len() as u64;
    // SAFETY: the descriptor is /dev/zfs and open; the kernel reads and writes one zfs_cmd there,
    // which is borrowed for us alone through the call, and only reads the packed list, which lives
    // as long.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), SET, &raw mut *command) };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)),
    }
}

/// Removes a dataset's own value of a property. An ioctl, because `libzfs_core` has no such call.
#[doc(alias = "zfs_prop_inherit")]
pub(super) fn inherit(device: BorrowedFd<'_>, dataset: &str, property: &str) -> Result<(), i32> {
    let mut command = empty_command();
    let fields: &mut zfs_cmd = &mut command;
    for (place, text) in [
        (&mut fields.zc_name[..], dataset),
        (&mut fields.zc_value[..], property),
    ] {
        // The name needs a terminating zero byte.
        let room = place
            .len()
            .checked_sub(1)
            .and_then(|room| place[..room].get_mut(..text.len()));
        room.ok_or(libc::ENAMETOOLONG)?
            .copy_from_slice(text.as_bytes());
    }
    // SAFETY: the descriptor is /dev/zfs and open; the kernel reads and writes one zfs_cmd of its
    // own size at the start of COMMAND_BYTES, which is larger, is borrowed for us alone through the
    // call, and names no other memory.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), INHERIT, &raw mut *command) };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)),
    }
}

/// Blocks every signal on this thread, because a signal in the middle of a send or a receive would
/// end it with EINTR.
pub(super) fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: writes the whole set, which is ours.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set was written above; only this thread's mask changes. The call fails only for a
    // wrong first argument.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut()) };
}

/// Whether the kernel reports that NTP or PTP synchronises the clock. Setting the time of day by
/// hand ends that until the next synchronisation. Needs no privilege.
pub fn is_clock_synchronised() -> bool {
    let mut state = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: all fields are plain integers, so zeros are a value, and `modes` of zero asks to
    // change nothing; the kernel writes the whole structure, which is ours.
    let answer = unsafe { libc::adjtimex(state.as_mut_ptr()) };
    // SAFETY: the structure was zeroed above, which is a valid value, and the kernel writes only
    // integers into it.
    let status = unsafe { state.assume_init() }.status;
    answer >= 0 && answer != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_libzfs_core_is_reported_with_the_package_to_install() {
        let Err(error) = Libraries::open("libzfs_core.so.3-of-no-host", LIBNVPAIR) else {
            panic!("it opened")
        };
        let ZfsError::Library { reason, hint } = error else {
            panic!("{error:?}")
        };
        assert!(
            reason.starts_with("libzfs_core.so.3-of-no-host cannot be used: "),
            "{reason}"
        );
        for distribution in ["Debian", "Fedora", "Arch", "NixOS"] {
            assert!(hint.contains(distribution), "{hint}");
        }
    }

    #[test]
    fn library_without_our_functions_is_refused_by_name() {
        let Err(error) = Libraries::open("libc.so.6", LIBNVPAIR) else {
            panic!("it opened")
        };
        assert!(error.to_string().contains("libzfs_core_init"), "{error}");
    }
}
