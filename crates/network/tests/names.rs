//! Names: 127.0.0.11 as containers see it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use common::*;
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType, rdata::A},
};
use shoal_network::{ContainerEndpoints, NetworkState};

const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = rand::random();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn ask_udp(container: &Container, name: &str, kind: RecordType) -> Message {
    container.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(9)))
            .unwrap();
        socket.connect(SERVER).unwrap();
        let question = question(name, kind);
        socket.send(&question).unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..2], question[..2], "the id of the question");
        Message::from_vec(&buffer[..length]).unwrap()
    })
}

fn ask_tcp(container: &Container, name: &str, kind: RecordType) -> Message {
    container.run(|| {
        let mut stream = TcpStream::connect(SERVER).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(9)))
            .unwrap();
        let question = question(name, kind);
        stream
            .write_all(
                &[
                    &u16::try_from(question.len()).unwrap().to_be_bytes(),
                    &question[..],
                ]
                .concat(),
            )
            .unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer).unwrap();
        Message::from_vec(&answer).unwrap()
    })
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let mut found: Vec<_> = message
        .answers
        .iter()
        .filter_map(|record| match record.data {
            RData::A(A(addr)) => Some(addr),
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found
}

fn named(id: &str, subnet: &str, names: &[(&str, &[&str])]) -> NetworkState {
    let names = names
        .iter()
        .map(|(name, addrs)| ((*name).to_owned(), addrs.iter().map(|a| ip(a)).collect()));
    NetworkState {
        names: names.collect(),
        ..network(id, subnet)
    }
}

/// An upstream server that knows one name, and cuts its UDP answers when asked for `long`.
fn upstream(addr: Ipv4Addr, answer: Ipv4Addr) -> SocketAddr {
    let udp = UdpSocket::bind((addr, 0)).unwrap();
    let local = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(local).unwrap();
    let respond = move |bytes: &[u8], over_tcp: bool| {
        let question = Message::from_vec(bytes).unwrap();
        let mut message = question.clone().into_response();
        let name = question.queries[0].name().clone();
        match name.to_ascii().as_str() {
            "long.example." if !over_tcp => message.metadata.truncation = true,
            "example.com." | "long.example." => {
                message.add_answer(hickory_proto::rr::Record::from_rdata(
                    name,
                    60,
                    RData::A(A(answer)),
                ));
            }
            _ => message.metadata.response_code = ResponseCode::NXDomain,
        }
        message.to_vec().unwrap()
    };
    // These end with the test's process.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            udp.send_to(&respond(&buffer[..length], false), from)
                .unwrap();
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut bytes = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut bytes).unwrap();
            let answer = respond(&bytes, true);
            stream
                .write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes())
                .unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    local
}

#[test]
fn names_are_answered_over_udp_and_tcp_in_any_case() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let state = named(
            "a",
            "10.0.1.0/24",
            &[
                ("Web", &["10.0.1.100"]),
                ("tasks.web", &["10.0.1.11", "10.0.1.12"]),
            ],
        );
        apply(&datapath, std::slice::from_ref(&state)).await;
        let container = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        for ask in [ask_udp, ask_tcp] {
            assert_eq!(
                addresses(&ask(&container, "wEB.", RecordType::A)),
                [ip("10.0.1.100")]
            );
            assert_eq!(
                addresses(&ask(&container, "tasks.web.", RecordType::A)),
                [ip("10.0.1.11"), ip("10.0.1.12")]
            );
            let empty = ask(&container, "web.", RecordType::AAAA);
            assert_eq!(
                (empty.metadata.response_code, empty.answers.len()),
                (ResponseCode::NoError, 0)
            );
            let pointer = ask(&container, "100.1.0.10.in-addr.arpa.", RecordType::PTR);
            assert_eq!(pointer.answers[0].data.to_string(), "web.");
        }
        // A new table is answered from at once.
        apply(
            &datapath,
            &[named("a", "10.0.1.0/24", &[("web", &["10.0.1.101"])])],
        )
        .await;
        assert_eq!(
            addresses(&ask_udp(&container, "web.", RecordType::A)),
            [ip("10.0.1.101")]
        );
    });
}

