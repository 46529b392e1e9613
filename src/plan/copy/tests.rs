//! The copies to the remote, by table: existing, pruned and dependent backups.

use super::*;
use crate::manifest::{Origin, SnapshotRef};
use crate::model::{BackupKind, BackupLevel, Digest, Guid};
use jiff::Timestamp;

/// Makes a backup of snapshot `guid` with this nonce, based on `base`.
fn facts(guid: u64, nonce: u64, base: Option<&BackupFacts>) -> BackupFacts {
    let at = Timestamp::from_second(1_760_000_000 + i64::try_from(guid).unwrap() * 86_400).unwrap();
    let kind = if base.is_some() {
        BackupKind::Incr
    } else {
        BackupKind::Full
    };
    let id = BackupId::new(at, kind, Guid(guid), nonce);
    BackupFacts {
        manifest_blake3: Digest::of(id.as_str().as_bytes()),
        snapshot: SnapshotRef {
            guid: Guid(guid),
            createtxg: guid,
            created_at: at,
        },
        base: base.map(|base| base.id.clone()),
        full_id: base.map_or_else(|| id.clone(), |base| base.full_id.clone()),
        position: base.map_or(0, |base| base.position + 1),
        origin: Origin {
            dataset_guid: Guid(7),
            pool_guid: Guid(8),
        },
        made: Default::default(),
        requested: vec!["large-blocks".into()],
        recipients: vec!["age1test".into()],
        stream_bytes: 1,
        stored_bytes: 1,
        flaw: None,
        id,
    }
}

#[derive(Default)]
struct Case<'a> {
    local: Vec<&'a BackupFacts>,
    remote: Vec<&'a BackupFacts>,
    untrusted: Vec<&'a BackupFacts>,
    pruned: Vec<&'a BackupFacts>,
    would_be_pruned: Vec<&'a BackupFacts>,
    all: bool,
}

impl Case<'_> {
    fn plan(&self) -> CopyPlan {
        let ids = |list: &[&BackupFacts]| {
            list.iter()
                .map(|facts| facts.id.clone())
                .collect::<BTreeSet<_>>()
        };
        let owned = |list: &[&BackupFacts]| {
            list.iter()
                .map(|facts| (*facts).clone())
                .collect::<Vec<_>>()
        };
        plan_copy(&CopyInput {
            local: &owned(&self.local),
            remote: &owned(&self.remote),
            untrusted: &ids(&self.untrusted),
            pruned: &ids(&self.pruned),
            would_be_pruned: &ids(&self.would_be_pruned),
            all: self.all,
        })
    }

    /// Checks the copied ids, and that every backup is in exactly one list.
    #[track_caller]
    fn copies(&self, expected: &[&BackupFacts]) -> CopyPlan {
        let plan = self.plan();
        let copied: Vec<&BackupId> = plan.copy.iter().map(|step| &step.id).collect();
        assert_eq!(
            copied,
            expected.iter().map(|facts| &facts.id).collect::<Vec<_>>(),
            "{plan:?}"
        );
        let mut all: Vec<&BackupId> = copied;
        all.extend(
            plan.left
                .iter()
                .map(|(id, _)| id)
                .chain(plan.refused.iter().map(|(id, _)| id)),
        );
        all.sort();
        let mut local: Vec<&BackupId> = self.local.iter().map(|facts| &facts.id).collect();
        local.sort();
        assert_eq!(all, local);
        plan
    }
}

#[test]
fn uncommitted_backups_are_copied_parents_first() {
    let full = facts(1, 1, None);
    let (first, other_full) = (facts(2, 1, Some(&full)), facts(4, 1, None));
    let second = facts(3, 1, Some(&first));
    let local = vec![&full, &first, &second, &other_full];
    let plan = Case {
        local: local.clone(),
        ..Case::default()
    }
    .copies(&[&full, &first, &second, &other_full]);
    let parents: Vec<Option<&BackupId>> =
        plan.copy.iter().map(|step| step.parent.as_ref()).collect();
    assert_eq!(parents, [None, Some(&full.id), Some(&first.id), None]);
    // The result does not depend on the order of the list.
    Case {
        local: vec![&second, &other_full, &first, &full],
        ..Case::default()
    }
    .copies(&[&full, &first, &second, &other_full]);
    let plan = Case {
        local: local.clone(),
        remote: vec![&full, &first],
        ..Case::default()
    }
    .copies(&[&second, &other_full]);
    assert_eq!(
        plan.left,
        [
            (full.id.clone(), LeftReason::Committed),
            (first.id.clone(), LeftReason::Committed)
        ]
    );
    Case {
        local: local.clone(),
        remote: local,
        all: true,
        ..Case::default()
    }
    .copies(&[]);
}

