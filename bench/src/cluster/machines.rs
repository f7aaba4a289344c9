//! Several nodes in one swarm.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    hub::Hub,
    node::{Node, Side},
};
use crate::{deadline::Deadline, http::Engine, swarm::daemon::text};

/// How long a swarm may take to be whole.
const LIMIT: Duration = Duration::from_mins(2);
/// At rest, so that what the last sample left to do is not measured with the next.
const REST: Duration = Duration::from_secs(2);

/// Agents that ask to join at the same time.
const JOIN_TOGETHER: usize = 20;

/// The network that services are attached to.
pub(crate) const NETWORK: &str = "shoal-bench";
const IMAGE: &str = "shoal-bench:busybox";

/// A swarm; the first nodes are its managers.
#[derive(Debug)]
pub(crate) struct Machines {
    pub(crate) side: Side,
    pub(crate) nodes: Vec<Node>,
    pub(crate) hub: Hub,
    /// What services name as their image: for dockerd an id, because by a name it would first ask a registry.
    pub(crate) image: String,
    managers: usize,
}

impl Machines {
    /// Starts `managers + workers` nodes and joins them, with the image on each and the network.
    pub(crate) async fn form(
        side: &Side,
        dir: &Path,
        managers: usize,
        workers: usize,
        image: &[u8],
    ) -> Result<Self> {
        let mut machines = Self::joined(side, dir, managers, workers).await?;
        machines.settled().await?;
        machines.spread(image).await.context("spread the image")?;
        // Docker's default of a /24 ends at some 250 tasks.
        let network = json!({
            "Name": NETWORK,
            "Driver": "overlay",
            "IPAM": { "Config": [{ "Subnet": "10.77.0.0/16" }] },
        });
        machines.nodes[0]
            .engine
            .post("/networks/create", &network)
            .await?;
        Ok(machines)
    }

    /// Managers with nothing on them.
    pub(crate) async fn managers_only(side: &Side, dir: &Path, managers: usize) -> Result<Self> {
        let mut machines = Self::joined(side, dir, managers, 0).await?;
        machines.settled().await?;
        Ok(machines)
    }

    /// Starts nodes whose tasks run in memory only, and joins them; how long it took from the first question to the last
    /// node's being ready.
    pub(crate) async fn add_agents(&mut self, dir: &Path, count: usize) -> Result<Duration> {
        let first = self.nodes.len();
        for number in first..first + count {
            let mut node = Node::load(&self.side, number, &dir.join(number.to_string()))?;
            node.boot(&self.hub)?;
            self.nodes.push(node);
        }
        for node in &mut self.nodes[first..] {
            node.answers().await?;
        }
        let swarm = self.nodes[0].engine.get("/swarm").await?;
        let token = &swarm["JoinTokens"]["Worker"];
        let numbers: Vec<usize> = (first..first + count).collect();
        let started = Instant::now();
        for numbers in numbers.chunks(JOIN_TOGETHER) {
            let mut joining = JoinSet::new();
            for number in numbers {
                let mut engine = self.engine(*number);
                let request = join_request(*number, token);
                joining.spawn(async move { engine.post("/swarm/join", &request).await });
            }
            while let Some(joined) = joining.join_next().await {
                joined.context("a join")?.context("join an agent")?;
            }
        }
        self.whole().await?;
        let took = started.elapsed();
        for node in &mut self.nodes[first..] {
            node.read_id().await?;
        }
        Ok(took)
    }

    /// Nodes in one swarm.
    async fn joined(side: &Side, dir: &Path, managers: usize, workers: usize) -> Result<Self> {
        let hub = Hub::new()?;
        let mut machines = Self {
            side: side.clone(),
            nodes: Vec::new(),
            hub,
            image: String::new(),
            managers,
        };
        for number in 0..managers + workers {
            let mut node = Node::new(side, number, &dir.join(number.to_string()))?;
            node.boot(&machines.hub)?;
            machines.nodes.push(node);
        }
        for node in &mut machines.nodes {
            node.answers().await?;
        }
        machines.join_all().await.context("form the swarm")?;
        Ok(machines)
    }