#[test]
fn answers_come_in_changing_order() {
    in_world(|world| async move {
        let datapath = world.open().await;
        apply(
            &datapath,
            &[named(
                "a",
                "10.0.1.0/24",
                &[("web", &["10.0.1.11", "10.0.1.12", "10.0.1.13"])],
            )],
        )
        .await;
        let container = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let first = || {
            ask_udp(&container, "web.", RecordType::A).answers[0]
                .data
                .to_string()
        };
        let seen: std::collections::BTreeSet<String> = (0..60).map(|_| first()).collect();
        assert_eq!(seen.len(), 3);
    });
}

#[test]
fn a_container_knows_the_names_of_its_networks_and_of_no_other() {
    in_world(|world| async move {
        let datapath = world.open().await;
        let desired = [
            named(
                "a",
                "10.0.1.0/24",
                &[("db", &["10.0.1.50"]), ("only-a", &["10.0.1.51"])],
            ),
            named(
                "b",
                "10.0.2.0/24",
                &[("db", &["10.0.2.50"]), ("only-b", &["10.0.2.51"])],
            ),
        ];
        apply(&datapath, &desired).await;
        let in_a = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let in_both = world
            .attached(&datapath, &[("b", "10.0.2.6"), ("a", "10.0.1.6")])
            .await;
        let ask =
            |container: &Container, name: &str| addresses(&ask_udp(container, name, RecordType::A));
        assert_eq!(ask(&in_a, "db."), [ip("10.0.1.50")]);
        assert_eq!(ask(&in_a, "only-b."), [] as [Ipv4Addr; 0]);
        assert_eq!(
            ask(&in_both, "db."),
            [ip("10.0.2.50")],
            "the first network answers"
        );
        assert_eq!(ask(&in_both, "only-a."), [ip("10.0.1.51")]);
        datapath.disconnect("a", ip("10.0.1.6"), "").await.unwrap();
        assert!(!in_both.run(|| sh("ip -br link")).contains("eth1"));
        assert_eq!(ask(&in_both, "only-a."), [] as [Ipv4Addr; 0]);
        assert_eq!(ask(&in_both, "only-b."), [ip("10.0.2.51")]);
    });
}

#[test]
fn a_late_detach_leaves_the_next_owner_of_the_address_alone() {
    in_world(|world| async move {
        let datapath = world.open().await;
        apply(&datapath, &[network("a", "10.0.1.0/24")]).await;
        let peer = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let (old, new) = (Container::new(), Container::new());
        let addr = ip("10.0.1.6");
        for (container, owner) in [(&old, "old"), (&new, "new")] {
            let group = ContainerEndpoints {
                owner: owner.to_owned(),
                names: BTreeMap::from([(owner.to_owned(), vec![ip("10.0.1.77")])]),
                ..group(&[("a", "10.0.1.6")])
            };
            let netns = container.ns.try_clone().unwrap();
            datapath.attach(netns, group).await.unwrap();
        }
        let _server = new.serve("new", 80);
        let mut open = peer.run(|| Connection::open(addr, 80).unwrap());
        datapath.detach("a", addr, "old").await.unwrap();
        datapath.disconnect("a", addr, "old").await.unwrap();
        open.say().unwrap();
        let own_name = ask_udp(&new, "new.", RecordType::A);
        assert_eq!(addresses(&own_name), [ip("10.0.1.77")]);
        assert_eq!(datapath.diff().await, []);
        datapath.detach("a", addr, "new").await.unwrap();
        assert!(!peer.pings(addr), "its own detach counts");
    });
}

