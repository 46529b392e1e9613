//! Finds the keys of a store in its keyrings: those in the folder of keyrings, and the copies in
//! the folders of backups.

use super::lists::read_lists;
use super::successor::find_successor;
use super::{StoredKeyring, keyring_error, stored_keyrings};
use crate::catalog::list_wanted;
use crate::keyring::{KEYRING_BYTES_MAX, KeyFile, KeyringError, keyring_tag};
use crate::run::{RunError, error_chain};
use crate::store::key::{BackupObject, KEYRING_PREFIX, ParsedKey};
use crate::store::{ListedObject, ObjectKey, StoreErrorKind, StoreRead, StoreWrite};
use age::secrecy::SecretString;
use std::collections::BTreeSet;

/// The most keyring copies that are opened: of the newest backups, and of distinct sizes.
const KEYRING_COPIES_MAX: usize = 8;

/// The last number of a keyring: names have four digits.
const NUMBER_MAX: u16 = 9999;

/// Opens all keyrings of the store that the passphrase opens, in the folder of keyrings and in the
/// folders of backups, for a restore.
///
/// # Errors
/// [`RunError`] when there is no keyring, or when the passphrase opens none.
pub async fn open_keyrings(
    store: &dyn StoreRead,
    passphrase: &SecretString,
) -> Result<KeyFile, RunError> {
    let found = find_keys(store, passphrase).await?.ok_or_else(|| {
        RunError::refused(
            format!("there is no keyring in {}", store.url()),
            "check bucket and prefix; or name the key file with --identity",
        )
    })?;
    warn_of_newer(store, &found.file).await?;
    Ok(found.file)
}

/// Warns when the store shows that a rotation replaced these keys. An old key file must not pass
/// for the current one.
///
/// # Errors
/// [`RunError::Store`] when the store cannot be read.
pub async fn warn_of_newer(store: &dyn StoreRead, file: &KeyFile) -> Result<(), RunError> {
    let tag = keyring_tag(
        &file
            .recipient()
            .map_err(|source| keyring_error(store, source))?,
    );
    if let Some(error) = find_successor(store, file, &tag).await? {
        tracing::warn!(
            error = error_chain(&error),
            "newer keys exist: backups that were made with them do not verify, and anyone who has \
             the old key can sign backups and configurations that do"
        );
    }
    Ok(())
}

/// The keys of a store whose keyrings and copies were read.
pub(in crate::run) struct FoundKeys {
    pub(in crate::run) file: KeyFile,
    pub(in crate::run) keyring: StoredKeyring,
    /// Whether the newest keyring is in its own folder, and not only in the folder of a backup.
    in_place: bool,
    /// The manifests and the copies of keyrings in the store.
    pub(super) listed: Vec<ListedObject>,
}

/// Opens the keyrings that the passphrase opens, and reads the lists of retired keys. The copies in
/// the folders of backups are always read too: otherwise an older keyring alone in the folder would
/// pass for the newest. Returns `None` when the store has no keyring of any kind.
pub(in crate::run) async fn find_keys(
    store: &dyn StoreRead,
    passphrase: &SecretString,
) -> Result<Option<FoundKeys>, RunError> {
    let stored = stored_keyrings(store).await?;
    let listed = list_wanted(store, is_manifest_or_copy).await?;
    let mut all = keyring_copies(store, &listed).await?;
    all.retain(|copy| stored.iter().all(|keyring| keyring.bytes != copy.bytes));
    all.extend(stored.iter().cloned());
    if all.is_empty() {
        return Ok(None);
    }
    let (mut file, keyring) = open_all(store, &all, passphrase)?;
    read_lists(store, &mut file.trusted).await?;
    let in_place = stored.iter().any(|stored| stored.bytes == keyring.bytes);
    Ok(Some(FoundKeys {
        file,
        keyring,
        in_place,
        listed,
    }))
}

fn is_manifest_or_copy(key: &str) -> bool {
    let wanted = |parsed: &ParsedKey| {
        matches!(
            parsed.object,
            BackupObject::Manifest | BackupObject::Keyring
        )
    };
    ObjectKey::parse(key).as_ref().is_some_and(wanted)
}

