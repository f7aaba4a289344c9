//! Tasks.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use shoal_manager::State as Cluster;
use shoal_types::{Desired, object::Task};

use crate::{
    convert,
    server::{Engine, body::Json, error::ApiResult, filters::Filters, find, query::Query},
    wire,
};

const FILTERS: &[&str] = &[
    "desired-state",
    "id",
    "label",
    "name",
    "node",
    "service",
    "runtime",
    "_up-to-date",
];

pub(crate) async fn list(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<Vec<wire::Task>>> {
    let manager = engine.manager()?;
    let filters = query.filters(FILTERS)?;
    let known = [
        "ready", "running", "complete", "shutdown", "accepted", "remove",
    ];
    filters.one_of("desired-state", &known)?;
    filters.one_of("runtime", &["container", "plugin"])?;
    let up_to_date = filters.flag("_up-to-date")?.unwrap_or(false);
    let state = manager.control.state().await?;
    let services = found(&filters, "service", |text| {
        find::service(&state, text).map(|s| s.id)
    })?;
    let nodes = found(&filters, "node", |text| {
        find::node(&state, text).map(|n| n.id)
    })?;
    let wanted = |task: &Task| {
        services
            .as_ref()
            .is_none_or(|ids| ids.contains(&task.service))
            && nodes
                .as_ref()
                .is_none_or(|ids| task.node.is_some_and(|n| ids.contains(&n)))
            && filters.prefix("id", task.id.as_str())
            && filters.any("desired-state", |text| is_desired(task.desired, text))
            && filters.labels("label", &task.service_labels)
            && (filters.prefix("name", &task.name()) || filters.prefix("name", &task.service_name))
            && filters.exact("runtime", "container")
            && (!up_to_date || is_up_to_date(&state, task))
    };
    // One service is what nearly every client asks for, and it has an index.
    let tasks: Vec<_> = match services
        .as_ref()
        .and_then(|ids| ids.first())
        .filter(|_| services.as_ref().is_some_and(|s| s.len() == 1))
    {
        Some(only) => state
            .tasks_of(*only)
            .filter(|t| wanted(t))
            .map(|t| show(&state, t))
            .collect(),
        None => state
            .tasks()
            .filter(|t| wanted(t))
            .map(|t| show(&state, t))
            .collect(),
    };
    Ok(Json(tasks))
}

/// The ids behind the values of `key`; `None` when it was not given.
fn found<Id: Ord>(
    filters: &Filters,
    key: &str,
    find: impl Fn(&str) -> ApiResult<Id>,
) -> ApiResult<Option<BTreeSet<Id>>> {
    let values = filters.get(key);
    if values.is_empty() {
        return Ok(None);
    }
    values
        .iter()
        .map(|text| find(text))
        .collect::<ApiResult<_>>()
        .map(Some)
}

/// Docker's `accepted` is a state that no task is ever asked to go to, as in Docker.
fn is_desired(desired: Desired, text: &str) -> bool {
    desired.as_state().as_str() == text
}

/// Whether the task is what its service would make today.
fn is_up_to_date(state: &Cluster, task: &Task) -> bool {
    state.service(&task.service).is_some_and(|service| {
        task.spec_version == service.spec_version
            || (task.spec == service.spec.task
                && task.endpoint.mode == service.spec.endpoint.mode
                && task.endpoint.ports == service.spec.endpoint.ports)
    })
}

fn show(state: &Cluster, task: &Task) -> wire::Task {
    let mode = state
        .service(&task.service)
        .map(|service| service.spec.mode);
    convert::task(task, mode, &|id| state.network(&id).map(|n| &**n))
}

pub(crate) async fn inspect(
    State(engine): State<Engine>,
    Path(id): Path<String>,
) -> ApiResult<Json<wire::Task>> {
    let manager = engine.manager()?;
    let state = manager.control.state().await?;
    Ok(Json(show(&state, find::task(&state, &id)?)))
}
