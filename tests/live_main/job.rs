//! snapshot, stream-to-remote, show, verify-checksums, restore: every byte and attribute comes
//! back.

use crate::bench::{Bench, assert_same_tree, describe};
use crate::pool::{property, run, zfs};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use zfs_backup::manifest::{ChunkList, Manifest, parse_strict};

#[test]
fn restored_stream_and_files_equal_the_source_byte_for_byte() {
    let bench = Bench::new("mainjob");
    let dataset = bench.dataset();
    bench.good(&["snapshot"]);
    let snapshot = zfs(&["list", "-Hpo", "name", "-t", "snapshot", &dataset]);
    bench.good(&["stream-to-remote", "--full"]);
    let shown =
        String::from_utf8(bench.good(&["show", "--include-remote", &bench.dataset()])).unwrap();
    assert!(
        shown.contains("full")
            && shown.contains(
                &property(&snapshot, "guid")
                    .parse::<u64>()
                    .map(|g| format!("{g:016x}"))
                    .unwrap()
            ),
        "{shown}"
    );
    let verified = String::from_utf8(bench.good(&["verify-checksums"])).unwrap();
    assert!(verified.contains("0 damaged"), "{verified}");

    let expected = run("zfs", &["send", "-L", "-c", &snapshot]);
    assert!(expected.len() > 30_000_000);
    let identity = bench.path("identity.txt").display().to_string();
    let stream = bench.good(&bench.restore_arguments(&dataset, &identity, &["--stdout"]));
    assert!(
        stream == expected,
        "the restored stream differs from zfs send -L -c"
    );

    let target = format!("{}/restored", bench.pool.name);
    bench.good(&bench.restore_arguments(&dataset, &identity, &["--to", &target]));
    assert_eq!(
        property(
            &format!("{target}@{}", snapshot.split('@').nth(1).unwrap()),
            "guid"
        ),
        property(&snapshot, "guid")
    );
    zfs(&["mount", &target]);
    // Allocated sizes settle once the transaction group is written.
    run("zpool", &["sync"]);
    let (source, restored) = (bench.pool.file("data"), bench.pool.file("restored"));
    assert_same_tree(&describe(&source), &describe(&restored));

    let again = bench.zb(&bench.restore_arguments(&dataset, &identity, &["--to", &target]));
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists already"));

    let downloaded = bench.download("downloaded");
    check_by_hand(&bench, &downloaded.join(&dataset), &expected);

    let up_to_date = String::from_utf8(bench.good(&["stream-to-remote", "--full"])).unwrap();
    assert!(up_to_date.contains("up to date"), "{up_to_date}");
}

/// With b3sum, age and a shell alone: every object is what the manifest says, and RESTORE.txt
/// brings the stream back.
fn check_by_hand(bench: &Bench, dataset_folder: &Path, expected: &[u8]) {
    let folder = fs::read_dir(dataset_folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .next()
        .unwrap();
    let manifest: Manifest =
        parse_strict(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let sums = b3sums(&folder);
    let mut chunks = 0;
    for list in &manifest.chunk_lists {
        assert_eq!(sums[&list.name], list.blake3.to_string());
        let entries: ChunkList = parse_strict(&fs::read(folder.join(&list.name)).unwrap()).unwrap();
        for entry in &entries.chunks {
            assert_eq!(
                sums[&entry.name],
                entry.blake3.to_string(),
                "{}",
                entry.name
            );
            assert_eq!(
                fs::metadata(folder.join(&entry.name)).unwrap().len(),
                entry.sealed_bytes
            );
            chunks += 1;
        }
    }
    assert!(chunks >= 4, "{chunks} chunks");
    assert_eq!(sums["RESTORE.txt"], manifest.files.restore_text.to_string());
    assert_eq!(sums["private.age"], manifest.files.private.to_string());

    let key = bench
        .keys()
        .signing_key()
        .unwrap()
        .verifying_key()
        .to_string();
    for name in [
        "RESTORE.txt",
        "manifest.json",
        "receipt.json",
        "started.json",
    ] {
        run(
            "minisign",
            &[
                "-V",
                "-q",
                "-P",
                &key,
                "-m",
                folder.join(name).to_str().unwrap(),
            ],
        );
    }
    fs::copy(bench.path("identity.txt"), folder.join("identity.txt")).unwrap();
    let by_hand = run(
        "sh",
        &[
            "-c",
            "cd \"$1\" && sh RESTORE.txt",
            "sh",
            folder.to_str().unwrap(),
        ],
    );
    assert!(by_hand == expected, "RESTORE.txt gave another stream");
}

fn b3sums(folder: &Path) -> BTreeMap<String, String> {
    let text = run(
        "sh",
        &[
            "-c",
            "cd \"$1\" && b3sum -- *",
            "sh",
            folder.to_str().unwrap(),
        ],
    );
    let line = |line: &str| {
        line.split_once("  ")
            .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
            .unwrap()
    };
    String::from_utf8(text).unwrap().lines().map(line).collect()
}

#[test]
fn intermediate_directory_exports_verifies_and_restores_like_a_remote() {
    let bench = Bench::small("interm");
    let dataset = bench.dataset();
    bench.good(&["snapshot"]);
    bench.good(&["export-intermediate", "--full"]);
    bench.good(&["verify-checksums", "--intermediate"]);
    let snapshot = zfs(&["list", "-Hpo", "name", "-t", "snapshot", &dataset]);
    let identity = bench.path("identity.txt").display().to_string();
    let to = ["--from", "intermediate", "--stdout"];
    let stream = bench.good(&bench.restore_arguments(&dataset, &identity, &to));
    assert!(stream == run("zfs", &["send", "-L", "-c", &snapshot]));
    let folder = bench.path("intermediate");
    let mut left: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    left.sort();
    // The identity of the store, and the folder of the dataset.
    assert_eq!(
        left,
        [folder.join("@zfs-backup"), folder.join(&bench.pool.name)]
    );
}

#[test]
fn an_encrypted_dataset_is_sent_raw_without_its_key() {
    let bench = Bench::small("crypted");
    let name = format!("{}/secret", bench.pool.name);
    let options = [
        "create",
        "-o",
        "encryption=aes-256-gcm",
        "-o",
        "keyformat=passphrase",
        "-o",
        "pbkdf2iters=100000",
        &name,
    ];
    crate::pool::run_with_input("zfs", &options, "correct horse\n");
    bench.pool.write("secret/file", 3 << 20, 7);
    zfs(&["unmount", &name]);
    zfs(&["unload-key", &name]);
    let config = fs::read_to_string(bench.path("zb.toml"))
        .unwrap()
        .replace(&bench.dataset(), &name);
    fs::write(bench.path("zb.toml"), config).unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--full"]);
    let identity = bench.path("identity.txt").display().to_string();
    let target = format!("{}/back", bench.pool.name);
    bench.good(&bench.restore_arguments(&name, &identity, &["--to", &target]));
    crate::pool::run_with_input("zfs", &["load-key", &target], "correct horse\n");
    zfs(&["mount", &target]);
    assert!(fs::read(bench.pool.file("back/file")).unwrap() == crate::pool::noise(3 << 20, 7));
}
