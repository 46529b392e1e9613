//! The checks of the store, as pure judgements of its probe and of the facts about its bucket.

use super::Check;
use crate::store::probe::{Ability, Deleting, Fact, LifecycleRule, Rights};
use crate::store::{BucketFacts, EvidenceTier, ObjectLock, S3Checksum, StoreProbe};

/// Clock skew from which stores refuse signatures: 15 minutes.
const SKEW_SECONDS_BAD: u64 = 900;
/// Clock skew from which a clock counts as unsynchronized. Ages and locks depend on clocks.
const SKEW_SECONDS_DOUBTFUL: u64 = 60;

/// The requirements of the configuration on the store.
#[derive(Debug, Clone, Default)]
pub struct StoreRequirements {
    /// The configured checksum.
    pub checksum: Option<S3Checksum>,
    /// The number of parts of the longest chunk.
    pub parts: u64,
    /// The lock that objects get.
    pub lock: Option<ObjectLock>,
    /// Whether rules of `[lifecycle-remote]` or `prune-remote` are used, so that some credentials
    /// must be able to delete.
    pub prunes: bool,
    /// Whether deletion has separate credentials.
    pub has_prune_credentials: bool,
    /// The age in days at which an unfinished upload is abandoned.
    pub resume_days: u32,
}

/// Returns the checks of a probe.
pub fn check_probe(probe: &StoreProbe, wanted: &StoreRequirements) -> Vec<Check> {
    let mut checks = vec![clock(probe)];
    checks.extend(checksum(probe, wanted));
    checks.push(conditions(probe));
    checks.push(uploads(probe));
    checks.push(deleting(probe, wanted));
    checks.push(parts(probe, wanted));
    if let [first, ..] = probe.left_behind.as_slice() {
        let text = format!(
            "the probe could not remove {} of the objects that it had put, such as {first}",
            probe.left_behind.len()
        );
        checks.push(Check::warning(
            "probe",
            text,
            "delete what lies under @zfs-backup/probe/ with other credentials",
        ));
    }
    checks.extend(
        probe
            .notes
            .iter()
            .map(|note| Check::note("request", format!("failed: {note}"))),
    );
    checks
}

fn clock(probe: &StoreProbe) -> Check {
    let subject = "clock";
    let Some(ahead) = probe.clock_ahead_seconds else {
        return Check::note(subject, "the store does not report its time");
    };
    let text = match ahead {
        -2..=2 => "this host and the store agree".to_owned(),
        3.. => format!("the store is {ahead} s ahead of this host"),
        _ => format!("the store is {} s behind this host", ahead.unsigned_abs()),
    };
    let advice = "set this host's clock, and synchronise it with NTP: ages and locks depend on it"
        .to_owned();
    match ahead.unsigned_abs() {
        SKEW_SECONDS_BAD.. => Check::bad(
            subject,
            format!("{text}: requests are refused"),
            Some(advice),
        ),
        SKEW_SECONDS_DOUBTFUL.. => Check::warning(subject, text, advice),
        _ => Check::good(subject, text),
    }
}

fn checksum(probe: &StoreProbe, wanted: &StoreRequirements) -> Option<Check> {
    let subject = "checksum";
    let best = probe.checksum?;
    let meaning = |tier| match tier {
        EvidenceTier::Crc64nvmeFull => "a CRC64NVME of every whole object",
        EvidenceTier::Sha256Composite => "the SHA-256 of the parts' SHA-256s",
        EvidenceTier::Crc32c => "a CRC32C of every whole object",
        EvidenceTier::Md5Etag => "an MD5 ETag",
        EvidenceTier::IdPin => "no checksum, but an id for every version",
        _ => "no checksum, only the size",
    };
    let found = format!("the store keeps {}", meaning(probe.tier));
    Some(match wanted.checksum {
        Some(given) if !probe.kept.contains(&given) && probe.kept.is_empty() => Check::warning(
            subject,
            format!("checksum = \"{given}\" is configured, and {found}"),
            "verify-checksums can compare the size only: use --read-data, or another provider",
        ),
        Some(given) if !probe.kept.contains(&given) => Check::warning(
            subject,
            format!(
                "checksum = \"{given}\" is configured, and the store does not keep it: {found}"
            ),
            format!("remove `checksum`, or write checksum = \"{best}\""),
        ),
        Some(given) if given != best => Check::note(
            subject,
            format!("{found}; checksum = \"{given}\" is configured and used"),
        ),
        _ if probe.kept.is_empty() => Check::warning(
            subject,
            found,
            "verify-checksums can compare nothing else: use --read-data from time to time",
        ),
        _ => Check::good(subject, format!("{found}: {}", strength(probe.tier))),
    })
}

