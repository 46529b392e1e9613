//! zfs-backup: ZFS snapshots, streamed, sealed and stored where they can be proved and restored.

pub mod config;
pub mod model;
pub mod store;
pub mod stream;
pub mod zfs;
