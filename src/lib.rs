//! zfs-backup: ZFS snapshots, streamed, sealed and stored where they can be proved and restored.
//!
//! # The map
//! Each room uses only rooms above it; `tests/tidy.rs` checks that, also for the folders inside
//! `run` and `cli`.
//! ```text
//! model     names, ids and digests, checked when they are made
//! sign      minisign signatures that name their place
//! keyring   key files, and their form sealed with the passphrase
//! stream    send streams record by record; chunks sealed and opened
//! store     places for objects behind small traits: S3, B2, rclone, a folder, memory
//! config    the configuration file: every key, every error with its line
//! zfs       ZFS behind small traits: libzfs_core and the read ioctls, or pools in memory for tests
//! manifest  storage format 1: what is stored, and what a reader must check
//! plan      decisions, pure
//! state     what this host knows, in files below `state_dir`: synchronous, no ZFS, no network
//! catalog   what a store holds of a dataset: reads, never writes
//! run       plans carried out: snapshot, backup, copy, verify, prune, restore; doctor and hooks
//! cli       people
//! ```
//!
//! # Glossary
//! Each thing has one word. Add a new noun here first.
//! ```text
//! dataset        a ZFS file system or volume; a store keeps it under the name of its first backup
//! origin         the dataset and the pool, by guid, that a backup was made from
//! snapshot       a ZFS snapshot; a backup stores the stream of exactly one
//! bookmark       ZFS's record of a snapshot that is gone; an incremental can start from it
//! pin            a ZFS hold of this program on a snapshot that an unfinished upload needs
//! backup         one stored stream with a manifest that verifies; a full or an incremental
//! base           the backup that an incremental builds on
//! level          the unit of time that a backup stands for: a year, month, week, day or hour
//! chain          a full and the incrementals that lead from it to a backup
//! time line      the backups of one origin that one pool can have made in sequence
//! twin           another backup of the same snapshot
//! stream         what `zfs send` writes, from BEGIN record to END record
//! chunk          a part of the stream that is stored as one object
//! sealed chunk   a chunk as it is stored: compressed if asked for, encrypted with age
//! part           a piece of a sealed chunk, uploaded in one request of a multipart upload
//! object         bytes under a key in a store; never changed once written
//! key            an object's name in a store; also an age identity or a signing key
//! keyring        the key file of a store, sealed with the passphrase
//! manifest       the signed object, put last, that makes a backup exist
//! chunk list     the names, sizes and hashes of a backup's chunks
//! receipt        the signed evidence that the store gave for each object at the commit
//! evidence       what a store says about an object: size, checksum, version
//! commit         the puts, in a fixed order, that turn an upload into a backup
//! read fault     the place in a stream at which ZFS could not read the snapshot any further
//! attempt        an upload that has no verified manifest: unfinished, abandoned or damaged
//! prune record   the signed list of backups that a prune is about to delete
//! store          a place for objects
//! remote         the store that backups are meant to end in
//! intermediate directory  a folder on this host that is filled first and copied to the remote
//! store id       the random id that a store keeps about itself
//! catalog        what one store holds of one dataset, as listed and verified
//! journal        this host's log of its attempts, by which an upload is resumed
//! history        what this host remembers of a store for `health` and `show`
//! lockfile       the file of `lock` and `perform` that people and other hosts can read
//! kernel lock    the flock that keeps two runs off one dataset and store
//! plan           a decision as data: printed by `--dry-run`, carried out otherwise
//! drill          a restore into a scratch dataset that is destroyed afterwards
//! ```
//!
//! # A backup
//! ```text
//! lzc_send -> pipe -> StreamParser -> chunks of split_size -> [zstd] -> age pages -> BLAKE3
//!   -> parts -> multipart upload -> each chunk confirmed by the store
//!   -> END verified and lzc_send returned 0 -> signed manifest, last of all
//! ```
//!
//! # What must always hold
//! - A backup exists only through a manifest that verifies, and a manifest is put only after the
//!   stream was read completely and every chunk was confirmed ([`run::backup`]).
//! - Stored objects never change; every put is create-only ([`store`]).
//! - Unauthenticated bytes never reach zstd or the kernel ([`stream::open`], [`manifest`]).
//! - An error is never read as "empty" ([`catalog`]).
//!
//! # Memory
//! Backup: `part_size x (concurrency + 2)` in pooled part buffers ([`stream::part`]), into which
//! the stream is read and in which it is sealed and sent, and a fixed rest; compression adds zstd's
//! window and jobs of 1 MiB for each of its threads. Restore: eleven pieces of 2 MiB at most
//! ([`run::restore`]). Both are independent of the length of the stream, except for the chunk
//! lists: some 600 bytes for each chunk.

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
