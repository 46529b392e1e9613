//! [`read_at_faults`]: reads a snapshot where ZFS could not read others.

use super::source::SendSource;
use crate::model::{ReadFault, RecordPlace};
use crate::run::RunError;
use crate::run::blocking::blocking;
use crate::run::transfer::{Stop, StreamSource};
use crate::zfs::{SendResume, ZfsErrno, ZfsError};
use std::io::{self, Read};

/// How much of the stream is read: more than the 32 MiB that may lie between the record from which
/// the send is resumed and the unreadable block.
const READ_BYTES: u64 = 256 << 20;

/// Sends a part of the snapshot from before each of the places, and drops the bytes. Returns the
/// first of the places at which ZFS cannot read the snapshot either. A stop ends this early.
///
/// # Errors
/// [`RunError`] when the thread that reads ends with a panic.
pub(super) async fn read_at_faults(
    source: SendSource,
    mut faults: Vec<ReadFault>,
    stop: Stop,
) -> Result<Option<ReadFault>, RunError> {
    faults.sort_by_key(|fault| fault.before);
    faults.dedup_by_key(|fault| fault.before);
    let is_there = move |fault: &ReadFault| {
        let place = fault.before.filter(|_| !*stop.borrow());
        place.is_some_and(|place| is_unreadable(&source, place))
    };
    blocking(move || faults.into_iter().find(is_there)).await
}

/// Returns true only for a read error: any other error is left to the upload, which reports it.
fn is_unreadable(source: &SendSource, place: RecordPlace) -> bool {
    let read = || -> Result<(), ZfsError> {
        let mut stream = source.open(Some(SendResume {
            object: place.object,
            offset: place.offset,
        }))?;
        let copied = io::copy(&mut stream.reader().take(READ_BYTES), &mut io::sink());
        match copied {
            Ok(READ_BYTES) => Ok(()),
            Ok(_) | Err(_) => stream.finish(),
        }
    };
    let errno = read().err().and_then(|error| error.errno());
    errno.is_some_and(ZfsErrno::is_read_error)
}
