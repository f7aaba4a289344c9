//! What is known of containers, as the API tells it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One of a container's output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    pub(crate) const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// The stream's name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A container whose program was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The container's first process, in the daemon's pid namespace.
    pub pid: u32,
    /// When it was released.
    pub started_at: Timestamp,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The program's exit code; 128 + n when signal n ended it; 255 when nobody saw it end.
    pub code: i32,
    /// The kernel killed a process of the container because it reached its memory limit.
    pub oom_killed: bool,
    /// When the supervisor learnt of it.
    pub at: Timestamp,
    /// Why the container never ran, or why `code` is not the program's own.
    pub reason: Option<String>,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Made, waiting to be started.
    Created {
        /// Its first process.
        pid: u32,
    },
    /// Started and not yet ended.
    Running(Started),
    /// Ended; still there until it is deleted.
    Exited(ExitStatus),
}

/// One container, as the supervisor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The id it was created with.
    pub id: String,
    /// Where it is in its life.
    pub phase: Phase,
}
