//! Docker's default profile (moby/profiles, `seccomp/default.json`), written as what it withholds.
//!
//! Docker lists what it allows; the complement within the kernel's calls is far shorter and says what each refusal is
//! about. A call of the table that is in no list below is allowed.

use oci_spec::runtime::LinuxSeccompOperator as Operator;

use super::{Action, Condition, Rule, push_rules, table};

/// Calls never allowed, whatever the capabilities.
const NEVER: &str = "\
_sysctl add_key afs_syscall create_module get_kernel_syms getpmsg io_uring_enter io_uring_register io_uring_setup \
kexec_file_load kexec_load keyctl migrate_pages move_pages nfsservctl open_tree_attr file_getattr file_setattr \
pivot_root putpmsg query_module request_key security swapoff swapon sysfs tuxcall uselib userfaultfd ustat vserver";

/// Calls allowed to a container that has the capability (numbers: `<linux/capability.h>`).
const WITH_CAPABILITY: &[(u32, &str)] = &[
    (2, "open_by_handle_at"),                       // CAP_DAC_READ_SEARCH
    (16, "delete_module init_module finit_module"), // CAP_SYS_MODULE
    (17, "iopl ioperm"),                            // CAP_SYS_RAWIO
    (18, "chroot"),                                 // CAP_SYS_CHROOT
    (19, "kcmp pidfd_getfd process_madvise"),       // CAP_SYS_PTRACE
    (20, "acct"),                                   // CAP_SYS_PACCT
    (
        SYS_ADMIN,
        "\
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
        lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
        sethostname setns syslog umount umount2 unshare",
    ),
    (22, "reboot"), // CAP_SYS_BOOT
    (
        23,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ), // CAP_SYS_NICE
    (25, "settimeofday stime clock_settime"), // CAP_SYS_TIME
    (26, "vhangup"), // CAP_SYS_TTY_CONFIG
    (34, "syslog"), // CAP_SYSLOG
    (38, "perf_event_open"), // CAP_PERFMON
    (39, "bpf"),    // CAP_BPF
];
const SYS_ADMIN: u32 = 21;

/// Calls of which only some arguments are allowed; their rules are made in [`rules`].
const BY_ARGUMENT: &str = "personality socket";

/// The `CLONE_NEW*` flags: all namespaces but time.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// personality(2): query, Linux, `PER_LINUX32`, and both with `UNAME26`.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Address families refused: `AF_X25`-like leftovers without a use in containers, `AF_ALG` (38) and `AF_VSOCK` (40),
/// which would reach the hypervisor. Everything from [`FAMILY_END`] on is unknown and refused too.
const REFUSED_FAMILIES: [u64; 9] = [12, 19, 20, 23, 25, 34, 37, 38, 40];
const FAMILY_END: u64 = 46;

/// The capabilities (as a mask) that change the profile.
pub(super) fn conditional_capabilities() -> u64 {
    WITH_CAPABILITY
        .iter()
        .fold(0, |mask, (capability, _)| mask | 1 << capability)
}

/// The profile's rules for a container with these capabilities. ptrace(2) and `process_vm`_*(2) are allowed as on every
/// kernel since 4.8, where seccomp is checked after ptrace.
pub(super) fn rules(capabilities: u64) -> Vec<Rule> {
    let has = |capability: u32| capabilities & (1 << capability) != 0;
    let mut rules = Vec::new();
    let listed = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    let withheld = |name: &str| {
        listed(NEVER, name)
            || listed(BY_ARGUMENT, name)
            || WITH_CAPABILITY.iter().any(|(_, list)| listed(list, name))
    };
    let open: Vec<&str> = table::all()
        .map(|(name, _)| name)
        .filter(|name| !withheld(name))
        .collect();
    push_rules(&mut rules, &open, Action::ALLOW, &[]);
    for (_, list) in WITH_CAPABILITY
        .iter()
        .filter(|(capability, _)| has(*capability))
    {
        let names: Vec<&str> = list.split_whitespace().collect();
        push_rules(&mut rules, &names, Action::ALLOW, &[]);
    }
    let argument = |operator, value, masked| Condition {
        argument: 0,
        operator,
        value,
        masked,
    };
    if !has(SYS_ADMIN) {
        let no_namespaces = argument(Operator::ScmpCmpMaskedEq, NAMESPACE_FLAGS, 0);
        push_rules(&mut rules, &["clone"], Action::ALLOW, &[no_namespaces]);
        // Its flags are behind a pointer, which a filter cannot follow: the C library falls back to clone(2).
        push_rules(
            &mut rules,
            &["clone3"],
            Action::errno(libc::ENOSYS as u32),
            &[],
        );
    }
    for value in PERSONALITIES {
        push_rules(
            &mut rules,
            &["personality"],
            Action::ALLOW,
            &[argument(Operator::ScmpCmpEq, value, 0)],
        );
    }
    let denied = Action::errno(libc::EPERM as u32);
    for family in REFUSED_FAMILIES {
        push_rules(
            &mut rules,
            &["socket"],
            denied,
            &[argument(Operator::ScmpCmpEq, family, 0)],
        );
    }
    push_rules(
        &mut rules,
        &["socket"],
        Action::ALLOW,
        &[argument(Operator::ScmpCmpLt, FAMILY_END, 0)],
    );
    rules
}

