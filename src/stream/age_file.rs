//! The age file format, page by page: header, payload nonce, and pages of 64 KiB that each carry
//! their own tag.
//!
//! The `age` crate makes and opens the recipients' stanzas. The body is sealed here with aws-lc-rs,
//! which takes half the time of the crate's own reader and writer, and whose pages can be sealed in
//! place. Source of the format: the age specification, version 1 (C2SP). A property test compares
//! the results with the `age` crate's over all border sizes.

use age::{DecryptError, EncryptError, Identity, Recipient};
use age_core::format::{FileKey, Stanza, read::age_stanza};
use age_core::primitives::hkdf;
use age_core::secrecy::ExposeSecret;
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;

/// Plaintext bytes of a full page.
pub const PAGE_BYTES: usize = 64 * 1024;
/// The bytes that sealing adds to a page.
pub const TAG_BYTES: usize = 16;
/// The payload nonce between header and first page.
pub const NONCE_BYTES: usize = 16;
/// The longest head of the format: 600 recipients. Longer heads are refused before they are read,
/// and never made.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

const VERSION_LINE: &[u8] = b"age-encryption.org/v1\n";
const STANZA_LINE_BYTES: usize = 64;

/// The reason why a file is not an age file, or why no key opens it.
#[derive(Debug, thiserror::Error)]
pub enum AgeError {
    /// No stanza could be made for the recipients.
    #[error("make the age header")]
    Wrap(#[source] EncryptError),
    /// No identity of ours opens the file.
    #[error("open the age header: no matching key")]
    NoMatch,
    /// A stanza for one of our keys does not open.
    #[error("open the age header")]
    Unwrap(#[source] DecryptError),
    /// The header is malformed.
    #[error("parse the age header: {0}")]
    Header(&'static str),
    /// The header's MAC is wrong: the header was changed.
    #[error("check the age header: its MAC does not match")]
    HeaderMac,
    /// A page does not open: changed, cut or out of order.
    #[error("open page {page} of the age file: changed, cut or out of order")]
    Page {
        /// The number of the page, from 0.
        page: u64,
    },
    /// The random number generator failed.
    #[error("get random bytes from the system")]
    Random,
}

/// The key of one payload. Pages are independent of each other given their numbers, so several
/// threads may seal or open them concurrently.
pub struct PageKey {
    key: LessSafeKey,
}

impl PageKey {
    fn new(file_key: &FileKey, nonce: &[u8; NONCE_BYTES]) -> Result<Self, AgeError> {
        let bytes = hkdf(nonce, b"payload", file_key.expose_secret());
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes)
            .map_err(|_| AgeError::Header("payload key"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
        })
    }

    /// Seals the page with this number, from 0, in place. No number may be sealed twice under one
    /// key.
    ///
    /// # Errors
    /// [`AgeError::Page`] never happens for pages of at most [`PAGE_BYTES`].
    pub fn seal(
        &self,
        page: u64,
        plain: &mut [u8],
        last: bool,
    ) -> Result<[u8; TAG_BYTES], AgeError> {
        let sealed = self
            .key
            .seal_in_place_separate_tag(nonce_of(page, last), Aad::empty(), plain);
        let tag = sealed.map_err(|_| AgeError::Page { page })?;
        tag.as_ref().try_into().map_err(|_| AgeError::Page { page })
    }

    /// Opens the page with this number in place; its tag follows it in `sealed`. Returns the
    /// plaintext at the start of `sealed`.
    ///
    /// # Errors
    /// [`AgeError::Page`] when the tag does not match; nothing of the page may then be used.
    pub fn open<'a>(
        &self,
        page: u64,
        sealed: &'a mut [u8],
        last: bool,
    ) -> Result<&'a mut [u8], AgeError> {
        self.key
            .open_in_place(nonce_of(page, last), Aad::empty(), sealed)
            .map_err(|_| AgeError::Page { page })
    }
}

fn nonce_of(page: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&page.to_be_bytes());
    nonce[11] = u8::from(last);
    Nonce::assume_unique_for_key(nonce)
}

