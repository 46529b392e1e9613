//! [`estimate_full`]: the length of a full of a dataset, before anything is configured or planned.

use super::planning::estimate_stream;
use crate::run::error_chain;
use crate::zfs::{Dataset, SendFlags, SendRequest, ZfsSend};

/// Estimates a full of a dataset in bytes: the stream of its newest snapshot, or without a snapshot
/// the data that it refers to. Returns `None` when ZFS tells neither.
pub fn estimate_full(zfs: &dyn ZfsSend, dataset: &Dataset, flags: SendFlags) -> Option<u64> {
    let snapshots = zfs.snapshots(&dataset.name);
    let newest = snapshots
        .inspect_err(|error| tracing::warn!(error = error_chain(error), "no estimate"))
        .ok()?
        .pop();
    let Some(snapshot) = newest else {
        let is_compressed = flags.compressed || flags.raw;
        let property = match is_compressed {
            true => "referenced",
            false => "logicalreferenced",
        };
        return dataset.number(property);
    };
    let request = SendRequest {
        snapshot: snapshot.name,
        base: None,
        flags,
        resume: None,
    };
    estimate_stream(zfs, &request)
}
