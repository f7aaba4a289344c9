//! The Raft group's messages over the cluster port.
//!
//! A connection carries one message at a time, and goes back to a pool when its answer is there. What
//! was asked on it is forgotten with the connection when an answer does not come in time. A message is
//! its length in four bytes (network order), and itself; an answer begins with a byte that is 0, or 1
//! when what follows is the reason why there is none.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use shoal_raft_store::{Lane, Peer, PeerError, Peers, SnapshotBody, Store};
use shoal_transport::{
    cluster::{ClusterTls, ConnectError},
    stream::Stream,
};
use shoal_types::{
    NodeId, RaftId,
    wire::{Purpose, RaftLane},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::CallError;

/// Of one message; larger than any command and what is sent with it.
const MAX_MESSAGE_BYTES: u32 = 256 << 20;
/// Connections kept for one member and lane.
const KEPT: usize = 4;
const CHUNK_BYTES: usize = 256 << 10;

/// How a member is reached, as the group's membership carries it: `NODE@HOST:PORT`. The node is checked
/// against the certificate of whoever answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) node: NodeId,
    pub(crate) addr: String,
}

impl Reach {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (node, addr) = text.split_once('@')?;
        Some(Self {
            node: node.parse().ok()?,
            addr: addr.to_owned(),
        })
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node, self.addr)
    }
}

type Key = (RaftId, Lane, String);

/// Reaches other members by TLS.
pub(crate) struct TlsPeers {
    tls: ClusterTls,
    idle: Mutex<HashMap<Key, Vec<Stream>>>,
}

impl TlsPeers {
    pub(crate) fn new(tls: ClusterTls) -> Self {
        Self {
            tls,
            idle: Mutex::default(),
        }
    }

    fn take(&self, key: &Key) -> Option<Stream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.get_mut(key).and_then(Vec::pop)
    }

    fn give_back(&self, key: Key, stream: Stream) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = idle.entry(key).or_default();
        if streams.len() < KEPT {
            streams.push(stream);
        }
    }

    /// One of them is broken, so the others, of the same age, are as well.
    fn forget(&self, key: &Key) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.remove(key);
    }

    async fn connect(&self, to: &Peer) -> Result<Stream, PeerError> {
        let unreachable = |source| PeerError::Unreachable {
            id: to.id,
            addr: to.addr.clone(),
            source,
        };
        let reach = Reach::parse(&to.addr)
            .ok_or_else(|| unreachable(io::Error::other("its address is not known")))?;
        let purpose = Purpose::Raft {
            to: to.id,
            lane: lane(to.lane),
        };
        let connected = self
            .tls
            .connect(&reach.addr, Some(reach.node), purpose)
            .await;
        connected.map_err(|error: ConnectError| unreachable(io::Error::other(error)))
    }

    async fn converse(&self, to: &Peer, request: &[u8]) -> Result<Vec<u8>, PeerError> {
        let key = (to.id, to.lane, to.addr.clone());
        // A connection from the pool may have died since; a new one has not.
        if let Some(mut stream) = self.take(&key) {
            match exchange(&mut stream, request).await {
                Ok(answer) => return self.finish(to, key, stream, answer),
                Err(_stale) => self.forget(&key),
            }
        }
        let mut stream = self.connect(to).await?;
        match exchange(&mut stream, request).await {
            Ok(answer) => self.finish(to, key, stream, answer),
            Err(source) => Err(PeerError::Unreachable {
                id: to.id,
                addr: to.addr.clone(),
                source,
            }),
        }
    }

    fn finish(
        &self,
        to: &Peer,
        key: Key,
        stream: Stream,
        answer: Answer,
    ) -> Result<Vec<u8>, PeerError> {
        match answer {
            Answer::Done(bytes) => {
                self.give_back(key, stream);
                Ok(bytes)
            }
            Answer::Refused(reason) => Err(PeerError::Refused { id: to.id, reason }),
        }
    }
}

