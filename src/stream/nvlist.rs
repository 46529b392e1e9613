//! Packed name-value lists, as far as streams need them: reads a list's own numbers, strings and
//! flags, or one number of a list inside it, and puts the resume point into the list of a BEGIN
//! record. No library is used, because
//! streams and tokens must be readable on any host, and by the fake ZFS too.
//!
//! Source of the layout: OpenZFS `module/nvpair/nvpair.c`, native and XDR encoding.

use std::collections::BTreeMap;

/// The native encoding of a little-endian kernel: encoding, byte order, two reserved bytes.
const NATIVE_LITTLE: [u8; 4] = [0, 1, 0, 0];
/// The first byte of a list in XDR, which is big-endian on every machine.
const XDR: u8 = 1;
/// Encoding, version, flags.
const HEAD_BYTES: usize = 12;
const PAIR_HEAD_BYTES: usize = 16;
const FLAG: u32 = 1;
const UINT64: u32 = 8;
const STRING: u32 = 9;
const LIST: u32 = 19;
const LIST_ARRAY: u32 = 20;

/// A value at the top level of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackedValue {
    /// A name without a value.
    Flag,
    /// A number.
    Number(u64),
    /// A string.
    Text(String),
}

/// Reads the numbers, strings and flags of a list in native little-endian encoding; values of other
/// kinds are skipped. Returns `None` for any other encoding, and for nested lists.
pub fn read_packed(list: &[u8]) -> Option<BTreeMap<String, PackedValue>> {
    let mut rest = list.strip_prefix(&NATIVE_LITTLE)?.get(8..)?;
    let mut values = BTreeMap::new();
    loop {
        let pair_bytes = usize::try_from(word(rest, 0)?).ok()?;
        if pair_bytes == 0 {
            return Some(values);
        }
        let Pair {
            name, kind, value, ..
        } = Pair::parse(rest.get(..pair_bytes)?)?;
        rest = &rest[pair_bytes..];
        let value = match kind {
            FLAG => PackedValue::Flag,
            UINT64 => PackedValue::Number(u64::from_le_bytes(*value.first_chunk()?)),
            STRING => {
                let text = value.split(|byte| *byte == 0).next()?;
                PackedValue::Text(std::str::from_utf8(text).ok()?.to_owned())
            }
            // The pairs of the inner list follow outside this pair.
            LIST | LIST_ARRAY => return None,
            _ => continue,
        };
        values.insert(name.to_owned(), value);
    }
}

/// A list that is damaged, or in an encoding that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnreadableList;

/// Returns the number `name` of the list `inner` in a packed list, native little-endian or XDR;
/// `None` when there is no such list or number.
///
/// # Errors
/// [`UnreadableList`] for any other encoding, and for a damaged list.
pub fn number_in_list(list: &[u8], inner: &str, name: &str) -> Result<Option<u64>, UnreadableList> {
    let found = match list.first() {
        Some(&XDR) => xdr_number(list, inner, name),
        _ => native_number(list, inner, name),
    };
    found.ok_or(UnreadableList)
}

/// Reads as [`number_in_list`]; the outer `None` means unreadable.
fn native_number(list: &[u8], inner: &str, name: &str) -> Option<Option<u64>> {
    let mut rest = list.strip_prefix(&NATIVE_LITTLE)?.get(8..)?;
    // The open inner lists, each with whether it is the wanted one.
    let mut open = Vec::new();
    loop {
        let pair_bytes = usize::try_from(word(rest, 0)?).ok()?;
        if pair_bytes == 0 {
            rest = &rest[4..];
            match open.pop() {
                Some(_) => continue,
                None => return Some(None),
            }
        }
        let pair = Pair::parse(rest.get(..pair_bytes)?)?;
        rest = &rest[pair_bytes..];
        match pair.kind {
            LIST => open.push(open.is_empty() && pair.name == inner),
            // Each list of an array ends with four bytes of its own.
            LIST_ARRAY if pair.count > rest.len() / 4 => return None,
            LIST_ARRAY => open.extend(std::iter::repeat_n(false, pair.count)),
            UINT64 if pair.name == name && open == [true] => {
                return Some(Some(u64::from_le_bytes(*pair.value.first_chunk()?)));
            }
            _ => {}
        }
    }
}

/// Reads as [`number_in_list`]; the outer `None` means unreadable.
fn xdr_number(list: &[u8], inner: &str, name: &str) -> Option<Option<u64>> {
    let Some(list) = xdr_value(list.get(HEAD_BYTES..)?, inner, LIST)? else {
        return Some(None);
    };
    // Version and flags come before the pairs of an inner list.
    match xdr_value(list.get(8..)?, name, UINT64)? {
        Some(number) => Some(Some(u64::from_be_bytes(*number.first_chunk()?))),
        None => Some(None),
    }
}

