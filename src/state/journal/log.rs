//! The append-only log inside the file of one attempt: what is needed to go on with it after a
//! crash.
//!
//! # Format
//! A text file, one record a line: 16 hexadecimal digits, a space, the record as JSON, a line feed.
//! The digits are the first 8 bytes of BLAKE3 over the digits of the line before (before the first
//! line: `zfs-backup journal 1`), a line feed, and the JSON. So every record also vouches for all
//! records before it, and one that was moved, dropped in the middle or carried over from another
//! file does not pass.
//!
//! Records are only ever appended. Those that something in the store or in a pool hangs on are on
//! disk (fsync) before that something is done. Reading stops at the first line that does not pass,
//! however much follows: a torn tail is dropped, never trusted, and cut off before the next record
//! is written.
//!
//! An attempt that copies a backup from another store keeps its file empty: it needs no more than
//! its name.

use crate::manifest::{ProgressChunk, base64_text};
use crate::model::Digest;
use crate::state::error::{StateError, failed};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// What the first line follows.
const SEED: &str = "zfs-backup journal 1";
const SUM_DIGITS: usize = 16;

/// One step of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum JournalRecord {
    /// What is sent and how. First of all; before any hold and any object.
    Plan {
        /// The very bytes of `started.json`.
        #[serde(with = "base64_text")]
        started: Vec<u8>,
        /// The hash of the keyring that goes with the backup.
        keyring: Option<Digest>,
        /// The version of the kernel module.
        zfs_version: String,
    },
    /// A chunk is about to be created under this name.
    Chunk {
        /// Its object name.
        name: String,
    },
    /// The store gave that chunk an upload id. Not waited for: a listing of the store tells it too.
    Upload {
        /// The chunk's object name.
        name: String,
        /// The store's id.
        upload_id: String,
    },
    /// The first record of the stream, 312 bytes, once it is known.
    Stream {
        /// Its bytes.
        #[serde(with = "base64_text")]
        begin: Vec<u8>,
    },
    /// The store confirmed a chunk.
    Confirmed(Box<ProgressChunk>),
    /// The stream is whole, all chunks are confirmed: RESTORE.txt, lists and `private.age` are
    /// about to be put.
    Closing {
        /// The very bytes of `private.age`, which are new in each sealing.
        #[serde(with = "base64_text")]
        private: Vec<u8>,
    },
    /// The commit is about to be made of these very bytes. From here on the manifest may be there.
    Commit(Box<CommitBytes>),
    /// The attempt was given up: nobody goes on with it.
    GivenUp {
        /// Why.
        why: String,
    },
}

/// The objects of a commit, as they are put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitBytes {
    /// `receipt.json`
    #[serde(with = "base64_text")]
    pub receipt: Vec<u8>,
    /// Its signature.
    #[serde(with = "base64_text")]
    pub receipt_signature: Vec<u8>,
    /// `manifest.json`
    #[serde(with = "base64_text")]
    pub manifest: Vec<u8>,
    /// Its signature.
    #[serde(with = "base64_text")]
    pub manifest_signature: Vec<u8>,
}

/// The log of one attempt, open to be appended to.
#[derive(Debug)]
pub struct AttemptLog {
    file: File,
    path: PathBuf,
    last: String,
    /// A record may be there in part: nothing may follow it.
    broken: bool,
}

/// What a log holds.
#[derive(Debug)]
pub(super) struct ReadLog {
    pub(super) records: Vec<JournalRecord>,
    last: String,
    sound_bytes: u64,
}

impl AttemptLog {
    /// At the start of a new, empty file.
    pub(super) fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            last: SEED.to_owned(),
            broken: false,
        }
    }

    /// Behind the last record that passed. What follows it is cut off.
    pub(super) fn go_on(path: PathBuf, read: &ReadLog) -> Result<Self, StateError> {
        let open = || -> std::io::Result<File> {
            let file = OpenOptions::new().append(true).open(&path)?;
            file.set_len(read.sound_bytes)?;
            file.sync_all()?;
            Ok(file)
        };
        let file = open().map_err(|source| failed("open", &path, source))?;
        Ok(Self {
            file,
            path,
            last: read.last.clone(),
            broken: false,
        })
    }

    /// Appends a record and waits until it is on disk.
    ///
    /// # Errors
    /// [`StateError::File`], and then for every later record too: what was to follow from it may not
    /// be done.
    pub fn append(&mut self, record: &JournalRecord) -> Result<(), StateError> {
        self.write(record)?;
        let synced = self.file.sync_data();
        self.check(synced)
    }

    /// Appends a record without waiting: after a crash it may be missing.
    ///
    /// # Errors
    /// As for [`AttemptLog::append`].
    pub fn note(&mut self, record: &JournalRecord) -> Result<(), StateError> {
        self.write(record)
    }

    fn write(&mut self, record: &JournalRecord) -> Result<(), StateError> {
        if self.broken {
            let before = std::io::Error::other("an earlier record could not be written");
            return Err(failed("write", &self.path, before));
        }
        let json = serde_json::to_string(record).map_err(std::io::Error::from);
        let written = json.and_then(|json| {
            let sum = sum(&self.last, json.as_bytes());
            self.file.write_all(format!("{sum} {json}\n").as_bytes())?;
            Ok(sum)
        });
        match written {
            Ok(sum) => {
                self.last = sum;
                Ok(())
            }
            Err(source) => self.check(Err(source)),
        }
    }

    fn check(&mut self, result: std::io::Result<()>) -> Result<(), StateError> {
        self.broken |= result.is_err();
        result.map_err(|source| failed("write", &self.path, source))
    }
}

