//! [`B2Cause`]: the reason why a B2 call failed, in one form for all calls, and the reaction to it.

use crate::model::error_chain;
use crate::store::StoreErrorKind;
use crate::store::work::{is_outage_status, is_untrusted, transport_hint};
use serde::Deserialize;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// The stage at which a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum B2Stage {
    /// No connection: the request never reached the store.
    Connect,
    /// The connection broke, or no response came in time: the store may have carried out the
    /// request.
    Transport,
    /// A response arrived and could not be read.
    Reading,
    /// The store refused the request.
    Refused,
    /// This program found that the request cannot succeed.
    Ours(StoreErrorKind),
}

/// The reason why a call failed. Displays as `bad_bucket_id: the text of the store (HTTP 400)`.
#[derive(Debug, Clone)]
pub(super) struct B2Cause {
    pub(super) stage: B2Stage,
    pub(super) status: Option<u16>,
    pub(super) code: String,
    pub(super) text: String,
    /// The pause that the store asks for.
    pub(super) retry_after: Option<Duration>,
    /// A hint that is better than the one derived from status and code.
    pub(super) hint: Option<String>,
}

/// The body of every error response.
#[derive(Deserialize, Default)]
struct Refusal {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl From<reqwest::Error> for B2Cause {
    /// Drops the URL, because upload URLs are secret.
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let stage = match () {
            () if error.is_connect() => B2Stage::Connect,
            () if error.is_builder() => B2Stage::Ours(StoreErrorKind::Invalid),
            () if error.is_decode() => B2Stage::Reading,
            () => B2Stage::Transport,
        };
        Self {
            stage,
            text: error_chain(&error),
            ..Self::ours(StoreErrorKind::Unavailable, "")
        }
    }
}

impl B2Cause {
    /// Makes the cause for a fault that this program found, not the store.
    pub(super) fn ours(kind: StoreErrorKind, text: impl Into<String>) -> Self {
        let stage = B2Stage::Ours(kind);
        let text = text.into();
        Self {
            stage,
            status: None,
            code: String::new(),
            text,
            retry_after: None,
            hint: None,
        }
    }

    /// Makes the cause for an error response: `body` is B2's JSON, or any text from a proxy in
    /// between.
    pub(super) fn refused(status: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
        let stage = B2Stage::Refused;
        let status = Some(status);
        Self {
            stage,
            status,
            code: refusal.code,
            text: refusal.message,
            retry_after,
            hint: None,
        }
    }

