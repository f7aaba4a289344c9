//! How services are reached: by clients of IPv6, by names without a virtual address, by ports of one
//! node, over UDP; and what is not reached.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::BTreeSet,
    fs::File,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use cluster_tests::{
    Cluster, Host, Network, Role, TaskLine, addresses, busybox_tar, fetch, field, wait_for,
};
use nix::sched::{CloneFlags, setns};

const PORT: u16 = 8080;

fn create(host: &Host, name: &str, flags: &[&str], command: &[&str]) {
    let words = ["service", "create", "--detach", "--restart-delay", "0s"];
    host.shoal(&[&words[..], &["--name", name], flags, command].concat());
}

/// A task of busybox that does nothing, on every node.
fn probes(cluster: &Cluster, name: &str, flags: &[&str]) -> Vec<TaskLine> {
    let flags = [&["--mode", "global", "--stop-grace-period", "0s"], flags].concat();
    let command = ["busybox", "/bin/sleep", "100000"];
    create(cluster.host(0), name, &flags, &command);
    cluster.wait_running(0, name, cluster.len())
}

fn on(i: usize) -> String {
    format!("node.hostname=={}", Cluster::hostname(i))
}

fn url6(addr: Ipv6Addr, port: u16) -> String {
    format!("http://[{addr}]:{port}/")
}

/// Whom the server sees, without the port.
fn client_seen(answer: &str) -> Option<IpAddr> {
    let client: SocketAddr = field(answer, "client")?.parse().ok()?;
    Some(client.ip())
}

/// Every node's port leads to the service's task on the last node, for clients of both versions.
fn answers_by_every_node(cluster: &Cluster) {
    for i in 0..cluster.len() {
        let answer = wait_for(
            &format!("an answer through node{} by IPv6", i + 1),
            || cluster.client().get(&url6(cluster.addr6(i), PORT)),
            Result::is_ok,
        );
        let answer = answer.unwrap();
        assert_eq!(
            client_seen(&answer),
            Some(cluster.client_addr6().into()),
            "through node{}: {answer}",
            i + 1
        );
        let answer = cluster.client().get(&cluster.url(i, PORT)).unwrap();
        assert_eq!(client_seen(&answer), Some(cluster.client_addr().into()));
        for local in [
            url6(Ipv6Addr::LOCALHOST, PORT),
            format!("http://127.0.0.1:{PORT}/"),
        ] {
            let answer = cluster.host(i).get(&local);
            assert!(answer.is_ok(), "node{} to {local}: {answer:?}", i + 1);
        }
        let next = (i + 1) % cluster.len();
        let answer = cluster
            .host(i)
            .get(&url6(cluster.addr6(next), PORT))
            .unwrap();
        assert_eq!(client_seen(&answer), Some(cluster.addr6(i).into()));
    }
}

#[test]
fn clients_of_ipv6_are_served_by_every_node_and_seen_by_their_address() {
    let cluster = Cluster::formed(1, 1);
    let last = on(1);
    let flags = ["--constraint", &last, "--publish", "8080:80"];
    create(cluster.host(0), "web", &flags, &["shoal/hello"]);
    cluster.wait_running(0, "web", 1);
    answers_by_every_node(&cluster);
}

