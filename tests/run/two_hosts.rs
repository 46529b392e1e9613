//! [`TwoHosts`]: two hosts with real backups of small datasets, each with an intermediate
//! directory, and one remote.

use crate::builder::{RESUME_DAYS, hours};
use crate::observer::{
    CLOCKS, DAY_SECONDS, FIRST_SECOND, Observer, Place, Relation, Stored, clock_of, host_time,
    true_seconds,
};
use crate::scheduler::{GatedStore, Scheduler};
use crate::world::{
    LIFECYCLE, PART_BYTES, SNAPSHOT_PREFIX, memory_store, name, never, noise, plant_keyring,
};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::catalog::{read_catalog, read_chunks};
use zfs_backup::config::{RawMode, SnapshotSource};
use zfs_backup::keyring::KeyFile;
use zfs_backup::manifest::{Manifest, Origin};
use zfs_backup::model::{BackupId, DatasetName, Digest, Guid};
use zfs_backup::plan::clock::ClockReading;
use zfs_backup::plan::restore::plan_restore;
use zfs_backup::plan::send::LifecycleRules;
use zfs_backup::run::backup::{BackupEnv, BackupSettings, OtherStore, StoreRole};
use zfs_backup::run::clock::ClockCheck;
use zfs_backup::run::copy::{CopyPool, UploadEnv};
use zfs_backup::run::error_chain;
use zfs_backup::run::keys::WriterKeys;
use zfs_backup::run::pool::pins::{pinned, unpin};
use zfs_backup::run::pool::prune_snapshots::{SnapshotStore, SnapshotsEnv};
use zfs_backup::run::pool::select::Selected;
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::run::pool::view::pool_view;
use zfs_backup::run::prune::PruneEnv;
use zfs_backup::run::restore::{
    ReceiveOptions, RestorePoint, find_restore_set, restore_to_dataset,
};
use zfs_backup::run::transfer::TransferPool;
use zfs_backup::state::journal::unended;
use zfs_backup::store::memory::MemoryStore;
use zfs_backup::store::{ObjectStore, StoreRead, StoreTraits};
use zfs_backup::stream::seal::ChunkCompression;
use zfs_backup::zfs::fake::FakeZfs;
use zfs_backup::zfs::{DatasetType, ZfsRead};

/// A night's incremental has two chunks of this length.
const SPLIT_BYTES: u64 = 4096;
/// For how long a prune record counts, by the store's clock or the dates of its hosts.
const RECORD_HOURS_MAX: i64 = 48;

/// The remote's kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemoteKind {
    pub(crate) create_only: bool,
    /// Objects are dated by the clock of the host that puts them, as in a folder.
    pub(crate) host_clock: bool,
}

/// A host of the two.
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

