//! One container: from the request to its `main()`, to its end, to nothing left of it; and how many a second.
//!
//! All of it happens in one sandbox, in interleaved rounds, so that a busy moment of the machine meets every side.

mod bundle;
mod oci;
mod ours;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    deadline::Deadline,
    sandbox::Sandbox,
    stats::{Series, Unit, per_second},
    swarm::daemon::Tools,
};
use bundle::Files;
use oci::OciRuntime;
use ours::OurRuntime;

/// Between two starts: back to back, the kernel's deferred work for one would be paid by the next.
const GAP: Duration = Duration::from_millis(20);

/// The first argument of this program when it is to measure inside of a sandbox.
pub(crate) const INSIDE: &str = "start-inside";

/// How much is measured, and with what. Handed to the process inside of the sandbox as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Containers for one figure of starts a second, and how many such figures.
    pub(crate) burst: usize,
    pub(crate) bursts: usize,
    pub(crate) parallel: Vec<usize>,
    pub(crate) limit: Duration,
    pub(crate) dir: PathBuf,
    pub(crate) tools: PathBuf,
    /// The static program of `stamp.c`.
    pub(crate) stamp: PathBuf,
    pub(crate) busybox: PathBuf,
    /// Above the containers' cgroups.
    pub(crate) cgroup: String,
    /// What dockerd has its runtime run, to be changed as little as possible.
    pub(crate) config: Value,
}

/// The series of each side, by its name.
pub(crate) type Sides = BTreeMap<String, Vec<Series>>;

pub(crate) const OURS: &str = "shoal";
pub(crate) const PEERS: [&str; 2] = ["crun", "runc"];

/// Runs [`inside`] in a sandbox and returns what it found.
pub(crate) async fn measure(plan: &Plan) -> Result<Sides> {
    let program = std::env::current_exe().context("the path of this program")?;
    let plan_file = plan.dir.with_extension("plan");
    let result = plan.dir.with_extension("result");
    fs::write(&plan_file, serde_json::to_vec(plan)?).context("write the plan")?;
    let args = [INSIDE.into(), plan_file.into(), result.clone().into()];
    let mut sandbox = Sandbox::start(&plan.dir, &program, &args, &[])?;
    let hung = Deadline::after(plan.limit + Duration::from_mins(1));
    while !result.exists() {
        sandbox.check()?;
        ensure!(!hung.passed(), "no answer: {}", sandbox.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let sides = fs::read(&result).context("read the result")?;
    drop(sandbox);
    fs::remove_dir_all(&plan.dir).with_context(|| format!("remove {}", plan.dir.display()))?;
    serde_json::from_slice(&sides).context("read the result")
}

/// The process inside of the sandbox: reads a plan, and writes what it found at once, under a name of its own first.
pub(crate) async fn inside(plan: &Path, result: &Path) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(plan).context("read the plan")?)?;
    let files = Files::make(&plan)?;
    let tools = Tools {
        directory: plan.tools.clone(),
    };
    let peers = PEERS
        .iter()
        .map(|name| OciRuntime::new(name, &tools, &files))
        .collect::<Result<Vec<_>>>()?;
    let ours = OurRuntime::open(&plan, &files).await?;
    let measured = rounds(&plan, &ours, &peers).await;
    let closed = ours.close().await;
    let sides = measured?;
    closed?;
    let unfinished = result.with_extension("unfinished");
    fs::write(&unfinished, serde_json::to_vec(&sides)?).context("write the result")?;
    fs::rename(unfinished, result).context("name the result")
}

async fn rounds(plan: &Plan, ours: &OurRuntime, peers: &[OciRuntime]) -> Result<Sides> {
    let deadline = Deadline::after(plan.limit);
    let latency = deadline.share(0.5);
    let names = || [OURS].into_iter().chain(PEERS);
    let mut main: BTreeMap<&str, Series> = names()
        .map(|name| (name, Series::new("container start → main()", Unit::Millis)))
        .collect();
    let mut whole: BTreeMap<&str, Series> = names()
        .map(|name| (name, Series::new("start → exit → deleted", Unit::Millis)))
        .collect();
    let mut cold = [
        Series::new(
            "container start → main(), no sandbox made ahead",
            Unit::Millis,
        ),
        Series::new(
            "start → exit → deleted, no sandbox made ahead",
            Unit::Millis,
        ),
    ];
    // One of each that does not count, so that programs and files are in memory.
    ours.run().await?;
    ours.run_cold().await?;
    for peer in peers {
        peer.run()?;
    }
    let mut round = 0;
    while latency.allows(round, plan.rounds) {
        for side in 0..=peers.len() {
            // Another one begins in each round, so that nobody always follows the same neighbour.
            let turn = (side + round) % (peers.len() + 1);
            tokio::time::sleep(GAP).await;
            let (name, sample) = match turn.checked_sub(1) {
                None => (OURS, ours.run().await?),
                Some(peer) => (PEERS[peer], peers[peer].run()?),
            };
            for (series, value) in [(&mut main, sample.to_main), (&mut whole, sample.whole)] {
                let series = series.get_mut(name).context("a series a side")?;
                series.samples.push(value.as_secs_f64() * 1e3);
            }
        }
        tokio::time::sleep(GAP).await;
        let sample = ours.run_cold().await?;
        for (series, value) in cold.iter_mut().zip([sample.to_main, sample.whole]) {
            series.samples.push(value.as_secs_f64() * 1e3);
        }
        round += 1;
    }

    let mut sides: Sides = Sides::new();
    for name in names() {
        let taken = [&main, &whole].map(|all| all[name].samples.clone());
        for (ours, theirs) in cold.iter().zip(taken) {
            // A peer makes nothing ahead, so that its times are the same.
            let samples = if name == OURS {
                ours.samples.clone()
            } else {
                theirs
            };
            let series = Series {
                samples,
                ..ours.clone()
            };
            sides.entry(name.to_owned()).or_default().push(series);
        }
    }
    for (name, series) in main.into_iter().chain(whole) {
        sides.entry(name.to_owned()).or_default().push(series);
    }
    for parallel in &plan.parallel {
        let case = format!("containers run and deleted a second, {parallel} at once");
        let mut rates: BTreeMap<&str, Series> = names()
            .map(|name| (name, Series::new(case.as_str(), Unit::PerSecond)))
            .collect();
        let mut burst = 0;
        while deadline.allows(burst, plan.bursts) {
            for name in names() {
                let took = match PEERS.iter().position(|peer| *peer == name) {
                    None => ours.burst(*parallel, plan.burst).await?,
                    Some(peer) => peers[peer].burst(*parallel, plan.burst)?,
                };
                let series = rates.get_mut(name).context("a series a side")?;
                series.samples.push(per_second(plan.burst, took));
            }
            burst += 1;
        }
        for (name, series) in rates {
            sides.entry(name.to_owned()).or_default().push(series);
        }
    }
    Ok(sides)
}

/// One container's times from the request.
#[derive(Debug, Clone, Copy)]
struct Sample {
    to_main: Duration,
    whole: Duration,
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which the stamp program reads too.
fn monotonic() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    Ok(now.into())
}

/// What the stamp program printed.
fn stamp(output: &[u8]) -> Result<Duration> {
    let text = String::from_utf8_lossy(output);
    let nanoseconds = text.trim().parse();
    let nanoseconds =
        nanoseconds.with_context(|| format!("the container printed {text:?}, not a time"))?;
    Ok(Duration::from_nanos(nanoseconds))
}
