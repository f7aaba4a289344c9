//! A node of its own for each test: directories, cgroup parent, supervisor, and a busybox image.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use shoal_runtime::{
    CreateRequest, EtcFiles, ExitStatus, LogConfig, LogLine, LogOptions, Rootfs, Runtime,
    RuntimeConfig, default_seccomp, default_spec,
};

/// Docker's default capabilities.
pub(crate) const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
static NODES: AtomicU32 = AtomicU32::new(0);
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Node {
    pub(crate) runtime: Runtime,
    pub(crate) config: RuntimeConfig,
    pub(crate) layers: PathBuf,
    directory: tempfile::TempDir,
    before: Traces,
}

/// What of this node the kernel and the file system know, sandboxes that wait for a container left out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    cgroups: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
}

impl Node {
    pub(crate) async fn start() -> Self {
        assert!(
            rustix_is_root(),
            "these tests make containers: run them as root"
        );
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::Builder::new()
            .prefix("shoal-rt")
            .tempdir()
            .expect("a temporary directory");
        let layers = directory.path().join("layers");
        install_busybox(&layers.join("base"));
        let config = RuntimeConfig {
            exec_root: directory.path().join("exec"),
            state_root: directory.path().join("state"),
            supervisor_exe: supervisor_exe(),
            cgroup_parent: format!("shoal-test-{}-{number}", std::process::id()),
        };
        let runtime = Runtime::open(config.clone())
            .await
            .expect("a supervisor starts");
        let before = traces(&config, directory.path());
        Self {
            runtime,
            config,
            layers,
            directory,
            before,
        }
    }

    /// A container that runs `args`.
    pub(crate) fn request(&self, args: &[&str]) -> CreateRequest {
        let mut spec = default_spec();
        let process = spec
            .process_mut()
            .as_mut()
            .expect("the default has a process");
        process.set_args(Some(args.iter().map(|word| (*word).to_owned()).collect()));
        spec.set_hostname(Some("box".to_owned()));
        CreateRequest {
            id: fresh_id(),
            spec,
            rootfs: Rootfs {
                layers_dir: self.layers.clone(),
                lower: vec!["base".to_owned()],
            },
            user: String::new(),
            groups: Vec::new(),
            etc: EtcFiles {
                hostname: b"box\n".to_vec(),
                hosts: b"127.0.0.1 localhost\n".to_vec(),
                resolv_conf: b"nameserver 127.0.0.11\n".to_vec(),
            },
            files: Vec::new(),
            log: LogConfig::default(),
            seccomp: Some(default_seccomp(DEFAULT_CAPABILITIES)),
            init: false,
        }
    }

    pub(crate) fn shell(&self, script: &str) -> CreateRequest {
        self.request(&["sh", "-c", script])
    }

    /// Creates and starts; the id.
    pub(crate) async fn run(&self, request: CreateRequest) -> String {
        let id = request.id.clone();
        self.runtime.create(request).await.expect("is created");
        self.runtime.start(&id).await.expect("starts");
        id
    }

    /// Runs a container to its end: its status and everything it wrote.
    pub(crate) async fn output(&self, request: CreateRequest) -> (ExitStatus, String) {
        let id = self.run(request).await;
        let status = within(self.runtime.wait(&id)).await.expect("ends");
        let text = self.text(&id).await;
        self.runtime.delete(&id).await.expect("is deleted");
        (status, text)
    }

    pub(crate) async fn text(&self, id: &str) -> String {
        let lines = self
            .lines(
                id,
                LogOptions {
                    stdout: true,
                    stderr: true,
                    ..LogOptions::default()
                },
            )
            .await;
        lines
            .into_iter()
            .map(|line| String::from_utf8(line.bytes).expect("UTF-8"))
            .collect()
    }

    pub(crate) async fn lines(&self, id: &str, options: LogOptions) -> Vec<LogLine> {
        let stream = self.runtime.logs(id, options);
        within(stream.map(|line| line.expect("a readable log")).collect()).await
    }

