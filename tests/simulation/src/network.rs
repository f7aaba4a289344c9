//! What carries messages between machines: datagrams of the log, which may be lost, and streams of
//! agents' sessions, which are in order and whole until they break.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use rand::RngExt;
use shoal_types::{
    Timestamp,
    wire::{AgentMessage, ManagerMessage},
};

use crate::world::{Event, What, World};

/// A stream that could carry nothing for so long is broken.
const STALL: Duration = Duration::from_secs(9);
const RETRANSMIT: Duration = Duration::from_millis(200);

/// The ways between machines, each for one direction.
#[derive(Debug, Default)]
pub(crate) struct Links {
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Percent of messages that are lost.
    pub(crate) loss: BTreeMap<(usize, usize), u32>,
    /// Added to every message, in microseconds.
    pub(crate) delay: BTreeMap<(usize, usize), u64>,
}

pub(crate) enum Payload {
    Agent(AgentMessage),
    Manager(ManagerMessage),
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<(Timestamp, Payload)>,
    stalled: Option<Timestamp>,
}

/// A session's connection.
pub(crate) struct Stream {
    pub(crate) agent: usize,
    pub(crate) manager: usize,
    to_agent: Lane,
    to_manager: Lane,
}

impl Stream {
    fn lane(&mut self, to_agent: bool) -> &mut Lane {
        if to_agent {
            &mut self.to_agent
        } else {
            &mut self.to_manager
        }
    }

    fn way(&self, to_agent: bool) -> (usize, usize) {
        if to_agent {
            (self.manager, self.agent)
        } else {
            (self.agent, self.manager)
        }
    }
}

impl World {
    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        from != to && self.links.cut.contains(&(from, to))
    }

    pub(crate) fn latency(&mut self, from: usize, to: usize) -> Duration {
        if from == to {
            return Duration::from_micros(50);
        }
        let extra = self.links.delay.get(&(from, to)).copied().unwrap_or(0);
        let jitter = if extra == 0 { 0 } else { extra / 2 };
        self.between(300 + extra - jitter, 4_000 + extra + jitter)
    }

    fn loses(&mut self, from: usize, to: usize) -> bool {
        let percent = self.links.loss.get(&(from, to)).copied().unwrap_or(0);
        from != to && percent > 0 && self.rng.random_range(0..100) < percent
    }

    /// A message that may be lost.
    pub(crate) fn datagram(&mut self, from: usize, to: usize, what: What) {
        if self.is_cut(from, to) || self.loses(from, to) || !self.hosts[to].up {
            return;
        }
        let latency = self.latency(from, to);
        self.later(to, latency, what);
    }

    pub(crate) fn open_stream(&mut self, agent: usize, manager: usize) -> u64 {
        let id = self.next_stream;
        self.next_stream += 1;
        self.streams.insert(
            id,
            Stream {
                agent,
                manager,
                to_agent: Lane::default(),
                to_manager: Lane::default(),
            },
        );
        id
    }

    pub(crate) fn send(&mut self, id: u64, payload: Payload) {
        let to_agent = matches!(payload, Payload::Manager(_));
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        let (from, to) = stream.way(to_agent);
        let mut latency = self.latency(from, to);
        if self.loses(from, to) {
            latency += RETRANSMIT;
        }
        let arrives = self.now.after(latency);
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let lane = stream.lane(to_agent);
        let arrives = lane
            .queue
            .back()
            .map_or(arrives, |(at, _)| arrives.max(*at));
        lane.queue.push_back((arrives, payload));
        if lane.queue.len() == 1 {
            let event = Event::Deliver {
                stream: id,
                to_agent,
            };
            self.at(arrives, event);
        }
    }

    pub(crate) fn deliver(&mut self, id: u64, to_agent: bool) {
        let now = self.now;
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        let (from, to) = stream.way(to_agent);
        let event = Event::Deliver {
            stream: id,
            to_agent,
        };
        if !self.hosts[to].up {
            self.break_stream(id);
            return;
        }
        if self.hosts[to].frozen_until > now {
            // The kernel keeps what the process does not read.
            let thaw = self.hosts[to].frozen_until;
            self.at(thaw, event);
            return;
        }
        // Without the way back nothing is acknowledged; what was sent first still arrives.
        if self.is_cut(from, to) {
            let Some(stream) = self.streams.get_mut(&id) else {
                return;
            };
            let since = *stream.lane(to_agent).stalled.get_or_insert(now);
            if now.since(since) > STALL {
                self.break_stream(id);
            } else {
                self.after(RETRANSMIT, event);
            }
            return;
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let lane = stream.lane(to_agent);
        lane.stalled = None;
        let Some((_, payload)) = lane.queue.pop_front() else {
            return;
        };
        if let Some((next, _)) = lane.queue.front() {
            let next = *next;
            self.at(next, event);
        }
        match payload {
            Payload::Agent(message) => self.manager_receives(to, id, message),
            Payload::Manager(message) => self.agent_receives(to, id, message),
        }
    }

    /// Both ends find out.
    fn break_stream(&mut self, id: u64) {
        if let Some(stream) = self.streams.remove(&id) {
            for host in [stream.agent, stream.manager] {
                if self.hosts[host].up {
                    self.later(host, Duration::from_millis(1), What::Closed { stream: id });
                }
            }
        }
    }

    /// One end closes the stream; the other learns of it, soon if it can be reached.
    pub(crate) fn hang_up(&mut self, id: u64, by: usize) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        let other = if stream.agent == by {
            stream.manager
        } else {
            stream.agent
        };
        self.tell_closed(id, by, other, false);
    }

    fn tell_closed(&mut self, id: u64, from: usize, to: usize, silently: bool) {
        if !self.hosts[to].up {
            return;
        }
        let pause = if silently || self.is_cut(from, to) {
            STALL
        } else {
            self.latency(from, to)
        };
        self.later(to, pause, What::Closed { stream: id });
    }

    pub(crate) fn end_streams_of(&mut self, host: usize, silently: bool) {
        let ends = |stream: &Stream| stream.agent == host || stream.manager == host;
        let gone: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, stream)| ends(stream))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some(stream) = self.streams.remove(&id) {
                let other = if stream.agent == host {
                    stream.manager
                } else {
                    stream.agent
                };
                if other != host {
                    self.tell_closed(id, host, other, silently);
                }
            }
        }
    }
}
