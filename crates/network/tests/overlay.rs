//! The ways to other nodes in the kernel against the desired set: repair, change, restart, removal.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and one of them prints what it measured"
)]

mod common;

use std::time::{Duration, Instant};

use common::{cluster::*, *};
use shoal_network::{Datapath, NetworkState};

const DEVICE: &str = "shoal-vxlan";

/// An ingress network with a backend on host 1, reached from outside by both.
fn mesh(cluster: &Cluster) -> Vec<NetworkState> {
    let places = [("10.0.9.5", 0), ("10.0.9.6", 1)];
    let mut net = cluster.network("in", "10.0.9.0/24", 4096, &places);
    for state in &mut net {
        state.ingress = true;
        state.vips = vec![vip("10.0.9.100", &["10.0.9.6"])];
        state.published = vec![publish(8080, "10.0.9.100", 80)];
    }
    net
}

async fn attached(datapath: &Datapath, network: &str, addr: &str) -> Container {
    let container = Container::new();
    container.attach(datapath, &[(network, addr)]).await;
    container
}

#[test]
fn what_others_break_between_nodes_is_named_and_repaired() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let net = mesh(&cluster);
        for (datapath, state) in datapaths.iter().zip(&net) {
            apply(datapath, std::slice::from_ref(state)).await;
        }
        let near = attached(&datapaths[0], "in", "10.0.9.5").await;
        let far = attached(&datapaths[1], "in", "10.0.9.6").await;
        let _server = far.serve("far", 80);
        let host = &cluster.hosts[0];
        let (desired, peer) = (std::slice::from_ref(&net[0]), cluster.hosts[1].addr);
        let mac = "02:42:c6:33:64:0c";
        let other = "02:42:c6:33:64:63";
        // What is done, and a part of what has to be said about it.
        let damages = [
            (
                format!("ip link del {DEVICE}"),
                "the tunnel to other nodes is missing",
            ),
            (format!("ip link set {DEVICE} down"), "the tunnel is down"),
            (
                format!("ip link set {DEVICE} mtu 1200"),
                "mtu 1200 instead of 1350",
            ),
            (
                format!("ip link set {DEVICE} address {other}"),
                "another hardware address",
            ),
            (
                format!("ip link set {DEVICE} type vxlan learning"),
                "not the one it should be",
            ),
            (
                format!("ip link set {DEVICE} type vxlan local 198.51.100.99"),
                "does not send from",
            ),
            (
                format!("sysctl -qw net.ipv4.conf.{DEVICE}.rp_filter=1"),
                "rp_filter",
            ),
            (
                "sysctl -qw net.ipv4.fwmark_reflect=0".to_owned(),
                "fwmark_reflect",
            ),
            (
                format!(
                    "sh -c 'ip link del {DEVICE}; \
                     ip link add {DEVICE} type vxlan id 4096 dstport 4789 nolearning local {}'",
                    host.addr
                ),
                "not the one it should be",
            ),
            (
                format!("bridge fdb del {mac} dev {DEVICE}"),
                "forwarding entry for node 198.51.100.12",
            ),
            (
                format!("bridge fdb replace {mac} dev {DEVICE} dst 198.51.100.99 self permanent"),
                "forwarding entry for node 198.51.100.12",
            ),
            (
                format!(
                    "bridge fdb replace {mac} dev {DEVICE} dst {peer} port 4790 self permanent"
                ),
                "forwarding entry for node 198.51.100.12",
            ),
            (
                format!("bridge fdb add {other} dev {DEVICE} dst 198.51.100.99 self permanent"),
                "forwarding entry 02:42:c6:33:64:63 should not be there",
            ),
            (
                format!("bridge fdb append 00:00:00:00:00:00 dev {DEVICE} dst 198.51.100.99"),
                "forwarding entry 00:00:00:00:00:00 should not be there",
            ),
            (
                format!("ip neigh del {peer} dev {DEVICE}"),
                "neighbour 198.51.100.12 is missing",
            ),
            (
                format!("ip neigh replace {peer} lladdr {other} dev {DEVICE} nud permanent"),
                "neighbour 198.51.100.12 is missing",
            ),
            (
                format!("ip neigh add 198.51.100.99 lladdr {other} dev {DEVICE} nud permanent"),
                "neighbour 198.51.100.99 should not be there",
            ),
            ("ip route del 10.0.9.6".to_owned(), "route to 10.0.9.6/32"),
            (
                format!("ip route replace 10.0.9.6 via 198.51.100.99 dev {DEVICE} onlink"),
                "route to 10.0.9.6/32",
            ),
            (
                format!("ip route append 10.0.9.6 via 198.51.100.99 dev {DEVICE} onlink"),
                "route to 10.0.9.6/32 should not be there",
            ),
            (
                format!("ip route add 10.0.9.77 via {peer} dev {DEVICE} onlink"),
                "route to 10.0.9.77/32 should not be there",
            ),
            (
                format!("ip route flush table {}", u32::from(peer)),
                "route to 0.0.0.0/0",
            ),
            (
                "ip rule del pref 102".to_owned(),
                "rule for answers by node 198.51.100.12",
            ),
            (
                "ip rule del pref 101".to_owned(),
                "rule for unmarked packets",
            ),
            (
                "ip rule del pref 100".to_owned(),
                "rule for packets from shoal-vxlan",
            ),
            (
                "ip rule add pref 102 fwmark 77 lookup 77 protocol 83".to_owned(),
                "should not be there",
            ),
            (
                "nft flush chain inet shoal node".to_owned(),
                "chain node has other rules",
            ),
            ("nft delete chain inet shoal zone".to_owned(), "chain zone"),
        ];
        for (damage, sentence) in damages {
            host.within("in", &damage);
            let said: Vec<_> = datapaths[0]
                .diff()
                .await
                .iter()
                .map(ToString::to_string)
                .collect();
            assert!(
                said.iter().any(|s| s.contains(sentence)),
                "{damage}: {said:?}"
            );
            apply(&datapaths[0], desired).await;
            let expected = ("far".to_owned(), OUTSIDE);
            let seen = cluster.client.tcp(host.addr, 8080);
            assert_eq!(seen.ok(), Some(expected), "after {damage}");
            assert!(near.pings(ip("10.0.9.6")), "after {damage}");
        }
    });
}

