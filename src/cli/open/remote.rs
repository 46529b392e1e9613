//! Opens ZFS and the configured stores.

use crate::cli::context::Setup;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::access::Access;
use crate::cli::open::identity::identified;
use crate::cli::open::{b2, rclone, s3};
use crate::config::Remote;
use crate::run::RunError;
use crate::run::backup::StoreRole;
use crate::store::{DirSettings, DirStore, ObjectStore, Patience, PatientStore, StoreErrorKind};
use crate::zfs::{ALLOW_VARIABLE, RealZfs, Zfs};
use std::path::Path;
use std::sync::Arc;

/// The ZFS that a benchmark uses instead of the kernel's.
#[cfg(any(test, feature = "testing"))]
static REPLACED_ZFS: std::sync::Mutex<Option<Arc<dyn Zfs>>> = std::sync::Mutex::new(None);

/// Makes every later [`open_zfs`] return this ZFS.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn replace_zfs(zfs: Arc<dyn Zfs>) {
    let mut replaced = REPLACED_ZFS
        .lock()
        .unwrap_or_else(|locked| locked.into_inner());
    *replaced = Some(zfs);
}

/// Opens the kernel's ZFS.
pub(crate) fn open_zfs() -> Result<Arc<dyn Zfs>, Failure> {
    #[cfg(any(test, feature = "testing"))]
    if let Some(zfs) = &*REPLACED_ZFS
        .lock()
        .unwrap_or_else(|locked| locked.into_inner())
    {
        return Ok(Arc::clone(zfs));
    }
    let allowed = std::env::var(ALLOW_VARIABLE).ok();
    Ok(Arc::new(RealZfs::open(allowed.as_deref())?))
}

/// The state of a store that the configuration may name.
pub(crate) enum StoreState {
    /// The configuration does not name the store.
    None,
    /// The store can be reached.
    Open(Arc<dyn ObjectStore>),
    /// The network, the server, the folder or the mount is missing.
    Unreachable(Failure),
}

/// The reaction of opening to a store that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenAway {
    /// Waits as configured.
    Wait,
    /// Fails.
    Fail,
}

/// The remote as `doctor` sees it.
pub(crate) struct UnprobedRemote {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The endpoint of the remote, for people; `None` for a folder.
    pub(crate) endpoint: Option<String>,
}

impl Setup {
    /// Opens a configured store and checks its identity.
    pub(crate) async fn open(
        &self,
        role: StoreRole,
        access: Access,
    ) -> Result<Arc<dyn ObjectStore>, Failure> {
        self.open_if(role, access, WhenAway::Wait).await
    }

    /// Opens a store that the command can do without: does not wait for it.
    pub(crate) async fn open_dispensable(
        &self,
        role: StoreRole,
        access: Access,
    ) -> Result<Arc<dyn ObjectStore>, Failure> {
        self.open_if(role, access, WhenAway::Fail).await
    }

    async fn open_if(
        &self,
        role: StoreRole,
        access: Access,
        when_away: WhenAway,
    ) -> Result<Arc<dyn ObjectStore>, Failure> {
        let store = self.open_place(role, access, when_away).await?;
        identified(&self.config, role, store, access.purpose()).await
    }

    /// Opens every store that the configuration names: the remote, then the intermediate directory.
    pub(crate) async fn open_all(
        &self,
        access: Access,
    ) -> Result<Vec<Arc<dyn ObjectStore>>, Failure> {
        let mut stores = Vec::new();
        for role in self.roles() {
            stores.push(self.open(role, access).await?);
        }
        Ok(stores)
    }

    /// Returns the stores that the configuration names: the remote, then the intermediate directory.
    pub(crate) fn roles(&self) -> Vec<StoreRole> {
        let remote = self.config.remote.as_ref().map(|_| StoreRole::Remote);
        let intermediate = self.config.intermediate.as_ref();
        remote
            .into_iter()
            .chain(intermediate.map(|_| StoreRole::Intermediate))
            .collect()
    }

    /// Returns the store that a command works on: the intermediate directory if it is asked for or
    /// no remote is configured, else the remote.
    pub(crate) fn role(&self, intermediate: bool) -> StoreRole {
        if intermediate || self.config.remote.is_none() {
            StoreRole::Intermediate
        } else {
            StoreRole::Remote
        }
    }

