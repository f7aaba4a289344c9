//! The two daemons, each a cluster of one in a sandbox.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{deadline::Deadline, http::Engine, sandbox::Sandbox};

/// How long a daemon may take to come up; generous, because a slow start is not what is measured.
const START_LIMIT: Duration = Duration::from_mins(1);

/// In the sandbox's own `/run`, as both have it by default.
const EXEC_ROOT: &str = "/run/engine";

/// Where the peers were unpacked.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) directory: PathBuf,
}

impl Tools {
    const BIN: [&str; 6] = [
        "bin",
        "usr/local/sbin",
        "usr/local/bin",
        "usr/sbin",
        "usr/bin",
        "sbin",
    ];

    /// A program, unpacked or installed.
    pub(crate) fn find(&self, program: &str) -> Result<PathBuf> {
        let unpacked = Self::BIN.iter().map(|bin| self.directory.join(bin));
        let installed = Self::BIN.iter().map(|bin| Path::new("/").join(bin));
        unpacked
            .chain(installed)
            .map(|directory| directory.join(program))
            .find(|path| path.is_file())
            .with_context(|| format!("{program} is missing: run bench/run.sh, which gets it"))
    }

    /// What an unpacked program needs to find its own libraries and helpers.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        let join = |parts: Vec<PathBuf>| {
            let parts: Vec<_> = parts.iter().map(|part| part.as_os_str()).collect();
            parts.join(OsString::from(":").as_os_str())
        };
        let programs = Self::BIN.iter().map(|bin| self.directory.join(bin));
        let installed = Self::BIN.iter().map(|bin| Path::new("/").join(bin));
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        let libraries = ["usr/lib", "lib"].map(|lib| self.directory.join(lib).join(&triplet));
        let mut environment = vec![
            ("PATH".into(), join(programs.chain(installed).collect())),
            ("LD_LIBRARY_PATH".into(), join(libraries.to_vec())),
        ];
        let xtables = libraries[0].join("xtables");
        if xtables.is_dir() {
            environment.push(("XTABLES_LIBDIR".into(), xtables.into()));
        }
        environment
    }
}

/// A daemon that answers, with the image and the network that services use.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) engine: Engine,
    pub(crate) sandbox: Sandbox,
    /// The id of the image: by a name, dockerd would first ask a registry for every task.
    pub(crate) image: String,
    dir: PathBuf,
    /// Takes away, inside of the sandbox, what the daemon made; `None` when that all goes with the sandbox.
    purge: Option<PathBuf>,
}

impl Daemon {
    /// dockerd with its own containerd, and a swarm of one node.
    pub(crate) async fn dockerd(
        dir: &Path,
        tools: &Tools,
        cgroup: &str,
        image: &[u8],
    ) -> Result<Self> {
        let mut args = common_args(dir);
        args.extend(["--cgroup-parent".into(), format!("/{cgroup}").into()]);
        args.extend(["--storage-driver", "overlay2"].map(OsString::from));
        let sandbox = Sandbox::start(dir, &tools.find("dockerd")?, &args, &tools.environment())?;
        let mut daemon = Self::new(dir, sandbox, None);
        daemon.wait_answering().await?;
        let init = json!({ "ListenAddr": "127.0.0.1:2377", "AdvertiseAddr": "127.0.0.1" });
        daemon.engine.post("/swarm/init", &init).await?;
        daemon.prepare(image).await?;
        Ok(daemon)
    }

    /// `shoal daemon --local`, which is a cluster of one from the start.
    pub(crate) async fn shoal(dir: &Path, shoal: &Path, image: &[u8]) -> Result<Self> {
        let mut args = vec!["daemon".into(), "--local".into()];
        args.extend(common_args(dir));
        let sandbox = Sandbox::start(dir, shoal, &args, &[])?;
        let mut daemon = Self::new(dir, sandbox, Some(shoal.to_owned()));
        daemon.wait_answering().await?;
        daemon.prepare(image).await?;
        Ok(daemon)
    }

    fn new(dir: &Path, sandbox: Sandbox, purge: Option<PathBuf>) -> Self {
        Self {
            engine: Engine::new(&dir.join("sock")),
            sandbox,
            image: String::new(),
            dir: dir.to_owned(),
            purge,
        }
    }

    /// Name and version, as the daemon tells.
    pub(crate) async fn version(&mut self) -> Result<String> {
        let version = self.engine.get("/version").await?;
        Ok(text(&version["Version"]).to_owned())
    }