fn strength(tier: EvidenceTier) -> &'static str {
    match tier {
        EvidenceTier::Sha256Composite => {
            "verify-checksums compares it; it reveals accidents and deliberate changes"
        }
        _ => "verify-checksums compares it; it reveals accidents, but not deliberate changes",
    }
}

fn conditions(probe: &StoreProbe) -> Check {
    let subject = "create-only";
    match (probe.conditional_put, probe.conditional_complete) {
        (Ability::Works, Ability::Works) => {
            Check::good(subject, "the store itself refuses to replace objects")
        }
        (put, complete) => {
            let found = match [put, complete].contains(&Ability::Unknown) {
                true => "cannot find out whether the store refuses to replace objects",
                false => "the store does not refuse to replace objects",
            };
            Check::note(
                subject,
                format!(
                    "{found} (put: {put}, upload: {complete}): each name is checked before and \
                     after an upload, and no name is used twice"
                ),
            )
        }
    }
}

fn uploads(probe: &StoreProbe) -> Check {
    let subject = "uploads";
    match (probe.list_uploads, probe.abort_uploads) {
        (Ability::Works, Ability::Works) => {
            Check::good(subject, "unfinished uploads are listed and can be removed")
        }
        (Ability::Unknown, _) | (_, Ability::Unknown) => Check::warning(
            subject,
            "cannot find out whether unfinished uploads are listed and can be removed: their \
             remains may cost money",
            "see the store's own messages; a lifecycle rule can remove unfinished uploads",
        ),
        (Ability::Works, _) => Check::warning(
            subject,
            "unfinished uploads are listed and cannot be removed: they cost money until someone \
             removes them",
            "allow s3:AbortMultipartUpload, or set a lifecycle rule that removes them",
        ),
        _ => Check::warning(
            subject,
            "unfinished uploads are not listed: the remains of interrupted uploads cannot be found",
            "allow s3:ListBucketMultipartUploads, or set a lifecycle rule that removes them",
        ),
    }
}

fn deleting(probe: &StoreProbe, wanted: &StoreRequirements) -> Check {
    let subject = "deleting";
    match probe.deleting {
        Deleting::Removes => may_delete("works; the bucket keeps no versions", wanted),
        Deleting::RemovesVersions => may_delete("works, for all versions of an object", wanted),
        Deleting::Refused if wanted.prunes && !wanted.has_prune_credentials => Check::warning(
            subject,
            "these credentials may not delete: prune-remote cannot work with them",
            "name credentials that may delete, under [prune]; keep these as they are: an attacker \
             on this host cannot delete backups with them",
        ),
        Deleting::Refused => Check::good(
            subject,
            "these credentials may not delete: an attacker on this host cannot delete backups",
        ),
        Deleting::Hides if wanted.prunes && !wanted.has_prune_credentials => Check::warning(
            subject,
            "these credentials can only hide objects: what prune-remote deletes stays stored and \
             costs money",
            "name credentials that may delete versions, under [prune], or set a lifecycle rule for hidden versions",
        ),
        Deleting::Hides => Check::good(
            subject,
            "these credentials can only hide objects: an attacker on this host cannot delete \
             backups",
        ),
        Deleting::Unknown => Check::warning(
            subject,
            "the probe could not find out whether deleting works",
            "see the store's own messages",
        ),
    }
}

/// Judges credentials that can delete. An attacker who controls a host with such credentials can
/// delete its backups too, unless they are locked.
fn may_delete(what: &str, wanted: &StoreRequirements) -> Check {
    let subject = "deleting";
    if wanted.lock.is_some() {
        return Check::good(subject, format!("{what}; object locks protect the backups"));
    }
    let advice = match wanted.has_prune_credentials {
        true => {
            "[prune] has credentials of its own: remove the right to delete from those of the \
             nightly runs"
        }
        false => {
            "nightly runs need no right to delete; name other credentials for pruning under \
             [prune]"
        }
    };
    let text = format!("{what}; an attacker on this host can delete the backups too");
    Check {
        advice: Some(advice.to_owned()),
        ..Check::note(subject, text)
    }
}

