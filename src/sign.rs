//! Signatures over stored bytes, in minisign's format, so that a person can check them without this
//! tool.
//!
//! The trusted comment names the type and the key of the object, and both must equal what was read:
//! a signed object that was moved to another place, or presented as another type, is refused.
//!
//! The `minisign` crate makes keys and signatures. aws-lc-rs verifies them, at a third of the
//! crate's cost: a plan verifies thousands of manifests. A test compares the results with the
//! crate's own verification. Source of the format: the page of minisign, "Signature format" and
//! "Public key format".

mod believed;
mod claim;
mod trust;

pub use believed::Believed;
pub use trust::{Trust, TrustedKeys, TrustedList};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use curve25519_dalek::edwards::CompressedEdwardsY;
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};
use std::fmt;
use std::io::Cursor;
use std::str::FromStr;

/// The types of object that are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedType {
    /// `started.json`
    Started,
    /// `progress-0000.json`
    Progress,
    /// `RESTORE.txt`
    RestoreText,
    /// `receipt.json`
    Receipt,
    /// `manifest.json`
    Manifest,
    /// `@prune/...json`
    PruneRecord,
    /// `@zfs-backup/config/...age`
    Config,
    /// `@zfs-backup/keys/<tag>/successor-<tag>.json`
    Successor,
}

impl SignedType {
    /// Returns the word in the trusted comment, which is also the `type` inside the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Progress => "progress",
            Self::RestoreText => "restore-text",
            Self::Receipt => "receipt",
            Self::Manifest => "manifest",
            Self::PruneRecord => "prune-record",
            Self::Config => "config",
            Self::Successor => "successor",
        }
    }
}

/// Why a signature or a key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The bytes are not a minisign signature.
    #[error("the signature is not in minisign's format")]
    Malformed,
    /// The signer is not one of our trusted keys, or the bytes were changed.
    #[error("the signature is by none of the {trusted} trusted keys, or the object was changed")]
    Untrusted {
        /// The number of keys that were tried.
        trusted: usize,
    },
    /// A retired key made the signature, and the object is not on the list of what that key signed
    /// before the rotation.
    #[error(
        "the signature is by {key}, which `key rotate` retired, and the object is not on the list of what that key \
         signed before: somebody who has the old key made it, or a host that has not run `zfs-backup key rotate` yet"
    )]
    Retired {
        /// The retired key.
        key: String,
    },
    /// A retired key made the signature, and the list of what it signed before the rotation could
    /// not be read.
    #[error(
        "the signature is by {key}, which `key rotate` retired, and {list} is missing, the list of what that key \
         signed before: put it back from another copy of the store"
    )]
    RetiredWithoutList {
        /// The retired key.
        key: String,
        /// The key of the missing list.
        list: String,
    },
    /// An older key made the signature. The key is trusted for backups and not for this type of
    /// object.
    #[error(
        "the signature is by {key}, an older key, which is not trusted for an object of type {object_type}"
    )]
    Outdated {
        /// The older key.
        key: String,
        /// The type of object.
        object_type: &'static str,
    },
    /// A valid signature of another object.
    #[error(
        "the signature is for {actual:?}, not for {expected:?}: the object was moved or replaced"
    )]
    Elsewhere {
        /// The trusted comment that this place requires.
        expected: String,
        /// The trusted comment in the signature.
        actual: String,
    },
    /// A malformed key.
    #[error("the {what} is not a minisign key in base64")]
    Key {
        /// The kind of key.
        what: &'static str,
    },
    /// Signing itself failed.
    #[error("make a signature")]
    Sign,
}

/// The public half of a key, which readers trust. The text form is minisign's, `RW...`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey(PublicKey);

/// The secret half. Debug output hides it.
#[derive(Clone)]
pub struct SigningKey {
    secret: SecretKey,
    public: VerifyingKey,
}

