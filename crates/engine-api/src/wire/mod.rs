//! Docker's JSON, as Go's `api/types` write and read it.
//!
//! Every name is spelled out, because Docker mixes `ID`, `Id` and `IDs`. A field marked `omitempty`
//! is left out when it is empty, as in Go; all others are always present. Reading goes through
//! [`json::from_slice`], which accepts what Go accepts: keys in any case, `null` for any field,
//! unknown fields.
//!
//! Numbers that Go has as `int64` are `i64` here, so that a negative one is answered with Docker's own
//! message instead of a parse error. Durations are nanoseconds.

mod container;
mod event;
mod image;
pub mod json;
mod log;
mod network;
mod node;
mod secret;
mod service;
mod swarm;
mod system;
mod task;
mod time;
mod volume;

use std::collections::BTreeMap;

pub use self::{
    container::{
        ContainerConfig, ContainerHealth, ContainerInspect, ContainerState, ContainerSummary,
        EndpointSettings, HealthResult, HostConfig, LogConfig, MountPoint, NetworkSettings,
        PortBinding, PortSummary, RestartPolicyName, SummaryHostConfig, SummaryNetworks,
    },
    event::{Actor, Event},
    image::{
        BuildsPruned, ContainersPruned, DeleteItem, Descriptor, Distribution, DriverData, Empty,
        History, ImageConfig, ImageInspect, ImageMetadata, ImageSummary, ImagesPruned, LoggedIn,
        OciPlatform, Progress, ProgressDetail, ProgressError, RegistryAuth, RootFs,
    },
    log::{FrameDecoder, FrameError, LogFrame, LogStream},
    network::{
        ConfigReference, Ipam, IpamConfig, NetworkContainer, NetworkCreate, NetworkCreated,
        NetworkInspect, NetworkPeer, NetworkServiceInfo, NetworkTask, NetworksPruned,
    },
    node::{
        EngineDescription, ManagerStatus, Node, NodeDescription, NodeSpec, NodeStatus, Platform,
        PluginDescription, Reachability, TlsInfo,
    },
    secret::{Config, ConfigSpec, Created, Secret, SecretSpec},
    service::{
        AppArmor, BindOptions, ContainerSpec, CredentialSpec, DiscreteResource, DnsConfig,
        DriverConfig, Endpoint, EndpointSpec, File, FileReference, GenericResource, Global,
        HealthConfig, ImageOptions, JobStatus, Limit, Mount, NamedResource,
        NetworkAttachmentConfig, Placement, PlacementPreference, PortConfig, Privileges,
        Replicated, ReplicatedJob, ResourceRequirements, Resources, RestartPolicy, SeLinux,
        Seccomp, Service, ServiceCreated, ServiceMode, ServiceSpec, ServiceStatus, ServiceUpdated,
        Spread, TaskSpec, TmpfsOptions, Ulimit, UpdateConfig, UpdateStatus, VirtualIp,
        VolumeOptions,
    },
    swarm::{
        CaConfig, ClusterInfo, Dispatcher, Encryption, ExternalCa, InitRequest, JoinRequest,
        JoinTokens, Orchestration, Peer, Raft, Swarm, SwarmInfo, SwarmSpec, TaskDefaults,
        UnlockKey,
    },
    system::{
        AddressPool, BuildCacheUsage, Commit, Component, Diagnosis, DiskUsage, IndexInfo, Info,
        PlatformName, Plugins, Registries, Runtime, VersionInfo,
    },
    task::{
        ContainerStatus, NetworkAttachment, PortStatus, SwarmIpam, SwarmIpamConfig, SwarmNetwork,
        SwarmNetworkSpec, Task, TaskStatus,
    },
    time::{ParseTimeError, Time},
    volume::{Volume, VolumeCreate, VolumeList, VolumeUsage, VolumesPruned},
};

/// Labels and options.
pub type Map = BTreeMap<String, String>;

/// The number that a write must name to change an object.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(default)]
pub struct Version {
    #[serde(rename = "Index")]
    pub index: u64,
}

/// The body of every answer that is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ErrorBody {
    pub message: String,
}

/// Go's `omitempty`.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Writes structs as Go's: one line a field, with its JSON name and whether it is left out when empty.
macro_rules! object {
    ($(
        $(#[$meta:meta])*
        $name:ident {
            $( $(#[$field_meta:meta])* $field:ident: $ty:ty = $json:literal $($omit:ident)?; )*
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(rename = $json)]
                $(
                    #[doc = concat!("\n\n(", stringify!($omit), ")")]
                    #[serde(skip_serializing_if = "crate::wire::is_default")]
                )?
                pub $field: $ty,
            )*
        }
    )+};
}
use object;
