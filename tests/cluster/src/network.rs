//! Network namespaces of hosts and clients, and the switch between them.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;

use crate::command::{ok, run};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The hosts' network: `SUBNET.1` is the first host, `SUBNET.254` the router. Every switch is in a
/// namespace of its own, so all of them use the same.
const SUBNET: [u8; 3] = [10, 200, 7];
/// Where the client is: another network, so that hosts answer it by way of the router.
const CLIENT_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The same in IPv6: the first half of the hosts' addresses, and of the client's.
const SUBNET6: [u16; 4] = [0x2001, 0xdb8, 7, 0];
const CLIENT_SUBNET6: [u16; 4] = [0x2001, 0xdb8, 12, 0];
/// Smaller than a veth's, as most clouds' networks are.
const MTU: &str = "1450";

/// The address of the host with this number, from 0.
pub(crate) fn host_address(number: usize) -> Ipv4Addr {
    let [a, b, c] = SUBNET;
    let last = u8::try_from(number + 1).expect("fewer than 250 hosts");
    Ipv4Addr::new(a, b, c, last)
}

fn router() -> Ipv4Addr {
    let [a, b, c] = SUBNET;
    Ipv4Addr::new(a, b, c, 254)
}

/// The IPv6 address that a machine with this address has as well.
pub(crate) fn with_v6(addr: Ipv4Addr) -> Ipv6Addr {
    let of_hosts = addr.octets()[..3] == SUBNET;
    let [a, b, c, d] = if of_hosts { SUBNET6 } else { CLIENT_SUBNET6 };
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, addr.octets()[3].into())
}

/// A network namespace with a name; it goes when this is dropped.
#[derive(Debug)]
pub struct Network {
    name: String,
}

impl Network {
    pub(crate) fn new() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "these tests make namespaces: run them as root, by tests/run.sh"
        );
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            name: format!("shoal-{}-{count}", std::process::id()),
        };
        network.create()?;
        Ok(network)
    }

    /// Makes the namespace again after [`Network::remove`].
    pub(crate) fn create(&self) -> Result<()> {
        ok(Command::new("ip").args(["netns", "add", &self.name]))?;
        ok(self.command("ip").args(["link", "set", "lo", "up"]))
    }

    pub(crate) fn exists(&self) -> bool {
        std::path::Path::new("/run/netns").join(&self.name).exists()
    }

    pub(crate) fn remove(&self) -> Result<()> {
        if self.exists() {
            ok(Command::new("ip").args(["netns", "del", &self.name]))?;
        }
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `program`, to be run in this network.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        inside(&self.name, program)
    }

    /// GETs a URL from here; the body, or why there is none.
    pub fn get(&self, url: &str) -> Result<String, String> {
        let output = run(self
            .command("curl")
            .args(["-sS", "--fail", "--max-time", "5", url]));
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(output.stderr)
        }
    }
}

/// `program`, to be run in a network namespace.
pub(crate) fn inside(netns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{netns}"))
        .arg("--")
        .arg(program);
    command
}

impl AsRef<Self> for Network {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let removed = self.remove();
        if !std::thread::panicking() {
            removed.expect("the network namespace goes");
        }
    }
}

/// What happens to frames from one host to another.
#[derive(Debug, Clone, Copy)]
struct Fault {
    from: usize,
    to: usize,
    /// Of a hundred frames, how many are dropped.
    percent: u8,
}

/// A bridge in a namespace of its own, with a port for each host, and a router to the client.
#[derive(Debug)]
pub(crate) struct Switch {
    network: Network,
    faults: Mutex<Vec<Fault>>,
}

