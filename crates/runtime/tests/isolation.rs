//! What a container can see and do, tried from inside.

mod support;

use oci_spec::runtime::{LinuxSeccomp, MountBuilder};
use shoal_runtime::{ContainerFile, CreateRequest, default_seccomp, docker_profile};
use support::{DEFAULT_CAPABILITIES, Node};

#[tokio::test]
async fn identity_and_confinement_are_dockers_defaults() {
    let node = Node::start().await;
    let (_, text) = node.output(node.shell("grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; umask; hostname; pwd; cat /etc/hosts /etc/resolv.conf /etc/hostname; echo $HOME; echo pid $$")).await;
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
        "0022",
        "box",
        "/",
        "127.0.0.1 localhost",
        "nameserver 127.0.0.11",
        "/root",
        "pid 1",
    ] {
        assert!(
            text.lines().any(|seen| seen == line),
            "no {line:?} in {text}"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn only_the_containers_own_things_are_visible() {
    let node = Node::start().await;
    let script = "ls /; echo --; ls /dev; echo --; ls /proc | grep -c '^[0-9]'; echo --; ls /proc/self/fd; echo --; ip -o link | wc -l; ip addr show lo | grep -c 127.0.0.1; echo --; cat /proc/self/mountinfo";
    let (status, text) = node.output(node.shell(script)).await;
    assert_eq!(status.code, 0, "{text}");
    let parts: Vec<Vec<&str>> = text
        .split("--\n")
        .map(|part| part.lines().collect())
        .collect();
    assert_eq!(
        parts[0],
        ["bin", "dev", "etc", "home", "proc", "root", "sys", "tmp"]
    );
    let devices = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ];
    assert_eq!(parts[1], devices);
    let processes: u32 = parts[2][0].parse().expect("a number");
    assert!(processes <= 4, "{processes} processes");
    // 3 is ls reading the directory.
    assert_eq!(parts[3], ["0", "1", "2", "3"]);
    assert_eq!(parts[4][1], "1");
    let targets: Vec<&str> = parts[5]
        .iter()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    let allowed = [
        "/",
        "/proc",
        "/dev",
        "/dev/pts",
        "/sys",
        "/dev/mqueue",
        "/dev/shm",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
    ];
    for target in targets {
        let masked = [
            "/proc/",
            "/sys/firmware",
            "/sys/devices/virtual/powercap",
            "/sys/fs/cgroup",
        ]
        .iter()
        .any(|prefix| target.starts_with(prefix));
        assert!(masked || allowed.contains(&target), "{target} is mounted");
    }
    node.finish().await;
}

#[tokio::test]
async fn what_the_host_must_not_allow_is_refused() {
    let node = Node::start().await;
    let host_pid = std::process::id();
    for (attempt, reason) in [
        ("mount -t tmpfs none /tmp", "permission denied"),
        ("mount -o remount,rw /sys", "permission denied"),
        ("umount /proc/sys", "Operation not permitted"),
        ("insmod /bin/busybox", "Operation not permitted"),
        ("unshare -m true", "Operation not permitted"),
        ("echo 1 > /proc/sys/kernel/panic", "Read-only file system"),
        ("echo h > /proc/sysrq-trigger", ""),
        ("echo 1 > /sys/kernel/profiling", ""),
        ("mkdir /sys/fs/cgroup/memory/x", "Read-only file system"),
        ("hostname other", "Operation not permitted"),
        (
            "mknod /tmp/disk b 254 0 && dd if=/tmp/disk of=/dev/null bs=1 count=1",
            "Operation not permitted",
        ),
        (
            "mknod /tmp/mem c 1 1 && dd if=/tmp/mem of=/dev/null bs=1 count=1",
            "Operation not permitted",
        ),
        (&format!("kill -0 {host_pid}"), "No such process"),
        (
            &format!("ls /proc/1/root{}", env!("CARGO_MANIFEST_DIR")),
            "No such file",
        ),
        (
            "chroot /proc/1/cwd/.. /bin/busybox test -e /boot -a -e /usr/sbin",
            "",
        ),
    ] {
        let (status, text) = node
            .output(node.shell(&format!("{attempt} 2>&1 && echo DONE")))
            .await;
        assert!(!text.contains("DONE"), "{attempt}: {text}");
        assert!(
            text.contains(reason),
            "{attempt}: {text:?} is not {reason:?} ({status:?})"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn masked_paths_are_empty() {
    let node = Node::start().await;
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list /proc/latency_stats /proc/interrupts; do test -e $f && cat $f; done; for d in /proc/acpi /proc/scsi /sys/firmware; do test -e $d && ls $d; done; echo end";
    let (_, text) = node.output(node.shell(script)).await;
    assert_eq!(text, "end\n");
    node.finish().await;
}

#[tokio::test]
async fn default_devices_work_and_the_cgroup_is_ones_own() {
    let node = Node::start().await;
    let script = "head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo x > /dev/null; echo via > /dev/stdout; cat /proc/self/cgroup; test ! -e /dev/console && echo no console";
    let (status, text) = node.output(node.shell(script)).await;
    assert_eq!(status.code, 0, "{text}");
    assert!(
        text.starts_with("4\n4\nvia\n") && text.contains("no console"),
        "{text}"
    );
    let own = |controller: &str| {
        text.lines()
            .any(|line| line.ends_with(&format!(":{controller}:/")))
    };
    assert!(own("memory") || text.contains("0::/\n"), "{text}");
    assert!(text.contains("0::/\n"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn users_are_found_in_the_containers_own_files() {
    let node = Node::start().await;
    for (user, expected) in [
        (
            "app",
            "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)",
        ),
        (
            "1000",
            "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)",
        ),
        (
            "app:extra",
            "uid=1000(app) gid=2000(extra) groups=2000(extra)",
        ),
        ("4242:17", "uid=4242 gid=17 groups=17"),
    ] {
        let mut request =
            node.shell("id; grep CapEff /proc/self/status; echo $HOME; echo out > /dev/stdout");
        request.user = user.to_owned();
        let (status, text) = node.output(request).await;
        assert_eq!(status.code, 0, "{text}");
        assert!(text.contains(expected), "{user}: {text}");
        assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_read_only_root_is_read_only() {
    let node = Node::start().await;
    let mut request = node.shell("touch /x 2>&1; touch /dev/shm/ok && echo shm; pwd");
    let mut root = oci_spec::runtime::Root::default();
    root.set_readonly(Some(true));
    request.spec.set_root(Some(root));
    request
        .spec
        .process_mut()
        .as_mut()
        .expect("process")
        .set_cwd("/made/for/it".into());
    let (_, text) = node.output(request).await;
    assert_eq!(
        text,
        "touch: /x: Read-only file system\nshm\n/made/for/it\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn binds_and_tmpfs_follow_their_options() {
    let node = Node::start().await;
    let host = tempfile::tempdir().expect("a directory");
    std::fs::write(host.path().join("file"), "host\n").expect("a file");
    std::os::unix::fs::symlink("../run/missing", node.layers.join("base/etc/dangling"))
        .expect("a link");
    let source = host.path().to_str().expect("UTF-8");
    let mut request = node.shell(
        "cat /ro/file; touch /ro/x 2>&1; echo new > /rw/file; touch /scratch/t && grep ' /scratch ' /proc/mounts; cat /etc/dangling; cat /copy/passwd | head -1; ls -ld /copy | cut -c1-10",
    );
    mount(&mut request, "bind", source, "/ro", &["rbind", "ro"]);
    mount(&mut request, "bind", source, "/rw", &["bind"]);
    mount(
        &mut request,
        "tmpfs",
        "tmpfs",
        "/scratch",
        &["size=1m", "noexec", "nosuid"],
    );
    mount(
        &mut request,
        "bind",
        &format!("{source}/file"),
        "/etc/dangling",
        &["bind", "ro"],
    );
    let (_, text) = node.output(request).await;
    assert!(
        text.starts_with("host\ntouch: /ro/x: Read-only file system\n"),
        "{text}"
    );
    assert!(
        text.contains("tmpfs /scratch tmpfs rw,nosuid,noexec,relatime,size=1024k"),
        "{text}"
    );
    assert_eq!(
        std::fs::read_to_string(host.path().join("file")).expect("a file"),
        "new\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn links_of_an_image_do_not_lead_out_of_it() {
    let node = Node::start().await;
    let outside = tempfile::tempdir().expect("a directory");
    let target = outside.path().to_str().expect("UTF-8").to_owned();
    std::os::unix::fs::symlink(&target, node.layers.join("base/escape")).expect("a link");
    let mut request = node.shell("test -d /escape/inner && echo inside");
    mount(&mut request, "tmpfs", "tmpfs", "/escape/inner", &[]);
    let (_, text) = node.output(request).await;
    assert_eq!(text, "inside\n");
    assert_eq!(
        std::fs::read_dir(outside.path())
            .expect("a directory")
            .count(),
        0
    );
    node.finish().await;
}

#[tokio::test]
async fn many_layers_are_stacked_in_order() {
    let node = Node::start().await;
    let mut lower = Vec::new();
    for number in 0..150 {
        // Long names overflow mount(2)'s option page.
        let name = format!("layer-{number:03}-{}", "x".repeat(40));
        std::fs::create_dir_all(node.layers.join(&name)).expect("a layer");
        std::fs::write(node.layers.join(&name).join("who"), format!("{number}\n")).expect("a file");
        lower.push(name);
    }
    lower.push("base".to_owned());
    for count in [3, 151] {
        let mut request = node.shell("cat /who");
        request.rootfs.lower = lower[151 - count..].to_vec();
        let (_, text) = node.output(request).await;
        assert_eq!(text, format!("{}\n", 151 - count));
    }
    node.finish().await;
}

#[tokio::test]
async fn seccomp_profiles_of_both_kinds_are_applied() {
    let node = Node::start().await;
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
    let mut docker = node.shell("mkdir /tmp/d 2>&1");
    docker.seccomp = Some(
        docker_profile(json, DEFAULT_CAPABILITIES)
            .expect("compiles")
            .into(),
    );
    let mut oci = node.shell("mkdir /tmp/d 2>&1");
    oci.seccomp = None;
    let section: LinuxSeccomp = serde_json::from_str(json).expect("parses");
    oci.spec
        .linux_mut()
        .as_mut()
        .expect("linux")
        .set_seccomp(Some(section));
    for mut request in [docker, oci] {
        for no_new_privileges in [false, true] {
            request.id = support::fresh_id();
            request
                .spec
                .process_mut()
                .as_mut()
                .expect("process")
                .set_no_new_privileges(Some(no_new_privileges));
            let (_, text) = node.output(request.clone()).await;
            assert_eq!(
                text,
                "mkdir: can't create directory '/tmp/d': No space left on device\n"
            );
        }
    }
    let mut unconfined = node.shell("grep Seccomp: /proc/self/status");
    unconfined.seccomp = None;
    assert_eq!(node.output(unconfined).await.1, "Seccomp:\t0\n");
    assert!(default_seccomp(DEFAULT_CAPABILITIES).instructions() < 220);
    node.finish().await;
}

fn mount(request: &mut CreateRequest, typ: &str, source: &str, target: &str, options: &[&str]) {
    let mount = MountBuilder::default()
        .destination(target)
        .typ(typ)
        .source(source)
        .options(
            options
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>(),
        )
        .build()
        .expect("a mount");
    request
        .spec
        .mounts_mut()
        .as_mut()
        .expect("mounts")
        .push(mount);
}

#[tokio::test]
async fn nothing_can_be_written_through_the_supervisors_executable() {
    use rustix::fs::{StatVfsMountFlags, statvfs};
    let node = Node::start().await;
    let mut request = node.shell(
        "head -c 4 /proc/1/exe | tail -c 3; echo; \
         (echo x >> /proc/1/exe) 2>&1; dd if=/bin/busybox of=/proc/1/exe 2>&1; sleep 1000",
    );
    request.init = true;
    // As weak as can be: may trace, so that it sees init's executable, and has no filter.
    request.seccomp = None;
    let process = request.spec.process_mut().as_mut().expect("a process");
    let mut capabilities = process.capabilities().clone().unwrap_or_default();
    let all: oci_spec::runtime::Capabilities = [
        oci_spec::runtime::Capability::SysPtrace,
        oci_spec::runtime::Capability::SysAdmin,
        oci_spec::runtime::Capability::DacOverride,
    ]
    .into_iter()
    .collect();
    capabilities.set_bounding(Some(all.clone()));
    capabilities.set_effective(Some(all.clone()));
    capabilities.set_permitted(Some(all));
    process.set_capabilities(Some(capabilities));
    let id = node.run(request).await;
    node.wait_for_output(&id, "dd: ").await;
    let text = node.text(&id).await;
    assert!(text.starts_with("ELF\n"), "{text}");
    let refused = ["Read-only file system", "Text file busy"];
    for line in text.lines().skip(1) {
        assert!(refused.iter().any(|reason| line.contains(reason)), "{text}");
    }
    let supervisor = node.runtime.supervisor_pid().await.expect("a supervisor");
    for _ in 0..2 {
        let exe = format!("/proc/{supervisor}/exe");
        let status = statvfs(&exe).expect("its mount");
        assert!(status.f_flag.contains(StatVfsMountFlags::RDONLY));
        let opened = std::fs::OpenOptions::new().write(true).open(&exe);
        assert!(opened.is_err());
        let name = std::fs::read_to_string(format!("/proc/{supervisor}/comm")).expect("a name");
        assert_eq!(name, "supervisor\n");
        let words = std::fs::read(format!("/proc/{supervisor}/cmdline")).expect("its arguments");
        let mut words = words.split(|byte| *byte == 0);
        let first = words.next().expect("a first word");
        assert_eq!(
            first,
            node.config.supervisor_exe.as_os_str().as_encoded_bytes()
        );
        assert_eq!(words.next(), Some(&b"supervisor"[..]));
        node.runtime
            .upgrade(&node.config.supervisor_exe)
            .await
            .expect("goes on");
    }
    node.finish().await;
}

#[tokio::test]
async fn an_own_init_hides_its_executable() {
    let node = Node::start().await;
    let mut request = node.shell("(head -c 4 /proc/1/exe) 2>&1");
    request.init = true;
    let (_, text) = node.output(request).await;
    assert!(text.contains("Permission denied"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn given_files_are_read_only_owned_and_in_no_place_of_the_hosts() {
    let node = Node::start().await;
    let script = "stat -c '%u:%g %a %n' /run/secrets/key /etc/hosts; cat /run/secrets/key /etc/hosts; \
                  echo x > /run/secrets/key; rm /run/secrets/key; grep -c tmpfs.*/run/secrets/key /proc/mounts; \
                  /opt/tool";
    let mut request = node.shell(script);
    let file = |target: &str, mode, data: &[u8]| ContainerFile {
        target: target.to_owned(),
        uid: 33,
        gid: 44,
        mode,
        data: data.to_vec(),
    };
    request.files = vec![
        file("/run/secrets/key", 0o440, b"marked-secret\n"),
        file("/etc/hosts", 0o644, b"10.0.0.1 own\n"),
        file("/opt/tool", 0o555, b"#!/bin/sh\necho tool runs\n"),
    ];
    let id = node.run(request).await;
    node.runtime.wait(&id).await.expect("ends");
    let text = node.text(&id).await;
    for line in [
        "33:44 440 /run/secrets/key",
        "33:44 644 /etc/hosts",
        "marked-secret",
        "10.0.0.1 own",
        "sh: can't create /run/secrets/key: Read-only file system",
        "1",
        "tool runs",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line:?} in {text}");
    }
    node.runtime.delete(&id).await.expect("is deleted");
    node.finish().await;
}

#[tokio::test]
async fn an_empty_directory_is_filled_from_the_image_once() {
    let node = Node::start().await;
    let volume = tempfile::tempdir().expect("a directory");
    let mount = |options: &[&str]| {
        let options: Vec<String> = options.iter().map(|word| (*word).to_owned()).collect();
        MountBuilder::default()
            .destination("/bin")
            .typ("bind")
            .source(volume.path())
            .options(options)
            .build()
            .expect("a mount")
    };
    let request = |options: &[&str], script: &str| {
        let mut request = node.shell(script);
        let mut mounts = request.spec.mounts().clone().unwrap_or_default();
        mounts.push(mount(options));
        request.spec.set_mounts(Some(mounts));
        request
    };
    // Read-only to the container, filled all the same.
    let (status, text) = node
        .output(request(
            &["rbind", "ro", "copyup"],
            "ls -d /bin/sh; touch /bin/x",
        ))
        .await;
    assert!(status.code != 0 && text.starts_with("/bin/sh"), "{text}");
    let (status, _) = node
        .output(request(
            &["rbind", "copyup"],
            "touch /bin/mine && rm /bin/ls",
        ))
        .await;
    assert_eq!(status.code, 0);
    let (status, text) = node
        .output(request(
            &["rbind", "copyup"],
            "test -e /bin/mine && ! test -e /bin/ls",
        ))
        .await;
    assert_eq!(status.code, 0, "{text}");
    node.finish().await;
}
