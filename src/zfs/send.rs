//! Sending: the kernel writes the stream into a pipe, on a thread that does nothing else.

use super::attempt::Attempt;
use super::core::{self, Libraries};
use super::real::{send_flag_bits, send_names};
use super::{SendRequest, SendStream, ZfsError};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::fs::File;
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::Builder;

/// The largest pipe that an ordinary user may have (`/proc/sys/fs/pipe-max-size`): one that holds
/// several records lets kernel and reader work at once. Where it is refused, the default of 64 KiB
/// serves.
const PIPE_BYTES: usize = 1 << 20;

/// A pipe that no child inherits, enlarged while it is empty (later the kernel may lock up on it):
/// the end to read, the end to write. Both block; ZFS takes a full pipe that does not block for an
/// error.
pub(super) fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    enlarge_pipe(&writer);
    Ok((reader, writer))
}

/// Lets a pipe hold more. A smaller one is slower and nothing else, and what is no pipe stays as it
/// is.
pub fn enlarge_pipe(pipe: impl AsFd) {
    let _ = fcntl_setpipe_size(pipe, PIPE_BYTES);
}

/// Starts a send. Dropping the reader cancels it: the kernel's next write fails, and the verdict
/// says so (EINTR or EPIPE). A send that finds nothing to write for a while notices that late.
pub(super) fn start(
    libraries: &'static Libraries,
    request: &SendRequest,
) -> Result<SendStream, ZfsError> {
    let attempt = Attempt::new("send", &request.snapshot);
    let (snapshot, base) = send_names(request).map_err(|errno| attempt.refused(errno))?;
    let flags = send_flag_bits(request.flags);
    let resume = request.resume.map(|resume| (resume.object, resume.offset));
    let (reader, writer) = pipe().map_err(|error| attempt.failed(error))?;
    // The thread owns the end to write, so that it is closed, and the reader sees the end, however
    // the thread ends.
    let send = move || {
        core::block_signals();
        let errno = libraries.send(&snapshot, base.as_deref(), writer.as_fd(), flags, resume);
        drop(writer);
        errno
    };
    let thread = Builder::new()
        .name("zfs-send".to_owned())
        .spawn(send)
        .map_err(|error| attempt.failed(error))?;
    let verdict = move || match thread.join() {
        Ok(errno) => attempt.verdict(errno),
        Err(_) => Err(attempt.failed(Error::other("its thread panicked"))),
    };
    Ok(SendStream::new(
        Box::new(File::from(reader)),
        Box::new(verdict),
    ))
}
