//! [`ContentCheck`]: checks whether the store's evidence for an object matches these bytes. For
//! bytes that an earlier run stored and that can be read again here.

use super::checksum::WholeCrc;
use super::{Evidence, EvidenceTier};
use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};

/// The result of comparing the store's evidence with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentVerdict {
    /// Size and checksum match these bytes.
    Proven,
    /// The size matches; the store reports nothing about the content that could be computed here.
    SizeAgrees,
    /// The object has other bytes.
    Differs,
}

/// Computes the store's checksum over the bytes of an object, in order and as the store computed
/// it: over the whole, or by parts of the recorded size. Keeps a few bytes for each part.
pub struct ContentCheck {
    found: Evidence,
    sum: Option<Sum>,
    bytes: u64,
}

enum Sum {
    Whole(WholeCrc, u64),
    Parts {
        kind: PartKind,
        part: PartHasher,
        room: u64,
        part_bytes: Option<u64>,
        digests: Vec<u8>,
        parts: usize,
    },
}

#[derive(Clone, Copy)]
enum PartKind {
    Sha256,
    Md5,
}

enum PartHasher {
    Sha256(Box<Context>),
    Md5(Md5),
}

impl ContentCheck {
    /// Makes a check against this evidence.
    pub fn new(found: &Evidence) -> Self {
        let kind = match found.tier {
            EvidenceTier::Sha256Composite => Some(PartKind::Sha256),
            EvidenceTier::Md5Etag => Some(PartKind::Md5),
            _ => None,
        };
        let by_parts = |kind: PartKind| Sum::Parts {
            kind,
            part: kind.begin(),
            room: found.part_bytes.unwrap_or(u64::MAX),
            part_bytes: found.part_bytes,
            digests: Vec::new(),
            parts: 0,
        };
        let sum = match found.tier {
            EvidenceTier::Crc64nvmeFull => {
                Some(Sum::Whole(WholeCrc::Crc64nvme, WholeCrc::Crc64nvme.of(&[])))
            }
            EvidenceTier::Crc32c => Some(Sum::Whole(WholeCrc::Crc32c, WholeCrc::Crc32c.of(&[]))),
            _ => kind.map(by_parts),
        };
        Self {
            found: found.clone(),
            sum,
            bytes: 0,
        }
    }

    /// Takes the next bytes. MD5 runs at about 600 MB/s, so call this where blocking is allowed.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if let Some(sum) = &mut self.sum {
            sum.update(bytes);
        }
    }

    /// Returns the verdict over all bytes. A different ETag may be that of an encrypted object: it
    /// proves nothing, in either direction.
    pub fn finish(self) -> ContentVerdict {
        if self.bytes != self.found.bytes {
            return ContentVerdict::Differs;
        }
        let (Some(sum), Some(told)) = (self.sum, &self.found.checksum) else {
            return ContentVerdict::SizeAgrees;
        };
        match sum.finish() == *told {
            true => ContentVerdict::Proven,
            false if self.found.tier == EvidenceTier::Md5Etag => ContentVerdict::SizeAgrees,
            false => ContentVerdict::Differs,
        }
    }
}

impl Sum {
    fn update(&mut self, mut bytes: &[u8]) {
        match self {
            Self::Whole(kind, crc) => *crc = kind.append(*crc, kind.of(bytes), bytes.len() as u64),
            Self::Parts {
                kind,
                part,
                room,
                part_bytes,
                digests,
                parts,
            } => {
                while !bytes.is_empty() {
                    let now = usize::try_from(*room)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    part.update(&bytes[..now]);
                    (bytes, *room) = (&bytes[now..], *room - now as u64);
                    if let (0, Some(next)) = (*room, *part_bytes) {
                        digests.extend(std::mem::replace(part, kind.begin()).finish());
                        (*parts, *room) = (*parts + 1, next.max(1));
                    }
                }
            }
        }
    }

    fn finish(self) -> String {
        match self {
            Self::Whole(kind, crc) => kind.text(crc),
            Self::Parts {
                kind,
                part,
                part_bytes: None,
                ..
            } => kind.text(&part.finish()),
            Self::Parts {
                kind,
                part,
                room,
                part_bytes: Some(part_bytes),
                mut digests,
                mut parts,
            } => {
                if room < part_bytes || parts == 0 {
                    digests.extend(part.finish());
                    parts += 1;
                }
                let mut whole = kind.begin();
                whole.update(&digests);
                format!("{}-{parts}", kind.text(&whole.finish()))
            }
        }
    }
}

