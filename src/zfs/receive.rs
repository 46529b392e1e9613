//! Receiving: the kernel reads the stream from a pipe, on a thread that does nothing else, while
//! the calling thread copies the stream from its source into the pipe.
//!
//! The last 312 bytes are passed to the kernel only after the source has reported its end. They are
//! the END record, without which the kernel commits nothing: a source that detects damage only at
//! its end (by a checksum of the whole, for example) therefore still prevents the snapshot.

use super::call::ZfsCall;
use super::core::{self, CallOutcome, Libraries, ReceiveCall};
use super::nvlist::{NvList, c_string};
use super::outcome::failures;
use super::send::pipe;
use super::{ReceiveRequest, STREAM_TRUNCATED, ZfsError};
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, Builder};

/// The size of a record's header. The END record is a header alone.
const RECORD_BYTES: usize = 312;
/// The maximum number of bytes copied at once: the size of the pipe.
const COPY_BYTES: usize = 1 << 20;
/// The magic number of BEGIN, 0x2F5bacbac in the sender's byte order.
const BEGIN_MAGIC: u64 = 0x2_F5BA_CBAC;
const FEATURE_RAW: u64 = 1 << 24;
/// The header type of a single stream, as `lzc_send` makes it, in contrast to a package of several
/// streams.
const SUBSTREAM: u64 = 1;

/// The result of the receiving thread.
struct ReceiveEnd {
    errno: i32,
    error_flags: u64,
    failures: Result<Vec<(String, super::ZfsErrno)>, i32>,
    trailing: bool,
}

/// The result of the copying.
enum Copied {
    /// The whole stream was copied.
    Whole,
    /// The source failed.
    SourceFailed(Error),
    /// The kernel closed its side of the pipe: its verdict has the reason.
    PipeClosed,
    /// The pipe failed in another way.
    PipeFailed(Error),
}

/// Receives one stream; see [`super::Zfs::receive`].
///
/// A property that could not be set is an error although the snapshot was received; so are bytes
/// after END.
pub(super) fn receive(
    libraries: &'static Libraries,
    request: &ReceiveRequest,
    stream: &mut (dyn Read + Send),
) -> Result<(), ZfsError> {
    let call = ZfsCall::new("receive", &request.target);
    let begin = read_begin(request, stream)?;
    let raw = is_raw(request, &begin)?;
    let (reader, writer) = pipe().map_err(|error| call.failed(error))?;
    let (received, copied) = thread::scope(|scope| {
        let receive = move || receive_here(libraries, request, raw, begin, reader);
        let builder = Builder::new().name("zfs-receive".to_owned());
        let thread = builder
            .spawn_scoped(scope, receive)
            .map_err(|error| call.failed(error))?;
        // `copy` owns the write end: when it returns or panics, the kernel sees end of file.
        let copied = copy(stream, File::from(writer));
        let received = thread
            .join()
            .map_err(|_| call.failed(Error::other("its thread panicked")))?;
        Ok((received, copied))
    })?;
    verdict(&call, request, received, copied)
}

/// Reads the first record, which the kernel takes separately.
fn read_begin(
    request: &ReceiveRequest,
    stream: &mut (dyn Read + Send),
) -> Result<[u8; RECORD_BYTES], ZfsError> {
    let mut begin = [0; RECORD_BYTES];
    match stream.read_exact(&mut begin) {
        Ok(()) => Ok(begin),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            Err(ZfsCall::new("receive", &request.target).refused(STREAM_TRUNCATED))
        }
        Err(source) => Err(ZfsError::Source {
            subject: request.target.to_string(),
            source,
        }),
    }
}

/// Whether the stream is raw, which is an argument of the kernel's call. Accepts both byte orders.
fn is_raw(request: &ReceiveRequest, begin: &[u8; RECORD_BYTES]) -> Result<bool, ZfsError> {
    let call = ZfsCall::new("receive", format_args!("the stream for {}", request.target));
    let word = |at: usize| {
        begin
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; 8])
    };
    let read: fn([u8; 8]) -> u64 = match u64::from_le_bytes(word(8)) {
        BEGIN_MAGIC => u64::from_le_bytes,
        other if other.swap_bytes() == BEGIN_MAGIC => u64::from_be_bytes,
        _ => return Err(call.malformed("it does not begin as a send stream does")),
    };
    let version = read(word(16));
    if version & 3 != SUBSTREAM {
        return Err(
            call.malformed("it is a package of several streams, as `zfs send -R` makes them")
        );
    }
    Ok((version >> 2) & FEATURE_RAW != 0)
}

