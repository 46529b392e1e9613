//! rclone over a folder and over the simulator of B2: the contract, and the faults of a store that
//! is a program. A script in front of the real rclone acts like a broken one.

use crate::b2::assert_says;
use crate::b2_sim::{B2Sim, BUCKET, KEY, KEY_ID, SimOptions};
use crate::contract::{self, all_contract_cases, key, pattern, upload};
use crate::weed::programs::find_program;
use bytes::Bytes;
use std::any::Any;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use zfs_backup::store::{
    EvidenceTier, Limiter, ObjectStore, PutOutcome, RcloneSettings, RcloneStore, Spool,
    StoreDelete, StoreError, StoreErrorKind, StoreInfo, StoreRead, StoreWrite,
};

const PART: usize = 64 * 1024;

pub(crate) fn real_rclone() -> PathBuf {
    find_program("rclone", "ZFS_BACKUP_RCLONE")
}

/// A folder with an rclone.conf of two remotes, a folder for objects and a folder for spool files.
pub(crate) struct Host {
    pub(crate) folder: TempDir,
}

impl Host {
    pub(crate) fn new(endpoint: &str) -> Self {
        let host = Self {
            folder: TempDir::new().unwrap(),
        };
        let conf = format!(
            "[disk]\ntype = local\n\n[b2sim]\ntype = b2\naccount = {KEY_ID}\nkey = {KEY}\nendpoint = {endpoint}\n\
             chunk_size = 5Mi\nupload_cutoff = 5Mi\n"
        );
        fs::write(host.path("rclone.conf"), conf).unwrap();
        fs::set_permissions(host.path("rclone.conf"), fs::Permissions::from_mode(0o600)).unwrap();
        ["objects", "spool"]
            .iter()
            .for_each(|name| fs::create_dir(host.path(name)).unwrap());
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns settings for the folder of objects.
    fn disk(&self) -> RcloneSettings {
        RcloneSettings {
            program: real_rclone(),
            conf: self.path("rclone.conf"),
            remote: "disk".to_owned(),
            path: self.path("objects").display().to_string(),
            part_bytes: PART,
            ..RcloneSettings::default()
        }
    }

    fn b2(&self) -> RcloneSettings {
        RcloneSettings {
            remote: "b2sim".to_owned(),
            path: format!("{BUCKET}/nas/1"),
            ..self.disk()
        }
    }

    async fn open(&self, settings: RcloneSettings) -> Spool {
        let store = RcloneStore::connect(settings).await.unwrap();
        Spool::new(Arc::new(store), self.path("spool"))
    }

    /// Returns the settings with a script in place of rclone, which has the real one in `$real`.
    /// Its arguments are written to a file.
    fn with_script(&self, settings: RcloneSettings, script: &str) -> RcloneSettings {
        let (program, real) = (self.path("rclone.sh"), real_rclone());
        let text = format!(
            "#!/bin/sh\nreal='{}'\nprintf '%s\\n' \"$*\" >>'{}'\n{script}\nexec \"$real\" \"$@\"\n",
            real.display(),
            self.path("arguments").display()
        );
        // The script is renamed into place: a file that is open for writing cannot be run, and
        // other tests fork at any time.
        fs::write(self.path("rclone.new"), text).unwrap();
        fs::set_permissions(self.path("rclone.new"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(self.path("rclone.new"), &program).unwrap();
        RcloneSettings {
            program,
            ..settings
        }
    }

    fn arguments(&self) -> String {
        fs::read_to_string(self.path("arguments")).unwrap()
    }
}

type World = (Arc<dyn ObjectStore>, Box<dyn Any>);

async fn disk_world() -> World {
    let host = Host::new("http://127.0.0.1:9");
    let store = host.open(host.disk()).await;
    (Arc::new(store), Box::new(host))
}

async fn b2_world() -> World {
    let sim = B2Sim::start();
    let host = Host::new(&sim.endpoint());
    let store = host.open(host.b2()).await;
    (Arc::new(store), Box::new((host, sim)))
}

macro_rules! over_a_folder {
    ($($case:ident)*) => {
        mod over_a_folder {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let (store, _keep) = disk_world().await;
                contract::$case(&*store).await;
            })*
        }
    };
}

macro_rules! over_b2 {
    ($($case:ident)*) => {
        mod over_b2 {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let (store, _keep) = b2_world().await;
                contract::$case(&*store).await;
            })*
        }
    };
}

all_contract_cases!(over_a_folder);
all_contract_cases!(over_b2);

