//! Whole backups in S3 and through rclone while one request in twenty fails, by seed: each ends,
//! nothing is left over, and another client finds the bytes that were sent. And what it costs to
//! verify a thousand chunks.

use crate::b2_sim::{B2Sim, BUCKET as B2_BUCKET, KEY, KEY_ID};
use crate::proxy::{Action, Proxy};
use crate::weed::Weed;
use crate::weed::programs::find_program;
use crate::world::{World, committed, main_keyring_key, noise};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use zfs_backup::catalog::{read_catalog, read_chunks};
use zfs_backup::manifest::Receipt;
use zfs_backup::model::{BackupId, Digest};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnv, back_up};
use zfs_backup::run::verify::{VerifyReport, verify_dataset};
use zfs_backup::store::{
    B2Settings, B2Store, EvidenceTier, ObjectKey, ObjectStore, RcloneSettings, RcloneStore,
    S3Settings, S3Store, Spool, StoreRead,
};

const BUCKET: &str = "nights";
/// The smallest part of S3.
const PART_BYTES: usize = 5 << 20;
const ONE_IN: u64 = 20;

/// Fails one request in twenty, each time in another way.
fn bad_night(seed: u64) -> impl Fn(&str) -> Action + Send + Sync {
    let state = AtomicU64::new(seed);
    move |head| {
        // Splitmix64.
        let mut roll = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        roll = (roll ^ (roll >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        roll = (roll ^ (roll >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        roll ^= roll >> 31;
        if !roll.is_multiple_of(ONE_IN) {
            return Action::Pass;
        }
        match roll / ONE_IN % 5 {
            0 => Action::Refuse(503, "SlowDown"),
            1 => Action::Refuse(500, "InternalError"),
            2 => Action::Silence(Duration::from_millis(50)),
            3 if head.starts_with("get") => Action::CutBody(100),
            _ => Action::LoseReply,
        }
    }
}

/// Two backups of a world, with its keyring.
async fn back_up_twice(world: &World, store: &Arc<dyn ObjectStore>) {
    put_keyring(world, store).await;
    let env = BackupEnv {
        store: Arc::clone(store),
        ..world.env()
    };
    committed(
        back_up(&env, &world.selected(), RequestedKind::Full)
            .await
            .unwrap(),
    );
    world
        .zfs
        .write_file(&world.dataset, 31, &noise(31, 100_000));
    world.snapshot();
    committed(
        back_up(&env, &world.selected(), RequestedKind::Incremental)
            .await
            .unwrap(),
    );
}

async fn put_keyring(world: &World, store: &Arc<dyn ObjectStore>) {
    let keyring = world.writer.keyring.as_ref().unwrap().bytes.clone();
    store
        .put_new(
            &ObjectKey::listed(&main_keyring_key(&world.writer)).unwrap(),
            keyring,
        )
        .await
        .unwrap();
}

async fn verified(world: &World, store: &dyn ObjectStore) -> VerifyReport {
    let report = verify_dataset(store, &world.dataset, &world.keys.trusted)
        .await
        .unwrap();
    assert_eq!((&report.damage, &report.extra), (&vec![], &vec![]));
    report
}

/// Of what an independent client fetched: no object that nobody named, and each with the bytes that
/// were sent: chunks by the BLAKE3 of the signed lists, all but the last by the store's kind of
/// checksum, taken here.
async fn assert_as_sent(
    world: &World,
    objects: &BTreeMap<String, Vec<u8>>,
    store: &dyn ObjectStore,
) {
    let catalog = read_catalog(store, &world.dataset, &world.keys.trusted)
        .await
        .unwrap();
    assert_eq!(catalog.backups.len(), 2);
    let mut named = BTreeSet::from([main_keyring_key(&world.writer)]);
    for backup in &catalog.backups {
        let prefix = prefix_of(objects, &backup.manifest.id);
        for chunk in read_chunks(store, &backup.manifest).await.unwrap() {
            let digest = Digest::of(&objects[&format!("{prefix}{}", chunk.name)]);
            assert_eq!(digest, chunk.blake3, "{}", chunk.name);
        }
        let receipt: Receipt =
            serde_json::from_slice(&objects[&format!("{prefix}receipt.json")]).unwrap();
        for entry in receipt.objects {
            let key = format!("{prefix}{}", entry.name);
            assert_eq!(objects[&key].len() as u64, entry.evidence.bytes, "{key}");
            assert_eq!(
                Some(checksum(entry.evidence.tier, &objects[&key])),
                entry.evidence.checksum,
                "{key}"
            );
            named.insert(key);
        }
        let signed = [
            "manifest.json",
            "receipt.json",
            "started.json",
            "RESTORE.txt",
        ]
        .map(|name| format!("{prefix}{name}"));
        named.extend(
            signed
                .iter()
                .flat_map(|key| [key.clone(), format!("{key}.minisig")]),
        );
    }
    let there: BTreeSet<String> = objects.keys().cloned().collect();
    let differs: Vec<_> = there.symmetric_difference(&named).collect();
    assert!(differs.is_empty(), "left over, or missing: {differs:?}");
}

fn checksum(tier: EvidenceTier, bytes: &[u8]) -> String {
    match tier {
        EvidenceTier::Crc64nvmeFull => STANDARD
            .encode(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes).to_be_bytes()),
        EvidenceTier::Sha1 => {
            let digest =
                aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
            digest
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        }
        other => panic!("{other:?} is weaker than this store can"),
    }
}

fn prefix_of(objects: &BTreeMap<String, Vec<u8>>, id: &BackupId) -> String {
    let manifest = objects
        .keys()
        .find(|key| key.ends_with("/manifest.json") && key.contains(id.as_str()))
        .unwrap();
    manifest.trim_end_matches("manifest.json").to_owned()
}

/// All objects below a prefix, by the SDK alone.
async fn fetch_all(weed: &Weed, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let (client, mut objects) = (weed.client(), BTreeMap::new());
    let listed = client
        .list_objects_v2()
        .bucket(BUCKET)
        .prefix(prefix)
        .send()
        .await
        .unwrap();
    assert_eq!(listed.is_truncated(), Some(false));
    for object in listed.contents() {
        let key = object.key().unwrap();
        let found = client
            .get_object()
            .bucket(BUCKET)
            .key(key)
            .send()
            .await
            .unwrap();
        let bytes = found.body.collect().await.unwrap().into_bytes().to_vec();
        objects.insert(key.strip_prefix(prefix).unwrap().to_owned(), bytes);
    }
    objects
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_survives_a_bad_night_of_s3() {
    let weed = Weed::start(BUCKET).await;
    for seed in [1, 22, 333] {
        let mut world = World::new();
        world.settings.split_bytes = 11 << 20;
        world
            .zfs
            .write_file(&world.dataset, 30, &noise(seed, 30 << 20));
        world.snapshot();
        let proxy = Proxy::start(&weed.endpoint(), bad_night(seed));
        let prefix = format!("night-{seed}");
        let direct = S3Settings {
            prefix: prefix.clone(),
            part_bytes: PART_BYTES,
            ..weed.settings(BUCKET)
        };
        let settings = S3Settings {
            endpoint: Some(proxy.endpoint()),
            ..direct.clone()
        };
        let store: Arc<dyn ObjectStore> = Arc::new(S3Store::connect(settings).await.unwrap());
        back_up_twice(&world, &store).await;
        assert_eq!(
            verified(&world, &*store).await.backups,
            2,
            "seed {seed}, with requests that fail"
        );

        let direct = S3Store::connect(direct).await.unwrap();
        assert_eq!(direct.unfinished("").await.unwrap(), [], "seed {seed}");
        assert_as_sent(
            &world,
            &fetch_all(&weed, &format!("{prefix}/")).await,
            &direct,
        )
        .await;
        println!(
            "seed {seed}: {} requests, of which one in twenty failed",
            proxy.requests("")
        );
    }
    requests_of_a_verification(&weed).await;
}

/// A thousand chunks of S3: one HEAD each, and a handful beside.
async fn requests_of_a_verification(weed: &Weed) {
    let mut world = World::new();
    world.settings.split_bytes = 1 << 10;
    world.zfs.write_file(&world.dataset, 30, &noise(3, 720_000));
    world.snapshot();
    let proxy = Proxy::start(&weed.endpoint(), |_: &str| Action::Pass);
    let settings = S3Settings {
        prefix: "thousand".to_owned(),
        endpoint: Some(proxy.endpoint()),
        part_bytes: PART_BYTES,
        ..weed.settings(BUCKET)
    };
    let store: Arc<dyn ObjectStore> = Arc::new(S3Store::connect(settings).await.unwrap());
    let chunks = one_backup(&world, &store).await;
    let before = ["HEAD ", "list-type=2", "GET ", ""].map(|part| proxy.requests(part));
    let objects: usize = verified(&world, &*store).await.objects.values().sum();
    let after = ["HEAD ", "list-type=2", "GET ", ""].map(|part| proxy.requests(part));
    let [heads, lists, gets, all] = [0, 1, 2, 3].map(|n| after[n] - before[n]);
    println!(
        "S3, {chunks} chunks, {objects} objects: {heads} HEAD, {lists} lists, {} other GET, {all} in all",
        gets - lists
    );
    assert_eq!(heads, objects, "each object is asked for once");
    assert!(all - heads <= 40, "{all} requests for {objects} objects");
}

/// Backs up once; the number of chunks, a thousand at least.
async fn one_backup(world: &World, store: &Arc<dyn ObjectStore>) -> usize {
    put_keyring(world, store).await;
    let env = BackupEnv {
        store: Arc::clone(store),
        ..world.env()
    };
    let backup = committed(
        back_up(&env, &world.selected(), RequestedKind::Full)
            .await
            .unwrap(),
    );
    let chunks = read_chunks(&**store, &backup.manifest).await.unwrap().len();
    assert!(chunks >= 1000, "{chunks}");
    chunks
}

#[tokio::test(flavor = "multi_thread")]
async fn b2_verifies_a_thousand_chunks_by_listing() {
    let (mut world, sim) = (World::new(), B2Sim::start());
    world.settings.split_bytes = 1 << 10;
    world.zfs.write_file(&world.dataset, 30, &noise(3, 720_000));
    world.snapshot();
    let store: Arc<dyn ObjectStore> = Arc::new(B2Store::new(sim.settings()).unwrap());
    let chunks = one_backup(&world, &store).await;
    sim.forget_requests();
    let objects: usize = verified(&world, &*store).await.objects.values().sum();
    let tally = sim.tally();
    println!("B2, {chunks} chunks, {objects} objects: {tally:?}");
    assert!(
        tally.iter().map(|(_, times)| times).sum::<usize>() <= 20,
        "{tally:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_survives_a_bad_night_behind_rclone() {
    for seed in [4] {
        let (world, sim, folder) = (World::new(), B2Sim::start(), TempDir::new().unwrap());
        fs::create_dir(folder.path().join("spool")).unwrap();
        let conf = format!(
            "[b2sim]\ntype = b2\naccount = {KEY_ID}\nkey = {KEY}\nendpoint = {}\n",
            sim.endpoint()
        );
        fs::write(folder.path().join("rclone.conf"), conf).unwrap();
        let settings = RcloneSettings {
            program: find_program("rclone", "ZFS_BACKUP_RCLONE"),
            conf: folder.path().join("rclone.conf"),
            remote: "b2sim".to_owned(),
            path: format!("{B2_BUCKET}/nas"),
            ..RcloneSettings::default()
        };
        let store = RcloneStore::connect(settings).await.unwrap();
        let store: Arc<dyn ObjectStore> =
            Arc::new(Spool::new(Arc::new(store), folder.path().join("spool")));
        sim.fail_at_random(seed, ONE_IN);
        back_up_twice(&world, &store).await;
        assert_eq!(
            verified(&world, &*store).await.backups,
            2,
            "seed {seed}, with requests that fail"
        );
        sim.fail_at_random(0, 0);

        // Our own client of B2 is independent of rclone.
        let native = B2Store::new(B2Settings {
            prefix: "nas".to_owned(),
            ..sim.settings()
        })
        .unwrap();
        assert_eq!(native.unfinished("").await.unwrap(), [], "seed {seed}");
        let mut objects = BTreeMap::new();
        for object in native.list("").await.unwrap() {
            let bytes = native
                .get(&ObjectKey::listed(&object.key).unwrap(), None, object.bytes)
                .await
                .unwrap();
            objects.insert(object.key, bytes.to_vec());
        }
        assert_as_sent(&world, &objects, &native).await;
        let listed: Vec<_> = sim
            .versions()
            .into_iter()
            .filter(|(_, action, _)| action != "upload")
            .collect();
        assert!(listed.is_empty(), "seed {seed}: {listed:?}");
        assert!(
            fs::read_dir(folder.path().join("spool"))
                .unwrap()
                .next()
                .is_none(),
            "seed {seed}: the spool is empty"
        );
    }
}
