//! The room `run/` against ZFS in memory and a store in memory: that what is backed up restores,
//! that nothing else ever passes for a backup, and that every failure, attack and damage is told by
//! the name of its object.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of this is test code"
)]

mod attacks;
mod b2;
#[allow(
    dead_code,
    reason = "shared with the contract suite, which uses all of it"
)]
#[path = "../support/b2_sim.rs"]
mod b2_sim;
mod bad_nights;
mod bucket_retention;
mod builder;
mod cached;
mod chain;
mod chains;
#[allow(
    dead_code,
    reason = "shared with the tests of sealing, which use all of it"
)]
#[path = "../support/chunk.rs"]
mod chunk;
mod chunk_count;
mod clones;
mod crash;
mod damage;
mod failures;
mod figures;
mod flow;
mod guards;
mod instructions;
mod interrupted;
mod keys;
mod levels;
mod locks;
mod nights;
mod observer;
mod old_zfs;
mod outages;
mod parallel;
mod partial_file;
#[allow(
    dead_code,
    reason = "shared with the contract suite, which uses all of it"
)]
#[path = "../support/proxy.rs"]
mod proxy;
mod prune;
mod prune_boundaries;
mod prune_property;
mod rclone;
mod read_only;
mod rekey;
mod restore;
mod resumed;
mod safety_bounds;
mod safety_identity;
mod safety_interleave;
mod safety_kernel;
mod safety_origins;
mod safety_pruning;
mod safety_restore;
mod safety_trust;
mod scale;
mod scheduler;
mod snapshot;
mod space;
mod stock;
mod sums;
mod two_hosts;
mod two_stores;
mod unchanged;
mod unfinished;
mod unreadable;
mod upload;
mod upload_failures;
mod vanished;
mod verify;
#[allow(
    dead_code,
    reason = "shared with the contract suite, which uses all of it"
)]
#[path = "../support/weed.rs"]
mod weed;
mod world;
