//! The manager's side of the cluster port.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use shoal_types::{Timestamp, wire::Purpose};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    ClusterTls, HANDSHAKE_LIMIT,
    admission::{self, Admission, FRAME_BYTES, Refusal},
    tcp, tls,
};
use crate::{
    ca::BACKDATE,
    clock,
    identity::{Certificate, CertificateError, Identity},
    session::{ReceiveError, SendError},
    stream::{self, Stream},
};

/// Handshakes at once. More wait in the kernel's queue: a crowd of agents that come back together is
/// served in order, and none of their work is thrown away.
const HANDSHAKES: usize = 256;
/// For want of file descriptors or memory the next `accept` would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long, and for how many bytes, a refused client is listened to: closing on bytes unread would
/// reset the connection, and the reason could be lost on its way.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 << 10;

/// A connection that was let in.
pub struct Incoming {
    /// What the node's certificate says; `None` only when `purpose` is [`Purpose::Join`].
    pub identity: Option<Identity>,
    /// When that certificate was made, to the second.
    pub issued: Option<Timestamp>,
    pub remote: SocketAddr,
    pub purpose: Purpose,
    pub stream: Stream,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("identity", &self.identity)
            .field("remote", &self.remote)
            .field("purpose", &self.purpose)
            .finish_non_exhaustive()
    }
}

/// The cluster port of a manager.
#[derive(Debug)]
pub struct ClusterListener {
    tls: ClusterTls,
    tcp: TcpListener,
    pub(super) limit: Duration,
}

impl ClusterListener {
    pub(super) fn bind(tls: ClusterTls, addr: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            tls,
            tcp: tcp::listen(addr)?,
            limit: HANDSHAKE_LIMIT,
        })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Hands every connection that is let in to `handler`, which must not block, until `stop`. Then
    /// the port is closed and unfinished handshakes are dropped; what was handed over goes on.
    pub async fn run(self, handler: Arc<dyn Fn(Incoming) + Send + Sync>, stop: CancellationToken) {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                // All three are cancel-safe: no connection is lost between two passes.
                () = stop.cancelled() => return,
                Some(ended) = handshakes.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "the handler of a cluster connection panicked");
                    }
                }
                accepted = self.tcp.accept(), if handshakes.len() < HANDSHAKES => match accepted {
                    Ok((tcp, remote)) => {
                        let (tls, handler) = (self.tls.clone(), Arc::clone(&handler));
                        let limit = self.limit;
                        handshakes.spawn(async move {
                            match time::timeout(limit, receive(&tls, tcp, remote)).await {
                                Ok(Ok(incoming)) => handler(incoming),
                                Ok(Err(rejection)) => {
                                    rejection.log(remote);
                                    if let Rejection::Tls { tcp, .. } = rejection {
                                        linger(tcp).await;
                                    }
                                }
                                Err(_elapsed) => Rejection::Slow(limit).log(remote),
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept cluster connections");
                        time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum Rejection {
    #[error("it was silent or slow for {} s", .0.as_secs_f32())]
    Slow(Duration),
    #[error("it closed before it said anything")]
    Silent,
    #[error("set up the connection: {0}")]
    Socket(#[source] io::Error),
    #[error("no TLS as nodes of this swarm speak it: {source}")]
    Tls { source: io::Error, tcp: TcpStream },
    #[error("it does not speak the cluster port's protocol")]
    Protocol,
    #[error("its certificate is not a node's: {0}")]
    Certificate(#[from] CertificateError),
    #[error("it did not say what it wants: {0}")]
    Purpose(#[source] ReceiveError),
    #[error("it closed before it was answered: {0}")]
    Gone(#[source] SendError),
    #[error("{refusal}")]
    Refused {
        refusal: Refusal,
        purpose: Purpose,
        peer: Option<Identity>,
    },
}

impl Rejection {
    fn log(&self, remote: SocketAddr) {
        match self {
            // Port checks of load balancers and monitors do this all day.
            Self::Silent => tracing::debug!(peer.addr = %remote, "port check"),
            Self::Refused {
                refusal,
                purpose,
                peer,
            } => tracing::warn!(
                peer.addr = %remote,
                peer.node = peer.map(|peer| tracing::field::display(peer.node)),
                ?purpose,
                reason = %refusal,
                "cluster connection refused"
            ),
            other => tracing::warn!(
                peer.addr = %remote, reason = %other, "cluster connection refused"
            ),
        }
    }
}

async fn receive(
    tls: &ClusterTls,
    tcp: TcpStream,
    remote: SocketAddr,
) -> Result<Incoming, Rejection> {
    tcp::prepare(&tcp).map_err(Rejection::Socket)?;
    if tcp.peek(&mut [0]).await.map_err(Rejection::Socket)? == 0 {
        return Err(Rejection::Silent);
    }
    // The certificate of this moment.
    let own = tls.credentials();
    let acceptor = TlsAcceptor::from(own.server_config());
    let mut stream = match acceptor.accept(tcp).into_fallible().await {
        Ok(stream) => stream,
        Err((source, tcp)) => return Err(Rejection::Tls { source, tcp }),
    };
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(tls::ALPN) {
        return Err(Rejection::Protocol);
    }
    let certificate = connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .map(|leaf| Certificate::parse(leaf))
        .transpose()?;
    let purpose: Purpose = match stream::read_frame(&mut stream, FRAME_BYTES).await {
        Ok(purpose) => purpose.ok_or(Rejection::Silent)?,
        Err(error) => {
            if matches!(error, ReceiveError::Decode(_)) {
                refuse(stream, &Refusal::Unknown).await;
            }
            return Err(Rejection::Purpose(error));
        }
    };
    let ours = own.identity().cluster;
    match admission::admit(certificate.as_ref(), purpose, ours, clock::now()) {
        Ok(identity) => {
            let answered = stream::write_frame(&mut stream, &Admission::Welcome).await;
            answered.map_err(Rejection::Gone)?;
            let issued = certificate.map(|c| c.validity.not_before.after(BACKDATE));
            Ok(Incoming {
                identity,
                issued,
                remote,
                purpose,
                stream: Box::new(stream),
            })
        }
        Err(refusal) => {
            refuse(stream, &refusal).await;
            Err(Rejection::Refused {
                refusal,
                purpose,
                peer: certificate.map(|certificate| certificate.identity),
            })
        }
    }
}

/// Tells the client why, and ends TLS and TCP in order. Errors mean that it has gone already.
async fn refuse(mut stream: TlsStream<TcpStream>, refusal: &Refusal) {
    drop(stream::write_frame(&mut stream, &Admission::from(refusal)).await);
    drop(stream.shutdown().await);
}

/// Lets the client read the alert.
async fn linger(mut tcp: TcpStream) {
    drop(tcp.shutdown().await);
    let drained = async {
        let mut rest = tcp.take(LINGER_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    drop(time::timeout(LINGER, drained).await);
}
