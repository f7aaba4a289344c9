//! A machine of its own for a daemon: network, mount, uts and pid namespaces, `/sys`, `/run`, a cgroup.
//!
//! Nothing of it outlives this process, however that ends: the kernel ends all processes of the pid namespace with
//! its first one, mounts and links go with their namespaces, and `run.sh` takes away directories and cgroups.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::process;

/// Prepares the namespaces, runs the daemon, and reaps orphans, as the first process of a pid namespace must. It outlives
/// the daemon, so that what the daemon leaves can be cleared away where it was made.
///
/// With `SANDBOX_NAME` it has a hostname of its own and waits for the address of `eth0` before it starts the daemon; without, there
/// is only `lo`. A daemon that has ended is started again once there is a file `again`.
///
/// `/run` is empty and in memory, as after a start of the machine. `/sys` has to show the new network namespace's links, with the host's cgroups put back beneath.
const INIT: &str = r#"
set -e
dir=$1; shift
cgroup=$dir/cgroup
mount -t proc proc /proc
mkdir "$cgroup"
mount --rbind /sys/fs/cgroup "$cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$cgroup" /sys/fs/cgroup
umount -l "$cgroup"
rmdir "$cgroup"
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
if [ -n "${SANDBOX_NAME-}" ]; then
    hostname "$SANDBOX_NAME"
    until ip -4 -o address show dev eth0 2>/dev/null | grep -q inet; do sleep 0.01; done
fi
while true; do
    "$@" &
    daemon=$!
    echo $daemon > "$dir/daemon.pid"
    status=0
    wait $daemon || status=$?
    echo $status > "$dir/daemon.status"
    until [ -e "$dir/again" ]; do sleep 0.02; done
    rm "$dir/daemon.status" "$dir/daemon.pid" "$dir/again"
done
"#;

/// Namespaces with a daemon in them.
#[derive(Debug)]
pub(crate) struct Sandbox {
    dir: PathBuf,
    unshare: Child,
    /// The first process of the pid namespace.
    init: u32,
}

