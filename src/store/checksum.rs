//! CRC64NVME as S3 writes it. What else a store may be asked to compare is beside the adapter that speaks it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;

/// The CRC64NVME of bytes that are in memory.
pub(crate) fn crc64nvme(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// The CRC64NVME of a whole, from that of its head and that of the `tail_bytes` which follow.
pub(crate) fn crc64nvme_append(head: u64, tail: u64, tail_bytes: u64) -> u64 {
    crc_fast::checksum_combine(CrcAlgorithm::Crc64Nvme, head, tail, tail_bytes)
}

/// The CRC as S3 puts it into headers: big-endian, in base64.
pub(crate) fn crc64nvme_text(crc: u64) -> String {
    STANDARD.encode(crc.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_catalogue_is_reproduced() {
        // CRC-64/NVME in the catalogue of parametrised CRC algorithms.
        assert_eq!(crc64nvme(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(crc64nvme_text(0xae8b_1486_0a79_9888), "rosUhgp5mIg=");
    }

    #[test]
    fn parts_combine_to_the_whole() {
        let whole: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for cut in [0, 1, 4_095, 4_096, whole.len()] {
            let (head, tail) = whole.split_at(cut);
            let combined = crc64nvme_append(crc64nvme(head), crc64nvme(tail), tail.len() as u64);
            assert_eq!(combined, crc64nvme(&whole), "cut at {cut}");
        }
    }
}
