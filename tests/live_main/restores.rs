//! Ways back on a real pool: drills, properties, a rollback, a tree at one moment, and the configuration on a bare host.

use crate::bench::{Bench, assert_same_tree, change, describe};
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
        bench.good(&["stream-to-remote", if night == 0 { "--full" } else { "--incremental" }]);
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
    let first = zfs(&["list", "-Hpo", "name", "-s", "createtxg", "-t", "snapshot", &dataset]);
    zfs(&["destroy", first.lines().next().unwrap()]);
    let said = String::from_utf8(bench.good(&["drill", &dataset, "--identity", &identity(&bench)])).unwrap();
    assert!(said.contains("2 of 3 streams byte for byte") && said.contains("is gone from the pool"), "{said}");
    let shown: serde_json::Value = serde_json::from_slice(&bench.good(&["show", "--json"])).unwrap();
    assert!(shown["datasets"][0]["record"]["drill"]["at"].is_string(), "{shown}");
    assert_eq!(datasets(&bench), before);
}

#[test]
fn properties_come_back_and_a_rollback_goes_on_from_what_is_in_common() {
    let bench = Bench::tiny("ways");
    let dataset = bench.dataset();
    let set = ["compression=zstd", "recordsize=256K", "atime=off", "quota=3G", "org.example:note=7", "xattr=sa"];
    set.iter().for_each(|setting| drop(zfs(&["set", setting, &dataset])));
    three_nights(&bench);
    let with = format!("{}/away/with", bench.pool.name);
    restore(&bench, &dataset, &["--to", &with, "--with-properties", "-o", "quota=2G", "-x", "xattr"]);
    for name in ["compression", "recordsize", "atime", "org.example:note"] {
        assert_eq!(property(&with, name), property(&dataset, name), "{name}");
        assert_eq!(zfs(&["get", "-Ho", "source", name, &with]).trim(), "local", "{name}");
    }
    assert_eq!(zfs(&["get", "-Hpo", "value", "quota", &with]).trim(), (2_u64 << 30).to_string());
    assert_ne!(zfs(&["get", "-Ho", "source", "xattr", &with]).trim(), "local");
    assert_eq!(property(&with, "readonly"), "off");
    assert_eq!(property(&format!("{}/away", bench.pool.name), "canmount"), "off");

    // An older state goes its own way; then the chain takes over again.
    let target = format!("{}/back", bench.pool.name);
    let full = bench.keys_in_bucket().into_iter().find(|key| key.contains("-full-") && key.ends_with("/manifest.json"));
    let id = full.unwrap().split_once("/@").unwrap().1.trim_end_matches("/manifest.json").to_owned();
    restore(&bench, &dataset, &["--to", &target, "--backup", &id]);
    zfs(&["mount", &target]);
    fs::write(bench.pool.file("back/mine"), noise(50_000, 9)).unwrap();
    zfs(&["snapshot", &format!("{target}@mine")]);
    let refused = bench.zb(&bench.restore_arguments(&dataset, &identity(&bench), &["--to", &target]));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force-rollback"));
    let rollback = ["--to", &target, "--force-rollback"];
    let dry =
        bench.good(&[&["--dry-run"][..], &bench.restore_arguments(&dataset, &identity(&bench), &rollback)].concat());
    assert!(String::from_utf8(dry).unwrap().contains(&format!("  {target}@mine")));
    restore(&bench, &dataset, &rollback);
    assert!(!zfs(&["list", "-Hro", "name", "-t", "snapshot", &target]).contains("@mine"));
    run("zpool", &["sync"]);
    assert_same_tree(&describe(&bench.pool.file("data")), &describe(&bench.pool.file("back")));
}

#[test]
fn a_tree_comes_back_at_one_moment_and_so_does_the_configuration() {
    let bench = Bench::tiny("grove");
    let data = bench.dataset();
    for child in ["a", "a/deep", "b"] {
        bench.pool.create(&format!("data/{child}"));
        fs::write(bench.pool.file(&format!("data/{child}/file")), noise(30_000, 7)).unwrap();
    }
    let config = fs::read_to_string(bench.path("zb.toml")).unwrap();
    fs::write(bench.path("zb.toml"), config.replace("state_dir", "recursive = true\nstate_dir")).unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    let then = jiff::Timestamp::now().to_string();
    run("zpool", &["sync"]);
    let before = ["data", "data/a", "data/a/deep", "data/b"].map(|place| describe_alone(&bench, place));
    std::thread::sleep(std::time::Duration::from_secs(2));
    fs::write(bench.pool.file("data/a/file"), noise(40_000, 8)).unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);

    let target = format!("{}/then", bench.pool.name);
    restore(&bench, &data, &["-r", "--at", &then, "--to", &target]);
    let names = zfs(&["list", "-Hro", "name", &target]);
    assert_eq!(names.lines().count(), 4, "{names}");
    names.lines().for_each(|name| drop(zfs(&["mount", name])));
    for (place, expected) in ["then", "then/a", "then/a/deep", "then/b"].iter().zip(&before) {
        assert_eq!(&describe_alone(&bench, place), expected, "{place}");
    }

    // Nothing is left but the bucket, its credentials and the keys.
    let recovered = bench.path("recovered.toml");
    let mut command = Command::new("zfs-backup");
    command.args(["config", "recover", "--remote", &bench.remote(), "--identity", &identity(&bench)]);
    command.arg("--output").arg(&recovered).env("AWS_ENDPOINT_URL", bench.weed.endpoint());
    command
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env("AWS_REGION", "us-east-1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(&recovered).unwrap(), fs::read(bench.path("zb.toml")).unwrap());
}

