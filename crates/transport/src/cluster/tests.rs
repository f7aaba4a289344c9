//! Real TLS over loopback.

use std::{
    io,
    sync::Mutex,
    time::{Duration, Instant},
};

use rustls::{RootCertStore, crypto::aws_lc_rs, version::TLS12};
use shoal_types::{
    RaftId, Timestamp,
    wire::{JoinAnswer, MemberAnswer, MemberRequest, RaftLane},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::{
    identity::{DEFAULT_CERTIFICATE_LIFE, Identity},
    session,
    testing::{Swarm, node},
};

const HOUR: Duration = Duration::from_hours(1);
const RAFT: Purpose = Purpose::Raft {
    to: RaftId(1),
    lane: RaftLane::Heartbeat,
};

/// A manager's cluster port that answers every byte with the same one.
struct Manager {
    addr: String,
    credentials: watch::Sender<Credentials>,
    incoming: mpsc::UnboundedReceiver<(Option<Identity>, SocketAddr, Purpose)>,
    running: JoinHandle<()>,
    stop: DropGuard,
}

impl Manager {
    async fn start(credentials: Credentials) -> Self {
        Self::with_limit(credentials, HANDSHAKE_LIMIT).await
    }

    async fn with_limit(credentials: Credentials, limit: Duration) -> Self {
        let (credentials, current) = watch::channel(credentials);
        let tls = ClusterTls::new(current);
        let listener = tls.bind(([127, 0, 0, 1], 0).into()).await.expect("bound");
        let mut listener = listener;
        listener.limit = limit;
        let addr = listener.local_addr().expect("has one").to_string();
        let (seen, incoming) = mpsc::unbounded_channel();
        let handler = move |mut incoming: Incoming| {
            let _ = seen.send((incoming.identity, incoming.remote, incoming.purpose));
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(&mut incoming.stream);
                drop(tokio::io::copy(&mut read, &mut write).await);
                drop(write.shutdown().await);
            });
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(listener.run(Arc::new(handler), stop.clone()));
        Self {
            addr,
            credentials,
            incoming,
            running,
            stop: stop.drop_guard(),
        }
    }

    async fn connect(&self, from: &ClusterTls, purpose: Purpose) -> Result<Stream, ConnectError> {
        from.connect(&self.addr, None, purpose).await
    }
}

fn client(credentials: Credentials) -> ClusterTls {
    // A receiver keeps its last value when the sender is gone.
    ClusterTls::new(watch::channel(credentials).1)
}

async fn echoes(mut stream: Stream) {
    stream.write_all(b"shoal").await.expect("written");
    stream.flush().await.expect("flushed");
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.expect("read");
    assert_eq!(&back, b"shoal");
}

fn past(duration: Duration) -> Timestamp {
    Timestamp(clock::now().0 - i64::try_from(duration.as_nanos()).expect("fits"))
}

async fn refused(manager: &Manager, from: &ClusterTls, purpose: Purpose) -> ConnectError {
    let connected = manager.connect(from, purpose).await;
    connected.err().expect("must be refused")
}

#[tokio::test]
async fn members_are_let_in_and_known_by_their_certificates() {
    let swarm = Swarm::new(1);
    let mut manager = Manager::start(swarm.credentials(1, Role::Manager)).await;
    let identity = |n, role| Identity {
        node: node(n),
        role,
        cluster: swarm.cluster,
    };
    let worker = client(swarm.credentials(2, Role::Worker));
    for purpose in [
        Purpose::Session,
        Purpose::Renew,
        Purpose::Reply { ticket: 9 },
        Purpose::Join,
    ] {
        echoes(manager.connect(&worker, purpose).await.expect("let in")).await;
        let (seen, remote, said) = manager.incoming.recv().await.expect("handed over");
        assert_eq!(seen, Some(identity(2, Role::Worker)));
        assert!(remote.ip().is_loopback());
        assert_eq!(said, purpose);
    }
    let other = client(swarm.credentials(3, Role::Manager));
    for purpose in [RAFT, Purpose::Api, Purpose::Member, Purpose::Session] {
        let stream = other.connect(&manager.addr, Some(node(1)), purpose).await;
        echoes(stream.expect("let in")).await;
        let (seen, _, said) = manager.incoming.recv().await.expect("handed over");
        assert_eq!((seen, said), (Some(identity(3, Role::Manager)), purpose));
    }
}

