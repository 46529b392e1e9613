//! The hot path of the stream: Fletcher-4, the parser over 128 KiB blocks, the splicer.

mod measure;

use measure::measure;
use std::hint::black_box;
use zfs_backup::model::Guid;
use zfs_backup::stream::fletcher::{ByteOrder, Fletcher4};
use zfs_backup::stream::record::{
    BeginRecord, RecordWriter, StreamDatasetType, StreamExpectation, StreamParser, feature,
};
use zfs_backup::stream::splice::Splicer;

const BLOCK_BYTES: usize = 128 << 10;
const BLOCKS: u64 = 512;

fn begin() -> BeginRecord {
    BeginRecord {
        order: ByteOrder::Little,
        feature_flags: feature::LARGE_BLOCKS,
        creation_time: 0,
        dataset_type: StreamDatasetType::Filesystem,
        flags: 0,
        snapshot_guid: Guid(1),
        base_guid: None,
        to_name: "tank/home@2026-11-22".to_owned(),
        payload_bytes: 0,
    }
}

fn blocks(begin: &BeginRecord) -> Vec<u8> {
    let mut writer = RecordWriter::new(begin, &[]);
    let block: Vec<u8> = (0..BLOCK_BYTES)
        .map(|index| (index * 31 % 251).to_le_bytes()[0])
        .collect();
    for index in 0..BLOCKS {
        writer.write(7, index * BLOCK_BYTES as u64, &block);
    }
    writer.end()
}

/// `chunk_bytes`: a boundary is noted each time so many bytes have gone by.
fn parse(stream: &[u8], slice_bytes: usize, chunk_bytes: u64) {
    let expect = StreamExpectation {
        snapshot_guid: Guid(1),
        base_guid: None,
    };
    let mut parser = StreamParser::new(expect);
    let mut boundary = 0;
    for slice in stream.chunks(slice_bytes) {
        if parser.position() >= boundary {
            boundary += chunk_bytes;
            parser.note_boundary_at(boundary);
        }
        parser.feed(black_box(slice)).expect("a valid stream");
    }
    black_box(parser.resume_point());
    parser.finish().expect("a valid stream");
}

fn fletcher() {
    let bytes = vec![0x5a; 1 << 20];
    for order in [ByteOrder::Little, ByteOrder::Big] {
        let mut sum = Fletcher4::default();
        measure(&format!("fletcher4, {order:?}"), bytes.len(), || {
            sum.absorb(black_box(&bytes).as_chunks().0, order);
        });
        black_box(sum);
    }
}

fn parser() {
    let stream = blocks(&begin());
    for (name, slice_bytes) in [("64 KiB slices", 64 << 10), ("1 MiB slices", 1 << 20)] {
        let name = format!("parser, 128 KiB blocks, {name}");
        // The real share of hashed records at split_size 1 GiB: one each 32 MiB, and none near the
        // boundary.
        measure(&name, stream.len(), || parse(&stream, slice_bytes, 1 << 30));
        let name = format!("{name}, 32 MiB chunks");
        measure(&name, stream.len(), || {
            parse(&stream, slice_bytes, 32 << 20)
        });
    }
}

fn splicer() {
    let saved = begin();
    let resumed = blocks(&BeginRecord {
        feature_flags: saved.feature_flags | feature::RESUMING,
        ..saved.clone()
    });
    let point = {
        let expect = StreamExpectation {
            snapshot_guid: Guid(1),
            base_guid: None,
        };
        let mut parser = StreamParser::new(expect);
        let stream = blocks(&saved);
        parser.note_boundary_at(200_000);
        parser.feed(&stream[..200_000]).expect("a valid stream");
        parser.resume_point().expect("one block is complete")
    };
    measure(
        "splicer, 128 KiB blocks, 1 MiB slices",
        resumed.len(),
        || {
            let mut splicer = Splicer::new(saved.clone(), point);
            for slice in resumed.chunks(1 << 20) {
                splicer
                    .feed(slice, &mut |bytes| _ = black_box(bytes.len()))
                    .expect("the same stream");
            }
            splicer.finish().expect("the same stream");
        },
    );
}

fn main() {
    fletcher();
    parser();
    splicer();
}
