//! `--read-data`: downloads chunks and compares their BLAKE3 with the signed lists. If all chunks
//! of a backup are chosen and a key for it is available, the backup is opened and its stream parsed
//! record by record, as in a restore.

use super::{ChunksOf, Damage};
use crate::catalog::{Catalog, chunk_key};
use crate::keyring::KeyFile;
use crate::manifest::{ChunkEntry, Manifest};
use crate::model::Digest;
use crate::plan::sample::{Candidate, ReadShare, choose_chunks};
use crate::run::blocking::blocking;
use crate::run::restore::{RestoreBackup, restore_to_writer};
use crate::run::transfer::{Stop, stopped};
use crate::run::{RunError, error_chain};
use crate::store::{ObjectKey, StoreErrorKind, StoreRead};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Size of one ranged read, and limit of concurrent reads.
const RANGE_BYTES: u64 = 8 << 20;
const RANGES_MAX: usize = 4;

/// The choice of chunks to download, and the keys to open them.
pub struct ReadData {
    /// The share of the data to read.
    pub share: ReadShare,
    /// The number of the current day, for shares that rotate by day.
    pub day: u64,
    /// A random number, for shares that do not rotate.
    pub seed: u64,
    /// The keys that open backups, if available.
    pub keys: Option<KeyFile>,
    /// The turn to read: one dataset of a run at a time, because its pieces already fill the line,
    /// and take up to 32 MiB of memory.
    pub one_reader: Arc<Semaphore>,
    /// The signal to stop.
    pub stop: Stop,
}

/// The amounts that were downloaded.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct ReadReport {
    /// The number of chunks whose BLAKE3 was computed.
    pub chunks: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The number of backups that were opened, with their streams parsed to the END record.
    #[serde(rename = "backups_opened")]
    pub streams: usize,
}

/// Reads the chosen chunks of all backups of the catalog, except chunks that are known to be
/// damaged.
pub(super) async fn read_chunks_of(
    store: &Arc<dyn StoreRead>,
    catalog: &Catalog,
    chunks: ChunksOf,
    read: &ReadData,
    known: &[Damage],
) -> Result<(ReadReport, Vec<Damage>), RunError> {
    // The semaphore is never closed, so there is always a turn.
    let _turn = read.one_reader.acquire().await;
    let all: Vec<&ChunkEntry> = chunks.iter().flatten().collect();
    let candidates: Vec<Candidate<'_>> = all
        .iter()
        .map(|chunk| Candidate {
            name: &chunk.name,
            bytes: chunk.sealed_bytes,
        })
        .collect();
    let mut chosen = choose_chunks(&candidates, read.share, read.day, read.seed).into_iter();
    let mut reader = Reader {
        store,
        read,
        report: ReadReport::default(),
        damage: Vec::new(),
    };
    for (backup, of_backup) in catalog.backups.iter().zip(&chunks) {
        let chosen: Vec<bool> = chosen.by_ref().take(of_backup.len()).collect();
        let manifest = &backup.manifest;
        let is_sound = !known
            .iter()
            .any(|damage| damage.breaks && damage.backup.as_ref() == Some(&manifest.id));
        let whole = !of_backup.is_empty() && is_sound && chosen.iter().all(|chosen| *chosen);
        let keys = read
            .keys
            .as_ref()
            .filter(|keys| whole && opens(keys, manifest));
        let walked = match keys {
            Some(keys) => reader.walk(manifest, of_backup, keys).await?,
            None => false,
        };
        if walked {
            continue;
        }
        for chunk in of_backup
            .iter()
            .zip(chosen)
            .filter(|(_, chosen)| *chosen)
            .map(|(chunk, _)| chunk)
        {
            reader.hash(manifest, chunk, known).await?;
        }
    }
    Ok((reader.report, reader.damage))
}

struct Reader<'a> {
    store: &'a Arc<dyn StoreRead>,
    read: &'a ReadData,
    report: ReadReport,
    damage: Vec<Damage>,
}