#[test]
fn a_program_may_bind_port_53_of_every_address() {
    in_world(|world| async move {
        let datapath = world.open().await;
        apply(
            &datapath,
            &[named("a", "10.0.1.0/24", &[("web", &["10.0.1.11"])])],
        )
        .await;
        let container = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let peer = world.attached(&datapath, &[("a", "10.0.1.6")]).await;
        let _server = container.serve("dns", 53);
        assert_eq!(
            addresses(&ask_udp(&container, "web.", RecordType::A)),
            [ip("10.0.1.11")]
        );
        assert_eq!(
            addresses(&ask_tcp(&container, "web.", RecordType::A)),
            [ip("10.0.1.11")]
        );
        assert_eq!(peer.udp(ip("10.0.1.5"), 53).unwrap().0, "dns");
        assert_eq!(container.tcp(ip("127.0.0.1"), 53).unwrap().0, "dns");
    });
}

#[test]
fn other_names_are_forwarded_from_the_host() {
    in_world(|mut world| async move {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let loopback = upstream(ip("127.0.0.1"), ip("192.0.2.7"));
        world.config.dns_upstreams = vec![(ip("127.0.0.11"), 53).into(), loopback];
        let datapath = world.open().await;
        let mut internal = named("i", "10.0.2.0/24", &[("db", &["10.0.2.50"])]);
        internal.internal = true;
        apply(&datapath, &[network("a", "10.0.1.0/24"), internal]).await;
        let container = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        for ask in [ask_udp, ask_tcp] {
            assert_eq!(
                addresses(&ask(&container, "example.com.", RecordType::A)),
                [ip("192.0.2.7")]
            );
            let missing = ask(&container, "missing.example.", RecordType::A);
            assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        }
        let cut = ask_udp(&container, "long.example.", RecordType::A);
        assert!(cut.metadata.truncation);
        assert_eq!(
            addresses(&ask_tcp(&container, "long.example.", RecordType::A)),
            [ip("192.0.2.7")]
        );

        let kept = world.attached(&datapath, &[("i", "10.0.2.5")]).await;
        let refused = ask_udp(&kept, "example.com.", RecordType::A);
        assert_eq!(refused.metadata.response_code, ResponseCode::NXDomain);

        // The host got another server.
        let next = upstream(ip("127.0.0.1"), ip("192.0.2.9"));
        datapath.set_upstreams(vec![next]).await;
        let answer = ask_udp(&container, "example.com.", RecordType::A);
        assert_eq!(addresses(&answer), [ip("192.0.2.9")]);

        // Servers of its own: the first is silent, the second is asked after 4 s.
        let own = Container::new();
        let other = upstream(ip("127.0.0.1"), ip("192.0.2.8"));
        let group = ContainerEndpoints {
            dns: Some(vec![silent.local_addr().unwrap(), other]),
            names: BTreeMap::from([("Link".to_owned(), vec![ip("10.0.1.77")])]),
            ..group(&[("a", "10.0.1.6")])
        };
        datapath
            .attach(own.ns.try_clone().unwrap(), group)
            .await
            .unwrap();
        assert_eq!(
            addresses(&ask_udp(&own, "example.com.", RecordType::A)),
            [ip("192.0.2.8")]
        );
        assert_eq!(
            addresses(&ask_udp(&own, "link.", RecordType::A)),
            [ip("10.0.1.77")]
        );
        assert_eq!(
            addresses(&ask_udp(&container, "link.", RecordType::A)),
            [] as [Ipv4Addr; 0]
        );
    });
}

#[test]
fn without_an_upstream_the_answer_is_a_failure_and_not_silence() {
    in_world(|world| async move {
        let datapath = world.open().await;
        apply(&datapath, &[network("a", "10.0.1.0/24")]).await;
        let container = world.attached(&datapath, &[("a", "10.0.1.5")]).await;
        let answer = ask_udp(&container, "example.com.", RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    });
}
