//! The units in `contrib/systemd`: that they say what the program relies on, and nothing that keeps
//! it from ZFS.

use std::collections::BTreeMap;
use std::path::Path;

/// `Section.Key` and its values, in order.
type Unit = BTreeMap<String, Vec<String>>;

fn unit(name: &str) -> Unit {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("contrib/systemd")
        .join(name);
    parse(&std::fs::read_to_string(path).unwrap())
}

#[track_caller]
fn parse(text: &str) -> Unit {
    let (mut unit, mut section) = (Unit::new(), String::new());
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        match line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            Some(name) => section = name.to_owned(),
            None => {
                let (key, value) = line
                    .split_once('=')
                    .unwrap_or_else(|| panic!("{line:?} is no assignment"));
                assert_eq!(key, key.trim(), "{line:?}");
                unit.entry(format!("{section}.{key}"))
                    .or_default()
                    .push(value.to_owned());
            }
        }
    }
    unit
}

#[track_caller]
fn one<'u>(unit: &'u Unit, key: &str) -> &'u str {
    match unit.get(key).map(Vec::as_slice) {
        Some([value]) => value,
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn systemd_services_run_perform_and_allow_a_clean_stop() {
    for (name, command) in [
        ("zfs-backup.service", "/usr/local/bin/zfs-backup perform"),
        (
            "zfs-backup@.service",
            "/usr/local/bin/zfs-backup -c /etc/zfs-backup/%i.toml perform",
        ),
        (
            "zfs-backup-drill.service",
            "/usr/local/bin/zfs-backup drill",
        ),
    ] {
        let unit = unit(name);
        assert!(
            one(&unit, "Unit.After").starts_with("network-online.target zfs.target"),
            "{name}"
        );
        for (key, value) in [
            ("Unit.Wants", "network-online.target"),
            ("Service.Type", "oneshot"),
            ("Service.ExecStart", command),
            // With any other mode systemd would end the hooks before the run can.
            ("Service.KillMode", "mixed"),
            ("Service.TimeoutStartSec", "infinity"),
            ("Service.StateDirectory", "zfs-backup"),
        ] {
            assert_eq!(one(&unit, key), value, "{name}");
        }
        // Longer than the default hook_timeout of ten minutes: on_failure may take as long.
        assert_eq!(one(&unit, "Service.TimeoutStopSec"), "11min", "{name}");
        assert!(
            unit.contains_key("Service.Nice") && unit.contains_key("Service.IOSchedulingClass"),
            "{name}"
        );
        for hindrance in [
            "PrivateDevices",
            "DeviceAllow",
            "DevicePolicy",
            "ProtectClock",
            "ProtectKernelModules",
        ] {
            assert!(
                !unit.contains_key(&format!("Service.{hindrance}")),
                "{name}: {hindrance} hides /dev/zfs"
            );
        }
        // A condition that does not hold passes for success: a night without a configuration must
        // fail.
        assert!(!unit.keys().any(|key| key.contains("Condition")), "{name}");
    }
}

#[test]
fn timers_make_up_for_a_missed_night() {
    for name in [
        "zfs-backup.timer",
        "zfs-backup@.timer",
        "zfs-backup-drill.timer",
    ] {
        let unit = unit(name);
        assert_eq!(one(&unit, "Timer.Persistent"), "true", "{name}");
        assert_eq!(one(&unit, "Install.WantedBy"), "timers.target", "{name}");
        assert!(
            unit.contains_key("Timer.OnCalendar") && unit.contains_key("Timer.RandomizedDelaySec"),
            "{name}"
        );
    }
}

#[test]
#[should_panic(expected = "is no assignment")]
fn unit_parser_panics_on_a_line_without_an_assignment() {
    parse("[Unit]\nAfter zfs.target\n");
}
