//! Two hosts and one remote: backups, exports, copies, prunes and forgets that run at the same
//! time, call by call, with crashes, refusals, lost replies and wrong clocks. Whatever the order of
//! the calls: what was committed, and what no command was entitled to delete, restores.

use crate::builder::{Yard, hours};
use crate::observer::{Actor, Job, Place, Relation, seconds_ahead};
use crate::prune_property::any_rules;
use crate::scheduler::{Mishap, Racer, Schedule};
use crate::two_hosts::{RemoteKind, TwoHosts};
use crate::world::{memory_store, never, quick_keys};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use zfs_backup::catalog::read_catalog;
use zfs_backup::config::RetentionRules;
use zfs_backup::keyring::KeyFile;
use zfs_backup::model::BackupId;
use zfs_backup::plan::BackupFacts;
use zfs_backup::plan::copy::doomed;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupRun, StoreRole, back_up};
use zfs_backup::run::copy::{UploadReport, UploadRules, upload_dataset};
use zfs_backup::run::keys::WriterKeys;
use zfs_backup::run::pool::prune_snapshots::{SnapshotOutcome, prune_snapshots};
use zfs_backup::run::prune::{
    PruneEnv, PruneOutcome, PruneTask, SecondaryStore, forget, prune_dataset,
};
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::store::memory::{Fault, Operation};
use zfs_backup::store::{StoreErrorKind, StoreRead};

/// How many cases a run makes by default, and from which seed.
const CASES: u64 = 50;
const SEED: u64 = 1;

#[derive(Debug, Clone)]
enum Command {
    Stream { full: bool },
    Export { full: bool },
    Copy { all: bool },
    PruneRemote { rules: Box<RetentionRules> },
    PruneIntermediate { rules: Box<RetentionRules> },
    ForgetInRemote { which: Index },
    ForgetInIntermediate { which: Index },
    PruneSnapshots { days: u32 },
}

/// Commands of one of the hosts, one after the other.
#[derive(Debug, Clone)]
struct Op {
    host: usize,
    commands: Vec<Command>,
}

/// Commands that run at the same time.
#[derive(Debug, Clone)]
struct Round {
    hours_before: i64,
    /// The hosts that take a snapshot before.
    nights: [bool; 2],
    ops: Vec<Op>,
    segments: Vec<(usize, usize)>,
    mishap: Option<(usize, Mishap)>,
}

/// The stores' contents before the second host comes.
#[derive(Debug, Clone, Copy)]
enum Prelude {
    TwoChains,
    /// The same snapshot in the remote and in the intermediate directory, under two ids, and a
    /// child of one of them.
    Twins,
    /// Chains that were copied to the remote.
    Copied,
    /// As `Copied`, and the older chain was pruned in the remote while the clock was so many hours
    /// ahead.
    Pruned(i64),
    /// An upload that was killed after so many calls.
    Interrupted(usize),
}

#[derive(Debug, Clone)]
struct Case {
    relation: Relation,
    remote: RemoteKind,
    prelude: Prelude,
    /// From that round on the clock of that host is so many hours ahead.
    clock: Option<(usize, usize, i64)>,
    rounds: Vec<Round>,
}

fn any_command() -> impl Strategy<Value = Command> {
    let full = || proptest::bool::weighted(0.25);
    let last_incrementals = (any_rules(), proptest::option::weighted(0.5, 1u32..3));
    prop_oneof![
        6 => full().prop_map(|full| Command::Stream { full }),
        3 => full().prop_map(|full| Command::Export { full }),
        4 => any::<bool>().prop_map(|all| Command::Copy { all }),
        8 => any_rules().prop_map(|rules| Command::PruneRemote { rules: Box::new(rules) }),
        2 => last_incrementals.prop_map(|(rules, last_incrementals)| {
            Command::PruneIntermediate { rules: Box::new(RetentionRules { last_incrementals, ..rules }) }
        }),
        2 => any::<Index>().prop_map(|which| Command::ForgetInRemote { which }),
        1 => any::<Index>().prop_map(|which| Command::ForgetInIntermediate { which }),
        1 => (0u32..3).prop_map(|days| Command::PruneSnapshots { days }),
    ]
}