impl SigningKey {
    /// Makes a new random key.
    ///
    /// # Errors
    /// [`SignatureError::Sign`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, SignatureError> {
        let pair = KeyPair::generate_unencrypted_keypair().map_err(|_| SignatureError::Sign)?;
        Ok(Self {
            secret: pair.sk,
            public: VerifyingKey(pair.pk),
        })
    }

    /// Reads the key from its base64 text, or from the two lines of an unencrypted minisign key
    /// file.
    ///
    /// # Errors
    /// [`SignatureError::Key`] for any other text, and for a key that is protected by a password.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let invalid = |_| SignatureError::Key {
            what: "signing key",
        };
        let line = text
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty())
            .unwrap_or_default();
        let boxed = format!("untrusted comment: zfs-backup\n{line}\n");
        let secret = SecretKeyBox::from_string(&boxed)
            .map_err(invalid)?
            .into_unencrypted_secret_key()
            .map_err(invalid)?;
        let public = PublicKey::from_secret_key(&secret).map_err(invalid)?;
        Ok(Self {
            secret,
            public: VerifyingKey(public),
        })
    }

    /// Writes the key as base64 text. The text is a secret.
    ///
    /// # Errors
    /// [`SignatureError::Key`] never happens for a key that was made or parsed here.
    pub fn to_secret_text(&self) -> Result<String, SignatureError> {
        let boxed = self
            .secret
            .to_box(None)
            .map_err(|_| SignatureError::Key {
                what: "signing key",
            })?
            .into_string();
        Ok(boxed.lines().nth(1).unwrap_or_default().to_owned())
    }

    /// Returns the public half.
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    /// Signs the bytes for this key in the store.
    ///
    /// # Errors
    /// [`SignatureError::Sign`] when the system gives no random bytes.
    pub fn sign(
        &self,
        signed_type: SignedType,
        key: &str,
        bytes: &[u8],
    ) -> Result<Vec<u8>, SignatureError> {
        let comment = trusted_comment(signed_type, key);
        let untrusted = format!("signature by zfs-backup, key {}", self.public);
        minisign::sign(
            Some(&self.public.0),
            &self.secret,
            Cursor::new(bytes),
            Some(&comment),
            Some(&untrusted),
        )
        .map(|signature| signature.to_string().into_bytes())
        .map_err(|_| SignatureError::Sign)
    }
}

/// The algorithm of every verifying key: Ed25519.
const KEY_ALGORITHM: &[u8] = b"Ed";
/// The algorithm of a signature over a digest. minisign has an older form, over the bytes
/// themselves, which this program never made.
const OF_DIGEST: &[u8; 2] = b"ED";

/// A signature file.
struct Signature<'a> {
    algorithm: [u8; 2],
    key_id: [u8; 8],
    /// The signature over the BLAKE2b-512 of the bytes.
    of_digest: [u8; 64],
    /// The trusted comment.
    comment: &'a str,
    /// The signature over `of_digest` and the comment.
    global: [u8; 64],
}

impl<'a> Signature<'a> {
    /// Parses exactly four lines, with signatures of exactly the right length.
    fn parse(text: &'a str) -> Option<Self> {
        let lines: Vec<&str> = text.split('\n').collect();
        let [untrusted, signature, trusted, global, ""] = lines[..] else {
            return None;
        };
        untrusted.strip_prefix("untrusted comment: ")?;
        let comment = trusted.strip_prefix("trusted comment: ")?;
        let signature: [u8; 2 + 8 + 64] =
            BASE64_STANDARD.decode(signature).ok()?.try_into().ok()?;
        let (algorithm, rest) = signature.split_first_chunk()?;
        let (key_id, of_digest) = rest.split_first_chunk()?;
        let global = BASE64_STANDARD.decode(global).ok()?.try_into().ok()?;
        Some(Self {
            algorithm: *algorithm,
            key_id: *key_id,
            of_digest: of_digest.try_into().ok()?,
            comment,
            global,
        })
    }

