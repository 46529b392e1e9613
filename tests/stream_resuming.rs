//! Taking up a stored stream in its middle: the first record after any byte is found, and what is
//! made of the rest is what the kernel would send again.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

mod stream_common;

use proptest::prelude::*;
use stream_common::{Rec, all_types, begin, layout, pattern, sample, stream};
use zfs_backup::stream::fletcher::ByteOrder;
use zfs_backup::stream::record::{BeginRecord, HEADER_BYTES, RecordHeader, RecordType, feature};
use zfs_backup::stream::resuming::{ResumeStart, Resumer, ResumingError};
use zfs_backup::stream::resync::{
    Boundary, Gather, GatheredRecord, Scout, StreamPlace, Wanted, Within, boundary_after_begin,
};

/// The stream fed from that byte on, in slices of a few hundred bytes.
fn scout(bytes: &[u8], from: usize, slice: usize) -> (Scout, bool) {
    let begin = BeginRecord::parse(bytes.first_chunk().unwrap()).unwrap();
    let mut scout = Scout::new(begin, from as u64);
    for bytes in bytes[from..].chunks(slice) {
        if scout.feed(bytes).unwrap() {
            return (scout, true);
        }
    }
    scout.end();
    let found = scout.found().is_some();
    (scout, found)
}

fn at(boundary: Boundary) -> usize {
    usize::try_from(boundary.position).unwrap()
}

/// Where BEGIN's payload ends.
fn opening(bytes: &[u8]) -> (BeginRecord, Boundary) {
    let begin = BeginRecord::parse(bytes.first_chunk().unwrap()).unwrap();
    let end = HEADER_BYTES + begin.payload_bytes as usize;
    let boundary = boundary_after_begin(begin.order, &bytes[..end]);
    (begin, boundary)
}

#[test]
fn the_first_record_after_any_word_is_found() {
    for order in [ByteOrder::Little, ByteOrder::Big] {
        let bytes = sample(order);
        let records = layout(&bytes);
        let after_begin = records[0].1;
        for from in (after_begin..bytes.len() - HEADER_BYTES + 1).step_by(4) {
            let (scout, enough) = scout(&bytes, from, 100 + from % 500);
            assert!(enough, "at {from}");
            let start = records
                .iter()
                .map(|(_, end)| *end)
                .find(|end| *end >= from)
                .unwrap();
            let (boundary, place) = scout.found().unwrap();
            assert_eq!(boundary.position, start as u64, "at {from}");
            let next = records
                .iter()
                .zip(&records[1..])
                .filter(|((_, end), _)| *end >= start);
            assert_eq!(
                place,
                next.map(|(_, (header, _))| header)
                    .find_map(StreamPlace::of),
                "at {from}"
            );
        }
        // In the last record there is none.
        let (scout, enough) = scout(&bytes, bytes.len() - HEADER_BYTES + 4, 50);
        assert!(!enough && scout.found().is_none());
    }
}

/// A block may hold a stream: of this very snapshot it cannot be, since its guid came later, but of
/// any other.
#[test]
fn stream_stored_inside_a_block_is_not_taken_for_records() {
    let other = BeginRecord {
        snapshot_guid: zfs_backup::model::Guid(99),
        ..begin(ByteOrder::Little)
    };
    let within = stream(&other, &[], &all_types());
    let records = [
        Rec::Object(5, vec![]),
        Rec::Write(5, 0, within.clone()),
        Rec::Write(5, 1 << 20, pattern(1, 64)),
    ];
    let bytes = stream(&begin(ByteOrder::Little), &[], &records);
    let in_block = layout(&bytes)[1].1 + HEADER_BYTES;
    for from in (in_block..in_block + within.len()).step_by(312) {
        let (boundary, place) = scout(&bytes, from / 4 * 4, 1000).0.found().unwrap();
        assert_eq!(at(boundary), layout(&bytes)[2].1);
        assert_eq!(
            place,
            Some(StreamPlace {
                object: 5,
                within: Within::Block(1 << 20)
            })
        );
    }
}