fn any_round() -> impl Strategy<Value = Round> {
    let op = (0..2usize, proptest::collection::vec(any_command(), 1..3));
    let op = op.prop_map(|(host, commands)| Op { host, commands });
    // The first two on different hosts; a third one shares its host with one of them.
    let in_order = |mut ops: Vec<Op>| {
        ops.iter_mut()
            .take(2)
            .enumerate()
            .for_each(|(number, op)| op.host = number);
        ops
    };
    let mishap = prop_oneof![
        (1..90usize).prop_map(Mishap::Killed),
        (1..90usize).prop_map(Mishap::Refused),
        (1..90usize).prop_map(Mishap::ReplyLost),
    ];
    (
        prop_oneof![6 => 1i64..30, 1 => 60i64..100],
        proptest::array::uniform2(proptest::bool::weighted(0.6)),
        proptest::collection::vec(op, 1..4).prop_map(in_order),
        proptest::collection::vec((0..3usize, 1..60usize), 0..7),
        proptest::option::weighted(0.2, (0..3usize, mishap)),
    )
        .prop_map(|(hours_before, nights, ops, segments, mishap)| Round {
            hours_before,
            nights,
            ops,
            segments,
            mishap,
        })
}

fn any_case() -> impl Strategy<Value = Case> {
    let relation = prop_oneof![Just(Relation::Adopted), Just(Relation::Cloned)];
    let remote = (proptest::bool::weighted(0.7), proptest::bool::weighted(0.3)).prop_map(
        |(create_only, host_clock)| RemoteKind {
            create_only,
            host_clock,
        },
    );
    let prelude = prop_oneof![
        3 => Just(Prelude::TwoChains),
        1 => Just(Prelude::Twins),
        1 => Just(Prelude::Copied),
        1 => (0i64..24).prop_map(Prelude::Pruned),
        1 => (5..80usize).prop_map(Prelude::Interrupted),
    ];
    let clock = proptest::option::weighted(
        0.2,
        (
            0..2usize,
            0..3usize,
            prop_oneof![-60i64..60, -9000i64..9000],
        ),
    );
    (
        relation,
        remote,
        prelude,
        clock,
        proptest::collection::vec(any_round(), 1..4),
    )
        .prop_map(|(relation, remote, prelude, clock, rounds)| Case {
            relation,
            remote,
            prelude,
            clock,
            rounds,
        })
}

/// The result of a command.
#[allow(clippy::large_enum_variant, reason = "a few of them live at a time")]
enum Done {
    Backup(Result<BackupRun, RunError>),
    Copy(Result<UploadReport, RunError>),
    Prune(Result<PruneOutcome, RunError>),
    Forget(Result<(), RunError>),
    Snapshots(Result<Vec<SnapshotOutcome>, RunError>),
    Nothing,
}

impl Done {
    fn error(&self) -> Option<&RunError> {
        match self {
            Self::Backup(result) => result.as_ref().err(),
            Self::Copy(result) => result.as_ref().err(),
            Self::Prune(result) => result.as_ref().err(),
            Self::Forget(result) => result.as_ref().err(),
            Self::Snapshots(result) => result.as_ref().err(),
            Self::Nothing => None,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Copy(Ok(report)) if !report.failed.is_empty() => {
                let failed = report
                    .failed
                    .iter()
                    .map(|(id, error)| format!("{id}: {}", error_chain(error)));
                failed.collect::<Vec<_>>().join("; ")
            }
            Self::Prune(Ok(outcome)) => format!(
                "deleted {:?}, {:?}",
                outcome.deleted, outcome.view.plan.doubts
            ),
            done => done
                .error()
                .map_or("done".to_owned(), |error| error_chain(error)),
        }
    }

    fn deleted(&self) -> usize {
        match self {
            Self::Prune(Ok(outcome)) => outcome.deleted.len(),
            Self::Forget(Ok(())) => 1,
            _ => 0,
        }
    }
}

