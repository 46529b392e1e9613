//! [`TwoHosts`]: two hosts with real backups of small datasets, each with an intermediate directory, and one remote; and
//! [`Observer`], who sees every object come and go and says what nobody may do.

use crate::builder::{RESUME_DAYS, hours};
use crate::scheduler::{GatedStore, Scheduler, Watch};
use crate::world::{LIFECYCLE, PART_BYTES, SNAPSHOT_PREFIX, memory_store, name, never, noise, plant_keyring};
use jiff::Timestamp;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;
use zfs_backup::config::{RawMode, SnapshotSource};
use zfs_backup::keyring::KeyFile;
use zfs_backup::manifest::{Manifest, Origin, PruneRecord, parse_strict};
use zfs_backup::model::{BackupId, DatasetName, Digest, Guid, KnownStore};
use zfs_backup::plan::clock::ClockReading;
use zfs_backup::plan::restore::plan_restore;
use zfs_backup::plan::send::LifecycleRules;
use zfs_backup::run::backup::{BackupEnv, BackupSettings, OtherStore, StoreRole};
use zfs_backup::run::catalog::{read_catalog, read_chunks};
use zfs_backup::run::clock::ClockCheck;
use zfs_backup::run::error_chain;
use zfs_backup::run::journal::unended;
use zfs_backup::run::keys::WriterKeys;
use zfs_backup::run::pins::{pinned, unpin};
use zfs_backup::run::prune::PruneEnv;
use zfs_backup::run::prune_snapshots::{SnapshotStore, SnapshotsEnv};
use zfs_backup::run::restore::{ReceiveOptions, RestorePoint, find_restore_set, restore_to_dataset};
use zfs_backup::run::select::Selected;
use zfs_backup::run::snapshot::take_snapshots;
use zfs_backup::run::upload::UploadEnv;
use zfs_backup::store::key::BackupObject;
use zfs_backup::store::memory::MemoryStore;
use zfs_backup::store::{ObjectKey, ObjectStore, StoreTraits, UploadNeeds};
use zfs_backup::stream::seal::Compression;
use zfs_backup::zfs::fake::FakeZfs;
use zfs_backup::zfs::{DatasetType, Zfs};

/// A night's incremental has two chunks of this length.
const SPLIT_BYTES: u64 = 4096;
const FIRST_SECOND: i64 = 1_767_225_600;
const DAY_SECONDS: i64 = 86_400;
/// How far a clock may be ahead before nothing is deleted; a little more than the program's bound.
const AHEAD_HOURS_MAX: i64 = 25;

thread_local! {
    /// The true time, and how far the clock of each host is ahead of it, in seconds.
    static CLOCKS: Cell<(i64, [i64; 2])> = const { Cell::new((FIRST_SECOND, [0, 0])) };
}

/// The time as that host knows it.
pub(crate) fn host_time(host: usize) -> Timestamp {
    let (now, ahead) = CLOCKS.get();
    Timestamp::from_second(now + ahead[host]).unwrap()
}

fn true_seconds() -> i64 {
    CLOCKS.get().0
}

pub(crate) fn seconds_ahead(host: usize) -> i64 {
    CLOCKS.get().1[host]
}

fn first_host_time() -> Timestamp {
    host_time(0)
}

fn second_host_time() -> Timestamp {
    host_time(1)
}

fn clock_of(host: usize) -> fn() -> Timestamp {
    [first_host_time, second_host_time][host]
}

/// What the two hosts have to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Two datasets under one name in the store; each host adopted the other's origin.
    Adopted,
    /// The second is a clone of the first, pool, state and intermediate directory included.
    Cloned,
}

/// What kind of store the remote is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemoteKind {
    pub(crate) create_only: bool,
    /// Its clock is that of the host that puts something, as with a folder.
    pub(crate) host_clock: bool,
}

/// One of the three stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Remote,
    Intermediate(usize),
}

impl Place {
    fn url(self) -> String {
        match self {
            Self::Remote => "memory:remote".to_owned(),
            Self::Intermediate(_) => "memory:intermediate".to_owned(),
        }
    }

    fn known(self) -> KnownStore {
        KnownStore::of_url(&self.url())
    }
}

