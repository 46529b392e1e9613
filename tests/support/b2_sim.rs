//! A strict simulator of Backblaze B2's native API on 127.0.0.1. The simulator runs in the test's
//! own process and ends with it.
//!
//! It follows B2's documented rules: capabilities and restrictions of keys, tokens that expire, one
//! upload at a time for an upload URL, an upload URL that is invalid after a failed upload, SHA-1s
//! compared on arrival and at the finish of a large file, smallest parts, names, versions, hide
//! markers, pages. Unknown fields are refused. Large files are ordered by their start among the
//! versions of a name. [`Fault`] lists the faults that can be injected.

#[path = "b2_sim/calls.rs"]
mod calls;
#[path = "b2_sim/http.rs"]
mod http;
#[path = "b2_sim/state.rs"]
mod state;
#[path = "b2_sim/transfer.rs"]
mod transfer;

use http::{Answer, Head};
use state::{Key, State};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use zfs_backup::store::{B2Credentials, B2Settings};

pub(crate) const KEY_ID: &str = "0051master0001";
pub(crate) const KEY: &str = "K005-do-not-print-this";
pub(crate) const BUCKET: &str = "contract";
/// The capabilities of the master key.
const ALL: &str = "listKeys writeKeys deleteKeys listBuckets writeBuckets deleteBuckets listFiles readFiles writeFiles \
    deleteFiles shareFiles readBucketRetentions readFileRetentions writeFileRetentions";
/// The maximum number of concurrent connections. More are refused, so that a client that leaks
/// connections is detected.
const CONNECTIONS_MAX: usize = 200;
/// The time limit for an idle client.
const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// A fault of one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The request is read and refused with this status and code.
    Status(u16, &'static str),
    /// The request is refused with 429, and the client must pause for this many seconds.
    Busy(u64),
    /// The connection breaks after half of the body.
    Reset,
    /// The request is carried out, and the connection breaks before the response.
    LoseReply,
    /// No response comes for this time, then the connection breaks; the request has no effect.
    Silence(Duration),
    /// The request is carried out only after this has become false.
    Held(Arc<AtomicBool>),
    /// The body is read slowly, with this pause for each 16 KiB.
    SlowReader(Duration),
    /// Only this many bytes of the response body are sent.
    CutBody(usize),
    /// One bit of the body is flipped in transit.
    Garble,
    /// The file is stored, and another SHA-1 is reported for it from then on.
    LieSha1,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct SimOptions {
    pub(crate) part_bytes_min: usize,
    /// The newest version of the API that the simulator supports.
    pub(crate) api_version_max: u32,
    /// The maximum length of a page.
    pub(crate) page_max: usize,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            part_bytes_min: 64 * 1024,
            api_version_max: 4,
            page_max: 10_000,
        }
    }
}

struct Planned {
    call: &'static str,
    skip: usize,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct Faults {
    planned: Vec<Planned>,
    /// The state of a random generator, and the number of requests among which one fails.
    random: Option<(u64, u64)>,
}

pub(crate) struct Inner {
    address: SocketAddr,
    options: SimOptions,
    state: Mutex<State>,
    faults: Mutex<Faults>,
    calls: Mutex<Vec<String>>,
    open: Mutex<HashMap<u64, TcpStream>>,
    connections: AtomicUsize,
    parts_now: AtomicUsize,
    parts_at_once_max: AtomicUsize,
    ended: AtomicBool,
    /// The URL that clients are told, if it is not the simulator's own address.
    reached_at: Mutex<Option<String>>,
}

/// A running simulator. Dropping it ends it and its connections.
pub(crate) struct B2Sim(Arc<Inner>);

impl B2Sim {
    pub(crate) fn start() -> Self {
        Self::start_with(SimOptions::default())
    }

