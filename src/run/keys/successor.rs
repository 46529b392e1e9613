//! Finds out whether newer keys exist than those that were found: a host must not seal to keys that
//! `key rotate` replaced.
//!
//! Two kinds of objects in a store show it. A rotation leaves a successor object in the folder of
//! the keyring that it replaces, signed with the old key. Backups made since are sealed to a
//! recipient that older keyrings do not have. To make old keys look current, an attacker who can
//! delete in the bucket must delete the successor and all newer backups.

use super::KEYRINGS_MAX;
use crate::catalog::get_signed;
use crate::keyring::{KeyFile, tag_of};
use crate::manifest::{FORMAT, MANIFEST_BYTES_MAX, parse_as, to_stored_bytes};
use crate::run::commit::put::put_again;
use crate::run::{RunError, error_chain};
use crate::sign::{SignedType, SigningKey, TrustedKeys, VerifyingKey};
use crate::store::key::{BackupObject, KEYRING_PREFIX, SIGNATURE_SUFFIX};
use crate::store::{ListedObject, ObjectKey, StoreErrorKind, StoreRead, StoreWrite};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The most signed objects that are tried. A rotation makes one, so all others are planted.
const SUCCESSORS_MAX: usize = 1000;
/// The most manifests that are fetched concurrently.
const AT_ONCE: usize = 16;

/// The statement that keys were replaced, and by which keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::run) struct Successor {
    format: u32,
    #[serde(rename = "type")]
    object_type: String,
    /// The folder of the replaced keyring.
    pub(in crate::run) replaced: String,
    /// The folder of the keyring that replaces it.
    pub(in crate::run) tag: String,
    /// The new verifying key.
    verifying_key: String,
    /// Whether the rotation used `--keep-trust`: signatures by the old keys still count.
    pub(in crate::run) keeps_trust: bool,
    pub(in crate::run) written_at: Timestamp,
}

impl Successor {
    pub(in crate::run) fn new(
        replaced: &str,
        tag: &str,
        new: &SigningKey,
        keeps_trust: bool,
    ) -> Self {
        Self {
            format: FORMAT,
            object_type: SignedType::Successor.as_str().to_owned(),
            replaced: replaced.to_owned(),
            tag: tag.to_owned(),
            verifying_key: new.verifying_key().to_string(),
            keeps_trust,
            written_at: Timestamp::now(),
        }
    }

    /// Puts the successor object, signed with the replaced key, unless the store has one that this
    /// key signed. Each object has its own name, so that an incomplete one, left by an interrupted
    /// run or an attacker, does not block the put.
    pub(in crate::run) async fn put(
        &self,
        store: &dyn StoreWrite,
        old: &SigningKey,
    ) -> Result<(), RunError> {
        let trusted = TrustedKeys::new(vec![old.verifying_key().clone()]);
        let known = read_successors(store, &self.replaced, &trusted).await?;
        if known
            .iter()
            .any(|known| known.tag == self.tag && known.keeps_trust == self.keeps_trust)
        {
            return Ok(());
        }
        let failed = |reason: String| RunError::refused(reason, "run it again");
        let nonce =
            getrandom::u32().map_err(|_| failed("the system gives no random bytes".to_owned()))?;
        let name = format!(
            "{KEYRING_PREFIX}{}/successor-{}-{nonce:08x}.json",
            self.replaced, self.tag
        );
        let key =
            ObjectKey::listed(&name).ok_or_else(|| failed(format!("{name:?} is not a key")))?;
        let bytes = to_stored_bytes(self).map_err(|error| failed(error.to_string()))?;
        let signature = old.sign(SignedType::Successor, key.as_str(), &bytes)?;
        put_again(store, &key.signature(), signature.into()).await?;
        put_again(store, &key, bytes.into()).await?;
        Ok(())
    }
}

