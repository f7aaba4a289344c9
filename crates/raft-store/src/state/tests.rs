use std::{collections::BTreeMap, net::Ipv4Addr};

use proptest::prelude::*;
use shoal_types::{
    Desired, TaskState, TaskStatus, Timestamp,
    object::{
        Endpoint, EndpointAtBirth, Meta, NetworkAttachment, NodeDescription, NodeState, NodeStatus,
        TaskPlace, UpdateState, UpdateStatus, VirtualIp,
    },
    spec::{
        Availability, ContainerSpec, EndpointMode, EndpointSpec, FileReference,
        NetworkAttachmentSpec, NetworkSpec, NodeSpec, Placement, PortConfig, PublishMode,
        Resources, RestartPolicy, Role, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
    },
};

use super::*;
use crate::{
    Change, Command, Rejection,
    command::Kind,
    tests::world::{config_id, network_id, node_id, secret_id, service_id, task_id},
};

const NETWORK_BASE: [u8; 2] = [10, 0];

fn spec(name: u64, network: Option<u64>, secret: Option<u64>) -> ServiceSpec {
    let mut container = ContainerSpec::new("shoal/hello");
    container.secrets.extend(secret.map(|secret| FileReference {
        id: secret_id(secret),
        name: format!("name-{secret}"),
        target: "s".to_owned(),
        uid: "0".to_owned(),
        gid: "0".to_owned(),
        mode: 0o444,
    }));
    let networks = network.map(|network| NetworkAttachmentSpec {
        network: network_id(network),
        aliases: Vec::new(),
    });
    ServiceSpec {
        name: format!("Name-{name}"),
        labels: BTreeMap::new(),
        task: TaskSpec {
            container,
            limits: Resources::default(),
            reservations: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            networks: networks.into_iter().collect(),
            force_update: 0,
            log_driver: None,
        }
        .into(),
        mode: if name == 3 {
            ServiceMode::Global
        } else {
            ServiceMode::Replicated { replicas: 1 }
        },
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec {
            ports: match name {
                1 | 2 => endpoint(&[], &[81]).ports,
                _ => Vec::new(),
            },
            ..EndpointSpec::default()
        },
    }
}

fn node(id: u64) -> Node {
    Node {
        id: node_id(id),
        meta: Meta::default(),
        spec: NodeSpec {
            name: String::new(),
            labels: BTreeMap::new(),
            role: Role::Worker,
            availability: Availability::Active,
        },
        description: NodeDescription::default(),
        status: status_of_node(NodeState::Ready),
        manager: None,
    }
}

fn status_of_node(state: NodeState) -> NodeStatus {
    NodeStatus {
        state,
        message: String::new(),
        addr: String::new(),
        since: Timestamp(0),
    }
}

fn network(id: u64, name: u64, subnet: u8) -> Network {
    let [a, b] = NETWORK_BASE;
    let gateway = Ipv4Addr::new(a, b, subnet, 1);
    Network {
        id: network_id(id),
        meta: Meta::default(),
        spec: NetworkSpec {
            name: format!("Name-{name}"),
            ..NetworkSpec::default()
        },
        subnet: shoal_types::spec::Ipv4Net::containing(gateway, 24).expect("24 is a prefix"),
        gateway,
        vni: 4096 + u32::from(subnet),
        predefined: id == 3,
    }
}

fn addr(host: u8) -> Ipv4Addr {
    let [a, b] = NETWORK_BASE;
    Ipv4Addr::new(a, b, 0, host)
}

fn attachments(wanted: &[(u64, u8)]) -> Vec<NetworkAttachment> {
    let attachment = |&(network, host): &(u64, u8)| NetworkAttachment {
        network: network_id(network),
        addr: addr(host),
        aliases: Vec::new(),
    };
    wanted.iter().map(attachment).collect()
}

fn endpoint(vips: &[(u64, u8)], ports: &[u16]) -> Endpoint {
    let vip = |&(network, host): &(u64, u8)| VirtualIp {
        network: network_id(network),
        addr: addr(host),
    };
    let port = |&published: &u16| PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published,
        mode: PublishMode::Ingress,
    };
    Endpoint {
        mode: EndpointMode::Vip,
        ports: ports.iter().map(port).collect(),
        virtual_ips: vips.iter().map(vip).collect(),
    }
}

