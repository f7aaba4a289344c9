//! Control groups of containers: `<mount>/<parent>/<id>` in the v2 tree, and in v1 hierarchies where v2 lacks a controller.
//!
//! - Each container has a v2 directory whenever a v2 tree is mounted, with or without controllers: `cgroup.kill`,
//!   `cgroup.freeze`, `CLONE_INTO_CGROUP` and device programs work on any v2 tree.
//! - Nobody writes a foreign pid into `cgroup.procs`: that takes a global lock and an RCU grace period (5 ms). The child
//!   is cloned into its v2 group and writes `0` into the `tasks` file of each v1 group itself (0.2 ms).
//! - Directories are found from the id alone, so whatever a dead supervisor left can be removed.

mod device;
mod support;
mod write;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

pub use self::support::LimitSupport;
use crate::plan::{DeviceRule, Limits};
use crate::sys::bpf;

/// v1 controllers every container gets a directory for, when v2 does not have them.
const ALWAYS: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// How the groups of later processes of a container are called, below the container's.
const EXEC_PREFIX: &str = "shoal-exec-";

/// A control group operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cgroup: {operation} {}", path.display())]
pub(crate) struct CgroupError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError {
        operation,
        path: path.to_path_buf(),
        source,
    }
}

/// The cgroup trees of this machine as this process sees them.
pub(crate) struct CgroupHost {
    parent: String,
    /// Where the v2 tree is mounted, and the controllers it offers.
    v2: Option<(PathBuf, Vec<String>)>,
    /// v1 controllers and where their hierarchy is mounted; two controllers may share one.
    v1: HashMap<String, PathBuf>,
    /// Device programs by their rules; containers with the same rules share one.
    programs: HashMap<Vec<DeviceRule>, OwnedFd>,
}

/// The groups of one container.
#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(crate) v2: Option<PathBuf>,
    /// Directories in v1 hierarchies with the controllers each stands for.
    pub(crate) v1: Vec<(String, PathBuf)>,
}