impl Sandbox {
    /// Starts `program` in namespaces of its own; its output goes to `daemon.log` in `dir`, which is made.
    ///
    /// To be called from the main thread: the kernel ends the sandbox with the thread that made it.
    pub(crate) fn start(
        dir: &Path,
        program: &Path,
        args: &[OsString],
        environment: &[(OsString, OsString)],
    ) -> Result<Self> {
        fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
        let log = File::create(dir.join("daemon.log")).context("make the daemon's log")?;
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "--mount",
                "--uts",
                "--pid",
            ])
            .args([
                "--fork",
                "--kill-child=KILL",
                "--propagation",
                "private",
                "--",
            ])
            .args(["sh", "-c", INIT, "sh"])
            .arg(dir)
            .arg(program)
            .args(args)
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let mut sandbox = Self {
            dir: dir.to_owned(),
            unshare: command.spawn().context("start setpriv (util-linux)")?,
            init: 0,
        };
        while sandbox.init == 0 {
            sandbox.check()?;
            sandbox.init = process::first_child(sandbox.unshare.id()).unwrap_or(0);
            thread::sleep(Duration::from_millis(1));
        }
        Ok(sandbox)
    }

    /// Fails, with the end of its log, once the daemon is gone.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.unshare.try_wait().context("wait for the sandbox")? {
            bail!("the sandbox ended ({status}): {}", self.log_tail());
        }
        if let Ok(status) = fs::read_to_string(self.dir.join("daemon.status")) {
            bail!("the daemon ended ({}): {}", status.trim(), self.log_tail());
        }
        Ok(())
    }

    /// The last lines the daemon wrote.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(self.dir.join("daemon.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Runs a program to its end beside the daemon.
    pub(crate) fn run(&self, program: &Path, args: &[OsString]) -> Result<()> {
        let output = Command::new("nsenter")
            .args(["--net", "--mount", "--uts", "--pid", "--target"])
            .arg(self.init.to_string())
            .arg("--")
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("start nsenter (util-linux)")?;
        if !output.status.success() {
            bail!(
                "{} {args:?} ended with {}: {}{}",
                program.display(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// The daemon's process, as this process numbers it.
    pub(crate) fn daemon(&self) -> Result<Pid> {
        let pid = fs::read_to_string(self.dir.join("daemon.pid")).context("read daemon.pid")?;
        let pid = pid.trim().parse().context("read daemon.pid")?;
        let outer = process::outer_pid(self.init, pid).context("the daemon runs")?;
        Ok(Pid::from_raw(i32::try_from(outer).context("a pid")?))
    }

    /// Starts the daemon again that has ended.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let again = self.dir.join("again");
        while self.check().is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
        fs::write(&again, "").context("ask for the daemon's next start")?;
        while again.exists() || !self.dir.join("daemon.pid").exists() {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Sends a signal to the daemon and its helpers, not to what runs in containers.
    pub(crate) fn signal_helpers(&self, signal: Signal) -> Result<()> {
        for pid in process::in_namespace_of(self.init)? {
            // One that ends meanwhile needs no signal.
            let _ = kill(Pid::from_raw(i32::try_from(pid)?), signal);
        }
        Ok(())
    }

    /// What the daemon calls process `inner`, as this process numbers it.
    pub(crate) fn outer(&self, inner: u32) -> Result<u32> {
        process::outer_pid(self.init, inner)
            .with_context(|| format!("no process {inner} in the sandbox"))
    }

    /// The first process, whose namespaces are the sandbox's.
    pub(crate) fn init(&self) -> u32 {
        self.init
    }

    /// Ends the daemon with SIGKILL, and nothing else; fine when it has ended.
    pub(crate) fn kill_daemon(&mut self) -> Result<()> {
        let pid = fs::read_to_string(self.dir.join("daemon.pid")).context("read daemon.pid")?;
        let pid = pid.trim().parse().context("read daemon.pid")?;
        while self.check().is_ok() {
            // One that ends meanwhile has got what it was to get.
            if let Ok(outer) = self.outer(pid) {
                let outer = Pid::from_raw(i32::try_from(outer).context("a pid")?);
                let _ = kill(outer, Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends with SIGKILL what the daemon calls process `inner`.
    pub(crate) fn kill(&self, inner: u32) -> Result<()> {
        let outer = Pid::from_raw(i32::try_from(self.outer(inner)?).context("a pid")?);
        kill(outer, Signal::SIGKILL).with_context(|| format!("kill {outer}"))
    }

    /// Fails when one of these processes, as the daemon numbers them, does not exist or is named twice.
    pub(crate) fn check_alive(&self, pids: &[u32]) -> Result<()> {
        let alive = process::inner_pids(self.init);
        let named: BTreeSet<u32> = pids.iter().copied().collect();
        ensure!(
            named.len() == pids.len(),
            "a process is named twice in {pids:?}"
        );
        let missing: Vec<_> = named.difference(&alive).collect();
        ensure!(missing.is_empty(), "there are no processes {missing:?}");
        Ok(())
    }

    /// A path as this process can open it, of a file that the sandbox has in a mount of its own.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// Memory of the daemon and its helpers, without what runs in containers.
    pub(crate) fn memory(&self) -> Result<process::Memory> {
        Ok(process::memory(&process::in_namespace_of(self.init)?))
    }

    /// Processor time that the daemon and its helpers have had, without what runs in containers.
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let pids = process::in_namespace_of(self.init)?;
        Ok(process::processor_time_of(&pids))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Its child, the first process of the pid namespace, is killed with it, and everything with that.
        if let Err(error) = self
            .unshare
            .kill()
            .and_then(|()| self.unshare.wait().map(drop))
        {
            eprintln!("bench: end the sandbox in {}: {error}", self.dir.display());
        }
        let proc = PathBuf::from(format!("/proc/{}", self.init));
        while self.init != 0 && proc.exists() {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes the cgroup `name` and all below it from every hierarchy; one that is not there is fine.
pub(crate) fn remove_cgroups(name: &str) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).context("read /sys/fs/cgroup")?;
    let hierarchies = hierarchies.flatten().map(|entry| entry.path());
    let mut left = Vec::new();
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        // Several names may lead to one hierarchy.
        if !hierarchy.is_symlink() {
            remove_tree(&hierarchy.join(name), &mut left);
        }
    }
    if !left.is_empty() {
        bail!("cgroups stay: {}", left.join(", "));
    }
    Ok(())
}

/// Only directories can be removed in a cgroup file system, the innermost first.
fn remove_tree(directory: &Path, left: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path(), left);
        }
    }
    // The processes may be gone a moment before the kernel lets go of their cgroup.
    let mut tries = 0;
    while let Err(error) = fs::remove_dir(directory) {
        if error.kind() == std::io::ErrorKind::NotFound {
            return;
        }
        tries += 1;
        if tries == 200 {
            left.push(format!("{} ({error})", directory.display()));
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
