//! Decisions, pure: no clock, network or disk. Every "no" is data that explains itself.

pub mod restore;
pub mod send;