impl CgroupHost {
    /// Finds the trees in `/proc/self/mountinfo`. The mount points are taken as the roots, so in a container or cgroup
    /// namespace the groups are made below what is visible there.
    pub(crate) fn detect(parent: &str) -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(failed("read", path))?;
        let (v2, v1) = parse_mounts(&text);
        let v2 = match v2 {
            None => None,
            Some(root) => {
                let file = root.join("cgroup.controllers");
                let names = fs::read_to_string(&file).map_err(failed("read", &file))?;
                Some((root, names.split_whitespace().map(str::to_owned).collect()))
            }
        };
        if v2.is_none() && v1.is_empty() {
            let source =
                io::Error::new(io::ErrorKind::NotFound, "no cgroup file system is mounted");
            return Err(failed("find", Path::new("/sys/fs/cgroup"))(source));
        }
        let host = Self {
            parent: parent.to_owned(),
            v2,
            v1,
            programs: HashMap::new(),
        };
        host.make_parent()?;
        Ok(host)
    }

    /// Makes the v2 parent group and hands the controllers we use down to it.
    fn make_parent(&self) -> Result<(), CgroupError> {
        let Some((root, controllers)) = &self.v2 else {
            return Ok(());
        };
        let parent = root.join(&self.parent);
        make_dir(&parent)?;
        let wanted: Vec<String> = ["memory", "cpu", "pids", "cpuset", "io"]
            .iter()
            .filter(|name| controllers.iter().any(|known| known == *name))
            .map(|name| format!("+{name}"))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        for group in [root, &parent] {
            let file = group.join("cgroup.subtree_control");
            let result = fs::write(&file, wanted.join(" "));
            match result {
                // "No internal processes": the visible root is a group with processes, as in a container.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    move_processes_to_leaf(group)?;
                    fs::write(&file, wanted.join(" "))
                        .map_err(failed("enable controllers in", &file))?;
                }
                other => other.map_err(failed("enable controllers in", &file))?,
            }
        }
        Ok(())
    }

    /// The groups the container `id` has or would have.
    pub(crate) fn of(&self, id: &str) -> Cgroup {
        let below = |root: &Path| root.join(&self.parent).join(id);
        let mut v1: Vec<(String, PathBuf)> = Vec::new();
        for (controller, root) in &self.v1 {
            let path = below(root);
            match v1.iter_mut().find(|(_, known)| *known == path) {
                Some((names, _)) => {
                    names.push(',');
                    names.push_str(controller);
                }
                None => v1.push((controller.clone(), path)),
            }
        }
        Cgroup {
            v2: self.v2.as_ref().map(|(root, _)| below(root)),
            v1,
        }
    }

    fn v2_has(&self, controller: &str) -> bool {
        self.v2
            .as_ref()
            .is_some_and(|(_, names)| names.iter().any(|name| name == controller))
    }

    /// Makes the container's groups with their limits. On an error the caller removes what exists with [`Cgroup::remove`].
    pub(crate) fn create(
        &mut self,
        name: &str,
        limits: &Limits,
        devices: &[DeviceRule],
    ) -> Result<Cgroup, CgroupError> {
        let mut needed = Vec::new();
        if limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some() {
            needed.push("cpuset");
        }
        if limits.blkio_weight.is_some() || !limits.throttles.is_empty() {
            needed.push("blkio");
        }
        let group = self.make(name, needed, devices)?;
        self.limit(&group, limits)?;
        Ok(group)
    }

    /// Makes groups without limits, of the controllers that every container has and of those that are `needed` too.
    pub(crate) fn make(
        &mut self,
        name: &str,
        mut needed: Vec<&str>,
        devices: &[DeviceRule],
    ) -> Result<Cgroup, CgroupError> {
        needed.extend(ALWAYS);
        let all = self.of(name);
        if let Some(v2) = &all.v2 {
            make_dir(v2)?;
        }
        let devices_done = match &all.v2 {
            Some(v2) if !devices.is_empty() => self.attach_devices(v2, devices)?,
            _ => devices.is_empty(),
        };
        if !devices_done {
            needed.push("devices");
        }
        let mut v1 = Vec::new();
        for (controllers, path) in all.v1 {
            if !controllers.split(',').any(|name| needed.contains(&name)) {
                continue;
            }
            make_dir(path.parent().expect("a container's group has a parent"))?;
            make_dir(&path)?;
            if !devices_done && controllers.split(',').any(|name| name == "devices") {
                device::write_v1(&path, devices)?;
            }
            v1.push((controllers, path));
        }
        Ok(Cgroup { v2: all.v2, v1 })
    }

    /// Writes the limits of a container into its groups.
    pub(crate) fn limit(&self, group: &Cgroup, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(v2) = &group.v2 {
            write::v2(v2, limits, |controller| self.v2_has(controller))?;
        }
        for (controllers, path) in &group.v1 {
            for controller in controllers.split(',') {
                write::v1(controller, path, limits)?;
            }
        }
        Ok(())
    }

    /// Attaches a device program. `false`: this kernel has none, use the v1 controller.
    fn attach_devices(&mut self, group: &Path, rules: &[DeviceRule]) -> Result<bool, CgroupError> {
        if !self.programs.contains_key(rules) {
            match bpf::load_device_program(&device::program(rules)) {
                Ok(program) => drop(self.programs.insert(rules.to_vec(), program)),
                Err(_) if self.v1.contains_key("devices") => return Ok(false),
                Err(error) => return Err(failed("load the device program for", group)(error)),
            }
        }
        let program = &self.programs[rules];
        let directory = open_dir(group)?;
        bpf::attach_device_program(directory.as_fd(), program.as_fd())
            .map_err(failed("attach the device program to", group))?;
        Ok(true)
    }

    /// The ids of all groups below our parent: what a dead supervisor may have left.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let v2 = self.v2.as_ref().map(|(root, _)| root);
        let mut ids: Vec<String> = v2
            .into_iter()
            .chain(self.v1.values())
            .filter_map(|root| fs::read_dir(root.join(&self.parent)).ok())
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// Removes the parent groups; those that still hold a container stay.
    pub(crate) fn remove_parent(&self) {
        let v2 = self.v2.as_ref().map(|(root, _)| root);
        for root in v2.into_iter().chain(self.v1.values()) {
            // EBUSY or ENOENT: not ours to remove, or nothing there.
            let _ = fs::remove_dir(root.join(&self.parent));
        }
    }
}

