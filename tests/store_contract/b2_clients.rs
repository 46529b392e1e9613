//! The simulator itself, tested with clients by other authors: rclone's b2 backend and Backblaze's
//! own b2sdk.

use crate::b2::connect;
use crate::b2_sim::{B2Sim, BUCKET, KEY, KEY_ID, SimOptions};
use crate::contract::{key, pattern, upload};
use crate::weed::programs::find_program;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;
use zfs_backup::store::{B2Settings, DirSettings, DirStore, StoreRead, StoreWrite};

/// The smallest part size that both clients accept.
const PART: usize = 5_000_000;

fn sim() -> B2Sim {
    B2Sim::start_with(SimOptions {
        part_bytes_min: PART,
        ..SimOptions::default()
    })
}

fn rclone(sim: &B2Sim, folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(find_program("rclone", "ZFS_BACKUP_RCLONE"));
    command
        .env_clear()
        .env("HOME", folder)
        .env("RCLONE_CONFIG", "/dev/null")
        .current_dir(folder);
    command
        .env("RCLONE_B2_ACCOUNT", KEY_ID)
        .env("RCLONE_B2_KEY", KEY)
        .env("RCLONE_B2_ENDPOINT", sim.endpoint());
    command
        .args([
            "--retries=1",
            "--b2-chunk-size=5Mi",
            "--b2-upload-cutoff=5Mi",
        ])
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs rclone, which must succeed, and returns what it printed.
fn run(sim: &B2Sim, folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = rclone(sim, folder, arguments);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {complaint}");
    output.stdout
}

/// Size and SHA-1 of every object, as rclone lists them.
fn listed(sim: &B2Sim, folder: &Path, place: &str) -> Vec<(String, u64, Option<String>)> {
    let json = run(
        sim,
        folder,
        &["lsjson", "-R", "--files-only", "--hash", place],
    );
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&json).unwrap();
    let one = |entry: serde_json::Value| {
        let sha1 = entry["Hashes"]["sha1"].as_str().map(str::to_owned);
        (
            entry["Path"].as_str().unwrap().to_owned(),
            entry["Size"].as_u64().unwrap(),
            sha1,
        )
    };
    entries.into_iter().map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_finds_the_simulator_to_be_b2() {
    let (sim, folder) = (sim(), TempDir::new().unwrap());
    let folder = folder.path();
    let (small, large) = (pattern(1000, 1), pattern(12_000_000, 2));
    fs::write(folder.join("small"), &small).unwrap();
    fs::write(folder.join("large"), &large).unwrap();
    let place = format!(":b2:{BUCKET}");
    let at = |name: &str| format!("{place}/{name}");
    for name in ["small", "large"] {
        run(
            &sim,
            folder,
            &["copyto", name, &at(&format!("up/a b+ü %20/{name}"))],
        );
    }
    let hashes = listed(&sim, folder, &place);
    assert_eq!(
        hashes
            .iter()
            .map(|(name, bytes, _)| (name.as_str(), *bytes))
            .collect::<Vec<_>>(),
        [
            ("up/a b+ü %20/large", 12_000_000),
            ("up/a b+ü %20/small", 1000)
        ]
    );
    assert!(hashes.iter().all(|(.., sha1)| sha1.is_some()), "{hashes:?}");
    assert!(run(&sim, folder, &["cat", &at("up/a b+ü %20/large")]) == large);
    let range = run(
        &sim,
        folder,
        &[
            "cat",
            "--offset=4999990",
            "--count=20",
            &at("up/a b+ü %20/large"),
        ],
    );
    assert_eq!(range, large[4_999_990..5_000_010]);
    assert_eq!(
        run(&sim, folder, &["lsf", &at("up")]),
        "a b+ü %20/\n".as_bytes(),
        "a folder"
    );
    // Our store reads what rclone stored, and rclone reads what our store stored.
    let store = connect(sim.settings());
    assert!(
        store
            .get(&key("up/a b+ü %20/large"), None, 1 << 30)
            .await
            .unwrap()
            == large
    );
    upload(&store, &key("ours/small"), &small).await.unwrap();
    upload(&store, &key("ours/large"), &large).await.unwrap();
    run(
        &sim,
        folder,
        &["check", "--download", "--one-way", ".", &at("ours")],
    );
    assert_eq!(
        listed(&sim, folder, &at("ours"))[1].2,
        hashes[1].2,
        "rclone sees the SHA-1 of a small object"
    );
    // Hiding, versions, deleting.
    run(&sim, folder, &["deletefile", &at("ours/small")]);
    assert_eq!(store.head(&key("ours/small")).await.unwrap(), None);
    let versions = run(&sim, folder, &["lsf", "--b2-versions", &at("ours")]);
    assert_eq!(
        String::from_utf8_lossy(&versions).lines().count(),
        2,
        "the hidden one is still a version"
    );
    run(
        &sim,
        folder,
        &["deletefile", "--b2-hard-delete", &at("ours/large")],
    );
    run(&sim, folder, &["cleanup", &place]);
    assert_eq!(sim.versions().len(), 2, "{:?}", sim.versions());
    let missing = rclone(&sim, folder, &["deletefile", &at("ours/large")]);
    assert_eq!(missing.status.code(), Some(4));
}

const B2SDK_SCRIPT: &str = r#"
import hashlib, os, sys
from b2sdk.v2 import B2Api, InMemoryAccountInfo
from b2sdk.v2.exception import FileNotPresent
endpoint, key_id, key, bucket_name = sys.argv[1:5]
api = B2Api(InMemoryAccountInfo())
api.authorize_account(endpoint, key_id, key)
bucket = api.get_bucket_by_name(bucket_name)
small, large = os.urandom(1000), os.urandom(12_000_000)
one = bucket.upload_bytes(small, 'sdk/a b+ü %20/small', file_info={'colour': 'grün + 1'})
assert one.content_sha1 == hashlib.sha1(small).hexdigest() and one.size == 1000, one
two = bucket.upload_bytes(large, 'sdk/large')
assert two.size == 12_000_000, two
def content(name, **args):
    from io import BytesIO
    out = BytesIO()
    bucket.download_file_by_name(name, **args).save(out)
    return out.getvalue()
assert content('sdk/large') == large
assert content('sdk/large', range_=(4_999_990, 5_000_009)) == large[4_999_990:5_000_010]
assert content('sdk/a b+ü %20/small') == small
info = api.get_file_info(one.id_)
assert info.file_info == {'colour': 'grün + 1'}, info.file_info
names = [v.file_name for v, _ in bucket.ls('sdk', recursive=True)]
assert names == ['sdk/a b+ü %20/small', 'sdk/large'], names
folders = [folder for _, folder in bucket.ls('sdk')]
assert folders == ['sdk/a b+ü %20/', None], folders
bucket.hide_file('sdk/large')
try:
    bucket.download_file_by_name('sdk/large')
    raise SystemExit('a hidden file was given out')
except FileNotPresent:
    pass
versions = list(bucket.list_file_versions('sdk/large'))
assert [v.action for v in versions] == ['hide', 'upload'], versions
for version in versions:
    api.delete_file_version(version.id_, version.file_name)
begun = api.session.start_large_file(bucket.id_, 'sdk/begun', 'b2/x-auto', {})['fileId']
assert [f.file_id for f in bucket.list_unfinished_large_files()] == [begun]
api.cancel_large_file(begun)
assert list(bucket.list_unfinished_large_files()) == []
try:
    api.cancel_large_file(begun)
    raise SystemExit('a file was cancelled twice')
except Exception as error:
    print(type(error).__name__)
"#;

#[test]
fn b2sdk_finds_the_simulator_to_be_b2() {
    let sim = sim();
    let python = find_program("python3", "ZFS_BACKUP_PYTHON");
    let mut command = Command::new(&python);
    let output = command
        .args(["-c", B2SDK_SCRIPT, &sim.endpoint(), KEY_ID, KEY, BUCKET])
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{} (scripts/deps installs b2sdk): {complaint}",
        python.display()
    );
    assert_eq!(
        sim.versions(),
        [("sdk/a b+ü %20/small".to_owned(), "upload".to_owned(), 1000)]
    );
}