fn parts(probe: &StoreProbe, wanted: &StoreRequirements) -> Check {
    let subject = "parts";
    let Some(max) = probe.parts_max.map(u64::from) else {
        let text = "cannot find out how many parts the store accepts; parts of the longest chunk:";
        return Check::note(subject, format!("{text} {}", wanted.parts));
    };
    match wanted.parts <= max {
        true => Check::good(
            subject,
            format!(
                "{} for the longest chunk, the store accepts {max} or more",
                wanted.parts
            ),
        ),
        false => Check::bad(
            subject,
            format!(
                "a chunk has up to {} parts, and the store accepts {max}",
                wanted.parts
            ),
            Some("raise part_size or lower split_size".to_owned()),
        ),
    }
}

/// Returns the checks of the facts about the bucket.
pub fn check_bucket(
    facts: &BucketFacts,
    probe: Option<&StoreProbe>,
    wanted: &StoreRequirements,
) -> Vec<Check> {
    let mut checks = Vec::new();
    match &facts.visibility {
        Fact::Known(visibility) if visibility == "public" => checks.push(Check::warning(
            "bucket",
            "the bucket is public: everybody can read names, sizes and sealed chunks",
            "make the bucket private",
        )),
        Fact::Known(visibility) => checks.push(Check::good("bucket", visibility.clone())),
        Fact::Unknown(why) => {
            checks.push(Check::note(
                "bucket",
                format!("cannot find out whether the bucket is public: {why}"),
            ));
        }
    }
    let keeps_versions = probe.is_none_or(|probe| probe.deleting != Deleting::Removes);
    match &facts.lifecycle {
        Fact::Known(rules) => checks.extend(lifecycle(rules, keeps_versions, wanted)),
        Fact::Unknown(why) => checks.push(Check::note(
            "lifecycle",
            format!("cannot read the lifecycle rules of the bucket: {why}"),
        )),
    }
    let locks = probe.map(|probe| probe.object_lock).unwrap_or_default();
    checks.extend(object_lock(&facts.object_lock, locks, wanted));
    if let Fact::Known(rights) = &facts.rights {
        checks.extend(check_rights(rights, wanted));
    }
    checks
}

fn lifecycle(
    rules: &[LifecycleRule],
    keeps_versions: bool,
    wanted: &StoreRequirements,
) -> Vec<Check> {
    let subject = "lifecycle";
    let mut checks = Vec::new();
    for rule in rules {
        let name = if rule.name.is_empty() {
            format!("for {:?}", rule.prefix)
        } else {
            format!("{:?}", rule.name)
        };
        if let Some(after) = &rule.expires {
            let advice = Some(format!(
                "remove that rule: only prune-remote knows what a chain still needs; {FOR_HIDDEN}"
            ));
            checks.push(Check::bad(
                subject,
                format!("the rule {name} deletes or hides backups after {after}"),
                advice,
            ));
        }
        if let Some(class) = &rule.moves_to {
            let text = format!(
                "the rule {name} moves objects to {class}: small objects are read at every run"
            );
            checks.push(Check::warning(
                subject,
                text,
                "set storage_class instead, which is for chunks only",
            ));
        }
    }
    let whole = || rules.iter().filter(|rule| !rule.partial);
    let unfinished = whole().filter_map(|rule| rule.unfinished_days).min();
    match unfinished {
        Some(days) if days < wanted.resume_days => {
            let text = format!(
                "unfinished uploads are removed after {days} days, sooner than resume_days = {}",
                wanted.resume_days
            );
            checks.push(Check::note(subject, text));
        }
        Some(days) => checks.push(Check::good(
            subject,
            format!("unfinished uploads are removed after {days} days"),
        )),
        None => checks.push(Check::note(
            subject,
            "no rule removes unfinished uploads; prune-remote removes them; a rule would work even \
             if this host is lost",
        )),
    }
    if keeps_versions {
        match whole().filter_map(|rule| rule.hidden_days).min() {
            Some(days) => checks.push(Check::good(
                subject,
                format!("hidden versions are deleted after {days} days"),
            )),
            None => checks.push(Check::note(
                subject,
                format!("no rule deletes hidden versions; {FOR_HIDDEN}"),
            )),
        }
    }
    checks
}

