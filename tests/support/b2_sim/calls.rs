//! The calls whose request and response are JSON.

use super::Inner;
use super::http::{Answer, Head};
use super::state::{
    Bucket, Key, State, Upload, Version, bad_request, check_info, check_name, check_retention,
    unauthorized,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

type Called = Result<Answer, Answer>;

/// The fields that each call accepts.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "b2_list_buckets",
        &["accountId", "bucketId", "bucketName", "bucketTypes"],
    ),
    (
        "b2_create_bucket",
        &[
            "accountId",
            "bucketName",
            "bucketType",
            "bucketInfo",
            "corsRules",
            "lifecycleRules",
            "fileLockEnabled",
        ],
    ),
    ("b2_get_upload_url", &["bucketId"]),
    ("b2_get_upload_part_url", &["fileId"]),
    (
        "b2_start_large_file",
        &[
            "bucketId",
            "fileName",
            "contentType",
            "fileInfo",
            "serverSideEncryption",
            "fileRetention",
            "legalHold",
        ],
    ),
    ("b2_finish_large_file", &["fileId", "partSha1Array"]),
    ("b2_cancel_large_file", &["fileId"]),
    (
        "b2_list_parts",
        &["fileId", "startPartNumber", "maxPartCount"],
    ),
    (
        "b2_list_unfinished_large_files",
        &["bucketId", "namePrefix", "startFileId", "maxFileCount"],
    ),
    (
        "b2_list_file_versions",
        &[
            "bucketId",
            "startFileName",
            "startFileId",
            "maxFileCount",
            "prefix",
            "delimiter",
        ],
    ),
    (
        "b2_list_file_names",
        &[
            "bucketId",
            "startFileName",
            "maxFileCount",
            "prefix",
            "delimiter",
        ],
    ),
    ("b2_get_file_info", &["fileId"]),
    ("b2_hide_file", &["bucketId", "fileName"]),
    (
        "b2_delete_file_version",
        &["fileName", "fileId", "bypassGovernance"],
    ),
    (
        "b2_update_file_retention",
        &["fileName", "fileId", "fileRetention", "bypassGovernance"],
    ),
];

pub(super) fn authorize(inner: &Inner, state: &mut State, head: &Head) -> Called {
    let version = head
        .version()
        .filter(|version| (1..=inner.options.api_version_max).contains(version));
    let version =
        version.ok_or_else(|| Answer::refused(404, "not_found", "no such version of the API"))?;
    let basic = head
        .header("authorization")
        .and_then(|given| given.strip_prefix("Basic "));
    let pair = basic
        .and_then(|basic| STANDARD.decode(basic).ok())
        .and_then(|pair| String::from_utf8(pair).ok());
    let (id, secret) = pair
        .as_deref()
        .and_then(|pair| pair.split_once(':'))
        .unwrap_or_default();
    let key = state
        .keys
        .get(id)
        .filter(|key| key.secret == secret)
        .cloned();
    let key = key.ok_or_else(|| Answer::refused(401, "bad_auth_token", "invalid key id or key"))?;
    let token = format!("4_{id}_{:016x}_secret", state.number());
    state.tokens.insert(token.clone(), key.clone());
    let known = |name: &String| state.buckets.iter().find(|bucket| bucket.name == *name);
    let buckets = key.buckets.as_ref().map(|names| {
        let one = |name| json!({"id": known(name).map(|bucket| &bucket.id), "name": name});
        names.iter().map(one).collect::<Vec<_>>()
    });
    let mut storage = json!({
        "apiUrl": inner.endpoint(), "downloadUrl": inner.endpoint(), "s3ApiUrl": inner.endpoint(),
        "recommendedPartSize": inner.options.part_bytes_min.max(100_000),
        "absoluteMinimumPartSize": inner.options.part_bytes_min, "infoType": "storageApi",
    });
    let first = |field: &str| {
        buckets
            .as_ref()
            .and_then(|buckets| buckets.first())
            .map_or(Value::Null, |b| b[field].clone())
    };
    let mut whole = json!({"accountId": "account0001", "authorizationToken": token});
    match version {
        4 => {
            storage["allowed"] = json!({"buckets": buckets, "capabilities": key.capabilities, "namePrefix": key.prefix});
        }
        3 => {
            storage["bucketId"] = first("id");
            storage["bucketName"] = first("name");
            storage["capabilities"] = json!(key.capabilities);
            storage["namePrefix"] = json!(key.prefix);
        }
        _ => {
            merge(&mut whole, storage.clone());
            whole["allowed"] = json!({"bucketId": first("id"), "bucketName": first("name"),
                "capabilities": key.capabilities, "namePrefix": key.prefix});
        }
    }
    if version >= 3 {
        whole["apiInfo"] = json!({"storageApi": storage, "groupsApi": {}});
    }
    Ok(Answer::json(&whole))
}

fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

/// A request's fields.
struct Fields(Map<String, Value>);

impl Fields {
    fn text(&self, name: &str) -> Result<String, Answer> {
        self.optional(name)
            .ok_or_else(|| bad_request(&format!("required field {name} is missing")))
    }

    fn optional(&self, name: &str) -> Option<String> {
        self.0.get(name).and_then(Value::as_str).map(str::to_owned)
    }

    fn count(&self, name: &str, default: usize, max: usize) -> Result<usize, Answer> {
        let given = match self.0.get(name) {
            None | Some(Value::Null) => return Ok(default),
            Some(given) => given.as_u64().and_then(|count| usize::try_from(count).ok()),
        };
        // B2 takes 0 for its default.
        let given = given
            .filter(|count| *count <= max)
            .ok_or_else(|| bad_request(&format!("{name} is out of range")))?;
        Ok(if given == 0 { default } else { given })
    }
}

pub(super) fn json_call(
    inner: &Inner,
    state: &mut State,
    head: &Head,
    call: &str,
    body: &[u8],
) -> Called {
    let known = FIELDS.iter().find(|(name, _)| *name == call);
    let version_known = head
        .version()
        .is_some_and(|version| (1..=inner.options.api_version_max).contains(&version));
    let Some((_, fields)) = known.filter(|_| version_known) else {
        return Err(Answer::refused(
            404,
            "not_found",
            &format!("no call {call} in this version of the API"),
        ));
    };
    let key = state.key_of(head)?;
    let Ok(Value::Object(map)) = serde_json::from_slice(body) else {
        return Err(Answer::refused(
            400,
            "bad_json",
            "the body is no JSON object",
        ));
    };
    if let Some(unknown) = map.keys().find(|name| !fields.contains(&name.as_str())) {
        return Err(Answer::refused(
            400,
            "bad_json",
            &format!("unknown field in {call}: {unknown}"),
        ));
    }
    let fields = Fields(map);
    match call {
        "b2_list_buckets" => list_buckets(state, &key, &fields),
        "b2_create_bucket" => create_bucket(state, &key, &fields),
        "b2_get_upload_url" | "b2_get_upload_part_url" => {
            upload_url(inner, state, &key, &fields, call)
        }
        "b2_start_large_file" => start(state, &key, &fields, head.version()),
        "b2_finish_large_file" => finish(inner, state, &key, &fields, head.version()),
        "b2_cancel_large_file" => cancel(state, &key, &fields),
        "b2_list_parts" => list_parts(state, &key, &fields),
        "b2_list_unfinished_large_files" => list_unfinished(inner, state, &key, &fields),
        "b2_list_file_versions" => list_versions(inner, state, &key, &fields, head.version()),
        "b2_list_file_names" => list_names(inner, state, &key, &fields, head.version()),
        "b2_get_file_info" => file_info(state, &key, &fields, head.version()),
        "b2_hide_file" => hide(state, &key, &fields, head.version()),
        "b2_update_file_retention" => update_retention(state, &key, &fields),
        _ => delete(state, &key, &fields),
    }
}

