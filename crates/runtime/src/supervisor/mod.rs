//! The supervisor: one small single-threaded process per node that makes containers, is their parent, writes their logs
//! and remembers how they ended.
//!
//! It is the daemon's executable run again before anything else of it has started, because a container is cloned from it:
//! six namespaces take 0.6 ms from a small process and 4.3 ms from a large one. The daemon is its client and may come and
//! go. Should it die itself, containers run on (their output waits in FIFOs they hold open) and the next one adopts them.

mod adopt;
mod container;
mod create;
mod endings;
mod exec;
mod journal;
mod output;
mod pool;
mod protect;
mod requests;
mod server;
mod streams;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::{FcntlArg, fcntl};

use crate::paths::Paths;
use crate::plan::Rlimit;
use crate::sys::process;

/// The first argument of a supervisor that goes on in the process, session and log of its predecessor.
const RESUME: &str = "--resume";

/// Why a supervisor could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(
        "unknown argument {0:?}; usage: supervisor --exec-root DIR --state-root DIR --cgroup-parent NAME"
    )]
    Usage(OsString),
    #[error("missing {0}")]
    Missing(&'static str),
    #[error("{what} {}", path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another supervisor holds {}", .0.display())]
    Locked(PathBuf),
    #[error("run from an executable that containers cannot write")]
    Protect(#[source] io::Error),
    #[error("become a daemon")]
    Daemonize(#[source] io::Error),
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
}

/// Runs the supervisor: `args` are `["--exec-root", DIR, "--state-root", DIR, "--cgroup-parent", NAME]`.
///
/// Must be called before the process has started any thread or opened any file: it closes every descriptor but the standard
/// ones. Returns at once in the calling process, when the supervisor
/// (a child in a session of its own) accepts connections: success, or failure with the reason on standard error.
pub fn supervisor_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match daemonize(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("supervisor: {}\n", create::chain(&error));
            let _ = io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Starts the supervisor in a child and waits until it serves. The child never returns from here.
fn daemonize(args: impl IntoIterator<Item = OsString>) -> Result<(), StartError> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.first().is_some_and(|word| word == RESUME) {
        args.remove(0);
        let (paths, cgroup_parent) = parse(args.clone())?;
        // The predecessor has done so; one that could not must not cost the containers their supervisor.
        if let Err(error) = protect::ensure() {
            note(&create::chain(&StartError::Protect(error)));
        }
        let mut server = start(&paths, &cgroup_parent, true)?;
        server.arguments = args;
        server.run();
        return Ok(());
    }
    let (paths, cgroup_parent) = parse(args.clone())?;
    // Whatever whoever started us left open: it would stay open for as long as the node runs, and somebody may wait for
    // the other end of a pipe. A resumed supervisor's predecessor has done so, and its lock must stay open.
    process::close_from(3).map_err(StartError::Daemonize)?;
    protect::ensure().map_err(StartError::Protect)?;
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| StartError::Daemonize(errno.into()))?;
    if process::fork().map_err(StartError::Daemonize)?.is_some() {
        drop(writer);
        let mut answer = String::new();
        let read = fs::File::from(reader).read_to_string(&mut answer);
        return if let (Ok(_), Some(_)) = (read, answer.strip_prefix("ok")) {
            Ok(())
        } else {
            let _ = io::stderr().write_all(answer.as_bytes());
            Err(StartError::Daemonize(io::Error::other(
                "the supervisor did not start",
            )))
        };
    }
    drop(reader);
    let mut writer = fs::File::from(writer);
    match start(&paths, &cgroup_parent, false) {
        Ok(mut server) => {
            // The waiting process may have been killed: the supervisor serves whoever comes.
            let _ = writer.write_all(b"ok");
            drop(writer);
            server.arguments = args;
            server.run();
            process::exit_now(0)
        }
        Err(error) => {
            let _ = writer.write_all(format!("supervisor: {}\n", create::chain(&error)).as_bytes());
            process::exit_now(1)
        }
    }
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Paths, String), StartError> {
    let (mut exec_root, mut state_root, mut parent) = (None, None, None);
    let mut args = args.into_iter();
    while let Some(flag) = args.next() {
        let slot = match flag.to_str() {
            Some("--exec-root") => &mut exec_root,
            Some("--state-root") => &mut state_root,
            Some("--cgroup-parent") => &mut parent,
            _ => return Err(StartError::Usage(flag)),
        };
        *slot = args.next();
    }
    let paths = Paths {
        exec_root: exec_root.ok_or(StartError::Missing("--exec-root"))?.into(),
        state_root: state_root
            .ok_or(StartError::Missing("--state-root"))?
            .into(),
    };
    let parent = parent.ok_or(StartError::Missing("--cgroup-parent"))?;
    Ok((paths, parent.to_string_lossy().into_owned()))
}

/// Everything before the first connection, in the order: session, directories, lock, log, adoption, socket.
fn start(paths: &Paths, cgroup_parent: &str, resumed: bool) -> Result<server::Server, StartError> {
    match rustix::process::setsid() {
        // A leader already: it was executed by its predecessor.
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(errno) => return Err(StartError::Daemonize(errno.into())),
    }
    process::reset_signals();
    process::ignore_sigpipe();
    protect::restore_name();
    rustix::process::chdir("/").map_err(|errno| StartError::Daemonize(errno.into()))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    for directory in [
        &paths.exec_root,
        &paths.state_root,
        &paths.bundles(),
        &paths.sandboxes(),
        &paths.states(),
        &paths.trash(),
    ] {
        make_private(directory)?;
    }
    // A predecessor's lock came along with its process, in a descriptor it left open for that.
    let lock = if resumed {
        None
    } else {
        Some(lock(&paths.lock())?)
    };
    redirect_stdio(&paths.supervisor_log())?;
    // Best effort: the kernel shall take anything before this process, but a daemon in a container may not ask for that.
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
    let descriptors = raise_descriptor_limit().map_err(StartError::Daemonize)?;
    let cgroups = crate::cgroup::CgroupHost::detect(cgroup_parent)?;
    let at = |what, path: PathBuf| move |source| StartError::Path { what, path, source };
    let mut server = server::Server::new(paths.clone(), cgroups, descriptors)
        .map_err(at("open the journal in", paths.exec_root.clone()))?;
    server
        .adopt()
        .map_err(at("adopt the containers in", paths.bundles()))?;

    let socket = paths.socket();
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at("remove", socket)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&socket).map_err(at("listen on", socket.clone()))?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))
        .map_err(at("protect", socket.clone()))?;
    server.lock = lock;
    server.listen(listener).map_err(at("listen on", socket))?;
    Ok(server)
}

