//! From a request to a plan.

use oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxDevice, LinuxDeviceType, LinuxNamespaceType,
    PosixRlimitType, Process, Spec,
};

use super::{DeviceNode, Namespaces, Plan, ProcessPlan, Rlimit, file, limits, mounts};
use crate::CreateRequest;
use crate::seccomp::{self, SeccompError};
use crate::sys::process::CapabilitySets;

/// What in a request cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSpec {
    /// A part of the OCI spec this runtime does not do.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A value that makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// The path of the field in the request.
        field: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// The seccomp section cannot be compiled.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

impl InvalidSpec {
    pub(super) fn unsupported(field: &str) -> Self {
        Self::Unsupported(field.to_owned())
    }

    pub(super) fn unsupported_text(field: String) -> Self {
        Self::Unsupported(field)
    }

    pub(super) fn invalid(field: &'static str, reason: String) -> Self {
        Self::Invalid { field, reason }
    }
}

/// A container id is 64 lower-case hex digits; it names directories and cgroups, so nothing else may get in.
pub(crate) fn check_id(id: &str) -> Result<(), InvalidSpec> {
    if id.len() == 64
        && id
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Ok(());
    }
    Err(InvalidSpec::invalid(
        "id",
        format!("{id:?} is not 64 lower-case hex digits"),
    ))
}

impl Plan {
    /// Checks and resolves a request. Reads nothing of the machine: the same request always gives the same plan.
    pub(crate) fn new(request: CreateRequest) -> Result<Self, InvalidSpec> {
        check_id(&request.id)?;
        check_rootfs(&request.rootfs)?;
        let spec = &request.spec;
        refuse_top_level(spec)?;
        let process = spec.process().as_ref();
        let process =
            process.ok_or_else(|| InvalidSpec::invalid("process", "is missing".to_owned()))?;
        let none = Linux::default();
        let linux = spec.linux().as_ref().unwrap_or(&none);
        refuse_linux(linux)?;
        let resources = linux.resources().clone().unwrap_or_default();
        let mut device_rules = Vec::new();
        for rule in resources.devices().iter().flatten() {
            device_rules.push(limits::device_rule(rule)?);
        }
        let mut plan_mounts = Vec::new();
        for mount in spec.mounts().iter().flatten() {
            plan_mounts.push(mounts::mount_plan(mount)?);
        }
        for file in &request.files {
            file::check(file)?;
        }
        let mut devices = Vec::new();
        for device in linux.devices().iter().flatten() {
            devices.push(device_node(device)?);
        }
        let namespaces = namespaces(linux)?;
        if request.log.max_files == 0 {
            return Err(InvalidSpec::invalid(
                "log.max_files",
                "must be at least 1".to_owned(),
            ));
        }
        let seccomp = linux
            .seccomp()
            .as_ref()
            .map(seccomp::from_oci)
            .transpose()?;
        if seccomp.is_some() && request.seccomp.is_some() {
            return Err(InvalidSpec::invalid(
                "seccomp",
                "give either a ready filter or linux.seccomp, not both".to_owned(),
            ));
        }
        Ok(Self {
            readonly_root: spec
                .root()
                .as_ref()
                .and_then(oci_spec::runtime::Root::readonly)
                .unwrap_or(false),
            namespaces,
            hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
            domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
            mounts: plan_mounts,
            devices,
            masked_paths: linux.masked_paths().clone().unwrap_or_default(),
            readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
            sysctls: sysctls(linux)?,
            limits: limits::limits(&resources)?,
            device_rules,
            seccomp: seccomp.or_else(|| request.seccomp.map(|filter| (*filter).clone())),
            process: process_plan(process, request.user, request.groups, request.init)?,
            id: request.id,
            rootfs: request.rootfs,
            etc: request.etc,
            files: request.files,
            log: request.log,
        })
    }
}

fn check_rootfs(rootfs: &super::Rootfs) -> Result<(), InvalidSpec> {
    let invalid = |reason| Err(InvalidSpec::invalid("rootfs", reason));
    if !rootfs.layers_dir.is_absolute() {
        return invalid(format!("{} is not absolute", rootfs.layers_dir.display()));
    }
    for name in &rootfs.lower {
        let escapes = name.starts_with('/') || name.split('/').any(|part| part == "..");
        if name.is_empty() || escapes || name.contains('\0') {
            return invalid(format!(
                "layer {name:?} is not a relative path within the layers directory"
            ));
        }
    }
    Ok(())
}