#[tokio::test]
async fn a_session_over_tls_ends_in_order_when_closed_and_with_an_error_when_cut() {
    let swarm = Swarm::new(1);
    let tls = client(swarm.credentials(1, Role::Manager));
    let listener = tls.bind(([127, 0, 0, 1], 0).into()).await.expect("bound");
    let addr = listener.local_addr().expect("has one").to_string();
    let handler = |incoming: Incoming| {
        tokio::spawn(async move {
            let (mut out, _input) = session::open::<Vec<u8>, Purpose, _>(incoming.stream);
            // More than any buffer on the way holds.
            out.send(&vec![7; 3 << 20]).await.expect("sent");
            if incoming.purpose == Purpose::Session {
                out.close().await.expect("closed");
            }
        });
    };
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(listener.run(Arc::new(handler), stop));
    for (purpose, in_order) in [(Purpose::Session, true), (Purpose::Renew, false)] {
        let stream = tls.connect(&addr, None, purpose).await.expect("let in");
        let (_out, mut input) = session::open::<Purpose, Vec<u8>, _>(stream);
        let got = input.receive().await.expect("received");
        assert_eq!(got.expect("a message").len(), 3 << 20);
        assert_eq!(
            input.receive().await.is_ok_and(|end| end.is_none()),
            in_order
        );
    }
}

#[tokio::test]
async fn a_token_leads_to_its_swarm_and_to_no_other() {
    let swarm = Swarm::new(1);
    let mut manager = Manager::start(swarm.credentials(1, Role::Manager)).await;
    let token = swarm.authority.token([1; 16]);
    let (stream, root) = connect_to_join(&manager.addr, token.digest)
        .await
        .expect("let in");
    assert_eq!(root, swarm.root);
    echoes(stream).await;
    let (seen, _, purpose) = manager.incoming.recv().await.expect("handed over");
    assert_eq!((seen, purpose), (None, Purpose::Join));

    let other = Swarm::new(1).authority.token([1; 16]);
    let error = connect_to_join(&manager.addr, other.digest).await;
    let error = error.err().expect("must be refused");
    assert!(matches!(error, ConnectError::Fingerprint { .. }), "{error}");
    let text = error.to_string();
    let dockers = "remote CA does not match fingerprint. Expected: ";
    assert!(text.contains(dockers), "{text}");
    assert!(text.ends_with(&hex::encode(other.digest)), "{text}");
}

/// The root certificate is no secret: whoever has it can show it.
#[tokio::test]
async fn showing_the_right_root_without_its_key_does_not_help() {
    let swarm = Swarm::new(1);
    let forger = Swarm::new(1);
    let forged = forger.credentials(1, Role::Manager);
    let mut config = tls::server_config(&forged);
    let chain = vec![forged.chain().remove(0), swarm.root.clone().into()];
    config.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(
        rustls::sign::CertifiedKey::from_der(
            chain,
            forged.private_key(),
            &aws_lc_rs::default_provider(),
        )
        .expect("fit together"),
    ));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let addr = listener.local_addr().expect("has one").to_string();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("accepted");
        drop(
            tokio_rustls::TlsAcceptor::from(Arc::new(config))
                .accept(tcp)
                .await,
        );
    });
    let digest = swarm.authority.token([1; 16]).digest;
    let error = connect_to_join(&addr, digest).await;
    let error = error.err().expect("must be refused");
    assert!(matches!(error, ConnectError::ForeignCa { .. }), "{error}");
}

#[tokio::test]
async fn without_a_certificate_nothing_but_joining_is_let_in() {
    let swarm = Swarm::new(1);
    let mut manager = Manager::start(swarm.credentials(1, Role::Manager)).await;
    let digest = swarm.authority.token([1; 16]).digest;
    for purpose in [
        Purpose::Renew,
        Purpose::Session,
        Purpose::Reply { ticket: 1 },
        RAFT,
        Purpose::Api,
        Purpose::Member,
    ] {
        let config = Arc::new(tls::joining_config(digest));
        let opened = open(&manager.addr, config, Some(digest), purpose, |_| Ok(())).await;
        let (mut stream, admission, ()) = opened.expect("answered");
        let error = judge(&manager.addr, admission, None).expect_err("must be refused");
        assert!(error.to_string().contains("no certificate"), "{error}");
        // And the connection is of no use.
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).await.expect("closed"), 0);
    }
    assert!(manager.incoming.try_recv().is_err());
}

