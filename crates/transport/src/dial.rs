//! How an agent reaches a manager, on whatever machine it is.
//!
//! On one node both halves live in one process: the agent dials, and the manager's listener gets the
//! other end of an in-process pipe. Other managers are reached over the cluster port. What runs over
//! the stream is the same.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use shoal_types::wire::{ManagerPeer, Purpose};
use tokio::sync::mpsc;

pub use crate::managers::Managers;
use crate::{
    cluster::{ClusterTls, ConnectError},
    session,
    stream::Stream,
};

/// Connections that wait to be accepted; an agent has one session at a time, and replies beside it.
const BACKLOG: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("no manager runs on this node")]
    NoneHere,
    #[error("no manager is known to this node")]
    NoneKnown,
    #[error("the session that asked for this has ended")]
    NoSession,
    #[error("no manager can be reached: {0}")]
    Unreachable(Failures),
}

/// Every manager that was tried, and what came of it.
#[derive(Debug)]
pub struct Failures(pub Vec<ConnectError>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, failure) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{failure}")?;
            let mut cause = failure.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

/// Opens connections to a manager. A clone is a reference.
#[derive(Debug, Clone)]
pub struct Dialer {
    local: Option<Local>,
    remote: Option<Remote>,
    /// Where the latest session went: replies belong there and nowhere else.
    session: Arc<Mutex<Option<Way>>>,
}

type Local = mpsc::Sender<(Purpose, Stream)>;

#[derive(Debug, Clone)]
struct Remote {
    tls: ClusterTls,
    managers: Managers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Local,
    Remote(ManagerPeer),
}

/// Takes the connections that are opened within this process.
#[derive(Debug)]
pub struct Listener {
    local: mpsc::Receiver<(Purpose, Stream)>,
}

/// A dialer, and the listener it reaches.
pub fn local() -> (Dialer, Listener) {
    let (to, from) = mpsc::channel(BACKLOG);
    (Dialer::new(Some(to), None), Listener { local: from })
}

/// A dialer of managers on other machines, and the list of them, which is empty at first.
pub fn remote(tls: ClusterTls) -> (Dialer, Managers) {
    let managers = Managers::default();
    let remote = Remote {
        tls,
        managers: managers.clone(),
    };
    (Dialer::new(None, Some(remote)), managers)
}

impl Dialer {
    fn new(local: Option<Local>, remote: Option<Remote>) -> Self {
        Self {
            local,
            remote,
            session: Arc::default(),
        }
    }

    /// For a node that is itself a manager: `local` as long as this node leads or nobody knows who
    /// does (its manager then says where to go), else the leader, and the other way when that fails.
    pub fn both(local: Self, remote: Self) -> Self {
        Self::new(local.local.or(remote.local), remote.remote.or(local.remote))
    }

    /// Opens a session.
    pub async fn dial(&self) -> Result<Stream, DialError> {
        self.dial_for(Purpose::Session).await
    }

    /// Opens a connection for `purpose`. Tries one manager after the other; only a reply goes to the
    /// one that holds the session and to no other.
    pub async fn dial_for(&self, purpose: Purpose) -> Result<Stream, DialError> {
        let ways = match purpose {
            Purpose::Reply { .. } => {
                let session = self.session().clone();
                vec![session.ok_or(DialError::NoSession)?]
            }
            _ => self.ways(),
        };
        if ways.is_empty() {
            return Err(DialError::NoneKnown);
        }
        let mut failures = Vec::new();
        for way in ways {
            match self.take(&way, purpose).await {
                Ok(stream) => {
                    if purpose == Purpose::Session {
                        *self.session() = Some(way);
                    }
                    return Ok(stream);
                }
                Err(Some(failure)) => failures.push(failure),
                Err(None) => {}
            }
        }
        Err(if failures.is_empty() {
            DialError::NoneHere
        } else {
            DialError::Unreachable(Failures(failures))
        })
    }

    /// `None` for one that reaches only this node's own manager.
    pub fn managers(&self) -> Option<&Managers> {
        self.remote.as_ref().map(|remote| &remote.managers)
    }

    /// The ways to a manager, in the order to try them in.
    fn ways(&self) -> Vec<Way> {
        let Some(remote) = &self.remote else {
            return vec![Way::Local];
        };
        let order = remote.managers.order(&mut rand::rng());
        if self.local.is_none() {
            return order.into_iter().map(Way::Remote).collect();
        }
        let here = remote.tls.credentials().identity().node;
        let leader = remote
            .managers
            .preferred()
            .filter(|leader| leader.node != here);
        let others = order.into_iter().filter(|peer| peer.node != here);
        let mut ways: Vec<Way> = others.map(Way::Remote).collect();
        ways.insert(usize::from(leader.is_some()), Way::Local);
        ways
    }

