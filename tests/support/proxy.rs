//! A proxy between the S3 store and a real server that injects faults by rule. Each connection
//! carries one request; the proxy uses plain threads, because tests need no more.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Guards [`Proxy::wait_until_idle`] against hanging.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// The treatment of one request.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// Forwards the request.
    Pass,
    /// Forwards the request, but drops the response.
    LoseReply,
    /// Refuses the request with this status and code, without forwarding it.
    Refuse(u16, &'static str),
    /// Forwards the request; returns only this many bytes of the response body.
    CutBody(usize),
    /// Forwards the request; removes headers of the response whose name contains this text.
    HideHeaders(&'static str),
    /// Answers with this XML, without forwarding the request.
    Answer(String),
    /// Answers with these header lines, each with its line end, without forwarding the request.
    AnswerHead(String),
    /// Answers with this status, these header lines and this XML, without forwarding the request.
    AnswerStatus(u16, &'static str, &'static str),
    /// Forwards the request without this beginning of its path, as a server below a path does.
    Below(&'static str),
    /// Waits this long without forwarding the request or answering; then breaks the connection.
    Silence(Duration),
}

pub(crate) type Rule = dyn Fn(&str) -> Action + Send + Sync;

/// A running proxy, which runs until the test process ends.
pub(crate) struct Proxy {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    parts_at_once_max: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

/// An open connection, which counts itself.
struct Connection(Arc<AtomicUsize>);

impl Connection {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(open))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Proxy {
    /// Starts a proxy for `upstream` (`http://host:port`). The rule gets the request's head: the
    /// first line and headers in lower case.
    pub(crate) fn start(
        upstream: &str,
        rule: impl Fn(&str) -> Action + Send + Sync + 'static,
    ) -> Self {
        let upstream: SocketAddr = upstream.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            parts_at_once_max: Arc::default(),
            open: Arc::default(),
        };
        let open = Arc::clone(&proxy.open);
        let (rule, requests): (Arc<Rule>, _) = (Arc::new(rule), Arc::clone(&proxy.requests));
        let (parts_now, parts_max) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::clone(&proxy.parts_at_once_max),
        );
        thread::spawn(move || {
            for client in listener.incoming() {
                let (rule, requests) = (Arc::clone(&rule), Arc::clone(&requests));
                let (parts_now, parts_max) = (Arc::clone(&parts_now), Arc::clone(&parts_max));
                let connection = Connection::new(&open);
                thread::spawn(move || {
                    let _connection = connection;
                    let mut client = client?;
                    let (head, body) = read_request(&mut client)?;
                    let first_line = head.lines().next().unwrap_or_default().to_owned();
                    let is_part = first_line.contains("partNumber=");
                    requests.lock().unwrap().push(first_line);
                    if is_part {
                        parts_max.fetch_max(
                            parts_now.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                    }
                    let action = rule(&head.to_lowercase());
                    // A request whose client has ended meanwhile never left it: the server must not
                    // get it at some later time.
                    let answer = if is_gone(&client)? {
                        Ok(Vec::new())
                    } else {
                        answer(&action, upstream, &head, &body)
                    };
                    if is_part {
                        parts_now.fetch_sub(1, Ordering::SeqCst);
                    }
                    client.write_all(&answer?)
                });
            }
        });
        proxy
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the number of requests whose first line contains `part`.
    pub(crate) fn requests(&self, part: &str) -> usize {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.contains(part))
            .count()
    }

    /// Waits until no connection is open: nothing that a client sent before it ended can reach the
    /// server any more.
    pub(crate) fn wait_until_idle(&self) {
        let begun = Instant::now();
        while self.open.load(Ordering::SeqCst) > 0 {
            assert!(begun.elapsed() < IDLE_MAX, "the proxy is still at work");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the maximum number of parts that were in flight at once.
    pub(crate) fn parts_at_once_max(&self) -> usize {
        self.parts_at_once_max.load(Ordering::SeqCst)
    }
}

/// Makes a rule for the first `times` requests for which `matches` holds.
pub(crate) fn first(
    times: usize,
    action: Action,
    matches: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> impl Fn(&str) -> Action + Send + Sync {
    let left = AtomicUsize::new(times);
    move |head| {
        let met = matches(head)
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                })
                .is_ok();
        if met { action.clone() } else { Action::Pass }
    }
}

/// Makes a rule from several: the first one that does not return [`Action::Pass`] decides.
pub(crate) fn chain(rules: Vec<Box<Rule>>) -> impl Fn(&str) -> Action + Send + Sync {
    move |head| {
        let mut actions = rules.iter().map(|rule| rule(head));
        actions
            .find(|action| !matches!(action, Action::Pass))
            .unwrap_or(Action::Pass)
    }
}

/// Starts a server that accepts connections and never answers.
pub(crate) fn silent_server() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let _open: Vec<_> = listener.incoming().collect();
        thread::sleep(Duration::MAX);
    });
    format!("http://{address}")
}

