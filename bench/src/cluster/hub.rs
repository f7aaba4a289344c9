//! The switch between the nodes: bridges in a network namespace of their own, which ends with this process.

use std::{
    fs::File,
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// The bridge that joins all nodes, and the one for nodes that are cut off from the others.
const WHOLE: &str = "whole";
const ISLAND: &str = "island";

/// A port for each node; frames pass between ports on the same bridge.
#[derive(Debug)]
pub(crate) struct Hub {
    holder: Child,
}

impl Hub {
    /// To be called from the main thread, as `Sandbox::start`.
    pub(crate) fn new() -> Result<Self> {
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "--"])
            .args(["sh", "-c", "ip link set lo up && exec sleep infinity"])
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start setpriv (util-linux)")?;
        let hub = Self { holder };
        // Until the namespace is there, its /proc shows the one of this process.
        let own = std::fs::read_link("/proc/self/ns/net")?;
        while std::fs::read_link(netns(hub.pid())).context("the hub runs")? == own {
            thread::sleep(Duration::from_millis(1));
        }
        for bridge in [WHOLE, ISLAND] {
            hub.ip(&format!(
                "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            ))?;
            hub.ip(&format!("link set {bridge} up"))?;
        }
        hub.ip(&format!(
            "address add {}/24 dev {WHOLE}",
            Self::own_address()
        ))?;
        Ok(hub)
    }

    /// Where the bench's own clients are.
    fn own_address() -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, 254)
    }

    /// The address of a node, numbered from 0.
    pub(crate) fn address(node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, u8::try_from(node + 1).unwrap_or(u8::MAX))
    }

    /// A process whose network namespace is the hub's.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Gives the node whose first process is `init` its `eth0`.
    pub(crate) fn plug(&self, node: usize, init: u32) -> Result<()> {
        self.ip(&format!(
            "link add port{node} type veth peer name eth0 netns {init}"
        ))?;
        self.ip(&format!("link set port{node} master {WHOLE} up"))?;
        let inside = |words: &str| ip(init, words);
        inside("link set eth0 up")?;
        // The last: the sandbox waits for it.
        inside(&format!("address add {}/24 dev eth0", Self::address(node)))
    }

    /// Takes the node's port away, with its end in the node: nothing more comes from there, not even the end of its connections.
    pub(crate) fn unplug(&self, node: usize) -> Result<()> {
        self.ip(&format!("link del port{node}"))
    }

    /// From now on these nodes reach each other and nobody else. Their links stay up.
    pub(crate) fn cut_off(&self, nodes: &[usize]) -> Result<()> {
        self.lead_to(ISLAND, nodes)
    }

    /// Ends [`Hub::cut_off`].
    pub(crate) fn heal(&self, nodes: &[usize]) -> Result<()> {
        self.lead_to(WHOLE, nodes)
    }

    fn lead_to(&self, bridge: &str, nodes: &[usize]) -> Result<()> {
        nodes
            .iter()
            .try_for_each(|node| self.ip(&format!("link set port{node} master {bridge}")))
    }

    fn ip(&self, words: &str) -> Result<()> {
        ip(self.pid(), words)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Err(error) = self.holder.kill().and_then(|()| self.holder.wait()) {
            eprintln!("bench: end of the hub: {error}");
        }
    }
}

fn netns(pid: u32) -> String {
    format!("/proc/{pid}/ns/net")
}

/// Runs `ip` in the network namespace of `pid`.
fn ip(pid: u32, words: &str) -> Result<()> {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", netns(pid)))
        .args(["--", "ip"])
        .args(words.split(' '))
        .output()
        .context("start nsenter (util-linux)")?;
    if !output.status.success() {
        bail!(
            "ip {words}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Runs `work` on a thread in the network namespace of `pid`; sockets made there stay in it.
pub(crate) fn within<T: Send + 'static>(
    pid: u32,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<Result<T>>> {
    let namespace = File::open(netns(pid)).with_context(|| format!("process {pid} runs"))?;
    Ok(thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
        Ok(work())
    }))
}
