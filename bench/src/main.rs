//! Shoal beside its peers, in one run: containers beside crun and runc, services beside dockerd's swarm.
//!
//! `bench/run.sh` gets what this needs; `bench/README.md` says what is measured, and what is not equal.

mod cluster;
mod deadline;
mod http;
mod image;
mod machine;
mod network;
mod process;
mod report;
mod sandbox;
mod start;
mod stats;
mod swarm;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use deadline::Deadline;
use machine::Machine;
use report::Report;
use stats::Series;
use swarm::daemon::{Daemon, Tools};

/// Measures Shoal beside crun, runc and dockerd, and prints a table of medians.
#[derive(Debug, Parser)]
struct Options {
    /// Where the peers were unpacked, if they are not installed.
    #[arg(long)]
    tools: PathBuf,
    /// A directory for everything this makes; its name is also that of its cgroups.
    #[arg(long)]
    work: PathBuf,
    /// The static program that prints when its main() began.
    #[arg(long)]
    stamp: PathBuf,
    /// The `shoal` binary whose daemon is measured.
    #[arg(long)]
    shoal: Option<PathBuf>,
    /// Only one part.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Several nodes instead of one.
    #[arg(long)]
    cluster: bool,
    /// With --cluster: only these cases.
    #[arg(long, value_enum, value_delimiter = ',', requires = "cluster")]
    case: Vec<cluster::Case>,
    /// With --cluster: files with what other measurements printed, to be shown below the table.
    #[arg(long, requires = "cluster")]
    append: Vec<PathBuf>,
    /// Fewer samples, up to 10 replicas, about two minutes.
    #[arg(long)]
    quick: bool,
    /// Also write every sample to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Start,
    Swarm,
    /// The datapath alone; needs no dockerd.
    Network,
}

/// How much is measured, so that all of it ends in time.
struct Amounts {
    dockerd: Duration,
    shoal: Duration,
    start: Duration,
    sizes: &'static [(usize, usize)],
    kills: usize,
    creates: &'static [(usize, usize, usize)],
    rounds: usize,
    burst: usize,
    bursts: usize,
}

const FULL: Amounts = Amounts {
    dockerd: Duration::from_secs(330),
    shoal: Duration::from_mins(3),
    start: Duration::from_secs(100),
    sizes: &[(1, 5), (10, 3), (100, 3)],
    kills: 10,
    creates: &[(1, 200, 3), (16, 800, 3), (64, 3200, 3)],
    rounds: 60,
    burst: 40,
    bursts: 3,
};

const QUICK: Amounts = Amounts {
    dockerd: Duration::from_secs(80),
    shoal: Duration::from_mins(1),
    start: Duration::from_secs(20),
    sizes: &[(1, 3), (10, 2)],
    kills: 3,
    creates: &[(1, 100, 1), (64, 1600, 1)],
    rounds: 40,
    burst: 24,
    bursts: 1,
};

