//! The splicer: what a kernel sends after an interruption becomes the bytes of the uninterrupted
//! send, or an error.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

mod stream_common;

use proptest::prelude::*;
use stream_common::{
    BASE, Rec, all_types, begin, parse, pattern, points_at_blocks, sample, splice_onto, stream,
};
use zfs_backup::model::Guid;
use zfs_backup::stream::fletcher::ByteOrder;
use zfs_backup::stream::record::{
    BeginRecord, ResumePoint, StreamDatasetType, StreamFault, feature,
};
use zfs_backup::stream::splice::{SpliceError, Splicer};

/// What makes a BEGIN another.
type Change = fn(&mut BeginRecord);

/// What the kernel sends when it resumes at that record: a BEGIN of its own, the object again, then
/// the record and the rest, and checksums from its own start.
fn resumed(saved: &BeginRecord, records: &[Rec], at: usize) -> Vec<u8> {
    let (object, _) = records[at].block().unwrap();
    let begin = BeginRecord {
        feature_flags: saved.feature_flags | feature::RESUMING,
        ..saved.clone()
    };
    let mut again = vec![
        Rec::ObjectRange(0, 32),
        Rec::Object(object, pattern(1, 44)),
        Rec::Spill(object, pattern(2, 64)),
    ];
    again.push(Rec::Free(object, 1 << 20, u64::MAX));
    again.extend_from_slice(&records[at..]);
    stream(&begin, &pattern(12, 160), &again)
}

fn splice(saved: &BeginRecord, point: ResumePoint, resumed: &[u8]) -> Result<Vec<u8>, SpliceError> {
    let mut splicer = Splicer::new(saved.clone(), point);
    let mut out = vec![];
    for slice in resumed.chunks(100) {
        splicer.feed(slice, &mut |bytes| out.extend_from_slice(bytes))?;
    }
    splicer.finish()?;
    Ok(out)
}

/// The sample, a resume point in its middle, and the stream resumed there.
fn middle() -> (BeginRecord, ResumePoint, Vec<u8>) {
    let records = all_types();
    let (begin, points) = points_at_blocks(&sample(ByteOrder::Little));
    let blocks: Vec<_> = (0..records.len())
        .filter(|index| records[*index].block().is_some())
        .collect();
    let resumed = resumed(&begin, &records, blocks[1]);
    (begin, points[1], resumed)
}

fn record() -> impl Strategy<Value = Rec> {
    let data = |bytes: std::ops::Range<usize>| {
        (any::<u32>(), bytes).prop_map(|(seed, bytes)| pattern(seed, bytes))
    };
    prop_oneof![
        (1u64..9, data(0..300)).prop_map(|(object, bonus)| Rec::Object(object, bonus)),
        (1u64..9, data(1..300)).prop_map(|(object, bonus)| Rec::RawObject(object, bonus)),
        (1u64..9, 1u64..9).prop_map(|(first, count)| Rec::FreeObjects(first, count)),
        (1u64..9, data(1..3000)).prop_map(|(object, block)| Rec::Write(object, 0, block)),
        (1u64..9, data(1..3000)).prop_map(|(object, block)| Rec::Compressed(object, 0, block)),
        (1u64..9, data(1..112)).prop_map(|(object, data)| Rec::Embedded(object, 0, data)),
        (1u64..9).prop_map(|object| Rec::Free(object, 0, u64::MAX)),
        (1u64..9).prop_map(|object| Rec::Redact(object, 0, 4096)),
        (1u64..9, data(1..600)).prop_map(|(object, block)| Rec::Spill(object, block)),
        (0u64..9).prop_map(|first| Rec::ObjectRange(first, 32)),
    ]
}

/// Gives each block an offset of its own, as in real streams.
fn numbered(mut records: Vec<Rec>) -> Vec<Rec> {
    for (record, number) in records.iter_mut().zip(1u64..) {
        if let Rec::Write(_, offset, _)
        | Rec::Compressed(_, offset, _)
        | Rec::Embedded(_, offset, _) = record
        {
            *offset = number << 12;
        }
    }
    records
}

proptest! {
    #[test]
    fn splicing_at_any_block_gives_the_original(
        records in prop::collection::vec(record(), 1..30).prop_map(numbered),
        big in any::<bool>(),
        full in any::<bool>(),
        payload_bytes in 0usize..200,
    ) {
        let order = if big { ByteOrder::Big } else { ByteOrder::Little };
        let begin = BeginRecord { base_guid: (!full).then_some(BASE), ..begin(order) };
        let original = stream(&begin, &pattern(8, payload_bytes), &records);
        let (begin, points) = points_at_blocks(&original);
        let blocks = (0..records.len()).filter(|index| records[*index].block().is_some());
        prop_assert_eq!(blocks.clone().count(), points.len());
        for (at, point) in blocks.zip(points) {
            let spliced = splice_onto(&original, begin.clone(), point, &resumed(&begin, &records, at));
            prop_assert!(spliced == original, "at record {}", at);
        }
    }
}

