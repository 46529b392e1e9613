//! [`encryption_hint`]: the remedy for a request that the store refused because of the server-side
//! encryption.

use super::S3Encryption;
use super::cause::{CHECKSUM_HINT, S3Cause, S3Stage, permission_hint};

const KMS_HINT: &str = "the store's key service refused the key: it must exist in the bucket's region and be enabled, \
    `kms_key_id` under [s3] must name it, and these credentials need kms:GenerateDataKey and kms:Decrypt on it";
const NO_CUSTOMER_KEYS_HINT: &str = "the bucket may refuse customer keys (at AWS, new buckets do until their encryption \
    settings allow SSE-C): allow them, or remove `sse_customer_key_file` under [s3]";
const OTHER_KEY_HINT: &str = "the object was put with another customer key, or without one: `sse_customer_key_file` \
    under [s3] must name the same key from the first backup of a store to the last";
const CUSTOMER_KEY_HINT: &str = "the object was put with a customer key (SSE-C): name the file of the key as \
    `sse_customer_key_file` under [s3], or with --remote in ZFS_BACKUP_SSE_CUSTOMER_KEY_FILE";

/// Returns the remedy for a refusal of which the encryption is, or may be, the reason; `encryption`
/// is what the request asked for. The policies of buckets refuse a put without the right header as
/// a missing permission, and mostly without a word about encryption.
pub(super) fn encryption_hint(
    cause: &S3Cause,
    api: &str,
    bucket: &str,
    encryption: Option<&S3Encryption>,
) -> Option<String> {
    if cause.stage != S3Stage::Refused {
        return None;
    }
    let text = cause.text.to_ascii_lowercase();
    let code = cause.code.as_deref().unwrap_or_default();
    if code.starts_with("KMS.") || text.contains("perform: kms:") {
        return Some(KMS_HINT.to_owned());
    }
    let words = ["encrypt", "server-side", "server side"];
    let is_named = words.iter().any(|word| text.contains(word));
    let is_denied = code == "AccessDenied" || code.is_empty() && cause.status == Some(403);
    match api {
        "PutObject" | "CreateMultipartUpload" => {
            let remedy = write_remedy(bucket, encryption);
            if is_named {
                Some(remedy)
            } else if is_denied && text.contains("explicit deny") {
                Some(format!("a policy denies {api}: {remedy}"))
            } else if is_denied {
                Some(format!(
                    "{}; if the credentials have it, {remedy}",
                    permission_hint(api)
                ))
            } else {
                None
            }
        }
        "GetObject" | "HeadObject" => {
            let is_invalid = cause.status == Some(400);
            let has_key = matches!(encryption, Some(S3Encryption::Customer(_)));
            // A response to HEAD has no message.
            let is_silent = api == "HeadObject" && is_invalid;
            match has_key {
                true if is_named || is_invalid => Some(OTHER_KEY_HINT.to_owned()),
                true if is_denied => Some(format!("{}; or {OTHER_KEY_HINT}", permission_hint(api))),
                false if is_named => Some(CUSTOMER_KEY_HINT.to_owned()),
                false if is_silent => Some(format!("{CHECKSUM_HINT}; or {CUSTOMER_KEY_HINT}")),
                _ => None,
            }
        }
        _ => None,
    }
}

fn write_remedy(bucket: &str, encryption: Option<&S3Encryption>) -> String {
    let other = match encryption {
        Some(S3Encryption::Customer(_)) => return NO_CUSTOMER_KEYS_HINT.to_owned(),
        Some(S3Encryption::Managed { .. }) => " other than the configured one",
        None => "",
    };
    let quoted = shell_words::quote(bucket);
    format!(
        "the policy of the bucket may demand an encryption{other}: set `server_side_encryption` under [s3] to \
         \"AES256\" or \"aws:kms\", and `kms_key_id` if the policy names a key; \
         `aws s3api get-bucket-policy --bucket {quoted}` prints the policy"
    )
}

