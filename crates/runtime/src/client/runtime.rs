//! The handle.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::Stream as AsyncStream;
use oci_spec::runtime::Spec;

use super::connection::{Connection, Disconnected};
use super::error::{
    CreateError, DeleteError, LogError, OpenError, OperationError, SignalError, StartError,
    WaitError,
};
use super::logs::{self, LogLine, LogOptions};
use crate::paths::Paths;
use crate::plan::Plan;
use crate::protocol::{Failure, PROTOCOL, Reply, Request, build_of};
use crate::sys::process::pidfd_exit_status;
use crate::{
    ContainerFile, ContainerState, EtcFiles, ExitStatus, LogConfig, Phase, Rootfs, SeccompFilter,
    Signal, Started,
};

/// For how long a request is tried again on new connections.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest path a unix socket can have (unix(7)), without its final NUL.
const SOCKET_PATH_LIMIT: usize = 107;

/// Where a runtime keeps its things.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Sockets, FIFOs and bundles; a tmpfs, or anything that is empty after a reboot.
    pub exec_root: PathBuf,
    /// Writable layers and logs.
    pub state_root: PathBuf,
    /// The executable that calls [`crate::supervisor_main`] when its first argument is `supervisor`.
    pub supervisor_exe: PathBuf,
    /// The name of the cgroup above the containers'; no two daemons of a machine may share it.
    pub cgroup_parent: String,
}

/// A container to be made.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// 64 lower-case hex digits.
    pub id: String,
    /// Decides everything that is not below. See [`crate::default_spec`].
    pub spec: Spec,
    /// The image's layers.
    pub rootfs: Rootfs,
    /// Docker's user words: ``""``, `user`, `uid`, `user:group`, `uid:gid`. Empty: the numbers of the spec.
    pub user: String,
    /// Supplementary groups, by name or number.
    pub groups: Vec<String>,
    /// `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`.
    pub etc: EtcFiles,
    /// Files of its own, kept nowhere else.
    pub files: Vec<ContainerFile>,
    /// How much output is kept.
    pub log: LogConfig,
    /// A ready filter, such as [`crate::default_seccomp`]'s; or use `linux.seccomp` of the spec, or have none.
    pub seccomp: Option<Arc<SeccompFilter>>,
    /// Run a small init as process 1.
    pub init: bool,
}

/// A container that waits to be started.
#[derive(Debug)]
pub struct Sandbox {
    /// Its first process, in the daemon's pid namespace.
    pub pid: u32,
    /// Its network namespace.
    pub netns: OwnedFd,
}

/// What [`Runtime::delete_keeping`] leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The log files.
    pub log: bool,
    /// The writable layer; a container of the same id created later finds it again.
    pub layer: bool,
}

/// A handle to the node's supervisor; clones share one connection.
#[derive(Clone)]
pub struct Runtime {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    config: RuntimeConfig,
    paths: Paths,
    connection: tokio::sync::Mutex<Option<Arc<Connection>>>,
    supervisor_pid: AtomicU32,
    peer: Mutex<Peer>,
    stopping: AtomicBool,
    trash_number: AtomicU64,
    /// Descriptors of running containers: their exit statuses and unread output outlive a supervisor's death by them.
    held: Mutex<HashMap<String, Held>>,
}

/// What the supervisor last connected to said of itself.
#[derive(Clone, Default, PartialEq, Eq)]
struct Peer {
    protocol: u32,
    build: String,
    /// It can run processes in containers.
    exec: bool,
}

struct Held {
    pidfd: OwnedFd,
    /// Open only so that the kernel keeps what is in them.
    _outputs: Vec<OwnedFd>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Runtime")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// Connects to the living supervisor or starts one, which adopts what a dead one left. A living one of another build goes
    /// on as the configured executable first; its containers do not notice.
    pub async fn open(config: RuntimeConfig) -> Result<Self, OpenError> {
        let runtime = Self::unconnected(config)?;
        runtime.inner.connect().await?;
        runtime.upgrade_if_other().await?;
        Ok(runtime)
    }