    /// `Err(None)` when there is no manager on this node.
    async fn take(&self, way: &Way, purpose: Purpose) -> Result<Stream, Option<ConnectError>> {
        match (way, &self.local, &self.remote) {
            (Way::Local, Some(local), _) => {
                let (near, far) = session::local_stream();
                let sent = local.send((purpose, Box::new(far))).await;
                sent.map_err(|_closed| None)?;
                Ok(Box::new(near))
            }
            (Way::Remote(peer), _, Some(remote)) => {
                let connected = remote.tls.connect(&peer.addr, Some(peer.node), purpose);
                match connected.await {
                    Ok(stream) => {
                        remote.managers.succeeded(peer.node);
                        Ok(stream)
                    }
                    Err(error) => {
                        remote.managers.failed(peer.node);
                        Err(Some(error))
                    }
                }
            }
            _ => Err(None),
        }
    }

    fn session(&self) -> std::sync::MutexGuard<'_, Option<Way>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// The next connection and what it is for; `None` when every dialer is gone.
    pub async fn accept(&mut self) -> Option<(Purpose, Stream)> {
        self.local.recv().await
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::spec::Role;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::watch,
    };
    use tokio_util::sync::{CancellationToken, DropGuard};

    use super::*;
    use crate::{
        cluster::Incoming,
        testing::{Swarm, node},
    };

    /// A manager that says its number and nothing else.
    struct Peer {
        known_as: ManagerPeer,
        purposes: mpsc::UnboundedReceiver<Purpose>,
        _stop: DropGuard,
    }

    impl Peer {
        async fn start(swarm: &Swarm, n: u8) -> Self {
            let tls = tls(swarm, n, Role::Manager);
            let listener = tls.bind(([127, 0, 0, 1], 0).into()).await.expect("bound");
            let addr = listener.local_addr().expect("has one").to_string();
            let (said, purposes) = mpsc::unbounded_channel();
            let handler = move |mut incoming: Incoming| {
                let _ = said.send(incoming.purpose);
                tokio::spawn(async move { incoming.stream.write_all(&[n]).await });
            };
            let stop = CancellationToken::new();
            tokio::spawn(listener.run(Arc::new(handler), stop.clone()));
            Self {
                known_as: ManagerPeer {
                    node: node(n),
                    addr,
                },
                purposes,
                _stop: stop.drop_guard(),
            }
        }
    }

    fn tls(swarm: &Swarm, n: u8, role: Role) -> ClusterTls {
        ClusterTls::new(watch::channel(swarm.credentials(n, role)).1)
    }

    async fn number(stream: Result<Stream, DialError>) -> u8 {
        let mut number = [0];
        let mut stream = stream.expect("dialed");
        stream.read_exact(&mut number).await.expect("read");
        number[0]
    }

    /// The manager half of this node, as number 0.
    fn serve_here(mut listener: Listener) {
        tokio::spawn(async move {
            while let Some((_, mut stream)) = listener.accept().await {
                stream.write_all(&[0]).await.expect("written");
                // Kept until the other end has read.
                tokio::spawn(async move { stream.read(&mut [0]).await });
            }
        });
    }

    /// Where nobody listens.
    fn gone(n: u8) -> (ManagerPeer, tokio::net::TcpSocket) {
        let held = tokio::net::TcpSocket::new_v4().expect("a socket");
        held.bind(([127, 0, 0, 1], 0).into()).expect("bound");
        let addr = held.local_addr().expect("has one").to_string();
        let node = node(n);
        (ManagerPeer { node, addr }, held)
    }

    #[tokio::test]
    async fn the_local_listener_gets_the_purpose_too() {
        let (dialer, mut listener) = local();
        assert!(dialer.managers().is_none());
        let reply = dialer.dial_for(Purpose::Reply { ticket: 3 }).await;
        assert!(matches!(reply.err(), Some(DialError::NoSession)));
        let _session = dialer.dial().await.expect("dialed");
        let (purpose, _stream) = listener.accept().await.expect("accepted");
        assert_eq!(purpose, Purpose::Session);
        let reply = Purpose::Reply { ticket: 3 };
        let _stream = dialer.dial_for(reply).await.expect("dialed");
        let (purpose, _stream) = listener.accept().await.expect("accepted");
        assert_eq!(purpose, reply);
        drop(listener);
        assert!(matches!(
            dialer.dial().await.err(),
            Some(DialError::NoneHere)
        ));
    }