#[test]
fn bytes_that_resemble_a_record_are_skipped() {
    let mut bytes = sample(ByteOrder::Little);
    let records = layout(&bytes);
    // A byte of the record behind the first that is found: its header no longer agrees.
    let place = records[5].1 + 20;
    bytes[place] ^= 1;
    let begin = BeginRecord::parse(bytes.first_chunk().unwrap()).unwrap();
    let mut scout = Scout::new(begin, records[4].1 as u64);
    assert!(scout.feed(&bytes[records[4].1..]).unwrap());
    // Of the first header that is found only its sum counts; that its bytes are right is for age to
    // say.
    assert_eq!(at(scout.found().unwrap().0), records[5].1);
}

fn gather(bytes: &[u8], object: u64, wanted: Wanted) -> Vec<RecordType> {
    let (begin, boundary) = opening(bytes);
    let mut gather = Gather::new(begin, boundary, object, wanted);
    for bytes in bytes[at(boundary)..].chunks(77) {
        if gather.feed(bytes).unwrap() {
            break;
        }
    }
    gather
        .records()
        .iter()
        .map(|(header, _)| header.record_type())
        .collect()
}

#[test]
fn records_that_the_kernel_repeats_are_gathered() {
    use RecordType::{Free, Object, ObjectRange, Spill};
    let records = [
        Rec::ObjectRange(0, 32),
        Rec::Object(3, pattern(1, 44)),
        Rec::Spill(3, pattern(2, 64)),
        Rec::Free(3, 512, u64::MAX),
        Rec::Write(3, 0, pattern(3, 512)),
        Rec::Free(3, 512, 512),
        Rec::Object(4, vec![]),
        Rec::FreeObjects(5, 27),
        Rec::ObjectRange(32, 32),
        Rec::Object(40, vec![]),
    ];
    let bytes = stream(&begin(ByteOrder::Little), &[], &records);
    assert_eq!(gather(&bytes, 3, Wanted::Object), [Object, Spill, Free]);
    assert_eq!(gather(&bytes, 4, Wanted::Object), [Object]);
    assert_eq!(gather(&bytes, 40, Wanted::Object), [Object]);
    for none in [1, 5, 41] {
        assert_eq!(gather(&bytes, none, Wanted::Object), [], "{none}");
    }
    for (object, expected) in [
        (3, vec![ObjectRange]),
        (31, vec![ObjectRange]),
        (63, vec![ObjectRange]),
        (64, vec![]),
    ] {
        assert_eq!(gather(&bytes, object, Wanted::Range), expected, "{object}");
    }
}

#[test]
fn record_that_the_stream_ends_in_is_not_gathered() {
    let bytes = stream(
        &begin(ByteOrder::Little),
        &[],
        &[
            Rec::Object(5, pattern(1, 64)),
            Rec::Write(5, 0, pattern(2, 64)),
        ],
    );
    let (begin, from) = opening(&bytes);
    let payload = at(from) + HEADER_BYTES..at(from) + HEADER_BYTES + 64;
    for end in payload {
        let mut gather = Gather::new(begin.clone(), from, 5, Wanted::Object);
        assert_eq!(gather.feed(&bytes[at(from)..end]), Ok(false));
        assert!(gather.records().is_empty(), "cut at {end}");
    }
}

/// What the resumer makes of the stream, read from the boundary before record `from` of `records`.
fn resume(bytes: &[u8], start: &ResumeStart, slice: usize) -> Result<Vec<u8>, ResumingError> {
    let mut out = Vec::new();
    let mut resumer = Resumer::new(start, &mut |bytes| out.extend_from_slice(bytes));
    for bytes in bytes[at(start.from)..].chunks(slice) {
        resumer.feed(bytes, &mut |bytes| out.extend_from_slice(bytes))?;
    }
    assert_eq!(resumer.finish()?, bytes.len() as u64);
    Ok(out)
}

fn boundary_before(bytes: &[u8], record: usize) -> Boundary {
    let from = layout(bytes)[record].1;
    scout(bytes, from, 1000).0.found().unwrap().0
}

