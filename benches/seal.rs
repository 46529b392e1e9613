//! Sealing and opening chunks, beside the arithmetic that they cannot do without: BLAKE3 and
//! CRC64NVME.

use bytes::BytesMut;
use crc_fast::{CrcAlgorithm, checksum};
use measure::measure;
use std::hint::black_box;
use zfs_backup::stream::open::{ChunkPieces, piece_ranges};
use zfs_backup::stream::part::PartPool;
use zfs_backup::stream::seal::{ChunkCompression, SealedChunk};

#[allow(
    dead_code,
    reason = "shared with the tests of sealing, which use all of it"
)]
#[path = "../tests/support/chunk.rs"]
mod chunk;
mod measure;

const CHUNK_BYTES: usize = 64 << 20;
const PART_BYTES: usize = 8 << 20;
const READ_BYTES: usize = 1 << 20;
const PIECE_PAGES: u32 = 64;

/// Bytes that no compressor makes smaller.
fn noise() -> Vec<u8> {
    let mut bytes = vec![0; CHUNK_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn seal_chunk(
    stream: &[u8],
    to: &[age::x25519::Recipient],
    compression: ChunkCompression,
    pool: &PartPool,
) -> SealedChunk {
    let mut drop_part = |part| drop(black_box(part));
    chunk::seal_chunk(
        stream.chunks(READ_BYTES),
        to,
        compression,
        pool,
        &mut drop_part,
    )
    .expect("there is a recipient")
}

fn seal() {
    let to = [age::x25519::Identity::generate().to_public()];
    let pool = PartPool::new(2, PART_BYTES);
    let zstd = ChunkCompression::Zstd {
        level: 1,
        long: None,
    };
    let noise = noise();
    let zeros = vec![0; CHUNK_BYTES];
    for (name, stream, compression) in [
        ("plain", &noise, ChunkCompression::None),
        ("zstd 1, incompressible", &noise, zstd),
        ("zstd 1, zeros", &zeros, zstd),
    ] {
        measure(
            &format!("seal a chunk, one thread, {name}"),
            CHUNK_BYTES,
            || seal_chunk(stream, &to, compression, &pool),
        );
    }
}

fn open() {
    let identity = age::x25519::Identity::generate();
    let pool = PartPool::new(CHUNK_BYTES / PART_BYTES + 2, PART_BYTES);
    let mut parts = Vec::new();
    let stream = noise();
    let mut keep = |part| parts.push(part);
    let sealed = chunk::seal_chunk(
        [&stream[..]],
        &[identity.to_public()],
        ChunkCompression::None,
        &pool,
        &mut keep,
    );
    let chunk = sealed.expect("there is a recipient");
    let sealed = parts.concat();
    let ranges: Vec<_> = piece_ranges(&chunk, PIECE_PAGES)
        .expect("a chunk")
        .collect();
    measure(
        "open a chunk, one thread, 4 MiB pieces",
        CHUNK_BYTES,
        || {
            let mut pieces = ChunkPieces::new(chunk, [identity.clone()].into()).expect("a chunk");
            for range in &ranges {
                let range = usize::try_from(range.start).unwrap_or(0)
                    ..usize::try_from(range.end).unwrap_or(0);
                let pages = pieces
                    .take(BytesMut::from(&sealed[range]))
                    .expect("authentic");
                black_box(pages.open().expect("authentic"));
            }
            pieces.finish().expect("whole");
        },
    );
}

fn hashes() {
    let bytes = noise();
    measure("BLAKE3, one thread, 8 MiB at once", CHUNK_BYTES, || {
        let mut hasher = blake3::Hasher::new();
        bytes
            .chunks(PART_BYTES)
            .for_each(|part| _ = hasher.update(part));
        hasher.finalize()
    });
    measure("CRC64NVME, one thread, 8 MiB at once", CHUNK_BYTES, || {
        bytes
            .chunks(PART_BYTES)
            .fold(0, |sum, part| sum ^ checksum(CrcAlgorithm::Crc64Nvme, part))
    });
}

fn main() {
    seal();
    open();
    hashes();
}
