//! Receives into in-memory datasets: makes the kernel's checks, in its order, with its error
//! numbers.

use super::content::Content;
use super::state::{FakeDataset, FakeSnapshot, Partial, State};
use super::stream::{
    BEGIN, BEGIN_MAGIC, CHECKSUM_AT, END, FEATURE_EMBED_DATA, FEATURE_RAW, FEATURE_RESUMING,
    FLAG_CLONE, FREE, FREEOBJECTS, HEADER_BYTES, OBJECT, Sum, WRITE, read_from_ivset,
    read_resume_list,
};
use crate::zfs::call::ZfsCall;
use crate::zfs::{DatasetType, Property, ReceiveRequest, STREAM_TRUNCATED, SendResume, ZfsError};
use std::io::{ErrorKind, Read};
use std::sync::Arc;

/// ZFS_ERR_WRONG_PARENT: the parent is not a filesystem.
const WRONG_PARENT: i32 = 1033;
/// ZFS_ERR_FROM_IVSET_GUID_MISSING: the base of a raw incremental has no IV-set guid.
const FROM_IVSET_GUID_MISSING: i32 = 1034;
/// The largest payload that a record may claim.
const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// The reason why no more records come.
pub(super) enum ReadEnd {
    Errno(i32),
    Source(std::io::Error),
}

/// The stream's records, each checked against the running checksum.
struct Records<'a> {
    source: &'a mut (dyn Read + Send),
    sum: Sum,
    bytes: u64,
}

struct Record {
    header: [u8; HEADER_BYTES],
    payload: Vec<u8>,
}

/// The dataset under construction.
pub(super) struct Target {
    content: Content,
    point: SendResume,
    to_guid: u64,
    txg: u64,
    points_at_objects: bool,
    /// For a receive into an existing dataset: the guid of the snapshot of which the receive's
    /// hidden dataset is a clone, 0 for a full stream.
    onto: Option<u64>,
    /// Bytes read so far, including earlier receives that were interrupted.
    bytes: u64,
}

impl Record {
    fn number(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.header[at..at + 8].try_into().unwrap_or_default())
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.header[at..at + 4].try_into().unwrap_or_default())
    }

    fn kind(&self) -> u32 {
        self.word(0)
    }

    fn features(&self) -> u64 {
        self.number(16) >> 2
    }

    fn payload_bytes(&self) -> Option<usize> {
        let bytes = match self.kind() {
            BEGIN => self.word(4).into(),
            OBJECT => u64::from(self.word(28)).next_multiple_of(8),
            WRITE if self.header[50] != 0 => self.number(96),
            WRITE => self.number(32),
            FREEOBJECTS | FREE | END => 0,
            _ => return None,
        };
        usize::try_from(bytes)
            .ok()
            .filter(|bytes| *bytes <= PAYLOAD_BYTES_MAX)
    }
}

impl Records<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> Result<(), ReadEnd> {
        self.source
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => ReadEnd::Errno(STREAM_TRUNCATED),
                _ => ReadEnd::Source(error),
            })?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Reads the next header and checks it. The payload follows in the stream.
    fn header(&mut self) -> Result<Record, ReadEnd> {
        let mut record = Record {
            header: [0; HEADER_BYTES],
            payload: Vec::new(),
        };
        self.read(&mut record.header)?;
        let is_begin = record.kind() == BEGIN;
        self.sum.add(&record.header[..CHECKSUM_AT]);
        let stored = &record.header[CHECKSUM_AT..];
        if !is_begin && stored != [0; 32] && stored != self.sum.to_bytes() {
            return Err(ReadEnd::Errno(libc::EBADE));
        }
        self.sum.add(stored);
        Ok(record)
    }

    fn payload(&mut self, record: &mut Record) -> Result<(), ReadEnd> {
        record.payload = vec![0; record.payload_bytes().ok_or(ReadEnd::Errno(libc::EINVAL))?];
        self.read(&mut record.payload)?;
        self.sum.add(&record.payload);
        Ok(())
    }

    /// Whether bytes follow. A source that fails instead of ending is an error.
    fn goes_on(&mut self) -> Result<bool, ReadEnd> {
        match self.read(&mut [0]) {
            Ok(()) => Ok(true),
            Err(ReadEnd::Errno(_)) => Ok(false),
            Err(stop) => Err(stop),
        }
    }
}

