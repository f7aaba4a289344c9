//! Several nodes, each in a sandbox, on one switch: what a cluster does when a part of it is lost, and how much it takes.
//!
//! Both sides, Shoal's daemons and dockerd's, run on the same machines and are asked the same, one after the other.

mod agents;
mod etcd;
mod failover;
mod heal;
mod hub;
mod loss;
mod machines;
mod node;
mod tasks;
mod traffic;
mod writes;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    deadline::Deadline,
    report::Report,
    stats::Series,
    swarm::daemon::{Tools, text},
};
use machines::Machines;
use node::Side;
use writes::{Effort, Kind};

/// What of a cluster is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// The leader's daemon is killed.
    Failover,
    /// Writes a second, beside etcd's, too.
    Writes,
    /// Services created a second.
    Creates,
    /// A worker is lost, or seems to be.
    Loss,
    /// The network is parted and healed.
    Heal,
    /// Requests between containers of two nodes.
    Traffic,
    /// Hundreds of agents on three managers.
    Agents,
}

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) dir: PathBuf,
    pub(crate) shoal: PathBuf,
    pub(crate) tools: Tools,
    pub(crate) cgroup: String,
    pub(crate) image: Vec<u8>,
    /// Empty: everything.
    pub(crate) cases: Vec<Case>,
    pub(crate) quick: bool,
}

impl Plan {
    fn wants(&self, case: Case) -> bool {
        self.cases.is_empty() || self.cases.contains(&case)
    }

    fn effort(&self) -> Effort {
        Effort {
            rounds: if self.quick { 1 } else { 3 },
            span: Duration::from_secs(2),
        }
    }

    /// How many samples: of ours, of a peer whose recovery takes ten times as long, and with `quick`.
    fn trials(&self, side: &Side, ours: usize, peer: usize) -> usize {
        match (self.quick, side.is_shoal()) {
            (true, _) => ours.min(3),
            (false, true) => ours,
            (false, false) => peer,
        }
    }
}

/// Takes every measurement of `plan`; what fails is noted.
pub(crate) async fn measure(plan: &Plan, report: &mut Report) {
    let ours = Side::Shoal {
        program: plan.shoal.clone(),
    };
    let peer = Side::Dockerd {
        tools: plan.tools.clone(),
        cgroup: plan.cgroup.clone(),
    };
    let mut sides = Vec::new();
    for side in [&peer, &ours] {
        let mut taken = Taken::default();
        for (managers, workers) in [(1, 0), (3, 0), (3, 2)] {
            let result = one_swarm(plan, side, (managers, workers), &mut taken).await;
            if let Err(error) = result {
                let name = side.name();
                taken
                    .failed
                    .push(format!("{name}, {managers} + {workers} nodes: {error:#}"));
            }
        }
        sides.push(taken);
    }
    let mut many = Vec::new();
    if plan.wants(Case::Agents) {
        eprintln!("bench: shoal: {:?}", Case::Agents);
        let (result, series) = agents::measure(plan, &ours).await;
        if let Err(error) = result {
            report.note(format!("shoal: {:?}: {error:#}", Case::Agents));
        }
        many = series;
    }
    let mut etcd = Vec::new();
    if plan.wants(Case::Writes) {
        eprintln!("bench: etcd");
        let dir = plan.dir.join("etcd");
        let (result, series) = etcd::measure(&dir, &plan.tools, plan.effort()).await;
        match result.and_then(|()| etcd::version(&plan.tools)) {
            Ok(version) => report.peers.push(version),
            Err(error) => report.note(format!("etcd: {error:#}")),
        }
        etcd = series;
    }
    let [theirs, ours] = &mut sides[..] else {
        return;
    };
    report.compare("dockerd", &ours.series, &theirs.series);
    let written = |series: &&Series| etcd.iter().any(|other| other.case == series.case);
    let ours_written: Vec<Series> = ours.series.iter().filter(written).cloned().collect();
    report.compare("etcd", &ours_written, &etcd);
    report.compare("direct", &ours.vip, &ours.direct);
    report.compare("", &many, &[]);
    report.peers.extend(theirs.version.take());
    for what in theirs.failed.drain(..).chain(ours.failed.drain(..)) {
        report.note(what);
    }
}

/// What one side's swarms did.
#[derive(Debug, Default)]
struct Taken {
    series: Vec<Series>,
    /// Requests through a virtual address, and those that go to the container's own.
    vip: Vec<Series>,
    direct: Vec<Series>,
    failed: Vec<String>,
    version: Option<String>,
}

/// The cases that a swarm of this size is for; without any, it is not formed.
async fn one_swarm(
    plan: &Plan,
    side: &Side,
    size: (usize, usize),
    taken: &mut Taken,
) -> Result<()> {
    let cases: &[Case] = match size {
        (1, _) => &[Case::Creates],
        (_, 0) => &[Case::Failover, Case::Writes, Case::Creates],
        _ if side.is_shoal() => &[Case::Loss, Case::Heal, Case::Traffic],
        // It has no doctor to ask, and without IPVS in the kernel no virtual address.
        _ => &[Case::Loss],
    };
    if !cases.iter().any(|case| plan.wants(*case)) {
        return Ok(());
    }
    let (managers, workers) = size;
    eprintln!(
        "bench: {}, {managers} managers and {workers} workers",
        side.name()
    );
    let name = format!("{}-{managers}-{workers}", side.name());
    let dir = plan.dir.join(name);
    let mut machines = Machines::form(side, &dir, managers, workers, &plan.image).await?;
    if taken.version.is_none() {
        let version = machines.nodes[0].engine.get("/version").await?;
        taken.version = Some(format!("{} {}", side.name(), text(&version["Version"])));
    }
    for case in cases.iter().filter(|case| plan.wants(**case)) {
        eprintln!("bench: {}: {case:?}", side.name());
        let (result, series) = match case {
            Case::Failover => {
                let trials = plan.trials(side, 20, 4);
                let limit = Deadline::after(Duration::from_mins(4));
                failover::measure(&mut machines, trials, limit).await
            }
            Case::Writes => writes::measure(&mut machines, Kind::Config, plan.effort()).await,
            Case::Creates => writes::measure(&mut machines, Kind::Service, plan.effort()).await,
            Case::Loss => {
                let trials = loss::Trials {
                    lost: plan.trials(side, 20, 3),
                    lost_tuned: plan.trials(side, 20, 3),
                    hiccups: plan.trials(side, 3, 1),
                };
                loss::measure(&mut machines, trials).await
            }
            Case::Heal => {
                let trials = plan.trials(side, 10, 0);
                let limit = Deadline::after(Duration::from_mins(4));
                heal::measure(&mut machines, trials, limit).await
            }
            // Of no size that is formed here.
            Case::Agents => continue,
            Case::Traffic => {
                let (rounds, span) = if plan.quick { (5, 500) } else { (20, 500) };
                let span = Duration::from_millis(span);
                match traffic::measure(&mut machines, rounds, span).await {
                    Ok([vip, direct]) => {
                        (taken.vip, taken.direct) = (vip, direct);
                        (Ok(()), Vec::new())
                    }
                    Err(error) => (Err(error), Vec::new()),
                }
            }
        };
        if let Err(error) = result {
            taken
                .failed
                .push(format!("{}: {case:?}: {error:#}", side.name()));
        }
        taken.series.extend(series);
    }
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