#[test]
fn a_swarm_may_be_one_of_ipv6_addresses() {
    let cluster = Cluster::new(3);
    let join = |i: usize, role: &str| {
        let token = cluster
            .host(0)
            .shoal(&["swarm", "join-token", "--quiet", role]);
        let own = cluster.addr6(i).to_string();
        let remote = format!("[{}]:2377", cluster.addr6(0));
        let words = [
            "swarm",
            "join",
            "--token",
            token.trim(),
            "--advertise-addr",
            &own,
            &remote,
        ];
        cluster.host(i).shoal(&words);
    };
    let own = cluster.addr6(0).to_string();
    cluster
        .host(0)
        .shoal(&["swarm", "init", "--advertise-addr", &own]);
    join(1, Role::Manager.word());
    join(2, Role::Worker.word());
    cluster.wait_ready(0, 3);
    cluster.import("busybox", busybox_tar);
    cluster
        .host(0)
        .shoal(&["network", "create", "--driver", "overlay", "back"]);
    let last = on(2);
    let flags = [
        "--constraint",
        &last,
        "--network",
        "back",
        "--publish",
        "8080:80",
    ];
    create(cluster.host(0), "web", &flags, &["shoal/hello"]);
    let web = cluster.wait_running(0, "web", 1);
    let probes = probes(&cluster, "probe", &["--network", "back"]);
    answers_by_every_node(&cluster);
    let name = format!("task: web.{}", web[0].slot);
    for probe in &probes {
        for url in ["http://web/", "http://tasks.web/"] {
            wait_for(
                &format!("{url} from {}", probe.node),
                || fetch(probe, url, ""),
                |answer| answer.contains(&name),
            );
        }
        let count = "--output /dev/null --write-out '%{size_download}'";
        let large = fetch(probe, "http://web/bytes?n=300000", count);
        assert_eq!(large.trim(), "300000", "from {}", probe.node);
    }
}

#[test]
fn names_without_a_virtual_address_aliases_and_internal_networks_are_as_asked_for() {
    let cluster = Cluster::formed(1, 1);
    cluster.import("busybox", busybox_tar);
    for flags in [&["back"][..], &["--internal", "cellar"]] {
        let words = ["network", "create", "--driver", "overlay"];
        cluster.host(0).shoal(&[&words, flags].concat());
    }
    let flags = [
        "--endpoint-mode",
        "dnsrr",
        "--replicas",
        "3",
        "--network",
        "back",
    ];
    create(cluster.host(0), "each", &flags, &["shoal/hello"]);
    let alias = [
        "--network",
        "name=back,alias=db,alias=store",
        "--replicas",
        "2",
    ];
    create(cluster.host(0), "sql", &alias, &["shoal/hello"]);
    create(
        cluster.host(0),
        "deep",
        &["--network", "cellar"],
        &["shoal/hello"],
    );
    for (name, count) in [("each", 3), ("sql", 2), ("deep", 1)] {
        cluster.wait_running(0, name, count);
    }
    let above = probes(&cluster, "above", &["--network", "back"]);
    let below = probes(&cluster, "below", &["--network", "cellar"]);
    let service = cluster.host(0).json(&["service", "inspect", "each"]);
    assert!(
        service[0]["Endpoint"]["VirtualIPs"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );
    for probe in &above {
        let each = wait_for(
            &format!("three addresses on {}", probe.node),
            || addresses(probe, "each"),
            |each| each.len() == 3,
        );
        assert_eq!(each, addresses(probe, "tasks.each"));
        let vip = addresses(probe, "sql");
        assert_eq!(vip.len(), 1, "on {}: {vip:?}", probe.node);
        assert!(vip.is_disjoint(&addresses(probe, "tasks.sql")));
        for alias in ["db", "store"] {
            assert_eq!(addresses(probe, alias), vip, "{alias} on {}", probe.node);
        }
        assert!(
            addresses(probe, "deep").is_empty(),
            "another network's name"
        );
    }
    // The web server outside is the first node's, by the client's way to it.
    create(
        cluster.host(0),
        "out",
        &["--publish", "8080:80"],
        &["shoal/hello"],
    );
    cluster.wait_running(0, "out", 1);
    let outside = format!("http://{}:{PORT}/", cluster.addr(0));
    for probe in &above {
        wait_for(
            "the way out",
            || fetch(probe, &outside, ""),
            |answer| answer.contains("task: out."),
        );
    }
    for probe in &below {
        wait_for(
            "inside",
            || fetch(probe, "http://deep/", ""),
            |answer| answer.contains("task: deep."),
        );
        let answer = fetch(probe, &outside, "");
        assert!(
            !answer.contains("task:"),
            "an internal network has no way out: {answer}"
        );
    }
}

/// A server of UDP in a task's container that says who asked, in as many bytes as it was asked with.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    fn start(task: &TaskLine, port: u16) -> Self {
        let socket = within(Path::new(&format!("/proc/{}/ns/net", task.pid)), || {
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()
        });
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !stopping.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let seen = from.ip().to_canonical();
                    drop(socket.send_to(format!("{seen:<length$}").as_bytes(), from));
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(thread::JoinHandle::join));
    }
}

