//! The real ZFS, call by call, on pools made in files. Runs as root in the virtual machine:
//!
//! ```text
//! cargo test --test live_zfs --no-run
//! tests/vm/run 2.1 --bin target/debug/deps/live_zfs-* -- live_zfs-* --test-threads=1
//! ```
//!
//! The `zfs` command is the reference here; the product never runs it. Without ZFS every test
//! fails.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "all of this is test code"
)]

mod encryption;
mod list;
mod pool;
mod receive;
mod same;
mod send;
mod snapshots;
mod stream;
