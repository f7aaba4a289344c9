//! The calls, in the order of the API.

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::AsyncRead;

use super::{
    ByteStream, Call, Client, ClientError, EventOptions, Filters, JsonStream, LogFrames,
    LogOptions, ServiceUpdate,
};
use crate::wire::{
    Config, ConfigSpec, ContainerInspect, ContainerSummary, Created, DeleteItem, Diagnosis,
    DiskUsage, Distribution, Event, History, ImageInspect, ImageSummary, Info, InitRequest,
    JoinRequest, NetworkCreate, NetworkCreated, NetworkInspect, Node, NodeSpec, Progress, Secret,
    SecretSpec, Service, ServiceCreated, ServiceSpec, ServiceUpdated, Swarm, SwarmSpec, Task,
    VersionInfo,
};

type Result<T, E = ClientError> = std::result::Result<T, E>;

/// The engine itself.
impl Client {
    /// `OK` when somebody answers.
    pub async fn ping(&self) -> Result<Bytes> {
        let response = self.send(Call::get(&["_ping"])).await?;
        let body = response.into_body().collect().await;
        Ok(body.map_err(super::StreamError::from)?.to_bytes())
    }

    pub async fn version(&self) -> Result<VersionInfo> {
        self.json(Call::get(&["version"])).await
    }

    pub async fn info(&self) -> Result<Info> {
        self.json(Call::get(&["info"])).await
    }

    /// What is wrong on the node.
    pub async fn doctor(&self) -> Result<Diagnosis> {
        self.json(Call::get(&["doctor"])).await
    }

    pub async fn disk_usage(&self) -> Result<DiskUsage> {
        self.json(Call::get(&["system", "df"])).await
    }

    pub async fn events(&self, options: &EventOptions) -> Result<JsonStream<Event>> {
        let call = Call::get(&["events"])
            .query("since", &options.since)
            .query("until", &options.until)
            .filters(&options.filters);
        self.stream(call).await
    }
}

/// The swarm and its nodes.
impl Client {
    /// The id of the node.
    pub async fn init_swarm(&self, request: &InitRequest) -> Result<String> {
        self.json(Call::post(&["swarm", "init"]).json(request))
            .await
    }

    pub async fn join_swarm(&self, request: &JoinRequest) -> Result<()> {
        self.done(Call::post(&["swarm", "join"]).json(request))
            .await
    }

    pub async fn swarm(&self) -> Result<Swarm> {
        self.json(Call::get(&["swarm"])).await
    }

    pub async fn leave_swarm(&self, force: bool) -> Result<()> {
        self.done(Call::post(&["swarm", "leave"]).flag("force", force))
            .await
    }

    pub async fn update_swarm(&self, version: u64, spec: &SwarmSpec) -> Result<()> {
        let call = Call::post(&["swarm", "update"]).query("version", version.to_string());
        self.done(call.json(spec)).await
    }

    pub async fn nodes(&self, filters: &Filters) -> Result<Vec<Node>> {
        self.json(Call::get(&["nodes"]).filters(filters)).await
    }

    pub async fn node(&self, node: &str) -> Result<Node> {
        self.json(Call::get(&["nodes", node])).await
    }

    pub async fn update_node(&self, node: &str, version: u64, spec: &NodeSpec) -> Result<()> {
        let call = Call::post(&["nodes", node, "update"]).query("version", version.to_string());
        self.done(call.json(spec)).await
    }

    pub async fn remove_node(&self, node: &str, force: bool) -> Result<()> {
        self.done(Call::delete(&["nodes", node]).flag("force", force))
            .await
    }
}

/// Services and tasks.
impl Client {
    /// With `status`, each service says how many of its tasks run.
    pub async fn services(&self, filters: &Filters, status: bool) -> Result<Vec<Service>> {
        self.json(
            Call::get(&["services"])
                .filters(filters)
                .flag("status", status),
        )
        .await
    }

