//! etcd with three members on the same switch, written to by a client of the bench's own.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{
    hub::{Hub, within},
    node::Node,
    writes::{self, CLIENTS, Effort},
};
use crate::{
    sandbox::Sandbox,
    stats::{Series, Unit, per_second},
    swarm::daemon::Tools,
};

const MEMBERS: usize = 3;
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const START_LIMIT: Duration = Duration::from_secs(30);
const VALUE_BYTES: usize = 256;

type Sender = SendRequest<Full<Bytes>>;

/// Puts of 256 bytes to one key, through the leader.
pub(crate) async fn measure(
    dir: &Path,
    tools: &Tools,
    effort: Effort,
) -> (Result<()>, Vec<Series>) {
    let mut series = Vec::new();
    let result = async {
        // Dropped last to first: the members end before their switch.
        let hub = Hub::new()?;
        let _members = start(&hub, dir, tools)?;
        let leader = leader(&hub).await?;
        for clients in CLIENTS {
            let (rate, latency) = writes::write_cases(MEMBERS, clients);
            let mut rate = Series::new(rate, Unit::PerSecond);
            let mut latency = Series::new(latency, Unit::Millis);
            for _ in 0..effort.rounds {
                tokio::time::sleep(Duration::from_secs(2)).await;
                let mut connections = Vec::new();
                for _ in 0..clients {
                    connections.push(connect(&hub, leader).await?);
                }
                let work = |mut sender: Sender| async move {
                    let done = call(&mut sender, "KV/Put", put()).await;
                    (sender, done.map(drop))
                };
                let done = writes::for_a_while(connections, effort.span, work).await;
                if let Some(error) = done.error {
                    return Err(error);
                }
                rate.samples.push(per_second(done.results.len(), done.took));
                let latencies = done.results.iter().map(|((), took)| super::millis(*took));
                latency.samples.extend(latencies);
            }
            series.extend([rate, latency]);
        }
        Ok(())
    }
    .await;
    (result, series)
}

/// Its first word and number.
pub(crate) fn version(tools: &Tools) -> Result<String> {
    let output = Command::new(tools.find("etcd")?)
        .arg("--version")
        .output()
        .context("start etcd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or("etcd");
    Ok(line.replace(" Version:", ""))
}

fn start(hub: &Hub, dir: &Path, tools: &Tools) -> Result<Vec<Sandbox>> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let url = |member, port| format!("http://{}:{port}", Hub::address(member));
    let all: Vec<String> = (0..MEMBERS)
        .map(|member| format!("{}={}", Node::hostname(member), url(member, PEER_PORT)))
        .collect();
    let mut sandboxes = Vec::new();
    for member in 0..MEMBERS {
        let own = dir.join(member.to_string());
        let name = Node::hostname(member);
        let data = own.join("data").to_string_lossy().into_owned();
        let (client, peer) = (url(member, CLIENT_PORT), url(member, PEER_PORT));
        let args = [
            ("--name", &name),
            ("--data-dir", &data),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &all.join(",")),
        ];
        let args: Vec<_> = args
            .iter()
            .flat_map(|(flag, value)| [(*flag).into(), value.into()])
            .collect();
        let mut environment = tools.environment();
        environment.push(("SANDBOX_NAME".into(), name.into()));
        let sandbox = Sandbox::start(&own, &tools.find("etcd")?, &args, &environment)?;
        hub.plug(member, sandbox.init())?;
        sandboxes.push(sandbox);
    }
    Ok(sandboxes)
}

/// Waits until all members answer and one of them leads; where that one listens.
async fn leader(hub: &Hub) -> Result<SocketAddr> {
    let started = Instant::now();
    loop {
        let mut led = None;
        for member in 0..MEMBERS {
            let address = SocketAddr::from((Hub::address(member), CLIENT_PORT));
            if let Ok(true) = leads(hub, address).await {
                led = Some(address);
            }
        }
        if let Some(address) = led {
            return Ok(address);
        }
        ensure!(started.elapsed() < START_LIMIT, "etcd has no leader");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// `Maintenance/Status`: the leader's id (field 4) is the answering member's own (field 2 of the header, field 1).
async fn leads(hub: &Hub, address: SocketAddr) -> Result<bool> {
    let mut sender = connect(hub, address).await?;
    let answer = call(&mut sender, "Maintenance/Status", Bytes::new()).await?;
    let header = field(&answer, 1).context("a header")?;
    let Field::Bytes(header) = header else {
        bail!("the header is no message");
    };
    let own = field(header, 2);
    Ok(own.is_some() && own == field(&answer, 4))
}

/// A connection of its own from the switch, HTTP/2 without TLS.
async fn connect(hub: &Hub, address: SocketAddr) -> Result<Sender> {
    let limit = Duration::from_secs(2);
    let connecting = within(hub.pid(), move || {
        std::net::TcpStream::connect_timeout(&address, limit)
    })?;
    let joined = tokio::task::spawn_blocking(move || connecting.join()).await?;
    let stream = joined.map_err(|_| anyhow::anyhow!("connecting panicked"))???;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, driver) = handshake.await.context("HTTP/2 with etcd")?;
    // Ends by itself when the sender is dropped.
    tokio::spawn(driver);
    Ok(sender)
}

/// A unary gRPC call; the answer's message.
async fn call(sender: &mut Sender, method: &str, message: Bytes) -> Result<Bytes> {
    // Not compressed, and the length (gRPC over HTTP/2, "Length-Prefixed-Message").
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len())?);
    body.put(message);
    let request = Request::post(format!("http://etcd/etcdserverpb.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body.freeze()))?;
    sender.ready().await?;
    let response = sender.send_request(request).await.context("ask etcd")?;
    let answer = response.into_body().collect().await?;
    let trailers = answer.trailers().context("an answer ends with trailers")?;
    let status = trailers
        .get("grpc-status")
        .and_then(|status| status.to_str().ok());
    ensure!(status == Some("0"), "etcd answered {trailers:?}");
    Ok(answer.to_bytes().slice(5..))
}

/// A `PutRequest`: field 1 is the key, field 2 the value.
fn put() -> Bytes {
    let mut message = BytesMut::new();
    let key = b"bench/key";
    message.put_slice(&[0x0a, 9]);
    message.put_slice(key);
    // 256 as a varint.
    message.put_slice(&[0x12, 0x80, 0x02]);
    message.put_bytes(b'x', VALUE_BYTES);
    message.freeze()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The first field of a protobuf message with this number; only of varints and lengths, which is all that is asked for here.
fn field(mut message: &[u8], wanted: u64) -> Option<Field<'_>> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let value = match key & 7 {
            0 => Field::Number(varint(&mut message)?),
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (value, rest) = message.split_at_checked(length)?;
                message = rest;
                Field::Bytes(value)
            }
            _ => return None,
        };
        if key >> 3 == wanted {
            return Some(value);
        }
    }
    None
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn put_request_holds_the_key_and_256_bytes() {
        let message = put();
        assert_eq!(field(&message, 1), Some(Field::Bytes(b"bench/key")));
        assert_eq!(field(&message, 2), Some(Field::Bytes(&[b'x'; 256])));
        assert_eq!(field(&message, 3), None);
        assert_eq!(field(&[0x20, 0xac, 0x02], 4), Some(Field::Number(300)));
        assert_eq!(field(&[0x0a, 9, 1], 1), None, "cut short");
    }
}
