//! Documents with a value for each field.

use crate::cli::commands::accept_store::AcceptedStore;
use crate::cli::commands::adopt::{AdoptDocument, Other};
use crate::cli::commands::backup::{self, BackupResult, Committed, DatasetResult, Estimate, Plan};
use crate::cli::commands::config::recover::RecoveredConfig;
use crate::cli::commands::config::{CheckedConfig, ShownConfig};
use crate::cli::commands::doctor::Examination;
use crate::cli::commands::drill::{Drilled, DrilledBackup};
use crate::cli::commands::forget::ForgottenBackup;
use crate::cli::commands::health::{Judged, JudgedDatasets};
use crate::cli::commands::holds::{HeldSnapshots, Listed};
use crate::cli::commands::key::PublicKeys;
use crate::cli::commands::key::rekey::ChangedKeys;
use crate::cli::commands::prune::PruneDocument;
use crate::cli::commands::prune::plan::{DoubtText, PrunedDataset};
use crate::cli::commands::prune_snapshots::{PrunedSnapshot, PrunedSnapshots};
use crate::cli::commands::restore::tree::{MemberResult, TreeResult};
use crate::cli::commands::restore::{
    ChainBackup, PlannedReceive, PlannedRestore, RefusedRollback, Restored,
};
use crate::cli::commands::show::views::{
    AttemptView, BackupView, BookmarkView, DatasetView, HoldView, LocalView, LockfileView,
    Overview, SnapshotView, StoreAnswer, StoreView, UploadView,
};
use crate::cli::commands::snapshot::Snapshots;
use crate::cli::commands::upload::views as upload;
use crate::cli::commands::verify::{
    DamagedObject, UnrestorableBackup, Verification, VerifiedDataset,
};
use crate::cli::context::Tally;
use crate::cli::lock::LockChange;
use crate::cli::perform::report::{HookDocument, RunReport, StepReport};
use crate::cli::screen::output::{Said, to_value};
use crate::config::Advice;
use crate::config::convert::Converted;
use crate::manifest::{Manifest, Origin, SnapshotRef};
use crate::model::{
    BackupId, BackupKind, BackupLevel, DatasetName, Digest, Guid, SnapshotName, StoreId,
};
use crate::plan::BackupFacts;
use crate::plan::adopt::{Holder, Holding};
use crate::plan::copy::LeftReason;
use crate::plan::health::{DatasetHealth, Level};
use crate::plan::prune::{Doomed, DoomedLeftover, Kept, LeftAlone, Proof, PrunePlan};
use crate::plan::retention::Reason;
use crate::plan::send::{FullReason, SendPlan};
use crate::plan::snapshots::{SnapshotReason, SnapshotVerdict};
use crate::plan::space::{ArrivingBytes, judge_space};
use crate::run::backup::{PausedUpload, PlannedResume};
use crate::run::copy::CopiedBackup;
use crate::run::doctor::{Check, CheckState};
use crate::run::keys::rotate::CollectedDataset;
use crate::run::pool::holds::{JudgedHold, OurHold};
use crate::run::pool::prune_snapshots::SnapshotOutcome;
use crate::run::prune::Forgotten;
use crate::run::restore::{LostBookmark, LostSnapshot, RestoreSet, ResumedReceive, Rollback};
use crate::run::verify::{BrokenBackup, Damage, ReadReport, VerifyReport};
use crate::sign::TrustedKeys;
use crate::state::history::{
    CommitNote, DatasetHistory, DrillNote, FailureNote, SeenNote, UnchangedNote, VerifyNote,
};
use crate::state::probes::ProbeNote;
use crate::store::EvidenceTier;
use crate::zfs::{SendBase, Snapshot};
use jiff::Timestamp;
use serde_json::{Value, json};

const MANIFEST: &str = include_str!(
    "../../../../tests/data/v1/none/frozen/data/@20261123T030133Z-full-95583f3d2afbe232-f94467278daccf6a/manifest.json"
);

/// Returns the documents of each section of `docs/json.md` that describes commands.
pub(super) fn all() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("lock, unlock", vec![lock()]),
        ("snapshot", vec![snapshot()]),
        ("stream-to-remote, export-intermediate", backups()),
        ("upload-intermediate-to-remote", uploads()),
        ("prune-snapshots", vec![prune_snapshots()]),
        ("prune-intermediate, prune-remote", vec![prune()]),
        ("verify-checksums", vec![verify()]),
        ("accept-store", vec![accept_store()]),
        ("adopt", vec![adopt()]),
        ("forget", vec![forget()]),
        ("show", vec![show()]),
        ("health", vec![health()]),
        ("doctor", vec![doctor()]),
        ("holds list, holds release", vec![holds()]),
        ("restore", restores()),
        ("drill", vec![drill()]),
        (
            "key show, key generate, key passphrase, key rotate",
            vec![keys()],
        ),
        ("config show", vec![config_show()]),
        ("config check", vec![config_check()]),
        ("config recover", vec![config_recover()]),
        ("config convert", vec![config_convert()]),
        ("perform", vec![perform()]),
    ]
}

