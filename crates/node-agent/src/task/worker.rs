//! One task's worker: asks the machine what to do, does it, reports.

mod prepare;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shoal_image::{Image, ImageStore};
use shoal_network::{ContainerEndpoints, Datapath, Endpoint};
use shoal_runtime::{Phase, Runtime, Signal, StartError};
use shoal_types::{
    ContainerId, ContainerStatus, TaskId, TaskState, TaskStatus,
    object::{NodeDescription, Task},
    spec::LogDriver,
    wire::Assignments,
};
use tokio::{sync::watch, time};
use tracing::{info, warn};

use super::health::{Check, Health, HealthStatus, Monitor};
use super::{
    container::SpecError,
    container_id,
    machine::{self, Action, Container},
    signal,
};
use crate::{clock, error_chain, saved::Saved, session::Outbox, volumes::Volumes};

/// Pause after an effect of the node itself failed (the supervisor is being restarted, say).
const RETRY: Duration = Duration::from_millis(200);

/// An effect that fails this often in a row fails the task.
const ATTEMPTS: u32 = 8;

/// Pause before the networks of a running container are taken over again.
const ATTACH_AGAIN: Duration = Duration::from_secs(1);

/// What every worker needs of its node.
pub(crate) struct Tools {
    pub(crate) images: ImageStore,
    pub(crate) runtime: Runtime,
    pub(crate) datapath: Datapath,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) description: watch::Receiver<NodeDescription>,
    pub(crate) search: Vec<String>,
    pub(crate) log: LogDriver,
    pub(crate) saved: Saved,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) assignments: watch::Receiver<Option<Arc<Assignments>>>,
    /// The set that an earlier agent saved, which is without secrets.
    pub(crate) loaded: Option<Arc<Assignments>>,
}

impl Tools {
    /// The newest set, and whether a manager sent it to this agent.
    fn newest(&self) -> (Arc<Assignments>, bool) {
        let newest = self.assignments.borrow().clone().unwrap_or_default();
        let loaded = self.loaded.as_ref();
        let is_loaded = loaded.is_some_and(|loaded| Arc::ptr_eq(loaded, &newest));
        (newest, !is_loaded)
    }
}

/// What a task is to become; the newest wins.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    Task(Arc<Task>),
    /// The manager has forgotten the task: stop it, and leave nothing.
    Nothing,
}

impl Wanted {
    fn wants_run(&self) -> bool {
        matches!(self, Self::Task(task) if task.desired.wants_run())
    }
}

/// Whether a worker has more to do.
enum Then {
    GoOn,
    /// Nothing of the task is left, or the agent goes down and what runs goes on.
    End,
}

/// What a worker shows of its task.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) task: Arc<Task>,
    pub(crate) status: TaskStatus,
    pub(crate) image: Option<Arc<Image>>,
    pub(crate) health: Option<Health>,
    /// An earlier agent has seen its container healthy.
    pub(crate) was_healthy: bool,
}

impl Shown {
    /// Its state as far as new connections go: they come to a task that runs, unless it is known to be unhealthy.
    pub(crate) fn reachable(&self) -> TaskState {
        match (self.status.state, self.health_status()) {
            (TaskState::Running, Some(HealthStatus::Unhealthy)) => TaskState::Starting,
            // A restart is no reason to send nobody there until its worker has looked.
            (TaskState::Starting, None) if self.was_healthy => TaskState::Running,
            (state, _) => state,
        }
    }

    fn health_status(&self) -> Option<HealthStatus> {
        self.health.as_ref().map(|health| health.status)
    }
}

/// A step that did not work, as text with its causes.
enum StepError {
    /// Doing it again would fail again.
    Final(String),
    /// Something of the node itself, which may pass.
    Passing(String),
}

impl StepError {
    fn passing(error: impl std::error::Error) -> Self {
        Self::Passing(error_chain(&error))
    }
}

impl From<SpecError> for StepError {
    fn from(error: SpecError) -> Self {
        Self::Final(error_chain(&error))
    }
}

pub(crate) struct Worker {
    tools: Arc<Tools>,
    id: TaskId,
    container: ContainerId,
    wanted: watch::Receiver<Wanted>,
    shown: Arc<Mutex<Shown>>,
    /// Told whenever `shown` changes.
    changed: watch::Sender<u64>,
    /// Attached to its networks since this process started.
    attached: bool,
    /// Its addresses were given up. They may be another task's by now: never done twice.
    detached: bool,
    failures: u32,
    /// When to try once more to take over the networks of a container that runs.
    attach_again: Option<time::Instant>,
    /// Asks how the container is, while it runs and is to run.
    monitor: Option<Monitor>,
}

