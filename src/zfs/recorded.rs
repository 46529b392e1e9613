//! [`RecordedZfs`]: a send stream that was recorded in a file, in place of a pool. For benchmarks,
//! and for tests on hosts without ZFS: the stream takes the normal path, and only its source
//! differs.
//!
//! The pool has one dataset with one snapshot, both named by the stream's first record, and is
//! never changed: holds and bookmarks are forgotten with the process. Operations that need a real
//! pool are refused.

use super::call::ZfsCall;
use super::send::enlarge_pipe;
use super::{
    Bookmark, Dataset, DatasetType, Delegation, Mount, PropertyValue, ReceiveRequest, SendBase,
    SendRequest, SendStream, Snapshot, ZfsError, ZfsHost, ZfsRead, ZfsReceive, ZfsSend,
    ZfsSnapshots,
};
use crate::model::{BookmarkName, DatasetName, Guid, SnapshotName};
use crate::stream::record::{BeginRecord, HEADER_BYTES, StreamDatasetType, feature};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Error, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The feature flag of a redacted stream, from which data was removed.
const REDACTED: u64 = 1 << 21;
/// The module version that the manifest records.
const VERSION: &str = "recorded";

/// A recorded stream. A pipe can be sent from once, a file any number of times.
pub struct RecordedZfs {
    path: PathBuf,
    head: [u8; HEADER_BYTES],
    begin: BeginRecord,
    snapshot: SnapshotName,
    /// The file, positioned after the first record; the first send takes it.
    opened: Mutex<Option<File>>,
    /// The file's length; `None` for a pipe.
    file_bytes: Option<u64>,
}

impl RecordedZfs {
    /// Opens the file or pipe and reads its first record.
    ///
    /// # Errors
    /// [`ZfsError::System`] when the file cannot be read; [`ZfsError::Malformed`] unless it begins
    /// as a full stream does.
    pub fn open(path: &Path) -> Result<Self, ZfsError> {
        let call = ZfsCall::new("read the recorded stream", path.display());
        let failed = |error| call.failed(error);
        let mut file = File::open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?;
        let file_bytes = (!kind.file_type().is_fifo()).then_some(kind.len());
        if file_bytes.is_none() {
            enlarge_pipe(&file);
        }
        let mut head = [0; HEADER_BYTES];
        file.read_exact(&mut head).map_err(failed)?;
        let begin = BeginRecord::parse(&head).map_err(|fault| call.malformed(fault))?;
        if begin.base_guid.is_some() {
            return Err(
                call.malformed("it is incremental, and there is no pool to tell what it builds on")
            );
        }
        let snapshot = begin
            .to_name
            .parse()
            .map_err(|error| call.malformed(error))?;
        Ok(Self {
            path: path.to_owned(),
            head,
            begin,
            snapshot,
            opened: Mutex::new(Some(file)),
            file_bytes,
        })
    }

    /// Returns the name of the dataset in the stream.
    pub fn dataset_name(&self) -> &DatasetName {
        self.snapshot.dataset()
    }

    fn missing(operation: &'static str, name: impl std::fmt::Display) -> ZfsError {
        ZfsCall::new(operation, name).refused(libc::ENOENT)
    }

    fn refused(&self, operation: &'static str, subject: impl std::fmt::Display) -> ZfsError {
        let reason = format!("{} is a recorded stream, not a pool", self.path.display());
        ZfsCall::new(operation, subject).failed(Error::other(reason))
    }

    fn created_at(&self) -> Timestamp {
        let seconds = i64::try_from(self.begin.creation_time).ok();
        seconds
            .and_then(|seconds| Timestamp::from_second(seconds).ok())
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Returns the rest of the stream, after its first record.
    fn rest(&self, call: &ZfsCall) -> Result<File, ZfsError> {
        if let Some(file) = self
            .opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            return Ok(file);
        }
        if self.file_bytes.is_none() {
            return Err(call.failed(Error::other(
                "it came through a pipe, which can be read only once",
            )));
        }
        let failed = |error| call.failed(error);
        let mut file = File::open(&self.path).map_err(failed)?;
        let mut head = [0; HEADER_BYTES];
        file.read_exact(&mut head).map_err(failed)?;
        match head == self.head {
            true => Ok(file),
            false => Err(call.failed(Error::other(
                "the recorded stream is another one than before",
            ))),
        }
    }
}

/// Derives a guid from a name, for objects whose guid the stream does not have. The result is
/// always the same.
fn guid_of(name: &str) -> Guid {
    Guid(u64::from_le_bytes(
        *blake3::hash(name.as_bytes())
            .as_bytes()
            .first_chunk()
            .unwrap_or(&[1; 8]),
    ))
}