fn requested(full: bool) -> RequestedKind {
    if full {
        RequestedKind::Full
    } else {
        RequestedKind::Lifecycle
    }
}

impl Command {
    fn place(&self, host: usize) -> Place {
        match self {
            Self::Export { .. }
            | Self::PruneIntermediate { .. }
            | Self::ForgetInIntermediate { .. } => Place::Intermediate(host),
            _ => Place::Remote,
        }
    }

    /// The command with the id that it names, when it begins.
    fn resolve(&self, site: &TwoHosts, host: usize) -> Job {
        match self {
            Self::ForgetInRemote { which } | Self::ForgetInIntermediate { which } => {
                let ids = site.forgettable(self.place(host));
                if ids.is_empty() {
                    Job::Upload
                } else {
                    Job::Forget(which.get(&ids).clone())
                }
            }
            Self::PruneRemote { .. } | Self::PruneIntermediate { .. } => Job::Prune,
            _ => Job::Upload,
        }
    }

    async fn run(&self, site: &TwoHosts, actor: usize, host: usize, job: &Job) -> Done {
        match self {
            Self::Stream { full } => {
                let env = site.backup_env(host, actor, StoreRole::Remote);
                Done::Backup(back_up(&env, &site.selected(host), requested(*full)).await)
            }
            Self::Export { full } => {
                let env = site.backup_env(host, actor, StoreRole::Intermediate);
                Done::Backup(back_up(&env, &site.selected(host), requested(*full)).await)
            }
            Self::Copy { all } => {
                let env = site.upload_env(host, actor);
                let rules = RetentionRules::default();
                let would_be_pruned = |remote: &[BackupFacts], local: &[BackupFacts]| {
                    doomed(remote, local, &rules, (env.now)())
                };
                let rules = UploadRules {
                    all: *all,
                    would_be_pruned: &would_be_pruned,
                };
                Done::Copy(upload_dataset(&env, &site.dataset, &rules).await)
            }
            Self::PruneRemote { rules } => {
                let env = site.prune_env(host, actor, Place::Remote);
                let secondary =
                    SecondaryStore::Intermediate(site.store(Place::Intermediate(host), actor));
                prune(site, host, &env, &task(site, rules, secondary)).await
            }
            Self::PruneIntermediate { rules } => {
                let env = site.prune_env(host, actor, Place::Intermediate(host));
                let secondary = SecondaryStore::Remote(site.store(Place::Remote, actor));
                prune(site, host, &env, &task(site, rules, secondary)).await
            }
            Self::ForgetInRemote { .. } | Self::ForgetInIntermediate { .. } => {
                let Job::Forget(id) = job else {
                    return Done::Nothing;
                };
                let env = site.prune_env(host, actor, self.place(host));
                let intermediate = site.store(Place::Intermediate(host), actor);
                let is_remote = matches!(self, Self::ForgetInRemote { .. });
                let intermediate: &dyn StoreRead = &*intermediate;
                let secondary = is_remote.then_some(intermediate);
                let forgotten = forget(&env, &site.dataset, id, secondary).await.map(drop);
                if forgotten.is_ok() {
                    site.unpin(host, |held| held == id);
                }
                Done::Forget(forgotten)
            }
            Self::PruneSnapshots { days } => {
                let env = site.snapshots_env(host, actor, *days);
                Done::Snapshots(prune_snapshots(&env, &site.selected(host)).await)
            }
        }
    }
}

impl Op {
    /// Runs the actor's commands as one process would. Results are recorded at once, so a killed
    /// actor has them too.
    async fn run(&self, site: &TwoHosts, actor: usize, done: &RefCell<Vec<(usize, Done)>>) {
        for command in &self.commands {
            let job = command.resolve(site, self.host);
            site.observer.begin(
                actor,
                Actor {
                    host: self.host,
                    job: job.clone(),
                },
            );
            let snapshots = site.snapshots(self.host);
            let outcome = command.run(site, actor, self.host, &job).await;
            let planned = match &outcome {
                Done::Prune(Ok(outcome)) => Some((
                    outcome.view.plan.doomed_ids(),
                    outcome.deleted.iter().collect(),
                )),
                _ => None,
            };
            site.observer.end(actor, planned);
            if let Command::PruneSnapshots { days } = command
                && seconds_ahead(self.host) > 25 * 3600
            {
                let young = site.destroyed_young(self.host, &snapshots, *days);
                site.observer.facts().violations.extend(young);
            }
            done.borrow_mut().push((actor, outcome));
        }
    }
}

