//! Sizes that a test chooses: the estimate of a send, and the space that is left.

use super::FakeZfs;
use crate::model::DatasetName;
use crate::zfs::PropertyValue;

impl FakeZfs {
    /// Sets the estimate of every send from now on, whatever the stream has.
    pub fn set_estimate(&self, bytes: u64) {
        self.lock().state.estimate_bytes = Some(bytes);
    }

    /// Sets the estimate of every full from now on.
    pub fn set_full_estimate(&self, bytes: u64) {
        self.lock().state.full_estimate_bytes = Some(bytes);
    }

    /// Sets the space that is left for a dataset and those below it, as a full pool or a quota
    /// does.
    pub fn set_available(&self, dataset: &DatasetName, bytes: u64) {
        self.set_property(dataset, "available", PropertyValue::Number(bytes));
    }
}
