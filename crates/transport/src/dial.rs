//! How an agent reaches a manager.
//!
//! On one node both halves live in one process: the agent dials, and the manager's listener gets the
//! other end of an in-process pipe. Dialing another machine will be one more variant here; what runs
//! over the stream does not change.

use tokio::{io::DuplexStream, sync::mpsc};

use crate::session;

/// Sessions that wait to be accepted; an agent has one at a time.
const BACKLOG: usize = 4;

/// The manager half of this node is not there (any more).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no manager runs on this node")]
pub struct DialError;

/// Opens sessions with a manager.
#[derive(Debug, Clone)]
pub struct Dialer {
    local: mpsc::Sender<DuplexStream>,
}

/// Takes the sessions that agents open.
#[derive(Debug)]
pub struct Listener {
    local: mpsc::Receiver<DuplexStream>,
}

/// A dialer, and the listener it reaches.
pub fn local() -> (Dialer, Listener) {
    let (to, from) = mpsc::channel(BACKLOG);
    (Dialer { local: to }, Listener { local: from })
}

impl Dialer {
    pub async fn dial(&self) -> Result<DuplexStream, DialError> {
        let (near, far) = session::local_stream();
        self.local.send(far).await.map_err(|_| DialError)?;
        Ok(near)
    }
}

impl Listener {
    /// The next session; `None` when every dialer is gone.
    pub async fn accept(&mut self) -> Option<DuplexStream> {
        self.local.recv().await
    }
}
