//! Runs one target of `zfs_backup::fuzzing`, named by `FUZZ_TARGET`, under libFuzzer; or, with
//! `FUZZ_CORPUS`, what `corpus.rs` does with the inputs. (One binary for both, since only one that
//! has libFuzzer links.)
#![no_main]

mod corpus;

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use zfs_backup::fuzzing::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name}"))
});

fuzz_target!(init: corpus::serve(), |input: &[u8]| (TARGET.run)(input));
