//! Sandboxes that wait for a container: as many as have lately been asked for, made while nobody waits for an answer.
//!
//! All have the shape that was last asked for again and again; a container of another shape is made at once, as it is when
//! none is ready. A sandbox belongs to the supervisor that made it: it ends when that ends, and the next one removes what is
//! left of it. It becomes a container's by the renaming of its bundle.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fs::MemfdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::server::{Server, sandbox_data};
use super::{container, create, note};
use crate::cgroup::Cgroup;
use crate::child::{self, WARM, Waiting};
use crate::paths::ContainerPaths;
use crate::plan::{Plan, Shape};
use crate::protocol::Failure;
use crate::sys::process::{Cloned, clone_child};

/// The most sandboxes there are; each takes about 0.7 MB, most of it the kernel's.
const CAPACITY: usize = 16;
/// How long a request counts as recent.
const WINDOW: Duration = Duration::from_mins(5);
/// How long nobody must have asked for anything before a sandbox is made while others are left: that takes about a
/// millisecond, in which nobody is answered.
const SETTLE: Duration = Duration::from_millis(10);
/// The pause after one could not be made.
const RETRY: Duration = Duration::from_mins(1);
/// So many requests in a row for another shape change the pool's.
const OTHERS: u32 = 3;

/// How many containers were lately asked for.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// When, the oldest first; no more than [`CAPACITY`].
    requests: VecDeque<Instant>,
}

impl Demand {
    fn add(&mut self, now: Instant) {
        if self.requests.len() == CAPACITY {
            self.requests.pop_front();
        }
        self.requests.push_back(now);
    }

    /// How many sandboxes there should be.
    fn wanted(&self, now: Instant) -> usize {
        let recent = |at: &&Instant| now.saturating_duration_since(**at) < WINDOW;
        self.requests.iter().filter(recent).count()
    }

    /// When one less will be wanted.
    fn next_change(&self, now: Instant) -> Option<Instant> {
        let ends = self.requests.iter().map(|at| *at + WINDOW);
        ends.filter(|end| *end > now).min()
    }
}

/// A process in namespaces and cgroups of its own that waits for a plan.
pub(super) struct Sandbox {
    pub(super) name: String,
    pub(super) paths: ContainerPaths,
    pub(super) cgroup: Cgroup,
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) pidfd: OwnedFd,
    pub(super) report: OwnedFd,
    plan: fs::File,
    wake: fs::File,
    ready: bool,
}

impl Sandbox {
    /// Hands the plan over; the process goes on with it.
    pub(super) fn give(&mut self, plan: &Plan) -> io::Result<()> {
        self.plan.write_all(&serde_json::to_vec(plan)?)?;
        self.wake.write_all(&[1])
    }

    /// Ends the process and removes all that was made.
    pub(super) fn retire(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        for error in create::remove(&self.paths, &self.cgroup) {
            note(&error);
        }
    }

    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), options), Ok(None))
    }
}

#[derive(Default)]
pub(super) struct Pool {
    shape: Option<Shape>,
    /// Requests in a row for a shape that is not the pool's.
    others: u32,
    demand: Demand,
    /// By number: the oldest first.
    sandboxes: BTreeMap<u64, Sandbox>,
    /// When requests will have settled.
    settled: Option<Instant>,
    /// Before this nothing is made, since something could not be.
    not_before: Option<Instant>,
}

impl Pool {
    /// Notes what was asked for. Whether there may be a sandbox for it.
    fn ask(&mut self, plan: &Plan, now: Instant) -> bool {
        let Some(shape) = Shape::of(plan) else {
            return false;
        };
        if self.shape.as_ref() == Some(&shape) {
            self.others = 0;
            self.demand.add(now);
            return true;
        }
        self.others += 1;
        if self.shape.is_none() || self.others >= OTHERS || self.demand.wanted(now) == 0 {
            self.shape = Some(shape);
            self.others = 0;
            self.demand = Demand::default();
            self.demand.add(now);
            // They are of no use any more.
            for (_, sandbox) in std::mem::take(&mut self.sandboxes) {
                sandbox.retire();
            }
        }
        false
    }

