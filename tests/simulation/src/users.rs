//! People and programs that ask the cluster for things, and what they were told.
//!
//! A user reads from any manager, which may lag, and asks any manager, which passes the request on to
//! the leader it knows. The answer may be lost; then the user knows nothing.

use std::{collections::BTreeMap, time::Duration};

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use shoal_manager::cores::{check_update, create_network, create_service};
use shoal_raft_store::{Change, State};
use shoal_types::{
    NetworkId, NodeId, ServiceId, Timestamp, Version,
    object::{Service, UpdateState, UpdateStatus},
    spec::{
        Availability, EndpointMode, FailureAction, NetworkAttachmentSpec, NetworkSpec, NodeSpec,
        PortConfig, Protocol, PublishMode, ServiceMode, ServiceSpec, UpdateOrder,
    },
};

use crate::{
    cluster,
    mutants::Mutant,
    world::{Event, World},
};

const PATIENCE: Duration = Duration::from_secs(8);
const MAX_SERVICES: usize = 5;
/// Runs until it is stopped.
pub(crate) const GOOD: [&str; 3] = ["good:1", "good:2", "good:3"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The write took effect as this version.
    Done(Version),
    /// The state of this version was shown.
    Read(Version),
    Refused,
    Unknown,
}

#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Read,
    CreateService(ServiceId, Box<ServiceSpec>),
    UpdateService(ServiceId, Version, Box<ServiceSpec>),
    RollBack(ServiceId, Version),
    RemoveService(ServiceId),
    UpdateNode(NodeId, Version, NodeSpec),
    RemoveNode(NodeId),
    CreateNetwork(NetworkId, Box<NetworkSpec>),
    RemoveNetwork(NetworkId),
    Join(usize, NodeId),
}

