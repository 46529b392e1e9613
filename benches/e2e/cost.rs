//! The bare arithmetic of every backup: ChaCha20-Poly1305, BLAKE3, CRC64NVME and Fletcher-4 over
//! the same bytes, one after the other on one core. The table gives a backup's cost in multiples of
//! it.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use zfs_backup::stream::age_file::PAGE_BYTES;
use zfs_backup::stream::fletcher::{ByteOrder, Fletcher4};

/// Out of the caches, as the bytes of a stream are.
const BYTES: usize = 512 << 20;
const PART_BYTES: usize = 8 << 20;
const TURNS: usize = 3;

pub(crate) fn cost(path: &Path) {
    let mut bytes = vec![0; BYTES];
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(BYTES as u64).read(&mut bytes))
        .unwrap();
    assert!(read > 0, "{}: empty", path.display());
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap());
    let parts: [(&str, Work); 4] = [
        (
            "fletcher4",
            Box::new(|part: &mut [u8]| {
                let mut sum = Fletcher4::default();
                sum.absorb(part.as_chunks().0, ByteOrder::Little);
                black_box(sum);
            }),
        ),
        (
            "chacha20-poly1305",
            Box::new(move |part: &mut [u8]| {
                for page in part.chunks_mut(PAGE_BYTES) {
                    let nonce = Nonce::assume_unique_for_key([1; 12]);
                    _ = black_box(
                        key.seal_in_place_separate_tag(nonce, Aad::empty(), page)
                            .unwrap(),
                    );
                }
            }),
        ),
        (
            "blake3",
            Box::new(|part: &mut [u8]| {
                black_box(blake3::hash(part));
            }),
        ),
        (
            "crc64nvme",
            Box::new(|part: &mut [u8]| {
                black_box(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, part));
            }),
        ),
    ];
    let mut total = 0.0;
    for (name, mut work) in parts {
        let mut turns: Vec<f64> = (0..TURNS)
            .map(|_| seconds_per_gib(&mut bytes, &mut work))
            .collect();
        turns.sort_unstable_by(f64::total_cmp);
        println!("{name} {:.4}", turns[TURNS / 2]);
        total += turns[TURNS / 2];
    }
    println!("total {total:.4}");
}

type Work = Box<dyn FnMut(&mut [u8])>;

/// CPU seconds of this thread. The clock of the machine would count what others take from it.
fn seconds_per_gib(bytes: &mut [u8], work: &mut Work) -> f64 {
    let clock = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let nanos: f64 = text.split_whitespace().next().unwrap().parse().unwrap();
        nanos / 1e9
    };
    let begun = clock();
    bytes.chunks_mut(PART_BYTES).for_each(work);
    #[expect(clippy::cast_precision_loss, reason = "a number of bytes below 2^52")]
    let share = (1u64 << 30) as f64 / bytes.len() as f64;
    (clock() - begun) * share
}