/// Prunes, and lets go what was held for what went.
async fn prune(site: &TwoHosts, host: usize, env: &PruneEnv, task: &PruneTask) -> Done {
    let outcome = prune_dataset(env, task).await;
    if let Ok(PruneOutcome { view, deleted }) = &outcome {
        site.unpin(host, |id| deleted.contains(id) || view.is_over(id));
    }
    Done::Prune(outcome)
}

fn task(site: &TwoHosts, rules: &RetentionRules, secondary: SecondaryStore) -> PruneTask {
    PruneTask {
        stored: site.dataset.clone(),
        origins: site.origins(),
        rules: rules.clone(),
        secondary,
    }
}

/// Counts the property's cases, to show that it tests something.
#[derive(Default)]
struct Seen {
    deleted: Cell<usize>,
    committed: Cell<usize>,
    refused: Cell<usize>,
    killed: Cell<usize>,
}

fn add(cell: &Cell<usize>, count: usize) {
    cell.set(cell.get() + count);
}

struct Run<'a> {
    site: TwoHosts,
    seen: &'a Seen,
}

impl Run<'_> {
    /// Runs the commands of one round, and then says what is wrong.
    async fn race(
        &mut self,
        ops: &[Op],
        schedule: &Schedule,
    ) -> Result<Vec<(usize, Done)>, String> {
        let committed_before = {
            let mut facts = self.site.observer.facts();
            facts.actors = ops
                .iter()
                .map(|op| Actor {
                    host: op.host,
                    job: Job::Upload,
                })
                .collect();
            facts.committed.len()
        };
        let (site, done) = (&self.site, RefCell::default());
        let racers = ops.iter().enumerate().map(|(actor, op)| {
            let racer: Racer<'_, ()> = Box::pin(op.run(site, actor, &done));
            racer
        });
        let before_call = |actor: usize| site.tick(ops[actor].host);
        let ended = site
            .scheduler
            .race(racers.collect(), schedule, before_call)
            .await;
        // Killed commands never reported their end.
        (0..ops.len()).for_each(|actor| site.observer.end(actor, None));
        let done = done.into_inner();
        let mut failures = site.not_whole().await;
        failures.extend((0..site.hosts.len()).flat_map(|host| site.leaked_pins(host)));
        failures.extend(std::mem::take(&mut site.observer.facts().violations));
        add(
            &self.seen.committed,
            site.observer.facts().committed.len() - committed_before,
        );
        add(
            &self.seen.killed,
            ended.iter().filter(|end| end.is_none()).count(),
        );
        add(
            &self.seen.deleted,
            done.iter().map(|(_, done)| done.deleted()).sum(),
        );
        add(
            &self.seen.refused,
            done.iter()
                .filter(|(_, done)| done.error().is_some())
                .count(),
        );
        if failures.is_empty() {
            Ok(done)
        } else {
            Err(self.report(ops, &done, &failures))
        }
    }

    fn report(&self, ops: &[Op], done: &[(usize, Done)], failures: &[String]) -> String {
        let mut text = format!("{}\n", failures.join("\n"));
        for (actor, op) in ops.iter().enumerate() {
            let _ = writeln!(text, "{actor}: {op:?}");
            for (_, done) in done.iter().filter(|(by, _)| *by == actor) {
                let _ = writeln!(text, "{actor}: {}", done.text());
            }
        }
        for call in self.site.scheduler.trace() {
            let _ = writeln!(text, "  {call}");
        }
        text
    }

    async fn alone(&mut self, command: Command, mishap: Option<Mishap>) -> Result<(), String> {
        let mishaps = mishap.into_iter().map(|mishap| (0, mishap)).collect();
        self.race(
            &[Op {
                host: 0,
                commands: vec![command],
            }],
            &Schedule {
                segments: Vec::new(),
                mishaps,
            },
        )
        .await
        .map(drop)
    }

    /// A prune that keeps all. The host notes its clock then, as it does every night.
    async fn prune_nothing(&mut self, host: usize) -> Result<(), String> {
        let commands = vec![Command::PruneRemote {
            rules: Box::default(),
        }];
        self.race(&[Op { host, commands }], &Schedule::default())
            .await
            .map(drop)
    }

    async fn night(&mut self, command: Command) -> Result<(), String> {
        self.site.wait_hours(20);
        self.site.night(0);
        self.alone(command, None).await
    }

    async fn prelude(&mut self, prelude: Prelude) -> Result<(), String> {
        let copy = || Command::Copy { all: false };
        match prelude {
            Prelude::TwoChains | Prelude::Interrupted(_) => {
                for full in [true, false, true, false] {
                    self.night(Command::Stream { full }).await?;
                }
                if let Prelude::Interrupted(calls) = prelude {
                    self.site.wait_hours(20);
                    self.site.night(0);
                    self.alone(Command::Stream { full: false }, Some(Mishap::Killed(calls)))
                        .await?;
                }
            }
            Prelude::Twins => {
                self.night(Command::Export { full: true }).await?;
                self.alone(Command::Stream { full: true }, None).await?;
                self.night(Command::Export { full: false }).await?;
            }
            Prelude::Copied | Prelude::Pruned(_) => {
                for full in [true, false, true] {
                    self.night(Command::Export { full }).await?;
                    self.alone(copy(), None).await?;
                }
                if let Prelude::Pruned(hours_ahead) = prelude {
                    self.site.set_hours_ahead(0, hours_ahead);
                    let rules = RetentionRules {
                        last_chains: Some(1),
                        ..Default::default()
                    };
                    self.alone(
                        Command::PruneRemote {
                            rules: Box::new(rules),
                        },
                        None,
                    )
                    .await?;
                    self.site.set_hours_ahead(0, 0);
                }
            }
        }
        Ok(())
    }

    async fn round(&mut self, round: &Round) -> Result<(), String> {
        self.site.wait_hours(round.hours_before);
        for host in (0..2).filter(|host| round.nights[*host]) {
            self.site.night(host);
        }
        let mishaps = round.mishap.iter().copied().collect::<BTreeMap<_, _>>();
        self.race(
            &round.ops,
            &Schedule {
                segments: round.segments.clone(),
                mishaps,
            },
        )
        .await
        .map(drop)
    }

    /// With clocks that are right and stores that are well each host backs up, and all is there.
    async fn end(&mut self) -> Result<(), String> {
        (0..2).for_each(|host| self.site.set_hours_ahead(host, 0));
        self.site.wait_hours(24 * 400);
        for host in 0..2 {
            self.site.wait_hours(1);
            self.site.night(host);
            let commands = vec![Command::Stream { full: false }];
            let done = self
                .race(&[Op { host, commands }], &Schedule::default())
                .await?;
            let outcome = done.into_iter().next().map(|(_, done)| done);
            let id = match outcome {
                Some(Done::Backup(Ok(run))) if !run.committed.is_empty() => {
                    run.committed[run.committed.len() - 1].manifest.id.clone()
                }
                Some(done) => {
                    let error = done
                        .error()
                        .map_or("no backup".to_owned(), |error| error_chain(error));
                    return Err(format!("at the end host {host} makes no backup: {error}"));
                }
                None => return Err("a backup that nobody stopped did not end".to_owned()),
            };
            if let Some(failure) = self.site.restore_failure(&id).await {
                return Err(failure);
            }
        }
        let alive: Vec<BackupId> = {
            let facts = self.site.observer.facts();
            facts
                .alive
                .iter()
                .filter(|(place, _)| *place == Place::Remote)
                .map(|(_, id)| id.clone())
                .collect()
        };
        for id in alive {
            if let Some(failure) = self.site.restore_failure(&id).await {
                return Err(failure);
            }
        }
        Ok(())
    }
}

