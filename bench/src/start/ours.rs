//! Our runtime, through its library, as the node's agent uses it.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use shoal_runtime::{
    CreateRequest, EtcFiles, LogConfig, LogOptions, Rootfs, Runtime, RuntimeConfig, default_spec,
};
use tokio::task::JoinSet;

use super::{
    Plan, Sample,
    bundle::{Files, HOSTNAME, HOSTS, PROGRAM, RESOLV_CONF},
    monotonic, stamp,
};

/// The capabilities of a container that asks for none, by number (capabilities(7)): `CapEff` in a container of dockerd's.
const DOCKER_CAPABILITIES: u64 = 0xa804_25fb;

#[derive(Debug, Clone)]
pub(super) struct OurRuntime {
    runtime: Runtime,
    /// Of which every request differs in its id only.
    request: CreateRequest,
    count: Arc<AtomicUsize>,
}

impl OurRuntime {
    pub(super) async fn open(plan: &Plan, files: &Files) -> Result<Self> {
        let runtime = Runtime::open(RuntimeConfig {
            // In the sandbox's own, as crun and runc keep theirs by default.
            exec_root: "/run/shoal".into(),
            state_root: plan.dir.join("state"),
            supervisor_exe: std::env::current_exe().context("the path of this program")?,
            cgroup_parent: plan.cgroup.clone(),
        })
        .await
        .context("open the runtime")?;
        Ok(Self {
            runtime,
            request: request(plan, files)?,
            count: Arc::default(),
        })
    }

    /// Runs one container from the request to its deletion. Reading what it printed is left out of the time.
    pub(super) async fn run(&self) -> Result<Sample> {
        Box::pin(self.run_one(self.next())).await
    }

    /// The same for a container that no sandbox is made ahead for, if it is not asked for several times in a row: what
    /// is hidden is hidden in another order.
    pub(super) async fn run_cold(&self) -> Result<Sample> {
        let mut request = self.next();
        let mut hidden = request.spec.linux().clone().unwrap_or_default();
        let mut paths = hidden.masked_paths().clone().unwrap_or_default();
        paths.reverse();
        hidden.set_masked_paths(Some(paths));
        request.spec.set_linux(Some(hidden));
        Box::pin(self.run_one(request)).await
    }

    async fn run_one(&self, request: CreateRequest) -> Result<Sample> {
        let id = request.id.clone();
        let requested = monotonic()?;
        self.to_exit(request).await?;
        let ended = monotonic()?;
        let options = LogOptions {
            stdout: true,
            follow: true,
            ..LogOptions::default()
        };
        let line = pin!(self.runtime.logs(&id, options))
            .try_next()
            .await
            .context("read the log")?;
        let deleting = monotonic()?;
        self.runtime.delete(&id).await.context("delete")?;
        let deleted = monotonic()?;
        let printed = line.context("the container printed nothing")?.bytes;
        Ok(Sample {
            to_main: stamp(&printed)?.saturating_sub(requested),
            whole: (ended + deleted).saturating_sub(requested + deleting),
        })
    }

    /// How long `count` containers take, `parallel` at once.
    pub(super) async fn burst(&self, parallel: usize, count: usize) -> Result<Duration> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        let started = monotonic()?;
        for _ in 0..parallel {
            let (ours, next) = (self.clone(), Arc::clone(&next));
            workers.spawn(async move {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    let request = ours.next();
                    let id = request.id.clone();
                    ours.to_exit(request).await?;
                    ours.runtime.delete(&id).await.context("delete")?;
                }
                anyhow::Ok(())
            });
        }
        for result in workers.join_all().await {
            result?;
        }
        Ok(monotonic()?.saturating_sub(started))
    }

    /// Ends the supervisor, which refuses as long as there are containers.
    pub(super) async fn close(self) -> Result<()> {
        let left = self.runtime.list().await.context("list containers")?;
        ensure!(left.is_empty(), "containers stay: {left:?}");
        let ended = self.runtime.shutdown_supervisor().await;
        ended.context("end the supervisor")
    }

    async fn to_exit(&self, request: CreateRequest) -> Result<()> {
        let id = request.id.clone();
        self.runtime.create(request).await.context("create")?;
        self.runtime.start(&id).await.context("start")?;
        let status = self.runtime.wait(&id).await.context("wait")?;
        ensure!(status.code == 0, "the container ended with {status:?}");
        Ok(())
    }

    fn next(&self) -> CreateRequest {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        CreateRequest {
            id: format!("{number:064x}"),
            ..self.request.clone()
        }
    }
}

/// Docker's defaults, with the limits that dockerd was asked for.
fn request(plan: &Plan, files: &Files) -> Result<CreateRequest> {
    // By way of JSON, so that the limits are those of dockerd's config word by word.
    let mut spec = serde_json::to_value(default_spec()).context("encode the default spec")?;
    spec["process"]["args"] = serde_json::json!([PROGRAM]);
    for resource in ["memory", "cpu", "pids"] {
        spec["linux"]["resources"][resource] = plan.config["linux"]["resources"][resource].clone();
    }
    Ok(CreateRequest {
        files: Vec::new(),
        id: String::new(),
        spec: serde_json::from_value(spec).context("decode the spec")?,
        rootfs: Rootfs {
            layers_dir: files.layers_dir.clone(),
            lower: files.layers.clone(),
        },
        user: String::new(),
        groups: Vec::new(),
        etc: EtcFiles {
            hostname: HOSTNAME.to_vec(),
            hosts: HOSTS.to_vec(),
            resolv_conf: RESOLV_CONF.to_vec(),
        },
        log: LogConfig::default(),
        seccomp: Some(shoal_runtime::default_seccomp(DOCKER_CAPABILITIES)),
        init: false,
    })
}