    /// With `defaults`, what the user left out is shown as it takes effect.
    pub async fn service(&self, service: &str, defaults: bool) -> Result<Service> {
        self.json(Call::get(&["services", service]).flag("insertDefaults", defaults))
            .await
    }

    pub async fn create_service(
        &self,
        spec: &ServiceSpec,
        registry_auth: Option<&str>,
    ) -> Result<ServiceCreated> {
        let call = Call::post(&["services", "create"]).registry_auth(registry_auth);
        self.json(call.json(spec)).await
    }

    /// `version` is that of the service the new spec was made from.
    pub async fn update_service(
        &self,
        service: &str,
        version: u64,
        spec: &ServiceSpec,
        options: &ServiceUpdate,
    ) -> Result<ServiceUpdated> {
        let call = Call::post(&["services", service, "update"])
            .query("version", version.to_string())
            .query("registryAuthFrom", &options.registry_auth_from)
            .query("rollback", if options.rollback { "previous" } else { "" })
            .registry_auth(options.registry_auth.as_deref());
        self.json(call.json(spec)).await
    }

    pub async fn remove_service(&self, service: &str) -> Result<()> {
        self.done(Call::delete(&["services", service])).await
    }

    pub async fn service_logs(&self, service: &str, options: &LogOptions) -> Result<LogFrames> {
        self.logs(&["services", service, "logs"], options).await
    }

    pub async fn tasks(&self, filters: &Filters) -> Result<Vec<Task>> {
        self.json(Call::get(&["tasks"]).filters(filters)).await
    }

    pub async fn task(&self, task: &str) -> Result<Task> {
        self.json(Call::get(&["tasks", task])).await
    }

    pub async fn task_logs(&self, task: &str, options: &LogOptions) -> Result<LogFrames> {
        self.logs(&["tasks", task, "logs"], options).await
    }

    async fn logs(&self, path: &[&str], options: &LogOptions) -> Result<LogFrames> {
        let call = Call::get(path)
            .flag("stdout", options.stdout)
            .flag("stderr", options.stderr)
            .flag("follow", options.follow)
            .flag("timestamps", options.timestamps)
            .flag("details", options.details)
            .query("since", &options.since)
            .query("until", &options.until)
            .query("tail", &options.tail);
        Ok(LogFrames::new(self.send(call).await?))
    }
}

/// Networks, secrets and configs.
impl Client {
    pub async fn networks(&self, filters: &Filters) -> Result<Vec<NetworkInspect>> {
        self.json(Call::get(&["networks"]).filters(filters)).await
    }

    pub async fn network(&self, network: &str) -> Result<NetworkInspect> {
        self.json(Call::get(&["networks", network])).await
    }

    pub async fn create_network(&self, request: &NetworkCreate) -> Result<NetworkCreated> {
        self.json(Call::post(&["networks", "create"]).json(request))
            .await
    }

    pub async fn remove_network(&self, network: &str) -> Result<()> {
        self.done(Call::delete(&["networks", network])).await
    }

    pub async fn secrets(&self, filters: &Filters) -> Result<Vec<Secret>> {
        self.json(Call::get(&["secrets"]).filters(filters)).await
    }

    pub async fn secret(&self, secret: &str) -> Result<Secret> {
        self.json(Call::get(&["secrets", secret])).await
    }

    pub async fn create_secret(&self, spec: &SecretSpec) -> Result<Created> {
        self.json(Call::post(&["secrets", "create"]).json(spec))
            .await
    }

    pub async fn update_secret(&self, secret: &str, version: u64, spec: &SecretSpec) -> Result<()> {
        let call = Call::post(&["secrets", secret, "update"]).query("version", version.to_string());
        self.done(call.json(spec)).await
    }

    pub async fn remove_secret(&self, secret: &str) -> Result<()> {
        self.done(Call::delete(&["secrets", secret])).await
    }

    pub async fn configs(&self, filters: &Filters) -> Result<Vec<Config>> {
        self.json(Call::get(&["configs"]).filters(filters)).await
    }