impl ZfsRead for RecordedZfs {
    fn dataset(&self, name: &DatasetName) -> Result<Option<Dataset>, ZfsError> {
        let dataset_type = match self.begin.dataset_type {
            StreamDatasetType::Volume => DatasetType::Volume,
            _ => DatasetType::Filesystem,
        };
        Ok((name == self.dataset_name()).then(|| Dataset {
            name: name.clone(),
            guid: guid_of(name.as_str()),
            dataset_type,
            encrypted: self.begin.has(feature::RAW),
            key_unavailable: false,
            origin: None,
            inconsistent: false,
            redacted: self.begin.has(REDACTED),
            properties: BTreeMap::new(),
        }))
    }

    fn children(&self, _: &DatasetName) -> Result<Vec<Dataset>, ZfsError> {
        Ok(Vec::new())
    }

    fn snapshots(&self, name: &DatasetName) -> Result<Vec<Snapshot>, ZfsError> {
        if name != self.dataset_name() {
            return Err(Self::missing("list the snapshots of", name));
        }
        Ok(vec![Snapshot {
            name: self.snapshot.clone(),
            guid: self.begin.snapshot_guid,
            // The stream does not record the txg. Creation times have the same order.
            createtxg: self.begin.creation_time,
            created_at: self.created_at(),
            referenced_bytes: self.file_bytes.unwrap_or(0),
            used_bytes: 0,
            holds: 0,
            clones: 0,
            redacted: self.begin.has(REDACTED),
            user_properties: BTreeMap::new(),
        }])
    }

    fn snapshot(&self, name: &SnapshotName) -> Result<Option<Snapshot>, ZfsError> {
        if name.dataset() != self.dataset_name() {
            return Ok(None);
        }
        Ok(self
            .snapshots(name.dataset())?
            .into_iter()
            .find(|snapshot| snapshot.name == *name))
    }

    fn bookmarks(&self, _: &DatasetName) -> Result<Vec<Bookmark>, ZfsError> {
        Ok(Vec::new())
    }

    fn holds(&self, _: &SnapshotName) -> Result<BTreeMap<String, Timestamp>, ZfsError> {
        Ok(BTreeMap::new())
    }

    fn pool_guid(&self, pool: &str) -> Result<Guid, ZfsError> {
        Ok(guid_of(pool))
    }
}

impl ZfsHost for RecordedZfs {
    fn mounts(&self) -> Result<Vec<Mount>, ZfsError> {
        Ok(Vec::new())
    }

    fn module_version(&self) -> Result<String, ZfsError> {
        Ok(VERSION.to_owned())
    }

    fn delegations(&self, _: &DatasetName) -> Result<Vec<Delegation>, ZfsError> {
        Ok(Vec::new())
    }
}

impl ZfsSend for RecordedZfs {
    fn send_space(&self, request: &SendRequest) -> Result<u64, ZfsError> {
        self.file_bytes
            .ok_or_else(|| self.refused("estimate the stream of", &request.snapshot))
    }

    /// Sends the recorded stream. The verdict is always success: the END record shows whether the
    /// stream is complete.
    fn send(&self, request: &SendRequest) -> Result<SendStream, ZfsError> {
        if request.snapshot != self.snapshot {
            return Err(Self::missing("send", &request.snapshot));
        }
        if request.base.is_some() || request.resume.is_some() {
            return Err(self.refused("send but the whole of", &request.snapshot));
        }
        let rest = self.rest(&ZfsCall::new("send", &request.snapshot))?;
        Ok(SendStream::new(
            Box::new(Cursor::new(self.head).chain(rest)),
            Box::new(|| Ok(())),
        ))
    }
}

impl ZfsSnapshots for RecordedZfs {
    fn sync_pool(&self, _: &str) -> Result<(), ZfsError> {
        Ok(())
    }

    fn take_snapshots(
        &self,
        names: &[SnapshotName],
        _: &BTreeMap<String, String>,
    ) -> Result<(), ZfsError> {
        Err(self.refused(
            "snapshot",
            names.first().map(ToString::to_string).unwrap_or_default(),
        ))
    }

    fn destroy_snapshots(&self, names: &[SnapshotName]) -> Result<(), ZfsError> {
        Err(self.refused(
            "destroy",
            names.first().map(ToString::to_string).unwrap_or_default(),
        ))
    }

    fn hold(&self, _: &SnapshotName, _: &str) -> Result<(), ZfsError> {
        Ok(())
    }

    fn release(&self, _: &SnapshotName, _: &str) -> Result<(), ZfsError> {
        Ok(())
    }

    fn bookmark(&self, _: &BookmarkName, _: &SendBase) -> Result<(), ZfsError> {
        Ok(())
    }

