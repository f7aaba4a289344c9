//! Keeps a run within its time, however busy the machine is.

use std::time::{Duration, Instant};

/// Until when something may go on taking samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    pub(crate) fn passed(self) -> bool {
        Instant::now() >= self.0
    }

    /// Whether sample number `taken` (from 0) of `wanted` is to be taken: the first always, the others in time.
    pub(crate) fn allows(self, taken: usize, wanted: usize) -> bool {
        taken < wanted && (taken == 0 || !self.passed())
    }

    /// The same, `time` later.
    pub(crate) fn plus(self, time: Duration) -> Self {
        Self(self.0 + time)
    }

    /// The part `share` (0 to 1) of what is left.
    pub(crate) fn share(self, share: f64) -> Self {
        let left = self.0.saturating_duration_since(Instant::now());
        Self::after(left.mul_f64(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_sample_is_always_taken_and_never_more_than_wanted() {
        let passed = Deadline::after(Duration::ZERO);
        assert!(passed.allows(0, 3) && !passed.allows(1, 3));
        let far = Deadline::after(Duration::from_hours(1));
        assert!(far.allows(2, 3) && !far.allows(3, 3));
        assert!(!far.share(0.5).passed());
    }
}
