//! The content of a [`MemoryStore`](super::MemoryStore), and the effect of each call on it. Armed
//! failures are not applied here.

use super::{Fault, Operation, StoreEvent};
use crate::store::hash::HashKind;
use crate::store::{
    Evidence, EvidenceTier, ListedObject, ObjectLock, PutOutcome, StoreErrorKind, UnfinishedUpload,
};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};

/// The reason why a call failed.
pub(super) struct CallFailure {
    pub(super) kind: StoreErrorKind,
    pub(super) text: String,
}

impl CallFailure {
    pub(super) fn new(kind: StoreErrorKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    /// Makes the failure that a test armed.
    pub(super) fn ordered(kind: StoreErrorKind) -> Self {
        Self::new(kind, "a test ordered this failure")
    }
}

pub(super) struct Stored {
    pub(super) bytes: Bytes,
    evidence: Evidence,
    modified_at: Timestamp,
}

pub(super) struct PendingUpload {
    key: String,
    parts: Vec<Bytes>,
    started_at: Timestamp,
}

/// Whether the store is away for a call.
pub(super) type Away = Box<dyn Fn(Operation, &str) -> bool + Send>;

/// The entries of a page of S3.
const PAGE_ENTRIES: usize = 1000;

pub(super) struct State {
    pub(super) objects: BTreeMap<String, Stored>,
    /// Objects behind delete markers.
    pub(super) hidden: BTreeMap<String, Bytes>,
    /// Unfinished uploads by upload id.
    pub(super) uploads: BTreeMap<String, PendingUpload>,
    pub(super) lies: HashMap<String, Option<Evidence>>,
    pub(super) events: Vec<StoreEvent>,
    pub(super) faults: Vec<Fault>,
    pub(super) away: Option<Away>,
    pub(super) clock: Option<Timestamp>,
    /// Whether the clock is that of the host, as for a folder.
    pub(super) has_host_clock: bool,
    pub(super) lock: Option<ObjectLock>,
    /// The lock that the owner of the bucket gives every object.
    pub(super) default_retention: Option<ObjectLock>,
    pub(super) cannot_extend_locks: bool,
    /// Whether large objects come whole, from a spool.
    pub(super) takes_no_parts: bool,
    /// The most entries of a page of a listing.
    pub(super) page_entries: usize,
    ids_given: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            hidden: BTreeMap::new(),
            uploads: BTreeMap::new(),
            lies: HashMap::new(),
            events: Vec::new(),
            faults: Vec::new(),
            away: None,
            clock: None,
            has_host_clock: false,
            lock: None,
            default_retention: None,
            cannot_extend_locks: false,
            takes_no_parts: false,
            page_entries: PAGE_ENTRIES,
            ids_given: 0,
        }
    }
}

impl State {
    fn now(&self) -> Timestamp {
        self.clock.unwrap_or_else(Timestamp::now)
    }

    fn next_id(&mut self, word: &str) -> String {
        self.ids_given += 1;
        format!("{word}-{:06}", self.ids_given)
    }

    pub(super) fn begin(&mut self, key: &str) -> Result<String, CallFailure> {
        self.demand_free(key)?;
        let upload_id = self.next_id("upload");
        let upload = PendingUpload {
            key: key.to_owned(),
            parts: Vec::new(),
            started_at: self.now(),
        };
        self.uploads.insert(upload_id.clone(), upload);
        Ok(upload_id)
    }

    pub(super) fn put_part(&mut self, upload_id: &str, part: Bytes) -> Result<(), CallFailure> {
        let upload = self.uploads.get_mut(upload_id).ok_or_else(no_such_upload)?;
        // Copied, because a part is a buffer of its sender, which waits for its return.
        upload.parts.push(Bytes::copy_from_slice(&part));
        Ok(())
    }

    /// Completes an upload into an object. A taken key ends the upload.
    pub(super) fn finish(
        &mut self,
        upload_id: &str,
        part_bytes: u64,
        tier: EvidenceTier,
    ) -> Result<Evidence, CallFailure> {
        let upload = self.uploads.remove(upload_id).ok_or_else(no_such_upload)?;
        self.commit(
            &upload.key,
            upload.parts.concat().into(),
            Some(part_bytes),
            tier,
        )
    }

