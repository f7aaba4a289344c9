//! crun and runc, by `run`, as a process for each container.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use super::{Sample, bundle::Files, monotonic, stamp};
use crate::swarm::daemon::Tools;

/// Where a hybrid host has its v2 hierarchy. crun before 1.9 refuses to run when that holds a controller.
const HYBRID: &str = "/sys/fs/cgroup/unified";

#[derive(Debug)]
pub(super) struct OciRuntime {
    name: &'static str,
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
    bundles: Vec<PathBuf>,
    count: AtomicUsize,
}

impl OciRuntime {
    pub(super) fn new(name: &'static str, tools: &Tools, files: &Files) -> Result<Self> {
        Ok(Self {
            name,
            program: tools.find(name)?,
            environment: tools.environment(),
            bundles: files.bundles.clone(),
            count: AtomicUsize::new(0),
        })
    }

    /// Runs one container from the request to its deletion, which `run` includes.
    pub(super) fn run(&self) -> Result<Sample> {
        let one = || {
            hide_hybrid()?;
            let requested = monotonic()?;
            let output = self.container(0)?;
            let deleted = monotonic()?;
            Ok(Sample {
                to_main: stamp(&output.stdout)?.saturating_sub(requested),
                whole: deleted.saturating_sub(requested),
            })
        };
        // A thread of its own, because it loses sight of a mount.
        thread::scope(|scope| scope.spawn(one).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// How long `count` containers take, `parallel` at once.
    pub(super) fn burst(&self, parallel: usize, count: usize) -> Result<Duration> {
        let next = AtomicUsize::new(0);
        let ready = Barrier::new(parallel + 1);
        let work = |slot| {
            let prepared = hide_hybrid();
            ready.wait();
            prepared?;
            while next.fetch_add(1, Ordering::Relaxed) < count {
                self.container(slot)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let work = &work;
            let workers: Vec<_> = (0..parallel)
                .map(|slot| scope.spawn(move || -> Result<()> { work(slot) }))
                .collect();
            ready.wait();
            let started = monotonic()?;
            for worker in workers {
                match worker.join() {
                    Ok(result) => result?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(monotonic()?.saturating_sub(started))
        })
    }

    fn container(&self, slot: usize) -> Result<Output> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let bundle = self.bundles.get(slot).context("a bundle for each slot")?;
        let output = Command::new(&self.program)
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(format!("bench-{number}"))
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", self.program.display()))?;
        if !output.status.success() {
            bail!(
                "{} run ended with {}: {}",
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        ensure!(!output.stdout.is_empty(), "{} printed nothing", self.name);
        Ok(output)
    }
}

/// Takes the v2 hierarchy of a hybrid host out of the sight of this thread and of what it starts. Elsewhere: nothing.
fn hide_hybrid() -> Result<()> {
    if !Path::new(HYBRID).exists() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mounts")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount::<str, _, str, str>(None, "/", None, flags, None).context("make the mounts private")?;
    umount2(HYBRID, MntFlags::MNT_DETACH).with_context(|| format!("unmount {HYBRID}"))
}
