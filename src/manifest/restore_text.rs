//! RESTORE.txt: instructions for restoring one backup without this tool. The text is a shell script
//! whose prose is in comments.

use super::{ChunkEntry, CompressionName};
use crate::model::{BackupId, DatasetName};
use crate::sign::VerifyingKey;
use std::fmt::Write;

/// The facts from which the text is made.
pub struct RestoreText<'a> {
    /// The dataset as named in the store.
    pub dataset: &'a DatasetName,
    /// The id of the backup.
    pub id: &'a BackupId,
    /// The backups that must be received before this one, the full first; empty for a full.
    pub before: &'a [BackupId],
    /// The key that verifies the signatures.
    pub verifying_key: &'a VerifyingKey,
    /// The chunks, in order.
    pub chunks: &'a [ChunkEntry],
    /// The compression of the chunks.
    pub compression: CompressionName,
    /// Whether `keyring.age` is one of the backup's objects.
    pub keyring: bool,
    /// Whether the stream is of natively encrypted blocks.
    pub raw: bool,
}

/// Writes the text. Every line that is not a comment is a command for a POSIX shell, run in a
/// folder that holds the backup's objects.
pub fn restore_text(from: &RestoreText<'_>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_prose(&mut text, from);
    let _ = write_chain(&mut text, from);
    let _ = write_commands(&mut text, from);
    text
}

fn write_prose(text: &mut String, from: &RestoreText<'_>) -> std::fmt::Result {
    let RestoreText {
        dataset,
        id,
        verifying_key,
        ..
    } = from;
    let quoted_place = shell_quote(&format!("{dataset}/@{id}/"));
    let programs = if from.compression == CompressionName::Zstd {
        "age, b3sum, zstd"
    } else {
        "age, b3sum"
    };
    write!(
        text,
        "# minisign -V -P {verifying_key} -m RESTORE.txt\n\
         #\n\
         # Run the line above first: whoever can write to the store can write this file too, and only a good\n\
         # signature by a key that you know from elsewhere (your key file, your paper copy) makes it safe to run.\n\
         # The signed comment must read: zfs-backup v1 restore-text {dataset}/@{id}/RESTORE.txt\n\
         #\n\
         # Restores {id}\n\
         # of {dataset} with {programs} and a shell alone.\n\
         #\n\
         # 1. Fetch all objects of the backup into an empty folder, by any client:\n\
         #      aws s3 cp --recursive s3://BUCKET/PREFIX/{quoted_place} .\n\
         #      rclone copy REMOTE:BUCKET/PREFIX/{quoted_place} .\n\
         #      b2 sync b2://BUCKET/PREFIX/{quoted_place} .\n\
         # 2. Have your key file ready as identity.txt beside them.\n"
    )?;
    if from.keyring {
        writeln!(
            text,
            "#    With the passphrase: (umask 077; age -d -o identity.txt keyring.age)"
        )?;
    }
    writeln!(
        text,
        "# 3. Run this file there: sh RESTORE.txt > stream   (or: sh RESTORE.txt | zfs receive -u POOL/NEW)"
    )?;
    if from.raw {
        writeln!(
            text,
            "#    The stream is natively encrypted: to mount it, the ZFS key of that time is needed too."
        )?;
    }
    writeln!(
        text,
        "# The commands stop at the first chunk that is missing or damaged; nothing after it is written."
    )
}

/// Writes how to receive the whole chain. The stream of an incremental is useless without its base.
fn write_chain(text: &mut String, from: &RestoreText<'_>) -> std::fmt::Result {
    let RestoreText {
        dataset,
        id,
        before,
        ..
    } = from;
    if before.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "#\n\
         # This backup is an incremental: {} must be received before it, in this order. Fetch each, and\n\
         # this one, into a folder of its own that is named by its id, beside each other:",
        if before.len() == 1 {
            "one other".to_owned()
        } else {
            format!("{} others", before.len())
        }
    )?;
    for member in before.iter().chain([*id]) {
        let place = shell_quote(&format!("{dataset}/@{member}/"));
        writeln!(
            text,
            "#      aws s3 cp --recursive s3://BUCKET/PREFIX/{place} {member}"
        )?;
    }
    writeln!(
        text,
        "# (or rclone copy REMOTE:BUCKET/PREFIX/... ID, or b2 sync). In each, check RESTORE.txt with minisign as above and \
         have\n\
         # identity.txt there. Then, in this order, each only after the one before it ended well:"
    )?;
    for member in before.iter().chain([*id]) {
        writeln!(
            text,
            "#      (cd {member} && sh RESTORE.txt) | zfs receive -u POOL/NEW"
        )?;
    }
    writeln!(
        text,
        "# Should a snapshot's name be taken because two had the same one, receive into POOL/NEW@ANOTHER-NAME."
    )
}

/// Writes the commands. Each chunk is verified completely before any of it is opened. No pipe hides
/// the failure of its first program.
fn write_commands(text: &mut String, from: &RestoreText<'_>) -> std::fmt::Result {
    let open = match from.compression {
        CompressionName::None => "age -d -i identity.txt \"$2\"",
        CompressionName::Zstd => {
            "age -d -i identity.txt -o open.zst \"$2\" && zstd -d -q -c open.zst && rm open.zst"
        }
    };
    writeln!(text, "set -e")?;
    writeln!(
        text,
        "chunk() {{ echo \"$1  $2\" | b3sum -c >&2 && {open}; }}"
    )?;
    for chunk in from.chunks {
        writeln!(text, "chunk {} {}", chunk.blake3, chunk.name)?;
    }
    Ok(())
}

/// Quotes for a POSIX shell: puts single quotes around the text, and writes each single quote
/// inside as `'\''`.
fn shell_quote(text: &str) -> String {
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'@' | b'-' | b'_' | b'.' | b':');
    if text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
