//! Parses stored bytes into consistent objects: every rule of the format that can be checked on a
//! single object.

use super::strict::parse_strict;
use super::{
    CHUNKS_PER_LIST, ChunkEntry, ChunkList, CompressionName, FORMAT, Manifest, PruneRecord,
    Receipt, SPLIT_ALIGNMENT, Started,
};
use crate::model::{BackupId, BackupKind, DatasetName, Digest};
use crate::sign::{SignatureError, SignedType, TrustedKeys};
use crate::store::ObjectKey;
use crate::store::key::{BackupObject, object_name, parse_object_name};
use crate::stream::age_file::{HEAD_BYTES_MAX, TAG_BYTES};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The reason why an object is invalid. The caller, who read the object, adds its key.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The signature is missing, not by a trusted key, or for another place.
    #[error("check the signature")]
    Signature(#[from] SignatureError),
    /// The bytes are not the JSON that the format demands.
    #[error("parse it as storage format 1")]
    Json(#[source] serde_json::Error),
    /// A later version wrote the object.
    #[error("it has format {format}, and this version reads format 1 only")]
    Format {
        /// The format number in the object.
        format: u64,
    },
    /// The object requires features that this version does not know.
    #[error("it requires {0:?}, which this version does not know")]
    Requires(Vec<String>),
    /// The object contradicts itself or its place in the store.
    #[error("it contradicts itself: {0}")]
    Contradiction(String),
    /// The hash of the object differs from the hash in the manifest.
    #[error("its BLAKE3 is {actual}, and the manifest says {expected}")]
    Digest {
        /// The hash in the manifest.
        expected: Digest,
        /// The hash of the bytes.
        actual: Digest,
    },
    /// The sealed content cannot be opened.
    #[error("decrypt its sealed part with the signing key")]
    Sealed,
}

impl ManifestError {
    /// Returns whether the object is damaged or forged. What a later version made is neither.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Format { .. } | Self::Requires(_))
    }
}

#[derive(Deserialize)]
struct Preamble {
    format: u64,
    #[serde(default)]
    requires: Vec<String>,
    #[serde(rename = "type")]
    object_type: String,
}

/// Parses an object of this type. The format is checked first, so that a later version is refused
/// by its number and not for an unknown field.
pub(crate) fn parse_as<T: DeserializeOwned>(
    bytes: &[u8],
    object_type: &str,
) -> Result<T, ManifestError> {
    let value: serde_json::Value = parse_strict(bytes).map_err(ManifestError::Json)?;
    let preamble = Preamble::deserialize(&value).map_err(ManifestError::Json)?;
    if preamble.format != u64::from(FORMAT) {
        return Err(ManifestError::Format {
            format: preamble.format,
        });
    }
    if !preamble.requires.is_empty() {
        return Err(ManifestError::Requires(preamble.requires));
    }
    check(preamble.object_type == object_type, || {
        format!(
            "its type is {:?}, not {object_type:?}",
            preamble.object_type
        )
    })?;
    serde_json::from_value(value).map_err(ManifestError::Json)
}

pub(super) fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), ManifestError> {
    if holds {
        Ok(())
    } else {
        Err(ManifestError::Contradiction(otherwise()))
    }
}

/// Parses the manifest stored under its key, and checks signature, format, place and consistency.
///
/// # Errors
/// [`ManifestError`]. The bytes are then not a backup, and nothing may be deleted because of them.
pub fn parse_manifest(
    trusted: &TrustedKeys,
    dataset: &DatasetName,
    id: &BackupId,
    bytes: &[u8],
    signature: &[u8],
) -> Result<Manifest, ManifestError> {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest);
    trusted.verify(SignedType::Manifest, key.as_str(), bytes, signature)?;
    let manifest: Manifest = parse_as(bytes, SignedType::Manifest.as_str())?;
    check_place(dataset, id, &manifest.dataset, &manifest.id)?;
    check(manifest.kind == id.kind(), || {
        "its kind is not that of its id".to_owned()
    })?;
    let snapshot = &manifest.snapshot;
    let same_snapshot = snapshot.guid == id.snapshot_guid() && id.is_at(snapshot.created_at);
    check(same_snapshot, || {
        "its snapshot is not that of its id".to_owned()
    })?;
    let full = manifest.kind == BackupKind::Full;
    check(manifest.base.is_none() == full, || {
        "a full must have no base, and an incremental must have one".to_owned()
    })?;
    check((manifest.chain.position == 0) == full, || {
        "only a full can start a chain".to_owned()
    })?;
    check(!full || manifest.chain.full_id == *id, || {
        "a full begins its own chain".to_owned()
    })?;
    let aligned = manifest.split_bytes > 0 && manifest.split_bytes.is_multiple_of(SPLIT_ALIGNMENT);
    check(aligned, || {
        format!("its split_bytes is not a multiple of {SPLIT_ALIGNMENT}")
    })?;
    let lists = manifest.chunk_lists.iter();
    check(
        lists
            .clone()
            .all(|list| list.chunks as usize <= CHUNKS_PER_LIST),
        || "one of its lists is too long".to_owned(),
    )?;
    let chunks = manifest.stream_bytes.div_ceil(manifest.split_bytes);
    let listed: u64 = lists.map(|list| u64::from(list.chunks)).sum();
    check(chunks == listed && listed > 0, || {
        format!("its stream needs {chunks} chunks, its lists have {listed}")
    })?;
    for (number, list) in manifest.chunk_lists.iter().enumerate() {
        let expected =
            u16::try_from(number).map(|number| object_name(&BackupObject::ChunkList(number)));
        check(expected.as_ref() == Ok(&list.name), || {
            format!("list {number} is named {:?}", list.name)
        })?;
    }
    Ok(manifest)
}

