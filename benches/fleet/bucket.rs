//! [`Bucket`]: the S3 server in a process of its own, and the requests that it answered.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// A running S3 server. It ends with this value.
pub(crate) struct Bucket {
    /// `None` when another process started the server.
    process: Option<Child>,
    /// The address of the server, such as `127.0.0.1:4711`.
    pub(crate) address: String,
}

/// A request that the server answered, in microseconds since the server began.
pub(crate) struct Request {
    pub(crate) arrived: u64,
    pub(crate) answered: u64,
    pub(crate) kind: String,
    pub(crate) subject: String,
}

/// The requests of a command.
pub(crate) struct Requests(Vec<Request>);

impl Bucket {
    pub(crate) fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg("sink")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let (_, address) = line.trim().rsplit_once("http://").unwrap();
        let address = address.to_owned();
        Self {
            process: Some(process),
            address,
        }
    }

    /// The server of another process.
    pub(crate) fn at(address: &str) -> Self {
        Self {
            process: None,
            address: address.to_owned(),
        }
    }

    /// Delays every answer from now on.
    pub(crate) fn delay(&self, ms: u64) {
        self.ask(&format!("delay?ms={ms}"));
    }

    /// Copies all objects under a prefix to another prefix.
    pub(crate) fn copy(&self, from: &str, to: &str) {
        let (from, to) = (escaped(from), escaped(to));
        self.ask(&format!("copy?from={from}&to={to}"));
    }

    /// Removes all objects under a prefix.
    pub(crate) fn remove(&self, from: &str) {
        self.ask(&format!("remove?from={}", escaped(from)));
    }

    /// Lists the keys under a prefix of a bucket, at most a page.
    pub(crate) fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let prefix = escaped(prefix);
        let head = format!("GET /{bucket}?list-type=2&prefix={prefix} HTTP/1.1\r\n\r\n");
        let page = String::from_utf8(self.send(&head, &[])).unwrap();
        let keys = page.split("<Key>").skip(1);
        keys.map(|rest| rest.split('<').next().unwrap().to_owned())
            .collect()
    }

    pub(crate) fn objects(&self) -> usize {
        self.ask("count").parse().unwrap()
    }

    /// Returns the requests since the last call.
    pub(crate) fn requests(&self) -> Requests {
        let parse = |line: &str| {
            let mut words = line.splitn(4, ' ');
            let mut word = || words.next().unwrap();
            Request {
                arrived: word().parse().unwrap(),
                answered: word().parse().unwrap(),
                kind: word().to_owned(),
                subject: word().to_owned(),
            }
        };
        Requests(self.ask("log").lines().map(parse).collect())
    }

    /// Reads an object.
    pub(crate) fn get(&self, key: &str) -> Vec<u8> {
        let key = escaped(key);
        self.send(&format!("GET /{key} HTTP/1.1\r\n\r\n"), &[])
    }

    /// Puts an object, also over another one.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let (key, length) = (escaped(key), bytes.len());
        let head = format!("PUT /{key} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        self.send(&head, bytes);
    }

    fn ask(&self, what: &str) -> String {
        let head = format!("GET /-/{what} HTTP/1.1\r\n\r\n");
        String::from_utf8(self.send(&head, &[])).unwrap()
    }

    fn send(&self, head: &str, body: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut input = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        while input.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        input.read_exact(&mut answer).unwrap();
        answer
    }
}

fn escaped(text: &str) -> String {
    text.replace('@', "%40").replace(' ', "%20")
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Requests {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn of_kind(&self, kind: &str) -> usize {
        self.0.iter().filter(|request| request.kind == kind).count()
    }

    /// Returns the length of the longest sequence of requests each of which began after the end of
    /// the one before: the round trips one after the other. Sets the depth of each.
    pub(crate) fn depths(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        order.sort_by_key(|index| self.0[*index].arrived);
        let mut depths = vec![0; self.0.len()];
        // (end, deepest so far), by end.
        let mut ended: BTreeMap<u64, usize> = BTreeMap::new();
        for index in order {
            let request = &self.0[index];
            let before = ended.range(..=request.arrived).next_back();
            let depth = before.map_or(0, |(_, depth)| *depth) + 1;
            depths[index] = depth;
            let so_far = ended.range(..=request.answered).next_back();
            let deepest = so_far.map_or(depth, |(_, so_far)| depth.max(*so_far));
            ended.insert(request.answered, deepest);
            for (_, later) in ended.range_mut(request.answered..) {
                *later = deepest.max(*later);
            }
        }
        depths
    }

    /// Prints each request with its depth.
    pub(crate) fn print(&self) {
        let begun = self.0.iter().map(|it| it.arrived).min().unwrap_or(0);
        for (request, depth) in self.0.iter().zip(self.depths()) {
            let Request {
                arrived,
                answered,
                kind,
                subject,
            } = request;
            println!(
                "    {depth:>3}  {:>7.3} s {:>7.3} s  {kind:<13} {subject}",
                (arrived - begun) as f64 / 1e6,
                (answered - begun) as f64 / 1e6
            );
        }
    }
}

impl fmt::Display for Requests {
    /// Writes the requests of each kind, the most first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for request in &self.0 {
            *kinds.entry(&request.kind).or_default() += 1;
        }
        let mut kinds: Vec<(&str, usize)> = kinds.into_iter().collect();
        kinds.sort_by_key(|(kind, count)| (usize::MAX - count, *kind));
        let words: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        write!(f, "{} ({})", self.len(), words.join(", "))
    }
}
