//! Responses of a server that is not B2, or not B2 any more: longer than any of B2's.

use crate::b2::{assert_says, connect};
use crate::b2_sim::credentials;
use crate::contract::key;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use zfs_backup::store::{B2Settings, StoreErrorKind, StoreRead};

/// A length above the limit for any response of B2.
const LONG_BYTES: usize = 80 << 20;

/// Starts a server that answers every request with this status and [`LONG_BYTES`], until the client
/// closes the connection.
fn serve(status: &'static str) -> B2Settings {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // The client closes the connection when it has read enough.
            let _ = answer(stream, status);
        }
    });
    let credentials = Some(credentials("id", "key"));
    B2Settings {
        bucket: "bucket".into(),
        endpoint,
        credentials,
        ..B2Settings::default()
    }
}

fn answer(mut stream: TcpStream, status: &str) -> std::io::Result<()> {
    let mut request = [0; 16 * 1024];
    let _ = stream.read(&mut request)?;
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n\r\n")?;
    let piece = vec![b' '; 1 << 20];
    (0..LONG_BYTES / piece.len()).try_for_each(|_| stream.write_all(&piece))
}

#[tokio::test]
async fn oversized_b2_response_is_an_error_and_not_read_into_memory() {
    let store = connect(serve("200 OK"));
    let error = store.head(&key("x")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
    assert_says(&error, &["the answer has more than the 67108864 bytes"]);
}

#[tokio::test]
async fn endless_b2_error_response_is_judged_by_its_status() {
    let store = connect(serve("403 Forbidden"));
    let error = store.head(&key("x")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied);
    assert_says(&error, &["403"]);
}
