//! An S3 server on 127.0.0.1 that costs next to nothing: it checks no signature, keeps what comes
//! in memory, and says of every object its size and CRC64NVME. Or it discards large bodies unseen,
//! as if it were another machine, and repeats the checksum that the client gave. A thread for each
//! connection.

use crate::http::{Request, answer, read_body, read_request};
use crate::objects::{ALGORITHM, Came, Content, Object, SMALL_BYTES, Shared, Upload, join};
use crate::record::{Control, Recorder};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::{Bound, Range};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

const BUFFER_BYTES: usize = 256 << 10;
/// The bytes of a body that are read together with a head are copied once more.
const HEAD_BUFFER_BYTES: usize = 8 << 10;
const PAGE_KEYS_MAX: usize = 1000;
const CRC_HEADER: &str = "x-amz-checksum-crc64nvme";
const NOTHING_THERE: &str = "*";
/// The character that sorts after every character of a key.
const LAST: char = char::MAX;

struct Sink {
    state: Shared,
    delay: Duration,
    keep: bool,
    /// The answers to the requests of `fleet` that are not S3; `e2e` makes none.
    recorder: Recorder,
}

/// Serves until the process ends.
pub(crate) fn serve(port: u16, delay: Duration, keep: bool) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let sink = Arc::new(Sink {
        state: Shared::default(),
        delay,
        keep,
        recorder: Recorder::default(),
    });
    println!("listening on http://{}", listener.local_addr().unwrap());
    for stream in listener.incoming().flatten() {
        let sink = Arc::clone(&sink);
        std::thread::spawn(move || {
            // A failure ends the client's connection, so the client notices it.
            let _ = sink.connection(stream);
        });
    }
}

impl Sink {
    fn connection(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut output = stream.try_clone()?;
        let mut input = BufReader::with_capacity(HEAD_BUFFER_BYTES, stream);
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Some(request) = read_request(&mut input)? {
            if request.header("transfer-encoding").is_some() {
                return error(&mut output, "411 Length Required", "MissingContentLength");
            }
            let came = self.take_body(&mut input, &request, &mut buffer)?;
            if let Some(control) = Control::of(&request) {
                answer(&mut output, "200 OK", &[], &self.control(control))?;
                continue;
            }
            let arrived = self.recorder.arrive(&request);
            std::thread::sleep(self.delay + self.recorder.delay());
            self.recorder.reply(arrived);
            self.reply(&request, came, &mut output)?;
        }
        Ok(())
    }

    fn control(&self, control: Control) -> Vec<u8> {
        match control {
            Control::Delay(delay) => self.recorder.set_delay(delay),
            Control::Log => return self.recorder.take().into_bytes(),
            Control::Copy { from, to } => {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let under = state.objects.range(from.clone()..);
                let under = under.take_while(|(key, _)| key.starts_with(&from));
                let copies: Vec<(String, Object)> = under
                    .map(|(key, object)| (format!("{to}{}", &key[from.len()..]), object.clone()))
                    .collect();
                state.objects.extend(copies);
            }
            Control::Remove { from } => {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.objects.retain(|key, _| !key.starts_with(&from));
            }
            Control::Count => {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                return state.objects.len().to_string().into_bytes();
            }
        }
        Vec::new()
    }

    fn take_body(
        &self,
        input: &mut BufReader<TcpStream>,
        request: &Request,
        buffer: &mut [u8],
    ) -> Result<Came> {
        let is_part = request.query.contains_key("partNumber");
        if !self.keep && (is_part || request.body_bytes() > SMALL_BYTES) {
            let bytes = read_body(input, request, buffer, None)?;
            return Ok(Came {
                bytes,
                crc64nvme: claimed_crc(request),
                content: Content::Discarded,
            });
        }
        let (mut kept, mut crc) = (
            Vec::with_capacity(index(request.body_bytes())),
            crc_fast::Digest::new(ALGORITHM),
        );
        let mut keep = |piece: &[u8]| {
            crc.update(piece);
            kept.extend_from_slice(piece);
        };
        let bytes = read_body(input, request, buffer, Some(&mut keep))?;
        Ok(Came {
            bytes,
            crc64nvme: Some(crc.finalize()),
            content: Content::Kept(vec![kept.into()]),
        })
    }

