//! One container as its supervisor holds it.
//!
//! ```text
//! Making ──ready──▶ Created ──start──▶ Starting ──exec──▶ Running ──▶ Exited
//!    └──────────── failure or death of the process ─────────────────────▲
//! ```
//! The record on disk is written before each step it tells of, so that a new supervisor can take over at any point; what
//! the record cannot say (has the program been executed?) is asked of the report FIFO: it has a writer until then.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::time::Instant;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::journal::Output;
use crate::cgroup::Cgroup;
use crate::paths::ContainerPaths;
use crate::{ContainerState, ExitStatus, LogConfig, Phase, Started, Stream};

/// The form of the records written here; raised only when an older supervisor would misread one: in version 2 the
/// container's cgroups may be named otherwise than by its id.
pub(super) const RECORD_VERSION: u32 = 2;

/// The form that a record has when every supervisor reads it well.
pub(super) const FIRST_RECORD_VERSION: u32 = 1;

/// What is kept of a container on disk. A record of another version must stay readable: a field that is new has a default.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(default)]
    pub(super) version: u32,
    pub(super) id: String,
    pub(super) pid: u32,
    /// The process's start time in clock ticks since boot: with the pid, who it is.
    pub(super) start_time: u64,
    /// The boot in which all this is true.
    pub(super) boot_id: String,
    pub(super) ready: bool,
    /// The state directory was made for this container, so a failed creation removes it.
    #[serde(default)]
    pub(super) made_state: bool,
    #[serde(default)]
    pub(super) started_at: Option<Timestamp>,
    #[serde(default)]
    pub(super) exit: Option<ExitStatus>,
    #[serde(default)]
    pub(super) log: LogConfig,
}

/// Who waits for an answer: connection and sequence number.
pub(super) type Asker = (u64, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Making,
    Created,
    Starting,
    Running,
    Exited,
}

pub(super) struct Container {
    pub(super) paths: ContainerPaths,
    pub(super) record: Record,
    pub(super) stage: Stage,
    pub(super) cgroup: Cgroup,
    /// Until the process has been waited for.
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) is_child: bool,
    /// The read ends of the output FIFOs, until the container has ended.
    pub(super) fifos: [Option<OwnedFd>; 2],
    pub(super) output: Output,
    pub(super) report: Option<OwnedFd>,
    pub(super) reported: Vec<u8>,
    /// An adopted process has ended, but its status is not yet to be had; until when we ask.
    pub(super) lost_since: Option<Instant>,
    /// When reading a stream, which failed, is tried again.
    pub(super) retries: [Option<Instant>; 2],
    /// When a trouble of the log was last noted.
    pub(super) log_noted: Option<Instant>,
    pub(super) creating: Vec<Asker>,
    pub(super) starting: Vec<Asker>,
    pub(super) waiting: Vec<Asker>,
    pub(super) deleting: Vec<Asker>,
}

impl Container {
    pub(super) fn state(&self) -> Option<ContainerState> {
        let phase = match (self.stage, &self.record.exit) {
            (Stage::Making, _) => return None,
            (Stage::Exited, Some(status)) => Phase::Exited(status.clone()),
            (Stage::Running, _) => Phase::Running(self.started()?),
            _ => Phase::Created {
                pid: self.record.pid,
            },
        };
        Some(ContainerState {
            id: self.record.id.clone(),
            phase,
        })
    }

    pub(super) fn started(&self) -> Option<Started> {
        Some(Started {
            pid: self.record.pid,
            started_at: self.record.started_at?,
        })
    }

    /// Replaces the record on disk as a whole.
    pub(super) fn save(&self) -> io::Result<()> {
        save(&self.paths, &self.record)
    }
}

pub(super) fn save(paths: &ContainerPaths, record: &Record) -> io::Result<()> {
    let path = paths.record();
    let fresh = path.with_extension("new");
    fs::write(&fresh, serde_json::to_vec(record)?)?;
    fs::rename(fresh, path)
}

/// Opens a FIFO's read end without waiting for a writer.
pub(super) fn open_reader(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

pub(super) fn open_outputs(paths: &ContainerPaths) -> io::Result<[Option<OwnedFd>; 2]> {
    let open = |stream| open_reader(&paths.fifo(stream)).map(Some);
    Ok([open(Stream::Stdout)?, open(Stream::Stderr)?])
}

/// When a process was started, in clock ticks since boot (field 22 of `proc_pid_stat(5)`).
pub(super) fn start_time(pid: u32) -> Option<u64> {
    stat_field(pid, 22)
}

/// The parent of a process (field 4).
pub(super) fn parent(pid: u32) -> Option<u32> {
    stat_field(pid, 4)
}

fn stat_field<T: std::str::FromStr>(pid: u32, number: usize) -> Option<T> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, is in parentheses and may contain anything, parentheses and spaces too.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(number - 3)?.parse().ok()
}

pub(super) fn boot_id() -> String {
    static ID: LazyLock<String> = LazyLock::new(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        text.trim().to_owned()
    });
    ID.clone()
}
