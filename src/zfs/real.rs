//! [`RealZfs`]: the kernel's ZFS. This file builds the arguments of every call and interprets its
//! result.

use super::call::ZfsCall;
use super::core::{Libraries, inherit, set_properties};
use super::list::Lister;
use super::nvlist::{NvList, NvValue, c_string};
use super::outcome::{answer, errno_of_one, verdict_on_several};
use super::{
    Bookmark, Dataset, Delegation, Mount, PropertyValue, ReceiveRequest, SendBase, SendRequest,
    SendStream, Snapshot, ZfsError, ZfsHost, ZfsRead, ZfsReceive, ZfsSend, ZfsSnapshots, mount,
    receive, send,
    version::{self, MODULE_VERSION},
};
use crate::model::{BookmarkName, DatasetName, Guid, SnapshotName};
use crate::stream::nvlist::{PackedValue, write_packed};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;

const DEVICE: &str = "/dev/zfs";
/// The property that only a bookmark with a redaction list has.
const REDACTION_LIST: &str = "redact_snaps";
/// The property of a bookmark with the guid of its IV set.
const IVSET_GUID: &str = "ivsetguid";
/// The ZFS of this host's kernel, through `libzfs_core` and `/dev/zfs`. One value serves all
/// threads and is cheap to keep.
pub struct RealZfs {
    libraries: &'static Libraries,
    device: File,
}

impl RealZfs {
    /// Opens the libraries and the device. A module of an unknown series is refused before the
    /// first ioctl, unless `allowed` is that series.
    ///
    /// # Errors
    /// [`ZfsError::Library`] when OpenZFS is not installed, [`ZfsError::Device`] when its module is
    /// not loaded, [`ZfsError::Version`] when the module is of an unknown series,
    /// [`ZfsError::System`] when the module's version cannot be read.
    pub fn open(allowed: Option<&str>) -> Result<Self, ZfsError> {
        let libraries = Libraries::of_this_host()?;
        let device = open_device().map_err(|source| ZfsError::Device { source })?;
        version::check(&module_version()?, allowed)?;
        Ok(Self { libraries, device })
    }

    fn lister(&self) -> Lister<'_> {
        Lister::new(self.libraries, self.device.as_fd())
    }

    /// Makes a list and lets `fill` add its pairs.
    fn list(&self, fill: impl FnOnce(&mut NvList) -> Result<(), i32>) -> Result<NvList, i32> {
        let mut list = NvList::new(self.libraries.nvpair())?;
        fill(&mut list)?;
        Ok(list)
    }

    /// Makes a list of names without values.
    fn names<T: Display>(&self, names: &[T]) -> Result<NvList, i32> {
        self.list(|list| {
            names
                .iter()
                .try_for_each(|name| list.add_flag(&name.to_string()))
        })
    }
}

/// Reads the module's version from sysfs, which has it for loaded and for built-in modules and
/// needs no ioctl.
fn module_version() -> Result<String, ZfsError> {
    let call = ZfsCall::new("read", MODULE_VERSION);
    let text = std::fs::read_to_string(MODULE_VERSION).map_err(|error| call.failed(error))?;
    Ok(text.trim().to_owned())
}

/// Opens the device for reading and writing. Close-on-exec keeps the descriptor from children.
fn open_device() -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

fn timestamp(call: &ZfsCall, seconds: u64) -> Result<Timestamp, ZfsError> {
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.ok_or_else(|| call.malformed(format!("{seconds} s after 1970 is no time")))
}

/// Reads `{property: {value}}` of one bookmark.
fn to_bookmark(
    call: &ZfsCall,
    name: BookmarkName,
    properties: &NvValue,
) -> Result<Bookmark, ZfsError> {
    let number = |property: &str| match properties
        .get(property)
        .and_then(|property| property.get("value"))
    {
        Some(NvValue::Number(number)) => Ok(*number),
        _ => Err(call.malformed(format!("no number in property {property} of {name}"))),
    };
    let guid = number("guid")?;
    let createtxg = number("createtxg")?;
    let creation = number("creation")?;
    let redacted = properties.get(REDACTION_LIST).is_some();
    let ivset_guid = number(IVSET_GUID).ok();
    Ok(Bookmark {
        created_at: timestamp(call, creation)?,
        guid: Guid(guid),
        createtxg,
        redacted,
        ivset_guid,
        name,
    })
}

impl ZfsRead for RealZfs {
    fn dataset(&self, name: &DatasetName) -> Result<Option<Dataset>, ZfsError> {
        self.lister().dataset(name)
    }

