//! Complete chains, chains with gaps, and chains with twins in place of missing backups.

use super::*;
use crate::manifest::{BaseRef, ChainPlace, CompressionName, Files, Origin, SendInfo, SnapshotRef};
use crate::model::{BackupKind, Guid};
use jiff::Timestamp;

/// Makes a backup of snapshot `guid` under an id with this nonce.
fn backup(guid: u64, nonce: u64, base: Option<&Manifest>) -> Manifest {
    let at = Timestamp::from_second(1_760_000_000 + i64::try_from(guid).unwrap() * 86_400).unwrap();
    let kind = if base.is_some() {
        BackupKind::Incr
    } else {
        BackupKind::Full
    };
    let id = BackupId::new(at, kind, Guid(guid), nonce);
    let chain = match base {
        None => ChainPlace {
            full_id: id.clone(),
            position: 0,
            stored_bytes: 1,
        },
        Some(base) => ChainPlace {
            position: base.chain.position + 1,
            ..base.chain.clone()
        },
    };
    Manifest {
        format: 1,
        requires: Vec::new(),
        object_type: "manifest".into(),
        dataset: "tank/a".parse().unwrap(),
        kind,
        snapshot: SnapshotRef {
            guid: Guid(guid),
            createtxg: guid,
            created_at: at,
        },
        base: base.map(|base| BaseRef {
            guid: base.snapshot.guid,
            backup_id: base.id.clone(),
            manifest_blake3: digest(base),
        }),
        origin: Origin {
            dataset_guid: Guid(7),
            pool_guid: Guid(8),
        },
        host_mark: None,
        previous: None,
        group: None,
        clone_origin_guid: None,
        level: None,
        chain,
        send: SendInfo {
            requested: vec!["large-blocks".into()],
            feature_flags: 0,
            zfs_version: "test".into(),
            checked: true,
        },
        stream_bytes: 1,
        split_bytes: 4,
        compression: CompressionName::None,
        recipients: vec!["age1test".into()],
        chunk_lists: Vec::new(),
        files: Files {
            restore_text: Digest::of(b""),
            private: Digest::of(b""),
            keyring: None,
            index: None,
        },
        tool_version: "test".into(),
        started_at: at,
        finished_at: at,
        id,
    }
}

fn digest(manifest: &Manifest) -> Digest {
    Digest::of(manifest.id.as_str().as_bytes())
}

fn plan(backups: &[&Manifest], target: &Manifest) -> Result<Vec<BackupId>, RestoreGap> {
    let known: Vec<(&Manifest, Digest)> = backups
        .iter()
        .map(|manifest| (*manifest, digest(manifest)))
        .collect();
    Ok(plan_restore(&known, &target.id)?
        .into_iter()
        .map(|manifest| manifest.id.clone())
        .collect())
}

fn ids(backups: &[&Manifest]) -> Result<Vec<BackupId>, RestoreGap> {
    Ok(backups.iter().map(|manifest| manifest.id.clone()).collect())
}

fn missing(of: &Manifest, base: &Manifest) -> Result<Vec<BackupId>, RestoreGap> {
    Err(RestoreGap::MissingBase {
        of: of.id.clone(),
        missing: base.id.clone(),
    })
}

#[test]
fn a_chain_is_planned_full_first_and_a_gap_is_named() {
    let full = backup(1, 1, None);
    let first = backup(2, 1, Some(&full));
    let second = backup(3, 1, Some(&first));
    assert_eq!(
        plan(&[&second, &full, &first], &second),
        ids(&[&full, &first, &second])
    );
    assert_eq!(plan(&[&second, &full, &first], &full), ids(&[&full]));
    assert_eq!(plan(&[&full, &second], &second), missing(&second, &first));
    assert_eq!(plan(&[&first, &second], &second), missing(&first, &full));
    assert_eq!(
        plan(&[&full], &second),
        Err(RestoreGap::NoBackup {
            id: second.id.clone()
        })
    );
}

#[test]
fn twin_replaces_a_missing_base() {
    let (full, twin) = (backup(1, 1, None), backup(1, 2, None));
    let first = backup(2, 1, Some(&full));
    let second = backup(3, 1, Some(&first));
    assert_eq!(
        plan(&[&twin, &first, &second], &second),
        ids(&[&twin, &first, &second])
    );
    // The base itself takes precedence, at any place in the list.
    assert_eq!(plan(&[&twin, &full, &first], &first), ids(&[&full, &first]));
    // A twin in the middle continues over its own base.
    let twin_of_first = backup(2, 2, Some(&twin));
    assert_eq!(
        plan(&[&twin, &twin_of_first, &second], &second),
        ids(&[&twin, &twin_of_first, &second])
    );
    // A twin that leads nowhere is skipped in favour of one that does.
    let lost = backup(1, 3, None);
    let mut dead_end = backup(2, 0, Some(&lost));
    dead_end.base.as_mut().unwrap().guid = Guid(77);
    assert_eq!(
        plan(&[&dead_end, &twin, &twin_of_first, &second], &second),
        ids(&[&twin, &twin_of_first, &second])
    );
    // A dead end whose base has no twin either.
    let other_snapshot = backup(9, 1, None);
    assert_eq!(
        plan(&[&dead_end, &other_snapshot, &second], &second),
        missing(&second, &first)
    );
}

#[test]
fn only_a_twin_with_equal_origin_flags_and_position_replaces_a_base() {
    let (full, twin) = (backup(1, 1, None), backup(1, 2, None));
    let first = backup(2, 1, Some(&full));
    type Change = (&'static str, fn(&mut Manifest));
    let changes: [Change; 5] = [
        ("flags", |twin| twin.send.requested.push("raw".into())),
        ("recipients", |twin| {
            twin.recipients = vec!["age1other".into()]
        }),
        ("origin", |twin| twin.origin.dataset_guid = Guid(70)),
        ("pool", |twin| twin.origin.pool_guid = Guid(80)),
        ("position", |twin| twin.chain.position = 1),
    ];
    assert_eq!(plan(&[&twin, &first], &first), ids(&[&twin, &first]));
    for (what, change) in changes {
        let mut other = twin.clone();
        change(&mut other);
        assert_eq!(
            plan(&[&other, &first], &first),
            missing(&first, &full),
            "{what}"
        );
    }
    for other in [backup(4, 1, None), backup(1, 2, Some(&backup(9, 9, None)))] {
        assert_eq!(
            plan(&[&other, &first], &first),
            missing(&first, &full),
            "{}",
            other.id
        );
    }
}

#[test]
fn changed_base_is_refused_although_a_twin_exists() {
    let (mut full, twin) = (backup(1, 1, None), backup(1, 2, None));
    let first = backup(2, 1, Some(&full));
    full.snapshot.guid = Guid(5);
    let changed = RestoreGap::ChangedBase {
        of: first.id.clone(),
        base: full.id.clone(),
    };
    assert_eq!(plan(&[&full, &twin, &first], &first), Err(changed.clone()));
    let full = backup(1, 1, None);
    let known = [
        (&full, Digest::of(b"another manifest")),
        (&twin, digest(&twin)),
        (&first, digest(&first)),
    ];
    assert_eq!(plan_restore(&known, &first.id).err(), Some(changed));
}
