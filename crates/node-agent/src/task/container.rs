//! From a task and its image to the container the runtime makes: pure translation, with Docker's
//! defaults.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use oci_spec::runtime::{
    Capability, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    MountBuilder, PosixRlimit, PosixRlimitBuilder, Spec,
};
use shoal_runtime::{ContainerFile, CreateRequest, EtcFiles, LogConfig, Rootfs};
use shoal_types::{
    object::{NodeDescription, Task},
    spec::{LogDriver, LogDriverError, LogKeeping, Resources, SeccompMode, Ulimit},
};

use super::{
    container_id,
    mounts::{MountSource, TaskMount},
    resources::resource_variables,
    template,
};
use crate::volumes::Volumes;

/// Scheduling period of processor limits, Docker's and the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The server every container asks for names; `network` answers there.
const DNS_SERVER: &str = "127.0.0.11";

/// What an image contributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageDefaults {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) dir: String,
    pub(crate) layers_dir: PathBuf,
    pub(crate) lower: Vec<String>,
}

/// What the node contributes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    pub(crate) node: NodeDescription,
    /// `search` line of the node's resolv.conf.
    pub(crate) search: Vec<String>,
    /// Of containers whose service does not say otherwise.
    pub(crate) log: LogDriver,
}

/// What is prepared for the task on the node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prepared {
    pub(crate) mounts: Vec<TaskMount>,
    pub(crate) files: Vec<ContainerFile>,
}

