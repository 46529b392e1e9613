//! Hashes that stores keep of objects and of their parts: [`HashKind`], [`Hasher`], [`PartHash`],
//! and the comparison of the evidence that a store should have ([`ExpectedEvidence`]) with the
//! evidence that it has.

use super::work::run_blocking;
use super::{Evidence, EvidenceTier};
use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use md5::{Digest as _, Md5};
use std::fmt::Write as _;

/// A hash that a store computes and that this program can compute too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HashKind {
    /// CRC-64/NVME, 8 bytes.
    Crc64nvme,
    /// CRC-32/ISCSI (Castagnoli), 4 bytes.
    Crc32c,
    Sha256,
    Sha1,
    Md5,
}

impl HashKind {
    /// Returns the evidence tier of a store that keeps this hash.
    pub(crate) fn tier(self) -> EvidenceTier {
        match self {
            Self::Crc64nvme => EvidenceTier::Crc64nvmeFull,
            Self::Crc32c => EvidenceTier::Crc32c,
            Self::Sha256 => EvidenceTier::Sha256Composite,
            Self::Sha1 => EvidenceTier::Sha1,
            Self::Md5 => EvidenceTier::Md5Etag,
        }
    }

    /// Returns the name of the hash in settings, messages and rclone's arguments.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crc64nvme => "crc64nvme",
            Self::Crc32c => "crc32c",
            Self::Sha256 => "sha256",
            Self::Sha1 => "sha1",
            Self::Md5 => "md5",
        }
    }

    /// Hashes bytes in memory. MD5 runs at about 600 MB/s, so call this where blocking is allowed.
    pub(crate) fn hash(self, bytes: &[u8]) -> PartHash {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Hashes bytes in memory on a thread that may block.
    pub(crate) async fn hash_blocking(self, bytes: Bytes) -> PartHash {
        run_blocking(move || self.hash(&bytes)).await
    }

    /// Returns the algorithm of a CRC. The CRCs of parts combine to the CRC of the whole object.
    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc64nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Sha256 | Self::Sha1 | Self::Md5 => None,
        }
    }
}

/// Returns the CRC-64/NVME of bytes in memory.
pub(crate) fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// Computes a hash over bytes that come in pieces.
pub(crate) struct Hasher {
    kind: HashKind,
    bytes: u64,
    state: HasherState,
}

enum HasherState {
    Crc(Box<crc_fast::Digest>),
    Sha(Box<Context>),
    Md5(Md5),
}

impl Hasher {
    /// Returns a hasher of no bytes yet.
    pub(crate) fn new(kind: HashKind) -> Self {
        let state = match kind {
            HashKind::Crc64nvme => crc_state(CrcAlgorithm::Crc64Nvme),
            HashKind::Crc32c => crc_state(CrcAlgorithm::Crc32Iscsi),
            HashKind::Sha256 => HasherState::Sha(Box::new(Context::new(&SHA256))),
            HashKind::Sha1 => HasherState::Sha(Box::new(Context::new(&SHA1_FOR_LEGACY_USE_ONLY))),
            HashKind::Md5 => HasherState::Md5(Md5::new()),
        };
        Self {
            kind,
            bytes: 0,
            state,
        }
    }

    /// Returns the number of bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hashes the next bytes. Call this where blocking is allowed.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        match &mut self.state {
            HasherState::Crc(crc) => crc.update(bytes),
            HasherState::Sha(context) => context.update(bytes),
            HasherState::Md5(md5) => md5.update(bytes),
        }
    }

    /// Returns the hash of all bytes.
    pub(crate) fn finish(self) -> PartHash {
        let digest = match self.state {
            HasherState::Crc(crc) => crc_bytes(self.kind, crc.finalize()),
            HasherState::Sha(context) => context.finish().as_ref().to_vec(),
            HasherState::Md5(md5) => md5.finalize().to_vec(),
        };
        PartHash {
            kind: self.kind,
            bytes: self.bytes,
            digest,
        }
    }
}

