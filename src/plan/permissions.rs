//! Which permissions of ZFS a user lacks who is not root. Pure.

use crate::model::DatasetName;
use crate::zfs::{Delegation, Who};

/// The running user and all groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The effective user.
    pub uid: u32,
    /// The effective and all other groups.
    pub gids: Vec<u32>,
}

/// What a backup needs on the dataset itself.
const LOCAL: [&str; 5] = ["snapshot", "userprop", "hold", "release", "bookmark"];
/// What it needs on its snapshots, for which only what reaches below the dataset counts.
const BELOW: [&str; 1] = ["send"];
/// What tidying up needs: bookmarks and old snapshots.
const TIDY: [&str; 2] = ["destroy", "mount"];

/// What is missing on one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Without these no backup can be made.
    pub needed: Vec<&'static str>,
    /// Without these old snapshots and bookmarks stay.
    pub tidy: Vec<&'static str>,
}

impl Missing {
    /// All of them.
    pub fn all(&self) -> Vec<&'static str> {
        [self.needed.as_slice(), self.tidy.as_slice()].concat()
    }
}

/// What this user lacks on this dataset. `given` is what was given on it and on those above it.
pub fn missing_permissions(dataset: &DatasetName, given: &[Delegation], identity: &Identity) -> Missing {
    let is_ours = |who: &Who| match who {
        Who::User(uid) => *uid == identity.uid,
        Who::Group(gid) => identity.gids.contains(gid),
        Who::Everyone => true,
    };
    let reaches = |delegation: &Delegation, below: bool| match delegation.on == *dataset && !below {
        true => delegation.local,
        false => delegation.descendent,
    };
    let has = |name: &str, below: bool| {
        let mut ours = given.iter().filter(|delegation| is_ours(&delegation.who) && reaches(delegation, below));
        ours.any(|delegation| delegation.permissions.contains(name))
    };
    let lacks =
        |names: &[&'static str], below| names.iter().copied().filter(|name| !has(name, below)).collect::<Vec<_>>();
    Missing { needed: [lacks(&LOCAL, false), lacks(&BELOW, true)].concat(), tidy: lacks(&TIDY, true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(on: &str, who: Who, local: bool, names: &str) -> Delegation {
        let permissions = names.split_whitespace().map(str::to_owned).collect();
        Delegation { on: on.parse().unwrap(), who, local, descendent: !local, permissions }
    }

    #[test]
    fn what_is_missing_by_table() {
        let me = Identity { uid: 1000, gids: vec![1000, 7] };
        let all = "snapshot userprop hold release bookmark send destroy mount";
        let user = || Who::User(1000);
        let cases: [(&str, Vec<Delegation>, &str, &str); 8] = [
            ("nothing given", vec![], "snapshot userprop hold release bookmark send", "destroy mount"),
            ("all on it", vec![given("tank/a", user(), true, all), given("tank/a", user(), false, all)], "", ""),
            ("all above it", vec![given("tank", user(), false, all)], "", ""),
            ("only local", vec![given("tank/a", user(), true, all)], "send", "destroy mount"),
            (
                "local above",
                vec![given("tank", user(), true, all)],
                "snapshot userprop hold release bookmark send",
                "destroy mount",
            ),
            (
                "another user",
                vec![given("tank", Who::User(0), false, all)],
                "snapshot userprop hold release bookmark send",
                "destroy mount",
            ),
            (
                "by group and everyone",
                vec![
                    given("tank", Who::Group(7), false, "snapshot userprop hold release"),
                    given("tank", Who::Everyone, false, "bookmark send"),
                ],
                "",
                "destroy mount",
            ),
            ("one missing", vec![given("tank", user(), false, &all.replace("hold ", ""))], "hold", ""),
        ];
        for (name, given, needed, tidy) in cases {
            let missing = missing_permissions(&"tank/a".parse().unwrap(), &given, &me);
            assert_eq!(
                (missing.needed.join(" "), missing.tidy.join(" ")),
                (needed.to_owned(), tidy.to_owned()),
                "{name}"
            );
        }
    }
}