/// The spec asks for something that can't be translated; the text says what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error(transparent)]
    Template(#[from] template::TemplateError),
    #[error("no command specified: the image has neither entrypoint nor cmd; give the service one")]
    NoCommand,
    #[error("unknown capability {name:?}: see capabilities(7) for the names")]
    Capability { name: String },
    #[error("unknown ulimit {name:?}: see getrlimit(2) for the names")]
    Ulimit { name: String },
    #[error("invalid mount {target}: {reason}")]
    Mount {
        target: PathBuf,
        reason: &'static str,
    },
    #[error(transparent)]
    Log(#[from] LogDriverError),
    #[error("custom seccomp profile: {reason}")]
    Seccomp { reason: String },
}

/// The container of `task`, whose `attachments` are its addresses.
pub(crate) fn request(
    task: &Task,
    image: &ImageDefaults,
    around: &Surroundings,
    volumes: &Volumes,
    prepared: Prepared,
) -> Result<CreateRequest, SpecError> {
    let spec = &task.spec.container;
    let id = container_id(&task.id);
    let expand = |text: &str| template::expand(text, task, &around.node);
    let hostname = match expand(&spec.hostname)? {
        name if name.is_empty() => id.short().to_owned(),
        name => name,
    };

    let mut oci = shoal_runtime::default_spec();
    oci.set_hostname(Some(hostname.clone()));
    let capabilities = set_process(&mut oci, task, image, &hostname, around)?;
    set_resources(&mut oci, &task.spec.limits, &task.spec.reservations);
    for mount in &prepared.mounts {
        add_mount(&mut oci, mount, volumes)?;
    }
    if let Some(root) = oci.root_mut() {
        root.set_readonly(Some(spec.read_only));
    }
    if let Some(linux) = oci.linux_mut()
        && !spec.sysctls.is_empty()
    {
        linux.set_sysctl(Some(spec.sysctls.clone().into_iter().collect()));
    }
    let seccomp = match &spec.privileges.seccomp {
        SeccompMode::Unconfined => None,
        SeccompMode::Default => Some(shoal_runtime::default_seccomp(capability_mask(
            &capabilities,
        ))),
        SeccompMode::Custom(profile) => {
            let reason = |error: &dyn std::error::Error| SpecError::Seccomp {
                reason: error.to_string(),
            };
            let profile = std::str::from_utf8(profile).map_err(|error| reason(&error))?;
            let mask = capability_mask(&capabilities);
            let filter =
                shoal_runtime::docker_profile(profile, mask).map_err(|error| reason(&error))?;
            Some(Arc::new(filter))
        }
    };

    let user = if spec.user.is_empty() {
        &image.user
    } else {
        &spec.user
    };
    let addresses: Vec<Ipv4Addr> = task.attachments.iter().map(|a| a.addr).collect();
    Ok(CreateRequest {
        id: id.to_string(),
        spec: oci,
        rootfs: Rootfs {
            layers_dir: image.layers_dir.clone(),
            lower: image.lower.clone(),
        },
        user: user.clone(),
        groups: spec.groups.clone(),
        etc: EtcFiles {
            hostname: format!("{hostname}\n").into_bytes(),
            hosts: hosts(&hostname, &addresses, &spec.hosts).into_bytes(),
            resolv_conf: resolv_conf(task, &around.search).into_bytes(),
        },
        files: prepared.files,
        log: log_config(task.spec.log_driver.as_ref(), &around.log)?,
        seccomp,
        init: spec.init.unwrap_or(false),
    })
}

fn log_config(driver: Option<&LogDriver>, own: &LogDriver) -> Result<LogConfig, LogDriverError> {
    let default = LogConfig::default();
    Ok(match LogDriver::on(driver, own).keeping()? {
        LogKeeping::Nothing => LogConfig {
            discard: true,
            ..default
        },
        LogKeeping::Files {
            max_size,
            max_files,
        } => LogConfig {
            max_size,
            max_files: max_files.unwrap_or(default.max_files),
            ..default
        },
    })
}

fn set_process(
    oci: &mut Spec,
    task: &Task,
    image: &ImageDefaults,
    hostname: &str,
    around: &Surroundings,
) -> Result<Capabilities, SpecError> {
    let spec = &task.spec.container;
    let args = command(spec.command.as_slice(), spec.args.as_slice(), image)?;
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let defaults = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        format!("HOSTNAME={hostname}"),
        format!("SHOAL_TASK_NAME={}", task.name()),
        format!("SHOAL_NODE_HOSTNAME={}", around.node.hostname),
    ];
    for variable in defaults.iter().chain(&image.env) {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        env.insert(key.to_owned(), value.to_owned());
    }
    for variable in &spec.env {
        match variable.split_once('=') {
            Some((key, value)) => {
                let value = template::expand(value, task, &around.node)?;
                env.insert(key.to_owned(), value);
            }
            // Docker: a name alone takes the variable of the image away.
            None => {
                env.remove(variable);
            }
        }
    }
    env.extend(resource_variables(&task.generic));

    let process = oci
        .process_mut()
        .as_mut()
        .expect("the default spec has a process");
    process.set_args(Some(args));
    process.set_env(Some(
        env.into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect(),
    ));
    let dir = if spec.dir.is_empty() {
        &image.dir
    } else {
        &spec.dir
    };
    process.set_cwd(PathBuf::from(if dir.is_empty() { "/" } else { dir }));
    process.set_terminal(Some(spec.tty));
    process.set_no_new_privileges(Some(spec.privileges.no_new_privileges));
    process.set_oom_score_adj(Some(spec.oom_score_adj));
    if !spec.ulimits.is_empty() {
        let limits = spec
            .ulimits
            .iter()
            .map(rlimit)
            .collect::<Result<Vec<_>, _>>()?;
        process.set_rlimits(Some(limits));
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let bounding = sets.bounding().clone().unwrap_or_default();
    let wanted = capability_set(bounding, &spec.cap_add, &spec.cap_drop)?;
    sets.set_bounding(Some(wanted.clone()));
    sets.set_permitted(Some(wanted.clone()));
    sets.set_effective(Some(wanted.clone()));
    process.set_capabilities(Some(sets));
    Ok(wanted)
}

/// Docker's rules: a command replaces the entrypoint and drops the image's cmd; args replace the cmd.
fn command(
    command: &[String],
    args: &[String],
    image: &ImageDefaults,
) -> Result<Vec<String>, SpecError> {
    let (first, rest) = match (command.is_empty(), args.is_empty()) {
        (false, _) => (command, args),
        (true, false) => (image.entrypoint.as_slice(), args),
        (true, true) => (image.entrypoint.as_slice(), image.cmd.as_slice()),
    };
    let all: Vec<String> = first.iter().chain(rest).cloned().collect();
    if all.is_empty() {
        Err(SpecError::NoCommand)
    } else {
        Ok(all)
    }
}

type Capabilities = std::collections::HashSet<Capability>;

fn capability_set(
    mut set: Capabilities,
    add: &[String],
    drop: &[String],
) -> Result<Capabilities, SpecError> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("all");
    if drop.iter().any(is_all) {
        set.clear();
    }
    for name in drop.iter().filter(|name| !is_all(name)) {
        set.remove(&capability(name)?);
    }
    if add.iter().any(is_all) {
        set.extend(all_capabilities());
    }
    for name in add.iter().filter(|name| !is_all(name)) {
        set.insert(capability(name)?);
    }
    Ok(set)
}

