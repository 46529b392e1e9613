//! [`StoreId`]: the identity of a store, independent of its URL; [`KnownStore`]: the identity with
//! the URL.

use super::InvalidName;
use std::fmt;
use std::str::FromStr;

const HEX_DIGITS: usize = 32;
const EXPECTED: &str = "expected 32 lower-case hexadecimal digits";

/// The identity of a store, which names this host's state for that store.
///
/// A store that was written to has 128 random bits in an object of its own. A store without this
/// object (nothing was written to it since identities exist) is identified by its URL. Earlier
/// versions named their state by the URL, so the state of such a store is still found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(String);

impl StoreId {
    /// Makes the identity from random bits.
    pub fn from_random(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }

    /// Makes a substitute for the identity of a store that has none yet. A URL has a colon, so the
    /// substitute never equals a random identity.
    pub fn of_url(url: &str) -> Self {
        Self(url.to_owned())
    }

    /// Whether the identity is stored in the store. Only such identities may be compared to
    /// distinguish two stores.
    pub fn is_random(&self) -> bool {
        is_hex(&self.0)
    }

    /// Returns the identity as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_hex(text: &str) -> bool {
    text.len() == HEX_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Parses random identities only.
impl FromStr for StoreId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_hex(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::new("store id", text, EXPECTED))
        }
    }
}

/// A store as this host knows it: its identity and its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownStore {
    /// The store's identity.
    pub id: StoreId,
    /// The store's URL.
    pub url: String,
}

impl KnownStore {
    /// Describes a store without an identity of its own.
    pub fn of_url(url: &str) -> Self {
        Self {
            id: StoreId::of_url(url),
            url: url.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_random_store_ids_parse_and_a_url_is_refused() {
        let id = StoreId::from_random(0xfe);
        assert_eq!(id.as_str(), "000000000000000000000000000000fe");
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        assert!(id.is_random() && !StoreId::of_url("s3:b/p").is_random());
        for wrong in [
            "",
            "s3:b/p",
            "000000000000000000000000000000FE",
            "000000000000000000000000000000fe ",
            "fe",
        ] {
            assert!(wrong.parse::<StoreId>().is_err(), "{wrong:?}");
        }
    }
}
