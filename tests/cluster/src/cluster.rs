//! Several machines on one switch, in one swarm.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    thread,
};

use anyhow::Result;
use serde_json::Value;

use crate::{
    Host, Inventory, Network, Output,
    network::{Switch, host_address, with_v6},
    wait_for,
};

/// The port that managers listen on.
const CLUSTER_PORT: u16 = 2377;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Worker,
    Manager,
}

impl Role {
    pub fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

/// A line of `node ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLine {
    pub id: String,
    pub hostname: String,
    /// `Ready`, `Down`…
    pub status: String,
    /// `Active`, `Pause`, `Drain`.
    pub availability: String,
    /// `Leader`, `Reachable`, `Unreachable`; empty for a worker.
    pub manager: String,
}

/// A task, as a manager knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskLine {
    pub id: String,
    pub node: String,
    pub slot: u64,
    /// Observed: `running`, `failed`…
    pub state: String,
    pub desired: String,
    /// 0 unless it runs.
    pub pid: u32,
}

impl TaskLine {
    /// It runs, and is meant to.
    pub fn runs(&self) -> bool {
        self.state == "running" && self.desired == "running" && self.pid > 0
    }
}

/// Hosts `node1`, `node2`… on one switch, and a client outside. Hosts are named by their index, from 0.
///
/// Dropping it takes all of them away; when the test is failing, their logs are kept and printed.
#[derive(Debug)]
pub struct Cluster {
    hosts: Vec<Host>,
    client: Network,
    switch: Arc<Switch>,
}

impl Cluster {
    /// Hosts whose daemons run and are in no swarm.
    #[track_caller]
    pub fn new(count: usize) -> Self {
        Self::with_hosts(count, |_, host| Ok(host))
    }

    /// The same, of hosts that `change` equips before their start.
    #[track_caller]
    pub fn with_hosts(count: usize, change: impl Fn(usize, Host) -> Result<Host>) -> Self {
        let switch = Arc::new(Switch::new().expect("make a switch"));
        let hosts = (0..count)
            .map(|i| {
                let host = Host::plugged(&switch, i, &format!("node{}", i + 1))?;
                change(i, host)
            })
            .collect::<Result<Vec<_>>>();
        let mut cluster = Self {
            hosts: hosts.expect("make the hosts"),
            client: switch.client().expect("make a client"),
            switch,
        };
        // All at once: most of a start is waiting.
        thread::scope(|scope| {
            for host in &mut cluster.hosts {
                scope.spawn(|| host.start());
            }
        });
        cluster
    }

    /// A swarm of this many managers and workers, in this order, all of them ready.
    #[track_caller]
    pub fn formed(managers: usize, workers: usize) -> Self {
        let cluster = Self::new(managers + workers);
        cluster.form(managers);
        cluster
    }

    /// Makes a swarm of all hosts, of which the first ones are managers.
    #[track_caller]
    pub fn form(&self, managers: usize) {
        self.init(0, &[]);
        for i in 1..self.len() {
            let role = if i < managers {
                Role::Manager
            } else {
                Role::Worker
            };
            self.join(i, role, 0);
        }
        self.wait_ready(0, self.len());
        let all = |nodes: &Vec<NodeLine>| {
            let votes = nodes
                .iter()
                .filter(|node| ["Leader", "Reachable"].contains(&node.manager.as_str()));
            votes.count() == managers
        };
        wait_for("every manager to be reachable", || self.nodes(0), all);
    }

    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    pub fn host(&self, i: usize) -> &Host {
        &self.hosts[i]
    }

