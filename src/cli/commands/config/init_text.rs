//! The proposals and texts of `config init`. Pure: randomness and names are arguments.

use crate::cli::screen::table::WIDTH;
use crate::config::{Remote, Size};
use crate::model::DatasetName;
use crate::plan::chunk_count::{check_chunk_count, split_bytes_enough};
use std::path::Path;
use toml::Value;

/// The answers from which a first configuration is made.
pub(crate) struct Answers {
    pub(crate) datasets: Vec<DatasetName>,
    pub(crate) remote: Remote,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    /// The value of `use_snapshots`: `own`, or a glob.
    pub(crate) use_snapshots: String,
    pub(crate) passphrase: String,
    /// The estimated bytes of the longest full; `None` when ZFS does not tell the size of a dataset.
    pub(crate) longest_full_bytes: Option<u64>,
}

/// Digits and letters that are not confused on paper: no i, l, o, u.
const SYMBOLS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// A chunk that fits with its encryption into a part of 100 MiB.
const B2_SPLIT_SIZE: Size = Size::mebibytes(99);
const GROUPS: usize = 5;
const SYMBOLS_PER_GROUP: usize = 5;
/// Entropy of a passphrase: each symbol has five bits.
pub(crate) const PASSPHRASE_BITS: usize = GROUPS * SYMBOLS_PER_GROUP * 5;

/// Returns a passphrase of 125 of the random bits, in groups that can be read aloud and typed.
pub(crate) fn passphrase_of(random: u128) -> String {
    let symbol = |index: usize| {
        char::from(SYMBOLS[usize::try_from(random >> (index * 5) & 31).unwrap_or(0)])
    };
    let group = |group: usize| {
        (0..SYMBOLS_PER_GROUP)
            .map(|index| symbol(group * SYMBOLS_PER_GROUP + index))
            .collect()
    };
    (0..GROUPS).map(group).collect::<Vec<String>>().join("-")
}

/// Snapshots of another tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OtherTool {
    pub(crate) name: &'static str,
    /// The value of `use_snapshots` for them.
    pub(crate) glob: String,
    /// Number of matching snapshots.
    pub(crate) count: usize,
}

/// Prefixes of the snapshot names of other tools.
const TOOLS: [(&str, &str); 4] = [
    ("sanoid", "autosnap_"),
    ("zfs-auto-snapshot", "zfs-auto-snap_"),
    ("zrepl", "zrepl_"),
    ("pyznap", "pyznap_"),
];
/// The classes that suit a nightly backup, the best first.
const CLASSES: [&str; 4] = ["daily", "hourly", "weekly", "monthly"];

/// Returns the tools whose snapshots are among these short names, with the class that suits a
/// nightly backup best.
pub(crate) fn other_tools<'n>(
    short_names: impl Iterator<Item = &'n str> + Clone,
) -> Vec<OtherTool> {
    let mut tools = Vec::new();
    for (name, prefix) in TOOLS {
        let of_tool = short_names
            .clone()
            .filter(|short| short.starts_with(prefix));
        let class = CLASSES
            .into_iter()
            .find(|class| of_tool.clone().any(|short| short.contains(class)));
        let glob = match (class, name) {
            (Some(class), "zfs-auto-snapshot") => format!("{prefix}{class}-*"),
            (Some(class), _) => format!("{prefix}*_{class}"),
            (None, _) => format!("{prefix}*"),
        };
        let Ok(matcher) = globset::Glob::new(&glob).map(|glob| glob.compile_matcher()) else {
            continue;
        };
        let count = of_tool.filter(|short| matcher.is_match(short)).count();
        if count > 0 {
            tools.push(OtherTool { name, glob, count });
        }
    }
    tools
}

