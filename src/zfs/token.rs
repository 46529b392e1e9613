//! [`ResumeToken`]: what the kernel says of a receive that was cut, in the property `receive_resume_token`.
//!
//! It reads `1-SUM-BYTES-HEX`: a version, the first word of Fletcher-4 over the compressed bytes, the length of what
//! they become, and these bytes: a packed list under zlib. Source: OpenZFS `get_receive_resume_token_impl`.

use super::{Dataset, PropertyValue, ZfsError};
use crate::model::Guid;
use crate::stream::fletcher::{ByteOrder, Fletcher4};
use crate::stream::nvlist::{PackedValue, read_packed, write_packed};
use std::collections::BTreeMap;

/// The property.
pub const RESUME_TOKEN_PROPERTY: &str = "receive_resume_token";
/// A list has ten values and a name of 256 bytes; redaction adds guids.
const LIST_BYTES_MAX: usize = 1 << 20;

/// Where a cut receive goes on, and of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeToken {
    /// The object of the last record that is in the pool for good.
    pub object: u64,
    /// Its offset; 0 also when it was the object itself.
    pub offset: u64,
    /// Stream bytes that the kernel read up to there. More than the position once a receive was resumed: a hint only.
    pub bytes: u64,
    /// The snapshot that is being received.
    pub to_guid: Guid,
    /// Its base.
    pub from_guid: Option<Guid>,
    /// The snapshot's name on the sender.
    pub to_name: String,
    /// The stream had large blocks.
    pub large_blocks: bool,
    /// The stream had embedded blocks.
    pub embedded: bool,
    /// The stream had compressed blocks.
    pub compressed: bool,
    /// The stream was raw.
    pub raw: bool,
}

impl ResumeToken {
    /// Reads a token; `None` for what is none of version 1, or damaged.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let (version, sum) = (fields.next()?, u64::from_str_radix(fields.next()?, 16).ok()?);
        let list_bytes = usize::from_str_radix(fields.next()?, 16).ok().filter(|bytes| *bytes <= LIST_BYTES_MAX)?;
        let packed = from_hex(fields.next()?)?;
        if version != "1" || fields.next().is_some() || first_word(&packed) != sum {
            return None;
        }
        let list = miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(&packed, list_bytes).ok()?;
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

    /// The token as the kernel would write it: for the ZFS in memory.
    pub(super) fn to_text(&self) -> String {
        let mut values = BTreeMap::from([
            ("toname".to_owned(), PackedValue::Text(self.to_name.clone())),
            ("object".to_owned(), PackedValue::Number(self.object)),
            ("offset".to_owned(), PackedValue::Number(self.offset)),
            ("bytes".to_owned(), PackedValue::Number(self.bytes)),
            ("toguid".to_owned(), PackedValue::Number(self.to_guid.0)),
        ]);
        values.extend(self.from_guid.map(|guid| ("fromguid".to_owned(), PackedValue::Number(guid.0))));
        for (name, is_set) in [
            ("largeblockok", self.large_blocks),
            ("embedok", self.embedded),
            ("compressok", self.compressed),
            ("rawok", self.raw),
        ] {
            values.extend(is_set.then(|| (name.to_owned(), PackedValue::Flag)));
        }
        let list = write_packed(&values);
        let packed = miniz_oxide::deflate::compress_to_vec_zlib(&list, 6);
        let hex: String = packed.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("1-{:x}-{:x}-{hex}", first_word(&packed), list.len())
    }
}

impl Dataset {
    /// The state of a receive into it that was cut; `None` when there is none.
    ///
    /// # Errors
    /// [`ZfsError::Malformed`] for a token that cannot be read: never "none".
    pub fn resume_token(&self) -> Result<Option<ResumeToken>, ZfsError> {
        let Some(property) = self.properties.get(RESUME_TOKEN_PROPERTY) else { return Ok(None) };
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

/// Over whole words only, as the kernel does it.
fn first_word(packed: &[u8]) -> u64 {
    let mut sum = Fletcher4::default();
    sum.absorb(packed.as_chunks().0, ByteOrder::Little);
    sum.a
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if rest.is_empty() { bytes.collect() } else { None }
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
        for token in [token(), ResumeToken { from_guid: None, raw: false, ..token() }] {
            let text = token.to_text();
            assert_eq!(ResumeToken::parse(&text), Some(token));
            for at in (0..text.len()).step_by(3) {
                let mut changed = text.clone().into_bytes();
                changed[at] = if changed[at] == b'7' { b'8' } else { b'7' };
                let changed = String::from_utf8(changed).unwrap();
                assert_eq!(ResumeToken::parse(&changed), None, "changed at {at}: {changed}");
            }
        }
        for text in ["", "1", "1-0-0-", "-", "2-0-0-00"] {
            assert_eq!(ResumeToken::parse(text), None, "{text}");
        }
    }
}
