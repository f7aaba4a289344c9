//! One node, put together: its agent, and its part in a swarm when it has one.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use shoal_manager::{Founding, InitOptions, Manager};
use shoal_node_agent::Agent;
use shoal_transport::{
    cluster::{self, ConnectError},
    identity::{Credentials, NodeKey},
    token::JoinToken,
};
use shoal_types::{
    NodeId,
    object::NodeDescription,
    spec::{Availability, Role},
    wire::{Accepted, JoinAnswer, JoinRequest, ManagerPeer},
};
use tokio::{
    sync::Mutex,
    time::{self, Instant},
};
use tracing::{info, warn};

use super::{
    address::{self, AddressError, CLUSTER_PORT},
    home::{Home, HomeError, Membership},
    member::{Member, MemberError, Parts, ServeApi},
    translate,
};

/// Raft identity of the first manager. Later ones take theirs at random.
const FIRST_RAFT: u64 = 1;

/// How long a daemon that is in no swarm waits, before it answers, for what an earlier one left to go.
const LEFTOVERS: Duration = Duration::from_secs(15);

/// One question to a manager of the swarm to be joined, with its answer.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

/// A swarm that has no leader is asked again for this long.
const ELECTION_PATIENCE: Duration = Duration::from_secs(15);
const ELECTION_PAUSE: Duration = Duration::from_millis(300);

/// How long a manager that leaves waits for the others to agree.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
    )]
    AlreadyMember,
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("make the swarm's certificate authority")]
    Authority(#[from] shoal_transport::ca::AuthorityError),
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("initialise the swarm")]
    Init(#[from] shoal_manager::InitError),
    #[error(
        "this node is not part of a swarm, so there is no state to go on with: leave out --force-new-cluster"
    )]
    NoSwarm,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
    )]
    AlreadyMember,
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("{0}")]
    Refused(String),
    #[error("no manager of the swarm could be reached: {0}")]
    Unreachable(String),
    #[error(transparent)]
    Member(#[from] MemberError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaveError {
    #[error("This node is not part of a swarm")]
    NotMember,
    /// Docker's words.
    #[error(
        "You are attempting to leave the swarm on a node that is participating as a manager. {consequence} \
         Use `--force` to ignore this message."
    )]
    Manager { consequence: String },
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// Where a node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where its cluster port listens when it is a manager; `None` in local mode.
    pub(crate) listen: Option<SocketAddr>,
    /// Address or interface, as `--advertise-addr` gives it.
    pub(crate) advertise: String,
    /// As `--data-path-addr` gives it.
    pub(crate) data_path: String,
}

/// What `swarm join` is given.
#[derive(Debug, Clone)]
pub(crate) struct Joining {
    pub(crate) place: Place,
    pub(crate) remotes: Vec<String>,
    pub(crate) token: JoinToken,
    pub(crate) availability: Availability,
}

/// A node. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    member: RwLock<Option<Arc<Member>>>,
    /// Held over the whole of an init, join or leave, so that two of them can't mix.
    changing: Mutex<()>,
}

impl Node {
    /// Takes up what the home remembers: in a swarm its part is taken up again; in none, whatever an
    /// earlier membership left running is taken away.
    pub(crate) async fn open(
        home: Home,
        agent: Agent,
        serve_api: ServeApi,
    ) -> Result<Self, InitError> {
        let parts = Parts {
            home: Arc::new(home),
            agent,
            serve_api,
        };
        let member = if let Some(membership) = parts.home.membership()? {
            let in_cluster = membership.listen.is_some();
            let credentials = if in_cluster {
                parts.home.credentials()?
            } else {
                None
            };
            let member = Member::start(parts.clone(), membership, credentials).await?;
            member.keep();
            Some(member)
        } else {
            // What cannot be taken away now is tried again and again, and must not keep the
            // daemon from answering.
            if time::timeout(LEFTOVERS, parts.agent.leave()).await.is_err() {
                warn!("containers of an earlier swarm are still being removed");
            }
            None
        };
        Ok(Self {
            inner: Arc::new(Inner {
                parts,
                member: RwLock::new(member),
                changing: Mutex::default(),
            }),
        })
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.inner.parts.agent
    }

