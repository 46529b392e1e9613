//! A new passphrase, and new keys: what changes a keyring that backups hang on.
//!
//! Nothing that is in a store is changed or removed. The new keyring is put beside the old ones in every store, fetched
//! and opened; only then is it cached on this host, in one rename. Whatever fails before that leaves this host with the
//! keys that it had, and the same command again takes up what was put.

use super::RunError;
use super::keys::{
    KEYRINGS_MAX, KeyCache, StoredKeyring, WriterKeys, fetch_keyring, keyring_error, list_keyrings, newer_of, open_all,
    stored_keyrings,
};
use crate::keyring::{KeyFile, KeyringError, keyring_tag};
use crate::store::{ObjectKey, ObjectStore};
use age::secrecy::{ExposeSecret, SecretString};
use bytes::Bytes;
use std::sync::Arc;

/// Where keys are changed.
pub struct Rekey<'a> {
    /// Every configured store. The new keyring goes to all of them.
    pub stores: &'a [Arc<dyn ObjectStore>],
    /// The keys of this host.
    pub cache: &'a KeyCache,
    /// The work factor of a new keyring: [`crate::keyring::WORK_FACTOR`].
    pub work_factor: u8,
}

/// What was done.
pub struct Rekeyed {
    /// The keys that this host uses from now on.
    pub keys: WriterKeys,
    /// Each store with the key that the new keyring has there.
    pub places: Vec<(String, ObjectKey)>,
    /// An earlier run had begun this, and it was taken up.
    pub taken_up: bool,
}

impl Rekey<'_> {
    /// Seals the keys anew with another passphrase, as the next number beside the old keyring, in every store. Old
    /// keyrings, also those beside backups, stay and open with the old passphrase.
    ///
    /// # Errors
    /// [`RunError`]; then this host keeps the keyring that it had, and the old passphrase opens what it opened.
    pub async fn change_passphrase(&self, old: &SecretString, new: &SecretString) -> Result<Rekeyed, RunError> {
        if old.expose_secret() == new.expose_secret() {
            return Err(RunError::refused("the new passphrase is the old one", "choose another one"));
        }
        let _lock = self.cache.lock()?;
        let (file, newest) = self.open_everywhere(old).await?;
        match self.relation(&file)? {
            Relation::Same => {}
            Relation::Newer => {
                return Err(RunError::refused(
                    "a rotation of the keys was interrupted",
                    "run `zfs-backup key rotate` again first",
                ));
            }
        }
        let begun = self.sealed_before(&file, &newest.tag, new).await?;
        let taken_up = begun.is_some();
        let sealed = match begun {
            Some(sealed) => sealed,
            None => self.seal(&file, new)?,
        };
        self.put_and_cache(&file, sealed, new, taken_up).await
    }

    /// Makes new keys, which follow the old ones, and puts their keyring into every store.
    ///
    /// # Errors
    /// [`RunError`]; then this host keeps the keys that it had.
    pub async fn rotate(&self, passphrase: &SecretString) -> Result<Rekeyed, RunError> {
        let _lock = self.cache.lock()?;
        let (file, newest) = self.open_everywhere(passphrase).await?;
        match self.relation(&file)? {
            Relation::Newer => {
                let own = KeyFile::open(&newest.bytes, passphrase).map_err(|source| self.failed(source))?;
                self.put_and_cache(&own, newest.bytes, passphrase, true).await
            }
            Relation::Same => {
                let file = file.rotated().map_err(|source| self.failed(source))?;
                let sealed = self.seal(&file, passphrase)?;
                self.put_and_cache(&file, sealed, passphrase, false).await
            }
        }
    }

    /// The newest keys of all stores, with all that any keyring of any store opens. A store without keyrings is passed
    /// over; one whose keyrings the passphrase does not open is an error.
    async fn open_everywhere(&self, passphrase: &SecretString) -> Result<(KeyFile, StoredKeyring), RunError> {
        let mut opened = None;
        for store in self.stores {
            let stored = stored_keyrings(&**store).await?;
            if stored.is_empty() {
                continue;
            }
            let found = open_all(&**store, &stored, passphrase)?;
            opened = Some(match opened.take() {
                Some(before) => newer_of(before, found),
                None => found,
            });
        }
        opened.ok_or_else(|| {
            RunError::refused("there is no keyring in the configured stores", "run `zfs-backup key generate` first")
        })
    }

    /// How the keys in the stores stand to those of this host.
    fn relation(&self, file: &KeyFile) -> Result<Relation, RunError> {
        let newest = file.recipient().map_err(|source| self.failed(source))?.to_string();
        let Some(cached) = self.cache.load()? else { return Ok(Relation::Same) };
        let ours = cached.recipients.first().map(ToString::to_string).unwrap_or_default();
        if ours == newest {
            return Ok(Relation::Same);
        }
        if file.identities.iter().skip(1).any(|identity| identity.to_public().to_string() == ours) {
            return Ok(Relation::Newer);
        }
        Err(RunError::refused(
            "the keys of this host are in none of the configured stores",
            "check `remote` and `intermediate_basedir`; `zfs-backup key generate` puts a lost keyring back",
        ))
    }

    /// A keyring of these keys that opens with the new passphrase already: an earlier run was interrupted.
    async fn sealed_before(&self, file: &KeyFile, tag: &str, new: &SecretString) -> Result<Option<Bytes>, RunError> {
        for store in self.stores {
            for stored in stored_keyrings(&**store).await?.into_iter().filter(|stored| stored.tag == tag) {
                match KeyFile::open(&stored.bytes, new) {
                    Ok(opened) if same_keys(&opened, file).map_err(|source| self.failed(source))? => {
                        return Ok(Some(stored.bytes));
                    }
                    Ok(_) | Err(KeyringError::WrongPassphrase) => {}
                    Err(source) => return Err(keyring_error(&**store, source)),
                }
            }
        }
        Ok(None)
    }

    fn seal(&self, file: &KeyFile, passphrase: &SecretString) -> Result<Bytes, RunError> {
        file.seal_with(passphrase, self.work_factor).map(Bytes::from).map_err(|source| self.failed(source))
    }

    async fn put_and_cache(
        &self,
        file: &KeyFile,
        sealed: Bytes,
        passphrase: &SecretString,
        taken_up: bool,
    ) -> Result<Rekeyed, RunError> {
        let keys = WriterKeys::from_keyring(file, sealed.clone()).map_err(|source| self.failed(source))?;
        for store in self.stores {
            let count = list_keyrings(&**store).await?.len();
            if count >= KEYRINGS_MAX {
                let what = format!("{} has {count} keyrings, and more would never be read", store.url());
                return Err(RunError::refused(what, "remove keyrings whose passphrase is of no use any more"));
            }
        }
        let mut places = Vec::new();
        for store in self.stores {
            let key = put_keyring(&**store, file, &sealed, passphrase).await?;
            places.push((store.url().to_owned(), key));
        }
        self.cache.save(&keys)?;
        Ok(Rekeyed { keys, places, taken_up })
    }

    fn failed(&self, source: KeyringError) -> RunError {
        let urls: Vec<&str> = self.stores.iter().map(|store| store.url()).collect();
        RunError::Keyring { store: urls.join(" and "), source }
    }
}

