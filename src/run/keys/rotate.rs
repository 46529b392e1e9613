//! Changes the passphrase, or makes new keys: the operations that change a keyring on which backups
//! depend.
//!
//! No object in a store is changed or removed. The new keyring is put next to the old ones in every
//! store, fetched and opened; only then is it cached on this host, in one rename. After a failure
//! before that, this host keeps the keys that it had, and the same command resumes with the objects
//! that were put.
//!
//! # Order of a rotation
//! locks of all datasets -> list of what the old keys signed, from every store -> note on this host
//! -> the list into every store -> the keyring into every store -> successor objects, signed with
//! the old key, into every store -> cache -> note removed. A keyring is never in a store without
//! its list. Between keyring and cache this host still backs up with the old keys. By its note it
//! knows that the rotation was its own, and then adds the objects signed since to the list.

mod collect;

pub use collect::CollectedDataset;

use crate::catalog::list_datasets;
use crate::keyring::{KeyFile, KeyringError, keyring_tag};
use crate::run::RunError;
use crate::run::keys::{
    KEYRINGS_MAX, KeyCache, StoredKeyring, Successor, WriterKeys, fetch_keyring, find_keys,
    free_number, keyring_error, list_keyrings, newer_of, put_list_copies, put_lists, read_lists,
    stored_keyrings,
};
use crate::sign::{Believed, SigningKey, Trust, TrustedKeys};
use crate::state::dataset_lock::{KernelLock, lock_dataset};
use crate::store::{ObjectKey, ObjectStore, StoreRead, StoreWrite};
use age::secrecy::{ExposeSecret, SecretString};
use bytes::Bytes;
use std::sync::Arc;

/// The stores and the cache for which keys are changed.
pub struct Rekey<'a> {
    /// Every configured store. The new keyring goes to all of them.
    pub stores: &'a [Arc<dyn ObjectStore>],
    /// Stores of other configurations and hosts with the same keys. A rotation lists the objects in
    /// them and writes nothing there.
    pub also_listed: &'a [Arc<dyn StoreRead>],
    /// The cached keys of this host.
    pub cache: &'a KeyCache,
    /// The work factor of a new keyring: [`crate::keyring::WORK_FACTOR`].
    pub work_factor: u8,
}

/// The result of a change of keys.
pub struct Rekeyed {
    /// The keys that this host uses from now on.
    pub keys: WriterKeys,
    /// Each store, with the key that the new keyring has there.
    pub places: Vec<(String, ObjectKey)>,
    /// Whether this run resumed a change that an earlier run began.
    pub resumed: bool,
    /// The objects for which retired keys stay trusted, by store and dataset. Empty when no list
    /// was made.
    pub collected: Vec<CollectedDataset>,
}

/// How a rotation treats the keys that it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldKeys {
    /// Trust the old keys only for the objects that they have signed so far: after a leak, or when
    /// in doubt.
    Retire,
    /// Trust the old keys as before: for a scheduled rotation.
    KeepTrust,
}