/// Fetches the keyring copies of the newest few backups, and the newest copy of each size, without
/// repeated contents. Keyrings differ in size, so that a keyring which only few backups have is not
/// missed.
async fn keyring_copies(
    store: &dyn StoreRead,
    listed: &[ListedObject],
) -> Result<Vec<StoredKeyring>, RunError> {
    let is_copy = |key: &ParsedKey| key.object == BackupObject::Keyring && !key.signature;
    let mut copies: Vec<_> = listed
        .iter()
        .filter(|object| object.bytes <= KEYRING_BYTES_MAX)
        .filter_map(|object| {
            let id = ObjectKey::parse(&object.key).filter(is_copy)?.id;
            Some((id, ObjectKey::listed(&object.key)?, object.bytes))
        })
        .collect();
    copies.sort_by(|a, b| b.cmp(a));
    let mut sizes = BTreeSet::new();
    let (first, more): (Vec<_>, Vec<_>) = copies
        .into_iter()
        .partition(|(_, _, bytes)| sizes.insert(*bytes));
    let firsts = first.into_iter().take(KEYRING_COPIES_MAX);
    let mut keyrings: Vec<StoredKeyring> = Vec::new();
    for (_, key, _) in firsts.chain(more.into_iter().take(KEYRING_COPIES_MAX)) {
        let bytes = match store.get(&key, None, KEYRING_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind == StoreErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        if keyrings.iter().all(|other| other.bytes != bytes) {
            keyrings.push(StoredKeyring {
                tag: String::new(),
                bytes,
            });
        }
    }
    Ok(keyrings)
}

/// Puts the newest keyring back into its folder if only a backup's copy was left.
pub(super) async fn put_back(store: &dyn StoreWrite, found: &FoundKeys) -> Result<(), RunError> {
    if found.in_place {
        return Ok(());
    }
    let keyring = &found.keyring;
    tracing::warn!(
        store = store.url(),
        keyring = keyring.tag,
        "the keyring was gone; restoring it from the copy of a backup. Find out who deleted it"
    );
    let number = free_number(store, &keyring.tag).await?;
    store
        .put_new(
            &ObjectKey::keyring_number(&keyring.tag, number),
            keyring.bytes.clone(),
        )
        .await?;
    Ok(())
}

/// Returns the number for the next keyring of this tag: the one after the highest, or the lowest
/// free number when somebody planted a keyring under the last number. Objects of any size take a
/// number.
pub(in crate::run) async fn free_number(store: &dyn StoreRead, tag: &str) -> Result<u16, RunError> {
    let prefix = format!("{KEYRING_PREFIX}{tag}/");
    let listed = store.list(&prefix).await?;
    let number = |key: &str| {
        key.strip_prefix(&prefix)?
            .strip_suffix(".age")?
            .parse::<u16>()
            .ok()
    };
    let taken: BTreeSet<u16> = listed
        .iter()
        .filter_map(|object| number(&object.key))
        .collect();
    let highest = taken.last().copied().unwrap_or(0);
    (highest.saturating_add(1)..=NUMBER_MAX)
        .chain(1..=NUMBER_MAX)
        .find(|number| !taken.contains(number))
        .ok_or_else(|| {
            let what = format!("every number below {prefix} in {} is taken", store.url());
            RunError::refused(
                what,
                "find out who put keyrings there, and remove those that are not yours",
            )
        })
}

/// Opens every keyring that the passphrase opens. The file has the identities and verifying keys of
/// all of them; the keys that sign and seal come from the newest one, which is returned too. Of
/// rotated keys, the newest follows the others; of one keyring sealed several times, it has the
/// highest number. An empty tag is filled in.
fn open_all(
    store: &dyn StoreRead,
    stored: &[StoredKeyring],
    passphrase: &SecretString,
) -> Result<(KeyFile, StoredKeyring), RunError> {
    let mut opened: Option<(KeyFile, StoredKeyring)> = None;
    let mut refusal = KeyringError::WrongPassphrase;
    for keyring in stored {
        let file = match KeyFile::open(&keyring.bytes, passphrase) {
            Ok(file) => file,
            Err(KeyringError::WrongPassphrase) => continue,
            // Any other error is a better reason to report than a wrong passphrase.
            Err(error) => {
                refusal = error;
                continue;
            }
        };
        let tag = keyring_tag(
            &file
                .recipient()
                .map_err(|source| keyring_error(store, source))?,
        );
        if !keyring.tag.is_empty() && keyring.tag != tag {
            tracing::warn!(
                tag = keyring.tag,
                "ignoring a keyring that lies under the name of another"
            );
            continue;
        }
        let keyring = StoredKeyring {
            tag,
            bytes: keyring.bytes.clone(),
        };
        opened = Some(match opened.take() {
            Some(before) => newer_of(before, (file, keyring)),
            None => (file, keyring),
        });
    }
    opened.ok_or_else(|| keyring_error(store, refusal))
}

/// Returns the newer of two opened keyrings, with the identities and the trust of the other added.
/// If neither follows the other, the second is the newer.
pub(in crate::run) fn newer_of(
    (mut before, old): (KeyFile, StoredKeyring),
    (mut file, new): (KeyFile, StoredKeyring),
) -> (KeyFile, StoredKeyring) {
    if before.follows(&file) {
        before.take_over(&file);
        return (before, old);
    }
    file.take_over(&before);
    (file, new)
}