/// A few objects with blocks, each as ZFS sends it.
fn objects() -> Vec<Rec> {
    let blocks = |seed: u32| {
        let object = u64::from(seed);
        let block = move |n: u8| {
            Rec::Write(
                object,
                u64::from(n) << 17,
                pattern(seed + 9, 1000 + usize::from(n)),
            )
        };
        let writes = (0..4).map(block);
        let head = [
            Rec::Object(object, pattern(seed, 44)),
            Rec::Free(object, 1 << 20, u64::MAX),
        ];
        head.into_iter()
            .chain(writes)
            .chain([Rec::Spill(object, pattern(8, 64))])
    };
    [7, 8, 12]
        .into_iter()
        .flat_map(blocks)
        .chain([Rec::FreeObjects(13, 19)])
        .collect()
}

#[test]
fn resuming_stream_equals_that_of_a_resumed_send() {
    let (records, saved) = (objects(), begin(ByteOrder::Little));
    let bytes = stream(&saved, &pattern(9, 72), &records);
    let (parsed, _) = opening(&bytes);
    let payload = pattern(12, 160);
    for (number, record) in records.iter().enumerate() {
        let Some((object, offset)) = record.block() else {
            continue;
        };
        let head = records
            .iter()
            .position(|record| matches!(record, Rec::Object(o, _) if *o == object))
            .unwrap();
        let prologue: Vec<GatheredRecord> = (head..head + 2)
            .map(|index| {
                let (header, end) = layout(&bytes)[index + 1];
                let start = layout(&bytes)[index].1 + HEADER_BYTES;
                (header, bytes[start..end].to_vec())
            })
            .collect();
        // As the kernel would: BEGIN, the object again, the record and the rest.
        let resuming = BeginRecord {
            feature_flags: saved.feature_flags | feature::RESUMING,
            ..saved.clone()
        };
        let again: Vec<Rec> = records[head..head + 2]
            .iter()
            .chain(&records[number..])
            .cloned()
            .collect();
        let expected = stream(&resuming, &payload, &again);
        for from in [0, number.saturating_sub(3), number] {
            let start = ResumeStart {
                begin: parsed.clone(),
                payload: payload.clone(),
                prologue: prologue.clone(),
                from: boundary_before(&bytes, from),
                first: Some(StreamPlace {
                    object,
                    within: Within::Block(offset),
                }),
            };
            assert!(
                resume(&bytes, &start, 333).unwrap() == expected,
                "record {number} from {from}"
            );
        }
    }
}

#[test]
fn missing_resume_place_is_an_error() {
    let bytes = stream(&begin(ByteOrder::Little), &[], &objects());
    let (begin, from) = opening(&bytes);
    for place in [
        StreamPlace {
            object: 9,
            within: Within::Object,
        },
        StreamPlace {
            object: 8,
            within: Within::Block(5),
        },
        StreamPlace {
            object: 99,
            within: Within::Block(0),
        },
    ] {
        let start = ResumeStart {
            begin: begin.clone(),
            payload: vec![],
            prologue: vec![],
            from,
            first: Some(place),
        };
        assert_eq!(
            resume(&bytes, &start, 500),
            Err(ResumingError::NoPlace { place })
        );
    }
}

proptest! {
    /// Whatever byte is damaged behind the point, in a record or in END, it is an error.
    #[test]
    fn damage_behind_the_point_is_found(place in 0usize..10_000, bit in 0u8..8) {
        let mut bytes = stream(&begin(ByteOrder::Little), &[], &objects());
        let (begin, _) = opening(&bytes);
        let from = boundary_before(&bytes, 9);
        let place = at(from) + place % (bytes.len() - at(from));
        bytes[place] ^= 1 << bit;
        let start = ResumeStart { begin, payload: vec![], prologue: vec![], from, first: None };
        prop_assert!(resume(&bytes, &start, 4096).is_err());
    }
}

#[test]
fn blank_headers_have_ordered_places() {
    let header = RecordHeader::blank(RecordType::Write, ByteOrder::Little);
    assert_eq!(
        StreamPlace::of(&header),
        Some(StreamPlace {
            object: 0,
            within: Within::Block(0)
        })
    );
    assert!(
        StreamPlace {
            object: 1,
            within: Within::Range
        } < StreamPlace {
            object: 1,
            within: Within::Object
        }
    );
    assert!(
        StreamPlace {
            object: 1,
            within: Within::Object
        } < StreamPlace {
            object: 1,
            within: Within::Block(0)
        }
    );
}
