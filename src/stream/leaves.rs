//! BLAKE3 of an object whose parts are sealed concurrently. The thread that seals a part also
//! hashes it, while it is in that core's cache.
//!
//! BLAKE3 is a binary tree over chunks of 1 KiB. A leaf here is a subtree of [`LEAF_BYTES`] that
//! begins at a multiple of that in the object. [`Leaves`] are the leaves that lie completely in one
//! part. [`LeafHasher`] takes the bytes around them in order, and joins all to the hash that
//! `b3sum` prints. The rules of joining are those of `blake3::hazmat`.

use crate::model::Digest;
use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use std::ops::Range;

/// The size of a leaf: small enough to be hashed from the cache, large enough for the widest
/// instructions, and equal to a page of age.
pub const LEAF_BYTES: usize = 64 << 10;

/// The leaves that lie completely in a run of an object's bytes, hashed from the front.
#[derive(Debug)]
pub struct Leaves {
    /// The range of the leaves in the run.
    range: Range<usize>,
    /// The offset of the first leaf in the object.
    offset: u64,
    sums: Vec<ChainingValue>,
}

impl Leaves {
    /// Describes the leaves of a run of `run_bytes` bytes that begins at `offset` in its object.
    #[must_use]
    pub fn of(offset: u64, run_bytes: usize) -> Self {
        // The first leaf of an object is not included: it may be the whole object, whose hash is
        // computed differently, and only [`LeafHasher`] knows the end.
        let first = offset.max(1).next_multiple_of(LEAF_BYTES as u64);
        let start = usize::try_from(first - offset)
            .unwrap_or(usize::MAX)
            .min(run_bytes);
        let end = start + (run_bytes - start) / LEAF_BYTES * LEAF_BYTES;
        Self {
            range: start..end,
            offset: first,
            sums: Vec::with_capacity((end - start) / LEAF_BYTES),
        }
    }

    /// Hashes the leaves that are complete in the run's first bytes. A later call with more bytes
    /// continues after the hashed leaves.
    pub fn advance(&mut self, run: &[u8]) {
        let begin = self.range.start + self.sums.len() * LEAF_BYTES;
        let rest = run
            .get(begin..self.range.end.min(run.len()))
            .unwrap_or_default();
        for leaf in rest.chunks_exact(LEAF_BYTES) {
            let offset = self.offset + (self.sums.len() * LEAF_BYTES) as u64;
            self.sums.push(
                Hasher::new()
                    .set_input_offset(offset)
                    .update(leaf)
                    .finalize_non_root(),
            );
        }
    }

    /// Returns the bytes of the run before the leaves, and the bytes after them.
    pub fn around<'a>(&self, run: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let Range { start, end } = self.range;
        (
            run.get(..start).unwrap_or(run),
            run.get(end..).unwrap_or_default(),
        )
    }

    fn are_hashed(&self) -> bool {
        self.sums.len() * LEAF_BYTES == self.range.len()
    }
}

/// Joins an object's bytes and leaves, in order.
#[derive(Debug, Clone, Default)]
pub struct LeafHasher {
    /// The leaf that is not complete yet, or that may still be the last one.
    open: Hasher,
    open_bytes: usize,
    /// The number of complete leaves before the open one.
    leaves: u64,
    /// The subtrees of these leaves, the largest first. Two subtrees of one size are joined only
    /// when more data follows, because the last two make the root.
    subtrees: Vec<ChainingValue>,
}