fn capability(name: &str) -> Result<Capability, SpecError> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    all_capabilities()
        .find(|capability| capability.to_string() == short)
        .ok_or_else(|| SpecError::Capability {
            name: name.to_owned(),
        })
}

/// Every capability, at the index of its number (linux/capability.h).
fn all_capabilities() -> impl Iterator<Item = Capability> {
    use Capability::{
        AuditControl, AuditRead, AuditWrite, BlockSuspend, Bpf, CheckpointRestore, Chown,
        DacOverride, DacReadSearch, Fowner, Fsetid, IpcLock, IpcOwner, Kill, Lease, LinuxImmutable,
        MacAdmin, MacOverride, Mknod, NetAdmin, NetBindService, NetBroadcast, NetRaw, Perfmon,
        Setfcap, Setgid, Setpcap, Setuid, SysAdmin, SysBoot, SysChroot, SysModule, SysNice,
        SysPacct, SysPtrace, SysRawio, SysResource, SysTime, SysTtyConfig, Syslog, WakeAlarm,
    };
    [
        Chown,
        DacOverride,
        DacReadSearch,
        Fowner,
        Fsetid,
        Kill,
        Setgid,
        Setuid,
        Setpcap,
        LinuxImmutable,
        NetBindService,
        NetBroadcast,
        NetAdmin,
        NetRaw,
        IpcLock,
        IpcOwner,
        SysModule,
        SysRawio,
        SysChroot,
        SysPtrace,
        SysPacct,
        SysAdmin,
        SysBoot,
        SysNice,
        SysResource,
        SysTime,
        SysTtyConfig,
        Mknod,
        Lease,
        AuditWrite,
        AuditControl,
        Setfcap,
        MacOverride,
        MacAdmin,
        Syslog,
        WakeAlarm,
        BlockSuspend,
        AuditRead,
        Perfmon,
        Bpf,
        CheckpointRestore,
    ]
    .into_iter()
}

fn capability_mask(set: &Capabilities) -> u64 {
    let numbers = (0..).zip(all_capabilities());
    numbers
        .filter(|(_, c)| set.contains(c))
        .fold(0, |mask, (number, _)| mask | 1 << number)
}

fn rlimit(ulimit: &Ulimit) -> Result<PosixRlimit, SpecError> {
    let unknown = || SpecError::Ulimit {
        name: ulimit.name.clone(),
    };
    let name = format!("\"RLIMIT_{}\"", ulimit.name.to_ascii_uppercase());
    let kind = serde_json::from_str(&name).map_err(|_| unknown())?;
    // -1 is "no limit", which the kernel writes as the largest number.
    let value = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    PosixRlimitBuilder::default()
        .typ::<oci_spec::runtime::PosixRlimitType>(kind)
        .soft(value(ulimit.soft))
        .hard(value(ulimit.hard))
        .build()
        .map_err(|_| unknown())
}

fn set_resources(oci: &mut Spec, limits: &Resources, reservations: &Resources) {
    let linux = oci
        .linux_mut()
        .as_mut()
        .expect("the default spec has a linux section");
    let mut resources: LinuxResources = linux.resources().clone().unwrap_or_default();
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    if limits.memory_bytes > 0 || reservations.memory_bytes > 0 {
        let mut memory = LinuxMemoryBuilder::default();
        if limits.memory_bytes > 0 {
            memory = memory.limit(bytes(limits.memory_bytes));
        }
        if reservations.memory_bytes > 0 {
            memory = memory.reservation(bytes(reservations.memory_bytes));
        }
        resources.set_memory(Some(memory.build().expect("every field is optional")));
    }
    if limits.nano_cpus > 0 {
        let quota = limits.nano_cpus.saturating_mul(CPU_PERIOD_US) / 1_000_000_000;
        let cpu = LinuxCpuBuilder::default()
            .period(CPU_PERIOD_US)
            .quota(bytes(quota.max(1_000)))
            .build()
            .expect("every field is optional");
        resources.set_cpu(Some(cpu));
    }
    if limits.pids > 0 {
        let pids = LinuxPidsBuilder::default()
            .limit(bytes(limits.pids))
            .build();
        resources.set_pids(Some(pids.expect("every field is given")));
    }
    linux.set_resources(Some(resources));
}