/// Returns the successors of a keyring that these keys signed. Objects that do not verify are
/// ignored.
pub(in crate::run) async fn read_successors(
    store: &dyn StoreRead,
    tag: &str,
    trusted: &TrustedKeys,
) -> Result<Vec<Successor>, RunError> {
    let prefix = format!("{KEYRING_PREFIX}{tag}/successor-");
    let listed = store.list(&prefix).await?;
    // The signature is put first, and the listing is whole: an object without one is no evidence.
    let signed: BTreeSet<&str> = listed
        .iter()
        .filter_map(|object| object.key.strip_suffix(SIGNATURE_SUFFIX))
        .collect();
    let keys = listed
        .iter()
        .filter(|object| signed.contains(object.key.as_str()));
    let keys: Vec<ObjectKey> = keys
        .filter_map(|object| ObjectKey::listed(&object.key))
        .collect();
    if keys.len() > SUCCESSORS_MAX {
        // Trying only some of the objects would let planted objects hide a rotation.
        let what = format!(
            "{} has {} objects below {prefix}, and a rotation makes one",
            store.url(),
            keys.len()
        );
        return Err(RunError::refused(
            what,
            "find out who put them there, and remove those that are not yours",
        ));
    }
    let mut successors = Vec::new();
    for key in keys {
        let verified = match get_signed(
            store,
            &key,
            SignedType::Successor,
            trusted,
            MANIFEST_BYTES_MAX,
        )
        .await
        {
            Ok((bytes, _)) => {
                parse_as::<Successor>(&bytes, "successor").map_err(|error| error_chain(&error))
            }
            Err(error) if error.is_damage() => Err(error_chain(&error)),
            Err(error) => return Err(error.into()),
        };
        match verified {
            Ok(successor) => successors.push(successor),
            Err(reason) => tracing::debug!(%key, reason, "ignoring an invalid successor object"),
        }
    }
    Ok(successors)
}

/// Returns the successors of a keyring, and the successors of those that keep trust in it: a later
/// rotation retires all older keys, and leaves its successor object only in the folder of the
/// keyring before it.
async fn read_all_successors(
    store: &dyn StoreRead,
    tag: &str,
    trusted: &TrustedKeys,
) -> Result<Vec<Successor>, RunError> {
    let mut all = read_successors(store, tag, trusted).await?;
    let mut seen = BTreeSet::from([tag.to_owned()]);
    let mut at = 0;
    while let Some(successor) = all.get(at).cloned() {
        at += 1;
        // An older key vouches for the newer one, which signs the next successor.
        let key = successor.verifying_key.parse::<VerifyingKey>();
        let (true, true, Ok(key)) = (successor.keeps_trust, seen.len() <= KEYRINGS_MAX, key) else {
            continue;
        };
        if seen.insert(successor.tag.clone()) {
            all.extend(read_successors(store, &successor.tag, &TrustedKeys::new(vec![key])).await?);
        }
    }
    Ok(all)
}

/// Refuses to write with cached keys that a rotation on another host replaced. An unfinished
/// rotation of this host is no reason to refuse: when it is finished, it adds the objects signed
/// since to the list.
pub(super) async fn refuse_replaced(
    store: &dyn StoreRead,
    tag: &str,
    trusted: &TrustedKeys,
    own_rotation: Option<&str>,
) -> Result<(), RunError> {
    for successor in read_all_successors(store, tag, trusted).await? {
        let Successor {
            tag: new,
            written_at,
            ..
        } = &successor;
        if own_rotation == Some(new) {
            tracing::warn!(
                "a rotation of the keys was interrupted; run `zfs-backup key rotate` again"
            );
            continue;
        }
        if successor.keeps_trust {
            tracing::warn!(
                store = store.url(),
                keyring = new,
                "the keys of this host were replaced, but are still trusted; run `zfs-backup key rotate` here too"
            );
            continue;
        }
        return Err(RunError::refused(
            format!(
                "the keys of this host ({tag}) were replaced by `key rotate` on {written_at}: \
                 backups made with them would be untrusted"
            ),
            format!(
                "run `zfs-backup key rotate` on this host: it takes over the keyring {new} of {}",
                store.url()
            ),
        ));
    }
    Ok(())
}

