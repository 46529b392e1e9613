//! zfs-backup: ZFS snapshots, streamed, sealed and stored where they can be proved and restored.
//!
//! # The map
//! Data flows down this list; a room uses only those named above it (`tests/tidy.rs` holds that).
//! ```text
//! model     names and ids, parsed once
//! config    the configuration file: every key, every error with its line
//! zfs       ZFS behind one trait: libzfs_core and the read ioctls, or pools in memory for tests
//! stream    send streams record by record; chunks sealed and opened
//! store     places for objects behind one trait: S3, a folder, memory
//! sign      minisign signatures that name their place
//! keyring   key files, and their form sealed with the passphrase
//! manifest  storage format 1: what is stored, and what a reader must check
//! plan      decisions, pure
//! run       plans carried out: snapshot, backup, copy, verify, prune, restore, drill; probe and doctor; locks and hooks
//! cli       people
//! ```
//!
//! # A backup
//! ```text
//! lzc_send -> pipe -> StreamParser -> chunks of split_size -> [zstd] -> age pages -> BLAKE3 -> parts -> multipart upload
//!   -> each chunk confirmed by the store -> END verified and lzc_send returned 0 -> signed manifest, last of all
//! ```
//!
//! # What must always hold
//! - A backup exists only through a manifest that verifies, and a manifest is put only after the
//!   stream was seen whole and every chunk was confirmed ([`run::backup`]).
//! - Stored objects never change; every put is create-only ([`store`]).
//! - Nothing unauthentic reaches zstd or the kernel ([`stream::open`], [`manifest`]).
//! - An error is never read as "empty" ([`run::catalog`]).
//!
//! # Memory
//! Backup: `part_size x (concurrency + 2)` in pooled part buffers ([`stream::part`]), into which
//! the stream is read and in which it is sealed and sent, and a fixed rest; compression adds zstd's
//! window and jobs of 1 MiB for each of its threads. Restore: eleven pieces of 2 MiB at most
//! ([`run::restore`]). Neither depends on the length of the stream but for the chunk lists: some
//! 600 bytes a chunk.

pub mod catalog;
pub mod cli;
pub mod config;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod keyring;
pub mod manifest;
pub mod model;
pub mod plan;
pub mod run;
pub mod sign;
pub mod state;
pub mod store;
pub mod stream;
pub mod zfs;
