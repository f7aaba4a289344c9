//! What the machine is, for `info` and `version`.

use std::{collections::BTreeMap, fs, path::Path};

use nix::sys::utsname::uname;
use shoal_engine_api::engine::{Limits, NodeInfo};
use shoal_node_agent::runtime::LimitSupport;
use shoal_types::object::NodeDescription;

use crate::daemon_args::DaemonArgs;

/// Facts about the machine and this daemon that do not change while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    info: NodeInfo,
}

impl Machine {
    pub(crate) fn read(
        id: &str,
        args: &DaemonArgs,
        labels: BTreeMap<String, String>,
        description: &NodeDescription,
    ) -> Self {
        let release = os_release(&fs::read_to_string("/etc/os-release").unwrap_or_default());
        let field = |key: &str| release.get(key).cloned().unwrap_or_default();
        let (kernel, machine) = uname().map_or_else(
            |_| (String::new(), std::env::consts::ARCH.to_owned()),
            |name| {
                let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
                (text(name.release()), text(name.machine()))
            },
        );
        let limits = LimitSupport::of_kernel();
        let info = NodeInfo {
            id: id.to_owned(),
            hostname: description.hostname.clone(),
            kernel_version: kernel,
            operating_system: field("PRETTY_NAME"),
            os_version: field("VERSION_ID"),
            machine,
            cpus: description.resources.nano_cpus / 1_000_000_000,
            memory_bytes: description.resources.memory_bytes,
            cgroup_version: if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
                2
            } else {
                1
            },
            cgroup_driver: "cgroupfs".to_owned(),
            data_root: args.data_root.to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: String::new(),
            build_time: String::new(),
            rustc_version: String::new(),
            labels,
            debug: args.debug,
            ipv4_forwarding: forwarding(),
            default_runtime: String::new(),
            insecure_registries: args.insecure_registry.clone(),
            registry_mirrors: args.registry_mirror.clone(),
            generic_resources: description.resources.generic.clone(),
            limits: Limits {
                memory: limits.memory,
                swap: limits.swap,
                cpu_quota: limits.cpu_quota,
                cpu_shares: limits.cpu_shares,
                cpuset: limits.cpuset,
                pids: limits.pids,
            },
            warnings: warnings(limits),
        };
        Self { info }
    }

    /// As it is now: forwarding may be switched by others.
    pub(crate) fn info(&self) -> NodeInfo {
        NodeInfo {
            ipv4_forwarding: forwarding(),
            ..self.info.clone()
        }
    }
}

/// Docker's words for what the kernel cannot do, and what is otherwise than there.
fn warnings(limits: LimitSupport) -> Vec<String> {
    let lacking = [
        (limits.memory, "memory limit"),
        (limits.swap, "swap limit"),
        (limits.cpu_quota, "cpu cfs quota"),
        (limits.cpu_quota, "cpu cfs period"),
        (limits.cpu_shares, "cpu shares"),
        (limits.cpuset, "cpuset"),
        (limits.pids, "pids limit"),
    ];
    let lacking = lacking.into_iter().filter(|(is_there, _)| !is_there);
    let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.trim() == "Y");
    lacking
        .map(|(_, what)| format!("WARNING: No {what} support"))
        .chain(apparmor.then(|| "WARNING: containers have no AppArmor profile".to_owned()))
        .collect()
}

fn forwarding() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1")
}

/// os-release(5): `KEY=value` lines, values perhaps in quotes.
fn os_release(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines
        .map(|(key, value)| {
            (
                key.trim().to_owned(),
                value.trim().trim_matches('"').to_owned(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_lose_their_quotes() {
        let release = os_release("NAME=Debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n# x\n");
        assert_eq!(release["PRETTY_NAME"], "Debian GNU/Linux 12");
        assert_eq!(release["NAME"], "Debian");
    }
}
