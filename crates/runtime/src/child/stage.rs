//! A sandbox: what a container has whatever it is, made before anybody asks for one.
//!
//! The process that will be the container's builds its namespaces' standard mounts on a root of its own, which shows nothing
//! of the host but the layers and the containers' state, and waits. When a plan comes it goes on as [`super::run`] does,
//! with what is left: the overlay, what the user mounts, the names, the limits of the process. A sandbox is used once.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};

use super::rootfs::{self, View};
use super::{ChildFailure, Doing, Pipes, fail, open_fifo};
use crate::cgroup::Cgroup;
use crate::paths::ContainerPaths;
use crate::plan::{Plan, Rlimit, Shape};
use crate::sys::process;

/// The byte that says a sandbox waits for its container.
pub(crate) const WARM: u8 = b'W';

/// Where on the waiting root the host's directories are, and where the container's root is to be.
const LAYERS: &str = "/layers";
const STATES: &str = "/states";
const ROOT: &str = "/root";

/// What the process of a sandbox is cloned with.
pub(crate) struct Waiting<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) paths: &'a ContainerPaths,
    pub(crate) cgroup: &'a Cgroup,
    /// The limit of open files unless the plan has one.
    pub(crate) descriptors: &'a Rlimit,
    /// The supervisor's mount namespace: what users mount is looked up there, when it is mounted.
    pub(crate) host: OwnedFd,
    /// Holds the plan, as JSON, as soon as a byte comes from `wake`. Its end is the sandbox's.
    pub(crate) plan: fs::File,
    pub(crate) wake: fs::File,
}

/// What has been made.
pub(super) struct Stage {
    /// How many of the plan's mounts: the first ones.
    pub(super) mounts: usize,
    /// `/proc/sys` from before it was write-protected.
    pub(super) sysctls: OwnedFd,
    host: OwnedFd,
    own: OwnedFd,
}

/// Waits for a plan and becomes its container. Never returns; a failure is written to the report FIFO.
pub(crate) fn wait(waiting: Waiting<'_>) -> ! {
    let keep = [
        waiting.host.as_fd(),
        waiting.plan.as_fd(),
        waiting.wake.as_fd(),
    ];
    let opened =
        process::close_all_but(&keep).and_then(|()| open_fifo(&waiting.paths.report_fifo()));
    let Ok(mut report) = opened else {
        process::exit_now(128)
    };
    let Err(failure) = go_on(waiting, &mut report);
    fail(&failure, &mut report)
}

fn go_on(
    mut waiting: Waiting<'_>,
    report: &mut fs::File,
) -> Result<std::convert::Infallible, ChildFailure> {
    let pipes = Pipes::open(waiting.paths)?;
    super::settle(&waiting.shape.namespaces, waiting.cgroup)?;
    let states = waiting.paths.state.parent().expect("a state has a parent");
    let stage = build(&waiting, states)?;
    report
        .write_all(&[WARM])
        .doing(|| "report ready".to_owned())?;
    if waiting.wake.read(&mut [0]).is_ok_and(|count| count == 0) {
        // The supervisor has gone, or wants no sandbox any more.
        process::exit_now(0);
    }
    let plan = read_plan(&mut waiting.plan).doing(|| "read the plan".to_owned())?;
    let state = Path::new(STATES).join(&plan.id);
    let of_state = |path: PathBuf| state.join(path.file_name().expect("a name below the state"));
    let view = View {
        layers: LAYERS.into(),
        upper: of_state(waiting.paths.upper()),
        work: of_state(waiting.paths.work()),
        etc: of_state(waiting.paths.etc()),
        root: ROOT.into(),
        files: "/files".into(),
        empty: "/empty".into(),
    };
    let (cgroup, descriptors) = (waiting.cgroup, waiting.descriptors);
    super::complete(
        &plan,
        &view,
        cgroup,
        descriptors,
        Some(stage),
        &pipes,
        report,
    )
}

fn read_plan(file: &mut fs::File) -> io::Result<Plan> {
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Leaves the host's tree for a root that has only what is needed.
fn build(waiting: &Waiting<'_>, states: &Path) -> Result<Stage, ChildFailure> {
    let (shape, place) = (waiting.shape, waiting.paths.rootfs());
    let groups = rootfs::clone_cgroups(&shape.mounts, waiting.cgroup)?;
    rootfs::make_private()?;
    rustix::mount::mount(
        "tmpfs",
        &place,
        "tmpfs",
        rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV,
        c"mode=0700",
    )
    .doing(|| "mount a waiting root".to_owned())?;
    let root = rootfs::open_directory(&place).doing(|| "open the waiting root".to_owned())?;
    rootfs::show(root.as_fd(), &shape.layers_dir, LAYERS)?;
    rootfs::show(root.as_fd(), states, STATES)?;
    rootfs::mount_staged(root.as_fd(), &shape.mounts, &groups)?;
    rootfs::pivot(&place)?;
    fs::create_dir(ROOT).doing(|| format!("make {ROOT}"))?;
    let open = |path: &str, flags| {
        let flags = flags | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).doing(|| format!("open {path}"))
    };
    let sysctls = open("/proc/sys", OFlags::PATH | OFlags::DIRECTORY)?;
    let own = open("/proc/self/ns/mnt", OFlags::RDONLY)?;
    rootfs::hide(&shape.readonly_paths, &shape.masked_paths)?;
    process::loopback_up().doing(|| "bring lo up".to_owned())?;
    let host = waiting
        .host
        .try_clone()
        .doing(|| "keep the host".to_owned())?;
    Ok(Stage {
        mounts: shape.mounts.len(),
        sysctls,
        host,
        own,
    })
}

impl Stage {
    /// Does something where the host's paths mean what they mean now.
    pub(super) fn on_host<T>(
        &self,
        work: impl FnOnce() -> Result<T, ChildFailure>,
    ) -> Result<T, ChildFailure> {
        let enter = |namespace: &OwnedFd| {
            setns(namespace, CloneFlags::CLONE_NEWNS)
                .doing(|| "change the mount namespace".to_owned())
        };
        enter(&self.host)?;
        let result = work();
        enter(&self.own)?;
        result
    }
}
