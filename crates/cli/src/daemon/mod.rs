//! The daemon: one node, wired together, until it is told to stop.
//!
//! ```text
//! home ─► images, runtime, datapath ─► agent ─┬─► node ─► engine ─► sockets
//!                                     manager ┘
//! ```
//!
//! Whatever way it ends, containers and networks go on; the next daemon with the same directories
//! takes them over. [`purge`] is the only thing that takes them away.

mod control;
mod engine;
mod home;
mod listen;
mod machine;
mod node;
mod purge;
mod resolver;
mod translate;

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use shoal_engine_api as api;
use shoal_manager::InitOptions;
use shoal_node_agent::{
    Agent, AgentConfig,
    datapath::{Datapath, Ipv4Net, NetworkConfig},
    describe,
    image::{ImageConfig, ImageStore, RegistryConfig},
    runtime::{Runtime, RuntimeConfig},
};
use shoal_types::{NodeId, object::NodeDescription};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(crate) use self::purge::purge;
use self::{engine::Engine, home::Home, listen::Address, machine::Machine, node::Node};

/// What a daemon is started with; dockerd's words where they mean the same.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// `unix://PATH` or `tcp://HOST:PORT`.
    pub(crate) hosts: Vec<String>,
    pub(crate) data_root: PathBuf,
    pub(crate) exec_root: PathBuf,
    pub(crate) pidfile: Option<PathBuf>,
    pub(crate) debug: bool,
    /// Be a cluster of one that listens on nothing but its sockets.
    pub(crate) local: bool,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) registry_mirrors: Vec<String>,
}

/// Runs a daemon until SIGTERM or SIGINT.
pub(crate) async fn run(settings: Settings) -> Result<()> {
    // Parsed before anything is made.
    let addresses = settings.hosts.iter().map(|host| Address::parse(host));
    let addresses: Vec<Address> = addresses.collect::<Result<_>>()?;
    let home = Home::open(&settings.data_root, &settings.exec_root)?;
    let stop = CancellationToken::new();
    let mut listeners = Vec::new();
    for address in &addresses {
        listeners.push(address.bind().await?);
    }
    let _pidfile = settings.pidfile.as_deref().map(Pidfile::write).transpose()?;

    let description = describe(settings.labels.clone());
    let agent = start_agent(&home, &settings, description.clone()).await?;
    let machine = Machine::read(
        &home.instance,
        &settings.data_root,
        settings.debug,
        settings.labels.clone(),
        &description,
    );
    let node = Node::open(home, agent).await?;
    if settings.local && node.leading().is_none() {
        init_local(&node, description).await?;
    }

    let router = api::router(api::Engine::new(Engine { node: node.clone(), machine }));
    let mut serving = JoinSet::new();
    for listener in listeners {
        info!(address = %listener, "the API listens");
        serving.spawn(listener.serve(router.clone(), stop.clone()));
    }

    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    // Each arm only says that the daemon is to end.
    tokio::select! {
        _ = terminate.recv() => info!("stopping: SIGTERM"),
        _ = interrupt.recv() => info!("stopping: SIGINT"),
        Some(_) = serving.join_next() => warn!("stopping: a listener ended"),
    }
    stop.cancel();
    while serving.join_next().await.is_some() {}
    node.shutdown().await;
    for address in &addresses {
        address.unbind();
    }
    info!("stopped; containers and networks go on");
    Ok(())
}

async fn start_agent(
    home: &Home,
    settings: &Settings,
    description: NodeDescription,
) -> Result<Agent> {
    let images = ImageStore::open(ImageConfig {
        registry: RegistryConfig {
            insecure: settings.insecure_registries.clone(),
            mirrors: settings.registry_mirrors.clone(),
            ..RegistryConfig::default()
        },
        ..ImageConfig::new(home.directory("image")?)
    })
    .await
    .context("open the image store")?;
    let runtime = Runtime::open(runtime_config(home)?).await.context("reach the supervisor")?;
    let resolver =
        resolver::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let datapath = Datapath::open(network_config(home, resolver.servers))
        .await
        .context("open the datapath")?;
    Ok(Agent::start(AgentConfig {
        dir: home.directory("agent")?,
        images,
        runtime,
        datapath,
        description,
        search: resolver.search,
    }))
}

async fn init_local(node: &Node, description: NodeDescription) -> Result<()> {
    let options = InitOptions { addr: "127.0.0.1".to_owned(), ..InitOptions::new(description) };
    node.init(NodeId::from_random(rand::random()), options).await?;
    Ok(())
}

fn runtime_config(home: &Home) -> Result<RuntimeConfig> {
    Ok(RuntimeConfig {
        exec_root: home.exec.clone(),
        state_root: home.directory("containers")?,
        supervisor_exe: std::env::current_exe().context("find the own executable")?,
        cgroup_parent: home.cgroup_parent(),
    })
}

fn network_config(home: &Home, dns_upstreams: Vec<std::net::SocketAddr>) -> NetworkConfig {
    NetworkConfig {
        exec_root: home.exec.clone(),
        instance: home.instance.clone(),
        uplink_pool: uplink_pool(&home.instance),
        dns_upstreams,
    }
}

/// One of the 64 networks of 16 bits in 100.64.0.0/10 (RFC 6598), by the instance's name, so that two
/// daemons on a host seldom meet; nobody outside of the host ever sees these addresses.
fn uplink_pool(instance: &str) -> Ipv4Net {
    let sum = instance.bytes().fold(7u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    let addr = Ipv4Addr::new(100, 64 + sum % 64, 0, 0);
    Ipv4Net::containing(addr, 16).expect("16 is a prefix length")
}

/// A file with the daemon's pid, there for as long as the daemon runs.
struct Pidfile(PathBuf);

impl Pidfile {
    fn write(path: &Path) -> Result<Self> {
        fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("write the pidfile {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // Somebody may have taken it away; there is nothing more to do about it.
        let _ = fs::remove_file(&self.0);
    }
}