fn text() -> String {
    "x".to_owned()
}

fn at() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn dataset() -> DatasetName {
    "tank/a".parse().unwrap()
}

fn name() -> SnapshotName {
    "tank/a@s".parse().unwrap()
}

fn id() -> BackupId {
    BackupId::new(at(), BackupKind::Full, Guid(1), 1)
}

fn origin() -> Origin {
    Origin {
        dataset_guid: Guid(1),
        pool_guid: Guid(2),
    }
}

fn lock() -> Value {
    to_value(&LockChange {
        lock_file: "/x".into(),
        locked: false,
        removed: Some(true),
    })
}

fn snapshot() -> Value {
    to_value(&Snapshots {
        snapshots: vec![name()],
        failed: vec![dataset()],
    })
}

fn backups() -> Vec<Value> {
    let results = [
        BackupResult::Committed(Committed {
            id: id(),
            kind: BackupKind::Incr,
            base: Some(id()),
            stream_bytes: 1,
            stored_bytes: 1,
            chunks: 1,
            seconds: 1.0,
            position: 1,
            tier: None,
            checked: true,
        }),
        BackupResult::UpToDate { id: id() },
        BackupResult::Unchanged {
            id: id(),
            snapshot: name(),
        },
        BackupResult::Paused(PausedUpload {
            id: id(),
            why: text(),
            chunks: 1,
            stream_bytes: 1,
        }),
    ];
    let snapshot = Snapshot {
        name: name(),
        guid: Guid(1),
        createtxg: 1,
        created_at: at(),
        referenced_bytes: 1,
        used_bytes: 1,
        holds: 0,
        clones: 0,
        redacted: false,
        user_properties: Default::default(),
    };
    let estimate = Some(Estimate {
        bytes: Some(1),
        chunks: Some(1),
    });
    let plans = [
        Plan::Resume {
            resume: PlannedResume {
                id: id(),
                chunks: 1,
                stream_bytes: 1,
                resumes_at: Some(1),
                why_not: Some(text()),
            },
            split_bytes: 1,
        },
        Plan::Send {
            plan: SendPlan::Full {
                snapshot: snapshot.clone(),
                why: FullReason::First,
                level: Some(BackupLevel::Yearly),
            },
            estimate,
        },
        Plan::Send {
            plan: SendPlan::Unchanged {
                snapshot: snapshot.clone(),
                id: id(),
            },
            estimate: None,
        },
        Plan::Send {
            plan: SendPlan::Incremental {
                snapshot,
                base: SendBase::Snapshot(name()),
                backup: Box::new(facts()),
                level: Some(BackupLevel::Daily),
            },
            estimate,
        },
    ];
    vec![
        to_value(&backup::Backups {
            backups: results.map(of_dataset).into(),
            failed: vec![dataset()],
        }),
        to_value(&backup::Plans {
            plans: plans.map(of_dataset).into(),
            failed: vec![dataset()],
        }),
    ]
}

fn of_dataset<T>(result: T) -> DatasetResult<T> {
    DatasetResult {
        dataset: dataset(),
        result,
    }
}

fn facts() -> BackupFacts {
    BackupFacts {
        id: id(),
        manifest_blake3: Digest::of(b""),
        snapshot: SnapshotRef {
            guid: Guid(1),
            createtxg: 1,
            created_at: at(),
        },
        base: None,
        full_id: id(),
        position: 0,
        origin: origin(),
        made: Default::default(),
        requested: Vec::new(),
        recipients: Vec::new(),
        stream_bytes: 1,
        stored_bytes: 1,
        flaw: None,
    }
}

fn uploads() -> Vec<Value> {
    let left = vec![(id(), LeftReason::Pruned)];
    vec![
        to_value(&upload::Uploads {
            uploads: vec![upload::DatasetUpload {
                dataset: dataset(),
                copied: vec![CopiedBackup {
                    id: id(),
                    chunks: 1,
                    stored_bytes: 1,
                    sent_bytes: 1,
                    by_size_only: 1,
                }],
                left: left.clone(),
                failed: vec![(id(), text())],
                seconds: 1.0,
            }],
            failed: vec![dataset()],
        }),
        to_value(&upload::CopyPlans {
            plans: vec![upload::DatasetPlan {
                dataset: dataset(),
                copy: vec![upload::PlannedCopy {
                    id: id(),
                    parent: Some(id()),
                    bytes: 1,
                }],
                left,
            }],
        }),
    ]
}

