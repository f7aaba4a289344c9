//! Making, following and confining processes.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// What `clone3` returned in which process.
pub(crate) enum Cloned {
    Parent { pid: u32, pidfd: OwnedFd },
    Child,
}

/// Clones this process as fork(2) does, into new namespaces `flags` and, when given, straight into a v2 cgroup.
///
/// The caller has one thread only (the supervisor), so the child may allocate and take locks.
/// Errors: clone(2); `EBADF` or `EOPNOTSUPP` when the cgroup cannot be joined.
pub(crate) fn clone_child(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero `clone_args` is a valid value of this plain C structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` outlives the call and has the size passed; without CLONE_VM the child has its own copy of the memory.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD), nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent {
        pid: u32::try_from(pid).expect("a pid is positive"),
        pidfd,
    })
}

/// fork(2) for the container's own init; the caller has one thread. Returns the child's pid, or `None` in the child.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the calling process is single-threaded, so no lock can be held by a thread that does not exist in the child.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok((pid != 0).then(|| i32::try_from(pid).expect("a pid fits an int")))
}

/// Leaves at once, without destructors or exit handlers (those belong to the parent).
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on, inherited ones too.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: only called in a freshly cloned child that never returns, so no owner of a closed descriptor is dropped later,
    // and by a supervisor that has not opened anything yet, so that none has an owner.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Closes every descriptor from 3 on except those in `keep`.
pub(crate) fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers.into_iter().chain([u32::MAX]) {
        let last = if number == u32::MAX {
            number
        } else {
            number.saturating_sub(1)
        };
        if first <= last {
            // SAFETY: only called in a freshly cloned child that never returns, so no owner of a closed descriptor is
            // dropped later.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
        first = first.max(number.saturating_add(1));
    }
    Ok(())
}

/// Has the children cloned from now on begin in the pid namespace of a process, or of a namespace file.
pub(crate) fn set_pid_namespace_of_children(of: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns(2) with CLONE_NEWPID changes nothing of this process but where its children begin.
    let result = unsafe { libc::setns(of.as_raw_fd(), libc::CLONE_NEWPID) };
    check(libc::c_long::from(result)).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn cloexec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: changes descriptor flags only.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// The exit status of a process as waitpid(2) reports it, asked of its pidfd by a process that need not be its parent
/// (`PIDFD_INFO_EXIT`, Linux 6.15). `None`: not yet reaped, or the kernel does not know this question.
pub(crate) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    #[repr(C)]
    #[derive(Default)]
    struct PidfdInfo {
        mask: u64,
        cgroup_id: u64,
        pids: [u32; 3],
        credentials: [u32; 8],
        exit_code: i32,
    }
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    // _IOWR(0xFF, 11, struct pidfd_info) with the structure's first published size, 64 bytes.
    const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B;
    const { assert!(size_of::<PidfdInfo>() == 64) };

    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: `info` has the size encoded in the request and outlives the call.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// Gives the process a session keyring of its own, so that it sees no key of ours. Kernels without keys are fine.
pub(crate) fn new_session_keyring(name: &str) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map(drop),
    }
}

/// Capability sets as bit masks by capability number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct CapabilitySets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// Takes everything outside `keep` from the bounding set.
pub(crate) fn drop_bounding(keep: u64) -> io::Result<()> {
    for capability in 0..64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: prctl with integer arguments.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(libc::c_long::from(result)) {
            Ok(_) => {}
            // The first number beyond the kernel's last capability.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Keeps permitted capabilities over the coming setuid(2).
pub(crate) fn keep_capabilities_over_setuid() -> io::Result<()> {
    // SAFETY: prctl with integer arguments.
    check(libc::c_long::from(unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)
    }))
    .map(drop)
}

/// Sets the thread's effective, permitted, inheritable and ambient sets.
pub(crate) fn set_capabilities(sets: CapabilitySets) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let data = [half(0), half(32)];
    // SAFETY: header and both data elements have the layout of capset(2), version 3, and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    for capability in (0..64).filter(|number| sets.ambient & (1 << number) != 0) {
        // SAFETY: prctl with integer arguments.
        check(libc::c_long::from(unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                capability,
                0,
                0,
            )
        }))?;
    }
    Ok(())
}

/// No later execve(2) of this process grants anything.
pub(crate) fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: prctl with integer arguments.
    check(libc::c_long::from(unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    }))
    .map(drop)
}

/// Hides `/proc/<pid>` of this process (its executable above all) from everyone without `CAP_SYS_PTRACE` on the host.
pub(crate) fn set_not_dumpable() -> io::Result<()> {
    // SAFETY: prctl with integer arguments.
    check(libc::c_long::from(unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)
    }))
    .map(drop)
}

/// Loads a seccomp filter for this process. Each instruction is one classic BPF instruction as the kernel lays it out.
pub(crate) fn load_seccomp(program: &[u64], flags: u32) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len())
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    const { assert!(size_of::<libc::sock_filter>() == size_of::<u64>()) };
    // SAFETY: `program` holds `len` instructions of eight bytes with the alignment of u64; the kernel copies them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    })
    .map(drop)
}

/// Sets the supplementary groups, then the group, then the user: the only order that works for a non-root user.
pub(crate) fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is a valid array of `len` gids. The raw calls act on this only thread.
    unsafe {
        check(libc::syscall(
            libc::SYS_setgroups,
            groups.len(),
            groups.as_ptr(),
        ))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// The limit of open files (`<sys/resource.h>`), of the type that limits have here whatever the C library.
pub(crate) const RLIMIT_NOFILE: u32 = 7;

/// Sets a resource limit of this process by its number in `<sys/resource.h>`.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` outlives the call; pid 0 is ourselves.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// The soft and the hard limit of this process for a resource.
pub(crate) fn rlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives the call; pid 0 is ourselves.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut limit,
        )
    })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Puts every signal back to its default action and unblocks all of them: both survive execve(2) otherwise.
