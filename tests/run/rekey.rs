//! A new passphrase and new keys: what was made before still opens, and whichever store call fails,
//! this host has its old keys whole or the new ones whole, and the same command again ends it.

use crate::world::{PART_BYTES, World, main_keyring_key, memory_store};
use age::secrecy::SecretString;
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::keyring::{KeyFile, keyring_tag};
use zfs_backup::run::RunError;
use zfs_backup::run::keys::rotate::{OldKeys, Rekey, Rekeyed};
use zfs_backup::run::keys::{KeyCache, WriterKeys, open_keyrings, writer_keys};
use zfs_backup::store::memory::{Fault, MemoryStore};
use zfs_backup::store::{ObjectStore, StoreErrorKind};

/// scrypt takes its second with the real one.
const QUICK: u8 = 2;

fn secret(text: &str) -> SecretString {
    SecretString::from(text.to_owned())
}

fn nobody() -> Result<SecretString, RunError> {
    panic!("the passphrase was asked although there is a cache")
}

/// One host with two stores and one keyring in both.
struct Host {
    stores: Vec<MemoryStore>,
    state: TempDir,
    first: KeyFile,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Passphrase,
    Keys,
}

impl Host {
    async fn new() -> Self {
        let first = KeyFile::generate().unwrap();
        let sealed = first.seal_with(&secret("old"), QUICK).unwrap();
        let key = format!(
            "@zfs-backup/keys/{}/0001.age",
            keyring_tag(&first.recipient().unwrap())
        );
        let stores = vec![memory_store(PART_BYTES), memory_store(PART_BYTES)];
        stores
            .iter()
            .for_each(|store| store.plant(&key, sealed.clone()));
        let host = Self {
            stores,
            state: TempDir::new().unwrap(),
            first,
        };
        writer_keys(&host.stores[0], &host.cache(), || Ok(secret("old")))
            .await
            .unwrap();
        host
    }

    fn cache(&self) -> KeyCache {
        KeyCache::new(self.state.path())
    }

    async fn change(&self, change: Change) -> Result<Rekeyed, RunError> {
        let stores: Vec<Arc<dyn ObjectStore>> = self
            .stores
            .iter()
            .map(|store| Arc::new(store.clone()) as Arc<dyn ObjectStore>)
            .collect();
        let (cache, work_factor) = (self.cache(), QUICK);
        let rekey = Rekey {
            stores: &stores,
            also_listed: &[],
            cache: &cache,
            work_factor,
        };
        match change {
            Change::Passphrase => {
                rekey
                    .change_passphrase(&secret("old"), &secret("new"))
                    .await
            }
            Change::Keys => rekey.rotate(&secret("old"), OldKeys::Retire).await,
        }
    }

    fn cached(&self) -> WriterKeys {
        self.cache().load().unwrap().unwrap()
    }

    fn recipient(&self) -> String {
        self.cached().recipients[0].to_string()
    }

    fn old_recipient(&self) -> String {
        self.first.recipient().unwrap().to_string()
    }

    /// That this host backs up to both stores with what it has cached, without asking for a
    /// passphrase.
    async fn assert_works(&self) {
        for store in &self.stores {
            let keys = writer_keys(store, &self.cache(), nobody).await.unwrap();
            assert_eq!(keys.recipients[0].to_string(), self.recipient());
        }
    }

