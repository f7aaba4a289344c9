//! The Raft group's messages over the cluster port.
//!
//! A message is its length in four bytes (network order), and itself; an answer begins with a byte that
//! is 0, or 1 when what follows is the reason why there is none. Messages on one connection are taken
//! up, and answered, in their order, and more may be sent before there is an answer: a [`Line`] does.
//! A single question takes a connection from a pool, and gives it back when its answer is there; what
//! was asked is forgotten with the connection when that does not come in time.

use std::{fmt, io, time::Duration};

use bytes::{Buf, BufMut, BytesMut};
use futures_util::{
    future::{BoxFuture, FutureExt},
    stream::{FuturesOrdered, StreamExt},
};
use shoal_raft_store::{AnswerError, Lane, Line, Peer, PeerError, Peers, SnapshotBody, Store};
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
    net::TcpStream,
    time::timeout,
};

use super::{CallError, pool::Pool};

/// Of one message; larger than any command and what is sent with it.
const MAX_MESSAGE_BYTES: u32 = 256 << 20;
const CHUNK_BYTES: usize = 256 << 10;
/// A host that is there refuses a connection at once.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// Messages of one connection that are being answered at once. Who sends more waits.
const AT_ONCE: usize = 16;
/// Read from a connection at a time, if it has as much.
const READ_BYTES: usize = 16 << 10;

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
    pool: Pool<Key, Stream>,
}

impl TlsPeers {
    pub(crate) fn new(tls: ClusterTls) -> Self {
        Self {
            tls,
            pool: Pool::default(),
        }
    }

    async fn converse(&self, to: &Peer, request: &[u8]) -> Result<Vec<u8>, PeerError> {
        let key = (to.id, to.lane, to.addr.clone());
        // A connection from the pool may have died since; a new one has not.
        if let Some(mut stream) = self.pool.take(&key) {
            match exchange(&mut stream, request).await {
                Ok(answer) => return self.finish(to, key, stream, answer),
                Err(_stale) => self.pool.forget(&key),
            }
        }
        let connect = connect(self.tls.clone(), to.clone());
        let connected = self.pool.make(key.clone(), connect).await;
        let mut stream = connected.unwrap_or(Err(PeerError::Timeout { id: to.id }))?;
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
                self.pool.give_back(key, stream);
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

    fn open<'a>(
        &'a self,
        to: &'a Peer,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn Line>, PeerError>> {
        async move {
            let connected = timeout(limit, connect(self.tls.clone(), to.clone())).await;
            let stream = connected.unwrap_or(Err(PeerError::Timeout { id: to.id }))?;
            let line = TlsLine {
                to: to.clone(),
                stream,
                read: BytesMut::new(),
            };
            Ok(Box::new(line) as Box<dyn Line>)
        }
        .boxed()
    }

    fn is_gone<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, bool> {
        async move {
            let Some(reach) = Reach::parse(&peer.addr) else {
                return false;
            };
            let connected = timeout(LOOK_LIMIT, TcpStream::connect(&reach.addr)).await;
            let is_refusal = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            connected.is_ok_and(|connected| connected.is_err_and(is_refusal))
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
            let connected = timeout(idle, connect(self.tls.clone(), to.clone())).await;
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

async fn connect(tls: ClusterTls, to: Peer) -> Result<Stream, PeerError> {
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
    let connected = tls.connect(&reach.addr, Some(reach.node), purpose).await;
    connected.map_err(|error: ConnectError| unreachable(io::Error::other(error)))
}

enum Answer {
    Done(Vec<u8>),
    Refused(String),
}

/// A connection of one's own.
struct TlsLine {
    to: Peer,
    stream: Stream,
    /// What was read and is not taken yet.
    read: BytesMut,
}

impl TlsLine {
    fn lost(&self, source: io::Error) -> PeerError {
        PeerError::Unreachable {
            id: self.to.id,
            addr: self.to.addr.clone(),
            source,
        }
    }
}

impl Line for TlsLine {
    fn say(&mut self, request: Vec<u8>) -> BoxFuture<'_, Result<(), PeerError>> {
        async move {
            let said = send(&mut self.stream, &request).await;
            said.map_err(|error| self.lost(error))
        }
        .boxed()
    }

    fn hear(&mut self) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        async move {
            match next_answer(&mut self.stream, &mut self.read).await {
                Ok(Answer::Done(bytes)) => Ok(bytes),
                Ok(Answer::Refused(reason)) => Err(PeerError::Refused {
                    id: self.to.id,
                    reason,
                }),
                Err(error) => Err(self.lost(error)),
            }
        }
        .boxed()
    }
}

async fn exchange(stream: &mut Stream, request: &[u8]) -> io::Result<Answer> {
    send(stream, request).await?;
    // One answer comes, so nothing is left over.
    next_answer(stream, &mut BytesMut::new()).await
}

async fn send(stream: &mut Stream, message: &[u8]) -> io::Result<()> {
    let mut framed = BytesMut::with_capacity(message.len() + 4);
    put_message(&mut framed, message)?;
    write_whole(stream, &mut framed).await
}

/// In one piece, for one TLS record where it fits.
async fn write_whole(stream: &mut Stream, framed: &mut BytesMut) -> io::Result<()> {
    stream.write_all_buf(framed).await?;
    stream.flush().await
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
    let mut head = BytesMut::new();
    put_message(&mut head, request)?;
    head.put_u64(body.len());
    within(idle, stream.write_all_buf(&mut head)).await?;
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
    within(idle * 3, next_answer(stream, &mut BytesMut::new())).await
}

fn put_message(framed: &mut BytesMut, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| too_long(message.len() as u64))?;
    framed.put_u32(length);
    framed.put_slice(message);
    Ok(())
}