    /// Makes the cause for a successful response with unreadable content.
    pub(super) fn unreadable(error: &dyn Error) -> Self {
        let text = format!("the answer cannot be read: {}", error_chain(error));
        Self {
            stage: B2Stage::Reading,
            text,
            ..Self::ours(StoreErrorKind::Unavailable, "")
        }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether the token of the account or of an upload URL has expired.
    pub(super) fn is_token(&self) -> bool {
        self.stage == B2Stage::Refused
            && matches!(self.code.as_str(), "expired_auth_token" | "bad_auth_token")
    }

    /// Whether the file no longer exists; B2 has several codes for this.
    pub(super) fn is_gone(&self) -> bool {
        matches!(
            self.code.as_str(),
            "file_not_present" | "no_such_file" | "not_found"
        ) || self.status == Some(404)
    }

    /// Whether the bytes were damaged in transit, so that they must be sent again.
    pub(super) fn is_garbled(&self) -> bool {
        let text = self.text.to_ascii_lowercase();
        self.status == Some(400)
            && (text.contains("sha1 did not match") || text.contains("checksum did not match"))
    }

    /// Whether a retry of the same call may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self.stage {
            B2Stage::Connect | B2Stage::Transport | B2Stage::Reading => true,
            B2Stage::Refused => matches!(self.status, Some(408 | 429 | 500..=599)),
            B2Stage::Ours(_) => false,
        }
    }

    /// Whether the store was not reached, did not answer, or could not serve any request: a wait
    /// may help.
    pub(super) fn is_outage(&self) -> bool {
        match self.stage {
            B2Stage::Connect | B2Stage::Transport => !is_untrusted(&self.text),
            B2Stage::Reading => true,
            B2Stage::Refused => self.status.is_some_and(is_outage_status),
            B2Stage::Ours(_) => false,
        }
    }

    /// Whether an upload must be retried through another URL.
    pub(super) fn wants_new_url(&self) -> bool {
        self.is_transient()
            || self.is_token()
            || self.is_garbled()
            || self.code == "auth_token_limit"
    }

    /// Whether the store may have carried out the request without reporting it. (With 503 B2 asks
    /// for another URL.)
    pub(super) fn is_ambiguous(&self) -> bool {
        let answered = matches!(self.status, Some(..500 | 503));
        matches!(self.stage, B2Stage::Transport | B2Stage::Reading)
            || (self.stage == B2Stage::Refused && !answered)
    }

    /// Returns the kind, on which callers branch.
    pub(super) fn kind(&self) -> StoreErrorKind {
        match self.stage {
            B2Stage::Ours(kind) => kind,
            B2Stage::Connect | B2Stage::Transport | B2Stage::Reading => StoreErrorKind::Unavailable,
            B2Stage::Refused => self.kind_of_code().unwrap_or_else(|| self.kind_of_status()),
        }
    }

    fn kind_of_code(&self) -> Option<StoreErrorKind> {
        Some(match self.code.as_str() {
            code if code.ends_with("cap_exceeded") => StoreErrorKind::Full,
            "bad_bucket_id" => StoreErrorKind::NoBucket,
            "file_not_present" | "no_such_file" => StoreErrorKind::NotFound,
            "part_sha1_mismatch" | "missing_part" => StoreErrorKind::Corrupt,
            _ if self.is_garbled() => StoreErrorKind::Corrupt,
            _ => return None,
        })
    }

    fn kind_of_status(&self) -> StoreErrorKind {
        match self.status {
            Some(401 | 403) => StoreErrorKind::Denied,
            Some(404) => StoreErrorKind::NotFound,
            Some(416) => StoreErrorKind::Corrupt,
            Some(429) => StoreErrorKind::Throttled,
            Some(408) => StoreErrorKind::Unavailable,
            Some(300..=499) => StoreErrorKind::Invalid,
            _ => StoreErrorKind::Unavailable,
        }
    }

    /// Returns the remedy for a failure of the call `api`.
    pub(super) fn hint(&self, api: &str, endpoint: &str) -> Option<String> {
        if self.hint.is_some() {
            return self.hint.clone();
        }
        Some(match (self.stage, self.status, self.kind()) {
            (B2Stage::Connect | B2Stage::Transport, ..) => transport_hint(&self.text, endpoint),
            (B2Stage::Refused, _, StoreErrorKind::Full) => {
                "a cap of the B2 account is reached: raise it under Caps & Alerts, or make room".to_owned()
            }
            (B2Stage::Refused, Some(401), _) if api == AUTHORIZE => {
                "B2 does not accept this application key: the id or the key is wrong, or the key was deleted or expired"
                    .to_owned()
            }
            (B2Stage::Refused, Some(401), _) if !self.is_token() => format!(
                "this application key may not do {api} here: it needs the capability {} for the bucket and the prefix",
                capability(api)
            ),
            _ => return None,
        })
    }
}

/// The call that gives an account its token.
pub(super) const AUTHORIZE: &str = "b2_authorize_account";

/// Returns the capability that a call needs.
fn capability(api: &str) -> &'static str {
    match api {
        "b2_list_buckets" => "listBuckets",
        "b2_list_file_versions" | "b2_list_unfinished_large_files" => "listFiles",
        "b2_download_file_by_name" => "readFiles",
        "b2_delete_file_version" => "deleteFiles",
        _ => "writeFiles",
    }
}