#[test]
fn pruned_backups_are_not_copied_unless_requested_or_needed_by_a_child() {
    let full = facts(1, 1, None);
    let first = facts(2, 1, Some(&full));
    let local = vec![&full, &first];
    let pruned = Case {
        local: local.clone(),
        pruned: local.clone(),
        ..Case::default()
    };
    assert_eq!(
        pruned.copies(&[]).left,
        [
            (full.id.clone(), LeftReason::Pruned),
            (first.id.clone(), LeftReason::Pruned)
        ]
    );
    Case {
        all: true,
        ..pruned
    }
    .copies(&[&full, &first]);
    let doomed = Case {
        local: local.clone(),
        would_be_pruned: local.clone(),
        ..Case::default()
    };
    let left = doomed.copies(&[]).left;
    assert_eq!(
        left,
        [
            (full.id.clone(), LeftReason::WouldBePruned),
            (first.id.clone(), LeftReason::WouldBePruned)
        ]
    );
    Case {
        all: true,
        ..doomed
    }
    .copies(&[&full, &first]);
    Case {
        local: local.clone(),
        would_be_pruned: vec![&full],
        ..Case::default()
    }
    .copies(&[&full, &first]);
    // Copying a new backup onto a pruned base needs a person's request.
    let plan = Case {
        local,
        pruned: vec![&full],
        ..Case::default()
    }
    .copies(&[]);
    let gap = CopyGap::PrunedParent {
        of: first.id.clone(),
        parent: full.id.clone(),
    };
    assert_eq!(plan.refused, [(first.id.clone(), gap.clone())]);
    let plan = Case {
        local: vec![&first],
        pruned: vec![&full],
        ..Case::default()
    }
    .copies(&[]);
    assert_eq!(plan.refused, [(first.id.clone(), gap)]);
}

#[test]
fn missing_or_damaged_parent_refuses_its_descendants_only() {
    let full = facts(1, 1, None);
    let first = facts(2, 1, Some(&full));
    let (second, other) = (facts(3, 1, Some(&first)), facts(4, 1, None));
    let plan = Case {
        local: vec![&first, &second, &other],
        ..Case::default()
    }
    .copies(&[&other]);
    let missing = CopyGap::MissingParent {
        of: first.id.clone(),
        parent: full.id.clone(),
    };
    let not_copied = CopyGap::ParentNotCopied {
        of: second.id.clone(),
        parent: first.id.clone(),
    };
    assert_eq!(
        plan.refused,
        [(first.id.clone(), missing), (second.id.clone(), not_copied)]
    );

    let damaged = BackupFacts {
        flaw: Some("a chunk is missing".into()),
        ..full.clone()
    };
    let plan = Case {
        local: vec![&full, &first, &other],
        remote: vec![&damaged],
        ..Case::default()
    }
    .copies(&[&other]);
    let gap = CopyGap::DamagedParent {
        of: first.id.clone(),
        parent: full.id.clone(),
        flaw: "a chunk is missing".into(),
    };
    assert_eq!(plan.refused, [(first.id.clone(), gap)]);
}

#[test]
fn another_manifest_under_the_same_id_is_never_taken_for_the_same_backup() {
    let full = facts(1, 1, None);
    let first = facts(2, 1, Some(&full));
    let other = BackupFacts {
        manifest_blake3: Digest::of(b"other"),
        ..full.clone()
    };
    let gap = CopyGap::Differs {
        id: full.id.clone(),
    };
    for case in [
        Case {
            local: vec![&full],
            remote: vec![&other],
            all: true,
            ..Case::default()
        },
        Case {
            local: vec![&full],
            untrusted: vec![&full],
            all: true,
            ..Case::default()
        },
    ] {
        assert_eq!(case.copies(&[]).refused, [(full.id.clone(), gap.clone())]);
    }
    let plan = Case {
        local: vec![&full, &first],
        untrusted: vec![&full],
        ..Case::default()
    }
    .copies(&[]);
    assert_eq!(plan.refused.len(), 2);
}