    /// The node's part in a swarm, when it has one.
    pub(crate) fn member(&self) -> Option<Arc<Member>> {
        self.inner
            .member
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The manager half, when the node is a manager.
    pub(crate) fn manager(&self) -> Option<Manager> {
        self.member()?.manager()
    }

    fn set_member(&self, member: Option<Arc<Member>>) {
        *self
            .inner
            .member
            .write()
            .unwrap_or_else(PoisonError::into_inner) = member;
    }

    /// Makes a new swarm with this node as its manager.
    pub(crate) async fn init(
        &self,
        place: Place,
        edit: impl FnOnce(&mut InitOptions),
    ) -> Result<NodeId, InitError> {
        let _changing = self.inner.changing.lock().await;
        if self.member().is_some() {
            return Err(InitError::AlreadyMember);
        }
        let parts = &self.inner.parts;
        if parts.agent.is_in_memory() {
            return Err(MemberError::InMemory.into());
        }
        let home = &parts.home;
        // What an init that failed half-way left is not part of a new swarm.
        home.forget_swarm()?;
        let node = NodeId::from_random(rand::random());
        let membership = Membership {
            node,
            raft: Some(FIRST_RAFT),
            listen: place.listen,
            advertise: place.advertise,
            data_path: place.data_path,
            managers: Vec::new(),
        };
        let made = self.make_swarm(&membership, edit).await;
        let member = match made {
            Ok(member) => member,
            Err(error) => {
                parts.agent.set_data_addr(None);
                home.forget_swarm()?;
                return Err(error);
            }
        };
        info!(node.id = %node, "swarm initialised");
        member.keep();
        self.set_member(Some(member));
        Ok(node)
    }

    async fn make_swarm(
        &self,
        membership: &Membership,
        edit: impl FnOnce(&mut InitOptions),
    ) -> Result<Arc<Member>, InitError> {
        let parts = &self.inner.parts;
        let key = NodeKey::generate();
        let founding = Founding::new(membership.node, &key.signing_request())?;
        let mut advertised = None;
        let mut credentials = None;
        if let Some(listen) = membership.listen {
            // Looked at before anything is made.
            advertised = Some(address::resolve(
                "--advertise-addr",
                &membership.advertise,
                listen.port(),
                [],
            )?);
            if !membership.data_path.is_empty() {
                address::resolve("--data-path-addr", &membership.data_path, CLUSTER_PORT, [])?;
            }
            let root = founding.trust.root_certificate.clone();
            let made = Credentials::new(key, founding.certificate.clone(), root);
            let made = made.map_err(MemberError::from)?;
            parts.home.save_credentials(&made)?;
            credentials = Some(made);
        }
        let member = Member::start(parts.clone(), membership.clone(), credentials).await?;
        let mut options = InitOptions::new(&founding, parts.agent.description());
        edit(&mut options);
        match advertised {
            Some(addr) => {
                options.addr = addr.ip().to_string();
                options.manager_addr = addr.to_string();
            }
            None => "127.0.0.1".clone_into(&mut options.addr),
        }
        let manager = member.manager().expect("it was started with a raft id");
        let initialised = async {
            manager.init(options).await?;
            Ok::<(), InitError>(parts.home.remember(membership)?)
        };
        if let Err(error) = initialised.await {
            member.shutdown().await;
            parts.agent.leave().await;
            return Err(error);
        }
        Ok(member)
    }

    /// Goes on with the state of this manager alone, when the majority of managers is lost for good.
    pub(crate) async fn force_new(&self) -> Result<NodeId, InitError> {
        let _changing = self.inner.changing.lock().await;
        let member = self.member().ok_or(InitError::NoSwarm)?;
        member.take_over().await?;
        Ok(member.node())
    }

    /// Makes this node one of an existing swarm.
    pub(crate) async fn join(&self, joining: Joining) -> Result<Role, JoinError> {
        let _changing = self.inner.changing.lock().await;
        if self.member().is_some() {
            return Err(JoinError::AlreadyMember);
        }
        let parts = &self.inner.parts;
        parts.home.forget_swarm()?;
        let joined = self.join_swarm(joining).await;
        if joined.is_err() {
            parts.agent.set_data_addr(None);
            parts.home.forget_swarm()?;
        }
        let (member, role) = joined?;
        member.keep();
        self.set_member(Some(member));
        Ok(role)
    }

    async fn join_swarm(&self, joining: Joining) -> Result<(Arc<Member>, Role), JoinError> {
        let parts = &self.inner.parts;
        let Place {
            listen,
            advertise,
            data_path,
        } = joining.place;
        let port = listen.map_or(CLUSTER_PORT, |addr| addr.port());
        let toward = joining.remotes.iter().map(String::as_str);
        let advertised = address::resolve("--advertise-addr", &advertise, port, toward)?;
        let data_addr = if data_path.is_empty() {
            advertised.ip()
        } else {
            address::resolve("--data-path-addr", &data_path, CLUSTER_PORT, [])?.ip()
        };
        let node = NodeId::from_random(rand::random());
        let key = NodeKey::generate();
        let request = JoinRequest {
            secret: joining.token.secret,
            node,
            signing_request: key.signing_request(),
            availability: joining.availability,
            description: NodeDescription {
                data_addr: Some(data_addr),
                ..parts.agent.description()
            },
            now: translate::from_jiff(jiff::Timestamp::now()),
        };
        let accepted = ask_to_join(&joining.remotes, &joining.token, &request).await?;
        let role = accepted.role;
        let credentials = Credentials::new(key, accepted.certificate, accepted.root_certificate)
            .map_err(MemberError::from)?;
        parts.home.save_credentials(&credentials)?;
        let membership = Membership {
            node,
            raft: None,
            listen: listen.or_else(|| Some(SocketAddr::from(([0, 0, 0, 0], CLUSTER_PORT)))),
            advertise,
            data_path,
            managers: accepted.managers,
        };
        parts.home.remember(&membership)?;
        let member = Member::start(parts.clone(), membership, Some(credentials)).await?;
        if role == Role::Manager
            && let Err(error) = member.become_manager().await
        {
            // Told so, the others forget the node.
            if let Err(error) = member.withdraw().await {
                warn!(
                    error = translate::chain(&error),
                    "the swarm still lists this node"
                );
            }
            member.shutdown().await;
            parts.agent.leave().await;
            return Err(error.into());
        }
        info!(node.id = %node, role = role.as_str(), "joined the swarm");
        Ok((member, role))
    }

    /// Leaves the swarm: its tasks on this node are stopped and its state is erased.
    pub(crate) async fn leave(&self, force: bool) -> Result<(), LeaveError> {
        let _changing = self.inner.changing.lock().await;
        let Some(member) = self.member() else {
            return Err(LeaveError::NotMember);
        };
        if let Some(manager) = member.manager() {
            if !force {
                return Err(LeaveError::Manager {
                    consequence: consequence(&manager),
                });
            }
            match time::timeout(GOODBYE_TIMEOUT, member.say_goodbye()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let error = translate::chain(&error);
                    warn!(error, "the other managers do not know that this one left");
                }
                Err(_elapsed) => warn!("the other managers did not answer; leaving all the same"),
            }
        }
        member.shutdown().await;
        let parts = &self.inner.parts;
        parts.agent.leave().await;
        parts.agent.set_data_addr(None);
        parts.home.forget_swarm()?;
        info!(node.id = %member.node(), "left the swarm");
        self.set_member(None);
        Ok(())
    }

