//! The sequence: mistakes are found before anything runs, the summary says what became of each
//! step.

use crate::scene::Scene;

#[test]
fn a_mistake_in_a_step_is_found_before_anything_runs() {
    let scene = Scene::new(&[]);
    let hook = scene.hook(
        "on_failure",
        "echo \"$ZFS_BACKUP_EXIT_STATUS $ZFS_BACKUP_ERROR\" > $D/told",
    );
    scene.configure(&hook, &["lock", "snapshto", "prune-remote --yess"], "");
    let needles = [
        "DIR/zb.toml:10: backup-sequence.step02 is \"snapshto\": unrecognized subcommand 'snapshto'",
        "did you mean `snapshot`?",
        "DIR/zb.toml:11: backup-sequence.step03 is \"prune-remote --yess\"",
        "did you mean `--yes`?",
    ];
    scene.run(&["config", "check"]).check(2, &needles);
    assert_eq!(scene.read("told"), "");
    let run = scene.run(&["perform"]);
    run.check(2, &needles);
    assert!(!run.stdout.contains("step01"), "{}", run.stdout);
    assert!(!scene.lock().exists());
    assert!(
        scene.read("told").starts_with("2 ") && scene.read("told").contains("snapshto"),
        "{}",
        scene.read("told")
    );
}

#[test]
fn perform_summary_is_a_table_or_one_json_document() {
    let scene = Scene::new(&["lock", "unlock", "snapshot", "verify-checksums"]);
    let run = scene.run(&["perform"]);
    run.check(
        1,
        &["-- step01 lock\nlocked: DIR/zb.lock\n-- step02 unlock\nunlocked\n-- step03 snapshot\n"],
    );
    let table: Vec<&str> = run
        .stdout
        .lines()
        .skip_while(|line| !line.starts_with("STEP"))
        .collect();
    let expected = [
        "STEP    COMMAND           RESULT   BYTES  TIME",
        "step01  lock              ok           -    0s",
        "step02  unlock            ok           -    0s",
        "step03  snapshot          FAILED       -    0s",
        "step04  verify-checksums  not run      -     -",
        "FAILED, exit status 1, 0s",
    ];
    assert_eq!(table, expected);
    let run = scene.run(&["--json", "perform"]);
    let document: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.status, &document["exit_status"]), (Some(1), &1.into()));
    assert_eq!(document["steps"][0]["output"][0]["locked"], true);
    assert_eq!(document["steps"][3]["exit_status"], serde_json::Value::Null);
    let quiet = scene.run(&["-q", "perform"]);
    assert!(
        quiet.stdout.is_empty() && quiet.stderr.starts_with("error: "),
        "{}{}",
        quiet.stdout,
        quiet.stderr
    );
    scene.configure("", &["lock", "unlock"], "");
    let quiet = scene.run(&["-q", "perform"]);
    assert_eq!(
        (quiet.status, quiet.stdout.as_str(), quiet.stderr.as_str()),
        (Some(0), "", "")
    );
}

#[test]
fn dry_run_of_perform_runs_every_step_and_takes_no_lock() {
    let scene = Scene::new(&["lock", "unlock", "lock", "snapshot"]);
    scene.run(&["lock"]).check(0, &[]);
    let before = scene.read("zb.lock");
    let run = scene.run(&["perform", "--dry-run"]);
    run.check(
        1,
        &[
            "would make the lockfile",
            "would remove the lockfile",
            "note: locked by hand",
        ],
    );
    assert_eq!(
        run.stderr.matches("note: locked by hand").count(),
        1,
        "{}",
        run.stderr
    );
    assert_eq!(scene.read("zb.lock"), before);
}

#[test]
fn snapshots_of_another_tool_are_not_taken_by_this_one() {
    let scene = Scene::new(&[]);
    let hook = scene.hook("pre_snapshot", "echo ran > $D/pre");
    scene.configure(&(hook + "use_snapshots = \"autosnap_*\"\n"), &["lock"], "");
    scene.run(&["snapshot"]).check(
        0,
        &["no snapshot is taken: main.use_snapshots = \"autosnap_*\""],
    );
    assert_eq!(scene.read("pre"), "");
}
