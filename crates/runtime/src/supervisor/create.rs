//! Making a container up to its process, and removing it again.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::container::{self, Container, Record, Stage};
use super::journal::Output;
use super::{adopt, note};
use crate::Stream;
use crate::cgroup::{Cgroup, CgroupHost};
use crate::child;
use crate::paths::{ContainerPaths, Paths};
use crate::plan::{Confinement, Plan, Rlimit};
use crate::protocol::Failure;
use crate::sys::process::{Cloned, clone_child};

/// How long dying processes may keep a cgroup busy.
const CGROUP_PATIENCE: Duration = Duration::from_millis(500);

/// Makes directories, cgroups and the process. On an error everything made is removed again.
pub(super) fn make(
    plan: &Plan,
    paths: &Paths,
    cgroups: &mut CgroupHost,
    descriptors: &Rlimit,
) -> Result<Container, Failure> {
    let own = paths.container(&plan.id);
    // Nobody knows this id: whatever is there is a remnant, or could not be adopted.
    if own.bundle.exists() {
        adopt::discard(&plan.id, paths, cgroups);
    }
    let made_state = match mkdir(&own.state, 0o710) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(step("make", &own.state)(error)),
    };
    let result = make_in(plan, &own, cgroups, descriptors, made_state);
    if result.is_err() {
        let groups = cgroups.of(&plan.id);
        let _ = groups.kill();
        let _ = groups.remove(CGROUP_PATIENCE);
        let _ = fs::remove_dir_all(&own.bundle);
        if made_state {
            let _ = fs::remove_dir_all(&own.state);
        }
    }
    result
}

fn make_in(
    plan: &Plan,
    own: &ContainerPaths,
    cgroups: &mut CgroupHost,
    descriptors: &Rlimit,
    made_state: bool,
) -> Result<Container, Failure> {
    if !plan.rootfs.layers_dir.is_dir() {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        return Err(step("open layers directory", &plan.rootfs.layers_dir)(
            missing,
        ));
    }
    for directory in [&own.bundle, &own.rootfs()] {
        mkdir(directory, 0o700).map_err(step("make", directory))?;
    }
    // Those of an earlier container whose layer was kept may be as large, and of such a mode, as it has left them.
    match fs::remove_dir_all(own.etc()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(step("remove", &own.etc())(error));
        }
        _ => {}
    }
    for directory in [own.upper(), own.work(), own.etc()] {
        match mkdir(&directory, 0o755) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(step("make", &directory)(error));
            }
            _ => {}
        }
    }
    for (name, content) in [
        ("hostname", &plan.etc.hostname),
        ("hosts", &plan.etc.hosts),
        ("resolv.conf", &plan.etc.resolv_conf),
    ] {
        let path = own.etc().join(name);
        fs::write(&path, content).map_err(step("write", &path))?;
    }
    let fifos = [
        own.fifo(Stream::Stdout),
        own.fifo(Stream::Stderr),
        own.start_fifo(),
        own.report_fifo(),
    ];
    for path in &fifos {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .map_err(|errno| step("make", path)(errno.into()))?;
    }
    let mut record = Record {
        version: container::RECORD_VERSION,
        id: plan.id.clone(),
        pid: 0,
        start_time: 0,
        boot_id: container::boot_id(),
        ready: false,
        made_state,
        started_at: None,
        exit: None,
        log: plan.log,
    };
    container::save(own, &record).map_err(step("write", &own.record()))?;
    let confinement = Confinement {
        process: plan.process.clone(),
        seccomp: plan.seccomp.clone(),
        descriptors: descriptors.clone(),
    };
    let confinement = serde_json::to_vec(&confinement).expect("plain data always becomes JSON");
    fs::write(own.confinement(), confinement).map_err(step("write", &own.confinement()))?;
    let group = cgroups
        .create(&plan.id, &plan.limits, &plan.device_rules)
        .map_err(|error| Failure::Step(chain(&error)))?;
    let output = Output::open(&plan.id, own, plan.log).map_err(step("open log", &own.log()))?;
    let outputs = container::open_outputs(own).map_err(step("open", &own.bundle))?;
    let report =
        container::open_reader(&own.report_fifo()).map_err(step("open", &own.report_fifo()))?;

    let directory = group
        .open_v2()
        .map_err(|error| Failure::Step(chain(&error)))?;
    let cloned = clone_child(
        plan.namespaces.clone_flags,
        directory.as_ref().map(AsFd::as_fd),
    )
    .map_err(|error| Failure::Step(format!("clone the container's process: {error}")))?;
    let Cloned::Parent { pid, pidfd } = cloned else {
        child::run(plan, own, &group, descriptors)
    };
    record.pid = pid;
    record.start_time = container::start_time(pid).unwrap_or(0);
    let container = Container {
        paths: own.clone(),
        record,
        stage: Stage::Making,
        cgroup: group,
        pidfd: Some(pidfd),
        is_child: true,
        fifos: outputs,
        output,
        report: Some(report),
        reported: Vec::new(),
        lost_since: None,
        retries: [None; 2],
        log_noted: None,
        creating: Vec::new(),
        starting: Vec::new(),
        waiting: Vec::new(),
        deleting: Vec::new(),
    };
    Ok(container)
}

/// Kills a container just made, waits for its process and removes all that was made.
pub(super) fn abandon(container: &Container) {
    if let Some(pidfd) = &container.pidfd {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    }
    for error in remove(&container.paths, &container.cgroup) {
        note(&error);
    }
    if container.record.made_state {
        let _ = fs::remove_dir_all(&container.paths.state);
    }
}

/// Removes the bundle and the cgroups of a container whose processes have ended; goes on after an error.
pub(super) fn remove(paths: &ContainerPaths, cgroup: &Cgroup) -> Vec<String> {
    let mut errors = Vec::new();
    if let Err(error) = cgroup.remove(CGROUP_PATIENCE) {
        errors.push(chain(&error));
    }
    match fs::remove_dir_all(&paths.bundle) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.push(format!("remove {}: {error}", paths.bundle.display()));
        }
        _ => {}
    }
    errors
}

fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(mode).create(path)
}

fn step(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::Step(format!("{what} {}: {error}", path.display()))
}

/// An error with its causes, for the wire.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
