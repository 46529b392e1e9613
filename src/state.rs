//! Files below `state_dir` with what this host knows: synchronous, without ZFS and without network.
//!
//! Every file is written whole or not at all, and only its owner can read it. A file that exists
//! and cannot be read is an error, never "nothing".

pub mod adoption;
pub(crate) mod bookmark_notes;
pub mod dataset_lock;
pub mod dir;
pub mod error;
pub mod history;
pub mod host_mark;
pub mod journal;
pub mod last_success;
pub mod lockfile;
pub mod manifests;
pub(crate) mod places;
pub mod probes;
pub mod process;
pub(crate) mod prune_records;
pub(crate) mod remembered;
pub mod restore_lock;
pub mod stored_name;

pub use error::StateError;