pub(crate) fn reset_signals() {
    // SAFETY: SIG_DFL is a valid disposition, the set is initialised before it is used; failures (SIGKILL) are harmless.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Has a write to a closed pipe or socket fail instead of ending this process.
pub(crate) fn ignore_sigpipe() {
    // SAFETY: SIG_IGN is a valid disposition of a signal that can be ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Blocks all signals, so that they can be taken with [`wait_signal`].
pub(crate) fn block_signals() {
    // SAFETY: the set is initialised before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Waits for the next blocked signal.
pub(crate) fn wait_signal() -> io::Result<i32> {
    // SAFETY: the set is initialised before it is used; no siginfo is asked for.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        check(libc::c_long::from(libc::sigwaitinfo(
            &raw const set,
            std::ptr::null_mut(),
        )))
        .map(|signal| signal as i32)
    }
}

/// Opens the loopback interface of the current network namespace: `lo` up, which gives it 127.0.0.1 and `::1`.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: plain socket and ioctl calls on a zeroed `ifreq` that holds the NUL-terminated name "lo".
    unsafe {
        let socket = check(libc::c_long::from(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        )))? as i32;
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (slot, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
            *slot = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::c_long::from(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw mut request,
        )))
        .map(drop)
    }
}

/// Sets the NIS domain name of the current UTS namespace.
pub(crate) fn set_domainname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `name`.
    check(libc::c_long::from(unsafe {
        libc::setdomainname(name.as_ptr().cast(), name.len())
    }))
    .map(drop)
}

/// Pointers to strings, ended by NULL, as the exec family takes them.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let pointers = strings.iter().map(|text| text.as_ptr());
    pointers.chain([std::ptr::null()]).collect()
}

/// Executes an open file (execveat(2)). Returns only when it failed.
pub(crate) fn execute(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays are NULL-terminated and point to NUL-terminated strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// execve(2). Returns only when it failed.
pub(crate) fn execve(path: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays are NULL-terminated and point to NUL-terminated strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}
