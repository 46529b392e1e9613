//! Key files: an age identity file that also carries the signing key in comment lines, and its form in the store,
//! the keyring, which is the same file sealed with the passphrase.
//!
//! A plain `age -d -i FILE` reads an opened keyring as it is; the comment lines are ours.
//!
//! Keys that were rotated have the older identities and verifying keys behind their own: the newest keyring opens and
//! believes all backups, and shows by that which keyrings it follows. A new passphrase seals the same file again.

use crate::model::Digest;
use crate::sign::{SignatureError, SigningKey, TrustedKeys, VerifyingKey};
use age::secrecy::{ExposeSecret, SecretString};
use std::io::{Read, Write};
use zeroize::Zeroizing;

/// The scrypt work factor (log2 N) of a new keyring: about a second and 256 MiB.
pub const WORK_FACTOR: u8 = 18;
/// The highest that is accepted when a keyring is opened: a planted one must not eat the machine.
pub const WORK_FACTOR_MAX: u8 = 20;
/// More than any keyring: larger ones are refused before they are read.
pub const KEYRING_BYTES_MAX: u64 = 64 * 1024;

const VERIFYING_LINE: &str = "# verifying key: ";
const SIGNING_LINE: &str = "# signing key: ";

/// Why a key file or keyring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The passphrase does not open it.
    #[error("open the keyring: the passphrase does not fit")]
    WrongPassphrase,
    /// It is no keyring, or one that asks for too much work.
    #[error("open the keyring")]
    Open(#[source] age::DecryptError),
    /// It could not be sealed.
    #[error("seal the keyring")]
    Seal(#[source] std::io::Error),
    /// Inside is something else than a key file.
    #[error("read the key file: line {line}: {reason}")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// It has no identity in it.
    #[error("read the key file: no AGE-SECRET-KEY line in it")]
    NoIdentity,
    /// It has no signing key in it.
    #[error("read the keyring: no signing key in it")]
    NoSigningKey,
    /// A key in it is wrong.
    #[error("read the key file")]
    Key(#[from] SignatureError),
}

/// An opened key file: what opens backups, and whom to believe.
#[derive(Clone)]
pub struct KeyFile {
    /// The identities, the newest first.
    pub identities: Vec<age::x25519::Identity>,
    /// The keys that manifests may be signed by.
    pub trusted: TrustedKeys,
    /// The key that signs, if this file has it.
    pub signing: Option<SigningKey>,
}

impl KeyFile {
    /// New random keys.
    ///
    /// # Errors
    /// [`KeyringError::Key`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, KeyringError> {
        let signing = SigningKey::generate()?;
        let trusted = TrustedKeys(vec![signing.verifying_key().clone()]);
        Ok(Self { identities: vec![age::x25519::Identity::generate()], trusted, signing: Some(signing) })
    }

    /// New keys that follow these: the older identities and verifying keys stay in the file, so that it opens and
    /// believes all backups made before.
    ///
    /// # Errors
    /// As for [`KeyFile::generate`].
    pub fn rotated(&self) -> Result<Self, KeyringError> {
        let mut file = Self::generate()?;
        file.take_over(self);
        Ok(file)
    }

    /// Whether these keys came after the other ones: a rotation keeps the older identity behind the newer.
    pub fn follows(&self, other: &Self) -> bool {
        let Some(older) = other.identities.first().map(public) else { return false };
        self.identities.iter().skip(1).any(|identity| public(identity) == older)
    }

    /// Also opens and believes what the other one does. What seals and signs stays.
    pub fn take_over(&mut self, other: &Self) {
        for identity in &other.identities {
            if !self.identities.iter().any(|known| public(known) == public(identity)) {
                self.identities.push(identity.clone());
            }
        }
        for key in &other.trusted.0 {
            if !self.trusted.0.contains(key) {
                self.trusted.0.push(key.clone());
            }
        }
    }

    /// The recipient that new backups are sealed to.
    ///
    /// # Errors
    /// [`KeyringError::NoIdentity`] when there is none.
    pub fn recipient(&self) -> Result<age::x25519::Recipient, KeyringError> {
        self.identities.first().map(age::x25519::Identity::to_public).ok_or(KeyringError::NoIdentity)
    }

    /// The signing key.
    ///
    /// # Errors
    /// [`KeyringError::NoSigningKey`] when this file has none.
    pub fn signing_key(&self) -> Result<&SigningKey, KeyringError> {
        self.signing.as_ref().ok_or(KeyringError::NoSigningKey)
    }

    /// The text of the file. A secret.
    ///
    /// # Errors
    /// [`KeyringError::Key`] never happens for keys that were made or parsed here.
    pub fn to_text(&self) -> Result<Zeroizing<String>, KeyringError> {
        let mut text = Zeroizing::new("# zfs-backup key file, version 1: an age identity file\n".to_owned());
        for key in &self.trusted.0 {
            text.push_str(&format!("{VERIFYING_LINE}{key}\n"));
        }
        if let Some(key) = &self.signing {
            text.push_str(&format!("{SIGNING_LINE}{}\n", key.to_secret_text()?));
        }
        for identity in &self.identities {
            text.push_str(&format!("# public key: {}\n", identity.to_public()));
            text.push_str(identity.to_string().expose_secret());
            text.push('\n');
        }
        Ok(text)
    }

    /// Reads a key file, ours or one that `age-keygen` wrote.
    ///
    /// # Errors
    /// [`KeyringError`] naming the line.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut file = Self { identities: Vec::new(), trusted: TrustedKeys::default(), signing: None };
        for (number, line) in text.lines().enumerate() {
            let malformed = |reason: String| KeyringError::Malformed { line: number + 1, reason };
            if let Some(key) = line.strip_prefix(VERIFYING_LINE) {
                file.trusted.0.push(key.parse::<VerifyingKey>()?);
            } else if let Some(key) = line.strip_prefix(SIGNING_LINE) {
                file.signing = Some(SigningKey::parse(key)?);
            } else if !line.is_empty() && !line.starts_with('#') {
                file.identities.push(line.parse().map_err(|reason: &str| malformed(reason.to_owned()))?);
            }
        }
        if file.identities.is_empty() { Err(KeyringError::NoIdentity) } else { Ok(file) }
    }

    /// The keyring: this file sealed with the passphrase. Takes [`WORK_FACTOR`]'s second.
    ///
    /// # Errors
    /// [`KeyringError::Seal`].
    pub fn seal(&self, passphrase: &SecretString) -> Result<Vec<u8>, KeyringError> {
        self.seal_with(passphrase, WORK_FACTOR)
    }

    /// As [`KeyFile::seal`], with another work factor (log2 N): a lower one is only for tests.
    ///
    /// # Errors
    /// [`KeyringError::Seal`].
    pub fn seal_with(&self, passphrase: &SecretString, work_factor: u8) -> Result<Vec<u8>, KeyringError> {
        let mut recipient = age::scrypt::Recipient::new(passphrase.clone());
        recipient.set_work_factor(work_factor);
        let recipients = std::iter::once(&recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients)
            .map_err(|error| KeyringError::Seal(std::io::Error::other(error)))?;
        let mut sealed = Vec::new();
        let mut writer = encryptor.wrap_output(&mut sealed).map_err(KeyringError::Seal)?;
        writer.write_all(self.to_text()?.as_bytes()).map_err(KeyringError::Seal)?;
        writer.finish().map_err(KeyringError::Seal)?;
        Ok(sealed)
    }

    /// Opens a keyring. Takes up to four seconds and 1 GiB for one of the highest accepted work factor.
    ///
    /// # Errors
    /// [`KeyringError::WrongPassphrase`] when it is for another passphrase, [`KeyringError`] when it is none.
    pub fn open(sealed: &[u8], passphrase: &SecretString) -> Result<Self, KeyringError> {
        let mut identity = age::scrypt::Identity::new(passphrase.clone());
        identity.set_max_work_factor(WORK_FACTOR_MAX);
        let decryptor = age::Decryptor::new(sealed).map_err(KeyringError::Open)?;
        if !decryptor.is_scrypt() {
            return Err(KeyringError::Open(age::DecryptError::NoMatchingKeys));
        }
        let mut reader =
            decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).map_err(|error| match error {
                age::DecryptError::DecryptionFailed | age::DecryptError::KeyDecryptionFailed => {
                    KeyringError::WrongPassphrase
                }
                other => KeyringError::Open(other),
            })?;
        let mut text = Zeroizing::new(String::new());
        reader.read_to_string(&mut text).map_err(|error| KeyringError::Open(age::DecryptError::Io(error)))?;
        Self::parse(&text)
    }
}