    /// Stores an object create-only, and returns the evidence that the store then reports.
    pub(super) fn commit(
        &mut self,
        key: &str,
        bytes: Bytes,
        part_bytes: Option<u64>,
        tier: EvidenceTier,
    ) -> Result<Evidence, CallFailure> {
        self.demand_free(key)?;
        let sent = self.store(key, bytes, part_bytes, tier);
        match self.head(key) {
            Some(found) if found == sent => Ok(found),
            found => Err(CallFailure::new(
                StoreErrorKind::Corrupt,
                format!("sent {sent:?}, the store has {found:?}"),
            )),
        }
    }

    pub(super) fn put_new(
        &mut self,
        key: &str,
        bytes: Bytes,
        tier: EvidenceTier,
    ) -> Result<(PutOutcome, Evidence), CallFailure> {
        match self.objects.get(key) {
            Some(there) if there.bytes == bytes => {
                Ok((PutOutcome::Identical, there.evidence.clone()))
            }
            _ => Ok((PutOutcome::Created, self.commit(key, bytes, None, tier)?)),
        }
    }

    /// Stores an object, replacing an existing one.
    pub(super) fn store(
        &mut self,
        key: &str,
        bytes: Bytes,
        part_bytes: Option<u64>,
        tier: EvidenceTier,
    ) -> Evidence {
        let evidence = Evidence {
            tier,
            bytes: bytes.len() as u64,
            checksum: (tier == EvidenceTier::Crc64nvmeFull)
                .then(|| HashKind::Crc64nvme.hash(&bytes).base64()),
            etag: None,
            version_id: (tier == EvidenceTier::IdPin).then(|| self.next_id("version")),
            part_bytes,
            locked_until: self
                .lock
                .or(self.default_retention)
                .map(|lock| lock.until(self.now()).to_string()),
        };
        let stored = Stored {
            bytes,
            evidence: evidence.clone(),
            modified_at: self.now(),
        };
        self.objects.insert(key.to_owned(), stored);
        evidence
    }

    fn demand_free(&self, key: &str) -> Result<(), CallFailure> {
        match self.objects.contains_key(key) {
            true => Err(CallFailure::new(
                StoreErrorKind::AlreadyExists,
                "the key is taken",
            )),
            false => Ok(()),
        }
    }

    pub(super) fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, CallFailure> {
        let object = self
            .objects
            .get(key)
            .ok_or_else(|| CallFailure::new(StoreErrorKind::NotFound, "no such object"))?;
        let bytes = object.bytes.len() as u64;
        let corrupt = |text| Err(CallFailure::new(StoreErrorKind::Corrupt, text));
        match range {
            None if bytes > limit_bytes => corrupt(format!(
                "it has {bytes} bytes, more than the {limit_bytes} allowed"
            )),
            None => Ok(object.bytes.clone()),
            Some(range) if range.start > range.end || range.end > bytes => corrupt(format!(
                "bytes {range:?} were requested, the object has {bytes}"
            )),
            // Both ends are at most the length of a buffer, so they fit.
            #[expect(clippy::cast_possible_truncation, reason = "bounded by a usize above")]
            Some(range) => Ok(object.bytes.slice(range.start as usize..range.end as usize)),
        }
    }

    pub(super) fn head(&self, key: &str) -> Option<Evidence> {
        match self.lies.get(key) {
            Some(lie) => lie.clone(),
            None => self.objects.get(key).map(|object| object.evidence.clone()),
        }
    }

    pub(super) fn list(&self, prefix: &str) -> Vec<ListedObject> {
        self.under(prefix, Bound::Included(prefix)).collect()
    }

    /// Returns the next page of a listing, behind the key `last`.
    pub(super) fn page(&self, prefix: &str, last: Option<&str>) -> Vec<ListedObject> {
        let begin = last.map_or(Bound::Included(prefix), Bound::Excluded);
        self.under(prefix, begin).take(self.page_entries).collect()
    }

