//! A cluster of several managers: whichever is asked, the one that leads answers, and nothing is done
//! twice.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{
    MemoryNode, TestServer, connect, docker, docker_command, raw, two_managers, wait_for,
};
use futures_util::StreamExt;
use rand::random;
use shoal_engine_api::{
    Engine,
    client::{Filters, LogOptions},
    engine::{BoxDuplex, EngineError, Forward},
    router, serve_stream, wire,
};
use shoal_types::NodeId;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream},
    net::UnixStream,
};

const JSON: &str = "application/json";
const WEB: &str = r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"x"}}}"#;
const UNKNOWN: &str =
    "the leader was lost before it answered; the outcome is unknown: look before you repeat it";

fn message(body: &str) -> String {
    let error: wire::ErrorBody = serde_json::from_str(body).unwrap();
    error.message
}

/// A leader written out by hand: the far end of a stream that was given to a manager.
fn by_hand() -> (BoxDuplex, DuplexStream) {
    let (near, far) = tokio::io::duplex(64 << 10);
    (Box::new(near), far)
}

/// Reads one request with its body.
async fn read_request(stream: &mut DuplexStream) -> String {
    let mut text = String::new();
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "the request ends early: {text}");
        text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.parse::<usize>().unwrap())
        });
        if body.len() >= length.unwrap_or(0) {
            return text;
        }
    }
}

/// Gives the node these leaders, one for each time that it asks, and the last one for ever.
fn in_turn(node: &MemoryNode, leaders: Vec<Box<dyn Fn() -> Forward + Send + Sync>>) {
    let asked = AtomicUsize::new(0);
    node.guided(move || {
        let n = asked.fetch_add(1, Ordering::SeqCst);
        Ok(leaders[n.min(leaders.len() - 1)]())
    });
}

