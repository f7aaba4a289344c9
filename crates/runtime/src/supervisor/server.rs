//! The supervisor's event loop: connections, ended processes, output, reports.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::event::epoll;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::container::{Container, Stage};
use super::exec::{self, Exec};
use super::journal::{Journal, PumpError, Pumped, Unfinished};
use super::{adopt, create, note, protect};
use crate::cgroup::CgroupHost;
use crate::child::{ChildFailure, READY};
use crate::paths::Paths;
use crate::plan::Rlimit;
use crate::protocol::{Decoder, Failure, Reply, Request, build_of, encode};
use crate::sys::fdpass;
use crate::sys::process::{self, pidfd_exit_status};
use crate::{ExitStatus, Stream};

/// How long an adopted process's status may take to become known: it must be reaped by whoever inherited it.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// How often that is asked, and adopted containers without a process are looked at.
const STATUS_INTERVAL: Duration = Duration::from_millis(20);
/// After how long what failed for want of something (descriptors, room) is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often a container's log may be said to be in trouble.
const NOTE_INTERVAL: Duration = Duration::from_mins(1);
/// The exit code of a container that nobody saw end.
const UNKNOWN_CODE: i32 = 255;

/// What an event is about. Containers and connections have numbers that are never used again.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Connection(u64),
    Process(u64),
    Output(u64, Stream),
    Report(u64),
    Exec(u64, exec::Part),
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
            _ => Self::Exec(key, exec::Part::Report),
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
    pub(super) next_key: u64,
    journal: Journal,
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
            self.upgrade_if_asked();
        }
        let _ = fs::remove_file(self.paths.socket());
        self.cgroups.remove_parent();
    }

    /// How long to wait for events; `None`: for ever.
    fn patience(&self) -> Option<Duration> {
        let containers = self.patience_with_containers();
        let execs = self.patience_with_execs();
        [containers, execs].into_iter().flatten().min()
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

    fn output_ready(&mut self, key: u64, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let Some(fifo) = &container.fifos[stream as usize] else {
            return;
        };
        match self
            .journal
            .pump(fifo.as_fd(), stream, &mut container.output)
        {
            Ok(Pumped::Bytes(_) | Pumped::Empty) => {}
            // All writers are gone though the process lives: a program that closed its output. The FIFO can be opened again
            // through nobody, so there is nothing more to come.
            Ok(Pumped::End) => self.close_output(key, stream),
            Err(PumpError::Log(_, error)) => {
                log_trouble(&mut container.log_noted, &container.record.id, &error);
            }
            Err(PumpError::Stuck(error)) => {
                // It stays readable: without a pause it would be tried again without end.
                let _ = epoll::delete(&self.epoll, fifo);
                container.retries[stream as usize] = Some(Instant::now() + RETRY_INTERVAL);
                log_trouble(&mut container.log_noted, &container.record.id, &error);
            }
        }
    }

    /// Listens again to the streams whose pause is over.
    fn retry_outputs(&mut self) {
        let now = Instant::now();
        for (key, container) in &mut self.containers {
            for stream in Stream::BOTH {
                let retry = &mut container.retries[stream as usize];
                if retry.is_none_or(|at| now < at) {
                    continue;
                }
                *retry = None;
                if let Some(fifo) = &container.fifos[stream as usize] {
                    let source = data(Source::Output(*key, stream));
                    let added = epoll::add(&self.epoll, fifo, source, epoll::EventFlags::IN);
                    if let Err(error) = added {
                        *retry = Some(now + RETRY_INTERVAL);
                        log_trouble(
                            &mut container.log_noted,
                            &container.record.id,
                            &error.into(),
                        );
                    }
                }
            }
        }
    }

    fn close_output(&mut self, key: u64, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        if let Some(fifo) = container.fifos[stream as usize].take() {
            let _ = epoll::delete(&self.epoll, &fifo);
        }
        container.retries[stream as usize] = None;
        if let Err(error) = self.journal.flush(stream, &mut container.output) {
            log_trouble(&mut container.log_noted, &container.record.id, &error);
        }
    }

    /// Reads what the container's process says of itself before it is the program.
    fn report_ready(&mut self, key: u64) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let Some(report) = &container.report else {
            return;
        };
        let mut buffer = [0; 4096];
        let ended = loop {
            match rustix::io::read(report, &mut buffer) {
                Ok(0) => break true,
                Ok(count) => container.reported.extend_from_slice(&buffer[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break false,
            }
        };
        if container.stage == Stage::Making && container.reported.first() == Some(&READY) {
            container.reported.remove(0);
            self.made(key);
        } else if ended {
            self.close_report(key);
            let Some(container) = self.containers.get_mut(&key) else {
                return;
            };
            // With a failure the process ends itself; its death is what answers the askers.
            if container.stage == Stage::Starting && container.reported.is_empty() {
                container.stage = Stage::Running;
                let askers = std::mem::take(&mut container.starting);
                if let Some(started) = container.started() {
                    self.reply_all(askers, &Reply::Started(started));
                }
            }
        }
    }

    fn close_report(&mut self, key: u64) {
        if let Some(report) = self
            .containers
            .get_mut(&key)
            .and_then(|container| container.report.take())
        {
            let _ = epoll::delete(&self.epoll, &report);
        }
    }

    fn made(&mut self, key: u64) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        container.stage = Stage::Created;
        container.record.ready = true;
        if let Err(error) = container.save() {
            note(&format!("record of {}: {error}", container.record.id));
        }
        for asker in std::mem::take(&mut container.creating) {
            self.reply_created(asker, key);
        }
    }

    fn process_ended(&mut self, key: u64) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let Some(pidfd) = &container.pidfd else {
            return;
        };
        let status = if container.is_child {
            match waitid(
                WaitId::PidFd(pidfd.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            ) {
                Ok(Some(status)) => status
                    .exit_status()
                    .or_else(|| status.terminating_signal().map(|signal| 128 + signal)),
                Ok(None) => return,
                Err(error) => {
                    note(&format!("wait for {}: {error}", container.record.id));
                    Some(UNKNOWN_CODE)
                }
            }
        } else {
            pidfd_exit_status(pidfd.as_fd()).map(code_of_wait_status)
        };
        if let Some(code) = status {
            self.ended(key, code, None);
        } else {
            // Not readable again until it is asked: the timer does that.
            let _ = epoll::delete(&self.epoll, pidfd);
            container.lost_since.get_or_insert_with(Instant::now);
        }
    }

    /// Asks again for the statuses of adopted processes, and gives up after a while.
    fn look_for_lost_statuses(&mut self) {
        let mut found = Vec::new();
        for (key, container) in &self.containers {
            let Some(since) = container.lost_since else {
                continue;
            };
            let status = container
                .pidfd
                .as_ref()
                .and_then(|pidfd| pidfd_exit_status(pidfd.as_fd()));
            match status {
                Some(status) => found.push((*key, code_of_wait_status(status), None)),
                None if since.elapsed() > STATUS_PATIENCE => {
                    let reason = "ended while no supervisor was there to see it".to_owned();
                    found.push((*key, UNKNOWN_CODE, Some(reason)));
                }
                None => {}
            }
        }
        for (key, code, reason) in found {
            self.ended(key, code, reason);
        }
    }

    /// Takes the status of a lost container from the daemon, which held its pidfd.
    pub(super) fn told_status(&mut self, id: &str, status: i32) {
        let Some(key) = self.by_id.get(id).copied() else {
            return;
        };
        if self
            .containers
            .get(&key)
            .is_some_and(|container| container.lost_since.is_some())
        {
            self.ended(key, code_of_wait_status(status), None);
        }
    }

    /// The process is gone, and with its pid namespace every other one: nothing writes any more.
    fn ended(&mut self, key: u64, code: i32, reason: Option<String>) {
        self.report_ready(key);
        self.close_report(key);
        for stream in Stream::BOTH {
            self.drain(key, stream);
            self.close_output(key, stream);
        }
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        if let Some(pidfd) = container.pidfd.take() {
            let _ = epoll::delete(&self.epoll, &pidfd);
        }
        container.lost_since = None;
        let failure = serde_json::from_slice::<ChildFailure>(&container.reported).ok();
        let made = container.stage != Stage::Making;
        let was_starting = container.stage == Stage::Starting;
        container.stage = Stage::Exited;
        if !made {
            let message = failure.map_or_else(
                || format!("the container's process ended with code {code} before it was ready"),
                |failure| failure.message,
            );
            return self.creation_failed(key, message);
        }
        let code = failure.as_ref().map_or(code, |failure| failure.exit_code);
        let reason = failure
            .as_ref()
            .map(|failure| failure.message.clone())
            .or(reason);
        let status = ExitStatus {
            code,
            oom_killed: container.cgroup.oom_killed(),
            at: Timestamp::now(),
            reason,
        };
        container.record.exit = Some(status.clone());
        if let Err(error) = container.save() {
            note(&format!("record of {}: {error}", container.record.id));
        }
        // They are of no more use; whatever is still busy goes when the container is deleted.
        let _ = container.cgroup.remove(Duration::ZERO);
        let starting = std::mem::take(&mut container.starting);
        let waiting = std::mem::take(&mut container.waiting);
        let started = container.started();
        match (failure, started) {
            (Some(failure), _) => {
                let failure = Failure::Start {
                    message: failure.message,
                    exit_code: failure.exit_code,
                };
                self.reply_all(starting, &Reply::Failed(failure));
            }
            (None, Some(started)) if was_starting => {
                self.reply_all(starting, &Reply::Started(started));
            }
            (None, _) => {
                let failure =
                    Failure::State("the container was killed before it started".to_owned());
                self.reply_all(starting, &Reply::Failed(failure));
            }
        }
        self.reply_all(waiting, &Reply::Exited(status));
        self.delete_if_asked(key);
    }

    /// Takes what an ended container has left in a FIFO: only that, since somebody else may hold it open and go on writing.
    fn drain(&mut self, key: u64, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let Some(fifo) = &container.fifos[stream as usize] else {
            return;
        };
        let mut left = match rustix::io::ioctl_fionread(fifo) {
            Ok(left) => usize::try_from(left).unwrap_or(usize::MAX),
            Err(error) => {
                return log_trouble(
                    &mut container.log_noted,
                    &container.record.id,
                    &error.into(),
                );
            }
        };
        while left > 0 {
            let pumped = self
                .journal
                .pump(fifo.as_fd(), stream, &mut container.output);
            let moved = match pumped {
                Ok(Pumped::Bytes(moved)) => moved,
                Ok(Pumped::Empty | Pumped::End) => return,
                Err(PumpError::Log(moved, error)) => {
                    log_trouble(&mut container.log_noted, &container.record.id, &error);
                    moved
                }
                Err(PumpError::Stuck(error)) => {
                    return log_trouble(&mut container.log_noted, &container.record.id, &error);
                }
            };
            left = left.saturating_sub(moved);
        }
    }

    fn creation_failed(&mut self, key: u64, message: String) {
        let Some(container) = self.containers.remove(&key) else {
            return;
        };
        self.by_id.remove(&container.record.id);
        for error in create::remove(&container.paths, &container.cgroup) {
            note(&error);
        }
        if container.record.made_state {
            let _ = fs::remove_dir_all(&container.paths.state);
        }
        self.reply_all(container.creating, &Reply::Failed(Failure::Step(message)));
        self.reply_all(container.deleting, &Reply::Done);
        self.reply_all(container.waiting, &Reply::Failed(Failure::NotFound));
        self.reply_all(container.starting, &Reply::Failed(Failure::NotFound));
    }

    /// Removes an ended container when somebody asked for that.
    pub(super) fn delete_if_asked(&mut self, key: u64) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        if container.stage != Stage::Exited || container.deleting.is_empty() {
            return;
        }
        let askers = std::mem::take(&mut container.deleting);
        let errors = create::remove(&container.paths, &container.cgroup);
        if errors.is_empty() {
            let id = container.record.id.clone();
            self.containers.remove(&key);
            self.by_id.remove(&id);
            self.reply_all(askers, &Reply::Done);
        } else {
            self.reply_all(askers, &Reply::Failed(Failure::Step(errors.join("; "))));
        }
    }
}

/// A container whose descriptors could not be registered, and why.
pub(super) struct Rejected {
    pub(super) container: Box<Container>,
    pub(super) error: io::Error,
}

/// Notes what is wrong with a container's log, not more often than somebody would read it.
fn log_trouble(noted: &mut Option<Instant>, id: &str, error: &io::Error) {
    let recently = |at: Instant| at.elapsed() < NOTE_INTERVAL;
    if noted.is_some_and(recently) {
        return;
    }
    *noted = Some(Instant::now());
    note(&format!("log of {id}: {error}"));
}

pub(super) fn exec_data(key: u64, part: exec::Part) -> epoll::EventData {
    data(Source::Exec(key, part))
}

fn data(source: Source) -> epoll::EventData {
    epoll::EventData::new_u64(source.pack())
}

/// A status as waitpid(2) gives it, as an exit code.
fn code_of_wait_status(status: i32) -> i32 {
    let signal = status & 0x7f;
    if signal == 0 {
        status >> 8 & 0xff
    } else {
        128 + signal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_become_codes() {
        assert_eq!(code_of_wait_status(0x2a00), 42);
        assert_eq!(code_of_wait_status(9), 137);
        assert_eq!(code_of_wait_status(0x8b), 139);
    }
}