#[test]
fn a_spliced_stream_is_whole() {
    let (begin, point, resumed) = middle();
    let original = sample(ByteOrder::Little);
    let spliced = splice_onto(&original, begin, point, &resumed);
    assert_eq!(spliced, original);
    parse(&spliced).unwrap();
}

#[test]
fn a_renamed_dataset_does_not_matter() {
    let (begin, point, mut resumed) = middle();
    let expected = splice(&begin, point, &resumed).unwrap();
    let records = all_types();
    let renamed = BeginRecord {
        to_name: "tank/other@2026-11-22".to_owned(),
        ..begin.clone()
    };
    let at = records
        .iter()
        .position(|record| record.block() == Some((point.object, point.offset)))
        .unwrap();
    resumed = self::resumed(&renamed, &records, at);
    assert_eq!(splice(&begin, point, &resumed).unwrap(), expected);
}

#[test]
fn another_send_is_refused() {
    let (begin, point, _) = middle();
    let records = all_types();
    let at = records
        .iter()
        .position(|record| record.block() == Some((point.object, point.offset)))
        .unwrap();
    let cases: [(&str, Change); 6] = [
        ("snapshot guid", |begin| begin.snapshot_guid = Guid(1)),
        ("base guid", |begin| begin.base_guid = None),
        ("dataset type", |begin| {
            begin.dataset_type = StreamDatasetType::Volume
        }),
        ("flags", |begin| begin.flags = 0),
        ("feature flags", |begin| {
            begin.feature_flags |= feature::COMPRESSED
        }),
        ("byte order", |begin| begin.order = ByteOrder::Big),
    ];
    for (expected, change) in cases {
        let mut other = begin.clone();
        change(&mut other);
        let error = splice(&begin, point, &resumed(&other, &records, at)).unwrap_err();
        assert!(
            matches!(error, SpliceError::OtherSend { what, .. } if what == expected),
            "{expected}: {error}"
        );
    }
    // A stream from the start, not resumed.
    let error = splice(&begin, point, &sample(ByteOrder::Little)).unwrap_err();
    let text = "resumed stream: feature flags is 0x90004, expected 0x190004";
    assert_eq!(error.to_string(), text);
}

#[test]
fn another_block_is_refused() {
    let (begin, point, resumed) = middle();
    let elsewhere = ResumePoint {
        offset: point.offset + 4096,
        ..point
    };
    let found = (point.object, point.offset);
    let expected = (point.object, point.offset + 4096);
    assert_eq!(
        splice(&begin, elsewhere, &resumed),
        Err(SpliceError::OtherBlock { expected, found })
    );
}

#[test]
fn a_block_with_other_bytes_is_refused() {
    let (begin, point, _) = middle();
    let mut records = all_types();
    let at = records
        .iter()
        .position(|record| record.block() == Some((point.object, point.offset)))
        .unwrap();
    let Rec::Compressed(_, _, block) = &mut records[at] else {
        panic!("the sample changed")
    };
    block[17] ^= 1;
    let expected = SpliceError::BlockDiffers {
        object: point.object,
        offset: point.offset,
    };
    assert_eq!(
        splice(&begin, point, &resumed(&begin, &records, at)),
        Err(expected)
    );
}

#[test]
fn a_resumed_stream_without_its_block_is_refused() {
    let (begin, point, _) = middle();
    let other = BeginRecord {
        feature_flags: begin.feature_flags | feature::RESUMING,
        ..begin.clone()
    };
    let empty = stream(&other, &[], &[Rec::Object(point.object, vec![])]);
    let expected = SpliceError::NoBlock {
        object: point.object,
        offset: point.offset,
    };
    assert_eq!(splice(&begin, point, &empty), Err(expected));
}

#[test]
fn unknown_records_are_not_spliced() {
    let (begin, point, _) = middle();
    let mut records = all_types();
    records.push(Rec::Unknown(12, vec![]));
    let at = records
        .iter()
        .position(|record| record.block() == Some((point.object, point.offset)))
        .unwrap();
    let error = splice(&begin, point, &resumed(&begin, &records, at)).unwrap_err();
    assert_eq!(error, SpliceError::UnknownRecord { number: 12 });
}

/// In BEGIN's payload and in the prologue too: nothing damaged is joined.
#[test]
fn damage_in_the_resumed_stream_is_found() {
    let (begin, point, mut resumed) = middle();
    for at in 0..resumed.len() {
        resumed[at] ^= 0x08;
        assert!(splice(&begin, point, &resumed).is_err(), "byte {at}");
        resumed[at] ^= 0x08;
        let cut = splice(&begin, point, &resumed[..at]).unwrap_err();
        assert!(
            matches!(cut, SpliceError::Stream(error) if error.fault == StreamFault::Truncated),
            "cut at {at}"
        );
    }
    let doubled = splice(&begin, point, &[&resumed[..], &resumed[..]].concat()).unwrap_err();
    assert!(
        matches!(doubled, SpliceError::Stream(error) if error.fault == StreamFault::DataAfterEnd)
    );
}
