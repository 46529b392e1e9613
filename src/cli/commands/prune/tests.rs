//! Tests of the commands that delete, as a person and as monitoring see them: exit status, text,
//! and the later report of `health`.

use super::*;
use crate::cli::args::{Forget, Global};
use crate::cli::commands::prune_snapshots::prune_snapshots_of;
use crate::cli::context::Leftovers;
use crate::cli::open::history::{DEFAULT_LIMITS, facts_of};
use crate::cli::open::identity::{identified, known_stores};
use crate::cli::open::remote::open_dir;
use crate::cli::open::settings::backup_settings;
use crate::cli::screen::output::{Output, Said};
use crate::config::{Config, Environment};
use crate::keyring::KeyFile;
use crate::model::{BackupId, BackupKind, DatasetName, Guid};
use crate::plan::clock::{ClockReading, ClockTrust};
use crate::plan::health::judge_health;
use crate::plan::send::RequestedKind;
use crate::run::backup::{BackupEnv, back_up};
use crate::run::identity::Purpose;
use crate::run::keys::WriterKeys;
use crate::run::pool::snapshot::take_snapshots;
use crate::run::transfer::TransferPool;
use crate::state::history::HistoryRecords;
use crate::store::StoreRead;
use crate::zfs::fake::FakeZfs;
use crate::zfs::{DatasetType, Zfs, ZfsRead};
use jiff::Timestamp;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const DAY: i64 = 86_400;

/// A host with one dataset, whose remote is a folder.
struct Host {
    folder: TempDir,
    zfs: FakeZfs,
    keys: WriterKeys,
    dataset: DatasetName,
}

/// The result of a command.
struct Ended {
    status: u8,
    said: Option<Said>,
}

fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn days_ago(days: i64) -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second() - days * DAY).unwrap()
}

impl Host {
    fn new() -> Self {
        let (folder, zfs, dataset) = (
            TempDir::new().unwrap(),
            FakeZfs::new(),
            "tank/data".parse().unwrap(),
        );
        zfs.create(&dataset, DatasetType::Filesystem);
        let file = KeyFile::generate().unwrap();
        let signing = file.signing_key().unwrap().clone();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("remote")).unwrap();
        let secret = format!(
            "untrusted comment: test\n{}\n",
            signing.to_secret_text().unwrap()
        );
        write_secret(&path("signing.key"), &secret);
        let text = format!(
            "[main]\nzfs_fs = \"{dataset}\"\nencryption_recipients = [\"{}\"]\nsigning_key_file = \"{}\"\n\
             verify_keys = [\"{}\"]\nremote = \"file:{}\"\nstate_dir = \"{}\"\noldest_snapshot_days = 30\n\
             [lifecycle-remote]\nkeep-last-chains = 1\n",
            file.recipient().unwrap(),
            path("signing.key").display(),
            signing.verifying_key(),
            path("remote").display(),
            path("state").display(),
        );
        write_secret(&path("zb.toml"), &text);
        let (recipients, trusted) = (vec![file.recipient().unwrap()], file.trusted.clone());
        Self {
            folder,
            zfs,
            keys: WriterKeys {
                recipients,
                signing,
                trusted,
                keyring: None,
            },
            dataset,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self) -> Config {
        Config::load(&self.path("zb.toml"), &Environment::current()).unwrap()
    }

    fn context(&self) -> Context {
        let global = Global {
            config: Some(self.path("zb.toml")),
            quiet: true,
            ..Global::default()
        };
        let output = Arc::new(Output::new(&global));
        Context::new(
            global,
            output,
            tokio::sync::watch::channel(false).1,
            Arc::<Leftovers>::default(),
        )
    }

    async fn remote(&self) -> Arc<dyn ObjectStore> {
        let folder = open_dir(&self.path("remote"), 1 << 16).unwrap();
        identified(&self.config(), StoreRole::Remote, folder, Purpose::Write)
            .await
            .unwrap()
    }

    async fn back_up_full(&self, days: i64) {
        let at = days_ago(days);
        self.zfs.set_now(at);
        self.zfs
            .write_file(&self.dataset, 5, &at.as_second().to_le_bytes());
        take_snapshots(
            &*self.zfs(),
            std::slice::from_ref(&self.dataset),
            "zfs-backup_",
            at,
        )
        .unwrap();
        let env = BackupEnv {
            zfs: self.zfs(),
            store: self.remote().await,
            pool: TransferPool::default(),
            role: StoreRole::Remote,
            other: None,
            listed: None,
            keys: self.keys.clone(),
            settings: backup_settings(&self.config()),
            now: Timestamp::now,
            planned: Arc::new(|_| {}),
            progress: Arc::new(|_| {}),
            stop: tokio::sync::watch::channel(false).1,
        };
        let dataset = self.zfs.dataset(&self.dataset).unwrap().unwrap();
        let selected = Selected {
            dataset,
            stored: self.dataset.clone(),
        };
        back_up(&env, &selected, RequestedKind::Full).await.unwrap();
    }

