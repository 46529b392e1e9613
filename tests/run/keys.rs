//! Keyrings: made once, put back when they are gone, and never anybody else's. Real ones, so that
//! scrypt takes its second here.

use crate::world::{PART_BYTES, World, main_keyring_key, memory_store, plant_keyring};
use age::secrecy::SecretString;
use tempfile::TempDir;
use zfs_backup::keyring::KeyringError;
use zfs_backup::run::RunError;
use zfs_backup::run::keys::kept_config::{KeptConfig, keep_config, kept_configs};
use zfs_backup::run::keys::{KeyCache, WriterKeys, learn_keys, open_keyrings, writer_keys};
use zfs_backup::run::restore::RestorePoint;
use zfs_backup::store::StoreErrorKind;
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};

fn passphrase(text: &str) -> Result<SecretString, RunError> {
    Ok(SecretString::from(text.to_owned()))
}

fn nobody() -> Result<SecretString, RunError> {
    panic!("the passphrase was asked although there is a cache")
}

async fn first_keys(store: &MemoryStore, state: &TempDir) -> WriterKeys {
    writer_keys(store, &KeyCache::new(state.path()), || passphrase("ours"))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_with_generated_keys_is_restored_with_the_passphrase_alone() {
    let (store, state) = (memory_store(PART_BYTES), TempDir::new().unwrap());
    let writer = first_keys(&store, &state).await;
    let opened = open_keyrings(&store, &passphrase("ours").unwrap())
        .await
        .unwrap();
    let mut world = World::with_keys(opened, writer.clone());
    world.store = store.clone();
    let manifest = world.back_up().await.manifest;
    world.assert_restores().await;
    let copy = store.object(&crate::world::key_of(&manifest, "keyring.age"));
    assert_eq!(copy, store.object(&main_keyring_key(&writer)));

    let cache = KeyCache::new(state.path());
    let again = writer_keys(&store, &cache, nobody).await.unwrap();
    assert_eq!(again.keyring, writer.keyring);
    assert!(store.lose(&main_keyring_key(&writer)));
    let error = writer_keys(&store, &cache, || passphrase("another"))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            RunError::Keyring {
                source: KeyringError::WrongPassphrase,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(store.object(&main_keyring_key(&writer)), None);
    writer_keys(&store, &cache, || passphrase("ours"))
        .await
        .unwrap();
    assert_eq!(
        store.object(&main_keyring_key(&writer)),
        copy,
        "a lost keyring was not put back"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_keyring_is_refused_and_no_new_one_is_made() {
    let (store, state) = (memory_store(PART_BYTES), TempDir::new().unwrap());
    let writer = first_keys(&store, &state).await;
    let key = main_keyring_key(&writer);
    let (foreign_store, foreign_state) = (memory_store(PART_BYTES), TempDir::new().unwrap());
    let foreign = writer_keys(&foreign_store, &KeyCache::new(foreign_state.path()), || {
        passphrase("theirs")
    })
    .await
    .unwrap();

    // Somebody else's keyring instead of ours.
    store.lose(&key);
    plant_keyring(&store, &foreign);
    let cache = KeyCache::new(state.path());
    let error = writer_keys(&store, &cache, nobody).await.err().unwrap();
    assert!(
        error
            .to_string()
            .contains(&foreign.keyring.as_ref().unwrap().tag),
        "{error}"
    );
    let fresh = TempDir::new().unwrap();
    let keys = store.keys();
    let error = writer_keys(&store, &KeyCache::new(fresh.path()), || passphrase("ours"))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            RunError::Keyring {
                source: KeyringError::WrongPassphrase,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(
        store.keys(),
        keys,
        "a new keyring was made beside another one"
    );
    assert!(
        open_keyrings(&store, &passphrase("ours").unwrap())
            .await
            .is_err()
    );

    // Theirs under our name.
    store.lose(&main_keyring_key(&foreign));
    store.plant(&key, foreign.keyring.as_ref().unwrap().bytes.clone());
    let error = writer_keys(&store, &cache, nobody).await.err().unwrap();
    assert!(
        error.is_damage() && error.to_string().contains(&key),
        "{error}"
    );
    assert!(
        open_keyrings(&store, &passphrase("theirs").unwrap())
            .await
            .is_err(),
        "opened under another's name"
    );

    // Both: ours is found.
    plant_keyring(&store, &writer);
    plant_keyring(&store, &foreign);
    writer_keys(&store, &cache, nobody).await.unwrap();
    let opened = open_keyrings(&store, &passphrase("ours").unwrap())
        .await
        .unwrap();
    assert_eq!(
        opened.recipient().unwrap().to_string(),
        writer.recipients[0].to_string()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_keyring_is_not_a_wrong_passphrase_and_its_copy_still_opens() {
    let (store, state) = (memory_store(PART_BYTES), TempDir::new().unwrap());
    let writer = first_keys(&store, &state).await;
    let opened = open_keyrings(&store, &passphrase("ours").unwrap())
        .await
        .unwrap();
    let mut world = World::with_keys(opened, writer.clone());
    world.store = store.clone();
    let copy_key = crate::world::key_of(&world.back_up().await.manifest, "keyring.age");
    let copy = store.object(&copy_key).unwrap();
    let key = main_keyring_key(&writer);
    let good = store.object(&key).unwrap();
    for damage in ["cut", "flip", "lose"] {
        store.plant(&key, good.clone());
        match damage {
            "cut" => assert!(store.cut(&key, good.len() / 2)),
            "flip" => assert!(store.flip(&key, good.len() - 20)),
            _ => assert!(store.lose(&key)),
        }
        // The copy in the backup's folder opens.
        let opened = open_keyrings(&store, &passphrase("ours").unwrap())
            .await
            .unwrap();
        assert_eq!(opened.trusted, world.keys.trusted, "{damage}");
        store.lose(&copy_key);
        match open_keyrings(&store, &passphrase("ours").unwrap()).await {
            Ok(_) => panic!("{damage}: it opened"),
            Err(RunError::Keyring {
                source: KeyringError::WrongPassphrase,
                ..
            }) => panic!("{damage}: it fits"),
            Err(_) => {}
        }
        store.plant(&copy_key, copy.clone());
        let report = world.verify().await;
        assert!(
            report
                .damage
                .iter()
                .any(|damage| key.starts_with(&damage.key)),
            "{damage}: {:?}",
            report.damage
        );
        world.find(&RestorePoint::Newest).await.unwrap();
        world.assert_restores().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reinstalled_host_takes_the_keys_of_its_remote() {
    let remote = memory_store(PART_BYTES);
    let (directory, state) = (memory_store(PART_BYTES), TempDir::new().unwrap());
    let cache = KeyCache::new(state.path());
    // A first setup: both are empty, and nothing is asked or made.
    learn_keys(&directory, Ok(&remote), &cache, nobody)
        .await
        .unwrap();
    assert!(cache.load().unwrap().is_none() && remote.keys().is_empty());

    let writer = first_keys(&remote, &TempDir::new().unwrap()).await;
    // A remote that cannot be asked may have keys: no new ones are made.
    remote.fail(Fault::before(StoreErrorKind::Unavailable).of(Operation::List));
    for other in [
        Ok(&remote as &dyn zfs_backup::store::StoreWrite),
        Err("no route to host"),
    ] {
        let refused = learn_keys(&directory, other, &cache, nobody)
            .await
            .unwrap_err();
        assert!(matches!(refused, RunError::Refused { .. }), "{refused}");
        assert!(
            refused
                .to_string()
                .contains("cannot be asked whether it has some"),
            "{refused}"
        );
        assert!(cache.load().unwrap().is_none());
    }
    learn_keys(&directory, Ok(&remote), &cache, || passphrase("ours"))
        .await
        .unwrap();
    assert_eq!(cache.load().unwrap().unwrap().keyring, writer.keyring);
    // Known keys stay, whatever the remote says.
    learn_keys(&directory, Err("no route to host"), &cache, nobody)
        .await
        .unwrap();

    // A directory that holds something says itself which keys are its own.
    let (other_directory, other_state) = (memory_store(PART_BYTES), TempDir::new().unwrap());
    first_keys(&other_directory, &TempDir::new().unwrap()).await;
    learn_keys(
        &other_directory,
        Ok(&remote),
        &KeyCache::new(other_state.path()),
        nobody,
    )
    .await
    .unwrap();
    assert!(KeyCache::new(other_state.path()).load().unwrap().is_none());
}

#[tokio::test]
async fn configuration_is_stored_once_per_change_and_recovered_only_if_signed() {
    let (file, writer) = crate::world::quick_keys();
    let (store, state) = (memory_store(PART_BYTES), TempDir::new().unwrap());
    let kept = |host: &str, text: &str, second: i64| {
        KeptConfig::new(
            host,
            "/etc/zb.toml",
            text,
            jiff::Timestamp::from_second(second).unwrap(),
        )
    };
    let keep = async |kept: &KeptConfig| {
        keep_config(&store, &writer, state.path(), kept)
            .await
            .unwrap()
    };
    assert!(keep(&kept("nas", "one", 10)).await);
    store.clear_events();
    assert!(!keep(&kept("nas", "one", 20)).await, "nothing changed");
    assert!(store.events().is_empty(), "and nothing was asked");
    assert!(keep(&kept("nas", "two", 30)).await);
    assert!(keep(&kept("old", "three", 5)).await);
    let texts = async || {
        let found = kept_configs(&store, &file).await.unwrap().trusted;
        found.into_iter().map(|kept| kept.text).collect::<Vec<_>>()
    };
    assert_eq!(texts().await, ["two", "three"], "the newest of each host");
    assert!(
        store
            .keys()
            .iter()
            .all(|key| !String::from_utf8_lossy(&store.object(key).unwrap()).contains("zb.toml"))
    );

    // Hooks run as root: what others sealed, or moved from elsewhere, is not brought back.
    let (_, foreign) = crate::world::quick_keys();
    let forger = WriterKeys {
        recipients: writer.recipients.clone(),
        ..foreign
    };
    let elsewhere = TempDir::new().unwrap();
    keep_config(
        &store,
        &forger,
        elsewhere.path(),
        &kept("nas", "forged", 99),
    )
    .await
    .unwrap();
    assert_eq!(texts().await, ["two", "three"]);
    let newest = store
        .keys()
        .into_iter()
        .find(|key| key.contains("19700101T000030Z") && key.ends_with(".age"))
        .unwrap();
    assert!(store.lose(&format!("{newest}.minisig")));
    assert_eq!(texts().await, ["one", "three"]);
    store.fail(Fault::before(StoreErrorKind::Unavailable).of(Operation::Get));
    assert!(
        kept_configs(&store, &file).await.is_err(),
        "what cannot be read is not left out in silence"
    );
}
