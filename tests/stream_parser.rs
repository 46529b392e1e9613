//! The stream parser: what it accepts, what it finds, and that where slices are cut makes no
//! difference.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

mod stream_common;

use proptest::prelude::*;
use stream_common::{
    BASE, EXPECT, Rec, SNAPSHOT, all_types, begin, parse, parse_cut, pattern, sample, stream,
};
use zfs_backup::model::Guid;
use zfs_backup::stream::fletcher::{ByteOrder, Fletcher4};
use zfs_backup::stream::record::{
    BeginRecord, HEADER_BYTES, RecordHeader, RecordType, RecordWriter, StreamDatasetType,
    StreamError, StreamExpectation, StreamFault, StreamParser, feature,
};

/// What makes a BEGIN another.
type Change = fn(&mut BeginRecord);

const ORDERS: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];

fn fault(bytes: &[u8]) -> StreamFault {
    parse(bytes).unwrap_err().fault
}

/// Where the records of a stream lie: type, start, end; up to one of unknown type. Independent of
/// the walker's loop.
fn layout(bytes: &[u8], order: ByteOrder) -> Vec<(RecordType, usize, usize)> {
    let mut records = vec![];
    let mut start = 0;
    while start < bytes.len() {
        let header = RecordHeader::new(
            bytes[start..start + HEADER_BYTES].try_into().unwrap(),
            order,
        );
        let end = start + HEADER_BYTES + usize::try_from(header.payload_bytes().unwrap()).unwrap();
        records.push((header.record_type(), start, end));
        start = if matches!(header.record_type(), RecordType::Unknown(_)) {
            bytes.len()
        } else {
            end
        };
    }
    records
}

#[test]
fn whole_stream_is_summed_up() {
    for order in ORDERS {
        let bytes = sample(order);
        let summary = parse(&bytes).unwrap();
        assert_eq!(summary.bytes, bytes.len() as u64);
        assert_eq!(summary.to_name, "tank/home@2026-11-22");
        assert_eq!(
            (summary.snapshot_guid, summary.base_guid),
            (SNAPSHOT, Some(BASE))
        );
        assert_eq!(summary.dataset_type, StreamDatasetType::Filesystem);
        assert_eq!((summary.creation_time, summary.flags), (1_764_000_000, 4));
        assert_eq!(summary.feature_flags, begin(order).feature_flags);
        assert!(summary.checked);
        assert_eq!(summary.records.total(), all_types().len() as u64 + 2);
        assert_eq!(summary.records.of(RecordType::Write), 3);
        assert_eq!(summary.records.of(RecordType::FreeObjects), 2);
        assert_eq!(summary.records.of(RecordType::Begin), 1);
        assert_eq!(summary.records.of(RecordType::End), 1);
        let mut sum = Fletcher4::default();
        sum.absorb(bytes[..bytes.len() - HEADER_BYTES].as_chunks().0, order);
        assert_eq!(summary.end_fletcher4, <[u64; 4]>::from(sum));
    }
}

#[test]
fn every_known_type_is_in_the_sample() {
    let seen: Vec<_> = layout(&sample(ByteOrder::Little), ByteOrder::Little)
        .into_iter()
        .map(|(kind, ..)| kind)
        .collect();
    for number in 0..=10 {
        assert!(seen.contains(&RecordType::from(number)), "{number}");
    }
}

/// The stream ends in its own sums, so no byte is exempt: not in BEGIN, not in padding, not in a
/// checksum.
#[test]
fn any_changed_byte_is_found() {
    for order in ORDERS {
        let mut bytes = sample(order);
        for at in 0..bytes.len() {
            for mask in [0x01, 0x80, 0x10, 0xff] {
                bytes[at] ^= mask;
                assert!(parse(&bytes).is_err(), "{order:?}: byte {at} ^ {mask:#x}");
                bytes[at] ^= mask;
            }
        }
    }
}

#[test]
fn truncation_at_any_byte_is_found() {
    for order in ORDERS {
        let bytes = sample(order);
        for end in 0..bytes.len() {
            assert_eq!(
                fault(&bytes[..end]),
                StreamFault::Truncated,
                "{order:?}: {end}"
            );
        }
    }
}

#[test]
fn appended_bytes_are_found() {
    let bytes = sample(ByteOrder::Little);
    for tail in [vec![0], vec![0; 312], bytes.clone()] {
        let error = parse(&[bytes.clone(), tail].concat()).unwrap_err();
        assert_eq!(
            (error.fault, error.position),
            (StreamFault::DataAfterEnd, bytes.len() as u64)
        );
    }
}