    /// Starts with the master key and one empty bucket.
    pub(crate) fn start_with(options: SimOptions) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut state = State::default();
        state.add_bucket(BUCKET);
        let capabilities = ALL.split_whitespace().map(str::to_owned).collect();
        state.keys.insert(
            KEY_ID.to_owned(),
            Key {
                secret: KEY.to_owned(),
                capabilities,
                buckets: None,
                prefix: None,
            },
        );
        let inner = Arc::new(Inner {
            address: listener.local_addr().unwrap(),
            options,
            state: Mutex::new(state),
            faults: Mutex::default(),
            calls: Mutex::default(),
            open: Mutex::default(),
            connections: AtomicUsize::new(0),
            parts_now: AtomicUsize::new(0),
            parts_at_once_max: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            reached_at: Mutex::default(),
        });
        let served = Arc::clone(&inner);
        thread::spawn(move || accept(&served, &listener));
        Self(inner)
    }

    pub(crate) fn endpoint(&self) -> String {
        self.0.endpoint()
    }

    /// Sets the URL that clients are told from now on.
    #[allow(dead_code, reason = "only what stands behind something else needs it")]
    pub(crate) fn is_reached_at(&self, url: &str) {
        *self.0.reached_at.lock().unwrap() = Some(url.to_owned());
    }

    /// Returns settings for the simulator's bucket, with short pauses.
    pub(crate) fn settings(&self) -> B2Settings {
        B2Settings {
            bucket: BUCKET.to_owned(),
            endpoint: Some(self.endpoint()),
            credentials: Some(credentials(KEY_ID, KEY)),
            part_bytes: self.0.options.part_bytes_min,
            attempt_slack: Duration::from_secs(120),
            pause_first: Duration::from_millis(5),
            ..B2Settings::default()
        }
    }

    /// Makes a key, for some buckets (all if the list is empty) and names that begin with `prefix`.
    pub(crate) fn add_key(
        &self,
        id: &str,
        capabilities: &str,
        buckets: &[&str],
        prefix: Option<&str>,
    ) -> B2Credentials {
        let key = Key {
            secret: format!("{KEY}-{id}"),
            capabilities: capabilities.split_whitespace().map(str::to_owned).collect(),
            buckets: (!buckets.is_empty())
                .then(|| buckets.iter().map(|name| (*name).to_owned()).collect()),
            prefix: prefix.map(str::to_owned),
        };
        let made = credentials(id, &key.secret);
        self.0.state.lock().unwrap().keys.insert(id.to_owned(), key);
        made
    }

    /// Deletes a key; its tokens expire.
    pub(crate) fn remove_key(&self, id: &str) {
        let mut state = self.0.state.lock().unwrap();
        state.keys.remove(id);
        state.expire_tokens();
    }

    /// Enables file lock in the bucket.
    pub(crate) fn allow_locks(&self) {
        self.0.state.lock().unwrap().buckets[0].locks = true;
    }

    /// Sets the lifecycle rules of the bucket, and whether it is public.
    pub(crate) fn describe_bucket(&self, lifecycle: serde_json::Value, public: bool) {
        let mut state = self.0.state.lock().unwrap();
        state.buckets[0].lifecycle = lifecycle;
        state.buckets[0].public = public;
    }

    /// Returns the time until which the newest version of a name is locked, in milliseconds.
    pub(crate) fn locked_until(&self, name: &str) -> Option<u64> {
        let state = self.0.state.lock().unwrap();
        state.buckets[0]
            .files
            .get(name)?
            .first()?
            .retention
            .as_ref()
            .map(|(_, until)| *until)
    }

    pub(crate) fn add_bucket(&self, name: &str) {
        self.0.state.lock().unwrap().add_bucket(name);
    }

    /// Deletes the bucket with everything in it.
    pub(crate) fn remove_bucket(&self) {
        self.0.state.lock().unwrap().buckets.remove(0);
    }

    /// Makes the next `times` requests of this call fail, after `skip` that succeed.
    pub(crate) fn fail(&self, call: &'static str, skip: usize, times: usize, fault: Fault) {
        self.0.faults.lock().unwrap().planned.push(Planned {
            call,
            skip,
            times,
            fault,
        });
    }