    pub fn host_mut(&mut self, i: usize) -> &mut Host {
        &mut self.hosts[i]
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    pub fn addr(&self, i: usize) -> Ipv4Addr {
        assert!(i < self.len(), "there is no host {i}");
        host_address(i)
    }

    /// Gives host `i` the address that a host of another number would have, instead of its own.
    #[track_caller]
    pub fn renumber(&self, i: usize, number: usize) -> Ipv4Addr {
        let addr = host_address(number);
        let renumbered = Switch::renumber(self.hosts[i].network(), addr);
        renumbered.expect("give a host another address");
        addr
    }

    /// The host's address in IPv6.
    pub fn addr6(&self, i: usize) -> Ipv6Addr {
        with_v6(self.addr(i))
    }

    /// `http://ADDRESS:PORT/` of a host.
    pub fn url(&self, i: usize, port: u16) -> String {
        format!("http://{}:{port}/", self.addr(i))
    }

    pub fn hostname(i: usize) -> String {
        format!("node{}", i + 1)
    }

    /// A network outside of the cluster, behind a router that reaches every host.
    pub fn client(&self) -> &Network {
        &self.client
    }

    pub fn client_addr6(&self) -> Ipv6Addr {
        with_v6(self.client_addr())
    }

    pub fn client_addr(&self) -> Ipv4Addr {
        Switch::client_address()
    }

    // Membership.

    #[track_caller]
    pub fn init(&self, i: usize, flags: &[&str]) -> String {
        let addr = self.addr(i).to_string();
        self.hosts[i].shoal(&[&["swarm", "init", "--advertise-addr", &addr], flags].concat())
    }

    /// The join token for a role, as host `via` gives it.
    #[track_caller]
    pub fn token(&self, via: usize, role: Role) -> String {
        let token = self.hosts[via].shoal(&["swarm", "join-token", "--quiet", role.word()]);
        token.trim().to_owned()
    }

    #[track_caller]
    pub fn join(&self, i: usize, role: Role, via: usize) -> String {
        let token = self.token(via, role);
        self.try_join(i, &token, &self.cluster_addr(via))
            .success(&format!("joining node{} as a {}", i + 1, role.word()))
    }

    /// Joins by a token and the `HOST:PORT` of a manager.
    pub fn try_join(&self, i: usize, token: &str, remote: &str) -> Output {
        let addr = self.addr(i).to_string();
        self.hosts[i].try_shoal(&[
            "swarm",
            "join",
            "--token",
            token,
            "--advertise-addr",
            &addr,
            remote,
        ])
    }

    /// Where host `i` listens for the cluster.
    pub fn cluster_addr(&self, i: usize) -> String {
        format!("{}:{CLUSTER_PORT}", self.addr(i))
    }

    /// The id of host `i` in its swarm; empty when it is in none.
    #[track_caller]
    pub fn node_id(&self, i: usize) -> String {
        let id = self.hosts[i].shoal(&["info", "--format", "{{.Swarm.NodeID}}"]);
        id.trim().to_owned()
    }

    // What the managers know. `via` is the host that is asked.

    /// Empty when the host does not answer as a manager.
    pub fn nodes(&self, via: usize) -> Vec<NodeLine> {
        let format = "{{.ID}}|{{.Hostname}}|{{.Status}}|{{.Availability}}|{{.ManagerStatus}}";
        let output = self.hosts[via].try_shoal(&["node", "ls", "--format", format]);
        output
            .stdout
            .lines()
            .filter_map(|line| {
                let [id, hostname, status, availability, manager] =
                    line.split('|').collect::<Vec<_>>().try_into().ok()?;
                Some(NodeLine {
                    id: id.to_owned(),
                    hostname: hostname.to_owned(),
                    status: status.to_owned(),
                    availability: availability.to_owned(),
                    manager: manager.to_owned(),
                })
            })
            .collect()
    }

    /// What host `via` knows of host `i`.
    #[track_caller]
    pub fn node(&self, via: usize, i: usize) -> NodeLine {
        let nodes = self.nodes(via);
        let found = nodes
            .iter()
            .find(|node| node.hostname == Self::hostname(i))
            .cloned();
        found.unwrap_or_else(|| panic!("node{} is not in {nodes:#?}", i + 1))
    }

    /// Waits until exactly `count` nodes are ready.
    #[track_caller]
    pub fn wait_ready(&self, via: usize, count: usize) -> Vec<NodeLine> {
        wait_for(
            &format!("{count} ready nodes"),
            || self.nodes(via),
            |nodes| nodes.iter().filter(|node| node.status == "Ready").count() == count,
        )
    }

    #[track_caller]
    pub fn wait_status(&self, via: usize, i: usize, status: &str) {
        wait_for(
            &format!("node{} to be {status}", i + 1),
            || self.node_or_none(via, i),
            |node| node.as_ref().is_some_and(|node| node.status == status),
        );
    }

    fn node_or_none(&self, via: usize, i: usize) -> Option<NodeLine> {
        let nodes = self.nodes(via).into_iter();
        nodes
            .into_iter()
            .find(|node| node.hostname == Self::hostname(i))
    }

    /// The host that leads, as host `via` says.
    #[track_caller]
    pub fn leader(&self, via: usize) -> usize {
        let nodes = wait_for(
            "a leader",
            || self.nodes(via),
            |nodes| nodes.iter().any(|node| node.manager == "Leader"),
        );
        let leader = nodes.iter().find(|node| node.manager == "Leader");
        let name = &leader.expect("it was waited for").hostname;
        (0..self.len())
            .find(|i| Self::hostname(*i) == *name)
            .expect("a host of this cluster leads")
    }

    /// Waits until host `via` names a leader other than `old`.
    #[track_caller]
    pub fn wait_new_leader(&self, via: usize, old: usize) -> usize {
        let old = Self::hostname(old);
        wait_for(
            "another leader",
            || self.nodes(via),
            |nodes| {
                nodes
                    .iter()
                    .any(|node| node.manager == "Leader" && node.hostname != old)
            },
        );
        self.leader(via)
    }

    /// All tasks of a service, dead ones too; empty when the host does not answer as a manager.
    pub fn tasks(&self, via: usize, service: &str) -> Vec<TaskLine> {
        let host = &self.hosts[via];
        let ids = host.try_shoal(&["service", "ps", "--quiet", "--no-trunc", service]);
        let ids: Vec<&str> = ids.stdout.lines().collect();
        if ids.is_empty() {
            return Vec::new();
        }
        // Between two calls a task may have gone; what is left is printed all the same.
        let inspected = host.try_shoal(&[&["inspect", "--type", "task"], &ids[..]].concat());
        let tasks: Vec<Value> = serde_json::from_str(&inspected.stdout).unwrap_or_default();
        let nodes = self.nodes(via);
        let mut tasks: Vec<TaskLine> = tasks
            .iter()
            .map(|task| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let node = text(&task["NodeID"]);
                let pid = task["Status"]["ContainerStatus"]["PID"].as_u64();
                TaskLine {
                    id: text(&task["ID"]),
                    node: nodes
                        .iter()
                        .find(|line| line.id == node)
                        .map_or(node, |line| line.hostname.clone()),
                    slot: task["Slot"].as_u64().unwrap_or_default(),
                    state: text(&task["Status"]["State"]),
                    desired: text(&task["DesiredState"]),
                    pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
                }
            })
            .collect();
        tasks.sort_by(|a, b| (a.slot, &a.id).cmp(&(b.slot, &b.id)));
        tasks
    }

