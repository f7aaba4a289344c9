//! What this machine says of itself.

use std::{collections::BTreeMap, fs};

use shoal_types::{
    object::{NodeDescription, NodeResources},
    spec::{GenericResource, Platform},
};

/// Reads the machine: hostname, processors that this process may use, memory. `generic` is what only people know
/// that it has.
pub fn describe(
    labels: BTreeMap<String, String>,
    generic: Vec<GenericResource>,
) -> NodeDescription {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    NodeDescription {
        hostname: nix::unistd::gethostname().map_or_else(
            |_| "localhost".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        ),
        platform: Platform {
            architecture: std::env::consts::ARCH.to_owned(),
            os: "linux".to_owned(),
        },
        resources: NodeResources {
            nano_cpus: u64::try_from(cpus).unwrap_or(1) * 1_000_000_000,
            memory_bytes: memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            generic,
        },
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        engine_labels: labels,
        plugins: [
            ("Log", "json-file"),
            ("Network", "bridge"),
            ("Network", "overlay"),
            ("Volume", "local"),
        ]
        .map(|(kind, name)| (kind.to_owned(), name.to_owned()))
        .to_vec(),
        data_addr: None,
    }
}

/// `MemTotal` of proc_meminfo(5), in bytes; 0 when it is not there.
fn memory_bytes(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(
            memory_bytes("MemTotal:       24615196 kB\nMemFree: 1 kB\n"),
            24_615_196 * 1024
        );
        assert_eq!(memory_bytes(""), 0);
        let here = describe(BTreeMap::new(), Vec::new());
        assert!(here.resources.memory_bytes > 0 && here.resources.nano_cpus >= 1_000_000_000);
    }
}
