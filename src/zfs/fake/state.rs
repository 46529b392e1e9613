//! The pools in memory, and the effect of each call on them.

use super::content::{Block, Content};
use super::stream::{FEATURE_COMPRESSED, FEATURE_EMBED_DATA, FEATURE_LARGE_BLOCKS, FEATURE_RAW};
use crate::model::{BookmarkName, DatasetName, Guid, SnapshotName};
use crate::zfs::{
    Bookmark, Dataset, DatasetType, Property, PropertyValue, RESUME_TOKEN_PROPERTY, ResumeToken,
    SendBase, SendRequest, SendResume, Snapshot, ZfsErrno,
};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// ZFS_ERR_BOOKMARK_SOURCE_NOT_ANCESTOR: the kernel's refusal of a bookmark whose source is not a
/// state of its own dataset.
const SOURCE_NOT_ANCESTOR: i32 = 1039;
/// The native properties that a dataset of the fake inherits from its ancestors. The kernel computes
/// `available` for each dataset; without quotas all datasets of a pool have the same.
const INHERITED: [&str; 4] = ["mountpoint", "readonly", "exec", "available"];

/// The distance by which the guids of a copied pool skip ahead, so that they never meet those of
/// the original.
const COPY_GUIDS_SKIPPED: u64 = 1 << 32;

/// A source of an incremental: its guid, its txg, and whether it belongs to the origin of a clone.
pub(super) struct IncrementalBase {
    pub(super) guid: u64,
    pub(super) txg: u64,
    pub(super) is_of_origin: bool,
    /// The guid of the IV set in a raw stream; 0 if the base has none.
    pub(super) ivset_guid: u64,
}

#[derive(Clone)]
pub(super) struct FakeSnapshot {
    pub(super) short: String,
    pub(super) guid: u64,
    pub(super) createtxg: u64,
    pub(super) created: u64,
    /// The content, shared with running sends of this snapshot, which keep it from being destroyed.
    pub(super) content: Arc<Content>,
    pub(super) holds: BTreeMap<String, Timestamp>,
    pub(super) user_properties: BTreeMap<String, String>,
}

#[derive(Clone, Copy)]
pub(super) struct FakeBookmark {
    pub(super) guid: u64,
    pub(super) createtxg: u64,
    pub(super) created: u64,
    pub(super) redacted: bool,
    pub(super) ivset_guid: u64,
}

/// The kept state of an interrupted receive, from which it can be resumed.
#[derive(Clone)]
pub(super) struct Partial {
    pub(super) content: Content,
    pub(super) to_guid: u64,
    pub(super) from_guid: u64,
    pub(super) to_name: String,
    pub(super) features: u64,
    pub(super) bytes: u64,
    pub(super) point: SendResume,
    /// The guid of the snapshot of which the hidden dataset of a receive into an existing one is a
    /// clone.
    pub(super) onto: Option<u64>,
}

impl Partial {
    fn to_token(&self) -> ResumeToken {
        let has = |feature: u64| self.features & feature != 0;
        ResumeToken {
            object: self.point.object,
            offset: self.point.offset,
            bytes: self.bytes,
            to_guid: Guid(self.to_guid),
            from_guid: Some(self.from_guid).filter(|guid| *guid != 0).map(Guid),
            to_name: self.to_name.clone(),
            large_blocks: has(FEATURE_LARGE_BLOCKS),
            embedded: has(FEATURE_EMBED_DATA),
            compressed: has(FEATURE_COMPRESSED),
            raw: has(FEATURE_RAW),
        }
    }
}

#[derive(Clone)]
pub(super) struct FakeDataset {
    pub(super) guid: u64,
    pub(super) dataset_type: DatasetType,
    pub(super) encrypted: bool,
    pub(super) key_unavailable: bool,
    pub(super) inconsistent: bool,
    pub(super) redacted: bool,
    pub(super) origin: Option<SnapshotName>,
    pub(super) properties: BTreeMap<String, Property>,
    pub(super) content: Content,
    /// The snapshots, oldest first.
    pub(super) snapshots: Vec<FakeSnapshot>,
    pub(super) bookmarks: BTreeMap<String, FakeBookmark>,
    pub(super) partial: Option<Partial>,
}

