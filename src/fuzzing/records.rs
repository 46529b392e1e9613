//! Send streams, as bytes and as lists of records, and the packed lists in BEGIN records and resume
//! tokens.

use super::{Choices, Target, cut};
use crate::model::Guid;
use crate::stream::fletcher::{ByteOrder, Fletcher4};
use crate::stream::nvlist::{
    PackedValue, number_in_list, read_packed, with_resume_point, write_packed,
};
use crate::stream::record::{
    BeginRecord, HEADER_BYTES, RecordHeader, RecordType, RecordWriter, ResumePoint,
    StreamDatasetType, StreamError, StreamExpectation, StreamParser, StreamSummary, feature,
};
use crate::stream::resuming::{ResumeStart, Resumer};
use crate::stream::resync::{Boundary, Gather, Scout, StreamPlace, Wanted, boundary_after_begin};
use crate::stream::splice::Splicer;
use crate::zfs::{ResumeToken, token_of_list};
use std::collections::BTreeMap;

pub(super) const STREAM_BYTES: Target = Target {
    name: "stream_bytes",
    run: stream_bytes,
    seeds: || {
        (0..12)
            .map(|n| [&[n | 1, n][..], &stream_of(&program(n)).0].concat())
            .collect()
    },
    words: &[
        "\0\0\0\0",
        "\u{1}\0\0\0",
        "\u{3}\0\0\0",
        "\u{5}\0\0\0",
        "\u{b}\0\0\0",
    ],
};

pub(super) const STREAM_RECORDS: Target = Target {
    name: "stream_records",
    run: stream_records,
    seeds: || {
        (0..12)
            .map(|n| [&[n, n, n][..], &program(n)].concat())
            .collect()
    },
    words: &[],
};

pub(super) const PACKED_LIST: Target = Target {
    name: "packed_list",
    run: packed_list,
    seeds: || {
        lists()
            .into_iter()
            .chain([
                Vec::new(),
                vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
            ])
            .collect()
    },
    words: &[
        "\0\u{1}\0\0",
        "resume_object\0",
        "toname\0",
        "\u{8}\0\0\0",
        "\u{9}\0\0\0",
    ],
};

pub(super) const RESUME_TOKEN: Target = Target {
    name: "resume_token",
    run: resume_token,
    seeds: || {
        let lists = lists();
        let tokens = lists
            .iter()
            .map(|list| [b"t", token_of_list(list).as_bytes()].concat());
        tokens
            .chain(lists.iter().map(|list| [b"l", &list[..]].concat()))
            .collect()
    },
    words: &[
        "1-",
        "-",
        "object",
        "toguid",
        "fromguid",
        "toname",
        "rawok",
        "compressok",
        "embedok",
        "largeblockok",
    ],
};

const SNAPSHOT: Guid = Guid(0x1122_3344_5566_7788);
const EXPECT: StreamExpectation = StreamExpectation {
    snapshot_guid: SNAPSHOT,
    base_guid: None,
};

/// Parses any bytes as a stream, as a resumed stream, and as the middle of a stream. The first byte
/// says whether the sums are repaired.
fn stream_bytes(input: &[u8]) {
    let mut choices = Choices(input);
    let (how, seed) = (choices.byte(), choices.byte());
    let mut stream = choices.0.to_vec();
    if how & 1 != 0 {
        mend(&mut stream);
    }
    let _ = read_every_way(&stream, seed);
}

/// Parses a list of records with the right sums: complete, with one byte changed, and resumed in
/// its middle.
fn stream_records(input: &[u8]) {
    let mut choices = Choices(input);
    let (seed, change_at, change) = (choices.byte(), choices.byte(), choices.byte());
    let (mut stream, boundaries) = stream_of(choices.0);
    let whole = read_every_way(&stream, seed);
    let position = stream.len() * usize::from(seed) / 256;
    if let Ok(summary) = whole {
        assert_eq!(summary.bytes, stream.len() as u64);
        // Random fields may make one record's payload out of all records behind it. The positions
        // between those are then no boundaries, although their sums are right.
        let is_as_written = summary.records.total() == boundaries.len() as u64 + 1;
        scout_from(
            &stream,
            position / 4 * 4,
            &boundaries,
            summary.checked && is_as_written,
        );
        let at = stream.len() * usize::from(change_at) / 256;
        if change != 0 {
            stream[at] ^= change;
            assert!(
                parse(&[&stream]).is_err(),
                "byte {at} was changed and the stream is accepted"
            );
        }
    }
}