    /// Whether this key made the signature over bytes with this digest.
    fn is_by(&self, VerifyingKey(trusted): &VerifyingKey, digest: &[u8]) -> bool {
        let key = trusted.to_bytes();
        let Some((_algorithm, key)) = key.split_first_chunk::<2>() else {
            return false;
        };
        let Some((key_id, key)) = key.split_first_chunk::<8>() else {
            return false;
        };
        let anyones = is_of_small_order(key);
        let key = UnparsedPublicKey::new(&ED25519, key);
        let commented = [&self.of_digest, self.comment.as_bytes()].concat();
        !anyones
            && self.algorithm == *OF_DIGEST
            && self.key_id == *key_id
            && key.verify(digest, &self.of_digest).is_ok()
            && key.verify(&commented, &self.global).is_ok()
    }
}

/// Whether anybody can sign for this key: a placeholder of zeros, or another of the few points that
/// have no secret. No generated key is such a point, and aws-lc-rs does not check for them.
fn is_of_small_order(key: &[u8]) -> bool {
    let point = CompressedEdwardsY::from_slice(key)
        .ok()
        .and_then(|key| key.decompress());
    point.is_none_or(|point| point.is_small_order())
}

fn trusted_comment(signed_type: SignedType, key: &str) -> String {
    format!("zfs-backup v1 {} {key}", signed_type.as_str())
}

impl From<PublicKey> for VerifyingKey {
    fn from(key: PublicKey) -> Self {
        Self(key)
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_base64())
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({self})")
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {}, hidden)", self.public)
    }
}

