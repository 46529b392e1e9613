//! Lists datasets and snapshots by the read ioctls that `zfs list` uses too, because `libzfs_core`
//! has no listing. The ioctls need no permission and no writable pool, and are not logged.
//!
//! Two properties of the kernel need care. A listing of a dataset that does not exist ends as if
//! the dataset were empty; so a listing counts only if the dataset existed, with one guid, before
//! and after. And the order is arbitrary.

use super::call::ZfsCall;
use super::core::{self, IoctlArgument, Libraries, ReadRequest};
use super::delegation::{Delegation, delegations};
use super::nvlist::{NvList, NvMap, NvValue};
use super::sys::{self, dmu_objset_stats};
use super::{Dataset, DatasetType, Property, PropertyValue, Snapshot, ZfsErrno, ZfsError};
use crate::model::{DatasetName, Guid, SnapshotName};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// The initial size of the buffer for packed properties: an ordinary dataset needs 4 KiB.
const PROPERTIES_BYTES_MIN: usize = 64 << 10;
/// The maximum size of that buffer: twice the space of 1,000 user properties of the largest size, 8
/// KiB.
const PROPERTIES_BYTES_MAX: usize = 16 << 20;
/// `encryption=off`, as a number; higher numbers name a cipher.
const ENCRYPTION_OFF: u64 = 2;
/// `keystatus=unavailable`, as a number.
const KEY_UNAVAILABLE: u64 = 1;

/// An entry of a listing.
struct Entry {
    name: String,
    stats: dmu_objset_stats,
    properties: BTreeMap<String, Property>,
}

/// A reader of the kernel's listings, with the descriptor and reused buffers.
pub(super) struct Lister<'a> {
    libraries: &'static Libraries,
    device: BorrowedFd<'a>,
    command: Box<IoctlArgument>,
    properties: Vec<u8>,
}

impl<'a> Lister<'a> {
    pub(super) fn new(libraries: &'static Libraries, device: BorrowedFd<'a>) -> Self {
        Self {
            libraries,
            device,
            command: core::empty_command(),
            properties: vec![0; PROPERTIES_BYTES_MIN],
        }
    }

    /// Returns the dataset, or `None` if it does not exist.
    pub(super) fn dataset(&mut self, name: &DatasetName) -> Result<Option<Dataset>, ZfsError> {
        match self.ask(ReadRequest::Stats, name.as_str(), 0) {
            Ok(()) => self.entry().and_then(to_dataset).map(Some),
            Err(libc::ENOENT) => Ok(None),
            Err(errno) => Err(ZfsCall::new("read", name).refused(errno)),
        }
    }

    /// Returns the snapshot, or `None` if it does not exist.
    pub(super) fn snapshot(&mut self, name: &SnapshotName) -> Result<Option<Snapshot>, ZfsError> {
        match self.ask(ReadRequest::Stats, &name.to_string(), 0) {
            Ok(()) => self.entry().and_then(to_snapshot).map(Some),
            Err(libc::ENOENT) => Ok(None),
            Err(errno) => Err(ZfsCall::new("read", name).refused(errno)),
        }
    }

    /// Returns the guid of an imported pool.
    pub(super) fn pool_guid(&mut self, pool: &str) -> Result<Guid, ZfsError> {
        let call = ZfsCall::new("read pool", pool);
        self.ask(ReadRequest::Pool, pool, 0)
            .map_err(|errno| call.refused(errno))?;
        match self.answer(pool)?.get("pool_guid") {
            Some(NvValue::Number(guid)) => Ok(Guid(*guid)),
            _ => Err(call.malformed("its configuration has no pool_guid")),
        }
    }

    /// Returns the permissions granted on the dataset and on its ancestors. Without any, the
    /// kernel's list is empty.
    pub(super) fn delegations(
        &mut self,
        dataset: &DatasetName,
    ) -> Result<Vec<Delegation>, ZfsError> {
        let call = ZfsCall::new("read the permissions on", dataset);
        let asked = self.ask(ReadRequest::Delegations, dataset.as_str(), 0);
        asked.map_err(|errno| call.refused(errno))?;
        delegations(&call, &self.answer(dataset.as_str())?)
    }

