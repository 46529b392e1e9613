//! Ways back on a real pool: drills, properties, a rollback, a tree at one moment, and the
//! configuration on a bare host.

use crate::bench::{Bench, assert_same_tree, change, describe, moment};
use crate::pool::{noise, property, run, zfs};
use crate::weed::{ACCESS_KEY, SECRET_KEY};
use std::fs;
use std::process::Command;

/// The datasets of the pool.
fn datasets(bench: &Bench) -> String {
    zfs(&["list", "-Hro", "name", &bench.pool.name])
}

fn identity(bench: &Bench) -> String {
    bench.path("identity.txt").display().to_string()
}

fn restore(bench: &Bench, dataset: &str, rest: &[&str]) {
    bench.good(&bench.restore_arguments(dataset, &identity(bench), rest));
}

/// A chain of a full and two incrementals.
fn three_nights(bench: &Bench) {
    for night in 0..3 {
        if night > 0 {
            change(bench, night);
        }
        bench.good(&["snapshot"]);
        bench.good(&[
            "stream-to-remote",
            if night == 0 {
                "--full"
            } else {
                "--incremental"
            },
        ]);
    }
}

#[test]
fn a_drill_compares_every_stream_and_leaves_nothing() {
    let bench = Bench::small("drill");
    let dataset = bench.dataset();
    three_nights(&bench);
    let before = datasets(&bench);
    let said = String::from_utf8(bench.good(&["drill", "--identity", &identity(&bench)])).unwrap();
    assert!(said.contains("3 of 3 streams byte for byte"), "{said}");
    assert_eq!(datasets(&bench), before);
    // The first snapshot goes: its stream cannot be made again, the next one's base is a bookmark.
    let first = zfs(&[
        "list",
        "-Hpo",
        "name",
        "-s",
        "createtxg",
        "-t",
        "snapshot",
        &dataset,
    ]);
    zfs(&["destroy", first.lines().next().unwrap()]);
    let said = String::from_utf8(bench.good(&["drill", &dataset, "--identity", &identity(&bench)]))
        .unwrap();
    assert!(
        said.contains("2 of 3 streams byte for byte") && said.contains("is gone from the pool"),
        "{said}"
    );
    let shown: serde_json::Value =
        serde_json::from_slice(&bench.good(&["show", "--json"])).unwrap();
    assert!(
        shown["datasets"][0]["record"]["drill"]["at"].is_string(),
        "{shown}"
    );
    assert_eq!(datasets(&bench), before);
}

#[test]
fn properties_are_restored_and_rollback_continues_from_the_common_snapshot() {
    let bench = Bench::tiny("ways");
    let dataset = bench.dataset();
    let set = [
        "compression=zstd",
        "recordsize=256K",
        "atime=off",
        "quota=3G",
        "org.example:note=7",
        "xattr=sa",
    ];
    set.iter()
        .for_each(|setting| drop(zfs(&["set", setting, &dataset])));
    three_nights(&bench);
    let with = format!("{}/away/with", bench.pool.name);
    restore(
        &bench,
        &dataset,
        &[
            "--to",
            &with,
            "--with-properties",
            "-o",
            "quota=2G",
            "-x",
            "xattr",
        ],
    );
    for name in ["compression", "recordsize", "atime", "org.example:note"] {
        assert_eq!(property(&with, name), property(&dataset, name), "{name}");
        assert_eq!(
            zfs(&["get", "-Ho", "source", name, &with]).trim(),
            "local",
            "{name}"
        );
    }
    assert_eq!(
        zfs(&["get", "-Hpo", "value", "quota", &with]).trim(),
        (2_u64 << 30).to_string()
    );
    assert_ne!(
        zfs(&["get", "-Ho", "source", "xattr", &with]).trim(),
        "local"
    );
    assert_eq!(property(&with, "readonly"), "off");
    assert_eq!(
        property(&format!("{}/away", bench.pool.name), "canmount"),
        "off"
    );

    // An older state goes its own way; then the chain takes over again.
    let target = format!("{}/back", bench.pool.name);
    let full = bench
        .keys_in_bucket()
        .into_iter()
        .find(|key| key.contains("-full-") && key.ends_with("/manifest.json"));
    let id = full
        .unwrap()
        .split_once("/@")
        .unwrap()
        .1
        .trim_end_matches("/manifest.json")
        .to_owned();
    restore(&bench, &dataset, &["--to", &target, "--backup", &id]);
    zfs(&["mount", &target]);
    fs::write(bench.pool.file("back/mine"), noise(50_000, 9)).unwrap();
    zfs(&["snapshot", &format!("{target}@mine")]);
    let refused =
        bench.zb(&bench.restore_arguments(&dataset, &identity(&bench), &["--to", &target]));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force-rollback"));
    let guid = property(&format!("{target}@mine"), "guid")
        .parse::<u64>()
        .unwrap();
    let listed = format!("  {target}@mine, guid {guid:016x}, taken ");
    let rollback = ["--to", &target, "--force-rollback", "-y"];
    let dry = bench.good(
        &[
            &["--dry-run"][..],
            &bench.restore_arguments(&dataset, &identity(&bench), &rollback),
        ]
        .concat(),
    );
    assert!(String::from_utf8(dry).unwrap().contains(&listed));
    // Without -y, held, or cloned: the list or the reason, and nothing happens.
    let refused = |to: &[&str], says: &str| {
        let output = bench.zb(&bench.restore_arguments(&dataset, &identity(&bench), to));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(says.trim()), "{says:?} is not in {said}");
        assert!(zfs(&["list", "-Hro", "name", "-t", "snapshot", &target]).contains("@mine"));
        assert_eq!(property(&target, "readonly"), "off");
        assert!(bench.pool.file("back/mine").exists());
    };
    refused(&rollback[..3], &listed);
    zfs(&["hold", "keep", &format!("{target}@mine")]);
    refused(&rollback, &format!("zfs release keep {target}@mine"));
    zfs(&["release", "keep", &format!("{target}@mine")]);
    let clone = format!("{}/clone", bench.pool.name);
    zfs(&["clone", &format!("{target}@mine"), &clone]);
    refused(&rollback, &format!("{target}@mine has a clone"));
    zfs(&["destroy", &clone]);
    zfs(&[
        "bookmark",
        &format!("{target}@mine"),
        &format!("{target}#mine"),
    ]);
    restore(&bench, &dataset, &rollback);
    assert_eq!(property(&target, "readonly"), "off");
    assert_eq!(
        zfs(&["get", "-Ho", "source", "zfs-backup:restoring", &target]),
        "-"
    );
    assert!(!zfs(&["list", "-Hro", "name", "-t", "snapshot", &target]).contains("@mine"));
    run("zpool", &["sync"]);
    assert_same_tree(
        &describe(&bench.pool.file("data")),
        &describe(&bench.pool.file("back")),
    );
}

