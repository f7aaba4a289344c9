//! The network is parted and healed while services are scaled: how long until every node is as it is meant to be.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{
    machines::{Machines, NETWORK},
    millis,
    tasks::{self, POLL},
    traffic::{all_answer, pid, task_address},
};
use crate::{
    deadline::Deadline,
    stats::{Series, Unit},
    swarm::daemon::text,
};

/// Runs what answers.
const WEB: &str = "web";
/// Runs on every node, to ask from.
const PROBE: &str = "probe";
/// Between these it is scaled.
const SIZES: [usize; 2] = [10, 20];
const PARTED: Duration = Duration::from_secs(10);
/// Into the partition.
const SCALED_AFTER: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_mins(1);

/// Parts a manager that does not lead and a worker from three others.
pub(crate) async fn measure(
    machines: &mut Machines,
    trials: usize,
    deadline: Deadline,
) -> (Result<()>, Vec<Series>) {
    let mut healed = Series::new(
        "partition of two of five nodes healed → all as wanted, every replica answers",
        Unit::Millis,
    );
    let result = async {
        let leader = machines.settled().await?;
        let engine = &mut machines.nodes[leader].engine;
        engine.post("/services/create", &web(SIZES[0])).await?;
        let mut probe = tasks::sleepers(PROBE, &machines.image, 0);
        probe["Mode"] = json!({ "Global": {} });
        probe["TaskTemplate"]["Networks"] = json!([{ "Target": NETWORK }]);
        engine.post("/services/create", &probe).await?;
        tasks::wait_running(engine, WEB, SIZES[0]).await?;
        let nodes = machines.nodes.len();
        tasks::wait_running(&mut machines.nodes[leader].engine, PROBE, nodes).await?;
        while deadline.allows(healed.samples.len(), trials) {
            let size = SIZES[(healed.samples.len() + 1) % SIZES.len()];
            let took = one(machines, size).await?;
            eprintln!("bench: healed: {took:.0?}");
            healed.samples.push(millis(took));
        }
        for name in [WEB, PROBE] {
            let engine = &mut machines.nodes[0].engine;
            engine.delete(&format!("/services/{name}")).await?;
            tasks::gone(machines, name).await?;
        }
        Ok(())
    }
    .await;
    (result, vec![healed])
}

fn web(replicas: usize) -> Value {
    json!({
        "Name": WEB,
        "TaskTemplate": {
            "ContainerSpec": { "Image": "shoal/hello" },
            "RestartPolicy": { "Condition": "any", "Delay": 0 },
            "Networks": [{ "Target": NETWORK }],
        },
        "Mode": { "Replicated": { "Replicas": replicas } },
    })
}

async fn one(machines: &mut Machines, size: usize) -> Result<Duration> {
    let leader = machines.settled().await?;
    let limit = Instant::now() + LIMIT;
    while let Some(what) = unlike(machines, leader, None).await? {
        if Instant::now() > limit {
            bail!("before the partition: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
    let follower = machines
        .managers()
        .find(|number| *number != leader)
        .unwrap_or_default();
    let apart = [follower, machines.nodes.len() - 1];
    machines.hub.cut_off(&apart)?;
    let parted = Instant::now();
    tokio::time::sleep(SCALED_AFTER).await;
    let engine = &mut machines.nodes[leader].engine;
    let service = engine.get(&format!("/services/{WEB}")).await?;
    let mut spec = service["Spec"].clone();
    spec["Mode"] = json!({ "Replicated": { "Replicas": size } });
    let version = &service["Version"]["Index"];
    let id = text(&service["ID"]);
    let path = format!("/services/{id}/update?version={version}");
    engine.post(&path, &spec).await?;
    tokio::time::sleep(PARTED.saturating_sub(parted.elapsed())).await;
    let started = Instant::now();
    machines.hub.heal(&apart)?;
    loop {
        // What is found later than the answer was begun may be fixed by then: the time is when asking began.
        let asked = started.elapsed();
        let Some(what) = unlike(machines, leader, Some(size)).await? else {
            return Ok(asked);
        };
        if asked > LIMIT {
            bail!("after {asked:.0?}: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What is not as it is meant to be: the tasks the leader knows, the containers and the kernel of each node, and whether
/// every replica answers from every node.
async fn unlike(
    machines: &mut Machines,
    leader: usize,
    size: Option<usize>,
) -> Result<Option<String>> {
    let nodes = machines.nodes.len();
    let mut engine = machines.engine(leader);
    let web = tasks::running(&mut engine, WEB).await?;
    let probes = tasks::running(&mut engine, PROBE).await?;
    if size.is_some_and(|size| size != web.len()) || probes.len() != nodes {
        return Ok(Some(format!(
            "{} tasks and {} probes run",
            web.len(),
            probes.len()
        )));
    }
    let containers = tasks::containers(machines, WEB, false).await?;
    if containers != web.len() {
        return Ok(Some(format!(
            "{containers} containers run of {}",
            web.len()
        )));
    }
    for node in &mut machines.nodes {
        let diagnosis = node.engine.get("/doctor").await?;
        if diagnosis["Findings"] != json!([]) {
            return Ok(Some(format!("node {}: {diagnosis}", node.number + 1)));
        }
    }
    let addresses = web.iter().map(task_address).collect::<Result<Vec<_>>>()?;
    for probe in &probes {
        let node = text(&probe["NodeID"]);
        let found = machines.nodes.iter_mut().find(|other| other.id == node);
        let Some(node) = found else { continue };
        let netns = node.sandbox()?.outer(pid(probe)?)?;
        if !all_answer(netns, addresses.clone()).await? {
            return Ok(Some(format!("no answer on node {}", node.number + 1)));
        }
    }
    Ok(None)
}
