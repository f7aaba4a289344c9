//! The node as the API sees it: translation, and nothing else.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use shoal_engine_api::engine::{
    ActiveSwarm, BoxReader, BoxStream, ContainerInfo, ContainerMount, ControlError, Diagnosis,
    EngineError, Forward, ImageDescriptor, ImageDetails, ImageInfo, ImportRequest, InitRequest,
    JoinRequest, LocalEngine, LocalNetwork, LogRecord, LogRequest, NodeInfo, OutputStream,
    ProgressSink, Removed, Result, SwarmState, Tokens, VolumeInfo,
};
use shoal_manager::{InitOptions, Leader};
use shoal_node_agent::{
    LocalTask, Volumes, container_id,
    image::{self, Image, ImageId},
    runtime::{self, LogOptions, Phase},
};
use shoal_transport::token::JoinToken;
use shoal_types::{ContainerId, NodeId, TaskId, object::Network};
use tokio_stream::wrappers::WatchStream;

use super::{
    address::CLUSTER_PORT,
    machine::Machine,
    member::MemberError,
    node::{InitError, JoinError, Joining, LeaveError, Node, Place},
    swarm, translate,
};

/// Where the cluster port listens unless told otherwise, as dockerd's.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), CLUSTER_PORT);

/// Answers the API from a node.
pub(crate) struct Engine {
    pub(crate) node: Node,
    pub(crate) machine: Machine,
}

impl Engine {
    fn images(&self) -> &image::ImageStore {
        self.node.agent().images()
    }

    /// Ids of the containers made from an image.
    fn users_of(&self, image: &ImageId) -> Vec<String> {
        let tasks = self.node.agent().tasks();
        let made_from = |task: &&LocalTask| {
            let used = task.image.clone().or_else(|| self.image_of(task));
            !task.status.state.is_terminal() && used.is_some_and(|used| used.id == *image)
        };
        tasks
            .iter()
            .filter(made_from)
            .map(|t| container_id(&t.task.id).to_string())
            .collect()
    }

    fn image_of(&self, task: &LocalTask) -> Option<Arc<Image>> {
        self.images().get(&task.task.spec.container.image).ok()
    }

    async fn container_infos(&self) -> Result<Vec<ContainerInfo>> {
        let states = self
            .node
            .agent()
            .runtime()
            .list()
            .await
            .map_err(failed("list containers"))?;
        let phases: BTreeMap<String, Phase> = states
            .into_iter()
            .map(|state| (state.id, state.phase))
            .collect();
        let networks = self.networks();
        let node = self.node.agent().description();
        let tasks = self.node.agent().tasks();
        Ok(tasks
            .iter()
            .filter_map(|task| {
                let phase = phases.get(container_id(&task.task.id).as_str())?;
                let image = task.image.clone().or_else(|| self.image_of(task));
                Some(translate::container(
                    task,
                    phase,
                    image.as_deref(),
                    &networks,
                    &node,
                    self.mounts(task),
                ))
            })
            .collect())
    }

    fn mounts(&self, task: &LocalTask) -> Vec<ContainerMount> {
        let agent = self.node.agent();
        let mounts = agent.mounts(task).into_iter();
        mounts
            .map(|mount| translate::container_mount(&mount, agent.volumes()))
            .collect()
    }