impl Target {
    fn apply(&mut self, record: &Record) -> Result<(), ReadEnd> {
        let object = record.number(8);
        let invalid = || ReadEnd::Errno(libc::EINVAL);
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| invalid());
        match record.kind() {
            OBJECT => {
                let length = record
                    .payload
                    .first_chunk()
                    .map_or(0, |bytes| u64::from_le_bytes(*bytes));
                self.content.resize(object, size(length)?, self.txg);
                if self.points_at_objects {
                    self.point = SendResume { object, offset: 0 };
                }
            }
            FREEOBJECTS => self
                .content
                .remove_range(object, record.number(16), self.txg),
            WRITE => {
                let offset = record.number(24);
                if !self
                    .content
                    .write_at(object, size(offset)?, &record.payload, self.txg)
                {
                    return Err(invalid());
                }
                self.point = SendResume { object, offset };
            }
            // The length in OBJECT has already truncated the file.
            FREE => {}
            _ => return Err(invalid()),
        }
        Ok(())
    }

    /// Applies records up to END. As in the kernel, each record is applied only after the next
    /// one's header has arrived.
    fn apply_all(&mut self, records: &mut Records<'_>) -> Result<(), ReadEnd> {
        let mut waiting: Option<Record> = None;
        loop {
            let before = records.sum.to_bytes();
            let mut record = records.header()?;
            if let Some(waiting) = waiting.take() {
                self.apply(&waiting)?;
            }
            if record.kind() == END {
                let is_right = record.header[8..40] == before && record.number(40) == self.to_guid;
                return if is_right {
                    Ok(())
                } else {
                    Err(ReadEnd::Errno(libc::EBADE))
                };
            }
            records.payload(&mut record)?;
            waiting = Some(record);
        }
    }
}

/// A running receive. The pools are locked only at its start and its end, not while it waits for
/// its source.
pub(super) struct Incoming<'a> {
    request: &'a ReceiveRequest,
    call: ZfsCall,
    records: Records<'a>,
    begin: Record,
}

impl<'a> Incoming<'a> {
    /// Reads the BEGIN record.
    pub(super) fn open(
        request: &'a ReceiveRequest,
        source: &'a mut (dyn Read + Send),
    ) -> Result<Self, ZfsError> {
        let call = ZfsCall::new("receive", &request.target);
        let mut records = Records {
            source,
            sum: Sum::default(),
            bytes: 0,
        };
        let begin = records.header().and_then(|mut begin| {
            if begin.kind() == BEGIN && begin.number(8) == BEGIN_MAGIC {
                records.payload(&mut begin)?;
            }
            Ok(begin)
        });
        let begin = begin.map_err(|stop| failed(&call, request, stop))?;
        if begin.kind() != BEGIN || begin.number(8) != BEGIN_MAGIC {
            let stream = ZfsCall::new("receive", format_args!("the stream for {}", request.target));
            return Err(stream.malformed("it does not begin as a send stream does"));
        }
        Ok(Self {
            request,
            call,
            records,
            begin,
        })
    }

    /// Checks the target.
    pub(super) fn start(&self, state: &mut State) -> Result<Target, ZfsError> {
        start(state, self.request, &self.begin).map_err(|errno| self.call.refused(errno))
    }

    /// Reads and applies all records. Returns whether bytes follow them.
    pub(super) fn apply(&mut self, target: &mut Target) -> Result<bool, ReadEnd> {
        let applied = target.apply_all(&mut self.records);
        target.bytes += self.records.bytes;
        applied?;
        self.records.goes_on()
    }

