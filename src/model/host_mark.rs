//! [`HostMark`]: distinguishes hosts whose pools have the same guids.

use super::InvalidName;
use std::fmt;
use std::str::FromStr;

/// Hexadecimal digits of each half.
const HALF_DIGITS: usize = 16;

/// A hash of the machine id and the random id of a `state_dir`, as in
/// `0123456789abcdef-fedcba9876543210`. A cloned machine gets another machine id, a new
/// installation another `state_dir`; either change makes another mark.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostMark(String);

impl fmt::Display for HostMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostMark {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let is_half = |half: &str| {
            half.len() == HALF_DIGITS
                && half.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        match text.split_once('-') {
            Some((machine, state)) if is_half(machine) && is_half(state) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(InvalidName::new(
                "host mark",
                text,
                "expected two times 16 lower-case hexadecimal digits",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_two_halves_of_sixteen_digits() {
        let mark = "0123456789abcdef-fedcba9876543210";
        assert_eq!(mark.parse::<HostMark>().unwrap().to_string(), mark);
        for bad in [
            "",
            "-",
            "0123456789abcdef",
            "0123456789abcdef-fedcba987654321",
            "0123456789ABCDEF-fedcba9876543210",
        ] {
            assert!(bad.parse::<HostMark>().is_err(), "{bad}");
        }
    }
}
