//! Any sequence of uploads and prunes of two hosts, with crashes at any store call, clocks that
//! jump, manifests that vanish behind delete markers and come back, and listings that leave objects
//! out: every backup that was committed, and that no prune decided to delete, restores.

use crate::builder::{Yard, hours, later};
use crate::prune::Hooked;
use crate::world::quick_keys;
use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeSet;
use std::sync::Arc;
use zfs_backup::catalog::read_catalog;
use zfs_backup::config::{Age, RetentionRules};
use zfs_backup::keyring::KeyFile;
use zfs_backup::model::BackupId;
use zfs_backup::run::keys::WriterKeys;
use zfs_backup::run::prune::{SecondaryStore, prune_dataset, read_view};
use zfs_backup::store::StoreErrorKind;
use zfs_backup::store::memory::Fault;

#[derive(Debug, Clone)]
enum Op {
    /// A host backs up, on the newest backup, on any, or in full; at that store call its host
    /// crashes.
    Upload {
        host: usize,
        base: u8,
        any: Index,
        crash: Option<usize>,
    },
    /// A host prunes; it crashes at that call, its listings leave these objects out.
    Prune {
        host: usize,
        rules: Box<RetentionRules>,
        crash: Option<usize>,
        unlisted: Vec<Index>,
    },
    Wait {
        hours: i64,
    },
    Clock {
        host: usize,
        hours: i64,
    },
    Vanish {
        which: Index,
        with_signature: bool,
    },
    Return,
}

pub(crate) fn any_rules() -> impl Strategy<Value = RetentionRules> {
    let count = |max| proptest::option::weighted(0.4, 0u32..max);
    (
        count(3),
        count(3),
        proptest::option::weighted(0.2, 1u32..6),
        count(4),
        proptest::option::weighted(0.2, 1u32..4),
        proptest::option::weighted(
            0.3,
            prop_oneof![Just("1m 2w 3d"), Just("2w 1d"), Just("2d 6h")],
        ),
        proptest::option::weighted(0.2, 1u32..20),
    )
        .prop_map(
            |(last_chains, last_fulls, within, daily, age, keep, at_least)| RetentionRules {
                last_chains,
                last_fulls,
                within: within.map(Age::days),
                daily,
                full_ages: age.map(Age::days).into_iter().collect(),
                levels: keep.map(|keep| keep.parse().unwrap()),
                at_least: at_least.map(Age::days),
                ..Default::default()
            },
        )
}

fn any_op() -> impl Strategy<Value = Op> {
    let crash = |calls: usize| proptest::option::weighted(0.35, 1..calls);
    let upload = (
        0..2usize,
        0u8..10,
        any::<Index>(),
        proptest::option::weighted(0.15, 1..40usize),
    )
        .prop_map(|(host, base, any, crash)| Op::Upload {
            host,
            base,
            any,
            crash,
        });
    let unlisted = proptest::collection::vec(any::<Index>(), 0..3);
    let unlisted = prop_oneof![3 => Just(Vec::new()), 1 => unlisted];
    let prune = (0..2usize, any_rules(), crash(150), unlisted).prop_map(
        |(host, rules, crash, unlisted)| Op::Prune {
            host,
            rules: Box::new(rules),
            crash,
            unlisted,
        },
    );
    prop_oneof![
        10 => upload,
        14 => prune,
        4 => (1i64..200).prop_map(|hours| Op::Wait { hours }),
        1 => (0..2usize, prop_oneof![3 => Just(0i64), 1 => -60i64..60, 1 => -9000i64..9000])
            .prop_map(|(host, hours)| Op::Clock { host, hours }),
        1 => (any::<Index>(), any::<bool>()).prop_map(|(which, with_signature)| Op::Vanish { which, with_signature }),
        1 => Just(Op::Return),
    ]
}