#[derive(Clone)]
pub(super) struct State {
    pub(super) datasets: BTreeMap<String, FakeDataset>,
    pub(super) now: Timestamp,
    /// Whether a received OBJECT advances the resume point of an interrupted receive too, as from
    /// OpenZFS 2.2.4 on.
    pub(super) points_at_objects: bool,
    /// The estimate of every send; `None` for the length of its stream.
    pub(super) estimate_bytes: Option<u64>,
    pub(super) full_estimate_bytes: Option<u64>,
    /// Whether listed bookmarks show the guid of their IV set.
    pub(super) shows_ivsets: bool,
    /// The guids of the snapshots of encrypted datasets that have no IV-set guid.
    pub(super) without_ivset: BTreeSet<u64>,
    /// The blocks that cannot be read.
    pub(super) damaged: BTreeSet<Block>,
    txg: u64,
    guids: u64,
}

pub(super) type Failures = Vec<(String, ZfsErrno)>;

impl FakeDataset {
    pub(super) fn new(guid: u64, dataset_type: DatasetType) -> Self {
        Self {
            guid,
            dataset_type,
            encrypted: false,
            key_unavailable: false,
            inconsistent: false,
            redacted: false,
            origin: None,
            properties: BTreeMap::new(),
            content: Content::default(),
            snapshots: Vec::new(),
            bookmarks: BTreeMap::new(),
            partial: None,
        }
    }
}

