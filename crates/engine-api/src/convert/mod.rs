//! Between Docker's JSON and the stored types, in both directions.
//!
//! Towards the store everything is checked that can be seen in the text alone; what takes knowledge of
//! other objects is the manager's. What the store has no place for is refused by the name of its
//! field, so that nothing a user wrote is lost in silence.

mod container;
mod mount;
mod network;
mod node;
mod secret;
mod service;
mod service_out;
mod swarm;
mod task;

use std::time::Duration;

use shoal_types::object::Meta;

pub(crate) use self::{
    container::image_reference,
    network::{
        is_predefined, local_network, network_inspect, network_spec, network_warnings,
        swarm_network,
    },
    node::{availability, node, node_spec},
    secret::{config, config_spec, secret, secret_spec},
    service::{Resolve, service_spec},
    service_out::{generic_resources, health_check, port_config, service, task_spec_out},
    swarm::{CERTIFICATE_LIFE, cluster_info, default_swarm_spec, swarm, swarm_spec},
    task::task,
};
use crate::wire::{Time, Version};

/// Why a spec was refused. The message is Docker's where Docker has one; the field follows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("{message} ({field})")]
    Invalid { field: String, message: String },
    /// Docker knows it, Shoal does not yet.
    #[error("{field} is not supported: {message}")]
    Unsupported { field: String, message: String },
    #[error("{kind} {reference} not found ({field})")]
    NotFound {
        field: String,
        kind: &'static str,
        reference: String,
    },
}

impl SpecError {
    fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    fn unsupported(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            message: message.into(),
        }
    }
}

type Result<T, E = SpecError> = std::result::Result<T, E>;

/// Refuses `field` unless it is empty.
fn only_empty<T: Default + PartialEq>(value: &T, field: &str, why: &str) -> Result<()> {
    if *value == T::default() {
        Ok(())
    } else {
        Err(SpecError::unsupported(field, why))
    }
}

/// Nanoseconds that may not be negative.
fn duration(nanos: i64, field: &str, message: &str) -> Result<Duration> {
    u64::try_from(nanos)
        .map(Duration::from_nanos)
        .map_err(|_| SpecError::invalid(field, message))
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn version(meta: &Meta) -> Version {
    Version {
        index: meta.version.0,
    }
}

fn created(meta: &Meta) -> Time {
    Time::from(meta.created_at)
}

/// Set on every write.
fn updated(meta: &Meta) -> Time {
    Time::from(meta.updated_at)
}

/// Docker's rule for the names of services and networks.
fn dns_name(name: &str, field: &str) -> Result<()> {
    if name.len() > 63 {
        return Err(SpecError::invalid(
            field,
            "name must be 63 characters or fewer",
        ));
    }
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let inner = bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
    if inner && edge(bytes.first()) && edge(bytes.last()) {
        Ok(())
    } else {
        Err(SpecError::invalid(
            field,
            "name must be valid as a DNS name component",
        ))
    }
}

/// Docker's rule for the names of secrets and configs.
fn file_name(name: &str, field: &str) -> Result<()> {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let inner = bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
    if name.len() <= 64 && inner && edge(bytes.first()) && edge(bytes.last()) {
        Ok(())
    } else {
        Err(SpecError::invalid(
            field,
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end \
             character must be [a-zA-Z0-9]",
        ))
    }
}

#[cfg(test)]
mod tests;