    #[tokio::test]
    async fn a_session_goes_to_the_leader_and_replies_follow_it() {
        let swarm = Swarm::new(1);
        let (mut one, mut two) = (Peer::start(&swarm, 1).await, Peer::start(&swarm, 2).await);
        let (dialer, managers) = remote(tls(&swarm, 9, Role::Worker));
        assert!(matches!(
            dialer.dial().await.err(),
            Some(DialError::NoneKnown)
        ));
        managers.set(vec![one.known_as.clone(), two.known_as.clone()]);
        managers.prefer(Some(two.known_as.clone()));
        assert_eq!(number(dialer.dial().await).await, 2);
        // Another one leads now, but the ticket is the old one's.
        managers.prefer(Some(one.known_as.clone()));
        let reply = Purpose::Reply { ticket: 3 };
        assert_eq!(number(dialer.dial_for(reply).await).await, 2);
        assert_eq!(number(dialer.dial_for(Purpose::Renew).await).await, 1);
        assert_eq!(two.purposes.recv().await, Some(Purpose::Session));
        assert_eq!(two.purposes.recv().await, Some(reply));
        assert_eq!(one.purposes.recv().await, Some(Purpose::Renew));
    }

    #[tokio::test]
    async fn when_the_leader_is_gone_another_manager_is_found_in_the_same_call() {
        let swarm = Swarm::new(1);
        let one = Peer::start(&swarm, 1).await;
        let (leader, _held) = gone(2);
        let (dialer, managers) = remote(tls(&swarm, 9, Role::Worker));
        managers.set(vec![one.known_as.clone(), leader.clone()]);
        managers.prefer(Some(leader));
        assert_eq!(number(dialer.dial().await).await, 1);
        assert_eq!(managers.preferred(), None);
    }

    #[tokio::test]
    async fn when_nobody_answers_every_attempt_is_named() {
        let swarm = Swarm::new(1);
        let ((one, _held), (two, _also)) = (gone(1), gone(2));
        // Someone else has the address of a manager.
        let mut three = Peer::start(&swarm, 4).await.known_as;
        three.node = node(3);
        let (dialer, managers) = remote(tls(&swarm, 9, Role::Worker));
        managers.set(vec![one.clone(), two.clone(), three]);
        let error = dialer.dial().await.err().expect("must fail");
        let text = error.to_string();
        for part in [one.addr.as_str(), two.addr.as_str(), "Connection refused"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.starts_with("no manager can be reached: "), "{text}");
    }

    #[tokio::test]
    async fn a_managers_own_agent_stays_here_until_another_node_is_known_to_lead() {
        let swarm = Swarm::new(1);
        let other = Peer::start(&swarm, 2).await;
        let (here, listener) = local();
        serve_here(listener);
        let (there, managers) = remote(tls(&swarm, 1, Role::Manager));
        let dialer = Dialer::both(here, there);
        let (own, _held) = gone(1);
        assert_eq!(number(dialer.dial().await).await, 0);
        managers.set(vec![own.clone(), other.known_as.clone()]);
        assert_eq!(number(dialer.dial().await).await, 0);
        managers.prefer(Some(own));
        assert_eq!(number(dialer.dial().await).await, 0);
        managers.prefer(Some(other.known_as.clone()));
        assert_eq!(number(dialer.dial().await).await, 2);
        let reply = Purpose::Reply { ticket: 1 };
        assert_eq!(number(dialer.dial_for(reply).await).await, 2);
        // The leader dies: the manager here knows who follows.
        let (dead, _also) = gone(2);
        managers.prefer(Some(dead));
        assert_eq!(number(dialer.dial().await).await, 0);
        assert_eq!(number(dialer.dial_for(reply).await).await, 0);
    }

    #[tokio::test]
    async fn the_agent_of_a_node_that_stops_being_a_manager_finds_another() {
        let swarm = Swarm::new(1);
        let other = Peer::start(&swarm, 2).await;
        let (here, listener) = local();
        let (there, managers) = remote(tls(&swarm, 1, Role::Manager));
        let dialer = Dialer::both(here, there);
        managers.set(vec![other.known_as.clone()]);
        drop(listener);
        assert_eq!(number(dialer.dial().await).await, 2);
        let alone = Dialer::both(local().0, remote(tls(&swarm, 1, Role::Manager)).0);
        assert!(matches!(
            alone.dial().await.err(),
            Some(DialError::NoneHere)
        ));
    }
}
