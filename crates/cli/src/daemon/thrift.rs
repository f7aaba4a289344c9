//! Gives memory back when a busy time is over, the start among them: what an idle daemon occupies is
//! what it uses.

use std::{convert::Infallible, time::Duration};

use nix::time::{ClockId, clock_gettime};
use shoal_node_agent::runtime::memory;
use tokio::time::{self, Instant, MissedTickBehavior};

/// The start is over after about this.
const FIRST: Duration = Duration::from_secs(1);

const PERIOD: Duration = Duration::from_secs(5);

/// A process that takes more of one processor than one in so many is busy.
const IDLE_SHARE: u32 = 50;

/// Gives back at the end of each busy time, until it is dropped.
pub(super) async fn keep() -> Infallible {
    let mut looks = time::interval_at(Instant::now() + FIRST, PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut thrift = Thrift::default();
    let mut last = Instant::now();
    loop {
        let now = looks.tick().await;
        // A clock that cannot be read says that all is idle.
        let spent = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
        let spent = spent.map_or(Duration::ZERO, Duration::from);
        if thrift.look(spent, now - last) {
            memory::give_back();
        }
        last = now;
    }
}

#[derive(Debug)]
struct Thrift {
    /// The processor's time that was spent up to the last look.
    spent: Duration,
    was_busy: bool,
}

impl Default for Thrift {
    fn default() -> Self {
        Self {
            spent: Duration::ZERO,
            was_busy: true,
        }
    }
}

impl Thrift {
    /// Whether a busy time has ended in the last `passed`, when the process has spent so much since its
    /// start.
    fn look(&mut self, spent: Duration, passed: Duration) -> bool {
        let is_busy = spent.saturating_sub(self.spent) > passed / IDLE_SHARE;
        self.spent = spent;
        std::mem::replace(&mut self.was_busy, is_busy) && !is_busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_busy_time_ends_once() {
        let mut thrift = Thrift::default();
        let millis = Duration::from_millis;
        let spent = [800, 820, 825, 2000, 3000, 3050, 3051].map(millis);
        let due = spent.map(|spent| thrift.look(spent, PERIOD));
        assert_eq!(due, [false, true, false, false, false, true, false]);
    }
}
