//! The only place where time is read.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shoal_types::Timestamp;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
    origin_wall: Timestamp,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            origin: Instant::now(),
            origin_wall: wall(),
        }
    }

    /// The time of day, which goes into commands. It may jump.
    #[expect(
        clippy::unused_self,
        reason = "a clock is read through its handle, whichever of the two times is wanted"
    )]
    pub(crate) fn wall(&self) -> Timestamp {
        wall()
    }

    /// A time that never jumps, for telling how long ago something was.
    pub(crate) fn steady(&self) -> Timestamp {
        self.origin_wall.after(self.origin.elapsed())
    }
}

fn wall() -> Timestamp {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    Timestamp::EPOCH.after(since_epoch)
}
