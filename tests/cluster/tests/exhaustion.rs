//! Addresses, processes and disks that are used up: everybody is told so, and when there is room again
//! everything ends as desired and nothing is left.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use cluster_tests::{Host, docker_archive, wait_for};

fn create(host: &Host, name: &str, flags: &[&str]) {
    let head = [
        "service",
        "create",
        "--detach",
        "--name",
        name,
        "--restart-delay",
        "200ms",
    ];
    host.shoal(&[&head, flags, &["shoal/hello"]].concat());
}

/// Name, state and error of each task, the newest of a slot first.
fn told(host: &Host, service: &str) -> String {
    let format = "{{.Name}} {{.CurrentState}}: {{.Error}}";
    host.shoal(&["service", "ps", "--no-trunc", "--format", format, service])
}

#[test]
fn tasks_without_an_address_say_so_and_run_when_there_is_one() {
    let host = Host::local();
    host.warm_up();
    let before = host.inventory();
    // Five addresses beside the gateway's.
    let subnet = ["--driver", "overlay", "--subnet", "10.88.0.0/29", "small"];
    host.shoal(&[&["network", "create"][..], &subnet].concat());
    create(&host, "holder", &["--network", "small"]);
    host.wait_running("holder", 1);
    create(&host, "wants", &["--network", "small", "--replicas", "4"]);
    let running = wait_for(
        "two to run and two to wait",
        || told(&host, "wants"),
        |told| {
            told.matches(" Running ").count() == 2 && told.matches("no available IPv4").count() == 2
        },
    );
    let reason = "no available IPv4 addresses on network small (10.88.0.0/29 is used up): remove services \
                  from it, or move them to a network with a larger --subnet";
    assert_eq!(running.matches(reason).count(), 2, "{running}");
    let pids = host.wait_running("wants", 2);

    host.shoal(&["service", "rm", "holder"]);
    let after = host.wait_running("wants", 4);
    assert!(pids.iter().all(|pid| after.contains(pid)));
    host.shoal(&["service", "rm", "wants"]);
    wait_for(
        "the network to go",
        || host.try_shoal(&["network", "rm", "small"]).status.success(),
        |gone| *gone,
    );
    host.wait_clean(&before);
}

/// A cgroup that counts processes, beside that of the host's containers; gone when dropped.
struct Few {
    path: PathBuf,
    inside: u32,
}

impl Few {
    /// Lets this process, and nobody it starts, be.
    fn holding(containers: &Path, pid: u32) -> Self {
        let path = containers.with_extension("few");
        fs::create_dir(&path).unwrap();
        let few = Self { path, inside: pid };
        fs::write(few.path.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::write(few.path.join("pids.max"), "0").unwrap();
        few
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        let above = self.path.parent().unwrap().join("cgroup.procs");
        let _ = fs::write(above, self.inside.to_string());
        let _ = fs::remove_dir(&self.path);
    }
}

#[test]
fn tasks_that_may_have_no_process_say_so_and_run_when_they_may() {
    let host = Host::local();
    host.warm_up();
    let before = host.inventory();
    let cgroups: Vec<_> = host
        .parent_cgroups()
        .into_iter()
        .filter(|cgroup| cgroup.join("pids.max").exists())
        .collect();
    assert_eq!(
        cgroups.len(),
        1,
        "one hierarchy counts processes: {cgroups:?}"
    );
    let limit = cgroups[0].join("pids.max");
    let refused = |service: &str| {
        wait_for(
            "the reason",
            || told(&host, service).to_lowercase(),
            |told| told.contains("resource temporarily unavailable"),
        )
    };
    // All containers together have as many as they may.
    fs::write(&limit, "0").unwrap();
    create(&host, "inside", &["--replicas", "2", "--init"]);
    refused("inside");
    fs::write(&limit, "max").unwrap();
    host.wait_running("inside", 2);

    // The machine has, as far as the supervisor can tell. More are wanted than may be waiting in
    // sandboxes that were made ahead.
    let few = Few::holding(&cgroups[0], host.supervisor_pid());
    create(&host, "outside", &["--replicas", "20"]);
    refused("outside");
    host.wait_running("inside", 2);
    drop(few);
    host.wait_running("outside", 20);
    host.shoal(&["service", "rm", "inside", "outside"]);
    host.wait_clean(&before);
}

#[test]
fn a_full_disk_is_named_and_everything_goes_on_when_there_is_room() {
    let host = Host::new().unwrap().with_disk(300).unwrap().into_local();
    let archive = docker_archive(host.dir(), "busybox:1").unwrap();
    let archive = archive.to_str().unwrap();
    host.warm_up();
    let before = host.inventory();
    create(&host, "hello", &["--publish", "8080:80"]);
    let pids = host.wait_running("hello", 1);
    let _ = wait_for(
        "an answer",
        || host.get("http://127.0.0.1:8080/"),
        Result::is_ok,
    );

    host.fill_disk();
    let load = host
        .try_shoal(&["load", "--input", archive])
        .refusal("load on a full disk");
    assert!(load.contains("no space left"), "{load}");
    create(&host, "late", &[]);
    wait_for(
        "the reason",
        || told(&host, "late").to_lowercase(),
        |told| told.contains("no space left"),
    );
    assert!(
        host.get("http://127.0.0.1:8080/").is_ok(),
        "what runs goes on"
    );
    host.free_disk();

    host.wait_running("late", 1);
    host.shoal(&["load", "--input", archive]);
    assert_eq!(host.wait_running("hello", 1), pids);
    host.shoal(&["service", "rm", "hello", "late"]);
    host.wait_clean(&before);
}