#[tokio::test]
async fn a_worker_may_not_do_what_managers_do() {
    let swarm = Swarm::new(1);
    let mut manager = Manager::start(swarm.credentials(1, Role::Manager)).await;
    let worker = client(swarm.credentials(2, Role::Worker));
    for purpose in [RAFT, Purpose::Api, Purpose::Member] {
        let error = refused(&manager, &worker, purpose).await;
        assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(node(2).as_str()) && text.contains("worker"),
            "{text}"
        );
    }
    assert!(manager.incoming.try_recv().is_err());
}

#[tokio::test]
async fn nodes_of_another_ca_and_of_another_swarm_under_the_same_ca_are_told_apart() {
    let swarm = Swarm::new(1);
    let manager = Manager::start(swarm.credentials(1, Role::Manager)).await;

    let stranger = client(Swarm::new(1).credentials(2, Role::Manager));
    let error = refused(&manager, &stranger, Purpose::Session).await;
    assert!(matches!(error, ConnectError::ForeignCa { .. }), "{error}");

    let neighbour = Identity {
        node: node(2),
        role: Role::Manager,
        cluster: ClusterId::from_random([9; 17]),
    };
    let life = DEFAULT_CERTIFICATE_LIFE;
    let neighbour = swarm.credentials_of(&neighbour, clock::now(), life);
    let error = refused(&manager, &client(neighbour.clone()), Purpose::Session).await;
    let ConnectError::ForeignCluster { theirs, ours, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(
        (*theirs, *ours),
        (swarm.cluster, neighbour.identity().cluster)
    );

    // The server's own view, of a client that does not look.
    let config = neighbour.client_config();
    let opened = open(&manager.addr, config, None, Purpose::Session, |_| Ok(())).await;
    let (_, admission, ()) = opened.expect("answered");
    let error = judge(&manager.addr, admission, Some(&neighbour)).expect_err("refused");
    assert!(error.to_string().contains("is of swarm"), "{error}");
}

/// A client that trusts the manager, and shows a certificate that another root signed.
#[tokio::test]
async fn a_client_certificate_of_another_ca_is_refused_and_the_client_is_told() {
    let (swarm, other) = (Swarm::new(1), Swarm::new(1));
    let manager = Manager::start(swarm.credentials(1, Role::Manager)).await;
    let foreign = other.credentials(2, Role::Manager);
    let mut config = tls::client_config(&swarm.credentials(3, Role::Manager));
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(
        rustls::sign::CertifiedKey::from_der(
            foreign.chain(),
            foreign.private_key(),
            &aws_lc_rs::default_provider(),
        )
        .expect("fit together"),
    ));
    for _ in 0..20 {
        let config = Arc::new(config.clone());
        let opened = open(&manager.addr, config, None, Purpose::Session, |_| Ok(())).await;
        let error = opened.err().expect("must be refused");
        assert!(
            matches!(error, ConnectError::UnknownThere { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn clocks_hours_apart_are_named_with_both_clocks() {
    let swarm = Swarm::at(1, past(HOUR * 48));
    let life = Duration::from_hours(2);
    let expired = |n| swarm.credentials_at(n, Role::Manager, past(HOUR * 5), life);
    let early = |n| swarm.credentials_at(n, Role::Manager, clock::now().after(HOUR * 5), life);
    let good = |n| swarm.credentials(n, Role::Manager);
    let names_both = |error: &ConnectError, of: &Credentials| {
        let text = error.to_string();
        assert!(text.contains(&of.validity().to_string()), "{text}");
        // To the hour, unless it just struck.
        let hour = |at| clock::Utc(at).to_string()[..14].to_owned();
        let (now, before) = (clock::now(), past(Duration::from_mins(1)));
        assert!(
            text.contains(&hour(now)) || text.contains(&hour(before)),
            "{text}"
        );
        text
    };

    for credentials in [expired(1), early(1)] {
        let manager = Manager::start(credentials.clone()).await;
        let error = refused(&manager, &client(good(2)), RAFT).await;
        assert!(matches!(error, ConnectError::Clock { .. }), "{error}");
        let text = names_both(&error, &credentials);
        assert!(text.contains(node(1).as_str()), "{text}");
        let digest = swarm.authority.token([0; 16]).digest;
        let error = connect_to_join(&manager.addr, digest).await;
        let error = error.err().expect("must be refused");
        assert!(matches!(error, ConnectError::Clock { .. }), "{error}");
    }

    let manager = Manager::start(good(1)).await;
    for (credentials, advice) in [
        (expired(2), "leave the swarm and join again"),
        (early(2), "Set the clocks right"),
    ] {
        let error = refused(&manager, &client(credentials.clone()), RAFT).await;
        assert!(matches!(error, ConnectError::ClockThere { .. }), "{error}");
        let text = names_both(&error, &credentials);
        assert!(text.contains(advice), "{text}");
    }
}

#[tokio::test]
async fn another_node_than_the_one_meant_and_a_worker_that_listens_are_refused() {
    let swarm = Swarm::new(1);
    let manager = Manager::start(swarm.credentials(1, Role::Manager)).await;
    let tls = client(swarm.credentials(2, Role::Manager));
    let error = tls.connect(&manager.addr, Some(node(7)), RAFT).await;
    let error = error.err().expect("must be refused");
    let ConnectError::OtherNode {
        expected, found, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((*expected, *found), (node(7), node(1)));

    let worker = Manager::start(swarm.credentials(4, Role::Worker)).await;
    let error = refused(&worker, &tls, Purpose::Session).await;
    assert!(matches!(error, ConnectError::Worker { .. }), "{error}");
    let digest = swarm.authority.token([0; 16]).digest;
    let error = connect_to_join(&worker.addr, digest).await;
    assert!(matches!(error.err(), Some(ConnectError::Worker { .. })));
}

#[tokio::test]
async fn a_renewed_certificate_is_used_by_the_next_handshake_on_both_ends() {
    let swarm = Swarm::at(1, past(HOUR * 48));
    let old = swarm.credentials_at(1, Role::Manager, past(HOUR * 5), HOUR);
    let mut manager = Manager::start(old).await;
    let (own, current) = watch::channel(swarm.credentials(2, Role::Worker));
    let tls = ClusterTls::new(current);
    let error = refused(&manager, &tls, Purpose::Session).await;
    assert!(matches!(error, ConnectError::Clock { .. }), "{error}");

    manager
        .credentials
        .send_replace(swarm.credentials(1, Role::Manager));
    let session = manager.connect(&tls, Purpose::Session).await;
    let session = session.expect("let in");
    let error = refused(&manager, &tls, RAFT).await;
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");

    // Promoted.
    own.send_replace(swarm.credentials(2, Role::Manager));
    echoes(manager.connect(&tls, RAFT).await.expect("let in")).await;
    manager.incoming.recv().await.expect("the session");
    let (seen, ..) = manager.incoming.recv().await.expect("the promoted node");
    assert_eq!(seen.expect("a certificate").role, Role::Manager);
    // What was connected before goes on.
    echoes(session).await;
}

#[tokio::test]
async fn slow_handshakes_hold_up_nobody_and_are_ended() {
    let swarm = Swarm::new(1);
    let limit = Duration::from_secs(3);
    let manager = Manager::with_limit(swarm.credentials(1, Role::Manager), limit).await;
    let tls = client(swarm.credentials(2, Role::Worker));
    let started = Instant::now();
    let mut slow = Vec::new();
    for n in 0..100 {
        let mut tcp = TcpStream::connect(&manager.addr).await.expect("connected");
        if n % 2 == 0 {
            // The beginning of a TLS record that never goes on.
            tcp.write_all(&[22, 3, 1]).await.expect("written");
        }
        slow.push(tcp);
    }
    echoes(
        manager
            .connect(&tls, Purpose::Session)
            .await
            .expect("let in"),
    )
    .await;
    assert!(started.elapsed() < limit, "{:?}", started.elapsed());
    for mut tcp in slow {
        // An orderly end or a reset: whatever was sent has not been read.
        drop(tcp.read_to_end(&mut Vec::new()).await);
    }
    assert!(started.elapsed() >= limit, "they had their time");
}

#[tokio::test]
async fn more_slow_handshakes_than_are_allowed_delay_others_but_lock_nobody_out() {
    let swarm = Swarm::new(1);
    let limit = Duration::from_secs(1);
    let manager = Manager::with_limit(swarm.credentials(1, Role::Manager), limit).await;
    let tls = client(swarm.credentials(2, Role::Worker));
    let mut slow = Vec::new();
    for _ in 0..300 {
        slow.push(TcpStream::connect(&manager.addr).await.expect("connected"));
    }
    let stream = manager.connect(&tls, Purpose::Session).await;
    echoes(stream.expect("let in")).await;
}

#[tokio::test]
async fn what_is_not_tls_13_of_this_protocol_is_refused_and_told_apart() {
    let swarm = Swarm::new(1);
    let mut manager = Manager::start(swarm.credentials(1, Role::Manager)).await;
    // Garbage, more than is looked at. It is read to its end: a reset could overtake the alert.
    let mut tcp = TcpStream::connect(&manager.addr).await.expect("connected");
    tcp.write_all(&b"GET / HTTP/1.1\r\n".repeat(2000))
        .await
        .expect("written");
    tcp.shutdown().await.expect("closed");
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.expect("an orderly end");
    assert_eq!(answer[..3], [21, 3, 3], "an alert");

    // TLS 1.2, and TLS 1.3 for another protocol, by clients that would accept any server.
    let mut roots = RootCertStore::empty();
    roots.add(swarm.root.clone().into()).expect("a root");
    let other = |versions, protocol: Option<&[u8]>| {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocol.iter().map(|name| name.to_vec()).collect();
        config
    };
    for (config, refused_by_tls) in [
        (other(&[&TLS12], Some(tls::ALPN)), true),
        (other(&[&rustls::version::TLS13], Some(b"h2")), true),
        (other(&[&rustls::version::TLS13], None), false),
    ] {
        let tcp = TcpStream::connect(&manager.addr).await.expect("connected");
        let connector = TlsConnector::from(Arc::new(config));
        match connector.connect(tls::server_name(), tcp).await {
            Err(_) => assert!(refused_by_tls),
            Ok(mut stream) => {
                assert!(!refused_by_tls);
                drop(stream::write_frame(&mut stream, &Purpose::Join).await);
                let read = stream.read(&mut [0; 64]).await;
                assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
            }
        }
    }
    assert!(manager.incoming.try_recv().is_err());
    // After all that it still works.
    let tls = client(swarm.credentials(2, Role::Worker));
    echoes(
        manager
            .connect(&tls, Purpose::Session)
            .await
            .expect("let in"),
    )
    .await;
}

#[tokio::test]
async fn ports_where_no_manager_listens_are_told_apart() {
    let swarm = Swarm::new(1);
    let tls = client(swarm.credentials(2, Role::Worker));
    let connect = async |addr: &str| {
        let connected = tls.connect(addr, None, Purpose::Session).await;
        connected.err().expect("must fail")
    };

    // Nothing listens; the port was free a moment ago and is now held without listening.
    let held = tokio::net::TcpSocket::new_v4().expect("a socket");
    held.bind(([127, 0, 0, 1], 0).into()).expect("bound");
    let addr = held.local_addr().expect("has one").to_string();
    let error = connect(&addr).await;
    let ConnectError::Unreachable { source, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(source.kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains(&addr) && error.is_transient());

    assert!(matches!(
        connect("127.0.0.1").await,
        ConnectError::Unreachable { .. }
    ));

    let answer_with = async |answer: &'static [u8]| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let addr = listener.local_addr().expect("has one").to_string();
        tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.expect("accepted");
            drop(tcp.read(&mut [0; 4096]).await);
            drop(tcp.write_all(answer).await);
        });
        addr
    };
    let error = connect(&answer_with(b"HTTP/1.1 400 Bad Request\r\n\r\n").await).await;
    assert!(matches!(error, ConnectError::NotShoal { .. }), "{error:?}");
    let error = connect(&answer_with(b"").await).await;
    assert!(matches!(error, ConnectError::Closed { .. }), "{error:?}");

    // Accepts and stays silent.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let addr = silent.local_addr().expect("has one").to_string();
    let started = Instant::now();
    let error = connect(&addr).await;
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error:?}");
    assert!(started.elapsed() < HANDSHAKE_LIMIT + Duration::from_secs(2));
}

#[tokio::test]
async fn a_stopped_listener_frees_its_port_and_leaves_connections_alone() {
    let swarm = Swarm::new(1);
    let credentials = swarm.credentials(1, Role::Manager);
    let manager = Manager::start(credentials.clone()).await;
    let tls = client(swarm.credentials(2, Role::Worker));
    let stream = manager.connect(&tls, Purpose::Session).await;
    let stream = stream.expect("let in");
    drop(manager.stop);
    manager.running.await.expect("ended");
    let addr: SocketAddr = manager.addr.parse().expect("an address");
    let error = tls.connect(&manager.addr, None, Purpose::Session).await;
    assert!(matches!(
        error.err(),
        Some(ConnectError::Unreachable { .. })
    ));
    // Again at once, although connections of the first one are open.
    let again = ClusterTls::new(watch::channel(credentials).1)
        .bind(addr)
        .await;
    assert_eq!(again.expect("bound").local_addr().expect("has one"), addr);
    echoes(stream).await;
}

#[tokio::test]
async fn a_question_gets_its_answer_over_the_cluster_port() {
    let swarm = Swarm::new(1);
    let tls = client(swarm.credentials(1, Role::Manager));
    let listener = tls.bind(([127, 0, 0, 1], 0).into()).await.expect("bound");
    let addr = listener.local_addr().expect("has one").to_string();
    let handler = |incoming: Incoming| {
        tokio::spawn(answer(
            incoming.stream,
            HOUR,
            async |question: MemberRequest| MemberAnswer::Refused {
                reason: format!("{question:?}"),
            },
        ));
    };
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(listener.run(Arc::new(handler), stop));
    let other = client(swarm.credentials(2, Role::Manager));
    let connect = async || {
        let connected = other.connect(&addr, Some(node(1)), Purpose::Member).await;
        connected.expect("let in")
    };
    let question = MemberRequest::Leave;
    let got: MemberAnswer = ask(connect().await, &question, HOUR).await.expect("answer");
    let reason = "Leave".to_owned();
    assert_eq!(got, MemberAnswer::Refused { reason });
    // An answer of another type is an error and not a wrong answer.
    let got = ask::<_, JoinAnswer>(connect().await, &RAFT, HOUR).await;
    assert!(matches!(got, Err(AskError::Closed | AskError::Receive(_))));
    let (near, _far) = crate::session::local_stream();
    let near: Stream = Box::new(near);
    let got = ask::<_, MemberAnswer>(near, &question, Duration::from_millis(10)).await;
    assert!(matches!(got, Err(AskError::Timeout(_))));
}

/// As a newer release would.
#[tokio::test]
async fn a_purpose_that_is_not_known_is_refused_with_a_reason() {
    let swarm = Swarm::new(1);
    let mut manager = Manager::start(swarm.credentials(1, Role::Manager)).await;
    for body in [&[1, 200][..], &[9, 2], &[]] {
        let config = swarm.credentials(2, Role::Worker).client_config();
        let tcp = TcpStream::connect(&manager.addr).await.expect("connected");
        let connecting = TlsConnector::from(config).connect(tls::server_name(), tcp);
        let mut stream = connecting.await.expect("TLS");
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        let frame = [&length[..], body].concat();
        stream.write_all(&frame).await.expect("written");
        stream.flush().await.expect("flushed");
        let admission = stream::read_frame(&mut stream, FRAME_BYTES).await;
        let admission = admission.expect("read").expect("an answer");
        let error = judge(&manager.addr, admission, None).expect_err("refused");
        assert!(error.to_string().contains("upgrade"), "{error}");
    }
    assert!(manager.incoming.try_recv().is_err());
}

/// Log lines of one test.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_manager_logs_who_was_refused_and_why() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let swarm = Swarm::new(1);
    let manager = Manager::start(swarm.credentials(1, Role::Manager)).await;
    refused(&manager, &client(swarm.credentials(2, Role::Worker)), RAFT).await;
    let stranger = client(Swarm::new(1).credentials(5, Role::Worker));
    refused(&manager, &stranger, RAFT).await;
    let text = || {
        let bytes = lines.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    };
    let both = async {
        while text().lines().count() < 2 {
            tokio::task::yield_now().await;
        }
    };
    let both = time::timeout(HANDSHAKE_LIMIT, both).await;
    let text = text();
    assert!(both.is_ok(), "{text}");
    let line = text.lines().find(|line| line.contains(node(2).as_str()));
    let line = line.expect("the worker is named");
    assert!(
        line.contains("WARN") && line.contains("peer.addr=127.0.0.1:"),
        "{line}"
    );
    assert!(
        line.contains("only managers may do this") && line.contains("Raft"),
        "{line}"
    );
    assert!(
        text.contains("no TLS as nodes of this swarm speak it"),
        "{text}"
    );
}
