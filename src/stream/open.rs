//! Opens sealed chunks into stream bytes. No unauthenticated byte leaves this file.
//!
//! ```text
//! ChunkPieces (in order: head, length, hash) -> SealedPages (any thread, concurrently)
//!   -> PlainPages -> ChunkPlain (in order)
//! ```
//! The order matters. The head's hash is compared with the signed list before any key is used on
//! it. Each page's tag is verified before its bytes are passed on. The hash of the whole object is
//! verified before its last page is passed on.

use super::age_file::{AgeError, HEAD_BYTES_MAX, PAGE_BYTES, PageKey, TAG_BYTES, open_head};
use super::seal::SealedChunk;
use crate::model::Digest;
use bytes::BytesMut;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

const SEALED_PAGE_BYTES: usize = PAGE_BYTES + TAG_BYTES;
/// The number of stream bytes that are decompressed before they are passed on.
pub const RUN_BYTES: usize = 1 << 20;

/// The reason why a chunk does not open. Every reason means that the store returned other bytes
/// than were sealed and signed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The head differs from the one in the signed list.
    #[error("check the chunk's head: it is not the one that was signed")]
    Head,
    /// The hash of the object differs from the one in the signed list.
    #[error("check the chunk's BLAKE3: expected {expected}, got {actual}")]
    Digest {
        /// The hash in the signed list.
        expected: Digest,
        /// The hash of the received bytes.
        actual: Digest,
    },
    /// The object has more or fewer sealed bytes than were signed.
    #[error("check the chunk's length: expected {expected} bytes, got {actual}")]
    Length {
        /// The length in the signed list.
        expected: u64,
        /// The number of bytes received, at least.
        actual: u64,
    },
    /// The object opened to more or fewer stream bytes than were signed.
    #[error("check the chunk's stream length: expected {expected} bytes, got {actual}")]
    StreamLength {
        /// The length in the signed list.
        expected: u64,
        /// The number of stream bytes.
        actual: u64,
    },
    /// The sizes in the signed list are impossible for a chunk.
    #[error(
        "check the chunk's sizes: a head of {head_bytes} bytes in {sealed_bytes} is not possible"
    )]
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

/// Returns the ranges of pieces of `pages` whole pages; the first piece also has the head.
///
/// # Errors
/// [`OpenError::Sizes`] when the chunk's sizes are impossible.
pub fn piece_ranges(
    chunk: &SealedChunk,
    pages: u32,
) -> Result<impl Iterator<Item = Range<u64>> + use<>, OpenError> {
    piece_ranges_from(chunk, 0, pages)
}

/// As [`piece_ranges`], but starting at `page`, preceded by the head as a piece of its own.
///
/// # Errors
/// [`OpenError::Sizes`] when the chunk's sizes are impossible, or it has no such page.
pub fn piece_ranges_from(
    chunk: &SealedChunk,
    page: u64,
    pages: u32,
) -> Result<impl Iterator<Item = Range<u64>> + use<>, OpenError> {
    check_sizes(chunk)?;
    let head = u64::from(chunk.head.bytes);
    let sealed_bytes = chunk.sealed_bytes;
    let step = u64::from(pages.max(1)) * SEALED_PAGE_BYTES as u64;
    let begin = page_offset(chunk, page);
    if begin >= sealed_bytes {
        return Err(OpenError::Sizes {
            head_bytes: chunk.head.bytes,
            sealed_bytes,
        });
    }
    let (alone, start) = if page == 0 {
        (None, 0)
    } else {
        (Some(0..head), begin)
    };
    let first = start..begin.saturating_add(step).min(sealed_bytes);
    let next = move |range: &Range<u64>| {
        (range.end < sealed_bytes)
            .then(|| range.end..range.end.saturating_add(step).min(sealed_bytes))
    };
    Ok(alone
        .into_iter()
        .chain(std::iter::successors(Some(first), next)))
}

/// Returns the offset of a page in the object.
fn page_offset(chunk: &SealedChunk, page: u64) -> u64 {
    u64::from(chunk.head.bytes).saturating_add(page.saturating_mul(SEALED_PAGE_BYTES as u64))
}

fn check_sizes(chunk: &SealedChunk) -> Result<(), OpenError> {
    let head_bytes = chunk.head.bytes;
    let sealed_bytes = chunk.sealed_bytes;
    let body_bytes = sealed_bytes.checked_sub(u64::from(head_bytes));
    match head_bytes as usize > HEAD_BYTES_MAX
        || body_bytes.is_none_or(|bytes| bytes < TAG_BYTES as u64)
    {
        true => Err(OpenError::Sizes {
            head_bytes,
            sealed_bytes,
        }),
        false => Ok(()),
    }
}

