//! What goes wrong.

use std::time::Duration;

use rand::{RngExt, seq::IndexedRandom};

use crate::world::{Event, Mend, World};

impl World {
    pub(crate) fn fault(&mut self) {
        if !self.chaos {
            return;
        }
        let pause = self.between(200_000, 3_500_000);
        self.after(pause, Event::Fault);
        let hosts = self.hosts.len();
        let host = self.rng.random_range(0..hosts);
        match self.rng.random_range(0..16) {
            0 | 1 => self.crash_for(host, false, 100_000, 5_000_000),
            2 => self.crash_for(host, true, 1_000_000, 9_000_000),
            3 | 4 => {
                // One machine, or a group, away from the others, in both directions.
                let alone: Vec<usize> = if self.rng.random() {
                    vec![host]
                } else {
                    (0..hosts).filter(|_| self.rng.random()).collect()
                };
                let length = self.between(300_000, 9_000_000);
                for a in 0..hosts {
                    for b in 0..hosts {
                        if alone.contains(&a) != alone.contains(&b) {
                            self.cut(a, b, length);
                        }
                    }
                }
                self.note(|| format!("{alone:?} are cut off for {length:?}"));
            }
            5 | 6 => {
                let other = self.rng.random_range(0..hosts);
                let length = self.between(300_000, 9_000_000);
                self.note(|| format!("nothing gets from {host} to {other} for {length:?}"));
                self.cut(host, other, length);
            }
            7 => {
                let length = self.between(300_000, 8_000_000);
                let percent = self.rng.random_range(5..60);
                for other in 0..hosts {
                    for link in [(host, other), (other, host)] {
                        self.links.loss.insert(link, percent);
                        self.after(length, Event::Mend(Mend::Link(link.0, link.1)));
                    }
                }
                self.note(|| format!("{host} loses {percent} % for {length:?}"));
            }
            8 => {
                let length = self.between(300_000, 8_000_000);
                let delay = self.rng.random_range(20_000..700_000);
                for other in 0..hosts {
                    for link in [(host, other), (other, host)] {
                        self.links.delay.insert(link, delay);
                        self.after(length, Event::Mend(Mend::Link(link.0, link.1)));
                    }
                }
                self.note(|| format!("{host} is {delay} us away for {length:?}"));
            }
            9 | 10 => {
                let length = self.between(100_000, 7_000_000);
                self.freeze(host, length);
            }
            11 => {
                let hours = *[-48, -1, 0, 1, 24]
                    .choose(&mut self.rng)
                    .expect("not empty");
                self.hosts[host].ahead = hours * 3_600_000_000_000;
                self.note(|| format!("the clock of {host} is {hours} hours ahead"));
            }
            12 => {
                if let Some(manager) = &mut self.hosts[host].manager {
                    manager.replica.disk_full = true;
                    let length = self.between(200_000, 4_000_000);
                    self.after(length, Event::Mend(Mend::Disk(host)));
                    self.note(|| format!("the disk of {host} is full for {length:?}"));
                }
            }
            13 => {
                self.hosts[host].slow = self.rng.random_range(3..25);
                let length = self.between(500_000, 9_000_000);
                self.after(length, Event::Mend(Mend::Slow(host)));
                self.note(|| format!("{host} is slow for {length:?}"));
            }
            14 => {
                if let Some(leader) = self.leader() {
                    match self.rng.random_range(0..3) {
                        0 => self.crash_for(leader, false, 100_000, 2_000_000),
                        1 => self.freeze(leader, Duration::from_millis(1_500)),
                        _ => {
                            let length = self.between(600_000, 4_000_000);
                            for other in 0..hosts {
                                self.cut(leader, other, length);
                            }
                            self.note(|| format!("leader {leader} is not heard for {length:?}"));
                        }
                    }
                }
            }
            _ => self.kill_something(),
        }
    }

    fn crash_for(&mut self, host: usize, machine_too: bool, from: u64, to: u64) {
        if self.hosts[host].up {
            self.crash(host, machine_too);
            let pause = self.between(from, to);
            self.after(pause, Event::Mend(Mend::Boot(host)));
        }
    }

    pub(crate) fn freeze(&mut self, host: usize, length: Duration) {
        self.note(|| format!("host {host} is frozen for {length:?}"));
        let until = self.now.after(length);
        self.thaw(host, until);
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize, length: Duration) {
        if from != to {
            self.links.cut.insert((from, to));
            self.after(length, Event::Mend(Mend::Link(from, to)));
        }
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Boot(host) => {
                if !self.hosts[host].up {
                    self.boot(host);
                }
            }
            Mend::Link(from, to) => {
                self.links.cut.remove(&(from, to));
                self.links.loss.remove(&(from, to));
                self.links.delay.remove(&(from, to));
            }
            Mend::Slow(host) => self.hosts[host].slow = 1,
            Mend::Disk(host) => {
                if let Some(manager) = &mut self.hosts[host].manager {
                    manager.replica.disk_full = false;
                }
            }
        }
    }

    /// Everything works again, from now on.
    pub(crate) fn heal(&mut self) {
        self.note(|| "everything heals".to_owned());
        self.chaos = false;
        self.hiccups = false;
        self.links.cut.clear();
        self.links.loss.clear();
        self.links.delay.clear();
        for host in 0..self.hosts.len() {
            self.mend(Mend::Boot(host));
            self.mend(Mend::Slow(host));
            self.mend(Mend::Disk(host));
            // A process that was frozen goes on soon.
            let until = self.hosts[host].frozen_until;
            self.hosts[host].frozen_until = until.min(self.now.after(Duration::from_millis(10)));
        }
    }
}
