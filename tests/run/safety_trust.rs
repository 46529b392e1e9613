//! A leaked signing key after `key rotate`: it signs nothing any more that counts, nothing made
//! before is lost, and the rotation cannot be undone by deleting objects.

use crate::chain::{plant, plant_prune_record};
use crate::upload::Pair;
use crate::world::{World, key_of, main_keyring_key, memory_store, now, plant_keyring};
use age::secrecy::SecretString;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::catalog::{read_catalog, read_pruned};
use zfs_backup::keyring::{KeyFile, keyring_tag};
use zfs_backup::manifest::{Manifest, to_stored_bytes};
use zfs_backup::model::{BackupId, BackupKind, Guid};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::keys::kept_config::{KeptConfig, keep_config, kept_configs};
use zfs_backup::run::keys::rotate::{OldKeys, Rekey, Rekeyed};
use zfs_backup::run::keys::{
    KeyCache, NewerKeys, WriterKeys, check_current, open_keyrings, writer_keys, writer_keys_with,
};
use zfs_backup::run::restore::{RestorePoint, find_restore_set};
use zfs_backup::run::verify::verify_dataset;
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::sign::{SignedType, SigningKey, Trust};
use zfs_backup::state::StateError;
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};
use zfs_backup::store::{ObjectStore, StoreErrorKind, StoreInfo, StoreRead};

/// scrypt takes its second with the real one.
const QUICK: u8 = 2;

fn secret() -> SecretString {
    SecretString::from("a long passphrase".to_owned())
}

fn asked() -> Result<SecretString, RunError> {
    Ok(secret())
}

fn nobody() -> Result<SecretString, RunError> {
    panic!("the passphrase was asked although there is a cache")
}

/// A host whose keys are in a real keyring, and the store of its backups.
struct Site {
    world: World,
}

impl Site {
    async fn new() -> Self {
        let keys = KeyFile::generate().unwrap();
        let sealed = keys.seal_with(&secret(), QUICK).unwrap();
        let writer = WriterKeys::from_keyring(&keys, sealed.into()).unwrap();
        let site = Self {
            world: World::with_keys(keys, writer),
        };
        writer_keys(&site.world.store, &site.cache(), asked)
            .await
            .unwrap();
        site
    }

    fn cache(&self) -> KeyCache {
        KeyCache::new(&self.world.settings.state_dir)
    }

    fn stores(&self, more: &[&MemoryStore]) -> Vec<Arc<dyn ObjectStore>> {
        let more = more
            .iter()
            .map(|store| Arc::new((*store).clone()) as Arc<dyn ObjectStore>);
        std::iter::once(self.world.shared_store())
            .chain(more)
            .collect()
    }

    async fn try_rotate(
        &self,
        old_keys: OldKeys,
        more: &[&MemoryStore],
    ) -> Result<Rekeyed, RunError> {
        let (stores, cache) = (self.stores(more), self.cache());
        Rekey {
            stores: &stores,
            also_listed: &[],
            cache: &cache,
            work_factor: QUICK,
        }
        .rotate(&secret(), old_keys)
        .await
    }

    /// Rotates, and returns what leaked: the keys of before.
    async fn rotate(&mut self, old_keys: OldKeys) -> WriterKeys {
        self.rotate_with(old_keys, &[]).await
    }

    async fn rotate_with(&mut self, old_keys: OldKeys, more: &[&MemoryStore]) -> WriterKeys {
        self.try_rotate(old_keys, more).await.unwrap();
        let new = writer_keys(&self.world.store, &self.cache(), nobody)
            .await
            .unwrap();
        self.world.keys = open_keyrings(&self.world.store, &secret()).await.unwrap();
        assert_eq!(
            self.world.keys.trusted, new.trusted,
            "store and cache differ"
        );
        std::mem::replace(&mut self.world.writer, new)
    }

    /// Plants a full as somebody with these keys could.
    fn forge(&mut self, leaked: &WriterKeys, from: &Manifest, number: u64) -> Manifest {
        let own = std::mem::replace(&mut self.world.writer, leaked.clone());
        let forged = plant(&self.world, from, number, None);
        self.world.writer = own;
        forged
    }

    async fn back_up(&self) -> Manifest {
        self.world.snapshot();
        self.world.back_up().await.manifest
    }

    async fn ids(&self) -> Vec<BackupId> {
        self.world
            .catalog()
            .await
            .backups
            .into_iter()
            .map(|backup| backup.manifest.id)
            .collect()
    }