const FOR_HIDDEN: &str = "a rule for hidden (noncurrent) versions alone does no harm";

/// Judges the bucket's setting, and the result of the upload with a lock (`locks`).
fn object_lock(fact: &Fact<bool>, locks: Ability, wanted: &StoreRequirements) -> Option<Check> {
    let subject = "object lock";
    let Some(lock) = wanted.lock else {
        let is_on = *fact == Fact::Known(true);
        return is_on.then(|| {
            Check::note(
                subject,
                "the bucket can lock objects; object_lock_days would protect backups from an \
                 attacker on this host",
            )
        });
    };
    let days = lock.days;
    let mode = lock.mode;
    Some(match (fact, locks) {
        (Fact::Known(false), _) => Check::bad(
            subject,
            format!("object_lock_days = {days} is configured, and the bucket has no object lock"),
            Some("switch object lock on for the bucket, or remove object_lock_days".to_owned()),
        ),
        (_, Ability::Ignored) => Check::bad(
            subject,
            format!(
                "object_lock_days = {days} is configured, and the store accepts an upload with a \
                 lock and shows no lock of the object"
            ),
            Some(
                "allow s3:GetObjectRetention; if the credentials have it, the store does not lock: \
                 remove object_lock_days, or use another provider"
                    .to_owned(),
            ),
        ),
        (_, Ability::Refused) => Check::warning(
            subject,
            format!(
                "object_lock_days = {days} is configured, and the store refused an upload with a \
                 short lock"
            ),
            "see the store's own message; s3:PutObjectRetention and s3:GetObjectRetention are \
             needed",
        ),
        (Fact::Known(true), _) | (_, Ability::Works) => Check::good(
            subject,
            format!("on; objects are locked for {days} days ({mode} mode)"),
        ),
        (Fact::Unknown(why), Ability::Unknown) => Check::warning(
            subject,
            format!("cannot find out whether the bucket has object lock: {why}"),
            "allow s3:GetBucketObjectLockConfiguration (B2: readBucketRetentions); the first \
             upload also finds it out",
        ),
    })
}

/// The rights that every backup needs of a B2 key.
const B2_NEEDED: [&str; 3] = ["listFiles", "readFiles", "writeFiles"];
const B2_LOCK: [&str; 2] = ["readFileRetentions", "writeFileRetentions"];
/// The rights that a host does not need for nightly backups.
const B2_TOO_MUCH: [&str; 6] = [
    "deleteBuckets",
    "writeBuckets",
    "writeKeys",
    "deleteKeys",
    "bypassGovernance",
    "writeBucketRetentions",
];

fn check_rights(rights: &Rights, wanted: &StoreRequirements) -> Vec<Check> {
    let subject = "key";
    let has = |name: &&&str| rights.may.iter().any(|may| may == *name);
    let missing: Vec<&str> = B2_NEEDED
        .iter()
        .chain(
            wanted
                .lock
                .is_some()
                .then_some(&B2_LOCK)
                .into_iter()
                .flatten(),
        )
        .filter(|name| !has(name))
        .copied()
        .collect();
    if !missing.is_empty() {
        let text = format!("the application key lacks {}", missing.join(", "));
        return vec![Check::bad(
            subject,
            text,
            Some("make an application key that has them".to_owned()),
        )];
    }
    let scope = match (&rights.buckets, &rights.prefix) {
        (None, _) => "every bucket of the account".to_owned(),
        (Some(buckets), None) => format!("the bucket {}", buckets.join(", ")),
        (Some(buckets), Some(prefix)) => format!("{} below {prefix:?}", buckets.join(", ")),
    };
    let mut too_much: Vec<&str> = B2_TOO_MUCH.iter().filter(has).copied().collect();
    if wanted.has_prune_credentials && has(&&"deleteFiles") {
        too_much.push("deleteFiles");
    }
    let text = format!("the application key is for {scope}");
    let ample = rights.buckets.is_none() || !too_much.is_empty();
    if !ample {
        return vec![Check::good(subject, text)];
    }
    let more = if too_much.is_empty() {
        String::new()
    } else {
        format!(" and may {}", too_much.join(", "))
    };
    let advice = "make a key for this bucket alone with listBuckets, listFiles, readFiles and writeFiles; deleting can \
                  have a key of its own under [prune]";
    vec![Check::warning(
        subject,
        format!("{text}{more}: more than a nightly backup needs"),
        advice,
    )]
}

