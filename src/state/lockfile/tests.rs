//! Tests of the lockfile: which holders count as gone, and that only one of many processes gets it.

use super::*;

fn holder(kind: LockKind) -> LockHolder {
    LockHolder::current(kind, Timestamp::UNIX_EPOCH).unwrap()
}

/// Returns the holder of a process that is gone.
fn gone() -> LockHolder {
    LockHolder {
        pid_started: Some(1),
        ..holder(LockKind::Run)
    }
}

fn plant(path: &Path, holder: &LockHolder) {
    std::fs::write(path, serde_json::to_vec(holder).unwrap()).unwrap();
}

#[track_caller]
fn taken(outcome: TakeOutcome) -> (HeldLock, Option<Box<LockHolder>>) {
    match outcome {
        TakeOutcome::Taken(lock, replaced) => (lock, replaced),
        TakeOutcome::Busy(state) => panic!("busy: {state:?}"),
    }
}

#[test]
fn lock_is_stale_only_if_its_run_has_certainly_ended() {
    let run = holder(LockKind::Run);
    let here = run.here.clone();
    let with = |change: fn(&mut LockHolder)| {
        let mut holder = run.clone();
        change(&mut holder);
        holder
    };
    let cases: &[(&str, LockHolder, bool, bool)] = &[
        ("a process that lives", run.clone(), false, false),
        ("a process that is gone", run.clone(), true, true),
        (
            "an earlier boot",
            with(|h| h.here.boot_id = "other".into()),
            false,
            true,
        ),
        (
            "an unknown boot",
            with(|h| h.here.boot_id = String::new()),
            true,
            false,
        ),
        (
            "another host",
            with(|h| h.here.host = "other".into()),
            true,
            false,
        ),
        (
            "another host of the same name",
            with(|h| h.here.machine = "other".into()),
            true,
            false,
        ),
        (
            "another host, booted since",
            with(|h| (h.here.host, h.here.boot_id) = ("o".into(), "o".into())),
            true,
            false,
        ),
        (
            "another container",
            with(|h| h.here.pid_namespace = "pid:[1]".into()),
            true,
            false,
        ),
        (
            "a start time that was never known",
            with(|h| h.pid_started = None),
            true,
            false,
        ),
        (
            "made by hand",
            with(|h| h.kind = LockKind::Manual),
            true,
            false,
        ),
        (
            "made by hand before the last boot",
            with(|h| (h.kind, h.here.boot_id) = (LockKind::Manual, "o".into())),
            true,
            false,
        ),
    ];
    for (what, holder, gone, stale) in cases {
        assert_eq!(holder.is_stale(&here, |_, _| *gone), *stale, "{what}");
    }
}

#[test]
fn lockfile_is_taken_once_and_removed_with_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder/x.lock");
    let (first, second) = (holder(LockKind::Run), holder(LockKind::Run));
    assert_eq!(read_lock(&path, &first.here).unwrap(), LockState::Free);
    let (lock, replaced) = taken(take_lock(&path, &first).unwrap());
    assert!(replaced.is_none() && lock.is_of(&first) && !lock.is_of(&second));
    assert_eq!(
        read_lock(&path, &first.here).unwrap(),
        LockState::Held(first.clone())
    );
    let refused = take_lock(&path, &second).unwrap();
    assert!(matches!(refused, TakeOutcome::Busy(LockState::Held(other)) if other == first));
    assert!(lock.release().unwrap());
    drop(taken(take_lock(&path, &second).unwrap()));
    assert_eq!(
        std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
        0,
        "nothing is left beside the lock"
    );
}

#[test]
fn release_of_a_removed_lock_leaves_the_lock_of_a_new_holder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.lock");
    let (first, second) = (holder(LockKind::Run), holder(LockKind::Manual));
    let (lock, _) = taken(take_lock(&path, &first).unwrap());
    assert!(remove_lock(&path, &first.here, |_| true).unwrap().1);
    taken(take_lock(&path, &second).unwrap()).0.stay();
    assert!(!lock.release().unwrap());
    assert_eq!(
        read_lock(&path, &first.here).unwrap(),
        LockState::Held(second)
    );
}

#[test]
fn only_one_of_many_concurrent_takers_gets_a_stale_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.lock");
    for _ in 0..20 {
        plant(&path, &gone());
        let outcomes: Vec<TakeOutcome> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| take_lock(&path, &holder(LockKind::Run)).unwrap()))
                .collect();
            takers
                .into_iter()
                .map(|taker| taker.join().unwrap())
                .collect()
        });
        let winners = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, TakeOutcome::Taken(..)))
            .count();
        assert_eq!(winners, 1);
        drop(outcomes);
        assert!(!path.exists());
    }
}

#[test]
fn invalid_lockfile_still_counts_as_a_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.lock");
    let whole = serde_json::to_string(&gone()).unwrap();
    for text in [
        "",
        "x",
        &whole[..whole.len() / 2],
        "{}",
        &whole.replace("\"run\"", "\"walk\""),
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(
            matches!(
                read_lock(&path, &HostBoot::current()),
                Ok(LockState::Damaged(_))
            ),
            "{text}"
        );
        let outcome = take_lock(&path, &holder(LockKind::Run)).unwrap();
        assert!(
            matches!(outcome, TakeOutcome::Busy(LockState::Damaged(_))),
            "{text}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(
        read_lock(&path, &HostBoot::current()),
        Ok(LockState::Damaged(_))
    ));
    std::fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
    assert!(matches!(
        read_lock(&path, &HostBoot::current()),
        Err(StateError::File { .. })
    ));
    assert!(take_lock(&path, &holder(LockKind::Run)).is_err());
}

#[test]
fn a_lockfile_of_a_later_version_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.lock");
    let run = holder(LockKind::Run);
    let text = serde_json::to_string(&run)
        .unwrap()
        .replacen('{', "{\"new\":1,", 1);
    std::fs::write(&path, text).unwrap();
    assert_eq!(read_lock(&path, &run.here).unwrap(), LockState::Held(run));
}

#[test]
fn kernel_lock_held_on_the_lockfile_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zb.lock");
    std::fs::write(&path, "{}").unwrap();
    let theirs = File::open(&path).unwrap();
    flock(&theirs, FlockOperation::LockExclusive).unwrap();
    let error = open_alone_within(&path, Duration::from_millis(50)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("zb.lock") && text.contains("kernel lock"),
        "{text}"
    );
    assert!(
        error
            .hint()
            .unwrap()
            .contains(&format!("fuser -v {}", path.display())),
        "{error:?}"
    );
    drop(theirs);
    assert!(open_alone_within(&path, Duration::ZERO).unwrap().is_some());
}
