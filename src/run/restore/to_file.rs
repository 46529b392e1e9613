//! [`restore_to_file`]: writes the bare stream of a backup to a partial file, and resumes the one
//! that an interrupted run left.
//!
//! The content of a partial file is untrusted: a power cut leaves holes, a disk wrong bytes. The
//! stream verifies itself: each record header has a checksum over all bytes of the stream before
//! it, so the file is parsed from its start, up to the first fault or its end, and cut back to the
//! last entry ([`Entries`]) that a later header proves. The parser continues from there with the
//! bytes of the store. The header of END always comes from the store, so its checksum compares the
//! whole file with the authentic stream: a file of another stream, however consistent, is found.
//!
//! After a record of an unknown type nothing is proven before END. A file is then cut back to the
//! last entry before that record.

use super::partial_file::{PartialFile, check_owned, failed, partial_path};
use super::reading::plain::{Entries, ReadPoint};
use super::reading::reader::{expected_stream, open_rest, take_failure};
use super::{RestoreBackup, ResumedReceive, blocking};
use crate::keyring::KeyFile;
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::stream::record::{HEADER_BYTES, StreamParser};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of one read from a partial file.
const READ_BYTES: usize = 1 << 20;

/// The proven beginning of a stream, which ends at an entry.
#[derive(Clone)]
struct ProvenPart {
    entry: ReadPoint,
    position: u64,
    /// The parser after these bytes.
    parser: StreamParser,
}

/// Writes the stream to the partial file, without the beginning that the file has already.
/// `on_resume` is called first if there is one.
///
/// # Errors
/// [`RunError`]; the file then has a beginning of the stream, from which the next run resumes.
pub async fn restore_to_file(
    backup: &RestoreBackup,
    keys: &KeyFile,
    partial: &PartialFile,
    stop: &Stop,
    on_resume: impl Fn(&ResumedReceive),
) -> Result<(), RunError> {
    let proven = find_proven(backup, &partial.file, &partial.path, stop).await?;
    let Some(proven) = proven else {
        if partial.bytes() > 0 {
            tracing::warn!(
                "{} has no proven beginning of the stream: the restore starts over",
                partial.path.display()
            );
        }
        return write_rest(backup, keys, partial, None, stop).await;
    };
    on_resume(&proven.resumed(backup));
    match write_rest(backup, keys, partial, Some(proven), stop).await {
        Err(error @ RunError::Stream { .. }) => {
            tracing::warn!(
                error = error_chain(&error),
                "the stored stream does not continue {}: the restore starts over",
                partial.path.display()
            );
            write_rest(backup, keys, partial, None, stop).await
        }
        written => written,
    }
}

/// Returns where [`restore_to_file`] would resume; `None` when no partial file has a proven
/// beginning. Changes nothing.
///
/// # Errors
/// [`RunError`] when the file cannot be read or others can write it.
pub async fn find_partial(
    backup: &RestoreBackup,
    target: &Path,
    stop: &Stop,
) -> Result<Option<ResumedReceive>, RunError> {
    let path = partial_path(target, &backup.manifest.id);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&path)
    {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed("open", &path))?,
    };
    check_owned(&file, &path)?;
    let proven = find_proven(backup, &file, &path, stop).await?;
    Ok(proven.map(|proven| proven.resumed(backup)))
}

async fn find_proven(
    backup: &RestoreBackup,
    file: &File,
    path: &Path,
    stop: &Stop,
) -> Result<Option<ProvenPart>, RunError> {
    let mut file = file.try_clone().map_err(failed("read", path))?;
    let backup = backup.clone();
    let path = path.to_owned();
    let stop = stop.clone();
    blocking(move || {
        file.rewind()
            .and_then(|()| prove(&backup, &mut file, &stop))
            .map_err(|error| match *stop.borrow() {
                true => RunError::Interrupted,
                false => failed("read", &path)(error),
            })
    })
    .await?
}

/// Returns the longest proven beginning that ends at an entry after the first.
fn prove(
    backup: &RestoreBackup,
    file: &mut dyn Read,
    stop: &Stop,
) -> std::io::Result<Option<ProvenPart>> {
    let entries = Entries::of(backup);
    let stream_bytes = backup.manifest.stream_bytes;
    // END is fetched from the store in any case.
    let is_before_end = |position| position + HEADER_BYTES as u64 <= stream_bytes;
    let mut parser = StreamParser::new(expected_stream(backup));
    let mut proven = None;
    let mut unproven = VecDeque::<ProvenPart>::new();
    let mut next = ReadPoint(1);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if *stop.borrow() {
            return Err(ErrorKind::Interrupted.into());
        }
        let end = Some(entries.position(next))
            .filter(|end| next.0 < entries.count && is_before_end(*end));
        if end.is_none() && unproven.is_empty() {
            return Ok(proven);
        }
        let wanted = end.map_or(READ_BYTES as u64, |end| end - parser.position());
        let wanted = usize::try_from(wanted)
            .unwrap_or(READ_BYTES)
            .min(READ_BYTES);
        let bytes = match file.read(&mut buffer[..wanted]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        let fed = parser.feed(&buffer[..bytes]);
        while let Some(part) = unproven.pop_front_if(|part| part.position <= parser.proven_bytes())
        {
            proven = Some(part);
        }
        if bytes == 0 || fed.is_err() || parser.is_opaque() {
            return Ok(proven);
        }
        if end == Some(parser.position()) {
            unproven.push_back(ProvenPart {
                entry: next,
                position: parser.position(),
                parser: parser.clone(),
            });
            next.0 += 1;
        }
    }
}

impl ProvenPart {
    fn resumed(&self, backup: &RestoreBackup) -> ResumedReceive {
        ResumedReceive {
            id: backup.manifest.id.clone(),
            position: self.position,
            stream_bytes: backup.manifest.stream_bytes,
            fetch_bytes: Entries::of(backup).sealed_bytes_from(backup, self.entry),
        }
    }
}

/// Cuts the file back to the proven part, and writes the rest of the stream.
async fn write_rest(
    backup: &RestoreBackup,
    keys: &KeyFile,
    partial: &PartialFile,
    proven: Option<ProvenPart>,
    stop: &Stop,
) -> Result<(), RunError> {
    let proven = proven.unwrap_or_else(|| ProvenPart {
        entry: ReadPoint(0),
        position: 0,
        parser: StreamParser::new(expected_stream(backup)),
    });
    let cannot_write = || failed("write", &partial.path);
    let mut file = partial.file.try_clone().map_err(cannot_write())?;
    file.set_len(proven.position).map_err(cannot_write())?;
    let (mut reader, failure) = open_rest(
        backup,
        &keys.identities,
        proven.entry,
        proven.parser,
        stop.clone(),
    );
    let copied = blocking(move || {
        file.seek(SeekFrom::Start(proven.position))?;
        reader.copy_to(&mut file)
    })
    .await?;
    match take_failure(&failure) {
        Some(error) => Err(error),
        None => copied.map(drop).map_err(cannot_write()),
    }
}
