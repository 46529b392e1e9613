//! [`ResumeToken`]: the kernel's description of an interrupted receive, in the property
//! `receive_resume_token`.
//!
//! The text has the form `1-SUM-BYTES-HEX`: a version, the first word of Fletcher-4 over the
//! compressed bytes, their length after decompression, and the bytes themselves: a packed list
//! under zlib. Source: OpenZFS `get_receive_resume_token_impl`.

use super::{Dataset, PropertyValue, ZfsError};
use crate::model::Guid;
use crate::stream::fletcher::{ByteOrder, Fletcher4};
use crate::stream::nvlist::{PackedValue, read_packed};
#[cfg(any(test, feature = "testing"))]
use {crate::stream::nvlist::write_packed, std::collections::BTreeMap};

/// The name of the property.
pub const RESUME_TOKEN_PROPERTY: &str = "receive_resume_token";
/// The largest unpacked list. A list has ten values and a name of 256 bytes; redaction adds guids.
const LIST_BYTES_MAX: usize = 1 << 20;

/// The snapshot and the resume point of an interrupted receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeToken {
    /// The object of the last record that is persistent in the pool.
    pub object: u64,
    /// The offset of that record; 0 also if the record is the object itself.
    pub offset: u64,
    /// Stream bytes that the kernel read up to that record. After a resume the value exceeds the
    /// position: only a hint.
    pub bytes: u64,
    /// The guid of the snapshot that is being received.
    pub to_guid: Guid,
    /// The guid of the base.
    pub from_guid: Option<Guid>,
    /// The snapshot's name on the sender.
    pub to_name: String,
    /// Whether the stream had large blocks.
    pub large_blocks: bool,
    /// Whether the stream had embedded blocks.
    pub embedded: bool,
    /// Whether the stream had compressed blocks.
    pub compressed: bool,
    /// Whether the stream was raw.
    pub raw: bool,
}

impl ResumeToken {
    /// Parses a token. Returns `None` unless it is an intact token of version 1.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let version = fields.next()?;
        let sum = u64::from_str_radix(fields.next()?, 16).ok()?;
        let list_bytes = usize::from_str_radix(fields.next()?, 16)
            .ok()
            .filter(|bytes| *bytes <= LIST_BYTES_MAX)?;
        let packed = from_hex(fields.next()?)?;
        if version != "1" || fields.next().is_some() || first_word(&packed) != sum {
            return None;
        }
        let list =
            miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(&packed, list_bytes).ok()?;
        let values = read_packed(&list).filter(|_| list.len() == list_bytes)?;
        let number = |name: &str| match values.get(name) {
            Some(PackedValue::Number(number)) => Some(*number),
            _ => None,
        };
        let text = |name: &str| match values.get(name) {
            Some(PackedValue::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let flag = |name: &str| values.get(name) == Some(&PackedValue::Flag);
        Some(Self {
            object: number("object")?,
            offset: number("offset")?,
            bytes: number("bytes")?,
            to_guid: Guid(number("toguid")?),
            from_guid: number("fromguid").filter(|guid| *guid != 0).map(Guid),
            to_name: text("toname"),
            large_blocks: flag("largeblockok"),
            embedded: flag("embedok"),
            compressed: flag("compressok"),
            raw: flag("rawok"),
        })
    }

    /// Writes the token in the kernel's form, for the fake.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn to_text(&self) -> String {
        let mut values = BTreeMap::from([
            ("toname".to_owned(), PackedValue::Text(self.to_name.clone())),
            ("object".to_owned(), PackedValue::Number(self.object)),
            ("offset".to_owned(), PackedValue::Number(self.offset)),
            ("bytes".to_owned(), PackedValue::Number(self.bytes)),
            ("toguid".to_owned(), PackedValue::Number(self.to_guid.0)),
        ]);
        values.extend(
            self.from_guid
                .map(|guid| ("fromguid".to_owned(), PackedValue::Number(guid.0))),
        );
        for (name, is_set) in [
            ("largeblockok", self.large_blocks),
            ("embedok", self.embedded),
            ("compressok", self.compressed),
            ("rawok", self.raw),
        ] {
            values.extend(is_set.then(|| (name.to_owned(), PackedValue::Flag)));
        }
        token_of_list(&write_packed(&values))
    }
}

/// Makes the token of a packed list with any content.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn token_of_list(list: &[u8]) -> String {
    let packed = miniz_oxide::deflate::compress_to_vec_zlib(list, 6);
    let hex: String = packed.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("1-{:x}-{:x}-{hex}", first_word(&packed), list.len())
}

