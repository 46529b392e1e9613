//! Checks a signature file before its object is fetched. Minisign signs the trusted comment
//! separately, so a few hundred bytes show whether one of our keys signed any object for this key.

use super::{Signature, SignatureError, SignedType, TrustedKeys, VerifyingKey, trusted_comment};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

impl TrustedKeys {
    /// Checks that one of the keys signed some object of exactly this place and type. The object's
    /// own bytes are not covered: [`TrustedKeys::verify`] decides about them.
    ///
    /// # Errors
    /// [`SignatureError`]; no object, with any bytes, can then verify with this signature.
    pub fn verify_claim(
        &self,
        signed_type: SignedType,
        key: &str,
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        let text = std::str::from_utf8(signature).map_err(|_| SignatureError::Malformed)?;
        let signature = Signature::parse(text).ok_or(SignatureError::Malformed)?;
        let signer = self
            .iter()
            .find(|(trusted, _)| signature.is_claim_by(trusted));
        let Some((signer, trust)) = signer else {
            return Err(SignatureError::Untrusted {
                trusted: self.len(),
            });
        };
        let expected = trusted_comment(signed_type, key);
        let actual = signature.comment.to_owned();
        if expected != actual {
            return Err(SignatureError::Elsewhere { expected, actual });
        }
        // The holder of a retired key can sign a claim for any place, so the object is fetched only
        // when a list names it.
        self.judge(signed_type, signer, trust, |list| list.names(key))
    }
}

impl Signature<'_> {
    /// Whether this key made the signature over the trusted comment.
    fn is_claim_by(&self, VerifyingKey(trusted): &VerifyingKey) -> bool {
        let key = trusted.to_bytes();
        let Some((_algorithm, key)) = key.split_first_chunk::<2>() else {
            return false;
        };
        let Some((key_id, key)) = key.split_first_chunk::<8>() else {
            return false;
        };
        let commented = [&self.of_digest, self.comment.as_bytes()].concat();
        self.key_id == *key_id
            && UnparsedPublicKey::new(&ED25519, key)
                .verify(&commented, &self.global)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;
    use crate::sign::{Believed, SigningKey, Trust, TrustedList};
    use std::sync::Arc;

    #[test]
    fn claim_of_a_retired_key_is_valid_only_for_listed_keys() {
        let (old, new) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let mut list = Believed::default();
        list.insert("a/manifest.json", Digest::of(b"bytes"));
        let mut trusted = TrustedKeys::new(vec![new.verifying_key().clone()]);
        trusted.add(old.verifying_key().clone(), Trust::Retired);
        trusted.lists = vec![TrustedList {
            tag: "t".into(),
            blake3: Digest::of(b""),
            content: Some(Arc::new(list)),
        }];
        let check = |trusted: &TrustedKeys, signed_type, place: &str, by: &SigningKey| {
            trusted.verify_claim(
                signed_type,
                place,
                &by.sign(signed_type, place, b"bytes").unwrap(),
            )
        };
        assert_eq!(
            check(&trusted, SignedType::Manifest, "a/manifest.json", &old),
            Ok(())
        );
        assert_eq!(
            check(&trusted, SignedType::Manifest, "b/manifest.json", &new),
            Ok(())
        );
        let planted = check(&trusted, SignedType::Manifest, "b/manifest.json", &old);
        assert!(
            matches!(planted, Err(SignatureError::Retired { .. })),
            "{planted:?}"
        );
        let config = check(&trusted, SignedType::Config, "a/manifest.json", &old);
        assert!(
            matches!(config, Err(SignatureError::Outdated { .. })),
            "{config:?}"
        );
        trusted.lists[0].content = None;
        let without = check(&trusted, SignedType::Manifest, "a/manifest.json", &old);
        assert!(
            matches!(without, Err(SignatureError::RetiredWithoutList { .. })),
            "{without:?}"
        );
    }

    #[test]
    fn claim_is_valid_only_for_its_object_key_type_and_signing_key() {
        let (ours, theirs) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let trusted: TrustedKeys = TrustedKeys::new(vec![ours.verifying_key().clone()]);
        let signature = |key: &SigningKey| {
            key.sign(SignedType::Manifest, "a/manifest.json", b"bytes")
                .unwrap()
        };
        let check =
            |signed_type, place: &str, by| trusted.verify_claim(signed_type, place, &signature(by));
        assert_eq!(
            check(SignedType::Manifest, "a/manifest.json", &ours),
            Ok(())
        );
        let elsewhere = |checked| matches!(checked, Err(SignatureError::Elsewhere { .. }));
        assert!(elsewhere(check(
            SignedType::Manifest,
            "b/manifest.json",
            &ours
        )));
        assert!(elsewhere(check(
            SignedType::Receipt,
            "a/manifest.json",
            &ours
        )));
        let untrusted = Err(SignatureError::Untrusted { trusted: 1 });
        assert_eq!(
            check(SignedType::Manifest, "a/manifest.json", &theirs),
            untrusted
        );
        // A valid signature whose trusted comment was changed.
        let text = String::from_utf8(signature(&ours))
            .unwrap()
            .replace("a/manifest", "b/manifest");
        assert_eq!(
            trusted.verify_claim(SignedType::Manifest, "b/manifest.json", text.as_bytes()),
            untrusted
        );
        for damaged in [&b""[..], b"\xff", b"untrusted comment: x\n"] {
            let checked = trusted.verify_claim(SignedType::Manifest, "a/manifest.json", damaged);
            assert_eq!(checked, Err(SignatureError::Malformed));
        }
    }
}