impl Rekey<'_> {
    /// Seals the same keys with another passphrase, and puts the keyring into every store under the
    /// next number of its tag. Old keyrings, and the copies of backups, stay and open with the old
    /// passphrase.
    ///
    /// # Errors
    /// [`RunError`]; then this host keeps the keyring that it had, and the old passphrase still
    /// opens everything that it opened before.
    pub async fn change_passphrase(
        &self,
        old: &SecretString,
        new: &SecretString,
    ) -> Result<Rekeyed, RunError> {
        if old.expose_secret() == new.expose_secret() {
            return Err(RunError::refused(
                "the new passphrase is the old one",
                "choose another one",
            ));
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
        let resumed = begun.is_some();
        let sealed = match begun {
            Some(sealed) => sealed,
            None => self.seal(&file, new)?,
        };
        let done = self.put_everywhere(&file, sealed, new).await?;
        self.cache.save(&done.keys)?;
        Ok(Rekeyed { resumed, ..done })
    }

    /// Makes new keys, which follow the old ones, and puts their keyring into every store. Retired
    /// keys are trusted for what verifies in one of the stores at this moment, and for what earlier
    /// rotations listed.
    ///
    /// # Errors
    /// [`RunError`]; then this host keeps the keys that it had.
    pub async fn rotate(
        &self,
        passphrase: &SecretString,
        old_keys: OldKeys,
    ) -> Result<Rekeyed, RunError> {
        let _lock = self.cache.lock()?;
        let (file, newest) = self.open_everywhere(passphrase).await?;
        let is_newer = matches!(self.relation(&file)?, Relation::Newer);
        let _locks = self.lock_datasets().await?;
        let (next, sealed, collected) = match (is_newer, old_keys) {
            (true, _) => self.resume(&newest, passphrase).await?,
            (false, OldKeys::KeepTrust) => {
                let next = file
                    .rotated_keeping_trust()
                    .map_err(|source| self.failed(source))?;
                (next, None, Vec::new())
            }
            (false, OldKeys::Retire) => {
                let (believed, collected) = self.collect(&file.trusted).await?;
                (
                    file.rotated(believed)
                        .map_err(|source| self.failed(source))?,
                    None,
                    collected,
                )
            }
        };
        let sealed = match sealed {
            Some(sealed) => sealed,
            None => self.seal(&next, passphrase)?,
        };
        let tag = keyring_tag(&next.recipient().map_err(|source| self.failed(source))?);
        if !is_newer {
            self.cache.note_rotation(&tag)?;
        }
        let replaced = self.replaced(is_newer, &file)?;
        let done = self.put_everywhere(&next, sealed, passphrase).await?;
        for store in self.stores {
            let datasets = list_datasets(&**store).await?;
            put_list_copies(&**store, &next.trusted, datasets).await?;
        }
        if let Some((old_tag, old)) = replaced.filter(|(old_tag, _)| *old_tag != tag) {
            let new = next.signing_key().map_err(|source| self.failed(source))?;
            let keeps_trust = next.trusted.trust_in(old.verifying_key()) != Some(Trust::Retired);
            for store in self.stores {
                Successor::new(&old_tag, &tag, new, keeps_trust)
                    .put(&**store, &old)
                    .await?;
            }
        }
        self.cache.save(&done.keys)?;
        self.cache.forget_rotation()?;
        Ok(Rekeyed {
            resumed: is_newer,
            collected,
            ..done
        })
    }

    /// Returns the objects that a rotation would list; changes nothing.
    ///
    /// # Errors
    /// [`RunError`] when an object could not be read.
    pub async fn preview(
        &self,
        passphrase: &SecretString,
    ) -> Result<Vec<CollectedDataset>, RunError> {
        let (file, _) = self.open_everywhere(passphrase).await?;
        Ok(self.collect(&file.trusted).await?.1)
    }

    /// Collects the objects that these keys signed in all stores, and those that earlier rotations
    /// listed.
    async fn collect(
        &self,
        trusted: &TrustedKeys,
    ) -> Result<(Believed, Vec<CollectedDataset>), RunError> {
        let mut believed = trusted.believed();
        let mut collected = Vec::new();
        let own = self
            .stores
            .iter()
            .map(|store| -> &dyn StoreRead { &**store });
        let others = self.also_listed.iter().map(|store| &**store);
        for store in own.chain(others) {
            collected.extend(collect::collect(store, trusted, &mut believed).await?);
        }
        Ok((believed, collected))
    }

    /// Resumes with the new keys that are already stored. If an interrupted rotation of this host
    /// put them, the objects signed since are added to the list. A rotation by another host stays
    /// as it is: nothing proves who signed objects since.
    async fn resume(
        &self,
        newest: &StoredKeyring,
        passphrase: &SecretString,
    ) -> Result<(KeyFile, Option<Bytes>, Vec<CollectedDataset>), RunError> {
        let mut own =
            KeyFile::open(&newest.bytes, passphrase).map_err(|source| self.failed(source))?;
        self.read_lists(&mut own.trusted).await?;
        let is_own = self.cache.noted_rotation()?.as_ref() == Some(&newest.tag);
        let is_limited = own.trusted.with(Trust::Retired).next().is_some();
        let cached = self.cache.load()?;
        let (true, true, Some(cached)) = (is_own, is_limited, cached) else {
            return Ok((own, Some(newest.bytes.clone()), Vec::new()));
        };
        let (more, collected) = self.collect(&cached.trusted).await?;
        let before = own.trusted.believed();
        let mut all = before.clone();
        all.extend(&more);
        if all == before {
            return Ok((own, Some(newest.bytes.clone()), collected));
        }
        own.pin(all).map_err(|source| self.failed(source))?;
        Ok((own, None, collected))
    }

    /// Returns the tag and key that sign the successor object. If this host takes over newer keys,
    /// these are its own.
    fn replaced(
        &self,
        is_newer: bool,
        file: &KeyFile,
    ) -> Result<Option<(String, SigningKey)>, RunError> {
        if is_newer {
            let cached = self.cache.load()?;
            return Ok(cached.and_then(|keys| Some((keys.keyring?.tag, keys.signing))));
        }
        let old = file.signing_key().map_err(|source| self.failed(source))?;
        let recipient = file.recipient().map_err(|source| self.failed(source))?;
        Ok(Some((keyring_tag(&recipient), old.clone())))
    }

    /// Locks all datasets, so that no backup of this host is running: its manifest would be signed
    /// with the old key after the list was made.
    async fn lock_datasets(&self) -> Result<Vec<KernelLock>, RunError> {
        let mut locks = Vec::new();
        for store in self.stores {
            for dataset in list_datasets(&**store).await? {
                locks.push(lock_dataset(
                    self.cache.state_dir(),
                    &store.known(),
                    &dataset,
                )?);
            }
        }
        Ok(locks)
    }

    /// Reads the lists that these keys pin, from any store that has them. A rotation must not lose
    /// a list.
    async fn read_lists(&self, trusted: &mut TrustedKeys) -> Result<(), RunError> {
        for store in self.stores {
            read_lists(&**store, trusted).await?;
        }
        match trusted.lists.iter().find(|list| list.content.is_none()) {
            None => Ok(()),
            Some(list) => Err(RunError::refused(
                format!(
                    "{} is in none of the configured stores: the list of objects for which retired \
                     keys are trusted",
                    list.name()
                ),
                "put it back below `@zfs-backup/keys/` from another copy of the store; a host that has rotated puts it \
                 back with its next backup",
            )),
        }
    }

    /// Opens the newest keys of all stores, with everything that any keyring of any store adds. A
    /// store without keyrings is skipped; a store whose keyrings the passphrase does not open is an
    /// error.
    async fn open_everywhere(
        &self,
        passphrase: &SecretString,
    ) -> Result<(KeyFile, StoredKeyring), RunError> {
        let mut opened = None;
        for store in self.stores {
            let Some(found) = find_keys(&**store, passphrase).await? else {
                continue;
            };
            let found = (found.file, found.keyring);
            opened = Some(match opened.take() {
                Some(before) => newer_of(before, found),
                None => found,
            });
        }
        let (mut file, newest) = opened.ok_or_else(|| {
            RunError::refused(
                "there is no keyring in the configured stores",
                "run `zfs-backup key generate` first",
            )
        })?;
        self.read_lists(&mut file.trusted).await?;
        Ok((file, newest))
    }

    /// Compares the keys in the stores with those of this host.
    fn relation(&self, file: &KeyFile) -> Result<Relation, RunError> {
        let newest = file
            .recipient()
            .map_err(|source| self.failed(source))?
            .to_string();
        let Some(cached) = self.cache.load()? else {
            return Ok(Relation::Same);
        };
        let ours = cached
            .recipients
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        if ours == newest {
            return Ok(Relation::Same);
        }
        if file
            .identities
            .iter()
            .skip(1)
            .any(|identity| identity.to_public().to_string() == ours)
        {
            return Ok(Relation::Newer);
        }
        Err(RunError::refused(
            "the keys of this host are in none of the configured stores",
            "check `remote` and `intermediate_basedir`; `zfs-backup key generate` puts a lost keyring back",
        ))
    }

    /// Returns a keyring of these keys that already opens with the new passphrase, which an
    /// interrupted run has put.
    async fn sealed_before(
        &self,
        file: &KeyFile,
        tag: &str,
        new: &SecretString,
    ) -> Result<Option<Bytes>, RunError> {
        for store in self.stores {
            for stored in stored_keyrings(&**store)
                .await?
                .into_iter()
                .filter(|stored| stored.tag == tag)
            {
                match KeyFile::open(&stored.bytes, new) {
                    Ok(opened)
                        if same_keys(&opened, file).map_err(|source| self.failed(source))? =>
                    {
                        return Ok(Some(stored.bytes));
                    }
                    // Any other keyring, with another passphrase or planted, is not from the
                    // interrupted run.
                    Ok(_) | Err(KeyringError::WrongPassphrase | KeyringError::Open(_)) => {}
                    Err(source) => return Err(keyring_error(&**store, source)),
                }
            }
        }
        Ok(None)
    }

    fn seal(&self, file: &KeyFile, passphrase: &SecretString) -> Result<Bytes, RunError> {
        file.seal_with(passphrase, self.work_factor)
            .map(Bytes::from)
            .map_err(|source| self.failed(source))
    }

    /// Puts lists and keyring into every store, all lists first.
    async fn put_everywhere(
        &self,
        file: &KeyFile,
        sealed: Bytes,
        passphrase: &SecretString,
    ) -> Result<Rekeyed, RunError> {
        let keys =
            WriterKeys::from_keyring(file, sealed.clone()).map_err(|source| self.failed(source))?;
        for store in self.stores {
            let count = list_keyrings(&**store).await?.len();
            if count >= KEYRINGS_MAX {
                let what = format!(
                    "{} has {count} keyrings, and more would never be read",
                    store.url()
                );
                return Err(RunError::refused(
                    what,
                    "remove keyrings whose passphrase is no longer needed",
                ));
            }
        }
        for store in self.stores {
            put_lists(&**store, &file.trusted).await?;
        }
        let mut places = Vec::new();
        for store in self.stores {
            let key = put_keyring(&**store, file, &sealed, passphrase).await?;
            places.push((store.url().to_owned(), key));
        }
        Ok(Rekeyed {
            keys,
            places,
            resumed: false,
            collected: Vec::new(),
        })
    }

    fn failed(&self, source: KeyringError) -> RunError {
        let urls: Vec<&str> = self.stores.iter().map(|store| store.url()).collect();
        RunError::Keyring {
            store: urls.join(" and "),
            source,
        }
    }
}

