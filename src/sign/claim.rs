//! Checks a signature file before its object is fetched. Minisign signs the trusted comment separately, so a few
//! hundred bytes show whether one of our keys signed an object for this key at all.

use super::{Signature, SignatureError, SignedType, TrustedKeys, VerifyingKey, trusted_comment};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

impl TrustedKeys {
    /// Checks that one of the keys signed some object of exactly this place and type. Nothing is known of the object's
    /// bytes yet: [`TrustedKeys::verify`] decides.
    ///
    /// # Errors
    /// [`SignatureError`]; then no object can verify with this signature, whatever its bytes are.
    pub fn verify_claim(&self, signed_type: SignedType, key: &str, signature: &[u8]) -> Result<(), SignatureError> {
        let text = std::str::from_utf8(signature).map_err(|_| SignatureError::Malformed)?;
        let signature = Signature::parse(text).ok_or(SignatureError::Malformed)?;
        if !self.iter().any(|(trusted, _)| signature.is_claim_by(trusted)) {
            return Err(SignatureError::Untrusted { trusted: self.len() });
        }
        let (expected, actual) = (trusted_comment(signed_type, key), signature.comment.to_owned());
        if expected == actual { Ok(()) } else { Err(SignatureError::Elsewhere { expected, actual }) }
    }
}

impl Signature<'_> {
    /// Whether this key made the signature over the trusted comment.
    fn is_claim_by(&self, VerifyingKey(trusted): &VerifyingKey) -> bool {
        let key = trusted.to_bytes();
        let Some((_algorithm, key)) = key.split_first_chunk::<2>() else { return false };
        let Some((key_id, key)) = key.split_first_chunk::<8>() else { return false };
        let commented = [&self.of_digest, self.comment.as_bytes()].concat();
        self.key_id == *key_id && UnparsedPublicKey::new(&ED25519, key).verify(&commented, &self.global).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::SigningKey;

    #[test]
    fn a_claim_holds_for_its_place_its_type_and_its_key_alone() {
        let (ours, theirs) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let trusted: TrustedKeys = TrustedKeys::new(vec![ours.verifying_key().clone()]);
        let signature = |key: &SigningKey| key.sign(SignedType::Manifest, "a/manifest.json", b"bytes").unwrap();
        let check = |signed_type, place: &str, by| trusted.verify_claim(signed_type, place, &signature(by));
        assert_eq!(check(SignedType::Manifest, "a/manifest.json", &ours), Ok(()));
        let elsewhere = |checked| matches!(checked, Err(SignatureError::Elsewhere { .. }));
        assert!(elsewhere(check(SignedType::Manifest, "b/manifest.json", &ours)));
        assert!(elsewhere(check(SignedType::Receipt, "a/manifest.json", &ours)));
        let untrusted = Err(SignatureError::Untrusted { trusted: 1 });
        assert_eq!(check(SignedType::Manifest, "a/manifest.json", &theirs), untrusted);
        // A comment that was changed in a true signature.
        let text = String::from_utf8(signature(&ours)).unwrap().replace("a/manifest", "b/manifest");
        assert_eq!(trusted.verify_claim(SignedType::Manifest, "b/manifest.json", text.as_bytes()), untrusted);
        for damaged in [&b""[..], b"\xff", b"untrusted comment: x\n"] {
            let checked = trusted.verify_claim(SignedType::Manifest, "a/manifest.json", damaged);
            assert_eq!(checked, Err(SignatureError::Malformed));
        }
    }
}
