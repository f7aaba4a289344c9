//! The handle. Everything that talks to the kernel runs on one thread of the datapath's own, in
//! the network namespace that [`Datapath::open`] was called in.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::mpsc,
    thread,
};

use tokio::sync::oneshot;

use crate::{
    config::{ConfigError, NetworkConfig},
    dns::Dns,
    model::{ApplyError, AttachError, ContainerEndpoints, Difference, NetworkState},
    netlink::KernelError,
    state::{self, State},
};

type Job = Box<dyn FnOnce(&mut State) + Send>;

enum Message {
    Job(Job),
    Close,
}

/// The networks of this node. Clones are the same datapath; it ends with the last of them, and
/// leaves everything in the kernel as it is: traffic goes on, only names are no longer answered.
#[derive(Debug, Clone)]
pub struct Datapath {
    jobs: mpsc::Sender<Message>,
}

/// The datapath could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("network configuration")]
    Config(#[from] ConfigError),
    #[error("open the datapath in {path}")]
    Io {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Datapath {
    /// Opens the datapath in the calling thread's network namespace, which is the host's from
    /// here on. Nothing in the kernel changes before the first [`Datapath::apply`].
    ///
    /// Must be called in a tokio runtime whose threads are in that namespace: names are forwarded
    /// from there.
    #[expect(
        clippy::unused_async,
        reason = "needs a runtime around it, and may come to wait"
    )]
    pub async fn open(config: NetworkConfig) -> Result<Self, OpenError> {
        config.check()?;
        let path = config.exec_root.clone();
        let failed = |source| OpenError::Io { path, source };
        let dns = Dns::new(
            tokio::runtime::Handle::current(),
            config.dns_upstreams.clone(),
        );
        let mut state = match State::open(config, dns) {
            Ok(state) => state,
            Err(error) => return Err(failed(error)),
        };
        let (jobs, queue) = mpsc::channel();
        // The new thread inherits the namespaces of this one.
        thread::Builder::new()
            .name("shoal-network".to_owned())
            .spawn(move || {
                while let Ok(Message::Job(job)) = queue.recv() {
                    job(&mut state);
                }
            })
            .map_err(failed)?;
        Ok(Self { jobs })
    }

    /// Brings the kernel to the desired set: what is not in it is removed, what is as it should
    /// be is not touched. Goes on after errors and returns all of them; what was refused as a
    /// whole network stays as it was.
    pub async fn apply(&self, desired: Vec<NetworkState>) -> Vec<ApplyError> {
        let errors = self.run(move |state| state.apply(desired)).await;
        errors.unwrap_or_else(|| vec![ApplyError::Closed])
    }

    /// Attaches the container in the network namespace `netns` to all networks of the group, and
    /// answers its name questions. Idempotent: for a container that is attached it only sees to
    /// it that everything is there, so it is also called for running containers after a restart.
    ///
    /// An address that another container had goes over to this one.
    pub async fn attach(
        &self,
        netns: OwnedFd,
        group: ContainerEndpoints,
    ) -> Result<(), AttachError> {
        let result = self.run(move |state| state.attach(&netns, &group)).await;
        result.unwrap_or(Err(AttachError::Closed))
    }

    /// Forgets a container and stops its traffic in that network at once. Its interface goes with
    /// its namespace. Does nothing when the address has gone over to another container than
    /// `owner`, as it may before the old one is cleaned up.
    pub async fn detach(
        &self,
        network: &str,
        addr: Ipv4Addr,
        owner: &str,
    ) -> Result<(), KernelError> {
        let (network, owner) = (network.to_owned(), owner.to_owned());
        self.run(move |state| state.detach(&network, addr, &owner))
            .await
            .unwrap_or(Ok(()))
    }

    /// Takes a network away from a container that goes on running; of another than `owner`, as
    /// [`Datapath::detach`] does, nothing.
    pub async fn disconnect(
        &self,
        network: &str,
        addr: Ipv4Addr,
        owner: &str,
    ) -> Result<(), KernelError> {
        let (network, owner) = (network.to_owned(), owner.to_owned());
        self.run(move |state| state.disconnect(&network, addr, &owner))
            .await
            .unwrap_or(Ok(()))
    }

    /// What the kernel has otherwise than was last applied. The next [`Datapath::apply`] repairs
    /// what this found.
    pub async fn diff(&self) -> Vec<Difference> {
        self.run(State::diff).await.unwrap_or_default()
    }

    /// Takes nothing as known any more, so that the next [`Datapath::apply`] compares the kernel
    /// with the desired set even where that did not change, and repairs what others removed.
    /// Interfaces made from here on have the MTU of the host's way out as it is now. Does
    /// not read the kernel's tables again that say by themselves whether they changed.
    pub async fn recheck(&self) {
        self.run(State::recheck).await;
    }

    /// Names that no network knows are asked for there from now on, in this order, instead of
    /// where [`NetworkConfig::dns_upstreams`] said.
    pub async fn set_upstreams(&self, upstreams: Vec<SocketAddr>) {
        self.run(move |state| state.dns.set_upstreams(upstreams))
            .await;
    }

    /// What in the host's own configuration keeps published ports or the way out from working.
    /// The datapath does not touch the rules of others: a packet that any of them drops is
    /// dropped, and no rule of ours could accept it on their behalf.
    pub async fn warnings(&self) -> Vec<String> {
        let found = self.run(|state| state.host.warnings()).await;
        found.map_or_else(Vec::new, |found| {
            found.unwrap_or_else(|error| vec![error.to_string()])
        })
    }

    /// How many transactions that may have changed something were sent to the kernel since the
    /// datapath was opened.
    pub async fn transactions(&self) -> u64 {
        self.run(|state| state.transactions()).await.unwrap_or(0)
    }

    /// Stops answering name questions and ends the datapath, for all clones. The kernel's state
    /// stays.
    pub async fn close(self) {
        // The answer comes when everything before this is done.
        let servers = self.run(|state| state.dns.take_servers()).await;
        for server in servers.into_iter().flatten() {
            server.end().await;
        }
        let _ = self.jobs.send(Message::Close);
    }

    /// Removes every trace of the instance from the kernel, in the calling thread's network
    /// namespace. No datapath of the instance may be open. Safe when nothing exists.
    #[expect(
        clippy::unused_async,
        reason = "belongs to the asynchronous interface of the datapath"
    )]
    pub async fn remove_all(config: NetworkConfig) -> Vec<RemoveError> {
        if let Err(error) = config.check() {
            return vec![RemoveError::Config(error)];
        }
        state::remove_all(&config)
            .into_iter()
            .map(RemoveError::Kernel)
            .collect()
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let job = move |state: &mut State| {
            // Nobody waits any more if the caller was cancelled; the job is done all the same.
            let _ = answer.send(job(state));
        };
        self.jobs.send(Message::Job(Box::new(job))).ok()?;
        answered.await.ok()
    }
}

/// A trace of an instance could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("network configuration")]
    Config(#[from] ConfigError),
    #[error("remove the instance's networks")]
    Kernel(#[source] KernelError),
}
