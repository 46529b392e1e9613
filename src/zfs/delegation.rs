//! The permissions that `zfs allow` granted: by dataset, the holders, and how far down they reach.

use super::nvlist::{NvMap, NvValue};
use super::{ZfsCall, ZfsError};
use crate::model::DatasetName;
use std::collections::BTreeSet;

/// The holder of permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// A user, by number.
    User(u32),
    /// A group, by number.
    Group(u32),
    /// Every user.
    Everyone,
    /// The creator of a dataset below, on that dataset.
    Creator,
}

/// Permissions granted on one dataset. Sets, whose names begin with `@`, are already resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The dataset on which the permissions were granted.
    pub on: DatasetName,
    /// The holder of the permissions.
    pub who: Who,
    /// Whether the permissions apply to that dataset itself.
    pub local: bool,
    /// Whether the permissions apply to everything below the dataset, including the dataset's own
    /// snapshots.
    pub descendent: bool,
    /// The names of the permissions, as `zfs allow` writes them.
    pub permissions: BTreeSet<String>,
}

impl ZfsError {
    /// Returns the permissions that `zfs allow` must grant for the attempted operation, if it
    /// failed because one was missing.
    pub fn permissions_lacking(&self) -> Option<&'static str> {
        let (operation, errno) = match self {
            Self::Call {
                operation, source, ..
            } => (operation, source),
            Self::Several {
                operation,
                failures,
            } => (
                operation,
                failures
                    .iter()
                    .map(|(_, errno)| errno)
                    .find(|errno| errno.0 == libc::EPERM)?,
            ),
            _ => return None,
        };
        match *operation {
            _ if errno.0 != libc::EPERM => None,
            "snapshot" => Some("snapshot,userprop"),
            "destroy" => Some("destroy,mount"),
            "hold" => Some("hold"),
            "release the hold on" => Some("release"),
            "bookmark" => Some("bookmark"),
            "send" | "estimate the stream of" => Some("send"),
            "receive" => Some("receive,create,destroy,mount,userprop,canmount,readonly"),
            "create" => Some("create,mount"),
            _ => None,
        }
    }
}

/// Reads the kernel's list: by dataset, then by a key such as `ul$1000` (user, local), then names.
pub(super) fn delegations(call: &ZfsCall, answer: &NvMap) -> Result<Vec<Delegation>, ZfsError> {
    let mut found = Vec::new();
    // Sets may be defined on any ancestor, so their names are looked up on every dataset in the
    // list.
    let lists = answer.values().filter_map(map);
    let sets: Vec<(&str, Vec<&str>)> = lists
        .flat_map(|list| list.iter())
        .filter_map(|(key, permissions)| {
            let set = key
                .strip_prefix("s-$")
                .or_else(|| key.strip_prefix("S-$"))?;
            Some((set, names(permissions)))
        })
        .collect();
    for (on, list) in answer {
        let on: DatasetName = on
            .parse()
            .map_err(|_| call.malformed(format!("permissions of {on:?}, which is no dataset")))?;
        for (key, permissions) in map(list).into_iter().flatten() {
            let Some((who, local)) = parse_key(key).map_err(|text| call.malformed(text))? else {
                continue;
            };
            let mut permissions: BTreeSet<String> =
                names(permissions).into_iter().map(str::to_owned).collect();
            resolve(&mut permissions, &sets);
            let descendent = !local;
            found.push(Delegation {
                on: on.clone(),
                who,
                local,
                descendent,
                permissions,
            });
        }
    }
    Ok(found)
}

fn map(value: &NvValue) -> Option<&NvMap> {
    match value {
        NvValue::Map(map) => Some(map),
        _ => None,
    }
}

fn names(value: &NvValue) -> Vec<&str> {
    map(value)
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect()
}

/// Replaces sets by their members. Sets may contain sets; as many rounds as there are sets are
/// enough.
fn resolve(permissions: &mut BTreeSet<String>, sets: &[(&str, Vec<&str>)]) {
    for _ in 0..=sets.len() {
        let members: Vec<String> = sets
            .iter()
            .filter(|(name, _)| permissions.contains(*name))
            .flat_map(|(_, members)| members.iter().map(|member| (*member).to_owned()))
            .collect();
        permissions.extend(members);
    }
}

/// Returns the holder of the permissions, and whether they apply to the dataset itself or below it.
/// Definitions of sets (`s`) have no holder.
fn parse_key(key: &str) -> Result<Option<(Who, bool)>, String> {
    let unknown = || format!("permissions of an unknown form: {key:?}");
    let (head, id) = key.split_once('$').ok_or_else(unknown)?;
    let mut head = head.chars();
    let (Some(kind), Some(reach), None) = (head.next(), head.next(), head.next()) else {
        return Err(unknown());
    };
    let number = || id.parse::<u32>().map_err(|_| unknown());
    let who = match kind.to_ascii_lowercase() {
        'u' => Who::User(number()?),
        'g' => Who::Group(number()?),
        'e' => Who::Everyone,
        'c' if reach == '-' => return Ok(Some((Who::Creator, false))),
        's' => return Ok(None),
        _ => return Err(unknown()),
    };
    match reach {
        'l' => Ok(Some((who, true))),
        'd' => Ok(Some((who, false))),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> NvValue {
        NvValue::Map(
            names
                .iter()
                .map(|name| ((*name).to_owned(), NvValue::Flag))
                .collect(),
        )
    }

    fn on(entries: &[(&str, &[&str])]) -> NvValue {
        NvValue::Map(
            entries
                .iter()
                .map(|(key, names)| ((*key).to_owned(), list(names)))
                .collect(),
        )
    }

    #[test]
    fn kernel_delegations_are_parsed() {
        let answer: NvMap = [
            (
                "tank".to_owned(),
                on(&[
                    ("s-$@send", &["send", "hold"]),
                    ("Ud$1000", &["@send"]),
                    ("c-$", &["destroy"]),
                ]),
            ),
            (
                "tank/a".to_owned(),
                on(&[
                    ("ul$1000", &["snapshot"]),
                    ("gd$7", &["send"]),
                    ("el$", &["diff"]),
                ]),
            ),
        ]
        .into();
        let found = delegations(&ZfsCall::new("read", "tank/a"), &answer).unwrap();
        let told: Vec<_> = found
            .iter()
            .map(|given| {
                let names: Vec<_> = given.permissions.iter().map(String::as_str).collect();
                format!(
                    "{} {:?} {} {}",
                    given.on,
                    given.who,
                    given.local,
                    names.join(",")
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                "tank User(1000) false @send,hold,send",
                "tank Creator false destroy",
                "tank/a Everyone true diff",
                "tank/a Group(7) false send",
                "tank/a User(1000) true snapshot",
            ]
        );
        assert!(found.iter().all(|given| given.local != given.descendent));
    }

    #[test]
    fn unknown_delegation_key_is_an_error() {
        for key in ["x", "zl$1", "ux$1", "ul$one", "ull$1"] {
            let answer: NvMap = [("tank".to_owned(), on(&[(key, &["send"])]))].into();
            let error = delegations(&ZfsCall::new("read", "tank"), &answer).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
