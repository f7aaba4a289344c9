//! Requests from a container on one node to a container on another: to its own address, and through the service's virtual one.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    hub::within,
    machines::{Machines, NETWORK},
    node::Node,
    tasks,
};
use crate::{
    stats::{Series, Unit, per_second},
    swarm::daemon::text,
};

/// Clients at once, a thread each.
const CLIENTS: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Of the client's network: by default a port is not used again for a minute, and after some ten thousand connections
/// the search for a free one would be all that is measured (`ip_sysctl`: a port in TIME_WAIT is free after a second).
const CLIENT_SETTINGS: [(&str, &str); 2] =
    [("ip_local_port_range", "1024 65535"), ("tcp_tw_reuse", "1")];

/// Of one way to the server.
#[derive(Debug)]
struct Way {
    address: Ipv4Addr,
    connections: Series,
    requests: Series,
    cpu: Series,
}

impl Way {
    fn new(address: Ipv4Addr) -> Self {
        Self {
            address,
            connections: Series::new(
                "new connections a second, container to container across nodes",
                Unit::PerSecond,
            ),
            requests: Series::new(
                "keep-alive requests a second, container to container across nodes",
                Unit::PerSecond,
            ),
            cpu: Series::new(
                "machine's time for a keep-alive request across nodes",
                Unit::Micros,
            ),
        }
    }
}

/// The virtual address and the direct one, in turns; series of the first, then of the second.
pub(crate) async fn measure(
    machines: &mut Machines,
    rounds: usize,
    span: Duration,
) -> Result<[Vec<Series>; 2]> {
    machines.settled().await?;
    let engine = &mut machines.nodes[0].engine;
    engine
        .post("/services/create", &on_node("web", "shoal/hello", 1))
        .await?;
    let probe = on_node("probe", &machines.image, 0);
    engine.post("/services/create", &probe).await?;
    let web = tasks::wait_running(engine, "web", 1).await?;
    let probe = tasks::wait_running(engine, "probe", 1).await?;
    let service = engine.get("/services/web").await?;
    let vip = service.pointer("/Endpoint/VirtualIPs/0/Addr");
    let vip = address(vip.context("web has a virtual address")?)?;
    let direct = task_address(&web[0])?;
    let inner = pid(&probe[0])?;
    let netns = machines.nodes[0].sandbox()?.outer(inner)?;
    let port_use = within(netns, || {
        CLIENT_SETTINGS
            .iter()
            .try_for_each(|(name, value)| fs::write(format!("/proc/sys/net/ipv4/{name}"), value))
    })?;
    let set = port_use
        .join()
        .map_err(|_| anyhow::anyhow!("setting panicked"))?;
    set?.context("set the client's ports")?;
    // The first connections: names and neighbours are found.
    for address in [vip, direct] {
        load(netns, address, Duration::from_millis(500), true).await?;
    }
    let mut ways = [Way::new(vip), Way::new(direct)];
    for round in 0..rounds {
        // Another one first each time.
        ways.rotate_left(1);
        for way in &mut ways {
            let (count, took) = load(netns, way.address, span, false).await?;
            way.connections.samples.push(per_second(count, took));
            let before = busy()?;
            let (count, took) = load(netns, way.address, span, true).await?;
            let spent = busy()?.saturating_sub(before);
            way.requests.samples.push(per_second(count, took));
            let count = f64::from(u32::try_from(count)?);
            way.cpu.samples.push(spent.as_secs_f64() * 1e6 / count);
        }
        if round % 2 == 0 {
            ways.rotate_left(1);
        }
    }
    for name in ["web", "probe"] {
        let path = format!("/services/{name}");
        machines.nodes[0].engine.delete(&path).await?;
        tasks::gone(machines, name).await?;
    }
    ways.sort_by_key(|way| way.address != vip);
    Ok(ways.map(|way| vec![way.connections, way.requests, way.cpu]))
}