    /// Opens a store without which the caller can work. An unreachable store is a result: the
    /// caller reads the other store, or keeps everything. Wrong credentials or a wrong name are
    /// errors.
    pub(crate) async fn open_if_reachable(
        &self,
        role: StoreRole,
        access: Access,
    ) -> Result<StoreState, Failure> {
        if !self.roles().contains(&role) {
            return Ok(StoreState::None);
        }
        let is_folder = role == StoreRole::Intermediate
            || matches!(self.config.remote, Some(Remote::File { .. }));
        match self.open_dispensable(role, access).await {
            Ok(store) => Ok(StoreState::Open(store)),
            Err(failure) if is_away(&failure, is_folder) => Ok(StoreState::Unreachable(failure)),
            Err(failure) => Err(failure),
        }
    }

    /// Opens a configured store without a check of its identity. An S3 store without a fresh probe
    /// is probed before the first write.
    pub(crate) async fn open_unidentified(
        &self,
        role: StoreRole,
        access: Access,
    ) -> Result<Arc<dyn ObjectStore>, Failure> {
        self.open_place(role, access, WhenAway::Wait).await
    }

    async fn open_place(
        &self,
        role: StoreRole,
        access: Access,
        when_away: WhenAway,
    ) -> Result<Arc<dyn ObjectStore>, Failure> {
        let part_bytes = self.config.parts().part_size.in_memory();
        if role == StoreRole::Intermediate {
            return match &self.config.intermediate {
                Some(intermediate) => open_dir(&intermediate.basedir, part_bytes),
                None => Err(usage(
                    "the configuration names no intermediate directory",
                    "set main.intermediate_basedir",
                )),
            };
        }
        let opening = match when_away {
            WhenAway::Wait => &*self.patience,
            WhenAway::Fail => &Patience::never(),
        };
        let store = match &self.config.remote {
            None => {
                return Err(usage(
                    "the configuration names no remote",
                    "set main.remote, such as \"s3:bucket/prefix\"",
                ));
            }
            Some(Remote::S3 { bucket, prefix }) => {
                s3::open_configured(self, bucket, prefix, access, opening).await?
            }
            Some(Remote::B2 { bucket, prefix }) => {
                b2::open_configured(self, bucket, prefix, access, opening).await?
            }
            Some(Remote::File { dir }) => return open_dir(dir, part_bytes),
            Some(Remote::Rclone { remote, path }) => {
                rclone::open_configured(self, remote, path, opening).await?
            }
        };
        let patience = Arc::clone(&self.patience);
        Ok(Arc::new(PatientStore::new(store, patience)))
    }

    /// Opens the remote for `doctor`, which probes it itself.
    pub(crate) async fn open_unprobed_remote(&self) -> Result<UnprobedRemote, Failure> {
        let endpoint = match &self.config.remote {
            Some(Remote::S3 { bucket, prefix }) => {
                let never = Patience::never();
                let store = s3::connect(self, bucket, prefix, Access::Read, &never).await?;
                return Ok(UnprobedRemote {
                    endpoint: Some(store.endpoint().to_owned()),
                    store: Arc::new(store),
                });
            }
            Some(Remote::B2 { bucket, prefix }) => Some(b2::endpoint(bucket, prefix)),
            _ => None,
        };
        let store = self
            .open_unidentified(StoreRole::Remote, Access::Read)
            .await?;
        Ok(UnprobedRemote { store, endpoint })
    }
}

fn is_away(failure: &Failure, is_folder: bool) -> bool {
    let Failure::Run(RunError::Store(error)) = failure else {
        return false;
    };
    match error.kind {
        StoreErrorKind::Unavailable | StoreErrorKind::Throttled => true,
        // The folder is not mounted.
        StoreErrorKind::NotFound => is_folder,
        _ => false,
    }
}

/// Opens a folder as a store. The folder must exist: a missing mount must not look like an empty
/// store.
pub(crate) fn open_dir(root: &Path, part_bytes: usize) -> Result<Arc<dyn ObjectStore>, Failure> {
    Ok(Arc::new(DirStore::open(&DirSettings {
        root: root.to_owned(),
        part_bytes,
    })?))
}
