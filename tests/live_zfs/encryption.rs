//! Natively encrypted datasets: with the key, without it, raw.

use crate::pool::{LARGE_COMPRESSED, Pool, errno, full, noise, property, run, run_with_input, zfs};
use std::collections::BTreeMap;
use zfs_backup::zfs::{
    DatasetType, ReceiveRequest, SendBase, SendFlags, SendRequest, ZfsRead, ZfsReceive, ZfsSend,
    ZfsSnapshots,
};

const RAW: SendFlags = SendFlags {
    raw: true,
    ..LARGE_COMPRESSED
};

fn encrypted(name: &str) -> Pool {
    let pool = Pool::new(name);
    let options = [
        "create",
        "-o",
        "encryption=aes-256-gcm",
        "-o",
        "keyformat=passphrase",
        "-o",
        "pbkdf2iters=100000",
    ];
    run_with_input(
        "zfs",
        &[&options[..], &[&format!("{name}/e")]].concat(),
        "correct horse\n",
    );
    pool.write("e/one", 1_500_000, 1);
    pool.take("e@1");
    pool.write("e/two", 600_000, 2);
    pool.take("e@2");
    pool
}

fn lock(pool: &Pool) {
    zfs(&["unmount", pool.dataset("e").as_str()]);
    zfs(&["unload-key", pool.dataset("e").as_str()]);
}

#[test]
fn listing_reports_encryption_and_key_status() {
    let pool = encrypted("crypt");
    zfs(&["create", "-s", "-V", "8M", "crypt/e/vol"]);
    let state = |path: &str| {
        let dataset = pool.zfs.dataset(&pool.dataset(path)).unwrap().unwrap();
        (dataset.encrypted, dataset.key_unavailable)
    };
    assert_eq!((state("e"), state("e/vol")), ((true, false), (true, false)));
    lock(&pool);
    assert_eq!((state("e"), state("e/vol")), ((true, true), (true, true)));
    let children = pool.zfs.children(&pool.dataset("e")).unwrap();
    assert_eq!(
        children
            .iter()
            .map(|child| child.dataset_type)
            .collect::<Vec<_>>(),
        [DatasetType::Volume]
    );
    assert_eq!(pool.zfs.snapshots(&pool.dataset("e")).unwrap().len(), 2);
    assert!(
        !pool
            .zfs
            .dataset(&"crypt".parse().unwrap())
            .unwrap()
            .unwrap()
            .encrypted
    );
}

#[test]
fn raw_needs_no_key_and_restores_with_the_passphrase() {
    let pool = encrypted("raw");
    lock(&pool);
    let (first, second) = (pool.snapshot("e@1"), pool.snapshot("e@2"));
    let whole = pool.send(&SendRequest {
        flags: RAW,
        ..full(&first)
    });
    assert!(whole == run("zfs", &["send", "-w", "raw/e@1"]));
    pool.zfs
        .bookmark(&pool.bookmark("e#1"), &SendBase::Snapshot(first))
        .unwrap();
    let base = Some(SendBase::Bookmark(pool.bookmark("e#1")));
    let incremental = pool.send(&SendRequest {
        flags: RAW,
        base,
        ..full(&second)
    });
    assert!(incremental == run("zfs", &["send", "-w", "-i", "#1", "raw/e@2"]));

    let into = |path: &str| ReceiveRequest {
        target: pool.snapshot(path),
        resumable: true,
        properties: BTreeMap::new(),
    };
    assert_eq!(
        errno(
            pool.zfs
                .receive(&into("r@1"), &mut &whole[..whole.len() / 2])
        ),
        1040
    );
    pool.zfs.destroy_dataset(&pool.dataset("r")).unwrap();
    pool.zfs.receive(&into("r@1"), &mut &whole[..]).unwrap();
    pool.zfs
        .receive(&into("r@2"), &mut &incremental[..])
        .unwrap();
    let received = pool.zfs.dataset(&pool.dataset("r")).unwrap().unwrap();
    assert!(received.encrypted && received.key_unavailable);
    assert_eq!(
        property(&pool.snapshot("r@2"), "guid"),
        property(&second, "guid")
    );
    run_with_input("zfs", &["load-key", "raw/r"], "correct horse\n");
    assert!(
        !pool
            .zfs
            .dataset(&pool.dataset("r"))
            .unwrap()
            .unwrap()
            .key_unavailable
    );
    zfs(&["mount", "raw/r"]);
    assert!(std::fs::read(pool.file("r/one")).unwrap() == noise(1_500_000, 1));
    assert!(std::fs::read(pool.file("r/two")).unwrap() == noise(600_000, 2));
}

#[test]
fn sending_in_clear_needs_the_key() {
    let pool = encrypted("clear");
    let request = full(&pool.snapshot("e@2"));
    assert!(pool.send(&request) == run("zfs", &["send", "-L", "-c", "clear/e@2"]));
    lock(&pool);
    let mut stream = pool.zfs.send(&request).unwrap();
    let mut bytes = Vec::new();
    stream.reader().read_to_end(&mut bytes).unwrap();
    assert_eq!(errno(stream.finish()), libc::EACCES);
}
