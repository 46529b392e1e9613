//! Each rule of the format by a table: one change to an archived object, and the words that refuse
//! it.

use super::*;
use crate::sign::SigningKey;
use serde_json::{Value, json};

const ID: &str = "20261123T030133Z-full-95583f3d2afbe232-05e7193515b8a498";
const OTHER_ID: &str = "20261123T030133Z-full-95583f3d2afbe232-05e7193515b8a499";
const INCR_ID: &str = "20261123T030133Z-incr-95583f3d2afbe232-05e7193515b8a498";

macro_rules! archived {
    ($name:literal) => {
        include_str!(concat!(
            "../../../tests/data/v1/zstd/frozen/data/@20261123T030133Z-full-95583f3d2afbe232-05e7193515b8a498/",
            $name
        ))
    };
}

/// A change of a JSON value: its pointer and the new value.
type Edit = (&'static str, Value);

/// The archived object with these changes.
fn edited(text: &str, edits: &[Edit]) -> Vec<u8> {
    let mut value: Value = serde_json::from_str(text).unwrap();
    for (pointer, new) in edits {
        *value.pointer_mut(pointer).expect(pointer) = new.clone();
    }
    serde_json::to_vec(&value).unwrap()
}

struct Reader {
    signing: SigningKey,
    trusted: TrustedKeys,
    dataset: DatasetName,
}

impl Reader {
    fn new() -> Self {
        let signing = SigningKey::generate().unwrap();
        Self {
            trusted: TrustedKeys::new(vec![signing.verifying_key().clone()]),
            signing,
            dataset: "frozen/data".parse().unwrap(),
        }
    }

    /// Signs the bytes for the place of this object under `id`.
    fn sign(
        &self,
        signed_type: SignedType,
        id: &str,
        object: BackupObject,
        bytes: &[u8],
    ) -> Vec<u8> {
        let key = ObjectKey::backup(&self.dataset, &id.parse().unwrap(), &object);
        self.signing.sign(signed_type, key.as_str(), bytes).unwrap()
    }

    fn manifest(&self, id: &str, edits: &[Edit]) -> Result<Manifest, ManifestError> {
        let bytes = edited(archived!("manifest.json"), edits);
        let signature = self.sign(SignedType::Manifest, id, BackupObject::Manifest, &bytes);
        parse_manifest(
            &self.trusted,
            &self.dataset,
            &id.parse().unwrap(),
            &bytes,
            &signature,
        )
    }
}

fn assert_refused<T>(parsed: Result<T, ManifestError>, words: &str) {
    let error = parsed.err().unwrap_or_else(|| panic!("no {words:?}"));
    let text = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(text.contains(words), "{text}, not {words:?}");
}

#[test]
fn manifest_that_contradicts_itself_is_refused() {
    let reader = Reader::new();
    assert!(reader.manifest(ID, &[]).is_ok());
    let base = json!({
        "guid": "0000000000000001",
        "backup_id": "20261122T030133Z-full-0000000000000001-05e7193515b8a498",
        "manifest_blake3": "faff880a7a787770a5babafdb2cd61aacc591dce9979f946a97e21966221759c",
    });
    let incremental = || {
        vec![
            ("/id", json!(INCR_ID)),
            ("/kind", json!("incr")),
            ("/base", base.clone()),
            ("/chain/position", json!(1)),
            (
                "/chain/full_id",
                json!("20261122T030133Z-full-0000000000000001-05e7193515b8a498"),
            ),
        ]
    };
    assert!(reader.manifest(INCR_ID, &incremental()).is_ok());
    let incremental_but = |pointer, value| {
        let mut edits = incremental();
        edits.push((pointer, value));
        edits
    };
    let list = |number: usize, chunks: usize| {
        let digest = "faff880a7a787770a5babafdb2cd61aacc591dce9979f946a97e21966221759c";
        json!({"name": format!("chunks-{number:04}.json"), "blake3": digest, "chunks": chunks})
    };
    let long = CHUNKS_PER_LIST + 1;
    let long_bytes = json!((long as u64 * 65_536).to_string());
    let kind = "its kind is not that of its id";
    let snapshot = "its snapshot is not that of its id";
    let has_base = "a full must have no base, and an incremental must have one";
    let position = "only a full can start a chain";
    let split = "its split_bytes is not a multiple of 4";
    let table: Vec<(&str, Vec<Edit>, &str)> = vec![
        (ID, vec![("/format", json!(2))], "it has format 2"),
        (ID, vec![("/requires", json!(["x"]))], "it requires [\"x\"]"),
        (
            ID,
            vec![("/type", json!("receipt"))],
            "its type is \"receipt\", not \"manifest\"",
        ),
        (
            ID,
            vec![("/dataset", json!("frozen/other"))],
            "it is of dataset frozen/other",
        ),
        (
            ID,
            vec![("/id", json!(OTHER_ID))],
            "it is of backup 20261123T030133Z-full-",
        ),
        (ID, vec![("/kind", json!("incr"))], kind),
        (INCR_ID, incremental_but("/kind", json!("full")), kind),
        (
            ID,
            vec![("/snapshot/guid", json!("95583f3d2afbe233"))],
            snapshot,
        ),
        (
            ID,
            vec![("/snapshot/created_at", json!("2026-11-23T03:01:34Z"))],
            snapshot,
        ),
        (ID, vec![("/base", base.clone())], has_base),
        (INCR_ID, incremental_but("/base", Value::Null), has_base),
        (ID, vec![("/chain/position", json!(1))], position),
        (
            INCR_ID,
            incremental_but("/chain/position", json!(0)),
            position,
        ),
        (
            ID,
            vec![("/chain/full_id", json!(OTHER_ID))],
            "a full begins its own chain",
        ),
        (ID, vec![("/split_bytes", json!("0"))], split),
        (ID, vec![("/split_bytes", json!("65538"))], split),
        (
            ID,
            vec![
                ("/chunk_lists", json!([list(0, long)])),
                ("/stream_bytes", long_bytes),
            ],
            "one of its lists is too long",
        ),
        (
            ID,
            vec![("/stream_bytes", json!("196608"))],
            "needs 3 chunks, its lists have 4",
        ),
        (
            ID,
            vec![("/stream_bytes", json!("262145"))],
            "needs 5 chunks, its lists have 4",
        ),
        (
            ID,
            vec![("/chunk_lists", json!([])), ("/stream_bytes", json!("0"))],
            "needs 0 chunks, its lists have 0",
        ),
        (
            ID,
            vec![("/chunk_lists", json!([list(1, 4)]))],
            "list 0 is named \"chunks-0001.json\"",
        ),
        (
            ID,
            vec![("/chunk_lists", json!([list(0, 2), list(0, 2)]))],
            "list 1 is named \"chunks-0000.json\"",
        ),
    ];
    for (id, edits, words) in table {
        assert_refused(reader.manifest(id, &edits), words);
    }
    let two_lists = [("/chunk_lists", json!([list(0, 2), list(1, 2)]))];
    assert!(reader.manifest(ID, &two_lists).is_ok());
    let full_list = [
        ("/chunk_lists", json!([list(0, CHUNKS_PER_LIST)])),
        (
            "/stream_bytes",
            json!((CHUNKS_PER_LIST as u64 * 65_536).to_string()),
        ),
    ];
    assert!(reader.manifest(ID, &full_list).is_ok());
}

/// A list of the archived chunks with these changes, under a manifest that pins it.
fn chunks(edits: &[Edit], pinned: &[Edit]) -> Result<Vec<ChunkEntry>, ManifestError> {
    let bytes = edited(archived!("chunks-0000.json"), edits);
    let manifest = edited(archived!("manifest.json"), pinned);
    let mut manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    manifest.chunk_lists[0].blake3 = Digest::of(&bytes);
    parse_chunk_list(&manifest, 0, &bytes)
}

#[test]
fn chunk_list_that_does_not_fit_its_manifest_is_refused() {
    assert_eq!(chunks(&[], &[]).unwrap().len(), 4);
    let head_bytes = 43_008 - TAG_BYTES;
    let table: Vec<(Vec<Edit>, Vec<Edit>, &str)> = vec![
        (
            vec![("/type", json!("manifest"))],
            vec![],
            "its type is \"manifest\"",
        ),
        (
            vec![],
            vec![("/chunk_lists/0/chunks", json!(3))],
            "is not the manifest's",
        ),
        (
            vec![("/chunks/1/index", json!(2))],
            vec![],
            "chunk 1 has the number 2",
        ),
        (
            vec![("/chunks/1/name", json!("00000002-2f8fe764.zfs.zst.age"))],
            vec![],
            "chunk 1 is named \"00000002-2f8fe764.zfs.zst.age\"",
        ),
        (
            vec![("/chunks/1/name", json!("00000001-2f8fe764.zfs.age"))],
            vec![],
            "chunk 1 is named \"00000001-2f8fe764.zfs.age\"",
        ),
        (
            vec![],
            vec![("/compression", json!("none"))],
            "chunk 0 is named",
        ),
        (
            vec![("/chunks/1/name", json!("receipt.json"))],
            vec![],
            "chunk 1 is named \"receipt.json\"",
        ),
        (
            vec![("/chunks/1/stream_bytes", json!("65535"))],
            vec![],
            "chunk 1 has 65535 bytes of stream, not 65536",
        ),
        (
            vec![("/chunks/3/stream_bytes", json!("65536"))],
            vec![],
            "chunk 3 has 65536 bytes of stream, not 26152",
        ),
        (
            vec![("/chunks/0/head/bytes", json!(head_bytes + 1))],
            vec![],
            "chunk 0 has a head of 42993 bytes",
        ),
        (
            vec![
                ("/chunks/0/head/bytes", json!(HEAD_BYTES_MAX + 1)),
                ("/chunks/0/sealed_bytes", json!("1000000")),
            ],
            vec![],
            "chunk 0 has a head of 65537 bytes",
        ),
    ];
    for (edits, pinned, words) in table {
        assert_refused(chunks(&edits, &pinned), words);
    }
    assert!(chunks(&[("/chunks/0/head/bytes", json!(head_bytes))], &[]).is_ok());
    let largest = [
        ("/chunks/0/head/bytes", json!(HEAD_BYTES_MAX)),
        ("/chunks/0/sealed_bytes", json!("1000000")),
    ];
    assert!(chunks(&largest, &[]).is_ok());
}

#[test]
fn chunk_list_is_the_one_that_the_manifest_pins() {
    let manifest: Manifest = serde_json::from_str(archived!("manifest.json")).unwrap();
    let bytes = archived!("chunks-0000.json").as_bytes();
    assert!(parse_chunk_list(&manifest, 0, bytes).is_ok());
    assert_refused(parse_chunk_list(&manifest, 1, bytes), "it has no list 1");
    let changed = [bytes, b"\n"].concat();
    assert!(matches!(
        parse_chunk_list(&manifest, 0, &changed),
        Err(ManifestError::Digest { expected, actual })
            if expected == Digest::of(bytes) && actual == Digest::of(&changed)
    ));
    // The second list continues with the number of chunks of the first.
    let mut chunks: Value = serde_json::from_slice(bytes).unwrap();
    let rest: Vec<Value> = chunks["chunks"]
        .as_array_mut()
        .unwrap()
        .drain(2..)
        .collect();
    let second = json!({"format": 1, "type": "chunks", "chunks": rest}).to_string();
    let mut manifest = manifest;
    manifest.chunk_lists[0].chunks = 2;
    let mut list = manifest.chunk_lists[0].clone();
    list.blake3 = Digest::of(second.as_bytes());
    manifest.chunk_lists.push(list);
    let parsed = parse_chunk_list(&manifest, 1, second.as_bytes()).unwrap();
    assert_eq!(
        parsed.iter().map(|chunk| chunk.index).collect::<Vec<_>>(),
        [2, 3]
    );
}

#[test]
fn receipt_first_object_and_prune_record_are_valid_only_at_their_key() {
    let reader = Reader::new();
    let id: BackupId = ID.parse().unwrap();
    let receipt = |edits: &[Edit]| {
        let bytes = edited(archived!("receipt.json"), edits);
        let signature = reader.sign(SignedType::Receipt, ID, BackupObject::Receipt, &bytes);
        parse_receipt(&reader.trusted, &reader.dataset, &id, &bytes, &signature).map(drop)
    };
    let started = |edits: &[Edit]| {
        let bytes = edited(archived!("started.json"), edits);
        let signature = reader.sign(SignedType::Started, ID, BackupObject::Started, &bytes);
        parse_started(&reader.trusted, &reader.dataset, &id, &bytes, &signature).map(drop)
    };
    for (what, parse) in [
        (
            "receipt",
            &receipt as &dyn Fn(&[Edit]) -> Result<(), ManifestError>,
        ),
        ("started", &started),
    ] {
        assert!(parse(&[]).is_ok(), "{what}");
        assert_refused(
            parse(&[("/dataset", json!("frozen/other"))]),
            "it is of dataset frozen/other",
        );
        assert_refused(parse(&[("/id", json!(OTHER_ID))]), "it is of backup");
        assert_refused(
            parse(&[("/type", json!("manifest"))]),
            "its type is \"manifest\"",
        );
    }
    let record = |dataset: &str| {
        let bytes = json!({
            "format": 1,
            "type": "prune-record",
            "dataset": dataset,
            "pruned": [],
            "tool_version": "0.1.0",
            "written_at": "2026-11-23T03:02:03Z",
        });
        let bytes = bytes.to_string().into_bytes();
        let signature = reader
            .signing
            .sign(SignedType::PruneRecord, "p", &bytes)
            .unwrap();
        parse_prune_record(&reader.trusted, &reader.dataset, "p", &bytes, &signature)
    };
    assert!(record("frozen/data").is_ok());
    assert_refused(record("frozen/other"), "it is of dataset frozen/other");
}
