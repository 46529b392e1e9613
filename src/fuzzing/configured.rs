//! Targets for input that a person writes: the configuration, its older INI form, single values,
//! key files.

use super::Target;
use crate::config::convert::{convert_ini, rclone_conf_of};
use crate::config::{
    Age, BandwidthSchedule, CommandLine, Config, Environment, Percent, Remote, SecretFile, Size,
    TimeLimit, Window, without_secrets,
};
use crate::keyring::KeyFile;
use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;

pub(super) const CONFIGURATION: Target = Target {
    name: "configuration",
    run: configuration,
    seeds: || {
        let texts = [
            "[main]\nzfs_fs = \"tank\"\nremote = \"s3:https://s3.example.com/bucket/prefix\"\nencryption_passphrase = \"x\"\n",
            "[main]\nzfs_fs = [\"tank/a\", \"tank/b\"]\nrecursive = true\nexclude = [\"tank/*/tmp\"]\nremote = \"file:/srv/b\"\nsplit_size = \"1G\"\nfull_every = \"30d\"\nsequence = [\"snapshot\", \"backup-remote\"]\n\n[lifecycle-remote]\nkeep-last-chains = 2\nkeep-within = \"1y\"\n",
            "[s3]\npart_size = \"16M\"\n[b2]\n[prune]\n[lifecycle-intermediate]\n[hooks]\nbefore = \"/bin/true a 'b c'\"\n",
            "[backup-lifecycle]\nkeep = \"2y 12m 8w 14d\"\nlevel_base = \"longer\"\nfull_every = \"never\"\n[lifecycle-remote]\nkeep_at_least = \"180d\"\n",
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &[
        "[main]\n",
        "remote = ",
        "zfs_fs = ",
        "encryption_passphrase = ",
        "\"\"\"",
        "'''",
        "= [",
        "]",
        "{",
        "}",
        "true",
        "1979-05-27",
        "\"30d\"",
        "\"1G\"",
        "\"file:/x\"",
        "split_size",
        "bandwidth_limit",
        "0x",
        "inf",
        "\\u0000",
    ],
};

pub(super) const INI: Target = Target {
    name: "ini",
    run: ini,
    seeds: || {
        let texts = [
            "[main]\n; a comment\nzfs_fs = tank/a\nremote = b2:bucket/prefix # why\nrclone_conf = /etc/rclone.conf\nrecursive = yes\nsplit_size = 1G\n\0[b2]\ntype = b2\naccount = a\nkey = k\n",
            "[main]\nremote: file:/x\nunknown = \"quoted\"\n[lifecycle-remote]\nkeep-last-chains=2\n[step01]\ncommand = backup\n",
            "no section = 1\n[s3]\naccess_key_id_file=/a\n",
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &[
        "[main]\n",
        "remote = ",
        "=",
        ":",
        ";",
        "#",
        "\"",
        "'",
        "\\",
        "\n\n",
        "\0",
        "[",
        "]",
        "rclone_conf",
        "step",
    ],
};

pub(super) const VALUES: Target = Target {
    name: "values",
    run: values,
    seeds: || {
        let texts = [
            "16M",
            "1.5G",
            "30d",
            "2w",
            "90s",
            "08:00,512k 19:00,10M 23:00,off",
            "22:00-06:00",
            "s3:https://h/b/p",
            "b2:b/p",
            "file:/srv",
            "rclone:r:p",
            "credential:x",
            "/etc/x",
            "/bin/sh -c 'a b'",
            "50%",
            "auto",
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &[
        ":",
        ",",
        "-",
        "00",
        "24:00",
        "off",
        "s3:",
        "b2:",
        "file:",
        "rclone:",
        "https://",
        "credential:",
        "%",
        "M",
        "d",
        "18446744073709551615",
    ],
};

pub(super) const KEY_FILE: Target = Target {
    name: "key_file",
    run: key_file,
    seeds: || {
        let files = [
            KeyFile::generate(),
            KeyFile::generate().and_then(|file| file.rotated(Default::default())),
        ];
        let texts = files
            .into_iter()
            .flatten()
            .filter_map(|file| file.to_text().ok());
        texts.map(|text| text.as_bytes().to_vec()).collect()
    },
    words: &[
        "# verifying key: ",
        "# signing key: ",
        "AGE-SECRET-KEY-1",
        "# public key: ",
        "\n",
        "RW",
        "AAAA",
    ],
};

/// Parses any text as the configuration file.
fn configuration(input: &[u8]) {
    let text = &*String::from_utf8_lossy(input);
    let env = Environment {
        uid: 0,
        ..Environment::default()
    };
    match Config::parse(text, Path::new("/etc/zfs-backup/zfs-backup.toml"), &env) {
        Ok(config) => {
            let _ = (
                config.parts_per_chunk(),
                config.parts(),
                config.notices().len(),
            );
            let kept = without_secrets(text).expect("a configuration is TOML");
            assert_eq!(
                without_secrets(&kept).as_ref(),
                Some(&kept),
                "a secret is left in what is kept"
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Converts any text as an INI file, with an rclone.conf behind a zero byte. The conversion must
/// give valid TOML.
fn ini(input: &[u8]) {
    let text = &*String::from_utf8_lossy(input);
    let (text, conf) = text
        .split_once('\0')
        .map_or((text, None), |(text, conf)| (text, Some(conf)));
    let _ = rclone_conf_of(text);
    let converted = convert_ini(text, conf);
    let problem = match toml::de::DeTable::parse(&converted.toml) {
        Ok(_) => return,
        Err(error) => error.to_string(),
    };
    // A key or a section that stood twice is written twice, and `config check` names both lines.
    assert!(
        problem.contains("duplicate key"),
        "{problem}in\n{}",
        converted.toml
    );
}

/// Parses any text as each kind of value. An accepted value must print as text with the same value.
fn values(input: &[u8]) {
    let text = &*String::from_utf8_lossy(input);
    stays::<Size>(text);
    stays::<Age>(text);
    stays::<TimeLimit>(text);
    stays::<BandwidthSchedule>(text);
    stays::<Window>(text);
    stays::<Remote>(text);
    stays::<SecretFile>(text);
    stays::<CommandLine>(text);
    let _ = text.parse::<Percent>();
    if let Ok(schedule) = text.parse::<BandwidthSchedule>() {
        let _ = (
            schedule.for_rclone(),
            schedule.slowest(),
            schedule.at(jiff::civil::Time::midnight()),
        );
    }
}

fn stays<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            assert_eq!(
                printed.parse().ok(),
                Some(value),
                "{text:?} prints as {printed:?}, which is something else"
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Parses any text as a key file.
fn key_file(input: &[u8]) {
    let text = &*String::from_utf8_lossy(input);
    let Ok(file) = KeyFile::parse(text) else {
        return;
    };
    let written = file.to_text().expect("keys that were read can be written");
    let again = KeyFile::parse(&written).expect("what was written can be read");
    let facts = |file: &KeyFile| {
        (
            file.identities.len(),
            file.trusted.clone(),
            file.signing.is_some(),
        )
    };
    assert_eq!(
        facts(&again),
        facts(&file),
        "it is not read as it is written"
    );
    assert_eq!(
        again
            .recipient()
            .map(|recipient| recipient.to_string())
            .ok(),
        file.recipient().map(|recipient| recipient.to_string()).ok()
    );
}