    fn zfs(&self) -> Arc<dyn Zfs> {
        Arc::new(self.zfs.clone())
    }

    /// Records that an earlier run of this boot read a clock that was 14 years behind: somebody has
    /// set it since.
    fn set_clock_ahead(&self) {
        let check = ClockCheck::read(&self.path("state"), false).unwrap();
        let reading = ClockReading {
            // A day more, so that a second that passes meanwhile does not make it 13 years.
            wall: days_ago(14 * 365 + 1),
            is_synchronised: true,
            ..check.reading.clone()
        };
        ClockCheck { reading, ..check }
            .keep_note(&self.path("state"), &Ok(ClockTrust::Confirmed))
            .unwrap();
    }

    async fn prune_snapshots(&self, clock_is_right: bool) -> Ended {
        let context = self.context();
        let done = prune_snapshots_of(
            &context,
            self.zfs(),
            &PruneByAge {
                yes: true,
                clock_is_right,
            },
        )
        .await;
        ended(&context, done)
    }

    async fn prune_remote(&self, clock_is_right: bool) -> Ended {
        let (context, config) = (self.context(), self.config());
        let prune = PruneByAge {
            yes: true,
            clock_is_right,
        };
        let call = PruneCall {
            step: "prune-remote",
            rules: &config.lifecycle_remote,
            prune: &prune,
        };
        let done = prune_store(
            &context,
            &*self.zfs(),
            self.remote().await,
            SecondaryStore::Nothing,
            &call,
        )
        .await;
        ended(&context, done)
    }

    fn backups(&self) -> usize {
        let folders = std::fs::read_dir(self.path("remote/tank/data")).unwrap();
        folders
            .filter(|folder| {
                folder
                    .as_ref()
                    .unwrap()
                    .path()
                    .join("manifest.json")
                    .exists()
            })
            .count()
    }

    fn catalog_ids(&self) -> Vec<BackupId> {
        let folders = std::fs::read_dir(self.path("remote/tank/data")).unwrap();
        let names = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap());
        names
            .filter_map(|name| name.strip_prefix('@')?.parse().ok())
            .collect()
    }

    /// Returns the failures that `health` reports.
    fn failures(&self) -> Vec<String> {
        let config = self.config();
        let record = HistoryRecords::new(
            &config.state_dir,
            &known_stores(&config).unwrap()[0],
            &self.dataset,
        )
        .read()
        .unwrap();
        let health = judge_health(
            &facts_of(&record, record.newest_at()),
            &DEFAULT_LIMITS,
            Timestamp::now(),
        );
        health
            .reasons
            .into_iter()
            .filter(|reason| reason.contains("failed"))
            .collect()
    }
}

