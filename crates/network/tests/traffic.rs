//! Packets: between containers, through vips and published ports, and out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    time::{Duration, Instant},
};

use common::*;
use shoal_network::{Protocol, Published, PublishedTarget};

#[test]
fn containers_of_a_network_reach_each_other() {
    in_world(|world| async move {
        let datapath = world.open().await;
        apply(&datapath, &[network("a", "10.0.1.0/24")]).await;
        let one = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let two = world.attached(&datapath, &[("a", "10.0.1.6")]).await;
        let _server = two.serve("two", 80);
        assert_eq!(
            one.tcp(ip("10.0.1.6"), 80).unwrap(),
            ("two".to_owned(), ip("10.0.1.5"))
        );
        assert_eq!(
            one.udp(ip("10.0.1.6"), 80).unwrap(),
            ("two".to_owned(), ip("10.0.1.5"))
        );
        assert!(one.pings(ip("10.0.1.6")) && one.pings(ip("10.0.1.1")));
        assert!(!one.pings(ip("10.0.1.7")), "nobody has this address");
        assert_eq!(datapath.diff().await, []);
    });
}

#[test]
fn networks_are_apart_even_with_the_same_addresses() {
    in_world(|world| async move {
        let datapath = world.open().await;
        apply(
            &datapath,
            &[
                network("a", "10.0.1.0/24"),
                network("b", "10.0.1.0/24"),
                network("c", "10.0.3.0/24"),
            ],
        )
        .await;
        let in_a = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let in_b = world.attached(&datapath, &[("b", "10.0.1.5")]).await;
        let in_c = world.attached(&datapath, &[("c", "10.0.3.5")]).await;
        let server_a = world.attached(&datapath, &[("a", "10.0.1.6")]).await;
        let server_b = world.attached(&datapath, &[("b", "10.0.1.6")]).await;
        let _servers = (server_a.serve("a", 80), server_b.serve("b", 80));
        assert_eq!(in_a.tcp(ip("10.0.1.6"), 80).unwrap().0, "a");
        assert_eq!(in_b.tcp(ip("10.0.1.6"), 80).unwrap().0, "b");
        assert!(!in_c.pings(ip("10.0.1.6")) && !in_a.pings(ip("10.0.3.5")));
    });
}

#[test]
fn a_vip_spreads_over_its_backends_and_keeps_the_client() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let mut state = network("a", "10.0.1.0/24");
        state.vips = vec![vip("10.0.1.100", &["10.0.1.11", "10.0.1.12", "10.0.1.13"])];
        apply(&datapath, &[state]).await;
        let client = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let mut servers = Vec::new();
        for n in 11..=13 {
            let container = world
                .attached(&datapath, &[("a", &format!("10.0.1.{n}"))])
                .await;
            servers.push((container.serve(&format!("b{n}"), 80), container));
        }
        let mut seen = BTreeMap::new();
        for _ in 0..90 {
            let (name, from) = client.tcp(ip("10.0.1.100"), 80).unwrap();
            assert_eq!(from, ip("10.0.1.5"));
            *seen.entry(name).or_insert(0) += 1;
        }
        // 90 draws of 3: each expected 30 times; fewer than 8 has odds below one in ten million.
        assert!(
            seen.len() == 3 && seen.values().all(|n| *n >= 8),
            "{seen:?}"
        );
        assert_eq!(client.udp(ip("10.0.1.100"), 80).unwrap().1, ip("10.0.1.5"));
        assert!(client.pings(ip("10.0.1.100")));
    });
}

#[test]
fn connections_outlive_their_backends_removal() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let mut state = network("a", "10.0.1.0/24");
        state.vips = vec![vip("10.0.1.100", &["10.0.1.11", "10.0.1.12"])];
        apply(&datapath, &[state.clone()]).await;
        let client = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let one = world.attached(&datapath, &[("a", "10.0.1.11")]).await;
        let two = world.attached(&datapath, &[("a", "10.0.1.12")]).await;
        let _servers = (one.serve("one", 80), two.serve("two", 80));
        let mut open: Vec<Connection> = client.run(|| {
            (0..20)
                .map(|_| Connection::open(ip("10.0.1.100"), 80).unwrap())
                .collect()
        });
        assert!(open.iter().any(|c| c.greeting.0 == "one"));
        state.vips = vec![vip("10.0.1.100", &["10.0.1.12"])];
        apply(&datapath, &[state]).await;
        for connection in &mut open {
            connection.say().unwrap();
        }
        for _ in 0..20 {
            assert_eq!(client.tcp(ip("10.0.1.100"), 80).unwrap().0, "two");
        }
    });
}

