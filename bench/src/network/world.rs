//! Two nodes on a wire, with containers on our datapath, and two more on a bridge and a VXLAN interface of the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::Command,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use shoal_network::{
    ContainerEndpoints, Datapath, Endpoint, NetworkConfig, NetworkState, Overlay, Vip,
};
use tokio::runtime::Runtime;

use super::{CLIENT, HERE, PLAIN, THERE};

const NETWORK: &str = "bench";
const NODES: [Ipv4Addr; 2] = [
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(198, 51, 100, 2),
];
/// A client that makes many connections uses its ports again after a second.
const CLIENT_SETTINGS: [(&str, &str); 2] =
    [("ip_local_port_range", "1024 65535"), ("tcp_tw_reuse", "1")];

/// A network namespace; it goes with this and what runs in it.
#[derive(Debug)]
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            sh("ip link set lo up")?;
            Ok::<_, anyhow::Error>(File::open("/proc/thread-self/ns/net")?.into())
        });
        let made = made
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        Ok(Self(made.context("make a network namespace")?))
    }

    /// Runs on a thread inside.
    pub(super) fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let namespace = self.0.try_clone()?;
        Ok(thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("the namespace is open");
            work()
        }))
    }

    fn sh(&self, line: &str) -> Result<()> {
        let line = line.to_owned();
        let done = self.thread(move || sh(&line))?.join();
        done.map_err(|_| anyhow::anyhow!("a thread panicked"))?
    }

    /// How other programs name it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

fn sh(line: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", line]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {said}");
    Ok(())
}

pub(super) struct World {
    nodes: Vec<Node>,
    pub(super) client: Namespace,
    pub(super) here: Namespace,
    pub(super) there: Namespace,
    /// A client's and a server's.
    pub(super) plain: [Namespace; 2],
}

struct Node {
    namespace: Namespace,
    config: NetworkConfig,
    /// Its threads are in the namespace.
    runtime: Runtime,
    datapath: Option<Datapath>,
}

impl World {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let [first, second] = [Namespace::new()?, Namespace::new()?];
        let wire = format!(
            "ip link add eth0 type veth peer name eth0 netns {}",
            second.path()
        );
        first.sh(&wire)?;
        for (node, addr) in [(&first, NODES[0]), (&second, NODES[1])] {
            node.sh(&format!(
                "ip addr add {addr}/24 dev eth0; ip link set eth0 up"
            ))?;
        }
        let plain = [plain(&first, 0)?, plain(&second, 1)?];
        let mut nodes = vec![
            Node::new(first, &dir.join("first"))?,
            Node::new(second, &dir.join("second"))?,
        ];
        for (node, state) in nodes.iter_mut().zip(states(Vec::new())) {
            node.apply(state)?;
        }
        let [client, here, there] = [
            nodes[0].attach(CLIENT)?,
            nodes[0].attach(HERE)?,
            nodes[1].attach(THERE)?,
        ];
        for client in [&client, &plain[0]] {
            for (name, value) in CLIENT_SETTINGS {
                client.sh(&format!("echo '{value}' > /proc/sys/net/ipv4/{name}"))?;
            }
        }
        Ok(Self {
            nodes,
            client,
            here,
            there,
            plain,
        })
    }

    /// Gives both nodes these virtual addresses.
    pub(super) fn apply(&mut self, vips: Vec<Vip>) -> Result<()> {
        for (node, state) in self.nodes.iter_mut().zip(states(vips)) {
            node.apply(state)?;
        }
        Ok(())
    }

    pub(super) fn apply_one(&mut self, node: usize, state: NetworkState) -> Result<()> {
        self.nodes[node].apply(state)
    }

    /// Takes everything away.
    pub(super) fn end(self) -> Result<()> {
        self.nodes.into_iter().try_for_each(Node::end)
    }
}

/// What each node is to have.
pub(super) fn states(vips: Vec<Vip>) -> Vec<NetworkState> {
    let places = [(CLIENT, 0), (HERE, 0), (THERE, 1)];
    let state = |here: usize| NetworkState {
        id: NETWORK.to_owned(),
        subnet: "10.0.0.0/16".parse().expect("a subnet"),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        internal: false,
        ingress: false,
        mtu: None,
        ipv6: true,
        vips: vips.clone(),
        published: Vec::new(),
        names: BTreeMap::new(),
        overlay: Some(Overlay {
            vni: 4097,
            port: 4789,
            local: NODES[here].into(),
            peers: BTreeSet::from([NODES[1 - here].into()]),
            remote: places
                .iter()
                .filter(|(_, node)| *node != here)
                .map(|(addr, node)| (*addr, NODES[*node].into()))
                .collect(),
        }),
    };
    vec![state(0), state(1)]
}

impl Node {
    fn new(namespace: Namespace, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let config = NetworkConfig {
            exec_root: dir.to_owned(),
            instance: "bench".to_owned(),
            uplink_pool: "100.64.0.0/16".parse()?,
            dns_upstreams: Vec::new(),
        };
        let runtime = namespace.thread(|| {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(1).enable_all().build()
        })?;
        let runtime = runtime
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        let open = runtime.spawn(Datapath::open(config.clone()));
        let datapath = Some(runtime.block_on(open)??);
        Ok(Self {
            namespace,
            config,
            runtime,
            datapath,
        })
    }

    fn apply(&self, state: NetworkState) -> Result<()> {
        let datapath = self.datapath.as_ref().context("it is open")?;
        let errors = self.runtime.block_on(datapath.apply(vec![state]));
        ensure!(errors.is_empty(), "the datapath refused: {errors:?}");
        Ok(())
    }

    fn attach(&self, addr: Ipv4Addr) -> Result<Namespace> {
        let container = Namespace::new()?;
        let endpoint = Endpoint {
            network: NETWORK.to_owned(),
            addr,
        };
        let group = ContainerEndpoints {
            owner: addr.to_string(),
            endpoints: vec![endpoint],
            ..ContainerEndpoints::default()
        };
        let datapath = self.datapath.as_ref().context("it is open")?;
        let attached = datapath.attach(container.0.try_clone()?, group);
        self.runtime.block_on(attached)?;
        Ok(container)
    }

    fn end(mut self) -> Result<()> {
        if let Some(datapath) = self.datapath.take() {
            self.runtime.block_on(datapath.close());
        }
        let removed = self.runtime.spawn(Datapath::remove_all(self.config));
        let errors = self.runtime.block_on(removed)?;
        ensure!(errors.is_empty(), "not everything was removed: {errors:?}");
        drop(self.namespace);
        Ok(())
    }
}

/// A container on a bridge with a VXLAN interface, as other orchestrators make them.
fn plain(node: &Namespace, number: usize) -> Result<Namespace> {
    let container = Namespace::new()?;
    let (local, remote) = (NODES[number], NODES[1 - number]);
    node.sh(&format!(
        "ip link add plain type bridge; ip link set plain up; \
         ip link add plain-vxlan mtu 1450 type vxlan id 99 dstport 4790 local {local} remote {remote}; \
         ip link set plain-vxlan master plain up; \
         ip link add plain-veth mtu 1450 master plain up type veth peer name eth0 mtu 1450 netns {}",
        container.path()
    ))?;
    let last = PLAIN.octets()[3];
    let addr = Ipv4Addr::new(10, 99, 0, if number == 1 { last } else { last - 1 });
    container.sh(&format!(
        "ip addr add {addr}/24 dev eth0; ip link set eth0 up"
    ))?;
    Ok(container)
}
