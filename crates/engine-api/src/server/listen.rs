//! Accept loops.

use std::{future::Future, io, pin::pin};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
    time::{Duration, sleep},
};
use tokio_util::sync::CancellationToken;

/// After an accept failed for want of descriptors or memory: long enough for some to be freed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub trait Listener: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Listener for UnixListener {
    type Io = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        // Events and log lines are small and must not wait for the next one.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Serves `router` to whoever connects, HTTP/1.1 or HTTP/2 without TLS, until `stop`; connections
/// that are open then are closed.
pub async fn serve<L: Listener>(mut listener: L, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        // Cancel-safe: accepting takes a connection only when it returns one, joining likewise.
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(io) => {
                    connections.spawn(connection(io, router.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(error = %error, "could not accept a connection to the API");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Serves `router` to one peer, HTTP/1.1 or HTTP/2 without TLS, until it has gone away. Dropping this
/// closes the connection.
pub async fn serve_stream<Io>(router: Router, stream: Io)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connection(stream, router, CancellationToken::new()).await;
}

async fn connection<Io>(io: Io, router: Router, stop: CancellationToken)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(
        builder
            .serve_connection_with_upgrades(TokioIo::new(io), service)
            .into_owned()
    );
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                // A client that hangs up in the middle of a stream is no fault of anybody's.
                tracing::debug!(error, "connection to the API ended early");
            }
        }
        // Streams have no end of their own, so that waiting for them would be for ever.
        () = stop.cancelled() => {}
    }
}
