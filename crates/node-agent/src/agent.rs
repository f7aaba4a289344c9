//! The agent: takes assignment sets over, and shows what the node runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::Either;
use shoal_image::ImageStore;
use shoal_network::{ApplyError, Datapath, NetworkState};
use shoal_runtime::{LogConfig, Runtime};
use shoal_transport::dial::Dialer;
use shoal_types::{
    ContainerId, Generation, NetworkId, NodeId, TaskId, TaskState,
    object::NodeDescription,
    wire::{Assignments, Open},
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span, warn};

use crate::{
    logs, network,
    saved::Saved,
    session::{Outbox, Session},
    task::container_id,
    task::memory::MemoryWorker,
    task::mounts::{self, MountSource, TaskMount},
    task::worker::{Shown, Tools, Wanted, Worker},
    volumes::Volumes,
};

/// Pause before networks that could not be brought up are tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The kernel is compared with the desired networks this often, whatever else happens.
const RESYNC: Duration = Duration::from_secs(15);

pub struct AgentConfig {
    /// Directory of the agent's own records.
    pub dir: PathBuf,
    pub volumes: Volumes,
    pub images: ImageStore,
    pub runtime: Runtime,
    pub datapath: Datapath,
    pub description: NodeDescription,
    /// `search` line of the node's resolv.conf, for containers.
    pub search: Vec<String>,
    /// How much of the output of each container is kept, from its creation on.
    pub log: LogConfig,
    /// Reads the node's name servers, which may change while it runs; after an error they stay.
    pub name_servers: fn() -> io::Result<Vec<SocketAddr>>,
    /// Tasks run in memory only, and nothing is asked of `runtime` or `datapath`: such a node is a load
    /// generator for managers.
    pub in_memory: bool,
}

/// The worker half of a node. Clones are handles to the same agent.
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    tools: Arc<Tools>,
    name_servers: fn() -> io::Result<Vec<SocketAddr>>,
    in_memory: bool,
    saved: Saved,
    description: watch::Sender<NodeDescription>,
    assignments: watch::Sender<Option<Arc<Assignments>>>,
    tasks: Mutex<BTreeMap<TaskId, Entry>>,
    /// Counts changes of what workers show.
    changed: watch::Sender<u64>,
    /// What the datapath could not do in the last pass.
    network_errors: Mutex<Vec<String>>,
    /// Why there is no session with a manager, while there is none.
    trouble: Arc<Mutex<Option<String>>>,
    /// The desired networks of the last pass, and the generation they came from.
    applied: watch::Sender<Generation>,
    running: Mutex<Running>,
    /// The agent goes down.
    stopping: CancellationToken,
}

#[derive(Default)]
struct Running {
    reconcile: Option<JoinHandle<()>>,
    session: Option<JoinHandle<()>>,
}

struct Entry {
    wanted: watch::Sender<Wanted>,
    shown: Arc<Mutex<Shown>>,
}

impl Agent {
    /// Takes over what an earlier agent left: its saved assignments, containers and networks. The node
    /// goes on with them until a manager sends a newer set.
    pub fn start(config: AgentConfig) -> Self {
        let saved = Saved::new(&config.dir);
        let (description, described) = watch::channel(config.description);
        let loaded = saved.load();
        let assignments = watch::Sender::new(loaded.clone());
        let tools = Tools {
            volumes: Arc::new(config.volumes),
            assignments: assignments.subscribe(),
            loaded,
            images: config.images,
            runtime: config.runtime,
            datapath: config.datapath,
            outbox: Arc::new(Outbox::default()),
            description: described,
            search: config.search,
            log: config.log,
            saved: saved.clone(),
        };
        let inner = Arc::new(Inner {
            tools: Arc::new(tools),
            name_servers: config.name_servers,
            in_memory: config.in_memory,
            description,
            assignments,
            saved,
            tasks: Mutex::default(),
            changed: watch::Sender::new(0),
            network_errors: Mutex::default(),
            trouble: Arc::default(),
            applied: watch::Sender::new(Generation(0)),
            running: Mutex::default(),
            stopping: CancellationToken::new(),
        });
        let reconcile = tokio::spawn(inner.clone().reconcile());
        inner.running().reconcile = Some(reconcile);
        Self { inner }
    }