#[cfg(test)]
mod tests {
    use super::super::CheckState::{self, Bad, Good, Note, Warning};
    use super::*;
    use crate::store::LockMode;

    fn good_probe() -> StoreProbe {
        StoreProbe {
            tier: EvidenceTier::Crc64nvmeFull,
            checksum: Some(S3Checksum::Crc64nvme),
            kept: vec![S3Checksum::Crc64nvme],
            conditional_put: Ability::Works,
            conditional_complete: Ability::Works,
            list_uploads: Ability::Works,
            abort_uploads: Ability::Works,
            deleting: Deleting::Removes,
            parts_max: Some(10_000),
            clock_ahead_seconds: Some(0),
            ..StoreProbe::default()
        }
    }

    fn states(checks: &[Check], subject: &str) -> Vec<CheckState> {
        checks
            .iter()
            .filter(|check| check.subject == subject)
            .map(|check| check.state)
            .collect()
    }

    #[test]
    fn fully_capable_store_passes_every_probe_check() {
        let lock = Some(ObjectLock {
            days: 30,
            mode: LockMode::Compliance,
            covers_chains: false,
        });
        let wanted = StoreRequirements {
            parts: 65,
            lock,
            ..StoreRequirements::default()
        };
        assert_eq!(
            states(
                &check_probe(
                    &good_probe(),
                    &StoreRequirements {
                        lock: None,
                        ..wanted.clone()
                    }
                ),
                "deleting"
            ),
            [Note]
        );
        let checks = check_probe(&good_probe(), &wanted);
        assert!(checks.iter().all(|check| check.state == Good), "{checks:?}");
    }

    #[test]
    fn each_missing_store_capability_is_reported_on_its_own_line() {
        let wanted = StoreRequirements {
            parts: 65,
            prunes: true,
            ..StoreRequirements::default()
        };
        let cases: [(&str, StoreProbe, CheckState); 15] = [
            (
                "clock",
                StoreProbe {
                    clock_ahead_seconds: Some(120),
                    ..good_probe()
                },
                Warning,
            ),
            (
                "clock",
                StoreProbe {
                    clock_ahead_seconds: Some(-1000),
                    ..good_probe()
                },
                Bad,
            ),
            (
                "clock",
                StoreProbe {
                    clock_ahead_seconds: None,
                    ..good_probe()
                },
                Note,
            ),
            (
                "checksum",
                StoreProbe {
                    kept: vec![],
                    tier: EvidenceTier::SizeOnly,
                    ..good_probe()
                },
                Warning,
            ),
            (
                "create-only",
                StoreProbe {
                    conditional_put: Ability::Ignored,
                    ..good_probe()
                },
                Note,
            ),
            (
                "create-only",
                StoreProbe {
                    conditional_complete: Ability::Refused,
                    ..good_probe()
                },
                Note,
            ),
            (
                "uploads",
                StoreProbe {
                    list_uploads: Ability::Refused,
                    ..good_probe()
                },
                Warning,
            ),
            (
                "uploads",
                StoreProbe {
                    abort_uploads: Ability::Refused,
                    ..good_probe()
                },
                Warning,
            ),
            (
                "deleting",
                StoreProbe {
                    deleting: Deleting::Refused,
                    ..good_probe()
                },
                Warning,
            ),
            (
                "deleting",
                StoreProbe {
                    deleting: Deleting::Hides,
                    ..good_probe()
                },
                Warning,
            ),
            (
                "parts",
                StoreProbe {
                    parts_max: Some(64),
                    ..good_probe()
                },
                Bad,
            ),
            (
                "parts",
                StoreProbe {
                    parts_max: None,
                    ..good_probe()
                },
                Note,
            ),
            (
                "create-only",
                StoreProbe {
                    conditional_put: Ability::Unknown,
                    ..good_probe()
                },
                Note,
            ),
            (
                "uploads",
                StoreProbe {
                    list_uploads: Ability::Unknown,
                    ..good_probe()
                },
                Warning,
            ),
            (
                "probe",
                StoreProbe {
                    left_behind: vec!["x".to_owned()],
                    ..good_probe()
                },
                Warning,
            ),
        ];
        for (subject, probe, state) in cases {
            assert_eq!(
                states(&check_probe(&probe, &wanted), subject),
                [state],
                "{subject}: {probe:?}"
            );
        }
        let no_prune = StoreRequirements {
            parts: 65,
            prunes: true,
            has_prune_credentials: true,
            ..StoreRequirements::default()
        };
        let refused = StoreProbe {
            deleting: Deleting::Refused,
            ..good_probe()
        };
        assert_eq!(
            states(&check_probe(&refused, &no_prune), "deleting"),
            [Good],
            "least privilege is no fault"
        );
    }