fn put_answer(framed: &mut BytesMut, answer: &Result<Vec<u8>, AnswerError>) -> io::Result<()> {
    match answer {
        Ok(bytes) => {
            framed.put_u8(0);
            put_message(framed, bytes)
        }
        Err(error) => {
            framed.put_u8(1);
            put_message(framed, crate::error_chain(error).as_bytes())
        }
    }
}

/// The next message; `None` when the other side has hung up after the last one. What was read of it
/// stays in `read`, so that it may be dropped at any await.
async fn next_message(stream: &mut Stream, read: &mut BytesMut) -> io::Result<Option<Vec<u8>>> {
    if !fill(stream, read, 4).await? {
        return Ok(None);
    }
    let length = (&read[..4]).get_u32();
    if length > MAX_MESSAGE_BYTES {
        return Err(too_long(length.into()));
    }
    let end = 4 + length as usize;
    if !fill(stream, read, end).await? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let message = read[4..end].to_vec();
    read.advance(end);
    Ok(Some(message))
}

async fn next_answer(stream: &mut Stream, read: &mut BytesMut) -> io::Result<Answer> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    if !fill(stream, read, 5).await? {
        return Err(cut());
    }
    let length = (&read[1..5]).get_u32();
    if length > MAX_MESSAGE_BYTES {
        return Err(too_long(length.into()));
    }
    let end = 5 + length as usize;
    if !fill(stream, read, end).await? {
        return Err(cut());
    }
    let message = read[5..end].to_vec();
    let refused = read[0] != 0;
    read.advance(end);
    Ok(if refused {
        Answer::Refused(String::from_utf8_lossy(&message).into_owned())
    } else {
        Answer::Done(message)
    })
}