    async fn assert_disbelieved(&self, forged: &Manifest, reason: &str) {
        let catalog = self.world.catalog().await;
        let text = catalog
            .untrusted()
            .find(|(id, _)| **id == forged.id)
            .map(|(_, error)| error_chain(error));
        assert!(
            text.as_ref().is_some_and(|text| text.contains(reason)),
            "{text:?}"
        );
        let newest = self.world.find(&RestorePoint::Newest).await;
        assert!(
            newest.is_err() || newest.is_ok_and(|set| set.newest().manifest.id != forged.id),
            "it restores"
        );
        let by_id = self
            .world
            .find(&RestorePoint::Id(forged.id.clone()))
            .await
            .err()
            .unwrap();
        assert!(
            error_chain(&by_id).contains(reason),
            "{}",
            error_chain(&by_id)
        );
    }

    /// Loses each object of the store that this says.
    fn lose(&self, is_lost: impl Fn(&str) -> bool) -> usize {
        let lost: Vec<String> = self
            .world
            .store
            .keys()
            .into_iter()
            .filter(|key| is_lost(key))
            .collect();
        lost.iter()
            .for_each(|key| assert!(self.world.store.lose(key)));
        lost.len()
    }

    async fn fresh_host(&self) -> Result<WriterKeys, RunError> {
        let state = TempDir::new().unwrap();
        writer_keys(&self.world.store, &KeyCache::new(state.path()), asked).await
    }
}

fn recipient(keys: &WriterKeys) -> String {
    keys.recipients[0].to_string()
}

