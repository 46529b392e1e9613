//! Copies one chunk from store to store: reads it once, hashes it on the way, and completes it only
//! if the hash equals the signed one. A chunk that is already stored is compared with the store's
//! evidence instead of being sent.

use super::UploadEnv;
use crate::catalog::chunk_key;
use crate::catalog::read_back::{TRIES_MAX, TRY_PAUSE};
use crate::manifest::{ChunkEntry, Manifest};
use crate::model::Digest;
use crate::run::blocking::blocking;
use crate::run::transfer::stopped;
use crate::run::{RunError, error_chain};
use crate::store::{
    ContentCheck, ContentVerdict, Evidence, EvidenceTier, ObjectKey, PartWriter, StoreErrorKind,
    StoreRead, StoreTraits,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most ranges of one chunk that are read ahead of the store.
const AHEAD_MAX: usize = 2;
/// The parts in memory, of all datasets together, in addition to those in flight.
const PARTS_EXTRA: usize = AHEAD_MAX + 1;
/// The bytes of one range when an object is read without being sent.
const RANGE_BYTES: u64 = 8 << 20;

/// The limit on the memory of all copies of a run: `part_bytes x (concurrency + 3)`. Clones share
/// it. The limit is made with the first chunk, for the properties of its store.
///
/// The source is a folder of this host, so only the store keeps a part for long: the first part of a
/// chunk may wait there for the second one ([`StoreTraits::holds_parts`]). One chunk less than there
/// are parts is copied at once, so there is always a part for one of the chunks.
#[derive(Clone, Default)]
pub struct CopyPool(Arc<OnceLock<Limits>>);

struct Limits {
    chunks: Arc<Semaphore>,
    parts: Arc<Semaphore>,
}

impl CopyPool {
    fn limits(&self, traits: &StoreTraits) -> &Limits {
        let parts = traits.concurrency + PARTS_EXTRA;
        self.0.get_or_init(|| Limits {
            chunks: Arc::new(Semaphore::new(parts - 1)),
            parts: Arc::new(Semaphore::new(parts)),
        })
    }
}

/// Bytes in memory, with their permit.
struct CountedPart {
    bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for CountedPart {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A chunk in the new store.
pub(super) struct CopiedChunk {
    /// The store's evidence for the chunk.
    pub(super) evidence: Evidence,
    /// Whether this run sent the chunk.
    pub(super) sent: bool,
    /// Whether the store's evidence covers the content, or the bytes were read back.
    pub(super) proven: bool,
}

/// Copies one chunk. `listed` means that the new store has an object with the chunk's name already.
pub(super) async fn copy_chunk(
    env: &UploadEnv,
    manifest: &Manifest,
    chunk: &ChunkEntry,
    listed: bool,
) -> Result<CopiedChunk, RunError> {
    let not_a_name = || RunError::Damaged {
        key: chunk.name.clone(),
        reason: "not a chunk's name".into(),
    };
    let copy = ChunkCopy {
        env,
        chunk,
        key: chunk_key(manifest, chunk).ok_or_else(not_a_name)?,
    };
    let mut tries = 1..=TRIES_MAX;
    let mut look_first = listed;
    loop {
        match (copy.try_once(look_first).await, tries.next()) {
            // A taken key may be from our own put whose reply was lost, and a failed put may have
            // succeeded. The next try checks the stored object first.
            (Err(RunError::Store(error)), Some(number))
                if error.is_transient() || error.kind == StoreErrorKind::AlreadyExists =>
            {
                tracing::warn!(error = %error_chain(&error), number, "copying a chunk failed; trying again");
                tokio::time::sleep(TRY_PAUSE * number).await;
                look_first = true;
            }
            (result, _) => return result,
        }
    }
}

struct ChunkCopy<'a> {
    env: &'a UploadEnv,
    chunk: &'a ChunkEntry,
    key: ObjectKey,
}

impl ChunkCopy<'_> {
    async fn try_once(&self, look_first: bool) -> Result<CopiedChunk, RunError> {
        let there = if look_first {
            self.env.to.head(&self.key).await?
        } else {
            None
        };
        match there {
            Some(found) => self.prove(found).await,
            None => self.send().await.map(|evidence| CopiedChunk {
                evidence,
                sent: true,
                proven: true,
            }),
        }
    }

    async fn send(&self) -> Result<Evidence, RunError> {
        // The semaphore is never closed, so there is always a turn.
        let _turn = self.limits().chunks.acquire().await;
        let mut writer = self.env.to.create(&self.key).await?;
        let mut stop = self.env.stop.clone();
        let sent = tokio::select! {
            sent = self.feed(&mut *writer) => sent,
            () = stopped(&mut stop) => Err(RunError::Interrupted),
        };
        match sent {
            Ok(()) => Ok(writer.finish().await?),
            Err(reason) => {
                if let Err(error) = writer.abort().await {
                    tracing::debug!(error = %error_chain(&error), "abort of an unfinished chunk failed");
                }
                Err(reason)
            }
        }
    }

    /// Hands over all parts. The hash is known before the object is completed.
    async fn feed(&self, writer: &mut dyn PartWriter) -> Result<(), RunError> {
        let part_bytes = self.env.to.traits().part_bytes as u64;
        let mut hasher = blake3::Hasher::new();
        let mut parts = pin!(self.parts(&*self.env.from, part_bytes));
        while let Some(part) = parts.next().await {
            let part = part?;
            let hashed = part.clone();
            hasher = blocking(move || {
                hasher.update(&hashed);
                hasher
            })
            .await?;
            writer.put_part(part).await?;
        }
        self.check_source(hasher.finalize().into())
    }

    /// Compares a stored object with the bytes in the directory, as far as the store's evidence
    /// goes. A folder keeps no checksums, so there the object itself is read.
    async fn prove(&self, found: Evidence) -> Result<CopiedChunk, RunError> {
        let other = |reason: String| RunError::Damaged {
            key: self.key.to_string(),
            reason: format!(
                "{reason} (in {}); `zfs-backup forget` removes the unfinished copy",
                self.env.to.url()
            ),
        };
        if found.bytes != self.chunk.sealed_bytes {
            return Err(other(format!(
                "has {} bytes, not {}",
                found.bytes, self.chunk.sealed_bytes
            )));
        }
        let (blake3, verdict) = self
            .read(&*self.env.from, ContentCheck::new(&found))
            .await?;
        self.check_source(blake3)?;
        let proven = match verdict {
            ContentVerdict::Proven => true,
            ContentVerdict::Differs => {
                return Err(other("the store reports another checksum".to_owned()));
            }
            ContentVerdict::SizeAgrees if found.tier == EvidenceTier::ReadBack => {
                let (blake3, _) = self.read(&*self.env.to, ContentCheck::new(&found)).await?;
                if blake3 != self.chunk.blake3 {
                    return Err(other(format!(
                        "its BLAKE3 is {blake3}, and the manifest says {}",
                        self.chunk.blake3
                    )));
                }
                true
            }
            ContentVerdict::SizeAgrees => false,
        };
        Ok(CopiedChunk {
            evidence: found,
            sent: false,
            proven,
        })
    }

    async fn read(
        &self,
        store: &dyn StoreRead,
        mut check: ContentCheck,
    ) -> Result<(Digest, ContentVerdict), RunError> {
        let mut hasher = blake3::Hasher::new();
        let mut parts = pin!(self.parts(store, RANGE_BYTES));
        while let Some(part) = parts.next().await {
            if *self.env.stop.borrow() {
                return Err(RunError::Interrupted);
            }
            let part = part?;
            (hasher, check) = blocking(move || {
                hasher.update(&part);
                check.update(&part);
                (hasher, check)
            })
            .await?;
        }
        Ok((hasher.finalize().into(), check.finish()))
    }

    /// Reads the chunk in pieces of this length, in order and ahead of the caller. The pieces count
    /// against the limit of the run until they are dropped; each gets its permit before the next.
    fn parts<'s>(
        &'s self,
        store: &'s dyn StoreRead,
        part_bytes: u64,
    ) -> impl Stream<Item = Result<Bytes, RunError>> + 's {
        let permits = &self.limits().parts;
        stream::iter(ranges(self.chunk.sealed_bytes, part_bytes))
            .then(async |range| (range, Arc::clone(permits).acquire_owned().await.ok()))
            .map(async |(range, permit)| {
                let bytes = get_part(store, &self.key, range).await?;
                let counted = CountedPart {
                    bytes,
                    _permit: permit,
                };
                Ok(Bytes::from_owner(counted))
            })
            .buffered(AHEAD_MAX)
    }

    fn limits(&self) -> &Limits {
        self.env.pool.limits(self.env.to.traits())
    }

    fn check_source(&self, actual: Digest) -> Result<(), RunError> {
        let expected = self.chunk.blake3;
        if actual == expected {
            return Ok(());
        }
        let reason = format!(
            "its BLAKE3 is {actual}, and the manifest says {expected} (in {})",
            self.env.from.url()
        );
        Err(RunError::Damaged {
            key: self.key.to_string(),
            reason,
        })
    }
}

/// Reads a range of an object that was listed with its size. A missing or shorter object is damage.
async fn get_part(
    store: &dyn StoreRead,
    key: &ObjectKey,
    range: Range<u64>,
) -> Result<Bytes, RunError> {
    let limit_bytes = range.end - range.start;
    match store.get(key, Some(range), limit_bytes).await {
        Ok(bytes) => Ok(bytes),
        Err(error)
            if matches!(
                error.kind,
                StoreErrorKind::NotFound | StoreErrorKind::Corrupt
            ) =>
        {
            let reason = format!("{} (in {})", error_chain(&error), store.url());
            Err(RunError::Damaged {
                key: key.to_string(),
                reason,
            })
        }
        Err(error) => Err(error.into()),
    }
}

fn ranges(bytes: u64, step: u64) -> impl Iterator<Item = Range<u64>> {
    let step = step.max(1);
    (0..bytes.div_ceil(step)).map(move |number| number * step..((number + 1) * step).min(bytes))
}
