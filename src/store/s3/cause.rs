//! [`S3Cause`]: the reason why an S3 request failed, in one form for all requests, and the kind of
//! the failure.

use crate::model::error_chain;
use crate::store::StoreErrorKind;
use crate::store::work::{
    http_date, is_outage_status, is_untrusted, no_bucket_hint, transport_hint,
};
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;
use jiff::Timestamp;
use std::error::Error;
use std::fmt;

/// The stage at which a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum S3Stage {
    /// The request was never sent.
    Building,
    /// The request got no response, so the store may have obeyed it.
    Transport,
    /// No response arrived in time.
    TimeOut,
    /// A response began and broke off.
    Reading,
    /// A response arrived and could not be understood.
    Unreadable,
    /// The store refused the request.
    Refused,
}

/// The reason why a request failed. Displays as `NoSuchBucket: the text of the store (HTTP 404,
/// request 1234)`.
#[derive(Debug)]
pub(super) struct S3Cause {
    pub(super) stage: S3Stage,
    pub(super) status: Option<u16>,
    pub(super) code: Option<String>,
    /// The store's message, or the chain of errors in transit.
    pub(super) text: String,
    request_id: Option<String>,
    /// The actual region of the bucket, if the store reports it.
    region: Option<String>,
    /// The time of the response by the store's clock, from the `Date` header.
    date: Option<String>,
}

impl<E> From<SdkError<E>> for S3Cause
where
    E: ProvideErrorMetadata + RequestId + Error + 'static,
{
    fn from(error: SdkError<E>) -> Self {
        let status = error.raw_response().map(|raw| raw.status().as_u16());
        let service = error.as_service_error();
        let code = service
            .and_then(|service| service.code())
            .map(str::to_owned);
        let stage = match &error {
            SdkError::ConstructionFailure(_) => S3Stage::Building,
            SdkError::TimeoutError(_) => S3Stage::TimeOut,
            SdkError::DispatchFailure(failure) if failure.is_timeout() => S3Stage::TimeOut,
            SdkError::DispatchFailure(_) => S3Stage::Transport,
            // The SDK reports a successful response that it could not read as an error without a
            // code.
            SdkError::ServiceError(_)
                if code.is_none() && status.is_some_and(|status| status < 300) =>
            {
                S3Stage::Unreadable
            }
            SdkError::ServiceError(_) => S3Stage::Refused,
            _ => S3Stage::Reading,
        };
        let header = |name| {
            error
                .raw_response()
                .and_then(|raw: &HttpResponse| raw.headers().get(name))
        };
        let text = match service {
            Some(service) => service
                .message()
                .map(str::to_owned)
                .or_else(|| service.source().map(error_chain)),
            None => Some(error_chain(error.source().unwrap_or(&error))),
        };
        Self {
            stage,
            status,
            text: text.unwrap_or_default(),
            request_id: header("x-amz-request-id").map(str::to_owned),
            region: header("x-amz-bucket-region").map(str::to_owned),
            date: header("date").map(str::to_owned),
            code,
        }
    }
}

impl fmt::Display for S3Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.as_deref().filter(|code| !code.is_empty());
        match (code, self.text.as_str()) {
            (Some(code), "") => f.write_str(code)?,
            (Some(code), text) => write!(f, "{code}: {text}")?,
            (None, "") => f.write_str("the store refused without a message")?,
            (None, text) => f.write_str(text)?,
        }
        match (self.status, &self.request_id) {
            (Some(status), Some(id)) => write!(f, " (HTTP {status}, request {id})"),
            (Some(status), None) => write!(f, " (HTTP {status})"),
            _ => Ok(()),
        }
    }
}

impl Error for S3Cause {}

impl S3Cause {
    /// Makes the cause of a refusal, for tests.
    #[cfg(test)]
    pub(super) fn refused(status: u16, code: &str, text: &str) -> Self {
        Self {
            stage: S3Stage::Refused,
            status: Some(status),
            code: (!code.is_empty()).then(|| code.to_owned()),
            text: text.to_owned(),
            request_id: Some("R1".to_owned()),
            region: None,
            date: Some("Sun, 22 Nov 2026 21:26:04 GMT".to_owned()),
        }
    }

    /// Returns the store's clock, if the response has it.
    pub(super) fn date(&self) -> Option<Timestamp> {
        http_date(self.date.as_deref()?)
    }

