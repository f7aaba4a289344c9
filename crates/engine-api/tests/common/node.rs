//! The node: images by name, containers as its tasks say, output as a vector of lines.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use rand::random;
use shoal_engine_api::engine::{
    ActiveSwarm, BoxReader, BoxStream, ContainerInfo, ContainerNetwork, ContainerSize,
    ContainerState, Control, Diagnosis, EngineError, Forward, ImageDescriptor, ImageDetails,
    ImageInfo, ImagePlatform, ImportRequest, InitRequest, JoinRequest, LocalEngine, LocalNetwork,
    LogRecord, LogRequest, NodeInfo, OutputStream, Progress, ProgressSink, Removed, Result,
    SwarmState, Tokens,
};
use shoal_types::{ContainerId, NodeId, TaskId, TaskState, Timestamp, spec::LogDriver};
use tokio::io::AsyncReadExt;

use super::MemoryCluster;

pub struct MemoryNode {
    cluster: Mutex<Option<Arc<MemoryCluster>>>,
    images: Mutex<BTreeMap<String, ImageDetails>>,
    /// Streams of output that somebody reads now.
    pub open_logs: Arc<AtomicUsize>,
    /// Pulls that are under way.
    pub open_pulls: Arc<AtomicUsize>,
    /// Another place in a swarm than the one that follows from its cluster.
    pub place: Mutex<Option<SwarmState>>,
    /// Who is asked where the leader is; `None`: this node leads.
    pub guide: Mutex<Option<Guide>>,
    /// How often that was.
    pub asked: AtomicUsize,
    /// Which managers the node takes for reachable.
    pub reachability: Mutex<BTreeMap<NodeId, bool>>,
    pub networks: Mutex<Vec<LocalNetwork>>,
    has_containers: AtomicBool,
    /// What the node was asked to join, and what it says to that.
    pub joins: Mutex<Vec<JoinRequest>>,
    pub join_error: Mutex<Option<EngineError>>,
}

pub type Guide = Box<dyn Fn() -> Result<Forward> + Send + Sync>;

pub const TRUST_ROOT: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/// The place of a node that only runs tasks.
pub fn worker(node: NodeId, managers: Vec<String>) -> SwarmState {
    let managers = managers
        .into_iter()
        .map(|addr| (NodeId::from_random(random()), addr));
    SwarmState::Active(Box::new(ActiveSwarm {
        node,
        node_addr: "127.0.0.3".into(),
        control: None,
        leader: None,
        managers: managers.collect(),
        reachability: BTreeMap::new(),
        trust_root: TRUST_ROOT.to_owned(),
        tokens: Tokens::default(),
    }))
}

