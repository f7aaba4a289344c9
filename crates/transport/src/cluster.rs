//! The cluster port: how nodes reach managers over the network.
//!
//! What it keeps true: a stream that [`ClusterTls::connect`] gives leads to a manager of the node's
//! own cluster; one that [`ClusterListener::run`] hands over comes from a node of the cluster, unless
//! it is for joining. Both ends look at the certificate that is current when the connection is made.
//! After the TLS handshake the client says what the connection is for and the server whether it may;
//! what follows is up to them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::CertificateDer};
use shoal_types::{ClusterId, NodeId, spec::Role, wire::Purpose};
use tokio::{net::TcpStream, sync::watch, time};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    clock,
    identity::{Certificate, Credentials},
    stream::{self, Stream},
};

mod admission;
mod error;
mod listener;
mod tcp;
pub(crate) mod tls;

use admission::{Admission, FRAME_BYTES};
pub use error::ConnectError;
pub use listener::{ClusterListener, Incoming};

pub use crate::call::{AskError, answer, ask};

/// For TLS, the purpose and the answer to it; the listener gives as much.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Connects to managers, and listens as one, with the node's credentials of the moment.
#[derive(Debug, Clone)]
pub struct ClusterTls {
    credentials: watch::Receiver<Credentials>,
}

impl ClusterTls {
    /// Every handshake uses what `credentials` holds when it begins.
    pub fn new(credentials: watch::Receiver<Credentials>) -> Self {
        Self { credentials }
    }

    pub fn credentials(&self) -> Credentials {
        self.credentials.borrow().clone()
    }

    /// Connects to the manager at `addr` (`host:port`), which must be `expect` if given. The stream
    /// begins after the manager has agreed to `purpose`. Takes at most 2 s for each address that the
    /// host has, and 5 s after that.
    pub async fn connect(
        &self,
        addr: &str,
        expect: Option<NodeId>,
        purpose: Purpose,
    ) -> Result<Stream, ConnectError> {
        let credentials = self.credentials();
        let ours = credentials.identity().cluster;
        let check = |chain: &[CertificateDer<'_>]| check_manager(addr, chain, Some(ours), expect);
        let config = credentials.client_config();
        let opened = open(addr, config, None, purpose, check).await?;
        let (stream, admission, ()) = opened;
        judge(addr, admission, Some(&credentials))?;
        Ok(stream)
    }

    /// Listens on `addr`; connections queue until [`ClusterListener::run`] takes them.
    #[expect(
        clippy::unused_async,
        reason = "a socket must be registered with a runtime, which an async function has"
    )]
    pub async fn bind(&self, addr: SocketAddr) -> std::io::Result<ClusterListener> {
        ClusterListener::bind(self.clone(), addr)
    }
}

/// Connects a node that has no certificate yet to the manager at `addr`, and trusts the cluster whose
/// root certificate has this digest (a join token's). Gives the stream, on which a
/// [`JoinRequest`](shoal_types::wire::JoinRequest) may follow, and that root certificate in DER.
pub async fn connect_to_join(
    addr: &str,
    digest: [u8; 32],
) -> Result<(Stream, Vec<u8>), ConnectError> {
    let check = |chain: &[CertificateDer<'_>]| {
        check_manager(addr, chain, None, None)?;
        let root = tls::find_root(chain, digest).expect("the handshake found it");
        Ok(root.to_vec())
    };
    let config = Arc::new(tls::joining_config(digest));
    let opened = open(addr, config, Some(digest), Purpose::Join, check).await?;
    let (stream, admission, root) = opened;
    judge(addr, admission, None)?;
    Ok((stream, root))
}

