//! `doctor` as people run it: against a real S3 server and against our B2 simulator, on a host that
//! may have no ZFS.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[allow(
    dead_code,
    reason = "shared with the contract suite, which uses all of it"
)]
#[path = "support/b2_sim.rs"]
mod b2_sim;
#[allow(
    dead_code,
    reason = "shared with the contract suite, which uses all of it"
)]
#[path = "support/weed.rs"]
mod weed;

use b2_sim::B2Sim;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use weed::Weed;

/// A host with a configuration and credentials in files.
struct Host {
    folder: TempDir,
    endpoint: String,
}

impl Host {
    fn new(remote: &str, section: &str, id: &str, key: &str, endpoint: &str) -> Self {
        let host = Self {
            folder: TempDir::new().unwrap(),
            endpoint: endpoint.to_owned(),
        };
        for (name, text) in [("id", id), ("key", key)] {
            host.write(name, text);
        }
        host.configure(remote, section);
        host
    }

    fn configure(&self, remote: &str, section: &str) {
        let section = section
            .replace("ID", &self.path("id").display().to_string())
            .replace("KEY", &self.path("key").display().to_string());
        let text = format!(
            "[main]\nzfs_fs = \"tank/photos\"\nencryption_passphrase = \"correct horse battery staple\"\n\
             remote = \"{remote}\"\nstate_dir = \"{}\"\n{section}",
            self.path("state").display()
        );
        self.write("zb.toml", &text);
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
        command.arg("-c").arg(self.path("zb.toml")).args(arguments);
        command
            .env("B2_ENVIRONMENT", &self.endpoint)
            .env("LC_ALL", "C.UTF-8");
        command
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        command
    }

    /// The checks of the store, by subject: state and text. Those of the host depend on the host.
    fn checks(&self) -> (Vec<(String, String, String)>, Value) {
        let output = self.run(&["--json", "doctor"]);
        let json: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(json["format"], 1);
        let all = json["checks"].as_array().unwrap();
        let any_bad = all.iter().any(|check| check["state"] == "bad");
        assert_eq!(output.status.code(), Some(i32::from(any_bad)), "{json:#}");
        assert_eq!(json["can_back_up"], !any_bad);
        let text = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
        let of_host = ["zfs", "permissions", "datasets", "zfs key"];
        let rest = all
            .iter()
            .filter(|check| !of_host.contains(&check["subject"].as_str().unwrap()));
        let checks = rest
            .map(|check| {
                (
                    text(check, "subject"),
                    text(check, "state"),
                    text(check, "text"),
                )
            })
            .collect();
        (checks, json)
    }

    /// The screen without the lines of the host, under names that do not change.
    fn screen(&self) -> String {
        let output = self.run(&["doctor"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= 80 || line.contains('/')),
            "{text}"
        );
        let folder = self.folder.path().display().to_string();
        let text = text
            .replace(&folder, "DIR")
            .replace(&self.endpoint, "ENDPOINT");
        let mut kept = String::new();
        let mut of_host = false;
        for line in text.lines() {
            let begins = !line.starts_with(' ');
            of_host = if begins {
                ["zfs", "permissions", "datasets"].iter().any(|name| {
                    line[line.chars().next().map_or(0, char::len_utf8)..]
                        .starts_with(&format!(" {name}"))
                })
            } else {
                of_host
            };
            if !of_host && !line.starts_with("a backup c") {
                kept += &format!("{line}\n");
            }
        }
        kept
    }

    fn probes(&self) -> Vec<String> {
        let Ok(files) = fs::read_dir(self.path("state/probes")) else {
            return Vec::new();
        };
        files
            .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
            .collect()
    }
}