/// What an operation is, as far as it decides what it may delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Job {
    /// A backup or a copy: deletes nothing but what is spare of its own.
    Upload,
    /// Deletes by a plan.
    Prune,
    /// Deletes what a person named.
    Forget(BackupId),
}

/// One operation of a race, for [`Observer`].
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub(crate) host: usize,
    pub(crate) job: Job,
}

type Stored = (Place, BackupId);

/// All that is known of the stores from outside.
#[derive(Default)]
pub(crate) struct Facts {
    /// The operations of this race.
    pub(crate) actors: Vec<Actor>,
    relation: Option<Relation>,
    pub(crate) are_clocks_right: bool,
    /// Committed, and nothing that was named in a prune record of its store was deleted of it.
    pub(crate) alive: BTreeSet<Stored>,
    pub(crate) committed: BTreeSet<Stored>,
    /// Backups that a host deleted from a store although another one may still build on them: it cannot see that.
    deleted_by_host: BTreeMap<Stored, usize>,
    /// Which host made it; `None` for those that both made before they were two.
    made_by: BTreeMap<BackupId, Option<usize>>,
    /// Unfinished attempts: whose, and when their newest object was put.
    living: BTreeMap<Stored, (usize, i64)>,
    records: BTreeMap<(Place, String), BTreeSet<BackupId>>,
    /// What the records named that the command of each actor put.
    named: BTreeMap<usize, BTreeSet<BackupId>>,
    /// Of what the command of each actor deleted objects.
    deleted: BTreeMap<usize, BTreeSet<BackupId>>,
    pub(crate) violations: BTreeSet<String>,
}

/// Sees every object come and go.
#[derive(Clone, Default)]
pub(crate) struct Observer(Arc<Mutex<Facts>>);

impl Observer {
    /// An actor begins a command.
    pub(crate) fn begin(&self, number: usize, actor: Actor) {
        let mut facts = self.facts();
        facts.actors[number] = actor;
        facts.named.remove(&number);
        facts.deleted.remove(&number);
    }