    async fn join_all(&mut self) -> Result<()> {
        let init = place(0);
        self.nodes[0].engine.post("/swarm/init", &init).await?;
        let swarm = self.nodes[0].engine.get("/swarm").await?;
        let managers = self.managers;
        for node in &mut self.nodes {
            let role = if node.number < managers {
                "Manager"
            } else {
                "Worker"
            };
            if node.number > 0 {
                let join = join_request(node.number, &swarm["JoinTokens"][role]);
                let joined = node.engine.post("/swarm/join", &join).await;
                joined.with_context(|| format!("join node {} as {role}", node.number + 1))?;
            }
            node.read_id().await?;
        }
        Ok(())
    }

    /// Puts the image on every node, for dockerd with the same id everywhere.
    async fn spread(&mut self, tar: &[u8]) -> Result<()> {
        let import = "/images/create?fromSrc=-&repo=shoal-bench&tag=busybox";
        if self.side.is_shoal() {
            for node in &mut self.nodes {
                node.engine.post_tar(import, tar.to_vec()).await?;
            }
            IMAGE.clone_into(&mut self.image);
            return Ok(());
        }
        let (first, others) = self.nodes.split_first_mut().context("a node")?;
        first.engine.post_tar(import, tar.to_vec()).await?;
        let path = format!("/images/{IMAGE}");
        let archive = first.engine.get_bytes(&format!("{path}/get")).await?;
        for node in others {
            node.engine
                .post_tar("/images/load?quiet=1", archive.to_vec())
                .await?;
        }
        let image = first.engine.get(&format!("{path}/json")).await?;
        text(&image["Id"]).clone_into(&mut self.image);
        Ok(())
    }

    /// The numbers of the managers.
    pub(crate) fn managers(&self) -> std::ops::Range<usize> {
        0..self.managers
    }

    /// The nodes as the first manager that answers knows them.
    pub(crate) async fn listed(&mut self) -> Result<Vec<Value>> {
        let mut last = None;
        for number in self.managers() {
            let node = &mut self.nodes[number];
            let asked =
                tokio::time::timeout(Duration::from_secs(5), node.engine.get("/nodes")).await;
            match asked {
                Ok(Ok(nodes)) => return Ok(nodes.as_array().cloned().unwrap_or_default()),
                Ok(Err(error)) => last = Some(error),
                // The answer may still come, to nobody.
                Err(_) => node.engine = node.engine.another(),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no manager answers in time")))
    }

    /// Waits until every node is ready, every manager reachable and one of them leads; returns which, after a rest.
    pub(crate) async fn settled(&mut self) -> Result<usize> {
        let leader = self.whole().await?;
        tokio::time::sleep(REST).await;
        Ok(leader)
    }

    /// The same without the rest.
    async fn whole(&mut self) -> Result<usize> {
        let limit = Deadline::after(LIMIT);
        loop {
            let nodes = self.listed().await.unwrap_or_default();
            let is = |node: &Value, path: &str, word: &str| {
                node.pointer(path).and_then(Value::as_str) == Some(word)
            };
            let ready = nodes.iter().filter(|n| is(n, "/Status/State", "ready"));
            let reach = nodes
                .iter()
                .filter(|n| is(n, "/ManagerStatus/Reachability", "reachable"));
            let leader = nodes.iter().find(|n| n["ManagerStatus"]["Leader"] == true);
            if let Some(leader) = leader
                && ready.count() == self.nodes.len()
                && reach.count() == self.managers
                && let Some(node) = self.nodes.iter().find(|n| n.id == text(&leader["ID"]))
            {
                return Ok(node.number);
            }
            if limit.passed() {
                bail!("the swarm is not whole: {}", Value::Array(nodes));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A connection to a node's daemon.
    pub(crate) fn engine(&self, number: usize) -> Engine {
        self.nodes[number].engine.another()
    }
}

/// Where a node is, in the words of `swarm init` and `swarm join`.
fn place(number: usize) -> Value {
    let address = Hub::address(number).to_string();
    json!({ "ListenAddr": format!("{address}:2377"), "AdvertiseAddr": address })
}

fn join_request(number: usize, token: &Value) -> Value {
    let mut join = place(number);
    join["RemoteAddrs"] = json!([format!("{}:2377", Hub::address(0))]);
    join["JoinToken"] = token.clone();
    join
}