#[test]
fn a_container_that_moves_takes_its_route_along() {
    in_cluster(3, |cluster| async move {
        let datapaths = cluster.open().await;
        let client_at = ("10.0.1.5", 0);
        let mut client = None;
        for round in [1, 2, 0, 1, 0, 2] {
            let net = cluster.network("a", "10.0.1.0/24", 7, &[client_at, ("10.0.1.6", round)]);
            for (datapath, state) in datapaths.iter().zip(&net) {
                let before = datapath.transactions().await;
                apply(datapath, std::slice::from_ref(state)).await;
                if client.is_some() {
                    let sent = datapath.transactions().await - before;
                    assert!(sent <= 1, "one message at most, not {sent}");
                }
            }
            if client.is_none() {
                client = Some(attached(&datapaths[0], "a", "10.0.1.5").await);
            }
            let moved = attached(&datapaths[round], "a", "10.0.1.6").await;
            let name = format!("on {round}").replace(' ', "-");
            let _server = moved.serve(&name, 80);
            let seen = client.as_ref().unwrap().tcp(ip("10.0.1.6"), 80).unwrap();
            assert_eq!(seen, (name, ip("10.0.1.5")));
            for datapath in &datapaths {
                assert_eq!(datapath.diff().await, []);
            }
            datapaths[round]
                .detach("a", ip("10.0.1.6"), "")
                .await
                .unwrap();
        }
    });
}

#[test]
fn an_address_that_is_wanted_elsewhere_leaves_a_container_that_still_runs() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let net = cluster.network("a", "10.0.1.0/24", 7, &[("10.0.1.5", 0), ("10.0.1.6", 0)]);
        for (datapath, state) in datapaths.iter().zip(&net) {
            apply(datapath, std::slice::from_ref(state)).await;
        }
        let client = attached(&datapaths[0], "a", "10.0.1.5").await;
        let old = attached(&datapaths[0], "a", "10.0.1.6").await;
        let _old = old.serve("old", 80);
        assert_eq!(client.tcp(ip("10.0.1.6"), 80).unwrap().0, "old");
        let net = cluster.network("a", "10.0.1.0/24", 7, &[("10.0.1.5", 0), ("10.0.1.6", 1)]);
        for (datapath, state) in datapaths.iter().zip(&net) {
            apply(datapath, std::slice::from_ref(state)).await;
        }
        let new = attached(&datapaths[1], "a", "10.0.1.6").await;
        let _new = new.serve("new", 80);
        assert_eq!(client.tcp(ip("10.0.1.6"), 80).unwrap().0, "new");
        datapaths[0].recheck().await;
        apply(&datapaths[0], &net[..1]).await;
        assert_eq!(client.tcp(ip("10.0.1.6"), 80).unwrap().0, "new");
    });
}