    /// Commits the received data, or keeps it for a resume if the request allows that.
    pub(super) fn finish(
        self,
        state: &mut State,
        target: Target,
        applied: Result<bool, ReadEnd>,
    ) -> Result<(), ZfsError> {
        match applied {
            Ok(goes_on) => {
                if let Err(errno) = check_end(state, self.request, &target) {
                    if self.request.resumable {
                        keep_partial(state, self.request, &self.begin, target);
                    }
                    return Err(self.call.refused(errno));
                }
                commit(state, self.request, &self.begin, target.content);
                match goes_on {
                    true => Err(self
                        .call
                        .malformed("the stream goes on after its END record")),
                    false => Ok(()),
                }
            }
            Err(stop) => {
                if self.request.resumable {
                    keep_partial(state, self.request, &self.begin, target);
                }
                Err(failed(&self.call, self.request, stop))
            }
        }
    }
}

fn failed(call: &ZfsCall, request: &ReceiveRequest, stop: ReadEnd) -> ZfsError {
    match stop {
        ReadEnd::Errno(errno) => call.refused(errno),
        ReadEnd::Source(source) => ZfsError::Source {
            subject: request.target.to_string(),
            source,
        },
    }
}

/// Checks that the stream fits the target, and returns the content to which its records are
/// applied.
fn start(state: &mut State, request: &ReceiveRequest, begin: &Record) -> Result<Target, i32> {
    let name = request.target.dataset().as_str();
    let to_guid = begin.number(40);
    let from_guid = begin.number(48);
    let txg = state.next_txg();
    let points_at_objects = state.points_at_objects;
    let target = |content, point, onto| Target {
        content,
        point,
        to_guid,
        txg,
        points_at_objects,
        onto,
        bytes: 0,
    };
    let beginning = SendResume {
        object: 1,
        offset: 0,
    };
    let existing = state.datasets.get_mut(name);
    if begin.features() & FEATURE_RESUMING != 0 {
        let partial = existing
            .and_then(|dataset| dataset.partial.clone())
            .ok_or(libc::EINVAL)?;
        let fits = (partial.to_guid, partial.from_guid) == (to_guid, from_guid)
            && read_resume_list(&begin.payload) == Some(partial.point);
        let Partial {
            content,
            point,
            bytes,
            onto,
            ..
        } = partial;
        return if fits {
            Ok(Target {
                bytes,
                ..target(content, point, onto)
            })
        } else {
            Err(libc::EINVAL)
        };
    }
    if existing
        .as_ref()
        .is_some_and(|dataset| dataset.partial.is_some())
    {
        return Err(libc::EBUSY);
    }
    if begin.word(36) & FLAG_CLONE != 0 {
        // The kernel needs the clone's origin, which this program never gives.
        return Err(libc::EINVAL);
    }
    match existing {
        Some(dataset)
            if dataset
                .snapshots
                .iter()
                .any(|snapshot| snapshot.short == request.target.short()) =>
        {
            Err(libc::EEXIST)
        }
        Some(dataset) if from_guid != 0 => {
            let raw = begin.features() & FEATURE_RAW != 0;
            if raw && read_from_ivset(&begin.payload) == 0 {
                return Err(FROM_IVSET_GUID_MISSING);
            }
            let (content, branch) = base_content(dataset, from_guid, raw)?;
            Ok(target(content, beginning, Some(branch)))
        }
        Some(_) => Err(libc::EEXIST),
        None if from_guid != 0 => Err(libc::ENOENT),
        None => {
            let parent = request.target.dataset().parent().ok_or(libc::ENOENT)?;
            let parent = state.datasets.get(parent.as_str()).ok_or(libc::ENOENT)?;
            if parent.dataset_type != DatasetType::Filesystem {
                return Err(WRONG_PARENT);
            }
            let is_plain = begin.features() & FEATURE_RAW == 0;
            if parent.encrypted && is_plain && begin.features() & FEATURE_EMBED_DATA != 0 {
                return Err(libc::EINVAL);
            }
            Ok(target(Content::default(), beginning, None))
        }
    }
}

