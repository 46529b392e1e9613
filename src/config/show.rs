//! [`Config::to_display_toml`]: the whole configuration in effect, for `config show`.

use super::keys::KeySource;
use super::main_section::SnapshotSource;
use super::secret::{Passphrase, Secret};
use super::stores::{CHECKSUM_AUTO, CredentialFiles, PartSettings};
use super::{Config, Remote, RetentionRules};
use crate::store::ObjectLock;
use std::fmt::Display;
use std::path::Path;
use toml::Value;

/// A key with its value; `None` if the key has no value.
type Entry<'c> = (&'c str, Option<Value>);

impl Config {
    /// Writes the configuration as TOML, with all defaults (marked as such) and with secrets
    /// hidden.
    pub fn to_display_toml(&self) -> String {
        let mut shown = format!("# {}, merged with the defaults\n", self.file.display());
        for (section, entries) in self.entries() {
            let lines = entries
                .into_iter()
                .filter_map(|(key, value)| Some(self.line(section, key, &value?)));
            let lines: String = lines.collect();
            if !lines.is_empty() {
                shown.push_str(&format!("\n[{section}]\n{lines}"));
            }
        }
        shown
    }

    fn line(&self, section: &str, key: &str, value: &Value) -> String {
        let mark = if self.given.contains_key(&format!("{section}.{key}")) {
            ""
        } else {
            "  # default"
        };
        format!("{key} = {value}{mark}\n")
    }

    /// Returns the sections that have an effect or are in the file, with all their keys in the
    /// order of the schema.
    fn entries(&self) -> Vec<(&'static str, Vec<Entry<'_>>)> {
        let is_s3 = matches!(self.remote, Some(Remote::S3 { .. }));
        let is_b2 = matches!(self.remote, Some(Remote::B2 { .. }));
        let in_file = |section: &str| {
            self.given
                .keys()
                .any(|key| key.starts_with(&format!("{section}.")))
        };
        let all = [
            ("main", true, self.main_entries()),
            ("s3", is_s3, self.s3_entries()),
            ("b2", is_b2, self.b2_entries()),
            ("prune", true, self.prune_entries()),
            ("send", true, self.send_entries()),
            ("backup-lifecycle", true, self.lifecycle_entries()),
            (
                "backup-sequence",
                true,
                self.sequence
                    .iter()
                    .map(|step| (step.name.as_str(), text(&step.line)))
                    .collect(),
            ),
            (
                "lifecycle-intermediate",
                true,
                retention_entries(&self.lifecycle_intermediate),
            ),
            (
                "lifecycle-remote",
                true,
                retention_entries(&self.lifecycle_remote),
            ),
        ];
        let wanted = all
            .into_iter()
            .filter(|(section, effective, _)| *effective || in_file(section));
        wanted
            .map(|(section, _, entries)| (section, entries))
            .collect()
    }

