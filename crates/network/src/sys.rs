//! What needs a thread of its own or a raw system call: entering, making and pinning network
//! namespaces. The only module of this crate that may hold `unsafe`.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::fstatfs,
};

/// Magic number of nsfs, the file system of namespace handles (linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Threads here run a handful of system calls; the default of 2 MiB would be mapped for nothing.
const STACK: usize = 256 << 10;

/// Runs `work` in the network namespace `ns` on a thread that exists for this alone: no other
/// thread ever changes its namespace, so a failure cannot leave one in the wrong place.
pub(crate) fn in_namespace<T, F>(ns: BorrowedFd<'_>, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    on_own_thread(|| {
        setns(ns, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Makes a network namespace and keeps it alive by a bind mount on `path`, which must exist.
pub(crate) fn create_pinned(path: &Path) -> io::Result<()> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(
            Some("/proc/thread-self/ns/net"),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Ok(())
    })
}

/// Takes the pin away. The namespace lives on while anything else holds it.
pub(crate) fn unpin(path: &Path) -> io::Result<()> {
    // EINVAL: nothing is mounted there, because the daemon ended between file and mount.
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens the namespace pinned at `path`; `None` when the file pins nothing.
pub(crate) fn open_pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    let file = File::open(path)?;
    let magic = fstatfs(&file)?.filesystem_type().0;
    Ok((magic == NSFS_MAGIC).then(|| file.into()))
}

/// The calling thread's network namespace.
pub(crate) fn current_namespace() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Writes a sysctl of the calling thread's network namespace, unless it already has that value.
/// Returns whether it wrote.
pub(crate) fn set_sysctl(name: &str, value: &str) -> io::Result<bool> {
    if sysctl(name)? == value {
        return Ok(false);
    }
    let path = sysctl_path(name);
    io::Write::write_all(
        &mut OpenOptions::new().write(true).open(path)?,
        value.as_bytes(),
    )?;
    Ok(true)
}

/// Reads a sysctl of the calling thread's network namespace.
pub(crate) fn sysctl(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(sysctl_path(name))?.trim_end().to_owned())
}

/// Asks the kernel to say in words what it refuses (`NETLINK_EXT_ACK`) and not to send our own
/// message back with each error (`NETLINK_CAP_ACK`); netlink(7). Both only make errors better, so a
/// kernel without them is fine.
pub(crate) fn enable_netlink_errors(socket: &OwnedFd) {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        #[expect(
            unsafe_code,
            reason = "no safe wrapper for these socket options exists in nix"
        )]
        // SAFETY: the descriptor is open for the whole call, and the pointer and the length
        // describe `on`, which outlives it; the kernel only reads from it.
        unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                libc::socklen_t::try_from(size_of_val(&on)).expect("four bytes"),
            );
        }
    }
}

fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/net/{name}")
}

fn on_own_thread<T, F>(work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    thread::scope(|scope| {
        thread::Builder::new()
            .name("shoal-netns".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