/// The store, and what is known of it from outside.
struct Watched {
    yard: Yard,
    /// Committed, and no prune decided to delete it.
    alive: BTreeSet<BackupId>,
    /// Ever seen with a manifest.
    known: BTreeSet<BackupId>,
    vanished: Vec<(String, Bytes)>,
    deleted: usize,
}

impl Watched {
    fn has_manifest(&self, id: &BackupId) -> bool {
        self.yard
            .store
            .object(&self.yard.key(id, "manifest.json"))
            .is_some()
    }

    fn is_hidden(&self, id: &BackupId) -> bool {
        self.vanished
            .iter()
            .any(|(key, _)| *key == self.yard.key(id, "manifest.json"))
    }

    async fn apply(&mut self, op: &Op) {
        self.yard.wait(600);
        match op {
            Op::Upload {
                host,
                base,
                any,
                crash,
            } => self.upload(*host, *base, any, *crash).await,
            Op::Prune {
                host,
                rules,
                crash,
                unlisted,
            } => self.prune(*host, rules, *crash, unlisted).await,
            Op::Wait { hours: count } => self.yard.wait(hours(*count)),
            Op::Clock { host, hours: count } => self.yard.hosts[*host].1 = hours(*count),
            Op::Vanish {
                which,
                with_signature,
            } => self.vanish(which, *with_signature),
            Op::Return => self.reappear(),
        }
    }

    async fn upload(&mut self, host: usize, base: u8, any: &Index, crash: Option<usize>) {
        let catalog = read_catalog(
            &self.yard.store,
            &self.yard.dataset,
            &self.yard.keys.trusted,
        )
        .await
        .unwrap();
        let ids: Vec<BackupId> = catalog
            .backups
            .iter()
            .map(|backup| backup.manifest.id.clone())
            .collect();
        let base = match base {
            0..=1 => None,
            2..=6 => ids.last(),
            _ => (!ids.is_empty()).then(|| any.get(&ids)),
        };
        if let Some(n) = crash {
            self.yard
                .store
                .fail(Fault::before(StoreErrorKind::Unavailable).nth(n).forever());
        }
        // Whether it went well is seen by its manifest: the reply may be lost.
        let _ = self.yard.upload(host, base).await;
        self.yard.store.heal();
        for id in self.yard.ids() {
            if self.has_manifest(&id) && self.known.insert(id.clone()) {
                self.alive.insert(id);
            }
        }
    }

    async fn prune(
        &mut self,
        host: usize,
        rules: &RetentionRules,
        crash: Option<usize>,
        unlisted: &[Index],
    ) {
        let keys = self.yard.store.keys();
        let store = Hooked::new(&self.yard.store, |_, _| {});
        if !keys.is_empty() {
            store
                .unlisted
                .lock()
                .unwrap()
                .extend(unlisted.iter().map(|index| index.get(&keys).clone()));
        }
        let env = self.yard.env(host, Arc::new(store), crate::world::never());
        let task = self.yard.task(rules, SecondaryStore::Nothing);
        let allowed: BTreeSet<BackupId> = match read_view(&env, &task).await {
            Ok(view) => view.plan.doomed_ids().into_iter().cloned().collect(),
            Err(_) => BTreeSet::new(),
        };
        if let Some(n) = crash {
            self.yard
                .store
                .fail(Fault::before(StoreErrorKind::Unavailable).nth(n).forever());
        }
        let outcome = prune_dataset(&env, &task).await;
        self.yard.store.heal();
        if let Ok(outcome) = &outcome {
            assert!(
                outcome.deleted.iter().all(|id| allowed.contains(id)),
                "more went than was planned"
            );
            self.deleted += outcome.deleted.len();
        }
        let gone: Vec<BackupId> = self
            .alive
            .iter()
            .filter(|id| allowed.contains(id) && !self.has_manifest(id))
            .cloned()
            .collect();
        self.deleted += if outcome.is_err() { gone.len() } else { 0 };
        for id in gone {
            let prefix = self.yard.key(&id, "");
            self.vanished.retain(|(key, _)| !key.starts_with(&prefix));
            self.alive.remove(&id);
        }
    }

