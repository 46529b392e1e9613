//! [`DirStore`]: objects as files below a folder: the intermediate directory, and the remote
//! `file:/dir`.
//!
//! A key is a path below the root. An object is written under a temporary name in its final folder,
//! made durable and then renamed, so that no reader ever sees a part of it. Temporary files of dead
//! writers are the store's unfinished uploads. Files get mode 0600 and new folders 0700. No path
//! below the root is followed through a symbolic link.

mod folder;
mod listing;
mod temp;

pub use temp::CreateOnly;

use super::names::check_names;
use super::parts::PartSizes;
use super::work::run_blocking;
use super::{
    DirSettings, Evidence, EvidenceTier, ListedObject, ObjectKey, PartWriter, PutOutcome,
    StoreDelete, StoreError, StoreErrorKind, StoreInfo, StoreRead, StoreTraits, StoreWrite,
    UnfinishedUpload,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use folder::{Folder, PathError, Root, split_key};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use temp::{Naming, TempFile, TempName};

/// A folder of objects.
pub struct DirStore {
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    traits: StoreTraits,
    root: Root,
    naming: Naming,
}

impl DirStore {
    /// Opens the folder. Fails with [`StoreErrorKind::NotFound`] if it does not exist: the folder
    /// is never created, because an unmounted disk would look like an empty store. Blocks for a
    /// moment.
    pub fn open(settings: &DirSettings) -> Result<Self, StoreError> {
        Self::open_with(settings, CreateOnly::Rename)
    }

    /// Opens the folder as one whose file system supports no better method than `first`.
    /// [`DirStore::open`] finds the best method by itself.
    pub fn open_with(settings: &DirSettings, first: CreateOnly) -> Result<Self, StoreError> {
        let url = format!("file:{}", settings.root.display());
        let root = Root::open(&settings.root).map_err(|error| in_store(error, "open", "", &url))?;
        let traits = StoreTraits {
            part_bytes: settings.part_bytes,
            concurrency: 1,
            conditional_put: true,
            holds_parts: false,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                url,
                traits,
                root,
                naming: Naming::from(first),
            }),
        })
    }

    /// Does the file work of one call, outside the async threads.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        subject: &str,
        work: impl FnOnce(&Shared) -> Result<T, PathError> + Send + 'static,
    ) -> Result<T, StoreError> {
        run_for(&self.shared, operation, subject, work).await
    }
}

async fn run_for<T: Send + 'static>(
    shared: &Arc<Shared>,
    operation: &'static str,
    subject: &str,
    work: impl FnOnce(&Shared) -> Result<T, PathError> + Send + 'static,
) -> Result<T, StoreError> {
    let owned = Arc::clone(shared);
    run_blocking(move || work(&owned))
        .await
        .map_err(|error| in_store(error, operation, subject, &shared.url))
}

fn in_store(error: PathError, operation: &str, subject: &str, url: &str) -> StoreError {
    let is_root = url == format!("file:{}", error.path.display());
    let hint = match error.kind {
        StoreErrorKind::Full => {
            Some("make room there, or raise the quota; no partial object was left".to_owned())
        }
        StoreErrorKind::Denied => Some(format!(
            "this user needs to read and write {}",
            error.path.display()
        )),
        StoreErrorKind::NotFound if is_root => {
            Some("create the folder, or mount its file system".to_owned())
        }
        StoreErrorKind::Unavailable if is_root => Some(
            "bring that folder back, such as by mounting its file system, and run the same command again"
                .to_owned(),
        ),
        _ => None,
    };
    let is_gone = is_root && error.kind == StoreErrorKind::Unavailable;
    let error = StoreError::new(error.kind, operation, subject, url, error).with_hint_of(hint);
    if is_gone {
        error.with_store_gone()
    } else {
        error
    }
}

impl Shared {
    fn evidence(&self, bytes: u64) -> Evidence {
        Evidence::of_size(EvidenceTier::ReadBack, bytes)
    }

    fn begin(&self, key: &ObjectKey) -> Result<TempFile, PathError> {
        let (folders, name) = split_key(key);
        if TempName::parse(name).is_some() {
            let text = "names of this form are reserved for unfinished uploads";
            return Err(PathError::of_kind(
                StoreErrorKind::Invalid,
                self.root.path().join(key.as_str()),
                text,
            ));
        }
        TempFile::create(&self.root, &folders, name)
    }

    fn demand_free(&self, key: &ObjectKey) -> Result<(), PathError> {
        match self.head(key)? {
            Some(_) => Err(PathError::new(
                self.root.path().join(key.as_str()),
                Errno::EXIST,
            )),
            None => Ok(()),
        }
    }

