//! Targets for data from a store: signatures, signed objects, keys of objects, age files and
//! chunks.

use super::{Choices, Target};
use crate::catalog::sealed::open_small;
use crate::keyring::KeyFile;
use crate::manifest::{
    ManifestError, Private, ProgressBody, parse_as, parse_chunk_list, parse_manifest,
    parse_progress, parse_prune_record, parse_receipt, parse_started, seal_progress,
    to_stored_bytes,
};
use crate::model::{BackupId, BookmarkName, DatasetName, Digest, Guid, SnapshotName};
use crate::sign::{SignedType, SigningKey, TrustedKeys, VerifyingKey};
use crate::store::ObjectKey;
use crate::store::key::{BackupObject, object_name, parse_object_name};
use crate::stream::age_file::{HEAD_BYTES_MAX, new_head, open_head};
use crate::stream::open::{ChunkPieces, ChunkPlain, piece_ranges};
use crate::stream::seal::{ChunkHead, SealedChunk};
use bytes::BytesMut;
use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

pub(super) const SIGNATURE: Target = Target {
    name: "signature",
    run: signature,
    seeds: || {
        let sign = |message: &[u8]| KEYS.sign(message);
        let key = KEYS.signing.verifying_key().to_string();
        vec![
            [b"s", &sign(MESSAGE)[..]].concat(),
            [b"s", &sign(b"another")[..]].concat(),
            format!("k{key}").into_bytes(),
            format!("k{}", "A".repeat(56)).into_bytes(),
            [b"p", SIGNING_KEY.as_bytes()].concat(),
        ]
    },
    words: &[
        "untrusted comment: ",
        "trusted comment: ",
        "zfs-backup v1 manifest ",
        "\n",
        "RW",
        "==",
    ],
};

pub(super) const SIGNED_OBJECT: Target =
    Target {
        name: "signed_object",
        run: signed_object,
        seeds: || {
            let objects = [MANIFEST, RECEIPT, STARTED, PRUNE_RECORD, CHUNK_LIST];
            let mut seeds: Vec<_> = (0..)
                .zip(objects)
                .map(|(n, text)| [&[n][..], text.as_bytes()].concat())
                .collect();
            let body = ProgressBody {
                begin: vec![7; 312],
                chunks: Vec::new(),
            };
            let now = jiff::Timestamp::UNIX_EPOCH;
            let progress = seal_progress(&KEYS.signing, &KEYS.dataset, &KEYS.id, 0, &body, now);
            seeds.extend(progress.map(|progress| {
                [&[5][..], &to_stored_bytes(&progress).unwrap_or_default()].concat()
            }));
            seeds
        },
        words: &[
            "\"format\": 1",
            "\"requires\": []",
            "\"type\": ",
            "null",
            "true",
            "[]",
            "{}",
            "\"\"",
            "0",
            "18446744073709551615",
            "4294967296",
            "-1",
            "\"base\": ",
            "\"origin\": ",
            "\"chunks\": ",
            "\"split_bytes\": ",
            "\"stream_bytes\": ",
        ],
    };

pub(super) const NAMES: Target = Target {
    name: "names",
    run: names,
    seeds: || {
        let id = &KEYS.id;
        let texts = [
            "tank/a".to_owned(),
            "tank/a@zfs-backup_20261123T030133Z".to_owned(),
            "tank/a#zfs-backup_1".to_owned(),
            id.to_string(),
            ObjectKey::backup(&KEYS.dataset, id, &BackupObject::Manifest)
                .signature()
                .as_str()
                .to_owned(),
            ObjectKey::backup(&KEYS.dataset, id, &BackupObject::Progress(3))
                .as_str()
                .to_owned(),
            format!("frozen/data/@{id}/00000003-6e86593f.zfs.zst.age"),
            ObjectKey::prune_record(&KEYS.dataset, "20261123T030133Z", 5)
                .as_str()
                .to_owned(),
            Digest::of(b"").to_string(),
        ];
        texts.map(String::into_bytes).into()
    },
    words: &[
        "/@",
        "/",
        "@",
        "#",
        "-full-",
        "-incr-",
        ".minisig",
        "manifest.json",
        "chunks-0000.json",
        "..",
        ".zfs.age",
    ],
};

