//! The row about a bucket with a million objects: three datasets, a backup each night for more than
//! three years, and one dataset that changed.
//!
//! The program makes one backup of each dataset in another process, because the pools in memory
//! hold its bytes. The bucket then copies its objects under the names of the other backups,
//! whose manifests and receipts are written and signed here.

use crate::bucket::Bucket;
use crate::scene::{PASSPHRASE, PLACE, Scene};
use age::secrecy::SecretString;
use jiff::{SignedDuration, Timestamp};
use std::process::Command;
use zfs_backup::keyring::KeyFile;
use zfs_backup::manifest::{BaseRef, Manifest, Receipt, parse_strict, to_stored_bytes};
use zfs_backup::model::{BackupId, BackupKind, DatasetName, Digest};
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::sign::{SignedType, SigningKey};
use zfs_backup::zfs::{Snapshot, ZfsRead};

const OBJECTS: usize = 1_000_000;
const DATASETS: usize = 3;
/// A dataset and its chunks: 256 of them in each backup.
const DATASET_BYTES: usize = 16 << 20;
const SMALL_CHUNKS: &str = "split_size = \"64K\"\n";
/// Backups in one chain.
const IN_CHAIN: usize = 50;
const HOURS_BETWEEN: i64 = 24;

/// Makes the backup of each dataset that the others are copies of.
pub(crate) fn template(folder: &str, address: &str) {
    let scene = Scene::at(folder.into(), Bucket::at(address), DATASETS, DATASET_BYTES);
    scene.configure(SMALL_CHUNKS);
    scene.run(0, &["snapshot"]);
    scene.run(0, &["stream-to-remote"]);
}

pub(crate) fn million() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::start();
    let mut template = Command::new(std::env::current_exe().unwrap());
    template
        .arg("template")
        .arg(folder.path())
        .arg(&bucket.address);
    assert!(template.status().unwrap().success());
    let scene = Scene::at(folder.path().to_owned(), bucket, DATASETS, 1000);
    scene.configure(
        "split_size = \"64K\"\n[backup-sequence]\nstep01 = \"snapshot\"\n\
         step02 = \"stream-to-remote\"\nstep03 = \"prune-remote -y\"\n",
    );
    fill(&scene);
    println!("  {} objects", scene.bucket.objects());
    scene.change(&scene.datasets, 1 << 20);
    scene.run(0, &["perform"]).print("(first night, no delay)");
    scene.change(&scene.datasets[..1], 1 << 20);
    let night = scene.run(50, &["perform"]);
    night.print("a million objects, 1 of 3 datasets changed: a night");
    println!(
        "  {} list requests (snapshot, stream-to-remote, prune-remote -y)",
        night.requests.of_kind("list")
    );
}

/// Fills the bucket with the backups of all nights.
fn fill(scene: &Scene) {
    let of_first = scene.bucket.keys("fleet", "host/tank/c000/@");
    let nights = OBJECTS / DATASETS / of_first.len();
    let begin = Timestamp::now()
        - SignedDuration::from_hours(HOURS_BETWEEN * i64::try_from(nights).unwrap());
    for night in 0..nights {
        let at = begin + SignedDuration::from_hours(HOURS_BETWEEN * i64::try_from(night).unwrap());
        scene.zfs.set_now(at);
        take_snapshots(&scene.zfs, &scene.datasets, "zfs-backup_", at).unwrap();
    }
    let signing = signing_key(&scene.bucket);
    for dataset in &scene.datasets {
        fill_dataset(scene, dataset, &signing);
    }
}

/// Returns the key that signs, from the keyring in the bucket.
fn signing_key(bucket: &Bucket) -> SigningKey {
    let keys = bucket.keys("fleet", "host/@zfs-backup/keys/");
    let keyring = keys.iter().find(|key| key.ends_with("0001.age")).unwrap();
    let sealed = bucket.get(&format!("fleet/{keyring}"));
    let file = KeyFile::open(&sealed, &SecretString::from(PASSPHRASE)).unwrap();
    file.signing.unwrap()
}

fn fill_dataset(scene: &Scene, dataset: &DatasetName, signing: &SigningKey) {
    let bucket = &scene.bucket;
    let keys = bucket.keys("fleet", &format!("host/{dataset}/@"));
    let manifest = keys.iter().find(|key| key.ends_with("/manifest.json"));
    let manifest = format!("fleet/{}", manifest.unwrap());
    let from = manifest.strip_suffix("manifest.json").unwrap();
    let template: Manifest = parse_strict(&bucket.get(&manifest)).unwrap();
    let receipt: Receipt = parse_strict(&bucket.get(&format!("{from}receipt.json"))).unwrap();
    let mut before: Option<(Manifest, Digest)> = None;
    for (number, snapshot) in scene.zfs.snapshots(dataset).unwrap().iter().enumerate() {
        let is_full = number.is_multiple_of(IN_CHAIN);
        let manifest = follow(&template, snapshot, before.take(), is_full);
        let key = format!("{dataset}/@{}/", manifest.id);
        bucket.copy(from, &format!("{PLACE}/{key}"));
        let bytes = to_stored_bytes(&manifest).unwrap();
        let blake3 = Digest::of(&bytes);
        let receipt = Receipt {
            id: manifest.id.clone(),
            manifest_blake3: blake3,
            live: Vec::new(),
            ..receipt.clone()
        };
        let receipt = to_stored_bytes(&receipt).unwrap();
        for (name, signed_type, bytes) in [
            ("receipt.json", SignedType::Receipt, receipt),
            ("manifest.json", SignedType::Manifest, bytes),
        ] {
            let key = format!("{key}{name}");
            let signature = signing.sign(signed_type, &key, &bytes).unwrap();
            bucket.put(&format!("{PLACE}/{key}.minisig"), &signature);
            bucket.put(&format!("{PLACE}/{key}"), &bytes);
        }
        before = Some((manifest, blake3));
    }
    bucket.remove(from);
}

/// Returns the manifest of the backup of a snapshot, which follows the one before.
fn follow(
    template: &Manifest,
    snapshot: &Snapshot,
    before: Option<(Manifest, Digest)>,
    is_full: bool,
) -> Manifest {
    let kind = if is_full {
        BackupKind::Full
    } else {
        BackupKind::Incr
    };
    let mut manifest = template.clone();
    manifest.id = BackupId::new(snapshot.created_at, kind, snapshot.guid, snapshot.createtxg);
    manifest.kind = kind;
    manifest.snapshot.guid = snapshot.guid;
    manifest.snapshot.createtxg = snapshot.createtxg;
    manifest.snapshot.created_at = snapshot.created_at;
    manifest.chain.full_id = manifest.id.clone();
    let Some((before, manifest_blake3)) = before else {
        return manifest;
    };
    manifest.previous = Some(vec![before.id.clone()]);
    if !is_full {
        manifest.chain.full_id = before.chain.full_id.clone();
        manifest.chain.position = before.chain.position + 1;
        manifest.chain.stored_bytes += before.chain.stored_bytes;
        manifest.base = Some(BaseRef {
            guid: before.snapshot.guid,
            backup_id: before.id,
            manifest_blake3,
        });
    }
    manifest
}