#[test]
fn a_removed_doubled_or_moved_record_is_found() {
    for order in ORDERS {
        let bytes = sample(order);
        let records: Vec<&[u8]> = layout(&bytes, order)
            .iter()
            .map(|(_, start, end)| &bytes[*start..*end])
            .collect();
        for first in 0..records.len() {
            let removed = [&records[..first], &records[first + 1..]].concat().concat();
            assert!(parse(&removed).is_err(), "without record {first}");
            let doubled = [&records[..=first], &records[first..]].concat().concat();
            assert!(parse(&doubled).is_err(), "record {first} twice");
            for second in first + 1..records.len() {
                let mut moved = records.clone();
                moved.swap(first, second);
                assert!(
                    parse(&moved.concat()).is_err(),
                    "records {first} and {second} swapped"
                );
            }
        }
    }
}

#[test]
fn second_begin_is_named() {
    let bytes = sample(ByteOrder::Little);
    let (_, _, begin_end) = layout(&bytes, ByteOrder::Little)[0];
    let error = parse(&[&bytes[..begin_end], &bytes].concat()).unwrap_err();
    assert_eq!(error.fault, StreamFault::SecondBegin);
    assert_eq!((error.record, error.position), (1, begin_end as u64));
}

#[test]
fn streams_of_other_snapshots_are_refused() {
    let cases: [(Change, StreamFault); 5] = [
        (
            |begin| begin.snapshot_guid = Guid(7),
            StreamFault::WrongSnapshot {
                expected: SNAPSHOT,
                found: Guid(7),
            },
        ),
        (
            |begin| begin.base_guid = Some(Guid(8)),
            StreamFault::WrongBase {
                expected: Some(BASE),
                found: Some(Guid(8)),
            },
        ),
        (
            |begin| begin.base_guid = None,
            StreamFault::WrongBase {
                expected: Some(BASE),
                found: None,
            },
        ),
        (
            |begin| begin.feature_flags |= feature::RESUMING,
            StreamFault::Resuming,
        ),
        (
            |begin| begin.to_name = "\u{e9}".repeat(200),
            StreamFault::Name,
        ),
    ];
    for (change, expected) in cases {
        let mut begin = begin(ByteOrder::Big);
        change(&mut begin);
        assert_eq!(fault(&stream(&begin, &[], &all_types())), expected);
    }
    let mut parser = StreamParser::new(StreamExpectation {
        base_guid: None,
        ..EXPECT
    });
    let error = parser.feed(&sample(ByteOrder::Little)).unwrap_err();
    assert_eq!(
        error.fault,
        StreamFault::WrongBase {
            expected: None,
            found: Some(BASE)
        }
    );
    assert_eq!(parser.feed(&[]), Err(error.clone()), "an error stays");
    assert_eq!(parser.finish(), Err(error));
}

/// Valid checksums all the way, but one record says that it belongs to another snapshot.
#[test]
fn a_record_of_another_snapshot_is_found_in_every_type() {
    for number in 1..=10 {
        let record_type = RecordType::from(number);
        let blank = RecordHeader::blank(record_type, ByteOrder::Little);
        let mut probe = RecordWriter::new(&begin(ByteOrder::Little), &[]);
        probe.put(record_type, &[], |header| {
            let at = (8..280)
                .step_by(8)
                .find(|at| header.u64(*at) == SNAPSHOT.0)
                .unwrap();
            assert_eq!(blank.u64(at), 0);
            header.set_u64(at, 3);
        });
        let expected = StreamFault::WrongSnapshot {
            expected: SNAPSHOT,
            found: Guid(3),
        };
        assert_eq!(fault(&probe.end()), expected, "{record_type}");
    }
}

#[test]
fn bytes_that_are_not_a_stream_are_refused() {
    assert!(matches!(
        fault(&[0; 4096]),
        StreamFault::NotAStream { found: 0 }
    ));
    assert!(matches!(
        fault(&pattern(1, 4096)),
        StreamFault::NotAStream { .. }
    ));
    let mut package = sample(ByteOrder::Little);
    package[16] = package[16] & !3 | 2;
    assert_eq!(fault(&package), StreamFault::Compound { found: 2 });
    assert_eq!(fault(&[]), StreamFault::Truncated);
}

#[test]
fn a_checksum_that_is_not_set_is_refused() {
    let mut bytes = sample(ByteOrder::Little);
    let (_, start, _) = layout(&bytes, ByteOrder::Little)[3];
    bytes[start + 280..start + 312].fill(0);
    assert!(matches!(
        fault(&bytes),
        StreamFault::Checksum {
            found: [0, 0, 0, 0],
            ..
        }
    ));
}

#[test]
fn implausible_payloads_are_refused() {
    for (at, bytes) in [(96, (16 << 20) + 8), (96, u64::MAX), (96, 1022)] {
        let mut writer = RecordWriter::new(&begin(ByteOrder::Big), &[]);
        writer.put(RecordType::Write, &[], |header| {
            header.set_u8(50, 2);
            header.set_u64(at, bytes);
        });
        assert_eq!(fault(&writer.take_bytes()), StreamFault::Payload { bytes });
    }
    let mut oversized = sample(ByteOrder::Little);
    oversized[4..8].copy_from_slice(&(17u32 << 20).to_le_bytes());
    assert_eq!(fault(&oversized), StreamFault::Payload { bytes: 17 << 20 });
}

