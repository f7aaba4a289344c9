//! Where the figures come from.

use std::{fmt, fs, thread};

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    cores: usize,
    cpu: String,
    memory_mib: u64,
    kernel: String,
    distribution: String,
    /// Processes that ran or wanted to, averaged over the minute before the run.
    load_before: f64,
}

impl Machine {
    /// Whatever cannot be read is left empty: it only describes.
    pub(crate) fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str, separator: char| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(separator))
                .map(|value| value.trim().trim_matches('"').to_owned())
                .unwrap_or_default()
        };
        let memory = field(&text("/proc/meminfo"), "MemTotal", ':');
        Self {
            cores: thread::available_parallelism().map_or(0, usize::from),
            cpu: field(&text("/proc/cpuinfo"), "model name", ':'),
            memory_mib: memory
                .split_whitespace()
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            distribution: field(&text("/etc/os-release"), "PRETTY_NAME", '='),
            load_before: text("/proc/loadavg")
                .split_whitespace()
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or_default(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Machine: {} cores ({}), {} MiB, kernel {}, {}; load before the run {:.2}.",
            self.cores, self.cpu, self.memory_mib, self.kernel, self.distribution, self.load_before
        )
    }
}
