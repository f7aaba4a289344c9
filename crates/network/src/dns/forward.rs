//! Questions that no network answers go to the host's name servers, byte for byte but for the id.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use crate::attach::NAME_SERVER;

/// As long as Docker's resolver waits for each server.
const TIMEOUT: Duration = Duration::from_secs(4);
/// As many servers as the resolver of libc asks (MAXNS, resolv.conf(5)).
const SERVERS: usize = 3;
/// Questions under way at once, as in Docker's resolver. More are answered with SERVFAIL.
const CONCURRENCY: usize = 1024;
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: RwLock<Arc<[SocketAddr]>>,
    permits: Semaphore,
}

impl Forwarder {
    pub(super) fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self {
            upstreams: RwLock::new(upstreams.into()),
            permits: Semaphore::new(CONCURRENCY),
        }
    }

    /// Questions from now on go to these.
    pub(super) fn set_upstreams(&self, upstreams: Vec<SocketAddr>) {
        *self
            .upstreams
            .write()
            .unwrap_or_else(PoisonError::into_inner) = upstreams.into();
    }

    fn upstreams(&self) -> Arc<[SocketAddr]> {
        let upstreams = self.upstreams.read();
        upstreams.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the servers one after another; `None` when none of them has an answer.
    pub(super) async fn ask(
        &self,
        question: &[u8],
        servers: Option<&[SocketAddr]>,
        over_tcp: bool,
    ) -> Option<Vec<u8>> {
        let _permit = self.permits.try_acquire().ok()?;
        let upstreams = self.upstreams();
        let servers = servers.unwrap_or(&upstreams);
        let mut refused = None;
        for server in servers
            .iter()
            .filter(|server| !is_ourselves(**server))
            .take(SERVERS)
        {
            let asked = async {
                if over_tcp {
                    ask_tcp(question, *server).await
                } else {
                    ask_udp(question, *server).await
                }
            };
            match timeout(TIMEOUT, asked).await {
                Ok(Ok(answer)) if matches!(answer[3] & 0x0f, SERVFAIL | REFUSED) => {
                    refused = Some(answer);
                }
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "name server failed"),
                Err(_) => tracing::debug!(%server, "name server timed out"),
            }
        }
        refused
    }
}

/// A host that was given 127.0.0.11 as its server would ask us to ask ourselves.
fn is_ourselves(server: SocketAddr) -> bool {
    server.ip() == NAME_SERVER
}

async fn ask_udp(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket and a random id per question: a forged answer must guess both port and id.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let sent = with_id(question, rand::random());
    socket.send(&sent).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&sent, &buffer[..length]) {
            return Ok(with_id(&buffer[..length], id(question)));
        }
    }
}

async fn ask_tcp(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let sent = with_id(question, rand::random());
    stream.write_all(&framed(&sent)).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    if !answers(&sent, &answer) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer is to another question",
        ));
    }
    Ok(with_id(&answer, id(question)))
}

/// A message with its length in front, as over TCP (RFC 1035 section 4.2.2).
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a message that fits was checked or received");
    [&length.to_be_bytes(), message].concat()
}

fn id(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut copy = message.to_vec();
    copy[..2].copy_from_slice(&id.to_be_bytes());
    copy
}

/// Whether `answer` is a response with the id and the question of `question`.
fn answers(question: &[u8], answer: &[u8]) -> bool {
    const HEADER: usize = 12;
    let is_response = answer.len() >= HEADER && answer[2] & 0x80 != 0;
    is_response && id(question) == id(answer) && {
        let end = question_end(question);
        // Servers may change the case of letters, and some answer errors without the question.
        let (asked, told) = (&question[HEADER..end], answer.get(HEADER..end));
        answer[4..6] == [0, 0] || told.is_some_and(|told| told.eq_ignore_ascii_case(asked))
    }
}

/// Where the first question of a well-formed message ends.
fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while let Some(length) = message.get(at).filter(|length| **length != 0) {
        at += 1 + usize::from(*length);
    }
    (at + 5).min(message.len())
}