    fn destroy_bookmarks(&self, _: &[BookmarkName]) -> Result<(), ZfsError> {
        Ok(())
    }
}

impl ZfsReceive for RecordedZfs {
    fn receive(&self, request: &ReceiveRequest, _: &mut (dyn Read + Send)) -> Result<(), ZfsError> {
        Err(self.refused("receive", &request.target))
    }

    fn abort_receive(&self, name: &DatasetName) -> Result<(), ZfsError> {
        Err(self.refused("abandon the receive into", name))
    }

    fn inherit_property(&self, name: &DatasetName, _: &str) -> Result<(), ZfsError> {
        Err(self.refused("set a property of", name))
    }

    fn create_filesystem(
        &self,
        name: &DatasetName,
        _: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError> {
        Err(self.refused("create", name))
    }

    fn destroy_dataset(&self, name: &DatasetName) -> Result<(), ZfsError> {
        Err(self.refused("destroy", name))
    }

    fn set_properties(
        &self,
        name: &DatasetName,
        _: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError> {
        Err(self.refused("set properties of", name))
    }

    fn roll_back(&self, name: &DatasetName, _: &SnapshotName) -> Result<(), ZfsError> {
        Err(self.refused("roll back", name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::fletcher::ByteOrder;
    use crate::stream::record::RecordWriter;
    use crate::zfs::{SendFlags, SendResume};

    fn recorded(base_guid: Option<Guid>) -> (tempfile::NamedTempFile, Vec<u8>) {
        let begin = BeginRecord {
            order: ByteOrder::Little,
            feature_flags: feature::LARGE_BLOCKS,
            creation_time: 1_767_225_600,
            dataset_type: StreamDatasetType::Filesystem,
            flags: 0,
            snapshot_guid: Guid(7),
            base_guid,
            to_name: "tank/data@now".to_owned(),
            payload_bytes: 0,
        };
        let mut writer = RecordWriter::new(&begin, &[]);
        writer.write(1, 0, &[9; 4096]);
        let bytes = writer.end();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        (file, bytes)
    }

    fn request(resume: Option<SendResume>) -> SendRequest {
        let snapshot = "tank/data@now".parse().unwrap();
        SendRequest {
            snapshot,
            base: None,
            flags: SendFlags::default(),
            resume,
        }
    }

    #[test]
    fn recorded_stream_file_is_sent_repeatedly_and_names_its_snapshot() {
        let (file, bytes) = recorded(None);
        let zfs = RecordedZfs::open(file.path()).unwrap();
        for _ in 0..2 {
            let mut stream = zfs.send(&request(None)).unwrap();
            let mut sent = Vec::new();
            stream.reader().read_to_end(&mut sent).unwrap();
            stream.finish().unwrap();
            assert_eq!(sent, bytes);
        }
        let snapshots = zfs.snapshots(&"tank/data".parse().unwrap()).unwrap();
        assert_eq!(
            (snapshots[0].guid, snapshots[0].created_at.as_second()),
            (Guid(7), 1_767_225_600)
        );
        assert!(
            zfs.dataset(&"tank/other".parse().unwrap())
                .unwrap()
                .is_none()
        );
        assert!(
            zfs.snapshots(&"tank/other".parse().unwrap()).is_err(),
            "missing is not empty"
        );
    }

    #[test]
    fn a_pipe_is_sent_once() {
        let (_file, bytes) = recorded(None);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let (from, sent) = (path.clone(), bytes.clone());
        let feeder = std::thread::spawn(move || std::fs::write(from, sent));
        let zfs = RecordedZfs::open(&path).unwrap();
        let mut read = Vec::new();
        zfs.send(&request(None))
            .unwrap()
            .reader()
            .read_to_end(&mut read)
            .unwrap();
        feeder.join().unwrap().unwrap();
        assert_eq!(read, bytes);
        assert!(
            zfs.send(&request(None)).is_err(),
            "what is gone must not look like an empty stream"
        );
        assert!(zfs.send_space(&request(None)).is_err());
    }

    #[test]
    fn recorded_stream_refuses_operations_that_need_a_pool() {
        let (incremental, _) = recorded(Some(Guid(3)));
        assert!(
            RecordedZfs::open(incremental.path())
                .is_err_and(|error| error.to_string().contains("incremental"))
        );
        let (file, _) = recorded(None);
        let zfs = RecordedZfs::open(file.path()).unwrap();
        assert!(
            zfs.send(&request(Some(SendResume {
                object: 1,
                offset: 0
            })))
            .is_err()
        );
        assert!(zfs.take_snapshots(&[], &BTreeMap::new()).is_err());
        std::fs::write(file.path(), b"no stream").unwrap();
        assert!(RecordedZfs::open(file.path()).is_err());
    }
}