    /// Says in [`Self::doctor`] why this agent asks for no session; until [`Self::join`].
    pub fn stand_aside(&self, why: String) {
        *lock(&self.inner.trouble) = Some(why);
    }

    /// Opens a session with the managers that `dialer` reaches, and keeps it open.
    pub fn join(&self, node: NodeId, dialer: Dialer) {
        let (runtime, back) = (self.inner.tools.runtime.clone(), dialer.clone());
        let bring = move |ticket, Open::Logs { task, options }: Open| {
            let bringing = logs::bring(runtime.clone(), back.clone(), ticket, task, options);
            tokio::spawn(bringing.in_current_span());
        };
        let session = Session {
            node,
            dialer,
            description: self.inner.description.subscribe(),
            outbox: self.inner.tools.outbox.clone(),
            assignments: self.inner.assignments.clone(),
            bring: Box::new(bring),
            trouble: self.inner.trouble.clone(),
        };
        let session = tokio::spawn(
            session
                .run()
                .instrument(info_span!("session", node.id = %node)),
        );
        if let Some(old) = self.inner.running().session.replace(session) {
            old.abort();
        }
    }

    /// Leaves the swarm: the session ends, every task is stopped, and nothing of them remains. Returns
    /// when that is so, or when the agent goes down.
    pub async fn leave(&self) {
        let session = self.inner.running().session.take();
        if let Some(session) = session {
            session.abort();
            // An abort is the expected end; a set that was being received is not taken after it.
            let _ = session.await;
        }
        lock(&self.inner.trouble).take();
        let mut changed = self.inner.changed.subscribe();
        let mut applied = self.inner.applied.subscribe();
        applied.mark_unchanged();
        self.inner.assignments.send_replace(Some(Arc::default()));
        let gone = async {
            // Both watches live as long as the agent.
            while applied.changed().await.is_ok() && *applied.borrow_and_update() != Generation(0) {
            }
            while !self.inner.tasks().is_empty() && changed.changed().await.is_ok() {}
        };
        tokio::select! {
            () = gone => {}
            () = self.inner.stopping.cancelled() => return,
        }
        if let Err(error) = self.inner.saved.forget() {
            warn!(
                error = crate::error_chain(&error),
                "saved assignments not removed"
            );
        }
    }

    /// Ends the agent; containers and networks go on.
    pub async fn shutdown(&self) {
        self.inner.stopping.cancel();
        let running = std::mem::take(&mut *self.inner.running());
        for part in [running.session, running.reconcile].into_iter().flatten() {
            part.abort();
            // An abort is the expected end.
            let _ = part.await;
        }
        self.inner.tasks().clear();
    }

    /// Whether tasks run in memory only.
    pub fn is_in_memory(&self) -> bool {
        self.inner.in_memory
    }

    pub fn images(&self) -> &ImageStore {
        &self.inner.tools.images
    }

    pub fn volumes(&self) -> &Arc<Volumes> {
        &self.inner.tools.volumes
    }

    /// What the container of a task mounts; empty when that cannot be said.
    pub fn mounts(&self, local: &LocalTask) -> Vec<TaskMount> {
        let tools = &self.inner.tools;
        let named = &local.task.spec.container.image;
        let image = local.image.clone().or_else(|| tools.images.get(named).ok());
        let config = image.and_then(|image| image.config.oci().config().clone());
        let of_image = config.and_then(|config| config.volumes().clone());
        let node = tools.description.borrow().clone();
        mounts::mounts(&local.task, &of_image.unwrap_or_default(), &node).unwrap_or_default()
    }

