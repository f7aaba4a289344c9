//! This node's part in a swarm: its agent's way to the managers, its certificate, and its manager half
//! while it is one.
//!
//! One loop keeps certificate and manager half equal to the role that the managers say the node has. It
//! looks at everything anew each time, so nothing depends on having seen a change.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shoal_manager::{Leader, Manager, ManagerConfig};
use shoal_node_agent::Agent;
use shoal_transport::{
    cluster::{self, ClusterTls, Incoming},
    dial::{self, Dialer, Managers},
    identity::{Credentials, NodeKey},
    stream::Stream,
};
use shoal_types::{
    NodeId, RaftId, Timestamp,
    spec::Role,
    wire::{JoinAnswer, ManagerPeer, MemberAnswer, MemberRequest, Purpose, RaftLane, RenewRequest},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::{
    address::AddressError,
    home::{Home, HomeError, Membership},
};

/// One question to a manager, with its answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// The leader is looked for this long by a question that only it answers.
const ELECTION_PATIENCE: Duration = Duration::from_secs(15);
const ELECTION_PAUSE: Duration = Duration::from_millis(200);
/// Before another try of what a manager did not do.
const RETRY: Duration = Duration::from_secs(2);
/// A place in the group of managers that is being taken shows in the state within less.
const UNLISTED: Duration = Duration::from_secs(20);
/// A manager that answers does so within this; one that has moved away is not waited for any longer.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the node's own address is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// A leader is looked for this long by a request that needs one.
const LEADER_PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemberError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("open the manager")]
    Open(#[from] shoal_manager::OpenError),
    #[error("listen on {addr} for the swarm")]
    Listen {
        addr: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Credentials(#[from] shoal_transport::identity::CredentialsError),
    #[error(transparent)]
    Connect(#[from] shoal_transport::cluster::ConnectError),
    #[error(transparent)]
    Dial(#[from] dial::DialError),
    #[error(transparent)]
    Ask(#[from] shoal_transport::cluster::AskError),
    /// In the words of the managers.
    #[error("{0}")]
    Refused(String),
    #[error("the swarm has no leader that this node can reach")]
    NoLeader,
    #[error("this node is not a manager; a new cluster can be forced on a manager only")]
    NoManager,
    #[error(
        "this node runs its tasks in memory only (--null-runtime), so it cannot be a manager; it can join as a worker"
    )]
    InMemory,
    #[error("this swarm is local to its one node, there is nothing to force")]
    Local,
    #[error(transparent)]
    TakeOver(#[from] shoal_manager::TakeOverError),
    #[error(
        "manager {node} is another machine, which answers at {addr}; this one's data root is a copy of that \
         one's, so it takes no part. Leave the swarm here with --force and join it again"
    )]
    Twin { node: NodeId, addr: String },
}

/// What makes connections to other nodes.
#[derive(Clone)]
pub(crate) struct Links {
    pub(crate) tls: ClusterTls,
    pub(crate) managers: Managers,
    dialer: Dialer,
    credentials: Arc<watch::Sender<Credentials>>,
}

impl Links {
    fn new(credentials: Credentials) -> Self {
        let (credentials, current) = watch::channel(credentials);
        let tls = ClusterTls::new(current);
        let (dialer, managers) = dial::remote(tls.clone());
        Self {
            tls,
            managers,
            dialer,
            credentials: Arc::new(credentials),
        }
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials.borrow().clone()
    }

    /// Asks the leader, wherever it is, one question.
    async fn ask<Q, A>(
        &self,
        purpose: Purpose,
        question: &Q,
        elsewhere: impl Fn(&A) -> Option<Option<ManagerPeer>>,
    ) -> Result<A, MemberError>
    where
        Q: serde::Serialize + Sync,
        A: serde::de::DeserializeOwned,
    {
        // Each hop names a better-informed manager. Where there is none, one is being elected.
        let patience = Instant::now() + ELECTION_PATIENCE;
        loop {
            let asked = async {
                let stream = self.dialer.dial_for(purpose).await?;
                let answer = cluster::ask(stream, question, ASK_TIMEOUT).await?;
                Ok::<A, MemberError>(answer)
            };
            let error = match asked.await {
                Ok(answer) => match elsewhere(&answer) {
                    None => return Ok(answer),
                    Some(leader) => {
                        self.managers.prefer(leader);
                        MemberError::NoLeader
                    }
                },
                // The question was not put, so it may be put again.
                Err(error @ MemberError::Dial(_)) => error,
                Err(error) => return Err(error),
            };
            if Instant::now() >= patience {
                return Err(error);
            }
            time::sleep(ELECTION_PAUSE).await;
        }
    }

    async fn ask_member(&self, request: MemberRequest) -> Result<(), MemberError> {
        let elsewhere = |answer: &MemberAnswer| match answer {
            MemberAnswer::Elsewhere { leader } => Some(leader.clone()),
            _ => None,
        };
        match self.ask(Purpose::Member, &request, elsewhere).await? {
            MemberAnswer::Done => Ok(()),
            MemberAnswer::Refused { reason } => Err(MemberError::Refused(reason)),
            MemberAnswer::Elsewhere { .. } => Err(MemberError::NoLeader),
        }
    }
}

/// The manager half, while it runs.
struct Half {
    manager: Manager,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Half {
    async fn shutdown(self) {
        self.stop.cancel();
        self.manager.shutdown().await;
        for task in self.tasks {
            task.abort();
            // An abort is the expected end.
            let _ = task.await;
        }
    }
}

/// Called with the streams of other managers that pass on requests to the API.
pub(crate) type ServeApi = Arc<dyn Fn(Stream) + Send + Sync>;

/// What a member is made with.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) home: Arc<Home>,
    pub(crate) agent: Agent,
    pub(crate) serve_api: ServeApi,
}

/// A node that takes part.
pub(crate) struct Member {
    parts: Parts,
    membership: RwLock<Membership>,
    /// `None` in local mode.
    pub(crate) links: Option<Links>,
    half: RwLock<Option<Half>>,
    /// The half stays closed: another machine serves as this manager.
    twin: AtomicBool,
    keeping: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Member {
    /// Takes part as the home remembers. The manager half, if there is one, runs when this returns.
    pub(crate) async fn start(
        parts: Parts,
        membership: Membership,
        credentials: Option<Credentials>,
    ) -> Result<Arc<Self>, MemberError> {
        let member = Arc::new(Self {
            links: credentials.map(Links::new),
            parts,
            membership: RwLock::new(membership),
            half: RwLock::new(None),
            twin: AtomicBool::new(false),
            keeping: std::sync::Mutex::default(),
        });
        let membership = member.membership();
        if let Some(links) = &member.links {
            let mut managers = member.parts.agent.assignments().managers.clone();
            managers.extend(membership.managers.iter().cloned());
            links.managers.set(managers);
            member.parts.agent.set_data_addr(member.data_addr().ok());
        }
        let Some(raft) = membership.raft() else {
            member.connect_agent(None);
            return Ok(member);
        };
        match member.resume(raft).await {
            Err(error @ MemberError::Twin { .. }) => {
                let why = super::translate::chain(&error);
                warn!(error = why, "not started");
                member.parts.agent.stand_aside(why);
            }
            other => other?,
        }
        Ok(member)
    }

    /// Keeps certificate, role and address as they should be, from now on.
    pub(crate) fn keep(self: &Arc<Self>) {
        let keeper = self.clone();
        let span = info_span!("member", node.id = %self.membership().node);
        let keeping = tokio::spawn(async move { keeper.run().await }.instrument(span));
        *self.keeping.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeping);
    }

    pub(crate) fn membership(&self) -> Membership {
        read(&self.membership).clone()
    }

    pub(crate) fn manager(&self) -> Option<Manager> {
        read(&self.half).as_ref().map(|half| half.manager.clone())
    }

    /// A stream to the API of the manager that leads; `None` when that is this one.
    pub(crate) async fn leader_api(&self) -> Result<Option<Stream>, MemberError> {
        let manager = self.manager().ok_or(MemberError::NoLeader)?;
        let known = manager.wait_leader(LEADER_PATIENCE).await;
        match &known {
            Leader::Here => Ok(None),
            Leader::At(leader) => {
                let links = self.links.as_ref().ok_or(MemberError::NoLeader)?;
                let connect = links
                    .tls
                    .connect(&leader.addr, Some(leader.node), Purpose::Api);
                // Whichever ends first, nothing was asked yet.
                tokio::select! {
                    stream = connect => Ok(Some(stream?)),
                    // A host that is gone does not even refuse.
                    () = manager.no_longer(&known) => Err(MemberError::NoLeader),
                }
            }
            Leader::Unknown => Err(MemberError::NoLeader),
        }
    }

    /// The address that other nodes see this one at.
    pub(crate) fn advertised(&self) -> Result<SocketAddr, AddressError> {
        self.membership().advertised()
    }

    fn data_addr(&self) -> Result<IpAddr, AddressError> {
        self.membership().data_addr()
    }

    /// Opens the half of a node that was a manager before, unless another machine is that manager now: two
    /// with one vote could choose two leaders.
    async fn resume(&self, raft: RaftId) -> Result<(), MemberError> {
        let twin = self.find_twin(raft).await;
        self.twin.store(twin.is_some(), Ordering::Relaxed);
        if let Some(addr) = twin {
            let node = self.node();
            return Err(MemberError::Twin { node, addr });
        }
        let half = self.open_half(raft, false).await?;
        self.take_half(half);
        Ok(())
    }

    /// Where somebody answers as this node. While its own port is closed, that is another machine.
    async fn find_twin(&self, raft: RaftId) -> Option<String> {
        let links = self.links.as_ref()?;
        let membership = self.membership();
        let purpose = Purpose::Raft {
            to: raft,
            lane: RaftLane::Heartbeat,
        };
        let known = membership.managers.iter();
        let known = known.filter(|manager| manager.node == membership.node);
        let mut addrs: Vec<String> = known.map(|manager| manager.addr.clone()).collect();
        addrs.extend(self.advertised().ok().map(|addr| addr.to_string()));
        addrs.sort();
        addrs.dedup();
        for addr in addrs {
            let knock = links.tls.connect(&addr, Some(membership.node), purpose);
            if let Ok(Ok(_stream)) = time::timeout(KNOCK_TIMEOUT, knock).await {
                return Some(addr);
            }
        }
        None
    }

    /// Opens the store, and listens. Nobody is told.
    async fn open_half(&self, raft: RaftId, alone: bool) -> Result<Half, MemberError> {
        let membership = self.membership();
        let home = &self.parts.home;
        let config = ManagerConfig {
            dir: home.directory("swarm/raft")?,
            node: membership.node,
            raft,
            tuning: shoal_manager::Tuning::default(),
            key: home.raft_key()?,
            cluster: self.links.as_ref().map(|links| links.tls.clone()),
            alone,
        };
        let listener = match (&self.links, membership.listening()) {
            (Some(links), Some(addr)) => {
                let listener = links.tls.bind(addr).await;
                Some(listener.map_err(|source| MemberError::Listen { addr, source })?)
            }
            _ => None,
        };
        let manager = Manager::open(config).await?;
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        if let Some(listener) = listener {
            let handler = self.handler(manager.clone());
            let span = info_span!("cluster_port");
            tasks.push(tokio::spawn(
                listener.run(handler, stop.clone()).instrument(span),
            ));
        }
        Ok(Half {
            manager,
            stop,
            tasks,
        })
    }

    fn handler(&self, manager: Manager) -> Arc<dyn Fn(Incoming) + Send + Sync> {
        let serve_api = self.parts.serve_api.clone();
        Arc::new(move |incoming: Incoming| {
            if incoming.purpose == Purpose::Api {
                if manager.may_use_api(&incoming) {
                    serve_api(incoming.stream);
                } else {
                    warn!(remote = %incoming.remote, "a node that is no manager asked for the managers' API");
                }
                return;
            }
            let manager = manager.clone();
            tokio::spawn(async move { manager.serve(incoming).await }.in_current_span());
        })
    }

    fn take_half(&self, mut half: Half) {
        let (dialer, mut listener) = dial::local();
        let manager = half.manager.clone();
        half.tasks.push(tokio::spawn(
            async move {
                while let Some((purpose, stream)) = listener.accept().await {
                    let manager = manager.clone();
                    let serving = async move { manager.serve_local(purpose, stream).await };
                    tokio::spawn(serving.in_current_span());
                }
            }
            .instrument(info_span!("dispatcher")),
        ));
        *write(&self.half) = Some(half);
        self.connect_agent(Some(dialer));
    }

    fn connect_agent(&self, local: Option<Dialer>) {
        let node = self.membership().node;
        let dialer = match (local, &self.links) {
            (Some(local), Some(links)) => Dialer::both(local, links.dialer.clone()),
            (Some(local), None) => local,
            (None, Some(links)) => links.dialer.clone(),
            (None, None) => return,
        };
        self.parts.agent.join(node, dialer);
    }

    async fn run(&self) {
        let Some(links) = &self.links else { return };
        let mut assignments = self.parts.agent.watch_assignments();
        let mut renew_at = links.credentials().renew_at(&mut rand::rng());
        // What the saved set says may be old; a role is believed when a manager has said it.
        assignments.mark_unchanged();
        let mut role: Option<Role> = None;
        let mut unlisted: Option<Instant> = None;
        loop {
            let mut retry = false;
            // A manager that the others do not count for this long is of a group that is no more.
            if unlisted.is_some_and(|since| since.elapsed() > UNLISTED) {
                unlisted = None;
                warn!(
                    "the managers do not know this one any more; it asks for a new place among them"
                );
                self.close_half().await;
            }
            if let Err(error) = self.step(links, role, &mut renew_at).await {
                retry = true;
                warn!(
                    error = super::translate::chain(&error),
                    "this node is not yet as the swarm wants it; trying again"
                );
            }
            let pause = if retry { RETRY } else { LOOK };
            // Both only observe.
            tokio::select! {
                changed = assignments.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let set = assignments.borrow_and_update().clone();
                    if let Some(set) = set {
                        self.remember_managers(&set.managers);
                        let node = self.node();
                        let listed = set.managers.iter().any(|manager| manager.node == node);
                        role = Some(role_to_take(set.role, listed));
                        if listed || self.manager().is_none() {
                            unlisted = None;
                        } else {
                            unlisted.get_or_insert_with(Instant::now);
                        }
                    }
                }
                () = time::sleep(pause) => {}
            }
        }
    }

    async fn step(
        &self,
        links: &Links,
        role: Option<Role>,
        renew_at: &mut Timestamp,
    ) -> Result<(), MemberError> {
        if let Ok(addr) = self.data_addr() {
            self.parts.agent.set_data_addr(Some(addr));
        }
        let credentials = links.credentials();
        let has = credentials.identity().role;
        if role.is_some_and(|role| role != has) || now() >= *renew_at {
            self.renew(links).await?;
            *renew_at = links.credentials().renew_at(&mut rand::rng());
        }
        match (links.credentials().identity().role, self.manager()) {
            (Role::Manager, None) if self.twin.load(Ordering::Relaxed) => {
                let raft = self.membership().raft().ok_or(MemberError::NoManager)?;
                self.resume(raft).await
            }
            (Role::Manager, None) => self.become_manager().await,
            (Role::Worker, Some(_)) => self.become_worker().await,
            (Role::Manager, Some(manager)) => self.tell_address(links, &manager).await,
            (Role::Worker, None) => Ok(()),
        }
    }

    async fn renew(&self, links: &Links) -> Result<(), MemberError> {
        let key = NodeKey::generate();
        let request = RenewRequest {
            signing_request: key.signing_request(),
        };
        let elsewhere = |answer: &JoinAnswer| match answer {
            JoinAnswer::Elsewhere { leader } => Some(leader.clone()),
            _ => None,
        };
        match links.ask(Purpose::Renew, &request, elsewhere).await? {
            JoinAnswer::Accepted(accepted) => {
                let credentials =
                    Credentials::new(key, accepted.certificate, accepted.root_certificate)?;
                self.parts.home.save_credentials(&credentials)?;
                info!(
                    role = credentials.identity().role.as_str(),
                    "the node has a new certificate"
                );
                links.credentials.send_replace(credentials);
                Ok(())
            }
            JoinAnswer::Refused { reason } => Err(MemberError::Refused(reason)),
            JoinAnswer::Elsewhere { .. } => Err(MemberError::NoLeader),
        }
    }

    /// Opens the manager half and asks for its place in the group. Without one the half is closed again.
    pub(crate) async fn become_manager(&self) -> Result<(), MemberError> {
        let links = self.links.as_ref().ok_or(MemberError::NoLeader)?;
        if self.parts.agent.is_in_memory() {
            return Err(MemberError::InMemory);
        }
        let advertised = self.advertised()?;
        let home = &self.parts.home;
        // Whatever an earlier term as a manager left belongs to another member.
        home.forget_raft()?;
        let raft = RaftId(rand::random_range(2..=u64::MAX >> 1));
        self.update(|membership| membership.raft = Some(raft.0))?;
        let half = match self.open_half(raft, false).await {
            Ok(half) => half,
            Err(error) => {
                self.update(|membership| membership.raft = None)?;
                return Err(error);
            }
        };
        let add = MemberRequest::Add {
            raft,
            addr: advertised.to_string(),
        };
        match links.ask_member(add).await {
            Ok(()) => {
                self.take_half(half);
                info!(%raft, %advertised, "this node is a manager");
                Ok(())
            }
            Err(error) => {
                half.shutdown().await;
                self.update(|membership| membership.raft = None)?;
                home.forget_raft()?;
                Err(error)
            }
        }
    }

    /// Goes on as the only manager of the swarm, with the state that this node has. Tasks go on.
    pub(crate) async fn take_over(&self) -> Result<(), MemberError> {
        let membership = self.membership();
        let raft = membership.raft().ok_or(MemberError::NoManager)?;
        if self.links.is_none() {
            return Err(MemberError::Local);
        }
        let advertised = self.advertised()?;
        let half = write(&self.half).take();
        if let Some(half) = half {
            half.shutdown().await;
        }
        let half = self.open_half(raft, true).await?;
        let manager = half.manager.clone();
        self.take_half(half);
        manager.take_over(&advertised.to_string()).await?;
        info!(%advertised, "this node is the only manager of its swarm now");
        Ok(())
    }

    async fn close_half(&self) {
        let half = write(&self.half).take();
        self.connect_agent(None);
        if let Some(half) = half {
            half.shutdown().await;
        }
    }

    async fn become_worker(&self) -> Result<(), MemberError> {
        self.close_half().await;
        self.update(|membership| membership.raft = None)?;
        self.parts.home.forget_raft()?;
        info!("this node is a worker");
        Ok(())
    }

    /// Tells the leader when this manager is reached elsewhere than the others think.
    async fn tell_address(&self, links: &Links, manager: &Manager) -> Result<(), MemberError> {
        let Ok(advertised) = self.advertised() else {
            return Ok(());
        };
        let state = manager.control().local_state();
        let node = self.membership().node;
        let known = state.node(&node).and_then(|node| node.manager.clone());
        let Some(known) = known.filter(|known| known.addr != advertised.to_string()) else {
            return Ok(());
        };
        let request = MemberRequest::Move {
            raft: known.raft,
            addr: advertised.to_string(),
        };
        links.ask_member(request).await
    }

    /// Leaves the group of managers, so that the others need not wait for this one.
    pub(crate) async fn say_goodbye(&self) -> Result<(), MemberError> {
        match &self.links {
            Some(links) if self.manager().is_some() => links.ask_member(MemberRequest::Leave).await,
            _ => Ok(()),
        }
    }

    /// Takes a join that did not succeed back: the others forget the node.
    pub(crate) async fn withdraw(&self) -> Result<(), MemberError> {
        match &self.links {
            Some(links) => links.ask_member(MemberRequest::Leave).await,
            None => Ok(()),
        }
    }

    fn remember_managers(&self, managers: &[ManagerPeer]) {
        if managers.is_empty() || read(&self.membership).managers == managers {
            return;
        }
        if let Err(error) = self.update(|membership| membership.managers = managers.to_vec()) {
            warn!(
                error = super::translate::chain(&error),
                "managers not remembered"
            );
        }
    }

    fn update(&self, edit: impl FnOnce(&mut Membership)) -> Result<(), MemberError> {
        let mut membership = write(&self.membership);
        let mut next = membership.clone();
        edit(&mut next);
        if next != *membership {
            self.parts.home.remember(&next)?;
            *membership = next;
        }
        Ok(())
    }

    /// Ends this node's part; containers and networks go on.
    pub(crate) async fn shutdown(&self) {
        let keeping = self
            .keeping
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeping) = keeping {
            keeping.abort();
            // An abort is the expected end.
            let _ = keeping.await;
        }
        let half = write(&self.half).take();
        if let Some(half) = half {
            half.shutdown().await;
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.membership().node
    }
}

/// A demoted manager remains one until the leader has taken it out of the Raft group, which may need its
/// vote for that.
fn role_to_take(role: Role, listed: bool) -> Role {
    if listed { Role::Manager } else { role }
}

fn now() -> Timestamp {
    super::translate::from_jiff(jiff::Timestamp::now())
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demoted_manager_serves_until_the_others_can_do_without_it() {
        assert_eq!(role_to_take(Role::Worker, true), Role::Manager);
        assert_eq!(role_to_take(Role::Worker, false), Role::Worker);
        assert_eq!(role_to_take(Role::Manager, false), Role::Manager);
    }
}
