//! The leader's daemon is killed: how long nobody accepts a write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};

use super::{machines::Machines, millis};
use crate::{
    deadline::Deadline,
    http::Engine,
    stats::{Series, Unit},
    swarm::daemon::text,
};

/// How long a client waits for one answer before it asks anew.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_mins(1);

/// SIGKILL to the leader's daemon, then a label of a service is changed through each of the other managers.
pub(crate) async fn measure(
    machines: &mut Machines,
    trials: usize,
    deadline: Deadline,
) -> (Result<()>, Vec<Series>) {
    let case = |which| format!("leader killed → write accepted through {which} other manager");
    let mut any = Series::new(case("any"), Unit::Millis);
    let mut every = Series::new(case("every"), Unit::Millis);
    let result = async {
        for number in machines.managers() {
            let spec = service(&format!("label-{number}"), 0);
            let engine = &mut machines.nodes[number].engine;
            engine.post("/services/create", &spec).await?;
        }
        while deadline.allows(any.samples.len(), trials) {
            let leader = machines.settled().await?;
            let daemon = machines.nodes[leader].sandbox()?.daemon()?;
            let mut writers = JoinSet::new();
            let started = Instant::now();
            kill(daemon, Signal::SIGKILL).context("kill the leader's daemon")?;
            for number in machines.managers().filter(|number| *number != leader) {
                let engine = machines.engine(number);
                writers.spawn(accepted(engine, format!("label-{number}"), started));
            }
            let mut times = Vec::new();
            while let Some(accepted) = writers.join_next().await {
                times.push(millis(accepted.context("a writer")??));
            }
            any.samples.extend(times.iter().copied().reduce(f64::min));
            every.samples.extend(times.iter().copied().reduce(f64::max));
            eprintln!("bench: failover {times:.0?} ms");
            let node = &mut machines.nodes[leader];
            node.sandbox()?.start_again()?;
            node.answers().await?;
        }
        for number in machines.managers() {
            let path = format!("/services/label-{number}");
            machines.nodes[0].engine.delete(&path).await?;
        }
        Ok(())
    }
    .await;
    (result, vec![any, every])
}

/// Until a change is acknowledged, counted from `started`.
pub(super) async fn accepted(
    mut engine: Engine,
    name: String,
    started: Instant,
) -> Result<Duration> {
    loop {
        match timeout(PATIENCE, relabel(&mut engine, &name)).await {
            Ok(Ok(())) => return Ok(started.elapsed()),
            Ok(Err(error)) if started.elapsed() > LIMIT => return Err(error),
            Ok(Err(_)) => {}
            // The answer to what was given up may still come, on a connection of its own.
            Err(_) => engine = engine.another(),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// As `service update --label-add`.
async fn relabel(engine: &mut Engine, name: &str) -> Result<()> {
    let service = engine.get(&format!("/services/{name}")).await?;
    let version = &service["Version"]["Index"];
    let mut spec = service["Spec"].clone();
    spec["Labels"]["changed-at"] = json!(version.to_string());
    let id = text(&service["ID"]);
    let path = format!("/services/{id}/update?version={version}");
    engine.post(&path, &spec).await.map(drop)
}

/// A service that needs neither network nor image.
pub(super) fn service(name: &str, replicas: usize) -> Value {
    json!({
        "Name": name,
        "TaskTemplate": { "ContainerSpec": { "Image": "none", "Command": ["sleep", "1000000"] } },
        "Mode": { "Replicated": { "Replicas": replicas } },
    })
}
