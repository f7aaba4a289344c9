//! The container's side of its own making: what runs between clone3(2) and the exec of the user's program.
//!
//! The process is a copy of the single-threaded supervisor, already in its namespaces and v2 cgroup. It builds its world in
//! the order below, says "ready" through the report FIFO, waits for one byte from the start FIFO, gives up its powers and
//! executes the program. Both FIFOs are held open read-write, so a supervisor that dies meanwhile can be replaced.
//!
//! Order that matters:
//! - cgroups before the cgroup namespace, whose root is where its maker stands;
//! - host paths (bind sources, FIFOs, layers) are opened before `pivot_root`;
//! - sysctls and the working directory before `/proc/sys` and the root become read-only;
//! - without `no_new_privileges` a filter needs `CAP_SYS_ADMIN`, so it comes before capabilities go; with it, as late as
//!   possible, so that it need not allow what the runtime itself does.

mod enter;
mod exec;
mod files;
mod init;
mod rootfs;
mod stage;
mod user;

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::Stream;
use crate::cgroup::Cgroup;
use crate::paths::ContainerPaths;
use crate::plan::{Namespaces, Plan, ProcessPlan, Rlimit};
use crate::seccomp::SeccompFilter;
use crate::sys::process;

pub(crate) use enter::{Entry, enter};
pub(crate) use stage::{WARM, Waiting, wait};

use rootfs::View;
use stage::Stage;

/// The byte that says a container is ready to be started.
pub(crate) const READY: u8 = b'R';

/// Why a container could not be made or started, as it crosses from the child to the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChildFailure {
    /// What failed, with its cause, in Docker's words where Docker has some.
    pub(crate) message: String,
    /// The exit code Docker gives such a container: 127 not found, 126 not executable, 128 otherwise.
    pub(crate) exit_code: i32,
}

impl ChildFailure {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            exit_code: 128,
        }
    }
}

/// Adds what was being done to an I/O error.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, ChildFailure>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, ChildFailure> {
        self.map_err(|error| ChildFailure::new(format!("{}: {}", what(), describe(&error.into()))))
    }
}

/// The text of an OS error as C libraries and Go print it: lower case, without its number.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

/// Becomes the container. Never returns; a failure is written to the report FIFO. `descriptors` is the limit of open files
/// unless the plan has one.
pub(crate) fn run(plan: &Plan, paths: &ContainerPaths, cgroup: &Cgroup, descriptors: &Rlimit) -> ! {
    // Inherited descriptors would keep the supervisor's sockets alive after it.
    let opened = process::close_from(3).and_then(|()| open_fifo(&paths.report_fifo()));
    let Ok(mut report) = opened else {
        process::exit_now(128)
    };
    let Err(failure) = build(plan, paths, cgroup, descriptors, &mut report);
    fail(&failure, &mut report)
}

fn build(
    plan: &Plan,
    paths: &ContainerPaths,
    cgroup: &Cgroup,
    descriptors: &Rlimit,
    report: &mut fs::File,
) -> Result<std::convert::Infallible, ChildFailure> {
    let pipes = Pipes::open(paths)?;
    settle(&plan.namespaces, cgroup)?;
    let view = View::of_host(plan, paths);
    complete(plan, &view, cgroup, descriptors, None, &pipes, report)
}

fn fail(failure: &ChildFailure, report: &mut fs::File) -> ! {
    let text = serde_json::to_vec(failure).unwrap_or_default();
    // The reader may be gone; the exit code is all that is left to say then.
    let _ = report.write_all(&text);
    process::exit_now(failure.exit_code)
}

fn open_fifo(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).write(true).open(path)
}

/// What connects the container's process with the supervisor, beside the report.
struct Pipes {
    start: fs::File,
    stdio: [fs::File; 3],
}

impl Pipes {
    fn open(paths: &ContainerPaths) -> Result<Self, ChildFailure> {
        let start = open_fifo(&paths.start_fifo()).doing(|| "open the start FIFO".to_owned())?;
        let stdio = [
            fs::File::open("/dev/null").doing(|| "open /dev/null".to_owned())?,
            open_fifo(&paths.fifo(Stream::Stdout)).doing(|| "open the stdout FIFO".to_owned())?,
            open_fifo(&paths.fifo(Stream::Stderr)).doing(|| "open the stderr FIFO".to_owned())?,
        ];
        Ok(Self { start, stdio })
    }
}

/// Takes its place in session, groups and namespaces.
fn settle(namespaces: &Namespaces, cgroup: &Cgroup) -> Result<(), ChildFailure> {
    rustix::process::setsid().doing(|| "make a session".to_owned())?;
    join_v1(cgroup)?;
    if namespaces.cgroup {
        unshare(CloneFlags::CLONE_NEWCGROUP).doing(|| "make a cgroup namespace".to_owned())?;
    }
    if let Some(path) = &namespaces.join_network {
        let namespace =
            fs::File::open(path).doing(|| format!("open network namespace {}", path.display()))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .doing(|| format!("join network namespace {}", path.display()))?;
    }
    Ok(())
}