    #[test]
    fn unknown_answers_are_called_unknown_and_every_reason_is_printed() {
        let probe = StoreProbe {
            notes: vec!["a delete: InternalError (HTTP 500)".to_owned()],
            ..StoreProbe::default()
        };
        let checks = check_probe(&probe, &StoreRequirements::default());
        let says = |text: &str| checks.iter().any(|check| check.text.contains(text));
        for text in [
            "cannot find out whether the store refuses to replace objects",
            "cannot find out whether unfinished uploads are listed",
            "could not find out whether deleting works",
            "cannot find out how many parts the store accepts",
            "does not report its time",
            "InternalError (HTTP 500)",
        ] {
            assert!(says(text), "{text}: {checks:?}");
        }
        assert!(
            checks
                .iter()
                .all(|check| check.state != Bad && check.state != Good)
        );
    }

    #[test]
    fn locks_are_judged_by_the_setting_of_the_bucket_and_by_a_locked_upload() {
        let wanted = StoreRequirements {
            lock: Some(ObjectLock {
                days: 30,
                mode: LockMode::Governance,
                covers_chains: false,
            }),
            ..StoreRequirements::default()
        };
        let unknown = || Fact::Unknown("x".to_owned());
        for (object_lock, locks, state) in [
            (Fact::Known(true), Ability::Works, Good),
            (Fact::Known(true), Ability::Unknown, Good),
            (Fact::Known(true), Ability::Ignored, Bad),
            (Fact::Known(true), Ability::Refused, Warning),
            (Fact::Known(false), Ability::Unknown, Bad),
            (unknown(), Ability::Works, Good),
            (unknown(), Ability::Ignored, Bad),
            (unknown(), Ability::Unknown, Warning),
        ] {
            let check = super::object_lock(&object_lock, locks, &wanted).unwrap();
            assert_eq!(check.state, state, "{object_lock:?} {locks}");
            assert!(super::object_lock(&unknown(), locks, &StoreRequirements::default()).is_none());
        }
    }

    #[test]
    fn configured_checksum_is_kept_and_a_probe_conflict_is_a_warning() {
        use S3Checksum::{Crc64nvme, Md5, Sha256};
        for (given, kept, state, part) in [
            (Some(Sha256), vec![Crc64nvme], Warning, "does not keep it"),
            (
                Some(Sha256),
                vec![Crc64nvme, Sha256],
                Note,
                "is configured and used",
            ),
            (Some(Crc64nvme), vec![Crc64nvme], Good, "CRC64NVME"),
            (Some(Md5), vec![], Warning, "is configured"),
            (None, vec![Crc64nvme], Good, "CRC64NVME"),
        ] {
            let probe = StoreProbe {
                kept,
                ..good_probe()
            };
            let check = checksum(
                &probe,
                &StoreRequirements {
                    checksum: given,
                    ..StoreRequirements::default()
                },
            )
            .unwrap();
            assert!(
                check.state == state && check.text.contains(part),
                "{given:?}: {check:?}"
            );
        }
    }

    fn facts(rules: Vec<LifecycleRule>) -> BucketFacts {
        BucketFacts {
            visibility: Fact::Known("private".to_owned()),
            lifecycle: Fact::Known(rules),
            object_lock: Fact::Known(false),
            rights: Fact::Unknown("x".to_owned()),
        }
    }

