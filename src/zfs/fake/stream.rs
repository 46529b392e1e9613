//! Send streams of in-memory datasets: real records, so that tests can run the readers of streams
//! on them.

use super::content::{BLOCK_BYTES, Block, Content, FakeFile};
use crate::zfs::{DatasetType, SendResume};
use std::collections::BTreeSet;

pub(super) const HEADER_BYTES: usize = 312;
pub(super) const CHECKSUM_AT: usize = 280;
pub(super) const BEGIN_MAGIC: u64 = 0x2_F5BA_CBAC;
pub(super) const BEGIN: u32 = 0;
pub(super) const OBJECT: u32 = 1;
pub(super) const FREEOBJECTS: u32 = 2;
pub(super) const WRITE: u32 = 3;
pub(super) const FREE: u32 = 4;
pub(super) const END: u32 = 5;
pub(super) const FEATURE_EMBED_DATA: u64 = 1 << 16;
pub(super) const FEATURE_LZ4: u64 = 1 << 17;
pub(super) const FEATURE_LARGE_BLOCKS: u64 = 1 << 19;
pub(super) const FEATURE_RESUMING: u64 = 1 << 20;
pub(super) const FEATURE_COMPRESSED: u64 = 1 << 22;
pub(super) const FEATURE_RAW: u64 = 1 << 24;
pub(super) const FLAG_CLONE: u32 = 1;
const FLAG_FREERECORDS: u32 = 4;
const PLAIN_FILE_CONTENTS: u32 = 19;
/// A bonus type that the kernel does not interpret.
const UINT64_OTHER: u32 = 26;
const COMPRESSION_OFF: u8 = 2;
const UINT64: u32 = 8;
const NVLIST: u32 = 19;

/// [`BLOCK_BYTES`] in the type of the record's field.
const BLOCK_BYTES_WORD: u32 = 4096;
const _: () = assert!(BLOCK_BYTES_WORD as usize == BLOCK_BYTES);

/// A running Fletcher-4 over little-endian words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum([u64; 4]);

impl Sum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let [mut a, mut b, mut c, mut d] = self.0;
        for word in bytes.as_chunks::<4>().0 {
            a = a.wrapping_add(u32::from_le_bytes(*word).into());
            b = b.wrapping_add(a);
            c = c.wrapping_add(b);
            d = d.wrapping_add(c);
        }
        self.0 = [a, b, c, d];
    }

    pub(super) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *place = word.to_le_bytes();
        }
        bytes
    }
}

/// The input of one stream.
pub(super) struct FakeStream<'a> {
    pub(super) name: String,
    pub(super) to_guid: u64,
    pub(super) from_guid: u64,
    /// Data newer than this transaction group is sent: 0 for a full stream.
    pub(super) from_txg: u64,
    pub(super) created: u64,
    pub(super) dataset_type: DatasetType,
    pub(super) is_clone: bool,
    pub(super) features: u64,
    pub(super) content: &'a Content,
    pub(super) damaged: &'a BTreeSet<Block>,
    pub(super) resume: Option<SendResume>,
    /// The IV sets of a raw stream.
    pub(super) ivsets: Option<IvSets>,
}

/// The guids of the IV sets of the base and of the snapshot; 0 for none.
#[derive(Debug, Clone, Copy)]
pub(super) struct IvSets {
    pub(super) from: u64,
    pub(super) to: u64,
}

/// A header under construction.
struct Header([u8; HEADER_BYTES]);

impl Header {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> &mut Self {
        self.0[at..at + N].copy_from_slice(&bytes);
        self
    }

    fn number(&mut self, at: usize, value: u64) -> &mut Self {
        self.put(at, value.to_le_bytes())
    }

    fn word(&mut self, at: usize, value: u32) -> &mut Self {
        self.put(at, value.to_le_bytes())
    }
}

struct Writer {
    out: Vec<u8>,
    sum: Sum,
    to_guid: u64,
}

/// A stream.
pub(super) struct Written {
    pub(super) bytes: Vec<u8>,
    /// Whether the stream ends before a block that cannot be read.
    pub(super) is_cut: bool,
}

