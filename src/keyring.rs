//! Key files, and the keyring. A key file is an age identity file that also carries the signing key
//! in comment lines. The keyring is the same file sealed with the passphrase, as it lies in the
//! store.
//!
//! A plain `age -d -i FILE` reads an opened keyring unchanged; age ignores our comment lines.
//!
//! After a rotation the file lists the older identities and verifying keys behind the new ones. The
//! newest keyring therefore opens all backups and shows which keyrings it follows. A new passphrase
//! seals the same file again.
//!
//! A rotation retires the older verifying keys: the new file names them as retired, and pins by
//! BLAKE3 the list of the objects that they are still trusted for. Only the holder of the
//! passphrase can make such a file.

use crate::model::Digest;
use crate::sign::{
    Believed, SignatureError, SigningKey, Trust, TrustedKeys, TrustedList, VerifyingKey,
};
use age::secrecy::{ExposeSecret, SecretString};
use std::io::{Read, Write};
use std::sync::Arc;
use zeroize::Zeroizing;

/// The scrypt work factor (log2 N) of a new keyring: about a second and 256 MiB.
pub const WORK_FACTOR: u8 = 18;
/// The highest work factor that is accepted when a keyring is opened. Without this limit a planted
/// keyring could exhaust the machine's memory.
pub const WORK_FACTOR_MAX: u8 = 20;
/// The largest keyring that is read. Real keyrings are smaller; larger ones are refused before they
/// are read.
pub const KEYRING_BYTES_MAX: u64 = 64 * 1024;

const VERIFYING_LINE: &str = "# verifying key: ";
const SIGNING_LINE: &str = "# signing key: ";
/// An older key that a rotation keeps trusting. The line stands next to the key's verifying line.
const KEPT_LINE: &str = "# kept key: ";
/// An older key that is trusted only for the objects on the lists. Such a key has no verifying
/// line.
const RETIRED_LINE: &str = "# retired key: ";
/// A list of those objects: the folder of a keyring, and the BLAKE3 of the list.
const LIST_LINE: &str = "# believed list: ";

