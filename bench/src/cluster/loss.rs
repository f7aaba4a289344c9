//! A worker is lost, or only seems to be for a moment.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    machines::Machines,
    millis,
    tasks::{self, POLL},
};
use crate::{
    deadline::Deadline,
    http::Engine,
    stats::{Series, Unit},
    swarm::daemon::text,
};

const SERVICE: &str = "loss";
/// On five nodes: two each.
const REPLICAS: usize = 10;
/// What no service may notice.
const HICCUP: Duration = Duration::from_secs(5);
/// After a hiccup, so that what it set off is seen.
const AFTERMATH: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(90);

/// Of each kind.
const TIME: Duration = Duration::from_mins(6);
/// The dispatcher's heartbeat period that is to make the most haste.
const TUNED: Duration = Duration::from_secs(1);

/// How many samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trials {
    pub(crate) lost: usize,
    pub(crate) lost_tuned: usize,
    pub(crate) hiccups: usize,
}

/// Hiccups of one worker, then workers that lose their power in turn, by default and with heartbeats in haste.
pub(crate) async fn measure(machines: &mut Machines, trials: Trials) -> (Result<()>, Vec<Series>) {
    let case = |what| format!("tasks restarted because a worker {what} for 5 s, of {REPLICAS}");
    let mut frozen = Series::new(case("stood still"), Unit::Tasks);
    let mut cut = Series::new(case("had no link"), Unit::Tasks);
    let lost_power = "worker loses power → its tasks running elsewhere";
    let mut moved = Series::new(lost_power, Unit::Millis);
    let tuned = format!("{lost_power}, --dispatcher-heartbeat {TUNED:?}");
    let mut moved_tuned = Series::new(tuned, Unit::Millis);
    let result = async {
        let leader = machines.settled().await?;
        let mut engine = machines.engine(leader);
        let spec = tasks::sleepers(SERVICE, &machines.image, REPLICAS);
        engine.post("/services/create", &spec).await?;
        let deadline = Deadline::after(TIME);
        while deadline.allows(frozen.samples.len(), trials.hiccups) {
            frozen.samples.push(hiccup(machines, Hiccup::Freeze).await?);
            cut.samples.push(hiccup(machines, Hiccup::Cut).await?);
        }
        lose(machines, &mut moved, trials.lost).await?;
        let leader = machines.settled().await?;
        let mut engine = machines.engine(leader);
        set_heartbeat(&mut engine, TUNED).await?;
        lose(machines, &mut moved_tuned, trials.lost_tuned).await?;
        let leader = machines.settled().await?;
        let mut engine = machines.engine(leader);
        // The default.
        set_heartbeat(&mut engine, Duration::ZERO).await?;
        engine.delete(&format!("/services/{SERVICE}")).await?;
        Ok(())
    }
    .await;
    (result, vec![frozen, cut, moved, moved_tuned])
}

/// The two workers lose power in turn.
async fn lose(machines: &mut Machines, times: &mut Series, trials: usize) -> Result<()> {
    let deadline = Deadline::after(TIME);
    while deadline.allows(times.samples.len(), trials) {
        let worker = machines.managers().end + times.samples.len() % 2;
        let took = lost(machines, worker).await?;
        eprintln!("bench: worker lost: {took:.0?}");
        times.samples.push(millis(took));
    }
    Ok(())
}

/// As `swarm update --dispatcher-heartbeat`.
async fn set_heartbeat(engine: &mut Engine, period: Duration) -> Result<()> {
    let swarm = engine.get("/swarm").await?;
    let mut spec = swarm["Spec"].clone();
    let nanos = u64::try_from(period.as_nanos())?;
    spec["Dispatcher"]["HeartbeatPeriod"] = json!(nanos);
    let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    engine.post(&path, &spec).await.map(drop)
}

#[derive(Debug, Clone, Copy)]
enum Hiccup {
    /// The daemon and its helpers get no time.
    Freeze,
    /// Frames from and to the worker are dropped.
    Cut,
}

/// How many of the tasks are not what they were.
async fn hiccup(machines: &mut Machines, hiccup: Hiccup) -> Result<f64> {
    let before = identities(&whole(machines).await?);
    let worker = machines.managers().end;
    match hiccup {
        Hiccup::Freeze => {
            let sandbox = machines.nodes[worker].sandbox()?;
            sandbox.signal_helpers(Signal::SIGSTOP)?;
            tokio::time::sleep(HICCUP).await;
            let sandbox = machines.nodes[worker].sandbox()?;
            sandbox.signal_helpers(Signal::SIGCONT)?;
        }
        Hiccup::Cut => {
            machines.hub.cut_off(&[worker])?;
            tokio::time::sleep(HICCUP).await;
            machines.hub.heal(&[worker])?;
        }
    }
    tokio::time::sleep(AFTERMATH).await;
    let after = identities(&whole(machines).await?);
    let gone = before.difference(&after).count();
    Ok(f64::from(u32::try_from(gone)?))
}

/// Until as many as before run, all of them on other nodes; then the worker is back.
async fn lost(machines: &mut Machines, worker: usize) -> Result<Duration> {
    let tasks = whole(machines).await?;
    let id = machines.nodes[worker].id.clone();
    let on_it = |task: &Value| text(&task["NodeID"]) == id;
    if !tasks.iter().any(on_it) {
        // What came back empty gets its share again.
        spread(machines).await?;
    }
    let leader = machines.settled().await?;
    let mut engine = machines.engine(leader);
    let started = Instant::now();
    machines.nodes[worker].cut_power(&machines.hub)?;
    let took = loop {
        let running = tasks::running(&mut engine, SERVICE).await?;
        if running.iter().filter(|task| !on_it(task)).count() == REPLICAS {
            break started.elapsed();
        }
        if started.elapsed() > LIMIT {
            bail!("the tasks of node {} are not replaced", worker + 1);
        }
        tokio::time::sleep(POLL).await;
    };
    machines.nodes[worker].boot(&machines.hub)?;
    machines.nodes[worker].answers().await?;
    Ok(took)
}

/// Starts all tasks anew, so that every node has some.
async fn spread(machines: &mut Machines) -> Result<()> {
    let leader = machines.settled().await?;
    let mut engine = machines.engine(leader);
    engine.delete(&format!("/services/{SERVICE}")).await?;
    tasks::gone(machines, SERVICE).await?;
    let spec = tasks::sleepers(SERVICE, &machines.image, REPLICAS);
    engine.post("/services/create", &spec).await?;
    whole(machines).await.map(drop)
}

/// All tasks, once they run and the swarm is whole.
async fn whole(machines: &mut Machines) -> Result<Vec<Value>> {
    let leader = machines.settled().await?;
    let mut engine = machines.engine(leader);
    tasks::wait_running(&mut engine, SERVICE, REPLICAS).await
}

/// Tasks with their processes: what a restart changes.
fn identities(tasks: &[Value]) -> BTreeSet<String> {
    let pid = |task: &Value| task["Status"]["ContainerStatus"]["PID"].to_string();
    tasks
        .iter()
        .map(|task| format!("{} {}", task["ID"], pid(task)))
        .collect()
}