    fn reply(&self, request: &Request, came: Came, output: &mut TcpStream) -> Result<()> {
        let key = request.path.trim_start_matches('/').to_owned();
        let asks = |name: &str| request.query.contains_key(name);
        let is_bucket = !key.trim_end_matches('/').contains('/');
        match request.method.as_str() {
            "PUT" | "HEAD" if is_bucket => answer(output, "200 OK", &[], &[]),
            "GET" if is_bucket => xml(output, &self.list(request, key.trim_end_matches('/'))),
            "POST" if asks("delete") => self.delete_many(&key, &came, output),
            "POST" if asks("uploads") => self.begin(request, key, output),
            "POST" if asks("uploadId") => self.complete(request, &key, output),
            "PUT" if asks("uploadId") => self.put_part(request, came, output),
            "PUT" => self.put(request, key, came, output),
            "DELETE" => self.delete(request, &key, output),
            "GET" | "HEAD" => self.get(request, &key, output),
            _ => error(output, "405 Method Not Allowed", "MethodNotAllowed"),
        }
    }

    fn list(&self, request: &Request, bucket: &str) -> String {
        let asked = |name: &str| request.query.get(name).map(String::as_str);
        if asked("location").is_some() {
            return "<LocationConstraint>us-east-1</LocationConstraint>".to_owned();
        }
        if asked("versions").is_some() {
            return self.versions(bucket, asked("prefix").unwrap_or_default());
        }
        if asked("uploads").is_some() {
            return "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
                .to_owned();
        }
        let (prefix, delimiter) = (
            asked("prefix").unwrap_or_default(),
            asked("delimiter").unwrap_or_default(),
        );
        let after = asked("continuation-token")
            .or(asked("marker"))
            .or(asked("start-after"))
            .unwrap_or_default();
        let most = asked("max-keys")
            .and_then(|text| text.parse().ok())
            .unwrap_or(PAGE_KEYS_MAX);
        let root = format!("{bucket}/");
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut lines, mut folders, mut last, mut more) =
            (String::new(), BTreeSet::new(), String::new(), false);
        let mut count = 0;
        let mut from = Bound::Included(format!("{root}{prefix}"));
        if after > prefix {
            from = Bound::Excluded(format!("{root}{after}"));
            // A token that is a folder stands for everything in it.
            if !delimiter.is_empty() && after.ends_with(delimiter) {
                from = Bound::Included(format!("{root}{after}{LAST}"));
            }
        }
        while let Some((name, object)) = state.objects.range((from, Bound::Unbounded)).next() {
            let Some(name) = name.strip_prefix(&root) else {
                break;
            };
            if !name.starts_with(prefix) {
                break;
            }
            if count == most {
                more = true;
                break;
            }
            count += 1;
            let folder = name[prefix.len()..]
                .find(delimiter)
                .filter(|_| !delimiter.is_empty());
            if let Some(end) = folder {
                let folder = &name[..prefix.len() + end + delimiter.len()];
                last = folder.to_owned();
                from = Bound::Included(format!("{root}{folder}{LAST}"));
                folders.insert(folder);
                continue;
            }
            last = name.to_owned();
            from = Bound::Excluded(format!("{root}{name}"));
            let (bytes, etag, at) = (object.came.bytes, object.etag(), time_text(object.modified));
            lines += &format!(
                "<Contents><Key>{}</Key><Size>{bytes}</Size><ETag>{etag}</ETag><LastModified>{at}</LastModified>\
                 <StorageClass>STANDARD</StorageClass></Contents>",
                escape(name)
            );
        }
        for folder in folders {
            lines += &format!(
                "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>",
                escape(folder)
            );
        }
        let next = if more {
            format!(
                "<NextContinuationToken>{0}</NextContinuationToken><NextMarker>{0}</NextMarker>",
                escape(&last)
            )
        } else {
            String::new()
        };
        format!(
            "<ListBucketResult><Name>{bucket}</Name><Prefix>{}</Prefix><KeyCount>{count}</KeyCount>\
             <MaxKeys>{most}</MaxKeys><IsTruncated>{more}</IsTruncated>{next}{lines}</ListBucketResult>",
            escape(prefix)
        )
    }

    /// Lists one version of each object, as a bucket without versioning does.
    fn versions(&self, bucket: &str, prefix: &str) -> String {
        let root = format!("{bucket}/");
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let all = state.objects.range(format!("{root}{prefix}")..);
        let names = all.map_while(|(name, _)| {
            name.strip_prefix(&root)
                .filter(|name| name.starts_with(prefix))
        });
        let line = |name| {
            let key = escape(name);
            format!(
                "<Version><Key>{key}</Key><VersionId>null</VersionId><IsLatest>true</IsLatest></Version>"
            )
        };
        let lines: String = names.map(line).collect();
        format!("<ListVersionsResult><IsTruncated>false</IsTruncated>{lines}</ListVersionsResult>")
    }

    fn begin(&self, request: &Request, key: String, output: &mut TcpStream) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.uploads_begun += 1;
        let id = format!("upload-{}", state.uploads_begun);
        let body = format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        );
        state.uploads.insert(
            id,
            Upload {
                key,
                metadata: metadata(request),
                parts: BTreeMap::new(),
            },
        );
        drop(state);
        xml(output, &body)
    }

    fn put_part(&self, request: &Request, came: Came, output: &mut TcpStream) -> Result<()> {
        let number = request
            .query
            .get("partNumber")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let id = request.query.get("uploadId").cloned().unwrap_or_default();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(upload) = state.uploads.get_mut(&id) else {
            return error(output, "404 Not Found", "NoSuchUpload");
        };
        let headers = facts(came.etag(), came.crc64nvme);
        upload.parts.insert(number, came);
        drop(state);
        answer(output, "200 OK", &headers, &[])
    }

    fn complete(&self, request: &Request, key: &str, output: &mut TcpStream) -> Result<()> {
        let id = request.query.get("uploadId").cloned().unwrap_or_default();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if request.header("if-none-match") == Some(NOTHING_THERE) && state.objects.contains_key(key)
        {
            return error(output, "412 Precondition Failed", "PreconditionFailed");
        }
        let Some(upload) = state.uploads.remove(&id).filter(|upload| upload.key == key) else {
            return error(output, "404 Not Found", "NoSuchUpload");
        };
        let (came, parts) = (join(&upload.parts), upload.parts.len());
        let object = Object {
            came,
            metadata: upload.metadata,
            parts,
            modified: SystemTime::now(),
        };
        let (etag, crc) = (object.etag(), object.came.crc64nvme);
        state.objects.insert(key.to_owned(), object);
        drop(state);
        let crc = crc.map(crc_text).map_or_else(String::new, |crc| {
            format!("<ChecksumCRC64NVME>{crc}</ChecksumCRC64NVME><ChecksumType>FULL_OBJECT</ChecksumType>")
        });
        let answer = "CompleteMultipartUploadResult";
        xml(
            output,
            &format!("<{answer}><ETag>{etag}</ETag>{crc}</{answer}>"),
        )
    }

    fn put(
        &self,
        request: &Request,
        key: String,
        came: Came,
        output: &mut TcpStream,
    ) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if request.header("if-none-match") == Some(NOTHING_THERE)
            && state.objects.contains_key(&key)
        {
            return error(output, "412 Precondition Failed", "PreconditionFailed");
        }
        let object = Object {
            came,
            metadata: metadata(request),
            parts: 0,
            modified: SystemTime::now(),
        };
        let headers = facts(object.etag(), object.came.crc64nvme);
        state.objects.insert(key, object);
        drop(state);
        answer(output, "200 OK", &headers, &[])
    }

    fn delete(&self, request: &Request, key: &str, output: &mut TcpStream) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match request.query.get("uploadId") {
            Some(id) => _ = state.uploads.remove(id),
            None => _ = state.objects.remove(key),
        }
        drop(state);
        answer(output, "204 No Content", &[], &[])
    }

    fn delete_many(&self, bucket: &str, came: &Came, output: &mut TcpStream) -> Result<()> {
        let Content::Kept(body) = &came.content else {
            return error(output, "400 Bad Request", "MalformedXML");
        };
        let body = body.concat();
        let body = String::from_utf8_lossy(&body);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for key in body
            .split("<Key>")
            .skip(1)
            .filter_map(|rest| rest.split("</Key>").next())
        {
            state
                .objects
                .remove(&format!("{}/{key}", bucket.trim_end_matches('/')));
        }
        drop(state);
        xml(output, "<DeleteResult></DeleteResult>")
    }

    fn get(&self, request: &Request, key: &str, output: &mut TcpStream) -> Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = state.objects.get(key).cloned() else {
            drop(state);
            return error(
                output,
                "404 Not Found",
                if request.method == "HEAD" {
                    ""
                } else {
                    "NoSuchKey"
                },
            );
        };
        drop(state);
        let whole = object.came.bytes;
        let asked = request.header("range");
        let range = asked.and_then(|text| parse_range(text, whole));
        if asked.is_some() && range.is_none() {
            return error(
                output,
                "416 Requested Range Not Satisfiable",
                "InvalidRange",
            );
        }
        let (start, end) = range.unwrap_or((0, whole));
        let mut headers = vec![
            ("Content-Length", (end - start).to_string()),
            ("ETag", object.etag()),
            ("Last-Modified", http_time(object.modified)),
            ("Accept-Ranges", "bytes".to_owned()),
            ("Content-Type", "application/octet-stream".to_owned()),
        ];
        if range.is_some() {
            headers.push((
                "Content-Range",
                format!("bytes {start}-{}/{whole}", end - 1),
            ));
        }
        if request.header("x-amz-checksum-mode").is_some() && range.is_none() {
            headers.extend(object.came.crc64nvme.map(|crc| (CRC_HEADER, crc_text(crc))));
            headers.push(("x-amz-checksum-type", "FULL_OBJECT".to_owned()));
        }
        headers.extend(
            object
                .metadata
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone())),
        );
        let status = if range.is_some() {
            "206 Partial Content"
        } else {
            "200 OK"
        };
        if request.method == "HEAD" {
            return answer(output, status, &headers, &[]);
        }
        match &object.came.content {
            Content::Kept(runs) => {
                answer(output, status, &headers, &[])?;
                send(runs, index(start)..index(end), output)
            }
            Content::Discarded => error(output, "410 Gone", "Discarded"),
        }
    }
}

