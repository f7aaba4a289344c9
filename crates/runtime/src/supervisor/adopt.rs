//! Taking over what a dead supervisor left: every directory and every cgroup is either a container or removed.
//!
//! Only what never became a container, or has ended without anybody being able to read its record, is removed. One that
//! lives and cannot be adopted now (no descriptors, a record of a later version) is left alone and tried again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::container::{self, Container, Record, Stage};
use super::create;
use super::journal::Output;
use crate::cgroup::CgroupHost;
use crate::paths::Paths;

/// How long killed processes of a half-made container may take to go.
const DEATH_PATIENCE: Duration = Duration::from_secs(2);

/// How long those of a process that ran beside the container's may take.
const EXEC_PATIENCE: Duration = Duration::from_millis(200);

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) containers: Vec<Container>,
    /// The ids of those that may live and could not be adopted.
    pub(super) postponed: BTreeSet<String>,
    /// What went wrong.
    pub(super) errors: Vec<String>,
}

/// Finds all containers; half-made ones are removed, and so is whatever belongs to none.
pub(super) fn adopt(paths: &Paths, cgroups: &CgroupHost) -> io::Result<Found> {
    let mut found = Found::default();
    for entry in fs::read_dir(paths.bundles())? {
        let Ok(id) = entry?.file_name().into_string() else {
            continue;
        };
        match adopt_one(&id, paths, cgroups) {
            Ok(Some(container)) => found.containers.push(container),
            Ok(None) => found.errors.extend(discard(&id, paths, cgroups)),
            Err(error) => {
                found.errors.push(format!("adopt {id}: {error}"));
                let readable = error.kind() != io::ErrorKind::InvalidData;
                if readable || cgroups.of(&paths.container(&id).group()).is_populated() {
                    found.postponed.insert(id);
                } else {
                    found.errors.extend(discard(&id, paths, cgroups));
                }
            }
        }
    }
    let adopted = found
        .containers
        .iter()
        .map(|container| &container.record.id);
    let known = adopted.chain(&found.postponed);
    let groups: BTreeSet<String> = known.map(|id| paths.container(id).group()).collect();
    for name in cgroups.leftovers() {
        if !groups.contains(&name) {
            found.errors.extend(discard(&name, paths, cgroups));
        }
    }
    // Those of sandboxes, whose groups were among the others.
    for entry in fs::read_dir(paths.sandboxes())? {
        fs::remove_dir_all(entry?.path())?;
    }
    Ok(found)
}

/// Reads a record; one that makes no sense is [`io::ErrorKind::InvalidData`].
fn parse(bytes: &[u8]) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if record.version > container::RECORD_VERSION {
        let text = format!("its record has the later version {}", record.version);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(record)
}

/// Adopts one container. `None`: there is nothing to adopt, since it was never ready.
pub(super) fn adopt_one(
    id: &str,
    paths: &Paths,
    cgroups: &CgroupHost,
) -> io::Result<Option<Container>> {
    let own = paths.container(id);
    let record: Record = match fs::read(own.record()) {
        Ok(bytes) => parse(&bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !record.ready && record.exit.is_none() {
        return Ok(None);
    }
    let output = Output::adopt(id, &own, record.log);
    let cgroup = existing(cgroups, &own.group());
    for exec in cgroup.execs() {
        // Nobody waits for them any more. A group that is still busy goes with the container's.
        let _ = exec.kill();
        let _ = exec.remove(EXEC_PATIENCE);
    }
    let mut container = Container {
        cgroup,
        output,
        stage: Stage::Exited,
        pidfd: None,
        is_child: container::parent(record.pid) == Some(std::process::id()),
        fifos: [None, None],
        report: None,
        reported: Vec::new(),
        lost_since: None,
        retries: [None; 2],
        log_noted: None,
        creating: Vec::new(),
        starting: Vec::new(),
        waiting: Vec::new(),
        deleting: Vec::new(),
        paths: own,
        record,
    };
    if container.record.exit.is_some() {
        return Ok(Some(container));
    }
    container.fifos = container::open_outputs(&container.paths)?;
    container.pidfd = process_of(&container.record)?;
    if container.pidfd.is_none() {
        // It ended while nobody looked. The daemon may know more; it says so in its greeting.
        container.stage = Stage::Running;
        container.lost_since = Some(Instant::now());
        return Ok(Some(container));
    }
    let report = container::open_reader(&container.paths.report_fifo())?;
    let mut buffer = [0; 4096];
    container.stage = match rustix::io::read(&report, &mut buffer) {
        // No writer: the program was executed, or the process is just ending, which its pidfd tells.
        Ok(0) => Stage::Running,
        Ok(count) => {
            container.reported.extend_from_slice(&buffer[..count]);
            Stage::Starting
        }
        Err(rustix::io::Errno::AGAIN) if container.record.started_at.is_some() => Stage::Starting,
        Err(rustix::io::Errno::AGAIN) => Stage::Created,
        Err(error) => return Err(error.into()),
    };
    if container.stage != Stage::Running {
        container.report = Some(report);
    }
    Ok(Some(container))
}

/// The groups of a container that were really made.
fn existing(cgroups: &CgroupHost, name: &str) -> crate::cgroup::Cgroup {
    let mut cgroup = cgroups.of(name);
    cgroup.v1.retain(|(_, path)| path.is_dir());
    cgroup
}

/// A pidfd of the recorded process, if it still is that process.
fn process_of(record: &Record) -> io::Result<Option<std::os::fd::OwnedFd>> {
    if record.boot_id != container::boot_id() {
        return Ok(None);
    }
    let Some(pid) = i32::try_from(record.pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Asked after the pidfd was opened, so the answer is about the process the pidfd holds.
    Ok((container::start_time(record.pid) == Some(record.start_time)).then_some(pidfd))
}

/// Kills and removes whatever there is under an id that is no container's.
pub(super) fn discard(id: &str, paths: &Paths, cgroups: &CgroupHost) -> Vec<String> {
    let own = paths.container(id);
    let cgroup = cgroups.of(&own.group());
    let mut errors = Vec::new();
    if cgroup.v2.as_ref().is_some_and(|path| path.is_dir()) || cgroup.v2.is_none() {
        if let Err(error) = cgroup.kill() {
            errors.push(create::chain(&error));
        }
        let deadline = Instant::now() + DEATH_PATIENCE;
        while cgroup.is_populated() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // Data that was there before the creation began is somebody's; so is what no record claims.
    let record = fs::read(own.record()).ok();
    let record = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
    if record.is_some_and(|record| record.made_state && !record.ready) {
        let _ = fs::remove_dir_all(&own.state);
    }
    errors.extend(create::remove(&own, &cgroup));
    errors
}
