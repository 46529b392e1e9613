//! `PartFiller`: puts plaintext into part buffers, with gaps for the tags, so that every page can
//! be sealed in place on any thread, and nothing is copied between the pipe and the socket.
//!
//! ```text
//! part | head or end of a page | page | tag | .. | page | tag | beginning of a page |
//! ```
//! A page that would cross the end of a part is gathered outside the parts (the bridge), sealed at
//! once and copied into both. A page can be sealed only when it is known whether it is the last
//! one. A full bridge therefore waits for one more byte, which is read into a separate buffer
//! (ahead).

use super::age_file::{AgeError, PAGE_BYTES, PageKey, TAG_BYTES};
use super::leaves::Leaves;
use super::part::{PartBuffer, PartPool};
use super::seal_error::SealError;
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;

const SEALED_PAGE_BYTES: usize = PAGE_BYTES + TAG_BYTES;

/// The receiver of filled parts, in order.
pub type FilledSink<'a> = &'a mut dyn FnMut(FilledPart) -> Result<(), SealError>;
/// The memory into which bytes may be read, in order.
pub type ReadBuffers<'a> = Vec<IoSliceMut<'a>>;

/// A part whose pages are in place and still plain.
pub struct FilledPart {
    buffer: PartBuffer,
    key: Arc<PageKey>,
    pages: Pages,
    /// Whether the part's last page in place is the last page of the chunk.
    last: bool,
    /// The offset of the part in the chunk.
    offset: u64,
}

/// A part as it is stored.
pub struct SealedPart {
    /// The bytes of the part.
    pub buffer: PartBuffer,
    /// The hashes of the subtrees that lie completely in this part.
    pub leaves: Leaves,
}

/// The pages in place in one part.
#[derive(Debug, Clone, Copy, Default)]
struct Pages {
    /// The offset of the first page in the part.
    start: usize,
    /// The number of the first page in the chunk.
    first: u64,
    /// The number of full pages that fit.
    most: usize,
    /// Plaintext bytes so far. All pages but the last are full.
    plain_bytes: usize,
}

impl Pages {
    /// Returns the pages that fit into the rest of a part, leaving at least one byte: the end of a
    /// part always belongs to a bridge.
    fn behind(buffer: &PartBuffer, first: u64) -> Self {
        let most = buffer.room().saturating_sub(1) / SEALED_PAGE_BYTES;
        Self {
            start: buffer.len(),
            first,
            most,
            plain_bytes: 0,
        }
    }

    fn count(&self) -> usize {
        self.plain_bytes.div_ceil(PAGE_BYTES)
    }

    fn room(&self) -> usize {
        self.most * PAGE_BYTES - self.plain_bytes
    }

    /// Returns the offset of their end, including tags.
    fn end(&self) -> usize {
        self.start + self.plain_bytes + self.count() * TAG_BYTES
    }

    fn next(&self) -> u64 {
        self.first + self.count() as u64
    }
}

impl FilledPart {
    /// Seals the pages in place, and hashes them while they are in the cache.
    ///
    /// # Errors
    /// [`AgeError::Page`] never happens.
    pub fn seal(mut self) -> Result<SealedPart, AgeError> {
        let Pages {
            start,
            first,
            plain_bytes,
            ..
        } = self.pages;
        let count = self.pages.count();
        let mut leaves = Leaves::of(self.offset, self.buffer.len());
        for index in 0..count {
            let begin = start + index * SEALED_PAGE_BYTES;
            let end = begin + PAGE_BYTES.min(plain_bytes - index * PAGE_BYTES);
            let (plain, gap) = self.buffer.space()[begin..].split_at_mut(end - begin);
            let last = self.last && index + 1 == count;
            let tag = self.key.seal(first + index as u64, plain, last)?;
            gap[..TAG_BYTES].copy_from_slice(&tag);
            leaves.advance(&self.buffer.whole()[..end + TAG_BYTES]);
        }
        leaves.advance(self.buffer.as_ref());
        Ok(SealedPart {
            buffer: self.buffer,
            leaves,
        })
    }
}

/// A page outside the parts.
struct SidePage {
    bytes: Vec<u8>,
    filled: usize,
}

impl SidePage {
    fn new() -> Self {
        Self {
            bytes: vec![0; PAGE_BYTES],
            filled: 0,
        }
    }
}