/// Returns the text of the configuration file. It contains the passphrase.
pub(crate) fn config_text(answers: &Answers) -> String {
    let datasets = match answers.datasets.as_slice() {
        [one] => Value::from(one.as_str()),
        several => Value::from(several.iter().map(ToString::to_string).collect::<Vec<_>>()),
    };
    let text = |text: &str| Value::from(text);
    let mut lines = vec![
        "# Written by `zfs-backup config init`. All keys: `zfs-backup config show`.".to_owned(),
        "[main]".to_owned(),
        format!("zfs_fs = {datasets}"),
        "# Without this passphrase nothing can be restored. Keep a copy in another place."
            .to_owned(),
        format!("encryption_passphrase = {}", text(&answers.passphrase)),
        format!("remote = {}", text(&answers.remote.to_string())),
        format!("split_size = \"{}\"", split_size(answers)),
        format!("use_snapshots = {}", text(&answers.use_snapshots)),
    ];
    if let Remote::S3 { .. } = answers.remote {
        lines.extend(["".to_owned(), "[s3]".to_owned()]);
        lines.push(
            "# Credentials come from the AWS environment or profile, or from two files:".to_owned(),
        );
        lines.push("# access_key_id_file = \"/etc/zfs-backup/s3.id\"".to_owned());
        lines.push("# secret_access_key_file = \"/etc/zfs-backup/s3.key\"".to_owned());
        let keys = [("endpoint", &answers.endpoint), ("region", &answers.region)];
        lines.extend(
            keys.into_iter()
                .filter_map(|(key, value)| Some(format!("{key} = {}", text(value.as_ref()?)))),
        );
    }
    if let Remote::B2 { .. } = answers.remote {
        lines.extend(["".to_owned(), "[b2]".to_owned()]);
        lines.push(
            "# Keys come from B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY, or from files:"
                .to_owned(),
        );
        lines.push("# application_key_id_file = \"/etc/zfs-backup/b2.id\"".to_owned());
        lines.push("# application_key_file = \"/etc/zfs-backup/b2.key\"".to_owned());
        let parts = match split_size(answers) {
            B2_SPLIT_SIZE => "# A chunk that fits into one part gets a SHA-1 of B2's own.",
            _ => "# Chunks of several parts: smaller ones would be too many.",
        };
        lines.push(format!("{parts} Memory: 4 parts."));
        lines.push("part_size = \"100M\"".to_owned());
        lines.push("concurrency = 2".to_owned());
    }
    lines.extend(LIFECYCLE.map(str::to_owned));
    lines.join("\n") + "\n"
}

/// The levels of a new configuration.
const LIFECYCLE: [&str; 6] = [
    "",
    "[backup-lifecycle]",
    "# The first backup of a year is a full, the first of a month and of a week are",
    "# incrementals of their own level. So many of each stay; prune deletes the rest.",
    "# docs/levels.md explains it, `zfs-backup config check` says what it means here.",
    "keep = \"2y 12m 8w 14d\"",
];

/// Returns the `split_size`: large enough for the longest full. With B2 a chunk fits into one part
/// if possible, because B2 then computes and keeps its SHA-1.
fn split_size(answers: &Answers) -> Size {
    let proposed = match answers.remote {
        Remote::B2 { .. } => B2_SPLIT_SIZE,
        _ => Size(1 << 30),
    };
    match answers.longest_full_bytes {
        Some(full) if check_chunk_count(full, proposed.bytes()).is_err() => {
            Size(split_bytes_enough(full))
        }
        _ => proposed,
    }
}

