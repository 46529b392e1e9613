//! [`ChunkOpener`]: a sealed chunk becomes stream bytes again. Nothing unauthentic leaves it.
//!
//! The order matters: the head's hash is compared with the signed list before any key touches it; each page's tag is
//! checked before its bytes go on; the hash of the whole object is checked before its last page goes on.

use super::age_file::{AgeError, HEAD_BYTES_MAX, PAGE_BYTES, PageKey, TAG_BYTES, open_head};
use super::seal::SealedChunk;
use crate::model::Digest;
use std::io::Write;
use std::sync::Arc;

/// Why a chunk does not open. Each means that what the store gave is not what was sealed and signed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The head is not the one that the signed list names.
    #[error("check the chunk's head: it is not the one that was signed")]
    Head,
    /// The whole is not what the signed list names.
    #[error("check the chunk's BLAKE3: expected {expected}, got {actual}")]
    Digest {
        /// From the signed list.
        expected: Digest,
        /// Of the bytes that came.
        actual: Digest,
    },
    /// More or fewer sealed bytes than were signed.
    #[error("check the chunk's length: expected {expected} bytes, got {actual}")]
    Length {
        /// From the signed list.
        expected: u64,
        /// What came, at least.
        actual: u64,
    },
    /// It opened to more or fewer stream bytes than were signed.
    #[error("check the chunk's stream length: expected {expected} bytes, got {actual}")]
    StreamLength {
        /// From the signed list.
        expected: u64,
        /// What came out.
        actual: u64,
    },
    /// The sizes in the signed list cannot be those of a chunk.
    #[error("check the chunk's sizes: a head of {head_bytes} bytes in {sealed_bytes} is not possible")]
    Sizes {
        /// The head's size.
        head_bytes: u32,
        /// The object's size.
        sealed_bytes: u64,
    },
    /// The key does not fit, or a page was changed.
    #[error(transparent)]
    Age(#[from] AgeError),
    /// The frame inside does not decompress.
    #[error("decompress the chunk")]
    Decompress(#[source] std::io::Error),
}

/// Opens one chunk from its bytes, in order and in any pieces.
pub struct ChunkOpener {
    expected: SealedChunk,
    identities: Arc<[age::x25519::Identity]>,
    key: Option<PageKey>,
    next_page: u64,
    hasher: blake3::Hasher,
    pending: Vec<u8>,
    sealed_bytes: u64,
    decompressor: Option<zstd::stream::write::Decoder<'static, Vec<u8>>>,
    stream_bytes: u64,
    done: bool,
}

impl ChunkOpener {
    /// Begins to open the chunk that the signed list describes.
    ///
    /// # Errors
    /// [`OpenError::Sizes`] when its sizes are impossible.
    pub fn new(
        expected: SealedChunk,
        compressed: bool,
        identities: Arc<[age::x25519::Identity]>,
    ) -> Result<Self, OpenError> {
        let (head_bytes, sealed_bytes) = (expected.head.bytes, expected.sealed_bytes);
        let body_bytes = sealed_bytes.checked_sub(u64::from(head_bytes));
        if head_bytes as usize > HEAD_BYTES_MAX || body_bytes.is_none_or(|bytes| bytes < TAG_BYTES as u64) {
            return Err(OpenError::Sizes { head_bytes, sealed_bytes });
        }
        let decompressor = match compressed {
            true => Some(zstd::stream::write::Decoder::new(Vec::new()).map_err(OpenError::Decompress)?),
            false => None,
        };
        Ok(Self {
            expected,
            identities,
            key: None,
            next_page: 0,
            hasher: blake3::Hasher::new(),
            pending: Vec::with_capacity(PAGE_BYTES + TAG_BYTES),
            sealed_bytes: 0,
            decompressor,
            stream_bytes: 0,
            done: false,
        })
    }

    /// Takes sealed bytes and appends the stream bytes that are now sure to `stream`.
    ///
    /// # Errors
    /// [`OpenError`]; what was appended before is authentic, nothing more may follow.
    pub fn write(&mut self, mut sealed: &[u8], stream: &mut Vec<u8>) -> Result<(), OpenError> {
        self.sealed_bytes += sealed.len() as u64;
        if self.sealed_bytes > self.expected.sealed_bytes {
            return Err(OpenError::Length { expected: self.expected.sealed_bytes, actual: self.sealed_bytes });
        }
        self.hasher.update(sealed);
        while !sealed.is_empty() {
            let wanted = self.piece_bytes();
            let taken = sealed.len().min(wanted - self.pending.len());
            self.pending.extend_from_slice(&sealed[..taken]);
            sealed = &sealed[taken..];
            let last = sealed.is_empty() && self.sealed_bytes == self.expected.sealed_bytes;
            if self.pending.len() == wanted || last {
                self.take_piece(last, stream)?;
            }
        }
        Ok(())
    }

    /// Checks that the chunk came whole.
    ///
    /// # Errors
    /// [`OpenError::Length`] when it was cut, [`OpenError::StreamLength`] when it holds another run of the stream.
    pub fn finish(self) -> Result<(), OpenError> {
        if !self.done {
            return Err(OpenError::Length { expected: self.expected.sealed_bytes, actual: self.sealed_bytes });
        }
        if self.stream_bytes != self.expected.stream_bytes {
            return Err(OpenError::StreamLength { expected: self.expected.stream_bytes, actual: self.stream_bytes });
        }
        Ok(())
    }

    fn piece_bytes(&self) -> usize {
        if self.key.is_none() { self.expected.head.bytes as usize } else { PAGE_BYTES + TAG_BYTES }
    }

    fn take_piece(&mut self, last: bool, stream: &mut Vec<u8>) -> Result<(), OpenError> {
        let mut piece = std::mem::take(&mut self.pending);
        match &mut self.key {
            None => {
                if Digest::of(&piece) != self.expected.head.blake3 {
                    return Err(OpenError::Head);
                }
                self.key = Some(open_head(&piece, &self.identities)?);
            }
            Some(key) => {
                if last {
                    let actual = Digest::from(self.hasher.finalize());
                    if actual != self.expected.blake3 {
                        return Err(OpenError::Digest { expected: self.expected.blake3, actual });
                    }
                }
                let page = self.next_page;
                self.next_page += 1;
                let plain_bytes = key.open(page, &mut piece, last)?.len();
                piece.truncate(plain_bytes);
                self.take_plain(&piece, last, stream)?;
            }
        }
        self.done = last;
        piece.clear();
        self.pending = piece;
        Ok(())
    }

    fn take_plain(&mut self, plain: &[u8], last: bool, stream: &mut Vec<u8>) -> Result<(), OpenError> {
        let before = stream.len();
        match &mut self.decompressor {
            None => stream.extend_from_slice(plain),
            Some(decoder) => {
                decoder.write_all(plain).map_err(OpenError::Decompress)?;
                if last {
                    decoder.flush().map_err(OpenError::Decompress)?;
                }
                stream.append(decoder.get_mut());
            }
        }
        self.stream_bytes += (stream.len() - before) as u64;
        if self.stream_bytes > self.expected.stream_bytes {
            return Err(OpenError::StreamLength { expected: self.expected.stream_bytes, actual: self.stream_bytes });
        }
        Ok(())
    }
}