#[test]
fn damage_in_a_payload_is_named_at_the_next_record() {
    let mut bytes = sample(ByteOrder::Little);
    let (kind, start, end) = layout(&bytes, ByteOrder::Little)[4];
    assert_eq!(kind, RecordType::Write);
    bytes[start + 400] ^= 1;
    let error = parse(&bytes).unwrap_err();
    assert_eq!((error.record, error.position), (5, end as u64));
    let text = error.to_string();
    assert!(
        text.starts_with(&format!(
            "send stream: record 5 (FREEOBJECTS) at byte {end}: checksum"
        )),
        "{text}"
    );
}

#[test]
fn begin_record_round_trips_through_its_header() {
    for order in ORDERS {
        for base_guid in [None, Some(BASE)] {
            let begin = BeginRecord {
                base_guid,
                payload_bytes: 16,
                ..begin(order)
            };
            assert_eq!(BeginRecord::parse(begin.header().bytes()), Ok(begin));
        }
    }
}

mod unknown_types {
    use super::*;

    /// With a payload whose rule nobody knows, made to look like records.
    fn bytes() -> Vec<u8> {
        let mut records = all_types();
        records.insert(5, Rec::Unknown(11, pattern(3, 200)));
        records.insert(9, Rec::Unknown(77, sample(ByteOrder::Little)));
        stream(&begin(ByteOrder::Little), &[], &records)
    }

    #[test]
    fn unknown_records_are_accepted_and_end_still_proves_the_stream() {
        let bytes = bytes();
        for cuts in [
            vec![],
            vec![5000],
            (0..bytes.len()).collect(),
            (0..bytes.len()).step_by(311).collect(),
        ] {
            let summary = parse_cut(&bytes, &cuts).unwrap();
            assert!(!summary.checked);
            assert_eq!(summary.records.of(RecordType::Unknown(0)), 1);
            assert_eq!(summary.bytes, bytes.len() as u64);
            let end = RecordHeader::new(*bytes.last_chunk().unwrap(), ByteOrder::Little);
            assert_eq!(summary.end_fletcher4, [8, 16, 24, 32].map(|at| end.u64(at)));
        }
    }

    #[test]
    fn unknown_records_do_not_hide_damage() {
        let mut bytes = bytes();
        for at in 0..bytes.len() {
            bytes[at] ^= 0x20;
            assert!(parse(&bytes).is_err(), "byte {at}");
            bytes[at] ^= 0x20;
            assert!(parse(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(parse(&[&bytes[..], &[0; 4]].concat()).is_err());
        assert!(parse(&[&bytes[..], &bytes[..]].concat()).is_err());
    }

    #[test]
    fn unknown_records_end_resume_points() {
        let bytes = bytes();
        let mut parser = StreamParser::new(EXPECT);
        parser.note_boundary_at(bytes.len() as u64);
        let (_, unknown_start, _) = layout(&bytes, ByteOrder::Little)[6];
        parser.feed(&bytes[..unknown_start]).unwrap();
        assert!(parser.resume_point().is_some());
        parser.feed(&bytes[unknown_start..]).unwrap();
        assert_eq!(parser.resume_point(), None);
    }

    #[test]
    fn unknown_records_with_a_wrong_checksum_are_damage() {
        let mut bytes = sample(ByteOrder::Little);
        let (_, start, _) = layout(&bytes, ByteOrder::Little)[2];
        bytes[start] = 11;
        assert!(matches!(fault(&bytes), StreamFault::Checksum { .. }));
    }
}

#[test]
fn running_sum_is_known_at_every_word() {
    let bytes = sample(ByteOrder::Big);
    let mut parser = StreamParser::new(EXPECT);
    for at in 0..bytes.len() {
        let mut sum = Fletcher4::default();
        sum.absorb(bytes[..at].as_chunks().0, ByteOrder::Big);
        let expected = (at >= HEADER_BYTES && at % 4 == 0).then_some(<[u64; 4]>::from(sum));
        assert_eq!(parser.fletcher4(), expected, "{at}");
        parser.feed(&bytes[at..=at]).unwrap();
    }
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_result(
        cuts in prop::collection::vec(0usize..6000, 0..20),
        flip in prop::option::of((0usize..6000, 1u8..)),
        big in any::<bool>(),
    ) {
        let order = ORDERS[usize::from(big)];
        let mut bytes = sample(order);
        if let Some((at, mask)) = flip {
            let at = at % bytes.len();
            bytes[at] ^= mask;
        }
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let whole: Result<_, StreamError> = parse(&bytes);
        prop_assert_eq!(whole.is_err(), flip.is_some());
        prop_assert_eq!(parse_cut(&bytes, &cuts), whole);
    }
}