fn on_node(name: &str, image: &str, node: usize) -> Value {
    let mut spec = tasks::sleepers(name, image, 1);
    if image == "shoal/hello" {
        spec["TaskTemplate"]["ContainerSpec"] = json!({ "Image": image });
    }
    spec["TaskTemplate"]["Networks"] = json!([{ "Target": NETWORK }]);
    spec["TaskTemplate"]["Placement"]["Constraints"] =
        json!([format!("node.hostname=={}", Node::hostname(node))]);
    spec
}

pub(super) fn pid(task: &Value) -> Result<u32> {
    let pid = task["Status"]["ContainerStatus"]["PID"].as_u64();
    let pid = pid.and_then(|pid| u32::try_from(pid).ok());
    pid.with_context(|| format!("a running task has a pid: {task}"))
}

/// The address of a task in its network.
pub(super) fn task_address(task: &Value) -> Result<Ipv4Addr> {
    let address_of = task.pointer("/NetworksAttachments/0/Addresses/0");
    address(address_of.with_context(|| format!("an address of {task}"))?)
}

/// Of `ADDRESS/PREFIX`.
fn address(text_of: &Value) -> Result<Ipv4Addr> {
    let text = text(text_of);
    let address = text.split('/').next().unwrap_or_default();
    address.parse().with_context(|| format!("address {text:?}"))
}

/// Requests from the network of a process, each on a connection of its own or all of a client's on one.
async fn load(
    netns: u32,
    address: Ipv4Addr,
    span: Duration,
    keep: bool,
) -> Result<(usize, Duration)> {
    let to = SocketAddr::from((address, 80));
    let started = Instant::now();
    let clients = (0..CLIENTS)
        .map(|_| within(netns, move || client(to, started, span, keep)))
        .collect::<Result<Vec<_>>>()?;
    let counts = tokio::task::spawn_blocking(move || {
        let joined = clients.into_iter().map(|client| {
            let joined = client.join();
            joined.map_err(|_| anyhow::anyhow!("a client panicked"))??
        });
        joined.sum::<Result<usize>>()
    });
    Ok((counts.await??, started.elapsed()))
}

fn client(to: SocketAddr, started: Instant, span: Duration, keep: bool) -> Result<usize> {
    let mut count = 0;
    let mut kept = None;
    while started.elapsed() < span {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => connect(to)?,
        };
        request(&mut connection, keep)?;
        kept = keep.then_some(connection);
        count += 1;
    }
    Ok(count)
}

fn connect(to: SocketAddr) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT).with_context(|| format!("to {to}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// Sends a request and reads the whole answer.
fn request(connection: &mut BufReader<TcpStream>, keep: bool) -> Result<()> {
    let kept = if keep { "keep-alive" } else { "close" };
    let head = format!("GET / HTTP/1.1\r\nHost: web\r\nConnection: {kept}\r\n\r\n");
    connection.get_mut().write_all(head.as_bytes())?;
    let (mut line, mut length) = (String::new(), 0);
    connection.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200"), "answered {line:?}");
    while line.trim() != "" {
        line.clear();
        connection.read_line(&mut line)?;
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("a length")?;
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).context("read the body")
}

/// Whether something serves at `addresses`, each asked once from the network of a process.
pub(super) async fn all_answer(netns: u32, addresses: Vec<Ipv4Addr>) -> Result<bool> {
    let asking = within(netns, move || {
        addresses.into_iter().all(|address| {
            let to = SocketAddr::from((address, 80));
            let asked = TcpStream::connect_timeout(&to, Duration::from_millis(500));
            let asked = asked.and_then(|stream| {
                stream.set_read_timeout(Some(Duration::from_millis(500)))?;
                Ok(BufReader::new(stream))
            });
            asked.is_ok_and(|mut connection| request(&mut connection, false).is_ok())
        })
    })?;
    let joined = tokio::task::spawn_blocking(move || asking.join()).await?;
    joined.map_err(|_| anyhow::anyhow!("asking panicked"))?
}

/// The time that all processors together have not idled (`proc_stat`(5); a tick is 10 ms on Linux).
fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq; what the host stole is not ours.
    let working = [0, 1, 2, 5, 6].map(|at| fields.get(at).copied().unwrap_or(0));
    Ok(Duration::from_millis(working.iter().sum::<u64>() * 10))
}
