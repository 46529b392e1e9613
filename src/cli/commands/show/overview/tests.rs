//! Tests of the screens of `show`, from views made by hand: every state, and that all lines fit.

use super::*;
use crate::cli::commands::show::details;
use crate::cli::commands::show::views::{
    BackupView, BookmarkView, LocalView, LockfileView, SnapshotView, StoreAnswer, StoreView,
    UploadView,
};
use crate::cli::open::history::{DEFAULT_LIMITS, facts_of};
use crate::model::{BackupId, BackupKind, BackupLevel, DatasetName, Guid};
use crate::plan::health::judge_health;
use crate::state::history::{DatasetHistory, DrillNote, FailureNote, SeenNote, VerifyNote};
use insta::assert_snapshot;
use jiff::Timestamp;

const NOW: i64 = 1_800_000_000;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const G: u64 = 1 << 30;

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW - seconds).unwrap()
}

fn id(seconds_ago: i64, kind: BackupKind, guid: u64) -> BackupId {
    BackupId::new(ago(seconds_ago), kind, Guid(guid), 0xfeed)
}

fn record(newest_ago: i64, position: u32) -> DatasetHistory {
    DatasetHistory {
        seen: Some(SeenNote {
            at: ago(6 * HOUR),
            newest: Some(id(newest_ago, BackupKind::Incr, 7)),
            newest_at: Some(ago(newest_ago)),
            chain_position: position,
            backups: 22,
            total_bytes: 10_076 * G,
            time_lines: 1,
        }),
        verify: Some(VerifyNote {
            at: ago(6 * HOUR),
            backups: 22,
            read_data: "none".into(),
        }),
        ..DatasetHistory::default()
    }
}

fn dataset(name: &str, record: Option<DatasetHistory>) -> DatasetView {
    let mut view = DatasetView {
        dataset: name.parse().unwrap(),
        local: None,
        intermediate: None,
        remote: None,
        record,
        running_in: Vec::new(),
        errors: Vec::new(),
        health: None,
        only_intermediate: false,
    };
    judge(&mut view);
    view
}

fn judge(view: &mut DatasetView) {
    let newest = view.newest().map(|newest| newest.snapshot_at);
    let facts = view.record.as_ref().map(|record| facts_of(record, newest));
    view.health = facts.map(|facts| judge_health(&facts, &DEFAULT_LIMITS, ago(0)));
}

fn local(name: &str, raw: bool) -> LocalView {
    let snapshot = |short: &str, guid, own, holds| SnapshotView {
        name: format!("{name}@{short}"),
        guid: Guid(guid),
        created_at: ago(2 * HOUR),
        used_bytes: 3 * G,
        referenced_bytes: 100 * G,
        own,
        holds,
    };
    let holds = vec![HoldView {
        snapshot: format!("{name}@zfs-backup_20270115T060000Z"),
        tag: format!("zfs-backup:{}", id(2 * HOUR, BackupKind::Full, 9)),
        since: ago(HOUR),
        used_bytes: 3 * G,
    }];
    LocalView {
        name: name.parse().unwrap(),
        guid: Guid(1),
        encrypted: raw,
        sent_raw: raw,
        snapshots: vec![
            snapshot("before-upgrade", 8, false, 0),
            snapshot("zfs-backup_20270115T060000Z", 9, true, 2),
        ],
        bookmarks: vec![BookmarkView {
            name: format!("{name}#zfs-backup_0000000000000007"),
            guid: Guid(7),
            created_at: ago(3 * DAY),
        }],
        holds,
    }
}

fn backup(seconds_ago: i64, position: u32, full: &BackupId, flaw: Option<&str>) -> BackupView {
    let kind = if position == 0 {
        BackupKind::Full
    } else {
        BackupKind::Incr
    };
    BackupView {
        id: if position == 0 {
            full.clone()
        } else {
            id(seconds_ago, kind, u64::from(position))
        },
        kind,
        level: None,
        full_id: full.clone(),
        position,
        base: None,
        snapshot_guid: Guid(u64::from(position)),
        snapshot_at: ago(seconds_ago),
        stream_bytes: 50 * G,
        stored_bytes: 51 * G,
        raw: false,
        clone_origin_guid: None,
        checked: true,
        flaw: flaw.map(str::to_owned),
    }
}

fn attempt(guid: u64, was_committed: bool) -> AttemptView {
    AttemptView {
        id: id(2 * HOUR, BackupKind::Full, guid),
        started_at: Some(ago(90 * 60)),
        base: None,
        objects: 42,
        bytes: 41 * G,
        newest_object_at: Some(ago(10 * 60)),
        given_up_at: None,
        was_committed,
        disbelieved: None,
    }
}