/// Fills the parts of one chunk.
pub(super) struct PartFiller {
    key: Arc<PageKey>,
    pool: PartPool,
    /// The head of the chunk, until the first part begins.
    pending: Vec<u8>,
    part: Option<(PartBuffer, Pages)>,
    bridge: SidePage,
    ahead: SidePage,
    next_page: u64,
    /// Bytes of the chunk in the parts that were handed over.
    handed_bytes: u64,
}

/// The destination of the next bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Part,
    Bridge,
    Ahead,
}

impl PartFiller {
    pub(super) fn new(head: Vec<u8>, key: PageKey, pool: PartPool) -> Self {
        let bridge = SidePage::new();
        let ahead = SidePage::new();
        Self {
            key: Arc::new(key),
            pool,
            pending: head,
            part: None,
            bridge,
            ahead,
            next_page: 0,
            handed_bytes: 0,
        }
    }

    /// Copies bytes into the parts.
    pub(super) fn write(
        &mut self,
        mut plain: &[u8],
        sink: FilledSink<'_>,
    ) -> Result<(), SealError> {
        while !plain.is_empty() {
            let mut taken = 0;
            for mut place in self.places(plain.len(), sink)? {
                let bytes = place.len();
                place.copy_from_slice(&plain[taken..taken + bytes]);
                taken += bytes;
            }
            self.advance(taken, sink)?;
            plain = &plain[taken..];
        }
        Ok(())
    }

