//! Restores: finds the chain, fetches, checks and opens it, and passes the stream to the kernel or
//! to a pipe.
//!
//! Before a byte is received, the chain is planned from verified manifests, every chunk list is
//! checked against its hash, and a listing shows every chunk at its size. Each backup is read from
//! the nearest store that has it whole.

mod allowed;
pub mod drill;
mod find;
mod leave;
mod mark;
mod partial_file;
mod properties;
mod reading;
mod receive;
mod rollback;
mod space;
mod target;
mod to_file;
mod tree;
mod visible;

pub use crate::state::restore_lock::{RestoreLock, lock_folder, lock_target};
pub use allowed::check_allowed;
pub use find::{find_restore_backup, find_restore_set};
pub(super) use leave::{destroy_left_scratch, destroy_scratch};
pub use mark::{
    Begun, RESTORING_PROPERTY, RestoreToken, SCRATCH_PROPERTY, Scratch, is_makeshift, left_half,
};
pub use partial_file::{PartialFile, other_partials};
pub use properties::{PropertyChoice, PropertyError};
pub use reading::plain::fetch_requests;
pub use reading::reader::{FailureSlot, RestoreReader, open_stream, open_stream_until};
pub use receive::{
    Received, ResumedReceive, find_interrupted, restore_as_planned, restore_to_dataset,
};
pub use rollback::{LostBookmark, LostSnapshot, Rollback};
pub use space::{ArrivingDataset, judge_file_fit, judge_fit};
pub use target::{ReceiveOptions, ReceivePlan, ResumeChoice, check_target};
pub use to_file::{find_partial, restore_to_file};
pub use tree::{RestoreTree, TreeMember, find_restore_tree};
pub use visible::{VisibleSteps, left_readonly, visible_steps};

use super::RunError;
use crate::keyring::KeyFile;
use crate::manifest::{ChunkEntry, Manifest, Private};
use crate::model::{BackupId, DatasetName};
use crate::run::blocking::blocking;
use crate::run::restore::reading::reader::take_failure;
use crate::store::StoreRead;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The choice of the backup to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestorePoint {
    /// The newest backup.
    Newest,
    /// The newest backup whose snapshot was not taken after this time.
    At(Timestamp),
    /// The backup of the snapshot with this short name.
    Snapshot(String),
    /// The backup with this id.
    Id(BackupId),
}

/// A chain that was checked as far as possible without fetching chunks.
pub struct RestoreSet {
    /// The backups of the chain, the full first.
    pub backups: Vec<RestoreBackup>,
    /// The stores that could not be read, with the reason. They may have a newer backup.
    pub unasked: Vec<String>,
}

/// A backup of the chain.
#[derive(Clone)]
pub struct RestoreBackup {
    /// The nearest store that has the whole backup.
    pub store: Arc<dyn StoreRead>,
    /// The manifest.
    pub manifest: Manifest,
    /// The chunks.
    pub chunks: Vec<ChunkEntry>,
    /// The recorded facts about its source; `None` when `private.age` is damaged.
    pub private: Option<Private>,
}

impl RestoreSet {
    /// Returns the backup that the chain leads to. A set that was found has at least one backup.
    ///
    /// # Panics
    /// If the set was built directly and is empty.
    pub fn newest(&self) -> &RestoreBackup {
        &self.backups[self.backups.len() - 1]
    }

    /// Returns the properties that were set locally on the source; empty when they are not known.
    fn recorded_properties(&self) -> &BTreeMap<String, String> {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        self.newest()
            .private
            .as_ref()
            .map_or(NONE, |private| &private.properties)
    }
}

/// Returns the error for a target whose pool does not exist.
fn no_pool(target: &DatasetName) -> RunError {
    RunError::refused(
        format!("there is no pool {}", target.pool()),
        "import it, or choose another target",
    )
}

/// Writes the bare stream of one backup to `output`. The blocking work runs on other threads than
/// the runtime's.
///
/// # Errors
/// [`RunError`]; the bytes written before are authentic, but not a whole stream.
pub async fn restore_to_writer(
    backup: &RestoreBackup,
    keys: &KeyFile,
    mut output: Box<dyn std::io::Write + Send>,
) -> Result<u64, RunError> {
    let (mut reader, failure) = open_stream(backup, &keys.identities);
    let subject = backup.manifest.id.to_string();
    let copied = blocking(move || reader.copy_to(&mut *output)).await?;
    match (take_failure(&failure), copied) {
        (Some(error), _) => Err(error),
        (None, Err(source)) => Err(RunError::File {
            operation: "write the stream of",
            path: subject,
            source,
        }),
        (None, Ok(bytes)) => Ok(bytes),
    }
}