/// Returns the value of the pair with this name and kind; `Some(None)` if there is none. In XDR a
/// pair contains the pairs of its inner list.
fn xdr_value<'a>(mut pairs: &'a [u8], wanted: &str, kind: u32) -> Option<Option<&'a [u8]>> {
    let word = |bytes: &[u8], at: usize| {
        let word = u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?);
        usize::try_from(word).ok()
    };
    loop {
        let pair_bytes = word(pairs, 0)?;
        if pair_bytes == 0 {
            return Some(None);
        }
        let pair = pairs.get(..pair_bytes)?;
        pairs = &pairs[pair_bytes..];
        let name_bytes = word(pair, 8)?;
        let name = pair.get(12..)?.get(..name_bytes)?;
        let rest = pair.get(12 + name_bytes.next_multiple_of(4)..)?;
        if name == wanted.as_bytes() && word(rest, 0)? == usize::try_from(kind).ok()? {
            return Some(Some(rest.get(8..)?));
        }
    }
}

/// A pair in native little-endian encoding.
struct Pair<'a> {
    name: &'a str,
    kind: u32,
    /// The number of values.
    count: usize,
    value: &'a [u8],
}

impl<'a> Pair<'a> {
    fn parse(pair: &'a [u8]) -> Option<Self> {
        let name_bytes = usize::from(u16::from_le_bytes(*pair.get(4..6)?.first_chunk()?));
        let name = pair.get(PAIR_HEAD_BYTES..PAIR_HEAD_BYTES + name_bytes)?;
        let name = name.strip_suffix(b"\0").filter(|name| !name.contains(&0))?;
        let value_at = (PAIR_HEAD_BYTES + name_bytes).next_multiple_of(8);
        Some(Self {
            name: std::str::from_utf8(name).ok()?,
            kind: word(pair, 12)?,
            count: usize::try_from(word(pair, 8)?).ok()?,
            value: pair.get(value_at..).unwrap_or_default(),
        })
    }
}

/// Writes a list of these values in native little-endian encoding: the inverse of [`read_packed`].
pub fn write_packed(values: &BTreeMap<String, PackedValue>) -> Vec<u8> {
    let mut list = empty_head();
    for (name, value) in values {
        let (kind, bytes) = match value {
            PackedValue::Flag => (FLAG, Vec::new()),
            PackedValue::Number(number) => (UINT64, number.to_le_bytes().to_vec()),
            PackedValue::Text(text) => (STRING, [text.as_bytes(), b"\0"].concat()),
        };
        push_pair(&mut list, name, kind, &bytes);
    }
    list.extend([0; 4]);
    list
}

/// Adds `resume_object` and `resume_offset` to the payload of a BEGIN record; an empty payload
/// becomes a list. Returns `None` for a list in an encoding that this machine's kernel cannot read
/// either.
pub fn with_resume_point(payload: &[u8], object: u64, offset: u64) -> Option<Vec<u8>> {
    let pairs = [("resume_object", object), ("resume_offset", offset)];
    let (mut list, rest) = match payload {
        [] => (empty_head(), &[0; 4][..]),
        list if list.starts_with(&NATIVE_LITTLE) || list[0] == XDR => {
            (list.get(..HEAD_BYTES)?.to_vec(), &list[HEAD_BYTES..])
        }
        _ => return None,
    };
    for (name, number) in pairs {
        match list[0] {
            XDR => push_xdr_number(&mut list, name, number),
            _ => push_pair(&mut list, name, UINT64, &number.to_le_bytes()),
        }
    }
    list.extend_from_slice(rest);
    Some(list)
}

