//! What the API needs of the node it runs on, and of the cluster's managers.
//!
//! Both are traits of boxed futures, so that the server is one type whatever stands behind it. The
//! data here is plain: an implementation fills it in, the API turns it into Docker's JSON.

mod container;
mod control;
mod image;
mod manager;
mod progress;
mod swarm;
mod volume;

use std::pin::Pin;

use futures_util::{Stream, future::BoxFuture};
use shoal_types::{TaskId, Timestamp};
use tokio::io::AsyncRead;

pub use self::{
    container::{
        ContainerHealth, ContainerInfo, ContainerMount, ContainerNetwork, ContainerPort,
        ContainerState, HealthResult, LogRecord, LogRequest, OutputStream,
    },
    control::{
        Change, Changes, ClusterSettings, Control, ControlError, ControlResult, Labels, NewFile,
    },
    image::{
        HistoryItem, ImageDescriptor, ImageDetails, ImageInfo, ImagePlatform, ImageSettings,
        ImportRequest, Removed,
    },
    progress::{Progress, ProgressReceiver, ProgressSink, progress},
    swarm::{
        ActiveSwarm, BoxDuplex, Duplex, Forward, InitRequest, JoinRequest, LocalNetwork,
        SwarmState, Tokens,
    },
    volume::VolumeInfo,
};

pub type BoxStream<'a, T> = Pin<Box<dyn Stream<Item = T> + Send + 'a>>;
pub type BoxReader = Pin<Box<dyn AsyncRead + Send>>;
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Why the node could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// In Docker's words: `No such image: x`, `No such container: x`.
    #[error("No such {kind}: {reference}")]
    NotFound {
        kind: &'static str,
        reference: String,
    },
    /// Not there, in the words of whoever was asked for it.
    #[error("{0}")]
    Missing(String),
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Something that exists stands in the way.
    #[error("{0}")]
    Conflict(String),
    /// A registry refused the credentials.
    #[error("{0}")]
    Unauthorized(String),
    /// Not now: the node is not in the state it takes.
    #[error("{0}")]
    Unavailable(String),
    /// Shoal cannot do it yet.
    #[error("{0} is not supported by shoal yet")]
    NotSupported(String),
    #[error("{what}")]
    Failed {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The node.
pub trait LocalEngine: Send + Sync + 'static {
    /// What does not change while the daemon runs, and what is cheap to look up.
    fn info(&self) -> BoxFuture<'_, Result<NodeInfo>>;

    /// What differs between the kernel's state and the wanted one.
    fn doctor(&self) -> BoxFuture<'_, Result<Diagnosis>>;

    /// The node's place in a swarm, now.
    fn swarm(&self) -> SwarmState;
    fn init(&self, request: InitRequest) -> BoxFuture<'_, Result<shoal_types::NodeId>>;
    /// Makes this node one of a swarm; done when it takes part. When that takes longer than a person
    /// waits, the answer is [`EngineError::Unavailable`] and the attempt goes on.
    ///
    /// A token or an address that cannot be right, or that the managers refuse, is
    /// [`EngineError::Invalid`].
    fn join(&self, _request: JoinRequest) -> BoxFuture<'_, Result<()>> {
        let error = EngineError::NotSupported("joining a swarm".to_owned());
        Box::pin(std::future::ready(Err(error)))
    }
    /// Leaves the swarm and forgets it; a manager only with `force`.
    fn leave(&self, force: bool) -> BoxFuture<'_, Result<()>>;
    /// Who answers for the cluster now; asked of managers only, for each request. It is asked again
    /// after a short pause when it says [`EngineError::Unavailable`]: no leader is known, or the leader
    /// cannot be reached.
    fn forward(&self) -> BoxFuture<'_, Result<Forward>> {
        Box::pin(std::future::ready(Ok(Forward::Here)))
    }
    /// The cluster's networks that this node knows; asked of nodes that are no managers.
    fn local_networks(&self) -> BoxFuture<'_, Result<Vec<LocalNetwork>>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>>;
    /// By id, unique prefix of an id, or name.
    fn image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<ImageDetails>>;
    /// `auth` is the encoded `X-Registry-Auth`; `platform` is `os/arch[/variant]`.
    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        auth: Option<&'a str>,
        platform: Option<&'a str>,
        progress: ProgressSink,
    ) -> BoxFuture<'a, Result<()>>;
    /// Takes a `docker save` archive; gives the names (or ids, of those without) of what it held.
    fn load_images(
        &self,
        archive: BoxReader,
        progress: ProgressSink,
    ) -> BoxFuture<'_, Result<Vec<String>>>;
    /// Makes an image of one layer; gives its id.
    fn import_image(
        &self,
        archive: BoxReader,
        request: ImportRequest,
        progress: ProgressSink,
    ) -> BoxFuture<'_, Result<String>>;
    /// Writes images as a `docker save` archive.
    fn save_images<'a>(&'a self, references: &'a [String]) -> BoxFuture<'a, Result<BoxReader>>;
    /// `target` has a tag.
    fn tag_image<'a>(&'a self, reference: &'a str, target: &'a str) -> BoxFuture<'a, Result<()>>;
    fn remove_image<'a>(
        &'a self,
        reference: &'a str,
        force: bool,
    ) -> BoxFuture<'a, Result<Vec<Removed>>>;
    /// Asks the registry.
    fn distribution<'a>(
        &'a self,
        reference: &'a str,
        auth: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ImageDescriptor>>;

    /// [`EngineError::Unauthorized`] when the registry refuses the credentials.
    fn login(&self, _auth: crate::wire::RegistryAuth) -> BoxFuture<'_, Result<()>> {
        let error = EngineError::NotSupported("checking credentials".to_owned());
        Box::pin(std::future::ready(Err(error)))
    }

    fn containers(&self) -> BoxFuture<'_, Result<Vec<ContainerInfo>>>;
    fn container_logs<'a>(
        &'a self,
        container: &'a shoal_types::ContainerId,
        request: LogRequest,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<LogRecord>>>>;
    /// Output of a task, on whatever node it runs or ran.
    fn task_logs(
        &self,
        task: TaskId,
        request: LogRequest,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<LogRecord>>>>;

    /// The node's volumes, by name.
    fn volumes(&self) -> BoxFuture<'_, Result<Vec<VolumeInfo>>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    fn volume<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<VolumeInfo>> {
        no_volumes()
    }
    /// One that exists is given as it is.
    fn create_volume<'a>(
        &'a self,
        _name: &'a str,
        _labels: std::collections::BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<VolumeInfo>> {
        no_volumes()
    }
    /// [`EngineError::Conflict`] when a container has it.
    fn remove_volume<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<()>> {
        no_volumes()
    }
    /// Bytes of its files.
    fn volume_size<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<u64>> {
        no_volumes()
    }

    /// Told when the node's containers may have changed.
    fn changed(&self) -> BoxStream<'static, ()> {
        Box::pin(futures_util::stream::empty())
    }
}