    fn under(&self, prefix: &str, begin: Bound<&str>) -> impl Iterator<Item = ListedObject> {
        self.objects
            .range::<str, _>((begin, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, object)| ListedObject {
                key: key.clone(),
                bytes: object.bytes.len() as u64,
                modified_at: Some(object.modified_at),
            })
    }

    /// Returns the folders below a prefix, and the number of entries with the keys beside them.
    pub(super) fn list_folders(&self, prefix: &str, delimiter: char) -> (Vec<String>, usize) {
        let (mut folders, mut keys) = (Vec::new(), 0);
        let mut begin = Bound::Included(prefix.to_owned());
        loop {
            let bounds = (begin.as_ref().map(String::as_str), Bound::Unbounded);
            let next = self.objects.range::<str, _>(bounds).next();
            let Some((key, _)) = next.filter(|(key, _)| key.starts_with(prefix)) else {
                return (folders.clone(), folders.len() + keys);
            };
            begin = match key[prefix.len()..].find(delimiter) {
                None => {
                    keys += 1;
                    Bound::Excluded(key.clone())
                }
                Some(at) => {
                    let end = prefix.len() + at + delimiter.len_utf8();
                    folders.push(key[..end].to_owned());
                    // No key has this character, the last one.
                    Bound::Excluded(format!("{}{}", &key[..end], char::MAX))
                }
            };
        }
    }

    pub(super) fn unfinished(&self, prefix: &str) -> Vec<UnfinishedUpload> {
        let under = self
            .uploads
            .iter()
            .filter(|(_, upload)| upload.key.starts_with(prefix));
        under
            .map(|(upload_id, upload)| UnfinishedUpload {
                key: upload.key.clone(),
                upload_id: upload_id.clone(),
                started_at: Some(upload.started_at),
            })
            .collect()
    }

    /// Locks an object at least until then.
    pub(super) fn extend_lock(&mut self, key: &str, until: Timestamp) -> Result<(), CallFailure> {
        if self.lock.is_none() || self.cannot_extend_locks {
            return Err(CallFailure::new(
                StoreErrorKind::Unsupported,
                "this store extends no locks",
            ));
        }
        let object = self
            .objects
            .get_mut(key)
            .ok_or_else(|| CallFailure::new(StoreErrorKind::NotFound, "no such object"))?;
        let end = object
            .evidence
            .locked_until
            .as_deref()
            .and_then(|text| text.parse::<Timestamp>().ok());
        object.evidence.locked_until = Some(end.map_or(until, |end| end.max(until)).to_string());
        Ok(())
    }

    pub(super) fn delete(&mut self, key: &str) -> Result<(), CallFailure> {
        let now = self.now();
        let end = self
            .objects
            .get(key)
            .and_then(|object| object.evidence.locked_until.as_deref());
        match end
            .and_then(|text| text.parse::<Timestamp>().ok())
            .filter(|end| *end > now)
        {
            Some(end) => Err(CallFailure::new(
                StoreErrorKind::Denied,
                format!("it is locked until {end}"),
            )),
            None => {
                self.objects.remove(key);
                self.hidden.remove(key);
                Ok(())
            }
        }
    }

    pub(super) fn flip(&mut self, key: &str, offset: usize) -> bool {
        let Some(object) = self.objects.get_mut(key) else {
            return false;
        };
        let mut bytes = object.bytes.to_vec();
        let Some(byte) = bytes.get_mut(offset) else {
            return false;
        };
        *byte ^= 1;
        object.bytes = bytes.into();
        true
    }

    pub(super) fn swap(&mut self, one: &str, other: &str) -> bool {
        if one == other || !self.objects.contains_key(other) {
            return false;
        }
        let Some(first) = self.objects.remove(one) else {
            return false;
        };
        let Some(second) = self.objects.insert(other.to_owned(), first) else {
            return false;
        };
        self.objects.insert(one.to_owned(), second);
        true
    }
}

fn no_such_upload() -> CallFailure {
    CallFailure::new(
        StoreErrorKind::NotFound,
        "no such upload: it was completed or aborted",
    )
}
