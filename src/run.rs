//! Carries plans out: everything that touches ZFS and a store at once.

pub mod backup;
mod blocking;
pub mod clock;
mod commit;
pub mod copy;
pub mod doctor;
mod error;
pub mod hooks;
pub mod identity;
pub mod keys;
pub mod pool;
pub mod probe;
pub mod prune;
pub mod restore;
pub mod runner;
pub mod transfer;
pub mod verify;

pub use crate::model::error_chain;
pub use error::RunError;