fn prune_snapshots() -> Value {
    let verdict = SnapshotVerdict {
        name: name(),
        destroy: true,
        used_bytes: 1,
        reason: SnapshotReason::Young,
    };
    to_value(&PrunedSnapshots {
        carried_out: true,
        snapshots: vec![PrunedSnapshot {
            outcome: SnapshotOutcome {
                verdict,
                refused: Some(text()),
            },
            destroyed: false,
        }],
    })
}

fn prune() -> Value {
    let plan = PrunePlan {
        keep: vec![Kept {
            id: id(),
            reasons: vec![Reason::NoRules],
        }],
        delete: vec![Doomed {
            id: id(),
            bytes: 1,
            reason: Reason::NoRuleKeepsIt,
        }],
        delete_leftovers: vec![DoomedLeftover {
            id: id(),
            objects: 1,
            bytes: 1,
            proof: Proof::PruneRecord,
        }],
        left_alone: vec![LeftAlone {
            id: id(),
            objects: 1,
            bytes: 1,
            why: text(),
        }],
        doubts: Vec::new(),
    };
    to_value(&PruneDocument {
        store: "x",
        carried_out: true,
        datasets: vec![PrunedDataset {
            dataset: dataset(),
            plan,
            doubts: vec![DoubtText {
                text: text(),
                damage: true,
                hint: text(),
            }],
            freed_bytes: 1,
            unknown_objects: 1,
            carried_out: true,
        }],
        settled: vec![dataset()],
        failed: vec![dataset()],
    })
}

fn verify() -> Value {
    let mut report = VerifyReport::default();
    report.extra = vec![text()];
    report.pruned_meanwhile = vec![id()];
    report.newest = Some(id());
    report.read = Some(ReadReport::default());
    let damage = Damage {
        key: text(),
        backup: Some(id()),
        reason: text(),
        breaks: true,
    };
    let broken = BrokenBackup {
        id: id(),
        snapshot: Guid(1),
        dependents: vec![id()],
        restorable_up_to: Some(id()),
        restorable_again_from: Some(id()),
    };
    to_value(&Verification {
        store: text(),
        other_store: Some(text()),
        datasets: vec![VerifiedDataset {
            dataset: dataset(),
            report,
            objects: [(EvidenceTier::Crc32c, 1)].into(),
            damage: vec![DamagedObject {
                damage,
                chunk: Some(1),
                missing: true,
            }],
            broken: vec![UnrestorableBackup {
                broken,
                source_snapshot_here: Some(true),
            }],
            store: text(),
        }],
    })
}

fn accept_store() -> Value {
    to_value(&AcceptedStore {
        store: text(),
        before: Some(StoreId::from_random(1)),
        now: StoreId::from_random(2),
    })
}

fn adopt() -> Value {
    let holding = Holding {
        holder: Holder::Line(id()),
        origin: origin(),
        hosts: ["aaaaaaaaaaaaaaaa-0123456789abcdef".parse().unwrap()].into(),
        ids: [id()].into(),
        attempts: 1,
        bytes: 1,
        oldest: at(),
        newest: at(),
        is_newer: true,
    };
    to_value(&AdoptDocument {
        format: 1,
        dataset: &dataset(),
        own: &origin(),
        others: vec![Other {
            holding: &holding,
            chosen: true,
        }],
        carried_out: true,
    })
}

fn forget() -> Value {
    to_value(&ForgottenBackup {
        store: "x",
        dataset: dataset(),
        found: Forgotten {
            id: id(),
            objects: 1,
            bytes: 1,
            manifest_blake3: Some(Digest::of(b"")),
            warnings: vec![text()],
        },
        carried_out: true,
    })
}

fn show() -> Value {
    let answer = || StoreAnswer {
        url: Some(text()),
        asked: true,
        error: Some(text()),
        foreign_objects: Some(1),
        foreign_bytes: Some(1),
    };
    to_value(&Overview {
        format: 1,
        now: at(),
        remote: answer(),
        intermediate: answer(),
        datasets: vec![DatasetView {
            dataset: dataset(),
            local: Some(local()),
            intermediate: Some(stored()),
            remote: Some(stored()),
            record: Some(record()),
            running_in: vec![text()],
            errors: vec![text()],
            health: None,
            only_intermediate: false,
        }],
        lockfile: Some(LockfileView {
            path: text(),
            made_at: Some(at()),
        }),
        never_deleted: vec![text()],
    })
}

