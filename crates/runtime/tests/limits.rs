//! Resource limits.

mod support;

use std::fs;

use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemory,
    LinuxPids, LinuxResources, PosixRlimitBuilder, PosixRlimitType,
};
use shoal_runtime::{CreateRequest, StartError};
use support::{Node, cgroup_roots, within};

fn resources(request: &mut CreateRequest) -> &mut LinuxResources {
    let linux = request.spec.linux_mut().as_mut().expect("linux");
    linux.resources_mut().as_mut().expect("resources")
}

/// The content of the first of these files in any of the container's groups.
fn limit(node: &Node, id: &str, files: &[&str]) -> String {
    let groups = cgroup_roots()
        .into_iter()
        .map(|root| root.join(&node.config.cgroup_parent).join(id));
    let mut texts = groups.flat_map(|group| {
        files
            .iter()
            .filter_map(|file| fs::read_to_string(group.join(file)).ok())
            .collect::<Vec<_>>()
    });
    texts
        .next()
        .unwrap_or_else(|| panic!("none of {files:?}"))
        .trim()
        .to_owned()
}

#[tokio::test]
async fn a_container_over_its_memory_limit_is_killed_and_says_so() {
    let node = Node::start().await;
    let mut request = node.shell("x=a; while :; do x=$x$x; done");
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(16 << 20)).set_swap(Some(16 << 20));
    resources(&mut request).set_memory(Some(memory));
    let id = node.run(request).await;
    let status = within(node.runtime.wait(&id)).await.expect("ends");
    assert_eq!((status.code, status.oom_killed), (137, true));
    node.finish().await;
}