impl Reader<'_> {
    /// Opens the backup and parses its whole stream. Returns `false` when that fails: the caller
    /// then hashes the chunks one by one, to find the damaged ones. A faulty stream is damage of
    /// the backup, even if every chunk is intact.
    async fn walk(
        &mut self,
        manifest: &Manifest,
        chunks: &[ChunkEntry],
        keys: &KeyFile,
    ) -> Result<bool, RunError> {
        let backup = RestoreBackup {
            store: Arc::clone(self.store),
            manifest: manifest.clone(),
            chunks: chunks.to_vec(),
            private: None,
        };
        let mut stop = self.read.stop.clone();
        let walked = tokio::select! {
            walked = restore_to_writer(&backup, keys, Box::new(std::io::sink())) => walked,
            () = stopped(&mut stop) => return Err(RunError::Interrupted),
        };
        let error = match walked {
            Ok(_) => {
                self.report.streams += 1;
                self.report.chunks += chunks.len();
                self.report.bytes += chunks.iter().map(|chunk| chunk.sealed_bytes).sum::<u64>();
                return Ok(true);
            }
            Err(error) => error,
        };
        match error {
            RunError::Chunk { ref key, .. }
                if chunks.iter().any(|chunk| key.ends_with(&chunk.name)) =>
            {
                self.damage.push(Damage::new(
                    key.clone(),
                    Some(manifest.id.clone()),
                    error_chain(&error),
                ));
                Ok(false)
            }
            RunError::Damaged { .. } | RunError::Stream { .. } => {
                self.damage.push(Damage::of_whole(
                    &manifest.dataset,
                    &manifest.id,
                    error_chain(&error),
                ));
                Ok(false)
            }
            RunError::Store(ref store) if is_damage(store.kind) => Ok(false),
            error => Err(error),
        }
    }

    async fn hash(
        &mut self,
        manifest: &Manifest,
        chunk: &ChunkEntry,
        known: &[Damage],
    ) -> Result<(), RunError> {
        let Some(key) = chunk_key(manifest, chunk) else {
            return Ok(());
        };
        if known
            .iter()
            .chain(&self.damage)
            .any(|damage| damage.key == key.as_str())
        {
            return Ok(());
        }
        let reason = match self.blake3_of(&key, chunk.sealed_bytes).await {
            Ok(actual) => {
                self.report.chunks += 1;
                self.report.bytes += chunk.sealed_bytes;
                let differs = actual != chunk.blake3;
                differs.then(|| {
                    format!(
                        "its BLAKE3 is {actual}, and the manifest says {}",
                        chunk.blake3
                    )
                })
            }
            Err(RunError::Store(error)) if error.kind == StoreErrorKind::NotFound => {
                Some(super::MISSING.to_owned())
            }
            Err(RunError::Store(error)) if error.kind == StoreErrorKind::Corrupt => {
                Some(error_chain(&error))
            }
            Err(error) => return Err(error),
        };
        self.damage.extend(
            reason.map(|reason| Damage::new(key.to_string(), Some(manifest.id.clone()), reason)),
        );
        Ok(())
    }

    async fn blake3_of(&self, key: &ObjectKey, bytes: u64) -> Result<Digest, RunError> {
        let starts = (0..bytes.div_ceil(RANGE_BYTES)).map(|number| number * RANGE_BYTES);
        let get = |start: u64| {
            let range: Range<u64> = start..(start + RANGE_BYTES).min(bytes);
            self.store.get(key, Some(range), RANGE_BYTES)
        };
        let mut pieces = stream::iter(starts).map(get).buffered(RANGES_MAX);
        let mut hasher = blake3::Hasher::new();
        while let Some(piece) = pieces.next().await {
            if *self.read.stop.borrow() {
                return Err(RunError::Interrupted);
            }
            let piece = piece?;
            hasher = blocking(move || {
                hasher.update(&piece);
                hasher
            })
            .await?;
        }
        Ok(hasher.finalize().into())
    }
}

/// Whether one of the identities is among the backup's recipients. A key of another store would
/// report damage everywhere.
fn opens(keys: &KeyFile, manifest: &Manifest) -> bool {
    keys.identities.iter().any(|identity| {
        manifest
            .recipients
            .contains(&identity.to_public().to_string())
    })
}

fn is_damage(kind: StoreErrorKind) -> bool {
    matches!(kind, StoreErrorKind::NotFound | StoreErrorKind::Corrupt)
}
