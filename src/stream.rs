//! Turning bytes into sealed chunks and back. Pure: reads no clock, network or disk.

pub mod fletcher;
pub mod record;
pub mod splice;
