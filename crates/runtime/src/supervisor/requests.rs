//! Answering the daemon.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use jiff::Timestamp;
use rustix::process::{Signal, pidfd_send_signal};

use super::container::{Asker, Stage};
use super::note;
use super::server::Server;
use super::{adopt, create};
use crate::plan::{Plan, check_id};
use crate::protocol::{Failure, PROTOCOL, Reply, Request};

impl Server {
    pub(super) fn request(&mut self, asker: Asker, request: Request) {
        self.postpone_pool();
        match request {
            Request::Hello { exits } => {
                for (id, status) in exits {
                    self.told_status(&id, status);
                }
                self.reply(
                    asker,
                    &Reply::Hello {
                        pid: std::process::id(),
                        protocol: PROTOCOL,
                        build: self.build.clone(),
                        exec: true,
                    },
                    Vec::new(),
                );
            }
            Request::Create(plan) => self.create(asker, &plan),
            Request::Start { id } => self.start(asker, &id),
            Request::Signal { id, signal } => {
                let result = self.signal(&id, signal);
                self.answer(asker, result);
            }
            Request::Kill { id } => {
                let result = self.kill(&id);
                self.answer(asker, result);
            }
            Request::Freeze { id, frozen } => {
                let result = self.freeze(&id, frozen);
                self.answer(asker, result);
            }
            Request::List => {
                let states = self
                    .containers
                    .values()
                    .filter_map(super::container::Container::state);
                let states = Reply::States(states.collect());
                self.reply(asker, &states, Vec::new());
            }
            Request::State { id } => {
                let state = self
                    .key(&id)
                    .ok()
                    .and_then(|key| self.containers[&key].state());
                self.reply(asker, &Reply::State(state), Vec::new());
            }
            Request::Remains => {
                let remains = self.remains();
                let result = remains.map(|ids| (Reply::Ids(ids), Vec::new()));
                self.answer_with(asker, result);
            }
            Request::Wait { id } => self.wait(asker, &id),
            Request::Hold { id } => {
                let result = self.key(&id).and_then(|key| self.held(key));
                self.answer_with(asker, result.map(|fds| (Reply::Descriptors, fds)));
            }
            Request::Netns { id } => {
                let result = self.key(&id).and_then(|key| self.netns(key));
                self.answer_with(asker, result.map(|fd| (Reply::Descriptors, vec![fd])));
            }
            Request::Delete { id } => self.delete(asker, &id),
            Request::Exec { id, plan } => {
                if let Err(failure) = self.exec(asker, &id, &plan) {
                    self.answer(asker, Err(failure));
                }
            }
            Request::Upgrade { exe } => {
                use rustix::fs::{Access, access};
                let result = access(&exe, Access::EXEC_OK)
                    .map_err(|errno| Failure::Step(format!("execute {}: {errno}", exe.display())));
                if result.is_ok() {
                    self.upgrade = Some(exe);
                    self.kill_execs(|_| true);
                }
                self.answer(asker, result);
            }
            Request::Shutdown => {
                let result = match self.containers.len() {
                    0 => Ok(()),
                    count => Err(Failure::State(format!("{count} containers are left"))),
                };
                self.stopping = result.is_ok();
                self.answer(asker, result);
            }
        }
    }

