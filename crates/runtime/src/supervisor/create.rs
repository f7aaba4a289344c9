//! Making a container up to its process, and removing it again.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::container::{self, Container, Record, Stage};
use super::journal::Output;
use super::pool::Sandbox;
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

/// Makes directories, cgroups and the process, or takes what of them the sandbox is. On an error everything made is
/// removed again, and so is the sandbox.
pub(super) fn make(
    plan: &Plan,
    paths: &Paths,
    cgroups: &mut CgroupHost,
    descriptors: &Rlimit,
    sandbox: Option<Sandbox>,
) -> Result<Container, Failure> {
    let own = paths.container(&plan.id);
    // Nobody knows this id: whatever is there is a remnant, or could not be adopted.
    if own.bundle.exists() {
        adopt::discard(&plan.id, paths, cgroups);
    }
    let made_state = match make_state(plan, &own) {
        Ok(made) => made,
        Err(failure) => {
            if let Some(sandbox) = sandbox {
                sandbox.retire();
            }
            return Err(failure);
        }
    };
    let moved = sandbox.and_then(|sandbox| {
        let moved = move_in(plan, &own, cgroups, descriptors, made_state, sandbox);
        let failed = |failure: &Failure| note(&format!("move into a sandbox: {failure:?}"));
        moved.inspect_err(failed).ok()
    });
    // A sandbox may just have been killed, and what is wrong with the plan is found again.
    let result = match moved {
        Some(container) => Ok(container),
        None => make_at_once(plan, &own, cgroups, descriptors, made_state),
    };
    if result.is_err() {
        let groups = cgroups.of(&own.group());
        let _ = groups.kill();
        let _ = groups.remove(CGROUP_PATIENCE);
        let _ = fs::remove_dir_all(&own.bundle);
        if made_state {
            let _ = fs::remove_dir_all(&own.state);
        }
    }
    result
}

/// Makes a container from nothing.
fn make_at_once(
    plan: &Plan,
    own: &ContainerPaths,
    cgroups: &mut CgroupHost,
    descriptors: &Rlimit,
    made_state: bool,
) -> Result<Container, Failure> {
    make_bundle(own)?;
    let mut record = record(plan, made_state);
    write_records(plan, own, &record, descriptors)?;
    let group = cgroups
        .create(&plan.id, &plan.limits, &plan.device_rules)
        .map_err(|error| Failure::Step(chain(&error)))?;
    let report =
        container::open_reader(&own.report_fifo()).map_err(step("open", &own.report_fifo()))?;
    let (output, outputs) = open_output(plan, own)?;
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
    let made = Made {
        record,
        group,
        pidfd,
        report,
    };
    Ok(container(own, made, output, outputs))
}

/// Makes a container of a sandbox. Until its bundle is renamed it is a sandbox, and what it is named by is removed with it.
fn move_in(
    plan: &Plan,
    own: &ContainerPaths,
    cgroups: &CgroupHost,
    descriptors: &Rlimit,
    made_state: bool,
    mut sandbox: Sandbox,
) -> Result<Container, Failure> {
    let mut record = record(plan, made_state);
    record.version = container::RECORD_VERSION;
    record.pid = sandbox.pid;
    record.start_time = sandbox.start_time;
    let moved = write_records(plan, &sandbox.paths, &record, descriptors)
        .and_then(|()| {
            cgroups
                .limit(&sandbox.cgroup, &plan.limits)
                .map_err(|error| Failure::Step(chain(&error)))
        })
        .and_then(|()| {
            fs::rename(&sandbox.paths.bundle, &own.bundle).map_err(step("make", &own.bundle))
        });
    if let Err(failure) = moved {
        sandbox.retire();
        return Err(failure);
    }
    sandbox.paths = own.clone();
    let opened = open_output(plan, own).and_then(|opened| {
        sandbox
            .give(plan)
            .map_err(step("give its plan to", &own.bundle))?;
        Ok(opened)
    });
    match opened {
        Ok((output, outputs)) => {
            let made = Made {
                record,
                group: sandbox.cgroup,
                pidfd: sandbox.pidfd,
                report: sandbox.report,
            };
            Ok(container(own, made, output, outputs))
        }
        Err(failure) => {
            sandbox.retire();
            Err(failure)
        }
    }
}

/// Directories and files that are kept with the container's data. Whether there were none before.
fn make_state(plan: &Plan, own: &ContainerPaths) -> Result<bool, Failure> {
    if !plan.rootfs.layers_dir.is_dir() {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        return Err(step("open layers directory", &plan.rootfs.layers_dir)(
            missing,
        ));
    }
    let made = match mkdir(&own.state, 0o710) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(step("make", &own.state)(error)),
    };
    let filled = fill_state(plan, own, made);
    if filled.is_err() && made {
        let _ = fs::remove_dir_all(&own.state);
    }
    filled.map(|()| made)
}

fn fill_state(plan: &Plan, own: &ContainerPaths, made: bool) -> Result<(), Failure> {
    // Those of an earlier container whose layer was kept may be as large, and of such a mode, as it has left them.
    match fs::remove_dir_all(own.etc()) {
        _ if made => {}
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
    Ok(())
}

/// The directory of a container or sandbox, with the FIFOs of its process.
pub(super) fn make_bundle(own: &ContainerPaths) -> Result<(), Failure> {
    for directory in [&own.bundle, &own.rootfs()] {
        mkdir(directory, 0o700).map_err(step("make", directory))?;
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
    Ok(())
}

fn record(plan: &Plan, made_state: bool) -> Record {
    Record {
        version: container::FIRST_RECORD_VERSION,
        id: plan.id.clone(),
        pid: 0,
        start_time: 0,
        boot_id: container::boot_id(),
        ready: false,
        made_state,
        started_at: None,
        exit: None,
        log: plan.log,
    }
}

/// What another supervisor needs to know of the container.
fn write_records(
    plan: &Plan,
    place: &ContainerPaths,
    record: &Record,
    descriptors: &Rlimit,
) -> Result<(), Failure> {
    container::save(place, record).map_err(step("write", &place.record()))?;
    let confinement = Confinement {
        process: plan.process.clone(),
        seccomp: plan.seccomp.clone(),
        descriptors: descriptors.clone(),
    };
    let confinement = serde_json::to_vec(&confinement).expect("plain data always becomes JSON");
    fs::write(place.confinement(), confinement).map_err(step("write", &place.confinement()))
}

type Outputs = [Option<OwnedFd>; 2];

fn open_output(plan: &Plan, own: &ContainerPaths) -> Result<(Output, Outputs), Failure> {
    let output = Output::open(&plan.id, own, plan.log).map_err(step("open log", &own.log()))?;
    let outputs = container::open_outputs(own).map_err(step("open", &own.bundle))?;
    Ok((output, outputs))
}

/// The process of a container, and what it is known by.
struct Made {
    record: Record,
    group: Cgroup,
    pidfd: OwnedFd,
    report: OwnedFd,
}

fn container(own: &ContainerPaths, made: Made, output: Output, outputs: Outputs) -> Container {
    Container {
        paths: own.clone(),
        record: made.record,
        stage: Stage::Making,
        cgroup: made.group,
        pidfd: Some(made.pidfd),
        is_child: true,
        fifos: outputs,
        output,
        report: Some(made.report),
        reported: Vec::new(),
        lost_since: None,
        retries: [None; 2],
        log_noted: None,
        creating: Vec::new(),
        starting: Vec::new(),
        waiting: Vec::new(),
        deleting: Vec::new(),
    }
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
