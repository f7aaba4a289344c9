//! Several hosts on one wire, each with a datapath of its own, and a client outside.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::Path,
};

use shoal_network::{Datapath, NetworkConfig, NetworkState, Overlay};
use tokio::runtime::Runtime;

use super::{Container, apart, ip, network, sh, texts};

/// What lies between the hosts; smaller than usual, so that nobody can take it for granted.
pub(crate) const WIRE_MTU: u32 = 1400;
pub(crate) const PORT: u16 = 4789;
/// The machine outside.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 250);

/// Each machine has an address of IPv6, too.
pub(crate) fn v6(addr: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, addr.octets()[3].into())
}

pub(crate) struct Cluster {
    pub(crate) hosts: Vec<Host>,
    pub(crate) client: Container,
}

/// A host, in a namespace of its own.
pub(crate) struct Host {
    pub(crate) addr: Ipv4Addr,
    pub(crate) inside: Container,
    pub(crate) config: NetworkConfig,
    /// Its threads are in the host's namespace.
    runtime: Option<Runtime>,
}

/// Runs `test` with `count` hosts; the namespace of the test itself is the wire.
pub(crate) fn in_cluster<F: Future<Output = ()>>(
    count: usize,
    test: impl FnOnce(Cluster) -> F + Send,
) {
    apart(async |dir| test(Cluster::new(dir.path(), count)).await);
}

impl Cluster {
    fn new(dir: &Path, count: usize) -> Self {
        sh("ip link set lo up; ip link add wire type bridge; ip link set wire up");
        let hosts = (0..count).map(|n| Host::new(dir, n)).collect();
        let client = Container::new();
        plug(&client, "p-client", OUTSIDE);
        Self { hosts, client }
    }

    /// Opens every host's datapath.
    pub(crate) async fn open(&self) -> Vec<Datapath> {
        let mut datapaths = Vec::new();
        for host in &self.hosts {
            datapaths.push(host.open().await);
        }
        datapaths
    }

    /// The overlay of host `here`, given on which host each address is.
    pub(crate) fn overlay(&self, vni: u32, here: usize, places: &[(&str, usize)]) -> Overlay {
        let addr = |host: usize| self.hosts[host].addr;
        let elsewhere = places.iter().filter(|(_, host)| *host != here);
        Overlay {
            vni,
            port: PORT,
            local: addr(here).into(),
            peers: (0..self.hosts.len())
                .filter(|host| *host != here)
                .map(|host| addr(host).into())
                .collect(),
            remote: elsewhere
                .map(|(a, host)| (ip(a), addr(*host).into()))
                .collect(),
        }
    }

    /// The same network as every host is to see it.
    pub(crate) fn network(
        &self,
        id: &str,
        subnet: &str,
        vni: u32,
        places: &[(&str, usize)],
    ) -> Vec<NetworkState> {
        (0..self.hosts.len())
            .map(|here| NetworkState {
                overlay: Some(self.overlay(vni, here, places)),
                ..network(id, subnet)
            })
            .collect()
    }
}

impl Host {
    fn new(dir: &Path, number: usize) -> Self {
        let last = u8::try_from(11 + number).unwrap();
        let addr = Ipv4Addr::new(198, 51, 100, last);
        let inside = Container::new();
        plug(&inside, &format!("p{number}"), addr);
        let exec_root = dir.join(number.to_string());
        fs::create_dir(&exec_root).unwrap();
        let runtime = inside.run(|| {
            sh(&format!("ip route add default via {OUTSIDE}"));
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        });
        let config = NetworkConfig {
            exec_root,
            instance: "test1".to_owned(),
            uplink_pool: "169.254.128.0/18".parse().unwrap(),
            dns_upstreams: Vec::new(),
        };
        Self {
            addr,
            inside,
            config,
            runtime: Some(runtime),
        }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    pub(crate) async fn open(&self) -> Datapath {
        let open = Datapath::open(self.config.clone());
        self.runtime().spawn(open).await.unwrap().unwrap()
    }

    pub(crate) async fn remove_all(&self) {
        let removal = Datapath::remove_all(self.config.clone());
        let errors = self.runtime().spawn(removal).await.unwrap();
        assert!(errors.is_empty(), "{}", texts(&errors));
    }

    /// A shell line in the host's namespace.
    pub(crate) fn sh(&self, line: &str) -> String {
        self.inside.run(|| sh(line))
    }

    /// A shell line in the namespace of a network.
    pub(crate) fn within(&self, network: &str, line: &str) -> String {
        let pin = self.config.exec_root.join("netns").join(network);
        self.sh(&format!("nsenter --net={} {line}", pin.display()))
    }

    /// Gives the host another address.
    pub(crate) fn readdress(&mut self, addr: Ipv4Addr) {
        let old = std::mem::replace(&mut self.addr, addr);
        self.sh(&format!(
            "ip addr del {old}/24 dev eth0; ip addr add {addr}/24 dev eth0; \
             ip route add default via {OUTSIDE}"
        ));
    }
}

/// Also after a failure nothing stays mounted.
impl Drop for Host {
    fn drop(&mut self) {
        let runtime = self.runtime.take().unwrap();
        let config = self.config.clone();
        tokio::task::block_in_place(|| {
            let removal = runtime.spawn(Datapath::remove_all(config));
            drop(tokio::runtime::Handle::current().block_on(removal));
        });
        runtime.shutdown_background();
    }
}

fn plug(into: &Container, port: &str, addr: Ipv4Addr) {
    let ns = format!("/proc/{}/fd/{}", std::process::id(), into.ns.as_raw_fd());
    sh(&format!(
        "ip link add {port} mtu {WIRE_MTU} master wire up type veth \
         peer name eth0 mtu {WIRE_MTU} netns {ns}"
    ));
    into.run(|| {
        sh(&format!(
            "ip link set lo up; ip addr add {addr}/24 dev eth0; ip link set eth0 up; \
             ip addr add {}/64 dev eth0 nodad",
            v6(addr)
        ));
    });
}

/// All addresses that are not this.
pub(crate) fn without(peers: &BTreeSet<IpAddr>, addr: Ipv4Addr) -> BTreeSet<IpAddr> {
    let others = peers.iter().copied();
    others.filter(|peer| *peer != IpAddr::from(addr)).collect()
}