/// Refuses what the spec has beside `process`, `mounts`, `hostname`, `root` and `linux`. Annotations say nothing to do.
fn refuse_top_level(spec: &Spec) -> Result<(), InvalidSpec> {
    let present = [
        ("hooks", spec.hooks().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    refuse_first(&present)
}

fn refuse_linux(linux: &Linux) -> Result<(), InvalidSpec> {
    refuse_first(&[
        (
            "linux.netDevices",
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|map| !map.is_empty()),
        ),
        (
            "linux.uidMappings",
            linux
                .uid_mappings()
                .as_ref()
                .is_some_and(|list| !list.is_empty()),
        ),
        (
            "linux.gidMappings",
            linux
                .gid_mappings()
                .as_ref()
                .is_some_and(|list| !list.is_empty()),
        ),
        (
            "linux.cgroupsPath",
            linux
                .cgroups_path()
                .as_ref()
                .is_some_and(|p| !p.as_os_str().is_empty()),
        ),
        (
            "linux.rootfsPropagation",
            linux
                .rootfs_propagation()
                .as_ref()
                .is_some_and(|p| !p.is_empty()),
        ),
        (
            "linux.mountLabel",
            linux
                .mount_label()
                .as_ref()
                .is_some_and(|label| !label.is_empty()),
        ),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
        (
            "linux.timeOffsets",
            linux
                .time_offsets()
                .as_ref()
                .is_some_and(|map| !map.is_empty()),
        ),
    ])
}

fn refuse_first(fields: &[(&str, bool)]) -> Result<(), InvalidSpec> {
    match fields.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(InvalidSpec::unsupported(field)),
        None => Ok(()),
    }
}

fn namespaces(linux: &Linux) -> Result<Namespaces, InvalidSpec> {
    let mut namespaces = Namespaces {
        clone_flags: 0,
        cgroup: false,
        join_network: None,
    };
    for namespace in linux.namespaces().iter().flatten() {
        let path = namespace
            .path()
            .clone()
            .filter(|path| !path.as_os_str().is_empty());
        match (namespace.typ(), path) {
            (LinuxNamespaceType::Network, Some(path)) => namespaces.join_network = Some(path),
            (typ, Some(_)) => {
                return Err(InvalidSpec::unsupported_text(format!(
                    "linux.namespaces.path of {typ:?}"
                )));
            }
            (typ @ (LinuxNamespaceType::User | LinuxNamespaceType::Time), None) => {
                return Err(InvalidSpec::unsupported_text(format!(
                    "linux.namespaces.type {typ:?}"
                )));
            }
            (LinuxNamespaceType::Cgroup, None) => namespaces.cgroup = true,
            (typ, None) => namespaces.clone_flags |= typ as u64,
        }
    }
    // Without a mount namespace the container's mounts would be the host's; without a pid namespace, its processes could
    // outlive it.
    for (typ, name) in [
        (LinuxNamespaceType::Mount, "mount"),
        (LinuxNamespaceType::Pid, "pid"),
    ] {
        if namespaces.clone_flags & typ as u64 == 0 {
            return Err(InvalidSpec::unsupported_text(format!(
                "linux.namespaces without {name}"
            )));
        }
    }
    Ok(namespaces)
}

fn sysctls(linux: &Linux) -> Result<Vec<(String, String)>, InvalidSpec> {
    let mut sysctls = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        // Those that belong to a namespace; any other would change the host.
        let namespaced = key.starts_with("net.")
            || key.starts_with("fs.mqueue.")
            || ["kernel.shm", "kernel.msg", "kernel.sem"]
                .iter()
                .any(|p| key.starts_with(p))
            || key == "kernel.domainname"
            || key == "kernel.hostname";
        if !namespaced || key.contains("..") || key.contains('/') {
            return Err(InvalidSpec::invalid(
                "linux.sysctl",
                format!("sysctl {key:?} is not in a separate kernel namespace"),
            ));
        }
        sysctls.push((key.replace('.', "/"), value.clone()));
    }
    sysctls.sort();
    Ok(sysctls)
}

fn device_node(device: &LinuxDevice) -> Result<DeviceNode, InvalidSpec> {
    let path = device.path().to_string_lossy().into_owned();
    let invalid = |why: &str| InvalidSpec::invalid("linux.devices", format!("{path}: {why}"));
    if !device.path().is_absolute() {
        return Err(invalid("the path must be absolute"));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(invalid("the type must be b, c, u or p")),
    };
    let number = |value: i64| u32::try_from(value).map_err(|_| invalid("not a device number"));
    Ok(DeviceNode {
        mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
        major: number(device.major())?,
        minor: number(device.minor())?,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        path,
    })
}

