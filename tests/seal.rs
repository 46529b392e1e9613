//! Sealing and opening: against each other, against the `age` crate, and against damage.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use std::io::{Read, Write};
use zfs_backup::model::Digest;
use zfs_backup::stream::age_file::{NONCE_BYTES, PAGE_BYTES, TAG_BYTES};
use zfs_backup::stream::fill::FilledPart;
use zfs_backup::stream::open::{ChunkPieces, ChunkPlain, OpenError, RUN_BYTES, piece_ranges};
use zfs_backup::stream::part::{PartBuffer, PartPool};
use zfs_backup::stream::seal::{ChunkCompression, ChunkFiller, ChunkHasher, SealedChunk};

#[path = "support/chunk.rs"]
mod chunk;
use chunk::{ChunkOpener, seal_chunk};

fn seal(
    plain: &[u8],
    to: &age::x25519::Identity,
    compression: ChunkCompression,
    part_bytes: usize,
) -> (Vec<Bytes>, SealedChunk) {
    let pool = PartPool::new(4096, part_bytes);
    let mut parts = Vec::new();
    let sealed = seal_chunk(
        plain.chunks(70_001),
        &[to.to_public()],
        compression,
        &pool,
        &mut |part| parts.push(part),
    )
    .unwrap();
    assert_eq!(sealed.blake3, Digest::of(&parts.concat()));
    (parts, sealed)
}

fn open(
    sealed: &[u8],
    chunk: SealedChunk,
    identity: &age::x25519::Identity,
    compressed: bool,
    piece: usize,
) -> Result<Vec<u8>, (OpenError, Vec<u8>)> {
    let identities = [identity.clone()].into();
    let mut stream = Vec::new();
    let mut opener =
        ChunkOpener::new(chunk, compressed, identities).map_err(|e| (e, Vec::new()))?;
    for bytes in sealed.chunks(piece.max(1)) {
        if let Err(error) = opener.write(bytes, &mut stream) {
            return Err((error, stream));
        }
    }
    match opener.finish() {
        Ok(()) => Ok(stream),
        Err(error) => Err((error, stream)),
    }
}

fn open_with_age(sealed: &[u8], identity: &age::x25519::Identity) -> Vec<u8> {
    let decryptor = age::Decryptor::new(sealed).unwrap();
    let mut plain = Vec::new();
    decryptor
        .decrypt(std::iter::once(identity as &dyn age::Identity))
        .unwrap()
        .read_to_end(&mut plain)
        .unwrap();
    plain
}

fn pattern(bytes: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes.to_le_bytes());
    let mut data = vec![0; bytes];
    hasher.finalize_xof().fill(&mut data);
    data
}

#[test]
fn sealed_chunk_of_any_length_opens_with_the_age_crate() {
    let identity = age::x25519::Identity::generate();
    let page = PAGE_BYTES;
    // Of the parts: smaller than a page; one sealed page; pages that end with the part but for the
    // head; many pages.
    let sealed_page = page + TAG_BYTES;
    for bytes in [
        0,
        1,
        page - 1,
        page,
        page + 1,
        2 * page - 1,
        2 * page,
        2 * page + 1,
        5 * page + 17,
        16 * page,
    ] {
        for part_bytes in [
            1 << 14,
            sealed_page,
            sealed_page + 216,
            sealed_page + 217,
            2 * sealed_page + 216,
            1 << 20,
        ] {
            let plain = pattern(bytes);
            let (parts, chunk) = seal(&plain, &identity, ChunkCompression::None, part_bytes);
            let sealed: Vec<u8> = parts.concat();
            assert!(
                parts
                    .iter()
                    .rev()
                    .skip(1)
                    .all(|part| part.len() == part_bytes),
                "{bytes}: uniform parts"
            );
            assert_eq!(chunk.sealed_bytes, sealed.len() as u64);
            assert_eq!(chunk.blake3, Digest::of(&sealed));
            assert_eq!(open_with_age(&sealed, &identity), plain, "{bytes} bytes");
            assert_eq!(
                open(&sealed, chunk, &identity, false, 100_000).unwrap(),
                plain,
                "{bytes} bytes"
            );
        }
    }
}