impl Worker {
    pub(crate) fn new(
        tools: Arc<Tools>,
        id: TaskId,
        wanted: watch::Receiver<Wanted>,
        shown: Arc<Mutex<Shown>>,
        changed: watch::Sender<u64>,
    ) -> Self {
        let container = container_id(&id);
        // The addresses of a task that has ended went back to the cluster when it did.
        let detached = shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .status
            .state
            .is_terminal();
        Self {
            tools,
            id,
            container,
            wanted,
            shown,
            changed,
            attached: false,
            detached,
            failures: 0,
            attach_again: None,
            monitor: None,
        }
    }

    /// Runs until the task is forgotten and nothing of it is left, or the agent goes down.
    pub(crate) async fn run(mut self) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let error = match self.advance(&wanted).await {
                Ok(Then::GoOn) => {
                    self.failures = 0;
                    continue;
                }
                Ok(Then::End) => return,
                Err(StepError::Passing(error)) => {
                    self.failures += 1;
                    warn!(error, failures = self.failures, "a step of the task failed");
                    error
                }
                Err(StepError::Final(error)) => {
                    self.failures = ATTEMPTS;
                    error
                }
            };
            if self.failures >= ATTEMPTS && wanted.wants_run() {
                self.give_up(error);
            }
            let pause = RETRY * self.failures.min(ATTEMPTS);
            // An agent that goes down is noticed by the next step.
            let _ = time::timeout(pause, self.wanted.changed()).await;
        }
    }

    /// Takes one step.
    async fn advance(&mut self, wanted: &Wanted) -> Result<Then, StepError> {
        let (observed, age) = self.observe().await?;
        let task = match wanted {
            Wanted::Task(task) => task.clone(),
            Wanted::Nothing => {
                if observed == Container::Running {
                    self.stop().await?;
                }
                self.delete().await?;
                self.tools.saved.forget_healthy(&self.id);
                self.tools.outbox.forget(&self.id);
                return Ok(Then::End);
            }
        };
        if !Arc::ptr_eq(&self.shown().task, &task) {
            self.show(|shown| shown.task = task.clone());
        }
        // One that was left by an earlier agent: its name questions are answered here from now on. It
        // runs and is reachable as it was, so trouble with this is no reason to end it.
        if wanted.wants_run()
            && !self.attached
            && matches!(observed, Container::Created | Container::Running)
            && let Err(StepError::Final(error) | StepError::Passing(error)) =
                self.attach(&task).await
        {
            warn!(error, "the container's networks are not taken over yet");
            self.attach_again = Some(time::Instant::now() + ATTACH_AGAIN);
        }
        let state = self.status().state;
        if observed == Container::Running && wanted.wants_run() && !state.is_terminal() {
            self.watch_health(&task, age);
        } else {
            self.monitor = None;
        }
        let health = self.shown().health_status();
        match machine::decide(task.desired, state, observed, health) {
            Action::Enter {
                state,
                message,
                err,
            } => self.enter(state, message, err).await?,
            Action::Prepare => self.prepare(&task).await?,
            Action::Start => self.start().await?,
            Action::Stop => self.stop().await?,
            Action::Delete => self.delete().await?,
            Action::Wait => {
                if self.wanted.changed().await.is_err() {
                    return Ok(Then::End);
                }
            }
            Action::AwaitExit => {
                let exit = self.tools.runtime.wait(self.container.as_str());
                let again = self.attach_again.take();
                tokio::select! {
                    // Waiting again for a container that has ended answers at once.
                    exit = exit => { exit.map_err(StepError::passing)?; }
                    () = until(again) => {}
                    () = health_change(self.monitor.as_mut()) => {}
                    // What was seen is remembered by the watch.
                    changed = self.wanted.changed() => if changed.is_err() {
                        return Ok(Then::End);
                    }
                }
            }
        }
        Ok(Then::GoOn)
    }

    /// The container, and for how long it has run.
    async fn observe(&self) -> Result<(Container, Duration), StepError> {
        let state = self.tools.runtime.state(self.container.as_str()).await;
        let mut age = Duration::ZERO;
        let container = match state.map_err(StepError::passing)?.map(|state| state.phase) {
            None => Container::Absent,
            Some(Phase::Created { .. }) => Container::Created,
            Some(Phase::Running(started)) => {
                let since = jiff::Timestamp::now().duration_since(started.started_at);
                age = Duration::try_from(since).unwrap_or_default();
                Container::Running
            }
            Some(Phase::Exited(exit)) => Container::Exited {
                code: exit.code,
                oom_killed: exit.oom_killed,
            },
        };
        Ok((container, age))
    }

    /// Shows the newest health of a container that is to be asked for it, and sees to it that it is.
    fn watch_health(&mut self, task: &Task, age: Duration) {
        if self.monitor.is_none() {
            let spec = &task.spec.container;
            let of_image = self.known_image();
            let fields = of_image.map(|image| image.config.docker().clone());
            let check = Check::of(spec.health.as_ref(), &fields.unwrap_or_default());
            let Some(check) = check else {
                return;
            };
            let health = Health::new(self.shown().was_healthy);
            let runtime = self.tools.runtime.clone();
            self.monitor = Some(Monitor::start(runtime, self.container, check, age, health));
        }
        let Some(monitor) = &mut self.monitor else {
            return;
        };
        let health = monitor.health.borrow_and_update().clone();
        let healthy = health.status == HealthStatus::Healthy;
        if self.shown().health_status() == Some(health.status) {
            // Nobody has anything to do for one more result.
            self.shown().health = Some(health);
        } else {
            self.show(|shown| shown.health = Some(health));
        }
        if healthy && !self.shown().was_healthy {
            self.shown().was_healthy = true;
            if let Err(error) = self.tools.saved.store_healthy(&self.id) {
                warn!(
                    error = error_chain(&error),
                    "not remembered that the task is healthy"
                );
            }
        }
    }

    fn known_image(&self) -> Option<Arc<Image>> {
        let shown = self.shown();
        let name = &shown.task.spec.container.image;
        let known = shown.image.clone();
        known.or_else(|| self.tools.images.get(name).ok())
    }

    async fn attach(&mut self, task: &Task) -> Result<(), StepError> {
        if self.attached {
            return Ok(());
        }
        let netns = self.tools.runtime.netns(self.container.as_str()).await;
        let netns = netns.map_err(StepError::passing)?;
        let endpoints = task.attachments.iter();
        let endpoints = endpoints
            .map(|a| Endpoint {
                network: a.network.to_string(),
                addr: a.addr,
            })
            .collect();
        let group = ContainerEndpoints {
            owner: self.container.to_string(),
            endpoints,
            names: BTreeMap::new(),
            dns: nameservers(task),
        };
        self.tools
            .datapath
            .attach(netns, group)
            .await
            .map_err(StepError::passing)?;
        self.attached = true;
        self.detached = false;
        Ok(())
    }

    async fn start(&mut self) -> Result<(), StepError> {
        match self.tools.runtime.start(self.container.as_str()).await {
            Ok(_started) => Ok(()),
            // The user's program can't be run, and that is the task's end.
            Err(error @ StartError::Exec { .. }) => {
                self.enter(TaskState::Failed, "starting", error_chain(&error))
                    .await
            }
            Err(error) => Err(StepError::passing(error)),
        }
    }

    /// Stop signal, grace, SIGKILL. Should the agent be restarted meanwhile, the grace starts again.
    async fn stop(&self) -> Result<(), StepError> {
        let id = self.container.as_str();
        let runtime = &self.tools.runtime;
        let (signal, grace) = self.stop_policy();
        info!(
            signal = signal.as_raw(),
            grace_s = grace.as_secs(),
            "stopping the task"
        );
        runtime
            .signal(id, signal)
            .await
            .map_err(StepError::passing)?;
        if let Ok(exit) = time::timeout(grace, runtime.wait(id)).await {
            exit.map_err(StepError::passing)?;
            return Ok(());
        }
        warn!(
            grace_s = grace.as_secs(),
            "the task did not stop in time and is killed"
        );
        runtime.kill(id).await.map_err(StepError::passing)?;
        runtime.wait(id).await.map_err(StepError::passing)?;
        Ok(())
    }

    fn stop_policy(&self) -> (Signal, Duration) {
        let image = self.known_image();
        let shown = self.shown();
        let spec = &shown.task.spec.container;
        let of_image = image.and_then(|i| i.config.oci().config().as_ref()?.stop_signal().clone());
        let named = Some(spec.stop_signal.clone())
            .filter(|name| !name.is_empty())
            .or(of_image);
        let number = named.as_deref().and_then(signal::number);
        let signal = number
            .and_then(Signal::from_named_raw)
            .unwrap_or(Signal::TERM);
        (signal, spec.stop_grace)
    }

    async fn delete(&mut self) -> Result<(), StepError> {
        self.detach().await;
        self.tools
            .runtime
            .delete(self.container.as_str())
            .await
            .map_err(StepError::passing)?;
        let (volumes, container) = (self.tools.volumes.clone(), self.container);
        let remove = move || volumes.remove_owned(|owner| *owner == container);
        let errors = tokio::task::spawn_blocking(remove).await;
        let errors = errors.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        if errors.is_empty() {
            return Ok(());
        }
        let errors: Vec<String> = errors.iter().map(error_chain).collect();
        Err(StepError::Passing(errors.join("; ")))
    }

    /// Gives the task's addresses up, before anybody is told that it has ended.
    async fn detach(&mut self) {
        self.attached = false;
        if std::mem::replace(&mut self.detached, true) {
            return;
        }
        let attachments = self.shown().task.attachments.clone();
        for attachment in attachments {
            let (network, addr) = (attachment.network, attachment.addr);
            let owner = self.container.as_str();
            let detached = self.tools.datapath.detach(network.as_str(), addr, owner);
            if let Err(error) = detached.await {
                warn!(error = error_chain(&error), %network, %addr, "endpoint not detached");
            }
        }
    }

    /// The task can't be brought to run here; a manager decides what comes instead.
    fn give_up(&self, error: String) {
        let state = self.status().state;
        if state.is_terminal() {
            return;
        }
        let ended = if state >= TaskState::Starting {
            TaskState::Failed
        } else {
            TaskState::Rejected
        };
        self.report(ended, "preparing", error, None);
    }

    /// Moves the observed state up and tells the manager.
    async fn enter(
        &mut self,
        state: TaskState,
        message: &str,
        err: String,
    ) -> Result<(), StepError> {
        let seen = self.tools.runtime.state(self.container.as_str()).await;
        let seen = seen.map_err(StepError::passing)?;
        let container = seen.map(|seen| self.container_status(&seen.phase));
        if state.is_terminal() {
            self.detach().await;
        }
        self.report(state, message, err, container);
        Ok(())
    }

    fn container_status(&self, phase: &Phase) -> ContainerStatus {
        let (pid, exit_code) = match phase {
            Phase::Created { pid } => (*pid, 0),
            Phase::Running(started) => (started.pid, 0),
            Phase::Exited(exit) => (0, exit.code),
        };
        ContainerStatus {
            id: self.container,
            pid,
            exit_code,
        }
    }

    fn report(
        &self,
        state: TaskState,
        message: &str,
        err: String,
        container: Option<ContainerStatus>,
    ) {
        let from = self.status().state;
        info!(state.from = %from, state.to = %state, err, "task state changed");
        let message = message.to_owned();
        let at = clock::now();
        let status = TaskStatus {
            state,
            at,
            message,
            err,
            container,
            ports: Vec::new(),
        };
        self.show(|shown| shown.status = status.clone());
        self.tools.outbox.put(self.id, status);
    }

    fn show(&self, edit: impl FnOnce(&mut Shown)) {
        edit(&mut self.shown());
        self.changed.send_modify(|count| *count += 1);
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> TaskStatus {
        self.shown().status.clone()
    }
}

/// Ends when a monitor has seen something new.
async fn health_change(monitor: Option<&mut Monitor>) {
    let ended = match monitor {
        Some(monitor) => monitor.health.changed().await.is_err(),
        None => true,
    };
    if ended {
        std::future::pending::<()>().await;
    }
}

/// Ends at `when`, if there is such a time.
async fn until(when: Option<time::Instant>) {
    match when {
        Some(when) => time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn nameservers(task: &Task) -> Option<Vec<SocketAddr>> {
    let servers = task.spec.container.dns.nameservers.iter();
    let servers: Vec<SocketAddr> = servers
        .filter_map(|server| server.parse::<IpAddr>().ok())
        .map(|addr| SocketAddr::new(addr, 53))
        .collect();
    (!servers.is_empty()).then_some(servers)
}