fn tag(keys: &WriterKeys) -> String {
    keys.keyring.as_ref().unwrap().tag.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_signed_by_a_leaked_key_after_a_rotation_are_untrusted() {
    let mut site = Site::new().await;
    let before = site.world.back_up().await.manifest;
    let leaked = site.rotate(OldKeys::Retire).await;
    assert_eq!(
        site.ids().await,
        std::slice::from_ref(&before.id),
        "what was made before is lost"
    );
    site.world.assert_restores().await;
    assert_eq!(site.world.verify().await.damage, []);
    let forged = site.forge(&leaked, &before, 300);
    site.assert_disbelieved(&forged, "`key rotate` retired")
        .await;
    // The same backup signed again by the leaked key is the same backup.
    let key = key_of(&before, "manifest.json");
    let bytes = site.world.store.object(&key).unwrap();
    site.world.store.plant(
        &format!("{key}.minisig"),
        leaked
            .signing
            .sign(SignedType::Manifest, &key, &bytes)
            .unwrap(),
    );
    assert_eq!(site.ids().await, std::slice::from_ref(&before.id));
    // A listed manifest in which one word was changed is another one.
    let changed = String::from_utf8(bytes.to_vec())
        .unwrap()
        .replace("\"tool_version\": \"", "\"tool_version\": \"9");
    site.world.store.plant(&key, changed.clone());
    let signature = leaked
        .signing
        .sign(SignedType::Manifest, &key, changed.as_bytes())
        .unwrap();
    site.world.store.plant(&format!("{key}.minisig"), signature);
    site.assert_disbelieved(&before, "`key rotate` retired")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_the_new_keyring_does_not_bring_the_old_keys_back() {
    let mut site = Site::new().await;
    let full = site.world.back_up().await.manifest;
    let leaked = site.rotate(OldKeys::Retire).await;
    let newer = site.back_up().await;
    let (new, new_folder) = (
        recipient(&site.world.writer),
        format!("@zfs-backup/keys/{}/", tag(&site.world.writer)),
    );
    let forged = site.forge(&leaked, &full, 300);
    let list: Vec<String> = site
        .world
        .store
        .keys()
        .into_iter()
        .filter(|key| key.contains("/believed-"))
        .collect();
    let list_bytes = site.world.store.object(&list[0]).unwrap();
    let keyring = site.world.writer.keyring.clone().unwrap().bytes;

    // 1. The folder of the new keyring: the copy of the newest backup opens, and is put back into
    //    the folder.
    assert_eq!(
        site.lose(|key| key.starts_with(&new_folder) && key.ends_with(".age")),
        1
    );
    let opened = open_keyrings(&site.world.store, &secret()).await.unwrap();
    assert_eq!(opened.recipient().unwrap().to_string(), new);
    assert_eq!(
        recipient(&site.fresh_host().await.unwrap()),
        new,
        "a fresh host seals to leaked keys"
    );
    assert_eq!(
        site.world
            .store
            .object(&main_keyring_key(&site.world.writer)),
        Some(keyring.clone())
    );
    // A host that knows the keys puts keyring and list back, and never says that the old keyring is
    // the right one.
    site.lose(|key| key.starts_with(&new_folder));
    writer_keys(&site.world.store, &site.cache(), asked)
        .await
        .unwrap();
    assert_eq!(
        site.world
            .store
            .object(&main_keyring_key(&site.world.writer)),
        Some(keyring.clone())
    );
    assert_eq!(site.world.store.object(&list[0]), Some(list_bytes));

    // 2. Copies too: the successor object tells.
    site.lose(|key| key.starts_with(&new_folder));
    assert_eq!(site.lose(|key| key == key_of(&newer, "keyring.age")), 1);
    let refused = site.fresh_host().await.err().unwrap().to_string();
    assert!(
        refused.contains("were replaced by `key rotate`")
            && refused.contains(&tag(&site.world.writer)),
        "{refused}"
    );

    // 3. The successor object too: the backups made since tell.
    assert_eq!(site.lose(|key| key.contains("/successor-")), 2);
    let error = site.fresh_host().await.err().unwrap();
    assert!(
        error.to_string().contains(&key_of(&newer, "manifest.json")),
        "{error}"
    );
    assert!(
        error.hint().unwrap().contains("--trust-found-keys"),
        "{error}"
    );
    let old = open_keyrings(&site.world.store, &secret()).await.unwrap();
    assert_eq!(old.recipient().unwrap().to_string(), recipient(&leaked));
    let stores: [Arc<dyn StoreRead>; 1] = [site.world.shared_store()];
    let newest = find_restore_set(&stores, &site.world.dataset, &old, &RestorePoint::Newest).await;
    let error = newest.err().unwrap();
    assert!(
        error.to_string().contains(newer.id.as_str())
            && !error.to_string().contains(forged.id.as_str()),
        "{error}"
    );
    // A person may look and decide; a restore of one backup by its id never asks.
    let point = RestorePoint::Id(full.id.clone());
    assert!(
        find_restore_set(&stores, &site.world.dataset, &old, &point)
            .await
            .is_ok()
    );
    let state = TempDir::new().unwrap();
    let (cache, ignore) = (KeyCache::new(state.path()), NewerKeys::Ignore);
    let taken = writer_keys_with(&site.world.store, &cache, ignore, asked)
        .await
        .unwrap();
    assert_eq!(recipient(&taken), recipient(&leaked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configurations_signed_by_an_old_key_are_not_recovered() {
    for old_keys in [OldKeys::Retire, OldKeys::KeepTrust] {
        let mut site = Site::new().await;
        let kept = |text: &str, hour: i64| {
            KeptConfig::new(
                "nas",
                "/etc/zb.toml",
                text,
                now() + SignedDuration::from_hours(hour),
            )
        };
        let state = site.world.settings.state_dir.clone();
        assert!(
            keep_config(
                &site.world.store,
                &site.world.writer,
                &state,
                &kept("ours", 1)
            )
            .await
            .unwrap()
        );
        let leaked = site.rotate(old_keys).await;
        let forger = WriterKeys {
            recipients: site.world.writer.recipients.clone(),
            ..leaked
        };
        let elsewhere = TempDir::new().unwrap();
        keep_config(
            &site.world.store,
            &forger,
            elsewhere.path(),
            &kept("hooks = evil", 9),
        )
        .await
        .unwrap();
        assert_eq!(
            kept_configs(&site.world.store, &site.world.keys)
                .await
                .unwrap()
                .trusted,
            [],
            "{old_keys:?}"
        );
        let again = keep_config(
            &site.world.store,
            &site.world.writer,
            &state,
            &kept("ours", 2),
        )
        .await
        .unwrap();
        assert!(
            again,
            "{old_keys:?}: the unchanged configuration was not signed with the new key"
        );
        let found = kept_configs(&site.world.store, &site.world.keys)
            .await
            .unwrap()
            .trusted;
        assert_eq!(
            found
                .iter()
                .map(|kept| kept.text.as_str())
                .collect::<Vec<_>>(),
            ["ours"],
            "{old_keys:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prune_records_of_a_retired_key_count_only_if_listed_by_the_rotation() {
    let mut site = Site::new().await;
    let full = site.world.back_up().await.manifest;
    let gone = BackupId::new(now(), BackupKind::Full, Guid(0x60), 1);
    plant_prune_record(&site.world, &site.world.store.clone(), &[&gone]);
    let leaked = site.rotate(OldKeys::Retire).await;
    let pruned = async |site: &Site| {
        read_pruned(
            &site.world.store,
            &site.world.dataset,
            &site.world.keys.trusted,
        )
        .await
        .unwrap()
    };
    assert_eq!(pruned(&site).await, [gone.clone()].into());
    // The same name with other content, by the leaked key: that the full was meant to go.
    let own = std::mem::replace(&mut site.world.writer, leaked);
    plant_prune_record(&site.world, &site.world.store.clone(), &[&full.id]);
    site.world.writer = own;
    assert_eq!(pruned(&site).await, [].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_upload_restarts_with_rotated_keys() {
    let mut site = Site::new().await;
    site.world.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::Create)
            .nth(3)
            .forever(),
    );
    assert!(
        site.world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .is_err()
    );
    site.world.store.heal();
    let started: Vec<String> = site
        .world
        .store
        .keys()
        .into_iter()
        .filter(|key| key.ends_with("/started.json"))
        .collect();
    let done = site.try_rotate(OldKeys::Retire, &[]).await.unwrap();
    assert_eq!(
        (done.collected[0].backups, done.collected[0].unfinished),
        (0, 1)
    );
    site.world.writer = done.keys;
    site.world.keys = open_keyrings(&site.world.store, &secret()).await.unwrap();
    let committed = site.world.back_up().await.manifest;
    assert!(
        !started[0].contains(committed.id.as_str()),
        "the upload went on with objects of the old key"
    );
    assert_eq!(committed.recipients, [recipient(&site.world.writer)]);
    site.world.assert_restores().await;
    site.world.assert_no_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_rotation_keeps_earlier_lists_and_retires_the_second_key() {
    let mut site = Site::new().await;
    let first = site.world.back_up().await.manifest;
    let leaked = site.rotate(OldKeys::Retire).await;
    let second = site.back_up().await;
    // In no configured store while the second rotation looks: an offline copy comes back later.
    let away: Vec<(String, bytes::Bytes)> = site
        .world
        .store
        .keys()
        .into_iter()
        .filter(|key| key.starts_with(&key_of(&first, "")))
        .map(|key| (key.clone(), site.world.store.object(&key).unwrap()))
        .collect();
    site.lose(|key| key.starts_with(&key_of(&first, "")));
    let second_leaked = site.rotate(OldKeys::Retire).await;
    away.into_iter()
        .for_each(|(key, bytes)| site.world.store.plant(&key, bytes));
    let third = site.back_up().await;
    assert_eq!(
        site.ids().await,
        [first.id.clone(), second.id.clone(), third.id.clone()]
    );
    assert_eq!(site.world.verify().await.damage, []);
    for (number, leaked) in [(300, &leaked), (301, &second_leaked)] {
        let forged = site.forge(leaked, &first, number);
        site.assert_disbelieved(&forged, "`key rotate` retired")
            .await;
        site.lose(|key| key.starts_with(&key_of(&forged, "")));
    }
    site.world.assert_restores().await;
    assert_eq!(site.world.writer.trusted.with(Trust::Retired).count(), 2);
    assert_eq!(site.world.writer.trusted.lists.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_key_is_trusted_after_keep_trust_until_a_retiring_rotation() {
    let mut site = Site::new().await;
    let full = site.world.back_up().await.manifest;
    let old = site.rotate(OldKeys::KeepTrust).await;
    assert!(
        site.world
            .store
            .keys()
            .iter()
            .all(|key| !key.contains("/believed-"))
    );
    let by_old = site.forge(&old, &full, 1);
    assert_eq!(
        site.ids().await.len(),
        2,
        "the old key does not count although its trust was kept"
    );
    let other = TempDir::new().unwrap();
    site.rotate(OldKeys::Retire).await;
    assert!(
        site.ids().await.contains(&by_old.id),
        "what was signed until the second rotation is lost"
    );
    let forged = site.forge(&old, &full, 300);
    site.assert_disbelieved(&forged, "`key rotate` retired")
        .await;
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_of_the_intermediate_directory_alone_are_listed_and_copied_after_the_rotation() {
    let site = Site::new().await;
    let full = site.world.back_up().await.manifest;
    let mut pair = Pair::new(site.world);
    let mut site = Site {
        world: std::mem::replace(&mut pair.world, World::new()),
    };
    let leaked = site.rotate_with(OldKeys::Retire, &[&pair.remote]).await;
    pair.world = site.world;
    pair.upload().await;
    pair.assert_copied(&full).await;
    let opened = open_keyrings(&pair.remote, &secret()).await.unwrap();
    let catalog = read_catalog(&pair.remote, &pair.world.dataset, &opened.trusted)
        .await
        .unwrap();
    assert_eq!(catalog.backups.len(), 1);
    // A backup that only the attacker has: into the directory after the rotation, it is not copied.
    let mut site = Site {
        world: std::mem::replace(&mut pair.world, World::new()),
    };
    let forged = site.forge(&leaked, &full, 300);
    pair.world = site.world;
    drop(pair.try_upload().await);
    assert!(
        pair.remote
            .keys()
            .iter()
            .all(|key| key != &key_of(&forged, "manifest.json"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_older_keyrings_and_forged_lists_give_no_trust() {
    let mut site = Site::new().await;
    let full = site.world.back_up().await.manifest;
    let old_keyring = site.world.writer.keyring.clone().unwrap();
    let leaked = site.rotate(OldKeys::Retire).await;
    let forged = site.forge(&leaked, &full, 300);
    // The old keyring again, under more numbers and under the name of the new one.
    let new_tag = tag(&site.world.writer);
    for place in [
        format!("{}/0009", old_keyring.tag),
        format!("{new_tag}/0009"),
    ] {
        site.world.store.plant(
            &format!("@zfs-backup/keys/{place}.age"),
            old_keyring.bytes.clone(),
        );
    }
    site.world
        .store
        .plant(&key_of(&forged, "keyring.age"), old_keyring.bytes.clone());
    site.world.keys = open_keyrings(&site.world.store, &secret()).await.unwrap();
    assert_eq!(
        site.world.keys.recipient().unwrap().to_string(),
        recipient(&site.world.writer)
    );
    site.assert_disbelieved(&forged, "`key rotate` retired")
        .await;
    // A list with the forged backup on it, in the place of the true one.
    let key = site
        .world
        .store
        .keys()
        .into_iter()
        .find(|key| key.contains("/believed-"))
        .unwrap();
    let text = String::from_utf8(site.world.store.object(&key).unwrap().to_vec()).unwrap();
    let (true_list, more) = (
        text.clone(),
        key_of(&forged, "").trim_end_matches('/').to_owned(),
    );
    let manifest = site
        .world
        .store
        .object(&key_of(&forged, "manifest.json"))
        .unwrap();
    let digest = zfs_backup::model::Digest::of(&manifest);
    let text = text.replacen(
        "{\"",
        &format!("{{\"{more}\":{{\"manifest.json\":[\"{digest}\"]}},\""),
        2,
    );
    site.world.store.plant(&key, text.clone());
    // The copies beside prune records serve in its place, and know nothing of the forged one.
    site.world.keys = open_keyrings(&site.world.store, &secret()).await.unwrap();
    site.assert_disbelieved(&forged, "`key rotate` retired")
        .await;
    let copies: Vec<_> = site
        .world
        .store
        .keys()
        .into_iter()
        .filter(|key| key.contains("/@prune/believed-"))
        .collect();
    assert!(!copies.is_empty());
    copies
        .iter()
        .for_each(|copy| site.world.store.plant(copy, text.clone()));
    site.world.keys = open_keyrings(&site.world.store, &secret()).await.unwrap();
    site.assert_disbelieved(&forged, "is missing, the list")
        .await;
    let error = writer_keys(&site.world.store, &site.cache(), nobody)
        .await
        .err()
        .unwrap();
    assert!(
        error.is_damage() && error.to_string().contains(&key),
        "{error}"
    );
    let trusted = &site.world.writer.trusted;
    let report = verify_dataset(&site.world.store, &site.world.dataset, trusted)
        .await
        .unwrap();
    assert!(
        report.damage.iter().any(|damage| damage.key == key),
        "{:?}",
        report.damage
    );
    // The store cannot change this host's own copy of the list.
    site.world.keys.trusted = site.world.writer.trusted.clone();
    assert_eq!(site.ids().await, std::slice::from_ref(&full.id));
    site.world.store.plant(&key, true_list);
    writer_keys(&site.world.store, &site.cache(), nobody)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_rotation_loses_no_backup_signed_before_it_is_completed() {
    let mut site = Site::new().await;
    let full = site.world.back_up().await.manifest;
    // After the keyring, before the successor object and the cache.
    site.world.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::PutNew)
            .on("/successor-")
            .forever(),
    );
    let old = site.world.writer.clone();
    assert!(site.try_rotate(OldKeys::Retire, &[]).await.is_err());
    site.world.store.heal();
    assert_eq!(
        recipient(
            &writer_keys(&site.world.store, &site.cache(), nobody)
                .await
                .unwrap()
        ),
        recipient(&old)
    );
    let between = site.back_up().await;
    let done = site.try_rotate(OldKeys::Retire, &[]).await.unwrap();
    assert!(done.resumed);
    site.world.writer = done.keys;
    site.world.keys = open_keyrings(&site.world.store, &secret()).await.unwrap();
    assert_eq!(
        site.ids().await,
        [full.id.clone(), between.id],
        "the backup of the night between is lost"
    );
    let forged = site.forge(&old, &full, 300);
    site.assert_disbelieved(&forged, "`key rotate` retired")
        .await;
    writer_keys(&site.world.store, &site.cache(), nobody)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_with_retired_keys_refuses_to_back_up_until_it_adopts_the_new_ones() {
    for old_keys in [OldKeys::Retire, OldKeys::KeepTrust] {
        let mut site = Site::new().await;
        let full = site.world.back_up().await.manifest;
        let state = TempDir::new().unwrap();
        let other = KeyCache::new(state.path());
        writer_keys(&site.world.store, &other, asked).await.unwrap();
        let leaked = site.rotate(old_keys).await;
        let stale = writer_keys(&site.world.store, &other, nobody).await;
        match old_keys {
            OldKeys::KeepTrust => assert!(stale.is_ok(), "trust was kept"),
            OldKeys::Retire => {
                let error = stale.err().unwrap();
                assert!(
                    error.to_string().contains("were replaced by `key rotate`"),
                    "{error}"
                );
                assert!(
                    error.hint().unwrap().contains("`zfs-backup key rotate`"),
                    "{error}"
                );
            }
        }
        // An object signed with the old key after the rotation is not accepted when the other host
        // rotates too.
        let forged = site.forge(&leaked, &full, 300);
        let stores = site.stores(&[]);
        let rekey = Rekey {
            stores: &stores,
            also_listed: &[],
            cache: &other,
            work_factor: QUICK,
        };
        let done = rekey.rotate(&secret(), OldKeys::Retire).await.unwrap();
        assert!(done.resumed);
        assert_eq!(recipient(&done.keys), recipient(&site.world.writer));
        assert_eq!(done.keys.trusted, site.world.writer.trusted);
        writer_keys(&site.world.store, &other, nobody)
            .await
            .unwrap();
        if old_keys == OldKeys::Retire {
            site.assert_disbelieved(&forged, "`key rotate` retired")
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_successor_object_signed_by_the_own_key_stops_a_host() {
    let site = Site::new().await;
    let stranger = SigningKey::generate().unwrap();
    let tag = tag(&site.world.writer);
    let key = format!("@zfs-backup/keys/{tag}/successor-0123456789abcdef-00000001.json");
    let bytes = format!(
        "{{\"format\":1,\"type\":\"successor\",\"replaced\":\"{tag}\",\"tag\":\"0123456789abcdef\",\"verifying_key\":\"\",\
         \"keeps_trust\":false,\"written_at\":\"2026-01-01T00:00:00Z\"}}"
    );
    for signing in [&stranger, &site.world.writer.signing] {
        let signature = signing
            .sign(SignedType::Successor, &key, bytes.as_bytes())
            .unwrap();
        site.world.store.plant(&key, bytes.clone());
        site.world.store.plant(&format!("{key}.minisig"), signature);
        let keys = writer_keys(&site.world.store, &site.cache(), nobody).await;
        let is_own = std::ptr::eq(signing, &site.world.writer.signing);
        assert_eq!(keys.is_err(), is_own, "signed by our key: {is_own}");
    }
    // Signed by our key without a rotation of ours: the key leaked, and a rotation is the way out.
    let done = site.try_rotate(OldKeys::Retire, &[]).await.unwrap();
    assert!(!done.resumed);
    writer_keys(&site.world.store, &site.cache(), nobody)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_way_and_an_object_that_cannot_be_read_stop_a_rotation() {
    let site = Site::new().await;
    let full = site.world.back_up().await.manifest;
    let held = zfs_backup::state::dataset_lock::lock_dataset(
        &site.world.settings.state_dir,
        &site.world.store.known(),
        &site.world.dataset,
    )
    .unwrap();
    assert!(matches!(
        site.try_rotate(OldKeys::Retire, &[]).await,
        Err(RunError::State(StateError::Locked { .. }))
    ));
    drop(held);
    let key = key_of(&full, "receipt.json");
    site.world.store.fail(
        Fault::before(StoreErrorKind::Unavailable)
            .of(Operation::Get)
            .on(&key)
            .forever(),
    );
    assert!(matches!(
        site.try_rotate(OldKeys::Retire, &[]).await,
        Err(RunError::Store(_))
    ));
    site.world.store.heal();
    let keys = writer_keys(&site.world.store, &site.cache(), nobody)
        .await
        .unwrap();
    assert_eq!(
        recipient(&keys),
        recipient(&site.world.writer),
        "the keys changed although it failed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_fetches_each_manifest_once_and_the_keyring_stays_small() {
    const MANIFESTS: usize = 1000;
    let site = Site::new().await;
    let mut manifest = site.world.back_up().await.manifest;
    for number in 0..MANIFESTS as u64 {
        let at: Timestamp = now() + SignedDuration::from_hours(i64::try_from(number).unwrap());
        manifest.id = BackupId::new(at, BackupKind::Full, Guid(number), number);
        (manifest.snapshot.guid, manifest.snapshot.created_at) = (Guid(number), at);
        manifest.chain.full_id = manifest.id.clone();
        let (key, bytes) = (
            key_of(&manifest, "manifest.json"),
            to_stored_bytes(&manifest).unwrap(),
        );
        let signature = site
            .world
            .writer
            .signing
            .sign(SignedType::Manifest, &key, &bytes)
            .unwrap();
        site.world.store.plant(&format!("{key}.minisig"), signature);
        site.world.store.plant(&key, bytes);
    }
    site.world.store.clear_events();
    let done = site.try_rotate(OldKeys::Retire, &[]).await.unwrap();
    assert_eq!(done.collected[0].backups, MANIFESTS + 1);
    let gets = site
        .world
        .store
        .events()
        .into_iter()
        .filter(|event| event.operation == Operation::Get)
        .count();
    // The manifest and its signature; the one real backup has a receipt, a first object and a
    // keyring besides.
    assert!(gets <= 2 * MANIFESTS + 40, "{gets} requests");
    let keys = site.cache().load().unwrap().unwrap();
    let sealed = keys.keyring.clone().unwrap().bytes;
    assert!(
        sealed.len() < 4096,
        "the keyring grew to {} bytes",
        sealed.len()
    );
    let catalog = read_catalog(&site.world.store, &site.world.dataset, &keys.trusted)
        .await
        .unwrap();
    assert_eq!(catalog.backups.len(), MANIFESTS + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyring_rotated_by_an_early_version_trusts_as_before_until_it_is_rotated_again() {
    let mut site = Site::new().await;
    let full = site.world.back_up().await.manifest;
    let old = site.world.writer.clone();
    // As an early version wrote it: verifying keys, and no word about the older one.
    let text = site
        .world
        .keys
        .rotated_keeping_trust()
        .unwrap()
        .to_text()
        .unwrap();
    let early: String = text
        .lines()
        .filter(|line| !line.starts_with("# kept key"))
        .map(|l| format!("{l}\n"))
        .collect();
    let early = KeyFile::parse(&early).unwrap();
    let sealed = early.seal_with(&secret(), QUICK).unwrap();
    let key = format!(
        "@zfs-backup/keys/{}/0001.age",
        keyring_tag(&early.recipient().unwrap())
    );
    site.world.store.plant(&key, sealed);
    let taken = site.try_rotate(OldKeys::Retire, &[]).await.unwrap();
    assert!(taken.resumed);
    assert_eq!(
        taken.keys.trusted.with(Trust::Unlimited).count(),
        1,
        "nobody is told of it"
    );
    (site.world.writer, site.world.keys) = (
        taken.keys,
        open_keyrings(&site.world.store, &secret()).await.unwrap(),
    );
    assert_eq!(site.ids().await, std::slice::from_ref(&full.id));
    site.rotate(OldKeys::Retire).await;
    assert_eq!(site.world.writer.trusted.with(Trust::Unlimited).count(), 0);
    assert_eq!(site.ids().await, std::slice::from_ref(&full.id));
    let forged = site.forge(&old, &full, 300);
    site.assert_disbelieved(&forged, "`key rotate` retired")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_successors_do_not_hide_a_rotation_from_another_host() {
    let mut site = Site::new().await;
    let state = TempDir::new().unwrap();
    let other = KeyCache::new(state.path());
    let stale = writer_keys(&site.world.store, &other, asked).await.unwrap();
    check_current(&site.world.store, &other, &stale)
        .await
        .unwrap();
    let old_tag = tag(&stale);
    site.rotate(OldKeys::Retire).await;
    // The planted names sort before any that a rotation makes.
    for number in 0..40 {
        let key =
            format!("@zfs-backup/keys/{old_tag}/successor-0000000000000000-{number:08x}.json");
        site.world.store.plant(&key, "{}");
        if number % 2 == 0 {
            site.world.store.plant(&format!("{key}.minisig"), "planted");
        }
    }
    for error in [
        writer_keys(&site.world.store, &other, nobody)
            .await
            .err()
            .unwrap(),
        // Deleting needs current keys too: the stale ones do not know the newer backups.
        check_current(&site.world.store, &other, &stale)
            .await
            .unwrap_err(),
    ] {
        assert!(
            error.to_string().contains("were replaced by `key rotate`"),
            "{error}"
        );
    }
    check_current(&site.world.store, &site.cache(), &site.world.writer)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyring_planted_under_the_last_or_the_next_number_does_not_stop_a_new_passphrase() {
    for (name, bytes) in [("9999", 10), ("0002", 100_000)] {
        let site = Site::new().await;
        let (stores, cache) = (site.stores(&[]), site.cache());
        site.world.store.plant(
            &format!("@zfs-backup/keys/{}/{name}.age", tag(&site.world.writer)),
            vec![b'x'; bytes],
        );
        let rekey = Rekey {
            stores: &stores,
            also_listed: &[],
            cache: &cache,
            work_factor: QUICK,
        };
        let new = SecretString::from("another long passphrase".to_owned());
        rekey.change_passphrase(&secret(), &new).await.unwrap();
        open_keyrings(&site.world.store, &new).await.unwrap();
        writer_keys(&site.world.store, &site.cache(), nobody)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retiring_rotation_after_keep_trust_stops_a_host_that_missed_both() {
    let mut site = Site::new().await;
    let state = TempDir::new().unwrap();
    let other = KeyCache::new(state.path());
    let stale = writer_keys(&site.world.store, &other, asked).await.unwrap();
    site.rotate(OldKeys::KeepTrust).await;
    writer_keys(&site.world.store, &other, nobody)
        .await
        .unwrap();
    site.rotate(OldKeys::Retire).await;
    assert_eq!(
        site.world
            .keys
            .trusted
            .trust_in(stale.signing.verifying_key()),
        Some(Trust::Retired)
    );
    let error = writer_keys(&site.world.store, &other, nobody)
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("were replaced by `key rotate`"),
        "{error}"
    );
    let stores = site.stores(&[]);
    let done = Rekey {
        stores: &stores,
        also_listed: &[],
        cache: &other,
        work_factor: QUICK,
    }
    .rotate(&secret(), OldKeys::Retire)
    .await;
    assert_eq!(
        recipient(&done.unwrap().keys),
        recipient(&site.world.writer)
    );
    writer_keys(&site.world.store, &other, nobody)
        .await
        .unwrap();
    // A fresh host that finds the first keyring alone does not take its keys for the newest.
    let first = tag(&stale);
    site.lose(|key| key.ends_with(".age") && !key.contains(&first));
    let error = site.fresh_host().await.err().unwrap();
    assert!(
        error.to_string().contains("were replaced by `key rotate`"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_omitted_from_a_rotation_keeps_its_keyring_and_backups() {
    let mut site = Site::new().await;
    let elsewhere = site.world.store.clone();
    let full = site.world.back_up().await.manifest;
    let old_keys = site.world.keys.clone();
    // Another configuration with the same keys rotates: it knows another remote alone.
    site.world.store = memory_store(crate::world::PART_BYTES);
    plant_keyring(&site.world.store, &site.world.writer);
    site.rotate(OldKeys::Retire).await;
    let before = elsewhere.keys();
    let error = writer_keys(&elsewhere, &site.cache(), || Ok(secret()))
        .await
        .err()
        .unwrap();
    let key = key_of(&full, "manifest.json");
    assert!(
        !error.is_damage() && error.to_string().contains(&key),
        "{}",
        error_chain(&error)
    );
    assert!(error.hint().unwrap().contains("another prefix"), "{error}");
    assert_eq!(elsewhere.keys(), before, "something was put");
    // The keyring that is there opens and trusts what it did.
    let opened = open_keyrings(&elsewhere, &secret()).await.unwrap();
    assert_eq!(
        opened.recipient().unwrap().to_string(),
        old_keys.recipient().unwrap().to_string()
    );
    let catalog = read_catalog(&elsewhere, &site.world.dataset, &opened.trusted)
        .await
        .unwrap();
    assert_eq!(catalog.backups.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overwritten_list_of_retired_keys_stops_a_backup_with_the_remedy() {
    let mut site = Site::new().await;
    site.world.back_up().await;
    site.rotate(OldKeys::Retire).await;
    let store = site.world.store.clone();
    let is_list = |key: &String| key.starts_with("@zfs-backup/keys/") && key.contains("/believed-");
    let list = store.keys().into_iter().find(is_list).unwrap();
    store.plant(&list, b"overwritten".to_vec());
    let keys = async || writer_keys(&store, &site.cache(), nobody).await;
    let error = keys().await.err().unwrap();
    assert!(error.is_damage(), "{error}");
    let hint = error.hint().unwrap();
    assert!(
        hint.contains(&format!("delete {list} in the store")),
        "{hint}"
    );
    assert!(store.lose(&list));
    keys().await.unwrap();
    assert!(store.object(&list).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_of_an_also_listed_store_are_trusted_under_rotated_keys() {
    let mut site = Site::new().await;
    let elsewhere = site.world.store.clone();
    let full = site.world.back_up().await.manifest;
    site.world.store = memory_store(crate::world::PART_BYTES);
    plant_keyring(&site.world.store, &site.world.writer);
    let (before, stores, cache) = (elsewhere.keys(), site.stores(&[]), site.cache());
    let also_listed: [Arc<dyn StoreRead>; 1] = [Arc::new(elsewhere.clone())];
    let rekey = Rekey {
        stores: &stores,
        also_listed: &also_listed,
        cache: &cache,
        work_factor: QUICK,
    };
    rekey.rotate(&secret(), OldKeys::Retire).await.unwrap();
    assert_eq!(elsewhere.keys(), before, "something was put there");
    let keys = writer_keys(&elsewhere, &cache, || Ok(secret())).await;
    let (dataset, trusted) = (&site.world.dataset, keys.unwrap().trusted);
    let catalog = read_catalog(&elsewhere, dataset, &trusted).await.unwrap();
    assert_eq!(catalog.newest().unwrap().manifest.id, full.id);
}
