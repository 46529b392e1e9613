//! Seals stream bytes into chunks, and opens chunks again. This room reads no clock, network or
//! disk; its only randomness is that of sealing.

pub mod age_file;
pub mod fill;
pub mod fletcher;
pub mod leaves;
pub mod nvlist;
pub mod open;
pub mod part;
pub mod record;
pub mod resuming;
pub mod resync;
pub mod seal;
mod seal_error;
pub mod splice;
