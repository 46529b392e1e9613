//! The append-only log inside the file of one attempt: everything that is needed to resume the
//! attempt after a crash.
//!
//! # Format
//! A text file with one record on each line: 16 hexadecimal digits, a space, the record as JSON, a
//! line feed. The digits are the first 8 bytes of BLAKE3 over the digits of the line before (before
//! the first line: `zfs-backup journal 1`), a line feed, and the JSON. So the digits of every
//! record also cover all records before it: a record that was moved, dropped in the middle or
//! copied from another file is invalid.
//!
//! Records are only ever appended. A record on which something in the store or in a pool depends is
//! on disk (fsync) before that action starts. Reading stops at the first invalid line, whatever
//! follows it: a torn tail is dropped, never trusted, and cut off before the next record is
//! written.
//!
//! An attempt that copies a backup from another store keeps its file empty: it needs only its name.

use crate::manifest::{ProgressChunk, base64_text};
use crate::model::{Digest, ReadFault};
use crate::state::error::{StateError, failed};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// The text that is hashed before the first line, in place of an earlier line's digits.
const SEED: &str = "zfs-backup journal 1";
const SUM_DIGITS: usize = 16;

/// A step of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum JournalRecord {
    /// The plan of the send. The first record, written before any hold and any object.
    Plan {
        /// The exact bytes of `started.json`.
        #[serde(with = "base64_text")]
        started: Vec<u8>,
        /// The hash of the keyring that goes with the backup.
        keyring: Option<Digest>,
        /// The version of the kernel module.
        zfs_version: String,
    },
    /// A chunk is about to be created under this name.
    Chunk {
        /// The chunk's object name.
        name: String,
    },
    /// The store gave that chunk an upload id. Written without fsync, because a listing of the
    /// store shows the id too.
    Upload {
        /// The chunk's object name.
        name: String,
        /// The store's id.
        upload_id: String,
    },
    /// The first record of the stream, 312 bytes, once it is known.
    Stream {
        /// Bytes of that record.
        #[serde(with = "base64_text")]
        begin: Vec<u8>,
    },
    /// The store confirmed a chunk.
    Confirmed(Box<ProgressChunk>),
    /// The stream is complete and all chunks are confirmed: RESTORE.txt, lists and `private.age`
    /// are about to be put.
    Closing {
        /// The exact bytes of `private.age`, which differ in each sealing.
        #[serde(with = "base64_text")]
        private: Vec<u8>,
    },
    /// The commit is about to be made of exactly these bytes. From here on the manifest may exist.
    Commit(Box<CommitBytes>),
    /// ZFS could not read a block of the snapshot, so the send ended.
    ReadFault(ReadFault),
    /// The attempt was abandoned: no run resumes it.
    #[serde(rename = "given_up")]
    Abandoned {
        /// The reason.
        why: String,
    },
}

/// The objects of a commit, exactly as they are put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitBytes {
    /// `receipt.json`
    #[serde(with = "base64_text")]
    pub receipt: Vec<u8>,
    /// The receipt's signature.
    #[serde(with = "base64_text")]
    pub receipt_signature: Vec<u8>,
    /// `manifest.json`
    #[serde(with = "base64_text")]
    pub manifest: Vec<u8>,
    /// The manifest's signature.
    #[serde(with = "base64_text")]
    pub manifest_signature: Vec<u8>,
}

/// The log of one attempt, open to be appended to.
#[derive(Debug)]
pub struct AttemptLog {
    file: File,
    path: PathBuf,
    last: String,
    /// Whether a record may be written in part: no other record may follow it.
    broken: bool,
}

/// The content of a log.
#[derive(Debug)]
pub(super) struct ReadLog {
    pub(super) records: Vec<JournalRecord>,
    last: String,
    sound_bytes: u64,
}

impl AttemptLog {
    /// Starts the log in a new, empty file.
    pub(super) fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            last: SEED.to_owned(),
            broken: false,
        }
    }

    /// Opens the log behind the last valid record and cuts off everything that follows it.
    pub(super) fn reopen(path: PathBuf, read: &ReadLog) -> Result<Self, StateError> {
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
    /// [`StateError::File`], and then for every later record too: the action that depends on the
    /// record may not start.
    pub fn append(&mut self, record: &JournalRecord) -> Result<(), StateError> {
        self.write(record)?;
        let synced = self.file.sync_data();
        self.check(synced)
    }

    /// Appends a record without waiting for the disk: after a crash it may be missing.
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

/// Reads the valid records of a log. A missing file is an empty log.
pub(super) fn read_log(path: &Path) -> Result<ReadLog, StateError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(failed("read", path, source)),
    }
    parse_log(&bytes).map_err(|error| failed("use", path, error.into()))
}

/// Parses the valid records. A valid record of an unknown type is an error: a later version wrote
/// it.
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

/// Returns the records in the bytes of a log.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn records_of_log(bytes: &[u8]) -> Result<Vec<JournalRecord>, serde_json::Error> {
    parse_log(bytes).map(|read| read.records)
}

/// Returns the line of a record given as JSON, behind the line whose digits are in `last` (empty
/// for the first line). Replaces `last` with the digits of the new line.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn line_of_log(last: &mut String, json: &[u8]) -> Vec<u8> {
    *last = sum(if last.is_empty() { SEED } else { last.as_str() }, json);
    [last.as_bytes(), b" ", json, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RecordPlace;

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
            JournalRecord::ReadFault(ReadFault {
                position: u64::MAX,
                object: Some(7),
                before: Some(RecordPlace {
                    object: 7,
                    offset: u64::MAX,
                }),
            }),
            JournalRecord::Abandoned {
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
    fn log_returns_appended_records_and_a_missing_log_is_empty() {
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

    /// A log that is cut anywhere has whole records, and the next record is appended behind them.
    #[test]
    fn truncated_log_tail_is_dropped_and_overwritten() {
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
            AttemptLog::reopen(path.clone(), &read)
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
