//! Later processes of containers: made, listened to, killed in time, and never left behind.
//!
//! Each is a child of the supervisor in a cgroup of its own below the container's. Its answer is sent when its process has
//! been waited for and its group is empty: whatever it started has ended by then. Those of a dead supervisor are killed by
//! the next one through their groups (`adopt`); an upgrade waits until all are gone, since a child that nobody waits for
//! would keep its container's pid namespace from ending.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::container::{Asker, Stage};
use super::server::{Server, exec_data};
use super::{create, note};
use crate::cgroup::Cgroup;
use crate::child::{self, ChildFailure, Entry};
use crate::plan::{Confinement, ExecPlan};
use crate::protocol::{Executed, Failure, Reply};
use crate::sys::process::{self, Cloned, clone_child};

/// How often the group of an ended process is looked at until it is empty.
const EMPTY_INTERVAL: Duration = Duration::from_millis(2);
/// How long it may take; killed processes that hang in the kernel are not waited for longer.
const EMPTY_PATIENCE: Duration = Duration::from_secs(2);
/// How much is read at once, so that one loud process keeps nobody waiting.
const READ: usize = 64 * 1024;
/// The most output that is kept, whatever is asked for.
const OUTPUT_LIMIT: usize = 16 << 20;

/// What an event is about.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Process,
    Output,
    Report,
}

/// One process and what it is known by.
pub(super) struct Exec {
    pub(super) asker: Asker,
    /// Only the part that is its own.
    group: Cgroup,
    pidfd: OwnedFd,
    output: Option<OwnedFd>,
    captured: Vec<u8>,
    limit: usize,
    truncated: bool,
    report: Option<OwnedFd>,
    reported: Vec<u8>,
    /// When it is killed.
    deadline: Option<Instant>,
    timed_out: bool,
    /// Killed because nobody is to have its answer.
    interrupted: bool,
    /// Its exit code and when it ended; then only its group is waited for.
    ended: Option<(i32, Instant)>,
}

