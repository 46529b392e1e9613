//! zfs-backup: ZFS snapshots, streamed, sealed and stored where they can be proved and restored.

pub mod cli;
pub mod config;
pub mod keyring;
pub mod manifest;
pub mod model;
pub mod plan;
pub mod run;
pub mod sign;
pub mod store;
pub mod stream;
pub mod zfs;