    /// Ends both halves; containers and networks go on.
    pub(crate) async fn shutdown(&self) {
        self.inner.parts.agent.shutdown().await;
        let _changing = self.inner.changing.lock().await;
        if let Some(member) = self.member() {
            member.shutdown().await;
        }
    }
}

/// Docker's sentence for what the swarm loses with this manager.
fn consequence(manager: &Manager) -> String {
    let state = manager.control().local_state();
    let managers = state.nodes().filter(|node| node.manager.is_some()).count();
    match managers {
        0 | 1 => {
            "Removing the last manager erases all current state of the swarm.".to_owned()
        }
        2 => "Leaving the swarm will leave you with 1 managers out of 1 reachable managers; a swarm of one \
              manager does not survive its loss."
            .to_owned(),
        more => format!(
            "Leaving the swarm will leave you with {} managers, of which {} are needed for a quorum. The only \
             way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`.",
            more - 1,
            (more - 1) / 2 + 1
        ),
    }
}

/// Asks the managers in turn, and whomever they name, until one accepts or refuses.
async fn ask_to_join(
    remotes: &[String],
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<Accepted, JoinError> {
    let patience = Instant::now() + ELECTION_PATIENCE;
    loop {
        let (failures, leaderless) = match ask_each(remotes, token, request).await {
            Ok(accepted) => return Ok(accepted),
            Err(AskEachError::Refused(reason)) => return Err(JoinError::Refused(reason)),
            Err(AskEachError::Failed {
                failures,
                leaderless,
            }) => (failures, leaderless),
        };
        // Managers that are electing a leader have one soon, or never.
        if !leaderless || Instant::now() >= patience {
            return Err(JoinError::Unreachable(failures));
        }
        time::sleep(ELECTION_PAUSE).await;
    }
}

enum AskEachError {
    Refused(String),
    Failed { failures: String, leaderless: bool },
}

async fn ask_each(
    remotes: &[String],
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<Accepted, AskEachError> {
    let mut failures = Vec::new();
    let mut queue: Vec<String> = remotes.iter().rev().cloned().collect();
    let mut hops = 0;
    let mut leaderless = false;
    while let Some(addr) = queue.pop() {
        match ask_one(&addr, token, request).await {
            Ok(JoinAnswer::Accepted(accepted)) => return Ok(*accepted),
            Ok(JoinAnswer::Refused { reason }) => return Err(AskEachError::Refused(reason)),
            Ok(JoinAnswer::Elsewhere { leader }) => {
                hops += 1;
                match leader {
                    Some(ManagerPeer { addr: leader, .. }) if hops < 8 => queue.push(leader),
                    _ => {
                        leaderless = true;
                        failures.push(format!("{addr}: the swarm has no leader at the moment"));
                    }
                }
            }
            // What is wrong with the token is wrong with every manager.
            Err(error) if error.is_final() => {
                return Err(AskEachError::Refused(translate::chain(&error)));
            }
            Err(error) => failures.push(translate::chain(&error)),
        }
    }
    Err(AskEachError::Failed {
        failures: failures.join("; "),
        leaderless,
    })
}

#[derive(Debug, thiserror::Error)]
enum AskOneError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{addr}")]
    Ask {
        addr: String,
        #[source]
        source: cluster::AskError,
    },
}

impl AskOneError {
    fn is_final(&self) -> bool {
        matches!(self, Self::Connect(ConnectError::Fingerprint { .. }))
    }
}

async fn ask_one(
    addr: &str,
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<JoinAnswer, AskOneError> {
    let (stream, _root) = cluster::connect_to_join(addr, token.digest).await?;
    let answer = cluster::ask(stream, request, JOIN_TIMEOUT).await;
    answer.map_err(|source| AskOneError::Ask {
        addr: addr.to_owned(),
        source,
    })
}