#[cfg(test)]
mod tests {
    use super::super::{CustomerKey, S3EncryptionKind};
    use super::*;

    const NO_ACCESS: &str = "Access Denied";
    const EXPLICIT: &str = "User: arn:aws:iam::1:user/nas is not authorized to perform: s3:PutObject on resource: \
        \"arn:aws:s3:::b/x\" with an explicit deny in a resource-based policy";
    const NO_KMS: &str = "User: arn:aws:iam::1:user/nas is not authorized to perform: kms:GenerateDataKey on resource: \
        arn:aws:kms:eu-west-1:1:key/2 because no identity-based policy allows the kms:GenerateDataKey action";
    const STORED_SO: &str = "The object was stored using a form of Server Side Encryption. The correct parameters must \
        be provided to retrieve the object.";

    #[test]
    fn refusals_because_of_the_encryption_name_the_key() {
        let managed = S3Encryption::Managed {
            kind: S3EncryptionKind::Aes256,
            kms_key_id: None,
        };
        let key = CustomerKey::from_base64("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=").unwrap();
        let customer = S3Encryption::Customer(key);
        let cases = [
            (
                "PutObject",
                403,
                "AccessDenied",
                NO_ACCESS,
                None,
                "s3:PutObject on the bucket",
            ),
            (
                "PutObject",
                403,
                "AccessDenied",
                NO_ACCESS,
                None,
                "demand an encryption: set `server_side_encryption`",
            ),
            (
                "CreateMultipartUpload",
                403,
                "",
                "",
                None,
                "`server_side_encryption` under [s3]",
            ),
            (
                "PutObject",
                403,
                "AccessDenied",
                EXPLICIT,
                None,
                "a policy denies PutObject: the policy of the bucket",
            ),
            (
                "PutObject",
                403,
                "AccessDenied",
                EXPLICIT,
                Some(&managed),
                "other than the configured one",
            ),
            (
                "PutObject",
                400,
                "InvalidRequest",
                "encryption is required",
                None,
                "get-bucket-policy --bucket 'b b'",
            ),
            (
                "PutObject",
                403,
                "AccessDenied",
                NO_ACCESS,
                Some(&customer),
                "new buckets do until",
            ),
            (
                "PutObject",
                403,
                "AccessDenied",
                NO_KMS,
                Some(&managed),
                "kms:GenerateDataKey and kms:Decrypt",
            ),
            (
                "PutObject",
                400,
                "KMS.NotFoundException",
                "Invalid keyId",
                Some(&managed),
                "`kms_key_id` under [s3]",
            ),
            (
                "GetObject",
                400,
                "InvalidRequest",
                STORED_SO,
                None,
                "put with a customer key (SSE-C)",
            ),
            (
                "HeadObject",
                400,
                "",
                "",
                None,
                "may not know this checksum",
            ),
            ("HeadObject", 400, "", "", None, "`sse_customer_key_file`"),
            (
                "HeadObject",
                400,
                "",
                "",
                Some(&customer),
                "put with another customer key",
            ),
            (
                "GetObject",
                403,
                "AccessDenied",
                NO_ACCESS,
                Some(&customer),
                "put with another customer key",
            ),
        ];
        for (api, status, code, text, encryption, part) in cases {
            let cause = S3Cause::refused(status, code, text);
            let hint = encryption_hint(&cause, api, "b b", encryption).unwrap_or_default();
            assert!(hint.contains(part), "{api} {status} {code} {text}: {hint}");
        }
        for (api, status, code, text) in [
            ("PutObject", 403, "InvalidAccessKeyId", ""),
            ("GetObject", 403, "AccessDenied", NO_ACCESS),
            ("GetObject", 404, "NoSuchKey", ""),
            ("DeleteObject", 403, "AccessDenied", NO_ACCESS),
            ("PutObject", 503, "SlowDown", ""),
        ] {
            let cause = S3Cause::refused(status, code, text);
            assert_eq!(
                encryption_hint(&cause, api, "b", None),
                None,
                "{api} {code}"
            );
        }
    }
}