fn answer(action: &Action, upstream: SocketAddr, head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let response = |status: u16, xml: &str| {
        let len = xml.len();
        let head =
            format!("HTTP/1.1 {status} X\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
        (head + xml).into_bytes()
    };
    match action {
        Action::Refuse(status, code) => {
            let xml =
                format!("<Error><Code>{code}</Code><Message>said the proxy</Message></Error>");
            Ok(response(
                *status,
                if head.starts_with("HEAD") { "" } else { &xml },
            ))
        }
        Action::Answer(xml) => Ok(response(200, xml)),
        Action::AnswerHead(lines) => {
            Ok(format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{lines}\r\n").into_bytes())
        }
        Action::AnswerStatus(status, lines, xml) => {
            let xml = if head.starts_with("HEAD") { "" } else { xml };
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{lines}\r\n{xml}",
                xml.len()
            );
            Ok(head.into_bytes())
        }
        Action::Silence(time) => {
            thread::sleep(*time);
            Ok(Vec::new())
        }
        Action::Pass => forward(upstream, head, body),
        Action::Below(path) => {
            let head = head.replacen(path, "", 1);
            let (first_line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
            let head = format!("{first_line}\r\nX-Forwarded-Prefix: {path}\r\n{headers}");
            forward(upstream, &head, body)
        }
        Action::LoseReply => forward(upstream, head, body).map(|_| Vec::new()),
        Action::CutBody(bytes) => {
            let mut whole = forward(upstream, head, body)?;
            let end = find_head_end(&whole).unwrap_or(0) + bytes;
            whole.truncate(end);
            Ok(whole)
        }
        Action::HideHeaders(part) => {
            let whole = forward(upstream, head, body)?;
            let end = find_head_end(&whole).unwrap_or(0);
            let text = String::from_utf8_lossy(&whole[..end]).into_owned();
            let hidden = |line: &&str| {
                line.split(':')
                    .next()
                    .is_some_and(|name| name.to_lowercase().contains(part))
            };
            let kept: String = text
                .split_inclusive("\r\n")
                .filter(|line| !hidden(line))
                .collect();
            Ok([kept.as_bytes(), &whole[end..]].concat())
        }
    }
}

/// Returns whether the client has closed its connection. A client sends nothing after its request.
fn is_gone(client: &TcpStream) -> io::Result<bool> {
    client.set_nonblocking(true)?;
    let peeked = client.peek(&mut [0]);
    client.set_nonblocking(false)?;
    Ok(!matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock))
}

/// Forwards the request on a connection of its own, and reads the response to its end.
fn forward(upstream: SocketAddr, head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(upstream)?;
    let (first_line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    server.write_all(format!("{first_line}\r\nConnection: close\r\n{headers}").as_bytes())?;
    server.write_all(body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}

fn read_request(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let end = loop {
        if let Some(end) = find_head_end(&bytes) {
            break end;
        }
        let read = client.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..read]);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let lower = head.to_lowercase();
    let len = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
        .unwrap_or(0);
    let mut body = bytes.split_off(end);
    let have = body.len();
    body.resize(len, 0);
    if have < len {
        client.read_exact(&mut body[have..])?;
    }
    Ok((head, body))
}

fn find_head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|start| start + 4)
}