/// The head of a list of version 0, in which names are unique.
fn empty_head() -> Vec<u8> {
    [NATIVE_LITTLE, [0; 4], [1, 0, 0, 0]].concat()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn push_pair(list: &mut Vec<u8>, name: &str, kind: u32, value: &[u8]) {
    let value_at = (PAIR_HEAD_BYTES + name.len() + 1).next_multiple_of(8);
    let pair_bytes = value_at + value.len().next_multiple_of(8);
    let start = list.len();
    list.extend(length(pair_bytes).to_le_bytes());
    list.extend(&length(name.len() + 1).to_le_bytes()[..2]);
    list.extend([0; 2]);
    list.extend(u32::from(kind != FLAG).to_le_bytes());
    list.extend(kind.to_le_bytes());
    list.extend(name.as_bytes());
    list.resize(start + value_at, 0);
    list.extend(value);
    list.resize(start + pair_bytes, 0);
}

fn push_xdr_number(list: &mut Vec<u8>, name: &str, number: u64) {
    let name_bytes = name.len().next_multiple_of(4);
    let decoded_bytes = (PAIR_HEAD_BYTES + name.len() + 1).next_multiple_of(8) + 8;
    for word in [
        length(28 + name_bytes),
        length(decoded_bytes),
        length(name.len()),
    ] {
        list.extend(word.to_be_bytes());
    }
    let start = list.len();
    list.extend(name.as_bytes());
    list.resize(start + name_bytes, 0);
    list.extend(UINT64.to_be_bytes());
    list.extend(1_u32.to_be_bytes());
    list.extend(number.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packed_nvlist_round_trips_and_every_truncation_is_refused() {
        let values = BTreeMap::from([
            (
                "toname".to_owned(),
                PackedValue::Text("tank/a@1".to_owned()),
            ),
            ("object".to_owned(), PackedValue::Number(u64::MAX - 1)),
            ("rawok".to_owned(), PackedValue::Flag),
            ("s".to_owned(), PackedValue::Text(String::new())),
        ]);
        let list = write_packed(&values);
        assert!(list.len().is_multiple_of(8));
        assert_eq!(read_packed(&list), Some(values));
        for cut in 0..list.len() {
            assert_eq!(read_packed(&list[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn resume_point_is_added_to_empty_and_existing_payloads() {
        let point = |list: &[u8]| {
            let values = read_packed(list).unwrap();
            (
                values["resume_object"].clone(),
                values["resume_offset"].clone(),
                values.len(),
            )
        };
        let (object, offset) = (PackedValue::Number(7), PackedValue::Number(1 << 40));
        assert_eq!(
            point(&with_resume_point(&[], 7, 1 << 40).unwrap()),
            (object.clone(), offset.clone(), 2)
        );
        let other = write_packed(&BTreeMap::from([(
            "crypt".to_owned(),
            PackedValue::Number(1),
        )]));
        assert_eq!(
            point(&with_resume_point(&other, 7, 1 << 40).unwrap()),
            (object, offset, 3)
        );
        assert_eq!(
            with_resume_point(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], 7, 8),
            None,
            "big-endian"
        );
    }

    /// A list with a number and an inner list of two numbers, as the kernel packs the BEGIN of a
    /// raw stream, in both encodings.
    #[test]
    fn number_in_an_inner_list_is_found_in_both_encodings() {
        let mut native = empty_head();
        push_pair(&mut native, "from", UINT64, &7_u64.to_le_bytes());
        push_pair(&mut native, "keys", LIST, &[0; 24]);
        push_pair(&mut native, "suite", UINT64, &8_u64.to_le_bytes());
        push_pair(&mut native, "from", UINT64, &9_u64.to_le_bytes());
        native.extend([0; 8]);
        let mut inner = [0, 0, 0, 0, 0, 0, 0, 1].to_vec();
        push_xdr_number(&mut inner, "suite", 8);
        push_xdr_number(&mut inner, "from", 9);
        inner.extend([0; 8]);
        let mut xdr = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].to_vec();
        push_xdr_number(&mut xdr, "from", 7);
        for word in [length(24 + inner.len()), 48, 4] {
            xdr.extend(word.to_be_bytes());
        }
        xdr.extend(b"keys");
        xdr.extend([LIST, 1].map(u32::to_be_bytes).concat());
        xdr.extend(&inner);
        xdr.extend([0; 8]);
        for list in [&native, &xdr] {
            assert_eq!(number_in_list(list, "keys", "from"), Ok(Some(9)));
            assert_eq!(number_in_list(list, "keys", "to"), Ok(None));
            assert_eq!(number_in_list(list, "other", "from"), Ok(None));
            for cut in 0..list.len() - 8 {
                let found = number_in_list(&list[..cut], "keys", "to");
                assert_eq!(found, Err(UnreadableList), "cut at {cut}");
            }
        }
        let big_endian = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(
            number_in_list(&big_endian, "keys", "from"),
            Err(UnreadableList)
        );
    }

    proptest! {
        #[test]
        fn damaged_nvlist_is_read_without_a_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            xdr: bool,
        ) {
            let head = if xdr { [1, 1, 0, 0] } else { NATIVE_LITTLE };
            bytes.iter_mut().zip(head).for_each(|(byte, head)| *byte = head);
            // Short pairs and names, as a list has them.
            bytes.iter_mut().skip(8).for_each(|byte| *byte &= 0x1f);
            let _ = (number_in_list(&bytes, "keys", "from"), read_packed(&bytes));
        }
    }

    /// As `nvlist_pack` of libnvpair 2.1.11 writes `{"n" -> 5}` in XDR, preceded by the two added
    /// pairs.
    #[test]
    fn resume_point_is_added_in_xdr_to_an_xdr_nvlist() {
        let tail = [
            0, 0, 0, 32, 0, 0, 0, 32, 0, 0, 0, 1, b'n', 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0,
            0, 0, 0, 0, 5,
        ];
        let list = [&[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &tail, &[0; 8]].concat();
        let with = with_resume_point(&list, 3, 4).unwrap();
        let pair = |name: &[u8], number: u8| {
            let head = [0, 0, 0, 44, 0, 0, 0, 40, 0, 0, 0, 13];
            [
                &head[..],
                name,
                &[0; 3],
                &[0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, number],
            ]
            .concat()
        };
        assert_eq!(
            with,
            [
                &list[..12],
                &pair(b"resume_object", 3),
                &pair(b"resume_offset", 4),
                &tail,
                &[0; 8]
            ]
            .concat()
        );
    }
}