    /// The containers that need a volume: made, or about to be.
    pub fn users_of_volume(&self, name: &str) -> Vec<ContainerId> {
        let uses = |mount: &TaskMount| matches!(&mount.source, MountSource::Volume(volume) if volume.name == name);
        let tasks = self.tasks();
        let users = tasks
            .iter()
            .filter(|task| self.mounts(task).iter().any(uses));
        users.map(|task| container_id(&task.task.id)).collect()
    }

    pub fn runtime(&self) -> &Runtime {
        &self.inner.tools.runtime
    }

    pub fn description(&self) -> NodeDescription {
        self.inner.description.borrow().clone()
    }

    /// The node's tasks as its workers see them, by id.
    pub fn tasks(&self) -> Vec<LocalTask> {
        let tasks = self.inner.tasks();
        let shown = tasks.values().map(|entry| lock(&entry.shown).clone());
        shown
            .map(|s| LocalTask {
                task: s.task,
                status: s.status,
                image: s.image,
                health: s.health,
            })
            .collect()
    }

    /// The newest assignment set.
    pub fn assignments(&self) -> Arc<Assignments> {
        self.inner.assignments.borrow().clone().unwrap_or_default()
    }

    /// Told whenever a newer assignment set arrives.
    pub fn watch_assignments(&self) -> watch::Receiver<Option<Arc<Assignments>>> {
        self.inner.assignments.subscribe()
    }

    /// Has the node say of itself that other nodes send the traffic of cluster networks to `addr`;
    /// `None`: that it takes part in none.
    pub fn set_data_addr(&self, addr: Option<IpAddr>) {
        self.inner.description.send_if_modified(|description| {
            let changed = description.data_addr != addr;
            description.data_addr = addr;
            changed
        });
    }

    /// Told whenever a task of the node changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// What is wrong on the node; a difference found is repaired by the next pass that has a reason to
    /// look at networks.
    pub async fn doctor(&self) -> Diagnosis {
        let datapath = &self.inner.tools.datapath;
        let trouble = lock(&self.inner.trouble).clone();
        let trouble = trouble.map(|why| format!("this node has no session with a manager: {why}"));
        let mut findings: Vec<String> = trouble.into_iter().collect();
        findings.extend(lock(&self.inner.network_errors).iter().cloned());
        findings.extend(datapath.diff().await.iter().map(ToString::to_string));
        let warnings = datapath.warnings().await;
        Diagnosis { findings, warnings }
    }
}

/// What is wrong on the node, each thing in a sentence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// Where the kernel is otherwise than desired.
    pub findings: Vec<String>,
    /// What of the machine's own configuration is in the way of the networks.
    pub warnings: Vec<String>,
}

/// One task of this node.
#[derive(Debug, Clone)]
pub struct LocalTask {
    pub task: Arc<shoal_types::object::Task>,
    pub status: shoal_types::TaskStatus,
    /// The image its container was made from, once known.
    pub image: Option<Arc<shoal_image::Image>>,
    /// What is known of its container's health; `None` when nobody asks for it.
    pub health: Option<crate::Health>,
}