/// Receives on its own thread; closes the pipe when done, so that the copying side notices.
fn receive_here(
    libraries: &'static Libraries,
    request: &ReceiveRequest,
    raw: bool,
    begin: [u8; RECORD_BYTES],
    input: OwnedFd,
) -> ReceiveEnd {
    core::block_signals();
    let (outcome, error_flags) = call_receive(libraries, request, raw, begin, &input)
        .unwrap_or_else(|errno| (CallOutcome { errno, list: None }, 0));
    // The kernel stops reading at END. Any bytes left in the pipe once the source has ended are
    // excess.
    let trailing = outcome.errno == 0 && !matches!(File::from(input).read(&mut [0]), Ok(0));
    ReceiveEnd {
        errno: outcome.errno,
        error_flags,
        failures: failures(outcome.list),
        trailing,
    }
}

/// Calls the kernel with the stream on `input`. Fails without a call when the request does not fit
/// into the call's arguments.
fn call_receive(
    libraries: &'static Libraries,
    request: &ReceiveRequest,
    raw: bool,
    begin: [u8; RECORD_BYTES],
    input: &OwnedFd,
) -> Result<(CallOutcome, u64), i32> {
    let snapshot = c_string(&request.target.to_string())?;
    let properties = if request.properties.is_empty() {
        None
    } else {
        Some(NvList::of_properties(
            libraries.nvpair(),
            &request.properties,
        )?)
    };
    let call = ReceiveCall {
        snapshot: &snapshot,
        local_properties: properties.as_ref(),
        resumable: request.resumable,
        raw,
        input: input.as_fd(),
        begin,
    };
    Ok(libraries.receive(&call))
}

/// Copies all of the source into the pipe and closes it.
fn copy(source: &mut (dyn Read + Send), mut pipe: File) -> Copied {
    let mut buffer = vec![0; RECORD_BYTES + COPY_BYTES];
    let mut filled = 0;
    loop {
        // Space is left: at most RECORD_BYTES are filled here.
        let (kept, space) = buffer.split_at_mut(filled);
        let read = match source.read(space) {
            Ok(0) => return write_all(&mut pipe, kept).map_or_else(|end| end, |()| Copied::Whole),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Copied::SourceFailed(error),
        };
        filled += read;
        let ready = filled.saturating_sub(RECORD_BYTES);
        if let Err(end) = write_all(&mut pipe, &buffer[..ready]) {
            return end;
        }
        buffer.copy_within(ready..filled, 0);
        filled -= ready;
    }
}

fn write_all(pipe: &mut File, bytes: &[u8]) -> Result<(), Copied> {
    pipe.write_all(bytes).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Copied::PipeClosed,
        _ => Copied::PipeFailed(error),
    })
}

/// Returns the first cause: the source's error takes precedence over the kernel's error about a cut
/// stream, and the kernel's refusal over the closed pipe that it caused.
fn verdict(
    call: &ZfsCall,
    request: &ReceiveRequest,
    received: ReceiveEnd,
    copied: Copied,
) -> Result<(), ZfsError> {
    let too_long = || Err(call.malformed("the stream goes on after its END record"));
    match copied {
        Copied::SourceFailed(source) => {
            return Err(ZfsError::Source {
                subject: request.target.to_string(),
                source,
            });
        }
        Copied::PipeFailed(error) => return Err(call.failed(error)),
        Copied::PipeClosed | Copied::Whole if received.errno != 0 => {
            return Err(call.refused(received.errno));
        }
        Copied::PipeClosed => return too_long(),
        Copied::Whole if received.trailing => return too_long(),
        Copied::Whole => {}
    }
    let failures = received.failures.map_err(|errno| call.refused(errno))?;
    if !failures.is_empty() {
        return Err(ZfsError::Several {
            operation: "set on what was received",
            failures,
        });
    }
    match received.error_flags {
        0 => Ok(()),
        flags => Err(call.malformed(format!(
            "received, but its earlier properties were lost (flags {flags:#x})"
        ))),
    }
}
