//! `snapshot`: who refuses is left out and named, pools do not depend on each other, hooks run
//! around it.

use crate::world::{name, never, now};
use std::path::Path;
use std::time::Duration;
use zfs_backup::config::{CommandLine, Hooks, TimeLimit};
use zfs_backup::model::DatasetName;
use zfs_backup::run::hooks::RunningHook;
use zfs_backup::run::pool::snapshot::{
    SnapshotRun, SnapshotsTaken, is_own, snapshot_between_hooks, take_each_snapshot,
};
use zfs_backup::run::transfer::Stop;
use zfs_backup::zfs::fake::FakeZfs;
use zfs_backup::zfs::{
    Dataset, DatasetType, ReceiveRequest, SendFlags, SendRequest, ZfsRead, ZfsReceive, ZfsSend,
    ZfsSnapshots,
};

const SHORT: &str = "zfs-backup_20260102T030405Z";

/// Pools with these datasets.
fn pools(names: &[&str]) -> FakeZfs {
    let zfs = FakeZfs::new();
    names
        .iter()
        .for_each(|dataset| zfs.create(&name(dataset), DatasetType::Filesystem));
    zfs
}

fn datasets(zfs: &FakeZfs, names: &[&str]) -> Vec<Dataset> {
    names
        .iter()
        .map(|dataset| zfs.dataset(&name(dataset)).unwrap().unwrap())
        .collect()
}

fn take(zfs: &FakeZfs, names: &[&str]) -> (Vec<String>, Vec<String>) {
    told(&take_each_snapshot(
        zfs,
        &datasets(zfs, names),
        "zfs-backup_",
        now(),
    ))
}

/// What was taken, and what was refused with its reason.
fn told(outcome: &SnapshotsTaken) -> (Vec<String>, Vec<String>) {
    let reason = |(dataset, error): &(DatasetName, zfs_backup::run::RunError)| {
        format!("{dataset}: {}", zfs_backup::run::error_chain(error))
    };
    (
        outcome.taken.iter().map(ToString::to_string).collect(),
        outcome.refused.iter().map(reason).collect(),
    )
}

/// Leaves a dataset in the middle of its first receive.
fn leave_half_received(zfs: &FakeZfs, target: &str) {
    let source = name("source/f");
    zfs.create(&source, DatasetType::Filesystem);
    zfs.write_file(&source, 7, &crate::world::noise(3, 100_000));
    let snapshot = source.snapshot("s").unwrap();
    zfs.take_snapshots(
        std::slice::from_ref(&snapshot),
        &std::collections::BTreeMap::new(),
    )
    .unwrap();
    let request = SendRequest {
        snapshot,
        base: None,
        flags: SendFlags::default(),
        resume: None,
    };
    let mut sending = zfs.send(&request).unwrap();
    let mut bytes = Vec::new();
    sending.reader().read_to_end(&mut bytes).unwrap();
    sending.finish().unwrap();
    let request = ReceiveRequest {
        target: name(target).snapshot("s").unwrap(),
        resumable: true,
        properties: std::collections::BTreeMap::new(),
    };
    zfs.receive(&request, &mut &bytes[..bytes.len() / 2])
        .unwrap_err();
    assert!(zfs.dataset(&name(target)).unwrap().unwrap().inconsistent);
}

#[test]
fn one_call_per_pool_snapshots_all_datasets_in_one_transaction_group() {
    let zfs = pools(&["tank/a", "tank/b", "other/c"]);
    let chosen = datasets(&zfs, &["tank/a", "other/c", "tank/b"]);
    let calls = zfs.calls();
    let (taken, refused) = told(&take_each_snapshot(&zfs, &chosen, "zfs-backup_", now()));
    assert_eq!(zfs.calls(), calls + 2);
    assert_eq!(
        taken,
        [
            format!("other/c@{SHORT}"),
            format!("tank/a@{SHORT}"),
            format!("tank/b@{SHORT}")
        ]
    );
    assert_eq!(refused, Vec::<String>::new());
    let txg = |dataset: &str| {
        zfs.snapshots(&name(dataset))
            .unwrap()
            .pop()
            .unwrap()
            .createtxg
    };
    assert_eq!(txg("tank/a"), txg("tank/b"));
    for dataset in chosen {
        assert!(
            is_own(
                &zfs.snapshots(&dataset.name).unwrap()[0],
                dataset.guid,
                "zfs-backup_"
            ),
            "{}",
            dataset.name
        );
    }
}