    fn keyrings(&self) -> Vec<usize> {
        let count = |store: &MemoryStore| {
            store
                .keys()
                .iter()
                .filter(|key| key.ends_with(".age"))
                .count()
        };
        self.stores.iter().map(count).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_and_old_passphrase_open_the_same_keys() {
    let host = Host::new().await;
    let before: Vec<_> = host.stores[0]
        .keys()
        .into_iter()
        .map(|key| (host.stores[0].object(&key), key))
        .collect();
    let done = host.change(Change::Passphrase).await.unwrap();
    assert!(
        !done.resumed && done.places.len() == 2 && done.places[0].1.as_str().ends_with("/0002.age")
    );
    for (bytes, key) in before {
        assert_eq!(host.stores[0].object(&key), bytes, "{key} was changed");
    }
    for store in &host.stores {
        for passphrase in ["old", "new"] {
            let opened = open_keyrings(store, &secret(passphrase)).await.unwrap();
            assert_eq!(
                opened.recipient().unwrap().to_string(),
                host.old_recipient(),
                "{passphrase}"
            );
        }
    }
    host.assert_works().await;
    let copy = host.cached().keyring.unwrap().bytes;
    assert!(
        KeyFile::open(&copy, &secret("new")).is_ok(),
        "the next backup carries a keyring of the old passphrase"
    );
    let again = host.change(Change::Passphrase).await.unwrap();
    assert!(again.resumed, "the same change again makes another keyring");
    assert_eq!(host.keyrings(), [2, 2]);
    // A fresh host takes the newest.
    let fresh = TempDir::new().unwrap();
    let keys = writer_keys(&host.stores[1], &KeyCache::new(fresh.path()), || {
        Ok(secret("new"))
    })
    .await
    .unwrap();
    assert_eq!(keys.keyring.unwrap().bytes, copy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotated_keys_open_old_backups_and_every_host_takes_the_newest() {
    let host = Host::new().await;
    let mut world = World::with_keys(host.first.clone(), host.cached());
    world.store = host.stores[0].clone();
    let old_backup = world.back_up().await.manifest;
    let mut seen = vec![host.old_recipient()];
    // Several, because folders lie in the order of a hash: the newest must be found wherever it
    // lies.
    for _ in 0..4 {
        let done = host.change(Change::Keys).await.unwrap();
        assert!(!done.resumed);
        assert!(
            !seen.contains(&host.recipient()),
            "the recipient is not new"
        );
        seen.push(host.recipient());
        host.assert_works().await;
        let fresh = TempDir::new().unwrap();
        let keys = writer_keys(&host.stores[0], &KeyCache::new(fresh.path()), || {
            Ok(secret("old"))
        })
        .await
        .unwrap();
        assert_eq!(
            keys.recipients[0].to_string(),
            host.recipient(),
            "a fresh host took older keys"
        );
        assert_eq!(
            keys.signing.verifying_key(),
            host.cached().signing.verifying_key()
        );
    }
    assert_eq!(host.keyrings()[1], 5, "an old keyring is gone");
    let opened = open_keyrings(&host.stores[0], &secret("old"))
        .await
        .unwrap();
    (world.keys, world.writer) = (opened, host.cached());
    assert_eq!(world.catalog().await.backups[0].manifest.id, old_backup.id);
    world.assert_restores().await;
    world.snapshot();
    let new_backup = world.back_up().await.manifest;
    assert_eq!(new_backup.recipients, [host.recipient()]);
    world.assert_restores().await;
    assert_eq!(world.verify().await.damage, []);
    // The copy beside the new backup alone opens both.
    world
        .store
        .keys()
        .iter()
        .filter(|key| key.starts_with("@zfs-backup/"))
        .for_each(|key| assert!(world.store.lose(key)));
    world.keys = open_keyrings(&world.store, &secret("old")).await.unwrap();
    assert_eq!(world.catalog().await.backups.len(), 2);
    world.assert_restores().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_host_of_the_store_adopts_rotated_keys() {
    let host = Host::new().await;
    let other = Host {
        stores: host.stores.clone(),
        state: TempDir::new().unwrap(),
        first: host.first.clone(),
    };
    writer_keys(&other.stores[0], &other.cache(), || Ok(secret("old")))
        .await
        .unwrap();
    host.change(Change::Keys).await.unwrap();
    let error = writer_keys(&other.stores[0], &other.cache(), nobody)
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("were replaced by `key rotate`"),
        "{error}"
    );
    let error = other.change(Change::Passphrase).await.err().unwrap();
    assert!(error.to_string().contains("rotation"), "{error}");
    let done = other.change(Change::Keys).await.unwrap();
    assert!(done.resumed && other.recipient() == host.recipient());
    other.assert_works().await;
    assert_eq!(host.keyrings(), [2, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_passphrase_foreign_keys_and_a_full_folder_change_nothing() {
    let host = Host::new().await;
    let stores: Vec<Arc<dyn ObjectStore>> = vec![Arc::new(host.stores[0].clone())];
    let cache = host.cache();
    let rekey = Rekey {
        stores: &stores,
        also_listed: &[],
        cache: &cache,
        work_factor: QUICK,
    };
    assert!(
        rekey
            .rotate(&secret("wrong"), OldKeys::Retire)
            .await
            .is_err()
    );
    assert!(
        rekey
            .change_passphrase(&secret("wrong"), &secret("new"))
            .await
            .is_err()
    );
    assert!(
        rekey
            .change_passphrase(&secret("old"), &secret("old"))
            .await
            .is_err()
    );
    assert_eq!(host.keyrings(), [1, 1]);
    // A store with somebody else's keyring only.
    let foreign = KeyFile::generate().unwrap();
    let theirs = WriterKeys::from_keyring(
        &foreign,
        foreign.seal_with(&secret("theirs"), QUICK).unwrap().into(),
    )
    .unwrap();
    let key = host.stores[1].keys().remove(0);
    let ours = host.stores[1].object(&key).unwrap();
    host.stores[1].lose(&key);
    host.stores[1].plant(&main_keyring_key(&theirs), theirs.keyring.unwrap().bytes);
    for change in [Change::Passphrase, Change::Keys] {
        assert!(host.change(change).await.is_err(), "{change:?}");
        assert_eq!(
            (host.recipient(), host.keyrings()),
            (host.old_recipient(), vec![1, 1]),
            "{change:?}"
        );
    }
    // So many that one more would never be read.
    let tag = keyring_tag(&host.first.recipient().unwrap());
    host.stores[1]
        .keys()
        .iter()
        .for_each(|key| assert!(host.stores[1].lose(key)));
    (1..=16).for_each(|number| {
        host.stores[1].plant(
            &format!("@zfs-backup/keys/{tag}/{number:04}.age"),
            ours.clone(),
        )
    });
    for change in [Change::Passphrase, Change::Keys] {
        let error = host.change(change).await.err().unwrap();
        assert!(error.to_string().contains("16 keyrings"), "{error}");
        assert_eq!(
            (host.recipient(), host.keyrings()),
            (host.old_recipient(), vec![1, 16]),
            "{change:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_failed_store_call_leaves_old_keys_or_complete_new_ones() {
    for change in [Change::Passphrase, Change::Keys] {
        for store in [0, 1] {
            for after in [false, true] {
                let mut n = 1;
                // Until no call is left to fail.
                while fail_once(change, store, after, n).await {
                    n += 1;
                }
                assert!(n > 5, "{change:?} store {store}: only {n} calls were made");
            }
        }
    }
}

/// Fails the n-th call of one store; whether there was one.
async fn fail_once(change: Change, store: usize, after: bool, n: usize) -> bool {
    let case = format!("{change:?}, store {store}, after {after}, call {n}");
    let host = Host::new().await;
    let kind = StoreErrorKind::Unavailable;
    host.stores[store].fail(
        if after {
            Fault::after(kind)
        } else {
            Fault::before(kind)
        }
        .nth(n),
    );
    let outcome = host.change(change).await;
    host.stores.iter().for_each(MemoryStore::heal);
    if outcome.is_ok() {
        // A failure that the command survived cannot have been one of its calls.
        host.assert_works().await;
        return false;
    }
    assert_eq!(
        host.recipient(),
        host.old_recipient(),
        "{case}: the keys changed although it failed"
    );
    assert!(
        KeyFile::open(&host.cached().keyring.unwrap().bytes, &secret("old")).is_ok(),
        "{case}"
    );
    host.assert_works().await;
    for store in &host.stores {
        let opened = open_keyrings(store, &secret("old")).await.unwrap();
        let opens_old = opened
            .identities
            .iter()
            .any(|identity| identity.to_public().to_string() == host.old_recipient());
        assert!(opens_old, "{case}: the old keys are gone");
    }
    host.change(change)
        .await
        .unwrap_or_else(|error| panic!("{case}: again: {error}"));
    host.assert_works().await;
    assert_eq!(
        host.keyrings(),
        [2, 2],
        "{case}: half-made keyrings were left"
    );
    assert_eq!(
        host.recipient() == host.old_recipient(),
        change == Change::Passphrase,
        "{case}"
    );
    true
}