fn crc_state(algorithm: CrcAlgorithm) -> HasherState {
    HasherState::Crc(Box::new(crc_fast::Digest::new(algorithm)))
}

/// Returns a CRC as stores write it: in big-endian order, and in 4 bytes if it is the shorter one.
fn crc_bytes(kind: HashKind, crc: u64) -> Vec<u8> {
    let skipped = if kind == HashKind::Crc32c { 4 } else { 0 };
    crc.to_be_bytes()[skipped..].to_vec()
}

/// The hash of one part, or of an object that is sent in one request.
#[derive(Debug, Clone)]
pub(crate) struct PartHash {
    kind: HashKind,
    /// The number of hashed bytes.
    pub(crate) bytes: u64,
    digest: Vec<u8>,
}

impl PartHash {
    /// Encodes the hash in base64, as S3's headers do.
    pub(crate) fn base64(&self) -> String {
        STANDARD.encode(&self.digest)
    }

    /// Encodes the hash in hexadecimal.
    pub(crate) fn hex(&self) -> String {
        self.digest.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Encodes the hash as the responses of stores do.
    fn text(&self) -> String {
        match self.kind {
            HashKind::Crc64nvme | HashKind::Crc32c | HashKind::Sha256 => self.base64(),
            HashKind::Sha1 | HashKind::Md5 => self.hex(),
        }
    }
}

/// The result of comparing a store's evidence with the bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentVerdict {
    /// Size and checksum match the bytes.
    Proven,
    /// The size matches; the store reports nothing about the content that could be compared.
    SizeAgrees,
    /// The object has other bytes.
    Differs,
}

/// The evidence that a store should have for an object.
#[derive(Debug, Clone)]
pub(crate) struct ExpectedEvidence {
    kind: HashKind,
    pub(crate) bytes: u64,
    /// The checksum in the form of the store's responses.
    pub(crate) checksum: String,
}

impl ExpectedEvidence {
    /// Describes an object that is sent in one request.
    pub(crate) fn of_whole(whole: &PartHash) -> Self {
        Self {
            kind: whole.kind,
            bytes: whole.bytes,
            checksum: whole.text(),
        }
    }

    /// Describes an object of these parts, in order.
    pub(crate) fn of_parts(kind: HashKind, parts: &[PartHash]) -> Self {
        let checksum = match kind.crc() {
            Some(algorithm) => STANDARD.encode(crc_bytes(kind, combined_crc(algorithm, parts))),
            None => {
                let mut composite = Hasher::new(kind);
                for part in parts {
                    composite.update(&part.digest);
                }
                format!("{}-{}", composite.finish().text(), parts.len())
            }
        };
        Self {
            kind,
            bytes: parts.iter().map(|part| part.bytes).sum(),
            checksum,
        }
    }

    /// Compares the store's evidence with the expected one. A different ETag may be that of an
    /// encrypted object: it proves nothing, in either direction.
    pub(crate) fn compare(&self, found: &Evidence) -> ContentVerdict {
        if found.bytes != self.bytes {
            return ContentVerdict::Differs;
        }
        if found.tier != self.kind.tier() {
            return ContentVerdict::SizeAgrees;
        }
        match &found.checksum {
            Some(checksum) if *checksum == self.checksum => ContentVerdict::Proven,
            Some(_) if self.kind != HashKind::Md5 => ContentVerdict::Differs,
            _ => ContentVerdict::SizeAgrees,
        }
    }
}