async fn run(keys: KeyFile, writer: WriterKeys, case: &Case, seen: &Seen) -> Result<(), String> {
    let mut run = Run {
        site: TwoHosts::new(keys, writer, case.remote),
        seen,
    };
    run.prelude(case.prelude).await?;
    run.site.add_second(case.relation);
    for host in 0..2 {
        run.prune_nothing(host).await?;
    }
    for (number, round) in case.rounds.iter().enumerate() {
        if let Some((host, from, hours)) = case.clock
            && from == number
        {
            run.site.set_hours_ahead(host, hours);
        }
        run.round(round)
            .await
            .map_err(|failure| format!("in round {number}: {failure}"))?;
    }
    run.end()
        .await
        .map_err(|failure| format!("at the end: {failure}"))
}

fn new_seed() -> u64 {
    let now = format!("{:?}", std::time::Instant::now());
    u64::from_le_bytes(
        *blake3::hash(now.as_bytes())
            .as_bytes()
            .first_chunk()
            .unwrap(),
    )
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
}

/// The default cases are the same in every run. `ZFS_BACKUP_CASES` makes that many new ones;
/// `ZFS_BACKUP_SEED` makes those of an earlier run again.
#[test]
fn what_no_command_may_delete_restores_whatever_runs_at_the_same_time() {
    let (keys, writer) = quick_keys();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let new_cases = number_from("ZFS_BACKUP_CASES");
    let cases = u32::try_from(new_cases.unwrap_or(CASES)).unwrap();
    let seed = number_from("ZFS_BACKUP_SEED").unwrap_or_else(|| match new_cases {
        Some(_) => new_seed(),
        None => SEED,
    });
    let mut config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    config.max_shrink_iters = config.max_shrink_iters.min(2000);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let seen = Seen::default();
    let began = std::time::Instant::now();
    let result = TestRunner::new_with_rng(config, rng).run(&any_case(), |case| {
        let outcome = runtime.block_on(run(keys.clone(), writer.clone(), &case, &seen));
        outcome.map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("ZFS_BACKUP_SEED={seed} ZFS_BACKUP_CASES={cases} repeats this\n{error}");
    }
    let Seen {
        deleted,
        committed,
        refused,
        killed,
    } = &seen;
    println!(
        "{cases} cases, seed {seed}: {} committed, {} deleted, {} refused, {} killed, {:?}",
        committed.get(),
        deleted.get(),
        refused.get(),
        killed.get(),
        began.elapsed()
    );
    assert!(
        deleted.get() > cases as usize / 4,
        "only {} were deleted: this tests nothing",
        deleted.get()
    );
}

/// A running prune on another host is about to delete the backups in its record: an upload must see
/// that record.
#[tokio::test]
async fn the_record_of_a_prune_on_another_host_stays_and_nothing_is_deleted_beside_it() {
    let mut yard = Yard::new();
    let (old, new) = (yard.chain(2).await, yard.chain(2).await);
    let one_chain = RetentionRules {
        last_chains: Some(1),
        ..Default::default()
    };
    yard.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::Delete)
            .forever(),
    );
    yard.try_prune(1, &one_chain).await.unwrap_err();
    yard.store.heal();
    let records = yard.record_keys();
    assert_eq!(records.len(), 1);
    // A host that keeps all of it, one that would delete the same, and a person.
    assert_eq!(
        yard.try_prune(0, &RetentionRules::default())
            .await
            .unwrap()
            .view
            .plan
            .doubts,
        []
    );
    let outcome = yard.try_prune(0, &one_chain).await.unwrap();
    let doubts: Vec<String> = outcome
        .view
        .plan
        .doubts
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        doubts.len() == 1 && doubts[0].contains("another host is pruning here"),
        "{doubts:?}"
    );
    let env = yard.env(0, Arc::new(yard.store.clone()), never());
    let error = forget(&env, &yard.dataset, &new[1], None)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("another host is pruning here"),
        "{error}"
    );
    assert_eq!(yard.record_keys(), records);
    yard.assert_restores(old.iter().chain(&new).cloned()).await;
    // The host that put the record knows what its prune left.
    assert_eq!(
        yard.try_prune(1, &one_chain).await.unwrap().deleted.len(),
        2
    );
    yard.assert_restores(new).await;
}

