//! Finding objects as Docker does: whole id, then exact name, then unique prefix of an id.

use std::{fmt::Display, sync::Arc};

use shoal_manager::State;
use shoal_types::object::{Config, Network, Node, Secret, Service, Task};

use super::error::{ApiError, ApiResult};

pub(crate) fn service<'a>(state: &'a State, reference: &str) -> ApiResult<&'a Arc<Service>> {
    let whole = reference.parse().ok().and_then(|id| state.service(&id));
    let named = || state.service_named(reference);
    match whole.or_else(named) {
        Some(found) => Ok(found),
        None => by_prefix("service", state.services(), |s| s.id, reference),
    }
}

pub(crate) fn task<'a>(state: &'a State, reference: &str) -> ApiResult<&'a Arc<Task>> {
    if let Some(found) = reference.parse().ok().and_then(|id| state.task(&id)) {
        return Ok(found);
    }
    let mut named = state.tasks().filter(|task| task.name() == reference);
    match named.next() {
        Some(found) => Ok(found),
        None => by_prefix("task", state.tasks(), |t| t.id, reference),
    }
}

pub(crate) fn node<'a>(state: &'a State, reference: &str) -> ApiResult<&'a Arc<Node>> {
    if let Some(found) = reference.parse().ok().and_then(|id| state.node(&id)) {
        return Ok(found);
    }
    let is_named = |n: &&Arc<Node>| n.spec.name == reference || n.description.hostname == reference;
    let mut named = state.nodes().filter(is_named);
    match (named.next(), named.next()) {
        (Some(found), None) => Ok(found),
        // Host names, unlike other names, need not be unique.
        (Some(_), Some(_)) => Err(ambiguous("node", reference)),
        (None, _) => by_prefix("node", state.nodes(), |n| n.id, reference),
    }
}

pub(crate) fn network<'a>(state: &'a State, reference: &str) -> ApiResult<&'a Arc<Network>> {
    let whole = reference.parse().ok().and_then(|id| state.network(&id));
    match whole.or_else(|| state.network_named(reference)) {
        Some(found) => Ok(found),
        None if matches!(reference, "host" | "none") => Err(no_such_mode(reference)),
        None => by_prefix("network", state.networks(), |n| n.id, reference),
    }
}

pub(crate) fn secret<'a>(state: &'a State, reference: &str) -> ApiResult<&'a Arc<Secret>> {
    let whole = reference.parse().ok().and_then(|id| state.secret(&id));
    match whole.or_else(|| state.secret_named(reference)) {
        Some(found) => Ok(found),
        None => by_prefix("secret", state.secrets(), |s| s.id, reference),
    }
}

pub(crate) fn config<'a>(state: &'a State, reference: &str) -> ApiResult<&'a Arc<Config>> {
    let whole = reference.parse().ok().and_then(|id| state.config(&id));
    match whole.or_else(|| state.config_named(reference)) {
        Some(found) => Ok(found),
        None => by_prefix("config", state.configs(), |c| c.id, reference),
    }
}

/// Docker's networks that are none.
fn no_such_mode(name: &str) -> ApiError {
    let way_out = match name {
        "host" => "containers are always in networks of their own; publish ports with mode=host",
        _ => "a container without a network cannot be made; use one that is internal",
    };
    let message = format!("network {name} not found: {way_out}");
    ApiError::new(http::StatusCode::NOT_FOUND, message)
}

fn by_prefix<'a, T, Id: Display>(
    kind: &str,
    objects: impl Iterator<Item = &'a Arc<T>>,
    id: impl Fn(&T) -> Id,
    reference: &str,
) -> ApiResult<&'a Arc<T>> {
    if reference.is_empty() {
        return Err(ApiError::not_found(kind, reference));
    }
    let mut found = objects.filter(|object| id(object).to_string().starts_with(reference));
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(ApiError::not_found(kind, reference)),
        (Some(_), Some(_)) => Err(ambiguous(kind, reference)),
    }
}

pub(crate) fn ambiguous(kind: &str, reference: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{kind} {reference} is ambiguous (2 or more matches found)"
    ))
}
