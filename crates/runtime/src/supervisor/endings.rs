//! How containers come to be ready, and how they end.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::event::epoll;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::container::Stage;
use super::server::Server;
use super::{create, note};
use crate::child::{ChildFailure, READY};
use crate::protocol::{Failure, Reply};
use crate::sys::process::pidfd_exit_status;
use crate::{ExitStatus, Stream};

/// How long an adopted process's status may take to become known: it must be reaped by whoever inherited it.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// The exit code of a container that nobody saw end.
const UNKNOWN_CODE: i32 = 255;

impl Server {
    /// Reads what the container's process says of itself before it is the program.
    pub(super) fn report_ready(&mut self, key: u64) {
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

    pub(super) fn process_ended(&mut self, key: u64) {
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
    pub(super) fn look_for_lost_statuses(&mut self) {
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