const PASSPHRASE: &str = "frozen for ever in version one";

/// Runs the program with the simulator as B2, and the passphrase on stdin.
fn zb(sim: &B2Sim, key: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
    command
        .args(arguments)
        .env("B2_ENVIRONMENT", sim.endpoint());
    command
        .env("B2_APPLICATION_KEY_ID", KEY_ID)
        .env("B2_APPLICATION_KEY", key);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that fails early reads no passphrase.
    let _ = child.stdin.take().unwrap().write_all(PASSPHRASE.as_bytes());
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_host_restores_from_b2_with_key_and_passphrase() {
    let sim = B2Sim::start();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1");
    let frozen = DirStore::open(&DirSettings {
        root: archive.join("none"),
        part_bytes: PART,
    })
    .unwrap();
    let store = connect(B2Settings {
        prefix: "nas/1".to_owned(),
        ..sim.settings()
    });
    for object in frozen.list("").await.unwrap() {
        let bytes = frozen.get(&key(&object.key), None, 1 << 30).await.unwrap();
        store.put_new(&key(&object.key), bytes).await.unwrap();
    }
    let place = format!("b2:{BUCKET}/nas/1");
    let restored = zb(
        &sim,
        KEY,
        &["restore", "frozen/data", "--remote", &place, "--stdout"],
    );
    assert!(
        restored.status.success(),
        "{}",
        String::from_utf8_lossy(&restored.stderr)
    );
    let expected = fs::read_to_string(archive.join("stream.b3")).unwrap();
    assert_eq!(
        blake3::hash(&restored.stdout).to_hex().as_str(),
        expected.trim()
    );
    let verified = zb(&sim, KEY, &["verify-checksums", "--remote", &place]);
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
    let loud = zb(&sim, KEY, &["-vv", "verify-checksums", "--remote", &place]);
    let words = String::from_utf8_lossy(&loud.stderr);
    assert!(
        loud.status.success() && words.lines().count() > 10,
        "{words}"
    );
    assert!(
        !words.contains(KEY) && !words.contains("_secret") && !words.contains(PASSPHRASE),
        "a secret in {words}"
    );
    let refused = zb(
        &sim,
        "K005-wrong-and-secret",
        &["verify-checksums", "--remote", &place],
    );
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(
        words.contains("does not accept this application key") && !words.contains("K005"),
        "{words}"
    );
}
