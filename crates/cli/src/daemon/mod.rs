//! The daemon: one node, wired together, until it is told to stop.
//!
//! ```text
//! home ─► images, runtime, datapath ─► agent ─┬─► node ─► engine ─► sockets
//!                                     manager ┘
//! ```
//!
//! Whatever way it ends, containers and networks go on; the next daemon with the same directories
//! takes them over. [`purge`] is the only thing that takes them away.

mod address;
mod engine;
mod home;
mod listen;
mod log_opts;
mod machine;
mod member;
mod node;
mod purge;
mod resolver;
mod swarm;
mod thrift;
mod translate;

use std::{
    collections::BTreeMap,
    fs,
    io::IsTerminal,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result, bail};
use shoal_engine_api as api;
use shoal_node_agent::{
    Agent, AgentConfig, Volumes,
    datapath::{Datapath, Ipv4Net, NetworkConfig},
    describe,
    image::{ImageConfig, ImageStore, RegistryConfig},
    runtime::{Runtime, RuntimeConfig, memory},
};
use shoal_types::object::NodeDescription;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use self::{
    engine::Engine,
    home::Home,
    listen::Address,
    machine::Machine,
    member::ServeApi,
    node::{Node, Place},
};
use crate::{
    daemon_args::{DaemonArgs, PurgeArgs},
    opts::generic,
};

/// Where the API listens unless told otherwise.
const DEFAULT_HOST: &str = "unix:///run/shoal/shoal.sock";

/// Replaces `--log-level` when it is set, in the syntax of tracing's `EnvFilter`.
const LOG_VARIABLE: &str = "SHOAL_LOG";

/// Runs a daemon on the calling thread until it is told to stop.
pub(crate) fn start(args: DaemonArgs) -> Result<()> {
    memory::share_heaps();
    start_logging(&args)?;
    // Every TLS client of the process uses this provider.
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if provider.install_default().is_err() {
        bail!("another TLS provider is in place already");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime
        .context("start the async runtime")?
        .block_on(run(args))
}

/// Takes away everything the daemon of `args` made.
pub(crate) fn start_purge(args: &PurgeArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("start the async runtime")?;
    runtime.block_on(purge::purge(&args.data_root, &args.exec_root))
}

fn start_logging(args: &DaemonArgs) -> Result<()> {
    let level = match args.log_level.as_str() {
        _ if args.debug => "debug",
        "fatal" => "error",
        level => level,
    };
    // The libraries' own debugging is of use to those who name them in the variable.
    let ours = format!("{level},openraft=warn,hyper=warn,h2=warn,rustls=warn,reqwest=warn");
    let directives = std::env::var(LOG_VARIABLE).unwrap_or(ours);
    let filter = EnvFilter::try_new(&directives)
        .with_context(|| format!("{LOG_VARIABLE}={directives:?} is not a log filter"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match args.log_format.as_str() {
        "json" => builder.json().init(),
        _ => builder.init(),
    }
    Ok(())
}

/// Runs a daemon until SIGTERM or SIGINT.
async fn run(mut args: DaemonArgs) -> Result<()> {
    if args.host.is_empty() {
        args.host.push(DEFAULT_HOST.to_owned());
    }
    // Parsed before anything is made.
    let addresses = args.host.iter().map(|host| Address::parse(host));
    let addresses: Vec<Address> = addresses.collect::<Result<_>>()?;
    let home = Home::open(&args.data_root, &args.exec_root)?;
    let stop = CancellationToken::new();
    let mut listeners = Vec::new();
    for address in &addresses {
        listeners.push(address.bind(&args.group).await?);
    }
    let _pidfile = Pidfile::write(&args.pidfile)?;
    let labels = labels(&args.label);
    let generic =
        generic::of_node(&args.node_generic_resource).context("--node-generic-resource")?;

    if args.null_runtime {
        home.check_null_runtime()?;
    }
    // Complete before the agent looks at the networks it finds: without the node's address it would
    // take their ways to other nodes away.
    let membership = home.membership()?;
    let cluster = membership.filter(|membership| membership.listen.is_some());
    let description = NodeDescription {
        data_addr: cluster.and_then(|membership| membership.data_addr().ok()),
        ..describe(labels.clone(), generic)
    };
    let agent = start_agent(&home, &args, description.clone()).await?;
    let machine = Machine::read(&home.instance, &args, labels, &description);
    // The API needs the node, and the node's cluster port serves the API.
    let for_managers: Arc<OnceLock<axum::Router>> = Arc::default();
    let serving = for_managers.clone();
    let serve_api: ServeApi = Arc::new(move |stream| {
        // A caller that is too early asks again.
        if let Some(router) = serving.get() {
            tokio::spawn(api::serve_stream(router.clone(), stream));
        }
    });
    let node = Node::open(home, agent, serve_api).await?;
    if args.local && node.member().is_none() {
        let place = Place {
            listen: None,
            advertise: String::new(),
            data_path: String::new(),
        };
        node.init(place, |_options| {}).await?;
    }

    let engine = api::Engine::new(Engine {
        node: node.clone(),
        machine,
    });
    for_managers.get_or_init(|| api::router_for_managers(engine.clone()));
    let router = api::router(engine);
    let mut serving = JoinSet::new();
    for listener in listeners {
        info!(address = %listener, "the API listens");
        serving.spawn(listener.serve(router.clone(), stop.clone()));
    }

    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    // Each arm only says that the daemon is to end, but for the last, which never ends.
    tokio::select! {
        _ = terminate.recv() => info!("stopping: SIGTERM"),
        _ = interrupt.recv() => info!("stopping: SIGINT"),
        Some(_) = serving.join_next() => warn!("stopping: a listener ended"),
        never = thrift::keep() => match never {},
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
    args: &DaemonArgs,
    description: NodeDescription,
) -> Result<Agent> {
    let images = ImageStore::open(ImageConfig {
        registry: RegistryConfig {
            insecure: args.insecure_registry.clone(),
            mirrors: args.registry_mirror.clone(),
            ..RegistryConfig::default()
        },
        ..ImageConfig::new(home.directory("image")?)
    })
    .await
    .context("open the image store")?;
    let config = runtime_config(home)?;
    let runtime = if args.null_runtime {
        Runtime::unconnected(config)
    } else {
        Runtime::open(config).await
    };
    let runtime = runtime.context("reach the supervisor")?;
    let resolver = resolver::read().unwrap_or_default();
    let datapath = Datapath::open(network_config(home, resolver.servers))
        .await
        .context("open the datapath")?;
    Ok(Agent::start(AgentConfig {
        dir: home.directory("agent")?,
        volumes: Volumes::open(home.directory("volumes")?).context("open the volumes")?,
        images,
        runtime,
        datapath,
        description,
        search: resolver.search,
        log: log_opts::parse(&args.log_driver, &args.log_opt)?,
        name_servers: || resolver::read().map(|resolver| resolver.servers),
        in_memory: args.null_runtime,
    }))
}

/// `key=value` words; the last of a key counts.
fn labels(words: &[String]) -> BTreeMap<String, String> {
    let pairs = words
        .iter()
        .map(|word| word.split_once('=').unwrap_or((word, "")));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
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
    let sum = instance
        .bytes()
        .fold(7u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
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
