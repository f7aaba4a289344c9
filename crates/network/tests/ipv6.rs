//! Clients of IPv6, and nodes that reach each other by it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket},
    time::Duration,
};

use common::{cluster::*, *};
use shoal_network::{Datapath, NetworkState, Protocol, Published, PublishedTarget};

const PATIENCE: Duration = Duration::from_secs(5);

/// What a server says over TCP and over UDP: its name, and whom it saw.
fn asked(from: &Container, addr: Ipv6Addr, port: u16) -> [(String, IpAddr); 2] {
    let parsed = |line: &str| {
        let (name, addr) = line.trim().split_once(' ').unwrap();
        (name.to_owned(), addr.parse().unwrap())
    };
    from.run(|| {
        let stream = TcpStream::connect_timeout(&(addr, port).into(), PATIENCE);
        let mut stream = stream.unwrap_or_else(|error| panic!("{addr} {port}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((addr, port)).unwrap();
        socket.send(b"x").unwrap();
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        [
            parsed(str::from_utf8(&line).unwrap()),
            parsed(str::from_utf8(&buffer[..length]).unwrap()),
        ]
    })
}

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

/// The same network between the nodes' addresses of IPv6.
fn over_ipv6(mut net: Vec<NetworkState>) -> Vec<NetworkState> {
    let turned = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => IpAddr::V6(v6(addr)),
        IpAddr::V6(_) => addr,
    };
    for overlay in net.iter_mut().filter_map(|state| state.overlay.as_mut()) {
        overlay.local = turned(overlay.local);
        overlay.peers = overlay.peers.iter().copied().map(turned).collect();
        for node in overlay.remote.values_mut() {
            *node = turned(*node);
        }
    }
    net
}

async fn apply_all(datapaths: &[Datapath], nets: &[Vec<NetworkState>]) {
    for (here, datapath) in datapaths.iter().enumerate() {
        let nets: Vec<_> = nets.iter().map(|net| net[here].clone()).collect();
        apply(datapath, &nets).await;
    }
}

async fn attached(datapath: &Datapath, endpoints: &[(&str, &str)]) -> Container {
    let container = Container::new();
    container.attach(datapath, endpoints).await;
    container
}

/// A port that every node publishes, with one backend on the second of three.
async fn published_on_three_nodes(
    cluster: Cluster,
    turn: fn(Vec<NetworkState>) -> Vec<NetworkState>,
) {
    let datapaths = cluster.open().await;
    let net = turn(ingress(&cluster, &[("10.0.9.5", 1)], &["10.0.9.5"]));
    // The backend's default route is that of another network.
    let other = turn(cluster.network("a", "10.0.1.0/24", 4097, &[("10.0.1.5", 1)]));
    apply_all(&datapaths, &[net, other]).await;
    let legs = [("a", "10.0.1.5"), ("in", "10.0.9.5")];
    let backend = attached(&datapaths[1], &legs).await;
    let _server = backend.serve("it", 80);
    for host in &cluster.hosts {
        for seen in asked(&cluster.client, v6(host.addr), 8080) {
            assert_eq!(seen, ("it".to_owned(), v6(OUTSIDE).into()));
        }
        let seen = cluster.client.tcp(host.addr, 8080).unwrap();
        assert_eq!(seen, ("it".to_owned(), OUTSIDE));
    }
    for from in &cluster.hosts {
        for to in &cluster.hosts {
            for seen in asked(&from.inside, v6(to.addr), 8080) {
                assert_eq!(seen, ("it".to_owned(), v6(from.addr).into()));
            }
        }
        for (name, _) in asked(&from.inside, Ipv6Addr::LOCALHOST, 8080) {
            assert_eq!(name, "it");
        }
        from.inside.run(|| {
            let own = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 9090)).unwrap();
            let to = own.local_addr().unwrap();
            TcpStream::connect_timeout(&to, PATIENCE).expect("::1 is the host's own as before");
        });
    }
    for datapath in &datapaths {
        assert_eq!(datapath.diff().await, []);
    }
}

#[test]
fn a_published_port_shows_a_client_of_ipv6_to_a_backend_on_another_node() {
    in_cluster(3, |cluster| published_on_three_nodes(cluster, |net| net));
}

#[test]
fn nodes_may_reach_each_other_by_ipv6_alone() {
    in_cluster(3, |cluster| published_on_three_nodes(cluster, over_ipv6));
}