    /// Returns the number of planned failures that have not occurred yet.
    pub(crate) fn failures_left(&self) -> usize {
        self.0
            .faults
            .lock()
            .unwrap()
            .planned
            .iter()
            .map(|planned| planned.times)
            .sum()
    }

    /// Makes one request in `one_in` fail from now on, with a random fault; 0 for none.
    pub(crate) fn fail_at_random(&self, seed: u64, one_in: u64) {
        self.0.faults.lock().unwrap().random = (one_in > 0).then_some((seed | 1, one_in));
    }

    /// Expires all tokens of accounts and all upload URLs.
    pub(crate) fn expire_tokens(&self) {
        self.0.state.lock().unwrap().expire_tokens();
    }

    /// Returns the number of requests of this call.
    pub(crate) fn requests(&self, call: &str) -> usize {
        self.0
            .calls
            .lock()
            .unwrap()
            .iter()
            .filter(|made| *made == call)
            .count()
    }

    pub(crate) fn forget_requests(&self) {
        self.0.calls.lock().unwrap().clear();
    }

    /// Returns the calls with their numbers of requests, in order of the name.
    pub(crate) fn tally(&self) -> Vec<(String, usize)> {
        let mut tally = std::collections::BTreeMap::new();
        for call in &*self.0.calls.lock().unwrap() {
            *tally.entry(call.clone()).or_default() += 1;
        }
        tally.into_iter().collect()
    }

    /// Returns all versions in the bucket: name, action and bytes, newest first.
    pub(crate) fn versions(&self) -> Vec<(String, String, usize)> {
        let state = self.0.state.lock().unwrap();
        let versions = state.buckets[0].files.values().flatten();
        versions
            .map(|version| {
                (
                    version.name.clone(),
                    version.action.to_owned(),
                    version.data.len(),
                )
            })
            .collect()
    }

    /// Stores a version without the API, as another program would.
    pub(crate) fn plant(&self, name: &str, bytes: &[u8]) {
        self.0.state.lock().unwrap().plant(name, bytes);
    }

    /// Hides a name, as another program would.
    pub(crate) fn hide(&self, name: &str) {
        self.0.state.lock().unwrap().add_marker(0, name);
    }

    /// Returns the maximum number of parts that were in flight at once.
    pub(crate) fn parts_at_once_max(&self) -> usize {
        self.0.parts_at_once_max.load(Ordering::SeqCst)
    }
}

impl Drop for B2Sim {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.0.address);
        for stream in self.0.open.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

pub(crate) fn credentials(id: &str, key: &str) -> B2Credentials {
    B2Credentials {
        application_key_id: id.to_owned(),
        application_key: key.to_owned(),
    }
}

