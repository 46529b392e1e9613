//! A stream of `tank/data@recorded`, in the form of a file for `--stream-from`.

use zfs_backup::model::Guid;
use zfs_backup::stream::fletcher::ByteOrder;
use zfs_backup::stream::record::{BeginRecord, RecordWriter, StreamDatasetType, feature};

/// Begins the stream: full, or on a base.
pub(crate) fn writer(base_guid: Option<Guid>) -> RecordWriter {
    let begin = BeginRecord {
        order: ByteOrder::Little,
        feature_flags: feature::LARGE_BLOCKS,
        creation_time: 1_767_225_600,
        dataset_type: StreamDatasetType::Filesystem,
        flags: 0,
        snapshot_guid: Guid(0x5eed),
        base_guid,
        to_name: "tank/data@recorded".to_owned(),
        payload_bytes: 0,
    };
    RecordWriter::new(&begin, &[])
}