fn states<'c>(checks: &'c [(String, String, String)], subject: &str) -> Vec<&'c str> {
    checks
        .iter()
        .filter(|(of, ..)| of == subject)
        .map(|(_, state, _)| state.as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_checks_an_s3_store_and_leaves_no_object() {
    let weed = Weed::start("bucket").await;
    let section = format!(
        "[s3]\nendpoint = \"{}\"\nregion = \"us-east-1\"\naccess_key_id_file = \"ID\"\nsecret_access_key_file = \"KEY\"\n",
        weed.endpoint()
    );
    let host = Host::new(
        "s3:bucket/nas",
        &section,
        weed::ACCESS_KEY,
        weed::SECRET_KEY,
        &weed.endpoint(),
    );
    let objects = async || {
        let listed = weed
            .client()
            .list_objects_v2()
            .bucket("bucket")
            .send()
            .await
            .unwrap();
        let uploads = weed
            .client()
            .list_multipart_uploads()
            .bucket("bucket")
            .send()
            .await
            .unwrap();
        listed.contents().len() + uploads.uploads().len()
    };
    let (checks, json) = host.checks();
    assert!(
        checks
            .iter()
            .all(|(_, state, text)| state == "good" || state == "note" || panic!("{text}"))
    );
    assert_eq!(json["probe"]["probe"]["checksum"], "crc64nvme");
    assert_eq!(states(&checks, "keyring"), ["note"], "none yet");
    assert_eq!((host.probes().len(), objects().await), (1, 0));
    insta::assert_snapshot!(host.screen());
    let checked = String::from_utf8(host.run(&["config", "check"]).stdout).unwrap();
    assert!(
        checked.contains("probe: ") && checked.contains("it keeps crc64nvme"),
        "{checked}"
    );

    fs::remove_dir_all(host.path("state")).unwrap();
    assert!(host.run(&["--dry-run", "doctor"]).status.code().is_some());
    assert_eq!(host.probes().len(), 0, "a dry run tries nothing");
    // The first command that writes tries the store; the next one does not.
    let made = host.run(&["key", "generate"]);
    assert_eq!(
        made.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let first = host.probes();
    // The keyring, and the store's identity.
    assert_eq!((first.len(), objects().await), (1, 2));
    host.run(&["key", "generate"]);
    assert_eq!(host.probes(), first);
    assert_eq!(states(&host.checks().0, "keyring"), ["good"]);

    for (name, wrong, part) in [
        ("key", "wrong", "SignatureDoesNotMatch"),
        ("id", "nobody", "InvalidAccessKeyId"),
    ] {
        let right = fs::read_to_string(host.path(name)).unwrap();
        host.write(name, wrong);
        let (checks, _) = host.checks();
        assert!(
            checks.iter().any(|(of, state, text)| of == "credentials"
                && state == "bad"
                && text.contains(part))
        );
        host.write(name, &right);
    }
    host.configure(
        "s3:bucket/nas",
        &format!("{section}object_lock_days = 30\nchecksum = \"sha256\"\n"),
    );
    let (checks, _) = host.checks();
    assert_eq!(states(&checks, "object lock"), ["bad"], "{checks:?}");
    assert_eq!(
        states(&checks, "checksum"),
        ["note"],
        "it stays, and is weaker than could be: {checks:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_checks_b2_its_key_and_its_bucket() {
    let sim = B2Sim::start();
    let few = sim.add_key(
        "few",
        "listBuckets listFiles readFiles writeFiles",
        &[b2_sim::BUCKET],
        Some("nas/"),
    );
    let section = "[b2]\napplication_key_id_file = \"ID\"\napplication_key_file = \"KEY\"\n";
    let remote = format!("b2:{}/nas", b2_sim::BUCKET);
    let host = Host::new(
        &remote,
        section,
        b2_sim::KEY_ID,
        b2_sim::KEY,
        &sim.endpoint(),
    );
    let (checks, json) = host.checks();
    assert_eq!(sim.versions(), [], "nothing stays");
    assert_eq!(json["probe"]["probe"]["deleting"], "removes-versions");
    for (subject, state) in [
        ("credentials", "good"),
        ("clock", "good"),
        ("uploads", "good"),
        ("deleting", "note"),
        ("bucket", "good"),
        ("key", "warning"),
    ] {
        assert_eq!(states(&checks, subject), [state], "{subject}: {checks:?}");
    }
    insta::assert_snapshot!(host.screen());

    sim.describe_bucket(
        serde_json::json!([{"fileNamePrefix": "nas/", "daysFromUploadingToHiding": 30, "daysFromHidingToDeleting": 1}]),
        true,
    );
    let (checks, _) = host.checks();
    assert_eq!(
        (states(&checks, "bucket"), states(&checks, "lifecycle")),
        (vec!["warning"], vec!["bad", "note", "good"])
    );
    sim.describe_bucket(serde_json::json!([]), false);

    host.write("id", &few.application_key_id);
    host.write("key", &few.application_key);
    let (checks, json) = host.checks();
    assert_eq!(
        (states(&checks, "key"), states(&checks, "deleting")),
        (vec!["good"], vec!["good"]),
        "{checks:?}"
    );
    assert_eq!(
        json["probe"]["probe"]["left_behind"]
            .as_array()
            .unwrap()
            .len(),
        1,
        "it may not delete"
    );
    host.configure(&remote, &format!("{section}object_lock_days = 7\n"));
    assert_eq!(states(&host.checks().0, "key"), ["bad"], "it may not lock");
    host.write("id", b2_sim::KEY_ID);
    host.write("key", b2_sim::KEY);
    assert_eq!(
        states(&host.checks().0, "object lock"),
        ["bad"],
        "the bucket cannot"
    );
    sim.allow_locks();
    assert_eq!(states(&host.checks().0, "object lock"), ["good"]);
    host.write("key", "wrong");
    assert_eq!(states(&host.checks().0, "credentials"), ["bad"]);
}

/// A server that refuses every request, and what it was asked: the head of each request. It ends
/// with the process.
fn refusing_server() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&heads);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            seen.lock()
                .unwrap()
                .push(String::from_utf8_lossy(&head).into_owned());
            let refusal =
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            // The client may have closed the connection already.
            let _ = client.write_all(refusal);
        }
    });
    (address, heads)
}