    /// When there is something to do that no event will tell of.
    fn due(&self, now: Instant) -> Option<Instant> {
        let wanted = self.demand.wanted(now);
        match self.sandboxes.len() {
            count if count > wanted => Some(now),
            // One after the other.
            _ if self.sandboxes.values().any(|sandbox| !sandbox.ready) => None,
            // The next container would have to wait for all of it, so one is made while the last is at work.
            0 if wanted > 0 => Some(self.not_before.unwrap_or(now)),
            count if count < wanted => Some(self.not_before.max(self.settled).unwrap_or(now)),
            _ => self.demand.next_change(now),
        }
    }
}

impl Server {
    /// Somebody waits for an answer, or soon will: what is made ahead can wait.
    pub(super) fn postpone_pool(&mut self) {
        self.pool.settled = Some(Instant::now() + SETTLE);
    }

    /// The sandbox that the container of `plan` moves into, if there is one.
    pub(super) fn take_sandbox(&mut self, plan: &Plan) -> Option<Sandbox> {
        if !self.pool.ask(plan, Instant::now()) {
            return None;
        }
        loop {
            let mut ready = self.pool.sandboxes.iter();
            let key = *ready.find(|(_, sandbox)| sandbox.ready)?.0;
            let sandbox = self.pool.sandboxes.remove(&key)?;
            for fd in [&sandbox.pidfd, &sandbox.report] {
                let _ = epoll::delete(&self.epoll, fd);
            }
            if !sandbox.has_ended() {
                return Some(sandbox);
            }
            sandbox.retire();
        }
    }

    /// A sandbox says that it is ready, or has ended.
    pub(super) fn sandbox_event(&mut self, key: u64) {
        let Some(sandbox) = self.pool.sandboxes.get_mut(&key) else {
            return;
        };
        let mut said = [0; 4096];
        let count = rustix::io::read(&sandbox.report, &mut said).unwrap_or(0);
        if said[..count] == [WARM] {
            sandbox.ready = true;
            return;
        }
        if count == 0 && !sandbox.has_ended() {
            return;
        }
        let reason = serde_json::from_slice::<child::ChildFailure>(&said[..count]);
        let reason = reason.map_or_else(
            |_| "its process ended".to_owned(),
            |failure| failure.message,
        );
        note(&format!("sandbox {}: {reason}", sandbox.name));
        if let Some(sandbox) = self.pool.sandboxes.remove(&key) {
            sandbox.retire();
        }
        self.pool.not_before = Some(Instant::now() + RETRY);
    }

    /// How long until [`Self::tend_pool`] has something to do; `None`: that will be an event's doing.
    pub(super) fn patience_with_pool(&self) -> Option<Duration> {
        if self.stopping || self.upgrade.is_some() {
            return None;
        }
        let now = Instant::now();
        let due = self.pool.due(now)?;
        Some(due.saturating_duration_since(now))
    }

    /// Makes one sandbox, or removes one, if it is time.
    pub(super) fn tend_pool(&mut self) {
        let now = Instant::now();
        let due = self.patience_with_pool();
        if due != Some(Duration::ZERO) {
            return;
        }
        let wanted = self.pool.demand.wanted(now);
        if self.pool.sandboxes.len() > wanted {
            if let Some((_, sandbox)) = self.pool.sandboxes.pop_first() {
                sandbox.retire();
            }
        } else if self.pool.sandboxes.len() < wanted
            && let Err(failure) = self.add_sandbox()
        {
            note(&format!("make a sandbox: {failure:?}"));
            self.pool.not_before = Some(now + RETRY);
        }
    }