    /// Returns the direct children by name.
    pub(super) fn children(&mut self, parent: &DatasetName) -> Result<Vec<Dataset>, ZfsError> {
        let mut children = self.each(
            ReadRequest::NextDataset,
            "list the children of",
            parent,
            to_dataset,
        )?;
        children.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(children)
    }

    /// Returns the snapshots, oldest first.
    pub(super) fn snapshots(&mut self, dataset: &DatasetName) -> Result<Vec<Snapshot>, ZfsError> {
        let mut snapshots = self.each(
            ReadRequest::NextSnapshot,
            "list the snapshots of",
            dataset,
            to_snapshot,
        )?;
        snapshots.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
        Ok(snapshots)
    }

    /// Returns all entries of a listing. The listing is valid only if the same dataset existed from
    /// start to end.
    fn each<T>(
        &mut self,
        request: ReadRequest,
        operation: &'static str,
        dataset: &DatasetName,
        convert: fn(Entry) -> Result<T, ZfsError>,
    ) -> Result<Vec<T>, ZfsError> {
        let call = ZfsCall::new(operation, dataset);
        let before = self.guid(&call, dataset)?;
        let mut found = Vec::new();
        let mut cursor = 0;
        loop {
            match self.ask(request, dataset.as_str(), cursor) {
                Ok(()) => found.push(convert(self.entry()?)?),
                Err(libc::ESRCH) => break,
                Err(errno) => return Err(call.refused(errno)),
            }
            cursor = self.command.zc_cookie;
        }
        if self.guid(&call, dataset)? != before {
            return Err(call.malformed("it was replaced by another dataset while it was listed"));
        }
        Ok(found)
    }

    fn guid(&mut self, call: &ZfsCall, dataset: &DatasetName) -> Result<u64, ZfsError> {
        self.ask(ReadRequest::Stats, dataset.as_str(), 0)
            .map_err(|errno| call.refused(errno))?;
        Ok(self.command.zc_objset_stats.dds_guid)
    }

