//! Sending: the kernel writes the stream into a pipe, on a thread that does nothing else.

use super::call::ZfsCall;
use super::core::{self, Libraries};
use super::nvlist::c_string;
use super::{SendBase, SendFlags, SendRequest, SendStream, ZfsError, sys};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::ffi::CString;
use std::fs::File;
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::Builder;

/// The largest pipe that an ordinary user may have (`/proc/sys/fs/pipe-max-size`). A pipe that
/// holds several records lets kernel and reader work in parallel. If the kernel refuses this size,
/// the pipe keeps the default of 64 KiB.
const PIPE_BYTES: usize = 1 << 20;

/// Makes a close-on-exec pipe and enlarges it while it is empty (a later resize can lock up the
/// kernel's writer). Returns the read end and the write end. Both block, because ZFS takes a full
/// non-blocking pipe for an error.
pub(super) fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    enlarge_pipe(&writer);
    Ok((reader, writer))
}

/// Enlarges a pipe. Failure is ignored: a smaller pipe is only slower, and a descriptor that is no
/// pipe stays as it is.
pub fn enlarge_pipe(pipe: impl AsFd) {
    let _ = fcntl_setpipe_size(pipe, PIPE_BYTES);
}

/// Starts a send. Dropping the reader cancels the send: the kernel's next write fails, and the
/// verdict is EINTR or EPIPE. A send that has nothing to write for a while notices the cancellation
/// late.
pub(super) fn start(
    libraries: &'static Libraries,
    request: &SendRequest,
) -> Result<SendStream, ZfsError> {
    let call = ZfsCall::new("send", &request.snapshot);
    let (snapshot, base) = send_names(request).map_err(|errno| call.refused(errno))?;
    let flags = send_flag_bits(request.flags);
    let resume = request.resume.map(|resume| (resume.object, resume.offset));
    let (reader, writer) = pipe().map_err(|error| call.failed(error))?;
    // The thread owns the write end, so that the pipe is closed and the reader sees end of file
    // however the thread ends.
    let send = move || {
        core::block_signals();
        let errno = libraries.send(&snapshot, base.as_deref(), writer.as_fd(), flags, resume);
        drop(writer);
        errno
    };
    let thread = Builder::new()
        .name("zfs-send".to_owned())
        .spawn(send)
        .map_err(|error| call.failed(error))?;
    let verdict = move || match thread.join() {
        Ok(errno) => call.verdict(errno),
        Err(_) => Err(call.failed(Error::other("its thread panicked"))),
    };
    Ok(SendStream::new(
        Box::new(File::from(reader)),
        Box::new(verdict),
    ))
}

/// Returns the flag bits for `lzc_send`.
pub(super) fn send_flag_bits(flags: SendFlags) -> u32 {
    [
        (flags.raw, sys::LZC_SEND_FLAG_RAW),
        (flags.compressed, sys::LZC_SEND_FLAG_COMPRESS),
        (flags.embedded, sys::LZC_SEND_FLAG_EMBED_DATA),
        (flags.large_blocks, sys::LZC_SEND_FLAG_LARGE_BLOCK),
    ]
    .iter()
    .fold(
        0,
        |bits, (wanted, bit)| if *wanted { bits | bit } else { bits },
    )
}

/// Returns the name of a base.
pub(super) fn base_name(base: &SendBase) -> String {
    match base {
        SendBase::Snapshot(name) => name.to_string(),
        SendBase::Bookmark(name) => name.to_string(),
    }
}

/// Returns the names of the snapshot to send and of its base.
pub(super) fn send_names(request: &SendRequest) -> Result<(CString, Option<CString>), i32> {
    let base = request
        .base
        .as_ref()
        .map(|base| c_string(&base_name(base)))
        .transpose()?;
    Ok((c_string(&request.snapshot.to_string())?, base))
}
