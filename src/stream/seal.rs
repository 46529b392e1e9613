//! Seals a run of stream bytes into one chunk: optional zstd, then age, with the sealed bytes
//! hashed.
//!
//! ```text
//! ChunkFiller (in order) -> FilledPart (any thread, concurrently: sealed, hashed)
//!   -> ChunkHasher (in order: joined)
//! ```
//! The exact inverse is [`crate::stream::open`].

use super::age_file::{PAGE_BYTES, new_head};
use super::fill::{FilledSink, PartFiller, ReadBuffers, SealedPart};
use super::leaves::LeafHasher;
use super::part::{PartBuffer, PartPool};
pub use super::seal_error::SealError;
use crate::model::Digest;
use zstd::stream::raw::{Encoder, Operation};
use zstd::zstd_safe::{CParameter, InBuffer, OutBuffer};

/// The size of a zstd job, the input that one thread compresses at once; each thread adds about
/// four times this size to memory. A job begins with a part of the window before it, an eighth at
/// the lower levels, so much smaller jobs would repeat much work. From level 16 on that part is
/// half the window or all of it, and zstd makes its jobs no shorter: up to 8 MiB.
const COMPRESSION_JOB_BYTES: u32 = 1 << 20;

/// The compression of the stream before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkCompression {
    /// No compression.
    None,
    /// zstd at this level, with one frame per chunk.
    Zstd {
        /// The level, 1 to 19.
        level: i32,
        /// The window in which repetitions are found, in bits: 24 is 16 MiB. `None` means the
        /// level's own window.
        long: Option<u32>,
    },
}

/// The part of a sealed chunk that is authenticated before a key is used on it: age header and
/// payload nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHead {
    /// The length of the head in bytes.
    pub bytes: u32,
    /// The hash of the head.
    pub blake3: Digest,
}

/// The sizes and hashes of a completely sealed chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedChunk {
    /// Bytes of the stream in the chunk.
    pub stream_bytes: u64,
    /// Bytes of the object.
    pub sealed_bytes: u64,
    /// The hash of the object.
    pub blake3: Digest,
    /// The head of the chunk.
    pub head: ChunkHead,
}

/// Joins the hashes of the sealed parts of one chunk, in order.
#[derive(Default)]
pub struct ChunkHasher {
    hasher: LeafHasher,
}

impl ChunkHasher {
    /// Takes the next part, and returns its bytes.
    ///
    /// # Errors
    /// [`SealError::Misplaced`] when the part is not the next one.
    pub fn take(&mut self, part: SealedPart) -> Result<PartBuffer, SealError> {
        let SealedPart { buffer, leaves } = part;
        let (before, behind) = leaves.around(buffer.as_ref());
        match self.hasher.join(before, &leaves, behind) {
            true => Ok(buffer),
            false => Err(SealError::Misplaced),
        }
    }

    /// Returns the description of the chunk, after all its parts were taken.
    pub fn finish(self, filled: FilledChunk) -> SealedChunk {
        let FilledChunk { stream_bytes, head } = filled;
        SealedChunk {
            stream_bytes,
            sealed_bytes: self.hasher.bytes(),
            blake3: self.hasher.finalize(),
            head,
        }
    }
}

/// The facts of a chunk whose bytes were all taken, sealed or not.
#[derive(Debug, Clone, Copy)]
pub struct FilledChunk {
    stream_bytes: u64,
    head: ChunkHead,
}

/// Takes the stream bytes of one chunk, compresses them if requested, and fills parts whose pages
/// are sealed later.
pub struct ChunkFiller {
    parts: PartFiller,
    compressor: Option<Encoder<'static>>,
    stream_bytes: u64,
    head: ChunkHead,
}

impl ChunkFiller {
    /// Begins a chunk for these recipients. zstd uses `threads` threads of its own, or none if the
    /// number is 1.
    ///
    /// # Errors
    /// [`SealError`] when there is no recipient, or the level is not one of zstd's.
    pub fn new(
        recipients: &[age::x25519::Recipient],
        compression: ChunkCompression,
        threads: u32,
        pool: &PartPool,
    ) -> Result<Self, SealError> {
        let (head, key) = new_head(recipients)?;
        let compressor = match compression {
            ChunkCompression::None => None,
            ChunkCompression::Zstd { level, long } => {
                Some(compressor(level, long, threads).map_err(SealError::Compress)?)
            }
        };
        let head_of = ChunkHead {
            bytes: u32::try_from(head.len()).unwrap_or(u32::MAX),
            blake3: Digest::of(&head),
        };
        Ok(Self {
            parts: PartFiller::new(head, key, pool.clone()),
            compressor,
            stream_bytes: 0,
            head: head_of,
        })
    }

