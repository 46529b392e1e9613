//! What hooks are told and what becomes of them, seen from outside.

use crate::scene::{Scene, is_alive};
use rustix::process::Signal;

/// A scene whose sequence fails at `snapshot`, with this `on_failure`.
fn failing(script: &str) -> Scene {
    let scene = Scene::new(&[]);
    let hook = scene.hook("on_failure", script);
    scene.configure(
        &hook,
        &["lock", "snapshot", "stream-to-remote", "unlock"],
        "",
    );
    scene
}

#[test]
fn on_failure_hook_receives_the_report_in_environment_and_stdin() {
    let scene =
        failing("cat > $D/stdin; env > $D/env; test ! -e $D/zb.lock && echo free > $D/lock");
    let run = scene.run(&["perform"]);
    run.check(
        1,
        &[
            "step02  snapshot          FAILED",
            "step03  stream-to-remote  not run",
            "FAILED, exit status 1, ",
        ],
    );
    assert!(!scene.lock().exists());
    assert_eq!(
        scene.read("lock"),
        "free\n",
        "the lock is gone before the hook runs"
    );
    let env = scene.read("env");
    for line in [
        "ZFS_BACKUP_STEP=step02",
        "ZFS_BACKUP_COMMAND=snapshot",
        "ZFS_BACKUP_DATASET=no-such-pool/a",
        "ZFS_BACKUP_DATASETS=no-such-pool/a",
        "ZFS_BACKUP_EXIT_STATUS=1",
        "ZFS_BACKUP_DURATION=",
        "ZFS_BACKUP_ERROR=",
        "ZFS_BACKUP_LOG=",
        "ZFS_BACKUP_HOST=",
        &format!("ZFS_BACKUP_CONFIG={}", scene.path("zb.toml").display()),
        "ZFS_BACKUP_MESSAGE=no-such-pool/a FAILED on ",
        "at   step02 snapshot",
        "done: lock",
        "not run: stream-to-remote, unlock",
    ] {
        assert!(
            env.lines().any(|found| found.starts_with(line)),
            "no {line:?} in:\n{env}"
        );
    }
    let said = run
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("error: "))
        .unwrap()
        .to_owned();
    assert!(
        env.contains(&format!("ZFS_BACKUP_ERROR={said}\n")),
        "{said} is not in\n{env}"
    );
    assert!(
        env.contains(&format!("why  {said}\n")) && env.contains(&format!("error: {said}\n")),
        "{env}"
    );
    let told: serde_json::Value = serde_json::from_str(&scene.read("stdin")).unwrap();
    assert_eq!(
        (&told["format"], &told["exit_status"]),
        (&1.into(), &1.into())
    );
    assert_eq!(told["error"], said);
    assert_eq!(told["steps"][1]["exit_status"], 1);
    assert_eq!(told["steps"][2]["run"], false);
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .contains("no run has succeeded yet")
    );
    assert!(
        told["log"]
            .as_array()
            .unwrap()
            .iter()
            .any(|line| line.as_str().unwrap().contains(&said))
    );
}

#[test]
fn on_success_hook_runs_after_a_good_run_whose_time_is_recorded() {
    let scene = Scene::new(&[]);
    let hooks = scene.hook(
        "on_success",
        "echo \"$ZFS_BACKUP_EXIT_STATUS:$ZFS_BACKUP_ERROR:$ZFS_BACKUP_MESSAGE\" > $D/ok",
    ) + &scene.hook("on_failure", "echo \"$ZFS_BACKUP_MESSAGE\" > $D/failed");
    scene.configure(&hooks, &["lock", "unlock"], "");
    scene
        .run(&["--dry-run", "perform"])
        .check(0, &["would make the lockfile DIR/zb.lock"]);
    assert_eq!(
        (scene.read("ok"), scene.read("failed")),
        (String::new(), String::new()),
        "a dry run tells nobody"
    );
    scene.run(&["perform"]).check(0, &["ok, exit status 0"]);
    assert!(
        scene.read("ok").starts_with("0::no-such-pool/a ok on "),
        "{}",
        scene.read("ok")
    );
    assert_eq!(scene.read("failed"), "");
    scene.configure(&hooks, &["snapshot"], "");
    scene.run(&["perform"]).check(1, &[]);
    assert!(
        scene.read("failed").contains("last good run "),
        "{}",
        scene.read("failed")
    );
}

#[test]
fn failed_hook_is_reported_and_keeps_the_exit_status() {
    let scene = failing("echo to stdout; echo to stderr >&2; exit 3");
    let run = scene.run(&["perform"]);
    run.check(
        1,
        &["main.on_failure: to stdout", "main.on_failure: to stderr"],
    );
    run.check(
        1,
        &["note: run the hook main.on_failure (DIR/on_failure.sh): it ended with exit status: 3"],
    );
    let hook = scene.hook("on_success", "exit 3");
    scene.configure(&hook, &["lock"], "");
    scene
        .run(&["perform"])
        .check(0, &["note: run the hook main.on_success"]);
    scene.configure("on_success = \"/no/such/hook\"\n", &["lock"], "");
    scene.run(&["perform"]).check(
        0,
        &["note: run the hook main.on_success (/no/such/hook): No such file"],
    );
}

#[test]
fn a_hook_that_takes_too_long_is_ended() {
    let scene = Scene::new(&[]);
    let hook = scene.hook("on_failure", "echo $$ > $D/pid; exec sleep 600");
    // A busy machine may need longer to start the hook than the hook may take.
    for limit in ["1s", "10s", "50s"] {
        let main = format!("{hook}hook_timeout = \"{limit}\"\n");
        scene.configure(&main, &["snapshot"], "");
        let ended = format!("it took longer than {limit} and was ended");
        scene.run(&["perform"]).check(1, &[&ended]);
        if scene.read("pid").ends_with('\n') {
            break;
        }
    }
    assert!(!is_alive(scene.read("pid").trim().parse().unwrap()));
}

#[test]
fn a_request_to_stop_while_a_hook_runs_ends_the_hook_and_the_run() {
    for signal in [Signal::TERM, Signal::INT] {
        let scene = failing("sleep 600 & echo $! > $D/pid; wait");
        let run = scene.start(&["perform"]);
        let sleeper: u32 = scene.wait_for("pid").trim().parse().unwrap();
        assert!(is_alive(sleeper));
        run.signal(signal);
        run.end().check(130, &[]);
        assert!(!is_alive(sleeper), "the hook's child lives");
        assert!(!scene.lock().exists());
    }
}
