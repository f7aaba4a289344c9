//! Docker's defaults for a Linux container (moby `oci/defaults.go`, `oci/caps/defaults.go`).

use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, MountBuilder,
    Process, RootBuilder, Spec, User,
};

/// The spec of a container that asks for nothing special. It has no seccomp section: the caller adds the filter of
/// [`crate::default_seccomp`] to the request, or leaves the container unconfined.
pub fn default_spec() -> Spec {
    let mut spec = Spec::default();
    spec.set_version("1.2.0".to_owned())
        .set_root(Some(
            RootBuilder::default()
                .readonly(false)
                .build()
                .expect("all fields have defaults"),
        ))
        .set_hostname(None)
        .set_mounts(Some(mounts()))
        .set_process(Some(process()))
        .set_linux(Some(linux()));
    spec
}

fn process() -> Process {
    let mut process = Process::default();
    process
        .set_args(None)
        .set_env(Some(vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ]))
        .set_args(Some(vec!["sh".to_owned()]))
        .set_cwd("/".into())
        .set_user(User::default())
        .set_no_new_privileges(Some(false))
        .set_rlimits(None)
        .set_capabilities(Some(capabilities()));
    process
}

fn capabilities() -> LinuxCapabilities {
    use Capability::{
        AuditWrite, Chown, DacOverride, Fowner, Fsetid, Kill, Mknod, NetBindService, NetRaw,
        Setfcap, Setgid, Setpcap, Setuid, SysChroot,
    };
    let set: std::collections::HashSet<Capability> = [
        Chown,
        DacOverride,
        Fsetid,
        Fowner,
        Mknod,
        NetRaw,
        Setgid,
        Setuid,
        Setfcap,
        Setpcap,
        NetBindService,
        SysChroot,
        Kill,
        AuditWrite,
    ]
    .into();
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    capabilities
}

fn mounts() -> Vec<Mount> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(target)
            .typ(kind)
            .source(source)
            .options(
                options
                    .iter()
                    .map(|word| (*word).to_owned())
                    .collect::<Vec<_>>(),
            )
            .build()
            .expect("a mount of constants is valid")
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
        ),
    ]
}

fn linux() -> Linux {
    let namespace = |typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace
    };
    let texts = |paths: &[&str]| Some(paths.iter().map(|path| (*path).to_owned()).collect());
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(device_rules()));
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(
            [
                LinuxNamespaceType::Mount,
                LinuxNamespaceType::Network,
                LinuxNamespaceType::Uts,
                LinuxNamespaceType::Pid,
                LinuxNamespaceType::Ipc,
                LinuxNamespaceType::Cgroup,
            ]
            .map(namespace)
            .into(),
        ))
        .set_resources(Some(resources))
        .set_masked_paths(texts(&[
            "/proc/acpi",
            "/proc/asound",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/sys/devices/virtual/powercap",
            "/sys/firmware",
        ]))
        .set_readonly_paths(texts(&[
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ]));
    linux
}

/// Nothing, then what runc and Docker allow everyone: making any node, and using the harmless ones.
fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow: bool,
                kind: LinuxDeviceType,
                major: Option<i64>,
                minor: Option<i64>,
                access: &str| {
        let mut rule = LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(kind)
            .access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build().expect("a rule of constants is valid")
    };
    let character = LinuxDeviceType::C;
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm"),
        rule(true, character, None, None, "m"),
        rule(true, LinuxDeviceType::B, None, None, "m"),
        rule(true, character, Some(136), None, "rwm"), // pseudo-terminals
    ];
    // null, zero, full, random, urandom, tty, console, ptmx.
    for (major, minor) in [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
    ] {
        rules.push(rule(true, character, Some(major), Some(minor), "rwm"));
    }
    rules
}
