//! Which limits the kernel can keep, whatever made it so: its configuration, its command line, or what else uses
//! the controllers.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use super::parse_mounts;

/// Which limits of containers have an effect on this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitSupport {
    pub memory: bool,
    pub swap: bool,
    /// And its period.
    pub cpu_quota: bool,
    pub cpu_shares: bool,
    pub cpuset: bool,
    pub pids: bool,
}

impl LimitSupport {
    /// Asks the cgroup trees of this machine; nothing is supported where none can be read.
    pub fn of_kernel() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (v2, v1) = parse_mounts(&mounts);
        Self::of_trees(v2.as_deref(), &v1)
    }

    fn of_trees(v2: Option<&Path>, v1: &HashMap<String, PathBuf>) -> Self {
        let controllers = v2
            .and_then(|root| fs::read_to_string(root.join("cgroup.controllers")).ok())
            .unwrap_or_default();
        let in_v2 = |name: &str| controllers.split_whitespace().any(|known| known == name);
        let in_v1 =
            |name: &str, file: &str| v1.get(name).is_some_and(|root| root.join(file).exists());
        // The root of the tree has no files of limits.
        let is_below = |file: &str| {
            let groups = v2.and_then(|root| fs::read_dir(root).ok());
            let mut groups = groups.into_iter().flatten().flatten();
            groups.any(|group| group.path().join(file).exists())
        };
        Self {
            memory: in_v2("memory") || in_v1("memory", "memory.limit_in_bytes"),
            swap: in_v2("memory") && is_below("memory.swap.max")
                || in_v1("memory", "memory.memsw.limit_in_bytes"),
            cpu_quota: in_v2("cpu") && is_below("cpu.max") || in_v1("cpu", "cpu.cfs_quota_us"),
            cpu_shares: in_v2("cpu") || in_v1("cpu", "cpu.shares"),
            cpuset: in_v2("cpuset") || in_v1("cpuset", "cpuset.cpus"),
            // The root of a v1 hierarchy has no limit of its own.
            pids: in_v2("pids") || v1.contains_key("pids"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn support_is_what_the_trees_have() {
        let root = tempfile::tempdir().unwrap();
        let (unified, memory) = (root.path().join("unified"), root.path().join("memory"));
        for path in [unified.join("a"), memory.clone()] {
            fs::create_dir_all(path).unwrap();
        }
        let write = |path: PathBuf, text: &str| fs::write(path, text).unwrap();
        write(unified.join("cgroup.controllers"), "cpu pids\n");
        write(unified.join("a/cpu.max"), "max 100000\n");
        write(memory.join("memory.limit_in_bytes"), "1\n");
        let v1 = HashMap::from([("memory".to_owned(), memory.clone())]);
        let is = LimitSupport::of_trees(Some(&unified), &v1);
        let wanted = LimitSupport {
            memory: true,
            cpu_quota: true,
            cpu_shares: true,
            pids: true,
            ..LimitSupport::default()
        };
        assert_eq!(is, wanted);
        write(memory.join("memory.memsw.limit_in_bytes"), "1\n");
        assert!(LimitSupport::of_trees(None, &v1).swap);
        assert_eq!(
            LimitSupport::of_trees(None, &HashMap::new()),
            LimitSupport::default()
        );
    }
}
