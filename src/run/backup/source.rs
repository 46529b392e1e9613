//! The send stream of an attempt: its flags, and where it comes from.

use super::BackupSettings;
use crate::run::transfer::StreamSource;
use crate::zfs::{Dataset, SendFlags, SendRequest, SendResume, SendStream, ZfsError, ZfsSend};
use std::sync::Arc;

/// Returns the send flags that the settings require for this dataset.
pub fn send_flags(local: &Dataset, settings: &BackupSettings) -> SendFlags {
    let raw = settings.raw.is_raw(local.encrypted);
    SendFlags {
        raw,
        compressed: settings.compressed,
        embedded: settings.embedded,
        large_blocks: true,
    }
}

/// Returns the names of the flags that are set, as manifests have them.
pub(super) fn flag_names(flags: SendFlags) -> Vec<String> {
    let SendFlags {
        raw,
        compressed,
        embedded,
        large_blocks,
    } = flags;
    let named = [
        (raw, "raw"),
        (compressed, "compressed"),
        (embedded, "embedded"),
        (large_blocks, "large-blocks"),
    ];
    named
        .into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// Sends one snapshot, again from a resume point if the send was interrupted.
pub(super) struct SendSource {
    pub(super) zfs: Arc<dyn ZfsSend>,
    pub(super) request: SendRequest,
}

impl StreamSource for SendSource {
    fn open(&self, resume: Option<SendResume>) -> Result<SendStream, ZfsError> {
        self.zfs.send(&SendRequest {
            resume,
            ..self.request.clone()
        })
    }
}