/// S3 and B2 alike: the names of the stores are known to the proxy only.
#[test]
fn store_is_reached_through_the_proxy_of_the_environment() {
    let (proxy, at_proxy) = refusing_server();
    let (direct, at_store) = refusing_server();
    let s3 = |endpoint: &str| {
        format!(
            "[s3]\nendpoint = \"{endpoint}\"\naccess_key_id_file = \"ID\"\nsecret_access_key_file = \"KEY\"\n"
        )
    };
    let b2 = "[b2]\napplication_key_id_file = \"ID\"\napplication_key_file = \"KEY\"\n".to_owned();
    let proxied = |host: &Host, no_proxy: &str| {
        let output = host
            .command(&["doctor"])
            .env("HTTP_PROXY", format!("http://user:secret@{proxy}"))
            .env("http_proxy", format!("http://user:secret@{proxy}"))
            .env("NO_PROXY", no_proxy)
            .env("no_proxy", no_proxy)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        // A client of another test may still try this port. No proxy is asked without a scheme.
        let mut heads = std::mem::take(&mut *at_proxy.lock().unwrap());
        heads.retain(|head| head.lines().next().is_some_and(|line| line.contains("://")));
        heads
    };
    for (remote, section, endpoint) in [
        (
            "s3:bucket/nas",
            s3("http://s3.invalid"),
            "http://s3.invalid",
        ),
        ("b2:bucket/nas", b2, "http://b2.invalid"),
    ] {
        let host = Host::new(remote, &section, "id", "key", endpoint);
        let heads = proxied(&host, "other.invalid");
        assert!(!heads.is_empty(), "{remote}: the proxy was not used");
        for head in heads {
            let line = head.lines().next().unwrap();
            assert!(line.contains(&format!(" {endpoint}/")), "{line}");
            assert!(
                head.to_lowercase()
                    .contains("proxy-authorization: basic dxnlcjpzzwnyzxq="),
                "{remote}: {line}"
            );
        }
    }
    let endpoint = format!("http://{direct}");
    let host = Host::new("s3:bucket/nas", &s3(&endpoint), "id", "key", &endpoint);
    assert_eq!(proxied(&host, "127.0.0.1"), [""; 0]);
    assert!(!at_store.lock().unwrap().is_empty());
}
