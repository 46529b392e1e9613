//! [`ChunkSealer`]: a run of stream bytes becomes one sealed chunk - optional zstd, then age, hashed on the way out.
//! Its exact inverse is [`crate::stream::open::ChunkOpener`].

use super::age_file::{AgeError, PAGE_BYTES, PageKey, TAG_BYTES, new_head};
use super::part::{PartBuffer, PartPool};
use crate::model::Digest;
use bytes::Bytes;
use std::io::Write;

/// Whether and how the stream is compressed before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// zstd at this level, one frame a chunk.
    Zstd {
        /// 1 to 19.
        level: i32,
    },
}

/// The part of a sealed chunk that is authenticated before a key touches it: age header and payload nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHead {
    /// How long it is.
    pub bytes: u32,
    /// Its hash.
    pub blake3: Digest,
}

/// What is known of a chunk once it is sealed whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedChunk {
    /// Bytes of stream in it.
    pub stream_bytes: u64,
    /// Bytes of the object.
    pub sealed_bytes: u64,
    /// The hash of the object.
    pub blake3: Digest,
    /// Its head.
    pub head: ChunkHead,
}

/// Why a chunk could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Encryption failed.
    #[error(transparent)]
    Age(#[from] AgeError),
    /// Compression failed.
    #[error("compress the stream")]
    Compress(#[source] std::io::Error),
    /// Nobody takes the parts any more.
    #[error("hand over a sealed part: the upload has stopped")]
    Stopped,
}

/// Where finished parts go. Returns `false` when nobody wants them any more.
pub type PartSink<'a> = &'a mut dyn FnMut(Bytes) -> bool;

/// Seals one chunk. Parts leave as soon as they are full; all but the last have the pool's part size.
pub struct ChunkSealer {
    pages: PageWriter,
    compressor: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    stream_bytes: u64,
    head: ChunkHead,
}

impl ChunkSealer {
    /// Begins a chunk for these recipients.
    ///
    /// # Errors
    /// [`SealError`] when there is no recipient, or the level is not one of zstd's.
    pub fn new(
        recipients: &[age::x25519::Recipient],
        compression: Compression,
        pool: &PartPool,
    ) -> Result<Self, SealError> {
        let (head, key) = new_head(recipients)?;
        let compressor = match compression {
            Compression::None => None,
            Compression::Zstd { level } => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level).map_err(SealError::Compress)?;
                encoder.include_checksum(true).map_err(SealError::Compress)?;
                Some(encoder)
            }
        };
        let head_of = ChunkHead { bytes: u32::try_from(head.len()).unwrap_or(u32::MAX), blake3: Digest::of(&head) };
        let pages = PageWriter::new(key, pool.clone(), head);
        Ok(Self { pages, compressor, stream_bytes: 0, head: head_of })
    }

    /// Takes stream bytes, in any pieces.
    ///
    /// # Errors
    /// [`SealError::Stopped`] when the sink wants no more.
    pub fn write(&mut self, stream: &[u8], sink: PartSink<'_>) -> Result<(), SealError> {
        self.stream_bytes += stream.len() as u64;
        match &mut self.compressor {
            None => self.pages.write(stream, sink),
            Some(encoder) => {
                encoder.write_all(stream).map_err(SealError::Compress)?;
                let compressed = std::mem::take(encoder.get_mut());
                self.pages.write(&compressed, sink)
            }
        }
    }

    /// Seals what is left, hands over the last part and says what the chunk is.
    ///
    /// # Errors
    /// As for [`ChunkSealer::write`].
    pub fn finish(mut self, sink: PartSink<'_>) -> Result<SealedChunk, SealError> {
        if let Some(encoder) = self.compressor.take() {
            let rest = encoder.finish().map_err(SealError::Compress)?;
            self.pages.write(&rest, sink)?;
        }
        let (sealed_bytes, blake3) = self.pages.finish(sink)?;
        Ok(SealedChunk { stream_bytes: self.stream_bytes, sealed_bytes, blake3, head: self.head })
    }
}

/// Cuts plaintext into pages, seals them, and fills parts of uniform size with the result.
struct PageWriter {
    key: PageKey,
    pool: PartPool,
    page: Vec<u8>,
    part: Option<PartBuffer>,
    pending_head: Vec<u8>,
    hasher: blake3::Hasher,
    sealed_bytes: u64,
}

impl PageWriter {
    fn new(key: PageKey, pool: PartPool, head: Vec<u8>) -> Self {
        let page = Vec::with_capacity(PAGE_BYTES + TAG_BYTES);
        Self { key, pool, page, part: None, pending_head: head, hasher: blake3::Hasher::new(), sealed_bytes: 0 }
    }

    fn write(&mut self, mut plain: &[u8], sink: PartSink<'_>) -> Result<(), SealError> {
        while !plain.is_empty() {
            // A full page is sealed only when more follows: the last one carries a flag.
            if self.page.len() == PAGE_BYTES {
                self.seal_page(false, sink)?;
            }
            let taken = plain.len().min(PAGE_BYTES - self.page.len());
            self.page.extend_from_slice(&plain[..taken]);
            plain = &plain[taken..];
        }
        Ok(())
    }

    fn finish(mut self, sink: PartSink<'_>) -> Result<(u64, Digest), SealError> {
        self.seal_page(true, sink)?;
        if let Some(part) = self.part.take() {
            hand_over(part, sink)?;
        }
        Ok((self.sealed_bytes, self.hasher.finalize().into()))
    }

    fn seal_page(&mut self, last: bool, sink: PartSink<'_>) -> Result<(), SealError> {
        let head = std::mem::take(&mut self.pending_head);
        self.emit(&head, sink)?;
        let mut page = std::mem::take(&mut self.page);
        self.key.seal(&mut page, last)?;
        self.emit(&page, sink)?;
        page.clear();
        self.page = page;
        Ok(())
    }

    fn emit(&mut self, mut sealed: &[u8], sink: PartSink<'_>) -> Result<(), SealError> {
        self.hasher.update(sealed);
        self.sealed_bytes += sealed.len() as u64;
        while !sealed.is_empty() {
            let part = self.part.get_or_insert_with(|| self.pool.take());
            sealed = &sealed[part.fill(sealed)..];
            if part.room() == 0
                && let Some(full) = self.part.take()
            {
                hand_over(full, sink)?;
            }
        }
        Ok(())
    }
}

fn hand_over(part: PartBuffer, sink: PartSink<'_>) -> Result<(), SealError> {
    if sink(part.freeze()) { Ok(()) } else { Err(SealError::Stopped) }
}
