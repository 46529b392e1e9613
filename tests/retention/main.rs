//! What is kept and what goes, decided purely: every sentence of the rules, what no rule may
//! delete, and properties over thousands of stores that look like nothing anybody would make.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod facts;
mod levels;
mod lines;
mod properties;
mod prune;
mod rules;
mod simulation;
mod snapshots;
mod world;