#[cfg(test)]
mod tests {
    use super::super::compile::{compile, tests::run};
    use super::*;

    const ALLOW: u32 = Action::ALLOW.0;
    const EPERM: u32 = Action::errno(1).0;
    const ENOSYS: u32 = Action::errno(38).0;
    /// Docker's fourteen default capabilities.
    const DEFAULT: u64 = 0xa804_25fb;

    fn answer(capabilities: u64, name: &str, first: u64) -> u32 {
        let program = compile(&rules(capabilities), Action::errno(1));
        let number = table::number(name).expect("a known call");
        run(&program, table::AUDIT_ARCH, number, [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn default_profile_answers_as_docker_documents() {
        for (name, first, expected) in [
            ("read", 0, ALLOW),
            ("ptrace", 0, ALLOW),
            ("mount", 0, EPERM),
            ("init_module", 0, EPERM),
            ("bpf", 0, EPERM),
            ("keyctl", 0, EPERM),
            ("io_uring_setup", 0, EPERM),
            ("unshare", 0, EPERM),
            ("chroot", 0, ALLOW),
            ("clone", 0x11, ALLOW),
            ("clone", 0x1000_0000, EPERM),
            ("clone3", 0, ENOSYS),
            ("socket", 2, ALLOW),
            ("socket", 16, ALLOW),
            ("socket", 40, EPERM),
            ("socket", 38, EPERM),
            ("socket", 46, EPERM),
            ("personality", 0xffff_ffff, ALLOW),
            ("personality", 0x40000, EPERM),
        ] {
            assert_eq!(answer(DEFAULT, name, first), expected, "{name}({first:#x})");
        }
    }

    #[test]
    fn capabilities_open_their_calls() {
        assert_eq!(answer(DEFAULT | 1 << 21, "mount", 0), ALLOW);
        assert_eq!(answer(DEFAULT | 1 << 21, "clone3", 0), ALLOW);
        assert_eq!(answer(DEFAULT | 1 << 21, "clone", 0x1000_0000), ALLOW);
        assert_eq!(answer(DEFAULT | 1 << 16, "init_module", 0), ALLOW);
        assert_eq!(answer(DEFAULT & !(1 << 18), "chroot", 0), EPERM);
    }

    #[test]
    fn calls_newer_than_the_profile_and_x32_calls_get_enosys() {
        let program = compile(&rules(DEFAULT), Action::errno(1));
        for number in [5000, 0x4000_0000, u32::MAX] {
            assert_eq!(run(&program, table::AUDIT_ARCH, number, [0; 6]), ENOSYS);
        }
        assert!(program.len() < 220, "{} instructions", program.len());
    }

    #[test]
    fn every_listed_name_is_a_call() {
        if cfg!(target_arch = "x86_64") {
            let lists = WITH_CAPABILITY
                .iter()
                .map(|(_, list)| *list)
                .chain([NEVER, BY_ARGUMENT]);
            let unknown: Vec<&str> = lists
                .flat_map(str::split_whitespace)
                .filter(|name| table::number(name).is_none())
                .collect();
            assert_eq!(
                unknown,
                ["umount", "stime"],
                "only 32-bit calls are not in the table"
            );
        }
    }
}
