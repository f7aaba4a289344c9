//! One task at a time: the next step of the real task machine, and its effect on the modelled kernel.

use std::{sync::Arc, time::Duration};

use rand::RngExt;
use shoal_node_agent::cores::{Action, decide};
use shoal_types::{TaskId, TaskState, TaskStatus, object::Task};

use super::{ATTEMPTS, Busy, EFFECT_RETRY, Work, Worker};
use crate::{
    kernel::{Phase, Program},
    world::{Event, What, World},
};

impl World {
    pub(super) fn worker(&mut self, host: usize, task: TaskId) -> Option<&mut Worker> {
        self.agent(host).workers.get_mut(&task)
    }

    pub(super) fn begin(&mut self, host: usize, task: TaskId, what: Work, pause: Duration) {
        let token = self.rng.random();
        if let Some(worker) = self.worker(host, task) {
            worker.busy = Some(Busy { token, what });
            self.later(host, pause, What::Effect { task, token });
        }
    }

    pub(super) fn step_again(&mut self, host: usize, task: TaskId) {
        self.later(host, Duration::from_micros(20), What::Step(task));
    }

    pub(crate) fn step(&mut self, host: usize, id: TaskId) {
        let observed = self.hosts[host].kernel.observe(&id);
        let Some(worker) = self.worker(host, id) else {
            return;
        };
        let wants_run = worker
            .wanted
            .as_ref()
            .is_some_and(|task| task.desired.wants_run());
        match worker.busy.as_ref().map(|busy| busy.what) {
            Some(Work::Prepare) if !wants_run => {
                // Preparing is cut short, and what was half made goes.
                worker.busy = None;
                self.hosts[host].kernel.containers.remove(&id);
                self.step_again(host, id);
                return;
            }
            // A new wish ends a pause.
            Some(Work::Pause) => worker.busy = None,
            Some(_) => return,
            None => {}
        }
        let Some(worker) = self.worker(host, id) else {
            return;
        };
        let Some(task) = worker.wanted.clone() else {
            if observed == shoal_node_agent::cores::Container::Running {
                self.stop(host, id);
            } else {
                self.hosts[host].kernel.containers.remove(&id);
                let agent = self.agent(host);
                agent.outbox.forget(&id);
                agent.workers.remove(&id);
                self.schedule_agent_pass(host);
            }
            return;
        };
        if !Arc::ptr_eq(&worker.task, &task) {
            worker.task = task.clone();
            self.schedule_agent_pass(host);
        }
        let Some(worker) = self.worker(host, id) else {
            return;
        };
        match decide(task.desired, worker.status.state, observed, None) {
            Action::Enter {
                state,
                message,
                err,
            } => {
                self.enter(host, id, state, message, err);
                self.step_again(host, id);
            }
            Action::Prepare => {
                let pause = self.effect(5_000, 400_000, host);
                self.begin(host, id, Work::Prepare, pause);
            }
            Action::Start => {
                let pause = self.effect(2_000, 40_000, host);
                self.begin(host, id, Work::Start, pause);
            }
            Action::Stop => self.stop(host, id),
            Action::Delete => {
                self.hosts[host].kernel.containers.remove(&id);
                self.step_again(host, id);
            }
            Action::Wait | Action::AwaitExit => {}
        }
    }

    pub(crate) fn effect_done(&mut self, host: usize, id: TaskId, token: u64) {
        let fails = self.hiccups && self.rng.random_ratio(1, 40);
        let Some(worker) = self.worker(host, id) else {
            return;
        };
        let Some(busy) = worker.busy.take_if(|busy| busy.token == token) else {
            return;
        };
        let task = worker.task.clone();
        let image = task.spec.container.image.as_str();
        if fails && busy.what != Work::Pause {
            worker.failures += 1;
            let failures = worker.failures;
            if failures >= ATTEMPTS && task.desired.wants_run() {
                let started = worker.status.state >= TaskState::Starting;
                let state = if started {
                    TaskState::Failed
                } else {
                    TaskState::Rejected
                };
                self.enter(
                    host,
                    id,
                    state,
                    "preparing",
                    "it does not work here".to_owned(),
                );
            }
            self.begin(host, id, Work::Pause, EFFECT_RETRY * failures.min(ATTEMPTS));
            return;
        }
        worker.failures = 0;
        match busy.what {
            Work::Prepare => {
                if image == "missing" {
                    let err = "No such image: missing".to_owned();
                    self.enter(host, id, TaskState::Rejected, "preparing", err);
                } else {
                    let machine = &mut self.hosts[host];
                    machine.kernel.starts += 1;
                    let program = Program {
                        phase: Phase::Created,
                        service: task.service,
                        place: task.place.clone(),
                        start: machine.kernel.starts,
                        signalled: false,
                    };
                    machine.kernel.containers.entry(id).or_insert(program);
                    let state = self.worker(host, id).map(|worker| worker.status.state);
                    if state.is_some_and(|state| state < TaskState::Ready) {
                        self.enter(host, id, TaskState::Ready, "prepared", String::new());
                    }
                }
            }
            Work::Start => self.start(host, id, &task),
            Work::Stop | Work::Pause => {}
        }
        self.step_again(host, id);
    }

