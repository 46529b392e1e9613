//! [`PartSum`] and [`ObjectSum`]: the checksums of sent bytes, in the four forms that S3 stores
//! support.

use super::S3Checksum;
use crate::store::Evidence;
use crate::store::checksum::WholeCrc;
use aws_lc_rs::digest::{SHA256, digest as lc_digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use std::fmt::Write as _;

/// The checksum of one part, or of an object in one request.
#[derive(Debug, Clone)]
pub(super) struct PartSum {
    pub(super) bytes: u64,
    digest: Vec<u8>,
}

impl PartSum {
    /// Computes the checksum. MD5 runs at about 600 MB/s, so call this where blocking is allowed.
    pub(super) fn of(kind: S3Checksum, part: &[u8]) -> Self {
        let digest = match kind {
            S3Checksum::Crc64nvme => WholeCrc::Crc64nvme.bytes(WholeCrc::Crc64nvme.of(part)),
            S3Checksum::Crc32c => WholeCrc::Crc32c.bytes(WholeCrc::Crc32c.of(part)),
            S3Checksum::Sha256 => lc_digest(&SHA256, part).as_ref().to_vec(),
            S3Checksum::Md5 => Md5::digest(part).to_vec(),
        };
        Self {
            bytes: part.len() as u64,
            digest,
        }
    }

    /// Encodes the checksum for a header.
    pub(super) fn header(&self) -> String {
        STANDARD.encode(&self.digest)
    }

    /// The digest in hexadecimal, as an ETag has it.
    pub(super) fn hex(&self) -> String {
        hex(&self.digest)
    }
}

/// The description of the sent object that the store should return.
#[derive(Debug, Clone)]
pub(super) struct ObjectSum {
    pub(super) kind: S3Checksum,
    pub(super) bytes: u64,
    /// The checksum in the form of the store's responses.
    pub(super) text: String,
}

/// The result of comparing the store's description with what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Size and checksum agree.
    Proven,
    /// The size agrees; the store reports nothing about the content that could be compared.
    SizeAgrees,
    /// The object differs.
    Differs,
}

impl ObjectSum {
    /// Describes an object that is put in one request.
    pub(super) fn of_whole(kind: S3Checksum, whole: &PartSum) -> Self {
        let text = if kind == S3Checksum::Md5 {
            whole.hex()
        } else {
            whole.header()
        };
        Self {
            kind,
            bytes: whole.bytes,
            text,
        }
    }

    /// Describes an object of these parts, in order.
    pub(super) fn of_parts(kind: S3Checksum, parts: &[PartSum]) -> Self {
        let bytes = parts.iter().map(|part| part.bytes).sum();
        let digests: Vec<u8> = parts
            .iter()
            .flat_map(|part| &part.digest)
            .copied()
            .collect();
        let text = match kind {
            S3Checksum::Crc64nvme => combined_crc(WholeCrc::Crc64nvme, parts),
            S3Checksum::Crc32c => combined_crc(WholeCrc::Crc32c, parts),
            S3Checksum::Sha256 => {
                format!("{}-{}", PartSum::of(kind, &digests).header(), parts.len())
            }
            S3Checksum::Md5 => format!("{}-{}", PartSum::of(kind, &digests).hex(), parts.len()),
        };
        Self { kind, bytes, text }
    }

    /// Compares the store's evidence with what was sent. A different ETag may be that of an
    /// encrypted object: it proves nothing, in either direction.
    pub(super) fn compare(&self, found: &Evidence) -> Verdict {
        let agrees = found.checksum.as_deref() == Some(&self.text);
        match () {
            () if found.bytes != self.bytes => Verdict::Differs,
            () if found.tier != self.kind.tier() => Verdict::SizeAgrees,
            () if agrees => Verdict::Proven,
            () if self.kind == S3Checksum::Md5 => Verdict::SizeAgrees,
            () => Verdict::Differs,
        }
    }
}

/// Combines the CRCs of the parts to that of the whole object, encoded for a header.
fn combined_crc(kind: WholeCrc, parts: &[PartSum]) -> String {
    let whole = parts.iter().fold(kind.of(&[]), |whole, part| {
        let crc = part
            .digest
            .iter()
            .fold(0, |crc, byte| crc << 8 | u64::from(*byte));
        kind.append(whole, crc, part.bytes)
    });
    kind.text(whole)
}

/// Whether an ETag can be an MD5: 32 hexadecimal digits, optionally followed by the number of
/// parts.
pub(super) fn is_md5_etag(etag: &str) -> bool {
    let (digest, parts) = etag.split_once('-').unwrap_or((etag, "1"));
    digest.len() == 32
        && digest.bytes().all(|b| b.is_ascii_hexdigit())
        && parts.parse::<u32>().is_ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EvidenceTier;

    const KINDS: [S3Checksum; 4] = S3Checksum::ALL;

    fn found(tier: EvidenceTier, bytes: u64, checksum: &str) -> Evidence {
        let checksum = Some(checksum.to_owned());
        Evidence {
            tier,
            bytes,
            checksum,
            etag: None,
            version_id: None,
            part_bytes: None,
            locked_until: None,
        }
    }

    #[test]
    fn known_digests_are_reproduced() {
        for (kind, text) in KINDS.into_iter().zip([
            "rosUhgp5mIg=",
            "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
            "4waSgw==",
            "25f9e794323b453885f5181f1b624d0b",
        ]) {
            assert_eq!(
                ObjectSum::of_whole(kind, &PartSum::of(kind, b"123456789")).text,
                text,
                "{kind:?}"
            );
        }
    }

    #[test]
    fn crc_of_parts_is_the_crc_of_the_whole() {
        for (kind, text) in [
            (S3Checksum::Crc64nvme, "rosUhgp5mIg="),
            (S3Checksum::Crc32c, "4waSgw=="),
        ] {
            let parts = [b"1234".as_slice(), b"5678", b"9"].map(|part| PartSum::of(kind, part));
            assert_eq!(ObjectSum::of_parts(kind, &parts).text, text);
            assert_eq!(
                ObjectSum::of_parts(kind, &parts[..1]).text,
                PartSum::of(kind, b"1234").header()
            );
        }
    }

    #[test]
    fn composites_name_the_number_of_parts() {
        for kind in [S3Checksum::Sha256, S3Checksum::Md5] {
            let parts = [b"a".as_slice(), b"b"].map(|part| PartSum::of(kind, part));
            assert!(ObjectSum::of_parts(kind, &parts).text.ends_with("-2"));
        }
    }

    #[test]
    fn only_an_etag_may_be_opaque() {
        use EvidenceTier::SizeOnly;
        for kind in KINDS {
            let tier = kind.tier();
            let sent = ObjectSum::of_whole(kind, &PartSum::of(kind, b"123"));
            let other = if kind == S3Checksum::Md5 {
                Verdict::SizeAgrees
            } else {
                Verdict::Differs
            };
            for (tier, bytes, text, verdict) in [
                (tier, 3, sent.text.as_str(), Verdict::Proven),
                (tier, 4, sent.text.as_str(), Verdict::Differs),
                (tier, 3, "other", other),
                (SizeOnly, 3, "", Verdict::SizeAgrees),
                (SizeOnly, 2, "", Verdict::Differs),
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