/// TCP, TLS, `check` of the server's certificates, the purpose, and the server's answer.
async fn open<T>(
    addr: &str,
    config: Arc<ClientConfig>,
    digest: Option<[u8; 32]>,
    purpose: Purpose,
    check: impl FnOnce(&[CertificateDer<'_>]) -> Result<T, ConnectError>,
) -> Result<(Stream, Admission, T), ConnectError> {
    let tcp = tcp::connect(addr).await?;
    if purpose == Purpose::Session {
        tcp::for_session(&tcp).map_err(|source| ConnectError::Unreachable {
            addr: addr.to_owned(),
            source,
        })?;
    }
    let opened = async {
        let connector = TlsConnector::from(config);
        let mut stream: TlsStream<TcpStream> = connector
            .connect(tls::server_name(), tcp)
            .await
            .map_err(|error| ConnectError::from_io(addr, digest, error))?;
        let (_, connection) = stream.get_ref();
        if connection.alpn_protocol() != Some(tls::ALPN) {
            return Err(ConnectError::NotShoal {
                addr: addr.to_owned(),
                source: None,
            });
        }
        let checked = check(connection.peer_certificates().unwrap_or_default())?;
        // A server that refused the certificate may be gone already; why, it says in its last words.
        let sent = stream::write_frame(&mut stream, &purpose).await;
        let admission = stream::read_frame(&mut stream, FRAME_BYTES)
            .await
            .map_err(|error| ConnectError::from_receive(addr, error))?;
        sent.map_err(|error| ConnectError::from_send(addr, error))?;
        let admission = admission.ok_or_else(|| ConnectError::Closed {
            addr: addr.to_owned(),
            source: None,
        })?;
        let stream: Stream = Box::new(stream);
        Ok((stream, admission, checked))
    };
    match time::timeout(HANDSHAKE_LIMIT, opened).await {
        Ok(result) => result,
        Err(_elapsed) => Err(ConnectError::Timeout {
            addr: addr.to_owned(),
            doing: "the TLS handshake",
            limit: HANDSHAKE_LIMIT,
        }),
    }
}

/// Whether the one who showed `chain` (signed by the root) is a manager that may be spoken to.
fn check_manager(
    addr: &str,
    chain: &[CertificateDer<'_>],
    ours: Option<ClusterId>,
    expect: Option<NodeId>,
) -> Result<(), ConnectError> {
    let addr = || addr.to_owned();
    let leaf = chain.first().map_or(&[][..], |leaf| leaf);
    let certificate = Certificate::parse(leaf).map_err(|source| ConnectError::Certificate {
        addr: addr(),
        source,
    })?;
    let identity = certificate.identity;
    if let Some(ours) = ours.filter(|ours| *ours != identity.cluster) {
        return Err(ConnectError::ForeignCluster {
            addr: addr(),
            theirs: identity.cluster,
            ours,
        });
    }
    let now = clock::now();
    if !certificate.validity.contains(now) {
        return Err(ConnectError::Clock {
            addr: addr(),
            node: identity.node,
            validity: certificate.validity,
            now,
        });
    }
    if let Some(expected) = expect.filter(|expected| *expected != identity.node) {
        return Err(ConnectError::OtherNode {
            addr: addr(),
            expected,
            found: identity.node,
        });
    }
    if identity.role != Role::Manager {
        return Err(ConnectError::Worker {
            addr: addr(),
            node: identity.node,
        });
    }
    Ok(())
}

fn judge(addr: &str, admission: Admission, own: Option<&Credentials>) -> Result<(), ConnectError> {
    let addr = addr.to_owned();
    match (admission, own) {
        (Admission::Welcome, _) => Ok(()),
        (Admission::Clock { now }, Some(own)) => Err(ConnectError::ClockThere {
            addr,
            validity: own.validity(),
            theirs: now,
            ours: clock::now(),
        }),
        (Admission::Clock { .. }, None) => Err(ConnectError::Refused {
            addr,
            reason: "it sees a certificate where none was shown".to_owned(),
        }),
        (Admission::Refused { reason }, _) => Err(ConnectError::Refused { addr, reason }),
    }
}

#[cfg(test)]
mod tests;
