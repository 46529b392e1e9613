//! Objects from a spool: the SHA-1 of the whole is known before the first byte is sent, and is kept
//! with the file.

use super::Shared;
use crate::store::hash::HashKind;
use crate::store::multipart::MultipartWriter;
use crate::store::spool::SpoolError;
use crate::store::{Evidence, ObjectKey, PartWriter, SpoolFile, StoreError};
use std::sync::Arc;

/// Puts an object from a spool: in one request if it fits into one part, else as a large file.
pub(super) async fn put_spooled(
    shared: &Arc<Shared>,
    key: &ObjectKey,
    file: &SpoolFile,
) -> Result<Evidence, StoreError> {
    let failed = |error: SpoolError| error.in_store(key, &shared.url);
    let large = if file.part_count() > 1 {
        let sha1 = file.hash(HashKind::Sha1).await.map_err(failed)?.hex();
        let patience = &shared.settings.patience;
        let begin = || shared.begin_large(key, Some(&sha1));
        Some(patience.wait_out(begin).await?)
    } else {
        None
    };
    let mut writer = Box::new(MultipartWriter::new(shared, key, large));
    for index in 0..file.part_count() {
        let handed_over = match file.read_part(index).await {
            Ok(part) => writer.put_part(part).await,
            Err(error) => Err(failed(error)),
        };
        if let Err(error) = handed_over {
            // The first failure is returned to the caller; `unfinished` finds parts that remain.
            let _ = writer.abort().await;
            return Err(error);
        }
    }
    writer.finish().await
}