    fn add_sandbox(&mut self) -> Result<(), Failure> {
        let Some(shape) = self.pool.shape.clone() else {
            return Ok(());
        };
        let step = |what: &'static str| move |error| Failure::Step(format!("{what}: {error}"));
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(step("name it"))?;
        let name = format!("warm-{}", uuid.trim());
        let paths = self.paths.sandbox(&name);
        let sandbox = self
            .make_sandbox(name.clone(), &paths, &shape)
            .inspect_err(|_| {
                create::remove(&paths, &self.cgroups.of(&name));
            })?;
        let key = self.next_key;
        self.next_key += 1;
        for fd in [&sandbox.pidfd, &sandbox.report] {
            let watched = epoll::add(&self.epoll, fd, sandbox_data(key), epoll::EventFlags::IN);
            if let Err(errno) = watched {
                sandbox.retire();
                return Err(step("follow it")(errno.into()));
            }
        }
        self.pool.sandboxes.insert(key, sandbox);
        Ok(())
    }

    fn make_sandbox(
        &mut self,
        name: String,
        paths: &ContainerPaths,
        shape: &Shape,
    ) -> Result<Sandbox, Failure> {
        let step = |what: &'static str| move |error| Failure::Step(format!("{what}: {error}"));
        create::make_bundle(paths)?;
        fs::write(paths.group_name(), &name).map_err(step("write its name"))?;
        let cgroup = self
            .cgroups
            .make(&name, Vec::new(), &shape.device_rules)
            .map_err(|error| Failure::Step(create::chain(&error)))?;
        let report =
            container::open_reader(&paths.report_fifo()).map_err(step("open its report"))?;
        let host = fs::File::open("/proc/self/ns/mnt").map_err(step("open our mount namespace"))?;
        let plan = rustix::fs::memfd_create("plan", MemfdFlags::CLOEXEC)
            .map_err(|errno| step("make a file for its plan")(errno.into()))?;
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|errno| step("make a pipe")(errno.into()))?;
        let directory = cgroup
            .open_v2()
            .map_err(|error| Failure::Step(create::chain(&error)))?;
        let flags = shape.namespaces.clone_flags;
        let cloned = clone_child(flags, directory.as_ref().map(AsFd::as_fd));
        let Cloned::Parent { pid, pidfd } = cloned.map_err(step("clone its process"))? else {
            child::wait(Waiting {
                shape,
                paths,
                cgroup: &cgroup,
                descriptors: &self.descriptors,
                host: host.into(),
                plan: plan.into(),
                wake: reader.into(),
            })
        };
        Ok(Sandbox {
            start_time: container::start_time(pid).unwrap_or(0),
            name,
            paths: paths.clone(),
            cgroup,
            pid,
            pidfd,
            report,
            plan: plan.into(),
            wake: writer.into(),
            ready: false,
        })
    }

    /// Removes all sandboxes.
    pub(super) fn retire_pool(&mut self) {
        for (_, sandbox) in std::mem::take(&mut self.pool.sandboxes) {
            sandbox.retire();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_wanted_as_were_lately_asked_for() {
        let start = Instant::now();
        let mut demand = Demand::default();
        assert_eq!(demand.wanted(start), 0);
        assert_eq!(demand.next_change(start), None);
        let later = start + WINDOW / 2;
        demand.add(start);
        demand.add(later);
        assert_eq!(demand.wanted(later), 2);
        assert_eq!(demand.next_change(later), Some(start + WINDOW));
        assert_eq!(demand.wanted(start + WINDOW), 1);
        assert_eq!(demand.wanted(later + WINDOW), 0);
        assert_eq!(demand.next_change(later + WINDOW), None);
    }

    #[test]
    fn an_empty_pool_does_not_wait_until_requests_have_settled() {
        let now = Instant::now();
        let settled = now + SETTLE;
        let mut pool = Pool {
            settled: Some(settled),
            ..Pool::default()
        };
        assert_eq!(pool.due(now), None);
        pool.demand.add(now);
        assert_eq!(pool.due(now), Some(now));
        pool.not_before = Some(now + RETRY);
        assert_eq!(pool.due(now), Some(now + RETRY));
    }

    #[test]
    fn however_many_are_asked_for_the_number_is_bounded() {
        let start = Instant::now();
        let mut demand = Demand::default();
        for _ in 0..CAPACITY * 3 {
            demand.add(start);
        }
        assert_eq!(demand.wanted(start), CAPACITY);
    }
}
