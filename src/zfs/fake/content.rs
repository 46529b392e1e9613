//! The content of a dataset: numbered files in blocks, each of which knows the transaction group in
//! which it was written. Incrementals are made from these numbers alone, as in ZFS, so the base may
//! have been destroyed long before.

use std::collections::BTreeMap;

/// The size of a file's blocks. The last block may be shorter; a stream pads it with zeroes.
pub(super) const BLOCK_BYTES: usize = 4096;

/// A block of a file: its object, its index, and the transaction group in which it was written. The
/// snapshots and clones that share the block have the same three numbers.
pub(super) type Block = (u64, usize, u64);

/// A file of the fake.
#[derive(Debug, Clone)]
pub(super) struct FakeFile {
    data: Vec<u8>,
    changed_txg: u64,
    block_txgs: Vec<u64>,
}

/// All files by object number, and the transaction groups in which the free object numbers were
/// freed.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    files: BTreeMap<u64, FakeFile>,
    freed_txgs: BTreeMap<u64, u64>,
}

/// Returns a block's bytes without padding.
fn block_of(data: &[u8], index: usize) -> &[u8] {
    let start = (index * BLOCK_BYTES).min(data.len());
    &data[start..(start + BLOCK_BYTES).min(data.len())]
}

impl FakeFile {
    /// Returns the length in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Returns the number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.block_txgs.len()
    }

    /// Returns offset and padded block of each block written after `txg`, from block `first` on.
    pub(super) fn blocks_after(
        &self,
        txg: u64,
        first: usize,
    ) -> impl Iterator<Item = (usize, Vec<u8>)> {
        let newer = self
            .block_txgs
            .iter()
            .enumerate()
            .skip(first)
            .filter(move |(_, birth)| **birth > txg);
        newer.map(|(index, _)| {
            let mut block = block_of(&self.data, index).to_vec();
            block.resize(BLOCK_BYTES, 0);
            (index * BLOCK_BYTES, block)
        })
    }

    /// Returns the transaction group in which a block was written.
    pub(super) fn birth(&self, index: usize) -> Option<u64> {
        self.block_txgs.get(index).copied()
    }

    /// Whether the file changed after `txg`.
    pub(super) fn is_newer_than(&self, txg: u64) -> bool {
        self.changed_txg > txg
    }
}

impl Content {
    /// Replaces a file; unchanged blocks keep their transaction group.
    pub(super) fn write(&mut self, object: u64, data: Vec<u8>, txg: u64) {
        let old = self.files.remove(&object);
        let birth = |index: usize| {
            let kept = old.as_ref().filter(|old| {
                index < old.blocks() && block_of(&old.data, index) == block_of(&data, index)
            });
            kept.map_or(txg, |old| old.block_txgs[index])
        };
        let block_txgs = (0..data.len().div_ceil(BLOCK_BYTES)).map(birth).collect();
        self.freed_txgs.remove(&object);
        self.files.insert(
            object,
            FakeFile {
                data,
                changed_txg: txg,
                block_txgs,
            },
        );
    }

    /// Sets the length of a file; makes the file if it does not exist.
    pub(super) fn resize(&mut self, object: u64, bytes: usize, txg: u64) {
        let mut data = self
            .files
            .get(&object)
            .map(|file| file.data.clone())
            .unwrap_or_default();
        data.resize(bytes, 0);
        self.write(object, data, txg);
    }

    /// Writes into an existing file; bytes beyond its length are dropped. Returns false if the file
    /// does not exist.
    pub(super) fn write_at(&mut self, object: u64, offset: usize, bytes: &[u8], txg: u64) -> bool {
        let Some(file) = self.files.get_mut(&object) else {
            return false;
        };
        let end = (offset + bytes.len()).min(file.data.len());
        if offset < end {
            file.data[offset..end].copy_from_slice(&bytes[..end - offset]);
            file.block_txgs[offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)].fill(txg);
            file.changed_txg = txg;
        }
        true
    }

    /// Removes a file, if it exists.
    pub(super) fn remove(&mut self, object: u64, txg: u64) {
        if self.files.remove(&object).is_some() {
            self.freed_txgs.insert(object, txg);
        }
    }

    /// Removes all files with `count` numbers from `first` on.
    pub(super) fn remove_range(&mut self, first: u64, count: u64, txg: u64) {
        let objects: Vec<u64> = self
            .files
            .range(first..first.saturating_add(count))
            .map(|(object, _)| *object)
            .collect();
        objects
            .into_iter()
            .for_each(|object| self.remove(object, txg));
    }

    /// Returns the files by number.
    pub(super) fn files(&self) -> impl Iterator<Item = (u64, &FakeFile)> {
        self.files.iter().map(|(object, file)| (*object, file))
    }

    /// Returns the numbers freed after `txg`.
    pub(super) fn freed_after(&self, txg: u64) -> impl Iterator<Item = u64> {
        self.freed_txgs
            .iter()
            .filter(move |(_, freed)| **freed > txg)
            .map(|(object, _)| *object)
    }

    /// Returns a file, if it exists.
    pub(super) fn file(&self, object: u64) -> Option<&FakeFile> {
        self.files.get(&object)
    }

    /// Whether anything changed after `txg`.
    pub(super) fn is_newer_than(&self, txg: u64) -> bool {
        self.files.values().any(|file| file.is_newer_than(txg))
            || self.freed_after(txg).next().is_some()
    }

    /// Returns the bytes written after `txg`: at least 1 when anything changed.
    pub(super) fn bytes_after(&self, txg: u64) -> u64 {
        let blocks: usize = self
            .files
            .values()
            .map(|file| file.block_txgs.iter().filter(|at| **at > txg).count())
            .sum();
        ((blocks * BLOCK_BYTES) as u64).max(u64::from(self.is_newer_than(txg)))
    }

    /// Returns the sum of all lengths in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.data.len() as u64).sum()
    }

    /// Returns a copy of all files.
    pub(super) fn to_files(&self) -> BTreeMap<u64, Vec<u8>> {
        self.files
            .iter()
            .map(|(object, file)| (*object, file.data.clone()))
            .collect()
    }
}
