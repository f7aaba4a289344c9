//! Containers made in sandboxes: like any other, and nothing is left of a sandbox.

mod support;

use std::fs;

use shoal_runtime::CreateRequest;
use support::{Node, alive, wait_for, within};

/// Prints what a program can find out about where it is; without what differs from container to container.
const PROBE: &str = r#"
hostname; id; pwd; env | sort; ulimit -a
grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid)' /proc/self/status
cat /proc/self/oom_score_adj /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl
cat /proc/self/cgroup /etc/hostname /etc/hosts /etc/resolv.conf /secret
awk '{ gsub(/upperdir=[^ ]*|workdir=[^ ]*/, ""); print $4, $5, $6, $(NF-2), $NF }' /proc/self/mountinfo | sed 's/lowerdir=[^ ]*//; s/size=[0-9]*k//; s/inode64//'
ls -l /dev /dev/pts /dev/shm /dev/mqueue | awk '{ print $1, $3, $4, $5, $6, $NF }' | grep -v '^total'
ls /proc/self/fd | wc -l; ls /sys /sys/fs/cgroup / /proc/1/task; ls /proc/acpi /proc/scsi /sys/firmware
head -c 1 /proc/kcore | wc -c; cat /proc/keys | wc -c
for path in /sys/x /proc/sys/kernel/msgmax /proc/bus/x; do (echo 1 > $path) 2>&1 | sed 's/.*: //'; done
ip link | grep -c '^[0-9]'; ip addr show lo | grep -c 127.0.0.1
cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max 2>/dev/null
readlink /proc/1/exe; ps -o pid,comm | grep -c .
"#;

