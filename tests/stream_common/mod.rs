//! Streams to test with, as lists of records, so that a test can also make the stream that resumes
//! at one of them.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(unreachable_pub, reason = "shared between test binaries")]

use zfs_backup::model::Guid;
use zfs_backup::stream::fletcher::ByteOrder;
use zfs_backup::stream::record::{
    BeginRecord, HEADER_BYTES, RecordHeader, RecordType, RecordWriter, ResumePoint,
    StreamDatasetType, StreamError, StreamExpectation, StreamParser, StreamSummary, feature,
};
use zfs_backup::stream::splice::Splicer;

pub const SNAPSHOT: Guid = Guid(0x1122_3344_5566_7788);
pub const BASE: Guid = Guid(0x99aa_bbcc_ddee_ff01);
pub const EXPECT: StreamExpectation = StreamExpectation {
    snapshot_guid: SNAPSHOT,
    base_guid: Some(BASE),
};

/// One record between BEGIN and END.
#[derive(Debug, Clone)]
pub enum Rec {
    Object(u64, Vec<u8>),
    RawObject(u64, Vec<u8>),
    FreeObjects(u64, u64),
    Write(u64, u64, Vec<u8>),
    Compressed(u64, u64, Vec<u8>),
    Embedded(u64, u64, Vec<u8>),
    Free(u64, u64, u64),
    Redact(u64, u64, u64),
    ByRef(u64, u64, u64),
    Spill(u64, Vec<u8>),
    ObjectRange(u64, u64),
    Unknown(u32, Vec<u8>),
}

impl Rec {
    pub fn block(&self) -> Option<(u64, u64)> {
        match self {
            Self::Write(object, offset, _)
            | Self::Compressed(object, offset, _)
            | Self::Embedded(object, offset, _) => Some((*object, *offset)),
            _ => None,
        }
    }

    pub fn put(&self, writer: &mut RecordWriter) {
        match self {
            Self::Object(object, bonus) => writer.object(*object, bonus),
            Self::RawObject(object, bonus) => writer.raw_object(*object, bonus),
            Self::FreeObjects(first, count) => writer.free_objects(*first, *count),
            Self::Write(object, offset, block) => writer.write(*object, *offset, block),
            Self::Compressed(object, offset, block) => {
                writer.write_compressed(*object, *offset, 131_072, block)
            }
            Self::Embedded(object, offset, data) => {
                writer.write_embedded(*object, *offset, 4096, data)
            }
            Self::Free(object, offset, length) => writer.free(*object, *offset, *length),
            Self::Redact(object, offset, length) => writer.redact(*object, *offset, *length),
            Self::ByRef(object, offset, length) => writer.write_by_ref(*object, *offset, *length),
            Self::Spill(object, block) => writer.spill(*object, block),
            Self::ObjectRange(first, slots) => writer.object_range(*first, *slots),
            Self::Unknown(number, payload) => {
                writer.put(RecordType::from(*number), payload, |_| ())
            }
        }
    }
}

pub fn begin(order: ByteOrder) -> BeginRecord {
    BeginRecord {
        order,
        feature_flags: feature::LARGE_BLOCKS | feature::EMBED_DATA | 1 << 2,
        creation_time: 1_764_000_000,
        dataset_type: StreamDatasetType::Filesystem,
        flags: 4,
        snapshot_guid: SNAPSHOT,
        base_guid: Some(BASE),
        to_name: "tank/home@2026-11-22".to_owned(),
        payload_bytes: 0,
    }
}

/// A byte pattern without repetition, of that length.
pub fn pattern(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Every known type, payloads of several lengths, in the order in which ZFS might send them.
pub fn all_types() -> Vec<Rec> {
    vec![
        Rec::ObjectRange(0, 32),
        Rec::Object(1, pattern(1, 44)),
        Rec::Free(1, 512, u64::MAX),
        Rec::Write(1, 0, pattern(2, 512)),
        Rec::FreeObjects(2, 5),
        Rec::RawObject(7, pattern(3, 64)),
        Rec::Compressed(7, 0, pattern(4, 136)),
        Rec::Embedded(7, 4096, pattern(5, 53)),
        Rec::Redact(7, 8192, 4096),
        Rec::ByRef(7, 12288, 4096),
        Rec::Spill(7, pattern(6, 256)),
        Rec::Object(8, vec![]),
        Rec::Write(8, 0, pattern(7, 24)),
        Rec::FreeObjects(9, 23),
    ]
}

pub fn stream(begin: &BeginRecord, begin_payload: &[u8], records: &[Rec]) -> Vec<u8> {
    let mut writer = RecordWriter::new(begin, begin_payload);
    records.iter().for_each(|record| record.put(&mut writer));
    writer.end()
}

pub fn sample(order: ByteOrder) -> Vec<u8> {
    stream(&begin(order), &pattern(9, 72), &all_types())
}

/// Parses in slices cut at those positions.
pub fn parse_cut(bytes: &[u8], cuts: &[usize]) -> Result<StreamSummary, StreamError> {
    let mut parser = StreamParser::new(EXPECT);
    let mut start = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        parser.feed(&bytes[start..cut])?;
        start = cut;
    }
    parser.finish()
}