    #[test]
    fn lifecycle_rule_is_bad_if_it_expires_backups_and_good_if_it_cleans_up() {
        let wanted = StoreRequirements {
            resume_days: 14,
            ..StoreRequirements::default()
        };
        let rule = |rule: LifecycleRule| {
            states(
                &check_bucket(&facts(vec![rule]), None, &wanted),
                "lifecycle",
            )
        };
        assert_eq!(
            states(&check_bucket(&facts(vec![]), None, &wanted), "lifecycle"),
            [Note, Note]
        );
        let expires = LifecycleRule {
            expires: Some("30 days".into()),
            ..LifecycleRule::default()
        };
        assert_eq!(rule(expires), [Bad, Note, Note]);
        let tidy = LifecycleRule {
            unfinished_days: Some(14),
            hidden_days: Some(1),
            ..LifecycleRule::default()
        };
        assert_eq!(rule(tidy.clone()), [Good, Good]);
        assert_eq!(
            rule(LifecycleRule {
                unfinished_days: Some(7),
                ..tidy.clone()
            }),
            [Note, Good]
        );
        assert_eq!(
            rule(LifecycleRule {
                partial: true,
                ..tidy.clone()
            }),
            [Note, Note],
            "it is for some names only"
        );
        assert_eq!(
            rule(LifecycleRule {
                moves_to: Some("GLACIER".into()),
                ..tidy
            }),
            [Warning, Good, Good]
        );
        let untold = BucketFacts {
            lifecycle: Fact::Unknown("AccessDenied".to_owned()),
            ..facts(vec![])
        };
        assert_eq!(
            states(&check_bucket(&untold, None, &wanted), "lifecycle"),
            [Note],
            "a refusal to say is no fault"
        );
        let public = BucketFacts {
            visibility: Fact::Known("public".to_owned()),
            ..facts(vec![])
        };
        assert_eq!(
            states(&check_bucket(&public, None, &wanted), "bucket"),
            [Warning]
        );
    }

    #[test]
    fn object_lock_requires_a_bucket_with_object_lock() {
        let lock = Some(ObjectLock {
            days: 30,
            mode: LockMode::Compliance,
            covers_chains: false,
        });
        for (told, lock, state) in [
            (Fact::Known(true), lock, vec![Good]),
            (Fact::Known(false), lock, vec![Bad]),
            (Fact::Unknown("x".to_owned()), lock, vec![Warning]),
            (Fact::Known(true), None, vec![Note]),
            (Fact::Known(false), None, vec![]),
        ] {
            let facts = BucketFacts {
                object_lock: told.clone(),
                ..facts(vec![])
            };
            let checks = check_bucket(
                &facts,
                None,
                &StoreRequirements {
                    lock,
                    ..StoreRequirements::default()
                },
            );
            assert_eq!(states(&checks, "object lock"), state, "{told:?} {lock:?}");
        }
    }

    #[test]
    fn key_with_missing_rights_is_bad_and_with_excess_rights_a_warning() {
        let rights = |may: &str, buckets: Option<&str>| Rights {
            may: may.split(' ').map(str::to_owned).collect(),
            buckets: buckets.map(|bucket| vec![bucket.to_owned()]),
            prefix: None,
        };
        let lock = Some(ObjectLock {
            days: 1,
            mode: LockMode::Governance,
            covers_chains: false,
        });
        let enough = "listBuckets listFiles readFiles writeFiles";
        for (may, bucket, lock, prune, state) in [
            (enough, Some("b"), None, false, Good),
            ("listFiles readFiles", Some("b"), None, false, Bad),
            (enough, Some("b"), lock, false, Bad),
            (enough, None, None, false, Warning),
            (
                "listFiles readFiles writeFiles writeKeys",
                Some("b"),
                None,
                false,
                Warning,
            ),
            (
                "listFiles readFiles writeFiles deleteFiles",
                Some("b"),
                None,
                false,
                Good,
            ),
            (
                "listFiles readFiles writeFiles deleteFiles",
                Some("b"),
                None,
                true,
                Warning,
            ),
        ] {
            let wanted = StoreRequirements {
                lock,
                has_prune_credentials: prune,
                ..StoreRequirements::default()
            };
            let checks = check_rights(&rights(may, bucket), &wanted);
            assert_eq!(states(&checks, "key"), [state], "{may} {bucket:?}");
        }
    }
}
