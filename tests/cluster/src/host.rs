//! One machine of a test: a network namespace, directories, and a daemon.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Inventory, Network, Output,
    command::run,
    network::Switch,
    process::{parent_of, processes, send},
    wait_for,
};

/// A machine with one daemon.
#[derive(Debug)]
pub struct Host {
    network: Network,
    pub(crate) dir: TempDir,
    pub(crate) daemon: Option<Child>,
    /// Further flags of the daemon.
    args: Vec<String>,
    /// Its own name, instead of the machine's.
    pub(crate) hostname: Option<String>,
    /// The switch it is plugged into, and the port's number.
    pub(crate) plug: Option<(Arc<Switch>, usize)>,
    binary: PathBuf,
    /// Variables of the daemon's environment.
    pub(crate) env: Vec<(String, String)>,
}

impl Host {
    /// A machine whose daemon runs as a cluster of one that listens on nothing but its socket.
    pub fn local() -> Self {
        Self::new().expect("make a host").into_local()
    }

    /// Starts the daemon as a cluster of one that listens on nothing but its socket.
    #[must_use]
    pub fn into_local(self) -> Self {
        let mut host = self;
        host.args.push("--local".to_owned());
        host.start();
        host
    }

    /// A machine whose daemon is not started yet.
    pub fn new() -> Result<Self> {
        // Short: the path of a unix socket has 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("shoal-")
            .tempdir_in("/tmp")?;
        Ok(Self {
            network: Network::new()?,
            dir,
            daemon: None,
            args: Vec::new(),
            hostname: None,
            plug: None,
            binary: binary(),
            env: Vec::new(),
        })
    }

    /// A machine at port `number` of a switch, with a name of its own.
    pub(crate) fn plugged(switch: &Arc<Switch>, number: usize, hostname: &str) -> Result<Self> {
        let mut host = Self::new()?;
        host.hostname = Some(hostname.to_owned());
        host.plug = Some((switch.clone(), number));
        switch.plug(number, &host.network)?;
        Ok(host)
    }

    /// Gives the daemon further flags. Before the start they are to count for.
    #[must_use]
    pub fn with_args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// The daemon logs no more than `info`: where there are many, all that `debug` tells would take their time.
    #[must_use]
    pub fn with_short_log(mut self) -> Self {
        let level = "info,openraft=warn".to_owned();
        self.env.push(("SHOAL_LOG".to_owned(), level));
        self
    }