fn sha1_of(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

async fn refused(settings: RcloneSettings) -> StoreError {
    RcloneStore::connect(settings)
        .await
        .err()
        .expect("it should be refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_the_hash_that_the_remote_has() {
    let sim = B2Sim::start_with(SimOptions {
        part_bytes_min: 5_000_000,
        ..SimOptions::default()
    });
    let host = Host::new(&sim.endpoint());
    for settings in [host.disk(), host.b2()] {
        let store = host
            .open(RcloneSettings {
                part_bytes: 3 << 20,
                ..settings
            })
            .await;
        for len in [0, 1000, 12_000_000] {
            let (name, bytes) = (key(&format!("tank/@a/n{len}")), pattern(len, 1));
            let evidence = upload(&store, &name, &bytes).await.unwrap();
            assert_eq!(
                (evidence.tier, evidence.bytes),
                (EvidenceTier::Sha1, len as u64)
            );
            assert_eq!(
                evidence.checksum,
                Some(sha1_of(&bytes)),
                "{len} bytes in {}",
                store.url()
            );
            assert_eq!(store.head(&name).await.unwrap().as_ref(), Some(&evidence));
            assert!(
                store
                    .get(&name, Some(0..len as u64), u64::MAX)
                    .await
                    .unwrap()
                    == bytes
            );
        }
        let known = store.evidence_under("tank/@").await.unwrap().unwrap();
        assert_eq!(known.len(), 3);
        assert_eq!(
            known["tank/@a/n1000"].checksum,
            Some(sha1_of(&pattern(1000, 1)))
        );
    }
    assert!(
        sim.versions()
            .iter()
            .all(|(name, ..)| name.starts_with("nas/1/tank/@a/")),
        "{:?}",
        sim.versions()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_rclone_objects_are_listed_with_evidence_without_single_calls() {
    let sim = B2Sim::start_with(SimOptions {
        page_max: 100,
        ..SimOptions::default()
    });
    let names: Vec<String> = (0..1010).map(|n| format!("tank/@a/{n:08}")).collect();
    names
        .iter()
        .for_each(|name| sim.plant(&format!("nas/1/{name}"), b"x"));
    let host = Host::new(&sim.endpoint());
    let store = host.open(host.b2()).await;
    let listed: Vec<String> = store
        .list("tank/@")
        .await
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .collect();
    assert_eq!(listed, names);
    sim.forget_requests();
    let known = store.evidence_under("tank/@a/").await.unwrap().unwrap();
    assert!(
        known.into_keys().eq(names),
        "other names than in the listing"
    );
    assert_eq!(
        sim.requests("b2_get_file_info"),
        0,
        "no object is asked for by itself: {:?}",
        sim.tally()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rclone_path_is_an_error_and_never_created() {
    let sim = B2Sim::start();
    let host = Host::new(&sim.endpoint());
    let gone = host.path("not-mounted").display().to_string();
    let error = refused(RcloneSettings {
        path: gone,
        ..host.disk()
    })
    .await;
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert_says(
        &error,
        &[
            "access rclone:disk:",
            "not-mounted",
            "directory not found",
            "rclone mkdir",
        ],
    );
    let error = refused(RcloneSettings {
        path: "nobucket/x".to_owned(),
        ..host.b2()
    })
    .await;
    assert_says(&error, &["rclone:b2sim:nobucket/x", "rclone mkdir"]);
    assert_eq!(error.kind, StoreErrorKind::NotFound);

    let store = host.open(host.disk()).await;
    let name = key("tank/@a/x");
    store.put_new(&name, pattern(10, 1)).await.unwrap();
    fs::rename(host.path("objects"), host.path("aside")).unwrap();
    let (bytes, absent) = (pattern(10, 1), key("tank/@a/absent"));
    for error in [
        store.list("tank/@").await.unwrap_err(),
        store.list("").await.unwrap_err(),
        store.evidence_under("tank/@").await.unwrap_err(),
        store.unfinished("tank/").await.unwrap_err(),
        store.head(&name).await.unwrap_err(),
        store.get(&name, None, 10).await.unwrap_err(),
        store.get(&name, Some(0..5), 10).await.unwrap_err(),
        store.put_new(&absent, bytes.clone()).await.unwrap_err(),
        upload(&store, &absent, &bytes).await.unwrap_err(),
        store.delete(&name).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::Unavailable);
        assert_says(&error, &["directory not found", "mounting its file system"]);
    }
    assert!(!host.path("objects").exists(), "nothing was made there");
    fs::rename(host.path("aside"), host.path("objects")).unwrap();
    assert_eq!(store.list("").await.unwrap().len(), 1);
    assert_eq!(
        store.list("none/@").await.unwrap(),
        [],
        "a folder that is not there is empty"
    );
    assert_eq!(
        store.list("tank/@a/x/").await.unwrap(),
        [],
        "a file is no folder"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_rclone_settings_are_refused_at_connect() {
    let host = Host::new("http://127.0.0.1:9");
    let old = "[ \"$1\" = version ] && { echo 'rclone v1.60.1-DEV'; exit 0; }";
    let error = refused(host.with_script(host.disk(), old)).await;
    assert_eq!(error.kind, StoreErrorKind::Unsupported);
    assert_says(
        &error,
        &[
            "rclone v1.60.1-DEV",
            "1.75.2 or later",
            "cut short",
            "hint: install a newer rclone",
        ],
    );
    let error = refused(RcloneSettings {
        program: "/no/such/rclone".into(),
        ..host.disk()
    })
    .await;
    assert_says(&error, &["no program \"/no/such/rclone\""]);
    let error = refused(RcloneSettings {
        remote: "gdrive".to_owned(),
        ..host.disk()
    })
    .await;
    assert_says(
        &error,
        &["didn't find section in config file", "listremotes"],
    );
    let error = refused(RcloneSettings {
        args: vec!["--include=x".to_owned()],
        ..host.disk()
    })
    .await;
    assert_says(&error, &["--include could hide objects"]);
    let error = refused(RcloneSettings {
        args: vec!["--no-such-flag".to_owned()],
        ..host.disk()
    })
    .await;
    assert_says(&error, &["unknown flag"]);
    assert_eq!(error.kind, StoreErrorKind::Invalid);
}

/// Broken versions of `copyto`: the script, the kind of the resulting error, and words of its text.
const BROKEN_COPIES: [(&str, StoreErrorKind, &str); 6] = [
    (
        "exit 0",
        StoreErrorKind::Corrupt,
        "but the store has nothing; rclone reported success",
    ),
    (
        "head -c 700 /proc/self/fd/0 >\"$target\"; exit 0",
        StoreErrorKind::Corrupt,
        "the store has 700 bytes",
    ),
    (
        "head -c 1000 /dev/zero >\"$target\"; exit 0",
        StoreErrorKind::Corrupt,
        "the store has 1000 bytes with hash",
    ),
    (
        "kill -9 $$",
        StoreErrorKind::Unavailable,
        "rclone died of signal: 9",
    ),
    (
        "head -c 700 /proc/self/fd/0 >\"$target\"; kill -9 $$",
        StoreErrorKind::Corrupt,
        "rclone died of signal: 9",
    ),
    (
        "echo '{\"level\":\"error\",\"msg\":\"no space left on device\"}' >&2; exit 1",
        StoreErrorKind::Full,
        "no space left on device",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn rclone_success_without_a_stored_object_is_an_error() {
    for (script, kind, words) in BROKEN_COPIES {
        let host = Host::new("http://127.0.0.1:9");
        let target =
            "for last; do :; done; target=${last#disk:}; mkdir -p \"$(dirname \"$target\")\"";
        let script = format!("[ \"$1\" = copyto ] && {{ {target}; {script}; }}");
        let store = host.open(host.with_script(host.disk(), &script)).await;
        let (name, bytes) = (key("tank/@a/x"), pattern(1000, 1));
        for error in [
            upload(&store, &name, &bytes).await.unwrap_err(),
            store
                .put_new(&key("tank/@a/y"), bytes.clone())
                .await
                .unwrap_err(),
        ] {
            assert_eq!(error.kind, kind, "{script}");
            assert_says(&error, &[words]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn object_stored_by_a_failed_rclone_counts_as_put() {
    let host = Host::new("http://127.0.0.1:9");
    let script = "[ \"$1\" = copyto ] && { \"$real\" \"$@\"; exit 1; }";
    let store = host.open(host.with_script(host.disk(), script)).await;
    let bytes = pattern(1000, 1);
    upload(&store, &key("tank/@a/x"), &bytes).await.unwrap();
    assert_eq!(
        store
            .put_new(&key("tank/@a/y"), bytes.clone())
            .await
            .unwrap()
            .0,
        PutOutcome::Created
    );
    assert_eq!(
        store.put_new(&key("tank/@a/y"), bytes).await.unwrap().0,
        PutOutcome::Identical
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn object_put_concurrently_by_another_writer_is_not_replaced() {
    let host = Host::new("http://127.0.0.1:9");
    let target = "for last; do :; done; target=${last#disk:}; mkdir -p \"$(dirname \"$target\")\"";
    let script = format!("[ \"$1\" = copyto ] && {{ {target}; printf other >\"$target\"; }}");
    let store = host.open(host.with_script(host.disk(), &script)).await;
    let name = key("tank/@a/x");
    for error in [
        upload(&store, &name, &pattern(5, 1)).await.unwrap_err(),
        store
            .put_new(&key("tank/@a/y"), pattern(5, 1))
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::AlreadyExists, "{error:?}");
    }
    assert_eq!(
        store
            .put_new(&key("tank/@a/z"), Bytes::from_static(b"other"))
            .await
            .unwrap()
            .0,
        PutOutcome::Identical
    );
    assert_eq!(store.get(&name, None, 10).await.unwrap().as_ref(), b"other");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_rclone_output_is_an_error() {
    for (script, words) in [
        (
            "[ \"$1 $2\" = 'lsjson -R' ] && { \"$real\" \"$@\" | head -c 60; exit 0; }",
            "cannot be read",
        ),
        (
            "[ \"$1 $2\" = 'lsjson -R' ] && { \"$real\" \"$@\"; exit 5; }",
            "ended with status 5",
        ),
        ("[ \"$1 $2\" = 'lsjson -R' ] && exit 3", ""),
        (
            "[ \"$1\" = cat ] && { \"$real\" \"$@\" | head -c 100; exit 0; }",
            "1000 bytes were requested, 100 received",
        ),
        (
            "[ \"$1\" = cat ] && { \"$real\" \"$@\"; echo more; exit 0; }",
            "printed more than was asked",
        ),
        (
            "[ \"$1\" = cat ] && { \"$real\" \"$@\"; exit 1; }",
            "ended with status 1",
        ),
        (
            "[ \"$1 $2\" = 'lsjson --stat' ] && { kill -9 $$; }",
            "died of signal: 9",
        ),
        (
            "[ \"$1\" = deletefile ] && { exit 0; }",
            "there again after each deletion",
        ),
    ] {
        let host = Host::new("http://127.0.0.1:9");
        let (name, bytes) = (key("tank/@a/x"), pattern(1000, 1));
        host.open(host.disk())
            .await
            .put_new(&name, bytes.clone())
            .await
            .unwrap();
        let store = host.open(host.with_script(host.disk(), script)).await;
        let listed = store.list("tank/@").await;
        let got = store.get(&name, Some(0..1000), 1000).await;
        let error = match script {
            // A folder counts as missing only if rclone itself reports it, and that report is
            // trusted.
            _ if words.is_empty() => {
                assert_eq!(listed.unwrap(), [], "{script}");
                assert_eq!(
                    store.list("").await.unwrap_err().kind,
                    StoreErrorKind::Unavailable,
                    "but the place is there"
                );
                continue;
            }
            _ if script.contains("'lsjson -R'") => listed.unwrap_err(),
            _ if script.contains("= cat") => got.unwrap_err(),
            _ if script.contains("--stat") => store.head(&name).await.unwrap_err(),
            _ => store.delete(&name).await.unwrap_err(),
        };
        assert_says(&error, &[words]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_a_killed_rclone_left_are_unfinished_uploads() {
    let host = Host::new("http://127.0.0.1:9");
    let store = host.open(host.disk()).await;
    store
        .put_new(&key("tank/@a/x"), pattern(10, 1))
        .await
        .unwrap();
    let left = host.path("objects/tank/@a/y.zfs.age.0a1b2c3d.zb-partial");
    fs::write(&left, b"half").unwrap();
    assert_eq!(store.list("").await.unwrap().len(), 1);
    assert_eq!(store.evidence_under("").await.unwrap().unwrap().len(), 1);
    let unfinished = store.unfinished("tank/@").await.unwrap();
    assert_eq!(
        (unfinished.len(), unfinished[0].key.as_str()),
        (1, "tank/@a/y.zfs.age")
    );
    assert!(unfinished[0].started_at.is_some());
    let mut wrong = unfinished[0].clone();
    wrong.upload_id = "tank/@a/x".to_owned();
    assert_eq!(
        store.abort_unfinished(&wrong).await.unwrap_err().kind,
        StoreErrorKind::Invalid
    );
    for _ in 0..2 {
        store.abort_unfinished(&unfinished[0]).await.unwrap();
    }
    assert!(!left.exists() && store.list("").await.unwrap().len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_put_stops_its_rclone_process() {
    let host = Host::new("http://127.0.0.1:9");
    let (pid, go, ended) = (host.path("pid"), host.path("go"), host.path("ended"));
    let script = format!(
        "[ \"$1\" = copyto ] && {{ echo $$ > '{}'; until [ -e '{}' ]; do sleep 0.1; done; touch '{}'; }}",
        pid.display(),
        go.display(),
        ended.display()
    );
    let store = host.open(host.with_script(host.disk(), &script)).await;
    let put = tokio::spawn(async move { store.put_new(&key("tank/@a/x"), pattern(10, 1)).await });
    let read_pid = || std::fs::read_to_string(&pid).unwrap_or_default();
    wait_until("rclone begins", || read_pid().ends_with('\n')).await;
    put.abort();
    let stat = format!("/proc/{}/stat", read_pid().trim());
    wait_until("rclone has ended", || {
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_none_or(|(_, state)| state.starts_with('Z'))
    })
    .await;
    std::fs::write(&go, "").unwrap();
    assert!(!ended.exists(), "rclone went on");
}

/// Waits until something holds.
async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(300),
            "waited in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_downloads_share_the_rate_limit() {
    let host = Host::new("http://127.0.0.1:9");
    let limiter_down = Some(Arc::new(Limiter::new(1_000_000, || Some(1_000_000))));
    let settings = RcloneSettings {
        limiter_down,
        ..host.disk()
    };
    let store = host.open(settings).await;
    let (name, bytes) = (key("tank/@a/x"), pattern(500_000, 1));
    store.put_new(&name, bytes.clone()).await.unwrap();
    let begun = Instant::now();
    let reads = [0..500_000, 0..400_000, 0..1].map(|range| store.get(&name, Some(range), 1 << 30));
    for read in futures_util::future::join_all(reads).await {
        read.unwrap();
    }
    // The last read begins when 900 kB have been sent at 1 MB/s, minus the last piece of 20 ms.
    let took = begun.elapsed();
    assert!(
        (Duration::from_millis(800)..Duration::from_secs(300)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_arguments_contain_the_settings_and_no_secret() {
    let sim = B2Sim::start();
    let host = Host::new(&sim.endpoint());
    let args = vec!["--fast-list".to_owned()];
    let settings = RcloneSettings {
        bwlimit: Some("8M".to_owned()),
        args,
        ..host.b2()
    };
    let store = host.open(host.with_script(settings, "")).await;
    let (name, bytes) = (key("tank/my data/@a b/x"), pattern(1000, 1));
    upload(&store, &name, &bytes).await.unwrap();
    store.get(&name, Some(5..10), 10).await.unwrap();
    store.list("").await.unwrap();
    store.delete(&name).await.unwrap();
    let arguments = host.arguments();
    println!("{arguments}");
    let conf = format!("--config={}", host.path("rclone.conf").display());
    for line in arguments.lines() {
        for part in [
            conf.as_str(),
            "--use-json-log",
            "--ask-password=false",
            "--bwlimit=8M",
            "--fast-list",
        ] {
            assert!(line.contains(part), "{part:?} is missing in: {line}");
        }
        assert!(
            !line.contains(KEY) && !line.contains(KEY_ID),
            "a secret: {line}"
        );
    }
    assert!(arguments.contains("copyto --copy-links --ignore-existing --error-on-no-transfer"));
    assert!(arguments.contains("b2sim:contract/nas/1/tank/my data/@a b/x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_b2_key_is_reported_without_its_secret() {
    let sim = B2Sim::start();
    let host = Host::new(&sim.endpoint());
    let conf = fs::read_to_string(host.path("rclone.conf"))
        .unwrap()
        .replace(KEY, "K005-wrong-and-secret");
    fs::write(host.path("rclone.conf"), conf).unwrap();
    let error = refused(host.b2()).await;
    assert_eq!(error.kind, StoreErrorKind::Denied, "{error:?}");
    assert_says(&error, &["check the keys of [b2sim]"]);
    assert!(!format!("{error:?}").contains("K005"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_delete_removes_every_older_version() {
    let sim = B2Sim::start();
    (0..3).for_each(|_| sim.plant("nas/1/tank/@a/x", b"x"));
    let host = Host::new(&sim.endpoint());
    let store = host.open(host.b2()).await;
    store.delete(&key("tank/@a/x")).await.unwrap();
    assert_eq!(store.head(&key("tank/@a/x")).await.unwrap(), None);
    assert!(
        !sim.versions()
            .iter()
            .any(|(_, action, _)| action == "upload"),
        "{:?}",
        sim.versions()
    );
}

/// Returns the folder of the real rclone, for the test of the program.
pub(crate) fn folder_of_rclone() -> PathBuf {
    real_rclone().parent().unwrap_or(Path::new("/")).to_owned()
}
