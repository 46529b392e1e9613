//! Part buffers from a fixed pool: the only backpressure between the sealer and the uploads, and
//! the limit on memory.
//!
//! Each buffer is a mapping of its own, with huge pages if the system has them: every byte of a
//! stream is copied into a buffer and out of it, and with pages of 4 KiB a backup takes 4 % more
//! processor time.

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A fixed number of equal buffers. Cloning shares the pool.
#[derive(Clone)]
pub struct PartPool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    part_bytes: usize,
}

struct State {
    /// The free buffers. A buffer that was never taken has no memory yet.
    free: Vec<Option<MmapMut>>,
    /// The numbers of the request that is next, and of the next new request: buffers are given out
    /// in the order of the requests, so that a fast taker cannot starve another one.
    serving: u64,
    requests: u64,
}

/// A buffer on loan. Dropping it returns it to its pool, also if it is the owner behind a
/// [`Bytes`].
pub struct PartBuffer {
    /// The memory, as long as a part.
    memory: Option<MmapMut>,
    /// The length of the content in bytes.
    filled: usize,
    pool: Arc<Shared>,
}

impl PartPool {
    /// Makes a pool of `buffers` buffers of `part_bytes` each. Memory is allocated when a buffer is
    /// first filled.
    pub fn new(buffers: usize, part_bytes: usize) -> Self {
        let state = State {
            free: (0..buffers).map(|_| None).collect(),
            serving: 0,
            requests: 0,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
                part_bytes,
            }),
        }
    }

    /// Returns an empty buffer; blocks until one is free. Call it from a blocking thread only.
    ///
    /// # Errors
    /// The system has no memory for a buffer that was never taken before.
    pub fn take(&self) -> io::Result<PartBuffer> {
        let memory = self.shared.take();
        let mut buffer = PartBuffer {
            memory,
            filled: 0,
            pool: Arc::clone(&self.shared),
        };
        if buffer.memory.is_none() {
            buffer.memory = Some(map(self.shared.part_bytes)?);
        }
        Ok(buffer)
    }
}

impl Shared {
    /// Takes a free buffer when it is the turn of this request.
    fn take(&self) -> Option<MmapMut> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let request = state.requests;
        state.requests += 1;
        loop {
            if state.serving == request
                && let Some(memory) = state.free.pop()
            {
                state.serving += 1;
                self.changed.notify_all();
                return memory;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Maps memory, which the system zeroes when it is first touched.
fn map(bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes)?;
    // A mapping without huge pages works as well, only slower.
    let _ = memory.advise(Advice::HugePage);
    Ok(memory)
}

impl PartBuffer {
    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.whole().len() - self.filled
    }

    /// Whether the content is empty.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Returns the length of the content.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Appends as much of `bytes` as fits and returns how much that was.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        let filled = self.filled;
        self.space()[filled..][..taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        taken
    }

    /// Returns the whole buffer, for writing at any offset.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().unwrap_or_default()
    }

    /// Returns the whole buffer, for reading.
    pub(super) fn whole(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }

    /// Sets the length of the content that was written into [`PartBuffer::space`].
    pub(super) fn set_len(&mut self, filled: usize) {
        self.filled = filled.min(self.whole().len());
    }

    /// Returns the content as bytes that can be sent more than once; the buffer returns to the pool
    /// with the last clone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PartBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.whole()[..self.filled]
    }
}

impl Drop for PartBuffer {
    fn drop(&mut self) {
        let state = &self.pool.state;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free.push(self.memory.take());
        self.pool.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_buffer_comes_back_only_when_its_last_clone_is_gone() {
        let pool = PartPool::new(1, 4);
        let mut buffer = pool.take().unwrap();
        assert_eq!(buffer.fill(b"abcdef"), 4);
        let bytes = buffer.freeze();
        let clone = bytes.clone();
        drop(bytes);
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiter = pool.clone();
        let thread = std::thread::spawn(move || sender.send(waiter.take().unwrap().is_empty()));
        assert!(
            receiver.recv_timeout(Duration::from_millis(50)).is_err(),
            "taken while a clone was alive"
        );
        drop(clone);
        assert_eq!(receiver.recv_timeout(Duration::from_secs(60)), Ok(true));
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn part_buffer_that_cannot_be_allocated_is_an_error_and_never_a_wait() {
        let pool = PartPool::new(1, isize::MAX.unsigned_abs());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || (0..3).for_each(|_| sender.send(pool.take().is_err()).unwrap()));
        for _ in 0..3 {
            assert_eq!(receiver.recv_timeout(Duration::from_secs(60)), Ok(true));
        }
    }
}