fn add_mount(oci: &mut Spec, mount: &TaskMount, volumes: &Volumes) -> Result<(), SpecError> {
    let error = |reason| SpecError::Mount {
        target: mount.target.clone(),
        reason,
    };
    if !mount.target.is_absolute() || mount.target == Path::new("/") {
        return Err(error("the target must be an absolute path other than /"));
    }
    let access = if mount.read_only { "ro" } else { "rw" };
    let new = match &mount.source {
        MountSource::Bind(bind) => {
            let propagation = if bind.propagation.is_empty() {
                "rprivate"
            } else {
                bind.propagation.as_str()
            };
            let recursion = if bind.non_recursive { "bind" } else { "rbind" };
            // As Docker since 25: what is mounted below is read-only, too.
            let access = if mount.read_only && !bind.non_recursive {
                "rro"
            } else {
                access
            };
            let options = [recursion, propagation, access].map(str::to_owned).to_vec();
            MountBuilder::default()
                .typ("bind")
                .source(bind.source.clone())
                .options(options)
        }
        MountSource::Tmpfs(tmpfs) => {
            let mode = if tmpfs.mode == 0 { 0o1777 } else { tmpfs.mode };
            let mut options = ["noexec", "nosuid", "nodev", access]
                .map(str::to_owned)
                .to_vec();
            options.push(format!("mode={mode:o}"));
            if tmpfs.size_bytes > 0 {
                options.push(format!("size={}", tmpfs.size_bytes));
            }
            MountBuilder::default()
                .typ("tmpfs")
                .source("tmpfs")
                .options(options)
        }
        MountSource::Volume(volume) => {
            let mut options = ["rbind", "rprivate", access].map(str::to_owned).to_vec();
            if !volume.no_copy {
                options.push("copyup".to_owned());
            }
            MountBuilder::default()
                .typ("bind")
                .source(volumes.mountpoint(&volume.name))
                .options(options)
        }
    };
    let new = new.destination(mount.target.clone()).build();
    let new = new.map_err(|_| error("the mount is incomplete"))?;
    let mut mounts = oci.mounts().clone().unwrap_or_default();
    mounts.retain(|existing| *existing.destination() != mount.target);
    mounts.push(new);
    oci.set_mounts(Some(mounts));
    Ok(())
}

