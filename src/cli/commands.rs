//! The commands, one file or folder each.

pub(crate) mod adopt;
pub(crate) mod backup;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod drill;
pub(crate) mod forget;
pub(crate) mod health;
pub(crate) mod holds;
pub(crate) mod key;
pub(crate) mod manual;
pub(crate) mod prune;
pub(crate) mod prune_snapshots;
pub(crate) mod restore;
pub(crate) mod show;
pub(crate) mod snapshot;
pub(crate) mod upload;
pub(crate) mod verify;