    /// Calls one read ioctl, and repeats it with a larger buffer while the result does not fit.
    fn ask(&mut self, request: ReadRequest, name: &str, cursor: u64) -> Result<(), i32> {
        loop {
            self.command.zc_name.fill(0);
            let room = self
                .command
                .zc_name
                .get_mut(..name.len())
                .ok_or(libc::ENAMETOOLONG)?;
            room.copy_from_slice(name.as_bytes());
            self.command.zc_cookie = cursor;
            match core::read_ioctl(
                self.device,
                request,
                &mut self.command,
                &mut self.properties,
            ) {
                Err(libc::ENOMEM) if self.properties.len() < PROPERTIES_BYTES_MAX => {
                    let needed = usize::try_from(self.command.zc_nvlist_dst_size)
                        .unwrap_or(PROPERTIES_BYTES_MAX);
                    let bytes = needed
                        .max(self.properties.len() * 2)
                        .min(PROPERTIES_BYTES_MAX);
                    self.properties.resize(bytes, 0);
                }
                // A signal arrived on this thread; its handler has already run.
                Err(libc::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Returns the entry of the last call.
    fn entry(&mut self) -> Result<Entry, ZfsError> {
        let name = text_of(&self.command.zc_name);
        let properties = to_properties(self.answer(&name)?);
        Ok(Entry {
            stats: self.command.zc_objset_stats,
            properties,
            name,
        })
    }

    /// Returns the list of the last call, about `subject`.
    fn answer(&mut self, subject: &str) -> Result<NvMap, ZfsError> {
        let malformed = |reason: String| ZfsError::Malformed {
            subject: subject.to_owned(),
            reason,
        };
        let packed = usize::try_from(self.command.zc_nvlist_dst_size)
            .ok()
            .filter(|_| self.command.zc_nvlist_dst_filled != 0)
            .and_then(|bytes| self.properties.get_mut(..bytes))
            .ok_or_else(|| malformed("the kernel gave no properties".to_owned()))?;
        NvList::unpack(self.libraries.nvpair(), packed)
            .and_then(|list| list.to_map())
            .map_err(|errno| malformed(format!("the kernel's properties: {}", ZfsErrno(errno))))
    }
}

/// Returns the text before the first zero byte.
fn text_of(bytes: &[u8]) -> String {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Reads `{name: {value, source}}`. Values that are lists or arrays are not needed here and are
/// skipped.
fn to_properties(list: NvMap) -> BTreeMap<String, Property> {
    list.into_iter()
        .filter_map(|(name, value)| Some((name, to_property(value)?)))
        .collect()
}

fn to_property(value: NvValue) -> Option<Property> {
    let NvValue::Map(mut fields) = value else {
        return None;
    };
    let value = match fields.remove("value")? {
        NvValue::Number(number) => PropertyValue::Number(number),
        NvValue::Text(text) => PropertyValue::Text(text),
        _ => return None,
    };
    let source = match fields.remove("source") {
        Some(NvValue::Text(source)) => Some(source),
        _ => None,
    };
    Some(Property { value, source })
}

impl Entry {
    fn malformed(&self, reason: impl ToString) -> ZfsError {
        ZfsError::Malformed {
            subject: self.name.clone(),
            reason: reason.to_string(),
        }
    }

    fn number_if_any(&self, property: &str) -> Option<u64> {
        match self.properties.get(property)?.value {
            PropertyValue::Number(number) => Some(number),
            PropertyValue::Text(_) => None,
        }
    }

    fn number(&self, property: &str) -> Result<u64, ZfsError> {
        self.number_if_any(property)
            .ok_or_else(|| self.malformed(format!("no number in property {property}")))
    }
}

fn to_dataset(entry: Entry) -> Result<Dataset, ZfsError> {
    let origin = text_of(&entry.stats.dds_origin);
    let origin = match origin.as_str() {
        "" => None,
        name => Some(name.parse().map_err(|error| entry.malformed(error))?),
    };
    Ok(Dataset {
        name: entry.name.parse().map_err(|error| entry.malformed(error))?,
        guid: Guid(entry.stats.dds_guid),
        dataset_type: match entry.stats.dds_type {
            sys::ZFS_BACKUP_OST_ZFS => DatasetType::Filesystem,
            sys::ZFS_BACKUP_OST_ZVOL => DatasetType::Volume,
            other => return Err(entry.malformed(format!("of the unknown type {other}"))),
        },
        encrypted: entry
            .number_if_any("encryption")
            .is_some_and(|cipher| cipher > ENCRYPTION_OFF),
        key_unavailable: entry.number_if_any("keystatus") == Some(KEY_UNAVAILABLE),
        origin,
        inconsistent: entry.stats.dds_inconsistent != 0,
        redacted: entry.stats.dds_redacted != 0,
        properties: entry.properties,
    })
}

fn to_snapshot(entry: Entry) -> Result<Snapshot, ZfsError> {
    let name: SnapshotName = entry.name.parse().map_err(|error| entry.malformed(error))?;
    let seconds =
        i64::try_from(entry.number("creation")?).map_err(|error| entry.malformed(error))?;
    Ok(Snapshot {
        guid: Guid(entry.number("guid")?),
        createtxg: entry.number("createtxg")?,
        created_at: Timestamp::from_second(seconds).map_err(|error| entry.malformed(error))?,
        referenced_bytes: entry.number("referenced")?,
        used_bytes: entry.number("used")?,
        holds: entry.number("userrefs")?,
        clones: entry.stats.dds_num_clones,
        redacted: entry.stats.dds_redacted != 0,
        user_properties: own_user_properties(&entry),
        name,
    })
}

/// Returns the user properties (with a colon) whose source is the snapshot itself: neither
/// inherited from the dataset nor received.
fn own_user_properties(entry: &Entry) -> BTreeMap<String, String> {
    let own = |(name, property): (&String, &Property)| match &property.value {
        PropertyValue::Text(text)
            if name.contains(':') && property.source.as_ref() == Some(&entry.name) =>
        {
            Some((name.clone(), text.clone()))
        }
        _ => None,
    };
    entry.properties.iter().filter_map(own).collect()
}

/// Makes a list of the bytes that `byte` yields, and reads it as the kernel's result about
/// `subject`.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_kernel_list(subject: &[u8], mut byte: impl FnMut() -> u8) {
    fn list_of(byte: &mut dyn FnMut() -> u8, depth: u8) -> NvMap {
        const NAMES: [&str; 16] = [
            "value",
            "source",
            "guid",
            "createtxg",
            "creation",
            "referenced",
            "used",
            "userrefs",
            "encryption",
            "keystatus",
            "altroot",
            "a:b",
            "ul$1000",
            "e-$",
            "tank/a",
            "snapshot",
        ];
        let mut list = NvMap::new();
        for _ in 0..byte() % 12 {
            let name = NAMES[usize::from(byte() % 16)].to_owned();
            let value = match byte() % 7 {
                0 => NvValue::Flag,
                1 => NvValue::Boolean(byte() & 1 == 1),
                2 => NvValue::Number(u64::MAX >> (byte() % 65).min(63)),
                3 => NvValue::Signed(i64::from(byte()) - 128),
                4 => NvValue::Text(String::from_utf8_lossy(&[byte(), byte()]).into_owned()),
                5 => NvValue::Other(u32::from(byte())),
                _ if depth > 3 => NvValue::Flag,
                _ => NvValue::Map(list_of(byte, depth + 1)),
            };
            list.insert(name, value);
        }
        list
    }
    let mut command = core::empty_command();
    let stats = &mut command.zc_objset_stats;
    (stats.dds_type, stats.dds_inconsistent, stats.dds_guid) =
        (u32::from(byte() % 5), byte() & 1, u64::from(byte()));
    stats.dds_origin.fill_with(&mut byte);
    let list = list_of(&mut byte, 0);
    let name = text_of(subject);
    let _ = delegations(&ZfsCall::new("read the permissions on", &name), &list);
    let entry = || Entry {
        name: name.clone(),
        stats: command.zc_objset_stats,
        properties: to_properties(list.clone()),
    };
    let dataset = to_dataset(entry());
    let snapshot = to_snapshot(entry());
    for error in [dataset.err(), snapshot.err()].into_iter().flatten() {
        assert!(
            error.to_string().contains(&name),
            "{error} does not name {name:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(value: NvValue, source: Option<&str>) -> NvValue {
        let mut fields = NvMap::from([("value".to_owned(), value)]);
        fields.extend(source.map(|source| ("source".to_owned(), NvValue::Text(source.to_owned()))));
        NvValue::Map(fields)
    }

    fn entry(name: &str, properties: &[(&str, NvValue)]) -> Entry {
        let list = properties
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        Entry {
            name: name.to_owned(),
            stats: core::empty_command().zc_objset_stats,
            properties: to_properties(list),
        }
    }

    fn snapshot_properties() -> Vec<(&'static str, NvValue)> {
        [
            "guid",
            "createtxg",
            "creation",
            "referenced",
            "used",
            "userrefs",
        ]
        .map(|name| (name, pair(NvValue::Number(7), None)))
        .into()
    }

    #[test]
    fn only_user_properties_set_on_the_snapshot_itself_count() {
        let mut properties = snapshot_properties();
        let text = |text: &str| NvValue::Text(text.to_owned());
        properties.push(("a:own", pair(text("1"), Some("p/f@s"))));
        properties.push(("a:inherited", pair(text("2"), Some("p/f"))));
        properties.push(("a:received", pair(text("3"), Some("$recvd"))));
        properties.push(("native", pair(text("4"), Some("p/f@s"))));
        let snapshot = to_snapshot(entry("p/f@s", &properties)).unwrap();
        assert_eq!(
            snapshot.user_properties,
            BTreeMap::from([("a:own".to_owned(), "1".to_owned())])
        );
    }

    #[test]
    fn snapshot_without_its_guid_is_an_error_that_names_it() {
        let error = to_snapshot(entry("p/f@s", &snapshot_properties()[1..])).unwrap_err();
        assert_eq!(error.to_string(), "read p/f@s: no number in property guid");
    }

    #[test]
    fn encryption_is_off_when_absent_or_off() {
        let dataset = |encryption: Option<u64>| {
            let properties: Vec<_> = encryption
                .map(|number| ("encryption", pair(NvValue::Number(number), None)))
                .into_iter()
                .collect();
            let mut entry = entry("p/f", &properties);
            entry.stats.dds_type = sys::ZFS_BACKUP_OST_ZFS;
            to_dataset(entry).unwrap()
        };
        assert_eq!(
            [None, Some(2), Some(8)].map(|number| dataset(number).encrypted),
            [false, false, true]
        );
    }

    #[test]
    fn dataset_of_an_unknown_type_is_an_error() {
        assert!(to_dataset(entry("p/f", &[])).is_err());
    }
}