fn make_private(path: &Path) -> Result<(), StartError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path);
    made.map_err(|source| StartError::Path {
        what: "make",
        path: path.to_path_buf(),
        source,
    })
}

/// Takes a record lock (fcntl(2)): unlike a flock it is not inherited by the containers' processes, so it ends with us. Closing any
/// descriptor of the file gives it up: the one returned is to be kept.
fn lock(path: &Path) -> Result<fs::File, StartError> {
    // libc has them as int, struct flock wants short.
    const F_WRLCK: libc::c_short = 1;
    const SEEK_SET: libc::c_short = 0;
    let failed = |source| StartError::Path {
        what: "lock",
        path: path.to_path_buf(),
        source,
    };
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    let lock = libc::flock {
        l_type: F_WRLCK,
        l_whence: SEEK_SET,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_SETLK(&lock)) {
        Ok(_) => Ok(file),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
            Err(StartError::Locked(path.to_path_buf()))
        }
        Err(errno) => Err(failed(errno.into())),
    }
}

fn redirect_stdio(log: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Path {
        what: "open",
        path: log.to_path_buf(),
        source,
    };
    let null = fs::File::open("/dev/null").map_err(failed)?;
    let log_file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(log)
        .map_err(failed)?;
    let failed = |errno: rustix::io::Errno| failed(errno.into());
    rustix::stdio::dup2_stdin(&null).map_err(failed)?;
    rustix::stdio::dup2_stdout(&log_file).map_err(failed)?;
    rustix::stdio::dup2_stderr(&log_file).map_err(failed)
}

/// Each container takes five descriptors. The limit there was is the containers'.
fn raise_descriptor_limit() -> io::Result<Rlimit> {
    let (soft, hard) = process::rlimit(process::RLIMIT_NOFILE)?;
    let original = Rlimit {
        resource: process::RLIMIT_NOFILE,
        soft,
        hard,
    };
    // What cannot be raised is still good for many.
    let _ = process::set_rlimit(process::RLIMIT_NOFILE, hard, hard);
    Ok(original)
}

/// Writes a line to the supervisor's own log.
fn note(text: &str) {
    let line = format!("{} {text}\n", jiff::Timestamp::now());
    let _ = io::stderr().write_all(line.as_bytes());
}