    fn children(&self, name: &DatasetName) -> Result<Vec<Dataset>, ZfsError> {
        self.lister().children(name)
    }

    fn snapshots(&self, name: &DatasetName) -> Result<Vec<Snapshot>, ZfsError> {
        self.lister().snapshots(name)
    }

    fn snapshot(&self, name: &SnapshotName) -> Result<Option<Snapshot>, ZfsError> {
        self.lister().snapshot(name)
    }

    fn bookmarks(&self, name: &DatasetName) -> Result<Vec<Bookmark>, ZfsError> {
        let call = ZfsCall::new("list the bookmarks of", name);
        let refused = |errno| call.refused(errno);
        let wanted = self
            .names(&["guid", "createtxg", "creation", IVSET_GUID, REDACTION_LIST])
            .map_err(refused)?;
        let dataset = c_string(name.as_str()).map_err(refused)?;
        let found = answer(&call, self.libraries.bookmarks(&dataset, &wanted))?;
        let bookmark = |(short, properties): (String, NvValue)| {
            let name = name
                .bookmark(&short)
                .map_err(|error| call.malformed(error))?;
            to_bookmark(&call, name, &properties)
        };
        let mut bookmarks = found
            .into_iter()
            .map(bookmark)
            .collect::<Result<Vec<_>, _>>()?;
        bookmarks.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
        Ok(bookmarks)
    }

    fn holds(&self, name: &SnapshotName) -> Result<BTreeMap<String, Timestamp>, ZfsError> {
        let call = ZfsCall::new("list the holds of", name);
        let snapshot = c_string(&name.to_string()).map_err(|errno| call.refused(errno))?;
        let hold = |(tag, value)| match value {
            NvValue::Number(seconds) => Ok((tag, timestamp(&call, seconds)?)),
            _ => Err(call.malformed(format!("hold {tag} has no time"))),
        };
        answer(&call, self.libraries.holds(&snapshot))?
            .into_iter()
            .map(hold)
            .collect()
    }

    fn pool_guid(&self, pool: &str) -> Result<Guid, ZfsError> {
        self.lister().pool_guid(pool)
    }
}

impl ZfsHost for RealZfs {
    fn mounts(&self) -> Result<Vec<Mount>, ZfsError> {
        mount::mounts()
    }

    fn module_version(&self) -> Result<String, ZfsError> {
        module_version()
    }

    fn delegations(&self, name: &DatasetName) -> Result<Vec<Delegation>, ZfsError> {
        self.lister().delegations(name)
    }
}

impl ZfsSend for RealZfs {
    fn send_space(&self, request: &SendRequest) -> Result<u64, ZfsError> {
        let call = ZfsCall::new("estimate the stream of", &request.snapshot);
        let (snapshot, base) = send::send_names(request).map_err(|errno| call.refused(errno))?;
        let flags = send::send_flag_bits(request.flags);
        self.libraries
            .send_space(&snapshot, base.as_deref(), flags)
            .map_err(|errno| call.refused(errno))
    }

    fn send(&self, request: &SendRequest) -> Result<SendStream, ZfsError> {
        send::start(self.libraries, request)
    }
}

impl ZfsSnapshots for RealZfs {
    fn sync_pool(&self, pool: &str) -> Result<(), ZfsError> {
        let call = ZfsCall::new("sync", pool);
        let refused = |errno| call.refused(errno);
        let arguments = self
            .list(|list| list.add_switch("force", false))
            .map_err(refused)?;
        let name = c_string(pool).map_err(refused)?;
        answer(&call, self.libraries.sync_pool(&name, &arguments)).map(drop)
    }

    fn take_snapshots(
        &self,
        names: &[SnapshotName],
        user_properties: &BTreeMap<String, String>,
    ) -> Result<(), ZfsError> {
        let call = ZfsCall::on_all("snapshot", names);
        let refused = |errno| call.refused(errno);
        let snapshots = self.names(names).map_err(refused)?;
        let properties = self
            .list(|list| {
                user_properties
                    .iter()
                    .try_for_each(|(name, value)| list.add_text(name, value))
            })
            .map_err(refused)?;
        verdict_on_several(&call, self.libraries.snapshot(&snapshots, &properties))
    }

    fn destroy_snapshots(&self, names: &[SnapshotName]) -> Result<(), ZfsError> {
        let call = ZfsCall::on_all("destroy", names);
        let snapshots = self.names(names).map_err(|errno| call.refused(errno))?;
        verdict_on_several(&call, self.libraries.destroy_snapshots(&snapshots))
    }

