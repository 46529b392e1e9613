//! How a chunk is cut into parts: the settings, and the limits of the stores.

use crate::config::Config;
use crate::config::document::Document;
use crate::config::form;
use crate::config::problem::Problem;
use crate::config::units::Size;
use crate::config::visitor::KeyVisitor;

/// The smallest part. S3 refuses smaller parts (except the last); B2's minimum of 5,000,000 bytes
/// is lower.
const PART_SIZE_MIN: Size = Size::mebibytes(5);
/// The largest part that S3 accepts.
const PART_SIZE_MAX: Size = Size(5 << 30);
/// The largest object that every S3 store accepts.
const OBJECT_BYTES_MAX: u64 = 5 << 40;
/// The maximum number of parts of one object in S3 and in B2.
const PARTS_MAX: u64 = 10_000;
/// The maximum number of parts that every S3-compatible store accepts (Scaleway's limit).
const PARTS_EVERYWHERE_MAX: u64 = 1000;
/// The default part size: 131 requests per gibibyte, and memory below 96 MiB with four parts in
/// flight.
const PART_SIZE_DEFAULT: Size = Size::mebibytes(8);
const CONCURRENCY_DEFAULT: u32 = 4;
const CONCURRENCY_MAX: u32 = 64;

/// How a chunk is uploaded: the size of its parts, and how many are uploaded at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartSettings {
    /// The exact size of all parts of a chunk except the last.
    pub part_size: Size,
    /// The number of parts in flight.
    pub concurrency: u32,
}

impl Default for PartSettings {
    fn default() -> Self {
        Self {
            part_size: PART_SIZE_DEFAULT,
            concurrency: CONCURRENCY_DEFAULT,
        }
    }
}

impl PartSettings {
    pub(super) fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        let size = form::size(PART_SIZE_MIN..=PART_SIZE_MAX);
        visitor.with_default("part_size", &mut self.part_size, size);
        let count = form::number(1..=CONCURRENCY_MAX);
        visitor.with_default("concurrency", &mut self.concurrency, count);
    }
}

/// Returns the maximum bytes of a sealed chunk: age adds 16 bytes to every 64 KiB and a header, and
/// zstd adds less than 1/256 to incompressible data (`ZSTD_COMPRESSBOUND`).
pub(in crate::config) fn sealed_bytes_max(split_size: Size) -> u64 {
    let stream = split_size.bytes();
    stream + stream / 4096 + stream / 256 + (64 << 10)
}

/// Checks the number of parts of one chunk against the limits of stores. `part_size_key` is the key
/// of the configured remote.
pub(in crate::config) fn check_part_count(
    file: &Document<'_>,
    part_size_key: &str,
    config: &Config,
) {
    let count = config.parts_per_chunk();
    let key = if file.has(part_size_key) || !file.has("main.split_size") {
        part_size_key
    } else {
        "main.split_size"
    };
    let hint = part_count_hint(config.split_size);
    if sealed_bytes_max(config.split_size) > OBJECT_BYTES_MAX {
        let message = "makes objects of more than 5T with their encryption; expected at most 5T";
        let hint = "write split_size = \"4T\"";
        file.refuse("main.split_size", Problem::new(message).hint(hint));
    }
    if count > PARTS_MAX {
        let size = config.parts().part_size;
        let message =
            format!("makes {count} parts of {size} for one chunk; expected at most {PARTS_MAX}");
        file.refuse(key, Problem::new(message).hint(hint));
    } else if count > PARTS_EVERYWHERE_MAX {
        let stores = format!("some stores take only {PARTS_EVERYWHERE_MAX}");
        let text = format!("{key} makes {count} parts for one chunk, and {stores}: {hint}");
        file.notice(key, text);
    }
}

/// Returns the remedy: the smallest part size whose number of parts every store accepts, unless
/// that size is too large for S3.
fn part_count_hint(split_size: Size) -> String {
    let enough =
        Size::mebibytes((sealed_bytes_max(split_size).div_ceil(PARTS_EVERYWHERE_MAX) >> 20) + 1);
    if enough > PART_SIZE_MAX {
        return "lower split_size".to_owned();
    }
    format!("lower split_size, or write part_size = \"{enough}\" (memory grows with it)")
}
