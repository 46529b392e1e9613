//! The sink's memory: the bytes of objects, and of large objects that it discards only the size and
//! checksum.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::SystemTime;

/// A sink that discards keeps objects up to this size, but for parts.
pub(crate) const SMALL_BYTES: u64 = 1 << 20;

/// The bytes of an object, if they are kept.
#[derive(Clone)]
pub(crate) enum Content {
    /// A run of bytes for each part.
    Kept(Vec<Bytes>),
    Discarded,
}

/// The facts about received bytes.
#[derive(Clone)]
pub(crate) struct Came {
    pub(crate) bytes: u64,
    /// Taken here of what came, or what the client said of bytes that were discarded unseen.
    pub(crate) crc64nvme: Option<u64>,
    pub(crate) content: Content,
}

#[derive(Clone)]
pub(crate) struct Object {
    pub(crate) came: Came,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Whether it came in parts.
    pub(crate) parts: usize,
    pub(crate) modified: SystemTime,
}

pub(crate) struct Upload {
    pub(crate) key: String,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) parts: BTreeMap<u32, Came>,
}

#[derive(Default)]
pub(crate) struct State {
    /// By bucket and key, joined by a slash.
    pub(crate) objects: BTreeMap<String, Object>,
    pub(crate) uploads: BTreeMap<String, Upload>,
    /// Uploads begun so far.
    pub(crate) uploads_begun: u64,
}

pub(crate) type Shared = Mutex<State>;

impl Came {
    pub(crate) fn etag(&self) -> String {
        format!("\"{:032x}\"", self.crc64nvme.unwrap_or_default())
    }
}

impl Object {
    pub(crate) fn etag(&self) -> String {
        match self.parts {
            0 => self.came.etag(),
            parts => format!(
                "\"{:032x}-{parts}\"",
                self.came.crc64nvme.unwrap_or_default()
            ),
        }
    }
}

/// The parts in order, as one.
pub(crate) fn join(parts: &BTreeMap<u32, Came>) -> Came {
    let empty = Some(crc_fast::checksum(ALGORITHM, &[]));
    let mut whole = Came {
        bytes: 0,
        crc64nvme: empty,
        content: Content::Kept(Vec::new()),
    };
    for part in parts.values() {
        let both = whole.crc64nvme.zip(part.crc64nvme);
        whole.crc64nvme =
            both.map(|(whole, crc)| crc_fast::checksum_combine(ALGORITHM, whole, crc, part.bytes));
        whole.bytes += part.bytes;
        match (&mut whole.content, &part.content) {
            (Content::Kept(runs), Content::Kept(of_part)) => runs.extend_from_slice(of_part),
            (content, _) => *content = Content::Discarded,
        }
    }
    whole
}

pub(crate) const ALGORITHM: crc_fast::CrcAlgorithm = crc_fast::CrcAlgorithm::Crc64Nvme;