/// Why a key file or keyring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The passphrase does not open the keyring.
    #[error("open the keyring: the passphrase is wrong")]
    WrongPassphrase,
    /// The bytes are not a keyring, or the keyring demands a higher work factor than
    /// [`WORK_FACTOR_MAX`].
    #[error("open the keyring")]
    Open(#[source] age::DecryptError),
    /// The keyring could not be sealed.
    #[error("seal the keyring")]
    Seal(#[source] std::io::Error),
    /// The text is not a key file.
    #[error("read the key file: line {line}: {reason}")]
    Malformed {
        /// The line number, from 1.
        line: usize,
        /// The fault in the line.
        reason: String,
    },
    /// The file contains no identity.
    #[error("read the key file: no AGE-SECRET-KEY line in it")]
    NoIdentity,
    /// The file contains no signing key.
    #[error("read the keyring: no signing key in it")]
    NoSigningKey,
    /// A key in the file is malformed.
    #[error("read the key file")]
    Key(#[from] SignatureError),
}

/// An opened key file: the identities that open backups, and the keys that are trusted.
#[derive(Clone)]
pub struct KeyFile {
    /// The identities, the newest first.
    pub identities: Vec<age::x25519::Identity>,
    /// The trusted verifying keys of manifests.
    pub trusted: TrustedKeys,
    /// The signing key, if this file has it.
    pub signing: Option<SigningKey>,
}

impl KeyFile {
    /// Makes new random keys.
    ///
    /// # Errors
    /// [`KeyringError::Key`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, KeyringError> {
        let signing = SigningKey::generate()?;
        let trusted = TrustedKeys::new(vec![signing.verifying_key().clone()]);
        Ok(Self {
            identities: vec![age::x25519::Identity::generate()],
            trusted,
            signing: Some(signing),
        })
    }

    /// Makes new keys that follow these and retire them. The older identities stay in the file, so
    /// that it opens all earlier backups. The older verifying keys are trusted for the objects in
    /// `believed` and nothing else. The caller must store that list before the new keyring, in the
    /// same folder.
    ///
    /// # Errors
    /// As for [`KeyFile::generate`].
    pub fn rotated(&self, believed: Believed) -> Result<Self, KeyringError> {
        let mut file = self.rotated_with(Trust::Retired)?;
        file.pin(believed)?;
        Ok(file)
    }

    /// Makes new keys that follow these and keep the trust in the older verifying keys: for a
    /// rotation without a leak. Keys that an earlier rotation retired stay retired.
    ///
    /// # Errors
    /// As for [`KeyFile::generate`].
    pub fn rotated_keeping_trust(&self) -> Result<Self, KeyringError> {
        let mut file = self.rotated_with(Trust::Kept)?;
        if file.trusted.with(Trust::Retired).next().is_some() {
            file.pin(self.trusted.believed())?;
        }
        Ok(file)
    }

    fn rotated_with(&self, older: Trust) -> Result<Self, KeyringError> {
        let mut file = Self::generate()?;
        file.identities.extend(self.identities.iter().cloned());
        let mut trusted = self.trusted.clone();
        trusted.demote_all(older);
        trusted.lists.clear();
        trusted.put_first(file.signing_key()?.verifying_key().clone());
        file.trusted = trusted;
        Ok(file)
    }

    /// Restricts the trust in the retired keys to this list.
    ///
    /// # Errors
    /// [`KeyringError::NoIdentity`] when the file has no identity; a list always has a stored form.
    pub fn pin(&mut self, believed: Believed) -> Result<(), KeyringError> {
        let tag = keyring_tag(&self.recipient()?);
        let bytes = believed
            .to_bytes()
            .map_err(|error| KeyringError::Seal(std::io::Error::other(error)))?;
        self.trusted.lists = vec![TrustedList {
            tag,
            blake3: Digest::of(&bytes),
            content: Some(Arc::new(believed)),
        }];
        Ok(())
    }

    /// Whether these keys were rotated from `other`: a rotation keeps the older identity behind the
    /// newer one.
    pub fn follows(&self, other: &Self) -> bool {
        let Some(older) = other.identities.first().map(public) else {
            return false;
        };
        self.identities
            .iter()
            .skip(1)
            .any(|identity| public(identity) == older)
    }

    /// Adds the identities of another key file, and its trust unless these keys replaced the
    /// others. The recipient and the signing key stay.
    pub fn take_over(&mut self, other: &Self) {
        let replaces_other = self.follows(other);
        for identity in &other.identities {
            if !self
                .identities
                .iter()
                .any(|known| public(known) == public(identity))
            {
                self.identities.push(identity.clone());
            }
        }
        self.trusted.merge(&other.trusted, replaces_other);
    }

    /// Returns the recipient that new backups are sealed to.
    ///
    /// # Errors
    /// [`KeyringError::NoIdentity`] when the file has no identity.
    pub fn recipient(&self) -> Result<age::x25519::Recipient, KeyringError> {
        self.identities
            .first()
            .map(age::x25519::Identity::to_public)
            .ok_or(KeyringError::NoIdentity)
    }

    /// Returns the signing key.
    ///
    /// # Errors
    /// [`KeyringError::NoSigningKey`] when the file has no signing key.
    pub fn signing_key(&self) -> Result<&SigningKey, KeyringError> {
        self.signing.as_ref().ok_or(KeyringError::NoSigningKey)
    }

    /// Writes the text of the file. The text is a secret.
    ///
    /// # Errors
    /// [`KeyringError::Key`] never happens for keys that were made or parsed here.
    pub fn to_text(&self) -> Result<Zeroizing<String>, KeyringError> {
        let mut text =
            Zeroizing::new("# zfs-backup key file, version 1: an age identity file\n".to_owned());
        for (key, _) in self
            .trusted
            .iter()
            .filter(|(_, trust)| *trust != Trust::Retired)
        {
            text.push_str(&format!("{VERIFYING_LINE}{key}\n"));
        }
        for key in self.trusted.with(Trust::Retired) {
            text.push_str(&format!("{RETIRED_LINE}{key}\n"));
        }
        for key in self.trusted.with(Trust::Kept) {
            text.push_str(&format!("{KEPT_LINE}{key}\n"));
        }
        for list in &self.trusted.lists {
            text.push_str(&format!("{LIST_LINE}{}/{}\n", list.tag, list.blake3));
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

    /// Reads a key file that this program or `age-keygen` wrote.
    ///
    /// # Errors
    /// [`KeyringError`] naming the line.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut file = Self {
            identities: Vec::new(),
            trusted: TrustedKeys::default(),
            signing: None,
        };
        let mut verifying = Vec::new();
        let mut kept = Vec::new();
        let mut retired = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let malformed = |reason: String| KeyringError::Malformed {
                line: number + 1,
                reason,
            };
            if let Some(key) = line.strip_prefix(VERIFYING_LINE) {
                verifying.push(key.parse::<VerifyingKey>()?);
            } else if let Some(key) = line.strip_prefix(KEPT_LINE) {
                kept.push(key.parse::<VerifyingKey>()?);
            } else if let Some(key) = line.strip_prefix(RETIRED_LINE) {
                retired.push(key.parse::<VerifyingKey>()?);
            } else if let Some(list) = line.strip_prefix(LIST_LINE) {
                let list = parse_list(list)
                    .ok_or_else(|| malformed(format!("{list:?} is not the name of a list")))?;
                file.trusted.lists.push(list);
            } else if let Some(key) = line.strip_prefix(SIGNING_LINE) {
                file.signing = Some(SigningKey::parse(key)?);
            } else if !line.is_empty() && !line.starts_with('#') {
                file.identities.push(
                    line.parse()
                        .map_err(|reason: &str| malformed(reason.to_owned()))?,
                );
            }
        }
        let signing = file.signing.as_ref().map(SigningKey::verifying_key);
        for key in verifying.into_iter().filter(|key| !retired.contains(key)) {
            let trust = match signing {
                Some(signing) if *signing != key && kept.contains(&key) => Trust::Kept,
                Some(signing) if *signing != key => Trust::Unlimited,
                _ => Trust::Current,
            };
            file.trusted.add(key, trust);
        }
        retired
            .into_iter()
            .for_each(|key| file.trusted.add(key, Trust::Retired));
        if file.identities.is_empty() {
            Err(KeyringError::NoIdentity)
        } else {
            Ok(file)
        }
    }

    /// Makes the keyring: seals this file with the passphrase. The work factor [`WORK_FACTOR`]
    /// costs about a second.
    ///
    /// # Errors
    /// [`KeyringError::Seal`].
    pub fn seal(&self, passphrase: &SecretString) -> Result<Vec<u8>, KeyringError> {
        self.seal_with(passphrase, WORK_FACTOR)
    }

    /// Seals as [`KeyFile::seal`], with another work factor (log2 N). Only tests use a lower one.
    ///
    /// # Errors
    /// [`KeyringError::Seal`].
    pub fn seal_with(
        &self,
        passphrase: &SecretString,
        work_factor: u8,
    ) -> Result<Vec<u8>, KeyringError> {
        let mut recipient = age::scrypt::Recipient::new(passphrase.clone());
        recipient.set_work_factor(work_factor);
        let recipients = std::iter::once(&recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients)
            .map_err(|error| KeyringError::Seal(std::io::Error::other(error)))?;
        let mut sealed = Vec::new();
        let mut writer = encryptor
            .wrap_output(&mut sealed)
            .map_err(KeyringError::Seal)?;
        writer
            .write_all(self.to_text()?.as_bytes())
            .map_err(KeyringError::Seal)?;
        writer.finish().map_err(KeyringError::Seal)?;
        Ok(sealed)
    }

    /// Opens a keyring. Up to four seconds and 1 GiB are needed at the highest accepted work
    /// factor.
    ///
    /// # Errors
    /// [`KeyringError::WrongPassphrase`] when the keyring was sealed with another passphrase,
    /// [`KeyringError::Open`] when the bytes are no keyring, and the errors of [`KeyFile::parse`].
    pub fn open(sealed: &[u8], passphrase: &SecretString) -> Result<Self, KeyringError> {
        let mut identity = age::scrypt::Identity::new(passphrase.clone());
        identity.set_max_work_factor(WORK_FACTOR_MAX);
        let decryptor = age::Decryptor::new(sealed).map_err(KeyringError::Open)?;
        if !decryptor.is_scrypt() {
            return Err(KeyringError::Open(age::DecryptError::NoMatchingKeys));
        }
        let mut reader = decryptor
            .decrypt(std::iter::once(&identity as &dyn age::Identity))
            .map_err(|error| match error {
                age::DecryptError::DecryptionFailed | age::DecryptError::KeyDecryptionFailed => {
                    KeyringError::WrongPassphrase
                }
                other => KeyringError::Open(other),
            })?;
        let mut text = Zeroizing::new(String::new());
        reader
            .read_to_string(&mut text)
            .map_err(|error| KeyringError::Open(age::DecryptError::Io(error)))?;
        Self::parse(&text)
    }
}

