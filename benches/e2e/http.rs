//! As much of HTTP/1.1 as S3 clients speak: requests with a length, kept connections, `Expect:
//! 100-continue`, and bodies in the chunks that AWS signs one by one. A body that nobody wants
//! never leaves the kernel.

use socket2::SockRef;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::TcpStream;

/// Of recv(2), on Linux.
const MSG_TRUNC: i32 = 0x20;
/// At most so much is discarded at once.
const DISCARD_BYTES: usize = 1 << 20;
const HEAD_LINES_MAX: usize = 200;

/// A request without its body.
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
        self.header("content-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    }

    /// Whether the body is wrapped in chunks of AWS's own.
    pub(crate) fn is_wrapped(&self) -> bool {
        self.header("content-encoding")
            .is_some_and(|coding| coding.contains("aws-chunked"))
            || self
                .header("x-amz-content-sha256")
                .is_some_and(|kind| kind.starts_with("STREAMING-"))
    }
}

/// The next request of a connection; `None` when the client has closed it.
pub(crate) fn read_request(input: &mut BufReader<TcpStream>) -> Result<Option<Request>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (
        words.next().unwrap_or_default().to_owned(),
        words.next().unwrap_or("/").to_owned(),
    );
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let query = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut request = Request {
        method,
        path: decode(path),
        query: query
            .map(|(name, value)| (decode(name), decode(value)))
            .collect(),
        headers: BTreeMap::new(),
    };
    for _ in 0..HEAD_LINES_MAX {
        line.clear();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        request
            .headers
            .insert(name.trim().to_lowercase(), value.trim().to_owned());
    }
    if request.header("expect").is_some() {
        input
            .get_mut()
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    Ok(Some(request))
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', "%20"))
        .decode_utf8_lossy()
        .into_owned()
}

/// The function that consumes a piece of a body.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&[u8]);

/// Gives the body in pieces, unwrapped, and its length. A body that nobody takes never leaves the
/// kernel.
pub(crate) fn read_body(
    input: &mut BufReader<TcpStream>,
    request: &Request,
    buffer: &mut [u8],
    mut take: Option<Take<'_>>,
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
        let read = input.read_line(&mut line)? as u64;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(read);
        let length = line.trim().split(';').next().unwrap_or_default();
        let Ok(bytes) = u64::from_str_radix(length, 16) else {
            continue;
        };
        if bytes == 0 {
            // Trailers, and the end.
            copy(input, &mut left, u64::MAX, buffer, &mut None)?;
            break;
        }
        copy(input, &mut left, bytes, buffer, &mut take)?;
        unwrapped += bytes;
        copy(input, &mut left, 2, buffer, &mut None)?;
    }
    Ok(unwrapped)
}

fn copy(
    input: &mut BufReader<TcpStream>,
    left: &mut u64,
    bytes: u64,
    buffer: &mut [u8],
    take: &mut Option<Take<'_>>,
) -> Result<()> {
    let mut wanted = bytes.min(*left);
    *left -= wanted;
    while wanted > 0 {
        let space = usize::try_from(wanted).unwrap_or(usize::MAX);
        let read = match take {
            Some(take) => {
                let space = space.min(buffer.len());
                let read = input.read(&mut buffer[..space])?;
                take(&buffer[..read]);
                read
            }
            None if input.buffer().is_empty() => discard(input.get_ref(), space)?,
            None => {
                let read = space.min(input.buffer().len());
                input.consume(read);
                read
            }
        };
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        wanted -= read as u64;
    }
    Ok(())
}

/// Drops what has come, and says how much that was: with `MSG_TRUNC` nothing is copied (tcp(7)).
fn discard(stream: &TcpStream, bytes_max: usize) -> Result<usize> {
    let space = bytes_max.min(DISCARD_BYTES);
    let mut untouched = Vec::<u8>::with_capacity(space);
    SockRef::from(stream).recv_with_flags(&mut untouched.spare_capacity_mut()[..space], MSG_TRUNC)
}

/// Sends an answer whose body is in memory. The answer to HEAD has none, whatever `Content-Length`
/// says.
pub(crate) fn answer(
    output: &mut TcpStream,
    status: &str,
    headers: &[(&str, String)],
    body: &[u8],
) -> Result<()> {
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
