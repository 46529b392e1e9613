//! [`Scene`]: a folder with a configuration, and the program run with it.

use std::fs::{self, Permissions};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything here may take before the test fails rather than hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// One configuration in a folder of its own.
pub(crate) struct Scene {
    folder: TempDir,
    remote: String,
    /// Whether the silent remote was connected to.
    is_asked: Arc<AtomicBool>,
}

impl Scene {
    /// With these steps and an empty folder as remote.
    pub(crate) fn new(steps: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let remote = format!("file:{}", folder.path().join("store").display());
        fs::create_dir(folder.path().join("store")).unwrap();
        let scene = Self {
            folder,
            remote,
            is_asked: Arc::default(),
        };
        scene.configure("", steps, "");
        scene
    }

    /// With a remote that takes every request and answers none, so that a step that asks it takes
    /// for ever.
    pub(crate) fn with_silent_remote(main: impl Fn(&Self) -> String, steps: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!(
            "[s3]\nendpoint = \"http://{}\"\n",
            listener.local_addr().unwrap()
        );
        let is_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_asked);
        // The thread ends with the test.
        std::thread::spawn(move || {
            let mut open: Vec<TcpStream> = Vec::new();
            for stream in listener.incoming() {
                asked.store(true, Ordering::SeqCst);
                open.extend(stream);
            }
        });
        let scene = Self {
            folder: TempDir::new().unwrap(),
            remote: "s3:bucket/x".to_owned(),
            is_asked,
        };
        let main = main(&scene);
        scene.configure(&main, steps, &endpoint);
        scene
    }

    /// Writes the configuration anew, with more lines in `[main]` and after it.
    pub(crate) fn configure(&self, main: &str, steps: &[&str], rest: &str) {
        let steps: String = steps
            .iter()
            .zip(1..)
            .map(|(step, n)| format!("step{n:02} = \"{step}\"\n"))
            .collect();
        let (remote, lock) = (&self.remote, self.lock());
        let text = format!(
            "[main]\nzfs_fs = \"no-such-pool/a\"\nencryption_passphrase = \"x\"\nremote = \"{remote}\"\n\
             lock_file = \"{}\"\n{main}\n[backup-sequence]\n{steps}\n{rest}",
            lock.display(),
        );
        fs::write(self.path("zb.toml"), text).unwrap();
        fs::set_permissions(self.path("zb.toml"), Permissions::from_mode(0o600)).unwrap();
    }

    /// Waits until a step asks the silent remote.
    pub(crate) fn wait_until_asked(&self) {
        wait_until("the remote is asked", || {
            self.is_asked.load(Ordering::SeqCst)
        });
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.path("zb.lock")
    }

    /// A line of `[main]` that sets a hook to a script, which finds its folder in `$D`.
    pub(crate) fn hook(&self, key: &str, script: &str) -> String {
        let file = self.path(&format!("{key}.sh"));
        fs::write(
            &file,
            format!(
                "#!/bin/sh\nD='{}'\n{script}\n",
                self.folder.path().display()
            ),
        )
        .unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o700)).unwrap();
        format!("{key} = \"{}\"\n", file.display())
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
        command.arg("-c").arg(self.path("zb.toml")).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
            .env("AWS_ACCESS_KEY_ID", "a")
            .env("AWS_SECRET_ACCESS_KEY", "b")
            .env_remove("AWS_PROFILE");
        command
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.command(arguments).output().unwrap();
        Ended::new(&output, &self.path(""))
    }

    /// Starts the program and leaves it at work.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running {
            child: Some(self.command(arguments).spawn().unwrap()),
            said: Vec::new(),
            folder: self.path(""),
        }
    }

    /// What a file in the folder says, once it is there and not empty.
    pub(crate) fn wait_for(&self, name: &str) -> String {
        let found = || {
            fs::read_to_string(self.path(name))
                .ok()
                .filter(|text| text.ends_with('\n'))
        };
        wait_until(&format!("{name} is there"), || found().is_some());
        found().unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

/// A program that was started; killed if the test fails meanwhile.
pub(crate) struct Running {
    child: Option<Child>,
    /// The bytes that were read from the program's standard error.
    said: Vec<u8>,
    folder: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Reads its standard error until it has said this.
    #[track_caller]
    pub(crate) fn wait_for_words(&mut self, words: &str) {
        let stderr = self.child.as_mut().unwrap().stderr.as_mut().unwrap();
        let mut byte = [0];
        while !String::from_utf8_lossy(&self.said).contains(words) {
            let said = String::from_utf8_lossy(&self.said).into_owned();
            assert_eq!(
                stderr.read(&mut byte).unwrap(),
                1,
                "no {words:?} in: {said}"
            );
            self.said.push(byte[0]);
        }
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("the program does not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut output = child.wait_with_output().unwrap();
        output.stderr = [&self.said[..], &output.stderr].concat();
        Ended::new(&output, &self.folder)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How the program ended, with the folder's name as `DIR`.
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    fn new(output: &Output, folder: &Path) -> Self {
        let folder = folder.display().to_string();
        let text = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).replace(folder.trim_end_matches('/'), "DIR")
        };
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(!stderr.contains("panicked"), "{stderr}");
        Self {
            status: output.status.code(),
            stdout,
            stderr,
        }
    }

    /// That it ended so, and said all this.
    #[track_caller]
    pub(crate) fn check(&self, status: i32, needles: &[&str]) {
        let Self { stdout, stderr, .. } = self;
        assert_eq!(self.status, Some(status), "\n{stderr}{stdout}");
        for needle in needles {
            assert!(
                stdout.contains(needle) || stderr.contains(needle),
                "no {needle:?} in:\n{stderr}{stdout}"
            );
        }
    }
}

/// Waits until something holds, for as long as is reasonable.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process is there and has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