/// One request, from when it was made to its answer.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) ask: Ask,
    /// The newest version that anybody was told of before this was asked.
    pub(crate) floor: Version,
    pub(crate) proposal: Option<u64>,
    pub(crate) answer: Option<Answer>,
    hops: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Users {
    pub(crate) ops: BTreeMap<u64, Op>,
    /// The newest version that a user was told of.
    pub(crate) told: Version,
    /// Names and ids that were used.
    names: u32,
    /// Nodes that are on their way into the cluster.
    joining: BTreeMap<usize, NodeId>,
    /// They only put in order what they left: nodes become active, and images such that run.
    pub(crate) tidy: Option<Tidy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tidy {
    /// Every image is replaced by one that runs.
    Everything,
    /// One that does not run stays.
    AllButOne,
}

impl Users {
    pub(crate) fn proposed(&mut self, op: u64, proposal: u64) {
        if let Some(op) = self.ops.get_mut(&op) {
            op.proposal = Some(proposal);
        }
    }
}

impl Ask {
    /// The object and the version that an optimistic write names.
    pub(crate) fn names(&self) -> Option<(String, Version)> {
        match self {
            Self::UpdateService(id, version, _) | Self::RollBack(id, version) => {
                Some((id.to_string(), *version))
            }
            Self::UpdateNode(id, version, _) => Some((id.to_string(), *version)),
            _other => None,
        }
    }
}

impl World {
    pub(crate) fn user(&mut self) {
        let pause = if self.users.tidy.is_some() {
            self.between(200_000, 400_000)
        } else {
            self.between(50_000, 1_400_000)
        };
        self.after(pause, Event::User);
        let Some(state) = self.some_view() else {
            return;
        };
        let ask = match self.users.tidy {
            Some(tidy) => tidying(&state, tidy),
            None => self.whim(&state),
        };
        if let Some(ask) = ask {
            self.ask(ask);
        }
        if self.chaos {
            for _ in 0..3 {
                self.ask(Ask::Read);
            }
        }
    }

    /// The state as some manager shows it.
    fn some_view(&mut self) -> Option<State> {
        let up = self.hosts.iter().filter(|host| host.up);
        let views: Vec<&State> = up
            .filter_map(|host| host.manager.as_ref().map(|manager| &manager.state))
            .collect();
        views.choose(&mut self.rng).map(|state| (*state).clone())
    }

    fn ask(&mut self, ask: Ask) {
        let op = self.users.ops.len() as u64 + 1;
        let managers = self.managers();
        let host = self.rng.random_range(0..managers);
        self.note(|| format!("user {op} asks {host}: {}", brief(&ask)));
        let record = Op {
            ask,
            floor: self.users.told,
            proposal: None,
            answer: None,
            hops: 0,
        };
        self.users.ops.insert(op, record);
        let pause = self.between(100, 3_000);
        self.after(pause, Event::UserArrives { op, host });
        self.after(PATIENCE, Event::UserGivesUp { op });
    }

    pub(crate) fn user_arrives(&mut self, op: u64, host: usize) {
        let machine = &self.hosts[host];
        if !machine.up {
            self.after(Duration::from_millis(1), refused(op));
            return;
        }
        if machine.frozen_until > self.now {
            let thaw = machine.frozen_until;
            self.at(thaw, Event::UserArrives { op, host });
            return;
        }
        let Some(manager) = &machine.manager else {
            return;
        };
        let request = self.users.ops.get(&op);
        if self.is(Mutant::StaleRead) && request.is_some_and(|r| matches!(r.ask, Ask::Read)) {
            self.begin_read(host, op);
            return;
        }
        if !manager.is_leading() {
            let leader = manager.replica.leader().filter(|leader| *leader != host);
            let Some(request) = self.users.ops.get_mut(&op) else {
                return;
            };
            request.hops += 1;
            match leader {
                Some(leader) if request.hops < 4 => {
                    // Lost on a cut way: the user waits in vain.
                    if !self.is_cut(host, leader) {
                        let pause = self.latency(host, leader);
                        self.after(pause, Event::UserArrives { op, host: leader });
                    }
                }
                _nobody => self.after(Duration::from_millis(1), refused(op)),
            }
            return;
        }
        let state = manager.state.clone();
        let Some(request) = self.users.ops.get(&op) else {
            return;
        };
        let ask = request.ask.clone();
        match ask {
            Ask::Read => self.begin_read(host, op),
            ask => match self.translated(host, &state, ask) {
                Some(change) => self.propose_for_user(host, op, change),
                None => self.after(Duration::from_millis(1), refused(op)),
            },
        }
    }

    /// What `Control` proposes for the request on this state; `None` when it refuses it.
    fn translated(&self, host: usize, state: &State, ask: Ask) -> Option<Change> {
        let change = match ask {
            Ask::Read => return None,
            Ask::CreateService(id, spec) => return create_service(state, id, *spec).ok(),
            Ask::UpdateService(id, version, spec) => {
                state.service(&id)?;
                check_update(state, id, &spec).ok()?;
                Change::UpdateServiceSpec { id, version, spec }
            }
            Ask::RollBack(id, version) => Change::RollbackService {
                id,
                version,
                update: UpdateStatus {
                    state: UpdateState::RollbackStarted,
                    started_at: self.wall(host),
                    completed_at: None,
                    message: "manually requested rollback".to_owned(),
                },
            },
            Ask::RemoveService(id) => Change::RemoveService { id },
            Ask::UpdateNode(id, version, spec) => Change::UpdateNodeSpec { id, version, spec },
            Ask::RemoveNode(id) => {
                state.node(&id).filter(|node| node.manager.is_none())?;
                Change::RemoveNode { id }
            }
            Ask::CreateNetwork(id, spec) => return create_network(state, id, *spec).ok(),
            Ask::RemoveNetwork(id) => Change::RemoveNetwork { id },
            Ask::Join(index, id) => {
                let addr = self.hosts[index].data_addr;
                Change::CreateNode(Box::new(cluster::node(id, index, None, addr)))
            }
        };
        Some(change)
    }

    pub(crate) fn user_answer(&mut self, op: u64, answer: Answer) {
        let Some(request) = self.users.ops.get_mut(&op) else {
            return;
        };
        if request.answer.is_some() {
            return;
        }
        request.answer = Some(answer);
        let (floor, ask) = (request.floor, request.ask.clone());
        self.trace
            .note(self.now, || format!("user {op} is told {answer:?}"));
        if let Answer::Done(version) | Answer::Read(version) = answer {
            if version < floor || (version == floor && matches!(answer, Answer::Done(_))) {
                let detail = format!("{answer:?}, after somebody was told of {floor}");
                self.violate("answers follow each other", detail);
            }
            self.users.told = self.users.told.max(version);
        }
        if let Ask::Join(host, node) = ask {
            match answer {
                Answer::Done(_) => self.has_joined(host, node),
                _again => self.after(Duration::from_secs(1), Event::Rejoin(host)),
            }
        }
    }

    pub(crate) fn join_as_new(&mut self, host: usize) {
        let fresh = NodeId::from_random(self.rng.random());
        let known = self.users.joining.get(&host).copied();
        match known {
            Some(node) if self.witness.state().node(&node).is_some() => {
                self.users.joining.remove(&host);
                self.has_joined(host, node);
            }
            _ => {
                let node = known.unwrap_or(fresh);
                self.users.joining.insert(host, node);
                self.ask(Ask::Join(host, node));
            }
        }
    }

    fn whim(&mut self, state: &State) -> Option<Ask> {
        let services: Vec<_> = state.services().cloned().collect();
        let rng = &mut self.rng;
        let service = services.choose(rng).cloned();
        let networks: Vec<NetworkId> = state
            .networks()
            .filter(|network| !network.predefined)
            .map(|network| network.id)
            .collect();
        match (rng.random_range(0..24), service) {
            (0..=5, Some(service)) => {
                let mut spec = service.spec.clone();
                edit(&mut spec, &networks, rng);
                Some(Ask::UpdateService(
                    service.id,
                    service.meta.version,
                    Box::new(spec),
                ))
            }
            (6 | 7, Some(service)) => {
                let mut spec = service.spec.clone();
                if let ServiceMode::Replicated { replicas } = &mut spec.mode {
                    *replicas = rng.random_range(0..7);
                }
                Some(Ask::UpdateService(
                    service.id,
                    service.meta.version,
                    Box::new(spec),
                ))
            }
            (8, Some(service)) => Some(Ask::RollBack(service.id, service.meta.version)),
            (9, Some(service)) if services.len() > 1 => Some(Ask::RemoveService(service.id)),
            (10..=12, _) => {
                let nodes: Vec<_> = state.nodes().collect();
                let node = nodes.choose(rng)?;
                let mut spec = node.spec.clone();
                let choices = [
                    Availability::Active,
                    Availability::Active,
                    Availability::Pause,
                    Availability::Drain,
                ];
                spec.availability = *choices.choose(rng)?;
                Some(Ask::UpdateNode(node.id, node.meta.version, spec))
            }
            (13, _) => {
                let workers: Vec<_> = state.nodes().filter(|n| n.manager.is_none()).collect();
                let node = workers.choose(rng).filter(|_| workers.len() > 1)?;
                Some(Ask::RemoveNode(node.id))
            }
            (14 | 15, _) if networks.len() < 3 => {
                self.users.names += 1;
                let spec = NetworkSpec {
                    name: format!("net{}", self.users.names),
                    driver: "overlay".to_owned(),
                    internal: rng.random_ratio(1, 4),
                    ..NetworkSpec::default()
                };
                Some(Ask::CreateNetwork(
                    NetworkId::from_random(rng.random()),
                    Box::new(spec),
                ))
            }
            (16, _) => Some(Ask::RemoveNetwork(*networks.choose(rng)?)),
            (17 | 18, _) => Some(Ask::Read),
            _create if services.len() < MAX_SERVICES => {
                self.users.names += 1;
                let mode = if rng.random_ratio(1, 4) {
                    ServiceMode::Global
                } else {
                    ServiceMode::Replicated {
                        replicas: rng.random_range(0..6),
                    }
                };
                let name = format!("s{}", self.users.names);
                let mut spec = cluster::service(&name, GOOD[0], mode);
                // The order is the service's for its life, so that what is allowed is known exactly.
                let order = if rng.random() {
                    UpdateOrder::StartFirst
                } else {
                    UpdateOrder::StopFirst
                };
                (spec.update.order, spec.rollback.order) = (order, order);
                spec.task.restart.delay = Duration::from_millis(rng.random_range(1_000..5_000));
                spec.task.container.stop_grace =
                    Duration::from_millis(rng.random_range(500..6_000));
                edit(&mut spec, &networks, rng);
                Some(Ask::CreateService(
                    ServiceId::from_random(rng.random()),
                    Box::new(spec),
                ))
            }
            _nothing => None,
        }
    }
}

impl World {
    /// A few services that run well, of either order.
    pub(crate) fn add_services(&mut self) {
        for (n, mode) in [
            ServiceMode::Replicated { replicas: 6 },
            ServiceMode::Global,
            ServiceMode::Replicated { replicas: 3 },
        ]
        .into_iter()
        .enumerate()
        {
            let spec = cluster::service(&format!("calm{n}"), GOOD[0], mode);
            let id = ServiceId::from_random(self.rng.random());
            let op = self.users.ops.len() as u64 + 1;
            self.users.ops.insert(
                op,
                Op {
                    ask: Ask::CreateService(id, Box::new(spec)),
                    floor: Version(0),
                    proposal: None,
                    answer: None,
                    hops: 0,
                },
            );
            self.after(Duration::from_secs(4), Event::UserArrives { op, host: 0 });
        }
    }
}

fn refused(op: u64) -> Event {
    let answer = Answer::Refused;
    Event::UserAnswer { op, answer }
}

fn brief(ask: &Ask) -> String {
    match ask {
        Ask::CreateService(id, spec) | Ask::UpdateService(id, _, spec) => format!(
            "{} {id} {} {:?} {} {:?}",
            if matches!(ask, Ask::CreateService(..)) {
                "create"
            } else {
                "update"
            },
            spec.name,
            spec.mode,
            spec.task.container.image,
            spec.update.order
        ),
        Ask::UpdateNode(id, version, spec) => {
            format!("{} node {id} at {version}", spec.availability.as_str())
        }
        other => format!("{other:?}"),
    }
}

/// A random change of a service.
fn edit(spec: &mut ServiceSpec, networks: &[NetworkId], rng: &mut StdRng) {
    if rng.random_bool(0.6) {
        let images = [
            "good:1", "good:2", "good:3", "good:1", "bad", "missing", "quits", "crashes",
        ];
        (*images.choose(rng).expect("not empty")).clone_into(&mut spec.task.container.image);
    }
    if rng.random_bool(0.3) {
        spec.task.container.env = vec![format!("TRY={}", rng.random_range(0..100))];
    }
    if rng.random_bool(0.4) {
        let chosen = networks.iter().filter(|_| rng.random_bool(0.5));
        let attach = |network: &NetworkId| NetworkAttachmentSpec {
            network: *network,
            aliases: Vec::new(),
        };
        spec.task.networks = chosen.map(attach).collect();
    }
    if rng.random_bool(0.25) {
        let mode = match rng.random_range(0..4) {
            0 => None,
            1 => Some((PublishMode::Host, 9000)),
            2 => Some((PublishMode::Ingress, 0)),
            _ => Some((PublishMode::Ingress, rng.random_range(8080..8083))),
        };
        let port = |(mode, published)| PortConfig {
            name: String::new(),
            protocol: Protocol::Tcp,
            target: 80,
            published,
            mode,
        };
        spec.endpoint.ports = mode.map(port).into_iter().collect();
        spec.endpoint.mode = EndpointMode::Vip;
    }
    spec.update.parallelism = rng.random_range(0..4);
    spec.update.delay = Duration::from_millis(rng.random_range(0..2_000));
    spec.update.monitor = Duration::from_millis(rng.random_range(500..3_000));
    let actions = [
        FailureAction::Pause,
        FailureAction::Continue,
        FailureAction::Rollback,
    ];
    spec.update.failure_action = *actions.choose(rng).expect("not empty");
    spec.task.reservations.nano_cpus = if rng.random_ratio(1, 3) {
        100_000_000
    } else {
        0
    };
}

/// When the users begin, after the start of the world.
pub(crate) fn first(now: Timestamp) -> Timestamp {
    now.after(Duration::from_millis(1_500))
}

fn tidying(state: &State, tidy: Tidy) -> Option<Ask> {
    let idle = state
        .nodes()
        .find(|node| node.spec.availability != Availability::Active);
    if let Some(node) = idle {
        let mut spec = node.spec.clone();
        spec.availability = Availability::Active;
        return Some(Ask::UpdateNode(node.id, node.meta.version, spec));
    }
    let good = |service: &Service| GOOD.contains(&service.spec.task.container.image.as_str());
    // Whatever else does not run makes tasks come and go so often that no moment is quiet.
    let stays = match tidy {
        Tidy::Everything => 0,
        Tidy::AllButOne => 1,
    };
    let mut wrong: Vec<_> = state.services().filter(|service| !good(service)).collect();
    wrong.sort_by_key(|service| {
        let image = service.spec.task.container.image.as_str();
        (image == "bad" || image == "missing", service.id)
    });
    let service = wrong.first().filter(|_| wrong.len() > stays)?;
    let mut spec = service.spec.clone();
    GOOD[2].clone_into(&mut spec.task.container.image);
    let version = service.meta.version;
    Some(Ask::UpdateService(service.id, version, Box::new(spec)))
}
