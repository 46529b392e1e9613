//! What people see: every kind of problem as a screen, the notices, the merged configuration, the
//! advice.

use super::*;
use insta::assert_snapshot;

#[test]
fn an_empty_file_lacks_everything() {
    assert_snapshot!(screen(""), @r#"
    zb.toml: main.zfs_fs is missing
      expected: the dataset to back up, or a list of them
      hint: zfs_fs = "tank/photos"
    zb.toml: main.encryption_passphrase_file is missing
      expected: a way to encrypt: encryption_passphrase (or _file, or _command), or encryption_recipients
      hint: nothing is ever stored unencrypted
    zb.toml: main.remote is missing
      expected: a store: remote, or intermediate_basedir, or both
      hint: remote = "s3:bucket/prefix"
    "#);
}

#[test]
fn all_configuration_problems_are_reported_in_line_order() {
    let text = "[main]\nzfs_fs = \"tank@x\"\nsplit_sise = \"1G\"\nremote = 7\nsplit_size = \"1X\"\n\
        [send]\nraw = \"sometimes\"\ncompressed = \"yes\"\nconcurrency = 4\n[sned]\n";
    assert_snapshot!(screen(text), @r#"
    zb.toml:1: main.encryption_passphrase_file is missing
      expected: a way to encrypt: encryption_passphrase (or _file, or _command), or encryption_recipients
      hint: nothing is ever stored unencrypted
    zb.toml:2: main.zfs_fs is "tank@x"
      expected: a dataset name: pool/path of letters, digits, space and -_.: without @ and a leading slash
    zb.toml:3: main.split_sise is not a known key
      hint: did you mean `split_size`?
    zb.toml:4: main.remote is a number
      expected: text in quotes
    zb.toml:5: main.split_size is "1X"
      expected: a size such as 1G, 64M or 512K (binary multiples), or a number of bytes
    zb.toml:7: send.raw is "sometimes"
      expected: one of auto, always, never
    zb.toml:8: send.compressed is text
      expected: true or false, without quotes
    zb.toml:9: send.concurrency is not a known key
      hint: it belongs in [s3] or [b2]
    zb.toml:10: [sned] is not a known section
      hint: did you mean `[send]`?
    "#);
}

#[test]
fn ini_is_recognised() {
    assert_snapshot!(screen("[main]\n; the old one\nzfs_fs = data/photos\nrecursive = yes\n"), @r"
    zb.toml: this looks like the INI form of older tools, not like TOML
      hint: run `zfs-backup config convert FILE`, which writes it as TOML
    ");
}

#[test]
fn toml_with_a_typing_error_is_not_mistaken_for_ini() {
    assert_snapshot!(screen(&with("split_size = 1G\nstate_dir = \"/x", "")), @r#"
    zb.toml:5: this is not TOML: string values must be quoted, expected literal string
      hint: text needs quotes: split_size = "1G"
    zb.toml:6: this is not TOML: invalid basic string, expected `"`
    "#);
}

#[test]
fn a_key_given_twice_is_named() {
    assert_snapshot!(screen(&with("remote = \"file:/x\"", "")), @r"
    zb.toml:5: this is not TOML: duplicate key
      hint: `remote` is set twice: keep one of them
    ");
}

#[test]
fn keys_outside_sections_and_unknown_sections_are_refused() {
    assert_snapshot!(screen(&format!("zfs_fs = \"tank\"\nfrobnicate = 1\nsend = 2\n{}", with("", "[backup_sequence]\n[foo]"))), @r"
    zb.toml:1: zfs_fs is outside all sections
      hint: it belongs in [main]
    zb.toml:2: frobnicate is not a known key, and is outside all sections
    zb.toml:3: send is a section
      expected: keys below a line of its name in brackets
    zb.toml:9: [backup_sequence] is not a known section
      hint: did you mean `[backup-sequence]`?
    zb.toml:10: [foo] is not a known section
    ");
}

#[test]
fn names_with_dots_are_reported_with_their_lines() {
    let text = format!("\"a.b\" = 1\n{}", with("\"c.d\" = 1", "[\"e.f\"]"));
    assert_snapshot!(screen(&text), @r"
    zb.toml:1: a.b is not a known key, and is outside all sections
    zb.toml:6: main.c.d is not a known key
    zb.toml:7: [e.f] is not a known section
    ");
}

#[test]
fn key_in_the_wrong_section_is_refused_with_its_right_section() {
    assert_snapshot!(screen(&with("part_size = \"16M\"\nprofile = \"x\"", "[send]\nbwlimit = \"1M\"")), @r"
    zb.toml:5: main.part_size is not a known key
      hint: it belongs in [s3] or [b2]
    zb.toml:6: main.profile is not a known key
      hint: it belongs in [s3] or [prune]
    zb.toml:8: send.bwlimit is not a known key
      hint: it belongs in [main]
    ");
}

#[test]
fn sizes_out_of_range_are_refused_with_the_range() {
    let text = with(
        "split_size = 0",
        "[s3]\npart_size = \"4M\"\nconcurrency = 0",
    );
    assert_snapshot!(screen(&text), @r"
    zb.toml:5: main.split_size is 0
      expected: a size from 64K to 5T
    zb.toml:7: s3.part_size is 4M
      expected: a size from 5M to 5G
    zb.toml:8: s3.concurrency is 0
      expected: a whole number from 1 to 64, without quotes
    ");
    assert_snapshot!(screen(&with("split_size = \"6T\"", "")), @r"
    zb.toml:5: main.split_size is 6T
      expected: a size from 64K to 5T
    ");
    assert_snapshot!(screen(&with("split_size = -1", "[s3]\nconcurrency = \"4\"\npart_size = \"16MB\"")), @r#"
    zb.toml:5: main.split_size is -1
      expected: a size such as "1G"
    zb.toml:7: s3.concurrency is text
      expected: a whole number from 1 to 64, without quotes
    zb.toml:8: s3.part_size is "16MB"
      expected: a size such as 1G, 64M or 512K (binary multiples), or a number of bytes
      hint: write "16M"
    "#);
}

#[test]
fn too_many_parts_per_chunk_are_refused() {
    assert_snapshot!(screen(&with("split_size = \"1T\"", "")), @r#"
    zb.toml:5: main.split_size makes 131617 parts of 8M for one chunk
      expected: at most 10000
      hint: lower split_size, or write part_size = "1053M" (memory grows with it)
    "#);
    assert_snapshot!(screen(&with("split_size = \"1T\"", "[s3]\npart_size = \"5M\"")), @r#"
    zb.toml:7: s3.part_size makes 210586 parts of 5M for one chunk
      expected: at most 10000
      hint: lower split_size, or write part_size = "1053M" (memory grows with it)
    "#);
}

#[test]
fn configuration_without_encryption_and_store_is_refused() {
    assert_snapshot!(screen("[main]\nzfs_fs = \"tank\"\n"), @r#"
    zb.toml:1: main.encryption_passphrase_file is missing
      expected: a way to encrypt: encryption_passphrase (or _file, or _command), or encryption_recipients
      hint: nothing is ever stored unencrypted
    zb.toml:1: main.remote is missing
      expected: a store: remote, or intermediate_basedir, or both
      hint: remote = "s3:bucket/prefix"
    "#);
}

#[test]
fn two_ways_to_encrypt_are_refused() {
    let text = with(
        &format!("encryption_passphrase = \"x\"\nencryption_recipients = [\"{RECIPIENT}\"]"),
        "",
    );
    assert_snapshot!(screen(&text), @r"
    zb.toml:1: main.signing_key_file is missing
      expected: the file of a minisign secret key, because with encryption_recipients no keyring has one
      hint: `minisign -G -W` makes a key pair without a password
    zb.toml:1: main.verify_keys is missing
      expected: the public half of the signing key, because without it nothing that is stored can be checked
      hint: it is the last line of the .pub file that minisign wrote
    zb.toml:4: main.encryption_passphrase_file conflicts with main.encryption_passphrase
      expected: only one of them
      hint: remove `encryption_passphrase_file` or the other one
    zb.toml:6: main.encryption_recipients conflicts with main.encryption_passphrase
      expected: only one of them
      hint: keep the passphrase on hosts that restore, the recipients on hosts that only back up
    ");
}

#[test]
fn recipients_need_a_signing_key() {
    let main = format!(
        "zfs_fs = \"tank\"\nremote = \"file:/x\"\nencryption_recipients = [\"{RECIPIENT}\"]"
    );
    assert_snapshot!(screen(&format!("[main]\n{main}\n")), @r"
    zb.toml:1: main.signing_key_file is missing
      expected: the file of a minisign secret key, because with encryption_recipients no keyring has one
      hint: `minisign -G -W` makes a key pair without a password
    zb.toml:1: main.verify_keys is missing
      expected: the public half of the signing key, because without it nothing that is stored can be checked
      hint: it is the last line of the .pub file that minisign wrote
    ");
}

#[test]
fn invalid_encryption_keys() {
    let text = "[main]\nzfs_fs = \"tank\"\nremote = \"file:/x\"\n\
        encryption_recipients = [\"age1short\", \"ssh-ed25519 AAAA\"]\nsigning_key_file = \"key\"\nverify_keys = \"RWx\"\n";
    assert_snapshot!(screen(text), @r#"
    zb.toml:4: main.encryption_recipients has "age1short"
      expected: an age recipient, age1... of 62 characters
    zb.toml:4: main.encryption_recipients has "ssh-ed25519 AAAA"
      expected: an age recipient, age1... of 62 characters
    zb.toml:5: main.signing_key_file is "key"
      expected: an absolute path, or ${CREDENTIALS_DIRECTORY}/NAME for a systemd credential
    zb.toml:6: main.verify_keys is "RWx"
      expected: a minisign public key, 56 characters that begin with RW
    "#);
}

#[test]
fn a_secret_identity_is_not_repeated() {
    let text = "[main]\nzfs_fs = \"tank\"\nremote = \"file:/x\"\n\
        encryption_recipients = [\"AGE-SECRET-KEY-1QQQQ\"]\nsigning_key_file = \"/s\"\nverify_keys = []\n";
    let screen = screen(text);
    assert!(!screen.contains("1QQQQ"));
    assert_snapshot!(screen, @r"
    zb.toml:4: main.encryption_recipients has a secret identity
      expected: its public half, age1...
      hint: the public half is the `# public key:` line of the identity file; keep the identity elsewhere
    ");
}

#[test]
fn a_passphrase_of_the_wrong_type_is_not_repeated() {
    let text = "[main]\nzfs_fs = \"tank\"\nremote = \"file:/x\"\nencryption_passphrase = 4711\n";
    let screen = screen(text);
    assert!(!screen.contains("4711"));
    assert_snapshot!(screen, @r"
    zb.toml:4: main.encryption_passphrase is a number
      expected: text in quotes
    ");
}

#[test]
fn rclone_keys_without_an_rclone_remote_are_refused() {
    let main = "rclone_conf = \"/r\"\nrclone_bwlimit = \"8M\"\nrclone_args = [\"--transfers=2\"]";
    assert_snapshot!(screen(&with(main, "")), @r"
    zb.toml:5: main.rclone_conf is only for a remote of the form rclone:REMOTE:PATH
      hint: the credentials of a native remote belong in [s3] or [b2]
    zb.toml:6: main.rclone_bwlimit is only for a remote of the form rclone:REMOTE:PATH
      hint: the native key is `bwlimit`
    zb.toml:7: main.rclone_args is only for a remote of the form rclone:REMOTE:PATH
      hint: the native keys are `part_size` and `concurrency` in [s3] or [b2]
    ");
}

#[test]
fn forbidden_arguments_for_rclone() {
    let text = "[main]\nzfs_fs = \"t\"\nencryption_passphrase = \"x\"\nremote = \"rclone:gdrive:zb\"\n\
        rclone_args = [\"--fast-list\", \"--include=*.age\", \"-v\", \"--b2-key=K005secret\"]\n";
    assert_snapshot!(screen(text), @r"
    zb.toml:5: main.rclone_args cannot be passed to rclone: argument 2: --include could hide objects, and what seems to be missing may be made again or deleted
    zb.toml:5: main.rclone_args cannot be passed to rclone: argument 3: it is neither `--name` nor `--name=value`, which each argument must be
    zb.toml:5: main.rclone_args cannot be passed to rclone: argument 4: --b2-key may be a secret, and every user of this host can read it: put it into rclone.conf
    ");
}

#[test]
fn malformed_remotes_are_refused_with_a_hint() {
    let remote = |remote: &str| {
        screen(&format!(
            "[main]\nzfs_fs = \"t\"\nencryption_passphrase = \"x\"\nremote = \"{remote}\"\n"
        ))
    };
    assert_snapshot!(remote("s3://bucket/x"), @r#"
    zb.toml:4: main.remote is "s3://bucket/x"
      expected: s3:bucket/prefix, b2:bucket/prefix, file:/dir or rclone:REMOTE:PATH
      hint: write "s3:bucket/x"
    "#);
    assert_snapshot!(remote("gdrive:x"), @r#"
    zb.toml:4: main.remote is "gdrive:x"
      expected: s3:bucket/prefix, b2:bucket/prefix, file:/dir or rclone:REMOTE:PATH
      hint: for a remote of rclone.conf write "rclone:gdrive:x"
    "#);
    assert_snapshot!(remote("file:x"), @r#"
    zb.toml:4: main.remote is "file:x"
      expected: file:/dir, an absolute path without `..`
    "#);
}

#[test]
fn incomplete_credentials() {
    let rest = "[s3]\nprofile = \"x\"\naccess_key_id_file = \"/id\"\nendpoint = \"s3.example.org\"\nchecksum = \"crc32\"\nstorage_class = \"glacier\"";
    assert_snapshot!(screen(&with("", rest)), @r#"
    zb.toml:6: s3.secret_access_key_file is missing
      expected: the other half of access_key_id_file
    zb.toml:7: s3.profile conflicts with access_key_id_file and secret_access_key_file
      expected: only one of them
    zb.toml:9: s3.endpoint is "s3.example.org"
      expected: a URL, https://HOST, https://HOST:PORT or https://HOST/PATH, without a bucket in it
      hint: write "https://s3.example.org"
    zb.toml:10: s3.checksum is "crc32"
      expected: one of auto, crc64nvme, sha256, crc32c, md5
    zb.toml:11: s3.storage_class is "glacier"
      expected: a storage class such as STANDARD_IA, in capitals
      hint: write "GLACIER"
    "#);
}

#[test]
fn server_side_encryption_keys_do_not_contradict_each_other() {
    let rest = "[s3]\nserver_side_encryption = \"aes\"\nkms_key_id = \"a b\"\nsse_customer_key_file = \"key\"";
    assert_snapshot!(screen(&with("", rest)), @r#"
    zb.toml:7: s3.server_side_encryption is "aes"
      expected: AES256, aws:kms or aws:kms:dsse
    zb.toml:8: s3.kms_key_id is "a b"
      expected: the id or the ARN of a key of the key service
    zb.toml:9: s3.sse_customer_key_file is "key"
      expected: an absolute path, or ${CREDENTIALS_DIRECTORY}/NAME for a systemd credential
    zb.toml:9: s3.sse_customer_key_file conflicts with server_side_encryption
      expected: only one of them
    "#);
    let rest = "[s3]\nserver_side_encryption = \"AES256\"\nkms_key_id = \"1234\"\nsse_customer_key_file = \"/k\"";
    assert_snapshot!(screen(&with("", rest)), @r#"
    zb.toml:8: s3.kms_key_id has no effect without a server_side_encryption that uses it
      hint: write server_side_encryption = "aws:kms"
    zb.toml:9: s3.sse_customer_key_file conflicts with server_side_encryption
      expected: only one of them
    "#);
    assert_snapshot!(screen(&with("", "[s3]\nkms_key_id = \"1234\"")), @r#"
    zb.toml:7: s3.kms_key_id has no effect without a server_side_encryption that uses it
      hint: write server_side_encryption = "aws:kms"
    "#);
    let shown = |rest: &str| {
        let config = parse(&with("", rest)).unwrap();
        format!("{:?}", config.s3.encryption)
    };
    let rest = "[s3]\nserver_side_encryption = \"aws:kms:dsse\"\nkms_key_id = \"arn:aws:kms:eu-west-1:1:key/2\"";
    assert_snapshot!(shown(rest), @r#"Some(Managed { kind: KmsDsse, kms_key_id: Some("arn:aws:kms:eu-west-1:1:key/2") })"#);
    assert_snapshot!(shown("[s3]\nsse_customer_key_file = \"/etc/zfs-backup/sse\""), @r#"Some(Customer(Path("/etc/zfs-backup/sse")))"#);
}

#[test]
fn endpoint_may_have_a_path_but_not_the_bucket() {
    let endpoint = |text: &str| with("", &format!("[s3]\nendpoint = \"{text}\""));
    let read = |text: &str| parse(&endpoint(text)).unwrap().s3.endpoint.unwrap();
    assert_eq!(read("https://h/storage/v1/s3/"), "https://h/storage/v1/s3");
    assert_eq!(read("http://[::1]:9000"), "http://[::1]:9000");
    assert_snapshot!(screen(&endpoint("https://h/s3/bucket")), @r#"
    zb.toml:7: s3.endpoint ends with the bucket "bucket", which `remote` names
      hint: write "https://h/s3"
    "#);
    for wrong in [
        "https://h//s3",
        "https://h/s3?x=y",
        "https://user@h/s3",
        "https://h/a b",
        "ftp://h",
        "https://",
    ] {
        assert!(
            screen(&endpoint(wrong)).contains("https://HOST/PATH"),
            "{wrong}"
        );
    }
}

#[test]
fn a_lock_has_days_and_a_mode() {
    let rest = "[s3]\nobject_lock_mode = \"forever\"\nobject_lock_days = 36501";
    assert_snapshot!(screen(&with("", rest)), @r#"
    zb.toml:7: s3.object_lock_mode is "forever"
      expected: governance or compliance
    zb.toml:8: s3.object_lock_days is 36501
      expected: a whole number from 0 to 36500, without quotes
    "#);
    assert_snapshot!(screen(&with("", "[s3]\nobject_lock_mode = \"compliance\"")), @r"
    zb.toml:7: s3.object_lock_mode has no effect without object_lock_days
    ");
    let lock = |rest: &str| {
        let config = parse(&with("", &format!("[s3]\nobject_lock_days = 90\n{rest}"))).unwrap();
        config
            .object_lock()
            .map(|lock| (lock.days, lock.covers_chains))
    };
    assert_eq!(lock(""), Some((90, false)));
    assert_eq!(
        lock("[backup-lifecycle]\nfull_every = \"90d\""),
        Some((90, true))
    );
    assert_eq!(
        lock("[backup-lifecycle]\nfull_every = \"91d\""),
        Some((90, false))
    );
    assert_eq!(
        parse(&with("", "[s3]\nobject_lock_days = 0"))
            .unwrap()
            .object_lock(),
        None
    );
}

#[test]
fn relative_paths_and_programs_are_refused() {
    let main = "intermediate_basedir = \"x\"\nstate_dir = \"~/x\"\nlock_file = \"/a/../b\"\n\
        on_failure = \"mail -s failed root\"\npre_snapshot = \"/bin/sh -c 'x\"\nhook_timeout = \"10\"";
    assert_snapshot!(screen(&with(main, "")), @r#"
    zb.toml:5: main.intermediate_basedir is "x"
      expected: an absolute path without `..`
    zb.toml:6: main.state_dir is "~/x"
      expected: an absolute path without `..`
    zb.toml:7: main.lock_file is "/a/../b"
      expected: an absolute path without `..`
    zb.toml:8: main.on_failure is "mail -s failed root"
      expected: the absolute path of a program, and its arguments
      hint: `command -v mail` prints the path
    zb.toml:9: main.pre_snapshot is "/bin/sh -c 'x"
      expected: a command line whose quotes are closed, split as a shell would
    zb.toml:10: main.hook_timeout is "10"
      expected: a duration such as 30s, 10m, 2h or 1d (m = minutes), at most 365d
    "#);
}

#[test]
fn names_that_zfs_would_refuse_are_refused() {
    let main =
        "snapshot_prefix = \"a/b@\"\nstore_as = \"x@y\"\nexclude = [\"[\"]\nuse_snapshots = \"{\"";
    assert_snapshot!(screen(&with(main, "")), @r#"
    zb.toml:5: main.snapshot_prefix is "a/b@"
      expected: one or more letters, digits and -_.: because the prefix marks own snapshots
    zb.toml:6: main.store_as is "x@y"
      expected: a name in the form of a dataset name
    zb.toml:7: main.exclude has "["
      expected: glob patterns such as "tank/scratch/*"
    zb.toml:7: main.exclude has no effect without recursive = true
    zb.toml:8: main.use_snapshots is "{"
      expected: "own", or a glob such as "autosnap_*_daily"
    "#);
    let long = "x".repeat(230);
    let screen = screen(&with(&format!("snapshot_prefix = \"{long}\""), ""));
    assert_snapshot!(screen, @r"
    zb.toml:5: main.snapshot_prefix is too long for tank/photos
      expected: names of at most 255 bytes with it
    ");
}

#[test]
fn invalid_bandwidth_and_time_limits_are_refused() {
    let main = "bwlimit = \"fast\"\nwindow = \"23-07\"\nmax_runtime = \"0s\"\nresume_days = 0\nretry_for = 30";
    assert_snapshot!(screen(&with(main, "")), @r#"
    zb.toml:5: main.bwlimit is "fast"
      expected: bytes per second such as 20M, or times with limits such as "08:00,512K 19:00,20M"
    zb.toml:6: main.window is "23-07"
      expected: two different times of day such as "23:00-07:00"
    zb.toml:7: main.max_runtime is "0s"
      expected: at least 1s
    zb.toml:8: main.resume_days is 0
      expected: a whole number from 1 to 3650, without quotes
    zb.toml:9: main.retry_for is a number
      expected: text in quotes
    "#);
}

#[test]
fn retention_rules_that_keep_nothing_are_refused() {
    let rest = "[lifecycle-remote]\nkeep-last-chains = 0\nkeep-full-with-age-closest-to = []";
    assert_snapshot!(screen(&with("", rest)), @r"
    zb.toml:6: [lifecycle-remote] has rules that keep nothing
      expected: at least one that keeps
      hint: to keep everything remove the section; to keep the newest chain write keep-last-chains = 1
    ");
}

#[test]
fn misplaced_or_malformed_retention_rules_are_refused() {
    let rest = "[lifecycle-remote]\nkeep-last-incremental-only = 1\nkeep-last-chain = 1\n\
        keep-full-with-age-closest-to = [\"6M\", \"1y\"]\nkeep-within = 90";
    assert_snapshot!(screen(&with("", rest)), @r#"
    zb.toml:7: lifecycle-remote.keep-last-incremental-only is only for an intermediate directory with a remote: an incremental in the remote is worth nothing without what it depends on
      hint: use keep-last-chains, or keep-within
    zb.toml:8: lifecycle-remote.keep-last-chain is not a known key
      hint: did you mean `keep-last-chains`?
    zb.toml:9: lifecycle-remote.keep-full-with-age-closest-to has "6M"
      expected: ages such as "1w", "6m", "1y" (m = 30 days, y = 365 days)
    zb.toml:10: lifecycle-remote.keep-within is a number
      expected: text in quotes
    "#);
    let alone = "[main]\nzfs_fs = \"t\"\nencryption_passphrase = \"x\"\nintermediate_basedir = \"/x\"\n\
        [lifecycle-intermediate]\nkeep-last-incremental-only = 1\n";
    assert_snapshot!(screen(alone), @r"
    zb.toml:6: lifecycle-intermediate.keep-last-incremental-only is only for an intermediate directory with a remote: without a remote the intermediate directory has the only copy of what incrementals depend on
      hint: use keep-last-chains, or keep-within
    ");
}

#[test]
fn invalid_steps() {
    let rest = "[backup-sequence]\nstep1 = \"lock\"\nstep01 = \"snapshot\"\nstep2 = \"\"\nlast = \"unlock\"\n\
        step3 = \"upload-intermediate-to-remove\"\nremote = \"x\"";
    assert_snapshot!(screen(&with("", rest)), @r#"
    zb.toml:7: backup-sequence.step1 has the same number as step01
      expected: each number once
    zb.toml:9: backup-sequence.step2 is ""
      expected: a command line of this program
    zb.toml:10: backup-sequence.last is not a known key
      hint: steps are called step01, step02, ... and run in the order of their numbers
    zb.toml:11: backup-sequence.step3 is "upload-intermediate-to-remove"
      expected: a command of this program
      hint: did you mean `upload-intermediate-to-remote`?
    zb.toml:12: backup-sequence.remote is not a known key
      hint: it belongs in [main]
    "#);
}

#[test]
fn both_stores_in_one_folder_are_refused() {
    let text = "[main]\nzfs_fs = [\"t\", \"t\"]\nencryption_passphrase = \"x\"\n\
        intermediate_basedir = \"/srv\"\nremote = \"file:/srv/backup\"\n";
    assert_snapshot!(screen(text), @r#"
    zb.toml:2: main.zfs_fs names "t" twice
      expected: each dataset once
    zb.toml:5: main.remote lies in the same folder as intermediate_basedir
      expected: two places
    "#);
}

#[test]
fn keys_with_an_effect_cause_no_notice() {
    assert_snapshot!(notices(EXAMPLE), @"");
    assert_snapshot!(notices(&with("recursive = true\nexclude = [\"t/*\"]\nuse_snapshots = \"auto_*\"\nstore_as = \"x\"\nmax_runtime = \"8h\"", "")), @"");
}

#[test]
fn bandwidth_limit_for_a_folder_causes_a_notice() {
    let text = "[main]\nzfs_fs = \"t\"\nencryption_passphrase = \"x\"\nremote = \"file:/srv/x\"\nbwlimit = \"1M\"\n";
    assert_snapshot!(notices(text), @"main.bwlimit has no effect: what is written into a folder is not limited");
    let down = text.replace("bwlimit", "bwlimit_down");
    assert_snapshot!(notices(&down), @"main.bwlimit_down has no effect: what is read from a folder is not limited");
    let text = text.replace("bwlimit = \"1M\"", "retry_for = 0");
    assert_snapshot!(notices(&text), @"main.retry_for has no effect: no command waits for a folder that does not answer");
}

#[test]
fn sections_without_effect_are_named() {
    let text = "[main]\nzfs_fs = \"t\"\nencryption_passphrase = \"x\"\nremote = \"b2:bucket\"\n\
        [s3]\nregion = \"x\"\n[lifecycle-intermediate]\nkeep-last-chains = 1\n";
    assert_snapshot!(notices(text), @r"
    [s3] has no effect: the remote is b2:bucket
    [lifecycle-intermediate] has no effect: there is no intermediate_basedir
    ");
    assert_snapshot!(notices(&with("split_size = \"64G\"", "")), @r#"
    main.split_size makes 8227 parts for one chunk, and some stores take only 1000: lower split_size, or write part_size = "66M" (memory grows with it)
    "#);
}

#[test]
fn the_merged_configuration_hides_secrets_and_marks_defaults() {
    let text =
        "[main]\nzfs_fs = \"tank\"\nencryption_passphrase = \"hunter2\"\nremote = \"s3:bucket\"\n";
    let shown = parse(text).unwrap().to_display_toml();
    assert!(!shown.contains("hunter2"));
    assert_snapshot!(shown, @r#"
    # /etc/zfs-backup/zfs-backup.toml, merged with the defaults

    [main]
    zfs_fs = ["tank"]
    recursive = false  # default
    exclude = []  # default
    encryption_passphrase = "(hidden)"
    split_size = "1G"  # default
    remote = "s3:bucket"
    retry_for = "30m"  # default
    parallel_datasets = 4  # default
    snapshot_prefix = "zfs-backup_"  # default
    use_snapshots = "own"  # default
    snapshot_unchanged = true  # default
    skip_unchanged = true  # default
    hook_timeout = "10m"  # default
    lock_file = "/var/lib/zfs-backup/zfs-backup.lock"  # default
    state_dir = "/var/lib/zfs-backup"  # default
    resume_days = 14  # default

    [s3]
    path_style = false  # default
    checksum = "auto"  # default
    part_size = "8M"  # default
    concurrency = 4  # default

    [send]
    raw = "auto"  # default
    compressed = true  # default
    embedded = false  # default
    compression = "none"  # default

    [backup-lifecycle]
    full_when_incrementals_exceed = "50%"  # default
    auto_full_max = "100G"  # default

    [backup-sequence]
    step01 = "lock"  # default
    step02 = "snapshot"  # default
    step03 = "stream-to-remote"  # default
    step04 = "verify-checksums"  # default
    step05 = "unlock"  # default
    "#);
}

#[test]
fn advice_says_what_a_configuration_costs() {
    let advice = |text: &str| -> String {
        let lines = parse(text).unwrap().check_advice();
        lines
            .iter()
            .map(|line| format!("{}: {}\n", line.subject, line.text))
            .collect()
    };
    assert_snapshot!(advice(EXAMPLE), @r"
    memory: at most 368M: parts of 32M x (8 in flight + 2) + 48M
    requests: 1T of stream is 1024 chunks and about 35840 upload requests, 33 parts a chunk
    evidence: verify-checksums compares the SHA-256 of each chunk's part SHA-256s, computed by the store
    full: at 20M a second, the slowest limit of the day, 1T takes 15 hours
    zfs key: an encrypted dataset is sent raw: to read it after a restore the ZFS key must survive too, apart from this host
    passphrase: it has fewer than 16 characters; anyone who copies the keyring from the store can try passphrases offline
    backups: each backup is an incremental on the one before, until the incrementals of a chain hold more than 50% of its full, or the full is 90d old, or the chain has 365 incrementals; then a full
    remote retention: these stay, with all that they build on: the 1 newest chains, whole, the 3 newest fulls
    intermediate retention: these stay, with all that they build on: the 1 newest fulls, the 1 newest incrementals, the fulls nearest to the ages 1w, 6m, 1y
    lock: nobody without a special permission can delete what is stored for 30 days, and prune-remote waits for it; each commit extends the locks of its chain; a store that cannot do that will be refused
    ");
    let local = "[main]\nzfs_fs = \"t\"\nencryption_passphrase_file = \"/k\"\nintermediate_basedir = \"/x\"\n";
    assert_snapshot!(advice(local), @r"
    memory: at most 96M: parts of 8M x (4 in flight + 2) + 48M
    zfs key: an encrypted dataset is sent raw: to read it after a restore the ZFS key must survive too, apart from this host
    backups: each backup is an incremental on the one before, until the incrementals of a chain hold more than 50% of its full; then a full
    intermediate retention: every backup stays: there is no rule
    copies: no remote is configured: all backups are on this host and are lost with it
    ");
    let strong = advice(&format!(
        "{local}[send]\ncompression = \"zstd:12,long=25\"\n"
    ));
    assert_snapshot!(strong.lines().next().unwrap(), @"memory: at most 368M: parts of 8M x (4 in flight + 2) + 48M + 272M for zstd:12,long=25");
    let b2 = |more: &str| {
        let main =
            "[main]\nzfs_fs = \"t\"\nencryption_passphrase_file = \"/k\"\nremote = \"b2:bucket\"\n";
        let lines = advice(&format!("{main}{more}"));
        lines
            .lines()
            .find(|line| line.starts_with("evidence"))
            .unwrap()
            .to_owned()
    };
    assert_snapshot!(b2("split_size = \"7M\"\n"), @"evidence: verify-checksums compares the SHA-1 that B2 itself computed of each chunk, which is uploaded in one request (against accidents; a restore checks BLAKE3 too)");
    assert_snapshot!(b2(""), @r#"evidence: B2 checks the SHA-1 of each part of a chunk and keeps none of the whole: verify-checksums compares the file's id, whose content never changes, and its size. For a SHA-1 of B2's own write split_size = "7M", or part_size = "1029M" (memory grows with it)"#);
    assert_snapshot!(b2("[b2]\npart_size = \"100M\"\nspool_dir = \"/s\"\n"), @r#"evidence: B2 checks the SHA-1 of each part of a chunk and keeps none of the whole: verify-checksums compares the file's id, whose content never changes, and its size; the SHA-1 of the whole is computed in spool_dir and stored with the file, and B2 does not check it. For a SHA-1 of B2's own write split_size = "99M", or part_size = "1029M" (memory grows with it)"#);
}