/// Counts itself for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl MemoryNode {
    pub fn new() -> Self {
        let node = Self {
            cluster: Mutex::default(),
            images: Mutex::default(),
            open_logs: Arc::default(),
            open_pulls: Arc::default(),
            place: Mutex::default(),
            guide: Mutex::default(),
            asked: AtomicUsize::new(0),
            reachability: Mutex::default(),
            networks: Mutex::default(),
            has_containers: AtomicBool::new(true),
            joins: Mutex::default(),
            join_error: Mutex::default(),
        };
        node.add_image("hello:latest");
        node
    }

    pub fn cluster(&self) -> Option<Arc<MemoryCluster>> {
        self.cluster.lock().unwrap().clone()
    }

    pub fn set_cluster(&self, cluster: MemoryCluster) {
        *self.cluster.lock().unwrap() = Some(Arc::new(cluster));
    }

    pub fn stands(&self, place: SwarmState) {
        *self.place.lock().unwrap() = Some(place);
    }

    /// From now on the cluster's tasks run on other nodes.
    pub fn hide_containers(&self) {
        self.has_containers.store(false, Ordering::SeqCst);
    }

    pub fn guided(&self, guide: impl Fn() -> Result<Forward> + Send + Sync + 'static) {
        *self.guide.lock().unwrap() = Some(Box::new(guide));
    }

    fn add_image(&self, name: &str) -> String {
        let id = format!("sha256:{}", ContainerId::from_random(random()));
        let details = ImageDetails {
            info: ImageInfo {
                id: id.clone(),
                repo_tags: vec![name.to_owned()],
                created: Timestamp::from_unix(1_700_000_000, 0),
                size: 12_345,
                ..ImageInfo::default()
            },
            architecture: "amd64".into(),
            os: "linux".into(),
            layers: vec![format!("sha256:{}", "1".repeat(64))],
            ..ImageDetails::default()
        };
        self.images.lock().unwrap().insert(name.to_owned(), details);
        id
    }

    fn lookup(&self, reference: &str) -> Result<(String, ImageDetails)> {
        let images = self.images.lock().unwrap();
        let tagged = format!("{reference}:latest");
        let found = images.iter().find(|(name, image)| {
            **name == reference || **name == tagged || image.info.id.contains(reference)
        });
        let found = found.map(|(name, image)| (name.clone(), image.clone()));
        found.ok_or_else(|| EngineError::NotFound {
            kind: "image",
            reference: reference.into(),
        })
    }

    fn output(&self, request: LogRequest) -> BoxStream<'static, Result<LogRecord>> {
        let counted = Counted::new(&self.open_logs);
        let line = |n: i64, stream, text: &str| {
            Ok(LogRecord {
                at: Timestamp::from_unix(1_700_000_000 + n, 0),
                stream,
                bytes: Bytes::copy_from_slice(text.as_bytes()),
            })
        };
        let lines = [
            line(1, OutputStream::Stdout, "one\n"),
            line(2, OutputStream::Stderr, "two\n"),
            line(3, OutputStream::Stdout, "three\n"),
        ];
        let wanted = lines.into_iter().filter(move |line| match line {
            Ok(line) => match line.stream {
                OutputStream::Stdout => request.stdout,
                OutputStream::Stderr => request.stderr,
            },
            Err(_) => true,
        });
        let wanted: Vec<_> = wanted.collect();
        let skip = request.tail.map_or(0, |n| {
            wanted
                .len()
                .saturating_sub(usize::try_from(n).unwrap_or(usize::MAX))
        });
        let lines = stream::iter(wanted.into_iter().skip(skip));
        let lines: Box<dyn Stream<Item = _> + Send + Unpin> = if request.follow {
            Box::new(lines.chain(stream::pending()))
        } else {
            Box::new(lines)
        };
        lines
            .map(move |line| {
                let _held = &counted;
                line
            })
            .boxed()
    }
}

impl LocalEngine for MemoryNode {
    fn info(&self) -> BoxFuture<'_, Result<NodeInfo>> {
        async {
            Ok(NodeInfo {
                id: "engine-1".into(),
                hostname: "reef".into(),
                kernel_version: "6.1.0".into(),
                operating_system: "Test OS".into(),
                machine: "x86_64".into(),
                cpus: 2,
                memory_bytes: 4 << 30,
                cgroup_version: 2,
                cgroup_driver: "cgroupfs".into(),
                data_root: "/var/lib/shoal".into(),
                version: "0.1.0".into(),
                commit: "abcdef".into(),
                ..NodeInfo::default()
            })
        }
        .boxed()
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Diagnosis>> {
        let diagnosis = Diagnosis {
            findings: vec!["network n: route to 10.0.1.0/24 is missing".into()],
            warnings: Vec::new(),
        };
        std::future::ready(Ok(diagnosis)).boxed()
    }

    fn swarm(&self) -> SwarmState {
        if let Some(place) = self.place.lock().unwrap().clone() {
            return place;
        }
        let Some(cluster) = self.cluster() else {
            return SwarmState::Inactive;
        };
        let state = cluster.now();
        let managers = state.nodes().filter_map(|node| {
            let manager = node.manager.as_ref()?;
            Some((node.id, manager.addr.clone()))
        });
        let trust = &state.cluster().unwrap().trust;
        let token = |secret: &[u8; 16]| {
            let secret = u128::from_be_bytes(*secret);
            format!("SWMTKN-1-{}-{secret:032x}", "0".repeat(50))
        };
        SwarmState::Active(Box::new(ActiveSwarm {
            node: cluster.node,
            node_addr: state.node(&cluster.node).unwrap().status.addr.clone(),
            leader: cluster.leader(),
            managers: managers.collect(),
            control: Some(cluster as Arc<dyn Control>),
            reachability: self.reachability.lock().unwrap().clone(),
            trust_root: TRUST_ROOT.to_owned(),
            tokens: Tokens {
                worker: token(&trust.worker_secret),
                manager: token(&trust.manager_secret),
            },
        }))
    }