impl fmt::Display for B2Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.text.as_str()) {
            ("", "") => f.write_str("the store refused without a message")?,
            ("", text) => f.write_str(text)?,
            (code, "") => f.write_str(code)?,
            (code, text) => write!(f, "{code}: {text}")?,
        }
        self.status
            .map_or(Ok(()), |status| write!(f, " (HTTP {status})"))
    }
}

impl Error for B2Cause {}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str, text: &str) -> B2Cause {
        let body = format!(r#"{{"status": {status}, "code": "{code}", "message": "{text}"}}"#);
        B2Cause::refused(status, body.as_bytes(), None)
    }

    #[test]
    fn b2_error_code_takes_precedence_over_the_status() {
        use StoreErrorKind::*;
        for (status, code, text, kind, transient, new_url, ambiguous) in [
            (401, "expired_auth_token", "", Denied, false, true, false),
            (401, "unauthorized", "", Denied, false, false, false),
            (403, "storage_cap_exceeded", "", Full, false, false, false),
            (403, "cap_exceeded", "", Full, false, false, false),
            (403, "access_denied", "", Denied, false, false, false),
            (400, "bad_bucket_id", "", NoBucket, false, false, false),
            (400, "auth_token_limit", "", Invalid, false, true, false),
            (
                400,
                "bad_request",
                "Sha1 did not match data received",
                Corrupt,
                false,
                true,
                false,
            ),
            (400, "part_sha1_mismatch", "", Corrupt, false, false, false),
            (400, "bad_request", "no", Invalid, false, false, false),
            (404, "not_found", "", NotFound, false, false, false),
            (408, "request_timeout", "", Unavailable, true, true, false),
            (
                416,
                "range_not_satisfiable",
                "",
                Corrupt,
                false,
                false,
                false,
            ),
            (429, "too_many_requests", "", Throttled, true, true, false),
            (500, "internal_error", "", Unavailable, true, true, true),
            (
                503,
                "service_unavailable",
                "",
                Unavailable,
                true,
                true,
                false,
            ),
        ] {
            let cause = refused(status, code, text);
            assert_eq!(
                (
                    cause.kind(),
                    cause.is_transient(),
                    cause.wants_new_url(),
                    cause.is_ambiguous()
                ),
                (kind, transient, new_url, ambiguous),
                "{status} {code}"
            );
        }
    }

    #[test]
    fn b2_error_hints_name_the_remedy() {
        for (cause, api, part) in [
            (
                refused(401, "unauthorized", ""),
                "b2_delete_file_version",
                "deleteFiles",
            ),
            (
                refused(401, "unauthorized", ""),
                "b2_get_upload_url",
                "writeFiles",
            ),
            (
                refused(401, "unauthorized", ""),
                AUTHORIZE,
                "does not accept",
            ),
            (
                refused(401, "bad_auth_token", ""),
                AUTHORIZE,
                "does not accept",
            ),
            (
                refused(403, "storage_cap_exceeded", ""),
                "b2_upload_file",
                "Caps & Alerts",
            ),
            (
                B2Cause::ours(StoreErrorKind::Denied, "x").with_hint("do y"),
                AUTHORIZE,
                "do y",
            ),
        ] {
            let hint = cause.hint(api, "https://e").unwrap();
            assert!(hint.contains(part), "{hint}");
        }
        assert_eq!(
            refused(500, "internal_error", "").hint(AUTHORIZE, "https://e"),
            None
        );
    }

    #[test]
    fn text_names_code_and_status() {
        assert_eq!(
            refused(400, "bad_request", "what").to_string(),
            "bad_request: what (HTTP 400)"
        );
        assert_eq!(
            B2Cause::refused(502, b"<html>", None).to_string(),
            "the store refused without a message (HTTP 502)"
        );
    }
}
