//! Services that run something, and their tasks.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::machines::Machines;
use crate::{
    deadline::Deadline,
    http::{Engine, filters},
};

/// Between looks at a state; the resolution of every figure that waits for one.
pub(super) const POLL: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(90);

/// Tasks that sleep, on no network of the swarm's, and end at once when they are to.
pub(super) fn sleepers(name: &str, image: &str, replicas: usize) -> Value {
    json!({
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": image,
                "Command": ["sleep", "1000000"],
                "StopSignal": "SIGKILL",
            },
            "RestartPolicy": { "Condition": "any", "Delay": 0 },
        },
        "Mode": { "Replicated": { "Replicas": replicas } },
    })
}

/// The tasks of a service that run and are meant to.
pub(super) async fn running(engine: &mut Engine, service: &str) -> Result<Vec<Value>> {
    let query = filters(&[("service", service), ("desired-state", "running")]);
    let tasks = engine.get(&format!("/tasks?{query}")).await?;
    let mut tasks = tasks.as_array().cloned().unwrap_or_default();
    tasks.retain(|task| task["Status"]["State"] == "running");
    Ok(tasks)
}

/// Waits until exactly `count` tasks run.
pub(super) async fn wait_running(
    engine: &mut Engine,
    service: &str,
    count: usize,
) -> Result<Vec<Value>> {
    let limit = Deadline::after(LIMIT);
    loop {
        let tasks = running(engine, service).await?;
        if tasks.len() == count {
            return Ok(tasks);
        }
        if limit.passed() {
            bail!("{} of {count} tasks of {service} run", tasks.len());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How many containers of a service run, or with `all` are there, on all nodes together.
pub(super) async fn containers(machines: &mut Machines, service: &str, all: bool) -> Result<usize> {
    let label = format!("com.docker.swarm.service.name={service}");
    let query = filters(&[("label", &label)]);
    let mut count = 0;
    for node in &mut machines.nodes {
        let path = format!("/containers/json?all={all}&{query}");
        let containers = node.engine.get(&path).await?;
        count += containers.as_array().map_or(0, Vec::len);
    }
    Ok(count)
}

/// Waits until no node has a container of a service.
pub(super) async fn gone(machines: &mut Machines, service: &str) -> Result<()> {
    let limit = Deadline::after(LIMIT);
    while containers(machines, service, true).await? > 0 {
        if limit.passed() {
            bail!("containers of {service} are left");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