fn main() -> Result<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next().unwrap_or_default();
    if first == "supervisor" {
        // Before any thread: it forks.
        return Ok(shoal_runtime::supervisor_main(args));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    if first == start::INSIDE {
        let files: Vec<OsString> = args.collect();
        let [plan, result] = files.as_slice() else {
            bail!("{} takes a plan and a result", start::INSIDE);
        };
        runtime.block_on(start::inside(Path::new(plan), Path::new(result)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the bench makes containers, so it needs root: sudo bench/run.sh"
    );
    // On this thread: sandboxes end with the thread that started them.
    let measured = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        tokio::select! {
            // Dropping it ends its sandboxes.
            result = run(&options) => result,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    });
    // Whoever made them, and also after a failure.
    let removed = sandbox::remove_cgroups(options.cgroup()?);
    let code = measured?;
    removed?;
    Ok(code)
}

impl Options {
    /// The name of all cgroups that are made here.
    fn cgroup(&self) -> Result<&str> {
        let name = self.work.file_name().and_then(|name| name.to_str());
        name.context("--work has a name")
    }
}

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
async fn run(options: &Options) -> Result<ExitCode> {
    let mut report = Report::new(Machine::read());
    if options.cluster {
        several_nodes(options, &mut report).await?;
    } else {
        parts(options, &mut report).await?;
    }
    println!("{}", report.table());
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    Ok(if report.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Without dockerd there is nothing to compare with, so its failure ends the run; everything else that fails is noted.
async fn parts(options: &Options, report: &mut Report) -> Result<()> {
    let wants = |part| options.only.is_none_or(|only| only == part);
    if wants(Part::Network) {
        network(options, report).await;
    }
    if options.only == Some(Part::Network) {
        return Ok(());
    }
    let amounts = if options.quick { &QUICK } else { &FULL };
    let cgroup = options.cgroup()?;
    let tools = Tools {
        directory: options.tools.clone(),
    };
    let busybox = tools.find("busybox")?;
    let image = image::busybox_tar(&busybox)?;

    eprintln!("bench: dockerd");
    let dir = options.work.join("dockerd");
    let dockerd = Daemon::dockerd(&dir, &tools, cgroup, &image).await;
    let mut dockerd = dockerd.context("dockerd")?;
    let version = dockerd.version().await?;
    report.peers.push(format!("dockerd {version}"));
    let config = dockerd.container_config().await?;
    let mut theirs = Vec::new();
    if wants(Part::Swarm) {
        theirs = services(
            "dockerd",
            &mut dockerd,
            &plan(amounts, amounts.dockerd),
            report,
        )
        .await;
    }
    dockerd.end()?;

    if wants(Part::Swarm) {
        eprintln!("bench: shoal daemon");
        let ours = shoal(options, &plan(amounts, amounts.shoal), &image, report).await;
        let ours = ours.unwrap_or_else(|error| {
            report.note(format!("shoal daemon: {error:#}"));
            Vec::new()
        });
        report.compare("dockerd", &ours, &theirs);
    }

    if wants(Part::Start) {
        eprintln!("bench: container start");
        let measured = start(options, amounts, cgroup, &tools, busybox, config, report).await;
        if let Err(error) = measured {
            report.note(format!("container start: {error:#}"));
        }
    }
    Ok(())
}

async fn network(options: &Options, report: &mut Report) {
    eprintln!("bench: network");
    let (dir, quick) = (options.work.join("network"), options.quick);
    let measured = tokio::task::spawn_blocking(move || network::measure(&dir, quick)).await;
    match measured
        .map_err(anyhow::Error::from)
        .and_then(|found| found)
    {
        Ok(found) => {
            for (peer, ours, theirs) in found {
                report.compare(peer, &ours, &theirs);
            }
        }
        Err(error) => report.note(format!("network: {error:#}")),
    }
}

async fn several_nodes(options: &Options, report: &mut Report) -> Result<()> {
    let tools = Tools {
        directory: options.tools.clone(),
    };
    let plan = cluster::Plan {
        dir: options.work.clone(),
        shoal: options.shoal.clone().context("--shoal was not given")?,
        image: image::busybox_tar(&tools.find("busybox")?)?,
        cgroup: options.cgroup()?.to_owned(),
        cases: options.case.clone(),
        quick: options.quick,
        tools,
    };
    cluster::measure(&plan, report).await;
    for path in &options.append {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        report.appendix.push(text.trim().to_owned());
    }
    Ok(())
}

/// Shoal's side of the services.
async fn shoal(
    options: &Options,
    plan: &swarm::Plan,
    image: &[u8],
    report: &mut Report,
) -> Result<Vec<Series>> {
    let shoal = options.shoal.as_deref().context("--shoal was not given")?;
    let dir = options.work.join("shoal");
    let mut daemon = Daemon::shoal(&dir, shoal, image).await?;
    let series = services("shoal", &mut daemon, plan, report).await;
    if let Err(error) = daemon.end() {
        report.note(format!("shoal: purge: {error:#}"));
    }
    Ok(series)
}

async fn services(
    name: &str,
    daemon: &mut Daemon,
    plan: &swarm::Plan,
    report: &mut Report,
) -> Vec<Series> {
    let (series, failed) = swarm::measure(daemon, plan).await;
    for what in failed {
        report.note(format!("{name}: {what}"));
    }
    series
}

fn plan(amounts: &Amounts, time: Duration) -> swarm::Plan {
    swarm::Plan {
        sizes: amounts.sizes.to_vec(),
        kills: amounts.kills,
        creates: amounts.creates.to_vec(),
        deadline: Deadline::after(time),
    }
}

async fn start(
    options: &Options,
    amounts: &Amounts,
    cgroup: &str,
    tools: &Tools,
    busybox: PathBuf,
    config: Value,
    report: &mut Report,
) -> Result<()> {
    let plan = start::Plan {
        rounds: amounts.rounds,
        burst: amounts.burst,
        bursts: amounts.bursts,
        parallel: vec![1, 2, 4],
        limit: amounts.start,
        dir: options.work.join("start"),
        tools: tools.directory.clone(),
        stamp: fs::canonicalize(&options.stamp)
            .with_context(|| format!("find {}", options.stamp.display()))?,
        busybox,
        cgroup: cgroup.to_owned(),
        config,
    };
    let mut sides = start::measure(&plan).await?;
    let ours = sides.remove(start::OURS).unwrap_or_default();
    for peer in start::PEERS {
        report.peers.push(version(tools, peer)?);
        report.compare(peer, &ours, &sides.remove(peer).unwrap_or_default());
    }
    Ok(())
}

/// The first line of what `program --version` prints.
fn version(tools: &Tools, program: &str) -> Result<String> {
    let output = Command::new(tools.find(program)?)
        .arg("--version")
        .envs(tools.environment())
        .output()
        .with_context(|| format!("start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or(program);
    Ok(line.replace(" version ", " "))
}