pub(super) const AGE_HEAD: Target = Target {
    name: "age_head",
    run: age_head,
    seeds: || {
        let recipient = KEYS.file.recipient();
        let recipients = |count| {
            vec![recipient.as_ref().ok().cloned(); count]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        };
        let heads = [1, 3]
            .into_iter()
            .filter_map(|count| Some(new_head(&recipients(count)).ok()?.0));
        let small = recipient
            .iter()
            .filter_map(|recipient| age::encrypt(recipient, b"private").ok());
        heads.chain(small).collect()
    },
    words: &[
        "age-encryption.org/v1\n",
        "-> X25519 ",
        "-> ssh-ed25519 ",
        "-> scrypt ",
        "-> ",
        "\n--- ",
        "-grease ",
    ],
};

pub(super) const CHUNK: Target = Target {
    name: "chunk",
    run: chunk,
    seeds: || {
        let recipients = KEYS.file.recipient().into_iter().collect::<Vec<_>>();
        let Ok((mut sealed, key)) = new_head(&recipients) else {
            return Vec::new();
        };
        let head_bytes = u8::try_from(sealed.len()).unwrap_or(u8::MAX);
        let mut page = vec![3; 1000];
        let tag = key.seal(0, &mut page, true);
        sealed.extend(page);
        sealed.extend(tag.into_iter().flatten());
        let frame = zstd::encode_all(&[9; 5000][..], 1).unwrap_or_default();
        vec![
            [&[0, head_bytes][..], &sealed].concat(),
            [&[1, 0][..], &frame].concat(),
        ]
    },
    words: &["age-encryption.org/v1\n", "\u{28}\u{b5}\u{2f}\u{fd}"],
};

const MESSAGE: &[u8] = b"the object";
/// Keys for this test only: they seal and sign nothing else.
const IDENTITY: &str = "AGE-SECRET-KEY-1SKSK4TQR0E2Q4TGZQZ3E3AJQHZLG2X6E60QKXLEK49NFEY39W7SQUA2PM9";
const SIGNING_KEY: &str = "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA71D9QU/yLYfAfS0iRAGBbmv3hVczkZhvQzSQzs3VeGgjzmvszKwCI2e9L+NQUP+oWIkTuPgK1DA2sstr19VmhclUeFgyWOeJGc1Cdi5CZWYwNU7WIGdi0XR0CRA9v92HGzI0fjluvpM=";
const DATASET: &str = "frozen/data";
const ID: &str = "20261123T030133Z-full-95583f3d2afbe232-05e7193515b8a498";

macro_rules! frozen {
    ($name:literal) => {
        include_str!(concat!(
            "../../tests/data/v1/zstd/frozen/data/@20261123T030133Z-full-95583f3d2afbe232-05e7193515b8a498/",
            $name
        ))
    };
}
const MANIFEST: &str = frozen!("manifest.json");
const RECEIPT: &str = frozen!("receipt.json");
const STARTED: &str = frozen!("started.json");
const CHUNK_LIST: &str = frozen!("chunks-0000.json");
const PRUNE_RECORD: &str = r#"{
  "format": 1,
  "type": "prune-record",
  "dataset": "frozen/data",
  "pruned": [],
  "tool_version": "0.1.0",
  "written_at": "2026-11-23T03:02:03Z"
}"#;

struct Keys {
    file: KeyFile,
    identities: Arc<[age::x25519::Identity]>,
    signing: SigningKey,
    trusted: TrustedKeys,
    dataset: DatasetName,
    id: BackupId,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let file = KeyFile::parse(&format!("# signing key: {SIGNING_KEY}\n{IDENTITY}\n"))
        .expect("the keys are keys");
    let signing = SigningKey::parse(SIGNING_KEY).expect("the key is one");
    Keys {
        identities: file.identities.clone().into(),
        trusted: TrustedKeys::new(vec![signing.verifying_key().clone()]),
        file,
        signing,
        dataset: DATASET.parse().expect("the name is one"),
        id: ID.parse().expect("the id is one"),
    }
});

impl Keys {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.sign_as(SignedType::Manifest, "a", message)
    }

    fn sign_as(&self, signed_type: SignedType, key: &str, bytes: &[u8]) -> Vec<u8> {
        self.signing
            .sign(signed_type, key, bytes)
            .expect("the system gives random bytes")
    }
}

