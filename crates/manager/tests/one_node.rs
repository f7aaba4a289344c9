//! A manager with a real store and an agent that runs nothing but says it does, over the in-process
//! stream that the daemon uses.

#![expect(
    clippy::unwrap_used,
    clippy::similar_names,
    reason = "tests fail by panicking, and states have statuses"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use shoal_manager::{
    Control, ControlError, DataKey, Founding, InitOptions, LivenessConfig, Manager, ManagerConfig,
    NewFile, RaftTuning, State, Tuning,
};
use shoal_transport::{identity::NodeKey, session};
use shoal_types::{
    Desired, NodeId, RaftId, ServiceId, TaskId, TaskState, TaskStatus,
    object::{NodeDescription, NodeResources, NodeState, TaskPlace, UpdateState},
    spec::{
        Availability, ContainerSpec, EndpointSpec, NetworkAttachmentSpec, NetworkSpec, Placement,
        Platform, PortConfig, Protocol, PublishMode, Resources, RestartPolicy, ServiceMode,
        ServiceSpec, TaskSpec, UpdateConfig,
    },
    wire::{AgentMessage, Assignments, ManagerMessage, Purpose},
};
use tokio::task::JoinHandle;

const WAIT: Duration = Duration::from_secs(20);

fn node() -> NodeId {
    NodeId::from_random([9; 17])
}

fn founding() -> Founding {
    let key = NodeKey::generate();
    let node = NodeId::from_random([9; 17]);
    Founding::new(node, &key.signing_request()).expect("a new authority")
}

fn description() -> NodeDescription {
    NodeDescription {
        hostname: "one".to_owned(),
        platform: Platform {
            architecture: "x86_64".to_owned(),
            os: "linux".to_owned(),
        },
        resources: NodeResources {
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
            generic: Vec::new(),
        },
        ..NodeDescription::default()
    }
}

async fn open(dir: &Path) -> Manager {
    let raft = RaftTuning {
        heartbeat: Duration::from_millis(30),
        election_min: Duration::from_millis(80),
        election_max: Duration::from_millis(160),
        segment_bytes: 1 << 20,
        ..RaftTuning::default()
    };
    let manager = Manager::open(ManagerConfig {
        dir: dir.to_owned(),
        node: node(),
        raft: RaftId(1),
        cluster: None,
        key: DataKey::from_bytes([7; 32]),
        alone: false,
        tuning: Tuning {
            raft,
            liveness: LivenessConfig {
                heartbeat: Duration::from_millis(100),
                ..LivenessConfig::default()
            },
        },
    });
    let manager = manager.await.expect("the manager opens");
    let options = InitOptions::new(&founding(), description());
    manager.init(options).await.expect("the cluster starts");
    manager
}

/// Says of every task that it got where it should; images named `bad` fail.
struct Agent {
    session: JoinHandle<()>,
    serving: JoinHandle<()>,
    last: Arc<Mutex<Assignments>>,
    accepted: Arc<Mutex<BTreeSet<TaskId>>>,
}

impl Agent {
    fn connect(manager: &Manager) -> Self {
        let (ours, theirs) = session::local_stream();
        let manager = manager.clone();
        let serving = tokio::spawn(async move {
            manager
                .serve_local(Purpose::Session, Box::new(theirs))
                .await;
        });
        let last = Arc::new(Mutex::new(Assignments::default()));
        let accepted = Arc::default();
        let agent = agent(ours, last.clone(), Arc::clone(&accepted));
        Self {
            session: tokio::spawn(agent),
            serving,
            last,
            accepted,
        }
    }

    async fn leave(self) {
        self.session.abort();
        let _ = self.session.await;
        self.serving.await.expect("the session ends in order");
    }
}