/// Writes a version as listings and responses show it.
pub(super) fn file_json(
    version: &Version,
    bucket_id: &str,
    api_version: Option<u32>,
    key: &Key,
) -> Value {
    let may_read = key
        .capabilities
        .iter()
        .any(|has| has == "readFileRetentions");
    let (mode, until) = version
        .retention
        .as_ref()
        .map_or((None, None), |(mode, until)| (Some(mode), Some(until)));
    let retention = may_read.then(|| json!({"mode": mode, "retainUntilTimestamp": until}));
    let mut file = json!({
        "accountId": "account0001",
        "action": version.action,
        "bucketId": bucket_id,
        "contentLength": version.data.len(),
        "contentSha1": version.sha1,
        "contentMd5": null,
        "contentType": if version.action == "hide" { "application/x-bz-hide-marker" } else { &version.content_type },
        "fileId": version.id,
        "fileInfo": version.info,
        "fileName": version.name,
        "fileRetention": {"isClientAuthorizedToRead": may_read, "value": retention},
        "legalHold": {"isClientAuthorizedToRead": false, "value": null},
        "replicationStatus": null,
        "serverSideEncryption": {"algorithm": null, "mode": null},
        "uploadTimestamp": version.timestamp,
    });
    if api_version == Some(1) {
        file["size"] = file["contentLength"].clone();
    }
    file
}

fn list_buckets(state: &State, key: &Key, fields: &Fields) -> Called {
    key.check("listBuckets", None, None)?;
    let (name, id) = (fields.optional("bucketName"), fields.optional("bucketId"));
    let asked = |bucket: &&Bucket| {
        name.as_ref().is_none_or(|name| *name == bucket.name)
            && id.as_ref().is_none_or(|id| *id == bucket.id)
    };
    if let Some(allowed) = &key.buckets {
        let named = state
            .buckets
            .iter()
            .filter(asked)
            .all(|bucket| allowed.contains(&bucket.name));
        if (name.is_none() && id.is_none()) || !named {
            return Err(unauthorized(
                "a restricted key lists only its own bucket, by name or id",
            ));
        }
    }
    Ok(Answer::json(
        &json!({"buckets": state.buckets.iter().filter(asked).map(bucket_json).collect::<Vec<_>>()}),
    ))
}

fn create_bucket(state: &mut State, key: &Key, fields: &Fields) -> Called {
    key.check("writeBuckets", None, None)?;
    let name = fields.text("bucketName")?;
    if state.buckets.iter().any(|bucket| bucket.name == name) {
        return Err(Answer::refused(
            400,
            "duplicate_bucket_name",
            "Bucket name is already in use.",
        ));
    }
    state.add_bucket(&name);
    Ok(Answer::json(&bucket_json(
        &state.buckets[state.buckets.len() - 1],
    )))
}

fn bucket_json(bucket: &Bucket) -> Value {
    json!({
        "accountId": "account0001", "bucketId": bucket.id, "bucketName": bucket.name, "bucketType": if bucket.public { "allPublic" } else { "allPrivate" },
        "bucketInfo": {}, "corsRules": [], "lifecycleRules": bucket.lifecycle, "options": [], "revision": 1,
        "defaultServerSideEncryption": {"isClientAuthorizedToRead": true, "value": {"algorithm": null, "mode": "none"}},
        "fileLockConfiguration": {"isClientAuthorizedToRead": true, "value":
            {"isFileLockEnabled": bucket.locks, "defaultRetention": {"mode": null, "period": null}}},
        "replicationConfiguration": {"isClientAuthorizedToRead": true, "value": null},
    })
}

