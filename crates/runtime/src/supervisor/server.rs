//! The supervisor's event loop: connections, ended processes, output, reports.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::container::{Container, Stage};
use super::exec::{self, Exec};
use super::journal::{Journal, Unfinished};
use super::pool::Pool;
use super::{adopt, create, note, protect};
use crate::Stream;
use crate::cgroup::CgroupHost;
use crate::paths::Paths;
use crate::plan::Rlimit;
use crate::protocol::{Decoder, Reply, Request, build_of, encode};
use crate::sys::fdpass;
use crate::sys::process;

/// How often that is asked, and adopted containers without a process are looked at.
const STATUS_INTERVAL: Duration = Duration::from_millis(20);
/// After how long what failed for want of something (descriptors, room) is tried again.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What an event is about. Containers and connections have numbers that are never used again.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Listener,
    Connection(u64),
    Process(u64),
    Output(u64, Stream),
    Report(u64),
    Exec(u64, exec::Part),
    Sandbox(u64),
}

impl Source {
    fn pack(self) -> u64 {
        let (kind, key) = match self {
            Self::Listener => (0, 0),
            Self::Connection(key) => (1, key),
            Self::Process(key) => (2, key),
            Self::Output(key, Stream::Stdout) => (3, key),
            Self::Output(key, Stream::Stderr) => (4, key),
            Self::Report(key) => (5, key),
            Self::Exec(key, exec::Part::Process) => (6, key),
            Self::Exec(key, exec::Part::Output) => (7, key),
            Self::Exec(key, exec::Part::Report) => (8, key),
            Self::Sandbox(key) => (9, key),
        };
        key << 4 | kind
    }

    fn unpack(data: u64) -> Self {
        let key = data >> 4;
        match data & 15 {
            0 => Self::Listener,
            1 => Self::Connection(key),
            2 => Self::Process(key),
            3 => Self::Output(key, Stream::Stdout),
            4 => Self::Output(key, Stream::Stderr),
            5 => Self::Report(key),
            6 => Self::Exec(key, exec::Part::Process),
            7 => Self::Exec(key, exec::Part::Output),
            8 => Self::Exec(key, exec::Part::Report),
            _ => Self::Sandbox(key),
        }
    }
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    /// Frames not yet sent, with the descriptors that go with the first byte of each.
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

pub(super) struct Server {
    pub(super) paths: Paths,
    pub(super) cgroups: CgroupHost,
    /// The limit of open files that we were started with, which containers get.
    pub(super) descriptors: Rlimit,
    pub(super) epoll: OwnedFd,
    listener: Option<UnixListener>,
    connections: HashMap<u64, Connection>,
    pub(super) containers: BTreeMap<u64, Container>,
    pub(super) by_id: HashMap<String, u64>,
    /// Later processes of containers.
    pub(super) execs: BTreeMap<u64, Exec>,
    /// Containers of a dead supervisor that could not be adopted yet, and when that is tried again.
    pub(super) postponed: BTreeSet<String>,
    adopt_at: Instant,
    pub(super) pool: Pool,
    pub(super) next_key: u64,
    pub(super) journal: Journal,
    unfinished: Option<Unfinished>,
    pub(super) stopping: bool,
    /// The executable to go on as.
    pub(super) upgrade: Option<PathBuf>,
    /// Kept open while we are the supervisor; `None` when it was inherited over an upgrade.
    pub(super) lock: Option<fs::File>,
    /// Which build we are; see [`crate::protocol::build_of`].
    pub(super) build: String,
    /// Our own arguments, for that.
    pub(super) arguments: Vec<OsString>,
}

impl Server {
    pub(super) fn new(paths: Paths, cgroups: CgroupHost, descriptors: Rlimit) -> io::Result<Self> {
        let (journal, unfinished) = Journal::open(&paths)?;
        Ok(Self {
            paths,
            cgroups,
            descriptors,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            listener: None,
            connections: HashMap::new(),
            containers: BTreeMap::new(),
            by_id: HashMap::new(),
            execs: BTreeMap::new(),
            postponed: BTreeSet::new(),
            adopt_at: Instant::now(),
            pool: Pool::default(),
            next_key: 1,
            journal,
            unfinished,
            stopping: false,
            upgrade: None,
            lock: None,
            build: build_of(Path::new("/proc/self/exe"))?,
            arguments: Vec::new(),
        })
    }

    /// Takes over the containers of a dead supervisor, its last batch of output first.
    pub(super) fn adopt(&mut self) -> io::Result<()> {
        let found = adopt::adopt(&self.paths, &self.cgroups)?;
        for error in found.errors {
            note(&error);
        }
        self.postponed = found.postponed;
        self.adopt_at = Instant::now() + RETRY_INTERVAL;
        let mut unfinished = self.unfinished.take();
        for mut container in found.containers {
            if let Some(batch) = unfinished.take_if(|batch| batch.id() == container.record.id)
                && let Err(error) = self.journal.finish(batch, &mut container.output)
            {
                note(&format!(
                    "finish the log of {}: {error}",
                    container.record.id
                ));
            }
            self.take_over(container);
        }
        self.journal.close();
        Ok(())
    }

