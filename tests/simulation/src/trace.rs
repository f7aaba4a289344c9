//! The last things that happened, kept only while somebody wants to read them.

use std::collections::VecDeque;

use shoal_types::Timestamp;

const KEPT: usize = 50;

/// A seed replays exactly, so a run keeps nothing; the failing one is run again with this switched on.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) on: bool,
    pub(crate) print: bool,
    pub(crate) lines: VecDeque<String>,
    /// Of everything that happened, in order: equal for two runs of a seed.
    pub(crate) digest: u64,
}

impl Trace {
    pub(crate) fn mix(&mut self, value: u64) {
        // FNV-1a, a word at a time.
        self.digest = (self.digest ^ value).wrapping_mul(0x0000_0100_0000_01b3);
    }

    #[expect(
        clippy::print_stderr,
        reason = "the runner was asked to tell everything"
    )]
    pub(crate) fn note(&mut self, now: Timestamp, text: impl FnOnce() -> String) {
        if !self.on {
            return;
        }
        let millis = (now.0 - super::world::START.0) / 1_000_000;
        let line = format!("{:>8}.{:03} {}", millis / 1000, millis % 1000, text());
        if self.print {
            eprintln!("{line}");
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}