#[test]
fn a_node_with_a_new_address_is_reached_there_and_connections_go_on() {
    in_cluster(2, |mut cluster| async move {
        let datapaths = cluster.open().await;
        for (datapath, state) in datapaths.iter().zip(mesh(&cluster)) {
            apply(datapath, &[state]).await;
        }
        let near = attached(&datapaths[0], "in", "10.0.9.5").await;
        let far = attached(&datapaths[1], "in", "10.0.9.6").await;
        let _server = far.serve("far", 80);
        let mut open = near.run(|| {
            let direct = Connection::open(ip("10.0.9.6"), 80).unwrap();
            [direct, Connection::open(ip("10.0.9.100"), 80).unwrap()]
        });
        let device = |host: &Host| {
            let link = host.within("in", &format!("ip -o link show {DEVICE}"));
            link.split_once(':').unwrap().0.to_owned()
        };
        let before = device(&cluster.hosts[1]);
        cluster.hosts[1].readdress(ip("198.51.100.77"));
        for (datapath, state) in datapaths.iter().zip(mesh(&cluster)) {
            apply(datapath, &[state]).await;
        }
        assert_eq!(device(&cluster.hosts[1]), before, "changed in place");
        for connection in &mut open {
            connection.say().unwrap();
        }
        let expected = ("far".to_owned(), OUTSIDE);
        for host in &cluster.hosts {
            assert_eq!(cluster.client.tcp(host.addr, 8080).unwrap(), expected);
        }
    });
}

#[test]
fn the_overlay_may_change_its_number_and_port() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let places = [("10.0.1.5", 0), ("10.0.1.6", 1)];
        let mut pair = None;
        for (vni, port) in [
            (7, 4789),
            (8, 4789),
            (8, 14789),
            (1, 4789),
            ((1 << 24) - 1, 1),
        ] {
            let mut net = cluster.network("a", "10.0.1.0/24", vni, &places);
            for state in &mut net {
                state.overlay.as_mut().unwrap().port = port;
            }
            for (datapath, state) in datapaths.iter().zip(&net) {
                apply(datapath, std::slice::from_ref(state)).await;
            }
            if pair.is_none() {
                let near = attached(&datapaths[0], "a", "10.0.1.5").await;
                pair = Some((near, attached(&datapaths[1], "a", "10.0.1.6").await));
            }
            assert!(
                pair.as_ref().unwrap().0.pings(ip("10.0.1.6")),
                "vni {vni}, port {port}"
            );
        }
    });
}

#[test]
fn a_network_takes_the_number_of_one_that_goes() {
    in_cluster(1, |cluster| async move {
        let datapath = cluster.hosts[0].open().await;
        let overlay = |vni| {
            let mut overlay = cluster.overlay(vni, 0, &[]);
            overlay.peers.insert(OUTSIDE.into());
            Some(overlay)
        };
        let state = |id: &str, vni| NetworkState {
            overlay: overlay(vni),
            ..network(id, "10.0.1.0/24")
        };
        apply(&datapath, &[state("a", 7), state("b", 8)]).await;
        apply(&datapath, &[state("c", 7), state("b", 8)]).await;
        apply(&datapath, &[state("a", 8), state("d", 7)]).await;
        apply(&datapath, &[]).await;
        apply(&datapath, &[state("a", 7)]).await;
    });
}