    pub(super) fn has_code(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// Whether the store does not support the request.
    pub(super) fn is_not_implemented(&self) -> bool {
        self.status == Some(501) || self.has_code("NotImplemented")
    }

    /// Returns the kind, on which callers branch.
    pub(super) fn kind(&self) -> StoreErrorKind {
        match self.stage {
            S3Stage::Building if self.text.contains("credentials") => StoreErrorKind::Denied,
            S3Stage::Building => StoreErrorKind::Invalid,
            S3Stage::Transport if self.text.contains("credentials") => StoreErrorKind::Denied,
            S3Stage::Transport | S3Stage::TimeOut => StoreErrorKind::Unavailable,
            S3Stage::Unreadable if self.is_wrong_root() => StoreErrorKind::Unsupported,
            S3Stage::Reading | S3Stage::Unreadable | S3Stage::Refused => {
                self.kind_of_code().unwrap_or_else(|| self.kind_of_status())
            }
        }
    }

    /// Whether the store was not reached, did not answer, or could not serve any request: a wait
    /// may help. An archived object and a conflict are no outage, and an untrusted certificate does
    /// not become trusted.
    pub(super) fn is_outage(&self) -> bool {
        match self.stage {
            S3Stage::Building | S3Stage::Unreadable => false,
            S3Stage::Transport | S3Stage::TimeOut => !is_untrusted(&self.text),
            S3Stage::Reading => true,
            // The completion of an upload may fail after its status was sent.
            S3Stage::Refused => match self.code.as_deref() {
                Some("InternalError" | "ServiceUnavailable" | "RequestTimeout") => true,
                _ => {
                    self.kind() == StoreErrorKind::Throttled
                        || self.status.is_some_and(is_outage_status)
                }
            },
        }
    }

    fn kind_of_code(&self) -> Option<StoreErrorKind> {
        Some(match self.code.as_deref()? {
            "NoSuchBucket" => StoreErrorKind::NoBucket,
            "NoSuchKey" | "NoSuchUpload" | "NoSuchVersion" | "NotFound" => StoreErrorKind::NotFound,
            "PreconditionFailed" => StoreErrorKind::AlreadyExists,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "AccessDenied"
            | "ExpiredToken"
            | "InvalidToken"
            | "AllAccessDisabled"
            | "AccountProblem"
            | "InvalidPayer" => StoreErrorKind::Denied,
            "SlowDown"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
            | "RequestLimitExceeded"
            | "BandwidthLimitExceeded" => StoreErrorKind::Throttled,
            "ConditionalRequestConflict"
            | "OperationAborted"
            | "RequestTimeout"
            | "InvalidObjectState" => StoreErrorKind::Unavailable,
            "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" | "StorageFull" => {
                StoreErrorKind::Full
            }
            code if code.to_ascii_lowercase().contains("cap_exceeded") => StoreErrorKind::Full,
            "BadDigest"
            | "InvalidDigest"
            | "InvalidPart"
            | "InvalidPartOrder"
            | "IncompleteBody"
            | "InvalidRange"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch" => StoreErrorKind::Corrupt,
            "NotImplemented" | "MethodNotAllowed" => StoreErrorKind::Unsupported,
            _ => return None,
        })
    }

    fn kind_of_status(&self) -> StoreErrorKind {
        match self.status {
            Some(401 | 403) => StoreErrorKind::Denied,
            Some(404) => StoreErrorKind::NotFound,
            Some(405 | 501) => StoreErrorKind::Unsupported,
            Some(412) => StoreErrorKind::AlreadyExists,
            Some(416) => StoreErrorKind::Corrupt,
            Some(429) => StoreErrorKind::Throttled,
            Some(507) => StoreErrorKind::Full,
            Some(300..=499) => StoreErrorKind::Invalid,
            _ => StoreErrorKind::Unavailable,
        }
    }

    /// Whether the response is a listing of objects: the server has no versions, and does not know
    /// that it was asked for them.
    pub(super) fn is_object_listing(&self) -> bool {
        self.text.contains("ListBucketResult")
    }

    /// Whether the server is `rclone serve s3`, which misnames the root of its response to
    /// CreateMultipartUpload, so that the SDK refuses it.
    fn is_wrong_root(&self) -> bool {
        self.text.contains("InitiateMultipartUpload") && self.text.contains("root")
    }

    /// Returns the remedy. `api` is the name of the call, after which permissions are named.
    pub(super) fn hint(&self, api: &str, bucket: &str, endpoint: &str) -> Option<String> {
        match self.stage {
            S3Stage::Transport | S3Stage::TimeOut => Some(transport_hint(&self.text, endpoint)),
            S3Stage::Unreadable if self.is_wrong_root() => {
                Some("this is `rclone serve s3`, which cannot do this: use the remote rclone:REMOTE:PATH".to_owned())
            }
            S3Stage::Building | S3Stage::Reading | S3Stage::Unreadable => None,
            S3Stage::Refused => self.refusal_hint(api, bucket, endpoint),
        }
    }

    fn refusal_hint(&self, api: &str, bucket: &str, endpoint: &str) -> Option<String> {
        let code = self.code.as_deref().unwrap_or_default();
        Some(match code {
            "NoSuchBucket" => no_bucket_hint(bucket),
            "InvalidAccessKeyId" => {
                format!("{endpoint} does not know this access key id: wrong key, or wrong endpoint")
            }
            "SignatureDoesNotMatch" => {
                "the secret does not belong to the access key id, or has a stray character".into()
            }
            "ExpiredToken" | "InvalidToken" => {
                "the session has expired: get new credentials".to_owned()
            }
            "RequestTimeTooSkewed" => self.clock_hint(),
            "InvalidObjectState" => {
                "the object is archived: have the store restore it first".to_owned()
            }
            "PermanentRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException" => self.region_hint(bucket),
            "AccessDenied" => permission_hint(api),
            _ if self.may_be_the_checksum(api) => CHECKSUM_HINT.to_owned(),
            _ if self.kind() == StoreErrorKind::Full => {
                "make room in the store, or raise its quota".to_owned()
            }
            _ => match self.status {
                Some(301 | 307) => self.region_hint(bucket),
                Some(403) => permission_hint(api),
                _ => return None,
            },
        })
    }

    /// Whether an unknown checksum may be the reason. Stores without the new checksums report this
    /// in many ways, and not at all to HEAD.
    pub(super) fn may_be_the_checksum(&self, api: &str) -> bool {
        let unknown = matches!(self.status, Some(400 | 501));
        unknown && (api == "HeadObject" || self.text.to_ascii_lowercase().contains("checksum"))
    }

    fn clock_hint(&self) -> String {
        let theirs = self.date.as_deref().unwrap_or("something else");
        let ours = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        format!("set this host's clock: it says {ours}, the store says {theirs}")
    }

    fn region_hint(&self, bucket: &str) -> String {
        let expecting = self
            .text
            .split("expecting '")
            .nth(1)
            .and_then(|rest| rest.split('\'').next());
        match self.region.as_deref().or(expecting) {
            Some(region) => format!(
                "the bucket {bucket:?} is in region {region:?}: set `region` under [s3] to that"
            ),
            None => format!("the bucket {bucket:?} is in another region: set `region` under [s3]"),
        }
    }
}

pub(super) const CHECKSUM_HINT: &str = "the store may not know this checksum: `zfs-backup doctor` tests which checksums the store keeps; every store accepts `checksum = \"md5\"` under [s3]";

pub(super) fn permission_hint(api: &str) -> String {
    let permission = match api {
        "HeadObject" => "GetObject",
        "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload" => "PutObject",
        "ListObjectsV2" => "ListBucket",
        "ListObjectVersions" => "ListBucketVersions",
        "ListMultipartUploads" => "ListBucketMultipartUploads",
        same => same,
    };
    let locked = if api.starts_with("DeleteObject") {
        "; a locked object causes the same error: with s3:GetObjectRetention a prune waits until the lock ends"
    } else {
        ""
    };
    format!(
        "these credentials may not do {api}: allow s3:{permission} on the bucket and the prefix{locked}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3_error_code_takes_precedence_over_the_status() {
        use StoreErrorKind::*;
        for (status, code, kind) in [
            (404, "NoSuchKey", NotFound),
            (404, "", NotFound),
            (404, "NoSuchBucket", NoBucket),
            (403, "AccessDenied", Denied),
            (403, "", Denied),
            (403, "storage_cap_exceeded", Full),
            (412, "PreconditionFailed", AlreadyExists),
            (409, "ConditionalRequestConflict", Unavailable),
            (400, "BadDigest", Corrupt),
            (400, "RequestTimeout", Unavailable),
            (400, "InvalidArgument", Invalid),
            (501, "NotImplemented", Unsupported),
            (503, "SlowDown", Throttled),
            (503, "", Unavailable),
            (500, "InternalError", Unavailable),
            (507, "", Full),
        ] {
            assert_eq!(
                S3Cause::refused(status, code, "").kind(),
                kind,
                "{status} {code}"
            );
        }
    }

    #[test]
    fn s3_error_hints_name_the_remedy() {
        let wrong_region = "the region 'us-east-1' is wrong; expecting 'eu-west-1'";
        for (status, code, text, part) in [
            (404, "NoSuchBucket", "", "create the bucket \"b\""),
            (403, "AccessDenied", "", "s3:PutObject"),
            (403, "", "", "s3:PutObject"),
            (403, "QuotaExceeded", "", "make room"),
            (
                400,
                "InvalidRequest",
                "Unsupported header 'x-amz-checksum-crc64nvme'",
                "md5",
            ),
            (403, "InvalidAccessKeyId", "", "http://e"),
            (
                403,
                "RequestTimeTooSkewed",
                "",
                "the store says Sun, 22 Nov 2026",
            ),
            (
                400,
                "AuthorizationHeaderMalformed",
                wrong_region,
                "\"eu-west-1\"",
            ),
            (301, "PermanentRedirect", "", "another region"),
        ] {
            let hint = S3Cause::refused(status, code, text)
                .hint("PutObject", "b", "http://e")
                .unwrap();
            assert!(hint.contains(part), "{code}: {hint}");
        }
        assert_eq!(
            S3Cause::refused(500, "InternalError", "").hint("PutObject", "b", "http://e"),
            None
        );
    }

    #[test]
    fn text_names_code_status_and_request() {
        assert_eq!(
            S3Cause::refused(404, "NoSuchKey", "gone").to_string(),
            "NoSuchKey: gone (HTTP 404, request R1)"
        );
        assert_eq!(
            S3Cause::refused(403, "", "").to_string(),
            "the store refused without a message (HTTP 403, request R1)"
        );
    }
}
