//! Which path and method leads where.

mod containers;
mod images;
mod networks;
mod nodes;
mod not_yet;
mod secrets;
mod services;
mod swarm;
mod swarm_input;
mod system;
mod tasks;
mod volumes;

use axum::{
    Router,
    response::Response,
    routing::{get, post},
};
use http::{Method, StatusCode, request::Parts};
use shoal_types::Timestamp;

pub(super) use self::containers::find as find_container;
use super::{Engine, error::ApiError, events, logs};

pub(super) fn all() -> Router<Engine> {
    Router::new()
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/doctor", get(system::doctor))
        .route("/system/df", get(system::disk_usage))
        .route("/volumes", get(volumes::list))
        .route("/volumes/create", post(volumes::create))
        .route("/volumes/prune", post(volumes::prune))
        .route(
            "/volumes/{name}",
            get(volumes::inspect).delete(volumes::remove),
        )
        .route("/plugins", get(system::plugins))
        .route("/events", get(events::events))
        .route("/swarm", get(swarm::inspect))
        .route("/swarm/init", post(swarm::init))
        .route("/swarm/join", post(swarm::join))
        .route("/swarm/leave", post(swarm::leave))
        .route("/swarm/unlock", post(swarm::unlock))
        .route("/swarm/unlockkey", get(swarm::unlock_key))
        .route("/swarm/update", post(swarm::update))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{id}", get(nodes::inspect).delete(nodes::remove))
        .route("/nodes/{id}/update", post(nodes::update))
        .route("/services", get(services::list))
        .route("/services/create", post(services::create))
        .route(
            "/services/{id}",
            get(services::inspect).delete(services::remove),
        )
        .route("/services/{id}/update", post(services::update))
        .route("/services/{id}/logs", get(logs::service))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(tasks::inspect))
        .route("/tasks/{id}/logs", get(logs::task))
        .route("/networks", get(networks::list))
        .route("/networks/", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route(
            "/networks/{id}",
            get(networks::inspect).delete(networks::remove),
        )
        .route("/secrets", get(secrets::list_secrets))
        .route("/secrets/create", post(secrets::create_secret))
        .route(
            "/secrets/{id}",
            get(secrets::inspect_secret).delete(secrets::remove_secret),
        )
        .route("/secrets/{id}/update", post(secrets::update_secret))
        .route("/configs", get(secrets::list_configs))
        .route("/configs/create", post(secrets::create_config))
        .route(
            "/configs/{id}",
            get(secrets::inspect_config).delete(secrets::remove_config),
        )
        .route("/configs/{id}/update", post(secrets::update_config))
        .route("/images/json", get(images::list))
        .route("/images/create", post(images::create))
        .route("/images/load", post(images::load))
        .route("/images/get", get(images::save_many))
        .route("/images/prune", post(images::prune))
        // Names of images have slashes, and a wildcard may only end a path.
        .route(
            "/images/{*rest}",
            get(images::get).post(images::post).delete(images::remove),
        )
        .route("/distribution/{*rest}", get(images::distribution))
        .route("/auth", post(system::login))
        .route("/build/prune", post(system::prune_builds))
        .route("/containers/json", get(containers::list))
        .route("/containers/prune", post(containers::prune))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/logs", get(logs::container))
        .merge(not_yet::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
}

/// Whether the answer is the cluster's, not this node's.
pub(super) fn is_of_cluster(path: &str) -> bool {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let (kind, object, verb) = (segments.next(), segments.next(), segments.next());
    match (kind, object, verb) {
        // A node is made part of a swarm, and leaves it, for itself; containers are connected to
        // networks on their own node.
        (Some("swarm"), Some("init" | "join" | "leave" | "unlock"), _)
        | (Some("networks"), _, Some(_)) => false,
        (
            Some("swarm" | "nodes" | "services" | "tasks" | "networks" | "secrets" | "configs"),
            ..,
        ) => true,
        _ => false,
    }
}

/// Puts this node's part into what the leader answered: in a network it knows its own containers only.
pub(super) async fn localized(engine: &Engine, request: &Parts, response: Response) -> Response {
    let mut segments = request.uri.path().split('/').filter(|s| !s.is_empty());
    let is_network = segments.next() == Some("networks")
        && segments.next().is_some()
        && segments.next().is_none();
    if is_network && request.method == Method::GET && response.status() == StatusCode::OK {
        networks::localized(engine, response).await
    } else {
        response
    }
}

fn now() -> Timestamp {
    Timestamp(i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX))
}

/// Docker says the same for an unknown path and a wrong method.
async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "page not found")
}