    /// What containerd was told to run for a container of dockerd's with all of Docker's defaults, limits for
    /// memory, processes and time, and an empty network: the peers' runtimes are measured with the same.
    pub(crate) async fn container_config(&mut self) -> Result<Value> {
        let body = json!({
            "Image": self.image,
            "Cmd": ["sleep", "1000000"],
            "HostConfig": {
                "NetworkMode": "none",
                "CgroupnsMode": "private",
                "Memory": 256 << 20,
                "CpuPeriod": 100_000,
                "CpuQuota": 50_000,
                "PidsLimit": 100,
            },
        });
        let container = self.engine.post("/containers/create", &body).await?;
        let id = text(&container["Id"]).to_owned();
        let nothing = json!({});
        self.engine
            .post(&format!("/containers/{id}/start"), &nothing)
            .await?;
        let path = self.sandbox.path(&format!(
            "{EXEC_ROOT}/containerd/daemon/io.containerd.runtime.v2.task/moby/{id}/config.json"
        ));
        let config = fs::read(&path).with_context(|| format!("read {}", path.display()));
        self.engine
            .delete(&format!("/containers/{id}?force=1"))
            .await?;
        serde_json::from_slice(&config?).context("read dockerd's container config")
    }

    /// Ends the daemon and takes away what it made; for Shoal by its own `purge`.
    pub(crate) fn end(mut self) -> Result<()> {
        self.purge()
    }

    fn purge(&mut self) -> Result<()> {
        let Some(shoal) = self.purge.take() else {
            return Ok(());
        };
        self.sandbox.kill_daemon()?;
        let mut args: Vec<OsString> = vec!["purge".into()];
        args.extend(roots(&self.dir));
        self.sandbox.run(&shoal, &args)
    }

    /// Waits until the daemon answers.
    async fn wait_answering(&mut self) -> Result<()> {
        let limit = Deadline::after(START_LIMIT);
        loop {
            self.sandbox.check()?;
            match self.engine.get("/_ping").await {
                Ok(_) => return Ok(()),
                Err(error) if limit.passed() => {
                    return Err(error.context(self.sandbox.log_tail()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Waits until the node takes tasks, then makes the image and the network.
    async fn prepare(&mut self, image: &[u8]) -> Result<()> {
        let limit = Deadline::after(START_LIMIT);
        loop {
            let nodes = self.engine.get("/nodes").await;
            let ready = |nodes: &Value| nodes[0]["Status"]["State"] == "ready";
            match nodes {
                Ok(nodes) if ready(&nodes) => break,
                Err(error) if limit.passed() => return Err(error),
                Ok(nodes) if limit.passed() => bail!("the node is not ready: {nodes}"),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        let import = "/images/create?fromSrc=-&repo=shoal-bench&tag=busybox";
        let answer = self.engine.post_tar(import, image.to_vec()).await?;
        let image = self.engine.get("/images/shoal-bench:busybox/json").await;
        let image = image.with_context(|| format!("import of the image answered {answer}"))?;
        text(&image["Id"]).clone_into(&mut self.image);
        ensure!(!self.image.is_empty(), "the image has no id");
        // Docker's default of a /24 ends at some 250 tasks.
        let network = json!({
            "Name": super::workload::NETWORK,
            "Driver": "overlay",
            "IPAM": { "Config": [{ "Subnet": "10.77.0.0/16" }] },
        });
        self.engine.post("/networks/create", &network).await?;
        Ok(())
    }
}

impl Drop for Daemon {
    /// After a failure or an interruption, as [`Daemon::end`].
    fn drop(&mut self) {
        if let Err(error) = self.purge() {
            eprintln!(
                "bench: end of the daemon in {}: {error:#}",
                self.dir.display()
            );
        }
    }
}

/// The flags that both daemons understand.
fn common_args(dir: &Path) -> Vec<OsString> {
    let mut socket = OsString::from("unix://");
    socket.push(dir.join("sock"));
    let mut args = vec!["--host".into(), socket];
    args.extend(["--pidfile".into(), dir.join("pid").into()]);
    args.extend(roots(dir));
    args
}

fn roots(dir: &Path) -> [OsString; 4] {
    [
        "--data-root".into(),
        dir.join("data").into(),
        "--exec-root".into(),
        EXEC_ROOT.into(),
    ]
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