fn local() -> LocalView {
    LocalView {
        name: dataset(),
        guid: Guid(1),
        encrypted: true,
        sent_raw: true,
        snapshots: vec![SnapshotView {
            name: text(),
            guid: Guid(1),
            created_at: at(),
            used_bytes: 1,
            referenced_bytes: 1,
            own: true,
            holds: 1,
        }],
        bookmarks: vec![BookmarkView {
            name: text(),
            guid: Guid(1),
            created_at: at(),
        }],
        holds: vec![HoldView {
            snapshot: text(),
            tag: text(),
            since: at(),
            used_bytes: 1,
        }],
    }
}

fn stored() -> StoreView {
    StoreView {
        backups: vec![BackupView {
            id: id(),
            kind: BackupKind::Full,
            level: Some(BackupLevel::Yearly),
            full_id: id(),
            position: 0,
            base: Some(id()),
            snapshot_guid: Guid(1),
            snapshot_at: at(),
            stream_bytes: 1,
            stored_bytes: 1,
            raw: true,
            clone_origin_guid: Some(Guid(1)),
            checked: true,
            flaw: Some(text()),
        }],
        unfinished: vec![AttemptView {
            id: id(),
            started_at: Some(at()),
            base: Some(id()),
            objects: 1,
            bytes: 1,
            newest_object_at: Some(at()),
            given_up_at: Some(at()),
            was_committed: true,
            disbelieved: Some(text()),
        }],
        uploads: vec![UploadView {
            key: text(),
            started_at: Some(at()),
        }],
        ..StoreView::default()
    }
}

fn record() -> DatasetHistory {
    DatasetHistory {
        commit: Some(CommitNote {
            id: id(),
            snapshot_at: at(),
            committed_at: at(),
            stored_bytes: 1,
            chain_position: 0,
            chain_bytes: 1,
            total_bytes: 1,
            raw: true,
        }),
        seen: Some(SeenNote {
            at: at(),
            newest: Some(id()),
            newest_at: Some(at()),
            chain_position: 0,
            backups: 1,
            total_bytes: 1,
            time_lines: 1,
        }),
        unchanged: Some(UnchangedNote {
            id: id(),
            snapshot_at: at(),
            at: at(),
        }),
        verify: Some(VerifyNote {
            at: at(),
            backups: 1,
            read_data: text(),
        }),
        drill: Some(DrillNote { at: at(), id: id() }),
        failures: vec![FailureNote {
            at: at(),
            step: text(),
            reason: text(),
            damage: true,
        }],
    }
}

fn health() -> Value {
    to_value(&JudgedDatasets {
        format: 1,
        now: at(),
        datasets: vec![Judged {
            dataset: dataset(),
            record: Some(record()),
            health: DatasetHealth {
                level: Level::Warning,
                reasons: vec![text()],
                late: true,
            },
        }],
    })
}

fn doctor() -> Value {
    to_value(&Examination {
        format: 1,
        file: "/x".into(),
        remote: Some(text()),
        can_back_up: true,
        checks: vec![Check {
            subject: "x",
            state: CheckState::Note,
            text: text(),
            advice: Some(text()),
        }],
        probe: Some(probe()),
    })
}

fn probe() -> ProbeNote {
    let probe = json!({
        "tier": "crc32c", "checksum": "crc32c", "kept": ["crc32c"], "conditional_put": "works",
        "conditional_complete": "works", "list_uploads": "works", "abort_uploads": "works",
        "deleting": "hides", "object_lock": "works", "parts_max": 1, "part_bytes_min": 1, "clock_ahead_seconds": 1,
        "left_behind": ["x"], "uncertain": true, "notes": ["x"],
    });
    let note = json!({ "format": 1, "store": "x", "endpoint": "x", "at": at(), "probe": probe });
    serde_json::from_value(note).unwrap()
}

fn holds() -> Value {
    let hold = OurHold {
        snapshot: name(),
        tag: text(),
        id: id(),
        since: at(),
        used_bytes: 1,
        holds: 1,
    };
    to_value(&HeldSnapshots {
        format: 1,
        holds: vec![Listed {
            judged: JudgedHold {
                hold,
                stays: Some(text()),
            },
            released: true,
            attempt: None,
        }],
    })
}

