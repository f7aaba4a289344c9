//! One machine of a cluster: a sandbox that can lose power, and the daemon in it.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::hub::Hub;
use crate::{
    deadline::Deadline,
    http::Engine,
    sandbox::Sandbox,
    swarm::daemon::{Tools, text},
};

/// How long a daemon may take to come up; generous, because a slow start is not what is measured.
const START_LIMIT: Duration = Duration::from_mins(1);

/// In the sandbox's own `/run`.
const EXEC_ROOT: &str = "/run/engine";

/// Whose daemon runs on the nodes.
#[derive(Debug, Clone)]
pub(crate) enum Side {
    Shoal {
        program: PathBuf,
    },
    Dockerd {
        tools: Tools,
        /// The parent of its cgroups.
        cgroup: String,
    },
}

impl Side {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Shoal { .. } => "shoal",
            Self::Dockerd { .. } => "dockerd",
        }
    }

    pub(crate) fn is_shoal(&self) -> bool {
        matches!(self, Self::Shoal { .. })
    }

    fn program(&self) -> Result<PathBuf> {
        match self {
            Self::Shoal { program } => Ok(program.clone()),
            Self::Dockerd { tools, .. } => tools.find("dockerd"),
        }
    }

    fn args(&self, dir: &Path, number: usize) -> Vec<OsString> {
        let mut socket = OsString::from("unix://");
        socket.push(dir.join("sock"));
        let mut args: Vec<OsString> = match self {
            Self::Shoal { .. } => vec!["daemon".into()],
            Self::Dockerd { cgroup, .. } => vec![
                "--cgroup-parent".into(),
                format!("/{cgroup}/{number}").into(),
                "--storage-driver".into(),
                "overlay2".into(),
            ],
        };
        args.extend(["--host".into(), socket]);
        args.extend(["--pidfile".into(), "/run/engine.pid".into()]);
        args.extend(roots(dir));
        args
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        match self {
            Self::Shoal { .. } => Vec::new(),
            Self::Dockerd { tools, .. } => tools.environment(),
        }
    }
}

/// A node; its directory, with the daemon's data, outlives a loss of power.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) engine: Engine,
    /// Its id in the swarm, once it is in one.
    pub(crate) id: String,
    side: Side,
    /// Its tasks run in memory only.
    is_load: bool,
    dir: PathBuf,
    sandbox: Option<Sandbox>,
    boots: usize,
}

impl Node {
    /// Without power. `dir` is made.
    pub(crate) fn new(side: &Side, number: usize, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self {
            number,
            engine: Engine::new(&dir.join("sock")),
            id: String::new(),
            side: side.clone(),
            is_load: false,
            dir: dir.to_owned(),
            sandbox: None,
            boots: 0,
        })
    }

    /// One whose tasks run in memory only; of Shoal's side.
    pub(crate) fn load(side: &Side, number: usize, dir: &Path) -> Result<Self> {
        let mut node = Self::new(side, number, dir)?;
        node.is_load = true;
        Ok(node)
    }

    pub(crate) fn hostname(number: usize) -> String {
        format!("node{}", number + 1)
    }

    /// Switches the power on; the daemon starts.
    pub(crate) fn boot(&mut self, hub: &Hub) -> Result<()> {
        self.boots += 1;
        // What a machine that lost power leaves.
        if let Err(error) = fs::remove_file(self.dir.join("sock"))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).context("remove a socket of before");
        }
        let mut environment = self.side.environment();
        environment.push(("SANDBOX_NAME".into(), Self::hostname(self.number).into()));
        let mut args = self.side.args(&self.dir, self.number);
        if self.is_load {
            args.push("--null-runtime".into());
        }
        let sandbox = Sandbox::start(
            &self.dir.join(format!("boot{}", self.boots)),
            &self.side.program()?,
            &args,
            &environment,
        )?;
        hub.plug(self.number, sandbox.init())?;
        self.sandbox = Some(sandbox);
        Ok(())
    }

    /// Cuts the power: first nobody hears of it any more, then every process of it ends at once.
    pub(crate) fn cut_power(&mut self, hub: &Hub) -> Result<()> {
        hub.unplug(self.number)?;
        self.sandbox = None;
        self.engine = self.engine.another();
        Ok(())
    }

    pub(crate) fn sandbox(&mut self) -> Result<&mut Sandbox> {
        self.sandbox.as_mut().context("the node has power")
    }

    /// Waits until the daemon answers.
    pub(crate) async fn answers(&mut self) -> Result<()> {
        let limit = Deadline::after(START_LIMIT);
        loop {
            let sandbox = self.sandbox.as_mut().context("the node has power")?;
            sandbox.check()?;
            match self.engine.get("/_ping").await {
                Ok(_) => return Ok(()),
                Err(error) if limit.passed() => return Err(error.context(sandbox.log_tail())),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Learns the node's id in the swarm.
    pub(crate) async fn read_id(&mut self) -> Result<()> {
        let info = self.engine.get("/info").await?;
        text(&info["Swarm"]["NodeID"]).clone_into(&mut self.id);
        Ok(())
    }

    /// Ends the daemon and takes away what it made that does not go with the sandbox.
    fn purge(&mut self) -> Result<()> {
        // What runs in memory only has made nothing that does not go with the sandbox.
        let Side::Shoal { program } = &self.side else {
            return Ok(());
        };
        if self.is_load {
            return Ok(());
        }
        let Some(mut sandbox) = self.sandbox.take() else {
            return Ok(());
        };
        sandbox.kill_daemon()?;
        let mut args: Vec<OsString> = vec!["purge".into()];
        args.extend(roots(&self.dir));
        sandbox.run(program, &args)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.purge() {
            eprintln!(
                "bench: end of the daemon in {}: {error:#}",
                self.dir.display()
            );
        }
    }
}

fn roots(dir: &Path) -> [OsString; 4] {
    [
        "--data-root".into(),
        dir.join("data").into(),
        "--exec-root".into(),
        EXEC_ROOT.into(),
    ]
}