impl Cgroup {
    /// Makes a group below this one, in which a later process of the container can be killed with all that it starts:
    /// in the v2 tree, or without one in the first v1 hierarchy. Limits are those of the container.
    pub(crate) fn make_exec(&self, number: u64) -> Result<Self, CgroupError> {
        let name = format!("{EXEC_PREFIX}{number}");
        let mut group = Self {
            v2: self.v2.clone(),
            v1: self.v1.clone(),
        };
        let ((Some(own), _) | (None, Some((_, own)))) = (&mut group.v2, group.v1.first_mut())
        else {
            return Ok(group);
        };
        own.push(name);
        make_dir(own)?;
        Ok(group)
    }

    /// What [`Self::make_exec`] of this group made and was not removed, by a dead supervisor or because it was busy.
    pub(crate) fn execs(&self) -> Vec<Self> {
        let path = self.v2.as_ref();
        let path = path.or_else(|| self.v1.first().map(|(_, path)| path));
        let entries = path.and_then(|path| fs::read_dir(path).ok());
        let entries = entries.into_iter().flatten().flatten();
        let is_exec = |name: &std::ffi::OsStr| {
            let name = name
                .to_str()
                .and_then(|name| name.strip_prefix(EXEC_PREFIX));
            name.is_some_and(|number| number.parse::<u64>().is_ok())
        };
        entries
            .filter(|entry| is_exec(&entry.file_name()))
            .map(|entry| {
                let own = entry.path();
                match &self.v2 {
                    Some(_) => Self {
                        v2: Some(own),
                        v1: Vec::new(),
                    },
                    None => Self {
                        v2: None,
                        v1: vec![(String::new(), own)],
                    },
                }
            })
            .collect()
    }

    /// The part of the group that no other process shares: what may be killed and removed.
    pub(crate) fn own_part(&self) -> Self {
        match &self.v2 {
            Some(path) => Self {
                v2: Some(path.clone()),
                v1: Vec::new(),
            },
            None => Self {
                v2: None,
                v1: self.v1.first().cloned().into_iter().collect(),
            },
        }
    }

    /// Opens the v2 directory for `CLONE_INTO_CGROUP`.
    pub(crate) fn open_v2(&self) -> Result<Option<OwnedFd>, CgroupError> {
        self.v2.as_deref().map(open_dir).transpose()
    }

    /// Sends SIGKILL to every process of the container.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        if let Some(v2) = &self.v2 {
            let file = v2.join("cgroup.kill");
            match fs::write(&file, "1") {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("kill", &file)(error)),
            }
        }
        // No v2 tree, or a kernel before 5.14.
        for directory in self.v2.iter().chain(self.v1.iter().map(|(_, path)| path)) {
            for pid in pids(directory) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        Ok(())
    }

    /// Stops or continues every process of the container.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let Some(v2) = &self.v2 else {
            let source = io::Error::from(io::ErrorKind::Unsupported);
            return Err(failed(
                "freeze without a v2 tree",
                Path::new("/sys/fs/cgroup"),
            )(source));
        };
        let file = v2.join("cgroup.freeze");
        fs::write(&file, if frozen { "1" } else { "0" }).map_err(failed("write", &file))
    }

    /// Whether the kernel killed a process of the container for want of memory.
    pub(crate) fn oom_killed(&self) -> bool {
        let v2 = self.v2.iter().map(|path| path.join("memory.events"));
        let v1 = self
            .v1
            .iter()
            .map(|(_, path)| path.join("memory.oom_control"));
        v2.chain(v1)
            .filter_map(|file| fs::read_to_string(file).ok())
            .any(|text| {
                text.lines()
                    .filter_map(|line| line.strip_prefix("oom_kill "))
                    .any(|count| count.trim() != "0")
            })
    }

    /// Removes the groups, retrying for `patience` while the kernel still counts dying processes in them.
    pub(crate) fn remove(&self, patience: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + patience;
        for path in self.v2.iter().chain(self.v1.iter().map(|(_, path)| path)) {
            loop {
                match fs::remove_dir(path) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error)
                        if error.raw_os_error() == Some(libc::EBUSY)
                            && Instant::now() < deadline =>
                    {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    // The container made groups of its own: their processes are dead, the directories are not gone.
                    Err(error)
                        if error.raw_os_error() == Some(libc::EBUSY) && remove_children(path) => {}
                    Err(error) => return Err(failed("remove", path)(error)),
                }
            }
        }
        Ok(())
    }

    /// Whether any process is left in the v2 group (or in any v1 group, without a v2 tree).
    pub(crate) fn is_populated(&self) -> bool {
        match &self.v2 {
            Some(v2) => fs::read_to_string(v2.join("cgroup.events"))
                .is_ok_and(|text| text.contains("populated 1")),
            None => self.v1.iter().any(|(_, path)| !pids(path).is_empty()),
        }
    }
}