#[test]
fn chunk_sealed_by_the_age_crate_opens() {
    let identity = age::x25519::Identity::generate();
    for bytes in [0, 1, PAGE_BYTES, 3 * PAGE_BYTES + 5] {
        let plain = pattern(bytes);
        let recipient = identity.to_public();
        let encryptor =
            age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
                .unwrap();
        let mut sealed = Vec::new();
        let mut writer = encryptor.wrap_output(&mut sealed).unwrap();
        writer.write_all(&plain).unwrap();
        writer.finish().unwrap();
        let mac_at = sealed.windows(4).position(|w| w == b"\n---").unwrap() + 1;
        let head_bytes =
            mac_at + sealed[mac_at..].iter().position(|b| *b == b'\n').unwrap() + 1 + NONCE_BYTES;
        let head = zfs_backup::stream::seal::ChunkHead {
            bytes: head_bytes as u32,
            blake3: Digest::of(&sealed[..head_bytes]),
        };
        let chunk = SealedChunk {
            stream_bytes: bytes as u64,
            sealed_bytes: sealed.len() as u64,
            blake3: Digest::of(&sealed),
            head,
        };
        assert_eq!(
            open(&sealed, chunk, &identity, false, 7_001).unwrap(),
            plain
        );
    }
}

#[test]
fn compressed_chunk_round_trips_and_opens_with_age_and_zstd_alone() {
    let identity = age::x25519::Identity::generate();
    let plain = [pattern(100_000), vec![7; 500_000]].concat();
    let (parts, chunk) = seal(
        &plain,
        &identity,
        ChunkCompression::Zstd {
            level: 3,
            long: None,
        },
        1 << 16,
    );
    let sealed = parts.concat();
    assert!(chunk.sealed_bytes < 200_000);
    assert_eq!(open(&sealed, chunk, &identity, true, 1000).unwrap(), plain);
    assert_eq!(
        zstd::stream::decode_all(&open_with_age(&sealed, &identity)[..]).unwrap(),
        plain
    );
}

#[test]
fn repetitions_far_apart_are_found_in_a_long_window() {
    let identity = age::x25519::Identity::generate();
    let noise = pattern(3 << 20);
    let plain = [&noise[..], &vec![0; 9 << 20], &noise].concat();
    let sealed_bytes = |long| {
        seal(
            &plain,
            &identity,
            ChunkCompression::Zstd { level: 1, long },
            1 << 20,
        )
        .1
        .sealed_bytes
    };
    assert!(
        sealed_bytes(None) > 6 << 20,
        "the window of level 1 is shorter"
    );
    let (parts, chunk) = seal(
        &plain,
        &identity,
        ChunkCompression::Zstd {
            level: 1,
            long: Some(24),
        },
        1 << 20,
    );
    assert!(chunk.sealed_bytes < 4 << 20, "{} bytes", chunk.sealed_bytes);
    assert!(open(&parts.concat(), chunk, &identity, true, 100_000).unwrap() == plain);
    // The largest window that is allowed needs no option of any reader.
    let (parts, chunk) = seal(
        &plain,
        &identity,
        ChunkCompression::Zstd {
            level: 1,
            long: Some(27),
        },
        1 << 20,
    );
    assert!(
        zstd::stream::decode_all(&open_with_age(&parts.concat(), &identity)[..]).unwrap() == plain
    );
    assert!(open(&parts.concat(), chunk, &identity, true, 100_000).unwrap() == plain);
}

#[test]
fn highly_compressed_chunk_is_decompressed_in_bounded_pieces() {
    let identity = age::x25519::Identity::generate();
    let plain = vec![0; 8 * RUN_BYTES];
    let (parts, chunk) = seal(
        &plain,
        &identity,
        ChunkCompression::Zstd {
            level: 1,
            long: None,
        },
        1 << 20,
    );
    let mut pieces = ChunkPieces::new(chunk, [identity].into()).unwrap();
    let pages = pieces
        .take(BytesMut::from(&parts.concat()[..]))
        .unwrap()
        .open()
        .unwrap();
    let (mut plain_of, mut stream_bytes, mut page) = (
        ChunkPlain::new(&chunk, true).unwrap(),
        0,
        pages.page(0).unwrap(),
    );
    while !page.is_empty() {
        let mut stream = Vec::new();
        page = &page[plain_of.take(page, true, &mut stream).unwrap()..];
        assert!(
            stream.len() <= RUN_BYTES + (1 << 18),
            "{} bytes at once",
            stream.len()
        );
        stream_bytes += stream.len();
    }
    plain_of.finish().unwrap();
    assert_eq!(stream_bytes, plain.len());
}