/// Returns the unfinished large file with this id, and its bucket.
fn unfinished(state: &State, file_id: &str) -> Result<(usize, String), Answer> {
    let begun = state
        .version(file_id)
        .is_some_and(|version| version.action == "start");
    state
        .find(file_id)
        .filter(|_| begun)
        .ok_or_else(|| bad_request(&format!("No active upload for: {file_id}")))
}

fn upload_url(inner: &Inner, state: &mut State, key: &Key, fields: &Fields, call: &str) -> Called {
    let (id_field, upload) = match call {
        "b2_get_upload_url" => ("bucketId", "b2_upload_file"),
        _ => ("fileId", "b2_upload_part"),
    };
    let target = fields.text(id_field)?;
    let (bucket, name) = match id_field {
        "bucketId" => (state.bucket_index(&target)?, None),
        _ => unfinished(state, &target).map(|(bucket, name)| (bucket, Some(name)))?,
    };
    key.check("writeFiles", Some(&state.buckets[bucket]), name.as_deref())?;
    let number = state.number();
    let path = format!("/b2api/v4/{upload}/{target}/{number:08x}");
    let token = format!("upload_{number:016x}_secret");
    let answer = json!({id_field: target, "uploadUrl": format!("{}{path}", inner.endpoint()), "authorizationToken": token});
    state.uploads.insert(
        token,
        Upload {
            key: key.clone(),
            target,
            path,
            busy: false,
        },
    );
    Ok(Answer::json(&answer))
}

fn start(state: &mut State, key: &Key, fields: &Fields, api_version: Option<u32>) -> Called {
    let bucket = state.bucket_index(&fields.text("bucketId")?)?;
    let name = fields.text("fileName")?;
    check_name(&name)?;
    key.check("writeFiles", Some(&state.buckets[bucket]), Some(&name))?;
    let content_type = fields.text("contentType")?;
    let info = match fields.0.get("fileInfo") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(info) => {
            serde_json::from_value(info.clone()).map_err(|_| bad_request("fileInfo holds texts"))?
        }
    };
    check_info(&info)?;
    let retention = match fields.0.get("fileRetention") {
        None | Some(Value::Null) => None,
        Some(given) => Some(retention_of(key, &state.buckets[bucket], given)?),
    };
    let begun = Version {
        action: "start",
        content_type,
        info,
        retention,
        ..Version::new(&name, Some("none".to_owned()), Vec::new())
    };
    let bucket_id = state.buckets[bucket].id.clone();
    let begun = state.add_version(bucket, begun);
    Ok(Answer::json(&file_json(
        begun,
        &bucket_id,
        api_version,
        key,
    )))
}

fn retention_of(key: &Key, bucket: &Bucket, given: &Value) -> Result<(String, u64), Answer> {
    let mode = given["mode"].as_str().unwrap_or_default();
    check_retention(key, bucket, mode, given["retainUntilTimestamp"].as_u64())
}

/// Moves the end of a lock. A later end is allowed; an earlier one needs a right that no key here
/// has.
fn update_retention(state: &mut State, key: &Key, fields: &Fields) -> Called {
    let (name, id) = (fields.text("fileName")?, fields.text("fileId")?);
    let gone = || {
        Answer::refused(
            400,
            "file_not_present",
            &format!("File not present: {name} {id}"),
        )
    };
    let (bucket, _) = state
        .find(&id)
        .filter(|(_, found)| *found == name)
        .ok_or_else(gone)?;
    let given = fields.0.get("fileRetention").cloned().unwrap_or_default();
    let retention = retention_of(key, &state.buckets[bucket], &given)?;
    let version = state.version_mut(&id).ok_or_else(gone)?;
    if version
        .retention
        .as_ref()
        .is_some_and(|(_, until)| *until > retention.1)
    {
        return Err(Answer::refused(
            401,
            "access_denied",
            "a lock cannot be made shorter",
        ));
    }
    version.retention = Some(retention);
    Ok(Answer::json(
        &json!({"fileName": name, "fileId": id, "fileRetention": given}),
    ))
}

