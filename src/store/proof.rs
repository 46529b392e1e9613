//! [`ContentCheck`]: checks whether the store's evidence for an object matches these bytes. For
//! bytes that an earlier run stored and that can be read again here.

use super::hash::{ContentVerdict, ExpectedEvidence, HashKind, Hasher, PartHash};
use super::multipart::PARTS_MAX;
use super::{Evidence, EvidenceTier};

/// Computes the store's checksum over the bytes of an object, in order and as the store computed
/// it: over the whole, or by parts of the recorded size. Keeps a few bytes for each part.
pub struct ContentCheck {
    found: Evidence,
    bytes: u64,
    hasher: Option<ObjectHasher>,
}

/// Hashes the bytes of an object by parts.
struct ObjectHasher {
    kind: HashKind,
    /// The size of all parts but the last; `None` for an object that was sent in one request.
    part_bytes: Option<u64>,
    /// The part that the next bytes belong to.
    part: Hasher,
    full_parts: Vec<PartHash>,
}

impl ContentCheck {
    /// Makes a check against this evidence.
    pub fn new(found: &Evidence) -> Self {
        let kind = match found.tier {
            EvidenceTier::Crc64nvmeFull => Some(HashKind::Crc64nvme),
            EvidenceTier::Crc32c => Some(HashKind::Crc32c),
            EvidenceTier::Sha256Composite => Some(HashKind::Sha256),
            EvidenceTier::Md5Etag => Some(HashKind::Md5),
            _ => None,
        };
        Self {
            found: found.clone(),
            bytes: 0,
            hasher: kind.map(|kind| ObjectHasher::new(kind, found)),
        }
    }

    /// Takes the next bytes. MD5 runs at about 600 MB/s, so call this where blocking is allowed.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
    }

    /// Returns the verdict over all bytes.
    pub fn finish(self) -> ContentVerdict {
        match self.hasher {
            _ if self.bytes != self.found.bytes => ContentVerdict::Differs,
            None => ContentVerdict::SizeAgrees,
            Some(hasher) => hasher.finish().compare(&self.found),
        }
    }
}

impl ObjectHasher {
    fn new(kind: HashKind, found: &Evidence) -> Self {
        // The store reports the part size. Parts that are smaller than the protocol permits are
        // false, and their hashes would fill memory.
        let part_bytes_min = found.bytes.div_ceil(u64::from(PARTS_MAX)).max(1);
        Self {
            kind,
            part_bytes: found.part_bytes.map(|bytes| bytes.max(part_bytes_min)),
            part: Hasher::new(kind),
            full_parts: Vec::new(),
        }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        let part_bytes = self.part_bytes.unwrap_or(u64::MAX);
        while !bytes.is_empty() {
            let room = usize::try_from(part_bytes - self.part.bytes()).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.part.update(now);
            if self.part.bytes() == part_bytes {
                let full = std::mem::replace(&mut self.part, Hasher::new(self.kind));
                self.full_parts.push(full.finish());
            }
            bytes = later;
        }
    }

    fn finish(self) -> ExpectedEvidence {
        let last = self.part.finish();
        if self.part_bytes.is_none() {
            return ExpectedEvidence::of_whole(&last);
        }
        let mut parts = self.full_parts;
        if last.bytes > 0 || parts.is_empty() {
            parts.push(last);
        }
        ExpectedEvidence::of_parts(self.kind, &parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContentVerdict::{Differs, Proven, SizeAgrees};
    use md5::{Digest as _, Md5};

    fn check(
        tier: EvidenceTier,
        checksum: Option<&str>,
        part_bytes: Option<u64>,
        pieces: &[&[u8]],
    ) -> ContentVerdict {
        let bytes = 9;
        let checksum = checksum.map(str::to_owned);
        let found = Evidence {
            checksum,
            part_bytes,
            ..Evidence::of_size(tier, bytes)
        };
        let mut check = ContentCheck::new(&found);
        pieces.iter().for_each(|piece| check.update(piece));
        check.finish()
    }

    #[test]
    fn store_checksums_of_known_bytes_are_proved_in_any_pieces() {
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
                let md5 = format!("{}-{}", HashKind::Md5.hash(&md5s).hex(), parts.len());
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

    #[test]
    fn a_false_part_size_does_not_fill_memory() {
        let bytes = 3 * u64::from(PARTS_MAX);
        for part_bytes in [0, 1] {
            let found = Evidence {
                checksum: Some("false".to_owned()),
                part_bytes: Some(part_bytes),
                ..Evidence::of_size(EvidenceTier::Sha256Composite, bytes)
            };
            let mut check = ContentCheck::new(&found);
            check.update(&vec![0; usize::try_from(bytes).unwrap()]);
            let kept = check.hasher.as_ref().map(|hasher| hasher.full_parts.len());
            assert_eq!(kept, Some(usize::from(PARTS_MAX)));
            assert_eq!(check.finish(), Differs);
        }
    }
}
