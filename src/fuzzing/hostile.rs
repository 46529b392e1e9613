//! Output of programs and kernels: B2's JSON, rclone's output, the kernel's lists.
//!
//! Private functions of the SDK parse S3's XML; `tests/store_contract` gives the SDK malformed
//! responses instead.

use super::{Choices, Target};
use crate::store::{b2, rclone};
use crate::zfs::read_kernel_list;

pub(super) const B2_ANSWER: Target = Target {
    name: "b2_answer",
    run: b2::read_any_answer,
    seeds: || {
        let texts = [
            r#"{"accountId":"a","authorizationToken":"t","apiInfo":{"storageApi":{"apiUrl":"https://a","downloadUrl":"https://d","absoluteMinimumPartSize":5,"bucketId":null,"bucketName":null,"namePrefix":null,"capabilities":["listFiles"]}}}"#,
            r#"{"accountId":"a","authorizationToken":"t","apiInfo":{"storageApi":{"apiUrl":"https://a","downloadUrl":"https://d","absoluteMinimumPartSize":5,"allowed":{"buckets":[{"id":"b","name":"n"}],"capabilities":["readFiles"],"namePrefix":"p"}}}}"#,
            r#"{"buckets":[{"bucketId":"b","bucketName":"n","bucketType":"allPrivate","lifecycleRules":[{"fileNamePrefix":"","daysFromUploadingToHiding":null,"daysFromHidingToDeleting":1}],"fileLockConfiguration":{"isClientAuthorizedToRead":true,"value":{"isFileLockEnabled":true}}}]}"#,
            r#"{"files":[{"fileId":"4_z","fileName":"tank/a/x","action":"upload","contentLength":5,"contentSha1":"unverified:0123456789012345678901234567890123456789","fileInfo":{"part-bytes":"5","large_file_sha1":"x"},"uploadTimestamp":1700000000000,"fileRetention":{"isClientAuthorizedToRead":true,"value":{"mode":"governance","retainUntilTimestamp":1700000000000}}}],"nextFileName":"y","nextFileId":"4_y"}"#,
            r#"{"uploadUrl":"https://u","authorizationToken":"t"}"#,
            r#"{"partNumber":1,"contentLength":5,"contentSha1":"0"}"#,
            r#"{"status":503,"code":"service_unavailable","message":"later"}"#,
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &[
        "null",
        "true",
        "\"fileId\":",
        "\"action\":\"hide\"",
        "\"start\"",
        "-1",
        "9223372036854775807",
        "[]",
        "{}",
    ],
};

pub(super) const RCLONE_ANSWER: Target = Target {
    name: "rclone_answer",
    run: rclone::read_any_answer,
    seeds: || {
        let texts = [
            r#"[{"Path":"tank/a/x","Name":"x","Size":5,"MimeType":"","ModTime":"2026-11-23T03:01:33.123456789+01:00","IsDir":false,"Hashes":{"sha1":"00"},"ID":"1"},{"Path":"d","Size":-1,"ModTime":"","IsDir":true}]"#,
            r#"{"Path":"x","Size":5,"IsDir":false}"#,
            "null",
            r#"{"level":"error","msg":"Failed to copy:  no space","object":"x","source":"a.go:1","time":"2026-11-23T03:01:33Z"}"#,
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &[
        "null",
        "true",
        "\"Path\":",
        "\"Hashes\":{}",
        ".zb-partial",
        "../",
        "-1",
        "[",
        "]",
        "2026-11-23T03:01:33Z",
    ],
};

pub(super) const KERNEL_LIST: Target = Target {
    name: "kernel_list",
    run: |input| {
        let mut choices = Choices(input);
        let subject = choices.take(8).to_vec();
        read_kernel_list(&subject, || choices.byte());
    },
    seeds: || {
        let spread = |step: u8| (0..200).map(|n: u8| n.wrapping_mul(step)).collect();
        [1, 3, 7, 11, 41]
            .map(spread)
            .into_iter()
            .chain([b"tank/a\0\0\x06\x03\x03".to_vec()])
            .collect()
    },
    words: &["tank/a\0\0", "tank/a@1"],
};
