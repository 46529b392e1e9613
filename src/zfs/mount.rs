//! The kernel's table of mounts. This program mounts nothing itself; `zfs mount` and administrators
//! do.

use super::ZfsError;
use super::call::ZfsCall;
use std::path::PathBuf;

/// The kernel's table of this process's mounts: the only place that has the actual mount points,
/// independent of properties (`legacy`, another root, bind mounts).
const TABLE: &str = "/proc/self/mountinfo";

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor device number, as `stat` returns them for files in this file system.
    pub device: (u32, u32),
    /// The type of the file system, such as `zfs`.
    pub file_system: String,
    /// The mounted source: for ZFS the dataset's name.
    pub source: String,
    /// The mount point, without symbolic links.
    pub place: PathBuf,
    /// Whether the mount is read-only.
    pub readonly: bool,
}

/// Reads the table of this process.
///
/// # Errors
/// [`ZfsError::System`] when the table cannot be read.
pub fn mounts() -> Result<Vec<Mount>, ZfsError> {
    let call = ZfsCall::new("read", TABLE);
    let bytes = std::fs::read(TABLE).map_err(|error| call.failed(error))?;
    Ok(parse_mounts(&String::from_utf8_lossy(&bytes)))
}

/// Parses lines such as `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw`; other
/// lines are skipped.
fn parse_mounts(table: &str) -> Vec<Mount> {
    table.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let (major, minor) = left.next()?.split_once(':')?;
    let place = left.nth(1)?;
    let options = left.next()?;
    let mut right = right.split(' ');
    let file_system = right.next()?;
    let source = right.next()?;
    let is_readonly = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        file_system: file_system.to_owned(),
        source: unescape(source),
        place: PathBuf::from(unescape(place)),
        readonly: is_readonly(options) || right.next().is_some_and(is_readonly),
    })
}

/// Decodes octal escapes: the table writes spaces, tabs, line ends and backslashes as `\040` and so
/// on.
fn unescape(text: &str) -> String {
    let mut pieces = text.split('\\');
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |mut whole, piece| {
        let octal = piece
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                whole.push(char::from(byte));
                whole.push_str(&piece[3..]);
            }
            None => {
                whole.push('\\');
                whole.push_str(piece);
            }
        }
        whole
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const TABLE: &str = "\
22 27 0:20 / /proc rw,nosuid - proc proc rw
36 35 8:1 / / rw,noatime master:1 - ext4 /dev/sda1 rw
90 36 0:45 / /tank/a\\040b rw shared:7 - zfs tank/a\\040b rw,xattr,noacl
91 36 0:46 / /mnt/elsewhere ro shared:8 master:3 - zfs tank/a\\040b/child rw
92 36 0:47 / /mnt/super rw - zfs tank/errors=ro ro,xattr
no line at all
";

    #[test]
    fn mount_table_is_parsed() {
        let mount = |device, file_system: &str, source: &str, place: &str, readonly| Mount {
            device,
            file_system: file_system.into(),
            source: source.into(),
            place: place.into(),
            readonly,
        };
        assert_eq!(
            parse_mounts(TABLE),
            [
                mount((0, 20), "proc", "proc", "/proc", false),
                mount((8, 1), "ext4", "/dev/sda1", "/", false),
                mount((0, 45), "zfs", "tank/a b", "/tank/a b", false),
                mount((0, 46), "zfs", "tank/a b/child", "/mnt/elsewhere", true),
                mount((0, 47), "zfs", "tank/errors=ro", "/mnt/super", true),
            ]
        );
    }

    #[test]
    fn mount_table_of_this_process_has_a_root() {
        assert!(
            mounts()
                .unwrap()
                .iter()
                .any(|mount| mount.place == Path::new("/"))
        );
    }
}