#[tokio::test]
async fn the_record_of_a_prune_that_crashed_on_another_host_counts_for_two_days() {
    let mut yard = Yard::new();
    let (old, new) = (yard.chain(2).await, yard.chain(2).await);
    let one_chain = RetentionRules {
        last_chains: Some(1),
        ..Default::default()
    };
    yard.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::Delete)
            .forever(),
    );
    yard.try_prune(1, &one_chain).await.unwrap_err();
    yard.store.heal();
    yard.wait(hours(48) - 1);
    yard.try_prune(0, &RetentionRules::default()).await.unwrap();
    assert_eq!(yard.record_keys().len(), 1);
    yard.wait(1);
    yard.try_prune(0, &RetentionRules::default()).await.unwrap();
    assert_eq!(yard.record_keys(), [""; 0]);
    yard.assert_restores(old.iter().chain(&new).cloned()).await;
}

/// In a folder the clock of the host that puts a record dates it.
#[tokio::test]
async fn a_record_dated_in_the_future_stops_other_hosts_for_two_days_only() {
    let mut yard = Yard::new();
    let (old, new) = (yard.chain(2).await, yard.chain(2).await);
    let one_chain = RetentionRules {
        last_chains: Some(1),
        ..Default::default()
    };
    yard.hosts[1].1 = hours(90 * 24);
    yard.store.set_clock(Some(yard.now(1)));
    yard.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::Delete)
            .forever(),
    );
    yard.try_prune(1, &one_chain).await.unwrap_err();
    yard.store.heal();
    let record = yard.record_keys().remove(0);
    let until = yard.clock + jiff::SignedDuration::from_hours(48);
    for wait in [0, 47] {
        yard.wait(hours(wait));
        let outcome = yard.try_prune(0, &one_chain).await.unwrap();
        let doubt = &outcome.view.plan.doubts[0];
        assert!(doubt.to_string().contains("in the future"), "{doubt}");
        let hint = doubt.hint("prune-remote", &yard.dataset);
        assert!(
            hint.contains(&format!("delete {record} in the store"))
                && hint.contains(&format!("until {until}")),
            "{hint}"
        );
        let env = yard.env(0, Arc::new(yard.store.clone()), never());
        let error = forget(&env, &yard.dataset, &new[1], None)
            .await
            .unwrap_err();
        assert!(error.hint().unwrap().contains(&record), "{error}");
    }
    yard.wait(hours(2));
    let outcome = yard.try_prune(0, &one_chain).await.unwrap();
    assert_eq!(outcome.deleted.len(), old.len(), "{:?}", outcome.view.plan);
    yard.assert_restores(new).await;
}

#[tokio::test]
async fn what_waits_in_the_intermediate_directory_keeps_its_base_in_the_remote() {
    let mut yard = Yard::new();
    let full = yard.put(None).await;
    let intermediate = memory_store(64 * 1024);
    intermediate.set_clock(Some(yard.clock));
    let catalog = read_catalog(&yard.store, &yard.dataset, &yard.keys.trusted)
        .await
        .unwrap();
    let child = yard
        .export(&intermediate, catalog.backup(&full).cloned())
        .await;
    let env = yard.env(0, Arc::new(yard.store.clone()), never());
    let error = forget(&env, &yard.dataset, &full, Some(&intermediate))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("{child} in memory: builds on {full}")),
        "{error}"
    );
    assert_eq!(yard.record_keys(), [""; 0]);
    yard.assert_restores([full.clone()]).await;
    // Once the child is gone, or is in the remote itself, the directory does not matter.
    let here = yard.env(0, Arc::new(intermediate.clone()), never());
    forget(&here, &yard.dataset, &child, None).await.unwrap();
    forget(&env, &yard.dataset, &full, Some(&intermediate))
        .await
        .unwrap();
    assert!(yard.ids().is_empty());
}
