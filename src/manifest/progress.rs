//! Progress objects: the sealed progress of an upload, so that an upload can be resumed without its
//! journal.
//!
//! The resume points would reveal content to the store, so they are sealed under a key that only
//! holders of the signing key have: the host that uploads can read them without the identity.

use super::parse::{check, check_place, parse_as};
use super::{ChunkEntry, FORMAT, ManifestError, ProgressObject, ResumeEntry, parse_strict};
use crate::model::{BackupId, DatasetName, Guid};
use crate::sign::{SignedType, SigningKey, TrustedKeys};
use crate::store::key::BackupObject;
use crate::store::{Evidence, ObjectKey};
use crate::stream::record::{BeginRecord, HEADER_BYTES, ResumePoint};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const KEY_CONTEXT: &str = "zfs-backup v1 progress";
const NONCE_BYTES: usize = 12;

/// A confirmed chunk of an unfinished upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressChunk {
    /// The chunk's entry for the list, with its resume point.
    pub entry: ChunkEntry,
    /// The store's evidence for the chunk.
    pub evidence: Evidence,
    /// The running Fletcher-4 of the stream at the end of the chunk, as four numbers of 16
    /// hexadecimal digits; null if the chunk ends in the middle of a word.
    pub end_fletcher4: Option<[Guid; 4]>,
}

/// The sealed content of a progress object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressBody {
    /// The stream's first record, 312 bytes.
    #[serde(with = "base64_text")]
    pub begin: Vec<u8>,
    /// The chunks that were confirmed since the previous progress object.
    pub chunks: Vec<ProgressChunk>,
}

impl From<ResumePoint> for ResumeEntry {
    fn from(point: ResumePoint) -> Self {
        let ResumePoint {
            position,
            object,
            offset,
            fletcher4,
            record_blake3,
        } = point;
        Self {
            position,
            object,
            offset,
            fletcher4: fletcher4.map(Guid),
            record_blake3,
        }
    }
}

impl From<&ResumeEntry> for ResumePoint {
    fn from(entry: &ResumeEntry) -> Self {
        let ResumeEntry {
            position,
            object,
            offset,
            fletcher4,
            record_blake3,
        } = *entry;
        Self {
            position,
            object,
            offset,
            fletcher4: fletcher4.map(|Guid(number)| number),
            record_blake3,
        }
    }
}

/// Parses the stored first record of a stream. Returns `None` for bytes that are no BEGIN record.
pub fn begin_from_bytes(bytes: &[u8]) -> Option<BeginRecord> {
    let bytes: &[u8; HEADER_BYTES] = bytes.try_into().ok()?;
    BeginRecord::parse(bytes).ok()
}

/// Makes the progress object with this number and seals its content.
///
/// # Errors
/// [`ManifestError::Sealed`] when the system gives no random bytes.
pub fn seal_progress(
    signing: &SigningKey,
    dataset: &DatasetName,
    id: &BackupId,
    number: u16,
    body: &ProgressBody,
    written_at: Timestamp,
) -> Result<ProgressObject, ManifestError> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| ManifestError::Sealed)?;
    let mut sealed = serde_json::to_vec(body).map_err(ManifestError::Json)?;
    let key = ObjectKey::backup(dataset, id, &BackupObject::Progress(number));
    let nonce_of_seal = Nonce::assume_unique_for_key(nonce);
    sealing_key(signing)?
        .seal_in_place_append_tag(nonce_of_seal, Aad::from(key.as_str()), &mut sealed)
        .map_err(|_| ManifestError::Sealed)?;
    Ok(ProgressObject {
        format: FORMAT,
        object_type: SignedType::Progress.as_str().to_owned(),
        dataset: dataset.clone(),
        id: id.clone(),
        number: u32::from(number),
        sealed: BASE64_STANDARD.encode([&nonce[..], &sealed].concat()),
        written_at,
    })
}

/// Parses and opens the progress object stored under its key.
///
/// # Errors
/// [`ManifestError`]; [`ManifestError::Sealed`] when the content was sealed with another signing
/// key.
pub fn parse_progress(
    trusted: &TrustedKeys,
    signing: &SigningKey,
    dataset: &DatasetName,
    id: &BackupId,
    number: u16,
    bytes: &[u8],
    signature: &[u8],
) -> Result<ProgressBody, ManifestError> {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Progress(number));
    trusted.verify(SignedType::Progress, key.as_str(), bytes, signature)?;
    let progress: ProgressObject = parse_as(bytes, SignedType::Progress.as_str())?;
    check_place(dataset, id, &progress.dataset, &progress.id)?;
    check(progress.number == u32::from(number), || {
        format!("its number is {}", progress.number)
    })?;
    let mut sealed = BASE64_STANDARD
        .decode(&progress.sealed)
        .map_err(|_| ManifestError::Sealed)?;
    let (nonce, sealed) = sealed
        .split_first_chunk_mut::<NONCE_BYTES>()
        .ok_or(ManifestError::Sealed)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let opened = sealing_key(signing)?.open_in_place(nonce, Aad::from(key.as_str()), sealed);
    parse_strict(opened.map_err(|_| ManifestError::Sealed)?).map_err(ManifestError::Json)
}

fn sealing_key(signing: &SigningKey) -> Result<LessSafeKey, ManifestError> {
    let secret = zeroize::Zeroizing::new(signing.to_secret_text()?);
    let key = zeroize::Zeroizing::new(blake3::derive_key(KEY_CONTEXT, secret.as_bytes()));
    let key = UnboundKey::new(&CHACHA20_POLY1305, &*key).map_err(|_| ManifestError::Sealed)?;
    Ok(LessSafeKey::new(key))
}

/// Bytes as base64 in JSON.
pub(crate) mod base64_text {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::to_stored_bytes;
    use crate::model::BackupKind;

    #[test]
    fn progress_is_readable_only_by_its_signing_key_and_at_its_key() {
        let (signing, other) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let trusted = TrustedKeys::new(vec![signing.verifying_key().clone()]);
        let dataset: DatasetName = "tank/a".parse().unwrap();
        let id = |nonce| BackupId::new(Timestamp::UNIX_EPOCH, BackupKind::Full, Guid(1), nonce);
        let body = ProgressBody {
            begin: vec![7; HEADER_BYTES],
            chunks: Vec::new(),
        };
        let progress =
            seal_progress(&signing, &dataset, &id(1), 3, &body, Timestamp::UNIX_EPOCH).unwrap();
        let bytes = to_stored_bytes(&progress).unwrap();
        let key = ObjectKey::backup(&dataset, &id(1), &BackupObject::Progress(3));
        let signature = signing
            .sign(SignedType::Progress, key.as_str(), &bytes)
            .unwrap();
        let read = |signing, id, number| {
            parse_progress(&trusted, signing, &dataset, &id, number, &bytes, &signature)
        };
        assert_eq!(read(&signing, id(1), 3).unwrap(), body);
        assert!(matches!(read(&other, id(1), 3), Err(ManifestError::Sealed)));
        assert!(matches!(
            read(&signing, id(2), 3),
            Err(ManifestError::Signature(_))
        ));
        assert!(matches!(
            read(&signing, id(1), 4),
            Err(ManifestError::Signature(_))
        ));
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(
            !text.contains("chunks"),
            "it tells the store something: {text}"
        );
    }
}