impl LeafHasher {
    /// Returns the number of bytes taken.
    pub fn bytes(&self) -> u64 {
        self.leaves * LEAF_BYTES as u64 + self.open_bytes as u64
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.open_bytes == LEAF_BYTES {
                self.close();
            }
            let (now, later) = bytes.split_at(bytes.len().min(LEAF_BYTES - self.open_bytes));
            self.open.update(now);
            self.open_bytes += now.len();
            bytes = later;
        }
    }

    /// Takes the next run of bytes, whose leaves were hashed elsewhere, with the bytes before and
    /// after the leaves. Returns whether the leaves are complete and belong at this position;
    /// otherwise no later hash is right.
    #[must_use]
    pub fn join(&mut self, before: &[u8], leaves: &Leaves, behind: &[u8]) -> bool {
        self.update(before);
        if !leaves.range.is_empty() {
            if self.bytes() != leaves.offset || !leaves.are_hashed() {
                return false;
            }
            if self.open_bytes > 0 {
                self.close();
            }
            leaves.sums.iter().for_each(|sum| self.push(*sum));
        }
        self.update(behind);
        true
    }

    /// Returns the hash of all bytes taken.
    #[must_use]
    pub fn finalize(mut self) -> Digest {
        // The first leaf is always taken as bytes, so a single leaf is still open here.
        let last = match self.open_bytes {
            0 => self.subtrees.pop(),
            _ => {
                self.settle();
                Some(self.open.finalize_non_root())
            }
        };
        let (Some(mut right), Some((first, lefts))) = (last, self.subtrees.split_first()) else {
            return self.open.finalize().into();
        };
        for left in lefts.iter().rev() {
            right = merge_subtrees_non_root(left, &right, Mode::Hash);
        }
        merge_subtrees_root(first, &right, Mode::Hash).into()
    }

    fn close(&mut self) {
        let sum = self.open.finalize_non_root();
        self.push(sum);
    }

    /// Joins subtrees of one size, because more data follows them.
    fn settle(&mut self) {
        while self.subtrees.len() > self.leaves.count_ones() as usize {
            let (Some(right), Some(left)) = (self.subtrees.pop(), self.subtrees.pop()) else {
                break;
            };
            self.subtrees
                .push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
    }

    fn push(&mut self, sum: ChainingValue) {
        self.settle();
        self.subtrees.push(sum);
        self.leaves += 1;
        self.open = Hasher::new();
        self.open.set_input_offset(self.leaves * LEAF_BYTES as u64);
        self.open_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(bytes: usize) -> Vec<u8> {
        (0_u32..)
            .take(bytes)
            .map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0])
            .collect()
    }

    /// Hashes each run on its own, out of order, in steps, and joins them.
    fn by_runs(whole: &[u8], lengths: &[usize], step: usize) -> Digest {
        let (mut runs, mut at) = (Vec::new(), 0);
        for length in lengths.iter().copied().chain([whole.len()]) {
            let run = &whole[at..(at + length).min(whole.len())];
            runs.push((at as u64, run));
            at += run.len();
        }
        let hash = |(offset, run): &(u64, &[u8])| {
            let mut leaves = Leaves::of(*offset, run.len());
            (0..run.len())
                .step_by(step)
                .for_each(|ready| leaves.advance(&run[..ready]));
            leaves.advance(run);
            leaves
        };
        let leaves: Vec<Leaves> = runs.iter().rev().map(hash).collect();
        let mut hasher = LeafHasher::default();
        for ((_, run), leaves) in runs.iter().zip(leaves.iter().rev()) {
            let (before, behind) = leaves.around(run);
            assert!(hasher.join(before, leaves, behind));
        }
        assert_eq!(hasher.bytes(), whole.len() as u64);
        hasher.finalize()
    }

    #[test]
    fn leaf_hash_equals_blake3_at_every_length_around_leaf_borders() {
        let whole = content(9 * LEAF_BYTES + 2);
        for leaves in 0..=9 {
            for length in [-2_i64, -1, 0, 1, 2, 1023, 1024, 1025] {
                let Ok(length) = usize::try_from(leaves * LEAF_BYTES as i64 + length) else {
                    continue;
                };
                let Some(whole) = whole.get(..length) else {
                    continue;
                };
                let expected = Digest::from(blake3::hash(whole));
                let mut hasher = LeafHasher::default();
                hasher.update(whole);
                assert_eq!(hasher.finalize(), expected, "{length} bytes at once");
                assert_eq!(
                    by_runs(whole, &[], LEAF_BYTES),
                    expected,
                    "{length} bytes as one run"
                );
                let halves = [length / 2];
                assert_eq!(
                    by_runs(whole, &halves, 100_000),
                    expected,
                    "{length} bytes as two runs"
                );
                let aligned = [LEAF_BYTES; 10];
                assert_eq!(
                    by_runs(whole, &aligned, LEAF_BYTES),
                    expected,
                    "{length} bytes leaf by leaf"
                );
            }
        }
    }

    #[test]
    fn leaves_at_another_offset_or_not_hashed_yet_are_not_joined() {
        let whole = content(3 * LEAF_BYTES);
        let joins = |before: &[u8], ready: usize| {
            let mut leaves = Leaves::of(0, whole.len());
            leaves.advance(&whole[..ready]);
            let (first, behind) = leaves.around(&whole);
            let mut hasher = LeafHasher::default();
            hasher.update(before);
            hasher.join(first, &leaves, behind)
        };
        assert!(joins(b"", whole.len()));
        assert!(!joins(b"x", whole.len()));
        assert!(!joins(b"", whole.len() - 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn leaf_hash_of_any_runs_equals_blake3_of_the_whole_object(
            length in 0_usize..40 * LEAF_BYTES,
            lengths in prop::collection::vec(prop_oneof![0_usize..200_000, Just(2 * LEAF_BYTES), Just(1 << 20)], 0..12),
            step in 1000_usize..300_000,
        ) {
            let whole = content(length);
            prop_assert_eq!(by_runs(&whole, &lengths, step), Digest::from(blake3::hash(&whole)));
        }
    }
}