/// Takes the pieces of one object in order, and passes them on as pages that may be opened.
pub struct ChunkPieces {
    expected: SealedChunk,
    identities: Arc<[age::x25519::Identity]>,
    key: Option<Arc<PageKey>>,
    next_page: u64,
    /// `None` if the object is not read from its start. Only the pages' own tags then authenticate
    /// the bytes, under the signed head.
    hasher: Option<blake3::Hasher>,
    sealed_bytes: u64,
}

/// Complete, sealed pages of a chunk whose head is authentic.
pub struct SealedPages {
    bytes: BytesMut,
    key: Arc<PageKey>,
    first_page: u64,
    /// Whether the last of these pages is the chunk's last page.
    last: bool,
}

/// Opened pages, in their original place.
pub struct PlainPages {
    bytes: BytesMut,
    last: bool,
}

impl ChunkPieces {
    /// Begins the chunk that the signed list describes.
    ///
    /// # Errors
    /// [`OpenError::Sizes`] when the chunk's sizes are impossible.
    pub fn new(
        expected: SealedChunk,
        identities: Arc<[age::x25519::Identity]>,
    ) -> Result<Self, OpenError> {
        check_sizes(&expected)?;
        let hasher = Some(blake3::Hasher::new());
        Ok(Self {
            expected,
            identities,
            key: None,
            next_page: 0,
            hasher,
            sealed_bytes: 0,
        })
    }

    /// Begins the chunk at a page in its middle, given its head. The pieces that follow are those
    /// of [`piece_ranges_from`] after the head.
    ///
    /// # Errors
    /// [`OpenError`] when the chunk's sizes are impossible, or its head is not the signed one or is
    /// for another key.
    pub fn from_page(
        expected: SealedChunk,
        head: &[u8],
        page: u64,
        identities: Arc<[age::x25519::Identity]>,
    ) -> Result<Self, OpenError> {
        check_sizes(&expected)?;
        if Digest::of(head) != expected.head.blake3 {
            return Err(OpenError::Head);
        }
        let key = Some(Arc::new(open_head(head, &identities)?));
        let sealed_bytes = page_offset(&expected, page);
        Ok(Self {
            expected,
            identities,
            key,
            next_page: page,
            hasher: None,
            sealed_bytes,
        })
    }

    /// Takes the next piece: the first has the whole head and possibly pages, every other has whole
    /// pages; the last one ends at the end of the object.
    ///
    /// # Errors
    /// [`OpenError`]: nothing of this piece may be used.
    pub fn take(&mut self, mut piece: BytesMut) -> Result<SealedPages, OpenError> {
        self.sealed_bytes += piece.len() as u64;
        let expected_bytes = self.expected.sealed_bytes;
        if self.sealed_bytes > expected_bytes {
            return Err(OpenError::Length {
                expected: expected_bytes,
                actual: self.sealed_bytes,
            });
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        let key = match &self.key {
            Some(key) => Arc::clone(key),
            None => {
                let head_bytes = (self.expected.head.bytes as usize).min(piece.len());
                let head = piece.split_to(head_bytes);
                if Digest::of(&head) != self.expected.head.blake3 {
                    return Err(OpenError::Head);
                }
                let key = Arc::new(open_head(&head, &self.identities)?);
                self.key = Some(Arc::clone(&key));
                key
            }
        };
        let last = self.sealed_bytes == expected_bytes;
        if last && let Some(hasher) = &self.hasher {
            let actual = Digest::from(hasher.finalize());
            if actual != self.expected.blake3 {
                return Err(OpenError::Digest {
                    expected: self.expected.blake3,
                    actual,
                });
            }
        }
        let first_page = self.next_page;
        self.next_page += piece.len().div_ceil(SEALED_PAGE_BYTES) as u64;
        Ok(SealedPages {
            bytes: piece,
            key,
            first_page,
            last,
        })
    }

    /// Checks that the object is complete.
    ///
    /// # Errors
    /// [`OpenError::Length`] when the object was cut.
    pub fn finish(self) -> Result<(), OpenError> {
        match self.sealed_bytes == self.expected.sealed_bytes {
            true => Ok(()),
            false => Err(OpenError::Length {
                expected: self.expected.sealed_bytes,
                actual: self.sealed_bytes,
            }),
        }
    }
}

impl SealedPages {
    /// Opens the pages in place.
    ///
    /// # Errors
    /// [`OpenError::Age`]: nothing of these pages may be used.
    pub fn open(mut self) -> Result<PlainPages, OpenError> {
        let count = self.bytes.len().div_ceil(SEALED_PAGE_BYTES);
        for (index, page) in self.bytes.chunks_mut(SEALED_PAGE_BYTES).enumerate() {
            let last = self.last && index + 1 == count;
            self.key.open(self.first_page + index as u64, page, last)?;
        }
        Ok(PlainPages {
            bytes: self.bytes,
            last: self.last,
        })
    }
}

impl PlainPages {
    /// The plaintext of each page, in order.
    pub fn pages(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes
            .chunks(SEALED_PAGE_BYTES)
            .map(|page| &page[..page.len().saturating_sub(TAG_BYTES)])
    }