fn no_volumes<'a, T: Send + 'a>() -> BoxFuture<'a, Result<T>> {
    let error = EngineError::NotSupported("volumes".to_owned());
    Box::pin(std::future::ready(Err(error)))
}

/// Something that happened on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEvent {
    pub at: Timestamp,
    /// `container`, `image`, `network` or `volume`.
    pub kind: &'static str,
    /// Docker's word: `start`, `die`, `pull`…
    pub action: String,
    pub id: String,
    /// Docker's attributes: `name`, `image`, `exitCode`, and the labels of a container.
    pub attributes: std::collections::BTreeMap<String, String>,
}

/// What is wrong on the node, each thing in a sentence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// Where the kernel is otherwise than the cluster wants it.
    pub findings: Vec<String>,
    /// What of the machine's own configuration is in the way.
    pub warnings: Vec<String>,
}

/// The machine and the engine on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Names this engine for as long as its data directory lives.
    pub id: String,
    pub hostname: String,
    pub kernel_version: String,
    /// For people: `Ubuntu 24.04.1 LTS`.
    pub operating_system: String,
    pub os_version: String,
    /// As `uname -m` has it: `x86_64`, `aarch64`.
    pub machine: String,
    pub cpus: u64,
    pub memory_bytes: u64,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    pub data_root: String,
    /// Version of Shoal.
    pub version: String,
    /// Commit it was built from, and when; empty when unknown.
    pub commit: String,
    pub build_time: String,
    pub rustc_version: String,
    /// Labels of the engine.
    pub labels: std::collections::BTreeMap<String, String>,
    pub debug: bool,
    pub ipv4_forwarding: bool,
    /// Name of the default OCI runtime; empty for Shoal's own.
    pub default_runtime: String,
    /// Registries that need no certificate: hosts, and networks such as `10.0.0.0/8`. Loopback is one always.
    pub insecure_registries: Vec<String>,
    /// Base URLs that are asked before Docker Hub.
    pub registry_mirrors: Vec<String>,
    /// What people should know: `WARNING: no swap limit support`.
    pub warnings: Vec<String>,
}
