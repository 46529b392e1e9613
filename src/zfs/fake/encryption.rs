//! Encrypted datasets, and their IV sets, which old versions of OpenZFS lost.

use super::FakeZfs;
use crate::model::{DatasetName, SnapshotName};

impl FakeZfs {
    /// Marks an existing dataset as encrypted, with its key loaded or not.
    pub fn set_encrypted(&self, dataset: &DatasetName, key_unavailable: bool) {
        if let Ok(dataset) = self.lock().state.get_mut(dataset) {
            (dataset.encrypted, dataset.key_unavailable) = (true, key_unavailable);
        }
    }

    /// Takes the IV-set guid from all bookmarks of a dataset, as OpenZFS up to 2.1.5 did when it
    /// made them.
    pub fn lose_ivsets_of_bookmarks(&self, dataset: &DatasetName) {
        if let Ok(dataset) = self.lock().state.get_mut(dataset) {
            let bookmarks = dataset.bookmarks.values_mut();
            bookmarks.for_each(|bookmark| bookmark.ivset_guid = 0);
        }
    }

    /// Takes the IV-set guid from a snapshot, as from those that were taken before 0.8.1.
    pub fn lose_ivset_of(&self, snapshot: &SnapshotName) {
        let state = &mut self.lock().state;
        if let Some(guid) = state.snapshot(snapshot).map(|snapshot| snapshot.guid) {
            state.without_ivset.insert(guid);
        }
    }

    /// Lists bookmarks without their IV-set guids from now on.
    pub fn hide_ivsets(&self) {
        self.lock().state.shows_ivsets = false;
    }
}