impl PartKind {
    fn begin(self) -> PartHasher {
        match self {
            Self::Sha256 => PartHasher::Sha256(Box::new(Context::new(&SHA256))),
            Self::Md5 => PartHasher::Md5(Md5::new()),
        }
    }

    /// Encodes a digest as the store's responses do.
    fn text(self, digest: &[u8]) -> String {
        match self {
            Self::Sha256 => STANDARD.encode(digest),
            Self::Md5 => digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

impl PartHasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(context) => context.update(bytes),
            Self::Md5(md5) => md5.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Sha256(context) => context.finish().as_ref().to_vec(),
            Self::Md5(md5) => md5.finalize().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContentVerdict::{Differs, Proven, SizeAgrees};

    fn check(
        tier: EvidenceTier,
        checksum: Option<&str>,
        part_bytes: Option<u64>,
        pieces: &[&[u8]],
    ) -> ContentVerdict {
        let bytes = 9;
        let checksum = checksum.map(str::to_owned);
        let found = Evidence {
            tier,
            bytes,
            checksum,
            etag: None,
            version_id: None,
            part_bytes,
            locked_until: None,
        };
        let mut check = ContentCheck::new(&found);
        pieces.iter().for_each(|piece| check.update(piece));
        check.finish()
    }

    #[test]
    fn what_stores_say_of_known_bytes_is_reproduced_in_any_pieces() {
        use EvidenceTier::{Crc32c, Crc64nvmeFull, IdPin, Md5Etag, ReadBack, Sha256Composite};
        // By parts of 4 bytes, as two runs of `openssl dgst -sha256 -binary` compute it.
        let parts_of_4 = "RWtJBRAdYQ9Y6rETLya5JMkap8fADJo5biSsdBWQ50E=-3";
        let whole_sha256 = "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=";
        let whole_md5 = "25f9e794323b453885f5181f1b624d0b";
        let pieces: [&[&[u8]]; 3] = [
            &[b"123456789"],
            &[b"12345", b"", b"6789"],
            &[b"1234", b"5678", b"9"],
        ];
        for pieces in pieces {
            assert_eq!(
                check(Crc64nvmeFull, Some("rosUhgp5mIg="), Some(4), pieces),
                Proven
            );
            assert_eq!(
                check(Crc64nvmeFull, Some("AAAAAAAAAAA="), None, pieces),
                Differs
            );
            assert_eq!(check(Crc32c, Some("4waSgw=="), Some(4), pieces), Proven);
            assert_eq!(check(Crc32c, Some("AAAAAA=="), None, pieces), Differs);
            assert_eq!(
                check(Sha256Composite, Some(whole_sha256), None, pieces),
                Proven
            );
            assert_eq!(
                check(Sha256Composite, Some(parts_of_4), Some(4), pieces),
                Proven
            );
            assert_eq!(
                check(Sha256Composite, Some(parts_of_4), Some(5), pieces),
                Differs
            );
            assert_eq!(
                check(Sha256Composite, Some(whole_md5), None, pieces),
                Differs
            );
            assert_eq!(check(Md5Etag, Some(whole_md5), None, pieces), Proven);
            assert_eq!(
                check(Md5Etag, Some("of an encrypted object"), None, pieces),
                SizeAgrees
            );
            assert_eq!(check(IdPin, None, Some(4), pieces), SizeAgrees);
            assert_eq!(check(ReadBack, None, None, pieces), SizeAgrees);
            for part_bytes in [1, 3, 4, 9, 10] {
                let parts: Vec<Vec<u8>> = b"123456789"
                    .chunks(part_bytes)
                    .map(<[u8]>::to_vec)
                    .collect();
                let md5s: Vec<u8> = parts
                    .iter()
                    .flat_map(|part| Md5::digest(part).to_vec())
                    .collect();
                let md5 = format!(
                    "{}-{}",
                    PartKind::Md5.text(&Md5::digest(&md5s)),
                    parts.len()
                );
                assert_eq!(
                    check(Md5Etag, Some(&md5), Some(part_bytes as u64), pieces),
                    Proven,
                    "{part_bytes}"
                );
            }
        }
        assert_eq!(
            check(Crc64nvmeFull, Some("rosUhgp5mIg="), None, &[b"12345678"]),
            Differs
        );
    }
}