#[test]
fn many_threads_of_zstd_make_a_frame_that_zstd_alone_opens() {
    let identity = age::x25519::Identity::generate();
    let plain = [pattern(5_000_000), vec![7; 5_000_000]].concat();
    let pool = PartPool::new(64, 1 << 20);
    let mut sealed = Vec::new();
    let mut sink = |part: FilledPart| {
        sealed.extend_from_slice(part.seal()?.buffer.as_ref());
        Ok(())
    };
    let mut filler = ChunkFiller::new(
        &[identity.to_public()],
        ChunkCompression::Zstd {
            level: 3,
            long: None,
        },
        3,
        &pool,
    )
    .unwrap();
    plain
        .chunks(1 << 20)
        .for_each(|piece| filler.write(piece, &mut sink).unwrap());
    filler.finish(&mut sink).unwrap();
    assert!(sealed.len() < 5_500_000);
    assert_eq!(
        zstd::stream::decode_all(&open_with_age(&sealed, &identity)[..]).unwrap(),
        plain
    );
}

#[test]
fn a_self_sealed_chunk_is_refused_before_its_key_is_tried() {
    let identity = age::x25519::Identity::generate();
    let plain = pattern(200_000);
    let (_, genuine) = seal(&plain, &identity, ChunkCompression::None, 1 << 20);
    let (planted, _) = seal(&plain, &identity, ChunkCompression::None, 1 << 20);
    let (error, stream) = open(&planted.concat(), genuine, &identity, false, 65_536).unwrap_err();
    assert!(matches!(error, OpenError::Head), "{error}");
    assert!(stream.is_empty(), "bytes of a planted chunk went on");
}

#[test]
fn chunk_does_not_open_with_another_identity() {
    let plain = pattern(10);
    let (parts, chunk) = seal(
        &plain,
        &age::x25519::Identity::generate(),
        ChunkCompression::None,
        1 << 20,
    );
    let (error, _) = open(
        &parts.concat(),
        chunk,
        &age::x25519::Identity::generate(),
        false,
        1 << 20,
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "open the age header: no matching key");
}

#[test]
fn a_signed_stream_length_that_is_wrong_is_found() {
    let identity = age::x25519::Identity::generate();
    let (parts, chunk) = seal(&pattern(10), &identity, ChunkCompression::None, 1 << 20);
    for stream_bytes in [9, 11] {
        let wrong = SealedChunk {
            stream_bytes,
            ..chunk
        };
        let (error, _) = open(&parts.concat(), wrong, &identity, false, 1 << 20).unwrap_err();
        assert!(matches!(error, OpenError::StreamLength { .. }));
    }
}

