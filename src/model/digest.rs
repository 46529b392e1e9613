//! [`Digest`]: a BLAKE3 hash, the identity of stored bytes.

use super::InvalidName;
use std::fmt;
use std::str::FromStr;

/// 32 bytes of BLAKE3, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Returns the digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        blake3::Hash::from_hex(text)
            .ok()
            .filter(|hash| hash.to_hex().as_str() == text)
            .map(Self::from)
            .ok_or_else(|| {
                InvalidName::new(
                    "digest",
                    text,
                    "expected 64 lower-case hexadecimal digits of BLAKE3",
                )
            })
    }
}