#[test]
fn a_vip_without_backends_refuses_at_once() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let mut state = network("a", "10.0.1.0/24");
        state.vips = vec![vip("10.0.1.100", &[])];
        state.published = vec![publish(8080, "10.0.1.100", 80)];
        apply(&datapath, &[state]).await;
        let client = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let start = Instant::now();
        assert_eq!(
            client.tcp(ip("10.0.1.100"), 80).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        assert_eq!(
            client.udp(ip("10.0.1.100"), 80).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        assert_eq!(
            world.client.tcp(HOST, 8080).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        assert!(start.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn a_backend_reaches_itself_through_its_vip() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let mut state = network("a", "10.0.1.0/24");
        state.vips = vec![vip("10.0.1.100", &["10.0.1.11"])];
        apply(&datapath, &[state]).await;
        let backend = world.attached(&datapath, &[("a", "10.0.1.11")]).await;
        let _server = backend.serve("me", 80);
        assert_eq!(
            backend.tcp(ip("10.0.1.100"), 80).unwrap(),
            ("me".to_owned(), ip("10.0.1.1"))
        );
        assert_eq!(backend.udp(ip("10.0.1.100"), 80).unwrap().0, "me");
    });
}

#[test]
fn published_ports_show_the_client_to_the_container() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let mut state = network("a", "10.0.1.0/24");
        state.ingress = true;
        state.vips = vec![vip("10.0.1.100", &["10.0.1.11", "10.0.1.12"])];
        state.published = vec![
            publish(8080, "10.0.1.100", 80),
            Published {
                protocol: Protocol::Udp,
                ..publish(8080, "10.0.1.100", 80)
            },
            Published {
                to: PublishedTarget::Container {
                    addr: ip("10.0.1.12"),
                    port: 80,
                },
                ..publish(9090, "10.0.1.100", 80)
            },
        ];
        // Another network with the same addresses, and a published port of its own.
        let mut other = network("b", "10.0.1.0/24");
        other.vips = vec![vip("10.0.1.100", &["10.0.1.11"])];
        other.published = vec![publish(8081, "10.0.1.100", 80)];
        apply(&datapath, &[state, other]).await;
        let one = world.attached(&datapath, &[("a", "10.0.1.11")]).await;
        let two = world.attached(&datapath, &[("a", "10.0.1.12")]).await;
        let third = world.attached(&datapath, &[("b", "10.0.1.11")]).await;
        let _servers = (
            one.serve("one", 80),
            two.serve("two", 80),
            third.serve("other", 80),
        );

        let mut seen = BTreeMap::new();
        for _ in 0..40 {
            let (name, from) = world.client.tcp(HOST, 8080).unwrap();
            assert_eq!(from, CLIENT);
            *seen.entry(name).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert_eq!(world.client.udp(HOST, 8080).unwrap().1, CLIENT);
        assert_eq!(
            world.client.tcp(HOST, 9090).unwrap(),
            ("two".to_owned(), CLIENT)
        );
        assert_eq!(
            world.client.tcp(HOST, 8081).unwrap(),
            ("other".to_owned(), CLIENT)
        );
        assert_eq!(
            world.client.tcp(HOST, 8082).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );

        // From the host itself, by its own address and by loopback.
        assert!(Connection::open(HOST, 8080).is_ok());
        assert!(Connection::open(ip("127.0.0.1"), 8080).is_ok());
        assert!(udp(ip("127.0.0.1"), 8080).is_ok());
        // From a container of the network, of another network, and from the backend itself.
        assert!(third.tcp(HOST, 8080).is_ok());
        for _ in 0..8 {
            assert!(one.tcp(HOST, 8080).is_ok());
        }
    });
}

#[test]
fn an_address_of_the_host_publishes_for_itself_alone() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let mut state = network("a", "10.0.1.0/24");
        let at = |addr: &str, target: &str| Published {
            host_ip: Some(ip(addr)),
            to: PublishedTarget::Container {
                addr: ip(target),
                port: 80,
            },
            ..publish(8080, "10.0.1.11", 80)
        };
        state.published = vec![
            at("127.0.0.1", "10.0.1.11"),
            at("198.51.100.1", "10.0.1.12"),
            at("127.0.0.1", "10.0.1.11"),
        ];
        state.published[2].port = 9090;
        apply(&datapath, &[state]).await;
        let one = world.attached(&datapath, &[("a", "10.0.1.11")]).await;
        let two = world.attached(&datapath, &[("a", "10.0.1.12")]).await;
        let _servers = (one.serve("one", 80), two.serve("two", 80));
        assert_eq!(
            Connection::open(ip("127.0.0.1"), 8080).unwrap().greeting.0,
            "one"
        );
        assert_eq!(world.client.tcp(HOST, 8080).unwrap().0, "two");
        assert_eq!(
            world.client.tcp(HOST, 9090).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
    });
}

#[test]
fn what_leaves_the_host_has_the_hosts_address() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let mut internal = network("i", "10.0.2.0/24");
        internal.internal = true;
        apply(&datapath, &[network("a", "10.0.1.0/24"), internal]).await;
        let out = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let kept = world.attached(&datapath, &[("i", "10.0.2.5")]).await;
        let _server = world.client.serve("outside", 80);
        assert_eq!(out.tcp(CLIENT, 80).unwrap(), ("outside".to_owned(), HOST));
        assert_eq!(out.udp(CLIENT, 80).unwrap(), ("outside".to_owned(), HOST));
        assert!(out.pings(CLIENT));
        assert!(!kept.pings(CLIENT), "the network is internal");
        let mtu = out.run(|| {
            std::process::Command::new("ip")
                .args(["link", "show", "eth0"])
                .output()
                .unwrap()
        });
        assert!(String::from_utf8_lossy(&mtu.stdout).contains("mtu 1400"));
    });
}

