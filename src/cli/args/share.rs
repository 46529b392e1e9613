//! Parses `--read-data`.

use crate::config::Size;
use crate::plan::sample::ReadShare;
use std::fmt;
use std::str::FromStr;

const FORMS: &str =
    "expected a share such as 5%, an amount such as 10G, or 1/7 for another seventh each day";

/// The error for a value that is not a share: names the value and the expected forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?}: {FORMS}{more}")]
pub struct InvalidShare {
    value: String,
    more: &'static str,
}

impl FromStr for ReadShare {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let invalid = |more| InvalidShare {
            value: text.to_owned(),
            more,
        };
        let number = |digits: &str| -> Option<u32> {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        if let Some(percent) = text.strip_suffix('%') {
            return match number(percent) {
                Some(100) => Ok(Self::All),
                Some(percent @ 1..=99) => u8::try_from(percent)
                    .map(Self::Percent)
                    .map_err(|_| invalid("")),
                Some(_) => Err(invalid("; from 1% to 100%")),
                None => Err(invalid("; whole percents only")),
            };
        }
        if let Some((one, parts)) = text.split_once('/') {
            return match (number(one), number(parts)) {
                (Some(1), Some(1)) => Ok(Self::All),
                (Some(1), Some(parts @ 1..)) => Ok(Self::Turn(parts)),
                (Some(1), _) => Err(invalid("")),
                _ => Err(invalid(
                    "; which part it is follows from the date, so the first number is 1",
                )),
            };
        }
        match text.parse::<Size>() {
            Ok(Size(0)) => Err(invalid("; at least one byte")),
            Ok(Size(bytes)) => Ok(Self::Bytes(bytes)),
            Err(_) => Err(invalid("")),
        }
    }
}

impl fmt::Display for ReadShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => write!(f, "100%"),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => write!(f, "{}", Size(*bytes)),
            Self::Turn(parts) => write!(f, "1/{parts}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_shares_parse_by_table_and_print_back() {
        let cases = [
            ("100%", Some(ReadShare::All)),
            ("5%", Some(ReadShare::Percent(5))),
            ("1/7", Some(ReadShare::Turn(7))),
            ("1/1", Some(ReadShare::All)),
            ("10G", Some(ReadShare::Bytes(10 << 30))),
            ("4096", Some(ReadShare::Bytes(4096))),
            ("0%", None),
            ("101%", None),
            ("2.5%", None),
            ("2/7", None),
            ("1/0", None),
            ("1/", None),
            ("/7", None),
            ("0", None),
            ("some", None),
            ("", None),
            ("-5%", None),
        ];
        for (text, expected) in cases {
            let parsed: Result<ReadShare, _> = text.parse();
            assert_eq!(parsed.clone().ok(), expected, "{text}");
            if let Ok(share) = &parsed {
                assert_eq!(share.to_string().parse().as_ref(), Ok(share), "{text}");
            }
            if let Err(error) = parsed {
                assert!(
                    error.to_string().contains(&format!("{text:?}"))
                        && error.to_string().contains("1/7")
                );
            }
        }
    }
}