fn public(identity: &age::x25519::Identity) -> String {
    identity.to_public().to_string()
}

/// The folder name of a recipient's keyring in the store.
pub fn keyring_tag(recipient: &age::x25519::Recipient) -> String {
    tag_of(&recipient.to_string())
}

/// As [`keyring_tag`], of a recipient as text.
pub fn tag_of(recipient: &str) -> String {
    Digest::of(recipient.as_bytes()).to_string()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_opens_with_its_passphrase_only() {
        let file = KeyFile::generate().unwrap();
        let passphrase = SecretString::from("correct horse".to_owned());
        let sealed = file.seal(&passphrase).unwrap();
        let opened = KeyFile::open(&sealed, &passphrase).unwrap();
        assert_eq!(opened.recipient().unwrap().to_string(), file.recipient().unwrap().to_string());
        assert_eq!(opened.trusted, file.trusted);
        assert_eq!(opened.signing_key().unwrap().verifying_key(), file.signing_key().unwrap().verifying_key());
        let wrong = KeyFile::open(&sealed, &SecretString::from("wrong".to_owned()));
        assert!(matches!(wrong, Err(KeyringError::WrongPassphrase)));
        assert!(KeyFile::open(&sealed[..sealed.len() / 2], &passphrase).is_err());
    }

    #[test]
    fn rotated_keys_open_and_believe_what_the_older_ones_did_and_say_that_they_are_newer() {
        let first = KeyFile::generate().unwrap();
        let second = first.rotated().unwrap();
        let third = KeyFile::parse(&second.rotated().unwrap().to_text().unwrap()).unwrap();
        assert_eq!((third.identities.len(), third.trusted.0.len()), (3, 3));
        assert_ne!(second.recipient().unwrap().to_string(), first.recipient().unwrap().to_string());
        assert_ne!(second.signing_key().unwrap().verifying_key(), first.signing_key().unwrap().verifying_key());
        assert!(third.trusted.0.contains(first.signing_key().unwrap().verifying_key()));
        for (newer, older, follows) in
            [(&second, &first, true), (&third, &first, true), (&first, &second, false), (&first, &first, false)]
        {
            assert_eq!(newer.follows(older), follows);
        }
        assert!(!KeyFile::generate().unwrap().follows(&first));
    }

    #[test]
    fn a_file_for_a_recipient_is_no_keyring() {
        let identity = age::x25519::Identity::generate();
        let sealed = age::encrypt(&identity.to_public(), b"x").unwrap();
        assert!(matches!(KeyFile::open(&sealed, &SecretString::from("p".to_owned())), Err(KeyringError::Open(_))));
    }

    #[test]
    fn a_plain_age_identity_file_is_a_key_file_without_trust() {
        let identity = age::x25519::Identity::generate();
        let text = format!(
            "# created: today\n# public key: {}\n{}\n",
            identity.to_public(),
            identity.to_string().expose_secret()
        );
        let file = KeyFile::parse(&text).unwrap();
        assert_eq!((file.identities.len(), file.trusted.0.len(), file.signing.is_some()), (1, 0, false));
        assert!(matches!(KeyFile::parse("# nothing\n"), Err(KeyringError::NoIdentity)));
        assert!(matches!(KeyFile::parse("AGE-SECRET-KEY-1X\n"), Err(KeyringError::Malformed { line: 1, .. })));
    }
}