fn overview(datasets: Vec<DatasetView>) -> Overview {
    let answer = |url: &str| StoreAnswer {
        url: Some(url.to_owned()),
        asked: false,
        error: None,
        foreign_objects: None,
        foreign_bytes: None,
    };
    Overview {
        format: 1,
        now: ago(0),
        remote: answer("s3:bucket/nas1"),
        intermediate: StoreAnswer::default(),
        datasets,
        lockfile: None,
        never_deleted: Vec::new(),
    }
}

fn screen(overview: &Overview) -> String {
    let lines = lines(overview);
    for line in &lines {
        assert!(line.text.chars().count() <= 80, "too wide: {}", line.text);
        if let Some((word, _)) = &line.mark {
            assert!(
                line.text.contains(word.as_str()),
                "{word} is not in {}",
                line.text
            );
        }
    }
    lines
        .into_iter()
        .map(|line| line.text)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn overview_table_shows_each_dataset_state_from_the_history() {
    let photos = DatasetHistory {
        drill: Some(DrillNote {
            at: ago(12 * DAY),
            id: id(0, BackupKind::Full, 1),
        }),
        ..record(6 * HOUR, 21)
    };
    let mut secret = dataset("tank/secret", Some(record(50 * HOUR, 39)));
    secret.local = Some(local("tank/secret", true));
    let failure = FailureNote {
        at: ago(3 * HOUR),
        step: "backup".into(),
        reason:
            "put tank/mail/@x/00000412-feedbeef.zfs.age in s3:bucket/nas1: 401: key 0021 deleted"
                .into(),
        damage: false,
    };
    let mail = dataset(
        "tank/mail",
        Some(DatasetHistory {
            failures: vec![failure],
            ..record(6 * HOUR, 2)
        }),
    );
    let mut running = dataset("tank/vm", Some(record(6 * HOUR, 0)));
    running.running_in.push("s3:bucket/nas1".into());
    let new = dataset("tank/new", Some(DatasetHistory::default()));
    let all = overview(vec![
        dataset("tank/photos", Some(photos)),
        secret,
        mail,
        running,
        new,
    ]);
    assert_snapshot!(screen(&all), @r"
    DATASET     LAST    CHAIN   REMOTE VERIFIED DRILLED STATE
    tank/photos 6h incr full+21 9.83T  6h       12d     ok
    tank/secret 2d incr full+39 9.83T  6h       never   LATE (raw: ZFS key too)
    tank/mail   6h incr full+2  9.83T  6h       never   FAILED
    tank/vm     6h incr full    9.83T  6h       never   running
    tank/new    -       -       -      -        -       NONE KNOWN
      tank/secret: 50h old (max 26h)
      tank/mail: backup failed 3h ago: put tank/mail/@x/00000412-feedbeef.zfs.age in
        s3:bucket/nas1: 401: key 0021 deleted
      tank/new: no backup is known on this host
      LAST, CHAIN and REMOTE as known 6h ago; --include-remote asks the store
      pinned in the pool: 3.00G by 1 held snapshots
        (tank/secret@zfs-backup_20270115T060000Z)
      own snapshots: 1, at least 3.00G freed without them
      orphans: remote not asked; locks: a run is at work on tank/vm in
        s3:bucket/nas1
    ");
}

#[test]
fn overview_shows_unfinished_first_full_and_damage_from_the_listing() {
    let mut media = dataset("tank/media", Some(DatasetHistory::default()));
    media.local = Some(local("tank/media", false));
    media.remote = Some(StoreView {
        unfinished: vec![attempt(9, false)],
        ..StoreView::default()
    });
    let full = id(9 * DAY, BackupKind::Full, 0);
    let mut broken = dataset("tank/broken", Some(record(6 * HOUR, 1)));
    broken.remote = Some(StoreView {
        backups: vec![
            backup(9 * DAY, 0, &full, None),
            backup(6 * HOUR, 1, &full, Some("chunk 112: missing")),
        ],
        unfinished: vec![attempt(3, true)],
        uploads: vec![UploadView {
            key: "tank/broken/@x/y".into(),
            started_at: None,
        }],
        ..StoreView::default()
    });
    [&mut media, &mut broken].into_iter().for_each(judge);
    let mut all = overview(vec![media, broken]);
    all.remote.asked = true;
    all.lockfile = Some(LockfileView {
        path: "/var/lib/zfs-backup/zfs-backup.lock".into(),
        made_at: Some(ago(2 * HOUR)),
    });
    all.never_deleted
        .push("tank/old in the remote: this configuration does not name it".into());
    assert_snapshot!(screen(&all), @r"
    DATASET      LAST     CHAIN     REMOTE  VERIFIED  DRILLED  STATE
    tank/media   -        full 41%  41.0G   -         -        unfinished
    tank/broken  6h incr  full+1    143G    6h        never    DAMAGED
      tank/media: no backup is known on this host
      tank/broken: 20270115T020000Z-incr-0000000000000001-000000000000feed: chunk
        112: missing
      tank/broken: 20270115T060000Z-full-0000000000000003-000000000000feed: its
        manifest is missing, its signature exists
      pinned in the pool: 3.00G by 1 held snapshots
        (tank/media@zfs-backup_20270115T060000Z)
      own snapshots: 1, at least 3.00G freed without them
      orphans: remote 2 (82.0G), 1 open uploads; locks: the lockfile
      lockfile /var/lib/zfs-backup/zfs-backup.lock, made 2h ago; `zfs-backup unlock`
        removes it
      what no rule will ever delete:
        tank/old in the remote: this configuration does not name it
    ");
}

#[test]
fn unreadable_or_unverified_dataset_is_never_shown_as_ok() {
    let mut view = dataset("tank/a", Some(record(6 * HOUR, 1)));
    view.errors
        .push("list tank/a/@ in s3:bucket/nas1: 503".into());
    assert_eq!(state(&view).0, "UNKNOWN");
    let unread = dataset("tank/a", None);
    assert_eq!(state(&unread).0, "NONE KNOWN");
    let empty = DatasetView {
        remote: Some(StoreView::default()),
        ..dataset("tank/a", Some(record(6 * HOUR, 1)))
    };
    assert_eq!(
        state(&empty).0,
        "NO BACKUP",
        "what is remembered stands against what is listed"
    );
    let future = dataset("tank/a", Some(record(-3 * DAY, 1)));
    assert_eq!(state(&future).0, "UNKNOWN");
    let unverified = dataset(
        "tank/a",
        Some(DatasetHistory {
            verify: None,
            ..record(6 * HOUR, 1)
        }),
    );
    assert_eq!(state(&unverified).0, "check due");
    assert_eq!(state(&dataset("tank/a", Some(record(6 * HOUR, 1)))).0, "ok");
}

#[test]
fn overview_puts_a_long_dataset_name_on_its_own_line() {
    let name = format!("tank/{}", "very-long-name/".repeat(4).trim_end_matches('/'));
    let text = screen(&overview(vec![dataset(&name, Some(record(6 * HOUR, 1)))]));
    assert!(text.contains(&format!("{name}\n  6h incr")), "{text}");
}

#[test]
fn details_list_snapshots_chains_stores_and_unfinished_uploads() {
    let (old, full) = (
        id(40 * DAY, BackupKind::Full, 0),
        id(9 * DAY, BackupKind::Full, 1),
    );
    let mut view = dataset("tank/media", Some(record(6 * HOUR, 1)));
    view.local = Some(local("tank/media", false));
    let chain = || {
        vec![
            backup(9 * DAY, 0, &full, None),
            backup(6 * HOUR, 1, &full, None),
        ]
    };
    let mut remote = vec![backup(
        40 * DAY,
        0,
        &old,
        Some("00000112-feedbeef.zfs.age: missing"),
    )];
    remote.extend(chain());
    view.remote = Some(StoreView {
        backups: remote,
        unfinished: vec![attempt(9, false)],
        unknown_objects: 3,
        unknown_bytes: 12 << 20,
        ..StoreView::default()
    });
    view.intermediate = Some(StoreView {
        backups: chain().split_off(1),
        uploads: vec![UploadView {
            key: "tank/media/@x/00000000-feedbeef.zfs.age".into(),
            started_at: Some(ago(DAY)),
        }],
        ..StoreView::default()
    });
    view.remote
        .iter_mut()
        .for_each(|remote| remote.note_ends(14));
    let all = overview(vec![view]);
    let lines = details::lines(&all, &all.datasets[0]);
    assert!(
        lines.iter().all(|line| line.chars().count() <= 80),
        "{lines:#?}"
    );
    assert_snapshot!(lines[1..].join("\n"), @r"
    tank/media
      in the pool as tank/media: 2 snapshots, 1 of them ours; 1 bookmarks
      SNAPSHOT                      AGE   USED  REFERS  OURS  HELD
      @before-upgrade                2h  3.00G    100G  no       -
      @zfs-backup_20270115T060000Z   2h  3.00G    100G  yes      2
      #zfs-backup_0000000000000007   3d      -       -  -        -
      held 1h by
        zfs-backup:20270115T060000Z-full-0000000000000009-000000000000feed
        on tank/media@zfs-backup_20270115T060000Z
      KIND    SNAPSHOT OF       AGE  STREAM  STORED  WHERE
      full    2026-12-06 08:00  40d   50.0G   51.0G  remote
          20261206T080000Z-full-0000000000000000-000000000000feed
          NOT USABLE: 00000112-feedbeef.zfs.age: missing
      full    2027-01-06 08:00   9d   50.0G   51.0G  remote
          20270106T080000Z-full-0000000000000001-000000000000feed
      + incr  2027-01-15 02:00   6h   50.0G   51.0G  both
          20270115T020000Z-incr-0000000000000001-000000000000feed
      intermediate: an upload begun 24h ago was neither completed nor aborted
          tank/media/@x/00000000-feedbeef.zfs.age
      remote: unfinished, not a backup
          42 objects, 41.0G, begun 1h ago, newest 10m ago
          20270115T060000Z-full-0000000000000009-000000000000feed
          the next backup resumes it; a prune abandons it on 2027-01-29
      remote: 3 objects that are not of this format (12.0M), left alone
    ");
    let none = details::lines(&all, &dataset("tank/a", None)).join("\n");
    assert!(none.contains("no store was asked"), "{none}");
}

#[test]
fn details_show_a_chain_with_levels_as_a_tree() {
    use BackupLevel::{Daily, Monthly, Weekly, Yearly};
    let full = id(40 * DAY, BackupKind::Full, 0);
    let of_level = |days: i64, position, level| BackupView {
        level: Some(level),
        ..backup(days * DAY, position, &full, None)
    };
    let mut view = dataset("tank/media", None);
    view.remote = Some(StoreView {
        backups: vec![
            of_level(40, 0, Yearly),
            of_level(39, 1, Daily),
            of_level(33, 1, Weekly),
            of_level(32, 2, Daily),
            of_level(10, 1, Monthly),
            of_level(9, 2, Weekly),
            of_level(8, 3, Daily),
        ],
        ..StoreView::default()
    });
    let all = overview(vec![view]);
    let lines = details::lines(&all, &all.datasets[0]);
    assert!(
        lines.iter().all(|line| line.chars().count() <= 80),
        "{lines:#?}"
    );
    let tree = lines.iter().filter(|line| !line.starts_with("      2"));
    let tree: Vec<&str> = tree.map(String::as_str).collect();
    assert_snapshot!(tree[2..].join("\n"), @r"
      KIND          SNAPSHOT OF       AGE  STREAM  STORED  WHERE
      full, yearly  2026-12-06 08:00  40d   50.0G   51.0G  remote
          + daily   2026-12-07 08:00  39d   50.0G   51.0G  remote
        + weekly    2026-12-13 08:00  33d   50.0G   51.0G  remote
          + daily   2026-12-14 08:00  32d   50.0G   51.0G  remote
      + monthly     2027-01-05 08:00  10d   50.0G   51.0G  remote
        + weekly    2027-01-06 08:00   9d   50.0G   51.0G  remote
          + daily   2027-01-07 08:00   8d   50.0G   51.0G  remote
    ");
}

#[test]
fn json_has_every_field_under_its_documented_name() {
    let documented = include_str!("../../../../../docs/json.md");
    let mut view = dataset("tank/media", Some(record(6 * HOUR, 1)));
    view.local = Some(local("tank/media", false));
    let full = id(9 * DAY, BackupKind::Full, 1);
    view.remote = Some(StoreView {
        backups: vec![backup(9 * DAY, 0, &full, None)],
        unfinished: vec![attempt(9, false)],
        uploads: vec![UploadView {
            key: "k".into(),
            started_at: None,
        }],
        ..StoreView::default()
    });
    let mut all = overview(vec![view]);
    all.lockfile = Some(LockfileView {
        path: "/x".into(),
        made_at: None,
    });
    fn names(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                found.push(name.clone());
                names(value, found);
            }),
            serde_json::Value::Array(items) => items.iter().for_each(|item| names(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    names(&serde_json::json!(all), &mut found);
    for name in found {
        assert!(
            documented.contains(&format!("`{name}`")),
            "docs/json.md does not name `{name}`"
        );
    }
    let _: DatasetName = all.datasets[0].dataset.clone();
}
