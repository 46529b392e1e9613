//! Stores as people have them, behind TLS: a whole backup and its way back, with a server that an
//! authority vouches for, and none with a server for which nobody does.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[expect(dead_code, reason = "others use all of it")]
#[path = "support/b2_sim.rs"]
mod b2_sim;
#[path = "support/output.rs"]
mod output;
#[path = "support/recorded.rs"]
mod recorded;
#[path = "support/tls.rs"]
mod tls;
#[expect(dead_code, reason = "others use all of it")]
#[path = "support/weed.rs"]
mod weed;

use b2_sim::{B2Sim, BUCKET, KEY, KEY_ID};
use output::check;
use recorded::writer;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;
use tls::TlsFront;
use tokio_rustls::rustls::CipherSuite;
use weed::{ACCESS_KEY, SECRET_KEY, Weed};

const BLOCK_BYTES: usize = 128 << 10;

/// A host without ZFS that trusts one authority.
struct Host {
    folder: TempDir,
    more_env: Vec<(&'static str, String)>,
}

impl Host {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            more_env: Vec::new(),
        }
    }

    fn configure(&self, remote_and_section: &str) {
        let text = format!(
            "[main]\nzfs_fs = \"tank/data\"\nuse_snapshots = \"*\"\nencryption_passphrase = \"only for this test of sixteen\"\n\
             split_size = \"12M\"\nstate_dir = \"{}\"\n{remote_and_section}",
            self.text("state")
        );
        fs::write(self.path("zb.toml"), text).unwrap();
        fs::set_permissions(self.path("zb.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
        command.arg("-c").arg(self.path("zb.toml")).args(arguments);
        command
            .env("SSL_CERT_FILE", self.path("ca.pem"))
            .env_remove("SSL_CERT_DIR");
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        command.envs(self.more_env.iter().map(|(name, value)| (name, value)));
        command.output().unwrap()
    }

    /// A backup is made, verified and restored.
    fn back_up_and_restore(&self) {
        let recorded = stream(160);
        fs::write(self.path("recorded"), &recorded).unwrap();
        check(
            &self.run(&[
                "stream-to-remote",
                "--full",
                "--stream-from",
                &self.text("recorded"),
            ]),
            0,
            &["committed"],
        );
        check(&self.run(&["verify-checksums"]), 0, &[]);
        let (back, identity) = (self.text("back"), self.text("identity"));
        check(&self.run(&["key", "export", "--output", &identity]), 0, &[]);
        check(
            &self.run(&[
                "restore",
                "tank/data",
                "--output",
                &back,
                "--identity",
                &identity,
            ]),
            0,
            &[],
        );
        assert!(
            fs::read(&back).unwrap() == recorded,
            "another stream came back"
        );
    }
}

fn stream(blocks: u64) -> Vec<u8> {
    let mut writer = writer(None);
    let mut block = vec![0; BLOCK_BYTES];
    for number in 0..blocks {
        blake3::Hasher::new()
            .update(&number.to_le_bytes())
            .finalize_xof()
            .fill(&mut block);
        writer.write(2, number * BLOCK_BYTES as u64, &block);
    }
    writer.end()
}

fn s3(endpoint: &str) -> String {
    format!(
        "remote = \"s3:tls/nas\"\n[s3]\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\npath_style = true\n\
         part_size = \"5M\"\n"
    )
}

/// Where the processor has AES, its suites cost a quarter of ChaCha20-Poly1305.
#[track_caller]
fn check_suites(front: &TlsFront) {
    use CipherSuite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
    let offered = front.offered();
    assert!(!offered.is_empty());
    for suites in offered {
        let best = suites
            .iter()
            .find(|suite| !matches!(suite, CipherSuite::Unknown(_)));
        assert!(
            matches!(
                best,
                Some(&(TLS13_AES_128_GCM_SHA256 | TLS13_AES_256_GCM_SHA384))
            ),
            "{suites:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_to_s3_and_back() {
    let (host, weed) = (Host::new(), Weed::start("tls").await);
    let front = TlsFront::start(0, &weed.endpoint(), &host.path("ca.pem"));
    host.configure(&s3(&front.endpoint()));
    host.back_up_and_restore();
    check_suites(&front);
}

#[test]
fn a_backup_goes_to_b2_and_back() {
    let (mut host, sim) = (Host::new(), B2Sim::start());
    let front = TlsFront::start(0, &sim.endpoint(), &host.path("ca.pem"));
    sim.is_reached_at(&front.endpoint());
    host.more_env = vec![
        ("B2_ENVIRONMENT", front.endpoint()),
        ("B2_APPLICATION_KEY_ID", KEY_ID.to_owned()),
        ("B2_APPLICATION_KEY", KEY.to_owned()),
    ];
    host.configure(&format!(
        "remote = \"b2:{BUCKET}/nas\"\n[b2]\npart_size = \"5M\"\n"
    ));
    host.back_up_and_restore();
    check_suites(&front);
}

#[test]
fn server_with_an_untrusted_certificate_is_refused_before_any_request() {
    let (mut host, sim) = (Host::new(), B2Sim::start());
    // Another authority than the one that is trusted.
    let front = TlsFront::start(0, &sim.endpoint(), &host.path("other.pem"));
    TlsFront::start(0, &sim.endpoint(), &host.path("ca.pem"));
    let endpoint = front.endpoint();
    host.configure(&s3(&endpoint));
    check(
        &host.run(&["key", "generate"]),
        1,
        &[&endpoint, "hint: no trusted connection", "SSL_CERT_FILE"],
    );
    host.more_env = vec![
        ("B2_ENVIRONMENT", endpoint.clone()),
        ("B2_APPLICATION_KEY_ID", KEY_ID.to_owned()),
        ("B2_APPLICATION_KEY", KEY.to_owned()),
    ];
    host.configure(&format!("remote = \"b2:{BUCKET}/nas\"\n"));
    check(
        &host.run(&["key", "generate"]),
        1,
        &[&endpoint, "hint: no trusted connection", "SSL_CERT_FILE"],
    );
    assert!(sim.tally().is_empty(), "it got a request");
}
