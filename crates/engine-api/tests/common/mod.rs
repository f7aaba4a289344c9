//! A node and a cluster that live in memory: the real replicated state with its own preconditions, and
//! a node on which every task runs as soon as it is wanted.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

mod cluster;
mod node;

use std::{path::PathBuf, sync::Arc};

use shoal_engine_api::{Engine, client::Client, router, serve};
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use self::{cluster::MemoryCluster, node::MemoryNode};

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