/// Makes a header for the recipients, and the key of its payload. The returned head is the header
/// and the payload nonce.
///
/// # Errors
/// [`AgeError::Wrap`] without recipients; [`AgeError::Random`] when the system gives no random
/// bytes.
pub fn new_head(recipients: &[age::x25519::Recipient]) -> Result<(Vec<u8>, PageKey), AgeError> {
    let file_key =
        FileKey::try_init_with_mut(|key| getrandom::fill(key)).map_err(|_| AgeError::Random)?;
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| AgeError::Random)?;
    if recipients.is_empty() {
        return Err(AgeError::Wrap(EncryptError::MissingRecipients));
    }
    let mut head = VERSION_LINE.to_vec();
    for recipient in recipients {
        let (stanzas, _labels) = recipient.wrap_file_key(&file_key).map_err(AgeError::Wrap)?;
        stanzas
            .iter()
            .for_each(|stanza| write_stanza(&mut head, stanza));
    }
    head.extend_from_slice(b"---");
    let mac = hmac::sign(&header_key(&file_key), &head);
    head.push(b' ');
    head.extend_from_slice(BASE64_STANDARD_NO_PAD.encode(mac.as_ref()).as_bytes());
    head.push(b'\n');
    head.extend_from_slice(&nonce);
    if head.len() > HEAD_BYTES_MAX {
        return Err(AgeError::Header(
            "it is longer than 64 KiB: too many recipients",
        ));
    }
    let key = PageKey::new(&file_key, &nonce)?;
    Ok((head, key))
}

/// Opens a head (exactly header and payload nonce) with any of the identities.
///
/// # Errors
/// [`AgeError`] when the head is malformed, was changed, or is for none of the identities.
pub fn open_head(head: &[u8], identities: &[age::x25519::Identity]) -> Result<PageKey, AgeError> {
    let nonce_at = head
        .len()
        .checked_sub(NONCE_BYTES)
        .ok_or(AgeError::Header("shorter than a payload nonce"))?;
    let (header, nonce) = head.split_at(nonce_at);
    let nonce: &[u8; NONCE_BYTES] = nonce
        .try_into()
        .map_err(|_| AgeError::Header("payload nonce"))?;
    let mut rest = header
        .strip_prefix(VERSION_LINE)
        .ok_or(AgeError::Header("not an age v1 file"))?;
    let mut stanzas = Vec::new();
    while rest.starts_with(b"-> ") {
        let (after, stanza) =
            age_stanza(rest).map_err(|_| AgeError::Header("a stanza is malformed"))?;
        stanzas.push(Stanza::from(stanza));
        rest = after;
    }
    let mac = rest
        .strip_prefix(b"--- ")
        .and_then(|mac| mac.strip_suffix(b"\n"));
    let mac = mac.ok_or(AgeError::Header("no MAC line at its end"))?;
    let mac = BASE64_STANDARD_NO_PAD
        .decode(mac)
        .map_err(|_| AgeError::Header("the MAC is not base64"))?;
    let file_key = unwrap_file_key(&stanzas, identities)?;
    let signed = &header[..header.len() - rest.len() + 3];
    hmac::verify(&header_key(&file_key), signed, &mac).map_err(|_| AgeError::HeaderMac)?;
    PageKey::new(&file_key, nonce)
}

fn unwrap_file_key(
    stanzas: &[Stanza],
    identities: &[age::x25519::Identity],
) -> Result<FileKey, AgeError> {
    for identity in identities {
        if let Some(result) = identity.unwrap_stanzas(stanzas) {
            return result.map_err(AgeError::Unwrap);
        }
    }
    Err(AgeError::NoMatch)
}

fn header_key(file_key: &FileKey) -> hmac::Key {
    hmac::Key::new(
        hmac::HMAC_SHA256,
        &hkdf(b"", b"header", file_key.expose_secret()),
    )
}

fn write_stanza(head: &mut Vec<u8>, stanza: &Stanza) {
    head.extend_from_slice(b"-> ");
    head.extend_from_slice(stanza.tag.as_bytes());
    for argument in &stanza.args {
        head.push(b' ');
        head.extend_from_slice(argument.as_bytes());
    }
    head.push(b'\n');
    let body = BASE64_STANDARD_NO_PAD.encode(&stanza.body);
    let mut lines = body.as_bytes().chunks_exact(STANZA_LINE_BYTES);
    for line in &mut lines {
        head.extend_from_slice(line);
        head.push(b'\n');
    }
    // The last line is always shorter than 64 characters, and empty when the body fills its lines
    // exactly.
    head.extend_from_slice(lines.remainder());
    head.push(b'\n');
}