fn task(id: u64, service: u64, spec_version: Version, wanted: &[(u64, u8)]) -> Task {
    Task {
        id: task_id(id),
        meta: Meta::default(),
        service: service_id(service),
        service_name: format!("Name-{service}"),
        place: TaskPlace::Slot(shoal_types::Slot(1)),
        spec: spec(service, None, None).task,
        service_labels: BTreeMap::new(),
        spec_version,
        node: None,
        desired: Desired::Running,
        status: TaskStatus::default(),
        attachments: attachments(wanted),
        endpoint: EndpointAtBirth::default(),
        generic: Vec::new(),
        not_before: Timestamp(0),
    }
}

fn update_status() -> UpdateStatus {
    UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: Timestamp(0),
        completed_at: None,
        message: String::new(),
    }
}

/// A change before it is known which versions are current.
#[derive(Debug, Clone)]
enum Wish {
    Plain(Change),
    /// Names the version the object has, so that it is in sequence.
    Current(Change),
    Task {
        id: u64,
        service: u64,
        wanted: Vec<(u64, u8)>,
    },
}

impl Wish {
    fn change(self, state: &State) -> Change {
        let spec_version = |id: &ServiceId| {
            let service = state.service(id);
            service.map_or(Version(0), |service| service.spec_version)
        };
        match self {
            Self::Plain(change) => change,
            Self::Task {
                id,
                service,
                wanted,
            } => {
                let version = spec_version(&service_id(service));
                Change::CreateTask(Box::new(task(id, service, version, &wanted)))
            }
            Self::Current(mut change) => {
                match &mut change {
                    Change::UpdateServiceSpec { id, version, .. }
                    | Change::RollbackService { id, version, .. } => {
                        *version = state.service(id).map_or(*version, |s| s.meta.version);
                    }
                    Change::SetServiceEndpoint {
                        id,
                        spec_version: version,
                        ..
                    } => *version = spec_version(id),
                    Change::UpdateSecretLabels { id, version, .. } => {
                        *version = state.secret(id).map_or(*version, |s| s.meta.version);
                    }
                    _ => {}
                }
                change
            }
        }
    }
}

fn task_state() -> impl Strategy<Value = TaskState> {
    use TaskState::*;
    prop::sample::select(vec![
        New, Pending, Assigned, Preparing, Running, Complete, Shutdown, Failed, Orphaned,
    ])
}

