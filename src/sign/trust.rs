//! [`TrustedKeys`]: which keys are trusted, and for which objects. No other module decides this.

use super::{Believed, Signature, SignatureError, SignedType, VerifyingKey, trusted_comment};
use crate::model::Digest;
use blake2::{Blake2b512, Digest as _};
use std::sync::Arc;

/// The objects for which a key is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The key signs now, or the configuration names it: trusted for everything.
    Current,
    /// An older key whose rotation had `--keep-trust`: trusted for everything but configurations,
    /// progress and successors.
    Kept,
    /// An older key of a rotation that kept no list, as in early builds: trusted as
    /// [`Trust::Kept`], with a warning.
    Unlimited,
    /// An older key that a rotation retired: trusted only for the objects on the lists.
    Retired,
}

/// A list of the objects that retired keys signed before they were retired, as a keyring names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedList {
    /// The tag of the keyring folder that holds the list.
    pub tag: String,
    /// The hash of the list's stored bytes.
    pub blake3: Digest,
    /// The content, once the list was read. A missing list counts as empty.
    pub content: Option<Arc<Believed>>,
}

/// The keys that a reader trusts. Without keys nothing verifies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys {
    keys: Vec<(VerifyingKey, Trust)>,
    /// The lists of objects for which retired keys stay trusted. Membership in any of them counts.
    pub lists: Vec<TrustedList>,
}

impl TrustedKeys {
    /// Trusts these keys for everything.
    pub fn new(keys: Vec<VerifyingKey>) -> Self {
        let keys = keys.into_iter().map(|key| (key, Trust::Current)).collect();
        Self {
            keys,
            lists: Vec::new(),
        }
    }

