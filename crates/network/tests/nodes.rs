//! Packets between nodes: several hosts on a wire, each with a datapath.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;

use common::{cluster::*, *};
use shoal_network::{Datapath, NetworkState, Protocol, Published};

async fn apply_all(datapaths: &[Datapath], networks: &[Vec<NetworkState>]) {
    for (here, datapath) in datapaths.iter().enumerate() {
        let desired: Vec<_> = networks
            .iter()
            .map(|network| network[here].clone())
            .collect();
        apply(datapath, &desired).await;
    }
}

async fn attached(datapath: &Datapath, endpoints: &[(&str, &str)]) -> Container {
    let container = Container::new();
    container.attach(datapath, endpoints).await;
    container
}

#[test]
fn containers_on_three_nodes_reach_each_other() {
    in_cluster(3, |cluster| async move {
        let datapaths = cluster.open().await;
        let places = [("10.0.1.5", 0), ("10.0.1.6", 1), ("10.0.1.7", 2)];
        let net = cluster.network("a", "10.0.1.0/24", 4097, &places);
        apply_all(&datapaths, &[net]).await;
        let mut containers = Vec::new();
        for (addr, host) in places {
            containers.push(attached(&datapaths[host], &[("a", addr)]).await);
        }
        let names = ["zero", "one", "two"];
        let _servers: Vec<_> = containers
            .iter()
            .zip(names)
            .map(|(container, name)| container.serve(name, 80))
            .collect();
        for (from, container) in containers.iter().enumerate() {
            for (to, name) in names.iter().enumerate() {
                let (here, there) = (ip(places[from].0), ip(places[to].0));
                let expected = ((*name).to_owned(), here);
                assert_eq!(container.tcp(there, 80).unwrap(), expected);
                assert_eq!(container.udp(there, 80).unwrap(), expected);
                assert!(container.pings(there));
            }
            assert!(!container.pings(ip("10.0.1.9")), "nobody has this address");
        }
        for datapath in &datapaths {
            assert_eq!(datapath.diff().await, []);
        }
    });
}

#[test]
fn a_vip_leads_to_backends_on_every_node() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let places = [
            ("10.0.1.5", 0),
            ("10.0.1.11", 0),
            ("10.0.1.12", 1),
            ("10.0.1.6", 1),
        ];
        let mut net = cluster.network("a", "10.0.1.0/24", 4097, &places);
        for state in &mut net {
            state.vips = vec![
                vip("10.0.1.100", &["10.0.1.11", "10.0.1.12"]),
                vip("10.0.1.101", &["10.0.1.12"]),
            ];
        }
        apply_all(&datapaths, &[net]).await;
        let zero = attached(&datapaths[0], &[("a", "10.0.1.5")]).await;
        let one = attached(&datapaths[1], &[("a", "10.0.1.6")]).await;
        let near = attached(&datapaths[0], &[("a", "10.0.1.11")]).await;
        let far = attached(&datapaths[1], &[("a", "10.0.1.12")]).await;
        let _servers = (near.serve("near", 80), far.serve("far", 80));
        for (client, addr) in [(&zero, "10.0.1.5"), (&one, "10.0.1.6")] {
            let mut seen = BTreeMap::new();
            for _ in 0..40 {
                let (name, from) = client.tcp(ip("10.0.1.100"), 80).unwrap();
                assert_eq!(from, ip(addr));
                *seen.entry(name).or_insert(0) += 1;
            }
            assert!(
                seen.len() == 2 && seen.values().all(|n| *n >= 5),
                "{seen:?}"
            );
            assert_eq!(
                client.udp(ip("10.0.1.101"), 80).unwrap(),
                ("far".to_owned(), ip(addr))
            );
            assert!(client.pings(ip("10.0.1.101")));
        }
    });
}

/// A network that publishes port 8080 of TCP and UDP on every node.
fn ingress(cluster: &Cluster, places: &[(&str, usize)], backends: &[&str]) -> Vec<NetworkState> {
    let mut net = cluster.network("in", "10.0.9.0/24", 4096, places);
    for state in &mut net {
        state.ingress = true;
        state.vips = vec![vip("10.0.9.100", backends)];
        let tcp = publish(8080, "10.0.9.100", 80);
        let udp = Published {
            protocol: Protocol::Udp,
            ..tcp.clone()
        };
        state.published = vec![tcp, udp];
    }
    net
}