pub fn parse(bytes: &[u8]) -> Result<StreamSummary, StreamError> {
    parse_cut(bytes, &[])
}

/// Parses a stream of whatever snapshot it says it is of.
pub fn parse_any(bytes: &[u8]) -> Result<StreamSummary, StreamError> {
    let mut parser = StreamParser::new(own_expectation(bytes));
    parser.feed(bytes)?;
    parser.finish()
}

fn own_expectation(bytes: &[u8]) -> StreamExpectation {
    let begin = bytes
        .first_chunk()
        .and_then(|header| BeginRecord::parse(header).ok());
    let (snapshot_guid, base_guid) = begin.map_or((Guid(0), None), |begin| {
        (begin.snapshot_guid, begin.base_guid)
    });
    StreamExpectation {
        snapshot_guid,
        base_guid,
    }
}

/// Where the records lie: their headers and the positions where they end. Independent of the
/// walker's loop.
pub fn layout(bytes: &[u8]) -> Vec<(RecordHeader, usize)> {
    let order = BeginRecord::parse(bytes.first_chunk().unwrap())
        .unwrap()
        .order;
    let mut records = vec![];
    let mut start = 0;
    while start < bytes.len() {
        let header = RecordHeader::new(*bytes[start..].first_chunk().unwrap(), order);
        start += HEADER_BYTES + usize::try_from(header.payload_bytes().unwrap()).unwrap();
        records.push((header, start));
    }
    records
}

/// Object and offset of the first block record.
pub fn first_block(bytes: &[u8]) -> (u64, u64) {
    layout(bytes)
        .iter()
        .find_map(|(header, _)| header.block())
        .unwrap()
}

/// BEGIN and a resume point at every block record.
pub fn points_at_blocks(bytes: &[u8]) -> (BeginRecord, Vec<ResumePoint>) {
    let mut parser = StreamParser::new(own_expectation(bytes));
    let mut points = vec![];
    let mut start = 0;
    for (_, end) in layout(bytes)
        .into_iter()
        .filter(|(header, _)| header.block().is_some())
    {
        parser.note_boundary_at(end as u64);
        parser.feed(&bytes[start..end]).unwrap();
        points.push(parser.resume_point().unwrap());
        assert_eq!(points.last().unwrap().position, end as u64);
        start = end;
    }
    (
        BeginRecord::parse(bytes.first_chunk().unwrap()).unwrap(),
        points,
    )
}

/// The original up to the point, and what the splicer makes of the resumed stream after it, checked
/// by a parser that takes up at the point.
pub fn splice_onto(
    original: &[u8],
    begin: BeginRecord,
    point: ResumePoint,
    resumed: &[u8],
) -> Vec<u8> {
    let mut spliced = original[..usize::try_from(point.position).unwrap()].to_vec();
    let mut parser = StreamParser::resume(own_expectation(original), begin.clone(), point).unwrap();
    let mut splicer = Splicer::new(begin, point);
    for slice in resumed.chunks(10_007) {
        splicer
            .feed(slice, &mut |bytes| {
                parser.feed(bytes).unwrap();
                spliced.extend_from_slice(bytes);
            })
            .unwrap();
    }
    splicer.finish().unwrap();
    parser.finish().unwrap();
    spliced
}

/// Whether a byte changed there is found. Parses only from the last block before it, so that many
/// can be tried.
pub fn finds_damage(
    bytes: &mut [u8],
    begin: &BeginRecord,
    points: &[ResumePoint],
    at: usize,
) -> bool {
    bytes[at] ^= 0x40;
    let expect = own_expectation(bytes);
    let (mut parser, start) = match points.iter().rfind(|point| point.position <= at as u64) {
        Some(point) => (
            StreamParser::resume(expect, begin.clone(), *point).unwrap(),
            usize::try_from(point.position).unwrap(),
        ),
        None => (StreamParser::new(expect), 0),
    };
    let result = parser
        .feed(&bytes[start..])
        .and_then(|()| parser.finish().map(|_| ()));
    bytes[at] ^= 0x40;
    result.is_err()
}
