//! Images and the registry (moby `api/types/{image,registry}`, `pkg/jsonmessage`).

use std::collections::BTreeMap;

use super::{HealthConfig, Map, Time, object};

object! {
    /// An image in `GET /images/json`.
    ImageSummary {
        containers: i64 = "Containers";
        /// Seconds since the epoch.
        created: i64 = "Created";
        id: String = "Id";
        labels: Option<Map> = "Labels";
        parent_id: String = "ParentId";
        repo_digests: Vec<String> = "RepoDigests";
        repo_tags: Vec<String> = "RepoTags";
        /// -1: not computed.
        shared_size: i64 = "SharedSize";
        size: i64 = "Size";
    }

    ImageInspect {
        id: String = "Id";
        repo_tags: Vec<String> = "RepoTags";
        repo_digests: Vec<String> = "RepoDigests";
        parent: String = "Parent";
        comment: String = "Comment";
        created: Time = "Created";
        docker_version: String = "DockerVersion";
        author: String = "Author";
        config: ImageConfig = "Config";
        architecture: String = "Architecture";
        variant: String = "Variant" omitempty;
        os: String = "Os";
        os_version: String = "OsVersion" omitempty;
        size: i64 = "Size";
        virtual_size: i64 = "VirtualSize" omitempty;
        graph_driver: DriverData = "GraphDriver";
        root_fs: RootFs = "RootFS";
        metadata: ImageMetadata = "Metadata";
    }

    /// What a container of the image gets unless it says otherwise.
    ImageConfig {
        hostname: String = "Hostname";
        domainname: String = "Domainname";
        user: String = "User";
        attach_stdin: bool = "AttachStdin";
        attach_stdout: bool = "AttachStdout";
        attach_stderr: bool = "AttachStderr";
        exposed_ports: BTreeMap<String, Empty> = "ExposedPorts" omitempty;
        tty: bool = "Tty";
        open_stdin: bool = "OpenStdin";
        stdin_once: bool = "StdinOnce";
        env: Option<Vec<String>> = "Env";
        cmd: Option<Vec<String>> = "Cmd";
        healthcheck: Option<HealthConfig> = "Healthcheck" omitempty;
        image: String = "Image";
        volumes: Option<BTreeMap<String, Empty>> = "Volumes";
        working_dir: String = "WorkingDir";
        entrypoint: Option<Vec<String>> = "Entrypoint";
        on_build: Option<Vec<String>> = "OnBuild";
        labels: Option<Map> = "Labels";
        stop_signal: String = "StopSignal" omitempty;
        shell: Vec<String> = "Shell" omitempty;
    }

    /// `{}`.
    Empty {}

    DriverData {
        data: Option<Map> = "Data";
        name: String = "Name";
    }

    RootFs {
        kind: String = "Type";
        layers: Vec<String> = "Layers" omitempty;
    }

    ImageMetadata {
        last_tag_time: Time = "LastTagTime" omitempty;
    }

    History {
        comment: String = "Comment";
        created: i64 = "Created";
        created_by: String = "CreatedBy";
        id: String = "Id";
        size: i64 = "Size";
        tags: Option<Vec<String>> = "Tags";
    }

    /// `POST /auth`.
    LoggedIn {
        status: String = "Status";
        identity_token: String = "IdentityToken";
    }

    BuildsPruned {
        deleted: Option<Vec<String>> = "CachesDeleted";
        reclaimed: u64 = "SpaceReclaimed";
    }

    ContainersPruned {
        deleted: Option<Vec<String>> = "ContainersDeleted";
        reclaimed: u64 = "SpaceReclaimed";
    }

    ImagesPruned {
        deleted: Option<Vec<DeleteItem>> = "ImagesDeleted";
        reclaimed: u64 = "SpaceReclaimed";
    }

    /// What a removal did: each item has one of the two.
    DeleteItem {
        deleted: String = "Deleted" omitempty;
        untagged: String = "Untagged" omitempty;
    }

    /// `GET /distribution/{name}/json`.
    Distribution {
        descriptor: Descriptor = "Descriptor";
        platforms: Option<Vec<OciPlatform>> = "Platforms";
    }

    Descriptor {
        media_type: String = "mediaType";
        digest: String = "digest";
        size: i64 = "size";
    }

    OciPlatform {
        architecture: String = "architecture";
        os: String = "os";
        os_version: String = "os.version" omitempty;
        os_features: Vec<String> = "os.features" omitempty;
        variant: String = "variant" omitempty;
    }

    /// One object of a pull, load, import or build stream.
    Progress {
        stream: String = "stream" omitempty;
        status: String = "status" omitempty;
        progress_detail: Option<ProgressDetail> = "progressDetail" omitempty;
        /// Drawn bar, for clients that do not draw their own.
        progress: String = "progress" omitempty;
        id: String = "id" omitempty;
        error_detail: Option<ProgressError> = "errorDetail" omitempty;
        /// Same text as in `error_detail`.
        error: String = "error" omitempty;
        aux: Option<serde_json::Value> = "aux" omitempty;
    }

    /// Bytes done and to do; `{}` when a step has none.
    ProgressDetail {
        current: i64 = "current" omitempty;
        total: i64 = "total" omitempty;
    }

    ProgressError {
        code: i64 = "code" omitempty;
        message: String = "message" omitempty;
    }

    /// The content of `X-Registry-Auth`.
    RegistryAuth {
        username: String = "username" omitempty;
        password: String = "password" omitempty;
        auth: String = "auth" omitempty;
        server_address: String = "serveraddress" omitempty;
        identity_token: String = "identitytoken" omitempty;
        registry_token: String = "registrytoken" omitempty;
    }
}

impl Progress {
    /// The last object of a stream that failed after its head was sent.
    pub fn failure(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            error_detail: Some(ProgressError {
                code: 0,
                message: message.clone(),
            }),
            error: message,
            ..Self::default()
        }
    }
}