#[test]
fn a_port_published_on_three_nodes_shows_the_client_to_a_backend_on_one() {
    in_cluster(3, |cluster| async move {
        let datapaths = cluster.open().await;
        let net = ingress(&cluster, &[("10.0.9.5", 1)], &["10.0.9.5"]);
        // The backend's default route is that of another network.
        let other = cluster.network("a", "10.0.1.0/24", 4097, &[("10.0.1.5", 1)]);
        apply_all(&datapaths, &[net, other]).await;
        let legs = [("a", "10.0.1.5"), ("in", "10.0.9.5")];
        let backend = attached(&datapaths[1], &legs).await;
        let _server = backend.serve("it", 80);
        let expected = ("it".to_owned(), OUTSIDE);
        for host in &cluster.hosts {
            for _ in 0..3 {
                assert_eq!(cluster.client.tcp(host.addr, 8080).unwrap(), expected);
                assert_eq!(cluster.client.udp(host.addr, 8080).unwrap(), expected);
            }
        }
        // A host asks itself and the others, by addresses and by loopback.
        for from in &cluster.hosts {
            for to in &cluster.hosts {
                assert_eq!(
                    from.inside.tcp(to.addr, 8080).unwrap(),
                    ("it".to_owned(), from.addr)
                );
                assert_eq!(
                    from.inside.udp(to.addr, 8080).unwrap(),
                    ("it".to_owned(), from.addr)
                );
            }
            assert_eq!(from.inside.tcp(ip("127.0.0.1"), 8080).unwrap().0, "it");
            assert_eq!(from.inside.udp(ip("127.0.0.1"), 8080).unwrap().0, "it");
        }
        // A container without a place in the ingress network, on every node.
        for (host, datapath) in datapaths.iter().enumerate() {
            let inside = attached(datapath, &[("a", &format!("10.0.1.{}", 20 + host))]).await;
            for (number, to) in cluster.hosts.iter().enumerate() {
                let (name, from) = inside.tcp(to.addr, 8080).unwrap();
                assert_eq!(name, "it");
                assert!(number == host || from == cluster.hosts[host].addr, "{from}");
            }
        }
    });
}

#[test]
fn one_port_of_a_client_asks_the_same_backend_by_every_node_at_once() {
    in_cluster(3, |cluster| async move {
        let datapaths = cluster.open().await;
        let net = ingress(&cluster, &[("10.0.9.5", 1)], &["10.0.9.5"]);
        apply_all(&datapaths, &[net]).await;
        let backend = attached(&datapaths[1], &[("in", "10.0.9.5")]).await;
        let _server = backend.serve("it", 80);
        let mut open = cluster.client.run(|| {
            let connect = |host: &Host| {
                Connection::open_from(40_000, host.addr, 8080)
                    .unwrap_or_else(|e| panic!("{} {e}", host.addr))
            };
            cluster.hosts.iter().map(connect).collect::<Vec<_>>()
        });
        for _ in 0..3 {
            for connection in &mut open {
                assert_eq!(connection.greeting.1, OUTSIDE);
                connection.say().unwrap();
            }
        }
    });
}

#[test]
fn megabytes_cross_in_both_directions_by_every_way() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let places = [("10.0.9.5", 0), ("10.0.9.6", 1)];
        let net = ingress(&cluster, &places, &["10.0.9.6"]);
        apply_all(&datapaths, &[net]).await;
        let near = attached(&datapaths[0], &[("in", "10.0.9.5")]).await;
        let far = attached(&datapaths[1], &[("in", "10.0.9.6")]).await;
        let mtu = near.run(|| sh("ip -o link show eth0 | grep -o 'mtu [0-9]*'"));
        assert_eq!(mtu, format!("mtu {}\n", WIRE_MTU - 50));
        let _mirror = Mirror::start(&far, 80);
        for addr in ["10.0.9.6", "10.0.9.100"] {
            near.run(|| transfer(ip(addr), 80));
        }
        cluster.client.run(|| sh("ip link set eth0 mtu 1500"));
        sh("ip link set p-client mtu 1500");
        cluster.client.run(|| {
            transfer(cluster.hosts[0].addr, 8080);
            transfer(cluster.hosts[1].addr, 8080);
        });
        cluster.hosts[0]
            .inside
            .run(|| transfer(ip("127.0.0.1"), 8080));
        // As large as a container may send, and as a datagram.
        assert!(near.run(|| ping_of(ip("10.0.9.6"), 60_000)));
    });
}