    /// The ids of state directories that belong to no container.
    fn remains(&self) -> Result<Vec<String>, Failure> {
        let states = self.paths.states();
        let failed = |error| Failure::Step(format!("read {}: {error}", states.display()));
        let mut ids = Vec::new();
        for entry in fs::read_dir(&states).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let id = name.into_string().unwrap_or_default();
            let known = self.by_id.contains_key(&id) || self.postponed.contains(&id);
            if check_id(&id).is_ok() && !known {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    fn answer(&mut self, asker: Asker, result: Result<(), Failure>) {
        self.answer_with(asker, result.map(|()| (Reply::Done, Vec::new())));
    }

    fn answer_with(&mut self, asker: Asker, result: Result<(Reply, Vec<OwnedFd>), Failure>) {
        match result {
            Ok((reply, fds)) => self.reply(asker, &reply, fds),
            Err(failure) => self.reply(asker, &Reply::Failed(failure), Vec::new()),
        }
    }

    pub(super) fn key(&self, id: &str) -> Result<u64, Failure> {
        self.by_id.get(id).copied().ok_or(Failure::NotFound)
    }

    fn create(&mut self, asker: Asker, plan: &Plan) {
        if let Ok(key) = self.key(&plan.id) {
            let container = self
                .containers
                .get_mut(&key)
                .expect("both maps name the same containers");
            return match container.stage {
                Stage::Making => container.creating.push(asker),
                Stage::Exited => {
                    let failure = Failure::State("the container has already ended".to_owned());
                    self.answer(asker, Err(failure));
                }
                _ => self.reply_created(asker, key),
            };
        }
        self.postponed.remove(&plan.id);
        let sandbox = self.take_sandbox(plan);
        let (cgroups, descriptors) = (&mut self.cgroups, &self.descriptors);
        let made = create::make(plan, &self.paths, cgroups, descriptors, sandbox);
        match made {
            Err(failure) => self.answer(asker, Err(failure)),
            Ok(mut container) => {
                container.creating.push(asker);
                if let Err(rejected) = self.insert(container) {
                    // Out of descriptors or memory: without events the container could not be followed.
                    let error = &rejected.error;
                    note(&format!("follow {}: {error}", plan.id));
                    let failure = Failure::Step(format!("follow the container: {error}"));
                    create::abandon(&rejected.container);
                    self.answer(asker, Err(failure));
                }
            }
        }
    }

    /// Answers a creation: pid, and the descriptors a daemon holds.
    pub(super) fn reply_created(&mut self, asker: Asker, key: u64) {
        let result = self.held(key).and_then(|mut fds| {
            fds.push(self.netns(key)?);
            Ok((
                Reply::Created {
                    pid: self.containers[&key].record.pid,
                },
                fds,
            ))
        });
        self.answer_with(asker, result);
    }

    fn held(&self, key: u64) -> Result<Vec<OwnedFd>, Failure> {
        let container = &self.containers[&key];
        let all = [&container.pidfd, &container.fifos[0], &container.fifos[1]];
        let mut fds = Vec::new();
        for fd in all.into_iter().flatten() {
            let copy = fd
                .try_clone()
                .map_err(|error| Failure::Step(format!("copy a descriptor: {error}")))?;
            fds.push(copy);
        }
        if container.pidfd.is_none() {
            return Err(Failure::State("the container has ended".to_owned()));
        }
        Ok(fds)
    }

    fn netns(&self, key: u64) -> Result<OwnedFd, Failure> {
        let container = &self.containers[&key];
        if container.pidfd.is_none() {
            return Err(Failure::State("the container has ended".to_owned()));
        }
        let path = format!("/proc/{}/ns/net", container.record.pid);
        let file = fs::File::open(&path)
            .map_err(|error| Failure::Step(format!("open {path}: {error}")))?;
        Ok(file.into())
    }

    fn start(&mut self, asker: Asker, id: &str) {
        let key = match self.key(id) {
            Ok(key) => key,
            Err(failure) => return self.answer(asker, Err(failure)),
        };
        let container = self
            .containers
            .get_mut(&key)
            .expect("both maps name the same containers");
        match container.stage {
            Stage::Making => {
                let failure = Failure::State("the container is still being created".to_owned());
                self.answer(asker, Err(failure));
            }
            Stage::Created => {
                container.stage = Stage::Starting;
                container.starting.push(asker);
                container.record.started_at = Some(Timestamp::now());
                if let Err(error) = container.save() {
                    note(&format!("record of {id}: {error}"));
                }
                self.release(key);
            }
            Stage::Starting => container.starting.push(asker),
            Stage::Running => {
                let started = container
                    .started()
                    .expect("a running container was started");
                self.reply(asker, &Reply::Started(started), Vec::new());
            }
            Stage::Exited => {
                // Asked again after the first answer was lost: tell what it was.
                let exit = container.record.exit.clone();
                let result = match (
                    exit.and_then(|exit| exit.reason.map(|reason| (reason, exit.code))),
                    container.started(),
                ) {
                    (Some((message, exit_code)), _) => Err(Failure::Start { message, exit_code }),
                    (None, Some(started)) => Ok((Reply::Started(started), Vec::new())),
                    (None, None) => Err(Failure::State(
                        "the container ended before it was started".to_owned(),
                    )),
                };
                self.answer_with(asker, result);
            }
        }
    }

    /// Lets a created container go on to its program.
    pub(super) fn release(&mut self, key: u64) {
        let Some(container) = self.containers.get(&key) else {
            return;
        };
        // Read-write, so that it neither blocks nor fails should the process have died; then its death answers.
        let result = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(container.paths.start_fifo())
            .and_then(|mut fifo| fifo.write_all(&[1]));
        if let Err(error) = result {
            note(&format!("start {}: {error}", container.record.id));
        }
    }

    fn signal(&mut self, id: &str, signal: i32) -> Result<(), Failure> {
        let container = &self.containers[&self.key(id)?];
        let Some(pidfd) = &container.pidfd else {
            return Err(Failure::State("the container is not running".to_owned()));
        };
        let Some(signal) = Signal::from_named_raw(signal) else {
            return Err(Failure::Step(format!("signal {signal} cannot be sent")));
        };
        pidfd_send_signal(pidfd.as_fd(), signal).map_err(|errno| match errno {
            // Ended, and we have not yet been told.
            rustix::io::Errno::SRCH => Failure::State("the container is not running".to_owned()),
            errno => Failure::Step(format!("send the signal: {errno}")),
        })
    }

    fn kill(&mut self, id: &str) -> Result<(), Failure> {
        let container = &self.containers[&self.key(id)?];
        if container.stage == Stage::Exited {
            return Ok(());
        }
        container
            .cgroup
            .kill()
            .map_err(|error| Failure::Step(create::chain(&error)))
    }

    fn freeze(&mut self, id: &str, frozen: bool) -> Result<(), Failure> {
        let container = &self.containers[&self.key(id)?];
        if container.stage == Stage::Exited {
            return Err(Failure::State("the container is not running".to_owned()));
        }
        container
            .cgroup
            .freeze(frozen)
            .map_err(|error| Failure::Step(create::chain(&error)))
    }

    fn wait(&mut self, asker: Asker, id: &str) {
        let key = match self.key(id) {
            Ok(key) => key,
            Err(failure) => return self.answer(asker, Err(failure)),
        };
        let container = self
            .containers
            .get_mut(&key)
            .expect("both maps name the same containers");
        match &container.record.exit {
            Some(status) => {
                let reply = Reply::Exited(status.clone());
                self.reply(asker, &reply, Vec::new());
            }
            None => container.waiting.push(asker),
        }
    }

    /// Kills and removes what could not be adopted.
    fn delete_unadopted(&mut self, id: &str) -> Result<(), Failure> {
        if !self.postponed.contains(id) {
            return Ok(());
        }
        let errors = adopt::discard(id, &self.paths, &self.cgroups);
        if errors.is_empty() {
            self.postponed.remove(id);
            Ok(())
        } else {
            Err(Failure::Step(errors.join("; ")))
        }
    }

    /// Kills what runs; the answer comes when all is removed. Unknown ids are deleted already.
    fn delete(&mut self, asker: Asker, id: &str) {
        let Ok(key) = self.key(id) else {
            let result = self.delete_unadopted(id);
            return self.answer(asker, result);
        };
        let container = self
            .containers
            .get_mut(&key)
            .expect("both maps name the same containers");
        container.deleting.push(asker);
        if container.stage != Stage::Exited
            && let Err(error) = container.cgroup.kill()
        {
            note(&create::chain(&error));
        }
        self.delete_if_asked(key);
    }
}