    /// The command of an actor ends, well or not: it deleted exactly what its plan printed (with what it says that it
    /// deleted), and one that failed nothing beside it.
    pub(crate) fn end(&self, number: usize, planned: Option<(BTreeSet<&BackupId>, BTreeSet<&BackupId>)>) {
        let mut facts = self.facts();
        let deleted = facts.deleted.remove(&number).unwrap_or_default();
        let named = facts.named.remove(&number).unwrap_or_default();
        if facts.actors[number].job != Job::Prune {
            return;
        }
        let violation = match planned {
            Some((planned, told)) => {
                let is_exact = planned == told && deleted.iter().all(|id| planned.contains(id));
                (!is_exact).then(|| format!("it planned {planned:?}, said {told:?} and deleted of {deleted:?}"))
            }
            None => {
                let mut beside = deleted.difference(&named);
                beside.next().map(|id| format!("it deleted of {id}, which its record does not name"))
            }
        };
        facts.violations.extend(violation.map(|what| format!("prune of actor {number}: {what}")));
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place_of(store: &GatedStore, host: usize) -> Place {
    if store.url == Place::Remote.url() { Place::Remote } else { Place::Intermediate(host) }
}

impl Watch for Observer {
    fn put(&self, store: &GatedStore, key: &str) {
        let mut facts = self.facts();
        let host = facts.actors[store.actor].host;
        let place = place_of(store, host);
        if key.contains("/@prune/") && key.ends_with(".json") {
            let record: PruneRecord = parse_strict(&store.inner.object(key).unwrap()).unwrap();
            let named: BTreeSet<BackupId> = record.pruned.into_iter().map(|entry| entry.id).collect();
            facts.named.entry(store.actor).or_default().extend(named.iter().cloned());
            facts.records.insert((place, key.to_owned()), named);
            return;
        }
        let Some(parsed) = ObjectKey::parse(key) else { return };
        let stored = (place, parsed.id.clone());
        let maker = Some(host);
        facts.made_by.entry(parsed.id).or_insert(maker);
        match (parsed.object, parsed.signature) {
            (BackupObject::Manifest, false) => {
                facts.living.remove(&stored);
                facts.committed.insert(stored.clone());
                facts.alive.insert(stored);
            }
            _ if facts.alive.contains(&stored) => {}
            _ => drop(facts.living.insert(stored, (host, true_seconds()))),
        }
    }

    fn deleting(&self, store: &GatedStore, key: &str) {
        let mut facts = self.facts();
        let Actor { host, job } = facts.actors[store.actor].clone();
        let place = place_of(store, host);
        if key.contains("/@prune/") {
            facts.records.remove(&(place, key.to_owned()));
            return;
        }
        let Some(parsed) = ObjectKey::parse(key) else {
            facts.violations.insert(format!("{key} is of nobody, and was deleted"));
            return;
        };
        let (id, stored) = (parsed.id.clone(), (place, parsed.id));
        facts.deleted.entry(store.actor).or_default().insert(id.clone());
        let is_forgotten = job == Job::Forget(id.clone());
        let violation = facts.violation(&stored, host, &job).map(|what| format!("{place:?}: {key}: {what}"));
        facts.violations.extend(violation);
        let is_named = facts.records.iter().any(|((of, _), named)| *of == place && named.contains(&id));
        if is_named && job != Job::Upload {
            facts.alive.remove(&stored);
            facts.deleted_by_host.insert(stored.clone(), host);
            if is_forgotten {
                facts.living.remove(&stored);
            }
        }
    }
}

impl Facts {
    /// Why this host must not delete anything of that.
    fn violation(&self, stored: &Stored, host: usize, job: &Job) -> Option<String> {
        let maker = self.made_by.get(&stored.1).copied().flatten();
        match job {
            Job::Forget(id) => (*id != stored.1).then(|| format!("forget {id} deleted it")),
            Job::Upload if maker.is_some_and(|maker| maker != host) => {
                Some(format!("host {host} deleted it beside an upload, and it is of another host"))
            }
            Job::Upload => None,
            Job::Prune => {
                let (owner, newest) = self.living.get(stored).copied().unwrap_or((host, 0));
                if true_seconds() - newest < i64::from(RESUME_DAYS) * DAY_SECONDS {
                    return Some(format!("host {host} pruned it, and host {owner} is uploading it"));
                }
                let is_fork = self.relation == Some(Relation::Cloned) && maker.is_some_and(|maker| maker != host);
                if is_fork && self.committed.contains(stored) {
                    return Some(format!("host {host} pruned it, and it is of the other time line of its origin"));
                }
                let of_place = self.alive.iter().filter(|(place, _)| *place == stored.0);
                // An id begins with the time of its snapshot.
                if stored.0 == Place::Remote
                    && self.are_clocks_right
                    && of_place.max_by_key(|(_, id)| id) == Some(stored)
                {
                    return Some(format!("host {host} pruned it, and it is the newest backup in the remote"));
                }
                let ahead = seconds_ahead(host);
                (ahead > hours(AHEAD_HOURS_MAX)).then(|| format!("host {host} pruned it, its clock {ahead} s ahead"))
            }
        }
    }
}

/// One host.
pub(crate) struct Host {
    pub(crate) zfs: FakeZfs,
    pub(crate) intermediate: MemoryStore,
    pub(crate) state: TempDir,
    /// When each of its snapshots was taken, in true seconds.
    pub(crate) taken: BTreeMap<Guid, i64>,
}

/// The files of a dataset.
type Files = BTreeMap<u64, Vec<u8>>;

/// Two hosts and three stores.
pub(crate) struct TwoHosts {
    pub(crate) keys: KeyFile,
    pub(crate) writer: WriterKeys,
    pub(crate) dataset: DatasetName,
    pub(crate) remote: MemoryStore,
    kind: RemoteKind,
    pub(crate) hosts: Vec<Host>,
    pub(crate) observer: Observer,
    pub(crate) scheduler: Arc<Scheduler>,
    contents: BTreeMap<Guid, Files>,
    nights: u64,
}

/// State folders are written and flushed all the time: in memory where the system has a folder for that.
fn state_folder() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn copy_store(from: &MemoryStore) -> MemoryStore {
    let to = memory_store(PART_BYTES);
    to.set_clock(Some(host_time(0)));
    for key in from.keys() {
        to.plant(&key, from.object(&key).unwrap());
    }
    to
}

impl TwoHosts {
    /// One host with a dataset, and its empty stores.
    pub(crate) fn new(keys: KeyFile, writer: WriterKeys, kind: RemoteKind) -> Self {
        CLOCKS.set((FIRST_SECOND, [0, 0]));
        let (dataset, remote) = (name("tank/a"), memory_store(PART_BYTES));
        let mut site = Self {
            keys,
            writer,
            dataset,
            remote,
            kind,
            hosts: Vec::new(),
            observer: Observer::default(),
            scheduler: Scheduler::new(),
            contents: BTreeMap::new(),
            nights: 0,
        };
        site.observer.facts().are_clocks_right = true;
        plant_keyring(&site.remote, &site.writer);
        let zfs = FakeZfs::new();
        site.add_host(zfs);
        site
    }

    fn add_host(&mut self, zfs: FakeZfs) {
        zfs.create(&self.dataset, DatasetType::Filesystem);
        let intermediate = memory_store(PART_BYTES);
        plant_keyring(&intermediate, &self.writer);
        self.hosts.push(Host { zfs, intermediate, state: state_folder(), taken: BTreeMap::new() });
    }

    /// The second host comes.
    pub(crate) fn add_second(&mut self, relation: Relation) {
        self.observer.facts().relation = Some(relation);
        match relation {
            Relation::Adopted => {
                let zfs = FakeZfs::new();
                // Another dataset guid, and a counter of transaction groups that is elsewhere.
                (0..5).for_each(|number| zfs.create(&name(&format!("tank/other-{number}")), DatasetType::Filesystem));
                let zfs = zfs.copy_pools();
                self.add_host(zfs);
            }
            Relation::Cloned => {
                let first = &self.hosts[0];
                let state = state_folder();
                copy_folder(first.state.path(), state.path());
                let intermediate = copy_store(&first.intermediate);
                let (zfs, taken) = (first.zfs.copy_pools(), first.taken.clone());
                self.hosts.push(Host { zfs, intermediate, state, taken });
                let mut facts = self.observer.facts();
                facts.made_by.values_mut().for_each(|maker| *maker = None);
                let copied = |(place, id): &Stored| {
                    (*place == Place::Intermediate(0)).then(|| (Place::Intermediate(1), id.clone()))
                };
                let (alive, committed) = (facts.alive.clone(), facts.committed.clone());
                facts.alive.extend(alive.iter().filter_map(copied));
                facts.committed.extend(committed.iter().filter_map(copied));
            }
        }
    }

    pub(crate) fn wait_hours(&self, count: i64) {
        let (now, ahead) = CLOCKS.get();
        CLOCKS.set((now + hours(count), ahead));
        self.set_clocks(0);
    }

    pub(crate) fn set_hours_ahead(&self, host: usize, count: i64) {
        let mut facts = self.observer.facts();
        facts.are_clocks_right &= count == 0;
        drop(facts);
        let (now, mut ahead) = CLOCKS.get();
        ahead[host] = hours(count);
        CLOCKS.set((now, ahead));
    }

    /// A second passes, and that host acts.
    pub(crate) fn tick(&self, host: usize) {
        let (now, ahead) = CLOCKS.get();
        CLOCKS.set((now + 1, ahead));
        self.set_clocks(host);
    }

    fn set_clocks(&self, actor: usize) {
        let remote =
            if self.kind.host_clock { host_time(actor) } else { Timestamp::from_second(true_seconds()).unwrap() };
        self.remote.set_clock(Some(remote));
        for (number, host) in self.hosts.iter().enumerate() {
            host.intermediate.set_host_clock(host_time(number));
            host.zfs.set_now(host_time(number));
        }
    }

    /// Files change and a snapshot is taken.
    pub(crate) fn night(&mut self, host: usize) {
        self.tick(host);
        self.nights += 1;
        let zfs = &self.hosts[host].zfs;
        zfs.write_file(&self.dataset, 7, &noise(self.nights, 3000));
        if self.nights == 1 {
            zfs.write_file(&self.dataset, 8, &noise(1000, 1500));
        }
        let taken = take_snapshots(zfs, std::slice::from_ref(&self.dataset), SNAPSHOT_PREFIX, host_time(host)).unwrap();
        let files = zfs.snapshot_files(&taken[0]).unwrap();
        let guid = zfs.snapshots(&self.dataset).unwrap().last().unwrap().guid;
        self.contents.insert(guid, files);
        self.hosts[host].taken.insert(guid, true_seconds());
    }

    /// A store as that operation of that host sees it.
    pub(crate) fn store(&self, place: Place, actor: usize) -> Arc<dyn ObjectStore> {
        let (inner, create_only) = match place {
            Place::Remote => (&self.remote, self.kind.create_only),
            Place::Intermediate(host) => (&self.hosts[host].intermediate, true),
        };
        let traits = StoreTraits {
            needs: UploadNeeds::Parts,
            part_bytes: PART_BYTES,
            concurrency: 3,
            conditional_put: create_only,
        };
        Arc::new(GatedStore {
            inner: inner.clone(),
            actor,
            scheduler: Arc::clone(&self.scheduler),
            watch: Arc::new(self.observer.clone()),
            url: place.url(),
            traits,
        })
    }

    fn settings(&self, host: usize) -> BackupSettings {
        BackupSettings {
            split_bytes: SPLIT_BYTES,
            compression: Compression::None,
            raw: RawMode::Auto,
            compressed: true,
            embedded: false,
            source: SnapshotSource::Own,
            snapshot_prefix: SNAPSHOT_PREFIX.to_owned(),
            // The sizes of so small backups say nothing.
            lifecycle: LifecycleRules { incrementals_percent_max: 1_000_000, ..LIFECYCLE },
            state_dir: self.hosts[host].state.path().to_owned(),
            host: format!("host-{host}"),
            restart: false,
            window: None,
            until: None,
        }
    }

    pub(crate) fn selected(&self, host: usize) -> Selected {
        let dataset = self.hosts[host].zfs.dataset(&self.dataset).unwrap().unwrap();
        Selected { dataset, stored: self.dataset.clone() }
    }

    pub(crate) fn backup_env(&self, host: usize, actor: usize, role: StoreRole) -> BackupEnv {
        let (target, other) = match role {
            StoreRole::Remote => (Place::Remote, (StoreRole::Intermediate, Place::Intermediate(host))),
            StoreRole::Intermediate => (Place::Intermediate(host), (StoreRole::Remote, Place::Remote)),
        };
        let other = OtherStore { role: other.0, known: other.1.known(), store: Ok(self.store(other.1, actor)) };
        BackupEnv {
            zfs: Arc::new(self.hosts[host].zfs.clone()),
            store: self.store(target, actor),
            role,
            other: Some(other),
            keys: self.writer.clone(),
            settings: self.settings(host),
            now: clock_of(host),
            planned: Arc::new(|_| {}),
            progress: Arc::new(|_| {}),
            stop: never(),
        }
    }

    pub(crate) fn upload_env(&self, host: usize, actor: usize) -> UploadEnv {
        UploadEnv {
            from: self.store(Place::Intermediate(host), actor),
            to: self.store(Place::Remote, actor),
            keys: self.writer.clone(),
            state_dir: self.hosts[host].state.path().to_owned(),
            now: clock_of(host),
            progress: Arc::new(|_| Arc::new(|_| {})),
            stop: never(),
        }
    }

    pub(crate) fn prune_env(&self, host: usize, actor: usize, place: Place) -> PruneEnv {
        PruneEnv {
            store: self.store(place, actor),
            signing: self.writer.signing.clone(),
            trusted: self.keys.trusted.clone(),
            state_dir: self.hosts[host].state.path().to_owned(),
            resume_days: RESUME_DAYS,
            now: host_time(host),
            clock: self.clock(host),
            stop: never(),
        }
    }

    /// The clocks of a host that was never switched off, and what it noted of them.
    fn clock(&self, host: usize) -> ClockCheck {
        let reading = ClockReading {
            wall: host_time(host),
            since_boot_seconds: true_seconds() - FIRST_SECOND + DAY_SECONDS,
            boot_id: "the only boot".to_owned(),
            is_synchronised: false,
        };
        let read = ClockCheck::read(self.hosts[host].state.path(), false).unwrap();
        ClockCheck { reading, run_seconds: 0, ..read }
    }

    pub(crate) fn snapshots_env(&self, host: usize, actor: usize, oldest_days: u32) -> SnapshotsEnv {
        let store = |place, beside_remote| SnapshotStore { store: self.store(place, actor), beside_remote };
        SnapshotsEnv {
            zfs: Arc::new(self.hosts[host].zfs.clone()),
            stores: vec![store(Place::Remote, false), store(Place::Intermediate(host), true)],
            trusted: self.keys.trusted.clone(),
            state_dir: self.hosts[host].state.path().to_owned(),
            oldest_days,
            prefix: SNAPSHOT_PREFIX.to_owned(),
            now: host_time(host),
            clock: self.clock(host),
        }
    }

    /// The origins that a host prunes: both where each adopted the other.
    pub(crate) fn origins(&self) -> Vec<Origin> {
        let mut origins: Vec<Origin> = Vec::new();
        for host in &self.hosts {
            let dataset_guid = host.zfs.dataset(&self.dataset).unwrap().unwrap().guid;
            let origin = Origin { dataset_guid, pool_guid: host.zfs.pool_guid(self.dataset.pool()).unwrap() };
            if !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        origins
    }

    fn inner(&self, place: Place) -> &MemoryStore {
        match place {
            Place::Remote => &self.remote,
            Place::Intermediate(host) => &self.hosts[host].intermediate,
        }
    }

    /// Releases what a host keeps in its pool for attempts that are over.
    pub(crate) fn unpin(&self, host: usize, is_over: impl Fn(&BackupId) -> bool) {
        unpin(&self.hosts[host].zfs, &self.dataset, is_over).unwrap();
    }

    /// What a person may name there: backups, and attempts that nobody works on. Who names another host's upload while
    /// it runs has been warned.
    pub(crate) fn forgettable(&self, place: Place) -> Vec<BackupId> {
        let facts = self.observer.facts();
        let ids = crate::builder::ids_in(self.inner(place)).into_iter();
        ids.filter(|id| facts.alive.contains(&(place, id.clone()))).collect()
    }

    pub(crate) fn snapshots(&self, host: usize) -> BTreeSet<Guid> {
        let snapshots = self.hosts[host].zfs.snapshots(&self.dataset).unwrap();
        snapshots.into_iter().map(|snapshot| snapshot.guid).collect()
    }

    /// What is wrong with the backups that must be whole: chain, chunk lists, and every byte of every chunk. What is in
    /// an intermediate directory may build on what is in the remote.
    pub(crate) async fn not_whole(&self) -> Vec<String> {
        let alive = self.observer.facts().alive.clone();
        let mut failures = Vec::new();
        let places = std::iter::once(Place::Remote).chain((0..self.hosts.len()).map(Place::Intermediate));
        for place in places {
            let here = alive.iter().filter(|(of, id)| *of == place && !(place != Place::Remote && self.was_remote(id)));
            let stores = match place {
                Place::Remote => vec![place],
                Place::Intermediate(_) => vec![place, Place::Remote],
            };
            let mut found = self.not_whole_in(&stores, here.map(|(_, id)| id)).await;
            failures.append(&mut found);
        }
        failures
    }

    /// Whether the remote has or had the backup, or another one of the same snapshot and kind: then the rules of each
    /// store decide, and what the intermediate directory keeps may have no chain of its own.
    fn was_remote(&self, id: &BackupId) -> bool {
        let is_alike = |other: &BackupId| other.snapshot_guid() == id.snapshot_guid() && other.kind() == id.kind();
        self.observer.facts().committed.iter().any(|(place, other)| *place == Place::Remote && is_alike(other))
    }

    async fn not_whole_in(&self, places: &[Place], ids: impl Iterator<Item = &BackupId>) -> Vec<String> {
        let mut backups: BTreeMap<BackupId, (Manifest, Digest, Vec<Place>)> = BTreeMap::new();
        for place in places {
            let catalog = read_catalog(self.inner(*place), &self.dataset, &self.keys.trusted).await.unwrap();
            for backup in catalog.backups {
                let id = backup.manifest.id.clone();
                let found = backups.entry(id).or_insert((backup.manifest, backup.manifest_blake3, Vec::new()));
                found.2.push(*place);
            }
        }
        let known: Vec<(&Manifest, Digest)> = backups.values().map(|(manifest, hash, _)| (manifest, *hash)).collect();
        let mut checked: BTreeMap<&BackupId, Option<String>> = BTreeMap::new();
        let mut failures = Vec::new();
        for id in ids {
            if !backups.get(id).is_some_and(|(_, _, there)| there.contains(&places[0])) {
                failures.push(format!("{id} is gone from {:?}", places[0]));
                continue;
            }
            let chain = match plan_restore(&known, id) {
                Ok(chain) => chain,
                Err(gap) => {
                    if !self.is_forgiven(places) {
                        failures.push(format!("{:?}: {gap}", places[0]));
                    }
                    continue;
                }
            };
            for manifest in chain {
                if !checked.contains_key(&manifest.id) {
                    let mut flaw = None;
                    for place in &backups[&manifest.id].2 {
                        flaw = self.chunk_failure(*place, manifest).await;
                        if flaw.is_none() {
                            break;
                        }
                    }
                    checked.insert(&manifest.id, flaw);
                }
                failures.extend(checked[&manifest.id].iter().map(|flaw| format!("{id} needs {flaw}")));
            }
        }
        failures
    }

    /// A host does not see the intermediate directory of the other one, so it may delete from the remote what a backup
    /// there builds on.
    fn is_forgiven(&self, places: &[Place]) -> bool {
        let Place::Intermediate(host) = places[0] else { return false };
        let facts = self.observer.facts();
        facts.deleted_by_host.iter().any(|((place, _), by)| *place == Place::Remote && *by != host)
    }

    async fn chunk_failure(&self, place: Place, manifest: &Manifest) -> Option<String> {
        let store = self.inner(place);
        let chunks = match read_chunks(store, manifest).await {
            Ok(chunks) => chunks,
            Err(error) => return Some(error_chain(&error)),
        };
        chunks.iter().find_map(|chunk| {
            let key = crate::world::key_of(manifest, &chunk.name);
            let whole = store.object(&key).is_some_and(|bytes| Digest::of(&bytes) == chunk.blake3);
            (!whole).then(|| format!("{key}, which {place:?} has no more as it was"))
        })
    }

    /// Receives a backup and holds its files against those of its snapshot.
    pub(crate) async fn restore_failure(&self, id: &BackupId) -> Option<String> {
        let stores: Vec<Arc<dyn ObjectStore>> = vec![Arc::new(self.remote.clone())];
        let (zfs, target) = (FakeZfs::new(), name("tank/back"));
        zfs.create(&name("tank"), DatasetType::Filesystem);
        let received = async {
            let point = RestorePoint::Id(id.clone());
            let set = find_restore_set(&stores, &self.dataset, &self.keys, &point).await?;
            let options = ReceiveOptions::default();
            restore_to_dataset(&set, &self.keys, Arc::new(zfs.clone()), &target, &options, never()).await
        };
        match received.await {
            Err(error) => Some(format!("{id} does not restore: {}", error_chain(&error))),
            Ok(_) if zfs.files(&target) == self.contents[&id.snapshot_guid()] => None,
            Ok(_) => Some(format!("{id} restores other files")),
        }
    }

    /// What a host keeps in its pool for attempts that neither its journals nor the stores know.
    pub(crate) fn leaked_pins(&self, host: usize) -> Vec<String> {
        let Host { zfs, state, .. } = &self.hosts[host];
        let mut known = BTreeSet::new();
        for place in [Place::Remote, Place::Intermediate(host)] {
            known.extend(unended(state.path(), &place.known(), &self.dataset).unwrap());
        }
        let facts = self.observer.facts();
        let is_known = |id: &BackupId| known.contains(id) || facts.committed.iter().any(|(_, other)| other == id);
        let pinned = pinned(zfs, &self.dataset).unwrap();
        pinned.iter().filter(|id| !is_known(id)).map(|id| format!("host {host} keeps {id} for nobody")).collect()
    }

    /// Snapshots that went although they were younger than so many days.
    pub(crate) fn destroyed_young(&self, host: usize, before: &BTreeSet<Guid>, days: u32) -> Vec<String> {
        let Host { zfs, taken, .. } = &self.hosts[host];
        let left: BTreeSet<Guid> =
            zfs.snapshots(&self.dataset).unwrap().into_iter().map(|snapshot| snapshot.guid).collect();
        let is_young = |guid: &&Guid| true_seconds() - taken[guid] < i64::from(days) * DAY_SECONDS;
        let gone = before.difference(&left).filter(is_young);
        gone.map(|guid| format!("host {host} destroyed the young snapshot {guid}")).collect()
    }
}