#[test]
fn tree_is_restored_at_one_time_and_its_configuration_is_recovered() {
    let bench = Bench::tiny("grove");
    let data = bench.dataset();
    for child in ["a", "a/deep", "b"] {
        bench.pool.create(&format!("data/{child}"));
        fs::write(
            bench.pool.file(&format!("data/{child}/file")),
            noise(30_000, 7),
        )
        .unwrap();
    }
    let config = fs::read_to_string(bench.path("zb.toml")).unwrap();
    fs::write(
        bench.path("zb.toml"),
        config.replace("state_dir", "recursive = true\nstate_dir"),
    )
    .unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    let then = moment().to_string();
    run("zpool", &["sync"]);
    let before =
        ["data", "data/a", "data/a/deep", "data/b"].map(|place| describe_alone(&bench, place));
    fs::write(bench.pool.file("data/a/file"), noise(40_000, 8)).unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);

    let target = format!("{}/then", bench.pool.name);
    restore(&bench, &data, &["-r", "--at", &then, "--to", &target]);
    let names = zfs(&["list", "-Hro", "name", &target]);
    assert_eq!(names.lines().count(), 4, "{names}");
    names.lines().for_each(|name| drop(zfs(&["mount", name])));
    for (place, expected) in ["then", "then/a", "then/a/deep", "then/b"]
        .iter()
        .zip(&before)
    {
        assert_eq!(&describe_alone(&bench, place), expected, "{place}");
    }

    // Nothing is left but the bucket, its credentials and the keys.
    let recovered = bench.path("recovered.toml");
    let mut command = Command::new("zfs-backup");
    command.args([
        "config",
        "recover",
        "--remote",
        &bench.remote(),
        "--identity",
        &identity(&bench),
    ]);
    command
        .arg("--output")
        .arg(&recovered)
        .env("AWS_ENDPOINT_URL", bench.weed.endpoint());
    command
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env("AWS_REGION", "us-east-1");
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        fs::read(&recovered).unwrap(),
        fs::read(bench.path("zb.toml")).unwrap()
    );
}

/// The commands are for a shell: they are given to one.
#[test]
fn a_restore_mounts_nothing_and_prints_the_commands_that_do() {
    let bench = Bench::tiny("commands");
    let (data, place) = (bench.dataset(), bench.path("place of mine"));
    bench.pool.create("data/child");
    fs::write(bench.pool.file("data/child/file"), noise(30_000, 7)).unwrap();
    let config = fs::read_to_string(bench.path("zb.toml")).unwrap();
    fs::write(
        bench.path("zb.toml"),
        config.replace("state_dir", "recursive = true\nstate_dir"),
    )
    .unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    run("zpool", &["sync"]);
    let before = describe_alone(&bench, "data");
    let identity = identity(&bench);
    let target = format!("{}/old files", bench.pool.name);
    let mountpoint = format!("mountpoint={}", place.display());
    for (options, chosen) in [
        (&["-o", &mountpoint][..], false),
        (&["-o", "mountpoint=none"], true),
    ] {
        let arguments = [&["--to", &target, "-r"], options].concat();
        let said =
            String::from_utf8(bench.good(&bench.restore_arguments(&data, &identity, &arguments)))
                .unwrap();
        assert_eq!(property(&target, "mounted"), "no");
        let commands: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix("  zfs "))
            .collect();
        for command in &commands {
            // A child of a dataset without a place has its place below that one's, once that has
            // one.
            let command = command.replace("mountpoint=/FOLDER", &mountpoint.replace(' ', "\\ "));
            if !(chosen && command.contains("/child")) {
                run("sh", &["-c", &format!("zfs {command}")]);
            }
        }
        assert!(
            commands.iter().any(|command| command.contains("'")),
            "quoted: {said}"
        );
        let hashes = "cd \"$1\" && find . -xdev -type f -print0 | sort -z | xargs -0 b3sum";
        let found = run("sh", &["-c", hashes, "sh", place.to_str().unwrap()]);
        assert_eq!(String::from_utf8(found).unwrap(), before, "{said}");
        zfs(&["destroy", "-r", &target]);
    }
}

/// The hashes of the files right there, without those of datasets below.
fn describe_alone(bench: &Bench, place: &str) -> String {
    let folder = bench.pool.file(place);
    let script = "cd \"$1\" && find . -xdev -type f -print0 | sort -z | xargs -0 b3sum";
    String::from_utf8(run("sh", &["-c", script, "sh", folder.to_str().unwrap()])).unwrap()
}
