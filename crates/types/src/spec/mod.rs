//! What users ask for. Only a user changes a spec; everything else is derived from it.

mod container;
mod log;
mod network;
mod service;

pub use container::{
    Bind, ContainerSpec, DnsConfig, FileReference, HealthCheck, Isolation, Mount, MountKind,
    Privileges, SeccompMode, Tmpfs, Ulimit,
};
pub use log::{LogDriver, LogDriverError, LogKeeping};
pub use network::{Ipam, Ipv4Net, NetworkSpec, ParseNetError};
pub use service::{
    Availability, EndpointMode, EndpointSpec, FailureAction, GenericResource,
    NetworkAttachmentSpec, NodeSpec, Placement, Platform, PortConfig, Protocol, PublishMode,
    Resources, RestartCondition, RestartPolicy, Role, ServiceMode, ServiceSpec, TaskSpec,
    UpdateConfig, UpdateOrder,
};