    /// Does something with the node's volumes that may take as long as their files are many.
    async fn with_volumes<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Volumes) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let volumes = self.node.agent().volumes().clone();
        let done = tokio::task::spawn_blocking(move || act(&volumes)).await;
        done.map_err(failed("look after volumes"))?
    }

    /// The cluster's networks, as far as this node knows them.
    fn networks(&self) -> Vec<Arc<Network>> {
        let Some(manager) = self.node.manager() else {
            let set = self.node.agent().assignments();
            return set.networks.iter().map(|n| swarm::network(n)).collect();
        };
        let state = manager.control().local_state();
        state.networks().cloned().collect()
    }

    fn logs(&self, container: &str, request: LogRequest) -> BoxStream<'static, Result<LogRecord>> {
        let options = LogOptions {
            follow: request.follow,
            since: request.since.map(translate::to_jiff),
            until: request.until.map(translate::to_jiff),
            tail: request
                .tail
                .map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let lines = self.node.agent().runtime().logs(container, options);
        Box::pin(lines.map(|line| {
            let line = line.map_err(failed("read the log"))?;
            Ok(LogRecord {
                at: translate::from_jiff(line.at),
                stream: match line.stream {
                    runtime::Stream::Stdout => OutputStream::Stdout,
                    runtime::Stream::Stderr => OutputStream::Stderr,
                },
                bytes: Bytes::from(line.bytes),
            })
        }))
    }
}