impl Peers for TlsPeers {
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        async move {
            let answer = timeout(limit, self.converse(to, &request)).await;
            answer.unwrap_or(Err(PeerError::Timeout { id: to.id }))
        }
        .boxed()
    }

    fn send_snapshot<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        body: SnapshotBody,
        idle: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        async move {
            let connected = timeout(idle, self.connect(to)).await;
            let mut stream = connected.unwrap_or(Err(PeerError::Timeout { id: to.id }))?;
            let sent = send_body(&mut stream, &request, body, idle).await;
            match sent {
                Ok(Answer::Done(bytes)) => Ok(bytes),
                Ok(Answer::Refused(reason)) => Err(PeerError::Refused { id: to.id, reason }),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    Err(PeerError::Timeout { id: to.id })
                }
                Err(source) => Err(PeerError::Unreachable {
                    id: to.id,
                    addr: to.addr.clone(),
                    source,
                }),
            }
        }
        .boxed()
    }
}

enum Answer {
    Done(Vec<u8>),
    Refused(String),
}

async fn exchange(stream: &mut Stream, request: &[u8]) -> io::Result<Answer> {
    write_message(stream, request).await?;
    stream.flush().await?;
    read_answer(stream).await
}

async fn send_body(
    stream: &mut Stream,
    request: &[u8],
    mut body: SnapshotBody,
    idle: Duration,
) -> io::Result<Answer> {
    async fn within<T>(idle: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let late = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
        timeout(idle, step).await.map_err(late)?
    }
    within(idle, write_message(stream, request)).await?;
    within(idle, stream.write_u64(body.len())).await?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = body.read(&mut chunk).await?;
        if read == 0 {
            break;
        }
        within(idle, stream.write_all(&chunk[..read])).await?;
    }
    within(idle, stream.flush()).await?;
    // The other side puts it on its disk, and takes it over.
    within(idle * 3, read_answer(stream)).await
}

async fn write_message(stream: &mut Stream, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| too_long(message.len() as u64))?;
    // In one piece, for one TLS record where it fits.
    let mut framed = Vec::with_capacity(message.len() + 4);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

async fn read_message(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    if length > MAX_MESSAGE_BYTES {
        return Err(too_long(length.into()));
    }
    let mut message = Vec::new();
    // Grows with what arrives, not with what is announced.
    let read = stream.take(length.into()).read_to_end(&mut message).await?;
    if read as u64 != u64::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

async fn read_answer(stream: &mut Stream) -> io::Result<Answer> {
    let refused = stream.read_u8().await? != 0;
    let message = read_message(stream).await?;
    Ok(if refused {
        Answer::Refused(String::from_utf8_lossy(&message).into_owned())
    } else {
        Answer::Done(message)
    })
}

fn too_long(bytes: u64) -> io::Error {
    let text = format!("a message of {bytes} bytes, at most {MAX_MESSAGE_BYTES} are allowed");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Answers the messages of another member, until it hangs up.
pub(super) async fn answer(
    store: &Store,
    to: RaftId,
    lane: RaftLane,
    mut stream: Stream,
) -> Result<(), CallError> {
    if to != store.id() {
        return Err(CallError::OtherMember { to, me: store.id() });
    }
    loop {
        let request = match read_message(&mut stream).await {
            Ok(request) => request,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let answer = if lane == RaftLane::Snapshot {
            let length = stream.read_u64().await?;
            let body = (&mut stream).take(length);
            store.receive_snapshot(&request, body).await
        } else {
            store.answer(&request).await
        };
        match &answer {
            Ok(bytes) => {
                stream.write_u8(0).await?;
                write_message(&mut stream, bytes).await?;
            }
            Err(error) => {
                stream.write_u8(1).await?;
                write_message(&mut stream, crate::error_chain(error).as_bytes()).await?;
            }
        }
        stream.flush().await?;
        if lane == RaftLane::Snapshot {
            // What was not taken in of a body would be read as the next message.
            return answer.map(drop).map_err(Into::into);
        }
    }
}

fn lane(lane: Lane) -> RaftLane {
    match lane {
        Lane::Log => RaftLane::Log,
        Lane::Heartbeat => RaftLane::Heartbeat,
        Lane::Snapshot => RaftLane::Snapshot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_address_names_its_node() {
        let reach = Reach {
            node: NodeId::from_random([3; 17]),
            addr: "[2001:db8::1]:2377".to_owned(),
        };
        assert_eq!(Reach::parse(&reach.to_string()), Some(reach));
        assert_eq!(Reach::parse(""), None);
        assert_eq!(Reach::parse("10.0.0.1:2377"), None);
    }
}