fn services(server: &TestServer) -> usize {
    server.cluster().now().services().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_does_everything_through_a_manager_that_does_not_lead() {
    let (leader, follower) = two_managers().await;
    let nodes = docker(&follower, &["node", "ls"]).await;
    let line = |host: &str| nodes.lines().find(|line| line.contains(host)).unwrap();
    assert!(line("reef").contains("Leader"), "{nodes}");
    assert!(line("kelp").contains("Reachable"), "{nodes}");
    assert!(line("kelp").contains(" * "), "it is the one asked: {nodes}");

    let info = docker(&follower, &["info"]).await;
    for text in [
        "Is Manager: true",
        "Managers: 2",
        "Nodes: 2",
        "Node Address: 127.0.0.2",
        "127.0.0.1:2377",
    ] {
        assert!(info.contains(text), "{text:?} is not in\n{info}");
    }
    let warnings = follower.client().info().await.unwrap().swarm.warnings;
    assert!(
        warnings[0].contains("in a two-manager configuration"),
        "{warnings:?}"
    );

    docker(&follower, &["network", "create", "-d", "overlay", "net"]).await;
    let words = [
        "service",
        "create",
        "-d",
        "--name",
        "web",
        "--network",
        "net",
        "--label",
        "l=1",
        "hello",
    ];
    docker(&follower, &words).await;
    let list = docker(&follower, &["service", "ls"]).await;
    assert!(list.contains("web") && list.contains("1/1"), "{list}");
    docker(&follower, &["service", "scale", "-d", "web=3"]).await;
    docker(
        &follower,
        &["service", "update", "-d", "--env-add", "A=b", "web"],
    )
    .await;
    let pretty = docker(&follower, &["service", "inspect", "--pretty", "web"]).await;
    assert!(
        pretty.contains("Replicas:\t3") && pretty.contains("A=b"),
        "{pretty}"
    );
    let tasks = docker(&follower, &["service", "ps", "web"]).await;
    assert!(tasks.contains("web.3") && tasks.contains("reef"), "{tasks}");
    let logs = docker(&follower, &["service", "logs", "--tail", "1", "web"]).await;
    assert!(logs.contains("@reef") && logs.contains("| three"), "{logs}");
    docker(
        &follower,
        &["node", "update", "--label-add", "zone=a", "kelp"],
    )
    .await;
    let node = docker(&follower, &["node", "inspect", "self", "--pretty"]).await;
    assert!(
        node.contains("zone=a") && node.contains("127.0.0.2:2377"),
        "{node}"
    );
    let token = docker(&follower, &["swarm", "join-token", "-q", "worker"]).await;
    assert!(token.starts_with("SWMTKN-1-"), "{token}");

    // Word for word what the leader says itself.
    for path in [
        "/nodes",
        "/services?status=1",
        "/tasks",
        "/swarm",
        "/networks",
        "/secrets",
    ] {
        let theirs = raw(&leader, "GET", path, "", "").await;
        let ours = raw(&follower, "GET", path, "", "").await;
        assert_eq!((theirs.0, &theirs.2), (ours.0, &ours.2), "{path}");
    }
    let missing = raw(&follower, "GET", "/v1.44/services/nope", "", "").await;
    assert_eq!(
        (missing.0, message(&missing.2)),
        (404, "service nope not found".into())
    );
    assert!(missing.1.contains("api-version: 1.51"), "{}", missing.1);

    docker(&follower, &["service", "rm", "web"]).await;
    docker(&follower, &["network", "rm", "net"]).await;
    assert_eq!(services(&leader), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_followed_through_a_manager_that_does_not_lead() {
    let (leader, follower) = two_managers().await;
    raw(&leader, "POST", "/services/create", JSON, WEB).await;
    let options = LogOptions {
        stdout: true,
        stderr: true,
        follow: true,
        ..LogOptions::default()
    };
    let mut logs = follower
        .client()
        .service_logs("web", &options)
        .await
        .unwrap();
    for expected in ["one\n", "two\n", "three\n"] {
        assert_eq!(logs.next().await.unwrap().unwrap().payload, expected);
    }
    let open = leader.node.open_logs.clone();
    assert_eq!(open.load(Ordering::SeqCst), 1);
    assert_eq!(follower.node.open_logs.load(Ordering::SeqCst), 0);
    drop(logs);
    wait_for("the leader to stop reading", || {
        open.load(Ordering::SeqCst) == 0
    })
    .await;

    let mut child = docker_command(&follower, &["service", "logs", "--follow", "--raw", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("one"));
    // The next task's lines come while it follows.
    docker(&follower, &["service", "scale", "-d", "web=2"]).await;
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("three"));
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("one"));
    child.kill().await.unwrap();
    wait_for("the leader to stop reading", || {
        open.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn a_request_that_meets_the_leader_of_yesterday_is_carried_out_once() {
    let (first, second) = two_managers().await;
    // The first has lost the lead without the second having heard of it.
    let new_leader = second.cluster().node;
    first.cluster().set_leader(Some(new_leader));
    let (yesterday, asked) = (first.node.clone(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    second.node.guided(move || {
        Ok(if count.fetch_add(1, Ordering::SeqCst) == 0 {
            Forward::To(connect(&yesterday))
        } else {
            Forward::Here
        })
    });
    let (status, head, body) = raw(&second, "POST", "/services/create", JSON, WEB).await;
    assert_eq!(status, 201, "{body}");
    assert!(!head.contains("x-shoal-not-leader"), "{head}");
    assert_eq!((asked.load(Ordering::SeqCst), services(&second)), (2, 1));
}

#[tokio::test]
async fn a_manager_that_loses_the_lead_under_a_request_passes_it_on() {
    let (first, second) = two_managers().await;
    let new_leader = second.cluster().node;
    first.cluster().set_leader(Some(new_leader));
    let (peer, asked) = (second.node.clone(), AtomicUsize::new(0));
    first.node.guided(move || {
        Ok(match asked.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Forward::Here,
            _ => Forward::To(connect(&peer)),
        })
    });
    let (status, _, body) = raw(&first, "POST", "/services/create", JSON, WEB).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(services(&first), 1);
}

#[tokio::test]
async fn requests_wait_for_an_election() {
    let (first, second) = two_managers().await;
    let cluster = second.cluster();
    cluster.set_leader(None);
    let elected = async {
        for node in [&first.node, &second.node] {
            let asked = || node.asked.load(Ordering::SeqCst) >= 2;
            wait_for("the request to be tried again", asked).await;
        }
        cluster.set_leader(Some(cluster.node));
    };
    let create = raw(&first, "POST", "/services/create", JSON, WEB);
    let list = raw(&second, "GET", "/nodes", "", "");
    let (created, listed, ()) = tokio::join!(create, list, elected);
    assert_eq!((created.0, listed.0), (201, 200), "{created:?} {listed:?}");
    assert_eq!(services(&second), 1);
}

/// Serves `node` to one connection in memory, so that no socket keeps a paused clock from advancing.
async fn ask(node: Arc<MemoryNode>, request: String) -> (u16, String, String) {
    let (mut near, far) = tokio::io::duplex(64 << 10);
    let served = tokio::spawn(serve_stream(router(Engine::shared(node)), far));
    near.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    served.await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

fn create_request() -> String {
    let head = "POST /v1.44/services/create HTTP/1.1\r\nHost: x\r\nConnection: close";
    format!(
        "{head}\r\nContent-Type: {JSON}\r\nContent-Length: {}\r\n\r\n{WEB}",
        WEB.len()
    )
}

/// A manager that does not lead.
fn manager() -> Arc<MemoryNode> {
    let node = Arc::new(MemoryNode::new());
    let id = NodeId::from_random(random());
    node.set_cluster(common::MemoryCluster::new(id, 5));
    node
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_a_leader_is_said_to_have_none_after_ten_seconds() {
    let node = manager();
    node.guided(|| {
        Err(EngineError::Unavailable(
            "the managers cannot be reached".into(),
        ))
    });
    let started = tokio::time::Instant::now();
    let (status, _, body) = ask(node.clone(), create_request()).await;
    assert_eq!(
        (status, message(&body)),
        (503, "the managers cannot be reached".into())
    );
    let waited = started.elapsed();
    assert!((9..=10).contains(&waited.as_secs()), "{waited:?}");

    node.cluster().unwrap().set_leader(None);
    node.guided(|| Ok(Forward::Here));
    let (status, head, body) = ask(node, create_request()).await;
    assert_eq!(status, 503);
    assert!(
        message(&body).contains("The swarm does not have a leader."),
        "{body}"
    );
    assert!(!head.contains("x-shoal-not-leader"), "{head}");
}

#[tokio::test]
async fn other_errors_of_finding_the_leader_are_told_at_once() {
    let node = manager();
    node.guided(|| Err(EngineError::NotSupported("that leader".into())));
    let (status, _, body) = ask(node, create_request()).await;
    assert_eq!(
        (status, message(&body)),
        (501, "that leader is not supported by shoal yet".into())
    );
}

#[tokio::test]
async fn a_request_whose_answer_is_lost_is_not_repeated() {
    let node = manager();
    let (ends, asked) = (
        Arc::new(Mutex::new(Vec::new())),
        Arc::new(AtomicUsize::new(0)),
    );
    let (made, count) = (ends.clone(), asked.clone());
    node.guided(move || {
        count.fetch_add(1, Ordering::SeqCst);
        let (near, far) = by_hand();
        made.lock().unwrap().push(far);
        Ok(Forward::To(near))
    });
    let answers: [&[u8]; 3] = [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{\"ID\":",
    ];
    for (n, answer) in answers.into_iter().enumerate() {
        let asking = tokio::spawn(ask(node.clone(), create_request()));
        wait_for("the request", || !ends.lock().unwrap().is_empty()).await;
        let mut leader = ends.lock().unwrap().pop().unwrap();
        let request = read_request(&mut leader).await;
        assert!(
            request.starts_with("POST /v1.44/services/create HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.ends_with(WEB), "{request}");
        leader.write_all(answer).await.unwrap();
        drop(leader);
        let (status, _, body) = asking.await.unwrap();
        assert_eq!((status, message(&body)), (500, UNKNOWN.into()), "after {n}");
        assert_eq!(asked.load(Ordering::SeqCst), n + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_never_answers_is_not_waited_for_for_ever() {
    let node = manager();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let ends = kept.clone();
    node.guided(move || {
        let (near, far) = by_hand();
        ends.lock().unwrap().push(far);
        Ok(Forward::To(near))
    });
    let (status, _, body) = ask(node, create_request()).await;
    assert_eq!((status, message(&body)), (500, UNKNOWN.into()));
    // Nothing more reaches it: the connection is closed.
    let mut leader = kept.lock().unwrap().pop().unwrap();
    let mut rest = Vec::new();
    leader.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(WEB.as_bytes()));
}

#[tokio::test]
async fn questions_are_asked_again_when_the_answer_is_lost() {
    let (leader, follower) = two_managers().await;
    let peer = leader.node.clone();
    let cut = |answer: &'static [u8]| -> Box<dyn Fn() -> Forward + Send + Sync> {
        Box::new(move || {
            let (near, mut far) = by_hand();
            tokio::spawn(async move {
                read_request(&mut far).await;
                far.write_all(answer).await.unwrap();
            });
            Forward::To(near)
        })
    };
    let leaders = vec![
        cut(b""),
        cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[{"),
        cut(b"HTTP/1.1 503 X\r\nX-Shoal-Not-Leader: 1\r\nContent-Length: 0\r\n\r\n"),
        Box::new(move || Forward::To(connect(&peer))),
    ];
    in_turn(&follower.node, leaders);
    let nodes = follower.client().nodes(&Filters::default()).await.unwrap();
    assert_eq!(nodes.len(), 2);
}

#[tokio::test]
async fn a_request_that_was_not_sent_is_sent_again() {
    let (leader, follower) = two_managers().await;
    let peer = leader.node.clone();
    in_turn(
        &follower.node,
        vec![
            // Closed before the first byte.
            Box::new(|| Forward::To(by_hand().0)),
            Box::new(move || Forward::To(connect(&peer))),
        ],
    );
    let (status, _, body) = raw(&follower, "POST", "/services/create", JSON, WEB).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(services(&leader), 1);
}

#[tokio::test]
async fn a_manager_that_was_demoted_meanwhile_sends_the_others_on() {
    let (first, second) = two_managers().await;
    let cluster = second.cluster();
    first
        .node
        .stands(common::worker(first.cluster().node, Vec::new()));
    let demoted = first.node.clone();
    let asked = AtomicUsize::new(0);
    second.node.guided(move || {
        Ok(match asked.fetch_add(1, Ordering::SeqCst) {
            0 => {
                let near = connect(&demoted);
                cluster.set_leader(Some(cluster.node));
                Forward::To(near)
            }
            _ => Forward::Here,
        })
    });
    let (status, _, body) = raw(&second, "POST", "/services/create", JSON, WEB).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(services(&second), 1);
}

#[tokio::test]
async fn bodies_are_kept_for_a_second_attempt_up_to_a_bound() {
    let (leader, follower) = two_managers().await;
    let fits = format!(r#"{{"Name":"c","Data":"{}"}}"#, "QUFB".repeat(200 << 10));
    let (status, _, body) = raw(&follower, "POST", "/configs/create", JSON, &fits).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(leader.cluster().now().configs().count(), 1);
    let config = follower.client().config("c").await.unwrap();
    assert_eq!(config.spec.data.len(), 3 * (200 << 10));
    let large = "x".repeat((4 << 20) + 1);
    let (status, _, body) = raw(&follower, "POST", "/configs/create", JSON, &large).await;
    assert_eq!(
        (status, message(&body)),
        (413, "the body is larger than 4194304 bytes".into())
    );
}

#[tokio::test]
async fn a_network_shows_the_containers_of_the_node_that_is_asked() {
    let (leader, follower) = two_managers().await;
    // The fixture runs every task on the node that leads, and has each node list all containers.
    let network = r#"{"Name":"net","Driver":"overlay"}"#;
    raw(&leader, "POST", "/networks/create", JSON, network).await;
    let client = leader.client();
    let id = client.network("net").await.unwrap().id;
    let spec = format!(
        r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"x"}},"Networks":[{{"Target":"{id}"}}]}}}}"#
    );
    let (status, _, body) = raw(&leader, "POST", "/services/create", JSON, &spec).await;
    assert_eq!(status, 201, "{body}");
    let there = client.network("net").await.unwrap();
    assert_eq!(there.containers.as_ref().unwrap().len(), 1);
    follower.node.hide_containers();
    let here = follower.client().network("net").await.unwrap();
    assert_eq!(here.containers.as_ref().unwrap().len(), 0);
    assert_eq!(
        here,
        wire::NetworkInspect {
            containers: here.containers.clone(),
            ..there
        }
    );
}

#[tokio::test]
async fn an_upgraded_connection_is_passed_on_both_ways() {
    let (_leader, follower) = two_managers().await;
    in_turn(
        &follower.node,
        vec![Box::new(|| {
            let (near, mut far) = by_hand();
            tokio::spawn(async move {
                let request = read_request(&mut far).await.to_lowercase();
                assert!(request.contains("connection: upgrade\r\n"), "{request}");
                assert!(request.contains("upgrade: tcp\r\n"), "{request}");
                let head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n\
                            Connection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello ";
                far.write_all(head.as_bytes()).await.unwrap();
                // The input's end must not end the output.
                let mut input = String::new();
                far.read_to_string(&mut input).await.unwrap();
                far.write_all(input.to_uppercase().as_bytes())
                    .await
                    .unwrap();
            });
            Forward::To(near)
        })],
    );
    let mut stream = UnixStream::connect(follower.socket()).await.unwrap();
    let request = "POST /tasks/x/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
                   Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello ") {
        assert!(
            stream.read_buf(&mut answer).await.unwrap() > 0,
            "{answer:?}"
        );
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(
        answer.contains("application/vnd.docker.raw-stream"),
        "{answer}"
    );
    assert!(answer.contains("upgrade: tcp"), "{answer}");
    stream.write_all(b"world").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "WORLD");
}

#[tokio::test]
async fn what_is_the_nodes_own_is_answered_by_the_node() {
    let (_leader, follower) = two_managers().await;
    follower
        .node
        .guided(|| panic!("this is not for the leader"));
    for path in [
        "/info",
        "/_ping",
        "/images/json",
        "/containers/json",
        "/v1.44/version",
    ] {
        assert_eq!(raw(&follower, "GET", path, "", "").await.0, 200, "{path}");
    }
    let (status, _, body) = raw(&follower, "POST", "/swarm/leave", "", "").await;
    assert_eq!(status, 503, "{body}");
}

#[tokio::test]
async fn managers_that_do_not_answer_are_shown() {
    let (leader, follower) = two_managers().await;
    let kelp = follower.cluster().node;
    leader.node.reachability.lock().unwrap().insert(kelp, false);
    let node = follower.client().node("kelp").await.unwrap();
    let manager = node.manager_status.unwrap();
    assert_eq!(
        (manager.leader, manager.reachability.as_str()),
        (false, "unreachable")
    );
    let reef = follower
        .client()
        .node("reef")
        .await
        .unwrap()
        .manager_status
        .unwrap();
    assert_eq!(
        (reef.leader, reef.reachability.as_str()),
        (true, "reachable")
    );
}

#[tokio::test]
async fn a_manager_without_a_leader_still_tells_of_itself() {
    let (first, second) = two_managers().await;
    first.cluster().set_leader(None);
    let info = second.client().info().await.unwrap().swarm;
    assert!(info.control_available);
    assert_eq!((info.nodes, info.managers), (2, 2));
    assert!(
        info.error.contains("does not have a leader"),
        "{}",
        info.error
    );
}