    /// Gives the file its final name, or removes it. The file is open in its folder, which may have
    /// been moved or unmounted since: an object there is not in this store.
    fn finish(&self, key: &ObjectKey, temp: &TempFile, bytes: u64) -> Result<Evidence, PathError> {
        let named = self
            .root
            .folder()
            .and_then(|_| temp.publish(&self.naming, bytes));
        match named {
            Ok(()) => Ok(self.evidence(bytes)),
            Err(error) => {
                let _ = self.discard(key, temp);
                Err(error)
            }
        }
    }

    fn discard(&self, key: &ObjectKey, temp: &TempFile) -> Result<(), PathError> {
        temp.discard()?;
        self.root.remove_empty(&split_key(key).0);
        Ok(())
    }

    fn put_new(&self, key: &ObjectKey, bytes: &Bytes) -> Result<(PutOutcome, Evidence), PathError> {
        let taken = |error| self.compare(key, bytes, error);
        if let Err(error) = self.demand_free(key) {
            return taken(error);
        }
        let temp = self.begin(key)?;
        let written = temp.write_at(bytes, 0);
        if let Err(error) = written {
            let _ = self.discard(key, &temp);
            return Err(error);
        }
        match self.finish(key, &temp, bytes.len() as u64) {
            Ok(evidence) => Ok((PutOutcome::Created, evidence)),
            Err(error) => taken(error),
        }
    }

    /// Handles a taken key: success if the existing object has the same bytes.
    fn compare(
        &self,
        key: &ObjectKey,
        bytes: &Bytes,
        error: PathError,
    ) -> Result<(PutOutcome, Evidence), PathError> {
        if error.kind != StoreErrorKind::AlreadyExists {
            return Err(error);
        }
        let there = self.read(key, None, bytes.len() as u64, BytesMut::new());
        match there {
            Ok(there) if there == *bytes => {
                Ok((PutOutcome::Identical, self.evidence(bytes.len() as u64)))
            }
            Ok(_) => Err(error),
            Err(differs) if differs.kind == StoreErrorKind::Corrupt => Err(error),
            Err(unread) => Err(unread),
        }
    }

    fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, PathError> {
        let (folders, name) = split_key(key);
        let Some(folder) = self.root.find(&folders)? else {
            return Ok(None);
        };
        let Some(stat) = folder.stat(name)? else {
            return Ok(None);
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Some(
                self.evidence(u64::try_from(stat.st_size).unwrap_or(0)),
            )),
            _ => Err(PathError::of_kind(
                StoreErrorKind::Invalid,
                folder.path_of(name),
                "it is not a file",
            )),
        }
    }

    fn read(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
        mut buffer: BytesMut,
    ) -> Result<BytesMut, PathError> {
        let path = self.root.path().join(key.as_str());
        let (folders, name) = split_key(key);
        let folder = self
            .root
            .find(&folders)?
            .ok_or_else(|| PathError::new(&path, Errno::NOENT))?;
        let file = open_object(&folder, name)?;
        let bytes = file
            .metadata()
            .map_err(|error| PathError::new(&path, error))?
            .len();
        let corrupt = |text| Err(PathError::of_kind(StoreErrorKind::Corrupt, &path, text));
        let range = match range {
            None if bytes > limit_bytes => {
                return corrupt(format!(
                    "it has {bytes} bytes, more than the {limit_bytes} allowed"
                ));
            }
            None => 0..bytes,
            Some(range) if range.start > range.end || range.end > bytes => {
                return corrupt(format!(
                    "bytes {range:?} were requested, the object has {bytes}"
                ));
            }
            Some(range) => range,
        };
        let Ok(len) = usize::try_from(range.end - range.start) else {
            return corrupt("more bytes were requested than fit into memory".to_owned());
        };
        buffer.resize(len, 0);
        file.read_exact_at(&mut buffer, range.start)
            .map_err(|error| PathError::new(&path, error))?;
        Ok(buffer)
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), PathError> {
        let (folders, name) = split_key(key);
        let Some(folder) = self.root.find(&folders)? else {
            return Ok(());
        };
        if folder.remove(name)? {
            folder.sync()?;
        }
        self.root.remove_empty(&folders);
        Ok(())
    }

    fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), PathError> {
        let temp = ObjectKey::listed(&upload.key).filter(|key| {
            let parsed = TempName::parse(&upload.upload_id);
            !upload.upload_id.contains('/')
                && parsed.is_some_and(|temp| temp.object == split_key(key).1)
        });
        let Some(key) = temp else {
            let text = format!(
                "{:?} is not the name of an unfinished upload of {:?}",
                upload.upload_id, upload.key
            );
            return Err(PathError::of_kind(
                StoreErrorKind::Invalid,
                self.root.path(),
                text,
            ));
        };
        let (folders, _) = split_key(&key);
        if let Some(folder) = self.root.find(&folders)? {
            folder.remove(&upload.upload_id)?;
            self.root.remove_empty(&folders);
        }
        Ok(())
    }
}

