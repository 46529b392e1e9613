//! The main job on a real pool with a real S3 server, by the program itself. Runs as root in the
//! virtual machine:
//!
//! ```text
//! tests/vm/run 2.1 --bin target/debug/zfs-backup --bin target/debug/deps/live_main-* --bin weed ... -- live_main-*
//! ```
//!
//! `zfs`, `age`, `b3sum`, `rclone` are the independent references. Without ZFS or a server every
//! test fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../live_zfs/pool.rs"]
#[expect(dead_code, reason = "shared with live_zfs, which uses more of it")]
mod pool;
#[path = "../support/proxy.rs"]
#[expect(
    dead_code,
    reason = "shared with the stores' tests, which use more of it"
)]
mod proxy;
#[path = "../support/weed.rs"]
#[expect(
    dead_code,
    reason = "shared with the stores' tests, which use more of it"
)]
mod weed;

mod bench;
mod burned;
mod chains;
mod crossing;
mod failures;
mod fifty;
mod halves;
mod interrupted;
mod job;
mod kinds;
mod matrix;
mod nights;
mod ordinary;
mod power;
mod random;
mod redacted;
mod restores;
mod resumed;
mod thousands;
mod trees;
mod unchanged;
mod unreadable;
