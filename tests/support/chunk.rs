//! Seals or opens one chunk on the calling thread. A transfer and a restore distribute the same
//! steps over several threads.

use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use zfs_backup::stream::age_file::{PAGE_BYTES, TAG_BYTES};
use zfs_backup::stream::fill::FilledPart;
use zfs_backup::stream::open::{ChunkPieces, ChunkPlain, OpenError};
use zfs_backup::stream::part::PartPool;
use zfs_backup::stream::seal::{
    ChunkCompression, ChunkFiller, ChunkHasher, SealError, SealedChunk,
};

const SEALED_PAGE_BYTES: usize = PAGE_BYTES + TAG_BYTES;

/// Seals the pieces of a stream as one chunk. `take` gets each part as soon as it is full.
pub(crate) fn seal_chunk<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    recipients: &[age::x25519::Recipient],
    compression: ChunkCompression,
    pool: &PartPool,
    take: &mut dyn FnMut(Bytes),
) -> Result<SealedChunk, SealError> {
    let mut hasher = ChunkHasher::default();
    let mut hand_over = |part: FilledPart| {
        take(hasher.take(part.seal()?)?.freeze());
        Ok(())
    };
    let mut filler = ChunkFiller::new(recipients, compression, 1, pool)?;
    for piece in pieces {
        filler.write(piece, &mut hand_over)?;
    }
    let filled = filler.finish(&mut hand_over)?;
    Ok(hasher.finish(filled))
}

/// Opens one chunk from its bytes, in order and in any pieces.
pub(crate) struct ChunkOpener {
    chunk: SealedChunk,
    pieces: ChunkPieces,
    plain: ChunkPlain,
    /// The number of bytes handed on.
    taken_bytes: u64,
    /// The length of the next piece, unless the object ends earlier.
    wanted: usize,
    pending: BytesMut,
}

impl ChunkOpener {
    /// Begins to open the chunk that the signed list describes.
    pub(crate) fn new(
        chunk: SealedChunk,
        compressed: bool,
        identities: Arc<[age::x25519::Identity]>,
    ) -> Result<Self, OpenError> {
        let (pieces, plain) = (
            ChunkPieces::new(chunk, identities)?,
            ChunkPlain::new(&chunk, compressed)?,
        );
        let wanted = chunk.head.bytes as usize + SEALED_PAGE_BYTES;
        Ok(Self {
            chunk,
            pieces,
            plain,
            taken_bytes: 0,
            wanted,
            pending: BytesMut::new(),
        })
    }

    /// Takes sealed bytes and appends the stream bytes that are now authenticated. After an error
    /// nothing more may be passed.
    pub(crate) fn write(
        &mut self,
        mut sealed: &[u8],
        stream: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        while !sealed.is_empty() {
            let expected = self.chunk.sealed_bytes;
            let wanted = usize::try_from(expected - self.taken_bytes)
                .unwrap_or(usize::MAX)
                .min(self.wanted);
            if wanted == 0 {
                return Err(OpenError::Length {
                    expected,
                    actual: expected + sealed.len() as u64,
                });
            }
            let (piece, rest) = sealed.split_at(sealed.len().min(wanted - self.pending.len()));
            self.pending.extend_from_slice(piece);
            sealed = rest;
            if self.pending.len() == wanted {
                self.open_pending(stream)?;
            }
        }
        Ok(())
    }

    fn open_pending(&mut self, stream: &mut Vec<u8>) -> Result<(), OpenError> {
        self.taken_bytes += self.pending.len() as u64;
        self.wanted = SEALED_PAGE_BYTES;
        let pages = self
            .pieces
            .take(std::mem::take(&mut self.pending))?
            .open()?;
        for (index, mut page) in pages.pages().enumerate() {
            let mut more = true;
            while more {
                page = &page[self.plain.take(page, pages.is_last(index), stream)?..];
                more = !page.is_empty();
            }
        }
        Ok(())
    }

    /// Checks that the chunk is complete.
    pub(crate) fn finish(self) -> Result<(), OpenError> {
        self.pieces.finish()?;
        self.plain.finish()
    }
}
