//! Networks: those of the swarm, which are the only ones there are.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::{StatusCode, header};
use http_body::Body as _;
use shoal_manager::State as Cluster;
use shoal_types::{Desired, NetworkId, TaskState, object::Network};
use tokio::time::{Duration, sleep};

use crate::{
    convert,
    engine::{ContainerInfo, ControlError, LocalNetwork},
    server::{
        Engine, Manager,
        body::{BODY_LIMIT, Json, read},
        error::{ApiError, ApiResult},
        find,
        query::Query,
        routes::now,
    },
    wire::{self, json},
};

/// How long a removal waits for tasks to end; a manager that passed it on waits longer for the answer.
const LEAVING: Duration = Duration::from_secs(20);

const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];

pub(crate) async fn list(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<Vec<wire::NetworkInspect>>> {
    let filters = query.filters(FILTERS)?;
    filters.one_of("scope", &["swarm", "local", "global"])?;
    filters.one_of("type", &["custom", "builtin"])?;
    let dangling = filters.flag("dangling")?;
    let is_wanted = |network: &wire::NetworkInspect, predefined, is_used: &dyn Fn() -> bool| {
        let kind = if predefined { "builtin" } else { "custom" };
        let none = wire::Map::new();
        filters.any("id", |id| network.id.contains(id))
            && filters.any("name", |name| network.name.contains(name))
            && filters.exact("driver", &network.driver)
            && filters.exact("scope", "swarm")
            && filters.exact("type", kind)
            && filters.labels("label", network.labels.as_ref().unwrap_or(&none))
            && dangling.is_none_or(|wanted| wanted != is_used())
    };
    let Ok(manager) = engine.manager() else {
        let networks = engine.local.local_networks().await?.into_iter();
        // A node is told of a network as long as something there uses it.
        let networks = networks
            .map(convert::local_network)
            .filter(|network| is_wanted(network, convert::is_predefined(&network.name), &|| true));
        return Ok(Json(networks.collect()));
    };
    let state = manager.control.state().await?;
    let networks = state.networks().filter_map(|network| {
        let shown = convert::network_inspect(network);
        is_wanted(&shown, network.predefined, &|| is_used(&state, network)).then_some(shown)
    });
    Ok(Json(networks.collect()))
}

/// As in Docker: the whole id, then the name, then a prefix of one id only.
fn find_local(networks: Vec<LocalNetwork>, reference: &str) -> ApiResult<LocalNetwork> {
    let is_it = |n: &&LocalNetwork| n.id.as_str() == reference || n.name == reference;
    if let Some(found) = networks.iter().find(is_it) {
        return Ok(found.clone());
    }
    let begins = |n: &LocalNetwork| !reference.is_empty() && n.id.as_str().starts_with(reference);
    let mut begun = networks.into_iter().filter(begins);
    match (begun.next(), begun.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(ApiError::not_found("network", reference)),
        (Some(_), Some(_)) => Err(find::ambiguous("network", reference)),
    }
}

/// The leader's answer to [`inspect`], with the containers of this node in the place of its own.
pub(crate) async fn localized(engine: &Engine, response: Response) -> Response {
    let is_short = |bytes| bytes <= BODY_LIMIT as u64;
    if !response.body().size_hint().exact().is_some_and(is_short) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let body = match read(body).await {
        Ok(body) => body,
        Err(error) => return error.into_response(),
    };
    let containers = engine.local.containers().await;
    let (Ok(mut network), Ok(containers)) =
        (json::from_slice::<wire::NetworkInspect>(&body), containers)
    else {
        return Response::from_parts(head, body.into());
    };
    network.containers = Some(members(&network.id, &containers));
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, json::to_bytes(&network).into())
}

fn is_used(state: &Cluster, network: &Network) -> bool {
    network.spec.ingress
        || state
            .services()
            .any(|s| s.spec.task.networks.iter().any(|n| n.network == network.id))
        || state.tasks().any(|task| {
            task.status.state <= TaskState::Running
                && task.attachments.iter().any(|a| a.network == network.id)
        })
}

