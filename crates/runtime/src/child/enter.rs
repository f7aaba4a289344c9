//! One more process in a running container: what runs between clone3(2) and the exec of its program.
//!
//! The process is a copy of the supervisor, already in the container's pid namespace and in a v2 cgroup of its own below the
//! container's. Whatever of the host it still holds goes before it looks at anything inside: all descriptors but its own
//! pipes, and `/proc/<pid>` (not dumpable until the exec), which the container's processes see from the first moment.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};

use super::{ChildFailure, Doing, confine, exec, join_v1, set_rlimit, user};
use crate::cgroup::Cgroup;
use crate::plan::{Confinement, ProcessPlan};
use crate::sys::process;

/// Where a process is to go, and what it has.
pub(crate) struct Entry<'a> {
    pub(crate) confinement: &'a Confinement,
    pub(crate) process: &'a ProcessPlan,
    /// The container's first process.
    pub(crate) container: &'a OwnedFd,
    /// The groups of this process.
    pub(crate) cgroup: &'a Cgroup,
    /// Takes standard output and standard error.
    pub(crate) output: OwnedFd,
    /// Takes the failure, if there is one; closes when the program is executed.
    pub(crate) report: OwnedFd,
}

/// Becomes the program. Never returns; a failure is written to the report.
pub(crate) fn enter(entry: Entry<'_>) -> ! {
    let (report, output) = (entry.report, entry.output);
    // Nothing of the supervisor's may be seen from inside, neither through a descriptor nor through /proc.
    let hidden = process::set_not_dumpable().and_then(|()| {
        let null = fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&output)?;
        rustix::stdio::dup2_stderr(&output)?;
        drop(null);
        process::close_all_but(&[report.as_fd(), entry.container.as_fd()])
    });
    // Its number is closed already.
    std::mem::forget(output);
    let mut report = fs::File::from(report);
    let entered = hidden.doing(|| "hide the supervisor".to_owned());
    let Err(failure) = entered.and_then(|()| {
        go_in(
            entry.confinement,
            entry.process,
            entry.container.as_fd(),
            entry.cgroup,
            report.as_fd(),
        )
        .and_then(|user| exec::become_program(entry.process, &user, &mut report))
    });
    let text = serde_json::to_vec(&failure).unwrap_or_default();
    // The reader may be gone; the exit code is all that is left to say then.
    let _ = report.write_all(&text);
    process::exit_now(failure.exit_code)
}

fn go_in(
    confinement: &Confinement,
    plan: &ProcessPlan,
    container: BorrowedFd<'_>,
    cgroup: &Cgroup,
    report: BorrowedFd<'_>,
) -> Result<user::User, ChildFailure> {
    rustix::process::setsid().doing(|| "make a session".to_owned())?;
    // All of this is done through the host's files, which are out of sight afterwards.
    join_v1(cgroup)?;
    let score = plan.oom_score_adj.unwrap_or(0);
    let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    // The root of its mount namespace becomes our root and working directory.
    setns(container, namespaces).doing(|| "join the container's namespaces".to_owned())?;
    process::close_all_but(&[report]).doing(|| "close the container's handle".to_owned())?;
    let user = user::resolve(plan)?;
    for limit in [&confinement.descriptors].into_iter().chain(&plan.rlimits) {
        set_rlimit(limit.resource, limit.soft, limit.hard)?;
    }
    // So that /dev/stdout can be opened again by the user the program runs as.
    rustix::fs::fchown(
        rustix::stdio::stdout(),
        Some(rustix::fs::Uid::from_raw(user.uid)),
        None,
    )
    .doing(|| "hand over the output".to_owned())?;
    process::new_session_keyring("_ses.exec").doing(|| "make a session keyring".to_owned())?;
    confine(plan, confinement.seccomp.as_ref(), &user)?;
    // A working directory outside of the root would be a way out (CVE-2024-21626).
    if std::env::current_dir().is_err() {
        return Err(ChildFailure::new(format!(
            "the working directory {:?} is not in the container",
            plan.cwd
        )));
    }
    Ok(user)
}