    /// Goes on with a container where a dead supervisor left it.
    fn take_over(&mut self, container: Container) {
        let (id, stage) = (container.record.id.clone(), container.stage);
        match self.insert(container) {
            Ok(key) => {
                note(&format!("adopted {id} ({stage:?})"));
                if stage == Stage::Starting {
                    // Whether the starting byte was written is not known; a second one is never read.
                    self.release(key);
                }
            }
            Err(rejected) => {
                note(&format!("follow {id}: {}", rejected.error));
                self.postponed.insert(id);
            }
        }
    }

    /// Tries to adopt again what could not be adopted before.
    fn adopt_postponed(&mut self) {
        if self.postponed.is_empty() || Instant::now() < self.adopt_at {
            return;
        }
        self.adopt_at = Instant::now() + RETRY_INTERVAL;
        for id in std::mem::take(&mut self.postponed) {
            match adopt::adopt_one(&id, &self.paths, &self.cgroups) {
                Ok(Some(container)) => self.take_over(container),
                Ok(None) => {
                    for error in adopt::discard(&id, &self.paths, &self.cgroups) {
                        note(&error);
                    }
                }
                // Was noted the first time.
                Err(_) => {
                    self.postponed.insert(id);
                }
            }
        }
    }

    pub(super) fn listen(&mut self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        epoll::add(
            &self.epoll,
            &listener,
            data(Source::Listener),
            epoll::EventFlags::IN,
        )?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Serves until told to stop.
    pub(super) fn run(&mut self) {
        let mut events = Vec::with_capacity(128);
        while !(self.stopping && self.connections.values().all(|c| c.outgoing.is_empty())) {
            events.clear();
            let timeout = self.patience().map(|patience| rustix::event::Timespec {
                tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(patience.subsec_nanos()),
            });
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    note(&format!("epoll_wait: {error}"));
                    return;
                }
            }
            for event in &events {
                let flags = event.flags;
                self.dispatch(Source::unpack(event.data.u64()), flags);
            }
            self.look_for_lost_statuses();
            self.retry_outputs();
            self.look_after_execs();
            self.adopt_postponed();
            self.tend_pool();
            self.upgrade_if_asked();
        }
        self.retire_pool();
        let _ = fs::remove_file(self.paths.socket());
        self.cgroups.remove_parent();
    }

    /// How long to wait for events; `None`: for ever.
    fn patience(&self) -> Option<Duration> {
        let containers = self.patience_with_containers();
        let execs = self.patience_with_execs();
        let pool = self.patience_with_pool();
        [containers, execs, pool].into_iter().flatten().min()
    }

    fn patience_with_containers(&self) -> Option<Duration> {
        let mut containers = self.containers.values();
        if containers.any(|container| container.lost_since.is_some()) {
            return Some(STATUS_INTERVAL);
        }
        let mut containers = self.containers.values();
        let retrying = containers.any(|container| container.retries != [None; 2]);
        (retrying || !self.postponed.is_empty()).then_some(RETRY_INTERVAL)
    }

    /// Executes the new executable, once nothing is half done: records and partial lines are on disk, the children stay
    /// ours, and every descriptor closes by itself. Returns only when that failed; then we go on as we are.
    fn upgrade_if_asked(&mut self) {
        let making = self
            .containers
            .values()
            .any(|container| container.stage == Stage::Making);
        let unsent = self.connections.values().any(|c| !c.outgoing.is_empty());
        // They are being killed; each is our child, whom nobody else could wait for.
        let executing = !self.execs.is_empty();
        if making || unsent || executing {
            return;
        }
        let Some(exe) = self.upgrade.take() else {
            return;
        };
        let c_string = |text: &OsString| CString::new(text.as_encoded_bytes()).ok();
        let words = [
            exe.clone().into_os_string(),
            "supervisor".into(),
            super::RESUME.into(),
        ];
        let args: Option<Vec<CString>> =
            words.iter().chain(&self.arguments).map(c_string).collect();
        if let Some(args) = args {
            note(&format!("going on as {}", exe.display()));
            self.retire_pool();
            // The lock belongs to the process, not to the program: nobody else shall get it in between.
            if let Some(lock) = &self.lock {
                let _ = rustix::io::fcntl_setfd(lock, rustix::io::FdFlags::empty());
            }
            // The next one raises it again, and must know what it was.
            let own = process::rlimit(process::RLIMIT_NOFILE);
            let error = protect::execute(&exe, &args, || {
                let Rlimit { soft, hard, .. } = self.descriptors;
                let _ = process::set_rlimit(process::RLIMIT_NOFILE, soft, hard);
            });
            if let Ok((soft, hard)) = own {
                let _ = process::set_rlimit(process::RLIMIT_NOFILE, soft, hard);
            }
            note(&format!("execute {}: {error}", exe.display()));
        }
        // Who asked waits for the end of its connection.
        let connections: Vec<u64> = self.connections.keys().copied().collect();
        for key in connections {
            self.disconnect(key);
        }
    }

