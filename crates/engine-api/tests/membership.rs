//! Joining, leaving, and what a node that is no manager says; the swarm's own settings and tokens.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{TRUST_ROOT, TestServer, docker, docker_error, raw, try_docker, worker};
use rand::random;
use shoal_engine_api::{
    engine::{EngineError, LocalNetwork, SwarmState},
    wire,
};
use shoal_types::{NetworkId, NodeId, spec::Availability};

const JSON: &str = "application/json";
const TOKEN: &str =
    "SWMTKN-1-4k0d0dfq1s7h0dfg9s8df7g9s8df7g98sdf7g98sdf7g9sdf7g-8s7d6f87s6d8f7s6d8f7s6d8f";
const TAKEN: &str = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this \
                     swarm and join another one.";
const WORKER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or \
                      modify cluster state. Please run this command on a manager node or promote \
                      the current node to a manager.";

fn message(body: &str) -> String {
    let error: wire::ErrorBody = serde_json::from_str(body).unwrap();
    error.message
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_joins_shows_and_leaves() {
    let server = TestServer::start();
    let words = [
        "swarm",
        "join",
        "--token",
        TOKEN,
        "--advertise-addr",
        "eth1",
        "--data-path-addr",
        "10.1.0.9",
        "--listen-addr",
        "0.0.0.0:4000",
        "--availability",
        "drain",
        "10.0.0.1:2377",
    ];
    let joined = docker(&server, &words).await;
    assert_eq!(joined.trim(), "This node joined a swarm as a worker.");
    {
        let joins = server.node.joins.lock().unwrap();
        let request = &joins[0];
        assert_eq!(request.remotes, ["10.0.0.1:2377"]);
        assert_eq!(request.listen.as_deref(), Some("0.0.0.0:4000"));
        assert_eq!(
            (request.advertise.as_str(), request.data_path.as_str()),
            ("eth1", "10.1.0.9")
        );
        assert_eq!(
            (request.token.as_str(), request.availability),
            (TOKEN, Availability::Drain)
        );
        assert!(
            !format!("{request:?}").contains(TOKEN),
            "a token is a secret"
        );
    }
    let info = docker(&server, &["info"]).await;
    for text in [
        "Swarm: active",
        "Is Manager: false",
        "Node Address: 127.0.0.3",
        "Manager Addresses:",
        "10.0.0.1:2377",
    ] {
        assert!(info.contains(text), "{text:?} is not in\n{info}");
    }
    assert!(!info.contains("ClusterID"), "{info}");

    let refused = docker_error(&server, &words).await;
    assert!(refused.ends_with(TAKEN), "{refused}");
    assert!(
        docker_error(&server, &["swarm", "init"])
            .await
            .ends_with(TAKEN)
    );
    assert_eq!(
        docker(&server, &["swarm", "leave"]).await.trim(),
        "Node left the swarm."
    );
    assert!(docker(&server, &["info"]).await.contains("Swarm: inactive"));
    let again = docker_error(&server, &["swarm", "leave"]).await;
    assert!(
        again.ends_with("This node is not part of a swarm"),
        "{again}"
    );
}

#[tokio::test]
async fn joins_that_cannot_work_are_refused_before_anything_is_tried() {
    let server = TestServer::start();
    let request = |field: &str, value: &str| {
        let mut request = serde_json::json!({
            "ListenAddr": "0.0.0.0:2377", "RemoteAddrs": ["10.0.0.1:2377"], "JoinToken": TOKEN,
        });
        request[field] = serde_json::from_str(value).unwrap();
        request.to_string()
    };
    let token = "invalid join token: take the whole of what \"docker swarm join-token\" prints on \
                 a manager (JoinToken)";
    for (field, value, expected) in [
        (
            "RemoteAddrs",
            "[]",
            "at least 1 RemoteAddr is required to join (RemoteAddrs)",
        ),
        (
            "RemoteAddrs",
            "null",
            "at least 1 RemoteAddr is required to join (RemoteAddrs)",
        ),
        (
            "RemoteAddrs",
            r#"["10.0.0.1", ""]"#,
            "invalid remoteAddr \"\": invalid empty address (RemoteAddrs)",
        ),
        (
            "RemoteAddrs",
            r#"["h:99999"]"#,
            "invalid remoteAddr \"h:99999\": the port must be a number from 1 to 65535 (RemoteAddrs)",
        ),
        (
            "RemoteAddrs",
            r#"["h o:1"]"#,
            "invalid remoteAddr \"h o:1\": expected HOST:PORT (RemoteAddrs)",
        ),
        ("JoinToken", r#""""#, token),
        ("JoinToken", r#""SWMTKN-1-abc""#, token),
        (
            "ListenAddr",
            r#""eth0:x""#,
            "listen address must be an IP address or network interface (with optional port number), \
             not \"eth0:x\" (ListenAddr)",
        ),
        (
            "Availability",
            r#""lazy""#,
            "invalid Availability: \"lazy\" (Availability)",
        ),
    ] {
        let body = request(field, value);
        let (status, _, body) = raw(&server, "POST", "/swarm/join", JSON, &body).await;
        assert_eq!(
            (status, message(&body)),
            (400, expected.to_owned()),
            "{field}: {value}"
        );
    }
    assert!(server.node.joins.lock().unwrap().is_empty());

    for (error, expected) in [
        (
            EngineError::Invalid("the token is of another cluster".into()),
            400,
        ),
        (
            EngineError::Unavailable("Timeout was reached before node joined.".into()),
            503,
        ),
    ] {
        *server.node.join_error.lock().unwrap() = Some(error);
        let body = request("Availability", r#""""#);
        assert_eq!(
            raw(&server, "POST", "/swarm/join", JSON, &body).await.0,
            expected
        );
    }
    for place in [
        SwarmState::Pending,
        SwarmState::Error("its certificate has expired".into()),
    ] {
        server.node.stands(place);
        let body = request("Availability", r#""""#);
        let (status, _, body) = raw(&server, "POST", "/swarm/join", JSON, &body).await;
        assert_eq!((status, message(&body)), (503, TAKEN.to_owned()));
    }
    assert_eq!(server.node.joins.lock().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_send_to_the_managers() {
    let server = TestServer::start();
    let network = LocalNetwork {
        id: NetworkId::from_random(random()),
        name: "net".into(),
        driver: "overlay".into(),
        subnet: "10.0.5.0/24".parse().unwrap(),
        gateway: "10.0.5.1".parse().unwrap(),
        vni: 4097,
        internal: true,
        ingress: false,
    };
    *server.node.networks.lock().unwrap() = vec![network.clone()];
    let node = NodeId::from_random(random());
    server
        .node
        .stands(worker(node, vec!["10.0.0.1:2377".into()]));
    for (method, path, body) in [
        ("GET", "/swarm", ""),
        ("GET", "/swarm/unlockkey", ""),
        ("POST", "/swarm/update?version=1", "{}"),
        ("POST", "/swarm/unlock", "{}"),
        ("GET", "/nodes", ""),
        ("GET", "/nodes/x", ""),
        ("DELETE", "/nodes/x", ""),
        ("GET", "/services", ""),
        ("DELETE", "/services/x", ""),
        ("GET", "/tasks", ""),
        ("GET", "/tasks/x/logs?stdout=1", ""),
        ("GET", "/secrets", ""),
        ("GET", "/configs/x", ""),
        ("DELETE", "/networks/net", ""),
        (
            "POST",
            "/networks/create",
            r#"{"Name":"n","Driver":"overlay"}"#,
        ),
    ] {
        let kind = if body.is_empty() { "" } else { JSON };
        let (status, _, answer) = raw(&server, method, path, kind, body).await;
        assert_eq!(
            (status, message(&answer)),
            (503, WORKER.to_owned()),
            "{method} {path}"
        );
    }
    let (_, head, _) = raw(&server, "GET", "/_ping", "", "").await;
    assert!(head.contains("swarm: active/worker"), "{head}");
    let info = server.client().info().await.unwrap().swarm;
    assert_eq!(
        (info.node_id, info.control_available),
        (node.to_string(), false)
    );
    assert_eq!((info.nodes, info.managers, info.cluster), (0, 0, None));

    let list = docker(&server, &["network", "ls", "--no-trunc"]).await;
    assert!(
        list.contains(&network.id.to_string()) && list.contains("swarm"),
        "{list}"
    );
    let prefix = &network.id.to_string()[..8];
    for name in ["net", network.id.as_str(), prefix] {
        let words = [
            "network",
            "inspect",
            "--format",
            "{{.Name}} {{.IPAM.Config}} {{.Internal}}",
            name,
        ];
        let shown = docker(&server, &words).await;
        assert!(
            shown.contains("net") && shown.contains("10.0.5.0/24"),
            "{shown}"
        );
        assert!(shown.trim().ends_with("true"), "{shown}");
    }
    let missing = docker_error(&server, &["network", "inspect", "nope"]).await;
    assert!(missing.contains("network nope not found"), "{missing}");
    let none = docker(&server, &["network", "ls", "-q", "--filter", "name=x"]).await;
    assert_eq!(none, "");
    let refused = docker_error(&server, &["service", "ls"]).await;
    assert!(refused.ends_with(WORKER), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_on_their_way_into_a_swarm_say_so() {
    let server = TestServer::start();
    server.node.stands(SwarmState::Pending);
    let (status, _, body) = raw(&server, "GET", "/nodes", "", "").await;
    assert_eq!(status, 503);
    assert!(
        message(&body).contains("Manager is being prepared"),
        "{body}"
    );
    assert!(docker(&server, &["info"]).await.contains("Swarm: pending"));

    server.node.stands(SwarmState::Error(
        "the certificate has expired: leave and join again".into(),
    ));
    let (status, _, body) = raw(&server, "GET", "/nodes", "", "").await;
    assert_eq!(
        (status, message(&body)),
        (
            503,
            "the certificate has expired: leave and join again".into()
        )
    );
    let info = docker(&server, &["info"]).await;
    assert!(
        info.contains("Swarm: error") && info.contains("leave and join again"),
        "{info}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn join_tokens_are_changed_one_at_a_time() {
    let server = TestServer::swarm().await;
    let client = server.client();
    let before = client.swarm().await.unwrap().join_tokens;
    let rotated = docker(&server, &["swarm", "join-token", "--rotate", "worker"]).await;
    assert!(
        rotated.contains("Successfully rotated worker join token."),
        "{rotated}"
    );
    let after = client.swarm().await.unwrap().join_tokens;
    assert!(rotated.contains(&after.worker), "{rotated}");
    assert_ne!(before.worker, after.worker);
    assert_eq!(before.manager, after.manager);

    let shown = docker(
        &server,
        &["swarm", "join-token", "-q", "--rotate", "manager"],
    )
    .await;
    let last = client.swarm().await.unwrap().join_tokens;
    assert_eq!(shown.trim(), last.manager);
    assert_ne!(last.manager, after.manager);
    assert_eq!(last.worker, after.worker);

    // On an old version nothing changes.
    let path = "/swarm/update?version=1&rotateWorkerToken=true";
    let (status, _, body) = raw(&server, "POST", path, JSON, "{}").await;
    assert_eq!(status, 500);
    assert!(message(&body).contains("update out of sequence"), "{body}");
    assert_eq!(client.swarm().await.unwrap().join_tokens, last);

    // Together with other settings, both are done.
    let swarm = client.swarm().await.unwrap();
    let path = format!(
        "/swarm/update?version={}&rotateWorkerToken=1&rotateManagerToken=1",
        swarm.version.index
    );
    let spec = r#"{"Orchestration":{"TaskHistoryRetentionLimit":9}}"#;
    let (status, _, body) = raw(&server, "POST", &path, JSON, spec).await;
    assert_eq!((status, body.as_str()), (200, ""));
    let both = client.swarm().await.unwrap();
    assert_eq!(
        both.spec.orchestration.task_history_retention_limit,
        Some(9)
    );
    assert!(both.join_tokens.worker != last.worker && both.join_tokens.manager != last.manager);

    let path = format!(
        "/swarm/update?version={}&rotateManagerUnlockKey=1",
        both.version.index
    );
    let (status, _, body) = raw(&server, "POST", &path, JSON, "{}").await;
    assert_eq!(status, 501);
    assert!(message(&body).contains("rotateManagerUnlockKey"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_kept_or_refused_by_name() {
    let server = TestServer::swarm().await;
    let spec = async || server.client().swarm().await.unwrap().spec;
    assert_eq!(
        spec().await.ca_config.node_cert_expiry,
        7_776_000_000_000_000
    );
    docker(&server, &["swarm", "update", "--cert-expiry", "2h"]).await;
    assert_eq!(spec().await.ca_config.node_cert_expiry, 7_200_000_000_000);
    let period = || async { spec().await.dispatcher.heartbeat_period };
    assert_eq!(period().await, 5_000_000_000);
    // What is there already may be said again.
    docker(
        &server,
        &[
            "swarm",
            "update",
            "--dispatcher-heartbeat",
            "1500ms",
            "--snapshot-interval",
            "10000",
        ],
    )
    .await;
    assert_eq!(period().await, 1_500_000_000);
    assert_eq!(spec().await.ca_config.node_cert_expiry, 7_200_000_000_000);
    let before = spec().await;
    for (words, expected) in [
        (
            &["--cert-expiry", "59m"][..],
            "minimum certificate expiry time is 1h0m0s",
        ),
        (
            &["--dispatcher-heartbeat", "999ms"],
            "period must be between 1s and 1h0m0s",
        ),
        (
            &["--snapshot-interval", "7"],
            "changing Raft.SnapshotInterval is not supported",
        ),
        (
            &["--max-snapshots", "7"],
            "changing Raft.KeepOldSnapshots is not supported",
        ),
        (
            &["--autolock"],
            "changing EncryptionConfig.AutoLockManagers is not supported",
        ),
        (
            &["--external-ca", "protocol=cfssl,url=https://x"],
            "changing CAConfig.ExternalCAs is not supported",
        ),
    ] {
        let mut all = vec!["swarm", "update", "--task-history-limit", "3"];
        all.extend(words);
        let error = docker_error(&server, &all).await;
        assert!(error.contains(expected), "{words:?}: {error}");
        assert_eq!(spec().await, before, "{words:?}");
    }
    assert_eq!(
        docker(&server, &["swarm", "ca"]).await.trim(),
        TRUST_ROOT.trim()
    );
    let error = docker_error(&server, &["swarm", "ca", "--rotate"]).await;
    assert!(
        error.contains("changing the root certificate (CAConfig) is not supported"),
        "{error}"
    );
    let error = docker_error(&server, &["swarm", "unlock-key"]).await;
    assert!(error.contains("no unlock key is set"), "{error}");
    let (status, _, body) = raw(
        &server,
        "POST",
        "/swarm/unlock",
        JSON,
        r#"{"UnlockKey":"x"}"#,
    )
    .await;
    assert_eq!(
        (status, message(&body)),
        (409, "swarm is not locked".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_is_not_made_with_a_lock() {
    let server = TestServer::start();
    let error = docker_error(&server, &["swarm", "init", "--autolock"]).await;
    assert!(error.contains("AutoLockManagers"), "{error}");
    let output = try_docker(&server, &["swarm", "init", "--cert-expiry", "1m"]).await;
    assert!(!output.status.success());
    assert!(docker(&server, &["info"]).await.contains("Swarm: inactive"));
}