fn finish(
    inner: &Inner,
    state: &mut State,
    key: &Key,
    fields: &Fields,
    api_version: Option<u32>,
) -> Called {
    let id = fields.text("fileId")?;
    let (bucket, name) = unfinished(state, &id)?;
    key.check("writeFiles", Some(&state.buckets[bucket]), Some(&name))?;
    let sha1s = fields
        .0
        .get("partSha1Array")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let bucket_id = state.buckets[bucket].id.clone();
    let version = state.version_mut(&id).ok_or_else(|| bad_request("gone"))?;
    if sha1s.is_empty() || sha1s.len() > 10_000 {
        return Err(bad_request("large files have 1 to 10000 parts"));
    }
    for (number, said) in (1_u32..).zip(&sha1s) {
        let missing = || {
            Answer::refused(
                400,
                "missing_part",
                &format!("Part number {number} has not been uploaded"),
            )
        };
        let part = version.parts.get(&number).ok_or_else(missing)?;
        if said.as_str() != Some(part.sha1.trim_start_matches("unverified:")) {
            let message = format!("Checksum mismatch for part number {number}");
            return Err(Answer::refused(400, "part_sha1_mismatch", &message));
        }
        if part.data.len() < inner.options.part_bytes_min
            && usize::try_from(number).unwrap() < sha1s.len()
        {
            return Err(bad_request(&format!(
                "Part number {number} is smaller than the smallest"
            )));
        }
    }
    if version.parts.len() != sha1s.len() {
        return Err(bad_request("there are more parts than partSha1Array names"));
    }
    version.data = std::mem::take(&mut version.parts)
        .into_values()
        .flat_map(|part| part.data)
        .collect();
    version.action = "upload";
    Ok(Answer::json(&file_json(
        version,
        &bucket_id,
        api_version,
        key,
    )))
}

fn cancel(state: &mut State, key: &Key, fields: &Fields) -> Called {
    let id = fields.text("fileId")?;
    let (bucket, name) = unfinished(state, &id)?;
    key.check("writeFiles", Some(&state.buckets[bucket]), Some(&name))?;
    state.remove(bucket, &name, &id);
    let bucket_id = &state.buckets[bucket].id;
    Ok(Answer::json(
        &json!({"accountId": "account0001", "bucketId": bucket_id, "fileId": id, "fileName": name}),
    ))
}

fn list_parts(state: &State, key: &Key, fields: &Fields) -> Called {
    let id = fields.text("fileId")?;
    let (bucket, name) = unfinished(state, &id)?;
    key.check("writeFiles", Some(&state.buckets[bucket]), Some(&name))?;
    let max = fields.count("maxPartCount", 100, 1000)?;
    let first = u32::try_from(fields.count("startPartNumber", 1, 10_000)?).unwrap_or(1);
    let version = state.version(&id).ok_or_else(|| bad_request("gone"))?;
    let mut parts = version.parts.range(first..);
    let one = |(number, part): (&u32, &super::state::Part)| {
        json!({"fileId": id, "partNumber": number, "contentLength": part.data.len(), "contentSha1": part.sha1,
            "contentMd5": null, "uploadTimestamp": part.timestamp})
    };
    let page: Vec<Value> = parts.by_ref().take(max).map(one).collect();
    Ok(Answer::json(
        &json!({"parts": page, "nextPartNumber": parts.next().map(|(number, _)| number)}),
    ))
}

