//! The pause before trying again.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Doubles from `first` to `cap`, and takes a random half of that off, so that a thousand agents
/// that lost the same leader do not come back in the same instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            failures: 0,
        }
    }

    /// How long to wait after one more failure: between half of the current step and all of it.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let step = self
            .first
            .saturating_mul(1 << self.failures.min(20))
            .min(self.cap);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(rng.random_range(0.5..=1.0))
    }

    /// It worked: the next failure starts from the first step again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn grows_to_the_cap_and_starts_over() {
        let mut rng = StdRng::seed_from_u64(7);
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(8));
        let mut backoff = Backoff::new(first, cap);
        let mut step = first;
        for _ in 0..40 {
            let pause = backoff.next(&mut rng);
            assert!(pause >= step / 2 && pause <= step, "{pause:?} of {step:?}");
            step = (step * 2).min(cap);
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= first);
    }
}
