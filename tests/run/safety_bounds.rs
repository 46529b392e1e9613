//! Foreign objects in a store cost bounded memory and bounded requests, and block no backup of
//! ours. The tests count all bounds: bytes in memory at once, objects fetched, concurrent calls.

use crate::chains::{night, nightly};
use crate::world::{PART_BYTES, World, key_of, memory_store, now};
use age::secrecy::SecretString;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::task::yield_now;
use zfs_backup::catalog::{
    Catalog, CatalogError, read_catalog, read_catalog_through, read_prune_records,
};
use zfs_backup::keyring::{KeyFile, keyring_tag};
use zfs_backup::manifest::{FORMAT, PRUNE_RECORD_BYTES_MAX, PruneRecord, to_stored_bytes};
use zfs_backup::model::{BackupId, BackupKind, Guid};
use zfs_backup::run::keys::kept_config::{KeptConfig, keep_config, kept_configs};
use zfs_backup::run::keys::{open_keyrings, stored_keyrings};
use zfs_backup::run::prune::read_view;
use zfs_backup::run::restore::RestorePoint;
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::sign::SignedType;
use zfs_backup::state::manifests::{CacheMode, ObjectCache};
use zfs_backup::store::memory::{MemoryStore, Operation};
use zfs_backup::store::{
    Evidence, ListedObject, ObjectKey, ObjectStore, PartWriter, PutOutcome, StoreDelete,
    StoreError, StoreInfo, StoreRead, StoreTraits, StoreWrite, UnfinishedUpload,
};

/// As in the program: the most ids of one dataset without a trusted manifest.
const UNTRUSTED_MAX: u64 = 10_000;
const MIB: usize = 1 << 20;
/// scrypt takes its second with the real one.
const QUICK: u8 = 2;