/// Returns the text that belongs on paper.
pub(crate) fn paper(answers: &Answers, file: &Path) -> String {
    let line = "-".repeat(WIDTH - 2);
    let endpoint = answers
        .endpoint
        .as_ref()
        .map_or_else(String::new, |url| format!("  endpoint    {url}\n"));
    let names: Vec<String> = answers
        .datasets
        .iter()
        .map(|name| format!("  dataset     {name}\n"))
        .collect();
    let remote = answers.remote.to_string();
    let quoted = shell_words::quote(&remote);
    format!(
        "{line}\nPAPER COPY of {}\n\n  passphrase  {}\n  store       {}\n{endpoint}{}\n\
         With these, the store's credentials and zfs-backup everything comes back:\n\
         \x20 zfs-backup restore DATASET --remote {quoted} --to NEW\n\
         Without the passphrase nothing does. A dataset that ZFS encrypts needs its\nown ZFS key as well.\n{line}",
        file.display(),
        answers.passphrase,
        answers.remote,
        names.concat(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment, KeySource, Passphrase};

    fn answers(remote: &str) -> Answers {
        Answers {
            datasets: vec!["tank/photos".parse().unwrap(), "tank/b c".parse().unwrap()],
            remote: remote.parse().unwrap(),
            endpoint: Some("https://s3.example.org".into()),
            region: None,
            use_snapshots: "autosnap_*_daily".into(),
            passphrase: passphrase_of(u128::MAX / 3),
            longest_full_bytes: None,
        }
    }

    #[test]
    fn split_size_is_chosen_by_the_longest_full() {
        const TIB: u64 = 1 << 40;
        for (remote, longest, expected) in [
            ("s3:bucket", None, "1G"),
            ("s3:bucket", Some(100 * TIB), "1G"),
            ("s3:bucket", Some(1000 * TIB), "4G"),
            ("b2:bucket", Some(8 * TIB), "99M"),
            ("b2:bucket", Some(64 * TIB), "256M"),
        ] {
            let answers = Answers {
                longest_full_bytes: longest,
                ..answers(remote)
            };
            assert_eq!(
                split_size(&answers).to_string(),
                expected,
                "{remote} {longest:?}"
            );
            let text = config_text(&answers);
            assert!(
                text.contains(&format!("split_size = \"{expected}\"")),
                "{text}"
            );
            assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        }
    }

    #[test]
    fn every_random_bit_changes_the_generated_passphrase() {
        const { assert!(PASSPHRASE_BITS >= 100) };
        let first = passphrase_of(0);
        assert_eq!(first, "00000-00000-00000-00000-00000");
        let mut seen = std::collections::BTreeSet::from([first]);
        for bit in 0..PASSPHRASE_BITS {
            assert!(
                seen.insert(passphrase_of(1 << bit)),
                "bit {bit} changes nothing"
            );
        }
        let mut symbols: Vec<u8> = SYMBOLS.to_vec();
        symbols.sort_unstable();
        symbols.dedup();
        assert_eq!(symbols.len(), 32);
    }

    #[test]
    fn generated_configuration_parses_without_errors() {
        for remote in [
            "s3:bucket/nas1",
            "b2:bucket/nas1",
            "file:/srv/backup",
            "rclone:gdrive:zb",
        ] {
            let answers = answers(remote);
            let text = config_text(&answers);
            let config = Config::parse(
                &text,
                Path::new("/etc/zfs-backup/zfs-backup.toml"),
                &Environment::default(),
            );
            let config = config.unwrap_or_else(|error| panic!("{text}\n{error}"));
            assert_eq!(config.datasets.names, answers.datasets);
            assert_eq!(config.remote, Some(answers.remote));
            let KeySource::Passphrase(Passphrase::Inline(secret)) = &config.keys else {
                panic!("{:?}", config.keys)
            };
            assert_eq!(secret.expose(), answers.passphrase);
            assert!(
                text.lines().all(|line| line.chars().count() <= 80),
                "{text}"
            );
            let own_sha1 = config
                .check_advice()
                .iter()
                .any(|advice| advice.text.contains("the SHA-1 that B2 itself"));
            assert_eq!(own_sha1, remote.starts_with("b2:"), "{text}");
        }
    }

    #[test]
    fn paper_copy_has_everything_for_a_restore_in_80_columns() {
        let answers = answers("s3:bucket/nas1");
        let paper = paper(&answers, Path::new("/etc/zfs-backup/zfs-backup.toml"));
        for needed in [
            answers.passphrase.as_str(),
            "s3:bucket/nas1",
            "https://s3.example.org",
            "tank/photos",
            "tank/b c",
        ] {
            assert!(paper.contains(needed), "{paper}");
        }
        assert!(
            paper.lines().all(|line| line.chars().count() <= 80),
            "{paper}"
        );
    }

    #[test]
    fn snapshot_tools_are_recognised_by_snapshot_names() {
        let names = [
            "autosnap_2026-11-22_00:00:01_daily",
            "autosnap_2026-11-22_10:00:01_hourly",
            "zfs-auto-snap_hourly-2026-11-22-1017",
            "zrepl_20261122_101500_000",
            "zfs-backup_20261122T212604Z",
            "before-upgrade",
        ];
        let found: Vec<_> = other_tools(names.into_iter())
            .into_iter()
            .map(|tool| (tool.name, tool.glob, tool.count))
            .collect();
        let expected = [
            ("sanoid", "autosnap_*_daily", 1),
            ("zfs-auto-snapshot", "zfs-auto-snap_hourly-*", 1),
            ("zrepl", "zrepl_*", 1),
        ];
        assert_eq!(
            found,
            expected.map(|(name, glob, count)| (name, glob.to_owned(), count))
        );
        assert_eq!(
            other_tools(["pyznap_2026-11-22_00:00:00_daily"].into_iter())[0].glob,
            "pyznap_*_daily"
        );
    }
}
