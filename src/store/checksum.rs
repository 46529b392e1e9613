//! [`WholeCrc`]: the CRCs that S3 stores keep of whole objects. Each adapter has the other
//! checksums that its store compares.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;

/// A CRC that can be computed over parts, in any order, and combined to the CRC of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WholeCrc {
    /// 64 bits, CRC-64/NVME.
    Crc64nvme,
    /// 32 bits, CRC-32/ISCSI.
    Crc32c,
}

impl WholeCrc {
    /// Returns the CRC of bytes in memory.
    pub(crate) fn of(self, bytes: &[u8]) -> u64 {
        crc_fast::checksum(self.algorithm(), bytes)
    }

    /// Returns the CRC of a whole, from the CRC of its head and the CRC of the `tail_bytes` that
    /// follow.
    pub(crate) fn append(self, head: u64, tail: u64, tail_bytes: u64) -> u64 {
        crc_fast::checksum_combine(self.algorithm(), head, tail, tail_bytes)
    }

    /// Writes the CRC as S3's headers do: big-endian, in base64.
    pub(crate) fn text(self, crc: u64) -> String {
        STANDARD.encode(self.bytes(crc))
    }

    /// Returns the CRC in big-endian order, in 4 bytes for the shorter one.
    pub(crate) fn bytes(self, crc: u64) -> Vec<u8> {
        let skipped = match self {
            Self::Crc64nvme => 0,
            Self::Crc32c => 4,
        };
        crc.to_be_bytes()[skipped..].to_vec()
    }

    fn algorithm(self) -> CrcAlgorithm {
        match self {
            Self::Crc64nvme => CrcAlgorithm::Crc64Nvme,
            Self::Crc32c => CrcAlgorithm::Crc32Iscsi,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::WholeCrc::{self, Crc32c, Crc64nvme};

    const KINDS: [WholeCrc; 2] = [Crc64nvme, Crc32c];

    #[test]
    fn check_values_of_the_catalogue_are_reproduced() {
        // CRC-64/NVME and CRC-32/ISCSI in the catalogue of parametrised CRC algorithms.
        for (kind, crc, text) in [
            (Crc64nvme, 0xae8b_1486_0a79_9888, "rosUhgp5mIg="),
            (Crc32c, 0xe306_9283, "4waSgw=="),
        ] {
            assert_eq!(kind.of(b"123456789"), crc);
            assert_eq!(kind.text(crc), text);
        }
    }

    #[test]
    fn parts_combine_to_the_whole() {
        let whole: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for kind in KINDS {
            for cut in [0, 1, 4_095, 4_096, whole.len()] {
                let (head, tail) = whole.split_at(cut);
                let combined = kind.append(kind.of(head), kind.of(tail), tail.len() as u64);
                assert_eq!(combined, kind.of(&whole), "{kind:?} cut at {cut}");
            }
        }
    }
}