fn list_unfinished(inner: &Inner, state: &State, key: &Key, fields: &Fields) -> Called {
    let bucket = &state.buckets[state.bucket_index(&fields.text("bucketId")?)?];
    let prefix = fields.optional("namePrefix").unwrap_or_default();
    key.check("listFiles", Some(bucket), Some(&prefix))?;
    let max = fields
        .count("maxFileCount", 100, 100)?
        .min(inner.options.page_max);
    let mut begun: Vec<&Version> = bucket
        .files
        .values()
        .flatten()
        .filter(|v| v.action == "start")
        .collect();
    begun.retain(|version| version.name.starts_with(&prefix));
    begun.sort_by(|a, b| a.id.cmp(&b.id));
    let start = fields.optional("startFileId").unwrap_or_default();
    let mut rest = begun.into_iter().skip_while(|version| version.id < start);
    let page: Vec<Value> = rest
        .by_ref()
        .take(max)
        .map(|version| file_json(version, &bucket.id, Some(2), key))
        .collect();
    Ok(Answer::json(
        &json!({"files": page, "nextFileId": rest.next().map(|version| &version.id)}),
    ))
}

/// Folds names after a delimiter into one `folder` each, and keeps the order.
fn fold(
    entries: Vec<(String, Value)>,
    prefix: &str,
    delimiter: Option<&str>,
) -> Vec<(String, Value)> {
    let Some(delimiter) = delimiter.filter(|delimiter| !delimiter.is_empty()) else {
        return entries;
    };
    let mut folded: Vec<(String, Value)> = Vec::new();
    for (name, entry) in entries {
        match name[prefix.len()..].find(delimiter) {
            None => folded.push((name, entry)),
            Some(at) => {
                let folder = name[..prefix.len() + at + delimiter.len()].to_owned();
                if folded.last().is_none_or(|(last, _)| *last != folder) {
                    let entry = json!({"action": "folder", "fileName": folder, "fileId": null, "contentLength": 0,
                        "contentSha1": null, "contentType": null, "fileInfo": {}, "uploadTimestamp": 0, "size": 0,
                        "accountId": "account0001"});
                    folded.push((folder, entry));
                }
            }
        }
    }
    folded
}

fn list_versions(
    inner: &Inner,
    state: &State,
    key: &Key,
    fields: &Fields,
    api_version: Option<u32>,
) -> Called {
    let bucket = &state.buckets[state.bucket_index(&fields.text("bucketId")?)?];
    let prefix = fields.optional("prefix").unwrap_or_default();
    key.check("listFiles", Some(bucket), Some(&prefix))?;
    let max = fields
        .count("maxFileCount", 100, 10_000)?
        .min(inner.options.page_max);
    let (start, start_id) = (
        fields.optional("startFileName"),
        fields.optional("startFileId"),
    );
    if start.is_none() && start_id.is_some() {
        return Err(bad_request("startFileId needs startFileName"));
    }
    let start = start.unwrap_or_default();
    let from = if start < prefix {
        prefix.clone()
    } else {
        start.clone()
    };
    let named = bucket
        .files
        .range(from..)
        .take_while(|(name, _)| name.starts_with(&prefix));
    let mut versions: Vec<&Version> = named.flat_map(|(_, versions)| versions).collect();
    if let Some(id) = start_id {
        let at = versions
            .iter()
            .position(|version| version.name == start && version.id == id);
        versions.drain(..at.unwrap_or(0));
    }
    let entries = versions.iter().map(|version| {
        (
            version.name.clone(),
            file_json(version, &bucket.id, api_version, key),
        )
    });
    let mut entries = fold(
        entries.collect(),
        &prefix,
        fields.optional("delimiter").as_deref(),
    );
    let next = entries.split_off(max.min(entries.len())).into_iter().next();
    let files: Vec<Value> = entries.into_iter().map(|(_, entry)| entry).collect();
    let next_id = next.as_ref().map(|(_, entry)| entry["fileId"].clone());
    let next_name = next.map(|(name, _)| name);
    Ok(Answer::json(
        &json!({"files": files, "nextFileName": next_name, "nextFileId": next_id}),
    ))
}

