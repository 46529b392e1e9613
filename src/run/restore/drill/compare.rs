//! The comparison of restored streams with the streams that the pool sends now.

use super::{Comparison, EMBEDDED_PADDING_FIXED};
use crate::model::{Digest, Guid};
use crate::run::blocking::blocking;
use crate::run::restore::{Received, RestoreBackup, RestoreSet};
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::stream::record::feature;
use crate::zfs::{
    Dataset, SendBase, SendFlags, SendRequest, Zfs, ZfsError, ZfsHost, ZfsSend, is_older_version,
};
use std::sync::Arc;

/// Bytes of one read from a send stream.
const READ_BYTES: usize = 1 << 20;

/// Compares each restored stream of a chain with the stream that the pool sends now.
pub(super) async fn compare_all(
    set: &RestoreSet,
    received: &Received,
    zfs: &Arc<dyn Zfs>,
    source: &Dataset,
    stop: &Stop,
) -> Result<Vec<Comparison>, RunError> {
    let mut compared = Vec::new();
    for (backup, restored) in set.backups.iter().zip(&received.streams) {
        let request = match send_again(&**zfs, source, backup)? {
            Ok(request) => request,
            Err(why) => {
                compared.push(Comparison::Not(why));
                continue;
            }
        };
        let sender = Arc::clone(zfs);
        let stopping = stop.clone();
        let hashed = blocking(move || hash_send(&*sender, &request, &stopping)).await?;
        compared.push(match hashed {
            _ if *stop.borrow() => return Err(RunError::Interrupted),
            Err(error) => Comparison::Not(error_chain(&error)),
            Ok(own) if own == *restored => Comparison::Same,
            Ok(own) => differs(&**zfs, backup, own, *restored)?,
        });
    }
    Ok(compared)
}

/// Judges two streams that differ. Another version of ZFS may send the same snapshot in other
/// records; the same version does not, so a difference is then damage.
fn differs(
    zfs: &dyn ZfsHost,
    backup: &RestoreBackup,
    own: Digest,
    restored: Digest,
) -> Result<Comparison, RunError> {
    let then = &backup.manifest.send.zfs_version;
    let now = zfs.module_version()?;
    if *then != now {
        return Ok(Comparison::Not(format!(
            "the backup was sent by ZFS {then}, and ZFS {now} on this host sends a different stream"
        )));
    }
    let has_embedded = backup.manifest.send.feature_flags & feature::EMBED_DATA != 0;
    if has_embedded && is_older_version(&now, EMBEDDED_PADDING_FIXED) == Some(true) {
        return Ok(Comparison::Not(format!(
            "the stream may have embedded blocks, and ZFS {now} pads them with different bytes in each send (fixed in 2.1.8)"
        )));
    }
    let reason = format!(
        "the restored stream has the BLAKE3 {restored}, and the one that the pool sends now has \
         {own}"
    );
    Err(RunError::Damaged {
        key: backup.manifest.id.to_string(),
        reason,
    })
}

/// Returns the send request that made this backup, or the reason why the pool cannot repeat the
/// send: the snapshot or its base is gone, or the snapshot was renamed.
fn send_again(
    zfs: &dyn ZfsSend,
    source: &Dataset,
    backup: &RestoreBackup,
) -> Result<Result<SendRequest, String>, RunError> {
    let manifest = &backup.manifest;
    let snapshots = zfs.snapshots(&source.name)?;
    let find = |guid: Guid| snapshots.iter().find(|snapshot| snapshot.guid == guid);
    let Some(snapshot) = find(manifest.snapshot.guid) else {
        return Ok(Err("its snapshot is gone from the pool".to_owned()));
    };
    // The stream contains the snapshot's name.
    let name = backup
        .private
        .as_ref()
        .map(|private| private.snapshot_name.as_str());
    if name != Some(snapshot.name.to_string().as_str()) {
        return Ok(Err("its snapshot has another name now".to_owned()));
    }
    let base = match &manifest.base {
        None => None,
        Some(base) => {
            let bookmarks = zfs.bookmarks(&source.name)?;
            let bookmark = bookmarks
                .into_iter()
                .find(|bookmark| bookmark.guid == base.guid && !bookmark.redacted);
            match (find(base.guid), bookmark) {
                (Some(snapshot), _) => Some(SendBase::Snapshot(snapshot.name.clone())),
                (None, Some(bookmark)) => Some(SendBase::Bookmark(bookmark.name)),
                (None, None) => return Ok(Err("its base is gone from the pool".to_owned())),
            }
        }
    };
    let has = |flag: &str| {
        manifest
            .send
            .requested
            .iter()
            .any(|requested| requested == flag)
    };
    let flags = SendFlags {
        raw: has("raw"),
        compressed: has("compressed"),
        embedded: has("embedded"),
        large_blocks: has("large-blocks"),
    };
    Ok(Ok(SendRequest {
        snapshot: snapshot.name.clone(),
        base,
        flags,
        resume: None,
    }))
}

/// Hashes a send stream. Blocking. A stop ends the send early; the digest is then meaningless.
fn hash_send(zfs: &dyn ZfsSend, request: &SendRequest, stop: &Stop) -> Result<Digest, ZfsError> {
    let mut stream = zfs.send(request)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    let failed = |source| ZfsError::System {
        operation: "read the stream of",
        subject: request.snapshot.to_string(),
        source,
    };
    loop {
        match stream.reader().read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => drop(hasher.update(&buffer[..bytes])),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
        if *stop.borrow() {
            return Ok(Digest::from(hasher.finalize()));
        }
    }
    stream.finish()?;
    Ok(Digest::from(hasher.finalize()))
}