fn open_object(folder: &Folder, name: &str) -> Result<File, PathError> {
    let failed = |error| PathError::new(folder.path_of(name), error);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = openat(&folder.fd, name, flags, Mode::empty()).map_err(failed)?;
    match FileType::from_raw_mode(fstat(&fd).map_err(failed)?.st_mode) {
        FileType::RegularFile => Ok(File::from(fd)),
        _ => Err(PathError::of_kind(
            StoreErrorKind::Invalid,
            folder.path_of(name),
            "it is not a file",
        )),
    }
}

#[async_trait]
impl StoreInfo for DirStore {
    fn url(&self) -> &str {
        &self.shared.url
    }

    fn traits(&self) -> &StoreTraits {
        &self.shared.traits
    }
}

#[async_trait]
impl StoreRead for DirStore {
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let owned = key.clone();
        let read = move |shared: &Shared| shared.read(&owned, range, limit_bytes, BytesMut::new());
        Ok(self.run("get", key.as_str(), read).await?.freeze())
    }

    async fn get_into(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        let owned = key.clone();
        let limit_bytes = range.end.saturating_sub(range.start);
        self.run("get", key.as_str(), move |shared| {
            shared.read(&owned, Some(range), limit_bytes, buffer)
        })
        .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        let owned = key.clone();
        self.run("check", key.as_str(), move |shared| shared.head(&owned))
            .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let owned = prefix.to_owned();
        self.run("list", prefix, move |shared| {
            listing::list_objects(&shared.root, &owned)
        })
        .await
    }

    async fn list_folders(&self, prefix: &str, delimiter: char) -> Result<Vec<String>, StoreError> {
        let owned = prefix.to_owned();
        self.run("list", prefix, move |shared| {
            listing::list_folders(&shared.root, &owned, delimiter)
        })
        .await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        let owned = prefix.to_owned();
        self.run("list unfinished uploads under", prefix, move |shared| {
            listing::list_unfinished(&shared.root, &owned)
        })
        .await
    }
}

#[async_trait]
impl StoreWrite for DirStore {
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        let owned = key.clone();
        let begin = move |shared: &Shared| {
            shared.demand_free(&owned)?;
            shared.begin(&owned)
        };
        let temp = self.run("begin", key.as_str(), begin).await?;
        let sizes = PartSizes::new(self.shared.traits.part_bytes);
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(DirWriter {
            shared,
            key: key.clone(),
            temp: Arc::new(temp),
            sizes,
            written: Some(0),
        }))
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        let owned = key.clone();
        self.run("put", key.as_str(), move |shared| {
            shared.put_new(&owned, &bytes)
        })
        .await
    }

    async fn check_names(&self, prefix: &str) -> Result<(), StoreError> {
        check_names(self, prefix).await
    }
}

#[async_trait]
impl StoreDelete for DirStore {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let owned = key.clone();
        self.run("delete", key.as_str(), move |shared| shared.delete(&owned))
            .await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        let owned = upload.clone();
        self.run("remove unfinished upload of", &upload.key, move |shared| {
            shared.abort_unfinished(&owned)
        })
        .await
    }
}

/// A large object on its way into a file.
struct DirWriter {
    shared: Arc<Shared>,
    key: ObjectKey,
    temp: Arc<TempFile>,
    sizes: PartSizes,
    /// The number of bytes in the file; `None` after a failed or interrupted write.
    written: Option<u64>,
}

impl DirWriter {
    fn invalid(&self, text: String) -> StoreError {
        StoreError::new(
            StoreErrorKind::Invalid,
            "write",
            self.key.as_str(),
            &self.shared.url,
            text,
        )
    }

    fn broken(&self) -> StoreError {
        self.invalid("an earlier part was not written whole".to_owned())
    }
}

#[async_trait]
impl PartWriter for DirWriter {
    fn upload_id(&self) -> Option<&str> {
        Some(self.temp.name())
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        self.sizes
            .accept(part.len())
            .map_err(|text| self.invalid(text))?;
        let offset = self.written.take().ok_or_else(|| self.broken())?;
        let temp = Arc::clone(&self.temp);
        let len = part.len() as u64;
        run_for(&self.shared, "write", self.key.as_str(), move |_| {
            temp.write_at(&part, offset)
        })
        .await?;
        self.written = Some(offset + len);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Evidence, StoreError> {
        let Some(bytes) = self.written else {
            let broken = self.broken();
            self.abort().await?;
            return Err(broken);
        };
        let temp = Arc::clone(&self.temp);
        let key = self.key.clone();
        run_for(&self.shared, "complete", self.key.as_str(), move |shared| {
            shared.finish(&key, &temp, bytes)
        })
        .await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        let temp = Arc::clone(&self.temp);
        let key = self.key.clone();
        run_for(&self.shared, "abort", self.key.as_str(), move |shared| {
            shared.discard(&key, &temp)
        })
        .await
    }
}