    fn dispatch(&mut self, source: Source, flags: epoll::EventFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Connection(key) => self.serve(key, flags),
            Source::Process(key) => self.process_ended(key),
            Source::Output(key, stream) => self.output_ready(key, stream),
            Source::Report(key) => self.report_ready(key),
            Source::Exec(key, part) => self.exec_ready(key, part),
            Source::Sandbox(key) => self.sandbox_event(key),
        }
    }

    /// Registers a container's descriptors and gives it a key.
    pub(super) fn insert(&mut self, container: Container) -> Result<u64, Rejected> {
        let key = self.next_key;
        self.next_key += 1;
        if let Err(error) = self.watch(key, &container) {
            let container = Box::new(container);
            return Err(Rejected { container, error });
        }
        self.by_id.insert(container.record.id.clone(), key);
        self.containers.insert(key, container);
        Ok(key)
    }

    fn watch(&self, key: u64, container: &Container) -> io::Result<()> {
        let input = epoll::EventFlags::IN;
        let add = |fd: &OwnedFd, source| epoll::add(&self.epoll, fd, data(source), input);
        if let Some(pidfd) = &container.pidfd {
            add(pidfd, Source::Process(key))?;
        }
        for stream in Stream::BOTH {
            if let Some(fifo) = &container.fifos[stream as usize] {
                add(fifo, Source::Output(key, stream))?;
            }
        }
        if let Some(report) = &container.report {
            add(report, Source::Report(key))?;
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) {
            let key = self.next_key;
            self.next_key += 1;
            let added = stream.set_nonblocking(true).and_then(|()| {
                let flags = epoll::EventFlags::IN;
                Ok(epoll::add(
                    &self.epoll,
                    &stream,
                    data(Source::Connection(key)),
                    flags,
                )?)
            });
            match added {
                Ok(()) => {
                    let connection = Connection {
                        stream,
                        decoder: Decoder::default(),
                        outgoing: VecDeque::new(),
                    };
                    self.connections.insert(key, connection);
                }
                Err(error) => note(&format!("accept: {error}")),
            }
        }
    }

    fn serve(&mut self, key: u64, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT) {
            self.flush(key);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let mut buffer = [0; 16 * 1024];
        let mut fds = Vec::new();
        loop {
            match fdpass::receive(connection.stream.as_fd(), &mut buffer, &mut fds) {
                Ok(0) => {
                    self.disconnect(key);
                    return;
                }
                Ok(count) => connection.decoder.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.disconnect(key);
                    return;
                }
            }
        }
        while let Some(connection) = self.connections.get_mut(&key) {
            match connection.decoder.next::<Request>() {
                Ok(Some((frame, _))) => self.request((key, frame.sequence), frame.body),
                Ok(None) => return,
                Err(error) => {
                    note(&create::chain(&error));
                    self.disconnect(key);
                }
            }
        }
    }

    /// Forgets a connection, and who waits behind it. A deletion somebody asked for goes on all the same.
    fn disconnect(&mut self, key: u64) {
        self.connections.remove(&key);
        for container in self.containers.values_mut() {
            container.waiting.retain(|asker| asker.0 != key);
        }
        self.kill_execs(|exec| exec.asker.0 == key);
    }

    /// Answers a request; the asker may be gone.
    pub(super) fn reply(&mut self, asker: (u64, u64), reply: &Reply, fds: Vec<OwnedFd>) {
        if let Some(connection) = self.connections.get_mut(&asker.0) {
            connection
                .outgoing
                .push_back((encode(asker.1, fds.len(), reply), fds));
            self.flush(asker.0);
        }
    }

    pub(super) fn reply_all(&mut self, askers: Vec<(u64, u64)>, reply: &Reply) {
        for asker in askers {
            self.reply(asker, reply, Vec::new());
        }
    }

    fn flush(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        while let Some((bytes, fds)) = connection.outgoing.front_mut() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match fdpass::send(connection.stream.as_fd(), bytes, &borrowed) {
                Ok(count) => {
                    bytes.drain(..count);
                    fds.clear();
                    if bytes.is_empty() {
                        connection.outgoing.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.disconnect(key);
                    return;
                }
            }
        }
        let mut flags = epoll::EventFlags::IN;
        if !connection.outgoing.is_empty() {
            flags |= epoll::EventFlags::OUT;
        }
        let _ = epoll::modify(
            &self.epoll,
            &connection.stream,
            data(Source::Connection(key)),
            flags,
        );
    }
}

/// A container whose descriptors could not be registered, and why.
pub(super) struct Rejected {
    pub(super) container: Box<Container>,
    pub(super) error: io::Error,
}

pub(super) fn sandbox_data(key: u64) -> epoll::EventData {
    data(Source::Sandbox(key))
}

pub(super) fn exec_data(key: u64, part: exec::Part) -> epoll::EventData {
    data(Source::Exec(key, part))
}

pub(super) fn data(source: Source) -> epoll::EventData {
    epoll::EventData::new_u64(source.pack())
}
