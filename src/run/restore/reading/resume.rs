//! [`find_start`]: finds the point in a stored stream at which an interrupted receive resumes.
//!
//! The receiver reports the object and offset at which it stopped. No stored object maps these to a
//! stream position: the resume points of an upload would reveal the content to the store, and are
//! deleted when the backup is committed. But the records of a stream are ordered by object, and
//! within an object by offset, so a search like that in a dictionary finds the point. The search
//! reads the first record after a few places ([`Scout`]) and begins where the receiver's count of
//! bytes points to; each read fetches about a MiB. An uncompressed chunk can be read from any page,
//! because the pages of an age file open one by one, under a head that the signed list pins. A
//! compressed chunk opens from its start only.
//!
//! The restore therefore fetches again: BEGIN, the reads of the search, and at most a step of 8 MiB
//! (or a compressed chunk) before each of three places: the point itself, the object's OBJECT
//! record, and in raw streams its OBJECT_RANGE. The kernel repeats the latter two as well when it
//! resumes a send ([`crate::stream::resuming`]). An index could save a part of that, but would have
//! to be made, sealed and kept with every backup. The format has a place for one, and the search
//! needs none.

use super::plain::{Entries, LOOK, PlainStream, ReadPoint};
use crate::run::RunError;
use crate::run::restore::RestoreBackup;
use crate::run::transfer::Stop;
use crate::stream::fletcher::ByteOrder;
use crate::stream::nvlist::with_resume_point;
use crate::stream::record::{BeginRecord, HEADER_BYTES, StreamError, feature};
use crate::stream::resuming::{ResumeStart, ResumingError};
use crate::stream::resync::{
    Boundary, Gather, GatheredRecord, Scout, StreamPlace, Wanted, Within, boundary_after_begin,
};
use crate::zfs::ResumeToken;
use std::collections::BTreeMap;

/// Dnodes in a dnode block, which an OBJECT_RANGE covers.
const OBJECTS_PER_RANGE: u64 = 32;
/// Reads that follow the hint, before the search halves the rest.
const GUESSES: u32 = 4;

/// The point at which a receive resumes.
pub(in crate::run::restore) struct FoundStart {
    /// The beginning of the resumed stream.
    pub(in crate::run::restore) start: ResumeStart,
    /// The entry at which the fetch begins.
    pub(in crate::run::restore) entry: ReadPoint,
    /// The opened bytes to skip from that entry on.
    pub(in crate::run::restore) skip_bytes: u64,
}

/// Finds the point in a backup's stream. Blocking; must be called within a runtime.
///
/// # Errors
/// [`RunError::CannotResumeReceive`] when the stored stream has no such point; other errors when the
/// stream cannot be read.
pub(in crate::run::restore) fn find_start(
    backup: &RestoreBackup,
    identities: &[age::x25519::Identity],
    token: &ResumeToken,
    stop: Stop,
) -> Result<FoundStart, RunError> {
    let id = backup.manifest.id.to_string();
    let unfit = |why| RunError::CannotResumeReceive {
        id: id.clone(),
        source: ResumingError::Unfit { why },
    };
    if !backup.manifest.send.checked {
        return Err(unfit("it has records of an unknown type"));
    }
    let opening = read_opening(backup, identities, &stop)?;
    let mut search = RecordSearch {
        backup,
        identities,
        stop,
        opening,
        entries: Entries::of(backup),
        found_at: BTreeMap::new(),
    };
    let StreamOpening {
        begin,
        payload,
        boundary,
    } = search.opening.clone();
    let payload = with_resume_point(&payload, token.object, token.offset)
        .filter(|_| begin.order == ByteOrder::Little)
        .ok_or_else(|| unfit("it was sent by a machine of the other byte order"))?;
    let mut start = ResumeStart {
        begin,
        payload,
        prologue: Vec::new(),
        from: boundary,
        first: None,
    };
    // If nothing was received durably, or a volume stopped at its first block, the whole stream is
    // needed.
    if token.object <= 1 && token.offset == 0 {
        return Ok(FoundStart {
            start,
            entry: ReadPoint(0),
            skip_bytes: boundary.position,
        });
    }
    let object = StreamPlace {
        object: token.object,
        within: Within::Object,
    };
    let point = match token.offset {
        0 => object,
        offset => StreamPlace {
            within: Within::Block(offset),
            ..object
        },
    };
    let entry = search.seek(point, search.entries.before(token.bytes))?;
    if start.begin.has(feature::RAW) {
        let first = token.object / OBJECTS_PER_RANGE * OBJECTS_PER_RANGE;
        let range = StreamPlace {
            object: first,
            within: Within::Range,
        };
        let at = search.seek(range, entry)?;
        start.prologue = search.gather(at, token.object, Wanted::Range)?;
    }
    if point != object {
        let at = search.seek(object, entry)?;
        let records = search.gather(at, token.object, Wanted::Object)?;
        if records.is_empty() {
            return Err(RunError::CannotResumeReceive {
                id,
                source: ResumingError::NoPlace { place: object },
            });
        }
        start.prologue.extend(records);
    }
    start.first = Some(point);
    start.from = search.read_from(entry)?.0.unwrap_or(boundary);
    let skip_bytes = start.from.position - search.entries.position(entry);
    Ok(FoundStart {
        start,
        entry,
        skip_bytes,
    })
}

/// The BEGIN record as it is stored, and the boundary after it.
#[derive(Clone)]
struct StreamOpening {
    begin: BeginRecord,
    payload: Vec<u8>,
    boundary: Boundary,
}

