//! A real S3 server for tests: SeaweedFS on 127.0.0.1, with all its state in a scratch folder. The
//! server ends with the test. Its flags and their reasons are those of tests/vm/weed.sh.

#[path = "programs.rs"]
pub(crate) mod programs;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Builder, Credentials, Region};
use programs::find_program;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use zfs_backup::store::{S3Credentials, S3Settings};

pub(crate) const ACCESS_KEY: &str = "testkey";
pub(crate) const SECRET_KEY: &str = "testsecret0123";
/// The time limit for the start. The server is ready in about 4 s; machines that build at the same
/// time need longer.
const START_LIMIT: Duration = Duration::from_secs(600);
/// The maximum number of starts, each with other ports.
const START_TRIES_MAX: usize = 5;
/// The number of ports: S3, filer, master and volume server, each with its gRPC port.
const PORTS: usize = 8;

/// A running server. Dropping it ends it at once, also when the test panics.
pub(crate) struct Weed {
    process: Child,
    ports: Vec<u16>,
    folder: TempDir,
}

impl Weed {
    /// Starts a server with an empty bucket and returns when objects can be written.
    pub(crate) async fn start(bucket: &str) -> Self {
        let mut ended = String::new();
        for _ in 0..START_TRIES_MAX {
            match Self::try_start(bucket).await {
                Ok(weed) => return weed,
                Err(log) => ended = log,
            }
        }
        panic!("SeaweedFS ends; its log, newest first:\n{ended}");
    }

    /// Returns the end of the log if the server ended: another process may have taken a port.
    async fn try_start(bucket: &str) -> Result<Self, String> {
        let folder = TempDir::new().unwrap();
        let ports = free_ports();
        let process = spawn(
            &find_program("weed", "ZFS_BACKUP_WEED"),
            folder.path(),
            &ports,
        );
        let mut weed = Self {
            process,
            ports,
            folder,
        };
        let begun = Instant::now();
        while !weed.is_ready(bucket).await {
            if weed.process.try_wait().unwrap().is_some() {
                return Err(weed.log_end());
            }
            assert!(
                begun.elapsed() < START_LIMIT,
                "SeaweedFS does not answer; its log, newest first:\n{}",
                weed.log_end()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(weed)
    }

    /// Returns the last lines of the log, newest first.
    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("weed.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(15).collect();
        lines.join("\n")
    }

    /// Returns the URL of the server.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// Returns settings for a bucket on the server.
    pub(crate) fn settings(&self, bucket: &str) -> S3Settings {
        S3Settings {
            bucket: bucket.to_owned(),
            endpoint: Some(self.endpoint()),
            part_bytes: 5 * 1024 * 1024,
            credentials: Some(S3Credentials {
                access_key_id: ACCESS_KEY.to_owned(),
                secret_access_key: SECRET_KEY.to_owned(),
            }),
            ..S3Settings::default()
        }
    }

    /// Returns the SDK's client, for operations that the store itself never makes: buckets,
    /// versioning.
    pub(crate) fn client(&self) -> Client {
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .endpoint_url(self.endpoint())
            .force_path_style(true)
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"))
            .build();
        Client::from_conf(config)
    }

    /// Whether the server is ready. S3 answers before the disk is ready, so only a written object
    /// counts.
    async fn is_ready(&self, bucket: &str) -> bool {
        let client = self.client();
        let _ = client.create_bucket().bucket(bucket).send().await;
        let put = client.put_object().bucket(bucket).key("ready").send();
        let put = tokio::time::timeout(Duration::from_secs(30), put).await;
        matches!(put, Ok(Ok(_)))
            && client
                .delete_object()
                .bucket(bucket)
                .key("ready")
                .send()
                .await
                .is_ok()
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        // SIGKILL, because after SIGTERM the server runs for more than 15 s.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // No option moves these sockets elsewhere.
        for (name, port) in [("s3", 1), ("filer", 3), ("master", 5), ("volume", 7)] {
            let _ = fs::remove_file(format!(
                "/tmp/seaweedfs-{name}-grpc-{}.sock",
                self.ports[port]
            ));
        }
    }
}

/// Returns ports that were free a moment ago.
fn free_ports() -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..PORTS)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

fn spawn(weed: &Path, folder: &Path, ports: &[u16]) -> Child {
    let path = |name: &str| folder.join(name).display().to_string();
    fs::create_dir(folder.join("data")).unwrap();
    // Each bucket grows by one volume at a time instead of seven: each volume is a file, and their
    // number is limited.
    fs::write(
        folder.join("master.toml"),
        "[master.volume_growth]\ncopy_1 = 1\n",
    )
    .unwrap();
    let identity = format!(
        r#"{{"identities": [{{"name": "test", "credentials": [{{"accessKey": "{ACCESS_KEY}", "secretKey": "{SECRET_KEY}"}}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"]}}]}}"#
    );
    fs::write(folder.join("identities.json"), identity).unwrap();
    let log = File::create(folder.join("weed.log")).unwrap();
    let mut command = Command::new(weed);
    // In User-Mode Linux the kernel ends a process that holds more than about 256 MiB.
    command
        .envs([("GOMEMLIMIT", "96MiB"), ("GOGC", "50")])
        // Without a key of its own the server refuses to encrypt.
        .env("WEED_S3_SSE_KEK", "07".repeat(32))
        .arg("-logtostderr=true")
        .arg("server")
        .arg(format!("-dir={}", path("data")));
    command.args([
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
    ]);
    command.args([
        "-volume.max=60",
        "-filer",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]);
    command.arg("-s3.autoCreateBucket=false");
    command.arg(format!("-s3.config={}", path("identities.json")));
    command.arg(format!("-filer.localSocket={}", path("filer.sock")));
    command.arg(format!("-s3.localSocket={}", path("s3.sock")));
    for (name, port) in ["s3", "filer", "master", "volume"]
        .into_iter()
        .zip(ports.chunks(2))
    {
        command
            .arg(format!("-{name}.port={}", port[0]))
            .arg(format!("-{name}.port.grpc={}", port[1]));
    }
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stderr(log)
        .stdout(Stdio::null());
    command
        .spawn()
        .unwrap_or_else(|error| panic!("start {}: {error}", weed.display()))
}