/// Fills a chunk as a transfer does: bytes are read to their places, and every part is sealed
/// later, in any order.
fn seal_in_place(
    plain: &[u8],
    to: &age::x25519::Identity,
    part_bytes: usize,
    reads: &[usize],
) -> Vec<u8> {
    let pool = PartPool::new(4096, part_bytes);
    let mut filler = ChunkFiller::new(&[to.to_public()], ChunkCompression::None, 1, &pool).unwrap();
    let (mut filled, mut left, mut sizes) = (Vec::new(), plain, reads.iter().cycle());
    let sink = &mut |part| {
        filled.push(part);
        Ok(())
    };
    while !left.is_empty() {
        let most = (*sizes.next().unwrap()).min(left.len());
        let mut places = filler.places(most, sink).unwrap();
        let read = left.read_vectored(&mut places).unwrap();
        let before = &plain[plain.len() - left.len() - read..][..read];
        let there: Vec<u8> = filler.read_there(read).flatten().copied().collect();
        assert_eq!(there, before, "what was read is where it is looked for");
        filler.advance(read, sink).unwrap();
    }
    let chunk = filler.finish(sink).unwrap();
    let mut sealed: Vec<_> = filled
        .into_iter()
        .rev()
        .map(|part| part.seal().unwrap())
        .collect();
    sealed.reverse();
    let mut hasher = ChunkHasher::default();
    let sealed: Vec<PartBuffer> = sealed
        .into_iter()
        .map(|part| hasher.take(part).unwrap())
        .collect();
    assert!(
        sealed
            .iter()
            .rev()
            .skip(1)
            .all(|part| part.len() == part_bytes),
        "uniform parts"
    );
    let sealed: Vec<&[u8]> = sealed.iter().map(AsRef::as_ref).collect();
    let sealed = sealed.concat();
    assert_eq!(hasher.finish(chunk).blake3, Digest::of(&sealed));
    sealed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn chunk_sealed_in_place_opens_with_the_age_crate(
        pages in 0usize..5, beside in -2isize..3, part in prop::sample::select(vec![1usize << 14, 65_552, 65_768, 65_769, 131_320, 200_000, 1 << 20]),
        reads in prop::collection::vec(prop::sample::select(vec![1usize << 20, 65_536, 65_535, 100_000, 4_097]), 1..4),
    ) {
        let identity = age::x25519::Identity::generate();
        let plain = pattern((pages * PAGE_BYTES).saturating_add_signed(beside));
        let sealed = seal_in_place(&plain, &identity, part, &reads);
        prop_assert!(open_with_age(&sealed, &identity) == plain);
    }

    #[test]
    fn pieces_opened_in_any_order_are_the_stream(bytes in 0usize..400_000, pages in 1u32..5, level in prop::option::of(1i32..3)) {
        let identity = age::x25519::Identity::generate();
        let plain = pattern(bytes);
        let compression = level.map_or(ChunkCompression::None, |level| ChunkCompression::Zstd { level, long: None });
        let (parts, chunk) = seal(&plain, &identity, compression, 100_000);
        let sealed = parts.concat();
        let mut pieces = ChunkPieces::new(chunk, [identity].into()).unwrap();
        let mut taken = Vec::new();
        for range in piece_ranges(&chunk, pages).unwrap() {
            taken.push(pieces.take(BytesMut::from(&sealed[range.start as usize..range.end as usize])).unwrap());
        }
        pieces.finish().unwrap();
        let mut opened: Vec<_> = taken.into_iter().rev().map(|pages| pages.open().unwrap()).collect();
        opened.reverse();
        let (mut plain_of, mut stream) = (ChunkPlain::new(&chunk, level.is_some()).unwrap(), Vec::new());
        for pages in &opened {
            for (index, page) in pages.pages().enumerate() {
                prop_assert_eq!(plain_of.take(page, pages.is_last(index), &mut stream).unwrap(), page.len());
            }
        }
        plain_of.finish().unwrap();
        prop_assert!(stream == plain);
    }

    #[test]
    fn damaged_chunk_is_detected_and_only_authentic_bytes_are_released(
        bytes in 1usize..300_000, at in any::<prop::sample::Index>(), xor in 1u8.., cut in any::<bool>(), piece in 1usize..200_000,
    ) {
        let identity = age::x25519::Identity::generate();
        let plain = pattern(bytes);
        let (parts, chunk) = seal(&plain, &identity, ChunkCompression::None, 1 << 16);
        let mut sealed = parts.concat();
        let at = at.index(sealed.len());
        if cut { sealed.truncate(at) } else { sealed[at] ^= xor }
        let (_, stream) = open(&sealed, chunk, &identity, false, piece).expect_err("damage must be found");
        prop_assert!(plain.starts_with(&stream));
        prop_assert!(stream.len() < plain.len());
    }

    #[test]
    fn opening_is_the_inverse_of_sealing(bytes in 0usize..400_000, part in 1000usize..200_000, piece in 1usize..200_000, level in prop::option::of(1i32..4)) {
        let identity = age::x25519::Identity::generate();
        let plain = pattern(bytes);
        let compression = level.map_or(ChunkCompression::None, |level| ChunkCompression::Zstd { level, long: None });
        let (parts, chunk) = seal(&plain, &identity, compression, part);
        let opened = open(&parts.concat(), chunk, &identity, level.is_some(), piece);
        prop_assert!(opened.is_ok_and(|opened| opened == plain));
    }
}