    fn main_entries(&self) -> Vec<Entry<'_>> {
        let mut entries = vec![
            ("zfs_fs", texts(&self.datasets.names)),
            ("recursive", switch(self.datasets.recursive)),
            ("exclude", texts(&self.datasets.exclude)),
        ];
        entries.extend(self.key_entries());
        entries.extend([
            (
                "intermediate_basedir",
                self.intermediate
                    .as_ref()
                    .and_then(|place| path(&place.basedir)),
            ),
            (
                "intermediate_checksum",
                self.intermediate
                    .as_ref()
                    .and_then(|place| switch(place.checksum)),
            ),
            ("split_size", text(self.split_size)),
            ("remote", self.remote.as_ref().and_then(text)),
            ("rclone_conf", self.rclone.conf.as_deref().and_then(path)),
            (
                "rclone_bwlimit",
                self.rclone.bwlimit.as_ref().and_then(text),
            ),
            ("rclone_args", texts_unless_empty(&self.rclone.args)),
            (
                "rclone_spool_dir",
                self.rclone.spool_dir.as_deref().and_then(path),
            ),
            ("bwlimit", self.pace.bwlimit.as_ref().and_then(text)),
            ("window", self.pace.window.and_then(text)),
            ("max_runtime", self.pace.max_runtime.and_then(text)),
            (
                "oldest_snapshot_days",
                self.snapshots.oldest_days.and_then(number),
            ),
            ("snapshot_prefix", text(&self.snapshots.prefix)),
            (
                "use_snapshots",
                match &self.snapshots.source {
                    SnapshotSource::Own => text("own"),
                    SnapshotSource::Matching(glob) => text(glob),
                },
            ),
            ("store_as", self.datasets.store_as.as_ref().and_then(text)),
            (
                "pre_snapshot",
                self.hooks.pre_snapshot.as_ref().and_then(text),
            ),
            (
                "post_snapshot",
                self.hooks.post_snapshot.as_ref().and_then(text),
            ),
            ("on_failure", self.hooks.on_failure.as_ref().and_then(text)),
            ("on_success", self.hooks.on_success.as_ref().and_then(text)),
            ("hook_timeout", text(self.hooks.timeout)),
            ("lock_file", path(&self.lock_file)),
            ("state_dir", path(&self.state_dir)),
            ("resume_days", number(self.resume_days)),
        ]);
        entries
    }

    fn key_entries(&self) -> Vec<Entry<'_>> {
        let mut entries: [Entry<'_>; 6] = [
            ("encryption_passphrase", None),
            ("encryption_passphrase_file", None),
            ("encryption_passphrase_command", None),
            ("encryption_recipients", None),
            ("signing_key_file", None),
            ("verify_keys", None),
        ];
        match &self.keys {
            KeySource::Passphrase(Passphrase::Inline(secret)) => entries[0].1 = hidden(secret),
            KeySource::Passphrase(Passphrase::File(file)) => entries[1].1 = text(file),
            KeySource::Passphrase(Passphrase::Command(command)) => entries[2].1 = text(command),
            KeySource::Recipients {
                recipients,
                signing_key_file,
            } => {
                entries[3].1 = texts(recipients);
                entries[4].1 = text(signing_key_file);
            }
        }
        let verify_keys: Vec<String> = self.verify_keys.iter().map(|key| key.to_base64()).collect();
        entries[5].1 = texts_unless_empty(&verify_keys);
        entries.into()
    }

    fn s3_entries(&self) -> Vec<Entry<'_>> {
        let s3 = &self.s3;
        let [id_file, secret_file] = credential_values(s3.credential_files.as_ref());
        let [part_size, concurrency] = part_values(s3.parts);
        let [lock_days, lock_mode] = lock_values(s3.lock);
        vec![
            ("endpoint", s3.endpoint.as_ref().and_then(text)),
            ("region", s3.region.as_ref().and_then(text)),
            ("profile", s3.profile.as_ref().and_then(text)),
            ("access_key_id_file", id_file),
            ("secret_access_key_file", secret_file),
            ("storage_class", s3.storage_class.as_ref().and_then(text)),
            (
                "path_style",
                switch(s3.path_style.unwrap_or(s3.endpoint.is_some())),
            ),
            (
                "checksum",
                s3.checksum.map_or_else(|| text(CHECKSUM_AUTO), text),
            ),
            ("part_size", part_size),
            ("concurrency", concurrency),
            ("object_lock_days", lock_days),
            ("object_lock_mode", lock_mode),
        ]
    }

    fn b2_entries(&self) -> Vec<Entry<'_>> {
        let [id_file, secret_file] = credential_values(self.b2.credential_files.as_ref());
        let [part_size, concurrency] = part_values(self.b2.parts);
        let [lock_days, lock_mode] = lock_values(self.b2.lock);
        vec![
            ("application_key_id_file", id_file),
            ("application_key_file", secret_file),
            ("part_size", part_size),
            ("concurrency", concurrency),
            ("spool_dir", self.b2.spool_dir.as_deref().and_then(path)),
            ("object_lock_days", lock_days),
            ("object_lock_mode", lock_mode),
        ]
    }

    fn prune_entries(&self) -> Vec<Entry<'_>> {
        let Some(prune) = &self.prune else {
            return Vec::new();
        };
        let [s3_id, s3_secret] = credential_values(prune.s3_credential_files.as_ref());
        let [b2_id, b2_secret] = credential_values(prune.b2_credential_files.as_ref());
        vec![
            ("profile", prune.profile.as_ref().and_then(text)),
            ("access_key_id_file", s3_id),
            ("secret_access_key_file", s3_secret),
            ("application_key_id_file", b2_id),
            ("application_key_file", b2_secret),
        ]
    }

    fn send_entries(&self) -> Vec<Entry<'_>> {
        vec![
            ("raw", text(self.send.raw)),
            ("compressed", switch(self.send.compressed)),
            ("embedded", switch(self.send.embedded)),
            ("compression", text(self.send.compression)),
        ]
    }

    fn lifecycle_entries(&self) -> Vec<Entry<'_>> {
        let lifecycle = &self.backup_lifecycle;
        vec![
            (
                "full_when_incrementals_exceed",
                text(lifecycle.full_when_incrementals_exceed),
            ),
            ("full_every", lifecycle.full_every.and_then(text)),
            (
                "max_incrementals",
                lifecycle.max_incrementals.and_then(number),
            ),
            ("auto_full_max", text(lifecycle.auto_full_max)),
        ]
    }
}