    /// Returns all keys with their trust, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&VerifyingKey, Trust)> {
        self.keys.iter().map(|(key, trust)| (key, *trust))
    }

    /// Returns the keys with this trust.
    pub fn with(&self, trust: Trust) -> impl Iterator<Item = &VerifyingKey> {
        self.iter()
            .filter(move |(_, actual)| *actual == trust)
            .map(|(key, _)| key)
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are no keys, so that nothing can verify.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the trust of this key, or `None` when the key is unknown.
    pub fn trust_in(&self, key: &VerifyingKey) -> Option<Trust> {
        self.iter()
            .find(|(known, _)| *known == key)
            .map(|(_, trust)| trust)
    }

    /// Adds a key. A known key keeps its trust: a configuration that still names a retired key does
    /// not restore its trust.
    pub fn add(&mut self, key: VerifyingKey, trust: Trust) {
        if self.trust_in(&key).is_none() {
            self.keys.push((key, trust));
        }
    }

    /// Adds all keys of the configuration.
    pub fn add_all(&mut self, keys: impl IntoIterator<Item = VerifyingKey>) {
        keys.into_iter()
            .for_each(|key| self.add(key, Trust::Current));
    }

    /// Sets this trust on every key in the list, before the new signing key is added. Retired keys
    /// stay retired.
    pub(crate) fn demote_all(&mut self, to: Trust) {
        for (_, trust) in &mut self.keys {
            *trust = if *trust == Trust::Retired {
                Trust::Retired
            } else {
                to
            };
        }
    }

    /// Moves or adds a key to the front, with [`Trust::Current`].
    pub(crate) fn put_first(&mut self, key: VerifyingKey) {
        self.keys.retain(|(known, _)| *known != key);
        self.keys.insert(0, (key, Trust::Current));
    }

    /// Adds the keys and lists of another keyring. If these keys replaced the others, this keyring
    /// decides the others' trust. If the two keyrings are unrelated, the stricter trust counts, and
    /// the lists are united.
    pub(crate) fn merge(&mut self, other: &Self, replaces_other: bool) {
        for (key, trust) in &other.keys {
            match self.keys.iter_mut().find(|(known, _)| known == key) {
                None => self.keys.push((key.clone(), *trust)),
                Some((_, known)) if !replaces_other && *trust == Trust::Retired => {
                    *known = Trust::Retired
                }
                Some(_) => {}
            }
        }
        if !replaces_other {
            for list in &other.lists {
                match self
                    .lists
                    .iter_mut()
                    .find(|known| known.blake3 == list.blake3)
                {
                    None => self.lists.push(list.clone()),
                    Some(known) => {
                        known.content = known.content.take().or_else(|| list.content.clone())
                    }
                }
            }
        }
    }

    /// Returns the union of all lists.
    pub fn believed(&self) -> Believed {
        let mut all = Believed::default();
        self.lists
            .iter()
            .filter_map(|list| list.content.as_deref())
            .for_each(|list| all.extend(list));
        all
    }

    /// Verifies the signature before anything parses the bytes. A retired key counts only for the
    /// objects on the lists, and never for a configuration, for the progress of an upload, or for a
    /// successor: these are made again.
    ///
    /// # Errors
    /// [`SignatureError`] unless a key that is trusted for this type signed exactly these bytes for
    /// exactly this place.
    pub fn verify(
        &self,
        signed_type: SignedType,
        key: &str,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        let text = std::str::from_utf8(signature).map_err(|_| SignatureError::Malformed)?;
        let signature = Signature::parse(text).ok_or(SignatureError::Malformed)?;
        let digest = Blake2b512::digest(bytes);
        let signer = self
            .iter()
            .find(|(trusted, _)| signature.is_by(trusted, &digest));
        let Some((signer, trust)) = signer else {
            return Err(SignatureError::Untrusted {
                trusted: self.keys.len(),
            });
        };
        let expected = trusted_comment(signed_type, key);
        let actual = signature.comment.to_owned();
        if expected != actual {
            return Err(SignatureError::Elsewhere { expected, actual });
        }
        self.judge(signed_type, signer, trust, |list| {
            list.contains(key, Digest::of(bytes))
        })
    }

    /// Decides whether a signature by this key is accepted for an object of this type. `is_on` says
    /// whether a list contains the object.
    pub(super) fn judge(
        &self,
        signed_type: SignedType,
        signer: &VerifyingKey,
        trust: Trust,
        is_on: impl Fn(&Believed) -> bool,
    ) -> Result<(), SignatureError> {
        match trust {
            Trust::Current => Ok(()),
            _ if signed_type.is_of_current_key() => Err(SignatureError::Outdated {
                key: signer.to_string(),
                object_type: signed_type.as_str(),
            }),
            Trust::Kept | Trust::Unlimited => Ok(()),
            Trust::Retired => self.check_listed(signer, is_on),
        }
    }

    fn check_listed(
        &self,
        signer: &VerifyingKey,
        is_on: impl Fn(&Believed) -> bool,
    ) -> Result<(), SignatureError> {
        if self
            .lists
            .iter()
            .filter_map(|list| list.content.as_deref())
            .any(is_on)
        {
            return Ok(());
        }
        let signer = signer.to_string();
        match self.lists.iter().find(|list| list.content.is_none()) {
            Some(list) => Err(SignatureError::RetiredWithoutList {
                key: signer,
                list: list.name(),
            }),
            None => Err(SignatureError::Retired { key: signer }),
        }
    }
}

impl TrustedList {
    /// Returns the list's path below the folder of all keyrings.
    pub fn name(&self) -> String {
        format!("{}/believed-{}.json", self.tag, self.blake3)
    }
}