fn accept(inner: &Arc<Inner>, listener: &TcpListener) {
    for (n, stream) in (0_u64..).zip(listener.incoming()) {
        if inner.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if inner.connections.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            inner.connections.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        if let Ok(copy) = stream.try_clone() {
            inner.open.lock().unwrap().insert(n, copy);
        }
        let inner = Arc::clone(inner);
        thread::spawn(move || {
            // The client closed the connection, or a fault broke it.
            let _ = serve(&inner, stream);
            inner.open.lock().unwrap().remove(&n);
            inner.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Serves one connection: request after request, until it ends or a fault breaks it.
fn serve(inner: &Inner, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_LIMIT))?;
    stream.set_write_timeout(Some(IDLE_LIMIT))?;
    stream.set_nodelay(true)?;
    let mut rest = Vec::new();
    while let Some(head) = http::read_head(&mut stream, &mut rest)? {
        let call = head.call();
        inner.calls.lock().unwrap().push(call.clone());
        let fault = inner.next_fault(&call);
        let is_part = call == "b2_upload_part";
        if is_part {
            inner.parts_at_once_max.fetch_max(
                inner.parts_now.fetch_add(1, Ordering::SeqCst) + 1,
                Ordering::SeqCst,
            );
        }
        let served = inner.serve_one(&mut stream, &mut rest, &head, &call, fault.as_ref());
        if is_part {
            inner.parts_now.fetch_sub(1, Ordering::SeqCst);
        }
        if !served? {
            stream.shutdown(Shutdown::Both)?;
            return Ok(());
        }
    }
    Ok(())
}

impl Inner {
    fn endpoint(&self) -> String {
        let reached_at = self.reached_at.lock().unwrap().clone();
        reached_at.unwrap_or_else(|| format!("http://{}", self.address))
    }

    fn next_fault(&self, call: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        if let Some(planned) = faults
            .planned
            .iter_mut()
            .find(|planned| planned.call == call && planned.times > 0)
        {
            if planned.skip > 0 {
                planned.skip -= 1;
            } else {
                planned.times -= 1;
                return Some(planned.fault.clone());
            }
        }
        let (generator, one_in) = faults.random.as_mut()?;
        let mut draw = || {
            *generator ^= *generator << 13;
            *generator ^= *generator >> 7;
            *generator ^= *generator << 17;
            *generator
        };
        if draw() % *one_in != 0 {
            return None;
        }
        let authorizes = call == "b2_authorize_account";
        Some(match draw() % 6 {
            0 => Fault::Status(500, "internal_error"),
            1 => Fault::Reset,
            2 => Fault::LoseReply,
            3 if !authorizes => Fault::Status(401, "expired_auth_token"),
            4 if call.starts_with("b2_download") => Fault::CutBody(3),
            5 if call.starts_with("b2_upload") => Fault::Garble,
            _ => Fault::Status(503, "service_unavailable"),
        })
    }

    /// Serves one request. Returns whether the connection stays open.
    fn serve_one(
        &self,
        stream: &mut TcpStream,
        rest: &mut Vec<u8>,
        head: &Head,
        call: &str,
        fault: Option<&Fault>,
    ) -> io::Result<bool> {
        let ticket = match transfer::begin(self, head, call) {
            Ok(ticket) => ticket,
            Err(refused) => {
                http::read_body(stream, rest, head, None)?;
                return refused.write(stream, head, None);
            }
        };
        let pace = match fault {
            Some(Fault::SlowReader(pause)) => Some(*pause),
            _ => None,
        };
        let broken = match fault {
            Some(Fault::Reset) => {
                http::read_half(stream, rest, head)?;
                true
            }
            Some(Fault::Silence(time)) => {
                http::read_body(stream, rest, head, None)?;
                thread::sleep(*time);
                true
            }
            _ => false,
        };
        if broken {
            transfer::end(self, ticket, false);
            return Ok(false);
        }
        let mut body = http::read_body(stream, rest, head, pace)?;
        if let Some(Fault::Held(is_held)) = fault {
            while is_held.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        let answer = match fault {
            Some(Fault::Status(status, code)) => {
                Answer::refused(*status, code, "said the simulator")
            }
            Some(Fault::Busy(seconds)) => Answer::refused(429, "too_many_requests", "slow down")
                .with("Retry-After", &seconds.to_string()),
            fault => {
                if let (Some(Fault::Garble), Some(first)) = (fault, body.first_mut()) {
                    *first ^= 1;
                }
                self.answer(head, call, body, matches!(fault, Some(Fault::LieSha1)))
            }
        };
        transfer::end(self, ticket, answer.status < 500 && answer.status != 401);
        match fault {
            Some(Fault::LoseReply) => Ok(false),
            Some(Fault::CutBody(bytes)) => answer.write(stream, head, Some(*bytes)),
            _ => answer.write(stream, head, None),
        }
    }

    fn answer(&self, head: &Head, call: &str, body: Vec<u8>, lie: bool) -> Answer {
        let mut state = self.state.lock().unwrap();
        let answered = match call {
            "b2_authorize_account" => calls::authorize(self, &mut state, head),
            "b2_upload_file" => transfer::upload_file(&mut state, head, body, lie),
            "b2_upload_part" => transfer::upload_part(&mut state, head, body),
            "b2_download_file_by_name" | "b2_download_file_by_id" => {
                transfer::download(&state, head, call)
            }
            _ => calls::json_call(self, &mut state, head, call, &body),
        };
        answered.unwrap_or_else(|refused| refused)
    }
}
