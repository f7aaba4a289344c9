//! What has happened, as the node saw it: the newest events, and those to come.
//!
//! Events of the swarm come from its commits, those of containers from comparing what there is with what there was,
//! those of images and volumes from the requests that this API answered.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::{FutureExt, StreamExt, future};
use shoal_types::{ContainerId, Timestamp};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Duration, sleep},
};

use super::events::{local_event, of_change};
use crate::{
    engine::{Changes, ContainerInfo, ContainerState, LocalEngine, LocalEvent, SwarmState},
    wire::{Event, Map},
};

/// Events that are kept, and how far a reader may fall behind (moby `daemon/events`).
const KEPT: usize = 256;
const BEHIND: usize = 1024;

/// Changes of containers within this time are looked at together.
const GATHERING: Duration = Duration::from_millis(200);

/// How often a node that manages no swarm looks whether it does now.
const SWARM_PERIOD: Duration = Duration::from_secs(5);

pub(crate) struct Journal {
    kept: Mutex<VecDeque<Event>>,
    live: broadcast::Sender<Event>,
    /// Asks the recorder to be up to date, and is answered when it is.
    asked: mpsc::Sender<oneshot::Sender<()>>,
}

impl Journal {
    /// Starts to record what happens to `local`, for as long as it lives.
    pub(super) fn start(local: &Arc<dyn LocalEngine>) -> Arc<Self> {
        let (asked, asks) = mpsc::channel(16);
        let journal = Arc::new(Self {
            kept: Mutex::new(VecDeque::new()),
            live: broadcast::Sender::new(BEHIND),
            asked,
        });
        let recorder = Recorder {
            local: Arc::downgrade(local),
            journal: Arc::downgrade(&journal),
            swarm: None,
            containers: None,
        };
        tokio::spawn(recorder.run(asks));
        journal
    }

    /// Done when everything that has been committed so far is seen.
    pub(super) async fn catch_up(&self) {
        let (done, answer) = oneshot::channel();
        if self.asked.send(done).await.is_ok() {
            // A recorder that has ended has nothing to record any more.
            let _ = answer.await;
        }
    }

    /// The kept events since then, none without a time; and all that follow.
    pub(super) fn read(
        &self,
        since: Option<Timestamp>,
    ) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let past = kept
            .iter()
            .filter(|event| since.is_some_and(|since| event.time_nano >= since.0));
        (past.cloned().collect(), self.live.subscribe())
    }

    pub(super) fn record(&self, event: Event) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Nobody may be listening.
        let _ = self.live.send(event);
    }

    /// An event of an image or a volume, now.
    pub(super) fn note<const N: usize>(
        &self,
        kind: &'static str,
        action: &str,
        id: &str,
        attributes: [(&str, &str); N],
    ) {
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.record(local_event(LocalEvent {
            at: now(),
            kind,
            action: action.to_owned(),
            id: id.to_owned(),
            attributes: attributes.into(),
        }));
    }
}

fn now() -> Timestamp {
    let nanos = jiff::Timestamp::now().as_nanosecond();
    Timestamp(i64::try_from(nanos).unwrap_or(i64::MAX))
}

struct Recorder {
    local: Weak<dyn LocalEngine>,
    journal: Weak<Journal>,
    swarm: Option<Changes>,
    /// `None` before the first look, which is no event.
    containers: Option<BTreeMap<ContainerId, ContainerInfo>>,
}

impl Recorder {
    async fn run(mut self, mut asks: mpsc::Receiver<oneshot::Sender<()>>) {
        let Some(mut changed) = self.local.upgrade().map(|local| local.changed()) else {
            return;
        };
        self.look().await;
        let mut is_dirty = false;
        loop {
            self.follow_swarm();
            // Each arm may be dropped at its await: nothing is taken from a stream before it is ready. Commits come
            // first, so that whoever asks is answered after those that were there before.
            tokio::select! {
                biased;
                change = next(&mut self.swarm) => {
                    let Some(journal) = self.journal.upgrade() else { return };
                    match change {
                        Some(change) => of_change(&change).into_iter().for_each(|e| journal.record(e)),
                        None => self.swarm = None,
                    }
                }
                ask = asks.recv() => {
                    let Some(done) = ask else { return };
                    if is_dirty {
                        is_dirty = false;
                        self.look().await;
                    }
                    // Whoever asked may be gone.
                    let _ = done.send(());
                }
                wake = changed.next(), if !is_dirty => {
                    if wake.is_none() {
                        changed = futures_util::stream::pending().boxed();
                    }
                    is_dirty = true;
                }
                () = sleep(GATHERING), if is_dirty => {
                    is_dirty = false;
                    self.look().await;
                }
                () = sleep(SWARM_PERIOD), if self.swarm.is_none() => {}
            }
            if self.local.strong_count() == 0 {
                return;
            }
        }
    }