#[test]
fn twin_in_the_remote_replaces_the_backup_and_the_base() {
    let (full, twin) = (facts(1, 1, None), facts(1, 2, None));
    let first = facts(2, 1, Some(&full));
    let plan = Case {
        local: vec![&full, &first],
        remote: vec![&twin],
        ..Case::default()
    }
    .copies(&[&first]);
    assert_eq!(
        plan.left,
        [(
            full.id.clone(),
            LeftReason::Twin {
                of: twin.id.clone()
            }
        )]
    );
    assert_eq!(plan.copy[0].parent, Some(twin.id.clone()));
    // The same holds if the base is in neither store.
    let plan = Case {
        local: vec![&first],
        remote: vec![&twin],
        ..Case::default()
    }
    .copies(&[&first]);
    assert_eq!(plan.copy[0].parent, Some(twin.id.clone()));
    // A twin that cannot be restored does not replace a backup.
    let flawed = BackupFacts {
        flaw: Some("a chunk is missing".into()),
        ..twin.clone()
    };
    Case {
        local: vec![&full, &first],
        remote: vec![&flawed],
        ..Case::default()
    }
    .copies(&[&full, &first]);
    let changes: [fn(&mut BackupFacts); 5] = [
        |twin| twin.requested.clear(),
        |twin| twin.recipients.clear(),
        |twin| twin.origin.pool_guid = Guid(1),
        |twin| twin.position = 3,
        |twin| twin.snapshot.guid = Guid(99),
    ];
    for change in changes {
        let mut other = twin.clone();
        change(&mut other);
        Case {
            local: vec![&full, &first],
            remote: vec![&other],
            ..Case::default()
        }
        .copies(&[&full, &first]);
    }
    // Twins of the same snapshot over different bases are not the same backup.
    let (far, near) = (
        facts(3, 1, Some(&full)),
        facts(3, 2, Some(&facts(2, 9, None))),
    );
    Case {
        local: vec![&far],
        remote: vec![&full, &near],
        ..Case::default()
    }
    .copies(&[&far]);
}

#[test]
fn only_new_backups_are_reported_as_pruned_after_the_copy() {
    let rules = RetentionRules {
        last_fulls: Some(1),
        ..RetentionRules::default()
    };
    let now = Timestamp::from_second(1_770_000_000).unwrap();
    let doomed_ids = |remote: &[&BackupFacts],
                      local: &[&BackupFacts],
                      rules: &RetentionRules|
     -> Vec<BackupId> {
        let owned = |list: &[&BackupFacts]| {
            list.iter()
                .map(|facts| (*facts).clone())
                .collect::<Vec<_>>()
        };
        doomed(&owned(remote), &owned(local), rules, now)
            .into_iter()
            .collect()
    };
    let (old, older, new) = (facts(2, 1, None), facts(1, 1, None), facts(3, 1, None));
    let child = facts(4, 1, Some(&new));
    assert_eq!(
        doomed_ids(&[], &[&older, &old, &new, &child], &rules),
        [older.id.clone(), old.id.clone()]
    );
    // The newest chain is kept completely although no rule names its incrementals; existing backups
    // of the remote are not judged here.
    assert_eq!(
        doomed_ids(&[&older, &new], &[&older, &old, &new, &child], &rules),
        std::slice::from_ref(&old.id)
    );
    assert_eq!(
        doomed_ids(&[&new], &[&older], &RetentionRules::default()),
        []
    );
    // A newer chain in the remote makes the local chain the older one, unless the newer chain
    // cannot be restored.
    let newer = facts(9, 1, None);
    let damaged = BackupFacts {
        flaw: Some("a chunk is missing".into()),
        ..newer.clone()
    };
    assert_eq!(doomed_ids(&[&damaged], &[&new, &child], &rules), []);
    assert_eq!(
        doomed_ids(&[&newer], &[&new, &child], &rules),
        [new.id, child.id]
    );
}

#[test]
fn with_levels_a_nightly_whose_time_is_over_is_not_copied() {
    let full = facts(1, 1, None);
    let daily = |guid| {
        let mut backup = facts(guid, 1, Some(&full));
        backup.made.level = Some(BackupLevel::Daily);
        backup
    };
    let (second, third) = (daily(2), daily(3));
    let local = [full.clone(), second.clone(), third];
    let now = Timestamp::from_second(1_770_000_000).unwrap();
    let rules = RetentionRules {
        levels: Some("1y 1d".parse().unwrap()),
        // No store bills a backup that it does not have yet.
        at_least: Some("100y".parse().unwrap()),
        ..RetentionRules::default()
    };
    let doomed_ids =
        |local: &[BackupFacts]| doomed(std::slice::from_ref(&full), local, &rules, now);
    assert_eq!(doomed_ids(&local), [second.id].into());
    // The newest usable backup is copied also when a newer one is damaged.
    let mut damaged = local;
    damaged[2].flaw = Some("a chunk is missing".into());
    assert_eq!(doomed_ids(&damaged), [].into());
}