/// Makes all that is the plan's own, and becomes its program.
fn complete(
    plan: &Plan,
    view: &View,
    cgroup: &Cgroup,
    descriptors: &Rlimit,
    stage: Option<Stage>,
    pipes: &Pipes,
    report: &mut fs::File,
) -> Result<std::convert::Infallible, ChildFailure> {
    // Always, since the supervisor's own low score is inherited. Lowering it needs CAP_SYS_RESOURCE, which a daemon in a
    // container may lack.
    let score = plan.process.oom_score_adj.unwrap_or(0);
    let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    names(plan)?;
    rootfs::enter(plan, view, cgroup, stage.as_ref())?;
    sysctls(plan, stage.as_ref())?;
    let owns_network = plan.namespaces.clone_flags & libc::CLONE_NEWNET as u64 != 0;
    if owns_network && stage.is_none() {
        process::loopback_up().doing(|| "bring lo up".to_owned())?;
    }
    // Docker makes a missing working directory, as root, with the umask of the daemon.
    let made = fs::create_dir_all(&plan.process.cwd);
    if stage.is_none() {
        rootfs::hide(&plan.readonly_paths, &plan.masked_paths)?;
    }
    // Nothing of the host is to be left in reach.
    drop(stage);
    if plan.readonly_root {
        rootfs::protect_root()?;
    }
    let user = user::resolve(&plan.process)?;
    if let Err(error) = made
        && !Path::new(&plan.process.cwd).is_dir()
    {
        return Err(ChildFailure::new(format!(
            "make working directory {:?}: {}",
            plan.process.cwd,
            describe(&error)
        )));
    }
    for limit in [descriptors].into_iter().chain(&plan.process.rlimits) {
        set_rlimit(limit.resource, limit.soft, limit.hard)?;
    }
    let [input, out, err] = &pipes.stdio;
    for file in [out, err] {
        // So that /dev/stdout can be opened again by the user the program runs as.
        rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(user.uid)), None)
            .doing(|| "hand over the output FIFOs".to_owned())?;
    }
    process::new_session_keyring(&format!("_ses.{}", plan.id))
        .doing(|| "make a session keyring".to_owned())?;
    rustix::stdio::dup2_stdin(input).doing(|| "set stdin".to_owned())?;
    rustix::stdio::dup2_stdout(out).doing(|| "set stdout".to_owned())?;
    rustix::stdio::dup2_stderr(err).doing(|| "set stderr".to_owned())?;

    report
        .write_all(&[READY])
        .doing(|| "report ready".to_owned())?;
    (&pipes.start)
        .read_exact(&mut [0])
        .doing(|| "wait for the start".to_owned())?;

    confine(&plan.process, plan.seccomp.as_ref(), &user)?;
    exec::become_program(&plan.process, &user, report)
}

fn join_v1(cgroup: &Cgroup) -> Result<(), ChildFailure> {
    for (_, group) in &cgroup.v1 {
        let tasks = group.join("tasks");
        fs::write(&tasks, "0").doing(|| format!("join cgroup {}", tasks.display()))?;
    }
    Ok(())
}

fn names(plan: &Plan) -> Result<(), ChildFailure> {
    if let Some(name) = &plan.hostname {
        nix::unistd::sethostname(name).doing(|| format!("set hostname {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        process::set_domainname(name).doing(|| format!("set domain name {name:?}"))?;
    }
    Ok(())
}

fn sysctls(plan: &Plan, stage: Option<&Stage>) -> Result<(), ChildFailure> {
    for (key, value) in &plan.sysctls {
        let written = match stage {
            Some(stage) => write_below(stage.sysctls.as_fd(), key, value),
            None => fs::write(Path::new("/proc/sys").join(key), value),
        };
        written.doing(|| format!("write sysctl {}", key.replace('/', ".")))?;
    }
    Ok(())
}

fn write_below(directory: BorrowedFd<'_>, path: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, path, flags, Mode::empty())?;
    fs::File::from(file).write_all(text.as_bytes())
}

/// Sets a limit; one above our own hard limit is lowered to it where the kernel lets us raise nothing.
fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), ChildFailure> {
    let result = match process::set_rlimit(resource, soft, hard) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => process::rlimit(resource)
            .and_then(|(_, own)| process::set_rlimit(resource, soft.min(own), hard.min(own))),
        other => other,
    };
    result.doing(|| format!("set resource limit {resource}"))
}

/// Gives up everything the program is not to have.
fn confine(
    process: &ProcessPlan,
    seccomp: Option<&SeccompFilter>,
    user: &user::User,
) -> Result<(), ChildFailure> {
    let load = || match seccomp {
        Some(filter) => process::load_seccomp(&filter.program, filter.flags)
            .doing(|| "load the seccomp filter".to_owned()),
        None => Ok(()),
    };
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(process.umask));
    if !process.no_new_privileges {
        load()?;
    }
    process::drop_bounding(process.capabilities.bounding)
        .doing(|| "drop bounding capabilities".to_owned())?;
    process::keep_capabilities_over_setuid().doing(|| "keep capabilities".to_owned())?;
    process::set_ids(user.uid, user.gid, &user.groups)
        .doing(|| format!("become user {}:{}", user.uid, user.gid))?;
    process::set_capabilities(process.capabilities).doing(|| "set capabilities".to_owned())?;
    rustix::process::chdir(&process.cwd)
        .doing(|| format!("chdir to cwd ({:?}) set in config.json failed", process.cwd))?;
    if process.no_new_privileges {
        process::set_no_new_privs().doing(|| "set no_new_privs".to_owned())?;
        load()?;
    }
    Ok(())
}
