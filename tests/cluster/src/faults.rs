//! What goes wrong with one machine: its processes, its power, its disk, its clock.

use std::{fs, io::Write as _, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context, Result};
use nix::{errno::Errno, sys::signal::Signal};

use crate::{
    Host,
    command::ok,
    process::{is_alive, processes, send},
    wait_for,
};

impl Host {
    /// Stops the daemon and the supervisor in their tracks, as a machine without a moment of time for
    /// them would; containers go on.
    #[track_caller]
    pub fn freeze(&self) {
        for pid in [self.daemon_pid(), self.supervisor_pid()] {
            send(pid, Signal::SIGSTOP);
        }
    }

    /// Ends [`Host::freeze`].
    pub fn resume(&self) {
        for pid in self.own_processes() {
            send(pid, Signal::SIGCONT);
        }
    }

    /// Cuts the power: every process of the machine ends at once, and with them everything that is
    /// only in its memory: network, mounts, cgroups, the exec root. The disk stays.
    #[track_caller]
    pub fn cut_power(&mut self) {
        // Silence first: a machine without power does not close its connections.
        if let Some((switch, number)) = &self.plug {
            switch.unplug(*number).expect("unplug the host");
        }
        let cgroups = self.parent_cgroups();
        let mut daemon = self.daemon.take();
        let everyone = || {
            let mut pids = self.own_processes();
            pids.extend(cgroups.iter().flat_map(|parent| pids_below(parent)));
            pids.retain(|pid| is_alive(*pid));
            pids
        };
        // Nobody may see another end, and write that down.
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in everyone() {
                send(pid, signal);
            }
        }
        if let Some(daemon) = &mut daemon {
            send(daemon.id(), Signal::SIGKILL);
            daemon.wait().expect("the daemon ended");
        }
        let kill = |pids: &Vec<u32>| pids.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
        wait_for("every process to end", everyone, |pids| {
            kill(pids);
            pids.is_empty()
        });
        self.unmount_below(&self.dir().join("run"))
            .expect("unmount what was mounted");
        self.unmount_below(Path::new(&self.data_root()))
            .expect("unmount what was mounted");
        for name in ["run", "shoal.sock", "pid"] {
            let path = self.dir().join(name);
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            assert!(
                removed.is_ok() || !path.exists(),
                "remove {}: {removed:?}",
                path.display()
            );
        }
        for parent in &cgroups {
            wait_for(
                "the cgroups to go",
                || remove_cgroups(parent),
                Result::is_ok,
            )
            .expect("the cgroups went");
        }
        self.network().remove().expect("the network goes");
    }

    /// Switches the power on again: the same machine with the same disk, name and address.
    #[track_caller]
    pub fn boot(&mut self) {
        self.restore_network().expect("a network");
        self.start();
    }

    /// Makes the network of a machine that is without power.
    pub(crate) fn restore_network(&self) -> Result<()> {
        if self.network().exists() {
            return Ok(());
        }
        self.network().create()?;
        if let Some((switch, number)) = &self.plug {
            switch.plug(*number, self.network())?;
        }
        Ok(())
    }

    /// Puts the data root on a disk of its own with this much room. Before the first start.
    pub fn with_disk(self, mebibytes: u32) -> Result<Self> {
        let disk = self.dir().join("disk");
        fs::create_dir(&disk)?;
        ok(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "none"])
            .arg(&disk))?;
        Ok(self)
    }

    /// Fills the disk of [`Host::with_disk`] to the last byte.
    #[track_caller]
    pub fn fill_disk(&self) {
        let path = self.dir().join("disk/filler");
        let mut filler = fs::File::create(path).expect("a file on the disk");
        for size in [1 << 20, 4096, 1] {
            let block = vec![0; size];
            let full = loop {
                if let Err(error) = filler.write_all(&block) {
                    break error;
                }
            };
            assert_eq!(full.raw_os_error(), Some(Errno::ENOSPC as i32));
        }
    }

    #[track_caller]
    pub fn free_disk(&self) {
        fs::remove_file(self.dir().join("disk/filler")).expect("the filler");
    }

    pub(crate) fn eject_disk(&self) -> Result<()> {
        let disk = self.dir().join("disk");
        if !disk.exists() {
            return Ok(());
        }
        // Files of a process that was killed are open for a moment longer.
        let mut left = 100;
        loop {
            match ok(Command::new("umount").arg(&disk)) {
                Ok(()) => return Ok(()),
                Err(error) if left == 0 => return Err(error),
                Err(_) => left -= 1,
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Gives the daemon a clock that [`Host::set_clock`] moves. Before the start it is to count for.
    pub fn with_clock(mut self) -> Result<Self> {
        self.preload("clock")?;
        self.env
            .push(("CLOCK_OFFSET_FILE".to_owned(), self.path("clock")));
        Ok(self)
    }

    /// Gives the daemon a disk that [`Host::set_flush_time`] slows down. Before the start it is to count for.
    pub fn with_slow_disk(mut self) -> Result<Self> {
        self.preload("disk")?;
        self.env
            .push(("DISK_DELAY_FILE".to_owned(), self.path("flush-time")));
        Ok(self)
    }

    /// Has every flush of the daemon to the disk take this much longer from now on.
    #[track_caller]
    pub fn set_flush_time(&self, time: Duration) {
        self.set("flush-time", &time.as_millis().to_string());
    }

    /// How often the daemon has flushed to the disk of [`Host::with_slow_disk`].
    pub fn flushes(&self) -> u64 {
        let count = fs::metadata(self.path("flush-time.count"));
        count.map_or(0, |count| count.len())
    }

    /// Has the daemon load one of `programs` before its own libraries.
    fn preload(&mut self, program: &str) -> Result<()> {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
        let library = self.path(&format!("{program}.so"));
        ok(Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-o", &library])
            .arg(programs.join(format!("{program}.c"))))?;
        self.env.push(("LD_PRELOAD".to_owned(), library));
        Ok(())
    }

    /// Sets the clock of this machine's daemon this many seconds off the others'.
    #[track_caller]
    pub fn set_clock(&self, seconds: i64) {
        self.set("clock", &seconds.to_string());
    }

    /// Writes a file that a preloaded program reads.
    #[track_caller]
    fn set(&self, name: &str, value: &str) {
        let (new, path) = (self.path(&format!("{name}.new")), self.path(name));
        // Nobody reads half a number.
        fs::write(&new, value).expect("write the value");
        fs::rename(&new, &path).expect("set the value");
    }

    /// The daemon, the supervisor, and whatever else was started with this host's directories.
    fn own_processes(&self) -> Vec<u32> {
        let dir = self.dir().to_string_lossy().into_owned();
        processes(|cmdline| {
            cmdline.iter().any(|word| word.contains(&dir))
                && cmdline.first().is_some_and(|word| word.contains("shoal"))
        })
    }

    /// Unmounts everything below `directory`, the last mounted first.
    fn unmount_below(&self, directory: &Path) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let below = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|target| Path::new(target).starts_with(directory));
        for target in below.collect::<Vec<_>>().into_iter().rev() {
            ok(Command::new("umount").args(["--lazy", target]))
                .with_context(|| format!("of {}", self.dir().display()))?;
        }
        Ok(())
    }
}

fn pids_below(cgroup: &Path) -> Vec<u32> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = procs.lines().filter_map(|pid| pid.parse().ok()).collect();
    for child in children(cgroup) {
        pids.extend(pids_below(&child));
    }
    pids
}

fn remove_cgroups(cgroup: &Path) -> Result<()> {
    for child in children(cgroup) {
        remove_cgroups(&child)?;
    }
    fs::remove_dir(cgroup).with_context(|| format!("remove {}", cgroup.display()))
}

fn children(cgroup: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