impl Switch {
    pub(crate) fn new() -> Result<Self> {
        let network = Network::new()?;
        let ip = |words: &str| ok(network.command("ip").args(words.split(' ')));
        // No spanning tree and no delay: a port forwards as soon as it is up.
        ip("link add hosts type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        ip(&format!("address add {}/24 dev hosts", router()))?;
        let router6 = with_v6(router());
        ip(&format!("address add {router6}/64 dev hosts nodad"))?;
        ip(&format!("link set hosts up mtu {MTU}"))?;
        ok(network.command("sysctl").args([
            "-qw",
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
        ]))?;
        let switch = Self {
            network,
            faults: Mutex::default(),
        };
        switch.apply(&[])?;
        Ok(switch)
    }

    /// Gives the host with this number its port, address and default route.
    pub(crate) fn plug(&self, number: usize, host: &Network) -> Result<()> {
        let port = port(number);
        ok(self.network.command("ip").args([
            "link", "add", &port, "mtu", MTU, "type", "veth", "peer", "name", "eth0", "mtu", MTU,
            "netns", &host.name,
        ]))?;
        ok(self
            .network
            .command("ip")
            .args(["link", "set", &port, "master", "hosts", "up"]))?;
        connect(host, host_address(number), router())
    }

    /// Takes a host's port away, with its end in the host: nothing more comes from there, not even
    /// the end of its connections.
    pub(crate) fn unplug(&self, number: usize) -> Result<()> {
        let port = port(number);
        if run(self.network.command("ip").args(["link", "show", &port]))
            .status
            .success()
        {
            ok(self.network.command("ip").args(["link", "del", &port]))?;
        }
        Ok(())
    }

    /// A network outside of the cluster, from which every host is reached through the router.
    pub(crate) fn client(&self) -> Result<Network> {
        let client = Network::new()?;
        ok(self.network.command("ip").args([
            "link",
            "add",
            "clients",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &client.name,
        ]))?;
        let link = |words: &str| ok(self.network.command("ip").args(words.split(' ')));
        let router6 = with_v6(CLIENT_ROUTER);
        link(&format!("address add {CLIENT_ROUTER}/24 dev clients"))?;
        link(&format!("address add {router6}/64 dev clients nodad"))?;
        link("link set clients up")?;
        connect(&client, CLIENT, CLIENT_ROUTER)?;
        Ok(client)
    }

    /// Gives a host another address, and the same ways to everywhere else.
    pub(crate) fn renumber(host: &Network, addr: Ipv4Addr) -> Result<()> {
        ok(host
            .command("ip")
            .args(["address", "flush", "dev", "eth0", "scope", "global"]))?;
        connect(host, addr, router())
    }

    /// Leads all of a host's traffic over the router, which has a way to it for packets of `mtu` bytes.
    pub(crate) fn narrow(
        &self,
        number: usize,
        host: &Network,
        others: &[&Network],
        mtu: u16,
    ) -> Result<()> {
        let ip = |network: &Network, words: &str| ok(network.command("ip").args(words.split(' ')));
        // Or the router would tell them of the shorter way.
        for interface in ["all", "hosts"] {
            let redirects = format!("net.ipv4.conf.{interface}.send_redirects=0");
            ok(self.network.command("sysctl").args(["-qw", &redirects]))?;
        }
        let (addr, router) = (host_address(number), router());
        ip(
            &self.network,
            &format!("route add {addr}/32 dev hosts mtu lock {mtu}"),
        )?;
        for other in others {
            ip(other, &format!("route add {addr}/32 via {router}"))?;
        }
        let [a, b, c] = SUBNET;
        ip(host, &format!("route del {a}.{b}.{c}.0/24 dev eth0"))?;
        ip(host, &format!("route add {router}/32 dev eth0"))?;
        ip(host, &format!("route replace default via {router}"))?;
        ip(host, &format!("link set eth0 mtu {mtu}"))
    }

    pub(crate) fn client_address() -> Ipv4Addr {
        CLIENT
    }

    /// From now on, of a hundred frames from each of `from` to each of `to`, `percent` are dropped.
    pub(crate) fn drop_frames(&self, percent: u8, from: &[usize], to: &[usize]) -> Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        for from in from {
            for to in to.iter().filter(|to| *to != from) {
                faults.push(Fault {
                    from: *from,
                    to: *to,
                    percent,
                });
            }
        }
        self.apply(&faults)
    }

    pub(crate) fn heal(&self) -> Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.clear();
        self.apply(&faults)
    }

    /// One transaction: at no time do frames pass that should not. What the bridge itself sends, which
    /// is what comes from clients, is left alone.
    fn apply(&self, faults: &[Fault]) -> Result<()> {
        let mut rules = String::from(
            "add table bridge faults\n\
             add chain bridge faults forward { type filter hook forward priority 0; }\n\
             flush chain bridge faults forward\n",
        );
        for Fault { from, to, percent } in faults {
            let (from, to) = (port(*from), port(*to));
            let which = match percent {
                100.. => String::new(),
                _ => format!("numgen random mod 100 < {percent} "),
            };
            writeln!(
                rules,
                "add rule bridge faults forward iifname {from} oifname {to} {which}drop"
            )?;
        }
        let mut nft = self.network.command("nft");
        let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        nft.stdin
            .take()
            .context("it has an input")?
            .write_all(rules.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refused:\n{rules}");
        Ok(())
    }
}

fn port(number: usize) -> String {
    format!("port{number}")
}

/// Gives a machine its addresses and the ways to everywhere else.
fn connect(network: &Network, address: Ipv4Addr, router: Ipv4Addr) -> Result<()> {
    let ip = |words: &str| ok(network.command("ip").args(words.split(' ')));
    ip(&format!("address add {address}/24 dev eth0"))?;
    ip(&format!(
        "address add {}/64 dev eth0 nodad",
        with_v6(address)
    ))?;
    ip("link set eth0 up")?;
    for router in [IpAddr::from(router), with_v6(router).into()] {
        ip(&format!("route replace default via {router}"))?;
    }
    Ok(())
}