impl State {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            datasets: BTreeMap::new(),
            now,
            points_at_objects: false,
            estimate_bytes: None,
            full_estimate_bytes: None,
            shows_ivsets: true,
            without_ivset: BTreeSet::new(),
            damaged: BTreeSet::new(),
            txg: 3,
            guids: 0,
        }
    }

    /// Makes a copy that shares nothing with the original and generates other guids from now on.
    /// Running sends hold only the snapshots of the original.
    pub(super) fn copy(&self) -> Self {
        let mut copy = self.clone();
        copy.guids += COPY_GUIDS_SKIPPED;
        for snapshot in copy
            .datasets
            .values_mut()
            .flat_map(|dataset| &mut dataset.snapshots)
        {
            snapshot.content = Arc::new(Content::clone(&snapshot.content));
        }
        copy
    }

    pub(super) fn next_txg(&mut self) -> u64 {
        self.txg += 1;
        self.txg
    }

    /// Returns a new guid that looks random and is the same in every run.
    pub(super) fn next_guid(&mut self) -> u64 {
        self.guids += 1;
        let mixed = self.guids.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed ^ (mixed >> 29)) | 1
    }

    fn seconds(&self) -> u64 {
        u64::try_from(self.now.as_second()).unwrap_or_default()
    }

    pub(super) fn get(&self, name: &DatasetName) -> Result<&FakeDataset, i32> {
        self.datasets.get(name.as_str()).ok_or(libc::ENOENT)
    }

    pub(super) fn get_mut(&mut self, name: &DatasetName) -> Result<&mut FakeDataset, i32> {
        self.datasets.get_mut(name.as_str()).ok_or(libc::ENOENT)
    }

    pub(super) fn snapshot(&self, name: &SnapshotName) -> Option<&FakeSnapshot> {
        self.get(name.dataset())
            .ok()?
            .snapshots
            .iter()
            .find(|snapshot| snapshot.short == name.short())
    }

    pub(super) fn snapshot_mut(&mut self, name: &SnapshotName) -> Option<&mut FakeSnapshot> {
        let dataset = self.get_mut(name.dataset()).ok()?;
        dataset
            .snapshots
            .iter_mut()
            .find(|snapshot| snapshot.short == name.short())
    }

    /// Returns the names of the direct children of `name`.
    pub(super) fn children(&self, name: &DatasetName) -> Vec<DatasetName> {
        let is_child = |child: &DatasetName| child.parent().as_ref() == Some(name);
        self.datasets
            .keys()
            .filter_map(|child| child.parse().ok())
            .filter(is_child)
            .collect()
    }

    /// Returns a dataset as the trait shows it, including inherited properties.
    pub(super) fn to_dataset(&self, name: &DatasetName) -> Result<Dataset, i32> {
        let dataset = self.get(name)?;
        let mut properties = dataset.properties.clone();
        let mut ancestor = name.parent();
        while let Some(above) = ancestor {
            let inherited = self
                .get(&above)
                .map(|dataset| dataset.properties.clone())
                .unwrap_or_default();
            let is_inherited = |key: &str| key.contains(':') || INHERITED.contains(&key);
            for (key, property) in inherited.into_iter().filter(|(key, _)| is_inherited(key)) {
                properties.entry(key).or_insert(property);
            }
            ancestor = above.parent();
        }
        let newest_txg = dataset
            .snapshots
            .last()
            .map_or(0, |snapshot| snapshot.createtxg);
        let written = PropertyValue::Number(dataset.content.bytes_after(newest_txg));
        properties.insert(
            "written".to_owned(),
            Property {
                value: written,
                source: None,
            },
        );
        if let Some(partial) = &dataset.partial {
            let token = PropertyValue::Text(partial.to_token().to_text());
            properties.insert(
                RESUME_TOKEN_PROPERTY.to_owned(),
                Property {
                    value: token,
                    source: None,
                },
            );
        }
        Ok(Dataset {
            name: name.clone(),
            guid: Guid(dataset.guid),
            dataset_type: dataset.dataset_type,
            encrypted: dataset.encrypted,
            key_unavailable: dataset.key_unavailable,
            origin: dataset.origin.clone(),
            inconsistent: dataset.inconsistent,
            redacted: dataset.redacted,
            properties,
        })
    }

    pub(super) fn to_snapshots(&self, name: &DatasetName) -> Result<Vec<Snapshot>, i32> {
        let dataset = self.get(name)?;
        let to_snapshot = |snapshot: &FakeSnapshot| {
            Some(Snapshot {
                name: name.snapshot(&snapshot.short).ok()?,
                guid: Guid(snapshot.guid),
                createtxg: snapshot.createtxg,
                created_at: timestamp(snapshot.created),
                referenced_bytes: snapshot.content.bytes(),
                used_bytes: if dataset.content.is_newer_than(snapshot.createtxg) {
                    snapshot.content.bytes()
                } else {
                    0
                },
                holds: snapshot.holds.len() as u64,
                clones: self.clones_of(name, snapshot),
                redacted: dataset.redacted,
                user_properties: snapshot.user_properties.clone(),
            })
        };
        Ok(dataset.snapshots.iter().filter_map(to_snapshot).collect())
    }

    /// Returns the number of clones of this snapshot, including the hidden dataset of an
    /// interrupted receive.
    fn clones_of(&self, name: &DatasetName, snapshot: &FakeSnapshot) -> u64 {
        let is_origin =
            |origin: &SnapshotName| origin.dataset() == name && origin.short() == snapshot.short;
        let clones = self
            .datasets
            .values()
            .filter(|other| other.origin.as_ref().is_some_and(is_origin))
            .count();
        let partial = self
            .get(name)
            .ok()
            .and_then(|dataset| dataset.partial.as_ref()?.onto);
        clones as u64 + u64::from(partial == Some(snapshot.guid))
    }

    pub(super) fn to_bookmarks(&self, name: &DatasetName) -> Result<Vec<Bookmark>, i32> {
        let to_bookmark = |(short, bookmark): (&String, &FakeBookmark)| {
            Some(Bookmark {
                name: name.bookmark(short).ok()?,
                guid: Guid(bookmark.guid),
                createtxg: bookmark.createtxg,
                created_at: timestamp(bookmark.created),
                redacted: bookmark.redacted,
                ivset_guid: self.shows_ivsets.then_some(bookmark.ivset_guid),
            })
        };
        let mut bookmarks: Vec<_> = self
            .get(name)?
            .bookmarks
            .iter()
            .filter_map(to_bookmark)
            .collect();
        bookmarks.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
        Ok(bookmarks)
    }

    /// Takes all snapshots or none. The error names those that cannot be taken, or is an error
    /// number for all.
    pub(super) fn take_snapshots(
        &mut self,
        names: &[SnapshotName],
        user_properties: &BTreeMap<String, String>,
    ) -> Result<(), Result<Failures, i32>> {
        let pools: BTreeSet<_> = names.iter().map(|name| name.dataset().pool()).collect();
        let datasets: BTreeSet<_> = names.iter().map(SnapshotName::dataset).collect();
        if pools.len() > 1 || datasets.len() < names.len() {
            return Err(Err(libc::EXDEV));
        }
        if user_properties.keys().any(|key| !key.contains(':')) {
            return Err(Err(libc::EINVAL));
        }
        let refused = |name: &&SnapshotName| match self.get(name.dataset()) {
            Err(errno) => Some(errno),
            Ok(dataset) if dataset.inconsistent => Some(libc::EBUSY),
            Ok(_) => self.snapshot(name).map(|_| libc::EEXIST),
        };
        let failures: Failures = names
            .iter()
            .filter_map(|name| Some((name.to_string(), ZfsErrno(refused(&name)?))))
            .collect();
        if !failures.is_empty() {
            return Err(Ok(failures));
        }
        let createtxg = self.next_txg();
        let created = self.seconds();
        for name in names {
            let guid = self.next_guid();
            let Ok(dataset) = self.get_mut(name.dataset()) else {
                continue;
            };
            dataset.snapshots.push(FakeSnapshot {
                short: name.short().to_owned(),
                guid,
                createtxg,
                created,
                content: Arc::new(dataset.content.clone()),
                holds: BTreeMap::new(),
                user_properties: user_properties.clone(),
            });
        }
        Ok(())
    }

    /// Destroys all snapshots or none; snapshots that do not exist are ignored.
    pub(super) fn destroy_snapshots(&mut self, names: &[SnapshotName]) -> Failures {
        let refused = |name: &SnapshotName| self.keeps(name.dataset(), self.snapshot(name)?);
        let failures: Failures = names
            .iter()
            .filter_map(|name| Some((name.to_string(), ZfsErrno(refused(name)?))))
            .collect();
        if failures.is_empty() {
            for name in names {
                if let Ok(dataset) = self.get_mut(name.dataset()) {
                    dataset
                        .snapshots
                        .retain(|snapshot| snapshot.short != name.short());
                }
            }
        }
        failures
    }

    /// Returns the error number that prevents destroying a snapshot.
    pub(super) fn keeps(&self, name: &DatasetName, snapshot: &FakeSnapshot) -> Option<i32> {
        // The snapshot has one reference; each running send has another.
        match !snapshot.holds.is_empty() || Arc::strong_count(&snapshot.content) > 1 {
            true => Some(libc::EBUSY),
            false => (self.clones_of(name, snapshot) > 0).then_some(libc::EEXIST),
        }
    }

    pub(super) fn hold(&mut self, name: &SnapshotName, tag: &str) -> Result<(), i32> {
        let now = self.now;
        let snapshot = self.snapshot_mut(name).ok_or(libc::ENOENT)?;
        match tag.len() {
            0 => return Err(libc::EINVAL),
            256.. => return Err(libc::E2BIG),
            _ => {}
        }
        match snapshot.holds.contains_key(tag) {
            true => Err(libc::EEXIST),
            false => {
                snapshot.holds.insert(tag.to_owned(), now);
                Ok(())
            }
        }
    }

    /// Whether a state of `earlier` at `txg` lies on the way to the present `later`: in the
    /// same dataset, or in one that it was cloned from, up to the snapshot that was cloned.
    fn is_before(&self, later: &DatasetName, earlier: &DatasetName, txg: u64) -> bool {
        let mut later = later;
        while later != earlier {
            let origin = self.get(later).ok().and_then(|clone| clone.origin.as_ref());
            let Some(origin) = origin else {
                return false;
            };
            if self
                .snapshot(origin)
                .is_none_or(|origin| txg > origin.createtxg)
            {
                return false;
            }
            later = origin.dataset();
        }
        true
    }

    /// Makes a bookmark, with the kernel's checks in its order: the dataset, the new name, the
    /// source, and whether the source precedes the dataset's present state.
    pub(super) fn bookmark(&mut self, name: &BookmarkName, source: &SendBase) -> Result<(), i32> {
        if self
            .get(name.dataset())?
            .bookmarks
            .contains_key(name.short())
        {
            return Err(libc::EEXIST);
        }
        let (made, of) = match source {
            SendBase::Snapshot(source) => {
                let snapshot = self.snapshot(source).ok_or(libc::ENOENT)?;
                let made = FakeBookmark {
                    guid: snapshot.guid,
                    createtxg: snapshot.createtxg,
                    created: snapshot.created,
                    redacted: self.get(source.dataset())?.redacted,
                    ivset_guid: match self.get(source.dataset())?.encrypted {
                        true => self.ivset_guid(snapshot.guid),
                        false => 0,
                    },
                };
                (made, source.dataset())
            }
            SendBase::Bookmark(source) => {
                let bookmark = self
                    .get(source.dataset())?
                    .bookmarks
                    .get(source.short())
                    .ok_or(libc::ESRCH)?;
                // As in the kernel, a copy of a bookmark has no redaction list.
                let made = FakeBookmark {
                    redacted: false,
                    ..*bookmark
                };
                (made, source.dataset())
            }
        };
        if !self.is_before(name.dataset(), of, made.createtxg) {
            return Err(SOURCE_NOT_ANCESTOR);
        }
        self.get_mut(name.dataset())?
            .bookmarks
            .insert(name.short().to_owned(), made);
        Ok(())
    }

    /// Returns the guid of the IV set of a snapshot of an encrypted dataset; 0 if it has none.
    pub(super) fn ivset_guid(&self, snapshot_guid: u64) -> u64 {
        match self.without_ivset.contains(&snapshot_guid) {
            true => 0,
            false => snapshot_guid.rotate_left(32),
        }
    }

    /// Returns the base of an incremental: an earlier state of the dataset, or of the clone's
    /// origin.
    pub(super) fn base(&self, request: &SendRequest) -> Result<Option<IncrementalBase>, i32> {
        let sent = self.snapshot(&request.snapshot).ok_or(libc::ENOENT)?;
        let dataset = request.snapshot.dataset();
        let base = match &request.base {
            None => return Ok(None),
            Some(SendBase::Snapshot(name)) => {
                let snapshot = self.snapshot(name).ok_or(libc::ENOENT)?;
                if !self.is_before(dataset, name.dataset(), snapshot.createtxg) {
                    return Err(libc::EXDEV);
                }
                IncrementalBase {
                    guid: snapshot.guid,
                    txg: snapshot.createtxg,
                    is_of_origin: name.dataset() != dataset,
                    ivset_guid: self.ivset_guid(snapshot.guid),
                }
            }
            Some(SendBase::Bookmark(name)) => {
                let bookmark = self
                    .get(name.dataset())?
                    .bookmarks
                    .get(name.short())
                    .ok_or(libc::ESRCH)?;
                if !self.is_before(dataset, name.dataset(), bookmark.createtxg) {
                    return Err(libc::EXDEV);
                }
                IncrementalBase {
                    guid: bookmark.guid,
                    txg: bookmark.createtxg,
                    is_of_origin: false,
                    ivset_guid: bookmark.ivset_guid,
                }
            }
        };
        if base.txg < sent.createtxg {
            Ok(Some(base))
        } else {
            Err(libc::EXDEV)
        }
    }

    pub(super) fn create(
        &mut self,
        name: &DatasetName,
        dataset_type: DatasetType,
    ) -> Result<&mut FakeDataset, i32> {
        if self.get(name).is_ok() {
            return Err(libc::EEXIST);
        }
        if let Some(parent) = name.parent() {
            self.get(&parent)?;
        }
        let guid = self.next_guid();
        Ok(self
            .datasets
            .entry(name.to_string())
            .or_insert_with(|| FakeDataset::new(guid, dataset_type)))
    }

    pub(super) fn destroy(&mut self, name: &DatasetName) -> Result<(), i32> {
        let dataset = self.get(name)?;
        if !dataset.snapshots.is_empty() {
            return Err(libc::EBUSY);
        }
        if !self.children(name).is_empty() {
            return Err(libc::EEXIST);
        }
        self.datasets.remove(name.as_str());
        Ok(())
    }
}