/// Parses any bytes as the list in the payload of a BEGIN record.
fn packed_list(input: &[u8]) {
    let mut choices = Choices(input);
    let _ = number_in_list(input, "crypt_keydata", "from_ivset_guid");
    let values = read_packed(input);
    if let Some(values) = &values {
        assert_eq!(
            read_packed(&write_packed(values)).as_ref(),
            Some(values),
            "it is not read as it was written"
        );
    }
    let (object, offset) = (choices.number(), choices.number());
    for payload in [input, choices.0] {
        let before = read_packed(payload);
        let Some(with) = with_resume_point(payload, object, offset) else {
            continue;
        };
        let Some(before) =
            before.filter(|before| !before.keys().any(|name| name.starts_with("resume_")))
        else {
            continue;
        };
        let after = read_packed(&with).expect("a list with two more pairs is one");
        assert_eq!(after.len(), before.len() + 2);
        assert_eq!(
            after.get("resume_object"),
            Some(&PackedValue::Number(object))
        );
        assert_eq!(
            after.get("resume_offset"),
            Some(&PackedValue::Number(offset))
        );
    }
}

/// Parses any text as a token or, if the first byte is `l`, the list in a token whose sum and
/// length are right.
fn resume_token(input: &[u8]) {
    let mut choices = Choices(input);
    let text = match choices.byte() {
        b'l' => token_of_list(choices.0),
        _ => String::from_utf8_lossy(choices.0).into_owned(),
    };
    if let Some(token) = ResumeToken::parse(&text) {
        let dataset = format!("{} {:?}", token.to_name, token.from_guid);
        assert!(!dataset.is_empty());
    }
}

fn lists() -> Vec<Vec<u8>> {
    let text = |text: &str| PackedValue::Text(text.to_owned());
    let number = PackedValue::Number;
    let pairs = [
        vec![],
        vec![("rawok", PackedValue::Flag)],
        vec![
            ("object", number(130)),
            ("offset", number(3 << 20)),
            ("bytes", number(u64::MAX)),
            ("toguid", number(SNAPSHOT.0)),
            ("fromguid", number(7)),
            ("toname", text("tank/a@1")),
            ("largeblockok", PackedValue::Flag),
        ],
    ];
    pairs
        .map(|pairs| {
            write_packed(
                &pairs
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<BTreeMap<_, _>>(),
            )
        })
        .into()
}

/// Makes a program for `stream_of` with all kinds of records, varied by `n`.
fn program(n: u8) -> Vec<u8> {
    let begin = [n % 2, if n.is_multiple_of(3) { 0 } else { 40 + n }];
    let records = (0..11).flat_map(|kind| [kind, n % 8, kind * 7, n * 20]);
    begin
        .into_iter()
        .chain(records.skip(usize::from(n) * 4 % 40))
        .collect()
}

/// Makes a stream out of any bytes: BEGIN, records, END, all with their sums. Also returns the
/// positions between its records.
fn stream_of(program: &[u8]) -> (Vec<u8>, Vec<u64>) {
    let mut choices = Choices(program);
    let order = if choices.byte() & 1 == 0 {
        ByteOrder::Little
    } else {
        ByteOrder::Big
    };
    let payload = vec![0x5a; usize::from(choices.byte())];
    let mut writer = RecordWriter::new(&begin(order), &payload);
    let mut stream = writer.take_bytes();
    let mut boundaries = vec![stream.len() as u64];
    while !choices.is_empty() && stream.len() < 64 << 10 {
        let (kind, object, offset) = (choices.byte(), choices.number(), choices.number());
        let bytes = usize::from(choices.byte());
        let block = vec![kind ^ 0x33; if kind & 0x40 == 0 { bytes } else { bytes * 16 }];
        match kind & 0x0f {
            0 => writer.object(object, &block),
            1 => writer.raw_object(object, &block),
            2 => writer.free_objects(object, offset),
            3 => writer.write(object, offset, &block),
            4 => writer.write_compressed(object, offset, offset, &block),
            5 => writer.write_embedded(object, offset, 4096, &block),
            6 => writer.free(object, offset, u64::MAX),
            7 => writer.redact(object, offset, 1),
            8 => writer.write_by_ref(object, offset, 1),
            9 => writer.spill(object, &block),
            10 => writer.object_range(object, offset),
            11 => writer.put(RecordType::from(11 + u32::from(kind)), &block, |_| ()),
            // A header whose fields may have any value, including records within the payload rules
            // of another type.
            kind => {
                let fields: Vec<u64> = (0..4).map(|_| choices.number()).collect();
                let record_type = RecordType::from(u32::from(kind - 11));
                writer.put(record_type, &block, |header| {
                    for (at, field) in [8, 16, 32, 96].into_iter().zip(fields) {
                        header.set_u64(at, field);
                    }
                });
            }
        }
        stream.extend(writer.take_bytes());
        boundaries.push(stream.len() as u64);
    }
    stream.extend(writer.end());
    (stream, boundaries)
}