#[tokio::test]
async fn a_container_cannot_have_more_processes_than_it_may() {
    let node = Node::start().await;
    let mut request = node.shell("for i in 1 2 3 4 5 6 7 8; do sleep 100 & done 2>&1; echo all");
    let mut pids = LinuxPids::default();
    pids.set_limit(4);
    resources(&mut request).set_pids(Some(pids));
    let (_, text) = node.output(request).await;
    assert!(
        text.contains("can't fork") && !text.contains("all"),
        "{text}"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_container_at_its_limit_of_processes_goes_on_when_some_have_ended() {
    let node = Node::start().await;
    let script = "sleep 100 & a=$!; sleep 100 & b=$!; \
        sh -c 'sleep 100 & wait' || echo refused; kill $a $b; wait; sleep 0 && echo recovered";
    let mut request = node.shell(script);
    let mut pids = LinuxPids::default();
    pids.set_limit(4);
    resources(&mut request).set_pids(Some(pids));
    let (status, text) = node.output(request).await;
    assert_eq!(status.code, 0, "{text}");
    assert!(text.ends_with("refused\nrecovered\n"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn a_limit_that_leaves_no_process_for_the_program_is_the_stated_reason() {
    let node = Node::start().await;
    let mut request = node.shell("echo never");
    request.init = true;
    let mut pids = LinuxPids::default();
    pids.set_limit(1);
    resources(&mut request).set_pids(Some(pids));
    let id = request.id.clone();
    node.runtime.create(request).await.expect("is created");
    let error = node.runtime.start(&id).await.expect_err("cannot fork");
    let StartError::Exec { message, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(
        message.contains("fork the program from init: resource temporarily unavailable"),
        "{message}"
    );
    node.finish().await;
}

#[tokio::test]
async fn the_limit_of_swap_counts_with_memory() {
    let node = Node::start().await;
    let mut request = node.request(&["sleep", "100"]);
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(16 << 20)).set_swap(Some(48 << 20));
    resources(&mut request).set_memory(Some(memory));
    let id = node.run(request).await;
    let both = (48 << 20).to_string();
    let alone = (32 << 20).to_string();
    let files = ["memory.memsw.limit_in_bytes", "memory.swap.max"];
    let swap = limit(&node, &id, &files);
    assert!(swap == both || swap == alone, "{swap}");
    node.finish().await;
}

#[tokio::test]
async fn a_device_that_was_given_can_be_used_and_others_cannot() {
    let node = Node::start().await;
    let script = "stat -c '%u:%g %a %t:%T' /dev/mine; head -c 0 /dev/mine && echo opened; \
        mknod /dev/other c 1 1; head -c 0 /dev/other 2>&1";
    let mut request = node.shell(script);
    let linux = request.spec.linux_mut().as_mut().expect("linux");
    let device = LinuxDeviceBuilder::default()
        .path("/dev/mine")
        .typ(LinuxDeviceType::C)
        .major(1)
        .minor(11)
        .file_mode(0o640_u32)
        .uid(0_u32)
        .gid(1001_u32)
        .build();
    linux.set_devices(Some(vec![device.expect("a device")]));
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::C)
        .major(1_i64)
        .minor(11_i64)
        .access("r")
        .build();
    let rules = resources(&mut request).devices_mut().as_mut();
    rules.expect("rules").push(rule.expect("a rule"));
    let (_, text) = node.output(request).await;
    let expected = "0:1001 640 1:b\nopened\nhead: /dev/other: Operation not permitted\n";
    assert_eq!(text, expected);
    node.finish().await;
}

#[tokio::test]
async fn processor_limits_are_written() {
    let node = Node::start().await;
    let mut request = node.request(&["sleep", "100"]);
    let mut cpu = LinuxCpu::default();
    cpu.set_quota(Some(50_000))
        .set_period(Some(100_000))
        .set_shares(Some(512))
        .set_cpus(Some("0".to_owned()));
    resources(&mut request).set_cpu(Some(cpu));
    let id = node.run(request).await;
    let quota = limit(&node, &id, &["cpu.cfs_quota_us", "cpu.max"]);
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    let shares = limit(&node, &id, &["cpu.shares", "cpu.weight"]);
    assert!(shares == "512" || shares == "20", "{shares}");
    assert_eq!(limit(&node, &id, &["cpuset.cpus"]), "0");
    node.finish().await;
}

#[tokio::test]
async fn resource_limits_and_oom_score_reach_the_program() {
    let node = Node::start().await;
    let mut request = node.shell("ulimit -n; cat /proc/self/oom_score_adj");
    let process = request.spec.process_mut().as_mut().expect("process");
    let files = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(64_u64)
        .hard(128_u64)
        .build()
        .expect("a limit");
    process
        .set_rlimits(Some(vec![files]))
        .set_oom_score_adj(Some(500));
    let (_, text) = node.output(request).await;
    assert_eq!(text, "64\n500\n");
    let (_, text) = node
        .output(node.shell("cat /proc/self/oom_score_adj"))
        .await;
    assert_eq!(text, "0\n");
    node.finish().await;
}

#[tokio::test]
async fn sysctls_are_set_in_the_containers_namespaces_only() {
    let node = Node::start().await;
    let before = fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").expect("a value");
    let mut request = node.shell("cat /proc/sys/net/ipv4/ip_default_ttl");
    let linux = request.spec.linux_mut().as_mut().expect("linux");
    linux.set_sysctl(Some(
        [("net.ipv4.ip_default_ttl".to_owned(), "77".to_owned())].into(),
    ));
    assert_eq!(node.output(request).await.1, "77\n");
    assert_eq!(
        fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").expect("a value"),
        before
    );
    node.finish().await;
}

#[tokio::test]
async fn containers_have_the_file_limit_that_the_supervisor_was_started_with() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const SOFT: u64 = 4000;
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(SOFT),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).expect("is lowered");
    let node = Node::start().await;
    for _ in 0..2 {
        let (_, text) = node.output(node.shell("ulimit -Sn; ulimit -Hn")).await;
        let hard = maximum.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        assert_eq!(text, format!("{SOFT}\n{hard}\n"));
        node.runtime
            .upgrade(&node.config.supervisor_exe)
            .await
            .expect("goes on");
    }
    node.finish().await;
}

#[tokio::test]
async fn what_a_container_writes_to_its_etc_files_is_not_in_the_hosts_run() {
    let node = Node::start().await;
    let script = "for name in hosts hostname resolv.conf; do \
        head -c 1000000 /dev/zero >> /etc/$name || echo $name; done; exec sleep 1000";
    let mut request = node.shell(script);
    request.etc.hosts = b"x".to_vec();
    let id = node.run(request).await;
    let etc = node.config.state_root.join("containers").join(&id);
    let etc = etc.join("etc");
    let length = |name: &str| std::fs::metadata(etc.join(name)).map_or(0, |data| data.len());
    support::wait_for("the appended bytes", || length("resolv.conf") > 1_000_000).await;
    assert_eq!(length("hosts"), 1_000_001);
    let bundle = node.config.exec_root.join("containers").join(&id);
    for entry in std::fs::read_dir(bundle).expect("a bundle").flatten() {
        assert!(entry.metadata().expect("metadata").len() < 100_000);
    }
    node.finish().await;
}
