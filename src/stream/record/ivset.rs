//! [`IvSetCheck`]: whether ZFS can receive a raw incremental, as far as BEGIN shows it.
//!
//! An encrypted dataset gets an IV-set guid with each snapshot. ZFS receives a raw incremental only
//! if the stream has the guid of its base. A base can lack it: a bookmark that OpenZFS up to 2.1.5
//! made, or a snapshot older than 0.8.1. ZFS sends from such a base without an error.
//!
//! Source: OpenZFS `dsl_crypto_recv_raw_objset_check`.

use super::{BeginRecord, StreamFault, feature};
use crate::stream::nvlist::number_in_list;

/// The longest payload of BEGIN that is kept for the check. Key data has some 2 KiB.
const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

/// Keeps the payload of BEGIN until it is complete, and judges it.
#[derive(Debug, Clone, Default)]
pub(in crate::stream) struct IvSetCheck {
    payload: Option<Vec<u8>>,
}

impl IvSetCheck {
    /// Receives BEGIN.
    pub(in crate::stream) fn begin(&mut self, begin: &BeginRecord) -> Result<(), StreamFault> {
        let needs_ivset = begin.has(feature::RAW) && begin.base_guid.is_some();
        match begin.payload_bytes {
            0 if needs_ivset => Err(StreamFault::NoIvSet),
            1..=PAYLOAD_BYTES_MAX if needs_ivset => {
                self.payload = Some(Vec::new());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Receives bytes of BEGIN's payload.
    pub(in crate::stream) fn payload(&mut self, bytes: &[u8]) {
        if let Some(payload) = &mut self.payload {
            payload.extend_from_slice(bytes);
        }
    }

    /// Judges the complete payload. A list that cannot be read is no fault: only the receiving
    /// kernel knows.
    pub(in crate::stream) fn payload_end(&mut self) -> Result<(), StreamFault> {
        let Some(payload) = self.payload.take() else {
            return Ok(());
        };
        match number_in_list(&payload, "crypt_keydata", "from_ivset_guid") {
            Ok(None | Some(0)) => Err(StreamFault::NoIvSet),
            Ok(Some(_)) | Err(_) => Ok(()),
        }
    }
}
