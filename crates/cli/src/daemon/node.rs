//! One node, put together: its agent, and its manager when it is one.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use shoal_manager::{InitOptions, Manager, ManagerConfig};
use shoal_node_agent::Agent;
use shoal_transport::dial;
use shoal_types::NodeId;
use tokio::{sync::Mutex, task::JoinHandle, time};
use tracing::{Instrument, info, info_span, warn};

use super::home::{Home, HomeError, Membership};

/// Raft identity of the first manager. Later ones get theirs from the leader.
const FIRST_RAFT: u64 = 1;

/// How long a daemon that is in no swarm waits, before it answers, for what an earlier one left to go.
const LEFTOVERS: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
    )]
    AlreadyMember,
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("open the manager")]
    Open(#[from] shoal_manager::OpenError),
    #[error("initialise the swarm")]
    Init(#[from] shoal_manager::InitError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaveError {
    #[error("This node is not part of a swarm")]
    NotMember,
    /// Docker's words.
    #[error(
        "You are attempting to leave the swarm on a node that is participating as a manager. \
         Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message."
    )]
    LastManager,
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// The manager half, while it runs.
pub(crate) struct Leading {
    pub(crate) manager: Manager,
    pub(crate) membership: Membership,
    sessions: JoinHandle<()>,
}

/// A node. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    home: Home,
    agent: Agent,
    swarm: RwLock<Option<Arc<Leading>>>,
    /// Held over the whole of an init or leave, so that two of them can't mix.
    changing: Mutex<()>,
}

impl Node {
    /// Takes up what the home remembers: in a swarm the manager is opened and the agent joins it; in
    /// none, whatever an earlier membership left running is taken away.
    pub(crate) async fn open(home: Home, agent: Agent) -> Result<Self, InitError> {
        let leading = if let Some(membership) = home.membership()? {
            Some(Arc::new(lead(&home, &agent, membership).await?))
        } else {
            // What cannot be taken away now is tried again and again, and must not keep the
            // daemon from answering.
            if time::timeout(LEFTOVERS, agent.leave()).await.is_err() {
                warn!("containers of an earlier swarm are still being removed");
            }
            None
        };
        let swarm = RwLock::new(leading);
        Ok(Self {
            inner: Arc::new(Inner {
                home,
                agent,
                swarm,
                changing: Mutex::default(),
            }),
        })
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.inner.agent
    }

    /// The manager, when this node is one.
    pub(crate) fn leading(&self) -> Option<Arc<Leading>> {
        self.inner
            .swarm
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_leading(&self, leading: Option<Arc<Leading>>) {
        *self
            .inner
            .swarm
            .write()
            .unwrap_or_else(PoisonError::into_inner) = leading;
    }

    /// Makes a new swarm with this node as its manager.
    pub(crate) async fn init(
        &self,
        node: NodeId,
        options: InitOptions,
    ) -> Result<NodeId, InitError> {
        let _changing = self.inner.changing.lock().await;
        if self.leading().is_some() {
            return Err(InitError::AlreadyMember);
        }
        let home = &self.inner.home;
        // What an init that failed half-way left is not part of a new swarm.
        home.forget_swarm()?;
        let membership = Membership {
            node,
            raft: Some(FIRST_RAFT),
        };
        let manager = open_manager(home, &membership).await?;
        if let Err(error) = manager.init(options).await {
            manager.shutdown().await;
            home.forget_swarm()?;
            return Err(error.into());
        }
        home.remember(&membership)?;
        info!(node.id = %node, "swarm initialised");
        let leading = start_sessions(manager, &self.inner.agent, membership);
        self.set_leading(Some(Arc::new(leading)));
        Ok(node)
    }

    /// Leaves the swarm: its tasks on this node are stopped and its state is erased.
    pub(crate) async fn leave(&self, force: bool) -> Result<(), LeaveError> {
        let _changing = self.inner.changing.lock().await;
        let Some(leading) = self.leading() else {
            return Err(LeaveError::NotMember);
        };
        if !force {
            return Err(LeaveError::LastManager);
        }
        leading.sessions.abort();
        leading.manager.shutdown().await;
        self.inner.agent.leave().await;
        self.inner.home.forget_swarm()?;
        info!(node.id = %leading.membership.node, "left the swarm");
        self.set_leading(None);
        Ok(())
    }

    /// Ends both halves; containers and networks go on.
    pub(crate) async fn shutdown(&self) {
        self.inner.agent.shutdown().await;
        let _changing = self.inner.changing.lock().await;
        if let Some(leading) = self.leading() {
            leading.sessions.abort();
            leading.manager.shutdown().await;
        }
    }
}

async fn lead(home: &Home, agent: &Agent, membership: Membership) -> Result<Leading, InitError> {
    let manager = open_manager(home, &membership).await?;
    Ok(start_sessions(manager, agent, membership))
}

async fn open_manager(home: &Home, membership: &Membership) -> Result<Manager, InitError> {
    let config = ManagerConfig {
        dir: home.directory("swarm/raft")?,
        node: membership.node,
        raft: membership.raft().unwrap_or(shoal_types::RaftId(FIRST_RAFT)),
        tuning: shoal_manager::Tuning::default(),
    };
    Ok(Manager::open(config).await?)
}

/// Lets the agent of this node, and nobody else, open sessions with the manager.
fn start_sessions(manager: Manager, agent: &Agent, membership: Membership) -> Leading {
    let (dialer, mut listener) = dial::local();
    let accepting = manager.clone();
    let sessions = tokio::spawn(
        async move {
            while let Some(stream) = listener.accept().await {
                let manager = accepting.clone();
                tokio::spawn(async move { manager.serve_agent(stream).await }.in_current_span());
            }
            warn!("no more sessions: the agent is gone");
        }
        .instrument(info_span!("dispatcher")),
    );
    agent.join(membership.node, dialer);
    Leading {
        manager,
        membership,
        sessions,
    }
}
