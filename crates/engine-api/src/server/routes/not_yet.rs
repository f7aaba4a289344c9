//! What Docker has and Shoal does not yet: answered by name, so that nobody takes it for a typing error.

use axum::{
    Router,
    extract::{RawPathParams, State},
    routing::{delete, get, post, put},
};

use super::{ApiError, Engine, find_container};

/// Paths with their method, and what they would do.
const ROUTES: &[(Method, &str, &str)] = &[
    (
        Method::Post,
        "/containers/create",
        "creating containers outside a service",
    ),
    (Method::Delete, "/containers/{id}", "removing containers"),
    (
        Method::Post,
        "/containers/{id}/start",
        "starting containers",
    ),
    (Method::Post, "/containers/{id}/stop", "stopping containers"),
    (
        Method::Post,
        "/containers/{id}/restart",
        "restarting containers",
    ),
    (
        Method::Post,
        "/containers/{id}/kill",
        "sending signals to containers",
    ),
    (Method::Post, "/containers/{id}/pause", "pausing containers"),
    (
        Method::Post,
        "/containers/{id}/unpause",
        "pausing containers",
    ),
    (
        Method::Post,
        "/containers/{id}/rename",
        "renaming containers",
    ),
    (
        Method::Post,
        "/containers/{id}/resize",
        "resizing terminals",
    ),
    (
        Method::Post,
        "/containers/{id}/update",
        "updating containers",
    ),
    (
        Method::Post,
        "/containers/{id}/attach",
        "attaching to containers",
    ),
    (
        Method::Get,
        "/containers/{id}/attach/ws",
        "attaching to containers",
    ),
    (
        Method::Post,
        "/containers/{id}/wait",
        "waiting for containers",
    ),
    (
        Method::Post,
        "/containers/{id}/exec",
        "running commands in containers",
    ),
    (
        Method::Get,
        "/containers/{id}/top",
        "listing the processes of containers",
    ),
    (
        Method::Get,
        "/containers/{id}/changes",
        "listing changed files of containers",
    ),
    (
        Method::Get,
        "/containers/{id}/export",
        "exporting containers",
    ),
    (
        Method::Get,
        "/containers/{id}/stats",
        "statistics of containers",
    ),
    (
        Method::Get,
        "/containers/{id}/archive",
        "copying from containers",
    ),
    (
        Method::Put,
        "/containers/{id}/archive",
        "copying into containers",
    ),
    (
        Method::Post,
        "/exec/{id}/start",
        "running commands in containers",
    ),
    (
        Method::Post,
        "/exec/{id}/resize",
        "running commands in containers",
    ),
    (
        Method::Get,
        "/exec/{id}/json",
        "running commands in containers",
    ),
    (Method::Get, "/images/search", "searching registries"),
    (Method::Post, "/commit", "making images of containers"),
    (Method::Post, "/build", "building images"),
    (Method::Post, "/build/cancel", "building images"),
    (Method::Post, "/session", "building images"),
    (
        Method::Post,
        "/networks/{id}/connect",
        "connecting containers to networks",
    ),
    (
        Method::Post,
        "/networks/{id}/disconnect",
        "disconnecting containers from networks",
    ),
    (Method::Put, "/volumes/{name}", "updating volumes"),
    (Method::Get, "/plugins/privileges", "plugins"),
    (Method::Post, "/plugins/pull", "plugins"),
    (Method::Post, "/plugins/create", "plugins"),
];

#[derive(Clone, Copy)]
enum Method {
    Get,
    Post,
    Put,
    Delete,
}

pub(super) fn routes() -> Router<Engine> {
    ROUTES
        .iter()
        .fold(Router::new(), |router, (method, path, what)| {
            let of_container = path.starts_with("/containers/{id}");
            let answer = move |State(engine): State<Engine>, named: RawPathParams| async move {
                let container = named.iter().find(|_| of_container).map(|(_, id)| id);
                no_such_container(&engine, container)
                    .await
                    .unwrap_or_else(|| ApiError::not_yet(what))
            };
            router.route(
                path,
                match method {
                    Method::Get => get(answer),
                    Method::Post => post(answer),
                    Method::Put => put(answer),
                    Method::Delete => delete(answer),
                },
            )
        })
}

/// What is not there cannot be missed: `docker rm --force` is content with it.
async fn no_such_container(engine: &Engine, named: Option<&str>) -> Option<ApiError> {
    let containers = engine.local.containers().await.ok()?;
    find_container(&containers, named?).err()
}