impl Exec {
    /// Kills everything of it.
    fn kill(&self) {
        // Covers a child that has not yet joined a v1 group.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        if let Err(error) = self.group.kill() {
            note(&create::chain(&error));
        }
    }

    /// Reads what is there. `false`: there is no writer left, or reading makes no sense any more.
    fn read_output(&mut self) -> bool {
        let Some(output) = &self.output else {
            return false;
        };
        let mut buffer = [0; 4096];
        let mut left = READ;
        while left > 0 {
            match rustix::io::read(output, &mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    let kept = count.min(self.limit - self.captured.len());
                    self.captured.extend_from_slice(&buffer[..kept]);
                    self.truncated |= kept < count;
                    left = left.saturating_sub(count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn read_report(&mut self) -> bool {
        let Some(report) = &self.report else {
            return false;
        };
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(report, &mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.reported.extend_from_slice(&buffer[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
    }

    fn answer(self, code: i32) -> Reply {
        if self.interrupted {
            return Reply::Failed(Failure::Interrupted);
        }
        if !self.timed_out
            && let Ok(failure) = serde_json::from_slice::<ChildFailure>(&self.reported)
        {
            return Reply::Failed(Failure::Start {
                message: failure.message,
                exit_code: failure.exit_code,
            });
        }
        Reply::Executed(Executed {
            code,
            output: self.captured,
            truncated: self.truncated,
            timed_out: self.timed_out,
        })
    }
}

impl Server {
    /// Starts a process in a running container. The asker is answered when it has ended.
    pub(super) fn exec(&mut self, asker: Asker, id: &str, plan: &ExecPlan) -> Result<(), Failure> {
        let key = self.key(id)?;
        if self.upgrade.is_some() {
            return Err(Failure::Interrupted);
        }
        let container = &self.containers[&key];
        let (Stage::Running, Some(pidfd)) = (container.stage, &container.pidfd) else {
            return Err(Failure::State("the container is not running".to_owned()));
        };
        let path = container.paths.confinement();
        let confinement = fs::read(&path).map_err(|error| {
            Failure::State(format!(
                "the container was made by an earlier version, which kept no {}: {error}; make it again to run commands in it",
                path.display()
            ))
        })?;
        let confinement: Confinement = serde_json::from_slice(&confinement)
            .map_err(|error| Failure::Step(format!("read {}: {error}", path.display())))?;
        let number = self.next_key;
        self.next_key += 1;
        let groups = container
            .cgroup
            .make_exec(number)
            .map_err(|error| Failure::Step(create::chain(&error)))?;
        let own = groups.own_part();
        let exec = make(asker, pidfd, &groups, &confinement, plan).inspect_err(|_| {
            let _ = own.remove(Duration::ZERO);
        })?;
        let watched = self.watch_exec(number, &exec);
        self.execs.insert(number, exec);
        if let Err(error) = watched {
            // Without events it could not be followed.
            self.kill_now(number);
            return Err(Failure::Step(format!("follow the process: {error}")));
        }
        Ok(())
    }

    fn watch_exec(&self, key: u64, exec: &Exec) -> Result<(), rustix::io::Errno> {
        let add = |fd: &OwnedFd, part| {
            epoll::add(&self.epoll, fd, exec_data(key, part), epoll::EventFlags::IN)
        };
        add(&exec.pidfd, Part::Process)?;
        for (fd, part) in [(&exec.output, Part::Output), (&exec.report, Part::Report)] {
            if let Some(fd) = fd {
                add(fd, part)?;
            }
        }
        Ok(())
    }

    /// Kills and waits here and now.
    fn kill_now(&mut self, key: u64) {
        if let Some(exec) = self.execs.remove(&key) {
            exec.kill();
            let _ = waitid(WaitId::PidFd(exec.pidfd.as_fd()), WaitIdOptions::EXITED);
            let _ = exec.group.remove(EMPTY_PATIENCE);
        }
    }

    pub(super) fn exec_ready(&mut self, key: u64, part: Part) {
        let Some(exec) = self.execs.get_mut(&key) else {
            return;
        };
        match part {
            Part::Output => {
                if !exec.read_output()
                    && let Some(output) = exec.output.take()
                {
                    let _ = epoll::delete(&self.epoll, &output);
                }
            }
            Part::Report => {
                if !exec.read_report()
                    && let Some(report) = exec.report.take()
                {
                    let _ = epoll::delete(&self.epoll, &report);
                }
            }
            Part::Process => {
                let status = waitid(
                    WaitId::PidFd(exec.pidfd.as_fd()),
                    WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
                );
                let code = match status {
                    Ok(None) => return,
                    Ok(Some(status)) => {
                        let signal = status.terminating_signal().map(|signal| 128 + signal);
                        status.exit_status().or(signal).unwrap_or(255)
                    }
                    Err(error) => {
                        note(&format!("wait for a process in a container: {error}"));
                        255
                    }
                };
                let _ = epoll::delete(&self.epoll, &exec.pidfd);
                exec.ended = Some((code, Instant::now()));
                // What it left in the background ends with it.
                if let Err(error) = exec.group.kill() {
                    note(&create::chain(&error));
                }
                self.finish_exec(key);
            }
        }
    }

    /// Answers for a process whose group is empty.
    fn finish_exec(&mut self, key: u64) {
        let Some(exec) = self.execs.get_mut(&key) else {
            return;
        };
        let Some((code, at)) = exec.ended else {
            return;
        };
        let late = at.elapsed() > EMPTY_PATIENCE;
        if exec.group.is_populated() && !late {
            // Without `cgroup.kill` a process may have been started while the others were killed.
            let _ = exec.group.kill();
            return;
        }
        // All writers are gone: what is in the pipe is all there is, and that is not more than one reading takes; with the
        // second one it is known that it is the end.
        exec.read_output();
        exec.read_output();
        exec.read_report();
        if let Err(error) = exec.group.remove(Duration::ZERO)
            && !late
        {
            // Dying processes are counted a moment longer.
            let _ = error;
            return;
        }
        if let Some(exec) = self.execs.remove(&key) {
            let asker = exec.asker;
            let reply = exec.answer(code);
            self.reply(asker, &reply, Vec::new());
        }
    }

    /// Kills what has had its time, and answers for what has gone.
    pub(super) fn look_after_execs(&mut self) {
        let now = Instant::now();
        let mut ending = Vec::new();
        for (key, exec) in &mut self.execs {
            if exec.ended.is_some() {
                ending.push(*key);
            } else if exec.deadline.take_if(|deadline| *deadline <= now).is_some() {
                exec.timed_out = true;
                exec.kill();
            }
        }
        for key in ending {
            self.finish_exec(key);
        }
    }

    /// Kills those for whose answer nobody waits.
    pub(super) fn kill_execs(&mut self, which: impl Fn(&Exec) -> bool) {
        for exec in self.execs.values_mut().filter(|exec| which(exec)) {
            exec.interrupted = true;
            exec.deadline = None;
            exec.kill();
        }
    }

    /// How long until [`Self::look_after_execs`] has something to do.
    pub(super) fn patience_with_execs(&self) -> Option<Duration> {
        let now = Instant::now();
        let of = |exec: &Exec| match (exec.ended, exec.deadline) {
            (Some(_), _) => Some(EMPTY_INTERVAL),
            (None, deadline) => deadline.map(|at| at.saturating_duration_since(now)),
        };
        self.execs.values().filter_map(of).min()
    }
}

/// Makes the process.
fn make(
    asker: Asker,
    container: &OwnedFd,
    groups: &Cgroup,
    confinement: &Confinement,
    plan: &ExecPlan,
) -> Result<Exec, Failure> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed("make a pipe", errno));
    let (output, output_writer) = pipe()?;
    let (report, report_writer) = pipe()?;
    for reader in [&output, &report] {
        // Only our end: what the program writes to may block, as any pipe.
        rustix::io::ioctl_fionbio(reader, true).map_err(|errno| failed("prepare a pipe", errno))?;
    }
    let directory = groups
        .open_v2()
        .map_err(|error| Failure::Step(create::chain(&error)))?;
    let process = confinement.process_of(plan);

    // A pid namespace is joined by children only, and one that we clone ourselves is ours to wait for. We go back at once.
    let home = fs::File::open("/proc/self/ns/pid").map_err(|error| failed("open", error))?;
    process::set_pid_namespace_of_children(container.as_fd())
        .map_err(|error| failed("join the container's pid namespace", error))?;
    let cloned = clone_child(0, directory.as_ref().map(AsFd::as_fd));
    if matches!(cloned, Ok(Cloned::Child)) {
        child::enter(Entry {
            confinement,
            process: &process,
            container,
            cgroup: groups,
            output: output_writer,
            report: report_writer,
        })
    }
    if let Err(error) = process::set_pid_namespace_of_children(home.as_fd()) {
        // Containers cloned from here would be inside that one: the next supervisor adopts them all instead.
        note(&format!("leave a container's pid namespace: {error}"));
        process::exit_now(1);
    }
    let Cloned::Parent { pidfd, .. } =
        cloned.map_err(|error| failed("clone the process", error))?
    else {
        unreachable!("the child has gone another way");
    };
    let limit = plan.output_limit.min(OUTPUT_LIMIT);
    let timeout = plan.timeout_ms.map(Duration::from_millis);
    Ok(Exec {
        asker,
        group: groups.own_part(),
        pidfd,
        output: Some(output),
        captured: Vec::new(),
        limit,
        truncated: false,
        report: Some(report),
        reported: Vec::new(),
        deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        timed_out: false,
        interrupted: false,
        ended: None,
    })
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::Step(format!("{what}: {error}"))
}