fn wish() -> impl Strategy<Value = Wish> {
    use Wish::{Current, Plain};
    let id = || 0u64..4;
    let addresses = || prop::collection::vec((0u64..3, 2u8..7), 0..3);
    let some = || prop::option::of(id());
    prop_oneof![
        id().prop_map(|n| Plain(Change::CreateNode(Box::new(node(n))))),
        id().prop_map(|n| Plain(Change::RemoveNode { id: node_id(n) })),
        id().prop_map(|n| Plain(Change::SetNodeStatus {
            id: node_id(n),
            status: status_of_node(NodeState::Down),
        })),
        (id(), id(), 0u8..4).prop_map(|(n, name, net)| Plain(Change::CreateNetwork(Box::new(
            network(n, name, net)
        )))),
        id().prop_map(|n| Plain(Change::RemoveNetwork { id: network_id(n) })),
        (id(), id(), some(), some()).prop_map(|(n, name, net, secret)| Plain(
            Change::CreateService {
                id: service_id(n),
                spec: Box::new(spec(name, net, secret)),
            }
        )),
        (id(), id(), some()).prop_map(|(n, name, net)| Current(Change::UpdateServiceSpec {
            id: service_id(n),
            version: Version(1),
            spec: Box::new(spec(name, net, None)),
        })),
        id().prop_map(|n| Current(Change::RollbackService {
            id: service_id(n),
            version: Version(1),
            update: update_status(),
        })),
        (id(), addresses(), prop::collection::vec(80u16..84, 0..3)).prop_map(|(n, vips, ports)| {
            Current(Change::SetServiceEndpoint {
                id: service_id(n),
                spec_version: Version(0),
                endpoint: Some(endpoint(&vips, &ports)),
                err: String::new(),
            })
        }),
        id().prop_map(|n| Plain(Change::RemoveService { id: service_id(n) })),
        (0u64..8, id(), addresses()).prop_map(|(id, service, wanted)| Wish::Task {
            id,
            service,
            wanted
        }),
        (0u64..8, addresses()).prop_map(|(n, wanted)| Plain(Change::AllocateTask {
            id: task_id(n),
            attachments: attachments(&wanted),
        })),
        (0u64..8, id()).prop_map(|(n, on)| Plain(Change::AssignTask {
            id: task_id(n),
            node: node_id(on),
            generic: Vec::new(),
        })),
        (0u64..8, task_state(), some()).prop_map(|(n, state, reporter)| Plain(
            Change::SetTaskStatus {
                id: task_id(n),
                reporter: reporter.map(node_id),
                status: TaskStatus {
                    state,
                    ..TaskStatus::default()
                },
            }
        )),
        (0u64..8, prop::bool::ANY).prop_map(|(n, stop)| Plain(Change::SetTaskDesired {
            id: task_id(n),
            desired: if stop {
                Desired::Shutdown
            } else {
                Desired::Ready
            },
        })),
        (0u64..8).prop_map(|n| Plain(Change::RemoveTask { id: task_id(n) })),
        (id(), id()).prop_map(|(n, name)| Plain(Change::CreateSecret(Box::new(Secret {
            id: secret_id(n),
            meta: Meta::default(),
            name: format!("name-{name}"),
            labels: BTreeMap::new(),
            data: Vec::new(),
        })))),
        id().prop_map(|n| Current(Change::UpdateSecretLabels {
            id: secret_id(n),
            version: Version(1),
            labels: vec![("a".to_owned(), "b".to_owned())],
        })),
        id().prop_map(|n| Plain(Change::RemoveSecret { id: secret_id(n) })),
        (id(), id()).prop_map(|(n, name)| Plain(Change::CreateConfig(Box::new(Config {
            id: config_id(n),
            meta: Meta::default(),
            name: format!("name-{name}"),
            labels: BTreeMap::new(),
            data: Vec::new(),
        })))),
        id().prop_map(|n| Plain(Change::RemoveConfig { id: config_id(n) })),
    ]
}

/// No address or port has two owners, and nothing but the tables decides who owns it.
fn check(state: &State) {
    let mut addresses = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for service in state.services() {
        if let Some(endpoint) = &service.endpoint {
            for vip in &endpoint.virtual_ips {
                let owner = AddressOwner::Service(service.id);
                let other = addresses.insert((vip.network, vip.addr), owner);
                assert!(other.is_none_or(|other| other == owner), "{vip:?}");
            }
        }
        let given = service.endpoint.iter().flat_map(|e| &e.ports);
        for port in given.chain(&service.spec.endpoint.ports) {
            let other = ports.insert((port.protocol, port.published), service.id);
            assert!(other.is_none_or(|other| other == service.id), "{port:?}");
        }
    }
    for task in state.tasks().filter(|t| !t.status.state.is_terminal()) {
        for at in &task.attachments {
            let owner = AddressOwner::Task(task.id);
            let other = addresses.insert((at.network, at.addr), owner);
            assert!(other.is_none_or(|other| other == owner), "{at:?}");
            assert!(state.network(&at.network).is_some());
        }
    }
    assert!(
        state.addresses.iter().map(|(k, v)| (*k, *v)).eq(addresses),
        "the index of addresses"
    );
    assert!(state.ports.iter().map(|(k, v)| (*k, *v)).eq(ports));
    assert_eq!(state.service_names.len(), state.services.len());
    assert_eq!(state.secret_names.len(), state.secrets.len());
    assert_eq!(state.config_names.len(), state.configs.len());
    assert_eq!(state.network_names.len(), state.networks.len());
    for service in state.services() {
        assert_eq!(
            state.service_named(&service.spec.name).map(|s| s.id),
            Some(service.id)
        );
    }
    let restored = State::restore(state.version(), state.objects()).with_clock(state.clock());
    assert_eq!(restored, *state, "a state is what its objects make of it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_sequence_of_commands_keeps_the_state_consistent(
        commands in prop::collection::vec(prop::collection::vec(wish(), 1..4), 1..60),
    ) {
        let mut state = State::default();
        for (version, wishes) in (1..).map(Version).zip(commands) {
            let before = state.clone();
            let changes = wishes.into_iter().map(|wish| wish.change(&before)).collect();
            let command = Command { at: Timestamp(0), changes };
            let mut twin = before.clone();
            let result = state.apply(version, &command);
            prop_assert_eq!(&twin.apply(version, &command), &result, "apply is a function");
            prop_assert_eq!(&twin, &state);
            prop_assert_eq!(state.version(), version);
            match result {
                Err(_rejection) => {
                    let mut same = before.clone();
                    same.skip_to(version);
                    prop_assert_eq!(&state, &same, "a rejected command changes nothing");
                }
                Ok((applied, changes)) => {
                    prop_assert_eq!(applied.version, version);
                    let mut replayed = before.clone();
                    replayed.skip_to(version);
                    for change in &changes {
                        replayed.set(change);
                    }
                    prop_assert_eq!(&replayed, &state, "the changes are all that changed");
                }
            }
            for task in before.tasks() {
                if let Some(after) = state.task(&task.id).filter(|t| t.meta.created_at == task.meta.created_at && t.service == task.service) {
                    let recreated = after.meta.version == version && after.status == TaskStatus::default();
                    prop_assert!(recreated || after.status.state >= task.status.state);
                    prop_assert!(recreated || after.desired >= task.desired);
                }
            }
            check(&state);
        }
    }
}

