//! Resume points: the last block before a boundary, and a parser taken up there.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod stream_common;

use stream_common::{BASE, EXPECT, Rec, SNAPSHOT, begin, layout, parse, pattern, sample, stream};
use zfs_backup::model::{Digest, Guid};
use zfs_backup::stream::fletcher::{ByteOrder, Fletcher4};
use zfs_backup::stream::record::{ResumePoint, StreamExpectation, StreamFault, StreamParser};

const ORDERS: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];

/// The last block record that ends by `boundary`, worked out from the layout alone.
fn expected_point(bytes: &[u8], order: ByteOrder, boundary: usize) -> Option<ResumePoint> {
    let records = layout(bytes);
    let last = records
        .iter()
        .rposition(|(header, end)| header.block().is_some() && *end <= boundary)?;
    let (header, end) = records[last];
    let start = records[last - 1].1;
    let mut record = bytes[start..end].to_vec();
    record[280..312].fill(0);
    let mut sum = Fletcher4::default();
    sum.absorb(bytes[..end].as_chunks().0, order);
    let (object, offset) = header.block().unwrap();
    Some(ResumePoint {
        position: end as u64,
        object,
        offset,
        fletcher4: sum.into(),
        record_blake3: Digest::of(&record),
    })
}

#[test]
fn resume_point_at_any_boundary_is_the_last_block_before_it() {
    for order in ORDERS {
        let bytes = sample(order);
        for boundary in 0..=bytes.len() {
            let mut parser = StreamParser::new(EXPECT);
            parser.note_boundary_at(boundary as u64);
            parser.feed(&bytes[..boundary]).unwrap();
            assert_eq!(parser.position(), boundary as u64);
            assert_eq!(
                parser.resume_point(),
                expected_point(&bytes, order, boundary),
                "{order:?} {boundary}"
            );
        }
    }
}

#[test]
fn resume_points_follow_boundaries_through_a_long_stream() {
    let order = ByteOrder::Little;
    let records: Vec<_> = (0..250u32)
        .flat_map(|object| {
            let write = Rec::Write(object.into(), 0, pattern(object, 128 << 10));
            [
                Rec::Object(object.into(), vec![]),
                write,
                Rec::Free(object.into(), 131_072, u64::MAX),
            ]
        })
        .collect();
    let bytes = stream(&begin(order), &[], &records);
    let chunk_bytes = 9_000_000;
    let mut parser = StreamParser::new(EXPECT);
    for (index, chunk) in bytes.chunks(chunk_bytes).enumerate() {
        let end = index * chunk_bytes + chunk.len();
        parser.note_boundary_at((index + 1) as u64 * chunk_bytes as u64);
        parser.feed(chunk).unwrap();
        if end < bytes.len() {
            assert_eq!(
                parser.resume_point(),
                expected_point(&bytes, order, end),
                "chunk {index}"
            );
        }
    }
    parser.finish().unwrap();
}

/// Metadata alone before the boundary, and a largest record at the very end: an older point, but a
/// true one.
#[test]
fn resume_point_without_a_block_near_the_boundary_is_an_older_one() {
    let order = ByteOrder::Little;
    let mut records = vec![];
    records.extend(
        (0..400u32).map(|block| Rec::Write(1, u64::from(block) << 17, pattern(block, 128 << 10))),
    );
    records.extend((2..20_000).map(|object| Rec::Object(object, vec![])));
    let bytes = stream(&begin(order), &[], &records);
    let mut parser = StreamParser::new(EXPECT);
    parser.note_boundary_at(bytes.len() as u64);
    parser.feed(&bytes).unwrap();
    let point = parser.resume_point().unwrap();
    let position = usize::try_from(point.position).unwrap();
    assert_eq!(Some(point), expected_point(&bytes, order, position));
    assert!(400 * 131_384 - position <= 33 << 20, "{position}");
}

#[test]
fn parser_resumed_at_a_resume_point_ends_with_the_same_sums() {
    for order in ORDERS {
        let bytes = sample(order);
        let whole = parse(&bytes).unwrap();
        for boundary in 800..bytes.len() {
            let mut first = StreamParser::new(EXPECT);
            first.note_boundary_at(boundary as u64);
            first.feed(&bytes[..boundary]).unwrap();
            let Some(point) = first.resume_point() else {
                continue;
            };
            let begin = first.begin().unwrap().clone();
            let mut second = StreamParser::resume(EXPECT, begin, point).unwrap();
            let position = usize::try_from(point.position).unwrap();
            second.feed(&bytes[position..boundary]).unwrap();
            assert_eq!(
                (second.position(), second.fletcher4()),
                (first.position(), first.fletcher4())
            );
            second.feed(&bytes[boundary..]).unwrap();
            let rest = second.finish().unwrap();
            assert_eq!(
                (rest.bytes, rest.end_fletcher4),
                (whole.bytes, whole.end_fletcher4)
            );
        }
    }
}

#[test]
fn parser_refuses_to_resume_for_another_snapshot() {
    let bytes = sample(ByteOrder::Little);
    let point = expected_point(&bytes, ByteOrder::Little, bytes.len()).unwrap();
    let other = StreamExpectation {
        snapshot_guid: Guid(5),
        base_guid: Some(BASE),
    };
    let refused = StreamParser::resume(other, begin(ByteOrder::Little), point)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        refused,
        StreamFault::WrongSnapshot {
            expected: Guid(5),
            found: SNAPSHOT
        }
    );
}