#[test]
fn containers_and_vips_are_reached_between_nodes_at_ipv6_addresses() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let places = [("10.0.1.5", 0), ("10.0.1.6", 1)];
        let mut net = over_ipv6(cluster.network("a", "10.0.1.0/24", 7, &places));
        for state in &mut net {
            state.vips = vec![vip("10.0.1.100", &["10.0.1.6"])];
        }
        apply_all(&datapaths, &[net.clone()]).await;
        let one = attached(&datapaths[0], &[("a", "10.0.1.5")]).await;
        let two = attached(&datapaths[1], &[("a", "10.0.1.6")]).await;
        let (_server, _mirror) = (two.serve("two", 80), Mirror::start(&two, 81));
        let seen = ("two".to_owned(), ip("10.0.1.5"));
        for addr in ["10.0.1.6", "10.0.1.100"] {
            assert_eq!(one.tcp(ip(addr), 80).unwrap(), seen);
            assert_eq!(one.udp(ip(addr), 80).unwrap(), seen);
        }
        // No packet is too large for the way between the nodes, which takes 70 bytes.
        one.run(|| transfer(ip("10.0.1.100"), 81));
        let mtu = format!("mtu {}", WIRE_MTU - 70);
        let links = cluster.hosts[0].within("a", "ip link show shoal-vxlan");
        assert!(links.contains(&mtu), "{links}");
        // Back to addresses of IPv4, and the tunnel is another one.
        let net = over_ipv4(net);
        apply_all(&datapaths, &[net]).await;
        assert_eq!(one.tcp(ip("10.0.1.6"), 80).unwrap(), seen);
    });
}

fn over_ipv4(mut net: Vec<NetworkState>) -> Vec<NetworkState> {
    let turned = |addr: IpAddr| match addr {
        IpAddr::V6(addr) => {
            let last = u8::try_from(addr.segments()[7]).unwrap();
            IpAddr::V4(Ipv4Addr::new(198, 51, 100, last))
        }
        IpAddr::V4(_) => addr,
    };
    for overlay in net.iter_mut().filter_map(|state| state.overlay.as_mut()) {
        overlay.local = turned(overlay.local);
        overlay.peers = overlay.peers.iter().copied().map(turned).collect();
        for node in overlay.remote.values_mut() {
            *node = turned(*node);
        }
    }
    net
}

#[test]
fn a_container_s_own_port_answers_clients_of_ipv6_and_nothing_else_does() {
    in_cluster(1, |cluster| async move {
        let host = &cluster.hosts[0];
        let datapath = host.open().await;
        let mut net = network("a", "10.0.1.0/24");
        let tcp = Published {
            to: PublishedTarget::Container {
                addr: ip("10.0.1.5"),
                port: 80,
            },
            ..publish(8080, "10.0.1.5", 80)
        };
        let udp = Published {
            protocol: Protocol::Udp,
            ..tcp.clone()
        };
        net.published = vec![tcp, udp];
        apply(&datapath, &[net]).await;
        let backend = attached(&datapath, &[("a", "10.0.1.5")]).await;
        let _server = backend.serve("it", 80);
        for seen in asked(&cluster.client, v6(host.addr), 8080) {
            assert_eq!(seen, ("it".to_owned(), v6(OUTSIDE).into()));
        }
        // Neither the host's other ports nor the container's address lead to it.
        let target = backend.run(|| sh("ip -6 -o addr show dev eth0 scope global"));
        let target = target.split_whitespace().nth(3).unwrap();
        let target: Ipv6Addr = target.split('/').next().unwrap().parse().unwrap();
        cluster.client.run(|| {
            sh(&format!("ip route add fd00::/8 via {}", v6(host.addr)));
            let refused = TcpStream::connect_timeout(&(v6(host.addr), 80).into(), PATIENCE);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let short = Duration::from_millis(500);
            TcpStream::connect_timeout(&(target, 80).into(), short).unwrap_err();
        });
        // What it sends leaves with the host's address, and from no address but its own.
        let outside = cluster.client.serve("outside", 90);
        for seen in asked(&backend, v6(OUTSIDE), 90) {
            assert_eq!(seen, ("outside".to_owned(), v6(host.addr).into()));
        }
        drop(outside);
        backend.run(|| {
            sh("ip addr add fd00:bad::1/128 dev eth0 nodad");
            let socket = UdpSocket::bind(("fd00:bad::1".parse::<Ipv6Addr>().unwrap(), 0)).unwrap();
            socket.send_to(b"x", (v6(OUTSIDE), 91)).unwrap();
        });
        let counted = host.within("a", "nft list chain inet shoal own");
        assert!(counted.contains("drop"), "{counted}");
    });
}

#[test]
fn forwarding_is_put_back_as_it_was_with_what_the_host_learns_from_routers() {
    in_cluster(1, |cluster| async move {
        let host = &cluster.hosts[0];
        let settings = "sysctl -n net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.accept_ra \
                        net.ipv4.ip_forward";
        let before = host.sh(settings);
        assert_eq!(before.split_whitespace().next(), Some("0"), "{before}");
        let datapath = host.open().await;
        apply(&datapath, &[network("a", "10.0.1.0/24")]).await;
        assert_eq!(host.sh(settings), "1\n2\n1\n");
        datapath.close().await;
        host.remove_all().await;
        assert_eq!(host.sh(settings), before);
    });
}