    /// Takes stream bytes, in slices of any length.
    ///
    /// # Errors
    /// The errors of the sink, and [`SealError::Compress`].
    pub fn write(&mut self, stream: &[u8], sink: FilledSink<'_>) -> Result<(), SealError> {
        self.stream_bytes += stream.len() as u64;
        match &mut self.compressor {
            None => self.parts.write(stream, sink),
            Some(encoder) => {
                let mut input = InBuffer::around(stream);
                while input.pos() < stream.len() {
                    compress(&mut self.parts, sink, |output| {
                        encoder.run(&mut input, output)
                    })?;
                }
                Ok(())
            }
        }
    }

    /// Whether stream bytes can be read directly into the parts. Not possible if they are
    /// compressed first.
    pub fn reads_in_place(&self) -> bool {
        self.compressor.is_none()
    }

    /// Returns memory into which at most `bytes_max` of the stream may be read, if nothing is
    /// compressed. May wait for a free buffer.
    ///
    /// # Errors
    /// The errors of the sink.
    pub fn places(
        &mut self,
        bytes_max: usize,
        sink: FilledSink<'_>,
    ) -> Result<ReadBuffers<'_>, SealError> {
        self.parts.places(bytes_max, sink)
    }

    /// Returns the first `bytes` bytes that were read into the memory that [`Self::places`]
    /// returned last.
    pub fn read_there(&self, bytes: usize) -> impl Iterator<Item = &[u8]> {
        self.parts.read_there(bytes)
    }

    /// Accepts this many of the bytes that were read there.
    ///
    /// # Errors
    /// The errors of the sink.
    pub fn advance(&mut self, bytes: usize, sink: FilledSink<'_>) -> Result<(), SealError> {
        self.stream_bytes += bytes as u64;
        self.parts.advance(bytes, sink)
    }

    /// Hands over the remaining parts, and returns the facts of the chunk.
    ///
    /// # Errors
    /// As for [`ChunkFiller::write`].
    pub fn finish(mut self, sink: FilledSink<'_>) -> Result<FilledChunk, SealError> {
        if let Some(mut encoder) = self.compressor.take() {
            while compress(&mut self.parts, sink, |output| encoder.finish(output, true))? > 0 {}
        }
        self.parts.finish(sink)?;
        Ok(FilledChunk {
            stream_bytes: self.stream_bytes,
            head: self.head,
        })
    }
}

/// Lets `work` write compressed bytes directly into a part, and returns the result of `work`.
fn compress(
    parts: &mut PartFiller,
    sink: FilledSink<'_>,
    work: impl FnOnce(&mut OutBuffer<'_, [u8]>) -> std::io::Result<usize>,
) -> Result<usize, SealError> {
    let mut places = parts.places(PAGE_BYTES, sink)?;
    let place = places.first_mut().map_or(&mut [][..], |place| &mut **place);
    let mut output = OutBuffer::around(place);
    let left = work(&mut output).map_err(SealError::Compress)?;
    let bytes = output.pos();
    parts.advance(bytes, sink)?;
    Ok(left)
}

/// Makes a compressor that writes one frame with its own checksum.
fn compressor(level: i32, long: Option<u32>, threads: u32) -> std::io::Result<Encoder<'static>> {
    let mut encoder = Encoder::new(level)?;
    encoder.set_parameter(CParameter::ChecksumFlag(true))?;
    if let Some(bits) = long {
        encoder.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
        encoder.set_parameter(CParameter::WindowLog(bits))?;
    }
    if threads > 1 {
        encoder.set_parameter(CParameter::NbWorkers(threads))?;
        // Without this parameter a job is four windows long, 32 MiB at level 19, and each thread
        // has several jobs.
        encoder.set_parameter(CParameter::JobSize(COMPRESSION_JOB_BYTES))?;
    }
    Ok(encoder)
}