pub(crate) async fn inspect(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<Json<wire::NetworkInspect>> {
    if !matches!(query.text("scope"), "" | "swarm") {
        return Err(ApiError::not_found("network", &id));
    }
    let Ok(manager) = engine.manager() else {
        let network = find_local(engine.local.local_networks().await?, &id)?;
        let containers = engine.local.containers().await?;
        return Ok(Json(wire::NetworkInspect {
            containers: Some(members(network.id.as_str(), &containers)),
            ..convert::local_network(network)
        }));
    };
    let state = manager.control.state().await?;
    let network = find::network(&state, &id)?;
    let containers = engine.local.containers().await?;
    Ok(Json(wire::NetworkInspect {
        containers: Some(members(network.id.as_str(), &containers)),
        services: if query.flag("verbose") {
            services(&state, network)
        } else {
            BTreeMap::new()
        },
        ..convert::network_inspect(network)
    }))
}

/// The containers of this node that are in the network.
fn members(
    network: &str,
    containers: &[ContainerInfo],
) -> BTreeMap<String, wire::NetworkContainer> {
    let member = |container: &ContainerInfo| {
        let endpoint = container.networks.iter().find(|n| n.id == network)?;
        let member = wire::NetworkContainer {
            name: container.name.clone(),
            mac_address: endpoint.mac.clone(),
            ipv4_address: format!("{}/{}", endpoint.addr, endpoint.prefix),
            ..wire::NetworkContainer::default()
        };
        Some((container.id.to_string(), member))
    };
    containers.iter().filter_map(member).collect()
}

fn services(state: &Cluster, network: &Network) -> BTreeMap<String, wire::NetworkServiceInfo> {
    let attached = state.services().filter_map(|service| {
        let tasks: Vec<_> = state
            .tasks_of(service.id)
            .filter(|task| task.status.state <= TaskState::Running)
            .filter_map(|task| {
                let endpoint = task.attachments.iter().find(|a| a.network == network.id)?;
                let host = task.node.and_then(|id| state.node(&id));
                let host = host
                    .map(|node| node.status.addr.clone())
                    .unwrap_or_default();
                Some(wire::NetworkTask {
                    name: task.name(),
                    endpoint_ip: endpoint.addr.to_string(),
                    info: wire::Map::from([("Host IP".to_owned(), host)]),
                    ..wire::NetworkTask::default()
                })
            })
            .collect();
        let endpoint = service.endpoint.as_ref();
        let vip = endpoint.and_then(|e| e.virtual_ips.iter().find(|v| v.network == network.id));
        if tasks.is_empty() && vip.is_none() {
            return None;
        }
        let info = wire::NetworkServiceInfo {
            vip: vip.map(|v| v.addr.to_string()).unwrap_or_default(),
            tasks,
            ..wire::NetworkServiceInfo::default()
        };
        Some((service.spec.name.clone(), info))
    });
    attached.collect()
}

pub(crate) async fn create(
    State(engine): State<Engine>,
    Json(request): Json<wire::NetworkCreate>,
) -> ApiResult<Response> {
    let spec = convert::network_spec(request)?;
    let manager = engine.manager()?;
    let created = manager.control.create_network(spec).await;
    let id = created.map_err(|error| match error {
        // Docker looks for the name itself before it asks the manager.
        ControlError::NameConflict { name, .. } => ApiError::new(
            StatusCode::CONFLICT,
            format!("network with name {name} already exists"),
        ),
        other => other.into(),
    })?;
    let created = wire::NetworkCreated {
        id: id.to_string(),
        warning: String::new(),
    };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

pub(crate) async fn remove(
    State(engine): State<Engine>,
    Path(id): Path<String>,
) -> ApiResult<StatusCode> {
    let manager = engine.manager()?;
    let state = manager.control.basis().await?;
    let network = find::network(&state, &id)?;
    if network.predefined && !network.spec.ingress {
        let message = format!(
            "{} is a pre-defined network and cannot be removed",
            network.spec.name
        );
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    let id = network.id;
    until_left(&manager, id).await?;
    manager.control.remove_network(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Waits while the only users of a network are tasks that are told to end: whoever removes a stack removes its
/// networks right after its services, and does not ask twice.
async fn until_left(manager: &Manager, network: NetworkId) -> ApiResult<()> {
    let mut changes = manager.control.changes();
    let mut end = std::pin::pin!(sleep(LEAVING));
    loop {
        if !is_being_left(&*manager.control.state().await?, network) {
            return Ok(());
        }
        tokio::select! {
            change = changes.next() => {
                if change.is_none() {
                    return Ok(());
                }
            }
            () = &mut end => return Ok(()),
        }
    }
}

fn is_being_left(state: &Cluster, network: NetworkId) -> bool {
    let is_wanted = state
        .services()
        .any(|s| s.spec.task.networks.iter().any(|n| n.network == network));
    let mut users = state
        .tasks()
        .filter(|task| task.status.state <= TaskState::Running)
        .filter(|task| task.attachments.iter().any(|a| a.network == network))
        .peekable();
    !is_wanted
        && users.peek().is_some()
        && users.all(|task| {
            // Nobody may have come to tell a task whose service was removed just now.
            state.service(&task.service).is_none()
                || matches!(task.desired, Desired::Shutdown | Desired::Remove)
        })
}

/// Removes the networks that no service and no task uses.
pub(crate) async fn prune(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<wire::NetworksPruned>> {
    let filters = query.filters(&["label", "label!", "until"])?;
    let until = filters.until(now())?;
    let manager = engine.manager()?;
    let state = manager.control.basis().await?;
    let mut pruned = wire::NetworksPruned::default();
    for network in state.networks() {
        if network.predefined
            || is_used(&state, network)
            || !filters.labels("label", &network.spec.labels)
            || filters.spares("label!", &network.spec.labels)
            || until.is_some_and(|until| network.meta.created_at > until)
        {
            continue;
        }
        match manager.control.remove_network(network.id).await {
            Ok(()) => {
                let deleted = pruned.deleted.get_or_insert_default();
                deleted.push(network.spec.name.clone());
            }
            // Gone, or used, meanwhile.
            Err(ControlError::NotFound { .. } | ControlError::InUse(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(pruned))
}
