//! One contract for every store: memory, a folder (with each method of naming files), spools, B2 on
//! a simulator, rclone over a folder and over that simulator, and S3 on a real server. Further
//! tests cover what is specific to one kind of store.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests may do what tests may"
)]

mod b2;
mod b2_clients;
mod b2_faults;
mod b2_limits;
mod b2_lock;
#[path = "../support/b2_sim.rs"]
mod b2_sim;
mod clocks;
#[path = "../support/contract.rs"]
mod contract;
mod dir;
mod memory;
#[path = "../support/output.rs"]
mod output;
mod pace;
#[path = "../support/proxy.rs"]
#[expect(dead_code, reason = "shared with the live tests, which use more of it")]
mod proxy;
mod rclone;
mod rclone_cli;
mod s3;
#[path = "../support/weed.rs"]
mod weed;

use b2_sim::B2Sim;
use std::any::Any;
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::store::dir::CreateOnly;
use zfs_backup::store::{
    B2Settings, B2Store, DirSettings, DirStore, MemoryStore, ObjectStore, Spool,
};

const PART_BYTES: usize = 64 * 1024;

/// A store, and the values that must outlive it.
type World = (Arc<dyn ObjectStore>, Box<dyn Any>);

/// Makes a test for every case, in a module for every store.
macro_rules! contract_tests {
    ($($case:ident)*) => {
        $(#[tokio::test]
        async fn $case() {
            let (store, _keep) = world();
            contract::$case(&*store).await;
        })*
    };
}

fn dir_world(first: CreateOnly) -> World {
    let dir = TempDir::new().unwrap();
    let settings = DirSettings {
        root: dir.path().to_owned(),
        part_bytes: PART_BYTES,
    };
    (
        Arc::new(DirStore::open_with(&settings, first).unwrap()),
        Box::new(dir),
    )
}

fn spool_world() -> World {
    let (store, dir) = (MemoryStore::new(), TempDir::new().unwrap());
    store.take_no_parts();
    let spool = Spool::new(Arc::new(store), dir.path().to_owned());
    (Arc::new(spool), Box::new(dir))
}

/// B2 on a simulator.
fn b2_world() -> World {
    let sim = B2Sim::start();
    (
        Arc::new(B2Store::new(sim.settings()).unwrap()),
        Box::new(sim),
    )
}

/// B2 behind a spool, below a prefix.
fn b2_spool_world() -> World {
    let (sim, dir) = (B2Sim::start(), TempDir::new().unwrap());
    let store = B2Store::new(B2Settings {
        prefix: "nas/1".to_owned(),
        ..sim.settings()
    })
    .unwrap();
    (
        Arc::new(Spool::new(Arc::new(store), dir.path().to_owned())),
        Box::new((sim, dir)),
    )
}

macro_rules! contract_of {
    ($store:ident, $world:expr) => {
        mod $store {
            use super::*;

            fn world() -> World {
                $world
            }
            contract::all_contract_cases!(contract_tests);
        }
    };
}

contract_of!(in_memory, (Arc::new(MemoryStore::new()), Box::new(())));
contract_of!(dir_by_rename, dir_world(CreateOnly::Rename));
contract_of!(dir_by_link, dir_world(CreateOnly::Link));
contract_of!(dir_by_claim, dir_world(CreateOnly::Claim));
contract_of!(spool, spool_world());
contract_of!(b2_native, b2_world());
contract_of!(b2_spooled, b2_spool_world());