impl Dataset {
    /// Returns the state of an interrupted receive into this dataset; `None` if there is no such
    /// state.
    ///
    /// # Errors
    /// [`ZfsError::Malformed`] for a token that cannot be read: never "none".
    pub fn resume_token(&self) -> Result<Option<ResumeToken>, ZfsError> {
        let Some(property) = self.properties.get(RESUME_TOKEN_PROPERTY) else {
            return Ok(None);
        };
        let token = match &property.value {
            PropertyValue::Text(text) => ResumeToken::parse(text),
            PropertyValue::Number(_) => None,
        };
        token.map(Some).ok_or_else(|| ZfsError::Malformed {
            subject: format!("property {RESUME_TOKEN_PROPERTY} of {}", self.name),
            reason: "it is no token of version 1".to_owned(),
        })
    }
}

/// Sums whole words only, as the kernel does.
fn first_word(packed: &[u8]) -> u64 {
    let mut sum = Fletcher4::default();
    sum.absorb(packed.as_chunks().0, ByteOrder::Little);
    sum.a
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if rest.is_empty() {
        bytes.collect()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> ResumeToken {
        ResumeToken {
            object: 130,
            offset: 3 << 20,
            bytes: 12_345_678,
            to_guid: Guid(0xfedc_ba98_7654_3210),
            from_guid: Some(Guid(7)),
            to_name: "tank/a@1".to_owned(),
            large_blocks: true,
            embedded: false,
            compressed: true,
            raw: true,
        }
    }

    #[test]
    fn a_token_is_read_and_a_changed_one_is_refused() {
        for token in [
            token(),
            ResumeToken {
                from_guid: None,
                raw: false,
                ..token()
            },
        ] {
            let text = token.to_text();
            assert_eq!(ResumeToken::parse(&text), Some(token));
            for at in (0..text.len()).step_by(3) {
                let mut changed = text.clone().into_bytes();
                changed[at] = if changed[at] == b'7' { b'8' } else { b'7' };
                let changed = String::from_utf8(changed).unwrap();
                assert_eq!(
                    ResumeToken::parse(&changed),
                    None,
                    "changed at {at}: {changed}"
                );
            }
        }
        for text in ["", "1", "1-0-0-", "-", "2-0-0-00"] {
            assert_eq!(ResumeToken::parse(text), None, "{text}");
        }
    }

    /// Tokens that OpenZFS 2.3.2 wrote, of a full stream and of a raw one; `zstream token` agrees
    /// on the second.
    #[test]
    fn tokens_of_a_kernel_are_read() {
        let full = concat!(
            "1-10d264bd65-110-789c636064000310a500c4ec50360710e72765a526973030c8429460caa7a515a7968064121861f26c4",
            "8f2499525a9c540bae3550b2336fd25f9e9a599290c0c3db7859ba7df14e8774092e704cbe725e6a6323014e8a72496243a5",
            "4a515eb262526679716c41b191899191a1a1987181a99989b1a4721dcc7cb80f04f4e62517a6a524e7e72767e364c9e1b493",
            "e393fb7a028b5b818220b010016c8279c",
        );
        let raw = concat!(
            "1-1519da072c-128-789c636064000310a500c4ec50360710e72765a5269740f80cd8e4d3d28a534b18e00024cf86249f545",
            "9925acc802a8facbf243fbd34338581c17e667ead6d7b8eb003923c27583e2f31379581a140bf3835b928b5c4a12aad58372",
            "93139bbb420dec8c0c8ccd0d0c838c4d0c8c4c2d4380a663e2f03c23f398945e9a94939f9c9d9f9d930796e24f9e4fcdc82a",
            "2d4e262882c038304d4fd30f9a2c47298140300b5c82753",
        );
        let expected = ResumeToken {
            object: 29,
            offset: 23068672,
            bytes: 25488008,
            to_guid: Guid(10308978791813471116),
            from_guid: None,
            to_name: "p/data@zfs-backup_20261123T124753Z".to_owned(),
            large_blocks: true,
            embedded: false,
            compressed: true,
            raw: false,
        };
        assert_eq!(ResumeToken::parse(full), Some(expected));
        let raw = ResumeToken::parse(raw).unwrap();
        assert_eq!(
            (raw.object, raw.offset, raw.bytes, raw.raw),
            (1, 0, 0, true)
        );
        assert_eq!(
            (raw.to_guid, raw.to_name.as_str()),
            (
                Guid(1399642282372602175),
                "p/secret@zfs-backup_20261123T124853Z"
            )
        );
    }
}