#[test]
fn a_restore_is_mounted_as_its_properties_say_and_never_over_anything() {
    let bench = Bench::tiny("mounts");
    let (data, place) = (bench.dataset(), bench.path("place of mine"));
    bench.pool.create("data/child");
    fs::write(bench.pool.file("data/child/file"), noise(30_000, 7)).unwrap();
    let config = fs::read_to_string(bench.path("zb.toml")).unwrap();
    fs::write(bench.path("zb.toml"), config.replace("state_dir", "recursive = true\nstate_dir")).unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    change(&bench, 5);
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--incremental"]);
    run("zpool", &["sync"]);
    let before = describe_alone(&bench, "data");

    // Somebody's folder: refused before anything is fetched.
    fs::create_dir_all(place.join("full")).unwrap();
    fs::write(place.join("full/file"), "somebody's").unwrap();
    let (new, mountpoint) =
        (format!("{}/new", bench.pool.name), format!("mountpoint={}", place.join("full").display()));
    let identity = identity(&bench);
    let refused = bench.zb(&bench.restore_arguments(&data, &identity, &["--to", &new, "--mount", "-o", &mountpoint]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("that folder is not empty") && said.contains("place of mine/full"), "{said}");
    for (set, says) in [("canmount=off", "canmount=off"), ("mountpoint=legacy", "legacy"), ("mountpoint=none", "none")]
    {
        let refused = bench.zb(&bench.restore_arguments(&data, &identity, &["--to", &new, "--mount", "-o", set]));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            refused.status.code() == Some(1) && said.contains("would not be mounted") && said.contains(says),
            "{said}"
        );
    }
    assert!(!datasets(&bench).contains(&new), "{}", datasets(&bench));

    // In a place of its own, with the options that its properties mean.
    let mountpoint = format!("mountpoint={}", place.join("a/b").display());
    let options = ["-o", &mountpoint, "-o", "exec=off", "-o", "setuid=off", "-o", "devices=off", "-o", "atime=off"];
    restore(&bench, &data, &[&["--to", &new, "--mount"], &options[..]].concat());
    assert_eq!(property(&new, "mounted"), "yes");
    let shown = fs::read_to_string("/proc/mounts").unwrap();
    let line = shown.lines().find(|line| line.starts_with(&format!("{new} "))).unwrap();
    assert!(line.contains("place\\040of\\040mine/a/b zfs rw,nosuid,nodev,noexec,noatime"), "{line}");
    let hashes = "cd \"$1\" && find . -xdev -type f -print0 | sort -z | xargs -0 b3sum";
    let found = run("sh", &["-c", hashes, "sh", place.join("a/b").to_str().unwrap()]);
    assert_eq!(String::from_utf8(found).unwrap(), before);
    fs::write(place.join("a/b/mine"), "it can be written").unwrap();

    // A tree, below the place of its root; readonly as its owner wants it, so that no advice is given.
    let tree = format!("{}/tree", bench.pool.name);
    let mountpoint = format!("mountpoint={}", place.join("tree").display());
    let arguments = ["--to", &tree, "-r", "--mount", "-o", &mountpoint, "-o", "readonly=on"];
    let output = bench.zb(&bench.restore_arguments(&data, &identity, &arguments));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !said.contains("remount"), "{said}");
    assert!(said.contains(&format!("mounted {tree}/child at ")), "{said}");
    assert!(fs::read(place.join("tree/child/file")).unwrap() == noise(30_000, 7));
    assert!(fs::write(place.join("tree/child/file"), "no").is_err());

    // Without -o it goes where the pool's own mount point leads.
    let plain = format!("{}/away/plain", bench.pool.name);
    restore(&bench, &data, &["--to", &plain, "--mount"]);
    assert_eq!(describe_alone(&bench, "away/plain"), before);
    // A pool that was imported below another folder.
    run("zpool", &["export", &bench.pool.name]);
    let root = place.join("root");
    run("zpool", &["import", "-N", "-d", "/tmp", "-R", root.to_str().unwrap(), &bench.pool.name]);
    let rooted = format!("{}/rooted", bench.pool.name);
    restore(&bench, &data, &["--to", &rooted, "--mount", "-o", "mountpoint=/here"]);
    assert!(root.join("here/small-7").exists() && !std::path::Path::new("/here").exists());
}

/// The hashes of the files right there, without those of datasets below.
fn describe_alone(bench: &Bench, place: &str) -> String {
    let folder = bench.pool.file(place);
    let script = "cd \"$1\" && find . -xdev -type f -print0 | sort -z | xargs -0 b3sum";
    String::from_utf8(run("sh", &["-c", script, "sh", folder.to_str().unwrap()])).unwrap()
}