pub(super) fn check_place(
    dataset: &DatasetName,
    id: &BackupId,
    inner_dataset: &DatasetName,
    inner_id: &BackupId,
) -> Result<(), ManifestError> {
    check(inner_dataset == dataset, || {
        format!("it is of dataset {inner_dataset}")
    })?;
    check(inner_id == id, || format!("it is of backup {inner_id}"))
}

/// Parses the chunks of one list, and checks them against the manifest that pins the list. `number`
/// counts the lists from 0.
///
/// # Errors
/// [`ManifestError`].
pub fn parse_chunk_list(
    manifest: &Manifest,
    number: usize,
    bytes: &[u8],
) -> Result<Vec<ChunkEntry>, ManifestError> {
    let lists = &manifest.chunk_lists;
    let list_ref = lists
        .get(number)
        .ok_or_else(|| ManifestError::Contradiction(format!("it has no list {number}")))?;
    let actual = Digest::of(bytes);
    if actual != list_ref.blake3 {
        return Err(ManifestError::Digest {
            expected: list_ref.blake3,
            actual,
        });
    }
    let list: ChunkList = parse_as(bytes, "chunks")?;
    check(
        list.chunks.len() as u64 == u64::from(list_ref.chunks),
        || "its number of chunks is not the manifest's".to_owned(),
    )?;
    let first: u64 = lists[..number]
        .iter()
        .map(|list| u64::from(list.chunks))
        .sum();
    for (chunk, index) in list.chunks.iter().zip(first..) {
        check_chunk(manifest, chunk, index)?;
    }
    Ok(list.chunks)
}

fn check_chunk(manifest: &Manifest, chunk: &ChunkEntry, index: u64) -> Result<(), ManifestError> {
    check(u64::from(chunk.index) == index, || {
        format!("chunk {index} has the number {}", chunk.index)
    })?;
    let compressed = manifest.compression == CompressionName::Zstd;
    let named = match parse_object_name(&chunk.name) {
        Some(BackupObject::Chunk {
            index,
            compressed: by_name,
            ..
        }) => index.get() == chunk.index && by_name == compressed,
        _ => false,
    };
    check(named, || format!("chunk {index} is named {:?}", chunk.name))?;
    let rest = manifest
        .stream_bytes
        .saturating_sub(index * manifest.split_bytes);
    let expected = rest.min(manifest.split_bytes);
    check(chunk.stream_bytes == expected, || {
        format!(
            "chunk {index} has {} bytes of stream, not {expected}",
            chunk.stream_bytes
        )
    })?;
    let head_fits = chunk.head.bytes as usize <= HEAD_BYTES_MAX
        && u64::from(chunk.head.bytes) + TAG_BYTES as u64 <= chunk.sealed_bytes;
    check(head_fits, || {
        format!("chunk {index} has a head of {} bytes", chunk.head.bytes)
    })
}

/// Parses the receipt stored under its key.
///
/// # Errors
/// [`ManifestError`].
pub fn parse_receipt(
    trusted: &TrustedKeys,
    dataset: &DatasetName,
    id: &BackupId,
    bytes: &[u8],
    signature: &[u8],
) -> Result<Receipt, ManifestError> {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Receipt);
    trusted.verify(SignedType::Receipt, key.as_str(), bytes, signature)?;
    let receipt: Receipt = parse_as(bytes, SignedType::Receipt.as_str())?;
    check_place(dataset, id, &receipt.dataset, &receipt.id)?;
    Ok(receipt)
}

/// Parses the first object of an attempt, stored under its key.
///
/// # Errors
/// [`ManifestError`].
pub fn parse_started(
    trusted: &TrustedKeys,
    dataset: &DatasetName,
    id: &BackupId,
    bytes: &[u8],
    signature: &[u8],
) -> Result<Started, ManifestError> {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Started);
    trusted.verify(SignedType::Started, key.as_str(), bytes, signature)?;
    let started: Started = parse_as(bytes, SignedType::Started.as_str())?;
    check_place(dataset, id, &started.dataset, &started.id)?;
    Ok(started)
}

/// Parses the prune record stored under its key.
///
/// # Errors
/// [`ManifestError`].
pub fn parse_prune_record(
    trusted: &TrustedKeys,
    dataset: &DatasetName,
    key: &str,
    bytes: &[u8],
    signature: &[u8],
) -> Result<PruneRecord, ManifestError> {
    trusted.verify(SignedType::PruneRecord, key, bytes, signature)?;
    let record: PruneRecord = parse_as(bytes, SignedType::PruneRecord.as_str())?;
    check(record.dataset == *dataset, || {
        format!("it is of dataset {}", record.dataset)
    })?;
    Ok(record)
}

#[cfg(test)]
mod tests;