fn probe(node: &Node) -> CreateRequest {
    let mut request = node.shell(PROBE);
    let linux = request.spec.linux_mut().as_mut().expect("a linux section");
    let sysctls = [("kernel.msgmax", "4242"), ("net.ipv4.ip_default_ttl", "42")];
    let sysctls = sysctls.map(|(key, value)| (key.to_owned(), value.to_owned()));
    linux.set_sysctl(Some(sysctls.into()));
    let mut resources = serde_json::to_value(linux.resources()).expect("JSON");
    resources["memory"] = serde_json::json!({ "limit": 33_554_432 });
    resources["pids"] = serde_json::json!({ "limit": 77 });
    linux.set_resources(serde_json::from_value(resources).expect("resources"));
    request.files.push(shoal_runtime::ContainerFile {
        target: "/secret".to_owned(),
        data: b"a secret\n".to_vec(),
        uid: 0,
        gid: 0,
        mode: 0o444,
    });
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_in_a_sandbox_is_like_any_other() {
    let node = Node::start().await;
    let first = node.run(probe(&node)).await;
    assert!(!node.is_of_sandbox(&first));
    within(node.runtime.wait(&first)).await.expect("ends");
    // The order of mounts says nothing, and neither do the names of directories.
    let lines = |text: String, id: &str| {
        let text = text.replace(id, "ID");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let at_once = node.text(&first).await;
    let second = node.run_in_sandbox(|| probe(&node)).await;
    within(node.runtime.wait(&second)).await.expect("ends");
    let in_sandbox = node.text(&second).await;
    for said in [
        "box",
        "4242\n",
        "42\n",
        "33554432",
        "77",
        "a secret",
        "127.0.0.11",
    ] {
        assert!(at_once.contains(said), "{said:?} is not in {at_once}");
    }
    assert_eq!(lines(in_sandbox, &second), lines(at_once, &first));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_finds_what_another_left() {
    let node = Node::start().await;
    let script = "cat /dev/shm/* /tmp/* /dev/left; echo x > /dev/shm/left; echo x > /tmp/left; \
                  mknod /dev/left p; hostname; echo done";
    let shell = || node.shell(script);
    for _ in 0..3 {
        let id = node.run_in_sandbox(shell).await;
        within(node.runtime.wait(&id)).await.expect("ends");
        let text = node.text(&id).await;
        assert_eq!(text.matches("No such file").count(), 3, "{text}");
        assert!(text.ends_with("box\ndone\n"), "{text}");
        node.runtime.delete(&id).await.expect("is deleted");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mounted_after_a_sandbox_was_made_is_found() {
    let node = Node::start().await;
    let volume = node.layers.join("volume");
    fs::create_dir(&volume).expect("a directory");
    let id = node.run_in_sandbox(|| node.shell("true")).await;
    node.runtime.delete(&id).await.expect("is deleted");
    wait_for("the next sandbox", || !node.sandboxes().is_empty()).await;
    let mount = |arguments: &[&str]| {
        let status = std::process::Command::new("mount").args(arguments).status();
        assert!(status.expect("mount runs").success());
    };
    let path = volume.to_str().expect("UTF-8");
    mount(&["-t", "tmpfs", "later", path]);
    fs::write(volume.join("file"), "later\n").expect("a file");
    let request = || {
        let mut request = node.shell("cat /data/file");
        let mount = bind(path);
        let mounts = request.spec.mounts_mut().as_mut().expect("mounts");
        mounts.push(mount);
        request
    };
    let id = node.run_in_sandbox(request).await;
    within(node.runtime.wait(&id)).await.expect("ends");
    let text = node.text(&id).await;
    node.runtime.delete(&id).await.expect("is deleted");
    let unmounted = std::process::Command::new("umount").arg(path).status();
    assert!(unmounted.expect("umount runs").success());
    assert_eq!(text, "later\n");
    fs::remove_dir(&volume).expect("nothing holds it");
    node.finish().await;
}

fn bind(source: &str) -> oci_spec::runtime::Mount {
    oci_spec::runtime::MountBuilder::default()
        .destination("/data")
        .typ("bind")
        .source(source)
        .options(vec!["rbind".to_owned()])
        .build()
        .expect("a mount")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_supervisor_keeps_the_container_and_removes_the_sandboxes() {
    let node = Node::start().await;
    let id = node
        .run_in_sandbox(|| node.shell("echo up; sleep 1000"))
        .await;
    node.wait_for_output(&id, "up").await;
    wait_for("the next sandbox", || !node.sandboxes().is_empty()).await;
    let left = node.sandboxes();
    let old = node.kill_supervisor().await;
    node.new_supervisor_than(old).await;
    wait_for("the old sandboxes' end", || {
        !left.iter().any(|path| path.exists())
    })
    .await;
    let state = node
        .runtime
        .state(&id)
        .await
        .expect("an answer")
        .expect("a container");
    let shoal_runtime::Phase::Running(started) = state.phase else {
        panic!("{id} does not run: {state:?}");
    };
    let left = node.runtime.kill(&id).await;
    left.expect("is killed");
    let status = within(node.runtime.wait(&id)).await.expect("ends");
    assert_eq!(status.code, 137);
    assert!(!alive(started.pid));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_process_was_killed_is_not_used() {
    let node = Node::start().await;
    let id = node.run_in_sandbox(|| node.shell("true")).await;
    node.runtime.delete(&id).await.expect("is deleted");
    wait_for("the next sandbox", || !node.sandboxes().is_empty()).await;
    for sandbox in node.sandboxes() {
        let name = sandbox.file_name().expect("a name").to_owned();
        for root in support::cgroup_roots() {
            let kill = root
                .join(&node.config.cgroup_parent)
                .join(&name)
                .join("cgroup.kill");
            // Of the hierarchies only v2 has it.
            let _ = fs::write(kill, "1");
        }
    }
    let (status, text) = node.output(node.shell("echo fine")).await;
    assert_eq!((status.code, text.as_str()), (0, "fine\n"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_leaves_no_sandbox_behind() {
    let node = Node::start().await;
    let id = node
        .run_in_sandbox(|| node.shell("echo up; sleep 1000"))
        .await;
    wait_for("the next sandbox", || !node.sandboxes().is_empty()).await;
    let before = node.sandboxes();
    let pid = node.runtime.supervisor_pid().await.expect("a supervisor");
    let exe = node.config.supervisor_exe.clone();
    node.runtime.upgrade(&exe).await.expect("is upgraded");
    assert_eq!(node.runtime.supervisor_pid().await, Some(pid));
    assert!(!before.iter().any(|path| path.exists()), "{before:?}");
    let zombies = support::pids().into_iter().filter(|other| {
        let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
        rest.is_some_and(|rest| rest.starts_with(&format!("Z {pid} ")))
    });
    assert_eq!(zombies.collect::<Vec<_>>(), Vec::<u32>::new());
    node.runtime.kill(&id).await.expect("is killed");
    assert_eq!(
        within(node.runtime.wait(&id)).await.expect("ends").code,
        137
    );
    node.finish().await;
}