/// How much there is of something now, and how much there was at most.
#[derive(Default)]
struct Gauge {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Gauge {
    fn add(&self, amount: usize) {
        let now = self.now.fetch_add(amount, Ordering::SeqCst) + amount;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    fn take(&self, amount: usize) {
        self.now.fetch_sub(amount, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

/// Bytes that somebody holds: counted until the last of it is dropped.
struct Held {
    bytes: Bytes,
    gauge: Arc<Gauge>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.take(self.bytes.len());
    }
}

/// A store that counts what is held of its objects, and how many calls are under way.
#[derive(Clone)]
struct Counting {
    inner: MemoryStore,
    held_bytes: Arc<Gauge>,
    calls: Arc<Gauge>,
}

impl Counting {
    fn new(inner: &MemoryStore) -> Self {
        Self {
            inner: inner.clone(),
            held_bytes: Arc::default(),
            calls: Arc::default(),
        }
    }

    /// Lets every other call begin before this one ends.
    async fn under_way<T>(&self, call: impl Future<Output = T>) -> T {
        self.calls.add(1);
        for _ in 0..100 {
            yield_now().await;
        }
        let ended = call.await;
        self.calls.take(1);
        ended
    }
}

#[async_trait]
impl StoreInfo for Counting {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn traits(&self) -> &StoreTraits {
        self.inner.traits()
    }
}

#[async_trait]
impl StoreRead for Counting {
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let bytes = self
            .under_way(self.inner.get(key, range, limit_bytes))
            .await?;
        self.held_bytes.add(bytes.len());
        let held = Held {
            bytes,
            gauge: Arc::clone(&self.held_bytes),
        };
        let held = Bytes::from_owner(held);
        // As long as the last piece takes to arrive.
        yield_now().await;
        Ok(held)
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        self.under_way(self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.inner.list(prefix).await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.inner.unfinished(prefix).await
    }
}

#[async_trait]
impl StoreWrite for Counting {
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        self.inner.create(key).await
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        self.inner.put_new(key, bytes).await
    }
}

#[async_trait]
impl StoreDelete for Counting {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.inner.abort_unfinished(upload).await
    }
}

/// The keys that were fetched since the last time.
fn fetched(store: &MemoryStore) -> Vec<String> {
    let events = store.events();
    store.clear_events();
    events
        .into_iter()
        .filter(|event| event.operation == Operation::Get)
        .map(|event| event.key)
        .collect()
}

fn id(number: u64) -> BackupId {
    BackupId::new(now(), BackupKind::Full, Guid(0x1000_0000 + number), 1)
}

/// Puts an object of a backup that never was.
fn plant(world: &World, number: u64, object: &str, bytes: impl Into<Bytes>) {
    world.store.plant(
        &format!("{}/@{}/{object}", world.dataset, id(number)),
        bytes,
    );
}

fn record_key(world: &World, number: u64) -> ObjectKey {
    ObjectKey::prune_record(&world.dataset, "20260102T030405Z", number)
}

/// A signed prune record of exactly so many bytes: blanks at its end say nothing.
fn plant_record(world: &World, number: u64, bytes: usize) -> ObjectKey {
    let key = record_key(world, number);
    let record = PruneRecord {
        format: FORMAT,
        object_type: SignedType::PruneRecord.as_str().to_owned(),
        dataset: world.dataset.clone(),
        pruned: Vec::new(),
        tool_version: "0".into(),
        written_at: now(),
        recorded_at: None,
        voids: Vec::new(),
    };
    let mut text = to_stored_bytes(&record).unwrap();
    text.resize(bytes.max(text.len()), b' ');
    let signature = world
        .writer
        .signing
        .sign(SignedType::PruneRecord, key.as_str(), &text)
        .unwrap();
    world.store.plant(key.as_str(), text);
    world.store.plant(key.signature().as_str(), signature);
    key
}

async fn records(world: &World, store: &dyn ObjectStore) -> Vec<ObjectKey> {
    let records = read_prune_records(store, &world.dataset, &world.keys.trusted, None)
        .await
        .unwrap();
    records.into_iter().map(|(key, _)| key).collect()
}

#[tokio::test]
async fn object_without_a_trusted_signature_is_never_fetched() {
    let world = World::new();
    let manifest = world.back_up().await.manifest;
    let true_signature = world
        .store
        .object(&key_of(&manifest, "manifest.json.minisig"))
        .unwrap();
    for number in 0..40 {
        plant(&world, number, "manifest.json", vec![b'x'; MIB]);
        let record = record_key(&world, number);
        world.store.plant(record.as_str(), vec![b'x'; 3 * MIB]);
        // No object at all, no signature, and a valid signature of another object.
        if number % 3 > 0 {
            let signature = if number % 3 == 1 {
                Bytes::from_static(b"x")
            } else {
                true_signature.clone()
            };
            plant(&world, number, "manifest.json.minisig", signature.clone());
            world.store.plant(record.signature().as_str(), signature);
        }
    }
    world.store.clear_events();
    let store = Counting::new(&world.store);
    let catalog = read_catalog(&store, &world.dataset, &world.keys.trusted)
        .await
        .unwrap();
    assert_eq!(
        (catalog.backups.len(), catalog.untrusted().count()),
        (1, 40)
    );
    assert_eq!(records(&world, &store).await, []);
    let ours = key_of(&manifest, "manifest.json");
    let fetched = fetched(&world.store);
    let objects = fetched.iter().filter(|key| !key.ends_with(".minisig"));
    assert_eq!(objects.collect::<Vec<_>>(), [&ours]);
    assert_eq!(
        fetched.len(),
        2 + 26 + 26,
        "one signature each, and of what has none nothing"
    );
    assert!(
        store.held_bytes.most() < 64 << 10,
        "{} bytes were held",
        store.held_bytes.most()
    );
    world.find(&RestorePoint::Id(manifest.id)).await.unwrap();
}

#[tokio::test]
async fn replaced_large_objects_are_held_in_memory_one_at_a_time() {
    let world = World::new();
    let large = 6 * MIB;
    for number in 0..24 {
        let key = plant_record(&world, number, 0);
        world.store.plant(key.as_str(), vec![b'x'; large]);
    }
    let good = plant_record(&world, 24, large);
    let store = Counting::new(&world.store);
    assert_eq!(records(&world, &store).await, [good]);
    assert!(
        store.calls.most() > 8,
        "{} calls at once: nothing is concurrent",
        store.calls.most()
    );
    let most = store.held_bytes.most();
    assert!((large..2 * large).contains(&most), "{most} bytes were held");
}

#[tokio::test]
async fn prune_record_longer_than_the_limit_is_ignored() {
    let world = World::new();
    let limit = usize::try_from(PRUNE_RECORD_BYTES_MAX).unwrap();
    let longest = plant_record(&world, 1, limit);
    plant_record(&world, 2, limit + 1);
    assert_eq!(records(&world, &world.store).await, [longest]);
}

#[tokio::test]
async fn receipts_and_chunk_lists_have_limits_that_fit_their_backup() {
    let world = World::new();
    let manifest = world.back_up().await.manifest;
    let signing = &world.writer.signing;
    let (key, text) = (
        key_of(&manifest, "receipt.json"),
        world
            .store
            .object(&key_of(&manifest, "receipt.json"))
            .unwrap(),
    );
    let limit = usize::try_from(manifest.receipt_bytes_max()).unwrap();
    for (bytes, is_damage) in [(limit, false), (limit + 1, true)] {
        let mut text = text.to_vec();
        text.resize(bytes, b' ');
        let signature = signing.sign(SignedType::Receipt, &key, &text).unwrap();
        world.store.plant(&key, text);
        world.store.plant(&format!("{key}.minisig"), signature);
        let damage = world.verify().await.damage;
        assert_eq!(
            damage.iter().any(|damage| damage.key == key),
            is_damage,
            "{bytes}: {damage:?}"
        );
    }
    // No chunk list of so few chunks is so long: it is not even fetched whole.
    let list = key_of(&manifest, "chunks-0000.json");
    world.store.plant(&list, vec![b' '; MIB]);
    let store = Counting::new(&world.store);
    let error = zfs_backup::catalog::read_chunks(&store, &manifest)
        .await
        .unwrap_err();
    assert!(
        error.is_damage() && error_chain(&error).contains(&list),
        "{}",
        error_chain(&error)
    );
    assert_eq!(store.held_bytes.most(), 0);
}

async fn catalog_through(world: &World) -> Catalog {
    let (state, place) = (&world.settings.state_dir, world.store.known());
    let cache = ObjectCache::open(state, &place, &world.dataset, CacheMode::ReadWrite);
    read_catalog_through(&world.store, &world.dataset, &world.keys.trusted, &cache)
        .await
        .unwrap()
}

#[tokio::test]
async fn untrusted_object_is_not_fetched_again_until_it_changes() {
    let world = World::new();
    world.back_up().await;
    for number in 0..20 {
        plant(&world, number, "manifest.json", vec![b'x'; 5000]);
        plant(
            &world,
            number,
            "manifest.json.minisig",
            &b"no signature"[..],
        );
    }
    world.store.clear_events();
    let untrusted = async || {
        let catalog = catalog_through(&world).await;
        assert_eq!(catalog.backups.len(), 1);
        (catalog.untrusted().count(), fetched(&world.store).len())
    };
    assert_eq!(untrusted().await, (20, 22));
    assert_eq!(untrusted().await, (20, 0));
    // A rewritten object is fetched again.
    world
        .store
        .set_clock(Some(now() + SignedDuration::from_hours(5)));
    plant(&world, 7, "manifest.json.minisig", &b"no signature"[..]);
    assert_eq!(untrusted().await, (20, 1));
    assert_eq!(untrusted().await, (20, 0));
    // Trust is evaluated on each use: without our keys nothing verifies, and with them everything
    // verifies again.
    let (place, nobody) = (
        world.store.known(),
        zfs_backup::sign::TrustedKeys::default(),
    );
    let cache = ObjectCache::open(
        &world.settings.state_dir,
        &place,
        &world.dataset,
        CacheMode::ReadOnly,
    );
    let catalog = read_catalog_through(&world.store, &world.dataset, &nobody, &cache)
        .await
        .unwrap();
    assert_eq!(
        (catalog.backups.len(), catalog.untrusted().count()),
        (0, 21)
    );
    drop(cache);
    assert_eq!(catalog_through(&world).await.backups.len(), 1);
}

#[tokio::test]
async fn too_many_untrusted_backups_are_an_error_that_names_the_dataset() {
    let world = World::new();
    world.back_up().await;
    for number in 0..UNTRUSTED_MAX {
        let object = if number % 2 == 0 {
            "manifest.json"
        } else {
            "started.json"
        };
        plant(&world, number, object, &b"x"[..]);
    }
    world.store.clear_events();
    let catalog = world.catalog().await;
    assert_eq!(
        (catalog.backups.len(), catalog.attempts.len() as u64),
        (1, UNTRUSTED_MAX)
    );
    assert_eq!(fetched(&world.store).len(), 2);
    for object in ["manifest.json", "started.json"] {
        plant(&world, UNTRUSTED_MAX, object, &b"x"[..]);
        let read = read_catalog(&world.store, &world.dataset, &world.keys.trusted).await;
        let Err(CatalogError::TooMany { what, hint }) = read else {
            panic!("{object}: {read:?}")
        };
        assert!(
            what.contains(world.dataset.as_str()) && what.contains("10000"),
            "{what}"
        );
        assert!(hint.contains("find out who writes below"), "{hint}");
        assert!(fetched(&world.store).len() <= 2);
        world.store.lose(&format!(
            "{}/@{}/{object}",
            world.dataset,
            id(UNTRUSTED_MAX)
        ));
    }
}

#[tokio::test]
async fn first_objects_of_attempts_are_read_together_and_not_all_at_once() {
    let world = World::new();
    night(&world, 0);
    nightly(&world).await;
    for number in 0..100 {
        plant(&world, number, "started.json", &b"x"[..]);
        plant(&world, number, "started.json.minisig", &b"x"[..]);
    }
    let store = Counting::new(&world.store);
    let mut env = world.prune_env(now() + SignedDuration::from_hours(24 * 30));
    env.store = Arc::new(store.clone());
    let viewed = read_view(&env, &crate::cached::prune_task(&world))
        .await
        .unwrap();
    assert_eq!(viewed.catalog.attempts.len(), 100);
    assert!(
        (8..=16).contains(&store.calls.most()),
        "{} calls at once",
        store.calls.most()
    );
}

#[tokio::test]
async fn one_large_object_does_not_stop_config_recover() {
    let (world, state) = (World::new(), TempDir::new().unwrap());
    let kept = KeptConfig::new("host", "/etc/zfs-backup/zfs-backup.toml", "[main]\n", now());
    assert!(
        keep_config(&world.store, &world.writer, state.path(), &kept)
            .await
            .unwrap()
    );
    let ours = world
        .store
        .keys()
        .into_iter()
        .find(|key| key.contains("/config/") && key.ends_with(".age"))
        .unwrap();
    let large = Bytes::from(vec![0; 17 * MIB]);
    let signature = world.store.object(&format!("{ours}.minisig")).unwrap();
    for (key, signature) in [
        ("@zfs-backup/config/a.age", Some(Bytes::from_static(b"x"))),
        ("@zfs-backup/config/b.age", None),
        ("@zfs-backup/config/c.age", Some(large.slice(..9000))),
        ("@zfs-backup/config/d.age", Some(signature)),
    ] {
        world.store.plant(key, large.clone());
        if let Some(signature) = signature {
            world.store.plant(&format!("{key}.minisig"), signature);
        }
    }
    world.store.clear_events();
    let found = kept_configs(&world.store, &world.keys).await.unwrap();
    assert_eq!(
        found
            .trusted
            .into_iter()
            .map(|kept| kept.text)
            .collect::<Vec<_>>(),
        ["[main]\n"]
    );
    let objects: Vec<String> = fetched(&world.store)
        .into_iter()
        .filter(|key| key.ends_with(".age"))
        .collect();
    assert_eq!(objects, std::slice::from_ref(&ours));
    // Nor does one that lies in the place of ours: then there is none, and nothing fails.
    world.store.plant(&ours, large);
    assert_eq!(
        kept_configs(&world.store, &world.keys)
            .await
            .unwrap()
            .trusted,
        []
    );
}

#[tokio::test]
async fn planted_keyrings_do_not_stop_a_restore() {
    let store = memory_store(PART_BYTES);
    let (file, passphrase) = (
        KeyFile::generate().unwrap(),
        SecretString::from("ours".to_owned()),
    );
    let tag = keyring_tag(&file.recipient().unwrap());
    let at = |hours| -> Timestamp { now() + SignedDuration::from_hours(hours) };
    store.set_clock(Some(at(0)));
    store.plant(
        &format!("@zfs-backup/keys/{tag}/0001.age"),
        file.seal_with(&passphrase, QUICK).unwrap(),
    );
    for number in 1..=40 {
        store.set_clock(Some(at(number)));
        store.plant(
            &format!("@zfs-backup/keys/{number:016x}/0001.age"),
            &b"x"[..],
        );
        let count = usize::try_from(number).unwrap() + 1;
        assert_eq!(
            stored_keyrings(&store).await.unwrap().len(),
            count.min(16),
            "{number}"
        );
    }
    let opened = open_keyrings(&store, &passphrase).await.unwrap();
    assert_eq!(opened.to_text().unwrap(), file.to_text().unwrap());
    // The newest is tried too: that of a passphrase which was changed under attack.
    let changed = SecretString::from("changed".to_owned());
    store.set_clock(Some(at(100)));
    store.plant(
        &format!("@zfs-backup/keys/{tag}/0002.age"),
        file.seal_with(&changed, QUICK).unwrap(),
    );
    assert!(open_keyrings(&store, &changed).await.is_ok());
    // With none of ours the keyrings of others open nothing.
    let error = open_keyrings(&store, &SecretString::from("other".to_owned()))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, RunError::Keyring { .. }), "{error:?}");
}