fn sum(last: &str, json: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(last.as_bytes()).update(b"\n").update(json);
    hasher.finalize().to_hex()[..SUM_DIGITS].to_owned()
}

/// Reads what passes of a log. A file that is gone is empty.
pub(super) fn read_log(path: &Path) -> Result<ReadLog, StateError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(failed("read", path, source)),
    }
    parse_log(&bytes).map_err(|error| failed("use", path, error.into()))
}

/// A record that passes and means nothing to this version is an error: a later version wrote it.
fn parse_log(bytes: &[u8]) -> Result<ReadLog, serde_json::Error> {
    let mut read = ReadLog {
        records: Vec::new(),
        last: SEED.to_owned(),
        sound_bytes: 0,
    };
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some((digits, json)) = line
            .strip_suffix(b"\n")
            .and_then(|line| line.split_at_checked(SUM_DIGITS))
        else {
            break;
        };
        let Some(json) = json.strip_prefix(b" ") else {
            break;
        };
        let expected = sum(&read.last, json);
        if expected.as_bytes() != digits {
            break;
        }
        read.records.push(serde_json::from_slice(json)?);
        read.sound_bytes += line.len() as u64;
        read.last = expected;
    }
    Ok(read)
}

/// The records in the bytes of a log.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn records_of_log(bytes: &[u8]) -> Result<Vec<JournalRecord>, serde_json::Error> {
    parse_log(bytes).map(|read| read.records)
}

/// The line of a record given as JSON, behind the line whose digits are in `last` (empty: the
/// first), which it replaces.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn line_of_log(last: &mut String, json: &[u8]) -> Vec<u8> {
    *last = sum(if last.is_empty() { SEED } else { last.as_str() }, json);
    [last.as_bytes(), b" ", json, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<JournalRecord> {
        vec![
            JournalRecord::Plan {
                started: b"{\n}\n".to_vec(),
                keyring: None,
                zfs_version: "2.3.2-1".into(),
            },
            JournalRecord::Chunk {
                name: "00000000-00000000.zfs.age".into(),
            },
            JournalRecord::Upload {
                name: "00000000-00000000.zfs.age".into(),
                upload_id: "u\n1".into(),
            },
            JournalRecord::GivenUp {
                why: "\u{1f4be}".into(),
            },
        ]
    }

    fn written(folder: &Path) -> (PathBuf, Vec<u8>) {
        let path = folder.join("log");
        let mut log = AttemptLog::new(File::create(&path).unwrap(), path.clone());
        records()
            .iter()
            .for_each(|record| log.append(record).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    }

    #[test]
    fn a_log_gives_back_what_was_appended_and_a_missing_one_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = written(folder.path());
        assert_eq!(read_log(&path).unwrap().records, records());
        assert!(
            read_log(&folder.path().join("none"))
                .unwrap()
                .records
                .is_empty()
        );
        assert!(read_log(folder.path()).is_err(), "a folder is no empty log");
    }

    /// Cut anywhere, what is left is whole records, and what is appended then follows them.
    #[test]
    fn a_torn_tail_is_dropped_and_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = written(folder.path());
        let more = JournalRecord::Chunk {
            name: "more".into(),
        };
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let read = read_log(&path).unwrap();
            let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(read.records, records()[..whole], "cut at {cut}");
            AttemptLog::go_on(path.clone(), &read)
                .unwrap()
                .append(&more)
                .unwrap();
            let expected: Vec<_> = records()[..whole]
                .iter()
                .cloned()
                .chain([more.clone()])
                .collect();
            assert_eq!(read_log(&path).unwrap().records, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_changed_or_moved_record_ends_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let (_, bytes) = written(folder.path());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let before = bytes[..at].iter().filter(|byte| **byte == b'\n').count();
            assert!(
                parse_log(&changed).unwrap().records.len() <= before,
                "byte {at}"
            );
        }
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let without_second = [lines[0], lines[2], lines[3]].concat();
        assert_eq!(parse_log(&without_second).unwrap().records.len(), 1);
    }

    #[test]
    fn a_record_of_a_later_version_is_an_error_and_no_torn_tail() {
        let json = br#"{"record":"compacted"}"#;
        let line = [sum(SEED, json).as_bytes(), b" ", json, b"\n"].concat();
        assert!(parse_log(&line).is_err());
    }
}