    fn init(&self, request: InitRequest) -> BoxFuture<'_, Result<NodeId>> {
        async move {
            let node = NodeId::from_random(random());
            let cluster = MemoryCluster::new(node, request.task_history_limit);
            *self.cluster.lock().unwrap() = Some(Arc::new(cluster));
            Ok(node)
        }
        .boxed()
    }

    fn join(&self, request: JoinRequest) -> BoxFuture<'_, Result<()>> {
        async move {
            let (managers, node) = (request.remotes.clone(), NodeId::from_random(random()));
            self.joins.lock().unwrap().push(request);
            if let Some(error) = self.join_error.lock().unwrap().take() {
                return Err(error);
            }
            self.stands(worker(node, managers));
            Ok(())
        }
        .boxed()
    }

    fn forward(&self) -> BoxFuture<'_, Result<Forward>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let guide = self.guide.lock().unwrap();
        let forward = guide.as_ref().map_or(Ok(Forward::Here), |guide| guide());
        std::future::ready(forward).boxed()
    }

    fn local_networks(&self) -> BoxFuture<'_, Result<Vec<LocalNetwork>>> {
        std::future::ready(Ok(self.networks.lock().unwrap().clone())).boxed()
    }

    fn leave(&self, force: bool) -> BoxFuture<'_, Result<()>> {
        async move {
            let worker = self.place.lock().unwrap().take().is_some();
            if !force && !worker {
                return Err(EngineError::Unavailable(
                    "You are attempting to leave the swarm on a node that is participating as a \
                     manager. Removing the last manager erases all current state of the swarm. Use \
                     `--force` to ignore this message. "
                        .into(),
                ));
            }
            *self.cluster.lock().unwrap() = None;
            Ok(())
        }
        .boxed()
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        async {
            Ok(self
                .images
                .lock()
                .unwrap()
                .values()
                .map(|i| i.info.clone())
                .collect())
        }
        .boxed()
    }

    fn image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<ImageDetails>> {
        async move { self.lookup(reference).map(|(_, image)| image) }.boxed()
    }

    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        _auth: Option<&'a str>,
        _platform: Option<&'a str>,
        progress: ProgressSink,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let _counted = Counted::new(&self.open_pulls);
            if reference.contains("missing") {
                return Err(EngineError::NotFound {
                    kind: "image",
                    reference: reference.into(),
                });
            }
            for n in 1..=3 {
                progress.send(Progress {
                    status: "Downloading".into(),
                    id: Some("abc".into()),
                    current: Some(n),
                    total: Some(3),
                });
                tokio::task::yield_now().await;
            }
            if reference.contains("broken") {
                return Err(EngineError::Unavailable("the registry hung up".into()));
            }
            if reference.contains("endless") {
                std::future::pending::<()>().await;
            }
            self.add_image(reference);
            Ok(())
        }
        .boxed()
    }

    fn repository_tags<'a>(
        &'a self,
        repository: &'a str,
        _auth: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<String>>> {
        let tags = if repository == "several" {
            vec!["1".to_owned(), "2".to_owned()]
        } else {
            vec!["latest".to_owned()]
        };
        std::future::ready(Ok(tags)).boxed()
    }

    fn load_images(
        &self,
        mut archive: BoxReader,
        _: ProgressSink,
    ) -> BoxFuture<'_, Result<Vec<String>>> {
        async move {
            let mut bytes = Vec::new();
            archive
                .read_to_end(&mut bytes)
                .await
                .map_err(|source| EngineError::Failed {
                    what: "read the archive".into(),
                    source: source.into(),
                })?;
            let name = String::from_utf8(bytes)
                .map_err(|_| EngineError::Invalid("the archive is no text".into()))?;
            self.add_image(&name);
            Ok(vec![name])
        }
        .boxed()
    }

    fn import_image(
        &self,
        mut archive: BoxReader,
        request: ImportRequest,
        _: ProgressSink,
    ) -> BoxFuture<'_, Result<String>> {
        async move {
            let mut bytes = Vec::new();
            archive
                .read_to_end(&mut bytes)
                .await
                .expect("the test sends it whole");
            assert!(!bytes.is_empty());
            Ok(self.add_image(&request.reference))
        }
        .boxed()
    }

    fn save_images<'a>(&'a self, references: &'a [String]) -> BoxFuture<'a, Result<BoxReader>> {
        async move {
            self.lookup(&references[0])?;
            let archive: BoxReader = Box::pin(std::io::Cursor::new(b"archive".to_vec()));
            Ok(archive)
        }
        .boxed()
    }

    fn tag_image<'a>(&'a self, reference: &'a str, target: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let (_, mut image) = self.lookup(reference)?;
            image.info.repo_tags = vec![target.to_owned()];
            self.images.lock().unwrap().insert(target.to_owned(), image);
            Ok(())
        }
        .boxed()
    }

    fn remove_image<'a>(
        &'a self,
        reference: &'a str,
        _force: bool,
        _prune: bool,
    ) -> BoxFuture<'a, Result<Vec<Removed>>> {
        async move {
            let (name, image) = self.lookup(reference)?;
            self.images.lock().unwrap().remove(&name);
            Ok(vec![
                Removed::Untagged(name),
                Removed::Deleted(image.info.id),
            ])
        }
        .boxed()
    }

    fn distribution<'a>(
        &'a self,
        reference: &'a str,
        _auth: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ImageDescriptor>> {
        async move {
            self.lookup(reference)?;
            Ok(ImageDescriptor {
                media_type: "application/vnd.oci.image.index.v1+json".into(),
                digest: format!("sha256:{}", "a".repeat(64)),
                size: 100,
                platforms: vec![ImagePlatform {
                    architecture: "amd64".into(),
                    os: "linux".into(),
                    variant: String::new(),
                }],
            })
        }
        .boxed()
    }

    fn container_size<'a>(
        &'a self,
        _container: &'a ContainerId,
    ) -> BoxFuture<'a, Result<ContainerSize>> {
        let size = ContainerSize {
            own: 10,
            whole: 110,
        };
        std::future::ready(Ok(size)).boxed()
    }

    fn containers(&self) -> BoxFuture<'_, Result<Vec<ContainerInfo>>> {
        async {
            let Some(cluster) = self
                .cluster()
                .filter(|_| self.has_containers.load(Ordering::SeqCst))
            else {
                return Ok(Vec::new());
            };
            let state = cluster.now();
            let containers = state.tasks().filter_map(|task| {
                let status = task.status.container.as_ref()?;
                let networks = task.attachments.iter().filter_map(|a| {
                    let network = state.network(&a.network)?;
                    Some(ContainerNetwork {
                        name: network.spec.name.clone(),
                        id: network.id.to_string(),
                        addr: a.addr,
                        prefix: network.subnet.prefix(),
                        gateway: Some(network.gateway),
                        mac: String::new(),
                        aliases: Vec::new(),
                    })
                });
                let running = task.status.state == TaskState::Running;
                Some(ContainerInfo {
                    id: status.id,
                    name: task.name(),
                    image: task.spec.container.image.clone(),
                    image_id: format!("sha256:{}", "2".repeat(64)),
                    command: vec!["/hello".into(), "--port=80".into()],
                    created: task.meta.created_at,
                    labels: task.spec.container.labels.clone(),
                    state: if running {
                        ContainerState::Running
                    } else {
                        ContainerState::Exited
                    },
                    pid: status.pid,
                    started_at: task.meta.created_at,
                    finished_at: if running {
                        Timestamp::EPOCH
                    } else {
                        task.status.at
                    },
                    exit_code: status.exit_code,
                    oom_killed: false,
                    error: String::new(),
                    task: Some(task.id),
                    service: Some(task.service),
                    node: task.node,
                    hostname: status.id.short().to_owned(),
                    env: task.spec.container.env.clone(),
                    working_dir: "/".into(),
                    user: String::new(),
                    tty: task.spec.container.tty,
                    networks: networks.collect(),
                    ports: Vec::new(),
                    mounts: Vec::new(),
                    memory_bytes: 0,
                    nano_cpus: 0,
                    pids: 0,
                    cap_add: Vec::new(),
                    cap_drop: Vec::new(),
                    read_only: false,
                    log: LogDriver::default(),
                    health: None,
                })
            });
            Ok(containers.collect())
        }
        .boxed()
    }

    fn container_logs<'a>(
        &'a self,
        _container: &'a ContainerId,
        request: LogRequest,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<LogRecord>>>> {
        async move { Ok(self.output(request)) }.boxed()
    }

    fn task_logs(
        &self,
        _task: TaskId,
        request: LogRequest,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<LogRecord>>>> {
        async move { Ok(self.output(request)) }.boxed()
    }
}