#[test]
fn nobody_outside_reaches_what_is_not_published() {
    in_world(|world| async move {
        let datapath = world.open().await;
        apply(&datapath, &[network("a", "10.0.1.0/24")]).await;
        let inside = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let _server = inside.serve("inside", 80);
        world.client.run(|| {
            sh(&format!(
                "ip route add 10.0.1.0/24 via {HOST}; ip route add 169.254.128.0/18 via {HOST}"
            ));
        });
        assert!(!world.client.pings(ip("10.0.1.5")));
        let uplink = sh("ip -4 -o route show proto 83 | cut -d' ' -f1");
        let uplink: std::net::Ipv4Addr = uplink.trim().parse().unwrap();
        assert!(ping(uplink), "the host itself reaches the uplink");
        assert!(!world.client.pings(uplink));
    });
}

#[test]
fn a_container_cannot_send_from_a_foreign_address() {
    in_world(|world| async move {
        let datapath = world.open().await;
        apply(&datapath, &[network("a", "10.0.1.0/24")]).await;
        let one = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let two = world.attached(&datapath, &[("a", "10.0.1.6")]).await;
        assert!(one.pings(ip("10.0.1.6")));
        let received = || {
            two.run(|| {
                let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                let line = text
                    .lines()
                    .find(|line| line.trim_start().starts_with("eth0:"))
                    .unwrap();
                line.split_whitespace()
                    .nth(2)
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            })
        };
        let before = received();
        one.run(|| {
            sh("ip addr add 10.0.1.77/32 dev eth0");
            let socket = std::net::UdpSocket::bind("10.0.1.77:0").unwrap();
            for _ in 0..5 {
                socket.send_to(b"x", "10.0.1.6:9").unwrap();
            }
        });
        assert!(one.pings(ip("10.0.1.6")), "its own address still works");
        assert_eq!(received(), before + 1, "only the ping arrived");
    });
}

#[test]
fn a_container_of_two_networks_answers_where_it_was_asked() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let mut ingress = network("in", "10.0.9.0/24");
        ingress.ingress = true;
        ingress.vips = vec![vip("10.0.9.100", &["10.0.9.5"])];
        ingress.published = vec![publish(8080, "10.0.9.100", 80)];
        apply(&datapath, &[network("a", "10.0.1.0/24"), ingress]).await;
        let both = world
            .attached(&datapath, &[("a", "10.0.1.5"), ("in", "10.0.9.5")])
            .await;
        let peer = world.attached(&datapath, &[("a", "10.0.1.6")]).await;
        let _server = both.serve("both", 80);
        assert_eq!(
            world.client.tcp(HOST, 8080).unwrap(),
            ("both".to_owned(), CLIENT)
        );
        assert_eq!(
            peer.tcp(ip("10.0.1.5"), 80).unwrap(),
            ("both".to_owned(), ip("10.0.1.6"))
        );
        let _outside = world.client.serve("outside", 80);
        assert_eq!(both.tcp(CLIENT, 80).unwrap().0, "outside");
    });
}

#[test]
fn clients_of_a_detached_backend_go_to_another() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let mut state = network("a", "10.0.1.0/24");
        state.vips = vec![vip("10.0.1.100", &["10.0.1.11", "10.0.1.12"])];
        apply(&datapath, &[state.clone()]).await;
        let client = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let one = world.attached(&datapath, &[("a", "10.0.1.11")]).await;
        let two = world.attached(&datapath, &[("a", "10.0.1.12")]).await;
        let _servers = (one.serve("10.0.1.11", 80), two.serve("10.0.1.12", 80));
        let socket = client.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.connect((ip("10.0.1.100"), 80)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let ask = || {
            let mut buffer = [0; 64];
            socket.send(b"x").unwrap();
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length])
                .split(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        let first = ask();
        assert_eq!(ask(), first, "a flow stays where it is");
        let mut open: Vec<Connection> = client.run(|| {
            (0..8)
                .map(|_| Connection::open(ip("10.0.1.100"), 80).unwrap())
                .collect()
        });
        state.vips[0]
            .backends
            .retain(|addr| addr.to_string() != first);
        apply(&datapath, &[state]).await;
        assert_eq!(ask(), first, "also while its backend is drained");
        datapath.detach("a", ip(&first), "").await.unwrap();
        assert_ne!(ask(), first);
        let start = Instant::now();
        for connection in &mut open {
            assert_eq!(connection.say().is_err(), connection.greeting.0 == first);
        }
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "reset and not left waiting"
        );
    });
}