    /// Returns the plaintext of one page, from 0; `None` after the last.
    pub fn page(&self, index: usize) -> Option<&[u8]> {
        let page = self.bytes.chunks(SEALED_PAGE_BYTES).nth(index)?;
        Some(&page[..page.len().saturating_sub(TAG_BYTES)])
    }

    /// Returns the memory of the pages, for reuse.
    pub fn into_buffer(self) -> BytesMut {
        self.bytes
    }

    /// Whether that page is the last one of its chunk.
    pub fn is_last(&self, index: usize) -> bool {
        self.last && index + 1 == self.bytes.len().div_ceil(SEALED_PAGE_BYTES)
    }
}

/// Counts the stream bytes of one chunk, and decompresses them if the chunk is compressed.
pub struct ChunkPlain {
    expected_bytes: u64,
    stream_bytes: u64,
    decompressor: Option<zstd::stream::write::Decoder<'static, Vec<u8>>>,
    done: bool,
}

impl ChunkPlain {
    /// Begins the chunk that the signed list describes.
    ///
    /// # Errors
    /// [`OpenError::Decompress`] when there is no memory for the decompressor.
    pub fn new(expected: &SealedChunk, compressed: bool) -> Result<Self, OpenError> {
        let decompressor = match compressed {
            true => {
                Some(zstd::stream::write::Decoder::new(Vec::new()).map_err(OpenError::Decompress)?)
            }
            false => None,
        };
        Ok(Self {
            expected_bytes: expected.stream_bytes,
            stream_bytes: 0,
            decompressor,
            done: false,
        })
    }

    /// Begins an uncompressed chunk at a page in its middle.
    #[must_use]
    pub fn from_page(expected: &SealedChunk, page: u64) -> Self {
        let stream_bytes = page.saturating_mul(PAGE_BYTES as u64);
        Self {
            expected_bytes: expected.stream_bytes,
            stream_bytes,
            decompressor: None,
            done: false,
        }
    }

    /// Counts a page of an uncompressed chunk, which is stream bytes as it is.
    ///
    /// # Errors
    /// [`OpenError::StreamLength`]; nothing of the page may then be passed on.
    pub fn pass(&mut self, page: &[u8], last: bool) -> Result<(), OpenError> {
        self.count(page.len())?;
        self.done = last;
        Ok(())
    }

    /// Takes the next bytes of a page and appends their stream bytes. A page may expand to any
    /// amount, so the call stops after about [`RUN_BYTES`], and returns how many bytes of the page
    /// it took.
    ///
    /// # Errors
    /// [`OpenError::Decompress`], [`OpenError::StreamLength`].
    pub fn take(
        &mut self,
        page: &[u8],
        last: bool,
        stream: &mut Vec<u8>,
    ) -> Result<usize, OpenError> {
        let before = stream.len();
        let mut taken = 0;
        match &mut self.decompressor {
            None => {
                stream.extend_from_slice(page);
                taken = page.len();
            }
            Some(decoder) => {
                while taken < page.len() && stream.len() - before < RUN_BYTES {
                    match decoder
                        .write(&page[taken..])
                        .map_err(OpenError::Decompress)?
                    {
                        0 => {
                            return Err(OpenError::Decompress(
                                std::io::ErrorKind::WriteZero.into(),
                            ));
                        }
                        bytes => taken += bytes,
                    }
                    stream.append(decoder.get_mut());
                }
                if last && taken == page.len() {
                    decoder.flush().map_err(OpenError::Decompress)?;
                    stream.append(decoder.get_mut());
                }
            }
        }
        self.count(stream.len() - before)?;
        self.done = last && taken == page.len();
        Ok(taken)
    }

    /// Checks that the chunk had the signed number of stream bytes.
    ///
    /// # Errors
    /// [`OpenError::StreamLength`] when the number differs.
    pub fn finish(self) -> Result<(), OpenError> {
        match self.done && self.stream_bytes == self.expected_bytes {
            true => Ok(()),
            false => Err(OpenError::StreamLength {
                expected: self.expected_bytes,
                actual: self.stream_bytes,
            }),
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), OpenError> {
        self.stream_bytes += bytes as u64;
        let expected = self.expected_bytes;
        let actual = self.stream_bytes;
        if actual > expected {
            Err(OpenError::StreamLength { expected, actual })
        } else {
            Ok(())
        }
    }
}
