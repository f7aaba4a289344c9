//! Packets between nodes: several hosts on a wire, each with a datapath.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use common::{cluster::*, *};
use shoal_network::{Datapath, NetworkState};

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
