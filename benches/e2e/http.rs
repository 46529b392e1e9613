//! As much of HTTP/1.1 as S3 clients speak: requests with a length, kept connections, `Expect: 100-continue`, and bodies
//! in the chunks that AWS signs one by one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::TcpStream;

const HEAD_LINES_MAX: usize = 200;

/// One request, without its body.
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query, percent escapes decoded.
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    /// By name in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Bytes that follow on the connection.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Whether the body is wrapped in chunks of AWS's own.
    pub(crate) fn is_wrapped(&self) -> bool {
        self.header("content-encoding").is_some_and(|coding| coding.contains("aws-chunked"))
            || self.header("x-amz-content-sha256").is_some_and(|kind| kind.starts_with("STREAMING-"))
    }
}

/// The next request of a connection; `None` when the client has closed it.
pub(crate) fn read_request(input: &mut BufReader<TcpStream>) -> Result<Option<Request>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or("/").to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let query = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut request = Request {
        method,
        path: decode(path),
        query: query.map(|(name, value)| (decode(name), decode(value))).collect(),
        headers: BTreeMap::new(),
    };
    for _ in 0..HEAD_LINES_MAX {
        line.clear();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        request.headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
    }
    if request.header("expect").is_some() {
        input.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    Ok(Some(request))
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', "%20")).decode_utf8_lossy().into_owned()
}

/// Gives the body in pieces, unwrapped, and its length.
pub(crate) fn read_body(
    input: &mut BufReader<TcpStream>,
    request: &Request,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]),
) -> Result<u64> {
    let mut left = request.body_bytes();
    if !request.is_wrapped() {
        let bytes = left;
        copy(input, &mut left, bytes, buffer, &mut take)?;
        return Ok(bytes);
    }
    let mut unwrapped = 0;
    while left > 0 {
        let mut line = String::new();
        left -= input.read_line(&mut line)? as u64;
        let length = line.trim().split(';').next().unwrap_or_default();
        let Ok(bytes) = u64::from_str_radix(length, 16) else { continue };
        if bytes == 0 {
            // Trailers, and the end.
            copy(input, &mut left, u64::MAX, buffer, &mut |_| {})?;
            break;
        }
        copy(input, &mut left, bytes, buffer, &mut take)?;
        unwrapped += bytes;
        copy(input, &mut left, 2, buffer, &mut |_| {})?;
    }
    Ok(unwrapped)
}

fn copy(
    input: &mut BufReader<TcpStream>,
    left: &mut u64,
    bytes: u64,
    buffer: &mut [u8],
    take: &mut impl FnMut(&[u8]),
) -> Result<()> {
    let mut wanted = bytes.min(*left);
    *left -= wanted;
    while wanted > 0 {
        let space = usize::try_from(wanted).unwrap_or(usize::MAX).min(buffer.len());
        let read = input.read(&mut buffer[..space])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        take(&buffer[..read]);
        wanted -= read as u64;
    }
    Ok(())
}

/// Sends an answer whose body is in memory. The answer to HEAD has none, whatever `Content-Length` says.
pub(crate) fn answer(output: &mut TcpStream, status: &str, headers: &[(&str, String)], body: &[u8]) -> Result<()> {
    let mut text = format!("HTTP/1.1 {status}\r\n");
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    output.write_all(&[text.as_bytes(), body].concat())
}