/// Reads until `read` holds `length` bytes, growing it with what arrives; false when the stream ends
/// before the first.
async fn fill(stream: &mut Stream, read: &mut BytesMut, length: usize) -> io::Result<bool> {
    while read.len() < length {
        read.reserve(READ_BYTES);
        if stream.read_buf(read).await? == 0 {
            return match read.len() {
                0 => Ok(false),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }
    Ok(true)
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
    if lane == RaftLane::Snapshot {
        return take_snapshot(store, stream).await;
    }
    let ended = converse(store, &mut stream).await;
    store.hung_up();
    ended
}

async fn converse(store: &Store, stream: &mut Stream) -> Result<(), CallError> {
    let mut read = BytesMut::new();
    let mut framed = BytesMut::new();
    let mut answers = FuturesOrdered::new();
    loop {
        // What was read of a message is kept, and so are the answers that are being made.
        tokio::select! {
            Some(answer) = answers.next() => {
                put_answer(&mut framed, &answer)?;
                while let Some(Some(answer)) = answers.next().now_or_never() {
                    put_answer(&mut framed, &answer)?;
                }
                write_whole(stream, &mut framed).await?;
            }
            message = next_message(stream, &mut read), if answers.len() < AT_ONCE => {
                let message = match message {
                    Ok(Some(message)) => message,
                    Ok(None) => return Ok(()),
                    // A process that is killed says no last word.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    Err(error) => return Err(error.into()),
                };
                // They begin in the order in which they are pushed.
                answers.push_back(async move { store.answer(&message).await });
            }
        }
    }
}

async fn take_snapshot(store: &Store, mut stream: Stream) -> Result<(), CallError> {
    // Not a byte more than that: what follows is the body's.
    let length = stream.read_u32().await?;
    if length > MAX_MESSAGE_BYTES {
        return Err(too_long(length.into()).into());
    }
    let mut request = Vec::new();
    let read = (&mut stream).take(length.into());
    let read = { read }.read_to_end(&mut request).await?;
    if read as u64 != u64::from(length) {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let length = stream.read_u64().await?;
    let body = (&mut stream).take(length);
    let answer = store.receive_snapshot(&request, body).await;
    let mut framed = BytesMut::new();
    put_answer(&mut framed, &answer)?;
    write_whole(&mut stream, &mut framed).await?;
    // What was not taken in of a body would be read as the next message.
    answer.map(drop).map_err(Into::into)
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
    use std::{
        collections::HashMap,
        sync::{Arc, Mutex},
    };

    use shoal_raft_store::{Change, Command, DataKey, RaftTuning, StoreConfig};
    use shoal_transport::session::local_stream;
    use shoal_types::Timestamp;

    use super::*;
    use crate::testing;

    /// Reaches the other stores of this process by pipes.
    #[derive(Clone, Default)]
    struct Pipes(Arc<Mutex<HashMap<RaftId, Store>>>);

    impl Pipes {
        fn connect(&self, to: &Peer) -> Result<TlsLine, PeerError> {
            let store = self.0.lock().unwrap().get(&to.id).cloned();
            let store = store.ok_or(PeerError::Timeout { id: to.id })?;
            let (near, far) = local_stream();
            let mut far: Stream = Box::new(far);
            tokio::spawn(async move { converse(&store, &mut far).await });
            Ok(TlsLine {
                to: to.clone(),
                stream: Box::new(near),
                read: BytesMut::new(),
            })
        }
    }

    impl Peers for Pipes {
        fn call<'a>(
            &'a self,
            to: &'a Peer,
            request: Vec<u8>,
            _limit: Duration,
        ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
            async move {
                let mut line = self.connect(to)?;
                line.say(request).await?;
                line.hear().await
            }
            .boxed()
        }

        fn open<'a>(
            &'a self,
            to: &'a Peer,
            _limit: Duration,
        ) -> BoxFuture<'a, Result<Box<dyn Line>, PeerError>> {
            let line = self.connect(to);
            let line = line.map(|line| Box::new(line) as Box<dyn Line>);
            std::future::ready(line).boxed()
        }

        fn is_gone<'a>(&'a self, _peer: &'a Peer) -> BoxFuture<'a, bool> {
            std::future::ready(false).boxed()
        }

        fn send_snapshot<'a>(
            &'a self,
            to: &'a Peer,
            _request: Vec<u8>,
            _body: SnapshotBody,
            _idle: Duration,
        ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
            std::future::ready(Err(PeerError::Timeout { id: to.id })).boxed()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn members_that_speak_through_streams_agree_on_what_many_propose_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipes = Pipes::default();
        let mut stores = Vec::new();
        for id in (1..=3).map(RaftId) {
            let config = StoreConfig {
                dir: dir.path().join(id.to_string()),
                raft: id,
                tuning: RaftTuning::default(),
                key: DataKey::generate(),
                older_keys: Vec::new(),
            };
            let peers = Arc::new(pipes.clone());
            let store = Store::open_with_peers(config, peers).await.unwrap();
            pipes.0.lock().unwrap().insert(id, store.clone());
            stores.push(store);
        }
        stores[0].bootstrap().await.unwrap();
        for id in [2, 3].map(RaftId) {
            stores[0].add_member(id, id.to_string()).await.unwrap();
        }
        let proposals = (1..=50).map(|number| {
            let leader = stores[0].clone();
            tokio::spawn(async move {
                let node = Change::CreateNode(Box::new(testing::node(number)));
                let command = Command {
                    at: Timestamp(0),
                    changes: vec![node],
                };
                leader.propose(command).await.unwrap()
            })
        });
        let mut last = None;
        for proposal in proposals.collect::<Vec<_>>() {
            last = last.max(Some(proposal.await.unwrap().version));
        }
        for store in &stores {
            let mut states = store.watch();
            let whole = states.wait_for(|state| Some(state.version()) >= last);
            assert_eq!(whole.await.unwrap().nodes().count(), 50);
        }
        for store in &stores {
            store.shutdown().await;
        }
    }

    #[tokio::test]
    async fn messages_and_answers_come_whole_and_in_order_however_they_arrive() {
        let mut bytes = BytesMut::new();
        put_message(&mut bytes, b"first").unwrap();
        put_message(&mut bytes, b"").unwrap();
        put_message(&mut bytes, &vec![7; 100_000]).unwrap();
        let whole = bytes.clone();
        let (near, mut far) = local_stream();
        let mut near: Stream = Box::new(near);
        tokio::spawn(async move {
            for piece in whole.chunks(999) {
                far.write_all(piece).await.unwrap();
            }
        });
        let mut read = BytesMut::new();
        let mut next = async || next_message(&mut near, &mut read).await.unwrap();
        assert_eq!(next().await, Some(b"first".to_vec()));
        assert_eq!(next().await, Some(Vec::new()));
        assert_eq!(next().await, Some(vec![7; 100_000]));
        assert_eq!(next().await, None, "it hung up between two messages");

        let (near, mut far) = local_stream();
        let mut near: Stream = Box::new(near);
        let mut answers = BytesMut::new();
        put_answer(&mut answers, &Ok(b"yes".to_vec())).unwrap();
        put_answer(&mut answers, &Err(AnswerError::Unexpected)).unwrap();
        answers.put_u8(0);
        far.write_all(&answers).await.unwrap();
        drop(far);
        let mut read = BytesMut::new();
        let mut next = async || next_answer(&mut near, &mut read).await;
        assert!(matches!(next().await, Ok(Answer::Done(bytes)) if bytes == b"yes"));
        assert!(matches!(next().await, Ok(Answer::Refused(_))));
        assert!(next().await.is_err(), "it hung up in the middle of one");
    }

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