fn read_opening(
    backup: &RestoreBackup,
    identities: &[age::x25519::Identity],
    stop: &Stop,
) -> Result<StreamOpening, RunError> {
    let id = backup.manifest.id.to_string();
    let wrong = |source| RunError::CannotResumeReceive {
        id: id.clone(),
        source,
    };
    let mut stream = PlainStream::open(backup, identities, ReadPoint(0), LOOK, stop.clone());
    let mut bytes = Vec::new();
    let mut read_to = |bytes: &mut Vec<u8>, length: usize| -> Result<(), RunError> {
        while bytes.len() < length && stream.read(bytes)? {}
        let why = "it ends within its first record";
        if bytes.len() < length {
            Err(wrong(ResumingError::Unfit { why }))
        } else {
            Ok(())
        }
    };
    read_to(&mut bytes, HEADER_BYTES)?;
    let header = bytes.first_chunk().copied().unwrap_or([0; HEADER_BYTES]);
    let begin = BeginRecord::parse(&header).map_err(|fault| {
        wrong(ResumingError::Stream(StreamError {
            record: 0,
            record_type: None,
            position: 0,
            fault,
        }))
    })?;
    let manifest = &backup.manifest;
    let base = manifest.base.as_ref().map(|base| base.guid);
    if begin.snapshot_guid != manifest.snapshot.guid
        || begin.base_guid != base
        || begin.has(feature::RESUMING)
    {
        return Err(wrong(ResumingError::Unfit {
            why: "its stream is not of the snapshot and base that it names",
        }));
    }
    let end = HEADER_BYTES + begin.payload_bytes as usize;
    read_to(&mut bytes, end)?;
    let boundary = boundary_after_begin(begin.order, &bytes[..end]);
    Ok(StreamOpening {
        payload: bytes[HEADER_BYTES..end].to_vec(),
        boundary,
        begin,
    })
}

/// The records after an entry: the first boundary, and the place of the first record that has one.
type Found = (Option<Boundary>, Option<StreamPlace>);

/// A search through one stream, with the results of its reads.
struct RecordSearch<'a> {
    backup: &'a RestoreBackup,
    identities: &'a [age::x25519::Identity],
    stop: Stop,
    opening: StreamOpening,
    entries: Entries,
    found_at: BTreeMap<ReadPoint, Found>,
}

impl RecordSearch<'_> {
    /// Returns the last entry whose first following record is at or before that place. The place
    /// lies after that entry.
    fn seek(&mut self, place: StreamPlace, hint: ReadPoint) -> Result<ReadPoint, RunError> {
        let mut low = 0;
        let mut high = self.entries.count;
        let mut guess = hint.0.max(1);
        let mut guesses = GUESSES;
        while high - low > 1 {
            let halved = low + (high - low) / 2;
            let at = if guesses > 0 && low < guess && guess < high {
                guess
            } else {
                halved
            };
            guesses = guesses.saturating_sub(1);
            if self
                .read_from(ReadPoint(at))?
                .1
                .is_some_and(|first| first <= place)
            {
                (low, guess) = (at, at + 1);
            } else {
                (high, guess) = (at, at - 1);
            }
        }
        Ok(ReadPoint(low))
    }

    fn read_from(&mut self, entry: ReadPoint) -> Result<Found, RunError> {
        if let Some(found) = self.found_at.get(&entry) {
            return Ok(*found);
        }
        let StreamOpening {
            begin, boundary, ..
        } = &self.opening;
        let mut scout = match entry {
            ReadPoint(0) => Scout::at(begin.clone(), *boundary),
            entry => Scout::new(begin.clone(), self.entries.position(entry)),
        };
        let skip = if entry == ReadPoint(0) {
            boundary.position
        } else {
            0
        };
        self.read(entry, skip, |bytes| scout.feed(bytes))?;
        scout.end();
        let found = scout
            .found()
            .map_or((None, None), |(boundary, place)| (Some(boundary), place));
        self.found_at.insert(entry, found);
        Ok(found)
    }

    /// Returns the records of an object that follow an entry.
    fn gather(
        &mut self,
        entry: ReadPoint,
        object: u64,
        wanted: Wanted,
    ) -> Result<Vec<GatheredRecord>, RunError> {
        let from = self.read_from(entry)?.0.unwrap_or(self.opening.boundary);
        let mut gather = Gather::new(self.opening.begin.clone(), from, object, wanted);
        let skip = from.position - self.entries.position(entry);
        self.read(entry, skip, |bytes| gather.feed(bytes))?;
        Ok(gather.records())
    }

    /// Feeds the stream from an entry on, without its first `skip_bytes`, until `feed` returns
    /// `true` or the stream ends.
    fn read(
        &self,
        entry: ReadPoint,
        mut skip_bytes: u64,
        mut feed: impl FnMut(&[u8]) -> Result<bool, StreamError>,
    ) -> Result<(), RunError> {
        let mut stream =
            PlainStream::open(self.backup, self.identities, entry, LOOK, self.stop.clone());
        let mut plain = Vec::new();
        while stream.read(&mut plain)? {
            let skipped = usize::try_from(skip_bytes)
                .unwrap_or(usize::MAX)
                .min(plain.len());
            skip_bytes -= skipped as u64;
            let id = || self.backup.manifest.id.to_string();
            let enough =
                feed(&plain[skipped..]).map_err(|error| RunError::CannotResumeReceive {
                    id: id(),
                    source: ResumingError::Stream(error),
                })?;
            if enough {
                return Ok(());
            }
            plain.clear();
        }
        Ok(())
    }
}
