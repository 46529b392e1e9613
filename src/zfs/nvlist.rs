//! Name-value lists of libnvpair: made with typed adders, copied as a whole into Rust values, freed
//! when dropped. Only functions that return an error number are used, never those that abort the
//! process (`fnvlist_*`). This is one of the two files with `unsafe`.

use super::PropertyValue;
use super::sys::{self, LibNvPair, nvlist_t, nvpair_t};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// The maximum nesting depth of lists. The kernel's lists have three levels; a cycle cannot be
/// made.
const DEPTH_MAX: u32 = 8;

/// A value, copied out of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NvValue {
    /// A name without a value.
    Flag,
    /// A boolean.
    Boolean(bool),
    /// An unsigned number of 32 or 64 bits.
    Number(u64),
    /// A signed number of 32 or 64 bits, such as an error number.
    Signed(i64),
    /// A string. Bytes that are not UTF-8 are replaced, since no decision depends on them.
    Text(String),
    /// A nested list.
    Map(NvMap),
    /// A kind that this tool never needs, by its number.
    Other(u32),
}

impl NvValue {
    /// Returns the value with this name, if this value is a list that has it.
    pub(super) fn get(&self, name: &str) -> Option<&NvValue> {
        match self {
            Self::Map(map) => map.get(name),
            _ => None,
        }
    }
}

/// A list, copied into Rust values.
pub(super) type NvMap = BTreeMap<String, NvValue>;

/// Makes a C string. Returns EINVAL for a zero byte, as ZFS itself does for an invalid name.
pub(super) fn c_string(text: &str) -> Result<CString, i32> {
    CString::new(text).map_err(|_| libc::EINVAL)
}

/// A list that this value owns. Not shared between threads: made, used and dropped on one.
pub(super) struct NvList {
    lib: &'static LibNvPair,
    raw: NonNull<nvlist_t>,
}

impl NvList {
    /// Makes an empty list in which a name occurs once.
    #[doc(alias = "nvlist_alloc")]
    pub(super) fn new(lib: &'static LibNvPair) -> Result<Self, i32> {
        let mut slot = NvSlot::new(lib);
        // SAFETY: the slot lives through the call; the list put there is ours, and NvList frees it.
        let errno = unsafe { lib.nvlist_alloc(slot.as_mut_ptr(), sys::NV_UNIQUE_NAME, 0) };
        status(errno)?;
        slot.take().ok_or(libc::ENOMEM)
    }

    /// Makes a list of properties with native types.
    pub(super) fn of_properties(
        lib: &'static LibNvPair,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<Self, i32> {
        let mut list = Self::new(lib)?;
        for (name, value) in properties {
            match value {
                PropertyValue::Number(number) => list.add_number(name, *number)?,
                PropertyValue::Text(text) => list.add_text(name, text)?,
            }
        }
        Ok(list)
    }

    /// Unpacks the list in a buffer that the kernel filled.
    #[doc(alias = "nvlist_unpack")]
    pub(super) fn unpack(lib: &'static LibNvPair, packed: &mut [u8]) -> Result<Self, i32> {
        let mut slot = NvSlot::new(lib);
        let bytes: *mut c_char = packed.as_mut_ptr().cast();
        // SAFETY: the buffer is borrowed for the call and has the given length; the library checks
        // what it reads against that length, copies it, and leaves in the slot a list that is ours.
        let errno = unsafe { lib.nvlist_unpack(bytes, packed.len(), slot.as_mut_ptr(), 0) };
        status(errno)?;
        slot.take().ok_or(libc::EFAULT)
    }

    /// Adds a name without a value.
    #[doc(alias = "nvlist_add_boolean")]
    pub(super) fn add_flag(&mut self, name: &str) -> Result<(), i32> {
        let name = c_string(name)?;
        // SAFETY: the list is ours and live, the name lives through the call, and the library
        // copies it.
        status(unsafe {
            self.lib
                .nvlist_add_boolean(self.raw.as_ptr(), name.as_ptr())
        })
    }