fn parse_list(text: &str) -> Option<TrustedList> {
    let (tag, blake3) = text.split_once('/')?;
    Some(TrustedList {
        tag: tag.to_owned(),
        blake3: blake3.parse().ok()?,
        content: None,
    })
}

fn public(identity: &age::x25519::Identity) -> String {
    identity.to_public().to_string()
}

/// Returns the folder name of a recipient's keyring in the store.
pub fn keyring_tag(recipient: &age::x25519::Recipient) -> String {
    tag_of(&recipient.to_string())
}

/// As [`keyring_tag`], for a recipient in text form.
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
        assert_eq!(
            opened.recipient().unwrap().to_string(),
            file.recipient().unwrap().to_string()
        );
        assert_eq!(opened.trusted, file.trusted);
        assert_eq!(
            opened.signing_key().unwrap().verifying_key(),
            file.signing_key().unwrap().verifying_key()
        );
        let wrong = KeyFile::open(&sealed, &SecretString::from("wrong".to_owned()));
        assert!(matches!(wrong, Err(KeyringError::WrongPassphrase)));
        assert!(KeyFile::open(&sealed[..sealed.len() / 2], &passphrase).is_err());
    }

    fn trust_in(file: &KeyFile, of: &KeyFile) -> Option<Trust> {
        file.trusted
            .trust_in(of.signing_key().unwrap().verifying_key())
    }

    fn parsed(file: &KeyFile) -> KeyFile {
        let text = file.to_text().unwrap();
        let parsed = KeyFile::parse(&text).unwrap();
        assert_eq!(*parsed.to_text().unwrap(), *text, "another text");
        parsed
    }

    #[test]
    fn rotated_keyring_retires_older_keys_and_follows_older_keyrings() {
        let first = KeyFile::generate().unwrap();
        let second = parsed(&first.rotated(Believed::default()).unwrap());
        let third = parsed(&second.rotated(Believed::default()).unwrap());
        assert_eq!((third.identities.len(), third.trusted.len()), (3, 3));
        assert_ne!(
            second.recipient().unwrap().to_string(),
            first.recipient().unwrap().to_string()
        );
        for (file, of, trust) in [
            (&third, &first, Some(Trust::Retired)),
            (&third, &second, Some(Trust::Retired)),
            (&third, &third, Some(Trust::Current)),
            (&first, &second, None),
        ] {
            assert_eq!(trust_in(file, of), trust);
        }
        assert_eq!(
            third.trusted.lists.len(),
            1,
            "a rotation carries one list, that of its own keyring"
        );
        assert_eq!(
            third.trusted.lists[0].tag,
            keyring_tag(&third.recipient().unwrap())
        );
        for (newer, older, follows) in [
            (&second, &first, true),
            (&third, &first, true),
            (&first, &second, false),
            (&first, &first, false),
        ] {
            assert_eq!(newer.follows(older), follows);
        }
        assert!(!KeyFile::generate().unwrap().follows(&first));
        let mut merged = third.clone();
        merged.take_over(&first);
        assert_eq!(
            *merged.to_text().unwrap(),
            *third.to_text().unwrap(),
            "the older keyring changed the newer"
        );
    }

    #[test]
    fn kept_trust_is_recorded_and_differs_from_an_early_unmarked_rotation() {
        let first = KeyFile::generate().unwrap();
        let second = first.rotated_keeping_trust().unwrap();
        assert_eq!(trust_in(&parsed(&second), &first), Some(Trust::Kept));
        assert!(second.trusted.lists.is_empty());
        let early: String = second
            .to_text()
            .unwrap()
            .lines()
            .filter(|line| !line.starts_with(KEPT_LINE))
            .map(|l| format!("{l}\n"))
            .collect();
        assert_eq!(
            trust_in(&KeyFile::parse(&early).unwrap(), &first),
            Some(Trust::Unlimited)
        );
        let retired = second
            .rotated(Believed::default())
            .unwrap()
            .rotated_keeping_trust()
            .unwrap();
        assert_eq!(
            trust_in(&parsed(&retired), &first),
            Some(Trust::Retired),
            "a retired key came back"
        );
        assert_eq!(
            retired.trusted.lists[0].tag,
            keyring_tag(&retired.recipient().unwrap())
        );
    }

    #[test]
    fn file_sealed_for_a_recipient_is_not_a_keyring() {
        let identity = age::x25519::Identity::generate();
        let sealed = age::encrypt(&identity.to_public(), b"x").unwrap();
        assert!(matches!(
            KeyFile::open(&sealed, &SecretString::from("p".to_owned())),
            Err(KeyringError::Open(_))
        ));
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
        assert_eq!(
            (
                file.identities.len(),
                file.trusted.len(),
                file.signing.is_some()
            ),
            (1, 0, false)
        );
        assert!(matches!(
            KeyFile::parse("# nothing\n"),
            Err(KeyringError::NoIdentity)
        ));
        assert!(matches!(
            KeyFile::parse("AGE-SECRET-KEY-1X\n"),
            Err(KeyringError::Malformed { line: 1, .. })
        ));
    }
}