/// Removes the groups below `path`, deepest first. Returns whether it removed any.
fn remove_children(path: &Path) -> bool {
    let mut removed = false;
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_children(&entry.path());
            removed |= fs::remove_dir(entry.path()).is_ok();
        }
    }
    removed
}

fn pids(directory: &Path) -> Vec<rustix::process::Pid> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?))
        .collect()
}

fn make_dir(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("make", path)(error))
        }
        _ => Ok(()),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, CgroupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| failed("open", path)(io::Error::from(errno)))
}

/// Moves the processes of a group that must hand controllers down into a leaf below it, as a container's init has to.
fn move_processes_to_leaf(group: &Path) -> Result<(), CgroupError> {
    let leaf = group.join("shoal-host");
    make_dir(&leaf)?;
    let file = leaf.join("cgroup.procs");
    for pid in pids(group) {
        // A process that ended meanwhile (ESRCH) or a kernel thread (EINVAL) is not in the way.
        let _ = fs::write(&file, pid.as_raw_nonzero().to_string());
    }
    Ok(())
}

/// The v2 mount point and the v1 controllers' mount points of a mountinfo text (proc(5)).
fn parse_mounts(text: &str) -> (Option<PathBuf>, HashMap<String, PathBuf>) {
    let (mut v2, mut v1) = (None, HashMap::new());
    for line in text.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else {
            continue;
        };
        let Some(point) = mount.split(' ').nth(4) else {
            continue;
        };
        let mut fields = filesystem.split(' ');
        match fields.next() {
            Some("cgroup2") if v2.is_none() => v2 = Some(PathBuf::from(point)),
            Some("cgroup") => {
                let options = fields.nth(1).unwrap_or_default();
                for controller in options.split(',').filter(|word| is_controller(word)) {
                    v1.entry(controller.to_owned())
                        .or_insert_with(|| PathBuf::from(point));
                }
            }
            _ => {}
        }
    }
    (v2, v1)
}

fn is_controller(word: &str) -> bool {
    matches!(
        word,
        "memory" | "cpu" | "cpuacct" | "pids" | "devices" | "cpuset" | "blkio"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_mounts_are_recognised() {
        let hybrid = "\
35 31 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
36 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let (v2, v1) = parse_mounts(hybrid);
        assert_eq!(v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(v1.len(), 3);
        assert_eq!(v1["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        let (v2, v1) =
            parse_mounts("30 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n");
        assert_eq!(v2.as_deref(), Some(Path::new("/sys/fs/cgroup")));
        assert!(v1.is_empty());
    }

    #[test]
    fn controllers_that_share_a_hierarchy_share_a_directory() {
        let v1 = [("cpu", "/c"), ("cpuacct", "/c"), ("pids", "/p")];
        let host = CgroupHost {
            parent: "shoal".to_owned(),
            v2: None,
            v1: v1
                .map(|(name, path)| (name.to_owned(), PathBuf::from(path)))
                .into(),
            programs: HashMap::new(),
        };
        assert_eq!(host.of("id").v1.len(), 2);
    }
}
