//! The sockets of one network's name server.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    Shared,
    answer::{Answer, answer, failure},
    forward::framed,
};

/// A connection that asks nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// Connections of one network at once.
const CONNECTIONS: usize = 256;
/// After a failed `accept`, as when descriptors run out, before the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until it is dropped.
pub(super) async fn serve(shared: Arc<Shared>, network: String, udp: UdpSocket, tcp: TcpListener) {
    let network: Arc<str> = network.into();
    tokio::join!(
        serve_udp(shared.clone(), network.clone(), udp),
        serve_tcp(shared, network, tcp)
    );
}

async fn serve_udp(shared: Arc<Shared>, network: Arc<str>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    // Ends with this function, so no question outlives its network.
    let mut forwarded = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error here is one datagram's, such as an ICMP answer to an earlier one.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        while forwarded.try_join_next().is_some() {}
        let question = &buffer[..length];
        let (answer, upstreams) = shared.answer(&network, from, question, true);
        match answer {
            Answer::Nothing => {}
            Answer::Message(bytes) => drop(socket.send_to(&bytes, from).await),
            Answer::Forward => {
                let (shared, socket, question) =
                    (shared.clone(), socket.clone(), question.to_vec());
                forwarded.spawn(async move {
                    if let Some(bytes) =
                        shared.forward(&question, upstreams.as_deref(), false).await
                    {
                        drop(socket.send_to(&bytes, from).await);
                    }
                });
            }
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>, network: Arc<str>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (shared, network) = (shared.clone(), network.clone());
        connections.spawn(async move {
            // What goes wrong on a connection is the asker's own: it sees the connection end.
            let _ = serve_connection(&shared, &network, stream, from).await;
            drop(permit);
        });
    }
}

async fn serve_connection(
    shared: &Shared,
    network: &str,
    mut stream: TcpStream,
    from: SocketAddr,
) -> std::io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut question = vec![0; length.into()];
        timeout(IDLE, stream.read_exact(&mut question)).await??;
        let bytes = match shared.answer(network, from, &question, false) {
            (Answer::Nothing, _) => None,
            (Answer::Message(bytes), _) => Some(bytes),
            (Answer::Forward, upstreams) => {
                shared.forward(&question, upstreams.as_deref(), true).await
            }
        };
        let Some(bytes) = bytes else {
            return Ok(());
        };
        timeout(IDLE, stream.write_all(&framed(&bytes))).await??;
    }
}

impl Shared {
    fn answer(
        &self,
        network: &str,
        from: SocketAddr,
        question: &[u8],
        datagram: bool,
    ) -> (Answer, Option<Vec<SocketAddr>>) {
        let IpAddr::V4(from) = from.ip() else {
            return (Answer::Nothing, None);
        };
        let asker = self.asker(network, from);
        let zones = self.zones_of(&asker);
        (
            answer(question, &asker, &zones, datagram),
            asker.upstreams.clone(),
        )
    }

    async fn forward(
        &self,
        question: &[u8],
        upstreams: Option<&[SocketAddr]>,
        over_tcp: bool,
    ) -> Option<Vec<u8>> {
        let answered = self.forwarder.ask(question, upstreams, over_tcp).await;
        answered.or_else(|| failure(question))
    }
}