    /// Adds a truth value.
    #[doc(alias = "nvlist_add_boolean_value")]
    pub(super) fn add_switch(&mut self, name: &str, value: bool) -> Result<(), i32> {
        let name = c_string(name)?;
        // SAFETY: the list is ours and live, the name lives through the call, and the library
        // copies it.
        status(unsafe {
            self.lib
                .nvlist_add_boolean_value(self.raw.as_ptr(), name.as_ptr(), value.into())
        })
    }

    /// Adds a number.
    #[doc(alias = "nvlist_add_uint64")]
    pub(super) fn add_number(&mut self, name: &str, value: u64) -> Result<(), i32> {
        let name = c_string(name)?;
        // SAFETY: the list is ours and live, the name lives through the call, and the library
        // copies it.
        status(unsafe {
            self.lib
                .nvlist_add_uint64(self.raw.as_ptr(), name.as_ptr(), value)
        })
    }

    /// Adds a string.
    #[doc(alias = "nvlist_add_string")]
    pub(super) fn add_text(&mut self, name: &str, value: &str) -> Result<(), i32> {
        let name = c_string(name)?;
        let value = c_string(value)?;
        // SAFETY: the list is ours and live, both strings live through the call, and the library
        // copies them.
        status(unsafe {
            self.lib
                .nvlist_add_string(self.raw.as_ptr(), name.as_ptr(), value.as_ptr())
        })
    }

    /// Adds a copy of another list.
    #[doc(alias = "nvlist_add_nvlist")]
    pub(super) fn add_list(&mut self, name: &str, value: &NvList) -> Result<(), i32> {
        let name = c_string(name)?;
        // SAFETY: both lists are live, the name lives through the call, and the library copies name
        // and list.
        status(unsafe {
            self.lib
                .nvlist_add_nvlist(self.raw.as_ptr(), name.as_ptr(), value.raw.as_ptr())
        })
    }

    /// Returns the list for the library, which reads it and never keeps it.
    pub(super) fn as_ptr(&self) -> *mut nvlist_t {
        self.raw.as_ptr()
    }

    /// Returns a copy of the content.
    pub(super) fn to_map(&self) -> Result<NvMap, i32> {
        Pairs {
            lib: self.lib,
            list: self.raw.as_ptr(),
            previous: ptr::null_mut(),
            owner: PhantomData,
        }
        .into_map(0)
    }
}

impl Drop for NvList {
    #[doc(alias = "nvlist_free")]
    fn drop(&mut self) {
        // SAFETY: the list is ours and no pointer into it is left: everything that was read from it
        // was copied.
        unsafe { self.lib.nvlist_free(self.raw.as_ptr()) }
    }
}

/// The place into which the library puts a list that it makes.
pub(super) struct NvSlot {
    lib: &'static LibNvPair,
    raw: *mut nvlist_t,
}

impl NvSlot {
    /// Makes an empty slot.
    pub(super) fn new(lib: &'static LibNvPair) -> Self {
        Self {
            lib,
            raw: ptr::null_mut(),
        }
    }

    /// Returns the pointer for one call, which may put a list there.
    pub(super) fn as_mut_ptr(&mut self) -> *mut *mut nvlist_t {
        &raw mut self.raw
    }

    /// Returns the list that a call put there, if any.
    pub(super) fn take(self) -> Option<NvList> {
        NonNull::new(self.raw).map(|raw| NvList { lib: self.lib, raw })
    }
}

fn status(errno: i32) -> Result<(), i32> {
    if errno == 0 { Ok(()) } else { Err(errno) }
}

/// An iterator over the pairs of a live list.
struct Pairs<'a> {
    lib: &'static LibNvPair,
    list: *mut nvlist_t,
    previous: *mut nvpair_t,
    owner: PhantomData<&'a NvList>,
}

impl<'a> Pairs<'a> {
    fn into_map(mut self, depth: u32) -> Result<NvMap, i32> {
        let mut map = NvMap::new();
        while let Some(pair) = self.next_pair() {
            map.insert(pair.name(), pair.value(depth)?);
        }
        Ok(map)
    }

    fn next_pair(&mut self) -> Option<Pair<'a>> {
        // SAFETY: the owner outlives this iterator, so the list is live; `previous` is null or the
        // last pair of it.
        let next = unsafe { self.lib.nvlist_next_nvpair(self.list, self.previous) };
        self.previous = next;
        NonNull::new(next).map(|raw| Pair {
            lib: self.lib,
            raw: raw.as_ptr(),
            owner: self.owner,
        })
    }
}