    /// From the next start on, the daemon is this program.
    pub fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Starts the daemon and waits until it answers and, in local mode, its node takes tasks.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log file");
        let mut command = self.with_hostname();
        command
            .arg("daemon")
            .args(["--data-root", &self.data_root()])
            .args(["--exec-root", &self.path("run")])
            .args(["--pidfile", &self.path("pid"), "--host", &self.socket()])
            .args(&self.args)
            .env("SHOAL_LOG", "debug")
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .process_group(0);
        let mut daemon = command.spawn().expect("start the daemon");
        let local = self.args.iter().any(|arg| arg == "--local");
        wait_for(
            "the daemon to answer",
            || {
                if let Some(status) = daemon.try_wait().expect("waitable") {
                    panic!(
                        "the daemon ended with {status}; its log: {}",
                        tail(&self.log_path())
                    );
                }
                self.try_shoal(&["node", "ls", "--format", "{{.Status}}"])
                    .stdout
            },
            |nodes| {
                if local {
                    nodes.contains("Ready")
                } else {
                    self.try_shoal(&["info"]).status.success()
                }
            },
        );
        self.daemon = Some(daemon);
    }

    /// Ends the daemon with SIGKILL; what it started goes on.
    #[track_caller]
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().expect("kill the daemon");
        daemon.wait().expect("the daemon ended");
    }

    /// Ends the daemon with SIGTERM, as an upgrade does.
    #[track_caller]
    pub fn stop_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        send(daemon.id(), Signal::SIGTERM);
        wait_for(
            "the daemon to end",
            || daemon.try_wait().expect("waitable"),
            Option::is_some,
        );
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().map_or(0, Child::id)
    }

    /// Runs `shoal` against this host's daemon; fails the test when it fails.
    #[track_caller]
    pub fn shoal(&self, args: &[&str]) -> String {
        self.try_shoal(args).success(&format!("shoal {args:?}"))
    }

    pub fn try_shoal(&self, args: &[&str]) -> Output {
        run(self
            .in_network(&self.binary)
            .args(["--host", &self.socket()])
            .args(args))
    }

    /// Runs the docker CLI against this host's daemon; fails the test when it fails.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> String {
        self.try_docker(args).success(&format!("docker {args:?}"))
    }

    pub fn try_docker(&self, args: &[&str]) -> Output {
        let config = self.path("docker-config");
        run(self
            .in_network("docker")
            .args(["--config", &config, "--host", &self.socket()])
            .args(args))
    }

    /// The JSON that `shoal inspect`-like commands print.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.shoal(args)).expect("JSON")
    }

    /// What the Engine API answers; fails the test when it refuses.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let mut curl = self.in_network("curl");
        curl.args(["-sS", "--fail-with-body", "-X", method, "--unix-socket"])
            .arg(self.path("shoal.sock"));
        if let Some(body) = body {
            curl.args(["-H", "Content-Type: application/json", "--data"])
                .arg(body.to_string());
        }
        let answer =
            run(curl.arg(format!("http://shoal/v1.51{path}"))).success(&format!("{method} {path}"));
        serde_json::from_str(&answer).unwrap_or_default()
    }

    /// Every task of a service that is remembered.
    #[track_caller]
    pub fn tasks(&self, service: &str) -> Vec<Value> {
        // {"service":["…"]}
        let path = format!("/tasks?filters=%7B%22service%22:%5B%22{service}%22%5D%7D");
        match self.api("GET", &path, None) {
            Value::Array(tasks) => tasks,
            other => panic!("tasks of {service}: {other}"),
        }
    }

    /// `program`, to be run with this host's network.
    pub fn in_network(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.network.command(program)
    }

    /// GETs a URL from this host; the body, or why there is none.
    pub fn get(&self, url: &str) -> Result<String, String> {
        self.network.get(url)
    }

    /// The binary under test, to be run with this host's network and name.
    fn with_hostname(&self) -> Command {
        let Some(hostname) = &self.hostname else {
            return self.in_network(&self.binary);
        };
        let mut command = self.in_network("unshare");
        command
            .args(["--uts", "--", "sh", "-c", "hostname \"$0\" && exec \"$@\""])
            .arg(hostname)
            .arg(&self.binary);
        command
    }

    /// Pids of this host's tasks' first processes, by task name prefix.
    #[track_caller]
    pub fn task_pids(&self, service: &str) -> Vec<u32> {
        let ids = self.shoal(&[
            "service",
            "ps",
            "-q",
            "--no-trunc",
            "--filter",
            "desired-state=running",
            service,
        ]);
        ids.lines()
            .filter_map(|id| {
                let task = self.try_shoal(&["inspect", "--type", "task", id]);
                let task: Value = serde_json::from_str(&task.stdout).ok()?;
                let status = &task[0]["Status"];
                (status["State"] == "running").then_some(())?;
                u32::try_from(status["ContainerStatus"]["PID"].as_u64()?)
                    .ok()
                    .filter(|pid| *pid > 0)
            })
            .collect()
    }

    /// Waits until `service` has `count` running tasks, and returns their pids.
    #[track_caller]
    pub fn wait_running(&self, service: &str, count: usize) -> Vec<u32> {
        wait_for(
            &format!("{count} running tasks of {service}"),
            || self.task_pids(service),
            |pids| pids.len() == count,
        )
    }

    /// The pid of the process that holds this host's containers.
    #[track_caller]
    pub fn supervisor_pid(&self) -> u32 {
        let run = self.path("run");
        let pids = processes(|cmdline| {
            cmdline.get(1).is_some_and(|arg| arg == "supervisor")
                && cmdline.iter().any(|arg| arg.starts_with(&run))
        });
        // Containers that have not started their program yet still show their parent's command line.
        let parents: Vec<u32> = pids
            .iter()
            .copied()
            .filter(|pid| !pids.contains(&parent_of(*pid)))
            .collect();
        assert_eq!(parents.len(), 1, "exactly one supervisor: {pids:?}");
        parents[0]
    }

    /// Runs a service and takes it away again, so that what the daemon makes once and keeps (its own
    /// cgroups, the ingress network's tables) is there, and an [`Inventory`] shows only what must go.
    pub fn warm_up(&self) {
        self.shoal(&[
            "service",
            "create",
            "--detach",
            "--name",
            "warm-up",
            "--publish",
            "8079:80",
            "shoal/hello",
        ]);
        self.wait_running("warm-up", 1);
        self.shoal(&["service", "rm", "warm-up"]);
        wait_for(
            "the warm-up to be gone",
            || {
                (
                    self.shoal(&["ps", "--all", "--quiet"]),
                    self.get("http://127.0.0.1:8079/").is_ok(),
                )
            },
            |(containers, answered)| containers.is_empty() && !answered,
        );
    }

    pub fn inventory(&self) -> Inventory {
        Inventory::take(self)
    }

    /// The cgroups above those of the host's containers, one in each hierarchy that has one.
    pub fn parent_cgroups(&self) -> Vec<PathBuf> {
        let instance =
            fs::read_to_string(format!("{}/instance", self.data_root())).unwrap_or_default();
        if instance.trim().is_empty() {
            return Vec::new();
        }
        let root = Path::new("/sys/fs/cgroup");
        let inside = fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        std::iter::once(root.to_path_buf())
            .chain(inside)
            .map(|hierarchy| hierarchy.join(format!("shoal-{}", instance.trim())))
            .filter(|path| path.is_dir())
            .collect()
    }

    /// Waits until the host is as it was `before`.
    #[track_caller]
    pub fn wait_clean(&self, before: &Inventory) {
        wait_for(
            "nothing to be left",
            || self.inventory().changes_since(before),
            Vec::is_empty,
        );
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn netns(&self) -> &str {
        self.network.name()
    }

    pub fn socket(&self) -> String {
        format!("unix://{}", self.path("shoal.sock"))
    }

    /// Where the daemon keeps what outlives a boot.
    pub fn data_root(&self) -> String {
        let disk = self.dir().join("disk");
        if disk.exists() {
            disk.join("data").to_string_lossy().into_owned()
        } else {
            self.path("data")
        }
    }

    /// The path of `name` in the host's own directory.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// Ends the daemon and takes away everything it made.
    pub fn purge(&mut self) -> Result<()> {
        self.resume();
        self.restore_network()?;
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().context("kill the daemon")?;
            daemon.wait().context("wait for the daemon")?;
        }
        let mut purge = self.in_network(&self.binary);
        purge
            .arg("purge")
            .args(["--data-root", &self.data_root()])
            .args(["--exec-root", &self.path("run")]);
        let output = run(&mut purge);
        if !output.status.success() {
            bail!("purge failed: {}{}", output.stdout, output.stderr);
        }
        Ok(())
    }
}

impl AsRef<Network> for Host {
    fn as_ref(&self) -> &Network {
        &self.network
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            let name = self.hostname.as_deref().unwrap_or("the host");
            let kept = std::env::temp_dir().join(format!("{}.log", self.netns()));
            if fs::copy(self.log_path(), &kept).is_ok() {
                eprintln!("the log of the daemon of {name}: {}", kept.display());
            }
        }
        let purged = self.purge();
        let unmounted = self.eject_disk();
        if !thread::panicking() {
            purged.expect("nothing of the host stays");
            unmounted.expect("its disk goes");
        }
    }
}

/// The binary under test, which `cargo xtask test` builds beside the tests.
pub(crate) fn binary() -> PathBuf {
    let mut path = std::env::current_exe().expect("a test knows its path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("shoal");
    assert!(
        path.exists(),
        "{} is missing: run the tests by tests/run.sh",
        path.display()
    );
    path
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
