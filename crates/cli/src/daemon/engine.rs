//! The node as the API sees it: translation, and nothing else.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use shoal_engine_api::engine::{
    ActiveSwarm, BoxReader, BoxStream, ContainerInfo, Diagnosis, EngineError, ImageDescriptor,
    ImageDetails, ImageInfo, ImportRequest, InitRequest, LocalEngine, LogRecord, LogRequest,
    NodeInfo, OutputStream, ProgressSink, Removed, Result, SwarmState, Tokens,
};
use shoal_manager::InitOptions;
use shoal_node_agent::{
    LocalTask, container_id,
    image::{self, Image, ImageId},
    runtime::{self, LogOptions, Phase},
};
use shoal_types::{ContainerId, NodeId, TaskId, object::Network};

use super::{
    machine::Machine,
    node::{InitError, LeaveError, Node},
    translate,
};

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
                ))
            })
            .collect())
    }

    /// The cluster's networks, as far as this node knows them.
    fn networks(&self) -> Vec<Arc<Network>> {
        let leading = self.node.leading();
        leading.map_or_else(Vec::new, |leading| {
            leading
                .manager
                .control()
                .local_state()
                .networks()
                .cloned()
                .collect()
        })
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
        let Some(leading) = self.node.leading() else {
            return SwarmState::Inactive;
        };
        let node = leading.membership.node;
        let state = leading.manager.control().local_state();
        let addr = state
            .node(&node)
            .map(|node| node.status.addr.clone())
            .unwrap_or_default();
        let managers = state.nodes().filter(|node| node.is_manager());
        let managers = managers
            .map(|node| (node.id, node.status.addr.clone()))
            .collect();
        SwarmState::Active(Box::new(ActiveSwarm {
            node,
            node_addr: addr,
            control: Some(Arc::new(leading.manager.control())),
            leader: Some(node),
            managers,
            reachability: BTreeMap::new(),
            trust_root: String::new(),
            tokens: Tokens::default(),
        }))
    }

    fn init(&self, request: InitRequest) -> BoxFuture<'_, Result<NodeId>> {
        async move {
            if request.force_new_cluster {
                return Err(EngineError::NotSupported(
                    "swarm init --force-new-cluster".to_owned(),
                ));
            }
            let options = InitOptions {
                addr: translate::advertised(&request),
                subnet_prefix: request.subnet_prefix,
                data_path_port: request.data_path_port,
                availability: request.availability,
                task_history_limit: request.task_history_limit,
                ..InitOptions::new(self.node.agent().description())
            };
            let options = if request.address_pools.is_empty() {
                options
            } else {
                InitOptions {
                    address_pools: request.address_pools,
                    ..options
                }
            };
            let id = NodeId::from_random(rand::random());
            let node = self.node.clone();
            // In a task of its own: a client that hangs up must not leave half a swarm.
            let initialised = tokio::spawn(async move { node.init(id, options).await });
            let initialised = initialised.await.map_err(failed("initialise the swarm"))?;
            initialised.map_err(|error| match error {
                InitError::AlreadyMember => EngineError::Unavailable(error.to_string()),
                other => failed("initialise the swarm")(other),
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
                LeaveError::NotMember | LeaveError::LastManager => {
                    EngineError::Unavailable(error.to_string())
                }
                LeaveError::Home(_) => failed("leave the swarm")(error),
            })
        }
        .boxed()
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
            // A task without a container has written nothing.
            Ok(
                match known.map_err(failed("look for the task's container"))? {
                    Some(_) => self.logs(container.as_str(), request),
                    None => Box::pin(futures_util::stream::empty()),
                },
            )
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