/// Parses a signature over a known message, the text of a verifying key, or the text of a signing
/// key.
fn signature(input: &[u8]) {
    let mut choices = Choices(input);
    let keys = &KEYS.trusted;
    match choices.byte() {
        b's' => {
            let verified = keys.verify(SignedType::Manifest, "a", MESSAGE, choices.0);
            for (signed_type, key, message) in [
                (SignedType::Manifest, "a", &b"another one"[..]),
                (SignedType::Receipt, "a", MESSAGE),
                (SignedType::Manifest, "b", MESSAGE),
            ] {
                let elsewhere = keys.verify(signed_type, key, message, choices.0);
                assert!(elsewhere.is_err(), "one signature is good for two objects");
            }
            let nobody =
                TrustedKeys::default().verify(SignedType::Manifest, "a", MESSAGE, choices.0);
            assert!(
                nobody.is_err(),
                "nobody is trusted, and a signature holds: {verified:?}"
            );
        }
        b'k' => {
            let text = String::from_utf8_lossy(choices.0);
            let Ok(key) = text.parse::<VerifyingKey>() else {
                return;
            };
            let text = key.to_string();
            assert_eq!(
                text.parse().as_ref(),
                Ok(&key),
                "it is not read as it is printed"
            );
            let ours = KEYS.sign(MESSAGE);
            let verified = TrustedKeys::new(vec![key.clone()]).verify(
                SignedType::Manifest,
                "a",
                MESSAGE,
                &ours,
            );
            // Compare the texts: `==` of the minisign crate ignores the id of the key.
            let is_ours = text == KEYS.signing.verifying_key().to_string();
            assert_eq!(
                verified.is_ok(),
                is_ours,
                "{text} vouches for what we signed"
            );
        }
        _ => {
            let text = String::from_utf8_lossy(choices.0);
            let Ok(key) = SigningKey::parse(&text) else {
                return;
            };
            let printed = key
                .to_secret_text()
                .expect("a key that was read can be printed");
            assert!(
                SigningKey::parse(&printed).is_ok(),
                "it is not read as it is printed"
            );
        }
    }
}

/// Parses any bytes as one of the signed objects, with a valid signature of ours. A parsed object
/// must write the same bytes again.
fn signed_object(input: &[u8]) {
    let mut choices = Choices(input);
    let kind = choices.byte() % 7;
    let bytes = choices.0;
    let Keys {
        signing,
        trusted,
        dataset,
        id,
        ..
    } = &*KEYS;
    let key = |object: BackupObject| ObjectKey::backup(dataset, id, &object).as_str().to_owned();
    let sign = |signed_type, key: &str, bytes: &[u8]| KEYS.sign_as(signed_type, key, bytes);
    match kind {
        0 => again(bytes, |bytes| {
            let signature = sign(SignedType::Manifest, &key(BackupObject::Manifest), bytes);
            parse_manifest(trusted, dataset, id, bytes, &signature)
        }),
        1 => again(bytes, |bytes| {
            let signature = sign(SignedType::Receipt, &key(BackupObject::Receipt), bytes);
            parse_receipt(trusted, dataset, id, bytes, &signature)
        }),
        2 => again(bytes, |bytes| {
            let signature = sign(SignedType::Started, &key(BackupObject::Started), bytes);
            parse_started(trusted, dataset, id, bytes, &signature)
        }),
        3 => again(bytes, |bytes| {
            let signature = sign(SignedType::PruneRecord, "p", bytes);
            parse_prune_record(trusted, dataset, "p", bytes, &signature)
        }),
        4 => {
            let mut manifest: crate::manifest::Manifest =
                parse_as(MANIFEST.as_bytes(), "manifest").expect("it is one");
            manifest.chunk_lists[0].blake3 = Digest::of(bytes);
            let _ = parse_chunk_list(&manifest, 0, bytes);
            manifest.chunk_lists[0].blake3 = Digest::of(b"");
            assert!(
                bytes.is_empty() || parse_chunk_list(&manifest, 0, bytes).is_err(),
                "another list is accepted"
            );
        }
        5 => {
            let signature = sign(SignedType::Progress, &key(BackupObject::Progress(0)), bytes);
            let _ = parse_progress(trusted, signing, dataset, id, 0, bytes, &signature);
        }
        _ => again(bytes, |bytes| parse_as::<Private>(bytes, "private")),
    }
}