    /// Returns memory for at most `bytes_max` bytes, and for at least one byte unless `bytes_max`
    /// is 0. May wait for a free buffer.
    pub(super) fn places(
        &mut self,
        bytes_max: usize,
        sink: FilledSink<'_>,
    ) -> Result<ReadBuffers<'_>, SealError> {
        if self.part.is_none() {
            self.begin_part(sink)?;
        }
        let ranges = self.ranges(bytes_max);
        let Self {
            part,
            bridge,
            ahead,
            ..
        } = self;
        let mut rest = part
            .as_mut()
            .map(|(buffer, _)| buffer.space())
            .unwrap_or_default();
        let mut bridge = Some(&mut bridge.bytes);
        let mut ahead = Some(&mut ahead.bytes);
        let mut at = 0;
        let mut places = Vec::with_capacity(ranges.len());
        for (place, range) in ranges {
            let side = match place {
                Destination::Part => {
                    let (_, from) = std::mem::take(&mut rest).split_at_mut(range.start - at);
                    let (wanted, behind) = from.split_at_mut(range.len());
                    (rest, at) = (behind, range.end);
                    places.push(IoSliceMut::new(wanted));
                    continue;
                }
                Destination::Bridge => bridge.take(),
                Destination::Ahead => ahead.take(),
            };
            places.extend(side.map(|side| IoSliceMut::new(&mut side[range])));
        }
        Ok(places)
    }

    /// Returns the first `bytes` bytes of the memory that [`Self::places`] returned last, with
    /// their current content.
    pub(super) fn read_there(&self, bytes: usize) -> impl Iterator<Item = &[u8]> {
        self.ranges(bytes)
            .into_iter()
            .map(|(place, range)| match (place, &self.part) {
                (Destination::Part, Some((buffer, _))) => &buffer.whole()[range],
                (Destination::Bridge, _) => &self.bridge.bytes[range],
                _ => &self.ahead.bytes[range],
            })
    }

    /// Accepts this many of the bytes that were written to the memory that [`Self::places`]
    /// returned last.
    pub(super) fn advance(&mut self, bytes: usize, sink: FilledSink<'_>) -> Result<(), SealError> {
        for (place, range) in self.ranges(bytes) {
            match (place, &mut self.part) {
                (Destination::Part, Some((_, pages))) => pages.plain_bytes += range.len(),
                (Destination::Bridge, _) => self.bridge.filled += range.len(),
                _ => {
                    self.seal_bridge(false, sink)?;
                    let ahead = std::mem::take(&mut self.ahead.bytes);
                    let written = self.write(&ahead[range], sink);
                    self.ahead.bytes = ahead;
                    written?;
                }
            }
        }
        Ok(())
    }

    /// Hands over the remaining parts.
    pub(super) fn finish(mut self, sink: FilledSink<'_>) -> Result<(), SealError> {
        if self.part.is_none() {
            self.begin_part(sink)?;
        }
        let in_place = self
            .part
            .as_ref()
            .is_some_and(|(_, pages)| pages.plain_bytes > 0);
        let last_in_place = in_place && self.bridge.filled == 0;
        if !last_in_place {
            self.seal_bridge(true, sink)?;
        }
        match self.part.take() {
            Some((buffer, pages)) => self.hand_over(buffer, pages, last_in_place, sink),
            None => Ok(()),
        }
    }

    /// Returns the destinations of the next bytes, in order: pages in place, then the bridge; ahead
    /// only when all of these are full.
    fn ranges(&self, bytes_max: usize) -> Vec<(Destination, Range<usize>)> {
        let mut ranges = Vec::new();
        let mut left = bytes_max;
        if let Some((_, pages)) = &self.part {
            let mut plain_bytes = pages.plain_bytes;
            let mut room = pages.room();
            while left > 0 && room > 0 {
                let page = plain_bytes / PAGE_BYTES;
                let within = plain_bytes % PAGE_BYTES;
                let at = pages.start + page * SEALED_PAGE_BYTES + within;
                let taken = (PAGE_BYTES - within).min(left);
                ranges.push((Destination::Part, at..at + taken));
                (plain_bytes, room, left) = (plain_bytes + taken, room - taken, left - taken);
            }
        }
        let bridge_room = PAGE_BYTES - self.bridge.filled;
        if left > 0 && bridge_room > 0 {
            ranges.push((
                Destination::Bridge,
                self.bridge.filled..self.bridge.filled + left.min(bridge_room),
            ));
        } else if left > 0 && ranges.is_empty() {
            ranges.push((Destination::Ahead, 0..left.min(PAGE_BYTES)));
        }
        ranges
    }

    /// Seals the page outside the parts and copies it into them.
    fn seal_bridge(&mut self, last: bool, sink: FilledSink<'_>) -> Result<(), SealError> {
        let page = self
            .part
            .as_ref()
            .map_or(self.next_page, |(_, pages)| pages.next());
        let mut bytes = std::mem::take(&mut self.bridge.bytes);
        let plain = &mut bytes[..std::mem::take(&mut self.bridge.filled)];
        let tag = self.key.seal(page, plain, last)?;
        self.next_page = page + 1;
        if let Some((buffer, pages)) = &mut self.part {
            buffer.set_len(pages.end());
        }
        let copied = self.copy(plain, sink).and_then(|()| self.copy(&tag, sink));
        self.bridge.bytes = bytes;
        copied?;
        self.place_pages();
        Ok(())
    }

    fn begin_part(&mut self, sink: FilledSink<'_>) -> Result<(), SealError> {
        let head = std::mem::take(&mut self.pending);
        self.copy(&head, sink)?;
        if self.part.is_none() {
            self.part = Some((self.empty_part()?, Pages::default()));
        }
        self.place_pages();
        Ok(())
    }

    fn empty_part(&self) -> Result<PartBuffer, SealError> {
        self.pool.take().map_err(SealError::Memory)
    }

    /// Begins the pages of a part after the bytes that were copied into it, if the part has no
    /// pages yet.
    fn place_pages(&mut self) {
        if let Some((buffer, pages)) = &mut self.part
            && pages.plain_bytes == 0
        {
            *pages = Pages::behind(buffer, self.next_page);
        }
    }

    /// Appends sealed bytes, to as many parts as necessary.
    fn copy(&mut self, mut sealed: &[u8], sink: FilledSink<'_>) -> Result<(), SealError> {
        while !sealed.is_empty() {
            let (mut buffer, pages) = match self.part.take() {
                Some(part) => part,
                None => (self.empty_part()?, Pages::default()),
            };
            sealed = &sealed[buffer.fill(sealed)..];
            match buffer.room() {
                0 => self.hand_over(buffer, pages, false, sink)?,
                _ => self.part = Some((buffer, pages)),
            }
        }
        Ok(())
    }

    fn hand_over(
        &mut self,
        mut buffer: PartBuffer,
        pages: Pages,
        last: bool,
        sink: FilledSink<'_>,
    ) -> Result<(), SealError> {
        buffer.set_len(buffer.len().max(pages.end()));
        let offset = self.handed_bytes;
        self.handed_bytes += buffer.len() as u64;
        match buffer.is_empty() {
            true => Ok(()),
            false => sink(FilledPart {
                buffer,
                key: Arc::clone(&self.key),
                pages,
                last,
                offset,
            }),
        }
    }
}