fn retention_entries(rules: &RetentionRules) -> Vec<Entry<'_>> {
    vec![
        ("keep-last-chains", rules.last_chains.and_then(number)),
        ("keep-last-full-only", rules.last_fulls.and_then(number)),
        (
            "keep-last-incremental-only",
            rules.last_incrementals.and_then(number),
        ),
        (
            "keep-full-with-age-closest-to",
            texts_unless_empty(&rules.full_ages),
        ),
        ("keep-within", rules.within.and_then(text)),
        ("keep-daily", rules.daily.and_then(number)),
        ("keep-weekly", rules.weekly.and_then(number)),
        ("keep-monthly", rules.monthly.and_then(number)),
        ("keep-yearly", rules.yearly.and_then(number)),
    ]
}

// All of these return `Some`, because they are used where an entry may also have no value.

fn text(value: impl Display) -> Option<Value> {
    Some(Value::String(value.to_string()))
}

fn hidden(secret: &Secret) -> Option<Value> {
    text(secret)
}

fn path(value: &Path) -> Option<Value> {
    text(value.display())
}

fn switch(on: bool) -> Option<Value> {
    Some(Value::Boolean(on))
}

fn number(value: u32) -> Option<Value> {
    Some(Value::Integer(value.into()))
}

fn texts<T: Display>(items: &[T]) -> Option<Value> {
    Some(Value::Array(
        items
            .iter()
            .map(|item| Value::String(item.to_string()))
            .collect(),
    ))
}

fn texts_unless_empty<T: Display>(items: &[T]) -> Option<Value> {
    if items.is_empty() { None } else { texts(items) }
}

fn credential_values(files: Option<&CredentialFiles>) -> [Option<Value>; 2] {
    [
        files.and_then(|files| text(&files.id_file)),
        files.and_then(|files| text(&files.secret_file)),
    ]
}

fn lock_values(lock: Option<ObjectLock>) -> [Option<Value>; 2] {
    [
        lock.and_then(|lock| number(lock.days)),
        lock.and_then(|lock| text(lock.mode)),
    ]
}

fn part_values(parts: PartSettings) -> [Option<Value>; 2] {
    [text(parts.part_size), number(parts.concurrency)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::config::schema::SECTIONS;

    #[test]
    fn every_known_key_is_shown_in_the_order_of_the_schema() {
        let text = "[main]\nzfs_fs = \"tank\"\nremote = \"s3:bucket\"\nencryption_passphrase = \"x\"\n\
            [b2]\nconcurrency = 2\n[prune]\nprofile = \"deleting\"\n";
        let config = Config::parse(text, Path::new("/x.toml"), &Environment::default()).unwrap();
        for ((name, entries), section) in config.entries().into_iter().zip(SECTIONS) {
            assert_eq!(name, section.name);
            let shown: Vec<&str> = entries.iter().map(|(key, _)| *key).collect();
            let known: Vec<&str> = section.keys.to_vec();
            assert!(known.is_empty() || shown == known, "[{name}] {shown:?}");
        }
    }
}
