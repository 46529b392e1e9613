//! Seals small texts to the recipients of a store, and opens them.

use crate::keyring::KeyFile;
use std::io::{Read, Write};

/// An error of the age library.
pub(crate) type AgeFailure = Box<dyn std::error::Error + Send + Sync>;

/// Seals `plain` to every recipient.
pub(crate) fn seal_small(
    recipients: &[age::x25519::Recipient],
    plain: &[u8],
) -> Result<Vec<u8>, AgeFailure> {
    let recipients = recipients
        .iter()
        .map(|recipient| recipient as &dyn age::Recipient);
    let mut sealed = Vec::new();
    let mut writer = age::Encryptor::with_recipients(recipients)?.wrap_output(&mut sealed)?;
    writer.write_all(plain)?;
    writer.finish()?;
    Ok(sealed)
}

/// Opens a text that was sealed to one of these keys. Returns its first `limit_bytes` bytes.
pub(crate) fn open_small(
    keys: &KeyFile,
    sealed: &[u8],
    limit_bytes: u64,
) -> Result<Vec<u8>, AgeFailure> {
    let identities = keys
        .identities
        .iter()
        .map(|identity| identity as &dyn age::Identity);
    let mut plain = Vec::new();
    age::Decryptor::new(sealed)?
        .decrypt(identities)?
        .take(limit_bytes)
        .read_to_end(&mut plain)?;
    Ok(plain)
}