fn again<T: serde::Serialize + PartialEq + Debug>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<T, ManifestError>,
) {
    let Ok(object) = parse(bytes) else { return };
    let written = to_stored_bytes(&object).expect("what was read can be written");
    assert_eq!(
        parse(&written).ok(),
        Some(object),
        "it is not read as it is written"
    );
}

/// Parses any text as each kind of name. An accepted name must print as it was read.
fn names(input: &[u8]) {
    let text = &*String::from_utf8_lossy(input);
    same::<DatasetName>(text);
    same::<SnapshotName>(text);
    same::<BookmarkName>(text);
    same::<BackupId>(text);
    same::<Digest>(text);
    same::<Guid>(text);
    if let Ok(dataset) = text.parse::<DatasetName>() {
        assert!(text.starts_with(dataset.pool()));
        let parent = dataset.parent();
        assert_eq!(
            parent.is_none(),
            dataset.pool() == text,
            "{text} has the parent {parent:?}"
        );
    }
    if let Ok(id) = text.parse::<BackupId>() {
        let _ = (
            id.kind(),
            id.snapshot_guid(),
            id.is_after(jiff::Timestamp::UNIX_EPOCH),
        );
    }
    if let Some(object) = parse_object_name(text) {
        assert_eq!(object_name(&object), text);
    }
    if let Some(parsed) = ObjectKey::parse(text) {
        let key = ObjectKey::backup(&parsed.dataset, &parsed.id, &parsed.object);
        let key = if parsed.signature {
            key.signature()
        } else {
            key
        };
        assert_eq!(key.as_str(), text, "a key is not made as it was read");
        assert!(
            ObjectKey::listed(text).is_some(),
            "{text} is a key of ours and is refused in a listing"
        );
    }
}

fn same<T: FromStr + Display>(text: &str) {
    if let Ok(parsed) = text.parse::<T>() {
        assert_eq!(parsed.to_string(), text, "it does not print as it was read");
    }
}

/// Parses any bytes as the head of a chunk, and as a small age file.
fn age_head(input: &[u8]) {
    let _ = open_head(input, &KEYS.identities);
    let _ = open_small(&KEYS.file, input, 4096);
}

/// Opens any bytes, in pieces, as a chunk whose hashes are the signed ones, or as the zstd frame
/// inside.
fn chunk(input: &[u8]) {
    let mut choices = Choices(input);
    let (how, number) = (choices.byte(), choices.byte());
    let bytes = choices.0;
    let head_bytes = usize::from(number) | usize::from(how & 0xc0) << 8;
    let head = &bytes[..head_bytes.min(bytes.len())];
    let expected = SealedChunk {
        stream_bytes: choices.0.len() as u64 * u64::from(how),
        sealed_bytes: bytes.len() as u64,
        blake3: Digest::of(bytes),
        head: ChunkHead {
            bytes: u32::try_from(head_bytes).unwrap_or(u32::MAX),
            blake3: Digest::of(head),
        },
    };
    assert!(head_bytes <= HEAD_BYTES_MAX);
    let mut plain = Vec::new();
    if let (Ok(ranges), Ok(mut pieces)) = (
        piece_ranges(&expected, 1),
        ChunkPieces::new(expected, Arc::clone(&KEYS.identities)),
    ) {
        let taken = ranges.into_iter().try_for_each(|range| {
            let (start, end) = (
                usize::try_from(range.start).unwrap_or(0),
                usize::try_from(range.end).unwrap_or(0),
            );
            let pages = pieces.take(BytesMut::from(&bytes[start..end]))?.open()?;
            pages.pages().for_each(|page| plain.extend_from_slice(page));
            Ok::<(), crate::stream::open::OpenError>(())
        });
        assert!(
            taken.is_err() || pieces.finish().is_ok(),
            "a whole chunk is called cut"
        );
    }
    let Ok(mut frame) = ChunkPlain::new(&expected, how & 1 != 0) else {
        return;
    };
    let (mut page, mut stream) = (bytes, Vec::new());
    while !page.is_empty() {
        stream.clear();
        match frame.take(page, true, &mut stream) {
            Ok(taken) => page = &page[taken..],
            Err(_) => return,
        }
        assert!(
            stream.len() as u64 <= expected.stream_bytes,
            "more stream comes out than was signed"
        );
    }
    let _ = frame.finish();
}