fn process_plan(
    process: &Process,
    user: String,
    groups: Vec<String>,
    init: bool,
) -> Result<ProcessPlan, InvalidSpec> {
    refuse_first(&[
        ("process.terminal", process.terminal() == Some(true)),
        (
            "process.apparmorProfile",
            process
                .apparmor_profile()
                .as_ref()
                .is_some_and(|p| !p.is_empty()),
        ),
        (
            "process.selinuxLabel",
            process
                .selinux_label()
                .as_ref()
                .is_some_and(|l| !l.is_empty()),
        ),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        (
            "process.execCPUAffinity",
            process.exec_cpu_affinity().is_some(),
        ),
        ("process.commandLine", process.command_line().is_some()),
    ])?;
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(InvalidSpec::invalid(
            "process.args",
            "no command specified".to_owned(),
        ));
    }
    let env = process.env().clone().unwrap_or_default();
    for (field, texts) in [("process.args", &args), ("process.env", &env)] {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(InvalidSpec::invalid(
                field,
                "contains a NUL character".to_owned(),
            ));
        }
    }
    let cwd = process.cwd().to_string_lossy().into_owned();
    let cwd = if cwd.is_empty() { "/".to_owned() } else { cwd };
    if !cwd.starts_with('/') {
        return Err(InvalidSpec::invalid(
            "process.cwd",
            format!("the working directory '{cwd}' is invalid, it needs to be an absolute path"),
        ));
    }
    if let Some(score) = process
        .oom_score_adj()
        .filter(|score| !(-1000..=1000).contains(score))
    {
        return Err(InvalidSpec::invalid(
            "process.oomScoreAdj",
            format!("{score} is not in -1000..=1000"),
        ));
    }
    let mut rlimits = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        if limit.soft() > limit.hard() {
            return Err(InvalidSpec::invalid(
                "process.rlimits",
                format!("{}: the soft limit is above the hard limit", limit.typ()),
            ));
        }
        let resource = rlimit_number(limit.typ());
        rlimits.push(Rlimit {
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
    let identity = process.user();
    let extra = identity
        .additional_gids()
        .iter()
        .flatten()
        .map(ToString::to_string);
    Ok(ProcessPlan {
        args,
        env,
        cwd,
        user,
        uid: identity.uid(),
        gid: identity.gid(),
        groups: groups.into_iter().chain(extra).collect(),
        umask: identity.umask().unwrap_or(0o022),
        capabilities: process
            .capabilities()
            .as_ref()
            .map(capability_sets)
            .unwrap_or_default(),
        rlimits,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: process.oom_score_adj(),
        init,
    })
}

fn capability_sets(sets: &LinuxCapabilities) -> CapabilitySets {
    CapabilitySets {
        bounding: mask(sets.bounding().as_ref()),
        effective: mask(sets.effective().as_ref()),
        permitted: mask(sets.permitted().as_ref()),
        inheritable: mask(sets.inheritable().as_ref()),
        ambient: mask(sets.ambient().as_ref()),
    }
}

fn mask(capabilities: Option<&Capabilities>) -> u64 {
    let names = capabilities.into_iter().flatten().map(ToString::to_string);
    names
        .filter_map(|name| capability_number(&name))
        .fold(0, |mask, number| mask | 1 << number)
}

/// Capability names in the order of their numbers (`<linux/capability.h>`).
const CAPABILITIES: &str = "\
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE \
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN \
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE \
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

/// The number of a capability, with or without its `CAP_` prefix.
pub(crate) fn capability_number(name: &str) -> Option<u32> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    CAPABILITIES
        .split_whitespace()
        .zip(0..)
        .find(|(known, _)| *known == name)
        .map(|(_, n)| n)
}

/// The numbers of x86 and arm64 (`<asm-generic/resource.h>`).
fn rlimit_number(limit: PosixRlimitType) -> u32 {
    match limit {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{EtcFiles, LogConfig, Rootfs, default_spec};

    fn request() -> CreateRequest {
        CreateRequest {
            id: "ab".repeat(32),
            spec: default_spec(),
            rootfs: Rootfs {
                layers_dir: PathBuf::from("/layers"),
                lower: vec!["a".to_owned()],
            },
            user: String::new(),
            groups: Vec::new(),
            etc: EtcFiles::default(),
            files: Vec::new(),
            log: LogConfig::default(),
            seccomp: None,
            init: false,
        }
    }

    fn refusal(change: impl FnOnce(&mut CreateRequest)) -> String {
        let mut request = request();
        change(&mut request);
        Plan::new(request).expect_err("refused").to_string()
    }

    #[test]
    fn default_spec_has_dockers_capabilities() {
        let plan = Plan::new(request()).expect("the default is valid");
        assert_eq!(plan.process.capabilities.effective, 0xa804_25fb);
        assert_eq!(plan.process.capabilities.bounding, 0xa804_25fb);
        assert_eq!(plan.process.capabilities.ambient, 0);
    }

    #[test]
    fn unsupported_fields_are_refused_by_name() {
        let text = refusal(|request| {
            request
                .spec
                .set_hooks(Some(oci_spec::runtime::Hooks::default()));
        });
        assert_eq!(text, "hooks is not supported");
        let text = refusal(|request| {
            let process = request
                .spec
                .process_mut()
                .as_mut()
                .expect("the default has one");
            process.set_terminal(Some(true));
        });
        assert_eq!(text, "process.terminal is not supported");
    }

    #[test]
    fn ids_and_layers_cannot_escape_their_directories() {
        assert!(
            refusal(|request| request.id = "../../etc".to_owned()).contains("64 lower-case hex")
        );
        assert!(
            refusal(|request| request.rootfs.lower = vec!["../x".to_owned()]).contains("layer")
        );
        assert!(refusal(|request| request.rootfs.lower = vec!["/x".to_owned()]).contains("layer"));
    }

    #[test]
    fn host_sysctls_are_refused() {
        let text = refusal(|request| {
            let linux = request
                .spec
                .linux_mut()
                .as_mut()
                .expect("the default has one");
            linux.set_sysctl(Some([("vm.swappiness".to_owned(), "1".to_owned())].into()));
        });
        assert!(
            text.contains("not in a separate kernel namespace"),
            "{text}"
        );
    }
}