#[test]
fn without_other_nodes_there_is_nothing_of_it() {
    in_cluster(2, |cluster| async move {
        let datapath = cluster.hosts[0].open().await;
        let host = &cluster.hosts[0];
        let mut alone = mesh(&cluster).remove(0);
        alone.overlay = None;
        apply(&datapath, std::slice::from_ref(&alone)).await;
        let look = || {
            let links = host.within("in", "sh -c \"ip -o link | cut -d: -f2 | cut -d@ -f1\"");
            let rules = host.within("in", "ip rule");
            let table = host.within("in", "sh -c 'nft list table inet shoal | grep chain'");
            (links, rules, table, host.sh("ss -Hlun"))
        };
        let before = look();
        assert!(
            !before.0.contains(DEVICE) && !before.2.contains("zone"),
            "{before:?}"
        );
        let mut no_peers = mesh(&cluster).remove(0);
        let overlay = no_peers.overlay.as_mut().unwrap();
        overlay.peers.clear();
        overlay.remote.clear();
        apply(&datapath, std::slice::from_ref(&no_peers)).await;
        assert_eq!(look(), before);
        // They come, and they go.
        apply(&datapath, &mesh(&cluster)[..1]).await;
        let with = look();
        assert!(
            with.0.contains(DEVICE) && with.3.contains("4789"),
            "{with:?}"
        );
        apply(&datapath, std::slice::from_ref(&no_peers)).await;
        assert_eq!(look(), before);
        apply(&datapath, &mesh(&cluster)[..1]).await;
        apply(&datapath, std::slice::from_ref(&alone)).await;
        assert_eq!(look(), before);
    });
}

#[test]
fn a_second_datapath_takes_over_and_sends_nothing() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let net = mesh(&cluster);
        for (datapath, state) in datapaths.iter().zip(&net) {
            apply(datapath, std::slice::from_ref(state)).await;
        }
        let near = attached(&datapaths[0], "in", "10.0.9.5").await;
        let far = attached(&datapaths[1], "in", "10.0.9.6").await;
        let _server = far.serve("far", 80);
        let mut open = near.run(|| Connection::open(ip("10.0.9.100"), 80).unwrap());
        for datapath in datapaths {
            datapath.close().await;
        }
        let again = cluster.open().await;
        for (datapath, state) in again.iter().zip(&net) {
            apply(datapath, std::slice::from_ref(state)).await;
            assert_eq!(datapath.transactions().await, 0);
        }
        near.attach(&again[0], &[("in", "10.0.9.5")]).await;
        far.attach(&again[1], &[("in", "10.0.9.6")]).await;
        open.say().unwrap();
        // The set has changed while nobody ran: a container has gone, another has come.
        for datapath in again {
            datapath.close().await;
        }
        let places = [("10.0.9.5", 0), ("10.0.9.7", 1)];
        let changed = cluster.network("in", "10.0.9.0/24", 4096, &places);
        let datapath = cluster.hosts[0].open().await;
        apply(&datapath, &changed[..1]).await;
        assert!(
            !cluster.hosts[0]
                .within("in", "ip route")
                .contains("10.0.9.6")
        );
        assert!(
            cluster.hosts[0]
                .within("in", "ip rule")
                .contains("lookup main")
        );
    });
}

#[test]
fn what_a_datapath_left_half_done_is_completed() {
    in_cluster(2, |cluster| async move {
        let net = mesh(&cluster);
        let (host, state) = (&cluster.hosts[0], std::slice::from_ref(&net[0]));
        let ways = format!(
            "ip route del 10.0.9.6; ip rule del pref 102; ip neigh flush dev {DEVICE} nud permanent"
        );
        // What there was when it ended, from the interface alone to all but one entry.
        let ends = [
            format!("ip link del {DEVICE}"),
            format!("ip link set {DEVICE} down"),
            format!("sh -c '{ways}'"),
            format!("bridge fdb del 02:42:c6:33:64:0c dev {DEVICE}"),
            "nft delete table inet shoal".to_owned(),
        ];
        for end in ends {
            let datapath = host.open().await;
            apply(&datapath, state).await;
            datapath.close().await;
            host.within("in", &end);
            let again = host.open().await;
            apply(&again, state).await;
            assert_eq!(again.diff().await, [], "after {end}");
            again.close().await;
        }
    });
}