/// Runs `act` on a thread in a network namespace.
fn within<T: Send>(netns: &Path, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            act()
        });
        inside.join().unwrap()
    })
}

/// Whom a server of UDP sees when it is asked from `network`.
fn ask(network: &Network, to: IpAddr, port: u16) -> Result<IpAddr, String> {
    ask_with(network, to, port, 1)
}

/// The same, by a datagram of `length` bytes, which is answered by as many.
fn ask_with(network: &Network, to: IpAddr, port: u16, length: usize) -> Result<IpAddr, String> {
    within(&Path::new("/run/netns").join(network.name()), || {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
            .parse()
            .unwrap();
        let socket = UdpSocket::bind(any).map_err(|e| e.to_string())?;
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        socket.connect((to, port)).map_err(|e| e.to_string())?;
        socket.send(&vec![0; length]).map_err(|e| e.to_string())?;
        let mut buffer = vec![0; 1 << 16];
        let count = socket.recv(&mut buffer).map_err(|e| e.to_string())?;
        assert!(count >= length, "{count} of {length} bytes");
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        text.trim().parse().map_err(|e| format!("{text}: {e}"))
    })
}

#[test]
fn ports_of_udp_answer_by_every_node_and_those_of_a_host_by_that_one_alone() {
    let cluster = Cluster::formed(1, 1);
    cluster.import("busybox", busybox_tar);
    let last = on(1);
    let mesh = ["--constraint", &last, "--publish", "5300:53/udp"];
    let sleep = ["busybox", "/bin/sleep", "100000"];
    create(cluster.host(0), "names", &mesh, &sleep);
    let own = [
        "--constraint",
        &last,
        "--publish",
        "mode=host,target=80,published=8081",
        "--publish",
        "mode=host,target=53,published=5301,protocol=udp",
    ];
    create(cluster.host(0), "own", &own, &["shoal/hello"]);
    let names = cluster.wait_running(0, "names", 1);
    let owned = cluster.wait_running(0, "own", 1);
    let _echoes = (Echo::start(&names[0], 53), Echo::start(&owned[0], 53));
    let client = (
        IpAddr::from(cluster.client_addr()),
        IpAddr::from(cluster.client_addr6()),
    );
    for i in 0..2 {
        for (to, from) in [
            (cluster.addr(i).into(), client.0),
            (cluster.addr6(i).into(), client.1),
        ] {
            let seen = wait_for(
                &format!("an answer over UDP of {to}"),
                || ask(cluster.client(), to, 5300),
                Result::is_ok,
            );
            assert_eq!(seen, Ok(from), "by {to}");
        }
    }
    for (to, from) in [
        (cluster.addr(1).into(), client.0),
        (cluster.addr6(1).into(), client.1),
    ] {
        let text = match to {
            IpAddr::V4(addr) => format!("http://{addr}:8081/"),
            IpAddr::V6(addr) => url6(addr, 8081),
        };
        let answer = cluster.client().get(&text).unwrap();
        assert_eq!(client_seen(&answer), Some(from), "{answer}");
        assert_eq!(ask(cluster.client(), to, 5301), Ok(from));
    }
    let elsewhere = cluster
        .client()
        .get(&format!("http://{}:8081/", cluster.addr(0)));
    assert!(elsewhere.is_err(), "a port of another host: {elsewhere:?}");
    assert!(ask(cluster.client(), cluster.addr(0).into(), 5301).is_err());
}