fn begin(order: ByteOrder) -> BeginRecord {
    BeginRecord {
        order,
        feature_flags: feature::LARGE_BLOCKS | feature::COMPRESSED,
        creation_time: 1,
        dataset_type: StreamDatasetType::Filesystem,
        flags: 0,
        snapshot_guid: SNAPSHOT,
        base_guid: None,
        to_name: "tank/a@1".to_owned(),
        payload_bytes: 0,
    }
}

/// Repairs the guid and the sums in every recognisable record. Without this no mutation gets past
/// the first record.
fn mend(stream: &mut [u8]) {
    let Some((head, mut rest)) = stream.split_first_chunk_mut::<HEADER_BYTES>() else {
        return;
    };
    let Ok(begin) = BeginRecord::parse(head) else {
        return;
    };
    let mut header = RecordHeader::new(*head, begin.order);
    header.set_u64(40, SNAPSHOT.0);
    header.set_u64(48, 0);
    *head = *header.bytes();
    let mut sum = Fletcher4::default();
    sum.absorb(head.as_chunks().0, begin.order);
    let mut payload_bytes = begin.payload_bytes as usize;
    loop {
        let Some((payload, after)) = rest.split_at_mut_checked(payload_bytes) else {
            return;
        };
        sum.absorb(payload.as_chunks().0, begin.order);
        let Some((head, after)) = after.split_first_chunk_mut::<HEADER_BYTES>() else {
            return;
        };
        let mut header = RecordHeader::new(*head, begin.order);
        let guid_at = match header.record_type() {
            RecordType::Object | RecordType::Write | RecordType::End => Some(40),
            RecordType::FreeObjects | RecordType::Spill | RecordType::ObjectRange => Some(24),
            RecordType::Begin | RecordType::Unknown(_) => None,
            _ => Some(32),
        };
        guid_at
            .into_iter()
            .for_each(|at| header.set_u64(at, SNAPSHOT.0));
        header.seal(&mut sum);
        *head = *header.bytes();
        let Ok(bytes) = header.payload_bytes() else {
            return;
        };
        (payload_bytes, rest) = (usize::try_from(bytes).unwrap_or(usize::MAX), after);
    }
}

/// Parses a stream; returns the verdict and the parser's resume point at the end.
fn parse(
    slices: &[&[u8]],
) -> Result<(StreamSummary, Option<ResumePoint>), (StreamError, Option<ResumePoint>)> {
    let mut parser = StreamParser::new(EXPECT);
    let total: usize = slices.iter().map(|slice| slice.len()).sum();
    parser.note_boundary_at(total as u64 / 2);
    let fed = slices.iter().try_for_each(|slice| parser.feed(slice));
    let point = parser.resume_point();
    match fed.and_then(|()| parser.finish()) {
        Ok(summary) => Ok((summary, point)),
        Err(error) => Err((error, point)),
    }
}

/// Feeds a stream to every reader of streams, whole and in slices. The slicing must make no
/// difference.
fn read_every_way(stream: &[u8], seed: u8) -> Result<StreamSummary, StreamError> {
    let slices = cut(stream, seed);
    let (whole, in_slices) = (parse(&[stream]), parse(&slices));
    assert_eq!(
        whole, in_slices,
        "the verdict depends on where the stream is cut"
    );
    let point = whole
        .as_ref()
        .map_or_else(|(_, point)| *point, |(_, point)| *point);
    splice(stream, &slices, point);
    let begin_bytes = stream.first_chunk::<HEADER_BYTES>().map(BeginRecord::parse);
    if let Some(Ok(begin)) = begin_bytes {
        let at = stream.len() * usize::from(seed) / 256 / 4 * 4;
        let mut scout = Scout::new(begin.clone(), at as u64);
        let _ = cut(&stream[at..], seed)
            .into_iter()
            .try_for_each(|slice| scout.feed(slice).map(|_| ()));
        scout.end();
        if let Some((boundary, place)) = scout.found() {
            let behind = &stream[usize::try_from(boundary.position)
                .unwrap_or(0)
                .min(stream.len())..];
            gather_and_resume(&begin, boundary, place, behind, seed);
        }
        let behind_begin = HEADER_BYTES + begin.payload_bytes as usize;
        if let Some((opening, behind)) = stream.split_at_checked(behind_begin) {
            gather_and_resume(
                &begin,
                boundary_after_begin(begin.order, opening),
                None,
                behind,
                seed,
            );
        }
    }
    whole
        .map(|(summary, _)| summary)
        .map_err(|(error, _)| error)
}