impl State {
    /// Whether the dataset is readonly, by its own property or an inherited one.
    pub(super) fn is_readonly(&self, name: &DatasetName) -> bool {
        let readonly = self
            .to_dataset(name)
            .ok()
            .and_then(|mut dataset| dataset.properties.remove("readonly"));
        readonly.is_some_and(|readonly| readonly.value == PropertyValue::Number(1))
    }

    /// Rolls the dataset back to `to`, which must be its newest snapshot.
    pub(super) fn roll_back(&mut self, name: &DatasetName, to: &SnapshotName) -> Result<(), i32> {
        // A clone without snapshots of its own is rolled back to its origin.
        let origin = self
            .get(name)?
            .origin
            .as_ref()
            .filter(|origin| *origin == to);
        let origin = origin
            .and_then(|origin| self.snapshot(origin))
            .map(|origin| Content::clone(&origin.content));
        let dataset = self.get_mut(name)?;
        if let Some(content) = origin {
            if !dataset.snapshots.is_empty() || !dataset.bookmarks.is_empty() {
                return Err(libc::EEXIST);
            }
            dataset.content = content;
            return Ok(());
        }
        let newest = dataset.snapshots.last().ok_or(libc::ESRCH)?;
        if to.dataset() != name
            || !dataset
                .snapshots
                .iter()
                .any(|snapshot| snapshot.short == to.short())
        {
            return Err(libc::ESRCH);
        }
        if newest.short != to.short()
            || dataset
                .bookmarks
                .values()
                .any(|mark| mark.createtxg > newest.createtxg)
        {
            return Err(libc::EEXIST);
        }
        dataset.content = Content::clone(&newest.content);
        Ok(())
    }

    /// Abandons an interrupted receive.
    pub(super) fn abort_receive(&mut self, name: &DatasetName) -> Result<(), i32> {
        let dataset = self.get_mut(name)?;
        dataset.partial.take().ok_or(libc::ENOENT)?;
        if dataset.inconsistent {
            self.datasets.remove(name.as_str());
        }
        Ok(())
    }
}

fn timestamp(seconds: u64) -> Timestamp {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or(Timestamp::MAX)
}
