//! A node and a cluster that live in memory: the real replicated state with its own preconditions, and
//! a node on which every task runs as soon as it is wanted.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

mod cluster;
mod node;

use std::{path::PathBuf, process::Output, sync::Arc};

use rand::random;
use shoal_engine_api::{
    Engine,
    client::Client,
    engine::{BoxDuplex, EngineError, Forward},
    router, router_for_managers, serve, serve_stream,
};
use shoal_types::NodeId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    process::Command,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use self::{
    cluster::MemoryCluster,
    node::{MemoryNode, TRUST_ROOT, worker},
};

/// A server on a unix socket of its own; gone when dropped.
pub struct TestServer {
    pub node: Arc<MemoryNode>,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl TestServer {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = Arc::new(MemoryNode::new());
        let listener = UnixListener::bind(dir.path().join("s.sock")).expect("bind the socket");
        let stop = CancellationToken::new();
        let app = router(Engine::shared(node.clone()));
        let task = tokio::spawn(serve(listener, app, stop.clone()));
        Self {
            node,
            dir,
            stop,
            task,
        }
    }

    /// A server whose node is a swarm of one.
    pub async fn swarm() -> Self {
        let server = Self::start();
        server
            .client()
            .init_swarm(&Default::default())
            .await
            .expect("a new swarm");
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s.sock")
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn client(&self) -> Client {
        Client::from_host(&self.host()).expect("a valid host")
    }

    pub fn cluster(&self) -> Arc<MemoryCluster> {
        self.node.cluster().expect("the node is in a swarm")
    }

    /// Ends the server and waits until every connection is closed.
    pub async fn shut_down(mut self) {
        self.stop.cancel();
        (&mut self.task).await.expect("the server does not panic");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

/// A connection to the API that `node` serves to other managers.
pub fn connect(node: &Arc<MemoryNode>) -> BoxDuplex {
    let (near, far) = tokio::io::duplex(64 << 10);
    let app = router_for_managers(Engine::shared(node.clone()));
    tokio::spawn(serve_stream(app, far));
    Box::new(near)
}

/// Two managers of one cluster, each with its own server. The first leads, and each passes on to the
/// one that does.
pub async fn two_managers() -> (TestServer, TestServer) {
    let (first, second) = (TestServer::swarm().await, TestServer::start());
    let cluster = first.cluster();
    let id = NodeId::from_random(random());
    second.node.set_cluster(cluster.joined(id, "kelp"));
    let nodes = [first.node.clone(), second.node.clone()];
    for (n, node) in nodes.iter().enumerate() {
        let own = node.cluster().expect("both are managers");
        // Weak: a node that knew itself would never go away.
        let peers = nodes.each_ref().map(Arc::downgrade);
        node.guided(move || {
            let Some(leader) = own.leader() else {
                return Err(EngineError::Unavailable("no leader is known".into()));
            };
            if leader == own.node {
                return Ok(Forward::Here);
            }
            let peer = peers[1 - n].upgrade().expect("both live as long");
            Ok(Forward::To(connect(&peer)))
        });
    }
    (first, second)
}

/// Sends a request by hand and gives status, head and body of the answer.
pub async fn raw(
    server: &TestServer,
    method: &str,
    path: &str,
    kind: &str,
    body: &str,
) -> (u16, String, String) {
    let mut stream = UnixStream::connect(server.socket())
        .await
        .expect("the server listens");
    let kind = if kind.is_empty() {
        String::new()
    } else {
        format!("Content-Type: {kind}\r\n")
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status");
    let status = status.parse().expect("a number");
    (status, head.to_lowercase(), body.to_owned())
}

pub async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("still waiting for {what}");
}

/// Runs `docker` and gives its standard output; fails the test with both outputs when it fails.
pub async fn docker(server: &TestServer, args: &[&str]) -> String {
    let output = try_docker(server, args).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "docker {args:?} failed:\n{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// What `docker` complains of; fails the test when it does not.
pub async fn docker_error(server: &TestServer, args: &[&str]) -> String {
    let output = try_docker(server, args).await;
    assert!(!output.status.success(), "docker {args:?} did not fail");
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

pub async fn try_docker(server: &TestServer, args: &[&str]) -> Output {
    tokio::time::timeout(
        std::time::Duration::from_secs(30),
        docker_command(server, args).output(),
    )
    .await
    .unwrap_or_else(|_| panic!("docker {args:?} does not end"))
    .expect("the docker command line is installed")
}

/// The docker command line, with this server for its engine and nothing of the user's configuration.
pub fn docker_command(server: &TestServer, args: &[&str]) -> Command {
    let config = server.socket().with_file_name("docker-config");
    let mut command = Command::new("docker");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("DOCKER_HOST", server.host())
        .env("DOCKER_CONFIG", config)
        .args(args)
        .kill_on_drop(true);
    command
}