/// State folders are written and flushed all the time: in memory where the system has a folder for
/// that.
pub(crate) fn state_folder() -> TempDir {
    TempDir::new_in("/dev/shm")
        .or_else(|_| TempDir::new())
        .unwrap()
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
    /// Makes a single host with a dataset, and its empty stores.
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
        self.hosts.push(Host {
            zfs,
            intermediate,
            state: state_folder(),
            taken: BTreeMap::new(),
        });
    }

    /// The second host comes.
    pub(crate) fn add_second(&mut self, relation: Relation) {
        self.observer.facts().relation = Some(relation);
        match relation {
            Relation::Adopted => {
                let zfs = FakeZfs::new();
                // Another dataset guid, and a counter of transaction groups that is elsewhere.
                (0..5).for_each(|number| {
                    zfs.create(
                        &name(&format!("tank/other-{number}")),
                        DatasetType::Filesystem,
                    )
                });
                let zfs = zfs.copy_pools();
                self.add_host(zfs);
            }
            Relation::Cloned => {
                let first = &self.hosts[0];
                let state = state_folder();
                copy_folder(first.state.path(), state.path());
                let intermediate = copy_store(&first.intermediate);
                let (zfs, taken) = (first.zfs.copy_pools(), first.taken.clone());
                let mut facts = self.observer.facts();
                facts.made_by.values_mut().for_each(|maker| *maker = None);
                facts.shared = taken.keys().copied().collect();
                let copied = |(place, id): &Stored| {
                    (*place == Place::Intermediate(0)).then(|| (Place::Intermediate(1), id.clone()))
                };
                let (alive, committed) = (facts.alive.clone(), facts.committed.clone());
                facts.alive.extend(alive.iter().filter_map(copied));
                facts.committed.extend(committed.iter().filter_map(copied));
                drop(facts);
                self.hosts.push(Host {
                    zfs,
                    intermediate,
                    state,
                    taken,
                });
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
        let are_days_apart = (ahead[0] - ahead[1]).abs() > hours(RECORD_HOURS_MAX - 1);
        self.observer.facts().are_clocks_days_apart |= are_days_apart;
        CLOCKS.set((now, ahead));
    }

    /// A second passes, and that host acts.
    pub(crate) fn tick(&self, host: usize) {
        let (now, ahead) = CLOCKS.get();
        CLOCKS.set((now + 1, ahead));
        self.set_clocks(host);
    }

    fn set_clocks(&self, actor: usize) {
        if self.kind.host_clock {
            self.remote.set_host_clock(host_time(actor));
        } else {
            self.remote
                .set_clock(Some(Timestamp::from_second(true_seconds()).unwrap()));
        }
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
        let taken = take_snapshots(
            zfs,
            std::slice::from_ref(&self.dataset),
            SNAPSHOT_PREFIX,
            host_time(host),
        )
        .unwrap();
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
            part_bytes: PART_BYTES,
            concurrency: 3,
            conditional_put: create_only,
            holds_parts: false,
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
            compression: ChunkCompression::None,
            raw: RawMode::Auto,
            compressed: true,
            embedded: false,
            source: SnapshotSource::Own,
            snapshot_prefix: SNAPSHOT_PREFIX.to_owned(),
            // The sizes of so small backups say nothing.
            lifecycle: LifecycleRules {
                incrementals_percent_max: 1_000_000,
                ..LIFECYCLE
            },
            state_dir: self.hosts[host].state.path().to_owned(),
            host: format!("host-{host}"),
            restart: false,
            window: None,
            until: None,
            skip_unchanged: false,
        }
    }

    pub(crate) fn selected(&self, host: usize) -> Selected {
        let dataset = self.hosts[host]
            .zfs
            .dataset(&self.dataset)
            .unwrap()
            .unwrap();
        Selected {
            dataset,
            stored: self.dataset.clone(),
        }
    }

    pub(crate) fn backup_env(&self, host: usize, actor: usize, role: StoreRole) -> BackupEnv {
        let (target, other) = match role {
            StoreRole::Remote => (
                Place::Remote,
                (StoreRole::Intermediate, Place::Intermediate(host)),
            ),
            StoreRole::Intermediate => (
                Place::Intermediate(host),
                (StoreRole::Remote, Place::Remote),
            ),
        };
        let other = OtherStore {
            role: other.0,
            known: other.1.known(),
            store: Ok(self.store(other.1, actor)),
        };
        BackupEnv {
            zfs: Arc::new(self.hosts[host].zfs.clone()),
            store: self.store(target, actor),
            role,
            other: Some(other),
            listed: None,
            pool: TransferPool::default(),
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
            pool: CopyPool::default(),
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
        let store = self.store(place, actor);
        let (state_dir, zfs) = (
            self.hosts[host].state.path().to_owned(),
            &self.hosts[host].zfs,
        );
        let sight = pool_view(
            zfs,
            &self.dataset,
            (&state_dir, &store.known(), &self.dataset),
            &self.origin(host),
        );
        PruneEnv {
            store,
            signing: self.writer.signing.clone(),
            trusted: self.keys.trusted.clone(),
            state_dir,
            resume_days: RESUME_DAYS,
            pools: [(self.dataset.clone(), sight.unwrap())].into(),
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
        ClockCheck {
            reading,
            run_seconds: 0,
            ..read
        }
    }

    pub(crate) fn snapshots_env(
        &self,
        host: usize,
        actor: usize,
        oldest_days: u32,
    ) -> SnapshotsEnv {
        let store = |place, beside_remote| SnapshotStore {
            store: self.store(place, actor),
            beside_remote,
        };
        SnapshotsEnv {
            zfs: Arc::new(self.hosts[host].zfs.clone()),
            stores: vec![
                store(Place::Remote, false),
                store(Place::Intermediate(host), true),
            ],
            trusted: self.keys.trusted.clone(),
            state_dir: self.hosts[host].state.path().to_owned(),
            oldest_days,
            levels: None,
            prefix: SNAPSHOT_PREFIX.to_owned(),
            now: host_time(host),
            clock: self.clock(host),
        }
    }

    /// The origins that a host prunes: both where each adopted the other.
    pub(crate) fn origins(&self) -> Vec<Origin> {
        let mut origins: Vec<Origin> = Vec::new();
        for origin in (0..self.hosts.len()).map(|host| self.origin(host)) {
            if !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        origins
    }

    fn origin(&self, host: usize) -> Origin {
        let zfs = &self.hosts[host].zfs;
        let dataset_guid = zfs.dataset(&self.dataset).unwrap().unwrap().guid;
        Origin {
            dataset_guid,
            pool_guid: zfs.pool_guid(self.dataset.pool()).unwrap(),
        }
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

    /// Returns the ids that a person may name there: backups, and attempts that no process works
    /// on. (The documentation warns against naming another host's running upload.)
    pub(crate) fn forgettable(&self, place: Place) -> Vec<BackupId> {
        let facts = self.observer.facts();
        let ids = crate::builder::ids_in(self.inner(place)).into_iter();
        ids.filter(|id| facts.alive.contains(&(place, id.clone())))
            .collect()
    }

    pub(crate) fn snapshots(&self, host: usize) -> BTreeSet<Guid> {
        let snapshots = self.hosts[host].zfs.snapshots(&self.dataset).unwrap();
        snapshots
            .into_iter()
            .map(|snapshot| snapshot.guid)
            .collect()
    }

    /// Returns the faults of the backups that must be whole: chain, chunk lists, and every byte of
    /// every chunk. Backups in an intermediate directory may build on backups in the remote.
    pub(crate) async fn not_whole(&self) -> Vec<String> {
        let alive = self.observer.facts().alive.clone();
        let mut failures = Vec::new();
        let places =
            std::iter::once(Place::Remote).chain((0..self.hosts.len()).map(Place::Intermediate));
        for place in places {
            let here = alive.iter().filter(|(of, id)| {
                *of == place && !(place != Place::Remote && self.was_remote(id))
            });
            let stores = match place {
                Place::Remote => vec![place],
                Place::Intermediate(_) => vec![place, Place::Remote],
            };
            let mut found = self.not_whole_in(&stores, here.map(|(_, id)| id)).await;
            failures.append(&mut found);
        }
        failures
    }

    /// Whether the remote has or had the backup, or another one of the same snapshot and kind. Then
    /// each store follows its own rules, and a backup in the intermediate directory may lack a
    /// chain there.
    fn was_remote(&self, id: &BackupId) -> bool {
        let is_alike = |other: &BackupId| {
            other.snapshot_guid() == id.snapshot_guid() && other.kind() == id.kind()
        };
        self.observer
            .facts()
            .committed
            .iter()
            .any(|(place, other)| *place == Place::Remote && is_alike(other))
    }

    async fn not_whole_in(
        &self,
        places: &[Place],
        ids: impl Iterator<Item = &BackupId>,
    ) -> Vec<String> {
        let mut backups: BTreeMap<BackupId, (Manifest, Digest, Vec<Place>)> = BTreeMap::new();
        for place in places {
            let catalog = read_catalog(self.inner(*place), &self.dataset, &self.keys.trusted)
                .await
                .unwrap();
            for backup in catalog.backups {
                let id = backup.manifest.id.clone();
                let found = backups.entry(id).or_insert((
                    backup.manifest,
                    backup.manifest_blake3,
                    Vec::new(),
                ));
                found.2.push(*place);
            }
        }
        let known: Vec<(&Manifest, Digest)> = backups
            .values()
            .map(|(manifest, hash, _)| (manifest, *hash))
            .collect();
        let mut checked: BTreeMap<&BackupId, Option<String>> = BTreeMap::new();
        let mut failures = Vec::new();
        for id in ids {
            if !backups
                .get(id)
                .is_some_and(|(_, _, there)| there.contains(&places[0]))
            {
                failures.push(format!("{id} is gone from {:?}", places[0]));
                continue;
            }
            let chain = match plan_restore(&known, id) {
                Ok(chain) => chain,
                Err(gap) => {
                    if self.is_misdated(places[0], id) {
                        let mut facts = self.observer.facts();
                        facts.alive.remove(&(places[0], id.clone()));
                    } else if !self.is_forgiven(places) {
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
                failures.extend(
                    checked[&manifest.id]
                        .iter()
                        .map(|flaw| format!("{id} needs {flaw}")),
                );
            }
        }
        failures
    }

    /// A host does not see the intermediate directory of the other one, so it may delete from the
    /// remote what a backup there builds on.
    fn is_forgiven(&self, places: &[Place]) -> bool {
        let Place::Intermediate(host) = places[0] else {
            return false;
        };
        let facts = self.observer.facts();
        facts
            .deleted_by_host
            .iter()
            .any(|((place, _), by)| *place == Place::Remote && *by != host)
    }

    /// A store without a clock has prune records with the dates of its hosts' clocks. If these
    /// differ by the two days for which a record counts, an upload takes the record of a running
    /// prune on the other host for an old one.
    fn is_misdated(&self, place: Place, id: &BackupId) -> bool {
        let facts = self.observer.facts();
        let maker = facts.made_by.get(id).copied().flatten();
        let is_by_other = |((of, _), by): (&Stored, &usize)| *of == place && Some(*by) != maker;
        place == Place::Remote
            && self.kind.host_clock
            && facts.are_clocks_days_apart
            && facts.deleted_by_host.iter().any(is_by_other)
    }

    async fn chunk_failure(&self, place: Place, manifest: &Manifest) -> Option<String> {
        let store = self.inner(place);
        let chunks = match read_chunks(store, manifest).await {
            Ok(chunks) => chunks,
            Err(error) => return Some(error_chain(&error)),
        };
        chunks.iter().find_map(|chunk| {
            let key = crate::world::key_of(manifest, &chunk.name);
            let whole = store
                .object(&key)
                .is_some_and(|bytes| Digest::of(&bytes) == chunk.blake3);
            (!whole).then(|| format!("{key}, which {place:?} has no more as it was"))
        })
    }

    /// Receives a backup and holds its files against those of its snapshot.
    pub(crate) async fn restore_failure(&self, id: &BackupId) -> Option<String> {
        let stores: Vec<Arc<dyn StoreRead>> = vec![Arc::new(self.remote.clone())];
        let (zfs, target) = (FakeZfs::new(), name("tank/back"));
        zfs.create(&name("tank"), DatasetType::Filesystem);
        let received = async {
            let point = RestorePoint::Id(id.clone());
            let set = find_restore_set(&stores, &self.dataset, &self.keys, &point).await?;
            let options = ReceiveOptions::default();
            restore_to_dataset(
                &set,
                &self.keys,
                Arc::new(zfs.clone()),
                &target,
                &options,
                never(),
            )
            .await
        };
        match received.await {
            Err(error) => Some(format!("{id} does not restore: {}", error_chain(&error))),
            Ok(_) if zfs.files(&target) == self.contents[&id.snapshot_guid()] => None,
            Ok(_) => Some(format!("{id} restores other files")),
        }
    }

    /// Returns the pins in a host's pool for attempts that neither its journals nor the stores
    /// know.
    pub(crate) fn leaked_pins(&self, host: usize) -> Vec<String> {
        let Host { zfs, state, .. } = &self.hosts[host];
        let mut known = BTreeSet::new();
        for place in [Place::Remote, Place::Intermediate(host)] {
            known.extend(unended(state.path(), &place.known(), &self.dataset).unwrap());
        }
        let facts = self.observer.facts();
        let is_known = |id: &BackupId| {
            known.contains(id) || facts.committed.iter().any(|(_, other)| other == id)
        };
        let pinned = pinned(zfs, &self.dataset).unwrap();
        pinned
            .iter()
            .filter(|id| !is_known(id))
            .map(|id| format!("host {host} keeps {id} for nobody"))
            .collect()
    }

    /// Snapshots that went although they were younger than so many days.
    pub(crate) fn destroyed_young(
        &self,
        host: usize,
        before: &BTreeSet<Guid>,
        days: u32,
    ) -> Vec<String> {
        let Host { zfs, taken, .. } = &self.hosts[host];
        let left: BTreeSet<Guid> = zfs
            .snapshots(&self.dataset)
            .unwrap()
            .into_iter()
            .map(|snapshot| snapshot.guid)
            .collect();
        let is_young = |guid: &&Guid| true_seconds() - taken[guid] < i64::from(days) * DAY_SECONDS;
        let gone = before.difference(&left).filter(is_young);
        gone.map(|guid| format!("host {host} destroyed the young snapshot {guid}"))
            .collect()
    }
}
