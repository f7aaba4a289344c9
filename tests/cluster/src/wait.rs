//! Waiting for a condition, with the last thing seen in the failure.

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

/// Long enough for a machine that does three other things; a test that needs all of it has failed.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// Calls `look` until `good` holds for what it gives, and returns that.
///
/// # Panics
///
/// After [`DEADLINE`], with `what` and the last thing seen.
#[track_caller]
pub fn wait_for<T: Debug>(what: &str, mut look: impl FnMut() -> T, good: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        let seen = look();
        if good(&seen) {
            return seen;
        }
        assert!(
            Instant::now() < end,
            "gave up waiting for {what}; last seen: {seen:#?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}