    fn vanish(&mut self, which: &Index, with_signature: bool) {
        let there: Vec<BackupId> = self
            .alive
            .iter()
            .filter(|id| self.has_manifest(id))
            .cloned()
            .collect();
        if there.is_empty() {
            return;
        }
        let id = which.get(&there);
        let names: &[&str] = if with_signature {
            &["manifest.json", "manifest.json.minisig"]
        } else {
            &["manifest.json"]
        };
        for name in names {
            let key = self.yard.key(id, name);
            if let Some(bytes) = self.yard.store.object(&key) {
                assert!(self.yard.store.lose(&key));
                self.vanished.push((key, bytes));
            }
        }
    }

    fn reappear(&mut self) {
        for (key, bytes) in self.vanished.drain(..) {
            self.yard.store.plant(&key, bytes);
        }
    }

    /// Everything that is alive comes back whole, what is hidden included.
    async fn check(&self) -> Vec<String> {
        for (key, bytes) in &self.vanished {
            self.yard.store.plant(key, bytes.clone());
        }
        let failures = self.yard.not_restorable(self.alive.iter().cloned()).await;
        for (key, _) in &self.vanished {
            self.yard.store.lose(key);
        }
        failures
    }
}

async fn run(
    keys: KeyFile,
    writer: WriterKeys,
    any: &Index,
    ops: Vec<Op>,
) -> Result<usize, String> {
    let yard = Yard::with_keys(keys, writer);
    let mut watched = Watched {
        yard,
        alive: BTreeSet::new(),
        known: BTreeSet::new(),
        vanished: Vec::new(),
        deleted: 0,
    };
    // Something to prune: two chains and a full.
    for base in [0, 2, 2, 0, 2, 0] {
        watched.yard.wait(hours(20));
        watched.upload(0, base, any, None).await;
    }
    for (number, op) in ops.iter().enumerate() {
        watched.apply(op).await;
        let failures = watched.check().await;
        if !failures.is_empty() {
            return Err(format!(
                "after step {number}, {op:?}: {}",
                failures.join("; ")
            ));
        }
        // Nothing is lost but by a plan.
        for id in &watched.alive {
            if !watched.has_manifest(id) && !watched.is_hidden(id) {
                return Err(format!("after step {number}, {op:?}: {id} is gone"));
            }
        }
    }
    // Once the world is well again, one more backup and prunes that keep all end without a doubt
    // and without a crash.
    watched.reappear();
    watched
        .yard
        .hosts
        .iter_mut()
        .for_each(|(_, offset)| *offset = 0);
    watched.yard.clock = later(watched.yard.clock, hours(24 * 400));
    watched.yard.store.set_clock(Some(watched.yard.clock));
    let _ = watched.yard.upload(0, None).await;
    let _ = watched.yard.try_prune(0, &RetentionRules::default()).await;
    let failures = watched.check().await;
    if failures.is_empty() {
        Ok(watched.deleted)
    } else {
        Err(failures.join("; "))
    }
}

/// More with ZFS_BACKUP_CASES.
fn cases() -> u32 {
    std::env::var("ZFS_BACKUP_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(100)
}

#[test]
fn every_backup_not_planned_for_deletion_restores_after_any_sequence() {
    let (keys, writer) = quick_keys();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let config = ProptestConfig {
        cases: cases(),
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let deleted = std::cell::Cell::new(0);
    let ops = (any::<Index>(), proptest::collection::vec(any_op(), 1..12));
    let result = proptest::test_runner::TestRunner::new(config).run(&ops, |(any, ops)| {
        let outcome = runtime.block_on(run(keys.clone(), writer.clone(), &any, ops));
        outcome
            .map(|count| deleted.set(deleted.get() + count))
            .map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(
        deleted.get() > cases() as usize / 2,
        "only {} were deleted: this tests nothing",
        deleted.get()
    );
}