fn apply(state: &mut State, change: Change) -> Result<(), Rejection> {
    let version = Version(state.version().0 + 1);
    let command = Command {
        at: Timestamp(0),
        changes: vec![change],
    };
    state.apply(version, &command).map(drop)
}

#[test]
fn a_secret_under_another_name_does_not_replace_the_one_of_its_id() {
    let secret = |name: &str| {
        Change::CreateSecret(Box::new(Secret {
            id: secret_id(1),
            meta: Meta::default(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            data: Vec::new(),
        }))
    };
    let mut state = State::default();
    apply(&mut state, secret("a")).expect("the first");
    let refused = apply(&mut state, secret("b"));
    let kind = Kind::Secret;
    let id = secret_id(1).to_string();
    assert_eq!(refused, Err(Rejection::Exists { kind, id }));
    check(&state);
}

#[test]
fn a_service_is_refused_that_names_a_taken_port_or_a_secret_that_is_gone() {
    let mut state = State::default();
    let create = |id, name, secret| Change::CreateService {
        id: service_id(id),
        spec: Box::new(spec(name, None, secret)),
    };
    apply(&mut state, create(1, 1, None)).expect("the first");
    let refused = apply(&mut state, create(2, 2, None));
    assert!(
        matches!(refused, Err(Rejection::PortTaken { port: 81, service, .. }) if service == service_id(1)),
        "named is taken, before it was given: {refused:?}"
    );
    let refused = apply(&mut state, create(2, 0, Some(1)));
    let not_found = |kind| {
        Err(Rejection::NotFound {
            kind,
            id: "name-1".to_owned(),
        })
    };
    assert_eq!(refused, not_found(Kind::Secret));
    let update = |version, name| Change::UpdateServiceSpec {
        id: service_id(1),
        version,
        spec: Box::new(spec(name, None, None)),
    };
    let version = state
        .service(&service_id(1))
        .expect("it is there")
        .meta
        .version;
    apply(&mut state, update(version, 0)).expect("the port is given up");
    apply(&mut state, create(2, 2, None)).expect("the port is free");
    let rollback = Change::RollbackService {
        id: service_id(1),
        version: state
            .service(&service_id(1))
            .expect("it is there")
            .meta
            .version,
        update: update_status(),
    };
    let refused = apply(&mut state, rollback);
    assert!(
        matches!(refused, Err(Rejection::PortTaken { .. })),
        "{refused:?}"
    );
    check(&state);
}

#[test]
fn an_endpoint_that_comes_with_a_service_is_kept_only_if_all_of_it_is_free() {
    let mut state = State::default();
    let create = |id, port| Change::CreateServiceWith {
        id: service_id(id),
        spec: Box::new(spec(id + 3, None, None)),
        endpoint: Box::new(endpoint(&[], &[port])),
    };
    apply(&mut state, create(1, 90)).expect("new");
    apply(&mut state, create(2, 90)).expect("the endpoint is no reason to refuse it");
    let given = |n| state.service(&service_id(n)).expect("new").endpoint.clone();
    assert_eq!(given(1), Some(endpoint(&[], &[90])));
    assert_eq!(given(2), None);
    check(&state);
}

#[test]
fn times_do_not_go_back_when_a_leader_s_clock_does() {
    let mut state = State::default();
    for (version, at) in [(1, 100), (2, 40), (3, 101)] {
        let change = Change::CreateNode(Box::new(node(version)));
        let command = Command {
            at: Timestamp(at),
            changes: vec![change],
        };
        state.apply(Version(version), &command).expect("new");
    }
    let created = |n| {
        state
            .node(&node_id(n))
            .expect("it is there")
            .meta
            .created_at
    };
    assert_eq!([1, 2, 3].map(created), [100, 100, 101].map(Timestamp));
    assert_eq!(state.clock(), Timestamp(101));
}

#[test]
fn network_identifiers_are_unique_and_there_is_one_ingress_network() {
    let mut state = State::default();
    let create = |id: u64, subnet, vni, ingress| {
        let mut network = network(id, id, subnet);
        network.vni = vni;
        network.spec.ingress = ingress;
        Change::CreateNetwork(Box::new(network))
    };
    apply(&mut state, create(0, 0, 5000, true)).expect("the first");
    let refused = apply(&mut state, create(1, 1, 5000, false));
    assert!(
        matches!(refused, Err(Rejection::VniTaken { vni: 5000, .. })),
        "{refused:?}"
    );
    let refused = apply(&mut state, create(1, 1, 5001, true));
    let id = network_id(0);
    assert_eq!(refused, Err(Rejection::IngressExists { id }));
    apply(&mut state, create(1, 1, 5001, false)).expect("nothing in common");
}

#[test]
fn a_rollback_to_a_name_that_is_taken_by_now_is_refused() {
    let mut state = State::default();
    let create = |id, name| Change::CreateService {
        id: service_id(id),
        spec: Box::new(spec(name, None, None)),
    };
    apply(&mut state, create(1, 0)).expect("the first");
    let rename = Change::UpdateServiceSpec {
        id: service_id(1),
        version: Version(1),
        spec: Box::new(spec(1, None, None)),
    };
    apply(&mut state, rename).expect("the name is free");
    apply(&mut state, create(2, 0)).expect("the name is free again");
    let rollback = Change::RollbackService {
        id: service_id(1),
        version: Version(2),
        update: update_status(),
    };
    let refused = apply(&mut state, rollback);
    assert!(
        matches!(refused, Err(Rejection::NameTaken { .. })),
        "{refused:?}"
    );
    check(&state);
}

#[test]
fn tasks_of_a_removed_node_are_orphaned_and_give_their_addresses_back() {
    let mut state = State::default();
    apply(&mut state, Change::CreateNode(Box::new(node(1)))).expect("new");
    apply(
        &mut state,
        Change::CreateNetwork(Box::new(network(1, 1, 0))),
    )
    .expect("new");
    let service = Change::CreateService {
        id: service_id(1),
        spec: Box::new(spec(1, Some(1), None)),
    };
    apply(&mut state, service).expect("new");
    let version = state.version();
    apply(
        &mut state,
        Change::CreateTask(Box::new(task(1, 1, version, &[(1, 5)]))),
    )
    .expect("new");
    let assign = Change::AssignTask {
        id: task_id(1),
        node: node_id(1),
        generic: Vec::new(),
    };
    apply(&mut state, assign).expect("both are there");
    assert!(state.address_owner(network_id(1), addr(5)).is_some());
    apply(&mut state, Change::RemoveNode { id: node_id(1) }).expect("it is there");
    let task = state.task(&task_id(1)).expect("it stays");
    assert_eq!(task.status.state, TaskState::Orphaned);
    assert_eq!(state.address_owner(network_id(1), addr(5)), None);
    check(&state);
}
