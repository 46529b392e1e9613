//! Finds the permissions of ZFS that a user other than root lacks. Pure.

use crate::model::DatasetName;
use crate::zfs::{Delegation, Who};
use std::collections::BTreeSet;

/// The running user and all groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The effective user id; 0 is root.
    pub uid: u32,
    /// The effective group and all supplementary groups.
    pub gids: Vec<u32>,
}

/// The permissions that a backup needs on the dataset itself.
const LOCAL: [&str; 5] = ["snapshot", "userprop", "hold", "release", "bookmark"];
/// The permissions that a backup needs on the dataset's snapshots. Only grants for descendants
/// count for them.
const BELOW: [&str; 1] = ["send"];
/// The permissions for destroying old bookmarks and snapshots.
const TIDY: [&str; 2] = ["destroy", "mount"];

/// The permissions that the kernel requires for each receive on the dataset, or on the parent of a
/// new dataset.
const RECEIVE: [&str; 3] = ["receive", "create", "mount"];
/// The permission to destroy the remains of a failed restore, and to start over.
const GIVE_UP: &str = "destroy";

/// The missing permissions on one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// The permissions without which no backup can be made.
    pub needed: Vec<&'static str>,
    /// The permissions without which old snapshots and bookmarks are not destroyed.
    pub tidy: Vec<&'static str>,
}

impl Missing {
    /// Returns all missing permissions.
    pub fn all(&self) -> Vec<&'static str> {
        [self.needed.as_slice(), self.tidy.as_slice()].concat()
    }
}

/// Returns the permissions that this user lacks on this dataset. `given` is what was granted on it
/// and on its ancestors.
pub fn missing_permissions(
    dataset: &DatasetName,
    given: &[Delegation],
    identity: &Identity,
) -> Missing {
    let lacks = |names: &[&'static str], reach| -> Vec<&'static str> {
        names
            .iter()
            .copied()
            .filter(|name| !has(given, identity, dataset, reach, name))
            .collect()
    };
    Missing {
        needed: [lacks(&LOCAL, Reach::Itself), lacks(&BELOW, Reach::Below)].concat(),
        tidy: lacks(&TIDY, Reach::Below),
    }
}

/// The objects that a permission must cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The dataset itself, not its descendants.
    Itself,
    /// Existing descendants: the dataset's snapshots, or datasets below it.
    Below,
    /// A dataset that this user will create below the dataset.
    Made,
}

fn has(
    given: &[Delegation],
    identity: &Identity,
    dataset: &DatasetName,
    reach: Reach,
    name: &str,
) -> bool {
    let is_ours = |who: &Who| match who {
        Who::User(uid) => *uid == identity.uid,
        Who::Group(gid) => identity.gids.contains(gid),
        Who::Everyone => true,
        Who::Creator => reach == Reach::Made,
    };
    let reaches =
        |delegation: &Delegation| match delegation.on == *dataset && reach == Reach::Itself {
            true => delegation.local,
            false => delegation.descendent,
        };
    let mut ours = given
        .iter()
        .filter(|delegation| is_ours(&delegation.who) && reaches(delegation));
    ours.any(|delegation| delegation.permissions.contains(name))
}

/// The facts of a restore on which permissions depend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreNeeds<'a> {
    /// The target, or its nearest existing ancestor.
    pub above: &'a DatasetName,
    /// Whether the target does not exist.
    pub is_new: bool,
    /// Whether datasets between the ancestor and the target do not exist either.
    pub makes_parents: bool,
    /// Whether more than one backup is received.
    pub is_chain: bool,
    /// Whether snapshots of the target are destroyed and it is rolled back.
    pub rolls_back: bool,
    /// The properties that the restore sets.
    pub properties: BTreeSet<&'a str>,
}