impl LocalEngine for Engine {
    fn info(&self) -> BoxFuture<'_, Result<NodeInfo>> {
        std::future::ready(Ok(self.machine.info())).boxed()
    }

    fn doctor(&self) -> BoxFuture<'_, Result<Diagnosis>> {
        async {
            let shoal_node_agent::Diagnosis { findings, warnings } =
                self.node.agent().doctor().await;
            Ok(Diagnosis { findings, warnings })
        }
        .boxed()
    }

    fn swarm(&self) -> SwarmState {
        let Some(member) = self.node.member() else {
            return SwarmState::Inactive;
        };
        let node = member.node();
        let links = member.links.as_ref();
        let Some(manager) = member.manager() else {
            let managers = self.node.agent().assignments().managers.clone();
            let addr = self.node.agent().description().data_addr;
            return SwarmState::Active(Box::new(ActiveSwarm {
                node,
                node_addr: member
                    .advertised()
                    .map(|addr| addr.ip())
                    .ok()
                    .or(addr)
                    .map_or_else(String::new, |ip| ip.to_string()),
                control: None,
                leader: None,
                managers: managers.into_iter().map(|m| (m.node, m.addr)).collect(),
                trust_root: links.map_or_else(String::new, |links| {
                    swarm::pem(links.credentials().root_certificate())
                }),
                tokens: Tokens::default(),
                reachability: BTreeMap::new(),
            }));
        };
        let state = manager.control().local_state();
        let known = state.node(&node);
        let addr = known.map(|node| node.status.addr.clone());
        let managers = state.nodes().filter(|node| node.is_manager());
        let managers = managers
            .map(|node| {
                let reached = node.manager.as_ref().map(|manager| manager.addr.clone());
                let addr = reached.filter(|addr| !addr.is_empty());
                (node.id, addr.unwrap_or_else(|| node.status.addr.clone()))
            })
            .collect();
        let trust = state.cluster().map(|cluster| &cluster.trust);
        let (trust_root, tokens) = match (trust, links) {
            (Some(trust), Some(_)) => (swarm::pem(&trust.root_certificate), swarm::tokens(trust)),
            _ => (String::new(), Tokens::default()),
        };
        SwarmState::Active(Box::new(ActiveSwarm {
            node,
            node_addr: addr.unwrap_or_default(),
            control: Some(Arc::new(manager.control())),
            leader: match manager.leader() {
                Leader::Here => Some(node),
                Leader::At(leader) => Some(leader.node),
                Leader::Unknown => None,
            },
            managers,
            trust_root,
            tokens,
            reachability: manager.reachability(),
        }))
    }

    fn init(&self, request: InitRequest) -> BoxFuture<'_, Result<NodeId>> {
        async move {
            if request.force_new_cluster {
                let node = self.node.clone();
                let forced = tokio::spawn(async move { node.force_new().await });
                let forced = forced.await.map_err(failed("force a new cluster"))?;
                return forced.map_err(|error| match error {
                    InitError::NoSwarm
                    | InitError::Member(MemberError::NoManager | MemberError::Local) => {
                        EngineError::Unavailable(error.to_string())
                    }
                    other => failed("force a new cluster")(other),
                });
            }
            let place = Place {
                listen: Some(request.listen.unwrap_or(ANY)),
                advertise: request.advertise,
                data_path: request.data_path,
            };
            let edit = move |options: &mut InitOptions| {
                options.subnet_prefix = request.subnet_prefix;
                options.data_path_port = request.data_path_port;
                options.availability = request.availability;
                options.task_history_limit = request.task_history_limit;
                options.trust.certificate_life = request.certificate_life;
                options.heartbeat_period = request.heartbeat_period;
                if !request.address_pools.is_empty() {
                    options.address_pools = request.address_pools;
                }
            };
            let node = self.node.clone();
            // In a task of its own: a client that hangs up must not leave half a swarm.
            let initialised = tokio::spawn(async move { node.init(place, edit).await });
            let initialised = initialised.await.map_err(failed("initialise the swarm"))?;
            initialised.map_err(|error| match error {
                InitError::AlreadyMember => EngineError::Unavailable(error.to_string()),
                InitError::Address(error) => EngineError::Invalid(error.to_string()),
                InitError::Member(error @ MemberError::InMemory) => {
                    EngineError::Invalid(error.to_string())
                }
                InitError::Init(error @ shoal_manager::InitError::Invalid { .. }) => {
                    EngineError::Invalid(error.to_string())
                }
                other => failed("initialise the swarm")(other),
            })
        }
        .boxed()
    }

    fn join(&self, request: JoinRequest) -> BoxFuture<'_, Result<()>> {
        async move {
            let token = request.token.parse::<JoinToken>();
            let joining = Joining {
                place: Place {
                    listen: Some(request.listen.unwrap_or(ANY)),
                    advertise: request.advertise,
                    data_path: request.data_path,
                },
                remotes: request.remotes,
                token: token.map_err(|error| EngineError::Invalid(error.to_string()))?,
                availability: request.availability,
            };
            let node = self.node.clone();
            // In a task of its own: a client that hangs up must not leave half a member.
            let joined = tokio::spawn(async move { node.join(joining).await });
            let joined = joined.await.map_err(failed("join the swarm"))?;
            joined.map(drop).map_err(|error| match error {
                JoinError::AlreadyMember | JoinError::Unreachable(_) => {
                    EngineError::Unavailable(error.to_string())
                }
                JoinError::Address(_) | JoinError::Refused(_) => {
                    EngineError::Invalid(error.to_string())
                }
                JoinError::Member(MemberError::Refused(reason)) => EngineError::Invalid(reason),
                JoinError::Member(error @ MemberError::InMemory) => {
                    EngineError::Invalid(error.to_string())
                }
                other => failed("join the swarm")(other),
            })
        }
        .boxed()
    }

    fn leave(&self, force: bool) -> BoxFuture<'_, Result<()>> {
        async move {
            let node = self.node.clone();
            // In a task of its own: a client that hangs up must not leave half a swarm.
            let left = tokio::spawn(async move { node.leave(force).await });
            let left = left.await.map_err(failed("leave the swarm"))?;
            left.map_err(|error| match error {
                LeaveError::NotMember | LeaveError::Manager { .. } => {
                    EngineError::Unavailable(error.to_string())
                }
                LeaveError::Home(_) => failed("leave the swarm")(error),
            })
        }
        .boxed()
    }

    fn forward(&self) -> BoxFuture<'_, Result<Forward>> {
        async move {
            let Some(member) = self.node.member() else {
                return Ok(Forward::Here);
            };
            match member.leader_api().await {
                Ok(None) => Ok(Forward::Here),
                Ok(Some(stream)) => Ok(Forward::To(Box::new(stream))),
                // In Docker's words.
                Err(MemberError::NoLeader) => {
                    Err(EngineError::Unavailable(ControlError::NoLeader.to_string()))
                }
                Err(error) => Err(EngineError::Unavailable(translate::chain(&error))),
            }
        }
        .boxed()
    }

    fn local_networks(&self) -> BoxFuture<'_, Result<Vec<LocalNetwork>>> {
        let set = self.node.agent().assignments();
        let networks = set.networks.iter().map(|n| swarm::local_network(n));
        std::future::ready(Ok(networks.collect())).boxed()
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<ImageInfo>>> {
        let count = |image: &Image| i64::try_from(self.users_of(&image.id).len()).unwrap_or(-1);
        let images = Self::images(self).list();
        let infos = images
            .iter()
            .map(|image| translate::image_info(image, count(image)));
        std::future::ready(Ok(infos.collect())).boxed()
    }

    fn image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<ImageDetails>> {
        let image = Self::images(self)
            .get(reference)
            .map_err(translate::lookup_error);
        std::future::ready(image.map(|image| translate::image_details(&image))).boxed()
    }

    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        auth: Option<&'a str>,
        platform: Option<&'a str>,
        progress: ProgressSink,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            translate::check_platform(platform)?;
            let auth = translate::auth(auth)?;
            let sink = translate::sink(progress);
            let pulled = Self::images(self).pull(reference, auth, sink).await;
            pulled
                .map(|_| ())
                .map_err(|error| translate::pull_error(reference, error))
        }
        .boxed()
    }

    fn load_images(
        &self,
        archive: BoxReader,
        progress: ProgressSink,
    ) -> BoxFuture<'_, Result<Vec<String>>> {
        async move {
            let loaded = Self::images(self)
                .load(archive, translate::sink(progress))
                .await;
            let loaded = loaded.map_err(|error| EngineError::Invalid(translate::chain(&error)))?;
            Ok(loaded.iter().map(translate::loaded).collect())
        }
        .boxed()
    }

    fn import_image(
        &self,
        archive: BoxReader,
        request: ImportRequest,
        _progress: ProgressSink,
    ) -> BoxFuture<'_, Result<String>> {
        async move {
            translate::check_platform(
                Some(&request.platform)
                    .filter(|p| !p.is_empty())
                    .map(String::as_str),
            )?;
            let reference = Some(request.reference.as_str()).filter(|name| !name.is_empty());
            let imported = Self::images(self)
                .import(archive, reference, &request.message, &request.changes)
                .await;
            let image = imported.map_err(|error| EngineError::Invalid(translate::chain(&error)))?;
            Ok(image.id.to_string())
        }
        .boxed()
    }

    fn save_images<'a>(&'a self, references: &'a [String]) -> BoxFuture<'a, Result<BoxReader>> {
        async move {
            for reference in references {
                let image = Self::images(self).get(reference);
                image.map_err(translate::lookup_error)?;
            }
            let (reader, writer) = tokio::io::duplex(translate::PIPE_BYTES);
            let (images, names) = (Self::images(self).clone(), references.to_vec());
            tokio::spawn(async move {
                // A client that went away, or sees a cut archive, is all there is to do about it.
                if let Err(error) = images.save(&names, writer).await {
                    tracing::warn!(error = translate::chain(&error), "images not saved");
                }
            });
            let reader: BoxReader = Box::pin(reader);
            Ok(reader)
        }
        .boxed()
    }

    fn tag_image<'a>(&'a self, reference: &'a str, target: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let tagged = Self::images(self).tag(reference, target).await;
            tagged.map_err(|error| translate::tag_error(reference, error))
        }
        .boxed()
    }

    fn remove_image<'a>(
        &'a self,
        reference: &'a str,
        force: bool,
    ) -> BoxFuture<'a, Result<Vec<Removed>>> {
        async move {
            let users = |image: &ImageId| self.users_of(image);
            let removed = Self::images(self).remove(reference, force, &users).await;
            let removed = removed.map_err(|error| translate::remove_error(reference, error))?;
            Ok(removed.into_iter().map(translate::removed).collect())
        }
        .boxed()
    }

    fn distribution<'a>(
        &'a self,
        reference: &'a str,
        auth: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ImageDescriptor>> {
        async move {
            let auth = translate::auth(auth)?;
            let found = Self::images(self).resolve_digest(reference, auth).await;
            found
                .map(translate::descriptor)
                .map_err(|error| translate::resolve_error(reference, error))
        }
        .boxed()
    }

    fn login(&self, auth: shoal_engine_api::wire::RegistryAuth) -> BoxFuture<'_, Result<()>> {
        async move {
            let server = auth.server_address.clone();
            let tried = Self::images(self).login(translate::credentials(auth)).await;
            tried.map_err(|error| translate::resolve_error(&server, error))
        }
        .boxed()
    }

    fn volumes(&self) -> BoxFuture<'_, Result<Vec<VolumeInfo>>> {
        self.with_volumes(|volumes| {
            let all = volumes.list();
            let all = all.map_err(|error| translate::volume_error("list", "volumes", error))?;
            Ok(all.into_iter().map(translate::volume).collect())
        })
        .boxed()
    }

    fn volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<VolumeInfo>> {
        let name = name.to_owned();
        self.with_volumes(move |volumes| {
            let found = volumes.get(&name);
            found
                .map(translate::volume)
                .map_err(|error| translate::volume_error("get", &name, error))
        })
        .boxed()
    }

    fn create_volume<'a>(
        &'a self,
        name: &'a str,
        labels: BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<VolumeInfo>> {
        let name = name.to_owned();
        self.with_volumes(move |volumes| {
            let made = volumes.ensure(&name, &labels, None);
            made.map(translate::volume)
                .map_err(|error| translate::volume_error("create", &name, error))
        })
        .boxed()
    }

    fn remove_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let (agent, name) = (self.node.agent().clone(), name.to_owned());
        self.with_volumes(move |volumes| {
            let users = || {
                let users = agent.users_of_volume(&name);
                users.iter().map(ToString::to_string).collect()
            };
            let removed = volumes.remove(&name, users);
            removed.map_err(|error| translate::volume_error("remove", &name, error))
        })
        .boxed()
    }

    fn volume_size<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<u64>> {
        let name = name.to_owned();
        self.with_volumes(move |volumes| {
            let size = volumes.size(&name);
            size.map_err(|error| translate::volume_error("measure", &name, error))
        })
        .boxed()
    }

    fn changed(&self) -> BoxStream<'static, ()> {
        let changes = WatchStream::new(self.node.agent().watch());
        changes.map(drop).boxed()
    }

    fn containers(&self) -> BoxFuture<'_, Result<Vec<ContainerInfo>>> {
        self.container_infos().boxed()
    }

    fn container_logs<'a>(
        &'a self,
        container: &'a ContainerId,
        request: LogRequest,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<LogRecord>>>> {
        std::future::ready(Ok(self.logs(container.as_str(), request))).boxed()
    }

    fn task_logs(
        &self,
        task: TaskId,
        request: LogRequest,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<LogRecord>>>> {
        async move {
            let container = container_id(&task);
            let known = self.node.agent().runtime().state(container.as_str()).await;
            if known
                .map_err(failed("look for the task's container"))?
                .is_some()
            {
                return Ok(self.logs(container.as_str(), request));
            }
            let Some(member) = self.node.member() else {
                return Ok(Box::pin(futures_util::stream::empty()) as BoxStream<'static, _>);
            };
            match member.manager() {
                Some(manager) => swarm::task_logs(&manager, member.node(), task, request).await,
                // A task without a container has written nothing.
                None => Ok(Box::pin(futures_util::stream::empty()) as BoxStream<'static, _>),
            }
        }
        .boxed()
    }
}

fn failed<E>(what: &'static str) -> impl FnOnce(E) -> EngineError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| EngineError::Failed {
        what: what.to_owned(),
        source: Box::new(source),
    }
}