    fn hold(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError> {
        let call = ZfsCall::new("hold", name);
        let holds = self
            .list(|list| list.add_text(&name.to_string(), tag))
            .map_err(|errno| call.refused(errno))?;
        call.verdict(errno_of_one(self.libraries.hold(&holds)))
    }

    fn release(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError> {
        let call = ZfsCall::new("release the hold on", name);
        let holds = self
            .names(&[tag])
            .and_then(|tags| self.list(|list| list.add_list(&name.to_string(), &tags)))
            .map_err(|errno| call.refused(errno))?;
        match errno_of_one(self.libraries.release(&holds)) {
            libc::ENOENT => Ok(()),
            errno => call.verdict(errno),
        }
    }

    fn bookmark(&self, name: &BookmarkName, source: &SendBase) -> Result<(), ZfsError> {
        let call = ZfsCall::new("bookmark", name);
        let list = self
            .list(|list| list.add_text(&name.to_string(), &send::base_name(source)))
            .map_err(|errno| call.refused(errno))?;
        call.verdict(errno_of_one(self.libraries.bookmark(&list)))
    }

    fn destroy_bookmarks(&self, names: &[BookmarkName]) -> Result<(), ZfsError> {
        let call = ZfsCall::on_all("destroy", names);
        let bookmarks = self.names(names).map_err(|errno| call.refused(errno))?;
        verdict_on_several(&call, self.libraries.destroy_bookmarks(&bookmarks))
    }
}

impl ZfsReceive for RealZfs {
    fn receive(
        &self,
        request: &ReceiveRequest,
        stream: &mut (dyn Read + Send),
    ) -> Result<(), ZfsError> {
        receive::receive(self.libraries, request, stream)
    }

    fn create_filesystem(
        &self,
        name: &DatasetName,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError> {
        let call = ZfsCall::new("create", name);
        let list = NvList::of_properties(self.libraries.nvpair(), properties)
            .map_err(|errno| call.refused(errno))?;
        let dataset = c_string(name.as_str()).map_err(|errno| call.refused(errno))?;
        call.verdict(self.libraries.create_filesystem(&dataset, &list))
    }

    fn destroy_dataset(&self, name: &DatasetName) -> Result<(), ZfsError> {
        let call = ZfsCall::new("destroy", name);
        let dataset = c_string(name.as_str()).map_err(|errno| call.refused(errno))?;
        call.verdict(self.libraries.destroy(&dataset))
    }

    fn abort_receive(&self, name: &DatasetName) -> Result<(), ZfsError> {
        let call = ZfsCall::new("abandon the receive into", name);
        let is_new = self
            .dataset(name)?
            .ok_or_else(|| call.refused(libc::ENOENT))?
            .inconsistent;
        // The kernel receives into this hidden child of an existing dataset. If the receive
        // completed in the meantime, it left a snapshot, and the kernel does not destroy a dataset
        // that has snapshots.
        let state = if is_new {
            name.to_string()
        } else {
            format!("{name}/%recv")
        };
        let state = c_string(&state).map_err(|errno| call.refused(errno))?;
        call.verdict(self.libraries.destroy(&state))
    }

    fn set_properties(
        &self,
        name: &DatasetName,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError> {
        let call = ZfsCall::new("set properties of", name);
        let packed = |value: &PropertyValue| match value {
            PropertyValue::Number(number) => PackedValue::Number(*number),
            PropertyValue::Text(text) => PackedValue::Text(text.clone()),
        };
        let list = properties
            .iter()
            .map(|(name, value)| (name.clone(), packed(value)))
            .collect();
        set_properties(self.device.as_fd(), name.as_str(), &write_packed(&list))
            .map_err(|errno| call.refused(errno))
    }

    fn roll_back(&self, name: &DatasetName, snapshot: &SnapshotName) -> Result<(), ZfsError> {
        let call = ZfsCall::new("roll back to", snapshot);
        let names =
            c_string(name.as_str()).and_then(|name| Ok((name, c_string(&snapshot.to_string())?)));
        let (dataset, snapshot) = names.map_err(|errno| call.refused(errno))?;
        call.verdict(self.libraries.roll_back(&dataset, &snapshot))
    }

    fn inherit_property(&self, name: &DatasetName, property: &str) -> Result<(), ZfsError> {
        let call = ZfsCall::new("inherit", format_args!("{property} of {name}"));
        inherit(self.device.as_fd(), name.as_str(), property).map_err(|errno| call.refused(errno))
    }
}
