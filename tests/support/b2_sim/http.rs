//! As much of HTTP/1.1 as B2's clients need.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

/// The longest head of a request.
const HEAD_MAX: usize = 64 * 1024;
const PIECE: usize = 16 * 1024;

/// The first line and the headers of a request.
pub(super) struct Head {
    pub(super) method: String,
    /// The path as sent: still percent-encoded.
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    /// The headers by their names in lower case.
    pub(super) headers: BTreeMap<String, String>,
}

impl Head {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(super) fn body_bytes(&self) -> usize {
        self.header("content-length")
            .and_then(|len| len.parse().ok())
            .unwrap_or(0)
    }

    /// Returns the name of the call: that of the API, or a substitute.
    pub(super) fn call(&self) -> String {
        let mut parts = self.path.trim_start_matches('/').split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("file"), ..) => "b2_download_file_by_name".to_owned(),
            (Some("b2api"), _, Some(call)) => call.to_owned(),
            _ => "unknown".to_owned(),
        }
    }

    /// Returns the requested version of the API.
    pub(super) fn version(&self) -> Option<u32> {
        self.path
            .trim_start_matches('/')
            .split('/')
            .nth(1)?
            .strip_prefix('v')?
            .parse()
            .ok()
    }
}

pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    pub(super) fn json(value: &Value) -> Self {
        let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        Self {
            status: 200,
            headers,
            body: value.to_string().into_bytes(),
        }
    }

    pub(super) fn bytes(status: u16, body: Vec<u8>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body,
        }
    }

    pub(super) fn refused(status: u16, code: &str, message: &str) -> Self {
        Self {
            status,
            ..Self::json(&json!({"status": status, "code": code, "message": message}))
        }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes the response, or only `cut` bytes of its body. Returns whether the connection stays
    /// open.
    pub(super) fn write(
        &self,
        stream: &mut TcpStream,
        head: &Head,
        cut: Option<usize>,
    ) -> io::Result<bool> {
        // b2sdk compares the clocks.
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        let len = self.body.len();
        let mut text = format!(
            "HTTP/1.1 {} X\r\nDate: {date}\r\nContent-Length: {len}\r\n",
            self.status
        );
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        stream.write_all(text.as_bytes())?;
        if head.method != "HEAD" {
            stream.write_all(&self.body[..cut.unwrap_or(self.body.len()).min(self.body.len())])?;
        }
        stream.flush()?;
        Ok(cut.is_none() && head.header("connection") != Some("close"))
    }
}

/// Reads the next head, or `None` when the client has closed. `rest` gets the bytes read after the
/// head.
pub(super) fn read_head(stream: &mut TcpStream, rest: &mut Vec<u8>) -> io::Result<Option<Head>> {
    let end = loop {
        if let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        let mut buffer = vec![0; PIECE];
        let read = stream.read(&mut buffer)?;
        if read == 0 || rest.len() > HEAD_MAX {
            return Ok(None);
        }
        rest.extend_from_slice(&buffer[..read]);
    };
    let text = String::from_utf8_lossy(&rest[..end]).into_owned();
    rest.drain(..end + 4);
    let mut lines = text.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let target = first.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = query
        .filter_map(|(name, value)| Some((name.to_owned(), decode(value)?)))
        .collect();
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let head = Head {
        method,
        path: path.to_owned(),
        query,
        headers,
    };
    if head
        .header("expect")
        .is_some_and(|expected| expected.eq_ignore_ascii_case("100-continue"))
    {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    Ok(Some(head))
}

/// Reads the body, with an optional pause before it and after every piece.
pub(super) fn read_body(
    stream: &mut TcpStream,
    rest: &mut Vec<u8>,
    head: &Head,
    pause: Option<Duration>,
) -> io::Result<Vec<u8>> {
    read_up_to(stream, rest, head.body_bytes(), pause)
}

/// Reads half of the body.
pub(super) fn read_half(stream: &mut TcpStream, rest: &mut Vec<u8>, head: &Head) -> io::Result<()> {
    read_up_to(stream, rest, head.body_bytes() / 2, None).map(|_| ())
}

fn read_up_to(
    stream: &mut TcpStream,
    rest: &mut Vec<u8>,
    len: usize,
    pause: Option<Duration>,
) -> io::Result<Vec<u8>> {
    thread::sleep(pause.unwrap_or_default());
    let mut body: Vec<u8> = rest.drain(..len.min(rest.len())).collect();
    while body.len() < len {
        let from = body.len();
        body.resize(len.min(from + PIECE), 0);
        stream.read_exact(&mut body[from..])?;
        if let Some(pause) = pause {
            thread::sleep(pause);
        }
    }
    Ok(body)
}

/// Decodes percent-encoding as B2 does: a plus is a space.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.bytes();
    while let Some(byte) = left.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [left.next()?, left.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Percent-encoding for headers.
pub(super) fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}