#[test]
fn a_dataset_in_the_middle_of_a_receive_is_left_out_and_named() {
    let zfs = pools(&["tank/a", "tank/b", "other/c"]);
    leave_half_received(&zfs, "tank/half");
    let (taken, refused) = take(&zfs, &["tank/a", "tank/half", "tank/b", "other/c"]);
    assert_eq!(
        taken,
        [
            format!("other/c@{SHORT}"),
            format!("tank/a@{SHORT}"),
            format!("tank/b@{SHORT}")
        ]
    );
    assert_eq!(refused.len(), 1);
    assert!(
        refused[0].starts_with(&format!(
            "tank/half: snapshot tank/half@{SHORT}: it is busy"
        )),
        "{refused:?}"
    );
}

#[test]
fn missing_dataset_or_used_name_does_not_stop_other_snapshots() {
    let zfs = pools(&["tank/a", "tank/b", "tank/c"]);
    let chosen = datasets(&zfs, &["tank/a", "tank/b", "tank/c"]);
    zfs.destroy_dataset(&name("tank/b")).unwrap();
    let other = name("tank/a").snapshot(SHORT).unwrap();
    zfs.take_snapshots(&[other], &std::collections::BTreeMap::new())
        .unwrap();
    let (taken, refused) = told(&take_each_snapshot(&zfs, &chosen, "zfs-backup_", now()));
    assert_eq!(
        taken,
        [format!("tank/a@{SHORT}-1"), format!("tank/c@{SHORT}-1")]
    );
    assert!(
        refused.len() == 1 && refused[0].starts_with("tank/b: "),
        "{refused:?}"
    );
}

#[test]
fn snapshot_error_without_a_dataset_name_fails_its_pool_only() {
    let zfs = pools(&["tank/a", "tank/b", "other/c"]);
    let chosen = datasets(&zfs, &["tank/a", "tank/b", "other/c"]);
    // The pools go by name: the second call is tank's.
    zfs.fail_call(2, libc_eperm());
    let (taken, refused) = told(&take_each_snapshot(&zfs, &chosen, "zfs-backup_", now()));
    assert_eq!(taken, [format!("other/c@{SHORT}")]);
    assert_eq!(refused.len(), 2);
    assert!(
        refused[0].starts_with("tank/a: ") && refused[1].starts_with("tank/b: "),
        "{refused:?}"
    );
    assert!(
        refused
            .iter()
            .all(|reason| reason.contains("not permitted")),
        "{refused:?}"
    );
}

/// EPERM of Linux.
fn libc_eperm() -> i32 {
    rustix::io::Errno::PERM.raw_os_error()
}

#[test]
fn missing_dataset_behind_an_unnamed_error_is_the_only_one_skipped() {
    let zfs = pools(&["tank/a", "tank/b"]);
    let chosen = datasets(&zfs, &["tank/a", "tank/b"]);
    zfs.destroy_dataset(&name("tank/b")).unwrap();
    zfs.fail_call(1, rustix::io::Errno::NOENT.raw_os_error());
    let (taken, refused) = told(&take_each_snapshot(&zfs, &chosen, "zfs-backup_", now()));
    assert_eq!(taken, [format!("tank/a@{SHORT}")]);
    assert_eq!(refused, ["tank/b: there is no dataset tank/b"]);
}

/// Hooks that write down what they see, and end as told.
fn hooks(log: &Path, pre: &str, post: &str) -> Hooks {
    let hook = |which: &str, end: &str| -> Option<CommandLine> {
        let line = format!(
            "echo {which} status=$ZFS_BACKUP_EXIT_STATUS step=$ZFS_BACKUP_STEP >> '{}'; {end}",
            log.display()
        );
        Some(shell_words::join(["/bin/sh", "-c", &line]).parse().unwrap())
    };
    Hooks {
        pre_snapshot: hook("pre", pre),
        post_snapshot: hook("post", post),
        on_failure: None,
        on_success: None,
        timeout: TimeLimit::seconds(60),
    }
}

async fn run(zfs: &FakeZfs, hooks: &Hooks, stop: &Stop) -> SnapshotsTaken {
    run_on(zfs, &["tank/a"], hooks, stop, true).await
}

async fn run_on(
    zfs: &FakeZfs,
    names: &[&str],
    hooks: &Hooks,
    stop: &Stop,
    of_unchanged: bool,
) -> SnapshotsTaken {
    let datasets = datasets(zfs, names);
    let variables = vec![("ZFS_BACKUP_STEP", "step02".to_owned())];
    let running = RunningHook::default();
    let run = SnapshotRun {
        zfs,
        datasets: &datasets,
        prefix: "zfs-backup_",
        of_unchanged,
        now,
        hooks,
        variables,
        stop,
        running: &running,
    };
    snapshot_between_hooks(&run).await
}

