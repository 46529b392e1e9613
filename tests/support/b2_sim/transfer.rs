//! Uploads and downloads.

use super::Inner;
use super::calls::file_json;
use super::http::{Answer, Head, decode, encode};
use super::state::{
    State, Upload, Version, bad_request, check_info, check_name, check_retention, sha1_hex,
};
use serde_json::json;
use std::collections::BTreeMap;

const SINGLE_MAX: usize = 5_000_000_000;

/// The upload token that a request holds while it runs.
pub(super) type Ticket = Option<String>;

/// Takes the upload token of a request, before its body is read: each token serves one upload at a
/// time.
pub(super) fn begin(inner: &Inner, head: &Head, call: &str) -> Result<Ticket, Answer> {
    if !matches!(call, "b2_upload_file" | "b2_upload_part") {
        return Ok(None);
    }
    let token = head.header("authorization").unwrap_or_default().to_owned();
    let mut state = inner.state.lock().unwrap();
    let expired = state.expired.contains(&token);
    let Some(upload) = state
        .uploads
        .get_mut(&token)
        .filter(|upload| upload.path == head.path)
    else {
        let code = if expired {
            "expired_auth_token"
        } else {
            "bad_auth_token"
        };
        return Err(Answer::refused(401, code, "Invalid upload token"));
    };
    if upload.busy {
        let message = format!("more than one upload using auth token {token}");
        return Err(Answer::refused(400, "auth_token_limit", &message));
    }
    upload.busy = true;
    Ok(Some(token))
}

/// Returns the token; a token whose upload failed expires.
pub(super) fn end(inner: &Inner, ticket: Ticket, good: bool) {
    let Some(token) = ticket else { return };
    let mut state = inner.state.lock().unwrap();
    match good {
        true => {
            if let Some(upload) = state.uploads.get_mut(&token) {
                upload.busy = false;
            }
        }
        false => {
            state.uploads.remove(&token);
            state.expired.insert(token);
        }
    }
}

fn upload_of<'s>(state: &'s State, head: &Head) -> Result<&'s Upload, Answer> {
    let token = head.header("authorization").unwrap_or_default();
    state
        .uploads
        .get(token)
        .ok_or_else(|| Answer::refused(401, "expired_auth_token", "Upload token has expired"))
}

/// Checks the length and the SHA-1. Returns the data and the SHA-1 to report.
fn checked(head: &Head, mut body: Vec<u8>) -> Result<(Vec<u8>, String), Answer> {
    if head.method != "POST" {
        return Err(Answer::refused(
            405,
            "method_not_allowed",
            "only POST is supported",
        ));
    }
    if head.header("content-length").is_none() || head.header("transfer-encoding").is_some() {
        return Err(Answer::refused(
            411,
            "length_required",
            "Content-Length is needed",
        ));
    }
    let said = head
        .header("x-bz-content-sha1")
        .ok_or_else(|| bad_request("Missing header: X-Bz-Content-Sha1"))?;
    let said = match said {
        "hex_digits_at_end" => {
            let start = body
                .len()
                .checked_sub(40)
                .ok_or_else(|| bad_request("no room for 40 digits at the end"))?;
            String::from_utf8(body.split_off(start))
                .map_err(|_| bad_request("no hex digits at the end"))?
        }
        "do_not_verify" => return Ok((body.clone(), format!("unverified:{}", sha1_hex(&body)))),
        said => said.to_owned(),
    };
    if said.len() != 40 || !said.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad_request(&format!("{said:?} is no SHA-1")));
    }
    if body.len() > SINGLE_MAX {
        return Err(bad_request("too large"));
    }
    let sha1 = sha1_hex(&body);
    match sha1.eq_ignore_ascii_case(&said) {
        true => Ok((body, sha1)),
        false => Err(bad_request("Sha1 did not match data received")),
    }
}

pub(super) fn upload_file(
    state: &mut State,
    head: &Head,
    body: Vec<u8>,
    lie: bool,
) -> Result<Answer, Answer> {
    let upload = upload_of(state, head)?;
    let (key, target) = (upload.key.clone(), upload.target.clone());
    let name = head
        .header("x-bz-file-name")
        .ok_or_else(|| bad_request("Missing header: X-Bz-File-Name"))?;
    let name = decode(name).ok_or_else(|| bad_request("the name is not percent-encoded UTF-8"))?;
    check_name(&name)?;
    let bucket = state.bucket_index(&target)?;
    key.check("writeFiles", Some(&state.buckets[bucket]), Some(&name))?;
    let content_type = head
        .header("content-type")
        .ok_or_else(|| bad_request("Missing header: Content-Type"))?;
    let mut info = BTreeMap::new();
    for (header, value) in &head.headers {
        if let Some(entry) = header.strip_prefix("x-bz-info-") {
            info.insert(
                entry.to_owned(),
                decode(value).ok_or_else(|| bad_request("bad file info"))?,
            );
        }
    }
    check_info(&info)?;
    let retention = match head.header("x-bz-file-retention-mode") {
        None => None,
        Some(mode) => {
            let until = head
                .header("x-bz-file-retention-retain-until-timestamp")
                .and_then(|until| until.parse().ok());
            Some(check_retention(&key, &state.buckets[bucket], mode, until)?)
        }
    };
    let (data, sha1) = checked(head, body)?;
    let sha1 = if lie { "0".repeat(40) } else { sha1 };
    let content_type = content_type.to_owned();
    let version = Version {
        info,
        content_type,
        retention,
        ..Version::new(&name, Some(sha1), data)
    };
    let bucket_id = state.buckets[bucket].id.clone();
    let version = state.add_version(bucket, version);
    Ok(Answer::json(&file_json(
        version,
        &bucket_id,
        head.version(),
        &key,
    )))
}