/// Returns the permissions that this user lacks for a restore, in the words of `zfs allow`; `given`
/// is what was granted on [`RestoreNeeds::above`] and on its ancestors. (From `zfs_secpolicy_recv`,
/// `zfs_secpolicy_create_clone` and `zfs_secpolicy_setprop` of OpenZFS 2.1 and 2.3: the first
/// receive of a new dataset needs permissions on its parent, everything later on the dataset
/// itself.)
pub fn missing_for_restore(
    needs: &RestoreNeeds<'_>,
    given: &[Delegation],
    identity: &Identity,
) -> Vec<String> {
    let on_target = if needs.is_new {
        Reach::Made
    } else {
        Reach::Itself
    };
    let mut wanted: Vec<(&str, Reach)> =
        RECEIVE.iter().map(|name| (*name, Reach::Itself)).collect();
    if needs.is_new && (needs.is_chain || needs.makes_parents) {
        wanted.extend(RECEIVE.iter().map(|name| (*name, Reach::Made)));
    }
    wanted.push(("userprop", on_target));
    wanted.extend(needs.makes_parents.then_some(("canmount", Reach::Made)));
    wanted.extend((needs.is_chain || needs.rolls_back).then_some(("readonly", on_target)));
    if needs.rolls_back {
        // The kernel requires `destroy` and `mount` on the snapshots, and `rollback` on the
        // dataset.
        wanted.extend([
            ("rollback", Reach::Itself),
            ("destroy", Reach::Below),
            ("mount", Reach::Below),
        ]);
    }
    wanted.extend(needs.properties.iter().map(|name| {
        (
            if name.contains(':') {
                "userprop"
            } else {
                *name
            },
            on_target,
        )
    }));
    let mut missing: Vec<String> = Vec::new();
    for (name, reach) in wanted {
        if !has(given, identity, needs.above, reach, name)
            && !missing.iter().any(|other| other == name)
        {
            missing.push(name.to_owned());
        }
    }
    // This permission alone is no reason to refuse: without it a failed restore only leaves what it
    // received.
    if !missing.is_empty() && !has(given, identity, needs.above, on_target, GIVE_UP) {
        missing.push(GIVE_UP.to_owned());
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(on: &str, who: Who, local: bool, names: &str) -> Delegation {
        let permissions = names.split_whitespace().map(str::to_owned).collect();
        Delegation {
            on: on.parse().unwrap(),
            who,
            local,
            descendent: !local,
            permissions,
        }
    }

    #[test]
    fn missing_restore_permissions_by_table() {
        let me = Identity {
            uid: 1000,
            gids: vec![1000],
        };
        let tank: DatasetName = "tank".parse().unwrap();
        let user = || Who::User(1000);
        let new = RestoreNeeds {
            above: &tank,
            is_new: true,
            makes_parents: false,
            is_chain: false,
            rolls_back: false,
            properties: BTreeSet::new(),
        };
        let chain = RestoreNeeds {
            is_chain: true,
            ..new.clone()
        };
        let deep = RestoreNeeds {
            makes_parents: true,
            ..new.clone()
        };
        let set = RestoreNeeds {
            properties: ["quota", "org.example:note"].into(),
            ..new.clone()
        };
        let onto = RestoreNeeds {
            is_new: false,
            ..chain.clone()
        };
        let back = RestoreNeeds {
            is_new: false,
            rolls_back: true,
            ..new.clone()
        };
        let both = |names: &str| {
            vec![
                given("tank", user(), true, names),
                given("tank", user(), false, names),
            ]
        };
        let all = "receive create mount userprop destroy";
        for (name, needs, given, expected) in [
            (
                "nothing given",
                &new,
                vec![],
                "receive create mount userprop destroy",
            ),
            ("all of it", &new, both(all), ""),
            (
                "without destroy",
                &new,
                both("receive create mount userprop"),
                "",
            ),
            (
                "one missing",
                &new,
                both("receive create userprop destroy"),
                "mount",
            ),
            (
                "only on the parent",
                &new,
                vec![given("tank", user(), true, all)],
                "userprop destroy",
            ),
            (
                "only below the parent",
                &new,
                vec![given("tank", user(), false, all)],
                "receive create mount",
            ),
            (
                "another user",
                &new,
                vec![given("tank", Who::User(7), true, all)],
                "receive create mount userprop destroy",
            ),
            ("a chain", &chain, both(all), "readonly"),
            ("parents", &deep, both(all), "canmount"),
            ("properties", &set, both(all), "quota"),
            (
                "whoever makes it",
                &chain,
                {
                    let creator = given(
                        "tank",
                        Who::Creator,
                        false,
                        "receive create mount userprop readonly",
                    );
                    vec![given("tank", user(), true, all), creator]
                },
                "",
            ),
            (
                "onto it",
                &onto,
                vec![given(
                    "tank",
                    user(),
                    true,
                    "receive create mount userprop readonly",
                )],
                "",
            ),
            ("rolled back", &back, both(all), "readonly rollback"),
            (
                "rolled back, without destroy below it",
                &back,
                vec![
                    given(
                        "tank",
                        user(),
                        true,
                        "receive create mount userprop readonly rollback destroy",
                    ),
                    given("tank", user(), false, "mount"),
                ],
                "destroy",
            ),
            (
                "onto it, by what is for makers",
                &onto,
                vec![given("tank", Who::Creator, false, all)],
                "receive create mount userprop readonly destroy",
            ),
        ] {
            assert_eq!(
                missing_for_restore(needs, &given, &me).join(" "),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn missing_backup_permissions_by_table() {
        let me = Identity {
            uid: 1000,
            gids: vec![1000, 7],
        };
        let all = "snapshot userprop hold release bookmark send destroy mount";
        let user = || Who::User(1000);
        let cases: [(&str, Vec<Delegation>, &str, &str); 8] = [
            (
                "nothing given",
                vec![],
                "snapshot userprop hold release bookmark send",
                "destroy mount",
            ),
            (
                "all on it",
                vec![
                    given("tank/a", user(), true, all),
                    given("tank/a", user(), false, all),
                ],
                "",
                "",
            ),
            (
                "all above it",
                vec![given("tank", user(), false, all)],
                "",
                "",
            ),
            (
                "only local",
                vec![given("tank/a", user(), true, all)],
                "send",
                "destroy mount",
            ),
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
                    given(
                        "tank",
                        Who::Group(7),
                        false,
                        "snapshot userprop hold release",
                    ),
                    given("tank", Who::Everyone, false, "bookmark send"),
                ],
                "",
                "destroy mount",
            ),
            (
                "one missing",
                vec![given("tank", user(), false, &all.replace("hold ", ""))],
                "hold",
                "",
            ),
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