    pub async fn config(&self, config: &str) -> Result<Config> {
        self.json(Call::get(&["configs", config])).await
    }

    pub async fn create_config(&self, spec: &ConfigSpec) -> Result<Created> {
        self.json(Call::post(&["configs", "create"]).json(spec))
            .await
    }

    pub async fn update_config(&self, config: &str, version: u64, spec: &ConfigSpec) -> Result<()> {
        let call = Call::post(&["configs", config, "update"]).query("version", version.to_string());
        self.done(call.json(spec)).await
    }

    pub async fn remove_config(&self, config: &str) -> Result<()> {
        self.done(Call::delete(&["configs", config])).await
    }
}

/// Images and containers of the node that answers.
impl Client {
    pub async fn images(&self, filters: &Filters) -> Result<Vec<ImageSummary>> {
        self.json(Call::get(&["images", "json"]).filters(filters))
            .await
    }

    pub async fn image(&self, image: &str) -> Result<ImageInspect> {
        self.json(Call::get(&["images", image, "json"])).await
    }

    pub async fn image_history(&self, image: &str) -> Result<Vec<History>> {
        self.json(Call::get(&["images", image, "history"])).await
    }

    /// `reference` with its tag or digest.
    pub async fn pull_image(
        &self,
        reference: &str,
        registry_auth: Option<&str>,
    ) -> Result<JsonStream<Progress>> {
        let call = Call::post(&["images", "create"]).query("fromImage", reference);
        self.stream(call.registry_auth(registry_auth)).await
    }

    /// Makes an image of a file system; `repository` and `tag` may be empty.
    pub async fn import_image<R>(
        &self,
        archive: R,
        repository: &str,
        tag: &str,
        message: &str,
        changes: &[String],
    ) -> Result<JsonStream<Progress>>
    where
        R: AsyncRead + Send + 'static,
    {
        let call = Call::post(&["images", "create"])
            .query("fromSrc", "-")
            .query("repo", repository)
            .query("tag", tag)
            .query("message", message);
        let call = changes
            .iter()
            .fold(call, |call, change| call.query("changes", change));
        self.stream(call.tar(archive)).await
    }

    /// Takes the images of an archive that `save_image` made.
    pub async fn load_images<R>(&self, archive: R) -> Result<JsonStream<Progress>>
    where
        R: AsyncRead + Send + 'static,
    {
        self.stream(Call::post(&["images", "load"]).tar(archive))
            .await
    }

    pub async fn save_image(&self, image: &str) -> Result<ByteStream> {
        let response = self.send(Call::get(&["images", image, "get"])).await?;
        Ok(ByteStream::new(response.into_body()))
    }

    pub async fn tag_image(&self, image: &str, repository: &str, tag: &str) -> Result<()> {
        let call = Call::post(&["images", image, "tag"])
            .query("repo", repository)
            .query("tag", tag);
        self.done(call).await
    }

    pub async fn remove_image(&self, image: &str, force: bool) -> Result<Vec<DeleteItem>> {
        self.json(Call::delete(&["images", image]).flag("force", force))
            .await
    }

    /// What the registry says of an image, without pulling it.
    pub async fn distribution(
        &self,
        reference: &str,
        registry_auth: Option<&str>,
    ) -> Result<Distribution> {
        let call = Call::get(&["distribution", reference, "json"]);
        self.json(call.registry_auth(registry_auth)).await
    }

    /// With `all`, ended ones too.
    pub async fn containers(&self, all: bool, filters: &Filters) -> Result<Vec<ContainerSummary>> {
        self.json(
            Call::get(&["containers", "json"])
                .flag("all", all)
                .filters(filters),
        )
        .await
    }

    pub async fn container(&self, container: &str) -> Result<ContainerInspect> {
        self.json(Call::get(&["containers", container, "json"]))
            .await
    }

    pub async fn container_logs(&self, container: &str, options: &LogOptions) -> Result<LogFrames> {
        self.logs(&["containers", container, "logs"], options).await
    }
}