/// Writes the whole stream, or its beginning up to a block that cannot be read. Returns `None` if
/// the resume point is not in the content.
pub(super) fn write_stream(source: &FakeStream<'_>) -> Option<Written> {
    let mut writer = Writer {
        out: Vec::new(),
        sum: Sum::default(),
        to_guid: source.to_guid,
    };
    let (first_object, first_block) = match source.resume {
        None => (0, 0),
        Some(SendResume { object, offset }) => {
            source.content.file(object)?;
            (object, usize::try_from(offset).ok()? / BLOCK_BYTES)
        }
    };
    writer.begin(source);
    let raw = source.features & FEATURE_RAW != 0;
    for (first, count) in freed_runs(source, first_object) {
        writer.record(FREEOBJECTS, &[], |header| {
            header
                .number(8, first)
                .number(16, count)
                .number(24, source.to_guid)
        });
    }
    for (object, file) in source.content.files() {
        let resumed = source.resume.is_some_and(|resume| resume.object == object);
        if object < first_object || !(file.is_newer_than(source.from_txg) || resumed) {
            continue;
        }
        let block = if resumed { first_block } else { 0 };
        writer.object(object, file);
        for (offset, bytes) in file.blocks_after(source.from_txg, block) {
            let index = offset / BLOCK_BYTES;
            let birth = file.birth(index).unwrap_or_default();
            if source.damaged.contains(&(object, index, birth)) {
                return Some(Written {
                    bytes: writer.out,
                    is_cut: true,
                });
            }
            writer.write(object, offset as u64, &bytes, raw);
        }
    }
    writer.end();
    Some(Written {
        bytes: writer.out,
        is_cut: false,
    })
}

/// Returns the runs of object numbers that the receiver must free: those freed since the base or,
/// in a full stream, the gaps. A resumed stream has none, because they were sent before its resume
/// point.
fn freed_runs(source: &FakeStream<'_>, first_object: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    if source.resume.is_some() {
        return runs;
    }
    if source.from_txg == 0 {
        let mut next = first_object;
        for (object, _) in source.content.files() {
            if object > next {
                runs.push((next, object - next));
            }
            next = object + 1;
        }
        return runs;
    }
    for object in source.content.freed_after(source.from_txg) {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == object => *count += 1,
            _ => runs.push((object, 1)),
        }
    }
    runs
}

impl Writer {
    fn begin(&mut self, source: &FakeStream<'_>) {
        let payload = begin_list(source.resume, source.ivsets);
        let resuming = if source.resume.is_some() {
            FEATURE_RESUMING
        } else {
            0
        };
        let flags = FLAG_FREERECORDS | if source.is_clone { FLAG_CLONE } else { 0 };
        let mut header = Header([0; HEADER_BYTES]);
        header
            .word(4, u32::try_from(payload.len()).unwrap_or_default())
            .number(8, BEGIN_MAGIC)
            .number(16, 1 | (source.features | resuming) << 2)
            .number(24, source.created)
            .word(
                32,
                if source.dataset_type == DatasetType::Volume {
                    3
                } else {
                    2
                },
            )
            .word(36, flags)
            .number(40, source.to_guid)
            .number(48, source.from_guid);
        let name = &source.name.as_bytes()[..source.name.len().min(255)];
        header.0[56..56 + name.len()].copy_from_slice(name);
        self.append(&header.0);
        self.append(&payload);
    }

    fn object(&mut self, object: u64, file: &FakeFile) {
        let guid = self.to_guid;
        let blocks = file.blocks() as u64;
        // The bonus holds the length of the file, for which no record has a field.
        self.record(OBJECT, &(file.bytes() as u64).to_le_bytes(), |header| {
            header
                .number(8, object)
                .word(16, PLAIN_FILE_CONTENTS)
                .word(20, UINT64_OTHER)
                .word(24, BLOCK_BYTES_WORD)
                .word(28, 8)
                .put(34, [1])
                .number(40, guid)
                .number(56, blocks.saturating_sub(1))
        });
        self.record(FREE, &[], |header| {
            header
                .number(8, object)
                .number(16, blocks * BLOCK_BYTES as u64)
                .number(24, u64::MAX)
                .number(32, guid)
        });
    }