/// A pair of a live list.
struct Pair<'a> {
    lib: &'static LibNvPair,
    raw: *mut nvpair_t,
    owner: PhantomData<&'a NvList>,
}

impl Pair<'_> {
    fn name(&self) -> String {
        // SAFETY: the pair belongs to a live list.
        let name = unsafe { self.lib.nvpair_name(self.raw) };
        copied(name, self)
    }

    fn value(&self, depth: u32) -> Result<NvValue, i32> {
        // SAFETY: the pair belongs to a live list.
        let kind = unsafe { self.lib.nvpair_type(self.raw) };
        Ok(match kind {
            sys::DATA_TYPE_BOOLEAN => NvValue::Flag,
            // In each of these arms the getter fits the kind, so it writes one value of that type.
            sys::DATA_TYPE_BOOLEAN_VALUE => {
                NvValue::Boolean(self.get(LibNvPair::nvpair_value_boolean_value, 0)? != 0)
            }
            sys::DATA_TYPE_INT32 => {
                NvValue::Signed(self.get(LibNvPair::nvpair_value_int32, 0)?.into())
            }
            sys::DATA_TYPE_INT64 => NvValue::Signed(self.get(LibNvPair::nvpair_value_int64, 0)?),
            sys::DATA_TYPE_UINT32 => {
                NvValue::Number(self.get(LibNvPair::nvpair_value_uint32, 0)?.into())
            }
            sys::DATA_TYPE_UINT64 => NvValue::Number(self.get(LibNvPair::nvpair_value_uint64, 0)?),
            sys::DATA_TYPE_STRING => NvValue::Text(copied(
                self.get(LibNvPair::nvpair_value_string, ptr::null())?,
                self,
            )),
            sys::DATA_TYPE_NVLIST if depth >= DEPTH_MAX => return Err(libc::ELOOP),
            sys::DATA_TYPE_NVLIST => NvValue::Map(self.inner_list()?.into_map(depth + 1)?),
            other => NvValue::Other(other),
        })
    }

    fn inner_list(&self) -> Result<Pairs<'_>, i32> {
        let mut list: *mut nvlist_t = ptr::null_mut();
        // SAFETY: the pair belongs to a live list; the list written here belongs to that list and
        // is only borrowed.
        status(unsafe { self.lib.nvpair_value_nvlist(self.raw, &raw mut list) })?;
        Ok(Pairs {
            lib: self.lib,
            list,
            previous: ptr::null_mut(),
            owner: PhantomData,
        })
    }

    /// Calls a getter that writes one `T`.
    fn get<T>(
        &self,
        getter: unsafe fn(&LibNvPair, *const nvpair_t, *mut T) -> i32,
        empty: T,
    ) -> Result<T, i32> {
        let mut value = empty;
        // SAFETY: the pair belongs to a live list; the getter writes one `T`, or returns an error
        // number.
        status(unsafe { getter(self.lib, self.raw, &raw mut value) })?;
        Ok(value)
    }
}