#[test]
fn removing_all_removes_the_ways_to_other_nodes() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        let net = mesh(&cluster);
        let other = cluster.network("b", "10.0.1.0/24", 7, &[("10.0.1.5", 0), ("10.0.1.6", 1)]);
        let host = &cluster.hosts[0];
        let look = || host.sh("nft list ruleset; ip -br addr; ip rule; ip route; ss -Hlun");
        let before = look();
        apply(&datapaths[0], &[net[0].clone(), other[0].clone()]).await;
        let inside = attached(&datapaths[0], "b", "10.0.1.5").await;
        assert!(host.sh("ss -Hlun").contains("4789"));
        apply(&datapaths[0], &[other[0].clone()]).await;
        datapaths.into_iter().next().unwrap().close().await;
        // Something holds the namespace, as a container being removed might.
        let pin = host.config.exec_root.join("netns/b");
        let held = std::fs::File::open(pin).unwrap();
        host.remove_all().await;
        assert_eq!(look(), before);
        drop(held);
        wait_for("the container's interface to go", || {
            !inside.run(|| sh("ip -br link")).contains("eth0")
        });
        host.remove_all().await;
        let again = host.open().await;
        apply(&again, &[net[0].clone(), other[0].clone()]).await;
    });
}

#[test]
fn unusable_overlays_are_refused_by_name() {
    in_cluster(2, |cluster| async move {
        let datapath = cluster.hosts[0].open().await;
        let net = || {
            cluster
                .network("a", "10.0.1.0/24", 7, &[("10.0.1.5", 0), ("10.0.1.6", 1)])
                .remove(0)
        };
        apply(&datapath, &[net()]).await;
        let sent = datapath.transactions().await;
        let with = |change: &dyn Fn(&mut shoal_network::Overlay)| {
            let mut state = net();
            change(state.overlay.as_mut().unwrap());
            state
        };
        let wholly = [
            (with(&|o| o.vni = 0), "vni 0 must be"),
            (with(&|o| o.vni = 1 << 24), "vni 16777216 must be"),
            (with(&|o| o.port = 0), "port of the overlay"),
            (
                with(&|o| o.local = ip("0.0.0.0").into()),
                "0.0.0.0 cannot be the address of a node",
            ),
            (
                with(&|o| o.local = ip("224.0.0.1").into()),
                "224.0.0.1 cannot be",
            ),
        ];
        for (state, text) in wholly {
            let said = texts(&datapath.apply(vec![state]).await);
            assert!(said.contains(text), "{said}");
            assert_eq!(datapath.transactions().await, sent, "nothing was changed");
        }
        let twice = NetworkState {
            id: "z".to_owned(),
            ..net()
        };
        let said = texts(&datapath.apply(vec![net(), twice]).await);
        assert!(
            said.contains("network z: vni 7: network a already has it"),
            "{said}"
        );
        let mut odd = with(&|o| {
            let there = *o.peers.first().unwrap();
            o.peers
                .extend([o.local, ip("10.0.1.1").into(), ip("255.255.255.255").into()]);
            o.remote.insert(ip("10.0.1.7"), ip("192.0.2.9").into());
            o.remote.insert(ip("10.0.1.8"), ip("10.0.1.1").into());
            o.remote.insert(ip("10.0.2.8"), there);
            o.remote.insert(ip("10.0.1.1"), there);
        });
        odd.vips = vec![vip("10.0.1.100", &["10.0.1.6"])];
        odd.published = vec![publish(8080, "10.0.1.100", 80)];
        let said = texts(&datapath.apply(vec![odd]).await);
        for text in [
            "another node says that it has this node's address 198.51.100.11",
            "a node has the address 10.0.1.1, which is the network's gateway",
            "255.255.255.255 cannot be the address of a node",
            "address 10.0.1.7 is said to be on a node at 192.0.2.9",
            "address 10.0.2.8 on another node is not a host address",
            "address 10.0.1.1 on another node is not a host address",
            "published port 8080/tcp: 10.0.1.6 is on another node",
        ] {
            assert!(said.contains(text), "{text} in {said}");
        }
        assert_eq!(said.trim().lines().count(), 7, "{said}");
        assert_eq!(datapath.diff().await, []);
        let routes = cluster.hosts[0].within("a", "ip route");
        assert!(routes.contains("10.0.1.6 via 198.51.100.12"), "{routes}");
    });
}

#[test]
fn a_number_that_somebody_else_uses_is_named() {
    in_cluster(2, |cluster| async move {
        let host = &cluster.hosts[0];
        host.sh("ip link add foreign type vxlan id 7 dstport 4789 nolearning");
        let datapath = host.open().await;
        let net = cluster.network("a", "10.0.1.0/24", 7, &[("10.0.1.5", 0)]);
        let said = texts(&datapath.apply(vec![net[0].clone()]).await);
        assert!(
            said.contains("make the tunnel to other nodes") && said.contains("vni 7"),
            "{said}"
        );
        host.sh("ip link del foreign");
        apply(&datapath, &net[..1]).await;
    });
}

