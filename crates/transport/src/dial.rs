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