/// Splices the stream as one that resumes another. The output must not depend on the cuts.
fn splice(stream: &[u8], slices: &[&[u8]], point: Option<ResumePoint>) {
    let Some(Ok(found)) = stream.first_chunk::<HEADER_BYTES>().map(BeginRecord::parse) else {
        return;
    };
    let Some(point) = point else { return };
    let interrupted = BeginRecord {
        feature_flags: found.feature_flags & !feature::RESUMING,
        ..found
    };
    // The same bytes with the flag of a resumed stream, with repaired sums.
    let mut resumed = stream.to_vec();
    let flags = BeginRecord {
        feature_flags: interrupted.feature_flags | feature::RESUMING,
        ..interrupted.clone()
    };
    resumed[..HEADER_BYTES].copy_from_slice(flags.header().bytes());
    mend(&mut resumed);
    let cuts: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
    let run = |lengths: &[usize]| {
        let (mut splicer, mut put, mut rest) = (
            Splicer::new(interrupted.clone(), point),
            Vec::new(),
            &resumed[..],
        );
        let fed = lengths.iter().try_for_each(|length| {
            let (slice, after) = rest.split_at(*length);
            rest = after;
            splicer.feed(slice, &mut |bytes| put.extend_from_slice(bytes))
        });
        (fed.and_then(|()| splicer.finish()), put)
    };
    let (whole, in_slices) = (run(&[resumed.len()]), run(&cuts));
    assert_eq!(
        whole.0, in_slices.0,
        "the splicer's verdict depends on where the stream is cut"
    );
    if whole.0.is_ok() {
        assert_eq!(
            whole.1, in_slices.1,
            "the splicer's output depends on where the stream is cut"
        );
    }
}

/// Checks that a scout in the middle of an intact stream finds only true boundaries.
fn scout_from(stream: &[u8], at: usize, boundaries: &[u64], checked: bool) {
    let Some(Ok(begin)) = stream.first_chunk::<HEADER_BYTES>().map(BeginRecord::parse) else {
        return;
    };
    if !checked || (at as u64) < boundaries[0] {
        return;
    }
    let mut scout = Scout::new(begin, at as u64);
    let fed = scout.feed(&stream[at..]);
    scout.end();
    let found = scout.found().map(|(boundary, _)| boundary.position);
    let expected = boundaries
        .iter()
        .copied()
        .find(|boundary| *boundary >= at as u64);
    assert!(
        fed.is_ok(),
        "an intact stream is called damaged from {at} on: {fed:?}"
    );
    assert_eq!(found, expected, "from {at} on another boundary is found");
}

fn gather_and_resume(
    begin: &BeginRecord,
    from: Boundary,
    place: Option<StreamPlace>,
    behind: &[u8],
    seed: u8,
) {
    let mut prologue = Vec::new();
    for wanted in [Wanted::Range, Wanted::Object] {
        let mut gather = Gather::new(
            begin.clone(),
            from,
            place.map_or(u64::from(seed), |place| place.object),
            wanted,
        );
        for slice in cut(behind, seed) {
            if !matches!(gather.feed(slice), Ok(false)) {
                break;
            }
        }
        prologue.extend(gather.records());
    }
    let Some(payload) = with_resume_point(&[], 1, 2) else {
        return;
    };
    let start = ResumeStart {
        begin: begin.clone(),
        payload,
        prologue,
        from,
        first: place,
    };
    let run = |slices: Vec<&[u8]>| {
        let mut put = Vec::new();
        let mut resumer = Resumer::new(&start, &mut |bytes| put.extend_from_slice(bytes));
        let fed = slices
            .into_iter()
            .try_for_each(|slice| resumer.feed(slice, &mut |bytes| put.extend_from_slice(bytes)));
        (fed.and_then(|()| resumer.finish()), put)
    };
    let (whole, in_slices) = (run(vec![behind]), run(cut(behind, seed)));
    assert_eq!(
        whole.0, in_slices.0,
        "the resumer's verdict depends on where the stream is cut"
    );
    if whole.0.is_ok() {
        assert_eq!(
            whole.1, in_slices.1,
            "the resumer's output depends on where the stream is cut"
        );
    }
}
