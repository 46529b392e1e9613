//! [`OtherPrune`]: what a prune of another host that may be running means for this one.

use crate::model::BackupId;
use jiff::Timestamp;

/// A prune that may be running on another host: its record names a backup that still exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "another host is pruning here, or its prune crashed: its prune record of {at} names {id}, which still exists{}",
    if self.is_in_future { "; the date of the record is in the future" } else { "" }
)]
pub struct OtherPrune {
    /// A backup or attempt of the record that still has objects.
    pub id: BackupId,
    /// The time of the record.
    pub at: Timestamp,
    /// The key of the prune record in the store.
    pub record: String,
    /// The record is dated by a clock that is ahead of this host's.
    pub is_in_future: bool,
    /// From then on the record stops no prune of this host.
    pub until: Timestamp,
}

impl OtherPrune {
    /// Returns the remedy for a person.
    pub fn hint(&self) -> String {
        let Self { record, until, .. } = self;
        if self.is_in_future {
            return format!(
                "set the clock of the host that prunes; this host waits until {until}, two days after it first saw the \
                 record. If no other host is pruning, you can end that now: delete {record} in the store"
            );
        }
        "run the command again when the other prune has ended; a crashed prune counts for 48 hours, or until its own \
         host prunes again"
            .to_owned()
    }
}