/// Combines the CRCs of the parts to that of the whole object.
fn combined_crc(algorithm: CrcAlgorithm, parts: &[PartHash]) -> u64 {
    let nothing = crc_fast::checksum(algorithm, &[]);
    parts.iter().fold(nothing, |whole, part| {
        let digest = part.digest.iter();
        let crc = digest.fold(0, |crc, byte| crc << 8 | u64::from(*byte));
        crc_fast::checksum_combine(algorithm, whole, crc, part.bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [HashKind; 5] = [
        HashKind::Crc64nvme,
        HashKind::Crc32c,
        HashKind::Sha256,
        HashKind::Sha1,
        HashKind::Md5,
    ];
    const CRCS: [HashKind; 2] = [HashKind::Crc64nvme, HashKind::Crc32c];

    fn found(tier: EvidenceTier, bytes: u64, checksum: &str) -> Evidence {
        Evidence {
            checksum: Some(checksum.to_owned()),
            ..Evidence::of_size(tier, bytes)
        }
    }

    #[test]
    fn known_digests_are_reproduced() {
        for (kind, text) in KINDS.into_iter().zip([
            "rosUhgp5mIg=",
            "4waSgw==",
            "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
            "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
            "25f9e794323b453885f5181f1b624d0b",
        ]) {
            let hash = kind.hash(b"123456789");
            let checksum = ExpectedEvidence::of_whole(&hash).checksum;
            assert_eq!((checksum.as_str(), hash.bytes), (text, 9), "{kind:?}");
        }
    }

    #[test]
    fn check_values_of_the_catalogue_are_reproduced() {
        // CRC-64/NVME and CRC-32/ISCSI in the catalogue of parametrised CRC algorithms.
        assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888);
        for (kind, crc) in CRCS.into_iter().zip(["ae8b14860a799888", "e3069283"]) {
            assert_eq!(kind.hash(b"123456789").hex(), crc);
        }
    }

    #[tokio::test]
    async fn sha1_of_known_bytes_is_reproduced() {
        let hash = HashKind::Sha1.hash_blocking(Bytes::from_static(b"abc"));
        assert_eq!(hash.await.hex(), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    #[test]
    fn parts_combine_to_the_whole() {
        let whole: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for kind in CRCS {
            let expected = kind.hash(&whole).base64();
            for cut in [0, 1, 4_095, 4_096, whole.len()] {
                let (head, tail) = whole.split_at(cut);
                let parts = [kind.hash(head), kind.hash(tail)];
                let combined = ExpectedEvidence::of_parts(kind, &parts).checksum;
                assert_eq!(combined, expected, "{kind:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn crc_of_parts_is_the_crc_of_the_whole() {
        for (kind, text) in CRCS.into_iter().zip(["rosUhgp5mIg=", "4waSgw=="]) {
            let parts = [b"1234".as_slice(), b"5678", b"9"].map(|part| kind.hash(part));
            assert_eq!(ExpectedEvidence::of_parts(kind, &parts).checksum, text);
            assert_eq!(
                ExpectedEvidence::of_parts(kind, &parts[..1]).checksum,
                kind.hash(b"1234").base64()
            );
        }
    }

    #[test]
    fn composites_name_the_number_of_parts() {
        for kind in [HashKind::Sha256, HashKind::Md5] {
            let parts = [b"a".as_slice(), b"b"].map(|part| kind.hash(part));
            assert!(
                ExpectedEvidence::of_parts(kind, &parts)
                    .checksum
                    .ends_with("-2")
            );
        }
    }

    #[test]
    fn different_checksum_text_is_tolerated_only_for_an_etag() {
        use EvidenceTier::SizeOnly;
        for kind in KINDS {
            let tier = kind.tier();
            let sent = ExpectedEvidence::of_whole(&kind.hash(b"123"));
            let other = if kind == HashKind::Md5 {
                ContentVerdict::SizeAgrees
            } else {
                ContentVerdict::Differs
            };
            for (tier, bytes, text, verdict) in [
                (tier, 3, sent.checksum.as_str(), ContentVerdict::Proven),
                (tier, 4, sent.checksum.as_str(), ContentVerdict::Differs),
                (tier, 3, "other", other),
                (SizeOnly, 3, "", ContentVerdict::SizeAgrees),
                (SizeOnly, 2, "", ContentVerdict::Differs),
            ] {
                assert_eq!(
                    sent.compare(&found(tier, bytes, text)),
                    verdict,
                    "{kind:?} {tier:?} {bytes} {text}"
                );
            }
        }
    }
}