/// Copies a string that `_owner` keeps alive.
fn copied(text: *const c_char, _owner: &Pair<'_>) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the library's strings end with a zero, and the pair's list, which holds it, is live.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

/// Tests with the real libnvpair, which needs no kernel: `scripts/deps` installs it. `scripts/asan`
/// runs them under AddressSanitizer, which finds a list that is freed twice, leaked, or read after
/// it was freed.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::nvlist::{PackedValue, read_packed, write_packed};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn library() -> &'static LibNvPair {
        static LIBRARY: LazyLock<LibNvPair> = LazyLock::new(|| {
            // SAFETY: runs the library's initialisers, which affect nothing in this process.
            let opened = unsafe { LibNvPair::new("libnvpair.so.3") };
            opened.expect("libnvpair.so.3 is installed: scripts/deps")
        });
        &LIBRARY
    }

    fn unpacked(mut packed: Vec<u8>) -> Result<NvMap, i32> {
        NvList::unpack(library(), &mut packed)?.to_map()
    }

    #[test]
    fn list_gives_back_what_was_added() {
        let mut inner = NvList::new(library()).unwrap();
        inner.add_flag("tag").unwrap();
        let mut list = NvList::new(library()).unwrap();
        list.add_flag("flag").unwrap();
        list.add_number("number", u64::MAX).unwrap();
        list.add_text("text", "tank/\u{fc}").unwrap();
        list.add_list("inner", &inner).unwrap();
        list.add_number("again", 1).unwrap();
        list.add_text("again", "").unwrap();
        // The list has its own copy, and the values that were read belong to neither.
        drop(inner);
        let map = list.to_map().unwrap();
        drop(list);
        let expected = [
            ("flag", NvValue::Flag),
            ("number", NvValue::Number(u64::MAX)),
            ("text", NvValue::Text("tank/\u{fc}".to_owned())),
            (
                "inner",
                NvValue::Map(NvMap::from([("tag".to_owned(), NvValue::Flag)])),
            ),
            ("again", NvValue::Text(String::new())),
        ];
        assert_eq!(
            map,
            NvMap::from(expected.map(|(name, value)| (name.to_owned(), value)))
        );
    }

    #[test]
    fn zero_byte_is_refused_and_leaves_the_list_as_it_is() {
        let mut list = NvList::new(library()).unwrap();
        assert_eq!(list.add_flag("a\0b"), Err(libc::EINVAL));
        assert_eq!(list.add_text("a", "b\0c"), Err(libc::EINVAL));
        assert_eq!(list.to_map(), Ok(NvMap::new()));
    }

    #[test]
    fn lists_below_the_deepest_level_are_an_error() {
        let nested = |levels: u32| {
            let mut list = NvList::new(library())?;
            for _ in 0..levels {
                let mut outer = NvList::new(library())?;
                outer.add_list("l", &list)?;
                list = outer;
            }
            list.to_map()
        };
        assert!(nested(DEPTH_MAX).is_ok());
        assert_eq!(nested(DEPTH_MAX + 1), Err(libc::ELOOP));
    }

    #[test]
    fn empty_slot_is_no_list() {
        assert!(NvSlot::new(library()).take().is_none());
        assert!(unpacked(Vec::new()).is_err());
        assert!(unpacked(vec![0; 64]).is_err());
    }

    fn values() -> impl Strategy<Value = BTreeMap<String, PackedValue>> {
        let value = prop_oneof![
            Just(PackedValue::Flag),
            any::<u64>().prop_map(PackedValue::Number),
            "[a-z@/]{0,20}".prop_map(PackedValue::Text),
        ];
        prop::collection::btree_map("[a-z]{1,12}", value, 0..6)
    }

    fn as_ours(value: PackedValue) -> NvValue {
        match value {
            PackedValue::Flag => NvValue::Flag,
            PackedValue::Number(number) => NvValue::Number(number),
            PackedValue::Text(text) => NvValue::Text(text),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Our own reader of packed lists and the library must agree.
        #[test]
        fn libnvpair_reads_every_list_that_this_program_packs(values in values()) {
            let expected: NvMap = values.clone().into_iter().map(|(name, value)| (name, as_ours(value))).collect();
            prop_assert_eq!(unpacked(write_packed(&values)), Ok(expected));
        }

        /// Only a broken kernel would return such bytes; they must be read or refused without a
        /// crash.
        #[test]
        fn changed_nvlist_is_refused_or_read_equally_by_libnvpair_and_this_program(
            values in values(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut packed = write_packed(&values);
            // Leave the length and the kind of a pair intact: an older library trusts those.
            let texts = packed.len() - 4;
            for (at, byte) in changes {
                let at = 12 + at.index(texts.saturating_sub(12).max(1));
                if packed.get(at).is_some_and(u8::is_ascii_lowercase) {
                    packed[at] = byte;
                }
            }
            if let (Ok(theirs), Some(ours)) = (unpacked(packed.clone()), read_packed(&packed)) {
                let ours: NvMap = ours.into_iter().map(|(name, value)| (name, as_ours(value))).collect();
                prop_assert_eq!(theirs, ours);
            }
            let cut = cut.index(packed.len());
            prop_assert!(unpacked(packed[..cut].to_vec()).is_err() || cut == packed.len());
        }
    }
}