fn restores() -> Vec<Value> {
    let manifest: Manifest = serde_json::from_str(MANIFEST).unwrap();
    let set = RestoreSet {
        backups: Vec::new(),
        unasked: Vec::new(),
    };
    let rollback = Rollback {
        dataset: Guid(1),
        base: name(),
        base_guid: Guid(1),
        snapshots: vec![LostSnapshot {
            name: name(),
            guid: Guid(1),
            created_at: at(),
        }],
        bookmarks: vec![LostBookmark {
            name: dataset().bookmark("b").unwrap(),
            guid: Guid(1),
        }],
        written_bytes: Some(1),
    };
    let resumed = ResumedReceive {
        id: id(),
        position: 1,
        stream_bytes: 1,
        fetch_bytes: 1,
    };
    let receive = PlannedReceive {
        resumed: Some(resumed.clone()),
        rollback: Some(&rollback),
        plan: None,
    };
    let member = MemberResult {
        dataset: &dataset(),
        to: &dataset(),
        plan: Some(planned(&set, &manifest, None)),
        received: Some(vec![name()]),
    };
    let space = Some(judge_space("x", &[ArrivingBytes::default()], None));
    let shortage = ArrivingBytes {
        stream_bytes: 1,
        compressible_bytes: 1,
        reserved_bytes: 1,
    };
    let shortage = Some(judge_space("x", &[shortage], Some(0)));
    vec![
        to_value(&Restored {
            received: vec![name()],
            went_on: Some(resumed),
            to_mount: vec![text()],
        }),
        to_value(&PlannedRestore {
            space: shortage.clone(),
            ..planned(&set, &manifest, Some(receive))
        }),
        to_value(&PlannedRestore {
            space,
            ..planned(&set, &manifest, None)
        }),
        to_value(&RefusedRollback {
            rollback: &rollback,
            carried_out: false,
        }),
        to_value(&TreeResult {
            datasets: vec![member],
            space: shortage,
            to_mount: vec![text()],
            failed: vec![dataset()],
        }),
    ]
}

fn planned<'a>(
    set: &'a RestoreSet,
    manifest: &'a Manifest,
    receive: Option<PlannedReceive<'a>>,
) -> PlannedRestore<'a> {
    PlannedRestore {
        backups: vec![ChainBackup {
            store: "x",
            manifest,
        }],
        receive,
        space: None,
        set,
    }
}

fn drill() -> Value {
    to_value(&Drilled {
        dataset: dataset(),
        backups: vec![DrilledBackup {
            id: id(),
            store: text(),
            same_bytes: false,
            not_compared: Some(text()),
        }],
        seconds: 1.0,
        chain: text(),
    })
}

fn keys() -> Value {
    to_value(&ChangedKeys {
        keys: Some(PublicKeys {
            recipients: vec![text()],
            verifying_keys: vec![text()],
            retired_keys: vec![text()],
            keyring: Some(text()),
            trusted: TrustedKeys::default(),
        }),
        believed: vec![CollectedDataset {
            store: text(),
            dataset: dataset(),
            backups: 1,
            newest: Some(at()),
            unfinished: 1,
            untrusted: vec![text()],
        }],
    })
}

fn config_show() -> Value {
    to_value(&ShownConfig {
        file: "/x".into(),
        toml: text(),
    })
}

fn config_check() -> Value {
    to_value(&CheckedConfig {
        file: "/x".into(),
        advice: vec![Advice {
            subject: "x",
            text: text(),
        }],
        probes: vec![probe()],
    })
}

fn config_recover() -> Value {
    to_value(&RecoveredConfig {
        host: "x",
        file: "x",
        written_at: at(),
        toml: "x",
    })
}

fn config_convert() -> Value {
    to_value(&Converted {
        toml: text(),
        lost: vec![text()],
        advice: vec![text()],
    })
}

fn perform() -> Value {
    let tally = Tally {
        done: [dataset()].into(),
        failed: [(dataset(), (1, text()))].into(),
        paused: [dataset()].into(),
        skipped: [dataset()].into(),
        bytes: 1,
        is_incomplete: false,
    };
    let step = StepReport {
        name: text(),
        line: text(),
        was_run: true,
        status: 1,
        tally,
        seconds: 1.0,
        said: Some(Said {
            text: text(),
            hint: Some(text()),
        }),
        output: Vec::new(),
    };
    let report = RunReport {
        host: text(),
        config_file: "/x".into(),
        names: vec![dataset()],
        started_at: at(),
        last_success: Some(at()),
        steps: vec![step],
        status: 1,
        seconds: 1.0,
        said: None,
    };
    to_value(&HookDocument {
        run: report.document(),
        log: vec![text()],
        message: text(),
    })
}