/// Returns the content of an incremental's base, and the guid of the snapshot from which the
/// received dataset branches. The dataset must not have changed since the base; unchanged snapshots
/// do not matter, except to raw streams.
fn base_content(dataset: &FakeDataset, from_guid: u64, raw: bool) -> Result<(Content, u64), i32> {
    let base = dataset
        .snapshots
        .iter()
        .find(|snapshot| snapshot.guid == from_guid)
        .ok_or(libc::ENODEV)?;
    let content = Content::clone(&base.content);
    let newest = dataset
        .snapshots
        .last()
        .map_or(from_guid, |snapshot| snapshot.guid);
    match dataset.content.is_newer_than(base.createtxg) || raw && newest != from_guid {
        true => Err(libc::ETXTBSY),
        false => Ok((content, newest)),
    }
}

/// Makes the kernel's checks at the end of a receive: an existing dataset must not have changed
/// during the receive.
fn check_end(state: &State, request: &ReceiveRequest, target: &Target) -> Result<(), i32> {
    let Some(branch) = target.onto else {
        return Ok(());
    };
    let dataset = state.get(request.target.dataset())?;
    match dataset.snapshots.last() {
        Some(newest) if newest.guid != branch => Err(libc::EINVAL),
        Some(newest) if dataset.content.is_newer_than(newest.createtxg) => Err(libc::ETXTBSY),
        _ => Ok(()),
    }
}

/// Returns the dataset to receive into; makes it if it does not exist.
fn dataset_for<'a>(
    state: &'a mut State,
    request: &ReceiveRequest,
    begin: &Record,
) -> &'a mut FakeDataset {
    let guid = state.next_guid();
    let dataset_type = if begin.word(32) == 3 {
        DatasetType::Volume
    } else {
        DatasetType::Filesystem
    };
    let raw = begin.features() & FEATURE_RAW != 0;
    let make = || FakeDataset {
        encrypted: raw,
        key_unavailable: raw,
        redacted: false,
        ..FakeDataset::new(guid, dataset_type)
    };
    state
        .datasets
        .entry(request.target.dataset().to_string())
        .or_insert_with(make)
}

fn commit(state: &mut State, request: &ReceiveRequest, begin: &Record, content: Content) {
    let createtxg = state.next_txg();
    let dataset = dataset_for(state, request, begin);
    (dataset.partial, dataset.inconsistent) = (None, false);
    dataset.content = content.clone();
    dataset.snapshots.push(FakeSnapshot {
        short: request.target.short().to_owned(),
        guid: begin.number(40),
        createtxg,
        created: begin.number(24),
        content: Arc::new(content),
        holds: Default::default(),
        user_properties: Default::default(),
    });
    set_properties(dataset, request);
}

fn keep_partial(state: &mut State, request: &ReceiveRequest, begin: &Record, target: Target) {
    let dataset = dataset_for(state, request, begin);
    dataset.inconsistent = dataset.snapshots.is_empty();
    let name = begin.header[56..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    dataset.partial = Some(Partial {
        content: target.content,
        to_guid: begin.number(40),
        from_guid: begin.number(48),
        to_name: String::from_utf8_lossy(name).into_owned(),
        features: begin.features() & !FEATURE_RESUMING,
        bytes: target.bytes,
        point: target.point,
        onto: target.onto,
    });
    // Properties of a new dataset are set before the first record comes; on an existing dataset the
    // kernel restores the earlier properties.
    if dataset.inconsistent {
        set_properties(dataset, request);
    }
}

fn set_properties(dataset: &mut FakeDataset, request: &ReceiveRequest) {
    let source = Some(request.target.dataset().to_string());
    for (name, value) in &request.properties {
        dataset.properties.insert(
            name.clone(),
            Property {
                value: value.clone(),
                source: source.clone(),
            },
        );
    }
}