    fn write(&mut self, object: u64, offset: u64, block: &[u8], raw: bool) {
        let guid = self.to_guid;
        let bytes = block.len() as u64;
        self.record(WRITE, block, |header| {
            header
                .number(8, object)
                .word(16, PLAIN_FILE_CONTENTS)
                .number(24, offset)
                .number(32, bytes)
                .number(40, guid);
            if raw {
                header.put(50, [COMPRESSION_OFF]).number(96, bytes)
            } else {
                header
            }
        });
    }

    fn end(&mut self) {
        let sum = self.sum.to_bytes();
        let guid = self.to_guid;
        self.record(END, &[], |header| header.put(8, sum).number(40, guid));
    }

    fn record(&mut self, kind: u32, payload: &[u8], fill: impl FnOnce(&mut Header) -> &mut Header) {
        let mut header = Header([0; HEADER_BYTES]);
        header.word(0, kind);
        fill(&mut header);
        self.append(&header.0[..CHECKSUM_AT]);
        let sum = self.sum.to_bytes();
        self.append(&sum);
        self.append(payload);
    }

    fn append(&mut self, bytes: &[u8]) {
        self.sum.add(bytes);
        self.out.extend_from_slice(bytes);
    }
}

/// Packs the payload of BEGIN as libnvpair does: the resume point, and the key data of a raw
/// stream, of which only the IV sets are simulated. An empty list is no payload.
fn begin_list(resume: Option<SendResume>, ivsets: Option<IvSets>) -> Vec<u8> {
    if resume.is_none() && ivsets.is_none() {
        return Vec::new();
    }
    // Native encoding, little-endian; version 0, unique names.
    let mut list = vec![0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    if let Some(SendResume { object, offset }) = resume {
        push_pair(&mut list, "resume_object", UINT64, &object.to_le_bytes());
        push_pair(&mut list, "resume_offset", UINT64, &offset.to_le_bytes());
    }
    if let Some(IvSets { from, to }) = ivsets {
        // The pairs of the inner list follow its head, up to a word of zeros.
        push_pair(&mut list, "crypt_keydata", NVLIST, &[0; 24]);
        push_pair(&mut list, "from_ivset_guid", UINT64, &from.to_le_bytes());
        push_pair(&mut list, "to_ivset_guid", UINT64, &to.to_le_bytes());
        list.extend([0; 4]);
    }
    list.extend([0; 4]);
    list
}

fn push_pair(list: &mut Vec<u8>, name: &str, kind: u32, value: &[u8]) {
    const HEAD_BYTES: usize = 16;
    let name_bytes = name.len() + 1;
    let value_at = (HEAD_BYTES + name_bytes).next_multiple_of(8);
    let word = |number: usize| u32::try_from(number).unwrap_or_default().to_le_bytes();
    let start = list.len();
    list.extend(word(value_at + value.len()));
    list.extend(word(name_bytes));
    list.extend(1_u32.to_le_bytes());
    list.extend(kind.to_le_bytes());
    list.extend(name.as_bytes());
    list.resize(start + value_at, 0);
    list.extend(value);
}

/// Reads the list that [`write_stream`] puts into a resumed BEGIN.
pub(super) fn read_resume_list(list: &[u8]) -> Option<SendResume> {
    Some(SendResume {
        object: read_number(list, b"resume_object\0")?,
        offset: read_number(list, b"resume_offset\0")?,
    })
}

/// Reads the guid of the base's IV set; 0 if there is none.
pub(super) fn read_from_ivset(list: &[u8]) -> u64 {
    read_number(list, b"from_ivset_guid\0").unwrap_or(0)
}

fn read_number(list: &[u8], name: &[u8]) -> Option<u64> {
    let at = list.windows(name.len()).position(|window| window == name)? + 16;
    Some(u64::from_le_bytes(list.get(at..at + 8)?.try_into().ok()?))
}