    /// Begins to listen to the swarm that the node manages, when it does.
    fn follow_swarm(&mut self) {
        if self.swarm.is_none()
            && let Some(local) = self.local.upgrade()
            && let SwarmState::Active(swarm) = local.swarm()
        {
            self.swarm = swarm.control.map(|control| control.changes());
        }
    }

    async fn look(&mut self) {
        let Some(local) = self.local.upgrade() else {
            return;
        };
        // What cannot be listed now is seen at the next change.
        let Ok(found) = local.containers().await else {
            return;
        };
        let found: BTreeMap<_, _> = found.into_iter().map(|c| (c.id, c)).collect();
        if let (Some(before), Some(journal)) = (&self.containers, self.journal.upgrade()) {
            for event in differences(before, &found, now()) {
                journal.record(local_event(event));
            }
        }
        self.containers = Some(found);
    }
}

async fn next(changes: &mut Option<Changes>) -> Option<crate::engine::Change> {
    match changes {
        Some(changes) => changes.next().await,
        None => future::pending().boxed().await,
    }
}

/// What happened to containers between two looks, in the order of time.
fn differences(
    before: &BTreeMap<ContainerId, ContainerInfo>,
    after: &BTreeMap<ContainerId, ContainerInfo>,
    now: Timestamp,
) -> Vec<LocalEvent> {
    let mut events = Vec::new();
    for (id, container) in after {
        let old = before.get(id);
        if old.is_none() {
            events.push(event(container, "create", container.created, []));
        }
        let was_ended = old.is_some_and(|old| has_ended(old.state));
        let is_ended = has_ended(container.state);
        // One that has ended no longer says when it began.
        let began = old.map_or(container.started_at, |old| {
            old.started_at.max(container.started_at)
        });
        let was_started = was_ended || old.is_some_and(|old| old.started_at.0 > 0);
        if (began.0 > 0 || is_ended) && !was_started {
            let at = if began.0 > 0 {
                began
            } else {
                container.finished_at
            };
            events.extend(networks(container, "connect", at));
            events.push(event(container, "start", at, []));
        }
        let health = |c: &ContainerInfo| c.health.as_ref().map(|health| health.status);
        if let Some(status @ ("healthy" | "unhealthy")) = health(container)
            && old.and_then(health) != Some(status)
        {
            events.push(event(
                container,
                &format!("health_status: {status}"),
                now,
                [],
            ));
        }
        if is_ended && !was_ended {
            let lived = if began.0 > 0 {
                container.finished_at.0 - began.0
            } else {
                0
            };
            let seconds = (lived.max(0) / 1_000_000_000).to_string();
            if container.oom_killed {
                events.push(event(container, "oom", container.finished_at, []));
            }
            let attributes = [
                ("execDuration", seconds),
                ("exitCode", container.exit_code.to_string()),
            ];
            events.push(event(container, "die", container.finished_at, attributes));
            events.extend(networks(container, "disconnect", container.finished_at));
        }
    }
    for (id, container) in before {
        if !after.contains_key(id) {
            if container.started_at.0 > 0 && !has_ended(container.state) {
                // How it ended went with it.
                events.push(event(container, "die", now, []));
                events.extend(networks(container, "disconnect", now));
            }
            events.push(event(container, "destroy", now, []));
        }
    }
    events.sort_by_key(|event| event.at);
    events
}

fn has_ended(state: ContainerState) -> bool {
    matches!(state, ContainerState::Exited | ContainerState::Dead)
}

fn event<const N: usize>(
    container: &ContainerInfo,
    action: &str,
    at: Timestamp,
    attributes: [(&str, String); N],
) -> LocalEvent {
    let mut all: Map = container.labels.clone();
    all.insert("image".to_owned(), container.image.clone());
    all.insert("name".to_owned(), container.name.clone());
    all.extend(attributes.map(|(key, value)| (key.to_owned(), value)));
    LocalEvent {
        at,
        kind: "container",
        action: action.to_owned(),
        id: container.id.to_string(),
        attributes: all,
    }
}