    /// The tasks of a service that run and are meant to.
    pub fn running(&self, via: usize, service: &str) -> Vec<TaskLine> {
        let mut tasks = self.tasks(via, service);
        tasks.retain(TaskLine::runs);
        tasks
    }

    /// Waits until exactly `count` tasks of a service run and are meant to, and nothing else is meant to.
    #[track_caller]
    pub fn wait_running(&self, via: usize, service: &str, count: usize) -> Vec<TaskLine> {
        let mut tasks = wait_for(
            &format!("{count} running tasks of {service}"),
            || self.tasks(via, service),
            |tasks| {
                let meant = tasks.iter().filter(|task| task.desired == "running");
                meant.count() == count && tasks.iter().filter(|task| task.runs()).count() == count
            },
        );
        tasks.retain(TaskLine::runs);
        tasks
    }

    // Faults of the network; those of one machine are the host's.

    /// Nothing passes between any of `these` and any of `those`, either way.
    #[track_caller]
    pub fn part(&self, these: &[usize], those: &[usize]) {
        self.cut_one_way(these, those);
        self.cut_one_way(those, these);
    }

    /// Nothing passes between these hosts and all others.
    #[track_caller]
    pub fn isolate(&self, these: &[usize]) {
        let others: Vec<usize> = (0..self.len()).filter(|i| !these.contains(i)).collect();
        self.part(these, &others);
    }

    /// Nothing passes from any of `from` to any of `to`; the other way it does.
    #[track_caller]
    pub fn cut_one_way(&self, from: &[usize], to: &[usize]) {
        self.switch
            .drop_frames(100, from, to)
            .expect("cut the network");
    }

    /// Of a hundred frames between any two of these hosts, `percent` are lost.
    #[track_caller]
    pub fn lose(&self, percent: u8, these: &[usize]) {
        self.switch
            .drop_frames(percent, these, these)
            .expect("lose frames");
    }

    /// From now on, the way between host `i` and all others leads over the router, and takes no packets
    /// larger than `mtu` bytes, as the host's own interface does.
    #[track_caller]
    pub fn narrow(&self, i: usize, mtu: u16) {
        let others = (0..self.len()).filter(|other| *other != i);
        let others: Vec<&Network> = others.map(|other| self.hosts[other].network()).collect();
        let narrowed = self.switch.narrow(i, self.hosts[i].network(), &others, mtu);
        narrowed.expect("narrow the way");
    }

    /// The network is whole again.
    #[track_caller]
    pub fn heal(&self) {
        self.switch.heal().expect("heal the network");
    }

    /// What all hosts have made in the kernel and on disk, in the order of the hosts.
    pub fn inventory(&self) -> Vec<Inventory> {
        self.hosts.iter().map(Host::inventory).collect()
    }

    /// Imports the image that `tar` makes in a host's directory, on every host.
    #[track_caller]
    pub fn import(&self, name: &str, tar: impl Fn(&std::path::Path) -> Result<std::path::PathBuf>) {
        let tar = tar(self.hosts[0].dir()).expect("make an image");
        thread::scope(|scope| {
            for host in &self.hosts {
                let tar = tar.to_str().expect("a path of letters");
                scope.spawn(move || host.shoal(&["import", tar, name]));
            }
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failing = thread::panicking();
        // All at once, and while the switch is whole; each host's own drop says what went wrong.
        let _ = self.switch.heal();
        thread::scope(|scope| {
            for host in &mut self.hosts {
                scope.spawn(move || {
                    let purged = host.purge();
                    assert!(
                        purged.is_ok() || failing,
                        "nothing of a host stays: {purged:?}"
                    );
                });
            }
        });
    }
}
