//! Streams to send: valid records, blocks of 128 KiB.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use zfs_backup::model::Guid;
use zfs_backup::stream::fletcher::ByteOrder;
use zfs_backup::stream::record::{BeginRecord, RecordWriter, StreamDatasetType, feature};

const BLOCK_BYTES: usize = 128 << 10;
/// Of each eight blocks that are mixed so many are random and so many are zeros; the rest is text
/// of programs.
const RANDOM_IN_EIGHT: usize = 2;
const ZEROS_IN_EIGHT: usize = 1;
/// Each kind comes in runs of this many blocks: 1 MiB.
const RUN_BLOCKS: usize = 8;

pub(crate) fn generate(kind: &str, bytes: u64, path: &Path) {
    let begin = BeginRecord {
        order: ByteOrder::Little,
        feature_flags: feature::LARGE_BLOCKS,
        creation_time: 1_790_000_000,
        dataset_type: StreamDatasetType::Filesystem,
        flags: 0,
        snapshot_guid: Guid(0x0bac_0bac_0000_0001),
        base_guid: None,
        to_name: "bench/data@recorded".to_owned(),
        payload_bytes: 0,
    };
    let mut out = File::create(path).unwrap();
    let mut random = File::open("/dev/urandom").unwrap();
    let mut files = Files::default();
    let mut writer = RecordWriter::new(&begin, &[]);
    writer.object(2, &[]);
    let mut block = vec![0; BLOCK_BYTES];
    for number in 0..usize::try_from(bytes).unwrap() / BLOCK_BYTES {
        let turn = number / RUN_BLOCKS % 8;
        match kind {
            "mixed" if turn < ZEROS_IN_EIGHT => block.fill(0),
            "mixed" if turn >= ZEROS_IN_EIGHT + RANDOM_IN_EIGHT => files.read(&mut block),
            "mixed" | "random" => random.read_exact(&mut block).unwrap(),
            other => panic!("{other}: expected random or mixed"),
        }
        writer.write(2, (number * BLOCK_BYTES) as u64, &block);
        out.write_all(&writer.take_bytes()).unwrap();
    }
    out.write_all(&writer.end()).unwrap();
}

/// The content of the files below /usr in the order of their names, repeated without end.
#[derive(Default)]
struct Files {
    waiting: Vec<std::path::PathBuf>,
    open: Option<File>,
}

impl Files {
    fn read(&mut self, mut space: &mut [u8]) {
        while !space.is_empty() {
            let read = self
                .open
                .as_mut()
                .and_then(|file| file.read(space).ok())
                .unwrap_or(0);
            if read == 0 {
                self.open = None;
                self.next();
            }
            space = &mut space[read..];
        }
    }

    fn next(&mut self) {
        let path = self.waiting.pop().unwrap_or_else(|| "/usr".into());
        let Ok(kind) = path.symlink_metadata() else {
            return;
        };
        if kind.is_dir() {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            let mut below: Vec<_> = entries.map(|entry| entry.path()).collect();
            below.sort_unstable_by(|a, b| b.cmp(a));
            self.waiting.extend(below);
        } else if kind.is_file() {
            self.open = File::open(path).ok();
        }
    }
}