fn networks<'a>(
    container: &'a ContainerInfo,
    action: &'a str,
    at: Timestamp,
) -> impl Iterator<Item = LocalEvent> + 'a {
    container.networks.iter().map(move |network| LocalEvent {
        at,
        kind: "network",
        action: action.to_owned(),
        id: network.id.clone(),
        attributes: Map::from([
            ("container".to_owned(), container.id.to_string()),
            ("name".to_owned(), network.name.clone()),
            ("type".to_owned(), "overlay".to_owned()),
        ]),
    })
}

#[cfg(test)]
mod tests {
    use shoal_types::spec::LogDriver;

    use super::*;
    use crate::engine::{ContainerHealth, ContainerNetwork};

    fn container(n: u8, state: ContainerState, started: i64, finished: i64) -> ContainerInfo {
        ContainerInfo {
            id: ContainerId::from_random([n; 32]),
            name: format!("web.{n}"),
            image: "busybox:1".into(),
            image_id: String::new(),
            command: Vec::new(),
            created: Timestamp(1),
            labels: Map::from([("tier".into(), "front".into())]),
            state,
            pid: 0,
            started_at: Timestamp(started),
            finished_at: Timestamp(finished),
            exit_code: 3,
            oom_killed: false,
            error: String::new(),
            task: None,
            service: None,
            node: None,
            hostname: String::new(),
            env: Vec::new(),
            working_dir: String::new(),
            user: String::new(),
            tty: false,
            networks: vec![ContainerNetwork {
                name: "back".into(),
                id: "net1".into(),
                addr: std::net::Ipv4Addr::LOCALHOST,
                prefix: 24,
                gateway: None,
                mac: String::new(),
                aliases: Vec::new(),
            }],
            ports: Vec::new(),
            mounts: Vec::new(),
            memory_bytes: 0,
            nano_cpus: 0,
            pids: 0,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            read_only: false,
            log: LogDriver::default(),
            health: None,
        }
    }

    fn set(containers: &[ContainerInfo]) -> BTreeMap<ContainerId, ContainerInfo> {
        containers.iter().map(|c| (c.id, c.clone())).collect()
    }

    fn actions(before: &[ContainerInfo], after: &[ContainerInfo]) -> Vec<String> {
        let events = differences(&set(before), &set(after), Timestamp(1000));
        events
            .into_iter()
            .map(|event| format!("{} {} {}", event.at.0, event.kind, event.action))
            .collect()
    }

    #[test]
    fn a_life_between_two_looks_is_told_whole() {
        let whole = container(1, ContainerState::Exited, 5, 9);
        let told = [
            "1 container create",
            "5 network connect",
            "5 container start",
            "9 container die",
            "9 network disconnect",
        ];
        assert_eq!(actions(&[], std::slice::from_ref(&whole)), told);
        assert_eq!(
            actions(std::slice::from_ref(&whole), &[]),
            ["1000 container destroy"]
        );
        assert!(actions(std::slice::from_ref(&whole), std::slice::from_ref(&whole)).is_empty());
    }

    #[test]
    fn a_running_container_becomes_healthy_and_dies() {
        let created = container(1, ContainerState::Created, 0, 0);
        let running = container(1, ContainerState::Running, 5, 0);
        let healthy = ContainerInfo {
            health: Some(ContainerHealth {
                status: "healthy",
                failing_streak: 0,
                log: Vec::new(),
            }),
            ..running.clone()
        };
        assert_eq!(
            actions(&[created], std::slice::from_ref(&running)),
            ["5 network connect", "5 container start"]
        );
        assert_eq!(
            actions(&[running], std::slice::from_ref(&healthy)),
            ["1000 container health_status: healthy"]
        );
        let dead = ContainerInfo {
            state: ContainerState::Exited,
            finished_at: Timestamp(7),
            ..healthy.clone()
        };
        let events = differences(&set(&[healthy]), &set(&[dead]), Timestamp(1000));
        assert_eq!(events[0].action, "die");
        assert_eq!(events[0].attributes["exitCode"], "3");
        assert_eq!(events[0].attributes["tier"], "front");
    }
}