#[tokio::test]
async fn snapshot_hooks_run_and_a_failing_pre_hook_prevents_the_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let cases: &[(&str, &str, usize, &[&str], &str)] = &[
        (
            "exit 0",
            "exit 0",
            1,
            &[],
            "pre status= step=step02\npost status=0 step=step02\n",
        ),
        (
            "exit 3",
            "exit 0",
            0,
            &["run the hook main.pre_snapshot (/bin/sh): it ended with exit status: 3"],
            "pre status= step=step02\npost status=1 step=step02\n",
        ),
        (
            "exit 0",
            "exit 4",
            1,
            &["run the hook main.post_snapshot (/bin/sh): it ended with exit status: 4"],
            "pre status= step=step02\npost status=0 step=step02\n",
        ),
    ];
    for (index, (pre, post, taken, errors, told)) in cases.iter().enumerate() {
        let log = folder.path().join(index.to_string());
        let zfs = pools(&["tank/a"]);
        let outcome = run(&zfs, &hooks(&log, pre, post), &never()).await;
        assert_eq!(
            (
                outcome.taken.len(),
                zfs.snapshots(&name("tank/a")).unwrap().len()
            ),
            (*taken, *taken)
        );
        let found: Vec<String> = outcome
            .hook_errors
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, *errors);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), *told);
    }
}

#[tokio::test]
async fn stop_request_ends_the_pre_hook_and_still_runs_the_post_hook() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let zfs = pools(&["tank/a"]);
    let (sender, stop) = tokio::sync::watch::channel(false);
    let hooks = hooks(&log, "exec sleep 600", "exit 0");
    let (outcome, ()) = tokio::join!(run(&zfs, &hooks, &stop), async {
        while !log.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sender.send_replace(true);
    });
    assert!(
        matches!(
            &outcome.hook_errors[..],
            [zfs_backup::run::RunError::Interrupted]
        ),
        "{outcome:?}"
    );
    assert_eq!(zfs.snapshots(&name("tank/a")).unwrap().len(), 0);
    assert!(
        std::fs::read_to_string(&log)
            .unwrap()
            .ends_with("post status=1 step=step02\n")
    );
}

#[tokio::test]
async fn dataset_without_a_write_since_its_newest_own_snapshot_gets_none_if_so_configured() {
    let zfs = pools(&[
        "tank/new",
        "tank/same",
        "tank/written",
        "tank/foreign",
        "dozer/busy",
    ]);
    let all = [
        "tank/new",
        "tank/same",
        "tank/written",
        "tank/foreign",
        "dozer/busy",
    ];
    take(&zfs, &all[1..]);
    zfs.write_file(&name("tank/written"), 7, b"new");
    let foreign = name("tank/foreign").snapshot("autosnap_1_daily").unwrap();
    zfs.take_snapshots(&[foreign], &Default::default()).unwrap();
    let hooks = Hooks {
        pre_snapshot: None,
        post_snapshot: None,
        ..hooks(Path::new("/dev/null"), "exit 0", "exit 0")
    };
    let taken = async |of_unchanged| {
        let mut taken = run_on(&zfs, &all, &hooks, &never(), of_unchanged).await;
        taken.taken.sort();
        let unchanged: Vec<_> = taken.unchanged.iter().map(|it| it.name.clone()).collect();
        (told(&taken).0, unchanged)
    };
    let (some, unchanged) = taken(false).await;
    let next = format!("{SHORT}-1");
    assert_eq!(
        some,
        ["tank/foreign", "tank/new", "tank/written"].map(|dataset| format!("{dataset}@{next}"))
    );
    assert_eq!(
        unchanged,
        ["tank/same", "dozer/busy"].map(|dataset| name(dataset).snapshot(SHORT).unwrap())
    );
    // A new key of an encrypted dataset writes nothing, and needs a backup.
    zfs.set_encrypted(&name("tank/same"), false);
    let (encrypted, _) = taken(false).await;
    assert_eq!(encrypted, [format!("tank/same@{SHORT}-1")]);
    let (every, unchanged) = taken(true).await;
    assert_eq!((every.len(), unchanged.len()), (5, 0));
    // The datasets of a pool that cannot be synced all get one.
    zfs.fail_call(all.len() as u64 + 1, libc_eperm());
    let (some, unchanged) = taken(false).await;
    let names = [
        format!("dozer/busy@{SHORT}-2"),
        format!("tank/same@{SHORT}-3"),
    ];
    assert_eq!(some, names);
    assert_eq!(unchanged.len(), 3);
}