fn list_names(
    inner: &Inner,
    state: &State,
    key: &Key,
    fields: &Fields,
    api_version: Option<u32>,
) -> Called {
    let bucket = &state.buckets[state.bucket_index(&fields.text("bucketId")?)?];
    let prefix = fields.optional("prefix").unwrap_or_default();
    key.check("listFiles", Some(bucket), Some(&prefix))?;
    let max = fields
        .count("maxFileCount", 100, 10_000)?
        .min(inner.options.page_max);
    let from = fields
        .optional("startFileName")
        .unwrap_or_default()
        .max(prefix.clone());
    let named = bucket
        .files
        .range(from..)
        .take_while(|(name, _)| name.starts_with(&prefix));
    let newest =
        named.filter_map(|(_, versions)| versions.iter().find(|version| version.action != "start"));
    let visible = newest.filter(|version| version.action == "upload");
    let entries = visible
        .map(|version| {
            (
                version.name.clone(),
                file_json(version, &bucket.id, api_version, key),
            )
        })
        .collect();
    let mut entries = fold(entries, &prefix, fields.optional("delimiter").as_deref());
    let next = entries
        .split_off(max.min(entries.len()))
        .into_iter()
        .next()
        .map(|(name, _)| name);
    let files: Vec<Value> = entries.into_iter().map(|(_, entry)| entry).collect();
    Ok(Answer::json(&json!({"files": files, "nextFileName": next})))
}

fn file_info(state: &State, key: &Key, fields: &Fields, api_version: Option<u32>) -> Called {
    let id = fields.text("fileId")?;
    let gone = || Answer::refused(404, "not_found", &format!("file {id} does not exist"));
    let (bucket, name) = state.find(&id).ok_or_else(gone)?;
    key.check("readFiles", Some(&state.buckets[bucket]), Some(&name))?;
    let version = state.version(&id).ok_or_else(gone)?;
    Ok(Answer::json(&file_json(
        version,
        &state.buckets[bucket].id,
        api_version,
        key,
    )))
}

fn hide(state: &mut State, key: &Key, fields: &Fields, api_version: Option<u32>) -> Called {
    let bucket = state.bucket_index(&fields.text("bucketId")?)?;
    let name = fields.text("fileName")?;
    key.check("writeFiles", Some(&state.buckets[bucket]), Some(&name))?;
    let newest = state.buckets[bucket]
        .files
        .get(&name)
        .and_then(|v| v.iter().find(|version| version.action != "start"));
    match newest.map(|version| version.action) {
        None => {
            return Err(Answer::refused(
                400,
                "no_such_file",
                &format!("File not present: {name}"),
            ));
        }
        Some("hide") => {
            return Err(Answer::refused(
                400,
                "already_hidden",
                "File already hidden",
            ));
        }
        Some(_) => {}
    }
    let bucket_id = state.buckets[bucket].id.clone();
    Ok(Answer::json(&file_json(
        state.add_marker(bucket, &name),
        &bucket_id,
        api_version,
        key,
    )))
}

fn delete(state: &mut State, key: &Key, fields: &Fields) -> Called {
    let (name, id) = (fields.text("fileName")?, fields.text("fileId")?);
    key.check("deleteFiles", None, Some(&name))?;
    let gone = || {
        Answer::refused(
            400,
            "file_not_present",
            &format!("File not present: {name} {id}"),
        )
    };
    let (bucket, _) = state
        .find(&id)
        .filter(|(_, found)| *found == name)
        .ok_or_else(gone)?;
    key.check("deleteFiles", Some(&state.buckets[bucket]), Some(&name))?;
    let now = state.now();
    let until = state
        .version(&id)
        .and_then(|version| version.retention.as_ref())
        .map_or(0, |(_, until)| *until);
    if until > now {
        return Err(Answer::refused(
            401,
            "access_denied",
            "the file is under retention",
        ));
    }
    state.remove(bucket, &name, &id);
    Ok(Answer::json(&json!({"fileName": name, "fileId": id})))
}