#[test]
fn thousands_of_remote_containers_are_quick() {
    in_cluster(2, |cluster| async move {
        let datapath = cluster.hosts[0].open().await;
        let there = cluster.hosts[1].addr;
        let mut state = cluster.network("a", "10.0.0.0/16", 7, &[]).remove(0);
        let remote = &mut state.overlay.as_mut().unwrap().remote;
        remote.extend(
            (256..10_256)
                .map(|n| (u32::from(ip("10.0.0.0")) + n).into())
                .map(|a: std::net::Ipv4Addr| (a, there.into())),
        );
        let start = Instant::now();
        assert!(datapath.apply(vec![state.clone()]).await.is_empty());
        let first = start.elapsed();
        let moved = ip("10.0.9.9");
        state.overlay.as_mut().unwrap().remote.remove(&moved);
        let start = Instant::now();
        assert!(datapath.apply(vec![state.clone()]).await.is_empty());
        let change = start.elapsed();
        let start = Instant::now();
        assert_eq!(datapath.diff().await, []);
        println!(
            "10,000 remote: {first:?}; one less: {change:?}; compared: {:?}",
            start.elapsed()
        );
        assert!(first < Duration::from_secs(5) && change < Duration::from_secs(1));
    });
}

/// What the wire, the kernel's own tunnel and ours carry from one host to another, by `iperf3`-like
/// streams of this test's own; each for a second, in turns, the median of the rounds.
#[test]
#[ignore = "measures; means something with --release only"]
fn throughput_between_nodes() {
    in_cluster(2, |cluster| async move {
        let datapaths = cluster.open().await;
        for (datapath, state) in datapaths.iter().zip(mesh(&cluster)) {
            apply(datapath, &[state]).await;
        }
        let near = attached(&datapaths[0], "in", "10.0.9.5").await;
        let far = attached(&datapaths[1], "in", "10.0.9.6").await;
        for (host, other, end) in [(0, 1, 1), (1, 0, 2)] {
            let (here, there) = (&cluster.hosts[host], &cluster.hosts[other]);
            here.sh(&format!(
                "ip link add plain type vxlan id 99 dstport 4790 local {} remote {} nolearning; \
                 ip addr add 10.99.0.{end}/24 dev plain; ip link set plain mtu 1350 up",
                here.addr, there.addr
            ));
        }
        let _sinks = (
            Sink::start(&far, 99),
            Sink::start(&cluster.hosts[1].inside, 99),
        );
        let ways = [
            ("wire", &cluster.hosts[0].inside, cluster.hosts[1].addr, 99),
            (
                "plain vxlan, host to host",
                &cluster.hosts[0].inside,
                ip("10.99.0.2"),
                99,
            ),
            ("container to container", &near, ip("10.0.9.6"), 99),
            ("container to vip", &near, ip("10.0.9.101"), 99),
        ];
        let mut rates = vec![Vec::new(); ways.len()];
        let mut state = mesh(&cluster).remove(0);
        state.vips.push(vip("10.0.9.101", &["10.0.9.6"]));
        apply(&datapaths[0], &[state]).await;
        for _ in 0..7 {
            for ((_, from, addr, port), rates) in ways.iter().zip(&mut rates) {
                rates.push(from.run(|| stream(*addr, *port, Duration::from_secs(1))));
            }
        }
        for ((name, ..), rates) in ways.iter().zip(&mut rates) {
            rates.sort_by(f64::total_cmp);
            let (least, most) = (rates[0], rates[rates.len() - 1]);
            println!(
                "{name}: {:.2} ({least:.2}-{most:.2}) Gbit/s",
                rates[rates.len() / 2]
            );
        }
        let _echo = far.serve("far", 80);
        for (name, addr) in [("direct", "10.0.9.6"), ("vip", "10.0.9.101")] {
            let times = near.run(|| {
                let connect = || {
                    let start = Instant::now();
                    Connection::open(ip(addr), 80).unwrap();
                    start.elapsed()
                };
                let mut times: Vec<_> = (0..400).map(|_| connect()).collect();
                times.sort();
                times
            });
            println!(
                "new connection, {name}: median {:?}, least {:?}",
                times[200], times[0]
            );
        }
    });
}
