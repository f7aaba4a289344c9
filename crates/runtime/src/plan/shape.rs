//! What containers may have in common, so that it can be made before one is asked for.

use std::path::{Component, Path, PathBuf};

use super::{DeviceRule, MountKind, MountPlan, Namespaces, Plan};

/// Directories whose mounts are made ahead.
pub(crate) const STAGED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The part of a plan that depends neither on the image nor on the program nor on the container's name: what is in a
/// sandbox made ahead. A container may use a sandbox when its plan has the same shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) namespaces: Namespaces,
    /// The first mounts of the plan: file systems of the kernel's, all at or below [`STAGED`].
    pub(crate) mounts: Vec<MountPlan>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) device_rules: Vec<DeviceRule>,
    pub(crate) layers_dir: PathBuf,
}

impl Shape {
    /// The shape of a plan; `None` when a container made in a sandbox would differ from one made at once.
    pub(crate) fn of(plan: &Plan) -> Option<Self> {
        const OWN: u64 = (libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWIPC) as u64;
        let namespaces = &plan.namespaces;
        if namespaces.clone_flags != OWN || namespaces.join_network.is_some() {
            return None;
        }
        // Groups of these controllers are made only for who asks for them.
        let limits = &plan.limits;
        if limits.cpuset_cpus.is_some()
            || limits.cpuset_mems.is_some()
            || limits.blkio_weight.is_some()
            || !limits.throttles.is_empty()
        {
            return None;
        }
        let staged = |mount: &&MountPlan| {
            let kernels = !matches!(mount.kind, MountKind::Bind { .. });
            kernels && !mount.copy_up && is_below(&mount.target, &STAGED)
        };
        let mounts: Vec<MountPlan> = plan.mounts.iter().take_while(staged).cloned().collect();
        let has = |target: &str, wanted: &str| {
            mounts.iter().any(|mount| {
                mount.target == target
                    && matches!(&mount.kind, MountKind::Filesystem { kind, .. } if kind == wanted)
            })
        };
        if !has("/proc", "proc") || !has("/sys", "sysfs") || !has("/dev", "tmpfs") {
            return None;
        }
        // What is hidden is hidden last of all: nothing may come above it.
        let later = plan.mounts[mounts.len()..]
            .iter()
            .map(|mount| &mount.target);
        let files = plan.files.iter().map(|file| &file.target);
        let devices = plan.devices.iter().map(|device| &device.path);
        let in_the_way = |path: &String| is_below(path, &STAGED[..2]) || is_at(path, "/dev");
        if later.chain(files).chain(devices).any(in_the_way) {
            return None;
        }
        let mut hidden = plan.masked_paths.iter().chain(&plan.readonly_paths);
        if !hidden.all(|path| is_below(path, &STAGED[..2])) {
            return None;
        }
        Some(Self {
            namespaces: namespaces.clone(),
            mounts,
            masked_paths: plan.masked_paths.clone(),
            readonly_paths: plan.readonly_paths.clone(),
            device_rules: plan.device_rules.clone(),
            layers_dir: plan.rootfs.layers_dir.clone(),
        })
    }
}

/// Whether a path is one of `tops` or below it. One that goes up again is nowhere.
fn is_below(path: &str, tops: &[&str]) -> bool {
    !goes_up(path) && tops.iter().any(|top| Path::new(path).starts_with(top))
}

/// Whether a path is `top`, or cannot be said not to be.
fn is_at(path: &str, top: &str) -> bool {
    goes_up(path) || Path::new(path) == Path::new(top)
}

fn goes_up(path: &str) -> bool {
    Path::new(path)
        .components()
        .any(|component| component == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{DeviceNode, LogConfig, Rlimit, Rootfs, Throttle, ThrottleKind};
    use crate::{ContainerFile, CreateRequest, EtcFiles, default_spec};

    fn plan() -> Plan {
        Plan::new(CreateRequest {
            id: "0".repeat(64),
            spec: default_spec(),
            rootfs: Rootfs {
                layers_dir: "/layers".into(),
                lower: vec!["a".to_owned()],
            },
            user: String::new(),
            groups: Vec::new(),
            etc: EtcFiles::default(),
            files: Vec::new(),
            log: LogConfig::default(),
            seccomp: None,
            init: false,
        })
        .expect("the default is a plan")
    }

    fn bind(target: &str) -> MountPlan {
        MountPlan {
            target: target.to_owned(),
            kind: MountKind::Bind {
                source: "/somewhere".into(),
                recursive: true,
            },
            attributes: crate::sys::mount::MountAttributes::default(),
            recursive_attributes: false,
            copy_up: false,
        }
    }

    #[test]
    fn programs_names_limits_and_volumes_do_not_change_the_shape() {
        let shape = Shape::of(&plan()).expect("the default has a shape");
        assert_eq!(shape.mounts.len(), plan().mounts.len());
        let mut other = plan();
        other.id = "1".repeat(64);
        other.hostname = Some("other".to_owned());
        other.process.args = vec!["other".to_owned()];
        other.process.rlimits.push(Rlimit {
            resource: 1,
            soft: 1,
            hard: 1,
        });
        other.limits.memory = Some(1 << 20);
        other
            .sysctls
            .push(("kernel/msgmax".to_owned(), "1".to_owned()));
        other.mounts.push(bind("/data"));
        other.mounts.push(bind("/dev/log"));
        other.readonly_root = true;
        other.rootfs.lower.push("b".to_owned());
        assert_eq!(Shape::of(&other), Some(shape));
    }

    #[test]
    fn what_would_come_out_differently_has_no_shape() {
        let changes: [fn(&mut Plan); 11] = [
            |plan| plan.namespaces.join_network = Some("/run/netns/x".into()),
            |plan| plan.namespaces.clone_flags &= !(libc::CLONE_NEWPID as u64),
            |plan| plan.limits.cpuset_cpus = Some("0".to_owned()),
            |plan| {
                plan.limits.throttles.push(Throttle {
                    major: 8,
                    minor: 0,
                    rate: 1,
                    kind: ThrottleKind::ReadBytes,
                });
            },
            |plan| plan.masked_paths.push("/etc/shadow".to_owned()),
            |plan| plan.mounts.push(bind("/proc/cpuinfo")),
            |plan| plan.mounts.push(bind("/data/../sys/kernel")),
            |plan| plan.mounts.push(bind("/dev")),
            |plan| plan.mounts.retain(|mount| mount.target != "/proc"),
            |plan| {
                plan.files.push(ContainerFile {
                    target: "/sys/secret".to_owned(),
                    data: Vec::new(),
                    uid: 0,
                    gid: 0,
                    mode: 0o400,
                });
            },
            |plan| {
                plan.devices.push(DeviceNode {
                    path: "/proc/device".to_owned(),
                    mode: libc::S_IFCHR,
                    major: 1,
                    minor: 3,
                    uid: 0,
                    gid: 0,
                });
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut plan = plan();
            change(&mut plan);
            assert_eq!(Shape::of(&plan), None, "change {number}");
        }
    }

    #[test]
    fn what_is_hidden_and_which_devices_are_allowed_is_a_shape_of_its_own() {
        let usual = Shape::of(&plan());
        let changes: [fn(&mut Plan); 3] = [
            |plan| plan.masked_paths.clear(),
            |plan| plan.device_rules.clear(),
            |plan| plan.rootfs.layers_dir = "/elsewhere".into(),
        ];
        for change in changes {
            let mut plan = plan();
            change(&mut plan);
            let shape = Shape::of(&plan);
            assert!(shape.is_some() && shape != usual);
        }
    }
}