pub(super) fn upload_part(state: &mut State, head: &Head, body: Vec<u8>) -> Result<Answer, Answer> {
    let target = upload_of(state, head)?.target.clone();
    let number: u32 = head
        .header("x-bz-part-number")
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    if !(1..=10_000).contains(&number) {
        return Err(bad_request("part numbers are 1 to 10000"));
    }
    let (data, sha1) = checked(head, body)?;
    if data.is_empty() {
        return Err(bad_request("a part has at least one byte"));
    }
    let timestamp = state.now();
    let version = state
        .version_mut(&target)
        .filter(|version| version.action == "start");
    let version =
        version.ok_or_else(|| bad_request("No such file: it was finished or cancelled"))?;
    let answer = json!({"fileId": target, "partNumber": number, "contentLength": data.len(), "contentSha1": sha1,
        "uploadTimestamp": timestamp});
    version.parts.insert(
        number,
        super::state::Part {
            data,
            sha1,
            timestamp,
        },
    );
    Ok(Answer::json(&answer))
}

/// Serves a download by name or by id: the whole file, a range, or the headers alone.
pub(super) fn download(state: &State, head: &Head, call: &str) -> Result<Answer, Answer> {
    let key = state.key_of(head)?;
    let gone = || Answer::refused(404, "not_found", "File with such name does not exist");
    let (bucket, version) = if call == "b2_download_file_by_id" {
        let id = head
            .query
            .get("fileId")
            .ok_or_else(|| bad_request("fileId is missing"))?;
        let (bucket, _) = state.find(id).ok_or_else(gone)?;
        (
            bucket,
            state
                .version(id)
                .filter(|version| version.action == "upload")
                .ok_or_else(gone)?,
        )
    } else {
        let rest = head.path.strip_prefix("/file/").ok_or_else(gone)?;
        let (bucket, name) = rest.split_once('/').ok_or_else(gone)?;
        let name =
            decode(name).ok_or_else(|| bad_request("the name is not percent-encoded UTF-8"))?;
        let bucket = state
            .buckets
            .iter()
            .position(|known| known.name == bucket)
            .ok_or_else(gone)?;
        let versions = state.buckets[bucket].files.get(&name).ok_or_else(gone)?;
        let newest = versions
            .iter()
            .find(|version| version.action != "start")
            .ok_or_else(gone)?;
        (
            bucket,
            Some(newest)
                .filter(|version| version.action == "upload")
                .ok_or_else(gone)?,
        )
    };
    key.check(
        "readFiles",
        Some(&state.buckets[bucket]),
        Some(&version.name),
    )?;
    let len = version.data.len();
    let answer = match head.header("range").map(|range| parse_range(range, len)) {
        None => Answer::bytes(200, version.data.clone()),
        Some(None) => {
            return Err(Answer::refused(
                416,
                "range_not_satisfiable",
                "The Range header is beyond the file",
            ));
        }
        Some(Some((first, last))) => Answer::bytes(206, version.data[first..=last].to_vec())
            .with("Content-Range", &format!("bytes {first}-{last}/{len}")),
    };
    let answer = answer
        .with("Content-Type", &version.content_type)
        .with("Accept-Ranges", "bytes")
        .with("X-Bz-File-Id", &version.id)
        .with("X-Bz-File-Name", &encode(&version.name))
        .with("X-Bz-Upload-Timestamp", &version.timestamp.to_string())
        .with(
            "X-Bz-Content-Sha1",
            version.sha1.as_deref().unwrap_or("none"),
        );
    Ok(version.info.iter().fold(answer, |answer, (name, value)| {
        answer.with(&format!("X-Bz-Info-{name}"), &encode(value))
    }))
}

/// `bytes=5-9`, `bytes=5-` or `bytes=-5` within `len` bytes; an end beyond the file is the file's
/// end.
fn parse_range(text: &str, len: usize) -> Option<(usize, usize)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = match (first.parse::<usize>().ok(), last.parse::<usize>().ok()) {
        (Some(first), last) => (first, last.unwrap_or(usize::MAX).min(len.checked_sub(1)?)),
        (None, Some(tail)) => (len.saturating_sub(tail), len.checked_sub(1)?),
        (None, None) => return None,
    };
    (first <= last).then_some((first, last))
}
