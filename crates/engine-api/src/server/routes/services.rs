//! Services.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use shoal_manager::State as Cluster;
use shoal_types::{
    NetworkId, TaskState,
    object::{NodeState, Service},
    spec::{Availability, ServiceMode},
};

use crate::{
    convert,
    server::{
        Engine,
        body::{Json, registry_auth},
        error::{ApiError, ApiResult},
        find, names,
        query::Query,
    },
    wire,
};

const FILTERS: &[&str] = &["id", "label", "mode", "name", "runtime"];

/// Finds networks in the state of one moment.
struct Resolve<'a>(&'a Cluster);

impl convert::Resolve for Resolve<'_> {
    fn network(&self, reference: &str) -> Option<NetworkId> {
        find::network(self.0, reference).ok().map(|n| n.id)
    }
}

pub(crate) async fn list(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<Vec<wire::Service>>> {
    let manager = engine.manager()?;
    let filters = query.filters(FILTERS)?;
    filters.one_of(
        "mode",
        &["replicated", "global", "replicated-job", "global-job"],
    )?;
    filters.one_of("runtime", &["container", "plugin"])?;
    let state = manager.control.state().await?;
    let services = state.services().filter(|service| {
        filters.prefix("id", service.id.as_str())
            && filters.prefix("name", &service.spec.name)
            && filters.labels("label", &service.spec.labels)
            && filters.exact("mode", mode_name(service.spec.mode))
            && filters.exact("runtime", "container")
    });
    let with_status = query.flag("status");
    let services = services.map(|service| wire::Service {
        service_status: with_status.then(|| status(&state, service)),
        ..show(&state, service, false)
    });
    Ok(Json(services.collect()))
}

fn mode_name(mode: ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
        ServiceMode::ReplicatedJob { .. } => "replicated-job",
        ServiceMode::GlobalJob => "global-job",
    }
}

fn show(state: &Cluster, service: &Service, defaults: bool) -> wire::Service {
    let prefix = |id| state.network(&id).map_or(32, |n| n.subnet.prefix());
    convert::service(service, defaults, &prefix)
}

/// How many tasks run, should run, and have run to their end.
fn status(state: &Cluster, service: &Service) -> wire::ServiceStatus {
    let tasks = || state.tasks_of(service.id);
    let wanted = |task: &&std::sync::Arc<shoal_types::object::Task>| task.desired.wants_run();
    let of_this_job = |task: &&std::sync::Arc<shoal_types::object::Task>| {
        task.spec_version == service.spec_version
    };
    let is_running = |task: &&std::sync::Arc<shoal_types::object::Task>| {
        task.status.state == TaskState::Running
            && task.node.is_some_and(|id| {
                state
                    .node(&id)
                    .is_some_and(|node| node.status.state != NodeState::Down)
            })
    };
    let running = tasks().filter(is_running);
    let completed = tasks().filter(of_this_job);
    let completed = completed
        .filter(|t| t.status.state == TaskState::Complete)
        .count() as u64;
    let usable = || {
        state
            .nodes()
            .filter(|node| node.spec.availability == Availability::Active)
    };
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => wire::ServiceStatus {
            running_tasks: running.filter(wanted).count() as u64,
            desired_tasks: replicas,
            completed_tasks: 0,
        },
        ServiceMode::Global => wire::ServiceStatus {
            running_tasks: running.filter(wanted).count() as u64,
            desired_tasks: tasks().filter(wanted).count() as u64,
            completed_tasks: 0,
        },
        ServiceMode::ReplicatedJob {
            max_concurrent,
            total_completions,
        } => wire::ServiceStatus {
            running_tasks: running.filter(of_this_job).count() as u64,
            desired_tasks: max_concurrent.min(total_completions.saturating_sub(completed)),
            completed_tasks: completed,
        },
        ServiceMode::GlobalJob => wire::ServiceStatus {
            running_tasks: running.filter(of_this_job).count() as u64,
            desired_tasks: (usable().count() as u64).saturating_sub(completed),
            completed_tasks: completed,
        },
    }
}

pub(crate) async fn inspect(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<Json<wire::Service>> {
    let manager = engine.manager()?;
    let state = manager.control.state().await?;
    let service = find::service(&state, &id)?;
    Ok(Json(show(&state, service, query.flag("insertDefaults"))))
}

pub(crate) async fn create(
    State(engine): State<Engine>,
    headers: HeaderMap,
    Json(spec): Json<wire::ServiceSpec>,
) -> ApiResult<Response> {
    let manager = engine.manager()?;
    let state = manager.control.basis().await?;
    let mut spec = convert::service_spec(spec, registry_auth(&headers), &Resolve(&state))?;
    if spec.name.is_empty() {
        spec.name = names::random();
    }
    let id = manager.control.create_service(spec).await?;
    let created = wire::ServiceCreated {
        id: id.to_string(),
        warnings: None,
    };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

pub(crate) async fn update(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(spec): Json<wire::ServiceSpec>,
) -> ApiResult<Json<wire::ServiceUpdated>> {
    let manager = engine.manager()?;
    let version = query.version("service")?;
    let rollback = match query.text("rollback") {
        "" | "none" => false,
        "previous" => true,
        other => {
            let message = format!("invalid rollback option {other:?}: expected previous");
            return Err(ApiError::bad_request(message));
        }
    };
    let state = manager.control.basis().await?;
    let service = find::service(&state, &id)?;
    let auth = registry_auth(&headers);
    let auth = if auth.is_some() {
        auth
    } else {
        kept_auth(service, query.text("registryAuthFrom"))?
    };
    let mut spec = convert::service_spec(spec, auth, &Resolve(&state))?;
    if spec.name.is_empty() {
        spec.name.clone_from(&service.spec.name);
    }
    if rollback {
        manager
            .control
            .rollback_service(service.id, version)
            .await?;
    } else {
        manager
            .control
            .update_service(service.id, version, spec)
            .await?;
    }
    Ok(Json(wire::ServiceUpdated { warnings: None }))
}

/// The credentials of an update that brings none.
fn kept_auth(service: &Service, from: &str) -> ApiResult<Option<String>> {
    match from {
        "" | "spec" => Ok(service.spec.task.container.registry_auth.clone()),
        "previous-spec" => {
            let previous = service.previous.as_ref().ok_or_else(|| {
                ApiError::bad_request("service does not have a previous spec (registryAuthFrom)")
            })?;
            Ok(previous.spec.task.container.registry_auth.clone())
        }
        other => Err(ApiError::bad_request(format!(
            "unsupported registryAuthFrom value {other:?}: expected spec or previous-spec"
        ))),
    }
}

pub(crate) async fn remove(State(engine): State<Engine>, Path(id): Path<String>) -> ApiResult<()> {
    let manager = engine.manager()?;
    let state = manager.control.basis().await?;
    let service = find::service(&state, &id)?.id;
    manager.control.remove_service(service).await?;
    Ok(())
}
