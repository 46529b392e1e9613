//! Every kind of stored object, gone, cut or with a flipped bit: what still works, and who notices.

use crate::world::{World, key_of, name};
use zfs_backup::manifest::Manifest;
use zfs_backup::run::error_chain;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Harm {
    Lost,
    Cut,
    Flipped,
}

/// What a restore does with the damage.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Restore {
    Works,
    /// Fails, is damage, and names the object.
    Fails,
    /// There is no backup any more.
    NoBackup,
}

/// Who notices.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Seen {
    /// `verify_dataset` names the object, or its signature.
    Damage,
    /// Rot that the store does not report: only a restore reads it.
    No,
}

use Harm::{Cut, Flipped, Lost};
use Restore::{Fails, NoBackup, Works};
use Seen::{Damage, No};

const ALL: [Harm; 3] = [Lost, Cut, Flipped];

/// Object, harms, what a restore does, who notices, and how many backups the catalog has.
const TABLE: &[(&str, &[Harm], Restore, Seen, usize)] = &[
    ("started.json", &ALL, Works, Damage, 1),
    ("started.json.minisig", &ALL, Works, Damage, 1),
    ("keyring.age", &ALL, Works, Damage, 1),
    ("@zfs-backup/keys", &ALL, Works, Damage, 1),
    ("CHUNK", &[Lost, Cut], Fails, Damage, 1),
    ("CHUNK", &[Flipped], Fails, No, 1),
    ("chunks-0000.json", &ALL, Fails, Damage, 1),
    ("private.age", &ALL, Works, Damage, 1),
    ("RESTORE.txt", &ALL, Works, Damage, 1),
    ("RESTORE.txt.minisig", &ALL, Works, Damage, 1),
    ("receipt.json", &ALL, Works, Damage, 1),
    ("receipt.json.minisig", &ALL, Works, Damage, 1),
    // Its signature lies there: it was committed.
    ("manifest.json", &[Lost], NoBackup, Damage, 0),
    ("manifest.json", &[Cut, Flipped], Fails, Damage, 0),
    ("manifest.json.minisig", &ALL, Fails, Damage, 0),
];

async fn harmed_key(world: &World, manifest: &Manifest, object: &str) -> String {
    match object {
        "CHUNK" => key_of(manifest, &world.chunks(manifest).await[2].name),
        "@zfs-backup/keys" => crate::world::main_keyring_key(&world.writer),
        other => key_of(manifest, other),
    }
}

fn harm(world: &World, key: &str, harm: Harm) {
    let bytes = world.store.object(key).unwrap().len();
    let done = match harm {
        Lost => world.store.lose(key),
        Cut => world.store.cut(key, bytes / 2),
        Flipped => world.store.flip(key, bytes / 2),
    };
    assert!(done, "{key} {harm:?}");
}

async fn check_case(object: &str, kind: Harm, restore: Restore, seen: Seen, backups: usize) {
    let world = World::new();
    let manifest = world.back_up().await.manifest;
    let key = harmed_key(&world, &manifest, object).await;
    harm(&world, &key, kind);
    let signed = key.trim_end_matches(".minisig");

    assert_eq!(
        world.catalog().await.backups.len(),
        backups,
        "in the catalog"
    );
    let report = world.verify().await;
    let of_keyrings = |damage: &str| damage == "@zfs-backup/keys/" && key.starts_with(damage);
    let is_named = |damage: &str| damage == key || damage == signed || of_keyrings(damage);
    let named = report.damage.iter().any(|damage| is_named(&damage.key));
    match seen {
        Damage => assert!(named, "verify says {report:?}"),
        No => assert_eq!(report.damage, []),
    }
    // Only what was harmed is reported.
    assert!(report.damage.len() <= 1, "verify says {report:?}");

    let target = name("tank/back");
    match restore {
        Works => {
            world.assert_restores().await;
            world.restore_into(&target).await.unwrap();
            assert_eq!(world.zfs.files(&target), world.zfs.files(&world.dataset));
        }
        Fails | NoBackup => {
            let error = world.restore_into(&target).await.unwrap_err();
            let text = error_chain(&error);
            assert_eq!(error.is_damage(), restore == Fails, "{text}");
            assert!(
                text.contains(if restore == Fails { signed } else { "tank/a b" }),
                "{text}"
            );
            world.assert_not_received(&target);
            let (written, result) = world.restore().await;
            assert!(result.is_err());
            assert!(
                written == world.stream()[..written.len()],
                "wrong bytes were written"
            );
        }
    }
    // Damage in what is stored never stops the next backup; what cannot be restored any more is
    // stored again.
    let again = world
        .try_back_up()
        .await
        .unwrap_or_else(|error| panic!("the next run: {}", error_chain(&error)));
    let anew = !again.committed.is_empty();
    // Planning looks at listings: rot it cannot see.
    let unseen = (object, kind) == ("CHUNK", Flipped);
    assert_eq!(anew, restore != Works && !unseen, "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_damage_to_every_object_is_survived_or_named() {
    let mut failed = Vec::new();
    for (object, harms, restore, seen, backups) in TABLE {
        for kind in *harms {
            let case = tokio::spawn(check_case(object, *kind, *restore, *seen, *backups));
            if let Err(panic) = case.await {
                let text = panic
                    .into_panic()
                    .downcast_ref::<String>()
                    .cloned()
                    .unwrap_or_default();
                failed.push(format!("{object} {kind:?}: {text}"));
            }
        }
    }
    assert!(
        failed.is_empty(),
        "{} of the cases failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_chunks_are_named_even_when_the_receipt_is_gone() {
    let world = World::new();
    let manifest = world.back_up().await.manifest;
    let chunks = world.chunks(&manifest).await;
    let lost: Vec<String> = ["receipt.json", &chunks[0].name, &chunks[3].name]
        .map(|object| key_of(&manifest, object))
        .into();
    for key in &lost {
        assert!(world.store.lose(key));
    }
    let report = world.verify().await;
    for key in &lost {
        assert!(
            report.damage.iter().any(|damage| damage.key == *key),
            "{key}: {report:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_no_manifest_names_is_extra_and_no_damage() {
    let world = World::new();
    let manifest = world.back_up().await.manifest;
    let key = key_of(&manifest, "00000001-00000000.zfs.age");
    world
        .store
        .plant(&key, &b"left by an upload that was made again"[..]);
    world.store.plant("tank/a b/@hello", &b"who knows"[..]);
    let report = world.verify().await;
    assert_eq!(report.damage, []);
    for key in [key.as_str(), "tank/a b/@hello"] {
        assert!(
            report.extra.iter().any(|extra| extra.contains(key)),
            "{report:?}"
        );
    }
}