/// Returns a refusal if the store has evidence that the keys found in its keyrings are not the
/// newest.
///
/// # Errors
/// [`RunError::Store`] when the store cannot be read.
pub(super) async fn find_newer(
    store: &dyn StoreRead,
    listed: &[ListedObject],
    file: &KeyFile,
    tag: &str,
) -> Result<Option<RunError>, RunError> {
    if let Some(error) = find_successor(store, file, tag).await? {
        return Ok(Some(error));
    }
    let is_manifest = |object: &&ListedObject| {
        ObjectKey::parse(&object.key)
            .is_some_and(|key| key.object == BackupObject::Manifest && !key.signature)
    };
    let keys: Vec<ObjectKey> = listed
        .iter()
        .filter(is_manifest)
        .filter_map(|object| ObjectKey::listed(&object.key))
        .collect();
    let reads: Vec<_> = keys
        .into_iter()
        .map(|key| async move {
            let recipient = foreign_recipient(store, &key, file).await;
            (key, recipient)
        })
        .collect();
    let mut reads = stream::iter(reads).buffered(AT_ONCE);
    while let Some((key, recipient)) = reads.next().await {
        if let Some(other) = recipient? {
            return Ok(Some(RunError::refused(
                format!(
                    "{} holds backups for newer or other keys than those that the passphrase opens (keyring {tag}): \
                     {key} is sealed to {other}, whose keyring {} is gone or has another passphrase",
                    store.url(),
                    tag_of(&other)
                ),
                way_out(),
            )));
        }
    }
    Ok(None)
}

/// Returns a refusal if a rotation that retired these keys made a keyring that was not opened.
pub(super) async fn find_successor(
    store: &dyn StoreRead,
    file: &KeyFile,
    tag: &str,
) -> Result<Option<RunError>, RunError> {
    let opened: BTreeSet<String> = file
        .identities
        .iter()
        .map(|identity| tag_of(&identity.to_public().to_string()))
        .collect();
    let successors = read_all_successors(store, tag, &file.trusted).await?;
    let missing = successors
        .iter()
        .find(|successor| !successor.keeps_trust && !opened.contains(&successor.tag));
    Ok(missing.map(|successor| {
        RunError::refused(
            format!(
                "the keys of keyring {tag} in {} were replaced by `key rotate` on {}, and the new keyring {} is gone or \
                 has another passphrase",
                store.url(),
                successor.written_at,
                successor.tag
            ),
            way_out(),
        )
    }))
}

fn way_out() -> &'static str {
    "use the passphrase of the newest keyring; or put a copy of it back below `@zfs-backup/keys/`, from another store or \
     from `keyring.age` beside a backup; or delete the backups that are not yours; or, if these keys are the right ones \
     and you know why, `zfs-backup key generate --trust-found-keys`, then `zfs-backup key rotate`"
}

/// Returns the recipient of a manifest that these keys do not open, because newer keys or a
/// stranger made it.
pub(in crate::run) async fn foreign_recipient(
    store: &dyn StoreRead,
    key: &ObjectKey,
    file: &KeyFile,
) -> Result<Option<String>, RunError> {
    let known: BTreeSet<String> = file
        .identities
        .iter()
        .map(|identity| identity.to_public().to_string())
        .collect();
    let recipients = recipients_of(store, key).await?;
    Ok(
        if recipients.iter().any(|recipient| known.contains(recipient)) {
            None
        } else {
            recipients.into_iter().next()
        },
    )
}

/// Returns the recipients that a manifest names. The manifest is not verified, so they are only a
/// reason for doubt. Empty when the manifest cannot be read.
async fn recipients_of(store: &dyn StoreRead, key: &ObjectKey) -> Result<Vec<String>, RunError> {
    #[derive(Deserialize)]
    struct Recipients {
        recipients: Vec<String>,
    }
    match store.get(key, None, MANIFEST_BYTES_MAX).await {
        Ok(bytes) => Ok(serde_json::from_slice::<Recipients>(&bytes)
            .map(|read| read.recipients)
            .unwrap_or_default()),
        Err(error)
            if matches!(
                error.kind,
                StoreErrorKind::NotFound | StoreErrorKind::Corrupt
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}