#[test]
fn a_way_to_a_node_that_is_narrower_than_its_interfaces_carries_what_is_large() {
    let cluster = Cluster::formed(1, 1);
    cluster.import("busybox", busybox_tar);
    cluster.narrow(1, 1400);
    let words = ["network", "create", "--driver", "overlay", "back"];
    cluster.host(0).shoal(&words);
    let mut echoes = Vec::new();
    for (i, name) in ["near", "far"].into_iter().enumerate() {
        let place = on(i);
        let [web, udp] =
            [0, 1].map(|kind| format!("{}:{}", 8080 + i + 1000 * kind, 80 - 27 * kind));
        let udp = format!("{udp}/udp");
        let flags = ["--network", "back", "--constraint", &place];
        let ports = ["--publish", &web, "--publish", &udp];
        create(
            cluster.host(0),
            name,
            &[flags, ports].concat(),
            &["shoal/hello"],
        );
        let tasks = cluster.wait_running(0, name, 1);
        echoes.push(Echo::start(&tasks[0], 53));
    }
    let probes = probes(&cluster, "probe", &["--network", "back"]);
    let client = IpAddr::from(cluster.client_addr());
    for service in 0..2u16 {
        for i in 0..2 {
            let url = format!("{}bytes?n=300000", cluster.url(i, 8080 + service));
            let body = wait_for(&url, || cluster.client().get(&url), Result::is_ok);
            assert_eq!(body.unwrap().len(), 300_000, "{url}");
            // One that fits in a packet of the wide interfaces alone, and one that fits in none.
            for length in [1, 1400, 4000] {
                let asked = || {
                    ask_with(
                        cluster.client(),
                        cluster.addr(i).into(),
                        9080 + service,
                        length,
                    )
                };
                let what = format!("{length} bytes to service {service} through node{}", i + 1);
                let seen = wait_for(&what, asked, Result::is_ok);
                assert_eq!(seen, Ok(client), "{what}");
            }
        }
    }
    let count = "--output /dev/null --write-out '%{size_download}'";
    for probe in &probes {
        for name in ["near", "far"] {
            let url = format!("http://{name}/bytes?n=300000");
            let large = fetch(probe, &url, count);
            assert_eq!(large.trim(), "300000", "{url} from {}", probe.node);
        }
    }
}

#[test]
fn connections_outlive_changes_around_them_and_a_full_subnet_is_told_until_it_has_room() {
    let host = Host::local();
    create(
        &host,
        "web",
        &["--publish", "8080:80", "--replicas", "2"],
        &["shoal/hello"],
    );
    host.wait_running("web", 2);
    thread::scope(|scope| {
        // Its backends come and go while it waits for its answer.
        let slow = scope.spawn(|| host.get("http://127.0.0.1:8080/slow?ms=3000"));
        host.shoal(&["service", "scale", "--detach", "web=4"]);
        host.wait_running("web", 4);
        let answer = slow.join().unwrap();
        assert!(answer.is_ok(), "{answer:?}");
    });
    // Six addresses: the gateway's, a virtual one for each service, and three for tasks.
    host.shoal(&[
        "network",
        "create",
        "--driver",
        "overlay",
        "--subnet",
        "10.77.0.0/29",
        "tight",
    ]);
    create(
        &host,
        "first",
        &["--network", "tight", "--replicas", "2"],
        &["shoal/hello"],
    );
    host.wait_running("first", 2);
    create(
        &host,
        "second",
        &["--network", "tight", "--replicas", "3"],
        &["shoal/hello"],
    );
    let listed = || host.shoal(&["service", "ps", "--no-trunc", "second"]);
    wait_for("the reason", listed, |text| {
        text.contains("no available IP")
    });
    host.wait_running("second", 1);
    host.shoal(&["service", "rm", "first"]);
    host.wait_running("second", 3);
    let slots: BTreeSet<u32> = host.task_pids("second").into_iter().collect();
    assert_eq!(slots.len(), 3);
}