    /// A handle that does what [`Self::open`] does when it is first asked something.
    pub fn unconnected(config: RuntimeConfig) -> Result<Self, OpenError> {
        let paths = Paths {
            exec_root: config.exec_root.clone(),
            state_root: config.state_root.clone(),
        };
        check(&config, &paths)?;
        empty_trash(&paths)?;
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                paths,
                connection: tokio::sync::Mutex::new(None),
                supervisor_pid: AtomicU32::new(0),
                peer: Mutex::new(Peer::default()),
                stopping: AtomicBool::new(false),
                trash_number: AtomicU64::new(0),
                held: Mutex::new(HashMap::new()),
            }),
        })
    }

    /// Upgrades a supervisor that is not the configured executable. One that cannot be, and with which we can talk, will do.
    async fn upgrade_if_other(&self) -> Result<(), OpenError> {
        let exe = &self.inner.config.supervisor_exe;
        let peer = self.inner.peer();
        let understood = peer.protocol == PROTOCOL;
        if understood && build_of(exe).is_ok_and(|build| build == peer.build) {
            return Ok(());
        }
        let result = self.upgrade(exe).await;
        match result {
            Ok(()) => tracing::info!(exe = %exe.display(), "supervisor upgraded"),
            Err(error) if understood => {
                tracing::warn!(%error, exe = %exe.display(), "supervisor not upgraded");
            }
            Err(error) => {
                return Err(OpenError::Outdated {
                    theirs: peer.protocol,
                    reason: error.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Makes a container up to, and without, the execution of its program. An id that is already created or running gives
    /// the same sandbox again.
    pub async fn create(&self, request: CreateRequest) -> Result<Sandbox, CreateError> {
        let plan = Plan::new(request)?;
        let id = plan.id.clone();
        let (reply, mut fds) = self.inner.ask(&Request::Create(Box::new(plan))).await?;
        match reply {
            Reply::Created { pid } => {
                let netns = fds.pop().ok_or(OpenError::Protocol(None))?;
                self.inner.hold(id, fds);
                Ok(Sandbox { pid, netns })
            }
            Reply::Failed(Failure::State(text)) => Err(CreateError::State(text)),
            Reply::Failed(failure) => Err(CreateError::Failed(
                OperationError::from_failure(&id, failure).to_string(),
            )),
            _ => Err(OpenError::Protocol(None).into()),
        }
    }

    /// Lets a created container execute its program. Starting a running one again gives the same answer.
    pub async fn start(&self, id: &str) -> Result<Started, StartError> {
        let (reply, _) = self
            .inner
            .ask(&Request::Start { id: id.to_owned() })
            .await
            .map_err(OperationError::from)?;
        match reply {
            Reply::Started(started) => Ok(started),
            Reply::Failed(Failure::Start { message, exit_code }) => {
                self.inner.release(id);
                Err(StartError::Exec { message, exit_code })
            }
            other => Err(unexpected(id, other).into()),
        }
    }

    /// Sends a signal to the container's first process.
    pub async fn signal(&self, id: &str, signal: Signal) -> Result<(), SignalError> {
        self.done(
            id,
            &Request::Signal {
                id: id.to_owned(),
                signal: signal.as_raw(),
            },
        )
        .await
    }

    /// Sends SIGKILL to every process of the container. One that has ended is killed already.
    pub async fn kill(&self, id: &str) -> Result<(), OperationError> {
        self.done(id, &Request::Kill { id: id.to_owned() }).await
    }

    /// Stops every process of the container where it is.
    pub async fn pause(&self, id: &str) -> Result<(), OperationError> {
        self.done(
            id,
            &Request::Freeze {
                id: id.to_owned(),
                frozen: true,
            },
        )
        .await
    }

    /// Lets a paused container go on.
    pub async fn unpause(&self, id: &str) -> Result<(), OperationError> {
        self.done(
            id,
            &Request::Freeze {
                id: id.to_owned(),
                frozen: false,
            },
        )
        .await
    }

    /// All containers, in the order they were made or adopted.
    pub async fn list(&self) -> Result<Vec<ContainerState>, OperationError> {
        match self.inner.ask(&Request::List).await?.0 {
            Reply::States(states) => Ok(states),
            other => Err(unexpected("", other)),
        }
    }

    /// The ids of which there is state on disk (a log, a writable layer) but no container: kept by
    /// [`Self::delete_keeping`], or left by a reboot. Their logs can be read, and [`Self::delete`] removes them.
    pub async fn remains(&self) -> Result<Vec<String>, OperationError> {
        match self.inner.ask(&Request::Remains).await?.0 {
            Reply::Ids(ids) => Ok(ids),
            other => Err(unexpected("", other)),
        }
    }

    /// One container; `None` when there is none of this id.
    pub async fn state(&self, id: &str) -> Result<Option<ContainerState>, OperationError> {
        match self
            .inner
            .ask(&Request::State { id: id.to_owned() })
            .await?
            .0
        {
            Reply::State(state) => Ok(state),
            other => Err(unexpected(id, other)),
        }
    }

    /// Waits until the container has ended, across deaths of the supervisor. One that has ended already is answered at once.
    pub async fn wait(&self, id: &str) -> Result<ExitStatus, WaitError> {
        match self
            .inner
            .ask(&Request::Wait { id: id.to_owned() })
            .await?
            .0
        {
            Reply::Exited(status) => {
                self.inner.release(id);
                Ok(status)
            }
            other => Err(unexpected(id, other)),
        }
    }

    /// The container's network namespace, while its first process lives.
    pub async fn netns(&self, id: &str) -> Result<OwnedFd, OperationError> {
        match self
            .inner
            .ask(&Request::Netns { id: id.to_owned() })
            .await?
        {
            (Reply::Descriptors, mut fds) => fds.pop().ok_or(OpenError::Protocol(None).into()),
            (other, _) => Err(unexpected(id, other)),
        }
    }

    /// Kills and removes the container with all its data. An id that does not exist is deleted already.
    pub async fn delete(&self, id: &str) -> Result<(), DeleteError> {
        self.delete_keeping(id, Keep::default()).await
    }

    /// Kills and removes the container, except for what is to be kept.
    pub async fn delete_keeping(&self, id: &str, keep: Keep) -> Result<(), DeleteError> {
        if crate::plan::check_id(id).is_err() {
            return Err(OperationError::NotFound(id.to_owned()).into());
        }
        self.done(id, &Request::Delete { id: id.to_owned() })
            .await?;
        self.inner.release(id);
        let own = self.inner.paths.container(id);
        let trash = self.inner.paths.trash();
        let number = self.inner.trash_number.fetch_add(1, Ordering::Relaxed);
        let aside = trash.join(format!("{id}.{}.{number}", std::process::id()));
        let work = move || remove_state(&own.state, &own.log(), &aside, keep);
        let removed = tokio::task::spawn_blocking(work).await;
        removed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Bytes of the files that the container wrote, each counted once; it may go on writing meanwhile. Blocks.
    pub fn layer_size(&self, id: &str) -> io::Result<u64> {
        tree_size(self.inner.paths.container(id).upper())
    }

    /// The container's output. Following ends when the container has ended and all is read.
    pub fn logs(
        &self,
        id: &str,
        options: LogOptions,
    ) -> impl AsyncStream<Item = Result<LogLine, LogError>> + Send + 'static {
        logs::stream(
            self.clone(),
            self.inner.paths.clone(),
            id.to_owned(),
            options,
        )
    }

    /// The pid of the supervisor last connected to; `None` when it has gone.
    pub async fn supervisor_pid(&self) -> Option<u32> {
        let connected = self
            .inner
            .connection
            .lock()
            .await
            .as_ref()
            .is_some_and(|c| c.is_open());
        connected.then(|| self.inner.supervisor_pid.load(Ordering::Relaxed))
    }

    /// Has the supervisor go on as `exe`, in the same process: it stays the parent of its containers, and no output is lost.
    /// Returns when the new one serves.
    pub async fn upgrade(&self, exe: &Path) -> Result<(), OperationError> {
        let old = self.inner.connect().await?;
        let before = self.inner.peer();
        let request = Request::Upgrade {
            exe: exe.to_path_buf(),
        };
        match old.call(&request).await {
            // The old one's connections end with it.
            Ok((Reply::Done, _)) => old.closed().await,
            Ok((other, _)) => return Err(unexpected("", other)),
            Err(Disconnected) => {}
        }
        // Until the new one listens, connections are refused.
        self.list().await?;
        let after = self.inner.peer();
        match build_of(exe) {
            Ok(build) if build != after.build && before == after => Err(OperationError::Step(
                format!("the supervisor did not become {}", exe.display()),
            )),
            _ => Ok(()),
        }
    }

    /// Ends the supervisor, when no container is left.
    pub async fn shutdown_supervisor(&self) -> Result<(), OperationError> {
        self.inner.stopping.store(true, Ordering::Relaxed);
        let result = self.done("", &Request::Shutdown).await;
        if result.is_err() {
            self.inner.stopping.store(false, Ordering::Relaxed);
        }
        result
    }

    /// Asks once: for what must not be done twice. `None`: the connection broke, and what was asked for may have begun.
    pub(super) async fn ask_once(&self, request: &Request) -> Result<Option<Reply>, OpenError> {
        let connection = self.inner.connect().await?;
        Ok(connection.call(request).await.ok().map(|(reply, _)| reply))
    }

    /// Whether the supervisor last connected to can run processes in containers.
    pub(super) async fn can_exec(&self) -> Result<bool, OpenError> {
        self.inner.connect().await?;
        Ok(self.inner.peer().exec)
    }

    async fn done(&self, id: &str, request: &Request) -> Result<(), OperationError> {
        match self.inner.ask(request).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(id, other)),
        }
    }
}

impl Inner {
    /// Asks until there is an answer: all requests are idempotent, so a broken connection is not an error.
    async fn ask(self: &Arc<Self>, request: &Request) -> Result<(Reply, Vec<OwnedFd>), OpenError> {
        let mut failing_since: Option<Instant> = None;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let attempt = Instant::now();
            match self.connect().await {
                Ok(connection) => match connection.call(request).await {
                    Ok(answer) => return Ok(answer),
                    Err(Disconnected) if self.stopping.load(Ordering::Relaxed) => {
                        return Ok((Reply::Done, Vec::new()));
                    }
                    Err(Disconnected) => {}
                },
                Err(error @ (OpenError::Path { .. } | OpenError::Run { .. })) => return Err(error),
                Err(error) => {
                    tracing::debug!(error = %error, "supervisor not reachable yet");
                    if failing_since.is_some_and(|since| since.elapsed() > PATIENCE) {
                        return Err(error);
                    }
                }
            }
            // A call that lived for a while was not part of a streak of failures.
            if attempt.elapsed() > LONGEST_BACKOFF {
                (failing_since, backoff) = (None, FIRST_BACKOFF);
            }
            if failing_since.get_or_insert(attempt).elapsed() > PATIENCE {
                return Err(OpenError::GaveUp(PATIENCE));
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// The open connection, or a new one to the living or a new supervisor.
    async fn connect(self: &Arc<Self>) -> Result<Arc<Connection>, OpenError> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.is_open()) {
            return Ok(Arc::clone(connection));
        }
        *slot = None;
        let socket = self.paths.socket();
        let connection = match self.dial(&socket).await {
            Err(error) if is_absent(&error) => {
                self.start_supervisor().await?;
                self.dial(&socket).await
            }
            other => other,
        };
        let connection = connection.map_err(|source| OpenError::Connect {
            path: socket,
            source,
        })?;
        self.greet(&connection).await?;
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }

    async fn dial(self: &Arc<Self>, socket: &Path) -> io::Result<Arc<Connection>> {
        let weak = Arc::downgrade(self);
        Connection::open(socket, move || reconnect(weak)).await
    }

    /// Tells the supervisor which ends we saw, and takes descriptors of containers we hold none of.
    async fn greet(&self, connection: &Connection) -> Result<(), OpenError> {
        let gone = |_: Disconnected| OpenError::Protocol(None);
        let exits = {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = |(id, held): (&String, &Held)| {
                Some((id.clone(), pidfd_exit_status(held.pidfd.as_fd())?))
            };
            held.iter().filter_map(ended).collect()
        };
        let (reply, _) = connection
            .call(&Request::Hello { exits })
            .await
            .map_err(gone)?;
        let Reply::Hello {
            pid,
            protocol,
            build,
            exec,
        } = reply
        else {
            return Err(OpenError::Protocol(None));
        };
        self.supervisor_pid.store(pid, Ordering::Relaxed);
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner) = Peer {
            protocol,
            build,
            exec,
        };
        if protocol != PROTOCOL {
            // It is about to be upgraded; what follows is for its successor.
            return Ok(());
        }
        let (reply, _) = connection.call(&Request::List).await.map_err(gone)?;
        let Reply::States(states) = reply else {
            return Err(OpenError::Protocol(None));
        };
        for state in states
            .into_iter()
            .filter(|state| !matches!(state.phase, Phase::Exited(_)))
        {
            if self
                .held
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains_key(&state.id)
            {
                continue;
            }
            let request = Request::Hold {
                id: state.id.clone(),
            };
            // One that ended meanwhile needs no holding.
            if let (Reply::Descriptors, fds) = connection.call(&request).await.map_err(gone)? {
                self.hold(state.id, fds);
            }
        }
        Ok(())
    }

    fn peer(&self) -> Peer {
        let peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        peer.clone()
    }

    fn hold(&self, id: String, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        if let Some(pidfd) = fds.next() {
            let held = Held {
                pidfd,
                _outputs: fds.collect(),
            };
            self.held
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id, held);
        }
    }

    fn release(&self, id: &str) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    /// Runs the executable; it returns when the supervisor, a process of its own session, serves.
    async fn start_supervisor(&self) -> Result<(), OpenError> {
        let config = &self.config;
        let output = tokio::process::Command::new(&config.supervisor_exe)
            .arg("supervisor")
            .arg("--exec-root")
            .arg(&config.exec_root)
            .arg("--state-root")
            .arg(&config.state_root)
            .arg("--cgroup-parent")
            .arg(&config.cgroup_parent)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .await
            .map_err(|source| OpenError::Run {
                exe: config.supervisor_exe.clone(),
                source,
            })?;
        if output.status.success() {
            tracing::info!("supervisor started");
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // Somebody else was faster: theirs is as good as ours.
        if text.contains("another supervisor holds") {
            return Ok(());
        }
        Err(OpenError::Refused(if text.is_empty() {
            output.status.to_string()
        } else {
            text
        }))
    }
}

/// Has a new supervisor as soon as one dies, since output waits for it; until it works, or nobody holds the runtime.
fn reconnect(inner: Weak<Inner>) {
    tokio::spawn(async move {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let Some(inner) = inner.upgrade() else { return };
            if inner.stopping.load(Ordering::Relaxed) {
                return;
            }
            match inner.connect().await {
                Ok(_) => return,
                Err(error) => tracing::warn!(error = %error, "no supervisor; trying again"),
            }
            drop(inner);
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    });
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn check(config: &RuntimeConfig, paths: &Paths) -> Result<(), OpenError> {
    let unusable = |path: &Path, reason| {
        Err(OpenError::Path {
            path: path.to_path_buf(),
            reason,
        })
    };
    for path in [
        &config.exec_root,
        &config.state_root,
        &config.supervisor_exe,
    ] {
        if !path.is_absolute() {
            return unusable(path, "it is not absolute");
        }
    }
    if paths.socket().as_os_str().len() > SOCKET_PATH_LIMIT {
        return unusable(
            &config.exec_root,
            "a socket below it would have a path of more than 107 bytes; choose a shorter one",
        );
    }
    let parent = &config.cgroup_parent;
    if parent.is_empty() || parent.contains('/') || parent.starts_with('.') {
        return unusable(Path::new(parent), "a cgroup parent is one name, not a path");
    }
    Ok(())
}

/// Removes what a deletion that was cut short had put aside.
fn empty_trash(paths: &Paths) -> Result<(), OpenError> {
    let trash = paths.trash();
    match std::fs::remove_dir_all(&trash) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(OpenError::Prepare {
            path: trash,
            source,
        }),
        _ => Ok(()),
    }
}

/// Bytes below a directory, as the lengths of files say.
fn tree_size(root: PathBuf) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut open = vec![root];
    let mut linked = HashSet::new();
    let mut bytes = 0;
    while let Some(directory) = open.pop() {
        let entries = match std::fs::read_dir(&directory) {
            // It may have been removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries.flatten() {
            // Of a link itself, not of what it points to.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                open.push(entry.path());
            } else if metadata.nlink() == 1 || linked.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.len();
            }
        }
    }
    Ok(bytes)
}

/// Removes a container's data: set aside by one rename first, so that a crash leaves nothing half there.
fn remove_state(state: &Path, log: &Path, aside: &Path, keep: Keep) -> Result<(), DeleteError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| DeleteError::Remove { path, source }
    };
    let put_aside = |from: &Path, to: &Path| match std::fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    std::fs::create_dir_all(aside).map_err(failed(aside))?;
    if keep == Keep::default() {
        put_aside(state, &aside.join("state")).map_err(failed(state))?;
    } else {
        let layer = ["upper", "work"].iter().filter(|_| !keep.layer);
        for name in layer.chain(&["etc"]) {
            let path = state.join(name);
            put_aside(&path, &aside.join(name)).map_err(failed(&path))?;
        }
        if !keep.log {
            for n in 0.. {
                let path = crate::paths::rotated(log, n);
                if !path.exists() {
                    break;
                }
                std::fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
    }
    std::fs::remove_dir_all(aside).map_err(failed(aside))
}

pub(super) fn unexpected(id: &str, reply: Reply) -> OperationError {
    match reply {
        Reply::Failed(failure) => OperationError::from_failure(id, failure),
        _ => OpenError::Protocol(None).into(),
    }
}