    pub(super) fn start(&mut self, host: usize, id: TaskId, task: &Task) {
        let image = task.spec.container.image.as_str();
        if image == "bad" {
            let err = "exec: no such file".to_owned();
            self.enter(host, id, TaskState::Failed, "starting", err);
            return;
        }
        let ends = match image {
            "quits" => Some((0, self.between(300_000, 3_000_000))),
            "crashes" => Some((1, self.between(100_000, 4_000_000))),
            _runs => None,
        };
        let Some(program) = self.hosts[host].kernel.containers.get_mut(&id) else {
            return;
        };
        if program.phase != Phase::Created {
            return;
        }
        program.phase = Phase::Running;
        let start = program.start;
        self.note(|| format!("host {host}: {} runs", task.name()));
        if let Some((code, pause)) = ends {
            let exit = Event::Exit {
                host,
                task: id,
                start,
                code,
            };
            self.after(pause, exit);
        }
        self.check_place(task);
    }

    /// Never more programs in one place than the order of updates allows, save those that nobody can
    /// vouch for.
    pub(super) fn check_place(&mut self, task: &Task) {
        let mut running = Vec::new();
        for (host, machine) in self.hosts.iter().enumerate() {
            for (id, program) in &machine.kernel.containers {
                let here = program.service == task.service && program.place == task.place;
                if here && program.phase == Phase::Running && !self.witness.doubts(id) {
                    running.push((host, *id));
                }
            }
        }
        let allowed = self.witness.at_once(task.service);
        if running.len() > allowed {
            let detail = format!("{:?} of {}: {running:?}", task.place, task.service_name);
            self.violate("one program in each place", detail);
        }
    }

    pub(super) fn stop(&mut self, host: usize, id: TaskId) {
        self.check_removed(host, id);
        let longest = u64::try_from(
            self.worker(host, id)
                .map_or(Duration::ZERO, |w| w.task.spec.container.stop_grace)
                .as_micros(),
        )
        .unwrap_or(u64::MAX);
        let stubborn = self.rng.random_ratio(1, 20);
        let pause = if stubborn {
            Duration::from_micros(longest)
        } else {
            self.between(2_000, longest.clamp(3_000, 900_000))
        };
        let Some(program) = self.hosts[host].kernel.containers.get_mut(&id) else {
            return;
        };
        program.signalled = true;
        let exit = Event::Exit {
            host,
            task: id,
            start: program.start,
            code: 143,
        };
        self.note(|| format!("host {host}: stops {id}"));
        self.after(pause, exit);
        let token = self.rng.random();
        if let Some(worker) = self.worker(host, id) {
            worker.busy = Some(Busy {
                token,
                what: Work::Stop,
            });
        }
    }

    /// A program is asked to end only after connections have ceased to be sent to it.
    pub(super) fn check_removed(&mut self, host: usize, id: TaskId) {
        let machine = &self.hosts[host];
        let Some(worker) = machine.agent.workers.get(&id) else {
            return;
        };
        if machine.kernel.torn || self.witness.doubts(&id) {
            return;
        }
        let mut wrong = None;
        for attachment in &worker.task.attachments {
            let network = attachment.network.to_string();
            let table = machine
                .kernel
                .tables
                .iter()
                .find(|table| table.id == network);
            let vips = table.map(|table| &table.vips[..]).unwrap_or_default();
            if vips
                .iter()
                .any(|vip| vip.backends.contains(&attachment.addr))
            {
                wrong = Some(format!(
                    "host {host} stops {} while {} is still balanced to",
                    worker.task.name(),
                    attachment.addr
                ));
            }
        }
        if let Some(detail) = wrong {
            self.violate("backends leave first", detail);
        }
    }

    /// The kernel says that a container has ended.
    pub(crate) fn container_exited(&mut self, host: usize, task: TaskId) {
        if let Some(worker) = self.worker(host, task) {
            worker.busy.take_if(|busy| busy.what == Work::Stop);
        }
        if self.hosts[host].up {
            let pause = self.between(50, 2_000);
            self.later(host, pause, What::Step(task));
        }
    }

    pub(super) fn enter(
        &mut self,
        host: usize,
        id: TaskId,
        state: TaskState,
        message: &str,
        err: String,
    ) {
        let at = self.wall(host);
        let Some(worker) = self.worker(host, id) else {
            return;
        };
        let before = worker.status.state;
        worker.status = TaskStatus {
            state,
            at,
            message: message.to_owned(),
            err,
            ..TaskStatus::default()
        };
        let status = worker.status.clone();
        self.agent(host).outbox.put(id, status);
        if state < before {
            self.violate(
                "status moves up",
                format!("{id} goes from {before} to {state}"),
            );
        }
        self.note(|| format!("host {host}: {id} is {state}"));
        self.send_statuses(host);
        self.schedule_agent_pass(host);
    }
}