impl Inner {
    /// Brings networks, then tasks, to what the newest set says; again on every change and every
    /// [`RESYNC`]. Networks first: an endpoint leaves the balancing before its task is told to stop,
    /// and a task's networks exist before it is told to start.
    async fn reconcile(self: Arc<Self>) {
        let mut assignments = self.assignments.subscribe();
        let mut changed = self.changed.subscribe();
        let mut described = self.description.subscribe();
        let mut workers = JoinSet::new();
        let mut last: Option<Vec<NetworkState>> = None;
        // What an earlier agent saved may be older than what runs: nothing is swept away for it.
        let loaded = assignments.borrow().clone();
        let mut saved = loaded.as_ref().map_or(Generation(0), |set| set.generation);
        let mut swept = false;
        let mut resync = time::interval_at(Instant::now() + RESYNC, RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let Some(set) = assignments.borrow_and_update().clone() else {
                // Nobody has said yet what this node should run: what it runs goes on.
                if assignments.changed().await.is_err() {
                    return;
                }
                continue;
            };
            changed.mark_unchanged();
            // Saved before anything of it begins, so that a restart knows of all that runs.
            if set.generation != saved {
                saved = set.generation;
                if let Err(error) = self.saved.store(&self.with_own_statuses(&set)) {
                    let error = crate::error_chain(&error);
                    error!(
                        error,
                        "assignments not saved; a restart would go back to older ones"
                    );
                }
            }
            let data_addr = described.borrow_and_update().data_addr;
            let nodes = network::Nodes::of(&set, data_addr);
            let desired = network::desired(&set, &self.gone(&set), &nodes);
            if !self.in_memory && last.as_ref() != Some(&desired) {
                let errors = self.tools.datapath.apply(desired.clone()).await;
                last = errors.is_empty().then_some(desired);
                self.note(nodes.problems, &errors);
            }
            self.hand_out(&set, &mut workers);
            let is_loaded = loaded
                .as_ref()
                .is_some_and(|loaded| Arc::ptr_eq(loaded, &set));
            if !swept && !is_loaded && !self.in_memory {
                swept = self.sweep(&set).await;
            }
            self.applied.send_replace(set.generation);
            // A watch remembers what was seen, joining a worker again is harmless, and a full pass
            // follows every arm: nothing is lost by dropping the others.
            tokio::select! {
                result = assignments.changed() => if result.is_err() { return },
                result = changed.changed() => if result.is_err() { return },
                result = described.changed() => if result.is_err() { return },
                Some(_ended) = workers.join_next() => {}
                () = time::sleep(RETRY), if last.is_none() && !self.in_memory => {}
                _ = resync.tick(), if !self.in_memory => {
                    // Also makes the datapath doubt what it knows of the kernel.
                    for difference in self.tools.datapath.diff().await {
                        warn!(%difference, "the kernel was changed by somebody else; it is set right");
                    }
                    last = None;
                    if let Ok(servers) = (self.name_servers)() {
                        self.tools.datapath.set_upstreams(servers).await;
                    }
                }
            }
        }
    }

    /// Takes away the containers of tasks that were forgotten while no agent ran.
    async fn sweep(&self, set: &Assignments) -> bool {
        let wanted: BTreeSet<String> = set
            .tasks
            .iter()
            .map(|task| container_id(&task.id).to_string())
            .collect();
        self.saved
            .prune_healthy(|id| set.tasks.iter().any(|task| task.id.as_str() == id));
        let containers = match self.tools.runtime.list().await {
            Ok(containers) => containers,
            Err(error) => {
                warn!(error = crate::error_chain(&error), "containers not listed");
                return false;
            }
        };
        let mut clean = true;
        for container in containers.iter().filter(|c| !wanted.contains(&c.id)) {
            if let Err(error) = self.tools.runtime.delete(&container.id).await {
                warn!(
                    container.id,
                    error = crate::error_chain(&error),
                    "container not removed"
                );
                clean = false;
            }
        }
        let volumes = self.tools.volumes.clone();
        let is_forgotten = move |owner: &ContainerId| !wanted.contains(owner.as_str());
        let removed = tokio::task::spawn_blocking(move || volumes.remove_owned(is_forgotten)).await;
        for error in removed.unwrap_or_default() {
            warn!(error = crate::error_chain(&error), "volume not removed");
            clean = false;
        }
        clean
    }

    /// Addresses of this node's own tasks that must not get new connections.
    fn gone(&self, set: &Assignments) -> BTreeSet<(NetworkId, Ipv4Addr)> {
        let tasks = self.tasks();
        let shown: Vec<Shown> = tasks.values().map(|e| lock(&e.shown).clone()).collect();
        network::gone(set, shown.iter().map(|s| (&*s.task, s.reachable())))
    }