impl FromStr for VerifyingKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let invalid = || SignatureError::Key {
            what: "verifying key",
        };
        let key = PublicKey::from_base64(text.trim()).map_err(|_| invalid())?;
        // The crate accepts any two bytes as the algorithm. A reader would take two texts of one
        // key for two keys.
        if key.to_bytes().starts_with(KEY_ALGORITHM) {
            Ok(Self(key))
        } else {
            Err(invalid())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_valid_only_for_its_bytes_key_and_type() {
        let key = SigningKey::generate().unwrap();
        let trusted = TrustedKeys::new(vec![
            SigningKey::generate().unwrap().verifying_key().clone(),
            key.verifying_key().clone(),
        ]);
        let signature = key
            .sign(SignedType::Manifest, "tank/a/@x/manifest.json", b"bytes")
            .unwrap();
        let verify = |signed_type, place: &str, bytes: &[u8]| {
            trusted.verify(signed_type, place, bytes, &signature)
        };
        assert_eq!(
            verify(SignedType::Manifest, "tank/a/@x/manifest.json", b"bytes"),
            Ok(())
        );
        assert!(matches!(
            verify(SignedType::Manifest, "tank/b/@x/manifest.json", b"bytes"),
            Err(SignatureError::Elsewhere { .. })
        ));
        assert!(matches!(
            verify(SignedType::Receipt, "tank/a/@x/manifest.json", b"bytes"),
            Err(SignatureError::Elsewhere { .. })
        ));
        assert_eq!(
            verify(SignedType::Manifest, "tank/a/@x/manifest.json", b"bytez"),
            Err(SignatureError::Untrusted { trusted: 2 })
        );
        assert_eq!(
            TrustedKeys::default().verify(SignedType::Manifest, "k", b"b", &signature),
            Err(SignatureError::Untrusted { trusted: 0 })
        );
        for damaged in [&signature[..signature.len() / 2], b"", b"\xff"] {
            assert!(
                trusted
                    .verify(
                        SignedType::Manifest,
                        "tank/a/@x/manifest.json",
                        b"bytes",
                        damaged
                    )
                    .is_err()
            );
        }
    }

    #[test]
    fn any_changed_byte_of_a_signature_file_is_found_or_harmless() {
        let key = SigningKey::generate().unwrap();
        let trusted = TrustedKeys::new(vec![key.verifying_key().clone()]);
        let signature = key.sign(SignedType::Manifest, "k", b"bytes").unwrap();
        let first_line = signature.iter().position(|b| *b == b'\n').unwrap();
        for at in first_line + 1..signature.len() - 1 {
            let mut damaged = signature.clone();
            damaged[at] ^= 1;
            assert!(
                trusted
                    .verify(SignedType::Manifest, "k", b"bytes", &damaged)
                    .is_err(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_signature_of_another_shape_is_refused_without_a_panic() {
        let key = SigningKey::generate().unwrap();
        let trusted = TrustedKeys::new(vec![key.verifying_key().clone()]);
        let signature = key.sign(SignedType::Manifest, "k", b"bytes").unwrap();
        assert_eq!(
            trusted.verify(SignedType::Manifest, "k", b"bytes", &signature),
            Ok(())
        );
        for length in 0..signature.len() {
            assert!(
                trusted
                    .verify(SignedType::Manifest, "k", b"bytes", &signature[..length])
                    .is_err(),
                "cut at {length}"
            );
        }
        let lines: Vec<&str> = std::str::from_utf8(&signature).unwrap().lines().collect();
        for line in 0..4 {
            for replaced in [
                "",
                "AAAA",
                &format!("{}AAAA", lines[line]),
                &format!("{} ", lines[line]),
                &format!("{}\nx", lines[line]),
            ] {
                let mut changed = lines.clone();
                changed[line] = replaced;
                // The untrusted comment is not covered by the signature.
                let text = format!("{}\n", changed.join("\n"));
                let result = trusted.verify(SignedType::Manifest, "k", b"bytes", text.as_bytes());
                assert!(
                    result.is_err() || (line == 0 && replaced.starts_with("untrusted comment: ")),
                    "line {line}: {replaced:?}"
                );
            }
        }
    }

    #[test]
    fn signature_verdict_equals_that_of_minisign() {
        let (key, other) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let signature = key.sign(SignedType::Manifest, "k", b"bytes").unwrap();
        let text = std::str::from_utf8(&signature).unwrap();
        // The comment of another place, which is not signed.
        let elsewhere = text.replace("manifest k", "manifest l");
        // The id of the key that signed, with the key bytes of another.
        let (own, others) = (key.public.0.to_bytes(), other.public.0.to_bytes());
        let mixed =
            VerifyingKey(PublicKey::from_bytes(&[&own[..10], &others[10..]].concat()).unwrap());
        for (by, text, place, bytes, expected) in [
            (&key.public, text, "k", &b"bytes"[..], true),
            (&key.public, text, "k", b"bytez", false),
            (&other.public, text, "k", b"bytes", false),
            (&mixed, text, "k", b"bytes", false),
            (&key.public, &elsewhere, "l", b"bytes", false),
        ] {
            let boxed = minisign::SignatureBox::from_string(text).unwrap();
            let minisign =
                minisign::verify(&by.0, &boxed, Cursor::new(bytes), true, false, false).is_ok();
            let trusted = TrustedKeys::new(vec![by.clone()]);
            let ours = trusted.verify(SignedType::Manifest, place, bytes, text.as_bytes());
            let untrusted = Err(SignatureError::Untrusted { trusted: 1 });
            assert_eq!(
                (minisign, ours),
                (expected, if expected { Ok(()) } else { untrusted }),
                "{text}"
            );
        }
    }

    #[test]
    fn signature_by_minisign_verifies() {
        // Made by `minisign -S -t "zfs-backup v1 manifest k"`, version 0.11, over the five bytes.
        let key = "RWSBCp37RUgkoe0SRRWAaFScAW9TYRVa/2Dt3Qdrloom+qd2LUrP+FBD"
            .parse()
            .unwrap();
        let signature = "untrusted comment: signature by minisign\n\
            RUSBCp37RUgkoXbwJIpqaravyBWJQO5J7wo7O5pKrSe/hCGgLE7oU+FrC4zXbY2mmf0iAPw9RKZ9cWX/c3eXX9/K7Ua1JMes0QM=\n\
            trusted comment: zfs-backup v1 manifest k\n\
            nV3FeGHrNpCjysC2tKJi3eDnPG44UJgtm7FQfgGTdX6lfY6WSCc1n7619ktNxlGAHnvl3KzettUMqg3+ATCrDQ==\n";
        let trusted = TrustedKeys::new(vec![key]);
        assert_eq!(
            trusted.verify(SignedType::Manifest, "k", b"bytes", signature.as_bytes()),
            Ok(())
        );
    }

    #[test]
    fn a_key_for_which_anyone_can_sign_is_not_trusted() {
        let key = SigningKey::generate().unwrap();
        let signature = key.sign(SignedType::Manifest, "k", b"bytes").unwrap();
        let text = std::str::from_utf8(&signature).unwrap();
        // For R = identity, S = 0 is a valid signature of any message.
        let mut forged_of_digest = BASE64_STANDARD
            .decode(text.lines().nth(1).unwrap())
            .unwrap();
        let mut nothing = [0; 64];
        nothing[0] = 1;
        forged_of_digest[10..].copy_from_slice(&nothing);
        let lines: Vec<&str> = text.lines().collect();
        let (first, global) = (
            BASE64_STANDARD.encode(forged_of_digest),
            BASE64_STANDARD.encode(nothing),
        );
        let forged = format!("{}\n{first}\n{}\n{global}\n", lines[0], lines[2]);
        let with_point = |point: [u8; 32]| {
            let bytes = [&key.public.0.to_bytes()[..10], &point].concat();
            TrustedKeys::new(vec![VerifyingKey(PublicKey::from_bytes(&bytes).unwrap())])
        };
        let mut identity = [0; 32];
        identity[0] = 1;
        let verified =
            with_point(identity).verify(SignedType::Manifest, "k", b"bytes", forged.as_bytes());
        assert_eq!(verified, Err(SignatureError::Untrusted { trusted: 1 }));
        let (mut with_sign, zeros) = (identity, [0; 32]);
        with_sign[31] = 0x80;
        let mut below_the_prime = [0xff; 32];
        (below_the_prime[0], below_the_prime[31]) = (0xec, 0x7f);
        for point in [identity, with_sign, zeros, below_the_prime] {
            assert!(is_of_small_order(&point), "{point:02x?}");
        }
        assert!(!is_of_small_order(&key.public.0.to_bytes()[10..]));
    }

    #[test]
    fn legacy_signature_without_prehashing_is_refused() {
        let key = SigningKey::generate().unwrap();
        let trusted = TrustedKeys::new(vec![key.verifying_key().clone()]);
        let text =
            String::from_utf8(key.sign(SignedType::Manifest, "k", b"bytes").unwrap()).unwrap();
        let signed = text.lines().nth(1).unwrap();
        let mut older = BASE64_STANDARD.decode(signed).unwrap();
        older[..2].copy_from_slice(b"Ed");
        let older = text.replace(signed, &BASE64_STANDARD.encode(older));
        let verified = trusted.verify(SignedType::Manifest, "k", b"bytes", older.as_bytes());
        assert_eq!(verified, Err(SignatureError::Untrusted { trusted: 1 }));
    }

    #[test]
    fn signing_keys_round_trip_as_text_and_debug_hides_the_secret() {
        let key = SigningKey::generate().unwrap();
        let text = key.to_secret_text().unwrap();
        assert_eq!(
            SigningKey::parse(&text).unwrap().verifying_key(),
            key.verifying_key()
        );
        assert_eq!(
            key.verifying_key()
                .to_string()
                .parse::<VerifyingKey>()
                .as_ref(),
            Ok(key.verifying_key())
        );
        assert!(!format!("{key:?}").contains(&text));
        assert!(SigningKey::parse("nonsense").is_err());
        assert!("nonsense".parse::<VerifyingKey>().is_err());
    }
}
