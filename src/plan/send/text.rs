//! The texts of [`super::plan_send`]. Each is without the dataset's name; further lines are
//! indented.

use super::{BaseLoss, FullReason, LocalBase, SendConflict};
use crate::model::{bytes_text, serialize_as_text};
use crate::plan::period::period_text;
use std::fmt;

serialize_as_text!(FullReason);

impl fmt::Display for FullReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("requested"),
            Self::First => f.write_str("first"),
            Self::BaseLost(loss) => write!(f, "base lost: {loss}"),
            Self::Flags { chain, now } => {
                write!(
                    f,
                    "the chain was sent with other flags: {}; now {}",
                    flags_text(chain),
                    flags_text(now)
                )
            }
            Self::Recipients => f.write_str("the chain is sealed to other recipients"),
            Self::Length { incrementals } => {
                write!(
                    f,
                    "the chain has {incrementals} incrementals in a row, as many as max_incrementals allows"
                )
            }
            Self::FirstOf { level, at } => {
                write!(f, "the first backup of {}", period_text(*level, *at))
            }
            Self::NoBaseOf { level } => write!(
                f,
                "a {level} backup is due, and the pool has neither snapshot nor bookmark of a backup that it may build on"
            ),
            Self::Age { full_at } => write!(
                f,
                "the chain's full is of {}, older than full_every",
                day(*full_at)
            ),
            Self::Share { percent, limit } => {
                write!(
                    f,
                    "the chain's incrementals hold {percent}% of its full, more than {limit}%"
                )
            }
        }
    }
}

fn flags_text(flags: &[String]) -> String {
    if flags.is_empty() {
        "none".to_owned()
    } else {
        flags.join(", ")
    }
}

fn day(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

impl fmt::Display for BaseLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.newest {
            None => f.write_str("the store has no backup")?,
            Some((snapshot, flaw)) => {
                write!(
                    f,
                    "store's newest: {} guid {}  here: ",
                    day(snapshot.created_at),
                    snapshot.guid
                )?;
                f.write_str(match self.here {
                    LocalBase::Snapshot => "its snapshot",
                    LocalBase::Bookmark => "a bookmark of it",
                    LocalBase::Redacted => {
                        "only a bookmark with a redaction list, from which no backup can start"
                    }
                    LocalBase::Unfit => {
                        "only without an IV-set guid (a fault of OpenZFS up to 2.1.5): ZFS would not receive a raw incremental from it"
                    }
                    LocalBase::Neither => "neither snapshot nor bookmark",
                })?;
                match flaw {
                    Some(flaw) => write!(f, "\n  but it is not usable: {flaw}")?,
                    None if matches!(self.here, LocalBase::Snapshot | LocalBase::Bookmark) => {
                        f.write_str(", and not older than what would be sent")?
                    }
                    None => {}
                }
            }
        }
        match &self.unseen {
            None => Ok(()),
            Some(why) => write!(f, "\n  and there may be more: {why}"),
        }
    }
}

impl fmt::Display for SendConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSnapshot { others } => {
                write!(f, "no snapshot to send ({others} others do not match)")
            }
            Self::NoCommonBase(loss) => {
                write!(f, "no incremental possible. Nothing sent.\n  {loss}")
            }
            Self::TooLarge {
                loss,
                estimate_bytes: Some(bytes),
                limit_bytes,
            } => write!(
                f,
                "no incremental possible, and a full would send {}, more than auto_full_max ({}). Nothing sent.\n  {loss}",
                bytes_text(*bytes),
                bytes_text(*limit_bytes)
            ),
            Self::TooLarge {
                loss,
                estimate_bytes: None,
                ..
            } => write!(
                f,
                "no incremental possible, and the size of a full is unknown. Nothing sent.\n  {loss}"
            ),
            Self::TooManyChunks(count) => write!(f, "{count}. Nothing sent."),
            Self::OnlyFull(why) => write!(f, "no incremental possible: {why}. Nothing sent."),
            Self::Redacted { name } => write!(
                f,
                "{name} is redacted: some of its data was taken out before it was received here"
            ),
        }
    }
}

impl std::error::Error for SendConflict {}
