//! The harness itself: what it says it does to machines and their network happens to them, and what
//! it says it takes back is taken back. Each daemon here is a cluster of one.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fs::File, net::UdpSocket, path::Path, time::Duration};

use cluster_tests::{Cluster, Host, Network, is_alive, wait_for};
use nix::sched::{CloneFlags, setns};

const PORT: u16 = 8080;

fn serve(host: &Host) {
    let (addr, hostname) = ("127.0.0.1", "shoal/hello");
    host.shoal(&["swarm", "init", "--advertise-addr", addr]);
    let publish = ["--name", "hello", "--publish", "8080:80", hostname];
    host.shoal(&[&["service", "create", "--detach"], &publish[..]].concat());
    host.wait_running("hello", 1);
}

/// Runs `act` on a thread inside of a network.
fn within<T: Send>(network: &Network, act: impl FnOnce() -> T + Send) -> T {
    let path = Path::new("/run/netns").join(network.name());
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            act()
        });
        inside.join().unwrap()
    })
}

/// Of a thousand datagrams, how many arrive.
fn delivered(cluster: &Cluster, from: usize, to: usize) -> usize {
    let address = (cluster.addr(to), 9000);
    let receiver = within(cluster.host(to).network(), || UdpSocket::bind(address)).unwrap();
    let sender = within(cluster.host(from).network(), || {
        UdpSocket::bind("0.0.0.0:0")
    })
    .unwrap();
    let mut buffer = [0; 8];
    let mut arrived = 0;
    for _ in 0..1000 {
        sender.send_to(b"x", address).unwrap();
        // So that no queue is ever full, which would lose more.
        receiver.set_nonblocking(true).unwrap();
        arrived += std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count();
    }
    // What is still on its way.
    receiver.set_nonblocking(false).unwrap();
    let silence = Some(Duration::from_millis(200));
    receiver.set_read_timeout(silence).unwrap();
    arrived + std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count()
}

#[test]
fn cables_are_cut_lossy_and_healed_as_told() {
    let cluster = Cluster::new(3);
    serve(cluster.host(2));
    let from = |i: usize| cluster.host(i).get(&cluster.url(2, PORT));
    let seen = wait_for(
        "an answer to the client",
        || cluster.client().get(&cluster.url(2, PORT)),
        Result::is_ok,
    );
    let client = format!("client: {}", cluster.client_addr());
    assert!(seen.as_ref().unwrap().contains(&client), "{seen:?}");
    assert!(from(0).is_ok() && from(1).is_ok());

    cluster.part(&[0], &[2]);
    assert!(from(1).is_ok());
    assert_eq!(delivered(&cluster, 0, 2), 0);
    assert_eq!(delivered(&cluster, 2, 0), 0);
    cluster.isolate(&[2]);
    assert_eq!(delivered(&cluster, 1, 2), 0);
    assert!(cluster.client().get(&cluster.url(2, PORT)).is_ok());
    cluster.heal();
    assert!(from(0).is_ok() && from(1).is_ok());

    cluster.cut_one_way(&[0], &[2]);
    assert_eq!(delivered(&cluster, 0, 2), 0);
    assert!(delivered(&cluster, 2, 0) > 0);
    cluster.heal();

    // The hosts know each other, so that no question about an address is lost, which is long in being
    // asked again. Of a thousand, it is by chance never fewer than 300 nor more than 700.
    wait_for(
        "a first datagram",
        || delivered(&cluster, 0, 1),
        |n| *n > 900,
    );
    cluster.lose(50, &[0, 1, 2]);
    let half = delivered(&cluster, 0, 1);
    assert!((300..700).contains(&half), "{half} of 1000");
    cluster.heal();
    assert!(delivered(&cluster, 0, 1) > half);
}

#[test]
fn a_machine_without_power_has_nothing_but_its_disk_and_boots_again() {
    let mut cluster = Cluster::new(2);
    let before = cluster.host(0).inventory();
    serve(cluster.host(0));
    serve(cluster.host(1));
    let pids = cluster.host(0).task_pids("hello");
    let others = cluster.host(1).task_pids("hello");
    let (daemon, supervisor) = (
        cluster.host(0).daemon_pid(),
        cluster.host(0).supervisor_pid(),
    );

    cluster.host_mut(0).cut_power();
    for pid in pids.iter().chain([&daemon, &supervisor]) {
        assert!(!is_alive(*pid), "{pid} is alive");
    }
    assert!(cluster.host(0).parent_cgroups().is_empty());
    assert!(!Path::new(&cluster.host(0).path("run")).exists());
    assert!(Path::new(&cluster.host(0).data_root()).exists());
    assert_eq!(cluster.host(1).task_pids("hello"), others);

    cluster.host_mut(0).boot();
    let after = cluster.host(0).wait_running("hello", 1);
    assert_ne!(after, pids);
    wait_for(
        "an answer",
        || cluster.host(1).get(&cluster.url(0, PORT)).is_ok(),
        |answered| *answered,
    );
    cluster.host(0).shoal(&["swarm", "leave", "--force"]);
    wait_for(
        "the containers to go",
        || cluster.host(0).inventory().processes,
        |processes| processes.len() <= before.processes.len(),
    );
}

#[test]
fn a_frozen_daemon_is_silent_until_it_goes_on() {
    let cluster = Cluster::new(1);
    let host = cluster.host(0);
    serve(host);
    let pids = host.task_pids("hello");
    host.freeze();
    // The time that curl gives up after only ends the request; the daemon could not answer in any.
    let ping = || {
        let socket = host.path("shoal.sock");
        let mut curl = host.in_network("curl");
        curl.args(["-sS", "--max-time", "1", "--unix-socket", &socket]);
        curl.arg("http://localhost/_ping").output().unwrap().status
    };
    assert!(!ping().success());
    assert!(host.get("http://127.0.0.1:8080/").is_ok());
    host.resume();
    assert!(ping().success());
    assert_eq!(host.wait_running("hello", 1), pids);
}

#[test]
fn a_full_disk_and_a_clock_that_is_set_reach_the_daemon() {
    let cluster = Cluster::with_hosts(1, |_, host| host.with_disk(256)?.with_clock());
    let host = cluster.host(0);
    serve(host);
    let time = || host.shoal(&["info", "--format", "{{.SystemTime}}"]);
    assert!(!time().starts_with("2001"), "{}", time());
    host.set_clock(1_000_000_000 - now());
    assert!(time().starts_with("2001-09-09"), "{}", time());
    host.set_clock(0);

    host.fill_disk();
    let more = ["service", "create", "--detach", "--name", "more"];
    let image = ["--replicas", "2", "shoal/hello"];
    let refused = host.try_shoal(&[&more[..], &image].concat());
    assert!(host.get("http://127.0.0.1:8080/").is_ok(), "it goes on");
    host.free_disk();
    if !refused.status.success() {
        host.shoal(&[&more[..], &image].concat());
    }
    host.wait_running("more", 2);
    host.wait_running("hello", 1);
}

fn now() -> i64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}