    /// The set with the tasks as this node knows them: what managers send says of a task what it was when
    /// its orders were given. The next agent begins with what is saved, and a task that runs is reachable
    /// before its worker has looked.
    fn with_own_statuses(&self, set: &Assignments) -> Assignments {
        let known = self.tasks();
        let mut set = set.clone();
        for task in &mut set.tasks {
            let Some(entry) = known.get(&task.id) else {
                continue;
            };
            let status = lock(&entry.shown).status.clone();
            if status.state > task.status.state {
                Arc::make_mut(task).status = status;
            }
        }
        set
    }

    /// Gives every worker its task as it is now wanted; starts and retires workers.
    fn hand_out(self: &Arc<Self>, set: &Assignments, workers: &mut JoinSet<()>) {
        let mut tasks = self.tasks();
        let wanted: BTreeSet<TaskId> = set.tasks.iter().map(|task| task.id).collect();
        for (id, entry) in tasks.iter() {
            if !wanted.contains(id) {
                entry.wanted.send_if_modified(|now| {
                    let changed = matches!(now, Wanted::Task(_));
                    *now = Wanted::Nothing;
                    changed
                });
            }
        }
        for task in &set.tasks {
            if let Some(entry) = tasks.get(&task.id) {
                entry.wanted.send_if_modified(|now| match now {
                    Wanted::Task(old) if old.desired == task.desired => false,
                    _ => {
                        *now = Wanted::Task(task.clone());
                        true
                    }
                });
                continue;
            }
            let shown = Shown {
                task: task.clone(),
                status: task.status.clone(),
                image: None,
                health: None,
                was_healthy: task.status.state == TaskState::Running
                    || self.saved.is_healthy(&task.id),
            };
            let shown = Arc::new(Mutex::new(shown));
            let (sender, receiver) = watch::channel(Wanted::Task(task.clone()));
            let worker = self.worker(task.id, receiver, shown.clone());
            let span = info_span!("task", task.id = %task.id, service.id = %task.service);
            let remaining = Remaining {
                inner: self.clone(),
                id: task.id,
            };
            workers.spawn(
                async move {
                    // Goes with the future, whether the worker ends, panics or is dropped.
                    let _remaining = remaining;
                    worker.await;
                }
                .instrument(span),
            );
            tasks.insert(
                task.id,
                Entry {
                    wanted: sender,
                    shown,
                },
            );
        }
    }

    /// Works for one task until it is gone or the agent goes down.
    fn worker(
        &self,
        id: TaskId,
        wanted: watch::Receiver<Wanted>,
        shown: Arc<Mutex<Shown>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let changed = self.changed.clone();
        if self.in_memory {
            let outbox = self.tools.outbox.clone();
            let worker = MemoryWorker {
                id,
                wanted,
                shown,
                changed,
                outbox,
            };
            return Either::Left(worker.run());
        }
        let worker = Worker::new(self.tools.clone(), id, wanted, shown, changed);
        Either::Right(worker.run())
    }

    fn note(&self, problems: Vec<String>, errors: &[ApplyError]) {
        let mut texts = problems;
        texts.extend(errors.iter().map(crate::error_chain));
        for text in &texts {
            error!(error = text, "a network is not as it should be");
        }
        *lock(&self.network_errors) = texts;
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<TaskId, Entry>> {
        lock(&self.tasks)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        lock(&self.running)
    }
}

/// A task's entry, which goes when its worker is done, or has panicked: the next pass then starts
/// another worker, if the task is still wanted.
struct Remaining {
    inner: Arc<Inner>,
    id: TaskId,
}

impl Drop for Remaining {
    fn drop(&mut self) {
        self.inner.tasks().remove(&self.id);
        self.inner.changed.send_modify(|count| *count += 1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
