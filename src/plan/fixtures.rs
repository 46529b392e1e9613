//! Fixtures for the tests of decisions: snapshots and bookmarks that one number determines.

use crate::model::Guid;
use crate::zfs::{Bookmark, Snapshot};
use jiff::Timestamp;

/// Returns midnight, UTC, of day `n` after 1970-01-01.
pub(super) fn at(n: u64) -> Timestamp {
    Timestamp::from_second(i64::try_from(n).unwrap() * 86_400).unwrap()
}

/// Makes snapshot `n`, which has guid and txg `n` and was taken on day `n`.
pub(super) fn snapshot(n: u64) -> Snapshot {
    Snapshot {
        name: format!("t/a@s{n}").parse().unwrap(),
        guid: Guid(n),
        createtxg: n,
        created_at: at(n),
        referenced_bytes: 0,
        used_bytes: 0,
        holds: 0,
        clones: 0,
        redacted: false,
        user_properties: Default::default(),
    }
}

/// Makes a bookmark of snapshot `n`.
pub(super) fn bookmark(short: &str, n: u64) -> Bookmark {
    let name = format!("t/a#{short}").parse().unwrap();
    Bookmark {
        name,
        guid: Guid(n),
        createtxg: n,
        created_at: at(n),
        redacted: false,
        ivset_guid: None,
    }
}