/// How the newest keys of the stores stand to the cached ones.
enum Relation {
    /// They are the same, or nothing is cached.
    Same,
    /// They follow them: a rotation was interrupted before its end.
    Newer,
}

/// Puts the keyring under its first free number unless it is there already, fetches it and opens it.
async fn put_keyring(
    store: &dyn ObjectStore,
    file: &KeyFile,
    sealed: &Bytes,
    passphrase: &SecretString,
) -> Result<ObjectKey, RunError> {
    let failed = |source| keyring_error(store, source);
    let tag = keyring_tag(&file.recipient().map_err(failed)?);
    let mut highest = 0;
    for place in list_keyrings(store).await?.into_iter().filter(|place| place.tag == tag) {
        if fetch_keyring(store, &place).await?.bytes == *sealed {
            return Ok(place.key);
        }
        highest = highest.max(number_of(&place.key));
    }
    let key = ObjectKey::keyring_number(&tag, highest + 1);
    store.put_new(&key, sealed.clone()).await?;
    let lost = |reason: &str| RunError::Damaged { key: key.to_string(), reason: reason.to_owned() };
    let places = list_keyrings(store).await?;
    let place = places.iter().find(|place| place.key == key).ok_or_else(|| lost("it was put and is not listed"))?;
    let stored = fetch_keyring(store, place).await?;
    let opened = KeyFile::open(&stored.bytes, passphrase).map_err(failed)?;
    if stored.bytes != *sealed || !same_keys(&opened, file).map_err(failed)? {
        return Err(lost("it came back as other keys"));
    }
    Ok(key)
}

/// `0002` of `.../0002.age`, whose form the listing has checked.
fn number_of(key: &ObjectKey) -> u16 {
    let name = key.as_str().rsplit('/').next().and_then(|name| name.strip_suffix(".age"));
    name.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn same_keys(one: &KeyFile, other: &KeyFile) -> Result<bool, KeyringError> {
    Ok(*one.to_text()? == *other.to_text()?)
}
