//! TCP connections that notice when the other machine is gone.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, lookup_host},
    time,
};

use super::ConnectError;

/// For one address. On a network of one's own an answer takes milliseconds, and a dead manager must
/// not hold up the attempt at the next.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Bytes that stay unacknowledged, or keepalives unanswered, for this long end the connection.
const DEAD_AFTER_MS: u32 = 10_000;
/// The same for a session: a link that comes back is used sooner by a new connection than by an old
/// one, whose next attempt to be heard may be as far away as the link was gone.
const SESSION_DEAD_AFTER_MS: u32 = 2_000;
/// An idle connection is probed after this time, and then as often.
const PROBE_SECONDS: u32 = 3;
/// Connections that wait to be accepted: every agent of a large cluster at once, after a manager's
/// restart. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// Has a connection that a session runs over be given up sooner than others.
pub(super) fn for_session(stream: &TcpStream) -> io::Result<()> {
    Ok(setsockopt(
        stream,
        sockopt::TcpUserTimeout,
        &SESSION_DEAD_AFTER_MS,
    )?)
}

/// Connects to the first address of `addr` that takes the connection.
pub(super) async fn connect(addr: &str) -> Result<TcpStream, ConnectError> {
    let unreachable = |source| ConnectError::Unreachable {
        addr: addr.to_owned(),
        source,
    };
    let timeout = |doing| ConnectError::Timeout {
        addr: addr.to_owned(),
        doing,
        limit: CONNECT_LIMIT,
    };
    let Ok(found) = time::timeout(CONNECT_LIMIT, lookup_host(addr)).await else {
        return Err(timeout("finding its address"));
    };
    let mut last = unreachable(io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address",
    ));
    for target in found.map_err(unreachable)? {
        match time::timeout(CONNECT_LIMIT, connect_to(target)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = unreachable(error),
            Err(_elapsed) => last = timeout("connecting"),
        }
    }
    Err(last)
}

async fn connect_to(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket_for(target)?;
    socket.set_nodelay(true)?;
    watch_peer(&socket)?;
    socket.connect(target).await
}

/// A listener that takes its address over from a predecessor whose connections still linger.
pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket_for(addr)?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Sets up a connection that was accepted.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    watch_peer(stream)
}

fn socket_for(addr: SocketAddr) -> io::Result<TcpSocket> {
    if addr.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
}

/// tcp(7): with `TCP_USER_TIMEOUT` the count of keepalive probes does not matter.
fn watch_peer(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &PROBE_SECONDS)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &PROBE_SECONDS)?;
    setsockopt(socket, sockopt::TcpUserTimeout, &DEAD_AFTER_MS)?;
    Ok(())
}
