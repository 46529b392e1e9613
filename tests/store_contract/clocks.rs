//! The clock of a store: stores with a clock of their own report it, all others report none.

use crate::b2::connect;
use crate::b2_sim::B2Sim;
use jiff::Timestamp;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::model::StoreId;
use zfs_backup::store::{
    DirSettings, DirStore, IdentifiedStore, MemoryStore, ObjectStore, S3Credentials, S3Settings,
    S3Store, Spool, StoreInfo,
};

const DATE: &str = "Date: Sun, 22 Nov 2026 21:26:04 GMT\r\n";

/// Starts a server that gives one response to everything. Returns its port.
fn serve(status: &'static str, lines: &'static str) -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let answer = format!(
                "HTTP/1.1 {status}\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

async fn s3(host: &str, port: u16) -> S3Store {
    let credentials = S3Credentials {
        access_key_id: "id".to_owned(),
        secret_access_key: "not-a-secret-key".to_owned(),
    };
    let settings = S3Settings {
        bucket: "bucket".to_owned(),
        endpoint: Some(format!("http://{host}:{port}")),
        region: Some("here".to_owned()),
        credentials: Some(credentials),
        ..S3Settings::default()
    };
    S3Store::connect(settings).await.unwrap()
}

#[tokio::test]
async fn s3_clock_is_read_from_any_response() {
    let expected: Timestamp = "2026-11-22T21:26:04Z".parse().unwrap();
    for (status, lines, clock) in [
        ("404 Not Found", DATE, Some(expected)),
        ("403 Forbidden", DATE, Some(expected)),
        ("404 Not Found", "", None),
        ("404 Not Found", "Date: tomorrow\r\n", None),
        ("200 OK", DATE, None),
    ] {
        // Another address of this host, which the store takes for another host.
        let store = s3("0.0.0.0", serve(status, lines)).await;
        assert_eq!(store.clock().await.unwrap(), clock, "{status} {lines}");
    }
}

#[tokio::test]
async fn a_server_on_this_host_and_a_folder_have_the_clock_of_this_host_only() {
    // The second name becomes an address of this host only through the resolver, like the name
    // of this host in the local network.
    for host in ["127.0.0.1", "127.1"] {
        let store = s3(host, serve("404 Not Found", DATE)).await;
        assert_eq!(store.clock().await.unwrap(), None, "{host}");
    }
    let folder = TempDir::new().unwrap();
    let settings = DirSettings {
        root: folder.path().to_owned(),
        part_bytes: 1 << 16,
    };
    assert_eq!(
        DirStore::open(&settings).unwrap().clock().await.unwrap(),
        None
    );
    let (memory, at) = (MemoryStore::new(), "2026-11-22T21:26:04Z".parse().unwrap());
    memory.set_clock(Some(at));
    assert_eq!(memory.clock().await.unwrap(), Some(at));
    memory.set_host_clock(at);
    assert_eq!(memory.clock().await.unwrap(), None);
}

#[tokio::test]
async fn b2_clock_is_read_also_through_spool_and_identified_store() {
    let sim = B2Sim::start();
    let (store, folder) = (connect(sim.settings()), TempDir::new().unwrap());
    let spool = Spool::new(Arc::new(store.clone()), folder.path().to_owned());
    let identified = IdentifiedStore::new(Arc::new(store.clone()), StoreId::of_url("b2:x"));
    let stores: [&dyn ObjectStore; 3] = [&store, &spool, &identified];
    for store in stores {
        let before = Timestamp::now().as_second();
        let clock = store.clock().await.unwrap().unwrap();
        let moments = before..=Timestamp::now().as_second();
        assert!(moments.contains(&clock.as_second()), "{clock}");
    }
}