fn send(runs: &[Bytes], range: Range<usize>, output: &mut TcpStream) -> Result<()> {
    let mut at = 0;
    for run in runs {
        let (from, to) = (
            range.start.clamp(at, at + run.len()),
            range.end.clamp(at, at + run.len()),
        );
        output.write_all(&run[from - at..to - at])?;
        at += run.len();
    }
    Ok(())
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn parse_range(text: &str, whole: u64) -> Option<(u64, u64)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let from = from.parse().ok()?;
    let to = to.parse().map_or(whole, |to: u64| (to + 1).min(whole));
    (from < to).then_some((from, to))
}

fn metadata(request: &Request) -> BTreeMap<String, String> {
    let own = request
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-amz-meta-"));
    own.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Returns the headers of the answer to received bytes.
fn facts(etag: String, crc64nvme: Option<u64>) -> Vec<(&'static str, String)> {
    let crc = crc64nvme.map(|crc| (CRC_HEADER, crc_text(crc)));
    [("ETag", etag)].into_iter().chain(crc).collect()
}

/// The checksum that the client says a body has.
fn claimed_crc(request: &Request) -> Option<u64> {
    let bytes = BASE64_STANDARD.decode(request.header(CRC_HEADER)?).ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn crc_text(crc: u64) -> String {
    BASE64_STANDARD.encode(crc.to_be_bytes())
}

fn time_text(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string())
        .unwrap_or_default()
}

fn http_time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map(|time| time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn xml(output: &mut TcpStream, body: &str) -> Result<()> {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}");
    answer(
        output,
        "200 OK",
        &[("Content-Type", "application/xml".to_owned())],
        body.as_bytes(),
    )
}

fn error(output: &mut TcpStream, status: &str, code: &str) -> Result<()> {
    let body = if code.is_empty() {
        String::new()
    } else {
        format!("<Error><Code>{code}</Code><Message>{status}</Message></Error>")
    };
    // Clients read the store's clock here.
    let headers = [
        ("Content-Type", "application/xml".to_owned()),
        ("Date", http_time(SystemTime::now())),
    ];
    answer(output, status, &headers, body.as_bytes())
}