async fn agent(
    stream: tokio::io::DuplexStream,
    last: Arc<Mutex<Assignments>>,
    accepted: Arc<Mutex<BTreeSet<TaskId>>>,
) {
    let (mut to, mut from) = session::open::<AgentMessage, ManagerMessage, _>(stream);
    let hello = AgentMessage::Hello {
        node: node(),
        description: description(),
    };
    to.send(&hello).await.expect("hello is sent");
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    let mut states: BTreeMap<TaskId, TaskState> = BTreeMap::new();
    loop {
        let message = tokio::select! {
            message = from.receive() => message,
            _ = beat.tick() => {
                if to.send(&AgentMessage::Heartbeat).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let message = match message {
            Ok(Some(ManagerMessage::Changes(changes))) => {
                let set = changes.apply(&last.lock().unwrap());
                Ok(Some(ManagerMessage::Assignments(
                    set.expect("the set before"),
                )))
            }
            other => other,
        };
        match message {
            Ok(Some(ManagerMessage::Assignments(set))) => {
                assert!(
                    set.generation > last.lock().unwrap().generation,
                    "generations grow"
                );
                let mut reports = Vec::new();
                for task in &set.tasks {
                    let state = states.entry(task.id).or_insert(task.status.state);
                    let next = match task.desired {
                        Desired::Shutdown | Desired::Remove => TaskState::Shutdown,
                        Desired::Ready => TaskState::Ready,
                        _runs if task.spec.container.image == "bad" => TaskState::Failed,
                        Desired::Complete => TaskState::Complete,
                        Desired::Running => TaskState::Running,
                    };
                    if *state < next {
                        *state = next;
                        let status = TaskStatus {
                            state: next,
                            ..task.status.clone()
                        };
                        reports.push((task.id, status));
                    }
                }
                let generation = set.generation;
                *last.lock().unwrap() = set;
                if !reports.is_empty() && to.send(&AgentMessage::Status(reports)).await.is_err() {
                    return;
                }
                if to.send(&AgentMessage::Applied(generation)).await.is_err() {
                    return;
                }
            }
            Ok(Some(ManagerMessage::StatusAccepted(tasks))) => {
                accepted
                    .lock()
                    .unwrap()
                    .extend(tasks.into_iter().map(|(task, _state)| task));
            }
            Ok(Some(ManagerMessage::Welcome { .. })) => {}
            Ok(Some(ManagerMessage::Refused { reason })) => panic!("refused: {reason}"),
            Ok(None) | Err(_) => return,
            Ok(Some(other)) => panic!("{other:?}"),
        }
    }
}

/// Waits until `holds`; says what the state was when it never did.
async fn wait_for(control: &Control, what: &str, holds: impl Fn(&State) -> bool) -> Arc<State> {
    let mut states = control.watch();
    let found = tokio::time::timeout(WAIT, states.wait_for(|state| holds(state))).await;
    match found {
        Ok(state) => state.expect("the store is open").clone(),
        Err(_elapsed) => {
            let state = control.local_state();
            let tasks: Vec<_> = state.tasks().collect();
            let services: Vec<_> = state.services().collect();
            panic!("{what} did not happen; {services:#?} {tasks:#?}");
        }
    }
}

fn running(state: &State, service: ServiceId, image: &str) -> usize {
    let tasks = state.tasks_of(service).filter(|task| {
        task.status.state == TaskState::Running
            && task.desired == Desired::Running
            && task.spec.container.image == image
    });
    tasks.count()
}

fn spec(name: &str, replicas: u64) -> ServiceSpec {
    ServiceSpec {
        name: name.to_owned(),
        labels: BTreeMap::new(),
        task: TaskSpec {
            container: ContainerSpec::new("one"),
            limits: Resources::default(),
            reservations: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            networks: Vec::new(),
            force_update: 0,
            log_driver: None,
        }
        .into(),
        mode: ServiceMode::Replicated { replicas },
        update: UpdateConfig {
            parallelism: 0,
            monitor: Duration::from_millis(50),
            ..UpdateConfig::default()
        },
        rollback: UpdateConfig {
            parallelism: 0,
            monitor: Duration::from_millis(50),
            ..UpdateConfig::default()
        },
        endpoint: EndpointSpec::default(),
    }
}

async fn change(control: &Control, id: ServiceId, edit: impl Fn(&mut ServiceSpec)) {
    loop {
        let state = control.state().await.expect("readable");
        let service = state.service(&id).expect("the service exists");
        let mut spec = service.spec.clone();
        edit(&mut spec);
        match control.update_service(id, service.meta.version, spec).await {
            Ok(_) => return,
            // The leader wrote its progress meanwhile.
            Err(ControlError::OutOfSequence { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_lives_from_creation_to_removal_across_a_restart_of_the_daemon() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = open(dir.path()).await;
    let agent = Agent::connect(&manager);
    let control = manager.control();

    let mut net = NetworkSpec::default();
    "front".clone_into(&mut net.name);
    let network = control.create_network(net).await.expect("created");
    let mut wanted = spec("web", 3);
    wanted.task.networks = vec![NetworkAttachmentSpec {
        network,
        aliases: vec!["www".to_owned()],
    }];
    wanted.endpoint.ports = vec![PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published: 0,
        mode: PublishMode::Ingress,
    }];
    let id = control.create_service(wanted).await.expect("created");
    let state = wait_for(&control, "three run", |s| running(s, id, "one") == 3).await;
    let endpoint = state
        .service(&id)
        .unwrap()
        .endpoint
        .clone()
        .expect("served");
    assert_eq!(
        endpoint.virtual_ips.len(),
        2,
        "one in front, one in ingress"
    );
    assert!((30_000..=32_767).contains(&endpoint.ports[0].published));
    assert_eq!(
        state.network(&network).unwrap().subnet.to_string(),
        "10.0.1.0/24"
    );

    // The agent hears of its own backends.
    let backends = |set: &Assignments, name: &str| {
        let network = set.networks.iter().find(|n| n.name == name)?;
        let service = network.services.iter().find(|s| s.id == id)?;
        Some((service.backends.len(), service.published.len()))
    };
    let mut tries = 0;
    while backends(&agent.last.lock().unwrap(), "ingress") != Some((3, 1)) {
        tries += 1;
        assert!(tries < 2000, "{:#?}", agent.last.lock().unwrap().networks);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(backends(&agent.last.lock().unwrap(), "front"), Some((3, 0)));
    let first_generation = agent.last.lock().unwrap().generation;

    change(&control, id, |s| {
        s.mode = ServiceMode::Replicated { replicas: 5 }
    })
    .await;
    wait_for(&control, "five run", |s| running(s, id, "one") == 5).await;
    change(&control, id, |s| {
        s.mode = ServiceMode::Replicated { replicas: 2 }
    })
    .await;
    wait_for(&control, "two are left", |s| {
        running(s, id, "one") == 2 && s.tasks_of(id).count() == 2
    })
    .await;
    let state = control.local_state();
    let slots: Vec<_> = state.tasks_of(id).map(|t| t.place.clone()).collect();
    assert!(
        slots
            .iter()
            .all(|s| matches!(s, TaskPlace::Slot(n) if n.0 <= 2)),
        "{slots:?}"
    );

    change(&control, id, |s| {
        "two".clone_into(&mut s.task.container.image);
    })
    .await;
    let update_is = |state: &State, wanted: UpdateState| {
        let service = state.service(&id).expect("there");
        service.update.as_ref().is_some_and(|u| u.state == wanted)
    };
    let state = wait_for(&control, "the update ends", |s| {
        update_is(s, UpdateState::Completed) && running(s, id, "two") == 2
    })
    .await;
    let update = state.service(&id).unwrap().update.clone().unwrap();
    assert_eq!(update.message, "update completed");

    // The daemon restarts; what it knew is what the store knows.
    agent.leave().await;
    manager.shutdown().await;
    drop((control, manager));
    let manager = open(dir.path()).await;
    let control = manager.control();
    let agent = Agent::connect(&manager);
    let state = wait_for(&control, "the node is back", |s| {
        s.node(&node())
            .is_some_and(|n| n.status.state == NodeState::Ready)
    })
    .await;
    assert_eq!(
        running(&state, id, "two"),
        2,
        "a restart of the manager restarts no task"
    );

    let version = control
        .state()
        .await
        .unwrap()
        .service(&id)
        .unwrap()
        .meta
        .version;
    control
        .rollback_service(id, version)
        .await
        .expect("there is a previous spec");
    wait_for(&control, "the rollback ends", |s| {
        update_is(s, UpdateState::RollbackCompleted) && running(s, id, "one") == 2
    })
    .await;

    control.remove_service(id).await.expect("removed");
    wait_for(&control, "nothing is left", |s| s.task_count() == 0).await;
    let mut tries = 0;
    while !agent.last.lock().unwrap().tasks.is_empty() {
        tries += 1;
        assert!(tries < 2000, "{:#?}", agent.last.lock().unwrap().tasks);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(agent.last.lock().unwrap().generation > first_generation);
    assert!(
        !agent.accepted.lock().unwrap().is_empty(),
        "reports are acknowledged"
    );
    control
        .remove_network(network)
        .await
        .expect("nobody uses it any more");
    agent.leave().await;
    manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_update_pauses_or_rolls_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = open(dir.path()).await;
    let agent = Agent::connect(&manager);
    let control = manager.control();
    let mut wanted = spec("web", 2);
    wanted.update.parallelism = 1;
    let id = control.create_service(wanted).await.expect("created");
    wait_for(&control, "two run", |s| running(s, id, "one") == 2).await;

    change(&control, id, |s| {
        "bad".clone_into(&mut s.task.container.image);
    })
    .await;
    let state = wait_for(&control, "the update pauses", |s| {
        let update = s.service(&id).and_then(|s| s.update.clone());
        update.is_some_and(|u| u.state == UpdateState::Paused)
    })
    .await;
    let update = state.service(&id).unwrap().update.clone().unwrap();
    let words = "update paused due to failure or early termination of task ";
    assert!(update.message.starts_with(words), "{}", update.message);
    assert_eq!(
        running(&state, id, "one"),
        1,
        "the other replica is untouched"
    );

    change(&control, id, |s| {
        "one".clone_into(&mut s.task.container.image);
    })
    .await;
    wait_for(&control, "both run again", |s| running(s, id, "one") == 2).await;
    change(&control, id, |s| {
        "bad".clone_into(&mut s.task.container.image);
        s.update.failure_action = shoal_types::spec::FailureAction::Rollback;
    })
    .await;
    wait_for(&control, "the update is rolled back", |s| {
        let update = s.service(&id).and_then(|s| s.update.clone());
        update.is_some_and(|u| u.state == UpdateState::RollbackCompleted)
            && running(s, id, "one") == 2
    })
    .await;
    agent.leave().await;
    manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_change_nothing_and_say_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = open(dir.path()).await;
    let control = manager.control();
    let id = control
        .create_service(spec("web", 0))
        .await
        .expect("created");
    let served = |state: &State| state.service(&id).is_some_and(|s| s.endpoint.is_some());
    let before = wait_for(&control, "the service is served", served).await;

    let error = control.create_service(spec("WEB", 1)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "name conflicts with an existing object: service WEB already exists"
    );
    let error = control.create_service(spec("a.b", 1)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "name must be valid as a DNS name component"
    );
    let stale = shoal_types::Version(1);
    let error = control
        .update_service(id, stale, spec("web", 1))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "update out of sequence");
    let mut global = spec("web", 1);
    global.mode = ServiceMode::Global;
    let version = before.service(&id).unwrap().meta.version;
    let error = control
        .update_service(id, version, global)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ControlError::NotSupported { .. }),
        "{error:?}"
    );
    let missing = Control::find_service(&before, "nothing").unwrap_err();
    assert_eq!(missing.to_string(), "service nothing not found");
    let prefix = &id.as_str()[..6];
    assert_eq!(Control::find_service(&before, prefix).unwrap().id, id);
    let bridge = Control::find_network(&before, "bridge").unwrap();
    let error = control.remove_network(bridge.id).await.unwrap_err();
    assert!(
        matches!(error, ControlError::Precondition { .. }),
        "{error:?}"
    );
    let file = NewFile {
        name: "key".to_owned(),
        labels: BTreeMap::new(),
        data: Vec::new(),
    };
    let error = control.create_secret(file).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "secret data must be larger than 0 and less than 512000 bytes"
    );
    let error = control.remove_node(node(), true).await.unwrap_err();
    assert!(
        matches!(error, ControlError::Precondition { .. }),
        "{error:?}"
    );
    let mut spec = before.node(&node()).unwrap().spec.clone();
    spec.role = shoal_types::spec::Role::Worker;
    spec.availability = Availability::Active;
    let error = control.update_node(node(), stale, spec).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "attempting to demote the last manager of the swarm"
    );
    let services = |state: &State| state.services().cloned().collect::<Vec<_>>();
    let after = control.state().await.expect("readable");
    assert_eq!(services(&after), services(&before), "nothing has changed");
    manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_speaks_for_another_node_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = open(dir.path()).await;
    let (ours, theirs) = session::local_stream();
    let serving = tokio::spawn({
        let manager = manager.clone();
        async move {
            manager
                .serve_local(Purpose::Session, Box::new(theirs))
                .await;
        }
    });
    let (mut to, mut from) = session::open::<AgentMessage, ManagerMessage, _>(ours);
    let stranger = NodeId::from_random([1; 17]);
    let hello = AgentMessage::Hello {
        node: stranger,
        description: description(),
    };
    to.send(&hello).await.expect("sent");
    let answer = from.receive().await.expect("received");
    let reason = format!(
        "node {} may not open a session as node {stranger}",
        manager.node()
    );
    assert_eq!(answer, Some(ManagerMessage::Refused { reason }));
    serving.await.expect("ends in order");
    manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_of_a_node_is_refused_while_the_first_answers() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = open(dir.path()).await;
    let second = || async {
        let (ours, theirs) = session::local_stream();
        let manager = manager.clone();
        tokio::spawn(async move {
            manager
                .serve_local(Purpose::Session, Box::new(theirs))
                .await;
        });
        let (mut to, mut from) = session::open::<AgentMessage, ManagerMessage, _>(ours);
        let hello = AgentMessage::Hello {
            node: node(),
            description: description(),
        };
        to.send(&hello).await.expect("sent");
        let answer = from.receive().await.expect("received");
        (answer, to, from)
    };
    let first = Agent::connect(&manager);
    wait_for(&manager.control(), "the first agent", |state| {
        let status = state.node(&node()).map(|node| node.status.state);
        status == Some(NodeState::Ready)
    })
    .await;
    let (answer, _to, _from) = second().await;
    let Some(ManagerMessage::Refused { reason }) = answer else {
        panic!("{answer:?}");
    };
    assert!(reason.contains("is another machine"), "{reason}");
    assert!(!first.session.is_finished(), "the first one goes on");

    // One that says no more is taken for gone, although its stream is open.
    first.leave().await;
    let (silent, _silent_to, _silent_from) = second().await;
    assert!(matches!(silent, Some(ManagerMessage::Welcome { .. })));
    let (next, _to, _from) = second().await;
    assert!(matches!(next, Some(ManagerMessage::Welcome { .. })));
    manager.shutdown().await;
}
