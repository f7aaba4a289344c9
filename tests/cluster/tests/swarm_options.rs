//! Options of `swarm init` and `swarm join` that say where a node listens, which way its containers' traffic
//! takes, and which addresses networks get.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use cluster_tests::{Cluster, Host, Role, busybox_tar, fetch, wait_for};

/// The data path of a node has another network, on the same wire.
fn data_addr(i: usize) -> String {
    format!("10.201.0.{}", i + 1)
}

fn output(host: &Host, program: &str, args: &[&str]) -> String {
    let output = host.in_network(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The interfaces to other nodes, of all networks of a host.
fn tunnels(host: &Host) -> Vec<String> {
    let networks = fs::read_dir(host.path("run/netns")).unwrap();
    let show = |path: String| {
        let arguments = ["--", "ip", "-d", "-o", "link", "show", "type", "vxlan"];
        let network = format!("--net={path}");
        output(
            host,
            "nsenter",
            &[&[network.as_str()], &arguments[..]].concat(),
        )
    };
    networks
        .map(|entry| show(entry.unwrap().path().to_string_lossy().into_owned()))
        .filter(|text| !text.is_empty())
        .collect()
}

#[test]
fn nodes_listen_send_and_number_networks_as_they_are_told() {
    let cluster = Cluster::new(2);
    cluster.import("busybox", busybox_tar);
    for i in 0..2 {
        let address = format!("{}/24", data_addr(i));
        output(
            cluster.host(i),
            "ip",
            &["address", "add", &address, "dev", "eth0"],
        );
    }
    let manager = format!("{}:2400", cluster.addr(0));
    let (near, far) = (data_addr(0), data_addr(1));
    cluster.host(0).shoal(&[
        "swarm",
        "init",
        "--advertise-addr",
        &manager,
        "--listen-addr",
        &manager,
        "--data-path-addr",
        &near,
        "--data-path-port",
        "7777",
        "--default-addr-pool",
        "10.77.0.0/16",
        "--default-addr-pool-mask-length",
        "26",
    ]);
    let token = cluster.token(0, Role::Worker);
    let join = ["swarm", "join", "--token", &token, "--data-path-addr", &far];
    cluster.host(1).shoal(&[&join[..], &[&manager]].concat());
    cluster.wait_ready(0, 2);
    let listening = output(cluster.host(0), "ss", &["-Hltn"]);
    assert!(listening.contains(&manager), "{listening}");
    assert!(!listening.contains(":2377"), "{listening}");

    networks_come_from_the_pool_and_lead_to_the_other_node(&cluster);

    for encrypted in [
        &[
            "network",
            "create",
            "--driver",
            "overlay",
            "--opt",
            "encrypted",
            "sealed",
        ][..],
        &[
            "network",
            "create",
            "--driver",
            "overlay",
            "--opt",
            "encrypted=true",
            "sealed",
        ],
    ] {
        for output in [
            cluster.host(0).try_shoal(encrypted),
            cluster.host(0).try_docker(encrypted),
        ] {
            let said = output.refusal("an encrypted network");
            assert!(said.contains("encrypted"), "{said}");
        }
    }
    let networks = cluster
        .host(0)
        .shoal(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(!networks.contains("sealed"), "{networks}");
}

fn networks_come_from_the_pool_and_lead_to_the_other_node(cluster: &Cluster) {
    let host = cluster.host(0);
    host.shoal(&["network", "create", "--driver", "overlay", "back"]);
    for network in ["ingress", "back"] {
        let shown = host.json(&["network", "inspect", network]);
        let subnet = shown[0]["IPAM"]["Config"][0]["Subnet"].as_str().unwrap();
        assert!(
            subnet.starts_with("10.77.") && subnet.ends_with("/26"),
            "{subnet}"
        );
    }
    let create = [
        "service",
        "create",
        "--detach",
        "--network",
        "back",
        "--mode",
        "global",
    ];
    let web = ["--name", "web", "--publish", "8080:80", "shoal/hello"];
    host.shoal(&[&create[..], &web].concat());
    let probe = ["--name", "probe", "--stop-grace-period", "0s", "busybox"];
    host.shoal(&[&create[..], &probe, &["/bin/sleep", "100000"]].concat());
    let web = cluster.wait_running(0, "web", 2);
    for probe in cluster.wait_running(0, "probe", 2) {
        let other = web.iter().find(|task| task.node != probe.node).unwrap();
        let name = format!("web.{}.{}", host_node_id(cluster, &other.node), other.id);
        wait_for(
            &format!("{name} from {}", probe.node),
            || fetch(&probe, &format!("http://{name}/"), ""),
            |answer| answer.contains(&format!("task: {name}")),
        );
    }
    for i in 0..2 {
        let seen = tunnels(cluster.host(i));
        assert_eq!(seen.len(), 2, "ingress and back: {seen:?}");
        for tunnel in &seen {
            let local = format!("local {} ", data_addr(i));
            assert!(
                tunnel.contains(&local) && tunnel.contains("dstport 7777 "),
                "{tunnel}"
            );
        }
        let open = output(cluster.host(i), "ss", &["-Hlun"]);
        assert!(open.contains(":7777") && !open.contains(":4789"), "{open}");
    }
    // What is lost on the way is seen to have gone that way.
    let answer = cluster.client().get(&cluster.url(1, 8080));
    assert!(answer.is_ok(), "{answer:?}");
}

/// The id of the node with this hostname: tasks of global services are named by it.
fn host_node_id(cluster: &Cluster, hostname: &str) -> String {
    let nodes = cluster.nodes(0);
    let node = nodes.iter().find(|node| node.hostname == hostname).unwrap();
    node.id.clone()
}