#[test]
fn containers_made_before_there_were_other_nodes_reach_them() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let places = [("10.0.1.5", 0), ("10.0.1.6", 1)];
        let mut alone = cluster.network("a", "10.0.1.0/24", 4097, &places);
        for state in &mut alone {
            state.overlay = None;
        }
        apply_all(&datapaths, &[alone]).await;
        let near = attached(&datapaths[0], &[("a", "10.0.1.5")]).await;
        let far = attached(&datapaths[1], &[("a", "10.0.1.6")]).await;
        let mtu = near.run(|| sh("ip -o link show eth0 | grep -o 'mtu [0-9]*'"));
        assert_eq!(mtu, format!("mtu {WIRE_MTU}\n"));
        assert!(!near.pings(ip("10.0.1.6")));
        let net = cluster.network("a", "10.0.1.0/24", 4097, &places);
        apply_all(&datapaths, &[net]).await;
        let _mirror = Mirror::start(&far, 80);
        near.run(|| transfer(ip("10.0.1.6"), 80));
    });
}

#[test]
fn who_was_sent_to_a_node_that_is_lost_is_sent_to_another() {
    in_cluster(3, |cluster| async move {
        let datapaths = cluster.open().await;
        let places = [("10.0.1.5", 0), ("10.0.1.11", 0), ("10.0.1.12", 1)];
        let mut state = cluster.network("a", "10.0.1.0/24", 4097, &places)[0].clone();
        state.vips = vec![vip("10.0.1.100", &["10.0.1.12"])];
        // The other node was never told of the network: what is sent there is swallowed.
        apply(&datapaths[0], &[state.clone()]).await;
        let client = attached(&datapaths[0], &[("a", "10.0.1.5")]).await;
        let near = attached(&datapaths[0], &[("a", "10.0.1.11")]).await;
        let _server = near.serve("near", 80);
        let socket = client.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.connect((ip("10.0.1.100"), 80)).unwrap();
        let patience = Some(std::time::Duration::from_secs(1));
        socket.set_read_timeout(patience).unwrap();
        let ask = || {
            let mut buffer = [0; 64];
            socket.send(b"x").unwrap();
            let length = socket.recv(&mut buffer).ok()?;
            let answer = String::from_utf8_lossy(&buffer[..length]);
            answer.split(' ').next().map(str::to_owned)
        };
        assert_eq!(ask(), None);
        state.vips = vec![vip("10.0.1.100", &["10.0.1.11"])];
        apply(&datapaths[0], &[state.clone()]).await;
        assert_eq!(
            ask(),
            None,
            "a flow stays where it is while the node is there"
        );
        let overlay = state.overlay.as_mut().unwrap();
        let lost = overlay.remote.remove(&ip("10.0.1.12")).unwrap();
        overlay.peers.remove(&lost);
        apply(&datapaths[0], &[state]).await;
        assert_eq!(ask().as_deref(), Some("near"));
    });
}

#[test]
fn networks_with_the_same_addresses_are_apart_on_the_wire_too() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let places = [("10.0.1.5", 0), ("10.0.1.6", 1)];
        let one = cluster.network("one", "10.0.1.0/24", 4097, &places);
        let two = cluster.network("two", "10.0.1.0/24", 4098, &places);
        apply_all(&datapaths, &[one, two]).await;
        let mut all = Vec::new();
        for net in ["one", "two"] {
            let near = attached(&datapaths[0], &[(net, "10.0.1.5")]).await;
            let far = attached(&datapaths[1], &[(net, "10.0.1.6")]).await;
            let server = far.serve(net, 80);
            all.push((net, near, far, server));
        }
        for (net, near, ..) in &all {
            assert_eq!(
                near.tcp(ip("10.0.1.6"), 80).unwrap(),
                ((*net).to_owned(), ip("10.0.1.5"))
            );
        }
        // With one of them gone, its address answers nobody, although the other's would.
        let (_, _, far, server) = all.pop().unwrap();
        drop((server, far));
        datapaths[1]
            .detach("two", ip("10.0.1.6"), "")
            .await
            .unwrap();
    });
}