/// The relation of the newest keys in the stores to the cached keys.
enum Relation {
    /// Both are the same, or no keys are cached.
    Same,
    /// The keys in the stores follow the cached ones: a rotation was interrupted before its end, or
    /// another host rotated.
    Newer,
}

/// Puts the keyring under its first free number unless the store has it already, and then fetches
/// and opens it.
async fn put_keyring(
    store: &dyn StoreWrite,
    file: &KeyFile,
    sealed: &Bytes,
    passphrase: &SecretString,
) -> Result<ObjectKey, RunError> {
    let failed = |source| keyring_error(store, source);
    let tag = keyring_tag(&file.recipient().map_err(failed)?);
    for place in list_keyrings(store)
        .await?
        .into_iter()
        .filter(|place| place.tag == tag)
    {
        if fetch_keyring(store, &place).await?.bytes == *sealed {
            return Ok(place.key);
        }
    }
    let key = ObjectKey::keyring_number(&tag, free_number(store, &tag).await?);
    store.put_new(&key, sealed.clone()).await?;
    let lost = |reason: &str| RunError::Damaged {
        key: key.to_string(),
        reason: reason.to_owned(),
    };
    let places = list_keyrings(store).await?;
    let place = places
        .iter()
        .find(|place| place.key == key)
        .ok_or_else(|| lost("the store confirmed the put, but does not list the object"))?;
    let stored = fetch_keyring(store, place).await?;
    let opened = KeyFile::open(&stored.bytes, passphrase).map_err(failed)?;
    if stored.bytes != *sealed || !same_keys(&opened, file).map_err(failed)? {
        return Err(lost("the keyring that was read back has other keys"));
    }
    Ok(key)
}

fn same_keys(one: &KeyFile, other: &KeyFile) -> Result<bool, KeyringError> {
    Ok(*one.to_text()? == *other.to_text()?)
}