fn ended(context: &Context, done: Result<(), Failure>) -> Ended {
    let status = done.map_or_else(|failure| failure.status(), |()| 0);
    Ended {
        status,
        said: context.output.first_error(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doubtful_clock_keeps_snapshots_until_a_person_confirms_it() {
    let host = Host::new();
    host.back_up_full(60).await;
    host.set_clock_ahead();
    let Ended { status, said } = host.prune_snapshots(false).await;
    let said = said.unwrap();
    assert_eq!(status, 3, "{said:?}");
    assert!(
        said.text
            .starts_with("tank/data: no snapshot is destroyed: this host's clock, "),
        "{said:?}"
    );
    assert!(
        said.text.contains(", is 14y ")
            && said
                .text
                .contains(" ahead of what it was in an earlier run"),
        "{said:?}"
    );
    assert!(
        said.hint
            .unwrap()
            .contains("zfs-backup prune-snapshots -y --clock-is-right")
    );
    assert_eq!(host.zfs.snapshots(&host.dataset).unwrap().len(), 1);
    let failures = host.failures();
    assert!(
        failures[0].starts_with("prune-snapshots failed ")
            && failures[0].contains(" ago: no snapshot is destroyed: this host's"),
        "{failures:?}"
    );

    let Ended { status, said } = host.prune_snapshots(true).await;
    assert_eq!(status, 0, "{said:?}");
    assert_eq!(host.zfs.snapshots(&host.dataset).unwrap().len(), 0);
    assert_eq!(host.failures(), [""; 0]);
    // The confirmation is recorded: the next run needs none.
    let check = ClockCheck::read(&host.path("state"), false).unwrap();
    assert_eq!(check.judge(&[], [days_ago(60)]), Ok(ClockTrust::Confirmed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_object_or_doubtful_clock_keeps_backups_and_fails_health() {
    let host = Host::new();
    host.back_up_full(60).await;
    host.back_up_full(50).await;
    let id = BackupId::new(days_ago(1), BackupKind::Incr, Guid(0xdead), 1);
    let planted = host.path("remote/tank/data").join(format!("@{id}"));
    std::fs::create_dir(&planted).unwrap();
    std::fs::write(planted.join("00000000-00000000.zfs.age"), "x").unwrap();
    let Ended { status, said } = host.prune_remote(true).await;
    let said = said.unwrap();
    assert_eq!(status, 3, "{said:?}");
    assert!(
        said.text.contains(&format!(
            "nothing is deleted: the base of the unfinished upload {id} is unknown"
        )),
        "{said:?}"
    );
    assert!(
        said.hint
            .unwrap()
            .contains(&format!("zfs-backup forget {id}"))
    );
    assert!(
        host.failures()[0].starts_with("prune-remote failed ")
            && host.failures()[0].contains(" ago: nothing is deleted: "),
        "{:?}",
        host.failures()
    );
    assert_eq!(host.backups(), 2);
    // The same object does not matter for the snapshots of this pool.
    assert_eq!(host.prune_snapshots(true).await.status, 0);
    assert_eq!(host.zfs.snapshots(&host.dataset).unwrap().len(), 0);

    std::fs::remove_dir_all(&planted).unwrap();
    host.set_clock_ahead();
    let Ended { status, said } = host.prune_remote(false).await;
    let said = said.unwrap();
    assert_eq!(status, 3, "{said:?}");
    assert!(
        said.text
            .starts_with("tank/data: nothing is deleted: this host's clock, "),
        "{said:?}"
    );
    assert!(
        said.hint
            .unwrap()
            .contains("zfs-backup prune-remote -y --clock-is-right")
    );
    assert_eq!((host.backups(), host.failures().len()), (2, 1));
    let Ended { status, said } = host.prune_remote(true).await;
    assert_eq!((status, host.backups()), (0, 1), "{said:?}");
    assert_eq!(host.failures(), [""; 0]);
}

/// Exports that wait on the disk may build on backups in the remote. The empty mount point must not
/// look like a disk without exports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intermediate_directory_that_is_not_mounted_stops_prune_remote_and_forget() {
    let host = Host::new();
    host.back_up_full(60).await;
    let disk = host.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let text = std::fs::read_to_string(host.path("zb.toml")).unwrap();
    let key = format!(
        "intermediate_basedir = \"{}\"\noldest_snapshot_days",
        disk.display()
    );
    write_secret(
        &host.path("zb.toml"),
        &text.replace("oldest_snapshot_days", &key),
    );
    let context = host.context();
    let setup = context.setup().unwrap();
    setup
        .open(StoreRole::Intermediate, Access::Write)
        .await
        .unwrap();
    let other = setup
        .open(StoreRole::Intermediate, Access::Read)
        .await
        .unwrap();
    let check = async |other: &dyn StoreRead, access| {
        check_other_store(&host.config(), StoreRole::Intermediate, other, access).await
    };
    check(&*other, Access::Delete).await.unwrap();
    std::fs::rename(&disk, host.path("unplugged")).unwrap();
    std::fs::create_dir(&disk).unwrap();
    let other = setup
        .open(StoreRole::Intermediate, Access::Read)
        .await
        .unwrap();
    check(&*other, Access::PlanDelete).await.unwrap();
    let refused = check(&*other, Access::Delete).await.unwrap_err();
    assert!(
        refused
            .hint()
            .unwrap()
            .contains("zfs-backup accept-store --intermediate"),
        "{refused}"
    );
    let context = host.context();
    let prune = PruneByAge {
        yes: true,
        clock_is_right: true,
    };
    let refused = prune_remote(&context, &prune).await.unwrap_err().reason();
    assert!(
        refused.contains("is not the store that it was"),
        "{refused}"
    );
    let newest = host.catalog_ids().pop().unwrap();
    let forget = Forget {
        id: newest,
        dataset: Some(host.dataset.clone()),
        intermediate: false,
        yes: true,
    };
    let refused = crate::cli::commands::forget::forget(&context, &forget)
        .await
        .unwrap_err()
        .reason();
    assert!(
        refused.contains("is not the store that it was"),
        "{refused}"
    );
    assert_eq!(host.backups(), 1);
}