    /// Waits until the log of a container holds `text`.
    pub(crate) async fn wait_for_output(&self, id: &str, text: &str) {
        let mut seen = String::new();
        let deadline = Instant::now() + PATIENCE;
        while !seen.contains(text) {
            assert!(
                Instant::now() < deadline,
                "no {text:?} in the log, only {seen:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
            seen = self.text(id).await;
        }
    }

    /// Kills the supervisor as the kernel would, and waits until it is gone.
    pub(crate) async fn kill_supervisor(&self) -> u32 {
        let pid = self.runtime.supervisor_pid().await.expect("a supervisor");
        kill(pid);
        wait_for("the supervisor's death", || !alive(pid)).await;
        pid
    }

    pub(crate) async fn new_supervisor_than(&self, old: u32) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.runtime.supervisor_pid().await {
                Some(pid) if pid != old => return pid,
                last => assert!(
                    Instant::now() < deadline,
                    "no new supervisor, last seen: {last:?}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn traces(&self) -> Traces {
        traces(&self.config, self.directory.path())
    }

    /// Ends the supervisor and checks that nothing of any container is left.
    pub(crate) async fn finish(self) {
        for state in self.runtime.list().await.expect("a list") {
            self.runtime.delete(&state.id).await.expect("is deleted");
        }
        assert_eq!(self.traces(), self.before, "something is left");
        let pid = self.runtime.supervisor_pid().await.expect("a supervisor");
        self.runtime
            .shutdown_supervisor()
            .await
            .expect("shuts down");
        wait_for("the supervisor's end", || !alive(pid)).await;
        assert_eq!(cgroups(&self.config), BTreeSet::new());
        assert_eq!(self.sandboxes(), Vec::<PathBuf>::new());
    }

    /// The bundles of sandboxes that wait, or are being made.
    pub(crate) fn sandboxes(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.config.exec_root.join("warm"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Whether a container was made in a sandbox.
    pub(crate) fn is_of_sandbox(&self, id: &str) -> bool {
        let bundle = self.config.exec_root.join("containers").join(id);
        assert!(bundle.is_dir(), "there is no container {id}");
        bundle.join("group").exists()
    }

    /// Creates and starts a container in a sandbox: what `request` gives, until there is one that was ready; the id.
    pub(crate) async fn run_in_sandbox(&self, request: impl Fn() -> CreateRequest) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let id = self.run(request()).await;
            if self.is_of_sandbox(&id) {
                return id;
            }
            assert!(Instant::now() < deadline, "no sandbox is ever ready");
            self.runtime.delete(&id).await.expect("is deleted");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whatever a failed test left.
impl Drop for Node {
    fn drop(&mut self) {
        let parent = &self.config.cgroup_parent;
        for root in cgroup_roots() {
            for entry in fs::read_dir(root.join(parent))
                .into_iter()
                .flatten()
                .flatten()
            {
                let _ = fs::write(entry.path().join("cgroup.kill"), "1");
            }
        }
        for pid in pids() {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&format!("--cgroup-parent\0{parent}\0")) {
                kill(pid);
            }
        }
        for root in cgroup_roots() {
            for entry in fs::read_dir(root.join(parent))
                .into_iter()
                .flatten()
                .flatten()
            {
                let deadline = Instant::now() + Duration::from_secs(1);
                while entry.path().is_dir()
                    && fs::remove_dir(entry.path()).is_err()
                    && Instant::now() < deadline
                {}
            }
            let _ = fs::remove_dir(root.join(parent));
        }
    }
}

fn rustix_is_root() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("Uid:\t0\t"))
}

fn supervisor_exe() -> PathBuf {
    let own = std::env::current_exe().expect("our executable");
    let target = own
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps");
    let exe = target.join("examples/supervisor");
    assert!(
        exe.exists(),
        "{} is missing: run `cargo build -p shoal-runtime --example supervisor`",
        exe.display()
    );
    exe
}

fn install_busybox(root: &Path) {
    let busybox = ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox is missing: run `apt-get install busybox-static`");
    for directory in [
        "bin", "etc", "proc", "sys", "dev", "tmp", "root", "home/app",
    ] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::copy(busybox, root.join("bin/busybox")).expect("a copy");
    for applet in [
        "sh", "cat", "echo", "id", "ls", "mount", "sleep", "true", "false", "ps", "seq", "touch",
        "hostname", "head", "tail", "grep", "insmod", "mknod", "dd", "kill", "printf", "pwd",
        "stat", "ip", "wc", "umount", "yes", "env", "test", "ln", "awk", "tr", "readlink", "find",
        "chroot", "unshare", "cut", "nc", "mkdir", "sync", "usleep",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
    )
    .expect("passwd");
    fs::write(
        root.join("etc/group"),
        "root:x:0:\napp:x:1001:\nextra:x:2000:app\n",
    )
    .expect("group");
}

pub(crate) fn fresh_id() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{:032x}{:032x}", std::process::id(), number)
}

pub(crate) fn cgroup_roots() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let lines = text.lines().filter(|line| line.contains(" - cgroup"));
    lines
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

fn traces(config: &RuntimeConfig, directory: &Path) -> Traces {
    let waits = |path: &PathBuf| {
        path.components()
            .any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"warm-"))
    };
    let mut cgroups = cgroups(config);
    cgroups.retain(|path| !waits(path));
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let own = directory.to_str().expect("UTF-8");
    let mounts = text
        .lines()
        .filter(|line| line.contains(own))
        .map(str::to_owned)
        .collect();
    let mut files = BTreeSet::new();
    for root in [&config.exec_root, &config.state_root] {
        walk(root, &mut files);
    }
    files.retain(|path| !waits(path));
    Traces {
        cgroups,
        mounts,
        files,
    }
}

/// All groups of the node's.
fn cgroups(config: &RuntimeConfig) -> BTreeSet<PathBuf> {
    let parents = cgroup_roots().into_iter();
    let parents = parents.map(|root| root.join(&config.cgroup_parent));
    let entries = parents.filter_map(|parent| fs::read_dir(parent).ok());
    let paths = entries.flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}

fn walk(directory: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), files);
        }
        files.insert(entry.path());
    }
}

pub(crate) fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z') && !rest.starts_with('X'))
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

pub(crate) async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it takes too long")
}