impl SignedType {
    /// Whether only a current key may sign this type: objects that are made again anyway, or whose
    /// content would run as root.
    fn is_of_current_key(self) -> bool {
        matches!(self, Self::Config | Self::Progress | Self::Successor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::SigningKey;

    const TYPES: [SignedType; 8] = [
        SignedType::Started,
        SignedType::Progress,
        SignedType::RestoreText,
        SignedType::Receipt,
        SignedType::Manifest,
        SignedType::PruneRecord,
        SignedType::Config,
        SignedType::Successor,
    ];

    #[test]
    fn retired_key_verifies_only_listed_objects() {
        let (old, new) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let place = "tank/a/@x/manifest.json";
        let mut list = Believed::default();
        list.insert(place, Digest::of(b"listed"));
        for trust in [
            Trust::Current,
            Trust::Kept,
            Trust::Unlimited,
            Trust::Retired,
        ] {
            let mut trusted = TrustedKeys::new(vec![new.verifying_key().clone()]);
            trusted.add(old.verifying_key().clone(), trust);
            for signed_type in TYPES {
                let verify = |trusted: &TrustedKeys, by: &SigningKey, place: &str, bytes: &[u8]| {
                    trusted.verify(
                        signed_type,
                        place,
                        bytes,
                        &by.sign(signed_type, place, bytes).unwrap(),
                    )
                };
                let pinned = TrustedList {
                    tag: "t".into(),
                    blake3: Digest::of(b""),
                    content: None,
                };
                assert_eq!(
                    verify(&trusted, &new, place, b"x"),
                    Ok(()),
                    "{trust:?}, {signed_type:?}"
                );
                let limited = trust != Trust::Current && signed_type.is_of_current_key();
                let old_counts = trust != Trust::Retired && !limited;
                assert_eq!(
                    verify(&trusted, &old, place, b"x").is_ok(),
                    old_counts,
                    "{trust:?}, {signed_type:?}"
                );
                let (mut lost, mut with_list) = (trusted.clone(), trusted.clone());
                lost.lists.push(pinned.clone());
                with_list.lists.push(TrustedList {
                    content: Some(Arc::new(list.clone())),
                    ..pinned
                });
                assert_eq!(
                    verify(&with_list, &old, place, b"listed").is_ok(),
                    !limited,
                    "{trust:?}, {signed_type:?}"
                );
                if trust == Trust::Retired && !limited {
                    assert!(matches!(
                        verify(&lost, &old, place, b"listed"),
                        Err(SignatureError::RetiredWithoutList { list, .. }) if list.starts_with("t/believed-")
                    ));
                    assert!(matches!(
                        verify(&with_list, &old, place, b"other"),
                        Err(SignatureError::Retired { .. })
                    ));
                    assert!(matches!(
                        verify(&with_list, &old, "tank/b/@x/manifest.json", b"listed"),
                        Err(SignatureError::Retired { .. })
                    ));
                }
            }
        }
    }

    fn list(name: &str, content: Option<&str>) -> TrustedList {
        let listed = |key: &str| {
            let mut list = Believed::default();
            list.insert(key, Digest::of(b"listed"));
            Arc::new(list)
        };
        TrustedList {
            tag: "t".into(),
            blake3: Digest::of(name.as_bytes()),
            content: content.map(listed),
        }
    }

    #[test]
    fn merging_unites_trusted_lists_and_a_replacement_keeps_its_own() {
        let with_lists = |lists| TrustedKeys {
            keys: Vec::new(),
            lists,
        };
        let other = with_lists(vec![list("one", Some("a/one")), list("two", Some("a/two"))]);
        let mut own = with_lists(vec![list("one", None)]);
        let mut replaced = own.clone();
        replaced.merge(&other, true);
        assert_eq!(replaced, own);
        own.merge(&other, false);
        assert_eq!(own.lists, other.lists);
        own.merge(&TrustedKeys::default(), false);
        assert_eq!(own.lists, other.lists);
        let digest = Digest::of(b"listed");
        let all = own.believed();
        assert!(all.contains("a/one", digest) && all.contains("a/two", digest));
    }

    #[test]
    fn only_a_retired_key_of_an_unrelated_keyring_loses_its_trust() {
        let key = SigningKey::generate().unwrap().verifying_key().clone();
        for (theirs, replaces_other, expected) in [
            (Trust::Current, false, Trust::Current),
            (Trust::Kept, false, Trust::Current),
            (Trust::Retired, true, Trust::Current),
            (Trust::Retired, false, Trust::Retired),
        ] {
            let mut other = TrustedKeys::default();
            assert!(other.is_empty());
            other.add(key.clone(), theirs);
            assert!(!other.is_empty());
            let mut own = TrustedKeys::default();
            own.add_all([key.clone()]);
            own.merge(&other, replaces_other);
            assert_eq!(
                own.trust_in(&key),
                Some(expected),
                "{theirs:?}, {replaces_other}"
            );
        }
    }

    #[test]
    fn retired_key_stays_retired_after_merge_with_older_keys() {
        let key = SigningKey::generate().unwrap().verifying_key().clone();
        let mut trusted = TrustedKeys::default();
        trusted.add(key.clone(), Trust::Retired);
        trusted.add_all([key.clone()]);
        for replaces_other in [true, false] {
            trusted.merge(&TrustedKeys::new(vec![key.clone()]), replaces_other);
        }
        trusted.demote_all(Trust::Kept);
        assert_eq!(trusted.trust_in(&key), Some(Trust::Retired));
        let mut beside = TrustedKeys::new(vec![key.clone()]);
        beside.merge(&trusted, false);
        assert_eq!(
            beside.trust_in(&key),
            Some(Trust::Retired),
            "a rotation on another host retired it"
        );
    }
}