/// `/etc/hosts` as Docker writes it.
fn hosts(hostname: &str, addresses: &[Ipv4Addr], extra: &[String]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n\
                    ::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::\tip6-localnet\n\
                    ff00::\tip6-mcastprefix\n\
                    ff02::1\tip6-allnodes\n\
                    ff02::2\tip6-allrouters\n"
        .to_owned();
    for line in extra {
        let _ = writeln!(text, "{}", line.replacen(' ', "\t", 1));
    }
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

/// The embedded server asks the task's own nameservers, so the file always names the former.
fn resolv_conf(task: &Task, node_search: &[String]) -> String {
    let dns = &task.spec.container.dns;
    let search = if dns.search.is_empty() {
        node_search
    } else {
        &dns.search
    };
    let mut text = format!("nameserver {DNS_SERVER}\n");
    if !search.is_empty() && search != [".".to_owned()] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    let has_ndots = dns
        .options
        .iter()
        .any(|option| option.starts_with("ndots:"));
    let default = (!has_ndots).then_some("ndots:0");
    let options: Vec<&str> = dns
        .options
        .iter()
        .map(String::as_str)
        .chain(default)
        .collect();
    let _ = writeln!(text, "options {}", options.join(" "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::tests::{node, task};

    fn image() -> ImageDefaults {
        ImageDefaults {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["a".to_owned(), "b".to_owned()],
            env: vec!["PATH=/bin".to_owned(), "GONE=1".to_owned()],
            user: "www".to_owned(),
            dir: "/srv".to_owned(),
            ..ImageDefaults::default()
        }
    }

    fn around() -> Surroundings {
        Surroundings {
            node: node(),
            search: Vec::new(),
            log: LogDriver {
                name: "json-file".to_owned(),
                options: [("max-size".to_owned(), "1k".to_owned())].into(),
            },
        }
    }

    fn build(task: &Task) -> Result<CreateRequest, SpecError> {
        let directory = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(directory.path().to_owned()).unwrap();
        request(task, &image(), &around(), &volumes, Prepared::default())
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn command_and_args_follow_dockers_rules() {
        let image = image();
        let case = |c: &[&str], a: &[&str]| command(&words(c), &words(a), &image).unwrap();
        assert_eq!(case(&[], &[]), words(&["/entry", "a", "b"]));
        assert_eq!(case(&[], &["x"]), words(&["/entry", "x"]));
        assert_eq!(case(&["/other"], &[]), words(&["/other"]));
        assert_eq!(case(&["/other"], &["x"]), words(&["/other", "x"]));
        assert_eq!(
            command(&[], &[], &ImageDefaults::default()),
            Err(SpecError::NoCommand)
        );
    }

    #[test]
    fn environment_is_the_images_under_the_services() {
        let mut task = task();
        task.spec.container.env = words(&["GONE", "SLOT={{.Task.Slot}}", "A=b=c"]);
        let request = build(&task).unwrap();
        let process = request.spec.process().clone().unwrap();
        let env = process.env().clone().unwrap();
        assert!(env.contains(&"PATH=/bin".to_owned()));
        assert!(env.contains(&"SLOT=3".to_owned()) && env.contains(&"A=b=c".to_owned()));
        assert!(!env.iter().any(|v| v.starts_with("GONE")));
        assert_eq!(process.cwd(), Path::new("/srv"));
        assert_eq!(request.user, "www");
        assert_eq!(request.id, container_id(&task.id).to_string());
    }

    #[test]
    fn output_goes_where_the_service_says_and_else_where_the_node_does() {
        let log = |driver: Option<(&str, &[(&str, &str)])>| {
            let mut task = task();
            task.spec.log_driver = driver.map(|(name, options)| LogDriver {
                name: name.to_owned(),
                options: options
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            });
            build(&task).map(|request| request.log)
        };
        let files = |max_size, max_files| LogConfig {
            max_size: Some(max_size),
            max_files,
            discard: false,
        };
        assert_eq!(log(None).unwrap(), files(1000, 1));
        let three = [("max-file", "3")];
        assert_eq!(log(Some(("json-file", &three))).unwrap(), files(1000, 3));
        assert_eq!(log(Some(("local", &three))).unwrap(), files(20_000_000, 3));
        assert!(log(Some(("none", &[]))).unwrap().discard);
        assert!(matches!(
            log(Some(("fluentd", &[]))),
            Err(SpecError::Log(LogDriverError::Driver { .. }))
        ));
    }

    #[test]
    fn limits_become_the_cgroups() {
        let mut task = task();
        task.spec.limits = Resources {
            nano_cpus: 500_000_000,
            memory_bytes: 64 << 20,
            pids: 50,
            generic: Vec::new(),
        };
        let request = build(&task).unwrap();
        let linux = request.spec.linux().clone().unwrap();
        let resources = linux.resources().clone().unwrap();
        assert_eq!(resources.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(50_000));
        assert_eq!(resources.pids().unwrap().limit(), 50);
        assert!(
            resources.devices().is_some(),
            "the default device rules stay"
        );
    }

    #[test]
    fn capabilities_are_added_and_dropped_by_name() {
        let base: Capabilities = [Capability::Chown, Capability::Kill].into();
        let set =
            capability_set(base.clone(), &words(&["NET_ADMIN"]), &words(&["cap_kill"])).unwrap();
        assert_eq!(set, [Capability::Chown, Capability::NetAdmin].into());
        let none = capability_set(base.clone(), &[], &words(&["ALL"])).unwrap();
        assert!(none.is_empty());
        assert_eq!(
            capability_set(base.clone(), &words(&["ALL"]), &[])
                .unwrap()
                .len(),
            41
        );
        assert_eq!(
            capability_set(base, &words(&["FLY"]), &[]),
            Err(SpecError::Capability {
                name: "FLY".to_owned()
            })
        );
    }

    #[test]
    fn hosts_and_resolver_name_the_container_and_the_embedded_server() {
        let text = hosts(
            "web",
            &[Ipv4Addr::new(10, 0, 1, 5)],
            &words(&["1.2.3.4 db db2"]),
        );
        assert!(text.contains("1.2.3.4\tdb db2\n") && text.ends_with("10.0.1.5\tweb\n"));
        assert_eq!(
            resolv_conf(&task(), &words(&["example.org"])),
            "nameserver 127.0.0.11\nsearch example.org\noptions ndots:0\n"
        );
    }

    #[test]
    fn bad_ulimits_and_mounts_are_named() {
        let limit = Ulimit {
            name: "nofile".to_owned(),
            soft: 10,
            hard: -1,
        };
        assert_eq!(rlimit(&limit).unwrap().hard(), u64::MAX);
        let limit = Ulimit {
            name: "x".to_owned(),
            soft: 1,
            hard: 1,
        };
        assert_eq!(
            rlimit(&limit),
            Err(SpecError::Ulimit {
                name: "x".to_owned()
            })
        );
    }
}
